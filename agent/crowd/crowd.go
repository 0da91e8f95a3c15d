// Package crowd keeps strangers within bounds, for whatever serves them: how
// many there are at once, how often they come, and that nobody is inside any
// more when the door is shut.
//
//	open := crowd.NewQuota(512, 64)         // in all, and of one client
//	l = crowd.Listen(l, open)               // closes connections above that
//	if !often.Allow(crowd.ClientOf(r.RemoteAddr)) { … 429 }
//	if !gate.Enter() { return }
//	defer gate.Leave()
//
// It does not say what the bounds are. It promises bounded memory whatever names
// come, and that a place given back is free at once. It keeps nothing.
package crowd

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// ClientOf is the name under which a peer is counted: its address, and of IPv6
// the network, because a home has 2^64 addresses.
func ClientOf(remote string) string {
	p, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	addr := p.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if network, err := addr.Prefix(64); err == nil {
			return network.String()
		}
	}
	return addr.String()
}

// Quota bounds how many of something there are, in all and under each name.
type Quota struct {
	all, each int

	mu     sync.Mutex
	total  int            // guarded by mu
	counts map[string]int // guarded by mu; no zeros
}

// NewQuota makes a quota of which nothing is taken.
func NewQuota(all, each int) *Quota {
	return &Quota{all: all, each: each, counts: map[string]int{}}
}

// Take reports whether there is room for one more. The caller gives it back.
func (q *Quota) Take(name string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.total >= q.all || q.counts[name] >= q.each {
		return false
	}
	q.total++
	q.counts[name]++
	return true
}

// Give gives back what Take took.
func (q *Quota) Give(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total--
	if q.counts[name]--; q.counts[name] <= 0 {
		delete(q.counts, name)
	}
}

// maxNames is how many names Rates remembers.
const maxNames = 4096

// Rates limits how often each name comes. It forgets names that have been
// quiet, and the others only when there are too many.
type Rates struct {
	limit rate.Limit
	burst int

	mu    sync.Mutex
	names map[string]*rate.Limiter // guarded by mu; at most maxNames
}

// NewRates lets each name come so often a second, and so often at once.
func NewRates(perSecond, burst int) *Rates {
	return &Rates{limit: rate.Limit(perSecond), burst: burst, names: map[string]*rate.Limiter{}}
}

// Allow counts one more and reports whether it is within the limit.
func (r *Rates) Allow(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.names[name]
	if !ok {
		if len(r.names) >= maxNames {
			r.forgetLocked()
		}
		l = rate.NewLimiter(r.limit, r.burst)
		r.names[name] = l
	}
	return l.Allow()
}

func (r *Rates) forgetLocked() {
	for name, l := range r.names {
		if l.Tokens() >= float64(r.burst) {
			delete(r.names, name)
		}
	}
	for name := range r.names { // a flood of many names: some are forgiven
		if len(r.names) < maxNames/2 {
			return
		}
		delete(r.names, name)
	}
}

// Listen closes connections for which the quota has no room, as they come. They
// are counted by client.
func Listen(l net.Listener, open *Quota) net.Listener { return &listener{l, open} }

type listener struct {
	net.Listener
	open *Quota
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := ClientOf(c.RemoteAddr().String())
		if !l.open.Take(client) {
			c.Close()
			continue
		}
		return &conn{Conn: c, give: sync.OnceFunc(func() { l.open.Give(client) })}, nil
	}
}

type conn struct {
	net.Conn
	give func()
}

func (c *conn) Close() error {
	defer c.give()
	return c.Conn.Close()
}

// Gate counts who is inside, so that a server can wait for its handlers: those
// of net/http go on after their connections are closed. Its zero value is open.
type Gate struct {
	mu     sync.Mutex
	shut   bool // guarded by mu
	inside sync.WaitGroup
}

// Enter reports whether the gate is open. Who enters leaves.
func (g *Gate) Enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return false
	}
	g.inside.Add(1)
	return true
}

// Leave ends what Enter began.
func (g *Gate) Leave() { g.inside.Done() }

// Shut lets nobody in any more and waits until all have left.
func (g *Gate) Shut() {
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
	g.inside.Wait()
}
