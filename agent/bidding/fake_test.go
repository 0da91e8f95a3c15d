package bidding

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/credential"
)

const testWords = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"

func testKey(index uint32) *account.Key {
	m, err := account.ParseMnemonic(testWords)
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
	boxKey = testKey(0)
	box    = boxKey.Address()
	tenant = testKey(1).Address()
	rival  = testKey(2).Address()
)

var errDown = errors.New("the node cannot be reached")

// crash is what a fault panics with: the power is cut.
type crash struct{}

// fakeChain is an honest chain in memory: it keeps the market's rules and the
// promises of client.Client, and has faults.
type fakeChain struct {
	mu        sync.Mutex
	rng       *rand.Rand
	height    int64
	now       time.Time
	dseq      uint64
	orders    map[akash.OrderID]*marketv1beta5.Order
	bids      map[akash.BidID]*marketv1beta5.Bid
	leases    map[akash.LeaseID]*marketv1beta5.QueryLeaseResponse
	provider  *providerv1beta4.Provider
	certs     []*certv1.CertificateResponse
	audits    []*auditv1.AuditedProvider
	balance   int64
	txs       map[client.Hash]*fakeTx
	mempool   []client.Hash
	sequence  uint64
	blocks    []client.Block
	events    []akash.Event // of the next block
	bidCount  map[akash.OrderID]int
	closed    map[akash.LeaseID]marketv1.LeaseClosedReason // by the box
	executed  map[string]int
	hashOf    []byte // manifests' hash
	down      bool
	mute      bool // it tells nothing about single bids
	surveys   int  // of open orders
	faulty    bool
	crashy    bool
	rare      int                    // a crash is one in so many points
	written   func(client.Hash) bool // the journal has the transaction
	violation string
	first     int64
}

type fakeTx struct {
	signed client.Signed
	msgs   []proto.Message
	done   bool
	err    error
}

func newFakeChain(rng *rand.Rand) *fakeChain {
	return &fakeChain{
		blocks: []client.Block{{Height: 100, Time: time.Now().UTC()}}, first: 100,
		rng: rng, height: 100, now: time.Now().UTC(), orders: map[akash.OrderID]*marketv1beta5.Order{}, bids: map[akash.BidID]*marketv1beta5.Bid{},
		leases: map[akash.LeaseID]*marketv1beta5.QueryLeaseResponse{}, txs: map[client.Hash]*fakeTx{}, balance: 100_000_000,
		bidCount: map[akash.OrderID]int{}, closed: map[akash.LeaseID]marketv1.LeaseClosedReason{}, executed: map[string]int{}, hashOf: make([]byte, 32),
	}
}

// chance is true once in n, while there are faults.
func (c *fakeChain) chance(n int) bool { return c.faulty && c.rng.IntN(n) == 0 }

// wipe begins the chain anew, as its owner does who loses its data.
func (c *fakeChain) wipe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.height, c.first, c.blocks, c.events = 0, 1, nil, nil
	c.provider, c.certs, c.balance = nil, nil, 100_000_000
	clear(c.orders)
	clear(c.bids)
	clear(c.leases)
	clear(c.txs)
	c.mempool = nil
	c.makeBlock()
}

// point is a place where the power may be cut.
func (c *fakeChain) point() {
	if c.crashy && c.rng.IntN(c.rare) == 0 {
		panic(crash{})
	}
}

func notFound() error {
	return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no such thing")}
}

// ask locks the chain for a query, or tells that the node is down.
func (c *fakeChain) ask() (func(), error) {
	c.mu.Lock()
	c.point0()
	if c.down || c.chance(30) {
		c.mu.Unlock()
		return nil, errDown
	}
	return c.mu.Unlock, nil
}

func (c *fakeChain) point0() {
	if c.crashy && c.rng.IntN(c.rare) == 0 {
		c.mu.Unlock()
		panic(crash{})
	}
}

func (c *fakeChain) ChainID() string { return "croft-test" }

func (c *fakeChain) Status(context.Context) (client.Status, error) {
	done, err := c.ask()
	if err != nil {
		return client.Status{}, err
	}
	defer done()
	return client.Status{ChainID: "croft-test", Height: c.height, Time: c.now, First: c.first}, nil
}

func (c *fakeChain) Order(_ context.Context, id akash.OrderID) (*marketv1beta5.Order, error) {
	done, err := c.ask()
	if err != nil {
		return nil, err
	}
	defer done()
	if o := c.orders[id]; o != nil {
		return proto.CloneOf(o), nil
	}
	return nil, notFound()
}

func list[T any](c *fakeChain, all func() []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		done, err := c.ask()
		if err != nil {
			var none T
			yield(none, err)
			return
		}
		items := all()
		done()
		for _, i := range items {
			if !yield(i, nil) {
				return
			}
		}
	}
}

func (c *fakeChain) Orders(_ context.Context, f *marketv1beta5.OrderFilters) iter.Seq2[*marketv1beta5.Order, error] {
	return list(c, func() []*marketv1beta5.Order {
		c.surveys++
		var out []*marketv1beta5.Order
		for _, o := range c.orders {
			if o.GetState().String() == f.GetState() {
				out = append(out, proto.CloneOf(o))
			}
		}
		slices.SortFunc(out, func(a, b *marketv1beta5.Order) int { return cmp.Compare(a.GetId().GetDseq(), b.GetId().GetDseq()) })
		return out
	})
}

func (c *fakeChain) Bid(_ context.Context, id akash.BidID) (*marketv1beta5.QueryBidResponse, error) {
	done, err := c.ask()
	if err != nil {
		return nil, err
	}
	defer done()
	if c.mute {
		return nil, errDown
	}
	if b := c.bids[id]; b != nil {
		return &marketv1beta5.QueryBidResponse{Bid: proto.CloneOf(b)}, nil
	}
	return nil, notFound()
}

func (c *fakeChain) Bids(_ context.Context, f *marketv1beta5.BidFilters) iter.Seq2[*marketv1beta5.QueryBidResponse, error] {
	return list(c, func() []*marketv1beta5.QueryBidResponse {
		var out []*marketv1beta5.QueryBidResponse
		for id, b := range c.bids {
			if string(id.Provider) == f.GetProvider() && b.GetState().String() == f.GetState() {
				out = append(out, &marketv1beta5.QueryBidResponse{Bid: proto.CloneOf(b)})
			}
		}
		return out
	})
}

func (c *fakeChain) Lease(_ context.Context, id akash.LeaseID) (*marketv1beta5.QueryLeaseResponse, error) {
	done, err := c.ask()
	if err != nil {
		return nil, err
	}
	defer done()
	if l := c.leases[id]; l != nil {
		return proto.CloneOf(l), nil
	}
	return nil, notFound()
}

func (c *fakeChain) Leases(_ context.Context, f *marketv1.LeaseFilters) iter.Seq2[*marketv1beta5.QueryLeaseResponse, error] {
	return list(c, func() []*marketv1beta5.QueryLeaseResponse {
		var out []*marketv1beta5.QueryLeaseResponse
		for id, l := range c.leases {
			if string(id.Provider) == f.GetProvider() && l.GetLease().GetState().String() == f.GetState() {
				out = append(out, proto.CloneOf(l))
			}
		}
		return out
	})
}

func (c *fakeChain) Deployment(_ context.Context, id akash.DeploymentID) (*deploymentv1beta4.QueryDeploymentResponse, error) {
	done, err := c.ask()
	if err != nil {
		return nil, err
	}
	defer done()
	return &deploymentv1beta4.QueryDeploymentResponse{
		Deployment:    &deploymentv1.Deployment{Id: id.Wire(), Hash: c.hashOf},
		EscrowAccount: &escrowtypesv1.Account{State: &escrowtypesv1.AccountState{SettledAt: c.height, Funds: []*escrowtypesv1.Balance{{Denom: "uact", Amount: akash.NewDec(1e15).Wire()}}}},
	}, nil
}

func (c *fakeChain) Provider(context.Context, account.Address) (*providerv1beta4.Provider, error) {
	done, err := c.ask()
	if err != nil {
		return nil, err
	}
	defer done()
	if c.provider == nil {
		return nil, notFound()
	}
	return proto.CloneOf(c.provider), nil
}

func (c *fakeChain) AuditedAttributes(context.Context, account.Address, account.Address) iter.Seq2[*auditv1.AuditedProvider, error] {
	return list(c, func() []*auditv1.AuditedProvider { return c.audits })
}

func (c *fakeChain) Certificates(context.Context, *certv1.CertificateFilter) iter.Seq2[*certv1.CertificateResponse, error] {
	return list(c, func() []*certv1.CertificateResponse {
		var out []*certv1.CertificateResponse
		for _, x := range c.certs {
			out = append(out, proto.CloneOf(x))
		}
		return out
	})
}

func (c *fakeChain) Balance(_ context.Context, _ account.Address, denom string) (*basev1beta1.Coin, error) {
	done, err := c.ask()
	if err != nil {
		return nil, err
	}
	defer done()
	if denom != feeDenom {
		return &basev1beta1.Coin{Denom: denom, Amount: "0"}, nil
	}
	return &basev1beta1.Coin{Denom: denom, Amount: fmt.Sprint(c.balance)}, nil
}

func (c *fakeChain) MarketParams(context.Context) (*marketv1beta5.Params, error) {
	done, err := c.ask()
	if err != nil {
		return nil, err
	}
	defer done()
	return fakeParams(), nil
}

func fakeParams() *marketv1beta5.Params {
	return &marketv1beta5.Params{
		BidMinDeposits:       []*basev1beta1.Coin{{Denom: feeDenom, Amount: "500000"}},
		MinReclamationWindow: durationpb.New(time.Hour), MaxReclamationWindow: durationpb.New(720 * time.Hour),
	}
}

// Watch yields blocks as they are made; a height that was pruned is a gap.
func (c *fakeChain) Watch(ctx context.Context, from int64) iter.Seq2[client.Block, error] {
	return func(yield func(client.Block, error) bool) {
		c.mu.Lock()
		if from <= 0 {
			from = c.height + 1
		}
		c.mu.Unlock()
		for ctx.Err() == nil {
			c.mu.Lock()
			var next *client.Block
			if !c.down {
				for i := range c.blocks {
					if c.blocks[i].Height == from {
						next = &c.blocks[i]
					}
				}
			}
			gap := !c.down && from < c.first
			first, latest := c.first, c.height
			c.mu.Unlock()
			switch {
			case gap:
				yield(client.Block{}, &client.GapError{Wanted: from, First: first, Latest: latest})
				return
			case next != nil:
				from++
				if !yield(*next, nil) {
					return
				}
			default:
				select {
				case <-ctx.Done():
				case <-time.After(500 * time.Millisecond):
				}
			}
		}
	}
}

// Send keeps client.Send's promises, with Once.
func (c *fakeChain) Send(ctx context.Context, _ account.Signer, tx client.Tx) (client.Result, error) {
	c.mu.Lock()
	c.point0()
	if c.down || c.chance(20) {
		c.mu.Unlock()
		return client.Result{}, errDown
	}
	if c.rng.IntN(3) > 0 { // the estimate of gas tells a mistake before anything is signed
		if err := c.try(tx.Msgs); err != nil {
			c.mu.Unlock()
			return client.Result{}, err
		}
	}
	c.sequence++
	raw := binary.BigEndian.AppendUint64(nil, c.sequence)
	t := &fakeTx{msgs: tx.Msgs, signed: client.Signed{Hash: client.Hash(sha256.Sum256(raw)), Raw: raw, Account: box, Sequence: c.sequence, Height: c.height, TimeoutHeight: c.height + 5}}
	c.txs[t.signed.Hash] = t
	c.mu.Unlock()
	if tx.OnSigned != nil {
		if err := tx.OnSigned(ctx, t.signed); err != nil {
			return client.Result{}, fmt.Errorf("keep signed transaction: %w", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.point()
	if c.written != nil && !c.written(t.signed.Hash) {
		c.violation = "a transaction left that was not written down"
	}
	switch {
	case c.chance(6): // it never arrives
		return client.Result{}, &client.UnconfirmedError{Signed: t.signed, Err: errDown}
	case c.chance(6): // it waits for a later block
		c.mempool = append(c.mempool, t.signed.Hash)
		return client.Result{}, &client.UnconfirmedError{Signed: t.signed, Err: errDown}
	}
	c.execute(t)
	c.makeBlock()
	c.point()
	if c.chance(6) { // the answer is lost
		return client.Result{}, &client.UnconfirmedError{Signed: t.signed, Err: errDown}
	}
	return client.Result{Hash: t.signed.Hash, Height: c.height}, t.err
}

func (c *fakeChain) Resume(_ context.Context, s client.Signed) (client.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.point()
	t := c.txs[s.Hash]
	switch {
	case c.down || c.chance(8):
		return client.Result{}, &client.UnconfirmedError{Signed: s, Err: errDown}
	case t == nil:
		return client.Result{}, client.ErrDead
	case !t.done && c.height >= s.TimeoutHeight:
		return client.Result{}, client.ErrDead
	case !t.done:
		c.execute(t) // the same bytes are sent again
		c.makeBlock()
	}
	c.point()
	return client.Result{Hash: s.Hash, Height: c.height}, t.err
}

func (c *fakeChain) execute(t *fakeTx) {
	if t.done {
		return
	}
	t.done = true
	for _, m := range t.msgs {
		if t.err = c.apply(m, true); t.err != nil {
			return
		}
		c.executed[fmt.Sprintf("%T", m)]++
	}
}

func (c *fakeChain) try(msgs []proto.Message) error { return c.apply(msgs[0], false) }

func (c *fakeChain) emit(v any) {
	c.events = append(c.events, akash.Event{Type: fmt.Sprintf("%T", v), Value: v})
}

func txError(space string, code uint32) error {
	return &akash.TxError{Codespace: space, Code: code, Log: "no"}
}

// apply is the rules; with do it changes the state.
func (c *fakeChain) apply(m proto.Message, do bool) error {
	switch m := m.(type) {
	case *marketv1beta5.MsgCreateBid:
		id := akash.BidIDOf(m.GetId())
		o := c.orders[id.OrderID]
		deposit, _ := strconv.ParseInt(m.GetDeposit().GetAmount().GetAmount(), 10, 64)
		switch {
		case o == nil:
			return akash.ErrOrderNotFound
		case o.GetState() != marketv1beta5.Order_open:
			return akash.ErrOrderNotOpen
		case c.provider == nil:
			return akash.ErrUnknownProvider
		case c.bids[id] != nil:
			return akash.ErrBidExists
		case c.balance < deposit:
			return akash.ErrInsufficientFunds
		}
		if do {
			c.balance -= deposit
			c.bidCount[id.OrderID]++
			c.bids[id] = &marketv1beta5.Bid{Id: m.GetId(), State: marketv1beta5.Bid_open, Price: m.GetPrice(), CreatedAt: c.height, ReclamationWindow: m.GetReclamationWindow()}
			price, _ := akash.PriceOf(m.GetPrice())
			c.emit(akash.EventBidCreated{ID: id, Price: price})
		}
	case *marketv1beta5.MsgCloseBid:
		id := akash.BidIDOf(m.GetId())
		b, l := c.bids[id], c.leases[id.Lease()]
		switch {
		case b == nil:
			return akash.ErrBidNotFound
		case b.GetState() == marketv1beta5.Bid_open:
			if do {
				c.closeBid(id)
			}
			return nil
		case b.GetState() != marketv1beta5.Bid_active:
			return txError("market", 11)
		case l.GetLease().GetReclamation() != nil && l.GetLease().GetState() != marketv1.Lease_reclaiming:
			return txError("market", 37)
		case l.GetLease().GetReclamation() != nil && c.now.Unix() < l.GetLease().GetReclamation().GetDeadline():
			return txError("market", 38)
		}
		if do {
			c.closed[id.Lease()] = m.GetReason()
			c.closeLease(id.Lease(), marketv1.Lease_closed, m.GetReason())
		}
	case *marketv1beta5.MsgLeaseStartReclaim:
		l := c.leases[akash.LeaseIDOf(m.GetId())].GetLease()
		switch {
		case l == nil:
			return akash.ErrLeaseNotFound
		case l.GetState() == marketv1.Lease_reclaiming:
			return txError("market", 36)
		case l.GetState() != marketv1.Lease_active:
			return akash.ErrLeaseNotActive
		}
		if do {
			c.closed[akash.LeaseIDOf(m.GetId())] = m.GetReason()
			l.State = marketv1.Lease_reclaiming
			l.Reclamation.Deadline = c.now.Add(l.GetReclamation().GetWindow().AsDuration()).Unix()
			c.emit(akash.EventLeaseReclaimStarted{ID: akash.LeaseIDOf(m.GetId())})
		}
	case *marketv1beta5.MsgWithdrawLease:
		l := c.leases[akash.LeaseIDOf(m.GetId())]
		if !runs(l) {
			return akash.ErrLeaseNotActive
		}
		if do {
			c.pay(l)
		}
	case *providerv1beta4.MsgCreateProvider:
		if c.provider != nil {
			return akash.ErrProviderExists
		}
		if do {
			c.provider = &providerv1beta4.Provider{Owner: m.GetOwner(), HostUri: m.GetHostUri(), Attributes: m.GetAttributes(), Info: m.GetInfo()}
		}
	case *providerv1beta4.MsgUpdateProvider:
		if c.provider == nil {
			return akash.ErrProviderNotFound
		}
		if do {
			c.provider = &providerv1beta4.Provider{Owner: m.GetOwner(), HostUri: m.GetHostUri(), Attributes: m.GetAttributes(), Info: m.GetInfo()}
		}
	case *certv1.MsgCreateCertificate:
		parsed, err := credential.ParseCertificate(m.GetCert(), m.GetPubkey())
		if err != nil {
			return txError("cert", 6)
		}
		for _, x := range c.certs {
			if x.GetSerial() == parsed.Serial {
				return akash.ErrCertificateExists
			}
		}
		if do {
			c.certs = append(c.certs, &certv1.CertificateResponse{Serial: parsed.Serial, Certificate: &certv1.Certificate{State: certv1.State_valid, Cert: m.GetCert(), Pubkey: m.GetPubkey()}})
		}
	case *certv1.MsgRevokeCertificate:
		for _, x := range c.certs {
			if x.GetSerial() == m.GetId().GetSerial() {
				if do {
					x.Certificate.State = certv1.State_revoked
				}
				return nil
			}
		}
		return txError("cert", 1)
	default:
		return fmt.Errorf("chain in memory does not know %T", m)
	}
	return nil
}

func (c *fakeChain) pay(l *marketv1beta5.QueryLeaseResponse) {
	had, _ := strconv.ParseInt(l.EscrowPayment.State.Withdrawn.Amount, 10, 64)
	l.EscrowPayment.State.Withdrawn.Amount = fmt.Sprint(had + 10)
}

func (c *fakeChain) closeBid(id akash.BidID) {
	c.bids[id].State = marketv1beta5.Bid_closed
	c.balance += 500_000
	c.emit(akash.EventBidClosed{ID: id})
}

func (c *fakeChain) closeLease(id akash.LeaseID, state marketv1.Lease_State, reason marketv1.LeaseClosedReason) {
	l := c.leases[id]
	c.pay(l)
	l.Lease.State, l.Lease.Reason, l.Lease.ClosedOn = state, reason, c.height
	c.emit(akash.EventLeaseClosed{ID: id, Reason: reason})
	c.closeBid(id.Bid())
	c.orders[id.OrderID].State = marketv1beta5.Order_closed
	c.emit(akash.EventOrderClosed{ID: id.OrderID})
}

func (c *fakeChain) makeBlock() {
	pool := c.mempool
	c.mempool = nil
	for _, h := range pool {
		if t := c.txs[h]; c.height < t.signed.TimeoutHeight {
			c.execute(t)
		}
	}
	c.height++
	c.now = c.now.Add(time.Second)
	c.blocks = append(c.blocks, client.Block{Height: c.height, Time: c.now, Events: c.events})
	c.events = nil
	if len(c.blocks) > 200 {
		c.blocks = slices.Delete(c.blocks, 0, 100)
		c.first = c.blocks[0].Height
	}
}

// What tenants do.

// order opens an order for so many thousandths of a core and MiB.
func (c *fakeChain) order(cpu, mib int64, price int64) akash.OrderID {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dseq++
	id := akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: tenant, DSeq: c.dseq}, GSeq: 1}, OSeq: 1}
	c.orders[id] = &marketv1beta5.Order{Id: id.Wire(), State: marketv1beta5.Order_open, CreatedAt: c.height, Spec: fakeSpec(cpu, mib, price)}
	c.emit(akash.EventOrderCreated{ID: id})
	return id
}

func value(n int64) *resourcesv1beta4.ResourceValue {
	return &resourcesv1beta4.ResourceValue{Val: []byte(fmt.Sprint(n))}
}

func fakeSpec(cpu, mib, price int64) *deploymentv1beta4.GroupSpec {
	return &deploymentv1beta4.GroupSpec{Name: "home", Requirements: &attributesv1.PlacementRequirements{}, Resources: []*deploymentv1beta4.ResourceUnit{{
		Count: 1, Price: akash.Price{Denom: "uact", Amount: akash.NewDec(price)}.Wire(),
		Resource: &resourcesv1beta4.Resources{
			Id: 1, Cpu: &resourcesv1beta4.CPU{Units: value(cpu)}, Memory: &resourcesv1beta4.Memory{Quantity: value(mib << 20)},
			Storage:   []*resourcesv1beta4.Storage{{Name: "default", Quantity: value(1 << 30)}},
			Endpoints: []*resourcesv1beta4.Endpoint{{Kind: resourcesv1beta4.Endpoint_SHARED_HTTP}},
		},
	}}}
}

// accept makes a lease of the box's open bid; the answer is false if it has none.
func (c *fakeChain) accept(id akash.OrderID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	bid := akash.BidID{OrderID: id, Provider: box}
	b, o := c.bids[bid], c.orders[id]
	if b.GetState() != marketv1beta5.Bid_open || o.GetState() != marketv1beta5.Order_open {
		return false
	}
	b.State, o.State = marketv1beta5.Bid_active, marketv1beta5.Order_active
	l := &marketv1.Lease{Id: bid.Lease().Wire(), State: marketv1.Lease_active, Price: b.GetPrice(), CreatedAt: c.height}
	if w := b.GetReclamationWindow(); w != nil {
		l.Reclamation = &marketv1.Reclamation{Window: w}
	}
	c.leases[bid.Lease()] = &marketv1beta5.QueryLeaseResponse{Lease: l, EscrowPayment: &escrowtypesv1.Payment{State: &escrowtypesv1.PaymentState{Withdrawn: &basev1beta1.Coin{Denom: "uact", Amount: "0"}}}}
	price, _ := akash.PriceOf(b.GetPrice())
	c.emit(akash.EventLeaseCreated{ID: bid.Lease(), Price: price})
	return true
}

// rivalWins gives an open order to another provider.
func (c *fakeChain) rivalWins(id akash.OrderID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.orders[id]
	if o.GetState() != marketv1beta5.Order_open {
		return
	}
	o.State = marketv1beta5.Order_active
	if b := c.bids[akash.BidID{OrderID: id, Provider: box}]; b.GetState() == marketv1beta5.Bid_open {
		b.State = marketv1beta5.Bid_lost
		c.balance += 500_000
	}
	c.emit(akash.EventLeaseCreated{ID: akash.LeaseID{OrderID: id, Provider: rival}})
}

// end closes an order with whatever has become of it.
func (c *fakeChain) end(id akash.OrderID, state marketv1.Lease_State, reason marketv1.LeaseClosedReason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lease := akash.LeaseID{OrderID: id, Provider: box}
	switch {
	case runs(c.leases[lease]):
		c.closeLease(lease, state, reason)
		return
	case c.bids[lease.Bid()].GetState() == marketv1beta5.Bid_open:
		c.closeBid(lease.Bid())
	}
	if c.orders[id].State != marketv1beta5.Order_closed {
		c.orders[id].State = marketv1beta5.Order_closed
		c.emit(akash.EventOrderClosed{ID: id})
	}
}

// block makes n blocks.
func (c *fakeChain) block(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range n {
		c.makeBlock()
	}
}

// pass lets chain time pass.
func (c *fakeChain) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.makeBlock()
}

// fakeWorkload runs what it is told.
type fakeWorkload struct {
	mu      sync.Mutex
	running map[akash.LeaseID]bool
	ended   map[akash.LeaseID]bool
	fail    func() bool
}

func newWorkload() *fakeWorkload {
	return &fakeWorkload{running: map[akash.LeaseID]bool{}, ended: map[akash.LeaseID]bool{}, fail: func() bool { return false }}
}

func (w *fakeWorkload) LeaseWon(_ context.Context, l Lease) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail() {
		return errors.New("disk is busy")
	}
	w.running[l.ID] = true
	return nil
}

func (w *fakeWorkload) LeaseClosed(_ context.Context, id akash.LeaseID, _ marketv1.LeaseClosedReason) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail() {
		return errors.New("disk is busy")
	}
	delete(w.running, id)
	w.ended[id] = true
	return nil
}

// fakeSecrets keeps secrets in memory.
type fakeSecrets struct {
	mu     sync.Mutex
	m      map[string][]byte
	writes int
}

func (s *fakeSecrets) Read(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.m[name]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

func (s *fakeSecrets) Write(name string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string][]byte{}
	}
	s.m[name] = slices.Clone(data)
	s.writes++
	return nil
}

// faultyJournal is a journal whose writes fail, or end with the power.
type faultyJournal struct {
	*journal.Journal
	chain *fakeChain
}

var errJournal = errors.New("disk is full")

func (j *faultyJournal) around(write func() error) error {
	j.chain.point()
	if j.chain.chance(60) {
		return errJournal
	}
	err := write()
	j.chain.point()
	return err
}

func (j *faultyJournal) Put(key string, v any) error {
	return j.around(func() error { return j.Journal.Put(key, v) })
}

func (j *faultyJournal) Delete(key string) error {
	return j.around(func() error { return j.Journal.Delete(key) })
}

var _ Chain = (*client.Client)(nil) // the real client is a chain

func registration() *providerv1beta4.MsgCreateProvider {
	return &providerv1beta4.MsgCreateProvider{Owner: string(box), HostUri: "https://box.example.invalid:8443"}
}
