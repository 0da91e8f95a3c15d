package diary

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/croft-cloud/croft/agent/lease"
)

func TestEventsAreNumberedBoundedAndKept(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	d := Open(dir, log)
	for i := range 3*keepEvents + 7 {
		d.Add(lease.Event{Reason: "Test", Note: fmt.Sprint(i)})
	}
	d.End()
	again := Open(dir, log)
	events, more := again.After(0)
	if len(events) != keepEvents || events[len(events)-1].Note != fmt.Sprint(3*keepEvents+6) || more == nil {
		t.Fatalf("%d events, newest %+v", len(events), events[len(events)-1])
	}
	again.Add(lease.Event{Reason: "Test"})
	if newest, _ := again.After(events[len(events)-1].Seq); len(newest) != 1 || newest[0].Seq <= events[len(events)-1].Seq {
		t.Errorf("events after a restart: %+v", newest)
	}
	if info, err := os.Stat(filepath.Join(dir, "events")); err != nil || info.Mode().Perm() != 0o600 || info.Size() > 4*keepEvents*120 {
		t.Errorf("file %v, %v", info, err)
	}
	for i := 1; i < len(events); i++ {
		if events[i].Seq != events[i-1].Seq+1 {
			t.Fatalf("event %d follows %d", events[i].Seq, events[i-1].Seq)
		}
	}
}

func TestAnEventTornByAPowerCutIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	d := Open(dir, log)
	for i := range 3 {
		d.Add(lease.Event{Reason: "Test", Note: fmt.Sprint(i)})
	}
	d.End()
	path := filepath.Join(dir, "events")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text[:len(text)-9], 0o600); err != nil {
		t.Fatal(err)
	}
	again := Open(dir, log)
	again.Add(lease.Event{Reason: "Test", Note: "after"})
	again.End()
	events, _ := Open(dir, log).After(0)
	var notes []string
	for i, e := range events {
		notes = append(notes, e.Note)
		if i > 0 && e.Seq <= events[i-1].Seq {
			t.Errorf("event %d follows %d", e.Seq, events[i-1].Seq)
		}
	}
	if !slices.Equal(notes, []string{"0", "1", "after"}) {
		t.Errorf("events %v", notes)
	}
}

func TestALongNoteIsCutBetweenCharacters(t *testing.T) {
	d := Open(t.TempDir(), slog.New(slog.DiscardHandler))
	d.Add(lease.Event{Note: strings.Repeat("ü", maxNote)})
	d.Add(lease.Event{Note: "x" + strings.Repeat("ü", maxNote)})
	events, _ := d.After(0)
	for _, e := range events {
		if !utf8.ValidString(e.Note) || len(e.Note) > maxNote+len("…") || !strings.HasSuffix(e.Note, "ü…") {
			t.Errorf("note of %d bytes ends in %q", len(e.Note), e.Note[len(e.Note)-8:])
		}
	}
	d.End()
}
