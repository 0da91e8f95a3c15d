//go:build integration

// The four programs together: pull, run, log, exec, kill, adopt. As root; needs
// overlayfs and, as on the box, nothing else.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/name"
	fakeregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write testdata/plugins.txt anew")

const patience = 60 * time.Second // for a step of a machine that is busy with other things

// stack is the four programs, a running daemon and a registry.
type stack struct {
	bin, dir, hosts string
	client          *containerd.Client
	daemon          *exec.Cmd
	log             *os.File
}

func newStack(t *testing.T) *stack {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("containers need root: run as root, or sudo make integration")
	}
	// Short: the shims' sockets lie below, and a socket's path has 108 bytes.
	dir, err := os.MkdirTemp("/tmp", "croft-rt")
	if err != nil {
		t.Fatal(err)
	}
	s := &stack{bin: filepath.Join(dir, "bin"), dir: dir, hosts: filepath.Join(dir, "hosts")}
	t.Cleanup(func() { s.sweep(t) })
	for _, program := range []string{"croft-containerd", "containerd-shim-runc-v2", "croft-rotlog", "croft-runsc"} {
		getProgram(t, program, filepath.Join(s.bin, program))
	}
	if s.log, err = os.Create(filepath.Join(dir, "daemon.log")); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	return s
}

// getProgram copies a program from the folder that CROFT_RUNTIME names, or builds it.
func getProgram(t *testing.T, program, to string) {
	t.Helper()
	from := os.Getenv("CROFT_RUNTIME")
	if from == "" {
		build(t, filepath.Join("..", program), to)
		return
	}
	raw, err := os.ReadFile(filepath.Join(from, program))
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, raw, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// build builds a folder with the flags of the image, see images/build, in the
// folder, for it may be of another module.
func build(t *testing.T, folder, output string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-ldflags=-s -w -buildid=", "-o", output, ".")
	cmd.Dir, cmd.Env = folder, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-trimpath -buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", folder, err, out)
	}
}

func (s *stack) args() []string {
	return []string{"--root", s.dir + "/root", "--state", s.dir + "/state", "--address", s.dir + "/c.sock"}
}

// start starts the daemon and connects.
func (s *stack) start(t *testing.T) {
	t.Helper()
	s.daemon = exec.Command(s.bin+"/croft-containerd", s.args()...)
	s.daemon.Stdout, s.daemon.Stderr = s.log, s.log
	s.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		// A new client each time: one that met the dead daemon's socket backs off.
		if s.client, err = containerd.New(s.dir+"/c.sock", containerd.WithTimeout(time.Second), containerd.WithDefaultNamespace("croft")); err != nil {
			continue
		}
		var serving bool
		if serving, err = s.client.IsServing(t.Context()); err == nil && serving {
			return
		}
		s.client.Close()
	}
	t.Fatalf("connect to croft-containerd: %v\n%s", err, s.said())
}

// kill9 ends the daemon as a power cut would.
func (s *stack) kill9() {
	s.client.Close()
	s.daemon.Process.Kill()
	s.daemon.Wait()
}

func (s *stack) said() string {
	out, _ := os.ReadFile(s.log.Name())
	return string(out[max(0, len(out)-4000):])
}

// sweep removes all that a test left, also one that failed in the middle.
func (s *stack) sweep(t *testing.T) {
	if t.Failed() {
		t.Logf("croft-containerd said:\n%s", s.said())
	}
	if s.daemon != nil {
		s.daemon.Process.Kill()
		s.daemon.Wait()
	}
	for range 50 {
		left := s.processes()
		for _, p := range left {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
		if len(left) == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond) // a killed process needs a moment to be gone
	}
	mounts, _ := mountinfo.GetMounts(mountinfo.PrefixFilter(s.dir))
	for _, m := range slices.Backward(mounts) {
		unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
	}
	os.RemoveAll(s.dir)
	for _, group := range cgroups() {
		os.Remove(group)
	}
}

// cgroups are the test's groups, in each hierarchy.
func cgroups() []string {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/croft-stack*", "/sys/fs/cgroup/*/croft-stack*"} {
		for _, parent := range must(filepath.Glob(pattern)) {
			for _, entry := range must(os.ReadDir(parent)) {
				if entry.IsDir() {
					found = append(found, filepath.Join(parent, entry.Name()))
				}
			}
			found = append(found, parent)
		}
	}
	return found
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type process struct {
	pid  int
	args string
}

// processes are those that run programs of the stack, or for it, the daemon apart.
func (s *stack) processes() []process {
	var found []process
	for _, path := range must(filepath.Glob("/proc/[0-9]*")) {
		var pid int
		fmt.Sscanf(filepath.Base(path), "%d", &pid)
		args, _ := os.ReadFile(path + "/cmdline")
		exe, _ := os.Readlink(path + "/exe")
		if s.daemon != nil && pid == s.daemon.Process.Pid || len(args) == 0 || pid == os.Getpid() {
			continue
		}
		if strings.Contains(string(args), s.dir) || strings.HasPrefix(exe, s.dir) {
			found = append(found, process{pid, strings.ReplaceAll(string(args), "\x00", " ")})
		}
	}
	return found
}

// serve serves OCI images with the guest program on loopback and writes the rule
// that makes it docker.io's mirror.
func (s *stack) serve(t *testing.T) {
	t.Helper()
	build(t, "testdata/guest", s.dir+"/guest")
	program, err := os.ReadFile(s.dir + "/guest")
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []*tar.Header{
		{Name: "guest", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg},
	} {
		w.WriteHeader(h)
		w.Write(program)
	}
	w.Close()
	server := httptest.NewServer(fakeregistry.New(fakeregistry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	for tag, arch := range map[string]string{"latest": runtime.GOARCH, "elsewhere": "s390x"} {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		img, err := mutate.AppendLayers(empty.Image, l)
		if err != nil {
			t.Fatal(err)
		}
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{
			OS: "linux", Architecture: arch, RootFS: must(img.ConfigFile()).RootFS,
			Config: v1.Config{Entrypoint: []string{"/guest"}, Cmd: []string{"serve"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(must(name.ParseReference(host+"/library/guest:"+tag)), img); err != nil {
			t.Fatal(err)
		}
	}
	rules := filepath.Join(s.hosts, "docker.io")
	if err := os.MkdirAll(rules, 0o700); err != nil {
		t.Fatal(err)
	}
	rule := fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", "https://registry.invalid", server.URL)
	if err := os.WriteFile(filepath.Join(rules, "hosts.toml"), []byte(rule), 0o600); err != nil {
		t.Fatal(err)
	}
}

// pull pulls through the transfer service, as the agent does.
func (s *stack) pull(ctx context.Context, tag string) error {
	source, err := registry.NewOCIRegistry(ctx, "docker.io/library/guest:"+tag, registry.WithHostDir(s.hosts))
	if err != nil {
		return err
	}
	return s.client.Transfer(ctx, source, image.NewStore("docker.io/library/guest:"+tag,
		image.WithPlatforms(platforms.DefaultSpec()), image.WithUnpack(platforms.DefaultSpec(), "overlayfs")))
}

// create makes a container and its task, with its output to croft-rotlog.
func (s *stack) create(ctx context.Context, id, logPath string, more ...oci.SpecOpts) (containerd.Container, containerd.Task, error) {
	img, err := s.client.GetImage(ctx, "docker.io/library/guest:latest")
	if err != nil {
		return nil, nil, err
	}
	runsc := &options.Options{BinaryName: s.bin + "/croft-runsc", Root: s.dir + "/runsc"}
	spec := append([]oci.SpecOpts{oci.WithImageConfig(img), oci.WithCgroup("/croft-stack/" + id)}, more...)
	c, err := s.client.NewContainer(ctx, id, containerd.WithImage(img), containerd.WithNewSnapshot(id, img),
		containerd.WithRuntime("io.containerd.runc.v2", runsc), containerd.WithNewSpec(spec...))
	if err != nil {
		return nil, nil, err
	}
	logger := &url.URL{Scheme: "binary-v2", Path: s.bin + "/croft-rotlog", RawQuery: url.Values{
		"path": {logPath}, "max": {"1048576"}, "keep": {"1"},
	}.Encode()}
	task, err := c.NewTask(ctx, cio.LogURI(logger))
	if err != nil {
		return c, nil, errors.Join(err, c.Delete(context.WithoutCancel(ctx), containerd.WithSnapshotCleanup))
	}
	return c, task, nil
}

func TestDaemonHasWhatTheAgentNeedsAndNothingElse(t *testing.T) {
	s := newStack(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	reply, err := s.client.IntrospectionService().Plugins(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range reply.Plugins {
		if p.InitErr != nil {
			t.Errorf("%s.%s: %s", p.Type, p.ID, p.InitErr.Message)
		}
		got = append(got, p.Type+"."+p.ID)
	}
	slices.Sort(got)
	// Each plugin runs as root: a new one is a topic of the review.
	const golden = "testdata/plugins.txt"
	text := strings.Join(got, "\n") + "\n"
	if *update {
		if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || text != string(want) {
		t.Errorf("plugins are\n%s\nbut %s says (%v)\n%s", text, golden, err, want)
	}
	server, err := s.client.IntrospectionService().Server(ctx)
	if err != nil || server.UUID == "" {
		t.Errorf("introspection: %v, %v", server, err)
	}
	if serving, err := s.client.IsServing(ctx); !serving || err != nil {
		t.Errorf("health: %v, %v", serving, err)
	}
	for _, socket := range []string{"/c.sock", "/c.sock.ttrpc"} {
		if mode := must(os.Stat(s.dir + socket)).Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %o", socket, mode)
		}
	}

	second := exec.CommandContext(ctx, s.bin+"/croft-containerd", append(s.args()[:4:4], "--address", s.dir+"/second.sock")...)
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "another daemon") {
		t.Errorf("a second daemon on the same root: %v\n%s", err, out)
	}

	s.daemon.Process.Signal(syscall.SIGTERM)
	if err := s.daemon.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func TestContainerFromPullToNothing(t *testing.T) {
	s := newStack(t)
	s.serve(t)
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "croft"), 5*patience)
	defer cancel()

	// containerd refuses no image for another architecture; it leaves it packed.
	for _, tag := range []string{"elsewhere", "latest"} { // they share their layer
		if err := s.pull(ctx, tag); err != nil {
			t.Fatalf("pull %s: %v", tag, err)
		}
		img, err := s.client.GetImage(ctx, "docker.io/library/guest:"+tag)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := img.IsUnpacked(ctx, "overlayfs"); got != (tag == "latest") || err != nil {
			t.Errorf("%s: unpacked is %v, %v", tag, got, err)
		}
	}
	logFile := filepath.Join(s.dir, "web.log")
	begin := time.Now()
	c, task, err := s.create(ctx, "web", logFile)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatalf("start: %v", err)
	}
	s.waitFor(t, logFile, "hello from")
	s.waitFor(t, logFile, "this is stderr")
	t.Logf("create to first line took %v", time.Since(begin))
	lines := records(t, logFile)
	if !slices.ContainsFunc(lines, func(l line) bool { return l.S == "stdout" && strings.Contains(l.M, "gvisor") }) {
		t.Errorf("it does not run in gVisor: %v", lines)
	}

	var stdout bytes.Buffer
	if code := s.exec(t, ctx, task, "one", &stdout); code != 3 || stdout.String() != "through stdin\n" {
		t.Errorf("exec ended with %d and said %q", code, stdout.String())
	}
	if metrics, err := task.Metrics(ctx); err != nil || metrics.Data == nil {
		t.Errorf("metrics: %v, %v", metrics, err)
	}

	// The daemon dies and comes back; the container never notices.
	s.kill9()
	s.start(t)
	c, err = s.client.LoadContainer(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	task, err = c.Task(ctx, nil)
	if err != nil {
		t.Fatalf("adopt: %v", err)
	}
	if status, err := task.Status(ctx); err != nil || status.Status != containerd.Running {
		t.Errorf("after kill -9 of the daemon: %v, %v", status, err)
	}
	if exited, err = task.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	stdout.Reset()
	if code := s.exec(t, ctx, task, "two", &stdout); code != 3 || stdout.String() != "through stdin\n" {
		t.Errorf("exec after adoption ended with %d and said %q", code, stdout.String())
	}

	if err := task.Kill(ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if end := <-exited; end.ExitCode() != 7 || end.Error() != nil {
		t.Errorf("ended with %d, %v, want 7", end.ExitCode(), end.Error())
	}
	s.waitFor(t, logFile, "goodbye")
	if _, err := task.Delete(ctx); err != nil {
		t.Errorf("delete task: %v", err)
	}
	if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
		t.Errorf("delete container: %v", err)
	}
	s.nothingLeft(t)

	// What must not start.
	if _, _, err := s.create(ctx, "lost", filepath.Join(s.dir, "no/such/folder")); err == nil {
		t.Error("a container was created without its log")
	}
	for _, key := range []string{"host-uds", "overlay2", "debug"} {
		_, _, err := s.create(ctx, "sly-"+key, filepath.Join(s.dir, "sly.log"), oci.WithAnnotations(map[string]string{"dev.gvisor.flag." + key: "all"}))
		if err == nil || !strings.Contains(err.Error(), "is refused") {
			t.Errorf("an annotation for --%s: %v", key, err)
		}
	}
	s.nothingLeft(t)
}

// exec runs the guest's echo in the container.
func (s *stack) exec(t *testing.T, ctx context.Context, task containerd.Task, id string, stdout io.Writer) uint32 {
	t.Helper()
	spec, err := task.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	process := *spec.Process
	process.Args = []string{"/guest", "echo"}
	stdin := &input{text: "through stdin\n", written: make(chan struct{})}
	p, err := task.Exec(ctx, id, &process, cio.NewCreator(cio.WithStreams(stdin, stdout, io.Discard), cio.WithFIFODir(s.dir+"/fifo")))
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	exited, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(ctx); err != nil {
		t.Fatalf("start exec: %v", err)
	}
	// The shim may open its end of the pipe after the start. Told to close before,
	// it lets the text go to nobody and then waits for ever for another writer.
	select {
	case <-stdin.written:
	case <-ctx.Done():
		t.Fatalf("exec %s: its input was not taken: %v", id, ctx.Err())
	}
	if err := p.CloseIO(ctx, containerd.WithStdinCloser); err != nil {
		t.Errorf("close stdin: %v", err)
	}
	end := <-exited
	if end.Error() != nil {
		t.Fatalf("exec %s: %v", id, end.Error())
	}
	p.IO().Wait() // Delete drops what was not read yet
	if _, err := p.Delete(ctx); err != nil {
		t.Errorf("delete exec: %v", err)
	}
	return end.ExitCode()
}

// input is a text that says when it was written: a copy reads on when it has
// written what it read before.
type input struct {
	text    string
	written chan struct{}
}

func (i *input) Read(p []byte) (int, error) {
	if i.text == "" {
		close(i.written)
		return 0, io.EOF
	}
	n := copy(p, i.text)
	i.text = i.text[n:]
	return n, nil
}

// nothingLeft checks that no process, mount, socket, state or group of a container
// remains. Some go a moment after the call that ended them.
func (s *stack) nothingLeft(t *testing.T) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		left = nil
		for _, p := range s.processes() {
			left = append(left, "process "+p.args)
		}
		for _, m := range must(mountinfo.GetMounts(mountinfo.PrefixFilter(s.dir))) {
			left = append(left, "mount "+m.Mountpoint)
		}
		for _, pattern := range []string{"/state/s/*", "/state/io.containerd.runtime.v2.task/croft/*", "/runsc/*/*", "/root/io.containerd.runtime.v2.task/croft/*"} {
			left = append(left, must(filepath.Glob(s.dir+pattern))...)
		}
		for _, group := range cgroups() {
			if filepath.Base(group) != "croft-stack" {
				left = append(left, group)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("left over:\n%s", strings.Join(left, "\n"))
}

type line struct {
	T time.Time
	S string
	M string
}

func records(t *testing.T, path string) []line {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var lines []line
	for text := range bytes.Lines(data) {
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatalf("log line %q: %v", text, err)
		}
		lines = append(lines, l)
	}
	return lines
}

// waitFor waits until the log has a line.
func (s *stack) waitFor(t *testing.T, path, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if slices.ContainsFunc(records(t, path), func(l line) bool { return strings.Contains(l.M, text) }) {
			return
		}
	}
	t.Fatalf("the log never said %q: %v", text, records(t, path))
}
