//go:build integration

package law

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestAgentIsStaticAndAsLargeAsReviewed builds the agent as the image does, without
// symbols, and compares its size with the size.txt beside its main: growth by a
// tenth of a megabyte is a topic for review.
func TestAgentIsStaticAndAsLargeAsReviewed(t *testing.T) {
	program := filepath.Join(t.TempDir(), "croft-agent")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", program, "./cmd/croft-agent")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if libraries, err := file.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Errorf("the agent needs the libraries %q, %v", libraries, err)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the agent needs a loader")
		}
	}
	info, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join(root, "cmd", "croft-agent", "size.txt"), fmt.Sprintf("%.1f MB\n", float64(info.Size())/1e6))
}
