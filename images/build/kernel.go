package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/ulikunitz/xz"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/kernel"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// kernelFiles is an unpacked Debian kernel package.
type kernelFiles struct {
	release string // e.g. 6.12.95+deb12-amd64
	image   string // path of vmlinuz
	modules string // path of /lib/modules/<release>
}

var kernelPackageForm = regexp.MustCompile(`linux-image-[0-9]\S*`)

// fetchKernel resolves the board's metapackage to the kernel it names today,
// downloads that once and unpacks it.
func (b *build) fetchKernel(ctx context.Context) error {
	unavailable := func(err error) error {
		return &croft.Error{
			Kind:   croft.KindMissing,
			Err:    fmt.Errorf("kernel package %s of %s is not available: %w", b.Board.KernelPackage, b.Board.KernelSuite, err),
			Remedy: "run `make setup` and check the network",
		}
	}
	meta := b.Board.KernelPackage + "/" + b.Board.KernelSuite
	depends, err := output(ctx, "", "apt-cache", "show", meta)
	if err != nil {
		return unavailable(err)
	}
	name := kernelPackageForm.FindString(control(depends, "Depends"))
	name = strings.TrimRight(name, ",")
	if name == "" {
		return unavailable(errors.New("it names no kernel"))
	}
	about, err := output(ctx, "", "apt-cache", "show", name+"/"+b.Board.KernelSuite)
	if err != nil {
		about, err = output(ctx, "", "apt-cache", "show", name)
	}
	if err != nil {
		return unavailable(err)
	}
	version, want := control(about, "Version"), control(about, "SHA256")
	dir := filepath.Join(b.Cache, name+"_"+strings.ReplaceAll(version, ":", "%3a"))
	deb := dir + ".deb"
	if sum, _, err := fileDigest(deb); err != nil || sum != want {
		b.Progress("downloading " + name + " " + version)
		if err := b.download(ctx, name+"="+version, deb); err != nil {
			return unavailable(err)
		}
		if sum, _, err := fileDigest(deb); err != nil || sum != want {
			return fmt.Errorf("the downloaded %s has SHA-256 %s, the package list says %s", name, sum, want)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := b.unpack(ctx, deb, dir); err != nil {
		return err
	}
	images, _ := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if len(images) != 1 {
		return fmt.Errorf("package %s holds %d kernels, want 1", name, len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	b.kernel = kernelFiles{release: release, image: images[0], modules: filepath.Join(dir, "lib/modules", release)}
	return b.addInput("deb", name, version, deb)
}

// control returns a field of the first paragraph in Debian control format.
func control(text, field string) string {
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			return ""
		}
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (b *build) download(ctx context.Context, what, to string) error {
	dir, err := os.MkdirTemp(b.Cache, ".download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := output(ctx, dir, "apt-get", "download", what); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("apt-get download %s gave %d files", what, len(debs))
	}
	return os.Rename(debs[0], to)
}

func (b *build) unpack(ctx context.Context, deb, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp(b.Cache, ".unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if _, err := output(ctx, "", "dpkg-deb", "-x", deb, tmp); err != nil {
		return err
	}
	releases, err := os.ReadDir(filepath.Join(tmp, "lib/modules"))
	if err != nil || len(releases) != 1 {
		return fmt.Errorf("unpack %s: it holds no modules", filepath.Base(deb))
	}
	if _, err := output(ctx, "", "depmod", "-b", tmp, releases[0].Name()); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) { // another build was faster
		return err
	}
	return nil
}

// moduleSet is one of the board's lists with all that it needs.
type moduleSet struct {
	steps []kernel.Step
	pci   kernel.PCIAliases
}

// moduleSets are the board's lists, resolved.
type moduleSets struct{ watchdog, early, late, workload moduleSet }

// moduleSets resolves the board's lists. What an earlier set always loads is not
// in a later one.
func (b *build) moduleSets() (sets moduleSets, err error) {
	deps, err := parseModules(b, "modules.dep", kernel.ParseDependencies)
	if err != nil {
		return sets, err
	}
	builtin, err := parseModules(b, "modules.builtin", kernel.ParseBuiltin)
	if err != nil {
		return sets, err
	}
	pci, err := parseModules(b, "modules.alias", kernel.ParsePCIAliases)
	if err != nil {
		return sets, err
	}
	have := map[string]bool{}
	for _, set := range []struct {
		wanted []string
		into   *moduleSet
	}{
		{b.Board.WatchdogModules, &sets.watchdog},
		{b.Board.EarlyModules, &sets.early},
		{b.Board.LateModules, &sets.late},
		{b.Board.WorkloadModules, &sets.workload},
	} {
		order, err := kernel.Closure(set.wanted, deps, builtin, have)
		if err != nil {
			return sets, err
		}
		*set.into = moduleSet{steps: kernel.Steps(order, set.wanted, deps, pci), pci: pci}
		for _, step := range set.into.steps {
			if len(step.Drivers) == 0 {
				have[kernel.Name(step.File)] = true
			}
		}
	}
	return sets, nil
}

// parseModules reads one of depmod's files.
func parseModules[T any](b *build, name string, parse func(io.Reader) (T, error)) (T, error) {
	f, err := os.Open(filepath.Join(b.kernel.modules, name))
	if err != nil {
		var none T
		return none, err
	}
	defer f.Close()
	return parse(f)
}

// installModules writes the modules, decompressed, and their lists to dir.
func (b *build) installModules(set moduleSet, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var list, aliases bytes.Buffer
	seen := map[string]bool{}
	for _, step := range set.steps {
		name := kernel.Name(step.File) + ".ko"
		if seen[name] {
			return fmt.Errorf("two modules are called %s", name)
		}
		seen[name] = true
		fmt.Fprintln(&list, strings.Join(append([]string{name}, step.Drivers...), " "))
		if err := decompress(filepath.Join(b.kernel.modules, step.File), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("decompress module %s: %w", name, err)
		}
	}
	if err := set.pci.WriteAliases(&aliases, set.steps); err != nil {
		return err
	}
	if err := atomicfile.WriteFile(filepath.Join(dir, kernel.AliasFile), aliases.Bytes(), 0o644); err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, kernel.ListFile), list.Bytes(), 0o644)
}

func decompress(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	var r io.Reader = in
	if strings.HasSuffix(from, ".xz") {
		if r, err = xz.NewReader(in); err != nil {
			return err
		}
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, r); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}
