package fleetapi

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestBuilder(t *testing.T) {
	var b Builder
	if b.Take() != nil {
		t.Fatal("an empty builder has a batch")
	}
	cpu := func(mode string, v float64) Reading {
		return Reading{Name: "croft_cpu_seconds_total", Labels: []Label{{"mode", mode}}, Value: v, Counter: true}
	}
	load := func(v float64) Reading { return Reading{Name: "croft_load1", Value: v} }
	net := func(first, second Label) Reading {
		return Reading{Name: "croft_network_bytes_total", Labels: []Label{first, second}, Value: 7, Counter: true}
	}
	in, eth0 := Label{"direction", "in"}, Label{"interface", "eth0"}
	for i, readings := range [][]Reading{
		{load(1), cpu("user", 10), net(eth0, in)},
		{cpu("user", 11), cpu("idle", 90), net(in, eth0)},
		{load(math.NaN()), cpu("idle", 91)},
	} {
		at := testTime.Add(time.Duration(i)*time.Minute + 999*time.Microsecond)
		if err := b.Add(at.In(time.FixedZone("east", 7200)), readings); err != nil {
			t.Fatal(err)
		}
	}
	if b.Len() != 3 {
		t.Errorf("Len = %d, want 3", b.Len())
	}
	nan := math.NaN()
	want := &Batch{
		Times: []time.Time{testTime, testTime.Add(time.Minute), testTime.Add(2 * time.Minute)},
		Series: []Series{
			{"croft_cpu_seconds_total", []Label{{"mode", "idle"}}, true, []float64{nan, 90, 91}},
			{"croft_cpu_seconds_total", []Label{{"mode", "user"}}, true, []float64{10, 11, nan}},
			{"croft_load1", nil, false, []float64{1, nan, nan}},
			{"croft_network_bytes_total", []Label{in, eth0}, true, []float64{7, 7, nan}},
		},
	}
	got := b.Take()
	if diff := cmp.Diff(want, got, equateNaNs); diff != "" {
		t.Error("-want +got\n" + diff)
	}
	if b.Len() != 0 || b.Take() != nil {
		t.Error("the batch was taken twice")
	}
}

func TestBuilderLeavesOutWhatIsUnsound(t *testing.T) {
	var b Builder
	err := b.Add(testTime, []Reading{
		{Name: "croft_a", Value: 1},
		{Name: "up", Value: 1},
		{Name: "croft_b", Value: math.Inf(-1)},
		{Name: "croft_c", Labels: []Label{{"device", "x"}}, Value: 1},
		{Name: "croft_d", Labels: []Label{{"a", "1"}, {"a", "2"}}, Value: 1},
		{Name: "croft_a", Value: 2},
		{Name: "croft_e", Value: 5},
	})
	for _, want := range []string{`"up"`, `"croft_b"`, `"croft_c"`, `"a" follows "a"`, `"croft_a" was read twice`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s: %v", want, err)
		}
	}
	if errors.Is(err, ErrBatchDone) || ReasonOf(err) != ReasonForeign {
		t.Errorf("error is %v (%s)", err, ReasonOf(err))
	}
	want := []Series{{Name: "croft_a", Values: []float64{1}}, {Name: "croft_e", Values: []float64{5}}}
	if diff := cmp.Diff(want, b.Take().Series); diff != "" {
		t.Error("-want +got\n" + diff)
	}
}

func TestBuilderKnowsWhenABatchIsDone(t *testing.T) {
	many := func(n int) (readings []Reading) {
		for i := range n {
			readings = append(readings, Reading{Name: fmt.Sprintf("croft_r%05d", i), Value: 1})
		}
		return readings
	}
	for _, tc := range []struct {
		name  string
		at    time.Time
		count int
		want  error
	}{
		{"a later instant joins", testTime.Add(time.Millisecond), 1, nil},
		{"an instant within the same millisecond does not", testTime.Add(time.Microsecond), 1, ErrBatchDone},
		{"one before it, after the clock went back, does not", testTime.Add(-time.Hour), 1, ErrBatchDone},
		{"one with too many new series does not", testTime.Add(time.Minute), MaxSeries + 1, ErrBatchDone},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b Builder
			if err := b.Add(testTime, many(1)); err != nil {
				t.Fatal(err)
			}
			if err := b.Add(tc.at, many(tc.count)); !errors.Is(err, tc.want) {
				t.Errorf("Add = %v, want %v", err, tc.want)
			}
			if want := map[bool]int{true: 2, false: 1}[tc.want == nil]; b.Len() != want {
				t.Errorf("Len = %d, want %d", b.Len(), want)
			}
		})
	}
	t.Run("the first instant takes what there is room for", func(t *testing.T) {
		var b Builder
		if err := b.Add(testTime, many(MaxSeries+1)); ReasonOf(err) != ReasonOversized {
			t.Errorf("Add = %v", err)
		}
		if got := len(b.Take().Series); got != MaxSeries {
			t.Errorf("batch has %d series, want %d", got, MaxSeries)
		}
	})
	t.Run("values have a bound of their own", func(t *testing.T) {
		var b Builder
		n := 0
		for b.Add(testTime.Add(time.Duration(n)*time.Second), many(1000)) == nil {
			n++
		}
		if want := MaxValues / 1000; n != want {
			t.Errorf("%d instants of 1000 series fit, want %d", n, want)
		}
	})
	t.Run("no clock is that wrong", func(t *testing.T) {
		var b Builder
		if err := b.Add(time.Unix(-1, 0), many(1)); ReasonOf(err) != ReasonRange || b.Len() != 0 {
			t.Errorf("Add = %v", err)
		}
	})
}

// TestCodings says which of the forms each kind of numbers takes, and how much.
func TestCodings(t *testing.T) {
	for _, tc := range []struct {
		name   string
		values []float64
		how    coding
		size   int
	}{
		{"whole numbers", []float64{5, 6, 7}, codingDecimal, 3},
		{"hundredths", []float64{0.29, 0.57, 1.1}, codingDecimal | 2<<4, 3},
		{"millionths", []float64{0.000001, 0.000002}, codingDecimal | 6<<4, 2},
		{"large whole numbers", []float64{1 << 53, 1<<53 - 1}, codingDecimal, 9},
		{"powers of two", []float64{1.0 / 1024, 1.0 / 1024, 1.0 / 512}, codingXOR, 6},
		{"what never changes", []float64{math.Pi, math.Pi, math.Pi}, codingXOR, 11},
		{"noise", []float64{math.Pi, math.E, math.Sqrt2}, codingRaw, 24},
		{"huge numbers", []float64{1e300}, codingRaw, 8},
		{"the negative zero", []float64{math.Copysign(0, -1)}, codingXOR, 2},
		{"nothing", []float64{math.NaN()}, codingDecimal, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c coder
			if how := c.encode(tc.values); how != tc.how || len(c.shortest) != tc.size {
				t.Errorf("encode = %#x in %d bytes, want %#x in %d", how, len(c.shortest), tc.how, tc.size)
			}
		})
	}
}

// TestAnyBatchSurvivesTheWire draws batches of every shape and kind of number.
func TestAnyBatchSurvivesTheWire(t *testing.T) {
	value := rapid.OneOf(
		rapid.Just(math.NaN()),
		rapid.Custom(func(t *rapid.T) float64 { return float64(rapid.Int64().Draw(t, "integer")) }),
		rapid.Custom(func(t *rapid.T) float64 {
			return float64(rapid.Int64Range(-1e12, 1e12).Draw(t, "scaled")) / powers[rapid.IntRange(0, 12).Draw(t, "exponent")]
		}),
		rapid.Float64().Filter(func(v float64) bool { return !math.IsInf(v, 0) }),
	)
	name := rapid.StringMatching(`croft_[a-z0-9_]{0,20}`)
	label := rapid.Custom(func(t *rapid.T) Label {
		return Label{
			rapid.StringMatching(`l[a-z0-9_]{0,5}`).Draw(t, "label"),
			rapid.String().Filter(func(s string) bool { return labelValue(s) == nil }).Draw(t, "value"),
		}
	})
	byName := func(l Label) string { return l.Name }
	rapid.Check(t, func(t *rapid.T) {
		var b Builder
		at := time.UnixMilli(rapid.Int64Range(1, 4e12).Draw(t, "start"))
		for range rapid.IntRange(1, 12).Draw(t, "instants") {
			var readings []Reading
			for range rapid.IntRange(0, 12).Draw(t, "readings") {
				readings = append(readings, Reading{
					Name:    name.Draw(t, "name"),
					Labels:  rapid.SliceOfNDistinct(label, 0, MaxLabels, byName).Draw(t, "labels"),
					Value:   value.Draw(t, "value"),
					Counter: rapid.Bool().Draw(t, "counter"),
				})
			}
			_ = b.Add(at, readings) // a reading may be there twice
			at = at.Add(time.Duration(rapid.Int64Range(1, 1e7).Draw(t, "step")) * time.Millisecond)
		}
		batch := b.Take()
		batch.Epoch, batch.Seq, batch.BootID, batch.Interval = 1, 1, testBoot, MinInterval
		raw, err := Encode(batch)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse[Batch](raw)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(batch.Times, got.Times); diff != "" {
			t.Fatal("-sent +received\n" + diff)
		}
		if !slices.EqualFunc(batch.Series, got.Series, sameSeries) {
			t.Fatalf("sent %v, received %v", batch.Series, got.Series)
		}
	})
}

// sameSeries compares to the last bit.
func sameSeries(a, b Series) bool {
	return a.Name == b.Name && slices.Equal(a.Labels, b.Labels) && a.Counter == b.Counter &&
		slices.EqualFunc(a.Values, b.Values, func(a, b float64) bool {
			return math.Float64bits(a) == math.Float64bits(b) || math.IsNaN(a) && math.IsNaN(b)
		})
}

// TestMinuteIsSmall holds the size of a typical minute, so that a change that
// makes a hundred thousand boxes talk more is seen.
func TestMinuteIsSmall(t *testing.T) {
	for instants, most := range map[int]int{1: 1000, 4: 1600, 6: 2200, 60: 15000} {
		batch := newModel(7).batch(t, instants)
		if got := len(batch.Series); got != 80 {
			t.Errorf("the model has %d series, want 80", got)
		}
		if got := len(mustEncode(t, batch)); got > most {
			t.Errorf("a minute of 80 series, read %d times, has %d bytes; want at most %d", instants, got, most)
		}
	}
}
