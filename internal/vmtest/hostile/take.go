package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// forks makes processes until no more can be had, at most N, and ends them.
func forks(r *reporter, args []string) {
	most := number(args, 0, 1<<20)
	var children []int
	var err error
	for len(children) < most {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			err = errno
			break
		}
		if pid == 0 {
			for { // the copy has one thread and no Go runtime
				_, _, _ = syscall.RawSyscall(syscall.SYS_PAUSE, 0, 0, 0)
			}
		}
		children = append(children, int(pid))
	}
	a := Attempt{What: fmt.Sprintf("%d processes", most), Count: int64(len(children))}
	if err != nil {
		a.Failed = word(err)
	}
	r.tell(a)
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for range children {
		var status syscall.WaitStatus
		_, _ = syscall.Wait4(-1, &status, 0, nil)
	}
}

// threads makes threads until no more can be had, at most N. The runtime of Go ends
// the program when it gets none.
func threads(r *reporter, args []string) {
	most := number(args, 0, 1<<20)
	var n atomic.Int64
	for range most {
		go func() {
			runtime.LockOSThread()
			n.Add(1)
			_ = unix.Pause() // only a signal ends it
		}()
	}
	for last := int64(-1); n.Load() < int64(most) && n.Load() != last; time.Sleep(time.Second) {
		last = n.Load()
	}
	r.tell(Attempt{What: fmt.Sprintf("%d threads", most), Count: n.Load()})
}

// memory takes MIB of memory, page by page, and keeps it.
func memory(r *reporter, args []string) {
	most := number(args, 0, 1<<20)
	var taken [][]byte
	for len(taken) < most {
		block, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			r.tell(Attempt{What: "memory", Failed: word(err), Count: int64(len(taken)) << 20})
			return
		}
		for i := 0; i < len(block); i += 4096 {
			block[i] = byte(i>>12) + 1
		}
		taken = append(taken, block)
	}
	r.tell(Attempt{What: "memory", Count: int64(len(taken)) << 20})
}

// shared takes memory as files: in each folder given, then as files without a name,
// MIB in all for each.
func shared(r *reporter, args []string) {
	most := number(args, 0, 1024)
	for _, folder := range args[1:] {
		path := filepath.Join(folder, "hostile-memory")
		n, err := write(path, most)
		a := Attempt{What: "a file in " + folder, Count: n}
		if err != nil {
			a.Failed = word(err)
		}
		r.tell(a)
		_ = os.Remove(path) // it may not be there
	}
}

// spin keeps all processors busy for a while, and tells how much time it had.
func spin(r *reporter, args []string) {
	end := time.Now().Add(time.Duration(number(args, 0, 10)) * time.Second)
	done := make(chan struct{})
	n := 4 * runtime.NumCPU()
	for range n {
		go func() {
			for time.Now().Before(end) {
				for i := range 1 << 16 {
					_ = i * i
				}
			}
			done <- struct{}{}
		}()
	}
	for range n {
		<-done
	}
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		r.tell(Attempt{What: "spin", Failed: word(err)})
		return
	}
	r.tell(Attempt{What: "spin", Count: used.Utime.Nano() + used.Stime.Nano()})
}

// write writes a file of so many MiB and tells how many bytes it took.
func write(path string, mib int) (int64, error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	var all int64
	for range mib {
		n, err := f.Write(block)
		all += int64(n)
		if err != nil {
			return all, err
		}
	}
	return all, f.Sync()
}

// fill writes to a folder until it is full, at most MIB.
func fill(r *reporter, args []string) {
	n, err := write(filepath.Join(args[0], "hostile-fill"), number(args, 1, 1<<20))
	a := Attempt{What: "fill " + args[0], Count: n}
	if err != nil {
		a.Failed = word(err)
	}
	r.tell(a)
}

// inodes makes empty files in a folder, at most N.
func inodes(r *reporter, args []string) {
	dir := filepath.Join(args[0], "hostile-inodes")
	a := Attempt{What: "files in " + args[0]}
	err := os.MkdirAll(dir, 0o755)
	for most := number(args, 1, 1<<20); err == nil && a.Count < int64(most); a.Count++ {
		err = unix.Mknod(filepath.Join(dir, fmt.Sprint(a.Count)), unix.S_IFREG|0o600, 0)
	}
	if err != nil {
		a.Failed = word(err)
	}
	r.tell(a)
}

// clearFolder empties a folder.
func clearFolder(r *reporter, args []string) {
	entries, err := os.ReadDir(args[0])
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(args[0], e.Name())))
	}
	r.try("clear "+args[0], func() (string, error) { return fmt.Sprintf("%d entries", len(entries)), err })
}

// links puts snares into a folder: links to where whoever follows them from outside
// should not go, and names that are hard to handle.
func links(r *reporter, args []string) {
	for name, to := range map[string]string{
		"log": "/perm/croft/hosting/journal", "root": "/", "perm": "/perm", "up": "../../../../../../../..", "run": "/run/croft",
		"loop": "loop", "proc": "/proc/1/root", "disk.img": "/perm/croft/hosting/leases", "..data": "/perm",
	} {
		r.try("a link "+name+" to "+to, func() (string, error) { return "made", os.Symlink(to, filepath.Join(args[0], name)) })
	}
	for _, name := range []string{"-rf", "a\nb", "\xff\xfe", "$(reboot)", strings.Repeat("n", 255)} {
		r.try(fmt.Sprintf("a file named %.20q", name), func() (string, error) {
			return "made", os.WriteFile(filepath.Join(args[0], name), nil, fs.ModeSetuid|0o777)
		})
	}
	deep, n := args[0], 0
	for ; n < 200; n++ { // longer than any path may be
		next := filepath.Join(deep, strings.Repeat("d", 100))
		if os.Mkdir(next, 0o700) != nil || os.Chdir(next) != nil {
			break
		}
		deep = "."
	}
	r.tell(Attempt{What: "folders in folders", Count: int64(n)})
}
