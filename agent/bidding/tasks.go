package bidding

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/client"
)

// feeDenom is what fees are paid in.
const feeDenom = "uakt"

var errBehind = errors.New("the node is behind the chain and catching up")

// found is what a survey of the chain saw.
type found struct {
	status  client.Status
	params  *marketv1beta5.Params
	balance map[string]int64
	audits  []*auditv1.AuditedProvider
	blocks  int64
	mine    []akash.OrderID // with an open bid or a running lease of ours
	orders  []*marketv1beta5.Order
	reg     registered
}

// survey looks at all that concerns the box: the reconciliation.
func (e *engine) survey(ctx context.Context) func() {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.TaskTimeout)
	defer cancel()
	f, err := e.read(ctx)
	var regErr error
	if err == nil {
		f.reg, regErr = e.ensure(ctx, f)
	}
	return func() {
		e.surveying, e.reached = false, err == nil
		e.fault("chain", err)
		if err != nil {
			e.surveyAt = time.Now().Add(min(surveyPause, e.cfg.ReconcileEvery))
			return
		}
		e.surveyAt = time.Now().Add(e.cfg.ReconcileEvery)
		e.fault("journal", nil) // the next write tells
		if regErr == nil {
			e.registered, e.reg, e.refusals = true, f.reg, 0
		} else {
			e.surveyAt = time.Now().Add(min(surveyPause<<min(e.refusals, 10), e.cfg.ReconcileEvery))
			e.refusals++
		}
		e.fault("registration", regErr)
		e.params, e.balance, e.audits = f.params, f.balance, f.audits
		if e.blocks = cmp.Or(f.blocks, e.blocks); e.blocks == 0 && f.status.Height < youngChain {
			e.surveySoon() // no bid before its pace is known
		} else {
			e.blocks = cmp.Or(e.blocks, offer.UsualBlocks)
		}
		e.surveyed = true
		e.pulse(f.status.Height, f.status.Time)
		for id, en := range e.book.entries {
			if !en.State.Final() {
				e.mark(id)
			}
		}
		maps.DeleteFunc(e.retry, func(id akash.OrderID, _ *patience) bool {
			return e.book.entries[id] == nil && !e.dirty[id] && !e.busy[id]
		})
		clear(e.lost)
		for _, id := range f.mine {
			if e.book.entries[id] == nil {
				e.lost[id], e.dirty[id] = true, true
			}
		}
		for _, o := range f.orders {
			if id := akash.OrderIDOf(o.GetId()); !e.dirty[id] {
				e.consider(o)
			}
		}
	}
}

// youngChain is the height from which on a node that cannot tell the chain's pace
// is not waited for.
const youngChain = 20

// read asks the chain for everything.
func (e *engine) read(ctx context.Context) (found, error) {
	chain, me := e.cfg.Chain, string(e.book.me)
	var f found
	var err error
	if f.status, err = chain.Status(ctx); err != nil {
		return f, fmt.Errorf("ask for the chain's status: %w", err)
	}
	if f.status.Syncing {
		return f, errBehind
	}
	if f.params, err = chain.MarketParams(ctx); err != nil {
		return f, fmt.Errorf("ask for the market's parameters: %w", err)
	}
	f.balance = map[string]int64{}
	for _, denom := range offer.DenomsOf(f.params, feeDenom) {
		coin, err := chain.Balance(ctx, e.book.me, denom)
		if err != nil {
			return f, fmt.Errorf("ask for the balance: %w", err)
		}
		f.balance[denom], _ = offer.AmountOf(coin.GetAmount())
	}
	if f.audits, err = collect(chain.AuditedAttributes(ctx, e.book.me, ""), maxScan); err != nil {
		return f, fmt.Errorf("ask for audited attributes: %w", err)
	}
	for b, err := range chain.Bids(ctx, &marketv1beta5.BidFilters{Provider: me, State: "open"}) {
		if err != nil {
			return f, fmt.Errorf("ask for the box's bids: %w", err)
		}
		f.mine = append(f.mine, akash.OrderIDOf(b.GetBid().GetId()))
	}
	for _, state := range []string{"active", "reclaiming"} {
		for l, err := range chain.Leases(ctx, &marketv1.LeaseFilters{Provider: me, State: state}) {
			if err != nil {
				return f, fmt.Errorf("ask for the box's leases: %w", err)
			}
			f.mine = append(f.mine, akash.OrderIDOf(l.GetLease().GetId()))
		}
	}
	if f.orders, err = collect(chain.Orders(ctx, &marketv1beta5.OrderFilters{State: "open"}), maxScan); err != nil {
		return f, fmt.Errorf("ask for open orders: %w", err)
	}
	if e.cfg.BlocksPerMonth == 0 {
		f.blocks = measure(ctx, chain, f.status)
	}
	return f, nil
}

// collect reads at most n.
func collect[T any](seq iter.Seq2[T, error], n int) ([]T, error) {
	var all []T
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		if all = append(all, v); len(all) >= n {
			break
		}
	}
	return all, nil
}

// measure counts the blocks of a month from the last thousand, or as many as
// there are; 0: that cannot be told now.
func measure(ctx context.Context, chain Chain, now client.Status) int64 {
	from := max(now.Height-1000, now.First, 2) // the first block has the time of the genesis
	if from >= now.Height {
		return 0
	}
	for b, err := range chain.Watch(ctx, from) {
		if err != nil {
			break // the block was removed meanwhile, or the node keeps no results
		}
		return offer.MonthBlocks(now.Height-b.Height, now.Time.Sub(b.Time))
	}
	return 0
}

// poor reports that the box cannot pay a bid and its fees.
func (e *engine) poor() bool {
	_, lack := offer.DepositOf(e.box())
	return lack != "" || e.balance[feeDenom] < e.cfg.FeeReserve
}

func (e *engine) fund(ctx context.Context) func() {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.TaskTimeout)
	defer cancel()
	err := e.cfg.Funding.Ensure(ctx, e.book.me)
	return func() {
		e.funding, e.fundAt = false, time.Now().Add(fundEvery)
		e.fault("funding", err)
		if err == nil {
			e.surveyAt = time.Time{}
		}
	}
}

// message is what an intent says to the chain.
func (e *engine) message(id akash.OrderID, en *entry, what intent) proto.Message {
	bid := akash.BidID{OrderID: id, Provider: e.book.me}
	switch what {
	case intentBid:
		return offer.Offer{Price: en.price(), Deposit: en.Deposit, Notice: en.Notice}.Bid(bid)
	case intentClose:
		return &marketv1beta5.MsgCloseBid{Id: bid.Wire(), Reason: closeReason(en)}
	case intentReclaim:
		return &marketv1beta5.MsgLeaseStartReclaim{Id: bid.Lease().Wire(), Reason: closeReason(en)}
	case intentDraw:
		return &marketv1beta5.MsgWithdrawLease{Id: bid.Lease().Wire()}
	}
	panic("intent " + what + " has no message") // a mistake in this package
}

func closeReason(en *entry) marketv1.LeaseClosedReason {
	if en.State == Closing && en.Reason != 0 {
		return en.Reason
	}
	return marketv1.LeaseClosedReason_lease_closed_reason_unspecified
}

// send does one step of an order on the chain. What was signed is in the journal
// before it leaves, and the client signs it only once: after a crash or a lost
// answer the same bytes are asked after, never others.
func (e *engine) send(id akash.OrderID, what intent) task {
	msg := e.message(id, e.book.entries[id], what)
	return task{name: string(what), run: func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, e.cfg.TaskTimeout)
		defer cancel()
		_, err := e.cfg.Chain.Send(ctx, e.cfg.Signer, client.Tx{
			Msgs: []proto.Message{msg}, FeeGranter: e.cfg.FeeGranter, Once: true,
			OnSigned: func(ctx context.Context, s client.Signed) error {
				return e.call(ctx, func() error {
					return e.book.change(id, func(en *entry) error { en.Tx, en.Intent = &s, what; return nil })
				})
			},
		})
		return func() { e.verdict(id, what, 0, err) }
	}}
}

// resume asks what became of a transaction that was written down.
func (e *engine) resume(id akash.OrderID, en *entry) task {
	signed, what := *en.Tx, en.Intent
	return task{name: "resume", run: func(outer context.Context) func() {
		ctx, cancel := context.WithTimeout(outer, e.cfg.TaskTimeout)
		defer cancel()
		_, err := e.cfg.Chain.Resume(ctx, signed)
		height := heightIfUnsure(outer, e.cfg, err)
		return func() { e.verdict(id, what, height, err) }
	}}
}

// heightIfUnsure is the chain's height if err says that a transaction's fate is
// not known; 0 if it does not, or nobody can tell. A node may no longer have the
// blocks that hold the answer; long after the last that could, the state of the
// chain tells as well.
func heightIfUnsure(ctx context.Context, cfg *Config, err error) int64 {
	if _, unsure := errors.AsType[*client.UnconfirmedError](err); !unsure {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.CallTimeout)
	defer cancel()
	status, err := cfg.Chain.Status(ctx)
	if err != nil || status.Syncing {
		return 0
	}
	return status.Height
}

// hopeless is how many blocks after its last a transaction is given up that no
// node can tell about.
const hopeless = 50

// verdict takes in what became of a transaction. Whatever it was, the chain is
// looked at before the next step.
func (e *engine) verdict(id akash.OrderID, what intent, height int64, err error) {
	en := e.book.entries[id]
	if en == nil {
		return
	}
	refused, isVerdict := errors.AsType[*akash.TxError](err)
	unsure, isUnsure := errors.AsType[*client.UnconfirmedError](err)
	e.mark(id)
	switch {
	case err == nil:
		e.reached = true
		e.forgive(id)
		e.done(id, what)
	case isUnsure && (height == 0 || unsure.Signed.TimeoutHeight == 0 || height < unsure.Signed.TimeoutHeight+hopeless):
		e.reached = false
		e.later(id) // it stays written down
	case isVerdict:
		e.reached = true
		e.later(id)
		e.refusedTx(id, what, refused)
	case isUnsure, errors.Is(err, client.ErrDead):
		e.later(id)
		e.must(id, e.clear(id))
	default:
		e.reached = false
		e.later(id) // nothing was signed, or what was is written down
	}
}

// clear forgets a transaction whose fate is known.
func (e *engine) clear(id akash.OrderID) error {
	return e.book.change(id, func(en *entry) error { en.Tx, en.Intent = nil, ""; return nil })
}

// done notes a transaction that was executed.
func (e *engine) done(id akash.OrderID, what intent) {
	if what == intentBid && e.book.entries[id].State == Reserved {
		e.opened(id, nil)
		return
	}
	e.must(id, e.book.change(id, func(en *entry) error {
		en.Tx, en.Intent = nil, ""
		if what == intentDraw {
			en.DrawnAt = e.chainTime
		}
		return nil
	}))
}

// forNow are verdicts that a look at the chain explains, or that pass.
var forNow = []error{
	akash.ErrOutOfGas, akash.ErrInsufficientFee, akash.ErrInCache, akash.ErrMempoolFull, akash.ErrTimeoutHeight,
	akash.ErrWrongSequence, akash.ErrBidExists, akash.ErrOrderNotOpen, akash.ErrOrderNotFound,
}

// refusedTx notes a transaction that the chain refused.
func (e *engine) refusedTx(id akash.OrderID, what intent, no *akash.TxError) {
	en := e.book.entries[id]
	sentence := "the chain refused the bid: " + akash.FirstLine(no.Error())
	switch {
	case what != intentBid || en.State != Reserved || slices.ContainsFunc(forNow, func(e error) bool { return errors.Is(no, e) }):
		// The look that follows tells more: order, bid or lease are over already.
		e.must(id, e.clear(id))
	case errors.Is(no, akash.ErrInsufficientFunds), errors.Is(no, akash.ErrUnknownProvider), no.Codespace == "escrow":
		if e.must(id, e.book.drop(id)) {
			delete(e.dirty, id)
			e.refusal(id, offer.WhyFunds, sentence)
		}
	default:
		if e.must(id, e.book.move(id, refuse, func(en *entry) { en.Why = sentence })) {
			e.refusal(id, offer.WhyChain, sentence)
		}
	}
}

// announce tells the workload about a lease, in each life anew.
func (e *engine) announce(id akash.OrderID) task {
	l := e.wonLease(id, e.book.entries[id])
	return e.tell(id, "announce", func(ctx context.Context) error { return e.cfg.Leases.LeaseWon(ctx, l) }, func() {
		e.told[id] = true
		e.forgive(id)
	})
}

// tellEnd tells the workload that a lease is over; then the entry is settled.
func (e *engine) tellEnd(id akash.OrderID) task {
	l, reason := akash.LeaseID{OrderID: id, Provider: e.book.me}, e.book.entries[id].Reason
	return e.tell(id, "tell_end", func(ctx context.Context) error { return e.cfg.Leases.LeaseClosed(ctx, l, reason) }, func() {
		if e.must(id, e.book.move(id, settle, nil)) {
			delete(e.told, id)
			delete(e.waited, id)
			delete(e.short, id)
			e.forgive(id)
			e.surveySoon()
		}
	})
}

// tell calls the workload, again and again until it answers nil.
func (e *engine) tell(id akash.OrderID, name string, call func(context.Context) error, done func()) task {
	return task{name: name, inside: true, run: func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, e.cfg.TaskTimeout)
		defer cancel()
		err := call(ctx)
		return func() {
			e.fault("workload", err)
			if err != nil {
				e.later(id)
				return
			}
			done()
		}
	}}
}

func isNotFound(err error) bool { return croft.KindOf(err) == croft.KindNotFound }
