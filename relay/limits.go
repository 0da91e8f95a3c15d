package relay

import (
	"cmp"
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft/relay/wire"
)

// Limits bound what strangers can make a server do. What is zero is the
// default. The bytes a server holds for users are at most Connections × (2 ×
// Window + 128 KiB); they are far less while boxes and users read.
type Limits struct {
	Connections int     // of users and boxes together, UDP flows included; default 8,192
	Flows       int     // of these, UDP flows, for which anybody can forge addresses; default half
	PerDevice   int     // users of one tunnel, of which a box has at most 3; default 1,024
	PerClient   int     // connections of one IPv4 address or IPv6 /64, four times as many of a /48; default 256
	ClientRate  float64 // new connections of one client in a second, with bursts of 4 s; a failed tunnel counts 16; default 64
	TunnelRate  float64 // TLS handshakes with boxes in a second, with bursts of 1 s; more wait for up to Hello; default 500
	PortsEach   int     // external ports of one box; default 64, at most [wire.MaxPorts]
	Window      uint32  // bytes in flight on a user's connection; default [wire.DefaultWindow]

	Hello    time.Duration // for a user's first message; default 10 s
	Idle     time.Duration // a connection without a byte either way; default 1 h
	UDPIdle  time.Duration // a UDP flow without a datagram from its user; default 1 min
	Patience time.Duration // how long a new user waits for a box that has just gone; default 5 s
	Linger   time.Duration // how long hosts and ports stay with a box that is gone; default 1 min
	Drain    time.Duration // how long users stay on a replaced tunnel; default 10 min
	Remember time.Duration // how long an external port stays with a box that does not want it; default 30 days
	MinBeat  time.Duration // shortest beat a box may have; default 1 s
}

func (l Limits) withDefaults() Limits {
	l.Connections = cmp.Or(l.Connections, 8192)
	l.Flows = cmp.Or(l.Flows, (l.Connections+1)/2)
	l.PerDevice = cmp.Or(l.PerDevice, 1024)
	l.PerClient = cmp.Or(l.PerClient, 256)
	l.ClientRate = cmp.Or(l.ClientRate, 64)
	l.TunnelRate = cmp.Or(l.TunnelRate, 500)
	l.PortsEach = min(cmp.Or(l.PortsEach, 64), wire.MaxPorts)
	l.Hello = cmp.Or(l.Hello, 10*time.Second)
	l.Idle = cmp.Or(l.Idle, time.Hour)
	l.UDPIdle = cmp.Or(l.UDPIdle, time.Minute)
	l.Patience = cmp.Or(l.Patience, 5*time.Second)
	l.Linger = cmp.Or(l.Linger, time.Minute)
	l.Drain = cmp.Or(l.Drain, 10*time.Minute)
	l.Remember = cmp.Or(l.Remember, 30*24*time.Hour)
	l.MinBeat = cmp.Or(l.MinBeat, time.Second)
	return l
}

var (
	errFull     = errors.New("relay has as many connections as it may have")
	errTooMany  = errors.New("client has as many connections as it may have")
	errTooQuick = errors.New("client connects too often")
)

// maxClients is how many clients' rates are remembered: some 10 MB.
const maxClients = 1 << 16

// gate counts connections as they come and go.
type gate struct {
	limits Limits

	mu      sync.Mutex
	total   int                      // guarded by mu
	flows   int                      // guarded by mu; of total
	clients map[netip.Prefix]*client // guarded by mu
	sites   map[netip.Prefix]int     // guarded by mu; connections by IPv6 /48
}

type client struct {
	connections int
	rate        *rate.Limiter
	last        time.Time
}

func newGate(l Limits) *gate {
	return &gate{limits: l, clients: make(map[netip.Prefix]*client), sites: make(map[netip.Prefix]int)}
}

// clientOf is whom an address is counted with: an IPv6 user has at least a /64,
// and some have a /48. The site of an IPv4 address is no prefix.
func clientOf(addr netip.Addr) (client, site netip.Prefix) {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
		site, _ = addr.Prefix(48) // it has that many
	}
	client, _ = addr.Prefix(bits) // of an address that is none: no prefix; all of these are one client
	return client, site
}

// kind is what the gate tells apart.
type kind bool

const (
	connection kind = false
	udpFlow    kind = true
)

// enter lets a connection in, until leave is called.
func (g *gate) enter(addr netip.Addr, k kind) (leave func(), err error) {
	who, site := clientOf(addr)
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= g.limits.Connections || k == udpFlow && g.flows >= g.limits.Flows {
		return nil, errFull
	}
	c := g.clients[who]
	if c == nil {
		if len(g.clients) >= maxClients {
			g.sweepLocked(now, 0)
		}
		if len(g.clients) >= maxClients {
			return nil, errFull
		}
		c = &client{rate: rate.NewLimiter(rate.Limit(g.limits.ClientRate), int(4*g.limits.ClientRate)+1)}
		g.clients[who] = c
	}
	c.last = now
	switch {
	case c.connections >= g.limits.PerClient || g.sites[site] >= 4*g.limits.PerClient:
		return nil, errTooMany
	case !c.rate.AllowN(now, 1):
		return nil, errTooQuick
	}
	g.countLocked(c, site, k, 1)
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.countLocked(c, site, k, -1)
	}), nil
}

func (g *gate) countLocked(c *client, site netip.Prefix, k kind, n int) {
	c.connections += n
	g.total += n
	if k == udpFlow {
		g.flows += n
	}
	if site.IsValid() {
		if g.sites[site] += n; g.sites[site] == 0 {
			delete(g.sites, site)
		}
	}
}

// failedTunnel is for how many connections a tunnel counts that was refused: a
// handshake costs far more than to accept a user.
const failedTunnel = 16

// charge counts connections with a client that it did not make.
func (g *gate) charge(addr netip.Addr, n int) {
	who, _ := clientOf(addr)
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.clients[who]; c != nil {
		c.rate.ReserveN(time.Now(), n) // is a debt; nothing if it is more than a burst
	}
}

// sweep forgets clients that have been gone for long enough to have a full
// burst again.
func (g *gate) sweep(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweepLocked(now, 10*time.Second)
}

func (g *gate) sweepLocked(now time.Time, age time.Duration) {
	for who, c := range g.clients {
		if c.connections == 0 && now.Sub(c.last) >= age {
			delete(g.clients, who)
		}
	}
}
