//go:build integration

package perm

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/bootlog"
)

const staticFsck = "/sbin/e2fsck.static" // package e2fsck-static

// run starts a program of the machine. The tests need root and loop devices.
func run(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s (this test needs root, loop devices, gdisk, e2fsprogs and e2fsck-static): %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// bench is a disk in a file, with the partitions of a box, and a place to
// mount its /perm.
type bench struct {
	t     *testing.T
	image string
	disk  string // loop device; empty when detached
	cfg   Config
	told  []string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{t: t, image: filepath.Join(dir, "disk.img")}
	template := filepath.Join(dir, "perm.ext4")
	run(t, "mke2fs", TemplateArgs(template)...)
	b.cfg = Config{Number: 4, Target: filepath.Join(dir, "perm"), Template: template, Fsck: staticFsck, Say: func(s string) { b.told = append(b.told, s) }}
	if err := os.Mkdir(b.cfg.Target, 0o755); err != nil {
		t.Fatal(err)
	}
	b.resize(permAt + permSize + 1<<20)
	makeTable(t, b.image)
	t.Cleanup(func() { b.detach() })
	return b
}

func (b *bench) resize(size int64) {
	b.t.Helper()
	f, err := os.OpenFile(b.image, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		b.t.Fatal(err)
	}
}

// attach is power on: the kernel reads the partition table.
func (b *bench) attach(options ...string) {
	b.t.Helper()
	b.detach()
	b.disk = run(b.t, "losetup", append([]string{"-P", "-f", "--show", b.image}, options...)...)
	b.cfg.Disk, b.cfg.Partition = b.disk, b.disk+"p4"
	// Not every kernel that runs tests can read GPT; the box's can.
	f, err := os.Open(b.disk)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.Read(f, 512, 512)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, p := range table.Partitions {
		if _, err := os.Stat(fmt.Sprintf("%sp%d", b.disk, p.Index)); err != nil {
			out, err := exec.Command("addpart", b.disk, fmt.Sprint(p.Index), fmt.Sprint(p.Start), fmt.Sprint(p.End-p.Start+1)).CombinedOutput()
			if err != nil {
				b.t.Logf("%s", out) // beyond the end of the disk
			}
		}
	}
}

// detach is power off after the last write.
func (b *bench) detach() {
	b.t.Helper()
	b.unmount()
	if b.disk != "" {
		run(b.t, "losetup", "-d", b.disk)
		b.disk = ""
	}
}

func (b *bench) unmount() {
	for unix.Unmount(b.cfg.Target, unix.MNT_DETACH) == nil { //nolint:revive // until nothing is mounted there
	}
}

// boot prepares /perm of the attached disk and wants this state.
func (b *bench) boot(want bootlog.PermState) bootlog.Perm {
	b.t.Helper()
	p, err := Prepare(b.t.Context(), b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	if p.State != want {
		b.t.Fatalf("/perm is %s (%s), want %s", p.State, p.Detail, want)
	}
	err = os.WriteFile(filepath.Join(b.cfg.Target, "probe"), []byte("x"), 0o600)
	if writable := err == nil; writable != (want != bootlog.PermReadOnly) {
		b.t.Errorf("/perm is %s, and writing to it: %v", want, err)
	}
	return p
}

func (b *bench) write(name, content string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.cfg.Target, name), []byte(content), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) wantFile(name, content string) {
	b.t.Helper()
	if got, err := os.ReadFile(filepath.Join(b.cfg.Target, name)); err != nil || string(got) != content {
		b.t.Errorf("%s holds %q (%v), want %q", name, got, err, content)
	}
}

// spoil writes into the partition of the detached disk.
func (b *bench) spoil(at int64, data []byte) {
	b.t.Helper()
	write(b.t, b.image, permAt+at, data)
}

// canGrow reports whether this process may let a mounted file system grow; a
// container's root may not. The same then is tested on the box only.
func canGrow(t *testing.T) bool {
	t.Helper()
	caps := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&caps, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// wantReport checks what a boot says about growth, and that it says no more.
func (b *bench) wantReport(p bootlog.Perm, grown bool) {
	b.t.Helper()
	if !canGrow(b.t) && p.Detail == "grow the file system of /perm: operation not permitted" {
		b.t.Log("this process has no CAP_SYS_RESOURCE: the file system stays as small as it is")
		return
	}
	if p.Grown != grown || p.Detail != "" {
		b.t.Errorf("report is %+v, want grown = %v and no detail", p, grown)
	}
}

// wantSize checks that the file system fills the partition.
func (b *bench) wantSize(size int64) {
	b.t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(b.cfg.Target, &fs); err != nil {
		b.t.Fatal(err)
	}
	if got := int64(fs.Blocks) * fs.Bsize; canGrow(b.t) && got < size*3/4 {
		b.t.Errorf("the file system has %d bytes, want most of %d", got, size)
	}
}

func noise(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b) // never fails
	return b
}

// settled is a box whose /perm is in use.
func settled(t *testing.T) *bench {
	b := newBench(t)
	b.attach()
	b.boot(bootlog.PermCreated)
	b.write("kept", "since the first boot")
	b.unmount()
	return b
}

func TestFirstBootsMakeAFileSystemAndKeepIt(t *testing.T) {
	b := newBench(t)
	b.attach()
	p := b.boot(bootlog.PermCreated)
	if p.Device != b.cfg.Partition {
		t.Errorf("device is %s", p.Device)
	}
	b.wantReport(p, true) // from the template to the partition
	b.wantSize(permSize - 20<<20)
	b.write("kept", "since the first boot")
	b.unmount()
	b.wantReport(b.boot(bootlog.PermOK), false)
	b.wantFile("kept", "since the first boot")
	if len(b.told) > 0 {
		t.Errorf("the owner was told %q about nothing", b.told)
	}
}

func TestPartitionAndFileSystemGrowWithTheDisk(t *testing.T) {
	b := settled(t)
	b.detach()
	before, err := os.ReadFile(b.image)
	if err != nil {
		t.Fatal(err)
	}
	const size = 512 << 20
	b.resize(size)
	b.attach()
	p := b.boot(bootlog.PermOK)
	b.wantReport(p, true)
	if !p.Grown {
		t.Error("the partition did not grow")
	}
	if kernel := run(t, "blockdev", "--getsize64", b.cfg.Partition); kernel != fmt.Sprint(size-permAt-1<<20) {
		t.Errorf("the kernel believes the partition has %s bytes", kernel)
	}
	b.wantFile("kept", "since the first boot")
	b.wantSize(size - permAt)
	b.detach()
	if out := run(t, "sgdisk", "-v", b.image); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v says:\n%s", out)
	}
	if out := run(t, "sgdisk", "-i1", b.image); !strings.Contains(out, "Partition name: 'esp'") || !strings.Contains(out, "Attribute flags: 0000000000000001") {
		t.Errorf("partition 1 is now:\n%s", out)
	}
	after, err := os.ReadFile(b.image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before[1<<20:permAt], after[1<<20:permAt]) {
		t.Error("the other partitions were written")
	}
	run(t, staticFsck, "-f", "-n", b.image+fmt.Sprintf("?offset=%d", permAt))
	b.attach()
	b.wantReport(b.boot(bootlog.PermOK), false)
}

func TestDiskSmallerThanItsTableIsLeftAlone(t *testing.T) {
	b := settled(t)
	b.detach()
	b.resize(permAt + permSize - 4<<20)
	b.attach()
	before, err := os.ReadFile(b.image)
	if err != nil {
		t.Fatal(err)
	}
	part, err := growPartition(b.cfg)
	if err == nil || part {
		t.Errorf("growPartition() = %v, %v", part, err)
	}
	after, err := os.ReadFile(b.image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("something was written")
	}
}

func TestDamageIsRepairedAsFarAsItGoes(t *testing.T) {
	for _, tc := range []struct {
		name  string
		size  int64 // of the disk when it was settled; backups begin at 128 MiB
		spoil func(t *testing.T, b *bench)
		want  bootlog.PermState
		keeps bool
	}{
		{
			"an unclean end is none", 0,
			func(t *testing.T, b *bench) {
				// The feature that says: the journal must be replayed.
				run(t, "debugfs", "-w", "-R", "feature needs_recovery", fmt.Sprintf("%s?offset=%d", b.image, permAt))
			},
			bootlog.PermOK, true,
		},
		{
			"superblock and descriptors lost, a backup is left", 400 << 20,
			func(_ *testing.T, b *bench) { b.spoil(0, noise(64<<10)) },
			bootlog.PermRepaired, true,
		},
		{
			"descriptors lost only", 400 << 20,
			func(_ *testing.T, b *bench) { b.spoil(4096, noise(4096)) },
			bootlog.PermRepaired, true,
		},
		{
			"the root folder's inode is damaged", 0,
			func(t *testing.T, b *bench) {
				b.spoil(rootInode(t, fmt.Sprintf("%s?offset=%d", b.image, permAt)), noise(4))
			},
			bootlog.PermOK, true,
		},
		{
			"all is noise", 0,
			func(_ *testing.T, b *bench) { b.spoil(0, noise(permSize)) },
			bootlog.PermRenewed, false,
		},
		{
			"another file system", 0,
			func(t *testing.T, b *bench) {
				other := filepath.Join(t.TempDir(), "fat")
				if err := os.WriteFile(other, make([]byte, permSize), 0o600); err != nil {
					t.Fatal(err)
				}
				run(t, "mkfs.vfat", other)
				raw, err := os.ReadFile(other)
				if err != nil {
					t.Fatal(err)
				}
				b.spoil(0, raw)
			},
			bootlog.PermRenewed, false,
		},
		{
			"wiped", 0,
			func(_ *testing.T, b *bench) { b.spoil(0, make([]byte, permSize)) },
			bootlog.PermCreated, false,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			if tc.size > 0 {
				b.resize(tc.size)
			}
			b.attach()
			b.boot(bootlog.PermCreated)
			b.write("kept", "since the first boot")
			b.unmount()
			if tc.size > 0 && !canGrow(t) {
				run(t, "e2fsck", "-f", "-p", b.cfg.Partition)
				run(t, "resize2fs", b.cfg.Partition)
			}
			b.detach()
			tc.spoil(t, b)
			b.attach()
			b.wantReport(b.boot(tc.want), tc.want == bootlog.PermRenewed || tc.want == bootlog.PermCreated)
			if tc.keeps {
				b.wantFile("kept", "since the first boot")
			} else if _, err := os.Stat(filepath.Join(b.cfg.Target, "kept")); err == nil {
				t.Error("an old file is still there")
			}
			if slow := tc.want == bootlog.PermRepaired || tc.want == bootlog.PermRenewed; slow != (len(b.told) == 1) {
				t.Errorf("the owner was told %q", b.told)
			}
			b.unmount()
			b.boot(bootlog.PermOK)
		})
	}
}

// rootInode is where the checksummed inode of the root folder lies, in bytes; its
// time of access is the first thing that may change without harm.
func rootInode(t *testing.T, device string) int64 {
	t.Helper()
	out := run(t, "debugfs", "-R", "imap <2>", device)
	var group, block, offset int64
	if _, err := fmt.Sscanf(strings.ReplaceAll(out[strings.Index(out, "part of"):], "\n", " "), "part of block group %d located at block %d, offset %v", &group, &block, &offset); err != nil {
		t.Fatalf("debugfs says %q: %v", out, err)
	}
	const accessTime = 8
	return block*4096 + offset + accessTime
}

// TestRepair is what any other file system of the box gets.
func TestRepair(t *testing.T) {
	const size = 300 << 20 // two backups
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, image string)
		want  croft.Kind // KindInvalid: beyond repair
	}{
		{"nothing is wrong", func(*testing.T, string) {}, ""},
		{"superblock and descriptors are lost", func(t *testing.T, image string) { write(t, image, 0, noise(64<<10)) }, ""},
		{"descriptors are lost", func(t *testing.T, image string) { write(t, image, 4096, noise(4096)) }, ""},
		{"the root folder's inode is damaged", func(t *testing.T, image string) { write(t, image, rootInode(t, image), noise(4)) }, ""},
		{"all is noise", func(t *testing.T, image string) { write(t, image, 0, noise(size)) }, croft.KindInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			image, dir := newImage(t, size)
			tc.spoil(t, image)
			device := run(t, "losetup", "-f", "--show", image)
			defer run(t, "losetup", "-d", device)
			err := repairAny(t.Context(), staticFsck, device)
			if (err == nil) != (tc.want == "") || croft.KindOf(err) != tc.want {
				t.Fatalf("error is %v", err)
			}
			if err != nil {
				return
			}
			if err := unix.Mount(device, dir, "ext4", 0, "errors=remount-ro"); err != nil {
				t.Fatal(err)
			}
			defer run(t, "umount", dir)
			if got, err := os.ReadFile(filepath.Join(dir, "kept")); err != nil || string(got) != "by a tenant" {
				t.Errorf("the file holds %q, %v", got, err)
			}
		})
	}
	t.Run("what is mounted is left alone", func(t *testing.T) {
		image, dir := newImage(t, size)
		device := run(t, "losetup", "-f", "--show", image)
		defer run(t, "losetup", "-d", device)
		run(t, "mount", device, dir)
		defer run(t, "umount", dir)
		if err := repairAny(t.Context(), staticFsck, device); err == nil || croft.KindOf(err) == croft.KindInvalid {
			t.Errorf("error is %v", err)
		}
	})
	for name, checker := range map[string]string{
		"the checker is missing":    "",
		"the checker is killed":     "#!/bin/sh\nkill -9 $$\n",
		"the checker cannot read":   "#!/bin/sh\necho 'Input/output error while trying to open'\nexit 8\n",
		"the checker takes forever": "#!/bin/sh\nexec sleep 1000\n",
	} {
		t.Run(name, func(t *testing.T) {
			image, _ := newImage(t, size)
			write(t, image, 4096, noise(4096))
			device := run(t, "losetup", "-f", "--show", image)
			defer run(t, "losetup", "-d", device)
			program := filepath.Join(t.TempDir(), "fsck")
			if checker != "" {
				if err := os.WriteFile(program, []byte(checker), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			ctx := t.Context()
			if strings.Contains(checker, "sleep") {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 1)
				defer cancel()
			}
			if err := repairAny(ctx, program, device); err == nil || croft.KindOf(err) == croft.KindInvalid {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// newImage is a file system with a file, and a folder to mount it on.
func newImage(t *testing.T, size int64) (image, dir string) {
	t.Helper()
	image, dir = filepath.Join(t.TempDir(), "disk.img"), t.TempDir()
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "kept"), []byte("by a tenant"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, image, fmt.Sprintf("%dK", size>>10))
	return image, dir
}

// write changes a file in place.
func write(t *testing.T, path string, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
}

// TestWhatCannotBeRepairedIsLeftAlone: a checker that fails has seen a
// superblock, so there may be data to be saved.
func TestWhatCannotBeRepairedIsLeftAlone(t *testing.T) {
	for _, tc := range []struct{ name, checker string }{
		{"the checker gives up", "#!/bin/sh\necho 'fsck: Input/output error while trying to open /dev/x'\necho 'The superblock could not be read or does not describe a valid ext2/ext3/ext4 filesystem.'\nexit 8\n"},
		{"the checker is killed", "#!/bin/sh\nkill -9 $$\n"},
		{"the checker cannot be started", "no program"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := settled(t)
			b.detach()
			b.cfg.Fsck = filepath.Join(t.TempDir(), "fsck")
			if err := os.WriteFile(b.cfg.Fsck, []byte(tc.checker), 0o700); err != nil {
				t.Fatal(err)
			}
			b.attach()
			b.resize(permAt + permSize + 1<<20) // nothing to grow
			p := b.boot(bootlog.PermLost)
			if p.Detail == "" || p.Device != b.cfg.Partition {
				t.Errorf("report is %+v", p)
			}
			b.unmount()
			b.cfg.Fsck = staticFsck
			b.boot(bootlog.PermOK)
			b.wantFile("kept", "since the first boot")
		})
	}
	t.Run("the checker takes for ever", func(t *testing.T) {
		b := settled(t)
		b.cfg.Fsck = filepath.Join(t.TempDir(), "fsck")
		if err := os.WriteFile(b.cfg.Fsck, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1)
		defer cancel()
		p, err := Prepare(ctx, b.cfg)
		if err != nil || p.State != bootlog.PermLost || !strings.Contains(p.Detail, "left alone") {
			t.Errorf("report is %+v, %v", p, err)
		}
	})
}

func TestReadOnly(t *testing.T) {
	t.Run("disk", func(t *testing.T) {
		b := settled(t)
		b.attach("-r")
		b.boot(bootlog.PermReadOnly)
		b.wantFile("kept", "since the first boot")
	})
	t.Run("disk with a journal that must be replayed", func(t *testing.T) {
		b := settled(t)
		b.detach()
		run(t, "debugfs", "-w", "-R", "feature needs_recovery", fmt.Sprintf("%s?offset=%d", b.image, permAt))
		b.attach("-r")
		b.boot(bootlog.PermReadOnly)
		b.wantFile("kept", "since the first boot")
	})
	t.Run("file system", func(t *testing.T) {
		b := settled(t)
		run(t, "tune2fs", "-O", "read-only", b.cfg.Partition)
		b.boot(bootlog.PermReadOnly)
		b.wantFile("kept", "since the first boot")
	})
}

func TestFullFileSystemIsMounted(t *testing.T) {
	b := settled(t)
	b.boot(bootlog.PermOK)
	for i := 0; ; i++ {
		if err := os.WriteFile(filepath.Join(b.cfg.Target, fmt.Sprint("filler-", i)), noise(1<<20), 0o600); err != nil {
			break
		}
	}
	b.detach()
	b.resize(300 << 20)
	b.attach()
	p, err := Prepare(t.Context(), b.cfg)
	if err != nil || p.State != bootlog.PermOK || !p.Grown {
		t.Errorf("report is %+v, %v", p, err)
	}
	b.wantFile("kept", "since the first boot")
}

func TestNothingToMountGivesAMemoryFileSystem(t *testing.T) {
	for _, tc := range []struct {
		name   string
		spoil  func(t *testing.T, b *bench)
		device bool
	}{
		{"the partition is missing", func(t *testing.T, b *bench) {
			b.detach()
			run(t, "sgdisk", "-d4", b.image)
			b.attach()
		}, false},
		{"the partition is smaller than the template", func(t *testing.T, b *bench) {
			b.detach()
			run(t, "sgdisk", "-d4", fmt.Sprintf("-n4:%d:+8M", permAt/512), "-n5:0:+1M", b.image)
			b.spoil(0, make([]byte, permSize))
			b.attach()
		}, true},
		{"the template is missing", func(t *testing.T, b *bench) {
			b.detach()
			b.spoil(0, make([]byte, permSize))
			b.attach()
			b.cfg.Template += "-missing"
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := settled(t)
			tc.spoil(t, b)
			p := b.boot(bootlog.PermLost)
			if p.Detail == "" || (p.Device != "") != tc.device {
				t.Errorf("report is %+v", p)
			}
			var fs unix.Statfs_t
			if err := unix.Statfs(b.cfg.Target, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
				t.Errorf("file system has type %x (%v)", fs.Type, err)
			}
		})
	}
	t.Run("and without a place for that, an error", func(t *testing.T) {
		if _, err := Prepare(t.Context(), Config{Partition: "/missing", Target: "/missing"}); err == nil {
			t.Error("no error")
		}
	})
}
