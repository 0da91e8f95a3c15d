package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// Sizes of the disk's parts in MiB, in order, each beginning on a MiB.
const (
	espMiB  = 512
	rootMiB = 2048
	permMiB = 128 // grown to the disk at first boot
)

const sectorSize = 512

// layout lists the partitions of the board's disk.
func (b *build) layout() []*gpt.Partition {
	at := uint64(1) // MiB
	var parts []*gpt.Partition
	for i, p := range []struct {
		name string
		kind gpt.Type
		mib  uint64
	}{
		{"esp", gpt.EFISystemPartition, espMiB},
		{"root-a", gpt.LinuxFilesystem, rootMiB},
		{"root-b", gpt.LinuxFilesystem, rootMiB},
		{"perm", gpt.LinuxFilesystem, permMiB},
	} {
		parts = append(parts, &gpt.Partition{
			Index: i + 1, Start: at << 20 / sectorSize, End: (at+p.mib)<<20/sectorSize - 1, Size: p.mib << 20,
			Type: p.kind, Name: p.name, GUID: strings.ToUpper(b.Board.PartitionGUID(i + 1)),
		})
		at += p.mib
	}
	return parts
}

// assembleDisk writes partition table, EFI partition and root A into a sparse
// file. Root B and /perm stay blank.
func (b *build) assembleDisk(ctx context.Context) error {
	parts := b.layout()
	last := parts[len(parts)-1]
	size := int64(last.End+1)*sectorSize + 1<<20 // room for the backup table

	esp := filepath.Join(b.work, "esp")
	if err := b.makeESP(ctx, esp); err != nil {
		return err
	}
	disk, err := os.Create(b.file(".img"))
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := disk.Truncate(size); err != nil {
		return err
	}
	table := &gpt.Table{
		Partitions: parts, LogicalSectorSize: sectorSize, PhysicalSectorSize: sectorSize,
		GUID: strings.ToUpper(b.Board.PartitionGUID(0)), ProtectiveMBR: true,
	}
	if err := table.Write(disk, size); err != nil {
		return fmt.Errorf("write the partition table: %w", err)
	}
	for file, part := range map[string]*gpt.Partition{esp: parts[0], b.file(".root"): parts[1]} {
		if err := copySparse(disk, int64(part.Start)*sectorSize, file); err != nil {
			return err
		}
	}
	if err := disk.Sync(); err != nil {
		return err
	}
	return disk.Close()
}

// copySparse writes a file's non-zero blocks to disk at an offset.
func copySparse(disk *os.File, offset int64, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	block, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := offset; ; {
		n, err := io.ReadFull(f, block)
		if string(block[:n]) != string(zero[:n]) {
			if _, err := disk.WriteAt(block[:n], at); err != nil {
				return fmt.Errorf("write %s to the image: %w", filepath.Base(file), err)
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
	}
}

// makeESP makes the EFI system partition with start.efi, systemd-boot, its
// configuration, the first UKI and the folder of the network file, empty or not.
func (b *build) makeESP(ctx context.Context, image string) error {
	start, err := b.buildStart(ctx)
	if err != nil {
		return err
	}
	if err := b.addPackage(ctx, "systemd-boot-efi", systemdBoot); err != nil {
		return err
	}
	for _, file := range []string{efiStart, efiLibrary, efiScript} {
		if err := b.addPackage(ctx, "gnu-efi", file); err != nil {
			return err
		}
	}
	conf := filepath.Join(b.work, "loader.conf")
	if err := os.WriteFile(conf, []byte("timeout 0\neditor no\nauto-firmware no\nauto-entries no\n"), 0o644); err != nil {
		return err
	}
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(espMiB<<20), f.Close()); err != nil {
		return err
	}
	if _, err := output(ctx, "", "mkfs.fat", "-F", "32", "-s", "8", "-S", "512", "-n", "ESP", "-i", b.Board.DiskID, "--invariant", image); err != nil {
		return err
	}
	first := slot.Entry{Generation: 1, Slot: croft.SlotA, Version: b.Version, Counted: true, Left: slot.Tries}
	steps := [][]string{
		{"mmd", "-i", image, "::/EFI", "::/EFI/BOOT", "::/EFI/Linux", "::/EFI/systemd", "::/loader", "::/" + path.Dir(joinfile.Path)},
		{"mcopy", "-i", image, start, "::/EFI/BOOT/BOOTX64.EFI"},
		{"mcopy", "-i", image, systemdBoot, "::/EFI/systemd/systemd-bootx64.efi"},
		{"mcopy", "-i", image, conf, "::/loader/loader.conf"},
		{"mcopy", "-i", image, b.file(".efi"), "::/EFI/Linux/" + first.Name()},
	}
	if b.Network != nil {
		step, err := b.addNetwork(image)
		if err != nil {
			return err
		}
		steps = append(steps, step)
	}
	for _, step := range steps {
		cmd := exec.CommandContext(ctx, step[0], step[1:]...)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+fmt.Sprint(b.epoch.Unix()), "MTOOLS_SKIP_CHECK=1", "TZ=UTC")
		if _, err := capture(cmd); err != nil {
			return err
		}
	}
	return nil
}

// addNetwork is the call of mtools that puts the network file onto the EFI
// partition in image.
func (b *build) addNetwork(image string) ([]string, error) {
	raw, err := b.Network.Format()
	if err != nil {
		return nil, err
	}
	name := path.Base(joinfile.Path)
	file := filepath.Join(b.work, name)
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		return nil, err
	}
	return []string{"mcopy", "-i", image, file, "::/" + joinfile.Path}, b.addInput("file", name, "", file)
}
