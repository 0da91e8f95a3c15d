package gateway

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits of a connection.
const (
	maxConnections          = 512              // of each listener; one costs some 40 KiB
	maxConnectionsPerClient = 64               // of one address; a tool uses up to 6 and a proxy of many tenants more
	headerTimeout           = 10 * time.Second // for handshake and header: what slowloris stretches
	bodyTimeout             = 60 * time.Second // for header and body: a manifest of 1 MiB over 20 KiB/s
	answerTimeout           = 30 * time.Second // for the answer to be taken, where nothing else is said
	idleTimeout             = 60 * time.Second // between two requests
	grace                   = 3 * time.Second  // for running requests when the gateway stops
)

// Limits of a request.
const (
	maxHeaderBytes   = 32 << 10          // twice the longest token
	maxManifestBytes = 1 << 20           // the chain bounds groups and units: real ones stay below 100 KiB
	maxMigrateBytes  = 64 << 10          // 255 bytes for each of a few hundred host names
	maxMigrateNames  = 256               // of one request
	manifestTimeout  = 120 * time.Second // as on Akash: the provider may wait for the chain
	queryTimeout     = 20 * time.Second  // all else that is asked once
	maxErrorRunes    = 1000              // of a sentence to a client
)

// Rates. The first number is per second, the second how much may come at once.
const (
	clientRate  = 20 // of one address, before anything else is looked at
	clientBurst = 200
	tenantRate  = 20 // of one account: the command line asks once a second
	tenantBurst = 100
	maxRates    = 4096 // addresses or accounts that are remembered
)

// Limits of streams (logs, events, shells).
const (
	maxStreams         = 256              // each costs a connection and four goroutines
	maxStreamsPerLease = 16               // some people, some tools
	maxShells          = 64               // of them; each is a process in a sandbox
	maxShellsPerLease  = 8                // a person has a few open
	pingEvery          = 10 * time.Second // as on Akash
	pongWithin         = 15 * time.Second // of the last one, as on Akash
	writeWithin        = 15 * time.Second // one message; a client slower than that is dropped
	maxFrameBytes      = 256 << 10        // from a client: shells send 16 KiB, pasted text may be more
	maxIdleFrames      = 64               // from a client that has nothing to say: logs, events
	maxLineBytes       = 128 << 10        // of a log line in one message; the rest comes in the next
	maxOutputBytes     = 32 << 10         // of a shell in one message
	stdinWithin        = 10 * time.Minute // for a program to read what was typed
	maxPodIndex        = 10_000
	maxServiceNames    = 64 // in a list of services
)

// quota bounds how many of something there are, in all and under each name.
type quota struct {
	all, each int

	mu     sync.Mutex
	total  int            // guarded by mu
	counts map[string]int // guarded by mu; no zeros
}

func newQuota(all, each int) *quota {
	return &quota{all: all, each: each, counts: map[string]int{}}
}

// take reports whether there is room for one more. The caller gives it back.
func (q *quota) take(name string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.total >= q.all || q.counts[name] >= q.each {
		return false
	}
	q.total++
	q.counts[name]++
	return true
}

func (q *quota) give(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total--
	if q.counts[name]--; q.counts[name] <= 0 {
		delete(q.counts, name)
	}
}

// rates limits how often each name comes. It forgets names that have been
// quiet, and the others only when there are too many.
type rates struct {
	limit rate.Limit
	burst int

	mu    sync.Mutex
	names map[string]*rate.Limiter // guarded by mu; at most maxRates
}

func newRates(perSecond, burst int) *rates {
	return &rates{limit: rate.Limit(perSecond), burst: burst, names: map[string]*rate.Limiter{}}
}

func (r *rates) allow(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.names[name]
	if !ok {
		if len(r.names) >= maxRates {
			r.forgetLocked()
		}
		l = rate.NewLimiter(r.limit, r.burst)
		r.names[name] = l
	}
	return l.Allow()
}

func (r *rates) forgetLocked() {
	for name, l := range r.names {
		if l.Tokens() >= float64(r.burst) {
			delete(r.names, name)
		}
	}
	for name := range r.names { // a flood of many names: some are forgiven
		if len(r.names) < maxRates {
			return
		}
		delete(r.names, name)
	}
}

// clientOf is the name under which a peer is counted: its address, and of IPv6
// the network, because a home has 2^64 addresses.
func clientOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}

// limitListener closes connections above the limits as they come.
func limitListener(l net.Listener, all, each int) net.Listener {
	return &limitedListener{Listener: l, open: newQuota(all, each)}
}

type limitedListener struct {
	net.Listener
	open *quota
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := clientOf(conn.RemoteAddr().String())
		if !l.open.take(client) {
			conn.Close()
			continue
		}
		return &limitedConn{Conn: conn, give: sync.OnceFunc(func() { l.open.give(client) })}, nil
	}
}

type limitedConn struct {
	net.Conn
	give func()
}

func (c *limitedConn) Close() error {
	defer c.give()
	return c.Conn.Close()
}
