package build

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/croft-cloud/croft/firmware/perm"
	"github.com/croft-cloud/croft/firmware/verity"
)

const (
	gokModule  = "images/gokrazy"      // module of gok and of all that runs in the root
	staticFsck = "/sbin/e2fsck.static" // package e2fsck-static
	libDir     = "usr/lib/croft"       // croft's own files in the root
	rootLimit  = 2<<30 - 64<<20        // a root must leave room for its hash tree in its partition
)

// goEnv makes Go builds independent of the builder's settings and paths.
func goEnv(extra ...string) []string {
	env := append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-trimpath -buildvcs=false", "GOTOOLCHAIN=local", "GO111MODULE=on")
	return append(env, extra...)
}

// buildRoot lets gok build the root file system of the board.
func (b *build) buildRoot(ctx context.Context) error {
	gok := filepath.Join(b.work, "gok")
	cmd := exec.CommandContext(ctx, "go", "build", "-modfile=gok.mod", "-o", gok, "github.com/gokrazy/tools/cmd/gok")
	cmd.Dir = filepath.Join(b.Source, gokModule)
	cmd.Env = goEnv()
	if _, err := capture(cmd); err != nil {
		return fmt.Errorf("build gok: %w", err)
	}
	instance := filepath.Join(b.work, "instances", "croft")
	if err := os.MkdirAll(instance, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(instance, "config.json"), b.Board.Gokrazy, 0o644); err != nil {
		return err
	}
	if err := b.makeBuilddir(filepath.Join(instance, "builddir")); err != nil {
		return fmt.Errorf("prepare gok's build folder: %w", err)
	}
	cmd = exec.CommandContext(ctx, gok, "--parent_dir="+filepath.Dir(instance), "-i", "croft", "overwrite", "--root="+b.file(".gokroot"))
	cmd.Dir = instance
	cmd.Env = goEnv("SOURCE_DATE_EPOCH=" + strconv.FormatInt(b.epoch.Unix(), 10))
	if _, err := capture(cmd); err != nil {
		return fmt.Errorf("build the root: %w", err)
	}
	return nil
}

// makeBuilddir makes the folder in which gok runs the Go compiler: a copy of the
// root's module, so that nothing in the repository is written; the repository
// itself under a relative path, so that no path of this machine gets into the
// programs; and the kernel as the package that gok insists on.
func (b *build) makeBuilddir(dir string) error {
	module := filepath.Join(b.Source, gokModule)
	if err := os.CopyFS(filepath.Join(dir, "init"), os.DirFS(filepath.Join(module, "init"))); err != nil {
		return err
	}
	mod, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return err
	}
	sum, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return err
	}
	kernel, err := os.ReadFile(b.kernel.image)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"go.mod":         bytes.Replace(mod, []byte("=> ../.."), []byte("=> ./croft"), 1),
		"go.sum":         sum,
		"kernel/doc.go":  []byte("// Package kernel carries the kernel for gok, which checks that it fits the programs.\npackage kernel\n"),
		"kernel/vmlinuz": kernel,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return os.Symlink(b.Source, filepath.Join(dir, "croft"))
}

// sealRoot adds croft's files to gok's root, packs it anew without compression
// (updates find more in common, the box starts faster) and seals it.
func (b *build) sealRoot(ctx context.Context) error {
	tree := filepath.Join(b.work, "root")
	if _, err := output(ctx, b.work, "unsquashfs", "-no-progress", "-dest", tree, b.file(".gokroot")); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(tree, "user"), os.DirFS(b.runtimeDir())); err != nil {
		return fmt.Errorf("add the container runtime: %w", err)
	}
	// gok copies the builder's time zone, but the box keeps UTC; and its SBOM
	// names the builder's folders, but the release has a better one.
	for _, name := range []string{"etc/localtime", "etc/gokrazy/sbom.json"} {
		if err := os.RemoveAll(filepath.Join(tree, name)); err != nil {
			return err
		}
	}
	lib := filepath.Join(tree, libDir)
	sets, err := b.moduleSets()
	if err != nil {
		return err
	}
	if err := b.installModules(sets.late, filepath.Join(lib, "modules")); err != nil {
		return err
	}
	if err := b.installModules(sets.workload, filepath.Join(lib, "workload-modules")); err != nil {
		return err
	}
	if err := b.makeTemplate(ctx, filepath.Join(lib, "perm.ext4")); err != nil {
		return err
	}
	fsck, err := os.ReadFile(staticFsck)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(lib, "e2fsck"), fsck, 0o755); err != nil {
		return err
	}
	if err := b.addPackage(ctx, "e2fsck-static", staticFsck); err != nil {
		return err
	}
	release, err := json.Marshal(struct {
		Board   string    `json:"board"`
		Version string    `json:"version"`
		Built   time.Time `json:"built"`
	}{b.Board.Name, string(b.Version), b.epoch})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(lib, "release.json"), release, 0o644); err != nil {
		return err
	}
	if err := plainModes(tree); err != nil {
		return err
	}
	image := b.file(".root")
	if _, err := output(ctx, b.work, "mksquashfs", tree, image, "-noappend", "-quiet", "-no-progress",
		"-comp", "zstd", "-noI", "-noId", "-noD", "-noF", "-noX", "-b", "131072",
		"-all-root", "-no-xattrs", "-all-time", "0", "-mkfs-time", "0", "-processors", "1"); err != nil {
		return err
	}
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	if info.Size() > rootLimit {
		return fmt.Errorf("the root takes %d MiB, a slot holds %d", info.Size()>>20, rootLimit>>20)
	}
	b.root, err = verity.Format(image)
	return err
}

// plainModes frees the tree from the builder's umask.
func plainModes(tree string) error {
	return filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.Chmod(path, plainMode(info))
	})
}

// plainMode is 0755 for folders and programs, 0644 for all else: who may read a
// file of the root is no secret, and nobody can write it.
func plainMode(info fs.FileInfo) fs.FileMode {
	if info.IsDir() || info.Mode()&0o100 != 0 {
		return 0o755
	}
	return 0o644
}

// makeTemplate makes the empty file system that becomes /perm at first boot.
func (b *build) makeTemplate(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "mke2fs", perm.TemplateArgs(path)...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", b.epoch.Unix()))
	_, err := capture(cmd)
	return err
}

// addPackage records a file that comes from an installed Debian package.
func (b *build) addPackage(ctx context.Context, name, file string) error {
	version, err := output(ctx, "", "dpkg-query", "-W", "-f", "${Version}", name)
	if err != nil {
		return err
	}
	return b.addInput("deb", name+":"+filepath.Base(file), version, file)
}
