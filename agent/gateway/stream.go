package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft/agent/crowd"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/credential"
)

// Codes with which a websocket ends, besides 1000.
const (
	closeInternal    websocket.StatusCode = 4000
	closeNotFound    websocket.StatusCode = 4001
	closeUnavailable websocket.StatusCode = 4002
)

// noPods is in Akash's words, which tools compare.
const noPods = "no running pods"

// Why a stream ends before its work does.
var (
	errGone     = errors.New("the client is gone")
	errQuiet    = errors.New("the client is silent")
	errSlow     = errors.New("the client is too slow")
	errTalks    = errors.New("the client sends what nobody asked for")
	errProtocol = errors.New("the client sends what is no frame")
	errStopping = errors.New("the gateway is stopping; connect again")
)

// socket is one websocket, watched for signs of life.
type socket struct {
	conn *websocket.Conn
	ctx  context.Context // of the work; ends with the peer or the gateway
	stop context.CancelCauseFunc

	life    context.Context // of reading and writing; ends with the handler
	kill    context.CancelFunc
	give    func() // its place among the streams
	workers sync.WaitGroup
	reading atomic.Bool // a read is under way: without one, no pong can be seen
}

// upgrade makes a websocket of a request, or answers with an error. take counts
// it; the caller ends what it gets.
func (g *Gateway) upgrade(q *request, kinds ...*crowd.Quota) (*socket, error) {
	name := string(q.id.Owner)
	for i, kind := range kinds {
		if !kind.Take(name) {
			for _, taken := range kinds[:i] {
				taken.Give(name)
			}
			return nil, refuse(http.StatusServiceUnavailable, "too many streams are open; close one of them")
		}
	}
	give := func() {
		for _, kind := range kinds {
			kind.Give(name)
		}
	}
	// Accept sends a few bytes and takes over the connection, deadlines cleared.
	conn, err := websocket.Accept(q.w, q.r, nil)
	if err != nil {
		give()
		return nil, errAnswered
	}
	conn.SetReadLimit(maxFrameBytes)
	s := &socket{conn: conn, give: give}
	s.life, s.kill = context.WithCancel(context.WithoutCancel(q.r.Context()))
	s.ctx, s.stop = context.WithCancelCause(s.life)
	s.workers.Go(s.watch)
	s.workers.Go(func() {
		select {
		case <-q.r.Context().Done():
			s.stop(errStopping)
		case <-s.life.Done():
		}
	})
	return s, nil
}

// errAnswered is what a handler returns that has answered by itself.
var errAnswered = errors.New("answered")

// watch asks for a sign of life as Akash does. While what the client sent waits
// for a program to read it, silence means nothing.
func (s *socket) watch() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		watched := s.reading.Load()
		ctx, cancel := context.WithDeadline(s.life, last.Add(max(pongWithin, time.Since(last)+pongWithin-pingEvery)))
		err := s.conn.Ping(ctx)
		cancel()
		switch {
		case err == nil:
			last = time.Now()
		case watched && s.reading.Load() && s.life.Err() == nil:
			s.stop(errQuiet)
			s.kill()
			return
		}
	}
}

// read is the next message of the client.
func (s *socket) read() ([]byte, error) {
	s.reading.Store(true)
	defer s.reading.Store(false)
	_, data, err := s.conn.Read(s.life)
	return data, err
}

// listen reads what a client sends that has nothing to say, so that its pongs
// and its leaving are noticed.
func (s *socket) listen() {
	often := rate.NewLimiter(idleFrames, idleBurst)
	for often.Allow() {
		if _, err := s.read(); err != nil {
			s.stop(errGone)
			return
		}
	}
	s.stop(errTalks)
}

func (s *socket) write(kind websocket.MessageType, data []byte) error {
	ctx, cancel := context.WithTimeout(s.life, writeWithin)
	defer cancel()
	if err := s.conn.Write(ctx, kind, data); err != nil {
		if ctx.Err() != nil && s.life.Err() == nil {
			err = errSlow
		}
		s.stop(err)
		return err
	}
	return nil
}

// end closes the websocket with a code, if the peer is still there, and waits
// for the workers.
func (s *socket) end(code websocket.StatusCode, reason string) {
	cause := context.Cause(s.ctx)
	switch {
	case cause == nil, errors.Is(cause, errProtocol):
	case errors.Is(cause, errStopping):
		code, reason = closeUnavailable, errStopping.Error()
	case errors.Is(cause, errTalks):
		code, reason = websocket.StatusPolicyViolation, errTalks.Error()
	default:
		code = 0
	}
	s.stop(errGone)
	if code != 0 {
		_ = s.conn.Close(code, closeReason(reason)) // it is over either way
	}
	s.kill()
	_ = s.conn.CloseNow() // frees the reader; it is over either way
	s.workers.Wait()
	s.give()
}

// closeReason cuts a text to what a close frame takes.
func closeReason(s string) string {
	const most = 123
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// closeOf gives a backend's error its code; the table stands in backend.go.
func closeOf(err error) (websocket.StatusCode, string) {
	e := refusalOf(err)
	switch e.status {
	case http.StatusNotFound:
		return closeNotFound, e.text
	case http.StatusServiceUnavailable:
		return closeUnavailable, e.text
	default:
		return closeInternal, e.text
	}
}

// streamQuery is what the query of logs and events says.
type streamQuery struct {
	follow   bool
	services []string // nil: all
	tail     int      // below 0: all
}

func parseStreamQuery(v url.Values) (streamQuery, error) {
	q := streamQuery{tail: -1}
	var err error
	if text := v.Get("follow"); text != "" {
		if q.follow, err = strconv.ParseBool(text); err != nil {
			return q, refuse(http.StatusBadRequest, "follow is neither true nor false")
		}
	}
	if text := v.Get("tail"); text != "" {
		if q.tail, err = strconv.Atoi(text); err != nil || q.tail < -1 {
			return q, refuse(http.StatusBadRequest, "tail is not a number from -1 on")
		}
	}
	list := v.Get("service")
	if list == "" {
		list = v.Get("services") // as the Akash command line spells it
	}
	if list == "" {
		return q, nil
	}
	q.services = strings.Split(list, ",")
	if len(q.services) > maxServiceNames || slices.Contains(q.services, "") {
		return q, refuse(http.StatusBadRequest, "service is not a list of up to "+strconv.Itoa(maxServiceNames)+" names with commas between them")
	}
	return q, nil
}

func (g *Gateway) logs(q *request) error {
	return stream(g, q, credential.ScopeLogs, true, func(ctx context.Context, id akash.LeaseID, sq streamQuery) iter.Seq2[any, error] {
		return func(yield func(any, error) bool) {
			query := LogQuery{Services: sq.services, Tail: sq.tail, Follow: sq.follow}
			for line, err := range g.cfg.Logs.Logs(ctx, id, query) {
				if err != nil {
					yield(nil, err)
					return
				}
				if !yield(logJSON{line.Pod, line.Text}, nil) {
					return
				}
			}
		}
	})
}

type logJSON struct {
	Name    string `json:"name"`
	Message string `json:"message"`
}

type eventJSON struct {
	Type       lease.EventType `json:"type"`
	Controller string          `json:"reportingController"`
	Reason     string          `json:"reason"`
	Note       string          `json:"note"`
	Object     eventObject     `json:"object"`
}

type eventObject struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func (g *Gateway) events(q *request) error {
	return stream(g, q, credential.ScopeEvents, false, func(ctx context.Context, id akash.LeaseID, sq streamQuery) iter.Seq2[any, error] {
		return func(yield func(any, error) bool) {
			for e, err := range g.cfg.Events.Events(ctx, id, sq.services, sq.follow) {
				if !yield(eventOf(id, e), err) || err != nil {
					return
				}
			}
		}
	})
}

// eventOf says what an event is about in words that tools for Akash know.
func eventOf(id akash.LeaseID, e lease.Event) eventJSON {
	namespace := string(lease.KeyOf(id))
	object := eventObject{Kind: "Namespace", Namespace: namespace, Name: namespace}
	switch {
	case e.Pod != "":
		object.Kind, object.Name = "Pod", e.Pod
	case e.Service != "":
		object.Kind, object.Name = "Deployment", e.Service
	}
	return eventJSON{e.Type, "croft", e.Reason, e.Note, object}
}

// stream sends what a backend tells, as JSON texts. pods says that the lease
// must have replicas.
func stream(g *Gateway, q *request, scope credential.Scope, pods bool, from func(context.Context, akash.LeaseID, streamQuery) iter.Seq2[any, error]) error {
	query, err := parseStreamQuery(q.r.URL.Query())
	if err != nil {
		return err
	}
	if !g.may(q, scope, query.services...) {
		return errNotCovered
	}
	status, found := g.statusOf(q)
	s, err := g.upgrade(q, g.places(found, g.streams)...)
	if err != nil {
		return err
	}
	s.workers.Go(s.listen)
	var code websocket.StatusCode
	var reason string
	if found != nil {
		code, reason = g.failed(s, q.id, found)
	} else {
		code, reason = g.pump(s, q.id, status, query, pods, from)
	}
	s.end(code, reason)
	return nil
}

// statusOf is how the lease of a request is, or that there is none.
func (g *Gateway) statusOf(q *request) (LeaseStatus, error) {
	ctx, cancel := context.WithTimeout(q.r.Context(), queryTimeout)
	defer cancel()
	return g.cfg.Statuses.Status(ctx, q.id)
}

// places is where a stream is counted. One that is only told an error, such as
// that there is no lease, takes none of those that tenants have.
func (g *Gateway) places(found error, tenants ...*crowd.Quota) []*crowd.Quota {
	if found != nil {
		return []*crowd.Quota{g.strays}
	}
	return tenants
}

// failed is the end of a stream by an error of a backend.
func (g *Gateway) failed(s *socket, id akash.LeaseID, err error) (websocket.StatusCode, string) {
	if s.ctx.Err() == nil {
		g.log.Debug("stream failed", "lease", id, "error", err)
	}
	return closeOf(err)
}

func (g *Gateway) pump(s *socket, id akash.LeaseID, status LeaseStatus, query streamQuery, pods bool, from func(context.Context, akash.LeaseID, streamQuery) iter.Seq2[any, error]) (websocket.StatusCode, string) {
	started := false
	for _, one := range status.Services {
		started = started || one.Started > 0
	}
	if pods && len(status.Services) == 0 {
		return closeInternal, noPods
	}
	for _, name := range query.services {
		if !slices.ContainsFunc(status.Services, func(one lease.ServiceStatus) bool { return one.Name == name }) {
			return closeNotFound, errNoService
		}
	}
	sent := false
	for v, err := range from(s.ctx, id, query) {
		if err != nil {
			return g.failed(s, id, err)
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return g.failed(s, id, err)
		}
		if s.write(websocket.MessageText, raw) != nil {
			break
		}
		sent = true
	}
	if pods && !sent && !started && s.ctx.Err() == nil {
		return closeInternal, noPods
	}
	return websocket.StatusNormalClosure, ""
}
