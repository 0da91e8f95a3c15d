package timeseries

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
)

// TestMain lets a test start this program again as a process that it can kill.
func TestMain(m *testing.M) {
	switch dir := os.Getenv("TIMESERIES_DIR"); os.Getenv("TIMESERIES_CHILD") {
	case "append":
		appendForever(dir)
	case "full":
		appendUntilFull(dir)
	default:
		os.Exit(m.Run())
	}
}

func child(t *testing.T, role, dir string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), "TIMESERIES_CHILD="+role, "TIMESERIES_DIR="+dir)
	c.Stderr = os.Stderr
	return c
}

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	return v
}

// appendForever writes the number of each acknowledged batch. Every other sample
// is late.
func appendForever(dir string) {
	s := must(New(Config{Dir: dir}))
	round := must(strconv.Atoi(os.Getenv("TIMESERIES_ROUND")))
	start := time.Now().Truncate(time.Hour).Add(time.Duration(round-4) * 15 * time.Minute)
	// A new store takes its first samples for timely, however old they are, and soon makes
	// a block of them; a kill in the midst of that is another matter (see the package comment).
	_ = must(s.Append(context.Background(), device(0), []Sample{gauge("first", start, 0)}))
	for n := 0; ; n++ {
		at := start.Add(time.Duration(n) * time.Millisecond)
		stored := must(s.Append(context.Background(), device(n%50), []Sample{
			gauge("a", at, float64(n)), gauge("late", at.Add(-5*time.Hour), float64(n)), gauge("late", at.Add(-6*time.Hour), float64(n)),
		}))
		if stored != 3 {
			panic(fmt.Sprint("stored ", stored))
		}
		fmt.Println(n)
	}
}

func TestWhatWasAcknowledgedSurvivesKill9(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acked := 0
	for round := 1; round <= 3; round++ {
		c := child(t, "append", dir)
		c.Env = append(c.Env, fmt.Sprint("TIMESERIES_ROUND=", round))
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for seen := 0; seen < 700*round && lines.Scan(); seen++ {
			acked++
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			acked++ // written before the end
		}
		if err := c.Wait(); err == nil {
			t.Fatal("the process ended by itself")
		}
	}
	s := open(t, Config{Dir: dir})
	if losses := s.Losses(); len(losses) > 0 {
		t.Errorf("losses: %+v", losses)
	}
	for _, tc := range []struct {
		query string
		want  int
		lost  int // at most; what is late is not quite as safe, see the package comment
	}{
		{"sum(count_over_time(a[1d]))", acked, 0},
		{"sum(count_over_time(late[1d]))", 2 * acked, acked / 4},
	} {
		query, want := tc.query, tc.want
		series, err := s.Instant(t.Context(), everything, query, time.Now().Add(time.Minute))
		if err != nil || len(series) != 1 {
			t.Fatalf("%s: %v, %v", query, series, err)
		}
		// Each round may have stored one batch more than it could tell of.
		if got := int(series[0].Points[0].Value); got < want-tc.lost || got > want+6 {
			t.Errorf("%s = %d after %d batches were acknowledged", query, got, acked)
		}
	}
}

// appendUntilFull goes on until its files may not grow, then until they may again.
func appendUntilFull(dir string) {
	signal.Ignore(syscall.SIGXFSZ)
	limit := func(n uint64) {
		var l syscall.Rlimit
		must(0, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l))
		l.Cur = n
		must(0, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l))
	}
	s := must(New(Config{Dir: dir, MinFree: 1}))
	limit(300 << 10)
	start, acked, refused := time.Now(), 0, error(nil)
	put := func() (err error) {
		var batch []Sample
		for i := range 300 {
			batch = append(batch, gauge("a", start.Add(time.Duration(acked)*time.Millisecond), float64(acked), "i", fmt.Sprint(i)))
		}
		if _, err = s.Append(context.Background(), device(1), batch); err == nil {
			acked++
		}
		return err
	}
	for refused == nil && acked < 10_000 {
		refused = put()
	}
	full := acked
	_, again := s.Append(context.Background(), device(1), []Sample{gauge("a", start, 0)})
	before := s.Stats().Broken != ""
	limit(1 << 40)
	s.reopen(time.Now())
	for range 100 {
		must(0, put())
	}
	fmt.Println(full > 0 && croft.KindOf(refused) == croft.KindNoSpace && croft.KindOf(again) == croft.KindNoSpace && before && s.Stats().Reopened == 1, acked)
	os.Exit(0) // without closing
}

func TestAFullDiskStopsWritingAndLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out, err := child(t, "full", dir).Output()
	var acked int
	if _, scan := fmt.Sscanf(string(out), "true %d", &acked); err != nil || scan != nil {
		t.Fatalf("the process said %q, %v", out, err)
	}
	s := open(t, Config{Dir: dir})
	if losses := s.Losses(); len(losses) > 0 {
		t.Errorf("losses: %+v", losses)
	}
	if got := instant(t, s, everything, `count_over_time(a{i="7"}[1h])`, time.Now().Add(time.Minute)); !strings.HasSuffix(got, fmt.Sprintf(" %d", acked)) {
		t.Errorf("got %q, want %d samples", got, acked)
	}
}

func TestANearlyFullDiskTakesNoSamplesButAnswers(t *testing.T) {
	s := open(t, Config{})
	now := time.Now()
	add(t, s, device(1), gauge("a", now, 1))
	closeStore(t, s)
	s = open(t, Config{Dir: s.cfg.Dir, MinFree: 1 << 60})
	if _, err := s.Append(t.Context(), device(1), []Sample{gauge("a", now.Add(time.Second), 2)}); croft.KindOf(err) != croft.KindNoSpace {
		t.Errorf("got %v", err)
	}
	if got := instant(t, s, everything, "count(a)", now); got != "1" {
		t.Errorf("got %q", got)
	}
}

// filled is a closed store with blocks and a log, and when its newest sample was.
func filled(t *testing.T, hours int) (dir string, newest time.Time) {
	t.Helper()
	s := open(t, Config{})
	now := time.Now().Truncate(time.Minute)
	for m := hours * 60; m >= 0; m-- {
		newest = now.Add(-time.Duration(m) * time.Minute)
		add(t, s, device(1), gauge("a", newest, float64(m)))
	}
	if err := s.raw.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	return s.cfg.Dir, newest
}

func TestADamagedStoreOpensAndSaysWhatIsLost(t *testing.T) {
	t.Parallel()
	flip := func(t *testing.T, path string, at int64) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if _, err := f.WriteAt([]byte("\xa5\x5a\xa5\x5a\xa5\x5a"), at); err != nil {
			t.Fatal(err)
		}
	}
	last := func(t *testing.T, pattern string) string {
		found, err := filepath.Glob(pattern)
		for i := len(found) - 1; i >= 0; i-- {
			if info, err := os.Stat(found[i]); err == nil && info.Size() > 0 {
				return found[i]
			}
		}
		t.Fatalf("nothing is called %s: %v", pattern, err)
		return ""
	}
	block := "samples/01*"
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		losses int
		kept   bool // something was set aside
		known  bool // the time of what is lost is told
		least  int  // samples of 601 that must be there; a block has up to 6 h of them
	}{
		{"the log is damaged in the middle", func(t *testing.T, dir string) { flip(t, last(t, dir+"/samples/wal/0*"), 4000) }, 1, false, true, 400},
		{"the log is torn at its end", func(t *testing.T, dir string) {
			path := last(t, dir+"/samples/wal/0*")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// The last page is filled up with zeros; the record before them is torn.
			if err := os.Truncate(path, int64(len(bytes.TrimRight(text, "\x00"))-5)); err != nil {
				t.Fatal(err)
			}
		}, 1, false, true, 595},
		{"a file of the log is missing", func(t *testing.T, dir string) {
			for _, n := range []string{"00000010", "00000012"} {
				if err := os.WriteFile(dir+"/samples/wal/"+n, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, 1, true, true, 400},
		{"an index is damaged", func(t *testing.T, dir string) { flip(t, last(t, dir+"/"+block+"/index"), 0) }, 1, true, true, 240},
		{"an index is missing", func(t *testing.T, dir string) {
			if err := os.Remove(last(t, dir+"/"+block+"/index")); err != nil {
				t.Fatal(err)
			}
		}, 1, true, true, 240},
		{"a block's description is empty", func(t *testing.T, dir string) {
			if err := os.Truncate(last(t, dir+"/"+block+"/meta.json"), 0); err != nil {
				t.Fatal(err)
			}
		}, 1, true, false, 240},
		{"an unfinished block is there", func(t *testing.T, dir string) {
			if err := os.MkdirAll(dir+"/samples/01ARZ3NDEKTSV4RRFFQ69G5FAV.tmp-for-creation/chunks", 0o700); err != nil {
				t.Fatal(err)
			}
		}, 0, false, false, 601},
		{"the archive's marker is damaged", func(t *testing.T, dir string) {
			if err := os.WriteFile(dir+"/archived-until", []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 0, false, false, 601},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, newest := filled(t, 10)
			tc.damage(t, dir)
			s := open(t, Config{Dir: dir})
			losses := s.Losses()
			if len(losses) != tc.losses {
				t.Fatalf("losses: %+v, want %d", losses, tc.losses)
			}
			for _, l := range losses {
				if l.What == "" || (l.Kept != "") != tc.kept || l.From.IsZero() == tc.known {
					t.Errorf("loss: %+v", l)
				}
			}
			series, err := s.Instant(t.Context(), everything, "count_over_time(a[1d])", newest)
			if err != nil || len(series) != 1 || series[0].Points[0].Value < float64(tc.least) {
				t.Errorf("%v are left, %v; want at least %d", series, err, tc.least)
			}
			add(t, s, device(1), gauge("a", time.Now(), -1))
			closeStore(t, s)
			s = open(t, Config{Dir: dir})
			if losses := s.Losses(); len(losses) > 0 {
				t.Errorf("at the next start: %+v", losses)
			}
			if got := instant(t, s, everything, "a", time.Now()); !strings.HasSuffix(got, " -1") {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestAWrongClockOfTheServerCannotHarmTheStore(t *testing.T) {
	t.Parallel()
	dir, newest := filled(t, 10)
	count := func(t *testing.T, s *Store) {
		t.Helper()
		if got := instant(t, s, everything, "count_over_time(a[1d])", newest); !strings.HasSuffix(got, " 601") {
			t.Errorf("in %d there are %q", time.Now().Year(), got)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		for _, year := range []int{2000, 2038, 2099} {
			time.Sleep(time.Until(time.Date(year, 1, 2, 0, 0, 0, 0, time.UTC)))
			s, stop := running(t, Config{Dir: dir})
			_, err := s.Append(t.Context(), device(1), []Sample{gauge("a", time.Now(), 1)})
			if croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), "clock") {
				t.Errorf("in %d: %v", year, err)
			}
			time.Sleep(3 * time.Hour)
			count(t, s)
			stop()
		}
	})
	s := open(t, Config{Dir: dir})
	add(t, s, device(1), gauge("a", time.Now(), 1))
	count(t, s)
}

func TestSamplesFromTheFutureAreSetAsideWhenAPersonSaysSo(t *testing.T) {
	t.Parallel()
	dir, newest := filled(t, 10)
	func() { // what a clock 200 days ahead leaves behind
		s := open(t, Config{Dir: dir})
		app := s.raw.Appender(t.Context())
		for m := range 600 {
			if why := appendAt(app, device(1), time.Now().Add(200*day+time.Duration(m)*time.Minute)); why != "" {
				t.Fatal(why)
			}
		}
		if err := app.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := s.raw.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
	}()
	s := open(t, Config{Dir: dir})
	if _, err := s.Append(t.Context(), device(1), []Sample{gauge("a", time.Now(), 1)}); croft.KindOf(err) != croft.KindRefused {
		t.Fatalf("with samples from the future: %v", err)
	}
	if got := instant(t, s, everything, "count_over_time(a[1d])", newest); !strings.HasSuffix(got, " 601") {
		t.Errorf("there are %q", got)
	}
	closeStore(t, s)
	s = open(t, Config{Dir: dir, TrustClock: true})
	if losses := s.Losses(); len(losses) != 1 || losses[0].Kept == "" {
		t.Errorf("losses: %+v", losses)
	}
	add(t, s, device(1), gauge("a", time.Now(), -1))
	if got := instant(t, s, everything, "count_over_time(a[1d])", newest); !strings.HasSuffix(got, " 601") {
		t.Errorf("after it there are %q", got)
	}
	if got := instant(t, s, everything, "a", time.Now()); !strings.HasSuffix(got, " -1") {
		t.Errorf("the newest is %q", got)
	}
	if got := instant(t, s, everything, "count_over_time(a[1d])", time.Now().Add(201*day)); got != "" {
		t.Errorf("in the future there is %q", got)
	}
}
