package esp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"unicode/utf16"
)

// Volume reads a FAT32 EFI system partition without mounting it, from a device,
// an image or the state of one after a power cut. It trusts nothing it reads:
// damage gives errors, not endless loops.
type Volume struct {
	r          io.ReaderAt
	sector     int64 // bytes per sector
	cluster    int64 // bytes per cluster
	fat        int64 // offset of the first FAT
	data       int64 // offset of cluster 2
	root       uint32
	maxCluster uint32
}

// errNotFAT reports bytes that are not a FAT32 file system.
var errNotFAT = errors.New("not a FAT32 file system")

// OpenVolume reads the boot sector of the FAT32 file system that begins at
// offset 0 of r. Only the first FAT is used, as firmware does.
func OpenVolume(r io.ReaderAt) (*Volume, error) {
	b := make([]byte, 512)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read boot sector: %w", err)
	}
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, fats, fatSectors := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint32(b[36:]))
	total := int64(le.Uint32(b[32:]))
	if b[510] != 0x55 || b[511] != 0xaa || sector < 512 || sector > 4096 || sector&(sector-1) != 0 ||
		perCluster == 0 || reserved == 0 || fats == 0 || fatSectors == 0 || le.Uint16(b[22:]) != 0 {
		return nil, fmt.Errorf("open volume: %w", errNotFAT)
	}
	v := &Volume{r: r, sector: sector, cluster: sector * perCluster, root: le.Uint32(b[44:])}
	v.fat = reserved * sector
	v.data = v.fat + fats*fatSectors*sector
	clusters := min((total*sector-v.data)/v.cluster, fatSectors*sector/4-2)
	if clusters < 1 {
		return nil, fmt.Errorf("open volume: %w", errNotFAT)
	}
	v.maxCluster = uint32(clusters + 1)
	return v, nil
}

// File is one file of the folder that holds the unified kernel images.
type File struct {
	Name string // the long name; the short one if there is none
	Size int64  // bytes

	v     *Volume
	start uint32 // first cluster; 0 if the file is empty
	first int    // position of its first slot in the folder
	last  int    // position of its short entry
}

// Files lists the files in \EFI\Linux in the order in which they are stored.
// Folders are left out.
func (v *Volume) Files() ([]File, error) {
	d, err := v.linuxDir()
	if err != nil {
		return nil, err
	}
	return d.files(), nil
}

// ReadFile returns the content of any file of at most limit bytes. Its path has
// slashes and begins in the root folder; the case of letters does not matter. It
// fails with [fs.ErrNotExist] where there is no such file.
func (v *Volume) ReadFile(name string, limit int64) ([]byte, error) {
	d, err := v.find(path.Dir(name))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	for _, f := range d.files() {
		if !strings.EqualFold(f.Name, path.Base(name)) {
			continue
		}
		if f.Size > limit {
			return nil, fmt.Errorf("read %s: it has %d bytes, more than %d", name, f.Size, limit)
		}
		var content bytes.Buffer
		_, err := f.WriteTo(&content)
		return content.Bytes(), err
	}
	return nil, fmt.Errorf("read %s: %w", name, fs.ErrNotExist)
}

// WriteTo copies the file's content to w. A cluster chain that ends early or
// leaves the volume is an error.
func (f File) WriteTo(w io.Writer) (int64, error) {
	var done int64
	err := f.v.walk(f.start, f.Size, func(offset, n int64) error {
		m, err := io.Copy(w, io.NewSectionReader(f.v.r, offset, n))
		done += m
		return err
	})
	if err != nil {
		return done, fmt.Errorf("read %s: %w", f.Name, err)
	}
	return done, nil
}

// extents is a file's content where it is stored.
type extents struct {
	r    io.ReaderAt
	runs []extent
}

// extent is a run of adjacent clusters.
type extent struct{ at, offset, n int64 } // place in the file, on the volume; bytes

// content is the file's content, of which only the places are kept in memory.
func (f File) content() (io.ReaderAt, error) {
	e, at := extents{r: f.v.r}, int64(0)
	err := f.v.walk(f.start, f.Size, func(offset, n int64) error {
		e.runs = append(e.runs, extent{at, offset, n})
		at += n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("follow %s: %w", f.Name, err)
	}
	return e, nil
}

// ReadAt is that of [io.ReaderAt].
func (e extents) ReadAt(p []byte, off int64) (done int, err error) {
	if off < 0 {
		return 0, errors.New("read before the begin of a file")
	}
	for _, run := range e.runs {
		at := off + int64(done)
		if done == len(p) || at >= run.at+run.n {
			continue
		}
		part := p[done:min(int64(len(p)), int64(done)+run.at+run.n-at)]
		n, err := e.r.ReadAt(part, run.offset+at-run.at)
		done += n
		if n < len(part) {
			return done, err
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// errChain reports a cluster chain that does not hold what it should.
var errChain = errors.New("cluster chain is damaged")

// walk calls do for each run of adjacent clusters of a chain, until size bytes
// are covered.
func (v *Volume) walk(cluster uint32, size int64, do func(offset, n int64) error) error {
	if size > int64(v.maxCluster)*v.cluster {
		return errChain // more than there is; also bounds a chain that bites its tail
	}
	for size > 0 {
		if cluster < 2 || cluster > v.maxCluster {
			return errChain
		}
		start, n := cluster, int64(0)
		for {
			n += v.cluster
			next, err := v.next(cluster)
			if err != nil {
				return err
			}
			adjacent := next == cluster+1
			cluster = next
			if !adjacent || n >= size {
				break
			}
		}
		n = min(n, size)
		if err := do(v.offset(start), n); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

func (v *Volume) offset(cluster uint32) int64 { return v.data + int64(cluster-2)*v.cluster }

func (v *Volume) next(cluster uint32) (uint32, error) {
	var b [4]byte
	if _, err := v.r.ReadAt(b[:], v.fat+4*int64(cluster)); err != nil {
		return 0, fmt.Errorf("read FAT: %w", err)
	}
	return binary.LittleEndian.Uint32(b[:]) & 0x0fffffff, nil
}

// Directory entries ("slots") and their fields.
const (
	slotSize    = 32
	slotEnd     = 0x00 // first byte: this slot and all behind it are free
	slotDeleted = 0xe5 // first byte: this slot is free
	attrOffset  = 11
	attrVolume  = 0x08
	attrFolder  = 0x10
	attrLong    = 0x0f
)

// maxDirSize bounds what is read of a folder; FAT itself allows no more.
const maxDirSize = 65536 * slotSize

// directory is one folder's content and where it is stored.
type directory struct {
	v       *Volume
	content []byte
	at      []int64 // offset of each sector
}

func (v *Volume) directory(cluster uint32) (*directory, error) {
	d := &directory{v: v}
	for len(d.content) < maxDirSize {
		if cluster < 2 || cluster > v.maxCluster {
			return nil, errChain
		}
		b := make([]byte, v.cluster)
		if _, err := v.r.ReadAt(b, v.offset(cluster)); err != nil {
			return nil, fmt.Errorf("read folder: %w", err)
		}
		d.content = append(d.content, b...)
		for i := int64(0); i < v.cluster; i += v.sector {
			d.at = append(d.at, v.offset(cluster)+i)
		}
		next, err := v.next(cluster)
		if err != nil {
			return nil, err
		}
		if next >= 0x0ffffff8 {
			return d, nil
		}
		cluster = next
	}
	return nil, errChain
}

func (v *Volume) linuxDir() (*directory, error) {
	d, err := v.find(Dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("look for folder %s: %w", Dir, errNoDir)
	}
	return d, err
}

// find opens a folder. Its path has slashes; the root folder's is ".".
func (v *Volume) find(folders string) (*directory, error) {
	d, err := v.directory(v.root)
	if err != nil || folders == "." {
		return d, err
	}
	for name := range strings.SplitSeq(folders, "/") {
		cluster := d.folder(name)
		if cluster == 0 {
			return nil, fmt.Errorf("look for folder %s: %w", name, fs.ErrNotExist)
		}
		if d, err = v.directory(cluster); err != nil {
			return nil, fmt.Errorf("look into folder %s: %w", name, err)
		}
	}
	return d, nil
}

func (d *directory) slot(i int) []byte { return d.content[i*slotSize : (i+1)*slotSize] }

// each calls do for every entry: its name, and the positions of its first slot
// and of its short entry.
func (d *directory) each(do func(name string, first, last int)) {
	var long []uint16 // the long name read so far, its end first in storage
	first, want, sum := 0, byte(0), byte(0)
	for i := range len(d.content) / slotSize {
		s := d.slot(i)
		switch {
		case s[0] == slotEnd:
			return
		case s[0] == slotDeleted:
			want, long = 0, nil
		case s[attrOffset]&0x3f == attrLong:
			order := s[0]
			if order&0x40 != 0 { // the last part of a name comes first
				long, first, want, sum = nil, i, order&0x3f, s[13]
			} else if order != want || s[13] != sum {
				want, long = 0, nil
				continue
			}
			long = append(longPart(s), long...)
			want--
		default:
			name := shortName(s)
			if long != nil && want == 0 && sum == checksum(s[:11]) {
				if end := indexZero(long); end >= 0 {
					long = long[:end]
				}
				name = string(utf16.Decode(long))
			} else {
				first = i
			}
			want, long = 0, nil
			do(name, first, i)
		}
	}
}

func (d *directory) files() []File {
	var files []File
	d.each(func(name string, first, last int) {
		if s := d.slot(last); s[attrOffset]&(attrVolume|attrFolder) == 0 {
			files = append(files, File{
				Name: name, Size: int64(binary.LittleEndian.Uint32(s[28:])),
				v: d.v, start: startOf(s), first: first, last: last,
			})
		}
	})
	return files
}

// folder is the first cluster of a folder in d; 0 if it is not there.
func (d *directory) folder(want string) (cluster uint32) {
	d.each(func(name string, _, last int) {
		if s := d.slot(last); s[attrOffset]&attrFolder != 0 && strings.EqualFold(name, want) && cluster == 0 {
			cluster = startOf(s)
		}
	})
	return cluster
}

func startOf(s []byte) uint32 {
	return uint32(binary.LittleEndian.Uint16(s[20:]))<<16 | uint32(binary.LittleEndian.Uint16(s[26:]))
}

func longPart(s []byte) []uint16 {
	part := make([]uint16, 0, 13)
	for _, field := range [][]byte{s[1:11], s[14:26], s[28:32]} {
		for i := 0; i < len(field); i += 2 {
			part = append(part, binary.LittleEndian.Uint16(field[i:]))
		}
	}
	return part
}

func indexZero(s []uint16) int {
	for i, c := range s {
		if c == 0 {
			return i
		}
	}
	return -1
}

func shortName(s []byte) string {
	base, ext := string(bytes.TrimRight(s[:8], " ")), string(bytes.TrimRight(s[8:11], " "))
	if s[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if s[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext == "" {
		return base
	}
	return base + "." + ext
}

func checksum(short []byte) byte {
	var sum byte
	for _, c := range short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}
