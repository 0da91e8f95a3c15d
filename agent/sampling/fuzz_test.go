package sampling

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// seed adds every file of that name, or with that ending, on the recorded machines.
func seed(f *testing.F, name string) {
	f.Helper()
	machines, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	found := false
	for _, machine := range machines {
		archive, err := txtar.ParseFile(machine)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			if strings.HasSuffix(file.Name, name) {
				f.Add(string(file.Data))
				found = true
			}
		}
	}
	if !found {
		f.Fatalf("no machine has %s", name)
	}
}

// counted checks what must hold of all values that count.
func counted(t *testing.T, text string, values ...float64) {
	t.Helper()
	for _, v := range values {
		if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
			t.Errorf("%q gives %v", text, v)
		}
	}
}

func FuzzStat(f *testing.F) {
	seed(f, "proc/stat")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseStat(text)
		if err != nil {
			return
		}
		counted(t, text, append(s.seconds[:], s.blocked)...)
		if s.threads < 1 || s.threads > strings.Count(text, "cpu") {
			t.Errorf("%q has %d threads", text, s.threads)
		}
	})
}

func FuzzLoad(f *testing.F) {
	seed(f, "proc/loadavg")
	f.Fuzz(func(t *testing.T, text string) {
		loads, err := parseLoad(text)
		counted(t, text, loads[:]...)
		if err != nil {
			return
		}
		again, err := parseLoad(fmt.Sprintf("%.9f %.9f %.9f 1/2 3", loads[0], loads[1], loads[2]))
		if err != nil || math.Abs(again[0]-loads[0]) > 1e-9*(1+loads[0]) {
			t.Errorf("%q is %v, and once more %v: %v", text, loads, again, err)
		}
	})
}

func FuzzPressure(f *testing.F) {
	seed(f, "pressure/cpu")
	seed(f, "pressure/io")
	f.Fuzz(func(t *testing.T, text string) {
		stalls, err := parsePressure(text)
		if (err == nil) != (len(stalls) > 0) || len(stalls) > 2 {
			t.Errorf("%q gives %v and %v", text, stalls, err)
		}
		for _, s := range stalls {
			counted(t, text, s.seconds)
		}
	})
}

func FuzzMemory(f *testing.F) {
	seed(f, "proc/meminfo")
	f.Fuzz(func(t *testing.T, text string) {
		values, err := parseMemory(text)
		if err == nil && len(values) == 0 {
			t.Errorf("%q is without sizes and without an error", text)
		}
		for _, v := range values {
			counted(t, text, v)
		}
	})
}

func FuzzOOMKills(f *testing.F) {
	seed(f, "proc/vmstat")
	f.Fuzz(func(t *testing.T, text string) {
		kills, err := parseOOMKills(text)
		counted(t, text, kills)
		if err == nil && !strings.Contains(text, "oom_kill ") {
			t.Errorf("%q has %v kills", text, kills)
		}
	})
}

func FuzzMounts(f *testing.F) {
	seed(f, "self/mountinfo")
	f.Fuzz(func(t *testing.T, text string) {
		mounts, err := parseMounts(text)
		lines := 0
		for range strings.Lines(text) {
			lines++
		}
		if (err == nil) != (len(mounts) == lines) {
			t.Errorf("%d of %d lines are mounts: %v", len(mounts), lines, err)
		}
		for _, m := range mounts {
			if m.point == "" || m.kind == "" || m.source == "" || strings.ContainsAny(m.point, " \n") {
				t.Errorf("%q gives %+v", text, m)
			}
		}
	})
}

func FuzzDisk(f *testing.F) {
	seed(f, "nvme0n1/stat")
	seed(f, "sda/stat")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDisk(text)
		counted(t, text, d.reads, d.readBytes, d.readSeconds, d.writes, d.writtenBytes, d.writeSeconds, d.busySeconds)
		if err != nil && d != (disk{}) {
			t.Errorf("%q gives %+v and %v", text, d, err)
		}
	})
}

func FuzzWear(f *testing.F) {
	seed(f, "device/life_time")
	f.Fuzz(func(t *testing.T, text string) {
		tenths, err := parseWear(text)
		if tenths > 11 {
			t.Errorf("%q is %d", text, tenths)
		}
		if err != nil {
			return
		}
		if again, err := parseWear(fmt.Sprintf("0x%02x 0x00", tenths)); err != nil || again != tenths {
			t.Errorf("%q is %d, and once more %d: %v", text, tenths, again, err)
		}
	})
}

func FuzzSelf(f *testing.F) {
	seed(f, "self/stat")
	f.Fuzz(func(t *testing.T, text string) {
		user, system, err := parseSelf(text)
		counted(t, text, user, system)
		if err != nil {
			return
		}
		// Whatever the program calls itself changes nothing.
		after := text[strings.LastIndexByte(text, ')')+1:]
		u, s, err := parseSelf("1 (a) R 2 (b)" + after)
		if u != user || s != system || err != nil {
			t.Errorf("%q is %v and %v, under another name %v and %v: %v", text, user, system, u, s, err)
		}
	})
}

func FuzzStatus(f *testing.F) {
	seed(f, "self/status")
	f.Fuzz(func(t *testing.T, text string) {
		resident, threads, _ := parseStatus(text)
		counted(t, text, resident, threads)
	})
}

func FuzzNumbers(f *testing.F) {
	seed(f, "_count")
	seed(f, "temp1_input")
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parseInt(text); err == nil {
			if again, err := parseInt(fmt.Sprintf("%.0f\n", n)); err == nil && again != n {
				t.Errorf("%q is %v, and once more %v", text, n, again)
			}
		}
		if n, err := parseCount(text); err == nil {
			counted(t, text, n)
		}
		if n, err := parseDecimal(text); err == nil {
			counted(t, text, n)
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"Package id 0", "nvme0", "\x00ü\xff", strings.Repeat("x", 500), ""} {
		f.Add(name, name)
	}
	f.Fuzz(func(t *testing.T, name, unit string) {
		for _, got := range []string{label(name), sensorName(chipName(name, unit))} {
			if len(got) > maxLabel || label(got) != got || strings.ContainsAny(got, " \"\n\\{}=,") {
				t.Errorf("%q of %q is the label %q", name, unit, got)
			}
		}
		if sensorName(sensorName(name)) != sensorName(name) {
			t.Errorf("%q changes when it is named once more", name)
		}
		if controller, ok := nvmeController(name); ok && !strings.HasPrefix(name, controller+"n") {
			t.Errorf("%q is a part of %q", name, controller)
		}
	})
}
