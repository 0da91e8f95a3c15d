//go:build integration

package ingest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/ingest"
)

// worlds are the brokers of this test binary.
func worlds() map[string]func(testing.TB) *world {
	return map[string]func(testing.TB) *world{
		"embedded":  embedded,
		"mosquitto": func(t testing.TB) *world { return newMosquitto(t).world },
	}
}

// mosquitto is Debian's, with our configuration, in a folder of its own.
type mosquitto struct {
	*world
	conf  string
	fleet string // address for the fleet
	url   func(address string) string
	tls   *tls.Config
	cmd   *exec.Cmd
	log   bytes.Buffer
	done  chan struct{}
}

const password = "correct horse/battery" // with what must be escaped in a URL

func newMosquitto(t testing.TB) *mosquitto {
	t.Helper()
	m := &mosquitto{world: newWorld(t)}
	dir := t.TempDir()
	file := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		check(t, os.WriteFile(path, text, 0o600))
		return path
	}
	server := must[*tls.Certificate](t)(m.authority.ServerCertificate(time.Now(), "127.0.0.1"))
	var chain []byte
	for _, der := range server.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key := must[[]byte](t)(x509.MarshalPKCS8PrivateKey(server.PrivateKey))
	conf := ingest.Mosquitto{
		DeviceAddress: "127.0.0.1", DevicePort: freePort(t),
		FleetAddress: "127.0.0.1", FleetPort: freePort(t),
		Roots:        file("roots.pem", m.authority.RootCertificate()),
		Cert:         file("server.pem", chain),
		Key:          file("server-key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		PasswordFile: filepath.Join(dir, "passwords"), Dir: dir,
	}
	conf.ACLFile = file("acl", []byte(conf.ACL()))
	out, err := exec.Command("mosquitto_passwd", "-c", "-b", conf.PasswordFile, ingest.FleetUser, password).CombinedOutput()
	if err != nil {
		t.Fatalf("mosquitto_passwd: %v: %s (on Debian: apt-get install mosquitto)", err, out)
	}
	// As root Mosquitto would become a user who may not read the test's folder.
	m.conf = file("mosquitto.conf", []byte(conf.Config()+"\nuser root\n"))
	m.address = fmt.Sprintf("127.0.0.1:%d", conf.DevicePort)
	m.fleet = fmt.Sprintf("127.0.0.1:%d", conf.FleetPort)
	m.tls = &tls.Config{RootCAs: x509.NewCertPool()}
	m.tls.RootCAs.AddCert(m.authority.Root())
	m.url = func(address string) string { return "mqtts://fleet:correct%20horse%2Fbattery@" + address }
	m.config = func(_ testing.TB, cfg *ingest.Config) {
		if cfg.External == nil {
			cfg.External = &ingest.External{URL: m.url(m.fleet), TLS: m.tls}
		}
	}
	m.restart = func(t testing.TB, r *replica) *replica {
		m.stop(t)
		m.run(t)
		return r
	}
	t.Cleanup(func() { m.stop(t) })
	m.run(t)
	return m
}

func freePort(t testing.TB) int {
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (m *mosquitto) run(t testing.TB) {
	t.Helper()
	m.cmd = exec.Command("/usr/sbin/mosquitto", "-c", m.conf)
	m.cmd.Stdout, m.cmd.Stderr = &m.log, &m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, m.cmd.Start())
	m.done = make(chan struct{})
	go func() {
		_ = m.cmd.Wait()
		close(m.done)
	}()
	for _, address := range []string{m.address, m.fleet} {
		until(t, "mosquitto listens", func() bool {
			c, err := net.Dial("tcp", address)
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		})
	}
}

func (m *mosquitto) stop(t testing.TB) {
	t.Helper()
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	await(t, m.done, "the end of mosquitto")
	if t.Failed() {
		t.Logf("mosquitto: %s", tail(m.log.Bytes(), 4000))
	}
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// wire is a way to the broker that can be cut.
type wire struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func newWire(t testing.TB, network, at, to string) *wire {
	w := &wire{Listener: must[net.Listener](t)(net.Listen(network, at))}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := w.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial(network, to)
			if err != nil {
				_ = in.Close()
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, in, out)
			w.mu.Unlock()
			all.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
			all.Go(func() { _, _ = io.Copy(in, out); _ = in.Close() })
		}
	})
	t.Cleanup(func() { w.sever(); all.Wait() })
	return w
}

// sever cuts it for good.
func (w *wire) sever() {
	_ = w.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
}

// TestOneOfTwoReplicasKilledLosesNothing cuts a replica off from broker
// and database in the middle, with messages in its hands, as kill -9 does: the
// other takes over its sessions and what they still hold.
func TestOneOfTwoReplicasKilledLosesNothing(t *testing.T) {
	m := newMosquitto(t)
	database := must[*url.URL](t)(url.Parse(dbtest.URL(t, dbtest.PostgreSQL)))
	const socket = ".s.PGSQL.5432"
	var replicas []*replica
	var stores []*store
	var toBroker, toDatabase []*wire
	for i := range 2 {
		dir := must[string](t)(os.MkdirTemp("", "wire")) //nolint:usetesting // the path of a socket must be short
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		query := database.Query()
		toDatabase = append(toDatabase, newWire(t, "unix", filepath.Join(dir, socket), filepath.Join(query.Get("host"), socket)))
		query.Set("host", dir)
		mine := *database
		mine.RawQuery = query.Encode()
		d := must[*db.DB](t)(db.Open(t.Context(), mine.String(), nil))
		var s *store
		if i == 0 {
			s = newStore(t, d)
		} else {
			s = &store{sink: newSink(), d: d}
		}
		w := newWire(t, "tcp", "127.0.0.1:0", m.fleet)
		stores, toBroker = append(stores, s), append(toBroker, w)
		replicas = append(replicas, m.start(t, ingest.Config{Sink: s, External: &ingest.External{
			URL: m.url(w.Addr().String()), TLS: m.tls, DB: d,
		}}))
	}
	for _, r := range replicas {
		until(t, "replicas hear what comes by QoS 0", func() bool { return r.Stats().Shares })
	}
	holder := func() int { return slices.IndexFunc(replicas, func(r *replica) bool { return r.Stats().Holds }) }
	until(t, "a replica has the session", func() bool { return holder() >= 0 })
	dies := holder()
	survivor := replicas[1-dies]

	const boxes, n = 4, 100
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	var all sync.WaitGroup
	sent := make(chan struct{}, boxes*n)
	for range boxes {
		b := m.box(t)
		all.Go(func() {
			if err := b.deliver(ctx, t, n, func() { sent <- struct{}{} }); err != nil {
				t.Error(err)
			}
		})
	}
	for range boxes * n / 3 {
		await(t, sent, "events")
	}
	until(t, "it has stored some", func() bool { return replicas[dies].Stats().Stored[fleetapi.SubjectEvent] >= 10 })
	stores[dies].dead.Store(true)
	until(t, "the replica has messages it cannot store", func() bool { return replicas[dies].Stats().Queued > 0 })
	toBroker[dies].sever()
	toDatabase[dies].sever()
	all.Wait()
	alive := stores[1-dies]
	until(t, "all are stored", func() bool { return alive.count(t) == boxes*n })
	until(t, "the other replica has the session", func() bool { return survivor.Stats().Holds })
	for i, r := range replicas {
		r.stop()
		check(t, stores[i].d.Close())
	}
}

// TestEachReplicaHasAllReadings has readings come to both replicas, once to each, and
// each payload of log lines to one of them.
func TestEachReplicaHasAllReadings(t *testing.T) {
	m := newMosquitto(t)
	d := dbtest.Open(t, dbtest.URL(t, dbtest.SQLite))
	var replicas []*replica
	var sinks []*sink
	for range 2 {
		sinks = append(sinks, newSink())
		replicas = append(replicas, m.start(t, ingest.Config{Sink: sinks[len(sinks)-1], External: &ingest.External{URL: m.url(m.fleet), TLS: m.tls, DB: d}}))
	}
	for _, r := range replicas {
		defer r.stop()
		until(t, "it hears", func() bool { return r.Stats().Shares })
	}
	until(t, "one has the session", func() bool { return replicas[0].Stats().Holds || replicas[1].Stats().Holds })
	b := m.box(t)
	l := b.connect(t)
	const n = 40
	for seq := range uint64(n) {
		l.say(t, b, batch(seq+1))
		l.say(t, b, &fleetapi.LogLines{Lines: []fleetapi.LogLine{{At: when, Level: "info", Text: "hello"}}})
	}
	for _, r := range replicas {
		until(t, "it has all readings", func() bool { return r.Stats().Stored[fleetapi.SubjectReadings] >= n })
	}
	until(t, "both have all log lines", func() bool {
		return replicas[0].Stats().Stored[fleetapi.SubjectLog]+replicas[1].Stats().Stored[fleetapi.SubjectLog] >= n
	})
	l.say(t, b, event(7, 1)) // whatever came twice has come by now
	until(t, "the event is stored", func() bool {
		return replicas[0].Stats().Stored[fleetapi.SubjectEvent]+replicas[1].Stats().Stored[fleetapi.SubjectEvent] == 1
	})
	logs := uint64(0)
	for i, r := range replicas {
		if got := r.Stats().Stored[fleetapi.SubjectReadings]; got != n {
			t.Errorf("replica %d has %d batches, want %d", i, got, n)
		}
		logs += r.Stats().Stored[fleetapi.SubjectLog]
	}
	if logs != n {
		t.Errorf("both have %d payloads of log lines, want %d", logs, n)
	}
}

// TestSpooledReadingsWaitForAReplica has a box send its spool while there is none.
func TestSpooledReadingsWaitForAReplica(t *testing.T) {
	m := newMosquitto(t)
	first := m.start(t, ingest.Config{Sink: newSink()})
	first.stop()
	b := m.box(t)
	l := b.connect(t)
	lines := &fleetapi.LogLines{Lines: []fleetapi.LogLine{{At: when, Level: "info", Text: "hello"}}}
	for _, p := range []fleetapi.Payload{batch(1), lines} {
		check(t, ended(l.Publish(p.Subject().Topic(b.id), 1, false, must[[]byte](t)(fleetapi.Encode(p)))))
	}
	s := newSink()
	m.start(t, ingest.Config{Sink: s})
	for _, want := range []fleetapi.Subject{fleetapi.SubjectReadings, fleetapi.SubjectLog} {
		if h := await(t, s.heard, "what was spooled"); h.device != b.id || h.payload.Subject() != want {
			t.Errorf("heard %s, want %s", describe(h), want)
		}
	}
}

// TestMosquittoTakesNobodyElse tries the doors of a broker with our
// configuration.
func TestMosquittoTakesNobodyElse(t *testing.T) {
	m := newMosquitto(t)
	b := m.box(t)
	stranger := newWorld(t).box(t)
	for name, try := range map[string]func() error{
		"without a certificate": func() error {
			_, err := dial(t, b.options(t).SetTLSConfig(m.tls.Clone()))
			return err
		},
		"with another fleet's certificate": func() error {
			_, err := dial(t, b.options(t).SetTLSConfig(&tls.Config{RootCAs: m.tls.RootCAs, Certificates: []tls.Certificate{*stranger.cert}}))
			return err
		},
		"as a device without password at the fleet's door": func() error {
			o := b.options(t)
			o.Servers = nil
			_, err := dial(t, o.AddBroker("ssl://"+m.fleet))
			return err
		},
		"with a wrong password": func() error {
			o := b.options(t).SetUsername("fleet").SetPassword("wrong")
			o.Servers = nil
			_, err := dial(t, o.AddBroker("ssl://"+m.fleet))
			return err
		},
	} {
		if try() == nil {
			t.Errorf("connected %s", name)
		}
	}
	// A name that is not the certificate's changes nothing: it is not used.
	l := must[*line](t)(dial(t, b.options(t).SetClientID(ingest.SessionName).SetUsername("fleet").SetPassword(password)))
	s := newSink()
	m.start(t, ingest.Config{Sink: s})
	l.say(t, b, event(7, 1))
	if h := await(t, s.heard, "the event"); h.device != b.id {
		t.Errorf("heard %s", describe(h))
	}
	if !l.IsConnectionOpen() {
		t.Error("the fleet's session ended a device's connection of the same name")
	}
}
