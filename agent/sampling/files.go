package sampling

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxFile    = 1 << 20 // /proc/stat of 1,000 threads has 200 kB
	maxEntries = 4096    // of a directory
)

// files reads small files below a root. It goes past package os: files of the kernel
// are never waited for by a poller, and one Read opens hundreds.
type files struct {
	root string
	buf  []byte
}

// read returns a file's text.
func (f *files) read(name string) (string, error) {
	fd, err := open(f.root + "/" + name)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if f.buf == nil {
		f.buf = make([]byte, 4096)
	}
	for n := 0; ; {
		if n == len(f.buf) {
			if n >= maxFile {
				return "", fmt.Errorf("file is longer than %d bytes", maxFile)
			}
			f.buf = append(f.buf, make([]byte, n)...)
		}
		got, err := unix.Read(fd, f.buf[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return "", err
		case got == 0:
			return string(f.buf[:n]), nil
		default:
			n += got
		}
	}
}

func open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// absent says whether an error means that the machine has no such reading now, rather
// than that it cannot be read: no such file or device, or in the words with which drivers
// say of an attribute that it does not apply (a link that is down, a radio that is off).
func absent(err error) bool {
	for _, known := range []error{
		unix.ENOENT, unix.ENOTDIR, unix.ENODEV, unix.ENXIO,
		unix.ENODATA, unix.EAGAIN, unix.EINVAL, unix.EOPNOTSUPP,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// required returns a file that every machine has.
func (p *pass) required(name string) (string, bool) {
	text, err := p.read(name)
	if err != nil {
		p.miss("/"+name, err)
	}
	return text, err == nil
}

// optional returns a file that machines may lack.
func (p *pass) optional(name string) (string, bool) {
	text, err := p.read(name)
	if err != nil && !absent(err) {
		p.miss("/"+name, err)
	}
	return text, err == nil
}

// word returns a file of one line that machines may lack.
func (p *pass) word(name string) (string, bool) {
	text, ok := p.optional(name)
	return strings.TrimSpace(text), ok
}

// number returns the number in a file that machines may lack.
func (p *pass) number(name string) (float64, bool) {
	text, ok := p.optional(name)
	if !ok {
		return 0, false
	}
	n, err := parseInt(text)
	if err != nil {
		p.miss("/"+name, err)
	}
	return n, err == nil
}

// list returns the names in a directory that machines may lack, sorted.
func (p *pass) list(dir string) []string {
	entries, err := os.ReadDir(p.root + "/" + dir)
	if err != nil {
		if !absent(err) {
			p.miss("/"+dir, err)
		}
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries[:min(len(entries), maxEntries)] {
		names = append(names, e.Name())
	}
	return names
}

// numbered returns the N of all names prefixN in a directory, in order.
func (p *pass) numbered(dir, prefix string) []int {
	return numbersOf(p.list(dir), prefix, "")
}

// numbersOf returns the N of all prefixNsuffix among names, in order.
func numbersOf(names []string, prefix, suffix string) []int {
	var list []int
	for _, name := range names {
		rest, ok := strings.CutPrefix(name, prefix)
		rest, end := strings.CutSuffix(rest, suffix)
		if n, err := strconv.ParseUint(rest, 10, 16); ok && end && err == nil {
			list = append(list, int(n))
		}
	}
	slices.Sort(list)
	return list
}

func (p *pass) has(name string) bool {
	return unix.Access(p.root+"/"+name, unix.F_OK) == nil
}

// target returns the last name of what a symbolic link points to; nothing if it is none.
func (p *pass) target(name string) string {
	to, err := os.Readlink(p.root + "/" + name)
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// parseInt reads a file of one whole number.
func parseInt(text string) (float64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("number is %.32q", text)
	}
	return float64(n), nil
}

// parseCount reads a number that counts.
func parseCount(word string) (float64, error) {
	n, err := strconv.ParseUint(word, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("count is %.32q", word)
	}
	return float64(n), nil
}

// label reduces what firmware and drivers call a thing to letters, digits and a few signs.
func label(s string) string {
	keep := func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("_.:@#+-", c):
			return c
		}
		return '_'
	}
	s = strings.Map(keep, strings.TrimSpace(s[:min(len(s), 4*maxLabel)]))
	return s[:min(len(s), maxLabel)]
}
