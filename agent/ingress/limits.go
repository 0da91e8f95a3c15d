package ingress

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/croft-cloud/croft/agent/lease"
)

// Limits of clients.
const (
	maxConnections          = 8192             // in all; one costs some 30 KiB
	maxConnectionsPerClient = 256              // of one address: an office behind one is many people
	maxStreams              = 128              // of one HTTP/2 connection
	maxRequests             = 4096             // at once, in all
	maxRequestsPerClient    = 512              // half of what a lease may have: nobody takes it alone
	maxHeaderBytes          = 64 << 10         // of a request
	headerTimeout           = 15 * time.Second // for handshake and header: what slowloris stretches
	idleTimeout             = 90 * time.Second // between two requests
	clientPatience          = 60 * time.Second // for a client to send or take the next bytes
	grace                   = 3 * time.Second  // for running requests when the ingress stops
)

// Limits of a lease.
const (
	maxRequestsPerLease    = 1024             // at once
	maxConnectionsPerLease = 2048             // of its TCP ports, at once
	dialTimeout            = 5 * time.Second  // to a replica, a hop away
	maxIdlePerBackend      = 32               // connections kept for the next request
	idleBackend            = 30 * time.Second // and how long
	upgradedIdle           = time.Hour        // a websocket on which nothing flows
	maxOptionTime          = time.Hour        // what tenants may ask for as a timeout
	halfOpen               = time.Hour        // for the other direction once one of a pipe has ended
)

// toReplica dials replicas. An enclosure that is ended closes no connection: only
// its silence tells, here after some 20 s. One that has little of a processor
// answers in that time.
var toReplica = net.Dialer{
	Timeout:         dialTimeout,
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 5},
}

// Limits of UDP. A flow is a client's address and port at one port of a lease.
const (
	maxFlows          = 2048 // each costs up to maxDatagram
	maxFlowsPerClient = 64
	maxFlowsPerLease  = 512
	flowIdle          = 60 * time.Second // without a datagram in either direction
	flowQueue         = 64               // datagrams that wait for a replica; more are dropped
	maxDatagram       = 64 << 10
)

// Defaults of SDL, where a manifest says nothing.
const (
	defaultBody    = 1 << 20
	defaultTimeout = 60 * time.Second
	defaultTries   = 3
	defaultHeader  = 64 << 10 // of an answer
	maxHeader      = 1 << 20
)

// tenancy is a lease as long as it is in the table.
type tenancy struct {
	key      lease.Key
	requests atomic.Int64 // at once
	pipes    atomic.Int64
	flows    atomic.Int64

	served, connected, refused, in, out atomic.Uint64

	mu    sync.Mutex
	ended bool                // guarded by mu
	open  map[closer]struct{} // guarded by mu
}

func newTenancy(key lease.Key) *tenancy {
	return &tenancy{key: key, open: map[closer]struct{}{}}
}

func (t *tenancy) read() Counters {
	return Counters{t.served.Load(), t.connected.Load(), t.refused.Load(), t.in.Load(), t.out.Load()}
}

// enter counts one more of something, if there is room.
func (t *tenancy) enter(n *atomic.Int64, most int64) bool {
	if n.Add(1) > most {
		n.Add(-1)
		t.refused.Add(1)
		return false
	}
	return true
}

// hold keeps c for end to close. It reports false, and closes c, if the lease
// has ended.
func (t *tenancy) hold(c closer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		c.Close()
		return false
	}
	t.open[c] = struct{}{}
	return true
}

func (t *tenancy) release(c closer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

// end cuts what is open.
func (t *tenancy) end() {
	t.mu.Lock()
	t.ended = true
	open := t.open
	t.open = map[closer]struct{}{}
	t.mu.Unlock()
	for c := range open {
		c.Close()
	}
}
