package hosting

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/network"
	"github.com/croft-cloud/croft/agent/workload"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/marketv1"
)

// keyWon is the journal's key of a lease that was told as won and not yet as
// ended.
const keyWon = "hosting/won/"

// LeaseWon implements bidding.Leases: the manifest is the tenant's next step, if
// it was not sent already.
func (p *parts) LeaseWon(ctx context.Context, l bidding.Lease) error {
	if err := p.takeSiblings(ctx, l.ID); err != nil {
		return err
	}
	key := keyWon + string(lease.KeyOf(l.ID))
	if told, err := p.cfg.Journal.Get(key, new(string)); told || err != nil {
		return err
	}
	if _, err := p.cfg.Journal.Event(EventWon, map[string]string{"lease": l.ID.String(), "price": l.Price.String()}); err != nil {
		return err
	}
	return p.cfg.Journal.Put(key, l.ID.String())
}

// takeSiblings gives a new lease the manifest of another group of its deployment
// on this box: a tenant sends one manifest for all of them, perhaps before the box
// has heard of the last lease.
func (p *parts) takeSiblings(ctx context.Context, id akash.LeaseID) error {
	if _, err := p.workloads.Manifest(id); err == nil {
		return nil
	}
	for _, other := range p.workloads.Held() {
		if other.DeploymentID != id.DeploymentID || other == id {
			continue
		}
		taken, err := p.workloads.Manifest(other)
		if err != nil {
			continue // it has none either
		}
		err = backend{p}.Accept(ctx, id.DeploymentID, taken.Raw)
		switch croft.KindOf(err) {
		case croft.KindNotFound, croft.KindInvalid, croft.KindRefused:
			return nil // the tenant's next manifest is another one
		default: // it may be taken another time
			return err
		}
	}
	return nil
}

// LeaseClosed implements bidding.Leases.
func (p *parts) LeaseClosed(ctx context.Context, id akash.LeaseID, reason marketv1.LeaseClosedReason) error {
	if err := p.workloads.Close(ctx, id); err != nil {
		return err
	}
	if err := p.network.Forget(ctx, lease.KeyOf(id)); err != nil {
		return err
	}
	key := keyWon + string(lease.KeyOf(id))
	if told, err := p.cfg.Journal.Get(key, new(string)); !told || err != nil {
		return err
	}
	if _, err := p.cfg.Journal.Event(EventEnded, map[string]string{"lease": id.String(), "reason": reason.String()}); err != nil {
		return err
	}
	return p.cfg.Journal.Delete(key)
}

// The events of leases in the journal. A power cut at the wrong moment tells one
// twice.
const (
	EventWon   journal.Kind = "lease_won"
	EventEnded journal.Kind = "lease_ended"
)

// LeasesOf implements workload.Leases. Which leases run is known; what the tenant
// wants now is asked of the chain, because events may still be on their way.
func (p *parts) LeasesOf(ctx context.Context, tenant account.Address, dseq uint64) (active []akash.LeaseID, hash []byte, groups []*deploymentv1beta4.GroupSpec, err error) {
	for _, l := range p.provider.Leases() {
		if l.ID.Owner == tenant && l.ID.DSeq == dseq {
			active = append(active, l.ID)
		}
	}
	if len(active) == 0 {
		return nil, nil, nil, nil
	}
	d, err := p.chain.Deployment(ctx, akash.DeploymentID{Owner: tenant, DSeq: dseq})
	if croft.KindOf(err) == croft.KindNotFound {
		return nil, nil, nil, nil
	}
	if err != nil {
		return nil, nil, nil, err
	}
	ordered := slices.SortedFunc(slices.Values(d.GetGroups()), func(a, b *deploymentv1beta4.Group) int {
		return int(a.GetId().GetGseq()) - int(b.GetId().GetGseq())
	})
	for _, g := range ordered {
		groups = append(groups, g.GetGroupSpec())
	}
	return active, d.GetDeployment().GetHash(), groups, nil
}

// sweep frees what belongs to no lease: once the chain was asked in this life,
// and then every now and then.
func (p *parts) sweep(ctx context.Context) error {
	next := time.NewTimer(sweepPause)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
		if s := p.provider.Status(); !s.Surveyed || !s.Reached {
			next.Reset(sweepPause)
			continue
		}
		if err := errors.Join(p.sweepNow(ctx), p.giveUp(ctx)); err != nil && ctx.Err() == nil {
			p.cfg.Log.Warn("what belongs to no lease was not swept away", "err", err)
			next.Reset(sweepPause)
			continue
		}
		next.Reset(sweepEvery)
	}
}

const (
	sweepPause = 10 * time.Second
	sweepEvery = time.Hour
)

// giveUp asks for the end of leases of which nothing runs, and nothing will unless
// the tenant changes it, so that their tenants stop paying.
func (p *parts) giveUp(ctx context.Context) error {
	var errs []error
	for _, plight := range p.workloads.Hopeless() {
		if time.Since(plight.Since) < patience {
			continue
		}
		err := p.provider.Close(ctx, plight.Lease, marketv1.LeaseClosedReason_lease_closed_reason_unstable, plight.Why)
		if croft.KindOf(err) != croft.KindNotFound { // else it is over already
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// patience is how long a tenant has for mending what cannot run.
const patience = 24 * time.Hour

func (p *parts) sweepNow(ctx context.Context) error {
	var active []akash.LeaseID
	var keys []lease.Key
	for _, l := range p.provider.Leases() {
		active = append(active, l.ID)
		keys = append(keys, lease.KeyOf(l.ID))
	}
	if err := p.workloads.Sweep(ctx, active); err != nil {
		return err
	}
	if len(p.workloads.Held()) == 0 || p.full.Load() {
		p.ingress.Tidy()
	}
	for _, id := range p.workloads.Held() { // those that are being closed still use their images
		keys = append(keys, lease.KeyOf(id))
	}
	return p.sandbox.Collect(ctx, keys)
}

// links are workload's network.
type links struct {
	wires
	shape network.Options
}

// Attach implements workload.Network.
func (l links) Attach(ctx context.Context, id lease.ReplicaID) (lease.Attachment, error) {
	return l.wires.Attach(ctx, id, l.shape)
}

// Attached implements workload.Network.
func (l links) Attached(context.Context) ([]lease.ReplicaID, error) { return l.Replicas(), nil }

// SetLease implements workload.Network.
func (l links) SetLease(ctx context.Context, key lease.Key, peers []workload.Peer) error {
	if len(peers) == 0 {
		// After a restart nobody has an address yet, and all still have their links.
		if slices.ContainsFunc(l.Replicas(), func(id lease.ReplicaID) bool { return id.Lease == key }) {
			return nil
		}
		return l.Forget(ctx, key)
	}
	return l.wires.SetLease(ctx, key, leaseOf(peers))
}

// leaseOf says to the network what replicas may reach of each other.
func leaseOf(peers []workload.Peer) network.Lease {
	out := network.Lease{Egress: network.Full}
	var names []string
	for _, p := range peers {
		if !slices.Contains(names, p.ID.Service) {
			names = append(names, p.ID.Service)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		service := network.Service{Name: name}
		for _, p := range peers {
			if p.ID.Service != name {
				continue
			}
			if !p.Resolves {
				service.Silent = append(service.Silent, p.ID.Pod())
			}
			for _, o := range p.Open {
				protocol := "tcp"
				if o.UDP {
					protocol = "udp"
				}
				i := slices.IndexFunc(service.Ports, func(at network.Port) bool { return at.Number == o.Port && at.Protocol == protocol })
				if i < 0 {
					i = len(service.Ports)
					service.Ports = append(service.Ports, network.Port{Number: o.Port, Protocol: protocol})
				}
				from := []string{o.From}
				if o.From == "" {
					from = names
				}
				for _, f := range from {
					if !slices.Contains(service.Ports[i].To, f) {
						service.Ports[i].To = append(service.Ports[i].To, f)
					}
				}
			}
		}
		if len(service.Ports) > 0 {
			out.Services = append(out.Services, service)
		}
	}
	return out
}
