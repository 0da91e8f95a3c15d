package rig

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/croft-cloud/croft"
)

// process is a child that dies when this program does, and whose stderr is
// kept for the error message.
type process struct {
	cmd    *exec.Cmd
	stderr tail
	done   chan struct{} // closed when the process has ended and its output is read
	err    error         // valid after done: how it ended
}

// startProcess starts cmd. A goroutine that keeps its thread waits for it:
// the kernel's death signal is bound to the thread that forks, not to the
// program.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stderr = &p.stderr
	cmd.WaitDelay = 5 * time.Second
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
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// kill ends the process at once and waits for it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails only if it has ended already
	<-p.done
}

// failure is nil if the process ended by itself with status 0, and otherwise
// how it ended together with what it said. Valid after done.
func (p *process) failure() error {
	if p.err == nil {
		return nil
	}
	if said := p.stderr.String(); said != "" {
		return fmt.Errorf("%w: %s", p.err, said)
	}
	return p.err
}

// tail is a writer that keeps the last few KiB.
type tail struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

const tailBytes = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}

// lookPath finds a program, or says how to get it.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", missing(fmt.Errorf("program %s: %w", program, errors.Unwrap(err)))
	}
	return path, nil
}

func missing(err error) error {
	return &croft.Error{Kind: croft.KindMissing, Err: err, Remedy: "run `make setup`"}
}
