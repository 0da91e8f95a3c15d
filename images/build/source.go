package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/images/manifest"
)

// unknown stands for commit and digest of a source tree without history.
const unknown = "unknown"

// source is the state of the tree a release is built from.
type source struct {
	commit string    // all its hex digits, or unknown
	dirty  bool      // the tree differs from the commit
	digest string    // SHA-256 over names, modes and content of its files, or unknown
	at     time.Time // of the commit
}

// readSource looks at the tree in dir. Files git ignores are no source, nor is
// what was made in the folders for the results. Its answer is the same for all
// copies of a tree with its history; the index and the object store of the
// copy are neither believed nor changed.
func readSource(ctx context.Context, dir string, results ...string) (source, error) {
	s := source{commit: unknown, digest: unknown, at: time.Unix(1_700_000_000, 0).UTC()}
	prefix, err := output(ctx, dir, "git", "rev-parse", "--show-prefix")
	if err != nil || strings.TrimSpace(prefix) != "" { // no history, or that of something around it
		return s, nil
	}
	about, err := output(ctx, dir, "git", "-c", "log.showSignature=false", "log", "-1", "--format=%ct %H")
	if err != nil {
		return s, nil // no commit yet
	}
	var seconds int64
	if _, err := fmt.Sscan(about, &seconds, &s.commit); err != nil {
		return s, fmt.Errorf("read the commit %q: %w", about, err)
	}
	s.at = time.Unix(seconds, 0).UTC()

	tmp, err := os.MkdirTemp("", "croft-index-")
	if err != nil {
		return s, fmt.Errorf("make a folder for git's index: %w", err)
	}
	defer os.RemoveAll(tmp)
	git := func(args ...string) (lines []string, err error) {
		cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "core.fsmonitor=false", "-c", "core.splitIndex=false"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_INDEX_FILE="+filepath.Join(tmp, "index"))
		out, err := capture(cmd)
		return strings.FieldsFunc(out, func(r rune) bool { return r == 0 }), err
	}
	others := []string{"ls-files", "-z", "--others", "--exclude-standard", "--", "."}
	for _, folder := range results {
		if rel, err := filepath.Rel(dir, folder); err == nil && filepath.IsLocal(rel) && rel != "." {
			others = append(others, ":(exclude,literal)"+rel)
		}
	}
	var answers [4][]string
	for i, args := range [][]string{
		{"read-tree", "HEAD"},
		{"status", "-z", "--porcelain", "--untracked-files=no"},
		{"ls-files", "-z", "--cached"},
		others,
	} {
		if answers[i], err = git(args...); err != nil {
			return s, fmt.Errorf("compare the source with its commit: %w", err)
		}
	}
	changed, tracked, untracked := answers[1], answers[2], answers[3]
	s.dirty = len(changed)+len(untracked) > 0
	if s.digest, err = treeDigest(dir, slices.Concat(tracked, untracked)); err != nil {
		return s, fmt.Errorf("hash the source: %w", err)
	}
	return s, nil
}

// treeDigest is the SHA-256 over a line for each file that is there, by name:
// its mode as git has it, the SHA-256 of its content and its name.
func treeDigest(dir string, names []string) (string, error) {
	slices.Sort(names)
	sum := sha256.New()
	for _, name := range slices.Compact(names) {
		path := filepath.Join(dir, name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) { // deleted since the commit
			continue
		}
		if err != nil {
			return "", err
		}
		var mode, content string
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return "", err
			}
			of := sha256.Sum256([]byte(to))
			mode, content = "120000", hex.EncodeToString(of[:])
		case info.Mode().IsRegular():
			if content, _, err = fileDigest(path); err != nil {
				return "", err
			}
			mode = "100644"
			if info.Mode()&0o100 != 0 {
				mode = "100755"
			}
		default: // a repository within this one
			mode, content = "160000", unknown
		}
		_, _ = fmt.Fprintf(sum, "%s %s %s\x00", mode, content, name)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// version is the release's name unless a person chose one. Its length is at
// most slot.MaxVersion.
func (s source) version() croft.Version {
	v := "0.1.0-" + s.commit[:min(8, len(s.commit))]
	if s.dirty {
		v += ".d"
	}
	return croft.Version(v)
}

func (s source) input() manifest.Input {
	in := manifest.Input{Kind: "source", Name: "github.com/croft-cloud/croft", Version: s.commit, SHA256: s.digest}
	if s.dirty {
		in.Version += "-dirty"
	}
	return in
}
