package rig

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
)

// base is what an overlay remembers of the image below it. An overlay on
// another image is nonsense to the guest.
type base struct {
	Path     string    `json:"path"`
	Size     int64     `json:"size_bytes"`
	Modified time.Time `json:"modified"`
}

// prepare finds or makes the file behind a disk. What is kept in dir begins
// with name.
func (d *Disk) prepare(dir, name string) (image, error) {
	if d.Path == "" {
		path := filepath.Join(dir, name+".img")
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return image{}, err
		}
		f.Close()
		return image{path, "raw"}, grow(path, d.Size)
	}

	path, err := filepath.Abs(d.Path)
	if err != nil {
		return image{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return image{}, &croft.Error{Kind: croft.KindNotFound, Err: err}
	}
	if !d.Overlay {
		return image{path, "raw"}, grow(path, d.Size)
	}
	return d.prepareOverlay(base{path, info.Size(), info.ModTime()}, filepath.Join(dir, name))
}

func (d *Disk) prepareOverlay(b base, prefix string) (image, error) {
	program, err := lookPath("qemu-img")
	if err != nil {
		return image{}, err
	}
	if b.Size%sectorSize != 0 || b.Size == 0 {
		return image{}, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("image %s has %d bytes, which is no number of whole sectors", b.Path, b.Size)}
	}
	overlay, stamp := prefix+".qcow2", prefix+".base"
	img := image{overlay, "qcow2"}
	size := max(d.Size, b.Size)
	if d.Size != 0 && d.Size < b.Size {
		return image{}, tooSmall(d.Size, b.Path, b.Size)
	}

	switch have, err := qcow2Size(overlay); {
	case errors.Is(err, fs.ErrNotExist):
		// The stamp goes first: an overlay without one is never seen.
		text, err := json.Marshal(b)
		if err != nil {
			return image{}, err
		}
		if err := os.WriteFile(stamp, text, 0o644); err != nil {
			return image{}, err
		}
		draft := overlay + ".new"
		if err := qemuImg(program, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", b.Path, draft, strconv.FormatInt(size, 10)); err != nil {
			return image{}, err
		}
		return img, os.Rename(draft, overlay)
	case err != nil:
		return image{}, err
	default:
		var was base
		text, err := os.ReadFile(stamp)
		if err != nil {
			return image{}, err
		}
		if err := json.Unmarshal(text, &was); err != nil {
			return image{}, fmt.Errorf("read %s: %w", stamp, err)
		}
		if was.Path != b.Path || was.Size != b.Size || !was.Modified.Equal(b.Modified) {
			return image{}, &croft.Error{
				Kind:   croft.KindRefused,
				Err:    fmt.Errorf("the disk kept in %s lies on another image than %s is now", filepath.Dir(overlay), b.Path),
				Remedy: "remove that directory to start afresh, or name another",
			}
		}
		if d.Size > have {
			return img, qemuImg(program, "resize", "-q", "-f", "qcow2", overlay, strconv.FormatInt(size, 10))
		}
		if d.Size != 0 && d.Size < have {
			return image{}, tooSmall(d.Size, overlay, have)
		}
		return img, nil
	}
}

func tooSmall(size int64, path string, have int64) error {
	return &croft.Error{
		Kind:   croft.KindUsage,
		Err:    fmt.Errorf("a disk of %d bytes cannot hold %s of %d bytes", size, path, have),
		Remedy: "choose a larger disk",
	}
}

// grow makes the file at path size bytes long. Zero leaves it.
func grow(path string, size int64) error {
	if size == 0 {
		return nil
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.Size() > size:
		return tooSmall(size, path, info.Size())
	case info.Size() == size:
		return nil
	}
	return os.Truncate(path, size)
}

// qcow2Size reads from a qcow2 file how large the disk in it is.
func qcow2Size(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var header [32]byte
	if _, err := io.ReadFull(f, header[:]); err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	if !strings.HasPrefix(string(header[:]), "QFI\xfb") {
		return 0, fmt.Errorf("read %s: not a qcow2 file", path)
	}
	return int64(binary.BigEndian.Uint64(header[24:])), nil
}

func qemuImg(program string, args ...string) error {
	cmd := exec.Command(program, args...)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run qemu-img %s: %w: %s", args[0], err, strings.TrimSpace(string(said)))
	}
	return nil
}

// copyOnce copies from to the file to unless that exists.
func copyOnce(to, from string) error {
	if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) {
		return missing(fmt.Errorf("UEFI firmware: %w", err))
	} else if err != nil {
		return err
	}
	if err := os.WriteFile(to+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}
