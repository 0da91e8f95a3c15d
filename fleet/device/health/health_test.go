package health_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/device/health"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// well is a case with nothing wrong, changed by each test.
func well(change func(c *health.Case)) health.Case {
	c := health.Case{
		Now: now, Known: true, Online: true, Seen: now, Synced: true, CertificateUntil: now.AddDate(0, 0, 80),
		Readings: map[health.Gauge]float64{
			health.Hottest: 60, health.DiskUsed: 0.5, health.Throttled: 0, health.Restarts: 1, health.ClockOff: 0.1,
			health.PermReadOnly: 0, health.MemoryFree: 0.4,
		},
	}
	change(&c)
	return c
}

func read(gauge health.Gauge, value float64) func(*health.Case) {
	return func(c *health.Case) { c.Readings[gauge] = value }
}

func offline(live, silent int) func(*health.Case) {
	return func(c *health.Case) {
		c.Online, c.Seen, c.LiveNeighbours, c.SilentNeighbours, c.Readings = false, now.Add(-2*time.Hour), live, silent, nil
	}
}

func TestOf(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*health.Case)
		codes  []health.Code
		owner  string // a part of the owner's sentence
		text   string // a part of the first diagnosis
	}{
		{"nothing is wrong", func(*health.Case) {}, nil, "Your box is well.", ""},
		{"what is not measured is not wrong", func(c *health.Case) { c.Readings = nil }, nil, "well", ""},
		{"offline alone", offline(0, 0), []health.Code{health.Offline}, "offline for 2 hours: check that it has power", "Offline since 2026-11-21 10:00 UTC (2 hours). It fell silent."},
		{"offline among others online", offline(2, 1), []health.Code{health.Offline}, "though the internet there works", "2 other boxes are"},
		{"offline with all others", offline(0, 1), []health.Code{health.NoInternet}, "check your internet connection", "1 other box is"},
		{"left", func(c *health.Case) { offline(0, 0)(c); c.Farewell = true }, []health.Code{health.Offline}, "", "Its connection was ended."},
		{"enrolled only", func(c *health.Case) { c.Known, c.Online = false, false }, []health.Code{health.NeverSeen}, "starting", "never connected"},
		{"retired hides all else", func(c *health.Case) { offline(0, 0)(c); c.Retired = true; c.Alerts = "x" }, []health.Code{health.Retired}, "out of service", ""},
		{"warm", read(health.Hottest, 84.9), nil, "well", ""},
		{"hot", read(health.Hottest, 85), []health.Code{health.Hot}, "85 °C", "85 °C"},
		{"disk nearly full", read(health.DiskUsed, 0.9), []health.Code{health.DiskFull}, "nearly full", "90 % full"},
		{"disk is not told as full before it is", read(health.DiskUsed, 0.999), []health.Code{health.DiskFull}, "", "99 % full"},
		{"throttling", read(health.Throttled, 3), []health.Code{health.Throttling}, "slows itself down", "3 times"},
		{"started thrice", read(health.Restarts, 3), nil, "well", ""},
		{"crash loop", read(health.Restarts, 4), []health.Code{health.CrashLoop}, "restarting", "4 times"},
		{"memory", read(health.MemoryFree, 0.01), []health.Code{health.MemoryShort}, "short of memory", "1.0 %"},
		{"clock behind", read(health.ClockOff, -90), []health.Code{health.ClockWrong}, "clock", "1 minute behind"},
		{"clock of 2099", read(health.ClockOff, 2.3e9), []health.Code{health.ClockWrong}, "clock", "ahead"},
		{"clock never set", func(c *health.Case) { c.Synced = false }, []health.Code{health.ClockWrong}, "clock", "No server"},
		{"/perm read-only", read(health.PermReadOnly, 1), []health.Code{health.ReadOnly}, "can no longer be written", "read-only"},
		{"certificate in time", func(c *health.Case) { c.CertificateUntil = now.AddDate(0, 0, 31) }, nil, "well", ""},
		{"certificate near its end", func(c *health.Case) { c.CertificateUntil = now.AddDate(0, 0, 20) }, []health.Code{health.Certificate}, "papers", "in 20 days"},
		{"certificate over", func(c *health.Case) { c.CertificateUntil = now.AddDate(0, 0, -1) }, []health.Code{health.Certificate}, "papers", "ended on 2026-11-20"},
		{"an alert of the operator", func(c *health.Case) { c.Alerts = "Fan stands still" }, []health.Code{health.OperatorRule}, "Fan stands still", "Fan"},
		{
			"the gravest is first",
			func(c *health.Case) {
				read(health.Hottest, 90)(c)
				read(health.PermReadOnly, 1)(c)
				read(health.DiskUsed, 0.95)(c)
				read(health.Throttled, 1)(c)
			},
			[]health.Code{health.ReadOnly, health.DiskFull, health.Hot, health.Throttling},
			"can no longer be written", "",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			report := health.Of(well(tc.change))
			var codes []health.Code
			for _, d := range report.Diagnoses {
				codes = append(codes, d.Code)
				if !slices.Contains(health.Codes(), d.Code) || d.Text == "" || d.Severity == "" || d.Remedy == "" && d.Code != health.Retired {
					t.Errorf("diagnosis %+v lacks something", d)
				}
			}
			if !slices.Equal(codes, tc.codes) || report.Well != (len(tc.codes) == 0) {
				t.Errorf("diagnoses %v, want %v", codes, tc.codes)
			}
			if !strings.Contains(report.Sentence, tc.owner) || report.Sentence == "" {
				t.Errorf("the owner reads %q, want %q in it", report.Sentence, tc.owner)
			}
			if len(report.Diagnoses) > 0 && !strings.Contains(report.Diagnoses[0].Text, tc.text) {
				t.Errorf("the support reads %q, want %q in it", report.Diagnoses[0].Text, tc.text)
			}
		})
	}
}

func TestSeverityGrows(t *testing.T) {
	for _, tc := range []struct {
		gauge     health.Gauge
		low, high float64
	}{{health.DiskUsed, 0.92, 0.99}, {health.Hottest, 86, 99}} {
		low, high := health.Of(well(read(tc.gauge, tc.low))), health.Of(well(read(tc.gauge, tc.high)))
		if low.Diagnoses[0].Severity == high.Diagnoses[0].Severity || high.Diagnoses[0].Severity == fleetapi.SeverityWarning {
			t.Errorf("%s: %s at %v, %s at %v", tc.gauge, low.Diagnoses[0].Severity, tc.low, high.Diagnoses[0].Severity, tc.high)
		}
	}
}
