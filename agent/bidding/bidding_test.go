package bidding

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
)

func TestWhatIsNotInTheTableIsRefused(t *testing.T) {
	states := slices.Collect(maps.Keys(law))
	for _, events := range law {
		for _, to := range events {
			if !slices.Contains(states, to) {
				states = append(states, to)
			}
		}
	}
	events := []Event{reserve, placed, refuse, gone, bidClosed, askWithdraw, won, askClose, leaseClosed, settle}
	for _, s := range states {
		moves := 0
		for _, ev := range events {
			to, err := s.Next(ev)
			if err != nil {
				if _, ok := errors.AsType[*MoveError](err); !ok || to != s {
					t.Errorf("%s by %s: %s, %v", s, ev, to, err)
				}
				continue
			}
			moves++
		}
		if s.Final() != (moves == 0) {
			t.Errorf("%s has %d moves, final is %v", s, moves, s.Final())
		}
	}
	if len(states) != 11 {
		t.Errorf("%d states", len(states))
	}
}

func TestTheKeyIsMadeOnceAndNeverReplaced(t *testing.T) {
	dir := Folder(filepath.Join(t.TempDir(), "account"))
	first, err := OpenKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(string(dir), secretKey)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	if again, err := OpenKey(dir); err != nil || again.Address() != first.Address() {
		t.Errorf("second start: %v, %v", again, err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKey(dir); croft.KindOf(err) != croft.KindInvalid || strings.Contains(err.Error(), "damaged") {
		t.Errorf("damaged key: %v", err)
	}
}

func TestFaucet(t *testing.T) {
	status := http.StatusOK
	asked := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Address string }
		_ = json.NewDecoder(r.Body).Decode(&in)
		asked = r.Method + " " + in.Address
		w.WriteHeader(status)
	}))
	defer s.Close()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := (Faucet{URL: u}).Ensure(t.Context(), box); err != nil || asked != "POST "+string(box) {
		t.Errorf("Ensure = %v, asked %q", err, asked)
	}
	status = http.StatusTooManyRequests
	if err := (Faucet{URL: u}).Ensure(t.Context(), box); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("too early: %v", err)
	}
	status = http.StatusServiceUnavailable
	if err := (Faucet{URL: u}).Ensure(t.Context(), box); err == nil {
		t.Error("a faucet that fails is no success")
	}
	if err := (Faucet{}).Ensure(t.Context(), box); croft.KindOf(err) != croft.KindUsage {
		t.Errorf("no URL: %v", err)
	}
}

// live starts a box against a chain in memory.
func live(t *testing.T, chain *fakeChain, j *journal.Journal, secrets Secrets, change func(*Config)) (*Provider, *fakeWorkload, func()) {
	t.Helper()
	work := newWorkload()
	cfg := Config{
		Chain: chain, Signer: boxKey, Journal: j, Secrets: secrets, Leases: work, HostURI: "https://box.example.invalid:8443",
		Hosts: []string{"box.example.invalid"}, Attributes: func() []Attribute { return []Attribute{{Key: "region", Value: "eu"}} },
		Capacity: func() offer.Room { return modelCapacity }, Policy: offer.DefaultPolicy(),
	}
	if change != nil {
		change(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return p, work, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}
}

// seconds lets chain and box live on.
func seconds(chain *fakeChain, n int) {
	for range n {
		time.Sleep(time.Second)
		if !chain.isDown() {
			chain.block(1)
		}
		synctest.Wait()
	}
}

func (c *fakeChain) isDown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

func (c *fakeChain) setDown(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

func stateOf(p *Provider, id akash.OrderID) State { return itemIn(p, id).State }

func itemIn(p *Provider, id akash.OrderID) Item {
	for _, i := range p.Status().Items {
		if i.Order == id.String() {
			return i
		}
	}
	return Item{}
}

func quietChain() *fakeChain {
	c := newFakeChain(rand.New(rand.NewPCG(1, 1)))
	c.rare = 1
	return c
}

func TestALeaseOutlivesAnOutageOfAnyLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain, j := quietChain(), journal.NewMemory()
		p, work, stop := live(t, chain, j, &fakeSecrets{}, nil)
		seconds(chain, 5)
		id := chain.order(500, 512, 1000)
		lease := akash.LeaseID{OrderID: id, Provider: box}
		seconds(chain, 10)
		if got := stateOf(p, id); got != Open {
			t.Fatalf("order is %q: %+v", got, p.Status())
		}
		chain.accept(id)
		seconds(chain, 10)
		if l, ok := p.Lease(lease); !ok || l.Group.GetName() != "home" || !work.running[lease] {
			t.Fatalf("lease = %+v, %v", l, ok)
		}
		chain.setDown(true)
		seconds(chain, 3700)
		if got := stateOf(p, id); got != Leased {
			t.Errorf("after an outage of an hour the order is %s", got)
		}
		stop()
		p, work, stop = live(t, chain, j, &fakeSecrets{}, nil)
		if l := p.Leases(); len(l) != 1 {
			t.Errorf("leases at a start without a chain: %v", l)
		}
		seconds(chain, 600)
		chain.setDown(false)
		seconds(chain, 60)
		if got := stateOf(p, id); got != Leased || !work.running[lease] || len(chain.closed) != 0 {
			t.Errorf("after the outage the order is %s, closed are %v", got, chain.closed)
		}
		// The manifest's five minutes began with the second life of chain and box.
		seconds(chain, 360)
		if got := stateOf(p, id); got != Closing || chain.closed[lease] != marketv1.LeaseClosedReason_lease_closed_reason_manifest_timeout {
			t.Errorf("without a manifest the order is %s, reclaimed %v", got, chain.closed)
		}
		chain.pass(time.Hour)
		seconds(chain, 300)
		if got := itemIn(p, id); got.State != Settled || work.running[lease] || got.Earned.Amount == 0 {
			t.Errorf("after the notice: %+v", got)
		}
		stop()
	})
}

func TestTheGatewayKeepsALeaseThatTenantsCannotReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		p, _, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, func(c *Config) { c.Reachable = func() bool { return false } })
		seconds(chain, 5)
		id := chain.order(500, 512, 1000)
		seconds(chain, 10)
		chain.accept(id)
		seconds(chain, 1200)
		if got := stateOf(p, id); got != Leased {
			t.Errorf("the order is %s", got)
		}
		if err := p.Close(t.Context(), akash.LeaseID{OrderID: id, Provider: box}, 0, ""); croft.KindOf(err) != croft.KindUsage {
			t.Errorf("closing for no reason: %v", err)
		}
		stop()
	})
}

func TestAnOpenBidIsTakenBackAndItsRoomIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain := quietChain()
		p, _, stop := live(t, chain, journal.NewMemory(), &fakeSecrets{}, nil)
		seconds(chain, 5)
		big := chain.order(2000, 512, 10_000)
		seconds(chain, 10)
		next := chain.order(2000, 512, 10_000)
		seconds(chain, 10)
		if a, b := stateOf(p, big), stateOf(p, next); a != Open || b != "" {
			t.Fatalf("orders are %q and %q", a, b)
		}
		if s := p.Status(); len(s.WhyNot) != 1 || s.WhyNot[0].Why != offer.WhyRoom || s.Reserved.CPU != 2000 {
			t.Errorf("why not: %+v", s.WhyNot)
		}
		seconds(chain, 340)
		if a, b := stateOf(p, big), stateOf(p, next); a != Withdrawn || b != Open {
			t.Errorf("after the bid's time the orders are %q and %q", a, b)
		}
		if err := p.Drain(t.Context(), true); err != nil {
			t.Error(err)
		}
		seconds(chain, 30)
		if got := stateOf(p, next); got != Withdrawn {
			t.Errorf("draining, the order is %q", got)
		}
		stop()
		if chain.balance != 100_000_000 {
			t.Errorf("deposits are missing: %d", chain.balance)
		}
	})
}

func TestALostJournalIsMadeGoodFromTheChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain, secrets := quietChain(), &fakeSecrets{}
		_, _, stop := live(t, chain, journal.NewMemory(), secrets, nil)
		seconds(chain, 5)
		leased, open := chain.order(500, 512, 1000), chain.order(500, 512, 1000)
		seconds(chain, 10)
		chain.accept(leased)
		seconds(chain, 10)
		stop()
		p, work, stop := live(t, chain, journal.NewMemory(), secrets, nil)
		seconds(chain, 20)
		if a, b := stateOf(p, leased), stateOf(p, open); a != Leased || b != Open || len(work.running) != 1 {
			t.Errorf("orders are %q and %q, running %v", a, b, work.running)
		}
		if s := p.Status(); s.Leased.CPU != 500 || s.Reserved.CPU != 500 || len(s.Problems) != 0 {
			t.Errorf("status = %+v", s)
		}
		if n := chain.executed["*marketv1beta5.MsgCreateBid"]; n != 2 {
			t.Errorf("%d bids", n)
		}
		stop()
	})
}

func TestPrunedBlocksAreReplacedByASurvey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain, j := quietChain(), journal.NewMemory()
		_, _, stop := live(t, chain, j, &fakeSecrets{}, nil)
		seconds(chain, 5)
		id := chain.order(500, 512, 1000)
		seconds(chain, 10)
		stop()
		chain.accept(id)
		chain.block(900) // more than the chain keeps
		p, work, stop := live(t, chain, j, &fakeSecrets{}, nil)
		seconds(chain, 20)
		if got := stateOf(p, id); got != Leased || len(work.running) != 1 {
			t.Errorf("order is %q", got)
		}
		stop()
	})
}

func TestTheCertificateIsRenewedAndTheOldOneRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chain, j, secrets := quietChain(), journal.NewMemory(), &fakeSecrets{}
		p, _, stop := live(t, chain, j, secrets, nil)
		if _, err := p.Certificate(nil); err == nil {
			t.Error("there is a certificate before the first registration")
		}
		seconds(chain, 5)
		first := p.Status().Serial
		c, err := p.Certificate(nil)
		if err != nil || first == "" || c.Leaf.SerialNumber.String() != first {
			t.Fatalf("certificate %q: %v", first, err)
		}
		states := func() string {
			var out []string
			for _, x := range chain.certs {
				out = append(out, x.GetCertificate().GetState().String())
			}
			return strings.Join(out, " ")
		}
		chain.pass(240 * 24 * time.Hour)
		seconds(chain, 200)
		if got := states(); got != "valid" {
			t.Errorf("after 240 days the certificates are %s", got)
		}
		chain.pass(10 * 24 * time.Hour)
		seconds(chain, 200)
		if got := states(); got != "revoked valid" || p.Status().Serial == first {
			t.Errorf("after 250 days the certificates are %s", got)
		}
		stop()
		// The files are lost: a new one replaces what nobody has the key of.
		_, _, stop = live(t, chain, j, &fakeSecrets{}, nil)
		seconds(chain, 10)
		if got := states(); got != "revoked revoked valid" {
			t.Errorf("after the loss of the files the certificates are %s", got)
		}
		stop()
		// Other hosts need another certificate; so does one that somebody revoked.
		secrets = &fakeSecrets{}
		_, _, stop = live(t, chain, j, secrets, func(c *Config) { c.Hosts = []string{"other.example.invalid", "192.0.2.1"} })
		seconds(chain, 10)
		stop()
		chain.certs[len(chain.certs)-1].Certificate.State = certv1.State_revoked
		p, _, stop = live(t, chain, j, secrets, func(c *Config) { c.Hosts = []string{"other.example.invalid", "192.0.2.1"} })
		if c, err := p.Certificate(nil); err != nil || c.Leaf.VerifyHostname("other.example.invalid") != nil {
			t.Errorf("certificate at a start without a chain: %v", err)
		}
		seconds(chain, 10)
		if got := states(); got != "revoked revoked revoked revoked valid" {
			t.Errorf("at last the certificates are %s", got)
		}
		stop()
	})
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{
		Chain: quietChain(), Signer: boxKey, Journal: journal.NewMemory(), Secrets: &fakeSecrets{}, Leases: newWorkload(), HostURI: "https://box:8443",
		Hosts: []string{"box"}, Attributes: func() []Attribute { return nil }, Capacity: func() offer.Room { return offer.Room{} }, Policy: offer.DefaultPolicy(),
	}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no chain": func(c *Config) { c.Chain = nil }, "no capacity": func(c *Config) { c.Capacity = nil }, "no hosts": func(c *Config) { c.Hosts = nil },
		"plain HTTP": func(c *Config) { c.HostURI = "http://box" }, "a path": func(c *Config) { c.HostURI = "https://box/x" },
		"no worth": func(c *Config) { c.Policy = offer.Policy{} }, "a price below zero": func(c *Config) { c.Policy.CPU = -1 }, "too many orders": func(c *Config) { c.MaxOrders = 1000 },
	} {
		bad := good
		spoil(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// Earnings of entries that are forgotten are neither lost nor counted twice,
// wherever the power is cut.
func TestForgottenEarningsAreCountedOnce(t *testing.T) {
	for cut := range 40 {
		chain := quietChain()
		j := &faultyJournal{Journal: journal.NewMemory(), chain: chain}
		b, _, err := openBook(j, "croft-test", box)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 70 {
			id := akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: tenant, DSeq: uint64(n + 1)}, GSeq: 1}, OSeq: 1}
			if err := b.put(id, entry{State: Settled, Paid: offer.Coin{Denom: "uact", Amount: 1}}); err != nil {
				t.Fatal(err)
			}
		}
		chain.rng, chain.crashy, chain.faulty, chain.rare = rand.New(rand.NewPCG(uint64(cut), 0)), cut%2 == 0, cut%3 == 0, 10
		for range 40 {
			func() {
				defer func() {
					if _, cut := recover().(crash); cut {
						was := chain.crashy
						chain.crashy = false
						b, _, err = openBook(j.Journal, "croft-test", box)
						b.journal, chain.crashy = j, was
					}
				}()
				_ = b.prune()
			}()
			if err != nil || b.earned()["uact"] != 70 {
				t.Fatalf("cut %d: earned %v, %v", cut, b.earned(), err)
			}
		}
		if len(b.entries) != keepFinal {
			t.Fatalf("%d entries are kept", len(b.entries))
		}
	}
}

func TestAnotherAccountsJournalIsForgotten(t *testing.T) {
	j := journal.NewMemory()
	b, _, err := openBook(j, "one", box)
	if err != nil {
		t.Fatal(err)
	}
	id := akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: tenant, DSeq: 1}, GSeq: 1}, OSeq: 1}
	if err := b.put(id, entry{State: Leased}); err != nil {
		t.Fatal(err)
	}
	if err := j.Put(keyEntry+"nonsense", 7); err != nil {
		t.Fatal(err)
	}
	if b, odd, err := openBook(j, "one", box); err != nil || len(b.entries) != 1 || len(odd) != 1 {
		t.Errorf("the same account: %v, %v, %v", b.entries, odd, err)
	}
	if b, odd, err := openBook(j, "two", box); err != nil || len(b.entries) != 0 || len(odd) != 1 {
		t.Errorf("another chain: %v, %v, %v", b.entries, odd, err)
	}
}

func TestWhatIsLentIsNotLet(t *testing.T) {
	b, _, err := openBook(journal.NewMemory(), "croft-test", box)
	if err != nil {
		t.Fatal(err)
	}
	capacity := offer.Room{CPU: 4000, Memory: 1000, Storage: 1000}
	order := func(n uint64) akash.OrderID {
		return akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: tenant, DSeq: n}, GSeq: 1}, OSeq: 1}
	}
	reserving := func(n uint64, memory int64) error {
		return b.add(order(n), reserve, entry{Room: offer.Room{Memory: memory}}, capacity)
	}
	if err := reserving(1, 400); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		key   string
		bytes int64
		want  bool
	}{{"a", 500, true}, {"b", 200, false}, {"b", 100, true}, {"a", 501, false}, {"a", 300, true}, {"b", 0, true}} {
		if got := b.ledger.Lend(step.key, step.bytes, capacity); got != step.want {
			t.Errorf("lending %d to %s: %v, want %v", step.bytes, step.key, got, step.want)
		}
	}
	if err := reserving(2, 301); !errors.Is(err, errFull) { // 400 leased, 300 lent
		t.Errorf("a bid on lent memory: %v", err)
	}
	if err := reserving(3, 300); err != nil {
		t.Error(err)
	}
	if b.ledger.Lend("c", 1, capacity) || !b.ledger.Lend("a", 0, capacity) || !b.ledger.Lend("c", 300, capacity) || b.ledger.Lend("c", 301, capacity) {
		t.Error("what was given back is not lent again, or more than there is")
	}
}
