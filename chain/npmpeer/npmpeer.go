// Package npmpeer runs @akashnetwork/chain-sdk, the TypeScript client that
// Akash's own console uses, as a test peer that croft's authors did not write.
// Its exact version stands in project/package.json.
//
// It needs node (18 or newer) and npm, and on its first run npm's registry:
// what the lock file names is installed once, into the user's cache.
package npmpeer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
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
	dir, err := Install(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", append([]string{script}, args...)...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run node %s: %v\n%s", script, err, &stderr)
	}
	return out
}

// Install puts the project and its packages into the user's cache, in a folder
// named after its content, and returns the folder. Run does it too: it is for
// programs that later are where no network is.
func Install(ctx context.Context) (string, error) {
	dir, err := install(ctx)
	if err != nil {
		return "", fmt.Errorf("install the TypeScript client: %w", err)
	}
	return dir, nil
}

func install(ctx context.Context) (string, error) {
	files, err := fs.Sub(project, "project")
	if err != nil {
		return "", err
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
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(cache, "croft", "npm")
	dir := filepath.Join(parent, hex.EncodeToString(sum.Sum(nil))[:16])
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(parent, "install-") // it is renamed in the end: it must lie on the same disk
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh) // nothing is there once it has its name
	if err := os.CopyFS(fresh, files); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "npm", "ci")
	cmd.Dir = fresh
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci (it needs npm and its registry): %w\n%s", err, out)
	}
	if err := os.Rename(fresh, dir); err != nil {
		if _, there := os.Stat(dir); there != nil { // else another test was faster
			return "", err
		}
	}
	return dir, nil
}

// LeaseConfig says to [Lease] where the world is, and as whom.
type LeaseConfig struct {
	RPC    string `json:"rpc"`    // URL of the chain
	GRPC   string `json:"grpc"`   // likewise, http://
	TLS    string `json:"tls"`    // host:port where gateways of providers are reached, whatever their host
	HTTP   string `json:"http"`   // host:port where workloads are, likewise
	Tenant string `json:"tenant"` // mnemonic
	SDL    string `json:"sdl"`    // file
	DSeq   uint64 `json:"dseq"`   // that the tenant has not used
}

// Deal is what became of a lease.
type Deal struct {
	Provider       string // whose bid was taken
	Manifest       int    // status of the answer to the manifest
	BeyondTheToken int    // status of the answer to what the token does not allow
	Services       map[string]struct {
		Available, Total int
		URIs             []string
	}
	Page string // of the first host
}

// Lease leads a deployment through its life with the real client, at a provider
// that runs: it takes the first bid, sends the manifest to the gateway with a
// token, reads the status until all services answer, asks for a page, and closes.
func Lease(t testing.TB, cfg LeaseConfig) Deal {
	t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var deal Deal
	if err := json.Unmarshal(Run(t, "lease.mjs", string(text)), &deal); err != nil {
		t.Fatal(err)
	}
	return deal
}
