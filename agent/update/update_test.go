package update_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/update"
	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/firmware/slot"
)

// box is the world around a guard: the boot entries, the record on /perm, the
// watchdog and the power button. Every call asks the guard for its verdict, so
// that a call made under the guard's lock would hang.
type box struct {
	t      *testing.T
	guard  *update.Guard
	cfg    update.Config
	booted time.Time // when this boot began

	mu        sync.Mutex
	set       slot.Set         // guarded by mu
	attempt   bootlog.Attempt  // guarded by mu
	readErr   error            // guarded by mu
	markErr   error            // guarded by mu
	recordErr error            // guarded by mu
	writes    int              // guarded by mu; of the record
	fed       []time.Time      // guarded by mu
	restarts  int              // guarded by mu
	verdicts  []update.Verdict // guarded by mu
}

const (
	factory   = "croft_0001_a_1.0.0+3.efi"
	confirmed = "croft_0001_a_1.0.0.efi"
	fallback  = "croft_0001_b_0.9.0.efi"
	trial     = "croft_0002_a_1.0.0+2-1.efi"
	lastTrial = "croft_0002_a_1.0.0+0-3.efi"
)

// newBox runs slot a with these boot entries.
func newBox(t *testing.T, entries ...string) *box {
	b := &box{t: t, set: slot.ParseNames(entries), booted: time.Now()}
	b.attempt = bootlog.Attempt{BootID: "this", RootHash: "aa", Stage: bootlog.StageAgent}
	b.cfg = update.Config{
		Handover: bootlog.Handover{BootID: "this", Slot: croft.SlotA, Version: "1.0.0", Perm: bootlog.Perm{State: bootlog.PermOK}},
		Loader:   b, Records: b, Watchdog: b,
		Uptime: func() time.Duration {
			b.look()
			return time.Since(b.booted)
		},
		Restart: func() error {
			b.look()
			b.mu.Lock()
			defer b.mu.Unlock()
			b.restarts++
			return nil
		},
		Changed: func(v update.Verdict) {
			b.look()
			b.mu.Lock()
			defer b.mu.Unlock()
			b.verdicts = append(b.verdicts, v)
		},
		Log: slog.New(slog.DiscardHandler),
	}
	return b
}

func (b *box) look() { b.guard.Verdict() }

func (b *box) Read() (slot.Set, error) {
	b.look()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.set, b.readErr
}

func (b *box) mark(running croft.Slot, e slot.Event) error {
	b.look()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.markErr != nil {
		return b.markErr
	}
	next, err := b.set.Apply(slot.Move{Running: running, Slot: running, Event: e})
	b.set = next
	return err
}

func (b *box) Confirm(running croft.Slot) error { return b.mark(running, slot.Confirm) }
func (b *box) Refund(running croft.Slot) error  { return b.mark(running, slot.Refund) }

func (b *box) Update(_ croft.Slot, change func(*bootlog.Attempt)) error {
	b.look()
	b.mu.Lock()
	defer b.mu.Unlock()
	after := b.attempt
	change(&after)
	if b.recordErr != nil {
		return b.recordErr
	}
	if after != b.attempt {
		b.writes++
	}
	b.attempt = after
	return nil
}

func (b *box) Feed() error {
	b.look()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fed = append(b.fed, time.Now())
	return nil
}

// start runs the guard; the function it returns stops it as the agent does.
func (b *box) start() (stop func()) {
	b.t.Helper()
	var err error
	if b.guard, err = update.New(b.cfg); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.guard.Run(ctx) }()
	return func() {
		b.t.Helper()
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
		b.guard.Stop()
	}
}

func (b *box) mine() slot.Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.set.Of(croft.SlotA)
}

func (b *box) record() bootlog.Attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.attempt
}

func (b *box) restarted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.restarts
}

// hungry is how long ago the watchdog was fed.
func (b *box) hungry() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.fed) == 0 {
		return time.Since(b.booted)
	}
	return time.Since(b.fed[len(b.fed)-1])
}

// check is a health check under the test's control.
type check struct {
	mu  sync.Mutex
	err error // guarded by mu
}

func (c *check) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *check) run(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

var errSick = errors.New("it is sick")

// in runs a story in a bubble of virtual time.
func in(t *testing.T, name string, story func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, story) })
}

func TestTrialIsConfirmed(t *testing.T) {
	in(t, "only after all checks held for a while", func(t *testing.T) {
		b, flaky := newBox(t, trial, fallback), &check{err: errSick}
		b.cfg.Checks = []update.Check{
			{Name: "well", Run: (&check{}).run},
			{Name: "flaky", Run: flaky.run},
		}
		var passed map[string]bool
		b.cfg.Healthy = func(p map[string]bool) { b.look(); passed = p }
		stop := b.start()
		time.Sleep(10500 * time.Millisecond)
		if v := b.guard.Verdict(); v.Confirmed || v.Failing != "flaky: it is sick" || !v.Trial || !v.Alternative {
			t.Errorf("while a check fails the verdict is %+v", v)
		}
		flaky.set(nil)
		time.Sleep(4 * time.Second)
		flaky.set(errSick) // one bad round starts the wait anew
		time.Sleep(time.Second)
		flaky.set(nil)
		time.Sleep(5 * time.Second)
		if b.guard.Verdict().Confirmed {
			t.Error("confirmed before all checks held for 5 seconds")
		}
		time.Sleep(2 * time.Second)
		if v := b.guard.Verdict(); v != (update.Verdict{Confirmed: true, Alternative: true}) {
			t.Errorf("verdict is %+v", v)
		}
		if name := b.mine().Name(); name != "croft_0002_a_1.0.0.efi" {
			t.Errorf("boot entry is %s", name)
		}
		if a := b.record(); a.Stage != bootlog.StageHealthy || a.Reason != "" {
			t.Errorf("record is %+v", a)
		}
		if !passed["well"] || !passed["flaky"] {
			t.Errorf("the baseline is %v", passed)
		}
		stop()
		if a := b.record(); !a.Stopped || a.Refunds != 0 || b.mine().Name() != "croft_0002_a_1.0.0.efi" {
			t.Errorf("after the shutdown: %+v, %s", a, b.mine().Name())
		}
	})
	in(t, "although a check fails that failed before the update", func(t *testing.T) {
		b := newBox(t, lastTrial, fallback)
		b.cfg.Checks = []update.Check{
			{Name: "storage", Run: (&check{err: errSick}).run, Before: func() bool { return false }},
			{Name: "network", Run: (&check{}).run, Before: func() bool { return true }},
		}
		var passed map[string]bool
		b.cfg.Healthy = func(p map[string]bool) { passed = p }
		stop := b.start()
		defer stop()
		time.Sleep(8 * time.Second)
		if v := b.guard.Verdict(); !v.Confirmed || v.Failing != "" {
			t.Errorf("verdict is %+v", v)
		}
		if passed["storage"] || !passed["network"] {
			t.Errorf("the baseline is %v, want what was seen", passed)
		}
	})
	in(t, "late, when the limit is over, rather than given up while all is well", func(t *testing.T) {
		b, slow := newBox(t, trial, fallback), &check{err: errSick}
		b.cfg.Checks = []update.Check{{Name: "slow", Run: slow.run}}
		stop := b.start()
		defer stop()
		time.Sleep(178500 * time.Millisecond)
		slow.set(nil)
		time.Sleep(20 * time.Second)
		if v := b.guard.Verdict(); !v.Confirmed || b.restarted() != 0 {
			t.Errorf("verdict is %+v after %d restarts", v, b.restarted())
		}
		if b.hungry() > 5*time.Second {
			t.Error("the watchdog is not fed any more")
		}
	})
	in(t, "when the boot entry can be renamed at last; until then it says why not", func(t *testing.T) {
		b := newBox(t, trial, fallback)
		b.markErr = errors.New("disk is busy")
		stop := b.start()
		defer stop()
		time.Sleep(20 * time.Second)
		if v := b.guard.Verdict(); v.Confirmed || !strings.Contains(v.Failing, "disk is busy") {
			t.Errorf("verdict is %+v", v)
		}
		if a := b.record(); !strings.Contains(a.Reason, "disk is busy") || a.Stage == bootlog.StageHealthy {
			t.Errorf("record is %+v", a)
		}
		b.mu.Lock()
		b.markErr = nil
		b.mu.Unlock()
		time.Sleep(10 * time.Second)
		if v := b.guard.Verdict(); !v.Confirmed || v.Failing != "" || b.record().Reason != "" {
			t.Errorf("verdict is %+v, record %+v", v, b.record())
		}
	})
	in(t, "also when the boot entries were unreadable at the start", func(t *testing.T) {
		b := newBox(t, trial, fallback)
		b.readErr = errors.New("disk is busy")
		stop := b.start()
		defer stop()
		time.Sleep(20 * time.Second)
		if v := b.guard.Verdict(); v.Confirmed || !strings.Contains(v.Failing, "disk is busy") {
			t.Errorf("verdict is %+v", v)
		}
		b.mu.Lock()
		b.readErr = nil
		b.mu.Unlock()
		time.Sleep(10 * time.Second)
		if v := b.guard.Verdict(); !v.Confirmed || b.mine().State() != slot.Confirmed {
			t.Errorf("verdict is %+v, entry %s", v, b.mine().Name())
		}
	})
}

func TestTrialIsGivenUp(t *testing.T) {
	in(t, "when a check fails beyond the limit: restarted, starved, on record", func(t *testing.T) {
		b := newBox(t, trial, fallback)
		b.cfg.Checks = []update.Check{{Name: "page", Run: (&check{err: errSick}).run}}
		stop := b.start()
		time.Sleep(179 * time.Second)
		if b.restarted() != 0 || b.hungry() > 5*time.Second {
			t.Errorf("before the limit: %d restarts, fed %v ago", b.restarted(), b.hungry())
		}
		if b.writes != 1 {
			t.Errorf("the record was written %d times for one reason", b.writes)
		}
		time.Sleep(7 * time.Second)
		if b.restarted() != 1 || !b.guard.Verdict().GivenUp {
			t.Errorf("after the limit: %d restarts, verdict %+v", b.restarted(), b.guard.Verdict())
		}
		time.Sleep(time.Minute)
		if b.hungry() < time.Minute {
			t.Errorf("the watchdog was fed %v ago, after giving up", b.hungry())
		}
		stop()
		if a := b.record(); a.Reason != "page: it is sick" || a.Stopped || a.Refunds != 0 {
			t.Errorf("record is %+v", a)
		}
		if b.mine().Name() != trial {
			t.Errorf("the boot entry was changed to %s", b.mine().Name())
		}
	})
	in(t, "by the watchdog, when a check hangs", func(t *testing.T) {
		b := newBox(t, trial, fallback)
		b.cfg.Checks = []update.Check{{Name: "stuck", Run: func(context.Context) error {
			time.Sleep(time.Hour) // as a disk that never answers: no context helps
			return nil
		}}}
		stop := b.start()
		time.Sleep(2 * time.Minute)
		if b.hungry() > 5*time.Second {
			t.Errorf("within the limit: fed %v ago", b.hungry())
		}
		time.Sleep(3 * time.Minute)
		if b.hungry() < time.Minute {
			t.Errorf("beyond the limit: fed %v ago", b.hungry())
		}
		stop()
	})
	in(t, "at once, when the agent is started again after the limit", func(t *testing.T) {
		b := newBox(t, lastTrial, fallback)
		b.booted = time.Now().Add(-4 * time.Minute)
		stop := b.start()
		time.Sleep(time.Millisecond)
		if b.restarted() != 1 || len(b.fed) != 0 {
			t.Errorf("%d restarts, fed %d times", b.restarted(), len(b.fed))
		}
		stop()
		if a := b.record(); a.Reason != "the agent does not stay up" {
			t.Errorf("reason is %q", a.Reason)
		}
	})
	in(t, "with the better reason, when an earlier agent knew one", func(t *testing.T) {
		b := newBox(t, trial, fallback)
		b.booted = time.Now().Add(-4 * time.Minute)
		b.attempt.Reason = "page: it is sick"
		stop := b.start()
		time.Sleep(time.Millisecond)
		stop()
		if a := b.record(); a.Reason != "page: it is sick" {
			t.Errorf("reason is %q", a.Reason)
		}
	})
	in(t, "although nothing can be recorded", func(t *testing.T) {
		b := newBox(t, trial, fallback)
		b.recordErr = errors.New("disk is full")
		b.cfg.Checks = []update.Check{{Name: "page", Run: (&check{err: errSick}).run}}
		stop := b.start()
		time.Sleep(4 * time.Minute)
		stop()
		if b.restarted() != 1 {
			t.Errorf("%d restarts", b.restarted())
		}
	})
}

func TestTrialIsFoundOutLate(t *testing.T) {
	in(t, "when the boot entries were unreadable at the start, and given up all the same", func(t *testing.T) {
		b := newBox(t, trial, fallback)
		b.readErr = errors.New("disk is busy")
		b.cfg.Checks = []update.Check{{Name: "page", Run: (&check{err: errSick}).run}}
		stop := b.start()
		time.Sleep(10500 * time.Millisecond)
		if v := b.guard.Verdict(); v.Trial {
			t.Errorf("verdict is %+v", v)
		}
		b.mu.Lock()
		b.readErr = nil
		b.mu.Unlock()
		time.Sleep(time.Second)
		if v := b.guard.Verdict(); !v.Trial || !v.Alternative {
			t.Errorf("when they are readable the verdict is %+v", v)
		}
		time.Sleep(4 * time.Minute)
		stop()
		if b.restarted() != 1 {
			t.Errorf("%d restarts", b.restarted())
		}
	})
}

func TestBaselineFollowsAConfirmedBoot(t *testing.T) {
	in(t, "once the checks hold otherwise for some rounds, and no sooner", func(t *testing.T) {
		b, network := newBox(t, trial, fallback), &check{err: errSick}
		b.cfg.Checks = []update.Check{{Name: "network", Run: network.run, Before: func() bool { return false }}}
		var told []bool
		b.cfg.Healthy = func(p map[string]bool) { b.look(); told = append(told, p["network"]) }
		stop := b.start()
		defer stop()
		want := func(when string, want ...bool) {
			t.Helper()
			if !slices.Equal(told, want) {
				t.Errorf("%s the baselines are %v, want %v", when, told, want)
			}
		}
		time.Sleep(10 * time.Second)
		want("at the confirmation", false)
		network.set(nil)
		time.Sleep(time.Minute)
		want("after two rounds", false)
		time.Sleep(30 * time.Second)
		want("after the third", false, true)
		network.set(errSick)
		time.Sleep(time.Minute)
		network.set(nil)
		time.Sleep(10 * time.Minute)
		want("after a flap", false, true)
	})
}

func TestBootThatIsNeverGivenUp(t *testing.T) {
	for _, tc := range []struct {
		name    string
		entries []string
		readErr error
	}{
		{"a factory image has no other slot to turn to", []string{factory}, nil},
		{"nor has a trial next to a slot without tries", []string{trial, "croft_0001_b_0.9.0+0-3.efi"}, nil},
		{"a confirmed slot is kept, however it is", []string{confirmed, "croft_0002_b_1.1.0.efi"}, nil},
		{"so is a slot without any boot entry", nil, nil},
		{"and one whose standing is unknown", []string{trial, fallback}, errors.New("disk is busy")},
	} {
		in(t, tc.name, func(t *testing.T) {
			b, ill := newBox(t, tc.entries...), &check{err: errSick}
			b.readErr = tc.readErr
			b.cfg.Checks = []update.Check{{Name: "ill", Run: ill.run}}
			stop := b.start()
			for range 30 {
				time.Sleep(time.Minute)
				if b.hungry() > 5*time.Second {
					t.Fatalf("fed %v ago", b.hungry())
				}
			}
			if v := b.guard.Verdict(); b.restarted() != 0 || v.GivenUp || !v.Overdue || v.Confirmed {
				t.Errorf("%d restarts, verdict %+v", b.restarted(), v)
			}
			if b.writes != 1 {
				t.Errorf("the record was written %d times for one reason", b.writes)
			}
			b.mu.Lock()
			b.readErr = nil
			b.mu.Unlock()
			ill.set(nil)
			time.Sleep(20 * time.Second)
			if v := b.guard.Verdict(); !v.Confirmed || v.Overdue || v.Failing != "" {
				t.Errorf("when it is well again the verdict is %+v", v)
			}
			stop()
		})
	}
	in(t, "a confirmed boot that falls ill is fed on, says so and recovers", func(t *testing.T) {
		b, ill := newBox(t, confirmed), &check{}
		b.cfg.Checks = []update.Check{{Name: "ill", Run: ill.run}}
		stop := b.start()
		time.Sleep(10 * time.Second)
		ill.set(errSick)
		time.Sleep(time.Hour)
		if v := b.guard.Verdict(); !v.Confirmed || v.Overdue || v.Failing == "" || b.hungry() > 5*time.Second || b.restarted() != 0 {
			t.Errorf("verdict is %+v, fed %v ago, %d restarts", v, b.hungry(), b.restarted())
		}
		ill.set(nil)
		time.Sleep(30 * time.Second)
		if v := b.guard.Verdict(); v.Failing != "" {
			t.Errorf("verdict is %+v", v)
		}
		stop()
	})
}

func TestShutdownDuringATrialGivesTheTryBack(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(b *box)
		begin  string
		want   string // boot entry afterwards
	}{
		{"the first time", func(*box) {}, trial, "croft_0002_a_1.0.0+3.efi"},
		{"on the last try", func(*box) {}, lastTrial, "croft_0002_a_1.0.0+1-2.efi"},
		{"the third time", func(b *box) { b.attempt.Refunds = 2 }, trial, "croft_0002_a_1.0.0+3.efi"},
		{"not a fourth time", func(b *box) { b.attempt.Refunds = 3 }, trial, trial},
		{"not when the record belongs to another boot", func(b *box) { b.attempt.BootID = "another" }, trial, trial},
		{"not when it cannot be counted", func(b *box) { b.recordErr = errors.New("disk is full") }, trial, trial},
		{"not when the count is lost at the next boot", func(b *box) { b.cfg.Handover.Perm.State = bootlog.PermLost }, trial, trial},
		{"not to a confirmed slot", func(*box) {}, "croft_0002_a_1.0.0.efi", "croft_0002_a_1.0.0.efi"},
	} {
		in(t, tc.name, func(t *testing.T) {
			b := newBox(t, tc.begin, fallback)
			tc.change(b)
			b.cfg.Checks = []update.Check{{Name: "ill", Run: (&check{err: errSick}).run}}
			stop := b.start()
			time.Sleep(3 * time.Second)
			stop()
			if got := b.mine().Name(); got != tc.want {
				t.Errorf("boot entry is %s, want %s", got, tc.want)
			}
			if a := b.record(); a.BootID == "this" && b.recordErr == nil && !a.Stopped {
				t.Error("the shutdown is not on record")
			}
		})
	}
}

func TestNewRefusesWhatIsIncomplete(t *testing.T) {
	if _, err := update.New(update.Config{}); err == nil {
		t.Error("no error")
	}
}

// entries is an EFI partition as Examine sees it.
type entries struct {
	set slot.Set
	uki slot.UKIState
	err error
}

func (e entries) Read() (slot.Set, error)           { return e.set, e.err }
func (e entries) CheckUKI(slot.Entry) slot.UKIState { return e.uki }

func TestExamine(t *testing.T) {
	const given = "croft_0002_b_1.1.0+0-3.efi"
	record := func(change func(*bootlog.Attempt)) map[croft.Slot]bootlog.Attempt {
		a := bootlog.Attempt{BootID: "x", Version: "1.1.0", Stage: bootlog.StageAgent, AgentStarts: 1}
		change(&a)
		return map[croft.Slot]bootlog.Attempt{croft.SlotB: a}
	}
	for _, tc := range []struct {
		name   string
		other  string // the other slot's boot entry; empty: none
		uki    slot.UKIState
		before map[croft.Slot]bootlog.Attempt
		panic  string
		want   string // part of the report; empty: no report
	}{
		{"an empty slot is no news", "", slot.UKIMissing, nil, "", ""},
		{"nor is one that waits for its trial", "croft_0002_b_1.1.0+3.efi", slot.UKIIntact, nil, "", ""},
		{"nor is a confirmed one that is older", "croft_0001_b_0.9.0.efi", slot.UKITruncated, nil, "", ""},
		{"a confirmed one that is newer should run", "croft_0002_b_1.1.0.efi", slot.UKIIntact, nil, "", "Version 1.1.0 is newer but was not started: the boot loader took the other one."},
		{"and does not when its file is damaged", "croft_0002_b_1.1.0.efi", slot.UKITruncated, nil, "", "Version 1.1.0 cannot be started: its boot file is damaged."},
		{"nor does one that waits, when its file is damaged", "croft_0002_b_1.1.0+3.efi", slot.UKITruncated, nil, "", "Version 1.1.0 cannot be started: its boot file is damaged."},
		{"a trial that was tried should run", "croft_0002_b_1.1.0+2-1.efi", slot.UKIIntact, nil, "", "the boot loader took the other one."},
		{"one without tries is reported with its version", given, slot.UKIIntact, nil, "", "Version 1.1.0 was tried and given up: probably its kernel or first program failed before storage was ready."},
		{"by its damaged file", given, slot.UKITruncated, nil, "", "its boot file is damaged."},
		{"by the kernel's last words", given, slot.UKIIntact, nil, "VFS: unable", "its kernel panicked: VFS: unable."},
		{"by the reason on record", given, slot.UKIIntact, record(func(a *bootlog.Attempt) { a.Reason = "clock: it shows 1970." }), "", "not healthy: clock: it shows 1970."},
		{"by how often the agent began", given, slot.UKIIntact, record(func(a *bootlog.Attempt) { a.AgentStarts = 9 }), "", "crashed again and again (9 starts)."},
		{"not by the record of another version", given, slot.UKIIntact, record(func(a *bootlog.Attempt) { a.Version = "1.0.9" }), "", "before storage was ready."},
		{"a file that could not be checked is no evidence", given, "", nil, "", "before storage was ready."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := entries{set: slot.ParseNames([]string{confirmed, tc.other}), uki: tc.uki}
			entry, report, err := update.Examine(e, bootlog.Handover{Slot: croft.SlotA, Before: tc.before, Panic: tc.panic})
			if err != nil {
				t.Fatal(err)
			}
			if entry.Slot != croft.SlotB || entry.Name() != tc.other {
				t.Errorf("examined %+v", entry)
			}
			if (tc.want == "") != (report == "") || !strings.HasSuffix(report, tc.want) {
				t.Errorf("report is %q, want %q", report, tc.want)
			}
		})
	}
	if _, report, err := update.Examine(entries{err: errSick}, bootlog.Handover{Slot: croft.SlotA}); !errors.Is(err, errSick) || report != "" {
		t.Errorf("unreadable entries give %q, %v", report, err)
	}
}
