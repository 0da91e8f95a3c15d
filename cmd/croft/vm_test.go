package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/rig"
)

// gptImage makes a file that looks like a disk image of size bytes.
func gptImage(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "my, image.img")
	data := make([]byte, size)
	copy(data[512:], "EFI PART")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVMOptions(t *testing.T) {
	image := gptImage(t, 1<<20)
	kept := filepath.Join(t.TempDir(), "kept")
	if err := os.MkdirAll(filepath.Join(kept, "something"), 0o755); err != nil {
		t.Fatal(err)
	}
	base := vmOptions{image: image, memory: "2G", bus: "virtio", cpus: 2}
	page := rig.Forward{Guest: 80}
	for _, tc := range []struct {
		name   string
		change func(*vmOptions)
		want   rig.Config
	}{
		{"by default the box forgets", func(*vmOptions) {}, rig.Config{
			Memory: 2 << 30, CPUs: 2, Forwards: []rig.Forward{page},
			Disks: []rig.Disk{{Path: image, Overlay: true, Bus: rig.BusVirtio, Size: 8 << 30}},
		}},
		{"a kept disk keeps its size", func(o *vmOptions) { o.persist = kept }, rig.Config{
			Dir: kept, Memory: 2 << 30, CPUs: 2, Forwards: []rig.Forward{page},
			Disks: []rig.Disk{{Path: image, Overlay: true, Bus: rig.BusVirtio}},
		}},
		{"everything can be chosen", func(o *vmOptions) {
			o.memory, o.bus, o.diskSize, o.ports, o.cpus, o.tpm = "1GiB", "nvme", "16g", []string{"443", "8080:80"}, 1, true
		}, rig.Config{
			Memory: 1 << 30, CPUs: 1, TPM: true, Forwards: []rig.Forward{{Guest: 80, Host: 8080}, {Guest: 443}},
			Disks: []rig.Disk{{Path: image, Overlay: true, Bus: rig.BusNVMe, Size: 16 << 30}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := base
			tc.change(&o)
			got, err := o.config()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestVMRunRefusesBadInput(t *testing.T) {
	image := gptImage(t, 1<<20)
	dir := t.TempDir()
	text := filepath.Join(dir, "letter.txt")
	if err := os.WriteFile(text, []byte("dear owner"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		kind croft.Kind
		says string
	}{
		{"no image", nil, croft.KindUsage, "takes 1 argument"},
		{"an image that is not there", []string{filepath.Join(dir, "none")}, croft.KindNotFound, "make one with `croft image build`"},
		{"a text file", []string{text}, croft.KindInvalid, "has no GPT partition table"},
		{"a folder", []string{dir}, croft.KindInvalid, "is not a regular file"},
		{"an image cut short", []string{gptImage(t, 1<<20+1)}, croft.KindInvalid, "cut short"},
		{"no size", []string{"--memory", "much", image}, croft.KindUsage, `--memory "much": want a size such as 512M or 8G`},
		{"a size beyond all disks", []string{"--disk-size", "99999999999T", image}, croft.KindUsage, "want a size"},
		{"a disk too small", []string{"--disk-size", "512K", image}, croft.KindUsage, "choose a larger disk"},
		{"half a MiB of memory", []string{"--memory", "512K", image}, croft.KindUsage, "whole MiB"},
		{"no processor", []string{"--cpus", "0", image}, croft.KindUsage, "want 1 or more"},
		{"an unknown bus", []string{"--bus", "isa", image}, croft.KindUsage, "want one of [virtio nvme ahci usb scsi]"},
		{"no port", []string{"--port", "http", image}, croft.KindUsage, "want PORT or HERE:PORT"},
		{"port 0", []string{"--port", "0:80", image}, croft.KindUsage, "want PORT or HERE:PORT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := newVMCommand()
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			cmd.SetArgs(append([]string{"run"}, tc.args...))
			cmd.SetOut(t.Output())
			cmd.SetErr(t.Output())
			err := cmd.ExecuteContext(t.Context())
			if err == nil || croft.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error of kind %q: %v\nwant kind %q with %q", croft.KindOf(err), err, tc.kind, tc.says)
			}
		})
	}
}

// fakeMachine turns off a while after its power button is pressed.
type fakeMachine struct {
	rig.Machine
	after   time.Duration // from button to off; 0 for never
	fault   error
	off     chan struct{}
	pressed int
	cut     bool
}

func (m *fakeMachine) PressPower(context.Context) error {
	m.pressed++
	if m.after > 0 {
		time.AfterFunc(m.after, func() { close(m.off) })
	}
	return nil
}

func (m *fakeMachine) Cut() error {
	m.cut = true
	close(m.off)
	return nil
}

func (m *fakeMachine) WaitOff(context.Context) error {
	<-m.off
	return m.fault
}

func TestAttendTurnsTheMachineOff(t *testing.T) {
	fault := errors.New("QEMU ended: signal: killed")
	for _, tc := range []struct {
		name    string
		machine fakeMachine
		signals []time.Duration // when Ctrl-C is pressed
		cancel  time.Duration   // when ctx is cancelled; 0 for never
		pressed int
		cut     bool
		took    time.Duration
	}{
		{"Ctrl-C presses the power button", fakeMachine{after: 5 * time.Second}, []time.Duration{time.Second}, 0, 1, false, 6 * time.Second},
		{"a box that does not listen is cut", fakeMachine{}, []time.Duration{time.Second}, 0, 1, true, 31 * time.Second},
		{"a second Ctrl-C cuts", fakeMachine{}, []time.Duration{time.Second, 3 * time.Second}, 0, 1, true, 3 * time.Second},
		{"one Ctrl-C that comes both ways is one", fakeMachine{after: 5 * time.Second}, []time.Duration{time.Second}, time.Second, 1, false, 6 * time.Second},
		{"a cancelled context presses the power button", fakeMachine{after: 5 * time.Second}, nil, time.Second, 1, false, 6 * time.Second},
		{"a fault ends it", fakeMachine{after: time.Second, fault: fault}, []time.Duration{time.Second}, 0, 1, false, 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &tc.machine
				m.off = make(chan struct{})
				signals := make(chan os.Signal, 8)
				for _, at := range tc.signals {
					time.AfterFunc(at, func() { signals <- unix.SIGINT })
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tc.cancel > 0 {
					time.AfterFunc(tc.cancel, cancel)
				}
				begin := time.Now()
				if err := attend(ctx, m, signals, &bytes.Buffer{}); !errors.Is(err, m.fault) {
					t.Errorf("attend = %v, want %v", err, m.fault)
				}
				if took := time.Since(begin); m.pressed != tc.pressed || m.cut != tc.cut || took != tc.took {
					t.Errorf("pressed %d times, cut %v, took %v; want %d, %v, %v", m.pressed, m.cut, took, tc.pressed, tc.cut, tc.took)
				}
			})
		})
	}
}
