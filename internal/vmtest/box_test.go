//go:build vm

package vmtest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/internal/rig"
)

// Where the parts of the disk begin, in bytes (images/build's layout).
const (
	espAt   = 1 << 20
	espSize = 512 << 20
	rootBAt = espAt + espSize + 2048<<20
	permAt  = rootBAt + 2048<<20
)

// bootLimit is how long a box may take from power-on to the end of a test's
// wait. It is no measure of speed: emulation on a busy machine is slow.
const bootLimit = 8 * time.Minute

// box is one virtual box under test.
type box struct {
	*rig.QEMU
	t    testing.TB
	disk string // its raw disk
	url  string
}

// settings are what a test may want different.
type settings struct {
	from   string // image the disk is copied from; default the release 1.0.0
	bus    rig.Bus
	size   int64
	memory int64
	tpm    bool
	disk   func(*rig.Disk)   // last changes to the disk
	config func(*rig.Config) // last changes to the machine
}

// newBox makes a box that is switched off.
func newBox(t testing.TB, s settings) *box {
	t.Helper()
	dir := t.TempDir()
	if s.from == "" {
		s.from = releases.good.Image
	}
	disk := filepath.Join(dir, "disk.img")
	copySparse(t, disk, s.from)
	if s.size > 0 {
		if err := os.Truncate(disk, s.size); err != nil {
			t.Fatal(err)
		}
	}
	d := rig.Disk{Path: disk, Bus: s.bus}
	if s.disk != nil {
		s.disk(&d)
	}
	cfg := rig.Config{
		Dir: filepath.Join(dir, "machine"), Memory: s.memory, TPM: s.tpm,
		Disks: []rig.Disk{d}, Forwards: []rig.Forward{{Guest: 80}},
	}
	if s.config != nil {
		s.config(&cfg)
	}
	m, err := rig.NewQEMU(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{QEMU: m, t: t, disk: disk}
	t.Cleanup(func() {
		if t.Failed() {
			text := m.Serial().Text()
			t.Logf("end of the serial output:\n%s", text[max(0, len(text)-6000):])
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	if len(cfg.Forwards) > 0 {
		address, err := m.Address(80)
		if err != nil {
			t.Fatal(err)
		}
		b.url = "http://" + address + "/"
	}
	return b
}

func copySparse(t testing.TB, to, from string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v\n%s", from, err, out)
	}
}

func (b *box) powerOn() {
	b.t.Helper()
	if err := b.PowerOn(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// ask gets the status from the owner page.
func (b *box) ask(ctx context.Context) (ownerpage.StatusJSON, error) {
	var s ownerpage.StatusJSON
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+"status.json", nil)
	if err != nil {
		return s, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// waitFor asks the page until the answer is as wanted.
func (b *box) waitFor(what string, want func(ownerpage.StatusJSON) bool) ownerpage.StatusJSON {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), bootLimit)
	defer cancel()
	var last ownerpage.StatusJSON
	for {
		s, err := b.ask(ctx)
		if err == nil {
			last = s
			if want(s) {
				return s
			}
		}
		select {
		case <-ctx.Done():
			b.t.Fatalf("the box never was %s; its last answer was %+v, the last error %v", what, last, err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// waitConfirmed waits until the agent found the boot healthy: the slot it runs
// in has lost its counter, and the page no longer says that the box is starting.
func (b *box) waitConfirmed() ownerpage.StatusJSON {
	b.t.Helper()
	return b.waitFor("confirmed", func(s ownerpage.StatusJSON) bool {
		return (s.State == ownerpage.Healthy || s.State == ownerpage.Attention) && s.Network == ownerpage.Online &&
			b.slots().Of(s.Slot).State() == slot.Confirmed
	})
}

// shutDown presses the power button and waits for the box to go off.
func (b *box) shutDown() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	if err := b.PressPower(ctx); err != nil {
		b.t.Fatal(err)
	}
	if err := b.WaitOff(ctx); err != nil {
		b.t.Fatalf("switch off: %v", err)
	}
}

func (b *box) cut() {
	b.t.Helper()
	if err := b.Cut(); err != nil {
		b.t.Fatal(err)
	}
}

// waitSerial waits for a line on the serial port.
func (b *box) waitSerial(from int, pattern string) rig.Match {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), bootLimit)
	defer cancel()
	m, err := rig.WaitSerial(ctx, b, from, pattern)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

// slots reads the names on the EFI partition, as the boot loader would find
// them if the power went now.
func (b *box) slots() slot.Set {
	b.t.Helper()
	f, err := os.Open(b.disk)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	volume, err := esp.OpenVolume(io.NewSectionReader(f, espAt, espSize))
	if err != nil {
		b.t.Fatal(err)
	}
	set, err := volume.Read()
	if err != nil {
		b.t.Fatal(err)
	}
	return set
}

func (b *box) wantState(s croft.Slot, want slot.State) slot.Entry {
	b.t.Helper()
	e := b.slots().Of(s)
	if e.State() != want {
		b.t.Errorf("slot %s is %s (%s), want %s", s, e.State(), e.Name(), want)
	}
	return e
}

// stage puts a release into slot B of a box that is off, as an update does: root
// first, then the boot file with its tries.
func (b *box) stage(root, uki, name string) {
	b.t.Helper()
	b.writeAt(rootBAt, root)
	cmd := exec.CommandContext(b.t.Context(), "mcopy", "-o", "-i", b.disk+"@@1M", uki, "::/EFI/Linux/"+name)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("put %s on the EFI partition: %v\n%s", name, err, out)
	}
}

// half is a copy of a file that ends in the middle.
func half(t *testing.T, path string) string {
	t.Helper()
	short := filepath.Join(t.TempDir(), "short.efi")
	raw, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(short, raw[:len(raw)/2], 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return short
}

// writeAt copies a file to an offset of the disk.
func (b *box) writeAt(offset int64, path string) {
	b.t.Helper()
	from, err := os.Open(path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(b.disk, os.O_WRONLY, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	_, err = io.Copy(io.NewOffsetWriter(to, offset), from)
	if err := errors.Join(err, to.Close()); err != nil {
		b.t.Fatal(err)
	}
}

// flip inverts one byte of the disk.
func (b *box) flip(offset int64) {
	b.t.Helper()
	f, err := os.OpenFile(b.disk, os.O_RDWR, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	one := make([]byte, 1)
	if _, err := f.ReadAt(one, offset); err != nil {
		b.t.Fatal(err)
	}
	one[0] ^= 0xff
	if _, err := f.WriteAt(one, offset); err != nil {
		b.t.Fatal(err)
	}
}

// confirmed is the disk of a box that found release 1.0.0 healthy in slot A and
// was shut down. The first test that needs it makes it.
func confirmed(t testing.TB) string {
	t.Helper()
	releases.mu.Lock()
	defer releases.mu.Unlock()
	if releases.image == "" {
		b := newBox(t, settings{size: 6 << 30})
		b.powerOn()
		b.waitConfirmed()
		b.shutDown()
		image := filepath.Join(releases.dir, "confirmed.img")
		copySparse(t, image, b.disk)
		releases.image = image
	}
	return releases.image
}

func contains(text string, parts ...string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}
