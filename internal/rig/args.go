package rig

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// object is one JSON option of QEMU: unlike its key=value form it needs no
// escaping and has no odd corner.
type object map[string]any

func (o object) String() string {
	text, err := json.Marshal(o)
	if err != nil { // only strings, numbers, booleans and lists of them are put in
		panic(err)
	}
	return string(text)
}

// launch is all that the command line depends on beside the Config.
type launch struct {
	code, nvram  string      // firmware and its variables; empty for a direct kernel
	images       []image     // one per Config.Disks
	hostPorts    map[int]int // guest port → host port
	qmpFD        int         // file descriptors in the child
	tapFD, tpmFD int         // 0 if there is none
}

// image is where a disk's bytes are.
type image struct {
	path   string
	format string // raw or qcow2
}

// args builds QEMU's arguments. It is a pure function, for tests.
func (c *Config) args(l launch) []string {
	machine := "q35"
	// A guest's kernel that rewrites its own code while another processor runs it
	// has been seen to panic under emulation, when CPU quotas were switched on:
	// an int3 that was gone again was met. In turn it cannot happen.
	threads := "multi"
	if c.InTurn {
		threads = "single"
	}
	args := []string{
		"-name", "croft",
		"-no-user-config", "-nodefaults",
		"-accel", "tcg,thread=" + threads,
		"-cpu", "max",
		"-smp", strconv.Itoa(c.CPUs),
		"-m", strconv.FormatInt(c.Memory/mib, 10) + "M",
		"-display", "none", "-vga", "std",
		"-S", // we set the cable first, then let it run
		"-chardev", "stdio,id=serial0,signal=off", "-serial", "chardev:serial0",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", l.qmpFD), "-mon", "chardev=qmp,mode=control",
		"-device", object{"driver": "virtio-rng-pci", "id": "rng0"}.String(),
		"-device", object{"driver": "i6300esb", "id": "watchdog0"}.String(),
		"-action", "watchdog=reset",
	}
	if c.Clock != nil {
		args = append(args, "-rtc", "base="+c.Clock.UTC().Format("2006-01-02T15:04:05"))
	} else {
		args = append(args, "-rtc", "base=utc")
	}

	if k := c.Kernel; k != nil {
		args = append(args, "-kernel", k.Path, "-append", k.Cmdline)
		if k.Initrd != "" {
			args = append(args, "-initrd", k.Initrd)
		}
	} else if c.Firmware != BIOS { // SeaBIOS is QEMU's own default
		machine += ",pflash0=firmware,pflash1=nvram"
		args = append(args,
			"-blockdev", object{"node-name": "firmware", "driver": "raw", "read-only": true, "file": object{"driver": "file", "filename": l.code}}.String(),
			"-blockdev", object{"node-name": "nvram", "driver": "raw", "file": object{"driver": "file", "filename": l.nvram}}.String(),
		)
	}
	args = append(args, "-machine", machine)

	var needUSB, needSCSI bool
	for _, d := range c.Disks {
		needUSB = needUSB || d.Bus == BusUSB
		needSCSI = needSCSI || d.Bus == BusSCSI
	}
	if needUSB {
		args = append(args, "-device", object{"driver": "qemu-xhci", "id": "usb"}.String())
	}
	if needSCSI {
		args = append(args, "-device", object{"driver": "virtio-scsi-pci", "id": "scsi"}.String())
	}
	for i, d := range c.Disks {
		args = append(args, d.args(i, l.images[i])...)
	}
	return append(append(args, c.networkArgs(l)...), tpmArgs(l.tpmFD)...)
}

// args stacks the block drivers, from the file up to the device: file, format,
// write log, faults.
func (d *Disk) args(i int, img image) []string {
	name := fmt.Sprintf("disk%d", i)
	var args []string
	node := func(layer string, o object) string {
		o["node-name"] = name + "-" + layer
		args = append(args, "-blockdev", o.String())
		return name + "-" + layer
	}

	// no-flush on the files only: QEMU's own caches are written as the guest
	// asks, but no fsync on the host, whose page cache outlives QEMU.
	top := node("file", object{
		"driver": "file", "filename": img.path, "read-only": d.ReadOnly, "discard": "unmap",
		"cache": object{"no-flush": true},
	})
	top = node("format", object{"driver": img.format, "file": top, "read-only": d.ReadOnly, "discard": "unmap"})
	if d.LogWrites != "" {
		log := node("log", object{"driver": "file", "filename": d.LogWrites, "cache": object{"no-flush": true}})
		// Interval 1 keeps the log's header true even if QEMU is killed.
		top = node("writes", object{"driver": "blklogwrites", "file": top, "log": log, "log-sector-size": sectorSize, "log-super-update-interval": 1})
	}
	if len(d.Errors) > 0 {
		var faults []object
		for _, e := range d.Errors {
			fault := object{"event": "none", "iotype": e.Op, "errno": int(e.Errno)}
			if e.Offset >= 0 {
				fault["sector"] = e.Offset / sectorSize
			}
			faults = append(faults, fault)
		}
		top = node("faults", object{"driver": "blkdebug", "image": top, "inject-error": faults, "read-only": d.ReadOnly})
	}

	device := object{"id": name, "drive": top, "serial": "croft" + strconv.Itoa(i)}
	if !d.NoBoot {
		device["bootindex"] = i + 1
	}
	// By default QEMU pauses the machine when its disk is full; a real disk
	// reports the error.
	report := func() { device["werror"], device["rerror"] = "report", "report" }
	switch d.Bus {
	case BusNVMe:
		device["driver"] = "nvme"
	case BusAHCI:
		device["driver"], device["bus"] = "ide-hd", fmt.Sprintf("ide.%d", i)
		report()
	case BusUSB:
		device["driver"], device["bus"] = "usb-storage", "usb.0"
		report()
	case BusSCSI:
		device["driver"], device["bus"] = "scsi-hd", "scsi.0"
		report()
	case BusVirtio:
		device["driver"] = "virtio-blk-pci"
		report()
	}
	return append(args, "-device", object(device).String())
}

// nicID names the network card for set_link.
const nicID = "nic0"

func (c *Config) networkArgs(l launch) []string {
	netdev := "user,id=net0"
	if l.tapFD != 0 {
		netdev = fmt.Sprintf("tap,id=net0,fd=%d", l.tapFD)
	}
	for _, f := range c.Forwards {
		netdev += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", l.hostPorts[f.Guest], f.Guest)
	}
	return []string{
		"-netdev", netdev,
		// An empty romfile: no network boot, and no seconds lost on it.
		"-device", object{"driver": c.NIC, "id": nicID, "netdev": "net0", "mac": c.MAC, "romfile": ""}.String(),
	}
}

func tpmArgs(fd int) []string {
	if fd == 0 {
		return nil
	}
	return []string{
		"-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", fd),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm",
		"-device", object{"driver": "tpm-tis", "tpmdev": "tpm0"}.String(),
	}
}
