package tenant_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/chain/tenant/gatewaystub"
	"github.com/croft-cloud/croft/chain/tenant/quote"
)

const words = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"

func key(index uint32) *account.Key {
	m, err := account.ParseMnemonic(words)
	if err != nil {
		panic(err)
	}
	k, err := m.Key(0, index)
	if err != nil {
		panic(err)
	}
	return k
}

var (
	alice    = key(0) // the tenant
	mallory  = key(1) // another tenant
	cheap    = key(2) // a provider
	dear     = key(3) // a provider
	errNoKey = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("account has no public key on the chain")}
)

const file = `
version: "2.0"
services:
  web:
    image: nginx:1.27
    expose:
      - {port: 80, as: 80, accept: ["demo.example.invalid"], to: [{global: true}]}
profiles:
  compute:
    web: {resources: {cpu: {units: 0.5}, memory: {size: 512Mi}, storage: {size: 1Gi}}}
  placement:
    home:
      attributes: {region: eu-west}
      pricing: {web: {denom: uact, amount: 100}}
deployment:
  web: {home: {profile: web, count: 1}}
`

func parse(t testing.TB, text string) *sdl.SDL {
	t.Helper()
	f, err := sdl.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The real client is a chain for all of them.
var (
	_ tenant.Chain      = (*client.Client)(nil)
	_ quote.Blocks      = (*client.Client)(nil)
	_ gatewaystub.Chain = (*client.Client)(nil)
)

// chain is a chain in memory: it takes the messages of tenants as the real one
// does, and lets two providers bid. It is safe for use by several goroutines.
type chain struct {
	mu          sync.Mutex
	height      int64                                                             // guarded by mu
	sequence    uint64                                                            // guarded by mu
	deployments map[akash.DeploymentID]*deploymentv1beta4.QueryDeploymentResponse // guarded by mu
	bids        []*marketv1beta5.QueryBidResponse                                 // guarded by mu
	leases      []*marketv1beta5.QueryLeaseResponse                               // guarded by mu
	providers   map[account.Address]*providerv1beta4.Provider                     // guarded by mu
	certs       map[account.Address][]*certv1.CertificateResponse                 // guarded by mu
	keys        map[account.Address]account.PublicKey                             // guarded by mu
	signed      map[client.Hash]*sent                                             // guarded by mu
	balance     int64                                                             // of alice, uact; guarded by mu
	executed    int                                                               // transactions; guarded by mu

	prices map[account.Address]int64 // of those who bid; nobody else may change it after the start
	dead   bool                      // transactions of which nobody heard are dead, not sent again
	onExec func(proto.Message)       // called after a message was executed; may panic
}

// sent is a transaction that was signed.
type sent struct {
	msgs    []proto.Message
	done    bool
	verdict error
}

func newChain() *chain {
	return &chain{
		height: 1000, deployments: map[akash.DeploymentID]*deploymentv1beta4.QueryDeploymentResponse{},
		providers: map[account.Address]*providerv1beta4.Provider{}, certs: map[account.Address][]*certv1.CertificateResponse{},
		keys: map[account.Address]account.PublicKey{}, signed: map[client.Hash]*sent{}, balance: 100_000_000,
		prices: map[account.Address]int64{cheap.Address(): 40, dear.Address(): 60},
	}
}

func (c *chain) ChainID() string { return "croft-test" }

func (c *chain) Status(context.Context) (client.Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.height++
	return client.Status{ChainID: c.ChainID(), Height: c.height, First: 1, Time: time.Now()}, nil
}

func (c *chain) PublicKey(_ context.Context, a account.Address) (account.PublicKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.keys[a]; k != nil {
		return k, nil
	}
	return nil, errNoKey
}

// Send promises what client.Send does: nothing twice, and OnSigned first.
func (c *chain) Send(ctx context.Context, by account.Signer, tx client.Tx) (client.Result, error) {
	c.mu.Lock()
	c.sequence++
	raw := binary.BigEndian.AppendUint64(nil, c.sequence)
	hash := client.Hash(sha256.Sum256(raw))
	c.signed[hash] = &sent{msgs: tx.Msgs}
	c.mu.Unlock()
	if tx.OnSigned != nil {
		owner, _ := by.PublicKey().Address()
		if err := tx.OnSigned(ctx, client.Signed{Hash: hash, Raw: raw, Account: owner, Sequence: c.sequence}); err != nil {
			return client.Result{}, err
		}
	}
	c.mu.Lock()
	if owner, err := by.PublicKey().Address(); err == nil {
		c.keys[owner] = by.PublicKey()
	}
	c.mu.Unlock()
	return c.execute(hash)
}

func (c *chain) Resume(_ context.Context, s client.Signed) (client.Result, error) {
	c.mu.Lock()
	tx, known := c.signed[s.Hash]
	c.mu.Unlock()
	if !known || c.dead && !tx.done {
		return client.Result{}, client.ErrDead
	}
	return c.execute(s.Hash)
}

// execute runs a transaction once, and tells its verdict each time.
func (c *chain) execute(hash client.Hash) (client.Result, error) {
	c.mu.Lock()
	tx := c.signed[hash]
	if !tx.done {
		tx.done = true
		c.height++
		c.executed++
		for _, m := range tx.msgs {
			if tx.verdict = c.apply(m); tx.verdict != nil {
				break // no message is made undone: tests send no mixed ones
			}
		}
	}
	verdict := tx.verdict
	c.mu.Unlock()
	if c.onExec != nil {
		c.onExec(tx.msgs[0])
	}
	return client.Result{Hash: hash, Height: c.height}, verdict
}

// apply is the rules, under mu.
func (c *chain) apply(m proto.Message) error {
	switch m := m.(type) {
	case *deploymentv1beta4.MsgCreateDeployment:
		id := akash.DeploymentIDOf(m.GetId())
		if c.deployments[id] != nil {
			return akash.ErrDeploymentExists
		}
		amount, _ := new(big.Int).SetString(m.GetDeposit().GetAmount().GetAmount(), 10)
		if c.balance < amount.Int64() {
			return akash.ErrInsufficientFunds
		}
		c.balance -= amount.Int64()
		d := &deploymentv1beta4.QueryDeploymentResponse{
			Deployment: &deploymentv1.Deployment{Id: m.GetId(), State: deploymentv1.Deployment_active, Hash: m.GetHash(), CreatedAt: c.height},
			EscrowAccount: &escrowtypesv1.Account{State: &escrowtypesv1.AccountState{
				State: escrowtypesv1.State_open, SettledAt: c.height,
				Funds: []*escrowtypesv1.Balance{{Denom: m.GetDeposit().GetAmount().GetDenom(), Amount: amount.String() + "000000000000000000"}},
			}},
		}
		for i, g := range m.GetGroups() {
			gid := &deploymentv1.GroupID{Owner: m.GetId().GetOwner(), Dseq: m.GetId().GetDseq(), Gseq: uint32(i) + 1}
			d.Groups = append(d.Groups, &deploymentv1beta4.Group{Id: gid, State: deploymentv1beta4.Group_open, GroupSpec: g})
			c.order(gid, 1)
		}
		c.deployments[id] = d
	case *marketv1beta5.MsgCreateLease:
		for _, b := range c.bids {
			if akash.BidIDOf(b.GetBid().GetId()) == akash.BidIDOf(m.GetBidId()) {
				if b.GetBid().GetState() != marketv1beta5.Bid_open {
					return akash.ErrBidNotOpen
				}
				for _, loser := range c.bids {
					if akash.OrderIDOf(loser.GetBid().GetId()) == akash.OrderIDOf(m.GetBidId()) {
						loser.Bid.State = marketv1beta5.Bid_lost
					}
				}
				b.Bid.State = marketv1beta5.Bid_active
				c.leases = append(c.leases, &marketv1beta5.QueryLeaseResponse{Lease: &marketv1.Lease{
					Id: akash.BidIDOf(m.GetBidId()).Lease().Wire(), State: marketv1.Lease_active, Price: b.GetBid().GetPrice(), CreatedAt: c.height,
				}})
				return nil
			}
		}
		return akash.ErrBidNotFound
	case *deploymentv1beta4.MsgUpdateDeployment:
		d := c.deployments[akash.DeploymentIDOf(m.GetId())]
		if d == nil {
			return akash.ErrDeploymentNotFound
		}
		if slices.Equal(d.Deployment.Hash, m.GetHash()) {
			return &akash.TxError{Codespace: "deployment", Code: 10}
		}
		d.Deployment.Hash = m.GetHash()
	case *deploymentv1beta4.MsgStartGroup:
		for _, g := range c.deployments[akash.DeploymentIDOf(m.GetId())].Groups {
			if g.GetId().GetGseq() == m.GetId().GetGseq() {
				g.State = deploymentv1beta4.Group_open
				c.order(g.GetId(), 2)
			}
		}
	case *deploymentv1beta4.MsgCloseDeployment:
		d := c.deployments[akash.DeploymentIDOf(m.GetId())]
		if d == nil {
			return akash.ErrDeploymentNotFound
		}
		if d.Deployment.State != deploymentv1.Deployment_active {
			return akash.ErrDeploymentClosed
		}
		d.Deployment.State = deploymentv1.Deployment_closed
		c.balance += 5_000_000
		for _, l := range c.leases {
			if akash.DeploymentIDOf(l.GetLease().GetId()) == akash.DeploymentIDOf(m.GetId()) {
				l.Lease.State = marketv1.Lease_closed
			}
		}
	case *certv1.MsgCreateCertificate:
		c.publish(account.Address(m.GetOwner()), m.GetCert(), m.GetPubkey())
	default:
		return fmt.Errorf("chain in memory does not know %T", m)
	}
	return nil
}

// order lets the providers bid on a new order.
func (c *chain) order(g *deploymentv1.GroupID, oseq uint32) {
	for p, price := range c.prices {
		id := akash.LeaseID{OrderID: akash.OrderID{GroupID: akash.GroupIDOf(g), OSeq: oseq}, Provider: p}
		c.bids = append(c.bids, &marketv1beta5.QueryBidResponse{Bid: &marketv1beta5.Bid{
			Id: id.Bid().Wire(), State: marketv1beta5.Bid_open, CreatedAt: c.height,
			Price: akash.Price{Denom: "uact", Amount: akash.NewDec(price)}.Wire(),
		}})
	}
}

// loseLease closes the lease with a provider, as that provider does.
func (c *chain) loseLease(p account.Address) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.leases {
		if l.GetLease().GetId().GetProvider() == string(p) {
			l.Lease.State, l.Lease.Reason = marketv1.Lease_closed, marketv1.LeaseClosedReason_lease_closed_reason_unstable
			for _, g := range c.deployments[akash.DeploymentIDOf(l.GetLease().GetId())].Groups {
				g.State = deploymentv1beta4.Group_paused
			}
		}
	}
}

func (c *chain) publish(owner account.Address, cert, public []byte) {
	serial := fmt.Sprint(len(c.certs[owner]) + 1)
	if parsed, err := parseSerial(cert, public); err == nil {
		serial = parsed
	}
	c.certs[owner] = append(c.certs[owner], &certv1.CertificateResponse{
		Serial: serial, Certificate: &certv1.Certificate{State: certv1.State_valid, Cert: cert, Pubkey: public},
	})
}

// register puts a provider and its certificate on the chain.
func (c *chain) register(p account.Address, s *gatewaystub.Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.providers[p] = &providerv1beta4.Provider{Owner: string(p), HostUri: s.URI()}
	c.publish(p, s.Pair().CertPEM, s.Pair().PublicPEM)
}

func (c *chain) Provider(_ context.Context, p account.Address) (*providerv1beta4.Provider, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.providers[p]; found != nil {
		return found, nil
	}
	return nil, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no such provider")}
}

func (c *chain) Certificates(_ context.Context, f *certv1.CertificateFilter) iter.Seq2[*certv1.CertificateResponse, error] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return items(c.certs[account.Address(f.GetOwner())], func(r *certv1.CertificateResponse) bool {
		return (f.GetSerial() == "" || f.GetSerial() == r.GetSerial()) &&
			(f.GetState() == "" || f.GetState() == r.GetCertificate().GetState().String())
	})
}

func (c *chain) Deployment(_ context.Context, id akash.DeploymentID) (*deploymentv1beta4.QueryDeploymentResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.deployments[id]; d != nil {
		return proto.CloneOf(d), nil
	}
	return nil, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no such deployment")}
}

func (c *chain) Deployments(_ context.Context, f *deploymentv1beta4.DeploymentFilters) iter.Seq2[*deploymentv1beta4.QueryDeploymentResponse, error] {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*deploymentv1beta4.QueryDeploymentResponse
	for _, d := range c.deployments {
		all = append(all, d)
	}
	return items(all, func(d *deploymentv1beta4.QueryDeploymentResponse) bool {
		return d.GetDeployment().GetId().GetOwner() == f.GetOwner() &&
			(f.GetState() == "" || f.GetState() == d.GetDeployment().GetState().String())
	})
}

func (c *chain) Bids(_ context.Context, f *marketv1beta5.BidFilters) iter.Seq2[*marketv1beta5.QueryBidResponse, error] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return items(c.bids, func(b *marketv1beta5.QueryBidResponse) bool {
		id := b.GetBid().GetId()
		return id.GetOwner() == f.GetOwner() && id.GetDseq() == f.GetDseq() && b.GetBid().GetState().String() == f.GetState()
	})
}

func (c *chain) Leases(_ context.Context, f *marketv1.LeaseFilters) iter.Seq2[*marketv1beta5.QueryLeaseResponse, error] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return items(c.leases, func(l *marketv1beta5.QueryLeaseResponse) bool {
		id := l.GetLease().GetId()
		return id.GetOwner() == f.GetOwner() && id.GetDseq() == f.GetDseq() &&
			(f.GetGseq() == 0 || f.GetGseq() == id.GetGseq()) && (f.GetOseq() == 0 || f.GetOseq() == id.GetOseq()) &&
			(f.GetProvider() == "" || f.GetProvider() == id.GetProvider()) &&
			(f.GetState() == "" || f.GetState() == l.GetLease().GetState().String())
	})
}

// items yields copies of what matches.
func items[M proto.Message](all []M, match func(M) bool) iter.Seq2[M, error] {
	var found []M
	for _, m := range all {
		if match(m) {
			found = append(found, proto.CloneOf(m))
		}
	}
	return func(yield func(M, error) bool) {
		for _, m := range found {
			if !yield(m, nil) {
				return
			}
		}
	}
}

// world is a chain, two providers and a place to remember.
type world struct {
	chain *chain
	stubs map[account.Address]*gatewaystub.Server
	dir   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{chain: newChain(), stubs: map[account.Address]*gatewaystub.Server{}, dir: t.TempDir()}
	for _, p := range []*account.Key{cheap, dear} {
		s, err := gatewaystub.Start(gatewaystub.Config{Provider: p.Address(), Chain: w.chain})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		w.stubs[p.Address()] = s
		w.chain.register(p.Address(), s)
	}
	return w
}

// tenant is alice, as a new process would have her.
func (w *world) tenant(t *testing.T, onSave func(*tenant.Record)) *tenant.Tenant {
	t.Helper()
	store, err := tenant.OpenStore(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	store.OnSave(onSave)
	a, err := tenant.New(tenant.Config{Chain: w.chain, Signer: alice, Store: store, Poll: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// quick makes decisions at once.
func quick() tenant.DeployConfig {
	return tenant.DeployConfig{
		Choose:     tenant.Cheapest(tenant.Want{Patience: time.Nanosecond}),
		BidTimeout: 5 * time.Second, ManifestTimeout: 5 * time.Second, AnswerTimeout: 5 * time.Second,
	}
}

// deployed is a deployment that answers.
func (w *world) deployed(t *testing.T) (*tenant.Tenant, *tenant.Record) {
	t.Helper()
	a := w.tenant(t, nil)
	plan, err := a.Plan(t.Context(), parse(t, file), tenant.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := a.Deploy(t.Context(), plan.ID(), quick())
	if err != nil {
		t.Fatal(err)
	}
	return a, r
}
