package media

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
)

// edgeSize is how much of the beginning and the end of the image is written
// last: partition tables, and the gap beside them.
const edgeSize = 1 << 20

// Job is one image about to be written to one disk. The disk is held
// exclusively until Close.
type Job struct {
	about    *About
	image    *os.File
	disk     *os.File
	name     string   // sdx
	model    string   // for people
	content  []string // partitions on the disk now, for people
	diskSize int64
}

func refuse(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf(format, args...), Remedy: "nothing was written; choose another disk (`lsblk` lists them)"}
}

// Prepare checks image and disk, changes nothing, and returns the job.
func Prepare(image, device string) (*Job, error) {
	j := &Job{}
	if err := j.prepare(image, device); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

func (j *Job) prepare(image, device string) error {
	if err := j.openImage(image); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("find disk %s: %w", device, err), Remedy: "`lsblk` lists the disks"}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return refuse("%s is not a disk", device)
	}
	sys, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return fmt.Errorf("look up %s: %w", device, err)
	}
	if _, err := os.Stat(filepath.Join(sys, "partition")); err == nil {
		return refuse("%s is one partition; the image needs the whole disk (%s)", device, filepath.Base(filepath.Dir(sys)))
	}
	if err := checkUnused(device, sys); err != nil {
		return err
	}
	j.name, j.model, j.content = filepath.Base(sys), model(sys), partitions(sys)
	return j.openDisk(device, sys, st.Rdev)
}

// openImage insists on a file: a disk that was in a box carries the identity of
// that box, which must not be had twice.
func (j *Job) openImage(path string) (err error) {
	if j.image, err = open(path); err != nil {
		return err
	}
	if j.about, err = inspect(path, j.image); err != nil {
		return err
	}
	switch {
	case j.about.Disk:
		return &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("%s is a disk, not an image: a copy would share the identity of its box", path),
			Remedy: "name an image with --image; nothing was written",
		}
	case len(j.about.Entries) == 0:
		return damaged(path, errors.New("nothing on it can boot"))
	case j.about.Entries[0].Problem != "":
		return damaged(path, errors.New(j.about.Entries[0].Problem))
	}
	return nil
}

func (j *Job) openDisk(device, sys string, number uint64) (err error) {
	if line(sys, "ro") == "1" {
		return refuse("%s is write-protected", device)
	}
	j.disk, err = os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return refuse("%s is in use", device)
	case errors.Is(err, unix.EROFS):
		return refuse("%s is write-protected", device)
	case errors.Is(err, unix.ENOMEDIUM):
		return refuse("%s is empty", device)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("open %s: permission denied", device), Remedy: "run this as root (sudo); nothing was written"}
	case err != nil:
		return fmt.Errorf("open disk %s: %w", device, err)
	}
	if err := checkNumber(j.disk, number); err != nil {
		return err
	}
	if j.diskSize, err = j.disk.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("measure %s: %w", device, err)
	}
	sector, err := unix.IoctlGetInt(int(j.disk.Fd()), unix.BLKSSZGET)
	switch {
	case err != nil:
		return fmt.Errorf("measure %s: %w", device, err)
	case j.diskSize == 0:
		return refuse("%s is empty", device)
	case j.diskSize < j.about.Size:
		return &croft.Error{
			Kind:   croft.KindNoSpace,
			Err:    fmt.Errorf("%s holds %d MiB, the image needs %d", device, j.diskSize>>20, (j.about.Size+1<<20-1)>>20),
			Remedy: "use a larger disk; nothing was written",
		}
	case sector != j.about.Sector:
		return &croft.Error{
			Kind:   croft.KindRefused,
			Err:    fmt.Errorf("%s has sectors of %d bytes, the image is made for %d", device, sector, j.about.Sector),
			Remedy: "use another disk, or switch this one over (`nvme format` can, on many); nothing was written",
		}
	}
	return nil
}

// checkNumber refuses a device that is not the one that was checked: a disk may
// be unplugged and its name given to another before it is opened.
func checkNumber(disk *os.File, number uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(disk.Fd()), &st); err != nil {
		return fmt.Errorf("look up %s: %w", disk.Name(), err)
	}
	if st.Rdev != number {
		return refuse("%s has become another disk while it was checked", disk.Name())
	}
	return nil
}

// checkUnused refuses a disk of which any part is mounted, swapped to, or under
// a volume manager. The running system's disk is such a one.
func checkUnused(device, sys string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	swaps, _ := os.ReadFile("/proc/swaps") // absent without swap support
	parts, _ := filepath.Glob(filepath.Join(sys, "*", "partition"))
	folders := []string{sys}
	for _, p := range parts {
		folders = append(folders, filepath.Dir(p))
	}
	for _, dir := range folders {
		name := filepath.Base(dir)
		number, err := os.ReadFile(filepath.Join(dir, "dev"))
		if err != nil {
			return fmt.Errorf("look up %s: %w", name, err)
		}
		if where := mountPoint(string(mounts), strings.TrimSpace(string(number)), "/dev/"+name); where != "" {
			if where == "/" {
				return refuse("%s holds the running system", device)
			}
			return refuse("%s of %s is mounted on %s", name, device, where)
		}
		if holders, _ := os.ReadDir(filepath.Join(dir, "holders")); len(holders) > 0 {
			return refuse("%s of %s is used by %s", name, device, holders[0].Name())
		}
		if strings.Contains(string(swaps), "/dev/"+name+" ") {
			return refuse("%s of %s is swap space in use", name, device)
		}
	}
	return nil
}

// mountPoint finds where a device is mounted, in the format of
// /proc/self/mountinfo (proc(5)): by its number or, for file systems with
// numbers of their own, by its path.
func mountPoint(mountinfo, number, path string) string {
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 10 {
			continue
		}
		source := ""
		for i, field := range fields {
			if field == "-" && i+2 < len(fields) {
				source = fields[i+2]
			}
		}
		if fields[2] == number || source == path {
			return strings.ReplaceAll(fields[4], `\040`, " ")
		}
	}
	return ""
}

// line is the content of a small file of the kernel, empty if there is none.
func line(dir, file string) string {
	raw, _ := os.ReadFile(filepath.Join(dir, file))
	return strings.Join(strings.Fields(string(raw)), " ")
}

// model says what a person may read on the disk's case.
func model(sys string) string {
	if file := line(sys, "loop/backing_file"); file != "" {
		return "loop device on " + file
	}
	words := strings.TrimSpace(line(sys, "device/vendor") + " " + cmp.Or(line(sys, "device/model"), line(sys, "device/name")))
	if strings.HasPrefix(words, "0x") { // virtio knows no model, and a number as vendor
		words = ""
	}
	return cmp.Or(words, "unknown model")
}

// partitions lists what is on the disk.
func partitions(sys string) []string {
	var list []string
	found, _ := filepath.Glob(filepath.Join(sys, "*", "partition"))
	for _, p := range found {
		dir := filepath.Dir(p)
		sectors, _ := strconv.ParseInt(line(dir, "size"), 10, 64) // of 512 bytes, always
		list = append(list, filepath.Base(dir)+" "+size(sectors*512))
	}
	return list
}

// Name is the disk's kernel name, e.g. sdx.
func (j *Job) Name() string { return j.name }

// String says what is about to happen.
func (j *Job) String() string {
	now := "no partitions"
	if len(j.content) > 0 {
		now = strings.Join(j.content, ", ")
	}
	e := j.about.Entries[0]
	return fmt.Sprintf("image: croft %s for board %s\ndisk:  %s, %s, %s\nnow:   %s", e.Version, e.Board, j.name, j.model, size(j.diskSize), now)
}

// Close lets go of the disk.
func (j *Job) Close() error {
	var errs []error
	for _, f := range []*os.File{j.image, j.disk} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Progress is told a phase, and bytes done of how many.
type Progress func(phase string, done, total int64)

// Write writes the image and reads it back. When it fails, or ctx is cancelled,
// the disk has no partition table; but an image that cannot be read, or a ctx
// that has ended before, leaves the disk as it was.
func (j *Job) Write(ctx context.Context, progress Progress) error {
	spans, err := j.plan()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return &croft.Error{Err: fmt.Errorf("prepare to write %s: %w", j.name, err), Remedy: "nothing was written"}
	}
	err = j.write(ctx, spans, progress)
	if err == nil {
		return nil
	}
	// The table may be there already, wholly or in part.
	if again := errors.Join(j.clearEdges(), j.disk.Sync()); again != nil {
		err = fmt.Errorf("%w; then the partition table could not be cleared: %w", err, again)
	}
	if ctx.Err() != nil {
		return &croft.Error{Err: fmt.Errorf("stopped while writing %s: %w", j.name, err), Remedy: "it carries nothing that boots now; write it again"}
	}
	return fmt.Errorf("write %s: %w", j.name, err)
}

// write does the steps of Write that change the disk.
func (j *Job) write(ctx context.Context, spans []span, progress Progress) error {
	if err := errors.Join(j.clearEdges(), j.disk.Sync()); err != nil {
		return fmt.Errorf("clear the old partition table: %w", err)
	}
	if err := j.each(ctx, "writing", spans, progress, j.put); err != nil {
		return err
	}
	if err := j.each(ctx, "checking", spans, progress, j.compare); err != nil {
		return err
	}
	// Backup table first, primary table last.
	edges := []span{{at: j.about.Size - edgeSize, size: edgeSize}, {at: 0, size: edgeSize}}
	for _, s := range edges {
		if err := j.each(ctx, "", []span{s}, nil, j.put); err != nil {
			return fmt.Errorf("write the partition table: %w", err)
		}
	}
	if err := j.each(ctx, "", edges, nil, j.compare); err != nil {
		return fmt.Errorf("check the partition table: %w", err)
	}
	// Tell the kernel; a disk just unplugged has none to tell.
	_, _ = unix.IoctlRetInt(int(j.disk.Fd()), unix.BLKRRPART)
	return nil
}

// clearEdges clears the first and the last mebibyte of the disk. At the end lie
// an old backup table and the marks of software RAID, which would be believed
// where the beginning is not.
func (j *Job) clearEdges() error {
	end := j.diskSize / 512 * 512
	return errors.Join(j.clear(0, edgeSize), j.clear(end-edgeSize, edgeSize))
}

// span is a range of the image: of data, or of zeros that have to be there.
type span struct {
	at, size int64
	zero     bool
}

// plan lists what is to be written between the edges. A hole of the image
// becomes zeros, except where the box reads nothing it has not written itself:
// behind the last data of a partition other than the EFI one, and its first
// mebibyte.
func (j *Job) plan() ([]span, error) {
	holes, data, err := extents(j.image, edgeSize, j.about.Size-edgeSize)
	if err != nil {
		return nil, fmt.Errorf("read the image: %w", err)
	}
	var free []span // what may stay as it is
	for _, p := range j.about.Partitions {
		if p.Number == 1 {
			continue
		}
		begin, end := p.Start+edgeSize, p.Start+p.Size
		for _, d := range data {
			if d.at < end {
				begin = max(begin, min(d.at+d.size, end))
			}
		}
		if begin < end {
			free = append(free, span{at: begin, size: end - begin})
		}
	}
	spans := data
	for _, h := range holes {
		spans = append(spans, h.without(free)...)
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.at, b.at) })
	return spans, nil
}

// without is what is left of s outside of others.
func (s span) without(others []span) []span {
	left := []span{s}
	for _, o := range others {
		var next []span
		for _, s := range left {
			end := s.at + s.size
			if before := min(end, o.at); before > s.at {
				next = append(next, span{s.at, before - s.at, s.zero})
			}
			if behind := max(s.at, o.at+o.size); behind < end {
				next = append(next, span{behind, end - behind, s.zero})
			}
		}
		left = next
	}
	return left
}

// extents lists the holes and the data of a file between two offsets.
func extents(f *os.File, from, to int64) (holes, data []span, err error) {
	for at := from; at < to; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // no data up to the end
			begin = to
		case errors.Is(err, unix.EINVAL): // a file system without holes
			begin = at
		case err != nil:
			return nil, nil, err
		}
		if begin = min(begin, to); begin > at {
			holes = append(holes, span{at, begin - at, true})
			at = begin
			continue
		}
		end, err := unix.Seek(int(f.Fd()), at, unix.SEEK_HOLE)
		if err != nil {
			end = to
		}
		end = min(end, to)
		data = append(data, span{at, end - at, false})
		at = end
	}
	return holes, data, nil
}

const (
	blockSize = 4 << 20  // done between two looks at the context
	syncSize  = 32 << 20 // left to the kernel's memory, so that progress means progress
)

// each does all of spans, block by block, and waits until the disk has it.
func (j *Job) each(ctx context.Context, phase string, spans []span, progress Progress, do func(s span, want []byte) error) error {
	var done, synced, total int64
	for _, s := range spans {
		total += s.size
	}
	tell := func() {
		if progress != nil {
			progress(phase, done, total)
		}
	}
	tell()
	buffer, zeros := make([]byte, blockSize), make([]byte, blockSize)
	for _, s := range spans {
		for end := s.at + s.size; s.at < end; s.at += s.size {
			if err := ctx.Err(); err != nil {
				return err
			}
			s.size = min(end-s.at, blockSize)
			want := zeros[:s.size]
			if !s.zero {
				want = buffer[:s.size]
				if _, err := j.image.ReadAt(want, s.at); err != nil {
					return fmt.Errorf("read the image: %w", err)
				}
			}
			if err := do(s, want); err != nil {
				return err
			}
			done += s.size
			if done-synced >= syncSize {
				if err := j.disk.Sync(); err != nil {
					return err
				}
				synced = done
			}
			if done < total {
				tell()
			}
		}
	}
	if err := j.disk.Sync(); err != nil {
		return err
	}
	// What is read next comes from the disk, not from what the kernel remembers.
	if _, err := unix.IoctlRetInt(int(j.disk.Fd()), unix.BLKFLSBUF); err != nil { // needs root, and a disk
		if err := unix.Fadvise(int(j.disk.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return fmt.Errorf("forget what was written: %w", err)
		}
	}
	tell()
	return nil
}

func (j *Job) put(s span, want []byte) error {
	if s.zero {
		return j.clear(s.at, s.size)
	}
	_, err := j.disk.WriteAt(want, s.at)
	return err
}

func (j *Job) compare(s span, want []byte) error {
	got := make([]byte, len(want))
	if _, err := j.disk.ReadAt(got, s.at); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("the disk returns other bytes than were written, near %d MiB", s.at>>20), Remedy: "the disk is broken; use another one"}
	}
	return nil
}

// clear zeroes a range, by the disk's own means where it has them.
func (j *Job) clear(at, size int64) error {
	span := [2]uint64{uint64(at), uint64(size)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, j.disk.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
	if errno == unix.ENOTTY || errno == unix.EINVAL { // a plain file, or a range not of whole sectors
		_, err := j.disk.WriteAt(make([]byte, size), at)
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
