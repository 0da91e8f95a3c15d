package timeseries

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
)

// boxSeries is what one box sends: 80 series, half of them counters.
func boxSeries(rng *rand.Rand, minute int, at time.Time) []Sample {
	samples := make([]Sample, 0, 80)
	for i := range 40 {
		samples = append(samples,
			gauge(fmt.Sprintf("croft_gauge_%d", i/4), at, float64(rng.IntN(1000))/10, "kind", fmt.Sprint("k", i%4)),
			gauge(fmt.Sprintf("croft_counter_%d_total", i/4), at, float64(minute*60+rng.IntN(30)), "mode", fmt.Sprint("m", i%4)))
	}
	return samples
}

// BenchmarkFleet appends three hours and more of DEVICES boxes (default 1,000)
// with one batch a minute, as fast as it goes, and tells what a sample, a series
// and a device cost.
func BenchmarkFleet(b *testing.B) {
	devices, minutes := 1000, 200
	if n, err := strconv.Atoi(os.Getenv("DEVICES")); err == nil {
		devices = n
	}
	if n, err := strconv.Atoi(os.Getenv("MINUTES")); err == nil {
		minutes = n
	}
	for b.Loop() {
		s := open(b, Config{MaxSeries: 1 << 30})
		ids := make([]croft.DeviceID, devices)
		for i := range ids {
			ids[i] = device(i)
		}
		rng := rand.New(rand.NewPCG(1, 2))
		empty := heap()
		begin := time.Now()
		first := begin.Add(-time.Duration(minutes) * time.Minute)
		var spent time.Duration
		for m := range minutes {
			at := first.Add(time.Duration(m) * time.Minute)
			batch := boxSeries(rng, m, at)
			start := time.Now()
			for _, id := range ids {
				if n, err := s.Append(b.Context(), id, batch); err != nil || n != 80 {
					b.Fatal(n, err, s.Stats().Refused)
				}
			}
			spent += time.Since(start)
		}
		s.raw.ForceHeadMMap() // the database does it every few minutes; here no minute has passed
		series, samples := float64(devices*80), float64(devices*80*minutes)
		b.ReportMetric(samples/spent.Seconds(), "samples/s")
		b.ReportMetric(float64(heap()-empty)/series, "heap-B/series")
		b.ReportMetric(float64(heap()-empty)/float64(devices), "heap-B/device")
		b.ReportMetric(float64(rss())/float64(devices), "rss-B/device")
		b.ReportMetric(float64(s.Stats().RawBytes)/samples, "disk-B/sample")
		page(b, s, ids[devices/2], begin)
		closeStore(b, s)
	}
}

// page asks what a device's page shows: twelve charts of three hours by minutes.
func page(b *testing.B, s *Store, id croft.DeviceID, now time.Time) {
	scope := Scope{Devices: []croft.DeviceID{id}}
	var worst, sum time.Duration
	for range 10 {
		start := time.Now()
		for i := range 6 {
			for _, query := range []string{fmt.Sprintf(`croft_gauge_%d{device="%s"}`, i, id), fmt.Sprintf(`rate(croft_counter_%d_total{device="%s"}[5m])`, i, id)} {
				series, err := s.Range(context.Background(), scope, query, now.Add(-3*time.Hour), now, time.Minute)
				if err != nil || len(series) != 4 {
					b.Fatal(series, err)
				}
			}
		}
		took := time.Since(start)
		sum, worst = sum+took, max(worst, took)
	}
	b.ReportMetric(sum.Seconds()*100, "page-ms")
	b.ReportMetric(worst.Seconds()*1000, "worst-page-ms")
	start := time.Now()
	if _, err := s.Instant(context.Background(), everything, "topk(10, avg by (device) (croft_gauge_0))", now); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(time.Since(start).Seconds()*1000, "fleet-query-ms")
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// rss is the memory of this process that is not of files.
func rss() (bytes int64) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &bytes); err == nil {
			return bytes << 10
		}
	}
	return 0
}
