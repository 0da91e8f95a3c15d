// Package hosting joins the parts with which a box earns: it opens them in the
// order they need, passes each to those that ask for it, and lets them work.
//
//	h, err := hosting.New(hosting.Config{Network: network, Device: id, Key: key, …})
//	err = h.Run(ctx)        // blocks; may be called again after an error
//	h.Status()              // for the owner page
//
//	chain ◄──► bidding ──► workload ──► sandbox, leasedisk, network
//	              ▲           ▲  │ routes
//	tenant ─► relay ─► gateway   └──► ingress ◄─ relay ◄─ tenants' users
//
// It decides nothing about orders, manifests or packets: the parts do. Its own
// are only the ways between them, and three rules that no part can know alone:
// how much of the box is let, which streams of the relay are for the gateway, and
// that things on the box are swept away only when the chain was asked in this
// life.
//
// # What survives what
//
//	agent killed, restarted    leases run on; every part adopts what it finds
//	a part breaks              all parts are opened again, by whoever calls Run
//	no kernel modules yet      Run fails and says which part lacks what
//	chain, relay, registry     the parts wait, each in its own way; nothing is closed
//	or containerd away
//	/perm full or read-only    no new lease (Config.Ready); those that run go on
package hosting

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/inventory"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/leasedisk"
	"github.com/croft-cloud/croft/agent/network"
	"github.com/croft-cloud/croft/provisioning/joinfile"
	"github.com/croft-cloud/croft/relay"
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Network *joinfile.Network // required; what the box joins
	Device  croft.DeviceID    // required
	Key     crypto.Signer     // required; the device key
	Keeper  leasedisk.Keeper  // required; seals the keys of lease disks
	Journal Journal           // required; agent/journal
	Dir     string            // required; on /perm: account, manifests, disks, certificates
	RunDir  string            // required; on a memory file system: mounts, namespaces, pipes
	Version string            // of the release, for tenants
	Floor   time.Time         // when the release was built: no relay's certificate is judged by an earlier clock

	Containerd string // socket; default /run/croft/containerd.sock
	Runsc      string // default /user/croft-runsc
	Rotlog     string // default /user/croft-rotlog
	UserIDs    uint32 // first of 65,536 ids for what runs in sandboxes; default 0: they are not mapped
	Fetcher    string // folder of containerd's cgroup, which may fetch from public addresses and mirrors only; default: not limited

	Shape  network.Options                                // of each replica; default 250 Mbit/s down, 50 up
	Repair func(ctx context.Context, device string) error // of a damaged file system; nil: the disk is lost

	// Ready says why the box takes no new lease, a sentence; empty: it does.
	// Default: always.
	Ready func() string

	Log *slog.Logger // default: discard

	// Of tests alone: a box has no way to set them.
	disks             disks // nil: those of agent/leasedisk; others where the kernel cannot make such
	privateRegistries bool  // tenants may name registries by private addresses
	pace              pace
}

// pace is how long bidding waits; zeros are its defaults.
type pace struct {
	BidTimeout, ManifestTimeout, ReconcileEvery time.Duration
}

// Hosting is the provider on this box. Run may be called again after it
// returned; all other methods at any time.
type Hosting struct {
	cfg Config

	mu    sync.Mutex
	parts *parts // guarded by mu; nil while nothing is open
	fault string // guarded by mu; why nothing is open
}

// New checks cfg and starts nothing.
func New(cfg Config) (*Hosting, error) {
	switch {
	case cfg.Network == nil, cfg.Device == "", cfg.Key == nil, cfg.Keeper == nil, cfg.Journal == nil, cfg.Dir == "", cfg.RunDir == "":
		return nil, errors.New("hosting: network, device, key, keeper, journal or a folder is missing")
	}
	if err := cfg.Network.Check(); err != nil {
		return nil, fmt.Errorf("hosting: %w", err)
	}
	cfg.Containerd = cmp.Or(cfg.Containerd, "/run/croft/containerd.sock")
	cfg.Runsc = cmp.Or(cfg.Runsc, "/user/croft-runsc")
	cfg.Rotlog = cmp.Or(cfg.Rotlog, "/user/croft-rotlog")
	cfg.Shape.Down = cmp.Or(cfg.Shape.Down, 250_000_000)
	cfg.Shape.Up = cmp.Or(cfg.Shape.Up, 50_000_000)
	if cfg.Ready == nil {
		cfg.Ready = func() string { return "" }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Hosting{cfg: cfg, fault: "it is starting"}, nil
}

// Run opens the parts and works until ctx ends, or one of them breaks.
// Containers are left running, unless the cause of ctx's end is [ErrPowerOff].
func (h *Hosting) Run(ctx context.Context) error {
	p, err := open(ctx, h.cfg)
	if err != nil {
		h.set(nil, err.Error())
		return err
	}
	h.set(p, "")
	defer func() {
		h.set(nil, "it is starting again")
		if err := p.close(); err != nil {
			h.cfg.Log.Warn("parts were not closed cleanly", "err", err)
		}
	}()
	defer func() {
		if !errors.Is(context.Cause(ctx), ErrPowerOff) {
			return
		}
		if err := p.powerOff(); err != nil {
			h.cfg.Log.Warn("what runs was not ended in good order", "err", err)
		}
	}()
	g, working := errgroup.WithContext(ctx)
	for name, run := range map[string]func(context.Context) error{
		"network":  p.network.Run,
		"sandbox":  p.sandbox.Run,
		"workload": p.workloads.Run,
		"bidding":  p.provider.Run,
		"gateway":  p.gateway.Run,
		"ingress":  p.ingress.Run,
		"relay":    p.relay.Run,
		"routes":   p.route,
		"sweep":    p.sweep,
		"watch":    p.watch,
	} {
		g.Go(func() error {
			if err := run(working); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (h *Hosting) set(p *parts, fault string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.parts, h.fault = p, fault
}

// open is the open parts, or why there are none.
func (h *Hosting) open() (*parts, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.parts, h.fault
}

// Status is how the box is doing as a provider.
type Status struct {
	Network string // name of the chain
	Fault   string // why nothing works, in a few words; empty if the parts are open
	Sick    string // why no new lease is taken although they are, a sentence; empty if it is
	Machine inventory.Machine
	Bidding bidding.Status
	Leases  []bidding.Lease // that run
	Uses    []Use           // what they used when that was measured last, a quarter of a minute ago or less
	Trouble []lease.Event   // bad news of running leases, newest first
	Relays  []relay.RelayState
	Domain  string // hosts of workloads end in "." and this
}

// Status is the present one.
func (h *Hosting) Status() Status {
	s := Status{Network: h.cfg.Network.Chain.ID, Domain: h.cfg.domain()}
	p, fault := h.open()
	if p == nil {
		s.Fault = fault
		return s
	}
	s.Machine, s.Bidding, s.Sick = p.machine, p.provider.Status(), p.ready()
	s.Leases, s.Uses, s.Trouble = p.provider.Leases(), *p.uses.Load(), *p.trouble.Load()
	s.Relays, _ = p.relay.States()
	return s
}

// Check is nil when every part does its work: the runtime answers, and packets
// are filtered. What others must do (chain, relay) is not in it.
func (h *Hosting) Check(ctx context.Context) error {
	p, fault := h.open()
	if p == nil {
		return errors.New(fault)
	}
	_, err := p.sandbox.List(ctx)
	return err
}

// Drain lets no new leases in, until it is called with false, also after a
// restart. Running leases go on. Nothing on the box calls it yet: the owner page
// knows nobody, so it has no switches; the fleet's owner will have one (planned).
func (h *Hosting) Drain(ctx context.Context, on bool) error {
	p, fault := h.open()
	if p == nil {
		return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("stop taking leases: %s", fault), Remedy: "try again in a minute"}
	}
	return p.provider.Drain(ctx, on)
}
