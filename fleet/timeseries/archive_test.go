package timeseries

import (
	"context"
	"fmt"
	"math"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/croft-cloud/croft"
)

func appendAt(app storage.Appender, d croft.DeviceID, at time.Time) Reason {
	series := seriesOf{app: app, builder: labels.NewScratchBuilder(4)}
	if why := series.next(d, gauge("a", at, 1)); why != "" {
		return why
	}
	return series.append(at.UnixMilli(), 1)
}

// inMemory is a folder for a test of which durability is no part: days of
// compaction wait for many syncs.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "timeseries")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestCondenseKeepsWindowsApart(t *testing.T) {
	minute := time.Minute.Milliseconds()
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	base := time.Now().Truncate(window).Add(-time.Hour)
	for m, v := range []float64{1, 2, 3, 4, 5, 10, math.Inf(1), 20} {
		add(t, s, device(1), gauge("a", base.Add(time.Duration(m)*time.Minute), v))
	}
	q, err := s.raw.Querier(0, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = q.Close() }()
	set := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchEqual, labels.MetricName, "a"))
	if !set.Next() {
		t.Fatal("nothing is there")
	}
	var got [len(archiveNames)][]point
	if err := condense(set.At().Iterator(nil), false, &got); err != nil {
		t.Fatal(err)
	}
	first, next := base.UnixMilli()+5*minute-1, base.UnixMilli()+10*minute-1
	want := [len(archiveNames)][]point{
		mean: {{first, 3}, {next, math.Inf(1)}}, low: {{first, 1}, {next, 10}}, high: {{first, 5}, {next, math.Inf(1)}},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAgeDeletesOneBlockAnHour(t *testing.T) {
	t.Parallel()
	dir := inMemory(t)
	synctest.Test(t, func(t *testing.T) {
		s, stop := running(t, Config{Dir: dir, Retention: 4 * day, SyncEvery: day})
		for range 10 {
			add(t, s, device(1), gauge("a", time.Now(), 1))
			time.Sleep(12 * time.Hour)
		}
		before := len(s.raw.BlockMetas())
		// All are too old at once.
		s.mu.RLock()
		blocks := s.raw.Blocks()
		s.mu.RUnlock()
		k := &keep{age: time.Nanosecond}
		k.db.Store(s.raw.DB)
		if got := len(k.deletable(blocks)); before < 3 || got > 1 {
			t.Errorf("%d of %d blocks go at once", got, before)
		}
		if got := len(k.deletable(blocks)); got != 0 {
			t.Errorf("%d go a moment later", got)
		}
		stop()
	})
}

func TestNamesOfCounters(t *testing.T) {
	pattern := labels.MustNewMatcher(labels.MatchRegexp, labels.MetricName, counterNames)
	for name, want := range map[string]bool{"croft_x_total": true, "x_bucket": true, "x_sum": true, "x_count": true, "croft_load1": false, "total": false, "_totals": false} {
		if isCounter(name) != want || pattern.Matches(name) != want {
			t.Errorf("%s: %v and %v, want %v", name, isCounter(name), pattern.Matches(name), want)
		}
	}
}
