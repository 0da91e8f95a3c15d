//go:build vm

package vmtest

import (
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/internal/rig"
)

func TestFirstBoot(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		settings
		total int64 // bytes /perm must have at least
	}{
		{"virtio disk of the image's own size, barely large enough", settings{bus: rig.BusVirtio}, 100 << 20},
		{"NVMe disk and 1 GiB of memory", settings{bus: rig.BusNVMe, memory: 1 << 30, size: 6 << 30}, 1 << 30},
		{"AHCI disk, larger", settings{bus: rig.BusAHCI, size: 64 << 30}, 50 << 30},
		{"USB disk and a TPM", settings{bus: rig.BusUSB, tpm: true, size: 6 << 30}, 1 << 30},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, tc.settings)
			b.powerOn()
			s := b.waitConfirmed()
			b.wantState(croft.SlotA, slot.Confirmed)
			if s.DiskTotalBytes < tc.total {
				t.Errorf("/perm has %d MiB, want at least %d", s.DiskTotalBytes>>20, tc.total>>20)
			}
			if len(s.Problems) > 0 {
				t.Errorf("the page shows problems: %q", s.Problems)
			}
			b.waitSerial(0, "cgroup controllers: cpuset cpu io memory pids")
			b.waitSerial(0, "Your claim code: [0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}")
			if png, err := b.Screenshot(t.Context()); err != nil || len(png) < 5000 {
				t.Errorf("the screen shows a picture of %d bytes (%v)", len(png), err)
			}
			b.shutDown()
			if !tc.tpm {
				return
			}
			// The second boot: still confirmed, and the same box, though its disk
			// has forgotten everything: its key is in the TPM.
			wipe(t, b.disk)
			b.powerOn()
			again := b.waitConfirmed()
			b.wantState(croft.SlotA, slot.Confirmed)
			if again.DeviceID != s.DeviceID {
				t.Errorf("the box was %s and is now %s", s.DeviceID, again.DeviceID)
			}
			b.shutDown()
		})
	}
}
