package db

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// fate says what another try would bring.
type fate int

const (
	final    fate = iota // the same again
	conflict             // perhaps success: another transaction was in the way
	lost                 // perhaps success: the connection is gone, and another may be had
)

// How often a transaction is tried, and the pauses in between: they double from
// shortest to longest, and each is shortened by up to a half, by chance.
const (
	mostConflicts   = 50
	conflictPause   = 2 * time.Millisecond
	longestConflict = 250 * time.Millisecond

	mostLost    = 8 // about 5 s together
	lostPause   = 50 * time.Millisecond
	longestLost = 2 * time.Second
)

// again calls try until its fate is final, tries are used up or ctx ends.
func again(ctx context.Context, try func() (fate, error)) error {
	conflicts, losses := 0, 0
	for {
		f, err := try()
		if err == nil || f == final {
			return err
		}
		var pause time.Duration
		switch f {
		case conflict:
			conflicts++
			if conflicts == mostConflicts {
				return fmt.Errorf("give up after %d conflicts: %w", conflicts, err)
			}
			pause = backoff(conflicts, conflictPause, longestConflict)
		default:
			losses++
			if losses == mostLost {
				return fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			pause = backoff(losses, lostPause, longestLost)
		}
		if !sleep(ctx, pause) {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// backoff is the pause after the nth failure in a row, from 1.
func backoff(n int, shortest, longest time.Duration) time.Duration {
	pause := min(shortest<<min(n-1, 20), longest)
	return pause/2 + rand.N(pause/2+1)
}

// sleep reports whether the pause passed before ctx ended.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
