package uplink

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff draws pauses with decorrelated jitter: those who failed at the same
// moment soon try at different ones. Its pauses are never shorter than least.
type backoff struct {
	least  time.Duration
	spread time.Duration // the first pause is at most this
	most   time.Duration
	last   time.Duration // 0: it begins
}

func (b *backoff) next() time.Duration {
	upTo := max(3*b.last, b.least)
	if b.last == 0 {
		upTo = b.spread
	}
	b.last = min(b.least+rand.N(upTo-b.least+1), b.most)
	return b.last
}

func (b *backoff) reset() { b.last = 0 }

// pauses are between tries to reach the fleet.
type pauses struct {
	failure backoff // it cannot be reached
	refusal backoff // it does not want us; trying at once would be a storm
}

// defaultPauses: after a broker's restart, ten thousand boxes come back over half
// a minute, and one that cannot asks every five minutes at most.
func defaultPauses() pauses {
	return pauses{
		failure: backoff{least: time.Second, spread: 30 * time.Second, most: 5 * time.Minute},
		refusal: backoff{least: time.Minute, spread: 2 * time.Minute, most: time.Hour},
	}
}

func (p *pauses) after(err error) time.Duration { return p.next(isRefusal(err)) }

func (p *pauses) next(refused bool) time.Duration {
	if refused {
		return p.refusal.next()
	}
	return p.failure.next()
}

func (p *pauses) reset() {
	p.failure.reset()
	p.refusal.reset()
}

// Pauses are what a box waits between its tries to reach the fleet, for those who
// reach it in a box's stead (internal/simbox). They are for one goroutine.
type Pauses struct{ of pauses }

// NewPauses is the pauses of a box that starts.
func NewPauses() *Pauses { return &Pauses{defaultPauses()} }

// Next is how long to wait after a try that failed: the fleet was not reached, or
// it refused.
func (p *Pauses) Next(refused bool) time.Duration { return p.of.next(refused) }

// Reset is told of a session that has lasted for [Steady].
func (p *Pauses) Reset() { p.of.reset() }

// Steady is how long a session lasts that was a good one: after it, pauses begin
// anew.
const Steady = time.Minute

// sleep waits for d and reports whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
