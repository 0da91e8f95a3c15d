package bidding

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/client"
)

func (c *fakeChain) set(change func(*fakeChain)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

// leased brings a box to a lease.
func leased(t *testing.T, chain *fakeChain, p *Provider) akash.LeaseID {
	t.Helper()
	seconds(chain, 5)
	id := chain.order(500, 512, 1000)
	seconds(chain, 10)
	if !chain.accept(id) {
		t.Fatalf("there is no bid: %+v", p.Status())
	}
	seconds(chain, 10)
	return akash.LeaseID{OrderID: id, Provider: box}
}

// What the journal has lost must be back before anything is decided with it: a
// full box would bid, and what belongs to no lease would be swept away.
func TestNothingIsDecidedBeforeLostLeasesAreTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain, secrets := quietChain(), &fakeSecrets{}
		_, _, stop := live(t, chain, journal.NewMemory(), secrets, nil)
		seconds(chain, 5)
		full := chain.order(2000, 512, 10_000)
		seconds(chain, 10)
		chain.accept(full)
		seconds(chain, 10)
		stop()
		other := chain.order(500, 512, 1000)
		chain.set(func(c *fakeChain) { c.mute = true })
		p, _, stop := live(t, chain, journal.NewMemory(), secrets, nil)
		seconds(chain, 60)
		if s := p.Status(); s.Surveyed || s.Reserved.CPU != 0 || !strings.Contains(s.Unready, "taken up") {
			t.Errorf("before the lease is taken up: %+v", s)
		}
		chain.set(func(c *fakeChain) { c.mute = false })
		seconds(chain, 200)
		if s := p.Status(); !s.Surveyed || s.Leased.CPU != 2000 || s.Reserved.CPU != 0 || stateOf(p, other) != "" {
			t.Errorf("after it was taken up: %+v", s)
		}
		// Its manifest may have come before: the lease does not end for want of one.
		seconds(chain, 900)
		if got := stateOf(p, full); got != Leased || len(chain.closed) != 0 {
			t.Errorf("the lease taken up is %s", got)
		}
		stop()
	})
}

func TestALeaseDoesNotEndForAManifestThatWasNotNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		p, _, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, func(c *Config) {
			c.HasManifest = func(akash.LeaseID) bool { return true }
		})
		id := leased(t, chain, p)
		seconds(chain, 900)
		if l, _ := p.Lease(id); l.State != Leased || !l.Manifest {
			t.Errorf("lease = %+v", l)
		}
		stop()
	})
}

// fullJournal is one on a disk that is full from time to time.
type fullJournal struct {
	*journal.Journal
	full atomic.Bool
}

func (j *fullJournal) Put(key string, v any) error {
	if j.full.Load() {
		return errJournal
	}
	return j.Journal.Put(key, v)
}

func TestATenantsTimeBeginsAgainAfterTheJournalFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain, j := quietChain(), &fullJournal{Journal: journal.NewMemory()}
		p, _, stop := live(t, chain, nil, &fakeSecrets{}, func(c *Config) { c.Journal = j })
		id := leased(t, chain, p)
		seconds(chain, 200)
		j.full.Store(true)
		if err := p.ManifestReceived(t.Context(), id); !errors.Is(err, errJournal) {
			t.Errorf("ManifestReceived = %v", err)
		}
		seconds(chain, 600)
		j.full.Store(false)
		seconds(chain, 250)
		if got := stateOf(p, id.OrderID); got != Leased {
			t.Errorf("four minutes after the journal works again the lease is %s", got)
		}
		if err := p.ManifestReceived(t.Context(), id); err != nil {
			t.Error(err)
		}
		seconds(chain, 600)
		if got := stateOf(p, id.OrderID); got != Leased {
			t.Errorf("with its manifest the lease is %s", got)
		}
		stop()
	})
}

func TestAnUnstableLeaseHasItsNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		p, work, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, nil)
		id := leased(t, chain, p)
		if err := p.ManifestReceived(t.Context(), id); err != nil {
			t.Error(err)
		}
		if err := p.Close(t.Context(), id, marketv1.LeaseClosedReason_lease_closed_reason_unstable, "its image cannot be fetched"); err != nil {
			t.Error(err)
		}
		seconds(chain, 3500)
		state := chain.leases[id].GetLease().GetState()
		if l, ok := p.Lease(id); !ok || l.State != Closing || l.Deadline.IsZero() || state != marketv1.Lease_reclaiming || !work.running[id] {
			t.Errorf("during the notice: %+v, on the chain %s", l, state)
		}
		seconds(chain, 200)
		if got := itemIn(p, id.OrderID); got.State != Settled || got.Why != "its image cannot be fetched" || work.running[id] {
			t.Errorf("after the notice: %+v", got)
		}
		stop()
	})
}

func TestAChainBegunAnewLeavesNothingBehind(t *testing.T) {
	for _, tc := range []struct {
		name   string
		blocks int  // that the new chain has when the box meets it
		fails  bool // the box knows at once
	}{
		{"met while it is lower than the old one was", 1, true},
		{"met when it is higher", 400, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				chain, j, secrets := quietChain(), journal.NewMemory(), &fakeSecrets{}
				change := func(c *Config) { c.BidTimeout = 24 * time.Hour }
				p, _, stop := live(t, chain, j, secrets, change)
				id := leased(t, chain, p)
				if err := p.ManifestReceived(t.Context(), id); err != nil {
					t.Error(err)
				}
				open := chain.order(500, 512, 1000)
				seconds(chain, 150)
				if got := stateOf(p, open); got != Open {
					t.Fatalf("the second order is %s", got)
				}
				stop()
				// A transaction and a registration of the old chain wait for their fate.
				waits := client.Signed{Hash: client.Hash{1}, Height: 200, TimeoutHeight: 205}
				if err := j.Put(keyRegistration, waits); err != nil {
					t.Fatal(err)
				}
				if err := p.engine.book.change(open, func(en *entry) error { en.Tx, en.Intent = &waits, intentClose; return nil }); err != nil {
					t.Fatal(err)
				}
				chain.wipe()
				chain.block(tc.blocks)
				chain.pass(time.Hour)
				if tc.fails {
					p, err := New(Config{
						Chain: chain, Signer: boxKey, Journal: j, Secrets: secrets, Leases: newWorkload(), HostURI: "https://box.example.invalid:8443", Hosts: []string{"box.example.invalid"},
						Attributes: func() []Attribute { return nil }, Capacity: func() offer.Room { return modelCapacity }, Policy: offer.DefaultPolicy(),
					})
					if err != nil {
						t.Fatal(err)
					}
					if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "begun anew") {
						t.Errorf("Run = %v", err)
					}
					if there, _ := j.Get(keyRegistration, &client.Signed{}); there || p.engine.book.entries[open].Tx != nil {
						t.Error("transactions of the old chain are still waited for")
					}
				}
				p, _, stop = live(t, chain, j, secrets, change)
				seconds(chain, 300)
				if s := p.Status(); !s.Registered || stateOf(p, open) != Open || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "does not know 2") {
					t.Errorf("on the new chain: %+v", s)
				}
				seconds(chain, 700)
				if a, b := stateOf(p, open), stateOf(p, id.OrderID); a != Withdrawn || b != Leased {
					t.Errorf("after ten minutes the orders are %s and %s", a, b)
				}
				err := p.call(t.Context(), func() error {
					p.engine.absent[id.OrderID] = p.engine.absent[id.OrderID].Add(-24 * time.Hour)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				seconds(chain, 300)
				if s := p.Status(); stateOf(p, id.OrderID) != Settled || len(s.Problems) != 0 || s.Leased.CPU != 0 || s.Reserved.CPU != 0 {
					t.Errorf("after a day: %+v", s)
				}
				next := chain.order(500, 512, 1000)
				seconds(chain, 10)
				if got := stateOf(p, next); got != Open {
					t.Errorf("an order of the new chain is %q", got)
				}
				stop()
			})
		})
	}
}

// A node that is behind does not know the newest bids; nothing ends for that.
func TestANodeThatIsBehindEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		p, _, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, nil)
		id := leased(t, chain, p)
		if err := p.ManifestReceived(t.Context(), id); err != nil {
			t.Error(err)
		}
		chain.set(func(c *fakeChain) { // an older state, and it stands still
			clear(c.bids)
			clear(c.leases)
			c.height, c.now = c.height-8, c.now.Add(-8*time.Second)
		})
		time.Sleep(time.Hour)
		if s := p.Status(); stateOf(p, id.OrderID) != Leased || len(s.Problems) != 0 {
			t.Errorf("status = %+v", s)
		}
		stop()
	})
}

// A price that was too low stays with its lease: on a chain of a few blocks, that
// may have come at any pace, there is no bid.
func TestAYoungChainIsMeasuredBeforeTheFirstBid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		chain.wipe()
		order := chain.order(500, 512, 1000)
		p, _, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, nil)
		seconds(chain, 4)
		if s := p.Status(); stateOf(p, order) != "" || s.Blocks != 0 || len(s.WhyNot) != 1 {
			t.Errorf("at the beginning: %+v", s)
		}
		seconds(chain, 30)
		if s := p.Status(); stateOf(p, order) != Open || s.Blocks != 60*offer.MonthMinutes {
			t.Errorf("later: %+v", s)
		}
		stop()
	})
}

// poorFunding fails until it gives.
type poorFunding struct {
	chain *fakeChain
	gives atomic.Bool
	asked atomic.Int64
}

func (f *poorFunding) Ensure(context.Context, account.Address) error {
	f.asked.Add(1)
	if !f.gives.Load() {
		return errDown
	}
	f.chain.set(func(c *fakeChain) { c.balance = 10_000_000 })
	return nil
}

func TestAFaucetThatIsDownForHoursIsAskedWithPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		chain.balance = 0
		funding := &poorFunding{chain: chain}
		p, _, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, func(c *Config) { c.Funding = funding })
		time.Sleep(3 * time.Hour)
		if n := funding.asked.Load(); n < 33 || n > 37 {
			t.Errorf("the faucet was asked %d times in three hours", n)
		}
		if chain.surveys > 3*20+10 {
			t.Errorf("the chain was surveyed %d times in three hours", chain.surveys)
		}
		if s := p.Status(); s.Registered || len(s.Problems) != 2 {
			t.Errorf("without money: %+v", s.Problems)
		}
		funding.gives.Store(true)
		seconds(chain, 400)
		id := chain.order(500, 512, 1000)
		seconds(chain, 10)
		if got := stateOf(p, id); got != Open || len(p.Status().Problems) != 0 {
			t.Errorf("with money the order is %q: %v", got, p.Status().Problems)
		}
		stop()
	})
}

func TestAFeeGranterLeavesTheBoxItsLastCoins(t *testing.T) {
	for granter, want := range map[account.Address]int64{"": 1_000_000, tenant: 0} {
		cfg := Config{
			Chain: quietChain(), Signer: boxKey, Journal: journal.NewMemory(), Secrets: &fakeSecrets{}, Leases: newWorkload(), HostURI: "https://box:8443",
			Hosts: []string{"box"}, Attributes: func() []Attribute { return nil }, Capacity: func() offer.Room { return offer.Room{} }, Policy: offer.DefaultPolicy(), FeeGranter: granter,
		}
		if err := cfg.check(); err != nil || cfg.FeeReserve != want {
			t.Errorf("granter %q: reserve %d, %v", granter, cfg.FeeReserve, err)
		}
	}
}

// Memory that is lent between decision and entry is no fault of the journal.
func TestMemoryLentMeanwhileIsNoFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		var p *Provider
		lend := false
		p, _, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, func(c *Config) {
			c.Ready = func() string { // it is asked after the ledger was read
				if lend {
					lend = !p.Lend(lease.Key("l"), 4<<30)
				}
				return ""
			}
		})
		seconds(chain, 5)
		order := chain.order(500, 512, 1000)
		err := p.call(t.Context(), func() error { // on the engine's goroutine, as a look at the order
			lend = true
			o, err := chain.Order(t.Context(), order)
			p.engine.consider(o)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := p.Status(); len(s.Problems) != 0 || s.Unready != "" || len(s.WhyNot) != 1 || s.WhyNot[0].Why != offer.WhyRoom {
			t.Errorf("status = %+v", s)
		}
		if !p.Lend(lease.Key("l"), 0) {
			t.Error("memory is not taken back")
		}
		seconds(chain, 200)
		if got := stateOf(p, order); got != Open {
			t.Errorf("with the memory given back the order is %q", got)
		}
		stop()
	})
}

// Ten thousand orders may not stand in the way of one lease.
func TestAFloodOfOrdersDoesNotDelayTheBoxsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := newFakeChain(rand.New(rand.NewPCG(1, 1)))
		cfg := Config{
			Chain: chain, Signer: boxKey, Journal: journal.NewMemory(), Secrets: &fakeSecrets{}, Leases: newWorkload(), HostURI: "https://box:8443",
			Hosts: []string{"box"}, Attributes: func() []Attribute { return nil }, Capacity: func() offer.Room { return modelCapacity }, Policy: offer.DefaultPolicy(),
		}
		if err := cfg.check(); err != nil {
			t.Fatal(err)
		}
		b, _, err := openBook(cfg.Journal, "croft-test", box)
		if err != nil {
			t.Fatal(err)
		}
		e := newEngine(&cfg, b)
		e.surveyed, e.surveyAt = true, time.Now().Add(time.Hour)
		order := func(n uint64) akash.OrderID {
			return akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: tenant, DSeq: n}, GSeq: 1}, OSeq: 1}
		}
		for n := range uint64(10_000) {
			e.mark(order(n + 1))
		}
		if len(e.dirty) != maxDirty || e.surveyAt.After(time.Now().Add(surveyPause)) {
			t.Errorf("%d orders wait, the next survey is at %s", len(e.dirty), e.surveyAt)
		}
		if got := len(e.due(time.Now())); got != maxTasks {
			t.Errorf("%d tasks at once", got)
		}
		mine := order(20_000)
		if err := b.add(mine, won, entry{}, modelCapacity); err != nil {
			t.Fatal(err)
		}
		tasks := e.due(time.Now())
		if i := slices.IndexFunc(tasks, func(x task) bool { return x.id == mine && x.name == "announce" }); i != 0 {
			t.Errorf("the lease is told as number %d of %d", i, len(tasks))
		}
	})
}

// stuckWorkload is one whose runtime is wedged: the ends of leases hang until they
// are cut off.
type stuckWorkload struct {
	*fakeWorkload
	wedged atomic.Bool
	asked  atomic.Int64
}

func (w *stuckWorkload) LeaseClosed(ctx context.Context, id akash.LeaseID, reason marketv1.LeaseClosedReason) error {
	if w.wedged.Load() {
		w.asked.Add(1)
		<-ctx.Done()
		return ctx.Err()
	}
	return w.fakeWorkload.LeaseClosed(ctx, id, reason)
}

func TestEndsOfLeasesThatHangHoldUpNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		work := &stuckWorkload{fakeWorkload: newWorkload()}
		work.wedged.Store(true)
		p, _, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, func(c *Config) {
			c.Leases = work
			c.Capacity = func() offer.Room { return offer.Room{CPU: 64_000, Memory: 64 << 30, Storage: 640 << 30, Ports: 64} }
		})
		defer stop()
		var over []akash.LeaseID
		for range maxTasks + 1 {
			over = append(over, leased(t, chain, p))
		}
		for _, id := range over {
			chain.end(id.OrderID, marketv1.Lease_closed, marketv1.LeaseClosedReason_lease_closed_owner)
		}
		seconds(chain, 5)
		if got := work.asked.Load(); got != maxTasks+1 {
			t.Fatalf("%d ends were told, want %d", got, maxTasks+1)
		}
		id := chain.order(500, 512, 1000)
		seconds(chain, 10)
		if got := stateOf(p, id); got != Open {
			t.Errorf("while ends hang an order is %q", got)
		}
		seconds(chain, 6*60)
		if got := stateOf(p, id); got != Withdrawn {
			t.Errorf("while ends hang a bid that nobody took is %q", got)
		}
		if len(p.Status().Problems) == 0 || work.asked.Load() <= maxTasks+1 {
			t.Errorf("ends that hang are not cut off: %v, told %d times", p.Status().Problems, work.asked.Load())
		}
		work.wedged.Store(false)
		seconds(chain, 5*60)
		for _, lease := range over {
			if got := stateOf(p, lease.OrderID); got != Settled {
				t.Errorf("lease %s is %q in the end", lease, got)
			}
		}
	})
}

func TestTheCertificateIsWrittenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain, secrets := quietChain(), &fakeSecrets{}
		_, _, stop := live(t, chain, journal.NewMemory(), secrets, nil)
		seconds(chain, 5)
		before := secrets.writes
		seconds(chain, 600)
		if before != 2 || secrets.writes != before {
			t.Errorf("%d writes at first, %d at last", before, secrets.writes)
		}
		stop()
	})
}

func TestARecordChangedByOthersIsPutRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		_, _, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, nil)
		seconds(chain, 5)
		chain.set(func(c *fakeChain) { c.provider.HostUri, c.provider.Attributes = "https://elsewhere:1", nil })
		seconds(chain, 200)
		if got := chain.provider; got.GetHostUri() != "https://box.example.invalid:8443" || len(got.GetAttributes()) != 1 {
			t.Errorf("record = %v", got)
		}
		if n := chain.executed["*providerv1beta4.MsgUpdateProvider"]; n != 1 {
			t.Errorf("%d updates", n)
		}
		stop()
	})
}

func TestARegistrationOfAnotherAccountIsForgotten(t *testing.T) {
	j := journal.NewMemory()
	if _, _, err := openBook(j, "one", box); err != nil {
		t.Fatal(err)
	}
	if err := j.Put(keyRegistration, client.Signed{Height: 7}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openBook(j, "two", box); err != nil {
		t.Fatal(err)
	}
	if there, err := j.Get(keyRegistration, &client.Signed{}); there || err != nil {
		t.Errorf("registration of the other chain: %v, %v", there, err)
	}
}
