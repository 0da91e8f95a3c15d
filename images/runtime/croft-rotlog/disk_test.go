//go:build integration

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// As TestFullDiskDropsLinesAndSaysHowMany, on a disk of the kernel's, through the
// whole program, with rotations that fail in the middle.
func TestRealDiskFillsUpAndIsFreed(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a small tmpfs (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 700<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config{path: filepath.Join(dir, "log"), max: minBytes, keep: 2, rate: 1 << 30}
	stdout, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(t.Context(), cfg, stdout, strings.NewReader(""), func() error { return nil }) }()

	filling := strings.Repeat("x", 400)
	say := func(from, to int) {
		for i := from; i < to; i++ {
			fmt.Fprintf(out, "%d %s\n", i, filling)
		}
	}
	say(0, 3000) // about 1.4 MB on 324 KB
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	say(3000, 3500) // little enough that the note of the loss is not rotated away
	out.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the writer was held up by the full disk")
	}

	lost, last := 0, ""
	r := newRotation(cfg, openFile)
	for i := cfg.keep; i >= 0; i-- {
		data, err := os.ReadFile(r.name(i))
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > minBytes || !bytes.HasSuffix(data, []byte("\n")) {
			t.Errorf("%s has %d bytes", r.name(i), len(data))
		}
		for _, rec := range decode(t, data) {
			lost += rec.Lost
			last = rec.Text
		}
	}
	if !strings.HasPrefix(last, "3499 ") {
		t.Errorf("the last line is %.20q", last)
	}
	if lost == 0 {
		t.Error("lines were lost and the log does not say so")
	}
}
