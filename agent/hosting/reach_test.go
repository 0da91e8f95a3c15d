package hosting

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

func TestWhatRelaysDoNotLeadHereIsToldOnceForEachChange(t *testing.T) {
	mail := servicePort(1, "mail", 25, 25, false)
	table := blueprint.Table{
		Hosts: []blueprint.Host{{Name: "shop.example", Lease: leaseNumber(1), Service: "web"}, {Name: "x.box.example", Lease: leaseNumber(1), Service: "web"}},
		Ports: []blueprint.Port{mail},
	}
	var r reach
	from := func(name string, host, port wire.Problem) relay.RelayState {
		return relay.RelayState{
			Name: name, Phase: relay.Up, Settled: true,
			Hosts: []wire.HeldName{{Name: "shop.example", Problem: host}}, Ports: []wire.HeldPort{{Port: wirePort(mail), Problem: port}},
		}
	}
	news := func(table blueprint.Table, states ...relay.RelayState) (notes []string) {
		for _, n := range r.look(table, "box.example", states) {
			notes = append(notes, string(n.event.Type)+" "+n.event.Reason+" "+n.service+": "+n.event.Note)
		}
		return notes
	}
	if got := news(table, relay.RelayState{Name: "one", Phase: relay.Connecting}); got != nil {
		t.Errorf("before a relay has answered there is news: %q", got)
	}
	got := news(table, from("one", wire.ProblemRefused, wire.ProblemFull), from("two", "", ""))
	if len(got) != 2 || !strings.HasPrefix(got[0], "Warning NotReached mail: relay one has no room for TCP port 25") ||
		!strings.Contains(got[1], "web: relay one does not lead shop.example here") || !strings.Contains(got[1], "(CNAME) of box.example") || !strings.Contains(got[1], "say box in a TXT record of _croft.shop.example") {
		t.Errorf("told is %q", got)
	}
	away := from("one", "", "")
	away.Phase, away.Hosts, away.Ports = relay.Waiting, nil, nil
	asked := from("one", "", "")
	asked.Settled = false // an answer to an older question
	for _, state := range []relay.RelayState{from("one", wire.ProblemRefused, wire.ProblemFull), away, asked} {
		if got := news(table, state, from("two", "", "")); got != nil {
			t.Errorf("the same is told again: %q", got)
		}
	}
	if got := r.problems(leaseNumber(1), "web"); !strings.Contains(got, "shop.example") || r.problems(leaseNumber(1), "db") != "" || r.problems(leaseNumber(2), "web") != "" {
		t.Errorf("the status says %q", got)
	}
	if got := news(table, from("one", wire.ProblemTaken, "")); len(got) != 2 || got[0] != "Normal Reached mail: TCP port 25 leads to the service now" || !strings.Contains(got[1], "relay one leads shop.example to somebody else") {
		t.Errorf("told is %q", got)
	}
	events, last, changed := r.events(leaseNumber(1), 0)
	if len(events) != 4 {
		t.Errorf("events are %+v", events)
	}
	if got := news(table, from("one", "", "")); len(got) != 1 || got[0] != "Normal Reached web: shop.example leads to the service now" {
		t.Errorf("told is %q", got)
	}
	select {
	case <-changed:
	default:
		t.Error("who waits for news is not told")
	}
	if events, _, _ := r.events(leaseNumber(1), last); len(events) != 1 {
		t.Errorf("new events are %+v", events)
	}
	if got := r.problems(leaseNumber(1), "web"); got != "" {
		t.Errorf("the status says %q", got)
	}
	// A host that goes to another lease is the other tenant's matter.
	news(table, from("one", wire.ProblemRefused, ""))
	table.Hosts[0].Lease = leaseNumber(2)
	if got := news(table, from("one", wire.ProblemRefused, "")); len(got) != 1 || r.problems(leaseNumber(1), "web") != "" || r.problems(leaseNumber(2), "web") == "" {
		t.Errorf("told is %q", got)
	}
	news(blueprint.Table{}, from("one", "", ""))
	if len(r.said)+len(r.bad)+len(r.history) != 0 {
		t.Errorf("of leases that are over there is left %v, %v, %v", r.said, r.bad, r.history)
	}
}

func TestMoreHostsThanRelaysTakeAreTold(t *testing.T) {
	var table blueprint.Table
	for n := range wire.MaxNames + 1 {
		table.Hosts = append(table.Hosts, blueprint.Host{Name: string(rune('a'+n/26)) + string(rune('a'+n%26)) + ".example", Lease: leaseNumber(1), Service: "web"})
	}
	var r reach
	if got := r.look(table, "box.example", nil); len(got) != 1 || got[0].name != table.Hosts[wire.MaxNames].Name {
		t.Errorf("told is %+v", got)
	}
}

// fakeTunnels lead to one relay, which gives every port or has the same problem
// with each.
type fakeTunnels struct {
	mu      sync.Mutex
	wanted  []wire.Port
	problem wire.Problem
	changed chan struct{}
}

func (f *fakeTunnels) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (f *fakeTunnels) Set(_ []string, ports []wire.Port) error {
	f.change(func() { f.wanted = ports })
	return nil
}

func (f *fakeTunnels) say(p wire.Problem) { f.change(func() { f.problem = p }) }

func (f *fakeTunnels) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeTunnels) States() ([]relay.RelayState, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := relay.RelayState{Name: "relay.example", Phase: relay.Up, Settled: true}
	for _, p := range f.wanted {
		s.Ports = append(s.Ports, wire.HeldPort{Port: p, Problem: f.problem})
	}
	return []relay.RelayState{s}, f.changed
}

// A box with one lease, whose fees another account pays: what relays refuse is in its status and events, what it
// uses is measured, and certificates of hosts that are gone go when no other can.
func TestALeaseSaysWhatItLacksAndUses(t *testing.T) {
	m := newModel(t, 1)
	defer os.RemoveAll(m.dir)
	synctest.Test(t, func(t *testing.T) {
		open, stop := context.WithCancel(t.Context())
		defer m.calls.Wait()
		defer stop()
		relay := &fakeTunnels{problem: wire.ProblemFull, changed: make(chan struct{})}
		m.tunnels, m.granter = relay, modelRival
		m.begin(open, 5*time.Second)
		m.live(t)
		m.mu.Lock()
		m.deploy()
		d := m.deployed[akash.DeploymentID{Owner: modelTenant, DSeq: 1}]
		m.mu.Unlock()
		for range 12 {
			nap(t.Context(), 20*time.Second)
			m.mu.Lock()
			m.choose(d.orders[0])
			m.send(d, d.variant)
			m.mu.Unlock()
		}
		p, id := m.life.p, m.leaseOf(d.orders[0])
		nap(t.Context(), 30*time.Second)

		tidied := func() int {
			if err := p.sweepNow(t.Context()); err != nil {
				t.Error(err)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			n := m.tidied
			m.tidied = 0
			return n
		}
		tidied()
		if n := tidied(); n != 0 {
			t.Error("certificates are removed before the ingress has had the hosts of all leases")
		}
		running, end := context.WithCancel(t.Context())
		routing := make(chan error, 1)
		go func() { routing <- p.route(running) }()
		synctest.Wait()
		if n := tidied(); n != 1 {
			t.Errorf("certificates were tidied %d times", n)
		}

		status := func() string {
			s, err := backend{p}.Status(t.Context(), id)
			if err != nil || len(s.Services) == 0 {
				t.Fatalf("status is %+v, %v", s, err)
			}
			return s.Services[0].Problem
		}
		if got := status(); !strings.Contains(got, "relay.example has no room for UDP port 5353") {
			t.Errorf("the status says %q", got)
		}
		hear := func(follow bool) <-chan lease.Event {
			heard := make(chan lease.Event, 1000)
			go func() {
				defer close(heard)
				for e, err := range (backend{p}).Events(running, id, []string{"web"}, follow) {
					if err == nil {
						heard <- e
					}
				}
			}()
			synctest.Wait()
			return heard
		}
		var once, follows []lease.Event
		for e := range hear(false) {
			once = append(once, e)
		}
		following := hear(true)
		for len(following) > 0 {
			follows = append(follows, <-following)
		}
		if !slices.Equal(once, follows) || !slices.ContainsFunc(once, func(e lease.Event) bool { return e.Reason == notReached && e.Type == lease.Warning }) || len(once) < 2 {
			t.Errorf("events are %+v, followers hear %+v", once, follows)
		}
		relay.say("")
		synctest.Wait()
		if len(following) != 1 || (<-following).Reason != reached || status() != "" {
			t.Errorf("a port that is open now is told as %q", status())
		}
		p.collectTrouble(t.Context())
		before := len(*p.trouble.Load())
		relay.say(wire.ProblemFull)
		synctest.Wait()
		p.collectTrouble(t.Context())
		if got := *p.trouble.Load(); len(got) != before+1 || got[0].Reason != notReached {
			t.Errorf("trouble is %+v", got)
		}
		end()
		if err := <-routing; err != nil {
			t.Error(err)
		}

		h := &Hosting{parts: p}
		uses, err := h.LeaseUsage(t.Context())
		if err != nil || len(uses) != 1 || uses[0].Lease != string(keyOf(id)) {
			t.Fatalf("usage is %+v, %v", uses, err)
		}
		u := uses[0]
		if *u.CPUSeconds != 3 || *u.MemoryBytes != 5<<20 || *u.DiskBytes != 11 || *u.ReceivedBytes != 7 || *u.SentBytes != 9 {
			t.Errorf("usage is %v s, %v, %v, %v, %v bytes", *u.CPUSeconds, *u.MemoryBytes, *u.DiskBytes, *u.ReceivedBytes, *u.SentBytes)
		}
		p.collectUses(t.Context())
		if got := *p.uses.Load(); len(got) != 1 || got[0].Denied != 3 {
			t.Errorf("the owner is shown %+v", got)
		}
		if got, err := (backend{p}).Provided(t.Context()); err != nil || got.Reclamation != 24*time.Hour {
			t.Errorf("the notice before a lease is ended is said to be %s, %v", got.Reclamation, err)
		}
		m.life.end()
	})
	for _, wrong := range m.wrong {
		t.Error(wrong)
	}
}

// The fleet's telemetry takes what hosting measures as it is.
var _ = func(u LeaseUsage) sampling.LeaseUsage { return sampling.LeaseUsage(u) }

func TestWorkOfReplicasThatAreGoneCounts(t *testing.T) {
	one, two := lease.ReplicaID{Lease: "l1", Service: "web"}, lease.ReplicaID{Lease: "l1", Service: "web", Index: 1}
	var w worked
	w.note(one, 10*time.Second)
	w.note(two, 5*time.Second)
	w.note(one, 12*time.Second)
	w.note(one, 3*time.Second) // it was started again
	w.note(lease.ReplicaID{Lease: "l2"}, time.Second)
	if got := w.of("l1"); got != 20*time.Second {
		t.Errorf("processors have worked for %s", got)
	}
	w.keep(map[lease.Key]bool{"l2": true})
	if len(w.total) != 1 || len(w.last) != 1 || w.total["l2"] != time.Second {
		t.Errorf("after the lease there is left %v, %v", w.total, w.last)
	}
}
