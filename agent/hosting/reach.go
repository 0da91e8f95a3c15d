package hosting

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/provisioning/joinfile"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

// target is what a relay is asked for: a host or a port.
type target struct {
	host string
	port wire.Port // if host is empty
}

// wish is a target as its tenant knows it.
type wish struct {
	lease   akash.LeaseID
	service string
	name    string // "www.example.com", "TCP port 25"
}

// wishes are the targets of a table.
func wishes(table blueprint.Table, domain string) map[target]wish {
	all := map[target]wish{}
	for _, h := range table.Hosts {
		if isCustom(h.Name, domain) {
			all[target{host: h.Name}] = wish{h.Lease, h.Service, h.Name}
		}
	}
	for _, p := range table.Ports {
		at := wirePort(p)
		all[target{port: at}] = wish{p.Lease, p.Service, fmt.Sprintf("%s port %d", strings.ToUpper(string(at.Proto)), p.Port)}
	}
	return all
}

// reach is which hosts and ports of leases do not lead to the box, for their
// tenants: what relays said last, and an event each time that this changed. It is
// in memory only: after a start it is told again. The zero value is ready.
type reach struct {
	mu      sync.Mutex
	said    map[target]map[string]wire.Problem // by relay; no entry: it leads here, or has not answered yet; guarded by mu
	bad     map[target]trouble                 // what is told; guarded by mu
	history map[akash.LeaseID][]happened       // guarded by mu
	last    uint64                             // number of the newest event; guarded by mu
	changed chan struct{}                      // guarded by mu; closed at the next event
}

// happened is an event with its number.
type happened struct {
	number uint64
	lease.Event
}

// trouble is bad news about a target.
type trouble struct {
	wish
	event lease.Event
}

// keepReach is how many events of a lease are kept.
const keepReach = 32

// look compares what relays say with what is wanted, and returns the news, by
// lease and service.
func (r *reach) look(table blueprint.Table, domain string, states []relay.RelayState) []trouble {
	hosts, ports := wanted(table, domain)
	all := wishes(table, domain)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.said == nil {
		r.said, r.bad, r.history = map[target]map[string]wire.Problem{}, map[target]trouble{}, map[akash.LeaseID][]happened{}
	}
	for _, s := range states {
		if s.Phase != relay.Up || !s.Settled {
			continue // what it said last counts
		}
		for t := range r.said {
			delete(r.said[t], s.Name)
		}
		for _, h := range s.Hosts {
			r.hearLocked(target{host: h.Name}, s.Name, h.Problem)
		}
		for _, p := range s.Ports {
			r.hearLocked(target{port: p.Port}, s.Name, p.Problem)
		}
	}
	maps.DeleteFunc(r.said, func(t target, by map[string]wire.Problem) bool { return len(by) == 0 || all[t] == wish{} })
	maps.DeleteFunc(r.bad, func(t target, b trouble) bool { return all[t] != b.wish })
	leases := map[akash.LeaseID]bool{}
	var news []trouble
	for t, w := range all {
		leases[w.lease] = true
		var why []string
		if t.host != "" && !slices.Contains(hosts, t.host) || t.host == "" && !slices.Contains(ports, t.port) {
			why = append(why, "the box leads no more host names or ports here than it does already")
		}
		for _, from := range slices.Sorted(maps.Keys(r.said[t])) {
			why = append(why, explain(r.said[t][from], from, w.name, t.host != "", domain))
		}
		note := strings.Join(why, "; ")
		old, told := r.bad[t]
		if note == old.event.Note {
			continue
		}
		now := trouble{w, lease.Event{At: time.Now().UTC(), Service: w.service, Type: lease.Warning, Reason: notReached, Note: note}}
		if note != "" {
			r.bad[t] = now
		} else if told {
			delete(r.bad, t)
			now.event.Type, now.event.Reason, now.event.Note = lease.Normal, reached, w.name+" leads to the service now"
		}
		news = append(news, now)
	}
	maps.DeleteFunc(r.history, func(id akash.LeaseID, _ []happened) bool { return !leases[id] })
	slices.SortFunc(news, func(x, y trouble) int {
		return strings.Compare(x.lease.String()+x.service+x.name, y.lease.String()+y.service+y.name)
	})
	for _, n := range news {
		r.last++
		list := append(r.history[n.lease], happened{r.last, n.event})
		r.history[n.lease] = list[max(len(list)-keepReach, 0):]
	}
	if len(news) > 0 && r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
	return news
}

// The reasons of the events.
const (
	notReached = "NotReached"
	reached    = "Reached"
)

func (r *reach) hearLocked(t target, from string, p wire.Problem) {
	if p == "" {
		return
	}
	if r.said[t] == nil {
		r.said[t] = map[string]wire.Problem{}
	}
	r.said[t][from] = p
}

// explain says why a relay does not lead something here, and what the tenant can
// do.
func explain(p wire.Problem, from, name string, host bool, domain string) string {
	device, _, _ := strings.Cut(domain, ".")
	switch {
	case p == wire.ProblemRefused && host:
		return fmt.Sprintf("relay %s does not lead %s here: make the name an alias (CNAME) of %s in DNS, or say %s in a TXT record of %s%s; or ask the relay's operator",
			from, name, domain, device, joinfile.HostRecord, name)
	case p == wire.ProblemRefused:
		return fmt.Sprintf("relay %s does not open %s", from, name)
	case p == wire.ProblemTaken:
		return fmt.Sprintf("relay %s leads %s to somebody else", from, name)
	case p == wire.ProblemFull:
		return fmt.Sprintf("relay %s has no room for %s", from, name)
	}
	return fmt.Sprintf("relay %s could not open the way to %s; it is asked again", from, name)
}

// problems say why a service of a lease is not reached as its manifest wants;
// empty if it is.
func (r *reach) problems(id akash.LeaseID, service string) string {
	var notes []string
	for _, e := range r.trouble(id) {
		if e.Service == service {
			notes = append(notes, e.Note)
		}
	}
	return strings.Join(notes, "; ")
}

// trouble is what is bad now about a lease, oldest first.
func (r *reach) trouble(id akash.LeaseID) []lease.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []lease.Event
	for _, b := range r.bad {
		if b.lease == id {
			list = append(list, b.event)
		}
	}
	slices.SortFunc(list, func(a, b lease.Event) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return strings.Compare(a.Note, b.Note)
	})
	return list
}

// events are those of a lease after a number, oldest first, the number of the
// newest of all, and a channel that is closed when there is another.
func (r *reach) events(id akash.LeaseID, after uint64) (list []lease.Event, last uint64, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	for _, h := range r.history[id] {
		if h.number > after {
			list = append(list, h.Event)
		}
	}
	return list, r.last, r.changed
}
