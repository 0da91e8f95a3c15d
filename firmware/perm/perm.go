// Package perm makes /perm ready at boot: the partition and its ext4 file
// system are created, repaired, grown and mounted, so that a box boots with
// whatever it finds there.
//
// What survives what:
//   - Power cut while the partition table grows: the backup table is written
//     before the primary one, so one of them is whole, and the kernel is told
//     (argument "gpt") to take it.
//   - Power cut while the file system is created: its beginning is written
//     last; until that is whole the partition counts as blank and is created again.
//   - Power cut while the file system grows: the kernel's online resize is
//     journalled; the next boot goes on.
//   - Damage: e2fsck repairs it. Only when neither the superblock nor any backup
//     can be read, so that nothing could be saved, is a new file system made.
//   - Anything else that keeps /perm from being mounted leaves the data alone: a
//     memory file system stands in and the box says so.
//
// Other file systems of the box, those of leases, have [Repair].
package perm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"time"
	"unsafe"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/bootlog"
)

// Config says what to prepare and with what.
type Config struct {
	Disk      string // the booted disk, e.g. /dev/vda
	Partition string // its partition for /perm, e.g. /dev/vda4
	Number    int    // that partition's number
	Target    string // where to mount it
	Template  string // file with an empty ext4 file system, smaller than any partition
	Fsck      string // e2fsck, statically linked

	Say func(string) // told before work that may take long, for whoever watches; may be nil
}

// Checker is where the root of a box has its e2fsck, statically linked.
const Checker = "/usr/lib/croft/e2fsck"

// TemplateArgs are the arguments with which mke2fs makes the template in file:
// an empty ext4 of 64 MiB that can grow to 16 TiB. With E2FSPROGS_FAKE_TIME in
// its environment mke2fs makes the same bytes each time.
func TemplateArgs(file string) []string {
	const uuid = "c40f7000-7065-726d-8000-000000000001"
	return []string{
		"-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", "perm", "-U", uuid,
		"-E", "hash_seed=" + uuid + ",root_owner=0:0,resize=4294967295,lazy_itable_init=1,lazy_journal_init=1",
		"-J", "size=16", file, "64M",
	}
}

// checkLimit ends the file system checks of one boot that make no progress. A
// whole check of a large, full disk takes minutes, not hours.
const checkLimit = 30 * time.Minute

// Limit is longer than [Prepare] takes unless the disk hangs: all checks
// together may take half an hour, the rest a few minutes.
const Limit = checkLimit + 5*time.Minute

// Prepare makes cfg.Target a mounted /perm, or a memory file system in its
// place, and says which. Only the failure of even the latter is an error.
// The caller keeps the watchdog fed, for [Limit] at most.
func Prepare(ctx context.Context, cfg Config) (bootlog.Perm, error) {
	p := bootlog.Perm{Device: cfg.Partition}
	err := prepare(ctx, cfg, &p)
	if err == nil {
		return p, nil
	}
	p.State, p.Detail = bootlog.PermLost, err.Error()
	if err := unix.Mount("perm", cfg.Target, "tmpfs", unix.MS_NOATIME, "size=64m,mode=0755"); err != nil {
		return p, fmt.Errorf("mount a memory file system as /perm: %w", err)
	}
	return p, nil
}

func prepare(ctx context.Context, cfg Config, p *bootlog.Perm) error {
	if _, err := os.Stat(cfg.Partition); err != nil {
		p.Device = ""
		return fmt.Errorf("partition %d is missing on %s", cfg.Number, cfg.Disk)
	}
	grown, err := growPartition(cfg)
	if err != nil {
		p.Detail = err.Error() // it stays as small as it is; go on
	}
	p.Grown = grown

	p.State = bootlog.PermOK
	blank, err := isBlank(cfg.Partition, cfg.Template)
	if err != nil {
		return fmt.Errorf("read %s: %w", cfg.Partition, err)
	}
	if blank {
		if err := create(cfg.Partition, cfg.Template); err != nil {
			return err
		}
		p.State = bootlog.PermCreated
	} else if p.State, err = check(ctx, cfg); err != nil {
		return err
	}

	err = unix.Mount(cfg.Partition, cfg.Target, "ext4", unix.MS_NOATIME, "errors=remount-ro")
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		err = unix.Mount(cfg.Partition, cfg.Target, "ext4", unix.MS_NOATIME|unix.MS_RDONLY, "")
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
			// A journal that needs replay on a disk that cannot be written.
			err = unix.Mount(cfg.Partition, cfg.Target, "ext4", unix.MS_NOATIME|unix.MS_RDONLY, "norecovery")
		}
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", cfg.Partition, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.Target, &fs); err == nil && fs.Flags&unix.ST_RDONLY != 0 {
		// A file system that says it is read-only is mounted so, without an error.
		p.State, p.Detail = bootlog.PermReadOnly, "the file system or the disk is read-only"
		return nil
	}
	grown, err = growFileSystem(cfg.Partition, cfg.Target)
	if err != nil {
		p.Detail = err.Error()
	}
	p.Grown = p.Grown || grown
	return nil
}

// headSize is the beginning of a partition, in bytes. There the superblock
// lies, and the signatures of all other file systems.
const headSize = 64 << 10

// isBlank reports whether nothing was ever written to the partition's head, or
// nothing but parts of the template's: the trace of a power cut in [create],
// where a disk may have stored any of the sectors. A whole template is not
// blank, and the first mount changes a file system's superblock for good.
func isBlank(path, template string) (bool, error) {
	head, err := readHead(path)
	if err != nil {
		return false, err
	}
	if len(bytes.Trim(head, "\x00")) == 0 {
		return true, nil
	}
	whole, err := readHead(template)
	if err != nil || bytes.Equal(head, whole) {
		return false, err
	}
	const sector = 512
	for at := 0; at < headSize; at += sector {
		s := head[at : at+sector]
		if !bytes.Equal(s, whole[at:at+sector]) && len(bytes.Trim(s, "\x00")) > 0 {
			return false, nil
		}
	}
	return true, nil
}

func readHead(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, headSize)
	_, err = io.ReadFull(f, head)
	return head, err
}

// create writes the template to the partition, its head last.
func create(path, template string) error {
	to, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = copyTemplate(to, template)
		err = errors.Join(err, to.Close())
	}
	if err != nil {
		return fmt.Errorf("create a file system on %s: %w", path, err)
	}
	return nil
}

// device is what is written to: a disk or a partition.
type device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

func copyTemplate(to device, template string) error {
	from, err := os.Open(template)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := zero(to, info.Size()); err != nil {
		return fmt.Errorf("clear: %w", err)
	}
	if err := to.Sync(); err != nil {
		return err
	}
	first := make([]byte, headSize)
	if _, err := io.ReadFull(from, first); err != nil {
		return err
	}
	block, blank := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(len(first)); ; {
		n, err := io.ReadFull(from, block)
		if !bytes.Equal(block[:n], blank[:n]) {
			if _, err := to.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := to.Sync(); err != nil {
		return err
	}
	if _, err := to.WriteAt(first, 0); err != nil {
		return err
	}
	return to.Sync()
}

// zero clears the first size bytes, by the hardware's own means where it has
// them.
func zero(to device, size int64) error {
	if f, ok := to.(*os.File); ok {
		span := [2]uint64{0, uint64(size)}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span))); errno == 0 {
			return nil
		}
	}
	block := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(block)) {
		if _, err := to.WriteAt(block[:min(int64(len(block)), size-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// check replays the journal and repairs what it can.
func check(ctx context.Context, cfg Config) (bootlog.PermState, error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	head := headDamaged(cfg.Partition, cfg.Target)
	if !head {
		// The usual case, done in a moment.
		code, _, err := fsck(ctx, cfg.Fsck, cfg.Partition, "-p") // safe repairs only
		if err != nil {
			return "", err
		}
		if code < good {
			return bootlog.PermOK, nil
		}
	}
	if cfg.Say != nil {
		cfg.Say("The storage of the box is damaged and is being repaired. This can take many minutes; please leave the box plugged in.")
	}
	v, err := repair(ctx, cfg.Fsck, cfg.Partition, head)
	switch {
	case err != nil:
		return "", err
	case v.code < good:
		return bootlog.PermRepaired, nil
	case readOnly(cfg.Partition):
		return bootlog.PermReadOnly, nil // mounting decides
	case !v.nothing:
		return "", fmt.Errorf("%s is damaged and could not be repaired (e2fsck exit %d); its data was left alone", cfg.Partition, v.code)
	}
	if err := create(cfg.Partition, cfg.Template); err != nil {
		return "", err
	}
	return bootlog.PermRenewed, nil
}

// Repair checks and repairs the unmounted ext4 on device, from its backups if it
// must. An error of kind [croft.KindInvalid] means that it is beyond repair, any
// other that it could not be tried.
func Repair(ctx context.Context, device string) error {
	return repairAny(ctx, Checker, device)
}

func repairAny(ctx context.Context, program, device string) error {
	dir, err := os.MkdirTemp("", "repair-")
	if err != nil {
		return fmt.Errorf("repair %s: %w", device, err)
	}
	defer os.Remove(dir) // an empty folder at worst
	switch v, err := repair(ctx, program, device, headDamaged(device, dir)); {
	case err != nil:
		return fmt.Errorf("repair %s: %w", device, err)
	case v.code < good:
		return nil
	case v.nothing:
		return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("repair %s: no superblock is left on it", device)}
	case v.uncorrected:
		return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("repair %s: e2fsck could not mend all", device)}
	default:
		return fmt.Errorf("repair %s: e2fsck exit %d", device, v.code)
	}
}

// Exit codes of e2fsck (e2fsck(8)).
const (
	good        = 4 // below it: the file system is good now
	uncorrected = 4 // a bit: damage was seen and is still there
)

// verdict is what became of a file system that was to be repaired.
type verdict struct {
	code        int  // the last exit code of e2fsck
	uncorrected bool // some attempt met what it could not mend
	nothing     bool // no attempt found a superblock
}

// repair checks all of a file system, if that does not help from the backup
// superblocks of group 1, 3 and 5 (block size 4096), and with a damaged head from
// those first.
func repair(ctx context.Context, program, device string, head bool) (verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	attempts := [][]string{nil, {"-b", "32768", "-B", "4096"}, {"-b", "98304", "-B", "4096"}, {"-b", "163840", "-B", "4096"}}
	if head {
		attempts = append(attempts[1:], nil)
	}
	v := verdict{nothing: true}
	for _, extra := range attempts {
		code, out, err := fsck(ctx, program, device, append([]string{"-y", "-f"}, extra...)...)
		if err != nil {
			return v, err
		}
		v.code = code
		if code < good {
			break
		}
		v.uncorrected = v.uncorrected || code&uncorrected != 0
		v.nothing = v.nothing && noSuperblock(out)
	}
	return v, nil
}

// headDamaged asks the kernel whether superblock and group descriptors make
// sense, without a change to the disk. When they do not, e2fsck must be given
// the backups first: left to itself it believes the descriptors, clears what
// they point to ("SEVERE DATA LOSS POSSIBLE") and overwrites the backups.
func headDamaged(device, dir string) bool {
	err := unix.Mount(device, dir, "ext4", unix.MS_RDONLY, "norecovery")
	if err == nil {
		err = unix.Unmount(dir, 0)
	}
	return errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EINVAL)
}

// noSuperblock recognises e2fsck's answer where it read something else than a
// superblock, or where the partition ends before it ("invalid argument" from a
// disk, "short read" from a file). An I/O error is another answer.
func noSuperblock(out string) bool {
	for _, answer := range []string{"Bad magic number in super-block", "Invalid argument while trying to open", "short read while trying to open"} {
		if strings.Contains(out, answer) {
			return true
		}
	}
	return false
}

func readOnly(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return true
	}
	defer f.Close()
	ro, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
	return err == nil && ro != 0
}

// fsck runs e2fsck.
func fsck(ctx context.Context, program, device string, args ...string) (code int, output string, err error) {
	cmd := exec.CommandContext(ctx, program, append(args, device)...)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode(), string(out), nil
	}
	if ctx.Err() != nil {
		return 0, "", fmt.Errorf("check %s: broken off or not done after %v; its data was left alone", device, checkLimit)
	}
	if err != nil {
		return 0, "", fmt.Errorf("check %s: %w", device, err)
	}
	return 0, string(out), nil
}

// growPartition moves the end of the partition to the end of the disk, when at
// least 1 MiB is to gain, and tells the kernel.
func growPartition(cfg Config) (bool, error) {
	f, err := os.OpenFile(cfg.Disk, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("grow /perm: %w", err)
	}
	defer f.Close()
	sector := int64(512)
	if n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err == nil {
		sector = int64(n)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, fmt.Errorf("measure %s: %w", cfg.Disk, err)
	}
	part, err := growTable(f, size, sector, cfg.Number)
	if err != nil {
		return false, fmt.Errorf("grow /perm on %s: %w", cfg.Disk, err)
	}
	if part == nil {
		return false, nil
	}
	if err := resizeInKernel(f, cfg.Number, int64(part.Start)*sector, int64(part.Size)); err != nil {
		return false, fmt.Errorf("tell the kernel that %s grew: %w", cfg.Partition, err)
	}
	return true, nil
}

// growTable fits the partition table to a disk of size bytes and extends
// partition number to its end. It returns the partition if that grew.
func growTable(disk backend.WritableFile, size, sector int64, number int) (*gpt.Partition, error) {
	table, err := gpt.Read(disk, int(sector), int(sector))
	if err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	old := table.TotalSize()
	if uint64(size) < old {
		// A backup table at the end of this disk would lie in a partition.
		return nil, fmt.Errorf("the disk has %d bytes and its partition table is for %d", size, old)
	}
	table.Resize(uint64(size))
	part, err := resizeLast(table, number, sector)
	if err != nil {
		return nil, err
	}
	if part == nil && old == uint64(size) && !table.RecoveredFromBackup {
		return nil, nil
	}
	table.ProtectiveMBR = true // also where that is damaged
	if err := table.Write(disk, size); err != nil {
		return nil, fmt.Errorf("write the partition table: %w", err)
	}
	if size/sector > math.MaxUint32 {
		// The protective MBR's size has 32 bits; the library cuts it off there.
		if _, err := disk.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, 446+12); err != nil {
			return nil, fmt.Errorf("write the protective MBR: %w", err)
		}
	}
	return part, nil
}

// resizeLast extends partition number to the end of the table and returns it,
// or nil when less than 1 MiB is to gain.
func resizeLast(table *gpt.Table, number int, sector int64) (*gpt.Partition, error) {
	var part *gpt.Partition
	for _, p := range table.Partitions {
		if p.Index == number {
			part = p
		}
	}
	if part == nil {
		return nil, fmt.Errorf("partition %d is missing", number)
	}
	for _, p := range table.Partitions {
		if p.Index != number && p.Start > part.Start {
			return nil, fmt.Errorf("partition %d lies behind it", p.Index)
		}
	}
	perMiB := uint64(1<<20) / uint64(sector)
	end := (table.LastDataSector()+1)/perMiB*perMiB - 1
	if end < part.End+perMiB {
		return nil, nil
	}
	part.Expand(end - part.End)
	return part, nil
}

// resizeInKernel is BLKPG_RESIZE_PARTITION (linux/blkpg.h): it works while
// other partitions of the disk are in use.
func resizeInKernel(disk *os.File, number int, start, length int64) error {
	part := unix.BlkpgPartition{Start: start, Length: length, Pno: int32(number)}
	arg := unix.BlkpgIoctlArg{
		Op:      unix.BLKPG_RESIZE_PARTITION,
		Datalen: int32(unsafe.Sizeof(part)),
		Data:    (*byte)(unsafe.Pointer(&part)),
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ext4ResizeFS is EXT4_IOC_RESIZE_FS of the kernel's fs/ext4/ext4.h,
// _IOW('f', 16, __u64): resize the mounted file system to that many blocks.
const ext4ResizeFS = 0x40086610

// growFileSystem lets the mounted file system fill its partition.
func growFileSystem(partition, target string) (bool, error) {
	dev, err := os.Open(partition)
	if err != nil {
		return false, fmt.Errorf("grow the file system of /perm: %w", err)
	}
	defer dev.Close()
	size, err := dev.Seek(0, io.SeekEnd)
	if err != nil {
		return false, fmt.Errorf("measure %s: %w", partition, err)
	}
	dir, err := os.Open(target)
	if err != nil {
		return false, fmt.Errorf("grow the file system of /perm: %w", err)
	}
	defer dir.Close()
	var before, after unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &before); err != nil {
		return false, fmt.Errorf("measure /perm: %w", err)
	}
	blocks := uint64(size / before.Bsize)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 && errno != unix.EINVAL { // EINVAL: would shrink by less than a group
		return false, fmt.Errorf("grow the file system of /perm: %w", errno)
	}
	if err := unix.Fstatfs(int(dir.Fd()), &after); err != nil {
		return false, fmt.Errorf("measure /perm: %w", err)
	}
	return after.Blocks > before.Blocks, nil
}
