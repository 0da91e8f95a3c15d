package wire

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// What this file must know of yamux's frames: twelve bytes of header, the type
// in the second, the flags in the next two, the stream's number in four, the
// length in the last four; after a data frame's header come as many bytes. A
// client opens streams with odd numbers, a server with even ones.
const (
	muxHeader   = 12
	muxTypeData = 0
	muxTypePing = 2
	muxFlagSYN  = 1
)

// muxConn is the connection as yamux sees it. It notes when bytes came, refuses
// pings and streams that the peer may not open, and joins a frame's header with
// its body.
//
// A box opens one stream; more would be memory at its command, even before it
// is admitted. A stream under one of our numbers would take the place of the one
// we open next; what yamux loses like that never ends, and who reads it turns
// for ever. Pings are refused because yamux answers each in a goroutine of its
// own: a peer that asks and does not read could make us hold any number of them.
type muxConn struct {
	net.Conn          // TLS
	raw      net.Conn // below TLS
	begun    time.Time
	lastRead atomic.Int64 // nanoseconds since begun

	// Of the reading goroutine.
	head []byte // an incoming frame's header, as far as it is here
	skip uint32 // bytes of its body still to come
	peer peerStreams

	// Of the writing goroutine.
	out []byte // an outgoing data frame's header that waits for its body
}

// peerStreams is which streams the other side may still open.
type peerStreams struct {
	odd  bool // their numbers are odd, as those of a yamux client
	left int  // negative: any number
}

var (
	boxStreams   = peerStreams{odd: true, left: 1} // as the relay sees it
	relayStreams = peerStreams{left: -1}           // as the box sees it
)

func newMuxConn(tlsConn, raw net.Conn, peer peerStreams) *muxConn {
	return &muxConn{Conn: tlsConn, raw: raw, peer: peer, begun: time.Now()}
}

func (c *muxConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.lastRead.Store(int64(time.Since(c.begun)))
		if refused := c.scan(p[:n]); refused != nil {
			return 0, refused
		}
	}
	return n, err
}

// scan follows the incoming frames.
func (c *muxConn) scan(b []byte) error {
	for len(b) > 0 {
		if c.skip > 0 {
			n := min(int64(c.skip), int64(len(b)))
			c.skip -= uint32(n)
			b = b[n:]
			continue
		}
		n := min(muxHeader-len(c.head), len(b))
		c.head = append(c.head, b[:n]...)
		b = b[n:]
		if len(c.head) < muxHeader {
			return nil
		}
		if binary.BigEndian.Uint16(c.head[2:])&muxFlagSYN != 0 {
			if c.peer.left == 0 {
				return fmt.Errorf("%w: one stream too many", ErrProtocol)
			}
			if number := binary.BigEndian.Uint32(c.head[4:]); (number%2 == 1) != c.peer.odd {
				return fmt.Errorf("%w: stream %d has a number of ours", ErrProtocol, number)
			}
			c.peer.left-- // from -1 it only moves further from 0
		}
		switch c.head[1] {
		case muxTypeData:
			c.skip = binary.BigEndian.Uint32(c.head[8:])
		case muxTypePing:
			return fmt.Errorf("%w: ping", ErrProtocol)
		}
		c.head = c.head[:0]
	}
	return nil
}

// Write is called for a header and then for its body. Together they are one
// write, or two TLS records more and a system call would go with every chunk.
func (c *muxConn) Write(p []byte) (int, error) {
	if len(c.out) == 0 {
		if len(p) == muxHeader && p[1] == muxTypeData && binary.BigEndian.Uint32(p[8:]) > 0 {
			c.out = append(c.out, p...)
			return len(p), nil
		}
		return c.Conn.Write(p)
	}
	out := append(c.out, p...)
	c.out = out[:0] // grows to what the tunnel needs; an idle one needs little
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close does not say goodbye in TLS: on a dead path that would take seconds,
// and the chunks already tell an end from a cut.
func (c *muxConn) Close() error { return c.raw.Close() }

// silence is how long ago the last bytes came.
func (c *muxConn) silence() time.Duration {
	return time.Since(c.begun) - time.Duration(c.lastRead.Load())
}
