package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/ingest"
)

func TestEverySubjectReachesTheSinkInOrder(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSink()
		in := w.start(t, ingest.Config{Sink: s})
		b := w.box(t)
		l := b.connect(t)
		for _, p := range up() {
			l.say(t, b, p)
			if h := await(t, s.heard, string(p.Subject())); h.device != b.id || h.payload.Subject() != p.Subject() {
				t.Errorf("heard %s, want %s of %.6s", describe(h), p.Subject(), b.id)
			}
		}
		for subject, n := range in.Stats().Stored {
			if n != 1 {
				t.Errorf("stored %d of %s, want 1", n, subject)
			}
		}
	})
}

// TestAuthorisationMatrix has a device publish and subscribe to everything, of its
// own and of another: the fleet hears what is its to say, and it hears what is
// its to hear.
func TestAuthorisationMatrix(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSink()
		s.fail = once(t)
		in := w.start(t, ingest.Config{Sink: s})
		thief, victim := w.box(t), w.box(t)
		ear := victim.connect(t)
		ear.say(t, victim, event(7, 1))
		await(t, s.heard, "the victim")

		payloads := append(up(), &fleetapi.Desired{Version: 99, Interval: time.Minute}, &fleetapi.Job{ID: "job_01KAKR9Z4N3V9Q2D5Y0W8KXR7M", Kind: "reboot"})
		seq := uint64(100)
		for _, of := range []*box{thief, victim} {
			for _, p := range payloads {
				for _, end := range []string{"", "/more", "x"} {
					topic := p.Subject().Topic(of.id) + end
					l := thief.connect(t)
					seq++
					raw := must[[]byte](t)(fleetapi.Encode(fresh(p, seq)))
					refused := ended(l.Publish(topic, 1, true, raw)) != nil
					if refused {
						await(t, l.lost, "the end of the connection")
						l = thief.connect(t)
					}
					seq++
					marker := must[[]byte](t)(fleetapi.Encode(event(7, seq)))
					if ended(l.Publish(fleetapi.SubjectEvent.Topic(thief.id), 1, false, marker)) != nil { // Mosquitto acknowledges first
						l = thief.connect(t)
						l.say(t, thief, event(7, seq))
					}
					allowed := of == thief && p.Subject().Up() && end == ""
					h := await(t, s.heard, "the marker")
					if heard := !marks(h, seq); heard != allowed {
						t.Errorf("publish to %s: the fleet heard %s, may it be said: %v", topic, describe(h), allowed)
					}
					if !marks(h, seq) {
						await(t, s.heard, "the marker")
					}
					l.Disconnect(0)
				}
			}
		}

		l := must[*line](t)(dial(t, thief.options(t)))
		for _, filter := range []string{
			"#", "+/+/+/+/+", "croft/#", "croft/v1/+/dn/desired", "croft/v1/" + string(thief.id) + "/#", "$SYS/#",
			"croft/v1/" + string(victim.id) + "/#", fleetapi.DownFilter(victim.id), fleetapi.SubjectEvent.Topic(victim.id),
			"$share/fleet/croft/v1/+/up/#", "$share/x/" + fleetapi.DownFilter(thief.id), "croft/v1/+/up/#",
		} {
			token := l.Subscribe(filter, 1, nil).(*paho.SubscribeToken)
			check(t, ended(token))
			for _, granted := range token.Result() { // by the filter without its share
				if w.embedded && granted != 0x80 {
					t.Errorf("subscription to %q is granted", filter)
				}
			}
		}
		check(t, ended(l.Subscribe(fleetapi.DownFilter(thief.id), 1, nil)))
		for n := range uint64(8) { // whoever is let into the fleet's share takes some of these
			ear.say(t, victim, fresh(up()[4], n))
			if h := await(t, s.heard, "the victim"); h.device != victim.id {
				t.Errorf("heard %s instead of the victim", describe(h))
			}
		}
		check(t, in.Publish(t.Context(), victim.id, &fleetapi.Desired{Version: 1, Name: "secret", Interval: time.Minute}))
		if m := await(t, ear.told, "the victim's desired state"); desired(t, m).Version != 1 {
			t.Errorf("the victim was told by %s: %x", m.Topic(), m.Payload())
		}
		check(t, in.Publish(t.Context(), thief.id, &fleetapi.Desired{Version: 2, Interval: time.Minute}))
		if m := await(t, l.told, "the thief's desired state"); desired(t, m).Version != 2 {
			t.Errorf("the thief was told by %s: %x", m.Topic(), m.Payload())
		}
		if refused := in.Stats().Refused[fleetapi.ReasonForeign]; w.embedded && refused < 30 {
			t.Errorf("counted %d foreign topics", refused)
		}
	})
}

// once has a sink refuse what it heard before: readings and log lines that are sent
// by QoS 1 come from an external broker over two connections.
func once(t *testing.T) func(heard) error {
	var mu sync.Mutex
	before := map[string]bool{} // guarded by mu
	return func(h heard) error {
		raw, err := fleetapi.Encode(h.payload)
		if err != nil {
			t.Errorf("encode what was heard: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		key := string(h.device) + string(h.payload.Subject()) + string(raw)
		if before[key] {
			return &fleetapi.RefusedError{Reason: fleetapi.ReasonOther, Err: errors.New("heard before")}
		}
		before[key] = true
		return nil
	}
}

// fresh is a payload like another that nobody has sent yet.
func fresh(p fleetapi.Payload, n uint64) fleetapi.Payload {
	switch p := p.(type) {
	case *fleetapi.Hello:
		again := *p
		again.Epoch = n
		return &again
	case *fleetapi.State:
		again := *p
		again.Epoch = n
		return &again
	case *fleetapi.Batch:
		again := *p
		again.Seq = n
		return &again
	case *fleetapi.Event:
		return event(8, n)
	case *fleetapi.LogLines:
		return &fleetapi.LogLines{Lines: []fleetapi.LogLine{{At: when, Level: "info", Text: fmt.Sprint("line ", n)}}}
	case *fleetapi.JobStatus:
		again := *p
		again.Origin = fleetapi.Origin{Journal: 9, Seq: n}
		return &again
	default:
		return p
	}
}

func marks(h heard, seq uint64) bool {
	e, ok := h.payload.(*fleetapi.Event)
	return ok && e.Journal == 7 && e.Seq == seq
}

func desired(t *testing.T, m paho.Message) *fleetapi.Desired {
	t.Helper()
	return must[*fleetapi.Desired](t)(fleetapi.Parse[fleetapi.Desired](m.Payload()))
}

func TestBadPayloadsAreAcknowledgedAndCountedByReason(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSink()
		s.fail = func(h heard) error {
			if e, ok := h.payload.(*fleetapi.Event); ok && e.Seq == 13 {
				return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no such device")}
			}
			return nil
		}
		in := w.start(t, ingest.Config{Sink: s})
		b := w.box(t)
		l := b.connect(t)
		sound := must[[]byte](t)(fleetapi.Encode(event(7, 1)))
		for _, bad := range []struct {
			reason  fleetapi.Reason
			subject fleetapi.Subject
			raw     []byte
		}{
			{fleetapi.ReasonMalformed, fleetapi.SubjectEvent, nil},
			{fleetapi.ReasonMalformed, fleetapi.SubjectEvent, []byte("\xff\xff\xff")},
			{fleetapi.ReasonMalformed, fleetapi.SubjectReadings, []byte("no zstd frame")},
			{fleetapi.ReasonOversized, fleetapi.SubjectEvent, make([]byte, fleetapi.SubjectEvent.MaxPayload()+1)},
			{fleetapi.ReasonVersion, fleetapi.SubjectEvent, append([]byte{8, 100}, sound[2:]...)},
			{ingest.ReasonRejected, fleetapi.SubjectEvent, must[[]byte](t)(fleetapi.Encode(event(7, 13)))},
		} {
			before := in.Stats().Refused[bad.reason]
			check(t, ended(l.Publish(bad.subject.Topic(b.id), 1, false, bad.raw)))
			until(t, string(bad.reason)+" is counted", func() bool { return in.Stats().Refused[bad.reason] > before })
		}
		l.say(t, b, event(7, 2))
		if h := await(t, s.heard, "the sound event"); !marks(h, 2) {
			t.Errorf("heard %s", describe(h))
		}

		// What is larger than any payload ends the connection.
		check(t, nilUnless(ended(l.Publish(fleetapi.SubjectEvent.Topic(b.id), 1, false, make([]byte, 1<<20))) == nil, "a packet of 1 MiB was acknowledged"))
		await(t, l.lost, "the end of the connection")
		if w.embedded {
			until(t, "it is counted", func() bool { return in.Stats().Refused[fleetapi.ReasonOversized] == 2 })
		}
	})
}

func nilUnless(bad bool, text string) error {
	if bad {
		return errors.New(text)
	}
	return nil
}

func TestWhileTheSinkFailsNothingIsAcknowledgedOrLost(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSink()
		var down atomic.Bool
		down.Store(true)
		s.fail = func(heard) error {
			if down.Load() {
				return fmt.Errorf("store: %w", db.ErrUnavailable)
			}
			return nil
		}
		in := w.start(t, ingest.Config{Sink: s})
		b := w.box(t)
		l := b.connect(t)
		const n = 10
		var tokens []paho.Token
		for seq := uint64(1); seq <= n; seq++ {
			raw := must[[]byte](t)(fleetapi.Encode(event(7, seq)))
			tokens = append(tokens, l.Publish(fleetapi.SubjectEvent.Topic(b.id), 1, false, raw))
		}
		until(t, "the sink was asked", func() bool { return in.Stats().Retries >= 2 })
		if w.embedded {
			for i, token := range tokens {
				select {
				case <-token.Done():
					t.Errorf("event %d is acknowledged and not stored", i+1)
				default:
				}
			}
		}
		// Another box's readings do not wait for this one's events, and are dropped.
		other := w.box(t)
		other.connect(t).say(t, other, batch(1))
		until(t, "the readings are dropped", func() bool { return in.Stats().Refused[ingest.ReasonPressure] == 1 })
		down.Store(false)
		for seq := uint64(1); seq <= n; seq++ {
			check(t, ended(tokens[seq-1]))
			if h := await(t, s.heard, "an event"); !marks(h, seq) {
				t.Errorf("heard %s, want event %d", describe(h), seq)
			}
		}
		until(t, "nothing waits", func() bool { return in.Stats().Queued == 0 })
		if got := in.Stats().Stored[fleetapi.SubjectEvent]; got != n {
			t.Errorf("stored %d events, want %d", got, n)
		}
	})
}

// store is a sink that keeps events in a database, each number once, as a context of
// the fleet does.
type store struct {
	*sink
	d    *db.DB
	dead atomic.Bool // it answers nothing any more
}

func newStore(t *testing.T, d *db.DB) *store {
	t.Helper()
	check(t, d.Write(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec("CREATE TABLE test_events (device TEXT, journal BIGINT, seq BIGINT, PRIMARY KEY (device, journal, seq))")
		return err
	}))
	return &store{sink: newSink(), d: d}
}

func (s *store) Event(ctx context.Context, device croft.DeviceID, e *fleetapi.Event) error {
	if s.dead.Load() {
		return errors.New("this replica is dead")
	}
	return s.d.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec("INSERT INTO test_events (device, journal, seq) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
			string(device), int64(e.Journal), int64(e.Seq))
		return err
	})
}

// count is how many events are stored.
func (s *store) count(t *testing.T) (n int) {
	t.Helper()
	check(t, s.d.Read(t.Context(), func(tx *db.Tx) error {
		return tx.Row("SELECT COUNT(*) FROM test_events").Scan(&n)
	}))
	return n
}

func TestDuplicatedAndReorderedEventsReachTheSink(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		dbtest.Each(t, func(t *testing.T, d *db.DB) {
			s := newStore(t, d)
			in := w.start(t, ingest.Config{Sink: s})
			defer in.stop()
			b := w.box(t)
			l := b.connect(t)
			const n = 60
			var order []uint64
			for seq := range uint64(n) {
				order = append(order, seq+1, seq+1)
			}
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			for _, seq := range order {
				l.say(t, b, event(7, seq))
			}
			until(t, "all are handled", func() bool { return in.Stats().Stored[fleetapi.SubjectEvent] == 2*n })
			if all := s.count(t); all != n {
				t.Errorf("stored %d events, want %d", all, n)
			}
			l.say(t, b, event(8, 1)) // the box lost its journal
			until(t, "the new journal's first event is stored", func() bool { return s.count(t) == n+1 })
		})
	})
}

// deliver sends events 1 to n until each is acknowledged, over as many connections
// as it takes.
func (b *box) deliver(ctx context.Context, t testing.TB, n uint64, progress func()) error {
	var l *line
	defer func() {
		if l != nil {
			l.Disconnect(0)
		}
	}()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for seq := uint64(1); seq <= n; {
		if l == nil || !l.IsConnectionOpen() {
			var err error
			if l, err = dial(t, b.options(t)); err != nil {
				l = nil
				select {
				case <-again.C:
					continue
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		raw, err := fleetapi.Encode(event(7, seq))
		if err != nil {
			return err
		}
		token := l.Publish(fleetapi.SubjectEvent.Topic(b.id), 1, false, raw)
		select {
		case <-token.Done():
			if token.Error() == nil {
				seq++
				progress()
			}
		case <-l.lost:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func TestBrokerStoppedInTheMiddleLosesNothing(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		dbtest.Each(t, func(t *testing.T, d *db.DB) {
			s := newStore(t, d)
			in := w.start(t, ingest.Config{Sink: s})
			const boxes, n = 4, 50
			ctx, cancel := context.WithTimeout(t.Context(), hang)
			defer cancel()
			var all sync.WaitGroup
			half := make(chan struct{}, boxes*n)
			for range boxes {
				b := w.box(t)
				all.Go(func() {
					if err := b.deliver(ctx, t, n, func() { half <- struct{}{} }); err != nil {
						t.Error(err)
					}
				})
			}
			for range boxes * n / 3 {
				await(t, half, "events")
			}
			in = w.restart(t, in)
			for range boxes * n / 3 {
				await(t, half, "events after the broker is back")
			}
			in = w.restart(t, in)
			defer in.stop()
			all.Wait()
			until(t, "all are stored", func() bool { return s.count(t) == boxes*n })
		})
	})
}

func TestDesiredAndJobsReachTheBox(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		in := w.start(t, ingest.Config{Sink: newSink()})
		b := w.box(t)
		l := must[*line](t)(dial(t, b.options(t)))
		for version := uint64(1); version <= 2; version++ { // before the box listens
			check(t, in.Publish(t.Context(), b.id, &fleetapi.Desired{Version: version, Interval: time.Minute}))
		}
		check(t, ended(l.Subscribe(fleetapi.DownFilter(b.id), 1, nil)))
		if m := await(t, l.told, "the desired state"); desired(t, m).Version != 2 {
			t.Errorf("told %s version %d first, want 2", m.Topic(), desired(t, m).Version)
		}
		check(t, in.Publish(t.Context(), b.id, &fleetapi.Job{ID: fleetapi.NewID(fleetapi.PrefixJob), Kind: fleetapi.KindLocate}))
		if m := await(t, l.told, "the job"); m.Topic() != fleetapi.SubjectJob.Topic(b.id) {
			t.Errorf("told by %s, want the job", m.Topic())
		}
		check(t, in.Publish(t.Context(), w.box(t).id, &fleetapi.Desired{Version: 1, Interval: time.Minute})) // not there
		for name, p := range map[string]fleetapi.Payload{"goes up": event(7, 1), "broken": &fleetapi.Job{}} {
			if err := in.Publish(t.Context(), b.id, p); err == nil {
				t.Errorf("a payload that %s was published", name)
			}
		}
		if err := in.Publish(t.Context(), "x/dn/job", &fleetapi.Desired{Version: 1, Interval: time.Minute}); err == nil {
			t.Error("published to a device with a wrong name")
		}
	})
}

func TestRevokedDevicesAreNotHeard(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSink()
		in := w.start(t, ingest.Config{Sink: s, Revoked: w.revoked.Device})
		b := w.box(t)
		l := b.connect(t)
		l.say(t, b, event(7, 1))
		await(t, s.heard, "the box")
		w.revoked.Add([]croft.DeviceID{b.id}, nil)
		l.say(t, b, event(7, 2)) // the connection is still open
		until(t, "it is refused", func() bool { return in.Stats().Refused[ingest.ReasonRevoked] == 1 })
		if ended := in.Disconnect(b.id); ended != w.embedded {
			t.Errorf("Disconnect reports %v", ended)
		}
		if !w.embedded {
			return // the broker's list of revoked certificates is not ours
		}
		await(t, l.lost, "the end of the connection")
		if _, err := dial(t, b.options(t)); err == nil {
			t.Error("a revoked device connected")
		}
		if in.Disconnect(b.id) {
			t.Error("a device without a connection was disconnected")
		}
	})
}

func TestNewRefusesConfigurationsThatCannotWork(t *testing.T) {
	s := newSink()
	for _, tc := range []struct {
		name string
		cfg  ingest.Config
	}{
		{"no sink", ingest.Config{External: &ingest.External{URL: "mqtt://broker"}}},
		{"no broker", ingest.Config{Sink: s}},
		{"two brokers", ingest.Config{Sink: s, Embedded: &ingest.Embedded{}, External: &ingest.External{}}},
		{"no listener", ingest.Config{Sink: s, Embedded: &ingest.Embedded{}}},
		{"another protocol", ingest.Config{Sink: s, External: &ingest.External{URL: "https://fleet:hunter2@broker"}}},
		{"no host", ingest.Config{Sink: s, External: &ingest.External{URL: "mqtts://"}}},
		{"no URL", ingest.Config{Sink: s, External: &ingest.External{URL: "mqtts://fleet:hunter2@[::1"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ingest.New(tc.cfg)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}
