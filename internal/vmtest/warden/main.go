// Warden is planted into the root of test images. With the rights of the box's own
// programs it tells over HTTP, on port 9999, what runs and what is left on the box,
// and kills programs: what no shipped program does.
//
//	GET  /look             what is there, as JSON
//	POST /kill?program=N   SIGKILL to every process of that program
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// warden is what the program does, and its log of what it could not see.
type warden struct{ log *slog.Logger }

func main() {
	wd := warden{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /look", func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(wd.look()); err != nil {
			wd.log.Error("sight not sent", "error", err)
		}
	})
	mux.HandleFunc("POST /kill", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintln(w, wd.kill(r.URL.Query().Get("program"))) // who asked may be gone
	})
	wd.log.Error("warden ended", "error", http.ListenAndServe(":9999", mux))
	os.Exit(1)
}

// Sight is what is on the box. Names are sorted.
type Sight struct {
	Processes []Process
	Mounts    []string // mount points
	Links     []string // network interfaces
	Mapper    []string // names of device-mapper devices
	Loops     []string // files behind loop devices
	Spaces    []string // network namespaces of the agent
	Groups    []string // cgroups
	Disks     []string // folders of lease disks
	Images    int64    // bytes of containerd's store
	Addresses []string
	Idle      float64          // seconds that all processors were idle since the start
	Uptime    float64          // seconds
	Memory    map[string]int64 // /proc/meminfo, in bytes
}

// Process is one process with a program.
type Process struct {
	PID     int
	Program string  // its file's name
	RSS     int64   // bytes
	Own     int64   // bytes of it that are no file's
	CPU     float64 // seconds that it has worked
}

func (wd warden) look() Sight {
	s := Sight{
		Processes: wd.processes(), Links: names("/sys/class/net"), Spaces: names("/run/croft/netns"), Disks: names("/perm/croft/hosting/leases"),
		Images: wd.size("/perm/containerd/io.containerd.content.v1.content/blobs") + wd.size("/perm/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"),
	}
	for line := range strings.Lines(text("/proc/mounts")) {
		s.Mounts = append(s.Mounts, strings.Fields(line)[1])
	}
	for _, dm := range wd.glob("/sys/block/dm-*/dm/name") {
		s.Mapper = append(s.Mapper, strings.TrimSpace(text(dm)))
	}
	for _, loop := range wd.glob("/sys/block/loop*/loop/backing_file") {
		s.Loops = append(s.Loops, strings.TrimSpace(text(loop)))
	}
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			s.Groups = append(s.Groups, path)
		}
		return nil
	})
	if err != nil {
		wd.log.Error("cgroups not read", "error", err)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		wd.log.Error("addresses not read", "error", err)
	}
	for _, a := range addresses {
		s.Addresses = append(s.Addresses, a.String())
	}
	if _, err := fmt.Sscan(text("/proc/uptime"), &s.Uptime, &s.Idle); err != nil {
		wd.log.Error("time since the start not read", "error", err)
	}
	s.Memory = map[string]int64{}
	for line := range strings.Lines(text("/proc/meminfo")) {
		if name, rest, found := strings.Cut(line, ":"); found {
			s.Memory[name] = number(strings.Fields(rest)[0]) << 10
		}
	}
	for _, list := range [][]string{s.Mounts, s.Mapper, s.Loops, s.Groups, s.Addresses} {
		slices.Sort(list)
	}
	return s
}

func (wd warden) processes() []Process {
	var list []Process
	for _, exe := range wd.glob("/proc/[0-9]*/exe") {
		program, err := os.Readlink(exe)
		if err != nil {
			continue // it has ended, or is the kernel's
		}
		dir := filepath.Dir(exe)
		stat := text(filepath.Join(dir, "stat"))
		fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
		pages := strings.Fields(text(filepath.Join(dir, "statm")))
		if len(fields) < 13 || len(pages) < 2 {
			continue
		}
		const ticks = 100 // a second, on every Linux
		var own int64
		for line := range strings.Lines(text(filepath.Join(dir, "status"))) {
			if kib, found := strings.CutPrefix(line, "RssAnon:"); found {
				own = number(strings.Fields(kib)[0]) << 10
			}
		}
		list = append(list, Process{
			Own: own,
			PID: int(number(filepath.Base(dir))), Program: filepath.Base(program), RSS: number(pages[1]) * int64(os.Getpagesize()),
			CPU: float64(number(fields[11])+number(fields[12])) / ticks,
		})
	}
	return list
}

// kill ends a program's processes, and waits until the last has gone or another has come.
func (wd warden) kill(program string) int {
	n := 0
	for _, p := range wd.processes() {
		if p.Program == program && unix.Kill(p.PID, unix.SIGKILL) == nil {
			n++
		}
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if !slices.ContainsFunc(wd.processes(), func(p Process) bool { return p.Program == program }) {
			break
		}
	}
	return n
}

// size is what the files below a folder take, in bytes.
func (wd warden) size(folder string) int64 {
	var sum int64
	err := filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	if err != nil {
		wd.log.Error("folder not measured", "folder", folder, "error", err)
	}
	return sum
}

func text(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(bytes.ToValidUTF8(raw, nil))
}

func names(folder string) []string {
	var list []string
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func (wd warden) glob(pattern string) []string {
	list, err := filepath.Glob(pattern)
	if err != nil {
		wd.log.Error("pattern not understood", "pattern", pattern, "error", err)
	}
	return list
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
