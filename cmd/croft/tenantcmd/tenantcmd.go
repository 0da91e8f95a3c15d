// Package tenantcmd is `croft tenant`: a deployment's whole life in few words,
// with keys, networks and money.
//
// It talks to a person; what survives a crash stands in chain/tenant, which
// writes every step down before it is taken.
package tenantcmd

import (
	"iter"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft/cmd/croft/session"
)

// New makes `croft tenant`.
func New() *cobra.Command {
	cmd, o := session.TopCommand("tenant", "Rent boxes: deploy, watch, pay and close", `Rent boxes: deploy what an SDL file describes, watch it, pay for it, close it.

On a chain of your own:
  croft-chaind start --home chain                           # in another terminal
  croft tenant keys use-local --accounts chain/accounts.json
  croft tenant deploy deploy.yml --from tenant

A DEPLOYMENT is its number (dseq) or name; it may be left out while there is
only one. Environment variables CROFT_FLAG or AKASH_FLAG give flags that are not
typed (CROFT_NODE, CROFT_FROM, …). The Akash command line's own verbs are below
croft tx, croft query and croft provider.`, "table")
	cmd.AddCommand(
		newKeysCommand(o), newNetworkCommand(o), newBalanceCommand(o), newFaucetCommand(o),
		newDeployCommand(o), newUpdateCommand(o), newCloseCommand(o), newDepositCommand(o),
		newListCommand(o), newStatusCommand(o), newCostCommand(o),
		newLogsCommand(o), newEventsCommand(o), newShellCommand(o),
	)
	return cmd
}

// all reads a list to its end.
func all[T any](items iter.Seq2[T, error]) ([]T, error) {
	var list []T
	for item, err := range items {
		if err != nil {
			return nil, err
		}
		list = append(list, item)
	}
	return list, nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
