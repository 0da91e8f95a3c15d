package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

func newUpCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run all of croft on this machine: chain, relay and fleet",
		Long: `Run all of croft on this machine: a chain with play money, a relay, and the fleet
with its console. Everything listens on 127.0.0.1, and goes on where it was when
you run it again. Ctrl-C ends it.

The chain's program croft-chaind and the fleet's program croft-fleet are those
beside this one. Where there are none, in the repository, they are built.

It is for trying. For boxes of other people run croft-fleet, croft relay and
croft-chaind, each with an address of its own.`,
		Example: `  croft up
  croft sim --fleet https://127.0.0.1:8443 --root build/up/root.pem --boxes 5
  croft image network build/croft-uefi-x86.img build/up/network-vm.json && croft vm run build/croft-uefi-x86.img`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			u := &up{dir: dir, w: &lastWrite{w: cmd.OutOrStdout()}}
			return u.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "build/up", "folder of all of it")
	return cmd
}

// Where things are each time: what was told to a box holds for longer than one run.
const (
	upWeb, upDevice, upBroker  = 8080, 8443, 8883
	upRPC, upGRPC, upREST      = 26657, 9090, 1317
	upRelayTLS, upRelayHTTP    = 7443, 7080
	upNetwork, upGuestsNetwork = "network.json", "network-vm.json"
)

// up is chain, relay and fleet on this machine.
type up struct {
	dir string
	w   *lastWrite
}

func (u *up) run(ctx context.Context) (err error) {
	if err := os.MkdirAll(u.dir, 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	chaind, err := u.program(ctx, "croft-chaind")
	if err != nil {
		return err
	}
	fleetd, err := u.program(ctx, "croft-fleet")
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(u.dir, "world.log"))
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	defer log.Close()
	world, err := outside.New(outside.Config{
		Dir: u.dir, Chaind: chaind, Fleetd: fleetd, Log: slog.New(slog.NewTextHandler(log, nil)),
		Chain: outside.ChainConfig{RPC: upRPC, GRPC: upGRPC, REST: upREST},
		Fleet: outside.FleetConfig{Web: upWeb, Device: upDevice, Broker: upBroker},
		Relay: outside.RelayConfig{TLS: upRelayTLS, HTTP: upRelayHTTP},
	})
	if err != nil {
		return &croft.Error{Kind: croft.KindOf(err), Err: err, Remedy: "end what listens on these ports"}
	}
	defer func() { err = errors.Join(err, world.Close()) }()
	if err := u.start(ctx, world); err != nil {
		return err
	}
	<-ctx.Done()
	fmt.Fprintln(u.w, "\nSwitching all of it off.")
	return nil
}

// start begins what is not there yet, and says where everything is.
func (u *up) start(ctx context.Context, world *outside.World) error {
	if _, err := os.Stat(world.Chain.Accounts()); errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(u.w, "making a chain with play money")
		if err := world.Chain.Make(ctx); err != nil {
			return err
		}
	}
	if err := world.Chain.Start(ctx); err != nil {
		return err
	}
	if err := world.Fleet.Start(ctx); err != nil {
		return err
	}
	for file, from := range map[string]outside.View{upNetwork: outside.FromHost, upGuestsNetwork: outside.FromGuest} {
		raw, err := json.MarshalIndent(world.Network(from), "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(u.dir, file), append(raw, '\n'), 0o644); err != nil {
			return fmt.Errorf("write down what boxes are told: %w", err)
		}
	}
	root := strings.Join(world.Network(outside.FromHost).Fleet.Roots, "")
	if err := os.WriteFile(filepath.Join(u.dir, "root.pem"), []byte(root), 0o644); err != nil {
		return fmt.Errorf("write down the fleet's root: %w", err)
	}
	fmt.Fprintf(u.w, "console   %s\n", world.Fleet.Console())
	if admin, err := world.Fleet.AdminURL(); err == nil {
		fmt.Fprintf(u.w, "          sign up as its admin, once: %s\n", admin)
	}
	fmt.Fprintf(u.w, "boxes     join with %s (virtual machines: %s)\n", filepath.Join(u.dir, upNetwork), upGuestsNetwork)
	fmt.Fprintf(u.w, "chain     %s, %s; accounts in %s\n", outside.ChainID, world.Chain.RPC(), world.Chain.Accounts())
	fmt.Fprintf(u.w, "relay     %s, boxes are DEVICE.%s\n", world.Relay.TLS(), world.Relay.Domain())
	fmt.Fprintf(u.w, "logs      %s, %s, %s\nCtrl-C ends all of it.\n", world.Fleet.Log(), world.Chain.Log(), filepath.Join(u.dir, "world.log"))
	return nil
}

// program is where a program of croft's is: beside this one, or built from the
// repository that this is run in.
func (u *up) program(ctx context.Context, name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	if _, err := os.Stat(filepath.Join("cmd", name)); err != nil {
		return "", &croft.Error{
			Kind: croft.KindMissing, Err: fmt.Errorf("there is no %s beside this program", name),
			Remedy: "put it there, or run this in the repository",
		}
	}
	fmt.Fprintf(u.w, "building %s\n", name)
	built := filepath.Join(u.dir, name)
	return built, outside.Build(ctx, ".", "./cmd/"+name, built)
}
