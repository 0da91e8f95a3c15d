// Package outside is the world outside a box, on one machine: the chain, the
// relay, the registry its images come from, the fleet, and a tenant.
//
//	world, err := outside.New(outside.Config{Dir: dir, Chaind: program})
//	defer world.Close()
//	join := world.Network(outside.FromGuest)      // into the box's network.json
//	…                                             // the box boots and shows the address of its account
//	err = world.Chain.Make(ctx, outside.DeployAudit(address))
//	err = world.Chain.Start(ctx)
//	t, err := world.Tenant(ctx)
//	record, err := t.Run(ctx, file, show)
//
// The parts are the real ones: croft-chaind and croft-fleet as child processes,
// package relay, a registry that speaks the distribution protocol. Each has a life of its own
// (Start, Stop), so that a test can take one away for as long as it likes, and a
// fixed address, so that a box can be told where things are before they exist.
//
// Everything listens on 127.0.0.1. A virtual machine with QEMU's user networking
// sees that as 10.0.2.2; nobody else can reach it. Nobody is asked for anything
// either: the relay takes every box, the faucet gives to whoever asks. It is for
// trying, never for the internet.
//
// Close ends what runs. A program that dies takes the chain with it.
package outside

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// What the article's SDL file asks for, which is DeployFile in the repository: an
// organization, and an auditor's word for it.
const (
	DeployFile   = "chain/sdl/testdata/valid/deploy.yaml"
	DeployImage  = "ovrclk/lunie-light"
	Auditor      = account.Address("akash1vz375dkt0c60annyp6mkzeejfq0qpyevhseu05")
	organization = "ovrclk.com"
)

// DeployAudit is the auditor's record without which no provider may bid on
// DeployFile.
func DeployAudit(provider account.Address) Audit {
	return Audit{Provider: provider, Auditor: Auditor, Attributes: map[string]string{"organization": organization}}
}

// Config is copied by New. Fields of the parts that are empty have their
// defaults.
type Config struct {
	Dir      string // required; everything is below it, and should be gone before the next world
	Chaind   string // required; the program croft-chaind, see [Build]
	Fleetd   string // the program croft-fleet; empty: there is no fleet
	Chain    ChainConfig
	Fleet    FleetConfig
	Relay    RelayConfig
	Registry RegistryConfig
	Log      *slog.Logger // default: discard
}

// World is the parts together.
type World struct {
	Chain    *Chain
	Relay    *Relay
	Registry *Registry
	Fleet    *Fleet // nil: there is none

	dir string
	log *slog.Logger
}

// New starts relay and registry. The chain is made when the box's address is
// known: see Chain.Make; the fleet by Fleet.Start.
func New(cfg Config) (*World, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Chain.Dir, cfg.Chain.Program = filepath.Join(cfg.Dir, "chain"), cfg.Chaind
	cfg.Relay.Dir, cfg.Relay.Log = filepath.Join(cfg.Dir, "relay"), cfg.Log
	w := &World{dir: cfg.Dir, log: cfg.Log}
	var err error
	if w.Chain, err = NewChain(cfg.Chain); err != nil {
		return nil, err
	}
	if w.Relay, err = NewRelay(cfg.Relay); err != nil {
		return nil, err
	}
	if w.Registry, err = NewRegistry(cfg.Registry); err != nil {
		return nil, err
	}
	if cfg.Fleetd != "" {
		cfg.Fleet.Dir, cfg.Fleet.Program = filepath.Join(cfg.Dir, "fleet"), cfg.Fleetd
		if w.Fleet, err = NewFleet(cfg.Fleet); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(w.Relay.Start(), w.Registry.Start()); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Close ends all that runs.
func (w *World) Close() error {
	w.Relay.Stop()
	w.Registry.Stop()
	var fleet error
	if w.Fleet != nil {
		fleet = w.Fleet.Stop()
	}
	return errors.Join(w.Chain.Stop(), fleet)
}

// View is from where the world is looked at.
type View string

// The views.
const (
	FromHost  View = "127.0.0.1" // this machine
	FromGuest View = "10.0.2.2"  // a virtual machine with QEMU's user networking
)

// Network is what a box must be told to join; the fleet is in it once it has run.
func (w *World) Network(from View) *joinfile.Network {
	host := string(from)
	n := &joinfile.Network{
		Chain: joinfile.Chain{
			ID:  ChainID,
			RPC: "http://" + at(host, w.Chain.cfg.RPC), GRPC: "grpc://" + at(host, w.Chain.cfg.GRPC),
			Faucet: "http://" + at(host, w.Chain.cfg.REST) + "/faucet",
			Worth:  map[string]int64{"uakt": 500_000, "uact": 1_000_000},
		},
		Relays:     []joinfile.Relay{w.Relay.JoinEntry(host)},
		Domain:     w.Relay.Domain(),
		Port:       int(w.Relay.cfg.TLS),
		Attributes: map[string]string{"organization": organization},
		Mirrors:    map[string][]string{"docker.io": {"http://" + at(host, w.Registry.cfg.Port)}},
	}
	if w.Fleet != nil {
		n.Fleet = w.Fleet.Join(from)
	}
	return n
}

// PutWeb builds the tenant's program, package internal/rig/outside/web, from the
// repository at source, and puts it into the registry as the image that DeployFile
// names.
func (w *World) PutWeb(ctx context.Context, source string) error {
	begin := time.Now()
	program := w.Web()
	if err := Build(ctx, source, "./internal/rig/outside/web", program); err != nil {
		return err
	}
	digest, err := w.Registry.Put(Image{Name: DeployImage, Program: program, Env: []string{"GREETING=hello from the image"}, User: "1000:1000", Ports: []string{strconv.Itoa(WebPort) + "/tcp"}})
	if err != nil {
		return err
	}
	w.log.Info("image is in the registry", "oci_image", DeployImage, "digest", digest, "took", time.Since(begin))
	return nil
}

// Web is the program that [World.PutWeb] built, for other images.
func (w *World) Web() string { return filepath.Join(w.dir, "web") }

// WebPort is where the tenant's program listens.
const WebPort = 3000
