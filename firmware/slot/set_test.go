package slot_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/slot"
)

func TestOrder(t *testing.T) {
	for _, tc := range []struct {
		name string
		want []string // first is booted next
	}{
		{"the newer generation is tried first", []string{"croft_0002_b_1.1.0+3.efi", "croft_0001_a_1.0.0.efi"}},
		{"a downgrade is tried first", []string{"croft_0003_a_0.9.0+3.efi", "croft_0002_b_1.1.0.efi"}},
		{"an older confirmed slot goes before a newer one without tries", []string{"croft_0001_a_1.0.0.efi", "croft_0002_b_1.1.0+0-3.efi"}},
		{"of two without tries the newer generation is tried", []string{"croft_0002_b_1.1.0+0-9.efi", "croft_0001_a_1.0.0+0-3.efi"}},
		{"generation 10000 is newer than 9999", []string{"croft_10000_a_1.0.0+3.efi", "croft_9999_b_1.0.0.efi"}},
		{"leftovers take part", []string{"croft_0003_a_2.efi", "croft_0002_b_1.efi", "croft_0001_a_3.efi"}},
		{"a rename cut short leaves two names, the counted one first", []string{"croft_0002_b_1.1.0+2-1.efi", "croft_0002_b_1.1.0.efi"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			shuffled := slices.Clone(tc.want)
			slices.Reverse(shuffled)
			if got := names(slot.ParseNames(shuffled)); !slices.Equal(got, tc.want) {
				t.Errorf("Order() = %v, want %v", got, tc.want)
			}
		})
	}
}

// The list is the one in the UAPI group's version format specification, which
// systemd's comparison is the reference for.
func TestCompareNamesFollowsTheVersionFormat(t *testing.T) {
	oldFirst := []string{"~1", "", "122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1", "123.1-1", "123a-1", "124-1", "00125", "1230"}
	for i, older := range oldFirst {
		for j, newer := range oldFirst {
			if got, want := sign(slot.CompareNames(older, newer)), sign(j-i); got != want {
				t.Errorf("%q against %q = %d, want %d", older, newer, got, want)
			}
		}
	}
	for _, equal := range [][2]string{{"123", "0123"}, {"123_a", "123a"}, {"CROFT_1", "croft_1"}, {"a+b", "a_b"}} {
		if slot.CompareNames(equal[0], equal[1]) != 0 {
			t.Errorf("%q and %q are not equal", equal[0], equal[1])
		}
	}
}

func TestOrderOfForeignNames(t *testing.T) {
	// A short name without its long one, as a torn directory can show it.
	if slot.CompareNames("CROFT_~1.EFI", "croft_0001_a_1.0.0.efi") <= 0 {
		t.Error("a short name goes before a confirmed croft file")
	}
	if slot.CompareNames("CROFT_~1.EFI", "croft_0001_a_1.0.0+0-3.efi") >= 0 {
		t.Error("a file without a counter goes after one without tries")
	}
}

func TestGenerations(t *testing.T) {
	if got := (slot.Set{}).NextGeneration(); got != 1 {
		t.Errorf("the first generation is %d, want 1", got)
	}
	set := slot.ParseNames([]string{"croft_9998_a_1.efi", "croft_9999_b_1.efi"})
	for range 3 { // past the four digits, and on
		var err error
		running, _ := set.Next()
		target, err := set.Target(running.Slot)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []slot.Move{
			{Running: running.Slot, Slot: target, Event: slot.Erase},
			{Running: running.Slot, Slot: target, Event: slot.Stage, Version: "0.1"},
			{Slot: target, Event: slot.Boot},
			{Running: target, Slot: target, Event: slot.Confirm},
		} {
			if set, err = set.Apply(m); err != nil {
				t.Fatal(err)
			}
		}
		if next, _ := set.Next(); next.Slot != target {
			t.Fatalf("%v: the newest generation is not booted", names(set))
		}
	}
	if want := "croft_10002_a_0.1.efi"; names(set)[0] != want {
		t.Errorf("after three installations %v, want %s first", names(set), want)
	}
	last := slot.ParseNames([]string{"croft_999999999_a_1.efi"})
	if _, err := last.Apply(slot.Move{Running: croft.SlotA, Slot: croft.SlotB, Event: slot.Stage, Version: "1"}); err == nil {
		t.Error("a generation that no name can carry was accepted")
	}
}

// TestNamesFitOneSector counts directory entries: a disk writes 16 of them whole
// or not at all.
func TestNamesFitOneSector(t *testing.T) {
	longest := croft.Version(strings.Repeat("1", slot.MaxVersion))
	set := slot.ParseNames([]string{"croft_9998_a_1.efi"})
	staged, err := set.Apply(slot.Move{Running: croft.SlotA, Slot: croft.SlotB, Event: slot.Stage, Version: longest})
	if err != nil {
		t.Fatal(err)
	}
	e := staged.Of(croft.SlotB)
	entries := func(name string) int { return (len(name)+12)/13 + 1 }
	most := 0
	for range 10 { // tries used up, and some boots more
		most = max(most, entries(e.Name()))
		if e, err = e.Next(slot.Boot); err != nil {
			t.Fatal(err)
		}
	}
	const dots = 2
	if used := dots + 2*most + most; used > 16 { // both slots, and the new name in a rename
		t.Errorf("two files with names like %s and a rename take %d entries", e.Name(), used)
	}
	if _, err := set.Apply(slot.Move{Running: croft.SlotA, Slot: croft.SlotB, Event: slot.Stage, Version: longest + "1"}); err == nil {
		t.Error("a version that is too long was accepted")
	}
}

func TestLeftoversDoNotSpeakForTheirSlot(t *testing.T) {
	set := slot.ParseNames([]string{"croft_0001_a_1.efi", "croft_0003_a_2.efi", "croft_0002_b_1+2-1.efi", "croft_0002_b_1.efi", "new.tmp"})
	if got := set.Of(croft.SlotA).Generation; got != 3 {
		t.Errorf("slot a is spoken for by generation %d, want 3", got)
	}
	if set.Of(croft.SlotB).State() != slot.Confirmed {
		t.Error("a confirmation cut short does not count")
	}
	after, err := set.Apply(slot.Move{Running: croft.SlotA, Slot: croft.SlotB, Event: slot.Erase})
	if err != nil || len(after.Order()) != 2 {
		t.Errorf("erasing slot b leaves %v, %v; want only slot a's", names(after), err)
	}
}

func TestTarget(t *testing.T) {
	for _, tc := range []struct {
		name    string
		files   []string
		running croft.Slot
		want    croft.Slot
		err     error
	}{
		{"the slot that is not running", []string{"croft_0001_a_1.efi"}, "a", "b", nil},
		{"a failed slot may be written again", []string{"croft_0001_a_1.efi", "croft_0002_b_2+0-3.efi"}, "a", "b", nil},
		{"nothing while the running slot is on trial", []string{"croft_0001_a_1.efi", "croft_0002_b_2+2-1.efi"}, "b", "", slot.ErrOnTrial},
		{"nothing during the last trial", []string{"croft_0001_a_1.efi", "croft_0002_b_2+0-3.efi"}, "b", "", slot.ErrOnTrial},
		{"nothing when the running slot has no boot file but the other has", []string{"croft_0001_a_1.efi"}, "b", "", slot.ErrNoFallback},
		{"an empty slot when there is no boot file at all", nil, "a", "b", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := slot.ParseNames(tc.files).Target(tc.running)
			if got != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("Target(%s) = %q, %v; want %q, %v", tc.running, got, err, tc.want, tc.err)
			}
		})
	}
	if _, err := (slot.Set{}).Target("c"); err == nil {
		t.Error("an unknown running slot was accepted")
	}
}

func TestThreeFailedTrialsLeadBack(t *testing.T) {
	set := slot.ParseNames([]string{"croft_0001_a_1.0.0.efi", "croft_0002_b_1.1.0+3.efi"})
	var booted []croft.Slot
	for range 5 {
		next, _ := set.Next()
		var err error
		if set, err = set.Apply(slot.Move{Slot: next.Slot, Event: slot.Boot}); err != nil {
			t.Fatal(err)
		}
		booted = append(booted, next.Slot)
	}
	if want := []croft.Slot{"b", "b", "b", "a", "a"}; !slices.Equal(booted, want) {
		t.Errorf("booted %v, want %v", booted, want)
	}
}

func TestDiagnose(t *testing.T) {
	failed := slot.Entry{Generation: 2, Slot: "b", Version: "1.1.0", Counted: true, Done: 3}
	for _, tc := range []struct {
		name string
		e    slot.Evidence
		want string
	}{
		{"no file", slot.Evidence{UKI: slot.UKIMissing}, "its boot file is missing"},
		{"a cut file explains more than any record", slot.Evidence{Entry: failed, UKI: slot.UKITruncated, HaveRecord: true, Stage: "agent"}, "its boot file is damaged"},
		{"dm-verity's panic is put in words", slot.Evidence{Entry: failed, UKI: slot.UKIIntact, Panic: "dm-verity device corrupted"}, "its root is damaged: the kernel read a block that does not match its hash"},
		{"a panic is quoted in one line", slot.Evidence{Entry: failed, UKI: slot.UKIIntact, Panic: "Attempted to kill init!\n exitcode=0x100"}, "its kernel panicked: Attempted to kill init! exitcode=0x100"},
		{"never tried", slot.Evidence{Entry: slot.Entry{Generation: 2, Counted: true, Left: 3}}, "it has not been started yet"},
		{"no record", slot.Evidence{Entry: failed}, "probably its kernel or first program failed before storage was ready"},
		{"init knew why", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "init", Reason: "root does not match its hash"}, "init: root does not match its hash"},
		{"init handed over to nothing", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "init"}, "its system did not start after init"},
		{"no agent", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "system"}, "its system started, but the agent did not"},
		{"the system knew why", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "system", Reason: "agent: exec format error"}, "system: agent: exec format error"},
		{"a crash loop", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "agent", AgentStarts: 12}, "the agent crashed again and again (12 starts)"},
		{"a crash loop with a reason", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "agent", AgentStarts: 12, Reason: "clock"}, "the agent crashed again and again (12 starts); it was not healthy: clock"},
		{"unhealthy", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "agent", AgentStarts: 1, Reason: "clock is before the build"}, "not healthy: clock is before the build"},
		{"a hang", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "agent", AgentStarts: 1}, "it stopped answering after the agent had started and the watchdog reset it"},
		{"demoted", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "healthy", Reason: "read error"}, "it had been healthy, then failed: read error"},
		{"demoted, nobody knows why", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "healthy"}, "it had been healthy, then failed for an unknown reason"},
		{"a stage of the future", slot.Evidence{Entry: failed, HaveRecord: true, Stage: "orbit"}, `unknown; its last record says stage "orbit"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := slot.Diagnose(tc.e); got != tc.want {
				t.Errorf("Diagnose = %q, want %q", got, tc.want)
			}
		})
	}
}
