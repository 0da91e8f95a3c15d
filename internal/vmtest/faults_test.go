//go:build vm

package vmtest

import (
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/firmware/slot"
)

const panicInit = "./internal/rig/faulty/panicinit"

// TestBadReleaseIsGivenUp stages a release with one fault in slot B and wants
// the box back in slot A, with the cause on its page.
func TestBadReleaseIsGivenUp(t *testing.T) {
	t.Parallel()
	base := confirmed(t)
	for _, tc := range []struct {
		name  string
		uki   func(t *testing.T) string
		spoil func(b *box)
		entry string // name on the EFI partition
		cause []string
	}{
		{
			name:  "its first program panics, at each of its tries",
			uki:   func(t *testing.T) string { return uki(t, panicInit, "panic=1") },
			entry: "croft_0002_b_1.1.0+3.efi",
			cause: []string{"kernel or first program failed before storage was ready"},
		},
		{
			name:  "its agent never finds it healthy",
			uki:   func(t *testing.T) string { return uki(t, "", "saboteur=port", "croft.confirm=15s") },
			cause: []string{"owner_page", "address already in use"},
		},
		{
			name: "its agent crashes again and again",
			uki: func(t *testing.T) string {
				return uki(t, "", "saboteur=kill", "croft.confirm=15s", "croft.watchdog=20s")
			},
			cause: []string{"the agent crashed again and again"},
		},
		{
			name:  "its kernel hangs",
			uki:   func(t *testing.T) string { return uki(t, "", "saboteur=hang", "croft.watchdog=20s") },
			cause: []string{"stopped answering", "watchdog"},
		},
		{
			name:  "a byte of its root has flipped",
			spoil: func(b *box) { b.flip(rootBAt + 100) },
			cause: []string{"root is damaged"},
		},
		{
			name:  "its boot file is cut short",
			uki:   func(t *testing.T) string { return half(t, releases.test.UKI) },
			cause: []string{"boot file is damaged"},
		},
		{
			name:  "its tries were used up before",
			entry: "croft_0002_b_1.1.0+0-3.efi",
			cause: []string{"kernel or first program failed before storage was ready"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, settings{from: base})
			boot := releases.test.UKI
			if tc.uki != nil {
				boot = tc.uki(t)
			}
			if tc.entry == "" {
				tc.entry = "croft_0002_b_1.1.0+1-2.efi" // its last try
			}
			b.stage(releases.test.Root, boot, tc.entry)
			if tc.spoil != nil {
				tc.spoil(b)
			}
			b.powerOn()
			s := b.waitFor("back in slot A with a report", func(s ownerpage.StatusJSON) bool {
				return s.Slot == croft.SlotA && s.State == ownerpage.Healthy && s.LastUpdate != ""
			})
			t.Logf("the page says: %s", s.LastUpdate)
			if !contains(s.LastUpdate, append(tc.cause, "1.1.0")...) {
				t.Errorf("the page says %q, want it to name %q", s.LastUpdate, tc.cause)
			}
			b.wantState(croft.SlotA, slot.Confirmed)
			b.wantState(croft.SlotB, slot.Exhausted)
		})
	}
}

// TestDamagedConfirmedSlotIsLeft damages slot B long after it was confirmed. No
// counter protects it any more, and yet the box comes back in slot A.
func TestDamagedConfirmedSlotIsLeft(t *testing.T) {
	t.Parallel()
	base := confirmed(t)
	const entry = "croft_0002_b_1.1.0.efi"
	for _, tc := range []struct {
		name  string
		uki   string
		flip  bool
		cause string
	}{
		{"its boot file is cut short", half(t, releases.test.UKI), false, "boot file is damaged"},
		{"a byte of its root has flipped", releases.test.UKI, true, "root"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, settings{from: base})
			b.stage(releases.test.Root, tc.uki, entry)
			if tc.flip {
				b.flip(rootBAt + 100)
			}
			b.powerOn()
			s := b.waitFor("in slot A with a report", func(s ownerpage.StatusJSON) bool {
				return s.Slot == croft.SlotA && s.State == ownerpage.Healthy && s.LastUpdate != ""
			})
			t.Logf("the page says: %s", s.LastUpdate)
			if !contains(s.LastUpdate, tc.cause, "1.1.0") {
				t.Errorf("the page says %q, want it to name %q", s.LastUpdate, tc.cause)
			}
		})
	}
}

// TestGoodReleaseIsKept stages a healthy release, newer and older than the one
// that runs.
func TestGoodReleaseIsKept(t *testing.T) {
	t.Parallel()
	base := confirmed(t)
	for name, entry := range map[string]string{"newer": "croft_0002_b_1.1.0+3.efi", "older": "croft_0002_b_0.9.0+3.efi"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, settings{from: base})
			b.stage(releases.test.Root, releases.test.UKI, entry)
			b.powerOn()
			if s := b.waitConfirmed(); s.Slot != croft.SlotB {
				t.Errorf("with %s the box runs slot %s, want b", entry, s.Slot)
			}
			b.wantState(croft.SlotB, slot.Confirmed)
			b.wantState(croft.SlotA, slot.Confirmed)
			b.shutDown()
		})
	}
}
