// Init is PID 1 of the box's root: gokrazy's boot and supervision, with what a
// croft box needs around them.
//
//   - It keeps the armed watchdog that croft-init hands over, so that gokrazy
//     finds the device busy and does not feed it: only the agent does.
//   - It hides the nodes of /perm and of all other disks while gokrazy looks for
//     disks: /perm is mounted already, and a twin must never be taken for it.
//     Should one appear in that moment all the same, and be mounted over /perm,
//     it is unmounted again.
//   - It turns on the cgroup controllers for all that is started later, and makes
//     a cgroup for croft-containerd and what it starts, so that the packet filter
//     can tell its connections from the agent's.
//   - It switches the network ports on, which takes a moment until their links
//     are up, and loads the kernel modules that only workloads need.
//   - It supervises the programs in /gokrazy and /user, but for helpers, which
//     others start: one that was killed or ends with an error starts again a
//     second later. The shims of croft-containerd outlive it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gokrazy/gokrazy"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/firmware/watchdog"
)

// cgroups is where cgroup v2 is mounted. In runtimeCgroup are croft-containerd,
// its shims and their log rotators; sandboxes have groups of their own beside it.
const (
	cgroups       = "/sys/fs/cgroup"
	runtimeCgroup = cgroups + "/croft/containerd"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("init: ")
	if err := run(); err != nil {
		log.Fatal(err) // PID 1 ends: the kernel panics and the box restarts
	}
	select {}
}

func run() error {
	keepWatchdog()
	handover, err := takeHandover()
	if err != nil {
		return err
	}
	raiseLinks("/sys/class/net")
	keep, err := keepMount("/perm")
	if err != nil {
		return err
	}
	restore := hideNodes("/sys/block", "/dev", handover)
	err = gokrazy.Boot(string(handover.Version))
	restore()
	keep()
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := os.Chmod("/run", 0o755); err != nil { // gokrazy lets everybody write there
		log.Print(err)
	}
	if err := errors.Join(enableControllers(cgroups), makeCgroup(runtimeCgroup)); err != nil {
		log.Print(err)
	}
	if on, err := os.ReadFile(filepath.Join(cgroups, "cgroup.subtree_control")); err == nil {
		log.Printf("cgroup controllers: %s", on)
	}
	if err := storeHandover(handover); err != nil {
		return err
	}
	err = bootlog.Open("/perm").Update(handover.Slot, func(a *bootlog.Attempt) {
		if a.BootID == handover.BootID {
			a.Stage = bootlog.StageSystem
		}
	})
	if err != nil {
		log.Print(err) // full or read-only: the box boots all the same
	}
	services, err := services()
	if err != nil {
		return err
	}
	go loadWorkloadModules() // ends by itself; PID 1 never does
	return gokrazy.SuperviseServices(services)
}

// keepWatchdog sees to it that the watchdog's descriptor stays in this process
// and in no other.
func keepWatchdog() {
	if fd, err := strconv.Atoi(os.Getenv(watchdog.FDEnv)); err == nil {
		unix.CloseOnExec(fd)
	}
	os.Unsetenv(watchdog.FDEnv)
}

func takeHandover() (bootlog.Handover, error) {
	var h bootlog.Handover
	raw := os.Getenv(bootlog.HandoverEnv)
	os.Unsetenv(bootlog.HandoverEnv)
	if raw == "" {
		return h, errors.New("croft-init left no report: this root only boots from its own initramfs")
	}
	if err := json.Unmarshal([]byte(raw), &h); err != nil {
		return h, fmt.Errorf("read croft-init's report: %w", err)
	}
	return h, nil
}

func storeHandover(h bootlog.Handover) error {
	raw, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(bootlog.HandoverFile), 0o755); err != nil {
		return err
	}
	return os.WriteFile(bootlog.HandoverFile, raw, 0o600)
}

// keepMount remembers what is mounted at dir. The function it returns takes
// away what was mounted over it since.
func keepMount(dir string) (keep func(), err error) {
	var ours unix.Stat_t
	if err := unix.Stat(dir, &ours); err != nil {
		return nil, fmt.Errorf("look at %s: %w", dir, err)
	}
	return func() {
		for {
			var now unix.Stat_t
			if err := unix.Stat(dir, &now); err != nil || now.Dev == ours.Dev {
				return
			}
			log.Printf("something was mounted over %s; taking it away", dir)
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				log.Printf("unmount %s: %v", dir, err)
				return
			}
		}
	}, nil
}

// hideNodes removes the device nodes that gokrazy's search for its disk must
// not see, and returns the function that puts them back. It hides every disk but
// the booted one: a slow one may have appeared since the initramfs looked.
func hideNodes(block, dev string, h bootlog.Handover) (restore func()) {
	var hidden []string
	if h.Perm.Device != "" {
		hidden = append(hidden, h.Perm.Device)
	}
	disks, err := os.ReadDir(block)
	if err != nil {
		log.Printf("list disks: %v", err)
	}
	for _, d := range disks {
		own := strings.HasPrefix(d.Name(), "dm-") || strings.HasPrefix(d.Name(), "loop") // of the root, or not in use yet
		if path := filepath.Join(dev, d.Name()); path != h.Disk && !own {
			hidden = append(hidden, path)
		}
	}
	type node struct {
		path string
		stat unix.Stat_t
	}
	var nodes []node
	for _, path := range hidden {
		n := node{path: path}
		if err := unix.Stat(path, &n.stat); err != nil {
			continue
		}
		if err := unix.Unlink(path); err != nil {
			log.Printf("hide %s: %v", path, err)
			continue
		}
		nodes = append(nodes, n)
	}
	return func() {
		for _, n := range nodes {
			if err := unix.Mknod(n.path, n.stat.Mode, int(n.stat.Rdev)); err != nil {
				log.Printf("restore %s: %v", n.path, err)
			}
		}
	}
}

// enableControllers lets the children of the root cgroup be limited.
func enableControllers(root string) error {
	var failed []error
	for _, controller := range []string{"cpu", "memory", "pids", "io", "cpuset"} {
		err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0)
		if err != nil {
			failed = append(failed, fmt.Errorf("enable cgroup controller %s: %w", controller, err))
		}
	}
	return errors.Join(failed...)
}

// makeCgroup makes a cgroup whose use of everything is counted. It is there
// before any program is, and stays.
func makeCgroup(dir string) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return errors.Join(enableControllers(parent), os.MkdirAll(dir, 0o755)) // better uncounted than none
}

// helpers are programs that other programs start.
var helpers = []string{"containerd-shim-runc-v2", "croft-rotlog", "croft-runsc"}

func services() ([]*gokrazy.Service, error) {
	lines, err := commands("/", wiredInterfaces("/sys/class/net"))
	if err != nil {
		return nil, err
	}
	var list []*gokrazy.Service
	for _, line := range lines {
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Env = os.Environ()
		list = append(list, gokrazy.NewService(cmd))
	}
	return list, nil
}

// commands are the command lines of all programs of the root but this one and
// the helpers.
func commands(root string, nics []string) (lines [][]string, err error) {
	for _, dir := range []string{"gokrazy", "user"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			return nil, fmt.Errorf("list programs: %w", err)
		}
		for _, e := range entries {
			path := filepath.Join("/", dir, e.Name())
			switch {
			case path == "/gokrazy/init", strings.HasPrefix(e.Name(), "."), slices.Contains(helpers, e.Name()):
			case e.Name() == "dhcp":
				for _, nic := range nics {
					lines = append(lines, []string{path, "-interface=" + nic})
				}
			case e.Name() == "croft-containerd":
				lines = append(lines, []string{path, "--cgroup=" + runtimeCgroup, "--after=" + modulesReady, "--pause=10s"})
			default:
				lines = append(lines, []string{path})
			}
		}
	}
	return lines, nil
}

// wiredInterfaces are the Ethernet ports the box has at boot: the owner may
// plug the cable into any of them. Without a port it is eth0, should it appear.
func wiredInterfaces(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, "eth*"))
	if len(paths) == 0 {
		return []string{"eth0"}
	}
	for i, path := range paths {
		paths[i] = filepath.Base(path)
	}
	return paths
}
