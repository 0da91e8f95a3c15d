package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/slot"
)

func TestPanicLine(t *testing.T) {
	for _, tc := range []struct{ name, dump, want string }{
		{"a dump of the firmware's memory", "Panic#1 Part1\n<0>[    5.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n<4>[    5.1] CPU: 0", "Attempted to kill init! exitcode=0x00000100"},
		{"the last of two", "Kernel panic - not syncing: first\nKernel panic - not syncing: second\n", "second"},
		{"the closing line of a panic", "---[ end Kernel panic - not syncing: VFS: no root ]---\n", "VFS: no root"},
		{"a dump cut off in the line", "<0>Kernel panic - not syncing: dm-verity dev", "dm-verity dev"},
		{"an oops alone", "Oops#1 Part1\nBUG: unable to handle page fault\n", ""},
		{"a dump that could not be unpacked", "\x78\x9c\x00\x01", ""},
		{"nothing", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := panicLine(tc.dump); got != tc.want {
				t.Errorf("panicLine() = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTakePanicReturnsTheNewestAndRemovesThemAll(t *testing.T) {
	dir := t.TempDir()
	for name, dump := range map[string]string{
		// dmesg-<store>-<seconds><part, 2 digits><count, 3 digits>
		"dmesg-efi_pstore-170000000001001": "Kernel panic - not syncing: z, the older one\n",
		"dmesg-efi_pstore-180000000001001": "Kernel panic - not syncing: a, the newer one\n",
		"dmesg-efi_pstore-180000000002001": "earlier lines of the same dump\n",
		"dmesg-efi_pstore-90000000001001":  "Kernel panic - not syncing: with the clock at its start\n",
		"console-ramoops-0":                "Kernel panic - not syncing: somebody else's\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(dump), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := takePanic(dir); got != "a, the newer one" {
		t.Errorf("takePanic() = %q", got)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("left are %q", left)
	}
	if got := takePanic(dir); got != "" {
		t.Errorf("the second time: %q", got)
	}
}

func TestSlotIsDecidedByContentAndOnlyThenByName(t *testing.T) {
	const a, b = croft.SlotA, croft.SlotB
	set := func(names ...string) slot.Set { return slot.ParseNames(names) }
	lastTry := set("croft_0001_a_1.0.0.efi", "croft_0002_b_1.1.0+0-3.efi") // the loader's order is a, b
	for _, tc := range []struct {
		name     string
		holds    map[croft.Slot]bool
		selected string
		set      slot.Set
		want     croft.Slot
	}{
		{"one holds the root: no name counts", map[croft.Slot]bool{b: true}, "croft_0001_a_1.0.0.efi", lastTry, b},
		{"and the other way round", map[croft.Slot]bool{a: true}, "croft_0002_b_1.1.0+1-2.efi", lastTry, a},
		{"both hold it: the loader says which it started", map[croft.Slot]bool{a: true, b: true}, "croft_0002_b_1.1.0+1-2.efi", lastTry, b},
		{"both hold it and the loader says nothing", map[croft.Slot]bool{a: true, b: true}, "", lastTry, a},
		{"none holds it: the last try of b, as the loader says", nil, "croft_0002_b_1.1.0+1-2.efi", lastTry, b},
		{"none holds it and the loader names a stranger", nil, "arch.conf", lastTry, a},
		{"nothing is known", nil, "", set(), a},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := chooseSlot(tc.holds, namedSlot(tc.selected, tc.set)); got != tc.want {
				t.Errorf("slot is %s, want %s", got, tc.want)
			}
		})
	}
}

func TestKernelMayPanicOnlyInATrialWithAWayBack(t *testing.T) {
	for _, tc := range []struct {
		name        string
		entries     []string
		alternative bool
		panics      bool
	}{
		{"a trial next to a confirmed slot", []string{"croft_0002_a_1.1.0+2-1.efi", "croft_0001_b_1.0.0.efi"}, true, true},
		{"its last try", []string{"croft_0002_a_1.1.0+0-3.efi", "croft_0001_b_1.0.0.efi"}, true, true},
		{"a confirmed slot next to another", []string{"croft_0002_a_1.1.0.efi", "croft_0001_b_1.0.0.efi"}, true, false},
		{"a trial next to a slot without tries", []string{"croft_0002_a_1.1.0+2-1.efi", "croft_0001_b_1.0.0+0-3.efi"}, false, false},
		{"a factory image", []string{"croft_0001_a_1.0.0+2-1.efi"}, false, false},
		{"an EFI partition that could not be read", nil, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &boot{set: slot.ParseNames(tc.entries)}
			b.report.Slot = croft.SlotA
			if got := b.alternative(); got != tc.alternative {
				t.Errorf("alternative() = %v", got)
			}
			if got := b.panicOnCorruption(); got != tc.panics {
				t.Errorf("panicOnCorruption() = %v", got)
			}
		})
	}
}

func TestTryThatTheFirmwareDidNotCount(t *testing.T) {
	for _, tc := range []struct {
		name, selected, running string
		want                    bool
	}{
		{"counted", "croft_0002_b_1.1.0+3.efi", "croft_0002_b_1.1.0+2-1.efi", false},
		{"not counted at the first try", "croft_0002_b_1.1.0+3.efi", "croft_0002_b_1.1.0+3.efi", true},
		{"not counted at the second try", "croft_0002_b_1.1.0+2-1.efi", "croft_0002_b_1.1.0+2-1.efi", true},
		{"the last one counted", "croft_0002_b_1.1.0+1-2.efi", "croft_0002_b_1.1.0+0-3.efi", false},
		{"a confirmed slot has none", "croft_0002_b_1.1.0.efi", "croft_0002_b_1.1.0.efi", false},
		{"the loader says nothing", "", "croft_0002_b_1.1.0+3.efi", false},
		{"there is no boot file", "", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set := slot.ParseNames([]string{tc.running})
			if got := uncounted(tc.selected, set.Of(croft.SlotB)); got != tc.want {
				t.Errorf("uncounted() = %v", got)
			}
		})
	}
}

func TestWhoIsToldWhat(t *testing.T) {
	var screen bytes.Buffer
	b := &boot{screen: &screen}
	b.say("for support only")
	b.tell("for whoever waits")
	b.note("Disk %s is ignored.", "/dev/sdb")
	b.notLoaded([]error{errors.New("load module kvm: no")})
	if got := screen.String(); got != "for whoever waits\nDisk /dev/sdb is ignored.\n" {
		t.Errorf("the screen shows %q", got)
	}
	if got := b.report.Notes; len(got) != 1 || got[0] != "Disk /dev/sdb is ignored." {
		t.Errorf("notes are %q", got)
	}
	if got := b.report.Modules; len(got) != 1 || got[0] != "load module kvm: no" {
		t.Errorf("modules are %q", got)
	}
	// Nothing is known yet, there is no watchdog and no disk.
	b.feed()
	if err := b.hold(diskLimit, func() error { return errors.New("no disk") }); err == nil {
		t.Error("the error got lost")
	}
	b.leaveWord(errors.New("no disk"))
}
