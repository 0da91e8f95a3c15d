package timeseries

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/croft-cloud/croft/internal/atomicfile"
)

// window is how much time one value of the archives stands for. It bears the
// window's last millisecond as its time, so that a query at any multiple of the
// window looks back on exactly one value.
const window = 5 * time.Minute

// The archives.
const (
	mean = iota // average of a gauge, last value of a counter
	low         // least value of a gauge
	high        // greatest value of a gauge
)

var archiveNames = [...]string{mean: "mean", low: "low", high: "high"}

// isCounter goes by the conventions of Prometheus for names.
func isCounter(name string) bool {
	for _, suffix := range []string{"_total", "_count", "_sum", "_bucket"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// counterNames matches what isCounter is true for.
const counterNames = ".+_(total|count|sum|bucket)"

func (s *Store) openArchives() error {
	for i, name := range archiveNames {
		dir := filepath.Join(s.cfg.Dir, name)
		if err := s.setBadBlocksAside(dir); err != nil {
			return err
		}
		opts := tsdb.DefaultOptions()
		opts.MinBlockDuration = day.Milliseconds()
		opts.MaxBlockDuration = min(81*day, max(day, s.cfg.LongRetention/10)).Milliseconds()
		opts.MaxBytes = s.cfg.LongMaxBytes / int64(len(archiveNames))
		opts.WALSegmentSize = -1 // blocks are written from outside; nothing is appended
		opts.StripeSize = 1
		db, err := s.openDatabase(dir, s.cfg.LongRetention, opts, nil)
		if err != nil {
			return fmt.Errorf("open archive %s: %w", dir, err)
		}
		s.archive[i] = db
	}
	marker, err := s.readMarker()
	if err != nil {
		return err
	}
	s.marker = marker
	s.split.Store(marker)
	return nil
}

func (s *Store) markerPath() string { return filepath.Join(s.cfg.Dir, "archived-until") }

// readMarker tells up to when days are archived. Without its file it is the end
// of the newest archived block: at worst days without samples are looked at again.
func (s *Store) readMarker() (int64, error) {
	text, err := os.ReadFile(s.markerPath())
	if err == nil {
		marker, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil {
			return marker, nil
		}
		s.log.Warn("archive marker cannot be read", "error", err)
	} else if !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("read archive marker: %w", err)
	}
	var marker int64
	for _, b := range s.archive[mean].BlockMetas() {
		marker = max(marker, b.MaxTime)
	}
	return marker, nil
}

// archiveDays writes the days that can change no more into the archives. It may
// be stopped anywhere: a day that was half done is done again, and its second
// copy harms nothing.
func (s *Store) archiveDays(ctx context.Context, now time.Time) error {
	settled := min(now.UnixMilli(), s.newest.Load()) - (s.cfg.OutOfOrder + 2*blockRange).Milliseconds()
	for {
		from, ok, err := s.nextDay()
		to := from + day.Milliseconds()
		if err != nil || !ok || to > settled {
			return err
		}
		if err := s.archiveDay(ctx, from, to); err != nil {
			return fmt.Errorf("archive %s: %w", time.UnixMilli(from).UTC().Format(time.DateOnly), err)
		}
		if err := atomicfile.WriteFile(s.markerPath(), []byte(strconv.FormatInt(to, 10)), 0o600); err != nil {
			return fmt.Errorf("write archive marker: %w", err)
		}
		s.marker = to
	}
}

// nextDay is the first day after the marker of which there may be samples.
func (s *Store) nextDay() (from int64, ok bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	raw, err := s.rawLocked()
	if err != nil {
		return 0, false, err
	}
	oldest := int64(math.MaxInt64)
	for _, b := range raw.BlockMetas() {
		if b.MaxTime > s.marker {
			oldest = min(oldest, max(b.MinTime, s.marker))
		}
	}
	if head := raw.Head(); head.NumSeries() > 0 && head.MaxTime() >= s.marker {
		oldest = min(oldest, max(head.MinTime(), s.marker))
	}
	length := day.Milliseconds()
	return oldest / length * length, oldest != math.MaxInt64, nil
}

func (s *Store) archiveDay(ctx context.Context, from, to int64) (err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	raw, err := s.rawLocked()
	if err != nil {
		return err
	}
	q, err := raw.Querier(from, to-1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	symbols, err := symbolsOf(ctx, q)
	if err != nil {
		return err
	}
	var writers [len(archiveNames)]*blockWriter
	defer func() {
		for _, w := range writers {
			w.abandon()
		}
	}()
	for i, name := range archiveNames {
		if writers[i], err = newBlockWriter(ctx, filepath.Join(s.cfg.Dir, name), from, to, symbols); err != nil {
			return err
		}
	}
	all := labels.MustNewMatcher(labels.MatchNotEqual, labels.MetricName, "")
	set := q.Select(ctx, true, &storage.SelectHints{Start: from, End: to - 1}, all)
	var (
		values [len(archiveNames)][]point
		it     chunkenc.Iterator
	)
	for set.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		series := set.At()
		it = series.Iterator(it)
		counter := isCounter(series.Labels().Get(labels.MetricName))
		if err := condense(it, counter, &values); err != nil {
			return err
		}
		for i, w := range writers {
			if counter && i != mean {
				continue
			}
			if err := w.add(series.Labels(), values[i]); err != nil {
				return err
			}
		}
	}
	if err := set.Err(); err != nil {
		return err
	}
	for _, w := range writers {
		if err := w.finish(); err != nil {
			return err
		}
	}
	return nil
}

// symbolsOf is every text that stands in the labels of the day, sorted.
func symbolsOf(ctx context.Context, q storage.Querier) ([]string, error) {
	names, _, err := q.LabelNames(ctx, nil)
	if err != nil {
		return nil, err
	}
	symbols := append([]string{""}, names...)
	for _, name := range names {
		values, _, err := q.LabelValues(ctx, name, nil)
		if err != nil {
			return nil, err
		}
		symbols = append(symbols, values...)
	}
	slices.Sort(symbols)
	return slices.Compact(symbols), nil
}

type point struct {
	at int64
	v  float64
}

// condense fills into with a point for each window in which there is a sample.
func condense(it chunkenc.Iterator, counter bool, into *[len(archiveNames)][]point) error {
	for i := range into {
		into[i] = into[i][:0]
	}
	var (
		length                = window.Milliseconds()
		open                  int64 // last millisecond of the window that fills; 0: none
		sum, n                float64
		least, greatest, last float64
	)
	flush := func() {
		if open == 0 {
			return
		}
		middle := last
		if !counter {
			middle = sum / n
			into[low] = append(into[low], point{open, least})
			into[high] = append(into[high], point{open, greatest})
		}
		into[mean] = append(into[mean], point{open, middle})
	}
	for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
		if kind != chunkenc.ValFloat {
			continue // nothing writes histograms here
		}
		at, v := it.At()
		if value.IsStaleNaN(v) {
			continue
		}
		if end := at/length*length + length - 1; end != open {
			flush()
			open, sum, n, least, greatest = end, 0, 0, v, v
		}
		sum, n, last = sum+v, n+1, v
		least, greatest = math.Min(least, v), math.Max(greatest, v)
	}
	flush()
	return it.Err()
}

// blockWriter writes one block, series by series in the order of their labels.
type blockWriter struct {
	dir, tmp string
	meta     tsdb.BlockMeta
	chunks   *chunks.Writer
	index    *index.Writer
}

// newBlockWriter makes the block under a name that a database removes when it
// opens.
func newBlockWriter(ctx context.Context, dir string, from, to int64, symbols []string) (_ *blockWriter, err error) {
	id, err := ulid.New(ulid.Now(), rand.Reader)
	if err != nil {
		return nil, err
	}
	w := &blockWriter{dir: filepath.Join(dir, id.String())}
	w.tmp = w.dir + ".tmp-for-creation"
	w.meta = tsdb.BlockMeta{
		ULID: id, MinTime: from, MaxTime: to, Version: 1,
		Compaction: tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{id}},
	}
	defer func() {
		if err != nil {
			w.abandon()
		}
	}()
	if err := os.MkdirAll(w.tmp, 0o700); err != nil {
		return nil, err
	}
	if w.chunks, err = chunks.NewWriter(filepath.Join(w.tmp, "chunks")); err != nil {
		return nil, err
	}
	if w.index, err = index.NewWriter(ctx, filepath.Join(w.tmp, "index")); err != nil {
		return nil, err
	}
	for _, symbol := range symbols {
		if err := w.index.AddSymbol(symbol); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *blockWriter) add(series labels.Labels, points []point) error {
	if len(points) == 0 {
		return nil
	}
	chunk := chunkenc.NewXORChunk()
	app, err := chunk.Appender()
	if err != nil {
		return err
	}
	for _, p := range points {
		app.Append(0, p.at, p.v)
	}
	metas := []chunks.Meta{{Chunk: chunk, MinTime: points[0].at, MaxTime: points[len(points)-1].at}}
	if err := w.chunks.WriteChunks(metas...); err != nil {
		return err
	}
	err = w.index.AddSeries(storage.SeriesRef(w.meta.Stats.NumSeries), series, metas...)
	w.meta.Stats.NumSeries++
	w.meta.Stats.NumChunks++
	w.meta.Stats.NumSamples += uint64(len(points))
	w.meta.Stats.NumFloatSamples += uint64(len(points))
	return err
}

// finish makes the block durable and visible, unless it is empty.
func (w *blockWriter) finish() error {
	err := errors.Join(w.chunks.Close(), w.index.Close())
	w.chunks, w.index = nil, nil
	if err != nil || w.meta.Stats.NumSamples == 0 {
		return err
	}
	text, err := json.MarshalIndent(w.meta, "", "\t")
	if err != nil {
		return err
	}
	if err := atomicfile.WriteFile(filepath.Join(w.tmp, "meta.json"), text, 0o600); err != nil {
		return err
	}
	if err := os.Rename(w.tmp, w.dir); err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(w.dir))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// abandon removes what is not finished; what it cannot remove goes when the
// database opens.
func (w *blockWriter) abandon() {
	if w == nil {
		return
	}
	if w.chunks != nil {
		_ = w.chunks.Close()
	}
	if w.index != nil {
		_ = w.index.Close()
	}
	_ = os.RemoveAll(w.tmp)
}
