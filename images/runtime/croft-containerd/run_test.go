package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

func TestFlagsComeAfterTheFileAndTheFileAfterTheBuiltIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "more.toml")
	text := "version = 4\nroot = '/from/file'\n[plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_downloads = 9\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	builtIn, _, err := configure(t.Context(), nil, os.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	both, _, err := configure(t.Context(), []string{"--config", file, "--address", "/x.sock", "--state", "/s"}, os.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ what, got, want string }{
		{"root", builtIn.Root, "/perm/containerd"},
		{"state", builtIn.State, "/run/containerd"},
		{"address", text1(builtIn.Plugins, grpcPlugin, "address"), "/run/croft/containerd.sock"},
		{"shims' address", text1(builtIn.Plugins, ttrpcPlugin, "address"), "/run/croft/containerd.sock.ttrpc"},
		{"shims' sockets", text1(builtIn.Plugins, shimPlugin, "socket_dir"), "/run/containerd/s"},
		{"root of the file", both.Root, "/from/file"},
		{"state of the flag", both.State, "/s"},
		{"address of the flag", text1(both.Plugins, grpcPlugin, "address"), "/x.sock"},
		{"shims' address of the flag", text1(both.Plugins, ttrpcPlugin, "address"), "/x.sock.ttrpc"},
		{"shims' sockets of the flag", text1(both.Plugins, shimPlugin, "socket_dir"), "/s/s"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s is %q, want %q", tc.what, tc.got, tc.want)
		}
	}
	if got := section(both, transferPlugin); got["max_concurrent_downloads"] != int64(9) || got["check_platform_supported"] != true {
		t.Errorf("the file replaced more than it says: %v", got)
	}
}

func text1(plugins map[string]any, id, key string) string {
	s, _ := plugins[id].(map[string]any)
	v, _ := s[key].(string)
	return v
}

func TestBadCommandLineIsRefused(t *testing.T) {
	for _, args := range [][]string{
		{"--root", "relative"},
		{"--address", "relative.sock"},
		{"--config", "/no/such/file"},
		{"--cri"},
		{"serve"},
	} {
		var said bytes.Buffer
		if _, _, err := configure(t.Context(), args, &said); err == nil || errors.Is(err, flag.ErrHelp) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// Timeouts and plugins are named by strings that containerd ignores when it does
// not know them.
func TestConfigurationNamesWhatIsLinked(t *testing.T) {
	config, _, err := configure(t.Context(), nil, os.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	var linked []string
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		linked = append(linked, r.URI())
	}
	named := slices.Concat(config.RequiredPlugins, config.DisabledPlugins)
	for id := range config.Plugins {
		named = append(named, id)
	}
	for _, id := range named {
		if !slices.Contains(linked, id) {
			t.Errorf("plugin %s is not linked", id)
		}
	}
	for _, id := range linked {
		for _, unwanted := range []string{"cri", "nri", "sandbox", "tracing", "metrics", "zfs", "btrfs", "devmapper", "erofs", "blockfile", "restart"} {
			if strings.Contains(id, unwanted) && !slices.Contains(config.DisabledPlugins, id) {
				t.Errorf("plugin %s is linked", id)
			}
		}
	}
	for name, span := range config.Timeouts {
		if _, err := time.ParseDuration(span); err != nil {
			t.Errorf("timeout %s: %v", name, err)
		}
	}
}

func TestRootIsForOneDaemon(t *testing.T) {
	root := t.TempDir()
	first, err := lockRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := lockRoot(root); err == nil {
		second.Close()
		t.Error("a second daemon got the root")
	}
	first.Close()
	again, err := lockRoot(root)
	if err != nil {
		t.Fatalf("after the first ended: %v", err)
	}
	again.Close()
}

func TestItEntersItsCgroupThenWaitsThenStarts(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH")) // run leaves another one
	dir := t.TempDir()
	modules, procs := filepath.Join(dir, "modules"), filepath.Join(dir, "cgroup.procs")
	if err := os.WriteFile(procs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	// A root that cannot be made: the daemon never gets as far as to serve.
	args := []string{"--cgroup", dir, "--after", modules, "--root", "/dev/null/root"}
	err := run(ctx, args, os.Stdout)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("without the file it ended with %v, want that it waited until it was stopped", err)
	}
	if entered, err := os.ReadFile(procs); err != nil || string(entered) != "0" {
		t.Errorf("cgroup.procs holds %q (%v), want 0", entered, err)
	}
	if err := os.WriteFile(modules, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(ctx, args, os.Stdout); err == nil || !strings.Contains(err.Error(), "create folders") {
		t.Errorf("with the file it ended with %v, want that it began to make folders", err)
	}
	if err := run(ctx, []string{"--cgroup", filepath.Join(dir, "missing")}, os.Stdout); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the cgroup it ended with %v", err)
	}
}

func TestAFailedStartEndsAfterThePause(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH"))
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := run(t.Context(), []string{"--root", "/dev/null/root", "--pause", "10s"}, io.Discard)
		if took := time.Since(began); err == nil || took != 10*time.Second {
			t.Errorf("it ended after %s with %v, want an error after 10s", took, err)
		}
	})
}
