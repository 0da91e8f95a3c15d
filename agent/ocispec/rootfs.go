package ocispec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Layers are the folders of this machine that make up an image's root, top first.
type Layers []string

// ViewLayers reads the mounts that containerd describes a view with: an overlay
// of several folders or a bind mount of one.
func ViewLayers(mounts []specs.Mount) (Layers, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("containerd describes the image with %d mounts, want 1", len(mounts))
	}
	switch mount := mounts[0]; mount.Type {
	case "bind":
		return Layers{mount.Source}, nil
	case "overlay":
		for _, option := range mount.Options {
			if list, ok := strings.CutPrefix(option, "lowerdir="); ok {
				return strings.Split(list, ":"), nil
			}
		}
		return nil, errors.New("containerd describes the image with an overlay of nothing")
	default:
		return nil, fmt.Errorf("containerd describes the image with a mount of type %q", mount.Type)
	}
}

// open is the image's root as a folder to look into. An overlay that is mounted
// for it is attached nowhere: it goes when the file is closed, also with this
// process.
func (l Layers) open() (*os.File, error) {
	if len(l) == 1 {
		fd, err := unix.Open(l[0], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open the image's root: %w", err)
		}
		return os.NewFile(uintptr(fd), l[0]), nil
	}
	overlay, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open the image's root: %w", err)
	}
	defer unix.Close(overlay)
	for _, folder := range l {
		if err := unix.FsconfigSetString(overlay, "lowerdir+", folder); err != nil {
			return nil, fmt.Errorf("stack the image's layer %s: %w", folder, err)
		}
	}
	if err := unix.FsconfigCreate(overlay); err != nil {
		return nil, fmt.Errorf("stack the image's layers: %w", err)
	}
	fd, err := unix.Fsmount(overlay, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("stack the image's layers: %w", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// readInside reads a file as a program whose root is this folder would find it:
// absolute links and ".." lead nowhere else. What is not there is empty; what is
// no regular file, or too long, is an error. It is looked at before it is opened:
// an image may hold device nodes, and some devices act when they are opened.
func readInside(root *os.File, path string, limit int64) ([]byte, error) {
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return nil, Errorf(BadImage, "read /%s of the image: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("read /%s of the image: %w", path, err)
	}
	found := os.NewFile(uintptr(fd), path)
	defer found.Close()
	info, err := found.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, Errorf(BadImage, "/%s of the image is no regular file", path)
	}
	file, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, fmt.Errorf("read /%s of the image: %w", path, err)
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read /%s of the image: %w", path, err)
	}
	if int64(len(raw)) > limit {
		return nil, Errorf(BadImage, "/%s of the image has more than %d bytes", path, limit)
	}
	return raw, nil
}

// ReadAccounts reads what [LookUpUser] needs: etc/passwd and etc/group. An image that runs as a plain
// "uid:gid" has its files left alone.
func (l Layers) ReadAccounts() (passwd, group []byte, err error) {
	root, err := l.open()
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	if passwd, err = readInside(root, "etc/passwd", passwdBytes); err != nil {
		return nil, nil, err
	}
	group, err = readInside(root, "etc/group", passwdBytes)
	return passwd, group, err
}
