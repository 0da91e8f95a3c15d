//go:build integration

package sandbox_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/sandbox"
)

// devices are those that the guest looks for in its image.
func devices() (all []file) {
	all = append(all, file{name: "brought/"})
	for _, d := range []struct {
		kind         byte
		mode         int
		major, minor int64
	}{
		{tar.TypeChar, unix.S_IFCHR, 1, 1},
		{tar.TypeChar, unix.S_IFCHR, 1, 11},
		{tar.TypeChar, unix.S_IFCHR, 10, 237},
		{tar.TypeChar, unix.S_IFCHR, 10, 130},
		{tar.TypeChar, unix.S_IFCHR, 10, 236},
		{tar.TypeChar, unix.S_IFCHR, 10, 232},
		{tar.TypeBlock, unix.S_IFBLK, 7, 0},
		{tar.TypeBlock, unix.S_IFBLK, 8, 0},
		{tar.TypeBlock, unix.S_IFBLK, 254, 0},
		{tar.TypeBlock, unix.S_IFBLK, 259, 0},
	} {
		all = append(all, file{name: fmt.Sprintf("brought/%d-%d-%d", d.mode, d.major, d.minor), mode: 0o666, kind: d.kind, major: d.major, minor: d.minor})
	}
	return all
}

func TestHostileProgramStaysInside(t *testing.T) {
	s := newStack(t)
	raw, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	s.push("library/guest:latest", nil, guestLayer(t), layer(t, append(devices(), file{name: "suid", text: string(raw), mode: 0o4755})...))
	image := s.mustPull("guest")

	// A volume with what its tenant may have left there, were it not for gVisor.
	volume, secret := filepath.Join(s.dir, "disk", "volume"), filepath.Join(s.dir, "secret")
	if err := os.MkdirAll(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret, []byte("the box's own"), 0o644); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(volume, "host.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := os.Chmod(filepath.Join(volume, "host.sock"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(volume, "host.pipe"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(volume, "host.pipe"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(volume, "host.link")); err != nil {
		t.Fatal(err)
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Fatal(err)
	}

	check := func(t *testing.T, said string, euid int) {
		t.Helper()
		var seen struct {
			Won     []string
			Release string
			Euid    int
		}
		if err := json.Unmarshal([]byte(said), &seen); err != nil {
			t.Fatalf("it said %q: %v", said, err)
		}
		for _, name := range seen.Won {
			t.Errorf("an attack succeeded: %s", name)
		}
		if seen.Release == unix.ByteSliceToString(host.Release[:]) {
			t.Errorf("it sees the machine's own kernel, %s", seen.Release)
		}
		if seen.Euid != euid {
			t.Errorf("it runs as user %d, want %d", seen.Euid, euid)
		}
	}
	c := s.container(image, "evil", "attack")
	c.Mounts = []lease.Mount{{Source: volume, Destination: "/data"}}
	s.mustStart(c)
	if exit := s.nextExit(c.ID); exit.Code != 0 {
		t.Errorf("exit is %+v", exit)
	}
	out, _ := s.lines(c)
	check(t, strings.Join(out, ""), 0)
	s.mustStop(c.ID, 0)

	// Commands are started by another way.
	wait := s.container(image, "wait", "wait")
	wait.Mounts = c.Mounts
	s.mustStart(wait)
	s.untilLine(wait, "waiting")
	var answer bytes.Buffer
	if code, err := s.Exec(s.ctx(), wait.ID, []string{"/guest", "attack"}, false, nil, &answer, nil, nil); err != nil || code != 0 {
		t.Fatalf("Exec = %d, %v", code, err)
	}
	check(t, answer.String(), 0)
	// CVE-2019-5736: the runtime's own program.
	answer.Reset()
	code, err := s.Exec(s.ctx(), wait.ID, []string{"/proc/self/exe", "--version"}, false, nil, &answer, &answer, nil)
	if strings.Contains(answer.String(), "runsc") {
		t.Errorf("a command ran the machine's own program: %d, %v, %q", code, err, answer.String())
	}
	s.mustStop(wait.ID, 0)

	s.push("library/guest:user", func(c *v1.ConfigFile) { c.Config.User, c.Config.Entrypoint = "web", []string{"/suid"} },
		guestLayer(t), layer(t, append(devices(), file{name: "suid", text: string(raw), mode: 0o4755})...))
	c = s.container(s.mustPull("guest:user"), "suid", "attack")
	c.Mounts = wait.Mounts
	s.mustStart(c)
	s.nextExit(wait.ID)
	s.nextExit(c.ID)
	out, _ = s.lines(c)
	check(t, strings.Join(out, ""), 1000)
	s.mustStop(c.ID, 0)
	if left := s.residue(); left != nil {
		t.Errorf("left: %q", left)
	}
}

func TestHostileImageStaysInside(t *testing.T) {
	s := newStack(t)
	outside := filepath.Join(s.dir, "outside")
	if err := os.Mkdir(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(outside, "kept")
	if err := os.WriteFile(kept, []byte("the box's own"), 0o666); err != nil {
		t.Fatal(err)
	}
	climb := strings.Repeat("../", 20) + outside[1:]
	volume := filepath.Join(s.dir, "disk", "volume")
	if err := os.MkdirAll(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	program := file{name: "guest", text: string(raw)}
	for i, tc := range []struct {
		name   string
		change func(*v1.ConfigFile)
		layers [][]file
	}{
		{"folders that are links to the machine's", nil, [][]file{{program, {name: "etc", link: outside}, {name: "data", link: climb}}}},
		{"links that later layers write through", nil, [][]file{{program, {name: "way", link: outside}, {name: "climb", link: climb}}, {{name: "way/in", text: "x"}, {name: "climb/in", text: "x"}}}},
		{"names that climb", nil, [][]file{{program, {name: climb + "/in", text: "x"}, {name: outside + "/in", text: "x"}}}},
		{"hard links to the machine's files", nil, [][]file{{program, {name: "kept", link: climb + "/kept", kind: tar.TypeLink}}, {{name: "kept", text: "changed"}}}},
		{"a removal of the machine's files", nil, [][]file{{program, {name: "way", link: outside}}, {{name: "way/.wh.kept"}, {name: "way/.wh..wh..opq"}, {name: climb + "/.wh.kept"}}}},
		{"a link in place of a file that is mounted over", nil, [][]file{{program, {name: "etc/"}, {name: "etc/hosts", link: kept}, {name: "etc/resolv.conf", link: climb + "/kept"}}}},
		{"a working folder among open files", func(c *v1.ConfigFile) { c.Config.WorkingDir = "/proc/self/fd/7" }, [][]file{{program}}}, // CVE-2024-21626
		{"accounts in the machine's files", func(c *v1.ConfigFile) { c.Config.User = "root" }, [][]file{{program, {name: "etc/"}, {name: "etc/passwd", link: climb + "/kept"}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var layers []v1.Layer
			for _, files := range tc.layers {
				layers = append(layers, layer(t, files...))
			}
			name := fmt.Sprintf("hostile%d", i)
			s.push("library/"+name+":latest", tc.change, layers...)
			image, err := s.pull(name)
			if err == nil {
				c := s.container(image, name)
				c.Mounts = []lease.Mount{{Source: volume, Destination: "/data"}}
				if err = s.Start(s.ctx(), c); err == nil {
					s.nextExit(c.ID)
				}
				s.mustStop(c.ID, 0)
			}
			t.Logf("it ended with %v", err) // that it works is not asked for
			found, _ := os.ReadDir(outside)
			if len(found) != 1 {
				t.Errorf("the folder of the machine holds %v", found)
			}
			var info unix.Stat_t
			text, readErr := os.ReadFile(kept)
			if readErr != nil || string(text) != "the box's own" || unix.Stat(kept, &info) != nil || info.Nlink != 1 {
				t.Errorf("the machine's file holds %q, %v, with %d links", text, readErr, info.Nlink)
			}
		})
	}
	if left := s.residue(); left != nil {
		t.Errorf("left: %q", left)
	}
}

func TestImagesWithoutBound(t *testing.T) {
	s := newStack(t)
	refused := func(t *testing.T, name string, limit int64, want sandbox.Reason) {
		t.Helper()
		before := time.Now()
		_, err := s.Pull(s.ctx(), s.key, name, nil, limit, nil)
		wantReason(t, err, want)
		t.Logf("refused after %v: %v", time.Since(before), err)
		// What cannot work is not kept for a next attempt.
		if size := s.fetched("*"); size > 1<<20 {
			t.Errorf("%d bytes of it are left", size)
		}
		if n := s.snapshots(); n != 0 {
			t.Errorf("%d layers of it are left", n)
		}
	}
	t.Run("files without end", func(t *testing.T) {
		var many []file
		for i := range 5000 {
			many = append(many, file{name: fmt.Sprintf("f%d", i)})
		}
		s.push("library/many:latest", nil, layer(t, many...))
		refused(t, "many", 64<<20, sandbox.ImageTooLarge)
	})
	t.Run("a layer of unknown size", func(t *testing.T) {
		image := s.push("library/endless:latest", nil, guestLayer(t), layer(t, file{name: "noise", text: noise(16 << 20)}))
		s.repush("library/endless:latest", image, func(m map[string]any) { m["layers"].([]any)[1].(map[string]any)["size"] = 0 })
		refused(t, "endless", 8<<20, sandbox.BadImage)
	})
	t.Run("a configuration of megabytes", func(t *testing.T) {
		s.push("library/wordy:latest", func(c *v1.ConfigFile) { c.Config.Env = []string{"A=" + strings.Repeat("x", 8<<20)} }, guestLayer(t))
		refused(t, "wordy", 1<<30, sandbox.BadImage)
	})
	t.Run("layers without end", func(t *testing.T) {
		var layers []v1.Layer
		for i := range 130 {
			layers = append(layers, layer(t, file{name: fmt.Sprintf("f%d", i), text: "x"}))
		}
		s.push("library/deep:latest", nil, layers...)
		refused(t, "deep", 1<<30, sandbox.BadImage)
	})
	t.Run("broken pulls of one lease are not hoarded", func(t *testing.T) {
		for i := range 3 {
			name := fmt.Sprintf("hoard%d", i)
			s.push("library/"+name+":latest", nil, layer(t, file{name: "noise", text: noise(6 << 20)}))
			s.mirrored.breakAt.Store(4 << 20)
			_, err := s.pull(name)
			wantReason(t, err, sandbox.RegistryDown)
			s.mirrored.breakAt.Store(0)
			s.mirrored.down.Store(false)
		}
		if err := s.Collect(s.ctx(), []lease.Key{s.key}); err != nil {
			t.Fatal(err)
		}
		if size := s.fetched("ingest"); size < 1<<20 || size > 6<<20 {
			t.Errorf("%d bytes of broken pulls are kept, want the 4 MiB of the last", size)
		}
	})
}

// fetched is how many bytes containerd holds of what it fetched: of blobs, or of
// what is not whole yet (ingest).
func (s *stack) fetched(of string) (size int64) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "root", "io.containerd.content.v1.content", of, "*", "*"))
	for _, path := range files {
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			size += info.Size()
		}
	}
	return size
}

// repush puts an image's manifest into the registry again, changed.
func (s *stack) repush(reference string, image v1.Image, change func(map[string]any)) {
	s.t.Helper()
	raw, err := image.RawManifest()
	if err != nil {
		s.t.Fatal(err)
	}
	var manifest map[string]any
	if err := json.Unmarshal(raw, &manifest); err != nil {
		s.t.Fatal(err)
	}
	change(manifest)
	if raw, err = json.Marshal(manifest); err != nil {
		s.t.Fatal(err)
	}
	repository, tag, _ := strings.Cut(reference, ":")
	s.send(http.MethodPut, "/v2/"+repository+"/manifests/"+tag, manifest["mediaType"].(string), raw)
}

func TestForkBombEndsWithItsReplica(t *testing.T) {
	s := newStack(t)
	s.pushGuest()
	image := s.mustPull("guest")
	c := s.container(image, "bomb", "fork")
	c.Limits.Pids = 512
	s.mustStart(c)
	s.untilLine(c, "forking")
	s.until("it is at its limit or over", func() bool {
		used, err := s.Usage(s.ctx(), c.ID)
		return err != nil || used.Pids > 200
	})
	for range 20 {
		if used, err := s.Usage(s.ctx(), c.ID); err == nil && used.Pids > 512 {
			t.Errorf("it has %d threads of the machine", used.Pids)
		}
	}
	s.mustStop(c.ID, 0)
	s.nextExit(c.ID)
	if left := s.residue(); left != nil {
		t.Errorf("left: %q", left)
	}
}

// TestSiblings has two replicas of one lease, the first of which ends first: the
// other must keep its limits, and its place.
func TestSiblings(t *testing.T) {
	s := newStack(t)
	s.pushGuest()
	image := s.mustPull("guest")
	one, two := s.container(image, "one", "wait"), s.container(image, "two", "wait")
	s.mustStart(one)
	s.mustStart(two)
	s.untilLine(two, "waiting")
	s.mustStop(one.ID, 0)
	s.nextExit(one.ID)
	used, err := s.Usage(s.ctx(), two.ID)
	if err != nil || used.MemoryMax != two.Limits.Memory || used.Pids == 0 {
		t.Errorf("the one that stays uses %+v, %v", used, err)
	}
	s.mustStart(one)
	s.mustStop(one.ID, 0)
	s.mustStop(two.ID, 0)
	if left := s.residue(); left != nil {
		t.Errorf("left: %q", left)
	}
}

func TestFailedStartsLeaveNothing(t *testing.T) {
	s := newStack(t)
	s.pushGuest()
	image := s.mustPull("guest")
	good := s.container(image, "web", "wait")
	blocked := filepath.Join(s.dir, "blocked")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	clean := func(t *testing.T) {
		t.Helper()
		if left := s.residue(); left != nil {
			t.Errorf("left: %q", left)
		}
		if all, err := s.List(s.ctx()); err != nil || len(all) != 0 {
			t.Errorf("List = %v, %v", all, err)
		}
		if err := s.Collect(s.ctx(), []lease.Key{s.key}); err != nil {
			t.Fatal(err)
		}
		if n := s.snapshots(); n != 1 {
			t.Errorf("%d snapshots are left, want the image's one layer", n)
		}
	}
	for name, change := range map[string]func(*lease.Container){
		"no such network":        func(c *lease.Container) { c.Attachment = &lease.Attachment{NetNS: filepath.Join(s.dir, "none")} },
		"a network that is none": func(c *lease.Container) { c.Attachment = &lease.Attachment{NetNS: blocked} },
		"no place for the log":   func(c *lease.Container) { c.Log = filepath.Join(blocked, "log") },
		"a log that is a folder": func(c *lease.Container) { c.Log = s.dir },
		"no scratch folder":      func(c *lease.Container) { c.Scratch = filepath.Join(blocked, "scratch") },
		"no such volume": func(c *lease.Container) {
			c.Mounts = []lease.Mount{{Source: filepath.Join(s.dir, "none"), Destination: "/data"}}
		},
		"a volume over a file": func(c *lease.Container) { c.Mounts = []lease.Mount{{Source: s.dir, Destination: "/guest"}} },
		"no such program":      func(c *lease.Container) { c.Command = []string{"/none"} },
		"another image":        func(c *lease.Container) { c.Image = "docker.io/library/guest@sha256:" + strings.Repeat("0", 64) },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			change(&c)
			if err := s.Start(s.ctx(), c); err == nil {
				t.Error("it was started")
				s.mustStop(c.ID, 0)
			}
			clean(t)
		})
	}
	t.Run("given up anywhere", func(t *testing.T) {
		for after := time.Millisecond; after < time.Second; after *= 2 {
			ctx, cancel := context.WithTimeout(s.ctx(), after)
			if s.Start(ctx, good) == nil {
				s.mustStop(good.ID, 0)
				s.nextExit(good.ID)
			}
			cancel()
			clean(t)
		}
		s.noExit()
	})
	// again is what comes after a start that something died of.
	again := func(t *testing.T) {
		t.Helper()
		s.disconnect()
		s.connect()
		s.until("the next agent starts it", func() bool { return s.Start(s.ctx(), good) == nil })
		s.mustStop(good.ID, 0)
		s.until("containerd is done", func() bool { return s.residue() == nil })
		clean(t)
	}
	t.Run("by an agent that dies anywhere", func(t *testing.T) {
		for after := time.Millisecond; after < time.Second; after *= 2 {
			dying := s.Sandbox
			time.AfterFunc(after, func() { dying.Close() })
			_ = dying.Start(s.ctx(), good) // how it ends is not what this is about
			again(t)
		}
	})
	t.Run("by a containerd that dies anywhere", func(t *testing.T) {
		for after := 25 * time.Millisecond; after < time.Second; after *= 2 {
			dying := s.daemon.Process
			time.AfterFunc(after, func() { _ = dying.Kill() })
			_ = s.Start(s.ctx(), good)
			s.killDaemon()
			s.startDaemon()
			again(t)
		}
	})
}
