package inventory

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func read(t *testing.T, name string, gpus GPULister) Machine {
	t.Helper()
	m, err := Read(t.Context(), filepath.Join("testdata", name), gpus)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRecordedMachines(t *testing.T) {
	for _, tc := range []struct {
		name  string
		want  Machine
		notes int
	}{
		{"nuc", Machine{
			Board:  "Intel(R) Client Systems NUC12WSHi5",
			CPU:    CPU{Model: "12th Gen Intel(R) Core(TM) i5-1240P", Vendor: "intel", Arch: "x86-64", Threads: 16, Cores: 12},
			Memory: Memory{Bytes: 32565432 << 10, Type: "ddr4"},
			Disks: []Disk{
				{"nvme0n1", "Samsung SSD 980 PRO 1TB", 1953525168 * 512, Beta3},
				{"sda", "WDC WD40EFRX", 7814037168 * 512, Beta1},
				{"sdd", "Crucial MX500", 500118192 * 512, Beta2},
			},
			Links: []Link{{"enp1s0", true, 2500, false}, {"wlp2s0", false, 0, true}},
		}, 0},
		{"raspberry", Machine{
			Board:  "Raspberry Pi 5 Model B Rev 1.0",
			CPU:    CPU{Model: "Raspberry Pi 5 Model B Rev 1.0", Vendor: "arm", Arch: "arm-64", Threads: 4, Cores: 4},
			Memory: Memory{Bytes: 8245232 << 10},
			Disks:  []Disk{{"mmcblk0", "", 125042688 * 512, Beta1}},
			Links:  []Link{{"eth0", true, 1000, false}},
		}, 0},
		{"build-vm", Machine{
			CPU:     CPU{Model: "Intel(R) Xeon(R) Processor", Vendor: "intel", Arch: "x86-64", Threads: 2, Cores: 2},
			Memory:  Memory{Bytes: 24684084 << 10},
			Disks:   []Disk{{"vda", "", 536870912 * 512, Beta1}},
			Links:   []Link{{"eth0", true, 0, false}},
			Virtual: true,
		}, 0},
		{"broken", Machine{
			CPU:    CPU{Threads: 1, Cores: 1},
			Memory: Memory{Bytes: 1 << 30},
			Links:  []Link{{"eth0", false, 0, false}},
		}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := read(t, tc.name, nil)
			ignore := []cmp.Option{cmpopts.IgnoreFields(CPU{}, "Features"), cmpopts.IgnoreFields(Machine{}, "Notes")}
			if diff := cmp.Diff(tc.want, m, ignore...); diff != "" {
				t.Error(diff)
			}
			if len(m.Notes) != tc.notes {
				t.Errorf("notes are %q", m.Notes)
			}
		})
	}
}

func TestMachineWithoutProcessorsOrMemoryIsAnError(t *testing.T) {
	if _, err := Read(t.Context(), t.TempDir(), nil); err == nil {
		t.Error("an empty tree is a machine")
	}
	for _, text := range []string{"", "MemTotal: 0 kB\n", "MemTotal: -5 kB\n", "MemTotal: 99999999999999999999 kB\n", "MemTotal: 9223372036854775807 kB\n", "MemFree: 7 kB\n"} {
		if n, err := parseMemory(text); err == nil {
			t.Errorf("%q is %d bytes", text, n)
		}
	}
	if _, err := parseCPU(strings.Repeat("processor : 0\n", maxThreads+1)); err == nil {
		t.Error("any number of processors is believed")
	}
}

func TestTheBoxKeepsItsShare(t *testing.T) {
	for _, tc := range []struct {
		name        string
		threads     int
		memory      int64
		cpu, leased int64
	}{
		{"nuc", 16, 32 << 30, 15_500, 29 << 30},
		{"small", 1, 1 << 30, 750, 704 << 20},
	} {
		c := Machine{CPU: CPU{Threads: tc.threads}, Memory: Memory{Bytes: tc.memory}, GPUs: make([]GPU, 2)}.Capacity()
		if c != (Capacity{CPU: tc.cpu, Memory: tc.leased, GPUs: 2}) {
			t.Errorf("%s: capacity is %+v, want %d and %d", tc.name, c, tc.cpu, tc.leased)
		}
	}
}

type gpus struct {
	list []GPU
	err  error
}

func (g gpus) GPUs(context.Context) ([]GPU, error) { return g.list, g.err }

func TestAttributesAreTheConsolesKeys(t *testing.T) {
	m := read(t, "nuc", gpus{list: []GPU{
		{"nvidia", "rtx4090", "24Gi", "pcie"},
		{"nvidia", "evil/../key=\n", "", ""},
		{"", "nameless", "", ""},
	}})
	m.Memory.ECC = true
	want := []Attribute{
		{"capabilities/cpu", "intel"},
		{"capabilities/cpu/arch", "x86-64"},
		{"capabilities/gpu", "nvidia"},
		{"capabilities/gpu/vendor/nvidia/model/evilkey", "true"},
		{"capabilities/gpu/vendor/nvidia/model/rtx4090", "true"},
		{"capabilities/gpu/vendor/nvidia/model/rtx4090/interface/pcie", "true"},
		{"capabilities/gpu/vendor/nvidia/model/rtx4090/ram/24Gi", "true"},
		{"capabilities/gpu/vendor/nvidia/model/rtx4090/ram/24Gi/interface/pcie", "true"},
		{"capabilities/memory", "ddr4ecc"},
		{"capabilities/storage/1/class", "beta3"},
		{"capabilities/storage/1/persistent", "true"},
		{"feat-persistent-storage", "true"},
	}
	if diff := cmp.Diff(want, m.Attributes(Beta3)); diff != "" {
		t.Error(diff)
	}
	// What is not known is not claimed.
	if got := read(t, "broken", nil).Attributes(""); len(got) != 0 {
		t.Errorf("attributes are %v", got)
	}
}

func TestGPUsThatCannotBeReadLeaveTheRest(t *testing.T) {
	m := read(t, "nuc", gpus{err: errors.New("no driver")})
	if len(m.GPUs) != 0 || len(m.Notes) != 1 || !strings.Contains(m.Notes[0], "no driver") {
		t.Errorf("GPUs are %v, notes %q", m.GPUs, m.Notes)
	}
}

func TestMemoryDevices(t *testing.T) {
	device := func(total, data, size, kind byte) []byte {
		s := make([]byte, 27)
		s[0], s[1], s[8], s[10], s[12], s[18] = 17, 27, total, data, size, kind
		return append(s, "DIMM\x00\x00"...)
	}
	for _, tc := range []struct {
		name string
		raw  []byte
		kind string
		ecc  bool
	}{
		{"72 bits for 64 are ECC", device(72, 64, 1, 0x22), "ddr5", true},
		{"64 bits for 64 are not", device(64, 64, 1, 0x1a), "ddr4", false},
		{"an empty socket says nothing", append(device(72, 64, 0, 0x22), device(64, 64, 1, 0x1a)...), "ddr4", false},
		{"an unknown kind says nothing", device(72, 64, 1, 0xee), "", false},
		{"an unknown width is not ECC", device(72, 0, 1, 0x22), "ddr5", false},
		{"cut off", device(72, 64, 1, 0x22)[:20], "", false},
		{"nothing", nil, "", false},
	} {
		if kind, ecc := parseMemoryDevices(tc.raw); kind != tc.kind || ecc != tc.ecc {
			t.Errorf("%s: %q, ECC %v, want %q, %v", tc.name, kind, ecc, tc.kind, tc.ecc)
		}
	}
}

func FuzzParsers(f *testing.F) {
	f.Add("processor : 0\nvendor_id : GenuineIntel\nflags : lm\n")
	f.Add("MemTotal: 12 kB\n")
	f.Add("\x11\x1b\x00\x00\x00\x00\x00\x00\x48\x00\x40\x00\x01\x00\x00\x00\x00\x00\x22\x00\x00")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := parseCPU(text); err == nil && (c.Threads < 1 || c.Cores < 1 || c.Cores > c.Threads) {
			t.Errorf("%+v", c)
		}
		if n, err := parseMemory(text); err == nil && n <= 0 {
			t.Errorf("%d bytes of memory", n)
		}
		if n, err := parseSectors(text); err == nil && n < 0 {
			t.Errorf("%d bytes of disk", n)
		}
		if parseSpeed(text) < 0 {
			t.Error("a negative speed")
		}
		parseMemoryDevices([]byte(text))
	})
}
