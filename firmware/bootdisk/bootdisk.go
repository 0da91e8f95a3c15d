// Package bootdisk finds the disk the firmware booted and its partitions.
//
// The boot loader leaves the GUID of the EFI system partition it came from in
// the EFI variable LoaderDevicePartUUID. That names the disk, unless two disks
// were written from the same image (a stick left in the box after the
// installation, say). Then the device path of the boot option the firmware
// used (BootCurrent → Boot####) decides which twin it was.
//
// [SelectedEntry] says which boot file the loader started.
//
// Nothing is written. A disk with a damaged primary partition table is read by
// its backup table.
package bootdisk

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"
)

// Numbers of the partitions on a croft disk.
const (
	ESP   = 1
	RootA = 2
	RootB = 3
	Perm  = 4
)

// Config says where to look.
type Config struct {
	Sys string // sysfs; default /sys
	Dev string // device nodes; default /dev

	// PartUUID is the partition to look for when the loader left no variable,
	// as after a direct kernel boot. May be empty.
	PartUUID string

	Wait time.Duration // how long a slow disk may take to appear; default 20 s
}

// Disk is one disk with a croft partition table.
type Disk struct {
	Path  string // e.g. /dev/nvme0n1
	sysfs string // its folder below /sys/devices, links resolved
}

// Partition is the path of the disk's partition n, e.g. /dev/nvme0n1p2. The
// kernel puts a "p" between a name that ends in a digit and the number.
func (d Disk) Partition(n int) string {
	if last := d.Path[len(d.Path)-1]; '0' <= last && last <= '9' {
		return fmt.Sprintf("%sp%d", d.Path, n)
	}
	return fmt.Sprintf("%s%d", d.Path, n)
}

// Found is the answer of [Find].
type Found struct {
	Disk  Disk
	Twins []Disk // other disks with the same partition GUIDs
	Note  string // a sentence for support when there was something to decide; else empty
}

// SelectedEntry is the name of the boot file that the loader started, in lower
// case and with the counter it had before this boot; empty if the loader does
// not say. sys is sysfs, with efivarfs mounted in it.
func SelectedEntry(sys string) string {
	return strings.ToLower(utf16String(readVariable(filepath.Join(sys, efivars), "LoaderEntrySelected", loaderVendor)))
}

// Find waits until the booted disk is there and returns it.
func Find(ctx context.Context, cfg Config) (Found, error) {
	if cfg.Sys == "" {
		cfg.Sys = "/sys"
	}
	if cfg.Dev == "" {
		cfg.Dev = "/dev"
	}
	if cfg.Wait == 0 {
		cfg.Wait = 20 * time.Second
	}
	vars := filepath.Join(cfg.Sys, efivars)
	want := loaderPartUUID(vars)
	if want == "" {
		want = strings.ToLower(cfg.PartUUID)
	}
	if want == "" {
		return Found{}, fmt.Errorf("find the booted disk: neither the boot loader nor the command line names it")
	}
	path := bootPath(vars)

	ctx, cancel := context.WithTimeout(ctx, cfg.Wait)
	defer cancel()
	// A lone disk that the firmware's path contradicts may be the twin of a
	// slower one: it gets half of the time to appear.
	patience := time.Now().Add(cfg.Wait / 2)
	for {
		disks := candidates(cfg, want)
		found, sure := choose(disks, path)
		if len(disks) > 0 && (sure || time.Now().After(patience)) {
			return found, nil
		}
		select {
		case <-ctx.Done():
			if len(disks) > 0 {
				return found, nil
			}
			return Found{}, fmt.Errorf("find the booted disk: no disk with partition %s appeared within %v", want, cfg.Wait)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// choose picks the booted one of the disks. It is sure when waiting for more
// disks cannot change the answer for the better.
func choose(disks []Disk, path devicePath) (found Found, sure bool) {
	if len(disks) == 0 {
		return Found{}, false
	}
	byMatch := func(want match) []Disk {
		return slices.DeleteFunc(slices.Clone(disks), func(d Disk) bool { return path.match(d.sysfs) != want })
	}
	best := byMatch(matchYes)
	if len(best) == 0 {
		best = byMatch(matchUnknown)
	}
	if len(best) == 0 {
		best = disks
	}
	found.Disk = best[0]
	found.Twins = slices.DeleteFunc(slices.Clone(disks), func(d Disk) bool { return d == found.Disk })
	switch names := twinNames(found.Twins); {
	case len(found.Twins) > 0 && len(best) == 1:
		found.Note = fmt.Sprintf("Disk %s carries the same partitions as the booted disk %s and is ignored.", names, found.Disk.Path)
	case len(found.Twins) > 0:
		found.Note = fmt.Sprintf("Disk %s carries the same partitions as %s and the firmware does not say which it booted; %s was taken.", names, found.Disk.Path, found.Disk.Path)
	}
	return found, len(best) == 1 && path.match(best[0].sysfs) != matchNo
}

func twinNames(disks []Disk) string {
	var names []string
	for _, d := range disks {
		names = append(names, d.Path)
	}
	return strings.Join(names, ", ")
}

// candidates are the disks whose first partition has the GUID, by name.
func candidates(cfg Config, partUUID string) []Disk {
	entries, err := os.ReadDir(filepath.Join(cfg.Sys, "block"))
	if err != nil {
		return nil // before the first driver there is no folder
	}
	var disks []Disk
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "loop") || strings.HasPrefix(e.Name(), "dm-") || strings.HasPrefix(e.Name(), "ram") {
			continue
		}
		sysfs, err := filepath.EvalSymlinks(filepath.Join(cfg.Sys, "block", e.Name()))
		if err != nil {
			continue // unplugged meanwhile
		}
		d := Disk{Path: filepath.Join(cfg.Dev, e.Name()), sysfs: sysfs}
		if firstPartUUID(d.Path) != partUUID {
			continue
		}
		// The kernel reads the table after the disk appears; wait for its nodes.
		if _, err := os.Stat(d.Partition(ESP)); err == nil {
			disks = append(disks, d)
		}
	}
	return disks
}

// absurd reports whether the table header at this place is valid and asks for
// more than a MiB of entries (a usual table has 16 KiB). The library would try
// to read them all; on somebody's stick there may be anything.
func absurd(r io.ReaderAt, at int64) bool {
	header := make([]byte, 92)
	if _, err := r.ReadAt(header, at); err != nil || string(header[:8]) != "EFI PART" {
		return false
	}
	sum := binary.LittleEndian.Uint32(header[16:])
	clear(header[16:20])
	entries, size := binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
	return crc32.ChecksumIEEE(header) == sum && (uint64(entries)*uint64(size) > 1<<20 || size != 128)
}

func firstPartUUID(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	sector := 512
	if n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err == nil {
		sector = n
	}
	if size, err := f.Seek(0, io.SeekEnd); err != nil || absurd(f, int64(sector)) || absurd(f, size-int64(sector)) {
		return ""
	}
	table, err := gpt.Read(f, sector, sector)
	if err != nil {
		return ""
	}
	for _, p := range table.Partitions {
		if p.Index == ESP {
			return strings.ToLower(p.GUID)
		}
	}
	return ""
}
