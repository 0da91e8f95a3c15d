//go:build integration

package hosting

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
)

// TestTheBoxKeepsThemTogetherAHundredThousandTimes plays stories until 100 000
// things have happened in them: orders, leases, manifests, updates, ends, faults,
// crashes and reboots. Their seeds follow -model.first.
func TestTheBoxKeepsThemTogetherAHundredThousandTimes(t *testing.T) {
	const enough = 100_000
	total := newTally()
	var next atomic.Uint64
	next.Store(*modelFirst)
	t.Cleanup(func() { total.check(t) })
	for shard := range runtime.GOMAXPROCS(0) {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			for !t.Failed() && total.count() < enough {
				story(t, next.Add(1), total)
			}
		})
	}
}

func (y *tally) count() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.happened
}
