//go:build provider

package leasedisk

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/xts"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
)

// These tests need root and loop devices. Where the kernel has dm-crypt they run
// with it, and where they have CAP_SYS_RESOURCE disks grow; without either the
// same tests run without that layer, and TestEncryptionAtRest and
// TestGrowingOnRealDevices check what the package answers then. The virtual
// machine of the box has both.

func encrypts() bool { return linux{}.check() == nil }

// canGrow reports whether this process may let a mounted file system grow; a
// container's root may not.
func canGrow(t *testing.T) bool {
	t.Helper()
	caps := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&caps, &data[0]))
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func realWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root")
	}
	dir := t.TempDir()
	w := &world{t: t, sys: linux{}, size: MinSize}
	w.cfg = Config{Dir: filepath.Join(dir, "leases"), MountDir: filepath.Join(dir, "run"), Reserve: -1}
	if encrypts() {
		keeper, err := OpenFileKeeper(filepath.Join(dir, "box.key"))
		must(t, err)
		w.cfg.Keeper = keeper
	} else {
		w.cfg.Plaintext = true
		w.sys = plaintext{linux{}}
	}
	if canGrow(t) {
		w.size, w.grown = 40<<20, 300<<20
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
			if _, _, err := dm(unix.DM_DEV_STATUS, mapping(key), 0, 0, nil); encrypts() && !errors.Is(err, unix.ENXIO) {
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
	t.Logf("with dm-crypt: %v, with growing: %v", encrypts(), canGrow(t))
	everyStep(t, realWorld)
}

func TestDiskIsAHardLimitAndFreedBlocksComeBack(t *testing.T) {
	w := realWorld(t)
	s := w.store(w.sys)
	w.used(s)
	dir, err := s.Volume(t.Context(), keyA, "web", 0, "data")
	must(t, err)
	f, err := os.Create(filepath.Join(dir, "big"))
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
	must(t, s.Health(keyA))
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
	f, err := os.Open(filepath.Join(s.mount(keyA), volumesDir))
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

// e2fsck is a program of the machine, not of the box.
func e2fsck(t *testing.T, device string, args ...string) {
	t.Helper()
	program, err := exec.LookPath("e2fsck")
	if err != nil {
		t.Fatal("this test needs e2fsck: apt-get install e2fsprogs")
	}
	out, err := exec.Command(program, append(args, device)...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() < 4 && args[0] == "-fy" {
		return // repaired
	}
	if err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
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

func TestGrowingOnRealDevices(t *testing.T) {
	if !canGrow(t) {
		w := realWorld(t)
		s := w.store(w.sys)
		must(t, s.Create(t.Context(), keyA, MinSize+32<<20))
		_, err := s.Open(t.Context(), keyA)
		wantKind(t, err, croft.KindMissing)
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("error is %v", err)
		}
		w.clean(t)
		w.dispose(s)
		return
	}
	for _, mib := range []int64{17, 20, 127, 128, 129, 131, 133, 256, 257, 1000, 5000} {
		w := realWorld(t)
		w.size = mib << 20
		s := w.store(w.sys)
		begin := time.Now()
		w.used(s)
		w.wantSize(s, w.size)
		_, taken, err := w.sys.allocated(s.image(keyA))
		must(t, err)
		t.Logf("%d MiB: made in %v, takes %d KiB", mib, time.Since(begin), taken>>10)
		must(t, s.Grow(t.Context(), keyA, w.size+200<<20))
		w.wantFile(s)
		w.wantSize(s, w.size+200<<20)
		must(t, s.Close(t.Context(), keyA))
		w.keeps(s)
		w.wantSize(s, w.size+200<<20)
		w.dispose(s)
	}
}

func TestEncryptionAtRest(t *testing.T) {
	w := realWorld(t)
	if !encrypts() {
		w.cfg.Plaintext = false
		var err error
		w.cfg.Keeper, err = OpenFileKeeper(filepath.Join(t.TempDir(), "box.key"))
		must(t, err)
		_, err = New(w.cfg)
		wantKind(t, err, croft.KindMissing)
		t.Logf("this kernel has no dm-crypt: %v", err)
		return
	}
	s := w.store(w.sys)
	w.closed(s)
	image, err := os.Open(s.image(keyA))
	must(t, err)
	defer image.Close()
	raw, err := io.ReadAll(image)
	must(t, err)
	if bytes.Contains(raw, []byte("by the tenant")) {
		t.Error("the image holds the tenant's text in clear")
	}
	// What is in it is what any implementation of XTS under this key reads.
	secret, err := s.unseal(t.Context(), keyA)
	must(t, err)
	cipher, err := xts.NewCipher(aes.NewCipher, secret)
	must(t, err)
	found := false
	for at := 0; at+4096 <= len(raw); at += 4096 {
		plain := make([]byte, 4096)
		cipher.Decrypt(plain, raw[at:at+4096], uint64(at/512))
		if at == 0 && (plain[superAt+magicAt] != 0x53 || plain[superAt+magicAt+1] != 0xef) {
			t.Error("the image does not begin with an ext4 under its key")
		}
		found = found || bytes.Contains(plain, []byte("by the tenant"))
	}
	if !found {
		t.Error("the tenant's text is not in the image, under its key")
	}
	must(t, s.Create(t.Context(), keyB, w.size))
	other, err := s.unseal(t.Context(), keyB)
	must(t, err)
	if bytes.Equal(other, secret) {
		t.Error("two leases share a key")
	}
	must(t, s.Remove(t.Context(), keyB))
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
