package replicalog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// record is a line as croft-rotlog writes it.
func record(text string) string {
	return fmt.Sprintf("{\"t\":\"2026-11-21T16:42:09.5Z\",\"s\":\"stdout\",\"m\":%q}\n", text)
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func texts(t *testing.T, path string, tail int) (all []string) {
	t.Helper()
	for line, err := range Read(t.Context(), path, tail, false) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, line.Text)
	}
	return all
}

func TestParseLine(t *testing.T) {
	got := parseLine([]byte(`{"t":"2026-11-21T16:42:09.5Z","s":"stderr","m":"a \"b\"","p":true}`))
	want := Line{At: time.Date(2026, 11, 21, 16, 42, 9, 5e8, time.UTC), Stderr: true, Text: `a "b"`, Partial: true}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := parseLine([]byte("no record \xff")); got.Text != "no record \ufffd" {
		t.Errorf("got %+v", got)
	}
}

func TestURI(t *testing.T) {
	const want = "binary-v2:///user/croft-rotlog?keep=2&max=4096&path=%2Flease%2Fa+b%26c%2Flog"
	if got := URI("/user/croft-rotlog", "/lease/a b&c/log", 4096, 2); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestReadAcrossFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := texts(t, path, -1); got != nil {
		t.Errorf("a log that is not there holds %q", got)
	}
	appendTo(t, path+".3", record("a")) // .2 is missing: a rotation was broken off
	appendTo(t, path+".1", record("b")+record("c"))
	appendTo(t, path, record("d")+`{"s":"stdout","m":"torn`)
	for tail, want := range map[int][]string{
		-1: {"a", "b", "c", "d", `{"s":"stdout","m":"torn`},
		0:  nil,
		3:  {"c", "d", `{"s":"stdout","m":"torn`},
		99: {"a", "b", "c", "d", `{"s":"stdout","m":"torn`},
	} {
		if got := texts(t, path, tail); !slices.Equal(got, want) {
			t.Errorf("last %d lines are %q, want %q", tail, got, want)
		}
	}
	for line, err := range Read(t.Context(), path, -1, false) {
		if err != nil || line.Text != "a" {
			t.Errorf("first line is %+v, %v", line, err)
		}
		break // the reader may leave at any time
	}
}

func TestReadOfHostileFiles(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, "long")
	appendTo(t, long, strings.Repeat("x", 3*recordBytes)+"\n"+record("after"))
	got := texts(t, long, -1)
	if len(got) != 4 || len(got[0]) != recordBytes || got[3] != "after" {
		t.Errorf("a line without end became %d lines", len(got))
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/etc/passwd", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, link, dir} {
		n := 0
		for _, err := range Read(t.Context(), path, -1, true) {
			n++
			if err == nil {
				t.Errorf("%s was read", path)
			}
		}
		if n != 1 {
			t.Errorf("%s yields %d times, want one error", path, n)
		}
	}
}

func TestReadFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		rotate := func(keep int) {
			for n := keep; n > 0; n-- {
				if err := os.Rename(rotated(path, n-1), rotated(path, n)); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			for line, err := range Read(ctx, path, 1, true) {
				if err != nil {
					t.Error(err)
				}
				got = append(got, line.Text)
			}
		}()
		expect := func(want ...string) {
			t.Helper()
			time.Sleep(2 * pollEvery)
			synctest.Wait()
			if !slices.Equal(got, want) {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
		expect()
		appendTo(t, path, record("1"))
		expect("1")
		half := record("2")
		appendTo(t, path, half[:10])
		expect("1")
		appendTo(t, path, half[10:])
		expect("1", "2")
		// Once, with lines on both sides.
		appendTo(t, path, record("3"))
		rotate(3)
		appendTo(t, path, record("4"))
		expect("1", "2", "3", "4")
		// Twice between two looks.
		appendTo(t, path, record("5"))
		rotate(3)
		appendTo(t, path, record("6"))
		rotate(3)
		appendTo(t, path, record("7"))
		expect("1", "2", "3", "4", "5", "6", "7")
		// The newest is not there yet.
		rotate(3)
		expect("1", "2", "3", "4", "5", "6", "7")
		appendTo(t, path, record("8"))
		expect("1", "2", "3", "4", "5", "6", "7", "8")
		// So often that what is being read is gone: a line is missed, and none told
		// twice.
		for _, text := range []string{"missed", "9", "10", "11"} {
			rotate(2)
			appendTo(t, path, record(text))
		}
		for n := 3; n <= 9; n++ {
			_ = os.Remove(rotated(path, n)) // left by the larger number above
		}
		expect("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11")
		// No older file is kept.
		for n := range 3 {
			if err := os.Remove(rotated(path, n)); err != nil {
				t.Fatal(err)
			}
		}
		appendTo(t, path, record("12"))
		expect("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12")
		cancel()
		<-done
	})
}
