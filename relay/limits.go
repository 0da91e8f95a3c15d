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
// Window + 80 KiB); they are far less while boxes and users read.
type Limits struct {
	Connections int     // of users and boxes together, UDP flows included; default 8,192
	PerDevice   int     // users of one box; default 1,024
	PerClient   int     // connections of one IPv4 address or IPv6 /64; default 256
	ClientRate  float64 // new connections of one client in a second, with bursts of 4 s; default 64
	TunnelRate  float64 // TLS handshakes with boxes in a second, with bursts of 1 s; default 200
	PortsEach   int     // external ports of one box; default 64, at most [wire.MaxPorts]
	Window      uint32  // bytes in flight on a user's connection; default [wire.DefaultWindow]

	Hello    time.Duration // for a user's first message; default 10 s
	Idle     time.Duration // a connection without a byte either way; default 1 h
	UDPIdle  time.Duration // a UDP flow without a datagram either way; default 1 min
	Patience time.Duration // how long a new user waits for a box that has just gone; default 5 s
	Linger   time.Duration // how long hosts and ports stay with a box that is gone; default 1 min
	Drain    time.Duration // how long users stay on a replaced tunnel; default 10 min
	Remember time.Duration // how long an external port stays with a box that does not want it; default 30 days
	MinBeat  time.Duration // shortest beat a box may have; default 1 s
}

func (l Limits) withDefaults() Limits {
	l.Connections = cmp.Or(l.Connections, 8192)
	l.PerDevice = cmp.Or(l.PerDevice, 1024)
	l.PerClient = cmp.Or(l.PerClient, 256)
	l.ClientRate = cmp.Or(l.ClientRate, 64)
	l.TunnelRate = cmp.Or(l.TunnelRate, 200)
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
	connections, perClient int
	rate                   float64

	mu      sync.Mutex
	total   int                      // guarded by mu
	clients map[netip.Prefix]*client // guarded by mu
}

type client struct {
	connections int
	rate        *rate.Limiter
	last        time.Time
}

func newGate(l Limits) *gate {
	return &gate{connections: l.Connections, perClient: l.PerClient, rate: l.ClientRate, clients: make(map[netip.Prefix]*client)}
}

// clientOf is whom an address is counted with: an IPv6 user has at least a /64.
func clientOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // an address that is none: all of these are one client
	}
	return prefix
}

// enter lets a connection in, until leave is called.
func (g *gate) enter(addr netip.Addr) (leave func(), err error) {
	who, now := clientOf(addr), time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= g.connections {
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
		c = &client{rate: rate.NewLimiter(rate.Limit(g.rate), int(4*g.rate)+1)}
		g.clients[who] = c
	}
	c.last = now
	switch {
	case c.connections >= g.perClient:
		return nil, errTooMany
	case !c.rate.AllowN(now, 1):
		return nil, errTooQuick
	}
	c.connections++
	g.total++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		c.connections--
		g.total--
	}), nil
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
