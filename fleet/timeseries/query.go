package timeseries

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/croft-cloud/croft"
)

const (
	maxQuery  = 16 << 10 // bytes of an expression
	maxPoints = 11_000   // steps of a range query, as in Prometheus

	// maxSubquery is how many steps a subquery may have. The engine runs through
	// them without looking at its limits of time and samples.
	maxSubquery = 110_000
)

// Scope is the devices a caller may see. The zero Scope is none.
type Scope struct {
	All     bool             // every device, and series without one
	Devices []croft.DeviceID // else these
}

// matcher narrows a selector to the scope; nil: it need not be narrowed.
func (s Scope) matcher() (*labels.Matcher, error) {
	if s.All {
		return nil, nil
	}
	names := make([]string, len(s.Devices))
	for i, d := range s.Devices {
		// A device's name stands in a regular expression, so it must be one.
		if _, err := croft.ParseDeviceID(string(d)); err != nil {
			return nil, fmt.Errorf("narrow query to devices: %w", err)
		}
		names[i] = string(d)
	}
	if len(names) == 0 {
		// No series has this label twice over: "device" is never both.
		return labels.NewMatcher(labels.MatchEqual, deviceLabel, "no device")
	}
	return labels.NewMatcher(labels.MatchRegexp, deviceLabel, strings.Join(names, "|"))
}

// Series is one line of an answer.
type Series struct {
	Labels map[string]string
	Points []Point
}

// Point is one value of a line.
type Point struct {
	At    time.Time
	Value float64
}

// Instant answers a query as of one instant: a number is one series without
// labels.
func (s *Store) Instant(ctx context.Context, scope Scope, query string, at time.Time) ([]Series, error) {
	return s.ask(ctx, scope, query, at, at, 0)
}

// Range answers a query as of each step from one instant to another.
func (s *Store) Range(ctx context.Context, scope Scope, query string, from, to time.Time, step time.Duration) ([]Series, error) {
	if step <= 0 {
		return nil, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("query time series: step is %s, want more than 0", step)}
	}
	return s.ask(ctx, scope, query, from, to, step)
}

func (s *Store) ask(ctx context.Context, scope Scope, query string, from, to time.Time, step time.Duration) ([]Series, error) {
	q, err := s.prepare(ctx, scope, query, from, to, step)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	result := q.Exec(ctx)
	if result.Err != nil {
		return nil, fmt.Errorf("query time series: %w", result.Err)
	}
	switch v := result.Value.(type) {
	case promql.Matrix:
		answer := make([]Series, 0, len(v))
		for _, line := range v {
			points := make([]Point, 0, len(line.Floats))
			for _, p := range line.Floats {
				points = append(points, Point{At: time.UnixMilli(p.T).UTC(), Value: p.F})
			}
			answer = append(answer, Series{Labels: line.Metric.Map(), Points: points})
		}
		return answer, nil
	case promql.Vector:
		answer := make([]Series, 0, len(v))
		for _, p := range v {
			answer = append(answer, Series{Labels: p.Metric.Map(), Points: []Point{{At: time.UnixMilli(p.T).UTC(), Value: p.F}}})
		}
		return answer, nil
	case promql.Scalar:
		return []Series{{Labels: map[string]string{}, Points: []Point{{At: time.UnixMilli(v.T).UTC(), Value: v.V}}}}, nil
	}
	return nil, &croft.Error{Kind: croft.KindUsage, Err: errors.New("query time series: the answer is a text")}
}

// prepare checks a query and its limits; step 0 asks for one instant.
func (s *Store) prepare(ctx context.Context, scope Scope, query string, from, to time.Time, step time.Duration) (promql.Query, error) {
	usage := func(format string, args ...any) error {
		return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("query time series: "+format, args...)}
	}
	if len(query) > maxQuery {
		return nil, usage("the expression has %d bytes, at most %d are allowed", len(query), maxQuery)
	}
	for _, t := range []time.Time{from, to} {
		if t.Year() < 1970 || t.Year() > 9999 {
			return nil, usage("%s is out of range", t)
		}
	}
	expr, err := s.parser.ParseExpr(query)
	if err != nil {
		return nil, usage("%w", err)
	}
	if steps := subquerySteps(expr, to.Sub(from)); steps > maxSubquery {
		return nil, usage("a subquery has %d steps, at most %d are allowed", steps, maxSubquery)
	}
	only, err := scope.matcher()
	if err != nil {
		return nil, err
	}
	source := storage.QueryableFunc(func(mint, maxt int64) (storage.Querier, error) {
		return s.querier(only, mint, maxt)
	})
	var q promql.Query
	if step == 0 {
		q, err = s.engine.NewInstantQuery(ctx, source, nil, query, from)
	} else {
		switch {
		case to.Before(from):
			return nil, usage("the end is before the start")
		case to.Sub(from)/step > maxPoints:
			return nil, usage("exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)")
		}
		q, err = s.engine.NewRangeQuery(ctx, source, nil, query, from, to, step)
	}
	if err != nil {
		return nil, usage("%w", err)
	}
	return q, nil
}

// subquerySteps is the most steps that a subquery of expr runs through when the
// whole is asked over span. A subquery within another runs over the windows of
// both.
func subquerySteps(expr parser.Expr, span time.Duration) (most int64) {
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		inner, ok := node.(*parser.SubqueryExpr)
		if !ok {
			return nil
		}
		length := float64(span) + float64(inner.Range)
		for _, n := range path {
			if outer, ok := n.(*parser.SubqueryExpr); ok {
				length += float64(outer.Range)
			}
		}
		most = max(most, int64(length/float64(cmp.Or(inner.Step, subqueryStep))))
		return nil
	})
	return most
}

// subqueryStep is the step of a subquery that names none.
const subqueryStep = time.Minute

// gate lets so many queries run at once. It implements promql.QueryTracker.
type gate chan struct{}

func (g gate) GetMaxConcurrent() int { return cap(g) }

func (g gate) Insert(ctx context.Context, _ string) (int, error) {
	select {
	case g <- struct{}{}:
		return 0, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (g gate) Delete(int) { <-g }

func (g gate) Close() error { return nil }

func newEngine(cfg Config, p parser.Parser) *promql.Engine {
	return promql.NewEngine(promql.EngineOpts{
		Logger:                   cfg.Log,
		MaxSamples:               cfg.QuerySamples,
		Timeout:                  cfg.QueryTimeout,
		ActiveQueryTracker:       make(gate, cfg.QueryParallel),
		LookbackDelta:            window,
		NoStepSubqueryIntervalFn: func(int64) int64 { return subqueryStep.Milliseconds() },
		EnableAtModifier:         true,
		EnableNegativeOffset:     true,
		Parser:                   p,
	})
}

// querier reads samples and archives for one caller. It keeps the store's read
// lock until it is closed.
type querier struct {
	store    *Store
	only     *labels.Matcher // nil: all devices
	raw      storage.Querier
	archive  [len(archiveNames)]storage.Querier
	split    int64 // archives hold all before it
	rawStart int64 // there are no samples before it
}

func (s *Store) querier(only *labels.Matcher, mint, maxt int64) (_ storage.Querier, err error) {
	s.mu.RLock()
	q := &querier{store: s, only: only, split: s.split.Load(), rawStart: math.MaxInt64}
	defer func() {
		if err != nil {
			_ = q.Close()
		}
	}()
	db, err := s.rawLocked()
	if err != nil {
		return nil, err
	}
	if head := db.Head(); head.NumSeries() > 0 {
		q.rawStart = head.MinTime()
	}
	for _, b := range db.BlockMetas() {
		q.rawStart = min(q.rawStart, b.MinTime)
	}
	if q.raw, err = db.Querier(mint, maxt); err != nil {
		return nil, err
	}
	for i, a := range s.archive {
		if q.archive[i], err = a.Querier(mint, min(maxt, q.split-1)); err != nil {
			return nil, err
		}
	}
	return q, nil
}

func (q *querier) Close() error {
	var errs []error
	for _, part := range append(q.archive[:], q.raw) {
		if part != nil {
			errs = append(errs, part.Close())
		}
	}
	q.store.mu.RUnlock()
	return errors.Join(errs...)
}

// narrow is where scopes are enforced.
func (q *querier) narrow(matchers []*labels.Matcher) []*labels.Matcher {
	if q.only == nil {
		return matchers
	}
	return append(slices.Clone(matchers), q.only)
}

// border is up to when, exclusive, a selection reads the archives.
func (q *querier) border(hints *storage.SelectHints) int64 {
	if hints == nil || hints.Func == "series" {
		return q.split
	}
	length := time.Duration(hints.Range) * time.Millisecond
	coarse := time.Duration(hints.Step)*time.Millisecond >= 2*window && (length == 0 || length >= 4*window)
	if coarse || length >= day {
		return q.split
	}
	return min(q.split, q.rawStart)
}

// Select implements storage.Querier.
func (q *querier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	matchers = q.narrow(matchers)
	border := q.border(hints)
	if hints == nil || hints.Func == "series" {
		return merge(q.raw.Select(ctx, true, hints, matchers...), q.archive[mean].Select(ctx, true, hints, matchers...))
	}
	if hints.Start >= border {
		return q.raw.Select(ctx, sorted, hints, matchers...)
	}
	old, young := *hints, *hints
	old.End, young.Start = min(old.End, border-1), border
	var sets []storage.SeriesSet
	switch hints.Func {
	case "max", "max_over_time":
		sets = append(sets, q.archive[high].Select(ctx, true, &old, matchers...))
	case "min", "min_over_time":
		sets = append(sets, q.archive[low].Select(ctx, true, &old, matchers...))
	default:
		sets = append(sets, q.archive[mean].Select(ctx, true, &old, matchers...))
	}
	if strings.HasPrefix(hints.Func, "max") || strings.HasPrefix(hints.Func, "min") {
		// Counters are in "mean" only.
		counters := labels.MustNewMatcher(labels.MatchRegexp, labels.MetricName, counterNames)
		sets = append(sets, q.archive[mean].Select(ctx, true, &old, append(slices.Clone(matchers), counters)...))
	}
	if young.End >= young.Start {
		sets = append(sets, q.raw.Select(ctx, true, &young, matchers...))
	}
	return merge(sets...)
}

func merge(sets ...storage.SeriesSet) storage.SeriesSet {
	return storage.NewMergeSeriesSet(sets, 0, storage.ChainedSeriesMerge)
}

// LabelValues implements storage.Querier.
func (q *querier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return union(func(part storage.Querier) ([]string, annotations.Annotations, error) {
		return part.LabelValues(ctx, name, hints, q.narrow(matchers)...)
	}, q.raw, q.archive[mean])
}

// LabelNames implements storage.Querier.
func (q *querier) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return union(func(part storage.Querier) ([]string, annotations.Annotations, error) {
		return part.LabelNames(ctx, hints, q.narrow(matchers)...)
	}, q.raw, q.archive[mean])
}

// union is the sorted texts of several queriers.
func union(of func(storage.Querier) ([]string, annotations.Annotations, error), parts ...storage.Querier) ([]string, annotations.Annotations, error) {
	texts := []string{}
	var notes annotations.Annotations
	for _, part := range parts {
		more, n, err := of(part)
		if err != nil {
			return nil, n, err
		}
		notes.Merge(n)
		for _, text := range more {
			texts = append(texts, strings.Clone(text)) // it may lie in a file that is closed later
		}
	}
	return sortedOnce(texts), notes, nil
}

func sortedOnce(texts []string) []string {
	slices.Sort(texts)
	return slices.Compact(texts)
}
