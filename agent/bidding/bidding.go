// Package bidding leads the box's life as a provider on an Akash-compatible
// chain: it registers the box, publishes the gateway's certificate, watches
// orders, bids by a price policy, keeps the capacity ledger, tells the workload
// which leases are won and over, and fetches what they earn.
//
//	key, err := bidding.OpenKey(bidding.Folder("/perm/croft/account"))
//	p, err := bidding.New(bidding.Config{Chain: c, Signer: key, Journal: j, …})
//	err = p.Run(ctx)            // blocks
//	p.Leases()                  // what the gateway serves
//	p.Status()                  // for the owner page: earnings, prices, why not
//
// It does not start workloads, receive manifests or send coins elsewhere. What an
// order is offered, and why not, is decided by agent/offer.
//
// # How it works
//
// Each order the box bids on has an entry in the journal; [State] and its table
// say how it moves. Events of the chain only tell which order to look at: what is
// true is read from the chain. Every few minutes, and at the start, a survey
// looks at all of them, takes up bids and leases of ours that the journal has
// lost, and considers every open order again.
//
// What it promises:
//
//   - The room of all reserved and leased entries never exceeds the capacity. It
//     is reserved in the journal before the bid leaves. (Bids found on the chain
//     that the journal had lost are counted even so.)
//   - There is one bid per order. A transaction is written down before it leaves
//     and signed anew only when the old one is dead for certain; the chain
//     refuses a second bid besides.
//   - A lease is closed only because the owner or the workload asked
//     ([Provider.Close]), or because the tenant could have sent a manifest for
//     five minutes, chain, gateway and journal all within reach, and did not.
//     Never because of an outage. Bids carry a reclamation window, if the chain
//     has any: that is the tenant's notice before its lease is closed, and taking
//     back an open bid cannot end the lease made of it a moment before.
//   - The workload hears LeaseWon of each running lease at least once in each life
//     of the agent, and LeaseClosed until it has answered nil.
//
// # What survives what
//
//	crash, power cut       everything; transactions under way are asked after
//	chain or node down     leases run; nothing is bid, closed or given up; surveyed after
//	chain begun anew       Run fails, to begin anew; bids that the chain does not know
//	                       end after ten minutes, leases after a day
//	node lost its blocks   the survey replaces the events
//	journal cannot write   no new bid; what is decided is decided again later
//	journal lost           bids and leases are taken up from the chain before any bid
//	                       is made; earnings of old leases are forgotten
//	account key lost       a new account; leases of the old one are lost
//	wrong clock            all times that count are the chain's
//	why-not list           lives in memory; filled again by the next survey
package bidding

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/client"
)

// Chain is what is needed of a chain; [client.Client] has it. An error of a query
// whose kind is croft.KindNotFound says that there is no such thing.
type Chain interface {
	Orders
	Agreements
	Registry
	Node
}

// Orders is what tenants ask for.
type Orders interface {
	Order(context.Context, akash.OrderID) (*marketv1beta5.Order, error)
	Orders(context.Context, *marketv1beta5.OrderFilters) iter.Seq2[*marketv1beta5.Order, error]
	Deployment(context.Context, akash.DeploymentID) (*deploymentv1beta4.QueryDeploymentResponse, error)
}

// Agreements are bids and leases.
type Agreements interface {
	Bid(context.Context, akash.BidID) (*marketv1beta5.QueryBidResponse, error)
	Bids(context.Context, *marketv1beta5.BidFilters) iter.Seq2[*marketv1beta5.QueryBidResponse, error]
	Lease(context.Context, akash.LeaseID) (*marketv1beta5.QueryLeaseResponse, error)
	Leases(context.Context, *marketv1.LeaseFilters) iter.Seq2[*marketv1beta5.QueryLeaseResponse, error]
}

// Registry is what the chain knows about the box.
type Registry interface {
	Provider(context.Context, account.Address) (*providerv1beta4.Provider, error)
	AuditedAttributes(ctx context.Context, provider, auditor account.Address) iter.Seq2[*auditv1.AuditedProvider, error]
	Certificates(context.Context, *certv1.CertificateFilter) iter.Seq2[*certv1.CertificateResponse, error]
	Balance(ctx context.Context, address account.Address, denom string) (*basev1beta1.Coin, error)
	MarketParams(context.Context) (*marketv1beta5.Params, error)
}

// Node is the chain's pulse, and the way to it.
type Node interface {
	ChainID() string
	Status(context.Context) (client.Status, error)
	Watch(ctx context.Context, from int64) iter.Seq2[client.Block, error]
	Send(context.Context, account.Signer, client.Tx) (client.Result, error)
	Resume(context.Context, client.Signed) (client.Result, error)
}

// Leases is who runs what is leased: agent/workload. Both calls may come again
// for the same lease, and are repeated until they return nil. LeaseClosed may
// come for a lease that was never announced. One that hangs holds up its own
// lease and nothing else; it is cut off, and comes again.
type Leases interface {
	LeaseWon(context.Context, Lease) error
	LeaseClosed(context.Context, akash.LeaseID, marketv1.LeaseClosedReason) error
}

// Config is copied by [New], checked once, and never changed afterwards. Its
// functions are called often and must answer at once.
type Config struct {
	Chain   Chain          // required
	Signer  account.Signer // required; the box's account, see [OpenKey]
	Journal Journal        // required; any goroutine may call it
	Secrets Secrets        // required; for the gateway's certificate
	Leases  Leases         // required
	Funding Funding        // nil: the account is filled by others

	HostURI    string             // required; the gateway's address for tenants: https://host:8443
	Hosts      []string           // required; names and IP addresses in the gateway's certificate
	Email      string             // for tenants; may be empty
	Website    string             // for tenants; may be empty
	Attributes func() []Attribute // required; what the box is; the chain's record follows it

	Capacity  func() offer.Room // required; what the box lets
	Overhead  int64             // bytes of memory each replica needs for its sandbox; default 64 MiB
	Policy    offer.Policy      // required; see [offer.DefaultPolicy]
	Ready     func() string     // why the box takes no new lease, a sentence; default: it does
	Reachable func() bool       // tenants can reach the gateway; default: always

	// HasManifest says that the workload has a lease's manifest. It is asked before a
	// lease ends for want of one; the note of it may be lost. Default: it has none.
	HasManifest func(akash.LeaseID) bool

	FeeGranter     account.Address // pays the fees; default: the box
	FeeReserve     int64           // uakt that are never put into deposits; default 1 000 000, 0 with a FeeGranter
	Notice         time.Duration   // longest reclamation window a tenant may ask for; default 24 h
	BlocksPerMonth int64           // default: measured
	MaxOrders      int             // bids and leases at once; default 32, most 64

	BidTimeout      time.Duration // an open bid is taken back after; default 5 min
	ManifestTimeout time.Duration // a lease without a manifest is closed after; default 5 min
	WithdrawEvery   time.Duration // default 24 h
	ReconcileEvery  time.Duration // default 3 min
	TaskTimeout     time.Duration // for one transaction, or one call of Leases; default 2 min
	CallTimeout     time.Duration // for one look at the chain; default 30 s
	KeepRefusals    int           // length of the why-not list; default 100

	Log *slog.Logger // default: discard
}

// maxOrders keeps the entries below half of what the journal holds: 64 of at most
// 8 KiB, and those that are over are small.
const maxOrders = 64

func (c *Config) check() error {
	switch {
	case c.Chain == nil || c.Signer == nil || c.Journal == nil || c.Secrets == nil || c.Leases == nil:
		return errors.New("chain, signer, journal, secrets and leases are required")
	case c.Attributes == nil || c.Capacity == nil:
		return errors.New("attributes and capacity are required")
	case len(c.Hosts) == 0:
		return errors.New("hosts are required")
	case c.MaxOrders < 0 || c.MaxOrders > maxOrders:
		return fmt.Errorf("max orders is %d: choose 1 to %d", c.MaxOrders, maxOrders)
	}
	if u, err := url.Parse(c.HostURI); err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" {
		return fmt.Errorf("host URI is %.64q: write https://host:port", c.HostURI)
	}
	if err := c.Policy.Check(); err != nil {
		return err
	}
	if c.Ready == nil {
		c.Ready = func() string { return "" }
	}
	if c.Reachable == nil {
		c.Reachable = func() bool { return true }
	}
	if c.HasManifest == nil {
		c.HasManifest = func(akash.LeaseID) bool { return false }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Overhead = cmp.Or(c.Overhead, offer.ReplicaMemory)
	if c.FeeGranter == "" {
		c.FeeReserve = cmp.Or(c.FeeReserve, 1_000_000)
	}
	c.Notice = cmp.Or(c.Notice, 24*time.Hour)
	c.MaxOrders = cmp.Or(c.MaxOrders, 32)
	c.BidTimeout = cmp.Or(c.BidTimeout, 5*time.Minute)
	c.ManifestTimeout = cmp.Or(c.ManifestTimeout, 5*time.Minute)
	c.WithdrawEvery = cmp.Or(c.WithdrawEvery, 24*time.Hour)
	c.ReconcileEvery = cmp.Or(c.ReconcileEvery, 3*time.Minute)
	c.TaskTimeout = cmp.Or(c.TaskTimeout, 2*time.Minute)
	c.CallTimeout = cmp.Or(c.CallTimeout, 30*time.Second)
	c.KeepRefusals = cmp.Or(c.KeepRefusals, 100)
	return nil
}

// Provider is the box on its chain. Its methods may be called from any
// goroutine; those with a context wait for [Provider.Run].
type Provider struct {
	cfg       Config
	engine    *engine
	registrar *registrar
	calls     chan func()
	status    atomic.Pointer[Status]
}

// New reads the journal and starts nothing.
func New(cfg Config) (*Provider, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("bidding: %w", err)
	}
	me, err := cfg.Signer.PublicKey().Address()
	if err != nil {
		return nil, fmt.Errorf("bidding: %w", err)
	}
	p := &Provider{cfg: cfg, calls: make(chan func())}
	b, odd, err := openBook(cfg.Journal, cfg.Chain.ChainID(), me)
	for _, err := range odd {
		cfg.Log.Warn("part of the journal is left out", "err", err)
	}
	if err != nil {
		return nil, fmt.Errorf("bidding: %w", err)
	}
	p.engine = newEngine(&p.cfg, b)
	p.engine.call = p.call
	if p.registrar, err = newRegistrar(&p.cfg, me); err != nil {
		return nil, fmt.Errorf("bidding: %w", err)
	}
	p.engine.ensure = p.registrar.ensure
	p.publish()
	return p, nil
}

// Run leads the provider's life until ctx ends. It fails when the chain was begun
// anew: a Provider and client made now know nothing of its past and go on.
func (p *Provider) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	blocks := make(chan client.Block)
	from := p.engine.book.point.Height // read before the engine works
	wg.Go(func() { p.watch(ctx, from, blocks) })

	results := make(chan func())
	calling := 0 // tasks that ask the chain
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var waiting []task
	for {
		var later []task
		for _, t := range append(waiting, p.engine.due(time.Now())...) {
			switch {
			case t.inside:
			case calling >= maxTasks:
				later = append(later, t)
				continue
			default:
				calling++
			}
			wg.Go(func() {
				absorb := t.run(ctx)
				select {
				case results <- func() {
					if !t.inside {
						calling--
					}
					absorb()
				}:
				case <-ctx.Done(): // what it did is in the journal or on the chain
				}
			})
		}
		waiting = later
		p.publish()
		if p.engine.anew != nil {
			return p.engine.anew
		}
		select {
		case <-ctx.Done():
			return nil
		case b := <-blocks:
			p.engine.block(b)
		case absorb := <-results:
			absorb()
		case f := <-p.calls:
			f()
		case <-tick.C:
		}
	}
}

// tickEvery is how often time itself is looked at.
const tickEvery = time.Second

// watch passes on blocks from a height on; if that is 0, after the latest, for the
// survey sees what is there.
func (p *Provider) watch(ctx context.Context, from int64, blocks chan<- client.Block) {
	for ctx.Err() == nil {
		if from > 0 {
			status, err := p.cfg.Chain.Status(ctx)
			switch {
			case err != nil:
				p.pause(ctx)
				continue
			case status.Height-from > maxCatchUp:
				from = status.Height + 1
			}
		}
		for b, err := range p.cfg.Chain.Watch(ctx, from) {
			if err != nil {
				p.cfg.Log.Warn("events of the chain are missing; all orders are surveyed", "err", err)
				from = 0
				if gap, ok := errors.AsType[*client.GapError](err); ok {
					from = gap.Latest + 1
				}
				break
			}
			from = b.Height + 1
			select {
			case blocks <- b:
			case <-ctx.Done():
				return
			}
		}
		_ = p.Reconcile(ctx) // it fails when ctx ends
		p.pause(ctx)
	}
}

func (p *Provider) pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(watchPause):
	}
}

// maxCatchUp is how many missed blocks are read one by one; the survey that
// comes anyway finds all that still matters.
const maxCatchUp = 5000

// watchPause is the time between two attempts to watch a node that cannot tell.
const watchPause = 5 * time.Second

// call runs f on the engine's goroutine.
func (p *Provider) call(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	select {
	case p.calls <- func() { done <- f() }:
		return <-done // it is running, and does not wait for anybody
	case <-ctx.Done():
		return fmt.Errorf("wait for the provider: %w", ctx.Err())
	}
}

// Account is the box's.
func (p *Provider) Account() account.Address { return p.engine.book.me }

// Certificate is the gateway's, for tls.Config.GetCertificate. It is there from
// the first registration on, also while the chain is out of reach.
func (p *Provider) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := p.registrar.certificate.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("the gateway has no certificate yet")
}

// ManifestReceived notes that a lease has its manifest. It returns when that is
// written down.
func (p *Provider) ManifestReceived(ctx context.Context, id akash.LeaseID) error {
	return p.lease(ctx, id, func(en *entry) error { en.Manifest = true; return nil })
}

// Close asks for a lease's end: the owner's wish, or the workload's after it has
// tried for long. It returns when the wish is written down. Then the chain tells
// the tenant, and the lease runs on for the window of its bid, an hour or more;
// one without a window ends at once. Asking again changes nothing.
func (p *Provider) Close(ctx context.Context, id akash.LeaseID, reason marketv1.LeaseClosedReason, why string) error {
	if reason < marketv1.LeaseClosedReason_lease_closed_reason_unstable || reason >= marketv1.LeaseClosedReason_lease_closed_reason_insufficient_funds {
		return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("close lease %s: %s is no provider's reason", id, reason), Remedy: "choose unstable, decommission, unspecified or manifest_timeout"}
	}
	return p.lease(ctx, id, func(en *entry) error {
		if en.State == Closing {
			return nil
		}
		to, err := en.State.Next(askClose)
		if err != nil {
			return err
		}
		en.State, en.Reason, en.Why = to, reason, why
		return nil
	})
}

// lease changes the entry of a running lease.
func (p *Provider) lease(ctx context.Context, id akash.LeaseID, change func(*entry) error) error {
	return p.call(ctx, func() error {
		if en := p.engine.book.entries[id.OrderID]; en == nil || !en.State.live() || id.Provider != p.engine.book.me {
			return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("lease %s does not run here", id)}
		}
		err := p.engine.book.change(id.OrderID, change)
		p.engine.must(id.OrderID, err)
		return err
	})
}

// Drain lets no new leases in and takes open bids back, until it is called with
// false; also after a restart. Running leases go on.
func (p *Provider) Drain(ctx context.Context, on bool) error {
	return p.call(ctx, func() error {
		if err := p.cfg.Journal.Put(keyWishes, wishes{Drain: on}); err != nil {
			return err
		}
		p.engine.book.wishes.Drain = on
		p.engine.surveySoon()
		return nil
	})
}

// Lend makes bytes of memory all that a lease has borrowed beyond what is leased,
// 0 included, and says whether there is so much that nobody leases or has a bid
// for; if not, what it had stays lent. It is in force at once, and forgotten when
// the process ends.
func (p *Provider) Lend(key lease.Key, bytes int64) bool {
	return p.engine.book.ledger.Lend(string(key), bytes, p.cfg.Capacity())
}

// Reconcile has the chain surveyed now, after a change of capacity or attributes.
func (p *Provider) Reconcile(ctx context.Context) error {
	return p.call(ctx, func() error { p.engine.surveyAt = time.Time{}; return nil })
}
