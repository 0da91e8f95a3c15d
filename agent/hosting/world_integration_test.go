//go:build integration

package hosting

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/leasedisk"
	"github.com/croft-cloud/croft/chain/npmpeer"
	"github.com/croft-cloud/croft/internal/rig/outside"
	"github.com/croft-cloud/croft/relay/wire"
)

const repository = "../.."

// programs is the folder with the programs that the tests run: the runtime's and
// the chain's. CROFT_RUNTIME names one in which they are already built.
var programs string

// The tests run in a copy of this program with network and mounts of its own:
// whatever they do, the machine's network is never touched, and when the copy
// ends, the kernel removes what is left.
func TestMain(m *testing.M) {
	const inside = "CROFT_HOSTING_TEST_INSIDE"
	if programs = os.Getenv(inside); programs != "" {
		if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), makeUplink()); err != nil {
			panic(fmt.Sprintf("prepare the namespaces: %v", err))
		}
		os.Exit(m.Run())
	}
	if os.Getuid() != 0 {
		fmt.Println("agent/hosting's integration tests need root: sudo make integration")
		os.Exit(1)
	}
	os.Exit(outsideMain(inside))
}

func outsideMain(inside string) int {
	dir, err := os.MkdirTemp("/tmp", "croft-hosting")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // sandboxes have users of their own
		panic(err)
	}
	if ready := os.Getenv("CROFT_RUNTIME"); ready != "" {
		if err := os.CopyFS(dir, os.DirFS(ready)); err != nil { // the checkout may be closed to the users of sandboxes
			fmt.Println(err)
			return 1
		}
	} else if err := buildPrograms(dir); err != nil {
		fmt.Println(err)
		return 1
	}
	if _, err := npmpeer.Install(context.Background()); err != nil { // there is no way out of the namespaces
		fmt.Println(err)
		return 1
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), inside+"="+dir)
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the parent that Pdeathsig means is this thread
	err = again.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// buildPrograms builds with the flags of the image, see images/build.
func buildPrograms(dir string) error {
	for _, part := range []struct {
		folder string
		what   []string
	}{
		{"images/runtime", []string{"./containerd-shim-runc-v2", "./croft-containerd", "./croft-rotlog"}},
		{"images/runtime/croft-runsc", []string{"."}},
		{".", []string{"./cmd/croft-chaind"}},
	} {
		cmd := exec.Command("go", append([]string{"build", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", dir + "/"}, part.what...)...)
		cmd.Dir = filepath.Join(repository, part.folder)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the programs of %s: %w\n%s", part.folder, err, out)
		}
	}
	return nil
}

// makeUplink gives the namespace what a box has: a card with a route out.
func makeUplink() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	card := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "router"}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(card), netlink.LinkSetUp(card)); err != nil {
		return err
	}
	router, err := netlink.LinkByName("router")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(router); err != nil {
		return err
	}
	address, err := netlink.ParseAddr("192.168.77.20/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(card, address); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: net.IPv4(192, 168, 77, 1)})
}

// Who may fetch private images.
const (
	registryUser     = "someone"
	registryPassword = "open sesame"
)

// newWorld is chain, relay and registry, with the article's image.
func newWorld(t *testing.T) *outside.World {
	t.Helper()
	w, err := outside.New(outside.Config{
		Dir: t.TempDir(), Chaind: filepath.Join(programs, "croft-chaind"),
		Chain:    outside.ChainConfig{BlockTime: 300 * time.Millisecond},
		Registry: outside.RegistryConfig{User: registryUser, Password: registryPassword},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := w.PutWeb(t.Context(), repository); err != nil {
		t.Fatal(err)
	}
	return w
}

// noKeeper seals nothing: folders need no keys.
type noKeeper struct{ leasedisk.Keeper }

// box is a provider with a containerd of its own.
type box struct {
	*Hosting
	t      *testing.T
	dir    string
	cfg    Config
	daemon *exec.Cmd
	end    func()
}

// folders stand in for lease disks: this test must run where the kernel has no
// device mapper, or lets nobody grow a file system. The real ones are in the
// virtual machine's tests.
type folders struct{ dir string }

func (f folders) Create(_ context.Context, key lease.Key, _ int64) error {
	return os.MkdirAll(filepath.Join(f.dir, string(key)), 0o711)
}

func (f folders) Open(_ context.Context, key lease.Key) (string, error) {
	folder := filepath.Join(f.dir, string(key))
	_, err := os.Stat(folder)
	return folder, err
}

func (f folders) Remove(_ context.Context, key lease.Key) error {
	return os.RemoveAll(filepath.Join(f.dir, string(key)))
}

func (f folders) Close(context.Context, lease.Key) error { return nil }

func (f folders) List(context.Context) ([]lease.Key, error) {
	entries, err := os.ReadDir(f.dir)
	var keys []lease.Key
	for _, e := range entries {
		keys = append(keys, lease.Key(e.Name()))
	}
	return keys, err
}

func (f folders) Disks() ([]leasedisk.Disk, error)      { return nil, nil }
func (f folders) Usage(lease.Key) (int64, int64, error) { return 0, 0, nil }
func (f folders) Room() (int64, error)                  { return 20 << 30, nil }
func (f folders) Borrow(_ context.Context, _ lease.Key, bytes int64, _ func() int64) (int64, func(), error) {
	return bytes, func() {}, nil
}

// newBox starts a box that joins the world.
func newBox(t *testing.T, w *outside.World) *box {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bx") //nolint:usetesting // sockets want short paths
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	device, err := wire.DeviceOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: dir, end: func() {}}
	for _, folder := range []string{"perm", "run", "disks"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("croft", filepath.Join(dir, "run"), "tmpfs", 0, "mode=0711"); err != nil {
		t.Fatal(err)
	}
	b.cfg = Config{
		Network: w.Network(outside.FromHost), Device: device, Key: key, Keeper: noKeeper{}, disks: folders{filepath.Join(dir, "disks")},
		Dir: filepath.Join(dir, "perm", "hosting"), RunDir: filepath.Join(dir, "run"), Version: "0.0.0",
		Containerd: filepath.Join(dir, "run", "c.sock"), Runsc: filepath.Join(programs, "croft-runsc"), Rotlog: filepath.Join(programs, "croft-rotlog"),
		UserIDs: 1 << 20, privateRegistries: true,
		Log: slog.New(slog.NewTextHandler(&lateWriter{t: t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	t.Cleanup(b.remove)
	b.startRuntime()
	b.start()
	return b
}

// lateWriter writes to the test's output, for loggers that outlive no test.
type lateWriter struct{ t *testing.T }

func (w *lateWriter) Write(p []byte) (int, error) { return w.t.Output().Write(p) }

func (b *box) startRuntime() {
	b.t.Helper()
	log, err := os.OpenFile(filepath.Join(b.dir, "containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	b.daemon = exec.Command(filepath.Join(programs, "croft-containerd"), "--root", filepath.Join(b.dir, "perm", "containerd"),
		"--state", filepath.Join(b.dir, "run", "containerd"), "--address", b.cfg.Containerd)
	b.daemon.Stdout, b.daemon.Stderr = log, log
	b.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := b.daemon.Start(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) killRuntime() {
	b.t.Helper()
	if err := b.daemon.Process.Kill(); err != nil {
		b.t.Fatal(err)
	}
	_ = b.daemon.Wait() // it was killed
}

// start is a start of the agent: journal and all.
func (b *box) start() {
	b.t.Helper()
	j, err := journal.Open(journal.Config{Path: filepath.Join(b.dir, "perm", "journal")})
	if err != nil {
		b.t.Fatal(err)
	}
	b.cfg.Journal = j
	if b.Hosting, err = New(b.cfg); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	hosting := b.Hosting
	running.Go(func() {
		for ctx.Err() == nil {
			if err := hosting.Run(ctx); err != nil && ctx.Err() == nil {
				b.t.Logf("hosting: %v", err)
				time.Sleep(200 * time.Millisecond) // as a supervisor does
			}
		}
	})
	b.end = func() {
		cancel()
		running.Wait()
		if err := j.Close(); err != nil {
			b.t.Error(err)
		}
		b.end = func() {}
	}
	b.until("the parts are open", func() bool { return b.Status().Fault == "" })
}

func (b *box) remove() {
	if b.t.Failed() {
		s := b.Status()
		b.t.Logf("fault %q, sick %q, unready %q, problems %q, why not %+v, trouble %+v", s.Fault, s.Sick, s.Bidding.Unready, s.Bidding.Problems, s.Bidding.WhyNot, s.Trouble)
	}
	b.end()
	b.killRuntime()
	if b.t.Failed() {
		log, err := os.ReadFile(filepath.Join(b.dir, "containerd.log"))
		b.t.Logf("containerd said: %s %v", log[max(0, len(log)-4000):], err)
	}
	if err := cmp.Or(unix.Unmount(filepath.Join(b.dir, "run"), unix.MNT_DETACH), os.RemoveAll(b.dir)); err != nil {
		b.t.Error(err)
	}
}

// until waits for what must become true.
func (b *box) until(what string, is func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not in two minutes: %s; status is %+v", what, b.Status())
		}
	}
}
