package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ofTheBox are paths that only the box has.
var ofTheBox = []string{"/perm", "/user", "/gokrazy", "/run/croft", "/run/containerd", "/boot", "/etc/machine-id"}

// seen tells which of the box's paths are below a folder.
func seen(folder string) []string {
	var list []string
	for _, path := range ofTheBox {
		if _, err := os.Lstat(filepath.Join(folder, path)); err == nil {
			list = append(list, filepath.Join(folder, path))
		}
	}
	return list
}

// outside looks for the box in a folder.
func outside(r *reporter, what, folder string) {
	r.try(what, func() (string, error) {
		if list := seen(folder); len(list) > 0 {
			return strings.Join(list, " "), nil
		}
		return "", errors.New("nothing of the box")
	})
}

// whoami tells who and where it is.
func whoami(r *reporter, _ []string) {
	dir, err := os.Getwd()
	if err != nil {
		dir = err.Error()
	}
	r.tell(Attempt{What: "whoami", Got: fmt.Sprintf("user %d in %s", os.Geteuid(), dir), Count: int64(os.Geteuid())})
	outside(r, "the box from the working folder", ".")
	outside(r, "the box above the working folder", "../../../../../..")
}

// runtimeFiles are the ways by which programs took over what had started them:
// CVE-2019-5736 and CVE-2024-21626 and their like.
func runtimeFiles(r *reporter, _ []string) {
	for _, path := range []string{"/proc/1/exe", "/proc/self/exe", "/proc/thread-self/exe"} {
		r.try("what "+path+" is", func() (string, error) {
			to, err := os.Readlink(path)
			if err == nil && to == "/bin/app" {
				return to, errors.New("its own program")
			}
			return to, err
		})
	}
	outside(r, "the box in /", "/")
	outside(r, "the box behind process 1's root", "/proc/1/root")
	outside(r, "the box behind process 1's folder", "/proc/1/cwd/../../../../..")
	for _, path := range append(matches("/proc/1/fd/*"), matches("/proc/self/fd/*")...) {
		to, err := os.Readlink(path)
		if err != nil {
			continue // it was the glob's own
		}
		r.try(path+" is "+to, func() (string, error) {
			if info, err := os.Stat(path); err != nil || !info.IsDir() {
				return to, errors.New("no folder")
			}
			if list := append(seen(path), seen(path+"/../../../../../..")...); len(list) > 0 {
				return strings.Join(list, " "), nil
			}
			return "", errors.New("nothing of the box")
		})
	}
	for fd := 3; fd < 64; fd++ {
		path := fmt.Sprintf("/proc/self/fd/%d/../../../../../..", fd)
		if list := seen(path); len(list) > 0 {
			r.tell(Attempt{What: path, Got: strings.Join(list, " ")})
		}
	}
	r.try("two changes of root", func() (string, error) {
		if err := os.MkdirAll("/tmp/hostile-root", 0o755); err != nil {
			return "", errnoOf(err)
		}
		up, err := unix.Open("/", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(up)
		if err := unix.Chroot("/tmp/hostile-root"); err != nil {
			return "", err
		}
		if err := unix.Fchdir(up); err != nil {
			return "", err
		}
		if err := errors.Join(os.Chdir("../../../../../../.."), unix.Chroot(".")); err != nil {
			return "", err
		}
		if list := seen("/"); len(list) > 0 {
			return strings.Join(list, " "), nil
		}
		return "", errors.New("nothing of the box")
	})
}

// sockets looks for doors to the box's own programs.
func sockets(r *reporter, _ []string) {
	for _, path := range []string{
		"/var/run/docker.sock", "/run/docker.sock", "/run/croft/containerd.sock", "/run/containerd/containerd.sock", "/run/containerd/containerd.sock.ttrpc",
		"/run/dbus/system_bus_socket", "/run/systemd/private", "/var/run/crio/crio.sock", "@/containerd-shim/moby", "@croft",
	} {
		r.try("connect to "+path, func() (string, error) {
			c, err := net.Dial("unix", path)
			if err != nil {
				return "", errnoOf(err)
			}
			c.Close()
			return "connected", nil
		})
	}
	if text, err := os.ReadFile("/proc/net/unix"); err == nil {
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) > 7 && fields[0] != "Num" {
				r.tell(Attempt{What: "a socket named " + fields[7], Got: line})
			}
		}
	}
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error { // what cannot be read is no door
		if err != nil {
			return nil
		}
		if path == "/proc" || path == "/sys" {
			return filepath.SkipDir
		}
		if d.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0 || d.Type()&fs.ModeDevice != 0 && d.Type()&fs.ModeCharDevice == 0 {
			r.tell(Attempt{What: "a door in the file system", Got: d.Type().String() + " " + path})
		}
		return nil
	})
}

// privileges makes a program of root's for others in each folder given and runs it as
// somebody else.
func privileges(r *reporter, folders []string) {
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		r.tell(Attempt{What: "read the program", Failed: word(err)})
		return
	}
	for _, folder := range folders {
		path := filepath.Join(folder, "hostile-suid")
		r.try("be root through "+path, func() (string, error) {
			if err := os.WriteFile(path, own, 0o755); err != nil {
				return "", errnoOf(err)
			}
			defer func() { _ = os.Remove(path) }()
			if err := os.Chmod(path, 0o4755|fs.ModeSetuid); err != nil {
				return "", errnoOf(err)
			}
			said, err := spawnAs(path, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}, context.Background(), "whoami")
			if err != nil {
				return string(said), err
			}
			if strings.Contains(string(said), "user 0 ") {
				return string(said), nil
			}
			return string(said), errors.New("somebody else")
		})
	}
	for _, c := range []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_MODULE, unix.CAP_SYS_PTRACE, unix.CAP_SYS_RAWIO, unix.CAP_SYS_BOOT, unix.CAP_SYS_TIME, unix.CAP_DAC_READ_SEARCH, unix.CAP_BPF} {
		r.try(fmt.Sprintf("have capability %d", c), func() (string, error) {
			has, _, errno := unix.Syscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c, 0)
			if errno != 0 {
				return "", errno
			}
			if has == 0 {
				return "", errors.New("it has not")
			}
			return "it has", nil
		})
	}
}
