//go:build vm

package vmtest

import (
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/slot"
)

// TestPowerCutCostsAtMostOneTry pulls the plug at ten moments of a trial boot,
// from the firmware to the confirmation. Two of the ten are booted again.
func TestPowerCutCostsAtMostOneTry(t *testing.T) {
	t.Parallel()
	base := confirmed(t)
	const entry = "croft_0002_b_1.1.0+3.efi"

	// How long a whole trial takes here and now.
	whole := newBox(t, settings{from: base})
	whole.stage(releases.test.Root, releases.test.UKI, entry)
	start := time.Now()
	whole.powerOn()
	whole.waitConfirmed()
	trial := time.Since(start)
	whole.cut()
	whole.wantState(croft.SlotB, slot.Confirmed)

	for i := 1; i <= 10; i++ {
		moment := trial * time.Duration(i) / 11
		b := newBox(t, settings{from: base})
		b.stage(releases.test.Root, releases.test.UKI, entry)
		b.powerOn()
		select {
		case <-time.After(moment):
		case <-t.Context().Done():
		}
		b.cut()
		e := b.slots().Of(croft.SlotB)
		t.Logf("cut after %4.1f s of %4.1f: slot b is %s", moment.Seconds(), trial.Seconds(), e.Name())
		if e.State() != slot.Confirmed && e.Left < slot.Tries-1 {
			t.Errorf("a cut after %v cost %d tries", moment, slot.Tries-e.Left)
		}
		b.wantState(croft.SlotA, slot.Confirmed)
		if i == 5 || i == 10 { // and it boots from there
			b.powerOn()
			if s := b.waitConfirmed(); s.Slot != croft.SlotB {
				t.Errorf("after the cut the box runs slot %s, want b", s.Slot)
			}
			b.wantState(croft.SlotB, slot.Confirmed)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestCleanShutdownGivesTheTryBack presses the power button in the middle of a
// trial that would not end well.
func TestCleanShutdownGivesTheTryBack(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{from: confirmed(t)})
	b.stage(releases.test.Root, uki(t, "", "saboteur=port"), "croft_0002_b_1.1.0+3.efi")
	b.powerOn()
	b.waitSerial(0, "trying a new version")
	if e := b.wantState(croft.SlotB, slot.Trial); e.Left != slot.Tries-1 {
		t.Errorf("during the trial %d tries are left, want %d", e.Left, slot.Tries-1)
	}
	b.shutDown()
	if e := b.wantState(croft.SlotB, slot.Trial); e.Left != slot.Tries {
		t.Errorf("after a clean shutdown %d tries are left, want %d", e.Left, slot.Tries)
	}
}
