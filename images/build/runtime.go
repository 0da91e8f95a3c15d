package build

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// runtimeModules are the container runtime's, with the programs of each. gok
// does not build them: it has one go.mod for all it builds, and these modules
// need versions that exclude each other. Only croft-containerd is a service; it
// finds its shim beside itself.
var runtimeModules = []struct {
	folder   string
	programs []string
}{
	{"images/runtime", []string{"./containerd-shim-runc-v2", "./croft-containerd", "./croft-rotlog"}},
	{"images/runtime/croft-runsc", []string{"."}},
}

// runtimeDir is where the runtime's programs are while the release is made.
func (b *build) runtimeDir() string { return filepath.Join(b.work, "runtime") }

// buildRuntime builds the programs of the container runtime. With a cold cache
// it takes as long as all the rest together.
func (b *build) buildRuntime(ctx context.Context) error {
	for _, module := range runtimeModules {
		args := []string{"build", "-ldflags=-s -w -buildid=", "-o", b.runtimeDir() + "/"}
		cmd := exec.CommandContext(ctx, "go", append(args, module.programs...)...)
		cmd.Dir = filepath.Join(b.Source, module.folder)
		cmd.Env = goEnv("GOOS=linux", "GOARCH=amd64")
		if _, err := capture(cmd); err != nil {
			return fmt.Errorf("build the programs of %s: %w", module.folder, err)
		}
	}
	return nil
}
