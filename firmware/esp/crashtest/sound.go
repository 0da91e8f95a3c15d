package crashtest

import (
	"fmt"
	"io"

	"github.com/croft-cloud/croft/firmware/esp"
)

// Sound checks one state of a partition: it boots a known image without a
// wasted try, [esp.Mend] keeps it so, also when power is cut while it works, and
// after that there is nothing left to mend.
func Sound(state io.ReaderAt, known Known) (Booted, error) {
	before, err := Bootable(state, known)
	if err != nil {
		return before, err
	}
	if before.Wasted > 0 {
		return before, fmt.Errorf("%d tries are wasted before %s boots", before.Wasted, before.Name)
	}
	disk := NewRecorder(state)
	if _, err := esp.Mend(disk); err != nil {
		return before, fmt.Errorf("mend: %w", err)
	}
	if len(disk.Writes) == 0 {
		return before, nil
	}
	if _, err := (Model{Base: state, Writes: disk.Writes}).Each(func(state io.ReaderAt) error {
		after, err := Bootable(state, known)
		if err == nil && after.Image != before.Image {
			err = fmt.Errorf("image %d boots, before it was %d", after.Image, before.Image)
		}
		return err
	}); err != nil {
		return before, fmt.Errorf("while it is mended: %w", err)
	}
	again := NewRecorder(disk)
	if notes, err := esp.Mend(again); err != nil {
		return before, fmt.Errorf("mend again: %w", err)
	} else if len(again.Writes) > 0 {
		return before, fmt.Errorf("mending is not finished after the first time: %q", notes)
	}
	return before, nil
}
