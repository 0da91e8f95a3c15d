//go:build vm

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
)

// machine makes a machine that is closed with the test.
func machine(t *testing.T, cfg Config) *QEMU {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	m, err := NewQEMU(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close machine: %v", err)
		}
		if t.Failed() {
			t.Logf("serial port:\n%s", m.Serial().Text())
		}
	})
	return m
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// firmwareUp is what OVMF prints when it looks for something to boot.
const firmwareUp = "BdsDxe"

func TestFirmwareReachesBootManagerOverAllKindsOfPower(t *testing.T) {
	ctx := soon(t)
	dir := filepath.Join(t.TempDir(), "a, b")
	image := filepath.Join(t.TempDir(), "base, raw.img")
	content := bytes.Repeat([]byte("croft"), 1<<20/5+1)[:1<<20]
	if err := os.WriteFile(image, content, 0o644); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Dir: dir,
		TPM: true,
		Disks: []Disk{
			{Path: image, Overlay: true, Size: 8 << 20, LogWrites: filepath.Join(dir, "writes, all.log")},
			{Size: 4 << 20, Bus: BusNVMe},
			{Size: 4 << 20, Bus: BusAHCI},
			{Size: 4 << 20, Bus: BusUSB, ReadOnly: true},
			{Size: 4 << 20, Bus: BusSCSI, Errors: []DiskError{{Op: OpRead, Offset: 0}, {Op: OpWrite, Offset: -1}}},
		},
		Forwards: []Forward{{Guest: 80}},
	}
	m := machine(t, cfg)

	if err := m.WaitOff(ctx); err != nil {
		t.Errorf("a new machine is not off: %v", err)
	}
	if err := m.PressPower(ctx); !errors.Is(err, ErrOff) {
		t.Errorf("power button without power: %v, want ErrOff", err)
	}
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(ctx); !errors.Is(err, ErrOn) {
		t.Errorf("second power on: %v, want ErrOn", err)
	}
	up, err := WaitSerial(ctx, m, 0, firmwareUp)
	if err != nil {
		t.Fatal(err)
	}

	picture, err := m.Screenshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if img, err := png.Decode(bytes.NewReader(picture)); err != nil {
		t.Errorf("screenshot: %v", err)
	} else if img.Bounds().Dx() < 320 {
		t.Errorf("screenshot is %v", img.Bounds())
	}

	seen := len(m.Events())
	if err := m.PressReset(ctx); err != nil {
		t.Fatal(err)
	}
	if e, _, err := m.WaitEvent(ctx, seen, EventReset); err != nil || e.Guest {
		t.Errorf("reset event %+v, %v", e, err)
	}
	if _, err = WaitSerial(ctx, m, max(up.End, m.Serial().Len()), firmwareUp); err != nil {
		t.Fatal(err)
	}

	address, err := m.Address(80)
	if err != nil {
		t.Fatal(err)
	}
	for _, disk := range []int{0, 1, 2} {
		if got := qemuIO(ctx, t, m, disk, "write -P 0x41 65536 4096"); !strings.HasPrefix(got, "wrote 4096/4096") {
			t.Errorf("write to disk %d: %s", disk, got)
		}
		qemuIO(ctx, t, m, disk, "flush")
	}
	if err := m.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitOff(ctx); err != nil {
		t.Errorf("after a cut: %v", err)
	}
	if _, err := (&net.Dialer{}).DialContext(ctx, "tcp", address); err == nil {
		t.Error("a machine that is off takes connections")
	}
	if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, content) {
		t.Errorf("base image has changed (%v)", err)
	}
	written := bytes.Repeat([]byte{0x41}, 4096)
	if got, err := os.ReadFile(filepath.Join(dir, "disk1.img")); err != nil || !bytes.Equal(got[65536:][:4096], written) {
		t.Errorf("flushed write is lost by a cut (%v)", err)
	}
	log, err := os.Open(cfg.Disks[0].LogWrites)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var entries []LoggedWrite
	for w, err := range ReadWriteLog(log) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, w)
	}
	if len(entries) != 2 || entries[0].Offset != 65536 || !bytes.Equal(entries[0].Data, written) || !entries[1].Flush {
		t.Errorf("write log has %d entries %+v, want the write and the flush", len(entries), entries)
	}

	nvram, err := os.ReadFile(filepath.Join(dir, "nvram.fd"))
	if err != nil {
		t.Fatal(err)
	}
	if blank, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd"); err != nil || bytes.Equal(blank, nvram) {
		t.Errorf("firmware has stored nothing (%v)", err)
	}
	tpm, err := os.Stat(filepath.Join(dir, "tpm", "tpm2-00.permall"))
	if err != nil || tpm.Size() == 0 {
		t.Errorf("TPM has stored nothing: %v", err)
	}

	at := m.Serial().Len()
	if err := m.SetLink(ctx, false); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := WaitSerial(ctx, m, at, firmwareUp); err != nil {
		t.Fatal(err)
	}
	if again, _ := m.Address(80); again != address {
		t.Errorf("address moved from %s to %s", address, again)
	}
	if err := m.Command(ctx, "quit", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitOff(ctx); err != nil {
		t.Fatal(err)
	}
	events := m.Events()
	if last := events[len(events)-1]; last.Name != EventShutdown || last.Reason != "host-qmp-quit" {
		t.Errorf("last event is %+v", last)
	}

	// The same box, made anew from its directory.
	if _, err := NewQEMU(cfg); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("second machine in the same directory: %v, want it refused", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Disks[0].LogWrites = ""
	m = machine(t, cfg)
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		disk          int
		command, want string
	}{
		{0, "read -P 0x41 65536 4096", "read 4096/4096"},
		{0, "read -P 0 2097152 512", "read 512/512"},
		{4, "write 4096 512", "write failed: Input/output error"},
		{4, "read 0 512", "read failed: Input/output error"},
		{4, "read 512 512", "read 512/512"},
	} {
		if got := qemuIO(ctx, t, m, tc.disk, tc.command); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s on disk %d: %q, want %q", tc.command, tc.disk, got, tc.want)
		}
	}
	var blocks []struct {
		Device   string `json:"qdev"`
		Inserted struct {
			ReadOnly bool `json:"ro"`
		} `json:"inserted"`
	}
	if err := m.Command(ctx, "query-block", nil, &blocks); err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if want := strings.Contains(b.Device, "disk3"); b.Inserted.ReadOnly != want && strings.Contains(b.Device, "disk") {
			t.Errorf("%s is write protected: %v, want %v", b.Device, b.Inserted.ReadOnly, want)
		}
	}
}

// qemuIO makes QEMU itself request something from a disk, through the disk's
// whole stack, and gives back what it prints among what the guest does. The machine stays paused.
func qemuIO(ctx context.Context, t *testing.T, m *QEMU, disk int, command string) string {
	t.Helper()
	backend := ""
	if m.cfg.Disks[disk].Bus == BusVirtio {
		backend = "/virtio-backend"
	}
	line := fmt.Sprintf(`qemu-io -d /machine/peripheral/disk%d%s "%s"`, disk, backend, command)
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	at := m.Serial().Len()
	var said string
	if err := m.Command(ctx, "human-monitor-command", object{"command-line": line}, &said); err != nil {
		t.Fatal(err)
	}
	if said != "" {
		t.Fatalf("%s: %s", line, said)
	}
	if command == "flush" { // prints nothing
		return ""
	}
	match, err := WaitSerial(ctx, m, at, `(wrote |read |Pattern|write failed|read failed).*\n`)
	if err != nil {
		t.Fatal(err)
	}
	return match.Groups[0]
}

func TestOverlayIsKeptAndBoundToItsImage(t *testing.T) {
	image, dir := filepath.Join(t.TempDir(), "base.img"), t.TempDir()
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		size int64
		want int64 // of the disk; 0 if refused
		kind croft.Kind
	}{
		{"smaller than the image is refused", 512, 0, croft.KindUsage},
		{"by default it is as large as the image", 0, 1 << 20, ""},
		{"it grows", 4 << 20, 4 << 20, ""},
		{"it stays as large as it was", 0, 4 << 20, ""},
		{"it never shrinks", 2 << 20, 0, croft.KindUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := Disk{Path: image, Overlay: true, Size: tc.size}
			img, err := disk.prepare(dir, "disk0")
			if croft.KindOf(err) != tc.kind || (err != nil) != (tc.want == 0) {
				t.Fatalf("prepare = %v, want kind %q", err, tc.kind)
			}
			if tc.want == 0 {
				return
			}
			if got, err := qcow2Size(img.path); err != nil || got != tc.want {
				t.Errorf("disk has %d bytes (%v), want %d", got, err, tc.want)
			}
		})
	}

	if err := os.Chtimes(image, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	disk := Disk{Path: image, Overlay: true}
	if _, err := disk.prepare(dir, "disk0"); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("overlay on an image that has changed: %v, want it refused", err)
	}
}

func TestQEMUThatEndsAtOnceSaysWhy(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, []byte("no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := machine(t, Config{Kernel: &Kernel{Path: kernel}})
	err := m.PowerOn(soon(t))
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("QEMU ended at once: exit status 1: ")) {
		t.Errorf("power on = %v, want QEMU's own words", err)
	}
}

func TestGuestGetsAnAddressOnALAN(t *testing.T) {
	ctx := soon(t)
	lan, err := newLAN("croft.efi")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lan.Close(); err != nil {
			t.Error(err)
		}
	})
	// With no disk the firmware tries to boot from the network.
	m := machine(t, Config{LAN: lan, MAC: "52:54:00:12:34:56"})
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	v4, v6, err := lan.Guest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if v4 != netip.MustParseAddr("10.83.0.2") || v6 != netip.MustParseAddr("fe80::5054:ff:fe12:3456") {
		t.Errorf("guest is at %s and %s", v4, v6)
	}
}

func TestLANIsANetworkOfItsOwn(t *testing.T) {
	ctx := soon(t)
	lan, err := NewLAN()
	if err != nil {
		t.Fatal(err)
	}
	defer lan.Close()
	var names []string
	err = lan.Do(func() error {
		all, err := net.Interfaces()
		for _, i := range all {
			names = append(names, i.Name)
		}
		return err
	})
	if err != nil || len(names) != 2 {
		t.Fatalf("interfaces %v, %v: want lo and the tap device", names, err)
	}
	if _, err := net.InterfaceByName("tap0"); err == nil {
		t.Error("the tap device is in the host's network")
	}

	var l net.Listener
	err = lan.Do(func() error {
		l, err = net.Listen("tcp4", "10.83.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	conn, err := lan.DialContext(ctx, "tcp", net.JoinHostPort("10.83.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
