package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
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

	"github.com/croft-cloud/croft/agent/crowd"
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
			conn, err := toReplica.DialContext(ctx, network, address)
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
	errSlowClient  = errors.New("the client does not send its request in time")
	errTaken       = errors.New("the body is for another try")
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
	if !i.inside.Enter() {
		panic(http.ErrAbortHandler) // everything is closed already
	}
	defer i.inside.Leave()
	control := http.NewResponseController(w)
	// The answer may come late; from then on each write has its own time, the
	// server's own at the end included.
	_ = control.SetWriteDeadline(time.Time{})
	defer func() { _ = control.SetWriteDeadline(time.Now().Add(clientPatience)) }()
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		// What nobody has read of a body when the answer begins or ends, the server
		// reads: for so long, not for ever.
		patient := func() { _ = control.SetReadDeadline(time.Now().Add(clientPatience)) }
		patient()
		defer patient()
	}
	client := crowd.ClientOf(r.RemoteAddr)
	if !i.busy.Take(client) {
		page(w, http.StatusTooManyRequests, "Too many requests at once come from your address. Please try again in a moment.")
		return
	}
	defer i.busy.Give(client)
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
		r.Body = http.MaxBytesReader(w, &patientBody{r.Body, control, r.ProtoMajor > 1}, int64(s.Options.MaxBodySize))
	}
	i.proxy.ServeHTTP(&patientWriter{w, control, r.ProtoMajor == 1}, r.WithContext(context.WithValue(r.Context(), siteKey{}, s)))
}

func tooLarge(s *site) string {
	return "The request is larger than the " + strconv.FormatUint(uint64(s.Options.MaxBodySize), 10) + " bytes that this service takes."
}

// patientBody gives a client time for each part of its body.
type patientBody struct {
	io.ReadCloser
	control *http.ResponseController
	always  bool // a deadline counts also while nobody reads: HTTP/2
}

func (b *patientBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(clientPatience))
	n, err := b.ReadCloser.Read(p)
	if b.always || errors.Is(err, io.EOF) {
		_ = b.control.SetReadDeadline(time.Time{}) // one that passed later would count as a client that left
	}
	if isTimeout(err) {
		err = fmt.Errorf("%w: %w", errSlowClient, err)
	}
	return n, err
}

// patientWriter gives a client time to take each part of an answer. With the
// first part, HTTP/1 is done with the request's body.
type patientWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	http1   bool
}

func (w *patientWriter) free() {
	_ = w.control.SetWriteDeadline(time.Time{})
	if w.http1 {
		_ = w.control.SetReadDeadline(time.Time{})
	}
}

func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *patientWriter) Write(p []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(clientPatience))
	n, err := w.ResponseWriter.Write(p)
	w.free()
	return n, err
}

func (w *patientWriter) FlushError() error {
	_ = w.control.SetWriteDeadline(time.Now().Add(clientPatience))
	err := w.control.Flush()
	w.free()
	return err
}

func (i *Ingress) newProxy() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "replica" // the balancer knows which
			r.Out.Host = r.In.Host
			maps.DeleteFunc(r.Out.Header, func(name string, _ []string) bool {
				return name == "X-Real-Ip" || strings.HasPrefix(name, "X-Forwarded-")
			})
			r.SetXForwarded()
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
	if errors.Is(err, errSlowClient) {
		page(w, http.StatusRequestTimeout, "The request did not come in time.")
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
	tries := min(len(s.Backends), cmp.Or(int(s.Options.NextTries), defaultTries))
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
			harmless(r, err) && s.wants(resp, err) && a.unread()
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

// attempt is one try at one replica. Timers say how long the replica may take;
// once its answer has begun, answerBody does.
type attempt struct {
	site       *site
	read, send time.Duration

	mu               sync.Mutex
	reading, sending *time.Timer // started under mu only
	touched          bool        // bytes of the body were asked for; guarded by mu
	taken            bool        // the body is for another try; guarded by mu
	answered         bool        // or failed; guarded by mu
}

// unread gives the body up, if it was not touched.
func (a *attempt) unread() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken = !a.touched
	return a.taken
}

// ask stops the time while the client sends.
func (a *attempt) ask() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken {
		return errTaken
	}
	a.touched = true
	a.reading.Stop()
	a.sending.Stop()
	return nil
}

// pass starts it again: the replica takes what came, or answers if it was all.
func (a *attempt) pass(all bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.answered:
	case all:
		a.reading.Reset(a.read)
	default:
		a.sending.Reset(a.send)
	}
}

// answer stops it for good.
func (a *attempt) answer() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answered = true
	a.reading.Stop()
	a.sending.Stop()
}

// harmless reports whether the request can be sent once more: the replica was
// not reached, or the method is idempotent.
func harmless(r *http.Request, err error) bool {
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
	a.read, a.send = orDefault(a.site.Options.ReadTimeout), orDefault(a.site.Options.SendTimeout)
	a.reading = time.AfterFunc(a.read, func() { cancel(errReadTimeout) })
	a.sending = time.AfterFunc(a.send, func() { cancel(errSendTimeout) })
	a.sending.Stop()
	out := r.WithContext(ctx)
	url := *r.URL
	url.Host = backend.String()
	out.URL = &url
	if r.Body != nil && r.Body != http.NoBody {
		out.Body = &sentBody{r.Body, a}
	}
	resp, err := a.site.transport.RoundTrip(out)
	a.answer()
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errReadTimeout) || errors.Is(cause, errSendTimeout) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		cancel(nil)
		return nil, err
	}
	if both, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = newUpgraded(both, cancel)
		return resp, nil
	}
	resp.Body = &answerBody{from: resp.Body, reading: time.AfterFunc(a.read, func() { cancel(errReadTimeout) }), read: a.read, cancel: cancel}
	return resp, nil
}

// sentBody is a request's body on its way to a replica. It tells how fast the
// replica takes it; how fast the client sends is patientBody's.
type sentBody struct {
	from io.Reader
	a    *attempt
}

func (b *sentBody) Read(p []byte) (int, error) {
	if err := b.a.ask(); err != nil {
		return 0, err
	}
	n, err := b.from.Read(p)
	b.a.pass(err != nil)
	return n, err
}

// Close keeps the body, which is the server's, for another try.
func (b *sentBody) Close() error { return nil }

// answerBody is an answer on its way to the client.
type answerBody struct {
	from    io.ReadCloser
	reading *time.Timer
	read    time.Duration
	cancel  context.CancelCauseFunc
}

func (b *answerBody) Read(p []byte) (int, error) {
	b.reading.Reset(b.read)
	n, err := b.from.Read(p)
	b.reading.Stop()
	return n, err
}

func (b *answerBody) Close() error {
	b.reading.Stop()
	err := b.from.Close()
	b.cancel(nil)
	return err
}

// upgraded is a websocket to a replica. It is closed when nothing flows for
// upgradedIdle; a context's end is nothing to it.
type upgraded struct {
	io.ReadWriteCloser
	idle   *time.Timer
	cancel context.CancelCauseFunc
}

func newUpgraded(c io.ReadWriteCloser, cancel context.CancelCauseFunc) *upgraded {
	return &upgraded{c, time.AfterFunc(upgradedIdle, func() { c.Close() }), cancel}
}

func (u *upgraded) Read(p []byte) (int, error) {
	n, err := u.ReadWriteCloser.Read(p)
	if err == nil {
		u.idle.Reset(upgradedIdle)
	}
	return n, err
}

func (u *upgraded) Write(p []byte) (int, error) {
	n, err := u.ReadWriteCloser.Write(p)
	if err == nil {
		u.idle.Reset(upgradedIdle)
	}
	return n, err
}

func (u *upgraded) Close() error {
	u.idle.Stop()
	err := u.ReadWriteCloser.Close()
	u.cancel(nil)
	return err
}
