package build

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/croft-cloud/croft/images/manifest"
)

// tools are the programs from Debian packages whose work shapes the bytes of a
// release. With cc1 and as, which gcc runs, and what Go runs, they are inputs.
var tools = []string{"gcc", "as", "ld", "objcopy", "depmod", "unsquashfs", "mksquashfs", "mkfs.fat", "mmd", "mcopy", "mke2fs"}

// addTools records the programs that made the release, none of which is in it.
func (b *build) addTools(ctx context.Context) error {
	cc1, err := output(ctx, "", "gcc", "-print-prog-name=cc1")
	if err != nil {
		return err
	}
	for _, name := range append([]string{strings.TrimSpace(cc1)}, tools...) {
		path, err := exec.LookPath(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := b.addTool(ctx, path); err != nil {
			return err
		}
	}
	if err := b.addGo(ctx); err != nil {
		return err
	}
	gok, err := buildinfo.ReadFile(filepath.Join(b.work, "gok"))
	if err != nil {
		return fmt.Errorf("read the build record of gok: %w", err)
	}
	for _, m := range append(gok.Deps, &gok.Main) {
		b.inputs = append(b.inputs, manifest.Input{Kind: "tool", Name: m.Path, Version: m.Version, SHA256: m.Sum})
	}
	return nil
}

// addTool records a program, named after the Debian package it is from. One
// that is from none has neither package nor version.
func (b *build) addTool(ctx context.Context, path string) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	name, version := filepath.Base(path), ""
	// Of a merged /usr, dpkg knows /bin/kmod only.
	for _, known := range []string{path, strings.TrimPrefix(path, "/usr")} {
		owner, err := output(ctx, "", "dpkg-query", "-S", known)
		if err != nil {
			continue
		}
		pkg, _, _ := strings.Cut(strings.TrimSpace(owner), ": ")
		if version, err = output(ctx, "", "dpkg-query", "-W", "-f", "${Version}", pkg); err != nil {
			return err
		}
		pkg, _, _ = strings.Cut(pkg, ":") // its architecture
		name = pkg + ":" + name
		break
	}
	return b.addInput("tool", name, version, path)
}

// addGo records the parts of Go that make programs.
func (b *build) addGo(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION", "GOTOOLDIR")
	cmd.Dir, cmd.Env = b.Source, goEnv()
	out, err := capture(cmd)
	if err != nil {
		return err
	}
	version, dir, _ := strings.Cut(strings.TrimSpace(out), "\n")
	for _, name := range []string{"asm", "compile", "link"} {
		if err := b.addInput("tool", "go:"+name, version, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
