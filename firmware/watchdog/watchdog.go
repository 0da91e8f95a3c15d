// Package watchdog holds the box's hardware watchdog from the first second of
// a boot to its last.
//
// croft-init arms it ([Arm]) and leaves the descriptor open; it survives the
// change to the real root as a descriptor of PID 1. The agent takes a copy of
// that descriptor ([Adopt]) and feeds it. Nobody closes it: whatever dies, hangs
// or is never started, the hardware resets the box when its time is over.
//
// Work that may take longer than the hardware waits is done under [Hold], which
// feeds for a limited time: what is still not done then counts as hung.
package watchdog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FDEnv is the environment variable that tells PID 1 the number of the
// descriptor it inherits from croft-init.
const FDEnv = "CROFT_WATCHDOG_FD"

// nodes is what the device nodes of watchdogs are called.
const nodes = "/dev/watchdog*"

// Device is an armed watchdog. Nil is a box without one.
type Device struct {
	f        *os.File
	identity string
}

// Arm opens the watchdog at path, for example /dev/watchdog0, and sets its
// time, or the longest the hardware offers below it. From here on the box is
// reset unless it is fed. With an error there is no device, but the hardware may
// be armed all the same.
func Arm(path string, timeout time.Duration) (*Device, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open watchdog: %w", err)
	}
	d := newDevice(f)
	// Drivers refuse more than they can; halve until one fits. A driver with
	// one fixed time refuses every value and works all the same.
	for seconds := int(timeout / time.Second); seconds > 0; seconds /= 2 {
		err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, seconds)
		if err == nil || seconds <= 8 {
			break
		}
	}
	if err := d.Feed(); err != nil {
		return nil, err
	}
	return d, nil
}

func newDevice(f *os.File) *Device {
	d := &Device{f: f}
	var info unix.WatchdogInfo
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.WDIOC_GETSUPPORT, uintptr(unsafe.Pointer(&info))); errno == 0 {
		d.identity = unix.ByteSliceToString(info.Identity[:])
	}
	return d
}

// Identity is the driver's name of the hardware; may be empty.
func (d *Device) Identity() string {
	if d == nil {
		return ""
	}
	return d.identity
}

// Feed starts the hardware's time anew. It writes a byte, which every driver
// takes; the keep-alive ioctl is refused by some. The byte is not 'V', which
// would allow to disarm.
func (d *Device) Feed() error {
	if d == nil {
		return nil
	}
	if _, err := d.f.Write([]byte{0}); err != nil {
		return fmt.Errorf("feed watchdog: %w", err)
	}
	return nil
}

// Inherit returns the descriptor's number after making sure that the programs
// this process executes next keep it open.
func (d *Device) Inherit() (int, error) {
	fd := int(d.f.Fd())
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		return 0, fmt.Errorf("keep watchdog open: %w", err)
	}
	return fd, nil
}

// ErrNone reports that the box has no armed watchdog.
var ErrNone = errors.New("no armed watchdog")

// Adopt copies the armed watchdog's descriptor out of process pid (1 on the
// box). It needs the right to trace that process.
func Adopt(pid int) (*Device, error) { return adopt(pid, nodes) }

func adopt(pid int, nodes string) (*Device, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for the watchdog of process %d: %w", pid, err)
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if ok, _ := filepath.Match(nodes, target); !ok {
			continue
		}
		theirs, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fd, err := copyDescriptor(pid, theirs)
		if err != nil {
			return nil, fmt.Errorf("copy the watchdog of process %d: %w", pid, err)
		}
		return newDevice(os.NewFile(uintptr(fd), target)), nil
	}
	return nil, ErrNone
}

func copyDescriptor(pid, theirs int) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	return unix.PidfdGetfd(pidfd, theirs, 0) // closed on exec
}

// Feeder is what [Hold] needs of a [Device].
type Feeder interface{ Feed() error }

// Hold feeds w now and every 5 s until the function it returns is called, but
// for limit at most. A watchdog that takes no food resets the box, as it should.
func Hold(w Feeder, limit time.Duration) (release func()) {
	done := make(chan struct{})
	var holding sync.WaitGroup
	holding.Go(func() {
		over := time.NewTimer(limit)
		defer over.Stop()
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			_ = w.Feed()
			select {
			case <-done:
				return
			case <-over.C:
				return
			case <-tick.C:
			}
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		holding.Wait()
	})
}
