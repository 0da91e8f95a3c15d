package gatewayclient

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"sync"

	"github.com/coder/websocket"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
)

// FrameCode is the first byte of every message of a shell.
type FrameCode byte

// The frames.
const (
	FrameStdout  FrameCode = 100 // to the tenant: output
	FrameStderr  FrameCode = 101 // to the tenant: output
	FrameResult  FrameCode = 102 // to the tenant: the program ended; JSON
	FrameFailure FrameCode = 103 // to the tenant: it could not be run; JSON
	FrameStdin   FrameCode = 104 // to the provider: input
	FrameResize  FrameCode = 105 // to the provider: width and height, two uint16 in big endian
)

// ShellConfig says what to run where.
type ShellConfig struct {
	Service string   // required
	Replica int      // from 0
	Command []string // required; the program and its arguments
	TTY     bool     // with a terminal: output comes on Stdout alone
	// Stdin, if set, is copied to the program. A Read that blocks outlives the
	// call, and its bytes are lost. Its end is told: as Ctrl-D under a terminal,
	// else by an empty frame, which croft's provider takes as the end of input
	// and others ignore.
	Stdin io.Reader
	// Stdout and Stderr get what the program writes, as it is; nil discards.
	Stdout, Stderr io.Writer
	// Resize, if set, tells the size of the terminal whenever it changes, and at
	// first. It is read until the call returns.
	Resize <-chan WindowSize
}

// WindowSize is that of a terminal, in characters.
type WindowSize struct{ Width, Height uint16 }

// ExitError reports a program that ran and ended with another code than 0.
type ExitError struct {
	Code    int
	Message string // the provider's words; usually empty
}

func (e *ExitError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("program ended with code %d", e.Code)
	}
	return fmt.Sprintf("program ended with code %d: %s", e.Code, e.Message)
}

// ErrNotRun reports a program that could not be run.
var ErrNotRun = errors.New("program could not be run")

// Shell runs a program in a replica and returns when it has ended: nil, or
// [*ExitError]. It is no more repeated after a lost connection: the program may
// have done its work.
func (g *Gateway) Shell(ctx context.Context, id akash.LeaseID, cfg ShellConfig) error {
	if cfg.Service == "" || len(cfg.Command) == 0 || cfg.Replica < 0 {
		return &croft.Error{Kind: croft.KindUsage, Err: errors.New("shell: service or command is missing"), Remedy: "name both"}
	}
	s, err := g.open(ctx, "run "+strconv.Quote(cfg.Command[0]), leasePath(id)+"/shell", cfg.query())
	if err != nil {
		return err
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	defer s.close()
	if cfg.Stdin != nil {
		go cfg.input(s) // nobody can end a Read: it is left to its owner
	}
	if cfg.Resize != nil {
		workers.Go(func() { cfg.resizes(s) })
	}
	for {
		kind, data, err := s.read()
		if errors.Is(err, io.EOF) {
			return s.g.garbled(s.op, errors.New("it ended without a result"))
		}
		if err != nil {
			return err
		}
		if kind != websocket.MessageBinary {
			return s.g.garbled(s.op, errors.New("message is text, not bytes"))
		}
		done, err := cfg.output(data)
		if errors.Is(err, ErrProtocol) {
			return s.g.garbled(s.op, err)
		}
		if errors.Is(err, ErrNotRun) {
			return s.g.wrap(s.op, croft.KindRefused, err, "look at the service's status and at the command's name")
		}
		if done || err != nil {
			return err
		}
	}
}

func (c ShellConfig) query() url.Values {
	q := url.Values{
		"service": {c.Service}, "podIndex": {strconv.Itoa(c.Replica)}, "tty": {bit(c.TTY)}, "stdin": {bit(c.Stdin != nil)},
	}
	for i, arg := range c.Command {
		q.Set("cmd"+strconv.Itoa(i), arg)
	}
	return q
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// output deals with one frame of the provider.
func (c ShellConfig) output(data []byte) (done bool, err error) {
	f, err := parseFrame(data)
	if err != nil {
		return false, err
	}
	switch f.code {
	case FrameStdout:
		return false, write(c.Stdout, f.payload)
	case FrameStderr:
		return false, write(c.Stderr, f.payload)
	case FrameFailure:
		return true, fmt.Errorf("%w: %s", ErrNotRun, oneLine(f.result.Message))
	default: // FrameResult: parseFrame lets no other through
		if f.result.ExitCode != 0 {
			return true, &ExitError{Code: f.result.ExitCode, Message: oneLine(f.result.Message)}
		}
		return true, nil
	}
}

func write(w io.Writer, p []byte) error {
	if w == nil {
		return nil
	}
	if _, err := w.Write(p); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// input copies Stdin, in frames of its own.
func (c ShellConfig) input(s *stream) {
	buf := make([]byte, 1+16<<10)
	buf[0] = byte(FrameStdin)
	for {
		n, err := c.Stdin.Read(buf[1:])
		if n > 0 && s.write(buf[:1+n]) != nil {
			return
		}
		if err != nil {
			end := []byte{byte(FrameStdin)}
			if c.TTY {
				end = append(end, 4) // Ctrl-D
			}
			_ = s.write(end) // the reader of the stream tells if it is broken
			return
		}
	}
}

func (c ShellConfig) resizes(s *stream) {
	for {
		select {
		case size, open := <-c.Resize:
			if !open || s.write(resizeFrame(size)) != nil {
				return
			}
		case <-s.ctx.Done():
			return
		}
	}
}

func resizeFrame(size WindowSize) []byte {
	frame := binary.BigEndian.AppendUint16([]byte{byte(FrameResize)}, size.Width)
	return binary.BigEndian.AppendUint16(frame, size.Height)
}

// frame is one message of a shell to the tenant.
type frame struct {
	code    FrameCode
	payload []byte      // of output
	result  frameResult // of FrameResult and FrameFailure
}

type frameResult struct {
	ExitCode int    `json:"exit_code"`
	Message  string `json:"message,omitempty"`
}

// parseFrame reads a message to the tenant. Its errors are [ErrProtocol].
func parseFrame(data []byte) (frame, error) {
	if len(data) == 0 {
		return frame{}, fmt.Errorf("%w: frame is empty", ErrProtocol)
	}
	f := frame{code: FrameCode(data[0])}
	switch f.code {
	case FrameStdout, FrameStderr:
		f.payload = data[1:]
	case FrameResult, FrameFailure:
		if err := json.Unmarshal(data[1:], &f.result); err != nil {
			return frame{}, fmt.Errorf("%w: result of the program: %w", ErrProtocol, err)
		}
	case FrameStdin, FrameResize:
		return frame{}, fmt.Errorf("%w: frame %d goes the other way", ErrProtocol, f.code)
	default:
		return frame{}, fmt.Errorf("%w: frame %d is unknown", ErrProtocol, f.code)
	}
	return f, nil
}

// encode is the message of a frame.
func (f frame) encode() ([]byte, error) {
	switch f.code {
	case FrameResult, FrameFailure:
		result, err := json.Marshal(f.result)
		return append([]byte{byte(f.code)}, result...), err
	default:
		return slices.Concat([]byte{byte(f.code)}, f.payload), nil
	}
}
