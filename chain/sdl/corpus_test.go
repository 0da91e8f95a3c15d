package sdl_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/chain/sdl"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// files are the SDL files of a folder of testdata.
func files(t testing.TB, folder string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join("testdata", folder, "*.yaml"))
	if err != nil || len(all) == 0 {
		t.Fatalf("no files in testdata/%s (%v)", folder, err)
	}
	return all
}

// golden compares got with a golden file, or rewrites that.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; -update rewrites it\ngot:\n%s\nwant:\n%s", name, got, want)
	}
}

// TestCorpus holds each valid file against its golden groups, manifest and
// hash. The files in valid mean the same to the TypeScript client, which the
// integration test asks; those in goonly do not, or it refuses them.
func TestCorpus(t *testing.T) {
	valid := files(t, "valid")
	if len(valid) < 60 {
		t.Errorf("%d files in testdata/valid, want at least 60", len(valid))
	}
	for _, name := range append(valid, files(t, "goonly")...) {
		base := strings.TrimSuffix(name, ".yaml")
		t.Run(strings.TrimPrefix(base, "testdata/"), func(t *testing.T) {
			file := parseFile(t, name)
			hash := file.Hash()
			groups, err := sdl.GroupsJSON(file.Groups())
			if err != nil {
				t.Fatal(err)
			}
			golden(t, base+".groups.json", groups)
			golden(t, base+".manifest.json", file.Manifest().JSON())
			golden(t, base+".hash", []byte(hex.EncodeToString(hash[:])+"\n"))
			if err := sdl.Check(file.Manifest(), file.Groups()); err != nil {
				t.Errorf("the manifest does not fit the groups: %v", err)
			}
			if raw, err := sdl.HashRaw(file.Manifest().JSON()); err != nil || raw != hash {
				t.Errorf("HashRaw: %x, %v; want %x", raw, err, hash)
			}
		})
	}
}

// TestMalformed holds what is said about each malformed file against its
// golden text.
func TestMalformed(t *testing.T) {
	all := files(t, "malformed")
	if len(all) < 40 {
		t.Errorf("%d files in testdata/malformed, want at least 40", len(all))
	}
	for _, name := range all {
		base := strings.TrimSuffix(name, ".yaml")
		t.Run(filepath.Base(base), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			_, err = sdl.Parse(data)
			var all sdl.Errors
			if !errors.As(err, &all) {
				t.Fatalf("error %v, want an sdl.Errors", err)
			}
			line := 0
			for _, e := range all {
				if e.Line < max(line, 1) || e.Column < 1 {
					t.Errorf("%v: out of order, or nowhere", e)
				}
				if e.Fix == "" {
					t.Errorf("%v: does not say what to write instead", e)
				}
				line = e.Line
			}
			var first *sdl.Error
			if !errors.As(err, &first) || first != all[0] {
				t.Errorf("errors.As finds %v, want %v", first, all[0])
			}
			golden(t, base+".err", []byte(err.Error()+"\n"))
		})
	}
}
