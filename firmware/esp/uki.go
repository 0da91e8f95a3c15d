package esp

import (
	"bytes"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/croft-cloud/croft/firmware/slot"
)

// sections is what a unified kernel image must have. Without .osrel the loader
// does not list it.
var sections = []string{".osrel", ".cmdline", ".linux", ".initrd"}

// CheckUKI says whether an entry's unified kernel image is whole: all sections
// a boot needs are there, not empty, and readable to their last byte. It does
// not know what the content should be. The error, if any, is that of asking, not
// of the image.
func (v *Volume) CheckUKI(e slot.Entry) (slot.UKIState, error) {
	files, err := v.Files()
	if err != nil {
		return "", fmt.Errorf("check boot file: %w", err)
	}
	i := slices.IndexFunc(files, func(f File) bool { return f.Name == e.Name() })
	if i < 0 {
		return slot.UKIMissing, nil
	}
	content, err := files[i].content()
	switch {
	case errors.Is(err, errChain):
		return slot.UKITruncated, nil
	case err != nil:
		return "", fmt.Errorf("check boot file: %w", err)
	case checkUKI(content) != nil:
		return slot.UKITruncated, nil
	}
	return slot.UKIIntact, nil
}

func checkUKI(r io.ReaderAt) error {
	image, err := pe.NewFile(r)
	if err != nil {
		return fmt.Errorf("read PE header: %w", err)
	}
	for _, name := range sections {
		s := image.Section(name)
		if s == nil || s.Size == 0 || s.VirtualSize == 0 {
			return fmt.Errorf("section %s is missing", name)
		}
	}
	for _, s := range image.Sections {
		if s.Size == 0 || s.Offset == 0 {
			continue // takes no room in the file
		}
		if n, _ := r.ReadAt(make([]byte, 1), int64(s.Offset)+int64(s.Size)-1); n != 1 {
			return fmt.Errorf("section %s is cut off", s.Name)
		}
	}
	return nil
}

// Cmdline is the kernel command line of the unified kernel image at path.
func Cmdline(path string) (string, error) {
	image, err := pe.Open(path)
	if err != nil {
		return "", fmt.Errorf("read command line of %s: %w", path, err)
	}
	defer image.Close()
	s := image.Section(".cmdline")
	if s == nil {
		return "", fmt.Errorf("read command line of %s: section .cmdline is missing", path)
	}
	text, err := s.Data()
	if err != nil {
		return "", fmt.Errorf("read command line of %s: %w", path, err)
	}
	if n := int(s.VirtualSize); n < len(text) {
		text = text[:n]
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	return string(bytes.TrimSpace(text)), nil
}
