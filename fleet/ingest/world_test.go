package ingest_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/ingest"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// hang is when a test that waits gives up.
const hang = 60 * time.Second

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		check(t, err)
		return v
	}
}

// await is what comes out of a channel.
func await[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(hang):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// until waits for something that nobody tells of.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(hang)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// world is a fleet's keys and a broker where boxes connect.
type world struct {
	authority *enroll.Authority
	revoked   enroll.Revocations
	address   string                                  // for boxes
	config    func(t testing.TB, cfg *ingest.Config)  // adds the broker
	restart   func(t testing.TB, r *replica) *replica // stops the broker and starts it again
	embedded  bool
}

// replica is a running Ingest.
type replica struct {
	*ingest.Ingest
	cfg  ingest.Config
	stop func()
}

// start runs a replica with a sink until the test ends or stop is called.
func (w *world) start(t testing.TB, cfg ingest.Config) *replica {
	t.Helper()
	w.config(t, &cfg)
	return run(t, cfg)
}

func run(t testing.TB, cfg ingest.Config) *replica {
	t.Helper()
	in := must[*ingest.Ingest](t)(ingest.New(cfg))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		check(t, await(t, done, "the end of Run"))
	})
	t.Cleanup(stop)
	if x := cfg.External; x != nil && x.DB == nil {
		until(t, "it listens", func() bool { return in.Stats().Holds && in.Stats().Shares })
	}
	return &replica{Ingest: in, cfg: cfg, stop: stop}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{authority: must[*enroll.Authority](t)(enroll.NewAuthority("Example", time.Now()))}
}

// embedded is a world whose broker is the fleet's own.
func embedded(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	w.embedded = true
	gate := must[*enroll.Gate](t)(enroll.NewGate(enroll.GateConfig{
		Roots: []*x509.Certificate{w.authority.Root()}, Revoked: &w.revoked,
	}))
	w.address = "127.0.0.1:0"
	w.config = func(t testing.TB, cfg *ingest.Config) {
		listener := must[net.Listener](t)(net.Listen("tcp", w.address))
		if w.address == "127.0.0.1:0" { // after a restart boxes find it where it was
			w.address = listener.Addr().String()
		}
		e := ingest.Embedded{PacketRate: 1e6, ConnectRate: 1e6}
		if cfg.Embedded != nil {
			e = *cfg.Embedded
		}
		e.Listener = listener
		e.TLS = gate.TLS(w.authority.Server("127.0.0.1"), enroll.Device)
		e.Judge = ingest.JudgeFunc(func(cs *tls.ConnectionState) (croft.DeviceID, error) {
			peer := gate.Judge(*cs)
			return peer.Device, peer.MayConnect()
		})
		cfg.Embedded = &e
		if cfg.Revoked == nil {
			cfg.Revoked = w.revoked.Device
		}
	}
	w.restart = func(t testing.TB, r *replica) *replica {
		r.stop()
		cfg := r.cfg
		e := *cfg.Embedded
		cfg.Embedded = &e
		return w.start(t, cfg)
	}
	return w
}

// each runs a test with each broker.
func each(t *testing.T, test func(t *testing.T, w *world)) {
	for name, make := range worlds() {
		t.Run(name, func(t *testing.T) { test(t, make(t)) })
	}
}

// box is a device with a certificate.
type box struct {
	id   croft.DeviceID
	cert *tls.Certificate
	w    *world
}

func (w *world) box(t testing.TB) *box {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	id := must[croft.DeviceID](t)(enroll.DeviceOf(key.Public()))
	csr := must[[]byte](t)(enroll.NewCSR(key))
	issued := must[*enroll.Issued](t)(w.authority.IssueDevice(csr, enroll.Peer{Standing: enroll.Candidate, Device: id}, time.Now()))
	return &box{id: id, cert: must[*tls.Certificate](t)(w.trust(t).Accept(issued.Chain, crypto.Signer(key))), w: w}
}

func (w *world) trust(t testing.TB) *enroll.Trust {
	t.Helper()
	return must[*enroll.Trust](t)(enroll.NewTrust(enroll.TrustConfig{
		Roots: []*x509.Certificate{w.authority.Root()}, Host: "127.0.0.1",
		Clock: func() (time.Time, bool) { return time.Now(), true },
	}))
}

// options are a real client's.
func (b *box) options(t testing.TB) *paho.ClientOptions {
	return paho.NewClientOptions().AddBroker("ssl://" + b.w.address).SetClientID(string(b.id)).SetProtocolVersion(4).
		SetTLSConfig(b.w.trust(t).TLS(func() (*tls.Certificate, error) { return b.cert, nil })).
		SetAutoReconnect(false).SetConnectTimeout(10 * time.Second)
}

// line is a connection of a box.
type line struct {
	paho.Client
	lost chan struct{}
	told chan paho.Message
}

// dial connects with these options.
func dial(t testing.TB, o *paho.ClientOptions) (*line, error) {
	l := &line{lost: make(chan struct{}, 1), told: make(chan paho.Message, 100)}
	o.SetConnectionLostHandler(func(paho.Client, error) { l.lost <- struct{}{} })
	o.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { l.told <- m })
	l.Client = paho.NewClient(o)
	if err := ended(l.Connect()); err != nil {
		l.Disconnect(0)
		return nil, err
	}
	t.Cleanup(func() { l.Disconnect(0) })
	return l, nil
}

// connect is a connection in order, listening to what comes down.
func (b *box) connect(t testing.TB) *line {
	t.Helper()
	l := must[*line](t)(dial(t, b.options(t)))
	check(t, ended(l.Subscribe(fleetapi.DownFilter(b.id), 1, nil)))
	return l
}

var errTokenHangs = errors.New("the broker does not answer")

func ended(token paho.Token) error {
	if !token.WaitTimeout(hang) {
		return errTokenHangs
	}
	return token.Error()
}

// say publishes a payload and waits for the acknowledgement.
func (l *line) say(t testing.TB, b *box, p fleetapi.Payload) {
	t.Helper()
	raw := must[[]byte](t)(fleetapi.Encode(p))
	check(t, ended(l.Publish(p.Subject().Topic(b.id), p.Subject().QoS(), p.Subject().Retained(), raw)))
}

// heard is a payload that reached a sink.
type heard struct {
	device  croft.DeviceID
	payload fleetapi.Payload
}

// sink tells of what it hears. Until it is open, it says to try again.
type sink struct {
	heard chan heard
	fail  func(h heard) error // asked first; may be nil
}

func newSink() *sink { return &sink{heard: make(chan heard, 10_000)} }

func (s *sink) hear(device croft.DeviceID, p fleetapi.Payload) error {
	h := heard{device, p}
	if s.fail != nil {
		if err := s.fail(h); err != nil {
			return err
		}
	}
	s.heard <- h
	return nil
}

func (s *sink) Hello(_ context.Context, d croft.DeviceID, m *fleetapi.Hello) error {
	return s.hear(d, m)
}

func (s *sink) State(_ context.Context, d croft.DeviceID, m *fleetapi.State) error {
	return s.hear(d, m)
}

func (s *sink) Batch(_ context.Context, d croft.DeviceID, m *fleetapi.Batch) error {
	return s.hear(d, m)
}

func (s *sink) Event(_ context.Context, d croft.DeviceID, m *fleetapi.Event) error {
	return s.hear(d, m)
}

func (s *sink) LogLines(_ context.Context, d croft.DeviceID, m *fleetapi.LogLines) error {
	return s.hear(d, m)
}

func (s *sink) JobStatus(_ context.Context, d croft.DeviceID, m *fleetapi.JobStatus) error {
	return s.hear(d, m)
}

var when = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func event(journal, seq uint64) *fleetapi.Event {
	return &fleetapi.Event{
		Origin: fleetapi.Origin{Journal: journal, Seq: seq}, At: when, Synced: true,
		Kind: "lease_started", Severity: fleetapi.SeverityInfo,
	}
}

func batch(seq uint64) *fleetapi.Batch {
	return &fleetapi.Batch{
		Epoch: 1, Seq: seq, BootID: "0d9b0b9e-3c2f-4d6e-9a55-0a3c5a1e7f10", Synced: true, Interval: 10 * time.Second,
		Times:  []time.Time{when},
		Series: []fleetapi.Series{{Name: "croft_load1", Values: []float64{0.5}}},
	}
}

func lost(epoch uint64) *fleetapi.State {
	return &fleetapi.State{Presence: fleetapi.Lost, Journal: 7, Epoch: epoch}
}

func online(epoch uint64) *fleetapi.State {
	return &fleetapi.State{Presence: fleetapi.Online, Journal: 7, Epoch: epoch}
}

// up is one payload of each subject that goes up.
func up() []fleetapi.Payload {
	return []fleetapi.Payload{
		&fleetapi.Hello{
			Journal: 7, Epoch: 1, Version: 1, At: when, Synced: true, BootID: "0d9b0b9e-3c2f-4d6e-9a55-0a3c5a1e7f10",
			Release: "1.4.0", Slot: croft.SlotA, Board: "uefi-x86",
		},
		online(1),
		batch(1),
		event(7, 1),
		&fleetapi.LogLines{Lines: []fleetapi.LogLine{{At: when, Level: "info", Text: "hello"}}},
		&fleetapi.JobStatus{
			Origin: fleetapi.Origin{Journal: 7, Seq: 2}, At: when, Synced: true, Job: "job_01KAKR9Z4N3V9Q2D5Y0W8KXR7M",
			State: fleetapi.Succeeded, Version: 1,
		},
	}
}

func describe(h heard) string { return fmt.Sprintf("%s of %.6s", h.payload.Subject(), h.device) }
