// Croft is the one command people type.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/chaincmd"
	"github.com/croft-cloud/croft/cmd/croft/factorycmd"
	"github.com/croft-cloud/croft/cmd/croft/fleetcmd"
	"github.com/croft-cloud/croft/cmd/croft/relaycmd"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/cmd/croft/simcmd"
	"github.com/croft-cloud/croft/cmd/croft/tenantcmd"
	"github.com/croft-cloud/croft/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if _, exited := errors.AsType[*session.ExitError](err); err != nil && !exited {
		fmt.Fprintln(os.Stderr, "croft:", err)
	}
	os.Exit(exitCode(err))
}

// run executes one command line.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := &cobra.Command{
		Use:   "croft",
		Short: "Build, try and look after croft boxes",
		Long: `Build, try and look after croft boxes.

Exit codes:
  0  done
  1  it failed, or was stopped
  2  the command line is wrong
  3  what was named does not exist
  4  refused, nothing was changed
  5  this machine lacks something
  6  no space
  7  the input is damaged or not ours
A program run in a lease (croft tenant shell) gives its own.`,
		Example: `  croft image build --out build                   # build a disk image
  croft vm run build/croft-uefi-x86.img           # boot it in a virtual machine
  croft image inspect build/croft-uefi-x86.img    # see what is in it
  sudo croft image write /dev/sdX                 # write it to a disk`,
		Args:                  noCommand,
		RunE:                  help,
		DisableFlagsInUseLine: true,
		SilenceErrors:         true,
		SilenceUsage:          true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &croft.Error{Kind: croft.KindUsage, Err: err, Remedy: "see `" + cmd.CommandPath() + " --help`"}
	})
	root.AddCommand(newImageCommand(), newVMCommand(), newDemoCommand(), newUpCommand(), newSDLCommand(), newVersionCommand(), tenantcmd.New(), relaycmd.New(), factorycmd.New(), simcmd.Command())
	root.AddCommand(fleetcmd.Commands()...)
	root.AddCommand(chaincmd.New()...)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which croft this is",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "croft %s (%s, %s/%s)\n", version.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

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

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*session.ExitError](err); ok {
		return exit.Code
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

// exactArgs is cobra.ExactArgs with a usage error a person can act on.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return &croft.Error{
			Kind:   croft.KindUsage,
			Err:    fmt.Errorf("%s takes %d argument%s, got %d", cmd.CommandPath(), n, map[bool]string{false: "s"}[n == 1], len(args)),
			Remedy: "usage: " + cmd.UseLine(),
		}
	}
}
