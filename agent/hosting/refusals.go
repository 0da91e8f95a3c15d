package hosting

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
)

// refusals is the last manifest of each lease that was not taken, for tenant and
// owner: a workload that has its own diary comes with the first that is. They are
// in memory only. The zero value is ready.
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
