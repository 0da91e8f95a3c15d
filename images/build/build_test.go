package build

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/firmware/verity"
	"github.com/croft-cloud/croft/images/manifest"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

func board(t *testing.T) *boards.Board {
	t.Helper()
	b, err := boards.Get("uefi-x86")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func ls(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// sourceTree is as much of a source tree as the first checks look for.
func sourceTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, gokModule, "go.mod"), "module example\n")
	return dir
}

func TestBuildRefusesBeforeItTouchesAnything(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Options)
		path   string // PATH
		kind   croft.Kind
		says   string
	}{
		{"a folder that is not croft's source", func(o *Options) { o.Source = o.Out }, os.Getenv("PATH"), croft.KindUsage, "--source"},
		{"a version no file can be named after", func(o *Options) { o.Version = "../1.0" }, os.Getenv("PATH"), croft.KindUsage, "--version"},
		{"a network without a chain", func(o *Options) { o.Network = &joinfile.Network{} }, os.Getenv("PATH"), croft.KindInvalid, "chain.id is missing"},
		{"a machine without programs", func(*Options) {}, "/nowhere", croft.KindMissing, "lacks go, gcc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("PATH", tc.path)
			out := filepath.Join(t.TempDir(), "new", "out")
			opts := Options{Board: board(t), Source: sourceTree(t), Out: out}
			tc.change(&opts)
			_, err := Build(t.Context(), opts)
			if croft.KindOf(err) != tc.kind || err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Build = %v, want an error of kind %q with %q", err, tc.kind, tc.says)
			}
			if _, err := os.Stat(filepath.Dir(out)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the output folder was made: %v", err)
			}
		})
	}
}

// git runs git as nobody in particular, in 2026.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.org"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", args[0], err, out)
	}
	return strings.TrimSpace(string(out))
}

// history is a source tree with one commit. Its folder out is ignored.
func history(t *testing.T) string {
	t.Helper()
	dir := sourceTree(t)
	write(t, filepath.Join(dir, "main.go"), "package main\n")
	write(t, filepath.Join(dir, ".gitignore"), "/out/\n")
	git(t, dir, "init", "-q")
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "x", "--date=2026-01-02T03:04:05Z")
	return dir
}

// stamped is the build of a source after its stamp.
func stamped(t *testing.T, dir string) *build {
	t.Helper()
	b := &build{Options: Options{Source: dir, Out: filepath.Join(dir, "results"), Cache: filepath.Join(dir, "results/cache")}}
	if err := b.stamp(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStampNamesTheVersionAfterTheCommit(t *testing.T) {
	dir := sourceTree(t)
	t.Setenv("GIT_CEILING_DIRECTORIES", filepath.Dir(dir))
	b := stamped(t, dir)
	if b.Version != "0.1.0-unknown" || b.epoch.IsZero() || b.source.input().Version != "unknown" || b.source.input().SHA256 != "unknown" {
		t.Errorf("without history: version %s of %v from %+v, want 0.1.0-unknown of some time from something unknown", b.Version, b.epoch, b.source)
	}
	dir = history(t)
	commit := git(t, dir, "rev-parse", "HEAD")
	b = stamped(t, dir)
	if want := croft.Version("0.1.0-" + commit[:8]); b.Version != want || !b.epoch.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("version %s of %v, want %s of 2026-01-02T03:04:05Z", b.Version, b.epoch, want)
	}
	if in := b.source.input(); in.Version != commit || len(in.SHA256) != 64 {
		t.Errorf("source %+v, want commit %s and a digest", in, commit)
	}
	if err := os.Mkdir(filepath.Join(dir, "vendored"), 0o755); err != nil {
		t.Fatal(err)
	}
	if b := stamped(t, filepath.Join(dir, "vendored")); b.Version != "0.1.0-unknown" {
		t.Errorf("a tree inside another one's history has version %s, want 0.1.0-unknown", b.Version)
	}
}

func TestStampTellsAChangedSourceFromItsCommit(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, dir string)
		dirty  bool
		same   bool // the digest
	}{
		{"other times", func(t *testing.T, dir string) {
			if err := os.Chtimes(filepath.Join(dir, "main.go"), time.Time{}, time.Unix(1e9, 0)); err != nil {
				t.Fatal(err)
			}
		}, false, true},
		{"modes of another umask", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "main.go"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, false, true},
		{"no index, as of a copied tree", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, ".git/index")); err != nil {
				t.Fatal(err)
			}
		}, false, true},
		{"a file that is ignored", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "out/x"), "x") }, false, true},
		{"what was built before", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "results/x"), "x") }, false, true},
		{"a changed file", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "main.go"), "package mine\n") }, true, false},
		{"a changed file, staged", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "main.go"), "package mine\n")
			git(t, dir, "add", "-A")
		}, true, false},
		{"a new file", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "new.go"), "package main\n") }, true, false},
		{"a deleted file", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "main.go")); err != nil {
				t.Fatal(err)
			}
		}, true, false},
		{"a program", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "main.go"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := history(t)
			clean := stamped(t, dir)
			tc.change(t, dir)
			index, _ := os.ReadFile(filepath.Join(dir, ".git/index"))
			b := stamped(t, dir)
			want := clean.Version
			if tc.dirty {
				want += ".d"
			}
			if b.Version != want || len(b.Version) > slot.MaxVersion || strings.HasSuffix(b.source.input().Version, "-dirty") != tc.dirty {
				t.Errorf("version %s of source %s, want %s", b.Version, b.source.input().Version, want)
			}
			if same := b.source.digest == clean.source.digest; same != tc.same {
				t.Errorf("digest is the same: %v, want %v", same, tc.same)
			}
			if after, _ := os.ReadFile(filepath.Join(dir, ".git/index")); !bytes.Equal(after, index) {
				t.Error("the index of the repository was changed")
			}
		})
	}
}

func TestAddToolNamesTheDebianPackage(t *testing.T) {
	own := filepath.Join(t.TempDir(), "mine")
	write(t, own, "#!/bin/sh\n")
	for _, tc := range []struct {
		name, path, want string
		versioned        bool
	}{
		{"a program in /usr/bin", "/usr/bin/dpkg-query", "dpkg:dpkg-query", true},
		{"a program its package has in /bin", "/usr/bin/bash", "bash:bash", true},
		{"a program of no package", own, "mine", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &build{}
			if err := b.addTool(t.Context(), tc.path); err != nil {
				t.Fatal(err)
			}
			sum, _, err := fileDigest(tc.path)
			if err != nil {
				t.Fatal(err)
			}
			if in := b.inputs[0]; in.Kind != "tool" || in.Name != tc.want || in.SHA256 != sum || (in.Version != "") != tc.versioned {
				t.Errorf("input %+v, want %s with digest %s", in, tc.want, sum)
			}
		})
	}
}

// ready is a build whose folders are made.
func ready(t *testing.T, out string) *build {
	t.Helper()
	b := &build{Options: Options{Board: board(t), Out: out, Cache: filepath.Join(out, "cache"), Version: "1.2.0", Progress: func(string) {}}}
	if err := b.openFolders(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.cleanUp)
	return b
}

func TestOneBuildAtATime(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	write(t, filepath.Join(out, ".build-123", "half"), "left by a build that was killed")
	first := ready(t, out)
	if got, want := ls(t, out), []string{filepath.Base(first.work), "cache"}; !slices.Equal(got, want) {
		t.Errorf("the folder holds %q, want %q", got, want)
	}
	second := &build{Options: first.Options}
	err := second.openFolders()
	second.cleanUp()
	if croft.KindOf(err) != croft.KindRefused {
		t.Errorf("a second build: %v, want an error of kind %q", err, croft.KindRefused)
	}
	if _, err := os.Stat(first.work); err != nil {
		t.Errorf("the second build took the first one's folder: %v", err)
	}
	first.cleanUp()
	ready(t, out)
}

func TestPublishPutsTheManifestLast(t *testing.T) {
	out := t.TempDir()
	b := ready(t, out)
	m := manifest.Manifest{Board: "uefi-x86", Version: "1.2.0", Built: time.Unix(1e9, 0), Kernel: "6.12", Root: manifest.Root{Hash: strings.Repeat("1", 64), Size: 4096}}
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, suffix := range suffixes {
		write(t, filepath.Join(out, "croft-uefi-x86"+suffix), "old")
		write(t, b.file(suffix), "new")
	}
	write(t, b.file(".manifest.json"), string(raw))
	if err := os.Remove(b.file(".sbom.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.publish(); err == nil {
		t.Fatal("a release without SBOM was published")
	}
	if _, err := os.Stat(filepath.Join(out, "croft-uefi-x86.manifest.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a manifest lies beside files it does not describe: %v", err)
	}

	for _, suffix := range suffixes {
		write(t, b.file(suffix), "new")
	}
	write(t, b.file(".manifest.json"), string(raw))
	result, err := b.publish()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{result.Image, result.Root, result.UKI, result.SBOM} {
		if got := read(t, path); got != "new" {
			t.Errorf("%s holds %q, want new", path, got)
		}
	}
	if result.Release.Version != "1.2.0" {
		t.Errorf("release %+v, want version 1.2.0", result.Release)
	}
}

func TestCaptureStopsWhatItsProgramStarted(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "started"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	go func() {
		// The grandchild would keep the pipe open, and write to the folder.
		_, err := output(ctx, dir, "sh", "-c", "sleep 600 & echo $! > started; wait")
		ended <- err
	}()
	pid, err := strconv.Atoi(strings.TrimSpace(read(t, filepath.Join(dir, "started")))) // waits for it
	if err != nil {
		t.Fatal(err)
	}
	grandchild, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(grandchild)
	cancel()
	if err := <-ended; err == nil {
		t.Error("a program that was stopped gave no error")
	}
	// A descriptor of a process becomes readable when the process ends.
	poll := []unix.PollFd{{Fd: int32(grandchild), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 60_000); err != nil || n != 1 {
		t.Errorf("process %d still runs (%v)", pid, err)
	}
}

func TestCaptureShowsTheEndOfAComplaint(t *testing.T) {
	_, err := output(t.Context(), "", "sh", "-c", "seq 100 >&2; exit 3")
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 3\n89\n90\n91\n92\n93\n94\n95\n96\n97\n98\n99\n100") {
		t.Errorf("error %q, want exit status and the last 12 lines", err)
	}
	_, err = output(t.Context(), "", "sh", "-c", "echo out; exit 1")
	if err == nil || !strings.HasSuffix(err.Error(), "\nout") {
		t.Errorf("error %q, want what was printed", err)
	}
}

func TestFreeSpaceOfAFolderThatIsNotThereYet(t *testing.T) {
	here, err := freeSpace(t.TempDir())
	if err != nil || here <= 0 {
		t.Fatalf("freeSpace = %d, %v", here, err)
	}
	if n, err := freeSpace(filepath.Join(t.TempDir(), "a", "b")); err != nil || n <= 0 {
		t.Errorf("freeSpace = %d, %v", n, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	if n, err := freeSpace(filepath.Join(file, "a")); err == nil {
		t.Errorf("freeSpace below a file = %d, want an error", n)
	}
}

func TestLayoutHasNoGapsAndStandsOnMebibytes(t *testing.T) {
	b := &build{Options: Options{Board: board(t)}}
	next := uint64(1 << 20)
	for i, p := range b.layout() {
		if p.Start*sectorSize != next || p.Start*sectorSize%(1<<20) != 0 || p.Size != (p.End-p.Start+1)*sectorSize || p.Index != i+1 {
			t.Errorf("partition %d: %+v, want it to begin at %d", i+1, p, next)
		}
		if p.GUID != strings.ToUpper(b.Board.PartitionGUID(i+1)) {
			t.Errorf("partition %d has GUID %s", i+1, p.GUID)
		}
		next += p.Size
	}
}

func TestCopySparseLeavesHoles(t *testing.T) {
	dir := t.TempDir()
	const block = 64 << 10
	content := slices.Concat(bytes.Repeat([]byte{1}, block), make([]byte, 20*block), bytes.Repeat([]byte{2}, block), []byte("end"))
	write(t, filepath.Join(dir, "part"), string(content))
	disk, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := disk.Truncate(30 * block); err != nil {
		t.Fatal(err)
	}
	if err := copySparse(disk, 2*block, filepath.Join(dir, "part")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(content))
	if _, err := disk.ReadAt(got, 2*block); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the content differs: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(disk.Fd()), &st); err != nil || st.Blocks*512 > 6*block {
		t.Errorf("%d bytes are allocated for 2 blocks of %d: %v", st.Blocks*512, block, err)
	}
}

func TestPackTreeDoesNotDependOnTheBuilder(t *testing.T) {
	pack := func(order ...string) []byte {
		dir := filepath.Join(t.TempDir(), "tree")
		for i, name := range order {
			path := filepath.Join(dir, name)
			write(t, path, "content of "+name)
			at := time.Unix(int64(1e9+i*1000), 0)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		var buf bytes.Buffer
		if err := packTree(&buf, dir); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	a, b := pack("init", "modules/early/b.ko", "modules/early/a.ko"), pack("modules/early/a.ko", "modules/early/b.ko", "init")
	if !bytes.Equal(a, b) {
		t.Error("two trees with equal content give different archives")
	}
	if !bytes.HasPrefix(a, []byte("070701")) || !bytes.Contains(a, []byte("TRAILER!!!")) {
		t.Errorf("not the kernel's format: %q…", a[:20])
	}
}

func TestControl(t *testing.T) {
	const text = "Package: linux-image-amd64\nDepends: linux-image-6.12.95+deb12-amd64 (= 6.12.95-1~bpo12+1), other\nDescription: a\n b\n\nPackage: second\nSHA256: 123\n"
	for _, tc := range []struct{ name, field, want string }{
		{"a field", "Package", "linux-image-amd64"},
		{"a long field", "Depends", "linux-image-6.12.95+deb12-amd64 (= 6.12.95-1~bpo12+1), other"},
		{"a field of the second paragraph", "SHA256", ""},
		{"the beginning of a field's name", "Pack", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := control(text, tc.field); got != tc.want {
				t.Errorf("control(%s) = %q, want %q", tc.field, got, tc.want)
			}
		})
	}
}

func TestCommandLineNamesRootAndBoard(t *testing.T) {
	b := &build{Options: Options{Board: board(t), Version: "1.2.0"}, root: verity.Root{Hash: strings.Repeat("ab", 32), Size: 8192}}
	line := strings.Join(b.commandLine(), " ")
	root, err := verity.FromCommandLine(line)
	if err != nil || root != b.root {
		t.Errorf("the command line names %+v, %v; want %+v", root, err, b.root)
	}
	for _, want := range []string{"croft.version=1.2.0", "croft.board=uefi-x86", "rdinit=/init", "gpt"} {
		if !slices.Contains(strings.Fields(line), want) {
			t.Errorf("command line %q lacks %s", line, want)
		}
	}
	if diff := cmp.Diff(board(t).CommandLine, b.Board.CommandLine); diff != "" {
		t.Errorf("the board was changed:\n%s", diff)
	}
}

func TestClearTimestamp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.efi")
	program := bytes.Repeat([]byte{0xff}, 256)
	binary.LittleEndian.PutUint32(program[0x3c:], 0x80)
	write(t, path, string(program))
	if err := clearTimestamp(path); err != nil {
		t.Fatal(err)
	}
	copy(program[0x88:], make([]byte, 4)) // link time
	copy(program[0xd8:], make([]byte, 4)) // checksum
	if got := read(t, path); got != string(program) {
		t.Errorf("got\n%x, want\n%x", got, program)
	}
}
