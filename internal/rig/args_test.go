package rig

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft"
)

// options are the values that args gives to one option, JSON decoded.
func options(t *testing.T, args []string, name string) []any {
	t.Helper()
	var values []any
	for i, a := range args {
		if a != name {
			continue
		}
		var o map[string]any
		if json.Unmarshal([]byte(args[i+1]), &o) == nil {
			values = append(values, o)
		} else {
			values = append(values, args[i+1])
		}
	}
	return values
}

func TestDiskBecomesAStackOfDrivers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		disk   Disk
		img    image
		nodes  []string // driver and options from the file up
		device string
	}{
		{
			"a plain disk",
			Disk{Bus: BusVirtio},
			image{"/img", "raw"},
			[]string{
				`{"cache":{"no-flush":true},"discard":"unmap","driver":"file","filename":"/img","node-name":"disk1-file","read-only":false}`,
				`{"discard":"unmap","driver":"raw","file":"disk1-file","node-name":"disk1-format","read-only":false}`,
			},
			`{"bootindex":2,"drive":"disk1-format","driver":"virtio-blk-pci","id":"disk1","rerror":"report","serial":"croft1","werror":"report"}`,
		},
		{
			"odd names need no escaping",
			Disk{Bus: BusNVMe, NoBoot: true, ReadOnly: true},
			image{`/my "box", old`, "qcow2"},
			[]string{
				`{"cache":{"no-flush":true},"discard":"unmap","driver":"file","filename":"/my \"box\", old","node-name":"disk1-file","read-only":true}`,
				`{"discard":"unmap","driver":"qcow2","file":"disk1-file","node-name":"disk1-format","read-only":true}`,
			},
			`{"drive":"disk1-format","driver":"nvme","id":"disk1","serial":"croft1"}`,
		},
		{
			"the log lies below the faults, so that it holds what reached the disk",
			Disk{Bus: BusAHCI, LogWrites: "/log", Errors: []DiskError{{Op: OpWrite, Offset: 1024, Errno: IOError}, {Op: OpRead, Offset: -1, Errno: NoSpace}}},
			image{"/img", "raw"},
			[]string{
				`{"cache":{"no-flush":true},"discard":"unmap","driver":"file","filename":"/img","node-name":"disk1-file","read-only":false}`,
				`{"discard":"unmap","driver":"raw","file":"disk1-file","node-name":"disk1-format","read-only":false}`,
				`{"cache":{"no-flush":true},"driver":"file","filename":"/log","node-name":"disk1-log"}`,
				`{"driver":"blklogwrites","file":"disk1-format","log":"disk1-log","log-sector-size":512,"log-super-update-interval":1,"node-name":"disk1-writes"}`,
				`{"driver":"blkdebug","image":"disk1-writes","inject-error":[{"errno":5,"event":"none","iotype":"write","sector":2},{"errno":28,"event":"none","iotype":"read"}],"node-name":"disk1-faults","read-only":false}`,
			},
			`{"bootindex":2,"bus":"ide.1","drive":"disk1-faults","driver":"ide-hd","id":"disk1","rerror":"report","serial":"croft1","werror":"report"}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var want []string
			for _, n := range tc.nodes {
				want = append(want, "-blockdev", n)
			}
			want = append(want, "-device", tc.device)
			if diff := cmp.Diff(want, tc.disk.args(1, tc.img)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestControllersComeOnce(t *testing.T) {
	cfg := Config{Dir: "/d", Disks: []Disk{{Size: 512, Bus: BusUSB}, {Size: 512, Bus: BusUSB}, {Size: 512, Bus: BusSCSI}}}
	if err := cfg.check(); err != nil {
		t.Fatal(err)
	}
	var drivers []string
	for _, o := range options(t, cfg.args(launch{images: make([]image, 3)}), "-device") {
		drivers = append(drivers, o.(map[string]any)["driver"].(string))
	}
	want := []string{"virtio-rng-pci", "i6300esb", "qemu-xhci", "virtio-scsi-pci", "usb-storage", "usb-storage", "scsi-hd", "virtio-net-pci"}
	if diff := cmp.Diff(want, drivers); diff != "" {
		t.Errorf("devices -want +got:\n%s", diff)
	}
}

func TestMachineOptions(t *testing.T) {
	clock := time.Date(2099, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	for _, tc := range []struct {
		name string
		cfg  Config
		l    launch
		want []string // pairs that must stand next to each other
		none []string // words that must not stand anywhere
	}{
		{"defaults", Config{}, launch{code: "/c,d", nvram: "/n"}, []string{"-m", "2048M", "-smp", "2", "-rtc", "base=utc", "-machine", "q35,pflash0=firmware,pflash1=nvram", "-netdev", "user,id=net0"}, []string{"-kernel", "-tpmdev", "-append"}},
		{"a BIOS comes with QEMU", Config{Firmware: BIOS}, launch{}, []string{"-machine", "q35"}, []string{"pflash"}},
		{"a kernel needs no firmware", Config{Kernel: &Kernel{Path: "/k, 1", Initrd: "/i", Cmdline: "a b"}}, launch{}, []string{"-kernel", "/k, 1", "-initrd", "/i", "-append", "a b", "-machine", "q35"}, []string{"pflash"}},
		{"ports", Config{Forwards: []Forward{{Guest: 80}, {Guest: 443, Host: 8443}}}, launch{hostPorts: map[int]int{80: 33333, 443: 8443}}, []string{"-netdev", "user,id=net0,hostfwd=tcp:127.0.0.1:33333-:80,hostfwd=tcp:127.0.0.1:8443-:443"}, nil},
		{"the cable to a LAN", Config{}, launch{tapFD: 4}, []string{"-netdev", "tap,id=net0,fd=4"}, []string{"user,"}},
		{"a TPM", Config{}, launch{tpmFD: 5}, []string{"-chardev", "socket,id=tpm,fd=5", "-tpmdev", "emulator,id=tpm0,chardev=tpm"}, nil},
		{"another time", Config{Clock: &clock}, launch{}, []string{"-rtc", "base=2099-01-02T02:04:05"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Dir = "/d"
			if err := tc.cfg.check(); err != nil {
				t.Fatal(err)
			}
			args := tc.cfg.args(tc.l)
			for i := 0; i < len(tc.want); i += 2 {
				if !slices.Contains(options(t, args, tc.want[i]), any(tc.want[i+1])) {
					t.Errorf("no %s %s in %q", tc.want[i], tc.want[i+1], args)
				}
			}
			for _, word := range tc.none {
				if strings.Contains(strings.Join(args, " "), word) {
					t.Errorf("%s in %q", word, args)
				}
			}
		})
	}
}

func TestConfigThatCannotWorkIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"no directory", Config{}, "directory of the machine is missing"},
		{"half a MiB", Config{Dir: "d", Memory: 1 << 19}, "whole MiB"},
		{"a disk of nothing", Config{Dir: "d", Disks: []Disk{{}}}, "disk 0: path of the image is missing"},
		{"half a sector", Config{Dir: "d", Disks: []Disk{{Size: 100}}}, "whole sectors"},
		{"an unknown bus", Config{Dir: "d", Disks: []Disk{{Size: 512, Bus: "isa"}}}, `bus "isa": want one of [virtio nvme ahci usb scsi]`},
		{"an overlay on nothing", Config{Dir: "d", Disks: []Disk{{Size: 512, Overlay: true}}}, "needs an image to lie on"},
		{"a fault on nothing", Config{Dir: "d", Disks: []Disk{{Size: 512, Errors: []DiskError{{Op: "seek"}}}}}, `fault on "seek"`},
		{"a write-protected AHCI disk", Config{Dir: "d", Disks: []Disk{{Size: 512, Bus: BusAHCI, ReadOnly: true}}}, "another bus"},
		{"a port out of range", Config{Dir: "d", Forwards: []Forward{{Guest: 70000}}}, "want 1 to 65535"},
		{"forwards and a LAN", Config{Dir: "d", LAN: &LAN{}, Forwards: []Forward{{Guest: 80}}}, "dial it there"},
		{"no MAC address", Config{Dir: "d", MAC: "1:2"}, "1:2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := NewQEMU(tc.cfg)
			if err == nil || !strings.Contains(err.Error(), tc.want) || croft.KindOf(err) != croft.KindUsage {
				t.Errorf("NewQEMU = %v, want a usage error with %q", err, tc.want)
			}
		})
	}
}

func TestBlankDiskIsMadeOnceAndGrows(t *testing.T) {
	dir := t.TempDir()
	disk := Disk{Size: 4096}
	img, err := disk.prepare(dir, "disk0")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(img.path, bytes.Repeat([]byte{7}, 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	disk.Size = 8192
	if _, err := disk.prepare(dir, "disk0"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "disk0.img"))
	if err != nil || len(got) != 8192 || got[4095] != 7 || got[4096] != 0 {
		t.Errorf("disk has %d bytes, %v", len(got), err)
	}
	disk.Size = 512
	if _, err := disk.prepare(dir, "disk0"); croft.KindOf(err) != croft.KindUsage {
		t.Errorf("shrinking a disk: %v, want it refused", err)
	}
}

func TestWriteLog(t *testing.T) {
	record := func(sector, sectors, flags uint64, data ...byte) []byte {
		entry := make([]byte, 512)
		binary.LittleEndian.PutUint64(entry, sector)
		binary.LittleEndian.PutUint64(entry[8:], sectors)
		binary.LittleEndian.PutUint64(entry[16:], flags)
		for _, b := range data {
			entry = append(entry, bytes.Repeat([]byte{b}, 512)...)
		}
		return entry
	}
	header := func(entries uint64) []byte {
		h := make([]byte, 512)
		binary.LittleEndian.PutUint64(h, writeLogMagic)
		binary.LittleEndian.PutUint64(h[8:], writeLogVersion)
		binary.LittleEndian.PutUint64(h[16:], entries)
		binary.LittleEndian.PutUint32(h[24:], 512)
		return h
	}
	full := slices.Concat(header(3), record(8, 2, writeLogFUA, 1, 2), record(0, 0, writeLogFlush), record(100, 1<<30, writeLogDiscard))
	for _, tc := range []struct {
		name string
		log  []byte
		want []LoggedWrite
		err  string
	}{
		{"a whole log", full, []LoggedWrite{
			{Offset: 4096, Size: 1024, Data: append(bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)...), FUA: true},
			{Flush: true},
			{Offset: 51200, Size: 1 << 39, Discard: true},
		}, ""},
		{"what lies beyond the count is not finished", slices.Concat(header(0), full[512:]), nil, ""},
		{"a log cut short", full[:1000], nil, "entry 0 of 3: unexpected EOF"},
		{"no log", make([]byte, 512), nil, "not a write log"},
		{"nothing", nil, nil, "EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []LoggedWrite
			var failed error
			for w, err := range ReadWriteLog(bytes.NewReader(tc.log)) {
				if err != nil {
					failed = err
					break
				}
				got = append(got, w)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if (failed == nil) != (tc.err == "") || failed != nil && !strings.Contains(failed.Error(), tc.err) {
				t.Errorf("error %v, want %q", failed, tc.err)
			}
		})
	}
}
