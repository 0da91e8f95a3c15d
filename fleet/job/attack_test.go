package job_test

import (
	"context"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
)

// meanwhile is a broker during whose publication something happens.
type meanwhile struct {
	*fleet
	do func()
}

func (m meanwhile) Publish(ctx context.Context, id croft.DeviceID, p fleetapi.Payload) error {
	if m.do != nil {
		m.do()
	}
	return m.fleet.Publish(ctx, id, p)
}

// TestABoxThatSaysHelloDuringADeliveryGetsTheJobAgain has the broker drop a job,
// because the box is not there, and the box come before that is noted.
func TestABoxThatSaysHelloDuringADeliveryGetsTheJobAgain(t *testing.T) {
	each(t, 1, func(t *testing.T, f *fleet) {
		helloes := 0
		s := must(job.New(t.Context(), job.Config{DB: f.db, Boxes: f, Audit: f, Publisher: meanwhile{f, func() {
			if helloes++; helloes == 1 {
				check(t, f.Resend(t.Context(), []croft.DeviceID{idOf(0)}))
			}
		}}}))(t)
		j := f.reboot(t, 0)
		for range 3 {
			check(t, s.Round(t.Context()))
		}
		if plain, _ := f.sentOf(j.ID); plain != 2 {
			t.Errorf("published %d times, want again after the hello", plain)
		}
		if j := must(f.Job(t.Context(), staff, j.ID))(t); !j.Delivered {
			t.Errorf("job %+v", j)
		}
	})
}

// TestTheFormerOwner has ada sell a box for which she had asked something: the buyer's
// box does not do it, and the buyer does not see what was done before.
func TestTheFormerOwner(t *testing.T) {
	each(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		var since time.Time
		owners := &sold{fleet: f, owner: ada}
		s := must(job.New(ctx, job.Config{
			DB: f.db, Boxes: owners, Publisher: f, Audit: f,
			Since: func(context.Context, croft.DeviceID) (time.Time, error) { return since, nil },
		}))(t)
		bundle := f.reboot(t, 0) // by the support, in ada's time
		check(t, s.Round(ctx))
		f.says(t, 0, bundle.ID, 1, 1, fleetapi.Succeeded)
		sent := must(s.Queue(ctx, ada, job.Order{Device: idOf(0), Kind: fleetapi.KindLocate}))(t)
		check(t, s.Round(ctx))
		mine := must(s.Queue(ctx, ada, job.Order{Device: idOf(0), Kind: fleetapi.KindReboot}))(t)
		if jobs, _, err := s.List(ctx, ada, job.Query{Device: idOf(0)}); err != nil || len(jobs) != 3 {
			t.Errorf("ada sees %d jobs: %v", len(jobs), err)
		}

		bob := job.Actor{ID: "own_bob"}
		owners.owner, since = bob, time.Now().Add(time.Millisecond)
		check(t, s.Round(ctx))
		if plain, _ := f.sentOf(mine.ID); plain > 0 || f.state(t, mine.ID) != fleetapi.Canceled {
			t.Errorf("what the former owner asked was published %d times and is %s", plain, f.state(t, mine.ID))
		}
		check(t, s.Resend(ctx, []croft.DeviceID{idOf(0)})) // it is plugged in at the buyer's
		for range 2 {
			check(t, s.Round(ctx))
		}
		if plain, canceled := f.sentOf(sent.ID); plain != 1 || canceled != 1 {
			t.Errorf("what the box had from the former owner was published %d times, and %d times that it is canceled", plain, canceled)
		}
		for _, id := range []string{bundle.ID, mine.ID, sent.ID} {
			_, err := s.Job(ctx, bob, id)
			wantKind(t, err, croft.KindNotFound)
			_, err = s.History(ctx, bob, id)
			wantKind(t, err, croft.KindNotFound)
			_, err = s.Cancel(ctx, bob, id)
			wantKind(t, err, croft.KindNotFound)
		}
		if jobs, _, err := s.List(ctx, bob, job.Query{Device: idOf(0)}); err != nil || len(jobs) > 0 {
			t.Errorf("the buyer sees %d jobs from before his time: %v", len(jobs), err)
		}
	})
}

// sold has box 0 belong to somebody.
type sold struct {
	*fleet
	owner job.Actor
}

func (s *sold) Allowed(_ context.Context, a job.Actor, id croft.DeviceID) error {
	if !a.Staff && (a != s.owner || id != idOf(0)) {
		return errNone
	}
	return nil
}

// TestABoxThatTalksWithoutEndFillsNoTable has a box report progress again and again:
// the job follows, its history ends.
func TestABoxThatTalksWithoutEndFillsNoTable(t *testing.T) {
	f := newFleet(t, dbtest.URL(t, dbtest.SQLite), 1)
	j := f.reboot(t, 0)
	const n = 700
	for seq := range uint64(n) {
		f.says(t, 0, j.ID, seq+1, seq+1, fleetapi.InProgress)
	}
	f.says(t, 0, j.ID, n, n, fleetapi.InProgress) // again
	f.says(t, 0, j.ID, n+1, n+1, fleetapi.Succeeded)
	f.says(t, 0, j.ID, n+2, n+2, fleetapi.Failed)
	if got := must(f.Job(t.Context(), staff, j.ID))(t); got.State != fleetapi.Succeeded || got.Results["version"] != "701" {
		t.Errorf("job %+v", got)
	}
	var rows int
	check(t, f.count(t, "SELECT COUNT(*) FROM job_statuses", &rows))
	if rows != 500 {
		t.Errorf("%d statuses are stored, want 500", rows)
	}
}

func (f *fleet) count(t testing.TB, query string, n *int) error {
	return f.db.Read(t.Context(), func(tx *db.Tx) error { return tx.Row(query).Scan(n) })
}
