package hosting

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/ingress"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

// accept serves a user whom a relay brings, to the end.
func (p *parts) accept(ctx context.Context, from string, user *wire.Stream) {
	if err := p.lead(ctx, from, user); err != nil {
		p.cfg.Log.Debug("user of the relay was turned away", "err", err)
	}
}

func (p *parts) lead(ctx context.Context, from string, user *wire.Stream) error {
	h := user.Header()
	g := &guest{Stream: user, left: make(chan struct{})}
	var err error
	switch host := strings.TrimPrefix(h.Host, "mtls."); h.Kind {
	case wire.KindSNI:
		g.polite = true
		if host == p.cfg.gatewayHost() {
			err = p.leadToGateway(ctx, g)
		} else {
			err = p.ingress.Handle(ingress.Stream{Conn: g, Client: h.Client, Kind: ingress.StreamTLS})
		}
	case wire.KindHTTP:
		g.polite = true
		err = p.ingress.Handle(ingress.Stream{Conn: g, Client: h.Client, Kind: ingress.StreamHTTP})
	case wire.KindTCP, wire.KindUDP:
		states, _ := p.relay.States()
		door, ok := p.doors.behind(states, from, h.Kind, h.Port)
		if !ok {
			return fmt.Errorf("no lease has %s port %d", h.Kind, h.Port)
		}
		kind := ingress.StreamTCP
		if h.Kind == wire.KindUDP {
			kind = ingress.StreamUDP
		}
		err = p.ingress.Handle(ingress.Stream{Conn: g, Client: h.Client, Kind: kind, Port: door})
	default:
		return fmt.Errorf("kind %q is unknown", h.Kind)
	}
	if err != nil {
		return err
	}
	select {
	case <-g.left:
	case <-ctx.Done():
	}
	return nil
}

// guest is a user's stream that tells when it was closed.
type guest struct {
	*wire.Stream
	polite bool // Close ends what was written before it cuts: net/http knows no half-close
	once   sync.Once
	left   chan struct{}
}

func (g *guest) Close() error {
	var err error
	g.once.Do(func() {
		if g.polite {
			err = g.CloseWrite()
		}
		err = errors.Join(err, g.Stream.Close())
		close(g.left)
	})
	return err
}

// helloTimeout is how long a client may take for what comes first.
const helloTimeout = 10 * time.Second

// leadToGateway looks which of the gateway's two protocols a client wants: they
// share one host and port. gRPC's clients offer HTTP/2 and no older one.
func (p *parts) leadToGateway(ctx context.Context, g *guest) error {
	if err := g.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	protocols, conn, err := peek(g)
	if err == nil {
		err = g.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return fmt.Errorf("read a client's hello: %w", err)
	}
	if slices.Contains(protocols, "h2") && !slices.Contains(protocols, "http/1.1") {
		return p.grpc.bring(ctx, conn)
	}
	return p.rest.bring(ctx, conn)
}

// peek reads the protocols that a TLS client offers. What it read is read again
// from the connection it returns.
func peek(conn net.Conn) (protocols []string, again net.Conn, err error) {
	seen := &recorder{Conn: conn}
	errSeen := errors.New("seen")
	err = tls.Server(seen, &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			protocols = hello.SupportedProtos
			return nil, errSeen
		},
	}).Handshake()
	if !errors.Is(err, errSeen) {
		return nil, nil, err
	}
	return protocols, &replay{Conn: conn, first: seen.bytes.Bytes()}, nil
}

// recorder keeps what is read and swallows what is written: crypto/tls answers
// an error with an alert.
type recorder struct {
	net.Conn
	bytes bytes.Buffer
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.bytes.Write(b[:n])
	return n, err
}

func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }

// replay begins with what was read before.
type replay struct {
	net.Conn
	first []byte
}

func (r *replay) Read(b []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(b, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

// doorway is a listener whose connections the relay brings.
type doorway struct {
	come   chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newDoorway() *doorway {
	return &doorway{come: make(chan net.Conn), closed: make(chan struct{})}
}

// bring hands a connection to whoever accepts.
func (d *doorway) bring(ctx context.Context, c net.Conn) error {
	select {
	case d.come <- c:
		return nil
	case <-d.closed:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *doorway) Accept() (net.Conn, error) {
	select {
	case c := <-d.come:
		return c, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *doorway) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

func (d *doorway) Addr() net.Addr { return relayAddr{} }

type relayAddr struct{}

func (relayAddr) Network() string { return "relay" }
func (relayAddr) String() string  { return "relay" }

// route keeps ingress and relay in step with what runs, and tells what relays
// do not lead here.
func (p *parts) route(ctx context.Context) error {
	var hosts []string
	var ports []wire.Port
	var known <-chan struct{} // of the table that is in force
	for {
		table, changed := p.workloads.Routes()
		if changed != known {
			known = changed
			if err := p.ingress.Set(p.doors.open(table)); err != nil {
				p.cfg.Log.Warn("a way to a lease is closed", "err", err)
			}
			if len(table.Hosts)+len(table.Ports) > 0 { // workload's first table is empty, the next has all that is held
				p.full.Store(true)
			}
			newHosts, newPorts := wanted(table, p.cfg.domain())
			if !slices.Equal(newHosts, hosts) || !slices.Equal(newPorts, ports) {
				hosts, ports = newHosts, newPorts
				if err := p.relay.Set(hosts, ports); err != nil {
					p.cfg.Log.Warn("relays were not told what is wanted", "err", err)
				}
			}
		}
		states, moved := p.relay.States()
		for _, n := range p.reach.look(table, p.cfg.domain(), states) {
			p.cfg.Log.Info("what relays lead to a service has changed", "lease", n.lease.String(), "service", n.service, "now", n.event.Note)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-moved:
		}
	}
}

// wanted is what is asked of relays: hosts outside the box's own domain, and a
// port for each port of a service. More than a relay gives one box are left out.
func wanted(table blueprint.Table, domain string) (hosts []string, ports []wire.Port) {
	for _, h := range table.Hosts {
		if isCustom(h.Name, domain) && len(hosts) < wire.MaxNames {
			hosts = append(hosts, h.Name)
		}
	}
	for _, port := range table.Ports {
		if at := wirePort(port); !slices.Contains(ports, at) && len(ports) < wire.MaxPorts {
			ports = append(ports, at)
		}
	}
	return hosts, ports
}

// isCustom reports a host that is not the box's anyway.
func isCustom(host, domain string) bool {
	return host != domain && !strings.HasSuffix(host, "."+domain)
}

// wirePort names a port of a service to relays. The name lasts as long as the
// lease, whatever revision runs.
func wirePort(p blueprint.Port) wire.Port {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", p.Service, p.Port))
	text := strings.ToLower(base32.HexEncoding.EncodeToString(sum[:10]))
	proto := wire.TCP
	if p.UDP {
		proto = wire.UDP
	}
	return wire.Port{Key: string(lease.KeyOf(p.Lease)) + "/" + text, Proto: proto}
}

// doors numbers the ports of services for the ingress. Relays give out numbers of
// their own, each its own, so none of theirs can name a port on the box.
type doors struct {
	mu     sync.Mutex
	number map[wire.Port]uint16 // guarded by mu
}

// open is the table in the ingress's words. A port keeps its number as long as it
// is in the table.
func (d *doors) open(table blueprint.Table) ingress.Routes {
	d.mu.Lock()
	defer d.mu.Unlock()
	var routes ingress.Routes
	for _, h := range table.Hosts {
		routes.HTTP = append(routes.HTTP, ingress.HTTPRoute{Lease: lease.KeyOf(h.Lease), Host: h.Name, Options: h.Options, Backends: h.Backends})
	}
	old := d.number
	d.number = map[wire.Port]uint16{}
	taken := map[uint16]bool{}
	for _, p := range table.Ports {
		if n, ok := old[wirePort(p)]; ok {
			d.number[wirePort(p)], taken[n] = n, true
		}
	}
	next := uint16(1)
	done := map[wire.Port]bool{}
	for _, p := range table.Ports {
		at := wirePort(p)
		if done[at] {
			continue // one port of a service under two external numbers: relays choose theirs anyway
		}
		done[at] = true
		if d.number[at] == 0 {
			for taken[next] {
				next++
			}
			d.number[at], taken[next] = next, true
		}
		route := ingress.PortRoute{Lease: lease.KeyOf(p.Lease), Proto: ingress.TCP, Port: d.number[at], Backends: p.Backends}
		if p.UDP {
			route.Proto = ingress.UDP
		}
		routes.Ports = append(routes.Ports, route)
	}
	return routes
}

// behind is the number of the port that an external port of a relay leads to.
func (d *doors) behind(states []relay.RelayState, from string, kind wire.Kind, external uint16) (uint16, bool) {
	proto := wire.TCP
	if kind == wire.KindUDP {
		proto = wire.UDP
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range states {
		for _, held := range s.Ports {
			if s.Name == from && held.Proto == proto && held.External == external {
				n, ok := d.number[held.Port]
				return n, ok
			}
		}
	}
	return 0, false
}

// externals are the numbers under which relays lead to a port, the first relay's
// first.
func externals(states []relay.RelayState, at wire.Port) []uint16 {
	var found []uint16
	for _, s := range states {
		for _, held := range s.Ports {
			if held.Port == at && held.External != 0 && !slices.Contains(found, held.External) {
				found = append(found, held.External)
			}
		}
	}
	return found
}
