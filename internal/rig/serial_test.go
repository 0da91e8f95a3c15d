package rig

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestLogKeepsTextWithoutTerminalControls(t *testing.T) {
	for _, tc := range []struct{ name, in, kept, readable string }{
		{"plain lines stay", "a\nb\n", "a\nb\n", "a\nb\n"},
		{"carriage returns are for terminals", "a\r\nb", "a\nb", "a\r\nb"},
		{"colours are for people", "\x1b[1;31mred\x1b[0m", "red", "\x1b[1;31mred\x1b[0m"},
		{"nothing clears the screen or moves the cursor", "\x1b[2J\x1b[01;01H\x1b[=3hup", "up", "up"},
		{"firmware splits words with sequences", "Bds\x1b[0m\x1b[35mDxe", "BdsDxe", "Bds\x1b[0m\x1b[35mDxe"},
		{"two-byte sequences vanish", "\x1bcup", "up", "up"},
		{"other alphabets stay", "état ▀▄", "état ▀▄", "état ▀▄"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var person bytes.Buffer
			l := NewLog(&Readable{W: &person})
			for i := range len(tc.in) { // byte by byte, as a slow port does
				if _, err := l.Write([]byte(tc.in[i : i+1])); err != nil {
					t.Fatal(err)
				}
			}
			if got := l.Text(); got != tc.kept {
				t.Errorf("Text = %q, want %q", got, tc.kept)
			}
			if got := person.String(); got != tc.readable {
				t.Errorf("person sees %q, want %q", got, tc.readable)
			}
		})
	}
}

func TestWaitFindsPatterns(t *testing.T) {
	for _, tc := range []struct {
		name    string
		chunks  []string
		from    int
		pattern string
		groups  string
		end     int
	}{
		{"what stands there already", []string{"one two"}, 0, "two", "two", 7},
		{"what is printed in pieces", []string{"on", "e t", "wo"}, 0, "one two", "one two", 7},
		{"groups", []string{"slot=b tries=2\n"}, 0, `slot=(\w) tries=(\d)`, "slot=b tries=2|b|2", 14},
		{"only after from", []string{"boot\n", "boot\n"}, 4, "boot", "boot", 9},
		{"from may lie ahead", []string{"boot\n", "boot\n"}, 5, "boot", "boot", 9},
		{"beginnings of lines", []string{"x ok\n", "ok\n"}, 0, "(?m)^ok$", "ok", 7},
		{"after much else", []string{strings.Repeat("noise\n", 5000), "sig", "nal"}, 0, "signal", "signal", 30006},
		{"within one endless line", []string{strings.Repeat("x", 10000), "sig", "nal"}, 0, "signal", "signal", 10006},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := NewLog()
				go func() {
					for _, c := range tc.chunks {
						time.Sleep(time.Second)
						_, _ = l.Write([]byte(c))
					}
				}()
				m, err := l.Wait(t.Context(), tc.from, tc.pattern)
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(m.Groups, "|"); got != tc.groups || m.End != tc.end {
					t.Errorf("match %q ending at %d, want %q at %d", got, m.End, tc.groups, tc.end)
				}
				time.Sleep(time.Minute) // the writer ends
			})
		})
	}
}

func TestWaitThatGivesUpQuotesTheLastLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog()
		_, _ = l.Write([]byte("first\nKernel panic\n"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := l.Wait(ctx, 0, "healthy")
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "Kernel panic") {
			t.Errorf("Wait = %v", err)
		}
	})
}

func TestWaitRefusesABadPattern(t *testing.T) {
	if _, err := NewLog().Wait(t.Context(), 0, "("); err == nil {
		t.Error("pattern ( is accepted")
	}
}

// deadMachine is a Machine that turns off when told to.
type deadMachine struct {
	Machine
	log *Log
	off chan struct{}
}

func (m *deadMachine) Serial() *Log { return m.log }

func (m *deadMachine) WaitOff(ctx context.Context) error {
	select {
	case <-m.off:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestWaitSerialEndsWithTheMachine(t *testing.T) {
	m := &deadMachine{log: NewLog(), off: make(chan struct{})}
	close(m.off)
	if _, err := WaitSerial(t.Context(), m, 0, "healthy"); !errors.Is(err, ErrOff) {
		t.Errorf("WaitSerial = %v, want ErrOff", err)
	}
}

type fullDisk struct{ writes int }

func (w *fullDisk) Write([]byte) (int, error) {
	w.writes++
	return 0, io.ErrShortWrite
}

func TestWriterThatFailsIsLeftOut(t *testing.T) {
	var ok bytes.Buffer
	bad := &fullDisk{}
	l := NewLog(bad, &ok)
	for range 2 {
		if _, err := l.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if bad.writes != 1 || ok.String() != "xx" || l.Text() != "xx" {
		t.Errorf("%d writes to the bad one, %q to the good one, %q kept", bad.writes, ok.String(), l.Text())
	}
}
