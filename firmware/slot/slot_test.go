package slot_test

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/slot"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	states = []slot.State{slot.Empty, slot.Trial, slot.Exhausted, slot.Confirmed}
	events = []slot.Event{slot.Stage, slot.Boot, slot.BootLast, slot.Confirm, slot.Refund, slot.Demote, slot.Erase}
)

func TestParseName(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		want       slot.Entry
		state      slot.State
	}{
		{"a new installation has three tries", "croft_0002_b_1.1.0+3.efi", slot.Entry{Generation: 2, Slot: "b", Version: "1.1.0", Counted: true, Left: 3}, slot.Trial},
		{"the loader counted one boot", "croft_0002_b_1.1.0+2-1.efi", slot.Entry{Generation: 2, Slot: "b", Version: "1.1.0", Counted: true, Left: 2, Done: 1}, slot.Trial},
		{"no tries are left", "croft_0002_b_1.1.0+0-3.efi", slot.Entry{Generation: 2, Slot: "b", Version: "1.1.0", Counted: true, Done: 3}, slot.Exhausted},
		{"the loader goes on counting boots without tries", "croft_0002_b_1.1.0+0-31000.efi", slot.Entry{Generation: 2, Slot: "b", Version: "1.1.0", Counted: true, Done: 31000}, slot.Exhausted},
		{"no counter means confirmed", "croft_0002_b_1.1.0.efi", slot.Entry{Generation: 2, Slot: "b", Version: "1.1.0"}, slot.Confirmed},
		{"a version may look like a counter or a suffix", "croft_0007_a_1-2.efi.efi", slot.Entry{Generation: 7, Slot: "a", Version: "1-2.efi"}, slot.Confirmed},
		{"generations grow beyond four digits", "croft_10000_a_2.0~rc1+3.efi", slot.Entry{Generation: 10000, Slot: "a", Version: "2.0~rc1", Counted: true, Left: 3}, slot.Trial},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := slot.ParseName(tc.file)
			if err != nil || got != tc.want || got.State() != tc.state {
				t.Errorf("ParseName(%q) = %+v (%s), %v; want %+v (%s)", tc.file, got, got.State(), err, tc.want, tc.state)
			}
			if got.Name() != tc.file {
				t.Errorf("Name() = %q, want %q", got.Name(), tc.file)
			}
		})
	}
}

func TestParseNameRefusesForeignFiles(t *testing.T) {
	for _, name := range []string{
		"", "new.tmp", "BOOTX64.EFI", "fedora-6.1.efi", "croft_1.0.0.efi", "CROFT_0002_B_1.1.0.EFI", "CROFT_~1.EFI",
		"croft_2_b_1.1.0.efi", "croft_00002_b_1.1.0.efi", "croft_0000_b_1.1.0.efi", "croft_0002_c_1.1.0.efi", "croft_0002_b_.efi",
		"croft_0002_b_1.1.0+.efi", "croft_0002_b_1.1.0+03.efi", "croft_0002_b_1.1.0+3-0.efi", "croft_0002_b_1.1.0+3-.efi",
		"croft_0002_b_1.1.0+3+3.efi", "croft_0002_b_1.1.0+3.efi.tmp", "croft_0002_b_1_1.efi", "croft_0002_b_../x.efi",
		"croft_1000000000_b_1.efi", "croft_0002_b_1.1.0+0-9999999999.efi", "croft_0002_b_" + strings.Repeat("1", 33) + ".efi", "croft_0002_b_1.1.0.efi\n",
	} {
		if e, err := slot.ParseName(name); err == nil {
			t.Errorf("ParseName(%q) = %+v, want an error", name, e)
		} else if _, ok := errors.AsType[*slot.NameError](err); !ok {
			t.Errorf("ParseName(%q): error %v is not a NameError", name, err)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, name := range []string{"croft_0002_b_1.1.0+2-1.efi", "croft_0002_b_1.1.0+0-3.efi", "croft_10000_a_1~rc.efi", "new.tmp"} {
		f.Add(name, "croft_0001_a_1.0.0.efi")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if e, err := slot.ParseName(a); err == nil {
			if e.Name() != a {
				t.Errorf("ParseName(%q).Name() = %q", a, e.Name())
			}
			for _, ev := range events {
				next, err := e.Next(ev)
				if err != nil {
					continue
				}
				if again, err := slot.ParseName(next.Name()); next.State() != slot.Empty && (err != nil || again != next) {
					t.Errorf("after %s, %q does not parse back: %v", ev, next.Name(), err)
				}
			}
		}
		if ab, ba := slot.CompareNames(a, b), slot.CompareNames(b, a); sign(ab) != -sign(ba) {
			t.Errorf("CompareNames(%q, %q) = %d, the other way round %d", a, b, ab, ba)
		}
		if r := slot.CompareNames(a, a); r != 0 {
			t.Errorf("CompareNames(%q, itself) = %d", a, r)
		}
	})
}

func sign(n int) int { return max(-1, min(1, n)) }

func TestLaw(t *testing.T) {
	// Written out by hand, on purpose: a change of the table must be meant.
	want := map[string]slot.State{
		"empty stage": slot.Trial, "empty erase": slot.Empty,
		"trial boot": slot.Trial, "trial boot_last": slot.Exhausted, "trial confirm": slot.Confirmed, "trial refund": slot.Trial, "trial erase": slot.Empty,
		"exhausted boot": slot.Exhausted, "exhausted confirm": slot.Confirmed, "exhausted refund": slot.Trial, "exhausted demote": slot.Exhausted, "exhausted erase": slot.Empty,
		"confirmed boot": slot.Confirmed, "confirmed confirm": slot.Confirmed, "confirmed demote": slot.Exhausted, "confirmed erase": slot.Empty,
	}
	for _, from := range append(states, "unheard of") {
		for _, ev := range append(events, "unheard of") {
			to, err := from.Next(ev)
			if legal, ok := want[fmt.Sprintf("%s %s", from, ev)]; ok {
				if err != nil || to != legal {
					t.Errorf("%s.Next(%s) = %s, %v; want %s", from, ev, to, err, legal)
				}
				continue
			}
			if move, ok := errors.AsType[*slot.MoveError](err); !ok || to != from || move.From != from || move.Event != ev {
				t.Errorf("%s.Next(%s) = %s, %v; want it refused", from, ev, to, err)
			}
		}
	}
}

func TestStateDiagram(t *testing.T) {
	arrows := map[[2]slot.State][]string{}
	for _, from := range states {
		for _, ev := range events {
			if to, err := from.Next(ev); err == nil {
				arrows[[2]slot.State{from, to}] = append(arrows[[2]slot.State{from, to}], string(ev))
			}
		}
	}
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n    [*] --> empty\n")
	byStates := func(x, y [2]slot.State) int {
		return 10*(slices.Index(states, x[0])-slices.Index(states, y[0])) + slices.Index(states, x[1]) - slices.Index(states, y[1])
	}
	for _, pair := range slices.SortedFunc(maps.Keys(arrows), byStates) {
		fmt.Fprintf(&b, "    %s --> %s: %s\n", pair[0], pair[1], strings.Join(arrows[pair], ", "))
	}
	const golden = "testdata/states.mmd"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the table no longer draws %s; review and run with -update. It draws:\n%s", golden, b.String())
	}
}

func TestEntryNext(t *testing.T) {
	for _, tc := range []struct {
		name, from string
		event      slot.Event
		want       string
	}{
		{"the loader takes the first try", "croft_0002_b_1.1.0+3.efi", slot.Boot, "croft_0002_b_1.1.0+2-1.efi"},
		{"the loader takes the last try", "croft_0002_b_1.1.0+1-2.efi", slot.Boot, "croft_0002_b_1.1.0+0-3.efi"},
		{"the loader starts an exhausted slot for want of another", "croft_0002_b_1.1.0+0-3.efi", slot.Boot, "croft_0002_b_1.1.0+0-4.efi"},
		{"a confirmed slot is not counted", "croft_0002_b_1.1.0.efi", slot.Boot, "croft_0002_b_1.1.0.efi"},
		{"a trial is confirmed", "croft_0002_b_1.1.0+2-1.efi", slot.Confirm, "croft_0002_b_1.1.0.efi"},
		{"the last trial is confirmed", "croft_0002_b_1.1.0+0-3.efi", slot.Confirm, "croft_0002_b_1.1.0.efi"},
		{"a clean reboot gives a try back", "croft_0002_b_1.1.0+2-1.efi", slot.Refund, "croft_0002_b_1.1.0+3.efi"},
		{"a clean reboot gives the last try back", "croft_0002_b_1.1.0+0-3.efi", slot.Refund, "croft_0002_b_1.1.0+1-2.efi"},
		{"a try the firmware could not count is not given back", "croft_0002_b_1.1.0+3.efi", slot.Refund, "croft_0002_b_1.1.0+3.efi"},
		{"a confirmed slot is demoted", "croft_0002_b_1.1.0.efi", slot.Demote, "croft_0002_b_1.1.0+0-3.efi"},
		{"demoting twice is demoting once", "croft_0002_b_1.1.0+0-5.efi", slot.Demote, "croft_0002_b_1.1.0+0-5.efi"},
		{"an erased slot has no name", "croft_0002_b_1.1.0.efi", slot.Erase, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, err := slot.ParseName(tc.from)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := e.Next(tc.event); err != nil || got.Name() != tc.want {
				t.Errorf("%s, %s = %q, %v; want %q", tc.from, tc.event, got.Name(), err, tc.want)
			}
		})
	}
}

// variants is every condition of a slot that the rules can tell apart.
func variants(s croft.Slot, generation int) []slot.Entry {
	out := []slot.Entry{{Slot: s}, {Generation: generation, Slot: s, Version: "1.0.0"}}
	for _, c := range [][2]int{{3, 0}, {2, 1}, {1, 2}, {1, 0}, {0, 3}, {0, 0}, {0, 9}} {
		out = append(out, slot.Entry{Generation: generation, Slot: s, Version: "1.0.0", Counted: true, Left: c[0], Done: c[1]})
	}
	return out
}

// TestEveryPair walks every condition of slot A × of slot B × which is newer ×
// running slot × slot × event.
func TestEveryPair(t *testing.T) {
	pairs, accepted := 0, 0
	for _, newer := range []croft.Slot{croft.SlotA, croft.SlotB} {
		generation := map[croft.Slot]int{newer: 8, newer.Other(): 7}
		for _, a := range variants(croft.SlotA, generation[croft.SlotA]) {
			for _, b := range variants(croft.SlotB, generation[croft.SlotB]) {
				before := slot.NewSet(a, b)
				for _, running := range []croft.Slot{"", croft.SlotA, croft.SlotB} {
					for _, target := range []croft.Slot{"", croft.SlotA, croft.SlotB} {
						for _, ev := range append(events, "unheard of") {
							pairs++
							if checkPair(t, before, slot.Move{Running: running, Slot: target, Event: ev, Version: "1.1.0"}) {
								accepted++
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d pairs, %d accepted", pairs, accepted)
	if accepted == 0 {
		t.Error("nothing is accepted")
	}
}

func checkPair(t *testing.T, before slot.Set, m slot.Move) bool {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%v, %+v: %s", names(before), m, fmt.Sprintf(format, args...))
	}
	after, err := before.Apply(m)
	if err != nil {
		if !slices.Equal(names(before), names(after)) {
			fail("was refused, yet gave %v", names(after))
		}
	}
	// What must be refused, said once more without the code under test.
	old, runs := before.Of(m.Slot), before.Of(m.Running).State()
	reason := ""
	ev := m.Event
	if ev == slot.Boot && old.Counted && old.Left == 1 {
		ev = slot.BootLast
	}
	to, illegal := old.State().Next(ev)
	switch {
	case m.Slot == "":
		reason = "no slot is named"
	case illegal != nil:
		reason = "the table has no such event"
	case ev == slot.BootLast && old.Left > 1:
		reason = "it is not the last try"
	case (ev == slot.Stage || ev == slot.Erase) && (m.Running == "" || m.Running == m.Slot):
		reason = "the running slot is never written"
	case (ev == slot.Stage || ev == slot.Erase) && (runs == slot.Trial || runs == slot.Exhausted):
		reason = "the way back is never written"
	case (ev == slot.Stage || ev == slot.Erase) && runs == slot.Empty && old.State() != slot.Empty:
		reason = "the only boot file is never erased"
	case (ev == slot.Confirm || ev == slot.Refund || ev == slot.Demote) && m.Running != m.Slot:
		reason = "only the running slot can do this"
	case ev == slot.Demote && old.State() == slot.Confirmed && !fit(before.Of(m.Slot.Other())):
		reason = "the last sound slot is kept"
	case (ev == slot.Boot || ev == slot.BootLast) && m.Running != "" && m.Running != m.Slot:
		reason = "the loader has done its work"
	}
	if reason != "" {
		if err == nil {
			fail("was accepted, although %s", reason)
		}
		return false
	}
	if err != nil {
		fail("was refused: %v", err)
		return false
	}
	if got := after.Of(m.Slot).State(); got != to {
		fail("gave %s, the table says %s", got, to)
	}
	other := m.Slot.Other()
	if before.Of(other) != after.Of(other) {
		fail("changed the other slot")
	}
	if len(before.Order()) > 0 && len(after.Order()) == 0 {
		fail("leaves nothing to boot")
	}
	// The loader taking a last try is no act of ours.
	if ev != slot.BootLast && slices.ContainsFunc(before.Order(), fit) && !slices.ContainsFunc(after.Order(), fit) {
		fail("leaves nothing fit to boot")
	}
	if (ev == slot.Stage || ev == slot.Erase) && before.Of(m.Running) != after.Of(m.Running) {
		fail("touched the running slot")
	}
	if next, _ := after.Next(); ev == slot.Stage && next.Slot != m.Slot {
		fail("is not tried first")
	}
	if next, _ := after.Next(); ev == slot.Demote && old.State() == slot.Confirmed && next.Slot == m.Slot {
		fail("is still preferred")
	}
	return true
}

func fit(e slot.Entry) bool { return e.State() == slot.Trial || e.State() == slot.Confirmed }

func names(s slot.Set) []string {
	var out []string
	for _, e := range s.Order() {
		out = append(out, e.Name())
	}
	return out
}
