package hosting

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/gateway"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/agent/replicalog"
	"github.com/croft-cloud/croft/agent/workload"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/sdl"
)

// backend answers the gateway.
type backend struct{ p *parts }

// Accept implements gateway.Manifests.
func (b backend) Accept(ctx context.Context, id akash.DeploymentID, raw []byte) error {
	err := b.p.workloads.Accept(ctx, id.Owner, id.DSeq, raw)
	for _, l := range b.p.provider.Leases() {
		if l.ID.DeploymentID != id {
			continue
		}
		if err != nil {
			b.p.refusals.note(l.ID, err)
			continue
		}
		b.p.refusals.forget(l.ID)
		if l.Manifest {
			continue
		}
		if _, err := b.p.workloads.Manifest(l.ID); err != nil {
			continue // it was won after the manifest was kept for the others
		}
		// The manifest is kept, so the lease runs. That it came is noted again by
		// the tenant's next manifest; without a note the lease would end.
		if err := b.p.provider.ManifestReceived(ctx, l.ID); err != nil && croft.KindOf(err) != croft.KindNotFound {
			return err
		}
	}
	return err
}

// Manifest implements gateway.Manifests.
func (b backend) Manifest(_ context.Context, id akash.LeaseID) ([]byte, error) {
	taken, err := b.p.workloads.Manifest(id)
	if err != nil {
		return nil, err
	}
	return json.Marshal(sdl.Manifest{taken.Group})
}

// Status implements gateway.Statuses.
func (b backend) Status(_ context.Context, id akash.LeaseID) (gateway.LeaseStatus, error) {
	if _, running := b.p.provider.Lease(id); !running {
		return gateway.LeaseStatus{}, noLease(id)
	}
	services, err := b.p.workloads.Status(id)
	if croft.KindOf(err) == croft.KindNotFound {
		return gateway.LeaseStatus{}, nil // its manifest has not come yet
	}
	if err != nil {
		return gateway.LeaseStatus{}, err
	}
	for i, s := range services {
		if why := b.p.reach.problems(id, s.Name); why != "" {
			services[i].Problem = strings.TrimPrefix(s.Problem+"; "+why, "; ")
		}
	}
	out := gateway.LeaseStatus{Services: services}
	states, _ := b.p.relay.States()
	table, _ := b.p.workloads.Routes()
	for _, port := range table.Ports {
		if port.Lease != id {
			continue
		}
		proto := "TCP"
		if port.UDP {
			proto = "UDP"
		}
		for _, external := range externals(states, wirePort(port)) {
			f := gateway.ForwardedPort{Service: port.Service, Host: b.p.cfg.domain(), Port: port.Port, External: external, Proto: proto}
			if !slices.Contains(out.Ports, f) {
				out.Ports = append(out.Ports, f)
			}
		}
	}
	return out, nil
}

func noLease(id akash.LeaseID) error {
	return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("lease %s does not run here", id)}
}

// pods are the replicas of some services of a lease, or of all.
func (b backend) pods(id akash.LeaseID, services []string) ([]workload.Pod, error) {
	if len(services) == 0 {
		return b.p.workloads.Pods(id, "")
	}
	var all []workload.Pod
	for _, service := range services {
		pods, err := b.p.workloads.Pods(id, service)
		if err != nil {
			return nil, err
		}
		all = append(all, pods...)
	}
	return all, nil
}

// said is a line of a replica, or why there are no more.
type said struct {
	line gateway.LogLine
	err  error
}

// Logs implements gateway.Logs. With Follow, replicas that come later are heard
// from their first line on.
func (b backend) Logs(ctx context.Context, id akash.LeaseID, q gateway.LogQuery) iter.Seq2[gateway.LogLine, error] {
	return func(yield func(gateway.LogLine, error) bool) {
		pods, err := b.pods(id, q.Services)
		if err != nil {
			yield(gateway.LogLine{}, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		lines := make(chan said)
		var readers sync.WaitGroup
		read := func(pod workload.Pod, tail int) {
			readers.Go(func() {
				for line, err := range replicalog.Read(ctx, pod.Log, tail, q.Follow) {
					select {
					case lines <- said{gateway.LogLine{Pod: pod.ID.Pod(), Text: line.Text}, err}:
					case <-ctx.Done():
						return
					}
				}
			})
		}
		for _, pod := range pods {
			read(pod, q.Tail)
		}
		if q.Follow {
			readers.Go(func() {
				b.eachNewPod(ctx, id, q.Services, pods, func(pod workload.Pod) { read(pod, -1) })
				cancel()
			})
		}
		go func() { // ends with the readers, before the loops below
			readers.Wait()
			close(lines)
		}()
		for s := range lines {
			if !yield(s.line, s.err) || s.err != nil {
				break
			}
		}
		cancel()
		for range lines { // until all readers have ended
		}
	}
}

// eachNewPod tells of replicas that are not known yet, until ctx or the lease ends.
func (b backend) eachNewPod(ctx context.Context, id akash.LeaseID, services []string, known []workload.Pod, tell func(workload.Pod)) {
	seen := map[lease.ReplicaID]bool{}
	for _, pod := range known {
		seen[pod.ID] = true
	}
	tick := time.NewTicker(podsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, running := b.p.provider.Lease(id); !running {
			return
		}
		pods, err := b.pods(id, services)
		if err != nil {
			continue // a service that an update removed may come back
		}
		for _, pod := range pods {
			if !seen[pod.ID] {
				seen[pod.ID] = true
				tell(pod)
			}
		}
	}
}

const podsEvery = 2 * time.Second

// Events implements gateway.Events. Those that no part keeps come first: a
// manifest that was refused, what relays do not lead here.
func (b backend) Events(ctx context.Context, id akash.LeaseID, services []string, follow bool) iter.Seq2[lease.Event, error] {
	return func(yield func(lease.Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		tell := func(e lease.Event) bool {
			return len(services) > 0 && !slices.Contains(services, e.Service) || yield(e, nil)
		}
		events, err := b.p.workloads.Events(ctx, id, 0, follow)
		refused, was := b.p.refusals.of(id)
		if was && (err == nil || !follow) && !tell(refused) {
			return
		}
		if was && err != nil && !follow {
			return // there is nothing else to tell yet
		}
		if err != nil {
			yield(lease.Event{}, err)
			return
		}
		reached, last, news := b.p.reach.events(id, 0)
		for _, e := range reached {
			if !tell(e) {
				return
			}
		}
		kept := make(chan lease.Event)
		var reader sync.WaitGroup
		defer reader.Wait()
		defer cancel()
		reader.Go(func() {
			defer close(kept)
			for e := range events {
				select {
				case kept <- e:
				case <-ctx.Done():
					return
				}
			}
		})
		for {
			select {
			case e, more := <-kept:
				if !more || !tell(e) {
					return
				}
			case <-news:
				reached, last, news = b.p.reach.events(id, last)
				for _, e := range reached {
					if !tell(e) {
						return
					}
				}
			}
		}
	}
}

// Exec implements gateway.Shell.
func (b backend) Exec(ctx context.Context, id akash.LeaseID, e gateway.Exec) (int, error) {
	pod, err := b.p.workloads.Replica(id, e.Service, e.Index)
	if err != nil {
		return 0, err
	}
	var resize chan [2]uint16
	if e.Resize != nil {
		resize = make(chan [2]uint16)
		done, cancel := context.WithCancel(ctx)
		var sizes sync.WaitGroup
		defer sizes.Wait()
		defer cancel()
		sizes.Go(func() {
			for {
				select {
				case w := <-e.Resize:
					select {
					case resize <- [2]uint16{w.Width, w.Height}:
					case <-done.Done():
						return
					}
				case <-done.Done():
					return
				}
			}
		})
	}
	return b.p.sandbox.Exec(ctx, pod.ID, e.Command, e.TTY, e.Stdin, e.Stdout, e.Stderr, resize)
}

// Provided implements gateway.Provided.
func (b backend) Provided(context.Context) (gateway.Provider, error) {
	s := b.p.provider.Status()
	taken := s.Reserved.Plus(s.Leased)
	free := offer.Room{
		CPU: max(s.Capacity.CPU-taken.CPU, 0), Memory: max(s.Capacity.Memory-taken.Memory, 0), Storage: max(s.Capacity.Storage-taken.Storage, 0),
	}
	out := gateway.Provider{
		Leases: len(b.p.provider.Leases()), PublicHosts: []string{b.p.cfg.domain()},
		Machine: gateway.Machine{
			Name: b.p.cfg.Device.ShortName(), Allocatable: amounts(s.Capacity), Available: amounts(free),
			Processor: gateway.Processor{Vendor: b.p.machine.CPU.Vendor, Model: b.p.machine.CPU.Model, Threads: b.p.machine.CPU.Threads},
		},
		Classes:     []gateway.Class{{Name: string(b.p.class), Size: s.Capacity.Storage, Available: free.Storage}},
		Reclamation: s.Notice,
	}
	for _, l := range b.p.provider.Leases() {
		if l.Manifest {
			out.Deployments++
		}
	}
	for _, item := range s.Items {
		switch item.State {
		case bidding.Leased, bidding.Closing:
			out.Active = append(out.Active, amounts(item.Room))
		case bidding.Reserved, bidding.Open, bidding.Withdrawing:
			out.Pending = append(out.Pending, amounts(item.Room))
			out.Orders++
		default: // it holds nothing: no bid yet, or all over
		}
	}
	if s.Unready != "" {
		out.Errors = []string{s.Unready}
	}
	return out, nil
}

// amounts are those of a room, whose disk holds all classes of storage.
func amounts(r offer.Room) gateway.Amounts {
	out := gateway.Amounts{CPU: r.CPU, Memory: r.Memory, StorageEphemeral: r.Storage}
	for _, n := range r.GPUs {
		out.GPU += n
	}
	return out
}

// MigrateHosts implements gateway.Hosts.
func (b backend) MigrateHosts(_ context.Context, names []string, to akash.GroupID) ([]string, error) {
	return b.p.workloads.MigrateHosts(to.Owner, to.DSeq, to.GSeq, names)
}

// MigrateEndpoints implements gateway.Hosts: a box leases no addresses.
func (b backend) MigrateEndpoints(_ context.Context, names []string, _ akash.GroupID) ([]string, error) {
	return nil, &croft.Error{
		Kind:   croft.KindNotFound,
		Err:    fmt.Errorf("endpoints %q: this provider leases no IP addresses", names),
		Remedy: "use host names or ports",
	}
}
