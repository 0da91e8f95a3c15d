package outside

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/croft-cloud/croft"
)

// Build compiles a program of the repository at source into the file out: static,
// for linux/amd64, as it goes into images.
func Build(ctx context.Context, source, program, out string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return fmt.Errorf("build %s: %w", program, err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", out, program)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOWORK=off", "GOFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("build %s: %w", program, err), Remedy: "run `make setup`"}
		}
		return fmt.Errorf("build %s: %w: %s", program, err, strings.TrimSpace(string(said)))
	}
	return nil
}

// child is a program that runs beside this one and dies with it.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // valid after done: how it ended
}

// startChild starts cmd. A goroutine that keeps its thread waits for it: the
// kernel's death signal is bound to the thread that forks, not to the program.
func startChild(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, done: make(chan struct{})}
	// A group of its own: Ctrl-C in the terminal is for us, not for the child.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		c.err = cmd.Wait()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return c, nil
}

// stop asks the program to end, and ends it if it does not within grace.
func (c *child) stop(grace time.Duration) error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // fails only if it has ended already
	select {
	case <-c.done:
		return c.err
	case <-time.After(grace):
		c.kill()
		return fmt.Errorf("stop %s: it did not end within %v", c.cmd.Path, grace)
	}
}

// kill ends the program at once and waits for it.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // fails only if it has ended already
	<-c.done
}

// lastOf is the end of a log file, for an error message.
func lastOf(path string) string {
	const most = 2 << 10
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw[max(0, len(raw)-most):]))
}
