package leasedisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
)

const (
	keyA lease.Key = "l0123456789"
	keyB lease.Key = "labcdefghij"
)

// world is a machine with lease disks: a kernel and what survives it.
type world struct {
	t      *testing.T
	sys    system
	cfg    Config
	size   int64 // of a disk that this machine can make
	reboot func()
	clean  func(t *testing.T) // the kernel has nothing of a disk
}

func fakeWorld(t *testing.T) (*world, *fake) {
	dir := t.TempDir()
	f := newFake(t)
	w := &world{t: t, sys: f, size: 40 << 20}
	w.cfg = Config{Dir: filepath.Join(dir, "leases"), MountDir: filepath.Join(dir, "run"), Keeper: &fakeKeeper{}, Reserve: -1}
	w.reboot = func() {
		if err := f.reboot(w.cfg.MountDir); err != nil {
			t.Fatal(err)
		}
	}
	w.clean = f.nothingLeft
	return w, f
}

func (w *world) store(sys system) *Store {
	w.t.Helper()
	s, err := newStore(w.cfg, sys)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// must fails on any error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, want croft.Kind) {
	t.Helper()
	if err == nil || croft.KindOf(err) != want {
		t.Fatalf("error is %v of kind %q, want kind %q", err, croft.KindOf(err), want)
	}
}

func (w *world) open(s *Store) string {
	w.t.Helper()
	dir, err := s.Open(w.t.Context(), keyA)
	must(w.t, err)
	return dir
}

// putFile leaves something on the open disk; wantFile finds it there.
func (w *world) putFile(s *Store) {
	w.t.Helper()
	f, err := os.Create(filepath.Join(s.mount(keyA), "kept"))
	must(w.t, err)
	_, err = f.WriteString("by the tenant")
	must(w.t, errors.Join(err, f.Sync(), f.Close()))
}

func (w *world) wantFile(s *Store) {
	w.t.Helper()
	if got, err := os.ReadFile(filepath.Join(s.mount(keyA), "kept")); err != nil || string(got) != "by the tenant" {
		w.t.Fatalf("the tenant's file holds %q, %v", got, err)
	}
}

// gone checks that no trace of the disk is left.
func (w *world) gone(s *Store) {
	w.t.Helper()
	for _, path := range []string{s.dir(keyA), s.mount(keyA)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			w.t.Errorf("%s is still there (%v)", path, err)
		}
	}
	w.clean(w.t)
}

func (w *world) look(s *Store) Disk {
	w.t.Helper()
	d, err := s.look(keyA)
	must(w.t, err)
	return d
}

// errInjected and errCut are what a faulty system ends with.
var (
	errInjected = errors.New("injected")
	errCut      = errors.New("cut")
)

// faulty lets each step of an operation go wrong: before and after each call that
// changes something it counts down, and at nought it fails or stops everything.
type faulty struct {
	system
	left  int
	fail  bool // return an error; else the agent ends there
	steps []string
	holds []func() error
}

func (f *faulty) step(what string) error {
	if f.left--; f.left != -1 {
		return nil
	}
	f.steps = append(f.steps, what)
	if f.fail {
		return fmt.Errorf("%s: %w", what, errInjected)
	}
	panic(errCut)
}

func (f *faulty) around(what string, do func() error) error {
	if err := f.step("before " + what); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return f.step("after " + what)
}

func (f *faulty) write(path string, data []byte) error {
	return f.around("write "+filepath.Base(path), func() error { return f.system.write(path, data) })
}

func (f *faulty) mkdir(path string) error {
	return f.around("mkdir", func() error { return f.system.mkdir(path) })
}

func (f *faulty) extend(path string, size int64) error {
	return f.around("extend", func() error { return f.system.extend(path, size) })
}

func (f *faulty) erase(path string) error {
	return f.around("erase", func() error { return f.system.erase(path) })
}

func (f *faulty) remove(path string) error {
	return f.around("remove "+filepath.Base(path), func() error { return f.system.remove(path) })
}

func (f *faulty) clear(dir string) error {
	return f.around("clear "+filepath.Base(filepath.Dir(dir)), func() error { return f.system.clear(dir) })
}

func (f *faulty) attach(image string) (device string, hold func() error, err error) {
	err = f.around("attach", func() error {
		device, hold, err = f.system.attach(image)
		f.holds = append(f.holds, hold)
		return err
	})
	if err != nil && hold != nil {
		err = errors.Join(err, hold())
	}
	return device, hold, err
}

func (f *faulty) detach(loop string) error {
	return f.around("detach", func() error { return f.system.detach(loop) })
}

func (f *faulty) encrypt(name, device string, secret []byte) (mapped string, err error) {
	err = f.around("encrypt", func() error {
		mapped, err = f.system.encrypt(name, device, secret)
		return err
	})
	return mapped, err
}

func (f *faulty) decrypt(name string) error {
	return f.around("decrypt", func() error { return f.system.decrypt(name) })
}

func (f *faulty) format(device string, uuid [16]byte) error {
	return f.around("format", func() error { return f.system.format(device, uuid) })
}

func (f *faulty) mount(device, dir string) error {
	return f.around("mount", func() error { return f.system.mount(device, dir) })
}

func (f *faulty) unmount(dir string) error {
	return f.around("unmount", func() error { return f.system.unmount(dir) })
}

func (f *faulty) fill(dir string, size int64) error {
	return f.around("fill", func() error { return f.system.fill(dir, size) })
}

// run does the operation and reports whether it was cut. What a killed process
// held open the kernel closes.
func (f *faulty) run(op func() error) (cut bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			if r != errCut { //nolint:errorlint // what was thrown, nothing that wraps it
				panic(r)
			}
			cut = true
			for _, hold := range f.holds {
				if hold != nil {
					_ = hold() // may be closed already
				}
			}
		}
	}()
	return false, op()
}

// scenario is an operation that may be cut anywhere, with what is true before and
// after.
type scenario struct {
	name    string
	prepare func(w *world, s *Store)
	op      func(w *world, s *Store) error
	between func(w *world, s *Store) // after the cut, before it is repeated
	after   func(w *world, s *Store)
}

func (w *world) made(s *Store) { must(w.t, s.Create(w.t.Context(), keyA, w.size)) }

func (w *world) used(s *Store) {
	w.made(s)
	w.open(s)
	w.putFile(s)
}

func (w *world) closed(s *Store) {
	w.used(s)
	must(w.t, s.Close(w.t.Context(), keyA))
}

// keeps finds the tenant's file after whatever happened.
func (w *world) keeps(s *Store) {
	w.t.Helper()
	w.open(s)
	w.wantFile(s)
}

func (w *world) wantSize(s *Store, size int64) {
	w.t.Helper()
	if used, total, err := s.Usage(keyA); err != nil || total < size-lastGroup || total > size || used <= 0 {
		w.t.Errorf("%d of %d bytes are used (%v), want a disk of %d", used, total, err, size)
	}
}

var scenarios = []scenario{
	{
		name:    "create",
		prepare: func(*world, *Store) {},
		op:      func(w *world, s *Store) error { return s.Create(w.t.Context(), keyA, w.size) },
		between: func(w *world, s *Store) {
			if d := w.look(s); d.State == Lost || d.State == Removing {
				w.t.Errorf("the disk is %s", d.State)
			}
		},
		after: func(w *world, s *Store) {
			w.clean(w.t)
			w.open(s)
			w.putFile(s)
			w.wantSize(s, w.size)
		},
	},
	{
		name:    "open",
		prepare: (*world).closed,
		op: func(w *world, s *Store) error {
			_, err := s.Open(w.t.Context(), keyA)
			return err
		},
		after: func(w *world, s *Store) {
			w.wantFile(s)
			w.wantSize(s, w.size)
		},
	},
	{
		name:    "close",
		prepare: (*world).used,
		op:      func(w *world, s *Store) error { return s.Close(w.t.Context(), keyA) },
		after: func(w *world, s *Store) {
			w.clean(w.t)
			w.keeps(s)
		},
	},
	{
		name:    "remove",
		prepare: (*world).used,
		op:      func(w *world, s *Store) error { return s.Remove(w.t.Context(), keyA) },
		between: func(w *world, s *Store) {
			d := w.look(s)
			if _, err := os.Lstat(s.sealed(keyA)); err != nil && d.State == Good {
				w.t.Errorf("the disk is %s and has no key", d.State)
			}
			// Good: nothing was done, or the key is noise.
			_, err := s.Open(w.t.Context(), keyA)
			switch {
			case d.State != Good:
				wantKind(w.t, err, croft.KindNotFound)
			case err == nil:
				w.wantFile(s)
			case !w.cfg.Plaintext:
				wantKind(w.t, err, croft.KindInvalid)
			}
		},
		after: (*world).gone,
	},
	{
		name: "remove what was not created to the end",
		prepare: func(w *world, s *Store) {
			must(w.t, s.sys.mkdir(s.dir(keyA)))
			must(w.t, s.sys.extend(s.image(keyA), w.size))
		},
		op:    func(w *world, s *Store) error { return s.Remove(w.t.Context(), keyA) },
		after: (*world).gone,
	},
}

// maxSteps ends a scenario that does not come to its end.
const maxSteps = 200

// everyStep runs each scenario as often as it has steps, with another thing going
// wrong each time: an error, the agent killed, the power cut.
func everyStep(t *testing.T, newWorld func(t *testing.T) *world) {
	for _, sc := range scenarios {
		for _, how := range []string{"error", "kill", "power cut"} {
			t.Run(sc.name+"/"+how, func(t *testing.T) {
				var steps []string
				for at := range maxSteps {
					w := newWorld(t)
					s := w.store(w.sys)
					sc.prepare(w, s)
					f := &faulty{system: w.sys, left: at, fail: how == "error"}
					broken := w.store(f)
					cut, err := f.run(func() error { return sc.op(w, broken) })
					if len(f.steps) == 0 { // the end of the operation came first
						must(t, err)
						sc.after(w, s)
						w.dispose(s)
						if at < 2 {
							t.Fatalf("only %d steps were seen", at)
						}
						t.Logf("%d steps: %s", at, strings.Join(steps, ", "))
						return
					}
					steps = append(steps, f.steps...)
					if f.fail && !errors.Is(err, errInjected) {
						t.Fatalf("%s: error is %v", f.steps[0], err)
					}
					if cut == f.fail {
						t.Fatalf("%s: cut is %v", f.steps[0], cut)
					}
					if how == "power cut" {
						w.reboot()
					}
					next := w.store(w.sys)
					if sc.between != nil {
						sc.between(w, next)
					}
					if err := sc.op(w, next); err != nil {
						t.Fatalf("repeated after %q: %v", f.steps[0], err)
					}
					sc.after(w, next)
					if t.Failed() {
						t.Fatalf("that was after %q", f.steps[0])
					}
					w.dispose(next)
				}
				t.Fatalf("no end after %d steps", maxSteps)
			})
		}
	}
}

// dispose gives the machine back what the world took.
func (w *world) dispose(s *Store) {
	w.t.Helper()
	must(w.t, s.Remove(w.t.Context(), keyA))
	w.gone(s)
}
