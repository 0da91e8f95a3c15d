package esp

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/slot"
)

// Device is what [Mend] needs of a partition or an image: *os.File has it.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error // returns when all that was written is on the medium
}

// Mount mends the EFI system partition on a device, mounts it on dir in the way
// this package relies on, and opens it. Unmount it with unix.Unmount. A device
// that is in use, so mounted already, is refused (KindRefused) and not mended.
func Mount(device, dir string) (*Partition, []string, error) {
	// Without O_CREATE, O_EXCL on a block device means: nobody else, and no mount.
	f, err := os.OpenFile(device, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open EFI system partition: %w", busyKind(err))
	}
	notes, err := Mend(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, notes, fmt.Errorf("mend EFI system partition %s: %w", device, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, notes, fmt.Errorf("mount EFI system partition: %w", err)
	}
	const flags = unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC | unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID
	if err := unix.Mount(device, dir, "vfat", flags, "umask=0077,shortname=mixed,errors=continue"); err != nil {
		return nil, notes, fmt.Errorf("mount EFI system partition %s on %s: %w", device, dir, err)
	}
	p, err := Open(dir)
	if err != nil {
		return nil, notes, errors.Join(err, unix.Unmount(dir, 0))
	}
	return p, notes, nil
}

// busyKind marks a device that is in use.
func busyKind(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("it is mounted already or in other use: %w", err), Remedy: "unmount it first"}
	}
	return err
}

// Mend tidies \EFI\Linux on an unmounted partition, and must run each time
// before it is mounted for writing. It returns a sentence for each thing done.
//
// A rename on FAT is three writes: the new name without content, the new name
// with the content, the old name gone. Power cut in between leaves a file with
// two names. It boots, but removing either name through the file system would
// free the content of both: that is how a running slot could be lost. Mend
// takes away all but the best name, and names without content, and leaves the
// content alone.
//
// It also moves all names to the front of the folder's first sector if they
// fit, as two boot files and a rename do (slot.MaxVersion). A rename then is a
// change of a single sector, for the kernel as for the firmware, and a disk
// writes a sector whole or not at all. A name across two sectors could lose the
// part in one of them.
//
// Power cut at any line: every file keeps at least one name.
func Mend(dev Device) ([]string, error) {
	v, err := OpenVolume(dev)
	if err != nil {
		return nil, err
	}
	d, err := v.linuxDir()
	if err != nil {
		return nil, err
	}
	files, drop, notes := d.files(), map[int]bool{}, []string(nil)
	for i, f := range files {
		if f.Size == 0 && ours(f.Name) {
			drop[i] = true
			notes = append(notes, fmt.Sprintf("removed the name %s, which had no content", f.Name))
			continue
		}
		for j, g := range files {
			if f.start != 0 && f.start == g.start && f.Size == g.Size && better(g.Name, f.Name, j < i) {
				drop[i] = true
				notes = append(notes, fmt.Sprintf("removed the name %s, a second one of %s", f.Name, g.Name))
				break
			}
		}
	}
	gone := make([]bool, len(d.content)/slotSize)
	for i, f := range files {
		for s := f.first; drop[i] && s <= f.last; s++ {
			gone[s] = true
		}
	}
	return notes, d.write(dev, d.tidy(gone))
}

// ours reports whether a name is one that this package gives to a file.
func ours(name string) bool {
	_, err := slot.ParseName(name)
	return err == nil || strings.EqualFold(name, tmpName)
}

// better reports whether, of two names of one content, name is the one to keep:
// a boot file's before any other, a confirmed one's before one with a counter,
// then the one with more tries left, then the one stored earlier.
func better(name, than string, earlier bool) bool {
	rank := func(name string) int {
		e, err := slot.ParseName(name)
		switch {
		case err != nil:
			return -1
		case !e.Counted:
			return 1000
		}
		return e.Left
	}
	if r := cmp.Compare(rank(name), rank(than)); r != 0 {
		return r > 0
	}
	return earlier
}

// tidy is the folder's content without the slots that are gone, moved to the
// front when all fits into the first sector.
func (d *directory) tidy(gone []bool) []byte {
	var kept []byte
	marked := bytes.Clone(d.content)
	live := make([]bool, len(gone)) // parts of an entry that is kept
	d.each(func(_ string, first, last int) {
		for s := first; s <= last; s++ {
			live[s] = !gone[s]
		}
	})
	for i := range live {
		if live[i] {
			kept = append(kept, d.slot(i)...)
		} else if s := marked[i*slotSize:]; gone[i] {
			s[0] = slotDeleted
		}
	}
	if int64(len(kept)) > d.v.sector {
		return marked
	}
	return append(kept, make([]byte, len(d.content)-len(kept))...)
}

// write stores what of content differs, the first sector before all others, and
// these from the back: a short entry goes before the long name in front of it.
func (d *directory) write(dev Device, content []byte) error {
	n := int(d.v.sector)
	put := func(i int) error {
		part := content[i*n : (i+1)*n]
		if bytes.Equal(part, d.content[i*n:(i+1)*n]) {
			return nil
		}
		if _, err := dev.WriteAt(part, d.at[i]); err != nil {
			return fmt.Errorf("write folder: %w", err)
		}
		if err := dev.Sync(); err != nil {
			return fmt.Errorf("write folder: %w", err)
		}
		return nil
	}
	if err := put(0); err != nil {
		return err
	}
	for i := len(d.at) - 1; i > 0; i-- {
		if err := put(i); err != nil {
			return err
		}
	}
	return nil
}

// errNoDir reports a partition that holds no unified kernel images.
var errNoDir = &croft.Error{
	Kind:   croft.KindInvalid,
	Err:    errors.New("no folder " + Dir),
	Remedy: "check that this is the EFI system partition of a croft disk",
}
