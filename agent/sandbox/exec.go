package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/ocispec"
)

const (
	// execsMax bounds the commands that run in one replica at a time. Each costs
	// the box some host memory that no limit of the tenant's counts.
	execsMax = 16
	// hangUpBound is how long word of a command's end may take to come out.
	hangUpBound = 3 * time.Second
	// pipeBytes is what is read from a command at a time.
	pipeBytes = 32 << 10
)

// Exec runs a command in a running replica and returns its exit code. The
// command is the replica's first program in all but its arguments: same user,
// variables, folder and rights. With tty, stdout carries both outputs, and
// resize, which may be nil and is never closed, the terminal's width and height
// in characters.
//
// Exec returns when the command has ended and its output is written; a Write
// must end when ctx does. The command is killed when ctx ends, or when a write
// fails; programs that it started itself are not. stdin may be nil; its end is
// the command's end of input. A Read of stdin under way when the command ends is
// not waited for: what it reads then is lost.
//
// Fails with [UnknownContainer], [TooManyExecs], [BadCommand], [BadContainer],
// [RuntimeAway] or [RuntimeRefused].
func (s *Sandbox) Exec(ctx context.Context, replica lease.ReplicaID, argv []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) (int, error) {
	id, doing := replica.Container(), "run a command in "+replica.Pod()
	if len(argv) == 0 || argv[0] == "" {
		return 0, fail(BadCommand, "%s: there is none", doing)
	}
	if err := ocispec.CheckArguments(argv); err != nil {
		return 0, err
	}
	s.mu.Lock()
	if s.execs[id] == execsMax {
		s.mu.Unlock()
		return 0, fail(TooManyExecs, "%s: %d run already", doing, execsMax)
	}
	s.execs[id]++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.execs[id]--; s.execs[id] == 0 {
			delete(s.execs, id)
		}
	}()

	process, err := s.processOf(ctx, replica, argv, tty)
	if err != nil {
		return 0, err
	}
	pipes, err := openPipes(s.cfg.RunDir, stdin != nil, tty)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	defer pipes.close()
	exec := "exec-" + strings.ToLower(rand.Text())
	// It must be deleted whatever becomes of ctx, also when nobody knows whether
	// containerd made it.
	defer func() {
		call, cancel := s.call(context.WithoutCancel(ctx))
		defer cancel()
		if _, err := s.tasks.DeleteProcess(call, &tasks.DeleteProcessRequest{ContainerID: id, ExecID: exec}); err != nil && !isMissing(err) && code(err) != codes.Unavailable {
			s.log.Warn("command was not deleted", "container", id, "error", text(err))
		}
	}()
	call, cancel := context.WithTimeout(s.inNamespace(ctx), startBound)
	defer cancel()
	if _, err := s.tasks.Exec(call, &tasks.ExecProcessRequest{
		ContainerID: id, ExecID: exec, Terminal: tty, Spec: process,
		Stdin: pipes.inPath, Stdout: pipes.outPath, Stderr: pipes.errPath,
	}); err != nil {
		return 0, s.sortExecError(err, doing)
	}
	pid, err := s.startExec(call, id, exec)
	if err != nil {
		if c := code(err); c == codes.Canceled || c == codes.DeadlineExceeded || c == codes.Unavailable {
			s.killExec(ctx, id, exec, pid)
		}
		return 0, s.sortExecError(err, doing)
	}
	return s.attend(ctx, id, exec, pid, pipes, tty, stdin, stdout, stderr, resize)
}

// startExec starts a command and finds out its process id in the sandbox, by
// what is there that was not: one command at a time starts in a replica.
func (s *Sandbox) startExec(ctx context.Context, id, exec string) (int32, error) {
	unlock, err := s.starting.lock(ctx, id)
	if err != nil {
		return 0, err
	}
	defer unlock()
	before, err := s.commands(ctx, id)
	if err != nil {
		return 0, fail(UnknownContainer, "run a command in %s: %w", id, err)
	}
	// Not broken off: a start that goes on behind our back could not be ended.
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), startBound)
	defer cancel()
	_, startErr := s.tasks.Start(whole, &tasks.StartRequest{ContainerID: id, ExecID: exec})
	after, err := s.commands(whole, id)
	if err != nil {
		return 0, startErr // it may have been the replica's end
	}
	return newCommand(before, after), startErr
}

// attend copies what a started command reads and writes until it has ended.
func (s *Sandbox) attend(ctx context.Context, id, exec string, pid int32, pipes *pipes, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	doing := "run a command in " + id
	// The shim has opened the outputs by now: end of file means that it closed them.
	var outputs, helpers sync.WaitGroup
	copyOut := func(to io.Writer, from *os.File) {
		buffer := make([]byte, pipeBytes)
		if to != nil {
			if _, err := io.CopyBuffer(onlyWriter{to}, onlyReader{from}, buffer); err != nil && !errors.Is(err, os.ErrClosed) {
				cancel(fmt.Errorf("write a command's output: %w", err))
			}
		}
		// With a full pipe the shim would not let go of the command for ten seconds.
		_, _ = io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{from}, buffer)
	}
	outputs.Go(func() { copyOut(stdout, pipes.out) })
	if !tty {
		outputs.Go(func() { copyOut(stderr, pipes.err) })
	}
	if stdin != nil {
		go func() { // not waited for: nobody can end a Read of somebody else's
			in, err := pipes.openIn(ctx)
			if err != nil {
				cancel(fmt.Errorf("write a command's input: %w", err))
				return
			}
			defer context.AfterFunc(ctx, func() { in.Close() })()
			_, _ = io.CopyBuffer(onlyWriter{in}, onlyReader{stdin}, make([]byte, pipeBytes)) // a command need not read its input
			in.Close()
			call, done := s.call(ctx)
			defer done()
			// The shim holds the pipe open for writing, too, until it is told. It
			// reads what is in there first. A command that has ended needs neither.
			_, _ = s.tasks.CloseIO(call, &tasks.CloseIORequest{ContainerID: id, ExecID: exec, Stdin: true})
		}()
	}
	if tty && resize != nil {
		helpers.Go(func() {
			for {
				select {
				case size := <-resize:
					call, cancel := s.call(ctx)
					_, _ = s.tasks.ResizePty(call, &tasks.ResizePtyRequest{ContainerID: id, ExecID: exec, Width: uint32(size[0]), Height: uint32(size[1])}) // the next one may fit
					cancel()
				case <-ctx.Done():
					return
				}
			}
		})
	}

	result, err := s.waitExec(ctx, id, exec)
	deleting := ctx
	if err != nil {
		s.killExec(ctx, id, exec, pid)
		deleting = context.WithoutCancel(ctx)
		cancel(sortError(err, doing)) // unless something else was the cause
	}
	// What holds the pipes open now are programs that the command left behind;
	// deleting the command ends the shim's part after a moment.
	call, done := s.call(deleting)
	_, _ = s.tasks.DeleteProcess(call, &tasks.DeleteProcessRequest{ContainerID: id, ExecID: exec}) // Exec does it again, and says so
	done()
	stop := context.AfterFunc(ctx, pipes.close)
	outputs.Wait()
	stop()
	cause := context.Cause(ctx)
	cancel(nil)
	helpers.Wait()
	if cause != nil {
		return 0, cause
	}
	return int(result.ExitStatus), nil
}

// waitExec waits for a command, across restarts of containerd's.
func (s *Sandbox) waitExec(ctx context.Context, id, exec string) (*tasks.WaitResponse, error) {
	for away := time.Duration(0); ; {
		result, err := s.tasks.Wait(s.inNamespace(ctx), &tasks.WaitRequest{ContainerID: id, ExecID: exec})
		if code(err) != codes.Unavailable || away > callBound {
			return result, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(reconnectFirst):
			away += reconnectFirst
		}
	}
}

// killExec ends a command: its process in the sandbox, then what waits for it
// outside. A pid of 0 is not known: the command ended as soon as it was started,
// or was never.
func (s *Sandbox) killExec(ctx context.Context, id, exec string, pid int32) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killBound)
	defer cancel()
	if pid != 0 {
		if alive, err := s.commands(ctx, id); err != nil || slices.Contains(alive, pid) {
			if err := s.killInside(ctx, id, pid); err != nil {
				s.log.Warn("command was not killed", "container", id, "error", err)
			}
		}
		if err := s.waitEnd(ctx, id, exec, hangUpBound); err != nil {
			s.log.Warn("killed command was not waited for", "container", id, "error", text(err))
		}
	}
	if err := s.kill(ctx, id, exec, unix.SIGKILL); err != nil {
		s.log.Warn("command was not killed", "container", id, "error", text(err))
		return
	}
	if err := s.waitEnd(ctx, id, exec, killBound); err != nil {
		s.log.Warn("killed command was not waited for", "container", id, "error", text(err))
	}
}

func (s *Sandbox) sortExecError(err error, doing string) error {
	switch code(err) {
	case codes.NotFound, codes.FailedPrecondition:
		return fail(UnknownContainer, "%s: it does not run", doing)
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		return sortError(err, doing)
	default: // it was tried, and did not start
		return fail(BadCommand, "%s: %s", doing, text(err))
	}
}

// processOf describes a command by the replica's own first program.
func (s *Sandbox) processOf(ctx context.Context, replica lease.ReplicaID, argv []string, tty bool) (*anypb.Any, error) {
	id := replica.Container()
	call, cancel := s.call(ctx)
	defer cancel()
	got, err := s.containers.Get(call, &containers.GetContainerRequest{ID: id})
	if isMissing(err) {
		return nil, fail(UnknownContainer, "%s does not run here", replica.Pod())
	}
	if err != nil {
		return nil, sortError(err, "look up container "+id)
	}
	var spec specs.Spec
	if err := json.Unmarshal(got.Container.GetSpec().GetValue(), &spec); err != nil || spec.Process == nil {
		return nil, fail(RuntimeRefused, "container %s has no readable specification", id)
	}
	process := *spec.Process
	process.Args, process.Terminal = argv, tty
	if tty {
		process.Env = append(process.Env, "TERM=xterm")
	}
	written, err := json.Marshal(process)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: processType, Value: written}, nil
}

// pipes are the named pipes between a command's shim and us.
type pipes struct {
	folder                   string
	inPath, outPath, errPath string
	out, err                 *os.File
}

const pipesPrefix = "exec-"

// openPipes makes named pipes and opens the outputs so that the shim never waits
// for us, nor we for it.
func openPipes(root string, stdin, tty bool) (*pipes, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp(root, pipesPrefix)
	if err != nil {
		return nil, err
	}
	p := &pipes{folder: folder}
	input := func(name string) string {
		path := filepath.Join(folder, name)
		if err == nil {
			err = unix.Mkfifo(path, 0o600)
		}
		return path
	}
	output := func(name string) (path string, file *os.File) {
		if path = input(name); err == nil {
			file, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		}
		return path, file
	}
	if stdin {
		p.inPath = input("stdin")
	}
	p.outPath, p.out = output("stdout")
	if !tty {
		p.errPath, p.err = output("stderr")
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("make pipes in %s: %w", folder, err)
	}
	return p, nil
}

// openIn opens the input as soon as the shim reads it, which may be after it said
// that the command runs. Written and closed earlier the input would be lost, and
// the shim would wait for a writer, and the command for its input, without end.
func (p *pipes) openIn(ctx context.Context) (*os.File, error) {
	for {
		in, err := os.OpenFile(p.inPath, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if !errors.Is(err, unix.ENXIO) || ctx.Err() != nil {
			return in, err
		}
		time.Sleep(5 * time.Millisecond) // nobody reads yet
	}
}

// close ends all reads and takes the names away.
func (p *pipes) close() {
	_ = os.RemoveAll(p.folder) // Run clears what stays
	p.out.Close()              // a file that is nil or closed does not mind
	p.err.Close()
}

// clearPipes removes what a predecessor left.
func (s *Sandbox) clearPipes() error {
	left, err := filepath.Glob(filepath.Join(s.cfg.RunDir, pipesPrefix+"*"))
	if err != nil {
		return err
	}
	for _, folder := range left {
		if info, err := os.Stat(folder); err != nil || time.Since(info.ModTime()) < startBound {
			continue // it may be one of ours, being opened
		}
		if err := os.RemoveAll(folder); err != nil {
			return fmt.Errorf("remove old pipes: %w", err)
		}
	}
	return nil
}

// onlyReader and onlyWriter hide shortcuts of io.Copy's that would block in the
// kernel, where nobody can end them, or buffer without bound.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }
