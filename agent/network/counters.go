package network

import (
	"fmt"
	"maps"
	"slices"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/network/firewall"
)

// reading is what a link's counters said last.
type reading struct {
	In  uint64 `json:"in"`  // bytes towards the replica
	Out uint64 `json:"out"` // bytes from the replica
}

// tally is a lease's bytes: what has been counted, and up to which reading of
// each link, by the link's identity. A new link has a new identity and starts at
// zero, so that no reading is ever counted twice or compared with another link's.
type tally struct {
	In    uint64             `json:"in"`
	Out   uint64             `json:"out"`
	Links map[string]reading `json:"links,omitempty"`
}

func (t tally) clone() tally {
	t.Links = maps.Clone(t.Links)
	return t
}

// advance counts what a link carried since its last reading. A link's counters
// only grow; a smaller reading was taken earlier and comes late.
func (t *tally) advance(identity string, r reading) {
	last := t.Links[identity]
	if r.In < last.In || r.Out < last.Out {
		return
	}
	t.In += r.In - last.In
	t.Out += r.Out - last.Out
	if t.Links == nil {
		t.Links = map[string]reading{}
	}
	t.Links[identity] = r
}

// meter is a tally now and as it was saved.
type meter struct{ saved, now tally }

func (m *meter) drop(identity string) { delete(m.now.Links, identity) }

func (m *meter) unsaved() bool {
	return m.saved.In != m.now.In || m.saved.Out != m.now.Out || !maps.Equal(m.saved.Links, m.now.Links)
}

// deniedMeter turns counters of the kernel, which start again with the table,
// into ones that only grow.
type deniedMeter struct{ total, last Denied }

func (d *deniedMeter) advance(now Denied) (grown Denied) {
	grown = now.Since(d.last)
	d.total, d.last = d.total.Plus(grown), now
	return grown
}

// meterLink reads a replica's link into its lease's tally.
func (n *Network) meterLink(r replica) {
	now, identity, err := readLink(r.Link)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil || identity != r.Identity {
		return // gone, or not the one on record: nothing to count
	}
	m := n.meters[r.ID.Lease]
	if m == nil {
		m = new(meter)
		n.meters[r.ID.Lease] = m
	}
	m.now.advance(identity, now)
}

// Counters are the bytes that flowed to and from the lease's replicas since it
// began, Ethernet headers included, replicas that are gone as well. They only
// grow; after a power cut they may lack what flowed within [Config.Save].
func (n *Network) Counters(key lease.Key) (in, out uint64) {
	n.mu.Lock()
	var mine []replica
	for _, r := range n.replicas {
		if r.ID.Lease == key {
			mine = append(mine, r)
		}
	}
	n.mu.Unlock()
	for _, r := range mine {
		n.meterLink(r)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if m := n.meters[key]; m != nil {
		return m.now.In, m.now.Out
	}
	return 0, 0
}

// saveTurned reads all links and saves what has changed.
func (n *Network) saveTurned() error {
	n.mu.Lock()
	all := slices.Collect(maps.Values(n.replicas))
	n.mu.Unlock()
	for _, r := range all {
		n.meterLink(r)
	}
	n.mu.Lock()
	due := slices.Collect(maps.Keys(n.meters))
	n.mu.Unlock()
	for _, key := range due {
		if err := n.saveLeaseTurned(key); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) saveLeaseTurned(key lease.Key) error {
	n.mu.Lock()
	m := n.meters[key]
	if m == nil || !m.unsaved() {
		n.mu.Unlock()
		return nil
	}
	now := m.now.clone()
	n.mu.Unlock()
	if err := n.cfg.Store.Put(storeBytes+string(key), now); err != nil {
		return fmt.Errorf("save byte counters of lease %s: %w", key, err)
	}
	n.mu.Lock()
	m.saved = now
	n.mu.Unlock()
	return nil
}

// Denied counts what the lease's attached replicas tried in vain since this
// process began, as of the last check.
func (n *Network) Denied(key lease.Key) Denied {
	n.mu.Lock()
	defer n.mu.Unlock()
	var sum Denied
	for _, r := range n.replicas {
		d := n.denied[r.Link]
		if r.ID.Lease != key || d == nil {
			continue
		}
		sum = sum.Plus(d.total)
	}
	return sum
}

// readDeniedTurned follows the counters of dropped packets and reports replicas
// that try again and again.
func (n *Network) readDeniedTurned() error {
	now, err := firewall.ReadDenied()
	if err != nil {
		return err
	}
	var events []Event
	n.mu.Lock()
	for _, r := range n.replicas {
		d := n.denied[r.Link]
		if d == nil {
			d = new(deniedMeter)
			n.denied[r.Link] = d
		}
		if grown := d.advance(now[r.Link]); grown.Sum() >= deniedAlarm {
			events = append(events, Event{
				Kind: DeniedMuch, Replica: r.ID, Denied: &grown,
				Note: "A replica keeps trying what its network does not allow: a port scan, mail, or addresses of the owner's network.",
			})
		}
	}
	n.mu.Unlock()
	for _, e := range events {
		n.cfg.Report(e)
	}
	return nil
}
