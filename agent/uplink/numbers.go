package uplink

import (
	"sync"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const sessionKey = "uplink/session" // in the journal: sessionNumber

// sessionNumber is the newest number of a session.
type sessionNumber struct {
	Journal uint64 `json:"journal"` // as in fleetapi.Origin
	Epoch   uint64 `json:"epoch"`
}

// rememberOrigin begins to count anew under another number.
func (u *Uplink) rememberOrigin(origin uint64) error {
	return u.cfg.Journal.Put(sessionKey, sessionNumber{Journal: origin})
}

// counters are the numbers of sessions and batches.
type counters struct {
	turn     sync.Mutex    // held while the journal is written
	session  sessionNumber // guarded by turn; epoch 0: none was drawn yet
	used     bool          // guarded by turn; a broker may have seen the session's number
	batches  uint64        // guarded by turn; of this session
	volatile sessionNumber // guarded by turn; for when the disk takes none
}

// nextSession is the number for the next CONNECT. One that no broker can have
// seen is used again.
func (u *Uplink) nextSession() sessionNumber {
	u.counters.turn.Lock()
	defer u.counters.turn.Unlock()
	if c := &u.counters; c.session.Epoch == 0 || c.used {
		u.drawLocked()
	}
	return u.counters.session
}

// tried is told that the session's number may be known outside.
func (u *Uplink) tried() {
	u.counters.turn.Lock()
	defer u.counters.turn.Unlock()
	u.counters.used = true
}

// batchNumber is the number of the next batch of readings.
func (u *Uplink) batchNumber() (epoch, seq uint64) {
	u.counters.turn.Lock()
	defer u.counters.turn.Unlock()
	if u.counters.session.Epoch == 0 {
		u.drawLocked()
	}
	u.counters.batches++
	return u.counters.session.Epoch, u.counters.batches
}

func (u *Uplink) drawLocked() {
	c := &u.counters
	c.used, c.batches = false, 0
	if origin := u.spool.Journal(); origin != 0 {
		var stored sessionNumber
		found, err := u.cfg.Journal.Get(sessionKey, &stored)
		if err == nil && found && stored.Journal == origin {
			stored.Epoch++
			if u.cfg.Journal.Put(sessionKey, stored) == nil {
				c.session = stored
				return
			}
		}
	}
	// The disk takes none: count under a number that ends with the process.
	c.volatile.Epoch++
	c.session = c.volatile
}

// stamp is the device clock as it goes over the wire, and whether it is known to
// be right.
func (u *Uplink) stamp() (at time.Time, synced bool) {
	at, synced = u.cfg.Clock()
	return wireTime(at), synced
}

// wireTime is at as it goes over the wire, which knows the years 1970 to 2199.
func wireTime(at time.Time) time.Time {
	first, last := time.Unix(0, 0), time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)
	switch {
	case at.Before(first):
		at = first
	case at.After(last):
		at = last
	}
	return fleetapi.Truncate(at)
}

// age is the clock in seconds, 0 while it is not known.
func (u *Uplink) age() int64 {
	now, known := u.cfg.Clock()
	if !known {
		return 0
	}
	return max(0, now.Unix())
}

// hello says who the box is.
func (u *Uplink) hello(state fleetapi.State) *fleetapi.Hello {
	at, synced := u.stamp()
	h := &fleetapi.Hello{
		Journal: state.Journal, Epoch: state.Epoch, Version: fleetapi.Version, At: at, Synced: synced,
		BootID: u.cfg.BootID, Release: u.cfg.Release, Slot: u.cfg.Slot, Board: u.cfg.Board, Serial: u.cfg.Serial,
	}
	if u.cfg.Facts != nil {
		h.Facts = u.cfg.Facts()
	}
	return h
}
