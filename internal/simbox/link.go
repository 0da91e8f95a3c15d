package simbox

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Dial makes a connection.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Link is a box's line to the internet, which can be broken. All methods may be
// called from any goroutine.
type Link struct {
	dial Dial

	mu    sync.Mutex
	state linkState              // guarded by mu
	calm  chan struct{}          // guarded by mu; closed when the link works again
	conns map[*linkConn]struct{} // guarded by mu; that are open
}

type linkState string

const (
	whole  linkState = "whole"
	cut    linkState = "cut"    // who dials is refused at once
	silent linkState = "silent" // nothing comes through, and nobody says so
)

// NewLink is a link that works. Its connections are made by dial; nil: by TCP.
func NewLink(dial Dial) *Link {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return &Link{dial: dial, state: whole, calm: make(chan struct{}), conns: make(map[*linkConn]struct{})}
}

// Cut ends all connections and refuses new ones, until [Link.Mend].
func (l *Link) Cut() {
	for _, c := range l.set(cut) {
		_ = c.Close()
	}
}

// Silence makes all connections, and those dialed until [Link.Mend], swallow what
// is sent, as a router does that was switched off. What was open then stays dead.
func (l *Link) Silence() {
	for _, c := range l.set(silent) {
		c.kill()
	}
}

// Mend makes the link work again, for new connections.
func (l *Link) Mend() { l.set(whole) }

// set goes to a state and returns what is open.
func (l *Link) set(to linkState) []*linkConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if to == whole && l.state != whole {
		close(l.calm)
		l.calm = make(chan struct{})
	}
	l.state = to
	open := make([]*linkConn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	return open
}

// Dial makes a connection over the link.
func (l *Link) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	for {
		l.mu.Lock()
		state, calm := l.state, l.calm
		l.mu.Unlock()
		switch state {
		case whole:
		case cut:
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
		case silent:
			select {
			case <-calm:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		conn, err := l.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c := &linkConn{Conn: conn, link: l, dead: make(chan struct{}), closed: make(chan struct{})}
		l.mu.Lock()
		now := l.state
		l.conns[c] = struct{}{}
		l.mu.Unlock()
		if now == whole {
			return c, nil
		}
		_ = c.Close()
	}
}

// linkConn is a connection over a link.
type linkConn struct {
	net.Conn
	link   *Link
	dead   chan struct{} // closed when nothing comes through any more
	closed chan struct{}

	mu       sync.Mutex
	deadline time.Time // guarded by mu; of reads
}

func (c *linkConn) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isDead() {
		close(c.dead)
	}
}

func (c *linkConn) isDead() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

// Read returns nothing of a dead connection, not even its end.
func (c *linkConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if !c.isDead() || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err != nil {
			return 0, c.wait()
		}
	}
}

// wait waits for the deadline of reads, or for Close.
func (c *linkConn) wait() error {
	c.mu.Lock()
	deadline := c.deadline
	c.mu.Unlock()
	var late <-chan time.Time
	if !deadline.IsZero() {
		t := time.NewTimer(time.Until(deadline))
		defer t.Stop()
		late = t.C
	}
	select {
	case <-late:
		return os.ErrDeadlineExceeded
	case <-c.closed:
		return net.ErrClosed
	}
}

func (c *linkConn) Write(p []byte) (int, error) {
	if c.isDead() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *linkConn) SetDeadline(t time.Time) error {
	c.note(t)
	return c.Conn.SetDeadline(t)
}

func (c *linkConn) SetReadDeadline(t time.Time) error {
	c.note(t)
	return c.Conn.SetReadDeadline(t)
}

func (c *linkConn) note(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
}

func (c *linkConn) Close() error {
	c.link.mu.Lock()
	_, open := c.link.conns[c]
	delete(c.link.conns, c)
	c.link.mu.Unlock()
	if !open {
		return net.ErrClosed
	}
	close(c.closed)
	return c.Conn.Close()
}

// Homes dials for box number n of many from an address of its own, for boxes have
// homes of their own and a fleet bounds what one home may ask. It does so on the
// loopback, to a fleet on this machine, where 127.0.0.0/8 has room for many;
// elsewhere, and where an operating system has no more than 127.0.0.1, all boxes
// have this machine's address.
func Homes(n uint64) Dial {
	n += 1 << 8 // 127.0.0.x is for others
	home := netip.AddrFrom4([4]byte{127, byte(n >> 16), byte(n >> 8), byte(n)})
	own := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(home, 0))}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if isLoopback(address) {
			conn, err := own.DialContext(ctx, network, address)
			if err == nil || !errors.Is(err, syscall.EADDRNOTAVAIL) {
				return conn, err
			}
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Is4() && ip.IsLoopback()
}
