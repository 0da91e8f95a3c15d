// Package timeseries keeps what boxes measure and answers questions about it in
// PromQL. It is the Prometheus storage and query engine used as libraries, behind
// rules of our own about who may write what and who may see what.
//
//	store, err := timeseries.New(timeseries.Config{Dir: "/var/lib/croft/timeseries"})
//	for _, l := range store.Losses() { … }            // what a crash or a bad disk took
//	go store.Run(ctx)                                  // closes the store when ctx ends
//	stored, err := store.Append(ctx, device, samples)
//	series, err := store.Range(ctx, timeseries.Scope{All: true}, "croft_load1", from, to, time.Minute)
//	mux.Handle("/api/v1/", store.Handler(scopeOfRequest))
//
// # Writing
//
// The label "device" is set here and only here; a label of that name from a box
// is kept as "exported_device", as Prometheus does. What is malformed, too old
// (beyond OutOfOrder), in the future (more than ten minutes) or over the device's
// budget of series is refused and counted, and the rest of the batch is stored.
// Late, reordered and repeated samples are harmless.
//
// # Reading
//
// A [Scope] is enforced where the query engine reads the storage: each selector
// gets a matcher on "device" there, whatever stands around it, so no function,
// offset, subquery or label rewriting can reach another device's samples.
//
// # Two resolutions
//
// Samples are kept as they came for Retention. Once a UTC day can change no more
// (OutOfOrder has passed), it is also written as five-minute values into three
// archives of ordinary Prometheus blocks: "mean" (average of a gauge, last value
// of a counter), "low" and "high" (gauges only), kept for LongRetention. The
// archives have no series in memory. A query takes the archive for what is older
// than the samples, and for all settled days when its step is ten minutes or more
// and its range windows are none or twenty minutes and more, or when a window is a
// day or more; the rest comes from the samples. max and max_over_time read "high",
// min and min_over_time "low", all else "mean". So sum_over_time and
// count_over_time count five-minute values there, a window under ten minutes finds
// nothing beyond Retention, and a counter that was reset within five minutes shows
// a smaller increase.
//
// # Memory
//
// Each series that had a sample in the last two to three hours is in memory, with
// about 1 kB, and 1.8 kB for the minutes after its chunk is full; Prometheus cannot
// keep an active series on disk only. A box of 80 series is 70 to 145 kB, to which
// the garbage collector adds: set GOMEMLIMIT.
//
// # What survives what
//
// When Append returns, the samples survive the end of the process (kill -9); a
// power cut can take the last SyncEvery. Not quite so those that came over an hour
// late: of them, kills in quick succession can lose some (Prometheus takes some of
// its log for stored that is not; of 150 runs of a test that kills three times within
// a second, one lost a twentieth). A disk with less than MinFree left, and a
// write that failed, stop Append with an error until there is space; nothing that
// was acknowledged is lost, and queries go on. A damaged log is cut at the damage,
// a damaged block is set aside in "aside"; New opens all the same and [Store.Losses]
// says what is missing. A server clock a day before or 400 days after the newest
// sample stops Append (see Config.TrustClock), and age never deletes more than one
// block an hour, so a wrong clock cannot empty the store.
package timeseries

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/timeseries/forward"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Dir string // required; made if missing; one process at a time

	Retention     time.Duration // of samples as they came; default 15 days, at least 3 days and OutOfOrder
	LongRetention time.Duration // of five-minute values; default 400 days
	MaxBytes      int64         // of samples on disk, oldest go first; default 0: no bound
	LongMaxBytes  int64         // of five-minute values on disk; default 0: no bound
	OutOfOrder    time.Duration // how late a sample may come; default 24 h

	DeviceSeries int   // series a device may have at once; default 500
	MaxSeries    int   // series of all devices at once; default 2,000,000 (about 4 GB)
	MinFree      int64 // bytes of the disk left alone; default 256 MiB

	SyncEvery time.Duration // how often the log is forced to the disk; default 5 s

	QueryTimeout  time.Duration // default 30 s
	QuerySamples  int           // samples one query may hold; default 5,000,000 (80 MB)
	QueryParallel int           // queries at once, others wait; default 4

	// TrustClock says that a person has checked this server's clock. New then
	// sets samples from the future aside and accepts a long silence.
	TrustClock bool

	Remote *forward.Config // where to send a copy of all samples; nil: nowhere
	Log    *slog.Logger    // default: discard
}

const (
	maxAhead   = 10 * time.Minute     // how far a sample may be ahead of this server's clock
	clockSlow  = 24 * time.Hour       // the newest sample this far ahead: the clock is not right
	clockFast  = 400 * 24 * time.Hour // the newest sample this far behind: the same
	blockRange = 2 * time.Hour        // of samples in memory before they become a block
	day        = 24 * time.Hour
)

// Store is the time series of a fleet. Its methods may be called from any
// goroutine.
type Store struct {
	cfg    Config
	log    *slog.Logger
	lock   *os.File
	engine *promql.Engine
	parser parser.Parser
	remote *forward.Forwarder // nil: none
	counts counters

	newest atomic.Int64 // milliseconds; of all samples kept; 0: none

	// mu is held for reading by everyone who uses the databases, and for writing
	// by who opens and closes them.
	mu      sync.RWMutex
	raw     *database                    // guarded by mu; nil: closed, or a failed write awaits reopening
	archive [len(archiveNames)]*database // guarded by mu
	broken  error                        // guarded by mu; why raw is nil
	closed  bool                         // guarded by mu
	losses  []Loss                       // guarded by mu
	marker  int64                        // used by Run only: end of the last day archived, milliseconds
	split   atomic.Int64                 // as marker, once queries find the blocks

	freeChecked atomic.Int64 // milliseconds; when the disk's space was looked at
	freeEnough  atomic.Bool
}

// New opens the store, and repairs or sets aside what is damaged: see
// [Store.Losses].
func New(cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("folder of time series is missing")
	}
	cfg.Retention = cmp.Or(cfg.Retention, 15*day)
	cfg.LongRetention = cmp.Or(cfg.LongRetention, 400*day)
	cfg.OutOfOrder = cmp.Or(cfg.OutOfOrder, day)
	cfg.DeviceSeries = cmp.Or(cfg.DeviceSeries, 500)
	cfg.MaxSeries = cmp.Or(cfg.MaxSeries, 2_000_000)
	cfg.MinFree = cmp.Or(cfg.MinFree, 256<<20)
	cfg.SyncEvery = cmp.Or(cfg.SyncEvery, 5*time.Second)
	cfg.QueryTimeout = cmp.Or(cfg.QueryTimeout, 30*time.Second)
	cfg.QuerySamples = cmp.Or(cfg.QuerySamples, 5_000_000)
	cfg.QueryParallel = cmp.Or(cfg.QueryParallel, 4)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if least := 3*day + cfg.OutOfOrder; cfg.Retention < least {
		return nil, fmt.Errorf("retention of samples is %s: want at least %s, so that each day can be archived before it goes", cfg.Retention, least)
	}
	if err := atomicfile.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of time series: %w", err)
	}
	lock, err := takeLock(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg:    cfg,
		log:    cfg.Log,
		lock:   lock,
		parser: parser.NewParser(parser.Options{}),
	}
	s.engine = newEngine(cfg, s.parser)
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open() error {
	if err := s.openRaw(); err != nil {
		return err
	}
	if s.cfg.TrustClock {
		if err := s.setFutureAside(time.Now()); err != nil {
			return err
		}
	}
	if err := s.openArchives(); err != nil {
		return err
	}
	if s.cfg.Remote != nil {
		remote, err := forward.New(*s.cfg.Remote, filepath.Join(s.cfg.Dir, "remote"), s.log)
		if err != nil {
			return err
		}
		s.remote = remote
	}
	return nil
}

func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of time series: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(&croft.Error{
			Kind:   croft.KindRefused,
			Err:    fmt.Errorf("lock time series in %s: %w", filepath.Dir(path), err),
			Remedy: "stop the other process that uses this folder",
		}, f.Close())
	}
	return f, nil
}

// Run syncs, archives, sends to the remote receiver and reopens the store after a
// failed write, until ctx ends; then it closes the store. It returns why that
// failed, or nil.
func (s *Store) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	if s.remote != nil {
		workers.Go(func() { s.remote.Run(ctx) })
	}
	workers.Go(func() {
		every(ctx, s.cfg.SyncEvery, func() {
			s.reopen(time.Now())
			s.sync()
		})
	})
	workers.Go(func() {
		every(ctx, 10*time.Minute, func() {
			// What the last round archived has been found by now.
			s.split.Store(s.marker)
			if err := s.archiveDays(ctx, time.Now()); err != nil && ctx.Err() == nil {
				s.counts.archiveFailures.Add(1)
				s.log.Error("archiving samples failed", "error", err)
			}
		})
	})
	workers.Wait()
	return s.Close()
}

// every calls do at once and then again each interval until ctx ends.
func every(ctx context.Context, interval time.Duration, do func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		do()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Close waits for queries and appends under way and closes the store. What comes
// later gets an error. Closing twice is harmless.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	errs := []error{s.raw.close()}
	s.raw = nil
	for i := range s.archive {
		errs = append(errs, s.archive[i].close())
		s.archive[i] = nil
	}
	if s.remote != nil {
		errs = append(errs, s.remote.Close())
	}
	errs = append(errs, s.engine.Close(), s.lock.Close())
	return errors.Join(errs...)
}

// rawLocked is the database of samples, or why there is none.
func (s *Store) rawLocked() (*tsdb.DB, error) {
	switch {
	case s.closed:
		return nil, errors.New("time series are closed")
	case s.raw == nil:
		return nil, &croft.Error{
			Kind:   croft.KindNoSpace,
			Err:    fmt.Errorf("use time series after a failed write: %w", s.broken),
			Remedy: "free some space on the disk; the store opens again by itself",
		}
	}
	return s.raw.DB, nil
}

// sync forces the newest segments of the logs to the disk.
func (s *Store) sync() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.raw == nil {
		return
	}
	for _, name := range []string{"wal", "wbl"} {
		if err := syncLast(filepath.Join(s.rawDir(), name)); err != nil {
			s.counts.syncFailures.Add(1)
			s.log.Error("syncing log failed", "log", name, "error", err)
		}
	}
}

// syncLast forces the last file of a folder to the disk; which goroutine wrote it
// does not matter to fsync.
func syncLast(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for i := len(entries) - 1; i >= 0; i-- {
		if !entries[i].Type().IsRegular() {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, entries[i].Name()), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil // it was truncated away: its samples are in a block
		}
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	}
	return nil
}

// Delete removes all samples of a device before an instant: for a box that goes
// to a new owner, or whose owner leaves.
func (s *Store) Delete(ctx context.Context, device croft.DeviceID, before time.Time) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	raw, err := s.rawLocked()
	if err != nil {
		return err
	}
	only, err := (Scope{Devices: []croft.DeviceID{device}}).matcher()
	if err != nil {
		return err
	}
	errs := []error{raw.Delete(ctx, minTime, before.UnixMilli()-1, only)}
	for _, a := range s.archive {
		errs = append(errs, a.Delete(ctx, minTime, before.UnixMilli()-1, only))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete samples of device %s: %w", device, err)
	}
	return nil
}
