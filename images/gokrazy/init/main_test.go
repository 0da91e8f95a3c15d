package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/bootlog"
)

// node makes a device node that works like /dev/null.
func node(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	if err := unix.Mknod(path, unix.S_IFCHR|0o640, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatalf("make device node (this test needs root): %v", err)
	}
	return stat(t, path)
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestOnlyTheBootedDiskIsSeenWhileGokrazyLooks(t *testing.T) {
	dev, block := t.TempDir(), t.TempDir()
	path := func(name string) string { return filepath.Join(dev, name) }
	for _, disk := range []string{"nvme0n1", "sda", "dm-0", "unplugged"} {
		if err := os.Mkdir(filepath.Join(block, disk), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := map[string]unix.Stat_t{}
	for _, name := range []string{"nvme0n1", "nvme0n1p1", "nvme0n1p4", "sda", "dm-0"} {
		before[name] = node(t, path(name))
	}

	restore := hideNodes(block, dev, bootlog.Handover{
		Disk: path("nvme0n1"),
		Perm: bootlog.Perm{Device: path("nvme0n1p4")},
	})
	for name, want := range map[string]bool{"nvme0n1": true, "nvme0n1p1": true, "nvme0n1p4": false, "sda": false, "dm-0": true} {
		if got := exists(path(name)); got != want {
			t.Errorf("while hidden: %s exists = %v, want %v", name, got, want)
		}
	}
	restore()
	for name, want := range before {
		if got := stat(t, path(name)); got.Mode != want.Mode || got.Rdev != want.Rdev {
			t.Errorf("%s came back with mode %o and device %d, want %o and %d", name, got.Mode, got.Rdev, want.Mode, want.Rdev)
		}
	}
	if exists(path("unplugged")) {
		t.Error("a node was made that was not there before")
	}
}

func TestWhatIsMountedOverPermIsTakenAway(t *testing.T) {
	dir := t.TempDir()
	mount := func(name string) {
		t.Helper()
		if err := unix.Mount("perm", dir, "tmpfs", 0, ""); err != nil {
			t.Fatalf("mount tmpfs (this test needs root): %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mount("ours")
	keep, err := keepMount(dir)
	if err != nil {
		t.Fatal(err)
	}
	keep() // nothing to do
	mount("twin")
	mount("third")
	keep()
	if !exists(filepath.Join(dir, "ours")) {
		t.Error("the first mount is not to be seen any more")
	}
}

func TestEveryControllerIsEnabledAloneSoThatOneMissingHurtsNoOther(t *testing.T) {
	dir := t.TempDir()
	if err := enableControllers(dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil || string(got) != "+cpuset" {
		t.Errorf("last write is %q (%v), want +cpuset", got, err)
	}
	if err := enableControllers(filepath.Join(dir, "missing")); err == nil {
		t.Error("no error without a cgroup file system")
	}
}

func TestARuntimesCgroupIsCountedAndMayBeThereAlready(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "croft", "containerd")
	for range 2 {
		if err := makeCgroup(dir); err != nil {
			t.Fatal(err)
		}
	}
	if !exists(dir) {
		t.Error("there is no cgroup")
	}
	if got, err := os.ReadFile(filepath.Join(dir, "../cgroup.subtree_control")); err != nil || string(got) != "+cpuset" {
		t.Errorf("last write for its parent is %q (%v), want +cpuset", got, err)
	}
	if exists(filepath.Join(dir, "cgroup.subtree_control")) {
		t.Error("a cgroup that passes controllers on may hold no program")
	}
}

func TestHelpersAreNotServices(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{
		"gokrazy/init", "gokrazy/dhcp", "gokrazy/ntp",
		"user/.hidden", "user/croft-agent", "user/croft-containerd", "user/containerd-shim-runc-v2", "user/croft-rotlog", "user/croft-runsc",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err := commands(root, []string{"eth0", "eth1"})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"/gokrazy/dhcp", "-interface=eth0"},
		{"/gokrazy/dhcp", "-interface=eth1"},
		{"/gokrazy/ntp"},
		{"/user/croft-agent"},
		{"/user/croft-containerd", "--cgroup=/sys/fs/cgroup/croft/containerd", "--after=/run/croft/workload-modules", "--pause=10s"},
	}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("services are %q, want %q", got, want)
	}
	if _, err := commands(t.TempDir(), nil); err == nil {
		t.Error("no error for a root without programs")
	}
}

func TestWiredInterfaces(t *testing.T) {
	for _, tc := range []struct {
		name string
		nics []string
		want []string
	}{
		{"every port gets an address", []string{"lo", "eth1", "eth0", "wlan0", "docker0"}, []string{"eth0", "eth1"}},
		{"a port that comes later is eth0", []string{"lo"}, []string{"eth0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, nic := range tc.nics {
				if err := os.Mkdir(filepath.Join(dir, nic), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if got := wiredInterfaces(dir); !slices.Equal(got, tc.want) {
				t.Errorf("interfaces are %q, want %q", got, tc.want)
			}
		})
	}
}

func TestHandoverIsTakenOnceAndNotInherited(t *testing.T) {
	want := bootlog.Handover{BootID: "b", Slot: croft.SlotB, Notes: []string{"a note"}}
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(bootlog.HandoverEnv, string(raw))
	got, err := takeHandover()
	if err != nil || got.BootID != want.BootID || got.Slot != want.Slot || !slices.Equal(got.Notes, want.Notes) {
		t.Errorf("handover is %+v (%v), want %+v", got, err, want)
	}
	if _, ok := os.LookupEnv(bootlog.HandoverEnv); ok {
		t.Error("services would inherit the handover")
	}
	if _, err := takeHandover(); err == nil {
		t.Error("no error without a handover")
	}
	t.Setenv(bootlog.HandoverEnv, "{")
	if _, err := takeHandover(); err == nil {
		t.Error("no error for a damaged handover")
	}
}
