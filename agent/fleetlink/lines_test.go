package fleetlink

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func kept(t *testing.T, l *Lines) string {
	var out strings.Builder
	_, err := l.WriteTo(&out)
	check(t, err)
	return out.String()
}

func TestLinesGoToAllAndAreKept(t *testing.T) {
	var now, later bytes.Buffer
	l := new(Lines)
	log := slog.New(l.Handler(slog.NewTextHandler(&now, &slog.HandlerOptions{Level: slog.LevelWarn})))
	bound := log.With("lease", "7").WithGroup("disk")
	bound.Info("made", "bytes", 5)
	l.Attach(slog.NewTextHandler(&later, nil))
	bound.Warn("full", "bytes", 6)
	log.Debug("nobody wants this")
	if got := now.String(); !strings.Contains(got, "msg=full lease=7 disk.bytes=6") || strings.Contains(got, "made") {
		t.Errorf("the first has %q", got)
	}
	if got := later.String(); !strings.Contains(got, "msg=full lease=7 disk.bytes=6") || strings.Contains(got, "made") {
		t.Errorf("the one that came later has %q", got)
	}
	if got := kept(t, l); strings.Count(got, "\n") != 2 || !strings.Contains(got, "msg=made lease=7 disk.bytes=5") {
		t.Errorf("kept is %q", got)
	}
}

func TestOldLinesGo(t *testing.T) {
	l := new(Lines)
	log := slog.New(l.Handler(slog.DiscardHandler))
	log.Info("first")
	for range 3 * halfLines / 1000 {
		log.Info("filler", "text", strings.Repeat("x", 1000))
	}
	log.Info("last")
	got := kept(t, l)
	if strings.Contains(got, "first") || !strings.HasSuffix(got, "msg=last\n") || len(got) > 2*halfLines || len(got) < halfLines || !strings.HasPrefix(got, "time=") {
		t.Errorf("kept are %d bytes, %q…", len(got), got[:20])
	}
	log.Info("filler", "text", strings.Repeat("y", 3*halfLines))
	if n := len(kept(t, l)); n > 2*halfLines {
		t.Errorf("after an endless line %d bytes are kept", n)
	}
}

func TestWordsAreThoseThatTheFleetKnows(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		words, err := drawWords()
		check(t, err)
		if !goodWords(words) || seen[words] {
			t.Fatalf("drawn: %q", words)
		}
		seen[words] = true
	}
	for _, bad := range []string{"", "act-add-age", "river-lemon", "river-lemon-castle-moon", "River-lemon-castle", "river lemon castle", "river--castle"} {
		if goodWords(bad) {
			t.Errorf("%q is taken for words", bad)
		}
	}
}
