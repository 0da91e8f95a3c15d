package fleetlink

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// machine is a box's clocks in a bubble of synctest: the true time passes there.
type machine struct {
	*clock
	mu    sync.Mutex
	up    time.Time     // when it was switched on
	wrong time.Duration // by how much its clock is ahead of the truth
	chip  time.Duration // the same of the hardware clock
	noRTC bool
	away  bool // the fleet
	said  []string
}

func newMachine(t *testing.T, wrong, chip time.Duration) *machine {
	m := &machine{up: time.Now(), wrong: wrong, chip: chip}
	c := newClock(t.TempDir(), t.TempDir())
	c.kernel = func() (sampling.Clock, error) { return sampling.Clock{}, nil }
	c.now = func() time.Time {
		m.mu.Lock()
		defer m.mu.Unlock()
		return time.Now().Add(m.wrong).Round(0)
	}
	c.sinceUp = func() time.Duration { return time.Since(m.up) }
	c.rtc = func() (time.Time, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.noRTC {
			return time.Time{}, errors.New("there is none")
		}
		return time.Now().Add(m.chip).Truncate(time.Second), nil
	}
	c.set = func(to time.Time) error {
		m.change(func() { m.wrong = time.Until(to) })
		return nil
	}
	c.compare = func(context.Context) (time.Duration, time.Duration, error) {
		m.mu.Lock()
		away, ahead := m.away, -m.wrong
		m.mu.Unlock()
		if away {
			return 0, 0, errors.New("no answer")
		}
		c.floor(time.Now()) // as agent/uplink does
		return ahead, 20 * time.Millisecond, nil
	}
	c.event = func(kind string, _ fleetapi.Severity, sentence string, _ map[string]string) {
		m.change(func() { m.said = append(m.said, kind+": "+sentence) })
	}
	c.base = c.measure()
	m.clock = c
	return m
}

func (m *machine) change(how func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	how()
}

// ntp is what gokrazy's ntp does when a server has answered.
func (m *machine) ntp() { m.change(func() { m.wrong, m.chip = 0, 0 }) }

func (m *machine) want(t *testing.T, evidence Evidence, known bool) {
	t.Helper()
	synctest.Wait()
	if _, is := m.Now(); is != known || m.known() != evidence {
		t.Errorf("the clock is known: %v, by %s; want %v, by %s", is, m.known(), known, evidence)
	}
	if s, err := m.Sample(); err != nil || s.Synced != known {
		t.Errorf("readings say %+v, %v", s, err)
	}
}

func (m *machine) watch(t *testing.T) {
	go func() { _ = m.run(t.Context()) }()
}

const year = 365 * 24 * time.Hour

func TestClockIsKnownByTwoThatAgree(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"it is not known at the start": func(t *testing.T) {
			m := newMachine(t, 0, 0)
			m.change(func() { m.away = true })
			m.watch(t)
			m.want(t, NoEvidence, false)
			time.Sleep(time.Hour)
			m.want(t, NoEvidence, false)
			m.change(func() { m.away = false })
			time.Sleep(6 * time.Minute)
			m.want(t, FleetAgrees, true)
		},
		"a clock of 2099 is not, and nobody sets it back": func(t *testing.T) {
			m := newMachine(t, 73*year, 73*year)
			m.watch(t)
			m.want(t, FleetContrary, false)
			if m.wrong != 73*year {
				t.Error("the clock was set")
			}
			m.ntp()
			time.Sleep(clockLook)
			m.want(t, FleetAgrees, true) // it was compared at once
			if len(m.said) != 1 || m.said[0] != "clock_stepped: The clock of the box was set back by 639480h0m0s." {
				t.Errorf("events: %q", m.said)
			}
		},
		"a clock of 1970 is mended and still not known": func(t *testing.T) {
			m := newMachine(t, -30*year, -30*year)
			m.watch(t)
			m.want(t, MendedByFleet, false)
			if m.wrong.Abs() > time.Second || len(m.said) != 1 {
				t.Errorf("the clock is %v ahead; events %q", m.wrong, m.said)
			}
			time.Sleep(7 * time.Hour) // compared again: it agrees with itself
			m.want(t, MendedByFleet, false)
			next := newClock(t.TempDir(), filepath.Dir(m.mended))
			if next.evidence != MendedByFleet || !next.ours {
				t.Error("the next agent of this boot takes the fleet's word for a second one")
			}
			m.change(func() { m.wrong += 20 * time.Millisecond })
			m.change(func() { m.chip = 0 })
			time.Sleep(clockLook)
			m.want(t, NTPSetIt, true)
			if _, err := os.Stat(m.mended); err == nil {
				t.Error("the next agent would not know")
			}
		},
		"what was saved at the last shutdown is no server's time": func(t *testing.T) {
			m := newMachine(t, 0, 0)
			m.change(func() { m.away = true })
			m.watch(t)
			m.want(t, NoEvidence, false)
			m.change(func() { m.wrong = -time.Hour })
			time.Sleep(clockLook)
			m.want(t, NoEvidence, false)
			m.ntp()
			time.Sleep(clockLook)
			m.want(t, NTPSetIt, true)
		},
		"without hardware clock only the fleet counts": func(t *testing.T) {
			m := newMachine(t, time.Hour, 0)
			m.change(func() { m.noRTC, m.away = true, true })
			m.watch(t)
			m.want(t, NoEvidence, false)
			m.ntp()
			time.Sleep(clockLook)
			m.want(t, NoEvidence, false)
			m.change(func() { m.away = false })
			time.Sleep(6 * time.Minute)
			m.want(t, FleetAgrees, true)
		},
		"a known clock that jumps is unknown at once": func(t *testing.T) {
			m := newMachine(t, 0, 0)
			m.watch(t)
			m.want(t, FleetAgrees, true)
			m.change(func() { m.wrong = 2 * time.Second })
			m.want(t, FleetAgrees, false)
			time.Sleep(clockLook)
			m.want(t, FleetAgrees, true) // two seconds are close enough
			m.change(func() { m.wrong = time.Minute })
			time.Sleep(clockLook)
			m.want(t, FleetContrary, false)
		},
		"a server that differs from the fleet is not believed": func(t *testing.T) {
			m := newMachine(t, time.Minute, 0)
			m.watch(t)
			m.want(t, FleetContrary, false)
			m.change(func() { m.wrong += 50 * time.Millisecond })
			m.change(func() { m.chip = m.wrong })
			time.Sleep(clockLook)
			m.want(t, FleetContrary, false)
		},
		"a steered clock is the kernel's to judge": func(t *testing.T) {
			m := newMachine(t, 0, 0)
			m.kernel = func() (sampling.Clock, error) { return sampling.Clock{Synced: true}, nil }
			m.want(t, KernelSays, true)
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
}
