// Package leasedisk gives each lease one disk: a sparse file that holds an
// ext4 file system, encrypted below it, mounted for as long as the lease runs.
// What the replicas write to their roots, the volumes and the logs lie on it and
// share one hard limit. What lies where on the disk is the caller's affair.
//
// Callers need [New], then [Store.Create] when a lease is won, [Store.Open]
// before its replicas start and after each start of the agent, and
// [Store.Remove] when the lease is over; [Store.Close] makes Open begin anew.
// All of these may be repeated: each begins with what it finds and ends in the
// same state. Calls for one lease wait for each other, calls for several do not.
//
// The layers, from the bottom:
//
//	DIR/KEY/disk.img         sparse file on /perm; freed blocks are punched out again
//	loop device              direct I/O where /perm can; lets go of itself when unused
//	croft-lease-KEY          dm-crypt: aes-xts-plain64, key of 512 bits, sectors of 4096 bytes
//	MOUNT/KEY                ext4: nodev, nosuid, noatime, discard, errors=remount-ro
//
// Beside the image lie DIR/KEY/key, the disk's key as the [Keeper] sealed it, and
// DIR/KEY/lease.json, the record. The record is written last: a lease without it
// has no disk yet. The key is destroyed first: a lease without it has none any
// more, and nobody can read the image.
//
// MOUNT must be a memory file system (/run): what is written there by mistake
// while the disk is not mounted does not reach the disk in clear, and after a
// restart of the machine nothing stale lies in the way.
//
// # What it promises
//
// A disk is refused with [croft.KindNoSpace] when the file system of DIR could
// not hold all bytes of all disks and the reserve: no lease can eat what another
// was promised. The reserve is for what else lies there; OCI images in it do not
// make the room for disks smaller, those beyond it do. [Store.Borrow] lends room
// to what is on its way there, so that it does not eat promises either; a loan
// ends with the process. No disk is ever made or opened in clear unless [Config.Plaintext]
// says so; a kernel without dm-crypt is an error of [New]. A disk of one kind is
// not opened as the other.
//
// # What it does not do
//
// It does not stop programs that use a disk: Close and Remove of a disk in use
// fail after some seconds. It does not protect against a thief who brings the
// disk back changed: XTS hides content and keeps no checksum of it; nor are sizes
// and freed blocks hidden. Erased keys may live on in worn cells of a flash disk;
// sealed by a TPM they are of no use without it.
//
// An ext4 needs about 2 % of the disk for itself, which the tenant sees as used.
// A fresh disk takes some 20 MB of /perm; the rest of the 2 % the kernel writes
// in the background.
//
// # What survives what
//
//	agent killed           the disk stays mounted and its programs run; Open finds it
//	power cut, by step     of Create: nothing, or parts without a record; Create begins again
//	                       of Open, Close: the disk; ext4 replays its journal
//	                       of Remove: the disk, or one whose key is noise or gone; Remove goes on
//	damaged file system    Open calls Config.Repair; what nobody can repair is lost, for good, and says so
//	damage met while open  nobody can write until it is closed or the box restarts; then as above
//	damaged or lost key    the disk is lost
//	keeper fails           an error; the disk is good when the keeper is
//	/perm full             cannot be by our own disks; if it is, as a damaged file system
//	wrong clock            nothing here asks for the time
//
// # Template
//
// template.ext4.gz is an empty ext4 of 16 MiB which every disk begins as, under
// a UUID of its own. The feature metadata_csum_seed is what lets the UUID change
// without new checksums all over. Made once, by e2fsprogs 1.47.0:
//
//	U=c40f7000-6c65-6173-8000-000000000001
//	E2FSPROGS_FAKE_TIME=1 mke2fs -q -F -t ext4 -b 4096 -I 256 -N 8192 -J size=4 -m 0 \
//	  -O metadata_csum,metadata_csum_seed,64bit,^orphan_file -U $U -L lease \
//	  -E hash_seed=$U,root_owner=0:0,resize=268435456,lazy_itable_init=1,nodiscard template.ext4 16M
//	gzip -9n template.ext4
//
// -N 8192 gives one inode for 16 KiB in each group that growing adds.
package leasedisk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// Sizes of a disk in bytes.
const (
	MinSize = templateSize // the template cannot shrink
	MaxSize = 2 << 40      // as far as growing was measured

	sizeStep = 1 << 20 // sizes are rounded up to this: a multiple of every sector and block in use
)

// maxDisks bounds what one box keeps: more leases than any box has memory for,
// fewer than the kernel has minor numbers.
const maxDisks = 512

// defaultReserve is for journal, spool, OCI images and updates.
const defaultReserve = 4 << 30

// overheadShift bounds what ext4 below needs to remember where the blocks of an
// image are: 12 bytes for 4096 at worst, taken as 1/256.
const overheadShift = 8

// keySize is the length of an AES-256-XTS key in bytes: two AES keys.
const keySize = 64

// Config is copied by [New] and never changed afterwards.
type Config struct {
	Dir      string // required; on /perm: images, keys and records
	MountDir string // required; on a memory file system: where disks are mounted
	Keeper   Keeper // required, but with Plaintext
	Reserve  int64  // bytes of Dir's file system that are not for disks; what else lies there counts, but an eighth stays free; default 4 GiB; negative: none

	// Plaintext makes disks without encryption. It is for tests on kernels that
	// lack dm-crypt; a box never sets it.
	Plaintext bool

	// Repair checks and repairs the unmounted ext4 on a device. An error of kind
	// [croft.KindInvalid] means that nobody can, any other that it could not be
	// tried. Nil: a damaged file system is lost.
	Repair func(ctx context.Context, device string) error

	Log *slog.Logger // default: discard
}

// Modules are the kernel modules this package needs, in an order in which they
// can be loaded, beside what they depend on: the box has no modprobe that the
// kernel could ask. Debian builds all of them as modules.
func Modules() []string {
	return []string{
		"loop",
		"aesni_intel",    // AES-XTS by the processor; not on the oldest ones
		"xts",            // and what those use
		"dm_mod",         // the device mapper
		"dm_crypt",       // its encryption
		"crc32c_generic", // ext4 asks for it by another name than its own
		"ext4",
	}
}

func loadModules() string { return "load the kernel modules " + strings.Join(Modules(), ", ") }

// Store keeps the disks of all leases. All methods may be called from any
// goroutine.
type Store struct {
	cfg Config
	sys system
	log *slog.Logger

	mu        sync.Mutex
	busy      map[lease.Key]chan struct{} // guarded by mu; closed when the key is free again
	promised  map[lease.Key]int64         // guarded by mu; sizes granted by calls that are still at work
	lent      int64                       // guarded by mu; bytes of all loans
	line      []*asker                    // guarded by mu; who waits for a loan, in the order in which they came
	turn      int                         // guarded by mu; number of the last loan
	turns     map[lease.Key]int           // guarded by mu; that of each lease's last one
	borrowing map[lease.Key]bool          // guarded by mu; who has a loan
	stirred   chan struct{}               // guarded by mu; closed, and made anew, when a loan ends or somebody leaves the line
}

// New checks that disks can be made here.
func New(cfg Config) (*Store, error) {
	var sys system = linux{}
	if cfg.Plaintext {
		sys = plaintext{sys}
	}
	return newStore(cfg, sys)
}

func newStore(cfg Config, sys system) (*Store, error) {
	switch {
	case cfg.Dir == "" || cfg.MountDir == "":
		return nil, errors.New("directory for lease disks or for their mounts is missing")
	case cfg.Keeper == nil && !cfg.Plaintext:
		return nil, errors.New("keeper of lease disk keys is missing")
	}
	switch {
	case cfg.Reserve == 0:
		cfg.Reserve = defaultReserve
	case cfg.Reserve < 0:
		cfg.Reserve = 0
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// The kernel knows images and mounts by absolute names without links.
	for _, dir := range []*string{&cfg.Dir, &cfg.MountDir} {
		err := atomicfile.MkdirAll(*dir, 0o700)
		if err == nil {
			*dir, err = filepath.Abs(*dir)
		}
		if err == nil {
			*dir, err = filepath.EvalSymlinks(*dir)
		}
		if err == nil && strings.ContainsAny(*dir, "\\ \t\n") {
			err = errors.New("white space in its name")
		}
		if err != nil {
			return nil, fmt.Errorf("prepare directory of lease disks: %w", err)
		}
	}
	if err := sys.check(); err != nil {
		return nil, &croft.Error{
			Kind: croft.KindMissing, Err: fmt.Errorf("prepare lease disks: %w", err),
			Remedy: loadModules(),
		}
	}
	return &Store{
		cfg: cfg, sys: sys, log: cfg.Log,
		busy: map[lease.Key]chan struct{}{}, promised: map[lease.Key]int64{}, turns: map[lease.Key]int{}, borrowing: map[lease.Key]bool{}, stirred: make(chan struct{}),
	}, nil
}

var keyForm = regexp.MustCompile(`^l[0-9a-v]{10}$`)

// acquire checks the key and waits until no other call works on that lease.
func (s *Store) acquire(ctx context.Context, key lease.Key) (release func(), err error) {
	if !keyForm.MatchString(string(key)) {
		return nil, usage("lease key %q: want l and ten of 0-9 and a-v", key)
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		other, taken := s.busy[key]
		if !taken {
			own := make(chan struct{})
			s.busy[key] = own
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, key)
				delete(s.promised, key)
				s.mu.Unlock()
				close(own)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}

// The places of one lease.
func (s *Store) dir(key lease.Key) string    { return filepath.Join(s.cfg.Dir, string(key)) }
func (s *Store) image(key lease.Key) string  { return filepath.Join(s.dir(key), "disk.img") }
func (s *Store) sealed(key lease.Key) string { return filepath.Join(s.dir(key), "key") }
func (s *Store) record(key lease.Key) string { return filepath.Join(s.dir(key), "lease.json") }
func (s *Store) mount(key lease.Key) string  { return filepath.Join(s.cfg.MountDir, string(key)) }

// mapping is the name of the lease's device for the device mapper.
func mapping(key lease.Key) string { return "croft-lease-" + string(key) }

func roundUp(bytes int64) (int64, error) {
	if bytes <= 0 || bytes > MaxSize {
		return 0, usage("disk of %d bytes: want 1 to %d", bytes, int64(MaxSize))
	}
	return max((bytes+sizeStep-1)/sizeStep*sizeStep, MinSize), nil
}

// Create makes a disk of at least so many bytes for the lease and leaves it
// closed. A lease that has a disk of that size keeps it with its content.
func (s *Store) Create(ctx context.Context, key lease.Key, bytes int64) error {
	release, err := s.acquire(ctx, key)
	if err != nil {
		return fmt.Errorf("create disk of lease %s: %w", key, err)
	}
	defer release()
	if err := s.create(ctx, key, bytes); err != nil {
		return fmt.Errorf("create disk of lease %s: %w", key, err)
	}
	return nil
}

func (s *Store) create(ctx context.Context, key lease.Key, bytes int64) error {
	size, err := roundUp(bytes)
	if err != nil {
		return err
	}
	switch d, err := s.look(key); {
	case err != nil:
		return err
	case d.State == Good && d.Size == size:
		return nil
	case d.State == Good:
		return &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("the lease has a disk of %d bytes, not of %d", d.Size, size),
			Remedy: "close the lease and deploy again",
		}
	case d.State == Lost:
		return lostError(d.Lost)
	case d.State == Removing:
		return &croft.Error{Kind: croft.KindRefused, Err: errors.New("the lease's disk is being removed"), Remedy: "remove it first"}
	}
	// What a Create left behind that did not end.
	if err := s.sweep(ctx, key); err != nil {
		return err
	}
	if err := s.sys.remove(s.image(key)); err != nil {
		return err
	}
	if err := s.promise(key, size, size); err != nil {
		return err
	}
	if err := s.sys.mkdir(s.dir(key)); err != nil {
		return err
	}
	r := record{Version: recordVersion, Lease: key, Size: size, UUID: uuid.New(), Encryption: s.sys.encryption()}
	secret := make([]byte, keySize)
	defer clear(secret)
	_, _ = rand.Read(secret) // never fails
	sealed, err := s.seal(ctx, key, secret)
	if err != nil {
		return err
	}
	if err := s.sys.write(s.sealed(key), sealed); err != nil {
		return err
	}
	if err := s.sys.extend(s.image(key), size); err != nil {
		return err
	}
	device, hold, err := s.build(ctx, key, secret)
	if err != nil {
		return errors.Join(err, s.sweep(context.WithoutCancel(ctx), key))
	}
	err = s.sys.format(device, r.UUID)
	err = errors.Join(err, hold(), s.sweep(context.WithoutCancel(ctx), key))
	if err != nil {
		return err
	}
	if err := s.sys.write(s.record(key), r.encode()); err != nil {
		return err
	}
	s.log.Info("lease disk created", "lease", key, "size_bytes", size)
	return nil
}

// build puts the devices above the image together. The caller calls hold once
// something else uses the device.
func (s *Store) build(ctx context.Context, key lease.Key, secret []byte) (device string, hold func() error, err error) {
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	loop, hold, err := s.sys.attach(s.image(key))
	if err != nil {
		return "", nil, err
	}
	device, err = s.sys.encrypt(mapping(key), loop, secret)
	if err != nil {
		return "", nil, errors.Join(err, hold())
	}
	return device, hold, nil
}

// sweep takes down what of the lease's devices is up, whole or in parts.
func (s *Store) sweep(ctx context.Context, key lease.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.sys.unmount(s.mount(key)); err != nil {
		return inUse(err)
	}
	if err := s.sys.decrypt(mapping(key)); err != nil {
		return inUse(err)
	}
	loops, err := s.sys.loops(s.image(key))
	if err != nil {
		return err
	}
	for _, loop := range loops {
		if err := s.sys.detach(loop); err != nil {
			return inUse(err)
		}
	}
	return nil
}

func inUse(err error) error {
	if errors.Is(err, errBusy) {
		return &croft.Error{Kind: croft.KindRefused, Err: err, Remedy: "stop what uses the disk and repeat"}
	}
	return err
}

// Open mounts the lease's disk, unless it is mounted already, and returns where.
// Only paths below that one lie on the disk, and only until Close.
//
// An error of kind [croft.KindInvalid] means that the disk is lost.
func (s *Store) Open(ctx context.Context, key lease.Key) (string, error) {
	release, err := s.acquire(ctx, key)
	if err != nil {
		return "", fmt.Errorf("open disk of lease %s: %w", key, err)
	}
	defer release()
	if err := s.open(ctx, key); err != nil {
		return "", fmt.Errorf("open disk of lease %s: %w", key, err)
	}
	return s.mount(key), nil
}

func (s *Store) open(ctx context.Context, key lease.Key) error {
	r, err := s.usable(key)
	if err != nil {
		return err
	}
	up, err := s.sys.mounted(s.mount(key))
	if err != nil {
		return err
	}
	if up { // the agent was restarted, perhaps before the file system filled its disk
		_, has, err := s.sys.usage(s.mount(key))
		if err == nil && has+lastGroup <= r.Size {
			err = s.fill(key, r)
		}
		return err
	}
	if err := s.bringUp(ctx, key, r); err != nil {
		return err
	}
	if err := s.fill(key, r); err != nil {
		return errors.Join(err, s.sweep(context.WithoutCancel(ctx), key))
	}
	return nil
}

// bringUp mounts the disk and repairs it if it must.
func (s *Store) bringUp(ctx context.Context, key lease.Key, r record) error {
	if err := s.sweep(ctx, key); err != nil {
		return err
	}
	secret, err := s.unseal(ctx, key)
	if err != nil {
		return err
	}
	defer clear(secret)
	if err := s.sys.extend(s.image(key), r.Size); err != nil { // a repair of /perm may have cut it
		return err
	}
	if err := s.sys.mkdir(s.mount(key)); err != nil {
		return err
	}
	device, hold, err := s.build(ctx, key, secret)
	if err == nil {
		s.mend(ctx, key, device)
		err = s.sys.mount(device, s.mount(key))
		if errors.Is(err, errDamaged) && s.cfg.Repair != nil {
			s.log.Warn("lease disk damaged, repairing", "lease", key, "error", err)
			err = s.repair(ctx, key, device, err)
		}
		err = errors.Join(err, hold())
	}
	if err == nil {
		return nil
	}
	if ctx.Err() == nil && errors.Is(err, errDamaged) {
		err = s.lose(key, r, "its file system is damaged: "+err.Error())
	}
	return errors.Join(err, s.sweep(context.WithoutCancel(ctx), key))
}

// mend repairs a file system that the kernel found damaged while it was mounted:
// it mounts it again all the same, to meet the damage again.
func (s *Store) mend(ctx context.Context, key lease.Key, device string) {
	suspect, err := s.sys.suspect(device)
	if err == nil && suspect && s.cfg.Repair != nil {
		s.log.Warn("lease disk was damaged while it was open, repairing", "lease", key)
		err = s.cfg.Repair(ctx, device)
	}
	if err != nil {
		s.log.Warn("lease disk not repaired", "lease", key, "error", err) // whether it can be used mounting tells
	}
}

// repair mends a file system and mounts it. errDamaged is among the errors only
// if that cannot be done, now or ever.
func (s *Store) repair(ctx context.Context, key lease.Key, device string, damage error) error {
	switch err := s.cfg.Repair(ctx, device); {
	case err == nil:
		return s.sys.mount(device, s.mount(key))
	case croft.KindOf(err) == croft.KindInvalid:
		return fmt.Errorf("%w; repair it: %w", damage, err)
	default:
		return fmt.Errorf("repair a damaged file system: %w", err)
	}
}

// fill lets a mounted file system have all of its disk's size.
func (s *Store) fill(key lease.Key, r record) error {
	err := s.sys.fill(s.mount(key), r.Size)
	if errors.Is(err, fs.ErrPermission) {
		return &croft.Error{Kind: croft.KindMissing, Err: err, Remedy: "give the agent the capability CAP_SYS_RESOURCE"}
	}
	return err
}

// lose records that the disk's content is gone for good.
func (s *Store) lose(key lease.Key, r record, why string) error {
	r.Lost = why
	err := s.sys.write(s.record(key), r.encode())
	s.log.Error("lease disk lost", "lease", key, "reason", why)
	return errors.Join(lostError(why), err)
}

func lostError(why string) error {
	return &croft.Error{
		Kind: croft.KindInvalid, Err: fmt.Errorf("the disk of this lease and all that was on it is lost: %s", why),
		Remedy: "close the lease and deploy again",
	}
}

// Close unmounts the lease's disk and takes its key out of the kernel. Nothing
// may use it any more.
func (s *Store) Close(ctx context.Context, key lease.Key) error {
	release, err := s.acquire(ctx, key)
	if err != nil {
		return fmt.Errorf("close disk of lease %s: %w", key, err)
	}
	defer release()
	if err := s.sweep(ctx, key); err != nil {
		return fmt.Errorf("close disk of lease %s: %w", key, err)
	}
	return nil
}

// Remove destroys the lease's disk: first the key, so that whatever happens next
// nobody reads the image again, then all the rest. Nothing may use the disk.
func (s *Store) Remove(ctx context.Context, key lease.Key) error {
	release, err := s.acquire(ctx, key)
	if err != nil {
		return fmt.Errorf("remove disk of lease %s: %w", key, err)
	}
	defer release()
	if err := s.remove(ctx, key); err != nil {
		return fmt.Errorf("remove disk of lease %s: %w", key, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, key lease.Key) error {
	if err := s.sys.erase(s.sealed(key)); err != nil {
		return err
	}
	if err := s.sys.remove(s.sealed(key)); err != nil {
		return err
	}
	if err := s.sweep(ctx, key); err != nil {
		return err
	}
	// The image goes before the folder: List names the lease until no byte of it is left.
	if err := s.sys.remove(s.image(key)); err != nil {
		return err
	}
	for _, dir := range []string{s.mount(key), s.dir(key)} { // with what was written there by mistake, or not to its end
		if err := s.sys.clear(dir); err != nil {
			return err
		}
	}
	s.mu.Lock()
	delete(s.turns, key)
	s.mu.Unlock()
	s.log.Info("lease disk removed", "lease", key)
	return nil
}

// promise grants the lease a disk of size bytes until the end of the call, if
// Dir's file system can hold the more bytes besides all that was granted before.
func (s *Store) promise(key lease.Key, size, more int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	room, disks, err := s.roomLocked()
	switch {
	case err != nil:
		return err
	case disks >= maxDisks:
		return &croft.Error{Kind: croft.KindNoSpace, Err: fmt.Errorf("the box has %d lease disks already", disks), Remedy: "end a lease"}
	case more > room:
		return &croft.Error{
			Kind: croft.KindNoSpace, Err: fmt.Errorf("%d bytes are wanted and %d are not promised to other leases", more, room),
			Remedy: "end a lease or ask for a smaller disk",
		}
	}
	s.promised[key] = size
	return nil
}

// Room returns how many bytes may still be promised to leases.
func (s *Store) Room() (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	room, _, err := s.roomLocked()
	if err != nil {
		return 0, fmt.Errorf("measure room for lease disks: %w", err)
	}
	return room, nil
}

// keys are the leases that have anything in Dir, in order.
func (s *Store) keys() ([]lease.Key, error) {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var keys []lease.Key
	for _, e := range entries {
		if e.IsDir() && keyForm.MatchString(e.Name()) {
			keys = append(keys, lease.Key(e.Name()))
		}
	}
	return slices.Clip(keys), nil
}
