package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// newSite makes a route ready. What the same host of the same lease had before
// it keeps: connections to replicas.
func newSite(r HTTPRoute, t *tenancy, old *site) *site {
	r.Backends = slices.Clone(r.Backends)
	if r.Options.MaxBodySize == 0 {
		r.Options.MaxBodySize = defaultBody
	}
	s := &site{HTTPRoute: r, tenant: t, next: &atomic.Uint32{}}
	if old != nil && old.tenant == t && old.Options.ProxyBufferSize == r.Options.ProxyBufferSize {
		s.transport, s.next = old.transport, old.next
		return s
	}
	header := int64(defaultHeader)
	if n := int64(r.Options.ProxyBufferSize); n > 0 {
		header = min(max(n, 4<<10), maxHeader)
	}
	s.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
			if err != nil {
				return nil, &dialError{err}
			}
			held := &backendConn{Conn: conn, tenant: t}
			if !t.hold(held) {
				return nil, &dialError{errors.New("the lease has ended")}
			}
			return held, nil
		},
		DisableCompression:     true, // bytes pass as they are
		MaxIdleConnsPerHost:    maxIdlePerBackend,
		IdleConnTimeout:        idleBackend,
		MaxResponseHeaderBytes: header,
		ExpectContinueTimeout:  time.Second,
	}
	return s
}

// dialError reports a replica that was not reached: it got nothing.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// backendConn is a connection to a replica. It counts, and ends with the lease.
type backendConn struct {
	net.Conn
	tenant *tenancy
}

func (c *backendConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.tenant.out.Add(uint64(n))
	return n, err
}

func (c *backendConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.tenant.in.Add(uint64(n))
	return n, err
}

func (c *backendConn) Close() error {
	c.tenant.release(c)
	return c.Conn.Close()
}

func (c *backendConn) CloseWrite() error { return closeWrite(c.Conn) }

// Why no answer of a replica came.
var (
	errReadTimeout = errors.New("the service does not answer in time")
	errSendTimeout = errors.New("the service does not take the request in time")
	errNoBackend   = errors.New("the service has no replica that answers")
)

// siteKey finds the site in a request's context.
type siteKey struct{}

// page answers with a plain sentence.
func page(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "5")
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // the client may be gone
}

// serve is the handler of both servers.
func (i *Ingress) serve(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	// The answer may come late; from then on each write has its own time, the
	// server's own at the end included.
	_ = control.SetWriteDeadline(time.Time{})
	defer func() { _ = control.SetWriteDeadline(time.Now().Add(clientPatience)) }()
	if r.TLS == nil && i.certs.challenge(w, r) {
		return
	}
	s := i.table.Load().hosts[hostOf(r.Host)]
	switch {
	case s == nil:
		page(w, http.StatusNotFound, "Nothing is served under this name here.")
		return
	case r.Method == http.MethodConnect:
		page(w, http.StatusMethodNotAllowed, "This is not a proxy.")
		return
	case !s.tenant.enter(&s.tenant.requests, maxRequestsPerLease):
		page(w, http.StatusServiceUnavailable, "The service has too many requests at once. Please try again in a moment.")
		return
	}
	defer s.tenant.requests.Add(-1)
	s.tenant.served.Add(1)
	if r.ContentLength > int64(s.Options.MaxBodySize) {
		w.Header().Set("Connection", "close")
		page(w, http.StatusRequestEntityTooLarge, tooLarge(s))
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		r.Header.Del("Upgrade") // other protocols would hide from the limits
	}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = http.MaxBytesReader(w, &patientBody{r.Body, control}, int64(s.Options.MaxBodySize))
	}
	i.proxy.ServeHTTP(&patientWriter{w, control}, r.WithContext(context.WithValue(r.Context(), siteKey{}, s)))
}

func tooLarge(s *site) string {
	return "The request is larger than the " + strconv.FormatUint(uint64(s.Options.MaxBodySize), 10) + " bytes that this service takes."
}

// patientBody gives a client time for each part of its body.
type patientBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b *patientBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(clientPatience))
	n, err := b.ReadCloser.Read(p)
	_ = b.control.SetReadDeadline(time.Time{}) // one that passed later would count as a client that left
	return n, err
}

// patientWriter gives a client time to take each part of an answer.
type patientWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *patientWriter) Write(p []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(clientPatience))
	n, err := w.ResponseWriter.Write(p)
	_ = w.control.SetWriteDeadline(time.Time{})
	return n, err
}

func (w *patientWriter) FlushError() error {
	_ = w.control.SetWriteDeadline(time.Now().Add(clientPatience))
	err := w.control.Flush()
	_ = w.control.SetWriteDeadline(time.Time{})
	return err
}

func (i *Ingress) newProxy() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "replica" // the balancer knows which
			r.Out.Host = r.In.Host
			r.SetXForwarded()
			r.Out.Header.Del("X-Real-Ip")
			if client, _, err := net.SplitHostPort(r.In.RemoteAddr); err == nil {
				r.Out.Header.Set("X-Real-Ip", client)
			}
		},
		Transport:     http.RoundTripper(balancer{}),
		FlushInterval: -1, // streams pass as they come
		BufferPool:    &buffers{},
		ErrorLog:      slog.NewLogLogger(i.log.Handler(), slog.LevelDebug),
		ErrorHandler:  i.failed,
	}
}

// buffers are used again.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

// failed tells a client why there is no answer.
func (i *Ingress) failed(w http.ResponseWriter, r *http.Request, err error) {
	s, _ := r.Context().Value(siteKey{}).(*site)
	if s == nil || r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		page(w, http.StatusRequestEntityTooLarge, tooLarge(s))
		return
	}
	s.tenant.refused.Add(1)
	i.log.Debug("request not served", "lease", s.Lease, "host", s.Host, "error", err)
	_, unreached := errors.AsType[*dialError](err)
	switch {
	case isTimeout(err):
		page(w, http.StatusGatewayTimeout, "The service did not answer in time.")
	case unreached, errors.Is(err, errNoBackend):
		page(w, http.StatusServiceUnavailable, "The service is not running just now. Please try again in a moment.")
	default:
		page(w, http.StatusBadGateway, "The service gave an answer that is none.")
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, errReadTimeout) || errors.Is(err, errSendTimeout) || errors.As(err, &timeout) && timeout.Timeout()
}

// balancer sends a request to a replica, and to the next if the first fails and
// the tenant's options allow it.
type balancer struct{}

func (balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	s, ok := r.Context().Value(siteKey{}).(*site)
	if !ok || len(s.Backends) == 0 {
		return nil, errNoBackend
	}
	off := slices.Contains(s.Options.NextCases, "off")
	tries := len(s.Backends)
	if n := int(s.Options.NextTries); n > 0 {
		tries = min(tries, n)
	}
	if off {
		tries = 1
	}
	var until time.Time
	if s.Options.NextTimeout > 0 {
		until = time.Now().Add(option(s.Options.NextTimeout))
	}
	first := int(s.next.Add(1) - 1)
	for try := 1; ; try++ {
		a := &attempt{site: s}
		resp, err := a.do(r, s.Backends[(first+try-1)%len(s.Backends)])
		again := try < tries && r.Context().Err() == nil && (until.IsZero() || time.Now().Before(until)) &&
			!a.touched.Load() && a.harmless(r, err) && s.wants(resp, err)
		if !again {
			return resp, err
		}
		if resp != nil {
			resp.Body.Close()
		}
	}
}

// wants reports whether the tenant wants another replica tried after this.
func (s *site) wants(resp *http.Response, err error) bool {
	cases := s.Options.NextCases
	if len(cases) == 0 {
		cases = []string{"error", "timeout"}
	}
	switch {
	case err == nil:
		return slices.Contains(cases, strconv.Itoa(resp.StatusCode))
	case isTimeout(err):
		return slices.Contains(cases, "timeout")
	default:
		return slices.Contains(cases, "error")
	}
}

// option is a time of a manifest: milliseconds.
func option(ms uint32) time.Duration {
	return min(time.Duration(ms)*time.Millisecond, maxOptionTime)
}

// orDefault is option, or what SDL has where nothing was said.
func orDefault(ms uint32) time.Duration {
	if ms == 0 {
		return defaultTimeout
	}
	return option(ms)
}

// attempt is one try at one replica.
type attempt struct {
	site     *site
	touched  atomic.Bool // bytes of the body were asked for
	answered atomic.Bool // the header of an answer came
}

// harmless reports whether the request can be sent once more: the replica was
// not reached, or the method is idempotent.
func (a *attempt) harmless(r *http.Request, err error) bool {
	if _, unreached := errors.AsType[*dialError](err); unreached {
		return true
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return r.Header.Get("Upgrade") == ""
	}
	return false
}

func (a *attempt) do(r *http.Request, backend netip.AddrPort) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	read, send := orDefault(a.site.Options.ReadTimeout), orDefault(a.site.Options.SendTimeout)
	reading := time.AfterFunc(read, func() { cancel(errReadTimeout) })
	sending := time.AfterFunc(send, func() { cancel(errSendTimeout) })
	sending.Stop()
	out := r.WithContext(ctx)
	url := *r.URL
	url.Host = backend.String()
	out.URL = &url
	if r.Body != nil && r.Body != http.NoBody {
		out.Body = &sentBody{from: r.Body, a: a, reading: reading, sending: sending, read: read, send: send}
	}
	resp, err := a.site.transport.RoundTrip(out)
	a.answered.Store(true) // from here on answerBody tells the time
	reading.Stop()
	if err != nil {
		sending.Stop()
		if cause := context.Cause(ctx); errors.Is(cause, errReadTimeout) || errors.Is(cause, errSendTimeout) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		cancel(nil)
		return nil, err
	}
	if both, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		idle := time.AfterFunc(upgradedIdle, func() { cancel(errReadTimeout) })
		resp.Body = &upgraded{ReadWriteCloser: both, idle: idle, cancel: cancel}
		return resp, nil
	}
	resp.Body = &answerBody{from: resp.Body, reading: reading, read: read, cancel: func() {
		reading.Stop()
		sending.Stop()
		cancel(nil)
	}}
	return resp, nil
}

// sentBody is a request's body on its way to a replica. It tells how fast the
// replica takes it; how fast the client sends is patientBody's.
type sentBody struct {
	from             io.Reader
	a                *attempt
	reading, sending *time.Timer
	read, send       time.Duration
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.a.touched.Store(true)
	b.reading.Stop()
	b.sending.Stop()
	n, err := b.from.Read(p)
	switch {
	case b.a.answered.Load():
	case err != nil:
		b.reading.Reset(b.read)
	default:
		b.sending.Reset(b.send)
	}
	return n, err
}

// Close keeps the body, which is the server's, for another try.
func (b *sentBody) Close() error { return nil }

// answerBody is an answer on its way to the client.
type answerBody struct {
	from    io.ReadCloser
	reading *time.Timer
	read    time.Duration
	cancel  func()
}

func (b *answerBody) Read(p []byte) (int, error) {
	b.reading.Reset(b.read)
	n, err := b.from.Read(p)
	b.reading.Stop()
	return n, err
}

func (b *answerBody) Close() error {
	err := b.from.Close()
	b.cancel()
	return err
}

// upgraded is a websocket to a replica.
type upgraded struct {
	io.ReadWriteCloser
	idle   *time.Timer
	cancel context.CancelCauseFunc
}

func (u *upgraded) Read(p []byte) (int, error) {
	u.idle.Reset(upgradedIdle)
	return u.ReadWriteCloser.Read(p)
}

func (u *upgraded) Write(p []byte) (int, error) {
	u.idle.Reset(upgradedIdle)
	return u.ReadWriteCloser.Write(p)
}

func (u *upgraded) Close() error {
	u.idle.Stop()
	err := u.ReadWriteCloser.Close()
	u.cancel(nil)
	return err
}
