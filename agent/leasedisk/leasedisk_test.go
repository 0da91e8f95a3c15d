package leasedisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/croft-cloud/croft"
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
	must(t, s.Grow(ctx, keyA, w.size/2)) // never shrinks
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

func TestPlacesOnADisk(t *testing.T) {
	w, _ := fakeWorld(t)
	s := w.store(w.sys)
	ctx := t.Context()
	w.made(s)
	id := lease.ReplicaID{Lease: keyA, Service: "web", Revision: 2, Index: 1}
	_, err := s.Scratch(ctx, id)
	wantKind(t, err, croft.KindRefused) // a closed disk has no places
	mount := w.open(s)

	scratch, err := s.Scratch(ctx, id)
	must(t, err)
	volume, err := s.Volume(ctx, keyA, "web", 1, "data")
	must(t, err)
	log, err := s.Log(id)
	must(t, err)
	hosts, err := s.File(ctx, keyA, "hosts", []byte("127.0.0.1 localhost\n"))
	must(t, err)
	for path, want := range map[string]string{
		scratch: "scratch/" + id.Container(), volume: "volumes/web-1/data", log: "logs/web-2-1.log", hosts: "files/hosts",
	} {
		if path != filepath.Join(mount, want) {
			t.Errorf("path is %s, want %s below %s", path, want, mount)
		}
	}
	for path, want := range map[string]os.FileMode{
		scratch + "/upper": 0o755, scratch + "/work": 0o755, volume: 0o777, hosts: 0o644, filepath.Dir(log): 0o711,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", path, info, err, want)
		}
	}
	must(t, os.Chmod(volume, 0o700)) // by the tenant
	_, err = s.Volume(ctx, keyA, "web", 1, "data")
	must(t, err)
	if info, err := os.Stat(volume); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the tenant's permissions became %v, %v", info.Mode(), err)
	}
	must(t, os.WriteFile(log, nil, 0o600))
	must(t, s.RemoveScratch(ctx, id))
	must(t, s.RemoveScratch(ctx, id))
	for _, path := range []string{scratch, log} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", path)
		}
	}
}

func TestNamesThatLeadElsewhereAreRefused(t *testing.T) {
	w, _ := fakeWorld(t)
	s := w.store(w.sys)
	ctx := t.Context()
	w.made(s)
	w.open(s)
	for _, name := range []string{"", ".", "..", "../web", "a/b", ".hidden", "a\x00b", "a b", strings.Repeat("x", 129)} {
		_, err := s.Volume(ctx, keyA, "web", 0, name)
		wantKind(t, err, croft.KindUsage)
		_, err = s.Volume(ctx, keyA, name, 0, "data")
		wantKind(t, err, croft.KindUsage)
		_, err = s.File(ctx, keyA, name, nil)
		wantKind(t, err, croft.KindUsage)
		_, err = s.Scratch(ctx, lease.ReplicaID{Lease: keyA, Service: name})
		wantKind(t, err, croft.KindUsage)
		_, err = s.Log(lease.ReplicaID{Lease: keyA, Service: name})
		wantKind(t, err, croft.KindUsage)
		wantKind(t, s.Create(ctx, lease.Key(name), 1), croft.KindUsage)
		wantKind(t, s.Remove(ctx, lease.Key(name)), croft.KindUsage)
		_, _, err = s.Usage(lease.Key(name))
		wantKind(t, err, croft.KindUsage)
		wantKind(t, s.Health(lease.Key(name)), croft.KindUsage)
		_, err = s.Log(lease.ReplicaID{Lease: lease.Key(name), Service: "web"})
		wantKind(t, err, croft.KindUsage)
	}
	_, err := s.Volume(ctx, keyA, "web", -1, "data")
	wantKind(t, err, croft.KindUsage)
	for _, bytes := range []int64{0, -1, MaxSize + 1} {
		wantKind(t, s.Create(ctx, keyB, bytes), croft.KindUsage)
	}
	// A link that a tenant might leave leads nowhere.
	must(t, os.Symlink("/etc", filepath.Join(s.mount(keyA), volumesDir, "web-7")))
	if dir, err := s.Volume(ctx, keyA, "web", 7, "data"); err == nil {
		t.Errorf("a volume was made at %s, through a link", dir)
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
	wantKind(t, s.Grow(ctx, keyA, 151<<20), croft.KindNoSpace)
	if d := w.look(s); d.Size != 100<<20 {
		t.Errorf("a refused Grow left a size of %d", d.Size)
	}
	must(t, s.Create(ctx, keyB, 40<<20))
	must(t, s.Remove(ctx, keyA))
	must(t, s.Grow(ctx, keyB, 140<<20))
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
	w.cfg.Repair = func(_ context.Context, device string) error {
		asked = device
		image, _ := f.under(device)
		return writeHead(image, whole)
	}
	s := w.store(w.sys)
	w.closed(s)
	image, err := os.ReadFile(s.image(keyA))
	must(t, err)
	whole = image[:49]
	must(t, writeHead(s.image(keyA), make([]byte, 49)))
	w.keeps(s)
	if asked != "/dev/mapper/"+mapping(keyA) {
		t.Errorf("the repair was given %q", asked)
	}
}

func TestKeeperThatFailsCostsNoDisk(t *testing.T) {
	w, _ := fakeWorld(t)
	keeper := &moody{Keeper: w.cfg.Keeper}
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

type moody struct {
	Keeper
	err error
}

func (m *moody) Seal(ctx context.Context, plain []byte) ([]byte, error) {
	if len(plain) > MaxPlain {
		return nil, errors.New("too long for a TPM")
	}
	if m.err != nil {
		return nil, m.err
	}
	return m.Keeper.Seal(ctx, plain)
}

func (m *moody) Open(ctx context.Context, sealed []byte) ([]byte, error) {
	if m.err != nil {
		return nil, m.err
	}
	return m.Keeper.Open(ctx, sealed)
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

func TestFileKeeper(t *testing.T) {
	path := filepath.Join(t.TempDir(), "box.key")
	k, err := OpenFileKeeper(path)
	must(t, err)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	plain := []byte("sixty-four bytes of a key")
	one, err := k.Seal(t.Context(), plain)
	must(t, err)
	two, err := k.Seal(t.Context(), plain)
	must(t, err)
	if bytes.Equal(one, two) || bytes.Contains(one, plain) {
		t.Error("sealing twice gives the same, or the plain text")
	}
	again, err := OpenFileKeeper(path)
	must(t, err)
	got, err := again.Open(t.Context(), one)
	must(t, err)
	if !bytes.Equal(got, plain) {
		t.Errorf("got %q", got)
	}
	for i := range one {
		changed := bytes.Clone(one)
		changed[i] ^= 1
		_, err := again.Open(t.Context(), changed)
		wantKind(t, err, croft.KindInvalid)
	}
	_, err = again.Open(t.Context(), nil)
	wantKind(t, err, croft.KindInvalid)
	must(t, os.WriteFile(path, []byte("short"), 0o600))
	_, err = OpenFileKeeper(path)
	wantKind(t, err, croft.KindInvalid)
	if data, err := os.ReadFile(path); err != nil || string(data) != "short" {
		t.Errorf("a key file that is not understood became %q, %v", data, err)
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
