//go:build vm

package vmtest

import (
	"testing"

	"github.com/croft-cloud/croft/internal/rig"
)

// TestOnlyTheOwnerPageAnswers scans every TCP port of the box from its own
// network.
func TestOnlyTheOwnerPageAnswers(t *testing.T) {
	t.Parallel()
	lan, err := rig.NewLAN()
	if err != nil {
		t.Fatal(err)
	}
	defer lan.Close()
	b := newBox(t, settings{config: func(c *rig.Config) { c.LAN, c.Forwards = lan, nil }})
	b.powerOn()
	b.waitSerial(0, "Your box is running")
	open, err := lan.Scan(t.Context(), 1, 65535)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("open: %v", open)
	if len(open) == 0 {
		t.Error("nothing answers, not even the owner page")
	}
	for _, addr := range open {
		if addr.Port() != 80 {
			t.Errorf("%v answers", addr)
		}
	}
	b.shutDown()
}
