//go:build integration

package sandbox_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/replicalog"
	"github.com/croft-cloud/croft/agent/sandbox"
	"github.com/croft-cloud/croft/chain/sdl"
)

// mapped is where the ids inside sandboxes begin, as on a box.
const mapped = 1_000_000

// programs is the folder with the runtime's programs, guest the program that runs
// in sandboxes. CROFT_RUNTIME names a folder that has the former already built.
var programs, guest string

var runtimePrograms = []string{"croft-containerd", "containerd-shim-runc-v2", "croft-rotlog", "croft-runsc"}

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make containers: run them as root")
		os.Exit(1)
	}
	folder, err := os.MkdirTemp("/tmp", "croft-sb")
	if err != nil {
		panic(err)
	}
	code := func() int {
		defer os.RemoveAll(folder)
		programs, guest = folder, filepath.Join(folder, "guest")
		if err := errors.Join(os.Chmod(folder, 0o711), build("testdata/guest", guest), getPrograms(os.Getenv("CROFT_RUNTIME"))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}()
	os.Exit(code)
}

// getPrograms copies the runtime's programs, or builds them. The folder they are
// built in may be closed to the users that sandboxes run as.
func getPrograms(from string) error {
	for _, program := range runtimePrograms {
		to := filepath.Join(programs, program)
		if from == "" {
			if err := build(filepath.Join("../../images/runtime", program), to); err != nil {
				return err
			}
			continue
		}
		raw, err := os.ReadFile(filepath.Join(from, program))
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, raw, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// build builds with the flags of the image, see images/build, so that both have
// one cache.
func build(folder, to string) error {
	cmd := exec.Command("go", "build", "-ldflags=-s -w -buildid=", "-o", to, ".")
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-trimpath -buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", folder, err, out)
	}
	return nil
}

// stack is a containerd of the test's own, a registry and a client.
type stack struct {
	*sandbox.Sandbox
	t        *testing.T
	dir      string
	cfg      sandbox.Config
	registry *httptest.Server
	mirrored *registryStub
	key      lease.Key
	daemon   *exec.Cmd
	stopRun  func()
}

func newStack(t *testing.T) *stack {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sb") //nolint:usetesting // sockets want short paths
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // mapped users must come through
		t.Fatal(err)
	}
	s := &stack{t: t, dir: dir, key: lease.Key("l" + strings.ToLower(rand.Text()[:10])), mirrored: newRegistryStub()}
	s.registry = httptest.NewServer(s.mirrored)
	address, err := url.Parse(s.registry.URL)
	if err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(dir, "hosts", "docker.io")
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		t.Fatal(err)
	}
	// No server line: nothing may be asked of the real one.
	rule := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", s.registry.URL, s.registry.URL)
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(rule), 0o644); err != nil {
		t.Fatal(err)
	}
	s.mirrored.host = address.Host
	s.cfg = sandbox.Config{
		Socket: filepath.Join(dir, "c.sock"), Runsc: filepath.Join(programs, "croft-runsc"), RunscRoot: filepath.Join(dir, "runsc"),
		UserIDs: mapped, Rotlog: filepath.Join(programs, "croft-rotlog"), RunDir: filepath.Join(dir, "run"), HostDir: filepath.Join(dir, "hosts"),
		PrivateRegistries: true, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	t.Cleanup(s.close)
	s.startDaemon()
	s.connect()
	return s
}

func (s *stack) startDaemon() {
	s.t.Helper()
	output, err := os.OpenFile(filepath.Join(s.dir, "containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer output.Close()
	s.daemon = exec.Command(filepath.Join(programs, "croft-containerd"), "--root", filepath.Join(s.dir, "root"), "--state", filepath.Join(s.dir, "state"), "--address", s.cfg.Socket, "--log-level", "debug")
	s.daemon.Stdout, s.daemon.Stderr = output, output
	s.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.daemon.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stack) killDaemon() {
	s.t.Helper()
	if err := s.daemon.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	_ = s.daemon.Wait() // it was killed
}

// connect makes a client, as a new start of the agent does.
func (s *stack) connect() {
	s.t.Helper()
	var err error
	if s.Sandbox, err = sandbox.New(s.cfg); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	running := s.Sandbox
	go func() {
		defer close(done)
		_ = running.Run(ctx) // ends with ctx
	}()
	s.stopRun = func() {
		cancel()
		<-done
		running.Close()
	}
	s.until("containerd answers", func() bool {
		_, err := s.List(context.Background())
		return err == nil
	})
}

// disconnect ends the client, as the death of the agent does.
func (s *stack) disconnect() {
	s.stopRun()
	s.stopRun = func() {}
}

// until waits for what must become true; the test's own time limit ends it.
func (s *stack) until(what string, is func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !is() {
		if time.Now().After(deadline) {
			s.t.Fatalf("never came true: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// close takes everything away, also after a failure.
func (s *stack) close() {
	if s.t.Failed() {
		raw, _ := os.ReadFile(filepath.Join(s.dir, "containerd.log"))
		lines := strings.Split(string(raw), "\n")
		s.t.Logf("containerd said:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
	if s.Sandbox != nil && s.daemon != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if all, err := s.List(ctx); err == nil {
			for id := range all {
				if err := s.Stop(ctx, id, 0); err != nil {
					s.t.Logf("clean up: %v", err)
				}
			}
		}
		s.disconnect()
	}
	if s.daemon != nil {
		_ = s.daemon.Process.Signal(syscall.SIGTERM)
		_ = s.daemon.Wait()
	}
	s.registry.Close()
	for _, pid := range s.processes() { // shims and what failed tests left
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, point := range s.mounts() {
		_ = unix.Unmount(point, unix.MNT_DETACH)
	}
	os.RemoveAll(s.dir)
}

// processes are those whose arguments name the test's folder, and everybody in
// the lease's cgroup.
func (s *stack) processes() (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || s.daemon != nil && pid == s.daemon.Process.Pid {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		groups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if bytes.Contains(line, []byte(s.dir+"/")) || bytes.Contains(groups, []byte(s.key)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (s *stack) mounts() (points []string) {
	raw, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[1], s.dir+"/") {
			points = append(points, fields[1])
		}
	}
	slices.Reverse(points)
	return points
}

// nullNetns is an empty network that runsc makes once and keeps for all.
const nullNetns = "null-netns"

// residue is what a replica may leave nowhere.
func (s *stack) residue() (left []string) {
	for _, pid := range s.processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, fmt.Sprintf("process %d %q", pid, bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
	}
	for _, point := range s.mounts() {
		if filepath.Base(point) != nullNetns {
			left = append(left, "mount "+point)
		}
	}
	_ = filepath.WalkDir(s.cfg.RunscRoot, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != nullNetns {
			left = append(left, "state "+path)
		}
		return nil
	})
	for _, pattern := range []string{"/sys/fs/cgroup/*/croft/" + string(s.key) + "*", "/sys/fs/cgroup/croft/" + string(s.key) + "*"} {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			left = append(left, "cgroup "+path)
		}
	}
	bundles, _ := filepath.Glob(filepath.Join(s.dir, "state", "io.containerd.runtime.v2.task", "croft", "*"))
	left = append(left, bundles...)
	return left
}

// snapshots are the folders of containerd's layers.
func (s *stack) snapshots() int {
	found, _ := filepath.Glob(filepath.Join(s.dir, "root", "io.containerd.snapshotter.v1.overlayfs", "snapshots", "*"))
	return len(found)
}

func (s *stack) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *stack) pull(image string) (string, error) {
	s.t.Helper()
	return s.Pull(s.ctx(), s.key, image, nil, 1<<30, nil)
}

func (s *stack) mustPull(image string) string {
	s.t.Helper()
	name, err := s.pull(image)
	if err != nil {
		s.t.Fatal(err)
	}
	return name
}

// container is one that does what args say to the guest.
func (s *stack) container(image, service string, args ...string) lease.Container {
	disk := filepath.Join(s.dir, "disk", service)
	if err := os.MkdirAll(disk, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return lease.Container{
		ID: lease.ReplicaID{Lease: s.key, Service: service, Revision: 1}, Image: image, Args: args,
		Limits: lease.Limits{CPU: 1000, Memory: 128 << 20}, Scratch: filepath.Join(disk, "scratch"), Log: filepath.Join(disk, "log"), Hostname: service + "-1-0",
	}
}

func (s *stack) mustStart(c lease.Container) {
	s.t.Helper()
	if err := s.Start(s.ctx(), c); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stack) mustStop(id lease.ReplicaID, grace time.Duration) {
	s.t.Helper()
	if err := s.Stop(s.ctx(), id, grace); err != nil {
		s.t.Fatal(err)
	}
}

// nextExit is the next end told, which must be id's.
func (s *stack) nextExit(id lease.ReplicaID) lease.Exit {
	s.t.Helper()
	got, exit, err := s.NextExit(s.ctx())
	if err != nil {
		s.t.Fatal(err)
	}
	if got != id {
		s.t.Fatalf("end of %v was told, want that of %v", got, id)
	}
	if since := time.Since(exit.At); since < 0 || since > 4*time.Minute {
		s.t.Errorf("end was at %v, now is %v", exit.At, time.Now())
	}
	return exit
}

// noExit makes sure that nothing is left to tell.
func (s *stack) noExit() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if id, exit, err := s.NextExit(ctx); err == nil {
		s.t.Errorf("an end was told twice: %v %+v", id, exit)
	}
}

func (s *stack) lines(c lease.Container) (out, err []string) {
	s.t.Helper()
	for line, e := range replicalog.Read(s.ctx(), c.Log, -1, false) {
		if e != nil {
			s.t.Fatal(e)
		}
		if line.Stderr {
			err = append(err, line.Text)
		} else {
			out = append(out, line.Text)
		}
	}
	return out, err
}

func (s *stack) untilLine(c lease.Container, want string) {
	s.t.Helper()
	s.until("log says "+want, func() bool {
		out, _ := s.lines(c)
		return slices.Contains(out, want)
	})
}

// registryStub is a registry in memory that can misbehave.
type registryStub struct {
	host    string
	inner   http.Handler
	user    string       // wanted of all, with password "secret"; empty: nobody is asked
	breakAt atomic.Int64 // bytes of a blob after which the line breaks; 0: never
	down    atomic.Bool
	mu      sync.Mutex
	ranges  []string         // guarded by mu: of requests for blobs
	fetched map[string]int64 // guarded by mu: bytes by path
}

func newRegistryStub() *registryStub {
	return &registryStub{inner: registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0))), fetched: map[string]int64{}}
}

func (r *registryStub) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if r.down.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if name, password, _ := req.BasicAuth(); r.user != "" && (name != r.user || password != "secret") {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, "/blobs/") {
		r.inner.ServeHTTP(w, req)
		return
	}
	r.mu.Lock()
	r.ranges = append(r.ranges, req.Header.Get("Range"))
	r.mu.Unlock()
	// The registry below knows no open ranges; net/http does.
	wanted := req.Header.Get("Range")
	req.Header.Del("Range")
	whole := httptest.NewRecorder()
	r.inner.ServeHTTP(whole, req)
	if whole.Code != http.StatusOK {
		w.WriteHeader(whole.Code)
		return
	}
	if wanted != "" {
		req.Header.Set("Range", wanted)
	}
	http.ServeContent(&brokenWriter{ResponseWriter: w, registry: r, path: req.URL.Path}, req, "", time.Time{}, bytes.NewReader(whole.Body.Bytes()))
}

type brokenWriter struct {
	http.ResponseWriter
	registry *registryStub
	path     string
	sent     int64
}

func (w *brokenWriter) Write(p []byte) (int, error) {
	if limit := w.registry.breakAt.Load(); limit != 0 && w.sent+int64(len(p)) > limit {
		n, _ := w.ResponseWriter.Write(p[:max(0, limit-w.sent)])
		w.count(n)
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		w.registry.down.Store(true) // else containerd goes on by itself
		panic(http.ErrAbortHandler)
	}
	n, err := w.ResponseWriter.Write(p)
	w.count(n)
	return n, err
}

func (w *brokenWriter) count(n int) {
	w.sent += int64(n)
	w.registry.mu.Lock()
	defer w.registry.mu.Unlock()
	w.registry.fetched[w.path] += int64(n)
}

func (r *registryStub) bytes() (all int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.fetched {
		all += n
	}
	return all
}

// file is one entry of a layer: a regular file, a folder if its name ends with a
// slash, a symbolic link if it has one, else of the kind that is said.
type file struct {
	name, link, text string
	mode             int64
	kind             byte
	major, minor     int64
}

func layer(t *testing.T, files ...file) v1.Layer {
	t.Helper()
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: cmp.Or(f.mode, 0o755), Size: int64(len(f.text)), Typeflag: tar.TypeReg}
		if f.kind != 0 {
			h.Typeflag, h.Linkname, h.Devmajor, h.Devminor = f.kind, f.link, f.major, f.minor
		} else if f.link != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.link, 0
		} else if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw.Bytes())), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func guestLayer(t *testing.T) v1.Layer {
	t.Helper()
	program, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	return layer(t,
		file{name: "guest", text: string(program)}, file{name: "etc/"}, file{name: "data/"},
		file{name: "etc/passwd", text: "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n", mode: 0o644},
		file{name: "etc/group", text: "root:x:0:\nweb:x:1001:\nvideo:x:44:web\n", mode: 0o644},
	)
}

// push puts an image into the test's registry.
func (s *stack) push(reference string, change func(*v1.ConfigFile), layers ...v1.Layer) v1.Image {
	s.t.Helper()
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		s.t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		s.t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Entrypoint: []string{"/guest"}, Env: []string{"FROM=image", "BOTH=image"}}
	if change != nil {
		change(config)
	}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		s.t.Fatal(err)
	}
	all, err := image.Layers()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, l := range all {
		digest, err := l.Digest()
		if err != nil {
			s.t.Fatal(err)
		}
		blob, err := l.Compressed()
		if err != nil {
			s.t.Fatal(err)
		}
		raw, err := io.ReadAll(blob)
		if err != nil {
			s.t.Fatal(err)
		}
		s.pushBlob(reference, digest, raw)
	}
	digest, err := image.ConfigName()
	if err != nil {
		s.t.Fatal(err)
	}
	raw, err := image.RawConfigFile()
	if err != nil {
		s.t.Fatal(err)
	}
	s.pushBlob(reference, digest, raw)
	s.pushManifest(reference, image)
	return image
}

func (s *stack) pushBlob(reference string, digest v1.Hash, raw []byte) {
	s.t.Helper()
	repository, _, _ := strings.Cut(reference, ":")
	s.send(http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+digest.String(), "application/octet-stream", raw)
}

func (s *stack) pushManifest(reference string, manifest interface {
	RawManifest() ([]byte, error)
	MediaType() (types.MediaType, error)
},
) {
	s.t.Helper()
	raw, err := manifest.RawManifest()
	if err != nil {
		s.t.Fatal(err)
	}
	kind, err := manifest.MediaType()
	if err != nil {
		s.t.Fatal(err)
	}
	repository, tag, _ := strings.Cut(reference, ":")
	s.send(http.MethodPut, "/v2/"+repository+"/manifests/"+tag, string(kind), raw)
}

// send puts something into the registry, past its misbehaviour.
func (s *stack) send(method, path, kind string, raw []byte) {
	s.t.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(raw))
	req.Header.Set("Content-Type", kind)
	answer := httptest.NewRecorder()
	s.mirrored.inner.ServeHTTP(answer, req)
	if answer.Code >= 300 {
		s.t.Fatalf("%s %s: %d %s", method, path, answer.Code, answer.Body)
	}
}

func (s *stack) pushGuest() v1.Image {
	s.t.Helper()
	return s.push("library/guest:latest", nil, guestLayer(s.t))
}

// noise does not compress.
func noise(n int) string {
	raw := make([]byte, n)
	_, _ = rand.Read(raw) // never fails
	return string(raw)
}

func wantReason(t *testing.T, err error, want sandbox.Reason) {
	t.Helper()
	if got := sandbox.ReasonOf(err); got != want {
		t.Errorf("reason is %q, want %q: %v", got, want, err)
	}
}

func TestPull(t *testing.T) {
	s := newStack(t)
	image := s.pushGuest()
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	var seen [][2]int64
	got, err := s.Pull(s.ctx(), s.key, "guest", nil, 1<<30, func(done, total int64) { seen = append(seen, [2]int64{done, total}) })
	if err != nil {
		t.Fatal(err)
	}
	want := "docker.io/library/guest@" + digest.String()
	if got != want {
		t.Errorf("Pull(guest) = %q, want %q", got, want)
	}

	t.Run("progress begins at nothing, never falls and ends complete", func(t *testing.T) {
		if len(seen) < 2 || seen[0] != [2]int64{} {
			t.Fatalf("progress was %v", seen)
		}
		for i := 1; i < len(seen); i++ {
			if seen[i][0] < seen[i-1][0] || seen[i][1] < seen[i-1][1] {
				t.Errorf("progress fell from %v to %v", seen[i-1], seen[i])
			}
		}
		if last := seen[len(seen)-1]; last[0] != last[1] || last[1] < 1<<19 {
			t.Errorf("progress ended at %v", last)
		}
	})
	t.Run("what is here is not fetched again", func(t *testing.T) {
		before := s.mirrored.bytes()
		if again := s.mustPull("guest:latest"); again != want {
			t.Errorf("Pull again = %q", again)
		}
		if after := s.mirrored.bytes(); after != before {
			t.Errorf("%d bytes were fetched again", after-before)
		}
	})
	t.Run("by digest the registry is not even asked", func(t *testing.T) {
		s.mirrored.down.Store(true)
		defer s.mirrored.down.Store(false)
		if again := s.mustPull(want); again != want {
			t.Errorf("Pull by digest = %q", again)
		}
	})
	t.Run("another lease must ask it", func(t *testing.T) {
		s.mirrored.down.Store(true)
		_, err := s.Pull(s.ctx(), "lother00000", want, nil, 1<<30, nil)
		wantReason(t, err, sandbox.RegistryDown)
		s.mirrored.down.Store(false)
		before := s.mirrored.bytes()
		if _, err := s.Pull(s.ctx(), "lother00000", want, nil, 1<<30, nil); err != nil {
			t.Error(err)
		}
		if after := s.mirrored.bytes(); after != before {
			t.Errorf("%d bytes were fetched again", after-before)
		}
	})
	t.Run("an image goes with the last lease that uses it", func(t *testing.T) {
		if s.snapshots() == 0 {
			t.Fatal("there are no layers")
		}
		if err := s.Release(s.ctx(), "lother00000"); err != nil {
			t.Fatal(err)
		}
		if s.snapshots() == 0 {
			t.Error("the first release took the layers")
		}
		if err := s.Release(s.ctx(), s.key, want); err != nil {
			t.Fatal(err)
		}
		if s.snapshots() == 0 {
			t.Error("a release took what was to be kept")
		}
		if err := s.Release(s.ctx(), s.key); err != nil {
			t.Fatal(err)
		}
		if n := s.snapshots(); n != 0 {
			t.Errorf("%d layers are left", n)
		}
		blobs, _ := filepath.Glob(filepath.Join(s.dir, "root", "io.containerd.content.v1.content", "blobs", "sha256", "*"))
		if len(blobs) != 0 {
			t.Errorf("blobs are left: %v", blobs)
		}
	})
	t.Run("collecting keeps what leases use and nothing else", func(t *testing.T) {
		s.mustPull("guest")
		if err := s.Collect(s.ctx(), []lease.Key{s.key}); err != nil {
			t.Fatal(err)
		}
		if s.snapshots() == 0 {
			t.Error("the layers of a lease were collected")
		}
		if err := s.Collect(s.ctx(), nil); err != nil {
			t.Fatal(err)
		}
		if n := s.snapshots(); n != 0 {
			t.Errorf("%d layers are left", n)
		}
	})
}

func TestPullIsRefused(t *testing.T) {
	s := newStack(t)
	s.pushGuest()
	t.Run("unknown image", func(t *testing.T) {
		_, err := s.pull("nothing:1")
		wantReason(t, err, sandbox.UnknownImage)
	})
	t.Run("unknown digest", func(t *testing.T) {
		_, err := s.pull("guest@sha256:" + strings.Repeat("0", 64))
		wantReason(t, err, sandbox.UnknownImage)
	})
	t.Run("wrong architecture", func(t *testing.T) {
		s.push("library/foreign:latest", func(c *v1.ConfigFile) { c.Architecture = "s390x" }, guestLayer(t))
		_, err := s.pull("foreign")
		wantReason(t, err, sandbox.WrongArchitecture)
	})
	t.Run("wrong architecture in an index", func(t *testing.T) {
		image := s.push("library/foreign:one", func(c *v1.ConfigFile) { c.Architecture = "s390x" }, guestLayer(t))
		index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}})
		s.pushManifest("library/foreign:index", index)
		_, err := s.pull("foreign:index")
		wantReason(t, err, sandbox.WrongArchitecture)
	})
	t.Run("too large to fetch", func(t *testing.T) {
		s.push("library/large:latest", nil, guestLayer(t), layer(t, file{name: "noise", text: noise(8 << 20)}))
		_, err := s.Pull(s.ctx(), s.key, "large", nil, 4<<20, nil)
		wantReason(t, err, sandbox.ImageTooLarge)
	})
	t.Run("too large unpacked", func(t *testing.T) {
		s.push("library/bomb:latest", nil, guestLayer(t), layer(t, file{name: "zeros", text: string(make([]byte, 64<<20))}))
		_, err := s.Pull(s.ctx(), s.key, "bomb", nil, 32<<20, nil)
		wantReason(t, err, sandbox.ImageTooLarge)
	})
	t.Run("registry down", func(t *testing.T) {
		s.mirrored.down.Store(true)
		defer s.mirrored.down.Store(false)
		_, err := s.pull("guest")
		wantReason(t, err, sandbox.RegistryDown)
	})
	t.Run("registry that is not there", func(t *testing.T) {
		_, err := s.pull("127.0.0.1:9/guest")
		wantReason(t, err, sandbox.RegistryDown)
		if e, ok := errors.AsType[*sandbox.Error](err); !ok || !e.Temporary() {
			t.Errorf("it is not called temporary: %v", err)
		}
	})
	t.Run("credentials", func(t *testing.T) {
		s.mirrored.user = "tenant"
		defer func() { s.mirrored.user = "" }()
		image := s.mirrored.host + "/library/guest"
		_, err := s.pull(image)
		wantReason(t, err, sandbox.CredentialsRefused)
		wrong := &sdl.Credentials{Host: s.mirrored.host, Username: "tenant", Password: "guess"}
		_, err = s.Pull(s.ctx(), s.key, image, wrong, 1<<30, nil)
		wantReason(t, err, sandbox.CredentialsRefused)
		elsewhere := &sdl.Credentials{Host: "ghcr.io", Username: "tenant", Password: "secret"}
		_, err = s.Pull(s.ctx(), s.key, image, elsewhere, 1<<30, nil)
		wantReason(t, err, sandbox.CredentialsRefused)
		right := &sdl.Credentials{Host: s.mirrored.host, Username: "tenant", Password: "secret"}
		if _, err := s.Pull(s.ctx(), s.key, image, right, 1<<30, nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("nothing of it is left", func(t *testing.T) {
		if err := s.Release(s.ctx(), s.key); err != nil {
			t.Fatal(err)
		}
		if n := s.snapshots(); n != 0 {
			t.Errorf("%d layers are left", n)
		}
	})
}

func TestPullGoesOnWhereItBrokeOff(t *testing.T) {
	s := newStack(t)
	const size, until = 24 << 20, 16 << 20
	s.push("library/large:latest", nil, guestLayer(t), layer(t, file{name: "noise", text: noise(size)}))
	s.mirrored.breakAt.Store(until)
	_, err := s.pull("large")
	wantReason(t, err, sandbox.RegistryDown)
	s.mirrored.breakAt.Store(0)
	s.mirrored.down.Store(false)
	before := s.mirrored.bytes()

	// What is half fetched must live through the collection that runs all the
	// time, and through a restart of both.
	if err := s.Collect(s.ctx(), []lease.Key{s.key}); err != nil {
		t.Fatal(err)
	}
	s.disconnect()
	s.killDaemon()
	s.startDaemon()
	s.connect()
	s.mustPull("large")
	if again := s.mirrored.bytes() - before; again > size-until+4<<20 {
		t.Errorf("%d bytes were fetched in the second attempt, want about %d", again, size-until)
	}
	s.mirrored.mu.Lock()
	defer s.mirrored.mu.Unlock()
	if !slices.ContainsFunc(s.mirrored.ranges, func(r string) bool { return r != "" && r != "bytes=0-" }) {
		t.Errorf("no request asked for a part: %q", s.mirrored.ranges)
	}
}

func TestReplicaSeesWhatItShould(t *testing.T) {
	t.Run("with user ids mapped", func(t *testing.T) { replicaSees(t, mapped) })
	t.Run("with user ids as they are", func(t *testing.T) { replicaSees(t, 0) })
}

func replicaSees(t *testing.T, userIDs uint32) {
	s := newStack(t)
	s.disconnect()
	s.cfg.UserIDs = userIDs
	s.connect()
	// Several layers, so that the root is an overlay of an overlay.
	s.push("library/guest:latest", func(c *v1.ConfigFile) {
		c.Config.User, c.Config.WorkingDir = "web", "/data"
	}, guestLayer(t), layer(t, file{name: "more/"}))
	image := s.mustPull("guest")
	c := s.container(image, "web", "report", "two words")
	c.Env = []string{"BOTH=manifest", "ONLY=manifest"}
	volume, fixed := filepath.Join(s.dir, "disk", "volume"), filepath.Join(s.dir, "disk", "fixed")
	for _, folder := range []string{volume, fixed} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(folder, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if userIDs == 0 { // else it is given to the replica's root
		if err := os.Chown(volume, 1000, 1001); err != nil {
			t.Fatal(err)
		}
	}
	c.Mounts = []lease.Mount{{Source: volume, Destination: "/data"}, {Source: fixed, Destination: "/fixed", ReadOnly: true}, {Destination: "/ram", Tmpfs: 1 << 20}}
	c.Attachment = &lease.Attachment{NetNS: netns(t, s.dir), Address: netip.MustParsePrefix("10.88.0.2/30"), Gateway: netip.MustParseAddr("10.88.0.1")}
	s.mustStart(c)
	if exit := s.nextExit(c.ID); exit.Code != 0 || exit.OOM {
		t.Errorf("exit is %+v", exit)
	}
	s.noExit()
	out, stderr := s.lines(c)
	if len(out) != 1 || !slices.Equal(stderr, []string{"and this is the other stream"}) {
		t.Fatalf("output is %q and %q", out, stderr)
	}
	var seen struct {
		Args                                            []string
		Dir, Host, Hosts, Resolver                      string
		UID, GID                                        int
		Groups                                          []int
		Env                                             []string
		Root, Volume, Readonly, Etc, CapEff, NoNewPrivs string
	}
	if err := json.Unmarshal([]byte(out[0]), &seen); err != nil {
		t.Fatal(err)
	}
	slices.Sort(seen.Env)
	for _, check := range []struct {
		name      string
		got, want any
	}{
		{"arguments", seen.Args, []string{"report", "two words"}},
		{"folder", seen.Dir, "/data"},
		{"host name", seen.Host, "web-1-0"},
		{"user", seen.UID, 1000},
		{"group", seen.GID, 1001},
		{"groups", seen.Groups, []int{44}},
		{"environment", seen.Env, []string{"BOTH=manifest", "FROM=image", "HOME=/home/web", "ONLY=manifest", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		{"resolver", seen.Resolver, "nameserver 10.88.0.1\noptions ndots:1\n"},
		{"volume", seen.Volume, "written"},
		{"capabilities", seen.CapEff, "0000000000000000"},
	} {
		if fmt.Sprint(check.got) != fmt.Sprint(check.want) {
			t.Errorf("%s: got %v, want %v", check.name, check.got, check.want)
		}
	}
	if !strings.Contains(seen.Hosts, "10.88.0.2\tweb-1-0\n") {
		t.Errorf("/etc/hosts is %q", seen.Hosts)
	}
	if seen.Readonly == "written" || seen.Etc == "written" || seen.Root == "written" {
		t.Errorf("a user could write where it may not: root %s, read-only volume %s, /etc/hosts %s", seen.Root, seen.Readonly, seen.Etc)
	}
	if raw, err := os.ReadFile(filepath.Join(volume, "written")); err != nil || string(raw) != "x" {
		t.Errorf("the volume holds %q, %v", raw, err)
	}
	s.mustStop(c.ID, time.Second)
	if left := s.residue(); left != nil {
		t.Errorf("left: %q", left)
	}
}

// netns makes a network namespace and returns its name.
func netns(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		made <- unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func TestEnds(t *testing.T) {
	s := newStack(t)
	s.pushGuest()
	image := s.mustPull("guest")
	t.Run("exit code", func(t *testing.T) {
		c := s.container(image, "code", "exit", "42")
		s.mustStart(c)
		if exit := s.nextExit(c.ID); exit.Code != 42 || exit.OOM {
			t.Errorf("exit is %+v", exit)
		}
		all, err := s.List(s.ctx())
		if err != nil || all[c.ID] == nil || all[c.ID].Code != 42 {
			t.Errorf("List = %v, %v", all, err)
		}
		s.mustStop(c.ID, 0)
	})
	t.Run("a replica can be started again, and each life ends once", func(t *testing.T) {
		c := s.container(image, "again", "exit", "1")
		for range 3 {
			s.mustStart(c)
			if exit := s.nextExit(c.ID); exit.Code != 1 {
				t.Errorf("exit is %+v", exit)
			}
		}
		s.mustStop(c.ID, 0)
		s.noExit()
	})
	t.Run("program that is not there leaves nothing", func(t *testing.T) {
		c := s.container(image, "missing")
		c.Command = []string{"/nothing"}
		err := s.Start(s.ctx(), c)
		wantReason(t, err, sandbox.RuntimeRefused)
		if left := s.residue(); left != nil {
			t.Errorf("left: %q", left)
		}
		s.noExit()
		c.Command = nil
		s.mustStart(c)
		s.nextExit(c.ID)
		s.mustStop(c.ID, 0)
	})
	t.Run("out of memory", func(t *testing.T) {
		c := s.container(image, "eat", "eat")
		s.mustStart(c)
		if exit := s.nextExit(c.ID); exit.Code != 137 || !exit.OOM {
			t.Errorf("exit is %+v, want 137 for want of memory", exit)
		}
		s.mustStop(c.ID, 0)
	})
	for _, folder := range []string{"/", "/tmp"} { // neither is memory
		t.Run("a full "+folder+" is told and no end", func(t *testing.T) {
			c := s.container(image, "full", "fill", folder)
			c.Limits.Memory, c.Limits.Root = 16<<20, 200<<20
			s.mustStart(c)
			if exit := s.nextExit(c.ID); exit.Code != 0 {
				t.Errorf("exit is %+v", exit)
			}
			s.untilLine(c, fmt.Sprintf("200 true write %s: no space left on device", filepath.Join(folder, "filled")))
			s.mustStop(c.ID, 0)
		})
	}
	t.Run("asked to end", func(t *testing.T) {
		c := s.container(image, "wait", "wait")
		s.mustStart(c)
		s.untilLine(c, "waiting")
		s.mustStart(c) // one that runs is left alone
		s.noExit()
		s.mustStop(c.ID, time.Minute)
		if exit := s.nextExit(c.ID); exit.Code != 0 {
			t.Errorf("exit is %+v", exit)
		}
		s.untilLine(c, "got terminated")
		s.mustStop(c.ID, 0) // again is no error
	})
	t.Run("killed", func(t *testing.T) {
		c := s.container(image, "deaf", "deaf")
		s.mustStart(c)
		s.untilLine(c, "waiting")
		s.mustStop(c.ID, 100*time.Millisecond)
		if exit := s.nextExit(c.ID); exit.Code != 137 || exit.OOM {
			t.Errorf("exit is %+v", exit)
		}
	})
	t.Run("nothing is left", func(t *testing.T) {
		if left := s.residue(); left != nil {
			t.Errorf("left: %q", left)
		}
		if all, err := s.List(s.ctx()); err != nil || len(all) != 0 {
			t.Errorf("List = %v, %v", all, err)
		}
		// containerd forgets a view at once, and removes its empty folder when it
		// collects.
		if err := s.Collect(s.ctx(), []lease.Key{s.key}); err != nil {
			t.Fatal(err)
		}
		if n := s.snapshots(); n != 1 {
			t.Errorf("%d snapshots are left, want the image's one layer", n)
		}
	})
}

func TestUsage(t *testing.T) {
	s := newStack(t)
	s.pushGuest()
	c := s.container(s.mustPull("guest"), "wait", "wait")
	c.Limits.CPU = 300
	s.mustStart(c)
	s.untilLine(c, "waiting")
	var limits []string
	for _, path := range []string{"/sys/fs/cgroup/croft/*/cpu.max", "/sys/fs/cgroup/*/croft/*/cpu.cfs_quota_us"} {
		found, _ := filepath.Glob(path)
		for _, file := range found {
			if raw, err := os.ReadFile(file); err == nil && strings.Contains(file, c.ID.Container()) {
				limits = append(limits, strings.Fields(string(raw))[0])
			}
		}
	}
	if len(limits) == 0 || slices.ContainsFunc(limits, func(quota string) bool { return quota != "30000" }) {
		t.Errorf("the running program's quotas are %q, want 30000 of 100000 microseconds", limits)
	}
	for _, pid := range s.processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		if err == nil && bytes.Contains(line, []byte("boot")) && info.Sys().(*syscall.Stat_t).Uid < mapped {
			t.Errorf("the sandbox runs as user %d of the machine", info.Sys().(*syscall.Stat_t).Uid)
		}
	}
	got, err := s.Usage(s.ctx(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.CPU <= 0 || got.Memory <= 0 || got.Memory > got.MemoryMax+64<<20 || got.MemoryMax != c.Limits.Memory || got.Pids <= 0 {
		t.Errorf("usage is %+v", got)
	}
	s.mustStop(c.ID, 0)
	_, err = s.Usage(s.ctx(), c.ID)
	wantReason(t, err, sandbox.UnknownContainer)
}

func TestExec(t *testing.T) {
	s := newStack(t)
	s.pushGuest()
	c := s.container(s.mustPull("guest"), "wait", "wait")
	s.mustStart(c)
	s.untilLine(c, "waiting")

	t.Run("input, both outputs and exit code", func(t *testing.T) {
		var out, stderr bytes.Buffer
		input := strings.Repeat("a line of some length\n", 20_000) // more than pipes hold
		code, err := s.Exec(s.ctx(), c.ID, []string{"/guest", "upper"}, false, strings.NewReader(input), &out, &stderr, nil)
		if err != nil || code != 7 {
			t.Fatalf("Exec = %d, %v", code, err)
		}
		if out.String() != strings.ToUpper(input) || stderr.String() != "end of input\n" {
			t.Errorf("output has %d bytes, want %d; stderr %q", out.Len(), len(input), stderr.String())
		}
	})
	t.Run("no input", func(t *testing.T) {
		var out bytes.Buffer
		code, err := s.Exec(s.ctx(), c.ID, []string{"/guest"}, false, nil, &out, nil, nil)
		if err != nil || code != 0 || out.String() != "hello from the sandbox\n" {
			t.Errorf("Exec = %d, %v, %q", code, err, out.String())
		}
	})
	t.Run("terminal", func(t *testing.T) {
		resize := make(chan [2]uint16, 1)
		var out lockedBuffer
		in, typing := io.Pipe()
		defer typing.Close()
		result := make(chan error, 1)
		go func() {
			code, err := s.Exec(s.ctx(), c.ID, []string{"/guest", "size"}, true, in, &out, nil, resize)
			if code != 0 {
				err = fmt.Errorf("exit code %d, %w", code, err)
			}
			result <- err
		}()
		for n := uint16(80); !strings.Contains(out.String(), "changed"); n++ {
			select {
			case resize <- [2]uint16{n, 25}:
			default:
			}
			select {
			case err := <-result:
				t.Fatalf("it ended early: %v, %q", err, out.String())
			case <-time.After(50 * time.Millisecond):
			}
		}
		if _, err := io.WriteString(typing, "typed\n"); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
		if !strings.Contains(out.String(), `read "typed\n"`) {
			t.Errorf("output is %q", out.String())
		}
	})
	t.Run("program that is not there", func(t *testing.T) {
		_, err := s.Exec(s.ctx(), c.ID, []string{"/nothing"}, false, nil, nil, nil, nil)
		wantReason(t, err, sandbox.BadCommand)
	})
	t.Run("replica that is not there", func(t *testing.T) {
		other := c.ID
		other.Index = 9
		_, err := s.Exec(s.ctx(), other, []string{"/guest"}, false, nil, nil, nil, nil)
		wantReason(t, err, sandbox.UnknownContainer)
	})
	t.Run("killed when the caller goes", func(t *testing.T) {
		var out, warnings lockedBuffer
		s.disconnect()
		s.cfg.Log = slog.New(slog.NewTextHandler(&warnings, nil))
		s.connect()
		ctx, cancel := context.WithCancel(s.ctx())
		result := make(chan error, 1)
		go func() {
			_, err := s.Exec(ctx, c.ID, []string{"/guest", "deaf"}, false, nil, &out, nil, nil)
			result <- err
		}()
		s.until("the command runs", func() bool { return out.String() == "waiting\n" })
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("Exec = %v, want that it was cancelled", err)
		}
		// A command that runs cannot be deleted.
		if strings.Contains(warnings.String(), "command") {
			t.Errorf("warnings: %s", warnings.String())
		}
	})
	// inside are the programs in the replica, but the first and the one that looks.
	inside := func() []string {
		t.Helper()
		var out bytes.Buffer
		if code, err := s.Exec(s.ctx(), c.ID, []string{"/guest", "processes"}, false, nil, &out, nil, nil); err != nil || code != 0 {
			t.Fatalf("Exec = %d, %v", code, err)
		}
		all := strings.Split(strings.TrimSpace(out.String()), "\n")
		if !slices.Contains(all, "/guest wait") {
			t.Fatalf("the first program is not among %q", all)
		}
		return slices.DeleteFunc(all, func(line string) bool { return line == "/guest wait" || line == "/guest processes" })
	}
	t.Run("killed when its output cannot be written", func(t *testing.T) {
		gone := errors.New("nobody listens")
		_, err := s.Exec(s.ctx(), c.ID, []string{"/guest", "deaf"}, false, nil, brokenOutput{gone}, nil, nil)
		if !errors.Is(err, gone) {
			t.Errorf("Exec = %v, want %v", err, gone)
		}
	})
	t.Run("killed when its caller never reads", func(t *testing.T) {
		ctx, cancel := context.WithCancel(s.ctx())
		result := make(chan error, 1)
		stuck := make(chan struct{}, 1)
		go func() {
			_, err := s.Exec(ctx, c.ID, []string{"/guest", "chatter"}, false, endless{}, blockedOutput{ctx, stuck}, nil, nil)
			result <- err
		}()
		<-stuck
		s.until("its pipe is full", func() bool { return inPipes(s.cfg.RunDir) > 48<<10 })
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("Exec = %v, want that it was cancelled", err)
		}
	})
	t.Run("sixty leave nothing open", func(t *testing.T) {
		open := func() int {
			all, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		before, goroutines := open(), runtime.NumGoroutine()
		var callers sync.WaitGroup
		for range 10 {
			callers.Go(func() {
				for range 6 {
					var out bytes.Buffer
					if code, err := s.Exec(s.ctx(), c.ID, []string{"/guest", "upper"}, false, strings.NewReader("x"), &out, nil, nil); err != nil || code != 7 || out.String() != "X" {
						t.Errorf("Exec = %d, %v, %q", code, err, out.String())
					}
				}
			})
		}
		callers.Wait()
		s.until("all is closed", func() bool { return open() <= before+5 && runtime.NumGoroutine() <= goroutines+20 })
	})
	t.Run("no more than sixteen", func(t *testing.T) {
		ctx, cancel := context.WithCancel(s.ctx())
		results := make(chan error, 17)
		for range 17 {
			go func() {
				_, err := s.Exec(ctx, c.ID, []string{"/guest", "deaf"}, false, nil, nil, nil, nil)
				results <- err
			}()
		}
		wantReason(t, <-results, sandbox.TooManyExecs)
		cancel()
		for range 16 {
			if err := <-results; !errors.Is(err, context.Canceled) {
				t.Errorf("Exec = %v, want that it was cancelled", err)
			}
		}
		if code, err := s.Exec(s.ctx(), c.ID, []string{"/guest"}, false, nil, nil, nil, nil); err != nil || code != 0 {
			t.Errorf("Exec = %d, %v", code, err)
		}
	})
	if left := inside(); len(left) != 0 {
		t.Errorf("commands run on: %q", left)
	}
	s.mustStop(c.ID, 0)
	if left, _ := filepath.Glob(filepath.Join(s.cfg.RunDir, "*")); left != nil {
		t.Errorf("pipes are left: %q", left)
	}
}

// inPipes is how much the fullest of our pipes below a folder holds.
func inPipes(folder string) (most int) {
	all, _ := os.ReadDir("/proc/self/fd")
	for _, e := range all {
		fd, err := strconv.Atoi(e.Name())
		if path, _ := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || !strings.HasPrefix(path, folder) {
			continue
		}
		if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil {
			most = max(most, n)
		}
	}
	return most
}

// endless input, and an output that nobody takes until ctx ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type blockedOutput struct {
	ctx   context.Context
	stuck chan<- struct{}
}

func (b blockedOutput) Write([]byte) (int, error) {
	select {
	case b.stuck <- struct{}{}:
	default:
	}
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

type brokenOutput struct{ err error }

func (b brokenOutput) Write([]byte) (int, error) { return 0, b.err }

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestSurvival(t *testing.T) {
	s := newStack(t)
	s.pushGuest()
	image := s.mustPull("guest")
	stays := s.container(image, "stays", "wait")
	ends := s.container(image, "ends", "until", "/data/go")
	volume := filepath.Join(s.dir, "disk", "volume")
	if err := os.MkdirAll(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	ends.Mounts = []lease.Mount{{Source: volume, Destination: "/data"}}
	s.mustStart(stays)
	s.mustStart(ends)
	s.untilLine(stays, "waiting")

	// containerd is killed, and one replica ends meanwhile.
	s.killDaemon()
	_, err := s.List(s.ctx())
	wantReason(t, err, sandbox.RuntimeAway)
	before := len(s.processes())
	if err := os.WriteFile(filepath.Join(volume, "go"), []byte("5"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.until("the replica ended", func() bool { return len(s.processes()) < before })
	s.noExit()
	s.startDaemon()
	if exit := s.nextExit(ends.ID); exit.Code != 5 {
		t.Errorf("exit is %+v, want 5", exit)
	}
	s.noExit()
	all, err := s.List(s.ctx())
	if err != nil || len(all) != 2 || all[stays.ID] != nil || all[ends.ID] == nil {
		t.Errorf("List = %v, %v", all, err)
	}
	if code, err := s.Exec(s.ctx(), stays.ID, []string{"/guest"}, false, nil, nil, nil, nil); err != nil || code != 0 {
		t.Errorf("Exec = %d, %v", code, err)
	}

	// The agent is killed: the next one finds both, and is told of the end that
	// was not dealt with.
	s.disconnect()
	s.connect()
	all, err = s.List(s.ctx())
	if err != nil || len(all) != 2 || all[stays.ID] != nil || all[ends.ID] == nil || all[ends.ID].Code != 5 {
		t.Errorf("List = %v, %v", all, err)
	}
	if exit := s.nextExit(ends.ID); exit.Code != 5 {
		t.Errorf("exit is %+v, want 5", exit)
	}
	s.mustStop(ends.ID, 0)
	s.mustStop(stays.ID, time.Minute)
	if exit := s.nextExit(stays.ID); exit.Code != 0 {
		t.Errorf("exit is %+v", exit)
	}
	s.noExit()

	// The sandbox and its shim are killed.
	killed := s.container(image, "killed", "wait")
	s.mustStart(killed)
	s.untilLine(killed, "waiting")
	for _, pid := range s.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if exit := s.nextExit(killed.ID); exit.Code != 137 || exit.OOM {
		t.Errorf("exit is %+v, want 137", exit)
	}
	s.until("what was killed is stopped", func() bool { return s.Stop(s.ctx(), killed.ID, 0) == nil }) // containerd may still be about it
	if left := s.residue(); left != nil {
		t.Errorf("left: %q", left)
	}
}
