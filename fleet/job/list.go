package job

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const columns = "id, device, kind, args, state, created, deadline, finished, account, bulk, detail, results, cancel_until, CASE WHEN delivered >= round THEN 1 ELSE 0 END"

func scanJob(scan db.Scan) (Job, error) {
	var j Job
	var created, deadline, finished, cancel, delivered int64
	var args, results string
	if err := scan(&j.ID, &j.Device, &j.Kind, &args, &j.State, &created, &deadline, &finished, &j.By, &j.Bulk, &j.Detail, &results, &cancel, &delivered); err != nil {
		return j, err
	}
	j.Created, j.Deadline, j.Finished = db.Instant(created), db.Instant(deadline), db.Instant(finished)
	j.Canceling, j.Delivered = cancel != 0 && finished == 0, delivered == 1
	if err := json.Unmarshal([]byte(args), &j.Args); err != nil {
		return j, err
	}
	return j, json.Unmarshal([]byte(results), &j.Results)
}

func get(tx *db.Tx, id string) (Job, error) {
	found, err := db.All(tx, scanJob, "SELECT "+columns+" FROM job_jobs WHERE id = ?", id)
	if err == nil && len(found) == 0 {
		return Job{}, ErrNoJob
	}
	if err != nil {
		return Job{}, err
	}
	return found[0], nil
}

// Job is one job.
func (s *Store) Job(ctx context.Context, actor Actor, id string) (Job, error) {
	var job Job
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		job, err = get(tx, id)
		return err
	})
	if err != nil || actor.Staff {
		return job, err
	}
	since, err := s.visibleSince(ctx, actor, job.Device)
	if croft.KindOf(err) == croft.KindNotFound || err == nil && job.Created.Before(since) {
		return Job{}, ErrNoJob
	}
	return job, err
}

// visibleSince is from when on somebody who is not of the staff may see the jobs of
// a box, if it is his.
func (s *Store) visibleSince(ctx context.Context, owner Actor, id croft.DeviceID) (time.Time, error) {
	if err := s.cfg.Boxes.Allowed(ctx, owner, id); err != nil || s.cfg.Since == nil {
		return time.Time{}, err
	}
	return s.cfg.Since(ctx, id)
}

// Query says which jobs a list has. One of Device, Bulk and Pending is needed.
type Query struct {
	Device  croft.DeviceID
	Bulk    string // BulkResult.ID
	Pending bool   // those that are not ended
	Cursor  string // the last ID of the page before
	Limit   int    // 1 to 500; default 50
	since   time.Time
}

// List is a page of jobs, newest first, and the next cursor, empty after the
// last. Who is not of the staff asks for a box of his.
func (s *Store) List(ctx context.Context, actor Actor, q Query) ([]Job, string, error) {
	if !actor.Staff {
		var err error
		if q.since, err = s.visibleSince(ctx, actor, q.Device); err != nil {
			return nil, "", err
		}
	}
	query, args, limit, err := list(q)
	if err != nil {
		return nil, "", err
	}
	var jobs []Job
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		jobs, err = db.All(tx, scanJob, query, args...)
		return err
	})
	if err != nil || len(jobs) <= limit {
		return jobs, "", err
	}
	return jobs[:limit], jobs[limit-1].ID, nil
}

func list(q Query) (string, []any, int, error) {
	var where []string
	var args []any
	and := func(condition string, more ...any) {
		where, args = append(where, condition), append(args, more...)
	}
	if q.Device != "" {
		and("device = ?", string(q.Device))
	}
	if q.Bulk != "" {
		and("bulk = ? AND bulk <> ''", q.Bulk)
	}
	if q.Pending {
		and("finished = 0")
	}
	if len(where) == 0 {
		return "", nil, 0, usage("list jobs: want a box, jobs ordered together, or those that are not ended")
	}
	if !q.since.IsZero() {
		and("created >= ?", db.Micros(q.since))
	}
	if q.Cursor != "" {
		if _, err := fleetapi.ParseID(fleetapi.PrefixJob, q.Cursor); err != nil {
			return "", nil, 0, usage("list jobs: cursor: %w", err)
		}
		and("id < ?", q.Cursor)
	}
	limit := 50
	if q.Limit > 0 {
		limit = min(q.Limit, 500)
	}
	return "SELECT " + columns + " FROM job_jobs WHERE " + strings.Join(where, " AND ") + " ORDER BY id DESC LIMIT ?", append(args, limit+1), limit, nil
}

// Said is one status in a job's history.
type Said struct {
	State    fleetapi.JobState
	Version  uint64
	At       time.Time // device clock
	Received time.Time
	Detail   string
	Taken    bool // whether it changed the job; false: it came too late
}

// History is what the box said about a job, in the order it arrived.
func (s *Store) History(ctx context.Context, actor Actor, id string) ([]Said, error) {
	if _, err := s.Job(ctx, actor, id); err != nil {
		return nil, err
	}
	var said []Said
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		said, err = db.All(tx, func(scan db.Scan) (Said, error) {
			var one Said
			var version, at, received, taken int64
			err := scan(&one.State, &version, &at, &received, &one.Detail, &taken)
			one.Version, one.At, one.Received, one.Taken = uint64(version), db.Instant(at), db.Instant(received), taken == 1
			return one, err
		}, "SELECT state, version, at, received, detail, taken FROM job_statuses WHERE job = ? ORDER BY received, version LIMIT 500", id)
		return err
	})
	return said, err
}
