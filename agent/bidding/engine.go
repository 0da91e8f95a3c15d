package bidding

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/client"
)

// engine decides. Events of the chain only say which orders are worth a look;
// what is true is read from the chain, one order at a time, and led through the
// law. So it does not matter whether events come twice, late, in the wrong order
// or not at all: the survey every few minutes looks at everything.
//
// All methods but the run functions of tasks are called from one goroutine.
type engine struct {
	cfg *Config
	// ensure brings the box's record on the chain in line.
	ensure func(context.Context, found) (registered, error)
	book   *book
	// call runs a function on the engine's goroutine and waits for it; it fails
	// when ctx ends first.
	call func(context.Context, func() error) error

	dirty  map[akash.OrderID]bool      // worth a look
	busy   map[akash.OrderID]bool      // a task is about it; true: one that asks the chain
	asking int                         // how many of busy are true
	retry  map[akash.OrderID]*patience // after a failure
	told   map[akash.OrderID]bool      // lease was announced to the workload in this life
	short  map[akash.OrderID]bool      // the tenant's money is about to run out
	why    offer.Refusals              // why there is no bid

	surveyAt, fundAt     time.Time // not before
	surveying, funding   bool
	surveyed, registered bool // each succeeded in this life
	refusals             int  // registrations that did not succeed, in a row
	problem              map[string]string
	seen                 int64     // height of the newest block that was given to us
	top                  int64     // height of the newest block known
	chainTime            time.Time // of the same
	anew                 error     // the chain was begun anew; nothing more is done in this life
	reached              bool      // the last call to the chain was answered
	ticked               time.Time
	waited               map[akash.OrderID]time.Duration // for a manifest, while a tenant could send one
	lost                 map[akash.OrderID]bool          // bids and leases of ours on the chain that have no entry yet
	absent               map[akash.OrderID]time.Time     // entries that the chain does not know, and since when

	params  *marketv1beta5.Params
	reg     registered
	audits  []*auditv1.AuditedProvider
	balance map[string]int64
	blocks  int64 // per month
}

// patience is how long an order is left alone after failures.
type patience struct {
	until time.Time
	tries int
}

// Bounds of what the engine keeps in mind and does at once.
const (
	maxDirty   = 4096             // orders waiting for a look; more are left to the survey
	maxTasks   = 8                // calls to the chain at once: a home connection
	firstRetry = 2 * time.Second  // doubles with each failure
	lastRetry  = 2 * time.Minute  // and ends here
	maxTick    = 30 * time.Second // of a manifest's time that one tick may count: a box that slept has not waited
	fundEvery  = 5 * time.Minute  // between two requests for money
	maxScan    = 2000             // open orders that one survey looks at
)

func newEngine(cfg *Config, b *book) *engine {
	e := &engine{
		cfg: cfg, book: b, dirty: map[akash.OrderID]bool{}, busy: map[akash.OrderID]bool{}, retry: map[akash.OrderID]*patience{},
		told: map[akash.OrderID]bool{}, short: map[akash.OrderID]bool{}, problem: map[string]string{}, waited: map[akash.OrderID]time.Duration{},
		lost: map[akash.OrderID]bool{}, absent: map[akash.OrderID]time.Time{}, blocks: cfg.BlocksPerMonth,
		seen: b.point.Height, top: b.point.Height, chainTime: b.point.Time,
	}
	for id := range b.entries {
		e.mark(id)
	}
	return e
}

// mark remembers an order for a look.
func (e *engine) mark(id akash.OrderID) {
	if len(e.dirty) >= maxDirty && e.book.entries[id] == nil {
		e.surveySoon()
		return
	}
	e.dirty[id] = true
}

// block takes in what happened at one height.
func (e *engine) block(b client.Block) {
	for _, ev := range b.Events {
		switch v := ev.Value.(type) {
		case akash.EventOrderCreated:
			if e.book.entries[v.ID] == nil {
				e.mark(v.ID)
			}
		case akash.EventOrderClosed:
			e.markMine(v.ID, false)
		case akash.EventBidCreated:
			e.markMine(v.ID.OrderID, v.ID.Provider == e.book.me)
		case akash.EventBidClosed:
			e.markMine(v.ID.OrderID, v.ID.Provider == e.book.me)
		case akash.EventLeaseCreated:
			e.markMine(v.ID.OrderID, v.ID.Provider == e.book.me)
		case akash.EventLeaseClosed:
			e.markMine(v.ID.OrderID, v.ID.Provider == e.book.me)
		case akash.EventLeaseReclaimStarted:
			e.markMine(v.ID.OrderID, v.ID.Provider == e.book.me)
		case akash.EventDeploymentUpdated:
			for id := range e.book.entries {
				if id.DeploymentID == v.ID {
					e.mark(id)
				}
			}
		}
	}
	e.seen, e.reached = max(e.seen, b.Height), true
	e.pulse(b.Height, b.Time)
}

// pulse takes in a block that the chain has. One that is lower and later than
// another is proof that the chain was begun anew, or put back to an older state:
// what waits for a higher block waits in vain.
func (e *engine) pulse(height int64, at time.Time) {
	if !at.After(e.chainTime) {
		return
	}
	if height >= e.top {
		e.top, e.chainTime = height, at
		return
	}
	for id, en := range e.book.entries {
		if en.Tx != nil && en.Tx.Height > height {
			e.must(id, e.clear(id))
		}
	}
	e.fault("journal", cmp.Or(e.cfg.Journal.Delete(keyRegistration), e.book.setPoint(point{Height: height, Time: at})))
	e.anew = fmt.Errorf("chain was begun anew: it is at block %d and was at %d before", height, e.top)
}

// markMine remembers an order that the box has to do with.
func (e *engine) markMine(id akash.OrderID, mine bool) {
	if mine || e.book.entries[id] != nil {
		e.mark(id)
	}
}

// task is work that calls others. Run does it, on any goroutine, and returns what
// has to be told to the engine afterwards.
type task struct {
	name   string
	id     akash.OrderID // of the order it is about; zero for none
	inside bool          // it calls the workload, not the chain: however many hang, the chain's slots stay free
	run    func(context.Context) func()
}

// due lists what is to be done now. Each is counted as under way until the
// function that its run returns was called.
func (e *engine) due(now time.Time) []task {
	e.tick(now)
	if err := e.book.prune(); err != nil {
		e.fault("journal", err)
	}
	var tasks []task
	if !e.surveying && !now.Before(e.surveyAt) {
		e.surveying = true
		tasks = append(tasks, task{name: "survey", run: e.survey})
	}
	if !e.funding && e.surveyed && e.cfg.Funding != nil && e.poor() && !now.Before(e.fundAt) {
		e.funding = true
		tasks = append(tasks, task{name: "fund", run: e.fund})
	}
	// What is waiting or under way is not dealt with: it is read again after a crash.
	if p := e.book.point.Height; len(e.dirty) == 0 && len(e.busy) == 0 && e.surveyed && (e.seen > p+pointEvery || p == 0 && e.seen > 0) {
		if err := e.book.setPoint(point{Height: e.seen, Time: e.chainTime}); err != nil {
			e.fault("journal", err)
		}
	}
	ids := slices.SortedFunc(maps.Keys(e.book.entries), compareOrders) // the box's own come before orders of any number
	for _, id := range slices.SortedFunc(maps.Keys(e.dirty), compareOrders) {
		if e.book.entries[id] == nil {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		_, busy := e.busy[id]
		if p := e.retry[id]; busy || p != nil && now.Before(p.until) {
			continue
		}
		t, ok := e.next(id)
		if !ok {
			continue
		}
		if e.busy[id] = !t.inside; e.busy[id] {
			e.asking++
		}
		run := t.run
		t.id, t.run = id, func(ctx context.Context) func() {
			absorb := run(ctx)
			return func() {
				if e.busy[id] {
					e.asking--
				}
				delete(e.busy, id)
				absorb()
			}
		}
		tasks = append(tasks, t)
	}
	return tasks
}

func compareOrders(a, b akash.OrderID) int {
	if a.DSeq != b.DSeq {
		return cmp.Compare(a.DSeq, b.DSeq)
	}
	return cmp.Compare(a.String(), b.String())
}

// tick counts the time that tenants had for their manifests: only while chain
// and gateway could be reached, and tenants could find the gateway and trust it.
func (e *engine) tick(now time.Time) {
	passed := min(now.Sub(e.ticked), maxTick)
	first := e.ticked.IsZero()
	e.ticked = now
	if first || passed <= 0 || !e.reached || !e.registered || e.problem["registration"] != "" || !e.cfg.Reachable() {
		return
	}
	for id, en := range e.book.entries {
		if en.State == Leased && !en.Manifest && e.told[id] {
			e.waited[id] += passed
		}
	}
}

// next is what is to be done about one order.
func (e *engine) next(id akash.OrderID) (task, bool) {
	en := e.book.entries[id]
	if en == nil {
		if !e.surveyed || e.asking >= maxTasks { // nothing to decide with, or more than enough to do
			return task{}, false
		}
		return e.lookTask(id), true
	}
	if en.State.Final() {
		delete(e.dirty, id)
		return task{}, false
	}
	if en.State == Ended {
		return e.tellEnd(id), true
	}
	if en.Tx != nil {
		return e.resume(id, en), true
	}
	if e.dirty[id] {
		return e.lookTask(id), true
	}
	switch en.State {
	case Reserved:
		if why := e.ready(); why != "" {
			// Nothing has left: the room is free again.
			e.refusal(id, offer.WhyUnready, why)
			e.must(id, e.book.drop(id))
			return task{}, false
		}
		return e.send(id, intentBid), true
	case Open:
		if why := e.tired(en); why != "" {
			e.must(id, e.book.move(id, askWithdraw, func(en *entry) { en.Why = why }))
			return e.next(id)
		}
	case Withdrawing:
		return e.send(id, intentClose), true
	case Leased:
		if !e.told[id] {
			return e.announce(id), true
		}
		if !en.Manifest && e.waited[id] >= e.cfg.ManifestTimeout {
			if e.cfg.HasManifest(akash.LeaseID{OrderID: id, Provider: e.book.me}) { // it came, and could not be noted
				e.must(id, e.book.change(id, func(en *entry) error { en.Manifest = true; return nil }))
				return e.next(id)
			}
			e.must(id, e.book.move(id, askClose, func(en *entry) {
				en.Reason = marketv1.LeaseClosedReason_lease_closed_reason_manifest_timeout
				en.Why = "the tenant sent no manifest in time"
			}))
			return e.next(id)
		}
		if e.drawDue(id, en) {
			return e.send(id, intentDraw), true
		}
	case Closing:
		if !e.told[id] {
			return e.announce(id), true
		}
		switch {
		case en.Notice > 0 && en.Deadline.IsZero():
			return e.send(id, intentReclaim), true
		case !e.chainTime.Before(en.Deadline):
			return e.send(id, intentClose), true
		case e.drawDue(id, en):
			return e.send(id, intentDraw), true
		}
	case Seen, Ended, Settled, Lost, Withdrawn, Refused:
	}
	return task{}, false
}

// drawDue reports that a lease's earnings should be fetched: daily, and more
// often when the tenant's money is about to run out.
func (e *engine) drawDue(id akash.OrderID, en *entry) bool {
	since := e.chainTime.Sub(en.DrawnAt)
	return since >= e.cfg.WithdrawEvery || e.short[id] && since >= drawShort
}

// drawShort is the time between two withdrawals from an account that lasts less
// than twice that.
const drawShort = 30 * time.Minute

// tired says why an open bid is taken back; empty if it stays. Time is the
// chain's: while the chain stands still, so does the time of a bid.
func (e *engine) tired(en *entry) string {
	switch {
	case e.book.wishes.Drain:
		return "the box takes no new leases"
	case e.chainTime.Sub(en.OpenedAt) >= e.cfg.BidTimeout:
		return "the tenant did not choose in time"
	}
	return ""
}

// ready says why the box makes no new bids; empty if it does.
func (e *engine) ready() string {
	switch {
	case e.book.wishes.Drain:
		return "the owner lets no new leases in"
	case !e.surveyed:
		return "the chain was not reached yet"
	case !e.registered:
		return "the box is not registered on the chain yet"
	case len(e.lost) > 0:
		return "leases that the box's journal has lost are being taken up"
	case e.problem["journal"] != "":
		return "the box cannot write its journal"
	}
	return e.cfg.Ready()
}

// box is what a decision depends on now.
func (e *engine) box() offer.Box {
	funds := maps.Clone(e.balance)
	for _, en := range e.book.entries {
		if en.State == Reserved { // its deposit may not have left the balance yet
			funds[en.Deposit.Denom] -= en.Deposit.Amount
		}
	}
	funds[feeDenom] -= e.cfg.FeeReserve
	return offer.Box{
		Account: e.book.me, Attributes: e.reg.attributes, Audits: e.audits, Params: e.params, Capacity: e.cfg.Capacity(), Used: e.book.ledger.Used(),
		Overhead: e.cfg.Overhead, Policy: e.cfg.Policy, Blocks: e.blocks, Funds: funds, Notice: e.cfg.Notice, Unready: e.ready(),
	}
}

// consider decides about an order that is open and unknown.
func (e *engine) consider(order *marketv1beta5.Order) {
	id := akash.OrderIDOf(order.GetId())
	if e.book.entries[id] != nil || order.GetState() != marketv1beta5.Order_open {
		return
	}
	b := e.box()
	if b.Unready == "" && e.book.active() >= e.cfg.MaxOrders {
		b.Unready = fmt.Sprintf("the box has %d orders and leases already", e.cfg.MaxOrders)
	}
	made, no := offer.Consider(order, b)
	if no != nil {
		e.refusal(id, no.Why, no.Sentence)
		return
	}
	spec, err := proto.Marshal(order.GetSpec())
	if err == nil {
		err = e.book.add(id, reserve, entry{
			Price: made.Price.Amount.String(), Denom: made.Price.Denom, Month: made.Month, Room: made.Room, Spec: spec, Deposit: made.Deposit, Notice: made.Notice,
		}, b.Capacity)
	}
	switch {
	case errors.Is(err, errFull): // memory was lent meanwhile
		e.refusal(id, offer.WhyRoom, err.Error())
	case err != nil:
		e.refusal(id, offer.WhyJournal, "the box could not write its decision down: "+err.Error())
		e.fault("journal", err)
	default:
		e.forgive(id)
		e.cfg.Log.Info("order reserved", "order", id.String(), "price", made.Price.String(), "month", made.Month.String())
	}
}

// refusal keeps why there is no bid, the newest for each order.
func (e *engine) refusal(id akash.OrderID, why offer.Why, sentence string) {
	e.why = e.why.With(offer.Refusal{Order: id.String(), At: time.Now().UTC(), Why: why, Sentence: sentence}, e.cfg.KeepRefusals)
}

func (e *engine) forgive(id akash.OrderID) {
	delete(e.retry, id)
	e.why = e.why.Without(id.String())
}

// later leaves an order alone for a while.
func (e *engine) later(id akash.OrderID) {
	p := e.retry[id]
	if p == nil {
		p = &patience{}
		e.retry[id] = p
	}
	p.until = time.Now().Add(min(firstRetry<<min(p.tries, 10), lastRetry))
	p.tries++
}

// fault notes what is wrong, for the owner; nil clears it.
func (e *engine) fault(what string, err error) {
	if err == nil {
		delete(e.problem, what)
		return
	}
	if what == "journal" {
		clear(e.waited) // a tenant's manifest could not be kept either
	}
	if text := err.Error(); e.problem[what] != text {
		e.problem[what] = text
		e.cfg.Log.Warn("bidding has a problem", "about", what, "err", err)
	}
}

// must notes an error of the journal: nothing was changed, and the order is looked
// at again later.
func (e *engine) must(id akash.OrderID, err error) bool {
	if _, odd := errors.AsType[*MoveError](err); odd {
		e.cfg.Log.Debug("fact means nothing here", "err", err)
		return false
	}
	if err != nil {
		e.mark(id)
		e.later(id)
	}
	e.fault("journal", err)
	return err == nil
}

// view is what the chain says about one order and our part in it.
type view struct {
	order      *marketv1beta5.Order
	bid        *marketv1beta5.Bid
	lease      *marketv1beta5.QueryLeaseResponse
	deployment *deploymentv1beta4.QueryDeploymentResponse
	status     client.Status // of the chain, before anything else was asked
}

// lookTask asks the chain about one order. What happens to the order from now on
// marks it again.
func (e *engine) lookTask(id akash.OrderID) task {
	delete(e.dirty, id)
	return task{name: "look", run: func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, e.cfg.CallTimeout)
		defer cancel()
		v, err := fetch(ctx, e.cfg.Chain, akash.BidID{OrderID: id, Provider: e.book.me})
		return func() {
			e.reached = err == nil
			if err != nil {
				e.mark(id)
				e.later(id)
				return
			}
			e.absorb(id, v)
		}
	}}
}

func fetch(ctx context.Context, chain Chain, id akash.BidID) (view, error) {
	status, err := chain.Status(ctx)
	if err != nil {
		return view{}, err
	}
	if status.Syncing {
		return view{}, errBehind
	}
	v := view{status: status}
	bid, err := chain.Bid(ctx, id)
	if err != nil && !isNotFound(err) {
		return view{}, err
	}
	v.bid = bid.GetBid()
	if s := v.bid.GetState(); s == marketv1beta5.Bid_active || s == marketv1beta5.Bid_closed {
		if v.lease, err = chain.Lease(ctx, id.Lease()); err != nil && !isNotFound(err) {
			return view{}, err
		}
	}
	if v.lease == nil || v.lease.GetLease().GetState() != marketv1.Lease_closed {
		if v.order, err = chain.Order(ctx, id.OrderID); err != nil && !isNotFound(err) {
			return view{}, err
		}
	}
	if runs(v.lease) {
		if v.deployment, err = chain.Deployment(ctx, id.DeploymentID); err != nil && !isNotFound(err) {
			return view{}, err
		}
	}
	return v, nil
}

// runs reports whether the chain has the lease as going on.
func runs(l *marketv1beta5.QueryLeaseResponse) bool {
	s := l.GetLease().GetState()
	return s == marketv1.Lease_active || s == marketv1.Lease_reclaiming
}

// absorb leads what the chain says through the law.
func (e *engine) absorb(id akash.OrderID, v view) {
	en := e.book.entries[id]
	if en == nil {
		delete(e.retry, id)
		if e.adopt(id, v) && e.lost[id] {
			delete(e.lost, id)
			e.surveySoon() // no bid was made meanwhile
		}
		return
	}
	delete(e.lost, id)
	if v.bid != nil {
		delete(e.absent, id)
	}
	switch {
	case runs(v.lease):
		e.short[id] = e.runsShort(en, v)
		if !en.State.live() {
			if e.must(id, e.book.move(id, won, func(en *entry) { e.lease(en, v); en.WonAt, en.DrawnAt, en.Why = e.chainTime, e.chainTime, "" })) {
				e.forgive(id)
				e.cfg.Log.Info("lease won", "order", id.String())
			}
			return
		}
		after := *en
		if e.lease(&after, v); !reflect.DeepEqual(*en, after) {
			e.must(id, e.book.change(id, func(en *entry) error { e.lease(en, v); return nil }))
		}
	case v.lease.GetLease() != nil: // closed, or out of funds
		reason := v.lease.GetLease().GetReason()
		if en.State == Ended {
			return
		}
		if e.must(id, e.book.move(id, leaseClosed, func(en *entry) {
			e.lease(en, v)
			en.Reason = reason
			en.Why = cmp.Or(en.Why, offer.WhyClosed(reason))
		})) {
			e.forgive(id)
			e.cfg.Log.Info("lease closed on the chain", "order", id.String(), "reason", reason.String())
		}
	case v.bid.GetState() == marketv1beta5.Bid_lost:
		e.over(id, gone, "the tenant chose another provider")
	case v.bid.GetState() == marketv1beta5.Bid_closed:
		e.over(id, bidClosed, "the bid was closed")
	case v.bid.GetState() == marketv1beta5.Bid_open:
		if en.State == Reserved {
			e.opened(id, v.bid)
		}
	case v.bid == nil && en.State != Reserved:
		e.missing(id, en, v)
	case v.bid == nil && en.Tx == nil && v.order.GetState() != marketv1beta5.Order_open:
		e.over(id, gone, "the order closed before the bid left")
	}
}

// missing deals with a bid or lease that the chain has had and does not know: it
// was begun anew, or the node is of another. Chains forget nothing, but a node
// may be behind: only one that is well past the bid's time is believed.
func (e *engine) missing(id akash.OrderID, en *entry, v view) {
	if en.State == Ended {
		return
	}
	at, ev, patience := en.OpenedAt, bidClosed, forgetBid
	if en.State.live() {
		at, ev, patience = en.WonAt, leaseClosed, forgetLease
	}
	switch since, known := e.absent[id]; {
	case v.status.Time.Before(at.Add(forgetBid)):
	case !known:
		e.absent[id] = time.Now()
		e.cfg.Log.Warn("chain does not know a bid or lease of the box", "order", id.String(), "patience", patience)
	case time.Since(since) >= patience:
		e.over(id, ev, "the chain does not know it any more")
	}
}

// How long a node must not know what it knew before that is believed. A tenant's
// data goes with its lease, and the node may be the wrong one.
const (
	forgetBid   = 10 * time.Minute
	forgetLease = 24 * time.Hour
)

// over ends an entry of which nothing is left on the chain.
func (e *engine) over(id akash.OrderID, ev Event, why string) {
	if e.must(id, e.book.move(id, ev, func(en *entry) { en.Why = cmp.Or(en.Why, why) })) {
		e.forgive(id)
		delete(e.absent, id)
		e.surveySoon()
	}
}

// opened notes that the bid is in a block.
func (e *engine) opened(id akash.OrderID, bid *marketv1beta5.Bid) {
	if e.must(id, e.book.move(id, placed, func(en *entry) {
		en.Tx, en.Intent, en.OpenedAt = nil, "", e.chainTime
		if bid != nil { // the chain's word counts: it may be an older bid of ours
			en.terms(bid.GetPrice(), bid.GetReclamationWindow())
		}
	})) {
		e.forgive(id)
	}
}

// lease copies what the chain says about a running or closed lease.
func (e *engine) lease(en *entry, v view) {
	l := v.lease.GetLease()
	en.terms(l.GetPrice(), l.GetReclamation().GetWindow())
	if d := l.GetReclamation().GetDeadline(); d > 0 && l.GetState() == marketv1.Lease_reclaiming {
		en.Deadline = time.Unix(d, 0).UTC()
	}
	if c := v.lease.GetEscrowPayment().GetState().GetWithdrawn(); c.GetDenom() != "" {
		if n, ok := offer.AmountOf(c.GetAmount()); ok && n >= en.Paid.Amount {
			en.Paid = offer.Coin{Denom: c.GetDenom(), Amount: n}
		}
	}
	if h := v.deployment.GetDeployment().GetHash(); len(h) > 0 {
		en.Hash = h
	}
}

// runsShort reports that the tenant's account pays for less than an hour.
func (e *engine) runsShort(en *entry, v view) bool {
	return offer.PaidBlocks(v.deployment.GetEscrowAccount().GetState(), en.price(), v.status.Height) < e.blocks*60/offer.MonthMinutes
}

// adopt takes up an order without an entry: one to consider, or a bid or lease
// of ours that the journal has lost. False: that could not be written.
func (e *engine) adopt(id akash.OrderID, v view) bool {
	if v.bid == nil {
		if v.order != nil {
			e.consider(v.order)
		}
		return true
	}
	var ev Event
	switch {
	case runs(v.lease):
		ev = won
	case v.bid.GetState() == marketv1beta5.Bid_open:
		ev = placed
	default:
		return true
	}
	spec := v.order.GetSpec()
	raw, err := proto.Marshal(spec)
	if err != nil || len(raw) > offer.MaxSpec {
		raw = nil
	}
	room, err := offer.RoomOf(spec, e.cfg.Capacity().GPUs, e.cfg.Overhead)
	if err != nil {
		e.cfg.Log.Warn("bid of the box is for an order it does not understand", "order", id.String(), "err", err)
	}
	en := entry{Spec: raw, Room: room, OpenedAt: e.chainTime}
	if en.terms(v.bid.GetPrice(), v.bid.GetReclamationWindow()); ev == won {
		e.lease(&en, v)
		en.WonAt, en.DrawnAt = e.chainTime, e.chainTime
		en.Manifest = true // it may have come before: no lease ends because a journal was lost
	}
	crowded := en.Room.Lack(e.book.ledger.Used(), e.cfg.Capacity()) != ""
	if !e.must(id, e.book.add(id, ev, en, e.cfg.Capacity())) {
		return false
	}
	e.cfg.Log.Warn("bid of the box was not in the journal and is taken up", "order", id.String(), "state", string(e.book.entries[id].State))
	if crowded && ev == placed {
		e.must(id, e.book.move(id, askWithdraw, func(en *entry) { en.Why = "the box has no room for it" }))
	}
	return true
}

// surveySoon has open orders considered again, now that something is free.
func (e *engine) surveySoon() {
	if soon := time.Now().Add(surveyPause); soon.Before(e.surveyAt) {
		e.surveyAt = soon
	}
}

// surveyPause is the least time between two surveys.
const surveyPause = 10 * time.Second
