// Witness is planted into the root of a test image. Beside the box's own
// programs, and with the same rights, it sees what no port of the box shows: how
// the container runtime is. It waits until croft-containerd answers and tells what
// it sees in one line of JSON on the console, marked "witness: ". Then it kills the
// daemon and tells once more when there is a new one.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const (
	socket = "unix:///run/croft/containerd.sock"
	daemon = "/user/croft-containerd"
	cgroup = "/sys/fs/cgroup/croft/containerd"
)

// report is one line.
type report struct {
	Uptime   float64           // seconds since the kernel started
	PID      int               // of the daemon
	RSS      int64             // its memory in bytes, its program's pages among it
	Own      int64             // the part of that which is not its program's
	Cgroup   string            // as the kernel names it
	Limits   []string          // controllers that its cgroup has
	Modules  []string          // kernel modules that are loaded
	Programs []string          // that run from /user, by name
	Modes    map[string]string // permissions of folders and files
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "witness:", err) // gokrazy starts it again
		os.Exit(1)
	}
	select {}
}

func run(ctx context.Context) error {
	before := 0
	for range 2 {
		if err := serving(ctx, before); err != nil {
			return err
		}
		r := look()
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := os.WriteFile("/dev/console", fmt.Appendf(nil, "\nwitness: %s\n", line), 0); err != nil {
			return err
		}
		if before == 0 {
			if err := unix.Kill(r.PID, unix.SIGKILL); err != nil {
				return err
			}
		}
		before = r.PID
	}
	return nil
}

// serving returns when a daemon other than before answers.
func serving(ctx context.Context, before int) error {
	for {
		if pids := running(daemon); len(pids) == 1 && pids[0] != before && healthy(ctx) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func healthy(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return false
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err == nil && answer.Status == grpc_health_v1.HealthCheckResponse_SERVING
}

// look is what can be seen; what cannot be read stays empty.
func look() report {
	var r report
	if pids := running(daemon); len(pids) > 0 {
		r.PID = pids[0]
	}
	proc := fmt.Sprintf("/proc/%d/", r.PID)
	r.Uptime, _ = strconv.ParseFloat(word("/proc/uptime", 0), 64)
	pages, _ := strconv.ParseInt(word(proc+"statm", 1), 10, 64)
	files, _ := strconv.ParseInt(word(proc+"statm", 2), 10, 64)
	r.RSS, r.Own = pages*int64(os.Getpagesize()), (pages-files)*int64(os.Getpagesize())
	r.Cgroup = word(proc+"cgroup", 0)
	controllers, _ := os.ReadFile(cgroup + "/cgroup.controllers")
	r.Limits = strings.Fields(string(controllers))
	modules, _ := os.ReadFile("/proc/modules")
	for lines := bufio.NewScanner(bytes.NewReader(modules)); lines.Scan(); {
		name, _, _ := strings.Cut(lines.Text(), " ")
		r.Modules = append(r.Modules, name)
	}
	programs, _ := filepath.Glob("/user/*")
	for _, program := range programs {
		if len(running(program)) > 0 {
			r.Programs = append(r.Programs, filepath.Base(program))
		}
	}
	r.Modes = map[string]string{}
	for _, path := range []string{
		"/", "/user", "/user/croft-runsc", "/user/croft-rotlog", "/user/containerd-shim-runc-v2", "/run", "/run/croft", "/run/croft/containerd.sock",
		"/run/containerd", "/run/containerd/io.containerd.runtime.v2.task", "/perm", "/perm/containerd",
	} {
		if info, err := os.Stat(path); err == nil {
			r.Modes[path] = fmt.Sprintf("%04o", info.Mode()&fs.ModePerm)
		}
	}
	return r
}

// word is the n-th word of a file, or "".
func word(path string, n int) string {
	raw, _ := os.ReadFile(path)
	if words := strings.Fields(string(raw)); len(words) > n {
		return words[n]
	}
	return ""
}

// running are the processes of a program.
func running(program string) (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != program {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}
