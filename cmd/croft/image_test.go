package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/agent/ownerpage/letting"
	"github.com/croft-cloud/croft/images/media"
)

func TestEveryKindHasAnExitCodeOfItsOwn(t *testing.T) {
	seen := map[int]croft.Kind{0: "none"}
	for _, kind := range []croft.Kind{
		croft.KindOther, croft.KindUsage, croft.KindNotFound, croft.KindRefused, croft.KindMissing, croft.KindNoSpace, croft.KindInvalid,
	} {
		code := exitCode(&croft.Error{Kind: kind, Err: errors.New("it broke")})
		if other, ok := seen[code]; ok {
			t.Errorf("kind %q has exit code %d, so has %q", kind, code, other)
		}
		seen[code] = kind
	}
}

func TestConfirm(t *testing.T) {
	for _, tc := range []struct {
		name, typed string
		ok          bool
	}{
		{"the name", "sdx\n", true},
		{"the name and spaces", "  sdx \r\n", true},
		{"the name without an end of line", "sdx", true},
		{"its path", "/dev/sdx\n", false},
		{"another disk", "sda\n", false},
		{"yes", "yes\n", false},
		{"just Enter", "\n", false},
		{"nothing", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := &cobra.Command{}
			cmd.SetContext(t.Context())
			cmd.SetIn(strings.NewReader(tc.typed))
			cmd.SetErr(io.Discard)
			err := confirm(cmd, "sdx")
			if tc.ok && err != nil || !tc.ok && croft.KindOf(err) != croft.KindRefused {
				t.Errorf("confirm = %v, want ok: %v", err, tc.ok)
			}
		})
	}
}

func TestConfirmEndsWithCtrlC(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	stdin, typing := io.Pipe()
	defer typing.Close()
	cmd := &cobra.Command{}
	cmd.SetContext(ctx)
	cmd.SetIn(stdin)
	cmd.SetErr(io.Discard)
	if err := confirm(cmd, "sdx"); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("confirm = %v, want an error of kind %q", err, croft.KindRefused)
	}
}

func TestProgress(t *testing.T) {
	for _, tc := range []struct {
		name      string
		overwrite bool
		want      string
	}{
		{"in a file, one line a second", false, "" +
			"writing:  50 % of 100 MiB, 50 MiB/s\n" +
			"writing: 100 % of 100 MiB, 50 MiB/s\n" +
			"checking: 100 % of 100 MiB\n"},
		{"on a terminal, over the last line", true, "" +
			"\rwriting:  50 % of 100 MiB, 50 MiB/s                         " +
			"\rwriting: 100 % of 100 MiB, 50 MiB/s                         \n" +
			"\rchecking: 100 % of 100 MiB                                  \n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got bytes.Buffer
				p := progress{w: &got, overwrite: tc.overwrite}
				for done := int64(0); done <= 100; done += 10 {
					p.show("writing", done<<20, 100<<20)
					time.Sleep(200 * time.Millisecond)
				}
				p.show("checking", 0, 100<<20)
				p.show("checking", 100<<20, 100<<20)
				if got.String() != tc.want {
					t.Errorf("printed\n%q, want\n%q", got.String(), tc.want)
				}
			})
		})
	}
}

// The demo reads the owner page without sharing its types.
func TestDemoReadsWhatTheOwnerPageSays(t *testing.T) {
	room := letting.Room{CPU: 100, Memory: 1 << 29, Storage: 1 << 29}
	month := letting.Coin{Denom: "uakt", Amount: 1_240_000}
	for _, tc := range []struct {
		name               string
		report             letting.Report
		open, earns, empty bool
	}{
		{"a new box waits", letting.Report{State: letting.NoChain}, false, false, false},
		{"a box without work is open", letting.Report{State: letting.Open}, true, false, true},
		{"what is kept for an offer is not free", letting.Report{State: letting.Open, Offered: room}, true, false, false},
		{"what a lease left is not free", letting.Report{State: letting.Open, Leased: room}, true, false, false},
		{"a box with a tenant earns", letting.Report{State: letting.Working, Tenants: 1, Leased: room, Leases: []letting.Lease{{Room: room, Month: month}}}, false, true, false},
		{"how much is not known at once", letting.Report{State: letting.Working, Tenants: 1, Leased: room, Leases: []letting.Lease{{Room: room}}}, false, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.report.Account = "akash1vz375dkt0c60annyp6mkzeejfq0qpyevhseu05"
			words := tc.report.Words()
			raw, err := json.Marshal(ownerpage.StatusJSON{Name: "croft-abcd", Slot: croft.SlotB, State: ownerpage.Healthy, Network: ownerpage.Online, Hosting: &words})
			if err != nil {
				t.Fatal(err)
			}
			var s boxStatus
			if err := json.Unmarshal(raw, &s); err != nil {
				t.Fatal(err)
			}
			if !s.healthy() || s.Name != "croft-abcd" || s.Slot != croft.SlotB || string(s.Hosting.Account) != tc.report.Account || s.Hosting.Line != words.Line {
				t.Errorf("read %+v from %s", s, raw)
			}
			if s.open() != tc.open || s.earns() != tc.earns || s.free() != tc.empty {
				t.Errorf("open %v, earns %v, free %v; want %v, %v, %v", s.open(), s.earns(), s.free(), tc.open, tc.earns, tc.empty)
			}
		})
	}
}

// Two demos in one folder would take each other's disks away.
func TestOneDemoAtATime(t *testing.T) {
	out := filepath.Join(t.TempDir(), "build")
	unlock, err := lockDemo(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDemo(out); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("second demo: %v, want an error of kind %q", err, croft.KindRefused)
	}
	unlock()
	if unlock, err = lockDemo(out); err != nil {
		t.Fatalf("after the first: %v", err)
	}
	unlock()
}

// The demo shows that time goes by, and only when nothing else does.
func TestDemoShowsThatTimeGoesBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got bytes.Buffer
		d := &demo{w: &lastWrite{w: &got}}
		err := d.play(t.Context(), []step{
			{"one", func(context.Context) (string, error) {
				time.Sleep(4500 * time.Millisecond)
				d.tell("still here")
				time.Sleep(6 * time.Second)
				return "done", nil
			}},
			{"two", func(context.Context) (string, error) { return "", errors.New("it rains") }},
		})
		if err == nil || err.Error() != "step 2, two: it rains" {
			t.Errorf("error is %v", err)
		}
		if want := "    still here\n    … one, 10 s\n 1  one                                                    10.5 s  done\n"; got.String() != want {
			t.Errorf("printed\n%s, want\n%s", got.String(), want)
		}
	})
}

func TestIndentedPassesWholeLinesOn(t *testing.T) {
	var got bytes.Buffer
	w := &indented{w: &got}
	for _, part := range []string{"one", " line\nan", "other\n", "half"} {
		if _, err := io.WriteString(w, part); err != nil {
			t.Fatal(err)
		}
	}
	if want := "    one line\n    another\n"; got.String() != want {
		t.Errorf("printed %q, want %q", got.String(), want)
	}
}

// Whatever a broken disk returns, inspect answers, soon and without a panic.
func TestInspectSurvivesDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "box.img")
	if err := makeImage(path, imageOptions{sector: 512, used: true}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	fine, refused := 0, 0
	for range 400 {
		at := []int64{
			int64(rng.IntN(2 << 10)),                  // partition table
			testESP<<20 + int64(rng.IntN(512)),        // boot sector of the EFI partition
			testESP<<20 + 16<<10 + rng.Int64N(64<<10), // its tables
			testESP<<20 + rng.Int64N(300<<10),         // its folders and files
		}[rng.IntN(4)]
		old, noise := make([]byte, 1+rng.IntN(64)), make([]byte, 64)
		for i := range noise {
			noise[i] = byte(rng.UintN(256) * rng.UintN(2))
		}
		if _, err := f.ReadAt(old, at); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(noise[:len(old)], at); err != nil {
			t.Fatal(err)
		}
		about, err := media.Inspect(path)
		switch {
		case err != nil:
			refused++
			if croft.KindOf(err) != croft.KindInvalid {
				t.Errorf("%d bytes of noise at %d: %v, want an error of kind %q", len(old), at, err, croft.KindInvalid)
			}
		default:
			fine++
			if about.Text() == "" {
				t.Errorf("%d bytes of noise at %d: no explanation", len(old), at)
			}
			if _, err := json.Marshal(about); err != nil {
				t.Errorf("%d bytes of noise at %d: %v", len(old), at, err)
			}
		}
		if _, err := f.WriteAt(old, at); err != nil {
			t.Fatal(err)
		}
	}
	if fine == 0 || refused == 0 {
		t.Errorf("%d damaged images explained, %d refused: want some of both", fine, refused)
	}
}
