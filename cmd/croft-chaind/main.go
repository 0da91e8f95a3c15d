// Croft-chaind is the chain daemon: a one-command local chain, or one validator
// of a set.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "croft-chaind:", err)
	}
	os.Exit(exitCode(err))
}

// run executes one command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := &cobra.Command{
		Use:   "croft-chaind",
		Short: "Run croft's chain",
		Long: `Run croft's chain: alone on this machine, or as one validator of a set.

Exit codes:
  0  done, or stopped by a signal
  1  it failed, or the chain stood still
  2  the command line is wrong
  3  what was named does not exist
  4  refused, nothing was changed
  5  this machine lacks something
  6  no space
  7  the input is damaged or not ours`,
		Example: `  # a chain on this machine
  croft-chaind start --home chain

  # a chain of several validators, each on its own machine
  croft-chaind init --home chain --moniker alice --address 192.0.2.1:26656   # on each; gives chain/validator.json
  croft-chaind genesis --chain-id croft-1 alice.json bob.json carol.json     # once; gives genesis.json and PEERS
  croft-chaind join --home chain --genesis genesis.json --peers PEERS        # on each
  croft-chaind start --home chain                                            # on each`,
		Args:                  noCommand,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
		SilenceErrors:         true,
		SilenceUsage:          true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &croft.Error{Kind: croft.KindUsage, Err: err, Remedy: "see `" + cmd.CommandPath() + " --help`"}
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(newStartCommand(), newInitCommand(), newGenesisCommand(), newJoinCommand(), newExportCommand(), newStatusCommand(), newVersionCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which croft-chaind this is",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "croft-chaind %s (%s, %s/%s)\n", version.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// noCommand is for a command that only holds others: a word behind it is one it
// does not have.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	remedy := "see `" + cmd.CommandPath() + " --help`"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		remedy = "did you mean `" + cmd.CommandPath() + " " + near[0] + "`?"
	}
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("%s has no command %q", cmd.CommandPath(), args[0]), Remedy: remedy}
}

// exactArgs is cobra.ExactArgs with a usage error a person can act on.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return &croft.Error{
			Kind:   croft.KindUsage,
			Err:    fmt.Errorf("%s takes %d arguments, got %d", cmd.CommandPath(), n, len(args)),
			Remedy: "usage: " + cmd.UseLine(),
		}
	}
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	switch croft.KindOf(err) {
	case croft.KindUsage:
		return 2
	case croft.KindNotFound:
		return 3
	case croft.KindRefused:
		return 4
	case croft.KindMissing:
		return 5
	case croft.KindNoSpace:
		return 6
	case croft.KindInvalid:
		return 7
	case croft.KindOther:
		return 1
	}
	return 1
}
