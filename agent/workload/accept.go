package workload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/diary"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// Accept checks a manifest that a tenant sent for a deployment, stores it for
// each lease of the deployment on this box, and returns; Run makes it so. The
// manifest that is there already is accepted again and changes nothing.
//
// The checks and their order are those of Akash's providers. An error wraps one
// of the reasons of agent/blueprint, or is none of the tenant's doing. Of a tenant
// without a lease not a byte is looked at; those of the others are read one by one,
// as they come, and wait for that until ctx ends. How many wait is bounded by
// whoever takes them in.
func (w *Workloads) Accept(ctx context.Context, tenant account.Address, dseq uint64, raw []byte) error {
	var sent *blueprint.Sent
	active, err := w.await(ctx, tenant, dseq, func(hash []byte, groups []*deploymentv1beta4.GroupSpec) (err error) {
		// The worst costs half a second and a hundred megabytes, most of them free
		// again at once; the next look costs nothing.
		if err := w.reading.Acquire(ctx, 1); err != nil {
			return fmt.Errorf("wait to read a manifest: %w", err)
		}
		defer w.reading.Release(1)
		if sent == nil {
			if sent, err = blueprint.Read(raw); err != nil {
				return err
			}
		}
		return sent.Fits(hash, groups)
	})
	if err != nil {
		return err
	}

	w.turn.Lock()
	defer w.turn.Unlock()
	// All leases of the deployment are checked before anything is stored for any.
	claims := map[lease.Key]map[string]uint64{}
	parts := map[lease.Key]sdl.Group{}
	for _, g := range active {
		group := sent.Manifest[slices.IndexFunc(sent.Manifest, func(m sdl.Group) bool { return m.Name == g.group })]
		key := lease.KeyOf(g.id)
		if claims[key], err = w.names().Claim(g.id, group); err != nil {
			return err
		}
		parts[key] = group
	}
	for _, g := range active {
		key := lease.KeyOf(g.id)
		if err := w.store(g.id, parts[key], claims[key], raw, sent.Hash); err != nil {
			return fmt.Errorf("store manifest of lease %s: %w", g.id, err)
		}
	}
	return nil
}

// Expect waits a little for a tenant's deployment to have a lease here, and says
// as Accept does that it has none. Whoever takes manifests in asks before the first
// byte.
func (w *Workloads) Expect(ctx context.Context, tenant account.Address, dseq uint64) error {
	_, err := w.await(ctx, tenant, dseq, func([]byte, []*deploymentv1beta4.GroupSpec) error { return nil })
	return err
}

// granted is one lease and the group that runs under it.
type granted struct {
	id    akash.LeaseID
	group string
}

// await waits until the chain, as we know it, has a lease and what fits says is
// right: a tenant may be a block ahead of us.
func (w *Workloads) await(ctx context.Context, tenant account.Address, dseq uint64, fits func(hash []byte, groups []*deploymentv1beta4.GroupSpec) error) ([]granted, error) {
	deadline := time.Now().Add(w.cfg.Patience)
	for {
		active, hash, groups, err := w.cfg.Leases.LeasesOf(ctx, tenant, dseq)
		if err != nil {
			return nil, fmt.Errorf("look up leases of deployment %s/%d: %w", tenant, dseq, err)
		}
		refusal := blueprint.Refuse(blueprint.ErrNoLease, fmt.Errorf("deployment %s/%d has none with this provider", tenant, dseq), "create the lease first")
		if len(active) > 0 {
			refusal = fits(hash, groups)
		}
		switch {
		case refusal == nil:
			var all []granted
			for _, id := range active {
				if id.Owner != tenant || id.DSeq != dseq || id.GSeq == 0 || uint64(id.GSeq) > uint64(len(groups)) {
					return nil, fmt.Errorf("look up leases of deployment %s/%d: got lease %s for %d groups", tenant, dseq, id, len(groups))
				}
				all = append(all, granted{id, groups[id.GSeq-1].GetName()})
			}
			return all, nil
		case !errors.Is(refusal, blueprint.ErrNoLease) && !errors.Is(refusal, blueprint.ErrWrongHash), !time.Now().Before(deadline):
			return nil, refusal
		}
		sleep(ctx, min(time.Second, time.Until(deadline)))
		if ctx.Err() != nil {
			return nil, refusal
		}
	}
}

// store keeps a manifest that passed all checks, and wakes whoever acts upon
// it. turn is held.
func (w *Workloads) store(id akash.LeaseID, group sdl.Group, claims map[string]uint64, raw []byte, hash [32]byte) error {
	key := lease.KeyOf(id)
	w.mu.Lock()
	l, late := w.works[key], slices.Contains(w.closed, id) || w.strays[key]
	w.mu.Unlock()
	switch {
	case late:
		return blueprint.Refuse(blueprint.ErrClosing, fmt.Errorf("lease %s", id), "create a new deployment")
	case l != nil && l.id != id:
		return fmt.Errorf("lease %s has the key %s of lease %s", id, key, l.id)
	}
	fresh := l == nil
	if fresh {
		l = w.newWork(id)
		l.diary = diary.Open(w.folder(key), w.log)
	}
	l.mu.Lock()
	revision, same := l.rec.Revision, bytes.Equal(l.rec.Hash, hash[:])
	_, here := l.groups[revision]
	over := l.rec.State == blueprint.Closing
	l.mu.Unlock()
	if over {
		return blueprint.Refuse(blueprint.ErrClosing, fmt.Errorf("lease %s", id), "create a new deployment")
	}
	if same && here {
		return nil
	}
	if fresh {
		revision = w.newest(key, raw)
	} else if !same {
		revision++
	}
	if err := atomicfile.MkdirAll(w.folder(key), 0o700); err != nil {
		return err
	}
	// The journal comes last: what it names is there.
	if err := w.writeFile(blueprint.ManifestFile(w.folder(key), revision), raw, 0o600); err != nil {
		return err
	}
	err := l.update(func(r *blueprint.Record) error {
		next, err := r.State.Next(blueprint.Accepted)
		if err != nil {
			return blueprint.Refuse(blueprint.ErrClosing, err, "create a new deployment")
		}
		r.Take(group, hash, claims, revision, next)
		return nil
	}, func() {
		l.groups[revision] = group
		if to, err := l.state.Next(blueprint.Accepted); err == nil {
			l.state = to
		}
	})
	if err == nil && fresh {
		w.mu.Lock()
		w.works[key] = l
		w.mu.Unlock()
		poke(w.wake)
	}
	return err
}

// newest is the revision of a lease's first manifest: not 1 if a journal was lost.
func (w *Workloads) newest(key lease.Key, raw []byte) uint64 {
	files, _ := os.ReadDir(w.folder(key))
	last := blueprint.LastRevision(files)
	if old, err := w.readManifest(key, last); err == nil && bytes.Equal(old, raw) {
		return last
	}
	return last + 1
}

// names is who has which host name, and which nobody may have.
func (w *Workloads) names() blueprint.Names {
	n := blueprint.Names{
		Domain:   w.cfg.IngressDomain,
		Reserved: append([]string{w.cfg.IngressDomain, w.cfg.PublicHost}, w.cfg.Reserved...),
		Holders:  map[string]blueprint.Holder{},
	}
	w.mu.Lock()
	works := slices.SortedFunc(maps.Values(w.works), func(a, b *work) int { return strings.Compare(string(a.key), string(b.key)) })
	w.mu.Unlock()
	for _, l := range works {
		l.mu.Lock()
		if l.rec.State != blueprint.Closing {
			for host, claim := range l.rec.Hosts {
				n.Hold(host, l.id, claim)
			}
		}
		l.mu.Unlock()
	}
	return n
}

// MigrateHosts brings host names from wherever they are to a lease of the same
// tenant whose manifest names them, and returns those that moved. It moves all
// or none.
func (w *Workloads) MigrateHosts(tenant account.Address, dseq uint64, gseq uint32, hosts []string) ([]string, error) {
	w.turn.Lock()
	defer w.turn.Unlock()
	w.mu.Lock()
	var to *work
	for _, l := range w.works {
		if l.id.Owner == tenant && l.id.DSeq == dseq && l.id.GSeq == gseq {
			to = l
		}
	}
	w.mu.Unlock()
	if to == nil {
		return nil, blueprint.Refuse(blueprint.ErrNoLease, fmt.Errorf("deployment %s/%d has no workload in group %d", tenant, dseq, gseq), "send the manifest first")
	}
	names := w.names()
	err := to.update(func(r *blueprint.Record) error {
		if r.State == blueprint.Closing {
			return blueprint.Refuse(blueprint.ErrClosing, fmt.Errorf("lease %s", to.id), "create a new deployment")
		}
		return names.Migrate(tenant, r.Hosts, hosts)
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("migrate host names to lease %s: %w", to.id, err)
	}
	w.publish()
	return slices.Clone(hosts), nil
}
