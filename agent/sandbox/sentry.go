package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sentryBound ends one question to a sandbox, which may be busy or hostile.
	sentryBound = 10 * time.Second
	// sentryBytes bounds its answer: a line for each of 32,768 processes.
	sentryBytes = 8 << 20
)

// askSentry calls a method of a sandbox's own control socket, as runsc's
// commands do. It is for the one thing that the shim cannot do: the host process
// that it knows of a command is runsc's messenger, and a signal to it ends the
// messenger and leaves the command running.
func (s *Sandbox) askSentry(ctx context.Context, id, method string, argument, result any) error {
	ctx, cancel := context.WithTimeout(ctx, sentryBound)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(s.cfg.RunscRoot, s.cfg.Namespace, "runsc-"+id+".sock"))
	if err != nil {
		return fmt.Errorf("ask sandbox %s: %w", id, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := json.NewEncoder(conn).Encode(map[string]any{"method": method, "arg": argument}); err != nil {
		return fmt.Errorf("ask sandbox %s: %w", id, err)
	}
	answer := struct {
		Success bool   `json:"success"`
		Err     string `json:"err"`
		Result  any    `json:"result"`
	}{Result: result}
	if err := json.NewDecoder(io.LimitReader(conn, sentryBytes)).Decode(&answer); err != nil {
		return fmt.Errorf("ask sandbox %s: %w", id, err)
	}
	if !answer.Success {
		return fmt.Errorf("ask sandbox %s: %w", id, errors.New(text(errors.New(answer.Err))))
	}
	return nil
}

// commands are the process ids, inside the sandbox, of what was started from
// outside: such a process has no parent. The first is the replica itself.
func (s *Sandbox) commands(ctx context.Context, id string) ([]int32, error) {
	var all []struct {
		PID  int32 `json:"pid"`
		PPID int32 `json:"ppid"`
	}
	if err := s.askSentry(ctx, id, "containerManager.Processes", id, &all); err != nil {
		return nil, err
	}
	var pids []int32
	for _, p := range all {
		if p.PPID == 0 && p.PID > 1 {
			pids = append(pids, p.PID)
		}
	}
	return pids, nil
}

// newCommand is the one command of after that is not in before; 0 if there is
// none, because it has ended already.
func newCommand(before, after []int32) int32 {
	for _, pid := range after {
		if !slices.Contains(before, pid) {
			return pid
		}
	}
	return 0
}

// killInside ends a process of a sandbox.
func (s *Sandbox) killInside(ctx context.Context, id string, pid int32) error {
	const toProcess = 0
	return s.askSentry(ctx, id, "containerManager.Signal", map[string]any{"CID": id, "Signo": int32(unix.SIGKILL), "PID": pid, "Mode": toProcess}, new(any))
}
