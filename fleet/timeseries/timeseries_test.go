package timeseries

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
)

// device is the n-th of some devices.
func device(n int) croft.DeviceID {
	return croft.DeviceIDFromDigest(sha256.Sum256(fmt.Appendf(nil, "device %d", n)))
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Log = nil
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func add(t testing.TB, s *Store, d croft.DeviceID, samples ...Sample) {
	t.Helper()
	stored, err := s.Append(t.Context(), d, samples)
	if err != nil {
		t.Fatal(err)
	}
	if stored != len(samples) {
		t.Fatalf("stored %d of %d samples; refused %v", stored, len(samples), s.Stats().Refused)
	}
}

func gauge(name string, at time.Time, v float64, pairs ...string) Sample {
	s := Sample{Name: name, At: at, Value: v}
	for i := 0; i < len(pairs); i += 2 {
		s.Labels = append(s.Labels, Label{pairs[i], pairs[i+1]})
	}
	return s
}

var everything = Scope{All: true}

// instant is the answer to a query as sorted lines of labels and value.
func instant(t testing.TB, s *Store, scope Scope, query string, at time.Time) string {
	t.Helper()
	series, err := s.Instant(t.Context(), scope, query, at)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return text(series)
}

func text(series []Series) string {
	var lines []string
	for _, line := range series {
		var words []string
		for _, name := range slices.Sorted(maps.Keys(line.Labels)) {
			words = append(words, name+"="+line.Labels[name])
		}
		for _, p := range line.Points {
			words = append(words, fmt.Sprint(p.Value))
		}
		lines = append(lines, strings.Join(words, " "))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestTheDeviceLabelIsTheStoresAlone(t *testing.T) {
	s := open(t, Config{})
	now := time.Now()
	add(t, s, device(1), gauge("croft_disk", now, 7, "device", string(device(2)), "kind", "ssd"))
	want := fmt.Sprintf("__name__=croft_disk device=%s exported_device=%s kind=ssd 7", device(1), device(2))
	if got := instant(t, s, everything, "croft_disk", now); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := instant(t, s, Scope{Devices: []croft.DeviceID{device(2)}}, "croft_disk", now); got != "" {
		t.Errorf("the device that was named sees %q", got)
	}
}

func TestWhatIsWrongIsRefusedAndCountedAndTheRestIsStored(t *testing.T) {
	now := time.Now()
	long := strings.Repeat("x", 300)
	many := make([]string, 0, 34)
	for i := range 17 {
		many = append(many, fmt.Sprintf("l%d", i), "v")
	}
	for _, tc := range []struct {
		name   string
		sample Sample
		why    Reason
	}{
		{"an empty name", gauge("", now, 1), BadName},
		{"a name with a colon, which rules use", gauge("a:b", now, 1), BadName},
		{"a name with a brace", gauge("a{", now, 1), BadName},
		{"a name with a line feed", gauge("a\n", now, 1), BadName},
		{"a long name", gauge(long, now, 1), BadName},
		{"a reserved label", gauge("a", now, 1, "__name__", "b"), BadLabel},
		{"an empty label", gauge("a", now, 1, "", "b"), BadLabel},
		{"a label given twice", gauge("a", now, 1, "b", "1", "b", "2"), BadLabel},
		{"a label that becomes another", gauge("a", now, 1, "device", "1", "exported_device", "2"), BadLabel},
		{"a long value", gauge("a", now, 1, "b", long), BadLabel},
		{"a value that is not UTF-8", gauge("a", now, 1, "b", "\xff"), BadLabel},
		{"many labels", gauge("a", now, 1, many...), BadLabel},
		{"the far future", gauge("a", now.Add(time.Hour), 1), TooNew},
		{"the past", gauge("a", now.Add(-25*time.Hour), 1), TooOld},
		{"1970", gauge("a", time.Unix(0, 0), 1), TooOld},
		{"the year 292277026", gauge("a", time.Unix(math.MaxInt64/2, 0), 1), TooNew},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, Config{})
			stored, err := s.Append(t.Context(), device(1), []Sample{gauge("before", now, 1), tc.sample, gauge("after", now, 1)})
			if err != nil || stored != 2 {
				t.Fatalf("stored %d, %v; want 2", stored, err)
			}
			for why, n := range s.Stats().Refused {
				if want := int64(0); n != want && why != tc.why || n == 0 && why == tc.why {
					t.Errorf("refused %d for %q, want only %q", n, why, tc.why)
				}
			}
			if got := instant(t, s, everything, `count({device!=""})`, now); got != "2" {
				t.Errorf("%s series are there, want 2", got)
			}
		})
	}
	if _, err := open(t, Config{}).Append(t.Context(), "../../etc", nil); err == nil {
		t.Error("a device that is none was taken")
	}
}

func TestABatchMixesSeriesInAnyOrder(t *testing.T) {
	s := open(t, Config{})
	now := time.Now()
	at := func(ago int) time.Time { return now.Add(-time.Duration(ago) * time.Second) }
	for round := range 2 { // of series that are new, and of those that are known
		from := 20 - 10*round
		n, err := s.Append(t.Context(), device(1), []Sample{
			gauge("a", at(from), 1, "k", "x"), gauge("a", at(from-1), 1, "k", "x"), gauge("a", at(from), 10, "k", "y"),
			gauge("no-name", at(from), 1), gauge("no-name", at(from-1), 1), gauge("a", at(from-1), 10, "k", "y"),
			gauge("b", at(from), 100, "k", "y"), gauge("a", at(from-2), 1, "k", "x"),
		})
		if err != nil || n != 6 {
			t.Fatalf("%d stored, %v", n, err)
		}
	}
	for query, want := range map[string]string{"sum by (k) (sum_over_time(a[1m]))": "k=x 6\nk=y 40", "sum by (k) (sum_over_time(b[1m]))": "k=y 200"} {
		if got := instant(t, s, everything, query, now); got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
	if got := s.Stats().Refused[BadName]; got != 4 {
		t.Errorf("%d names were refused, want 4", got)
	}
}

func TestABoxCannotHaveMoreSeriesThanItsBudget(t *testing.T) {
	s := open(t, Config{DeviceSeries: 3, MaxSeries: 5})
	now := time.Now()
	burst := func(d int, from, to int) (stored int) {
		var samples []Sample
		for i := from; i < to; i++ {
			samples = append(samples, gauge("a", now, 1, "i", fmt.Sprint(i)))
		}
		stored, err := s.Append(t.Context(), device(d), samples)
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
		return stored
	}
	if got := burst(1, 0, 1000); got != 3 {
		t.Errorf("a hostile device stored %d series, want 3", got)
	}
	if got := burst(1, 0, 3); got != 3 {
		t.Errorf("%d of the series it has went on, want 3", got)
	}
	if got := burst(2, 0, 3); got != 2 {
		t.Errorf("another device stored %d series, want the 2 that are left", got)
	}
	st := s.Stats()
	if st.Refused[OverBudget] != 997 || st.Refused[OverTotal] != 1 || st.Series != 5 || st.Devices != 2 {
		t.Errorf("stats say %+v", st)
	}
	// After a restart the series that are in the log count again.
	closeStore(t, s)
	s = open(t, Config{Dir: s.cfg.Dir, DeviceSeries: 3, MaxSeries: 5})
	if got := burst(1, 3, 4); got != 0 || s.Stats().Series != 5 {
		t.Errorf("after a restart %d more series were stored; stats say %d", got, s.Stats().Series)
	}
}

func TestLateReorderedAndRepeatedSamplesAreHarmless(t *testing.T) {
	s := open(t, Config{})
	now := time.Now().Truncate(time.Minute)
	order := []int{0, 1, 2, 600, 599, 30, 1000, 31, 30, 600, 0, 0, 1200, 5}
	seen := map[int]bool{}
	for _, m := range order {
		add(t, s, device(1), gauge("a", now.Add(-time.Duration(m)*time.Minute), float64(m)))
		seen[m] = true
	}
	check := func(s *Store) {
		t.Helper()
		if got := instant(t, s, everything, "count_over_time(a[1d])", now); !strings.HasSuffix(got, fmt.Sprint(" ", len(seen))) {
			t.Errorf("got %q, want %d samples", got, len(seen))
		}
		if got := instant(t, s, everything, "a offset 10h", now); !strings.HasSuffix(got, " 600") {
			t.Errorf("ten hours ago: %q", got)
		}
	}
	check(s)
	closeStore(t, s)
	s = open(t, Config{Dir: s.cfg.Dir})
	check(s)
	if stored, err := s.Append(t.Context(), device(1), []Sample{gauge("a", now, 99)}); err != nil || stored != 0 {
		t.Errorf("another value at the same instant: stored %d, %v", stored, err)
	}
	if s.Stats().Refused[Conflict] != 1 {
		t.Errorf("stats say %v", s.Stats().Refused)
	}
}

func TestABoxCannotForgeTheMarkOfAnEndedSeries(t *testing.T) {
	s := open(t, Config{})
	now := time.Now()
	add(t, s, device(1), gauge("a", now, math.Float64frombits(0x7ff0000000000002)))
	if got := instant(t, s, everything, "a", now); !strings.HasSuffix(got, " NaN") {
		t.Errorf("got %q, want NaN", got)
	}
}

func TestNoQueryReachesAnotherDevice(t *testing.T) {
	s := open(t, Config{})
	now := time.Now().Truncate(time.Second)
	mine, theirs := device(1), device(2)
	for i := range 30 {
		at := now.Add(time.Duration(i-29) * 10 * time.Second)
		add(t, s, mine, gauge("m", at, 1, "k", "mine"), gauge("c_total", at, float64(i)))
		add(t, s, theirs, gauge("m", at, 1e9, "k", "secret"), gauge("c_total", at, 1e9*float64(i)), gauge("secret_only", at, 1e9), gauge("target_info", at, 1, "os", "secret"))
	}
	scope := Scope{Devices: []croft.DeviceID{mine}}
	for _, query := range []string{
		`m`, `{__name__=~".+"}`, `{device=~".+"}`, `m{device!=""}`, `m{device="` + string(theirs) + `"}`, `m{device!="` + string(mine) + `"}`,
		`m{device=~".+"} or m{device!~"x"}`, `m or on() secret_only`, `m unless on(k) m{k="secret"}`, `m and on() m{k="secret"}`, `secret_only`,
		`absent(m{k="mine"})`, `absent(secret_only)`, `absent_over_time(secret_only[5m])`,
		`label_replace(m, "device", "` + string(theirs) + `", "device", ".*")`, `label_join(m, "device", "", "k")`,
		`label_replace(m{device=""}, "x", "$1", "device", "(.*)")`,
		`sum(m)`, `max(m)`, `topk(5, m)`, `bottomk(5, m)`, `count(m)`, `quantile(1, m)`, `stddev(m)`, `count_values("v", m)`, `group by (device) (m)`, `sum without (device) (m)`,
		`sum by (device) (rate(c_total[2m]))`, `increase(c_total[2m])`,
		`m offset 1m`, `m offset -1m`, `m @ ` + fmt.Sprint(now.Unix()), `m @ start()`, `m @ end()`,
		`max_over_time(m[5m:10s])`, `max_over_time(sum(m)[5m:10s])`, `max_over_time((m or secret_only)[2m:10s] offset 10s)`, `sum_over_time(max_over_time(m[1m:10s])[2m:10s])`,
		`m * on() group_left(k) m`, `m > bool on() secret_only`, `scalar(secret_only)`, `vector(scalar(secret_only))`,
		`last_over_time(m[5m])`, `timestamp(secret_only)`, `histogram_quantile(0.9, m)`, `sort_desc(m)`, `-m`, `(((m)))`, `clamp_min(m, 1)`, `predict_linear(m[5m], 60)`,
		`info(m)`, `info(m, {os=~".+"})`,
	} {
		series, err := s.Instant(t.Context(), scope, query, now)
		if err != nil {
			if !strings.Contains(err.Error(), "many-to-many") && !strings.Contains(err.Error(), "duplicate series") && !strings.Contains(err.Error(), "info") {
				t.Errorf("%s: %v", query, err)
			}
			if strings.Contains(err.Error(), "secret\"") || strings.Contains(err.Error(), string(theirs)) {
				t.Errorf("%s: the error tells of another device: %v", query, err)
			}
			continue
		}
		for _, line := range series {
			for name, v := range line.Labels {
				if strings.Contains(v, "secret") || v == string(theirs) && !strings.Contains(query, string(theirs)) {
					t.Errorf("%s: answer has %s=%q", query, name, v)
				}
			}
			for _, p := range line.Points {
				if p.Value >= 1e7 && p.Value != float64(now.Unix()) {
					t.Errorf("%s: answer has the value %v", query, p.Value)
				}
			}
		}
	}
	// What must be the same as if the other device did not exist.
	for query, want := range map[string]string{
		`count(m)`:                                        "1",
		`absent(secret_only)`:                             "1",
		`m{device="` + string(theirs) + `"}`:              "",
		`m{device!="` + string(mine) + `"}`:               "",
		`max_over_time(count(m)[2m:10s])`:                 "1",
		`count(m or secret_only)`:                         "1",
		`m unless on() m{device!~"` + string(mine) + `"}`: fmt.Sprintf("__name__=m device=%s k=mine 1", mine),
	} {
		if got := instant(t, s, scope, query, now); got != want {
			t.Errorf("%s = %q, want %q", query, got, want)
		}
		if got := instant(t, s, everything, query, now); got == want {
			t.Errorf("%s = %q for one who sees all too: the test proves nothing", query, got)
		}
	}
	if got := instant(t, s, Scope{}, `{__name__=~".+"}`, now); got != "" {
		t.Errorf("the empty scope sees %q", got)
	}
	if _, err := s.Instant(t.Context(), Scope{Devices: []croft.DeviceID{".*"}}, "m", now); err == nil {
		t.Error("a scope with a regular expression in it was taken")
	}
	if got := instant(t, s, Scope{Devices: []croft.DeviceID{mine, theirs, device(3)}}, "count(m)", now); got != "2" {
		t.Errorf("the scope of two devices sees %s, want 2", got)
	}
}

func TestLimitsOfQueries(t *testing.T) {
	s := open(t, Config{QuerySamples: 100})
	now := time.Now()
	for i := range 20 {
		add(t, s, device(1), gauge("a", now.Add(time.Duration(i-20)*time.Second), 1))
	}
	for name, err := range map[string]error{
		"more samples than allowed":                      second(s.Range(t.Context(), everything, "a", now.Add(-time.Minute), now.Add(5*time.Minute), time.Second)),
		"more steps than allowed":                        second(s.Range(t.Context(), everything, "a", now.Add(-12_000*time.Second), now, time.Second)),
		"no step":                                        second(s.Range(t.Context(), everything, "a", now, now, 0)),
		"end before start":                               second(s.Range(t.Context(), everything, "a", now, now.Add(-time.Hour), time.Minute)),
		"a long expression":                              second(s.Instant(t.Context(), everything, strings.Repeat("(", maxQuery)+"a", now)),
		"a subquery of a year by milliseconds":           second(s.Instant(t.Context(), everything, "count_over_time(vector(1)[1y:1ms])", now)),
		"a subquery of milliseconds within one of years": second(s.Instant(t.Context(), everything, "max_over_time(max_over_time(vector(1)[1s:1ms])[2y:1d])", now)),
		"a bad expression":                               second(s.Instant(t.Context(), everything, "a{", now)),
		"a text":                                         second(s.Instant(t.Context(), everything, `"a"`, now)),
		"the year -292277022399":                         second(s.Instant(t.Context(), everything, "a", time.Unix(math.MinInt64/2, 0))),
	} {
		if err == nil {
			t.Errorf("%s was answered", name)
		}
	}
}

func second[A any](_ A, err error) error { return err }

func TestQueriesWaitForATurnAndGiveUp(t *testing.T) {
	g := make(gate, 1)
	if _, err := g.Insert(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Insert(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("the second query got %v", err)
	}
	g.Delete(0)
	if _, err := g.Insert(t.Context(), ""); err != nil {
		t.Error(err)
	}
}

func TestDeleteRemovesADevicesPast(t *testing.T) {
	s := open(t, Config{})
	now := time.Now()
	for d := 1; d <= 2; d++ {
		add(t, s, device(d), gauge("a", now.Add(-time.Hour), 1), gauge("a", now, 2))
	}
	if err := s.Delete(t.Context(), device(1), now.Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	got := instant(t, s, everything, "sum by (device) (count_over_time(a[2h]))", now)
	want := []string{fmt.Sprintf("device=%s 1", device(1)), fmt.Sprintf("device=%s 2", device(2))}
	slices.Sort(want)
	if got != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	s := open(t, Config{})
	if _, err := New(Config{Dir: s.cfg.Dir}); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("the second store got %v", err)
	}
}

func TestRunClosesTheStore(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Hour)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := s.Append(t.Context(), device(1), nil); err == nil {
			t.Error("a closed store took samples")
		}
		if _, err := s.Instant(t.Context(), everything, "a", time.Now()); err == nil {
			t.Error("a closed store answered")
		}
	})
}
