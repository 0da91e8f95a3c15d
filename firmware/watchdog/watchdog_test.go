package watchdog

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// fakeNode is a plain file in place of /dev/watchdog0: it takes food and knows
// no ioctl, like a driver that refuses them all.
func fakeNode(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "watchdog0")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func wantFood(t *testing.T, path string, times int) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, make([]byte, times)) {
		t.Errorf("the watchdog was written %q, want %d zero bytes: a 'V' would disarm it", got, times)
	}
}

func TestArmFeedsAtOnceAndTakesADriverWithoutIoctls(t *testing.T) {
	path := fakeNode(t)
	d, err := Arm(path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer d.f.Close()
	wantFood(t, path, 1)
	if err := d.Feed(); err != nil {
		t.Fatal(err)
	}
	wantFood(t, path, 2)
	if d.Identity() != "" {
		t.Errorf("identity is %q", d.Identity())
	}
	if _, err := Arm(path+"-missing", time.Minute); err == nil {
		t.Error("no error without a device")
	}
	if _, err := Arm("/dev/full", time.Minute); err == nil {
		t.Error("no error from a device that takes no food")
	}
}

func TestArmKeepsTheDescriptorForTheNextProgramOnlyWhenAsked(t *testing.T) {
	d, err := Arm(fakeNode(t), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer d.f.Close()
	flags := func() int {
		t.Helper()
		flags, err := unix.FcntlInt(d.f.Fd(), unix.F_GETFD, 0)
		if err != nil {
			t.Fatal(err)
		}
		return flags
	}
	if flags()&unix.FD_CLOEXEC == 0 {
		t.Error("every program started would hold the watchdog")
	}
	fd, err := d.Inherit()
	if err != nil || fd != int(d.f.Fd()) {
		t.Fatalf("Inherit() = %d, %v", fd, err)
	}
	if flags()&unix.FD_CLOEXEC != 0 {
		t.Error("the next program would not get the watchdog")
	}
}

// TestAdoptCopiesTheDescriptorOfAnotherProcess needs the right to trace a child.
func TestAdoptCopiesTheDescriptorOfAnotherProcess(t *testing.T) {
	path := fakeNode(t)
	node, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	// The child holds the node as descriptor 3 until its input ends.
	holder := exec.Command("sh", "-c", "echo ready; read _")
	holder.ExtraFiles = []*os.File{node}
	release, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		release.Close()
		_ = holder.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}

	d, err := adopt(holder.Process.Pid, filepath.Join(filepath.Dir(path), "watchdog*"))
	if err != nil {
		t.Fatalf("adopt (this test needs the right to trace a child): %v", err)
	}
	defer d.f.Close()
	if err := d.Feed(); err != nil {
		t.Fatal(err)
	}
	wantFood(t, path, 1)
	if flags, err := unix.FcntlInt(d.f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags are %x (%v): what the agent starts would hold the watchdog", flags, err)
	}
	if _, err := adopt(holder.Process.Pid, nodes); !errors.Is(err, ErrNone) {
		t.Errorf("a process without a watchdog: %v, want ErrNone", err)
	}
	if _, err := Adopt(-1); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("a process that is not there: %v", err)
	}
}

type counter struct {
	meals atomic.Int32
	err   error
}

func (c *counter) Feed() error {
	c.meals.Add(1)
	return c.err
}

func TestHoldFeedsUntilReleasedButNotForEver(t *testing.T) {
	for _, tc := range []struct {
		name  string
		work  time.Duration
		limit time.Duration
		err   error
		want  int32
	}{
		{"short work is fed once", time.Second, time.Minute, nil, 1},
		{"long work is fed every 5 seconds", 22 * time.Second, time.Minute, nil, 5},
		{"work that hangs is fed for the limit only", time.Hour, 12 * time.Second, nil, 3},
		{"a watchdog that takes no food is tried again", 11 * time.Second, time.Minute, errors.New("no"), 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &counter{err: tc.err}
				release := Hold(c, tc.limit)
				time.Sleep(tc.work)
				release()
				release() // twice does no harm
				if got := c.meals.Load(); got != tc.want {
					t.Errorf("fed %d times, want %d", got, tc.want)
				}
				time.Sleep(time.Minute)
				if got := c.meals.Load(); got != tc.want {
					t.Error("fed after it was released")
				}
			})
		})
	}
}

func TestABoxWithoutAWatchdogIsHeldAsWell(t *testing.T) {
	var none *Device
	release := Hold(none, time.Minute)
	release()
	if none.Identity() != "" {
		t.Error("nothing has an identity")
	}
}
