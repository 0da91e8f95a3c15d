//go:build integration && !vm

package leasedisk

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
)

// What any machine can do.
const (
	encrypted  = false
	deviceSize = MinSize
)

func TestWithoutItsCapabilityNobodyGetsASmallerDisk(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its capabilities with it
	caps := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&caps, &data[0]))
	data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	must(t, unix.Capset(&caps, &data[0]))
	w := realWorld(t)
	s := w.store(w.sys)
	must(t, s.Create(t.Context(), keyA, MinSize+32<<20))
	_, err := s.Open(t.Context(), keyA)
	wantKind(t, err, croft.KindMissing)
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("error is %v", err)
	}
	w.clean(t)
	w.dispose(s)
}

func TestFullFileSystemRefusesADiskAndTakesItLater(t *testing.T) {
	w := realWorld(t)
	must(t, os.Mkdir(w.cfg.Dir, 0o700))
	// Room for the folder and nothing in it.
	must(t, unix.Mount("full", w.cfg.Dir, "tmpfs", 0, "size=64m,nr_inodes=2"))
	t.Cleanup(func() { must(t, unix.Unmount(w.cfg.Dir, 0)) })
	s := w.store(w.sys)
	err := s.Create(t.Context(), keyA, w.size)
	wantKind(t, err, croft.KindNoSpace)
	if d := w.look(s); d.State != Unfinished {
		t.Errorf("the disk is %s", d.State)
	}
	w.clean(t)
	w.dispose(s)
	must(t, unix.Mount("full", w.cfg.Dir, "tmpfs", unix.MS_REMOUNT, "size=64m,nr_inodes=20"))
	w.used(s)
	w.dispose(s)
}
