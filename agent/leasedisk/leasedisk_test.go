package leasedisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/identity"
	"github.com/croft-cloud/croft/agent/lease"
)

func TestEveryStepMayGoWrong(t *testing.T) {
	everyStep(t, func(t *testing.T) *world {
		w, _ := fakeWorld(t)
		return w
	})
}

func TestDiskLivesFromCreateToRemove(t *testing.T) {
	w, _ := fakeWorld(t)
	s := w.store(w.sys)
	ctx := t.Context()
	_, err := s.Open(ctx, keyA)
	wantKind(t, err, croft.KindNotFound)
	must(t, s.Remove(ctx, keyA)) // nothing there is removed already
	w.made(s)
	must(t, s.Create(ctx, keyA, w.size-5)) // rounded up to the same
	wantKind(t, s.Create(ctx, keyA, w.size*2), croft.KindRefused)
	w.open(s)
	w.putFile(s)
	must(t, s.Create(ctx, keyA, w.size))
	w.keeps(s)
	must(t, s.Close(ctx, keyA))
	must(t, s.Close(ctx, keyA))
	w.clean(t)
	w.keeps(s)
	w.wantSize(s, w.size)
	if keys, err := s.List(ctx); err != nil || len(keys) != 1 || keys[0] != keyA {
		t.Errorf("List() = %v, %v", keys, err)
	}
	disks, err := s.Disks()
	must(t, err)
	if len(disks) != 1 || disks[0] != (Disk{Lease: keyA, State: Good, Size: w.size, Open: true}) {
		t.Errorf("Disks() = %+v", disks)
	}
	w.dispose(s)
	if disks, err := s.List(ctx); err != nil || len(disks) != 0 {
		t.Errorf("List() = %+v, %v", disks, err)
	}
}

func TestKeysThatLeadElsewhereAreRefused(t *testing.T) {
	w, _ := fakeWorld(t)
	s := w.store(w.sys)
	ctx := t.Context()
	for _, key := range []lease.Key{"", ".", "..", "../l012345678", "l012345678/", "l0123456789/x", "l012345678\x00", "L0123456789", "l012345678w", keyA + "0"} {
		wantKind(t, s.Create(ctx, key, 1), croft.KindUsage)
		_, err := s.Open(ctx, key)
		wantKind(t, err, croft.KindUsage)
		wantKind(t, s.Close(ctx, key), croft.KindUsage)
		wantKind(t, s.Remove(ctx, key), croft.KindUsage)
		_, _, err = s.Usage(key)
		wantKind(t, err, croft.KindUsage)
	}
	for _, bytes := range []int64{0, -1, MaxSize + 1} {
		wantKind(t, s.Create(ctx, keyB, bytes), croft.KindUsage)
	}
}

func TestPromisesNeverExceedTheDisk(t *testing.T) {
	w, f := fakeWorld(t)
	f.room = 200 << 20
	w.cfg.Reserve = 50 << 20
	s := w.store(w.sys)
	ctx := t.Context()
	room, err := s.Room()
	must(t, err)
	if room < 148<<20 || room > 150<<20 {
		t.Fatalf("room is %d", room)
	}
	wantKind(t, s.Create(ctx, keyA, room+1<<20), croft.KindNoSpace)
	w.gone(s)
	must(t, s.Create(ctx, keyA, 100<<20))
	// Nothing of it was written, and still it is promised.
	wantKind(t, s.Create(ctx, keyB, 50<<20), croft.KindNoSpace)
	must(t, s.Create(ctx, keyB, 40<<20))
	must(t, s.Remove(ctx, keyA))
	must(t, s.Create(ctx, keyA, 100<<20))
	if room, err := s.Room(); err != nil || room > 10<<20 {
		t.Errorf("room is %d, %v", room, err)
	}
	// /perm shrank by other hands: no room, no negative room.
	f.room = 1 << 20
	if room, err := s.Room(); err != nil || room != 0 {
		t.Errorf("room is %d, %v", room, err)
	}
}

func TestConcurrentCreatesShareTheRoom(t *testing.T) {
	w, f := fakeWorld(t)
	f.room = 100 << 20
	s := w.store(&slow{system: w.sys})
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			errs[i] = s.Create(t.Context(), lease.Key("l000000000"+string(rune('0'+i))), 40<<20)
		})
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if croft.KindOf(err) != croft.KindNoSpace {
			t.Errorf("error is %v", err)
		}
	}
	if made != 2 {
		t.Errorf("%d disks of 40 MiB were made of 100 MiB", made)
	}
}

// slow is a system for several callers: the fake has no locks of its own.
type slow struct {
	system
	mu sync.Mutex
}

func (s *slow) attach(image string) (string, func() error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	device, hold, err := s.system.attach(image)
	return device, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		return hold()
	}, err
}

func (s *slow) loops(image string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.system.loops(image)
}

func (s *slow) detach(loop string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.system.detach(loop)
}

func (s *slow) encrypt(name, device string, secret []byte) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.system.encrypt(name, device, secret)
}

func (s *slow) decrypt(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.system.decrypt(name)
}

func (s *slow) format(device string, uuid [16]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.system.format(device, uuid)
}

func (s *slow) unmount(dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.system.unmount(dir)
}

func TestCallsForOneLeaseWaitAndGiveUpWithTheirContext(t *testing.T) {
	w, _ := fakeWorld(t)
	s := w.store(w.sys)
	release, err := s.acquire(t.Context(), keyA)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Create(ctx, keyA, w.size); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	done := make(chan error)
	go func() { done <- s.Create(t.Context(), keyA, w.size) }()
	must(t, s.Create(t.Context(), keyB, w.size)) // another lease does not wait
	select {
	case err := <-done:
		t.Errorf("two calls for one lease at once: %v", err)
	default:
	}
	release()
	must(t, <-done)
	if len(s.busy) != 0 || len(s.promised) != 0 {
		t.Errorf("left: %v, %v", s.busy, s.promised)
	}
}

func TestWithoutEncryptionThereAreNoDisks(t *testing.T) {
	w, f := fakeWorld(t)
	f.noCrypt = true
	_, err := newStore(w.cfg, f)
	wantKind(t, err, croft.KindMissing)
	f.noCrypt = false
	w.made(w.store(f))
	// Nor does a store without it open what was made with it, or the other way.
	w.cfg.Plaintext = true
	plain := w.store(&openPlain{f})
	_, err = plain.Open(t.Context(), keyA)
	wantKind(t, err, croft.KindRefused)
	w.cfg.Keeper, w.cfg.Plaintext = nil, false
	if _, err := newStore(w.cfg, f); err == nil {
		t.Error("a store without a keeper was made")
	}
}

type openPlain struct{ *fake }

func (openPlain) encryption() string { return "none" }

func TestLostDisksStayLost(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, w *world, s *Store)
	}{
		{"the file system is damaged", func(t *testing.T, _ *world, s *Store) {
			must(t, writeHead(s.image(keyA), make([]byte, 49)))
		}},
		{"the image is missing", func(t *testing.T, _ *world, s *Store) { must(t, os.Remove(s.image(keyA))) }},
		{"the record is damaged", func(t *testing.T, _ *world, s *Store) {
			must(t, os.WriteFile(s.record(keyA), []byte(`{"version":1`), 0o600))
		}},
		{"the record is of another lease", func(t *testing.T, w *world, s *Store) {
			must(t, s.Create(t.Context(), keyB, w.size))
			must(t, os.Rename(s.record(keyB), s.record(keyA)))
		}},
		{"the record names an impossible size", func(t *testing.T, _ *world, s *Store) {
			r, err := s.readRecord(keyA)
			must(t, err)
			r.Size = 1 << 60
			must(t, os.WriteFile(s.record(keyA), r.encode(), 0o600))
		}},
		{"the key is another lease's", func(t *testing.T, w *world, s *Store) {
			must(t, s.Create(t.Context(), keyB, w.size))
			must(t, os.Rename(s.sealed(keyB), s.sealed(keyA)))
		}},
		{"the key is changed", func(t *testing.T, _ *world, s *Store) {
			must(t, os.WriteFile(s.sealed(keyA), make([]byte, 100), 0o600))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, _ := fakeWorld(t)
			s := w.store(w.sys)
			w.closed(s)
			tc.spoil(t, w, s)
			for range 2 {
				_, err := s.Open(t.Context(), keyA)
				wantKind(t, err, croft.KindInvalid)
				if !strings.Contains(err.Error(), "lost") {
					t.Errorf("the tenant reads: %v", err)
				}
			}
			if d := w.look(s); d.State == Lost {
				wantKind(t, s.Create(t.Context(), keyA, w.size), croft.KindInvalid) // the callers' first step
			}
			w.clean(t)
			w.dispose(s)
			w.made(s) // and the next lease of that name is not bothered
		})
	}
}

func TestDamageIsRepairedIfThereIsARepair(t *testing.T) {
	w, f := fakeWorld(t)
	asked := ""
	var whole []byte
	var failed error
	w.cfg.Repair = func(_ context.Context, device string) error {
		asked = device
		if failed != nil {
			return failed
		}
		image, _ := f.under(device)
		return writeHead(image, whole)
	}
	s := w.store(w.sys)
	w.closed(s)
	image, err := os.ReadFile(s.image(keyA))
	must(t, err)
	whole = image[:49]
	must(t, writeHead(s.image(keyA), make([]byte, 49)))
	failed = errors.New("no memory for e2fsck")
	if _, err := s.Open(t.Context(), keyA); !errors.Is(err, failed) || croft.KindOf(err) == croft.KindInvalid {
		t.Errorf("error is %v", err)
	}
	if d := w.look(s); d.State != Good {
		t.Errorf("a repair that could not be tried left the disk %s", d.State)
	}
	w.clean(t)
	failed = nil
	w.keeps(s)
	if asked != "/dev/mapper/"+mapping(keyA) {
		t.Errorf("the repair was given %q", asked)
	}
	must(t, s.Close(t.Context(), keyA))
	must(t, writeHead(s.image(keyA), make([]byte, 49)))
	failed = &croft.Error{Kind: croft.KindInvalid, Err: errors.New("no superblock is left")}
	_, err = s.Open(t.Context(), keyA)
	wantKind(t, err, croft.KindInvalid)
	if d := w.look(s); d.State != Lost || !strings.Contains(d.Lost, "no superblock is left") {
		t.Errorf("the disk is %+v", d)
	}
}

func TestDamageMetWhileOpenIsRepairedAtTheNextOpen(t *testing.T) {
	w, f := fakeWorld(t)
	repaired := 0
	var failed error
	w.cfg.Repair = func(context.Context, string) error {
		repaired++
		f.damaged = failed != nil
		return failed
	}
	s := w.store(w.sys)
	w.used(s)
	f.damaged = true
	w.keeps(s) // for those who read
	if repaired != 0 {
		t.Error("an open disk was repaired")
	}
	failed = errors.New("no memory for e2fsck")
	for want := 1; want <= 3; want++ { // fails, and the disk can be mounted; repairs; is whole
		must(t, s.Close(t.Context(), keyA))
		w.keeps(s)
		if repaired != min(want, 2) {
			t.Errorf("it was repaired %d times", repaired)
		}
		failed = nil
	}
}

func TestKeeperThatFailsCostsNoDisk(t *testing.T) {
	w, _ := fakeWorld(t)
	keeper := &fakeKeeper{}
	w.cfg.Keeper = keeper
	s := w.store(w.sys)
	w.closed(s)
	keeper.err = errors.New("the TPM is busy")
	if _, err := s.Open(t.Context(), keyA); !errors.Is(err, keeper.err) || croft.KindOf(err) == croft.KindInvalid {
		t.Errorf("error is %v", err)
	}
	if err := s.Create(t.Context(), keyB, w.size); !errors.Is(err, keeper.err) {
		t.Errorf("error is %v", err)
	}
	w.clean(t)
	keeper.err = nil
	w.keeps(s)
}

// The identity of a box is the keeper of its disks.
func TestIdentityKeepsTheKeys(t *testing.T) {
	w, _ := fakeWorld(t)
	dir := t.TempDir()
	box := func() *Store {
		i, err := identity.Open(identity.Config{Dir: dir, TPM: filepath.Join(dir, "no-tpm")})
		must(t, err)
		t.Cleanup(func() { i.Close() })
		w.cfg.Keeper = i
		return w.store(w.sys)
	}
	w.closed(box())
	s := box()
	w.keeps(s)
	must(t, s.Close(t.Context(), keyA))
	must(t, os.Remove(filepath.Join(dir, "identity", "sealing.key")))
	_, err := box().Open(t.Context(), keyA)
	wantKind(t, err, croft.KindInvalid)
}

func TestWhatWasWrittenBesideADiskDoesNotKeepIt(t *testing.T) {
	w, _ := fakeWorld(t)
	s := w.store(w.sys)
	w.closed(s)
	must(t, os.MkdirAll(filepath.Join(s.mount(keyA), "replicas", "web"), 0o700))
	must(t, os.WriteFile(filepath.Join(s.dir(keyA), ".lease.json.new"), []byte("{"), 0o600)) // a power cut
	must(t, s.Close(t.Context(), keyA))
	w.dispose(s)
}

func TestDiskInUseIsNeitherClosedNorRemovedButItsKeyIsGone(t *testing.T) {
	w, f := fakeWorld(t)
	s := w.store(w.sys)
	w.used(s)
	f.inUse = true
	wantKind(t, s.Close(t.Context(), keyA), croft.KindRefused)
	wantKind(t, s.Remove(t.Context(), keyA), croft.KindRefused)
	if d := w.look(s); d.State != Removing {
		t.Errorf("the disk is %s", d.State)
	}
	wantKind(t, s.Create(t.Context(), keyA, w.size), croft.KindRefused)
	f.inUse = false
	w.dispose(s)
}

func TestGrowingNeedsACapability(t *testing.T) {
	w, f := fakeWorld(t)
	f.denied = true
	s := w.store(w.sys)
	w.made(s)
	_, err := s.Open(t.Context(), keyA)
	wantKind(t, err, croft.KindMissing)
	w.clean(t) // no tenant gets a disk smaller than rented
	f.denied = false
	w.open(s)
	w.wantSize(s, w.size)
}

func TestModulesStandBehindWhatTheyNeed(t *testing.T) {
	list := Modules()
	for _, pair := range [][2]string{{"dm_mod", "dm_crypt"}, {"aesni_intel", "dm_crypt"}, {"xts", "dm_crypt"}, {"crc32c_generic", "ext4"}} {
		if first, second := slices.Index(list, pair[0]), slices.Index(list, pair[1]); first < 0 || second < first {
			t.Errorf("%s does not come after %s in %q", pair[1], pair[0], list)
		}
	}
}

func TestTemplateIsAnExt4UnderItsOwnName(t *testing.T) {
	uuid := [16]byte{1, 2, 3, 15: 9}
	disk, err := unpack(uuid)
	must(t, err)
	super := disk[superAt : superAt+superSize]
	if !bytes.Equal(super[uuidAt:uuidAt+16], uuid[:]) {
		t.Error("the UUID is not in the superblock")
	}
	// The checksum of what mke2fs wrote shows that ours is the same function.
	original, err := unpack([16]byte{0xc4, 0x0f, 0x70, 0, 0x6c, 0x65, 0x61, 0x73, 0x80, 15: 1})
	must(t, err)
	if sum := binary.LittleEndian.Uint32(original[superAt+checksumAt:]); sum != 0x5fd83d55 {
		t.Errorf("checksum is %#x, mke2fs wrote 0x5fd83d55", sum)
	}
	const seed = 1 << 13 // INCOMPAT_CSUM_SEED: no other checksum depends on the UUID
	if binary.LittleEndian.Uint32(super[0x60:])&seed == 0 {
		t.Error("the template lacks metadata_csum_seed")
	}
}

func TestKernelFormats(t *testing.T) {
	const table = "22 1 252:0 / / rw,noatime - ext4 /dev/vda rw\n31 22 253:1 / /run/leases/l0123456789 rw,nosuid - ext4 /dev/dm-1 rw\nshort\n"
	if !isMountPoint(table, "/run/leases/l0123456789") || isMountPoint(table, "/run/leases/l012345678") || isMountPoint("", "/") {
		t.Error("mount points are not told apart")
	}
	// Two entries of struct dm_target_versions, the second one the last.
	data := make([]byte, 64)
	binary.NativeEndian.PutUint32(data, 24)
	copy(data[16:], "crypt")
	copy(data[40:], "linear")
	if got := parseTargets(data); len(got) != 2 || got[0] != "crypt" || got[1] != "linear" {
		t.Errorf("targets are %q", got)
	}
	binary.NativeEndian.PutUint32(data, 1<<31)
	if got := parseTargets(data); len(got) != 1 {
		t.Errorf("targets are %q", got)
	}
	got := string(cryptTable(8192, "/dev/loop3", []byte{0xab, 0xcd}))[dmTarget:]
	if want := "aes-xts-plain64 abcd 0 /dev/loop3 0 2 allow_discards sector_size:4096\x00"; got != want {
		t.Errorf("table is %q, want %q", got, want)
	}
}
