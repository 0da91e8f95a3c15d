package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/slot"
)

// loader is the boot loader's side of the box: the EFI system partition. It is
// mounted only for the moment of a change, so that a power cut at any other time
// finds it at rest.
type loader struct {
	device string // e.g. /dev/vda1
	dir    string // where it is mounted for a moment

	mu sync.Mutex // held while the partition is mounted
}

// newLoader takes away what an agent that was killed in such a moment left
// mounted: nobody may mend a partition under a mount. The loader is usable even
// when that gives an error.
func newLoader(device, dir string) (*loader, error) {
	err := clearMounts(func() error { return unix.Unmount(dir, 0) })
	if err != nil {
		err = fmt.Errorf("unmount what is left on %s: %w", dir, err)
	}
	return &loader{device: device, dir: dir}, err
}

// clearMounts unmounts until nothing is mounted.
func clearMounts(unmount func() error) error {
	for {
		switch err := unmount(); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return err
		}
	}
}

// Read returns the slots as the boot loader would find them now.
func (l *loader) Read() (set slot.Set, err error) {
	err = l.look(func(v *esp.Volume) error {
		set, err = v.Read()
		return err
	})
	return set, err
}

// Confirm makes the running slot the one to boot for good.
func (l *loader) Confirm(running croft.Slot) error {
	return l.with(func(p *esp.Partition) error { return p.Confirm(running) })
}

// Refund gives the running slot's try back.
func (l *loader) Refund(running croft.Slot) error {
	return l.with(func(p *esp.Partition) error { return p.Refund(running) })
}

// CheckUKI reports the condition of a slot's boot file, or "" if it cannot be
// told.
func (l *loader) CheckUKI(e slot.Entry) slot.UKIState {
	var state slot.UKIState
	err := l.look(func(v *esp.Volume) (err error) {
		state, err = v.CheckUKI(e)
		return err
	})
	if err != nil {
		return ""
	}
	return state
}

// readFile reads a file of the partition, and says whether it is there. Of a
// partition that is not there itself nobody knows what is in it.
func (l *loader) readFile(path string, most int64) (raw []byte, found bool, err error) {
	err = l.look(func(v *esp.Volume) (err error) {
		raw, err = v.ReadFile(path, most)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		found = err == nil
		return err
	})
	return raw, found, err
}

// look reads the partition without mounting it.
func (l *loader) look(use func(*esp.Volume) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := os.Open(l.device)
	if err != nil {
		return fmt.Errorf("open the EFI partition: %w", err)
	}
	defer f.Close()
	volume, err := esp.OpenVolume(f)
	if err != nil {
		return err
	}
	return use(volume)
}

func (l *loader) with(use func(*esp.Partition) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, _, err := esp.Mount(l.device, l.dir)
	if err != nil {
		return err
	}
	return errors.Join(use(p), unix.Unmount(l.dir, 0))
}
