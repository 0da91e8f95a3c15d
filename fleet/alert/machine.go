package alert

import "time"

// State is where a rule stands with a box or a group; without one all is well.
type State string

// The states.
const (
	Pending  State = "pending"  // bad, not yet for long enough. Transitions to: firing, resolved, none
	Firing   State = "firing"   // an alert. Transitions to: resolved
	Resolved State = "resolved" // good again, and remembered for flapMemory. Transitions to: pending, none
)

// verdict is what one look found.
type verdict string

const (
	good    verdict = "good"
	bad     verdict = "bad"
	unknown verdict = "unknown" // nothing can be said
	gone    verdict = "gone"    // there is nothing to judge any more
)

// Damping of what fires again and again.
const (
	flapMemory = time.Hour // an alert that fires within this of the one before flaps
	maxFlaps   = 4         // Clear is doubled with each, up to 16 times
)

// item is a rule and what it is held against.
type item struct {
	rule, target string
	state        State
	since        time.Time // when it became bad; pending and firing
	clear        time.Time // since when it has been good; firing; zero: it is not
	alert        string    // id; firing
	ended        time.Time // when the alert before ended; zero: none is remembered
	flaps        int
}

// move is what a step did that others must learn of.
type move string

const (
	stays    move = ""
	fires    move = "fires"
	resolves move = "resolves"
)

// step is the state machine. It only computes. lost is time that passed since the
// last step and in which nobody looked: it counts for nothing.
func (i item) step(v verdict, r Rule, now time.Time, lost time.Duration) (item, move) {
	switch i.state {
	case Pending:
		i.since = i.since.Add(lost)
		if v == bad {
			return i.ripen(r, now)
		}
		return i.calm(v, now), stays
	case Firing:
		if !i.clear.IsZero() {
			i.clear = i.clear.Add(lost)
		}
		switch {
		case v == gone:
			return i.end(now), resolves
		case v != good:
			i.clear = time.Time{}
			return i, stays
		case i.clear.IsZero():
			i.clear = now
		}
		if now.Sub(i.clear) >= r.clear()<<i.flaps {
			return i.end(now), resolves
		}
		return i, stays
	case Resolved:
	}
	if v == bad {
		i.state, i.since = Pending, now
		return i.ripen(r, now)
	}
	return i.calm(v, now), stays
}

// ripen lets a pending item fire when its time has come.
func (i item) ripen(r Rule, now time.Time) (item, move) {
	if now.Sub(i.since) < r.For {
		return i, stays
	}
	if i.remembers(now) {
		i.flaps = min(i.flaps+1, maxFlaps)
	} else {
		i.flaps = 0
	}
	i.state = Firing
	return i, fires
}

func (i item) end(now time.Time) item {
	i.state, i.ended, i.since, i.clear = Resolved, now, time.Time{}, time.Time{}
	return i
}

// calm is the item without what was pending.
func (i item) calm(v verdict, now time.Time) item {
	if v == gone || !i.remembers(now) {
		return item{rule: i.rule, target: i.target}
	}
	i.state, i.since = Resolved, time.Time{}
	return i
}

func (i item) remembers(now time.Time) bool {
	return !i.ended.IsZero() && now.Sub(i.ended) < flapMemory
}
