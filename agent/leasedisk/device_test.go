//go:build integration || vm

package leasedisk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/firmware/perm"
)

// These tests need root and loop devices. With the build tag integration disks
// are not encrypted and stay as small as the template, which any machine can do.
// With the tag vm they are encrypted and grow; a kernel of the box runs that.

func realWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root")
	}
	dir := t.TempDir()
	w := &world{t: t, sys: linux{}, size: deviceSize}
	w.cfg = Config{Dir: filepath.Join(dir, "leases"), MountDir: filepath.Join(dir, "run"), Keeper: &fakeKeeper{}, Reserve: -1}
	if !encrypted {
		w.cfg.Plaintext, w.cfg.Keeper, w.sys = true, nil, plaintext{linux{}}
	}
	keys := []lease.Key{keyA, keyB}
	w.reboot = func() { // the kernel forgets; what it had not written yet it writes
		s := w.store(w.sys)
		for _, key := range keys {
			must(t, s.sweep(context.Background(), key)) // t's context has ended at clean-up
		}
		must(t, os.RemoveAll(w.cfg.MountDir))
		must(t, linux{}.mkdir(w.cfg.MountDir))
	}
	w.clean = func(t *testing.T) {
		s := w.store(w.sys)
		for _, key := range keys {
			if up, err := w.sys.mounted(s.mount(key)); err != nil || up {
				t.Errorf("%s is mounted (%v)", s.mount(key), err)
			}
			if _, _, err := dm(unix.DM_DEV_STATUS, mapping(key), 0, 0, nil); encrypted && !errors.Is(err, unix.ENXIO) {
				t.Errorf("%s is mapped (%v)", mapping(key), err)
			}
			if loops, err := w.sys.loops(s.image(key)); err != nil || len(loops) > 0 {
				t.Errorf("%s is on %v (%v)", s.image(key), loops, err)
			}
		}
	}
	t.Cleanup(w.reboot)
	return w
}

func TestEveryStepMayGoWrongOnRealDevices(t *testing.T) {
	everyStep(t, realWorld)
}

func TestDiskIsAHardLimitAndFreedBlocksComeBack(t *testing.T) {
	w := realWorld(t)
	s := w.store(w.sys)
	w.used(s)
	f, err := os.Create(filepath.Join(s.mount(keyA), "big"))
	must(t, err)
	defer f.Close()
	block := make([]byte, 1<<20)
	_, _ = rand.Read(block)
	written := int64(0)
	for err == nil && written <= 2*w.size {
		_, err = f.Write(block)
		written += int64(len(block))
	}
	if !errors.Is(err, unix.ENOSPC) || written > w.size {
		t.Fatalf("after %d of %d bytes: %v", written, w.size, err)
	}
	must(t, unix.Syncfs(int(f.Fd())))
	_, full, err := w.sys.allocated(s.image(keyA))
	must(t, err)
	if full > w.size+w.size>>overheadShift {
		t.Errorf("a disk of %d bytes takes %d", w.size, full)
	}
	w.open(s) // as after a restart of the agent: a full disk is no damaged one
	must(t, f.Truncate(0))
	// The kernel discards after the journal is written, when it finds the time.
	deadline := time.Now().Add(time.Minute)
	for {
		must(t, unix.Syncfs(int(f.Fd())))
		_, now, err := w.sys.allocated(s.image(keyA))
		must(t, err)
		if now <= full-written/2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("of %d bytes %d are still taken after the file was emptied", full, now)
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.wantFile(s)
	must(t, f.Close())
	w.dispose(s)
}

func TestTenantsGetNoDevicesAndNoSetuidFromTheirDisk(t *testing.T) {
	w := realWorld(t)
	s := w.store(w.sys)
	w.made(s)
	var st unix.Statfs_t
	must(t, unix.Statfs(w.open(s), &st))
	if want := int64(unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOATIME); st.Flags&want != want || st.Flags&unix.ST_NOEXEC != 0 {
		t.Errorf("mount flags are %#x", st.Flags)
	}
	w.dispose(s)
}

func TestDiskInUseStaysOnRealDevices(t *testing.T) {
	w := realWorld(t)
	s := w.store(w.sys)
	w.used(s)
	f, err := os.Open(filepath.Join(s.mount(keyA), "kept"))
	must(t, err)
	defer f.Close()
	wantKind(t, s.Close(t.Context(), keyA), croft.KindRefused)
	w.wantFile(s)
	must(t, f.Close())
	must(t, s.Close(t.Context(), keyA))
	w.clean(t)
	w.dispose(s)
}

func TestLostFileSystemOnRealDevices(t *testing.T) {
	w := realWorld(t)
	s := w.store(w.sys)
	w.closed(s)
	noise := make([]byte, 64<<10)
	_, _ = rand.Read(noise)
	must(t, writeHead(s.image(keyA), noise))
	_, err := s.Open(t.Context(), keyA)
	wantKind(t, err, croft.KindInvalid)
	t.Log(err)
	w.clean(t)
	if d := w.look(s); d.State != Lost {
		t.Errorf("the disk is %s", d.State)
	}
	w.dispose(s)
}

// e2fsck is a program of the machine; a box has it elsewhere.
func e2fsck(t *testing.T, device string, args ...string) {
	t.Helper()
	program, err := exec.LookPath("e2fsck")
	if err != nil {
		program = perm.Checker
	}
	out, err := exec.Command(program, append(args, device)...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() < 4 && args[0] == "-fy" {
		return // repaired
	}
	if err != nil {
		t.Errorf("e2fsck (apt-get install e2fsprogs): %v\n%s", err, out)
	}
}

func TestCheckerFindsNothingAndRepairsWhatIsFound(t *testing.T) {
	w := realWorld(t)
	s := w.store(w.sys)
	w.made(s)
	onDevice := func(do func(device string)) {
		t.Helper()
		secret, err := s.unseal(t.Context(), keyA)
		must(t, err)
		device, hold, err := s.build(t.Context(), keyA, secret)
		must(t, err)
		do(device)
		must(t, hold())
		must(t, s.sweep(t.Context(), keyA))
	}
	onDevice(func(device string) { e2fsck(t, device, "-fn") }) // as it was made, under its new UUID
	w.open(s)
	w.putFile(s)
	must(t, s.Close(t.Context(), keyA))
	onDevice(func(device string) {
		e2fsck(t, device, "-fn")
		// The checksum of the first group's descriptor: no kernel mounts that.
		f, err := os.OpenFile(device, os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt([]byte{0xa5, 0x5a}, 4096+0x1e)
		must(t, errors.Join(err, f.Sync(), f.Close()))
	})
	repaired := false
	w.cfg.Repair = func(_ context.Context, device string) error {
		e2fsck(t, device, "-fy")
		repaired = true
		return nil
	}
	repairing := w.store(w.sys)
	w.keeps(repairing)
	if !repaired {
		t.Error("the damage was not noticed")
	}
	w.dispose(repairing)
}

func TestDamageMetWhileOpenIsRepaired(t *testing.T) {
	w := realWorld(t)
	repaired := 0
	w.cfg.Repair = func(_ context.Context, device string) error {
		repaired++
		e2fsck(t, device, "-fy")
		return nil
	}
	s := w.store(w.sys)
	w.used(s)
	var st unix.Stat_t
	must(t, unix.Stat(s.mount(keyA), &st))
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	must(t, err)
	must(t, os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "trigger_fs_error"), []byte("test"), 0))
	if err := os.WriteFile(filepath.Join(s.mount(keyA), "more"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Fatalf("writing to a damaged disk: %v", err)
	}
	w.keeps(s) // for whoever reads
	must(t, s.Close(t.Context(), keyA))
	w.keeps(s)
	must(t, os.WriteFile(filepath.Join(s.mount(keyA), "more"), nil, 0o600))
	must(t, s.Close(t.Context(), keyA))
	w.keeps(s)
	if repaired != 1 {
		t.Errorf("repaired %d times", repaired)
	}
	w.dispose(s)
}

func TestNothingOfALeaseIsLeftInAnyState(t *testing.T) {
	for _, prepare := range []func(w *world, s *Store){(*world).made, (*world).closed, (*world).used} {
		w := realWorld(t)
		s := w.store(w.sys)
		prepare(w, s)
		w.dispose(s)
	}
}
