package simbox

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/deviceport"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/ingest"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// door is where a part of the fleet is reached.
type door struct{ host, address string }

var staff = device.Actor{ID: "usr_staff", Staff: true}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

// bubble runs a test with a fleet in a bubble of time.
func bubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	warm(t)
	url := dbtest.URL(t, dbtest.SQLite)
	synctest.Test(t, func(t *testing.T) { test(t, newWorld(t, newInternet(), url)) })
}

// warm makes what the codec keeps for the process outside of any bubble.
func warm(t testing.TB) {
	t.Helper()
	b := newModel(1, time.Now().Add(-time.Hour)).batch(time.Now(), 1, time.Second)
	b.Epoch, b.Seq, b.BootID = 1, 1, newBootID()
	raw := must(fleetapi.Encode(b))(t)
	must(fleetapi.Decode(fleetapi.SubjectReadings, raw))(t)
}

// world is a small fleet, and the internet between it and its boxes. The real
// wiring is package fleet's.
type world struct {
	t         testing.TB
	net       *internet // nil: the machine's own
	api, mqtt door
	rate      float64 // of connections; 0: ingest's own
	authority *enroll.Authority
	gate      *enroll.Gate
	devices   *device.Store
	jobs      *job.Store
	port      http.Handler
	in        atomic.Pointer[ingest.Ingest]
	stop      func() // the fleet as it runs now

	mu       sync.Mutex
	batches  []*fleetapi.Batch      // guarded by mu; that were stored
	bundles  map[string][]byte      // guarded by mu; by job
	numbered []fleetapi.Payload     // guarded by mu; that were given to the stores
	fail     error                  // guarded by mu; of all the sink is given
	devicely map[croft.DeviceID]int // guarded by mu; batches
}

func newWorld(t testing.TB, internet *internet, url string) *world {
	w := &world{
		t: t, net: internet, api: door{"fleet.example", "fleet.example:8443"}, mqtt: door{"broker.example", "broker.example:8883"}, bundles: map[string][]byte{}, devicely: map[croft.DeviceID]int{},
		authority: must(enroll.NewAuthority("example", time.Now()))(t),
	}
	if internet == nil {
		w.api, w.mqtt = door{"127.0.0.1", "127.0.0.1:0"}, door{"127.0.0.1", "127.0.0.1:0"}
		w.rate = 1e4 // by the clock on the wall nobody waits
	}
	revoked := &enroll.Revocations{}
	w.gate = must(enroll.NewGate(enroll.GateConfig{Roots: []*x509.Certificate{w.authority.Root()}, Revoked: revoked}))(t)
	if url != "" {
		d := dbtest.Open(t, url)
		w.devices = must(device.New(t.Context(), device.Config{
			DB: d, ClaimKey: must(enroll.NewClaimKey(make([]byte, 32)))(t), Revoked: revoked, Publisher: w, Audit: deviceAudit{},
		}))(t)
		w.jobs = must(job.New(t.Context(), job.Config{DB: d, Boxes: boxes{w.devices}, Publisher: w, Audit: jobAudit{}}))(t)
		w.port = must(deviceport.New(deviceport.Config{
			Store: w.devices, Gate: w.gate, Authority: func() *enroll.Authority { return w.authority },
			Policy:  enroll.Policy{FirstUse: enroll.FirstUseOpen},
			Brokers: w.brokers,
		}))(t)
		ctx, cancel := context.WithCancel(context.Background())
		var all sync.WaitGroup
		for _, run := range []func(context.Context) error{w.devices.Run, w.jobs.Run} {
			all.Go(func() {
				if err := run(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
		t.Cleanup(func() { cancel(); all.Wait() })
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) brokers() []string { return []string{"tls://" + w.mqtt.address} }

// listen opens a door; after a restart it is where it was.
func (w *world) listen(d *door) net.Listener {
	if w.net != nil {
		return w.net.listen(d.address)
	}
	l := must(net.Listen("tcp", d.address))(w.t)
	d.address = l.Addr().String()
	return l
}

// start runs the fleet's two doors.
func (w *world) start() {
	in := must(ingest.New(ingest.Config{Sink: sink{w}, Embedded: &ingest.Embedded{
		Listener: w.listen(&w.mqtt), TLS: w.gate.TLS(w.authority.Server(w.mqtt.host), enroll.Device), ConnectRate: w.rate,
		Judge: ingest.JudgeFunc(func(cs *tls.ConnectionState) (croft.DeviceID, error) {
			peer := w.gate.Judge(*cs)
			return peer.Device, peer.MayConnect()
		}),
	}}))(w.t)
	w.in.Store(in)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := in.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	server := &http.Server{Handler: http.HandlerFunc(w.serve), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo), TLSConfig: w.gate.TLS(w.authority.Server(w.api.host),
		enroll.Candidate, enroll.Device, enroll.Expired)}
	door := w.listen(&w.api)
	all.Go(func() {
		if err := server.ServeTLS(door, "", ""); !errors.Is(err, http.ErrServerClosed) {
			w.t.Error(err)
		}
	})
	w.stop = sync.OnceFunc(func() {
		w.in.Store(nil)
		cancel()
		if err := server.Close(); err != nil {
			w.t.Error(err)
		}
		all.Wait()
	})
}

// away stops the fleet for a while, without a word to its boxes.
func (w *world) away(d time.Duration) {
	w.stop()
	time.Sleep(d)
	w.start()
}

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		w.port.ServeHTTP(rw, r)
		return
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil || w.gate.Judge(*r.TLS).MayConnect() != nil {
		rw.WriteHeader(http.StatusForbidden)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bundles[r.URL.Path] = raw
	rw.WriteHeader(http.StatusNoContent)
}

var errAway = errors.New("the fleet is away")

// Publish is what the stores publish by.
func (w *world) Publish(ctx context.Context, id croft.DeviceID, p fleetapi.Payload) error {
	in := w.in.Load()
	if in == nil {
		return errAway
	}
	return in.Publish(ctx, id, p)
}

type deviceAudit struct{}

func (deviceAudit) Record(context.Context, device.Entry) error { return nil }

type jobAudit struct{}

func (jobAudit) Record(context.Context, job.Entry) error { return nil }

// boxes is what jobs must know of them.
type boxes struct{ devices *device.Store }

func (b boxes) Allowed(ctx context.Context, actor job.Actor, id croft.DeviceID) error {
	_, err := b.devices.Box(ctx, device.Actor(actor), id)
	return err
}

func (b boxes) Select(context.Context, job.Actor, string) ([]croft.DeviceID, error) {
	return nil, errors.ErrUnsupported
}

func (b boxes) Known(ctx context.Context, ids []croft.DeviceID) (map[croft.DeviceID]bool, error) {
	return b.devices.Known(ctx, ids)
}

// sink stores what boxes say.
type sink struct{ w *world }

// hear notes a message and reports whether it can be stored now.
func (s sink) hear(p fleetapi.Payload) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.fail != nil {
		return s.w.fail
	}
	if subject := p.Subject(); subject == fleetapi.SubjectEvent || subject == fleetapi.SubjectStatus {
		s.w.numbered = append(s.w.numbered, p)
	}
	return nil
}

func (s sink) store(ctx context.Context, id croft.DeviceID, p fleetapi.Payload) error {
	if err := s.hear(p); err != nil || s.w.devices == nil {
		return err
	}
	strangers, err := s.w.devices.Receive(ctx, []device.Message{{Device: id, At: time.Now(), Payload: p}})
	if strangers > 0 {
		s.w.t.Errorf("a stranger says %s", p.Subject())
	}
	return err
}

func (s sink) Hello(ctx context.Context, id croft.DeviceID, m *fleetapi.Hello) error {
	if err := s.store(ctx, id, m); err != nil || s.w.devices == nil {
		return err
	}
	box, err := s.w.devices.Box(ctx, staff, id)
	if err != nil {
		return err
	}
	if err := s.w.Publish(ctx, id, &box.Desired); err != nil {
		return err
	}
	return s.w.jobs.Resend(ctx, []croft.DeviceID{id})
}

func (s sink) State(ctx context.Context, id croft.DeviceID, m *fleetapi.State) error {
	return s.store(ctx, id, m)
}

func (s sink) Event(ctx context.Context, id croft.DeviceID, m *fleetapi.Event) error {
	return s.store(ctx, id, m)
}

func (s sink) LogLines(ctx context.Context, id croft.DeviceID, m *fleetapi.LogLines) error {
	return s.store(ctx, id, m)
}

func (s sink) JobStatus(ctx context.Context, id croft.DeviceID, m *fleetapi.JobStatus) error {
	if err := s.hear(m); err != nil {
		return err
	}
	_, err := s.w.jobs.Receive(ctx, []job.Status{{Device: id, At: time.Now(), Status: m}})
	return err
}

func (s sink) Batch(_ context.Context, id croft.DeviceID, m *fleetapi.Batch) error {
	if err := s.hear(m); err != nil {
		return err
	}
	if s.w.devices != nil {
		s.w.devices.Seen(id, time.Now())
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.batches = append(s.w.batches, m)
	s.w.devicely[id]++
	return nil
}

// refuseAll makes the sink say to try again, or stop doing so.
func (w *world) refuseAll(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

func (w *world) fleet() Fleet {
	return Fleet{URL: "https://" + w.api.address, Roots: []*x509.Certificate{w.authority.Root()}}
}

// config is of a box of this world.
func (w *world) config(dir string, number uint64) Config {
	return Config{
		Dir: dir, Number: number, Fleet: w.fleet(), Link: NewLink(w.net.from("203.0.113." + strconv.FormatUint(number, 10))),
	}
}

// running is a box that runs.
type running struct {
	*Box
	end func() // shuts it down
}

// run runs a box until end is called, or the test ends.
func run(t testing.TB, cfg Config) *running {
	t.Helper()
	b := must(Open(cfg))(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	r := &running{Box: b, end: sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, b.Close()); err != nil {
			t.Error(err)
		}
	})}
	t.Cleanup(r.end)
	synctest.Wait() // until it runs
	return r
}

// until passes time until something is so.
func until(t testing.TB, most time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(most); !ok(); time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// events is the stored events of a kind, by the field n.
func (w *world) events(id croft.DeviceID, kind string) map[string]int {
	found := map[string]int{}
	for cursor, more := "", true; more; more = cursor != "" {
		page, next, err := w.devices.Timeline(w.t.Context(), staff, id, cursor, 500)
		check(w.t, err)
		for _, e := range page {
			if e.Kind == kind {
				found[e.Fields["n"]]++
			}
		}
		cursor = next
	}
	return found
}

func (w *world) box(id croft.DeviceID) device.Box {
	w.t.Helper()
	return must(w.devices.Box(w.t.Context(), staff, id))(w.t)
}

// queue asks a box to do something.
func (w *world) queue(id croft.DeviceID, kind fleetapi.JobKind) job.Job {
	w.t.Helper()
	return must(w.jobs.Queue(w.t.Context(), job.Actor(staff), job.Order{Device: id, Kind: kind}))(w.t)
}

func (w *world) state(id string) job.Job {
	w.t.Helper()
	return must(w.jobs.Job(w.t.Context(), job.Actor(staff), id))(w.t)
}
