package ingest

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

func TestWindowTakesEachNumberOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var w window
		n := 1 + r.IntN(3000)
		all := make([]uint64, 0, 2*n)
		for i := range n {
			all = append(all, uint64(i+1), uint64(i+1))
		}
		for i := range all { // reordered by less than the window
			j := i + r.IntN(min(len(all)-i, 1+r.IntN(1000)))
			all[i], all[j] = all[j], all[i]
		}
		taken := map[uint64]bool{}
		for _, k := range all {
			if got := w.take(k); got != taken[k] {
				t.Fatalf("take(%d) = %v, want %v", k, got, taken[k])
			}
			taken[k] = true
		}
		if w.low != uint64(n) || len(w.above) != 0 {
			t.Fatalf("after %d numbers low is %d, %d bytes above", n, w.low, len(w.above))
		}
	}
}

func TestWindowGivesUpGapsThatNeverClose(t *testing.T) {
	w := window{}
	const gaps = 5 // 1 to 5 never come
	for k := uint64(gaps + 1); k <= 10_000; k++ {
		if w.take(k) {
			t.Fatalf("take(%d): already", k)
		}
		if len(w.above) > maxAbove {
			t.Fatalf("after %d the window has %d bytes", k, len(w.above))
		}
	}
	if !w.take(1) {
		t.Error("a number given up was taken")
	}
	if w.low != 10_000 {
		t.Errorf("low is %d once the gap is given up", w.low)
	}
	far := ^uint64(0)
	if w.take(far) || !w.take(far) {
		t.Error("the greatest number is not taken exactly once")
	}
	if w.take(far - 1) {
		t.Error("a number just below the greatest is gone")
	}
}

func TestBackoffIsDecorrelatedAndBounded(t *testing.T) {
	spread := map[time.Duration]bool{}
	for range 100 {
		b := backoff{least: 100 * time.Millisecond, most: 10 * time.Second}
		last := b.least
		for range 30 {
			next := b.next()
			if next < b.least || next > min(b.most, 3*last) {
				t.Fatalf("%v after %v", next, last)
			}
			last = next
		}
		spread[last] = true
	}
	if len(spread) < 50 {
		t.Errorf("100 backoffs end at only %d different pauses", len(spread))
	}
}

// nothing is a sink that takes everything.
type nothing struct{}

func (nothing) Hello(context.Context, croft.DeviceID, *fleetapi.Hello) error         { return nil }
func (nothing) State(context.Context, croft.DeviceID, *fleetapi.State) error         { return nil }
func (nothing) Batch(context.Context, croft.DeviceID, *fleetapi.Batch) error         { return nil }
func (nothing) Event(context.Context, croft.DeviceID, *fleetapi.Event) error         { return nil }
func (nothing) LogLines(context.Context, croft.DeviceID, *fleetapi.LogLines) error   { return nil }
func (nothing) JobStatus(context.Context, croft.DeviceID, *fleetapi.JobStatus) error { return nil }

// delivery is a message of QoS 1 from an external broker.
type delivery struct {
	paho.Message
	topic string
	raw   []byte
	acks  int
}

func (d *delivery) Topic() string   { return d.topic }
func (d *delivery) Payload() []byte { return d.raw }
func (d *delivery) Qos() byte       { return 1 }
func (d *delivery) Ack()            { d.acks++ }

// FuzzPipeline sends arbitrary payloads to every subject: whatever they are, each is
// stored or refused with a reason, and acknowledged once.
func FuzzPipeline(f *testing.F) {
	for i, s := range fleetapi.Subjects() {
		f.Add(uint8(i), []byte(nil))
		f.Add(uint8(i), []byte("\x08\x01"+string(s)))
	}
	for _, p := range []fleetapi.Payload{
		&fleetapi.State{Presence: fleetapi.Online, Journal: 1, Epoch: 1},
		&fleetapi.Event{
			Origin: fleetapi.Origin{Journal: 1, Seq: 1}, At: time.Unix(1.8e9, 0).UTC(), Kind: "lease_started", Severity: fleetapi.SeverityInfo,
		},
	} {
		raw, err := fleetapi.Encode(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(slices.Index(fleetapi.Subjects(), p.Subject())), raw)
	}
	const device = croft.DeviceID("abcdefghijklmnopqrstuvwxyz234567")
	f.Fuzz(func(t *testing.T, which uint8, raw []byte) {
		subjects := slices.DeleteFunc(fleetapi.Subjects(), func(s fleetapi.Subject) bool { return !s.Up() })
		subject := subjects[int(which)%len(subjects)]
		in, err := New(Config{Sink: nothing{}, External: &External{URL: "mqtt://unused"}})
		if err != nil {
			t.Fatal(err)
		}
		acks := 0
		in.counts.received[subject].Add(1)
		in.pipeline.handle(t.Context(), message{device: device, subject: subject, raw: raw, qos: 1, ack: func() { acks++ }})
		stats := in.Stats()
		ends := stats.Stored[subject]
		for _, n := range stats.Refused {
			ends += n
		}
		if n := stats.Refused[fleetapi.ReasonOther]; n > 0 {
			t.Fatal("refused without a reason")
		}
		if acks != 1 || ends != 1 || stats.Retries != 0 {
			t.Errorf("%d acknowledgements, %d ends, %d retries", acks, ends, stats.Retries)
		}
	})
}

// FuzzReceive gives the pipeline arbitrary topics, as an external broker may.
func FuzzReceive(f *testing.F) {
	f.Add("croft/v1/abcdefghijklmnopqrstuvwxyz234567/up/event", []byte("x"))
	f.Add("croft/v1/abcdefghijklmnopqrstuvwxyz234567/dn/job", []byte("x"))
	f.Add("croft/v1/+/up/#", []byte{})
	f.Add("", []byte{})
	f.Fuzz(func(t *testing.T, topic string, raw []byte) {
		in, err := New(Config{Sink: nothing{}, External: &External{URL: "mqtt://unused"}})
		if err != nil {
			t.Fatal(err)
		}
		m := &delivery{topic: topic, raw: raw}
		in.pipeline.work = func(l *lane, first message) { // at once, instead of in a goroutine
			in.pipeline.mu.Unlock()
			defer in.pipeline.mu.Lock()
			in.pipeline.run(t.Context(), l, first)
		}
		in.line.(*subscriber).receive(t.Context(), m)
		stats := in.Stats()
		_, subject, err := fleetapi.ParseTopic(topic)
		known := err == nil && subject.Up()
		var refused uint64
		for _, n := range stats.Refused {
			refused += n
		}
		if m.acks != 1 || stats.Queued != 0 || !known && refused != 1 {
			t.Errorf("topic %q: %d acknowledgements, %d refused, %d queued", topic, m.acks, refused, stats.Queued)
		}
	})
}
