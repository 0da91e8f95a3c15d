package ingest

import (
	"sync/atomic"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Reasons of this package, beside those of fleetapi.
const (
	ReasonPressure fleetapi.Reason = "pressure" // QoS 0, and no room for it or nobody to store it
	ReasonRevoked  fleetapi.Reason = "revoked"  // of a device that was revoked
	ReasonRejected fleetapi.Reason = "rejected" // sound, but the sink will not have it
	ReasonStranger fleetapi.Reason = "stranger" // a connection without a certificate that counts, or counts no longer
	ReasonCrowd    fleetapi.Reason = "crowd"    // a connection over the rate or number of connections
)

// Stats is what happened since New. Counters only grow.
type Stats struct {
	Received  map[fleetapi.Subject]uint64 // messages
	Stored    map[fleetapi.Subject]uint64 // messages the sink took
	Refused   map[fleetapi.Reason]uint64  // messages and connections
	Retries   uint64                      // calls of the sink that are made again
	TakenOver uint64                      // connections ended by another of the same device

	Connected int // devices at the embedded broker, now
	Queued    int // messages waiting, now

	Holds  bool // this replica has the fleet's session at the external broker, now
	Shares bool // this replica publishes there and hears what comes by QoS 0, now
}

// counters has all keys from the start, so that its maps are never written.
type counters struct {
	received, stored map[fleetapi.Subject]*atomic.Uint64
	refused          map[fleetapi.Reason]*atomic.Uint64

	retries, takenOver atomic.Uint64
}

func newCounters() *counters {
	c := &counters{
		received: map[fleetapi.Subject]*atomic.Uint64{},
		stored:   map[fleetapi.Subject]*atomic.Uint64{},
		refused:  map[fleetapi.Reason]*atomic.Uint64{},
	}
	for _, s := range fleetapi.Subjects() {
		if s.Up() {
			c.received[s], c.stored[s] = new(atomic.Uint64), new(atomic.Uint64)
		}
	}
	reasons := append(fleetapi.Reasons(), ReasonPressure, ReasonRevoked, ReasonRejected, ReasonStranger, ReasonCrowd)
	for _, r := range reasons {
		c.refused[r] = new(atomic.Uint64)
	}
	return c
}

func (c *counters) refuse(r fleetapi.Reason) {
	n := c.refused[r]
	if n == nil { // a word of the sink's own
		n = c.refused[fleetapi.ReasonOther]
	}
	n.Add(1)
}

func (c *counters) stats() Stats {
	return Stats{
		Received:  loaded(c.received),
		Stored:    loaded(c.stored),
		Refused:   loaded(c.refused),
		Retries:   c.retries.Load(),
		TakenOver: c.takenOver.Load(),
	}
}

func loaded[K comparable](m map[K]*atomic.Uint64) map[K]uint64 {
	out := make(map[K]uint64, len(m))
	for k, v := range m {
		out[k] = v.Load()
	}
	return out
}
