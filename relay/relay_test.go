package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/relay/wire"
)

const (
	relayName = "relay.test"
	domain    = "boxes.test"
)

// certify makes a key and a certificate for host.
func certify(t testing.TB, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// poolOf trusts one certificate.
func poolOf(cert tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	return pool
}

// identity is a device.
type identity struct {
	id   croft.DeviceID
	cert tls.Certificate
}

func newIdentity(t testing.TB) identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := wire.SelfSigned(key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := wire.DeviceOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return identity{id, cert}
}

// testPorts lie below the ports that Linux gives to dialling programs.
var testPorts = PortRange{First: 20000, Last: 31999}

// start runs a relay on a listener of loopback, and a second one for HTTP.
// stop ends it and waits for it; the test's end does too.
type testRelay struct {
	server        *Server
	address, http string
	cert          tls.Certificate
	stop          func()
}

func startRelay(t testing.TB, change func(*Config)) *testRelay {
	t.Helper()
	r := &testRelay{cert: certify(t, relayName)}
	r.address, r.http = "127.0.0.1:0", "127.0.0.1:0"
	r.restart(t, change)
	return r
}

func (r *testRelay) restart(t testing.TB, change func(*Config)) {
	t.Helper()
	var listeners []net.Listener
	for _, address := range []*string{&r.address, &r.http} {
		l, err := net.Listen("tcp", *address)
		if err != nil {
			t.Fatal(err)
		}
		*address = l.Addr().String()
		listeners = append(listeners, l)
	}
	cfg := Config{
		Name: relayName, Domain: domain, Address: r.address, HTTPAddress: r.http, PortHost: "127.0.0.1", Ports: testPorts,
		Limits:      Limits{PerClient: 5000, ClientRate: 1e6, PerDevice: 5000, MinBeat: 10 * time.Millisecond},
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &r.cert, nil },
		Admit:       func(context.Context, croft.DeviceID, *x509.Certificate) error { return nil },
		AllowHost: func(_ context.Context, _ croft.DeviceID, host string) error {
			if strings.HasPrefix(host, "refused.") {
				return errors.New("no proof")
			}
			return nil
		},
		Listen: func(context.Context, string, string) (net.Listener, error) {
			l := listeners[0]
			listeners = listeners[1:]
			return l, nil
		},
	}
	if change != nil {
		change(&cfg)
	}
	server, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	r.server = server
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
}

func (r *testRelay) relay() Relay {
	return Relay{Name: relayName, Address: r.address, Trust: wire.Trust{Roots: poolOf(r.cert)}}
}

// startClient runs a box.
func startClient(t testing.TB, who identity, accept func(context.Context, *wire.Stream), change func(*ClientConfig), relays ...*testRelay) (*Client, func()) {
	t.Helper()
	cfg := ClientConfig{
		Certificate: func() (tls.Certificate, error) { return who.cert, nil },
		Accept:      func(ctx context.Context, _ string, s *wire.Stream) { accept(ctx, s) },
	}
	for _, r := range relays {
		cfg.Relays = append(cfg.Relays, r.relay())
	}
	if change != nil {
		change(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

// await waits until the client's states are as wanted.
func await(t testing.TB, c *Client, what string, ok func([]RelayState) bool) []RelayState {
	t.Helper()
	timeout := time.After(time.Minute) // a hang ends with the state in the log
	for {
		states, changed := c.States()
		if ok(states) {
			return states
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("waited in vain for: %s; states: %+v", what, states)
		}
	}
}

func settled(states []RelayState) bool {
	for _, s := range states {
		if s.Phase != Up || !s.Settled {
			return false
		}
	}
	return true
}

// echo sends back what it reads, and its end.
func echo(_ context.Context, s *wire.Stream) {
	if _, err := io.Copy(s, onlyReader{s}); err == nil {
		_ = s.CloseWrite()
		_, _ = io.Copy(io.Discard, s)
	}
}

type onlyReader struct{ io.Reader }

// echoTLS ends TLS on the box, as a workload's ingress does, and echoes.
func echoTLS(cert tls.Certificate) func(context.Context, *wire.Stream) {
	return func(_ context.Context, s *wire.Stream) {
		c := tls.Server(s, &tls.Config{Certificates: []tls.Certificate{cert}})
		if _, err := io.Copy(c, onlyReader{c}); err == nil {
			_ = c.CloseWrite()
			_ = s.CloseWrite()
		}
	}
}

func dialTCP(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute)) // a hang is a failure with a line number
	return conn.(*net.TCPConn)
}

func portAddress(port uint16) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// onePort is a client with one external port, settled.
func onePort(t testing.TB, proto wire.Proto, accept func(context.Context, *wire.Stream), change func(*ClientConfig), relays ...*testRelay) (*Client, uint16) {
	t.Helper()
	c, _ := startClient(t, newIdentity(t), accept, change, relays...)
	if err := c.Set(nil, []wire.Port{{Key: "web", Proto: proto}}); err != nil {
		t.Fatal(err)
	}
	states := await(t, c, "one port", settled)
	if len(states[0].Ports) != 1 || states[0].Ports[0].External == 0 {
		t.Fatalf("ports held: %+v", states[0].Ports)
	}
	return c, states[0].Ports[0].External
}

func TestUserReachesBoxByName(t *testing.T) {
	r := startRelay(t, nil)
	who := newIdentity(t)
	hosts := make(chan string, 10)
	site := certify(t, "shop.example")
	c, _ := startClient(t, who, func(ctx context.Context, s *wire.Stream) {
		h := s.Header()
		if h.Kind != wire.KindSNI || !h.Client.Addr().IsLoopback() || s.RemoteAddr().String() != h.Client.String() {
			t.Errorf("header is %+v", h)
		}
		hosts <- h.Host
		echoTLS(site)(ctx, s)
	}, nil, r)
	if err := c.Set([]string{"shop.example", "refused.example", "a." + domain}, nil); err != nil {
		t.Fatal(err)
	}
	states := await(t, c, "names", settled)
	if got := fmt.Sprint(states[0].Hosts); got != "[{shop.example } {refused.example refused} {a.boxes.test refused}]" {
		t.Errorf("hosts held: %s", got)
	}
	for _, host := range []string{
		"shop.example", "SHOP.example", "mtls.shop.example",
		string(who.id) + "." + domain, "gateway." + string(who.id) + "." + domain, "mtls.gateway." + string(who.id) + "." + domain,
	} {
		conn := tls.Client(dialTCP(t, r.address), &tls.Config{ServerName: host, InsecureSkipVerify: true})
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		if !conn.ConnectionState().PeerCertificates[0].Equal(site.Leaf) {
			t.Errorf("%s: TLS does not end on the box", host)
		}
		_ = conn.CloseWrite()
		if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
			t.Errorf("%s: got %q, %v", host, got, err)
		}
		if got := <-hosts; got != strings.ToLower(host) {
			t.Errorf("box was told %q, want %q", got, host)
		}
	}
	if d := r.server.Devices(); len(d) != 1 || d[0].Device != who.id || !d[0].Up || d[0].In == 0 || d[0].Out == 0 {
		t.Errorf("devices: %+v", d)
	}
}

func TestUnknownNameIsRefusedWithAnAlert(t *testing.T) {
	r := startRelay(t, func(cfg *Config) { cfg.Limits.Patience = time.Nanosecond })
	for _, host := range []string{"nobody.example", string(newIdentity(t).id) + "." + domain, domain, ""} {
		conn := tls.Client(dialTCP(t, r.address), &tls.Config{ServerName: host, InsecureSkipVerify: true})
		if err := conn.Handshake(); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%q: got %v", host, err)
		}
	}
}

func TestCustomHostBelongsToOneBoxUntilItIsGone(t *testing.T) {
	r := startRelay(t, func(cfg *Config) { cfg.Limits.Linger = 10 * time.Millisecond })
	first, stop := startClient(t, newIdentity(t), echo, nil, r)
	second, _ := startClient(t, newIdentity(t), echo, nil, r)
	want := []string{"shop.example"}
	if err := first.Set(want, nil); err != nil {
		t.Fatal(err)
	}
	await(t, first, "the host", settled)
	if err := second.Set(want, nil); err != nil {
		t.Fatal(err)
	}
	if got := await(t, second, "an answer", settled)[0].Hosts[0].Problem; got != wire.ProblemTaken {
		t.Errorf("problem is %q, want taken", got)
	}
	stop()
	for i := 0; ; i++ { // the relay forgets the first in its own time
		if err := second.Set([]string{"shop.example", fmt.Sprintf("n%d.example", i)}, nil); err != nil {
			t.Fatal(err)
		}
		if await(t, second, "an answer", settled)[0].Hosts[0].Problem == "" {
			break
		}
	}
	if err := second.Set(nil, nil); err != nil {
		t.Fatal(err)
	}
	await(t, second, "an answer", settled)
	if d := r.server.Devices(); len(d) != 1 || len(d[0].Hosts) != 0 {
		t.Errorf("hosts are kept after they were dropped: %+v", d)
	}
}

// sum is what a transfer of random bytes is compared by.
func transfer(conn halfCloser, seed uint64, size int) error {
	random := mathrand.NewChaCha8(sha256.Sum256(fmt.Append(nil, seed)))
	sent, got := sha256.New(), sha256.New()
	failed := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, io.TeeReader(io.LimitReader(random, int64(size)), sent))
		failed <- errors.Join(err, conn.CloseWrite())
	}()
	n, err := io.Copy(got, conn)
	if err := errors.Join(<-failed, err); err != nil {
		return err
	}
	if n != int64(size) || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("%d bytes came back of %d, or others", n, size)
	}
	return nil
}

func TestManyUsersAtOnceGetTheirOwnBytes(t *testing.T) {
	r := startRelay(t, nil)
	_, port := onePort(t, wire.TCP, echo, nil, r)
	const users = 500
	var wg sync.WaitGroup
	for i := range users {
		wg.Go(func() {
			conn, err := net.Dial("tcp", portAddress(port))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			size := mathrand.N(60_000)
			if i%50 == 0 {
				size = 1_000_000 // beyond a window, so that it has to be opened
			}
			if err := transfer(conn.(*net.TCPConn), uint64(i), size); err != nil {
				t.Errorf("user %d with %d bytes: %v", i, size, err)
			}
		})
	}
	wg.Wait()
}

func TestEachDirectionEndsByItself(t *testing.T) {
	r := startRelay(t, nil)
	more := make(chan struct{})
	_, port := onePort(t, wire.TCP, func(_ context.Context, s *wire.Stream) {
		got, err := io.ReadAll(s) // returns because the user's end came
		if err != nil || string(got) != "question" {
			t.Errorf("box read %q, %v", got, err)
		}
		_, _ = s.Write([]byte("ans"))
		<-more
		_, _ = s.Write([]byte("wer"))
		_ = s.CloseWrite()
		_, _ = io.Copy(io.Discard, s)
	}, nil, r)
	conn := dialTCP(t, portAddress(port))
	if _, err := conn.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	_ = conn.CloseWrite()
	buf := make([]byte, 3)
	if _, err := io.ReadFull(conn, buf); err != nil {
		t.Fatal(err)
	}
	close(more)
	rest, err := io.ReadAll(conn)
	if got := string(buf) + string(rest); got != "answer" || err != nil {
		t.Errorf("user read %q, %v", got, err)
	}
}

func TestBoxEndsFirst(t *testing.T) {
	r := startRelay(t, nil)
	got := make(chan string, 1)
	_, port := onePort(t, wire.TCP, func(_ context.Context, s *wire.Stream) {
		_, _ = s.Write([]byte("greeting"))
		_ = s.CloseWrite()
		raw, _ := io.ReadAll(s)
		got <- string(raw)
	}, nil, r)
	conn := dialTCP(t, portAddress(port))
	if raw, err := io.ReadAll(conn); string(raw) != "greeting" || err != nil {
		t.Fatalf("user read %q, %v", raw, err)
	}
	_, _ = conn.Write([]byte("still here"))
	_ = conn.CloseWrite()
	if raw := <-got; raw != "still here" {
		t.Errorf("box read %q", raw)
	}
}

func TestCutIsNotAnEnd(t *testing.T) {
	r := startRelay(t, nil)
	read := make(chan error, 1)
	_, port := onePort(t, wire.TCP, func(_ context.Context, s *wire.Stream) {
		b := make([]byte, 1)
		_, _ = io.ReadFull(s, b)
		if b[0] == 'b' { // the box gives up
			_, _ = s.Write([]byte("half"))
			s.Close()
			return
		}
		_, err := s.Read(b)
		read <- err
	}, nil, r)

	conn := dialTCP(t, portAddress(port))
	_, _ = conn.Write([]byte("b"))
	if got, err := io.ReadAll(conn); err == nil {
		t.Errorf("the box cut, and the user read %q and an end", got)
	}
	conn = dialTCP(t, portAddress(port))
	_, _ = conn.Write([]byte("u"))
	_ = conn.SetLinger(0)
	conn.Close() // the user resets
	if err := <-read; !errors.Is(err, wire.ErrCut) {
		t.Errorf("the user cut, and the box read: %v", err)
	}
}

func TestSlowReaderHoldsUpNobodyElse(t *testing.T) {
	r := startRelay(t, nil)
	release := make(chan struct{})
	written := make(chan int64, 1)
	_, port := onePort(t, wire.TCP, func(ctx context.Context, s *wire.Stream) {
		b := make([]byte, 1)
		_, _ = io.ReadFull(s, b)
		if b[0] == 'e' {
			echo(ctx, s)
			return
		}
		<-release // reads nothing
		n, err := io.Copy(io.Discard, s)
		if err != nil {
			t.Error(err)
		}
		written <- n
	}, nil, r)
	slow := dialTCP(t, portAddress(port))
	_, _ = slow.Write([]byte("s"))
	// Write until nothing moves: the path is full up to the user.
	full := int64(0)
	block := make([]byte, 1<<20)
	for {
		_ = slow.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := slow.Write(block)
		full += int64(n)
		if err != nil {
			break
		}
		if full > 256<<20 {
			t.Fatal("a box that does not read is sent 256 MB: nothing holds its user back")
		}
	}
	for i := range 20 { // others pass all the same
		conn := dialTCP(t, portAddress(port))
		_, _ = conn.Write([]byte("e"))
		if err := transfer(conn, uint64(i), 300_000); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	_ = slow.CloseWrite()
	if n := <-written; n != full {
		t.Errorf("box read %d bytes, user wrote %d", n, full)
	}
}

func TestRelayRestartGivesTheSamePorts(t *testing.T) {
	store := NewFileStore(filepath.Join(t.TempDir(), "ports.json"))
	withStore := func(cfg *Config) { cfg.Store = store }
	r := startRelay(t, withStore)
	c, _ := startClient(t, newIdentity(t), echo, nil, r)
	var want []wire.Port
	for i := range 5 {
		want = append(want, wire.Port{Key: fmt.Sprint("tcp/", i), Proto: wire.TCP}, wire.Port{Key: fmt.Sprint("udp/", i), Proto: wire.UDP})
	}
	if err := c.Set(nil, want); err != nil {
		t.Fatal(err)
	}
	before := await(t, c, "ports", settled)[0]
	r.stop()
	await(t, c, "the loss", func(s []RelayState) bool { return s[0].Phase != Up })
	store = NewFileStore(store.path) // a new process
	r.restart(t, withStore)
	after := await(t, c, "ports again", settled)[0]
	for i := range want {
		if before.Ports[i] != after.Ports[i] || after.Ports[i].External == 0 {
			t.Errorf("port was %+v, is %+v", before.Ports[i], after.Ports[i])
		}
	}
	if err := transfer(dialTCP(t, portAddress(after.Ports[0].External)), 1, 1000); err != nil {
		t.Error(err)
	}
}

func TestTwoRelaysAtOnce(t *testing.T) {
	one, two := startRelay(t, nil), startRelay(t, nil)
	c, _ := startClient(t, newIdentity(t), echo, nil, one, two)
	if err := c.Set(nil, []wire.Port{{Key: "web", Proto: wire.TCP}}); err != nil {
		t.Fatal(err)
	}
	states := await(t, c, "both", settled)
	for _, s := range states {
		if err := transfer(dialTCP(t, portAddress(s.Ports[0].External)), 1, 1000); err != nil {
			t.Error(err)
		}
	}
	one.stop()
	states = await(t, c, "the loss of one", func(s []RelayState) bool { return s[0].Phase != Up })
	if states[1].Phase != Up {
		t.Error("the other relay was lost too")
	}
	if err := transfer(dialTCP(t, portAddress(states[1].Ports[0].External)), 1, 1000); err != nil {
		t.Error(err)
	}
}

func TestUserWaitsForABoxThatComesBack(t *testing.T) {
	r := startRelay(t, nil)
	who := newIdentity(t)
	want := []wire.Port{{Key: "web", Proto: wire.TCP}}
	c, stop := startClient(t, who, echo, nil, r)
	if err := c.Set(nil, want); err != nil {
		t.Fatal(err)
	}
	port := await(t, c, "a port", settled)[0].Ports[0].External
	stop()
	for r.server.Devices()[0].Up {
		runtime.Gosched()
	}
	conn := dialTCP(t, portAddress(port)) // while the box is away
	done := make(chan error, 1)
	go func() { done <- transfer(conn, 1, 100_000) }()
	c, _ = startClient(t, who, echo, nil, r)
	if err := c.Set(nil, want); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNewTunnelWinsAndOldUsersFinish(t *testing.T) {
	r := startRelay(t, nil)
	who := newIdentity(t)
	name := make(chan string, 10)
	serve := func(as string) func(context.Context, *wire.Stream) {
		return func(ctx context.Context, s *wire.Stream) { name <- as; echo(ctx, s) }
	}
	old, _ := startClient(t, who, serve("old"), nil, r)
	if err := old.Set(nil, []wire.Port{{Key: "web", Proto: wire.TCP}}); err != nil {
		t.Fatal(err)
	}
	port := await(t, old, "a port", settled)[0].Ports[0].External
	staying := dialTCP(t, portAddress(port))
	if _, err := staying.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := <-name; got != "old" {
		t.Fatal(got)
	}
	fresh, _ := startClient(t, who, serve("new"), nil, r)
	if err := fresh.Set(nil, []wire.Port{{Key: "web", Proto: wire.TCP}}); err != nil {
		t.Fatal(err)
	}
	if got := await(t, fresh, "a port", settled)[0].Ports[0].External; got != port {
		t.Errorf("port is %d, was %d", got, port)
	}
	states := await(t, old, "to be replaced", func(s []RelayState) bool { return s[0].Phase == Waiting && s[0].Last != nil })
	if bye, ok := errors.AsType[*wire.ByeError](states[0].Last); !ok || bye.Bye.Reason != wire.ByeReplaced {
		t.Errorf("old tunnel ended by: %v", states[0].Last)
	}
	if err := transfer(dialTCP(t, portAddress(port)), 1, 100_000); err != nil {
		t.Error(err)
	}
	if got := <-name; got != "new" {
		t.Errorf("new user was served by the %s tunnel", got)
	}
	_, _ = staying.Write([]byte("y"))
	_ = staying.CloseWrite()
	if got, err := io.ReadAll(staying); string(got) != "xy" || err != nil {
		t.Errorf("user of the old tunnel read %q, %v", got, err)
	}
}

func TestUDP(t *testing.T) {
	r := startRelay(t, func(cfg *Config) { cfg.Limits.UDPIdle = 50 * time.Millisecond })
	ended := make(chan netip.AddrPort, 10)
	_, port := onePort(t, wire.UDP, func(_ context.Context, s *wire.Stream) {
		for buf := make([]byte, wire.MaxDatagram); ; {
			n, err := s.Read(buf)
			if err != nil {
				ended <- s.Header().Client
				return
			}
			if _, err := s.Write(buf[:n]); err != nil {
				t.Error(err)
			}
		}
	}, nil, r)
	for range 2 { // two flows
		conn, err := net.Dial("udp", portAddress(port))
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{1, 0, 1400, 9000, 40_000, wire.MaxDatagram} {
			sent := bytes.Repeat([]byte{byte(size)}, size)
			buf := make([]byte, wire.MaxDatagram)
			for { // UDP may lose it, a loaded machine does
				if _, err := conn.Write(sent); err != nil {
					t.Fatal(err)
				}
				_ = conn.SetReadDeadline(time.Now().Add(time.Second))
				n, err := conn.Read(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if n == size && bytes.Equal(buf[:n], sent) {
					break // else an echo of one that was sent twice
				}
			}
		}
		own := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		for got := <-ended; got != own; got = <-ended { // quiet, it ends by itself
			t.Logf("flow of %s ended", got)
		}
		conn.Close()
	}
}

func TestHTTPIsPassedByHost(t *testing.T) {
	r := startRelay(t, func(cfg *Config) { cfg.Limits.Patience = time.Nanosecond })
	got := make(chan string, 1)
	c, _ := startClient(t, newIdentity(t), func(_ context.Context, s *wire.Stream) {
		b := make([]byte, 1000)
		n, _ := s.Read(b)
		got <- string(s.Header().Kind) + " " + s.Header().Host + " " + string(b[:n])
		_, _ = s.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		_ = s.CloseWrite()
		_, _ = io.Copy(io.Discard, s)
	}, nil, r)
	if err := c.Set([]string{"shop.example"}, nil); err != nil {
		t.Fatal(err)
	}
	await(t, c, "the host", settled)
	for _, tc := range []struct{ request, answer, seen string }{
		{"GET /a HTTP/1.1\r\nHost: Shop.example:80\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "http shop.example GET /a HTTP/1.1\r\nHost: Shop.example:80\r\n\r\n"},
		{"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", "HTTP/1.1 404 Not Found\r\n", ""},
		{"GET / HTTP/1.1\r\nHost: 1.2.3.4\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
		{"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
		{"GET http://shop.example/b HTTP/1.1\r\nHost: other.example\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "http shop.example GET http://shop.example/b HTTP/1.1\r\nHost: other.example\r\n\r\n"},
		{"GET http://other.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n", "HTTP/1.1 404 Not Found\r\n", ""},
		{"GET / HTTP/1.1\r\nHost: shop.example\r\nHost: other.example\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
		{"CONNECT shop.example:80 HTTP/1.1\r\nHost: shop.example:80\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
		{"PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\nGET / HTTP/1.1\r\nHost: shop.example\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
		{"nonsense\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
		{"GET / HTTP/1.1\r\nHost: shop.example\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
	} {
		conn := dialTCP(t, r.http)
		_, _ = conn.Write([]byte(tc.request))
		_ = conn.CloseWrite()
		answer, err := io.ReadAll(conn)
		if err != nil && len(answer) == 0 && len(tc.request) > maxHead {
			continue // what the relay did not read turns its answer into a reset
		}
		if !strings.HasPrefix(string(answer), tc.answer) {
			t.Errorf("%.40q: got %q, %v", tc.request, answer, err)
		}
		if tc.seen != "" {
			if seen := <-got; seen != tc.seen {
				t.Errorf("box saw %q", seen)
			}
		}
	}
}

// A proxy that sends two hosts' requests over one connection must not bring a
// secret of the one to the other's box.
func TestOneConnectionNeverReachesTwoHosts(t *testing.T) {
	r := startRelay(t, nil)
	seen := make(chan string, 10)
	serve := func(_ context.Context, s *wire.Stream) {
		in := bufio.NewReader(s)
		for {
			request, err := http.ReadRequest(in)
			if err != nil {
				break
			}
			seen <- request.Host + request.URL.Path
			_, _ = s.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
		}
		_ = s.CloseWrite()
	}
	for _, host := range []string{"one.example", "two.example"} {
		c, _ := startClient(t, newIdentity(t), serve, nil, r)
		if err := c.Set([]string{host}, nil); err != nil {
			t.Fatal(err)
		}
		await(t, c, "the host", settled)
	}
	conn := dialTCP(t, r.http)
	_, _ = conn.Write([]byte("GET /a HTTP/1.1\r\nHost: one.example\r\n\r\nGET /b HTTP/1.1\r\nHost: one.example\r\n\r\n" +
		"GET /secret HTTP/1.1\r\nHost: two.example\r\n\r\n"))
	answers, err := io.ReadAll(conn)
	if got := strings.Count(string(answers), "HTTP/1.1 204"); got != 2 || err != nil {
		t.Errorf("answers: %q, %v", answers, err)
	}
	if a, b := <-seen, <-seen; a != "one.example/a" || b != "one.example/b" || len(seen) != 0 {
		t.Errorf("boxes saw %s, %s and %d more", a, b, len(seen))
	}
}

func TestUpgradeOverTheRelay(t *testing.T) {
	r := startRelay(t, nil)
	c, _ := startClient(t, newIdentity(t), func(ctx context.Context, s *wire.Stream) {
		if _, err := http.ReadRequest(bufio.NewReader(io.LimitReader(s, int64(len(upgradeRequest))))); err != nil {
			t.Error(err)
		}
		_, _ = s.Write([]byte("HTTP/1.1 101 Switching Protocols\r\n\r\n"))
		echo(ctx, s)
	}, nil, r)
	if err := c.Set([]string{"shop.example"}, nil); err != nil {
		t.Fatal(err)
	}
	await(t, c, "the host", settled)
	conn := dialTCP(t, r.http)
	_, _ = conn.Write([]byte(upgradeRequest))
	if _, err := io.ReadFull(conn, make([]byte, len("HTTP/1.1 101 Switching Protocols\r\n\r\n"))); err != nil {
		t.Fatal(err)
	}
	if err := transfer(conn, 1, 1_000_000); err != nil {
		t.Error(err)
	}
}

const upgradeRequest = "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"

func TestWhoIsNotAdmittedHearsWhy(t *testing.T) {
	r := startRelay(t, func(cfg *Config) {
		cfg.Admit = func(context.Context, croft.DeviceID, *x509.Certificate) error {
			return errors.New("this device is revoked")
		}
	})
	c, _ := startClient(t, newIdentity(t), echo, nil, r)
	states := await(t, c, "a refusal", func(s []RelayState) bool { return s[0].Last != nil })
	bye, ok := errors.AsType[*wire.ByeError](states[0].Last)
	if !ok || bye.Bye.Reason != wire.ByeRefused || !strings.Contains(bye.Bye.Text, "revoked") {
		t.Errorf("tunnel ended by: %v", states[0].Last)
	}
	if d := r.server.Devices(); len(d) != 0 {
		t.Errorf("devices: %+v", d)
	}
}

func TestDroppedBoxHearsWhy(t *testing.T) {
	r := startRelay(t, nil)
	who := newIdentity(t)
	r.server.Drop(who.id, "not here") // is nothing
	c, _ := startClient(t, who, echo, nil, r)
	await(t, c, "the tunnel", func(s []RelayState) bool { return s[0].Phase == Up })
	for len(r.server.Devices()) == 0 {
		runtime.Gosched()
	}
	r.server.Drop(who.id, "revoked")
	states := await(t, c, "its end", func(s []RelayState) bool { return s[0].Last != nil })
	if bye, ok := errors.AsType[*wire.ByeError](states[0].Last); !ok || bye.Bye != (wire.Bye{Reason: wire.ByeRefused, Text: "revoked"}) {
		t.Errorf("tunnel ended by: %v", states[0].Last)
	}
}

// A device that is dropped while it is being admitted is not there afterwards.
func TestDropMeetsATunnelThatIsBeingMade(t *testing.T) {
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	r := startRelay(t, func(cfg *Config) {
		cfg.Admit = func(context.Context, croft.DeviceID, *x509.Certificate) error {
			asked <- struct{}{}
			<-answer
			return nil
		}
	})
	who := newIdentity(t)
	c, _ := startClient(t, who, echo, nil, r)
	<-asked
	r.server.Drop(who.id, "revoked")
	close(answer)
	states := await(t, c, "a refusal", func(s []RelayState) bool { return s[0].Last != nil })
	if bye, ok := errors.AsType[*wire.ByeError](states[0].Last); !ok || bye.Bye.Reason != wire.ByeRefused {
		t.Errorf("tunnel ended by: %v", states[0].Last)
	}
}

// A box that comes back again and again keeps the users of few tunnels only.
func TestOnlySoManyTunnelsDrain(t *testing.T) {
	r := startRelay(t, nil)
	who := newIdentity(t)
	want := []wire.Port{{Key: "web", Proto: wire.TCP}}
	var users []*net.TCPConn
	for i := range maxDraining + 3 {
		c, _ := startClient(t, who, echo, func(cfg *ClientConfig) {
			real := (&net.Dialer{}).DialContext
			dialled := false
			cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if dialled { // a box that was replaced does not come back in this test
					<-ctx.Done()
					return nil, ctx.Err()
				}
				dialled = true
				return real(ctx, network, address)
			}
		}, r)
		if err := c.Set(nil, want); err != nil {
			t.Fatal(err)
		}
		port := await(t, c, "a port", settled)[0].Ports[0].External
		user := dialTCP(t, portAddress(port))
		_, _ = user.Write([]byte{byte(i)})
		if _, err := io.ReadFull(user, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		users = append(users, user)
	}
	for i, user := range users {
		if i < len(users)-maxDraining-1 {
			if _, err := io.ReadAll(user); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("user %d of an old tunnel: %v", i, err)
			}
			continue
		}
		if err := transfer(user, 1, 1000); err != nil {
			t.Errorf("user %d: %v", i, err)
		}
	}
}

func TestTooManyHandshakesAreRefused(t *testing.T) {
	r := startRelay(t, func(cfg *Config) {
		cfg.Limits.TunnelRate = 0.001 // and one at once
		cfg.Limits.Hello = 50 * time.Millisecond
	})
	first, _ := startClient(t, newIdentity(t), echo, nil, r)
	await(t, first, "the first", func(s []RelayState) bool { return s[0].Phase == Up })
	second, _ := startClient(t, newIdentity(t), echo, nil, r)
	await(t, second, "a failure", func(s []RelayState) bool { return s[0].Last != nil })
	for len(r.server.Devices()) == 0 { // the box may know before the relay does
		runtime.Gosched()
	}
	if got := len(r.server.Devices()); got != 1 {
		t.Errorf("%d devices", got)
	}
}

func TestHandshakesWaitInLine(t *testing.T) {
	r := startRelay(t, func(cfg *Config) { cfg.Limits.TunnelRate = 20 })
	var boxes []*Client
	for range 25 { // four more than a burst
		c, _ := startClient(t, newIdentity(t), echo, nil, r)
		boxes = append(boxes, c)
	}
	for _, c := range boxes {
		if s := await(t, c, "the tunnel", func(s []RelayState) bool { return s[0].Phase == Up }); s[0].Last != nil {
			t.Errorf("a box had to try again: %v", s[0].Last)
		}
	}
}

// The limits of a box, each at its edge.
func TestLimitsOfABox(t *testing.T) {
	t.Run("ports", func(t *testing.T) {
		r := startRelay(t, func(cfg *Config) { cfg.Limits.PortsEach = 2 })
		c, _ := startClient(t, newIdentity(t), echo, nil, r)
		var before []wire.HeldPort
		for round := range 3 { // other ports each time: what it had goes
			var want []wire.Port
			for i := range 3 {
				want = append(want, wire.Port{Key: fmt.Sprint(round, "/", i), Proto: wire.TCP})
			}
			if err := c.Set(nil, want); err != nil {
				t.Fatal(err)
			}
			got := await(t, c, "ports", settled)[0].Ports
			if got[0].External == 0 || got[1].External == 0 || got[2].Problem != wire.ProblemFull {
				t.Fatalf("ports held: %+v", got)
			}
			for _, p := range before[:min(2, len(before))] {
				if p.External == got[0].External || p.External == got[1].External {
					continue
				}
				if conn, err := net.Dial("tcp", portAddress(p.External)); err == nil {
					conn.Close()
					t.Errorf("port %d is open after it was let go", p.External)
				}
			}
			before = got
		}
	})
	t.Run("a port let go comes back at once, with its number", func(t *testing.T) {
		r := startRelay(t, nil)
		for _, proto := range []wire.Proto{wire.TCP, wire.UDP} {
			c, port := onePort(t, proto, echo, nil, r)
			for range 10 {
				for _, want := range [][]wire.Port{nil, {{Key: "web", Proto: proto}}} {
					if err := c.Set(nil, want); err != nil {
						t.Fatal(err)
					}
				}
				if got := await(t, c, "the port", settled)[0].Ports[0]; got.External != port {
					t.Fatalf("%s port was %d, is %+v", proto, port, got)
				}
			}
		}
	})
	t.Run("users, at the relay", func(t *testing.T) {
		r := startRelay(t, func(cfg *Config) { cfg.Limits.PerDevice = 2 })
		_, port := onePort(t, wire.TCP, echo, nil, r)
		threeUsers(t, port)
	})
	t.Run("users, at the box", func(t *testing.T) {
		r := startRelay(t, nil)
		_, port := onePort(t, wire.TCP, echo, func(cfg *ClientConfig) { cfg.Streams = 2 }, r)
		threeUsers(t, port)
	})
	t.Run("connections of all", func(t *testing.T) {
		r := startRelay(t, func(cfg *Config) { cfg.Limits.Connections = 3 }) // with the tunnel
		_, port := onePort(t, wire.TCP, echo, nil, r)
		threeUsers(t, port)
	})
}

// threeUsers come to where two may be.
func threeUsers(t *testing.T, port uint16) {
	t.Helper()
	answered := func(conn net.Conn) error {
		_, _ = conn.Write([]byte("x"))
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err
	}
	var users []net.Conn
	for range 2 {
		conn := dialTCP(t, portAddress(port))
		if err := answered(conn); err != nil {
			t.Fatal(err)
		}
		users = append(users, conn)
	}
	if conn, err := net.Dial("tcp", portAddress(port)); err == nil { // else its reset met the dial
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		if err := answered(conn); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the third of two: %v", err)
		}
	}
	for _, conn := range users {
		if err := answered(conn); err != nil {
			t.Error(err)
		}
	}
}

func TestIPv6(t *testing.T) {
	r := &testRelay{cert: certify(t, relayName), address: "[::1]:0", http: "[::1]:0"}
	r.restart(t, func(cfg *Config) { cfg.PortHost = "" }) // both families
	clients := make(chan netip.AddrPort, 10)
	accept := func(ctx context.Context, s *wire.Stream) {
		clients <- s.Header().Client
		if s.Header().Kind == wire.KindUDP {
			b := make([]byte, 10)
			n, _ := s.Read(b)
			_, _ = s.Write(b[:n])
			return
		}
		echo(ctx, s)
	}
	c, _ := startClient(t, newIdentity(t), accept, nil, r)
	if err := c.Set(nil, []wire.Port{{Key: "t", Proto: wire.TCP}, {Key: "u", Proto: wire.UDP}}); err != nil {
		t.Fatal(err)
	}
	ports := await(t, c, "ports", settled)[0].Ports
	for _, port := range ports {
		for _, host := range []string{"::1", "127.0.0.1"} {
			conn, err := net.Dial(string(port.Proto), net.JoinHostPort(host, fmt.Sprint(port.External)))
			if err != nil {
				t.Fatal(err)
			}
			for { // UDP may lose it
				_, _ = conn.Write([]byte("x"))
				_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err = conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
			}
			if got := <-clients; err != nil || got.String() != conn.LocalAddr().String() {
				t.Errorf("%s user of %s is known as %s, %v", port.Proto, conn.LocalAddr(), got, err)
			}
			conn.Close()
		}
	}
	if d := r.server.Devices(); !d[0].Address.Addr().Is6() {
		t.Errorf("box is at %s", d[0].Address)
	}
}

// One datagram must not buy a stream of answers: its sender may be forged.
func TestBoxCannotKeepAFlowThatItsUserLeft(t *testing.T) {
	r := startRelay(t, func(cfg *Config) { cfg.Limits.UDPIdle = 50 * time.Millisecond })
	ended := make(chan error, 1)
	_, port := onePort(t, wire.UDP, func(_ context.Context, s *wire.Stream) {
		var answers sync.WaitGroup
		answers.Go(func() {
			for {
				if _, err := s.Write(make([]byte, 1000)); err != nil {
					return
				}
			}
		})
		for buf := make([]byte, 10); ; {
			if _, err := s.Read(buf); err != nil {
				ended <- err
				break
			}
		}
		s.Close()
		answers.Wait()
	}, nil, r)
	conn, err := net.Dial("udp", portAddress(port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for {
		_, _ = conn.Write([]byte("x"))
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := conn.Read(make([]byte, 1000)); err == nil {
			break
		}
	}
	if err := <-ended; !errors.Is(err, wire.ErrCut) {
		t.Errorf("flow ended by: %v", err)
	}
}

func TestNetworkChangeEndsATryThatHangs(t *testing.T) {
	r := startRelay(t, nil)
	hangs := make(chan struct{}, 1)
	first := true
	c, _ := startClient(t, newIdentity(t), echo, func(cfg *ClientConfig) {
		cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if first {
				first = false
				hangs <- struct{}{}
				<-ctx.Done() // packets go nowhere
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
	}, r)
	<-hangs
	c.NetworkChanged()
	await(t, c, "the tunnel", func(s []RelayState) bool { return s[0].Phase == Up })
}

// A relay that opens streams without end is left before they fill the box.
func TestRelayThatFloodsIsLeft(t *testing.T) {
	cert := certify(t, relayName)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	release := make(chan struct{})
	defer close(release)
	c, _ := startClient(t, newIdentity(t), func(context.Context, *wire.Stream) { <-release }, func(cfg *ClientConfig) { cfg.Streams = 10 },
		&testRelay{cert: cert, address: l.Addr().String()})
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := wire.Accept(t.Context(), conn, wire.RelayConfig{
		Domain: domain, Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		Admit: func(context.Context, croft.DeviceID, *x509.Certificate) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	client := netip.MustParseAddrPort("192.0.2.1:1")
	for { // never closes what the box has closed
		if _, err := tunnel.Open(wire.Header{Kind: wire.KindTCP, Port: 1, Client: client}, nil, 1<<30); err != nil {
			break
		}
	}
	states := await(t, c, "its end", func(s []RelayState) bool { return s[0].Last != nil })
	if !errors.Is(states[0].Last, wire.ErrProtocol) {
		t.Errorf("tunnel ended by: %v", states[0].Last)
	}
}

// A port that is in use for longer than ports are remembered is used.
func TestPortInUseIsNotForgotten(t *testing.T) {
	who := owner{"device", wire.Port{Key: "web", Proto: wire.TCP}}
	c := newClerk(&office{cfg: Config{Ports: testPorts, Limits: Limits{}.withDefaults()}},
		[]Allocation{{Device: who.device, Port: who.port, External: testPorts.First, Used: time.Now().Add(-100 * 24 * time.Hour)}})
	c.makeRoom("other", []wire.Port{who.port}, nil)
	if len(c.gone) != 1 {
		t.Errorf("a port not used for 100 days is remembered")
	}
	c = newClerk(&office{cfg: Config{Ports: testPorts, Limits: Limits{}.withDefaults()}}, c.gone)
	c.touch(who, time.Now())
	c.touch(who, time.Now())
	c.makeRoom("other", []wire.Port{who.port}, nil)
	if len(c.gone) != 0 || len(c.put) != 1 {
		t.Errorf("%d ports are forgotten and %d stored, want none and one", len(c.gone), len(c.put))
	}
}

func TestWrongRelayIsNotBelieved(t *testing.T) {
	r := startRelay(t, nil)
	r.cert = certify(t, relayName) // the client trusts the old one
	imposter := &testRelay{address: r.address, cert: certify(t, relayName)}
	c, _ := startClient(t, newIdentity(t), echo, nil, imposter)
	states := await(t, c, "a failure", func(s []RelayState) bool { return s[0].Last != nil })
	if _, ok := errors.AsType[x509.UnknownAuthorityError](states[0].Last); !ok {
		t.Errorf("tunnel ended by: %v", states[0].Last)
	}
}

func TestStrangersFirstMessages(t *testing.T) {
	r := startRelay(t, func(cfg *Config) { cfg.Limits.Hello = 300 * time.Millisecond })
	hello := []byte{22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb}
	for _, tc := range []struct {
		name string
		sent []byte
	}{
		{"nothing is sent", nil},
		{"half a header", hello[:3]},
		{"a hello that does not go on", hello},
		{"not TLS", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"zeros", make([]byte, 1000)},
		{"a line of the PROXY protocol", []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n")},
		{"a hello of 64 KiB", bytes.Repeat(append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}, make([]byte, 0x4000-4)...), 5)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			conn := dialTCP(t, r.address)
			_, _ = conn.Write(tc.sent)
			_, _ = io.ReadAll(conn) // ends: the relay closes, by what it read or by time
		})
	}
	t.Run("one byte at a time", func(t *testing.T) {
		t.Parallel()
		conn := dialTCP(t, r.address)
		for {
			if _, err := conn.Write(hello[:1]); err != nil {
				break // the relay has closed
			}
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
		}
	})
}

func TestClientHasOnlySoManyConnections(t *testing.T) {
	r := startRelay(t, func(cfg *Config) { cfg.Limits.PerClient = 3; cfg.Limits.Hello = time.Hour })
	var kept []net.Conn
	for range 3 {
		kept = append(kept, dialTCP(t, r.address))
	}
	// let tells whether the relay keeps a connection; a reset can meet the dial.
	let := func() bool {
		conn, err := net.Dial("tcp", r.address)
		if err != nil {
			return false
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, err = conn.Read(make([]byte, 1))
		return errors.Is(err, os.ErrDeadlineExceeded)
	}
	for let() { // the machine may be slow to refuse, but it must
		t.Log("a fourth connection is there after 300 ms")
	}
	for _, c := range kept {
		c.Close()
	}
	for !let() { // room again, as soon as the relay has seen them go
		runtime.Gosched()
	}
}

func TestIdleConnectionIsCut(t *testing.T) {
	r := startRelay(t, func(cfg *Config) { cfg.Limits.Idle = 50 * time.Millisecond })
	_, port := onePort(t, wire.TCP, echo, nil, r)
	conn := dialTCP(t, portAddress(port))
	_, _ = conn.Write([]byte("x"))
	if _, err := io.ReadAll(conn); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("idle connection ended by: %v", err)
	}
}

// silentProxy passes bytes to a relay until it is told to swallow them.
type silentProxy struct {
	address string
	dead    chan struct{}
}

func newSilentProxy(t *testing.T, to string) *silentProxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &silentProxy{l.Addr().String(), make(chan struct{})}
	t.Cleanup(func() { l.Close() })
	pass := func(dst io.Writer, src io.Reader) {
		buf := make([]byte, 1<<16)
		for {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-p.dead:
			default:
				_, _ = dst.Write(buf[:n])
			}
		}
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			t.Cleanup(func() { in.Close(); out.Close() })
			go pass(in, out)
			go pass(out, in)
		}
	}()
	return p
}

func TestDeadPathIsFoundByBothSides(t *testing.T) {
	r := startRelay(t, nil)
	proxy := newSilentProxy(t, r.address)
	c, _ := startClient(t, newIdentity(t), echo, func(cfg *ClientConfig) {
		cfg.Beat = 50 * time.Millisecond
		cfg.Relays[0].Address = proxy.address
	}, r)
	await(t, c, "the tunnel", func(s []RelayState) bool { return s[0].Phase == Up })
	close(proxy.dead)
	states := await(t, c, "its loss", func(s []RelayState) bool { return s[0].Last != nil })
	if !errors.Is(states[0].Last, wire.ErrSilent) {
		t.Errorf("tunnel ended by: %v", states[0].Last)
	}
	for r.server.Devices()[0].Up {
		runtime.Gosched()
	}
}

func TestLostAddressEndsTheTunnelAtOnce(t *testing.T) {
	r := startRelay(t, nil)
	var mu sync.Mutex
	own := []net.Addr{&net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}
	c, _ := startClient(t, newIdentity(t), echo, func(cfg *ClientConfig) {
		cfg.Addresses = func() ([]net.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			return own, nil
		}
	}, r)
	await(t, c, "the tunnel", func(s []RelayState) bool { return s[0].Phase == Up })
	mu.Lock()
	own = []net.Addr{&net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}
	mu.Unlock()
	states := await(t, c, "its end", func(s []RelayState) bool { return s[0].Last != nil })
	if !strings.Contains(states[0].Last.Error(), "lost the tunnel's address") {
		t.Errorf("tunnel ended by: %v", states[0].Last)
	}
}

func TestNothingRunsAfterRun(t *testing.T) {
	before := runtime.NumGoroutine()
	r := startRelay(t, nil)
	c, stop := startClient(t, newIdentity(t), echo, nil, r)
	if err := c.Set([]string{"shop.example"}, []wire.Port{{Key: "a", Proto: wire.TCP}, {Key: "b", Proto: wire.UDP}}); err != nil {
		t.Fatal(err)
	}
	ports := await(t, c, "ports", settled)[0].Ports
	var open []net.Conn
	for range 20 { // users in the middle of things
		conn := dialTCP(t, portAddress(ports[0].External))
		_, _ = conn.Write([]byte("x"))
		_, _ = io.ReadFull(conn, make([]byte, 1))
		open = append(open, conn, dialTCP(t, r.address), dialTCP(t, r.http))
	}
	udp, err := net.Dial("udp", portAddress(ports[1].External))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = udp.Write([]byte("x"))
	udp.Close()
	r.stop()
	stop()
	for _, conn := range open {
		conn.Close()
	}
	deadline := time.Now().Add(30 * time.Second) // yamux's last timers have no owner that could be asked
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, were %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}
