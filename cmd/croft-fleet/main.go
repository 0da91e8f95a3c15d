// Croft-fleet is the service that looks after boxes: as one program, or as several
// replicas on PostgreSQL, an external broker and S3.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	_ "time/tzdata" // quiet hours are in the zones of owners, wherever this runs

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet"
	"github.com/croft-cloud/croft/internal/version"
)

// gcPercent makes the garbage collector run when the heap has grown by half: most of the
// memory is series of readings that stay. It saves 28 % of memory for 13 % more processor
// time a message (docs/benchmarks.md). GOGC overrides it.
const gcPercent = 50

func main() {
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "croft-fleet:", err)
	}
	os.Exit(exitCode(err))
}

// run executes one command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o options
	root := &cobra.Command{
		Use:   "croft-fleet",
		Short: "Look after boxes",
		Long: `Look after boxes: people's pages, the port where boxes enrol, and their messages.

Every flag can be an environment variable: --tls-cert is CROFT_FLEET_TLS_CERT.
Put passwords there, or into the files that flags name, not on the command line.

Exit codes:
  0  done, or stopped by a signal
  1  it failed
  2  the command line is wrong
  3  what was named does not exist
  4  refused, nothing was changed
  5  this machine lacks something
  6  no space
  7  the input is damaged or not ours`,
		Example: `  # one program, with certificates for its pages by ACME
  croft-fleet --dir /var/lib/croft-fleet --origin https://fleet.example --acme ops@fleet.example

  # one of several replicas behind a proxy
  croft-fleet --dir /var/lib/croft-fleet --origin https://fleet.example --listen 127.0.0.1:8080 --proxy 127.0.0.0/8 \
    --key /etc/croft/fleet.key --database postgres:///fleet --blobs s3://s3.example/croft \
    --broker mqtts://fleet@broker.example:8884 --tell-broker tls://broker.example:8883`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Errorf("%.40q is no flag", args[0]))
			}
			return nil
		},
		DisableFlagsInUseLine: true,
		SilenceErrors:         true,
		SilenceUsage:          true,
		Version:               string(version.Version()),
		PersistentPreRunE:     func(cmd *cobra.Command, _ []string) error { return o.fromEnvironment(cmd.Flags(), os.LookupEnv) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), &o, stdout, slog.New(slog.NewTextHandler(stderr, nil)))
		},
	}
	o.register(root.Flags())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	return root.ExecuteContext(ctx)
}

// serve runs the fleet until it is told to stop.
func serve(ctx context.Context, o *options, stdout io.Writer, log *slog.Logger) error {
	cfg, err := o.config(log)
	if err != nil {
		return err
	}
	f, err := fleet.New(ctx, cfg)
	if err != nil {
		return err
	}
	admin, err := f.Bootstrap(ctx)
	if err != nil {
		return err
	}
	if url := admin.Reveal(); url != "" {
		fmt.Fprintf(stdout, "Nobody runs this fleet yet. Sign up as its admin, once, at\n  %s\n", url)
	}
	fmt.Fprintf(stdout, "Boxes join with this in network.json:\n%s", f.JoinText())
	return f.Run(ctx)
}

// usage makes an error one of the command line.
func usage(err error) error {
	return &croft.Error{Kind: croft.KindUsage, Err: err, Remedy: "see croft-fleet --help"}
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
