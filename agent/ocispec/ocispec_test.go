package ocispec

import (
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
)

var update = flag.Bool("update", false, "rewrite golden files")

func wantReason(t *testing.T, err error, want Reason) {
	t.Helper()
	if got := ReasonOf(err); got != want {
		t.Errorf("reason is %q, want %q: %v", got, want, err)
	}
}

func TestParseReference(t *testing.T) {
	const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for _, tc := range []struct{ name, typed, want string }{
		{"registry, library and tag have defaults", "nginx", "docker.io/library/nginx:latest"},
		{"a user's repository", "croft/web:1.2", "docker.io/croft/web:1.2"},
		{"another registry with a port", "ghcr.io:8443/a/b/c:x", "ghcr.io:8443/a/b/c:x"},
		{"a digest decides alone", "nginx:1.27@" + digest, "docker.io/library/nginx@" + digest},
		{"a public address", "8.8.8.8/a", "8.8.8.8/a:latest"},
		{"upper case is no image", "Nginx", ""},
		{"nothing", "", ""},
		{"a scheme", "https://ghcr.io/a", ""},
		{"dots that lead elsewhere", "ghcr.io/../a", ""},
		{"a digest of another kind", "a@sha512:" + strings.Repeat("a", 128), ""},
		{"a name without end", strings.Repeat("a/", 400) + "a", ""},
		{"this machine by name", "localhost:5000/a", ""},
		{"this machine by address", "127.0.0.1/a", ""},
		{"this machine by address of six", "[::1]:5000/a", ""},
		{"an address of four in one of six", "[::ffff:10.0.0.1]/a", ""},
		{"the owner's network", "192.168.1.1:80/a", ""},
		{"the cloud's secrets", "169.254.169.254/a", ""},
		{"behind the provider's translation", "100.64.3.3/a", ""},
		{"an address as one number", "a.2130706433/a", ""},
		{"an address in base sixteen", "127.0.0.0x1:80/a", ""},
		{"the owner's devices", "router.lan/a", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseReference(tc.typed, false)
			if tc.want == "" {
				wantReason(t, err, BadReference)
				if croft.KindOf(err) != croft.KindUsage {
					t.Errorf("kind is %q", croft.KindOf(err))
				}
				return
			}
			if err != nil || got.String() != tc.want {
				t.Errorf("ParseReference(%q) = %q, %v; want %q", tc.typed, got, err, tc.want)
			}
		})
	}
	if _, err := ParseReference("127.0.0.1:5000/a", true); err != nil {
		t.Errorf("a private registry that is allowed: %v", err)
	}
}

func TestCredentialsGoToTheirHostOnly(t *testing.T) {
	for _, tc := range []struct {
		given, asks string
		want        bool
	}{
		{"ghcr.io", "ghcr.io", true},
		{"https://ghcr.io/", "ghcr.io", true},
		{"https://index.docker.io/v1/", "registry-1.docker.io", true},
		{"docker.io", "registry-1.docker.io", true},
		{"ghcr.io", "ghcr.io.example.com", false},
		{"ghcr.io", "evil.example", false},
		{"ghcr.io:8443", "ghcr.io", false},
		{"", "", false},
		{"", "ghcr.io", false},
	} {
		if got := CredentialHost(tc.given, tc.asks); got != tc.want {
			t.Errorf("credentials for %q are shown to %q: %v, want %v", tc.given, tc.asks, got, tc.want)
		}
	}
}

func TestTally(t *testing.T) {
	about := func(event, digest, kind string, progress, size int64) Progress {
		return Progress{Event: event, Digest: digest, MediaType: "application/vnd.oci.image." + kind, Size: size, Done: progress}
	}
	type step struct {
		message     Progress
		done, total int64
		phase       string
	}
	counted := NewTally(1000)
	for i, s := range []step{
		{about("complete", "m", "manifest.v1+json", 10, 10), 0, 0, Resolving},
		{about("waiting", "a", "layer.v1.tar", 0, 500), 10, 510, Downloading},
		{about("downloading", "a", "layer.v1.tar", 200, 500), 210, 510, Downloading},
		{about("downloading", "a", "layer.v1.tar", 100, 500), 210, 510, Downloading}, // late
		{about("already exists", "b", "layer.v1.tar", 400, 400), 610, 910, Downloading},
		{about("extracting", "a", "layer.v1.tar", 50, 500), 910, 910, Unpacking}, // its last bytes were not told
		{about("downloading", "a", "layer.v1.tar", 9000, 500), 910, 910, Unpacking},
	} {
		if _, err := counted.Add(s.message); err != nil {
			t.Fatal(err)
		}
		done, total := counted.Shown()
		if done != s.done || total != s.total || Phase(done, total) != s.phase {
			t.Errorf("after message %d: %d of %d, %s; want %d of %d, %s", i, done, total, Phase(done, total), s.done, s.total, s.phase)
		}
	}
	_, err := counted.Add(about("waiting", "c", "layer.v1.tar", 0, 91))
	wantReason(t, err, ImageTooLarge)

	for _, size := range []int64{-1, 0, 1 << 62} {
		_, err := NewTally(1 << 62).Add(about("waiting", "x", "layer.v1.tar", 0, size))
		wantReason(t, err, BadImage)
	}
	many := NewTally(1000)
	for i := range blobsMax {
		if _, err := many.Add(about("waiting", strconv.Itoa(i), "layer.v1.tar", 0, 1)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = many.Add(about("waiting", "one more", "layer.v1.tar", 0, 1))
	wantReason(t, err, BadImage)
	for _, kind := range []string{"manifest.v1+json", "config.v1+json", "index.v1+json"} {
		_, err := NewTally(1 << 40).Add(about("waiting", "x", kind, 0, manifestBytes+1))
		wantReason(t, err, BadImage)
	}
}

func TestChainID(t *testing.T) {
	a, b := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	// printf 'sha256:aaa… sha256:bbb…' | sha256sum
	const both = "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"
	if got, err := chainID("layers", []string{a}); err != nil || got != a {
		t.Errorf("chain of one layer is %s, %v", got, err)
	}
	if got, err := chainID("layers", []string{a, b}); err != nil || got != both {
		t.Errorf("chain of two layers is %s, %v, want %s", got, err, both)
	}
	for _, layers := range [][]string{nil, {"sha256:../../etc"}, {""}, slices.Repeat([]string{a}, LayersMax+1)} {
		_, err := chainID("layers", layers)
		wantReason(t, err, BadImage)
	}
}

func TestParseImageConfig(t *testing.T) {
	system, architecture := Platform()
	layers := `"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("a", 64) + `"]}`
	if _, err := parseImageConfig([]byte(`{"os":"` + system + `","architecture":"` + architecture + `",` + layers + `}`)); err != nil {
		t.Error(err)
	}
	_, err := parseImageConfig([]byte(`{"os":"linux","architecture":"s390x",` + layers + `}`))
	wantReason(t, err, WrongArchitecture)
	_, err = parseImageConfig([]byte(`{"os":"windows","architecture":"` + architecture + `",` + layers + `}`))
	wantReason(t, err, WrongArchitecture)
	_, err = parseImageConfig([]byte(`{"config":{"Env":7}}`))
	wantReason(t, err, BadImage)
	_, err = parseImageConfig([]byte(`{"os":"` + system + `","architecture":"` + architecture + `"}`))
	wantReason(t, err, BadImage)
}

func TestLookUpUser(t *testing.T) {
	passwd := []byte("# a comment\nroot:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\nbad:x:-1:0::/:\nhuge:x:4294967295:0::/:\nshort:x:5\nrelative:x:7:7::home:/bin/sh\n")
	group := []byte("root:x:0:\nweb:x:1001:web\nvideo:x:44:root,web\naudio:x:63:web\n")
	for _, tc := range []struct {
		name, user string
		want       Identity
	}{
		{"nobody named is root", "", Identity{Groups: []uint32{44}, Home: "/root"}},
		{"a name", "web", Identity{User: 1000, Group: 1001, Groups: []uint32{44, 63}, Home: "/home/web"}},
		{"a number with a name", "1000", Identity{User: 1000, Group: 1001, Groups: []uint32{44, 63}, Home: "/home/web"}},
		{"a number without a name", "4242", Identity{User: 4242, Home: "/"}},
		{"a group by name stands alone", "web:video", Identity{User: 1000, Group: 44, Home: "/home/web"}},
		{"numbers need no files", "5:6", Identity{User: 5, Group: 6, Home: "/"}},
		{"no group after the colon", "web:", Identity{User: 1000, Group: 1001, Groups: []uint32{44, 63}, Home: "/home/web"}},
		{"a home that leads elsewhere", "relative", Identity{User: 7, Group: 7, Home: "/"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := LookUpUser(tc.user, passwd, group)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, user := range []string{"nobody", "root:../../", "../../etc/passwd", "-1", "4294967295", "99999999999999999999", "bad", "huge", "short", "0x0", "root:-1", "a:b:c", strings.Repeat("x", userLength+1)} {
		_, err := LookUpUser(user, passwd, group)
		wantReason(t, err, BadImage)
	}
	if _, err := LookUpUser("root", nil, nil); err == nil {
		t.Error("a name was found in an image without files")
	}
	if got, err := LookUpUser("", nil, nil); err != nil || got.User != 0 || got.Home != "/" {
		t.Errorf("an image without files runs as %+v, %v", got, err)
	}
}

func TestReadInside(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{secret: "the box's own", filepath.Join(root, "inside"): "the image's", filepath.Join(root, "etc", "large"): strings.Repeat("x", 101)} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	links := map[string]string{
		"absolute": "/inside", "outside": secret, "climbing": "../../../../../../.." + secret, "loop": "loop",
		"process": "/proc/self/environ", "deep": "/etc/../../inside",
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(root, "etc", name)); err != nil {
			t.Fatal(err)
		}
	}
	folder, err := Layers{root}.open()
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	for _, name := range []string{"absolute", "deep"} {
		if got, err := readInside(folder, "etc/"+name, 100); err != nil || string(got) != "the image's" {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"outside", "climbing", "process", "missing", "absolute/beneath"} {
		if got, err := readInside(folder, "etc/"+name, 100); err != nil || got != nil {
			t.Errorf("%s: got %q, %v, want nothing", name, got, err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "etc", "pipe"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/loop", "etc/large", "etc/pipe", "etc"} {
		_, err := readInside(folder, name, 100)
		wantReason(t, err, BadImage)
	}
}

// TestDevicesAreNotOpened has an image bring a device that acts when it is
// opened: a terminal is made for whoever opens 5:2.
func TestDevicesAreNotOpened(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	passwd := filepath.Join(root, "etc", "passwd")
	if err := unix.Mknod(passwd, unix.S_IFCHR|0o666, int(unix.Mkdev(5, 2))); err != nil {
		t.Skipf("device nodes are root's to make: %v", err)
	}
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, passwd, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	_, _, err = Layers{root}.ReadAccounts()
	wantReason(t, err, BadImage)
	if n, err := unix.Read(watch, make([]byte, 256)); n > 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the device was opened: %d, %v", n, err)
	}
}

func TestViewLayers(t *testing.T) {
	got, err := ViewLayers([]specs.Mount{{Type: "overlay", Options: []string{"index=off", "lowerdir=/a:/b"}}})
	if err != nil || !slices.Equal(got, Layers{"/a", "/b"}) {
		t.Errorf("overlay: %v, %v", got, err)
	}
	got, err = ViewLayers([]specs.Mount{{Type: "bind", Source: "/a"}})
	if err != nil || !slices.Equal(got, Layers{"/a"}) {
		t.Errorf("bind: %v, %v", got, err)
	}
	for _, mounts := range [][]specs.Mount{nil, {{Type: "ext4"}}, {{Type: "overlay"}}, {{}, {}}} {
		if got, err := ViewLayers(mounts); err == nil {
			t.Errorf("%v gives %v", mounts, got)
		}
	}
}

// replica is one of everything.
func replica() Input {
	return Input{
		Container: lease.Container{
			ID:    lease.ReplicaID{Lease: "l0123456789", Service: "web", Revision: 2},
			Image: "docker.io/library/nginx@sha256:aa", Args: []string{"-g", "daemon off;"},
			Env: []string{"MODE=fast", "BOTH=manifest"},
			Mounts: []lease.Mount{
				{Source: "/lease/volumes/inner", Destination: "/data/inner"},
				{Source: "/lease/volumes/data", Destination: "/data/", ReadOnly: true},
				{Destination: "/dev/shm", Tmpfs: 1 << 20},
			},
			Limits:   lease.Limits{CPU: 500, Memory: 256 << 20, Root: 64 << 20},
			Hostname: "web-2-0",
			Attachment: &lease.Attachment{
				NetNS: "/run/netns/x", Address: netip.MustParsePrefix("10.88.0.2/30"), Gateway: netip.MustParseAddr("10.88.0.1"),
			},
		},
		Config:  imagespec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"unused"}, Env: []string{"PATH=/bin", "BOTH=image"}, WorkingDir: "/srv//www/"},
		Who:     Identity{User: 101, Group: 102, Groups: []uint32{44}, Home: "/home/web"},
		Files:   []lease.Mount{{Source: "/lease/etc/hosts", Destination: "/etc/hosts", ReadOnly: true}},
		UserIDs: 1_000_000,
	}
}

func TestSpecIsGolden(t *testing.T) {
	root := replica()
	root.Who, root.UserIDs, root.Container.Attachment = Identity{Home: "/root"}, 0, nil
	root.Container.Command, root.Container.Limits.Pids = []string{"/bin/sh"}, 1
	for name, in := range map[string]Input{"mapped": replica(), "root": root} {
		t.Run(name, func(t *testing.T) {
			spec, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(spec, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "spec-"+name+".json")
			if *update {
				if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
				t.Errorf("differs from %s (go test -update rewrites it):\n%s", path, diff)
			}
		})
	}
}

func TestSpecRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Input)
		want   Reason
	}{
		{"nothing to run", func(in *Input) { in.Config.Entrypoint, in.Config.Cmd, in.Container.Args = nil, nil, nil }, BadImage},
		{"an empty program", func(in *Input) { in.Container.Command = []string{""} }, BadImage},
		{"thousands of variables", func(in *Input) { in.Config.Env = slices.Repeat([]string{"A=b"}, environMax+1) }, BadContainer},
		{"variables of megabytes", func(in *Input) { in.Config.Env = []string{"A=" + strings.Repeat("x", environBytes)} }, BadContainer},
		{"a variable without value", func(in *Input) { in.Config.Env = []string{"A"} }, BadContainer},
		{"a variable without name", func(in *Input) { in.Container.Env = []string{"=x"} }, BadContainer},
		{"a zero byte in a variable", func(in *Input) { in.Container.Env = []string{"A=\x00"} }, BadContainer},
		{"thousands of arguments", func(in *Input) { in.Container.Args = slices.Repeat([]string{"a"}, argumentsMax+1) }, BadContainer},
		{"arguments of megabytes", func(in *Input) { in.Container.Args = []string{strings.Repeat("x", argumentBytes+1)} }, BadContainer},
		{"a relative folder", func(in *Input) { in.Config.WorkingDir = "srv" }, BadImage},
		{"a user beyond the map", func(in *Input) { in.Who.User = MappedIDs }, BadImage},
		{"a group beyond the map", func(in *Input) { in.Who.Groups = []uint32{MappedIDs} }, BadImage},
		{"a volume over the root", func(in *Input) { in.Container.Mounts[0].Destination = "/data/.." }, BadContainer},
		{"a relative volume", func(in *Input) { in.Container.Mounts[0].Destination = "data" }, BadContainer},
		{"a volume over /proc", func(in *Input) { in.Container.Mounts[0].Destination = "/x/../proc/sys" }, BadContainer},
		{"a volume over /dev", func(in *Input) { in.Container.Mounts[0].Destination = "/dev" }, BadContainer},
		{"two volumes in one place", func(in *Input) { in.Container.Mounts[0].Destination = "/data" }, BadContainer},
		{"a volume from the machine's root", func(in *Input) { in.Container.Mounts[0].Source = "/x/.." }, BadContainer},
		{"a volume from nowhere", func(in *Input) { in.Container.Mounts[0].Source = "" }, BadContainer},
		{"memory and a folder at once", func(in *Input) { in.Container.Mounts[2].Source = "/x" }, BadContainer},
		{"memory of a negative size", func(in *Input) { in.Container.Mounts[2].Tmpfs = -1 }, BadContainer},
		{"volumes without end", func(in *Input) { in.Container.Mounts = make([]lease.Mount, mountsMax+1) }, BadContainer},
		{"no processor", func(in *Input) { in.Container.Limits.CPU = 0 }, BadContainer},
		{"no memory", func(in *Input) { in.Container.Limits.Memory = 0 }, BadContainer},
		{"memory beyond all", func(in *Input) { in.Container.Limits.Memory = 1 << 62 }, BadContainer},
		{"graphics", func(in *Input) { in.Container.GPUs = []int{0} }, BadContainer},
		{"a host name with a line break", func(in *Input) { in.Container.Hostname = "a\n127.0.0.1 bank" }, BadContainer},
		{"a network named by a relative path", func(in *Input) { in.Container.Attachment.NetNS = "x" }, BadContainer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := replica()
			tc.change(&in)
			_, err := Build(in)
			wantReason(t, err, tc.want)
		})
	}
}

func TestResources(t *testing.T) {
	got, err := resources(lease.Limits{CPU: 1, Memory: 1 << 30, Pids: 100_000}, false)
	if err != nil {
		t.Fatal(err)
	}
	if got.BlockIO != nil {
		t.Error("disk traffic is weighed where the kernel cannot")
	}
	for cores, want := range map[int64]uint16{0: 10, 1: 100, 4: 400, 64: 1000} {
		got, err := resources(lease.Limits{CPU: max(1, cores*1000), Memory: 1 << 30}, true)
		if err != nil || *got.BlockIO.Weight != want {
			t.Errorf("%d cores weigh %d, %v, want %d", cores, *got.BlockIO.Weight, err, want)
		}
	}
	if *got.CPU.Quota != cpuPeriod || *got.CPU.Shares != 2 || *got.Memory.Limit != 1<<30+64<<20 || *got.Pids.Limit != pidsMax {
		t.Errorf("limits are quota %d, shares %d, memory %d, pids %d", *got.CPU.Quota, *got.CPU.Shares, *got.Memory.Limit, *got.Pids.Limit)
	}
}

// The enclosure starts with a core, the program has its limit.
func TestTheProgramHasItsLimit(t *testing.T) {
	for cpu, want := range map[int64]string{1: "1000 100000", 100: "10000 100000", 2500: "250000 100000"} {
		files := CPUFiles(cpu)
		if quota, _, _ := strings.Cut(want, " "); files["cpu.max"] != want || files["cpu.cfs_quota_us"] != quota || len(files) != 2 {
			t.Errorf("%d thousandths of a core are %v", cpu, files)
		}
		got, err := resources(lease.Limits{CPU: cpu, Memory: 1 << 30}, false)
		if err != nil || *got.CPU.Quota != max(cpu*100, 100_000) {
			t.Errorf("at the start %d thousandths are a quota of %d, %v", cpu, *got.CPU.Quota, err)
		}
	}
}

func TestFilesTakeSpace(t *testing.T) {
	for _, tc := range []struct{ size, inodes, want int64 }{
		{1 << 30, 1000, 1 << 30}, {0, 1000, 1000 * inodeBytes}, {7, 1 << 62, 1<<63 - inodeBytes}, {0, 0, 0},
	} {
		if got := Space(tc.size, tc.inodes); got != tc.want {
			t.Errorf("%d bytes in %d files take %d, want %d", tc.size, tc.inodes, got, tc.want)
		}
	}
}
