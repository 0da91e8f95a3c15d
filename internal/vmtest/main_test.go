//go:build vm

package vmtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/images/build"
)

// The releases every test works with, built once.
var releases struct {
	dir  string       // where they are
	good build.Result // version 1.0.0: what is sold
	test build.Result // version 1.1.0: the same with the saboteur in its root

	mu    sync.Mutex
	image string // guarded by mu; disk of a box that has confirmed 1.0.0 in slot A, at rest
}

// repository is the root of the source, seen from this package.
const repository = "../.."

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "croft-vmtest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	releases.dir = dir
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if err := buildReleases(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "vmtest: build the releases:", err)
		return 1
	}
	return m.Run()
}

// options are those of every build here. The cache is the one of `make image`.
func options(board *boards.Board, version croft.Version, folder string) build.Options {
	return build.Options{
		Board: board, Source: repository, Version: version,
		Out: filepath.Join(releases.dir, folder), Cache: filepath.Join(repository, "build", "cache"),
		Progress: func(step string) { fmt.Printf("vmtest: %s %s: %s\n", folder, version, step) },
	}
}

func buildReleases(ctx context.Context) (err error) {
	board, err := boards.Get("uefi-x86")
	if err != nil {
		return err
	}
	if releases.good, err = build.Build(ctx, options(board, "1.0.0", "good")); err != nil {
		return err
	}
	sabotaged := *board
	sabotaged.Gokrazy = []byte(strings.Replace(string(board.Gokrazy),
		`"github.com/croft-cloud/croft/cmd/croft-agent"`,
		`"github.com/croft-cloud/croft/cmd/croft-agent", "github.com/croft-cloud/croft/internal/rig/faulty/saboteur"`, 1))
	releases.test, err = build.Build(ctx, options(&sabotaged, "1.1.0", "test"))
	return err
}

// uki builds a unified kernel image for the test release's root, with further
// kernel arguments and, if init is not empty, another first program.
func uki(t *testing.T, init string, arguments ...string) string {
	t.Helper()
	board, err := boards.Get("uefi-x86")
	if err != nil {
		t.Fatal(err)
	}
	opts := options(board, "1.1.0", "")
	opts.Out, opts.Init, opts.Arguments = t.TempDir(), init, arguments
	path := filepath.Join(t.TempDir(), "test.efi")
	if err := build.UKI(t.Context(), opts, releases.test.Release, path); err != nil {
		t.Fatal(err)
	}
	return path
}
