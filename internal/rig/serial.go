package rig

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
)

// Log keeps the output of a serial port in memory and tells waiters about it.
// It is an io.Writer that never fails. The text it keeps is made for matching:
// without carriage returns and terminal control sequences, which firmware
// prints between any two characters.
type Log struct {
	raw []io.Writer // receive every byte as it came

	mu      sync.Mutex
	text    []byte        // guarded by mu; only grows
	esc     escape        // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced when text grows
	rawErr  error         // guarded by mu; first error of a raw writer
}

// Match is where a pattern was found in a [Log].
type Match struct {
	Groups []string // the whole match, then the pattern's groups
	End    int      // offset just after the match
}

// maxMatch bounds how far back Wait looks again when more is printed.
const maxMatch = 4 << 10

// NewLog makes an empty log that passes every byte on to raw. A raw writer
// that fails is left out from then on.
func NewLog(raw ...io.Writer) *Log {
	return &Log{raw: raw, changed: make(chan struct{})}
}

// Write appends what the serial port printed. Only one goroutine may write.
func (l *Log) Write(p []byte) (int, error) {
	kept := l.raw[:0]
	for _, w := range l.raw {
		if _, err := w.Write(p); err != nil {
			l.mu.Lock()
			if l.rawErr == nil {
				l.rawErr = err
			}
			l.mu.Unlock()
			continue
		}
		kept = append(kept, w)
	}
	l.raw = kept

	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range p {
		if l.esc.next(b) == escText && b != '\r' && b != 0 {
			l.text = append(l.text, b)
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return len(p), nil
}

// Text is everything printed so far.
func (l *Log) Text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// Len is the offset at which the next character will stand.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.text)
}

// Since is everything printed at or after the offset from.
func (l *Log) Since(from int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text[min(max(from, 0), len(l.text)):])
}

// Wait waits for pattern, a regular expression, at or after the offset from.
// Use (?m) for ^ and $ to mean the ends of a line; a line whose end has not
// been printed yet can match too. A match spans at most 4 KiB.
func (l *Log) Wait(ctx context.Context, from int, pattern string) (Match, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return Match{}, fmt.Errorf("wait on serial port: %w", err)
	}
	from = max(from, 0)
	searched := from // no match lies wholly before this offset
	for {
		l.mu.Lock()
		text, changed := l.text, l.changed // text only grows: a view of it stays true
		l.mu.Unlock()
		if len(text) > searched {
			begin := max(from, bytes.LastIndexByte(text[:max(from, searched-maxMatch)], '\n')+1)
			if at := re.FindSubmatchIndex(text[begin:]); at != nil {
				match := Match{End: begin + at[1]}
				for i := 0; i < len(at); i += 2 {
					group := ""
					if at[i] >= 0 {
						group = string(text[begin+at[i] : begin+at[i+1]])
					}
					match.Groups = append(match.Groups, group)
				}
				return match, nil
			}
			searched = len(text)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Match{}, fmt.Errorf("wait for %q on serial port: %w; it printed last:\n%s", pattern, context.Cause(ctx), lastLines(string(text[min(from, len(text)):]), 15))
		}
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// escape follows a byte stream through ECMA-48 control sequences, as far as
// serial consoles use them.
type escape int

const (
	escText   escape = iota // an ordinary character
	escStart                // the byte ESC
	escInside               // within a control sequence
	escSingle               // the one byte after ESC of a two-byte sequence
	escEnd                  // the byte that ends a control sequence
)

// next takes one byte, moves on, and says what that byte was.
func (e *escape) next(b byte) escape {
	switch {
	case b == 0x1b:
		*e = escStart
	case *e == escStart && b == '[':
		*e = escInside
	case *e == escStart:
		*e = escSingle
	case *e == escInside && b >= 0x40 && b <= 0x7e:
		*e = escEnd
	case *e == escInside:
	default:
		*e = escText
	}
	return *e
}

// Readable passes serial output on to a person's terminal: colours stay, but
// nothing clears the screen, moves the cursor or changes a mode, which
// firmware does all the time.
type Readable struct {
	W io.Writer

	esc escape
	seq []byte // the control sequence so far
}

func (r *Readable) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p))
	for _, b := range p {
		switch r.esc.next(b) {
		case escText:
			if b != 0 {
				out = append(out, b)
			}
		case escStart:
			r.seq = append(r.seq[:0], b)
		case escInside:
			r.seq = append(r.seq, b)
		case escEnd:
			if b == 'm' && len(r.seq) < 32 {
				out = append(append(out, r.seq...), b)
			}
		case escSingle:
		}
	}
	if _, err := r.W.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
