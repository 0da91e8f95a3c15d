package ownerpage

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"rsc.io/qr"
)

func TestText(t *testing.T) {
	for name, status := range faces() {
		t.Run(name, func(t *testing.T) {
			got, err := Text(status)
			if name == "endless" { // the address is too long for any QR code of a sane size: refused or not, it must not crash
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if name != "hostile" {
				golden(t, name+".txt", got)
			}
			for line := range strings.SplitSeq(got, "\n") {
				if utf8.RuneCountInString(line) > textWidth {
					t.Errorf("line is wider than the terminal: %q", line)
				}
			}
			if status.Claim != "" && !strings.Contains(got, testShown) {
				t.Error("the claim code is missing")
			}
		})
	}
}

func TestHalfBlocksAreTheQRCode(t *testing.T) {
	const text = "https://croft.example/claim#K7QM2XWP"
	q, err := qr.Encode(text, qr.L)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := halfBlocks(text)
	if err != nil {
		t.Fatal(err)
	}
	lit := map[rune][2]bool{' ': {}, '▀': {true, false}, '▄': {false, true}, '█': {true, true}}
	const border = quietZone / 2
	for row, line := range lines {
		for col, r := range []rune(line) {
			for half, light := range lit[r] {
				x, y := col-border, 2*row+half-border
				if y < q.Size+border && light == q.Black(x, y) {
					t.Fatalf("module %d, %d is wrong", x, y)
				}
			}
		}
	}
	if want := (q.Size + 2*border + 1) / 2; len(lines) != want {
		t.Errorf("%d lines, want %d", len(lines), want)
	}
}

// port is a serial port that may be broken.
type port struct {
	bytes.Buffer
	err    error
	blocks int
}

func (p *port) Write(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	p.blocks++
	return p.Buffer.Write(b)
}

func TestTextScreenWritesWhatChangedInSubstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out port
		slate := NewSlate(Status{Name: "croft-k7qm"}, nil)
		screen, err := NewTextScreen(TextConfig{Source: slate, Out: &out})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- screen.Run(ctx) }()
		step := func(name string, wantBlocks int, wantText string) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			if out.blocks != wantBlocks || !strings.Contains(out.String(), wantText) {
				t.Errorf("%s: %d blocks, want %d with %q; have %s", name, out.blocks, wantBlocks, wantText, out.String())
			}
			out.Reset()
		}
		step("at first", 1, "Your box is starting.")
		slate.Update(func(s *Status) { s.Uptime, s.MemoryUsed = time.Hour, 1 })
		step("figures moved", 1, "")
		slate.Update(func(s *Status) { s.DeviceID = "k7qm2222333344445555666677aabbcc" })
		step("what is not shown changed", 1, "")
		slate.Update(func(s *Status) { s.Network = Online })
		slate.Update(func(s *Status) { s.State = Healthy })
		step("two changes at once", 2, "Your box is running.")
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestTextScreenTriesABrokenPortAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		out := port{err: errors.New("no carrier")}
		slate := NewSlate(healthy(), nil)
		screen, err := NewTextScreen(TextConfig{Source: slate, Out: &out, Log: slog.New(slog.NewTextHandler(&logged, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- screen.Run(ctx) }()
		time.Sleep(time.Second)
		synctest.Wait()
		slate.Update(func(s *Status) { s.State = Trial })
		time.Sleep(time.Second)
		synctest.Wait()
		if n := strings.Count(logged.String(), "no carrier"); n != 1 {
			t.Errorf("trouble is logged %d times", n)
		}
		out.err = nil
		slate.Update(func(s *Status) { s.Storage = "The storage was repaired." })
		time.Sleep(time.Second)
		synctest.Wait()
		if !strings.Contains(out.String(), "new version") {
			t.Errorf("nothing is written after the port works again: %q", out.String())
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestWorkersWantTheirParts(t *testing.T) {
	src := NewSlate(healthy(), nil)
	for _, tc := range []struct {
		name string
		make func() error
	}{
		{"a page without a source", func() error { _, err := New(Config{}); return err }},
		{"a screen without a source", func() error { _, err := NewScreen(ScreenConfig{}); return err }},
		{"a text screen without a source", func() error { _, err := NewTextScreen(TextConfig{Out: &port{}}); return err }},
		{"a text screen without an output", func() error { _, err := NewTextScreen(TextConfig{Source: src}); return err }},
		{"a name service without a name", func() error { _, err := NewMDNS(MDNSConfig{}); return err }},
		{"a name service with a full name", func() error { _, err := NewMDNS(MDNSConfig{Name: "croft-k7qm.local"}); return err }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.make() == nil {
				t.Error("is accepted")
			}
		})
	}
}
