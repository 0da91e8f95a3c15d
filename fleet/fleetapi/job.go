package fleetapi

import (
	"fmt"
	"slices"
	"time"
)

// JobKind is what a box is asked to do. A box rejects a kind it does not know;
// it is not an error of the wire.
type JobKind string

// The kinds.
const (
	KindReboot    JobKind = "reboot"    // start again, when the leases allow it
	KindBundle    JobKind = "bundle"    // collect a support bundle
	KindBenchmark JobKind = "benchmark" // measure the box
	KindLocate    JobKind = "locate"    // show on the screen and by the lights which box it is
)

// Job asks a box to do something once. The same job may arrive again; a box
// that has its id answers with the state it has.
type Job struct {
	ID       string    // job_…
	Kind     JobKind   // a word
	Args     []Label   // at most [MaxFields] of [MaxText]
	Deadline time.Time // when the fleet gives up waiting; zero: never
	Canceled bool      // the fleet takes the job back: do not begin; if begun, end it where that is safe
}

// Subject implements [Payload].
func (*Job) Subject() Subject { return SubjectJob }

func (j *Job) table() table {
	return table{
		{2, "id", textOf(&j.ID, isJob)},
		{3, "kind", textOf(&j.Kind, word)},
		{4, "args", labelsOf(&j.Args, MaxFields, MaxText)},
		{5, "deadline", moment{&j.Deadline, false}},
		{6, "canceled", yesNo{&j.Canceled}},
	}
}

// JobState is where a job stands on one box, in the words of AWS IoT's job
// executions.
type JobState string

// The states.
const (
	Queued     JobState = "QUEUED"      // known, not begun. Transitions to: all others
	InProgress JobState = "IN_PROGRESS" // begun; again with each progress. Transitions to: all but QUEUED and REJECTED
	Succeeded  JobState = "SUCCEEDED"   // final
	Failed     JobState = "FAILED"      // final: the box tried
	Rejected   JobState = "REJECTED"    // final: the box did not try
	TimedOut   JobState = "TIMED_OUT"   // final: the deadline passed
	Canceled   JobState = "CANCELED"    // final: taken back
	Removed    JobState = "REMOVED"     // final: the box is no longer in the fleet; only the fleet says so
)

// JobStates is every state, in the order of a job's life.
func JobStates() []JobState {
	return []JobState{Queued, InProgress, Succeeded, Failed, Rejected, TimedOut, Canceled, Removed}
}

// jobLaw is which state may follow which; what is not in it is refused. A box
// may skip IN_PROGRESS, and its messages may come in any order: a result that
// arrives first makes what arrives after it too late.
var jobLaw = map[JobState][]JobState{
	Queued:     {Queued, InProgress, Succeeded, Failed, Rejected, TimedOut, Canceled, Removed},
	InProgress: {InProgress, Succeeded, Failed, TimedOut, Canceled, Removed},
}

// CanBecome reports whether a job in s may come to stand in to.
func (s JobState) CanBecome(to JobState) bool { return slices.Contains(jobLaw[s], to) }

// Final reports whether nothing follows s.
func (s JobState) Final() bool { return slices.Contains(JobStates(), s) && len(jobLaw[s]) == 0 }

// Move is to, if a job in s may come to stand there, and otherwise s with a
// [JobMoveError].
func (s JobState) Move(to JobState) (JobState, error) {
	if !s.CanBecome(to) {
		return s, &JobMoveError{From: s, To: to}
	}
	return to, nil
}

// JobMoveError reports a transition that is not in the table.
type JobMoveError struct{ From, To JobState }

func (e *JobMoveError) Error() string {
	return fmt.Sprintf("job is %s, cannot become %.16s", e.From, e.To)
}

// JobStatus is what a box says about a job.
type JobStatus struct {
	Origin
	At      time.Time // device clock
	Synced  bool      // as in [Hello]
	Job     string    // job_…
	State   JobState  // any but REMOVED
	Version uint64    // 1 for the first status of the job, then one more with each: the greatest is the newest
	Detail  string    // one sentence for people; at most [MaxText]
	Results []Label   // at most [MaxFields] of [MaxText]
}

// Subject implements [Payload].
func (*JobStatus) Subject() Subject { return SubjectStatus }

func (s *JobStatus) table() table {
	return table{
		{2, "journal", number{&s.Journal, 1}},
		{3, "seq", number{&s.Seq, 1}},
		{4, "at", moment{&s.At, true}},
		{5, "synced", yesNo{&s.Synced}},
		{6, "job", textOf(&s.Job, isJob)},
		{7, "state", textOf(&s.State, boxState)},
		{8, "version", number{&s.Version, 1}},
		{9, "detail", textOf(&s.Detail, sentence(0, MaxText))},
		{10, "results", labelsOf(&s.Results, MaxFields, MaxText)},
	}
}

// boxState accepts the states that a box may report.
func boxState(s string) error {
	if JobState(s) == Removed {
		return refuse(ReasonForeign, "%s is not the box's to say", s)
	}
	return oneOf(JobStates()...)(s)
}
