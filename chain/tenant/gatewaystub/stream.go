package gatewaystub

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/coder/websocket"

	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// closeInternal is how a gateway ends a websocket with an error of its own.
const closeInternal = 4000

// upgrade accepts a websocket whose context ends when the streams are dropped.
func (s *Server) upgrade(q *request) (*websocket.Conn, context.Context, func(), bool) {
	conn, err := websocket.Accept(q.w, q.r, nil)
	if err != nil {
		return nil, nil, nil, false // Accept has answered
	}
	s.mu.Lock()
	drop := s.drop
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-drop:
			cancel()
		case <-stop:
		}
	})
	return conn, ctx, func() {
		close(stop)
		watcher.Wait()
		cancel()
		conn.CloseNow() //nolint:errcheck // it is over either way
	}, true
}

// services reads which services are wanted: both spellings count, none is all.
func services(q url.Values) []string {
	list := q.Get("service")
	if list == "" {
		list = q.Get("services")
	}
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func (s *Server) streamLogs(q *request) {
	want := services(q.r.URL.Query())
	tail := -1
	if text := q.r.URL.Query().Get("tail"); text != "" {
		var err error
		if tail, err = strconv.Atoi(text); err != nil || tail < -1 {
			http.Error(q.w, "tail is not a number from -1 on", http.StatusBadRequest)
			return
		}
	}
	follow(s, q, tail, func() []gatewayclient.LogLine { return s.logs }, func(l gatewayclient.LogLine) (string, bool) {
		return l.Name, len(want) == 0 || slices.ContainsFunc(want, func(service string) bool { return strings.HasPrefix(l.Name, service+"-") })
	})
}

func (s *Server) streamEvents(q *request) {
	follow(s, q, -1, func() []gatewayclient.Event { return s.events }, func(e gatewayclient.Event) (string, bool) { return e.Object.Name, true })
}

// follow streams what all has, the last tail of each name first, and goes on
// with what is added. all is called under s.mu.
func follow[T any](s *Server, q *request, tail int, all func() []T, wanted func(T) (name string, ok bool)) {
	on := q.r.URL.Query().Get("follow") == "true"
	conn, ctx, done, ok := s.upgrade(q)
	if !ok {
		return
	}
	defer done()
	ctx = conn.CloseRead(ctx) // answers pings, notices a peer that goes
	skip := map[string]int{}
	sent := 0
	for first := true; ; first = false {
		s.mu.Lock()
		fresh := slices.Clone(all()[sent:])
		changed := s.changed
		s.mu.Unlock()
		sent += len(fresh)
		if first && tail >= 0 {
			for _, v := range fresh {
				name, _ := wanted(v)
				skip[name]++
			}
			for name, n := range skip {
				skip[name] = max(n-tail, 0)
			}
		}
		for _, v := range fresh {
			name, ok := wanted(v)
			if skip[name] > 0 {
				skip[name]--
				continue
			}
			if !ok {
				continue
			}
			raw, err := json.Marshal(v)
			if err != nil || conn.Write(ctx, websocket.MessageText, raw) != nil {
				return
			}
		}
		if !on {
			conn.Close(websocket.StatusNormalClosure, "")
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// shell runs one of the stub's programs.
func (s *Server) shell(q *request) {
	v := q.r.URL.Query()
	var argv []string
	for i := 0; v.Has("cmd" + strconv.Itoa(i)); i++ {
		argv = append(argv, v.Get("cmd"+strconv.Itoa(i)))
	}
	for _, name := range []string{"service", "podIndex", "tty", "stdin"} {
		if v.Get(name) == "" {
			http.Error(q.w, "parameter "+name+" is missing", http.StatusBadRequest)
			return
		}
	}
	if len(argv) == 0 {
		http.Error(q.w, "parameter cmd0 is missing", http.StatusBadRequest)
		return
	}
	conn, ctx, done, ok := s.upgrade(q)
	if !ok {
		return
	}
	defer done()
	if _, ok := s.lease(q).Services[v.Get("service")]; !ok {
		conn.Close(closeInternal, "no such service exists with that name")
		return
	}
	send := func(code gatewayclient.FrameCode, payload []byte) bool {
		return conn.Write(ctx, websocket.MessageBinary, slices.Concat([]byte{byte(code)}, payload)) == nil
	}
	result := func(code gatewayclient.FrameCode, exit int, message string) {
		raw, err := json.Marshal(map[string]any{"exit_code": exit, "message": message})
		if err == nil && send(code, raw) {
			conn.Close(websocket.StatusNormalClosure, "")
		}
	}
	switch argv[0] {
	case "echo":
		ctx = conn.CloseRead(ctx)
		send(gatewayclient.FrameStdout, []byte(strings.Join(argv[1:], " ")+"\n"))
		result(gatewayclient.FrameResult, 0, "")
	case "fail":
		ctx = conn.CloseRead(ctx)
		n, err := strconv.Atoi(argv[min(1, len(argv)-1)])
		if err != nil {
			n = 1
		}
		send(gatewayclient.FrameStderr, []byte("failing\n"))
		result(gatewayclient.FrameResult, n, "command ended")
	case "cat", "size":
		s.interact(ctx, conn, argv[0], send, result)
	default:
		ctx = conn.CloseRead(ctx)
		result(gatewayclient.FrameFailure, 0, "no such program")
	}
}

// interact reads what the tenant sends, for programs that do.
func (s *Server) interact(ctx context.Context, conn *websocket.Conn, program string, send func(gatewayclient.FrameCode, []byte) bool, result func(gatewayclient.FrameCode, int, string)) {
	for {
		_, data, err := conn.Read(ctx)
		if err != nil || len(data) == 0 {
			return
		}
		code, payload := gatewayclient.FrameCode(data[0]), data[1:]
		switch {
		case code == gatewayclient.FrameResize && len(payload) == 4:
			if program == "size" {
				send(gatewayclient.FrameStdout, fmt.Appendf(nil, "%dx%d\n", binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])))
				result(gatewayclient.FrameResult, 0, "")
				return
			}
		case code != gatewayclient.FrameStdin:
			result(gatewayclient.FrameFailure, 0, io.ErrUnexpectedEOF.Error())
			return
		case program == "cat" && (len(payload) == 0 || slices.Equal(payload, []byte{4})):
			result(gatewayclient.FrameResult, 0, "")
			return
		case program == "cat":
			if !send(gatewayclient.FrameStdout, payload) {
				return
			}
		}
	}
}
