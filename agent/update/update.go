// Package update is the device's side of staying bootable: it decides whether
// this boot is good, keeps it if so, and sees to it that the box turns to the
// other slot if not.
//
// A boot on trial has three minutes. In that time the health checks must all
// hold for a while; then the boot is confirmed: the UKI loses its try counter.
// Otherwise the watchdog is no longer fed and the box restarts; the boot loader
// has counted the try, and after the last one takes the other slot. A shutdown
// in an orderly way during the trial gives the try back, if /perm can keep count
// of that. A boot that is not on trial, or has no other slot to make room for,
// is never ended from here, however it is.
//
// A check only counts against a boot if it held before the update: a new
// release must be able to cure a box whose /perm or network is already broken.
//
// Power cut at any line: the confirmation is one rename on the EFI partition,
// done or not done. What the box learned about a boot is on /perm and replaced
// atomically; if /perm is lost, only the reasons of failures are.
package update

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/firmware/slot"
)

// Loader is the boot loader's side of a boot: the names of the UKIs. Confirm
// and Refund do nothing when there is nothing to do.
type Loader interface {
	Read() (slot.Set, error)
	Confirm(croft.Slot) error
	Refund(croft.Slot) error
}

// Records is where what is learned about a boot is kept.
type Records interface {
	Update(croft.Slot, func(*bootlog.Attempt)) error
}

// Feeder is the armed watchdog.
type Feeder interface{ Feed() error }

// Check is one condition of a healthy boot. Run returns a sentence as error.
type Check struct {
	Name string
	Run  func(context.Context) error

	// Before reports whether the check held when the box was last found
	// healthy. Nil means that it must always hold.
	Before func() bool
}

// Config is copied by [New] and never changed afterwards.
type Config struct {
	Handover bootlog.Handover
	Loader   Loader
	Records  Records
	Watchdog Feeder // nil: the box has none and restarts itself
	Checks   []Check

	Limit  time.Duration // how long a boot may stay on trial; default 3 min
	Steady time.Duration // how long all checks must hold; default 5 s
	Every  time.Duration // pause between two rounds of checks; default 1 s; after the limit at least Steady
	Late   time.Duration // the same, once the boot is confirmed; default 30 s
	Feed   time.Duration // pause between two feedings; default 5 s

	Uptime  func() time.Duration         // since the initramfs handed over, which may have checked /perm for long; required
	Restart func() error                 // restarts the box at once; required
	Healthy func(passed map[string]bool) // called when the boot is found healthy, with the checks that hold, and again when others do for a while; may be nil
	Changed func(Verdict)                // called on every change of the verdict; may be nil
	Log     *slog.Logger
}

// maxRefunds bounds the tries that one root gets back. A release that restarts
// the box in an orderly way by mistake must fail in the end all the same.
const maxRefunds = 3

// settled is after how many rounds with the same result the checks of a
// confirmed boot count as changed: a network that flaps is no news.
const settled = 3

// checkLimit is how long one check may take.
const checkLimit = 10 * time.Second

// Verdict is what is known about this boot.
type Verdict struct {
	Trial       bool   // the slot is not confirmed yet
	Alternative bool   // the loader has another slot to turn to; a trial without one is never given up
	Confirmed   bool   // this boot was found healthy
	Overdue     bool   // it should have been found healthy by now
	Failing     string // the check that does not hold, and why; empty if all do
	GivenUp     bool   // the trial's time is over; the box is about to restart
}

// mayEnd reports whether the boot is one that is given up when its time is over.
func (v Verdict) mayEnd() bool { return v.Trial && v.Alternative }

// Guard watches over one boot. Run it as a worker; [Guard.Stop] ends it when
// the box is shut down.
type Guard struct {
	cfg    Config
	looked bool // the verdict knows the boot entries; for Run only

	mu      sync.Mutex
	verdict Verdict // guarded by mu
}

// New makes the guard of this boot.
func New(cfg Config) (*Guard, error) {
	if cfg.Loader == nil || cfg.Records == nil || cfg.Uptime == nil || cfg.Restart == nil || cfg.Log == nil {
		return nil, errors.New("boot guard: loader, records, uptime, restart and log are required")
	}
	cfg.Limit = cmp.Or(cfg.Limit, 3*time.Minute)
	cfg.Steady = cmp.Or(cfg.Steady, 5*time.Second)
	cfg.Every = cmp.Or(cfg.Every, time.Second)
	cfg.Late = cmp.Or(cfg.Late, 30*time.Second)
	cfg.Feed = cmp.Or(cfg.Feed, 5*time.Second)
	return &Guard{cfg: cfg}, nil
}

// Verdict is the current one.
func (g *Guard) Verdict() Verdict {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.verdict
}

func (g *Guard) set(change func(*Verdict)) Verdict {
	g.mu.Lock()
	before := g.verdict
	change(&g.verdict)
	after := g.verdict
	g.mu.Unlock()
	if after != before && g.cfg.Changed != nil {
		g.cfg.Changed(after)
	}
	return after
}

// Run feeds the watchdog and checks the boot until ctx ends. It returns early
// only when the boot is given up.
func (g *Guard) Run(ctx context.Context) error {
	if err := g.look(); err != nil {
		g.cfg.Log.Error("boot entries unreadable; will be read again", "err", err)
	}
	if g.Verdict().mayEnd() && g.overdue() {
		// Started again and again without ever getting far enough.
		return g.giveUp("the agent does not stay up", true)
	}
	feeding, stop := context.WithCancel(ctx)
	var feeder sync.WaitGroup
	feeder.Go(func() { g.feed(feeding) })
	defer feeder.Wait()
	defer stop()

	var since time.Time // all checks hold since then; zero: they do not
	recorded := ""      // the reason that is on record
	var baseline baseline
	pause := g.cfg.Every
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		if !g.looked {
			_ = g.look() // a trial that is not known as one would never end
		}
		failing, passed := g.checks(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if g.Verdict().Confirmed && baseline.moved(passed) && g.cfg.Healthy != nil {
			g.cfg.Healthy(passed)
		}
		switch {
		case failing != "":
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) >= g.cfg.Steady && !g.Verdict().Confirmed:
			if err := g.confirm(passed); err != nil {
				g.cfg.Log.Error("boot not confirmed", "err", err)
				failing = "boot entry: " + err.Error()
			} else {
				baseline.kept = passed
			}
		}
		over := g.overdue()
		v := g.set(func(v *Verdict) { v.Failing, v.Overdue = failing, over && !v.Confirmed })
		if failing != "" && failing != recorded && !v.Confirmed {
			recorded = failing
			_ = g.record(func(a *bootlog.Attempt) { a.Reason = failing })
		}
		if failing != "" && over && v.mayEnd() {
			return g.giveUp(failing, false)
		}
		switch {
		case v.Confirmed:
			pause = g.cfg.Late
		case over:
			pause = max(g.cfg.Every, g.cfg.Steady)
		}
	}
}

// baseline follows which checks hold in a confirmed boot.
type baseline struct {
	kept   map[string]bool // as last told
	newest map[string]bool // as in the last round
	rounds int             // in which newest was so
}

// moved takes in one round. It reports true when the checks hold otherwise than
// last told, and did for some rounds.
func (b *baseline) moved(passed map[string]bool) bool {
	if !maps.Equal(passed, b.newest) {
		b.newest, b.rounds = passed, 0
	}
	b.rounds++
	if b.rounds < settled || maps.Equal(passed, b.kept) {
		return false
	}
	b.kept = passed
	return true
}

// look reads from the boot entries whether the running slot is on trial and
// whether the loader has another to turn to.
func (g *Guard) look() error {
	set, err := g.cfg.Loader.Read()
	if err != nil {
		return err
	}
	g.looked = true
	mine, other := set.Of(g.cfg.Handover.Slot).State(), set.Of(g.cfg.Handover.Slot.Other()).State()
	g.set(func(v *Verdict) {
		v.Trial = mine == slot.Trial || mine == slot.Exhausted
		v.Alternative = other == slot.Trial || other == slot.Confirmed
	})
	return nil
}

func (g *Guard) overdue() bool { return g.cfg.Uptime() > g.cfg.Limit }

// feed keeps the watchdog fed until ctx ends, however long a check takes, but
// not beyond the end of a trial: a trial whose checks hang ends as well.
func (g *Guard) feed(ctx context.Context) {
	if g.cfg.Watchdog == nil {
		return
	}
	tick := time.NewTicker(g.cfg.Feed)
	defer tick.Stop()
	for {
		v := g.Verdict()
		if over := v.mayEnd() && g.overdue(); !over && !v.GivenUp {
			if err := g.cfg.Watchdog.Feed(); err != nil {
				g.cfg.Log.Error("watchdog not fed", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// checks runs all checks and returns the first failure that counts.
func (g *Guard) checks(ctx context.Context) (failing string, passed map[string]bool) {
	passed = map[string]bool{}
	for _, c := range g.cfg.Checks {
		ctx, cancel := context.WithTimeout(ctx, checkLimit)
		err := c.Run(ctx)
		cancel()
		passed[c.Name] = err == nil
		if err != nil && failing == "" && (c.Before == nil || c.Before()) {
			failing = c.Name + ": " + err.Error()
		}
	}
	return failing, passed
}

// confirm keeps the boot. It looks at the boot entries anew: they may have been
// unreadable before, and a trial must not be taken for a confirmed slot.
func (g *Guard) confirm(passed map[string]bool) error {
	if err := g.look(); err != nil {
		return err
	}
	if g.Verdict().Trial {
		if err := g.cfg.Loader.Confirm(g.cfg.Handover.Slot); err != nil {
			return fmt.Errorf("confirm slot %s: %w", g.cfg.Handover.Slot, err)
		}
	}
	_ = g.record(func(a *bootlog.Attempt) { a.Stage, a.Reason = bootlog.StageHealthy, "" })
	if g.cfg.Healthy != nil {
		g.cfg.Healthy(passed)
	}
	g.set(func(v *Verdict) { v.Trial, v.Confirmed = false, true })
	g.cfg.Log.Info("boot confirmed", "slot", g.cfg.Handover.Slot, "version", g.cfg.Handover.Version, "after", g.cfg.Uptime())
	return nil
}

// giveUp ends a trial: from here on nobody feeds the watchdog, and the box is
// restarted without waiting for it. A guess does not replace a reason that is
// on record.
func (g *Guard) giveUp(reason string, guess bool) error {
	g.set(func(v *Verdict) { v.Overdue, v.GivenUp = true, true })
	g.cfg.Log.Error("trial given up", "reason", reason, "limit", g.cfg.Limit)
	_ = g.record(func(a *bootlog.Attempt) {
		if a.Reason == "" || !guess {
			a.Reason = reason
		}
	})
	if err := g.cfg.Restart(); err != nil {
		return fmt.Errorf("restart after a failed trial: %w", err)
	}
	return nil
}

// record alters this boot's record. A record of another boot is left alone.
// What goes wrong is logged; most callers go on all the same.
func (g *Guard) record(change func(*bootlog.Attempt)) error {
	err := g.cfg.Records.Update(g.cfg.Handover.Slot, func(a *bootlog.Attempt) {
		if a.BootID == g.cfg.Handover.BootID {
			change(a)
		}
	})
	if err != nil {
		g.cfg.Log.Warn("boot record not written", "err", err)
	}
	return err
}

// Stop is called, after Run has ended, when the agent is told to stop: the box
// is being shut down, or the agent restarted. A try of an unfinished trial is
// given back, at most [maxRefunds] times for one root, and only where that is on
// record for the next boot.
func (g *Guard) Stop() {
	v := g.Verdict()
	refund := false
	err := g.record(func(a *bootlog.Attempt) {
		refund = v.Trial && !v.GivenUp && a.Refunds < maxRefunds && g.cfg.Handover.Perm.Keeps()
		if refund {
			a.Refunds++
		}
		a.Stopped = !v.GivenUp
	})
	if err != nil || !refund {
		return
	}
	if err := g.cfg.Loader.Refund(g.cfg.Handover.Slot); err != nil {
		g.cfg.Log.Error("try not given back", "err", err)
	}
}
