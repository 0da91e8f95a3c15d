package uplink

import (
	"context"
	"log/slog"
	"sync"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const desiredKey = "uplink/desired" // in the journal: the payload's bytes

// desired is what the fleet wants of the box: the greatest version ever seen.
type desired struct {
	journal *journal.Journal
	log     *slog.Logger
	changed chan struct{} // holds one

	turn sync.Mutex // held by the one who stores
	mu   sync.Mutex
	now  *fleetapi.Desired // guarded by mu; nil: the fleet has said nothing yet
}

func loadDesired(j *journal.Journal, log *slog.Logger) *desired {
	d := &desired{journal: j, log: log, changed: make(chan struct{}, 1)}
	var raw []byte
	found, err := j.Get(desiredKey, &raw)
	if err == nil && found {
		if d.now, err = fleetapi.Parse[fleetapi.Desired](raw); err == nil {
			d.changed <- struct{}{}
		}
	}
	if err != nil { // the fleet says it again: it is retained
		d.now = nil
		log.Warn("stored wishes of the fleet are lost", "err", err)
	}
	return d
}

func (d *desired) newest() *fleetapi.Desired {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

// take keeps what is newer than all before, and ignores the rest.
func (d *desired) take(next *fleetapi.Desired) {
	d.turn.Lock()
	defer d.turn.Unlock()
	if now := d.newest(); now != nil && next.Version <= now.Version {
		return
	}
	raw, err := fleetapi.Encode(next)
	if err == nil {
		err = d.journal.Put(desiredKey, raw)
	}
	if err != nil { // it counts all the same: the broker keeps it for the next start
		d.log.Warn("wishes of the fleet cannot be stored", "err", err)
	}
	d.mu.Lock()
	d.now = next
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// tell hands the newest version to the caller until ctx ends.
func (d *desired) tell(ctx context.Context, to func(fleetapi.Desired)) error {
	for {
		select {
		case <-d.changed:
			to(*d.newest())
		case <-ctx.Done():
			return nil
		}
	}
}
