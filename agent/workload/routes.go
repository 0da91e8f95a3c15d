package workload

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
)

// Routes is the present table, and a channel that is closed when there is
// another.
func (w *Workloads) Routes() (blueprint.Table, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.table, w.changed
}

// publish makes the table anew if it changed.
func (w *Workloads) publish() {
	w.publishing.Lock()
	defer w.publishing.Unlock()
	table := w.makeTable()
	w.mu.Lock()
	defer w.mu.Unlock()
	if reflect.DeepEqual(table, w.table) {
		return
	}
	w.table = table
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *Workloads) makeTable() blueprint.Table {
	holders := w.names().Holders
	w.mu.Lock()
	works := slices.Collect(maps.Values(w.works))
	w.mu.Unlock()
	var found blueprint.Routes
	for _, l := range works {
		l.mu.Lock()
		if l.state != blueprint.Closing && l.state != blueprint.Gone {
			for name, plan := range l.rec.Services {
				// The target comes first: its options count. An old generation
				// adds its replicas, and what the new one does not offer any more.
				for _, g := range slices.Backward(plan.Revisions()) {
					if spec, ok := blueprint.ServiceOf(l.groups[g.Source], name); ok {
						found.Add(l.id, spec, l.w.cfg.IngressDomain, l.addressesLocked(name, g.Revision), func(host string) bool {
							h, held := holders[host]
							return !held || h.Lease == l.id
						})
					}
				}
			}
		}
		l.mu.Unlock()
	}
	return found.Table()
}

// addressesLocked are those of the replicas of one generation that answer.
func (l *work) addressesLocked(service string, revision uint64) []netip.Addr {
	var addresses []netip.Addr
	for id, r := range l.replicas {
		if id.Service == service && id.Revision == revision && r.state == blueprint.Answering && !r.leaving && r.attachment != nil {
			addresses = append(addresses, r.attachment.Address.Addr())
		}
	}
	return addresses
}

// Status says how each service of a lease is doing, by name.
func (w *Workloads) Status(id akash.LeaseID) ([]lease.ServiceStatus, error) {
	l, err := w.find(id)
	if err != nil {
		return nil, err
	}
	table, _ := w.Routes()
	l.mu.Lock()
	defer l.mu.Unlock()
	all := []lease.ServiceStatus{}
	wants := l.wantsLocked()
	if len(wants) == 0 { // its first manifest is stored, and nothing is planned yet
		for _, spec := range l.groups[l.rec.Revision].Services {
			wants = append(wants, blueprint.Want{Name: spec.Name, Count: int(spec.Count)})
		}
	}
	for _, want := range wants {
		s := lease.ServiceStatus{Name: want.Name, Revision: want.Plan.Target.Revision, Total: want.Count, Problem: l.problem}
		for rid, r := range l.replicas {
			if rid.Service != want.Name {
				continue
			}
			newest := rid.Revision == want.Plan.Target.Revision
			if newest && (r.state == blueprint.Running || r.state == blueprint.Answering) {
				s.Started++
			}
			if r.state == blueprint.Answering {
				s.Available++
			} else if newest && r.problem != "" {
				s.Problem = cmp.Or(s.Problem, rid.Pod()+": "+blueprint.Hide(l.groups, r.problem))
			} else if p := l.pulls[r.spec.Image]; newest && p != nil && r.state == blueprint.Pulling {
				s.Problem = cmp.Or(s.Problem, cmp.Or(p.problem, rid.Pod()+": its image is being pulled"))
			}
		}
		if s.Available = min(s.Available, s.Total); s.Available == s.Total {
			s.Problem = ""
		} else {
			s.Problem = cmp.Or(s.Problem, "its replicas are being started")
		}
		for _, h := range table.Hosts {
			if h.Lease == id && h.Service == want.Name {
				s.URIs = append(s.URIs, h.Name)
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// Plight is why nothing of a lease answers, nor will unless its tenant or the
// box's owner changes something: the OCI image is unknown or not for this
// machine, the disk is lost. The box goes on trying all the same.
type Plight struct {
	Lease akash.LeaseID
	Since time.Time // seen by this process without a break
	Why   string    // a sentence for the tenant, without secrets
}

// Hopeless lists the leases that are in a plight, oldest first. How long that
// may last before the lease is given back is not decided here.
func (w *Workloads) Hopeless() []Plight {
	w.mu.Lock()
	works := slices.Collect(maps.Values(w.works))
	w.mu.Unlock()
	var all []Plight
	for _, l := range works {
		l.mu.Lock()
		if !l.plight.Since.IsZero() && l.state != blueprint.Closing {
			all = append(all, l.plight)
		}
		l.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b Plight) int { return a.Since.Compare(b.Since) })
	return all
}

// Events iterates over the events of a lease numbered above after, oldest
// first. With follow it goes on with new ones until ctx or the lease ends; a
// reader who is too slow misses the oldest.
func (w *Workloads) Events(ctx context.Context, id akash.LeaseID, after uint64, follow bool) (iter.Seq[lease.Event], error) {
	l, err := w.find(id)
	if err != nil {
		return nil, err
	}
	return l.diary.Read(ctx, after, follow), nil
}

// State is where the workload of a lease stands; WaitingManifest for one that
// has none.
func (w *Workloads) State(id akash.LeaseID) blueprint.State {
	l, err := w.find(id)
	if err != nil {
		return blueprint.WaitingManifest
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Manifest is what was accepted last for a lease.
func (w *Workloads) Manifest(id akash.LeaseID) (lease.Taken, error) {
	l, err := w.find(id)
	if err != nil {
		return lease.Taken{}, err
	}
	l.mu.Lock()
	taken := lease.Taken{Lease: id, Revision: l.rec.Revision, Group: l.groups[l.rec.Revision]}
	l.mu.Unlock()
	if taken.Raw, err = w.readManifest(l.key, taken.Revision); err != nil {
		return lease.Taken{}, blueprint.Refuse(blueprint.ErrNoLease, err, "send the manifest again")
	}
	return taken, nil
}

// Pod is one replica as logs and shells find it.
type Pod struct {
	ID      lease.ReplicaID
	Log     string     // path of its log file
	Running bool       // a container runs
	Address netip.Addr // invalid if it has none yet
}

// Pods lists the replicas of a service, or with an empty name of all services
// of a lease: running ones first, new ones before old ones, then by index.
func (w *Workloads) Pods(id akash.LeaseID, service string) ([]Pod, error) {
	l, err := w.find(id)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.rec.Services[service]; service != "" && !ok {
		return nil, blueprint.Refuse(blueprint.ErrNoService, fmt.Errorf("lease %s has no service %q", id, service), "see the lease's status for its services")
	}
	var pods []Pod
	for rid, r := range l.replicas {
		if service != "" && rid.Service != service || r.leaving || l.disk == "" {
			continue
		}
		p := Pod{ID: rid, Log: blueprint.LogFile(l.disk, rid), Running: r.state == blueprint.Running || r.state == blueprint.Answering}
		if r.attachment != nil {
			p.Address = r.attachment.Address.Addr()
		}
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b Pod) int {
		if service := strings.Compare(a.ID.Service, b.ID.Service); service != 0 || a.Running == b.Running {
			return cmp.Or(service, cmp.Compare(b.ID.Revision, a.ID.Revision), cmp.Compare(a.ID.Index, b.ID.Index))
		}
		if a.Running {
			return -1
		}
		return 1
	})
	return pods, nil
}

// Replica is the replica with this number among the running ones of a service:
// where a shell opens.
func (w *Workloads) Replica(id akash.LeaseID, service string, index int) (Pod, error) {
	pods, err := w.Pods(id, service)
	if err != nil {
		return Pod{}, err
	}
	pods = slices.DeleteFunc(pods, func(p Pod) bool { return !p.Running || service == "" })
	if index < 0 || index >= len(pods) {
		return Pod{}, blueprint.Refuse(blueprint.ErrNoService, fmt.Errorf("service %q has %d running replicas, there is none with index %d", service, len(pods), index), "see the lease's status")
	}
	return pods[index], nil
}
