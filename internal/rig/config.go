package rig

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/croft-cloud/croft"
)

// Config is copied by [NewQEMU], checked once, and never changed afterwards.
type Config struct {
	// Dir is required: the folder of all that the machine stores. It is made
	// if absent and found again by the next machine on it. Only one machine
	// may use it at a time.
	Dir string

	Memory   int64      // bytes, whole MiB; default 2 GiB
	CPUs     int        // default 2
	InTurn   bool       // the CPUs work one at a time, as code that rewrites itself needs it under emulation; default all at once
	Disks    []Disk     // the order is the order in which the firmware tries them
	Firmware Firmware   // default UEFI
	Kernel   *Kernel    // boot this directly, without firmware; default nil: the firmware boots from Disks
	NIC      NIC        // default NICVirtio
	MAC      string     // default 52:54:00:63:72:01
	Forwards []Forward  // TCP ports of the guest to reach from the host; not with LAN
	LAN      *LAN       // the network the cable leads to; default nil: NAT to the host's network
	TPM      bool       // with a TPM 2.0, whose state is kept in Dir
	Clock    *time.Time // what the hardware clock says at each power-on; default the host's time
	Tee      io.Writer  // also receives the serial output, as it came; default nil

	// Log names a file that also receives the serial output, as it came, over
	// all power cycles. Default: serial.log in Dir.
	Log string
}

// Disk is one disk of a machine.
type Disk struct {
	// Path is a raw image. Empty means a blank disk of Size bytes, kept in
	// [Config].Dir.
	Path string

	Bus      Bus   // default BusVirtio
	ReadOnly bool  // write protected; not with BusAHCI
	Overlay  bool  // leave Path as it is and keep what is written in [Config].Dir
	Size     int64 // bytes the guest sees, whole sectors; default as large as Path; never smaller

	// NoBoot hides the disk from the firmware's list of what to boot.
	NoBoot bool

	// LogWrites names a file that receives every write and flush in their
	// order, from each power-on anew; [ReadWriteLog] reads it. What
	// [Disk].Errors refuses is not in it.
	LogWrites string

	Errors []DiskError // requests that fail
}

// DiskError makes requests to a disk fail.
type DiskError struct {
	Op     DiskOp     // which requests
	Offset int64      // only those that touch the sector at this byte; negative: all
	Errno  ErrnoValue // what the disk reports; default IOError
}

// DiskOp is a kind of request to a disk.
type DiskOp string

// The requests that can be made to fail.
const (
	OpRead  DiskOp = "read"
	OpWrite DiskOp = "write"
	OpFlush DiskOp = "flush"
)

// ErrnoValue is a Linux error number as QEMU's fault injection takes it.
type ErrnoValue int

// The errors a disk reports.
const (
	IOError ErrnoValue = 5
	NoSpace ErrnoValue = 28
)

// Bus is how a disk is attached.
type Bus string

// The buses.
const (
	BusVirtio Bus = "virtio"
	BusNVMe   Bus = "nvme"
	BusAHCI   Bus = "ahci"
	BusUSB    Bus = "usb"
	BusSCSI   Bus = "scsi"
)

// Buses are all buses, for help texts.
func Buses() []Bus { return []Bus{BusVirtio, BusNVMe, BusAHCI, BusUSB, BusSCSI} }

// ParseBus accepts the name of a bus.
func ParseBus(s string) (Bus, error) {
	for _, b := range Buses() {
		if string(b) == s {
			return b, nil
		}
	}
	return "", fmt.Errorf("bus %q: want one of %v", s, Buses())
}

// Firmware is what starts first and looks for something to boot.
type Firmware string

// The kinds of firmware.
const (
	UEFI Firmware = "uefi" // OVMF
	BIOS Firmware = "bios" // SeaBIOS, as in PCs before UEFI; images of croft do not boot from it
)

// NIC is the model of the network card.
type NIC string

// The network cards.
const (
	NICVirtio NIC = "virtio-net-pci"
	NICIntel  NIC = "e1000e"
)

// Forward opens a TCP port of the guest to the host's loopback.
type Forward struct {
	Guest int // required
	Host  int // default: a free one
}

// Kernel is a Linux kernel started directly.
type Kernel struct {
	Path    string // required
	Initrd  string // may be empty
	Cmdline string
}

const (
	mib        = 1 << 20
	sectorSize = 512
)

// check fills in the defaults and refuses what cannot work.
func (c *Config) check() error {
	c.Memory = cmp.Or(c.Memory, 2<<30)
	c.CPUs = cmp.Or(c.CPUs, 2)
	c.NIC = cmp.Or(c.NIC, NICVirtio)
	c.Firmware = cmp.Or(c.Firmware, UEFI)
	c.MAC = cmp.Or(c.MAC, "52:54:00:63:72:01")
	switch {
	case c.Dir == "":
		return errors.New("directory of the machine is missing")
	case c.Memory < 0 || c.Memory%mib != 0:
		return fmt.Errorf("memory of %d bytes: want whole MiB", c.Memory)
	case c.CPUs < 0:
		return fmt.Errorf("%d processors: want 1 or more", c.CPUs)
	case c.Firmware != UEFI && c.Firmware != BIOS:
		return fmt.Errorf("firmware %q: want %s or %s", c.Firmware, UEFI, BIOS)
	case c.LAN != nil && len(c.Forwards) > 0:
		return errors.New("ports are forwarded through NAT only, but the machine is on a LAN: dial it there")
	case c.Kernel != nil && c.Kernel.Path == "":
		return errors.New("kernel to boot is missing")
	}
	if _, err := net.ParseMAC(c.MAC); err != nil {
		return err
	}
	for _, f := range c.Forwards {
		if f.Guest < 1 || f.Guest > 65535 || f.Host < 0 || f.Host > 65535 {
			return fmt.Errorf("forward port %d to %d: want 1 to 65535", f.Host, f.Guest)
		}
	}
	for i := range c.Disks {
		if err := c.Disks[i].check(); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
	}
	return nil
}

func (d *Disk) check() error {
	d.Bus = cmp.Or(d.Bus, BusVirtio)
	if _, err := ParseBus(string(d.Bus)); err != nil {
		return err
	}
	switch {
	case d.Path == "" && d.Size <= 0:
		return errors.New("path of the image is missing, and so is the size of a blank disk")
	case d.Path == "" && d.Overlay:
		return errors.New("an overlay needs an image to lie on")
	case d.Size < 0 || d.Size%sectorSize != 0:
		return fmt.Errorf("size of %d bytes: want whole sectors of %d bytes", d.Size, sectorSize)
	case d.ReadOnly && d.Bus == BusAHCI:
		return errors.New("a disk on ahci cannot be write protected: take another bus")
	}
	for i := range d.Errors {
		e := &d.Errors[i]
		e.Errno = cmp.Or(e.Errno, IOError)
		switch e.Op {
		case OpRead, OpWrite, OpFlush:
		default:
			return fmt.Errorf("fault on %q: want read, write or flush", e.Op)
		}
	}
	return nil
}

func usage(err error) error {
	return &croft.Error{Kind: croft.KindUsage, Err: err}
}
