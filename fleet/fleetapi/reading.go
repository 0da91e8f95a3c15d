package fleetapi

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// The bounds of a batch.
const (
	MaxSeries   = 4096    // series
	MaxInstants = 3600    // instants
	MaxValues   = 1 << 15 // series × instants: 500 series, each second of a minute
	MaxLabels   = 6       // labels of a series
	maxName     = 96      // bytes of a series' name
)

// namePrefix begins the name of whatever a box reads. Other names are the
// fleet's: up, ALERTS.
const namePrefix = "croft_"

// reserved are labels that only the fleet sets: what a box says about itself
// never passes for another box.
var reserved = []string{"device", "instance", "job"}

// Reading is one number that the box read about itself. Names follow the
// conventions of Prometheus and begin with "croft_"; names and labels are of
// a-z, 0-9 and '_'. No label has an empty value, and none is called device,
// instance or job.
type Reading struct {
	Name    string
	Labels  []Label // in any order; at most [MaxLabels]
	Value   float64 // finite; NaN: it could not be read, and is left out
	Counter bool    // only grows, but for starting again at 0
}

// Batch is what was read at some instants, as a table: one row for each series,
// one column for each instant. [Builder] makes one from readings. One within the
// bounds fits a payload, unless its names are longer than any that mean
// something; [Encode] then refuses it.
type Batch struct {
	Epoch    uint64        // session in which it was made, as in [Hello]
	Seq      uint64        // 1 for the first batch of the session, then one more with each
	BootID   string        // as in [Hello]
	Synced   bool          // as in [Hello], for all instants
	Interval time.Duration // how far instants are meant to be apart
	Times    []time.Time   // when it was read, device clock; growing; 1 to [MaxInstants]
	Series   []Series      // sorted by name, then labels; none twice; at most [MaxSeries]
}

// Series is what was read under one name and set of labels.
type Series struct {
	Name    string
	Labels  []Label // sorted by name
	Counter bool
	Values  []float64 // one for each instant; NaN where there was none
}

// Subject implements [Payload].
func (*Batch) Subject() Subject { return SubjectReadings }

// table is what a batch says beside its columns.
func (b *Batch) table() table {
	return table{
		{2, "epoch", number{&b.Epoch, 1}},
		{3, "seq", number{&b.Seq, 1}},
		{4, "boot_id", bootID{&b.BootID}},
		{5, "synced", yesNo{&b.Synced}},
		{6, "interval", span{&b.Interval, MinInterval, MaxInterval}},
	}
}

// checkShape checks all but the members in the table.
func (b *Batch) checkShape() error {
	if err := checkSize(len(b.Series), len(b.Times)); err != nil {
		return err
	}
	for i, at := range b.Times {
		if err := checkTime(at); err != nil {
			return fmt.Errorf("times: %w", err)
		}
		if i > 0 && !at.After(b.Times[i-1]) {
			return refuse(ReasonMalformed, "times: %s follows %s", at, b.Times[i-1])
		}
	}
	for i := range b.Series {
		s := &b.Series[i]
		if err := checkSeries(s.Name, s.Labels); err != nil {
			return err
		}
		if i > 0 && compareSeries(&b.Series[i-1], s) >= 0 {
			return refuse(ReasonMalformed, "series %.64q is there twice or out of order", s.Name)
		}
		if len(s.Values) != len(b.Times) {
			return refuse(ReasonMalformed, "series %.64q has %d values: want %d", s.Name, len(s.Values), len(b.Times))
		}
		for _, v := range s.Values {
			if math.IsInf(v, 0) {
				return refuse(ReasonRange, "series %.64q has an infinite value", s.Name)
			}
		}
	}
	return nil
}

func checkSize(series, instants int) error {
	switch {
	case instants == 0:
		return refuse(ReasonMissing, "times: is missing")
	case series > MaxSeries, instants > MaxInstants, series*instants > MaxValues:
		return refuse(ReasonOversized, "%d series at %d instants: want at most %d, %d and %d values",
			series, instants, MaxSeries, MaxInstants, MaxValues)
	}
	return nil
}

// checkSeries checks a name and its labels.
func checkSeries(name string, labels []Label) error {
	if err := checkSeriesName(name); err != nil {
		return err
	}
	if len(labels) > MaxLabels {
		return refuse(ReasonOversized, "series %.64q has more than %d labels", name, MaxLabels)
	}
	for _, l := range labels {
		if err := word(l.Name); err != nil {
			return fmt.Errorf("label of series %.64q: %w", name, err)
		}
		if slices.Contains(reserved, l.Name) {
			return refuse(ReasonForeign, "series %.64q has the label %q, which is the fleet's", name, l.Name)
		}
		if err := labelValue(l.Value); err != nil {
			return fmt.Errorf("label %q of series %.64q: %w", l.Name, name, err)
		}
	}
	return checkOrder(labels)
}

var labelValue = sentence(1, maxLabel)

func checkSeriesName(name string) error {
	if !strings.HasPrefix(name, namePrefix) {
		return refuse(ReasonForeign, "series %.64q does not begin with %s", name, namePrefix)
	}
	if len(name) > maxName {
		return refuse(ReasonText, "series name has %d bytes: want at most %d", len(name), maxName)
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return refuse(ReasonText, "series %.64q: want a-z, 0-9 and '_'", name)
		}
	}
	return nil
}

func compareSeries(a, b *Series) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), slices.CompareFunc(a.Labels, b.Labels, func(a, b Label) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Value, b.Value))
	}))
}

// ErrBatchDone reports that an instant cannot join a batch, because the batch
// would become too large or the clock went back. Take the batch, and add the
// instant to the next one.
var ErrBatchDone = errors.New("batch takes no more")

// Builder collects readings into batches. Its zero value is ready; it is not
// safe for use by several goroutines.
type Builder struct {
	times  []time.Time
	series []Series
	index  map[string]int // key of a series → its place in series
}

// Add adds what was read at one instant. Readings that break a rule are left
// out, and the error, of joined [RefusedError]s, names them; the others are in
// the batch all the same. With [ErrBatchDone] nothing was added.
func (b *Builder) Add(at time.Time, readings []Reading) error {
	at = Truncate(at)
	if err := checkTime(at); err != nil {
		return fmt.Errorf("add readings: %w", err)
	}
	keys, fresh := make([]string, len(readings)), 0
	for i := range readings {
		keys[i] = seriesKey(readings[i].Name, sorted(readings[i].Labels))
		if _, known := b.index[keys[i]]; !known {
			fresh++
		}
	}
	n := len(b.times)
	if n > 0 && (!at.After(b.times[n-1]) || checkSize(len(b.series)+fresh, n+1) != nil) {
		return fmt.Errorf("add readings of %s: %w", at.Format(time.RFC3339), ErrBatchDone)
	}
	b.times = append(b.times, at)
	var refused []error
	for i := range readings {
		if err := b.addOne(keys[i], &readings[i]); err != nil {
			refused = append(refused, fmt.Errorf("add reading: %w", err))
		}
	}
	for i := range b.series {
		b.series[i].Values = padded(b.series[i].Values, n+1)
	}
	return errors.Join(refused...)
}

// addOne adds a reading of the newest instant.
func (b *Builder) addOne(key string, r *Reading) error {
	switch {
	case math.IsNaN(r.Value):
		return nil
	case math.IsInf(r.Value, 0):
		return refuse(ReasonRange, "series %.64q has an infinite value", r.Name)
	}
	i, known := b.index[key]
	if !known {
		labels := sorted(r.Labels)
		if err := checkSeries(r.Name, labels); err != nil {
			return err
		}
		if err := checkSize(len(b.series)+1, len(b.times)); err != nil {
			return fmt.Errorf("series %.64q: %w", r.Name, err)
		}
		i = len(b.series)
		if b.index == nil {
			b.index = make(map[string]int)
		}
		b.index[key] = i
		b.series = append(b.series, Series{Name: r.Name, Labels: slices.Clone(labels), Counter: r.Counter})
	}
	s := &b.series[i]
	if len(s.Values) == len(b.times) {
		return refuse(ReasonMalformed, "series %.64q was read twice", r.Name)
	}
	s.Values = append(padded(s.Values, len(b.times)-1), r.Value)
	return nil
}

// padded is values, with NaN up to n of them.
func padded(values []float64, n int) []float64 {
	for len(values) < n {
		values = append(values, math.NaN())
	}
	return values
}

// Len is the number of instants added since the last Take.
func (b *Builder) Len() int { return len(b.times) }

// Take returns what was added, nil if there is nothing, and begins anew. The
// caller sets what the builder cannot know: Epoch, Seq, BootID, Synced and
// Interval.
func (b *Builder) Take() *Batch {
	if len(b.times) == 0 {
		return nil
	}
	batch := &Batch{Times: b.times, Series: b.series}
	slices.SortFunc(batch.Series, func(a, b Series) int { return compareSeries(&a, &b) })
	*b = Builder{}
	return batch
}

// sorted is labels in order of their names; a copy, unless they are already.
func sorted(labels []Label) []Label {
	byName := func(a, b Label) int { return cmp.Compare(a.Name, b.Name) }
	if slices.IsSortedFunc(labels, byName) {
		return labels
	}
	return slices.SortedStableFunc(slices.Values(labels), byName)
}

// seriesKey is different for different series: none of its parts, if sound, has
// a zero byte.
func seriesKey(name string, labels []Label) string {
	var key strings.Builder
	key.WriteString(name)
	for _, l := range labels {
		key.WriteByte(0)
		key.WriteString(l.Name)
		key.WriteByte(0)
		key.WriteString(l.Value)
	}
	return key.String()
}
