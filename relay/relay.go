// Package relay brings tenants' users to boxes that nobody can dial.
//
//	user ── TLS to shop.example:443 ──► Server ══ tunnel ══► Client ──► Accept
//	user ── TCP or UDP to port 31007 ──►  │                    (box)
//	user ── HTTP, Host: shop.example ──►  │
//
// A [Server] stands on the internet. A [Client] on each box dials one or more
// servers, says which hosts and ports it wants, and hands every user to Accept.
// How the two talk is package wire's matter.
//
// The server never ends TLS. It reads the first message of a connection, which
// is not encrypted, for the host name, and passes everything on, that message
// included. With plain HTTP/1 it reads the head of every request, passes it on
// as it is, and ends a connection whose requests change the host: proxies send
// many users' requests over one. It finds the box by
//
//  1. a custom host that a box asked for and Config.AllowHost let it have,
//     or "mtls." before one;
//  2. DEVICE.DOMAIN, and every name below it (mtls.gateway.DEVICE.DOMAIN);
//  3. an external port, for TCP and UDP.
//
// Tunnels come in on the same listener, by the relay's own name and
// [wire.ALPN].
//
// It does not decide who owns a host, does not change or answer what a user
// says to a box, does not keep a user's connection over a change of tunnels, and
// does not balance load between relays: DNS does, or the tenant's choice of
// name. A hello with ECH is led by its outer name.
//
// What it promises: bytes arrive in order, complete or visibly cut; each
// direction ends by itself; who does not read holds up his own connection and
// no other; every number a stranger can drive up is bounded by [Limits].
//
// # What survives what
//
// A relay's restart or loss: its users are cut; boxes try again at once, then
// within a second, and with pauses that grow to 30 s while it stays away. They
// get the same ports, which the [Store] keeps and which otherwise follow from
// the device's name. While a box is away for a moment, its new users wait for
// it ([Limits].Patience). A box's restart, or a new address: the newest
// tunnel wins, users on the old one finish or die with it. A dead path: found
// after three beats, 15 s. A full or read-only disk at the relay: ports are
// given all the same, and may change at the next restart. A wrong clock at the
// relay: ports may be remembered for too long or too short a time.
package relay

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/croft-cloud/croft/relay/wire"
)

// halfCloser is what both ends of a splice can do.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// counter counts bytes; it is also how a splice sees that something moves.
type counter struct {
	io.Reader
	moved *atomic.Int64
	total *atomic.Int64
}

func (c counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.moved.Add(int64(n))
	c.total.Add(int64(n))
	return n, err
}

// splice passes bytes between a user and a stream until both directions have
// ended, one of them fails, nothing moves for idle, or ctx ends. It closes
// both; the one that did not fail sees a cut and no end.
func splice(ctx context.Context, user halfCloser, stream *wire.Stream, idle time.Duration, in, out *atomic.Int64) {
	var moved atomic.Int64
	done := make(chan bool, 2)
	go func() {
		_, err := stream.ReadFrom(counter{user, &moved, in})
		done <- err == nil && stream.CloseWrite() == nil
	}()
	go func() {
		_, err := io.Copy(user, counter{stream, &moved, out})
		done <- err == nil && user.CloseWrite() == nil
	}()
	ticker := time.NewTicker(idle)
	defer ticker.Stop()
	stopped := ctx.Done()
	for running, last := 2, int64(-1); running > 0; {
		whole := true
		select {
		case whole = <-done:
			running--
		case <-ticker.C:
			now := moved.Load()
			whole, last = now != last, now
		case <-stopped:
			whole, stopped = false, nil
		}
		if !whole {
			cut(user) // the other direction sees it and ends
			stream.Close()
		}
	}
	stream.Close()
	user.Close()
}

// cut closes a TCP connection so that the peer sees a reset and no end.
func cut(conn net.Conn) {
	if tcp, ok := underlying(conn).(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // if it fails, the peer sees an end: the worse, but not a leak
	}
	conn.Close()
}

// prefixed is a connection of which some bytes were read already.
type prefixed struct {
	net.Conn
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// NetConn is the connection below.
func (p *prefixed) NetConn() net.Conn { return p.Conn }

// underlying takes off what was put around a connection.
func underlying(c net.Conn) net.Conn {
	for {
		wrapper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = wrapper.NetConn()
	}
}
