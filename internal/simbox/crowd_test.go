package simbox

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

func TestReadingsAreThoseOfSampling(t *testing.T) {
	made := map[string]bool{}
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	m := newModel(3, now.Add(-time.Hour))
	for len(m.leases(now)) < 2 {
		now = now.Add(time.Hour)
	}
	readings := func(at time.Time) *fleetapi.Batch {
		b := m.batch(at, 6, 10*time.Second)
		b.Epoch, b.Seq, b.BootID = 1, 1, newBootID()
		if _, err := fleetapi.Encode(b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	early, late := readings(now), readings(now.Add(time.Minute))
	if n := len(early.Series); n < 75 || n > 110 {
		t.Errorf("%d series", n)
	}
	for i, s := range early.Series {
		made[s.Name] = true
		metric, known := metrics[s.Name]
		if !known || metric.Counter != s.Counter || len(metric.Labels) != len(s.Labels) {
			t.Errorf("%s %v is not as in sampling's table", s.Name, s.Labels)
		}
		values := append(s.Values, late.Series[i].Values...)
		for k, v := range values {
			if math.IsNaN(v) || math.IsInf(v, 0) || s.Counter && k > 0 && v < values[k-1] {
				t.Errorf("%s %v: %v", s.Name, s.Labels, values)
				break
			}
		}
	}
	// What a box without a GPU, an eMMC, SATA drives or a Raspberry Pi's sensors
	// does not tell, and what is told of faults only.
	for _, metric := range sampling.Table() {
		absent := strings.HasPrefix(metric.Name, "croft_gpu_")
		switch metric.Name {
		case "croft_disk_life_used_ratio", "croft_disk_end_of_life", "croft_disk_io_errors_total",
			"croft_power_watts", "croft_undervoltage", "croft_agent_readings_missed_total":
			absent = true
		}
		if made[metric.Name] == absent {
			t.Errorf("%s is made up: %v", metric.Name, made[metric.Name])
		}
	}
}

func TestLeasesComeAndGo(t *testing.T) {
	m := newModel(9, time.Now())
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	turns, before := 0, names(m.leases(now))
	for end := now.Add(48 * time.Hour); now.Before(end); turns++ {
		next := m.turn(now)
		if !next.After(now) {
			t.Fatalf("the turn after %v is %v", now, next)
		}
		if got := names(m.leases(next.Add(-time.Millisecond))); fmt.Sprint(got) != fmt.Sprint(before) {
			t.Errorf("before %v: %v, %v", next, before, got)
		}
		now = next.Add(time.Millisecond)
		after := names(m.leases(now))
		if fmt.Sprint(after) == fmt.Sprint(before) {
			t.Errorf("nothing changes at %v", next)
		}
		before = after
	}
	if turns < 20 {
		t.Errorf("%d turns in two days", turns)
	}
}

func TestLeasesPay(t *testing.T) {
	m := newModel(9, time.Now())
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	first, before, due := m.earned(now), m.earned(now), 0.0
	for end := now.Add(month); now.Before(end); {
		rate, want := m.income(now), 0.0
		for _, l := range m.leases(now) {
			place := 0
			if strings.HasSuffix(l.name, "-2-1") {
				place = 1
			}
			want += m.price(place)
		}
		if rate != want {
			t.Fatalf("at %v leases pay %v a month, want %v", now, rate, want)
		}
		due += rate / float64(month/time.Minute)
		now = now.Add(time.Minute)
		earned := m.earned(now)
		if earned < before || earned != math.Floor(earned) {
			t.Fatalf("at %v the box has earned %v, before it was %v", now, earned, before)
		}
		before = earned
	}
	if got := before - first; math.Abs(got-due) > due/100 || due < 1e6 || due > 20e6 {
		t.Errorf("leases paid %v in a month, due was %v", got, due)
	}
	if m.earned(time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)) != 0 {
		t.Error("the box earned before it was there")
	}
}

// gather runs a crowd until the test ends.
func gather(t *testing.T, cfg CrowdConfig) (c *Crowd, end func()) {
	t.Helper()
	c = must(NewCrowd(cfg))(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return c, end
}

func TestCrowdEnrolsSpeaksAndDoesJobs(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		dir := t.TempDir()
		var mu sync.Mutex
		members := map[croft.DeviceID]Member{} // guarded by mu
		cfg := CrowdConfig{
			Fleet: w.fleet(), Boxes: 12, First: 1, Dir: dir, Confirm: true, Spread: 10 * time.Second,
			Dial:     func(n uint64) Dial { return w.net.from(fmt.Sprintf("198.51.100.%d", n)) },
			Enrolled: func(m Member) { mu.Lock(); members[m.Device] = m; mu.Unlock() },
		}
		c, end := gather(t, cfg)
		until(t, time.Minute, "all are connected", func() bool { return c.Stats().Connected == 12 })
		time.Sleep(5 * time.Minute)
		s := c.Stats()
		if want := int64(12 * (2 + 5)); s.Sent < want-12 || s.Sent > want+12 || s.Acknowledged != s.Sent || s.Heard < 12 || s.MostDelay == 0 {
			t.Errorf("statistics: %+v", s)
		}
		w.mu.Lock()
		for id, n := range w.devicely {
			if n < 4 || n > 6 {
				t.Errorf("%s sent %d batches in 5 minutes", id, n)
			}
		}
		w.mu.Unlock()
		var id croft.DeviceID
		for id = range members {
		}
		if found, err := w.devices.StartClaim(t.Context(), device.Claimant{Account: "own_ada"}, members[id].Code.Shown()); err != nil || found.Device != id {
			t.Errorf("claim: %+v, %v", found, err)
		}
		done, refused := w.queue(id, fleetapi.KindReboot), w.queue(id, fleetapi.KindBundle)
		until(t, time.Minute, "the jobs are done", func() bool {
			return w.state(done.ID).State == fleetapi.Succeeded && w.state(refused.ID).State == fleetapi.Rejected
		})
		end()
		if c.Stats().Connected != 0 || w.box(id).Presence != fleetapi.Lost {
			t.Errorf("the crowd has not left: %d, %s", c.Stats().Connected, w.box(id).Presence)
		}

		known := len(members)
		again, _ := gather(t, cfg)
		until(t, time.Minute, "all are back", func() bool { return again.Stats().Connected == 12 })
		mu.Lock()
		defer mu.Unlock()
		if len(members) != known {
			t.Errorf("%d boxes of the second crowd are others", len(members)-known)
		}
	})
}

// issue is certificates without a port and a database.
func (w *world) issue(_ context.Context, id croft.DeviceID, req *enroll.Request) (string, error) {
	issued, err := w.authority.IssueDevice(req.CSR, enroll.Peer{Standing: enroll.Candidate, Device: id}, time.Now())
	if err != nil {
		return "", err
	}
	return issued.Chain, nil
}

func TestCrowdComesBackWithoutAStorm(t *testing.T) { comeBack(t, 200) }

// comeBack restarts the broker of a crowd.
func comeBack(t *testing.T, boxes int) {
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newInternet(), "")
		c, _ := gather(t, CrowdConfig{
			Fleet: w.fleet(), Boxes: boxes, Issue: w.issue, Brokers: w.brokers(), EnrolRate: 1e6,
			Dial: func(n uint64) Dial { return w.net.from(fmt.Sprintf("10.0.%d.%d", n>>8, n&255)) },
		})
		until(t, 5*time.Minute, "all are connected", func() bool { return c.Stats().Connected == boxes })
		time.Sleep(2 * time.Minute)
		restart := time.Now()
		w.away(5 * time.Second)
		until(t, 10*time.Minute, "all are back", func() bool { return c.Stats().Connected == boxes })
		took := time.Since(restart)

		begin, seconds := c.Seconds()
		most, tries, ends := 0, 0, 0
		var picture []int
		for _, s := range seconds[int(restart.Sub(begin)/time.Second):] {
			most, tries, ends = max(most, s.Tries), tries+s.Tries, ends+s.Ends
			picture = append(picture, s.Tries)
		}
		t.Logf("%d boxes came back in %v by %d tries, at most %d in a second: %v", boxes, took, tries, most, picture)
		if ends != boxes || most > boxes/10 || took > 2*time.Minute || tries > 2*boxes {
			t.Errorf("%d sessions ended; %d tries, at most %d in a second; all were back after %v", ends, tries, most, took)
		}
	})
}
