//go:build integration

package workload

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
)

// TestManyStoriesEndWell plays random lives of a box until 30 000 things have
// happened in them: manifests, updates, ends, faults, crashes, reboots and closes.
// Each run plays others; a story that goes wrong names its seed.
func TestManyStoriesEndWell(t *testing.T) {
	const enough = 30_000
	var told, happened atomic.Int64
	t.Cleanup(func() { t.Logf("%d stories, %d things happened", told.Load(), happened.Load()) })
	for shard := range runtime.GOMAXPROCS(0) {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			for happened.Load() < enough && !t.Failed() {
				happened.Add(int64(story(t, rand.Uint64())))
				told.Add(1)
			}
		})
	}
}
