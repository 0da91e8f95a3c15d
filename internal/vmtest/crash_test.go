//go:build vm

package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/esp/crashtest"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/images/build"
	"github.com/croft-cloud/croft/internal/rig"
)

// script is what the installer does on one EFI partition.
type script struct {
	name  string
	files map[string]image // in \EFI\Linux at the start
	steps []string
	disk  string  // used instead of one made from files
	bad   []image // must never be what boots
}

// image is the content of a boot file, as crashtest.UKI makes it.
type image struct {
	kib  int
	seed uint64
}

func (i image) bytes() []byte { return crashtest.UKI("installed", i.kib<<10, i.seed) }

func (i image) String() string { return fmt.Sprintf("%d/%d", i.kib, i.seed) }

// Images of different sizes, so that freed and new clusters do not match.
var (
	imageA   = image{300, 1}
	imageOld = image{340, 2}
	imageB   = image{420, 3}
	imageC   = image{260, 4}
	everyone = []image{imageA, imageOld, imageB, imageC}
)

const (
	nameA   = "croft_0002_a_1.0.0"
	nameOld = "croft_0001_b_0.9.0"

	// longest has as many characters as a version may have, slot.MaxVersion.
	longest = "10.20.30-rc.4567"
)

var scripts = []script{
	{
		name:  "two updates, one to each slot, and a slot that goes bad",
		files: map[string]image{nameA + ".efi": imageA, nameOld + ".efi": imageOld},
		steps: []string{
			"install/a/b/1.1.0/" + imageB.String(), "count/b", "confirm/b",
			"install/b/a/1.2.0/" + imageC.String(), "count/a", "refund/a", "count/a", "count/a", "confirm/a", "confirm/a",
			"demote/a", "erase/b/a",
		},
	},
	{
		name:  "an update after a failed one",
		files: map[string]image{nameA + ".efi": imageA, "croft_0003_b_0.9.0+0-3.efi": imageOld},
		bad:   []image{imageOld},
		steps: []string{"install/a/b/1.1.0/" + imageB.String(), "erase/a/b"},
	},
	{
		name:  "an update that replaces one not yet tried",
		files: map[string]image{nameA + ".efi": imageA, "croft_0003_b_0.9.0+3.efi": imageOld},
		steps: []string{"install/a/b/1.1.0/" + imageB.String(), "install/a/b/1.2.0/" + imageC.String()},
	},
	{
		name:  "a new box with one slot",
		files: map[string]image{nameA + "+3.efi": imageA},
		steps: []string{"count/a", "refund/a", "count/a", "count/a", "count/a", "refund/a", "count/a", "confirm/a", "install/a/b/1.1.0/" + imageB.String()},
	},
	{
		name:  "the longest names, the other slot having failed",
		files: map[string]image{"croft_0002_a_" + longest + "+3.efi": imageA, "croft_0001_b_" + longest + "+0-3.efi": imageOld},
		steps: []string{"count/a", "refund/a", "count/a", "count/a", "confirm/a"},
		bad:   []image{imageOld},
	},
	{
		name:  "the longest names",
		files: map[string]image{"croft_0002_a_" + longest + "+3.efi": imageA},
		steps: []string{"count/a", "confirm/a", "install/a/b/" + longest + "/" + imageB.String(), "count/b", "refund/b", "count/b", "confirm/b", "install/b/a/" + longest + "/" + imageC.String(), "count/a", "confirm/a"},
	},
}

// TestPowerCutsWithTheKernelsDriver lets the real kernel do to real EFI
// partitions what the agent does, records every block write, and asks of every
// state that a power cut can leave: does it boot? Then it gives the kernel the
// oddest of these states and has it install once more.
func TestPowerCutsWithTheKernelsDriver(t *testing.T) {
	t.Parallel()
	small := newSmallSystem(t)
	total := 0
	var damaged []script
	for _, r := range small.record(t, scripts) {
		shapes := map[string]bool{}
		n, _ := replay(t, r, func(state io.ReaderAt, b crashtest.Booted) error {
			shape, err := listing(state)
			if err != nil || shapes[shape] || len(shapes) >= 5 {
				return err
			}
			shapes[shape] = true
			damaged = append(damaged, repair(r.keep(t, state), b, shape))
			return nil
		})
		total += n
		command(t, "fsck.fat", "-n", r.disk)
	}
	t.Logf("%d states in all; %d of them are mended and installed on", total, len(damaged))
	if total < 5000 {
		t.Errorf("%d states are too few to mean anything", total)
	}
	const disksPerBoot = 16
	for part := range slices.Chunk(damaged, disksPerBoot) {
		for _, r := range small.record(t, part) {
			n, _ := replay(t, r, nil)
			total += n
		}
	}
	t.Logf("%d states with those of the second installations", total)
}

// TestPowerCutsWithTheFirmwaresDriver does the same with what is not ours: the
// firmware's FAT driver, with which systemd-boot counts a try. On a new box that
// rename is of the only file that boots.
func TestPowerCutsWithTheFirmwaresDriver(t *testing.T) {
	t.Parallel()
	var known crashtest.Known
	for _, path := range []string{releases.good.UKI, releases.test.UKI} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		known = append(known, content)
	}
	for _, tc := range []struct {
		name  string
		from  string
		stage string // name of the test release in slot B
		until func(b *box)
		boots []string
	}{
		{
			name: "the first boot of a new box",
			until: func(b *box) {
				b.waitConfirmed()
				b.shutDown()
			},
			boots: []string{"croft_0001_a_1.0.0+3.efi", "croft_0001_a_1.0.0+2-1.efi", "croft_0001_a_1.0.0.efi"},
		},
		{
			name:  "the first boot of an update with the longest name",
			from:  confirmed(t),
			stage: "croft_0002_b_" + longest,
			until: func(b *box) {
				b.waitSerial(0, "slot b, version")
				b.cut()
			},
			boots: []string{"croft_0002_b_" + longest + "+3.efi", "croft_0002_b_" + longest + "+2-1.efi"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			log := filepath.Join(dir, "writes.log")
			b := newBox(t, settings{from: tc.from, disk: func(d *rig.Disk) { d.LogWrites = log }})
			if tc.stage != "" {
				b.stage(releases.test.Root, releases.test.UKI, tc.stage+"+3.efi")
			}
			r := recording{name: tc.name, base: filepath.Join(dir, "base.img"), disk: b.disk, known: known}
			command(t, "dd", "if="+b.disk, "of="+r.base, "bs=1M", "skip=1", "count=512", "conv=sparse", "status=none")
			b.powerOn()
			tc.until(b)
			r.writes = crashtest.Clip(readLog(t, log), espAt, espSize)
			_, boots := replay(t, r, nil)
			for _, name := range tc.boots {
				if boots[name] == 0 {
					t.Errorf("no state boots %s", name)
				}
			}
		})
	}
}

// repair is the script for a state after a power cut: what booted is confirmed,
// and an update goes into the other slot.
func repair(disk string, b crashtest.Booted, shape string) script {
	e, err := slot.ParseName(b.Name)
	if err != nil {
		panic(err) // only croft's files are on these partitions
	}
	s := script{name: "after a cut: " + shape, disk: disk}
	if e.Counted {
		s.steps = append(s.steps, "count/"+string(e.Slot), "confirm/"+string(e.Slot))
	}
	s.steps = append(s.steps, fmt.Sprintf("install/%s/%s/2.0.0/%s", e.Slot, e.Slot.Other(), everyone[(b.Image+1)%len(everyone)]))
	return s
}

// listing describes the folder of a state: names, and sizes as none, some or all.
func listing(state io.ReaderAt) (string, error) {
	v, err := esp.OpenVolume(state)
	if err != nil {
		return "", err
	}
	files, err := v.Files()
	if err != nil {
		return "", err
	}
	var all []string
	for _, f := range files {
		size := "whole"
		switch {
		case f.Size == 0:
			size = "empty"
		case !slices.ContainsFunc(everyone, func(i image) bool { return f.Size == int64(len(i.bytes())) }):
			size = "part"
		}
		all = append(all, f.Name+" "+size)
	}
	return strings.Join(all, ", "), nil
}

// replay visits every state of a recording and checks it; see may be nil.
func replay(t *testing.T, r recording, see func(io.ReaderAt, crashtest.Booted) error) (n int, boots map[string]int) {
	t.Helper()
	base, err := os.Open(r.base)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	boots = map[string]int{}
	start := time.Now()
	model := crashtest.Model{Base: base, Writes: r.writes, Tears: 128, Samples: 24, Seed: 1}
	n, err = model.Each(func(state io.ReaderAt) error {
		b, err := crashtest.Sound(state, r.known)
		if err != nil {
			return err
		}
		boots[b.Name]++
		if see != nil {
			return see(state, b)
		}
		return nil
	})
	t.Logf("%s: %d states of %d writes in %.1fs, which boot %v", r.name, n, len(r.writes), time.Since(start).Seconds(), boots)
	if err != nil {
		t.Errorf("%s: %v", r.name, err)
	}
	return n, boots
}

// recording is what was written to an EFI partition.
type recording struct {
	name   string
	base   string // the partition before
	disk   string // and after
	writes []crashtest.Write
	known  crashtest.Known // what may boot
}

// keep stores a state of the recording as a disk image.
func (r recording) keep(t *testing.T, state io.ReaderAt) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "state-*.img")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	command(t, "cp", "--sparse=always", r.base, f.Name())
	for _, w := range r.writes {
		if _, err := io.Copy(io.NewOffsetWriter(f, w.Offset), io.NewSectionReader(state, w.Offset, int64(len(w.Data)))); err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

// smallSystem is the product's kernel and modules with internal/vmtest/installer.
type smallSystem struct{ kernel, initramfs string }

func newSmallSystem(t *testing.T) smallSystem {
	t.Helper()
	board, err := boards.Get("uefi-x86")
	if err != nil {
		t.Fatal(err)
	}
	dir, root := t.TempDir(), filepath.Join("..", "..")
	s := smallSystem{initramfs: filepath.Join(dir, "initramfs")}
	s.kernel, err = build.Initramfs(t.Context(), build.Options{
		Board: board, Source: root, Out: dir, Cache: filepath.Join(root, "build", "cache"), Init: "./internal/vmtest/installer",
	}, s.initramfs)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// record runs the scripts in one virtual machine, each on its own disk.
func (s smallSystem) record(t *testing.T, scripts []script) []recording {
	t.Helper()
	dir := t.TempDir()
	cfg := rig.Config{
		Dir: filepath.Join(dir, "machine"), Memory: 1 << 30,
		Kernel: &rig.Kernel{Path: s.kernel, Initrd: s.initramfs},
	}
	var all []recording
	var arguments []string
	for i, sc := range scripts {
		r := recording{name: sc.name, base: filepath.Join(dir, fmt.Sprintf("base%d.img", i)), disk: filepath.Join(dir, fmt.Sprintf("disk%d.img", i))}
		for _, i := range everyone {
			if !slices.Contains(sc.bad, i) {
				r.known = append(r.known, i.bytes())
			}
		}
		if sc.disk == "" {
			makePartition(t, r.disk, sc.files)
		} else {
			command(t, "cp", "--sparse=always", sc.disk, r.disk)
		}
		command(t, "cp", "--sparse=always", r.disk, r.base)
		cfg.Disks = append(cfg.Disks, rig.Disk{Path: r.disk, LogWrites: r.disk + ".log"})
		arguments = append(arguments, fmt.Sprintf("vd%c:%s", 'a'+i, strings.Join(sc.steps, ",")))
		all = append(all, r)
	}
	cfg.Kernel.Cmdline = "console=ttyS0 quiet panic=-1 installer=" + strings.Join(arguments, ";")
	m, err := rig.NewQEMU(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := rig.WaitSerial(ctx, m, 0, "installer: done"); err != nil {
		t.Fatalf("%v\n%s", err, m.Serial().Text())
	}
	if err := m.WaitOff(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range all {
		all[i].writes = readLog(t, all[i].disk+".log")
	}
	return all
}

func readLog(t *testing.T, path string) []crashtest.Write {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	writes, err := crashtest.ReadLog(f)
	if err != nil {
		t.Fatal(err)
	}
	return writes
}

// makePartition makes an EFI system partition as images/build does.
func makePartition(t *testing.T, path string, files map[string]image) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(espSize); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.fat", "-F", "32", "-s", "8", "-S", "512", "-n", "ESP", "-i", "c40f7a86", "--invariant", path)
	command(t, "mmd", "-i", path, "::/EFI", "::/EFI/BOOT", "::/EFI/Linux", "::/EFI/systemd", "::/loader")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		cmd := exec.CommandContext(t.Context(), "mcopy", "-i", path, "-", "::/EFI/Linux/"+name)
		cmd.Stdin = bytes.NewReader(files[name].bytes())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mcopy: %v\n%s", err, out)
		}
	}
}

// command runs a tool that the set-up installs.
func command(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
}
