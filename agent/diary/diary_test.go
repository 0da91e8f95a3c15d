package diary

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

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
