package media

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
)

const mib = 1 << 20

// newJob is an image of 24 MiB and a disk that is larger, both plain files. The
// image has an EFI partition (1 MiB to 5), root A (5 to 13) with a hole in it,
// and root B (13 to 19) and /perm (19 to 23), both blank. The disk is full of
// old data.
func newJob(t *testing.T, diskSize int64) *Job {
	t.Helper()
	dir := t.TempDir()
	image, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Truncate(24 * mib); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	for _, data := range []span{
		{at: 512, size: 16 << 10},
		{at: 1 * mib, size: 64 << 10},
		{at: 3*mib + 8192, size: 4096},
		{at: 5 * mib, size: 2 * mib},
		{at: 9 * mib, size: mib + 512},
		{at: 24*mib - 512, size: 512},
	} {
		content := make([]byte, data.size)
		_, _ = random.Read(content) // never fails
		if _, err := image.WriteAt(content, data.at); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte("old!"), int(diskSize/4)), 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	j := &Job{
		image: image, disk: disk, name: "sdx", diskSize: diskSize,
		about: &About{Size: 24 * mib, Sector: 512, Partitions: []Partition{
			{Number: 1, Start: 1 * mib, Size: 4 * mib},
			{Number: 2, Start: 5 * mib, Size: 8 * mib},
			{Number: 3, Start: 13 * mib, Size: 6 * mib},
			{Number: 4, Start: 19 * mib, Size: 4 * mib},
		}},
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func content(t *testing.T, f *os.File, at, size int64) []byte {
	t.Helper()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}

func quiet(string, int64, int64) {}

func TestWritePutsTheImageOnTheDisk(t *testing.T) {
	j := newJob(t, 30*mib)
	if err := j.Write(t.Context(), quiet); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		from, to int64
		old      bool // the disk keeps what it had; else the image's content is there
	}{
		{"partition table", 0, mib, false},
		{"EFI partition, with its holes", mib, 5 * mib, false},
		{"root A up to its last data, with its hole", 5 * mib, 10*mib + 512, false},
		{"free part of root A", 10*mib + 4096, 13 * mib, true},
		{"beginning of the blank root B", 13 * mib, 14 * mib, false},
		{"rest of the blank root B", 14 * mib, 19 * mib, true},
		{"beginning of the blank /perm", 19 * mib, 20 * mib, false},
		{"rest of the blank /perm", 20 * mib, 23 * mib, true},
		{"backup of the partition table", 23 * mib, 24 * mib, false},
		{"what lies behind the image", 24 * mib, 29 * mib, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := bytes.Repeat([]byte("old!"), int(tc.to-tc.from)/4)
			if !tc.old {
				want = content(t, j.image, tc.from, tc.to-tc.from)
			}
			if !bytes.Equal(content(t, j.disk, tc.from, tc.to-tc.from), want) {
				t.Error("the disk has other content")
			}
		})
	}
	if edge := content(t, j.disk, 29*mib, mib); !isZero(edge) {
		t.Error("the end of the disk, where an old backup table may lie, was not cleared")
	}
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func TestWriteThatIsStoppedLeavesNoPartitionTable(t *testing.T) {
	steps := 0
	if err := newJob(t, 24*mib).Write(t.Context(), func(string, int64, int64) { steps++ }); err != nil {
		t.Fatal(err)
	}
	if steps < 6 {
		t.Fatalf("only %d reports of progress to stop at", steps)
	}
	for stopAt := range steps {
		j := newJob(t, 24*mib) // no larger than the image: the backup table lies at the end of both
		ctx, cancel := context.WithCancel(t.Context())
		step := 0
		err := j.Write(ctx, func(string, int64, int64) {
			if step == stopAt {
				cancel()
			}
			step++
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("stopped at step %d: Write = %v, want %v", stopAt, err, context.Canceled)
		}
		if !isZero(content(t, j.disk, 0, mib)) || !isZero(content(t, j.disk, 23*mib, mib)) {
			t.Errorf("stopped at step %d: a partition table is on the disk", stopAt)
		}
	}
}

func TestWriteThatCannotBeginLeavesTheDiskAsItWas(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(j *Job, stop func())
	}{
		{"an image that cannot be read any more", func(j *Job, _ func()) { j.image.Close() }},
		{"stopped before", func(_ *Job, stop func()) { stop() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			j := newJob(t, 24*mib)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			tc.spoil(j, stop)
			if err := j.Write(ctx, quiet); err == nil {
				t.Fatal("Write succeeded")
			}
			if !bytes.Equal(content(t, j.disk, 0, 24*mib), bytes.Repeat([]byte("old!"), 24*mib/4)) {
				t.Error("the disk was changed")
			}
		})
	}
}

func TestCheckNumberRefusesAnotherDevice(t *testing.T) {
	device, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	for _, tc := range []struct {
		name, checked string
		kind          croft.Kind
		fails         bool
	}{
		{"the device that was checked", "/dev/null", "", false},
		{"another one under its name", "/dev/zero", croft.KindRefused, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var st unix.Stat_t
			if err := unix.Stat(tc.checked, &st); err != nil {
				t.Fatal(err)
			}
			if err := checkNumber(device, st.Rdev); croft.KindOf(err) != tc.kind || (err != nil) != tc.fails {
				t.Errorf("checkNumber = %v, want an error: %v", err, tc.fails)
			}
		})
	}
}

func TestWriteNoticesADiskThatLoses(t *testing.T) {
	for _, tc := range []struct {
		name string
		at   int64
	}{
		{"data", 6 * mib},
		{"zeros of a hole", 8 * mib},
	} {
		t.Run(tc.name, func(t *testing.T) {
			j := newJob(t, 24*mib)
			spoilt := false
			err := j.Write(t.Context(), func(phase string, done, _ int64) {
				if phase == "checking" && done == 0 && !spoilt {
					spoilt = true
					if _, err := j.disk.WriteAt([]byte("lost"), tc.at); err != nil {
						t.Error(err)
					}
				}
			})
			if croft.KindOf(err) != croft.KindInvalid {
				t.Errorf("Write = %v, want an error of kind %q", err, croft.KindInvalid)
			}
			if !isZero(content(t, j.disk, 0, mib)) {
				t.Error("the partition table is on the disk all the same")
			}
		})
	}
}

func TestPlanOfAnImageWithoutHolesIsTheWholeImage(t *testing.T) {
	j := newJob(t, 24*mib)
	whole := content(t, j.image, 0, j.about.Size)
	for at := int64(0); at < j.about.Size; at += mib { // the same content, all of it written
		if _, err := j.image.WriteAt(whole[at:at+mib], at); err != nil {
			t.Fatal(err)
		}
	}
	spans, err := j.plan()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]span{{at: edgeSize, size: j.about.Size - 2*edgeSize}}, spans, cmp.AllowUnexported(span{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestSpanWithout(t *testing.T) {
	s := span{at: 10, size: 10, zero: true}
	for _, tc := range []struct {
		name   string
		others []span
		want   []span
	}{
		{"nothing", nil, []span{s}},
		{"what lies beside it", []span{{at: 0, size: 10}, {at: 20, size: 5}}, []span{s}},
		{"its beginning", []span{{at: 5, size: 7}}, []span{{12, 8, true}}},
		{"its end", []span{{at: 18, size: 7}}, []span{{10, 8, true}}},
		{"two parts of it", []span{{at: 12, size: 1}, {at: 15, size: 2}}, []span{{10, 2, true}, {13, 2, true}, {17, 3, true}}},
		{"itself", []span{s}, nil},
		{"all", []span{{at: 0, size: 100}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := s.without(tc.others); !slices.Equal(got, tc.want) {
				t.Errorf("without(%v) = %v, want %v", tc.others, got, tc.want)
			}
		})
	}
}

func TestMountPoint(t *testing.T) {
	const mountinfo = `22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
31 22 0:35 / /home rw,relatime shared:12 - btrfs /dev/sdb1 rw,space_cache
40 22 8:33 / /media/my\040disk rw,nosuid shared:20 - vfat /dev/sdc1 rw
41 22 0:40 / /proc rw - proc proc rw
broken line
`
	for _, tc := range []struct{ name, number, path, want string }{
		{"the root", "8:2", "/dev/sda2", "/"},
		{"a file system with a number of its own, by its path", "8:17", "/dev/sdb1", "/home"},
		{"a folder with a space", "8:33", "/dev/sdc1", "/media/my disk"},
		{"a device whose name begins like another", "8:18", "/dev/sdb", ""},
		{"an unused disk", "8:48", "/dev/sdd", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := mountPoint(mountinfo, tc.number, tc.path); got != tc.want {
				t.Errorf("mountPoint = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestModelIsWhatTheCaseSays(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"SATA and USB", map[string]string{"vendor": "ATA     \n", "model": "Samsung SSD 860 \n"}, "ATA Samsung SSD 860"},
		{"NVMe", map[string]string{"model": "WD Blue SN570 1TB                       \n"}, "WD Blue SN570 1TB"},
		{"an SD card", map[string]string{"name": "SC64G\n"}, "SC64G"},
		{"virtio", map[string]string{"vendor": "0x1af4\n"}, "unknown model"},
		{"nothing", nil, "unknown model"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sys := t.TempDir()
			if err := os.Mkdir(filepath.Join(sys, "device"), 0o755); err != nil {
				t.Fatal(err)
			}
			for name, text := range tc.files {
				if err := os.WriteFile(filepath.Join(sys, "device", name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := model(sys); got != tc.want {
				t.Errorf("model = %q, want %q", got, tc.want)
			}
		})
	}
}
