package fleetlink

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
)

// halfLines is how many bytes of log lines each half of [Lines] holds.
const halfLines = 128 << 10

// Lines keeps the newest lines of the agent's log in memory, a quarter of a MiB
// at most, for support bundles; they end with the process. All methods may be
// called from any goroutine.
type Lines struct {
	later atomic.Pointer[slog.Handler]

	mu       sync.Mutex
	old, new []byte // guarded by mu; whole lines
}

// Handler is one that keeps each line and hands it to another as well, and to the
// one of Attach once there is one: also lines of loggers that were made before.
func (l *Lines) Handler(other slog.Handler) slog.Handler {
	return &tee{lines: l, now: []slog.Handler{other, slog.NewTextHandler(l, nil)}}
}

// Attach hands further lines to one more handler.
func (l *Lines) Attach(h slog.Handler) { l.later.Store(&h) }

// Write keeps one line. It is what the handler writes to.
func (l *Lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.new)+len(line) > halfLines {
		l.old, l.new = l.new, l.old[:0]
	}
	l.new = append(l.new, line[:min(len(line), halfLines)]...)
	return len(line), nil
}

// WriteTo writes the lines that are kept, oldest first.
func (l *Lines) WriteTo(w io.Writer) (int64, error) {
	l.mu.Lock()
	all := slices.Concat(l.old, l.new)
	l.mu.Unlock()
	n, err := w.Write(all)
	return int64(n), err
}

// tee is a slog.Handler for several. It is never changed.
type tee struct {
	lines *Lines
	now   []slog.Handler
	bound []func(slog.Handler) slog.Handler // With and WithGroup, for one that is attached later
}

func (t *tee) all() []slog.Handler {
	later := t.lines.later.Load()
	if later == nil {
		return t.now
	}
	h := *later
	for _, bind := range t.bound {
		h = bind(h)
	}
	return append(slices.Clone(t.now), h)
}

// Enabled implements slog.Handler.
func (t *tee) Enabled(ctx context.Context, level slog.Level) bool {
	return slices.ContainsFunc(t.all(), func(h slog.Handler) bool { return h.Enabled(ctx, level) })
}

// Handle implements slog.Handler.
func (t *tee) Handle(ctx context.Context, r slog.Record) error {
	var failed error
	for _, h := range t.all() {
		if h.Enabled(ctx, r.Level) {
			failed = errors.Join(failed, h.Handle(ctx, r.Clone()))
		}
	}
	return failed
}

// WithAttrs implements slog.Handler.
func (t *tee) WithAttrs(attrs []slog.Attr) slog.Handler {
	return t.bind(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (t *tee) WithGroup(name string) slog.Handler {
	return t.bind(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (t *tee) bind(bind func(slog.Handler) slog.Handler) slog.Handler {
	next := &tee{lines: t.lines, bound: append(slices.Clip(t.bound), bind)}
	for _, h := range t.now {
		next.now = append(next.now, bind(h))
	}
	return next
}
