package leasedisk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
)

// fake is a kernel in memory over real files: devices and mounts are forgotten by
// a power cut, images and what is on them are not. A mounted disk is a link to the
// folder that holds its content.
type fake struct {
	linux   // what only looks at files
	content string
	room    int64 // bytes that are free
	others  int64 // bytes that are taken by what is no disk
	denied  bool  // no CAP_SYS_RESOURCE
	noCrypt bool
	damaged bool // the kernel met damage on the mounted disks

	next    int
	devices map[string]*fakeLoop // by device
	maps    map[string]fakeMap   // by name
	mounts  map[string]string    // device by folder
	inUse   bool                 // a program works on the mounted disks
}

type fakeLoop struct {
	image string
	held  bool
}

type fakeMap struct {
	loop   string
	secret [32]byte
}

func newFake(t *testing.T) *fake {
	return &fake{
		content: t.TempDir(), room: 1 << 40,
		devices: map[string]*fakeLoop{}, maps: map[string]fakeMap{}, mounts: map[string]string{},
	}
}

func (f *fake) check() error {
	if f.noCrypt {
		return errors.New("the kernel has no dm-crypt: disks cannot be encrypted")
	}
	return nil
}

func (f *fake) space(dir string) (free, used int64, err error) {
	used = f.others
	images, err := filepath.Glob(filepath.Join(dir, "*", "disk.img"))
	for _, image := range images {
		_, allocated, _ := f.allocated(image)
		used += allocated
	}
	return f.room, used, err
}

// Files without syncing them: the disk of a test machine is slow, and the
// integration tests use the real ones.

func (f *fake) write(path string, data []byte) error {
	return errors.Join(os.WriteFile(path+".new", data, 0o600), os.Rename(path+".new", path))
}

func (f *fake) mkdir(path string) error { return os.MkdirAll(path, 0o700) }

func (f *fake) extend(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.Size() >= size {
		return err
	}
	return file.Truncate(size)
}

func (f *fake) erase(path string) error {
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	return os.WriteFile(path, []byte("noise"), 0o600)
}

func (f *fake) clear(dir string) error { return os.RemoveAll(dir) }

func (f *fake) remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (f *fake) attach(image string) (string, func() error, error) {
	if _, err := os.Stat(image); err != nil {
		return "", nil, err
	}
	f.next++
	device := "/dev/loop" + strconv.Itoa(f.next)
	loop := &fakeLoop{image: image, held: true}
	f.devices[device] = loop
	return device, func() error { loop.held = false; f.autoclear(); return nil }, nil
}

func (f *fake) autoclear() {
	used := map[string]bool{}
	for _, m := range f.maps {
		used[m.loop] = true
	}
	for _, device := range f.mounts {
		used[device] = true
	}
	for device, loop := range f.devices {
		if !loop.held && !used[device] {
			delete(f.devices, device)
		}
	}
}

func (f *fake) loops(image string) ([]string, error) {
	var found []string
	for device, loop := range f.devices {
		if loop.image == image {
			found = append(found, device)
		}
	}
	return found, nil
}

func (f *fake) detach(device string) error {
	delete(f.devices, device)
	return nil
}

func (f *fake) encrypt(name, device string, secret []byte) (string, error) {
	if _, ok := f.maps[name]; ok {
		return "", fmt.Errorf("map %s: %w", name, unix.EBUSY)
	}
	f.maps[name] = fakeMap{device, sha256.Sum256(secret)}
	return "/dev/mapper/" + name, nil
}

func (f *fake) decrypt(name string) error {
	for _, device := range f.mounts {
		if device == "/dev/mapper/"+name {
			return errBusy
		}
	}
	delete(f.maps, name)
	f.autoclear()
	return nil
}

// under finds image and key below a device.
func (f *fake) under(device string) (image string, secret []byte) {
	m := f.maps[filepath.Base(device)]
	return f.devices[m.loop].image, m.secret[:]
}

// A formatted image begins with the hash of its key, a name for its content and
// the number of MiB that its file system has.
func (f *fake) format(device string, uuid [16]byte) error {
	image, secret := f.under(device)
	return writeHead(image, append(append(bytes.Clone(secret), uuid[:]...), byte(templateSize>>20)))
}

func writeHead(image string, head []byte) error {
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteAt(head, 0)
	return err
}

func (f *fake) head(device string) (image string, head []byte, err error) {
	image, _ = f.under(device)
	file, err := os.Open(image)
	if err != nil {
		return "", nil, err
	}
	defer file.Close()
	head = make([]byte, 49)
	_, err = file.ReadAt(head, 0)
	return image, head, err
}

func (f *fake) mount(device, dir string) error {
	_, secret := f.under(device)
	_, head, err := f.head(device)
	if err != nil {
		return err
	}
	if !bytes.Equal(head[:32], secret) {
		return errDamaged
	}
	content := filepath.Join(f.content, fmt.Sprintf("%x", head[32:48]))
	if err := os.MkdirAll(content, 0o700); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil {
		return err
	}
	f.mounts[dir] = device
	return os.Symlink(content, dir)
}

func (f *fake) suspect(string) (bool, error) { return f.damaged, nil }

func (f *fake) mounted(dir string) (bool, error) {
	_, ok := f.mounts[dir]
	return ok, nil
}

func (f *fake) unmount(dir string) error {
	if _, ok := f.mounts[dir]; !ok {
		return nil
	}
	if f.inUse {
		return errBusy
	}
	delete(f.mounts, dir)
	f.autoclear()
	return errors.Join(os.Remove(dir), os.Mkdir(dir, 0o700))
}

func (f *fake) fill(dir string, size int64) error {
	image, head, err := f.head(f.mounts[dir])
	if err != nil || int64(head[48])<<20 == size {
		return err
	}
	if info, err := os.Stat(image); err != nil || info.Size() < size {
		return fmt.Errorf("the device is too small: %w", err)
	}
	if f.denied {
		return fmt.Errorf("grow file system: %w", unix.EPERM)
	}
	head[48] = byte(size >> 20)
	return writeHead(image, head)
}

func (f *fake) usage(dir string) (used, total int64, err error) {
	_, head, err := f.head(f.mounts[dir])
	return 1 << 20, int64(head[48]) << 20, err
}

// reboot forgets what a power cut ends; mounts lie on a memory file system.
func (f *fake) reboot(mountDir string) error {
	clear(f.devices)
	clear(f.maps)
	clear(f.mounts)
	err := os.RemoveAll(mountDir)
	return errors.Join(err, f.mkdir(mountDir))
}

// nothingLeft fails if the kernel still has anything of a disk.
func (f *fake) nothingLeft(t *testing.T) {
	t.Helper()
	if len(f.devices)+len(f.maps)+len(f.mounts) > 0 {
		t.Errorf("left: loop devices %v, mappings %v, mounts %v", f.devices, f.maps, f.mounts)
	}
}

// fakeKeeper is a box without a secret of its own: damage is noticed and nothing
// is hidden.
type fakeKeeper struct{ err error }

func (k *fakeKeeper) Seal(_ context.Context, plain []byte) ([]byte, error) {
	if len(plain) == 0 || len(plain) > MaxPlain {
		return nil, errors.New("too long for a TPM")
	}
	sum := sha256.Sum256(plain)
	return append(sum[:], plain...), k.err
}

func (k *fakeKeeper) Open(_ context.Context, sealed []byte) ([]byte, error) {
	if k.err != nil {
		return nil, k.err
	}
	if len(sealed) > sha256.Size {
		if sum := sha256.Sum256(sealed[sha256.Size:]); bytes.Equal(sum[:], sealed[:sha256.Size]) {
			return bytes.Clone(sealed[sha256.Size:]), nil
		}
	}
	return nil, &croft.Error{Kind: croft.KindInvalid, Err: errors.New("it is damaged")}
}
