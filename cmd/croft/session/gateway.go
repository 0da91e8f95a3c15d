package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/signal"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// At is a lease and the gateway of its provider.
type At struct {
	Gateway *gatewayclient.Gateway
	Lease   akash.LeaseID
}

// StreamFlags say which logs or events to show.
type StreamFlags struct {
	follow   bool
	services []string
	tail     int
}

// Add adds the flags. Events have no tail.
func (s *StreamFlags) Add(cmd *cobra.Command, tail bool) {
	f := cmd.Flags()
	f.BoolVarP(&s.follow, "follow", "f", false, "go on with what is new, until Ctrl-C")
	f.StringSliceVar(&s.services, "service", nil, "only of this service; may be repeated")
	if tail {
		f.IntVar(&s.tail, "tail", 0, "begin with so many of the last lines (default: all that are kept)")
	}
}

func (s *StreamFlags) config(cmd *cobra.Command) gatewayclient.StreamConfig {
	return gatewayclient.StreamConfig{Follow: s.follow, Services: s.services, Tail: s.tail, Reconnected: func(err error) {
		fmt.Fprintf(cmd.ErrOrStderr(), "connection lost, going on: %v\n", err)
	}}
}

// Logs prints what the services of leases write, one line each.
func (o *Options) Logs(cmd *cobra.Command, s StreamFlags, leases []At) error {
	return follow(o, cmd, leases, func(ctx context.Context, at At) iter.Seq2[gatewayclient.LogLine, error] {
		return at.Gateway.Logs(ctx, at.Lease, s.config(cmd))
	}, func(l gatewayclient.LogLine) string { return "[" + l.Name + "] " + l.Message })
}

// Events prints what happens to the services of leases, one line each.
func (o *Options) Events(cmd *cobra.Command, s StreamFlags, leases []At) error {
	return follow(o, cmd, leases, func(ctx context.Context, at At) iter.Seq2[gatewayclient.Event, error] {
		return at.Gateway.Events(ctx, at.Lease, s.config(cmd))
	}, func(e gatewayclient.Event) string {
		return fmt.Sprintf("[%s %s] %s %s: %s", strings.ToLower(e.Object.Kind), e.Object.Name, e.Type, e.Reason, e.Note)
	})
}

// follow prints the streams of all leases side by side.
func follow[T any](o *Options, cmd *cobra.Command, leases []At, stream func(context.Context, At) iter.Seq2[T, error], text func(T) string) error {
	var mu sync.Mutex // one line at a time
	workers, ctx := errgroup.WithContext(cmd.Context())
	for _, at := range leases {
		workers.Go(func() error {
			for item, err := range stream(ctx, at) {
				if errors.Is(err, context.Canceled) {
					return nil // Ctrl-C is how following ends
				}
				if err != nil {
					return err
				}
				line := text(item)
				if o.format == "json" {
					raw, err := json.Marshal(item)
					if err != nil {
						return fmt.Errorf("write answer: %w", err)
					}
					line = string(raw)
				}
				mu.Lock()
				_, err := fmt.Fprintln(cmd.OutOrStdout(), line)
				mu.Unlock()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return workers.Wait()
}

// ShellFlags say how a command is run in a lease.
type ShellFlags struct {
	replica    int
	tty, stdin bool
}

// Add adds the flags.
func (s *ShellFlags) Add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&s.replica, "replica-index", 0, "which replica of the service, from 0")
	f.BoolVarP(&s.tty, "tty", "t", false, "with a terminal (default: if this is one and no command is given)")
	f.BoolVarP(&s.stdin, "stdin", "i", false, "with standard input")
	f.SetInterspersed(false) // flags behind the command are its own
}

// Command is what is to be run: args without the flags before it, which are
// read. It begins at the first word that is no flag, or behind "--".
func (ShellFlags) Command(cmd *cobra.Command, args []string) ([]string, error) {
	if len(args) == 0 || !strings.HasPrefix(args[0], "-") {
		return args, nil
	}
	if err := cmd.ParseFlags(args); err != nil {
		return nil, cmd.FlagErrorFunc()(cmd, err)
	}
	return cmd.Flags().Args(), nil
}

// ExitError is the end of a remote program with another code than 0. croft ends
// with the same code.
type ExitError struct{ Code int }

// Error implements error. croft does not print it: the program has spoken.
func (e *ExitError) Error() string { return fmt.Sprintf("the program ended with code %d", e.Code) }

// Shell runs a command in a service of a lease. Without one it is a shell.
func (s ShellFlags) Shell(cmd *cobra.Command, at At, service string, command []string) error {
	if len(command) == 0 {
		command = []string{"/bin/sh"}
		s.stdin = true
		s.tty = s.tty || IsTerminal(cmd.InOrStdin()) && IsTerminal(cmd.OutOrStdout())
	}
	cfg := gatewayclient.ShellConfig{
		Service: service, Replica: s.replica, Command: command, TTY: s.tty,
		Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr(),
	}
	if s.stdin {
		cfg.Stdin = cmd.InOrStdin()
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if s.tty && ok && term.IsTerminal(int(in.Fd())) {
		state, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return fmt.Errorf("set the terminal up: %w", err)
		}
		defer term.Restore(int(in.Fd()), state) //nolint:errcheck // it is as well as it can be
		sizes, stop := windowSizes(in)
		defer stop()
		cfg.Resize = sizes
	}
	err := at.Gateway.Shell(cmd.Context(), at.Lease, cfg)
	if exit, ok := errors.AsType[*gatewayclient.ExitError](err); ok {
		return &ExitError{Code: exit.Code}
	}
	return err
}

// windowSizes tells the size of a terminal, at first and when it changes.
func windowSizes(terminal *os.File) (<-chan gatewayclient.WindowSize, func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	sizes := make(chan gatewayclient.WindowSize, 1)
	done := make(chan struct{})
	var worker sync.WaitGroup
	worker.Go(func() {
		for {
			if width, height, err := term.GetSize(int(terminal.Fd())); err == nil {
				select {
				case sizes <- gatewayclient.WindowSize{Width: uint16(width), Height: uint16(height)}:
				case <-done:
					return
				}
			}
			select {
			case <-changed:
			case <-done:
				return
			}
		}
	})
	return sizes, func() {
		signal.Stop(changed)
		close(done)
		worker.Wait()
	}
}
