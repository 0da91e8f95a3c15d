// Package manifest describes a release: what it contains and what it was made
// of, each with its digest.
//
// The file is JSON with a fixed order of keys and lists, two spaces of indent
// and a final newline, so that equal releases give equal bytes; [Parse] refuses
// any other spelling. Version 1 of the format, 2026-11-20: first.
package manifest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/croft-cloud/croft"
)

// Format is the version of the file format this package writes.
const Format = 1

// Manifest is one release for one board.
type Manifest struct {
	Format    int           `json:"format"`
	Board     string        `json:"board"`
	Version   croft.Version `json:"version"`
	Built     time.Time     `json:"built"` // time of the source commit, UTC; the clock of a box is never before it
	Kernel    string        `json:"kernel"`
	Root      Root          `json:"root"`
	Artifacts []Artifact    `json:"artifacts"` // by name
	Inputs    []Input       `json:"inputs"`    // by kind and name
}

// Root identifies the verified root.
type Root struct {
	Hash string `json:"hash"`       // dm-verity root hash, hex
	Size int64  `json:"size_bytes"` // data before the hash tree
}

// Artifact is one file of the release.
type Artifact struct {
	Name   string `json:"name"`
	Size   int64  `json:"size_bytes"`
	SHA256 string `json:"sha256"` // hex
}

// Input is one thing the release was made of.
type Input struct {
	Kind    string `json:"kind"` // deb, go-module, program or file: in the release; tool: made it; source: the tree all of it is from
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	SHA256  string `json:"sha256"` // of the file; for a Go module its go.sum hash ("h1:…"); for a source of unknown version "unknown"
}

// Encode returns the canonical bytes.
func (m Manifest) Encode() ([]byte, error) {
	m.Format = Format
	m.Built = m.Built.UTC().Truncate(time.Second)
	m.Artifacts = append([]Artifact{}, m.Artifacts...) // an empty list is [], never null
	slices.SortFunc(m.Artifacts, func(a, b Artifact) int { return strings.Compare(a.Name, b.Name) })
	m.Inputs = append([]Input{}, m.Inputs...)
	slices.SortFunc(m.Inputs, func(a, b Input) int { return strings.Compare(a.key(), b.key()) })
	if err := m.check(); err != nil {
		return nil, err
	}
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(raw, '\n'), nil
}

// Parse reads a manifest. It accepts exactly what [Manifest.Encode] returns.
func Parse(raw []byte) (Manifest, error) {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	if head.Format != Format { // said before anything about keys a newer format may have
		return Manifest{}, fmt.Errorf("manifest has format %d, this program knows %d", head.Format, Format)
	}
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	canonical, err := m.Encode()
	if err != nil {
		return Manifest{}, err
	}
	if !bytes.Equal(raw, canonical) {
		return Manifest{}, errors.New("read manifest: it is not spelled as croft spells it: order, spaces, a key twice or changed by hand")
	}
	return m, nil
}

var boardForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

func (m Manifest) check() error {
	if !boardForm.MatchString(m.Board) {
		return fmt.Errorf("manifest: board %q: want 1 to 32 of a-z, digits and '-'", m.Board)
	}
	if _, err := croft.ParseVersion(string(m.Version)); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if year := m.Built.Year(); m.Built.Unix() <= 0 || year > 9999 {
		return fmt.Errorf("manifest: built in the year %d", year)
	}
	if !printable(m.Kernel) {
		return fmt.Errorf("manifest: kernel %q is not a name", m.Kernel)
	}
	if err := checkDigest(m.Root.Hash); err != nil {
		return fmt.Errorf("manifest: root hash: %w", err)
	}
	if m.Root.Size <= 0 || m.Root.Size%blockSize != 0 {
		return fmt.Errorf("manifest: root of %d bytes: want a positive multiple of %d", m.Root.Size, blockSize)
	}
	for i, a := range m.Artifacts {
		if !printable(a.Name) || strings.ContainsAny(a.Name, `/\`) || strings.HasPrefix(a.Name, ".") {
			return fmt.Errorf("manifest: artifact %q: not the name of a file", a.Name)
		}
		if a.Size < 0 {
			return fmt.Errorf("manifest: artifact %q: %d bytes", a.Name, a.Size)
		}
		if err := checkDigest(a.SHA256); err != nil {
			return fmt.Errorf("manifest: artifact %q: %w", a.Name, err)
		}
		if i > 0 && m.Artifacts[i-1].Name == a.Name {
			return fmt.Errorf("manifest: artifact %q appears twice", a.Name)
		}
	}
	for i, in := range m.Inputs {
		if err := in.check(); err != nil {
			return fmt.Errorf("manifest: input %s %q: %w", in.Kind, in.Name, err)
		}
		if i > 0 && m.Inputs[i-1].key() == in.key() {
			return fmt.Errorf("manifest: input %s %q appears twice", in.Kind, in.Name)
		}
	}
	return nil
}

// blockSize is that of dm-verity (firmware/verity).
const blockSize = 4096

// key is what inputs are sorted by, and what is there once only.
func (in Input) key() string { return in.Kind + "\x00" + in.Name + "\x00" + in.Version }

func (in Input) check() error {
	if !printable(in.Name) || in.Version != "" && !printable(in.Version) {
		return fmt.Errorf("version %q: not a name and a version", in.Version)
	}
	kind := in.Kind
	switch {
	case kind == "source" && in.Version == "unknown" && in.SHA256 == "unknown": // a tree without history
		return nil
	case kind == "tool" && strings.HasPrefix(in.SHA256, "h1:"):
		kind = "go-module"
	}
	switch kind {
	case "go-module":
		if sum, ok := strings.CutPrefix(in.SHA256, "h1:"); !ok || !printable(sum) {
			return fmt.Errorf("digest %q: want one of go.sum, h1:…", in.SHA256)
		}
		return nil
	case "deb", "program", "file", "tool", "source":
		return checkDigest(in.SHA256)
	}
	return errors.New("kind is not deb, go-module, program, file, tool or source")
}

// printable says whether s can be shown as it is, and is not empty.
func printable(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) })
}

func checkDigest(s string) error {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != 32 || s != strings.ToLower(s) {
		return fmt.Errorf("digest %q: want 64 hex digits in lower case", s)
	}
	return nil
}
