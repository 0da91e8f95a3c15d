package relay

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/relay/wire"
)

func TestPauses(t *testing.T) {
	var b backoff
	if got := b.next(0, false); got != 0 {
		t.Errorf("first pause is %s, want none", got)
	}
	for last := shortestPause; last < longestPause; {
		got := b.next(time.Second, false)
		if got < shortestPause || got > max(3*last, 3*shortestPause) {
			t.Fatalf("pause after %s is %s", last, got)
		}
		last = max(last, got) + time.Millisecond // ends even if jitter stays low
	}
	if got := b.next(steadyAfter, false); got != 0 {
		t.Errorf("pause after a steady tunnel is %s, want none", got)
	}
	if got := b.next(0, true); got < refusedPause {
		t.Errorf("pause after a refusal is %s", got)
	}
	for range 1000 {
		if got := b.next(0, true); got > longestRefused {
			t.Fatalf("pause is %s", got)
		}
	}
}

func TestDeviceOf(t *testing.T) {
	id := croft.DeviceIDFromDigest([32]byte{1})
	for _, tc := range []struct {
		host string
		ok   bool
	}{
		{string(id) + ".boxes.test", true},
		{"a." + string(id) + ".boxes.test", true},
		{"mtls.gateway." + string(id) + ".boxes.test", true},
		{"boxes.test", false},
		{"x.boxes.test", false},
		{string(id) + ".a.boxes.test", false},
		{string(id) + ".boxes.test.evil", false},
		{string(id) + "boxes.test", false},
		{"." + string(id) + ".boxes.test", true}, // no hello can carry it
	} {
		got, ok := deviceOf(tc.host, "boxes.test")
		if ok != tc.ok || ok && got != id {
			t.Errorf("deviceOf(%q) = %q, %v", tc.host, got, ok)
		}
	}
}

func TestGateForgetsWhoIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(Limits{Connections: 3, PerClient: 2, ClientRate: 1}.withDefaults())
		a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
		leave, err := g.enter(a, connection)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter(b, connection); err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter(a, connection); !errors.Is(err, errTooMany) {
			t.Errorf("third from one /64: %v", err)
		}
		leave()
		leave() // a second time is nothing
		for range 3 {
			l, err := g.enter(a, connection)
			if err != nil {
				t.Fatal(err)
			}
			l()
		}
		if _, err := g.enter(a, connection); !errors.Is(err, errTooQuick) {
			t.Errorf("sixth in one moment: %v", err)
		}
		for _, other := range []string{"192.0.2.1", "192.0.2.2"} {
			if _, err := g.enter(netip.MustParseAddr(other), connection); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := g.enter(netip.MustParseAddr("192.0.2.3"), connection); !errors.Is(err, errFull) {
			t.Errorf("fourth of all: %v", err)
		}
		time.Sleep(time.Minute)
		g.sweep(time.Now())
		if len(g.clients) != 3 || g.total != 3 {
			t.Errorf("%d clients and %d connections are known, want 3 and 3", len(g.clients), g.total)
		}
	})
}

func TestForgedFlowsLeaveRoomForOthers(t *testing.T) {
	g := newGate(Limits{Connections: 10}.withDefaults())
	let := 0
	for i := range 100 {
		if _, err := g.enter(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), udpFlow); err == nil {
			let++
		}
	}
	if let != 5 || len(g.clients) != 5 {
		t.Errorf("%d flows of 10 connections are let in, %d senders are remembered, want 5", let, len(g.clients))
	}
	leave, err := g.enter(netip.MustParseAddr("192.0.2.200"), connection)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if g.total != 5 || g.flows != 5 {
		t.Errorf("%d connections, %d flows", g.total, g.flows)
	}
}

func TestOneSiteIsNotAnyNumberOfClients(t *testing.T) {
	g := newGate(Limits{PerClient: 2}.withDefaults())
	var leaves []func()
	for i := range 100 {
		if leave, err := g.enter(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, byte(i)}), connection); err == nil {
			leaves = append(leaves, leave)
		} else if !errors.Is(err, errTooMany) {
			t.Fatal(err)
		}
	}
	if len(leaves) != 8 {
		t.Errorf("%d connections of one /48, want 8", len(leaves))
	}
	if _, err := g.enter(netip.MustParseAddr("2001:db8:1::1"), connection); err != nil {
		t.Errorf("its neighbour: %v", err)
	}
	for _, mapped := range []string{"::ffff:192.0.2.1", "192.0.2.1"} {
		if _, err := g.enter(netip.MustParseAddr(mapped), connection); err != nil {
			t.Error(err)
		}
	}
	if _, err := g.enter(netip.MustParseAddr("192.0.2.1"), connection); !errors.Is(err, errTooMany) {
		t.Errorf("an IPv4 client's third, one of them mapped: %v", err)
	}
	for _, leave := range leaves {
		leave()
	}
	if len(g.sites) != 1 {
		t.Errorf("%d sites are remembered, want the neighbour's", len(g.sites))
	}
}

func TestFailedTunnelsCostMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(Limits{ClientRate: 64}.withDefaults())
		who := netip.MustParseAddr("192.0.2.1")
		tries := 0
		for ; ; tries++ {
			leave, err := g.enter(who, connection)
			if errors.Is(err, errTooQuick) {
				break
			}
			leave()
			g.charge(who, failedTunnel)
		}
		if tries != 16 { // a burst of 257 by 17, and one that makes the debt
			t.Errorf("%d tunnels may fail in one moment", tries)
		}
		g.charge(netip.MustParseAddr("192.0.2.2"), failedTunnel) // one that is not known
		time.Sleep(time.Second)
		if _, err := g.enter(who, connection); err != nil {
			t.Errorf("a second later: %v", err)
		}
	})
}

// script is a user's connection: what he sends, and what he was answered.
type script struct {
	net.Conn
	io.Reader
	answered bytes.Buffer
	ended    bool
}

func (s *script) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s *script) Write(p []byte) (int, error) { return s.answered.Write(p) }
func (s *script) Close() error                { return nil }
func (s *script) CloseWrite() error           { s.ended = true; return nil }

func TestRequestsOfOtherHostsAreNotLetThrough(t *testing.T) {
	const (
		get   = "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"
		other = "GET /secret HTTP/1.1\r\nHost: other.example\r\nCookie: c\r\n\r\n"
	)
	post := "POST / HTTP/1.1\r\nHost: Shop.Example.:80\r\nContent-Length: " + strconv.Itoa(len(other)) + "\r\n\r\n" + other
	chunked := "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: shop.example\r\n\r\n5;x=y\r\nhello\r\n0\r\nTrailer: t\r\n\r\n"
	for _, tc := range []struct{ name, sent, let string }{
		{"one request", get, get},
		{"many of one host", get + post + chunked + get, get + post + chunked + get},
		{"an absolute form that means the same host", get + "GET http://shop.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n" + get, get + "GET http://shop.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n" + get},
		{"another host next", get + other + get, get},
		{"another host after a body", post + other, post},
		{"another host after chunks", chunked + other, chunked},
		{"an absolute form with another host", get + "GET http://other.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n", get},
		{"two hosts", get + "GET / HTTP/1.1\r\nHost: shop.example\r\nHost: other.example\r\n\r\n", get},
		{"a host on two lines", get + "GET / HTTP/1.1\r\nHost: shop.example\r\n .other\r\n\r\n", get},
		{"a space before the colon", get + "GET / HTTP/1.1\r\nHost: shop.example\r\nHost : other.example\r\n\r\n", get},
		{"a tunnel through a proxy", get + "CONNECT shop.example:80 HTTP/1.1\r\nHost: shop.example\r\n\r\n" + other, get},
		{"two lengths", get + "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", get},
		{"a length beside chunks: chunks count", strings.Replace(chunked, "Host", "Content-Length: 5\r\nHost", 1) + other, strings.Replace(chunked, "Host", "Content-Length: 5\r\nHost", 1)},
		{"a head that is too long", get + "GET / HTTP/1.1\r\nHost: shop.example\r\nX: " + strings.Repeat("x", 2*maxHead) + "\r\n\r\n", get},
		{"HTTP/2 without being asked", get + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", get},
		{"half a head", get + "GET / HTT", get},
		{"half a body", get + post[:len(post)-3], get + post[:len(post)-3]},
	} {
		for _, source := range []io.Reader{strings.NewReader(tc.sent), iotest.OneByteReader(strings.NewReader(tc.sent)), iotest.DataErrReader(strings.NewReader(tc.sent))} {
			r, err := readRequests(&script{Reader: source})
			if err != nil || r.host != "shop.example" {
				t.Fatalf("%s: host %q, %v", tc.name, r.host, err)
			}
			let := r.first()
			rest, err := io.ReadAll(r)
			if let = append(let, rest...); string(let) != tc.let || err != nil {
				t.Errorf("%s: let through %q, %v", tc.name, let, err)
			}
		}
	}
	reset := errors.New("reset")
	r, err := readRequests(&script{Reader: io.MultiReader(strings.NewReader(post[:len(post)-3]), iotest.ErrReader(reset))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, reset) {
		t.Errorf("a user who cut ended by: %v", err)
	}
	// A body far larger than what is held.
	large := strings.Replace(post, strconv.Itoa(len(other)), strconv.Itoa(len(other)+1<<20), 1) + strings.Repeat("x", 1<<20)
	if r, err = readRequests(&script{Reader: strings.NewReader(large + get + other)}); err != nil {
		t.Fatal(err)
	}
	first := string(r.first())
	if rest, err := io.ReadAll(r); first+string(rest) != large+get || err != nil || cap(r.tap.raw) > 128<<10 {
		t.Errorf("%d bytes of %d, %v, %d are held", len(first)+len(rest), len(large+get), err, cap(r.tap.raw))
	}
}

func TestUpgradedConnectionIsNoHTTP(t *testing.T) {
	const (
		upgrade = "GET /ws HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
		other   = "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n"
	)
	for _, tc := range []struct{ name, answer, let string }{
		{"the box agrees", "HTTP/1.1 101 Switching Protocols\r\n\r\n", upgrade + upgrade + other},
		{"the box does not", "HTTP/1.1 400 Bad Request\r\nX: HTTP/1.1 101\r\n\r\n", upgrade + upgrade},
		{"the box says little and ends", "HTTP/1.1", upgrade + upgrade},
		{"the box says nothing and ends", "", upgrade + upgrade},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The first is refused: a program may ask again, or something else.
				r, err := readRequests(&script{Reader: strings.NewReader(upgrade + upgrade + other)})
				if err != nil {
					t.Fatal(err)
				}
				let := r.first()
				done := make(chan []byte)
				go func() {
					rest, _ := io.ReadAll(r)
					done <- rest
				}()
				synctest.Wait()
				_, _ = r.Write([]byte("HTTP/1.1 426 Upgrade Required\r\n\r\n"))
				synctest.Wait()
				for _, b := range []byte(tc.answer) {
					_, _ = r.Write([]byte{b})
				}
				_ = r.CloseWrite()
				if let = append(let, <-done...); string(let) != tc.let {
					t.Errorf("let through %q", let)
				}
			})
		})
	}
	r, err := readRequests(&script{Reader: strings.NewReader(upgrade + other)})
	if err != nil {
		t.Fatal(err)
	}
	_ = r.first()
	r.Close() // frees who waits for an answer
	if rest, err := io.ReadAll(r); len(rest) != 0 || err != nil {
		t.Errorf("after Close: %q, %v", rest, err)
	}
}

// TestBook lets rapid play with a book: no port has two owners, no owner two
// ports, and what is remembered stays.
func TestBook(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBook(PortRange{First: 65530, Last: 65535}, nil)
		has := make(map[owner]uint16)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			who := owner{croft.DeviceID(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "device")), wire.Port{
				Key:   rapid.SampledFrom([]string{"1", "2", "3", "4"}).Draw(t, "key"),
				Proto: rapid.SampledFrom([]wire.Proto{wire.TCP, wire.UDP}).Draw(t, "proto"),
			}}
			if rapid.Bool().Draw(t, "remove") {
				b.remove(who)
				delete(has, who)
				continue
			}
			if a := b.all[who]; a != nil {
				if a.External != has[who] {
					t.Fatalf("port of %v is %d, was %d", who, a.External, has[who])
				}
				continue
			}
			free := 0
			for port := range b.candidates(who) {
				if free++; free == 1 {
					if !b.enter(Allocation{Device: who.device, Port: who.port, External: port}) {
						t.Fatalf("candidate %d is taken", port)
					}
					has[who] = port
				}
			}
			same := 0
			for o := range has {
				if o.port.Proto == who.port.Proto {
					same++
				}
			}
			if _, got := has[who]; got != (free > 0) || !got && same < 6 {
				t.Fatalf("%d ports were free, %d are used, port was given: %v", free, same, got)
			}
		}
		if len(b.all) != len(has) || len(b.taken) != len(has) {
			t.Fatalf("book has %d owners and %d ports, want %d", len(b.all), len(b.taken), len(has))
		}
	})
}

func TestPortsFollowFromNamesWhenTheStoreIsLost(t *testing.T) {
	who := owner{"device", wire.Port{Key: "web", Proto: wire.TCP}}
	first := func() (port uint16) {
		newBook(testPorts, nil).candidates(who)(func(p uint16) bool { port = p; return false })
		return port
	}
	if a, b := first(), first(); a != b || a < testPorts.First || a > testPorts.Last {
		t.Errorf("ports %d and %d", a, b)
	}
}

func TestFileStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	a := Allocation{Device: "d", Port: wire.Port{Key: "a", Proto: wire.TCP}, External: 1, Used: time.Unix(1, 0).UTC()}
	b := Allocation{Device: "d", Port: wire.Port{Key: "b", Proto: wire.UDP}, External: 2, Used: time.Unix(2, 0).UTC()}
	s := NewFileStore(path)
	if list, err := s.Load(); len(list) != 0 || err != nil {
		t.Fatalf("no file: %v, %v", list, err)
	}
	a2 := a
	a2.External = 3
	if err := errors.Join(s.Save([]Allocation{a, b}, nil), s.Save([]Allocation{a2}, []Allocation{b})); err != nil {
		t.Fatal(err)
	}
	list, err := NewFileStore(path).Load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Allocation{a2}, list); diff != "" {
		t.Error(diff)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFileStore(path).Load(); err == nil {
		t.Error("a damaged file is loaded")
	}
}

// fixed is a connection on which a user has sent some bytes.
type fixed struct {
	net.Conn
	io.Reader
}

func (f fixed) Read(p []byte) (int, error) { return f.Reader.Read(p) }

// FuzzPeek: whatever strangers send, a host that comes out has the form of one,
// no more is read than may be, and no byte of it is lost.
func FuzzPeek(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: shop.example:80\r\n\r\nbody"))
	f.Add([]byte("GET http://a/ HTTP/1.0\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"))
	f.Add(realHello(f))
	f.Fuzz(func(t *testing.T, sent []byte) {
		r, err := readRequests(&script{Reader: bytes.NewReader(sent)})
		if err == nil && wire.CheckHost(r.host) != nil || len(r.tap.raw) > maxHead {
			t.Errorf("request: host %q, %d bytes read, %v", r.host, len(r.tap.raw), err)
		}
		if err == nil {
			_ = r.CloseWrite() // no answer comes
			read := r.first()
			rest, err := io.ReadAll(r)
			if read = append(read, rest...); !bytes.HasPrefix(sent, read) || err != nil {
				t.Errorf("let through %q, %v", read, err)
			}
		}
		h, read, err := peekHello(fixed{Reader: bytes.NewReader(sent)})
		if err == nil && h.host != "" && wire.CheckHost(h.host) != nil || !bytes.HasPrefix(sent, read) || len(read) > maxHello {
			t.Errorf("hello: host %q, %d bytes read, %v", h.host, len(read), err)
		}
	})
}

// realHello is what the standard library's client sends first.
func realHello(tb testing.TB) []byte {
	var sent bytes.Buffer
	_ = tls.Client(writer{&sent}, &tls.Config{ServerName: "shop.example", NextProtos: []string{"h2"}}).HandshakeContext(tb.Context())
	return sent.Bytes()
}

// writer is a connection that takes and never gives.
type writer struct{ *bytes.Buffer }

func (writer) Read([]byte) (int, error)         { return 0, io.EOF }
func (writer) Close() error                     { return nil }
func (writer) LocalAddr() net.Addr              { return nil }
func (writer) RemoteAddr() net.Addr             { return nil }
func (writer) SetDeadline(time.Time) error      { return nil }
func (writer) SetReadDeadline(time.Time) error  { return nil }
func (writer) SetWriteDeadline(time.Time) error { return nil }

func TestPeekHelloReadsARealOne(t *testing.T) {
	sent := realHello(t)
	h, read, err := peekHello(fixed{Reader: bytes.NewReader(append(sent, "more"...))})
	if err != nil || h.host != "shop.example" || h.tunnel || !bytes.HasPrefix(read, sent) {
		t.Errorf("hello %+v, %d of %d bytes read, %v", h, len(read), len(sent), err)
	}
}

func TestEncryptedHelloIsLedByItsOuterName(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	config := slices.Concat([]byte{7, 0, 0x20, 0, 32}, key.PublicKey().Bytes(), // number, X25519
		[]byte{0, 4, 0, 1, 0, 1, 0, 12}, []byte("shop.example"), []byte{0, 0}) // HKDF-SHA256, AES-128-GCM, public name
	config = slices.Concat([]byte{0, byte(4 + len(config)), 0xfe, 0x0d, 0, byte(len(config))}, config)
	var sent bytes.Buffer
	err = tls.Client(writer{&sent}, &tls.Config{ServerName: "secret.example", EncryptedClientHelloConfigList: config}).HandshakeContext(t.Context())
	if !errors.Is(err, io.EOF) || bytes.Contains(sent.Bytes(), []byte("secret")) {
		t.Fatalf("hello of %d bytes is not encrypted: %v", sent.Len(), err)
	}
	if h, _, err := peekHello(fixed{Reader: &sent}); err != nil || h.host != "shop.example" {
		t.Errorf("hello %+v, %v", h, err)
	}
}
