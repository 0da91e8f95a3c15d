package wire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/yamux"
	"pgregory.net/rapid"

	"github.com/croft-cloud/croft"
)

var user = netip.MustParseAddrPort("192.0.2.7:4711")

func deviceCert(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := SelfSigned(key)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue makes a certificate; signer nil: by itself.
func issue(t testing.TB, name string, from, to time.Time, signer *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: from, NotAfter: to, BasicConstraintsValid: true, IsCA: signer == nil,
	}
	parent, by := template, any(key)
	if signer != nil {
		parent, by = signer.Leaf, signer.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// pipe is a TCP connection of loopback.
func pipe(t testing.TB) (box, relay net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if box, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if relay, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Close(); relay.Close() })
	return box, relay
}

type result struct {
	tunnel *Tunnel
	err    error
}

// tunnels makes both ends of one.
func tunnels(t testing.TB, boxConfig BoxConfig, relayConfig RelayConfig) (box, relay result) {
	t.Helper()
	boxConn, relayConn := pipe(t)
	done := make(chan result, 1)
	go func() {
		tunnel, err := Accept(context.Background(), relayConn, relayConfig)
		done <- result{tunnel, err}
	}()
	box.tunnel, box.err = Connect(t.Context(), boxConn, boxConfig)
	if box.err != nil {
		boxConn.Close()
	}
	relay = <-done
	for _, r := range []result{box, relay} {
		if r.tunnel != nil {
			t.Cleanup(func() { r.tunnel.Close() })
		}
	}
	return box, relay
}

func configs(t testing.TB) (BoxConfig, RelayConfig) {
	t.Helper()
	cert := issue(t, "relay.test", time.Now().Add(-time.Hour), time.Now().Add(time.Hour), nil)
	return BoxConfig{Name: "relay.test", Certificate: deviceCert(t), Trust: Trust{Pins: []Pin{PinOf(cert.Leaf)}}},
		RelayConfig{
			Domain:      "boxes.test",
			Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
			Admit:       func(context.Context, croft.DeviceID, *x509.Certificate) error { return nil },
		}
}

func pair(t testing.TB) (box, relay *Tunnel) {
	t.Helper()
	bc, rc := configs(t)
	b, r := tunnels(t, bc, rc)
	if b.err != nil || r.err != nil {
		t.Fatal(b.err, r.err)
	}
	return b.tunnel, r.tunnel
}

func TestBothSidesAgree(t *testing.T) {
	bc, rc := configs(t)
	var admitted croft.DeviceID
	rc.Admit = func(_ context.Context, id croft.DeviceID, cert *x509.Certificate) error {
		admitted = id
		if !bytes.Equal(cert.Raw, bc.Certificate.Certificate[0]) {
			t.Error("admission sees another certificate")
		}
		return nil
	}
	bc.Beat, rc.MinBeat = 10*time.Second, 20*time.Second
	b, r := tunnels(t, bc, rc)
	if b.err != nil || r.err != nil {
		t.Fatal(b.err, r.err)
	}
	box, relay := b.tunnel, r.tunnel
	leaf, _ := x509.ParseCertificate(bc.Certificate.Certificate[0])
	want := croft.DeviceIDFromDigest(sha256.Sum256(leaf.RawSubjectPublicKeyInfo))
	if box.Device() != want || relay.Device() != want || admitted != want {
		t.Errorf("device is %s and %s, admitted %s, want %s", box.Device(), relay.Device(), admitted, want)
	}
	if box.Domain() != "boxes.test" || box.beat != 20*time.Second || relay.beat != 20*time.Second || box.version != Version {
		t.Errorf("domain %s, beats %s and %s, version %d", box.Domain(), box.beat, relay.beat, box.version)
	}
	wanted := Want{Seq: 7, Names: []string{"shop.example"}, Ports: []Port{{"web", TCP}}}
	if err := box.Send(Message{Want: &wanted}); err != nil {
		t.Fatal(err)
	}
	m, err := relay.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Message{Want: &wanted}, m); diff != "" {
		t.Error(diff)
	}
	if err := relay.Bye(ByeShutdown, "see you"); err != nil {
		t.Fatal(err)
	}
	if m, err := box.Receive(); err != nil || m.Bye == nil || m.Bye.Text != "see you" {
		t.Errorf("got %+v, %v", m, err)
	}
	relay.Close()
	<-box.Done()
	if _, err := box.Receive(); err == nil {
		t.Error("message of a closed tunnel")
	}
	if err := box.Err(); err == nil {
		t.Error("tunnel ended without a reason")
	}
}

func TestTrust(t *testing.T) {
	now := time.Now()
	year := 365 * 24 * time.Hour
	ca := issue(t, "ca", now.Add(-9*year), now.Add(9*year), nil)
	leaf := func(from, to time.Duration) []*x509.Certificate {
		return []*x509.Certificate{issue(t, "relay.test", now.Add(from), now.Add(to), &ca).Leaf}
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	good, old, young := leaf(-year, year), leaf(-2*year, -year), leaf(year, 2*year)
	for _, tc := range []struct {
		name  string
		trust Trust
		host  string
		chain []*x509.Certificate
		ok    bool
	}{
		{"a good certificate", Trust{Roots: roots}, "relay.test", good, true},
		{"an expired one", Trust{Roots: roots}, "relay.test", old, false},
		{"one of the future", Trust{Roots: roots}, "relay.test", young, false},
		{"expired, with a clock that is right", Trust{Roots: roots, Floor: now.Add(-year)}, "relay.test", old, false},
		{"of the future, with a clock before the floor", Trust{Roots: roots, Floor: now.Add(year)}, "relay.test", young, true},
		{"expired, with a clock decades after the floor", Trust{Roots: roots, Floor: now.Add(-30 * year)}, "relay.test", old, true},
		{"another name, with a wrong clock", Trust{Roots: roots, Floor: now.Add(year)}, "other.test", good, false},
		{"another root, with a wrong clock", Trust{Roots: x509.NewCertPool(), Floor: now.Add(year)}, "relay.test", good, false},
		{"the pinned key, with any name and dates", Trust{Pins: []Pin{{}, PinOf(old[0])}}, "other.test", old, true},
		{"another key than the pinned one, though of a root", Trust{Roots: roots, Pins: []Pin{PinOf(old[0])}}, "relay.test", good, false},
		{"no certificate", Trust{Pins: []Pin{{}}}, "relay.test", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.trust.verify(tc.host, tc.chain); (err == nil) != tc.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestDeviceKeyMustBeP256(t *testing.T) {
	bc, rc := configs(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	bc.Certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	box, relay := tunnels(t, bc, rc)
	if box.err == nil || relay.err == nil || !strings.Contains(relay.err.Error(), "P-256") {
		t.Errorf("got %v and %v", box.err, relay.err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SelfSigned(p384); err == nil {
		t.Error("a P-384 key is a device key")
	}
}

func TestBoxMustProveItsKey(t *testing.T) {
	bc, rc := configs(t)
	bc.Certificate.Certificate = deviceCert(t).Certificate // another device's, which anybody can see
	box, relay := tunnels(t, bc, rc)
	if box.err == nil || relay.err == nil {
		t.Errorf("a box without the key has a tunnel: %v, %v", box.err, relay.err)
	}
}

func TestBoxWithoutCertificate(t *testing.T) {
	_, rc := configs(t)
	boxConn, relayConn := pipe(t)
	done := make(chan error, 1)
	go func() {
		_, err := Accept(context.Background(), relayConn, rc)
		done <- err
	}()
	conn := tls.Client(boxConn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPN}})
	_, _ = conn.Read(make([]byte, 1))
	if err := <-done; err == nil {
		t.Error("a box without a certificate has a tunnel")
	}
}

// hostileBox is a box that speaks yamux itself.
func hostileBox(t *testing.T) (*yamux.Session, <-chan result) {
	return hostileBoxAs(t, yamux.Client)
}

// hostileBoxAs is one that says it is yamux's client, or its server.
func hostileBoxAs(t *testing.T, speak func(io.ReadWriteCloser, *yamux.Config) (*yamux.Session, error)) (*yamux.Session, <-chan result) {
	bc, rc := configs(t)
	boxConn, relayConn := pipe(t)
	done := make(chan result, 1)
	go func() {
		tunnel, err := Accept(context.Background(), relayConn, rc)
		if tunnel != nil {
			t.Cleanup(func() { tunnel.Close() })
		}
		done <- result{tunnel, err}
	}()
	conn := tls.Client(boxConn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPN}, Certificates: []tls.Certificate{bc.Certificate}})
	mux, err := speak(conn, muxConfig(DefaultWindow))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mux.Close() })
	return mux, done
}

// A box's stream under a number of the relay's would be lost when the relay
// opens its own, and whoever reads it would never return.
func TestBoxMayNotUseTheRelaysNumbers(t *testing.T) {
	mux, done := hostileBoxAs(t, yamux.Server)
	s, err := mux.OpenStream()
	if err == nil {
		_, _ = s.Write(appendChunk(nil, []byte(`{"hello":{"version":1}}`)))
	}
	r := <-done
	if r.err == nil {
		received := make(chan error, 1)
		go func() {
			_, err := r.tunnel.Receive()
			received <- err
		}()
		_, _ = r.tunnel.Open(Header{Kind: KindTCP, Port: 1, Client: user}, nil, 9)
		r.tunnel.Close()
		t.Errorf("a box with the relay's numbers has a tunnel, which ended with: %v", <-received)
	}
}

// hostileRelay is a relay that speaks yamux itself, and what the box makes of
// it. The relay answers the box's hello with answer.
func hostileRelay(t *testing.T, answer func(croft.DeviceID) string) (*yamux.Session, <-chan result) {
	bc, rc := configs(t)
	boxConn, relayConn := pipe(t)
	done := make(chan result, 1)
	go func() {
		tunnel, err := Connect(context.Background(), boxConn, bc)
		if tunnel != nil {
			t.Cleanup(func() { tunnel.Close() })
		}
		done <- result{tunnel, err}
	}()
	cert, err := rc.Certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Server(relayConn, &tls.Config{NextProtos: []string{ALPN}, Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	device, err := DeviceOf(conn.ConnectionState().PeerCertificates[0].PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	mux, err := yamux.Server(conn, muxConfig(DefaultWindow))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mux.Close() })
	control, err := mux.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = control.Write(appendChunk(nil, []byte(answer(device))))
	return mux, done
}

func welcomeOf(device croft.DeviceID) string {
	return `{"welcome":{"version":1,"beat_ms":60000,"device":"` + string(device) + `","domain":"boxes.test"}}`
}

func TestBoxDoesNotTakeAnothersName(t *testing.T) {
	_, done := hostileRelay(t, func(croft.DeviceID) string { return welcomeOf(croft.DeviceIDFromDigest([32]byte{1})) })
	if r := <-done; !errors.Is(r.err, ErrProtocol) {
		t.Errorf("a relay that takes the box for another: %v", r.err)
	}
}

func TestBoxSurvivesWhatARelayMayNotSend(t *testing.T) {
	for name, header := range map[string][]byte{
		"a stream under the box's number": {0, 1, 0, muxFlagSYN, 0, 0, 0, 3, 0, 0, 0, 0},
		"a ping":                          {0, muxTypePing, 0, muxFlagSYN, 0, 0, 0, 0, 0, 0, 0, 1},
		"another version of yamux":        {1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0},
		"a frame of no type":              {0, 9, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0},
		"more than the window":            {0, muxTypeData, 0, muxFlagSYN, 0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff},
	} {
		bc, rc := configs(t)
		box, relay := tunnels(t, bc, rc)
		if box.err != nil || relay.err != nil {
			t.Fatal(box.err, relay.err)
		}
		if _, err := relay.tunnel.conn.Conn.Write(header); err != nil { // past yamux; nobody else writes now
			t.Fatal(err)
		}
		if _, err := box.tunnel.Next(); err == nil {
			_, err = box.tunnel.Next()
			if err == nil {
				t.Errorf("%s: the box takes it", name)
			}
		}
		<-box.tunnel.Done()
	}
}

func TestScanFollowsFramesInAnyPieces(t *testing.T) {
	frame := func(kind, flags byte, stream byte, length uint32, body int) []byte {
		b := binary.BigEndian.AppendUint32([]byte{0, kind, 0, flags, 0, 0, 0, stream}, length)
		return append(b, bytes.Repeat([]byte{0xff}, body)...) // a body that looks like all flags
	}
	good := slices.Concat(
		frame(1, muxFlagSYN, 1, 0, 0), frame(muxTypeData, 0, 1, 300, 300), frame(1, 0, 1, 1<<31, 0),
		frame(muxTypeData, 0, 1, 0, 0), frame(muxTypeData, 4, 1, 5, 5))
	for _, tc := range []struct {
		name  string
		bytes []byte
		ok    bool
	}{
		{"frames as a box sends them", good, true},
		{"a second stream", slices.Concat(good, frame(1, muxFlagSYN, 3, 0, 0)), false},
		{"a second stream with data", slices.Concat(good, frame(muxTypeData, muxFlagSYN, 3, 0, 0)), false},
		{"an even stream", frame(1, muxFlagSYN, 2, 0, 0), false},
		{"a ping", slices.Concat(good, frame(muxTypePing, 0, 0, 0, 0)), false},
	} {
		for _, piece := range []int{1, 7, 12, 13, 1000} {
			c := newMuxConn(nil, nil, boxStreams)
			var err error
			for rest := range slices.Chunk(tc.bytes, piece) {
				if err = c.scan(rest); err != nil {
					break
				}
			}
			if (err == nil) != tc.ok {
				t.Errorf("%s in pieces of %d: %v", tc.name, piece, err)
			}
		}
	}
}

// stuck is a connection whose other side reads no more, once dead is closed.
type stuck struct {
	net.Conn
	dead, closed chan struct{}
	once         sync.Once
}

func (s *stuck) Write(p []byte) (int, error) {
	select {
	case <-s.dead:
		<-s.closed
		return 0, net.ErrClosed
	default:
		return s.Conn.Write(p)
	}
}

func (s *stuck) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

func TestFarewellEndsThoughTheBoxDoesNotRead(t *testing.T) {
	bc, rc := configs(t)
	boxConn, relayConn := pipe(t)
	conn := &stuck{Conn: relayConn, dead: make(chan struct{}), closed: make(chan struct{})}
	done := make(chan result, 1)
	go func() {
		tunnel, err := Accept(context.Background(), conn, rc)
		done <- result{tunnel, err}
	}()
	box, err := Connect(t.Context(), boxConn, bc)
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()
	relay := <-done
	if relay.err != nil {
		t.Fatal(relay.err)
	}
	close(conn.dead)
	var users sync.WaitGroup
	for range 3 { // users who wait for that box meanwhile
		users.Go(func() {
			if _, err := relay.tunnel.Open(Header{Kind: KindTCP, Port: 1, Client: user}, nil, 9); err == nil {
				t.Error("a user was brought to a box that does not read")
			}
		})
	}
	relay.tunnel.Farewell(ByeShutdown, "")
	users.Wait()
	select {
	case <-relay.tunnel.Done():
	default:
		t.Error("tunnel is there after its farewell")
	}
}

func TestBoxMayNotOpenASecondStream(t *testing.T) {
	mux, done := hostileBox(t)
	for range 2 {
		if _, err := mux.OpenStream(); err != nil {
			break
		}
	}
	<-mux.CloseChan()
	if r := <-done; r.err == nil {
		<-r.tunnel.Done()
	}
}

func TestPingsAreRefused(t *testing.T) {
	mux, done := hostileBox(t)
	if _, err := mux.Ping(); err == nil {
		t.Error("ping was answered")
	}
	<-mux.CloseChan()
	if r := <-done; r.err == nil {
		t.Error("a box that pings has a tunnel")
	}
}

func TestFirstMessageMustBeHello(t *testing.T) {
	for _, first := range []string{`{"want":{"seq":1}}`, `{"hello":{"version":0}}`, `{"hello":{"version":1},"beat":{}}`, `[]`, `{`} {
		mux, done := hostileBox(t)
		s, err := mux.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.Write(appendChunk(nil, []byte(first)))
		_, _ = io.Copy(io.Discard, s) // a goodbye, or nothing, and the end
		mux.Close()
		if r := <-done; r.err == nil {
			t.Errorf("%s is a hello", first)
		}
	}
}

func TestNewerBoxSpeaksTheOlderVersion(t *testing.T) {
	mux, done := hostileBox(t)
	s, err := mux.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.Write(appendChunk(nil, []byte(`{"hello":{"version":99,"beat_ms":3600000,"new":{}}}`)))
	in := chunkReader{src: s}
	raw, err := in.whole(MaxDatagram)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMessage(raw)
	if err != nil || m.Welcome == nil || m.Welcome.Version != Version || m.Welcome.BeatMS != maxBeat.Milliseconds() {
		t.Errorf("answer is %s, %v", raw, err)
	}
	if r := <-done; r.err != nil {
		t.Error(r.err)
	}
	_, _ = s.Write(appendChunk(nil, []byte(`{"news":{}}`))) // is ignored
	_, _ = s.Write(appendChunk(nil, []byte(`{"want":{"seq":3}}`)))
}

func TestStream(t *testing.T) {
	box, relay := pair(t)
	h := Header{Kind: KindSNI, Host: "shop.example", Client: user}
	first := bytes.Repeat([]byte("first"), 10_000) // more than a chunk
	out, err := relay.Open(h, first, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := relay.Open(h, nil, 1); !errors.Is(err, ErrBusy) {
		t.Errorf("second stream of one: %v", err)
	}
	in, err := box.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := in.ReadHeader(); err != nil || in.Header() != h || in.RemoteAddr().String() != user.String() {
		t.Fatalf("header %+v, address %s, %v", in.Header(), in.RemoteAddr(), err)
	}
	if err := in.ReadHeader(); err != nil || in.Header() != h {
		t.Errorf("header read again: %+v, %v", in.Header(), err)
	}
	// A deadline loses nothing.
	_ = in.SetReadDeadline(time.Unix(1, 0))
	if _, err := io.ReadAll(in); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Logf("the first bytes were here already: %v", err)
	}
	_ = out.CloseWrite()
	_ = out.CloseWrite() // a second time is nothing
	if _, err := out.Write([]byte("x")); err == nil {
		t.Error("write after the end")
	}
	_, _ = in.Write([]byte("answer"))
	in.Close() // no end: a cut
	if got, err := io.ReadAll(out); string(got) != "answer" || !errors.Is(err, ErrCut) {
		t.Errorf("read %q, %v; want the answer and a cut", got, err)
	}
	if _, err := in.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read of a closed stream: %v", err)
	}
	if _, err := in.Write(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write to a closed stream: %v", err)
	}
}

func TestReadDeadlineLosesNothing(t *testing.T) {
	box, relay := pair(t)
	out, err := relay.Open(Header{Kind: KindTCP, Port: 1, Client: user}, nil, 9)
	if err != nil {
		t.Fatal(err)
	}
	in, err := box.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := in.ReadHeader(); err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 1<<20)
	_, _ = rand.Read(sent)
	go func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 777)
			_, _ = out.Write(rest[:n])
			rest = rest[n:]
		}
		_ = out.CloseWrite()
	}()
	var got bytes.Buffer
	timeouts := 0
	for {
		_ = in.SetReadDeadline(time.Now().Add(50 * time.Microsecond))
		_, err := io.Copy(&got, in)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		timeouts++
	}
	if !bytes.Equal(got.Bytes(), sent) {
		t.Errorf("%d bytes came of %d, or others, with %d timeouts", got.Len(), len(sent), timeouts)
	}
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var last atomic.Int64 // since then
		silence := func() time.Duration { return time.Since(begun) - time.Duration(last.Load()) }
		go func() {
			for range 10 {
				time.Sleep(14 * time.Second) // late, but alive
				last.Store(int64(time.Since(begun)))
			}
		}()
		if err := listen(t.Context(), 5*time.Second, silence); !errors.Is(err, ErrSilent) {
			t.Error(err)
		}
		if got := time.Since(begun); got != 155*time.Second {
			t.Errorf("tunnel was given up after %s, want 15 s after the last byte at 140 s", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		last.Store(int64(time.Since(begun)))
		if err := listen(ctx, time.Second, silence); err != nil {
			t.Error(err)
		}
	})
}

// TestChunksAreNeverReordered writes and reads in random pieces.
func TestChunksAreNeverReordered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 0, 20_000).Draw(t, "data")
		var wire []byte
		for rest := data; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "chunk")
			wire = appendChunk(wire, rest[:n])
			rest = rest[n:]
		}
		wire = binary.BigEndian.AppendUint16(wire, endOfStream)
		c := chunkReader{src: &pieces{t, wire}}
		var got []byte
		for {
			p := make([]byte, rapid.IntRange(1, 9000).Draw(t, "read"))
			n, err := c.read(p)
			got = append(got, p[:n]...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil && !errors.Is(err, iotest.ErrTimeout) {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes came of %d, or others", len(got), len(data))
		}
	})
}

// pieces gives its bytes in random pieces, with timeouts in between.
type pieces struct {
	t    *rapid.T
	rest []byte
}

func (r *pieces) Read(p []byte) (int, error) {
	if rapid.IntRange(0, 9).Draw(r.t, "timeout") == 0 {
		return 0, iotest.ErrTimeout
	}
	n := copy(p, r.rest[:rapid.IntRange(1, len(r.rest)).Draw(r.t, "piece")])
	r.rest = r.rest[n:]
	return n, nil
}

func TestBadChunks(t *testing.T) {
	for _, tc := range []struct {
		name  string
		bytes []byte
	}{
		{"an empty chunk of a byte stream", []byte{0, 0}},
		{"a length above a datagram's", []byte{0xff, 0xe4, 1}},
		{"a length below the end's", []byte{0xff, 0xfe, 1}},
	} {
		c := chunkReader{src: bytes.NewReader(tc.bytes)}
		if _, err := c.read(make([]byte, 1)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte(`{"kind":"sni","host":"shop.example","client":"192.0.2.7:4711"}`))
	f.Add([]byte(`{"kind":"udp","port":31007,"client":"[2001:db8::1]:1"}`))
	f.Add([]byte(`{"kind":"tcp","port":0,"client":""}`))
	f.Add([]byte(`{"kind":"http","host":"..","client":"[fe80::1%eth0]:1"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := parseHeader(raw)
		if err != nil {
			return
		}
		again, err := h.encode()
		if err != nil {
			t.Fatal(err)
		}
		if h2, err := parseHeader(again); err != nil || h2 != h {
			t.Errorf("%s became %s: %v", raw, again, err)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"hello":{"version":1,"beat_ms":5000}}`))
	f.Add([]byte(`{"welcome":{"version":1,"beat_ms":5000,"device":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","domain":"boxes.test"}}`))
	f.Add([]byte(`{"want":{"seq":1,"names":["a.example"],"ports":[{"key":"l/web/80","proto":"tcp"}]}}`))
	f.Add([]byte(`{"held":{"seq":1,"names":[{"name":"a.example","problem":"taken"}],"ports":[{"key":"k","proto":"udp","port":7}]}}`))
	f.Add([]byte(`{"bye":{"reason":"shutdown"}}`))
	f.Add([]byte(`{"beat":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseMessage(raw)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil {
			return // it would not fit a chunk
		}
		m2, err := parseMessage(again)
		if diff := cmp.Diff(m, m2, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("%s became %s: %v %s", raw, again, err, diff)
		}
	})
}

// FuzzChunks: no bytes make a reader turn without end, or hold more than a chunk.
func FuzzChunks(f *testing.F) {
	f.Add([]byte{0, 1, 'x', 0xff, 0xff}, true)
	f.Add([]byte{0, 0, 0xff, 0xe3}, false)
	f.Fuzz(func(t *testing.T, raw []byte, whole bool) {
		c := chunkReader{src: iotest.OneByteReader(bytes.NewReader(raw))}
		p := make([]byte, 100)
		got := 0
		for {
			var n int
			var err error
			if whole {
				var chunk []byte
				chunk, err = c.whole(MaxDatagram)
				n = len(chunk) + 2
			} else {
				n, err = c.read(p)
			}
			if err != nil {
				break
			}
			if got += n; n == 0 || got > len(raw) || len(c.buf) > 2+MaxDatagram {
				t.Fatalf("%d bytes of %d, buffer of %d", got, len(raw), len(c.buf))
			}
		}
	})
}

// The largest messages must fit a chunk.
func TestLargestMessagesFit(t *testing.T) {
	label := strings.Repeat("a", 61)
	held := Held{Seq: 1<<64 - 1}
	for i := range MaxNames {
		name := strings.Join([]string{label, label, label, label, string(rune('a'+i%26)) + string(rune('a'+i/26)) + "x"}, ".")
		held.Names = append(held.Names, HeldName{name, ProblemRefused})
	}
	for i := range MaxPorts {
		key := strings.Repeat("k", MaxKey-2) + string(rune('a'+i%26)) + string(rune('a'+i/26))
		held.Ports = append(held.Ports, HeldPort{Port: Port{key, TCP}, Problem: ProblemRefused})
	}
	if raw, err := (Message{Held: &held}).encode(); err != nil {
		t.Errorf("%d bytes: %v", len(raw), err)
	}
}

func TestCutText(t *testing.T) {
	for text, want := range map[string]string{
		"short": "short", "bad \xff": "bad ?",
		strings.Repeat("é", 200): strings.Repeat("é", 128), "x" + strings.Repeat("é", 200): "x" + strings.Repeat("é", 127),
	} {
		if got := cutText(text); got != want {
			t.Errorf("cutText(%q) = %q", text, got)
		}
	}
}

func TestCheckHost(t *testing.T) {
	for host, ok := range map[string]bool{
		"a": true, "shop.example": true, "xn--bcher-kva.example": true, "_acme.a-b.example": true,
		"": false, ".": false, "a.": false, ".a": false, "a..b": false, "A.example": false, "a b": false, "bücher.example": false,
		"1.2.3.4": false, "::1": false, strings.Repeat("a", 64): false, strings.Repeat("a.", 126) + "aa": false, strings.Repeat("a.", 126) + "a": true,
	} {
		if err := CheckHost(host); (err == nil) != ok {
			t.Errorf("CheckHost(%q) = %v", host, err)
		}
	}
}
