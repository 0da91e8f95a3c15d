package timeseries

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/croft-cloud/croft"
)

// Label is one name and value that tell series of one name apart.
type Label struct{ Name, Value string }

// Sample is one value of one series at one instant.
type Sample struct {
	Name   string    // letters, digits and '_', at most 128; "_total" at the end: a counter
	Labels []Label   // at most 16; names as Name, values at most 256 bytes of UTF-8; empty values are dropped
	At     time.Time // kept to the millisecond
	Value  float64   // any; each kind of NaN becomes the plain one
}

const (
	deviceLabel   = "device"
	exportedLabel = "exported_device"

	maxName   = 128
	maxLabels = 16
	maxValue  = 256
)

// Reason is why a sample was refused.
type Reason string

// The reasons.
const (
	BadName    Reason = "name"      // of the series
	BadLabel   Reason = "label"     // name, value, number, or a name given twice
	TooOld     Reason = "old"       // older than OutOfOrder
	TooNew     Reason = "future"    // over ten minutes ahead of this server's clock
	Conflict   Reason = "duplicate" // another value at the same instant was stored before
	OverBudget Reason = "budget"    // the device has DeviceSeries
	OverTotal  Reason = "total"     // the store has MaxSeries
)

// reasons is all of them; a counter's place is a reason's place here.
var reasons = [...]Reason{BadName, BadLabel, TooOld, TooNew, Conflict, OverBudget, OverTotal}

type counters struct {
	stored          atomic.Int64
	refused         [len(reasons)]atomic.Int64
	syncFailures    atomic.Int64
	archiveFailures atomic.Int64
	reopened        atomic.Int64
}

func (c *counters) refuse(why Reason) {
	for i, r := range reasons {
		if r == why {
			c.refused[i].Add(1)
		}
	}
}

var (
	errBudget = errors.New("device has all the series it may have")
	errTotal  = errors.New("store has all the series it may have")
)

// Append stores a device's samples and returns how many were stored; the others
// were refused and counted by reason (see [Stats]), those stored before included
// in neither. An error means that the store takes no samples now, for want of
// space or because the clock is wrong, and stored none.
func (s *Store) Append(ctx context.Context, device croft.DeviceID, samples []Sample) (stored int, err error) {
	if _, err := croft.ParseDeviceID(string(device)); err != nil {
		return 0, fmt.Errorf("append samples: %w", err)
	}
	now := time.Now()
	if err := s.checkClock(now); err != nil {
		return 0, err
	}
	if err := s.checkFree(now); err != nil {
		return 0, err
	}
	kept, newest, err := s.append(ctx, device, samples, now)
	if err != nil {
		return 0, err
	}
	for {
		old := s.newest.Load()
		if newest <= old || s.newest.CompareAndSwap(old, newest) {
			break
		}
	}
	s.counts.stored.Add(int64(len(kept)))
	if s.remote != nil && len(kept) > 0 {
		s.forward(device, kept)
	}
	return len(kept), nil
}

// forward queues a copy of what was stored.
func (s *Store) forward(device croft.DeviceID, samples []Sample) {
	request := prompb.WriteRequest{Timeseries: make([]prompb.TimeSeries, 0, len(samples))}
	builder := labels.NewScratchBuilder(maxLabels + 2)
	for _, sample := range samples {
		check(&builder, device, sample) // it passed before; this fills the builder
		request.Timeseries = append(request.Timeseries, prompb.TimeSeries{
			Labels:  prompb.FromLabels(builder.Labels(), nil),
			Samples: []prompb.Sample{{Timestamp: sample.At.UnixMilli(), Value: sample.Value}},
		})
	}
	if err := s.remote.Put(&request); err != nil {
		s.log.Error("queueing samples for remote write failed", "error", err)
	}
}

// append writes to the database. When the log cannot be written, the database is
// closed, because Prometheus would go on after a torn record and lose all that
// follows it at the next start.
func (s *Store) append(ctx context.Context, device croft.DeviceID, samples []Sample, now time.Time) (kept []Sample, newest int64, err error) {
	s.mu.RLock()
	raw, err := s.rawLocked()
	if err != nil {
		s.mu.RUnlock()
		return nil, 0, err
	}
	app := raw.Appender(ctx)
	var (
		series = seriesOf{app: app, builder: labels.NewScratchBuilder(maxLabels + 2)}
		wrong  Reason // with the series
	)
	kept = make([]Sample, 0, len(samples))
	for i, sample := range samples {
		at := sample.At.UnixMilli()
		if i == 0 || !sameSeries(samples[i-1], sample) {
			wrong = series.next(device, sample)
		}
		why := wrong
		switch {
		case why != "":
		case sample.At.After(now.Add(maxAhead)):
			why = TooNew
		case sample.At.Before(now.Add(-s.cfg.OutOfOrder)):
			why = TooOld
		default:
			if math.IsNaN(sample.Value) {
				sample.Value = math.Float64frombits(value.NormalNaN)
			}
			why = series.append(at, sample.Value)
		}
		if why != "" {
			s.counts.refuse(why)
			continue
		}
		kept = append(kept, sample)
		newest = max(newest, at)
	}
	err = app.Commit()
	s.mu.RUnlock()
	if err != nil {
		s.breakOff(raw, err)
		return nil, 0, &croft.Error{Kind: kindOfWrite(err), Err: fmt.Errorf("append samples of device %s: %w", device, err)}
	}
	return kept, newest, nil
}

// sameSeries reports whether two samples are of one series. Those of a batch mostly
// come series by series, so that a series is looked at once for all its samples.
func sameSeries(a, b Sample) bool { return a.Name == b.Name && slices.Equal(a.Labels, b.Labels) }

// seriesOf is the series to which samples are appended now.
type seriesOf struct {
	app     storage.Appender
	builder labels.ScratchBuilder
	scratch labels.Labels     // valid until the next series
	ref     storage.SeriesRef // 0: the database does not know it
}

// next goes to the series of a sample, or tells what is wrong with it.
func (s *seriesOf) next(device croft.DeviceID, sample Sample) Reason {
	if why := check(&s.builder, device, sample); why != "" {
		return why
	}
	s.ref = 0
	if finder, ok := s.app.(storage.GetRef); ok {
		s.builder.Overwrite(&s.scratch)
		s.ref, _ = finder.GetRef(s.scratch, s.scratch.Hash())
	}
	return ""
}

// append adds a sample. Labels are copied for the database if it does not know the
// series, or has just forgotten it.
func (s *seriesOf) append(at int64, v float64) Reason {
	ref, err := s.ref, error(tsdb.ErrInvalidSample)
	if ref != 0 {
		_, err = s.app.Append(ref, labels.EmptyLabels(), at, v)
	}
	if errors.Is(err, tsdb.ErrInvalidSample) {
		ref, err = s.app.Append(0, s.builder.Labels(), at, v)
		s.ref = ref
	}
	switch {
	case err == nil:
		return ""
	case errors.Is(err, storage.ErrTooOldSample), errors.Is(err, storage.ErrOutOfBounds), errors.Is(err, storage.ErrOutOfOrderSample):
		return TooOld
	case errors.Is(err, storage.ErrDuplicateSampleForTimestamp):
		return Conflict
	case errors.Is(err, errBudget):
		return OverBudget
	case errors.Is(err, errTotal):
		return OverTotal
	}
	return BadLabel // the storage's own checks, which are weaker than ours
}

// isName reports whether a name is of letters, digits and '_', with no digit first.
func isName(name string) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case c == '_', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9' && i > 0:
		default:
			return false
		}
	}
	return name != ""
}

// check fills builder with the series' labels, or tells what is wrong.
func check(builder *labels.ScratchBuilder, device croft.DeviceID, sample Sample) Reason {
	if len(sample.Name) > maxName || !isName(sample.Name) {
		return BadName
	}
	if len(sample.Labels) > maxLabels {
		return BadLabel
	}
	builder.Reset()
	builder.Add(labels.MetricName, sample.Name)
	builder.Add(deviceLabel, string(device))
	for i, l := range sample.Labels {
		if len(l.Name) > maxName || !isName(l.Name) || len(l.Name) > 1 && l.Name[:2] == "__" ||
			len(l.Value) > maxValue || !utf8.ValidString(l.Value) {
			return BadLabel
		}
		for _, other := range sample.Labels[:i] {
			if exported(other.Name) == exported(l.Name) {
				return BadLabel
			}
		}
		if l.Value != "" {
			builder.Add(exported(l.Name), l.Value)
		}
	}
	builder.Sort()
	return ""
}

// exported is the name under which a box's label is stored.
func exported(name string) string {
	if name == deviceLabel {
		return exportedLabel
	}
	return name
}

// checkClock refuses to write with a clock that cannot be right: samples it lets
// through would shut out all true ones.
func (s *Store) checkClock(now time.Time) error {
	ms := s.newest.Load()
	if ms == 0 {
		return nil
	}
	newest := time.UnixMilli(ms).UTC()
	if now.After(newest.Add(-clockSlow)) && now.Before(newest.Add(clockFast)) {
		return nil
	}
	return &croft.Error{
		Kind:   croft.KindRefused,
		Err:    fmt.Errorf("append samples: this server's clock says %s but the newest sample is of %s", now.UTC().Format(time.RFC3339), newest.Format(time.RFC3339)),
		Remedy: "set the clock; if it is right, start once with TrustClock",
	}
}

// checkFree refuses to write when the disk is nearly full, which it looks at once
// a second: a log that hits the end of the disk is torn.
func (s *Store) checkFree(now time.Time) error {
	if last := s.freeChecked.Load(); now.UnixMilli()-last >= 1000 || now.UnixMilli() < last {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(s.cfg.Dir, &fs); err != nil {
			return fmt.Errorf("look at free space of %s: %w", s.cfg.Dir, err)
		}
		s.freeEnough.Store(int64(fs.Bavail)*fs.Bsize >= s.cfg.MinFree)
		s.freeChecked.Store(now.UnixMilli())
	}
	if s.freeEnough.Load() {
		return nil
	}
	return &croft.Error{
		Kind:   croft.KindNoSpace,
		Err:    fmt.Errorf("append samples: disk of %s has less than %d bytes left", s.cfg.Dir, s.cfg.MinFree),
		Remedy: "free some space or lower the retention",
	}
}

func kindOfWrite(err error) croft.Kind {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		return croft.KindNoSpace
	}
	return croft.KindOther
}

// budget counts the series of each device in memory, which the database tells it
// about, and refuses new ones over the limits. It implements
// tsdb.SeriesLifecycleCallback.
type budget struct {
	perDevice, total int
	enforced         atomic.Bool // not while the log is replayed: that was accepted before

	mu      sync.Mutex
	devices map[string]int // guarded by mu
	all     int            // guarded by mu
}

func (b *budget) PreCreation(series labels.Labels) error {
	if !b.enforced.Load() {
		return nil
	}
	device := series.Get(deviceLabel)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.devices[device] >= b.perDevice:
		return errBudget
	case b.all >= b.total:
		return errTotal
	}
	return nil
}

func (b *budget) PostCreation(series labels.Labels) {
	device := series.Get(deviceLabel)
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.devices[device]; !known {
		device = string([]byte(device)) // not a part of the series' labels, which may go
	}
	b.devices[device]++
	b.all++
}

func (b *budget) PostDeletion(gone map[chunks.HeadSeriesRef]labels.Labels) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, series := range gone {
		device := series.Get(deviceLabel)
		b.all--
		if b.devices[device]--; b.devices[device] == 0 {
			delete(b.devices, device)
		}
	}
}

func (b *budget) numbers() (devices, series int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.devices), b.all
}
