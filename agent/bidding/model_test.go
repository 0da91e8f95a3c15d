package bidding

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/client"
)

// world is one box, its chain and its workload, in one goroutine: calls and
// events happen in the order that the random numbers say.
type world struct {
	t       *testing.T
	rng     *rand.Rand
	chain   *fakeChain
	journal *faultyJournal
	work    *fakeWorkload
	cfg     Config
	e       *engine
	absorbs []func() // finished tasks that the engine has not heard of
	blocks  int      // of chain.blocks, by height, that the engine was given
	asked   map[akash.LeaseID]bool
	orders  []akash.OrderID
	steps   map[string]int
	log     []string
}

var modelCapacity = offer.Room{CPU: 2000, Memory: 4 << 30, Storage: 20 << 30}

func newWorld(t *testing.T, seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 4))
	chain := newFakeChain(rng)
	chain.provider = nil
	w := &world{
		t: t, rng: rng, chain: chain, journal: &faultyJournal{Journal: journal.NewMemory(), chain: chain}, work: newWorkload(),
		asked: map[akash.LeaseID]bool{}, steps: map[string]int{},
	}
	w.work.fail = func() bool { return chain.chance(5) }
	w.cfg = Config{
		Chain: chain, Signer: boxKey, Journal: w.journal, Secrets: &fakeSecrets{}, Leases: w.work, HostURI: "https://box.example.invalid:8443",
		Hosts: []string{"box.example.invalid"}, Attributes: func() []Attribute { return nil }, Capacity: func() offer.Room { return modelCapacity },
		Policy: offer.DefaultPolicy(), BlocksPerMonth: offer.UsualBlocks, MaxOrders: 8,
		Reachable: func() bool { return !chain.chance(3) }, Ready: func() string {
			if chain.chance(20) {
				return "the disk is ill"
			}
			return ""
		},
	}
	if err := w.cfg.check(); err != nil {
		t.Fatal(err)
	}
	chain.written = func(h client.Hash) bool {
		for _, key := range w.journal.Keys(keyEntry) {
			var en entry
			if _, err := w.journal.Get(key, &en); err == nil && en.Tx != nil && en.Tx.Hash == h {
				return true
			}
		}
		return false
	}
	w.restart()
	return w
}

// guarded runs f; when the power is cut in it, the box starts again.
func (w *world) guarded(f func()) {
	defer func() {
		switch r := recover(); r.(type) {
		case nil:
		case crash:
			w.steps["crash"]++
			w.restart()
		default:
			panic(r)
		}
	}()
	f()
}

// restart is a new life with the old journal.
func (w *world) restart() {
	crashy, faulty := w.chain.crashy, w.chain.faulty
	w.chain.crashy, w.chain.faulty = false, false
	defer func() { w.chain.crashy, w.chain.faulty = crashy, faulty }()
	b, odd, err := openBook(w.journal, "croft-test", box)
	if err != nil || len(odd) > 0 {
		w.fail("open journal: %v %v", err, odd)
	}
	w.e = newEngine(&w.cfg, b)
	w.e.call = func(_ context.Context, f func() error) error { return f() }
	w.e.ensure = func(context.Context, found) (registered, error) {
		w.chain.mu.Lock()
		defer w.chain.mu.Unlock()
		if w.chain.provider == nil {
			if err := w.chain.apply(registration(), true); err != nil {
				return registered{}, err
			}
		}
		return registered{attributes: []*attributesv1.Attribute{}}, nil
	}
	w.absorbs, w.blocks = nil, 0
	if b.point.Height > 0 {
		w.blocks = int(b.point.Height)
	}
	w.work.running = map[akash.LeaseID]bool{} // each life hears of all leases
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for id, en := range w.e.book.entries {
		w.t.Logf("entry %s: %s tx=%v intent=%s dirty=%v busy=%v retry=%+v", id, en.State, en.Tx != nil, en.Intent, w.e.dirty[id], w.e.busy[id], w.e.retry[id])
	}
	w.t.Logf("problems: %v, surveyed %v at %v, now %v", w.e.problem, w.e.surveyed, w.e.surveyAt, time.Now())
	w.t.Fatalf(format, args...)
}

// deliver hands the engine the blocks it has not seen: some twice, some swapped,
// some lost, for which a survey comes as after a gap.
func (w *world) deliver() {
	for _, b := range slices.Clone(w.chain.blocks) {
		if int(b.Height) <= w.blocks {
			continue
		}
		w.blocks = int(b.Height)
		events := slices.Clone(b.Events)
		if w.chain.chance(3) {
			w.rng.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
		}
		if w.chain.chance(4) {
			events = append(events, events...)
		}
		b.Events = events
		if w.chain.chance(10) {
			w.e.surveyAt = time.Time{}
			continue
		}
		w.e.block(b)
	}
}

// work does what is due; what it learned is told at once, or later, or after the
// next crash never.
func (w *world) due() int {
	tasks := w.e.due(time.Now())
	w.rng.Shuffle(len(tasks), func(i, j int) { tasks[i], tasks[j] = tasks[j], tasks[i] })
	life := w.e
	for _, t := range tasks {
		if w.e != life {
			break // it crashed
		}
		w.steps[t.name]++
		absorb := t.run(w.t.Context())
		if w.chain.chance(3) {
			w.absorbs = append(w.absorbs, absorb)
		} else {
			absorb()
		}
		w.check()
	}
	return len(tasks)
}

func (w *world) absorb() {
	if len(w.absorbs) == 0 {
		return
	}
	i := w.rng.IntN(len(w.absorbs))
	f := w.absorbs[i]
	w.absorbs = slices.Delete(w.absorbs, i, i+1)
	f()
}

func (w *world) someOrder() (akash.OrderID, bool) {
	if len(w.orders) == 0 {
		return akash.OrderID{}, false
	}
	return w.orders[w.rng.IntN(len(w.orders))], true
}

func (w *world) step() {
	id, any := w.someOrder()
	lease := akash.LeaseID{OrderID: id, Provider: box}
	en := w.e.book.entries[id]
	switch op := w.rng.IntN(20); {
	case op == 0 && len(w.orders) < 8:
		w.orders = append(w.orders, w.chain.order(int64(1+w.rng.IntN(12))*100, int64(1+w.rng.IntN(20))*100, 1+int64(w.rng.IntN(2))*1_000_000))
	case (op == 1 || op >= 17) && any:
		w.chain.accept(id)
	case op == 2 && any && w.rng.IntN(4) == 0:
		w.chain.rivalWins(id)
	case op == 3 && any && w.rng.IntN(4) == 0:
		w.chain.end(id, marketv1.Lease_closed, marketv1.LeaseClosedReason_lease_closed_owner)
	case op == 4 && any && w.rng.IntN(8) == 0:
		w.chain.end(id, marketv1.Lease_insufficient_funds, marketv1.LeaseClosedReason_lease_closed_reason_insufficient_funds)
	case op == 5 || op == 6:
		w.chain.block(1)
		w.deliver()
	case op >= 7 && op <= 10:
		w.due()
	case op == 11:
		w.absorb()
	case op == 12:
		time.Sleep(time.Duration(w.rng.IntN(20)) * time.Second)
	case op == 13 && w.rng.IntN(4) == 0:
		d := time.Duration(w.rng.IntN(20)) * time.Minute
		time.Sleep(d)
		if w.rng.IntN(2) == 0 {
			w.chain.pass(d)
		}
	case op == 14 && w.rng.IntN(6) == 0:
		w.chain.down = !w.chain.down
	case op == 15 && en != nil && en.State.live():
		switch w.rng.IntN(4) {
		case 0:
			w.asked[lease] = true
			w.e.must(id, w.e.book.move(id, askClose, func(en *entry) { en.Reason = marketv1.LeaseClosedReason_lease_closed_reason_decommission }))
		default:
			w.e.must(id, w.e.book.change(id, func(en *entry) error { en.Manifest = true; return nil }))
		}
	case op == 16 && w.rng.IntN(10) == 0:
		if w.journal.Put(keyWishes, wishes{Drain: !w.e.book.wishes.Drain}) == nil {
			w.e.book.wishes.Drain = !w.e.book.wishes.Drain
		}
	}
	w.check()
}

// check is what holds at every moment.
func (w *world) check() {
	w.t.Helper()
	if w.chain.violation != "" {
		w.fail("%s", w.chain.violation)
	}
	used := w.e.book.ledger.Used()
	if lack := used.Lack(offer.Room{}, modelCapacity); lack != "" {
		w.fail("ledger: %s", lack)
	}
	var sum offer.Room
	for _, en := range w.e.book.entries {
		if !en.State.Final() {
			sum = sum.Plus(en.Room)
		}
	}
	if used.CPU != sum.CPU || used.Memory != sum.Memory || used.Storage != sum.Storage {
		w.fail("the ledger has %+v, the entries have %+v", used, sum)
	}
	var real offer.Room
	for id, b := range w.chain.bids {
		if id.Provider == box && (b.GetState() == marketv1beta5.Bid_open || b.GetState() == marketv1beta5.Bid_active) {
			room, err := offer.RoomOf(w.chain.orders[id.OrderID].GetSpec(), nil, w.cfg.Overhead)
			if err != nil {
				w.fail("%v", err)
			}
			real = real.Plus(room)
		}
	}
	if lack := real.Lack(offer.Room{}, modelCapacity); lack != "" {
		w.fail("bids and leases on the chain: %s", lack)
	}
	for id, n := range w.chain.bidCount {
		if n > 1 {
			w.fail("order %s has %d bids", id, n)
		}
	}
	for id, reason := range w.chain.closed {
		timeout := reason == marketv1.LeaseClosedReason_lease_closed_reason_manifest_timeout
		if en := w.e.book.entries[id.OrderID]; timeout && en != nil && en.Manifest && w.asked[id] {
			timeout = false
		}
		if !w.asked[id] && !timeout {
			w.fail("lease %s was closed for %s, and nobody asked", id, reason)
		}
	}
}

// rest ends all faults and waits until nothing more happens.
func (w *world) rest() {
	w.chain.crashy, w.chain.faulty, w.chain.down = false, false, false
	for round := 0; ; round++ {
		for len(w.absorbs) > 0 {
			w.absorb()
		}
		w.chain.block(1)
		w.deliver()
		n := w.due()
		patient := false
		for _, p := range w.e.retry {
			patient = patient || p.until.After(time.Now())
		}
		if n == 0 && w.e.surveyed && !patient && len(w.e.dirty) == 0 && round > 12 {
			break
		}
		if round > 300 {
			w.fail("it never comes to rest")
		}
		time.Sleep(7 * time.Second)
	}
	w.check()
	leases := map[akash.LeaseID]bool{}
	for id, l := range w.chain.leases {
		if runs(l) {
			leases[id] = true
		}
	}
	for id := range leases {
		if en := w.e.book.entries[id.OrderID]; en == nil || !en.State.live() {
			w.fail("lease %s runs on the chain and is not in the journal", id)
		}
	}
	if !maps.Equal(leases, w.work.running) {
		w.fail("the workload runs %v, leased are %v", w.work.running, leases)
	}
	for id, b := range w.chain.bids {
		if en := w.e.book.entries[id.OrderID]; b.GetState() == marketv1beta5.Bid_open && (en == nil || en.State != Open) {
			w.fail("bid %s is open on the chain and not in the journal", id)
		}
	}
	earned := int64(0)
	for id, en := range w.e.book.entries {
		bid := akash.BidID{OrderID: id, Provider: box}
		switch {
		case en.State.live() && !leases[bid.Lease()], en.State == Open && w.chain.bids[bid].GetState() != marketv1beta5.Bid_open,
			!en.State.Final() && !en.State.live() && en.State != Open:
			w.fail("order %s rests in %s", id, en.State)
		case en.Tx != nil:
			w.fail("order %s rests with a transaction", id)
		}
		earned += en.Paid.Amount
	}
	for id, l := range w.chain.leases {
		paid, _ := strconv.ParseInt(l.GetEscrowPayment().GetState().GetWithdrawn().GetAmount(), 10, 64)
		if en := w.e.book.entries[id.OrderID]; en != nil && en.State == Settled && en.Paid.Amount != paid {
			w.fail("lease %s is settled with %d, the chain paid %d", id, en.Paid.Amount, paid)
		}
	}
}

// interleave plays n random histories.
func interleave(t *testing.T, n int) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MODEL_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("first seed is %d; MODEL_SEED repeats it", seed)
	steps := map[string]int{}
	states := map[State]int{}
	executed := map[string]int{}
	var mu sync.Mutex
	history := func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, seed)
			w.chain.faulty, w.chain.crashy, w.chain.rare = w.rng.IntN(8) > 0, w.rng.IntN(3) > 0, []int{40, 100, 400}[w.rng.IntN(3)]
			for range 60 + w.rng.IntN(120) {
				w.guarded(w.step)
			}
			w.rest()
			mu.Lock()
			defer mu.Unlock()
			for name, c := range w.steps {
				steps[name] += c
			}
			for name, c := range w.chain.executed {
				executed[name] += c
			}
			for _, en := range w.e.book.entries {
				states[en.State]++
			}
		})
	}
	workers := runtime.GOMAXPROCS(0)
	if !t.Run("histories", func(t *testing.T) {
		for first := range workers {
			t.Run(fmt.Sprintf("worker %d", first), func(t *testing.T) {
				t.Parallel()
				for i := first; i < n; i += workers {
					if !t.Run(fmt.Sprintf("seed %d", seed+uint64(i)), func(t *testing.T) { history(t, seed+uint64(i)) }) {
						return
					}
				}
			})
		}
	}) {
		return
	}
	t.Logf("tasks %v, executed %v, final states %v", steps, executed, states)
	for _, s := range []State{Open, Leased, Settled, Lost, Withdrawn} {
		if states[s] == 0 {
			t.Errorf("no history ended with an order that is %s: the model does not reach it", s)
		}
	}
	for _, name := range []string{"crash", "resume", string(intentReclaim), string(intentClose)} {
		if steps[name] == 0 {
			t.Errorf("no history had a %s", name)
		}
	}
}

func TestRandomHistoriesKeepTheLedgerAndEveryLease(t *testing.T) { interleave(t, 1000) }
