package bundle

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/blob"
)

// readsAtOnce bounds the memory of those made ready at once: about 200 MiB each
// in the worst case.
const readsAtOnce = 2

// Mask says what was hidden in one entry.
type Mask struct {
	Entry string // its name, as it is read out
	What  string // "e-mail address", "private key", …
	Count int
	Left  bool // the entry is no text, and was left out
}

// Reading is a bundle as it is read out: a zip file with masks. The caller
// closes it.
type Reading struct {
	io.ReadSeekCloser

	Info   Info
	Size   int64  // bytes of it; Info.Size is of the upload
	Masked []Mask // what MASKED.txt says; empty: nothing was found, and there is none
}

// Open makes a bundle ready for reading.
func (s *Store) Open(ctx context.Context, id string) (*Reading, error) {
	info, err := s.Info(ctx, id)
	if err != nil {
		return nil, err
	}
	select {
	case s.reads <- struct{}{}:
		defer func() { <-s.reads }()
	case <-ctx.Done():
		return nil, fmt.Errorf("open bundle %s: %w", id, ctx.Err())
	}
	r, err := s.open(ctx, info)
	if err != nil {
		return nil, fmt.Errorf("open bundle %s: %w", id, err)
	}
	return r, nil
}

func (s *Store) open(ctx context.Context, info Info) (_ *Reading, err error) {
	raw, err := s.fetch(ctx, info)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	archive, err := zip.NewReader(raw, info.Size)
	if err != nil {
		return nil, err
	}
	file, err := s.temporary()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	masked, err := rewrite(ctx, file, archive)
	if err != nil {
		return nil, err
	}
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return &Reading{ReadSeekCloser: file, Info: info, Size: size, Masked: masked}, nil
}

// fetch is what the box uploaded, bit for bit.
func (s *Store) fetch(ctx context.Context, info Info) (_ *os.File, err error) {
	body, _, err := s.cfg.Blobs.Get(ctx, folder+info.ID)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, &croft.Error{
			Kind: croft.KindNotFound, Err: errors.New("the content of the bundle is lost"), Remedy: "ask the box for a new one",
		}
	}
	if err != nil {
		return nil, err
	}
	defer body.Close()
	file, err := s.temporary()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(file, sum), io.LimitReader(body, info.Size+1)); err != nil {
		return nil, err
	}
	if hex.EncodeToString(sum.Sum(nil)) != info.Digest {
		return nil, &croft.Error{
			Kind: croft.KindInvalid, Err: errors.New("the content of the bundle is damaged"), Remedy: "ask the box for a new one",
		}
	}
	return file, nil
}

// rewrite copies a bundle and masks what must not be read. Nothing but names,
// times and contents is copied.
func rewrite(ctx context.Context, to io.Writer, from *zip.Reader) ([]Mask, error) {
	out := zip.NewWriter(to)
	var masked []Mask
	for n, f := range from.File {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		header := &zip.FileHeader{Name: f.Name, Modified: f.Modified, Method: zip.Deflate}
		if spans := scan([]byte(f.Name)); len(spans) > 0 {
			header.Name = fmt.Sprintf("masked-name-%d", n+1)
			if strings.HasSuffix(f.Name, "/") {
				header.Name += "/"
			}
			masked = append(masked, count(header.Name, spans, false)...)
		}
		var content bytes.Buffer
		if err := unpack(&content, f); err != nil {
			return nil, err
		}
		text, spans := content.Bytes(), scan(content.Bytes())
		leave := len(spans) > 0 && !isText(text)
		masked = append(masked, count(header.Name, spans, leave)...)
		if leave {
			continue
		}
		if err := add(out, header, mask(text, spans)); err != nil {
			return nil, err
		}
	}
	if len(masked) > 0 {
		if err := add(out, &zip.FileHeader{Name: maskedName, Method: zip.Deflate}, describe(masked)); err != nil {
			return nil, err
		}
	}
	return masked, out.Close()
}

func add(out *zip.Writer, header *zip.FileHeader, content []byte) error {
	w, err := out.CreateHeader(header)
	if err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}

// count sums up the spans of an entry.
func count(entry string, spans []span, left bool) []Mask {
	of := map[string]int{}
	for _, s := range spans {
		of[s.what]++
	}
	var masked []Mask
	for _, what := range slices.Sorted(maps.Keys(of)) {
		masked = append(masked, Mask{Entry: entry, What: what, Count: of[what], Left: left})
	}
	return masked
}

func describe(masked []Mask) []byte {
	var text bytes.Buffer
	text.WriteString("The fleet hid these things when it gave out this bundle. The box should not have\nput them into it: please tell those who make the box.\n\n")
	for _, m := range masked {
		fmt.Fprintf(&text, "%s: %s, %d×", m.Entry, m.What, m.Count)
		if m.Left {
			text.WriteString(" (not a text: left out as a whole)")
		}
		text.WriteByte('\n')
	}
	return text.Bytes()
}
