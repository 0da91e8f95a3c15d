package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/slot"
)

// Known is the content of every unified kernel image that is known to boot.
type Known [][]byte

// Booted says how a partition boots.
type Booted struct {
	Name   string // the file that boots
	Image  int    // its place in Known
	Wasted int    // boots lost before, on files that are not whole
}

// Bootable finds out what systemd-boot would start from a partition, going on
// like a box that is reset by its watchdog: each failed boot of a file takes one
// of its tries. It is an error if that never reaches a known image.
//
// A file counts as one the loader starts if its name ends in .efi and it begins
// like a program; the loader skips others. That is stricter than the loader,
// which also looks for a section .osrel.
func Bootable(state io.ReaderAt, known Known) (Booted, error) {
	v, err := esp.OpenVolume(state)
	if err != nil {
		return Booted{}, err
	}
	files, err := v.Files()
	if err != nil {
		return Booted{}, err
	}
	type candidate struct {
		esp.File
		now   string // its name, with the tries it has used
		image int    // -1: not whole
	}
	var candidates []candidate
	var seen []string
	for _, f := range files {
		seen = append(seen, f.Name)
		lower := strings.ToLower(f.Name)
		if !strings.HasSuffix(lower, ".efi") || strings.HasPrefix(lower, ".") || strings.HasPrefix(lower, "auto-") {
			continue
		}
		if image := known.find(f); image >= 0 || program(f) {
			candidates = append(candidates, candidate{f, f.Name, image})
		}
	}
	for wasted := 0; len(candidates) > 0; wasted++ {
		slices.SortStableFunc(candidates, func(a, b candidate) int { return slot.CompareNames(a.now, b.now) })
		first := &candidates[0]
		if first.image >= 0 {
			return Booted{first.Name, first.image, wasted}, nil
		}
		e, err := slot.ParseName(first.now)
		if err != nil || e.State() != slot.Trial {
			return Booted{}, fmt.Errorf("the loader starts %s again and again, which is not whole (files: %q)", first.Name, seen)
		}
		if e, err = e.Next(slot.Boot); err != nil {
			return Booted{}, err
		}
		first.now = e.Name()
	}
	return Booted{}, fmt.Errorf("no boot file is left (files: %q)", seen)
}

// find is the place of a file's content in k, -1 if it is not there.
func (k Known) find(f esp.File) int {
	return slices.IndexFunc(k, func(content []byte) bool {
		if int64(len(content)) != f.Size {
			return false
		}
		m := &matcher{rest: content}
		_, err := f.WriteTo(m)
		return err == nil && len(m.rest) == 0
	})
}

// program reports whether a file begins with the mark of a program.
func program(f esp.File) bool {
	m := &matcher{rest: []byte("MZ")}
	_, _ = f.WriteTo(m) // what cannot be read cannot be started
	return len(m.rest) == 0
}

var errDiffers = errors.New("content differs")

// matcher is written to as long as it gets what it expects.
type matcher struct{ rest []byte }

func (m *matcher) Write(b []byte) (int, error) {
	n := min(len(b), len(m.rest))
	if !bytes.Equal(b[:n], m.rest[:n]) {
		return 0, errDiffers
	}
	m.rest = m.rest[n:]
	if n < len(b) {
		return n, errDiffers
	}
	return n, nil
}
