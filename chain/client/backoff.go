package client

import (
	"context"
	"math/rand/v2"
	"time"
)

// Back-off between attempts: doubles from first to last, with jitter, so that
// many clients of a node that came back do not knock in one instant.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// pause sleeps before the attempt after attempt (0 is the first) or until ctx
// ends, and returns ctx's error then.
func pause(ctx context.Context, attempt int) error {
	d := lastPause
	if attempt < 6 {
		d = min(firstPause<<attempt, lastPause)
	}
	return sleep(ctx, d/2+rand.N(d/2+1))
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
