package timeseries

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/croft-cloud/croft"
)

const (
	maxForm   = 1 << 20 // bytes of a POST body
	maxSeries = 100_000 // lines of an answer of series, labels and values

	// maxSelectors is how many match[] one request may have: each looks through all
	// series, and no turn is waited for as with queries.
	maxSelectors = 64

	// promVersion is the version of Prometheus whose query language and API
	// these are; Grafana chooses by it what it offers.
	promVersion = "3.11.3"
)

// answer is the envelope of the Prometheus HTTP API.
type answer struct {
	Status    string   `json:"status"`
	Data      any      `json:"data,omitempty"`
	ErrorType string   `json:"errorType,omitempty"`
	Error     string   `json:"error,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
	Infos     []string `json:"infos,omitempty"`
}

type queryData struct {
	ResultType parser.ValueType `json:"resultType"`
	Result     parser.Value     `json:"result"`
}

// badRequest is a request that is wrong in itself.
type badRequest struct{ error }

// asked is one request with its caller's rights and what to tell besides the
// answer.
type asked struct {
	*http.Request
	scope Scope
	notes annotations.Annotations
}

// Handler is the part of the Prometheus HTTP API that asks: query, query_range,
// series, labels, label/NAME/values, metadata, status/buildinfo and an empty
// query_exemplars, under /api/v1/, by GET and POST. Grafana takes it as a data
// source of type Prometheus. scope tells for each request which devices its
// caller may see; its error is answered with 403.
func (s *Store) Handler(scope func(*http.Request) (Scope, error)) http.Handler {
	mux := http.NewServeMux()
	for path, do := range map[string]func(*asked) (any, error){
		"query":               s.serveQuery,
		"query_range":         s.serveRange,
		"query_exemplars":     func(*asked) (any, error) { return []string{}, nil },
		"series":              s.serveSeries,
		"labels":              s.serveLabels,
		"label/{name}/values": s.serveValues,
		"metadata":            s.serveMetadata,
		"status/buildinfo":    serveBuild,
	} {
		mux.HandleFunc("/api/v1/"+path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodPost {
				w.Header().Set("Allow", "GET, POST")
				s.write(w, http.StatusMethodNotAllowed, answer{Status: "error", ErrorType: "bad_data", Error: "want GET or POST"})
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, maxForm)
			a := &asked{Request: r}
			data, err := s.serve(a, scope, do)
			if err != nil {
				s.writeError(w, err)
				return
			}
			reply := answer{Status: "success", Data: data}
			reply.Warnings, reply.Infos = a.notes.AsStrings(r.FormValue("query"), 10, 10)
			s.write(w, http.StatusOK, reply)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		s.write(w, http.StatusNotFound, answer{Status: "error", ErrorType: "not_found", Error: "there is no such page"})
	})
	return gzhttp.GzipHandler(mux)
}

func (s *Store) serve(a *asked, scope func(*http.Request) (Scope, error), do func(*asked) (any, error)) (data any, err error) {
	if a.scope, err = scope(a.Request); err != nil {
		return nil, &croft.Error{Kind: croft.KindRefused, Err: err}
	}
	if err := a.ParseForm(); err != nil {
		return nil, badRequest{fmt.Errorf("parse form: %w", err)}
	}
	timeout := s.cfg.QueryTimeout
	if text := a.FormValue("timeout"); text != "" {
		asked, err := parseDuration(text)
		if err != nil {
			return nil, badRequest{fmt.Errorf("invalid parameter %q: %w", "timeout", err)}
		}
		timeout = min(timeout, asked)
	}
	ctx, cancel := context.WithTimeout(a.Context(), timeout)
	defer cancel()
	a.Request = a.WithContext(ctx)
	return do(a)
}

func (s *Store) writeError(w http.ResponseWriter, err error) {
	status, kind := http.StatusUnprocessableEntity, "execution"
	bad, isBad := errors.AsType[badRequest](err)
	_, timedOut := errors.AsType[promql.ErrQueryTimeout](err)
	_, canceled := errors.AsType[promql.ErrQueryCanceled](err)
	_, broken := errors.AsType[promql.ErrStorage](err)
	switch {
	case isBad:
		status, kind, err = http.StatusBadRequest, "bad_data", bad.error
	case croft.KindOf(err) == croft.KindUsage:
		status, kind = http.StatusBadRequest, "bad_data"
	case croft.KindOf(err) == croft.KindRefused:
		status, kind = http.StatusForbidden, "forbidden"
	case croft.KindOf(err) == croft.KindNoSpace:
		status, kind = http.StatusServiceUnavailable, "unavailable"
	case timedOut, errors.Is(err, context.DeadlineExceeded):
		status, kind = http.StatusServiceUnavailable, "timeout"
	case canceled, errors.Is(err, context.Canceled):
		status, kind = 499, "canceled" // nginx's code for a caller who left, as in Prometheus
	case broken:
		s.log.Error("query failed", "error", err)
		status, kind = http.StatusInternalServerError, "internal"
	}
	s.write(w, status, answer{Status: "error", ErrorType: kind, Error: err.Error()})
}

func (s *Store) write(w http.ResponseWriter, status int, a answer) {
	text, err := json.Marshal(a)
	if err != nil {
		s.log.Error("encoding answer failed", "error", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if _, err := w.Write(text); err != nil {
		s.log.Debug("caller left before the answer", "error", err)
	}
}

func (s *Store) serveQuery(a *asked) (any, error) {
	at, err := a.time("time", time.Now())
	if err != nil {
		return nil, err
	}
	return s.exec(a, at, at, 0)
}

func (s *Store) serveRange(a *asked) (any, error) {
	from, err := a.time("start", time.Time{})
	if err != nil {
		return nil, err
	}
	to, err := a.time("end", time.Time{})
	if err != nil {
		return nil, err
	}
	step, err := parseDuration(a.FormValue("step"))
	if err == nil && step < time.Millisecond {
		err = errors.New("zero or negative query resolution step widths are not accepted. Try a positive integer")
	}
	if err != nil {
		return nil, badRequest{fmt.Errorf("invalid parameter %q: %w", "step", err)}
	}
	return s.exec(a, from, to, step)
}

func (s *Store) exec(a *asked, from, to time.Time, step time.Duration) (any, error) {
	limit, err := a.limit()
	if err != nil {
		return nil, err
	}
	q, err := s.prepare(a.Context(), a.scope, a.FormValue("query"), from, to, step)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	result := q.Exec(a.Context())
	if result.Err != nil {
		return nil, result.Err
	}
	a.notes.Merge(result.Warnings)
	// The values are the query's and go with it, so they are encoded here.
	var cut bool
	switch v := result.Value.(type) {
	case promql.Matrix:
		result.Value, cut = v[:min(len(v), limit)], len(v) > limit
	case promql.Vector:
		result.Value, cut = v[:min(len(v), limit)], len(v) > limit
	}
	a.noteCut(cut)
	text, err := json.Marshal(queryData{ResultType: result.Value.Type(), Result: result.Value})
	return json.RawMessage(text), err
}

func (s *Store) serveSeries(a *asked) (any, error) {
	if len(a.Form["match[]"]) == 0 {
		return nil, badRequest{errors.New("no match[] parameter provided")}
	}
	found := []labels.Labels{}
	err := s.look(a, func(ctx context.Context, q storage.Querier, selectors [][]*labels.Matcher, from, to int64, limit int) error {
		sets := make([]storage.SeriesSet, 0, len(selectors))
		for _, matchers := range selectors {
			sets = append(sets, q.Select(ctx, true, &storage.SelectHints{Start: from, End: to, Func: "series"}, matchers...))
		}
		set := merge(sets...)
		for set.Next() {
			if len(found) == limit {
				a.noteCut(true)
				break
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			l := set.At().Labels()
			found = append(found, l.Copy())
		}
		return set.Err()
	})
	return found, err
}

func (s *Store) serveLabels(a *asked) (any, error) {
	return s.texts(a, func(ctx context.Context, q storage.Querier, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
		return q.LabelNames(ctx, nil, matchers...)
	})
}

func (s *Store) serveValues(a *asked) (any, error) {
	name := a.PathValue("name")
	if strings.HasPrefix(name, "U__") {
		name = model.UnescapeName(name, model.ValueEncodingEscaping)
	}
	if !model.UTF8Validation.IsValidLabelName(name) {
		return nil, badRequest{fmt.Errorf("invalid label name: %q", name)}
	}
	return s.texts(a, func(ctx context.Context, q storage.Querier, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
		return q.LabelValues(ctx, name, nil, matchers...)
	})
}

// texts answers with names or values of labels.
func (s *Store) texts(a *asked, of func(context.Context, storage.Querier, []*labels.Matcher) ([]string, annotations.Annotations, error)) ([]string, error) {
	found := []string{}
	err := s.look(a, func(ctx context.Context, q storage.Querier, selectors [][]*labels.Matcher, _, _ int64, limit int) error {
		if len(selectors) == 0 {
			selectors = [][]*labels.Matcher{nil}
		}
		for _, matchers := range selectors {
			more, notes, err := of(ctx, q, matchers)
			if err != nil {
				return err
			}
			a.notes.Merge(notes)
			found = append(found, more...)
		}
		found = sortedOnce(found)
		a.noteCut(len(found) > limit)
		found = found[:min(len(found), limit)]
		return nil
	})
	return found, err
}

func (s *Store) serveMetadata(a *asked) (any, error) {
	names, err := s.texts(a, func(ctx context.Context, q storage.Querier, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
		return q.LabelValues(ctx, labels.MetricName, nil, matchers...)
	})
	type description struct {
		Type string `json:"type"`
		Help string `json:"help"`
		Unit string `json:"unit"`
	}
	about := map[string][]description{}
	for _, name := range names {
		if only := a.FormValue("metric"); only != "" && only != name {
			continue
		}
		kind := "gauge"
		if isCounter(name) {
			kind = "counter"
		}
		about[name] = []description{{Type: kind}}
	}
	return about, err
}

func serveBuild(*asked) (any, error) {
	return map[string]string{"version": promVersion, "revision": "", "branch": "", "buildUser": "", "buildDate": "", "goVersion": ""}, nil
}

// look opens the store for what is asked about series but not their values.
func (s *Store) look(a *asked, do func(ctx context.Context, q storage.Querier, selectors [][]*labels.Matcher, from, to int64, limit int) error) (err error) {
	limit, err := a.limit()
	if err != nil {
		return err
	}
	from, err := a.time("start", time.UnixMilli(0))
	if err != nil {
		return err
	}
	to, err := a.time("end", time.Now().Add(maxAhead))
	if err != nil {
		return err
	}
	if n := len(a.Form["match[]"]); n > maxSelectors {
		return badRequest{fmt.Errorf("there are %d match[], at most %d are allowed", n, maxSelectors)}
	}
	selectors, err := s.parser.ParseMetricSelectors(a.Form["match[]"])
	if err != nil {
		return badRequest{err}
	}
	for _, matchers := range selectors {
		if !selective(matchers) {
			return badRequest{errors.New("match[] must contain at least one non-empty matcher")}
		}
	}
	only, err := a.scope.matcher()
	if err != nil {
		return err
	}
	q, err := s.querier(only, from.UnixMilli(), to.UnixMilli())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	return do(a.Context(), q, selectors, from.UnixMilli(), to.UnixMilli(), limit)
}

func selective(matchers []*labels.Matcher) bool {
	for _, m := range matchers {
		if !m.Matches("") {
			return true
		}
	}
	return false
}

func (a *asked) noteCut(cut bool) {
	if cut {
		a.notes.Add(errors.New("results truncated due to limit"))
	}
}

// limit is how many lines the caller wants; 0 and absence mean all.
func (a *asked) limit() (int, error) {
	text := a.FormValue("limit")
	if text == "" {
		return maxSeries, nil
	}
	limit, err := strconv.Atoi(text)
	if err == nil && limit < 0 {
		err = errors.New("limit must be non-negative")
	}
	if err != nil {
		return 0, badRequest{fmt.Errorf("invalid parameter %q: %w", "limit", err)}
	}
	if limit == 0 {
		return maxSeries, nil
	}
	return min(limit, maxSeries), nil
}

// time is a parameter in seconds since 1970 or as RFC 3339; without it is absent,
// unless it is zero.
func (a *asked) time(name string, absent time.Time) (time.Time, error) {
	text := a.FormValue(name)
	if text == "" && !absent.IsZero() {
		return absent, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(seconds) || math.Abs(seconds) > 1e11 {
		return time.Time{}, badRequest{fmt.Errorf("invalid parameter %q: cannot parse %q to a valid timestamp", name, text)}
	}
	return time.UnixMilli(int64(math.Round(seconds * 1000))).UTC(), nil
}

func parseDuration(text string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		if math.IsNaN(seconds) || math.Abs(seconds) > math.MaxInt64/float64(time.Second)/2 {
			return 0, fmt.Errorf("cannot parse %q to a valid duration", text)
		}
		return time.Duration(seconds * float64(time.Second)), nil
	}
	d, err := model.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("cannot parse %q to a valid duration", text)
	}
	return time.Duration(d), nil
}
