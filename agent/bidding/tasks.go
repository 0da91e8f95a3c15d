package bidding

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/client"
)

// feeDenom is what fees are paid in.
const feeDenom = "uakt"

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
		e.fault("registration", regErr)
		if regErr == nil {
			e.registered, e.attributes, e.serial, e.expires = true, f.reg.attributes, f.reg.serial, f.reg.expires
		} else if !e.registered {
			e.surveyAt = time.Now().Add(surveyPause)
		}
		e.params, e.balance, e.audits = f.params, f.balance, f.audits
		if f.blocks > 0 {
			e.blocks = f.blocks
		}
		e.surveyed = true
		if f.status.Time.After(e.chainTime) {
			e.chainTime = f.status.Time
		}
		for id, en := range e.book.entries {
			if !en.State.Final() {
				e.mark(id)
			}
		}
		maps.DeleteFunc(e.retry, func(id akash.OrderID, _ *patience) bool {
			return e.book.entries[id] == nil && !e.dirty[id] && !e.busy[id]
		})
		for _, id := range f.mine {
			if e.book.entries[id] == nil {
				e.mark(id)
			}
		}
		for _, o := range f.orders {
			if id := akash.OrderIDOf(o.GetId()); !e.dirty[id] {
				e.consider(o)
			}
		}
	}
}

// read asks the chain for everything.
func (e *engine) read(ctx context.Context) (found, error) {
	chain, me := e.cfg.Chain, string(e.book.me)
	var f found
	var err error
	if f.status, err = chain.Status(ctx); err != nil {
		return f, fmt.Errorf("ask for the chain's status: %w", err)
	}
	if f.status.Syncing {
		return f, errors.New("the node is behind the chain and catching up")
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
	bids, err := collect(chain.Bids(ctx, &marketv1beta5.BidFilters{Provider: me, State: "open"}), maxScan)
	if err != nil {
		return f, fmt.Errorf("ask for the box's bids: %w", err)
	}
	for _, b := range bids {
		f.mine = append(f.mine, akash.OrderIDOf(b.GetBid().GetId()))
	}
	for _, state := range []string{"active", "reclaiming"} {
		leases, err := collect(chain.Leases(ctx, &marketv1.LeaseFilters{Provider: me, State: state}), maxScan)
		if err != nil {
			return f, fmt.Errorf("ask for the box's leases: %w", err)
		}
		for _, l := range leases {
			f.mine = append(f.mine, akash.OrderIDOf(l.GetLease().GetId()))
		}
	}
	if f.orders, err = collect(chain.Orders(ctx, &marketv1beta5.OrderFilters{State: "open"}), maxScan); err != nil {
		return f, fmt.Errorf("ask for open orders: %w", err)
	}
	if e.cfg.BlocksPerMonth == 0 {
		if f.blocks, err = measure(ctx, chain, f.status); err != nil {
			return f, err
		}
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
// there are.
func measure(ctx context.Context, chain Chain, now client.Status) (int64, error) {
	from := max(now.Height-1000, now.First, 2) // the first block has the time of the genesis
	if from >= now.Height {
		return offer.UsualBlocks, nil
	}
	for b, err := range chain.Watch(ctx, from) {
		if err != nil {
			return 0, fmt.Errorf("measure block time: %w", err)
		}
		took := now.Time.Sub(b.Time)
		if took <= 0 || b.Height >= now.Height {
			return offer.UsualBlocks, nil
		}
		return offer.MonthBlocks(now.Height-b.Height, took), nil
	}
	return 0, fmt.Errorf("measure block time: %w", context.Cause(ctx))
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
		msg := &marketv1beta5.MsgCreateBid{
			Id: bid.Wire(), Price: en.price().Wire(),
			Deposit: &depositv1.Deposit{
				Amount:  &basev1beta1.Coin{Denom: en.Deposit.Denom, Amount: fmt.Sprint(en.Deposit.Amount)},
				Sources: []depositv1.Source{depositv1.Source_balance},
			},
		}
		if en.Notice > 0 {
			msg.ReclamationWindow = durationpb.New(en.Notice)
		}
		return msg
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
				kept := errors.New("the agent is stopping")
				if err := e.call(ctx, func() {
					kept = e.book.change(id, func(en *entry) error { en.Tx, en.Intent = &s, what; return nil })
				}); err != nil {
					return err
				}
				return kept
			},
		})
		return func() { e.verdict(id, what, 0, err) }
	}}
}

// resume asks what became of a transaction that was written down.
func (e *engine) resume(id akash.OrderID, en *entry) task {
	signed, what := *en.Tx, en.Intent
	return task{name: "resume", run: func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, e.cfg.TaskTimeout)
		defer cancel()
		_, err := e.cfg.Chain.Resume(ctx, signed)
		var height int64
		if unsure := (*client.UnconfirmedError)(nil); errors.As(err, &unsure) {
			// The node may no longer have the blocks that would tell. Long after the
			// last block that could hold it, the state of the chain tells as well.
			if status, err := e.cfg.Chain.Status(context.WithoutCancel(ctx)); err == nil {
				height = status.Height
			}
		}
		return func() { e.verdict(id, what, height, err) }
	}}
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
	case what != intentBid || en.State != Reserved || isOneOf(no, forNow):
		// The look that follows tells more: order, bid or lease are over already.
		e.must(id, e.clear(id))
	case errors.Is(no, akash.ErrInsufficientFunds), errors.Is(no, akash.ErrUnknownProvider), no.Codespace == "escrow":
		if e.must(id, e.book.drop(id)) {
			delete(e.dirty, id)
			e.refusal(offer.Refusal{Order: id.String(), Why: offer.WhyFunds, Sentence: sentence})
		}
	default:
		if e.must(id, e.book.move(id, refuse, func(en *entry) { en.Why = sentence })) {
			e.refusal(offer.Refusal{Order: id.String(), Why: offer.WhyChain, Sentence: sentence})
		}
	}
}

func isOneOf(err error, list []error) bool {
	for _, target := range list {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// announce tells the workload about a lease, in each life anew.
func (e *engine) announce(id akash.OrderID) task {
	l := e.wonLease(id, e.book.entries[id])
	return task{name: "announce", run: func(ctx context.Context) func() {
		err := e.cfg.Leases.LeaseWon(ctx, l)
		return func() {
			e.fault("workload", err)
			if err != nil {
				e.later(id)
				return
			}
			e.told[id] = true
			e.forgive(id)
		}
	}}
}

// tellEnd tells the workload that a lease is over; then the entry is settled.
func (e *engine) tellEnd(id akash.OrderID) task {
	l := akash.LeaseID{OrderID: id, Provider: e.book.me}
	reason := e.book.entries[id].Reason
	return task{name: "tell_end", run: func(ctx context.Context) func() {
		err := e.cfg.Leases.LeaseClosed(ctx, l, reason)
		return func() {
			e.fault("workload", err)
			if err != nil {
				e.later(id)
				return
			}
			if e.must(id, e.book.move(id, settle, nil)) {
				delete(e.told, id)
				delete(e.waited, id)
				delete(e.short, id)
				e.forgive(id)
				e.surveySoon()
			}
		}
	}}
}

func isNotFound(err error) bool { return croft.KindOf(err) == croft.KindNotFound }
