package sandbox

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/ocispec"
)

func wantReason(t *testing.T, err error, want Reason) {
	t.Helper()
	if got := ReasonOf(err); got != want {
		t.Errorf("reason is %q, want %q: %v", got, want, err)
	}
}

func TestSortPullError(t *testing.T) {
	unknown := func(message string) error { return status.Error(codes.Unknown, message) }
	for _, tc := range []struct {
		name string
		err  error
		want Reason
	}{
		{"missing", status.Error(codes.NotFound, "failed to resolve image: docker.io/library/a:1: not found"), UnknownImage},
		{"missing blob", unknown("failed to copy: unexpected status from GET request to http://r/v2/a/blobs/x: 404 Not Found"), UnknownImage},
		{"no credentials", unknown("failed to resolve image: pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials"), CredentialsRefused},
		{"forbidden", unknown("failed to resolve image: unexpected status from HEAD request to https://r/v2/a/manifests/1: 403 Forbidden"), CredentialsRefused},
		{"unauthorized", unknown("failed to resolve image: unexpected status from HEAD request to https://r/v2/a/manifests/1: 401 Unauthorized"), CredentialsRefused},
		{"broken", unknown("failed to resolve image: unexpected status from HEAD request to https://r/v2/a/manifests/1: 503 Service Unavailable"), RegistryDown},
		{"too many", unknown("failed to resolve image: unexpected status from HEAD request to https://r/v2/a/manifests/1: 429 Too Many Requests"), RegistryDown},
		{"not there", unknown(`failed to resolve image: failed to do request: Head "https://r/v2/a/manifests/1": dial tcp 1.2.3.4:443: connect: connection refused`), RegistryDown},
		{"no name", unknown(`failed to resolve image: failed to do request: Head "https://r/v2/": dial tcp: lookup r: no such host`), RegistryDown},
		{"broken off", unknown(`failed to copy: httpReadSeeker: failed open: unexpected EOF`), RegistryDown},
		{"other machine", status.Error(codes.NotFound, "no match for platform in manifest: not found"), WrongArchitecture},
		{"teapot", unknown("failed to resolve image: unexpected status from HEAD request to https://r/v2/a/manifests/1: 418 I'm a teapot"), BadImage},
		{"broken image", unknown("failed to extract layer sha256:ab: archive/tar: invalid tar header"), BadImage},
		{"no runtime", status.Error(codes.Unavailable, "connection error: desc = transport: dial unix /x: connect: no such file"), RuntimeAway},
		{"full disk", unknown("failed to copy: write /perm/x: no space left on device"), RuntimeRefused},
		{"a registry that puts a status in its name", unknown(`failed to extract layer: unexpected status from HEAD request to`), BadImage},
	} {
		t.Run(tc.name, func(t *testing.T) { wantReason(t, sortPullError(tc.err, "image"), tc.want) })
	}
	if err := sortPullError(status.Error(codes.Canceled, "context canceled"), "image"); !errors.Is(err, context.Canceled) {
		t.Errorf("a pull that was cancelled: %v", err)
	}
	long := sortPullError(unknown(strings.Repeat("é\n", 10_000)), "image")
	if n := len(long.Error()); n > messageLength+200 || strings.Contains(long.Error(), "\n") {
		t.Errorf("a registry's words fill %d bytes", n)
	}
}

func TestReadUsage(t *testing.T) {
	one := &cgroup1.Metrics{
		CPU:    &cgroup1.CPUStat{Usage: &cgroup1.CPUUsage{Total: 3e9}},
		Memory: &cgroup1.MemoryStat{TotalInactiveFile: 30, Usage: &cgroup1.MemoryEntry{Usage: 100, Limit: 1<<20 + ocispec.SandboxMemory}},
		Pids:   &cgroup1.PidsStat{Current: 7},
	}
	two := &cgroup2.Metrics{
		CPU:    &cgroup2.CPUStat{UsageUsec: 3e6},
		Memory: &cgroup2.MemoryStat{InactiveFile: 30, Usage: 100, UsageLimit: 1<<20 + ocispec.SandboxMemory},
		Pids:   &cgroup2.PidsStat{Current: 7},
	}
	want := lease.Usage{CPU: 3 * time.Second, Memory: 70, MemoryMax: 1 << 20, Pids: 7}
	for _, metrics := range []any{one, two} {
		data, err := typeurl.MarshalAny(metrics)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readUsage(data); err != nil || got != want {
			t.Errorf("%T: usage is %+v, %v, want %+v", metrics, got, err, want)
		}
	}
	// No limit, as the old hierarchy says it, and less used than forgettable.
	data, err := typeurl.MarshalAny(&cgroup1.Metrics{Memory: &cgroup1.MemoryStat{TotalInactiveFile: 300, Usage: &cgroup1.MemoryEntry{Usage: 100, Limit: 1<<64 - 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readUsage(data); err != nil || got.Memory != 0 || got.MemoryMax <= 0 {
		t.Errorf("usage is %+v, %v", got, err)
	}
	data, err = typeurl.MarshalAny(&types.Descriptor{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = readUsage(data)
	wantReason(t, err, RuntimeRefused)
}

func TestOwners(t *testing.T) {
	labels := map[string]string{ownerLabel("la"): "1", ownerLabel("lb"): "1", "other": "x"}
	if n, changed := owners(labels, []lease.Key{"la", "lb"}); n != 2 || changed != nil {
		t.Errorf("all kept: %d, %v", n, changed)
	}
	n, changed := owners(labels, []lease.Key{"lb"})
	if diff := cmp.Diff(map[string]string{ownerLabel("lb"): "1", "other": "x"}, changed); n != 1 || diff != "" {
		t.Errorf("one kept: %d, %s", n, diff)
	}
	if n, _ := owners(labels, nil); n != 0 {
		t.Errorf("none kept: %d", n)
	}
}

func newSandbox(t *testing.T) *Sandbox {
	t.Helper()
	s, err := New(Config{Socket: filepath.Join(t.TempDir(), "none"), Runsc: "/runsc", RunscRoot: "/state", Rotlog: "/rotlog", RunDir: t.TempDir(), CgroupRoot: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	good := Config{Socket: "/a", Runsc: "/b", RunscRoot: "/c", Rotlog: "/d", RunDir: "/e"}
	for _, change := range []func(*Config){
		func(c *Config) { c.Socket = "" }, func(c *Config) { c.Runsc = "runsc" }, func(c *Config) { c.RunscRoot = "" },
		func(c *Config) { c.Rotlog = "" }, func(c *Config) { c.RunDir = "" }, func(c *Config) { c.LogBytes = 1 }, func(c *Config) { c.LogFiles = 100 },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("New(%+v) works", cfg)
		}
	}
}

func TestRuntimeThatIsAwayIsCalledSo(t *testing.T) {
	s := newSandbox(t)
	_, err := s.List(t.Context())
	wantReason(t, err, RuntimeAway)
	if e, ok := errors.AsType[*Error](err); !ok || !e.Temporary() || e.Word() != "RuntimeAway" {
		t.Errorf("error is %v", err)
	}
	wantReason(t, s.Stop(t.Context(), lease.ReplicaID{Lease: "l0123456789"}, 0), RuntimeAway)
	_, err = s.Pull(t.Context(), "l0123456789", "nginx", nil, 1<<20, nil)
	wantReason(t, err, RuntimeAway)
}

func TestEachLifeEndsOnce(t *testing.T) {
	s := newSandbox(t)
	ended := func(life string, code uint32) state {
		return state{replica: lease.ReplicaID{Lease: "l0123456789", Service: "web"}, life: life, task: &task.Process{Status: task.Status_STOPPED, ExitStatus: code}}
	}
	running := ended("one", 0)
	running.task.Status = task.Status_RUNNING
	s.report(running)
	s.report(ended("one", 1))
	s.report(ended("one", 2))
	s.report(ended("two", 3))
	s.report(state{replica: lease.ReplicaID{Lease: "l0123456789"}, life: "three"}) // its task is gone
	var codes []int
	for range 3 {
		_, exit, err := s.NextExit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, exit.Code)
	}
	if want := []int{1, 3, 137}; !slices.Equal(codes, want) {
		t.Errorf("codes are %v, want %v", codes, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, exit, err := s.NextExit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a fourth end was told: %+v, %v", exit, err)
	}
}

func TestOutOfMemoryIsReadFromTheKernel(t *testing.T) {
	id := lease.ReplicaID{Lease: "l0123456789", Service: "web"}
	for name, tree := range map[string]map[string]string{
		"old hierarchy": {"memory" + ocispec.CgroupPath(id) + "/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"},
		"unified":       {"cgroup.controllers": "memory", ocispec.CgroupPath(id) + "/memory.events": "low 0\nmax 80\noom 1\noom_kill 1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			stopped := func(code uint32) state {
				return state{replica: id, task: &task.Process{Status: task.Status_STOPPED, ExitStatus: code}}
			}
			if s.exitOf(stopped(137)).OOM {
				t.Error("an end was for want of memory that was not")
			}
			for path, text := range tree {
				path = filepath.Join(s.cfg.CgroupRoot, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if !s.exitOf(stopped(137)).OOM {
				t.Error("an end for want of memory was not recognised")
			}
			if s.exitOf(stopped(1)).OOM {
				t.Error("a program that ended by itself counts as killed")
			}
		})
	}
}

func TestCgroupsAreMadeAndWeighed(t *testing.T) {
	s := newSandbox(t)
	if weighs, err := s.prepareCgroups(); weighs || err != nil {
		t.Errorf("old hierarchy: %v, %v", weighs, err)
	}
	if err := os.WriteFile(filepath.Join(s.cfg.CgroupRoot, "cgroup.controllers"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if weighs, err := s.prepareCgroups(); weighs || err != nil {
		t.Errorf("a kernel that cannot weigh: %v, %v", weighs, err)
	}
	for _, name := range []string{"io.weight", "io.bfq.weight"} {
		path := filepath.Join(s.cfg.CgroupRoot, ocispec.CgroupRoot, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if weighs, err := s.prepareCgroups(); !weighs || err != nil {
			t.Errorf("%s: %v, %v", name, weighs, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCgroupThatStaysIsAnError: runsc would start the next replica in it without
// limits.
func TestCgroupThatStaysIsAnError(t *testing.T) {
	s := newSandbox(t)
	id := lease.ReplicaID{Lease: "l0123456789", Service: "web"}
	if err := os.WriteFile(filepath.Join(s.cfg.CgroupRoot, "cgroup.controllers"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(s.cfg.CgroupRoot, ocispec.CgroupPath(id))
	if err := os.MkdirAll(filepath.Join(folder, "busy"), 0o755); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		wantReason(t, s.sweep(t.Context(), id), RuntimeRefused)
	})
	if err := os.Remove(filepath.Join(folder, "busy")); err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(t.Context(), id); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cgroup is still there: %v", err)
	}
}

func TestKeyLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l keyLock
		unlock, err := l.lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		other, err := l.lock(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a lock that is held was given: %v", err)
		}
		got := false
		go func() {
			if again, err := l.lock(t.Context(), "a"); err == nil {
				got = true
				again()
			}
		}()
		synctest.Wait()
		if got {
			t.Error("a lock that is held was given")
		}
		unlock()
		synctest.Wait()
		if !got {
			t.Error("a lock that was given back was not given on")
		}
	})
}

func TestNewCommand(t *testing.T) {
	for _, tc := range []struct {
		before, after []int32
		want          int32
	}{
		{nil, []int32{7}, 7},
		{[]int32{7}, []int32{7, 9}, 9},
		{[]int32{7, 9}, []int32{9}, 0}, // one ended, none came
		{[]int32{7}, []int32{8}, 8},    // one ended, one came
		{nil, nil, 0},
	} {
		if got := newCommand(tc.before, tc.after); got != tc.want {
			t.Errorf("newCommand(%v, %v) = %d, want %d", tc.before, tc.after, got, tc.want)
		}
	}
}

// The shim opens its end of the input some time after it said that the command runs.
func TestInputWaitsForItsReader(t *testing.T) {
	p, err := openPipes(t.TempDir(), true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := p.openIn(ctx); err == nil {
			t.Error("it was opened though nobody reads")
		}
		var in *os.File
		opened := make(chan error)
		go func() {
			var err error
			in, err = p.openIn(t.Context())
			opened <- err
		}()
		time.Sleep(time.Minute)
		shim, err := os.OpenFile(p.inPath, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer shim.Close()
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
		if _, err := in.WriteString("all of it"); err != nil {
			t.Error(err)
		}
		in.Close()
		if got, err := io.ReadAll(shim); err != nil || string(got) != "all of it" {
			t.Errorf("the shim read %q, %v", got, err)
		}
	})
}
