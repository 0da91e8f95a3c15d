package hosting

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/croft-cloud/croft/agent/lease"
)

// LeaseUsage is what a lease uses, for telemetry: agent/sampling's type of that
// name, field by field, so that one converts to the other. What is unknown is nil.
type LeaseUsage struct {
	Lease         string   // its key
	CPUSeconds    *float64 // of all its replicas, since this agent first saw them
	MemoryBytes   *float64 // now
	DiskBytes     *float64 // now
	ReceivedBytes *float64 // since it began
	SentBytes     *float64 // since it began
}

// Use is what a lease uses, and what its users do.
type Use struct {
	LeaseUsage
	Requests uint64 // of its users by HTTP, since this agent started
	Refused  uint64 // of its users' requests and connections, because of limits or because nothing answered; likewise
	Denied   uint64 // packets of its own that may not go where they wanted
}

// LeaseUsage measures each running lease. With an error it returns what there is.
func (h *Hosting) LeaseUsage(ctx context.Context) ([]LeaseUsage, error) {
	p, fault := h.open()
	if p == nil {
		return nil, errors.New(fault)
	}
	uses, err := p.use(ctx)
	list := make([]LeaseUsage, len(uses))
	for i, u := range uses {
		list[i] = u.LeaseUsage
	}
	return list, err
}

// use measures each running lease. With an error it returns what there is.
func (p *parts) use(ctx context.Context) ([]Use, error) {
	replicas, err := p.sandbox.List(ctx)
	listed := err == nil
	if !listed {
		err = fmt.Errorf("list what runs: %w", err)
	}
	visits := p.ingress.Counters()
	var uses []Use
	running := map[lease.Key]bool{}
	for _, l := range p.provider.Leases() {
		key := lease.KeyOf(l.ID)
		running[key] = true
		u := Use{LeaseUsage: LeaseUsage{Lease: string(key)}, Requests: visits[key].Requests, Refused: visits[key].Refused, Denied: p.network.Denied(key).Sum()}
		in, out := p.network.Counters(key)
		u.ReceivedBytes, u.SentBytes = new(float64(in)), new(float64(out))
		if used, _, err := p.disks.Usage(key); err == nil { // else it has none yet
			u.DiskBytes = new(float64(used))
		}
		if listed {
			u.CPUSeconds, u.MemoryBytes = new(float64(0)), new(float64(0))
		}
		for id, exit := range replicas {
			if id.Lease != key || exit != nil {
				continue
			}
			used, failed := p.sandbox.Usage(ctx, id)
			if failed != nil { // it may have ended meanwhile
				u.CPUSeconds, u.MemoryBytes = nil, nil
				err = errors.Join(err, fmt.Errorf("measure %s of lease %s: %w", id.Pod(), key, failed))
				break
			}
			p.worked.note(id, used.CPU)
			*u.MemoryBytes += float64(used.Memory)
		}
		if u.CPUSeconds != nil {
			*u.CPUSeconds = p.worked.of(key).Seconds()
		}
		uses = append(uses, u)
	}
	p.worked.keep(running)
	return uses, err
}

// worked is how long processors have worked for leases, replicas that are gone
// included. The zero value is ready.
type worked struct {
	mu    sync.Mutex
	total map[lease.Key]time.Duration       // guarded by mu
	last  map[lease.ReplicaID]time.Duration // as each replica said last, since its start; guarded by mu
}

// note takes in what a replica says. One that says less than before has started
// again.
func (w *worked) note(id lease.ReplicaID, now time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.total == nil {
		w.total, w.last = map[lease.Key]time.Duration{}, map[lease.ReplicaID]time.Duration{}
	}
	more := now - w.last[id]
	if more < 0 {
		more = now
	}
	w.total[id.Lease] += more
	w.last[id] = now
}

func (w *worked) of(key lease.Key) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total[key]
}

// keep forgets all leases but those that run.
func (w *worked) keep(running map[lease.Key]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.total, func(key lease.Key, _ time.Duration) bool { return !running[key] })
	maps.DeleteFunc(w.last, func(id lease.ReplicaID, _ time.Duration) bool { return !running[id.Lease] })
}
