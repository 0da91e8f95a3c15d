// Package npmpeer runs @akashnetwork/chain-sdk, the TypeScript client that
// Akash's own console uses, as a test peer that croft's authors did not write.
// Its exact version stands in project/package.json.
//
// It needs node (18 or newer) and npm, and on its first run npm's registry:
// what the lock file names is installed once, into the user's cache.
package npmpeer

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

//go:embed project/* project/.npmrc
var project embed.FS

// Run runs a script of the project and returns what it printed. The test fails
// with the script's complaint if it ends otherwise than well.
func Run(t testing.TB, script string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", append([]string{script}, args...)...)
	cmd.Dir = install(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run node %s: %v\n%s", script, err, &stderr)
	}
	return out
}

// install puts the project and its packages into the user's cache, in a folder
// named after its content, and returns the folder.
func install(t testing.TB) string {
	t.Helper()
	files, err := fs.Sub(project, "project")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	err = fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(files, name)
		sum.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	parent := filepath.Join(cache, "croft", "npm")
	dir := filepath.Join(parent, hex.EncodeToString(sum.Sum(nil))[:16])
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.MkdirTemp(parent, "install-") //nolint:usetesting // it is renamed in the end: it must lie on the same disk
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(fresh) }) // nothing is there once it has its name
	if err := os.CopyFS(fresh, files); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "npm", "ci")
	cmd.Dir = fresh
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm ci (it needs npm and its registry): %v\n%s", err, out)
	}
	if err := os.Rename(fresh, dir); err != nil {
		if _, there := os.Stat(dir); there != nil { // else another test was faster
			t.Fatal(err)
		}
	}
	return dir
}
