package ownerpage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"rsc.io/qr"

	"github.com/croft-cloud/croft/agent/ownerpage/figures"
)

// TextConfig is copied by [NewTextScreen], checked once, and never changed
// afterwards.
type TextConfig struct {
	Source Source       // required
	Out    io.Writer    // required; each block of text is one Write
	Log    *slog.Logger // default: no log
}

// TextScreen writes the status to a serial port, whenever it changed in
// substance, for a person with a terminal of 80 columns and a dark background.
type TextScreen struct {
	source Source
	out    io.Writer
	log    *slog.Logger
}

// NewTextScreen checks cfg.
func NewTextScreen(cfg TextConfig) (*TextScreen, error) {
	if cfg.Source == nil || cfg.Out == nil {
		return nil, errors.New("source or output of the text screen is missing")
	}
	return &TextScreen{source: cfg.Source, out: cfg.Out, log: logger(cfg.Log)}, nil
}

// settle is how long a change waits for the next: at start-up many come at
// once, and a serial port is slow.
const settle = 300 * time.Millisecond

// Run writes until ctx ends, and returns nil then. An output that fails is
// logged once and tried again at the next change.
func (t *TextScreen) Run(ctx context.Context) error {
	var last, trouble string
	for {
		changed := t.source.Changed()
		text, err := Text(t.source.Status())
		if err == nil && text != last {
			if _, err = t.out.Write([]byte(text)); err == nil {
				last = text
			}
		}
		switch {
		case err == nil:
			trouble = ""
		case err.Error() != trouble:
			trouble = err.Error()
			t.log.Warn("text screen not written", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
	}
}

// textWidth is how wide a line may be.
const textWidth = 79

// Text is the status as a block of lines, with the QR code of the claim URL
// drawn in half blocks if there is one to claim with. It is a pure function, and
// leaves out what moves all the time.
func Text(s Status) (string, error) {
	v := newView(s)
	var code []string
	if v.ClaimURL != "" {
		var err error
		if code, err = halfBlocks(v.ClaimURL); err != nil {
			return "", err
		}
		if utf8.RuneCountInString(code[0]) > textWidth/2 {
			code = nil // a URL this long is typed, not scanned
		}
	}
	width := textWidth - 2
	if len(code) > 0 {
		width -= utf8.RuneCountInString(code[0]) + 2
	}
	var words []string
	say := func(s string) { words = append(words, wrapText(s, width)...) }
	gap := func() { words = append(words, "") }

	say(v.Name)
	say(v.Software)
	gap()
	say(v.Headline)
	for _, s := range v.Wrong {
		say("! " + s)
	}
	say(v.Explain)
	if v.Work != nil {
		say(v.Work.Line)
		say(v.Work.Sentence)
	}
	say(v.LastUpdate)
	say(v.FleetLine)
	if len(v.Addresses) > 0 {
		gap()
		say(sayOpen + ":")
		for _, a := range v.Addresses {
			say("  " + figures.Line(a))
		}
	}
	if v.Claim != "" {
		gap()
		say(sayClaimOnly + ": " + v.Claim.Shown())
		if v.ClaimSite != "" {
			say(fmt.Sprintf(sayClaimSerial, v.ClaimSite))
		}
	}

	rule := strings.Repeat("-", textWidth)
	var out strings.Builder
	out.WriteString("\n" + rule + "\n")
	top := max(0, (len(code)-len(words))/2) // words stand in the middle beside the code
	for i := range max(len(code), len(words)) {
		line := "  "
		if len(code) > 0 {
			if i < len(code) {
				line += code[i]
			} else {
				line += strings.Repeat(" ", utf8.RuneCountInString(code[0]))
			}
			line += "  "
		}
		if j := i - top; j >= 0 && j < len(words) {
			line += words[j]
		}
		out.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	out.WriteString(rule + "\n\n")
	return out.String(), nil
}

// halfBlocks draws the QR code of text, two rows of modules a line, light
// modules lit, with half the border the standard asks for.
func halfBlocks(text string) ([]string, error) {
	const border = quietZone / 2
	q, err := qr.Encode(text, qr.L)
	if err != nil {
		return nil, fmt.Errorf("encode QR code: %w", err)
	}
	var lines []string
	for y := -border; y < q.Size+border; y += 2 {
		var line strings.Builder
		for x := -border; x < q.Size+border; x++ {
			switch upper, lower := q.Black(x, y), q.Black(x, y+1) || y+1 >= q.Size+border; {
			case upper && lower:
				line.WriteByte(' ')
			case upper:
				line.WriteRune('▄')
			case lower:
				line.WriteRune('▀')
			default:
				line.WriteRune('█')
			}
		}
		lines = append(lines, line.String())
	}
	return lines, nil
}

// wrapText breaks s between words into lines of at most width characters;
// further lines are indented like the first.
func wrapText(s string, width int) []string {
	indent := s[:len(s)-len(strings.TrimLeft(s, " !"))]
	next := strings.Repeat(" ", len(indent))
	var lines []string
	line, empty := indent, true
	for word := range strings.FieldsSeq(s[len(indent):]) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line, empty = append(lines, line), next, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	if empty {
		return lines
	}
	return append(lines, line)
}
