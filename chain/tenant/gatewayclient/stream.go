package gatewayclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
)

// Codes with which a gateway ends a websocket.
const (
	closeInternal    = 4000
	closeNotFound    = 4001
	closeUnavailable = 4002
)

// stream is one websocket to the gateway, watched for signs of life.
type stream struct {
	g       *Gateway
	op      string
	conn    *websocket.Conn
	reading atomic.Bool // a read is under way: without one, no pong can be seen
	cancel  context.CancelCauseFunc
	ctx     context.Context // of the watch; ends with the stream
	watcher sync.WaitGroup
}

var errQuiet = errors.New("connection is silent")

// open upgrades a connection. The caller closes the stream.
func (g *Gateway) open(ctx context.Context, op, path string, query url.Values) (*stream, error) {
	header, err := g.authorize(ctx, http.Header{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	dialing, cancelDial := context.WithTimeoutCause(ctx, g.cfg.Timeout, errSlow)
	defer cancelDial()
	address := *g.base
	address.Path, address.RawQuery = path, query.Encode()
	conn, resp, err := websocket.Dial(dialing, address.String(), &websocket.DialOptions{HTTPClient: g.http, HTTPHeader: header})
	if err != nil {
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
			defer resp.Body.Close()
			return nil, g.refusal(op, g.refused(resp))
		}
		return nil, g.unreached(dialing, op, err)
	}
	conn.SetReadLimit(maxFrameBytes)
	s := &stream{g: g, op: op, conn: conn}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.watcher.Go(s.watch)
	return s, nil
}

// watch asks for a sign of life, and ends the stream when there is none. While
// whoever gets the messages is slow and nobody reads, silence means nothing.
func (s *stream) watch() {
	quiet := s.g.cfg.Quiet
	for pause(s.ctx, quiet/2) == nil {
		asked := s.reading.Load()
		ctx, cancel := context.WithTimeout(s.ctx, quiet/2)
		err := s.conn.Ping(ctx)
		cancel()
		if err != nil && asked && s.reading.Load() && s.ctx.Err() == nil {
			s.cancel(errQuiet)
			return
		}
	}
}

// read is the next message.
func (s *stream) read() (websocket.MessageType, []byte, error) {
	s.reading.Store(true)
	kind, data, err := s.conn.Read(s.ctx)
	s.reading.Store(false)
	if err != nil {
		return 0, nil, s.ended(err)
	}
	return kind, data, nil
}

func (s *stream) write(data []byte) error {
	if err := s.conn.Write(s.ctx, websocket.MessageBinary, data); err != nil {
		return s.ended(err)
	}
	return nil
}

// ended says why the stream ended: io.EOF if the gateway ended it as it should.
func (s *stream) ended(err error) error {
	code := websocket.CloseStatus(err)
	end, _ := errors.AsType[websocket.CloseError](err)
	switch code {
	case websocket.StatusNormalClosure:
		return io.EOF
	case closeInternal, closeNotFound, closeUnavailable:
		return s.g.refusal(s.op, &GatewayError{Provider: s.g.cfg.Provider, Code: int(code), Message: oneLine(end.Reason)})
	default:
	}
	if errors.Is(err, websocket.ErrMessageTooBig) {
		return s.g.garbled(s.op, fmt.Errorf("message is longer than %d bytes", maxFrameBytes))
	}
	cause := context.Cause(s.ctx)
	if errors.Is(cause, errQuiet) {
		return s.g.wrap(s.op, croft.KindOther, fmt.Errorf("%w: %w", ErrUnreachable, errQuiet), "repeat in a while")
	}
	if cause != nil {
		return fmt.Errorf("%s at provider %s: %w", s.op, s.g.cfg.Provider, cause)
	}
	return s.g.wrap(s.op, croft.KindOther, fmt.Errorf("%w: connection broke: %w", ErrUnreachable, err), "repeat in a while")
}

func (s *stream) close() {
	s.cancel(nil)
	s.watcher.Wait()
	s.conn.CloseNow() //nolint:errcheck // it is over either way
}

// StreamConfig says which messages to stream.
type StreamConfig struct {
	// Follow goes on with new messages until the context ends, over lost
	// connections.
	Follow bool
	// Services limits the stream to these; default: all.
	Services []string
	// Tail is how many of the last lines of each replica come first; 0: all that
	// the provider keeps, below 0: none. Events know no tail.
	Tail int
	// Reconnected, if set, is told about each attempt to go on after a loss.
	Reconnected func(error)
}

func (c StreamConfig) query(tail int) url.Values {
	q := url.Values{"follow": {strconv.FormatBool(c.Follow)}}
	if len(c.Services) > 0 {
		// The providers read "service", the Akash command line sends "services".
		list := strings.Join(c.Services, ",")
		q.Set("service", list)
		q.Set("services", list)
	}
	switch {
	case tail > 0:
		q.Set("tail", strconv.Itoa(tail))
	case tail < 0:
		q.Set("tail", "0")
	}
	return q
}

// LogLine is one line a replica wrote.
type LogLine struct {
	Name    string `json:"name"` // of the replica
	Message string `json:"message"`
	// Gap is set on the first line of a replica after a reconnect, if lines
	// before it may be missing.
	Gap bool `json:"gap,omitempty"`
}

// Logs yields what the services of a lease wrote, as it is: printing it to a
// terminal obeys the tenant's own program. An error is the last thing it yields.
// While following, a lost connection is made anew; lines that came before are
// not repeated. Breaking off is fine at any point.
func (g *Gateway) Logs(ctx context.Context, id akash.LeaseID, cfg StreamConfig) iter.Seq2[LogLine, error] {
	return func(yield func(LogLine, error) bool) {
		f := follower[LogLine]{
			g: g, op: "read logs", path: leasePath(id) + "/logs", cfg: cfg,
			seen: &history{lines: map[string][]string{}},
		}
		f.run(ctx, yield)
	}
}

// Event is what happened to a replica of a service.
type Event struct {
	Type       string      `json:"type"` // Normal or Warning
	Controller string      `json:"reportingController"`
	Reason     string      `json:"reason"` // one word
	Note       string      `json:"note"`
	Object     EventObject `json:"object"`
}

// EventObject is what an event is about.
type EventObject struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// Events yields what happens to the services of a lease. An error is the last
// thing it yields. While following, a lost connection is made anew; a gateway
// then may tell its last events again.
func (g *Gateway) Events(ctx context.Context, id akash.LeaseID, cfg StreamConfig) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		f := follower[Event]{g: g, op: "read events", path: leasePath(id) + "/kubeevents", cfg: cfg}
		f.cfg.Tail = 0
		f.run(ctx, yield)
	}
}

// Times of a follower.
const (
	firstRetry = 500 * time.Millisecond // doubles up to lastRetry
	lastRetry  = 15 * time.Second
	// overlapWait is how long after the last line of a replayed past the present
	// is taken to begin.
	overlapWait = 500 * time.Millisecond
)

// follower reads JSON messages, over several connections if need be.
type follower[T any] struct {
	g    *Gateway
	op   string
	path string
	cfg  StreamConfig
	seen *history // of log lines; nil for events
}

func (f follower[T]) run(ctx context.Context, yield func(T, error) bool) {
	var none T
	retry := firstRetry
	tail := f.cfg.Tail
	for again := false; ; again = true {
		progress, stopped, err := f.once(ctx, tail, again, yield)
		switch {
		case stopped:
			return
		case err == nil && !f.cfg.Follow:
			return
		case ctx.Err() != nil:
			yield(none, ctx.Err())
			return
		case err == nil: // the gateway ended it, as it does when a replica goes
		case !f.cfg.Follow, !Temporary(err), errors.Is(err, ErrNoLease), !again && !progress:
			yield(none, err)
			return
		}
		if progress {
			retry = firstRetry
		}
		f.g.log.Debug("stream lost", "stream", f.op, "retry_in", retry, "error", err)
		if f.cfg.Reconnected != nil {
			f.cfg.Reconnected(err)
		}
		if f.seen != nil {
			tail = historyLines
		}
		if pause(ctx, retry) != nil {
			yield(none, ctx.Err())
			return
		}
		retry = min(2*retry, lastRetry)
	}
}

// message is what one read gave.
type message[T any] struct {
	value T
	err   error
}

// once reads one connection to its end. It reports whether anything came, and
// whether the caller broke off.
func (f follower[T]) once(ctx context.Context, tail int, again bool, yield func(T, error) bool) (progress, stopped bool, err error) {
	s, err := f.g.open(ctx, f.op, f.path, f.cfg.query(tail))
	if err != nil {
		return false, false, err
	}
	messages := make(chan message[T])
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			m := message[T]{}
			m.value, m.err = receive[T](s)
			select {
			case messages <- m:
			case <-s.ctx.Done():
				return
			}
			if m.err != nil {
				return
			}
		}
	})
	defer reader.Wait()
	defer s.close()

	replay := newReplay[T](f.seen, again)
	for {
		var settled <-chan time.Time
		if replay.pending() {
			settled = time.After(overlapWait)
		}
		var m message[T]
		over := false
		select {
		case m = <-messages:
			progress = progress || m.err == nil
		case <-settled:
			over = true
		case <-s.ctx.Done():
			m.err = s.ended(context.Cause(s.ctx))
		}
		var out []T
		switch {
		case over || m.err != nil:
			out = replay.finish()
		default:
			out = replay.add(m.value)
		}
		for _, v := range out {
			if !yield(v, nil) {
				return true, true, nil
			}
		}
		if errors.Is(m.err, io.EOF) {
			return progress, false, nil
		}
		if m.err != nil {
			return progress, false, m.err
		}
	}
}

// receive reads one JSON message.
func receive[T any](s *stream) (T, error) {
	var v T
	_, data, err := s.read()
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return v, s.g.garbled(s.op, err)
	}
	return v, nil
}

// historyLines is how many lines of each replica are remembered, and asked for
// again after a lost connection.
const historyLines = 500

// maxReplicas bounds for how many names lines are remembered: names come from a
// stranger.
const maxReplicas = 256

// history is the last lines of each replica that were yielded.
type history struct {
	lines map[string][]string
}

func (h *history) add(l LogLine) {
	kept, known := h.lines[l.Name]
	if !known && len(h.lines) >= maxReplicas {
		return
	}
	kept = append(kept, l.Message)
	if len(kept) > 2*historyLines {
		kept = slices.Clone(kept[len(kept)-historyLines:])
	}
	h.lines[l.Name] = kept
}

// overlap is how many of the lines that come again after a reconnect were there
// before: all of the past if they begin with it, else the most that end where it
// ends. Without any, and with a past, lines may be missing between the two.
func overlap(past, again []string) int {
	if len(past) <= len(again) && slices.Equal(past, again[:len(past)]) {
		return len(past)
	}
	for n := len(again); n > 0; n-- {
		m := min(n, len(past))
		if m > 0 && slices.Equal(past[len(past)-m:], again[n-m:n]) {
			return n
		}
	}
	return 0
}

// replay holds messages back after a reconnect until it is clear which of them
// came before.
type replay[T any] struct {
	seen *history
	held []LogLine
	hold bool
}

func newReplay[T any](seen *history, again bool) *replay[T] {
	return &replay[T]{seen: seen, hold: again && seen != nil}
}

// pending reports whether messages wait for a quiet moment.
func (r *replay[T]) pending() bool { return r.hold && len(r.held) > 0 }

// maxHeld bounds what is held back.
const maxHeld = maxReplicas * historyLines / 4

// add takes a message and returns what may be yielded.
func (r *replay[T]) add(v T) []T {
	line, isLine := any(v).(LogLine)
	if !isLine || r.seen == nil {
		return []T{v}
	}
	line.Gap = false // only we say so
	if !r.hold {
		r.seen.add(line)
		return []T{any(line).(T)}
	}
	r.held = append(r.held, line)
	if len(r.held) >= maxHeld {
		return r.finish()
	}
	return nil
}

// finish ends the holding back and returns what is new, in the order it came.
func (r *replay[T]) finish() []T {
	if !r.hold {
		return nil
	}
	again := map[string][]string{}
	for _, l := range r.held {
		again[l.Name] = append(again[l.Name], l.Message)
	}
	skip, gap := map[string]int{}, map[string]bool{}
	for name, lines := range again {
		skip[name] = overlap(r.seen.lines[name], lines)
		gap[name] = skip[name] == 0 && len(r.seen.lines[name]) > 0
	}
	var out []T
	for _, l := range r.held {
		if skip[l.Name] > 0 {
			skip[l.Name]--
			continue
		}
		l.Gap, gap[l.Name] = gap[l.Name], false
		r.seen.add(l)
		out = append(out, any(l).(T))
	}
	r.hold, r.held = false, nil
	return out
}
