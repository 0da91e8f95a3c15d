package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

var (
	// ErrCut reports a stream that stopped before its end: the other side gave
	// it up, or the tunnel is gone.
	ErrCut = errors.New("stream was cut before its end")
	// ErrProtocol reports a peer that broke a rule of this package.
	ErrProtocol = errors.New("peer broke the tunnel protocol")
)

// Stream is one user's connection through a tunnel, or one user's datagrams.
// It is a [net.Conn]: one goroutine may read while another writes and a third
// closes. After a failed Write, a deadline's included, it writes no more.
//
// Of a udp stream each Read takes one datagram, whose rest is lost if p is too
// small, and each Write sends one.
type Stream struct {
	mux    *yamux.Stream
	pool   *sync.Pool // of *[]byte with room for a chunk of maxPayload
	header Header

	readMu sync.Mutex
	in     chunkReader // guarded by readMu

	writeMu  sync.Mutex
	writeErr error // guarded by writeMu; sticks

	closed atomic.Bool
}

func newStream(mux *yamux.Stream, pool *sync.Pool) *Stream {
	return &Stream{mux: mux, pool: pool, in: chunkReader{src: mux}}
}

// Header is what the stream began with. On the box it is empty until
// [Stream.ReadHeader] has succeeded.
func (s *Stream) Header() Header { return s.header }

// ReadHeader reads what the stream begins with. The box calls it before anything
// else; a second time is nothing.
func (s *Stream) ReadHeader() error {
	if s.header.Kind != "" {
		return nil
	}
	if err := s.mux.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return err
	}
	s.readMu.Lock()
	defer s.readMu.Unlock()
	raw, err := s.in.whole(maxHeader)
	if err == nil {
		s.header, err = parseHeader(raw)
	}
	if err != nil {
		return fmt.Errorf("read stream header: %w", s.readErrorLocked(err))
	}
	return s.mux.SetReadDeadline(time.Time{})
}

func (s *Stream) Read(p []byte) (int, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	if len(p) == 0 && s.header.Kind != KindUDP {
		return 0, nil
	}
	if s.header.Kind == KindUDP {
		datagram, err := s.in.whole(MaxDatagram)
		return copy(p, datagram), s.readErrorLocked(err)
	}
	n, err := s.in.read(p)
	return n, s.readErrorLocked(err)
}

// readErrorLocked gives errors of the layers below the names callers know. Only the
// end chunk is an EOF.
func (s *Stream) readErrorLocked(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrProtocol):
		return err
	case s.closed.Load():
		return net.ErrClosed
	case errors.Is(err, io.EOF) && s.in.end:
		return io.EOF
	case errors.Is(err, yamux.ErrTimeout):
		return os.ErrDeadlineExceeded
	case errors.Is(err, io.EOF), errors.Is(err, yamux.ErrConnectionReset), errors.Is(err, yamux.ErrSessionShutdown):
		return ErrCut
	}
	return err
}

func (s *Stream) Write(p []byte) (int, error) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if s.header.Kind == KindUDP {
		if len(p) > MaxDatagram {
			return 0, fmt.Errorf("datagram of %d bytes: want at most %d", len(p), MaxDatagram)
		}
		if len(p) > maxPayload { // rare: it has a buffer of its own
			return len(p), s.sendLocked(appendChunk(make([]byte, 0, 2+len(p)), p))
		}
	}
	buf := s.pool.Get().(*[]byte)
	defer s.pool.Put(buf)
	total := 0
	for first := true; first && s.header.Kind == KindUDP || total < len(p); first = false {
		piece := p[total:min(len(p), total+maxPayload)]
		if err := s.sendLocked(appendChunk((*buf)[:0], piece)); err != nil {
			return total, err
		}
		total += len(piece)
	}
	return total, nil
}

// ReadFrom writes what it reads from r until r ends, without a copy in between.
// It is not for udp streams.
func (s *Stream) ReadFrom(r io.Reader) (int64, error) {
	buf := s.pool.Get().(*[]byte)
	defer s.pool.Put(buf)
	total := int64(0)
	for {
		b := (*buf)[:2+maxPayload]
		n, err := r.Read(b[2:])
		if n > 0 {
			binary.BigEndian.PutUint16(b, uint16(n))
			s.writeMu.Lock()
			failed := s.sendLocked(b[:2+n])
			s.writeMu.Unlock()
			if failed != nil {
				return total, failed
			}
			total += int64(n)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return total, err
		}
	}
}

// sendLocked writes whole chunks.
func (s *Stream) sendLocked(chunks []byte) error {
	if s.writeErr != nil {
		return s.writeErr
	}
	if _, err := s.mux.Write(chunks); err != nil {
		switch {
		case s.closed.Load():
			err = net.ErrClosed
		case errors.Is(err, yamux.ErrTimeout):
			err = os.ErrDeadlineExceeded
		case errors.Is(err, yamux.ErrConnectionReset), errors.Is(err, yamux.ErrSessionShutdown), errors.Is(err, yamux.ErrStreamClosed):
			err = ErrCut
		}
		s.writeErr = err
	}
	return s.writeErr
}

// CloseWrite ends this side's direction: the peer reads an EOF after all that
// was written. The other direction stays open for as long as it likes.
func (s *Stream) CloseWrite() error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if errors.Is(s.writeErr, errEnded) {
		return nil
	}
	if err := s.sendLocked([]byte{endOfStream >> 8, endOfStream & 0xff}); err != nil {
		return err
	}
	s.writeErr = errEnded
	return nil
}

var errEnded = errors.New("write after CloseWrite")

// Close ends the stream. A direction that was not ended before is cut: if this
// side did not call CloseWrite, the peer reads [ErrCut], and the user a reset
// which may overtake the last bytes. Servers that know no half-close, such as
// net/http's, are given a connection whose Close calls CloseWrite first. A peer
// that only writes sees the cut once a window is full, 2 min later.
func (s *Stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	err := s.mux.SetDeadline(time.Unix(1, 0)) // wakes those who read and write
	return errors.Join(err, s.mux.Close())
}

// LocalAddr is the tunnel's address on this side.
func (s *Stream) LocalAddr() net.Addr { return s.mux.LocalAddr() }

// RemoteAddr is the user's address, as the relay saw it.
func (s *Stream) RemoteAddr() net.Addr {
	if s.header.Kind == KindUDP {
		return net.UDPAddrFromAddrPort(s.header.Client)
	}
	return net.TCPAddrFromAddrPort(s.header.Client)
}

// SetDeadline is that of [net.Conn].
func (s *Stream) SetDeadline(t time.Time) error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	return s.mux.SetDeadline(t)
}

// SetReadDeadline is that of [net.Conn].
func (s *Stream) SetReadDeadline(t time.Time) error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	return s.mux.SetReadDeadline(t)
}

// SetWriteDeadline is that of [net.Conn].
func (s *Stream) SetWriteDeadline(t time.Time) error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	return s.mux.SetWriteDeadline(t)
}

// ReadDatagram is [Stream.Read] of a udp stream without a copy: what it returns
// is valid until the next read.
func (s *Stream) ReadDatagram() ([]byte, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	datagram, err := s.in.whole(MaxDatagram)
	return datagram, s.readErrorLocked(err)
}
