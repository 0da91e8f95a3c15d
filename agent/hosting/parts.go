package hosting

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/gateway"
	"github.com/croft-cloud/croft/agent/ingress"
	"github.com/croft-cloud/croft/agent/inventory"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/leasedisk"
	"github.com/croft-cloud/croft/agent/network"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/agent/sandbox"
	"github.com/croft-cloud/croft/agent/workload"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/provisioning/joinfile"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

// parts is everything that is open during one Run.
type parts struct {
	cfg     Config
	machine inventory.Machine
	class   inventory.Class // of the disk that leases lie on

	chain     node
	network   wires
	disks     disks
	sandbox   cells
	workloads *workload.Workloads
	provider  *bidding.Provider
	gateway   *gateway.Gateway
	ingress   entrance
	relay     tunnels

	rest, grpc *doorway // of the gateway
	doors      doors
	refusals   refusals
	reach      reach
	worked     worked

	full    atomic.Bool                   // the ingress has had the hosts of all leases
	room    atomic.Pointer[offer.Room]    // what the box lets
	sick    atomic.Pointer[string]        // why it takes no new lease
	trouble atomic.Pointer[[]lease.Event] // bad news of running leases, newest first
	uses    atomic.Pointer[[]Use]         // what running leases used when that was measured last
}

// domain is that of the box: hosts of its workloads end in it.
func (c Config) domain() string {
	return string(c.Device) + "." + c.Network.RelayDomain()
}

// gatewayHost is where tenants reach the gateway.
func (c Config) gatewayHost() string { return "gateway." + c.domain() }

// hostURI is the gateway's address in the provider's record.
func (c Config) hostURI() string {
	return "https://" + net.JoinHostPort(c.gatewayHost(), strconv.Itoa(c.Network.RelayPort()))
}

// open opens the parts, those first that others need, and starts none.
func open(ctx context.Context, cfg Config) (p *parts, err error) {
	p = &parts{cfg: cfg, rest: newDoorway(), grpc: newDoorway()}
	p.trouble.Store(new([]lease.Event))
	p.uses.Store(new([]Use))
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"look at the machine", p.lookAround},
		{"open the network", p.openNetwork},
		{"open the disks of leases", p.openDisks},
		{"measure what can be let", func(context.Context) error { return p.measure() }},
		{"open the runtime", p.openSandbox},
		{"open the chain", p.openChain},
		{"open what runs under leases", p.openWorkloads},
		{"open the provider", p.openProvider},
		{"open the ways in", p.openWays},
	} {
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return p, nil
}

func (p *parts) close() error {
	var errs []error
	if p.sandbox != nil {
		errs = append(errs, p.sandbox.Close())
	}
	if p.chain != nil {
		errs = append(errs, p.chain.Close())
	}
	return errors.Join(errs...)
}

func (p *parts) lookAround(ctx context.Context) (err error) {
	if p.machine, err = inventory.Read(ctx, "/", nil); err != nil {
		return err
	}
	p.class = classOf(p.machine.Disks)
	for _, note := range p.machine.Notes {
		p.cfg.Log.Warn("machine note", "note", note)
	}
	return nil
}

func (p *parts) openNetwork(ctx context.Context) error {
	var fetchers []string
	if p.cfg.Fetcher != "" {
		fetchers = []string{p.cfg.Fetcher}
	}
	n, err := network.New(network.Config{
		Fetchers: fetchers,
		Store:    p.cfg.Journal, Dir: filepath.Join(p.cfg.RunDir, "netns"), Log: p.cfg.Log,
		Report: func(e network.Event) {
			if _, err := p.cfg.Journal.Event(journal.Kind(e.Kind), e); err != nil {
				p.cfg.Log.Warn("event not kept", "event", e.Kind, "note", e.Note, "err", err)
			}
		},
	})
	if err != nil {
		return err
	}
	p.network = n
	_, err = n.Adopt(ctx)
	return err
}

// classOf is what leases are promised of their disk: the lowest class there is,
// for they may lie on any.
func classOf(disks []inventory.Disk) inventory.Class {
	class := inventory.Beta1
	for i, d := range disks {
		if class = min(class, d.Class); i == 0 { // beta1 < beta2 < beta3: the words are in order
			class = d.Class
		}
	}
	return class
}

// disks are those of leases: agent/leasedisk.
type disks interface {
	workload.Disks
	Close(ctx context.Context, key lease.Key) error
	Disks() ([]leasedisk.Disk, error)
	Usage(key lease.Key) (used, total int64, err error)
	Room() (int64, error)
	Borrow(ctx context.Context, key lease.Key, bytes int64, promised func() int64) (granted int64, giveBack func(), err error)
}

func (p *parts) openDisks(context.Context) (err error) {
	if p.disks = p.cfg.disks; p.disks != nil {
		return nil
	}
	dir := filepath.Join(p.cfg.Dir, "leases")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	total, err := fileSystemSize(dir)
	if err != nil {
		return err
	}
	p.disks, err = leasedisk.New(leasedisk.Config{
		Dir: dir, MountDir: filepath.Join(p.cfg.RunDir, "disks"), Keeper: p.cfg.Keeper,
		Reserve: reserveOf(total), Repair: p.cfg.Repair, Log: p.cfg.Log,
	})
	return err
}

func (p *parts) openSandbox(context.Context) error {
	mirrors := filepath.Join(p.cfg.RunDir, "mirrors")
	if err := writeMirrors(mirrors, p.cfg.Network.Mirrors); err != nil {
		return err
	}
	s, err := sandbox.New(sandbox.Config{
		Socket: p.cfg.Containerd, Runsc: p.cfg.Runsc, Rotlog: p.cfg.Rotlog,
		RunscRoot: filepath.Join(p.cfg.RunDir, "runsc"), RunDir: filepath.Join(p.cfg.RunDir, "exec"),
		HostDir: mirrors, PrivateRegistries: p.cfg.privateRegistries, UserIDs: p.cfg.UserIDs, Log: p.cfg.Log,
	})
	if err == nil {
		p.sandbox = s
	}
	return err
}

// writeMirrors writes a folder of hosts.toml files, as containerd reads them.
func writeMirrors(dir string, mirrors map[string][]string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, registry := range slices.Sorted(maps.Keys(mirrors)) {
		var text strings.Builder
		for _, mirror := range mirrors[registry] {
			fmt.Fprintf(&text, "[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror)
		}
		folder := filepath.Join(dir, registry)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if err := atomicfile.WriteFile(filepath.Join(folder, "hosts.toml"), []byte(text.String()), 0o644); err != nil {
			return err
		}
	}
	return os.MkdirAll(dir, 0o755)
}

func (p *parts) openChain(context.Context) error {
	at := p.cfg.Network.Chain
	c, err := client.New(client.Config{ChainID: at.ID, GRPC: at.GRPC, RPC: at.RPC, GasPrice: at.GasPrice, Log: p.cfg.Log})
	if err == nil {
		p.chain = c
	}
	return err
}

func (p *parts) openWorkloads(context.Context) (err error) {
	p.workloads, err = workload.New(workload.Config{
		Dir: filepath.Join(p.cfg.Dir, "workload"), Leases: p, Runtime: p.sandbox, Images: images{p}, Disks: p.disks,
		Network: links{p.network, p.cfg.Shape}, Journal: p.cfg.Journal, Lender: lender{p},
		IngressDomain: p.cfg.domain(), PublicHost: p.cfg.domain(), Log: p.cfg.Log,
	})
	return err
}

func (p *parts) openProvider(context.Context) error {
	folder := filepath.Join(p.cfg.Dir, "account")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	secrets := bidding.Folder(folder)
	key, err := bidding.OpenKey(secrets)
	if err != nil {
		return err
	}
	cfg := bidding.Config{
		Chain: p.chain, Signer: key, Journal: p.cfg.Journal, Secrets: secrets, Leases: p,
		HostURI: p.cfg.hostURI(), Hosts: []string{p.cfg.gatewayHost(), "mtls." + p.cfg.gatewayHost()},
		Attributes: p.attributes, Capacity: func() offer.Room { return *p.room.Load() }, Policy: policyOf(p.cfg.Network, p.machine),
		Ready: p.ready, Reachable: p.reachable, Log: p.cfg.Log,
		HasManifest: func(id akash.LeaseID) bool {
			_, err := p.workloads.Manifest(id)
			return err == nil
		},
		BidTimeout: p.cfg.pace.BidTimeout, ManifestTimeout: p.cfg.pace.ManifestTimeout, ReconcileEvery: p.cfg.pace.ReconcileEvery,
	}
	if at := p.cfg.Network.Chain.FeeGranter; at != "" {
		if cfg.FeeGranter, err = account.ParseAddress(at); err != nil {
			return fmt.Errorf("read who pays the fees: %w", err)
		}
	}
	if at := p.cfg.Network.Chain.Faucet; at != "" {
		u, err := url.Parse(at)
		if err != nil {
			return fmt.Errorf("read the faucet's address: %w", err)
		}
		cfg.Funding = bidding.Faucet{URL: u}
	}
	p.provider, err = bidding.New(cfg)
	return err
}

// attributes are the machine's, memory as storage, and those of the network file,
// which win.
func (p *parts) attributes() []bidding.Attribute {
	all := map[string]string{}
	for _, a := range p.machine.Attributes(p.class) {
		all[a.Key] = a.Value
	}
	all["capabilities/storage/2/class"], all["capabilities/storage/2/persistent"] = "ram", "false"
	maps.Copy(all, p.cfg.Network.Attributes)
	var list []bidding.Attribute
	for _, key := range slices.Sorted(maps.Keys(all)) {
		list = append(list, bidding.Attribute{Key: key, Value: all[key]})
	}
	return list
}

func (p *parts) openWays(context.Context) (err error) {
	in, err := ingress.New(ingress.Config{Dir: filepath.Join(p.cfg.Dir, "ingress"), ACME: authorityOf(p.cfg.Network), Log: p.cfg.Log})
	if err != nil {
		return err
	}
	p.ingress = in
	p.gateway, err = gateway.New(gateway.Config{
		Provider: p.provider.Account(), Host: p.cfg.gatewayHost(), REST: p.rest, GRPC: p.grpc,
		Chain: p.chain, Certificates: certificates{p.provider},
		Manifests: backend{p}, Statuses: backend{p}, Logs: backend{p}, Events: backend{p}, Shell: backend{p}, Provided: backend{p}, Hosts: backend{p},
		Software: gateway.Software{Version: p.cfg.Version}, Log: p.cfg.Log,
	})
	if err != nil {
		return err
	}
	certificate, err := wire.SelfSigned(p.cfg.Key)
	if err != nil {
		return err
	}
	cfg := relay.ClientConfig{
		Certificate: func() (tls.Certificate, error) { return certificate, nil },
		Accept:      p.accept, Log: p.cfg.Log,
	}
	for _, r := range p.cfg.Network.Relays {
		trust := wire.Trust{Floor: p.cfg.Floor}
		for _, pin := range r.Pins {
			raw, err := hex.DecodeString(pin) // checked by joinfile
			if err != nil {
				return err
			}
			trust.Pins = append(trust.Pins, wire.Pin(raw))
		}
		cfg.Relays = append(cfg.Relays, relay.Relay{Name: r.Name, Address: r.Address, Trust: trust})
	}
	c, err := relay.NewClient(cfg)
	if err == nil {
		p.relay = c
	}
	return err
}

// authorityOf is who gives the certificates of tenants' hosts; nil: nobody.
func authorityOf(n *joinfile.Network) *ingress.ACME {
	if n.ACME == nil {
		return nil
	}
	return &ingress.ACME{Directory: n.ACME.Directory, Email: n.ACME.Email}
}

// certificates are what the gateway shows.
type certificates struct{ provider *bidding.Provider }

func (c certificates) OnChain() *tls.Certificate {
	certificate, err := c.provider.Certificate(nil)
	if err != nil {
		return nil // not registered yet
	}
	return certificate
}

// Authority is none: no authority is asked for the gateway's host, and tenants'
// tools look the certificate up on the chain.
func (c certificates) Authority() *tls.Certificate { return nil }

// reachable reports whether tenants can reach the gateway.
func (p *parts) reachable() bool {
	states, _ := p.relay.States()
	return slices.ContainsFunc(states, func(s relay.RelayState) bool { return s.Phase == relay.Up })
}

// ready says why the box takes no new lease, a sentence.
func (p *parts) ready() string {
	if why := p.cfg.Ready(); why != "" {
		return why
	}
	if why := p.sick.Load(); why != nil && *why != "" {
		return *why
	}
	if !p.reachable() {
		return "the box does not reach its relay"
	}
	return ""
}

// watch keeps measuring what can be let, and whether the runtime answers.
func (p *parts) watch(ctx context.Context) error {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
		var why string
		asking, cancel := context.WithTimeout(ctx, watchEvery)
		_, err := p.sandbox.List(asking)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			why = "the box's runtime for workloads does not answer"
		default:
			if err := p.measure(); err != nil {
				why = "the box cannot measure its disk"
				p.cfg.Log.Warn("what can be let was not measured", "err", err)
			}
		}
		p.sick.Store(&why)
		p.collectTrouble(ctx)
		if why == "" {
			p.collectUses(ctx)
		}
		if why != "" {
			next.Reset(sickEvery) // often the runtime is starting
		} else {
			next.Reset(watchEvery)
		}
	}
}

const (
	watchEvery = 15 * time.Second
	sickEvery  = time.Second
)

// collectUses measures what leases use, for the owner.
func (p *parts) collectUses(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, watchEvery)
	defer cancel()
	uses, err := p.use(ctx)
	if err != nil {
		p.cfg.Log.Debug("what leases use was not measured in full", "err", err)
	}
	p.uses.Store(&uses)
}

// collectTrouble looks for bad news of the leases that run.
func (p *parts) collectTrouble(ctx context.Context) {
	found := []lease.Event{}
	var running []akash.LeaseID
	for _, l := range p.provider.Leases() {
		running = append(running, l.ID)
		if e, ok := p.refusals.of(l.ID); ok {
			found = append(found, e)
		}
		found = append(found, p.reach.trouble(l.ID)...)
		events, err := p.workloads.Events(ctx, l.ID, 0, false)
		if err != nil {
			continue // its manifest has not come yet
		}
		for e := range events {
			if e.Type == lease.Warning {
				found = append(found, e)
			}
		}
	}
	p.refusals.keep(running)
	slices.SortStableFunc(found, func(a, b lease.Event) int { return b.At.Compare(a.At) })
	found = found[:min(len(found), keepTrouble)]
	p.trouble.Store(&found)
}

// keepTrouble is how many pieces of bad news are kept for the owner.
const keepTrouble = 16
