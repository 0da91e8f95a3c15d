// Package verity builds, finds, checks and opens the verified root: a squashfs
// image followed by its dm-verity superblock and hash tree, all in one file or
// partition.
//
// Format: data (a multiple of 4096 bytes), one 4096-byte block with the
// dm-verity superblock, then the tree, its top block first (Linux
// Documentation/admin-guide/device-mapper/verity.rst). The root hash is not in
// the partition: it stands on the kernel command line of the unified kernel
// image that belongs to it.
package verity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/go-dmverity/pkg/dm"
	dmverity "github.com/containerd/go-dmverity/pkg/verity"
	"golang.org/x/sys/unix"
)

// BlockSize is the size of data and hash blocks in bytes.
const BlockSize = 4096

// Root names one verified root by content.
type Root struct {
	Hash string // dm-verity root hash: SHA-256, 64 hex digits
	Size int64  // bytes of data before the superblock; a multiple of BlockSize
}

// ErrCorrupt reports that stored blocks do not match the root hash.
var ErrCorrupt = errors.New("root does not match its hash")

// Format appends superblock and hash tree to the image at path and returns what
// identifies it. The image is padded to a full block first. Salt and UUID come
// from the content, so equal images give equal files.
func Format(path string) (Root, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return Root{}, fmt.Errorf("open root image: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Root{}, fmt.Errorf("measure root image: %w", err)
	}
	size = (size + BlockSize - 1) / BlockSize * BlockSize
	if size < 2*BlockSize {
		return Root{}, errors.New("format root: image has less than two blocks, too few for a hash tree")
	}
	if err := f.Truncate(size); err != nil {
		return Root{}, fmt.Errorf("pad root image: %w", err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size)); err != nil {
		return Root{}, fmt.Errorf("hash root image: %w", err)
	}
	salt := sum.Sum(nil)
	p := parameters(size)
	p.Salt, p.SaltSize = salt, uint16(len(salt))
	copy(p.UUID[:], salt)
	hash, err := dmverity.Create(&p, path, path)
	if err != nil {
		return Root{}, fmt.Errorf("make hash tree: %w", err)
	}
	return Root{Hash: hex.EncodeToString(hash), Size: size}, nil
}

func parameters(size int64) dmverity.Params {
	p := dmverity.DefaultParams()
	p.DataBlockSize, p.HashBlockSize = BlockSize, BlockSize
	p.DataBlocks = uint64(size / BlockSize)
	p.HashAreaOffset = uint64(size)
	return p
}

// salt reads the superblock and returns the salt in it. All else in that block
// must be what [Format] writes: the hash tree does not cover it, and neither
// the kernel nor we take parameters from there. A wrong salt gives a wrong hash.
func (root Root) salt(r io.ReaderAt) ([]byte, error) {
	block := make([]byte, BlockSize)
	if _, err := r.ReadAt(block, root.Size); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	found, err := dmverity.DeserializeSuperblock(block)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	want := dmverity.DefaultSuperblock()
	want.DataBlocks = uint64(root.Size / BlockSize)
	want.SaltSize = sha256.Size
	copy(want.Salt[:sha256.Size], found.Salt[:])
	copy(want.UUID[:], found.Salt[:])
	raw, err := want.Serialize()
	if err != nil {
		return nil, fmt.Errorf("compare superblock: %w", err)
	}
	if !bytes.Equal(block[:len(raw)], raw) || len(bytes.Trim(block[len(raw):], "\x00")) > 0 {
		return nil, fmt.Errorf("%w: its superblock is damaged", ErrCorrupt)
	}
	return found.Salt[:sha256.Size], nil
}

// Holds reports whether the partition or image r carries this root: whether
// its superblock is whole and the top block of its hash tree has the root hash.
// It reads two blocks and says nothing about the others; [Root.Verify] and the
// kernel do.
func (root Root) Holds(r io.ReaderAt) bool { return root.check(r) == nil }

// check returns [ErrCorrupt] when r does not carry this root, and another error
// when that cannot be told.
func (root Root) check(r io.ReaderAt) error {
	salt, err := root.salt(r)
	if err != nil {
		return endIsCorrupt(err)
	}
	top := make([]byte, BlockSize)
	if _, err := r.ReadAt(top, root.Size+BlockSize); err != nil {
		return endIsCorrupt(fmt.Errorf("read hash tree: %w", err))
	}
	sum := sha256.New()
	sum.Write(salt)
	sum.Write(top)
	want, err := hex.DecodeString(root.Hash)
	if err != nil {
		return fmt.Errorf("root hash: %w", err)
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return ErrCorrupt
	}
	return nil
}

// endIsCorrupt marks content that ends too early.
func endIsCorrupt(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// Verify reads all of the root at path and compares every block. It returns
// [ErrCorrupt] when one differs, or when the medium does not give one back at any
// of several attempts. A read that fails once, or for another reason than the
// medium, is not taken for damage.
func (root Root) Verify(path string) error {
	err := patiently(func() error { return root.verify(path) }, func() { time.Sleep(retryPause) })
	if err != nil {
		return fmt.Errorf("verify root %s: %w", path, err)
	}
	return nil
}

// A read that fails is repeated so often, with such a pause in between.
const (
	readAttempts = 3
	retryPause   = 2 * time.Second
)

// patiently calls check until it is not hindered by a failing read. What the
// medium never gives back is lost: the kernel fails at the same place.
func patiently(check func() error, wait func()) error {
	for attempt := 1; ; attempt++ {
		err := check()
		// As the block layer calls a block that the medium does not give back.
		lost := errors.Is(err, unix.EIO) || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EILSEQ)
		switch {
		case !lost:
			return err
		case attempt == readAttempts:
			return fmt.Errorf("%w: it cannot be read: %w", ErrCorrupt, err)
		}
		wait()
	}
}

// verify is one attempt. An error that is none of content is a [fs.PathError].
func (root Root) verify(path string) error {
	want, err := hex.DecodeString(root.Hash)
	if err != nil {
		return fmt.Errorf("root hash: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = root.check(f)
	f.Close()
	if err != nil {
		return err
	}
	p := parameters(root.Size)
	err = dmverity.Verify(&p, path, path, want)
	if _, failed := errors.AsType[*fs.PathError](err); err == nil || failed {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// Open maps the root on partition as a verified read-only block device and
// returns its path. With panicOnCorruption the kernel panics at the first
// damaged block instead of returning an I/O error, so that a boot under trial
// ends at once.
func (root Root) Open(name, partition string, panicOnCorruption bool) (string, error) {
	want, err := hex.DecodeString(root.Hash)
	if err != nil {
		return "", fmt.Errorf("open root: root hash: %w", err)
	}
	f, err := os.Open(partition)
	if err != nil {
		return "", fmt.Errorf("open root: %w", err)
	}
	salt, err := root.salt(f)
	f.Close()
	if err != nil {
		return "", fmt.Errorf("open root on %s: %w", partition, err)
	}
	p := parameters(root.Size)
	args := dm.OpenArgs{
		Version:    p.HashType,
		DataDevice: partition, HashDevice: partition,
		DataBlockSize: p.DataBlockSize, HashBlockSize: p.HashBlockSize,
		DataBlocks:     p.DataBlocks,
		HashName:       p.HashName,
		RootDigest:     want,
		Salt:           salt,
		HashStartBytes: uint64(root.Size) + BlockSize, // the tree follows the superblock's block
	}
	if panicOnCorruption {
		args.Flags = []string{"panic_on_corruption"}
	}
	params, err := dm.BuildTargetParams(args)
	if err != nil {
		return "", fmt.Errorf("open root: %w", err)
	}
	control, err := dm.Open()
	if err != nil {
		return "", fmt.Errorf("open device mapper: %w", err)
	}
	defer control.Close()
	dev, err := control.CreateDevice(name)
	if err != nil {
		return "", err
	}
	target := dm.Target{Length: uint64(root.Size) / 512, Type: "verity", Params: params}
	err = control.LoadTable(name, []dm.Target{target})
	if err == nil {
		err = control.SuspendDevice(name, false)
	}
	if err != nil {
		return "", errors.Join(err, control.RemoveDevice(name))
	}
	// Without udev the kernel names the node after its minor number.
	return "/dev/dm-" + strconv.Itoa(int(unix.Minor(dev))), nil
}

// Arguments are the kernel arguments that carry the root: read back by
// [FromCommandLine].
func (root Root) Arguments() []string {
	return []string{
		"croft.roothash=" + root.Hash,
		"croft.rootsize=" + strconv.FormatInt(root.Size, 10),
	}
}

// FromCommandLine finds the root on a kernel command line.
func FromCommandLine(line string) (Root, error) {
	var root Root
	for field := range strings.FieldsSeq(line) {
		switch key, value, _ := strings.Cut(field, "="); key {
		case "croft.roothash":
			if raw, err := hex.DecodeString(value); err != nil || len(raw) != sha256.Size {
				return Root{}, fmt.Errorf("kernel argument croft.roothash=%s: want 64 hex digits", value)
			}
			root.Hash = value
		case "croft.rootsize":
			size, err := strconv.ParseInt(value, 10, 64)
			if err != nil || size <= 0 || size%BlockSize != 0 {
				return Root{}, fmt.Errorf("kernel argument croft.rootsize=%s: want a positive multiple of %d", value, BlockSize)
			}
			root.Size = size
		}
	}
	if root.Hash == "" || root.Size == 0 {
		return Root{}, errors.New("kernel command line names no root: croft.roothash and croft.rootsize are needed")
	}
	return root, nil
}
