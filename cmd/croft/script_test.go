package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/firmware/esp/crashtest"
	"github.com/croft-cloud/croft/firmware/verity"
)

// update reports whether -update was given.
var update = boolFlag("update", "rewrite what the scripts in testdata expect")

// boolFlag defines a flag, unless a library that integration tests link has one
// of that name already.
func boolFlag(name, usage string) func() bool {
	if flag.Lookup(name) == nil {
		flag.Bool(name, false, usage)
	}
	return func() bool { return flag.Lookup(name).Value.String() == "true" }
}

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"croft": main}) }

// TestScripts runs the manual: testdata/script says what croft answers to whom.
func TestScripts(t *testing.T) { runScripts(t, "testdata/script") }

// runScripts runs the scripts of a folder. They know, besides what testscript
// has:
//
//	exits CODE COMMAND...   run a command and want that exit code
//	image [-used] [-sector=4096] FILE
//	                        make a small croft image; -used: as a box leaves it
//	$CROFT, $REPO           path of croft, folder of this repository
func runScripts(t *testing.T, dir string, more ...func(*testscript.Params)) {
	croft, err := exec.LookPath("croft") // put there by TestMain
	if err != nil {
		t.Fatal(err)
	}
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	p := testscript.Params{
		Dir:           dir,
		UpdateScripts: update(),
		Setup: func(env *testscript.Env) error {
			env.Setenv("CROFT", croft)
			env.Setenv("REPO", repo)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "image": image},
	}
	for _, change := range more {
		change(&p)
	}
	testscript.Run(t, p)
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func image(ts *testscript.TestScript, neg bool, args []string) {
	var opts imageOptions
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	f.BoolVar(&opts.used, "used", false, "")
	f.Int64Var(&opts.sector, "sector", 512, "")
	ts.Check(f.Parse(args))
	if neg || f.NArg() != 1 {
		ts.Fatalf("usage: image [-used] [-sector=4096] FILE")
	}
	ts.Check(makeImage(ts.MkAbs(f.Arg(0)), opts))
}

// imageOptions say what a small image looks like.
type imageOptions struct {
	sector int64
	used   bool // slot A confirmed; slot B given up, its boot file cut short; a foreign file
}

// Where things lie in an image of makeImage, in MiB.
const (
	testESP, testRootA, testRootB, testPerm, testTail, testSize = 1, 5, 9, 13, 16, 17
)

// The root of makeImage has data, a hole and data again.
const testHole, testHoleSize = 256 << 10, 256 << 10

// makeImage makes a croft image of 17 MiB that croft cannot tell from a real
// one. Equal options give equal bytes.
func makeImage(path string, opts imageOptions) error {
	board, err := boards.Get("uefi-x86")
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(testSize << 20); err != nil {
		return err
	}
	table := &gpt.Table{
		LogicalSectorSize: int(opts.sector), PhysicalSectorSize: int(opts.sector), ProtectiveMBR: true,
		GUID: strings.ToUpper(board.PartitionGUID(0)),
	}
	borders := []uint64{testESP, testRootA, testRootB, testPerm, testTail}
	for i, name := range []string{"esp", "root-a", "root-b", "perm"} {
		kind := gpt.LinuxFilesystem
		if i == 0 {
			kind = gpt.EFISystemPartition
		}
		begin, end := borders[i]<<20, borders[i+1]<<20
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: i + 1, Start: begin / uint64(opts.sector), End: end/uint64(opts.sector) - 1, Size: end - begin,
			Type: kind, Name: name, GUID: strings.ToUpper(board.PartitionGUID(i + 1)),
		})
	}
	if err := table.Write(f, testSize<<20); err != nil {
		return err
	}

	root := bytes.Repeat([]byte("verified root\n\n\n"), 1<<16) // 1 MiB
	clear(root[testHole : testHole+testHoleSize])
	if err := os.WriteFile(path+".root", root, 0o600); err != nil {
		return err
	}
	defer os.RemoveAll(path + ".root")
	hash, err := verity.Format(path + ".root")
	if err != nil {
		return err
	}
	if root, err = os.ReadFile(path + ".root"); err != nil {
		return err
	}
	for _, part := range [][2]int{{0, testHole}, {testHole + testHoleSize, len(root)}} {
		if _, err := f.WriteAt(root[part[0]:part[1]], testRootA<<20+int64(part[0])); err != nil {
			return err
		}
	}

	cmdline := strings.Join(append(hash.Arguments(), "croft.board=uefi-x86"), " ")
	uki := addUname(crashtest.UKI(cmdline, 64<<10, 1), "6.12.0-test")
	files := map[string][]byte{"croft_0001_a_1.0.0+3.efi": uki}
	if opts.used {
		files = map[string][]byte{
			"croft_0001_a_1.0.0.efi": uki, "croft_0002_b_1.1.0+0-3.efi": uki[:32<<10], "windows.efi": []byte("MZ"),
		}
	}
	return makeESP(path, files)
}

func makeESP(path string, files map[string][]byte) error {
	disk, err := file.OpenFromPath(path, false)
	if err != nil {
		return err
	}
	defer disk.Close()
	fs, err := fat32.Create(disk, (testRootA-testESP)<<20, testESP<<20, 512, "ESP", true)
	if err != nil {
		return err
	}
	for _, dir := range []string{"/EFI/Linux", "/croft"} {
		if err := fs.Mkdir(dir); err != nil {
			return err
		}
	}
	for name, content := range files {
		f, err := fs.OpenFile("/EFI/Linux/"+name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return err
		}
		if _, err := f.Write(content); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// addUname adds the section with the kernel's release to a kernel image.
func addUname(uki []byte, release string) []byte {
	const header, optional, align = 0x80, 240, 512
	uki = slices.Clone(uki)
	le := binary.LittleEndian
	count := le.Uint16(uki[header+6:])
	le.PutUint16(uki[header+6:], count+1)
	h := uki[header+24+optional+40*int(count):]
	copy(h[:8], ".uname")
	for at, v := range map[int]int{8: len(release), 12: len(uki), 16: align, 20: len(uki)} {
		le.PutUint32(h[at:], uint32(v))
	}
	return append(append(uki, release...), make([]byte, align-len(release))...)
}
