package hosting

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/credential"
)

// ledger is the model's chain: the market's rules, honestly kept. It is guarded
// by model.mu.
type ledger struct {
	height    int64
	sequence  uint64
	orders    map[akash.OrderID]*marketv1beta5.Order
	bids      map[akash.BidID]*marketv1beta5.Bid
	leases    map[akash.LeaseID]*marketv1beta5.QueryLeaseResponse
	made      map[akash.LeaseID]time.Time // when the lease began
	over      map[akash.LeaseID]time.Time // and ended
	deployed  map[akash.DeploymentID]*deployment
	provider  *providerv1beta4.Provider
	certs     []*certv1.CertificateResponse
	balance   int64
	txs       map[client.Hash]*transaction
	pool      []client.Hash // sent, and in no block yet
	blocks    []client.Block
	events    []akash.Event // of the next block
	moved     chan struct{} // closed at the next block
	bidCount  map[akash.OrderID]int
	executed  map[string]int
	recovered bool // the node came back
}

type transaction struct {
	signed client.Signed
	msgs   []proto.Message
	done   bool
	err    error
}

func newLedger() ledger {
	return ledger{
		height: 1, orders: map[akash.OrderID]*marketv1beta5.Order{}, bids: map[akash.BidID]*marketv1beta5.Bid{},
		leases: map[akash.LeaseID]*marketv1beta5.QueryLeaseResponse{}, made: map[akash.LeaseID]time.Time{}, over: map[akash.LeaseID]time.Time{},
		deployed: map[akash.DeploymentID]*deployment{}, balance: 1_000_000_000, txs: map[client.Hash]*transaction{},
		blocks: []client.Block{{Height: 1, Time: time.Now().UTC()}}, bidCount: map[akash.OrderID]int{}, executed: map[string]int{},
	}
}

const (
	keepBlock = 300 // a node keeps so many
	txBlocks  = 8   // a transaction may wait for so many
	notice    = time.Minute
)

// mint makes blocks until ctx ends.
func (m *model) mint(ctx context.Context, blockTime time.Duration) {
	for ctx.Err() == nil {
		nap(ctx, blockTime)
		m.mu.Lock()
		m.block()
		m.mu.Unlock()
	}
}

// block makes one block of what waits. mu is held.
func (m *model) block() {
	pool := m.pool
	m.pool = nil
	for _, h := range pool {
		if t := m.txs[h]; m.height < t.signed.TimeoutHeight {
			m.execute(t)
		}
	}
	m.height++
	m.blocks = append(m.blocks, client.Block{Height: m.height, Time: time.Now().UTC(), Events: m.events})
	m.events = nil
	if n := len(m.blocks) - keepBlock; n > 0 {
		m.blocks = slices.Delete(m.blocks, 0, n)
	}
	close(m.moved)
	m.moved = make(chan struct{})
	m.sound()
}

func (m *model) emit(v any) {
	m.events = append(m.events, akash.Event{Type: fmt.Sprintf("%T", v), Value: v})
}

func (m *model) execute(t *transaction) {
	if t.done {
		return
	}
	t.done = true
	for _, msg := range t.msgs {
		if t.err = m.apply(msg, true); t.err != nil {
			return
		}
		m.executed[fmt.Sprintf("%T", msg)]++
	}
}

func refusal(code uint32) error { return &akash.TxError{Codespace: "market", Code: code, Log: "no"} }

// apply is the chain's rules; with do it changes the state.
func (m *model) apply(msg proto.Message, do bool) error {
	switch msg := msg.(type) {
	case *marketv1beta5.MsgCreateBid:
		id := akash.BidIDOf(msg.GetId())
		deposit, _ := strconv.ParseInt(msg.GetDeposit().GetAmount().GetAmount(), 10, 64)
		switch o := m.orders[id.OrderID]; {
		case o == nil:
			return akash.ErrOrderNotFound
		case o.GetState() != marketv1beta5.Order_open:
			return akash.ErrOrderNotOpen
		case m.provider == nil:
			return akash.ErrUnknownProvider
		case m.bids[id] != nil:
			return akash.ErrBidExists
		case m.balance < deposit:
			return akash.ErrInsufficientFunds
		}
		if do {
			m.balance -= deposit
			m.bidCount[id.OrderID]++
			m.bids[id] = &marketv1beta5.Bid{Id: msg.GetId(), State: marketv1beta5.Bid_open, Price: msg.GetPrice(), CreatedAt: m.height, ReclamationWindow: msg.GetReclamationWindow()}
			price, _ := akash.PriceOf(msg.GetPrice())
			m.emit(akash.EventBidCreated{ID: id, Price: price})
		}
	case *marketv1beta5.MsgCloseBid:
		id := akash.BidIDOf(msg.GetId())
		b, l := m.bids[id], m.leases[id.Lease()].GetLease()
		switch {
		case b == nil:
			return akash.ErrBidNotFound
		case b.GetState() == marketv1beta5.Bid_open:
			if do {
				m.closeBid(id)
			}
			return nil
		case b.GetState() != marketv1beta5.Bid_active:
			return refusal(11)
		case l.GetReclamation() != nil && l.GetState() != marketv1.Lease_reclaiming:
			return refusal(37)
		case l.GetReclamation() != nil && time.Now().Unix() < l.GetReclamation().GetDeadline():
			return refusal(38)
		}
		if do {
			m.closedByBox(id.Lease(), msg.GetReason())
			m.closeLease(id.Lease(), marketv1.Lease_closed, msg.GetReason())
		}
	case *marketv1beta5.MsgLeaseStartReclaim:
		id := akash.LeaseIDOf(msg.GetId())
		l := m.leases[id].GetLease()
		switch {
		case l == nil:
			return akash.ErrLeaseNotFound
		case l.GetState() == marketv1.Lease_reclaiming:
			return refusal(36)
		case l.GetState() != marketv1.Lease_active:
			return akash.ErrLeaseNotActive
		}
		if do {
			m.closedByBox(id, msg.GetReason())
			l.State = marketv1.Lease_reclaiming
			l.Reclamation.Deadline = time.Now().Add(l.GetReclamation().GetWindow().AsDuration()).Unix()
			m.emit(akash.EventLeaseReclaimStarted{ID: id})
		}
	case *marketv1beta5.MsgWithdrawLease:
		l := m.leases[akash.LeaseIDOf(msg.GetId())]
		if !runs(l) {
			return akash.ErrLeaseNotActive
		}
		if do {
			pay(l)
		}
	case *providerv1beta4.MsgCreateProvider:
		if m.provider != nil {
			return akash.ErrProviderExists
		}
		if do {
			m.provider = &providerv1beta4.Provider{Owner: msg.GetOwner(), HostUri: msg.GetHostUri(), Attributes: msg.GetAttributes(), Info: msg.GetInfo()}
		}
	case *certv1.MsgCreateCertificate:
		if do {
			m.certs = append(m.certs, &certv1.CertificateResponse{Serial: serialOf(msg), Certificate: &certv1.Certificate{State: certv1.State_valid, Cert: msg.GetCert(), Pubkey: msg.GetPubkey()}})
		}
	case *certv1.MsgRevokeCertificate:
		for _, c := range m.certs {
			if c.GetSerial() == msg.GetId().GetSerial() && do {
				c.Certificate.State = certv1.State_revoked
			}
		}
	default:
		return fmt.Errorf("the model's chain does not know %T", msg)
	}
	return nil
}

func pay(l *marketv1beta5.QueryLeaseResponse) {
	had, _ := strconv.ParseInt(l.EscrowPayment.State.Withdrawn.Amount, 10, 64)
	l.EscrowPayment.State.Withdrawn.Amount = fmt.Sprint(had + 10)
}

func runs(l *marketv1beta5.QueryLeaseResponse) bool {
	s := l.GetLease().GetState()
	return s == marketv1.Lease_active || s == marketv1.Lease_reclaiming
}

func (m *model) closeBid(id akash.BidID) {
	m.bids[id].State = marketv1beta5.Bid_closed
	m.balance += bidDeposit
	m.emit(akash.EventBidClosed{ID: id})
}

func (m *model) closeLease(id akash.LeaseID, state marketv1.Lease_State, reason marketv1.LeaseClosedReason) {
	l := m.leases[id]
	pay(l)
	l.Lease.State, l.Lease.Reason, l.Lease.ClosedOn = state, reason, m.height
	m.over[id] = time.Now()
	m.emit(akash.EventLeaseClosed{ID: id, Reason: reason})
	m.closeBid(id.Bid())
	m.orders[id.OrderID].State = marketv1beta5.Order_closed
	m.emit(akash.EventOrderClosed{ID: id.OrderID})
}

// choose makes a lease of the box's open bid. mu is held.
func (m *model) choose(id akash.OrderID) {
	bid := akash.BidID{OrderID: id, Provider: m.me}
	b, o := m.bids[bid], m.orders[id]
	if b.GetState() != marketv1beta5.Bid_open || o.GetState() != marketv1beta5.Order_open {
		return
	}
	b.State, o.State = marketv1beta5.Bid_active, marketv1beta5.Order_active
	l := &marketv1.Lease{Id: bid.Lease().Wire(), State: marketv1.Lease_active, Price: b.GetPrice(), CreatedAt: m.height}
	if w := b.GetReclamationWindow(); w != nil {
		l.Reclamation = &marketv1.Reclamation{Window: w}
	}
	m.leases[bid.Lease()] = &marketv1beta5.QueryLeaseResponse{Lease: l, EscrowPayment: &escrowtypesv1.Payment{State: &escrowtypesv1.PaymentState{Withdrawn: &basev1beta1.Coin{Denom: "uact", Amount: "0"}}}}
	m.made[bid.Lease()] = time.Now()
	m.keys[keyOf(bid.Lease())] = bid.Lease()
	price, _ := akash.PriceOf(b.GetPrice())
	m.emit(akash.EventLeaseCreated{ID: bid.Lease(), Price: price})
}

// rival wins an open order. mu is held.
func (m *model) rival(id akash.OrderID) {
	o := m.orders[id]
	if o.GetState() != marketv1beta5.Order_open {
		return
	}
	o.State = marketv1beta5.Order_active
	if b := m.bids[akash.BidID{OrderID: id, Provider: m.me}]; b.GetState() == marketv1beta5.Bid_open {
		b.State = marketv1beta5.Bid_lost
		m.balance += bidDeposit
	}
	m.emit(akash.EventLeaseCreated{ID: akash.LeaseID{OrderID: id, Provider: modelRival}})
}

// end closes an order with whatever has become of it. mu is held.
func (m *model) end(id akash.OrderID, state marketv1.Lease_State, reason marketv1.LeaseClosedReason) {
	bid := akash.BidID{OrderID: id, Provider: m.me}
	switch {
	case runs(m.leases[bid.Lease()]):
		m.closeLease(bid.Lease(), state, reason)
		return
	case m.bids[bid].GetState() == marketv1beta5.Bid_open:
		m.closeBid(bid)
	}
	if m.orders[id].State != marketv1beta5.Order_closed {
		m.orders[id].State = marketv1beta5.Order_closed
		m.emit(akash.EventOrderClosed{ID: id})
	}
}

// node is the chain as one life of the agent sees it.
type modelNode struct{ *life }

var errNode = errors.New("the node cannot be reached")

func absent() error {
	return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no such thing")}
}

// ask asks the chain one thing. The answer is what was true on the way.
func ask[T any](ctx context.Context, n modelNode, what string, read func() (T, error)) (T, error) {
	var none T
	m := n.m
	if err := n.takes(ctx, what, 300*time.Millisecond); err != nil {
		return none, err
	}
	m.mu.Lock()
	if n.dead || m.nodeDown || m.unlucky(what) {
		m.mu.Unlock()
		return none, errNode
	}
	v, err := read()
	late := m.unlucky(what + " is late")
	m.mu.Unlock()
	if late {
		nap(ctx, 6*time.Second)
	}
	return v, err
}

func each[T any](ctx context.Context, n modelNode, what string, read func() []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		all, err := ask(ctx, n, what, func() ([]T, error) { return read(), nil })
		if err != nil {
			var none T
			yield(none, err)
			return
		}
		for _, v := range all {
			if !yield(v, nil) {
				return
			}
		}
	}
}

func (n modelNode) ChainID() string { return "croft-test" }
func (n modelNode) Close() error    { return nil }

func (n modelNode) Status(ctx context.Context) (client.Status, error) {
	return ask(ctx, n, "status", func() (client.Status, error) {
		last := n.m.blocks[len(n.m.blocks)-1]
		return client.Status{ChainID: "croft-test", Height: last.Height, Time: last.Time, First: n.m.blocks[0].Height}, nil
	})
}

func (n modelNode) Order(ctx context.Context, id akash.OrderID) (*marketv1beta5.Order, error) {
	return ask(ctx, n, "order", func() (*marketv1beta5.Order, error) {
		if o := n.m.orders[id]; o != nil {
			return proto.CloneOf(o), nil
		}
		return nil, absent()
	})
}

func (n modelNode) Orders(ctx context.Context, f *marketv1beta5.OrderFilters) iter.Seq2[*marketv1beta5.Order, error] {
	return each(ctx, n, "orders", func() []*marketv1beta5.Order {
		var out []*marketv1beta5.Order
		for _, o := range n.m.orders {
			if o.GetState().String() == f.GetState() {
				out = append(out, proto.CloneOf(o))
			}
		}
		slices.SortFunc(out, func(a, b *marketv1beta5.Order) int {
			return cmp.Or(cmp.Compare(a.GetId().GetDseq(), b.GetId().GetDseq()), cmp.Compare(a.GetId().GetGseq(), b.GetId().GetGseq()))
		})
		return out
	})
}

func (n modelNode) Bid(ctx context.Context, id akash.BidID) (*marketv1beta5.QueryBidResponse, error) {
	return ask(ctx, n, "bid", func() (*marketv1beta5.QueryBidResponse, error) {
		if b := n.m.bids[id]; b != nil {
			return &marketv1beta5.QueryBidResponse{Bid: proto.CloneOf(b)}, nil
		}
		return nil, absent()
	})
}

func (n modelNode) Bids(ctx context.Context, f *marketv1beta5.BidFilters) iter.Seq2[*marketv1beta5.QueryBidResponse, error] {
	return each(ctx, n, "bids", func() []*marketv1beta5.QueryBidResponse {
		var out []*marketv1beta5.QueryBidResponse
		for id, b := range n.m.bids {
			if string(id.Provider) == f.GetProvider() && b.GetState().String() == f.GetState() {
				out = append(out, &marketv1beta5.QueryBidResponse{Bid: proto.CloneOf(b)})
			}
		}
		return out
	})
}

func (n modelNode) Lease(ctx context.Context, id akash.LeaseID) (*marketv1beta5.QueryLeaseResponse, error) {
	return ask(ctx, n, "lease", func() (*marketv1beta5.QueryLeaseResponse, error) {
		if l := n.m.leases[id]; l != nil {
			return proto.CloneOf(l), nil
		}
		return nil, absent()
	})
}

func (n modelNode) Leases(ctx context.Context, f *marketv1.LeaseFilters) iter.Seq2[*marketv1beta5.QueryLeaseResponse, error] {
	return each(ctx, n, "leases", func() []*marketv1beta5.QueryLeaseResponse {
		var out []*marketv1beta5.QueryLeaseResponse
		for id, l := range n.m.leases {
			if string(id.Provider) == f.GetProvider() && l.GetLease().GetState().String() == f.GetState() {
				out = append(out, proto.CloneOf(l))
			}
		}
		return out
	})
}

func (n modelNode) Deployment(ctx context.Context, id akash.DeploymentID) (*deploymentv1beta4.QueryDeploymentResponse, error) {
	return ask(ctx, n, "deployment", func() (*deploymentv1beta4.QueryDeploymentResponse, error) {
		d := n.m.deployed[id]
		if d == nil {
			return nil, absent()
		}
		out := &deploymentv1beta4.QueryDeploymentResponse{
			Deployment: &deploymentv1.Deployment{Id: id.Wire(), Hash: slices.Clone(d.app.hash[d.variant][:])},
			EscrowAccount: &escrowtypesv1.Account{State: &escrowtypesv1.AccountState{
				SettledAt: n.m.height, Funds: []*escrowtypesv1.Balance{{Denom: "uact", Amount: akash.NewDec(1e15).Wire()}},
			}},
		}
		for i, g := range d.app.groups {
			out.Groups = append(out.Groups, &deploymentv1beta4.Group{Id: akash.GroupID{DeploymentID: id, GSeq: uint32(i + 1)}.Wire(), GroupSpec: g})
		}
		slices.Reverse(out.Groups)
		return out, nil
	})
}

func (n modelNode) Provider(ctx context.Context, _ account.Address) (*providerv1beta4.Provider, error) {
	return ask(ctx, n, "provider", func() (*providerv1beta4.Provider, error) {
		if n.m.provider == nil {
			return nil, absent()
		}
		return proto.CloneOf(n.m.provider), nil
	})
}

func (n modelNode) AuditedAttributes(ctx context.Context, _, _ account.Address) iter.Seq2[*auditv1.AuditedProvider, error] {
	return each(ctx, n, "audits", func() []*auditv1.AuditedProvider { return nil })
}

func (n modelNode) Certificates(ctx context.Context, _ *certv1.CertificateFilter) iter.Seq2[*certv1.CertificateResponse, error] {
	return each(ctx, n, "certificates", func() []*certv1.CertificateResponse {
		var out []*certv1.CertificateResponse
		for _, c := range n.m.certs {
			out = append(out, proto.CloneOf(c))
		}
		return out
	})
}

func (n modelNode) Balance(ctx context.Context, _ account.Address, denom string) (*basev1beta1.Coin, error) {
	return ask(ctx, n, "balance", func() (*basev1beta1.Coin, error) {
		if denom != "uakt" {
			return &basev1beta1.Coin{Denom: denom, Amount: "0"}, nil
		}
		return &basev1beta1.Coin{Denom: denom, Amount: fmt.Sprint(n.m.balance)}, nil
	})
}

const bidDeposit = 500_000

func (n modelNode) MarketParams(ctx context.Context) (*marketv1beta5.Params, error) {
	return ask(ctx, n, "params", func() (*marketv1beta5.Params, error) {
		return &marketv1beta5.Params{
			BidMinDeposits:       []*basev1beta1.Coin{{Denom: "uakt", Amount: fmt.Sprint(bidDeposit)}},
			MinReclamationWindow: durationpb.New(notice), MaxReclamationWindow: durationpb.New(720 * time.Hour),
		}, nil
	})
}

// PublicKey implements gateway.Chain, which the model does not open.
func (n modelNode) PublicKey(context.Context, account.Address) (account.PublicKey, error) {
	return account.PublicKey{}, absent()
}

// Watch tells blocks: sometimes their events twice or in another order, and now
// and then it has lost some.
func (n modelNode) Watch(ctx context.Context, from int64) iter.Seq2[client.Block, error] {
	m := n.m
	return func(yield func(client.Block, error) bool) {
		for ctx.Err() == nil {
			m.mu.Lock()
			if from <= 0 {
				from = m.height + 1
			}
			first, moved := m.blocks[0].Height, m.moved
			var next *client.Block
			gap := false
			if i := from - first; !m.nodeDown && !n.dead {
				gap = i < 0 || i < int64(len(m.blocks)) && m.unlucky("block")
				if i >= 0 && i < int64(len(m.blocks)) {
					b := m.blocks[i]
					b.Events = slices.Clone(b.Events)
					if m.unlucky("events twice") {
						b.Events = append(b.Events, b.Events...)
					}
					if m.unlucky("events swapped") {
						slices.Reverse(b.Events)
					}
					next = &b
				}
			}
			height := m.height
			m.mu.Unlock()
			switch {
			case gap:
				yield(client.Block{}, &client.GapError{Wanted: from, First: max(first, from), Latest: height})
				return
			case next != nil:
				from++
				if !yield(*next, nil) {
					return
				}
			default:
				select {
				case <-ctx.Done():
				case <-moved:
				}
			}
		}
	}
}

// Send keeps client.Send's promises, with Once.
func (n modelNode) Send(ctx context.Context, _ account.Signer, tx client.Tx) (client.Result, error) {
	n.m.mu.Lock()
	if tx.FeeGranter != n.m.granter {
		n.m.never("the fee is paid by %q, want %q", tx.FeeGranter, n.m.granter)
	}
	n.m.mu.Unlock()
	m := n.m
	if err := n.takes(ctx, "estimate", 500*time.Millisecond); err != nil {
		return client.Result{}, err
	}
	m.mu.Lock()
	if n.dead || m.nodeDown || m.unlucky("estimate") {
		m.mu.Unlock()
		return client.Result{}, errNode
	}
	if m.luck("estimate tells") < 0.6 { // a mistake shows before anything is signed
		if err := m.apply(tx.Msgs[0], false); err != nil {
			m.mu.Unlock()
			return client.Result{}, err
		}
	}
	m.sequence++
	raw := binary.BigEndian.AppendUint64(nil, m.sequence)
	t := &transaction{msgs: tx.Msgs, signed: client.Signed{
		Hash: client.Hash(sha256.Sum256(raw)), Raw: raw, Account: m.me, Sequence: m.sequence, Height: m.height, TimeoutHeight: m.height + txBlocks,
	}}
	m.txs[t.signed.Hash] = t
	m.mu.Unlock()
	if err := tx.OnSigned(ctx, t.signed); err != nil {
		return client.Result{}, fmt.Errorf("keep signed transaction: %w", err)
	}
	return n.deliver(ctx, t)
}

// deliver brings a transaction to the node: never, at once, twice, or late, and
// tells what became of it, or not.
func (n modelNode) deliver(ctx context.Context, t *transaction) (client.Result, error) {
	m := n.m
	unsure := &client.UnconfirmedError{Signed: t.signed, Err: errNode}
	if n.takes(ctx, "deliver", 300*time.Millisecond) != nil {
		return client.Result{}, unsure
	}
	err := n.act("deliver", func() error {
		m.pool = append(m.pool, t.signed.Hash)
		if m.unlucky("sent twice") {
			m.pool = append(m.pool, t.signed.Hash)
		}
		if m.luck("late") < m.chance { // it waits for a later block
			return errNode
		}
		m.block()
		return nil
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil || n.dead || m.nodeDown || m.unlucky("verdict") {
		return client.Result{}, unsure
	}
	return client.Result{Hash: t.signed.Hash, Height: m.height}, t.err
}

func (n modelNode) Resume(ctx context.Context, s client.Signed) (client.Result, error) {
	m := n.m
	if n.takes(ctx, "resume", 300*time.Millisecond) != nil {
		return client.Result{}, &client.UnconfirmedError{Signed: s, Err: errNode}
	}
	m.mu.Lock()
	t := m.txs[s.Hash]
	switch {
	case n.dead || m.nodeDown || m.unlucky("resume"):
		m.mu.Unlock()
		return client.Result{}, &client.UnconfirmedError{Signed: s, Err: errNode}
	case t.done:
		defer m.mu.Unlock()
		return client.Result{Hash: s.Hash, Height: m.height}, t.err
	case m.height >= s.TimeoutHeight:
		m.mu.Unlock()
		return client.Result{}, client.ErrDead
	}
	m.mu.Unlock()
	return n.deliver(ctx, t) // the same bytes are sent again
}

func serialOf(msg *certv1.MsgCreateCertificate) string {
	c, err := credential.ParseCertificate(msg.GetCert(), msg.GetPubkey())
	if err != nil {
		panic(err)
	}
	return c.Serial
}
