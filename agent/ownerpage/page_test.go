package ownerpage

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

func newServer(t *testing.T, s Status, listen string) *Server {
	t.Helper()
	server, err := New(Config{Source: NewSlate(s, nil), Listen: listen})
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// ask sends a request to the server without a network.
func ask(s *Server, method, path, host, remote string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Host, r.RemoteAddr = host, remote
	w := httptest.NewRecorder()
	s.guard(s.mux).ServeHTTP(w, r)
	return w
}

const nearby = "192.168.1.9:4711"

// fileVersion is what changes in each page when a file beside it does.
var fileVersion = regexp.MustCompile(`\?v=[0-9a-f]+`)

func TestPage(t *testing.T) {
	for name, status := range faces() {
		t.Run(name, func(t *testing.T) {
			server := newServer(t, status, "")
			page := ask(server, "GET", "/", "192.168.1.23", nearby)
			if page.Code != http.StatusOK || page.Header().Get("Content-Type") != "text/html; charset=utf-8" {
				t.Fatalf("page: %d %v", page.Code, page.Header())
			}
			details := ask(server, "GET", "/status.json", "192.168.1.23", nearby)
			if details.Code != http.StatusOK || !json.Valid(details.Body.Bytes()) {
				t.Fatalf("status.json: %d %s", details.Code, details.Body)
			}
			if name != "endless" && name != "hostile" {
				golden(t, name+".html", fileVersion.ReplaceAllString(page.Body.String(), ""))
				golden(t, name+".json", details.Body.String())
			}
			for _, body := range []string{page.Body.String(), details.Body.String()} {
				if strings.Contains(body, testCode) || strings.Contains(body, testShown) {
					t.Error("the claim code is in the network")
				}
			}
			if strings.Contains(details.Body.String(), testWords) {
				t.Error("the words are in what programs read")
			}
			if shown := strings.Contains(page.Body.String(), testWords); shown != (name == "fleet_unclaimed") {
				t.Errorf("the page has words to claim the box with: %v", shown)
			}
		})
	}
}

func TestPageEscapes(t *testing.T) {
	s := healthy()
	s.Problems = []string{"<script>alert(1)</script>"}
	s.Addresses = []string{"javascript:alert(1)"}
	body := ask(newServer(t, s, ""), "GET", "/", "localhost", nearby).Body.String()
	if strings.Contains(body, "<script>alert") || strings.Contains(body, `href="javascript`) {
		t.Errorf("page is not escaped: %s", body)
	}
}

func TestPageFilesAreServed(t *testing.T) {
	server := newServer(t, healthy(), "")
	body := ask(server, "GET", "/", "localhost", nearby).Body.String()
	for _, f := range []struct{ path, kind string }{
		{"/page.css?v=", "text/css; charset=utf-8"},
		{"/page.js?v=", "text/javascript; charset=utf-8"},
		{"/icon.svg?v=", "image/svg+xml"},
	} {
		if !strings.Contains(body, `"`+f.path) {
			t.Errorf("page does not ask for %s", f.path)
		}
		w := ask(server, "GET", f.path, "localhost", nearby)
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != f.kind || w.Header().Get("Cache-Control") != "max-age=86400" || w.Body.Len() == 0 {
			t.Errorf("%s: %d %v", f.path, w.Code, w.Header())
		}
	}
}

func TestRequests(t *testing.T) {
	server := newServer(t, healthy(), "")
	for _, tc := range []struct {
		name, method, path string
		want               int
	}{
		{"the page may be read", "GET", "/", 200},
		{"its head may be read", "HEAD", "/", 200},
		{"details may be read", "GET", "/status.json", 200},
		{"health may be read", "GET", "/healthz", 200},
		{"nothing can be sent", "POST", "/", 405},
		{"nothing can be put", "PUT", "/status.json", 405},
		{"nothing can be deleted", "DELETE", "/healthz", 405},
		{"no options are told", "OPTIONS", "/", 405},
		{"other paths do not exist", "GET", "/admin", 404},
		{"templates are not files", "GET", "/page.html", 404},
		{"paths do not climb", "GET", "/assets/../page.css", 307},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := ask(server, tc.method, tc.path, "croft-k7qm.local", nearby)
			if w.Code != tc.want {
				t.Errorf("%s %s = %d, want %d", tc.method, tc.path, w.Code, tc.want)
			}
			if w.Header().Get("Content-Security-Policy") != policy || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("security headers are missing: %v", w.Header())
			}
		})
	}
}

func TestHost(t *testing.T) {
	for _, tc := range []struct {
		name, host string
		want       bool
	}{
		{"the .local name", "croft-k7qm.local", true},
		{"the .local name with a port", "croft-k7qm.local:8080", true},
		{"the name in full, and in capitals", "CROFT-K7QM.LOCAL.", true},
		{"the short name", "croft-k7qm", true},
		{"localhost", "localhost:80", true},
		{"an IPv4 address", "192.168.1.23", true},
		{"an IPv4 address with a port", "10.0.2.15:80", true},
		{"an IPv6 address", "[fd00::2]", true},
		{"an IPv6 address with zone and port", "[fe80::1%25eth0]:80", true},
		{"another name", "evil.example", false},
		{"another name with a port", "evil.example:80", false},
		{"a name that begins like ours", "croft-k7qm.local.evil.example", false},
		{"a name that ends like ours", "evil-croft-k7qm.local", false},
		{"another box", "croft-aaaa.local", false},
		{"an address in other digits", "0x7f.1", false},
		{"no name", "", false},
		{"only a dot", ".", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := http.StatusOK
			if !tc.want {
				want = http.StatusMisdirectedRequest
			}
			if w := ask(newServer(t, healthy(), ""), "GET", "/healthz", tc.host, nearby); w.Code != want {
				t.Errorf("host %q = %d, want %d", tc.host, w.Code, want)
			}
		})
	}
	if ownHost(".local", "") || ownHost("", "") {
		t.Error("a box without a name answers to no name")
	}
}

func TestOnlyTheHomeNetworkIsAnswered(t *testing.T) {
	server := newServer(t, healthy(), "")
	server.onLink = netip.MustParsePrefix("2001:db8:1:2::/64").Contains
	for _, tc := range []struct {
		name, remote string
		want         int
	}{
		{"a private address", "10.1.2.3:999", 200},
		{"a private address in IPv6 form", "[::ffff:172.16.0.1]:999", 200},
		{"loopback", "127.0.0.1:999", 200},
		{"IPv6 loopback", "[::1]:999", 200},
		{"a unique local address", "[fd12::1]:999", 200},
		{"a link-local address with a zone", "[fe80::1%eth0]:999", 200},
		{"a link-local IPv4 address", "169.254.1.1:999", 200},
		{"a public IPv6 address of the same network", "[2001:db8:1:2::9]:999", 200},
		{"a public IPv6 address of another network", "[2001:db8:1:3::9]:999", 403},
		{"a public IPv4 address", "203.0.113.5:999", 403},
		{"a public IPv4 address in IPv6 form", "[::ffff:203.0.113.5]:999", 403},
		{"nonsense", "pipe", 403},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if w := ask(server, "GET", "/", "192.168.1.23", tc.remote); w.Code != tc.want {
				t.Errorf("from %s = %d, want %d", tc.remote, w.Code, tc.want)
			}
		})
	}
	if onLink(netip.MustParseAddr("2606:4700::1111")) {
		t.Error("the internet is on link")
	}
}

// startServer runs the server on a free port until the test ends, and returns
// its address.
func startServer(t *testing.T, server *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve = %v", err)
		}
		if server.Ready() {
			t.Error("server is ready after it stopped")
		}
	})
	return l.Addr().String()
}

func TestRunServesAndStops(t *testing.T) {
	server := newServer(t, healthy(), "")
	addr := startServer(t, server)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok\n" {
		t.Errorf("healthz = %q, %v", body, err)
	}
	if !server.Ready() || server.Addr().String() != addr {
		t.Errorf("ready = %v at %v, want %s", server.Ready(), server.Addr(), addr)
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := newServer(t, healthy(), "127.0.0.1:0").Run(ctx); err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestRunSaysWhyItCannotListen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	server := newServer(t, healthy(), taken.Addr().String())
	if err := server.Run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "listen for the owner page: ") {
		t.Errorf("Run = %v", err)
	}
	if server.Ready() {
		t.Error("server is ready without listening")
	}
}

func TestLongHeadersAreRefused(t *testing.T) {
	addr := startServer(t, newServer(t, healthy(), ""))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: %s\r\n\r\n", strings.Repeat("x", 2*maxHeaderBytes)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status = %d", resp.StatusCode)
	}
}

func TestOneClientCannotTakeAllConnections(t *testing.T) {
	addr := startServer(t, newServer(t, healthy(), ""))
	get := func(c net.Conn) error {
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	var conns []net.Conn
	for i := range maxConnsPerPeer {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := get(c); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
	}
	extra, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	if err := get(extra); err == nil {
		t.Error("one connection too many is served")
	}
	conns[0].Close() // makes room, as soon as the server notices
	for {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		err = get(c)
		c.Close()
		if err == nil {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("closing a connection makes no room")
		}
	}
}

func TestAllConnectionsAreLimited(t *testing.T) {
	l := &fewConns{open: make(map[netip.Addr]int)}
	peer := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
	for i := range maxConns {
		if !l.enter(peer(i)) {
			t.Fatalf("connection %d is refused", i)
		}
	}
	if l.enter(peer(200)) {
		t.Error("one connection too many is accepted")
	}
	l.leave(peer(0))
	if !l.enter(peer(200)) {
		t.Error("a connection that ended makes no room")
	}
	if _, ok := l.open[peer(0)]; ok {
		t.Error("a peer without connections is remembered")
	}
}
