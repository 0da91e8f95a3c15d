package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const byFleet = "fleet"

// Run delivers jobs and audit entries, and ends jobs whose time is over, on one
// replica at a time, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	return s.db.Lead(ctx, "job", func(ctx context.Context) error {
		fast, slow := time.NewTicker(time.Second), time.NewTicker(time.Minute)
		defer fast.Stop()
		defer slow.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-fast.C:
				s.try(ctx, "end jobs whose time is over", s.endOverdue)
				s.try(ctx, "deliver jobs", s.deliver)
				s.try(ctx, "deliver audit entries", s.deliverAudit)
			case <-slow.C:
				s.try(ctx, "remove jobs of retired boxes", s.removeRetired)
				s.try(ctx, "delete old statuses", s.sweep)
			}
		}
	})
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

// deliver publishes what the broker does not have. A box that cannot be
// delivered to holds up no other.
func (s *Store) deliver(ctx context.Context) error {
	var after string
	var broken []error
	row := 0
	for {
		var jobs []Job
		err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
			jobs, err = db.All(tx, scanJob, "SELECT "+columns+" FROM job_jobs WHERE delivered = 0 AND id > ? ORDER BY id LIMIT ?", after, atOnce)
			return err
		})
		if err != nil {
			return err
		}
		for _, j := range jobs {
			after = j.ID
			sent, err := s.deliverOne(ctx, j)
			if err == nil || sent {
				row = 0
			}
			if err != nil {
				broken = append(broken, err)
				if row++; row >= brokenInARow || len(broken) >= brokenAnywhere {
					return errors.Join(broken...)
				}
			}
		}
		if len(jobs) < atOnce {
			return errors.Join(broken...)
		}
	}
}

// deliverOne notes that a box may have the job before it may: who cancels it in
// between waits for the box's word.
func (s *Store) deliverOne(ctx context.Context, j Job) (bool, error) {
	var still bool
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		rows, err := tx.Exec("UPDATE job_jobs SET sent = 1 WHERE id = ? AND finished = 0", j.ID)
		still = rows > 0
		return err
	})
	if err != nil || !still {
		return false, err
	}
	payload := &fleetapi.Job{ID: j.ID, Kind: j.Kind, Args: fleetapi.Labels(j.Args), Deadline: j.Deadline, Canceled: j.Canceling}
	if err := s.cfg.Publisher.Publish(ctx, j.Device, payload); err != nil {
		return false, fmt.Errorf("publish %s to %s: %w", j.ID, j.Device, err)
	}
	// Canceled meanwhile, it is to be delivered once more.
	return true, s.exec(ctx, "UPDATE job_jobs SET delivered = 1 WHERE id = ? AND (cancel_until <> 0) = (? <> 0)", j.ID, db.Bit(j.Canceling))
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
