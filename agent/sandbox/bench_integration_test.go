//go:build integration

package sandbox_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	spaces "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/ocispec"
	"github.com/croft-cloud/croft/agent/sandbox"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// What each way of running a program has to do.
const (
	visitors = 8    // connections at once
	visits   = 4000 // of all visitors
	carried  = 256  // MiB, up and down
)

// BenchmarkRuntimes compares three ways of running the tenant's program of
// internal/rig/outside/web: as a process, in runc's container and in gVisor's sandbox.
// The two latter differ in nothing but the program that containerd's shim calls. They
// take turns in one network namespace, so that what else the machine does meets all
// alike. It reports medians, and ratios to the process or, where that has none, to runc.
func BenchmarkRuntimes(b *testing.B) {
	s := newLane(b)
	ways := []*way{s.process()}
	if path, err := exec.LookPath("runc"); err == nil {
		ways = append(ways, s.containers("runc", s.lowered(path)))
	} else {
		b.Log("without runc: it is not installed (apt-get install runc)")
	}
	ways = append(ways, s.containers("runsc", filepath.Join(programs, "croft-runsc")))
	for b.Loop() {
		for _, w := range ways {
			begun := time.Now()
			stop := w.start(s.web)
			s.untilAnswer()
			w.saw("start_ms", float64(time.Since(begun).Milliseconds()))
			<-time.After(2 * time.Second) // what came with the start is over
			for unit, value := range w.memory() {
				w.saw(unit, value)
			}
			begun = time.Now()
			s.visit()
			w.saw("requests/s", visits/time.Since(begun).Seconds())
			begun = time.Now()
			s.ask(http.MethodPost, "/take", io.LimitReader(zeros{}, carried<<20))
			w.saw("MB/s_up", carried*1.048576/time.Since(begun).Seconds())
			stop()
			stop = w.start(s.stream)
			s.untilAnswer()
			begun = time.Now()
			s.ask(http.MethodGet, fmt.Sprintf("/?mib=%d", carried), nil)
			w.saw("MB/s_down", carried*1.048576/time.Since(begun).Seconds())
			stop()
		}
	}
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // measured above
			for unit := range w.seen {
				b.ReportMetric(w.median(unit), unit)
				for _, base := range ways[:2] {
					if base != w && base.median(unit) > 0 {
						b.ReportMetric(w.median(unit)/base.median(unit), unit+"/"+base.name)
					}
				}
			}
		})
	}
}

// way is one way of running a program.
type way struct {
	name   string
	start  func(program int) (stop func())
	memory func() map[string]float64 // of what runs, in MB
	seen   map[string][]float64      // by unit
}

func (w *way) saw(unit string, value float64) { w.seen[unit] = append(w.seen[unit], value) }

func (w *way) median(unit string) float64 {
	sorted := slices.Sorted(slices.Values(w.seen[unit]))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

// zeros never end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// lane is a containerd of the benchmark's own, a registry with two images, and a
// network namespace in which all ways run.
type lane struct {
	b           *testing.B
	dir         string
	registry    *outside.Registry
	space       int // process that holds the network namespace
	client      *http.Client
	web, stream int // programs
	files       []string
}

const (
	laneHost, laneGuest = "198.18.77.1", "198.18.77.2" // of the range for benchmarks, RFC 2544
	lanePort            = "3000"
)

func newLane(b *testing.B) *lane {
	dir, err := os.MkdirTemp("/tmp", "sb") //nolint:usetesting // sockets want short paths
	if err != nil {
		b.Fatal(err)
	}
	s := &lane{b: b, dir: dir, web: 0, stream: 1, files: []string{filepath.Join(dir, "web"), filepath.Join(dir, "stream")}}
	b.Cleanup(func() {
		for _, pattern := range []string{"state/*/*/*/rootfs", "runsc/*/null-netns", "*/null-netns"} {
			points, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, point := range points {
				_ = unix.Unmount(point, unix.MNT_DETACH)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	check := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	check(os.Chmod(dir, 0o711))
	check(build("../../internal/rig/outside/web", s.files[s.web]))
	check(build("testdata/stream", s.files[s.stream]))
	s.registry, err = outside.NewRegistry(outside.RegistryConfig{})
	check(err)
	check(s.registry.Start())
	b.Cleanup(s.registry.Stop)
	for i, file := range s.files {
		_, err := s.registry.Put(outside.Image{Name: fmt.Sprint("bench/program", i), Program: file})
		check(err)
	}

	holder := exec.Command(guest, "deaf")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the parent that Pdeathsig means is this thread
	check(holder.Start())
	b.Cleanup(func() {
		_ = holder.Process.Kill() // with the namespace, both ends of the link are gone
		_ = holder.Wait()
		runtime.UnlockOSThread()
	})
	s.space = holder.Process.Pid
	check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "croftbench"}, PeerName: "eth0", PeerNamespace: netlink.NsPid(s.space)}))
	link, err := netlink.LinkByName("croftbench")
	check(err)
	address, err := netlink.ParseAddr(laneHost + "/30")
	check(err)
	check(netlink.AddrAdd(link, address))
	check(netlink.LinkSetUp(link))

	s.address()
	s.knowNeighbour(link)

	daemon := exec.Command(filepath.Join(programs, "croft-containerd"), "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--address", filepath.Join(dir, "c.sock"))
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	check(daemon.Start())
	b.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_ = daemon.Wait()
	})
	s.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: visitors}, Timeout: time.Minute}
	b.Cleanup(s.client.CloseIdleConnections)
	return s
}

// address gives the namespace its address: gVisor takes it away for its own.
func (s *lane) address() {
	s.b.Helper()
	space, err := spaces.GetFromPid(s.space)
	if err != nil {
		s.b.Fatal(err)
	}
	defer space.Close()
	inside, err := netlink.NewHandleAt(space)
	if err != nil {
		s.b.Fatal(err)
	}
	defer inside.Close()
	for name, text := range map[string]string{"lo": "127.0.0.1/8", "eth0": laneGuest + "/30"} {
		link, err := inside.LinkByName(name)
		if err != nil {
			s.b.Fatal(err)
		}
		address, err := netlink.ParseAddr(text)
		if err != nil {
			s.b.Fatal(err)
		}
		if err := inside.AddrReplace(link, address); err != nil {
			s.b.Fatal(err)
		}
		if err := inside.LinkSetUp(link); err != nil {
			s.b.Fatal(err)
		}
	}
}

// knowNeighbour makes the kernel send to the namespace without asking first: asking
// again takes it a second, while nobody is up there to answer.
func (s *lane) knowNeighbour(link netlink.Link) {
	s.b.Helper()
	space, err := spaces.GetFromPid(s.space)
	if err != nil {
		s.b.Fatal(err)
	}
	defer space.Close()
	inside, err := netlink.NewHandleAt(space)
	if err != nil {
		s.b.Fatal(err)
	}
	defer inside.Close()
	peer, err := inside.LinkByName("eth0")
	if err != nil {
		s.b.Fatal(err)
	}
	if err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(laneGuest), HardwareAddr: peer.Attrs().HardwareAddr,
	}); err != nil {
		s.b.Fatal(err)
	}
}

// process runs programs as they are.
func (s *lane) process() *way {
	var running *exec.Cmd
	return &way{
		name: "process", seen: map[string][]float64{},
		start: func(program int) func() {
			s.address()
			running = exec.Command(s.files[program])
			started := make(chan error)
			go func() {
				runtime.LockOSThread() // and never let go: this thread is in another namespace
				space, err := spaces.GetFromPid(s.space)
				if err == nil {
					err = spaces.Set(space)
					space.Close()
				}
				if err == nil {
					err = running.Start()
				}
				started <- err
			}()
			if err := <-started; err != nil {
				s.b.Fatal(err)
			}
			return func() {
				_ = running.Process.Kill()
				_ = running.Wait()
			}
		},
		memory: func() map[string]float64 {
			rss, pss := s.resident([]int{running.Process.Pid})
			return map[string]float64{"MB_resident": rss, "MB_proportional": pss}
		},
	}
}

// containers runs programs as agent/sandbox does, with a runtime.
func (s *lane) containers(name, path string) *way {
	key := lease.Key("bench" + name)
	box, err := sandbox.New(sandbox.Config{
		Socket: filepath.Join(s.dir, "c.sock"), Namespace: name, Runsc: path, RunscRoot: filepath.Join(s.dir, name+"-state"),
		Rotlog: filepath.Join(programs, "croft-rotlog"), RunDir: filepath.Join(s.dir, name+"-run"), PrivateRegistries: true,
		Log: slog.New(slog.NewTextHandler(s.b.Output(), nil)),
	})
	if err != nil {
		s.b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = box.Run(ctx) }) // ends with ctx
	s.b.Cleanup(func() {
		cancel()
		running.Wait()
		box.Close()
	})
	var images []string
	for i := range s.files {
		s.until("an image is here", func() error {
			image, err := box.Pull(ctx, key, fmt.Sprintf("%s/bench/program%d:latest", s.registry.Address(), i), nil, 1<<30, nil)
			if err == nil {
				images = append(images, image)
			}
			return err
		})
	}
	w := &way{name: name, seen: map[string][]float64{}}
	id := lease.ReplicaID{Lease: key, Service: "web", Revision: 1}
	stop := func() {
		if err := box.Stop(context.Background(), id, 0); err != nil {
			s.b.Error(err)
		}
	}
	s.b.Cleanup(stop)
	w.start = func(program int) func() {
		s.address()
		if err := box.Start(s.b.Context(), lease.Container{
			ID: id, Image: images[program], Limits: lease.Limits{CPU: int64(runtime.NumCPU()) * 1000, Memory: 1 << 30}, Hostname: "web",
			Scratch: filepath.Join(s.dir, name, "scratch"), Log: filepath.Join(s.dir, name, "log"),
			Attachment: &lease.Attachment{NetNS: fmt.Sprintf("/proc/%d/ns/net", s.space), Address: netip.MustParsePrefix(laneGuest + "/30"), Gateway: netip.MustParseAddr(laneHost)},
		}); err != nil {
			s.b.Fatal(err)
		}
		return stop
	}
	w.memory = func() map[string]float64 {
		group := filepath.Join("/sys/fs/cgroup", ocispec.CgroupPath(id))
		counted, err := os.ReadFile(filepath.Join(group, "memory.current"))
		if err != nil { // the first version of cgroups
			group = filepath.Join("/sys/fs/cgroup/memory", ocispec.CgroupPath(id))
			counted, err = os.ReadFile(filepath.Join(group, "memory.usage_in_bytes"))
		}
		if err != nil {
			s.b.Fatal(err)
		}
		bytes, err := strconv.ParseFloat(strings.TrimSpace(string(counted)), 64)
		if err != nil {
			s.b.Fatal(err)
		}
		members, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if err != nil {
			s.b.Fatal(err)
		}
		var inside []int
		for text := range strings.FieldsSeq(string(members)) {
			pid, err := strconv.Atoi(text)
			if err != nil {
				s.b.Fatal(err)
			}
			inside = append(inside, pid)
		}
		rss, pss := s.resident(inside)
		helpers, _ := s.resident(s.helpers(id, inside))
		return map[string]float64{"MB_resident": rss, "MB_proportional": pss, "MB_cgroup": bytes / 1e6, "MB_shim_and_log": helpers}
	}
	return w
}

// lowered is runc for machines whose root may not raise the number of files that a
// program may have open, as replicas want it: gVisor keeps that number itself, runc
// asks the kernel. There it is a script that lowers the wish first, in some 5 ms.
func (s *lane) lowered(runc string) string {
	var allowed unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &allowed); err != nil {
		s.b.Fatal(err)
	}
	const wanted = 1 << 20 // as agent/ocispec writes it
	if allowed.Max >= wanted {
		return runc
	}
	script := fmt.Sprintf(`#!/bin/sh
PATH=/usr/bin:/bin # containerd gives its own folder only
for word; do
	[ "$last" != --bundle ] || sed -i s/%d/%d/g "$word/config.json"
	last=$word
done
exec %s "$@"
`, wanted, allowed.Max, runc)
	path := filepath.Join(s.dir, "lowered-runc")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		s.b.Fatal(err)
	}
	return path
}

// helpers are the processes that name a replica, or its log, and are not in its cgroup.
func (s *lane) helpers(id lease.ReplicaID, inside []int) (pids []int) {
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		s.b.Fatal(err)
	}
	for _, path := range commands {
		words, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			s.b.Fatal(err)
		}
		environ, err := os.ReadFile(filepath.Join(filepath.Dir(path), "environ"))
		if err == nil && !slices.Contains(inside, pid) && (bytes.Contains(words, []byte(id.Container())) || bytes.Contains(environ, []byte("CONTAINER_ID="+id.Container()))) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// resident is the memory of processes in MB: as each counts it, and with pages that
// several have divided among them.
func (s *lane) resident(pids []int) (rss, pss float64) {
	for _, pid := range pids {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			s.b.Fatal(err)
		}
		for line := range strings.Lines(string(rollup)) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "Rss:" && fields[0] != "Pss:" {
				continue
			}
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				s.b.Fatal(err)
			}
			if fields[0] == "Rss:" {
				rss += kib * 1024 / 1e6
			} else {
				pss += kib * 1024 / 1e6
			}
		}
	}
	return rss, pss
}

// until waits for what must come true.
func (s *lane) until(what string, is func() error) {
	s.b.Helper()
	var last error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if last = is(); last == nil {
			return
		}
	}
	s.b.Fatalf("never: %s: %v", what, last)
}

// untilAnswer waits for the first byte: of a connection that is made as soon as
// somebody takes it.
func (s *lane) untilAnswer() {
	s.b.Helper()
	s.client.CloseIdleConnections() // of the one before
	s.until("the program answers", func() error {
		conn, err := net.DialTimeout("tcp", laneGuest+":"+lanePort, 20*time.Millisecond)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /?mib=0 HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		_, err = io.ReadFull(conn, make([]byte, 1))
		return err
	})
}

// ask asks once and reads the whole answer.
func (s *lane) ask(method, path string, body io.Reader) {
	req, err := http.NewRequest(method, "http://"+laneGuest+":"+lanePort+path, body)
	if err != nil {
		s.b.Error(err)
		return
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.b.Error(err)
		return
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		s.b.Errorf("%s: %s, %v", path, resp.Status, err)
	}
}

// visit asks for the front page, on several connections at once.
func (s *lane) visit() {
	var all sync.WaitGroup
	for range visitors {
		all.Go(func() {
			for range visits / visitors {
				s.ask(http.MethodGet, "/", nil)
			}
		})
	}
	all.Wait()
}
