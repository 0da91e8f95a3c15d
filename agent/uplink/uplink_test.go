package uplink

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}

// fleet is what boxes enrol at: the real checks, and a list of one broker.
type fleet struct {
	authority *enroll.Authority
	revoked   enroll.Revocations
	gate      *enroll.Gate
	url       string
	broker    *broker

	mu     sync.Mutex
	refuse error                                                                      // guarded by mu; answer to all requests
	asked  []string                                                                   // guarded by mu; paths, with "+voucher"
	life   func(time.Time) time.Time                                                  // guarded by mu; the time at which certificates begin
	claims []enroll.ClaimHash                                                         // guarded by mu; of the claim codes that it was told
	answer func(r *http.Request, p enroll.Peer, raw []byte) (status int, text string) // guarded by mu; to uploads
}

func newFleet(t testing.TB) *fleet {
	f := &fleet{life: func(now time.Time) time.Time { return now }}
	f.authority = testAuthority(t)
	var err error
	f.gate, err = enroll.NewGate(enroll.GateConfig{Roots: []*x509.Certificate{f.authority.Root()}, Revoked: &f.revoked})
	check(t, err)
	f.broker = newBroker(t, f.gate.TLS(f.authority.Server("127.0.0.1"), enroll.Device))
	l, err := tls.Listen("tcp", "127.0.0.1:0", f.gate.TLS(f.authority.Server("127.0.0.1"),
		enroll.Candidate, enroll.Device, enroll.Expired, enroll.Lapsed, enroll.Revoked))
	check(t, err)
	f.url = "https://" + l.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(f.serve), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return f
}

// testAuthority is two years old: it can make certificates that are over.
func testAuthority(t testing.TB) *enroll.Authority {
	a, err := enroll.NewAuthority("test", time.Now().AddDate(-2, 0, 0))
	check(t, err)
	return a
}

func (f *fleet) serve(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	refuse, begin := f.refuse, f.life(time.Now())
	path := r.URL.Path
	if strings.Contains(string(raw), `"voucher"`) {
		path += "+voucher"
	}
	f.asked = append(f.asked, path)
	f.mu.Unlock()
	peer := f.gate.Judge(*r.TLS)
	if r.Method == http.MethodPut {
		status, text := f.answer(r, peer, raw)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
		return
	}
	reply := func() (any, error) {
		if refuse != nil {
			return nil, refuse
		}
		var csr []byte
		switch r.URL.Path {
		case enroll.PathEnroll:
			if err := peer.MayEnroll(); err != nil {
				return nil, err
			}
			req, err := enroll.ParseRequest(raw)
			if err != nil {
				return nil, err
			}
			if req.Voucher != "" {
				return nil, &enroll.Refusal{Reason: enroll.ReasonVoucherUsed, Text: "voucher was used"}
			}
			csr = req.CSR
			f.mu.Lock()
			f.claims = append(f.claims, req.Claim)
			f.mu.Unlock()
		case enroll.PathRenew:
			if err := peer.MayRenew(); err != nil {
				return nil, err
			}
			req, err := enroll.ParseRenewal(raw)
			if err != nil {
				return nil, err
			}
			csr = req.CSR
		default:
			return enroll.NewTimeReply(time.Now()), nil
		}
		issued, err := f.authority.IssueDevice(csr, peer, begin)
		if err != nil {
			return nil, err
		}
		return enroll.NewReply(issued, []string{f.broker.url()}, time.Now()), nil
	}
	answer, err := reply()
	if err != nil {
		refusal, ok := errors.AsType[*enroll.Refusal](err)
		if !ok {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		answer = refusal
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (f *fleet) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// box is an uplink and what it stands on.
type box struct {
	*Uplink
	dir    string
	key    *ecdsa.PrivateKey
	device croft.DeviceID
	stop   context.CancelFunc
	ended  chan error
}

func known() (time.Time, bool)   { return time.Now(), true }
func unknown() (time.Time, bool) { return time.Date(1970, 1, 1, 0, 10, 0, 0, time.UTC), false }

const testBoot = "0fb3e4e5-8a5b-4c5e-9d2e-3f1f6a7b8c9d"

func testConfig(t testing.TB, f *fleet, dir string, key *ecdsa.PrivateKey) Config {
	j, err := journal.Open(journal.Config{Path: filepath.Join(dir, "journal")})
	check(t, err)
	t.Cleanup(func() { _ = j.Close() }) // closed before by those who restart
	return Config{
		Dir: filepath.Join(dir, "uplink"), Journal: j, Key: key,
		Fleet: f.url, Roots: []*x509.Certificate{f.authority.Root()}, Clock: known,
		BootID: testBoot, Board: "uefi-x86", Release: "1.0.0", Slot: croft.SlotA,
	}
}

// hurry makes pauses of milliseconds.
func hurry() pauses {
	b := backoff{least: time.Millisecond, spread: 3 * time.Millisecond, most: 20 * time.Millisecond}
	return pauses{failure: b, refusal: b}
}

func newBox(t testing.TB, f *fleet, dir string, key *ecdsa.PrivateKey, change func(*Config)) *box {
	cfg := testConfig(t, f, dir, key)
	if change != nil {
		change(&cfg)
	}
	u, err := New(cfg)
	check(t, err)
	u.pauses, u.enrolment.pauses = hurry(), hurry()
	return &box{Uplink: u, dir: dir, key: key, device: u.cfg.device, ended: make(chan error, 1)}
}

func (b *box) start(t testing.TB) *box {
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	go func() { b.ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		if b.stop != nil {
			b.shutdown(t)
		}
	})
	return b
}

func (b *box) shutdown(t testing.TB) {
	b.stop()
	check(t, <-b.ended)
	check(t, b.cfg.Journal.Close())
	b.stop = nil
}

func anyOf[T any](T) bool { return true }

type constant struct{ reads atomic.Int64 }

func (c *constant) Read(context.Context) ([]fleetapi.Reading, time.Time) {
	c.reads.Add(1)
	return []fleetapi.Reading{{Name: "croft_load1", Value: 0.5}}, time.Now()
}

func TestBoxEnrolsSpeaksAndSaysGoodbye(t *testing.T) {
	f := newFleet(t)
	wanted := make(chan fleetapi.Desired, 8)
	b := newBox(t, f, t.TempDir(), newKey(t), func(c *Config) {
		c.Sampler = &constant{}
		c.Scrub = func(s string) string { return strings.ReplaceAll(s, "hunter2", "***") }
		c.Desired = func(d fleetapi.Desired) { wanted <- d }
		c.Voucher = "croft1.used.voucher"
	})
	if s := b.Status(); s.Enrolment != Unenrolled || s.Connected {
		t.Errorf("before: %+v", s)
	}
	slog.New(b.LogHandler()).With("password", "hunter2").Warn("disk is slow")
	b.start(t)
	b.Event("lease_started", fleetapi.SeverityInfo, "A lease began.", map[string]string{"lease": "7"})

	find(f.broker, anyOf[*fleetapi.Event])
	find(f.broker, anyOf[*fleetapi.Batch])
	lines := find(f.broker, anyOf[*fleetapi.LogLines]).payload.(*fleetapi.LogLines)
	if got := lines.Lines[0].Text; got != "disk is slow password=***" {
		t.Errorf("log line is %q", got)
	}
	var kinds []string
	for _, m := range f.broker.messages() {
		switch p := m.payload.(type) {
		case *fleetapi.Hello:
			kinds = append(kinds, "hello")
			if p.Epoch != 1 || p.Journal == 0 || !p.Synced {
				t.Errorf("hello: %+v", p)
			}
		case *fleetapi.State:
			kinds = append(kinds, "state")
			if !m.retained || p.Presence != fleetapi.Online {
				t.Errorf("state: %+v %+v", m, p)
			}
		case *fleetapi.Event:
			if p.Seq != 1 || p.Kind != "lease_started" || fleetapi.LabelValue(p.Fields, "sentence") != "A lease began." || m.qos != 1 {
				t.Errorf("event: %+v %+v", m, p)
			}
		}
	}
	if !slices.Equal(kinds, []string{"hello", "state"}) {
		t.Errorf("session began with %v", kinds)
	}
	if s := b.Status(); !s.Connected || s.Problem != "" || s.Enrolment != Enrolled || time.Until(s.CertificateUntil) < 80*24*time.Hour {
		t.Errorf("status: %+v", s)
	}
	if got := f.requests(); !slices.Equal(got, []string{"/v1/enroll+voucher", "/v1/enroll"}) {
		t.Errorf("requests: %v", got)
	}

	f.broker.say(string(b.device), &fleetapi.Desired{Version: 5, Name: "attic", Interval: time.Minute})
	f.broker.say(string(b.device), &fleetapi.Desired{Version: 4, Name: "old", Interval: time.Minute})
	f.broker.say(string(b.device), &fleetapi.Desired{Version: 6, Claimed: true, Name: "cellar", Interval: time.Minute})
	for d := range wanted {
		if d.Name == "old" {
			t.Error("an old version was handed on")
		}
		if d.Version == 6 {
			break
		}
	}
	b.shutdown(t)
	bye := find(f.broker, func(s *fleetapi.State) bool { return s.Presence == fleetapi.Lost })
	if bye.will || !bye.retained {
		t.Errorf("farewell: %+v", bye)
	}

	// After a restart the certificate and the wishes are there, and the session
	// has another number.
	again := newBox(t, f, b.dir, b.key, func(c *Config) { c.Desired = func(d fleetapi.Desired) { wanted <- d } }).start(t)
	if d := <-wanted; d.Version != 6 || !d.Claimed {
		t.Errorf("stored wishes: %+v", d)
	}
	find(f.broker, func(h *fleetapi.Hello) bool { return h.Epoch == 2 })
	if got := f.requests(); len(got) != 2 {
		t.Errorf("requests after restart: %v", got)
	}
	again.Event("second", fleetapi.SeverityInfo, "", nil)
	find(f.broker, func(e *fleetapi.Event) bool { return e.Kind == "second" && e.Seq == 2 })
}

func TestBoxThatDoesNotKnowTheTimeEnrols(t *testing.T) {
	f := newFleet(t)
	var floor atomic.Pointer[time.Time]
	b := newBox(t, f, t.TempDir(), newKey(t), func(c *Config) {
		c.Clock = unknown
		c.TimeFloor = func(at time.Time) { floor.Store(&at) }
	}).start(t)
	hello := find(f.broker, anyOf[*fleetapi.Hello]).payload.(*fleetapi.Hello)
	if hello.Synced {
		t.Error("hello says that the clock is known")
	}
	if at := floor.Load(); at == nil || time.Since(*at) > time.Hour {
		t.Errorf("floor is %v", at)
	}
	if !slices.Contains(f.requests(), enroll.PathTime) {
		t.Errorf("requests: %v", f.requests())
	}
	if !b.Status().Connected && b.Status().Problem != "" {
		t.Errorf("status: %+v", b.Status())
	}
}

func TestExpiredCertificateIsRenewed(t *testing.T) {
	for _, tc := range []struct {
		name  string
		began time.Duration // before now
		want  []string
	}{
		{"a certificate past a third of its life is renewed", 40 * 24 * time.Hour, []string{"/v1/enroll", "/v1/renew"}},
		{"an expired certificate is renewed", 100 * 24 * time.Hour, []string{"/v1/enroll", "/v1/renew"}},
		{"a certificate that lapsed is replaced by enrolling", 500 * 24 * time.Hour, []string{"/v1/enroll", "/v1/renew", "/v1/enroll"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFleet(t)
			f.life = func(now time.Time) time.Time { return now.Add(-tc.began) }
			dir, key := t.TempDir(), newKey(t)
			first := newBox(t, f, dir, key, nil)
			check(t, first.enrolment.ask(t.Context()))
			check(t, first.cfg.Journal.Close())
			f.life = func(now time.Time) time.Time { return now }
			b := newBox(t, f, dir, key, nil)
			if s := b.Status(); s.Enrolment != Enrolled {
				t.Fatalf("status: %+v", s)
			}
			b.start(t)
			f.broker.until(func([]message) bool {
				return b.live.Load() != nil && time.Until(b.Status().CertificateUntil) > 80*24*time.Hour
			})
			if got := f.requests(); !slices.Equal(got, tc.want) {
				t.Errorf("requests: %v, want %v", got, tc.want)
			}
		})
	}
}

func TestRefusalIsToldInWords(t *testing.T) {
	f := newFleet(t)
	f.refuse = &enroll.Refusal{Reason: enroll.ReasonSerialUnlisted, Text: "serial number is not expected"}
	b := newBox(t, f, t.TempDir(), newKey(t), nil)
	err := b.enrolment.ask(t.Context())
	if enroll.ReasonOf(err) != enroll.ReasonSerialUnlisted || !isRefusal(err) {
		t.Errorf("error: %v", err)
	}
	s := b.Status()
	if s.Enrolment != Unenrolled || !strings.HasPrefix(s.Problem, "Serial number is not expected") || !strings.HasSuffix(s.Problem, ".") {
		t.Errorf("status: %+v", s)
	}
}

func TestStrangersFleetIsNotBelieved(t *testing.T) {
	f, stranger := newFleet(t), newFleet(t)
	b := newBox(t, f, t.TempDir(), newKey(t), func(c *Config) { c.Roots = []*x509.Certificate{stranger.authority.Root()} })
	if err := b.enrolment.ask(t.Context()); enroll.ReasonOf(err) != enroll.ReasonServer {
		t.Errorf("error: %v", err)
	}
	if len(f.requests()) != 0 {
		t.Errorf("requests: %v", f.requests())
	}
}

func TestBrokerThatRefusesTheCertificateStartsARenewal(t *testing.T) {
	f := newFleet(t)
	b := newBox(t, f, t.TempDir(), newKey(t), nil)
	check(t, b.enrolment.ask(t.Context()))
	cert, _ := b.enrolment.current()
	f.revoked.Add(nil, []enroll.CertID{enroll.CertIDOf(cert.Leaf)})
	err := b.hold(t.Context(), f.broker.url(), cert)
	if !isRefusal(err) {
		t.Fatalf("refused certificate: %v is no refusal", err)
	}
	if got := words("x", err); got != "The fleet at x does not accept this box's certificate." {
		t.Errorf("words: %s", got)
	}
	b.enrolment.doubt(cert)
	if due, byKey := b.enrolment.due(); !due || byKey {
		t.Error("renewal is not due")
	}
	f.broker.code = 5
	fresh := newBox(t, f, t.TempDir(), newKey(t), nil)
	check(t, fresh.enrolment.ask(t.Context()))
	cert, _ = fresh.enrolment.current()
	if err := fresh.hold(t.Context(), f.broker.url(), cert); !isRefusal(err) {
		t.Errorf("CONNACK not authorised: %v is no refusal", err)
	}
}

func TestBrokenCertificateFileIsEnrolledAnew(t *testing.T) {
	f := newFleet(t)
	dir := t.TempDir()
	check(t, os.MkdirAll(filepath.Join(dir, "uplink"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "uplink", enrolledFile), []byte(`{"certificate":"-----BEGIN`), 0o600))
	newBox(t, f, dir, newKey(t), nil).start(t)
	find(f.broker, anyOf[*fleetapi.Hello])
}

func TestEverythingWorksWithoutADisk(t *testing.T) {
	f := newFleet(t)
	ran := 0
	run := func(context.Context, fleetapi.Job) (Result, error) { ran++; return Result{}, nil }
	b := newBox(t, f, t.TempDir(), newKey(t), func(c *Config) {
		c.Dir, c.Journal = "", journal.NewMemory()
		c.Handlers = map[fleetapi.JobKind]Handler{"reboot": {Run: run}, "bundle": {Run: run, Repeatable: true}}
	})
	b.Event("perm_lost", fleetapi.SeverityError, "The disk is gone.", nil)
	b.start(t)
	find(f.broker, func(e *fleetapi.Event) bool { return e.Kind == "perm_lost" && e.Seq == 1 })
	reboot := fleetapi.Job{ID: fleetapi.NewID(fleetapi.PrefixJob), Kind: "reboot"}
	bundle := fleetapi.Job{ID: fleetapi.NewID(fleetapi.PrefixJob), Kind: "bundle"}
	f.broker.say(string(b.device), &reboot)
	f.broker.say(string(b.device), &bundle)
	find(f.broker, func(s *fleetapi.JobStatus) bool {
		return s.Job == reboot.ID && s.State == fleetapi.Rejected && s.Detail == noMemory
	})
	find(f.broker, func(s *fleetapi.JobStatus) bool { return s.Job == bundle.ID && s.State == fleetapi.Succeeded })
	b.shutdown(t)
	if ran != 1 {
		t.Errorf("%d jobs ran", ran)
	}
}

func TestReadingsOfAnOutageComeNewestFirst(t *testing.T) {
	f := newFleet(t)
	dir, key := t.TempDir(), newKey(t)
	b := newBox(t, f, dir, key, nil)
	m := &telemetry{u: b.Uplink, every: time.Second, synced: true}
	for i := range 3 {
		check(t, m.builder.Add(time.Unix(int64(1000+i), 0), []fleetapi.Reading{{Name: "croft_load1", Value: 1}}))
		m.flush(t.Context())
	}
	b.record(event{at: wireTime(time.Now()), kind: "first", severity: fleetapi.SeverityInfo})
	check(t, b.enrolment.ask(t.Context()))
	b.start(t)
	f.broker.until(func(all []message) bool {
		var order []string
		for _, m := range all {
			switch p := m.payload.(type) {
			case *fleetapi.Event:
				order = append(order, p.Kind)
			case *fleetapi.Batch:
				order = append(order, p.Times[0].Format("05"))
				if m.qos != 1 || p.Epoch != 1 {
					t.Errorf("late batch: %+v %+v", m, p)
				}
			}
		}
		if len(order) < 4 {
			return false
		}
		if !slices.Equal(order, []string{"first", "42", "41", "40"}) {
			t.Errorf("order is %v", order)
		}
		return true
	})
}

func TestForeignMessagesAreCounted(t *testing.T) {
	f := newFleet(t)
	b := newBox(t, f, t.TempDir(), newKey(t), nil)
	other := "croft/v1/" + strings.Repeat("a", 32) + "/dn/job"
	own := fleetapi.SubjectJob.Topic(b.device)
	raw, err := fleetapi.Encode(&fleetapi.Job{ID: fleetapi.NewID(fleetapi.PrefixJob), Kind: "reboot"})
	check(t, err)
	b.receive(other, raw)
	b.receive(own, raw[:len(raw)-1])
	b.receive("nonsense", nil)
	b.receive(fleetapi.SubjectState.Topic(b.device), raw)
	if n := b.Status().Refused; n != 4 {
		t.Errorf("%d refused", n)
	}
	if len(b.jobs.records) != 0 {
		t.Error("a foreign job was taken")
	}
}

func TestConfigIsChecked(t *testing.T) {
	f := newFleet(t)
	for name, change := range map[string]func(*Config){
		"no journal":         func(c *Config) { c.Journal = nil },
		"plain HTTP":         func(c *Config) { c.Fleet = "http://fleet.example" },
		"plain MQTT":         func(c *Config) { c.Brokers = []string{"tcp://fleet.example:1883"} },
		"no board":           func(c *Config) { c.Board = "" },
		"a handler of none":  func(c *Config) { c.Handlers = map[fleetapi.JobKind]Handler{"reboot": {}} },
		"readings too often": func(c *Config) { c.ReadEvery = time.Millisecond },
	} {
		cfg := testConfig(t, f, t.TempDir(), newKey(t))
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
