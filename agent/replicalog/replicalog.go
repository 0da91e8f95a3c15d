// Package replicalog reads what a replica has said: the files that croft-rotlog
// writes, newest without a number, older ones with .1, .2 and so on, one JSON
// record a line.
//
//	for line, err := range replicalog.Read(ctx, container.Log, 100, true) { … }
//
// It does not write or rotate: croft-rotlog does, told how by [URI]. It knows
// nothing of containerd, so a log can be read while the runtime is away.
//
// It promises: whatever stands in the files, memory is bounded by the lines
// asked for, and no pipe or link is opened, for the files are on a tenant's
// disk; a follower steps over rotations without telling a line twice; what a
// file holds that is no record is shown as it is.
package replicalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// recordBytes bounds a record of a log. croft-rotlog puts 16 KiB of text into
	// one, and JSON makes six bytes of some characters; longer ones are not its.
	recordBytes = 128 << 10
	// pollEvery is how often a followed log is looked at. A file system's own
	// notice would need a watch per reader, and readers are many.
	pollEvery = 250 * time.Millisecond
	// readBytes is what is read from a file at a time.
	readBytes = 32 << 10
)

// FilesMax is how many files croft-rotlog can keep, and one. Their numbers may
// have gaps.
const FilesMax = 100

// Line is one line of a replica's output.
type Line struct {
	At      time.Time // when it was read, device clock, UTC
	Stderr  bool      // else stdout
	Text    string    // without its end of line; at most 16 KiB
	Partial bool      // it goes on in the stream's next Line
}

// URI tells containerd's shim which program takes a replica's output, and how.
func URI(rotlog, path string, size int64, keep int) string {
	query := url.Values{"path": {path}, "max": {strconv.FormatInt(size, 10)}, "keep": {strconv.Itoa(keep)}}
	return (&url.URL{Scheme: "binary-v2", Path: rotlog, RawQuery: query.Encode()}).String()
}

// parseLine reads a record as croft-rotlog writes it. What is none is shown as
// it is: the file is on a tenant's disk.
func parseLine(raw []byte) Line {
	var r struct {
		Time    time.Time `json:"t"`
		Stream  string    `json:"s"`
		Text    string    `json:"m"`
		Partial bool      `json:"p"`
	}
	if json.Unmarshal(raw, &r) != nil {
		return Line{Text: strings.ToValidUTF8(string(raw), "\ufffd")}
	}
	return Line{At: r.Time, Stderr: r.Stream == "stderr", Text: r.Text, Partial: r.Partial}
}

// Read yields what croft-rotlog wrote for a replica: path is lease.Container's
// Log. It yields the last lines, all that there are if tail is below 0, and,
// with follow, goes on with new ones until ctx ends; it then stops at once. Old
// lines go when the log is rotated; a follower that cannot keep up misses some.
// A log that is not there is empty. An error is the last thing it yields.
func Read(ctx context.Context, path string, tail int, follow bool) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		r := logReader{path: path}
		defer r.close()
		give := func(l []byte) bool { return ctx.Err() == nil && yield(parseLine(l), nil) }
		if err := r.openAll(); err != nil {
			yield(Line{}, err)
			return
		}
		if !r.past(tail, follow, give) || !follow {
			if r.err != nil && ctx.Err() == nil {
				yield(Line{}, r.err)
			}
			return
		}
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if !r.more(give) {
				if r.err != nil && ctx.Err() == nil {
					yield(Line{}, r.err)
				}
				return
			}
		}
	}
}

// logReader reads a log across its files: path is the newest, path.1 the one
// before, and so on.
type logReader struct {
	path  string
	files []*os.File // oldest first; the last one is read on
	rest  []byte     // of a line whose end is not written yet
	err   error
}

func (r *logReader) close() {
	for _, file := range r.files {
		file.Close()
	}
}

func rotated(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// openAll opens every file, the newest first: a rotation meanwhile makes one
// appear twice, and none be missed but the oldest.
func (r *logReader) openAll() error {
	for n := range FilesMax {
		file, err := openLog(rotated(r.path, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if len(r.files) > 0 && same(file, r.files[0]) {
			file.Close()
			continue
		}
		r.files = append([]*os.File{file}, r.files...)
	}
	return nil
}

// openLog refuses what is no regular file: a pipe would hold the reader, and
// some devices act when they are opened.
func openLog(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("log %s is no regular file", path)
	}
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // it may have been replaced
}

func same(a, b *os.File) bool {
	x, err := a.Stat()
	if err != nil {
		return false
	}
	y, err := b.Stat()
	return err == nil && os.SameFile(x, y)
}

// past yields the last lines of what is there. It returns false when nothing
// more may be yielded.
func (r *logReader) past(tail int, follow bool, give func([]byte) bool) bool {
	var ring [][]byte // the last lines; no more than the files hold
	next := 0
	take := give
	if tail >= 0 {
		take = func(line []byte) bool {
			switch {
			case tail == 0:
			case len(ring) < tail:
				ring = append(ring, bytes.Clone(line))
			default:
				ring[next] = bytes.Clone(line)
				next = (next + 1) % tail
			}
			return true
		}
	}
	for i, file := range r.files {
		if !r.drain(file, take) {
			return false
		}
		if last := i == len(r.files)-1; !last || !follow {
			if !r.flush(take) {
				return false
			}
		}
	}
	for i := range ring {
		if !give(ring[(next+i)%len(ring)]) {
			return false
		}
	}
	if n := len(r.files); n > 1 {
		for _, file := range r.files[:n-1] {
			file.Close()
		}
		r.files = r.files[n-1:]
	}
	return true
}

// drain yields the whole lines up to the present end of a file.
func (r *logReader) drain(file *os.File, give func([]byte) bool) bool {
	buffer := make([]byte, readBytes)
	for {
		n, err := file.Read(buffer)
		for part := buffer[:n]; len(part) > 0; {
			end := bytes.IndexByte(part, '\n')
			piece := part
			if end >= 0 {
				piece = part[:end]
			}
			room := recordBytes - len(r.rest)
			if len(piece) > room {
				r.rest = append(r.rest, piece[:room]...)
				part = part[room:]
				if !r.flush(give) {
					return false
				}
				continue
			}
			r.rest = append(r.rest, piece...)
			if end < 0 {
				break
			}
			part = part[end+1:]
			line := r.rest
			r.rest = r.rest[:0]
			if !give(line) {
				return false
			}
		}
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			r.err = fmt.Errorf("read log: %w", err)
			return false
		}
	}
}

// flush yields a line without its end.
func (r *logReader) flush(give func([]byte) bool) bool {
	if len(r.rest) == 0 {
		return true
	}
	line := r.rest
	r.rest = r.rest[:0]
	return give(line)
}

// more yields what was written since, and steps over rotations.
func (r *logReader) more(give func([]byte) bool) bool {
	for {
		if len(r.files) == 0 {
			if err := r.openAll(); err != nil {
				r.err = err
				return false
			}
			if len(r.files) == 0 {
				return true
			}
			return r.past(-1, true, give)
		}
		current := r.files[0]
		at := r.where(current)
		// The writer leaves a file before it renames it, so what is read now of a
		// rotated one is all that there will ever be.
		if !r.drain(current, give) {
			return false
		}
		if at == 0 {
			return true
		}
		next, err := r.after(at)
		if errors.Is(err, fs.ErrNotExist) {
			return true // between two files
		}
		if err != nil {
			r.err = err
			return false
		}
		if same(next, current) { // rotated just now
			next.Close()
			continue
		}
		if !r.flush(give) {
			next.Close()
			return false
		}
		current.Close()
		r.files[0] = next
	}
}

// where is which of the files this one is now: 0 for the newest. One that is
// gone counts as older than the oldest.
func (r *logReader) where(file *os.File) int {
	mine, err := file.Stat()
	if err != nil {
		return 0
	}
	for n := range FilesMax {
		if info, err := os.Lstat(rotated(r.path, n)); err == nil && os.SameFile(info, mine) {
			return n
		}
	}
	return FilesMax
}

// after opens the file that was begun after the n-th.
func (r *logReader) after(n int) (*os.File, error) {
	for n--; n >= 0; n-- {
		file, err := openLog(rotated(r.path, n))
		if !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	return nil, fs.ErrNotExist
}
