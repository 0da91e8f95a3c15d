//go:build integration

package sdl_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft/chain/npmpeer"
	"github.com/croft-cloud/croft/chain/sdl"
)

// answer is what the TypeScript client makes of one file; see manifests.mjs in
// package npmpeer.
type answer struct {
	File, Manifest, Hash, Refused string
	Groups                        any
}

// TestNPMClient asks @akashnetwork/chain-sdk what it makes of the whole corpus.
func TestNPMClient(t *testing.T) {
	for _, a := range ask(t, files(t, "valid")) {
		t.Run(filepath.Base(a.File), func(t *testing.T) {
			file := parseFile(t, a.File)
			if a.Refused != "" {
				t.Fatalf("the client refuses the file: %s", a.Refused)
			}
			if diff := cmp.Diff(a.Manifest, string(file.Manifest().JSON())); diff != "" {
				t.Errorf("manifest (-client +ours):\n%s", diff)
			}
			hash := file.Hash()
			if got := hex.EncodeToString(hash[:]); got != a.Hash {
				t.Errorf("hash %s, the client's is %s", got, a.Hash)
			}
			groups, err := sdl.GroupsJSON(file.Groups())
			if err != nil {
				t.Fatal(err)
			}
			var ours any
			if err := json.Unmarshal(groups, &ours); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(exactPrices(t, a.Groups), exactPrices(t, ours)); diff != "" {
				t.Errorf("groups (-client +ours):\n%s", diff)
			}
		})
	}
	for _, a := range ask(t, files(t, "goonly")) {
		t.Run(filepath.Base(a.File), func(t *testing.T) {
			hash := parseFile(t, a.File).Hash()
			if a.Hash == hex.EncodeToString(hash[:]) {
				t.Error("the client agrees with us: move the file to testdata/valid")
			}
		})
	}
}

// ask runs the client over some files.
func ask(t *testing.T, names []string) []answer {
	t.Helper()
	var args []string
	for _, name := range names {
		abs, err := filepath.Abs(name)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, abs)
	}
	var all []answer
	for line := range bytes.Lines(npmpeer.Run(t, "manifests.mjs", args...)) {
		var a answer
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, a)
	}
	if len(all) != len(names) {
		t.Fatalf("%d answers about %d files", len(all), len(names))
	}
	return all
}

// exactPrices writes each amount of v as a fraction: 250.5 and
// 250.500000000000000000 are one price.
func exactPrices(t *testing.T, v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = exactPrices(t, v[i])
		}
	case map[string]any:
		for key, value := range v {
			if text, ok := value.(string); ok && key == "amount" {
				amount, ok := new(big.Rat).SetString(text)
				if !ok {
					t.Fatalf("amount %q is no number", text)
				}
				v[key] = amount.String()
				continue
			}
			v[key] = exactPrices(t, value)
		}
	}
	return v
}
