// Package ingress brings users to leases: it routes HTTP by host name and TCP
// and UDP by port to the replicas of leases, and shows certificates for their
// host names. Connections come from listeners of its own and, by [Ingress.Handle],
// from relays. It knows nothing of containers: [Ingress.Set] tells it which
// addresses stand behind which name.
//
//	i, err := ingress.New(ingress.Config{HTTP: l, TLS: l2, Dir: "/perm/ingress"})
//	go i.Run(ctx)
//	err = i.Set(ingress.Routes{HTTP: …, Ports: …}) // as often as something changes
//
// # Promises
//
//   - A new table drops no connection and no request of a lease that is still in
//     it: what has begun goes on with the address it has, flows of UDP apart, which
//     end when their replica leaves the table. When a lease is in no
//     route any more, its connections are cut.
//   - A request is tried at another replica only if that cannot do harm: nothing
//     of its body was read, and the first replica was never reached or the
//     method is idempotent.
//   - Counts, sizes, rates and times of strangers are bounded (limits.go).
//   - Headers that say where a request came from are ours: Forwarded, X-Real-IP
//     and all X-Forwarded ones of the client are dropped.
//
// # Certificates
//
// Every host gets a self-signed certificate at the first handshake; it is kept
// on disk and renewed when a third of its life is left, or when the clock shows
// that its dates are wrong. With [ACME], an authority is asked in the background
// and its certificate takes over when it is there; until then, and while the
// authority cannot be reached, handshakes get the self-signed one. Plain HTTP is
// served too, without a redirect: whether to redirect is the tenant's choice.
//
// # What survives what
//
//   - Crash or power cut: certificates survive; the table is the caller's to set.
//     Those of hosts that left meanwhile go with [Ingress.Tidy].
//   - Full disk: certificates are in memory only, and new after a restart.
//   - Wrong clock: self-signed certificates follow it; ACME waits.
//   - Dead relay or network: connections end; the next are served as before.
package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/croft-cloud/croft/agent/crowd"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/sdl"
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	HTTP net.Listener // of plain HTTP; may be nil. Closed when Run ends
	TLS  net.Listener // likewise
	// Bind is the address on which the ports of routes are opened. Without it
	// they are reached by Handle only.
	Bind netip.Addr
	Dir  string       // required; folder for certificates, made if need be
	ACME *ACME        // nil: no authority is asked
	Log  *slog.Logger // default: nothing is logged
}

// Routes is a whole table.
type Routes struct {
	HTTP  []HTTPRoute
	Ports []PortRoute
}

// HTTPRoute is one host name of a lease.
type HTTPRoute struct {
	Lease    lease.Key
	Host     string           // lower case, without port
	Options  sdl.HTTPOptions  // zeros: the defaults of SDL
	Backends []netip.AddrPort // replicas that answer; none: users get a page that says so
}

// Proto is a transport protocol, as manifests spell it.
type Proto string

// The protocols.
const (
	TCP Proto = "TCP"
	UDP Proto = "UDP"
)

// PortRoute is one port of a lease, as the world reaches it.
type PortRoute struct {
	Lease    lease.Key
	Proto    Proto
	Port     uint16 // external
	Backends []netip.AddrPort
}

// Counters is what users moved to and from a lease. It begins at 0 when the
// lease enters the table and is forgotten when it leaves.
type Counters struct {
	Requests    uint64 // of HTTP
	Connections uint64 // and flows, of ports
	Refused     uint64 // because of limits or because nothing answered
	BytesIn     uint64 // to the lease
	BytesOut    uint64 // from the lease
}

// Ingress is the door to the leases of a box. Make it with [New].
type Ingress struct {
	cfg     Config
	log     *slog.Logger
	certs   *certificates
	proxy   http.Handler
	plain   *feed // connections for the server of plain HTTP
	secure  *feed
	open    *crowd.Quota          // connections by client
	busy    *crowd.Quota          // requests by client
	flows   *crowd.Quota          // of UDP by client
	inside  crowd.Gate            // requests
	table   atomic.Pointer[table] // never nil
	workers sync.WaitGroup        // pipes, flows, accept loops

	mu      sync.Mutex
	stopped bool                   // guarded by mu
	bound   map[portID]closer      // open ports; guarded by mu
	others  map[closer]struct{}    // what Run closes at its end; guarded by mu
	tenants map[lease.Key]*tenancy // guarded by mu
}

type closer interface{ Close() error }

// table is one set of routes. It is never changed.
type table struct {
	hosts map[string]*site
	ports map[portID]*port
}

type portID struct {
	proto Proto
	port  uint16
}

// site is one host of a table.
type site struct {
	HTTPRoute
	tenant    *tenancy
	transport *http.Transport
	next      *atomic.Uint32 // which backend is first
}

// port is one port of a table.
type port struct {
	PortRoute
	tenant *tenancy
	next   *atomic.Uint32
}

// hostForm is that of manifests: DNS names in lower case.
var hostForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)

// New checks cfg and reads the certificates of earlier runs. It serves nothing
// yet.
func New(cfg Config) (*Ingress, error) {
	if cfg.Dir == "" {
		return nil, errors.New("ingress: folder for certificates is missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	i := &Ingress{
		cfg: cfg, log: cfg.Log,
		plain: newFeed("http"), secure: newFeed("tls"),
		open:  crowd.NewQuota(maxConnections, maxConnectionsPerClient),
		busy:  crowd.NewQuota(maxRequests, maxRequestsPerClient),
		flows: crowd.NewQuota(maxFlows, maxFlowsPerClient),
		bound: map[portID]closer{}, others: map[closer]struct{}{}, tenants: map[lease.Key]*tenancy{},
	}
	i.table.Store(&table{})
	var err error
	if i.certs, err = newCertificates(cfg, i.known); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	i.proxy = i.newProxy()
	return i, nil
}

func (i *Ingress) known(host string) bool { return i.table.Load().hosts[host] != nil }

// Set replaces the whole table: what is not in it ends, certificates of hosts
// included. A route that is wrong, or whose port cannot be opened,
// is left out and told in the error; all others are in force when Set returns.
func (i *Ingress) Set(routes Routes) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped {
		return errStopped
	}
	old := i.table.Load()
	next := &table{hosts: map[string]*site{}, ports: map[portID]*port{}}
	keep := map[lease.Key]*tenancy{}
	tenant := func(key lease.Key) *tenancy {
		if keep[key] == nil {
			if keep[key] = i.tenants[key]; keep[key] == nil {
				keep[key] = newTenancy(key)
			}
		}
		return keep[key]
	}
	var problems []error
	for _, r := range routes.HTTP {
		switch {
		case len(r.Host) > 253 || !hostForm.MatchString(r.Host):
			problems = append(problems, fmt.Errorf("route of %s: %q is no host name", r.Lease, r.Host))
		case next.hosts[r.Host] != nil:
			problems = append(problems, fmt.Errorf("route of %s: host %s is taken by %s", r.Lease, r.Host, next.hosts[r.Host].Lease))
		default:
			next.hosts[r.Host] = newSite(r, tenant(r.Lease), old.hosts[r.Host])
		}
	}
	for _, r := range routes.Ports {
		id := portID{r.Proto, r.Port}
		switch {
		case r.Port == 0 || r.Proto != TCP && r.Proto != UDP:
			problems = append(problems, fmt.Errorf("route of %s: %s port %d is none", r.Lease, r.Proto, r.Port))
		case next.ports[id] != nil:
			problems = append(problems, fmt.Errorf("route of %s: %s port %d is taken by %s", r.Lease, r.Proto, r.Port, next.ports[id].Lease))
		default:
			p := &port{PortRoute: r, tenant: tenant(r.Lease), next: &atomic.Uint32{}}
			p.Backends = slices.Clone(r.Backends)
			next.ports[id] = p
		}
	}
	i.table.Store(next)
	left := false
	for host, s := range old.hosts {
		if now := next.hosts[host]; now == nil || now.transport != s.transport {
			s.transport.CloseIdleConnections()
		}
		left = left || next.hosts[host] == nil
	}
	if left {
		i.certs.forget()
	}
	for key, t := range i.tenants {
		if keep[key] != t {
			t.end()
		}
	}
	i.tenants = keep
	return errors.Join(append(problems, i.bindLocked(next))...)
}

// Tidy removes what is left of hosts that are not in the table: of those that
// left it while the box was off. It is for the first table after a start that
// has every host.
func (i *Ingress) Tidy() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.certs.forget()
}

// bindLocked opens and closes ports.
func (i *Ingress) bindLocked(t *table) error {
	if !i.cfg.Bind.IsValid() {
		return nil
	}
	for id, c := range i.bound {
		if t.ports[id] == nil {
			c.Close()
			delete(i.bound, id)
		}
	}
	var problems []error
	for id := range t.ports {
		if i.bound[id] != nil {
			continue
		}
		address := netip.AddrPortFrom(i.cfg.Bind, id.port)
		var c closer
		var err error
		if id.proto == TCP {
			c, err = i.listenTCP(address, id)
		} else {
			c, err = i.listenUDP(address, id)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("open %s port %d: %w", id.proto, id.port, err))
			continue
		}
		i.bound[id] = c
	}
	return errors.Join(problems...)
}

// Counters is what each lease of the table has moved.
func (i *Ingress) Counters() map[lease.Key]Counters {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := make(map[lease.Key]Counters, len(i.tenants))
	for key, t := range i.tenants {
		all[key] = t.read()
	}
	return all
}

// Kind says what a stream carries.
type Kind string

// The kinds.
const (
	StreamHTTP Kind = "http" // plain HTTP
	StreamTLS  Kind = "tls"  // TLS for a host, from its first byte
	StreamTCP  Kind = "tcp"  // bytes for a TCP port
	StreamUDP  Kind = "udp"  // datagrams for a UDP port: a Read or Write is one of them
)

// Stream is a connection that a relay brings.
type Stream struct {
	Conn   net.Conn // of StreamTCP: with CloseWrite, if it can
	Client netip.AddrPort
	Kind   Kind
	Port   uint16 // of StreamTCP and StreamUDP
}

var errStopped = errors.New("ingress has stopped")

// Handle takes a connection over and closes it in the end, whatever it returns.
// It does not wait for the connection's end.
func (i *Ingress) Handle(s Stream) error {
	conn := &clientConn{Conn: s.Conn, remote: net.TCPAddrFromAddrPort(s.Client)}
	id := portID{Proto(strings.ToUpper(string(s.Kind))), s.Port}
	switch s.Kind {
	case StreamHTTP:
		return i.plain.push(i.admit(conn))
	case StreamTLS:
		return i.secure.push(i.admit(conn))
	case StreamTCP:
		if conn = i.admit(conn); conn == nil {
			return errFull
		}
		return i.work(func() { i.pipe(conn, id) }, conn)
	case StreamUDP:
		return i.work(func() { i.flow(conn, id) }, conn)
	default:
		conn.Close()
		return fmt.Errorf("stream of kind %q is not known", s.Kind)
	}
}

// work runs f in a goroutine that Run waits for, and closes c when the ingress
// stops.
func (i *Ingress) work(f func(), c closer) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped {
		c.Close()
		return errStopped
	}
	i.workLocked(f, c)
	return nil
}

func (i *Ingress) workLocked(f func(), c closer) {
	i.others[c] = struct{}{}
	i.workers.Go(func() {
		f()
		c.Close()
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.others, c)
	})
}

var errFull = errors.New("too many connections are open")

// admit counts a connection, or closes it and returns nil.
func (i *Ingress) admit(c *clientConn) *clientConn {
	client := crowd.ClientOf(c.RemoteAddr().String())
	if !i.open.Take(client) {
		c.Conn.Close()
		return nil
	}
	c.give = sync.OnceFunc(func() { i.open.Give(client) })
	return c
}

// Run serves until ctx ends, and then until all that has begun has ended:
// requests get [grace], the rest is cut. It returns an error only if a listener
// breaks. Run it once.
func (i *Ingress) Run(ctx context.Context) error {
	log := slog.NewLogLogger(i.log.Handler(), slog.LevelDebug) // strangers cause these lines
	server := func(secure bool) *http.Server {
		return &http.Server{
			Handler:           http.HandlerFunc(i.serve),
			TLSConfig:         i.certs.tlsConfig(),
			ReadHeaderTimeout: headerTimeout,
			WriteTimeout:      clientPatience, // reset for each request, moved on with each write
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
			ErrorLog:          log,
		}
	}
	type door struct {
		server *http.Server
		serve  func(*http.Server) error
	}
	doors := []door{
		{server(false), func(s *http.Server) error { return s.Serve(i.plain) }},
		{server(true), func(s *http.Server) error { return s.ServeTLS(i.secure, "", "") }},
	}
	ended := make(chan error, 4)
	var serving sync.WaitGroup
	for _, d := range doors {
		serving.Go(func() { ended <- d.serve(d.server) })
	}
	for _, l := range []struct {
		listener net.Listener
		to       *feed
	}{{i.cfg.HTTP, i.plain}, {i.cfg.TLS, i.secure}} {
		if l.listener != nil {
			serving.Go(func() { ended <- i.accept(l.listener, l.to) })
		}
	}
	renewing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	serving.Go(func() { i.certs.run(renewing) })

	var err error
	select {
	case err = <-ended:
		err = fmt.Errorf("serve ingress: %w", err)
	case <-ctx.Done():
	}
	cancel()
	for _, l := range []net.Listener{i.cfg.HTTP, i.cfg.TLS} {
		if l != nil {
			l.Close()
		}
	}
	i.mu.Lock()
	i.stopped = true
	for _, c := range i.bound {
		c.Close()
	}
	i.mu.Unlock()
	late, cancelLate := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancelLate()
	for _, d := range doors {
		if d.server.Shutdown(late) != nil {
			d.server.Close()
		}
	}
	i.mu.Lock()
	for _, t := range i.tenants {
		t.end()
	}
	for _, c := range slices.Collect(maps.Keys(i.others)) {
		c.Close()
	}
	hosts := i.table.Load().hosts
	i.mu.Unlock()
	for _, s := range hosts {
		s.transport.CloseIdleConnections()
	}
	i.plain.Close()
	i.secure.Close()
	serving.Wait()
	i.workers.Wait()
	i.inside.Shut()
	return err
}

// accept feeds a server from a listener.
func (i *Ingress) accept(l net.Listener, to *feed) error {
	for {
		conn, err := l.Accept()
		if isPassing(err) {
			time.Sleep(acceptPause)
			continue
		}
		if err != nil {
			return err
		}
		if c := i.admit(&clientConn{Conn: conn, remote: conn.RemoteAddr()}); c != nil {
			_ = to.push(c) // an error means that it was closed
		}
	}
}

// isPassing reports an error of one connection, or of a machine that is out of
// files or memory for a moment.
func isPassing(err error) bool {
	return slices.ContainsFunc([]error{
		syscall.ECONNABORTED, syscall.ECONNRESET, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPERM, syscall.EPROTO,
	}, func(one error) bool { return errors.Is(err, one) })
}

// clientConn is a client's connection, however it came.
type clientConn struct {
	net.Conn
	remote net.Addr
	give   func() // its place among the connections; nil: it has none
}

func (c *clientConn) RemoteAddr() net.Addr { return c.remote }

func (c *clientConn) Close() error {
	if c.give != nil {
		defer c.give()
	}
	return c.Conn.Close()
}

// feed is a listener that is fed by hand.
type feed struct {
	name  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newFeed(name string) *feed {
	return &feed{name: name, conns: make(chan net.Conn), done: make(chan struct{})}
}

// push waits until the server takes the connection, or closes it.
func (f *feed) push(c *clientConn) error {
	if c == nil {
		return errFull
	}
	select {
	case f.conns <- c:
		return nil
	case <-f.done:
		c.Close()
		return errStopped
	}
}

func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func (f *feed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

func (f *feed) Addr() net.Addr { return feedAddr(f.name) }

type feedAddr string

func (feedAddr) Network() string  { return "ingress" }
func (a feedAddr) String() string { return string(a) }

// hostOf is the host name of a Host header or of SNI.
func hostOf(s string) string {
	if host, p, err := net.SplitHostPort(s); err == nil {
		if _, err := strconv.ParseUint(p, 10, 16); err != nil && p != "" {
			return ""
		}
		s = host
	}
	return strings.ToLower(strings.TrimSuffix(s, "."))
}

// protocols are what TLS offers; the last is for an authority that looks.
func protocols() []string { return []string{"h2", "http/1.1", acme.ALPNProto} }

// oldestTLS is spoken by all that people use.
const oldestTLS = tls.VersionTLS12
