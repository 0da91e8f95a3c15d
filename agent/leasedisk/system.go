package leasedisk

import (
	"errors"

	"github.com/croft-cloud/croft/internal/atomicfile"
)

// system is what a [Store] asks of the kernel. Power may be cut before and after
// each of the calls that change something; the tests do so. A call that finds its
// work done does nothing.
type system interface {
	check() error       // whether the kernel has what the rest needs
	encryption() string // for the record

	// Files of the box. Each change is on the disk when the call returns.

	write(path string, data []byte) error
	mkdir(path string) error                      // with its parents
	extend(path string, size int64) error         // makes a sparse file, or lengthens it
	erase(path string) error                      // overwrites a file with noise
	remove(path string) error                     // a file
	clear(dir string) error                       // removes a folder with all in it
	space(dir string) (free, used int64, _ error) // bytes of its file system
	// allocated measures a sparse file; an absent one has nothing.
	allocated(path string) (size, allocated int64, _ error)

	// Devices.

	// attach makes a loop device of an image. It lasts until hold was called and
	// nothing else uses the device.
	attach(image string) (device string, hold func() error, _ error)
	loops(image string) ([]string, error)
	detach(loop string) error
	// encrypt makes the named device above another.
	encrypt(name, device string, secret []byte) (string, error)
	decrypt(name string) error // removes it

	// File systems. errDamaged and errBusy are among the errors.

	format(device string, uuid [16]byte) error
	suspect(device string) (bool, error) // whether the kernel noted damage on it
	mount(device, dir string) error
	mounted(dir string) (bool, error)
	unmount(dir string) error
	fill(dir string, size int64) error // grows the mounted file system
	usage(dir string) (used, total int64, _ error)
}

var (
	errBusy    = errors.New("in use")
	errDamaged = errors.New("not a whole ext4")
)

// plaintext is a system whose disks are not encrypted.
type plaintext struct{ system }

func (plaintext) check() error       { return linux{}.checkLoop() }
func (plaintext) encryption() string { return "none" }
func (plaintext) encrypt(_, device string, _ []byte) (string, error) {
	return device, nil
}
func (plaintext) decrypt(string) error { return nil }

// linux is the kernel of the box.
type linux struct{}

func (linux) encryption() string { return "aes-xts-plain64" }

func (linux) write(path string, data []byte) error {
	return noSpace(atomicfile.WriteFile(path, data, 0o600))
}

func (linux) mkdir(path string) error { return noSpace(atomicfile.MkdirAll(path, 0o700)) }
