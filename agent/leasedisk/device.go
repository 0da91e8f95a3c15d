package leasedisk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
)

// The kernel lets go of devices a moment after their last user; who asks too
// early is told to ask again, as often as libdevmapper does.
const (
	busyAttempts = 25
	busyPause    = 200 * time.Millisecond
)

// patiently repeats do while it is told "busy".
func patiently(do func() error) error {
	for attempt := 1; ; attempt++ {
		err := do()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if attempt == busyAttempts {
			return fmt.Errorf("%w: %w", errBusy, err)
		}
		time.Sleep(busyPause)
	}
}

func (l linux) check() error {
	if err := l.checkLoop(); err != nil {
		return err
	}
	names, err := dmTargets()
	if err != nil {
		return err
	}
	if slices.Contains(names, "crypt") {
		return nil
	}
	return errors.New("the kernel has no dm-crypt: disks cannot be encrypted")
}

func (linux) checkLoop() error {
	if _, err := os.Stat(loopControl); err != nil {
		return fmt.Errorf("the kernel has no loop devices: %w", err)
	}
	return nil
}

// Loop devices: linux/loop.h.

const loopControl = "/dev/loop-control"

// loopAttempts bounds the race for a free loop device with other programs.
const loopAttempts = 20

// loopSector is the sector size of the loop device in bytes: that of ext4's
// blocks and dm-crypt's sectors, so that direct I/O stays aligned.
const loopSector = 4096

func (linux) attach(image string) (device string, hold func() error, err error) {
	back, err := os.OpenFile(image, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", nil, err
	}
	defer back.Close()
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{
		Fd: uint32(back.Fd()), Size: loopSector,
		Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO},
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
	for range loopAttempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device := "/dev/loop" + strconv.Itoa(n)
		loop, err := os.OpenFile(device, os.O_RDWR, 0)
		if err != nil {
			return "", nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if errors.Is(err, unix.EINVAL) && config.Info.Flags&unix.LO_FLAGS_DIRECT_IO != 0 {
			config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO // not on this file system
			err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		}
		if err == nil {
			return device, loop.Close, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return "", nil, fmt.Errorf("attach %s to %s: %w", image, device, err)
		}
	}
	return "", nil, fmt.Errorf("attach %s: other programs took every free loop device", image)
}

func (linux) loops(image string) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil {
			continue // let go of meanwhile
		}
		if name := strings.TrimSuffix(strings.TrimSuffix(string(backing), "\n"), " (deleted)"); name == image {
			found = append(found, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(file))))
		}
	}
	return found, nil
}

// detach frees a loop device. While something uses it the kernel only notes the
// wish, so what counts is that the image is gone from it.
func (l linux) detach(loop string) error {
	backing := filepath.Join("/sys/block", filepath.Base(loop), "loop/backing_file")
	image, err := os.ReadFile(backing)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return patiently(func() error {
		// Another program may have got the device meanwhile.
		if now, err := os.ReadFile(backing); err != nil || !bytes.Equal(now, image) {
			return nil
		}
		dev, err := os.OpenFile(loop, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		_, err = unix.IoctlRetInt(int(dev.Fd()), unix.LOOP_CLR_FD)
		dev.Close()
		if err != nil && !errors.Is(err, unix.ENXIO) { // ENXIO: free already
			return fmt.Errorf("free %s: %w", loop, err)
		}
		if now, err := os.ReadFile(backing); err == nil && bytes.Equal(now, image) {
			return fmt.Errorf("free %s: %w", loop, unix.EBUSY)
		}
		return nil
	})
}

// The device mapper: linux/dm-ioctl.h. A request is a header, and for a table a
// target with its parameters behind it.

const (
	dmControl = "/dev/mapper/control"
	dmHeader  = int(unsafe.Sizeof(unix.DmIoctl{}))
	dmTarget  = int(unsafe.Sizeof(unix.DmTargetSpec{}))
)

// dm sends one request. data follows the header, there and back.
func dm(request uint, name string, flags uint32, targets int, data []byte) (unix.DmIoctl, []byte, error) {
	var none unix.DmIoctl
	control, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return none, nil, fmt.Errorf("open device mapper: %w", err)
	}
	defer control.Close()
	// Words of 64 bits, for the alignment of the structures.
	words := make([]uint64, (dmHeader+len(data)+7)/8)
	buffer := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
	defer clear(buffer) // a key may be in it
	header := (*unix.DmIoctl)(unsafe.Pointer(&words[0]))
	header.Version = [3]uint32{unix.DM_VERSION_MAJOR, 0, 0} // any kernel with this major version takes it
	header.Data_size, header.Data_start = uint32(len(buffer)), uint32(dmHeader)
	header.Target_count, header.Flags = uint32(targets), flags
	copy(header.Name[:len(header.Name)-1], name)
	if request == unix.DM_DEV_CREATE {
		copy(header.Uuid[:len(header.Uuid)-1], "CROFT-"+name)
	}
	copy(buffer[dmHeader:], data)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), uintptr(request), uintptr(unsafe.Pointer(&words[0]))); errno != 0 {
		return none, nil, errno
	}
	return *header, bytes.Clone(buffer[dmHeader:]), nil
}

// dmTargets names the kinds of devices that the kernel can map.
func dmTargets() ([]string, error) {
	const room = 16 << 10 // some 30 targets of 40 bytes exist
	_, data, err := dm(unix.DM_LIST_VERSIONS, "", 0, 0, make([]byte, room))
	if err != nil {
		return nil, fmt.Errorf("list device mapper targets: %w", err)
	}
	return parseTargets(data), nil
}

// parseTargets reads a chain of struct dm_target_versions: offset of the next
// one (32 bits), version (3 times 32), name.
func parseTargets(data []byte) []string {
	const nameAt = 16
	var names []string
	for len(data) > nameAt {
		name, _, _ := bytes.Cut(data[nameAt:], []byte{0})
		names = append(names, string(name))
		next := *(*uint32)(unsafe.Pointer(&data[0]))
		if next < nameAt || int64(next) >= int64(len(data)) {
			break
		}
		data = data[next:]
	}
	return names
}

func (l linux) encrypt(name, device string, secret []byte) (string, error) {
	made, _, err := dm(unix.DM_DEV_CREATE, name, 0, 0, nil)
	if err != nil {
		return "", fmt.Errorf("map %s: %w", name, err)
	}
	if err := load(name, device, secret); err != nil {
		return "", errors.Join(err, l.decrypt(name))
	}
	if _, _, err := dm(unix.DM_DEV_SUSPEND, name, 0, 0, nil); err != nil { // without the flag: resume
		return "", errors.Join(fmt.Errorf("start %s: %w", name, err), l.decrypt(name))
	}
	// Without udev the kernel names the node after its minor number.
	return "/dev/dm-" + strconv.Itoa(int(unix.Minor(made.Dev))), nil
}

// load gives the mapping a table: one crypt target over all of the device.
func load(name, device string, secret []byte) error {
	dev, err := os.Open(device)
	if err != nil {
		return err
	}
	size, err := dev.Seek(0, io.SeekEnd)
	dev.Close()
	if err != nil {
		return fmt.Errorf("measure %s: %w", device, err)
	}
	table := cryptTable(uint64(size), device, secret)
	defer clear(table)
	_, _, err = dm(unix.DM_TABLE_LOAD, name, unix.DM_SECURE_DATA_FLAG, 1, table)
	if errors.Is(err, unix.ENOENT) { // of the cipher: the device was there just now
		return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("set up encryption of %s: the kernel has no AES-XTS", name), Remedy: loadModules()}
	}
	if err != nil {
		return fmt.Errorf("set up encryption of %s: %w", name, err)
	}
	return nil
}

// cryptTable is a struct dm_target_spec and its parameters as
// Documentation/admin-guide/device-mapper/dm-crypt.rst has them: cipher, key, IV
// offset, device, offset, options. Lengths are in sectors of 512 bytes.
func cryptTable(size uint64, device string, secret []byte) []byte {
	key := make([]byte, hex.EncodedLen(len(secret)))
	defer clear(key)
	hex.Encode(key, secret)
	table := make([]byte, dmTarget, dmTarget+512)
	spec := (*unix.DmTargetSpec)(unsafe.Pointer(&table[0]))
	spec.Length = size / 512
	copy(spec.Target_type[:], "crypt")
	table = append(table, "aes-xts-plain64 "...)
	table = append(table, key...)
	table = append(table, " 0 "...)
	table = append(table, device...)
	table = append(table, " 0 2 allow_discards sector_size:4096"...)
	return append(table, 0)
}

func (linux) decrypt(name string) error {
	err := patiently(func() error {
		_, _, err := dm(unix.DM_DEV_REMOVE, name, 0, 0, nil)
		return err
	})
	if errors.Is(err, unix.ENXIO) { // there is none
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmap %s: %w", name, err)
	}
	return nil
}
