package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"
)

// file is the part of *os.File that a log needs.
type file interface {
	io.Writer
	io.ReaderAt
	io.Closer
	Truncate(size int64) error
	Stat() (os.FileInfo, error)
}

// openFile opens a log for appending, and refuses what is not a file of its own:
// the folder is on a tenant's disk.
func openFile(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// full tells that err will go away when somebody frees room.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// rotation is the log: the file that grows and the older ones beside it.
type rotation struct {
	cfg    config
	opener func(path string) (file, error)
	file   file  // nil: could not be opened, the next write tries again
	size   int64 // of file
	lost   int   // records not written since the last that was
	cause  error // why
}

func newRotation(cfg config, opener func(string) (file, error)) *rotation {
	return &rotation{cfg: cfg, opener: opener}
}

// write appends data, whole records and nothing else, after rotating if they do
// not fit. What cannot be written is counted and dropped.
func (r *rotation) write(data []byte, records int, now time.Time) {
	if r.lost > 0 {
		note := fmt.Sprintf("%d lines of output were lost: %v", r.lost, r.cause)
		data = append(encode(nil, record{Time: now, Stream: "stderr", Text: note, Lost: r.lost}), data...)
	}
	if err := r.append(data); err != nil {
		r.lost, r.cause = r.lost+records, root(err)
		return
	}
	r.lost, r.cause = 0, nil
}

// root is the innermost error: without the path, which is none of the tenant's
// business.
func root(err error) error {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number
	}
	return errors.New("the log file cannot be written")
}

func (r *rotation) append(data []byte) error {
	if err := r.open(); err != nil {
		return err
	}
	if r.size > 0 && r.size+int64(len(data)) > r.cfg.max {
		if err := r.rotate(); err != nil {
			return err
		}
		if err := r.open(); err != nil {
			return err
		}
	}
	n, err := r.file.Write(data)
	if err == nil {
		r.size += int64(n)
		return nil
	}
	// A part of a record may be on disk; no reader shall see it.
	if cutErr := r.file.Truncate(r.size); cutErr != nil {
		r.close() // open looks for the torn line again
	}
	return err
}

// rotate moves each file one place on and forgets the last.
func (r *rotation) rotate() error {
	r.close()
	if r.cfg.keep == 0 {
		return os.Remove(r.cfg.path)
	}
	for i := r.cfg.keep - 1; i >= 0; i-- {
		if err := os.Rename(r.name(i), r.name(i+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// name is the i-th older file; 0 is the one that grows.
func (r *rotation) name(i int) string {
	if i == 0 {
		return r.cfg.path
	}
	return r.cfg.path + "." + strconv.Itoa(i)
}

// open opens the file that grows, unless it is open, and cuts off a line that a
// kill left torn.
func (r *rotation) open() error {
	if r.file != nil {
		return nil
	}
	f, err := r.opener(r.cfg.path)
	if err != nil {
		return err
	}
	size, err := mend(f)
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.size = f, size
	return nil
}

func (r *rotation) close() {
	if r.file != nil {
		r.file.Close() // nothing to do about an error: all was handed to the kernel
		r.file = nil
	}
}

// mend cuts f after its last newline and returns its size.
func mend(f file) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", info.Name())
	}
	size := info.Size()
	window := make([]byte, chunkSize)
	for end := size; end > 0; {
		start := max(0, end-int64(len(window)))
		part := window[:end-start]
		if _, err := f.ReadAt(part, start); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			end = start + int64(i) + 1
			if end == size {
				return size, nil
			}
			return end, f.Truncate(end)
		}
		end = start
	}
	if size == 0 {
		return 0, nil
	}
	return 0, f.Truncate(0)
}
