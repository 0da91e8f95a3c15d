package ingest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/ingest"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// withWill is a connection whose end tells State{lost, epoch}.
func (b *box) withWill(t *testing.T, epoch uint64) *line {
	t.Helper()
	raw := must[[]byte](t)(fleetapi.Encode(lost(epoch)))
	return must[*line](t)(dial(t, b.options(t).SetBinaryWill(fleetapi.SubjectState.Topic(b.id), raw, 1, true)))
}

func presence(t *testing.T, h heard) (fleetapi.Presence, uint64) {
	t.Helper()
	s, ok := h.payload.(*fleetapi.State)
	if !ok {
		t.Fatalf("heard %s, want a state", describe(h))
	}
	return s.Presence, s.Epoch
}

// TestASecondConnectionEndsTheFirst has the will of the old session come before
// anything of the new one, and says so to who wants to know.
func TestASecondConnectionEndsTheFirst(t *testing.T) {
	w, s := embedded(t), newSink()
	notices := make(chan ingest.Notice, 10)
	in := w.start(t, ingest.Config{Sink: s, Notice: func(n ingest.Notice) { notices <- n }})
	b := w.box(t)
	first := b.withWill(t, 1)
	first.say(t, b, online(1))
	await(t, s.heard, "the first birth")
	second := b.withWill(t, 2)
	second.say(t, b, online(2))
	await(t, first.lost, "the end of the first connection")
	if p, epoch := presence(t, await(t, s.heard, "the will")); p != fleetapi.Lost || epoch != 1 {
		t.Errorf("heard %s %d first, want the will of 1", p, epoch)
	}
	if p, epoch := presence(t, await(t, s.heard, "the second birth")); p != fleetapi.Online || epoch != 2 {
		t.Errorf("heard %s %d, want the birth of 2", p, epoch)
	}
	if n := await(t, notices, "a notice"); n.Kind != ingest.NoticeTakenOver || n.Device != b.id || n.Remote == n.Other {
		t.Errorf("notice is %+v", n)
	}
	if got := in.Stats(); got.TakenOver != 1 || got.Connected != 1 {
		t.Errorf("taken over %d, connected %d", got.TakenOver, got.Connected)
	}
	second.Disconnect(100) // in order: no will
	until(t, "nobody is connected", func() bool { return in.Stats().Connected == 0 })
	third := b.withWill(t, 3)
	third.say(t, b, online(3))
	if p, epoch := presence(t, await(t, s.heard, "the third birth")); p != fleetapi.Online || epoch != 3 {
		t.Errorf("heard %s %d, want the birth of 3", p, epoch)
	}
	in.stop() // it is the fleet that leaves
	if len(s.heard) > 0 {
		t.Errorf("heard %s when the fleet stopped", describe(<-s.heard))
	}
}

func TestConnectionsThatAreRefused(t *testing.T) {
	w, s := embedded(t), newSink()
	notices := make(chan ingest.Notice, 10)
	in := w.start(t, ingest.Config{Sink: s, Notice: func(n ingest.Notice) { notices <- n }})
	b, other := w.box(t), w.box(t)
	stranger := newWorld(t).box(t)
	sound := must[[]byte](t)(fleetapi.Encode(lost(1)))
	birth := must[[]byte](t)(fleetapi.Encode(online(1)))
	w.revoked.Add([]croft.DeviceID{other.id}, nil)
	topic := fleetapi.SubjectState.Topic
	for _, tc := range []struct {
		name   string
		reason fleetapi.Reason
		try    func() error
	}{
		{"another client id", fleetapi.ReasonForeign, func() error {
			_, err := dial(t, b.options(t).SetClientID(string(other.id)))
			return err
		}},
		{"MQTT 5", fleetapi.ReasonVersion, func() error { return connectRaw(t, b, 5) }},
		{"a will for another", fleetapi.ReasonForeign, func() error {
			_, err := dial(t, b.options(t).SetBinaryWill(topic(other.id), sound, 1, true))
			return err
		}},
		{"a will that says it is there", fleetapi.ReasonForeign, func() error {
			_, err := dial(t, b.options(t).SetBinaryWill(topic(b.id), birth, 1, true))
			return err
		}},
		{"a will that means nothing", fleetapi.ReasonMalformed, func() error {
			_, err := dial(t, b.options(t).SetBinaryWill(topic(b.id), []byte("\xff"), 1, true))
			return err
		}},
		{"no certificate", ingest.ReasonStranger, func() error {
			o := b.options(t)
			o.TLSConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
			_, err := dial(t, o)
			return err
		}},
		{"another fleet's certificate", ingest.ReasonStranger, func() error {
			_, err := dial(t, (&box{b.id, stranger.cert, w}).options(t))
			return err
		}},
		{"a revoked device", ingest.ReasonStranger, func() error {
			_, err := dial(t, other.options(t))
			return err
		}},
		{"no TLS", ingest.ReasonStranger, func() error {
			c := must[net.Conn](t)(net.Dial("tcp", w.address))
			defer c.Close()
			_, _ = c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
			_, err := io.Copy(io.Discard, c)
			return errors.Join(errors.New("closed"), err)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := in.Stats().Refused[tc.reason]
			if err := tc.try(); err == nil {
				t.Error("connected")
			}
			until(t, "it is counted", func() bool { return in.Stats().Refused[tc.reason] == before+1 })
		})
	}
	if n := await(t, notices, "a notice"); n.Kind != ingest.NoticeIdentity || n.Device != b.id {
		t.Errorf("notice is %+v", n)
	}
	if len(s.heard) > 0 {
		t.Errorf("heard %s", describe(<-s.heard))
	}
}

// connectRaw sends a CONNECT of a version that paho does not speak, and reports
// what the answer says.
func connectRaw(t *testing.T, b *box, version byte) error {
	t.Helper()
	c, err := tls.Dial("tcp", b.w.address, b.w.trust(t).TLS(func() (*tls.Certificate, error) { return b.cert, nil }))
	check(t, err)
	defer c.Close()
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', version, 2, 0, 60}, 0) // no properties
	body = append(append(body, 0, byte(len(b.id))), b.id...)
	_, err = c.Write(append([]byte{0x10, byte(len(body))}, body...))
	check(t, err)
	answer := must[[]byte](t)(io.ReadAll(c))
	if len(answer) >= 4 && answer[0] == 0x20 && answer[3] == 0 {
		return nil
	}
	return errors.New("refused")
}

// TestWhatNoBoxOfOursSends ends the connection, and nothing else.
func TestWhatNoBoxOfOursSends(t *testing.T) {
	w, s := embedded(t), newSink()
	in := w.start(t, ingest.Config{Sink: s})
	b := w.box(t)
	l := b.connect(t)
	raw := must[[]byte](t)(fleetapi.Encode(event(7, 1)))
	l.Publish(fleetapi.SubjectEvent.Topic(b.id), 2, false, raw)
	await(t, l.lost, "the end of the connection")
	if got := in.Stats().Refused[fleetapi.ReasonMalformed]; got != 1 {
		t.Errorf("counted %d malformed packets, want 1", got)
	}
	l = b.connect(t) // a subject that only a newer box knows is taken and dropped
	check(t, ended(l.Publish("croft/v1/"+string(b.id)+"/up/dance", 1, false, raw)))
	l.say(t, b, event(7, 2))
	if h := await(t, s.heard, "the event"); !marks(h, 2) {
		t.Errorf("heard %s", describe(h))
	}
}

// TestQoS0IsDroppedUnderPressure fills the queue behind a sink that hangs.
func TestQoS0IsDroppedUnderPressure(t *testing.T) {
	w, s := embedded(t), newSink()
	enter, leave := make(chan struct{}, 1), make(chan struct{})
	s.fail = func(h heard) error {
		if _, ok := h.payload.(*fleetapi.Event); ok {
			enter <- struct{}{}
			<-leave
		}
		return nil
	}
	const room = 4
	in := w.start(t, ingest.Config{Sink: s, QueuePerDevice: room})
	b := w.box(t)
	l := b.connect(t)
	raw := must[[]byte](t)(fleetapi.Encode(event(7, 1)))
	token := l.Publish(fleetapi.SubjectEvent.Topic(b.id), 1, false, raw)
	await(t, enter, "the sink")
	const n = 10
	for seq := range uint64(n) {
		l.say(t, b, batch(seq+1))
	}
	until(t, "what has no room is dropped", func() bool { return in.Stats().Refused[ingest.ReasonPressure] == n-(room-1) })
	close(leave)
	check(t, ended(token))
	for range room { // the event, and the batches that had room
		await(t, s.heard, "what had room")
	}
}

// TestConnectionsAreAdmittedAtARate gives a herd no more than it may have.
func TestConnectionsAreAdmittedAtARate(t *testing.T) {
	w := embedded(t)
	in := w.start(t, ingest.Config{Sink: newSink(), Embedded: &ingest.Embedded{ConnectRate: 0.001, ConnectBurst: 2}})
	var open int
	for range 5 {
		if _, err := dial(t, w.box(t).options(t)); err == nil {
			open++
		}
	}
	if got := in.Stats(); open != 2 || got.Connected != 2 || got.Refused[ingest.ReasonCrowd] != 3 {
		t.Errorf("%d of 5 connected, the broker has %d and refused %d", open, got.Connected, got.Refused[ingest.ReasonCrowd])
	}

	w = embedded(t)
	in = w.start(t, ingest.Config{Sink: newSink(), Embedded: &ingest.Embedded{MaxConnections: 1}})
	l := w.box(t).connect(t)
	if _, err := dial(t, w.box(t).options(t)); err == nil {
		t.Error("a second connection was let in where one is allowed")
	}
	l.Disconnect(100)
	until(t, "it is gone", func() bool { return in.Stats().Connected == 0 })
	until(t, "another is let in", func() bool {
		_, err := dial(t, w.box(t).options(t))
		return err == nil
	})
}

// TestADeviceThatDoesNotListenIsDisconnected leaves a device as many messages as
// it may, unacknowledged.
func TestADeviceThatDoesNotListenIsDisconnected(t *testing.T) {
	w := embedded(t)
	in := w.start(t, ingest.Config{Sink: newSink()})
	b := w.box(t)
	o := b.options(t).SetAutoAckDisabled(true)
	l := must[*line](t)(dial(t, o))
	check(t, ended(l.Subscribe(fleetapi.DownFilter(b.id), 1, nil)))
	for version := range uint64(200) {
		check(t, in.Publish(t.Context(), b.id, &fleetapi.Desired{Version: version + 1, Interval: time.Minute}))
	}
	await(t, l.lost, "the end of the connection")
	if told := len(l.told); told > 100 {
		t.Errorf("the device was told %d messages and acknowledged none", told)
	}
}

// TestRunWaitsForTheSink stops the fleet while a message is being stored.
func TestRunWaitsForTheSink(t *testing.T) {
	w, s := embedded(t), newSink()
	enter := make(chan struct{})
	var stored bytes.Buffer
	slow := slowSink{sink: s, enter: enter, stored: &stored}
	in := w.start(t, ingest.Config{Sink: slow})
	b := w.box(t)
	raw := must[[]byte](t)(fleetapi.Encode(event(7, 1)))
	b.connect(t).Publish(fleetapi.SubjectEvent.Topic(b.id), 1, false, raw)
	await(t, enter, "the sink")
	in.stop()
	if stored.String() != "stored" {
		t.Error("Run returned before the sink did")
	}
}

type slowSink struct {
	*sink
	enter  chan struct{}
	stored *bytes.Buffer
}

func (s slowSink) Event(ctx context.Context, _ croft.DeviceID, _ *fleetapi.Event) error {
	close(s.enter)
	<-ctx.Done()
	s.stored.WriteString("stored")
	return nil
}

// TestACertificateThatNoLongerCountsEndsTheConnection has nobody call Disconnect.
func TestACertificateThatNoLongerCountsEndsTheConnection(t *testing.T) {
	w, s := embedded(t), newSink()
	in := w.start(t, ingest.Config{Sink: s, Embedded: &ingest.Embedded{PacketRate: 1e6, ConnectRate: 1e6, JudgeEvery: time.Nanosecond}})
	b, other := w.box(t), w.box(t)
	l, ear := b.connect(t), other.connect(t)
	l.say(t, b, event(7, 1))
	await(t, s.heard, "the box")
	w.revoked.Add(nil, []enroll.CertID{enroll.CertIDOf(b.cert.Leaf)})
	raw := must[[]byte](t)(fleetapi.Encode(event(7, 2)))
	if ended(l.Publish(fleetapi.SubjectEvent.Topic(b.id), 1, false, raw)) == nil {
		t.Error("what a revoked certificate said was acknowledged")
	}
	await(t, l.lost, "the end of the connection")
	ear.say(t, other, event(7, 3))
	if h := await(t, s.heard, "the other box"); h.device != other.id {
		t.Errorf("heard %s", describe(h))
	}
	if got := in.Stats().Refused[ingest.ReasonStranger]; got != 1 {
		t.Errorf("counted %d strangers, want 1", got)
	}
}

// addressed is a sink that wants to know from where boxes speak.
type addressed struct {
	*sink
	from chan netip.Addr
}

func (s addressed) Hello(ctx context.Context, _ croft.DeviceID, _ *fleetapi.Hello) error {
	s.from <- ingest.AddressOf(ctx)
	return nil
}

func TestTheSinkKnowsFromWhereABoxSpeaks(t *testing.T) {
	w := embedded(t)
	s := addressed{newSink(), make(chan netip.Addr, 1)}
	w.start(t, ingest.Config{Sink: s})
	b := w.box(t)
	b.connect(t).say(t, b, up()[0])
	if from := await(t, s.from, "the hello"); from != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("it speaks from %v", from)
	}
	if from := ingest.AddressOf(t.Context()); from.IsValid() {
		t.Errorf("nobody speaks from %v", from)
	}
}
