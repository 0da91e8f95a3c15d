package uplink

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const (
	logRate  = 5   // lines a second
	logBurst = 200 // lines at once

	// lineMost is how many bytes of a line wait for being scrubbed: much more than
	// are sent, so that a secret that is cut off here is cut off there as well.
	lineMost = 4 * fleetapi.MaxText
)

// logs holds lines of the agent's log until they are sent.
type logs struct {
	limit *rate.Limiter

	mu      sync.Mutex
	lines   []fleetapi.LogLine // guarded by mu; at most MaxLogLines, not scrubbed yet
	dropped uint64             // guarded by mu; since the last take
}

// logHandler is a slog.Handler. It is never changed.
type logHandler struct {
	logs   *logs
	level  slog.Leveler
	prefix string // of names of attributes: the groups
	bound  string // attributes of With, as text
}

func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// Handle takes a line, or counts it if there are too many. It does no I/O,
// waits for nobody and logs nothing.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	if !h.logs.limit.Allow() {
		h.logs.drop()
		return nil
	}
	var text strings.Builder
	text.WriteString(r.Message)
	text.WriteString(h.bound)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&text, h.prefix, a)
		return text.Len() < lineMost
	})
	line := text.String()
	if len(line) > lineMost {
		line = strings.Clone(line[:lineMost]) // the rest may be large
	}
	h.logs.add(fleetapi.LogLine{At: wireTime(r.Time), Level: levelWord(r.Level), Text: line})
	return nil
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var text strings.Builder
	text.WriteString(h.bound)
	for _, a := range attrs {
		appendAttr(&text, h.prefix, a)
	}
	with := *h
	with.bound = text.String()
	return &with
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	with := *h
	if name != "" {
		with.prefix += name + "."
	}
	return &with
}

func appendAttr(text *strings.Builder, prefix string, a slog.Attr) {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range value.Group() {
			appendAttr(text, prefix, member)
		}
		return
	}
	if a.Equal(slog.Attr{}) {
		return
	}
	text.WriteString(" " + prefix + a.Key + "=" + value.String())
}

func levelWord(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}

func (l *logs) drop() {
	l.mu.Lock()
	l.dropped++
	l.mu.Unlock()
}

func (l *logs) add(line fleetapi.LogLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) >= fleetapi.MaxLogLines {
		l.dropped++
		return
	}
	l.lines = append(l.lines, line)
}

// take encodes what there is, without secrets, and begins anew.
func (l *logs) take(scrub func(string) string) [][]byte {
	l.mu.Lock()
	lines, dropped := l.lines, l.dropped
	l.lines, l.dropped = nil, 0
	l.mu.Unlock()
	if len(lines) == 0 {
		if dropped > 0 { // they are told with the next line
			l.mu.Lock()
			l.dropped += dropped
			l.mu.Unlock()
		}
		return nil
	}
	for i := range lines {
		lines[i].Text = fleetapi.CleanText(scrub(lines[i].Text), fleetapi.MaxText)
	}
	return encodeLines(lines, dropped)
}

// encodeLines makes one payload, or several if one would be too large. A line
// that cannot be sent at all counts as dropped.
func encodeLines(lines []fleetapi.LogLine, dropped uint64) [][]byte {
	raw, err := fleetapi.Encode(&fleetapi.LogLines{Lines: lines, Dropped: dropped})
	switch {
	case err == nil:
		return [][]byte{raw}
	case len(lines) <= 1:
		return nil
	}
	half := len(lines) / 2
	return slices.Concat(encodeLines(lines[:half], dropped), encodeLines(lines[half:], 0))
}
