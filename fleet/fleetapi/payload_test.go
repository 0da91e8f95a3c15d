package fleetapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/croft-cloud/croft"
)

var update = flag.Bool("update", false, "record the payloads of testdata that are not there yet")

const (
	testDevice = croft.DeviceID("abcdefghijklmnopqrstuvwxyz234567")
	testJob    = "job_01KAKR9Z4N3V9Q2D5Y0W8KXR7M"
)

var testTime = time.Date(2026, 11, 21, 12, 0, 0, 123e6, time.UTC)

// sound is one payload of each subject, with every member set.
func sound() []Payload {
	nan := math.NaN()
	return []Payload{
		&Hello{
			Journal: 1<<62 + 17, Epoch: 17, Version: 1, At: testTime, Synced: true, BootID: testBoot,
			Release: "1.4.0", Slot: croft.SlotB, Board: "uefi-x86", Serial: "CRF 2026-0042",
			Facts: []Label{{"cpu_model", "AMD Ryzen™ 5"}, {"gpu_model", ""}, {"memory_bytes", "16384000000"}},
		},
		&State{Presence: Lost, Journal: 1<<62 + 17, Epoch: 17},
		&Batch{
			Epoch: 17, Seq: 421, BootID: testBoot, Synced: true, Interval: 15 * time.Second,
			Times: []time.Time{testTime, testTime.Add(15 * time.Second), testTime.Add(30*time.Second + 7*time.Millisecond), testTime.Add(44 * time.Second)},
			Series: []Series{
				{Name: "croft_clock_offset_seconds", Values: []float64{0.1 + 0.2, math.Pi, -math.SmallestNonzeroFloat64, math.MaxFloat64}},
				{Name: "croft_cpu_seconds_total", Labels: []Label{{"mode", "idle"}}, Counter: true, Values: []float64{86400.07, 86455.93, 86511.8, 86567.66}},
				{Name: "croft_cpu_seconds_total", Labels: []Label{{"mode", "user"}}, Counter: true, Values: []float64{1234.5, 1236.25, nan, 1240}},
				{Name: "croft_gpu_busy_ratio", Labels: []Label{{"gpu", "0"}}, Values: []float64{0.5, 0.0625, 0.5, 1e300}},
				{Name: "croft_load1", Values: []float64{nan, nan, nan, nan}},
				{Name: "croft_network_bytes_total", Labels: []Label{{"direction", "in"}, {"interface", "eth0"}}, Counter: true, Values: []float64{1 << 52, 1<<52 + 1, 0, 9}},
				{Name: "croft_temperature_celsius", Labels: []Label{{"sensor", "Küche ☕"}}, Values: []float64{-40, 45.125, math.Copysign(0, -1), 45}},
			},
		},
		&Event{
			Origin: Origin{Journal: 1<<62 + 17, Seq: 9}, At: testTime, Synced: true, Kind: "lease_started",
			Severity: SeverityInfo, Fields: []Label{{"dseq", "61042"}, {"tenant", "akash1…"}},
		},
		&LogLines{
			Lines:   []LogLine{{testTime, "warn", `chain is silent error="deadline exceeded"`}, {testTime.Add(time.Second), "info", ""}},
			Dropped: 3,
		},
		&JobStatus{
			Origin: Origin{Journal: 1<<62 + 17, Seq: 10}, At: testTime, Synced: true, Job: testJob, State: InProgress,
			Version: 2, Detail: "Waits until two leases have ended.", Results: []Label{{"leases", "2"}},
		},
		&Desired{
			Version: 8, Claimed: true, Name: "Box im Keller 👨‍👩‍👧", Interval: 15 * time.Second, Release: "1.4.1",
			Labels: []Label{{"region", "eu-west"}, {"ring", "canary"}},
		},
		&Job{ID: testJob, Kind: KindBundle, Args: []Label{{"days", "3"}}, Deadline: testTime.Add(time.Hour), Canceled: true},
	}
}

var equateNaNs = cmpopts.EquateNaNs()

func mustEncode(tb testing.TB, p Payload) []byte {
	tb.Helper()
	raw, err := Encode(p)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// plainOf is the message in a payload's bytes.
func plainOf(tb testing.TB, s Subject, raw []byte) []byte {
	tb.Helper()
	if !deliveries[s].packed {
		return raw
	}
	plain, err := unpack(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return plain
}

// wrap is the reverse of plainOf.
func wrap(s Subject, plain []byte) []byte {
	if deliveries[s].packed {
		return pack(plain)
	}
	return plain
}

func TestPayloadsSurviveTheWire(t *testing.T) {
	for _, p := range sound() {
		t.Run(string(p.Subject()), func(t *testing.T) {
			got, err := Decode(p.Subject(), mustEncode(t, p))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p, got, equateNaNs); diff != "" {
				t.Error("-sent +received\n" + diff)
			}
		})
	}
}

// TestRecordings decodes what version 1 sent on the day it was fixed. These
// files are never rewritten: boxes in the field send the like.
func TestRecordings(t *testing.T) {
	for _, p := range sound() {
		t.Run(string(p.Subject()), func(t *testing.T) {
			raw := mustEncode(t, p)
			file := recording(p.Subject())
			old, err := os.ReadFile(file)
			if *update && errors.Is(err, os.ErrNotExist) {
				old, err = raw, os.WriteFile(file, raw, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode(p.Subject(), old)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p, got, equateNaNs); diff != "" {
				t.Error("-recorded +decoded\n" + diff)
			}
			// What zstd makes of a message may change; the message must not.
			if want, got := plainOf(t, p.Subject(), old), plainOf(t, p.Subject(), raw); !bytes.Equal(want, got) {
				t.Errorf("message is now\n%s\nwant\n%s", hex.Dump(got), hex.Dump(want))
			}
		})
	}
}

func recording(s Subject) string {
	return filepath.Join("testdata", "v1", strings.ReplaceAll(string(s), "/", "-")+".bin")
}

func TestWordListIsFixed(t *testing.T) {
	const want = "34991fc1cd38d4b42dfcc21115c52e102290d4435c292754816f2f1e9b49f119"
	if got := fmt.Sprintf("%x", sha256.Sum256(words1)); got != want {
		t.Errorf("words1.txt has hash %s, want %s: old frames cannot be read with another list", got, want)
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	for _, p := range sound() {
		t.Run(string(p.Subject()), func(t *testing.T) {
			plain := plainOf(t, p.Subject(), mustEncode(t, p))
			plain = protowire.AppendVarint(protowire.AppendTag(plain, 900, protowire.VarintType), 7)
			plain = protowire.AppendString(protowire.AppendTag(plain, 901, protowire.BytesType), "later")
			plain = protowire.AppendFixed64(protowire.AppendTag(plain, 902, protowire.Fixed64Type), 7)
			got, err := Decode(p.Subject(), wrap(p.Subject(), plain))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p, got, equateNaNs); diff != "" {
				t.Error("-sent +received\n" + diff)
			}
		})
	}
}

// TestCutPayloads cuts every payload at every byte: what is left is refused, or
// is whole without what was cut off; it never panics.
func TestCutPayloads(t *testing.T) {
	for _, p := range sound() {
		plain := plainOf(t, p.Subject(), mustEncode(t, p))
		for n := range plain {
			got, err := Decode(p.Subject(), wrap(p.Subject(), plain[:n]))
			if err == nil {
				mustEncode(t, got)
			} else if ReasonOf(err) == ReasonOther {
				t.Fatalf("%s cut at %d: no reason: %v", p.Subject(), n, err)
			}
		}
	}
}

func TestWhatIsUnsoundIsNotSent(t *testing.T) {
	labels := func(n int) []Label {
		list := make([]Label, n)
		for i := range list {
			list[i] = Label{fmt.Sprintf("l%04d", i), "x"}
		}
		return list
	}
	hello := func(change func(*Hello)) Payload { p := *sound()[0].(*Hello); change(&p); return &p }
	event := func(change func(*Event)) Payload { p := *sound()[3].(*Event); change(&p); return &p }
	status := func(change func(*JobStatus)) Payload { p := *sound()[5].(*JobStatus); change(&p); return &p }
	desired := func(change func(*Desired)) Payload { p := *sound()[6].(*Desired); change(&p); return &p }
	batch := func(change func(*Batch)) Payload {
		p := *sound()[2].(*Batch)
		p.Times, p.Series = slices.Clone(p.Times), slices.Clone(p.Series)
		change(&p)
		return &p
	}
	for _, tc := range []struct {
		name string
		p    Payload
		want Reason
	}{
		{"a hello without a journal", hello(func(h *Hello) { h.Journal = 0 }), ReasonMissing},
		{"an epoch that no database can hold", hello(func(h *Hello) { h.Epoch = 1 << 63 }), ReasonRange},
		{"a hello without a time", hello(func(h *Hello) { h.At = time.Time{} }), ReasonMissing},
		{"a time before 1970", hello(func(h *Hello) { h.At = time.Unix(-1, 0) }), ReasonRange},
		{"a time after 2199", hello(func(h *Hello) { h.At = time.Date(2201, 1, 1, 0, 0, 0, 0, time.UTC) }), ReasonRange},
		{"a time with microseconds", hello(func(h *Hello) { h.At = testTime.Add(time.Microsecond) }), ReasonRange},
		{"no boot id", hello(func(h *Hello) { h.BootID = "" }), ReasonMissing},
		{"a boot id in upper case", hello(func(h *Hello) { h.BootID = strings.ToUpper(testBoot) }), ReasonText},
		{"a boot id without dashes", hello(func(h *Hello) { h.BootID = strings.ReplaceAll(testBoot, "-", "") }), ReasonText},
		{"no release", hello(func(h *Hello) { h.Release = "" }), ReasonMissing},
		{"a release that is a path", hello(func(h *Hello) { h.Release = "../../etc" }), ReasonText},
		{"a third slot", hello(func(h *Hello) { h.Slot = "c" }), ReasonText},
		{"no slot", hello(func(h *Hello) { h.Slot = "" }), ReasonMissing},
		{"HTML as board", hello(func(h *Hello) { h.Board = "<b>" }), ReasonText},
		{"a serial number of two lines", hello(func(h *Hello) { h.Serial = "a\nb" }), ReasonText},
		{"a serial number that is not UTF-8", hello(func(h *Hello) { h.Serial = "a\xff" }), ReasonText},
		{"a serial number that turns the text around it", hello(func(h *Hello) { h.Serial = "a\u202eb" }), ReasonText},
		{"a long serial number", hello(func(h *Hello) { h.Serial = strings.Repeat("x", MaxName+1) }), ReasonText},
		{"too many facts", hello(func(h *Hello) { h.Facts = labels(MaxFacts + 1) }), ReasonOversized},
		{"facts out of order", hello(func(h *Hello) { h.Facts = []Label{{"b", ""}, {"a", ""}} }), ReasonMalformed},
		{"a fact twice", hello(func(h *Hello) { h.Facts = []Label{{"a", "1"}, {"a", "2"}} }), ReasonMalformed},
		{"a fact without a name", hello(func(h *Hello) { h.Facts = []Label{{"", "1"}} }), ReasonMissing},
		{"a fact whose name begins with a digit", hello(func(h *Hello) { h.Facts = []Label{{"1a", "1"}} }), ReasonText},
		{"a long fact", hello(func(h *Hello) { h.Facts = []Label{{"a", strings.Repeat("x", maxFact+1)}} }), ReasonText},

		{"a state without presence", &State{Journal: 1, Epoch: 1}, ReasonMissing},
		{"a presence nobody knows", &State{Presence: "asleep", Journal: 1, Epoch: 1}, ReasonText},

		{"an event without a number", event(func(e *Event) { e.Seq = 0 }), ReasonMissing},
		{"an event without a kind", event(func(e *Event) { e.Kind = "" }), ReasonMissing},
		{"a kind with SQL", event(func(e *Event) { e.Kind = "a'; drop table" }), ReasonText},
		{"a severity nobody knows", event(func(e *Event) { e.Severity = "fatal" }), ReasonText},
		{"a long field", event(func(e *Event) { e.Fields = []Label{{"a", strings.Repeat("x", MaxText+1)}} }), ReasonText},

		{"too many lines of the log", &LogLines{Lines: make([]LogLine, MaxLogLines+1)}, ReasonOversized},
		{"a line of the log without a time", &LogLines{Lines: []LogLine{{Level: "info"}}}, ReasonMissing},
		{"a line of the log that colours terminals", &LogLines{Lines: []LogLine{{testTime, "info", "\x1b[31m"}}}, ReasonText},

		{"a status of no job", status(func(s *JobStatus) { s.Job = "" }), ReasonMissing},
		{"a status of something else", status(func(s *JobStatus) { s.Job = "usr" + testJob[3:] }), ReasonMalformed},
		{"a status that removes the box", status(func(s *JobStatus) { s.State = Removed }), ReasonForeign},
		{"a status nobody knows", status(func(s *JobStatus) { s.State = "DONE" }), ReasonText},

		{"an interval of nothing", desired(func(d *Desired) { d.Interval = 0 }), ReasonMissing},
		{"a short interval", desired(func(d *Desired) { d.Interval = time.Millisecond }), ReasonRange},
		{"a long interval", desired(func(d *Desired) { d.Interval = 2 * time.Hour }), ReasonRange},
		{"an interval with microseconds", desired(func(d *Desired) { d.Interval = time.Second + time.Microsecond }), ReasonRange},

		{"a batch without instants", batch(func(b *Batch) { b.Times = nil }), ReasonMissing},
		{"an instant after 2199", batch(func(b *Batch) { b.Times[3] = time.Date(2201, 1, 1, 0, 0, 0, 0, time.UTC) }), ReasonRange},
		{"instants that go back", batch(func(b *Batch) { b.Times[1] = b.Times[0] }), ReasonMalformed},
		{"too many instants", batch(func(b *Batch) { b.Times = make([]time.Time, MaxInstants+1) }), ReasonOversized},
		{"too many series", batch(func(b *Batch) { b.Series = make([]Series, MaxSeries+1) }), ReasonOversized},
		{"too many values", batch(func(b *Batch) { b.Times, b.Series = make([]time.Time, 1000), make([]Series, 1000) }), ReasonOversized},
		{"a name that is the fleet's", batch(func(b *Batch) { b.Series[0].Name = "up" }), ReasonForeign},
		{"a name in upper case", batch(func(b *Batch) { b.Series[0].Name = "croft_Load" }), ReasonText},
		{"a long name", batch(func(b *Batch) { b.Series[0].Name = "croft_" + strings.Repeat("x", maxName) }), ReasonText},
		{"a label that says which device", batch(func(b *Batch) { b.Series[0].Labels = []Label{{"device", "x"}} }), ReasonForeign},
		{"a label of Prometheus' own", batch(func(b *Batch) { b.Series[0].Labels = []Label{{"__name__", "up"}} }), ReasonText},
		{"a label without a value", batch(func(b *Batch) { b.Series[0].Labels = []Label{{"a", ""}} }), ReasonMissing},
		{"a label of two lines", batch(func(b *Batch) { b.Series[0].Labels = []Label{{"a", "b\nc"}} }), ReasonText},
		{"labels out of order", batch(func(b *Batch) { b.Series[0].Labels = []Label{{"b", "1"}, {"a", "1"}} }), ReasonMalformed},
		{"too many labels", batch(func(b *Batch) { b.Series[0].Labels = labels(MaxLabels + 1) }), ReasonOversized},
		{"series out of order", batch(func(b *Batch) { b.Series[0], b.Series[1] = b.Series[1], b.Series[0] }), ReasonMalformed},
		{"a series twice", batch(func(b *Batch) { b.Series[1] = b.Series[0] }), ReasonMalformed},
		{"a value too few", batch(func(b *Batch) { b.Series[0].Values = []float64{1} }), ReasonMalformed},
		{"an infinite value", batch(func(b *Batch) { b.Series[0].Values = []float64{1, 2, 3, math.Inf(1)} }), ReasonRange},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw, err := Encode(tc.p)
			if got := ReasonOf(err); err == nil || got != tc.want {
				t.Errorf("Encode = %d bytes, %v (%s); want %s", len(raw), err, got, tc.want)
			}
		})
	}
}

func TestWhatIsTooLargeIsNotSent(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) string { // about 6 bits of it in each byte
		text := make([]byte, n)
		for i := range text {
			text[i] = ' ' + byte(rng.IntN(64))
		}
		return string(text)
	}
	log := new(LogLines)
	for range MaxLogLines {
		log.Lines = append(log.Lines, LogLine{testTime, "info", noise(MaxText)})
	}
	batch := &Batch{Epoch: 1, Seq: 1, BootID: testBoot, Interval: time.Second, Times: []time.Time{testTime}}
	for i := range MaxSeries {
		s := Series{Name: fmt.Sprintf("croft_%05d", i), Values: []float64{1}}
		for l := range MaxLabels {
			s.Labels = append(s.Labels, Label{fmt.Sprintf("l%d", l), noise(maxLabel)})
		}
		batch.Series = append(batch.Series, s)
	}
	for _, p := range []Payload{log, batch} {
		raw, err := Encode(p)
		if err == nil || ReasonOf(err) != ReasonOversized {
			t.Errorf("%s: Encode = %d bytes, %v; want %s", p.Subject(), len(raw), err, ReasonOversized)
		}
	}
}

// fields writes a message field by field.
type fields []byte

func (f fields) num(n protowire.Number, v uint64) fields {
	return protowire.AppendVarint(protowire.AppendTag(f, n, protowire.VarintType), v)
}

func (f fields) bytes(n protowire.Number, v string) fields {
	return protowire.AppendString(protowire.AppendTag(f, n, protowire.BytesType), v)
}

// header begins the message of a batch whose instants are 1,000 ms apart.
func header() fields {
	return fields{}.num(1, 1).num(2, 1).num(3, 1).bytes(4, strings.Repeat("\x01", 16)).num(6, 1000).num(7, 1_700_000_000_000)
}

// plainBatch is the message of a batch of two instants without series.
func plainBatch() fields { return header().bytes(8, "\x00") }

func TestWhatIsUnsoundIsRefused(t *testing.T) {
	state := fields{}.num(1, 1).bytes(2, "online").num(3, 5).num(4, 6)
	huge := strings.Repeat("\xff", 9) + "\x01"
	series := func(words, keys, codings, gaps, values string) []byte {
		return plainBatch().bytes(9, words).bytes(10, keys).bytes(11, codings).bytes(12, gaps).bytes(13, values)
	}
	for _, tc := range []struct {
		name  string
		s     Subject
		plain []byte
		want  Reason // empty: accepted
	}{
		{"a sound state", SubjectState, state, ""},
		{"nothing at all", SubjectState, nil, ReasonMalformed},
		{"no version", SubjectState, state[2:], ReasonMalformed},
		{"version zero", SubjectState, fields{}.num(1, 0), ReasonMalformed},
		{"a version of tomorrow", SubjectState, fields{}.num(1, Version+1).bytes(2, "\xff"), ReasonVersion},
		{"text where a number should be", SubjectState, fields{}.num(1, 1).bytes(2, "online").bytes(3, "5").num(4, 6), ReasonMalformed},
		{"a number where text should be", SubjectState, fields{}.num(1, 1).num(2, 1).num(3, 5).num(4, 6), ReasonMalformed},
		{"a member twice", SubjectState, slices.Concat(state, fields{}.num(4, 7)), ReasonMalformed},
		{"field number zero", SubjectState, slices.Concat(state, fields{0, 0}), ReasonMalformed},
		{"a group that does not end", SubjectState, protowire.AppendTag(slices.Clone(state), 9, protowire.StartGroupType), ReasonMalformed},
		{"a journal beyond 63 bits", SubjectState, fields{}.num(1, 1).bytes(2, "online").num(3, math.MaxUint64).num(4, 6), ReasonRange},
		{"a list of numbers", SubjectHello, fields{}.num(1, 1).num(12, 7), ReasonMalformed},
		{"a label with a number as value", SubjectHello, fields{}.num(1, 1).bytes(12, string(fields{}.bytes(1, "a").num(2, 7))), ReasonMalformed},
		{"a label cut off", SubjectHello, fields{}.num(1, 1).bytes(12, "\x0a\x05a"), ReasonMalformed},
		{"more lines of the log than allowed", SubjectLog, slices.Concat(fields{}.num(1, 1), bytes.Repeat(fields{}.bytes(2, ""), MaxLogLines+1)), ReasonOversized},
		{"too many bytes", SubjectState, slices.Concat(state, make(fields, SubjectState.MaxPayload())), ReasonOversized},
		{"an interval that would overflow", SubjectDesired, fields{}.num(1, 1).num(2, 1).num(5, math.MaxUint64), ReasonRange},
		{"a claim that is neither yes nor no", SubjectDesired, fields{}.num(1, 1).num(2, 1).num(3, 2).num(5, 1000), ReasonRange},
		{"a deadline after 2199", SubjectJob, fields{}.num(1, 1).bytes(2, testJob).bytes(3, "reboot").num(5, 1<<50), ReasonRange},
		{"a job of a kind we do not know", SubjectJob, fields{}.num(1, 1).bytes(2, testJob).bytes(3, "levitate"), ""},
		{"a boot id of 15 bytes", SubjectReadings, fields{}.num(1, 1).num(2, 1).num(3, 1).bytes(4, strings.Repeat("\x01", 15)), ReasonMalformed},

		{"a batch without series", SubjectReadings, plainBatch(), ""},
		{"one series", SubjectReadings, series("croft_a", "\x00\x00", "\x00", "", "\x02\x02"), ""},
		{"one series with a gap", SubjectReadings, series("croft_a", "\x00\x00", "\x02", "\x02", "\x02"), ""},
		{"an instant that is the one before", SubjectReadings, header().bytes(8, "\xcf\x0f"), ReasonMalformed},
		{"a step that overflows", SubjectReadings, header().bytes(8, huge), ReasonRange},
		{"a step cut off", SubjectReadings, header().bytes(8, "\x80"), ReasonMalformed},
		{"more instants than allowed", SubjectReadings, header().bytes(8, strings.Repeat("\x00", MaxInstants)), ReasonOversized},
		{"more series than allowed", SubjectReadings, series("croft_a", "", strings.Repeat("\x00", MaxSeries+1), "", ""), ReasonOversized},
		{"more words than series can have", SubjectReadings, series(strings.Repeat("\n", 20), "\x00\x00", "\x00", "", "\x02\x02"), ReasonOversized},
		{"words and no series", SubjectReadings, series("croft_a", "", "", "", ""), ReasonMalformed},
		{"a word that no series has", SubjectReadings, series("croft_a\ncroft_b", "\x00\x00", "\x00", "", "\x02\x02"), ReasonMalformed},
		{"a word beyond the list", SubjectReadings, series("croft_a", "\x00\x02", "\x00", "", "\x02\x02"), ReasonMalformed},
		{"the same word as before, before the first series", SubjectReadings, series("croft_a", "\x00\x01", "\x00", "", "\x02\x02"), ReasonMalformed},
		{"more labels than allowed", SubjectReadings, series("croft_a", "\x07\x00", "\x00", "", "\x02\x02"), ReasonOversized},
		{"keys of too many series", SubjectReadings, series("croft_a", "\x00\x00\x00", "\x00", "", "\x02\x02"), ReasonMalformed},
		{"keys of too few series", SubjectReadings, series("croft_a", "\x00", "\x00", "", "\x02\x02"), ReasonMalformed},
		{"a series twice", SubjectReadings, series("croft_a", "\x00\x00\x00\x01", "\x00\x00", "", "\x02\x02\x02\x02"), ReasonMalformed},
		{"a label that says which device", SubjectReadings, series("croft_a\ndevice\nx", "\x01\x00\x00\x00", "\x00", "", "\x02\x02"), ReasonForeign},
		{"values of too many series", SubjectReadings, series("croft_a", "\x00\x00", "\x00", "", "\x02\x02\x02"), ReasonMalformed},
		{"values of too few series", SubjectReadings, series("croft_a", "\x00\x00", "\x00", "", "\x02"), ReasonMalformed},
		{"gaps that are not there", SubjectReadings, series("croft_a", "\x00\x00", "\x02", "", "\x02"), ReasonMalformed},
		{"gaps of no series", SubjectReadings, series("croft_a", "\x00\x00", "\x00", "\x02", "\x02\x02"), ReasonMalformed},
		{"a coding we do not know", SubjectReadings, series("croft_a", "\x00\x00", "\x0c", "", "\x02\x02"), ReasonMalformed},
		{"an integer beyond 53 bits", SubjectReadings, series("croft_a", "\x00\x00", "\x00", "", huge+huge), ReasonRange},
		{"NaN in raw values", SubjectReadings, series("croft_a", "\x00\x00", "\x08", "", "\x01\x00\x00\x00\x00\x00\xf8\x7f12345678"), ReasonRange},
		{"infinity in raw values", SubjectReadings, series("croft_a", "\x00\x00", "\x08", "", "\x00\x00\x00\x00\x00\x00\xf0\x7f12345678"), ReasonRange},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Decode(tc.s, wrap(tc.s, tc.plain))
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || got != nil || ReasonOf(err) != tc.want):
				t.Errorf("Decode = %v, %v (%s); want %s", got, err, ReasonOf(err), tc.want)
			}
		})
	}
}

func TestParseKnowsItsType(t *testing.T) {
	raw := mustEncode(t, &Job{ID: testJob, Kind: KindReboot})
	if job, err := Parse[Job](raw); err != nil || job.ID != testJob {
		t.Errorf("Parse[Job] = %v, %v", job, err)
	}
	if state, err := Parse[State](raw); state != nil || err == nil {
		t.Errorf("Parse[State] of a job = %v, %v", state, err)
	}
}

func TestUnknownSubjectIsRefused(t *testing.T) {
	if p, err := Decode("up/usage", nil); p != nil || ReasonOf(err) != ReasonMalformed {
		t.Errorf("Decode = %v, %v", p, err)
	}
}

// frame packs without the bounds of pack.
func frame(tb testing.TB, plain []byte, options ...zstd.EOption) []byte {
	tb.Helper()
	e, err := zstd.NewWriter(nil, options...)
	if err != nil {
		tb.Fatal(err)
	}
	return e.EncodeAll(plain, nil)
}

// streamed is a frame that does not say how large its content is.
func streamed(tb testing.TB, plain []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	e, err := zstd.NewWriter(&out)
	if err != nil {
		tb.Fatal(err)
	}
	for part := range slices.Chunk(plain, 1<<16) {
		if _, err := e.Write(part); err != nil {
			tb.Fatal(err)
		}
		if err := e.Flush(); err != nil {
			tb.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func TestBombsAreRefused(t *testing.T) {
	zeros := make([]byte, 64<<20)
	half := frame(t, zeros[:maxPlain*2/3])
	for _, tc := range []struct {
		name string
		raw  []byte
		want Reason
	}{
		{"content of 64 MiB, announced", frame(t, zeros), ReasonOversized},
		{"content of 64 MiB, not announced", streamed(t, zeros), ReasonOversized},
		{"two frames that are too large together", slices.Concat(half, half), ReasonOversized},
		{"a header that announces a terabyte", []byte("\x28\xb5\x2f\xfd\xe0\x00\x00\x00\x00\x00\x01\x00\x00\x01\x00\x00"), ReasonOversized},
		{"a window of a gigabyte", []byte("\x28\xb5\x2f\xfd\x00\xa0\x01\x00\x00"), ReasonOversized},
		{"a million empty words", pack(plainBatch().bytes(9, strings.Repeat("\n", 900_000)).bytes(11, "\x00")), ReasonOversized},
		{"a million keys", pack(plainBatch().bytes(9, "croft_a").bytes(10, strings.Repeat("\x00", 900_000)).bytes(11, strings.Repeat("\x00", 4000))), ReasonMalformed},
		{"a million steps", pack(header().bytes(8, strings.Repeat("\x00", 900_000))), ReasonOversized},
		{"a word list of tomorrow", frame(t, plainBatch(), zstd.WithEncoderDictRaw(wordList+1, words1)), ReasonVersion},
		{"no frame", []byte("hello"), ReasonMalformed},
		{"a frame cut short", frame(t, plainBatch())[:20], ReasonMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if len(tc.raw) > SubjectReadings.MaxPayload() {
				t.Fatalf("bomb of %d bytes is stopped by its size alone", len(tc.raw))
			}
			unpacker() // is made once, and is no part of the price
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Decode(SubjectReadings, tc.raw)
			runtime.ReadMemStats(&after)
			if ReasonOf(err) != tc.want {
				t.Errorf("Decode: %v (%s), want %s", err, ReasonOf(err), tc.want)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
				t.Errorf("Decode took %d bytes of memory, want at most 8 MiB", took)
			}
		})
	}
}

func TestStateBuries(t *testing.T) {
	born := func(journal, epoch uint64) State { return State{Online, journal, epoch} }
	lost := func(journal, epoch uint64) State { return State{Lost, journal, epoch} }
	for _, tc := range []struct {
		name       string
		now, known State
		want       bool
	}{
		{"the first word of a box", born(1, 1), State{}, true},
		{"the will of the session", lost(1, 5), born(1, 5), true},
		{"the late will of an old session", lost(1, 4), born(1, 5), false},
		{"the next session", born(1, 6), born(1, 5), true},
		{"the next session after a will", born(1, 6), lost(1, 5), true},
		{"a birth that arrives after its own will", born(1, 5), lost(1, 5), false},
		{"a birth that arrives twice", born(1, 5), born(1, 5), true},
		{"the will of a session nobody saw begin", lost(1, 6), born(1, 5), true},
		{"a birth after the journal was lost", born(2, 1), born(1, 500), true},
		{"a will from before the journal was lost", lost(1, 500), born(2, 1), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.now.Buries(tc.known); got != tc.want {
				t.Errorf("%v buries %v: %v, want %v", tc.now, tc.known, got, tc.want)
			}
		})
	}
}

func TestCleanText(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"sound text stays", "Küche ☕", "Küche ☕"},
		{"lines are joined", "a\r\nb\x00c", "a  b c"},
		{"colours end", "\x1b[31mred", " [31mred"},
		{"directions end", "a\u202eb\u2066c", "a b c"},
		{"what is not UTF-8 is marked", "a\xffb", "a\ufffdb"},
		{"long text is cut between characters", "1234567890123☕☕", "1234567890123☕"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := CleanText(tc.text, 17)
			if got != tc.want {
				t.Errorf("CleanText(%q) = %q, want %q", tc.text, got, tc.want)
			}
			if err := sentence(0, 17)(got); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLabels(t *testing.T) {
	got := Labels(map[string]string{"b": "2", "a": "1", "c": ""})
	if diff := cmp.Diff([]Label{{"a", "1"}, {"b", "2"}, {"c", ""}}, got); diff != "" {
		t.Error(diff)
	}
	if a, x := LabelValue(got, "a"), LabelValue(got, "x"); a != "1" || x != "" {
		t.Errorf("LabelValue = %q, %q", a, x)
	}
}

func TestReasonsAreCountable(t *testing.T) {
	if got := ReasonOf(fmt.Errorf("store: %w", errors.New("disk full"))); got != ReasonOther {
		t.Errorf("ReasonOf = %s", got)
	}
	if got := ReasonOf(fmt.Errorf("ingest: %w", refuse(ReasonForeign, "no"))); got != ReasonForeign {
		t.Errorf("ReasonOf = %s", got)
	}
	for _, r := range Reasons() {
		if err := word(string(r)); err != nil {
			t.Errorf("reason %q is no word: %v", r, err)
		}
	}
}

func TestNewJournal(t *testing.T) {
	a, b := NewJournal(), NewJournal()
	if a == b || a == 0 || a > math.MaxInt64 || b > math.MaxInt64 {
		t.Errorf("NewJournal = %d, %d", a, b)
	}
}
