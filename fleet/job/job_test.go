package job_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
)

var (
	staff   = job.Actor{ID: "usr_staff", Staff: true}
	ada     = job.Actor{ID: "own_ada"}
	errDown = errors.New("it is down")
	errNone = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such box")}
)

func idOf(n int) croft.DeviceID {
	return croft.DeviceIDFromDigest([32]byte{byte(n >> 8), byte(n), 1})
}

// fleet is a store with boxes, a broker and an audit log in memory. Box 0 is
// ada's.
type fleet struct {
	*job.Store
	db *db.DB

	mu      sync.Mutex
	boxes   []croft.DeviceID
	down    bool
	sent    []fleetapi.Job
	broken  croft.DeviceID // nothing gets through to it
	audited map[string]int
}

func (f *fleet) Allowed(_ context.Context, a job.Actor, id croft.DeviceID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.boxes, id) || !a.Staff && (a.ID != "own_ada" || id != idOf(0)) {
		return errNone
	}
	return nil
}

func (f *fleet) Select(_ context.Context, a job.Actor, _ string) ([]croft.DeviceID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !a.Staff {
		return []croft.DeviceID{idOf(0)}, nil
	}
	return slices.Clone(f.boxes), nil
}

func (f *fleet) Known(_ context.Context, ids []croft.DeviceID) (map[croft.DeviceID]bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := map[croft.DeviceID]bool{}
	for _, id := range ids {
		known[id] = slices.Contains(f.boxes, id)
	}
	return known, nil
}

func (f *fleet) Publish(_ context.Context, id croft.DeviceID, p fleetapi.Payload) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || id == f.broken {
		return errDown
	}
	if _, err := fleetapi.Encode(p); err != nil {
		return err
	}
	f.sent = append(f.sent, *p.(*fleetapi.Job))
	return nil
}

func (f *fleet) Record(_ context.Context, e job.Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.audited[e.Action]++
	return nil
}

// sentOf counts how often a job was published, as it is and canceled.
func (f *fleet) sentOf(id string) (plain, canceled int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range f.sent {
		switch {
		case j.ID == id && j.Canceled:
			canceled++
		case j.ID == id:
			plain++
		}
	}
	return plain, canceled
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func wantKind(t testing.TB, err error, want croft.Kind) {
	t.Helper()
	if err == nil || croft.KindOf(err) != want {
		t.Errorf("error = %v, of kind %q; want kind %q", err, croft.KindOf(err), want)
	}
}

// each runs a test on every engine; with SQLite in a bubble of time, which a
// connection to PostgreSQL would keep from advancing.
func each(t *testing.T, boxes int, test func(t *testing.T, f *fleet)) {
	t.Helper()
	timed(t, boxes, test)
	for _, engine := range dbtest.Engines() {
		if engine == dbtest.SQLite {
			continue
		}
		t.Run(string(engine), func(t *testing.T) { test(t, newFleet(t, dbtest.URL(t, engine), boxes)) })
	}
}

// timed runs a test that waits for the fleet's loops, on SQLite.
func timed(t *testing.T, boxes int, test func(t *testing.T, f *fleet)) {
	t.Helper()
	t.Run(string(dbtest.SQLite), func(t *testing.T) {
		url := dbtest.URL(t, dbtest.SQLite)
		synctest.Test(t, func(t *testing.T) { test(t, newFleet(t, url, boxes)) })
	})
}

func newFleet(t testing.TB, url string, boxes int) *fleet {
	t.Helper()
	f := &fleet{db: dbtest.Open(t, url), audited: map[string]int{}}
	for n := range boxes {
		f.boxes = append(f.boxes, idOf(n))
	}
	f.Store = must(job.New(t.Context(), job.Config{DB: f.db, Boxes: f, Publisher: f, Audit: f}))(t)
	return f
}

func (f *fleet) run(t testing.TB) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, <-ended)
	})
}

func (f *fleet) reboot(t testing.TB, n int) job.Job {
	t.Helper()
	return must(f.Queue(t.Context(), staff, job.Order{Device: idOf(n), Kind: fleetapi.KindReboot}))(t)
}

func (f *fleet) says(t testing.TB, n int, id string, seq, version uint64, state fleetapi.JobState) int {
	t.Helper()
	return must(f.Receive(t.Context(), []job.Status{{Device: idOf(n), At: time.Now(), Status: &fleetapi.JobStatus{
		Origin: fleetapi.Origin{Journal: 7, Seq: seq}, At: time.Now(), Job: id, State: state, Version: version, Detail: string(state),
		Results: fleetapi.Labels(map[string]string{"version": fmt.Sprint(version)}),
	}}}))(t)
}

func (f *fleet) state(t testing.TB, id string) fleetapi.JobState {
	t.Helper()
	return must(f.Job(t.Context(), staff, id))(t).State
}

func TestJobRuns(t *testing.T) {
	timed(t, 2, func(t *testing.T, f *fleet) {
		f.run(t)
		j := must(f.Queue(t.Context(), ada, job.Order{Device: idOf(0), Kind: fleetapi.KindLocate, Args: map[string]string{"seconds": "30"}}))(t)
		time.Sleep(2 * time.Second)
		if plain, _ := f.sentOf(j.ID); plain != 1 || len(f.sent[0].Args) != 1 {
			t.Errorf("published %d times: %+v", plain, f.sent)
		}
		f.says(t, 0, j.ID, 1, 1, fleetapi.InProgress)
		f.says(t, 0, j.ID, 2, 2, fleetapi.Succeeded)
		j = must(f.Job(t.Context(), ada, j.ID))(t)
		if j.State != fleetapi.Succeeded || j.Detail != "SUCCEEDED" || j.Results["version"] != "2" || j.Finished.IsZero() {
			t.Errorf("job %+v", j)
		}
		if said := must(f.History(t.Context(), ada, j.ID))(t); len(said) != 2 || said[0].State != fleetapi.InProgress {
			t.Errorf("history %+v", said)
		}
		if n := f.says(t, 1, j.ID, 1, 3, fleetapi.Failed); n != 1 || f.state(t, j.ID) != fleetapi.Succeeded {
			t.Errorf("another box spoke of it: %d strangers, job is %s", n, f.state(t, j.ID))
		}
		_, err := f.Cancel(t.Context(), staff, j.ID)
		wantKind(t, err, croft.KindRefused)
	})
}

// TestStatusesInAnyOrder sends what a box said shuffled and doubled: what stands
// in the end is the final state, and nothing is stored twice.
func TestStatusesInAnyOrder(t *testing.T) {
	each(t, 1, func(t *testing.T, f *fleet) {
		r := rand.New(rand.NewPCG(1, 2))
		for range 10 {
			j := f.reboot(t, 0)
			states := []fleetapi.JobState{fleetapi.Queued, fleetapi.InProgress, fleetapi.InProgress, fleetapi.Failed}
			base := r.Uint64N(1 << 40)
			for _, i := range append(r.Perm(len(states)), r.Perm(len(states))...) {
				f.says(t, 0, j.ID, base+uint64(i)+1, uint64(i+1), states[i])
			}
			if got := f.state(t, j.ID); got != fleetapi.Failed {
				t.Errorf("job is %s", got)
			}
			if said := must(f.History(t.Context(), staff, j.ID))(t); len(said) != len(states) {
				t.Errorf("%d statuses are stored", len(said))
			}
		}
	})
}

func TestIdempotencyAndLimits(t *testing.T) {
	each(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		order := job.Order{Device: idOf(0), Kind: fleetapi.KindReboot, Key: "k"}
		first := must(f.Queue(ctx, staff, order))(t)
		if again := must(f.Queue(ctx, staff, order))(t); again.ID != first.ID {
			t.Error("the same request made two jobs")
		}
		if other := must(f.Queue(ctx, ada, order))(t); other.ID == first.ID {
			t.Error("keys of two accounts are one")
		}
		order.Kind = fleetapi.KindLocate
		_, err := f.Queue(ctx, staff, order)
		wantKind(t, err, croft.KindRefused)
		for range job.MaxPending - 2 {
			f.reboot(t, 0)
		}
		_, err = f.Queue(ctx, staff, job.Order{Device: idOf(0), Kind: fleetapi.KindReboot})
		wantKind(t, err, croft.KindRefused)
		if again := must(f.Queue(ctx, staff, job.Order{Device: idOf(0), Kind: fleetapi.KindReboot, Key: "k"}))(t); again.ID != first.ID {
			t.Error("a full queue forgot the key")
		}
		must(f.Cancel(ctx, staff, first.ID))(t)
		f.reboot(t, 0)
		for _, bad := range []job.Order{
			{Device: idOf(0), Kind: "Rm -rf"},
			{Device: idOf(0), Kind: "x", Deadline: time.Now()},
			{Device: idOf(0), Kind: "x", Deadline: time.Now().AddDate(1, 0, 0)},
			{Device: idOf(0), Kind: "x", Args: map[string]string{"UP": ""}},
			{Device: idOf(0), Kind: "x", Key: "a\nb"},
			{Device: idOf(0), Kind: "x", Key: strings.Repeat("a", 200)},
		} {
			_, err := f.Queue(ctx, staff, bad)
			wantKind(t, err, croft.KindUsage)
		}
	})
}

func TestOwnersSeeJobsOfTheirBoxesOnly(t *testing.T) {
	each(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		j := f.reboot(t, 1)
		_, err := f.Queue(ctx, ada, job.Order{Device: idOf(1), Kind: fleetapi.KindReboot})
		wantKind(t, err, croft.KindNotFound)
		_, err = f.Job(ctx, ada, j.ID)
		wantKind(t, err, croft.KindNotFound)
		_, err = f.Cancel(ctx, ada, j.ID)
		wantKind(t, err, croft.KindNotFound)
		_, err = f.History(ctx, ada, j.ID)
		wantKind(t, err, croft.KindNotFound)
		for _, q := range []job.Query{{Device: idOf(1)}, {Pending: true}, {Bulk: "x"}} {
			_, _, err = f.List(ctx, ada, q)
			wantKind(t, err, croft.KindNotFound)
		}
		if f.state(t, j.ID) != fleetapi.Queued {
			t.Error("a stranger changed the job")
		}
	})
}

func TestCancel(t *testing.T) {
	timed(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		unsent := f.reboot(t, 0)
		if j := must(f.Cancel(ctx, staff, unsent.ID))(t); j.State != fleetapi.Canceled {
			t.Errorf("a job nobody has is %s", j.State)
		}
		f.run(t)
		obeyed, done, silent := f.reboot(t, 0), f.reboot(t, 0), f.reboot(t, 0)
		time.Sleep(2 * time.Second)
		for _, j := range []job.Job{obeyed, done, silent} {
			if j := must(f.Cancel(ctx, staff, j.ID))(t); !j.Canceling || j.State != fleetapi.Queued {
				t.Errorf("job that the box has: %+v", j)
			}
			must(f.Cancel(ctx, staff, j.ID))(t)
		}
		time.Sleep(2 * time.Second)
		f.says(t, 0, obeyed.ID, 1, 1, fleetapi.Canceled)
		f.says(t, 0, done.ID, 2, 1, fleetapi.Succeeded)
		time.Sleep(job.CancelWait)
		for id, want := range map[string]fleetapi.JobState{obeyed.ID: fleetapi.Canceled, done.ID: fleetapi.Succeeded, silent.ID: fleetapi.Canceled} {
			if got := f.state(t, id); got != want {
				t.Errorf("job is %s, want %s", got, want)
			}
			if plain, canceled := f.sentOf(id); plain != 1 || canceled != 1 {
				t.Errorf("published %d times, canceled %d times", plain, canceled)
			}
		}
		if plain, canceled := f.sentOf(unsent.ID); plain+canceled > 0 {
			t.Error("a job canceled before it was sent was sent")
		}
	})
}

func TestJobsSurviveBrokerAndBox(t *testing.T) {
	timed(t, 3, func(t *testing.T, f *fleet) {
		f.down = true
		f.broken = idOf(1)
		f.run(t)
		jobs := []job.Job{f.reboot(t, 1), f.reboot(t, 0), f.reboot(t, 2)}
		time.Sleep(time.Minute)
		f.mu.Lock()
		f.down = false
		f.mu.Unlock()
		time.Sleep(2 * time.Second)
		for i, want := range []int{0, 1, 1} {
			if plain, _ := f.sentOf(jobs[i].ID); plain != want {
				t.Errorf("job %d was published %d times, want %d", i, plain, want)
			}
		}
		check(t, f.Resend(t.Context(), []croft.DeviceID{idOf(0)})) // the box said hello
		time.Sleep(2 * time.Second)
		if plain, _ := f.sentOf(jobs[1].ID); plain != 2 {
			t.Errorf("after its hello: published %d times", plain)
		}
		f.mu.Lock()
		f.boxes = f.boxes[:2] // box 2 is retired
		f.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if got := f.state(t, jobs[2].ID); got != fleetapi.Removed {
			t.Errorf("job of a retired box is %s", got)
		}
	})
}

func TestDeadline(t *testing.T) {
	timed(t, 1, func(t *testing.T, f *fleet) {
		f.run(t)
		j := must(f.Queue(t.Context(), staff, job.Order{Device: idOf(0), Kind: fleetapi.KindReboot, Deadline: time.Now().Add(time.Minute)}))(t)
		time.Sleep(59 * time.Second)
		if got := f.state(t, j.ID); got != fleetapi.Queued {
			t.Errorf("before the deadline: %s", got)
		}
		time.Sleep(3 * time.Second)
		if got := f.state(t, j.ID); got != fleetapi.TimedOut {
			t.Errorf("after the deadline: %s", got)
		}
		f.says(t, 0, j.ID, 1, 1, fleetapi.Succeeded)
		said := must(f.History(t.Context(), staff, j.ID))(t)
		if f.state(t, j.ID) != fleetapi.TimedOut || len(said) != 1 || said[0].Taken {
			t.Errorf("job is %s, history %+v", f.state(t, j.ID), said)
		}
		if f.audited["job.end"] != 1 || f.audited["job.queue"] != 1 {
			t.Errorf("audit log has %v", f.audited)
		}
	})
}

func TestBulk(t *testing.T) {
	each(t, 450, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		for range job.MaxPending {
			f.reboot(t, 7)
		}
		order := job.Bulk{Selector: "site=lab", Kind: fleetapi.KindReboot, Key: "night"}
		for range 2 { // the first answer was lost
			got := must(f.QueueBulk(ctx, staff, order))(t)
			if got.Queued != 449 || !slices.Equal(got.Skipped, []croft.DeviceID{idOf(7)}) {
				t.Errorf("%d queued, %v skipped", got.Queued, got.Skipped)
			}
			q := job.Query{Bulk: got.ID, Limit: 100}
			seen := map[string]bool{}
			for {
				jobs, next, err := f.List(ctx, staff, q)
				check(t, err)
				for _, j := range jobs {
					seen[j.ID] = true
				}
				if q.Cursor = next; next == "" {
					break
				}
			}
			if len(seen) != 449 {
				t.Errorf("%d jobs were ordered together", len(seen))
			}
		}
		for _, bad := range []job.Bulk{{Kind: "x", Key: "k"}, {Kind: "x", Selector: "a"}, {Kind: "<", Selector: "a", Key: "k"}} {
			_, err := f.QueueBulk(ctx, staff, bad)
			wantKind(t, err, croft.KindUsage)
		}
		_, _, err := f.List(ctx, staff, job.Query{})
		wantKind(t, err, croft.KindUsage)
		_, _, err = f.List(ctx, staff, job.Query{Pending: true, Cursor: "x"})
		wantKind(t, err, croft.KindUsage)
	})
}

func TestOneRoundOfTheLoops(t *testing.T) {
	each(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		kept, removed := f.reboot(t, 0), f.reboot(t, 1)
		check(t, f.Round(ctx))
		must(f.Cancel(ctx, staff, kept.ID))(t)
		f.mu.Lock()
		f.boxes = f.boxes[:1]
		f.mu.Unlock()
		check(t, f.Round(ctx))
		check(t, f.Round(ctx))
		if plain, canceled := f.sentOf(kept.ID); plain != 1 || canceled != 1 {
			t.Errorf("published %d times, canceled %d times", plain, canceled)
		}
		if got := f.state(t, removed.ID); got != fleetapi.Removed || f.audited["job.end"] != 1 {
			t.Errorf("job of a box that left is %s, audited %v", got, f.audited)
		}
	})
}
