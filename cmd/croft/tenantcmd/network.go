package tenantcmd

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft/cmd/croft/session"
)

func newNetworkCommand(o *session.Options) *cobra.Command {
	var rest, relayHTTP string
	use := &cobra.Command{
		Use:   "use NAME",
		Short: "Choose the network that later commands talk to",
		Long: `Choose the network that later commands talk to.

With --node the network is written down, or changed, under that name.
croft-local is the chain of ` + "`croft-chaind start`" + ` on this machine and always known.
A flag or environment variable (--node or CROFT_NODE, …) beats the choice.`,
		Example: `  croft tenant network use croft-local
  croft tenant network use home --node http://192.168.1.20:26657 --chain-id croft-1`,
		Args: session.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.UseNetwork(args[0], rest, relayHTTP); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "using network %s\n", args[0])
			return nil
		},
	}
	use.Flags().StringVar(&rest, "rest", "", "the node's REST address, for the faucet of a local chain")
	use.Flags().StringVar(&relayHTTP, "relay-http", "", "where a relay on this machine takes plain HTTP, host:port (default: port 80)")
	list := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the networks that are known",
		Args:    session.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, current, err := o.Networks()
			if err != nil {
				return err
			}
			t := session.Table{Head: []string{"", "name", "chain", "node", "grpc", "rest"}}
			for _, name := range slices.Sorted(maps.Keys(all)) {
				mark := ""
				if name == current {
					mark = "*"
				}
				n := all[name]
				t.Row(mark, name, n.ChainID, n.Node, n.GRPC, n.REST)
			}
			return o.Show(cmd, t, all)
		},
	}
	return session.Group("network", "Choose and list networks", use, list)
}
