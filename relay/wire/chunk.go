package wire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// chunkReader takes chunks off a byte stream. A read that fails half way, by a
// deadline for example, loses nothing: the next one goes on from there.
type chunkReader struct {
	src  io.Reader
	buf  []byte // read from src and not taken yet: buf[r:w]
	r, w int
	left int  // bytes of the present chunk not taken yet
	end  bool // the end of the direction was seen
}

// bufferSize is a few headers and small chunks; larger chunks go past it.
const bufferSize = 4 << 10

// need makes at least n bytes stand in the buffer.
func (c *chunkReader) need(n int) error {
	if c.buf == nil {
		c.buf = make([]byte, max(bufferSize, n))
	}
	if n > len(c.buf)-c.r {
		to := c.buf
		if n > len(c.buf) {
			to = make([]byte, n) // at most a chunk and its length
		}
		c.w = copy(to, c.buf[c.r:c.w])
		c.buf, c.r = to, 0
	}
	for c.w-c.r < n {
		got, err := c.src.Read(c.buf[c.w:])
		c.w += got
		if err != nil && c.w-c.r < n {
			return err
		}
	}
	return nil
}

// length reads the next chunk's length, and leaves it in the buffer.
func (c *chunkReader) length() (int, error) {
	if c.end {
		return 0, io.EOF
	}
	if err := c.need(2); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(c.buf[c.r:]))
	switch {
	case n == endOfStream:
		c.r += 2
		c.end = true
		return 0, io.EOF
	case n > MaxDatagram:
		return 0, fmt.Errorf("%w: chunk of length %d", ErrProtocol, n)
	}
	return n, nil
}

// read reads a byte stream.
func (c *chunkReader) read(p []byte) (int, error) {
	for c.left == 0 {
		n, err := c.length()
		if err != nil {
			return 0, err
		}
		if n == 0 { // it would let a peer make us turn for nothing
			return 0, fmt.Errorf("%w: empty chunk", ErrProtocol)
		}
		c.r += 2
		c.left = n
	}
	p = p[:min(len(p), c.left)]
	if c.w > c.r {
		n := copy(p, c.buf[c.r:c.w])
		c.r += n
		c.left -= n
		return n, nil
	}
	n, err := c.src.Read(p)
	c.left -= n
	return n, err
}

// whole returns the next chunk as a whole; it is valid until the next call.
func (c *chunkReader) whole(limit int) ([]byte, error) {
	n, err := c.length()
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("%w: chunk of %d bytes, want at most %d", ErrProtocol, n, limit)
	}
	if err := c.need(2 + n); err != nil {
		return nil, err
	}
	chunk := c.buf[c.r+2 : c.r+2+n]
	c.r += 2 + n
	return chunk, nil
}

// appendChunk appends data as one chunk.
func appendChunk(b, data []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}
