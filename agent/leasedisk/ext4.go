package leasedisk

import (
	"bytes"
	"compress/gzip"
	_ "embed" // for the template
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// templateSize is the size of the unpacked template in bytes.
const templateSize = 16 << 20

//go:embed template.ext4.gz
var template []byte

// The superblock: fs/ext4/ext4.h.
const (
	superAt    = 1024
	superSize  = 1024
	magicAt    = 0x38
	stateAt    = 0x3a
	uuidAt     = 0x68
	hashSeedAt = 0xec
	checksumAt = 0x3fc

	magic       = 0xef53
	stateErrors = 2 // a bit: the kernel met damage
)

// unpack returns the template as a file system of its own.
func unpack(uuid [16]byte) ([]byte, error) {
	packed, err := gzip.NewReader(bytes.NewReader(template))
	if err != nil {
		return nil, fmt.Errorf("unpack ext4 template: %w", err)
	}
	disk := make([]byte, templateSize)
	if _, err := io.ReadFull(packed, disk); err != nil {
		return nil, fmt.Errorf("unpack ext4 template: %w", err)
	}
	super := disk[superAt : superAt+superSize]
	if binary.LittleEndian.Uint16(super[magicAt:]) != magic {
		return nil, errors.New("unpack ext4 template: it has no superblock")
	}
	copy(super[uuidAt:], uuid[:])
	copy(super[hashSeedAt:], uuid[:]) // names in folders are hashed with it; tenants cannot know it
	binary.LittleEndian.PutUint32(super[checksumAt:], superChecksum(super))
	return disk, nil
}

// superChecksum is CRC-32C without the final inversion over all before it.
func superChecksum(super []byte) uint32 {
	return ^crc32.Checksum(super[:checksumAt], crc32.MakeTable(crc32.Castagnoli))
}

// format writes the whole template, zeros too: below dm-crypt a block that was
// never written reads as noise.
func (linux) format(device string, uuid [16]byte) error {
	disk, err := unpack(uuid)
	if err != nil {
		return err
	}
	dev, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	if _, err := dev.WriteAt(disk, 0); err != nil {
		return fmt.Errorf("make a file system on %s: %w", device, noSpace(err))
	}
	if err := dev.Sync(); err != nil {
		return fmt.Errorf("make a file system on %s: %w", device, noSpace(err))
	}
	return nil
}

func (linux) suspect(device string) (bool, error) {
	dev, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer dev.Close()
	super := make([]byte, superSize)
	if _, err := dev.ReadAt(super, superAt); err != nil {
		return false, fmt.Errorf("read superblock: %w", err)
	}
	word := func(at int) uint16 { return binary.LittleEndian.Uint16(super[at:]) }
	return word(magicAt) == magic && word(stateAt)&stateErrors != 0, nil
}

// mountOptions: minixdf makes df show the size that the tenant rents, with what
// ext4 needs for itself as used.
const mountOptions = "discard,errors=remount-ro,minixdf"

func (linux) mount(device, dir string) error {
	err := unix.Mount(device, dir, "ext4", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOATIME, mountOptions)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG), errors.Is(err, unix.EINVAL):
		// Structure, checksum, superblock.
		return fmt.Errorf("mount %s: %w: %w", device, errDamaged, err)
	}
	return fmt.Errorf("mount %s: %w", device, err)
}

func (linux) mounted(dir string) (bool, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	return isMountPoint(string(table), dir), nil
}

// isMountPoint looks for dir in the form of proc_pid_mountinfo(5): the fifth
// field is the mount point. The names of ours need no escapes.
func isMountPoint(table, dir string) bool {
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == dir {
			return true
		}
	}
	return false
}

func (linux) unmount(dir string) error {
	for {
		err := patiently(func() error { return unix.Unmount(dir, unix.UMOUNT_NOFOLLOW) })
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nothing is mounted there
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}

// ext4ResizeFS is EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h, _IOW('f', 16, __u64): let
// the mounted file system have that many blocks.
const ext4ResizeFS = 0x40086610

// lastGroup is less than what the kernel makes a block group of at the end of a
// disk, in bytes: inode table, bitmaps, copies of the descriptors, and 50 blocks.
const lastGroup = 4 << 20

func (linux) fill(dir string, size int64) error {
	mounted, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer mounted.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(mounted.Fd()), &st); err != nil {
		return fmt.Errorf("measure file system: %w", err)
	}
	blocks := uint64(size / st.Bsize)
	if st.Blocks >= blocks {
		return nil
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, mounted.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 && errno != unix.EINVAL { // EINVAL: what is missing is too small for a group
		return fmt.Errorf("grow file system: %w", errno)
	}
	if err := unix.Fstatfs(int(mounted.Fd()), &st); err != nil {
		return fmt.Errorf("measure file system: %w", err)
	}
	if has := int64(st.Blocks) * st.Bsize; has+lastGroup <= size {
		return fmt.Errorf("grow file system: it has %d bytes after that, want %d", has, size)
	}
	return nil
}

func (linux) usage(dir string) (used, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("measure file system: %w", err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}
