package crashtest_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/firmware/esp/crashtest"
)

const imageSize = 40 << 20

// command runs a tool that the set-up installs.
func command(t *testing.T, name string, args ...string) {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/sbin"} { // not in every PATH
		if path := filepath.Join(dir, name); !strings.Contains(name, "/") && exists(path) {
			name = path
		}
	}
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v; run make setup\n%s", name, err, out)
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// image is a FAT32 partition with the files given in \EFI\Linux, made by other
// people's tools.
func image(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "esp.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, imageSize); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.fat", "-F", "32", "-s", "1", "-n", "ESP", "-i", "c20f7000", path)
	command(t, "mmd", "-i", path, "::/EFI", "::/EFI/Linux")
	for name, content := range files {
		src := filepath.Join(dir, name)
		if err := os.WriteFile(src, content, 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, "mcopy", "-i", path, src, "::/EFI/Linux/"+name)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vfat writes to a FAT32 partition in the order of Linux's vfat driver mounted
// with sync and dirsync (fs/fat/namei_vfat.c, fs/fat/dir.c): a new name first
// without content, then with it, then the old name goes. Only \EFI\Linux is
// known, and it must not outgrow its one cluster of one sector.
type vfat struct {
	*crashtest.Recorder
	t                       *testing.T
	fat, fatSize, data, dir int64
}

// mountVFAT gives the driver and the disk it starts from, with files on it.
func mountVFAT(t *testing.T, files map[string][]byte) (v *vfat, base []byte) {
	t.Helper()
	v = newVFAT(t, image(t, nil))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		v.create(name)
		v.write(name, files[name])
	}
	base = make([]byte, imageSize)
	if _, err := v.ReadAt(base, 0); err != nil {
		t.Fatal(err)
	}
	return newVFAT(t, base), base
}

func newVFAT(t *testing.T, base []byte) *vfat {
	t.Helper()
	le := binary.LittleEndian
	v := &vfat{Recorder: crashtest.NewRecorder(bytes.NewReader(base)), t: t}
	v.fat = int64(le.Uint16(base[14:])) * 512
	v.fatSize = int64(le.Uint32(base[36:])) * 512
	v.data = v.fat + int64(base[16])*v.fatSize
	if base[13] != 1 {
		t.Fatal("the driver knows clusters of one sector only")
	}
	v.dir = v.at(int64(le.Uint32(base[44:])))
	for _, name := range []string{"EFI        ", "LINUX      "} {
		slots := v.read(v.dir)
		i := bytes.Index(slots, []byte(name))
		if i < 0 {
			t.Fatalf("no folder %s", name)
		}
		v.dir = v.at(int64(le.Uint16(slots[i+26:])))
	}
	return v
}

func (v *vfat) at(cluster int64) int64 { return v.data + (cluster-2)*512 }

func (v *vfat) read(offset int64) []byte {
	b := make([]byte, 512)
	if _, err := v.ReadAt(b, offset); err != nil {
		v.t.Fatal(err)
	}
	return b
}

func (v *vfat) put(offset int64, b []byte) {
	if _, err := v.WriteAt(b, offset); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vfat) sync() { _ = v.Sync() }

func (v *vfat) next(cluster int64) int64 {
	return int64(binary.LittleEndian.Uint32(v.read(v.fat + cluster*4/512*512)[cluster*4%512:]))
}

// link stores FAT entries, one sector write per FAT for each.
func (v *vfat) link(cluster, next int64) {
	for copyOf := range int64(2) {
		offset := v.fat + copyOf*v.fatSize + cluster*4/512*512
		b := v.read(offset)
		binary.LittleEndian.PutUint32(b[cluster*4%512:], uint32(next))
		v.put(offset, b)
	}
}

func short(name string) []byte {
	if len(name) <= 12 && strings.Count(name, ".") == 1 && !strings.ContainsAny(name, "+") {
		base, ext, _ := strings.Cut(strings.ToUpper(name), ".")
		return fmt.Appendf(nil, "%-8s%-3s", base, ext)
	}
	var sum uint32
	for _, c := range []byte(name) {
		sum = sum*31 + uint32(c)
	}
	return fmt.Appendf(nil, "C%05X~1EFI", sum&0xfffff)
}

func slotsOf(name string) []byte {
	s := short(name)
	entry := append(bytes.Clone(s), make([]byte, 21)...)
	entry[11] = 0x20
	if !bytes.Contains(s, []byte("~")) {
		entry[12] = 0x18 // both parts in lower case
		return entry
	}
	var sum byte
	for _, c := range s {
		sum = sum>>1 | sum<<7
		sum += c
	}
	units := []uint16{}
	for _, c := range name {
		units = append(units, uint16(c))
	}
	parts := (len(units) + 12) / 13
	if len(units)%13 != 0 {
		units = append(units, 0)
	}
	for len(units)%13 != 0 {
		units = append(units, 0xffff)
	}
	var out []byte
	for p := parts; p > 0; p-- {
		l := make([]byte, 32)
		l[0], l[11], l[13] = byte(p), 0x0f, sum
		if p == parts {
			l[0] |= 0x40
		}
		for i, u := range units[(p-1)*13 : p*13] {
			binary.LittleEndian.PutUint16(l[[]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}[i]:], u)
		}
		out = append(out, l...)
	}
	return append(out, entry...)
}

// find is the position of a name's slots in the folder, and how many they are.
func (v *vfat) find(name string) (at, n int) {
	want := slotsOf(name)
	n = len(want) / 32
	b := v.read(v.dir)
	for at = 0; at+len(want) <= len(b); at += 32 {
		if bytes.Equal(b[at:at+len(want)-32+12], want[:len(want)-32+12]) {
			return at, n
		}
	}
	v.t.Fatalf("no file %s", name)
	return 0, 0
}

func (v *vfat) create(name string) {
	slots, b := slotsOf(name), v.read(v.dir)
	free := 0
	for at := 0; at < len(b); at += 32 {
		if b[at] != 0 && b[at] != 0xe5 {
			free = 0
			continue
		}
		if free += 32; free == len(slots) {
			copy(b[at+32-free:], slots)
			v.put(v.dir, b)
			return
		}
	}
	v.t.Fatalf("folder is full: %s", name)
}

func (v *vfat) setContent(name string, start, size int64) {
	at, n := v.find(name)
	b := v.read(v.dir)
	s := b[at+32*(n-1):]
	binary.LittleEndian.PutUint16(s[20:], uint16(start>>16))
	binary.LittleEndian.PutUint16(s[26:], uint16(start))
	binary.LittleEndian.PutUint32(s[28:], uint32(size))
	v.put(v.dir, b)
}

func (v *vfat) content(name string) (start, size int64) {
	at, n := v.find(name)
	s := v.read(v.dir)[at+32*(n-1):]
	le := binary.LittleEndian
	return int64(le.Uint16(s[20:]))<<16 | int64(le.Uint16(s[26:])), int64(le.Uint32(s[28:]))
}

// write fills an empty file, chunk by chunk as write(2) with O_SYNC would.
func (v *vfat) write(name string, content []byte) {
	const chunk = 32 << 10
	start, last, cluster := int64(0), int64(0), int64(2)
	var pieces []byte
	for done := 0; done < len(content); {
		n := min(chunk, len(content)-done)
		part := append(bytes.Clone(content[done:done+n]), make([]byte, -n&511)...)
		run := int64(0) // where the current run of clusters began
		for ; len(part) > 0; part = part[512:] {
			for v.next(cluster) != 0 {
				cluster++
			}
			v.link(cluster, 0x0fffffff)
			if last != 0 {
				v.link(last, cluster)
			} else {
				start = cluster
			}
			pieces = append(pieces, part[:512]...)
			if run == 0 {
				run = cluster
			}
			last = cluster
			if len(part) == 512 || v.next(cluster+1) != 0 {
				v.put(v.at(run), pieces)
				run, pieces = 0, nil
			}
		}
		done += n
		v.setContent(name, start, int64(done))
	}
}

func (v *vfat) drop(name string) {
	at, n := v.find(name)
	b := v.read(v.dir)
	for i := range n {
		b[at+32*i] = 0xe5
	}
	v.put(v.dir, b)
}

// remove takes a name away and, once that is durable, frees its content, as esp
// does by holding the file open meanwhile.
func (v *vfat) remove(name string) {
	cluster, _ := v.content(name)
	v.drop(name)
	v.sync()
	v.free(cluster)
}

func (v *vfat) free(cluster int64) {
	for cluster >= 2 && cluster < 0x0ffffff8 {
		next := v.next(cluster)
		v.link(cluster, 0)
		cluster = next
	}
}

func (v *vfat) rename(from, to string) {
	start, size := v.content(from)
	v.create(to)
	v.setContent(to, start, size)
	v.drop(from)
}
