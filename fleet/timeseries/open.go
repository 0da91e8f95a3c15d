package timeseries

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/compression"

	"github.com/croft-cloud/croft"
)

const minTime = math.MinInt64

// Loss is something that could not be read when the store was opened.
type Loss struct {
	What     string    // a sentence for the operator
	From, To time.Time // the samples that may be missing; zero: not known
	Bytes    int64     // of the damaged files
	Kept     string    // folder where they were set aside; empty: they are gone
}

// Losses is what New could not read.
func (s *Store) Losses() []Loss {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.losses)
}

func (s *Store) loseLocked(l Loss) {
	s.losses = append(s.losses, l)
	s.log.Error("time series lost", "what", l.What, "from", l.From, "to", l.To, "lost_bytes", l.Bytes, "kept", l.Kept)
}

// database is one Prometheus database with its numbers.
type database struct {
	*tsdb.DB
	budget  *budget // nil: nothing is appended to it
	metrics *prometheus.Registry
}

func (d *database) close() error {
	if d == nil {
		return nil
	}
	if err := d.Close(); err != nil {
		return fmt.Errorf("close time series in %s: %w", d.Dir(), err)
	}
	return nil
}

// metric is the sum of a counter that Prometheus keeps about itself.
func (d *database) metric(name string) int64 {
	var sum float64
	families, err := d.metrics.Gather()
	if err != nil {
		return 0
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return int64(sum)
}

// keep decides which blocks go. By age at most one goes each hour, so that a
// clock gone wrong, or one sample from the future, cannot empty the store before
// someone sees it.
type keep struct {
	age  time.Duration
	db   atomic.Pointer[tsdb.DB] // nil while it opens
	aged time.Time               // used by the database's one loader only
}

func (k *keep) deletable(blocks []*tsdb.Block) map[ulid.ULID]struct{} {
	gone := map[ulid.ULID]struct{}{}
	db := k.db.Load()
	if db == nil || len(blocks) == 0 {
		return gone
	}
	slices.SortFunc(blocks, func(a, b *tsdb.Block) int { // newest first, as BeyondSizeRetention wants them
		return compareInt(b.Meta().MaxTime, a.Meta().MaxTime)
	})
	for id := range tsdb.BeyondSizeRetention(db, blocks) {
		gone[id] = struct{}{}
	}
	for _, b := range blocks {
		if b.Meta().Compaction.Deletable {
			gone[b.Meta().ULID] = struct{}{}
		}
	}
	now := time.Now()
	oldest := blocks[len(blocks)-1].Meta()
	limit := min(now.UnixMilli(), blocks[0].Meta().MaxTime) - k.age.Milliseconds()
	if oldest.MaxTime <= limit && now.Sub(k.aged).Abs() >= time.Hour {
		k.aged = now
		gone[oldest.ULID] = struct{}{}
	}
	return gone
}

func compareInt(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (s *Store) rawDir() string { return filepath.Join(s.cfg.Dir, "samples") }

// openRaw opens the samples, called before the store is in use or with mu held.
func (s *Store) openRaw() error {
	dir := s.rawDir()
	if err := s.setBadBlocksAside(dir); err != nil {
		return err
	}
	before := segments(dir)
	db, err := s.openSamples(dir)
	if err != nil && damaged(err) {
		aside, moved := s.setAside(dir, "wal", "wbl", "chunks_head")
		if moved != nil {
			return errors.Join(err, moved)
		}
		loss := Loss{
			What: "The log of the newest samples cannot be read (" + err.Error() + ") and was set aside: what was not yet in a block is missing.",
			To:   time.Now(), Bytes: total(before), Kept: aside,
		}
		if db, err = s.openSamples(dir); err == nil {
			loss.From = newestOf(db.DB)
			s.loseLocked(loss)
		}
	}
	if err != nil {
		return &croft.Error{Kind: kindOfWrite(err), Err: fmt.Errorf("open time series in %s: %w", dir, err)}
	}
	if db.metric("prometheus_tsdb_wal_corruptions_total") > 0 {
		s.loseLocked(Loss{
			What: "The log of the newest samples was damaged and was cut at the damage: samples written after it are missing.",
			From: newestOf(db.DB), To: time.Now(), Bytes: total(before) - total(remaining(before, segments(dir))),
		})
	}
	db.budget.enforced.Store(true)
	s.raw = db
	if newest := newestOf(db.DB); !newest.IsZero() {
		s.newest.Store(max(s.newest.Load(), newest.UnixMilli()))
	}
	return nil
}

func (s *Store) openSamples(dir string) (*database, error) {
	b := &budget{perDevice: s.cfg.DeviceSeries, total: s.cfg.MaxSeries, devices: map[string]int{}}
	opts := tsdb.DefaultOptions()
	opts.MinBlockDuration = blockRange.Milliseconds()
	opts.MaxBlockDuration = min(31*day, max(blockRange, s.cfg.Retention/10)).Milliseconds()
	opts.MaxBytes = s.cfg.MaxBytes
	opts.OutOfOrderTimeWindow = s.cfg.OutOfOrder.Milliseconds()
	opts.WALCompression = compression.Snappy
	opts.SeriesLifecycleCallback = b
	opts.IsolationDisabled = true // half of a batch may be seen; saves memory in each series
	return s.openDatabase(dir, s.cfg.Retention, opts, b)
}

func (s *Store) openDatabase(dir string, age time.Duration, opts *tsdb.Options, b *budget) (*database, error) {
	k := &keep{age: age}
	opts.BlocksToDelete = k.deletable
	opts.NoLockfile = true // the store's own covers it
	opts.BlockReloadInterval = window
	metrics := prometheus.NewRegistry()
	db, err := tsdb.Open(dir, s.log.With("database", filepath.Base(dir)), metrics, opts, nil)
	if err != nil {
		return nil, err
	}
	k.db.Store(db)
	// A log of late samples that was read once is not to be read again: it says which of
	// its samples lie in files of chunks, and a kill loses the end of such a file. The
	// first start after it sees that; the second one, with newer files there, does not
	// and would drop the samples.
	if err := db.CompactOOOHead(context.Background()); err != nil {
		s.log.Warn("late samples stay in their log for now", "database", filepath.Base(dir), "err", err)
	}
	return &database{DB: db, budget: b, metrics: metrics}, nil
}

// newestOf is when the newest sample was taken; zero: there is none.
func newestOf(db *tsdb.DB) time.Time {
	newest := int64(minTime)
	if head := db.Head(); head.NumSeries() > 0 {
		newest = head.MaxTime()
	}
	for _, b := range db.BlockMetas() {
		newest = max(newest, b.MaxTime-1)
	}
	if newest == minTime {
		return time.Time{}
	}
	return time.UnixMilli(newest).UTC()
}

// damaged tells what the files hold from what the machine refuses, for which
// nothing may be set aside.
func damaged(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return !ok || errno == syscall.ENOENT
}

// setBadBlocksAside moves blocks that cannot be opened out of the way; the
// database would not open with them.
func (s *Store) setBadBlocksAside(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read folder of time series: %w", err)
	}
	for _, e := range entries {
		if _, err := ulid.ParseStrict(e.Name()); err != nil || !e.IsDir() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		block, err := tsdb.OpenBlock(s.log, path, nil, nil)
		if err == nil {
			if err := block.Close(); err != nil {
				return fmt.Errorf("close block %s: %w", e.Name(), err)
			}
			continue
		}
		if !damaged(err) {
			return fmt.Errorf("open block %s: %w", e.Name(), err)
		}
		loss := Loss{What: "A block of samples cannot be read (" + err.Error() + ") and was set aside.", Bytes: sizeOf(path)}
		var meta tsdb.BlockMeta
		if text, err := os.ReadFile(filepath.Join(path, "meta.json")); err == nil && json.Unmarshal(text, &meta) == nil {
			loss.From, loss.To = time.UnixMilli(meta.MinTime).UTC(), time.UnixMilli(meta.MaxTime).UTC()
		}
		if loss.Kept, err = s.setAside(dir, e.Name()); err != nil {
			return err
		}
		s.loseLocked(loss)
	}
	return nil
}

// setAside moves files of a database out of it and tells where they are now.
func (s *Store) setAside(dir string, names ...string) (string, error) {
	aside := filepath.Join(s.cfg.Dir, "aside", time.Now().UTC().Format("20060102T150405.000000000")+"-"+filepath.Base(dir))
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return "", fmt.Errorf("set damaged files aside: %w", err)
	}
	for _, name := range names {
		err := os.Rename(filepath.Join(dir, name), filepath.Join(aside, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("set damaged files aside: %w", err)
		}
	}
	return aside, nil
}

// segments is the size of each file of the logs.
func segments(dir string) map[string]int64 {
	sizes := map[string]int64{}
	for _, log := range []string{"wal", "wbl"} {
		entries, err := os.ReadDir(filepath.Join(dir, log))
		if err != nil {
			continue // a new store has none
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
				sizes[log+"/"+e.Name()] = info.Size()
			}
		}
	}
	return sizes
}

// remaining is how much of each file of before is there still.
func remaining(before, after map[string]int64) map[string]int64 {
	both := map[string]int64{}
	for name, size := range before {
		both[name] = min(size, after[name])
	}
	return both
}

func total(sizes map[string]int64) (sum int64) {
	for _, size := range sizes {
		sum += size
	}
	return sum
}

func sizeOf(dir string) (sum int64) {
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		return 0
	}
	return sum
}

// setFutureAside takes samples from after tomorrow out of the store, because they
// shut out all others; called before the store is in use. What memory holds of
// the past becomes a block first.
func (s *Store) setFutureAside(now time.Time) error {
	limit := now.Add(clockSlow).UnixMilli()
	db := s.raw.DB
	newest := newestOf(db)
	s.newest.Store(now.UnixMilli())
	if newest.UnixMilli() <= limit {
		return nil
	}
	db.DisableCompactions()
	var names []string
	if head := db.Head(); head.NumSeries() > 0 && head.MaxTime() > limit {
		if head.MinTime() <= now.UnixMilli() {
			if err := db.CompactHead(tsdb.NewRangeHead(head, head.MinTime(), now.UnixMilli())); err != nil {
				return fmt.Errorf("save samples of the past: %w", err)
			}
		}
		names = append(names, "wal", "wbl", "chunks_head")
	}
	for _, b := range db.BlockMetas() {
		if b.MaxTime > limit {
			names = append(names, b.ULID.String())
		}
	}
	if err := s.raw.close(); err != nil {
		return err
	}
	s.raw = nil
	aside, err := s.setAside(s.rawDir(), names...)
	if err != nil {
		return err
	}
	s.loseLocked(Loss{
		What: "Samples from the future were set aside (" + strings.Join(names, ", ") + "), as TrustClock says.",
		From: now, To: newest, Bytes: sizeOf(aside), Kept: aside,
	})
	s.newest.Store(0)
	if err := s.openRaw(); err != nil {
		return err
	}
	s.newest.Store(now.UnixMilli())
	return nil
}

// breakOff closes the samples after a failed write, unless another did so before.
func (s *Store) breakOff(db *tsdb.DB, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raw == nil || s.raw.DB != db {
		return
	}
	s.log.Error("writing samples failed; closing them", "error", why)
	if err := s.raw.close(); err != nil {
		s.log.Error("closing samples failed", "error", err)
	}
	s.raw, s.broken = nil, why
}

// reopen opens the samples again after a failed write, once there is space.
func (s *Store) reopen(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raw != nil || s.closed || s.checkFree(now) != nil {
		return
	}
	if err := s.openRaw(); err != nil {
		s.broken = err
		s.log.Error("reopening samples failed", "error", err)
		return
	}
	s.counts.reopened.Add(1)
	s.log.Info("samples reopened")
}
