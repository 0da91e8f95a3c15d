package bundle

import (
	"archive/zip"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/croft-cloud/croft"
)

// What a bundle may have.
const (
	maxEntries  = 200
	maxUnpacked = 64 << 20 // bytes of all entries together
	maxName     = 255      // bytes
	maskedName  = "MASKED.txt"
)

func invalid(format string, args ...any) error {
	return &croft.Error{
		Kind: croft.KindInvalid, Err: fmt.Errorf("the upload is no good bundle: "+format, args...), Remedy: "collect the bundle again",
	}
}

// inspect holds an upload against the rules, and counts its entries. It unpacks
// all of it: the sizes that a zip file states may be lies.
func inspect(file io.ReaderAt, size int64) (entries int, err error) {
	archive, err := zip.NewReader(file, size)
	if err != nil {
		return 0, invalid("%w", err)
	}
	if n := len(archive.File); n == 0 || n > maxEntries {
		return 0, invalid("it has %d entries: want 1 to %d", n, maxEntries)
	}
	left := uint64(maxUnpacked)
	seen := map[string]bool{}
	for _, f := range archive.File {
		if err := checkEntry(f); err != nil {
			return 0, err
		}
		if seen[f.Name] {
			return 0, invalid("entry %q is in it twice", f.Name)
		}
		seen[f.Name] = true
		if f.UncompressedSize64 > left {
			return 0, invalid("it has more than %d bytes unpacked", maxUnpacked)
		}
		left -= f.UncompressedSize64
		if err := unpack(io.Discard, f); err != nil {
			return 0, err
		}
	}
	return len(archive.File), nil
}

func checkEntry(f *zip.File) error {
	name := f.Name
	folder := strings.HasSuffix(name, "/")
	switch mode := f.Mode(); {
	case len(name) > maxName, !utf8.ValidString(name), strings.ContainsFunc(name, unicode.IsControl),
		strings.Contains(name, `\`), len(name) > 1 && name[1] == ':', !fs.ValidPath(strings.TrimSuffix(name, "/")), name == "./":
		return invalid("entry %.80q: want a plain path below the bundle", name)
	case strings.EqualFold(name, maskedName):
		return invalid("entry %s: this name is the fleet's", maskedName)
	case folder && !mode.IsDir(), !folder && !mode.IsRegular():
		return invalid("entry %.80q: want a file or a folder", name)
	case folder && f.UncompressedSize64 != 0:
		return invalid("entry %.80q: it is a folder with content", name)
	case f.Flags&1 != 0:
		return invalid("entry %.80q is encrypted", name)
	}
	return nil
}

// unpack writes the content of an entry. The zip reader fails at the first byte
// beyond the size that the entry states, at an end before it, and if the checksum
// is wrong.
func unpack(to io.Writer, f *zip.File) error {
	content, err := f.Open()
	if err != nil {
		return invalid("entry %.80q: %w", f.Name, err)
	}
	defer content.Close()
	if _, err := io.Copy(to, content); err != nil {
		return invalid("entry %.80q: %w", f.Name, err)
	}
	return nil
}
