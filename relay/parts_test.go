package relay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
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
		leave, err := g.enter(a)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter(b); err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter(a); !errors.Is(err, errTooMany) {
			t.Errorf("third from one /64: %v", err)
		}
		leave()
		leave() // a second time is nothing
		for range 3 {
			l, err := g.enter(a)
			if err != nil {
				t.Fatal(err)
			}
			l()
		}
		if _, err := g.enter(a); !errors.Is(err, errTooQuick) {
			t.Errorf("sixth in one moment: %v", err)
		}
		for _, other := range []string{"192.0.2.1", "192.0.2.2"} {
			if _, err := g.enter(netip.MustParseAddr(other)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := g.enter(netip.MustParseAddr("192.0.2.3")); !errors.Is(err, errFull) {
			t.Errorf("fourth of all: %v", err)
		}
		time.Sleep(time.Minute)
		g.sweep(time.Now())
		if len(g.clients) != 3 || g.total != 3 {
			t.Errorf("%d clients and %d connections are known, want 3 and 3", len(g.clients), g.total)
		}
	})
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
	if err := errors.Join(s.Put(a), s.Put(b), s.Put(a2), s.Delete(b)); err != nil {
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
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"))
	f.Add(realHello(f))
	f.Fuzz(func(t *testing.T, sent []byte) {
		host, read, err := peekRequest(fixed{Reader: bytes.NewReader(sent)})
		if err == nil && wire.CheckHost(host) != nil || !bytes.HasPrefix(sent, read) || len(read) > maxHead {
			t.Errorf("request: host %q, %d bytes read, %v", host, len(read), err)
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
