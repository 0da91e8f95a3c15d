//go:build vm

package vmtest

import (
	"path/filepath"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/internal/rig"
)

// TestTheBootedTwinWins gives the box a second disk with the same image, so the
// same GUIDs. The disk the firmware booted is used, the other left as it was.
func TestTheBootedTwinWins(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name         string
		booted, twin rig.Bus
	}{
		{"NVMe booted, virtio ignored", rig.BusNVMe, rig.BusVirtio},
		{"virtio booted, USB ignored", rig.BusVirtio, rig.BusUSB},
		{"second port of the same AHCI controller", rig.BusAHCI, rig.BusAHCI},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			twin := filepath.Join(t.TempDir(), "twin.img")
			copySparse(t, twin, releases.good.Image)
			b := newBox(t, settings{bus: tc.booted, config: func(c *rig.Config) {
				other := rig.Disk{Path: twin, Bus: tc.twin, NoBoot: true}
				if tc.booted == tc.twin {
					c.Disks = []rig.Disk{other, c.Disks[0]} // the kernel sees the twin first
				} else {
					c.Disks = append(c.Disks, other)
				}
			}})
			b.powerOn()
			s := b.waitConfirmed()
			t.Logf("the page says: %q", s.Problems)
			b.wantState(croft.SlotA, slot.Confirmed)
			b.disk = twin
			if e := b.wantState(croft.SlotA, slot.Trial); e.Left != slot.Tries {
				t.Errorf("the twin's slot a is %s: it was touched", e.Name())
			}
		})
	}
}
