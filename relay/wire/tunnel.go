package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/croft-cloud/croft"
)

const (
	// silentBeats is how many beats may be missed. One can be late by a lost
	// packet, two by a busy machine.
	silentBeats = 3
	// headerTimeout is for the header of a stream, which comes with its opening.
	headerTimeout = 15 * time.Second
	// handshakeTimeout is for TLS and the first two messages, a TPM's signature
	// and a slow line included.
	handshakeTimeout = 15 * time.Second
	// writeTimeout is for one chunk to reach the kernel, with hundreds of others
	// before it on a slow line. A dead path is found sooner by other means.
	writeTimeout = time.Minute
	// openTimeout is for the box to take a stream; it does so before anything else.
	openTimeout = 30 * time.Second
	// closeTimeout is for the peer to close a stream that we closed; then yamux
	// resets it, and the peer loses what he has not read yet. A window is read in
	// that time by a user with 5 KB/s.
	closeTimeout = 2 * time.Minute
	// backlog is how many streams may wait for the box to take them.
	backlog = 256
)

// The window of a stream: how many bytes the other side may send that were not
// read yet. A stream moves at most one window per round trip.
const (
	MinWindow     = 256 << 10
	DefaultWindow = 512 << 10
	MaxWindow     = 16 << 20
)

// ErrSilent reports a tunnel on which nothing came for three beats.
var ErrSilent = errors.New("tunnel is silent")

// ErrBusy reports a box with as many streams as it may have.
var ErrBusy = errors.New("tunnel has too many streams")

// Tunnel is one connection between a box and a relay. All methods may be called
// from any goroutine, Receive and Next from one each. Its owner calls Close.
type Tunnel struct {
	device  croft.DeviceID
	domain  string
	version int
	beat    time.Duration
	conn    *muxConn
	mux     *yamux.Session
	control *Stream
	pool    *sync.Pool

	stop context.CancelCauseFunc
	done context.Context // cancelled, with its cause, when the tunnel ends
	wg   sync.WaitGroup  // the beats, and whoever cuts the connection
}

// Device names the box.
func (t *Tunnel) Device() croft.DeviceID { return t.device }

// Domain is the relay's: *.DEVICE.DOMAIN leads to the box.
func (t *Tunnel) Domain() string { return t.domain }

// Done is closed when the tunnel has ended, by Close or by itself.
func (t *Tunnel) Done() <-chan struct{} { return t.done.Done() }

// Err says why the tunnel ended; nil while it has not.
func (t *Tunnel) Err() error { return context.Cause(t.done) }

// LocalAddr is this side's address.
func (t *Tunnel) LocalAddr() net.Addr { return t.conn.LocalAddr() }

// RemoteAddr is the other side's address.
func (t *Tunnel) RemoteAddr() net.Addr { return t.conn.RemoteAddr() }

// Streams is how many streams are open or not closed by both sides yet.
func (t *Tunnel) Streams() int { return max(0, t.mux.NumStreams()-1) }

// muxConfig is yamux without what this package does itself.
func muxConfig(window uint32) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          backlog,
		EnableKeepAlive:        false,
		KeepAliveInterval:      time.Hour, // unused; yamux refuses 0
		ConnectionWriteTimeout: writeTimeout,
		MaxStreamWindowSize:    window,
		StreamOpenTimeout:      openTimeout,
		StreamCloseTimeout:     closeTimeout,
		LogOutput:              io.Discard, // what matters comes back as an error
	}
}

// newTunnel is a tunnel whose control stream is not open yet.
func newTunnel(conn *muxConn, mux *yamux.Session) *Tunnel {
	t := &Tunnel{conn: conn, mux: mux, pool: &sync.Pool{New: func() any {
		b := make([]byte, 2+maxPayload)
		return &b
	}}}
	t.done, t.stop = context.WithCancelCause(context.Background())
	t.wg.Go(func() { // yamux ends by itself when the connection does
		select {
		case <-mux.CloseChan():
			t.stop(errors.New("tunnel's connection ended"))
		case <-t.done.Done():
			mux.Close()
		}
	})
	return t
}

// start begins the beats, once both sides know their period.
func (t *Tunnel) start() {
	if c, ok := underlying(t.conn.raw).(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			_ = tuneSocket(raw, silentBeats*t.beat) // without it a dead path is found a little later
		}
	}
	t.wg.Go(func() {
		if err := listen(t.done, t.beat, t.conn.silence); err != nil {
			t.stop(err)
		}
	})
	t.wg.Go(func() {
		ticker := time.NewTicker(t.beat)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if err := t.Send(Message{Beat: &Beat{}}); err != nil {
					t.stop(err)
					return
				}
			case <-t.done.Done():
				return
			}
		}
	})
}

// listen returns ErrSilent as soon as the silence is longer than it may be, and
// nil when ctx ends.
func listen(ctx context.Context, beat time.Duration, silence func() time.Duration) error {
	for {
		wait := silentBeats*beat - silence()
		if wait <= 0 {
			return ErrSilent
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// underlying takes off what callers have put around a connection.
func underlying(c net.Conn) net.Conn {
	for {
		wrapper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = wrapper.NetConn()
	}
}

// Send sends a control message.
func (t *Tunnel) Send(m Message) error {
	raw, err := m.encode()
	if err != nil {
		return err
	}
	t.control.writeMu.Lock()
	defer t.control.writeMu.Unlock()
	if err := t.control.sendLocked(appendChunk(nil, raw)); err != nil {
		return fmt.Errorf("send control message: %w", t.because(err))
	}
	return nil
}

// Receive returns the next control message that is not a beat and is known to
// this version. A [Bye] comes as a message.
func (t *Tunnel) Receive() (Message, error) {
	t.control.readMu.Lock()
	defer t.control.readMu.Unlock()
	for {
		raw, err := t.control.in.whole(MaxDatagram)
		if err != nil {
			return Message{}, fmt.Errorf("receive control message: %w", t.because(t.control.readErrorLocked(err)))
		}
		m, err := parseMessage(raw)
		if err != nil {
			return Message{}, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if m != (Message{}) && m.Beat == nil {
			return m, nil
		}
	}
}

// because prefers the reason for the tunnel's end to what followed from it.
func (t *Tunnel) because(err error) error {
	if cause := t.Err(); cause != nil && errors.Is(err, ErrCut) {
		return cause
	}
	return err
}

// Open brings a user to the box, with the first bytes he sent. Only a relay
// calls it. A tunnel with limit streams takes no more: [ErrBusy].
func (t *Tunnel) Open(h Header, first []byte, limit int) (*Stream, error) {
	raw, err := h.encode()
	if err != nil {
		return nil, err
	}
	if t.Streams() >= limit {
		return nil, ErrBusy
	}
	mux, err := t.mux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("open stream to device %s: %w", t.device, err)
	}
	s := newStream(mux, t.pool)
	s.header = h
	chunks := appendChunk(make([]byte, 0, 4+len(raw)+len(first)), raw)
	for len(first) > 0 {
		n := min(len(first), maxPayload)
		chunks = appendChunk(chunks, first[:n])
		first = first[n:]
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := s.sendLocked(chunks); err != nil {
		s.Close()
		return nil, fmt.Errorf("open stream to device %s: %w", t.device, err)
	}
	return s, nil
}

// Next waits for the next user. Only a box calls it, in a loop: who waits for a
// stream's header there keeps all others waiting.
func (t *Tunnel) Next() (*Stream, error) {
	mux, err := t.mux.AcceptStream()
	if err != nil {
		return nil, fmt.Errorf("take next stream: %w", errors.Join(t.Err(), err))
	}
	return newStream(mux, t.pool), nil
}

// Close ends the tunnel and all its streams, and returns when nothing of it
// runs any more.
func (t *Tunnel) Close() error {
	t.stop(net.ErrClosed)
	err := t.mux.Close()
	t.wg.Wait()
	return err
}
