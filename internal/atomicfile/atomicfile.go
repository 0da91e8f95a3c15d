// Package atomicfile replaces a file as a whole: after a power cut at any
// moment the path holds either the old content or the new one, never a mix and
// never nothing where there was something.
//
// It writes the new content beside the file, syncs it, renames it over the file
// and syncs the directory. When [WriteFile] returns nil the new content is on
// the disk. A crash in between leaves at most one hidden file, ".NAME.new",
// which the next write of the same path takes over.
//
// It does not append and does not keep owner, ACLs or a symbolic link found at
// the path: the path becomes a new regular file. It is meant for ext4; FAT has
// no atomic rename over an existing file.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// WriteFile makes data the content of the file at path, with exactly the
// permissions perm (the umask is not applied). The directory must exist. On an
// error before the rename the old content is untouched and nothing is left
// behind; an error after it names the directory's sync, and either content may
// survive a power cut. Writers of the same path, in this process or another,
// take turns.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	if err := writeFile(path, data, perm); err != nil {
		return fmt.Errorf("write file %s: %w", path, err)
	}
	return nil
}

func writeFile(path string, data []byte, perm fs.FileMode) error {
	dir, name := filepath.Split(path)
	if name == "" || name == "." || name == ".." {
		return errors.New("path names no file")
	}
	if dir == "" {
		dir = "."
	}
	temporary := filepath.Join(dir, "."+name+".new")
	f, err := take(temporary)
	if err != nil {
		return err
	}
	defer f.Close() // gives the lock back; what matters was synced before
	if err := fill(f, data, perm); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return syncDir(dir)
}

// take opens and locks the temporary file. The lock is on the file, not on its
// name: a writer that waited finds its file renamed to the final name, and must
// then not touch it but begin again.
func take(temporary string) (*os.File, error) {
	for {
		f, err := os.OpenFile(temporary, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lock(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", temporary, err)
		}
		locked, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if named, err := os.Lstat(temporary); err == nil && os.SameFile(locked, named) {
			return f, nil
		}
		f.Close()
	}
}

func lock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// fill gives f exactly this content and these permissions, on the disk.
func fill(f *os.File, data []byte, perm fs.FileMode) error {
	if err := f.Truncate(0); err != nil { // the leftover of a crash
		return err
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// MkdirAll makes the directory at path and the parents it lacks, as
// [os.MkdirAll] does, and syncs each directory that got a new entry.
func MkdirAll(path string, perm fs.FileMode) error {
	if err := mkdirAll(filepath.Clean(path), perm); err != nil {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	return nil
}

func mkdirAll(path string, perm fs.FileMode) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(path)
	if err := mkdirAll(parent, perm); err != nil {
		return err
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
