package timeseries

import (
	"time"

	"github.com/croft-cloud/croft/fleet/timeseries/forward"
)

// Stats is the store in numbers; counts are since New.
type Stats struct {
	Devices int // that have series in memory
	Series  int // in memory: each that had a sample in the last two to three hours

	Stored  int64            // samples
	Refused map[Reason]int64 // samples; every reason is present

	Newest        time.Time // sample; zero: none
	ArchivedUntil time.Time // five-minute values are there for all before; zero: none
	RawBytes      int64     // of samples on disk
	LongBytes     int64     // of five-minute values on disk

	Broken             string // why nothing can be stored or read now; empty: it can
	Reopened           int64  // times the store recovered from a failed write
	SyncFailures       int64
	ArchiveFailures    int64
	CompactionFailures int64

	Remote *forward.Stats // nil: there is no receiver
}

// Stats tells how the store is.
func (s *Store) Stats() Stats {
	st := Stats{
		Stored:          s.counts.stored.Load(),
		Refused:         map[Reason]int64{},
		Reopened:        s.counts.reopened.Load(),
		SyncFailures:    s.counts.syncFailures.Load(),
		ArchiveFailures: s.counts.archiveFailures.Load(),
	}
	for i, why := range reasons {
		st.Refused[why] = s.counts.refused[i].Load()
	}
	if ms := s.newest.Load(); ms != 0 {
		st.Newest = time.UnixMilli(ms).UTC()
	}
	if ms := s.split.Load(); ms != 0 {
		st.ArchivedUntil = time.UnixMilli(ms).UTC()
	}
	if s.remote != nil {
		remote := s.remote.Stats()
		st.Remote = &remote
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	raw, err := s.rawLocked()
	if err != nil {
		st.Broken = err.Error()
		return st
	}
	st.Devices, st.Series = s.raw.budget.numbers()
	st.CompactionFailures = s.raw.metric("prometheus_tsdb_compactions_failed_total")
	st.RawBytes = raw.Head().Size()
	for _, b := range raw.Blocks() {
		st.RawBytes += b.Size()
	}
	for _, a := range s.archive {
		st.CompactionFailures += a.metric("prometheus_tsdb_compactions_failed_total")
		for _, b := range a.Blocks() {
			st.LongBytes += b.Size()
		}
	}
	return st
}
