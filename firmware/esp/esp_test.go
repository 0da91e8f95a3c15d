package esp_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/esp/crashtest"
	"github.com/croft-cloud/croft/firmware/slot"
)

var (
	imageA = crashtest.UKI("root=a", 100<<10, 1)
	imageB = crashtest.UKI("root=b quiet", 3<<20, 2)
)

// partition is a folder in the place of a mounted EFI system partition.
func partition(t *testing.T, files map[string][]byte) (p *esp.Partition, dir string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, filepath.FromSlash(esp.Dir))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := esp.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return p, dir
}

func ls(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func uki(content []byte) esp.UKI {
	return esp.UKI{Version: "1.1.0", Size: int64(len(content)), SHA256: sha256.Sum256(content), Body: bytes.NewReader(content)}
}

func TestInstall(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string][]byte
		want  []string
	}{
		{"into an empty slot", map[string][]byte{"croft_0001_a_1.0.0.efi": imageA}, []string{"croft_0001_a_1.0.0.efi", "croft_0002_b_1.1.0+3.efi"}},
		{"over a failed slot and all leftovers", map[string][]byte{
			"croft_0005_a_1.0.0.efi": imageA, "croft_0006_b_2.0.0+0-3.efi": imageA, "croft_0004_b_0.9.0.efi": imageA,
			"croft_0003_b_0.8.0.efi": nil, "new.tmp": []byte("half"), "other.efi": []byte("foreign"),
		}, []string{"croft_0005_a_1.0.0.efi", "croft_0006_b_1.1.0+3.efi", "other.efi"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, dir := partition(t, tc.files)
			e, err := p.Install(t.Context(), croft.SlotA, croft.SlotB, uki(imageB))
			if err != nil {
				t.Fatal(err)
			}
			if got := ls(t, dir); !slices.Equal(got, tc.want) {
				t.Errorf("files %q, want %q", got, tc.want)
			}
			if content, err := os.ReadFile(p.Path(e)); err != nil || !bytes.Equal(content, imageB) {
				t.Errorf("the content of %s is wrong: %v", e.Name(), err)
			}
			set, err := p.Read()
			if next, _ := set.Next(); err != nil || next != e {
				t.Errorf("the loader starts %s next, %v; want %s", next.Name(), err, e.Name())
			}
		})
	}
}

func TestInstallRefuses(t *testing.T) {
	const running = "croft_0001_a_1.0.0.efi"
	good := map[string][]byte{running: imageA, "croft_0002_b_0.9.0+0-3.efi": imageA}
	wrongSum := uki(imageB)
	wrongSum.SHA256[0]++
	huge := uki(imageB)
	huge.Size = 1 << 60
	long := uki(imageB)
	long.Body = io.MultiReader(bytes.NewReader(imageB), bytes.NewReader([]byte("more")))
	broken := uki(imageB)
	broken.Body = io.MultiReader(bytes.NewReader(imageB[:1000]), iotest.ErrReader(errors.New("line is cut")))
	badVersion := uki(imageB)
	badVersion.Version = "../../x"
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name    string
		files   map[string][]byte
		ctx     context.Context
		target  croft.Slot
		uki     esp.UKI
		kind    croft.Kind
		is      error
		touches bool // the target slot may be empty afterwards
	}{
		{name: "the running slot", target: croft.SlotA, uki: uki(imageB), kind: croft.KindRefused, is: slot.ErrSlotBusy},
		{name: "no slot at all", target: "", uki: uki(imageB), kind: croft.KindRefused},
		{name: "while the running slot is on trial", files: map[string][]byte{"croft_0003_a_1.0.0+2-1.efi": imageA, "croft_0002_b_0.9.0.efi": imageA}, target: croft.SlotB, uki: uki(imageB), kind: croft.KindRefused, is: slot.ErrOnTrial},
		{name: "a version that is no file name", target: croft.SlotB, uki: badVersion, kind: croft.KindRefused},
		{name: "what does not fit", target: croft.SlotB, uki: huge, kind: croft.KindNoSpace},
		{name: "another content than announced", target: croft.SlotB, uki: wrongSum, kind: croft.KindInvalid, touches: true},
		{name: "more than announced", target: croft.SlotB, uki: long, kind: croft.KindInvalid, touches: true},
		{name: "what is no boot file", target: croft.SlotB, uki: uki([]byte("MZ, and nothing else")), kind: croft.KindInvalid, touches: true},
		{name: "a truncated image", target: croft.SlotB, uki: uki(imageB[:len(imageB)-600]), kind: croft.KindInvalid, touches: true},
		{name: "a body that breaks off", target: croft.SlotB, uki: broken, touches: true},
		{name: "after it was cancelled", ctx: cancelled, target: croft.SlotB, uki: uki(imageB), is: context.Canceled, touches: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.files == nil {
				tc.files = good
			}
			if tc.ctx == nil {
				tc.ctx = t.Context()
			}
			p, dir := partition(t, tc.files)
			before := ls(t, dir)
			_, err := p.Install(tc.ctx, croft.SlotA, tc.target, tc.uki)
			if err == nil || croft.KindOf(err) != tc.kind || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error %v of kind %q, want kind %q, %v", err, croft.KindOf(err), tc.kind, tc.is)
			}
			want := before
			if tc.touches {
				want = []string{running}
			}
			if got := ls(t, dir); !slices.Equal(got, want) {
				t.Errorf("files %q, want %q", got, want)
			}
		})
	}
}

func TestMarks(t *testing.T) {
	const a = "croft_0001_a_1.0.0.efi"
	confirm, refund, demote := (*esp.Partition).Confirm, (*esp.Partition).Refund, (*esp.Partition).Demote
	for _, tc := range []struct {
		name string
		b    string // slot B's file; B runs
		mark func(*esp.Partition, croft.Slot) error
		want string
	}{
		{name: "a trial is confirmed", b: "croft_0002_b_1.1.0+2-1.efi", mark: confirm, want: "croft_0002_b_1.1.0.efi"},
		{name: "the last trial is confirmed", b: "croft_0002_b_1.1.0+0-3.efi", mark: confirm, want: "croft_0002_b_1.1.0.efi"},
		{name: "a try is given back, once", b: "croft_0002_b_1.1.0+1-2.efi", mark: refund, want: "croft_0002_b_1.1.0+2-1.efi"},
		{name: "a confirmed slot has no tries to count", b: "croft_0002_b_1.1.0.efi", mark: (*esp.Partition).Count, want: "croft_0002_b_1.1.0.efi"},
		{name: "a confirmed slot is demoted", b: "croft_0002_b_1.1.0.efi", mark: demote, want: "croft_0002_b_1.1.0+0-3.efi"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, dir := partition(t, map[string][]byte{a: imageA, tc.b: imageB, "croft_0002_b_1.1.0.tmp": nil})
			for range 2 {
				if err := tc.mark(p, croft.SlotB); err != nil {
					t.Fatal(err)
				}
				if got, want := ls(t, dir), []string{a, tc.want, "croft_0002_b_1.1.0.tmp"}; !slices.Equal(got, slices.Sorted(slices.Values(want))) {
					t.Errorf("files %q, want %q", got, want)
				}
			}
		})
	}
}

func TestCountTakesATryEachTime(t *testing.T) {
	p, dir := partition(t, map[string][]byte{"croft_0001_a_1.0.0.efi": imageA, "croft_0002_b_1.1.0+3.efi": imageB})
	for _, want := range []string{"croft_0002_b_1.1.0+2-1.efi", "croft_0002_b_1.1.0+1-2.efi", "croft_0002_b_1.1.0+0-3.efi"} {
		if err := p.Count(croft.SlotB); err != nil {
			t.Fatal(err)
		}
		if got := ls(t, dir); !slices.Contains(got, want) || len(got) != 2 {
			t.Errorf("files %q, want %s", got, want)
		}
	}
}

func TestMarksAreRefused(t *testing.T) {
	p, dir := partition(t, map[string][]byte{"croft_0001_a_1.0.0.efi": imageA})
	before := ls(t, dir)
	for name, err := range map[string]error{
		"confirming a slot without a file": p.Confirm(croft.SlotB),
		"a refund after the confirmation":  p.Refund(croft.SlotA),
		"demoting the only slot":           p.Demote(croft.SlotA),
		"erasing the running slot":         p.Erase(croft.SlotA, croft.SlotA),
		"erasing the only slot":            p.Erase(croft.SlotB, croft.SlotA),
	} {
		if croft.KindOf(err) != croft.KindRefused {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
	if got := ls(t, dir); !slices.Equal(got, before) {
		t.Errorf("files %q, before %q", got, before)
	}
}

func TestConfirmDoesNotReplaceAFile(t *testing.T) {
	// Two names of one content, on a partition that was not mended: confirmed is
	// confirmed, and nothing is renamed over anything.
	p, dir := partition(t, map[string][]byte{"croft_0002_b_1.1.0+2-1.efi": imageB, "croft_0002_b_1.1.0.efi": imageB})
	if err := p.Confirm(croft.SlotB); err != nil {
		t.Fatal(err)
	}
	if got := ls(t, dir); len(got) != 2 {
		t.Errorf("files %q, want both left alone", got)
	}
	// A name without content is in the way of a confirmation: it goes.
	p, dir = partition(t, map[string][]byte{"croft_0002_b_1.1.0+2-1.efi": imageB, "croft_0002_b_1.1.0.efi": nil})
	if err := p.Confirm(croft.SlotB); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(filepath.Join(dir, "croft_0002_b_1.1.0.efi")); err != nil || !bytes.Equal(content, imageB) || len(ls(t, dir)) != 1 {
		t.Errorf("files %q, %v; want only the confirmed one", ls(t, dir), err)
	}
}

func TestErase(t *testing.T) {
	p, dir := partition(t, map[string][]byte{"croft_0001_a_1.0.0.efi": imageA, "croft_0002_b_1.1.0.efi": imageB, "croft_0002_b_1.1.0+2-1.efi": imageB, "new.tmp": imageB})
	for range 2 {
		if err := p.Erase(croft.SlotA, croft.SlotB); err != nil {
			t.Fatal(err)
		}
		if got, want := ls(t, dir), []string{"croft_0001_a_1.0.0.efi"}; !slices.Equal(got, want) {
			t.Errorf("files %q, want %q", got, want)
		}
	}
}

func TestOpenRefusesAForeignPartition(t *testing.T) {
	if _, err := esp.Open(t.TempDir()); croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("error %v, want one of kind invalid", err)
	}
	if _, err := esp.OpenVolume(bytes.NewReader(make([]byte, 1<<20))); err == nil {
		t.Error("zeros were opened as a volume")
	}
}

func TestCmdline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.efi")
	if err := os.WriteFile(path, imageB, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := esp.Cmdline(path); err != nil || got != "root=b quiet" {
		t.Errorf("Cmdline = %q, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := esp.Cmdline(path); err == nil {
		t.Errorf("Cmdline of no program = %q", got)
	}
}
