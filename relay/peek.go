package relay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/relay/wire"
)

// maxHello is more than any client's first message: those with post-quantum
// keys and many extensions have some 2 KiB.
const maxHello = 16 << 10

// hello is what a user's first message says.
type hello struct {
	host   string // lower case; empty: none was named
	tunnel bool   // it asks for a tunnel
}

// recording is a connection that can only be read, and remembers what was.
type recording struct {
	net.Conn // for addresses; Read and Write are replaced
	src      io.Reader
	read     bytes.Buffer
}

func (r *recording) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	r.read.Write(p[:n])
	return n, err
}

// Write swallows the alert with which the TLS library ends our look.
func (r *recording) Write(p []byte) (int, error)      { return len(p), nil }
func (r *recording) Close() error                     { return nil }
func (r *recording) SetDeadline(time.Time) error      { return nil }
func (r *recording) SetReadDeadline(time.Time) error  { return nil }
func (r *recording) SetWriteDeadline(time.Time) error { return nil }

var errSeen = errors.New("hello was seen")

// peekHello reads the first message of TLS from conn and returns what was read.
// It lets the standard library do the parsing, and stops it there.
func peekHello(conn net.Conn) (hello, []byte, error) {
	var h hello
	r := &recording{Conn: conn, src: io.LimitReader(conn, maxHello)}
	err := tls.Server(r, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		h.host = strings.ToLower(info.ServerName)
		h.tunnel = slices.Contains(info.SupportedProtos, wire.ALPN)
		return nil, errSeen
	}}).Handshake()
	if !errors.Is(err, errSeen) {
		return hello{}, r.read.Bytes(), fmt.Errorf("read first TLS message: %w", err)
	}
	if h.host != "" {
		if err := wire.CheckHost(h.host); err != nil {
			return hello{}, r.read.Bytes(), err
		}
	}
	return h, r.read.Bytes(), nil
}

// deviceOf is the device whose name or sub-name under domain host is.
func deviceOf(host, domain string) (croft.DeviceID, bool) {
	rest, ok := strings.CutSuffix(host, "."+domain)
	if !ok {
		return "", false
	}
	id, err := croft.ParseDeviceID(rest[strings.LastIndexByte(rest, '.')+1:])
	return id, err == nil
}

// Fatal alerts of TLS, as RFC 8446 §6 numbers them; in a record of their own
// they can be sent before any handshake.
const (
	alertInternalError    = 80
	alertUnrecognizedName = 112
)

// refuseTLS ends a connection so that the user's program can say why.
func refuseTLS(conn net.Conn, alert byte) {
	_ = conn.SetWriteDeadline(time.Now().Add(refusalTimeout))
	_, _ = conn.Write([]byte{21, 3, 3, 0, 2, 2, alert}) // a user who is gone needs no answer
}

// refuseHTTP answers a request that reaches no box.
func refuseHTTP(conn net.Conn, status int) {
	text := http.StatusText(status)
	_ = conn.SetWriteDeadline(time.Now().Add(refusalTimeout))
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		status, text, len(text)+1, text)
}

// refusalTimeout is for a few bytes into an empty buffer.
const refusalTimeout = time.Second
