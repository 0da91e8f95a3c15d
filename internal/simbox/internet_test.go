package simbox

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// internet is a network in memory, so that a whole fleet and its boxes live in a
// bubble of testing/synctest.
type internet struct {
	mu        sync.Mutex
	listeners map[string]*entrance // guarded by mu; by host:port
}

func newInternet() *internet { return &internet{listeners: make(map[string]*entrance)} }

// entrance is a net.Listener.
type entrance struct {
	of     *internet
	at     place
	calls  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

type place string

func (p place) Network() string { return "tcp" }
func (p place) String() string  { return string(p) }

func (n *internet) listen(address string) net.Listener {
	l := &entrance{of: n, at: place(address), calls: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[address] = l
	return l
}

func (l *entrance) Addr() net.Addr { return l.at }

func (l *entrance) Accept() (net.Conn, error) {
	select {
	case c := <-l.calls:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *entrance) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.of.mu.Lock()
		defer l.of.mu.Unlock()
		if l.of.listeners[string(l.at)] == l {
			delete(l.of.listeners, string(l.at))
		}
	})
	return nil
}

// from dials from an address.
func (n *internet) from(home string) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		refused := &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		n.mu.Lock()
		l := n.listeners[address]
		n.mu.Unlock()
		if l == nil {
			return nil, refused
		}
		up, down := newPipe(), newPipe()
		here, there := place(net.JoinHostPort(home, "40000")), place(address)
		select {
		case l.calls <- &memConn{in: up, out: down, local: there, remote: here}:
			return &memConn{in: down, out: up, local: here, remote: there}, nil
		case <-l.closed:
			return nil, refused
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// memConn is one end of a connection.
type memConn struct {
	in, out       *pipe
	local, remote place
}

func (c *memConn) Read(p []byte) (int, error)        { return c.in.read(p) }
func (c *memConn) Write(p []byte) (int, error)       { return c.out.write(p) }
func (c *memConn) LocalAddr() net.Addr               { return c.local }
func (c *memConn) RemoteAddr() net.Addr              { return c.remote }
func (c *memConn) SetWriteDeadline(time.Time) error  { return nil } // writes never wait
func (c *memConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *memConn) SetReadDeadline(t time.Time) error { c.in.until(t); return nil }
func (c *memConn) Close() error {
	c.in.close(net.ErrClosed)
	c.out.close(io.EOF)
	return nil
}

// pipe is one direction of a connection.
type pipe struct {
	mu    sync.Mutex
	ready *sync.Cond
	data  []byte      // guarded by mu
	err   error       // guarded by mu; after data
	late  bool        // guarded by mu; the deadline has passed
	timer *time.Timer // guarded by mu
}

func newPipe() *pipe {
	p := &pipe{}
	p.ready = sync.NewCond(&p.mu)
	return p
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.data) == 0 && p.err == nil && !p.late {
		p.ready.Wait()
	}
	switch {
	case errors.Is(p.err, net.ErrClosed):
		return 0, p.err
	case p.late:
		return 0, os.ErrDeadlineExceeded
	case len(p.data) == 0:
		return 0, p.err
	}
	n := copy(b, p.data)
	if p.data = p.data[n:]; len(p.data) == 0 {
		p.data = nil
	}
	return n, nil
}

func (p *pipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, syscall.EPIPE
	}
	p.data = append(p.data, b...)
	p.ready.Broadcast()
	return len(b), nil
}

func (p *pipe) close(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil || errors.Is(err, net.ErrClosed) {
		p.err = err
	}
	if p.timer != nil {
		p.timer.Stop()
	}
	p.ready.Broadcast()
}

func (p *pipe) until(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	p.late = false
	if t.IsZero() || p.err != nil {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		p.late = true
		p.ready.Broadcast()
		return
	}
	var mine *time.Timer
	mine = time.AfterFunc(wait, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.timer == mine {
			p.late = true
			p.ready.Broadcast()
		}
	})
	p.timer = mine
}
