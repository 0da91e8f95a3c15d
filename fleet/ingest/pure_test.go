package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

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

// TestOnlyAMessagesOwnFaultIsFinal has the sink fail for reasons that pass: what is
// acknowledged then is lost.
func TestOnlyAMessagesOwnFaultIsFinal(t *testing.T) {
	because := func(kind croft.Kind) error {
		return fmt.Errorf("store event: %w", &croft.Error{Kind: kind, Err: errors.New("database is read-only")})
	}
	for _, tc := range []struct {
		name   string
		err    error
		reason fleetapi.Reason
		final  bool
	}{
		{"a payload that breaks a rule", fmt.Errorf("x: %w", &fleetapi.RefusedError{Reason: fleetapi.ReasonRange, Err: errors.New("y")}), fleetapi.ReasonRange, true},
		{"a device that is not there", because(croft.KindNotFound), ReasonRejected, true},
		{"a database that is read-only, or a store of readings whose clock is wrong", because(croft.KindRefused), "", false},
		{"a database that is damaged", because(croft.KindInvalid), "", false},
		{"a database that refuses the user", because(croft.KindUsage), "", false},
		{"a database that is gone", because(croft.KindMissing), "", false},
		{"a full disk", because(croft.KindNoSpace), "", false},
		{"anything else", errors.New("z"), "", false},
	} {
		if reason, final := verdict(tc.err); final != tc.final || final && reason != tc.reason {
			t.Errorf("%s: final %v because of %q", tc.name, final, reason)
		}
	}
}

// gated is a sink that takes events once its gate is open.
type gated struct {
	nothing
	gate chan struct{}
}

func (g gated) Event(context.Context, croft.DeviceID, *fleetapi.Event) error {
	<-g.gate
	return nil
}

// TestEveryoneOfACrowdGetsInOrLeaves has many more devices wait for room than there
// is, some of which leave: the others all come in, and nobody is left waiting.
func TestEveryoneOfACrowdGetsInOrLeaves(t *testing.T) {
	raw, err := fleetapi.Encode(&fleetapi.Event{
		Origin: fleetapi.Origin{Journal: 1, Seq: 1}, At: time.Unix(1.8e9, 0).UTC(), Kind: "lease_started", Severity: fleetapi.SeverityInfo,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, bounds := range []struct{ perDevice, all int }{{1, 1 << 20}, {8, 3000}, {2, 1500}, {1, 1}} {
		counts := newCounters()
		sink := gated{gate: make(chan struct{})}
		p := newPipeline(Config{
			Sink: sink, Revoked: func(croft.DeviceID) bool { return false }, Log: slog.New(slog.DiscardHandler),
			Workers: 3, QueuePerDevice: bounds.perDevice, QueueBytes: bounds.all,
		}, counts)
		ctx, cancel := context.WithCancel(t.Context())
		var lanes, senders sync.WaitGroup
		p.start(ctx, &lanes)
		var acks atomic.Int64
		leave, never := make(chan struct{}), make(chan struct{})
		const devices, each = 60, 5
		for i := range devices {
			id, gone := croft.DeviceIDFromDigest([32]byte{byte(i)}), never
			if i%3 == 0 {
				gone = leave
			}
			senders.Go(func() {
				for range each {
					p.accept(gone, message{device: id, subject: fleetapi.SubjectEvent, raw: raw, qos: 1, ack: func() { acks.Add(1) }})
				}
			})
		}
		close(leave)
		close(sink.gate)
		senders.Wait()
		lanes.Wait()
		cancel()
		if got := acks.Load(); got < devices*2/3*each || got > devices*each {
			t.Errorf("%+v: %d are acknowledged", bounds, got)
		}
		if p.queued != 0 || p.cost != 0 || len(p.lanes) != 0 {
			t.Errorf("%+v: %d messages of %d bytes in %d lanes are left", bounds, p.queued, p.cost, len(p.lanes))
		}
		for _, waits := range p.crowd {
			if !waits.left {
				t.Errorf("%+v: somebody still waits", bounds)
			}
		}
	}
}

// BenchmarkCrowd is what a message costs while 10,000 devices wait for room.
func BenchmarkCrowd(b *testing.B) {
	raw, err := fleetapi.Encode(&fleetapi.Event{
		Origin: fleetapi.Origin{Journal: 1, Seq: 1}, At: time.Unix(1.8e9, 0).UTC(), Kind: "lease_started", Severity: fleetapi.SeverityInfo,
	})
	if err != nil {
		b.Fatal(err)
	}
	sink, counts := gated{gate: make(chan struct{})}, newCounters()
	p := newPipeline(Config{
		Sink: sink, Revoked: func(croft.DeviceID) bool { return false }, Log: slog.New(slog.DiscardHandler),
		Workers: 32, QueuePerDevice: 32, QueueBytes: 20_000,
	}, counts)
	var lanes, senders sync.WaitGroup
	p.start(b.Context(), &lanes)
	const devices = 10_000
	for i := range devices {
		id := croft.DeviceIDFromDigest([32]byte{byte(i), byte(i >> 8)})
		senders.Go(func() {
			for range (b.N + devices - 1) / devices {
				p.accept(nil, message{device: id, subject: fleetapi.SubjectEvent, raw: raw, qos: 1})
			}
		})
	}
	for counts.received[fleetapi.SubjectEvent].Load() < devices {
		runtime.Gosched()
	}
	b.ResetTimer()
	close(sink.gate)
	senders.Wait()
	lanes.Wait()
}

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
