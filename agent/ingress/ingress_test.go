package ingress_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/croft-cloud/croft/agent/ingress"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/sdl"
)

const (
	lease1 = lease.Key("l0000000001")
	lease2 = lease.Key("l0000000002")
)

// door is a running ingress.
type door struct {
	*ingress.Ingress
	t          *testing.T
	plain, tls string // addresses
	bind       netip.Addr
	dir        string
	stop       func()
}

func start(t *testing.T, change func(*ingress.Config)) *door {
	t.Helper()
	d := &door{t: t, dir: t.TempDir()}
	cfg := ingress.Config{Dir: d.dir, HTTP: listen(t), TLS: listen(t), Bind: ownAddress()}
	if change != nil {
		change(&cfg)
	}
	d.bind = cfg.Bind
	d.plain, d.tls, d.dir = cfg.HTTP.Addr().String(), cfg.TLS.Addr().String(), cfg.Dir
	var err error
	if d.Ingress, err = ingress.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(d.stop)
	return d
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (d *door) set(routes ingress.Routes) {
	d.t.Helper()
	if err := d.Set(routes); err != nil {
		d.t.Fatal(err)
	}
}

// web sets one host of lease1.
func (d *door) web(options sdl.HTTPOptions, backends ...netip.AddrPort) {
	d.t.Helper()
	d.set(ingress.Routes{HTTP: []ingress.HTTPRoute{{Lease: lease1, Host: "web.example", Options: options, Backends: backends}}})
}

// backend is a replica.
func backend(t *testing.T, h http.HandlerFunc) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// dead is an address where nobody listens.
func dead(*testing.T) netip.AddrPort { return netip.MustParseAddrPort("127.66.0.1:1") }

// bindings makes an address of its own for each ingress of each process, so that
// any port below those that the kernel draws is free on it.
var bindings atomic.Uint32

func ownAddress() netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, 68 + byte((pid>>8)%100), byte(pid), byte(bindings.Add(1))})
}

// external is the port that tests open.
const external = 20001

// client reaches the ingress whatever name it asks for.
func (d *door) client() *http.Client {
	dial := func(ctx context.Context, _, address string) (net.Conn, error) {
		to := d.plain
		if strings.HasSuffix(address, ":443") {
			to = d.tls
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", to)
	}
	transport := &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	d.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (d *door) do(method, url string, body io.Reader, header ...string) (*http.Response, string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, url, body)
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := d.client().Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp, string(raw)
}

func (d *door) want(status int, text, method, url string, body io.Reader) {
	d.t.Helper()
	if resp, got := d.do(method, url, body); resp.StatusCode != status || !strings.Contains(got, text) { //nolint:bodyclose // do has closed it
		d.t.Errorf("%s %s = %d %q, want %d %q", method, url, resp.StatusCode, got, status, text)
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	a, b := backend(t, says("a")), backend(t, says("b"))
	d.set(ingress.Routes{HTTP: []ingress.HTTPRoute{
		{Lease: lease1, Host: "a.example", Backends: []netip.AddrPort{a}},
		{Lease: lease2, Host: "b.example", Backends: []netip.AddrPort{b}},
		{Lease: lease2, Host: "soon.example"},
		{Lease: lease2, Host: "dead.example", Backends: []netip.AddrPort{dead(t)}},
	}})
	d.want(200, "a", "GET", "http://a.example/", nil)
	d.want(200, "a", "GET", "https://a.example/", nil)
	d.want(200, "b", "GET", "http://B.Example:80/", nil)
	d.want(200, "b", "GET", "https://b.example./", nil)
	d.want(404, "Nothing is served under this name here.", "GET", "http://x.a.example/", nil)
	d.want(404, "Nothing is served under this name here.", "GET", "https://other.example/", nil)
	d.want(404, "Nothing is served under this name here.", "GET", "http://127.0.0.1/", nil)
	d.want(503, "The service is not running just now.", "GET", "http://soon.example/", nil)
	d.want(503, "The service is not running just now.", "GET", "http://dead.example/", nil)
	d.want(503, "The service is not running just now.", "POST", "http://dead.example/", strings.NewReader("x"))
	counters := d.Counters()
	if c := counters[lease1]; c.Requests != 2 || c.BytesOut == 0 || c.BytesIn == 0 {
		t.Errorf("counters of lease 1 = %+v", c)
	}
	if c := counters[lease2]; c.Requests != 5 || c.Refused != 3 {
		t.Errorf("counters of lease 2 = %+v", c)
	}
}

func TestSetLeavesOutWhatIsWrong(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	a := backend(t, says("a"))
	taken, err := net.Listen("tcp", netip.AddrPortFrom(d.bind, external).String())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	err = d.Set(ingress.Routes{
		HTTP: []ingress.HTTPRoute{
			{Lease: lease1, Host: "a.example", Backends: []netip.AddrPort{a}},
			{Lease: lease2, Host: "a.example"},
			{Lease: lease2, Host: "../../etc/passwd"},
			{Lease: lease2, Host: "*.example"},
		},
		Ports: []ingress.PortRoute{{Lease: lease2, Proto: "SCTP", Port: 1}, {Lease: lease2, Proto: ingress.TCP, Port: external}},
	})
	for _, want := range []string{"host a.example is taken by l0000000001", `"../../etc/passwd" is no host name`, `"*.example" is no host name`, "SCTP port 1 is none", "open TCP port 20001"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Set = %v, want %q", err, want)
		}
	}
	d.want(200, "a", "GET", "http://a.example/", nil)
}

func TestARequestTellsWhereItCameFrom(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	var got http.Header
	var host string
	d.web(sdl.HTTPOptions{}, backend(t, func(w http.ResponseWriter, r *http.Request) { got, host = r.Header, r.Host }))
	d.do("GET", "https://web.example/", nil) //nolint:bodyclose // do has closed it
	if proto := got.Get("X-Forwarded-Proto"); proto != "https" {
		t.Errorf("X-Forwarded-Proto over TLS = %q", proto)
	}
	d.do("GET", "http://web.example/", nil, "X-Forwarded-For", "1.2.3.4", "X-Forwarded-Proto", "gopher", "X-Real-Ip", "1.2.3.4", "X-Forwarded-Port", "99", "X-Forwarded-Server", "inside", "Forwarded", "for=1.2.3.4", "Upgrade", "h2c", "Connection", "Upgrade, X-Secret", "X-Secret", "1") //nolint:bodyclose // do has closed it
	for k, want := range map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "web.example", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Port": "", "X-Forwarded-Server": "", "Forwarded": "", "Upgrade": "", "X-Secret": ""} {
		if got.Get(k) != want {
			t.Errorf("%s = %q, want %q", k, got.Get(k), want)
		}
	}
	if host != "web.example" {
		t.Errorf("Host = %q", host)
	}
}

func TestHTTP2Outside(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	d.web(sdl.HTTPOptions{}, backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	resp, inside := d.do("GET", "https://web.example/", nil) //nolint:bodyclose // do has closed it
	if resp.Proto != "HTTP/2.0" || inside != "HTTP/1.1" {
		t.Errorf("outside %s, inside %s", resp.Proto, inside)
	}
}

func TestWebsockets(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	d.web(sdl.HTTPOptions{}, backend(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, data) != nil {
				return
			}
		}
	}))
	dialer := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", d.plain)
	}}}
	c, _, err := websocket.Dial(t.Context(), "ws://web.example/echo", &websocket.DialOptions{HTTPClient: dialer}) //nolint:bodyclose // websocket.Dial leaves none open
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	for _, text := range []string{"one", "two"} {
		if err := c.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || string(got) != text {
			t.Fatalf("echo = %q, %v", got, err)
		}
	}
	d.set(ingress.Routes{}) // the lease has ended
	if _, _, err := c.Read(t.Context()); err == nil {
		t.Error("a websocket outlives its lease")
	}
}

func TestStreamsPassAsTheyCome(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		d := start(t, nil)
		next := make(chan struct{})
		d.web(sdl.HTTPOptions{}, backend(t, func(w http.ResponseWriter, r *http.Request) {
			for i := range 3 {
				_, _ = fmt.Fprintf(w, "%d\n", i)
				_ = http.NewResponseController(w).Flush()
				<-next // until the client has seen it
			}
		}))
		req, err := http.NewRequestWithContext(t.Context(), "GET", scheme+"://web.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := d.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(resp.Body)
		for i := range 3 {
			if !lines.Scan() || lines.Text() != fmt.Sprint(i) {
				t.Fatalf("line %d = %q, %v", i, lines.Text(), lines.Err())
			}
			next <- struct{}{}
		}
		resp.Body.Close()
	}
}

func TestLargeBodiesAreRefused(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	var most atomic.Int64
	d.web(sdl.HTTPOptions{MaxBodySize: 1000}, backend(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		most.Store(max(most.Load(), n))
	}))
	d.want(200, "", "POST", "http://web.example/", strings.NewReader(strings.Repeat("x", 1000)))
	d.want(413, "larger than the 1000 bytes", "POST", "http://web.example/", strings.NewReader(strings.Repeat("x", 1001)))
	unsaid := io.MultiReader(strings.NewReader(strings.Repeat("x", 5000))) // chunked
	d.want(413, "larger than the 1000 bytes", "POST", "http://web.example/", unsaid)
	if n := most.Load(); n > 1000 {
		t.Errorf("the service got %d bytes", n)
	}
}

func TestSlowServices(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	slow := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	d.web(sdl.HTTPOptions{ReadTimeout: 50}, slow)
	d.want(504, "did not answer in time", "GET", "http://web.example/", nil)
	d.want(504, "did not answer in time", "POST", "http://web.example/", strings.NewReader("x"))
}

func TestOtherReplicas(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	good := backend(t, func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "good %s", raw)
	})
	var hits atomic.Int64
	broken := backend(t, func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	})
	sick := backend(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) })
	slow := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	twice := func(status int, text, method string, body string) {
		t.Helper()
		for range 2 { // whichever is first
			var r io.Reader
			if body != "" {
				r = strings.NewReader(body)
			}
			d.want(status, text, method, "http://web.example/", r)
		}
	}
	d.web(sdl.HTTPOptions{}, dead(t), good)
	twice(200, "good", "GET", "")
	twice(200, "good x", "POST", "x") // the dead one got nothing
	d.web(sdl.HTTPOptions{}, broken, good)
	twice(200, "good", "GET", "")
	d.web(sdl.HTTPOptions{NextCases: []string{"500"}}, sick, good)
	twice(200, "good", "GET", "")
	d.web(sdl.HTTPOptions{ReadTimeout: 50}, slow, good)
	twice(200, "good", "GET", "")

	d.web(sdl.HTTPOptions{NextCases: []string{"off"}}, dead(t), dead(t))
	twice(503, "not running", "GET", "")
	d.web(sdl.HTTPOptions{}, sick)
	twice(500, "", "GET", "")
	hits.Store(0)
	d.web(sdl.HTTPOptions{}, broken, broken)
	d.want(502, "", "POST", "http://web.example/", strings.NewReader("x"))
	if n := hits.Load(); n != 1 {
		t.Errorf("a POST was sent %d times", n)
	}
	hits.Store(0)
	d.web(sdl.HTTPOptions{NextTries: 2}, broken, broken, broken)
	d.want(502, "", "GET", "http://web.example/", nil)
	if n := hits.Load(); n != 2 {
		t.Errorf("a GET was sent %d times, want 2", n)
	}
}

func TestAChangeUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	a, b := backend(t, says("ok")), backend(t, says("ok"))
	d.web(sdl.HTTPOptions{}, a)
	var clients sync.WaitGroup
	for range 4 {
		client := d.client()
		clients.Go(func() {
			for range 150 {
				req, err := http.NewRequestWithContext(t.Context(), "POST", "http://web.example/", strings.NewReader("x"))
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				raw, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || string(raw) != "ok" {
					t.Errorf("= %d %q, %v", resp.StatusCode, raw, err)
					return
				}
			}
		})
	}
	changes := make(chan struct{})
	go func() {
		defer close(changes)
		for n := range 100 {
			routes := ingress.Routes{HTTP: []ingress.HTTPRoute{{Lease: lease1, Host: "web.example", Options: sdl.HTTPOptions{ProxyBufferSize: uint32(n%3) * 8192}, Backends: [][]netip.AddrPort{{a}, {b}, {a, b}}[n%3]}}}
			if err := d.Set(routes); err != nil {
				t.Error(err)
			}
		}
	}()
	clients.Wait()
	<-changes
}

// echo is a TCP replica that answers what it got once its client has ended.
func echo(t *testing.T) netip.AddrPort {
	t.Helper()
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				raw, _ := io.ReadAll(c)
				_, _ = c.Write(bytes.ToUpper(raw))
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// port opens one port for lease1.
func (d *door) port(proto ingress.Proto, backends ...netip.AddrPort) string {
	d.t.Helper()
	d.set(ingress.Routes{Ports: []ingress.PortRoute{{Lease: lease1, Proto: proto, Port: external, Backends: backends}}})
	return netip.AddrPortFrom(d.bind, external).String()
}

func TestTCPPortsEndOneDirectionAtATime(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	address := d.port(ingress.TCP, dead(t), echo(t))
	for range 2 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sent := strings.Repeat("hello", 500_000)
		var sender sync.WaitGroup
		sender.Go(func() {
			_, _ = io.WriteString(c, sent)
			_ = c.(*net.TCPConn).CloseWrite()
		})
		raw, err := io.ReadAll(c)
		if err != nil || string(raw) != strings.ToUpper(sent) {
			t.Errorf("got %d bytes back, %v", len(raw), err)
		}
		sender.Wait()
	}
	d.stop() // pipes have ended: counters are whole
	if c := d.Counters()[lease1]; c.Connections != 2 || c.BytesIn != 5_000_000 || c.BytesOut != 5_000_000 {
		t.Errorf("counters = %+v", c)
	}
}

func TestAClosedPortIsClosed(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	greeter := listen(t)
	defer greeter.Close()
	address := d.port(ingress.TCP, netip.MustParseAddrPort(greeter.Addr().String()))
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	service, err := greeter.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	_, _ = io.WriteString(service, "x")
	if _, err := c.Read(make([]byte, 1)); err != nil { // then the pipe is open
		t.Fatal(err)
	}
	d.set(ingress.Routes{})
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the pipe of a lease that ended = %v", err)
	}
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
}

func udpEcho(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFromUDP(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDP(bytes.ToUpper(buf[:n]), from)
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func TestUDPPorts(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	address := d.port(ingress.UDP, udpEcho(t))
	here, there := net.Pipe() // a relay's stream of datagrams
	if err := d.Handle(ingress.Stream{Conn: there, Client: netip.MustParseAddrPort("192.0.2.1:5000"), Kind: ingress.StreamUDP, Port: external}); err != nil {
		t.Fatal(err)
	}
	one, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	two, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []net.Conn{here, one, two} {
		defer c.Close()
		for n := range 3 {
			text := fmt.Sprintf("hello %d %d", i, n)
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			k, err := c.Read(buf)
			if err != nil || string(buf[:k]) != strings.ToUpper(text) {
				t.Errorf("echo = %q, %v", buf[:k], err)
			}
		}
	}
	if c := d.Counters()[lease1]; c.Connections != 3 || c.BytesIn != 9*9 {
		t.Errorf("counters = %+v", c)
	}
	d.set(ingress.Routes{})
	if _, err := here.Read(make([]byte, 1)); err == nil {
		t.Error("a flow outlives its lease")
	}
}

// A client that never pauses reaches the new replica all the same.
func TestAFlowMovesOnWhenItsReplicaLeaves(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	old, next := udpEcho(t), udpEcho(t)
	c, err := net.Dial("udp", d.port(ingress.UDP, old))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// say repeats until there is an answer, as clients of UDP do.
	say := func() {
		t.Helper()
		for {
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := c.Read(make([]byte, 100)); err == nil {
				return
			}
		}
	}
	say()
	d.port(ingress.UDP, next)
	for d.Counters()[lease1].Connections < 2 {
		say()
	}
}

func TestOneClientCannotTakeAllRequestsOfALease(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	d.web(sdl.HTTPOptions{}, backend(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			<-released
		}
	}))
	var clients sync.WaitGroup
	var served, refused atomic.Int64
	for range 5 { // of HTTP/2, with up to 128 requests on one connection
		c := d.client()
		get := func(path string) int {
			req, err := http.NewRequestWithContext(t.Context(), "GET", "https://web.example"+path, nil)
			if err != nil {
				t.Error(err)
				return 0
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Error(err)
				return 0
			}
			resp.Body.Close()
			return resp.StatusCode
		}
		get("/quick") // makes the connection that all others share
		for range 103 {
			clients.Go(func() {
				switch get("/") {
				case 200:
					served.Add(1)
				case 429:
					if refused.Add(1) == 3 {
						release()
					}
				default:
					release()
				}
			})
		}
	}
	clients.Wait()
	if served.Load() != 512 || refused.Load() != 3 {
		t.Errorf("%d of 515 requests were served, %d refused", served.Load(), refused.Load())
	}
}

func TestRelays(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	const port = external
	d.set(ingress.Routes{
		HTTP: []ingress.HTTPRoute{{Lease: lease1, Host: "web.example", Backends: []netip.AddrPort{backend(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-For"))
		})}}},
		Ports: []ingress.PortRoute{{Lease: lease1, Proto: ingress.TCP, Port: port, Backends: []netip.AddrPort{echo(t)}}},
	})
	from := netip.MustParseAddrPort("[2001:db8::7]:1234")
	hand := func(kind ingress.Kind, port uint16) net.Conn {
		t.Helper()
		l := listen(t)
		defer l.Close()
		here, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { here.Close() })
		there, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Handle(ingress.Stream{Conn: there, Client: from, Kind: kind, Port: port}); err != nil {
			t.Fatal(err)
		}
		return here
	}
	get := func(c net.Conn) string {
		t.Helper()
		_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n")
		raw, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := strings.Cut(string(raw), "\r\n\r\n")
		return body
	}
	if got := get(hand(ingress.StreamHTTP, 0)); got != "2001:db8::7" {
		t.Errorf("plain HTTP: the service sees %q", got)
	}
	if got := get(tls.Client(hand(ingress.StreamTLS, 0), &tls.Config{ServerName: "web.example", InsecureSkipVerify: true})); got != "2001:db8::7" {
		t.Errorf("TLS: the service sees %q", got)
	}
	c := hand(ingress.StreamTCP, port)
	_, _ = io.WriteString(c, "hi")
	_ = c.(*net.TCPConn).CloseWrite()
	if raw, err := io.ReadAll(c); err != nil || string(raw) != "HI" {
		t.Errorf("TCP = %q, %v", raw, err)
	}
	if raw, err := io.ReadAll(hand(ingress.StreamTCP, port+1)); len(raw) != 0 {
		t.Errorf("a port of nobody = %q, %v", raw, err)
	}
	d.stop()
	if err := d.Handle(ingress.Stream{Conn: c, Client: from, Kind: ingress.StreamHTTP}); err == nil {
		t.Error("an ingress that has stopped takes streams")
	}
	if err := d.Set(ingress.Routes{}); err == nil {
		t.Error("an ingress that has stopped takes routes")
	}
}

// shown is the certificate a handshake gets.
func (d *door) shown(name string, protos ...string) *x509.Certificate {
	d.t.Helper()
	c, err := tls.Dial("tcp", d.tls, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protos})
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0]
}

func TestSelfSignedCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	routes := ingress.Routes{HTTP: []ingress.HTTPRoute{{Lease: lease1, Host: "a.example"}, {Lease: lease1, Host: strings.Repeat("a", 60) + ".example"}}}
	d := start(t, func(c *ingress.Config) { c.Dir = dir })
	d.set(routes)
	for _, r := range routes.HTTP {
		if c := d.shown(r.Host); c.VerifyHostname(r.Host) != nil || time.Until(c.NotAfter) < 80*24*time.Hour {
			t.Errorf("certificate of %s is for %v until %s", r.Host, c.DNSNames, c.NotAfter)
		}
	}
	if c := d.shown("other.example"); c.VerifyHostname("other.example") == nil {
		t.Error("a name that is not served has a certificate")
	}
	first := d.shown("a.example")
	d.stop()

	file := filepath.Join(dir, "self", "a.example.pem")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v", file, info, err)
	}
	again := start(t, func(c *ingress.Config) { c.Dir = dir })
	again.set(routes)
	if !again.shown("a.example").Equal(first) {
		t.Error("a restart made a new certificate")
	}
	again.set(ingress.Routes{})
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the certificate of a host that left stays: %v", err)
	}
	again.stop()

	// A host whose lease ended while the box was off leaves nothing either.
	folder := filepath.Join(dir, "acme")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	kept := []string{"acme_account+key", "b.example", "b.example+rsa", "token+http-01"}
	for _, name := range append([]string{"a.example", "a.example+rsa", "a.example+token"}, kept...) {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := start(t, func(c *ingress.Config) { c.Dir = dir })
	before.set(routes)
	before.shown("a.example")
	before.shown("other.example") // the certificate of those that are not served stays
	before.stop()
	after := start(t, func(c *ingress.Config) { c.Dir = dir })
	after.set(ingress.Routes{HTTP: []ingress.HTTPRoute{{Lease: lease1, Host: "b.example"}}})
	b := after.shown("b.example")
	after.Tidy()
	if left := namesIn(t, folder); !slices.Equal(left, kept) {
		t.Errorf("of the authority's there is left %q, want %q", left, kept)
	}
	if left := namesIn(t, filepath.Dir(file)); !slices.Equal(left, []string{"b.example.pem", "unknown.croft.box.pem"}) {
		t.Errorf("of the box's own there is left %q", left)
	}
	if !after.shown("b.example").Equal(b) {
		t.Error("a host that is in the table lost its certificate")
	}
	after.stop()
	if err := os.WriteFile(file, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	third := start(t, func(c *ingress.Config) { c.Dir = dir })
	third.set(routes)
	if third.shown("a.example").Equal(first) {
		t.Error("a broken file gave a certificate")
	}
}

// namesIn lists a folder, sorted.
func namesIn(t *testing.T, folder string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestHostileRequests(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	var mu sync.Mutex
	var seen []string
	d.web(sdl.HTTPOptions{}, backend(t, func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			return // no whole request
		}
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Method+" "+r.URL.Path+" "+string(raw))
	}))
	const end = " HTTP/1.1\r\nHost: web.example\r\n"
	for _, tc := range []struct {
		name, text string
		status     int    // of the first answer
		seen       string // whole by the service; empty: nothing
	}{
		{"two lengths", "POST /x" + end + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, ""},
		{"an unknown encoding", "POST /x" + end + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, ""},
		{"two encodings", "POST /x" + end + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 501, ""},
		{"length and encoding", "POST /x" + end + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nA\r\n0\r\n\r\nGET /next" + end + "\r\n", 200, "POST /x A, GET /next "},
		{"a space before the colon", "GET /x" + end + "Content-Length : 3\r\n\r\nabc", 400, ""},
		{"a header folded", "GET /x" + end + " X: 1\r\n\r\n", 400, ""},
		{"no host", "GET /x HTTP/1.1\r\n\r\n", 400, ""},
		{"two hosts", "GET /x" + end + "Host: b.example\r\n\r\n", 400, ""},
		{"a header too long", "GET /x" + end + "X: " + strings.Repeat("x", 200<<10) + "\r\n\r\n", 431, ""},
		{"a bad chunk", "POST /x" + end + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 502, ""},
		{"a tunnel", "CONNECT web.example:22 HTTP/1.1\r\nHost: web.example\r\n\r\n", 405, ""},
		{"another host's URL", "GET http://10.0.0.1/ HTTP/1.1\r\nHost: web.example\r\n\r\n", 404, ""},
		{"no HTTP at all", "\x16\x03\x01\x00\x05hello\r\n\r\n", 400, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mu.Lock()
			seen = nil
			mu.Unlock()
			c, err := net.Dial("tcp", d.plain)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			go func() {
				_, _ = io.WriteString(c, tc.text) // may be cut off
			}()
			answers := bufio.NewReader(c)
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			if strings.Contains(tc.seen, ",") { // the next answer says that both were seen
				second, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				second.Body.Close()
			}
			if resp.StatusCode != tc.status {
				t.Errorf("status = %d, want %d", resp.StatusCode, tc.status)
			}
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(seen, ", "); got != tc.seen {
				t.Errorf("the service saw %q", got)
			}
		})
	}
}

// oneConn is a listener of one connection, before which the machine is out of
// files for a moment.
type oneConn struct {
	tired atomic.Bool
	conn  chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	if l.tired.CompareAndSwap(false, true) {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// The bubble also shows that no goroutine is left when Run has ended.
func TestSlowlorisIsCutOff(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		secure     bool
		most       time.Duration
	}{
		{"in the handshake", "\x16", true, 16 * time.Second},
		{"in the header", "GET / HTTP/1.1\r\nHost: x\r\nX: ", false, 16 * time.Second},
		{"in a body that nobody wants", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12", false, 61 * time.Second},
		{"in a body without length", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n", false, 61 * time.Second},
		{"between requests", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", false, 91 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &oneConn{conn: make(chan net.Conn), done: make(chan struct{})}
				cfg := ingress.Config{Dir: t.TempDir(), HTTP: l}
				if tc.secure {
					cfg.HTTP, cfg.TLS = nil, l
				}
				i, err := ingress.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- i.Run(ctx) }()
				here, there := net.Pipe()
				l.conn <- there
				begin := time.Now()
				if _, err := io.WriteString(here, tc.text); err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, here)
				if took := time.Since(begin); took < 10*time.Second || took > tc.most {
					t.Errorf("cut off after %s, want at most %s", took, tc.most)
				}
				here.Close()
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run = %v", err)
				}
			})
		})
	}
}

func TestConnectionsOfOneClientAreBounded(t *testing.T) {
	t.Parallel()
	d := start(t, nil)
	d.web(sdl.HTTPOptions{}, backend(t, says("ok")))
	client := netip.MustParseAddrPort("192.0.2.7:1")
	var open []net.Conn
	for range 256 {
		here, there := net.Pipe()
		defer here.Close()
		if err := d.Handle(ingress.Stream{Conn: there, Client: client, Kind: ingress.StreamHTTP}); err != nil {
			t.Fatal(err)
		}
		open = append(open, here)
	}
	_, there := net.Pipe()
	if err := d.Handle(ingress.Stream{Conn: there, Client: client, Kind: ingress.StreamHTTP}); err == nil {
		t.Error("connection 257 of one client was taken")
	}
	d.want(200, "ok", "GET", "http://web.example/", nil) // another client
	for _, c := range open {
		c.Close()
	}
}
