//go:build integration

package fleettest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/internal/rig/outside"
	"github.com/croft-cloud/croft/internal/simbox"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// patience is how long a test waits for what takes moments on a quiet machine.
const patience = 3 * time.Minute

var program string // croft-fleet

// client asks the fleet.
var client = &http.Client{Timeout: patience}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "fleettest")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "croft-fleet")
		if err := outside.Build(context.Background(), "../..", "./cmd/croft-fleet", program); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// world is a fleet of one or two replicas, with what they need.
type world struct {
	replicas []*outside.Fleet
	broker   *mosquitto // nil: it is built in
	web      *door      // where people find one of the replicas
	device   *door      // where boxes find one
	origin   string
	mails    *mailbox
	boxes    simbox.Fleet
	numbers  atomic.Uint64
}

// each runs a test on both set-ups.
func each(t *testing.T, test func(t *testing.T, w *world)) {
	t.Run("alone", func(t *testing.T) { test(t, newWorld(t, 1)) })
	t.Run("two replicas, PostgreSQL, Mosquitto", func(t *testing.T) { test(t, newWorld(t, 2)) })
}

func newWorld(t *testing.T, replicas int) *world {
	t.Helper()
	w := &world{mails: newMailbox(t), web: newDoor(t), device: newDoor(t)}
	w.origin = fmt.Sprintf("http://localhost:%d", w.web.port())
	dir := t.TempDir()
	args := []string{"--mail", "smtp://" + w.mails.address + "?from=fleet@example.org&tls=no", "--connect-rate", "1000"}
	port := freePort(t)
	brokers := []string{fmt.Sprintf("tls://127.0.0.1:%d", port)} // of the one that is built in
	if replicas > 1 {
		w.broker = newMosquitto(t, filepath.Join(dir, "broker"))
		brokers = []string{"tls://" + w.broker.forBoxes}
		args = append(args,
			"--database", dbtest.URL(t, dbtest.PostgreSQL), "--key", filepath.Join(dir, "fleet.key"), "--blobs", "file://"+filepath.Join(dir, "blobs"),
			"--broker", w.broker.url(), "--broker-files", w.broker.dir)
	}
	for i := range replicas {
		f, err := outside.NewFleet(outside.FleetConfig{
			Dir: filepath.Join(dir, fmt.Sprint(i)), Program: program, Broker: uint16(port), Origin: w.origin, Brokers: brokers, Args: args,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := f.Stop(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Logf("replica %d said:\n%s", i, tail(f.Log()))
			}
		})
		w.start(t, f)
		if i == 0 && w.broker != nil {
			w.broker.start(t) // the fleet has written what it needs
		}
		w.replicas = append(w.replicas, f)
		w.web.leadTo(f.Web())
		w.device.leadTo(f.Device())
	}
	roots, err := enroll.ParseRoots([]byte(w.replicas[0].Join(outside.FromHost).Roots[0]))
	if err != nil {
		t.Fatal(err)
	}
	w.boxes = simbox.Fleet{URL: "https://" + w.device.address(), Roots: roots}
	return w
}

func (w *world) start(t *testing.T, f *outside.Fleet) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

// box switches a box on.
func (w *world) box(t *testing.T) *simbox.Box {
	t.Helper()
	return w.boxOf(t, simbox.Config{})
}

func (w *world) boxOf(t *testing.T, cfg simbox.Config) *simbox.Box {
	t.Helper()
	cfg.Dir, cfg.Fleet, cfg.Number = t.TempDir(), w.boxes, w.numbers.Add(1)
	cfg.ReadEvery, cfg.PublishEvery = time.Second, 2*time.Second
	b, err := simbox.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("box ended: %v", err)
		}
		b.Close()
	})
	return b
}

// until asks again and again until ok.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}

func tail(path string) []byte {
	raw, _ := os.ReadFile(path)
	return raw[max(0, len(raw)-6000):]
}

// door is a load balancer: a fixed address from which connections go to one of those
// that answer, one after another.
type door struct {
	listener net.Listener

	mu   sync.Mutex
	to   []string // guarded by mu
	next int      // guarded by mu
}

func newDoor(t *testing.T) *door {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { d.carry(c) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return d
}

func (d *door) address() string { return d.listener.Addr().String() }
func (d *door) port() int       { return d.listener.Addr().(*net.TCPAddr).Port }

func (d *door) leadTo(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.to = append(d.to, address)
}

func (d *door) dial() net.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range d.to {
		d.next = (d.next + 1) % len(d.to)
		if c, err := net.Dial("tcp", d.to[d.next]); err == nil {
			return c
		}
	}
	return nil
}

func (d *door) carry(from net.Conn) {
	defer from.Close()
	to := d.dial()
	if to == nil {
		return
	}
	defer to.Close()
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(to, from); to.Close(); from.Close() }) // it ends with the connection
	both.Go(func() { _, _ = io.Copy(from, to); to.Close(); from.Close() })
	both.Wait()
}
