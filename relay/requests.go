package relay

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync"

	"github.com/croft-cloud/croft/relay/wire"
)

// maxHead is more than the head of any request that servers answer; theirs is
// 8 to 16 KiB.
const maxHead = 16 << 10

// requests is a user's connection that speaks HTTP/1. Reading it gives the
// bytes as he sent them, as long as every request has the host of the first.
// The first that has another ends what is read: a proxy between users and relay
// may send many users' requests over one connection, and those for one box must
// not reach another. After an answer of 101 it is HTTP no more.
type requests struct {
	halfCloser
	host string // of the first request

	// Of the reading goroutine.
	tap      tap
	parser   *bufio.Reader // of tap
	judged   []byte        // may be given out
	body     io.Reader     // of the present request; nil: a head comes next
	upgrade  bool          // the present request asks for another protocol
	upgraded bool          // the box has agreed
	over     bool          // no more is let through

	answer chan bool // the box's, to an upgrade
	closed chan struct{}
	close  func() error

	mu       sync.Mutex
	start    []byte // guarded by mu; of the answer to an upgrade
	expected bool   // guarded by mu; start is looked at
	ended    bool   // guarded by mu; no more answers come
}

// tap remembers what was read through it.
type tap struct {
	src  io.Reader
	left int    // bytes that may be read
	raw  []byte // was read, and not judged
	err  error  // of src
}

func (t *tap) Read(p []byte) (int, error) {
	if t.left == 0 {
		return 0, errors.New("head of request is too long")
	}
	n, err := t.src.Read(p[:min(len(p), t.left)])
	t.left -= n
	t.raw = append(t.raw, p[:n]...)
	t.err = err
	return n, err
}

// readRequests reads the head of the first request. The bytes are to be read
// from what it returns, the head included.
func readRequests(conn halfCloser) (*requests, error) {
	r := &requests{halfCloser: conn, tap: tap{src: conn}, answer: make(chan bool, 1), closed: make(chan struct{})}
	r.close = sync.OnceValue(func() error { close(r.closed); return conn.Close() })
	r.parser = bufio.NewReader(&r.tap)
	host, err := r.next()
	r.host = host
	return r, err
}

// next reads the head of a request and returns its host.
func (r *requests) next() (string, error) {
	r.tap.left = maxHead
	request, err := http.ReadRequest(r.parser)
	r.tap.left = math.MaxInt
	if err != nil {
		return "", fmt.Errorf("read head of HTTP request: %w", err)
	}
	head := r.tap.raw[:len(r.tap.raw)-r.parser.Buffered()]
	_, fields, _ := bytes.Cut(head, []byte("\n"))
	header, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(fields))).ReadMIMEHeader()
	if err != nil {
		return "", fmt.Errorf("read head of HTTP request: %w", err)
	}
	for name := range header {
		if strings.ContainsAny(name, " \t") { // "Host : other" may be a Host to others
			return "", fmt.Errorf("HTTP request has a header named %.32q", name)
		}
	}
	if len(header["Host"]) > 1 || request.Method == http.MethodConnect {
		return "", errors.New("HTTP request has two hosts, or wants a proxy")
	}
	host := request.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if err := wire.CheckHost(host); err != nil {
		return "", err
	}
	r.body, r.upgrade = request.Body, len(header["Upgrade"]) > 0
	if r.upgrade {
		r.expect()
	}
	r.judge()
	return host, nil
}

// judge lets through what was parsed.
func (r *requests) judge() {
	n := len(r.tap.raw) - r.parser.Buffered()
	r.judged = append(r.judged, r.tap.raw[:n]...)
	r.tap.raw = append(r.tap.raw[:0], r.tap.raw[n:]...)
}

// first is what may be given out without waiting for the user.
func (r *requests) first() []byte {
	first := r.judged
	r.judged = nil
	return first
}

func (r *requests) Read(p []byte) (int, error) {
	for len(r.judged) == 0 {
		switch {
		case r.over:
			return 0, r.end()
		case r.upgraded:
			n, err := r.parser.Read(p)
			r.tap.raw = r.tap.raw[:0]
			return n, err
		case r.body != nil:
			_, err := r.body.Read(p[:min(len(p), maxHead)]) // p is only room; the bytes as they came are judged
			r.judge()
			if err != nil {
				r.body, r.over = nil, !errors.Is(err, io.EOF)
			}
		case r.upgrade:
			r.upgrade = false
			select {
			case r.upgraded = <-r.answer:
			case <-r.closed:
				r.over = true
			}
		default:
			if host, err := r.next(); err != nil || host != r.host {
				r.judged, r.over = nil, true
			}
		}
	}
	n := copy(p, r.judged)
	r.judged = r.judged[:copy(r.judged, r.judged[n:])]
	return n, nil
}

// end is how the user's direction ends: as he ended it. Where a request is not
// let through it is a plain end, so that the answers to those before it arrive.
func (r *requests) end() error {
	if r.tap.err != nil {
		return r.tap.err
	}
	return io.EOF
}

// Write sends the user what the box answers.
func (r *requests) Write(p []byte) (int, error) {
	r.look(p, false)
	return r.halfCloser.Write(p)
}

// CloseWrite ends the answers.
func (r *requests) CloseWrite() error {
	r.look(nil, true)
	return r.halfCloser.CloseWrite()
}

// Close also frees who waits for an answer.
func (r *requests) Close() error { return r.close() }

// expect begins to look at what the box answers.
func (r *requests) expect() {
	r.mu.Lock()
	r.start, r.expected = nil, true
	r.mu.Unlock()
	r.look(nil, false)
}

// look tells whether an answer begins with "HTTP/1.1 101", once that is known.
func (r *requests) look(p []byte, ended bool) {
	const length = len("HTTP/1.1 101")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = r.ended || ended
	if !r.expected {
		return
	}
	r.start = append(r.start, p[:min(len(p), length-len(r.start))]...)
	if len(r.start) == length || r.ended {
		r.expected = false
		r.answer <- bytes.HasPrefix(r.start, []byte("HTTP/1.")) && bytes.HasSuffix(r.start, []byte(" 101")) // has room: each is taken
	}
}

// NetConn is the connection below.
func (r *requests) NetConn() net.Conn { return r.halfCloser }
