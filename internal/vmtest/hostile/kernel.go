package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settings writes to what belongs to the machine's kernel.
func settings(r *reporter, _ []string) {
	for path, text := range map[string]string{
		"/proc/sys/kernel/core_pattern":               "|/proc/%P/root/bin/app whoami",
		"/proc/sys/kernel/modprobe":                   "/bin/app",
		"/proc/sys/kernel/hostname":                   "hostile",
		"/proc/sys/kernel/panic":                      "1",
		"/proc/sys/kernel/pid_max":                    "400",
		"/proc/sys/kernel/randomize_va_space":         "0",
		"/proc/sys/kernel/unprivileged_bpf_disabled":  "0",
		"/proc/sys/kernel/yama/ptrace_scope":          "0",
		"/proc/sys/vm/overcommit_memory":              "1",
		"/proc/sys/vm/drop_caches":                    "3",
		"/proc/sys/vm/panic_on_oom":                   "2",
		"/proc/sys/fs/file-max":                       "10",
		"/proc/sys/fs/binfmt_misc/register":           ":x:M::\\x7f\\x45\\x4c\\x46::/bin/app:",
		"/proc/sys/fs/suid_dumpable":                  "2",
		"/proc/sys/net/ipv4/ip_forward":               "0",
		"/proc/sys/net/ipv4/conf/all/rp_filter":       "0",
		"/proc/sysrq-trigger":                         "c",
		"/proc/irq/default_smp_affinity":              "1",
		"/proc/1/oom_score_adj":                       "-1000",
		"/proc/self/oom_score_adj":                    "-1000",
		"/proc/1/mem":                                 "x",
		"/proc/acpi/wakeup":                           "x",
		"/proc/fs/nfsd/threads":                       "1",
		"/sys/kernel/uevent_helper":                   "/bin/app",
		"/sys/kernel/mm/transparent_hugepage/enabled": "never",
		"/sys/power/state":                            "mem",
		"/sys/fs/cgroup/cgroup.procs":                 "1",
		"/sys/fs/cgroup/memory.max":                   "max",
		"/sys/fs/cgroup/pids.max":                     "max",
		"/sys/fs/cgroup/cpu.max":                      "max",
		"/sys/fs/cgroup/release_agent":                "/bin/app",
		"/sys/class/block/vda/uevent":                 "add",
		"/sys/block/vda/queue/scheduler":              "none",
		"/sys/bus/pci/rescan":                         "1",
		"/sys/firmware/efi/vars/new_var":              "x",
		"/sys/hostile":                                "x",
		"/proc/hostile":                               "x",
	} {
		r.try(path, func() (string, error) {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
			if err != nil {
				return "", errnoOf(err)
			}
			defer f.Close()
			_, err = f.WriteString(text)
			return "", errnoOf(err)
		})
	}
	for _, path := range []string{
		"/proc/kcore", "/proc/kallsyms", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/iomem",
		"/proc/modules", "/proc/vmallocinfo", "/proc/slabinfo", "/proc/1/maps", "/proc/1/environ", "/sys/kernel/debug", "/sys/kernel/security",
		"/sys/firmware/dmi/tables/DMI", "/sys/fs/bpf", "/sys/module", "/sys/class/net/eth0/address", "/sys/class/block",
	} {
		r.try("read "+path, func() (string, error) {
			if entries, err := os.ReadDir(path); err == nil {
				return fmt.Sprint(entries), nil
			}
			f, err := os.Open(path)
			if err != nil {
				return "", errnoOf(err)
			}
			defer f.Close()
			text := make([]byte, 500)
			n, err := f.Read(text)
			return string(text[:max(n, 0)]), errnoOf(err)
		})
	}
}

// errnoOf is the number within an error of package os.
func errnoOf(err error) error {
	for err != nil {
		inner, ok := err.(interface{ Unwrap() error })
		if !ok {
			break
		}
		err = inner.Unwrap()
	}
	return err
}

// numbers are devices of a machine, as Linux numbers them.
var numbers = []struct {
	name         string
	kind         uint32
	major, minor uint32
}{
	{"mem", unix.S_IFCHR, 1, 1},
	{"kmem", unix.S_IFCHR, 1, 2},
	{"port", unix.S_IFCHR, 1, 4},
	{"kmsg", unix.S_IFCHR, 1, 11},
	{"vda", unix.S_IFBLK, 254, 0},
	{"vda-253", unix.S_IFBLK, 253, 0},
	{"vda-252", unix.S_IFBLK, 252, 0},
	{"sda", unix.S_IFBLK, 8, 0},
	{"loop0", unix.S_IFBLK, 7, 0},
	{"loop-control", unix.S_IFCHR, 10, 237},
	{"device-mapper", unix.S_IFCHR, 10, 236},
	{"kvm", unix.S_IFCHR, 10, 232},
	{"tun", unix.S_IFCHR, 10, 200},
	{"fuse", unix.S_IFCHR, 10, 229},
	{"tpm0", unix.S_IFCHR, 10, 224},
	{"watchdog", unix.S_IFCHR, 10, 130},
	{"vhost-net", unix.S_IFCHR, 10, 238},
	{"ttyS0", unix.S_IFCHR, 4, 64},
	{"console", unix.S_IFCHR, 5, 1},
	{"nvidiactl", unix.S_IFCHR, 195, 255},
}

// devices opens those of the machine: as the image has them, then made anew, in the
// root and in the folders given.
func devices(r *reporter, folders []string) {
	for _, d := range numbers {
		r.try("open /dev/"+d.name, func() (string, error) { return open(filepath.Join("/dev", d.name)) })
		for _, folder := range append([]string{"/tmp", "/dev"}, folders...) {
			path := filepath.Join(folder, "hostile-"+d.name)
			r.try("make and open "+path, func() (string, error) {
				if err := unix.Mknod(path, d.kind|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
					return "", err
				}
				defer func() { _ = os.Remove(path) }()
				return open(path)
			})
		}
	}
}

// openAll opens what the image brings.
func openAll(r *reporter, paths []string) {
	for _, path := range paths {
		r.try("open "+path, func() (string, error) { return open(path) })
	}
}

func open(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return "opened", nil
}

// mounts mounts everything that could show more of the machine.
func mounts(r *reporter, args []string) {
	how := strings.Join(args, " ")
	at := "/tmp/hostile-mount"
	_ = os.MkdirAll(at, 0o755) // it may be there
	for _, m := range []struct {
		source, kind string
		flags        uintptr
		data         string
		foreign      bool // not to be had of an enclosure's own kernel
	}{
		{"none", "tmpfs", 0, "", false},
		{"proc", "proc", 0, "", false},
		{"sysfs", "sysfs", 0, "", false},
		{"cgroup", "cgroup", 0, "rdma", false},
		{"cgroup", "cgroup", 0, "memory", false},
		{"cgroup2", "cgroup2", 0, "", false},
		{"/", "", unix.MS_BIND | unix.MS_REC, "", false},
		{"/proc/1/root", "", unix.MS_BIND, "", false},
		{"dev", "devtmpfs", 0, "", false},
		{"debugfs", "debugfs", 0, "", true},
		{"securityfs", "securityfs", 0, "", true},
		{"bpf", "bpf", 0, "", true},
		{"mqueue", "mqueue", 0, "", false},
		{"efivarfs", "efivarfs", 0, "", true},
		{"overlay", "overlay", 0, "lowerdir=/,upperdir=/tmp,workdir=/tmp/w", false},
		{"/dev/vda", "ext4", 0, "", true},
		{"/dev/vda4", "ext4", 0, "", true},
		{"/dev/loop0", "ext4", 0, "", true},
		{"10.0.2.2:/", "nfs", 0, "addr=10.0.2.2", true},
		{"9p", "9p", 0, "trans=virtio", true},
		{"x", "fuse", 0, "fd=0,rootmode=40000,user_id=0,group_id=0", false},
	} {
		r.try(fmt.Sprintf("%smount %s %s", how, m.source, m.kind), func() (string, error) {
			if err := unix.Mount(m.source, at, m.kind, m.flags, m.data); err != nil {
				return "", err
			}
			defer unix.Unmount(at, unix.MNT_DETACH) //nolint:errcheck // what it hides does no harm
			if list := seen(at); len(list) > 0 {
				return strings.Join(list, " "), nil
			}
			if err := os.WriteFile(at+"/release_agent", []byte("/bin/app"), 0); m.kind == "cgroup" && err == nil {
				return "the kernel would start /bin/app", nil
			}
			if m.foreign {
				return "mounted", nil
			}
			return "", errors.New("mounted, and nothing of the box is there")
		})
	}
	for what, do := range map[string]func() error{
		"make the root writable by remounting": func() error { return unix.Mount("", "/sys", "", unix.MS_REMOUNT, "") },
		"make mounts shared":                   func() error { return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "") },
		"uncover what is below /proc":          func() error { return unix.Unmount("/proc", unix.MNT_DETACH) },
		"uncover what is below /sys":           func() error { return unix.Unmount("/sys", unix.MNT_DETACH) },
		"change the root":                      func() error { return unix.PivotRoot("/tmp", "/tmp/hostile-mount") },
		"open a file system":                   func() error { _, err := unix.Fsopen("ext4", 0); return err },
		"copy a tree of mounts":                func() error { _, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE); return err },
		"set a mount's attributes": func() error {
			return unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		},
	} {
		r.try(how+what, func() (string, error) { return "", do() })
	}
}

// spaces makes new namespaces, in each of which it is root, and mounts there; then it
// enters those of others.
func spaces(r *reporter, _ []string) {
	runtime.LockOSThread()
	for name, flag := range map[string]uintptr{
		"mounts": unix.CLONE_NEWNS, "names": unix.CLONE_NEWUTS, "messages": unix.CLONE_NEWIPC, "network": unix.CLONE_NEWNET,
		"processes": unix.CLONE_NEWPID, "cgroups": unix.CLONE_NEWCGROUP, "time": 0x80,
	} {
		r.call("a namespace for "+name, unix.SYS_UNSHARE, flag, 0, 0, 0, 0, 0)
	}
	for _, path := range matches("/proc/1/ns/*") {
		r.try("enter "+path, func() (string, error) {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			return "", unix.Setns(fd, 0)
		})
	}
	// As root of users of its own it might mount what it may not here.
	said, err := spawnAs("/proc/self/exe", &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}},
	}, context.Background(), "mounts", "as root of users of its own, ")
	r.try("users of its own", func() (string, error) { return "made; what it may do there follows", err })
	for line := range strings.Lines(string(said)) {
		var a Attempt
		if json.Unmarshal([]byte(line), &a) == nil {
			r.tell(a)
		}
	}
}

func matches(pattern string) []string {
	list, err := filepath.Glob(pattern)
	if err != nil {
		return nil
	}
	return list
}

// calls are system calls that change or show the machine, or that were holes before.
func calls(r *reporter, _ []string) {
	zero := make([]byte, 4096)
	p := uintptr(unsafe.Pointer(&zero[0]))
	root := []byte("/\x00")
	path := uintptr(unsafe.Pointer(&root[0]))
	word := []byte("user\x00")
	w := uintptr(unsafe.Pointer(&word[0]))
	perf := make([]byte, 128)
	perf[4] = 128
	q := uintptr(unsafe.Pointer(&perf[0]))
	now := unix.Timespec{Sec: 1}
	nowAt := uintptr(unsafe.Pointer(&now))
	limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	handle := make([]byte, 128+8)
	handle[0] = 128
	h := uintptr(unsafe.Pointer(&handle[0]))
	mountID := uintptr(unsafe.Pointer(&zero[64]))
	at := func(n int) uintptr { return uintptr(n) } // AT_FDCWD is negative
	for _, c := range []struct {
		what   string
		number uintptr
		args   [6]uintptr
	}{
		{"load a kernel module", unix.SYS_INIT_MODULE, [6]uintptr{p, 64, p}},
		{"load a kernel module from a file", unix.SYS_FINIT_MODULE, [6]uintptr{0, p}},
		{"remove a kernel module", unix.SYS_DELETE_MODULE, [6]uintptr{w, 0}},
		{"load another kernel", unix.SYS_KEXEC_LOAD, [6]uintptr{0, 0, 0, 0}},
		{"load another kernel from a file", unix.SYS_KEXEC_FILE_LOAD, [6]uintptr{0, 0, 0, p}},
		{"switch Ctrl-Alt-Del off", unix.SYS_REBOOT, [6]uintptr{unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF}},
		{"restart the machine", unix.SYS_REBOOT, [6]uintptr{unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_RESTART}},
		{"switch the machine off", unix.SYS_REBOOT, [6]uintptr{unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_POWER_OFF}},
		{"set the time of day", unix.SYS_SETTIMEOFDAY, [6]uintptr{nowAt, 0}},
		{"set the clock", unix.SYS_CLOCK_SETTIME, [6]uintptr{unix.CLOCK_REALTIME, nowAt}},
		{"turn the clock's speed", unix.SYS_ADJTIMEX, [6]uintptr{p}},
		{"name the host", unix.SYS_SETHOSTNAME, [6]uintptr{w, 4}},
		{"swap to a file", unix.SYS_SWAPON, [6]uintptr{path, 0}},
		{"count to a file", unix.SYS_ACCT, [6]uintptr{path}},
		{"read the kernel's log", unix.SYS_SYSLOG, [6]uintptr{3, p, 4096}},
		{"clear the kernel's log", unix.SYS_SYSLOG, [6]uintptr{5, 0, 0}},
		{"use ports of the processor", unix.SYS_IOPL, [6]uintptr{3}},
		{"use some ports of the processor", unix.SYS_IOPERM, [6]uintptr{0x64, 1, 1}},
		{"change a table of the processor", unix.SYS_MODIFY_LDT, [6]uintptr{1, p, 16}},
		{"load a program into the kernel", unix.SYS_BPF, [6]uintptr{5, p, 48}},
		{"make a map for such programs", unix.SYS_BPF, [6]uintptr{0, p, 48}},
		{"a ring of requests", unix.SYS_IO_URING_SETUP, [6]uintptr{8, p}},
		{"add a key", unix.SYS_ADD_KEY, [6]uintptr{w, w, p, 4, ^uintptr(0) - 2}},
		{"read the session's keys", unix.SYS_KEYCTL, [6]uintptr{11, ^uintptr(0) - 2, p, 64}},
		{"join a session of keys", unix.SYS_KEYCTL, [6]uintptr{1, 0}},
		{"ask for a key", unix.SYS_REQUEST_KEY, [6]uintptr{w, w, w, 0}},
		{"handle faults of pages", unix.SYS_USERFAULTFD, [6]uintptr{0}},
		{"count events of all programs", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{q, ^uintptr(0), 0, ^uintptr(0), 0}},
		{"count its own events", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{q, 0, ^uintptr(0), ^uintptr(0), 0}},
		{"take the handle of a file", unix.SYS_NAME_TO_HANDLE_AT, [6]uintptr{at(unix.AT_FDCWD), path, h, mountID, 0}},
		{"open a file by its handle", unix.SYS_OPEN_BY_HANDLE_AT, [6]uintptr{at(unix.AT_FDCWD), h, 0}},
		{"set quotas", unix.SYS_QUOTACTL, [6]uintptr{0x80000200, path, 0, p}},
		{"copy memory of process 1", unix.SYS_PROCESS_VM_READV, [6]uintptr{1, p, 1, p, 1, 0}},
		{"compare with process 1", unix.SYS_KCMP, [6]uintptr{1, 1, 0, 0, 0}},
		{"raise the limit of files", unix.SYS_PRLIMIT64, [6]uintptr{0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limit)), 0}},
		{"watch all of a file system", unix.SYS_FANOTIFY_INIT, [6]uintptr{0, 0}},
		{"look up a dcookie", unix.SYS_LOOKUP_DCOOKIE, [6]uintptr{1, p, 64}},
		{"hang the terminal up", unix.SYS_VHANGUP, [6]uintptr{}},
		{"move pages to another node", unix.SYS_MOVE_PAGES, [6]uintptr{1, 0, 0, 0, 0, 0}},
		{"confine itself by Landlock", unix.SYS_LANDLOCK_CREATE_RULESET, [6]uintptr{p, 8, 0}},
		{"memory that is secret", unix.SYS_MEMFD_SECRET, [6]uintptr{0}},
	} {
		r.call(c.what, c.number, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
	}
	runtime.KeepAlive([]any{zero, root, word, perf, handle, &now, &limit})
}

// trace takes hold of other processes.
func trace(r *reporter, _ []string) {
	runtime.LockOSThread()
	r.try("attach to process 1", func() (string, error) {
		if err := unix.PtraceAttach(1); err != nil {
			return "", err
		}
		var status unix.WaitStatus
		_, err := unix.Wait4(1, &status, unix.WALL, nil)
		if err == nil {
			err = unix.PtraceDetach(1)
		}
		return "attached", err
	})
	var foreign []string
	for _, path := range matches("/proc/[0-9]*/cmdline") {
		text, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(text), "/bin/app") && !strings.Contains(string(text), "/proc/self/exe") {
			foreign = append(foreign, fmt.Sprintf("%s: %q", path, text))
		}
	}
	a := Attempt{What: "see processes of others", Failed: "none", Got: strings.Join(foreign, "; ")}
	if len(foreign) > 0 {
		a.Failed = ""
	}
	r.tell(a)
}
