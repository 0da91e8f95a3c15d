package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const byFleet = "fleet"

// Run delivers jobs and audit entries, and ends jobs whose time is over, on one
// replica at a time, until ctx ends. Each work has a loop of its own: a broker that
// does not answer keeps nothing else waiting.
func (s *Store) Run(ctx context.Context) error {
	return s.db.Lead(ctx, "job", func(ctx context.Context) error {
		var loops sync.WaitGroup
		loops.Go(func() { s.every(ctx, time.Second, "end jobs whose time is over", s.endOverdue) })
		loops.Go(func() { s.every(ctx, time.Second, "deliver jobs", s.deliver) })
		loops.Go(func() { s.every(ctx, time.Second, "deliver audit entries", s.deliverAudit) })
		loops.Go(func() { s.every(ctx, time.Minute, "remove jobs of retired boxes", s.removeRetired) })
		loops.Go(func() { s.every(ctx, time.Minute, "delete old statuses", s.sweep) })
		loops.Wait()
		return nil
	})
}

func (s *Store) every(ctx context.Context, pause time.Duration, work string, do func(context.Context) error) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.try(ctx, work, do)
		}
	}
}

// try does one round of a loop; the next one tries again what it could not do.
func (s *Store) try(ctx context.Context, work string, do func(context.Context) error) {
	if err := do(ctx); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("work on jobs was not done", "work", work, "error", err)
	}
}

const (
	atOnce         = 200
	brokenInARow   = 5
	brokenAnywhere = 50
)

// delivery is a job on its way to the broker.
type delivery struct {
	Job
	round int64
	staff bool // it was ordered as one of the staff
	sent  bool // the box may have it
}

func scanDelivery(scan db.Scan) (delivery, error) {
	var d delivery
	var staff, sent int64
	var err error
	d.Job, err = scanJob(func(columns ...any) error { return scan(append(columns, &d.round, &staff, &sent)...) })
	d.staff, d.sent = staff == 1, sent == 1
	return d, err
}

// deliver publishes what the broker does not have, a page at a time. A box that
// cannot be delivered to holds up no other.
func (s *Store) deliver(ctx context.Context) error {
	var after string
	var broken []error
	row := 0
	for {
		var page, done []delivery
		err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
			page, err = db.All(tx, scanDelivery, "SELECT "+columns+", round, staff, sent FROM job_jobs WHERE delivered < round AND id > ? ORDER BY id LIMIT ?", after, atOnce)
			return err
		})
		if err != nil || len(page) == 0 {
			return errors.Join(append(broken, err)...)
		}
		after = page[len(page)-1].ID
		due, err := s.due(ctx, page)
		if err != nil {
			return errors.Join(append(broken, err)...)
		}
		for _, d := range due {
			payload := &fleetapi.Job{ID: d.ID, Kind: d.Kind, Args: fleetapi.Labels(d.Args), Deadline: d.Deadline, Canceled: d.Canceling}
			if err := s.cfg.Publisher.Publish(ctx, d.Device, payload); err != nil {
				broken = append(broken, fmt.Errorf("publish %s to %s: %w", d.ID, d.Device, err))
				if row++; row >= brokenInARow || len(broken) >= brokenAnywhere {
					return errors.Join(append(broken, s.delivered(ctx, done))...)
				}
				continue
			}
			row = 0
			done = append(done, d)
		}
		if err := s.delivered(ctx, done); err != nil {
			return errors.Join(append(broken, err)...)
		}
	}
}

// due notes that boxes may have these jobs before they may: who cancels one in
// between waits for the box's word. Jobs that ended meanwhile are not among those it
// returns, nor those of somebody whose box it no longer is, which it cancels.
func (s *Store) due(ctx context.Context, page []delivery) (due []delivery, err error) {
	theirs := make([]bool, len(page))
	for i, d := range page {
		if theirs[i] = true; d.staff || d.Canceling {
			continue
		}
		err := s.cfg.Boxes.Allowed(ctx, Actor{ID: d.By}, d.Device)
		if theirs[i] = err == nil; err != nil && croft.KindOf(err) != croft.KindNotFound {
			return nil, fmt.Errorf("ask whose box %s is: %w", d.Device, err)
		}
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		due = due[:0]
		now := time.Now()
		for i, d := range page {
			if !theirs[i] {
				if err := disown(tx, d, now); err != nil {
					return err
				}
				continue
			}
			rows, err := tx.Exec("UPDATE job_jobs SET sent = 1 WHERE id = ? AND finished = 0", d.ID)
			if err != nil {
				return err
			}
			if rows > 0 {
				due = append(due, d)
			}
		}
		return nil
	})
	return due, err
}

// disown takes a job of a former owner back. A box that may have it is told so.
func disown(tx *db.Tx, d delivery, now time.Time) error {
	if d.sent {
		_, err := tx.Exec("UPDATE job_jobs SET cancel_until = ?, round = round + 1 WHERE id = ? AND finished = 0", db.Micros(now.Add(CancelWait)), d.ID)
		return err
	}
	job, err := get(tx, d.ID)
	if err != nil || job.State.Final() {
		return err
	}
	return finish(tx, []Job{job}, fleetapi.Canceled, now)
}

// delivered notes which round of jobs the broker has. One that is to be given to it
// again meanwhile has a later round.
func (s *Store) delivered(ctx context.Context, done []delivery) error {
	if len(done) == 0 {
		return nil
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		for _, d := range done {
			if _, err := tx.Exec("UPDATE job_jobs SET delivered = ? WHERE id = ? AND delivered < ?", d.round, d.ID, d.round); err != nil {
				return err
			}
		}
		return nil
	})
}

// endOverdue ends jobs whose deadline has passed, or whose box did not say what
// became of their cancellation.
func (s *Store) endOverdue(ctx context.Context) error {
	for _, overdue := range []struct {
		to    fleetapi.JobState
		where string
	}{
		{fleetapi.Canceled, "finished = 0 AND cancel_until <> 0 AND cancel_until <= ?"},
		{fleetapi.TimedOut, "finished = 0 AND deadline <= ?"},
	} {
		for {
			var n int
			err := s.db.Write(ctx, func(tx *db.Tx) error {
				now := time.Now()
				jobs, err := db.All(tx, scanJob, "SELECT "+columns+" FROM job_jobs WHERE "+overdue.where+" ORDER BY id LIMIT ?", db.Micros(now), atOnce)
				if err != nil {
					return err
				}
				n = len(jobs)
				return finish(tx, jobs, overdue.to, now)
			})
			if err != nil {
				return err
			}
			if n < atOnce {
				break
			}
		}
	}
	return nil
}

func finish(tx *db.Tx, jobs []Job, to fleetapi.JobState, now time.Time) error {
	for _, j := range jobs {
		if _, err := j.State.Move(to); err != nil {
			return fmt.Errorf("end %s: %w", j.ID, err)
		}
		if err := end(tx, j.ID, to, now); err != nil {
			return err
		}
		tx.Notify(Topic, j.ID)
		if err := tell(tx, byFleet, "job.end", j.Device, map[string]string{"state": string(j.State)}, map[string]string{"job": j.ID, "state": string(to)}); err != nil {
			return err
		}
	}
	return nil
}

// removeRetired ends the jobs of boxes that are no longer in the fleet.
func (s *Store) removeRetired(ctx context.Context) error {
	var after string
	for {
		var ids []croft.DeviceID
		err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
			ids, err = db.All(tx, func(scan db.Scan) (id croft.DeviceID, err error) { return id, scan(&id) },
				"SELECT DISTINCT device FROM job_jobs WHERE finished = 0 AND device > ? ORDER BY device LIMIT ?", after, atOnce)
			return err
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		known, err := s.cfg.Boxes.Known(ctx, ids)
		if err != nil {
			return err
		}
		for _, id := range ids {
			after = string(id)
			if known[id] {
				continue
			}
			if err := s.Remove(ctx, id); err != nil {
				return err
			}
		}
	}
}

// Remove ends all jobs of a box that left the fleet, with REMOVED. Run does it
// too, within a minute.
func (s *Store) Remove(ctx context.Context, id croft.DeviceID) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		jobs, err := db.All(tx, scanJob, "SELECT "+columns+" FROM job_jobs WHERE device = ? AND finished = 0 ORDER BY id", string(id))
		if err != nil {
			return err
		}
		return finish(tx, jobs, fleetapi.Removed, time.Now())
	})
}

// tell writes a change down for the audit log.
func tell(tx *db.Tx, by, action string, id croft.DeviceID, before, after map[string]string) error {
	entry := Entry{
		ID: fleetapi.NewID(fleetapi.PrefixEvent), At: fleetapi.Truncate(time.Now()),
		By: by, Action: action, Device: id, Before: before, After: after,
	}
	body, err := json.Marshal(entry)
	if err != nil {
		return fmt.Errorf("write audit entry: %w", err)
	}
	_, err = tx.Exec("INSERT INTO job_audit (id, body) VALUES (?, ?)", entry.ID, string(body))
	return err
}

func (s *Store) deliverAudit(ctx context.Context) error {
	type stored struct{ id, body string }
	for {
		var found []stored
		err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
			found, err = db.All(tx, func(scan db.Scan) (e stored, err error) { return e, scan(&e.id, &e.body) },
				"SELECT id, body FROM job_audit ORDER BY id LIMIT ?", atOnce)
			return err
		})
		if err != nil || len(found) == 0 {
			return err
		}
		for _, e := range found {
			var entry Entry
			if err := json.Unmarshal([]byte(e.body), &entry); err != nil {
				return fmt.Errorf("read audit entry %s: %w", e.id, err)
			}
			if err := s.cfg.Audit.Record(ctx, entry); err != nil {
				return fmt.Errorf("tell audit log %s: %w", e.id, err)
			}
			if err := s.exec(ctx, "DELETE FROM job_audit WHERE id = ?", e.id); err != nil {
				return err
			}
		}
	}
}

func (s *Store) sweep(ctx context.Context) error {
	old := db.Micros(time.Now().Add(-keepStatuses))
	return errors.Join(
		s.exec(ctx, "DELETE FROM job_statuses WHERE received < ?", old),
		s.exec(ctx, "DELETE FROM job_jobs WHERE finished <> 0 AND finished < ?", old),
	)
}

func (s *Store) exec(ctx context.Context, query string, args ...any) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(query, args...)
		return err
	})
}
