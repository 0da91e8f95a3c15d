package spool

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// memory is what a journal would keep.
type memory struct {
	journal uint64
	err     error
}

func testConfig(t testing.TB, m *memory) Config {
	return Config{
		Dir: filepath.Join(t.TempDir(), "spool"), Budget: 1 << 20, MaxAge: time.Hour, Log: slog.New(slog.DiscardHandler),
		Clock:   func() (time.Time, bool) { return time.Unix(1e9, 0), true },
		Journal: m.journal,
		Remember: func(journal uint64) error {
			if m.err == nil {
				m.journal = journal
			}
			return m.err
		},
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// text is a build function that makes a payload of a text.
func text(s string) func(fleetapi.Origin) ([]byte, error) {
	return func(fleetapi.Origin) ([]byte, error) { return []byte(s), nil }
}

func put(t testing.TB, s *Spool, c Class, what string) fleetapi.Origin {
	t.Helper()
	o, err := s.PutNumbered(c, 0, text(what), nil)
	check(t, err)
	return o
}

// drain takes all that waits, in the order in which it would be sent.
func drain(t testing.TB, s *Spool) (all []string) {
	t.Helper()
	for e := s.Next(); e != nil; e = s.Next() {
		raw, err := s.Read(e)
		if err != nil {
			t.Log(err)
			continue
		}
		all = append(all, string(raw))
	}
	s.Release()
	return all
}

func want(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNumberedComeInOrderAndTheRestNewestFirst(t *testing.T) {
	s := Open(testConfig(t, &memory{}))
	check(t, s.Put(Telemetry, 0, []byte("t1")))
	put(t, s, Info, "e1")
	check(t, s.Put(Log, 0, []byte("l2")))
	put(t, s, Job, "j2")
	check(t, s.Put(Telemetry, 0, []byte("t3")))
	want(t, drain(t, s), "e1", "j2", "t3", "l2", "t1")
}

func TestNumbersGrowOverRestarts(t *testing.T) {
	m := &memory{}
	cfg := testConfig(t, m)
	s := Open(cfg)
	for i := range uint64(20) {
		o := put(t, s, Info, "x")
		if o.Seq != i+1 || o.Journal != m.journal {
			t.Fatalf("message %d has number %+v of journal %d", i+1, o, m.journal)
		}
		if !s.Has(o) || s.Has(fleetapi.Origin{Journal: o.Journal, Seq: o.Seq + 1}) {
			t.Fatalf("has is wrong about %+v", o)
		}
		if i%3 != 0 { // acknowledged, or not
			for e := s.Next(); e != nil; e = s.Next() {
				s.Done(e)
			}
		}
		cfg.Journal = m.journal
		s = Open(cfg)
	}
	files, err := os.ReadDir(cfg.Dir)
	check(t, err)
	if len(files) > 2 {
		t.Errorf("%d files are left", len(files))
	}
}

func TestLostMemoryBeginsAnotherJournal(t *testing.T) {
	for _, tc := range []struct {
		name string
		lose func(*testing.T, *Config)
		left []string
	}{
		{"the caller's memory is lost", func(_ *testing.T, c *Config) { c.Journal = 0 }, []string{"old", "new"}},
		{"the spool is lost", func(t *testing.T, c *Config) { check(t, os.RemoveAll(c.Dir)) }, []string{"new"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &memory{}
			cfg := testConfig(t, m)
			before := put(t, Open(cfg), Info, "old")
			cfg.Journal = m.journal
			tc.lose(t, &cfg)
			s := Open(cfg)
			after := put(t, s, Info, "new")
			if after.Journal == before.Journal || after.Seq != 1 || after.Journal != m.journal {
				t.Errorf("number %+v follows %+v", after, before)
			}
			want(t, drain(t, s), tc.left...)
		})
	}
}

func TestWhatIsWorthLeastIsDroppedFirst(t *testing.T) {
	cfg := testConfig(t, &memory{})
	cfg.Budget = 4 * diskBlock
	s := Open(cfg)
	check(t, s.Put(Telemetry, 0, []byte("t1")))
	check(t, s.Put(Telemetry, 0, []byte("t2")))
	check(t, s.Put(Log, 0, []byte("l")))
	put(t, s, Warning, "w")
	put(t, s, Job, "j1") // takes no budget
	put(t, s, Info, "i1")
	want(t, drain(t, s), "w", "j1", "i1", "l", "t2")
	put(t, s, Critical, "c1")
	put(t, s, Critical, "c2")
	want(t, drain(t, s), "w", "j1", "i1", "c1", "c2")
	if err := s.Put(Telemetry, 0, []byte("t3")); !errors.Is(err, ErrDropped) {
		t.Errorf("a reading was kept: %v", err)
	}
	put(t, s, Info, "i2")
	want(t, drain(t, s), "w", "j1", "c1", "c2", "i2")
	put(t, s, Critical, "c3")
	put(t, s, Critical, "c4")
	put(t, s, Critical, "c5")
	want(t, drain(t, s), "j1", "c2", "c3", "c4", "c5")
	if _, err := s.PutNumbered(Info, 0, text("i3"), nil); !errors.Is(err, ErrDropped) {
		t.Errorf("an event of low severity was kept: %v", err)
	}
	if n := s.Stats().Dropped; n[Telemetry] != 3 || n[Log] != 1 || n[Info] != 3 || n[Warning] != 1 || n[Critical] != 1 || n[Job] != 0 {
		t.Errorf("dropped %v", n)
	}
	if s.Stats().Bytes != cfg.Budget {
		t.Errorf("%d bytes are used", s.Stats().Bytes)
	}
}

func TestWhatIsOnItsWayIsNotDropped(t *testing.T) {
	cfg := testConfig(t, &memory{})
	cfg.Budget = 2 * diskBlock
	s := Open(cfg)
	put(t, s, Info, "1")
	put(t, s, Info, "2")
	first := s.Next()
	put(t, s, Info, "3")
	s.Done(first)
	s.Release()
	want(t, drain(t, s), "3")
}

func TestOldReadingsAreDroppedOnceTheClockIsKnown(t *testing.T) {
	cfg := testConfig(t, &memory{})
	now, known := time.Unix(1e9, 0), true
	cfg.Clock = func() (time.Time, bool) { return now, known }
	s := Open(cfg)
	check(t, s.Put(Telemetry, now.Unix(), []byte("dated")))
	check(t, s.Put(Telemetry, 0, []byte("not dated")))
	now, known = now.AddDate(50, 0, 0), false
	check(t, s.Put(Telemetry, 0, []byte("x")))
	want(t, drain(t, s), "x", "not dated", "dated")
	known = true
	check(t, s.Put(Telemetry, now.Unix(), []byte("y")))
	want(t, drain(t, s), "y", "x", "not dated")
}

func TestDamageCostsOneMessage(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(raw []byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"torn", func(raw []byte) []byte { return raw[:len(raw)-1] }},
		{"rotten", func(raw []byte) []byte { raw[len(raw)-1] ^= 1; return raw }},
		{"zeros", func(raw []byte) []byte { return make([]byte, len(raw)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &memory{}
			cfg := testConfig(t, m)
			s := Open(cfg)
			put(t, s, Info, "first")
			put(t, s, Info, "second")
			newest := put(t, s, Info, "third")
			files, err := os.ReadDir(cfg.Dir)
			check(t, err)
			for _, i := range []int{0, 2} {
				path := filepath.Join(cfg.Dir, files[i].Name())
				raw, err := os.ReadFile(path)
				check(t, err)
				check(t, os.WriteFile(path, tc.damage(raw), 0o600))
			}
			check(t, os.WriteFile(filepath.Join(cfg.Dir, ".x.new"), []byte("cut"), 0o600))
			check(t, os.WriteFile(filepath.Join(cfg.Dir, "lost+found"), nil, 0o600))
			cfg.Journal = m.journal
			s = Open(cfg)
			want(t, drain(t, s), "second")
			if o := put(t, s, Info, "fourth"); o.Seq != newest.Seq+1 {
				t.Errorf("number %d follows %d", o.Seq, newest.Seq)
			}
			if n := s.Stats().Damaged; n != 2 {
				t.Errorf("%d damaged", n)
			}
			if _, err := os.Stat(filepath.Join(cfg.Dir, ".x.new")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("leftover: %v", err)
			}
		})
	}
}

// disk is one that takes nothing while err is set.
type disk struct{ err error }

func (d *disk) write(path string, data []byte, perm fs.FileMode) error {
	if d.err != nil {
		return d.err
	}
	return atomicfile.WriteFile(path, data, perm)
}

func TestDiskThatTakesNothing(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
	}{{"full", syscall.ENOSPC}, {"read-only", syscall.EROFS}, {"failing", syscall.EIO}} {
		t.Run(tc.name, func(t *testing.T) {
			m, d := &memory{}, &disk{}
			cfg := testConfig(t, m)
			s := open(cfg, d.write)
			kept := put(t, s, Job, "kept")
			d.err = tc.err
			held := put(t, s, Job, "held")
			if held.Journal == kept.Journal || held.Seq != 1 || s.Has(held) {
				t.Errorf("number in memory is %+v, on disk %+v", held, kept)
			}
			if !errors.Is(s.Stats().Fault, tc.err) {
				t.Errorf("fault is %v", s.Stats().Fault)
			}
			check(t, s.Put(Telemetry, 0, []byte("t")))
			want(t, drain(t, s), "kept", "held", "t")
			d.err = nil
			if next := put(t, s, Job, "next"); next.Journal != kept.Journal || next.Seq != kept.Seq+1 {
				t.Errorf("number %+v follows %+v", next, kept)
			}
			if s.Stats().Fault != nil {
				t.Errorf("fault is still %v", s.Stats().Fault)
			}
			cfg.Journal = m.journal
			want(t, drain(t, Open(cfg)), "kept", "next")
		})
	}
}

func TestFullDiskMakesRoomByDroppingReadings(t *testing.T) {
	m := &memory{}
	cfg := testConfig(t, m)
	room := 4
	s := open(cfg, func(path string, data []byte, perm fs.FileMode) error {
		files, err := os.ReadDir(cfg.Dir)
		if err != nil || len(files) >= room {
			return errors.Join(err, syscall.ENOSPC)
		}
		return atomicfile.WriteFile(path, data, perm)
	})
	for _, what := range []string{"t1", "t2", "t3"} {
		check(t, s.Put(Telemetry, 0, []byte(what)))
	}
	put(t, s, Info, "e1") // in the place of t1
	put(t, s, Info, "e2") // of the file that held the number before
	put(t, s, Info, "e3") // in the place of t2
	want(t, drain(t, s), "e1", "e2", "e3", "t3")
	if s.Stats().Fault != nil || s.Stats().Dropped[Telemetry] != 2 {
		t.Errorf("%+v", s.Stats())
	}
}

func TestMemoryHasABudgetToo(t *testing.T) {
	m := &memory{}
	cfg := testConfig(t, m)
	cfg.Dir = ""
	s := Open(cfg)
	large := strings.Repeat("x", memoryBudget/4)
	for range 4 {
		check(t, s.Put(Telemetry, 0, []byte(large)))
	}
	put(t, s, Error, large)
	if n := s.Stats(); n.Dropped[Telemetry] != 1 || n.Waiting != 4 {
		t.Errorf("%+v", n)
	}
}

func TestDiskThatGetsBetterGetsNumbers(t *testing.T) {
	m := &memory{err: errors.New("journal is full")}
	cfg := testConfig(t, m)
	s := Open(cfg)
	if s.Journal() != 0 {
		t.Error("a number is in use that nobody remembers")
	}
	put(t, s, Info, "held")
	m.err = nil
	s.Retry()
	if o := put(t, s, Info, "kept"); o.Journal != m.journal || o.Seq != 1 {
		t.Errorf("number %+v", o)
	}
	want(t, drain(t, s), "held", "kept")
}

func TestWhatTheCallerCannotNoteStaysInMemory(t *testing.T) {
	m := &memory{}
	cfg := testConfig(t, m)
	s := Open(cfg)
	o, err := s.PutNumbered(Job, 0, text("j"), func(fleetapi.Origin) error { return errors.New("journal is full") })
	check(t, err)
	if o.Journal == m.journal {
		t.Errorf("number %+v is the disk's", o)
	}
	cfg.Journal = m.journal
	want(t, drain(t, Open(cfg)))
}

func FuzzName(f *testing.F) {
	f.Add("0000000000000001-job-0-1f-2")
	f.Add("0000000000000001-sent-ffffffffffffffff-0-0")
	f.Fuzz(func(t *testing.T, name string) {
		e, err := parseName(name)
		if err == nil && e.name() != name {
			t.Errorf("%q is written as %q", name, e.name())
		}
	})
}
