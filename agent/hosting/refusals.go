package hosting

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
)

// Expect implements gateway.Manifests. A lease that is known is not looked up on
// the chain: Accept does.
func (b backend) Expect(ctx context.Context, id akash.DeploymentID) error {
	if slices.ContainsFunc(b.p.provider.Leases(), func(l bidding.Lease) bool { return l.ID.DeploymentID == id }) {
		return nil
	}
	return b.p.workloads.Expect(ctx, id.Owner, id.DSeq)
}

// refusals is the last manifest of each lease that was not taken, for tenant and
// owner: a workload that has its own diary comes with the first that is. The zero
// value is ready.
//
// They are in memory only and gone with the agent. The tenant had the sentence in
// the answer, nothing acts upon it, and the same manifest sent again brings it back;
// in the journal each manifest that a tenant gets wrong, some twenty a second,
// would be a write to the box's flash.
type refusals struct {
	mu   sync.Mutex
	last map[akash.LeaseID]lease.Event // guarded by mu
}

// note remembers why the manifest of a lease was refused. Trouble of the box
// itself is not the manifest's.
func (r *refusals) note(id akash.LeaseID, err error) {
	switch croft.KindOf(err) {
	case croft.KindInvalid, croft.KindRefused, croft.KindUsage:
	default:
		return
	}
	const most = 1024 // bytes: a sentence may quote the manifest
	why := err.Error()
	if len(why) > most {
		why = strings.ToValidUTF8(why[:most], "") + "…"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[akash.LeaseID]lease.Event{}
	}
	r.last[id] = lease.Event{At: time.Now().UTC(), Type: lease.Warning, Reason: manifestRefused, Note: "a manifest was refused: " + why}
}

const manifestRefused = "ManifestRefused"

// forget is for a lease whose manifest was taken.
func (r *refusals) forget(id akash.LeaseID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, id)
}

// keep forgets all leases but those that run.
func (r *refusals) keep(running []akash.LeaseID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.last, func(id akash.LeaseID, _ lease.Event) bool { return !slices.Contains(running, id) })
}

func (r *refusals) of(id akash.LeaseID) (lease.Event, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.last[id]
	return e, ok
}
