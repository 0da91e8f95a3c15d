package bootdisk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf16"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

const (
	espGUID   = "60c24cc1-f3f9-427a-8199-c40f7a860001"
	otherGUID = "60c24cc1-f3f9-427a-8199-000000000001"
)

// Folders below /sys/devices, as the box's kernel (Debian's 6.12) makes them in
// QEMU's q35 machine and on real boards.
const (
	virtio   = "pci0000:00/0000:00:03.0/virtio1/block/vda"
	virtio2  = "pci0000:00/0000:00:04.0/virtio2/block/vdb"
	nvme     = "pci0000:00/0000:00:1d.0/0000:01:00.0/nvme/nvme0/nvme0n1"
	nvmePath = "virtual/nvme-subsystem/nvme-subsys0/nvme0n1" // a disk with several ways to it
	ahci1    = "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda"
	ahci2    = "pci0000:00/0000:00:1f.2/ata2/host1/target1:0:0/1:0:0:0/block/sdb"
	usb      = "pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdc"
	scsi0    = "pci0000:00/0000:00:05.0/virtio3/host2/target2:0:0/2:0:0:0/block/sdd"
	scsi1    = "pci0000:00/0000:00:05.0/virtio3/host2/target2:0:1/2:0:1:0/block/sde"
	mmc      = "pci0000:00/0000:00:1a.0/mmc_host/mmc0/mmc0:0001/block/mmcblk0"
)

// Device paths of the boot options for them, as OVMF and boards' firmware write
// them: ACPI root, PCI, then what the controller adds, partition and file left
// out here and there.
const (
	acpiRoot = "02010c00d041030a00000000"
	end      = "7fff0400"
	toVirtio = acpiRoot + "010106000003" + end
	toNVMe   = acpiRoot + "01010600001d" + "010106000000" + "0317100001000000" + "0000000000000000" + end
	toPort0  = acpiRoot + "01010600021f" + "03120a000000ffff0000" + end
	toPort1  = acpiRoot + "01010600021f" + "03120a000100ffff0000" + end
	toUSB    = acpiRoot + "010106000014" + "030506000100" + end
	toUnit1  = acpiRoot + "010106000005" + "0302080001000000" + end
	toAdded  = "04012a000100000000080000000000000000100000000000c14cc260f9f37a428199c40f7a8600010202" + end // a hard drive by its GUID alone
)

// machine is a box's sysfs, EFI variables and device nodes.
type machine struct {
	t   *testing.T
	cfg Config
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{t: t, cfg: Config{Sys: filepath.Join(dir, "sys"), Dev: filepath.Join(dir, "dev"), Wait: 20 * time.Second}}
	for _, d := range []string{"sys/block", "sys/" + efivars, "dev"} {
		m.must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	return m
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// plug adds a disk with a partition table to sysfs and /dev.
func (m *machine) plug(device, guid string) {
	m.t.Helper()
	m.plugRaw(device, disk(m.t, guid))
}

func (m *machine) plugRaw(device string, content []byte) {
	m.t.Helper()
	name := filepath.Base(device)
	m.must(os.MkdirAll(filepath.Join(m.cfg.Sys, "devices", device), 0o755))
	// Each ATA port shows its number on its controller, from 1 on.
	for part := range strings.SplitSeq(device, "/") {
		if port, ok := strings.CutPrefix(part, "ata"); ok {
			dir := filepath.Join(m.cfg.Sys, "devices", device[:strings.Index(device, part)], part, "ata_port", part)
			m.must(os.MkdirAll(dir, 0o755))
			m.must(os.WriteFile(filepath.Join(dir, "port_no"), []byte(port+"\n"), 0o444))
		}
	}
	d := Disk{Path: filepath.Join(m.cfg.Dev, name)}
	m.must(os.WriteFile(d.Path, content, 0o600))
	m.must(os.WriteFile(d.Partition(ESP), nil, 0o600))
	m.must(os.Symlink(filepath.Join("../devices", device), filepath.Join(m.cfg.Sys, "block", name)))
}

// disk is a small disk with a croft partition table.
func disk(t testing.TB, guid string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 4 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	table := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, Partitions: []*gpt.Partition{
		{Index: 1, Type: gpt.EFISystemPartition, GUID: guid, Start: 2048, End: 4095},
		{Index: 2, Type: gpt.LinuxFilesystem, Start: 4096, End: 6143},
	}}
	if err := table.Write(f, size); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func utf16le(s string) []byte {
	var raw []byte
	for _, unit := range append(utf16.Encode([]rune(s)), 0) {
		raw = binary.LittleEndian.AppendUint16(raw, unit)
	}
	return raw
}

func (m *machine) variable(name, vendor string, value []byte) {
	m.t.Helper()
	raw := append([]byte{7, 0, 0, 0}, value...)
	m.must(os.WriteFile(filepath.Join(m.cfg.Sys, efivars, name+"-"+vendor), raw, 0o600))
}

// loadOption is an EFI_LOAD_OPTION named "croft" with this device path in hex.
func loadOption(path string) []byte {
	raw, err := hex.DecodeString(path)
	if err != nil {
		panic(err) // a typing error in this file
	}
	option := binary.LittleEndian.AppendUint16([]byte{1, 0, 0, 0}, uint16(len(raw)))
	return append(append(option, utf16le("croft")...), raw...)
}

// booted sets the variables that firmware and loader leave. An empty path is a
// firmware that does not tell.
func (m *machine) booted(path string) {
	m.t.Helper()
	m.variable("LoaderDevicePartUUID", loaderVendor, utf16le(strings.ToUpper(espGUID)))
	if path == "" {
		return
	}
	m.variable("BootCurrent", globalVendor, []byte{0x0a, 0x00})
	m.variable("Boot000A", globalVendor, loadOption(path))
	m.variable("Boot0000", globalVendor, loadOption(toUnit1)) // another option, not used
}

func TestFind(t *testing.T) {
	for _, tc := range []struct {
		name  string
		disks []string // with our GUIDs
		path  string   // what the firmware booted
		want  string   // name of the disk
		twins string   // names of the twins
		note  string   // part of the note
		sure  bool     // no need to wait
	}{
		{"virtio", []string{virtio}, toVirtio, "vda", "", "", true},
		{"NVMe behind a bridge", []string{nvme}, toNVMe, "nvme0n1", "", "", true},
		{"NVMe reached on several ways", []string{nvmePath}, toNVMe, "nvme0n1", "", "", true},
		{"AHCI", []string{ahci1}, toPort0, "sda", "", "", true},
		{"USB", []string{usb}, toUSB, "sdc", "", "", true},
		{"SCSI", []string{scsi1}, toUnit1, "sde", "", "", true},
		{"eMMC", []string{mmc}, "", "mmcblk0", "", "", true},
		{"a firmware that does not tell", []string{virtio}, "", "vda", "", "", true},
		{"a firmware that tells the partition only", []string{virtio}, toAdded, "vda", "", "", true},

		{"twins: NVMe booted, a stick left plugged in", []string{usb, nvme}, toNVMe, "nvme0n1", "sdc", "carries the same partitions as the booted disk", true},
		{"twins: the stick booted", []string{nvme, usb}, toUSB, "sdc", "nvme0n1", "is ignored", true},
		{"twins on one AHCI controller, the first booted", []string{ahci1, ahci2}, toPort0, "sda", "sdb", "is ignored", true},
		{"twins on one AHCI controller, the second booted", []string{ahci1, ahci2}, toPort1, "sdb", "sda", "is ignored", true},
		{"twins on one SCSI controller", []string{scsi0, scsi1}, toUnit1, "sde", "sdd", "is ignored", true},
		{"twins of one kind on two slots", []string{virtio, virtio2}, toVirtio, "vda", "vdb", "is ignored", true},
		{"triplets", []string{virtio, nvme, usb}, toNVMe, "nvme0n1", "sdc vda", "is ignored", true},
		{"twins and a firmware that does not tell", []string{virtio, nvme}, "", "nvme0n1", "vda", "does not say which", false},
		{"twins and a firmware that contradicts both", []string{virtio, usb}, toNVMe, "sdc", "vda", "does not say which", false},
		{"a lone disk that the firmware contradicts", []string{virtio}, toNVMe, "vda", "", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			m.booted(tc.path)
			for _, d := range tc.disks {
				m.plug(d, espGUID)
			}
			m.plug("pci0000:00/0000:00:09.0/virtio9/block/vdz", otherGUID)                              // somebody else's
			m.plugRaw("pci0000:00/0000:00:09.1/virtio8/block/vdy", make([]byte, 64<<10))                // blank
			m.plugRaw("virtual/block/loop0", disk(t, espGUID))                                          // an image in use
			m.must(os.Symlink("../devices/gone", filepath.Join(m.cfg.Sys, "block", "sdx")))             // unplugged meanwhile
			m.must(os.MkdirAll(filepath.Join(m.cfg.Sys, "block", "nvme0c0n1"), 0o755))                  // a way to a disk: no node
			m.must(os.WriteFile(filepath.Join(m.cfg.Sys, "block", "README"), []byte("no disk"), 0o600)) // nothing at all
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				found, err := Find(t.Context(), m.cfg)
				if err != nil {
					t.Fatal(err)
				}
				var twins []string
				for _, twin := range found.Twins {
					twins = append(twins, filepath.Base(twin.Path))
				}
				slices.Sort(twins)
				if got := filepath.Base(found.Disk.Path); got != tc.want || strings.Join(twins, " ") != tc.twins {
					t.Errorf("found %s with twins %q, want %s with %q", got, twins, tc.want, tc.twins)
				}
				if !strings.Contains(found.Note, tc.note) || (tc.note == "") != (found.Note == "") {
					t.Errorf("note is %q, want it to say %q", found.Note, tc.note)
				}
				if waited := time.Since(begin); (waited == 0) != tc.sure || waited > 11*time.Second {
					t.Errorf("found after %v, sure = %v", waited, tc.sure)
				}
			})
		})
	}
}

func TestFindWaitsForASlowDisk(t *testing.T) {
	for _, tc := range []struct {
		name   string
		at     []time.Duration // when each of the disks appears
		disks  []string
		path   string
		want   string
		before time.Duration
	}{
		{"the only one", []time.Duration{7 * time.Second}, []string{usb}, toUSB, "sdc", 8 * time.Second},
		{"the booted one, whose twin is fast", []time.Duration{0, 6 * time.Second}, []string{virtio, usb}, toUSB, "sdc", 7 * time.Second},
		{"not for a slow twin", []time.Duration{0, 6 * time.Second}, []string{virtio, usb}, toVirtio, "vda", time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			m.booted(tc.path)
			m.must(os.Remove(filepath.Join(m.cfg.Sys, "block"))) // before the first driver
			content := disk(t, espGUID)
			synctest.Test(t, func(t *testing.T) {
				for i, d := range tc.disks {
					go func() {
						time.Sleep(tc.at[i])
						m.must(os.MkdirAll(filepath.Join(m.cfg.Sys, "block"), 0o755))
						m.plugRaw(d, content)
					}()
				}
				synctest.Wait()
				begin := time.Now()
				found, err := Find(t.Context(), m.cfg)
				if err != nil || filepath.Base(found.Disk.Path) != tc.want || time.Since(begin) > tc.before {
					t.Errorf("found %s after %v: %v", found.Disk.Path, time.Since(begin), err)
				}
				time.Sleep(time.Minute) // the others end
			})
		})
	}
}

func TestFindGivesUp(t *testing.T) {
	t.Run("when no disk fits", func(t *testing.T) {
		m := newMachine(t)
		m.booted(toVirtio)
		m.plug(virtio, otherGUID)
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			if _, err := Find(t.Context(), m.cfg); err == nil || !strings.Contains(err.Error(), espGUID) || time.Since(begin) != 20*time.Second {
				t.Errorf("after %v: %v", time.Since(begin), err)
			}
		})
	})
	t.Run("at once when nobody names one", func(t *testing.T) {
		if _, err := Find(t.Context(), newMachine(t).cfg); err == nil {
			t.Error("no error")
		}
	})
}

func TestCommandLineNamesTheDiskWhenTheLoaderDoesNot(t *testing.T) {
	m := newMachine(t)
	m.plug(virtio, espGUID)
	m.cfg.PartUUID = strings.ToUpper(espGUID)
	found, err := Find(t.Context(), m.cfg)
	if err != nil || filepath.Base(found.Disk.Path) != "vda" {
		t.Errorf("found %+v, %v", found, err)
	}
}

func TestDamagedPartitionTable(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(disk []byte)
		found bool
	}{
		{"the primary header is gone", func(d []byte) { clear(d[512:1024]) }, true},
		{"the primary entries are damaged", func(d []byte) { d[1024+20]++ }, true},
		{"the protective MBR too", func(d []byte) { clear(d[:34*512]) }, true},
		{"the backup is gone", func(d []byte) { clear(d[len(d)-33*512:]) }, true},
		{"both are gone", func(d []byte) { clear(d[512:1024]); clear(d[len(d)-512:]) }, false},
		{"the number of entries is absurd, so the checksum is wrong", func(d []byte) { d[512+83] = 0x80 }, true},
		{"the number of entries is absurd, with a fitting checksum", func(d []byte) { forge(d[512:], 80, 1<<31) }, false},
		{"the same in the backup", func(d []byte) { forge(d[len(d)-512:], 80, 1<<31) }, false},
		{"entries have no size", func(d []byte) { forge(d[512:], 84, 0) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			content := disk(t, espGUID)
			tc.spoil(content)
			m.plugRaw(virtio, content)
			if found := len(candidates(m.cfg, espGUID)) == 1; found != tc.found {
				t.Errorf("found = %v, want %v", found, tc.found)
			}
		})
	}
}

// forge changes a number in a table header and mends the header's checksum.
func forge(header []byte, at int, value uint32) {
	binary.LittleEndian.PutUint32(header[at:], value)
	clear(header[16:20])
	binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header[:92]))
}

func TestPartition(t *testing.T) {
	for disk, want := range map[string]string{
		"/dev/sda": "/dev/sda4", "/dev/vdb": "/dev/vdb4", "/dev/nvme0n1": "/dev/nvme0n1p4", "/dev/mmcblk0": "/dev/mmcblk0p4",
	} {
		if got := (Disk{Path: disk}).Partition(4); got != want {
			t.Errorf("partition 4 of %s is %s, want %s", disk, got, want)
		}
	}
}

func TestSelectedEntry(t *testing.T) {
	m := newMachine(t)
	if got := SelectedEntry(m.cfg.Sys); got != "" {
		t.Errorf("without the variable: %q", got)
	}
	m.variable("LoaderEntrySelected", loaderVendor, utf16le("Croft_0002_b_1.1.0+3.efi"))
	if got := SelectedEntry(m.cfg.Sys); got != "croft_0002_b_1.1.0+3.efi" {
		t.Errorf("entry is %q", got)
	}
}

func TestParseLoadOption(t *testing.T) {
	for _, tc := range []struct {
		name string
		raw  []byte
		pci  string
		sata int
		scsi [2]int
	}{
		{"virtio", loadOption(toVirtio), "03.0", -1, [2]int{-1, -1}},
		{"NVMe behind a bridge", loadOption(toNVMe), "1d.0 00.0", -1, [2]int{-1, -1}},
		{"the second AHCI port", loadOption(toPort1), "1f.2", 1, [2]int{-1, -1}},
		{"SCSI target 1", loadOption(toUnit1), "05.0", -1, [2]int{1, 0}},
		{"a path without hardware", loadOption(toAdded), "", -1, [2]int{-1, -1}},
		{"no end node", loadOption(strings.TrimSuffix(toVirtio, end)), "03.0", -1, [2]int{-1, -1}},
		{"a second path behind the first is not read", loadOption(toVirtio + toUnit1), "03.0", -1, [2]int{-1, -1}},
		{"a node longer than the path", loadOption(acpiRoot + "01017700"), "", -1, [2]int{-1, -1}},
		{"a node shorter than its header", loadOption(acpiRoot + "01010000"), "", -1, [2]int{-1, -1}},
		{"a path cut off", loadOption(toVirtio)[:24], "", 0, [2]int{}},
		{"a description without end", []byte{1, 0, 0, 0, 4, 0, 'c', 0}, "", 0, [2]int{}},
		{"nothing", nil, "", 0, [2]int{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := parseLoadOption(tc.raw)
			if strings.Join(p.pci, " ") != tc.pci || p.sata != tc.sata || p.scsi != tc.scsi {
				t.Errorf("path is %+v, want %q, %d, %v", p, tc.pci, tc.sata, tc.scsi)
			}
		})
	}
}

func FuzzParseLoadOption(f *testing.F) {
	for _, path := range []string{toVirtio, toNVMe, toPort1, toUSB, toUnit1, toAdded} {
		f.Add(loadOption(path))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		p := parseLoadOption(raw)
		if !bytes.Equal(before, raw) {
			t.Error("the option was changed")
		}
		if len(p.pci) > len(raw)/6 || p.sata > 0xffff {
			t.Errorf("path is %+v", p)
		}
		// What is read can be written and read again.
		again := append([]byte{}, encode(p)...)
		if got := parseDevicePath(again); len(p.pci) > 0 && fmt.Sprint(got) != fmt.Sprint(p) {
			t.Errorf("%+v is written and read as %+v", p, got)
		}
		p.match("/sys/devices/" + nvme)
	})
}

// encode writes the nodes of a path.
func encode(p devicePath) []byte {
	var raw []byte
	for _, at := range p.pci {
		var device, function byte
		_, _ = fmt.Sscanf(at, "%x.%x", &device, &function)
		raw = append(raw, 1, 1, 6, 0, function, device)
	}
	if p.sata >= 0 {
		raw = append(binary.LittleEndian.AppendUint16(append(raw, 3, 18, 10, 0), uint16(p.sata)), 0, 0, 0, 0)
	}
	if p.scsi[0] >= 0 {
		raw = binary.LittleEndian.AppendUint16(append(raw, 3, 2, 8, 0), uint16(p.scsi[0]))
		raw = binary.LittleEndian.AppendUint16(raw, uint16(p.scsi[1]))
	}
	return append(raw, 0x7f, 0xff, 4, 0)
}
