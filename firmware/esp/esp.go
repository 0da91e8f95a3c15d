// Package esp carries out on the EFI system partition what package slot
// decides: it installs, confirms, refunds, demotes and erases unified kernel
// images in \EFI\Linux. It never writes the running slot's image or the loader;
// of the running slot only the file's name changes.
//
// Most callers want [Mount], then [Partition.Install] or [Partition.Confirm].
// [Volume] reads a partition without mounting it.
//
// What survives a power cut, at any line of any function:
//
//   - Install: until its last rename the slot has no boot file, and the
//     confirmed running slot boots. At worst a file new.tmp is left behind, which
//     no loader starts and the next Install removes. The content is complete, on
//     the medium and read back before it gets a name that the loader knows.
//   - Confirm, Refund, Count, Demote: the file has its old name, its new one or both,
//     with the same content. [Mend] takes the lesser name away before the next
//     mount; calling the function again finishes the work.
//   - Erase: the file is there or not. Its space may stay in use until
//     something checks the file system; the name is gone from the medium before
//     the content is freed.
//
// This rests on how the kernel's vfat driver works when it is mounted with sync
// and dirsync, as Mount does: each change of a folder is written at once, sector
// by sector. The driver flushes the disk only when a file or folder is synced, so
// writes in between may reach the medium in any order. All names in one sector
// (see slot.MaxVersion and [Mend]) make that harmless. internal/vmtest replays
// what the driver of the product's kernel, and the firmware's, really write.
//
// A disk that writes a 512-byte sector in part,
// or that forgets what it has flushed, is beyond this package; dm-verity and the
// loader's counter are there for the rest.
package esp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/slot"
)

// Dir is the folder of the unified kernel images within the partition.
const Dir = "EFI/Linux"

// tmpName is where a new image is written. It is short: the kernel gives it two
// slots of the folder, which leaves room for two boot files and a rename.
const tmpName = "new.tmp"

// spare is the space Install leaves free, in bytes.
const spare = 1 << 20

// Partition is a mounted EFI system partition. Its methods may be called from
// several goroutines.
type Partition struct {
	dir string // Dir within the mount point

	mu       sync.Mutex
	refunded bool // guarded by mu
}

// Open uses the partition mounted on dir. The caller has mended it ([Mend]) and
// mounted it with sync and dirsync, as [Mount] does.
func Open(dir string) (*Partition, error) {
	p := &Partition{dir: filepath.Join(dir, filepath.FromSlash(Dir))}
	if info, err := os.Stat(p.dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("open EFI system partition on %s: %w", dir, errNoDir)
	}
	return p, nil
}

// Path is where the file of an entry is.
func (p *Partition) Path(e slot.Entry) string { return filepath.Join(p.dir, e.Name()) }

// Read lists the boot files. Files that are not croft's, and empty ones, which
// no loader starts, are left out.
func (p *Partition) Read() (slot.Set, error) {
	files, err := os.ReadDir(p.dir)
	if err != nil {
		return slot.Set{}, fmt.Errorf("list boot files: %w", err)
	}
	var names []string
	for _, f := range files {
		info, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // renamed meanwhile
		}
		if err != nil {
			return slot.Set{}, fmt.Errorf("list boot files: %w", err)
		}
		if info.Mode().IsRegular() && info.Size() > 0 {
			names = append(names, f.Name())
		}
	}
	return slot.ParseNames(names), nil
}

// UKI is a unified kernel image to install.
type UKI struct {
	Version croft.Version     // its release
	Size    int64             // bytes
	SHA256  [sha256.Size]byte // of the content
	Body    io.Reader         // the content; read once, to its end
}

// Install replaces the image in target, which must not be the running slot, by
// a new one with [slot.Tries] tries. The running slot must be confirmed. When it
// returns without an error, the next boot tries the new image.
//
// It refuses before it changes anything if the rules of package slot forbid it
// (KindRefused) or the space does not suffice (KindNoSpace). A body that is not
// what UKI says, or is no whole image, leaves target empty (KindInvalid).
func (p *Partition) Install(ctx context.Context, running, target croft.Slot, uki UKI) (slot.Entry, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, err := p.install(ctx, running, target, uki)
	if err != nil {
		return slot.Entry{}, fmt.Errorf("install %s into slot %s: %w", uki.Version, target, err)
	}
	return e, nil
}

func (p *Partition) install(ctx context.Context, running, target croft.Slot, uki UKI) (slot.Entry, error) {
	before, err := p.Read()
	if err != nil {
		return slot.Entry{}, err
	}
	cleared, err := before.Apply(slot.Move{Running: running, Slot: target, Event: slot.Erase})
	if err != nil {
		return slot.Entry{}, refused(err)
	}
	staged, err := cleared.Apply(slot.Move{Running: running, Slot: target, Event: slot.Stage, Version: uki.Version})
	if err != nil {
		return slot.Entry{}, refused(err)
	}
	e := staged.Of(target)
	if err := p.checkSpace(before.All(target), uki.Size); err != nil {
		return slot.Entry{}, err
	}
	if err := p.clear(before.All(target)); err != nil {
		return slot.Entry{}, err
	}
	if err := p.stage(ctx, uki); err != nil {
		// Best effort: the next installation removes it as well.
		_ = os.Remove(filepath.Join(p.dir, tmpName))
		return slot.Entry{}, err
	}
	if err := p.rename(tmpName, e.Name()); err != nil {
		return slot.Entry{}, err
	}
	return e, nil
}

// checkSpace counts what is free and what the entries to be erased will free.
func (p *Partition) checkSpace(erased []slot.Entry, size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return fmt.Errorf("measure free space: %w", err)
	}
	free := int64(st.Bavail) * st.Bsize
	names := []string{tmpName}
	for _, e := range erased {
		names = append(names, e.Name())
	}
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(p.dir, name)); err == nil {
			free += info.Size()
		}
	}
	if free-spare < size {
		return &croft.Error{
			Kind:   croft.KindNoSpace,
			Err:    fmt.Errorf("%d bytes are needed on the EFI system partition, %d are free", size+spare, free),
			Remedy: "remove files that are not croft's from the EFI system partition",
		}
	}
	return nil
}

// clear removes the entries, what an interrupted installation left, and names
// without content. Confirmed files go first: of a slot that is half erased at
// most files with a counter are left, and the loader tires of these.
func (p *Partition) clear(entries []slot.Entry) error {
	var names []string
	for _, e := range entries { // confirmed ones first, see slot.Set.All
		names = append(names, e.Name())
	}
	files, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("list boot files: %w", err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			return fmt.Errorf("list boot files: %w", err)
		}
		if strings.EqualFold(f.Name(), tmpName) || ours(f.Name()) && info.Size() == 0 {
			names = append(names, f.Name())
		}
	}
	for _, name := range names {
		path := filepath.Join(p.dir, name)
		// While a file is open, the kernel keeps its clusters. They are freed
		// below, once the name is gone for good: a name whose clusters are freed
		// costs the loader all its tries.
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove boot file: %w", err)
		}
		defer f.Close()
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove boot file: %w", err)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return p.flush(p.dir)
}

// stage writes the image under its temporary name and reads it back.
func (p *Partition) stage(ctx context.Context, uki UKI) error {
	path := filepath.Join(p.dir, tmpName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create boot file: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	// One byte more than announced shows that the body is too long.
	n, err := io.CopyBuffer(io.MultiWriter(f, sum), io.LimitReader(until(ctx, uki.Body), uki.Size+1), make([]byte, 1<<20))
	if err != nil {
		return fmt.Errorf("write boot file: %w", spaceKind(err))
	}
	if n != uki.Size || [sha256.Size]byte(sum.Sum(nil)) != uki.SHA256 {
		return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("image does not have the size %d and the SHA-256 %x it should", uki.Size, uki.SHA256), Remedy: "fetch the release again"}
	}
	if err := p.flush(path); err != nil {
		return err
	}
	// Best effort: where the cache cannot be dropped, it is read back from there.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read boot file back: %w", err)
	}
	sum.Reset()
	if _, err := io.CopyBuffer(sum, until(ctx, f), make([]byte, 1<<20)); err != nil {
		return fmt.Errorf("read boot file back: %w", err)
	}
	if [sha256.Size]byte(sum.Sum(nil)) != uki.SHA256 {
		return &croft.Error{Kind: croft.KindInvalid, Err: errors.New("boot file reads back differently than it was written"), Remedy: "replace the disk"}
	}
	if err := checkUKI(f); err != nil {
		return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("image is no unified kernel image: %w", err), Remedy: "build the release again"}
	}
	return nil
}

// Confirm takes the counter off the running slot's file.
func (p *Partition) Confirm(running croft.Slot) error { return p.mark(running, slot.Confirm) }

// Refund gives the running slot the try back that this boot took. One Partition
// does it once; further calls change nothing.
func (p *Partition) Refund(running croft.Slot) error { return p.mark(running, slot.Refund) }

// Count takes the running slot's try when the firmware could not: its name is
// still the one that the loader started. Each call takes one.
func (p *Partition) Count(running croft.Slot) error { return p.mark(running, slot.Boot) }

// Demote puts the running slot, confirmed once and unreadable now, behind the
// other one. It refuses (KindRefused) when the other is not fit to boot either.
func (p *Partition) Demote(running croft.Slot) error { return p.mark(running, slot.Demote) }

// mark renames the running slot's file as the event asks.
func (p *Partition) mark(running croft.Slot, ev slot.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ev == slot.Refund && p.refunded {
		return nil
	}
	before, err := p.Read()
	if err != nil {
		return fmt.Errorf("%s slot %s: %w", ev, running, err)
	}
	after, err := before.Apply(slot.Move{Running: running, Slot: running, Event: ev})
	if err != nil {
		return refused(err)
	}
	from, to := before.Of(running).Name(), after.Of(running).Name()
	if from != to {
		if err := p.rename(from, to); err != nil {
			return fmt.Errorf("%s slot %s: %w", ev, running, err)
		}
	}
	p.refunded = p.refunded || ev == slot.Refund
	return nil
}

// Erase removes the boot files of target, which must not be the running slot;
// the running slot must be confirmed.
func (p *Partition) Erase(running, target croft.Slot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, err := p.Read()
	if err != nil {
		return fmt.Errorf("erase slot %s: %w", target, err)
	}
	if _, err := before.Apply(slot.Move{Running: running, Slot: target, Event: slot.Erase}); err != nil {
		return refused(err)
	}
	if err := p.clear(before.All(target)); err != nil {
		return fmt.Errorf("erase slot %s: %w", target, err)
	}
	return nil
}

// rename changes a name and waits until the change is on the medium. It never
// replaces a file: on FAT that could free the content both names have.
func (p *Partition) rename(from, to string) error {
	path := filepath.Join(p.dir, to)
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("rename boot file: %w", err)
	case info.Size() > 0:
		return fmt.Errorf("rename boot file %s: %w: %s", from, fs.ErrExist, to)
	default: // a name without content, of a rename that power cut short
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("rename boot file: %w", err)
		}
	}
	if err := os.Rename(filepath.Join(p.dir, from), path); err != nil {
		return fmt.Errorf("rename boot file: %w", err)
	}
	if err := p.flush(path); err != nil {
		return err
	}
	return p.flush(p.dir)
}

// flush waits until a file or folder, and then the whole file system, is on the
// medium.
func (p *Partition) flush(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("flush boot files: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush boot files: %w", spaceKind(err))
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("flush boot files: %w", spaceKind(err))
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// until is r, stopping when ctx ends.
func until(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(b []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(b)
	})
}

// refused marks what the rules of package slot forbid.
func refused(err error) error {
	remedy := ""
	switch {
	case errors.Is(err, slot.ErrSlotBusy):
		remedy = "name the slot that is not running"
	case errors.Is(err, slot.ErrOnTrial):
		remedy = "wait until the running release is confirmed"
	}
	return &croft.Error{Kind: croft.KindRefused, Err: err, Remedy: remedy}
}

// spaceKind marks a full partition.
func spaceKind(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return &croft.Error{Kind: croft.KindNoSpace, Err: err, Remedy: "remove files that are not croft's from the EFI system partition"}
	}
	return err
}
