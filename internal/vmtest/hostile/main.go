// Hostile is the program of a tenant who means harm: it tries to get out of its
// sandbox, to reach what is not its own, and to take what it did not pay for. Tests
// put it into an OCI image and let a box run it.
//
//	hostile                serves on the ports 3000 and 3001
//	hostile DEED ARGS…     does one deed
//
// Over HTTP:
//
//	/                          who serves, a word that is new after each start
//	/do?deed=D&arg=A&arg=…     does a deed in a process of its own
//	/memory?mib=N              takes N MiB of memory itself, and keeps it
//	/flood?mib=N               writes N MiB to standard output, the container's log
//
// A deed writes what it tried as lines of JSON, each an [Attempt]. It does not judge:
// what may work inside an enclosure without harm, the test knows.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Attempt is one thing that was tried.
type Attempt struct {
	What   string
	Failed string `json:",omitempty"` // why; empty: it worked
	Got    string `json:",omitempty"` // what came of it
	Count  int64  `json:",omitempty"` // bytes, files, processes, whatever the deed counts
}

// deed is something bad to do.
type deed func(r *reporter, args []string)

// deeds are all there are, by name.
var deeds = map[string]deed{
	"reach": reach, "names": names, "raw": raw, "sources": sources, "scan": scan,
	"forks": forks, "threads": threads, "memory": memory, "shared": shared, "spin": spin,
	"fill": fill, "inodes": inodes, "clear": clearFolder, "links": links,
	"settings": settings, "devices": devices, "mounts": mounts, "spaces": spaces, "calls": calls,
	"ptrace": trace, "runtime": runtimeFiles, "sockets": sockets, "privileges": privileges, "whoami": whoami, "open": openAll,
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return serve(stdout)
	}
	do, ok := deeds[args[0]]
	if !ok {
		return fmt.Errorf("deed %q is not known", args[0])
	}
	do(&reporter{json.NewEncoder(stdout)}, args[1:])
	return nil
}

// reporter writes down what was tried.
type reporter struct{ out *json.Encoder }

func (r *reporter) tell(a Attempt) {
	if len(a.Got) > 600 {
		a.Got = a.Got[:600]
	}
	if r.out.Encode(a) != nil {
		os.Exit(1) // nobody listens any more
	}
}

// try does something and tells what came of it.
func (r *reporter) try(what string, do func() (string, error)) {
	got, err := do()
	a := Attempt{What: what, Got: got}
	if err != nil {
		a.Failed = word(err)
	}
	r.tell(a)
}

// call tries a system call.
func (r *reporter) call(what string, number, a, b, c, d, e, f uintptr) {
	r.try(what, func() (string, error) {
		result, _, errno := syscall.Syscall6(number, a, b, c, d, e, f)
		if errno != 0 {
			return "", errno
		}
		return fmt.Sprintf("it returned %d", int(result)), nil
	})
}

// word is the name of an error's number, or its text.
func word(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
	}
	return err.Error()
}

func number(args []string, i, otherwise int) int {
	if i < len(args) {
		if n, err := strconv.Atoi(args[i]); err == nil {
			return n
		}
	}
	return otherwise
}

func serve(stdout io.Writer) error {
	born := rand.Text()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, born) }) //nolint:errcheck // the visitor has gone
	mux.HandleFunc("GET /do", func(w http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		pause := keepWaiting(w)
		said, err := spawn(req.Context(), append([]string{q.Get("deed")}, q["arg"]...)...)
		pause()
		_, _ = w.Write(said) // the visitor has gone
		if err != nil {
			(&reporter{json.NewEncoder(w)}).tell(Attempt{What: "the deed ends", Failed: err.Error()})
		}
	})
	mux.HandleFunc("GET /memory", func(w http.ResponseWriter, req *http.Request) {
		memory(&reporter{json.NewEncoder(w)}, []string{req.URL.Query().Get("mib")})
	})
	mux.HandleFunc("GET /flood", func(w http.ResponseWriter, req *http.Request) {
		line := strings.Repeat("x", 1023) + "\n"
		n := number([]string{req.URL.Query().Get("mib")}, 0, 1)
		defer keepWaiting(w)()
		for range n << 10 {
			if _, err := io.WriteString(stdout, line); err != nil {
				panic(http.ErrAbortHandler)
			}
		}
	})
	server := http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error)
	for _, address := range []string{":3000", ":3001"} {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		go func() { ended <- server.Serve(listener) }()
	}
	return <-ended
}

// keepWaiting sends a line feed now and then, for an ingress gives up on a service
// that is silent for a minute. It ends with the function that it returns.
func keepWaiting(w http.ResponseWriter) (end func()) {
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Second):
				_, _ = io.WriteString(w, "\n") // the visitor has gone
				_ = http.NewResponseController(w).Flush()
			}
		}
	}()
	return func() { close(done); <-gone }
}

// spawn runs this program anew and returns what it said. The process ends with ctx.
func spawn(ctx context.Context, args ...string) ([]byte, error) {
	return spawnAs("/proc/self/exe", &syscall.SysProcAttr{}, ctx, args...)
}

func spawnAs(program string, how *syscall.SysProcAttr, ctx context.Context, args ...string) ([]byte, error) {
	from, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer from.Close()
	how.Setpgid = true
	child, err := os.StartProcess(program, append([]string{program}, args...), &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{nil, to, to}, Sys: how,
	})
	to.Close()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-child.Pid, syscall.SIGKILL) }) // it may have ended
	defer stop()
	var said bytes.Buffer
	_, readErr := io.Copy(&said, from)
	state, err := child.Wait()
	if err == nil && !state.Success() {
		err = errors.New(state.String())
	}
	return said.Bytes(), errors.Join(err, readErr)
}
