package fleet

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// refusedBeat is how often the log says what was refused.
const refusedBeat = time.Minute

// tellRefused writes into the log why messages and connections of boxes were refused,
// and how many, but not each: who sends rubbish does not fill a disk with it.
func (f *Fleet) tellRefused(ctx context.Context) error {
	tick := time.NewTicker(refusedBeat)
	defer tick.Stop()
	told := map[fleetapi.Reason]uint64{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := f.ingest.Stats().Refused
		if counts := refusedSince(told, now); len(counts) > 0 {
			f.log.LogAttrs(ctx, slog.LevelWarn, "messages or connections of boxes were refused", counts...)
		}
		told = now
	}
}

// refusedSince is how many were refused between two counts, by reason.
func refusedSince(before, now map[fleetapi.Reason]uint64) (counts []slog.Attr) {
	for _, reason := range slices.Sorted(maps.Keys(now)) {
		if n := now[reason] - before[reason]; n > 0 {
			counts = append(counts, slog.Uint64(string(reason), n))
		}
	}
	return counts
}
