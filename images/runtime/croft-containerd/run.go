package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	serverconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

//go:embed config.toml
var defaultConfig []byte

const (
	grpcPlugin     = "io.containerd.server.v1.grpc"
	ttrpcPlugin    = "io.containerd.server.v1.ttrpc"
	shimPlugin     = "io.containerd.shim.v1.manager"
	transferPlugin = "io.containerd.transfer.v1.local"
)

// run is the daemon; it returns when ctx ends or when it cannot start.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	config, first, err := configure(ctx, args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if err = daemon(ctx, config, first); err != nil {
		select {
		case <-ctx.Done():
		case <-time.After(first.pause):
		}
	}
	return err
}

func daemon(ctx context.Context, config *serverconfig.Config, first start) error {
	if first.cgroup != "" {
		if err := os.WriteFile(filepath.Join(first.cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	if first.after != "" {
		if err := await(ctx, first.after); err != nil {
			return fmt.Errorf("wait for %s: %w", first.after, err)
		}
	}
	if err := log.SetLevel(config.Debug.Level); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}
	if err := isolate(); err != nil {
		return err
	}
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return fmt.Errorf("create folders: %w", err)
	}
	lock, err := lockRoot(config.Root)
	if err != nil {
		return err
	}
	defer lock.Close()
	// What an unpacking left mounted when it was killed.
	if err := mount.SetTempMountLocation(filepath.Join(config.Root, "tmpmounts")); err != nil {
		return fmt.Errorf("create folder of temporary mounts: %w", err)
	}
	if _, err := mount.CleanupTempMounts(0); err != nil {
		log.G(ctx).WithError(err).Warn("cannot unmount temporary mounts")
	}
	return serve(ctx, config, func() { outlast(first.cgroup, endLimit) })
}

// serve works until ctx ends and then until last returns.
func serve(ctx context.Context, config *serverconfig.Config, last func()) error {
	// The server outlives ctx until Stop: its plugins must not see the end before
	// their connections are closed.
	containerd, err := server.New(context.WithoutCancel(ctx), config)
	if err != nil {
		return fmt.Errorf("load plugins: %w", err)
	}
	defer containerd.Stop()
	if err := containerd.Start(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	for _, id := range []string{grpcPlugin, ttrpcPlugin} {
		if err := os.Chmod(text(config, id, "address"), 0o600); err != nil { // containerd makes it 0660
			return fmt.Errorf("close socket to others: %w", err)
		}
	}
	containerd.Wait()
	log.G(ctx).WithField("version", version.Version).Info("croft-containerd is ready")
	<-ctx.Done()
	last()
	return nil
}

// endLimit is how long the agent has for ending what runs when the box is
// switched off: all services are asked to end at once, and without us it could
// not. gokrazy waits for longer.
const endLimit = 75 * time.Second

// outlast returns when no other process is in our cgroup, where shims are, or the
// limit has passed. Without a cgroup it returns at once.
func outlast(cgroup string, limit time.Duration) {
	for end := time.Now().Add(limit); cgroup != "" && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		raw, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
		if err != nil || len(bytes.Fields(raw)) <= 1 {
			return
		}
	}
}

// await returns when the file is there. It looks ten times a second: on a box it
// waits for some seconds, once a boot.
func await(ctx context.Context, file string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// isolate leaves the folder of our own program as the only place where programs
// are looked for: the shim lies there, and an unpigz or zstd of somebody else's
// does not decompress strangers' layers.
func isolate() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	return os.Setenv("PATH", filepath.Dir(self))
}

// lockRoot keeps a second daemon away from root, before it unmounts what the
// first works on. The kernel lets go of the lock when the file is closed, however
// we end; shims do not inherit it.
func lockRoot(root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s, which another daemon may use: %w", root, err)
	}
	return f, nil
}

// start is how the daemon starts, or does not.
type start struct {
	cgroup string        // folder of the cgroup to enter
	after  string        // file to wait for
	pause  time.Duration // before an end with an error
}

// configure is the embedded configuration, then the file, then the flags.
func configure(ctx context.Context, args []string, stdout io.Writer) (*serverconfig.Config, start, error) {
	var first start
	flags := flag.NewFlagSet("croft-containerd", flag.ContinueOnError)
	flags.SetOutput(stdout)
	file := flags.String("config", "", "TOML `file` merged over the built-in configuration")
	root := flags.String("root", "", "`folder` of what survives a reboot")
	state := flags.String("state", "", "`folder` of what does not; at most 40 characters, for the shims' sockets")
	address := flags.String("address", "", "`path` of the API's socket; the shims' is the same with .ttrpc")
	level := flags.String("log-level", "", "trace, debug, info, warn or error")
	flags.StringVar(&first.cgroup, "cgroup", "", "`folder` of the cgroup to enter first; shims stay in it")
	flags.StringVar(&first.after, "after", "", "`file` to wait for before anything is read or made")
	flags.DurationVar(&first.pause, "pause", 0, "`time` to wait before ending with an error, for a supervisor that starts again at once")
	printVersion := flags.Bool("version", false, "print the version and end")
	if err := flags.Parse(args); err != nil {
		return nil, first, err
	}
	if *printVersion {
		fmt.Fprintln(stdout, "croft-containerd", version.Version)
		return nil, first, flag.ErrHelp
	}
	if flags.NArg() > 0 {
		return nil, first, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}

	config := &serverconfig.Config{}
	if err := toml.NewDecoder(bytes.NewReader(defaultConfig)).DisallowUnknownFields().Decode(config); err != nil {
		return nil, first, fmt.Errorf("read built-in configuration: %w", err)
	}
	if *file != "" {
		if err := serverconfig.LoadConfigWithPlugins(ctx, *file, migrations, config); err != nil {
			return nil, first, fmt.Errorf("read configuration: %w", err)
		}
	}
	for _, override := range []struct {
		typed string
		set   func(string)
	}{
		{*root, func(v string) { config.Root = v }},
		{*state, func(v string) { config.State = v }},
		{*level, func(v string) { config.Debug.Level = v }},
		{*address, func(v string) {
			setText(config, grpcPlugin, "address", v)
			setText(config, ttrpcPlugin, "address", v+".ttrpc")
		}},
	} {
		if override.typed != "" {
			override.set(override.typed)
		}
	}
	if text(config, shimPlugin, "socket_dir") == "" {
		setText(config, shimPlugin, "socket_dir", filepath.Join(config.State, "s"))
	}
	transfer := section(config, transferPlugin)
	if _, ok := transfer["unpack_config"]; !ok {
		transfer["unpack_config"] = []map[string]any{
			{"platform": platforms.DefaultString(), "snapshotter": "overlayfs", "differ": "walking"},
		}
	}
	for name, path := range map[string]string{
		"root": config.Root, "state": config.State, "address": text(config, grpcPlugin, "address"),
	} {
		if !filepath.IsAbs(path) {
			return nil, first, fmt.Errorf("--%s %q is not an absolute path", name, path)
		}
	}
	return config, first, nil
}

// migrations are the linked plugins, which bring a file of an older version up
// to ours.
func migrations() iter.Seq[plugin.Registration] {
	return slices.Values(registry.Graph(func(*plugin.Registration) bool { return false }))
}

// section is the configuration of one plugin.
func section(config *serverconfig.Config, id string) map[string]any {
	if s, ok := config.Plugins[id].(map[string]any); ok {
		return s
	}
	s := map[string]any{}
	config.Plugins[id] = s
	return s
}

func text(config *serverconfig.Config, id, key string) string {
	v, _ := section(config, id)[key].(string)
	return v
}

func setText(config *serverconfig.Config, id, key, value string) {
	section(config, id)[key] = value
}
