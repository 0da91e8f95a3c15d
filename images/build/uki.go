package build

import (
	"bytes"
	"cmp"
	"context"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"

	"github.com/croft-cloud/croft/firmware/loader"
	"github.com/croft-cloud/croft/firmware/verity"
	"github.com/croft-cloud/croft/images/manifest"
)

const (
	systemdBoot = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	efiStub     = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	efiStart    = "/usr/lib/crt0-efi-x86_64.o" // package gnu-efi: start of an EFI program
	efiLibrary  = "/usr/lib/libgnuefi.a"
	efiScript   = "/usr/lib/elf_x86_64_efi.lds"
)

// UKI makes one more unified kernel image for the root of a release that was
// built before: with other arguments or another first program. It writes it to
// path. opts are as for [Build].
func UKI(ctx context.Context, opts Options, release manifest.Manifest, path string) error {
	opts.Version = cmp.Or(opts.Version, release.Version)
	b, err := newBuild(ctx, opts)
	if err != nil {
		return err
	}
	defer b.cleanUp()
	b.root = verity.Root{Hash: release.Root.Hash, Size: release.Root.Size}
	if err := b.fetchKernel(ctx); err != nil {
		return err
	}
	if err := b.buildUKI(ctx); err != nil {
		return err
	}
	return os.Rename(b.file(".efi"), path)
}

// buildUKI makes the unified kernel image: kernel, initramfs and command line
// in one EFI program.
func (b *build) buildUKI(ctx context.Context) error {
	initramfs := filepath.Join(b.work, "initramfs")
	if err := b.buildInitramfs(ctx, initramfs); err != nil {
		return err
	}
	cmdline := strings.Join(b.commandLine(), " ")
	// No version here: systemd-boot must order the slots by file name alone
	// (firmware/slot), also when a release is older than the one it replaces.
	osrel := fmt.Sprintf("NAME=croft\nID=croft\nPRETTY_NAME=\"croft %s\"\n", b.Version)
	sections := []struct {
		name string
		data []byte
		path string
	}{
		{name: ".osrel", data: []byte(osrel)},
		{name: ".cmdline", data: []byte(cmdline + "\x00")},
		{name: ".uname", data: []byte(b.kernel.release)},
		{name: ".initrd", path: initramfs},
		{name: ".linux", path: b.kernel.image}, // last: it is unpacked in place
	}
	at, align, err := endOfSections(efiStub)
	if err != nil {
		return err
	}
	args := []string{"--enable-deterministic-archives"}
	for _, s := range sections {
		if s.path == "" {
			s.path = filepath.Join(b.work, "section"+s.name)
			if err := os.WriteFile(s.path, s.data, 0o644); err != nil {
				return err
			}
		}
		info, err := os.Stat(s.path)
		if err != nil {
			return err
		}
		args = append(args, "--add-section", s.name+"="+s.path, "--change-section-vma", fmt.Sprintf("%s=%#x", s.name, at))
		at = (at + uint64(info.Size()) + align - 1) / align * align
	}
	if err := b.addPackage(ctx, "systemd-boot-efi", efiStub); err != nil {
		return err
	}
	uki := b.file(".efi")
	if _, err := output(ctx, b.work, "objcopy", append(args, efiStub, uki)...); err != nil {
		return err
	}
	return clearTimestamp(uki)
}

// commandLine is the kernel's: the board's arguments, what croft-init needs,
// and what gokrazy needs to name its disk. Slot and disk are found by content.
func (b *build) commandLine() []string {
	line := append([]string{}, b.Board.CommandLine...)
	line = append(line, b.root.Arguments()...)
	line = append(line, b.Arguments...)
	return append(line,
		"croft.version="+string(b.Version), "croft.board="+b.Board.Name,
		"root=PARTUUID="+b.Board.PartitionGUID(1)+"/PARTNROFF=1", "rdinit=/init",
		"gpt") // believe the backup partition table when the primary one is damaged
}

// endOfSections is the first free address after the stub's sections, relative
// to the image base plus that base, and the alignment of sections.
func endOfSections(path string) (end, align uint64, err error) {
	f, err := pe.Open(path)
	if err != nil {
		return 0, 0, fmt.Errorf("read the EFI stub: %w", err)
	}
	defer f.Close()
	header, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return 0, 0, fmt.Errorf("read the EFI stub: not a 64-bit program")
	}
	align = uint64(header.SectionAlignment)
	for _, s := range f.Sections {
		end = max(end, uint64(s.VirtualAddress)+uint64(s.VirtualSize))
	}
	end += header.ImageBase
	return (end + align - 1) / align * align, align, nil
}

// clearTimestamp zeroes the link time in the COFF header and, because it covers
// that, the checksum in the optional header, which firmware ignores.
func clearTimestamp(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var lfanew [4]byte
	if _, err := f.ReadAt(lfanew[:], 0x3c); err != nil {
		return err
	}
	header := int64(binary.LittleEndian.Uint32(lfanew[:]))
	for _, at := range []int64{8, 24 + 64} {
		if _, err := f.WriteAt(make([]byte, 4), header+at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// buildInitramfs packs croft-init and the modules needed to reach the root.
func (b *build) buildInitramfs(ctx context.Context, path string) error {
	tree := filepath.Join(b.work, "initramfs.d")
	sets, err := b.moduleSets()
	if err != nil {
		return err
	}
	if err := b.installModules(sets.watchdog, filepath.Join(tree, "modules/watchdog")); err != nil {
		return err
	}
	if err := b.installModules(sets.early, filepath.Join(tree, "modules/early")); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w -buildid=", "-o", filepath.Join(tree, "init"), b.Init)
	cmd.Dir = b.Source
	cmd.Env = goEnv("GOOS=linux", "GOARCH=amd64")
	if _, err := capture(cmd); err != nil {
		return fmt.Errorf("build %s: %w", b.Init, err)
	}
	var packed bytes.Buffer
	if err := packTree(&packed, tree); err != nil {
		return fmt.Errorf("pack the initramfs: %w", err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	return os.WriteFile(path, enc.EncodeAll(packed.Bytes(), nil), 0o644)
}

// packTree writes the folder as a cpio archive in the kernel's format, sorted,
// owned by root, without times.
func packTree(buf *bytes.Buffer, tree string) error {
	w := cpio.NewWriter(buf)
	inode := int64(0)
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == tree {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		inode++
		h := &cpio.Header{Name: name, Mode: cpio.FileMode(plainMode(info)), Inode: inode}
		if d.IsDir() {
			h.Mode |= cpio.TypeDir
			h.Links = 2
			return w.WriteHeader(h)
		}
		h.Mode |= cpio.TypeReg
		h.Links = 1
		h.Size = info.Size()
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, err = w.Write(raw)
		return err
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// buildStart compiles firmware/loader's start.efi the way gnu-efi prescribes.
func (b *build) buildStart(ctx context.Context) (string, error) {
	source, object := filepath.Join(b.work, "start.c"), filepath.Join(b.work, "start.o")
	shared, program := filepath.Join(b.work, "start.so"), filepath.Join(b.work, "start.efi")
	if err := os.WriteFile(source, loader.Source, 0o644); err != nil {
		return "", err
	}
	for _, step := range [][]string{
		{
			"gcc", "-I/usr/include/efi", "-I/usr/include/efi/x86_64", "-DGNU_EFI_USE_MS_ABI",
			"-ffreestanding", "-fpic", "-fshort-wchar", "-fno-stack-protector", "-mno-red-zone", "-maccumulate-outgoing-args",
			"-Wall", "-Werror", "-Os", "-ffile-prefix-map=" + b.work + "=.", "-c", source, "-o", object,
		},
		{
			"ld", "-nostdlib", "-znocombreloc", "-shared", "-Bsymbolic", "--build-id=none", "-T", efiScript, efiStart, object,
			"-o", shared, "-L/usr/lib", "-lgnuefi",
		},
		{
			"objcopy", "-j", ".text", "-j", ".sdata", "-j", ".data", "-j", ".dynamic", "-j", ".rodata", "-j", ".rel", "-j", ".rela",
			"-j", ".rel.*", "-j", ".rela.*", "-j", ".reloc", "--target", "efi-app-x86_64", "--subsystem=10", shared, program,
		},
	} {
		if _, err := output(ctx, b.work, step[0], step[1:]...); err != nil {
			return "", fmt.Errorf("compile start.efi: %w", err)
		}
	}
	if err := clearTimestamp(program); err != nil {
		return "", err
	}
	return program, nil
}
