package fleetlink

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/agent/uplink"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Evidence is why a clock is taken to be right.
type Evidence string

// The kinds of evidence.
const (
	NoEvidence    Evidence = "none"
	KernelSays    Evidence = "kernel"      // a program steers it by adjtimex
	NTPSetIt      Evidence = "ntp"         // it was set while the agent ran, and the hardware clock with it
	FleetAgrees   Evidence = "fleet"       // it was compared with the fleet's
	FleetContrary Evidence = "fleet_other" // the same, and is another
	MendedByFleet Evidence = "mended"      // it was set by what the fleet said, and nobody else has confirmed it
)

const (
	clockLook    = 5 * time.Second
	clockCompare = 6 * time.Hour
	clockClose   = 5 * time.Second      // so far from the fleet's it is right
	clockStep    = 5 * time.Millisecond // more than that is no jitter of reading two clocks: somebody set one
	clockJump    = time.Second          // more than that is worth a doubt
	clockNews    = 5 * time.Second      // and more than that an event
	clockRTC     = 2 * time.Second      // the hardware clock has whole seconds, and is set a moment later
)

const (
	mendedFile    = "clock-mended"
	hardwareClock = "sys/class/rtc/rtc0/since_epoch"
)

// clock knows whether the box's clock is right.
//
// Gokrazy's ntp sets the clock outright, at first to when the box was switched off
// last and then, each hour, to what a server says; the kernel does not know which
// was which. So that a clock was set counts only if the hardware clock shows the
// same: only a server's answer is written there. The other way is to compare the
// clock with the fleet's, over TLS: two that agree to a few seconds, and know
// nothing of each other, are right. A clock that was set by the fleet's word
// knows of it, and stays unknown until somebody else sets it.
type clock struct {
	compare func(context.Context) (ahead, within time.Duration, err error)
	set     func(time.Time) error // the system's clock
	kernel  func() (sampling.Clock, error)
	rtc     func() (time.Time, error)
	now     func() time.Time
	sinceUp func() time.Duration
	event   func(kind string, severity fleetapi.Severity, sentence string, fields map[string]string)
	mended  string // file that says, until the next boot, that the fleet's word set the clock

	mu       sync.Mutex
	evidence Evidence       // guarded by mu
	ours     bool           // guarded by mu; the fleet's word set the clock, and nobody else since
	base     time.Duration  // guarded by mu; the system's clock less the time since boot, when last looked at
	ahead    *time.Duration // guarded by mu; by how much the fleet's clock was ahead; nil: not compared
	within   time.Duration  // guarded by mu; of ahead
}

func newClock(root, runDir string) *clock {
	c := &clock{
		kernel: sampling.KernelClock,
		rtc: func() (time.Time, error) {
			raw, err := os.ReadFile(filepath.Join(root, hardwareClock))
			if err != nil {
				return time.Time{}, err
			}
			seconds, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
			return time.Unix(seconds, 0), err
		},
		now: time.Now, sinceUp: sinceBoot, mended: filepath.Join(runDir, mendedFile),
		evidence: NoEvidence,
	}
	if _, err := os.Stat(c.mended); err == nil {
		c.evidence, c.ours = MendedByFleet, true
	}
	c.base = c.measure()
	return c
}

// sinceBoot is the time since the box was switched on.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// measure is the system's clock less the time since boot: it changes when
// somebody sets the clock. Of three readings the one that was least interrupted
// counts.
func (c *clock) measure() time.Duration {
	var best, least time.Duration
	for i := range 3 {
		before := c.sinceUp()
		now := c.now()
		after := c.sinceUp()
		if took := after - before; i == 0 || took < least {
			best, least = time.Duration(now.UnixNano())-(before+after)/2, took
		}
	}
	return best
}

// Now is the clock, and whether it is known to be right. It is
// [uplink.Config.Clock].
func (c *clock) Now() (time.Time, bool) {
	s, err := c.kernel()
	now := c.now()
	if err == nil && s.Synced {
		return now, true
	}
	moved := time.Duration(now.UnixNano()) - c.sinceUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	return now, (c.evidence == NTPSetIt || c.evidence == FleetAgrees) && (moved-c.base).Abs() <= clockJump
}

// Sample is what readings say about the clock. It is [sampling.Config.Clock].
func (c *clock) Sample() (sampling.Clock, error) {
	s, err := c.kernel()
	if err == nil && s.Synced {
		return s, nil
	}
	_, known := c.Now()
	s = sampling.Clock{Synced: known}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ahead != nil {
		s.Offset, s.Error = new(*c.ahead), new(c.within)
	}
	return s, nil
}

// known says how much is known, for support.
func (c *clock) known() Evidence {
	if s, err := c.kernel(); err == nil && s.Synced {
		return KernelSays
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.evidence
}

// run watches the clock until ctx ends.
func (c *clock) run(ctx context.Context) error {
	look := time.NewTicker(clockLook)
	defer look.Stop()
	ask := time.NewTimer(0)
	defer ask.Stop()
	pauses := uplink.NewPauses()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			if c.look() {
				ask.Reset(0)
			}
			continue
		case <-ask.C:
		}
		before := c.lastBase()
		ahead, within, err := c.compare(ctx)
		if err != nil { // the line says it, for it has the same trouble
			ask.Reset(pauses.Next(false))
			continue
		}
		pauses.Reset()
		c.judge(ahead-(c.lastBase()-before), within) // the answer may have set the clock
		ask.Reset(clockCompare - rand.N(clockCompare/4))
	}
}

// look sees whether somebody has set the clock, and whether that calls for
// another comparison.
func (c *clock) look() bool {
	is := c.measure()
	c.mu.Lock()
	moved := is - c.base
	c.base = is
	c.mu.Unlock()
	if moved.Abs() < clockStep {
		return false
	}
	rtc, err := c.rtc()
	confirmed := err == nil && c.now().Sub(rtc).Abs() <= clockRTC
	c.mu.Lock()
	if c.ahead != nil {
		c.ahead = new(*c.ahead - moved)
	}
	contrary := c.ahead != nil && c.ahead.Abs() > clockClose+c.within
	switch {
	case confirmed && !contrary:
		c.evidence, c.ours = NTPSetIt, false
	case moved.Abs() > clockJump:
		c.evidence = NoEvidence
	}
	c.mu.Unlock()
	if confirmed {
		_ = os.Remove(c.mended) // most often there is none
	}
	if moved.Abs() > clockNews {
		c.event("clock_stepped", fleetapi.SeverityWarning, stepWords(moved), map[string]string{"seconds": strconv.FormatInt(int64(moved/time.Second), 10)})
	}
	return moved.Abs() > clockJump
}

func stepWords(moved time.Duration) string {
	way := "forward"
	if moved < 0 {
		way = "back"
	}
	return fmt.Sprintf("The clock of the box was set %s by %v.", way, moved.Abs().Round(time.Second))
}

// judge takes in a comparison with the fleet.
func (c *clock) judge(ahead, within time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead, c.within = &ahead, within
	switch {
	case ahead.Abs() > clockClose+within:
		c.evidence = FleetContrary
	case c.ours:
		c.evidence = MendedByFleet
	default:
		c.evidence = FleetAgrees
	}
}

func (c *clock) lastBase() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.base
}

// floor is told of a time that has passed, as the fleet says. A clock that is not
// known and behind is set to it. It is [uplink.Config.TimeFloor].
func (c *clock) floor(at time.Time) {
	now, known := c.Now()
	if known || at.Sub(now) <= clockClose || c.set == nil {
		return
	}
	if err := c.set(at); err != nil {
		return // it is as wrong as before, and says so
	}
	is := c.measure()
	c.mu.Lock()
	c.base, c.evidence, c.ours, c.ahead = is, MendedByFleet, true, nil
	c.mu.Unlock()
	// The next agent of this boot must know; the next boot must not.
	_ = os.WriteFile(c.mended, nil, 0o600)
	c.event("clock_mended", fleetapi.SeverityWarning, "The clock of the box was behind and was set by the fleet's.",
		map[string]string{"seconds": strconv.FormatInt(int64(at.Sub(now)/time.Second), 10)})
}
