package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// attack tries what is known to have led out of containers. It prints what
// succeeded, as JSON, with what it saw of the kernel.
func attack() {
	var won []string
	try := func(name string, err error) {
		if err == nil {
			won = append(won, name)
		}
	}
	call := func(number uintptr, args ...uintptr) error {
		args = append(args, make([]uintptr, 6-len(args))...)
		if _, _, errno := syscall.Syscall6(number, args[0], args[1], args[2], args[3], args[4], args[5]); errno != 0 {
			return errno
		}
		return nil
	}
	text := func(s string) uintptr {
		raw := append([]byte(s), 0)
		return uintptr(unsafe.Pointer(&raw[0]))
	}
	socket := func(domain, kind, protocol int) error {
		fd, err := syscall.Socket(domain, kind, protocol)
		if err == nil {
			syscall.Close(fd)
		}
		return err
	}
	open := func(path string, flags int) error {
		fd, err := syscall.Open(path, flags|syscall.O_NONBLOCK, 0)
		if err == nil {
			syscall.Close(fd)
		}
		return err
	}

	// Forged packets (CVE-2020-14386 began with a packet socket).
	try("raw socket", socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP))
	try("raw socket of version six", socket(syscall.AF_INET6, syscall.SOCK_RAW, syscall.IPPROTO_ICMPV6))
	try("packet socket", socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0))
	try("vsock to the machine", socket(40, syscall.SOCK_STREAM, 0))

	// Devices: made here, and brought by the image.
	for _, d := range []struct {
		name         string
		kind         uint32
		major, minor int
	}{
		{"memory", syscall.S_IFCHR, 1, 1}, {"kernel log", syscall.S_IFCHR, 1, 11}, {"loop control", syscall.S_IFCHR, 10, 237},
		{"watchdog", syscall.S_IFCHR, 10, 130}, {"mapper", syscall.S_IFCHR, 10, 236}, {"kvm", syscall.S_IFCHR, 10, 232},
		{"loop", syscall.S_IFBLK, 7, 0}, {"disk", syscall.S_IFBLK, 8, 0}, {"virtual disk", syscall.S_IFBLK, 254, 0}, {"flash disk", syscall.S_IFBLK, 259, 0},
	} {
		path := "/made " + d.name
		err := syscall.Mknod(path, d.kind|0o666, d.major<<8|d.minor)
		if err == nil {
			err = open(path, syscall.O_RDWR)
		}
		try("device "+d.name, err)
		path = fmt.Sprintf("/brought/%d-%d-%d", d.kind, d.major, d.minor)
		err = open(path, syscall.O_RDONLY)
		if errors.Is(err, syscall.ENOENT) {
			won = append(won, path+" is not in the image: the test is broken")
		}
		try("device of the image "+d.name, err)
	}

	// The kernel's own doors.
	write := func(path, text string) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(text)
		return err
	}
	try("core pattern", write("/proc/sys/kernel/core_pattern", "core"))
	try("module path", write("/proc/sys/kernel/modprobe", "/sbin/modprobe"))
	try("sysrq", write("/proc/sysrq-trigger", "h"))
	try("uevent helper", write("/sys/kernel/uevent_helper", "x"))
	try("memory image", open("/proc/kcore", syscall.O_RDONLY))
	try("release agent", func() error {
		if err := os.MkdirAll("/cgroup", 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("cgroup", "/cgroup", "cgroup", 0, "rdma"); err != nil {
			return err
		}
		return write("/cgroup/release_agent", "/x") // CVE-2022-0492
	}())
	try("mount of a disk", syscall.Mount("/made disk", "/mnt", "ext4", 0, ""))
	try("handle of the root", func() error { // shocker.c
		handle := [...]byte{8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}
		root, err := syscall.Open("/data", syscall.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return call(304, uintptr(root), uintptr(unsafe.Pointer(&handle[0])), 0)
	}())
	var nothing [128]byte
	try("bpf", call(321, 5, uintptr(unsafe.Pointer(&nothing[0])), 120))
	try("perf", call(298, uintptr(unsafe.Pointer(&nothing[0])), 0, 0, ^uintptr(0), 0))
	try("module", call(175, uintptr(unsafe.Pointer(&nothing[0])), 128, text("")))
	try("kexec", call(246, 0, 0, 0, 0))
	try("keyring", call(248, text("user"), text("croft"), text("x"), 1, ^uintptr(3)))
	try("ports", call(172, 3))
	try("namespace of another", func() error {
		f, err := os.Open("/proc/1/ns/mnt")
		if err != nil {
			return err
		}
		return call(308, f.Fd(), 0)
	}())
	try("clock", syscall.Settimeofday(&syscall.Timeval{Sec: 1}))

	// What a volume may hold.
	try("socket of the machine", func() error {
		conn, err := net.Dial("unix", "/data/host.sock")
		if err == nil {
			conn.Close()
		}
		return err
	}())
	try("pipe of the machine", open("/data/host.pipe", syscall.O_RDWR))
	try("link out of the volume", open("/data/host.link", syscall.O_RDONLY))

	// Set-user-id programs, and files that only root may read.
	var uts syscall.Utsname
	_ = syscall.Uname(&uts)
	var release []byte
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	line, _ := json.Marshal(map[string]any{"won": won, "release": string(release), "euid": os.Geteuid()})
	fmt.Println(string(line))
}
