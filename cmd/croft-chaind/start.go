package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/internal/version"
)

// homeFlag adds --home to a command.
func homeFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("home", "croft-chain", "directory of the node")
}

// logFlags adds the flags of the log to a command. The log goes to standard
// error.
func logFlags(cmd *cobra.Command) func() (*slog.Logger, error) {
	level := cmd.Flags().String("log-level", "info", "debug, info, warn or error; debug has several lines per block")
	asJSON := cmd.Flags().Bool("log-json", false, "write the log as JSON lines")
	return func() (*slog.Logger, error) {
		var options slog.HandlerOptions
		var l slog.Level
		if err := l.UnmarshalText([]byte(*level)); err != nil {
			return nil, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("log level %q: %w", *level, err), Remedy: "use debug, info, warn or error"}
		}
		options.Level = l
		if *asJSON {
			return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &options)), nil
		}
		return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &options)), nil
	}
}

func newStartCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "start [flags]",
		Short: "Run the node; in an empty directory, make a local chain first",
		Long: `Run the node until it is told to stop.

In an empty directory it first makes a local chain, croft-local: one validator, one block per
second, and the accounts tenant, provider, fleet, faucet and validator, whose mnemonics are in
accounts.json in the directory. The state survives any stop; the same command goes on with it.

If the chain stands still for a minute of block times, the program logs what it was doing and
starts itself again, once an hour at most; after that it ends with code 1.`,
		Args: exactArgs(0),
	}
	home := homeFlag(cmd)
	log := logFlags(cmd)
	var cfg app.NodeConfig
	flags := cmd.Flags()
	flags.StringVar(&cfg.ChainID, "chain-id", app.LocalChainID, "id of the local chain to make")
	flags.StringVar(&cfg.RPC, "rpc", "127.0.0.1:26657", "address of the JSON-RPC")
	flags.StringVar(&cfg.GRPC, "grpc", "127.0.0.1:9090", "address of gRPC")
	flags.StringVar(&cfg.REST, "rest", "127.0.0.1:1317", "address of REST, /healthz, /metrics and, on a local chain, /faucet")
	flags.StringVar(&cfg.P2P, "p2p", "", "address for other nodes (default 127.0.0.1:0, or as `init` was told)")
	flags.StringSliceVar(&cfg.Origins, "origin", nil, "web origin whose pages may call RPC and REST, or *")
	flags.StringSliceVar(&cfg.Peers, "peers", nil, "other nodes, id@host:port (default as `join` was told)")
	flags.BoolVar(&cfg.PeersOnly, "peers-only", false, "talk to the named peers alone")
	flags.DurationVar(&cfg.BlockTime, "block-time", time.Second, "pause after each block; the same for the life of a chain")
	flags.StringVar(&cfg.MinGasPrices, "min-gas-price", "0.0025uakt", "least gas price taken; 0uakt takes transactions without fee")
	flags.Int64Var(&cfg.RetainBlocks, "retain-blocks", 2000, "blocks to keep; -1 keeps all")
	flags.Int64Var(&cfg.KeepStates, "keep-states", 100, "states to keep for queries about the past; -1 keeps all")
	flags.Int64Var(&cfg.SnapshotInterval, "snapshot-interval", 500, "blocks between snapshots for state sync; -1 takes none")
	flags.DurationVar(&cfg.StallAfter, "stall-after", 0, "standstill that ends the node (default 60 block times, at least 1m); -1ns never")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if cfg.Log, err = log(); err != nil {
			return err
		}
		cfg.Home = app.Home(*home)
		cfg.Version = string(version.Version())
		cfg.CometMetrics = true
		settings, err := readSettings(*home)
		if err != nil {
			return err
		}
		settings.apply(&cfg)
		err = start(cmd.Context(), cfg, cmd.OutOrStdout())
		if errors.Is(err, app.ErrStalled) {
			return restartAfterStall(cfg.Log, err)
		}
		return err
	}
	return cmd
}

func start(ctx context.Context, cfg app.NodeConfig, stdout io.Writer) error {
	node, err := app.StartNode(ctx, cfg)
	if err != nil {
		return err
	}
	at := node.Addrs()
	home, err := filepath.Abs(string(cfg.Home))
	if err != nil {
		home = string(cfg.Home)
	}
	fmt.Fprintf(stdout, "%s is running\n  RPC   http://%s\n  gRPC  %s\n  REST  http://%s\n", node.ChainID(), at.RPC, at.GRPC, at.REST)
	if node.Local() {
		fmt.Fprintf(stdout, "  accounts with their mnemonics: %s\n  more coins: curl -d '{\"address\":\"akash1…\"}' http://%s/faucet\n", filepath.Join(home, "accounts.json"), at.REST)
	} else {
		fmt.Fprintf(stdout, "  peer  %s\n", at.P2P)
	}
	return node.Wait()
}

// stalledAt is the environment variable in which a program that starts itself
// again tells when it did so, in Unix seconds.
const stalledAt = "CROFT_CHAIND_STALLED_AT"

// restartAfterStall puts a fresh program in the place of this one: what hangs in
// this one cannot hang in the next. A second stall within the hour is left to
// whoever looks after the program.
func restartAfterStall(log *slog.Logger, stall error) error {
	if last, err := strconv.ParseInt(os.Getenv(stalledAt), 10, 64); err == nil && time.Since(time.Unix(last, 0)) < time.Hour {
		return stall
	}
	program, err := os.Executable()
	if err != nil {
		return errors.Join(stall, err)
	}
	log.Warn("starting again after standstill")
	env := append(os.Environ(), stalledAt+"="+strconv.FormatInt(time.Now().Unix(), 10))
	return errors.Join(stall, unix.Exec(program, os.Args, env)) // returns only if it failed
}
