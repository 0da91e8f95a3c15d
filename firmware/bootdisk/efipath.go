package bootdisk

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"
)

const (
	efivars      = "firmware/efi/efivars"                 // below sysfs
	loaderVendor = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" // systemd-boot's variables
	globalVendor = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // EFI_GLOBAL_VARIABLE
)

// readVariable returns the value of an EFI variable from efivarfs, which puts
// four bytes of attributes before it.
func readVariable(dir, name, vendor string) []byte {
	raw, err := os.ReadFile(filepath.Join(dir, name+"-"+vendor))
	if err != nil || len(raw) < 4 {
		return nil
	}
	return raw[4:]
}

func loaderPartUUID(vars string) string {
	return strings.ToLower(utf16String(readVariable(vars, "LoaderDevicePartUUID", loaderVendor)))
}

func utf16String(raw []byte) string {
	var units []uint16
	for len(raw) >= 2 {
		u := binary.LittleEndian.Uint16(raw)
		if u == 0 {
			break
		}
		units = append(units, u)
		raw = raw[2:]
	}
	return string(utf16.Decode(units))
}

// devicePath is what an EFI device path says about where a disk is attached.
// Its zero value knows nothing.
type devicePath struct {
	pci  []string // "dev.func" from the root bridge down, as sysfs writes it: "1f.2"
	sata int      // port of the SATA controller; -1 if not told
	scsi [2]int   // target and unit; -1 if not told
}

// bootPath reads the device path of the boot option the firmware used.
func bootPath(vars string) devicePath {
	current := readVariable(vars, "BootCurrent", globalVendor)
	if len(current) < 2 {
		return devicePath{}
	}
	option := readVariable(vars, fmt.Sprintf("Boot%04X", binary.LittleEndian.Uint16(current)), globalVendor)
	return parseLoadOption(option)
}

// parseLoadOption reads an EFI_LOAD_OPTION (UEFI 2.10, 3.1.3): attributes (4
// bytes), length of the path list (2), description (UTF-16 with NUL), paths.
func parseLoadOption(raw []byte) devicePath {
	if len(raw) < 6 {
		return devicePath{}
	}
	length := int(binary.LittleEndian.Uint16(raw[4:]))
	rest := raw[6:]
	for len(rest) >= 2 && binary.LittleEndian.Uint16(rest) != 0 {
		rest = rest[2:]
	}
	if len(rest) < 2+length {
		return devicePath{}
	}
	return parseDevicePath(rest[2 : 2+length])
}

// parseDevicePath reads the nodes (UEFI 2.10, 10.3) it understands and passes
// over the others.
func parseDevicePath(raw []byte) devicePath {
	p := devicePath{sata: -1, scsi: [2]int{-1, -1}}
	for len(raw) >= 4 {
		kind, sub := raw[0], raw[1]
		length := int(binary.LittleEndian.Uint16(raw[2:]))
		if length < 4 || length > len(raw) || kind == 0x7f {
			break
		}
		body := raw[4:length]
		switch {
		case kind == 1 && sub == 1 && len(body) >= 2: // PCI: function, device
			p.pci = append(p.pci, fmt.Sprintf("%02x.%x", body[1], body[0]))
		case kind == 3 && sub == 18 && len(body) >= 2: // SATA: port
			p.sata = int(binary.LittleEndian.Uint16(body))
		case kind == 3 && sub == 2 && len(body) >= 4: // SCSI: target, unit
			p.scsi = [2]int{int(binary.LittleEndian.Uint16(body)), int(binary.LittleEndian.Uint16(body[2:]))}
		}
		raw = raw[length:]
	}
	return p
}

type match int

const (
	matchUnknown match = iota // the path does not tell
	matchNo
	matchYes
)

var (
	pciForm  = regexp.MustCompile(`^[0-9a-f]{4,}:[0-9a-f]{2}:([0-9a-f]{2}\.[0-9a-f])$`)
	ataForm  = regexp.MustCompile(`^ata[0-9]+$`)
	scsiForm = regexp.MustCompile(`^[0-9]+:[0-9]+:([0-9]+):([0-9]+)$`)
)

// match compares the path with a disk's folder in sysfs, for example
// /sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda.
// USB ports are not compared: firmware and kernel number them differently.
//
// SATA ports count from 0 in UEFI and from 1 in sysfs: the kernel's
// drivers/ata/libata-transport.c shows local_port_no, which libata-core.c sets
// to the port's index + 1 (from Linux 6.11 on it shows port_no + 1, the same).
// The number in "ata1" counts the ports of all controllers and is of no use.
func (p devicePath) match(sysfs string) match {
	if len(p.pci) == 0 {
		return matchUnknown
	}
	var pci []string
	for part := range strings.SplitSeq(sysfs, "/") {
		if m := pciForm.FindStringSubmatch(part); m != nil {
			pci = append(pci, m[1])
		}
	}
	if len(pci) == 0 {
		return matchUnknown // e.g. /sys/devices/virtual/nvme-subsystem: reached on several ways
	}
	if strings.Join(pci, "/") != strings.Join(p.pci, "/") {
		return matchNo
	}
	for dir := sysfs; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		part := filepath.Base(dir)
		if p.sata >= 0 && ataForm.MatchString(part) {
			raw, err := os.ReadFile(filepath.Join(dir, "ata_port", part, "port_no"))
			if port, perr := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil && perr == nil && port != p.sata+1 {
				return matchNo
			}
		}
		if m := scsiForm.FindStringSubmatch(part); m != nil && p.scsi[0] >= 0 {
			if m[1] != strconv.Itoa(p.scsi[0]) || m[2] != strconv.Itoa(p.scsi[1]) {
				return matchNo
			}
		}
	}
	return matchYes
}
