package perm

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// Where /perm begins on the test disk, and its size at first, in bytes.
const (
	permAt   = 10 << 20
	permSize = 80 << 20
)

// makeTable partitions the disk image as a box is, with 512-byte sectors.
func makeTable(t *testing.T, image string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	if err := newTable(512, permAt, permSize).Write(f, size); err != nil {
		t.Fatal(err)
	}
}

func newTable(sector int, permAt, permSize uint64) *gpt.Table {
	at := func(mib uint64) uint64 { return mib << 20 / uint64(sector) }
	part := func(n int, kind gpt.Type, name string, start, end uint64) *gpt.Partition {
		return &gpt.Partition{
			Index: n, Type: kind, Name: name, Start: start, End: end - 1, Attributes: uint64(n),
			GUID: fmt.Sprintf("60C24CC1-F3F9-427A-8199-00000000000%d", n),
		}
	}
	return &gpt.Table{
		LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true,
		GUID: "60C24CC1-F3F9-427A-8199-000000000000",
		Partitions: []*gpt.Partition{
			part(1, gpt.EFISystemPartition, "esp", at(1), at(5)),
			part(2, gpt.LinuxFilesystem, "root-a", at(5), at(7)),
			part(3, gpt.LinuxFilesystem, "root-b", at(7), at(9)),
			part(4, gpt.LinuxFilesystem, "perm", permAt/uint64(sector), (permAt+permSize)/uint64(sector)),
		},
	}
}

// memory is a disk in memory that keeps every write.
type memory struct {
	backend.File // nothing of it is used
	content      []byte
	writes       []written
	at           int64
}

type written struct {
	at   int64
	data []byte
}

func (m *memory) ReadAt(p []byte, at int64) (int, error) {
	if at >= int64(len(m.content)) {
		return 0, io.EOF
	}
	n := copy(p, m.content[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	m.writes = append(m.writes, written{at, bytes.Clone(p)})
	return copy(m.content[at:], p), nil
}

func (m *memory) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekEnd || offset != 0 {
		return 0, fmt.Errorf("seek %d from %d is not expected", offset, whence)
	}
	return int64(len(m.content)), nil
}

func (m *memory) Sync() error { return nil }

// layout is what a table says, the same for two tables that mean the same.
func layout(t *gpt.Table) string {
	var s strings.Builder
	for _, p := range t.Partitions {
		fmt.Fprintln(&s, p.Index, p.GUID, p.Type, p.Name, p.Attributes, p.Start, p.End)
	}
	return s.String()
}

// TestEveryPowerCutWhileTheTableGrowsLeavesATable replays each prefix of the
// writes, and inside each write every sector, alone and with all before it: a
// disk may store the sectors of one write in any order. In each state the
// reader finds the old layout or the new one.
func TestEveryPowerCutWhileTheTableGrowsLeavesATable(t *testing.T) {
	for _, tc := range []struct {
		name   string
		sector int
		spoil  func(disk []byte)
	}{
		{"sectors of 512 bytes", 512, func([]byte) {}},
		{"sectors of 4096 bytes", 4096, func([]byte) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const size, more = 24 << 20, 40 << 20
			small := &memory{content: make([]byte, size)}
			if err := newTable(tc.sector, permAt, size-permAt-1<<20).Write(small, size); err != nil {
				t.Fatal(err)
			}
			disk := &memory{content: append(small.content, make([]byte, more-size)...)}
			tc.spoil(disk.content)
			begin := bytes.Clone(disk.content)
			read := func(content []byte) string {
				table, err := gpt.Read(&memory{content: content}, tc.sector, tc.sector)
				if err != nil {
					return err.Error()
				}
				return layout(table)
			}
			before := read(begin)
			part, err := growTable(disk, more, int64(tc.sector), 4)
			if err != nil || part == nil {
				t.Fatalf("growTable() = %v, %v", part, err)
			}
			after := read(disk.content)
			if before == after || !strings.Contains(after, fmt.Sprint(part.End)) {
				t.Fatalf("layout was\n%s and is\n%s", before, after)
			}
			if lines := strings.Count(after, "\n"); lines != 4 {
				t.Errorf("there are %d partitions", lines)
			}
			for i := range 3 {
				if a, b := strings.Split(before, "\n")[i], strings.Split(after, "\n")[i]; a != b {
					t.Errorf("another partition changed from %s to %s", a, b)
				}
			}
			if got := (part.End + 1) * uint64(tc.sector); got != more-1<<20 {
				t.Errorf("/perm ends at %d, want the last whole MiB before the backup table", got)
			}

			states := 0
			check := func(content []byte, where string) {
				states++
				if got := read(content); got != before && got != after {
					t.Errorf("power cut %s: %s", where, got)
				}
			}
			content := bytes.Clone(begin)
			for i, w := range disk.writes {
				check(content, fmt.Sprintf("before write %d", i))
				// The write as sectors, the first and last perhaps in part.
				var sectors [][2]int64
				for at := w.at; at < w.at+int64(len(w.data)); {
					end := min((at/int64(tc.sector)+1)*int64(tc.sector), w.at+int64(len(w.data)))
					sectors = append(sectors, [2]int64{at, end})
					at = end
				}
				torn := bytes.Clone(content)
				for _, s := range sectors {
					alone := bytes.Clone(content)
					for _, c := range [][]byte{torn, alone} {
						copy(c[s[0]:s[1]], w.data[s[0]-w.at:s[1]-w.at])
					}
					check(torn, fmt.Sprintf("in write %d, stored up to byte %d", i, s[1]))
					check(alone, fmt.Sprintf("in write %d, only bytes %d to %d stored", i, s[0], s[1]))
				}
				content = torn
			}
			if !bytes.Equal(content, disk.content) {
				t.Fatal("the replay does not end where the disk does")
			}
			t.Logf("%d states after %d writes", states, len(disk.writes))
			// The next boot has nothing to do.
			disk.writes = nil
			if part, err := growTable(disk, more, int64(tc.sector), 4); err != nil || part != nil || len(disk.writes) != 0 {
				t.Errorf("at the next boot: %v, %v and %d writes", part, err, len(disk.writes))
			}
		})
	}
}

func TestDamagedPrimaryTableIsMendedFromTheBackup(t *testing.T) {
	disk := &memory{content: make([]byte, 24<<20)}
	if err := newTable(512, permAt, 12<<20).Write(disk, 24<<20); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(disk.content)
	copy(disk.content, make([]byte, 34*512)) // the protective MBR too
	part, err := growTable(disk, 24<<20, 512, 4)
	if err != nil || part == nil {
		t.Fatalf("growTable() = %v, %v", part, err)
	}
	// It also grew by a MiB; apart from that all is as it was.
	table, err := gpt.Read(&memory{content: disk.content}, 512, 512)
	if err != nil || table.RecoveredFromBackup || !table.ProtectiveMBR {
		t.Errorf("primary table: %+v, %v", table, err)
	}
	if !bytes.Equal(want[446:512], disk.content[446:512]) {
		t.Error("the protective MBR was not mended")
	}
}

func TestTableThatDoesNotFitIsLeftAlone(t *testing.T) {
	for _, tc := range []struct {
		name   string
		size   int
		number int
		change func(*gpt.Table)
	}{
		{"the disk is smaller than its table says", 20 << 20, 4, func(*gpt.Table) {}},
		{"the partition is missing", 40 << 20, 5, func(*gpt.Table) {}},
		{"another partition lies behind it", 40 << 20, 3, func(*gpt.Table) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			made := &memory{content: make([]byte, 24<<20)}
			table := newTable(512, permAt, 12<<20)
			tc.change(table)
			if err := table.Write(made, 24<<20); err != nil {
				t.Fatal(err)
			}
			disk := &memory{content: make([]byte, tc.size)}
			copy(disk.content, made.content)
			if part, err := growTable(disk, int64(tc.size), 512, tc.number); err == nil || part != nil {
				t.Errorf("growTable() = %v, %v", part, err)
			}
			if len(disk.writes) != 0 {
				t.Error("something was written")
			}
		})
	}
	if _, err := growTable(&memory{content: make([]byte, 1<<20)}, 1<<20, 512, 4); err == nil {
		t.Error("no error for a disk without a table")
	}
}

// template makes the file that the image carries.
func template(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "perm.ext4")
	if out, err := exec.Command("mke2fs", TemplateArgs(path)...).CombinedOutput(); err != nil {
		t.Fatalf("make the template (this test needs mke2fs of package e2fsprogs): %v\n%s", err, out)
	}
	return path
}

// TestPowerCutWhileTheFileSystemIsMadeLeavesItBlank stops after each write, and
// inside the last one, which makes it a file system, with any choice of sectors.
func TestPowerCutWhileTheFileSystemIsMadeLeavesItBlank(t *testing.T) {
	path := template(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{3})
	old := make([]byte, len(whole)) // what was on the disk before
	_, _ = random.Read(old[headSize:])
	disk := &memory{content: bytes.Clone(old)}
	if err := copyTemplate(disk, path); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(disk.content, whole) {
		t.Fatal("the partition differs from the template")
	}
	last := len(disk.writes) - 1
	if w := disk.writes[last]; w.at != 0 || len(w.data) != headSize {
		t.Fatalf("the last write is of %d bytes at %d, want the head", len(w.data), w.at)
	}
	partition := filepath.Join(t.TempDir(), "partition")
	wantBlank := func(head []byte, want bool, when string) {
		t.Helper()
		if err := os.WriteFile(partition, head, 0o600); err != nil {
			t.Fatal(err)
		}
		if blank, err := isBlank(partition, path); err != nil || blank != want {
			t.Errorf("%s: blank = %v (%v), want %v", when, blank, err, want)
		}
	}
	head := bytes.Clone(old[:headSize])
	for i, w := range disk.writes[:last] {
		if w.at < headSize && bytes.ContainsFunc(w.data[:min(len(w.data), headSize)], func(r rune) bool { return r != 0 }) {
			t.Errorf("write %d puts something into the head", i)
		}
	}
	wantBlank(head, true, "before the last write")
	wantBlank(whole[:headSize], false, "after the last write")

	var used []int // sectors of the head that are not zeros
	for at := 0; at < headSize; at += 512 {
		if len(bytes.Trim(whole[at:at+512], "\x00")) > 0 {
			used = append(used, at)
		}
	}
	choices := rand.New(random)
	for range 200 {
		torn := make([]byte, headSize)
		stored := used[:0:0]
		for _, at := range used {
			if choices.IntN(2) == 0 {
				copy(torn[at:at+512], whole[at:at+512])
				stored = append(stored, at)
			}
		}
		wantBlank(torn, !slices.Equal(stored, used), fmt.Sprintf("of the last write, sectors at %v stored", stored))
	}

	mounted := bytes.Clone(whole[:headSize])
	mounted[1024+0x34]++ // the superblock's count of mounts
	wantBlank(mounted, false, "after the first mount")
	clear(mounted[4096:]) // and then damage
	wantBlank(mounted, false, "descriptors lost")
	if _, err := isBlank(partition+"-missing", path); err == nil {
		t.Error("no error for a partition that is missing")
	}
}
