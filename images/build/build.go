// Package build turns a board and the programs of this repository into a
// bootable disk image, reproducibly: the same commit and the same inputs give
// the same bytes.
//
// What it makes in the output folder, for board uefi-x86:
//
//	croft-uefi-x86.img            the whole disk, sparse
//	croft-uefi-x86.root           the verified root (squashfs and hash tree)
//	croft-uefi-x86.efi            the unified kernel image that belongs to it
//	croft-uefi-x86.manifest.json  digests of these, of every input and of every tool
//	croft-uefi-x86.sbom.json      what is in it (CycloneDX)
//
// Everything is made in a temporary folder beside them and renamed when all of
// it is complete; a build that fails or is stopped leaves the last good one as it
// was. The manifest goes first and comes last: where there is one, it describes
// the files beside it. A build that is killed leaves its temporary folder to the
// next one. One build works in a folder at a time.
package build

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/firmware/verity"
	"github.com/croft-cloud/croft/images/manifest"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// Options say what to build.
type Options struct {
	Board   *boards.Board
	Source  string        // the repository's root folder
	Out     string        // created if it is missing
	Cache   string        // downloads and unpacked kernels; default Out/cache
	Version croft.Version // default: made from the commit; ends in .d when the source differs from it
	Init    string        // package path of the initramfs program; default ./cmd/croft-init

	Arguments []string // kernel arguments besides the board's

	// Network goes onto the image's EFI partition, as joinfile.Path. Nil: the
	// image joins none until somebody puts a file there. Root and unified kernel
	// image are the same with every network.
	Network *joinfile.Network

	// Progress is called at the start of every step, from the building
	// goroutine. Nil means silence.
	Progress func(step string)
}

// Result names what was made.
type Result struct {
	Image, Root, UKI, Manifest, SBOM string // paths
	Release                          manifest.Manifest
}

// needed is how much free space a build may take, in bytes: kernel package and
// its content, the root in three forms, the image's used blocks.
const needed = 2 << 30

// build is one run.
type build struct {
	Options
	work   string   // temporary folder inside Out
	lock   *os.File // Out, locked
	source source
	epoch  time.Time // of every file and of the release
	inputs []manifest.Input
	kernel kernelFiles
	root   verity.Root
}

// Build makes the release. It takes minutes with an empty cache, else well
// below one.
func Build(ctx context.Context, opts Options) (Result, error) {
	b, err := newBuild(ctx, opts)
	if err != nil {
		return Result{}, err
	}
	defer b.cleanUp()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"fetching the kernel", b.fetchKernel},
		{"building the programs and the root with gok", b.buildRoot},
		{"building the container runtime", b.buildRuntime},
		{"packing and sealing the root", b.sealRoot},
		{"building the unified kernel image", b.buildUKI},
		{"assembling the disk image", b.assembleDisk},
		{"writing manifest and SBOM", b.describe},
	} {
		b.Progress(step.what)
		err := step.do(ctx)
		switch {
		case ctx.Err() != nil: // whatever a stopped program complained about
			return Result{}, &croft.Error{Err: fmt.Errorf("stopped while %s: %w", step.what, ctx.Err()), Remedy: "the results of the last build are as they were"}
		case err != nil && b.full(err):
			return Result{}, noSpace(fmt.Errorf("%s: %w", step.what, err), b.Out)
		case err != nil:
			return Result{}, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return b.publish()
}

// newBuild checks the options and makes the work folder.
func newBuild(ctx context.Context, opts Options) (*build, error) {
	b := &build{Options: opts}
	if b.Progress == nil {
		b.Progress = func(string) {}
	}
	b.Cache = cmp.Or(b.Cache, filepath.Join(b.Out, "cache"))
	for _, dir := range []*string{&b.Source, &b.Out, &b.Cache} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, err
		}
		*dir = abs
	}
	b.Init = cmp.Or(b.Init, "./cmd/croft-init")
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	if err := b.openFolders(); err != nil {
		b.cleanUp()
		if errors.Is(err, unix.ENOSPC) {
			err = noSpace(err, b.Out)
		}
		return nil, err
	}
	return b, nil
}

// openFolders makes the folders and takes the one for the results for itself.
func (b *build) openFolders() error {
	for _, dir := range []string{b.Out, b.Cache} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	var err error
	if b.lock, err = os.Open(b.Out); err != nil {
		return fmt.Errorf("open the output folder: %w", err)
	}
	err = unix.Flock(int(b.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("another build is at work in %s", b.Out), Remedy: "wait for it, or choose another folder with --out"}
	}
	// Any other error: a network file system without locks. Go on without.
	leftovers, _ := filepath.Glob(filepath.Join(b.Out, ".build-*"))
	for _, dir := range leftovers { // of a build that was killed
		_ = os.RemoveAll(dir)
	}
	if b.work, err = os.MkdirTemp(b.Out, ".build-"); err != nil {
		return fmt.Errorf("make a work folder: %w", err)
	}
	return nil
}

func (b *build) cleanUp() {
	if b.work != "" {
		_ = os.RemoveAll(b.work)
	}
	if b.lock != nil {
		b.lock.Close()
	}
}

func noSpace(err error, dir string) error {
	return &croft.Error{Kind: croft.KindNoSpace, Err: err, Remedy: fmt.Sprintf("free at least %d GiB below %s", needed>>30, dir)}
}

// full says whether a step failed for want of space. The programs a build runs
// have no way to say so but their text.
func (b *build) full(err error) bool {
	const hardlyAny = 16 << 20
	free, statErr := freeSpace(b.work)
	return errors.Is(err, unix.ENOSPC) || statErr == nil && free < hardlyAny
}

// file is the path of one of the release's files while it is being made.
func (b *build) file(suffix string) string {
	return filepath.Join(b.work, "croft-"+b.Board.Name+suffix)
}

// suffixes are those of the release's files, the manifest last.
var suffixes = []string{".img", ".root", ".efi", ".sbom.json", ".manifest.json"}

func (b *build) publish() (Result, error) {
	paths := map[string]string{}
	place := func(suffix string) string { return filepath.Join(b.Out, filepath.Base(b.file(suffix))) }
	if err := os.RemoveAll(place(".manifest.json")); err != nil {
		return Result{}, fmt.Errorf("put the release in place: %w", err)
	}
	for _, suffix := range suffixes {
		to := place(suffix)
		if err := os.Rename(b.file(suffix), to); err != nil {
			return Result{}, fmt.Errorf("put the release in place: %w", err)
		}
		paths[suffix] = to
	}
	raw, err := os.ReadFile(paths[".manifest.json"])
	if err != nil {
		return Result{}, err
	}
	m, err := manifest.Parse(raw)
	return Result{
		Image: paths[".img"], Root: paths[".root"], UKI: paths[".efi"],
		Manifest: paths[".manifest.json"], SBOM: paths[".sbom.json"], Release: m,
	}, err
}

// prepare checks all that can be known before the first minute is spent. It
// changes nothing.
func (b *build) prepare(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(b.Source, gokModule, "go.mod")); err != nil {
		return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("%s is not croft's source", b.Source), Remedy: "run this in the repository, or name it with --source"}
	}
	if b.Network != nil {
		if err := b.Network.Check(); err != nil {
			return err
		}
	}
	if err := b.stamp(ctx); err != nil {
		return err
	}
	var missing []string
	for _, program := range []string{
		"go", "gcc", "ld", "objcopy", "apt-get", "apt-cache", "dpkg-deb", "dpkg-query",
		"depmod", "unsquashfs", "mksquashfs", "mkfs.fat", "mcopy", "mmd", "mke2fs",
	} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	for _, file := range []string{systemdBoot, efiStub, staticFsck, efiStart} {
		if _, err := os.Stat(file); err != nil {
			missing = append(missing, file)
		}
	}
	if missing != nil {
		return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("this machine lacks %s", strings.Join(missing, ", ")), Remedy: "run `make setup`"}
	}
	free, err := freeSpace(b.Out)
	if err != nil {
		return fmt.Errorf("measure free space: %w", err)
	}
	if free < needed {
		return &croft.Error{Kind: croft.KindNoSpace, Err: fmt.Errorf("%s has %d MiB free, a build takes up to %d", b.Out, free>>20, needed>>20), Remedy: "free some space or choose another folder with --out"}
	}
	return nil
}

// freeSpace is how many bytes may be written to dir, which need not exist yet.
func freeSpace(dir string) (int64, error) {
	var fs unix.Statfs_t
	for {
		err := unix.Statfs(dir, &fs)
		if err == nil {
			return int64(fs.Bavail) * fs.Bsize, nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
		}
		dir = filepath.Dir(dir)
	}
}

// stamp takes time and default version from the commit.
func (b *build) stamp(ctx context.Context) error {
	var err error
	if b.source, err = readSource(ctx, b.Source, b.Out, b.Cache); err != nil {
		return err
	}
	b.epoch = b.source.at
	if b.Version == "" {
		b.Version = b.source.version()
	}
	_, err = croft.ParseVersion(string(b.Version))
	if err == nil && len(b.Version) > slot.MaxVersion {
		err = fmt.Errorf("version %s has more than %d characters", b.Version, slot.MaxVersion)
	}
	if err != nil {
		return &croft.Error{Kind: croft.KindUsage, Err: err, Remedy: "choose another name with --version"}
	}
	return nil
}

// output runs a program and returns what it printed; on failure the error
// carries its complaints.
func output(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	return capture(cmd)
}

// capture runs cmd in a process group of its own: when its context ends, what
// it started ends with it and writes no more into a folder that is being removed.
func capture(cmd *exec.Cmd) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if err := cmd.Run(); err != nil {
		complaint := strings.TrimSpace(stderr.String())
		if complaint == "" {
			complaint = strings.TrimSpace(stdout.String())
		}
		if lines := strings.Split(complaint, "\n"); len(lines) > 12 {
			complaint = strings.Join(lines[len(lines)-12:], "\n")
		}
		return "", fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, complaint)
	}
	return stdout.String(), nil
}

// fileDigest is the SHA-256 of a file, hex, and its size.
func fileDigest(path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err != nil {
		return "", 0, fmt.Errorf("hash %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), size, nil
}

// addInput records a file the release is made of.
func (b *build) addInput(kind, name, version, path string) error {
	sum, _, err := fileDigest(path)
	if err != nil {
		return err
	}
	b.inputs = append(b.inputs, manifest.Input{Kind: kind, Name: name, Version: version, SHA256: sum})
	return nil
}
