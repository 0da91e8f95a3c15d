package uplink

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/uplink/spool"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// bench is the jobs of a box without a network.
type bench struct {
	*jobs
	t       testing.TB
	dir     string
	journal *journal.Journal
	stop    context.CancelFunc
	ended   chan error
}

func openBench(t testing.TB, dir string, handlers map[fleetapi.JobKind]Handler) *bench {
	cfg := testConfig(t, &fleet{url: "https://127.0.0.1:1", authority: testAuthority(t)}, dir, newKey(t))
	cfg.Handlers = handlers
	u, err := New(cfg)
	check(t, err)
	return &bench{jobs: u.jobs, t: t, dir: dir, journal: cfg.Journal}
}

func (b *bench) start() *bench {
	ctx, cancel := context.WithCancel(context.Background())
	b.stop, b.ended = cancel, make(chan error, 1)
	go func() { b.ended <- b.run(ctx) }()
	return b
}

// finish waits until no job is open, and ends.
func (b *bench) finish() {
	b.t.Helper()
	for open := true; open; {
		open = false
		b.turn.Lock()
		for _, r := range b.records {
			open = open || !r.State.Final()
		}
		b.turn.Unlock()
		runtime.Gosched()
	}
	b.end()
}

func (b *bench) end() {
	b.stop()
	check(b.t, <-b.ended)
	check(b.t, b.journal.Close())
}

// told is the statuses of a job that wait in the spool, as "STATE detail".
func (b *bench) told(id string) (all []string) {
	b.t.Helper()
	for e := b.spool.Next(); e != nil; e = b.spool.Next() {
		if e.Class() != spool.Job {
			continue
		}
		raw, err := b.spool.Read(e)
		check(b.t, err)
		s, err := fleetapi.Parse[fleetapi.JobStatus](raw)
		check(b.t, err)
		if s.Job == id {
			all = append(all, strings.TrimSpace(string(s.State)+" "+s.Detail))
		}
	}
	b.spool.Release()
	return all
}

func newJob(kind fleetapi.JobKind) fleetapi.Job {
	return fleetapi.Job{ID: fleetapi.NewID(fleetapi.PrefixJob), Kind: kind}
}

func wantTold(t testing.TB, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestJobsEndInOneState(t *testing.T) {
	runs := 0
	handlers := map[fleetapi.JobKind]Handler{
		"good": {Run: func(context.Context, fleetapi.Job) (Result, error) {
			runs++
			return Result{Detail: "All is well."}, nil
		}},
		"bad":   {Run: func(context.Context, fleetapi.Job) (Result, error) { return Result{}, errors.New("disk is slow") }},
		"panic": {Run: func(context.Context, fleetapi.Job) (Result, error) { panic("oh") }},
		"long":  {Run: func(ctx context.Context, _ fleetapi.Job) (Result, error) { <-ctx.Done(); return Result{}, ctx.Err() }},
	}
	b := openBench(t, t.TempDir(), handlers)
	good, bad, oh, unknown, late, gone, early := newJob("good"), newJob("bad"), newJob("panic"), newJob("dance"), newJob("good"), newJob("long"), newJob("good")
	late.Deadline = time.Now().Add(-time.Minute)
	early.Canceled = true
	for _, j := range []fleetapi.Job{good, bad, oh, unknown, late, gone, early, good} {
		b.take(j)
	}
	b.start()
	for state := fleetapi.JobState(""); state != fleetapi.InProgress; {
		b.turn.Lock()
		state = b.records[gone.ID].State
		b.turn.Unlock()
		runtime.Gosched()
	}
	gone.Canceled = true
	b.take(gone)
	b.finish()
	wantTold(t, b.told(good.ID), "QUEUED", "IN_PROGRESS", "SUCCEEDED All is well.")
	wantTold(t, b.told(bad.ID), "QUEUED", "IN_PROGRESS", "FAILED Disk is slow.")
	wantTold(t, b.told(oh.ID), "QUEUED", "IN_PROGRESS", "FAILED Job panicked: oh.")
	wantTold(t, b.told(unknown.ID), "REJECTED "+unknownKind)
	wantTold(t, b.told(late.ID), "TIMED_OUT The deadline passed before the box heard of the job.")
	wantTold(t, b.told(gone.ID), "QUEUED", "IN_PROGRESS", "CANCELED The job was taken back while it ran.")
	wantTold(t, b.told(early.ID), "CANCELED The job was taken back before it began.")
	if runs != 1 {
		t.Errorf("the good job ran %d times", runs)
	}
}

func TestDeadlineEndsAJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBench(t, t.TempDir(), map[fleetapi.JobKind]Handler{"long": {
			Run: func(ctx context.Context, _ fleetapi.Job) (Result, error) { <-ctx.Done(); return Result{}, ctx.Err() },
		}})
		job := newJob("long")
		job.Deadline = time.Now().Add(time.Hour)
		b.take(job)
		b.start()
		time.Sleep(2 * time.Hour)
		b.end()
		wantTold(t, b.told(job.ID), "QUEUED", "IN_PROGRESS", "TIMED_OUT The deadline passed while the job ran.")
	})
}

func TestRestartResumesOrFailsAJob(t *testing.T) {
	dir := t.TempDir()
	running := make(chan struct{}, 2)
	long := Handler{Run: func(ctx context.Context, _ fleetapi.Job) (Result, error) {
		running <- struct{}{}
		<-ctx.Done()
		return Result{}, ctx.Err()
	}}
	b := openBench(t, dir, map[fleetapi.JobKind]Handler{"reboot": long, "benchmark": long})
	reboot, benchmark := newJob("reboot"), newJob("benchmark")
	b.take(reboot)
	b.take(benchmark)
	b.start()
	<-running
	<-running
	b.end()

	never := func(context.Context, fleetapi.Job) (Result, error) {
		t.Error("a job ran twice")
		return Result{}, nil
	}
	b = openBench(t, dir, map[fleetapi.JobKind]Handler{
		"benchmark": {Run: never},
		"reboot": {Run: never, Resume: func(context.Context, fleetapi.Job) (Result, error) {
			return Result{Detail: "The box was rebooted."}, nil
		}},
	})
	b.take(reboot)
	b.start().finish()
	wantTold(t, b.told(reboot.ID), "QUEUED", "IN_PROGRESS", "SUCCEEDED The box was rebooted.")
	wantTold(t, b.told(benchmark.ID), "QUEUED", "IN_PROGRESS", "FAILED The box restarted before the job was done.")
}

// TestJobIsSafeWhereverTheProcessEnds replays the journal up to each of its
// records, as kill -9 leaves it, with and without what the spool got after it.
func TestJobIsSafeWhereverTheProcessEnds(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	handlers := map[fleetapi.JobKind]Handler{"good": {Run: func(context.Context, fleetapi.Job) (Result, error) { runs++; return Result{}, nil }}}
	b := openBench(t, dir, handlers)
	job := newJob("good")
	b.take(job)
	b.start().finish()
	raw, err := os.ReadFile(filepath.Join(dir, "journal"))
	check(t, err)
	lines := strings.SplitAfter(string(raw), "\n")
	for cut := range lines {
		begun := strings.Contains(strings.Join(lines[:cut], ""), `"IN_PROGRESS"`)
		after := t.TempDir()
		check(t, os.CopyFS(filepath.Join(after, "uplink"), os.DirFS(filepath.Join(dir, "uplink"))))
		check(t, os.WriteFile(filepath.Join(after, "journal"), []byte(strings.Join(lines[:cut], "")), 0o600))
		runs = 0
		again := openBench(t, after, handlers)
		again.take(job)
		again.start().finish()
		if begun && runs != 0 || runs > 1 {
			t.Errorf("cut after %d records: the job ran %d times more", cut, runs)
		}
	}
}

func TestForgottenJobsAreNotDoneAgain(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	handlers := map[fleetapi.JobKind]Handler{"good": {Run: func(context.Context, fleetapi.Job) (Result, error) { runs++; return Result{}, nil }}}
	first := newJob("good")
	b := openBench(t, dir, handlers).start()
	acknowledge := func() {
		for e := b.spool.Next(); e != nil; e = b.spool.Next() {
			b.spool.Done(e)
		}
	}
	b.take(first)
	for range jobsKnown + 20 {
		j := newJob("bad")
		b.take(j)
		acknowledge()
	}
	b.finish()
	b = openBench(t, dir, handlers)
	if n := len(b.records); n > jobsKnown+1 {
		t.Errorf("%d jobs are remembered", n)
	}
	b.take(first)
	b.start().finish()
	if runs != 1 {
		t.Errorf("the job ran %d times", runs)
	}
}

func TestTooManyJobsAreRejected(t *testing.T) {
	b := openBench(t, t.TempDir(), map[fleetapi.JobKind]Handler{"good": {Run: func(context.Context, fleetapi.Job) (Result, error) { return Result{}, nil }}})
	var last fleetapi.Job
	for range jobsOpen + 1 {
		last = newJob("good")
		b.take(last)
	}
	wantTold(t, b.told(last.ID), "REJECTED The box has too many jobs at once.")
}

func TestFleetThatTakesNoStatusesCannotFillTheBox(t *testing.T) {
	b := openBench(t, t.TempDir(), nil)
	for range 400 {
		b.take(newJob("dance"))
	}
	const most = 256
	if n := len(b.records); n != most {
		t.Errorf("%d jobs are remembered, want %d", n, most)
	}
	if n := b.spool.Stats().Waiting; n != most {
		t.Errorf("%d statuses wait, want %d", n, most)
	}
	for e := b.spool.Next(); e != nil; e = b.spool.Next() {
		b.spool.Done(e) // the fleet is itself again
	}
	b.take(newJob("dance")) // makes room
	last := newJob("dance")
	b.take(last)
	wantTold(t, b.told(last.ID), "REJECTED "+unknownKind)
}
