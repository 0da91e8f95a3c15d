// Package job is what the fleet asks boxes to do once: reboot, collect a bundle,
// run a benchmark, show which box it is.
//
//	s, err := job.New(ctx, job.Config{DB: d, Boxes: boxes, …})
//	go s.Run(ctx)                                       // on every replica
//	j, err := s.Queue(ctx, actor, job.Order{Device: id, Kind: fleetapi.KindReboot, Key: key})
//	err = s.Receive(ctx, statuses)                      // from ingest
//	err = s.Resend(ctx, []croft.DeviceID{id})           // at each hello of a box
//
// States are those of [fleetapi.JobState], and what is not in their table is
// refused. Whether somebody may ask for a kind of job is for the caller; that a
// box is his, [Boxes] says.
//
// # What survives what
//
//   - The fleet is killed: a job that was answered for is stored, and is
//     published until the broker has it. A request sent again with its
//     idempotency key gives the same job.
//   - The broker lost it, or the box was away: a box that comes back is sent all
//     it has not ended. Boxes know a job by its id.
//   - Statuses twice, late or out of order: stored once by (device, journal,
//     seq), the first 500 of a job; taken only if newer and if the table allows it.
//   - The box gets another owner: what the old one asked is CANCELED when the box
//     would be sent it, the first time or at its next hello.
//   - The box is never heard of again: TIMED_OUT at the deadline. It is retired:
//     REMOVED. It ends a job after the deadline: its status is in the history,
//     the job stays TIMED_OUT.
package job

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Topic is what listeners of the database are told under: ids of jobs.
const Topic = "job"

// Limits.
const (
	MaxPending   = 15                  // jobs of a box that are not ended
	MaxBulk      = 100_000             // boxes of one order
	DefaultLife  = 24 * time.Hour      // until the deadline
	MaxLife      = 30 * 24 * time.Hour // until the deadline
	CancelWait   = 10 * time.Minute    // for the box to end a job that is canceled
	keepStatuses = 400 * 24 * time.Hour
	maxKey       = 128
	maxStatuses  = 500 // kept of one job
)

// Actor is for whom a method acts.
type Actor struct {
	ID    string // account; it stands in the audit log
	Staff bool   // false: its own boxes only
}

// Boxes is what a job must know of boxes.
type Boxes interface {
	// Allowed is nil if the box is in the fleet and, for who is not of the
	// staff, his. Otherwise its error tells no more than that there is none.
	Allowed(ctx context.Context, actor Actor, id croft.DeviceID) error

	// Select is the actor's boxes that a selector matches; empty: all of them.
	// At most MaxBulk and one more.
	Select(ctx context.Context, actor Actor, selector string) ([]croft.DeviceID, error)

	// Known tells which boxes are in the fleet, and not retired.
	Known(ctx context.Context, ids []croft.DeviceID) (map[croft.DeviceID]bool, error)
}

// Publisher hands a payload to the broker, and returns nil once that has it.
type Publisher interface {
	Publish(ctx context.Context, device croft.DeviceID, payload fleetapi.Payload) error
}

// Audit is told of every change that people, or time, made. An entry may come
// twice.
type Audit interface {
	Record(context.Context, Entry) error
}

// Entry is one change.
type Entry struct {
	ID     string            `json:"id"` // evt_…, the same if it comes again
	At     time.Time         `json:"at"`
	By     string            `json:"by"`     // account; "fleet" for what time did
	Action string            `json:"action"` // "job.queue"
	Device croft.DeviceID    `json:"device"`
	Before map[string]string `json:"before,omitempty"`
	After  map[string]string `json:"after,omitempty"`
}

// Config is copied by [New] and never changed afterwards.
type Config struct {
	DB        *db.DB       // required
	Boxes     Boxes        // required
	Publisher Publisher    // required
	Audit     Audit        // required
	Log       *slog.Logger // nil discards

	// Since is when a box became its owner's: what was asked of it before that is not
	// for his eyes. nil: owners see all jobs of their boxes.
	Since func(context.Context, croft.DeviceID) (time.Time, error)
}

// Store is the jobs of a fleet. All methods may be called from any goroutine.
type Store struct {
	cfg Config
	db  *db.DB
}

// New brings the tables up to date.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.DB == nil || cfg.Boxes == nil || cfg.Publisher == nil || cfg.Audit == nil {
		return nil, errors.New("open job store: database, boxes, publisher or audit log is missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open job store: %w", err)
	}
	if err := cfg.DB.Migrate(ctx, "job", files); err != nil {
		return nil, err
	}
	return &Store{cfg: cfg, db: cfg.DB}, nil
}

// Order is what somebody asks of a box.
type Order struct {
	Device   croft.DeviceID
	Kind     fleetapi.JobKind
	Args     map[string]string
	Deadline time.Time // zero: in a day; at most in 30 days
	Key      string    // idempotency key of the account; empty: none
	bulk     string
}

// Job is one job of one box.
type Job struct {
	ID        string
	Device    croft.DeviceID
	Kind      fleetapi.JobKind
	Args      map[string]string
	State     fleetapi.JobState
	Created   time.Time
	Deadline  time.Time
	Finished  time.Time // zero: not yet
	By        string    // account
	Bulk      string    // the same for jobs ordered together; else empty
	Detail    string    // what the box says about it
	Results   map[string]string
	Canceling bool // canceled, and the box has not said that it ended it
	Delivered bool // the broker has it
}

// ErrNoJob reports that there is no such job, or none the actor may see.
var ErrNoJob = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such job")}

var errQueueFull = &croft.Error{
	Kind: croft.KindRefused, Err: fmt.Errorf("the box has %d jobs that are not ended", MaxPending),
	Remedy: "wait for one of them, or cancel one",
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}

// check completes an order and holds it against the wire.
func (o *Order) check(now time.Time) error {
	switch {
	case o.Deadline.IsZero():
		o.Deadline = now.Add(DefaultLife)
	case !o.Deadline.After(now) || o.Deadline.After(now.Add(MaxLife)):
		return usage("queue job: want a deadline within 30 days from now")
	}
	o.Deadline = fleetapi.Truncate(o.Deadline)
	if len(o.Key) > maxKey || fleetapi.CleanText(o.Key, maxKey) != o.Key {
		return usage("queue job: idempotency key: want at most %d bytes without control characters", maxKey)
	}
	if _, err := fleetapi.Encode(&fleetapi.Job{
		ID: fleetapi.NewID(fleetapi.PrefixJob), Kind: o.Kind, Args: fleetapi.Labels(o.Args), Deadline: o.Deadline,
	}); err != nil {
		return usage("queue job: %w", err)
	}
	return nil
}

// Queue asks one box. An order with a key that was used gives the job it made
// then, if it is the same order.
func (s *Store) Queue(ctx context.Context, actor Actor, o Order) (Job, error) {
	if err := o.check(time.Now()); err != nil {
		return Job{}, err
	}
	if err := s.cfg.Boxes.Allowed(ctx, actor, o.Device); err != nil {
		return Job{}, err
	}
	var job Job
	err := s.db.Write(ctx, func(tx *db.Tx) (err error) {
		job, err = queue(tx, actor, o, time.Now())
		tx.Notify(Topic, job.ID)
		return err
	})
	return job, err
}

func queue(tx *db.Tx, actor Actor, o Order, now time.Time) (Job, error) {
	if o.Args == nil {
		o.Args = map[string]string{}
	}
	if o.Key != "" {
		found, err := db.All(tx, scanJob, "SELECT "+columns+" FROM job_jobs WHERE account = ? AND idem = ? AND idem <> ''", actor.ID, o.Key)
		if err != nil {
			return Job{}, err
		}
		if len(found) > 0 {
			if old := found[0]; old.Device != o.Device || old.Kind != o.Kind || !maps.Equal(old.Args, o.Args) {
				return Job{}, &croft.Error{
					Kind: croft.KindRefused, Err: errors.New("the idempotency key was used for another job"), Remedy: "use a new key for each job",
				}
			}
			return found[0], nil
		}
	}
	var pending int
	if err := tx.Row("SELECT COUNT(*) FROM job_jobs WHERE device = ? AND finished = 0", string(o.Device)).Scan(&pending); err != nil {
		return Job{}, err
	}
	if pending >= MaxPending {
		return Job{}, errQueueFull
	}
	args, err := json.Marshal(o.Args)
	if err != nil {
		return Job{}, err
	}
	job := Job{
		ID: fleetapi.NewID(fleetapi.PrefixJob), Device: o.Device, Kind: o.Kind, Args: o.Args, State: fleetapi.Queued,
		Created: db.Instant(db.Micros(now)), Deadline: o.Deadline, By: actor.ID, Bulk: o.bulk, Results: map[string]string{},
	}
	if _, err := tx.Exec(`INSERT INTO job_jobs (id, device, kind, args, state, created, deadline, finished, account, staff, idem, bulk, version, detail, results, cancel_until, sent, round, delivered)
		VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, 0, '', '{}', 0, 0, 1, 0)`,
		job.ID, string(job.Device), string(job.Kind), string(args), string(job.State), db.Micros(now), db.Micros(job.Deadline), actor.ID, db.Bit(actor.Staff), o.Key, o.bulk); err != nil {
		return Job{}, err
	}
	return job, tell(tx, actor.ID, "job.queue", job.Device, nil, map[string]string{"job": job.ID, "kind": string(job.Kind), "bulk": o.bulk})
}

// Bulk is what somebody asks of many boxes.
type Bulk struct {
	Selector string // as of lists of boxes
	All      bool   // an empty selector means every box, and must be meant
	Kind     fleetapi.JobKind
	Args     map[string]string
	Deadline time.Time
	Key      string // required: an order cut off halfway is sent again with it
}

// BulkResult is what became of an order to many.
type BulkResult struct {
	ID      string           // for Query.Bulk
	Queued  int              // boxes that have the job, from an earlier try with this key too
	Skipped []croft.DeviceID // boxes with too many jobs
}

const bulkAtOnce = 200

// QueueBulk asks every box that a selector matches, in parts. If it fails, some
// boxes may have the job: send the order again with its key for the others.
func (s *Store) QueueBulk(ctx context.Context, actor Actor, b Bulk) (BulkResult, error) {
	if b.Key == "" || len(b.Key) > maxKey-40 {
		return BulkResult{}, usage("queue jobs: want an idempotency key of 1 to %d bytes", maxKey-40)
	}
	if b.Selector == "" && !b.All {
		return BulkResult{}, usage("queue jobs: selector is empty, and it was not said that all boxes are meant")
	}
	o := Order{Kind: b.Kind, Args: b.Args, Deadline: b.Deadline, Key: b.Key, bulk: actor.ID + " " + b.Key}
	if err := o.check(time.Now()); err != nil {
		return BulkResult{}, err
	}
	ids, err := s.cfg.Boxes.Select(ctx, actor, b.Selector)
	if err != nil {
		return BulkResult{}, err
	}
	if len(ids) > MaxBulk {
		return BulkResult{}, usage("queue jobs: more than %d boxes match", MaxBulk)
	}
	slices.Sort(ids)
	result := BulkResult{ID: o.bulk}
	for part := range slices.Chunk(ids, bulkAtOnce) {
		var queued int
		var skipped []croft.DeviceID
		err := s.db.Write(ctx, func(tx *db.Tx) error {
			queued, skipped = 0, nil
			for _, id := range part {
				one := o
				one.Device, one.Key = id, b.Key+" "+string(id)
				switch _, err := queue(tx, actor, one, time.Now()); {
				case errors.Is(err, errQueueFull):
					skipped = append(skipped, id)
				case err != nil:
					return err
				default:
					queued++
				}
			}
			tx.Notify(Topic, "") // too many to name
			return nil
		})
		if err != nil {
			return result, err
		}
		result.Queued += queued
		result.Skipped = append(result.Skipped, skipped...)
	}
	return result, nil
}

// Cancel takes a job back. One that no box can have is CANCELED at once; of
// another the box says what became of it, or nothing within [CancelWait].
func (s *Store) Cancel(ctx context.Context, actor Actor, id string) (Job, error) {
	if _, err := s.Job(ctx, actor, id); err != nil {
		return Job{}, err
	}
	var job Job
	err := s.db.Write(ctx, func(tx *db.Tx) (err error) {
		now := time.Now()
		if job, err = get(tx, id); err != nil {
			return err
		}
		if job.State == fleetapi.Canceled || job.Canceling {
			return nil
		}
		if _, err := job.State.Move(fleetapi.Canceled); err != nil {
			return &croft.Error{Kind: croft.KindRefused, Err: err}
		}
		var sent int64
		if err := tx.Row("SELECT sent FROM job_jobs WHERE id = ?", id).Scan(&sent); err != nil {
			return err
		}
		before := job.State
		if sent == 0 {
			job.State, job.Finished = fleetapi.Canceled, now
			err = end(tx, id, job.State, now)
		} else {
			job.Canceling = true
			_, err = tx.Exec("UPDATE job_jobs SET cancel_until = ?, round = round + 1 WHERE id = ?", db.Micros(now.Add(CancelWait)), id)
		}
		if err != nil {
			return err
		}
		tx.Notify(Topic, id)
		return tell(tx, actor.ID, "job.cancel", job.Device, map[string]string{"state": string(before)}, map[string]string{"job": id, "state": string(job.State)})
	})
	return job, err
}

// end makes a job's state a final one; then there is nothing to deliver.
func end(tx *db.Tx, id string, state fleetapi.JobState, now time.Time) error {
	_, err := tx.Exec("UPDATE job_jobs SET state = ?, finished = ?, delivered = round WHERE id = ?", string(state), db.Micros(now), id)
	return err
}

// Status is what a box said about a job, as ingest gives it.
type Status struct {
	Device croft.DeviceID
	At     time.Time // when it arrived
	Status *fleetapi.JobStatus
}

// Receive stores statuses in one transaction; then they may be acknowledged.
// strangers counts those about no job of their box.
func (s *Store) Receive(ctx context.Context, statuses []Status) (strangers int, err error) {
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		strangers = 0
		for _, st := range statuses {
			known, err := receive(tx, st)
			if err != nil {
				return fmt.Errorf("store status of %s: %w", st.Device, err)
			}
			if !known {
				strangers++
			}
		}
		return nil
	})
	return strangers, err
}

func receive(tx *db.Tx, m Status) (known bool, err error) {
	st := m.Status
	job, err := get(tx, st.Job)
	if errors.Is(err, ErrNoJob) || err == nil && job.Device != m.Device {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var version int64
	if err := tx.Row("SELECT version FROM job_jobs WHERE id = ?", job.ID).Scan(&version); err != nil {
		return false, err
	}
	taken := int64(st.Version) > version && job.State.CanBecome(st.State)
	var said int
	if err := tx.Row("SELECT COUNT(*) FROM job_statuses WHERE job = ?", job.ID).Scan(&said); err != nil {
		return false, err
	}
	if said < maxStatuses {
		rows, err := tx.Exec(`INSERT INTO job_statuses (device, journal, seq, job, state, version, at, received, detail, taken)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, journal, seq) DO NOTHING`,
			string(m.Device), int64(st.Journal), int64(st.Seq), job.ID, string(st.State), int64(st.Version), db.Micros(st.At), db.Micros(m.At), st.Detail, db.Bit(taken))
		if err != nil || rows == 0 {
			return true, err
		}
	}
	if !taken {
		return true, nil
	}
	results := map[string]string{}
	for _, r := range st.Results {
		results[r.Name] = r.Value
	}
	raw, err := json.Marshal(results)
	if err != nil {
		return true, err
	}
	if _, err := tx.Exec("UPDATE job_jobs SET state = ?, version = ?, detail = ?, results = ?, sent = 1 WHERE id = ?",
		string(st.State), int64(st.Version), st.Detail, string(raw), job.ID); err != nil {
		return true, err
	}
	if st.State.Final() {
		if err := end(tx, job.ID, st.State, m.At); err != nil {
			return true, err
		}
	}
	if st.State != job.State {
		tx.Notify(Topic, job.ID)
	}
	return true, nil
}

// Resend publishes again what boxes have not ended, as at their hello.
func (s *Store) Resend(ctx context.Context, ids []croft.DeviceID) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		for _, id := range ids {
			if _, err := tx.Exec("UPDATE job_jobs SET round = round + 1 WHERE device = ? AND finished = 0", string(id)); err != nil {
				return err
			}
		}
		return nil
	})
}
