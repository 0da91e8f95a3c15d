package cometnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/pprof"
	"time"

	"github.com/croft-cloud/croft"
)

// ErrStalled reports that the chain made no block for too long. The node has
// stopped; starting it again is the remedy.
var ErrStalled = errors.New("the chain stands still")

// Watchdog stops a node whose height stands still.
//
// CometBFT's consensus can die alone: it recovers a panic of its own, of the
// application or of a failed write of its signing state (a full disk is
// enough), logs it and leaves the process, its ports and its mempool alive. It
// can also wait for ever: a vote that could not be signed is logged and
// dropped, and with a single validator there is no other vote to wait for and
// no time-out pending. And if the clock is set back by more than a minute,
// every proposal is refused as too far in the future until it has caught up.
// From outside all three look the same: the node answers, and the height
// stands. The first is also heard in the log, which saves the wait.
type Watchdog struct {
	Every  time.Duration   // between looks
	Limit  time.Duration   // standstill that is one too many
	Height func() int64    // of the last block
	Idle   func() bool     // the node is not in consensus yet: it looks for peers, blocks or state; it gets ten times the limit
	Failed <-chan struct{} // consensus said it gave up
	Log    *slog.Logger
}

// Run returns nil when ctx ends and [ErrStalled] when the chain stands still.
func (w Watchdog) Run(ctx context.Context) error {
	ticker := time.NewTicker(w.Every)
	defer ticker.Stop()
	last, since := w.Height(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Failed:
			return w.bark(last, since)
		case <-ticker.C:
		}
		if height := w.Height(); height != last {
			last, since = height, time.Now()
			continue
		}
		limit := w.Limit
		if w.Idle() {
			limit *= 10
		}
		if time.Since(since) >= limit {
			return w.bark(last, since)
		}
	}
}

func (w Watchdog) bark(height int64, since time.Time) error {
	var stacks bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&stacks, 2); err != nil {
		fmt.Fprintf(&stacks, "no stacks: %v", err)
	}
	w.Log.Error("chain stands still", "height", height, "since", since, "limit", w.Limit, "goroutines", stacks.String())
	return &croft.Error{
		Kind:   croft.KindOther,
		Err:    fmt.Errorf("%w at height %d since %s", ErrStalled, height, since.Format(time.RFC3339)),
		Remedy: "start the node again; if it stalls at once, look for disk space, the clock and, in a validator set, the other validators",
	}
}
