//go:build vm

package vmtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/ownerpage"
)

// TestBoxBootsWithAnyPerm spoils /perm of a settled box and wants it to boot
// and to say on its page what it found.
func TestBoxBootsWithAnyPerm(t *testing.T) {
	t.Parallel()
	base := confirmed(t)
	for _, tc := range []struct {
		name    string
		spoil   func(t *testing.T, disk string)
		storage string // part of the sentence on the page
		problem string // part of a problem on the page; empty: none
	}{
		{"wiped", wipe, "set up for the first time", ""},
		{"corrupted", corrupt, "repaired", ""},
		{"0 bytes free", fill, "full", "storage of the box is full"},
		{"read-only", makeReadOnly, "cannot be written", "cannot be written"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, settings{from: base})
			tc.spoil(t, b.disk)
			b.powerOn()
			s := b.waitFor("up and honest about its storage", func(s ownerpage.StatusJSON) bool {
				return s.State != ownerpage.Starting && s.Network == ownerpage.Online && strings.Contains(s.Storage, tc.storage)
			})
			t.Logf("the page says %s: %q, problems %q", s.State, s.Storage, s.Problems)
			switch told := strings.Join(s.Problems, " "); {
			case tc.problem == "" && (told != "" || s.State != ownerpage.Healthy):
				t.Errorf("the box is %s with problems %q, want healthy without", s.State, told)
			case tc.problem != "" && (!strings.Contains(told, tc.problem) || s.State != ownerpage.Attention):
				t.Errorf("the box is %s with problems %q, want attention and %q", s.State, told, tc.problem)
			}
			b.shutDown()
		})
	}
}

func wipe(t *testing.T, disk string) {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const tail = 1 << 20 // the backup partition table stays
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, permAt, info.Size()-permAt-tail)
	if err != nil {
		t.Fatal(err)
	}
}

// corrupt writes noise over the beginning: superblock, group descriptors and
// what lies behind them.
func corrupt(t *testing.T, disk string) {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	noise := make([]byte, 256<<10)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(noise); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(noise, permAt); err != nil {
		t.Fatal(err)
	}
}

// fill takes every free byte, those reserved for root too.
func fill(t *testing.T, disk string) {
	dir := t.TempDir()
	must(t, "mount", "-t", "ext4", "-o", fmt.Sprintf("loop,offset=%d", permAt), disk, dir)
	defer must(t, "umount", dir)
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bfree)*fs.Bsize*98/100); err != nil {
		t.Fatal(err)
	}
	// Whole mebibytes, then single blocks: what a failed write leaves free.
	for _, size := range []int{1 << 20, 4 << 10} {
		for name := 0; ; name++ {
			path := filepath.Join(dir, fmt.Sprint("rest-", size, "-", name))
			if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
				break // full
			}
		}
		unix.Sync()
	}
}

// makeReadOnly sets the flag with which ext4 refuses to be mounted for writing.
func makeReadOnly(t *testing.T, disk string) {
	must(t, "tune2fs", "-O", "read-only", fmt.Sprintf("%s?offset=%d", disk, permAt))
}

func must(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}
