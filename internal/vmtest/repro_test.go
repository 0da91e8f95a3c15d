//go:build vm

package vmtest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/pe"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTwoBuildsOfACommitAreTheSame builds the release twice, from checkouts in
// two places and with all that may differ between two builders: folders, umask
// and the modes it gave the files, time zone, language, times of the files. The
// machine is the same, and so are its Go and Debian packages: they are inputs,
// recorded in the manifest.
func TestTwoBuildsOfACommitAreTheSame(t *testing.T) {
	builders := []*builder{
		{umask: "022", zone: "UTC", language: "C", folder: "a"},
		{umask: "077", zone: "Pacific/Chatham", language: "C.UTF-8", folder: "another place/with a longer name", cold: true},
	}
	for _, b := range builders {
		b.dir = filepath.Join(t.TempDir(), b.folder)
		b.checkOut(t)
	}
	builders[1].disguise(t)
	for _, b := range builders {
		b.build(t)
	}
	for _, suffix := range []string{".root", ".efi", ".img", ".sbom.json", ".manifest.json"} {
		t.Run(suffix, func(t *testing.T) {
			one, two := builders[0].artifact(suffix), builders[1].artifact(suffix)
			if digest(t, one) == digest(t, two) {
				return
			}
			t.Errorf("the two builds differ: %s", difference(t, suffix, one, two))
		})
	}
}

// builder is one way to build.
type builder struct {
	umask, zone, language string
	folder                string
	cold                  bool
	dir                   string // holds source, out, caches and tmp
}

// checkOut makes a copy of the working tree with the history it has.
func (b *builder) checkOut(t *testing.T) {
	for _, name := range []string{"out", "cache", "tmp"} {
		if err := os.MkdirAll(filepath.Join(b.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	from, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(b.dir, "source")
	must(t, "git", "clone", "-q", "--no-checkout", from, source)
	// The tree as it is, changes not yet committed among it.
	cmd := exec.CommandContext(t.Context(), "bash", "-c", `git ls-files -z --cached --others --exclude-standard --deduplicate |
		while IFS= read -r -d "" f; do [ ! -e "$f" ] || printf '%s\0' "$f"; done | cpio -0 -pdm --quiet "$1"`, "copy", source)
	cmd.Dir = from
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copy the tree: %v\n%s", err, out)
	}
	// The kernel package is downloaded once; each builder unpacks it anew.
	debs, _ := filepath.Glob(filepath.Join(from, "build/cache/*.deb"))
	for _, deb := range debs {
		must(t, "cp", deb, filepath.Join(b.dir, "cache"))
	}
}

// disguise changes times and modes of the source.
func (b *builder) disguise(t *testing.T) {
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	err := filepath.WalkDir(filepath.Join(b.dir, "source"), func(path string, d os.DirEntry, err error) error {
		if err != nil || strings.Contains(path, "/.git/") || d.Type()&os.ModeSymlink != 0 {
			return err
		}
		info, err := d.Info()
		if err == nil {
			err = os.Chmod(path, info.Mode().Perm()&0o700)
		}
		if err == nil {
			err = os.Chtimes(path, old, old)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// build builds the release with croft's own command, in a process that lives
// under the builder's settings.
func (b *builder) build(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "umask "+b.umask+` && exec go run ./cmd/croft image build --out "$1/out" --cache "$1/cache"`, "build", b.dir)
	cmd.Dir = filepath.Join(b.dir, "source")
	cmd.Env = append(os.Environ(), "TZ="+b.zone, "LC_ALL="+b.language, "TMPDIR="+filepath.Join(b.dir, "tmp"), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if b.cold { // compiles everything anew
		cmd.Env = append(cmd.Env, "GOCACHE="+filepath.Join(b.dir, "gocache"))
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build in %s: %v\n%s", b.folder, err, out)
	}
}

func (b *builder) artifact(suffix string) string {
	return filepath.Join(b.dir, "out", "croft-uefi-x86"+suffix)
}

func digest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// difference says in which part two artifacts differ.
func difference(t *testing.T, suffix, one, two string) string {
	at := firstDifference(t, one, two)
	where := fmt.Sprintf("first at byte %d", at)
	switch suffix {
	case ".efi":
		return where + ", in the sections " + strings.Join(differentSections(t, one, two), ", ")
	case ".img":
		part := "the partition table"
		for _, p := range []struct {
			begins int64
			name   string
		}{{espAt, "the EFI partition"}, {espAt + espSize, "root A"}, {rootBAt, "root B"}, {permAt, "/perm or what follows it"}} {
			if at >= p.begins {
				part = p.name
			}
		}
		return where + ", in " + part
	case ".root":
		return where + ", in these files:\n" + diff(t, listRoot(t, one), listRoot(t, two))
	}
	return where + ":\n" + diff(t, one, two)
}

func firstDifference(t *testing.T, one, two string) int64 {
	var readers [2]io.Reader
	for i, path := range []string{one, two} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		readers[i] = f
	}
	var blocks [2][64 << 10]byte
	for at := int64(0); ; {
		n, err := io.ReadFull(readers[0], blocks[0][:])
		m, _ := io.ReadFull(readers[1], blocks[1][:])
		for i := range min(n, m) {
			if blocks[0][i] != blocks[1][i] {
				return at + int64(i)
			}
		}
		at += int64(min(n, m))
		if err != nil || n != m {
			return at // one is longer
		}
	}
}

func differentSections(t *testing.T, one, two string) []string {
	var sections [2]map[string][]byte
	for i, path := range []string{one, two} {
		f, err := pe.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		sections[i] = map[string][]byte{}
		for _, s := range f.Sections {
			if sections[i][s.Name], err = s.Data(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var names []string
	for name, data := range sections[0] {
		if !bytes.Equal(data, sections[1][name]) {
			names = append(names, name)
		}
	}
	if names == nil {
		return []string{"the headers"}
	}
	return names
}

// listRoot writes names, modes, owners, times and digests of a root's files to
// a file.
func listRoot(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	tree, list := filepath.Join(dir, "tree"), filepath.Join(dir, "list")
	must(t, "sh", "-c", `unsquashfs -lln "$1" >"$3" && unsquashfs -q -n -d "$2" "$1" >/dev/null && cd "$2" && find . -type f -exec sha256sum {} + | sort -k 2 >>"$3"`, "list", root, tree, list)
	return list
}

func diff(t *testing.T, one, two string) string {
	t.Helper()
	out, _ := exec.CommandContext(t.Context(), "diff", one, two).Output() // 1: they differ
	return cmp.Or(string(out[:min(len(out), 4000)]), "the same list: the order or the padding differs")
}
