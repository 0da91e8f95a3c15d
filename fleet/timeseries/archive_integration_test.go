//go:build integration

package timeseries

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
)

// TestDaysBecomeFiveMinuteValues lets six days pass with one sample a minute:
// a gauge whose value is the minute of its window (0 to 4), and a counter of one a
// second.
func TestDaysBecomeFiveMinuteValues(t *testing.T) {
	t.Parallel()
	dir := inMemory(t)
	synctest.Test(t, func(t *testing.T) {
		const days = 6
		begin := time.Now()
		cfg := Config{Dir: dir, Retention: 84 * time.Hour, OutOfOrder: 11 * time.Hour, SyncEvery: day}
		s, stop := running(t, cfg)
		mine := Scope{Devices: []croft.DeviceID{device(1)}}
		for m := 0; m < days*24*60; m += 15 {
			var batch []Sample
			for i := range 15 {
				at := time.Now().Add(time.Duration(i) * time.Minute)
				batch = append(batch, gauge("a", at, float64(i%5), "k", "v"), gauge("c_total", at, float64(60*(m+i))))
			}
			if m%1440 == 720 { // late, in between two others
				batch = append(batch, gauge("late", time.Now(), 1), gauge("late", time.Now().Add(-10*time.Hour), 100))
			}
			time.Sleep(15 * time.Minute)
			add(t, s, device(1), batch...)
			add(t, s, device(2), gauge("a", time.Now(), 1000))
		}
		now := time.Now()
		st := s.Stats()
		if st.ArchivedUntil.Before(begin.Add((days-2)*day)) || st.ArchiveFailures > 0 || st.CompactionFailures > 0 {
			t.Fatalf("stats say %+v", st)
		}
		if oldest := time.UnixMilli(s.raw.BlockMetas()[0].MinTime); now.Sub(oldest) > 100*time.Hour {
			t.Errorf("samples go back to %s, want about 84 hours before %s", oldest, now)
		}
		verify := func() {
			t.Helper()
			old, young := begin.Add(day), now.Add(-time.Hour)
			for _, tc := range []struct {
				name, query string
				at          time.Time
				want        string
			}{
				{"an average of what is only in the archive", "avg_over_time(a[1h])", old, "2"},
				{"the greatest", "max_over_time(a[1h])", old, "4"},
				{"the least", "min_over_time(a[1h])", old, "0"},
				{"five-minute values, one each", "count_over_time(a[1h])", old, "12"},
				{"samples, sixty of them", "count_over_time(a[1h])", young, "60"},
				{"a window of a day in the samples' time", "count_over_time(a[1d])", now.Add(-2*day - time.Minute), "288"},
				{"the rate of a counter", "round(rate(c_total[1h]), 0.001)", old, "1"},
				{"the greatest of a counter", "max_over_time(c_total[1h]) - min_over_time(c_total[1h])", old, "3300"},
				{"the rate over all of it", "round(rate(c_total[5d]), 0.01)", now, "1"},
				{"a late sample", "max_over_time(late[1d])", begin.Add(2 * day), "100"},
				{"the other device", `max_over_time(a{k=""}[1h])`, old, ""},
			} {
				if tc.want == "" {
					if got := instant(t, s, mine, tc.query, tc.at); got != "" {
						t.Errorf("%s: %q", tc.name, got)
					}
					continue
				}
				series, err := s.Instant(t.Context(), mine, tc.query, tc.at)
				if err != nil || len(series) != 1 || fmt.Sprint(series[0].Points[0].Value) != tc.want {
					t.Errorf("%s: %s = %v, %v; want %s", tc.name, tc.query, series, err, tc.want)
				}
			}
			// A chart of all time has a point at each step, over both resolutions.
			series, err := s.Range(t.Context(), mine, "a", begin.Add(time.Hour), now, time.Hour)
			if err != nil || len(series) != 1 {
				t.Fatalf("%v, %v", series, err)
			}
			for i, p := range series[0].Points {
				want := begin.Add(time.Duration(i+1) * time.Hour)
				if !p.At.Equal(want) || p.Value != 2 && p.At.Before(st.ArchivedUntil) {
					t.Fatalf("point %d is %v, want 2 at %s", i, p, want)
				}
			}
			if n := len(series[0].Points); n < days*24-2 {
				t.Errorf("%d points", n)
			}
			// And so has one by minutes within the samples' time.
			if series, err = s.Range(t.Context(), mine, "a", now.Add(-2*day), now.Add(-2*day).Add(4*time.Minute), time.Minute); err != nil || text(series) != fmt.Sprintf("__name__=a device=%s k=v 0 1 2 3 4", device(1)) {
				t.Errorf("by minutes: %s, %v", text(series), err)
			}
		}
		verify()
		if got := instant(t, s, everything, `count(max_over_time(a[1h]))`, begin.Add(day)); got != "2" {
			t.Errorf("one who sees all sees %q", got)
		}
		stop()
		// A crash before the marker: the days are archived again, without harm.
		if err := os.Remove(filepath.Join(dir, "archived-until")); err != nil {
			t.Fatal(err)
		}
		s, stop = running(t, cfg)
		if got := s.Stats().ArchivedUntil; got.Before(st.ArchivedUntil) {
			t.Errorf("without its marker the archive ends at %s, want %s", got, st.ArchivedUntil)
		}
		s.marker -= day.Milliseconds()
		if err := s.archiveDays(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour) // the second copies are found and merged
		verify()
		stop()
	})
}
