package ocispec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// temporaryMark lies in a replica's /tmp. gVisor mounts memory over an empty one:
// then each temporary file would count as memory, and many would end the replica.
const temporaryMark = ".on-disk"

// KeepTemporary makes an image's empty or missing /tmp, in the folder that will lie
// above its layers, one that stays on disk. A /tmp with content is left alone, and
// so is what is no folder. root is the machine's user for the replica's root.
func (l Layers) KeepTemporary(upper string, root uint32) error {
	image, err := l.open()
	if err != nil {
		return err
	}
	defer image.Close()
	mode, owner, group := fs.FileMode(0o777)|fs.ModeSticky, root, root
	fd, err := unix.Openat2(int(image.Fd()), "tmp", &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("open /tmp of the image: %w", err)
	default:
		found := os.NewFile(uintptr(fd), "tmp")
		defer found.Close()
		if _, err := found.Readdirnames(1); !errors.Is(err, io.EOF) {
			return err // nil: it has content
		}
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil {
			return fmt.Errorf("look at /tmp of the image: %w", err)
		}
		mode = fs.FileMode(stat.Mode & 0o777)
		if stat.Mode&unix.S_ISVTX != 0 {
			mode |= fs.ModeSticky
		}
		if stat.Uid < MappedIDs && stat.Gid < MappedIDs {
			owner, group = root+stat.Uid, root+stat.Gid
		}
	}
	folder := filepath.Join(upper, "tmp")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	mark, err := os.OpenFile(filepath.Join(folder, temporaryMark), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(mark.Chown(int(root), int(root)), mark.Close()); err != nil {
		return err
	}
	if err := os.Chown(folder, int(owner), int(group)); err != nil {
		return err
	}
	return os.Chmod(folder, mode) // after the owner: a change of that may take bits away
}
