package bootlog

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft"
)

var full = Attempt{
	BootID: "boot-1", Version: "1.0.0", RootHash: "aa", Stage: StageAgent, Reason: "clock: it shows 1970",
	AgentStarts: 2, Refunds: 1, Stopped: true, At: time.Date(2026, 7, 1, 8, 0, 0, 0, time.UTC),
}

func TestRecordsComeBackAsWritten(t *testing.T) {
	log := Open(t.TempDir())
	if got, err := log.Read(); err != nil || len(got) != 0 {
		t.Fatalf("a new log holds %v (%v), want nothing", got, err)
	}
	want := map[croft.Slot]Attempt{croft.SlotA: full, croft.SlotB: {BootID: "boot-2", Stage: StageInit}}
	for slot, a := range want {
		if err := log.Write(slot, a); err != nil {
			t.Fatal(err)
		}
	}
	got, err := log.Read()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("read differs from written (-written +read):\n%s", diff)
	}
}

func TestDamagedRecordCountsAsNoneAndHurtsNoOther(t *testing.T) {
	for _, tc := range []struct{ name, content string }{
		{"empty", ""},
		{"zeros, as after a power cut on a poor disk", "\x00\x00\x00\x00"},
		{"cut off", `{"boot_id":"boo`},
		{"another kind of JSON", `["boot_id"]`},
		{"another type of value", `{"boot_id":7}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := Open(t.TempDir())
			if err := log.Write(croft.SlotB, full); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(log.file(croft.SlotA), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := log.Read()
			if err == nil {
				t.Error("the damage was not reported")
			}
			if diff := cmp.Diff(map[croft.Slot]Attempt{croft.SlotB: full}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			// The next boot replaces it.
			if err := log.Write(croft.SlotA, got[croft.SlotA].Next("boot-3", "1.1.0", "bb")); err != nil {
				t.Fatal(err)
			}
			if _, err := log.Read(); err != nil {
				t.Errorf("still damaged after the next boot: %v", err)
			}
		})
	}
}

func TestUpdateWritesOnlyWhatChanged(t *testing.T) {
	perm := t.TempDir()
	log := Open(perm)
	onlyMine := func(a *Attempt) {
		if a.BootID == "boot-1" {
			a.Stage = StageSystem
		}
	}
	if err := log.Update(croft.SlotA, onlyMine); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(perm, Dir)); err == nil {
		t.Error("an update that changes nothing made a record")
	}
	if err := log.Write(croft.SlotA, Attempt{BootID: "boot-1", Stage: StageInit}); err != nil {
		t.Fatal(err)
	}
	if err := log.Update(croft.SlotA, onlyMine); err != nil {
		t.Fatal(err)
	}
	got, err := log.Read()
	if err != nil || got[croft.SlotA].Stage != StageSystem {
		t.Errorf("record is %+v (%v), want stage system", got[croft.SlotA], err)
	}
	before, err := os.Stat(log.file(croft.SlotA))
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Update(croft.SlotA, onlyMine); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(log.file(croft.SlotA))
	if err != nil || !os.SameFile(before, after) {
		t.Error("an update that changes nothing replaced the file")
	}
	// A damaged record of the other slot is not this one's trouble.
	if err := os.WriteFile(log.file(croft.SlotB), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := log.Update(croft.SlotA, func(a *Attempt) { a.Stage = StageAgent }); err != nil {
		t.Error(err)
	}
}

func TestUpdateReportsWhatCannotBeWritten(t *testing.T) {
	perm := t.TempDir()
	if err := os.WriteFile(filepath.Join(perm, "croft"), nil, 0o600); err != nil { // where a folder should be
		t.Fatal(err)
	}
	if err := Open(perm).Update(croft.SlotA, func(a *Attempt) { a.Reason = "x" }); err == nil {
		t.Error("no error")
	}
}

func TestNextKeepsOnlyWhatBelongsToTheRoot(t *testing.T) {
	fresh := Attempt{BootID: "boot-2", Version: "1.0.0", RootHash: "aa", Stage: StageInit}
	counted := fresh
	counted.Refunds = full.Refunds
	for _, tc := range []struct {
		name string
		last Attempt
		hash string
		want Attempt
	}{
		{"the first boot of all", Attempt{}, "aa", fresh},
		{"the same root keeps its refunds", full, "aa", counted},
		{"another root begins at nothing", full, "bb", Attempt{BootID: "boot-2", Version: "1.0.0", RootHash: "bb", Stage: StageInit}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, tc.last.Next("boot-2", "1.0.0", tc.hash)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnclean(t *testing.T) {
	for _, tc := range []struct {
		name string
		last Attempt
		want bool
	}{
		{"no boot is known", Attempt{}, false},
		{"it was shut down", Attempt{BootID: "boot-1", Stopped: true}, false},
		{"it just ended", Attempt{BootID: "boot-1", Stage: StageHealthy}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.last.Unclean(); got != tc.want {
				t.Errorf("Unclean() = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestOnlyTheFirstFourStatesOfPermKeep(t *testing.T) {
	for state, want := range map[PermState]bool{
		PermOK: true, PermCreated: true, PermRepaired: true, PermRenewed: true,
		PermReadOnly: false, PermLost: false, "": false, "later": false,
	} {
		if got := (Perm{State: state}).Keeps(); got != want {
			t.Errorf("%q keeps = %v, want %v", state, got, want)
		}
	}
}

func TestReadHandover(t *testing.T) {
	path := filepath.Join(t.TempDir(), "handover.json")
	if _, err := ReadHandover(path); err == nil {
		t.Error("no error without a file")
	}
	if err := os.WriteFile(path, []byte(`{"slot":"b","uptime":7000000000,"before":{"a":{"boot_id":"x"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := ReadHandover(path)
	if err != nil || h.Slot != croft.SlotB || h.Uptime != 7*time.Second || h.Before[croft.SlotA].BootID != "x" {
		t.Errorf("handover is %+v (%v)", h, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadHandover(path); err == nil {
		t.Error("no error for a damaged file")
	}
}
