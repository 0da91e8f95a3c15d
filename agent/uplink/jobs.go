package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/uplink/spool"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const (
	jobPrefix    = "uplink/job/"      // in the journal: jobRecord, by id
	forgottenKey = "uplink/forgotten" // in the journal: ids up to this are no longer known
	jobsOpen     = 16                 // at once; more are rejected
	jobsRunning  = 4                  // at once; others wait
	jobsKnown    = 64                 // that are over
	jobsMost     = 256                // in all, with those of which the fleet did not take the status
)

// Handler does jobs of one kind.
type Handler struct {
	// Run does a job, once: a job during which the process ended is not run
	// again. It ends soon after ctx, which ends with the deadline, when the job
	// is taken back, and when the agent stops; then an error means that the job
	// goes on with the next start, by Resume.
	Run func(ctx context.Context, job fleetapi.Job) (Result, error)

	// Resume tells, after a restart, what became of a job that was running. That
	// of a reboot looks whether the box was rebooted. Nil: such a job has failed.
	Resume func(ctx context.Context, job fleetapi.Job) (Result, error)

	// Repeatable jobs do no harm when they run twice. Others are rejected while
	// the box can remember nothing.
	Repeatable bool
}

// Result is what came of a job.
type Result struct {
	Detail string // one sentence for people
	Fields []fleetapi.Label
}

// errCanceled is why the context of a job ends that is taken back.
var errCanceled = errors.New("job was canceled")

// jobRecord is what the journal knows of a job.
type jobRecord struct {
	Job     fleetapi.Job      `json:"job"`
	State   fleetapi.JobState `json:"state"`
	Version uint64            `json:"version"`
	Detail  string            `json:"detail,omitempty"`
	Results []fleetapi.Label  `json:"results,omitempty"`
	At      time.Time         `json:"at"` // of the state
	Synced  bool              `json:"synced"`
	Told    fleetapi.Origin   `json:"told"` // number of the status; it may not have been spooled
	resume  bool              // it was running when the process ended
	cancel  context.CancelCauseFunc
}

func (r *jobRecord) status(o fleetapi.Origin) *fleetapi.JobStatus {
	return &fleetapi.JobStatus{
		Origin: o, At: r.At, Synced: r.Synced, Job: r.Job.ID, State: r.State, Version: r.Version,
		Detail: r.Detail, Results: r.Results,
	}
}

// jobs are the jobs of the box. A job is a state machine, the one of
// [fleetapi.JobState]: a move is written to the journal, with the number of the
// status that will tell it; then the status goes into the spool; then it counts.
type jobs struct {
	journal  *journal.Journal
	spool    *spool.Spool
	handlers map[fleetapi.JobKind]Handler
	clock    func() (time.Time, bool)
	age      func() int64
	scrub    func(string) string
	log      *slog.Logger
	wake     chan struct{} // something may begin; holds one

	turn      sync.Mutex            // held by the one who changes records, also while the disk is written
	records   map[string]*jobRecord // guarded by turn
	forgotten string                // guarded by turn
	running   int                   // guarded by turn
}

// load reads the jobs of the last run and tells what was not told.
func (j *jobs) load() {
	j.turn.Lock()
	defer j.turn.Unlock()
	if _, err := j.journal.Get(forgottenKey, &j.forgotten); err != nil {
		j.log.Warn("list of forgotten jobs is lost", "err", err)
	}
	for _, key := range j.journal.Keys(jobPrefix) {
		var r jobRecord
		if _, err := j.journal.Get(key, &r); err != nil || jobPrefix+r.Job.ID != key {
			j.log.Warn("a job is lost", "key", key, "err", err)
			continue
		}
		r.resume = r.State == fleetapi.InProgress
		j.records[r.Job.ID] = &r
		if r.State == "" { // the process ended before it was decided
			j.decide(&r)
		} else if !j.spool.Has(r.Told) {
			j.tell(&r)
		}
	}
	j.tidy()
}

// run does jobs until ctx ends.
func (j *jobs) run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		for r := j.begin(); r != nil; r = j.begin() {
			all.Go(func() { j.do(ctx, r) })
		}
		select {
		case <-j.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// begin takes the oldest job that waits, if another may run.
func (j *jobs) begin() *jobRecord {
	j.turn.Lock()
	defer j.turn.Unlock()
	if j.running >= jobsRunning {
		return nil
	}
	var oldest *jobRecord
	for _, r := range j.records {
		waits := r.cancel == nil && (r.State == fleetapi.Queued || r.resume)
		if waits && (oldest == nil || r.Job.ID < oldest.Job.ID) {
			oldest = r
		}
	}
	if oldest != nil {
		j.running++
		oldest.cancel = func(error) {}
	}
	return oldest
}

// do runs one job.
func (j *jobs) do(ctx context.Context, r *jobRecord) {
	defer func() {
		j.turn.Lock()
		j.running--
		j.turn.Unlock()
		j.signal()
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if now, known := j.clock(); known && !r.Job.Deadline.IsZero() {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, r.Job.Deadline.Sub(now))
		defer stop()
	}
	work := j.start(ctx, cancel, r)
	if work == nil {
		return
	}
	result, err := call(ctx, work, r.Job)
	if err != nil && ctx.Err() != nil && !errors.Is(context.Cause(ctx), errCanceled) && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return // the agent stops; the next start resumes
	}
	j.turn.Lock()
	defer j.turn.Unlock()
	r.resume = false
	switch {
	case err == nil:
		j.move(r, fleetapi.Succeeded, result)
	case errors.Is(context.Cause(ctx), errCanceled):
		j.move(r, fleetapi.Canceled, Result{Detail: "The job was taken back while it ran."})
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		j.move(r, fleetapi.TimedOut, Result{Detail: "The deadline passed while the job ran."})
	default:
		detail := err.Error()
		if j.scrub != nil {
			detail = j.scrub(detail)
		}
		j.move(r, fleetapi.Failed, Result{Detail: sentence(detail), Fields: result.Fields})
	}
	j.tidy()
}

// start notes that a job begins and returns what does it; nil if it must not.
func (j *jobs) start(ctx context.Context, cancel context.CancelCauseFunc, r *jobRecord) func(context.Context, fleetapi.Job) (Result, error) {
	j.turn.Lock()
	defer j.turn.Unlock()
	handler, known := j.handlers[r.Job.Kind]
	switch {
	case r.State.Final(): // taken back a moment ago
		return nil
	case ctx.Err() != nil:
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			r.resume = false
			j.move(r, fleetapi.TimedOut, Result{Detail: "The deadline passed before the job was done."})
		}
		return nil
	case r.resume && handler.Resume == nil:
		r.resume = false
		j.move(r, fleetapi.Failed, Result{Detail: "The box restarted before the job was done."})
		return nil
	case r.resume:
		r.cancel = cancel
		return handler.Resume
	case !known: // a release that knows less has been installed meanwhile
		j.move(r, fleetapi.Rejected, Result{Detail: unknownKind})
		return nil
	}
	r.cancel = cancel
	if !j.move(r, fleetapi.InProgress, Result{}) && !handler.Repeatable {
		j.move(r, fleetapi.Failed, Result{Detail: noMemory})
		return nil
	}
	return handler.Run
}

const (
	unknownKind = "This box does not know how to do that."
	noMemory    = "The box can write nothing down, so it could not promise to do the job only once."
)

// call keeps a handler's panic from ending the agent.
func call(ctx context.Context, work func(context.Context, fleetapi.Job) (Result, error), job fleetapi.Job) (result Result, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("job panicked: %v", v)
		}
	}()
	return work(ctx, job)
}

// take deals with a job as it arrives, for the first time or again. It reports
// false if there is no room for another: a fleet gone wrong, or a thief's, must not
// fill disk and memory with statuses that it does not take.
func (j *jobs) take(job fleetapi.Job) bool {
	j.turn.Lock()
	defer j.turn.Unlock()
	r, known := j.records[job.ID]
	switch {
	case !known && len(j.records) >= jobsMost:
		j.tidy() // perhaps the fleet has taken some by now
		return false
	case !known:
		r = &jobRecord{Job: job}
		j.records[job.ID] = r
		j.decide(r)
		j.tidy()
	case job.Canceled && r.State == fleetapi.Queued:
		j.move(r, fleetapi.Canceled, Result{Detail: "The job was taken back before it began."})
	case job.Canceled && !r.State.Final():
		if r.cancel != nil {
			r.cancel(errCanceled)
		}
	default:
		if !j.spool.Waits(r.Told) { // else the fleet will be told anyway
			j.tell(r)
		}
	}
	j.signal()
	return true
}

// decide answers a job that was not known. The caller holds turn.
func (j *jobs) decide(r *jobRecord) {
	handler, known := j.handlers[r.Job.Kind]
	now, synced := j.clock()
	open := 0
	for _, other := range j.records {
		if other != r && !other.State.Final() {
			open++
		}
	}
	switch {
	case r.Job.ID <= j.forgotten:
		j.move(r, fleetapi.Rejected, Result{Detail: "The job is too old: the box no longer knows whether it did it."})
	case r.Job.Canceled:
		j.move(r, fleetapi.Canceled, Result{Detail: "The job was taken back before it began."})
	case !known:
		j.move(r, fleetapi.Rejected, Result{Detail: unknownKind})
	case synced && !r.Job.Deadline.IsZero() && now.After(r.Job.Deadline):
		j.move(r, fleetapi.TimedOut, Result{Detail: "The deadline passed before the box heard of the job."})
	case open >= jobsOpen:
		j.move(r, fleetapi.Rejected, Result{Detail: "The box has too many jobs at once."})
	case !j.keep(r) && !handler.Repeatable:
		j.move(r, fleetapi.Rejected, Result{Detail: noMemory})
	default:
		j.move(r, fleetapi.Queued, Result{})
	}
}

// keep writes a record down and reports whether it outlives the process. The
// caller holds turn.
func (j *jobs) keep(r *jobRecord) bool {
	if err := j.journal.Put(jobPrefix+r.Job.ID, r); err != nil {
		j.log.Warn("job cannot be remembered", "job", r.Job.ID, "err", err)
		return false
	}
	return j.journal.Keeps()
}

// move brings a job into another state, tells the fleet, and reports whether
// that is remembered. The caller holds turn.
func (j *jobs) move(r *jobRecord, to fleetapi.JobState, result Result) bool {
	if r.State != "" {
		if _, err := r.State.Move(to); err != nil {
			j.log.Error("job cannot change its state", "job", r.Job.ID, "err", err)
			return false
		}
	}
	r.State, r.Version = to, r.Version+1
	r.Detail = fleetapi.CleanText(result.Detail, fleetapi.MaxText)
	r.Results = slices.Clone(result.Fields)
	for i := range r.Results {
		r.Results[i].Value = fleetapi.CleanText(r.Results[i].Value, fleetapi.MaxText)
	}
	at, synced := j.clock()
	r.At, r.Synced = wireTime(at), synced
	if to.Final() {
		r.Job.Args = nil
	}
	return j.tell(r)
}

// tell puts a job's state into the spool and reports whether it is remembered.
// The caller holds turn.
func (j *jobs) tell(r *jobRecord) bool {
	kept := false
	origin, err := j.spool.PutNumbered(spool.Job, j.age(),
		func(o fleetapi.Origin) ([]byte, error) {
			raw, err := fleetapi.Encode(r.status(o))
			if err != nil && len(r.Results) > 0 {
				j.log.Warn("results of job cannot be sent", "job", r.Job.ID, "err", err)
				r.Results = nil
				raw, err = fleetapi.Encode(r.status(o))
			}
			return raw, err
		},
		func(o fleetapi.Origin) error {
			r.Told = o
			kept = j.keep(r)
			if !kept {
				return errors.New("job cannot be remembered")
			}
			return nil
		})
	if err != nil {
		j.log.Warn("fleet cannot be told of job", "job", r.Job.ID, "err", err)
	}
	if origin != r.Told { // it is in memory only: tell it again after a restart
		r.Told = fleetapi.Origin{}
		kept = j.keep(r)
		r.Told = origin
	}
	return kept
}

// tidy forgets what nobody will ask for again. The caller holds turn.
func (j *jobs) tidy() {
	var over []string
	for id, r := range j.records {
		if !r.State.Final() || j.spool.Waits(r.Told) {
			continue
		}
		over = append(over, id)
		if len(r.Results) > 0 { // the fleet has them
			r.Results = nil
			j.keep(r)
		}
	}
	slices.Sort(over) // ids made later sort later
	for _, id := range over[:max(0, len(over)-jobsKnown)] {
		j.forgotten = max(j.forgotten, id)
		if j.journal.Put(forgottenKey, j.forgotten) != nil || j.journal.Delete(jobPrefix+id) != nil {
			return // the disk is full; another time
		}
		delete(j.records, id)
	}
}

func (j *jobs) signal() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}
