package gateway

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/credential"
)

// The first byte of each message of a shell.
const (
	frameStdout  = 100 // to the client: output
	frameStderr  = 101 // to the client: output
	frameResult  = 102 // to the client: the program ended; JSON
	frameFailure = 103 // to the client: it could not be run; JSON
	frameStdin   = 104 // from the client: input; empty: its end
	frameResize  = 105 // from the client: width and height, two uint16 in big endian
)

// parseExec reads the query of a shell.
func parseExec(v url.Values) (Exec, bool, error) {
	var e Exec
	for _, name := range []string{"service", "podIndex", "tty", "stdin", "cmd0"} {
		if v.Get(name) == "" {
			return e, false, refuse(http.StatusBadRequest, "parameter "+name+" is missing")
		}
	}
	e.Service = v.Get("service")
	index, err := strconv.ParseUint(v.Get("podIndex"), 10, 31)
	if err != nil || index > maxPodIndex {
		return e, false, refuse(http.StatusBadRequest, "parameter podIndex is not a number from 0 on")
	}
	e.Index = int(index)
	var stdin bool
	for name, into := range map[string]*bool{"tty": &e.TTY, "stdin": &stdin} {
		if *into = v.Get(name) == "1"; !*into && v.Get(name) != "0" {
			return e, false, refuse(http.StatusBadRequest, "parameter "+name+" is neither 0 nor 1")
		}
	}
	for i := 0; v.Has("cmd" + strconv.Itoa(i)); i++ {
		e.Command = append(e.Command, v.Get("cmd"+strconv.Itoa(i)))
	}
	return e, stdin, nil
}

func (g *Gateway) shell(q *request) error {
	e, stdin, err := parseExec(q.r.URL.Query())
	if err != nil {
		return err
	}
	if !g.may(q, credential.ScopeShell, e.Service) {
		return errNotCovered
	}
	status, found := g.statusOf(q)
	if found == nil && !slices.ContainsFunc(status.Services, func(one lease.ServiceStatus) bool { return one.Name == e.Service }) {
		found = refuse(http.StatusNotFound, errNoService)
	}
	s, err := g.upgrade(q, g.places(found, g.streams, g.shells)...)
	if err != nil {
		return err
	}
	resize := make(chan Window, 1)
	e.Resize = resize
	in := &input{s: s, resize: resize, pipe: stdinPipe(&e, stdin)}
	s.workers.Go(in.run)
	e.Stdout, e.Stderr = &output{s, frameStdout}, &output{s, frameStderr}

	frame, result := g.exec(s, q, e, found)
	in.close()
	if cause := context.Cause(s.ctx); errors.Is(cause, errProtocol) {
		frame, result = frameFailure, cause
	}
	if frame != 0 {
		_ = s.write(websocket.MessageBinary, append([]byte{frame}, resultJSON(result)...)) // end says what became of it
	}
	s.end(websocket.StatusNormalClosure, "")
	return nil
}

// exec runs the program, unless something was found against that, and says with
// which frame it ends, 0 for none: an exit code, or why it could not be run.
func (g *Gateway) exec(s *socket, q *request, e Exec, err error) (frame byte, result any) {
	if err == nil {
		var code int
		if code, err = g.cfg.Shell.Exec(s.ctx, q.id, e); err == nil {
			return frameResult, code
		}
	}
	if s.ctx.Err() != nil {
		return 0, nil
	}
	r := refusalOf(err)
	if r.cause != nil {
		g.log.Warn("shell failed", "lease", q.id, "error", r.cause)
	}
	return frameFailure, r
}

// resultJSON is the payload of the last frame.
func resultJSON(result any) []byte {
	var out struct {
		ExitCode int    `json:"exit_code"`
		Message  string `json:"message,omitempty"`
	}
	switch v := result.(type) {
	case int:
		out.ExitCode = v
	case error:
		out.Message = v.Error()
	}
	raw, err := json.Marshal(out)
	if err != nil { // an int and a string always can
		return []byte("{}")
	}
	return raw
}

// stdinPipe gives the program its input, if the client wants to type.
func stdinPipe(e *Exec, stdin bool) *io.PipeWriter {
	if !stdin {
		return nil
	}
	r, w := io.Pipe()
	e.Stdin = r
	return w
}

// input reads what the client of a shell sends.
type input struct {
	s      *socket
	resize chan Window    // the newest size only
	pipe   *io.PipeWriter // nil: no input is wanted
}

// run reads until the peer is gone. A program that does not read holds the
// client back, for stdinWithin.
func (in *input) run() {
	defer in.close()
	for {
		data, err := in.s.read()
		if err != nil {
			in.s.stop(errGone)
			return
		}
		if err := in.take(data); err != nil {
			in.s.stop(fmt.Errorf("%w: %w", errProtocol, err)) // the client is told
			in.drain()
			return
		}
	}
}

// drain reads on a little, so that the client can answer the end.
func (in *input) drain() {
	for range maxDrainFrames {
		if _, err := in.s.read(); err != nil {
			return
		}
	}
}

func (in *input) take(data []byte) error {
	if len(data) == 0 {
		return errors.New("a frame is empty")
	}
	payload := data[1:]
	switch data[0] {
	case frameStdin:
		switch {
		case in.pipe == nil:
		case len(payload) == 0:
			in.close()
		default:
			in.feed(payload)
		}
	case frameResize:
		if len(payload) != 4 {
			return fmt.Errorf("a resize frame has %d bytes, want 4", len(payload))
		}
		select {
		case <-in.resize:
		default:
		}
		in.resize <- Window{binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])}
	default:
		return fmt.Errorf("frame %d is unknown", data[0])
	}
	return nil
}

// feed gives the program its input. An error means that it reads no more, which
// is its right.
func (in *input) feed(payload []byte) {
	late := time.AfterFunc(stdinWithin, func() {
		in.s.stop(errSlow)
		in.close()
	})
	defer late.Stop()
	_, _ = in.pipe.Write(payload)
}

func (in *input) close() {
	if in.pipe != nil {
		in.pipe.Close()
	}
}

// output is where a program writes.
type output struct {
	s    *socket
	code byte
}

func (o *output) Write(p []byte) (int, error) {
	done := 0
	for part := range slices.Chunk(p, maxOutputBytes) {
		if err := o.s.write(websocket.MessageBinary, append([]byte{o.code}, part...)); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}
