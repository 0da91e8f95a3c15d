package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

func TestParametersAreChecked(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string // part of the error; empty: accepted
	}{
		{"any order", []string{"max", "300000", "path", "/x", "keep", "2"}, ""},
		{"a rate", []string{"max", "300000", "path", "/x", "keep", "0", "rate", "4096"}, ""},
		{"a relative path", []string{"max", "300000", "path", "x", "keep", "2"}, "not absolute"},
		{"no path", []string{"max", "300000", "keep", "2"}, "not absolute"},
		{"no bound", []string{"path", "/x", "keep", "2"}, "are needed"},
		{"a bound that no record fits", []string{"max", "1000", "path", "/x", "keep", "2"}, "not between"},
		{"too many files", []string{"max", "300000", "path", "/x", "keep", "100"}, "not between"},
		{"no number", []string{"max", "1M", "path", "/x", "keep", "1"}, `parameter "max"`},
		{"an unknown word", []string{"max", "300000", "path", "/x", "keep", "1", "gzip", "on"}, `parameter "gzip"`},
		{"a word alone", []string{"max", "300000", "path", "/x", "keep", "1", "rate"}, "no value"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parse(tc.args)
			if (err == nil) != (tc.want == "") || (err != nil && !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("parse(%q) = %v, want %q", tc.args, err, tc.want)
			}
		})
	}
}

func TestLinesBecomeRecords(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, tc := range []struct {
		name   string
		chunks []string
		want   []record
	}{
		{"two lines in one read", []string{"a\nb\n"}, []record{{Text: "a"}, {Text: "b"}}},
		{"one line in two reads", []string{"a", "b\n"}, []record{{Text: "ab"}}},
		{"an empty line", []string{"\n"}, []record{{Text: ""}}},
		{"a last line without a newline", []string{"a\nb"}, []record{{Text: "a"}, {Text: "b"}}},
		{"a line just as long as allowed", []string{long + "\n"}, []record{{Text: long}}},
		{"a line one longer is cut", []string{long + "y\n"}, []record{{Text: long, Partial: true}, {Text: "y"}}},
		{
			"a character is not cut",
			[]string{long[:maxLine-1] + "é", "!\n"},
			[]record{{Text: long[:maxLine-1], Partial: true}, {Text: "é!"}},
		},
		{"what is not UTF-8 stays readable", []string{"a\xffb\n"}, []record{{Text: "a\uFFFDb"}}},
		{"bytes of endless line that look like the middle of a character", []string{strings.Repeat("\x80", maxLine+1)}, []record{
			{Text: strings.Repeat("\uFFFD", maxLine), Partial: true},
			{Text: "\uFFFD"},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var data []byte
			add := func(r record) { data = encode(data, r) }
			s := newSplitter("stdout")
			for _, c := range tc.chunks {
				s.split([]byte(c), time.Unix(1, 0), add)
			}
			s.flush(time.Unix(1, 0), false, add)
			got := decode(t, data)
			if len(got) != len(tc.want) {
				t.Fatalf("%d records, want %d: %.200q", len(got), len(tc.want), data)
			}
			for i, want := range tc.want {
				if got[i].Text != want.Text || got[i].Partial != want.Partial || got[i].Stream != "stdout" {
					t.Errorf("record %d is %.80q partial %v", i, got[i].Text, got[i].Partial)
				}
			}
		})
	}
}

func TestRecordIsWhatReadersExpect(t *testing.T) {
	at := time.Date(2026, 11, 21, 16, 42, 9, 123456789, time.FixedZone("", 3600))
	got := string(encode(nil, record{Time: at, Stream: "stderr", Text: `he said "no"` + "\t<b>"}))
	want := `{"t":"2026-11-21T15:42:09.123456789Z","s":"stderr","m":"he said \"no\"\t\u003cb\u003e"}` + "\n"
	if got != want {
		t.Errorf("record is %s, want %s", got, want)
	}
	if mad := encode(nil, record{Time: time.Unix(1<<40, 0), Text: "x"}); !bytes.Contains(mad, []byte(`"m":"x"`)) {
		t.Errorf("a clock beyond the year 9999 gives %q", mad)
	}
}

func FuzzEveryByteOfAStreamIsKept(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte("é\x80\xf0\x9f"), 3)
	f.Fuzz(func(t *testing.T, stream []byte, step int) {
		if step < 1 {
			step = 1
		}
		var got []byte
		s := newSplitter("stdout")
		add := func(r record) {
			got = append(got, r.Text...)
			if !r.Partial {
				got = append(got, '\n')
			}
			if len(r.Text) > maxLine {
				t.Errorf("a record has %d bytes", len(r.Text))
			}
		}
		for rest := stream; len(rest) > 0; {
			n := min(step, len(rest))
			s.split(rest[:n], time.Unix(1, 0), add)
			rest = rest[n:]
			if n%3 == 0 {
				s.flush(time.Unix(1, 0), true, add)
			}
		}
		s.flush(time.Unix(1, 0), false, add)
		// An unfinished last line gains a newline, unless its bytes went out as a
		// piece before: then nothing is left to flush.
		if want := string(stream); string(got) != want && string(got) != want+"\n" {
			t.Errorf("%q became %q", want, got)
		}
	})
}

func TestRotationKeepsWholeRecordsAndNoMoreThanAsked(t *testing.T) {
	cfg := config{path: filepath.Join(t.TempDir(), "log"), max: 1000, keep: 2}
	r := newRotation(cfg, openFile)
	defer r.close()
	for i := range 100 {
		r.write(encode(nil, record{Text: fmt.Sprint(i)}), 1, time.Unix(0, 0))
	}
	var texts []string
	for i := cfg.keep; i >= 0; i-- {
		data := read1(t, r.name(i))
		if len(data) > 1000 || len(data) < 900 && i > 0 {
			t.Errorf("%s has %d bytes", r.name(i), len(data))
		}
		for _, rec := range decode(t, data) {
			texts = append(texts, rec.Text)
		}
	}
	if last := texts[len(texts)-1]; last != "99" {
		t.Errorf("the last record is %q", last)
	}
	for i, text := range texts {
		if want := fmt.Sprint(100 - len(texts) + i); text != want {
			t.Fatalf("record %d is %q, want %q: a gap", i, text, want)
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(cfg.path)); len(entries) != 3 {
		t.Errorf("%d files, want 3", len(entries))
	}
}

func TestWithNoOlderFilesTheLogStartsAgain(t *testing.T) {
	cfg := config{path: filepath.Join(t.TempDir(), "log"), max: 200, keep: 0}
	r := newRotation(cfg, openFile)
	defer r.close()
	for i := range 10 {
		r.write(encode(nil, record{Text: fmt.Sprint(i)}), 1, time.Unix(0, 0))
	}
	if entries, _ := os.ReadDir(filepath.Dir(cfg.path)); len(entries) != 1 {
		t.Errorf("%d files, want 1", len(entries))
	}
	if got := decode(t, read1(t, cfg.path)); got[len(got)-1].Text != "9" {
		t.Errorf("the last record is %q", got[len(got)-1].Text)
	}
}

func TestTornLineIsCutOff(t *testing.T) {
	whole := string(encode(nil, record{Text: "whole"}))
	for _, tc := range []struct{ name, before, want string }{
		{"nothing was torn", whole, whole},
		{"a torn last line", whole + `{"t":"2026`, whole},
		{"a torn only line", `{"t":"2026`, ""},
		{"a torn line longer than a read", whole + strings.Repeat("x", 3*chunkSize), whole},
		{"a file that ends just where a read begins", strings.Repeat("x", chunkSize-1) + "\n" + strings.Repeat("y", chunkSize), strings.Repeat("x", chunkSize-1) + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config{path: filepath.Join(t.TempDir(), "log"), max: 1 << 20, keep: 1}
			if err := os.WriteFile(cfg.path, []byte(tc.before), 0o600); err != nil {
				t.Fatal(err)
			}
			r := newRotation(cfg, openFile)
			defer r.close()
			next := encode(nil, record{Text: "next"})
			r.write(next, 1, time.Unix(0, 0))
			if got := string(read1(t, cfg.path)); got != tc.want+string(next) {
				t.Errorf("the log is %.100q (%d bytes)", got, len(got))
			}
		})
	}
}

func TestKillInTheMiddleOfARotationLosesNothing(t *testing.T) {
	cfg := config{path: filepath.Join(t.TempDir(), "log"), max: 150, keep: 3}
	for kill := range 3 { // after this many renames of a full set
		r := newRotation(cfg, openFile)
		for i := range 20 {
			r.write(encode(nil, record{Text: fmt.Sprint(i)}), 1, time.Unix(0, 0))
		}
		r.close()
		before := all(t, r)
		for i := 2; i > 2-kill; i-- {
			if err := os.Rename(r.name(i), r.name(i+1)); err != nil {
				t.Fatal(err)
			}
		}
		next := newRotation(cfg, openFile)
		next.write(encode(nil, record{Text: "next"}), 1, time.Unix(0, 0))
		next.close()
		after := all(t, next)
		if len(after) < len(before)-5 || after[len(after)-1] != "next" {
			t.Errorf("killed after %d renames: %v became %v", kill, before, after)
		}
	}
}

func TestLogIsNoDoorToOtherFiles(t *testing.T) {
	dir := t.TempDir()
	secret, link, fifo := filepath.Join(dir, "secret"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(secret, []byte("keep\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, fifo, dir} {
		if err := newRotation(config{path: path, max: minBytes}, openFile).open(); err == nil {
			t.Errorf("%s was opened as a log", path)
		}
	}
}

// tight is a disk of a fixed size in memory.
type tight struct {
	mu   sync.Mutex
	data []byte
	size int // of the disk
}

func (d *tight) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := max(0, min(len(p), d.size-len(d.data)))
	d.data = append(d.data, p[:n]...)
	if n < len(p) {
		return n, &os.PathError{Op: "write", Path: "/perm/secret/log", Err: syscall.ENOSPC}
	}
	return n, nil
}

func (d *tight) ReadAt(p []byte, at int64) (int, error) { return copy(p, d.data[at:]), nil }
func (d *tight) Close() error                           { return nil }
func (d *tight) Stat() (os.FileInfo, error)             { return info{size: int64(len(d.data))}, nil }

func (d *tight) Truncate(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data = d.data[:size]
	return nil
}

type info struct {
	os.FileInfo
	size int64
}

func (i info) Size() int64       { return i.size }
func (i info) Mode() os.FileMode { return 0o600 }

func TestFullDiskDropsLinesAndSaysHowMany(t *testing.T) {
	disk := &tight{size: 500}
	r := newRotation(config{path: "/log", max: 1 << 20, keep: 1}, func(string) (file, error) { return disk, nil })
	for i := range 100 {
		r.write(encode(nil, record{Text: fmt.Sprint(i)}), 1, time.Unix(0, 0))
	}
	before := decode(t, disk.data) // fails if a record is torn
	if len(before) == 0 || r.lost != 100-len(before) {
		t.Fatalf("%d records are there and %d counted as lost", len(before), r.lost)
	}
	disk.size = 1 << 20
	r.write(encode(nil, record{Text: "room"}), 1, time.Unix(0, 0))
	after := decode(t, disk.data)[len(before):]
	want := fmt.Sprintf("%d lines of output were lost: no space left on device", 100-len(before))
	if len(after) != 2 || after[0].Lost != 100-len(before) || after[0].Text != want || after[1].Text != "room" {
		t.Errorf("after the disk had room again: %+v", after)
	}
	r.write(encode(nil, record{Text: "more"}), 1, time.Unix(0, 0))
	if last := decode(t, disk.data); len(last) != len(before)+3 {
		t.Errorf("the loss was told again: %+v", last[len(before):])
	}
}

func TestContainerRunsOnAFullDiskAndNotOnABrokenLog(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cause error
		full  bool
	}{
		{"no room", &os.PathError{Op: "open", Err: syscall.ENOSPC}, true},
		{"no quota", &os.PathError{Op: "open", Err: syscall.EDQUOT}, true},
		{"no folder", &os.PathError{Op: "open", Err: syscall.ENOENT}, false},
	} {
		if full(tc.cause) != tc.full {
			t.Errorf("%s: full is %v", tc.name, !tc.full)
		}
	}
	err := run(t.Context(), config{path: filepath.Join(t.TempDir(), "no", "log"), max: minBytes, rate: defaultRate},
		strings.NewReader(""), strings.NewReader(""), func() error { t.Error("was ready"); return nil })
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a log in no folder: %v", err)
	}
}

func TestBothStreamsAreCopiedUntilBothEnd(t *testing.T) {
	cfg := config{path: filepath.Join(t.TempDir(), "log"), max: minBytes, keep: 1, rate: defaultRate}
	stdout, out := io.Pipe()
	stderr, errs := io.Pipe()
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- run(t.Context(), cfg, stdout, stderr, func() error { close(ready); return nil })
	}()
	<-ready
	fmt.Fprint(out, "first\nsec")
	fmt.Fprint(errs, "trouble\n")
	fmt.Fprint(out, "ond\nlast")
	out.Close()
	fmt.Fprint(errs, "more trouble\n")
	select {
	case err := <-done:
		t.Fatalf("ended with one stream open: %v", err)
	default:
	}
	errs.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got := map[string]string{} // the streams run beside each other; each keeps its order
	for _, r := range decode(t, read1(t, cfg.path)) {
		got[r.Stream] += r.Text + "|"
	}
	if got["stdout"] != "first|second|last|" || got["stderr"] != "trouble|more trouble|" {
		t.Errorf("the log is %q", got)
	}
}

func TestPromptIsSeenAfterASecond(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	synctest.Test(t, func(t *testing.T) {
		stdout, out := io.Pipe()
		stderr, errs := io.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- run(t.Context(), config{path: path, max: minBytes, rate: defaultRate}, stdout, stderr, func() error { return nil })
		}()
		fmt.Fprint(out, "Password: ")
		time.Sleep(idleFlush - time.Millisecond)
		synctest.Wait()
		if got := read1(t, path); len(got) != 0 {
			t.Errorf("an unfinished line was written at once: %q", got)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if got := decode(t, read1(t, path)); len(got) != 1 || got[0].Text != "Password: " || !got[0].Partial {
			t.Errorf("after a second the log is %+v", got)
		}
		out.Close()
		errs.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestFastPrinterIsHeldUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		begin := time.Now()
		line := strings.Repeat("x", 1000) + "\n"
		n := (burst + 10*rate) / len(line)
		err := run(t.Context(), config{path: path, max: minBytes, rate: rate},
			strings.NewReader(strings.Repeat(line, n)), strings.NewReader(""), func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("%d bytes above the burst at %d a second took %v", 10*rate, rate, took)
		}
	})
}

func TestTerminationWaitsForTheLastWordsButNotForEver(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx, terminate := context.WithCancel(t.Context())
		stdout, out := io.Pipe()
		stderr, errs := io.Pipe()
		begin, done := time.Now(), make(chan error, 1)
		go func() {
			done <- run(ctx, config{path: filepath.Join(dir, "log"), max: minBytes, rate: defaultRate}, stdout, stderr, func() error { return nil })
		}()
		terminate()
		synctest.Wait()
		fmt.Fprint(out, "last words\n")
		if err := <-done; err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != closeGrace {
			t.Errorf("ended %v after SIGTERM, want %v", took, closeGrace)
		}
		if got := decode(t, read1(t, filepath.Join(dir, "log"))); len(got) != 1 || got[0].Text != "last words" {
			t.Errorf("the log is %+v", got)
		}
		out.Close()
		errs.Close()
		stdout.Close()
		stderr.Close()
	})
}

func read1(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// all is the text of every record of a log, the oldest first.
func all(t *testing.T, r *rotation) []string {
	t.Helper()
	var texts []string
	for i := r.cfg.keep; i >= 0; i-- {
		data, err := os.ReadFile(r.name(i))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		for _, rec := range decode(t, data) {
			texts = append(texts, rec.Text)
		}
	}
	return texts
}

// decode fails the test unless data is whole records.
func decode(t *testing.T, data []byte) []record {
	t.Helper()
	if len(data) > 0 && data[len(data)-1] != '\n' {
		t.Fatalf("the log ends in a torn line: %.200q", data[max(0, len(data)-200):])
	}
	var records []record
	for line := range bytes.Lines(data) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("line %.200q: %v", line, err)
		}
		if !utf8.ValidString(r.Text) {
			t.Fatalf("line %.200q is not UTF-8", line)
		}
		records = append(records, r)
	}
	return records
}
