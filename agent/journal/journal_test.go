package journal

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The suite that a journal in a file and one in memory both pass.
func TestJournal(t *testing.T) {
	for _, kind := range []struct {
		name string
		make func(t *testing.T) *Journal
	}{
		{"in a file", func(t *testing.T) *Journal { return mustOpen(t, Config{Path: newPath(t)}) }},
		{"in memory", func(*testing.T) *Journal { return NewMemory() }},
	} {
		t.Run(kind.name, func(t *testing.T) { suite(t, kind.make) })
	}
}

func suite(t *testing.T, fresh func(t *testing.T) *Journal) {
	t.Run("a new journal is empty", func(t *testing.T) {
		j := fresh(t)
		if found, err := j.Get("slot", new(string)); found || err != nil {
			t.Errorf("Get says %v, %v", found, err)
		}
		if keys := j.Keys(""); len(keys) != 0 {
			t.Errorf("keys are %q", keys)
		}
		if events := slices.Collect(j.Events(0)); len(events) != 0 {
			t.Errorf("events are %v", events)
		}
		if d := j.Damage(); len(d) != 0 {
			t.Errorf("damage is %v", d)
		}
		if j.ID() == "" || j.ID() == fresh(t).ID() {
			t.Errorf("ID %q is not its own", j.ID())
		}
	})
	t.Run("the last value of a key wins", func(t *testing.T) {
		j := fresh(t)
		for _, slot := range []string{"a", "b"} {
			if err := j.Put("slot", slot); err != nil {
				t.Fatal(err)
			}
		}
		wantValue(t, j, "slot", "b")
	})
	t.Run("null is a value", func(t *testing.T) {
		j := fresh(t)
		if err := j.Put("slot", nil); err != nil {
			t.Fatal(err)
		}
		if found, err := j.Get("slot", new(any)); !found || err != nil {
			t.Errorf("Get says %v, %v", found, err)
		}
	})
	t.Run("a deleted key is gone", func(t *testing.T) {
		j := fresh(t)
		if err := errors.Join(j.Put("slot", "a"), j.Delete("slot"), j.Delete("slot"), j.Delete("never")); err != nil {
			t.Fatal(err)
		}
		if found, err := j.Get("slot", new(string)); found || err != nil {
			t.Errorf("Get says %v, %v", found, err)
		}
	})
	t.Run("keys are listed by prefix in order", func(t *testing.T) {
		j := fresh(t)
		for _, key := range []string{"lease/2", "update/digest", "lease/1"} {
			if err := j.Put(key, key); err != nil {
				t.Fatal(err)
			}
		}
		if got := j.Keys("lease/"); !slices.Equal(got, []string{"lease/1", "lease/2"}) {
			t.Errorf("keys are %q", got)
		}
	})
	t.Run("a value of another type is an error", func(t *testing.T) {
		j := fresh(t)
		if err := j.Put("slot", "a"); err != nil {
			t.Fatal(err)
		}
		if found, err := j.Get("slot", new(int)); !found || err == nil {
			t.Errorf("Get says %v, %v", found, err)
		}
	})
	t.Run("events are numbered, dated and in order", func(t *testing.T) {
		j := fresh(t)
		begin := time.Now().UTC().Round(0)
		var seqs []uint64
		for i := range 5 {
			seqs = append(seqs, mustEvent(t, j, "started", i))
			if err := j.Put("count", i); err != nil {
				t.Fatal(err)
			}
		}
		for skip := range 6 {
			after := uint64(0)
			if skip > 0 {
				after = seqs[skip-1]
			}
			got := slices.Collect(j.Events(after))
			if len(got) != 5-skip {
				t.Fatalf("%d events after %d", len(got), after)
			}
			for i, e := range got {
				if e.Seq != seqs[skip+i] || e.Kind != "started" || string(e.Fields) != fmt.Sprint(skip+i) {
					t.Errorf("event is %+v", e)
				}
				if e.At.Before(begin) || e.At.After(time.Now()) || e.At.Location() != time.UTC {
					t.Errorf("event's time is %v", e.At)
				}
			}
		}
		if got := slices.Collect(j.Events(math.MaxUint64 - 1)); len(got) != 0 {
			t.Errorf("events after the last are %v", got)
		}
		for range j.Events(0) {
			break // an iteration may end early
		}
	})
	t.Run("what cannot be kept is refused and changes nothing", func(t *testing.T) {
		j := fresh(t)
		seq := mustEvent(t, j, "started", nil)
		big := strings.Repeat("x", maxLine)
		for _, err := range []error{
			j.Put("", 1), j.Put("two words", 1), j.Put("naïve", 1), j.Put(strings.Repeat("k", maxName+1), 1),
			j.Put("f", func() {}), second(j.Event("", nil)), second(j.Event("nan", math.NaN())),
		} {
			if err == nil {
				t.Error("no error")
			}
		}
		for _, err := range []error{j.Put("big", big), second(j.Event("big", big))} {
			if !errors.Is(err, ErrTooLarge) {
				t.Errorf("error is %v", err)
			}
		}
		if next := mustEvent(t, j, "started", nil); next != seq+1 {
			t.Errorf("number %d follows %d", next, seq)
		}
		if keys := j.Keys(""); len(keys) != 0 {
			t.Errorf("keys are %q", keys)
		}
	})
	t.Run("all values together have a limit", func(t *testing.T) {
		j := fresh(t)
		value := strings.Repeat("x", 60<<10)
		var err error
		n := 0
		for ; err == nil && n < 100; n++ {
			err = j.Put(fmt.Sprintf("key/%02d", n), value)
		}
		if !errors.Is(err, ErrTooLarge) || n != 18 {
			t.Fatalf("put %d ends with %v", n, err)
		}
		if err := errors.Join(j.Put("key/00", value[1:]), j.Delete("key/01"), j.Put("key/17", value)); err != nil {
			t.Errorf("replacing and deleting do not free room: %v", err)
		}
	})
	t.Run("after Close nothing is written and all can be read", func(t *testing.T) {
		j := fresh(t)
		if err := errors.Join(j.Put("slot", "a"), j.Close(), j.Close()); err != nil {
			t.Fatal(err)
		}
		wantValue(t, j, "slot", "a")
		if err := j.Put("slot", "b"); !errors.Is(err, ErrClosed) {
			t.Errorf("Put says %v", err)
		}
		wantValue(t, j, "slot", "a")
	})
	t.Run("many goroutines may write and read", func(t *testing.T) {
		j := fresh(t)
		var all sync.WaitGroup
		for g := range 4 {
			all.Go(func() {
				for i := range 20 {
					if _, err := j.Event("tick", g); err != nil {
						t.Error(err)
					}
					if err := j.Put(fmt.Sprint("g", g), i); err != nil {
						t.Error(err)
					}
					for range j.Events(0) {
						j.Keys("g")
					}
				}
			})
		}
		all.Wait()
		if got := len(slices.Collect(j.Events(0))); got != 80 {
			t.Errorf("%d events", got)
		}
	})
	t.Run("compaction keeps the newest events of each kind and every value", func(t *testing.T) {
		j := fresh(t)
		j.keep, j.maxBytes, j.compactAt = 3, 4<<10, 4<<10
		mustEvent(t, j, "rare", "first of all")
		if err := j.Put("slot", "a"); err != nil {
			t.Fatal(err)
		}
		var last uint64
		for i := range 200 {
			last = mustEvent(t, j, "often", i)
		}
		var rare, often int
		for e := range j.Events(0) {
			switch e.Kind {
			case "rare":
				rare++
			case "often":
				often++
			}
		}
		if rare != 1 || often < 3 || often > 60 {
			t.Errorf("%d rare and %d frequent events are left", rare, often)
		}
		if j.end > 5<<10 {
			t.Errorf("journal has %d bytes", j.end)
		}
		if got := slices.Collect(j.Events(last - 1)); len(got) != 1 || got[0].Seq != last {
			t.Errorf("newest event is %v", got)
		}
		wantValue(t, j, "slot", "a")
	})
	t.Run("events of many kinds have a limit together", func(t *testing.T) {
		j := fresh(t)
		j.maxBytes, j.compactAt = 4<<10, 4<<10
		for i := range 200 {
			mustEvent(t, j, Kind(fmt.Sprint("kind_", i)), strings.Repeat("x", 100))
		}
		if n := len(slices.Collect(j.Events(0))); n > 60 || n < 5 || j.end > 8<<10 {
			t.Errorf("%d events in %d bytes are left", n, j.end)
		}
	})
}

func TestReopenedJournalIsTheSame(t *testing.T) {
	path := newPath(t)
	j := mustOpen(t, Config{Path: path})
	id := j.ID()
	fill(t, j)
	for range 3 {
		want := contents(j)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = mustOpen(t, Config{Path: path})
		if diff := cmp.Diff(want, contents(j)); diff != "" {
			t.Errorf("contents changed (-before +after):\n%s", diff)
		}
		if j.ID() != id || len(j.Damage()) != 0 {
			t.Errorf("ID is %q, was %q; damage is %v", j.ID(), id, j.Damage())
		}
		mustEvent(t, j, "reopened", nil)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("file is %v, %v", info.Mode(), err)
	}
}

func TestPuttingTheSameValueWritesNothing(t *testing.T) {
	path := newPath(t)
	j := mustOpen(t, Config{Path: path})
	for _, value := range []any{"a<b>", nil, map[string]int{"x": 1, "y": 2}} {
		if err := j.Put("k", value); err != nil {
			t.Fatal(err)
		}
		before := j.end
		if err := j.Put("k", value); err != nil || j.end != before {
			t.Errorf("second Put of %v: %v, file grew by %d bytes", value, err, j.end-before)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = mustOpen(t, Config{Path: path})
		if err := j.Put("k", value); err != nil || j.end != before {
			t.Errorf("Put of %v after reopening: %v, file grew by %d bytes", value, err, j.end-before)
		}
	}
}

func TestCompactionSurvivesReopening(t *testing.T) {
	path := newPath(t)
	cfg := Config{Path: path, MaxBytes: 4 << 10, Keep: 3}
	j := mustOpen(t, cfg)
	id := j.ID()
	var last uint64
	for i := range 300 {
		last = mustEvent(t, j, "tick", i)
		if err := errors.Join(j.Put("count", i), j.Put(fmt.Sprint("key/", i%7), i)); err != nil {
			t.Fatal(err)
		}
		if i%50 != 0 {
			continue
		}
		want := contents(j)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = mustOpen(t, cfg)
		if diff := cmp.Diff(want, contents(j)); diff != "" {
			t.Fatalf("after %d rounds contents changed (-before +after):\n%s", i, diff)
		}
	}
	if j.ID() != id {
		t.Errorf("ID is %q, was %q", j.ID(), id)
	}
	if next := mustEvent(t, j, "tick", nil); next <= last {
		t.Errorf("number %d follows %d", next, last)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v", entries, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Run("a missing path", func(t *testing.T) {
		if _, err := Open(Config{}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("a directory", func(t *testing.T) {
		if _, err := Open(Config{Path: t.TempDir()}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("a parent that is a file", func(t *testing.T) {
		path := newPath(t)
		mustOpen(t, Config{Path: path})
		if _, err := Open(Config{Path: filepath.Join(path, "x")}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("a journal in use, also after compaction", func(t *testing.T) {
		cfg := Config{Path: newPath(t), MaxBytes: 1 << 10}
		j := mustOpen(t, cfg)
		for range 30 {
			if _, err := Open(cfg); !errors.Is(err, ErrInUse) {
				t.Fatalf("error is %v", err)
			}
			mustEvent(t, j, "tick", nil)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, cfg)
	})
}

// content is all a journal holds.
type content struct {
	State  map[string]string
	Events []Event
}

func contents(j *Journal) content {
	c := content{State: map[string]string{}, Events: slices.Collect(j.Events(0))}
	for _, key := range j.Keys("") {
		c.State[key] = string(j.state[key].value)
	}
	return c
}

// fill writes one of everything.
func fill(t *testing.T, j *Journal) {
	t.Helper()
	mustEvent(t, j, "boot_confirmed", map[string]any{"slot": "b", "took": 1.5})
	if err := errors.Join(
		j.Put("slot", "a"), j.Put("gone", 1), j.Put("slot", "b"), j.Delete("gone"),
		j.Put("escape", "\n\x00\"<&>\u2028 00000000 {}"),
	); err != nil {
		t.Fatal(err)
	}
	mustEvent(t, j, "update_failed", "digest")
	mustEvent(t, j, "update_failed", nil)
}

func mustOpen(t *testing.T, cfg Config) *Journal {
	t.Helper()
	j, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func newPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "croft", "agent.journal")
}

func mustEvent(t *testing.T, j *Journal, kind Kind, fields any) uint64 {
	t.Helper()
	seq, err := j.Event(kind, fields)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func wantValue(t *testing.T, j *Journal, key, want string) {
	t.Helper()
	var got string
	if found, err := j.Get(key, &got); !found || err != nil || got != want {
		t.Errorf("Get(%s) is %q, %v, %v; want %q", key, got, found, err, want)
	}
}

func second(_ uint64, err error) error { return err }
