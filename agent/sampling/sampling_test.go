package sampling

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

var update = flag.Bool("update", false, "rewrite READINGS.md and the golden files")

// unpack makes the tree of a machine. "-- link -> target --" is a symbolic link, and what
// it leads to exists.
func unpack(t testing.TB, machine string) (root string) {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("testdata", machine+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	root = t.TempDir()
	for _, f := range archive.Files {
		name, target, link := strings.Cut(f.Name, " -> ")
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		err := os.MkdirAll(dir, 0o755)
		if link {
			err = errors.Join(err, os.MkdirAll(filepath.Join(dir, target), 0o755), os.Symlink(target, path))
		} else {
			err = errors.Join(err, os.WriteFile(path, f.Data, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// on makes a Sampler of an unpacked machine, whose /perm has 1 GiB.
func on(t testing.TB, root string, cfg Config) *Sampler {
	t.Helper()
	cfg.Root = root
	if cfg.Clock == nil {
		cfg.Clock = func() (Clock, error) {
			return Clock{Synced: true, Offset: new(-1500 * time.Microsecond), Error: new(20 * time.Millisecond)}, nil
		}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.statfs = func(path string, st *unix.Statfs_t) error {
		switch path {
		case filepath.Join(root, "perm"):
			*st = unix.Statfs_t{Bsize: 1 << 20, Frsize: 4096, Blocks: 1 << 18, Bfree: 1 << 17, Bavail: 1 << 16, Files: 65536, Ffree: 60000}
		case filepath.Join(root, "run/croft/esp"): // FAT has no inodes
			*st = unix.Statfs_t{Frsize: 512, Blocks: 1000, Bavail: 10}
		default:
			return unix.EIO
		}
		return nil
	}
	return s
}

// tenants has one lease that all is known of, one that little is, and several that are wrong.
type tenants struct{}

func (tenants) LeaseUsage(context.Context) ([]LeaseUsage, error) {
	return []LeaseUsage{
		{"l1", new(12.5), new(1048576.0), new(4096.0), new(700.0), new(800.0)},
		{Lease: "l2", CPUSeconds: new(0.0)},
		{Lease: "l1", MemoryBytes: new(1.0)},
		{Lease: "no\nlabel", CPUSeconds: new(1.0)},
		{Lease: "", CPUSeconds: new(1.0)},
		{Lease: "l3", CPUSeconds: new(-1.0), MemoryBytes: new(-1.0), DiskBytes: new(math.NaN()), SentBytes: new(math.Inf(1))},
	}, errors.New("lease l4 does not answer")
}

// purse has coins that all is known of, some that little is, and several that are wrong.
type purse struct{}

func (purse) Earnings(context.Context) ([]Earning, error) {
	return []Earning{
		{"uact", new(int64(1<<53 - 1)), new(int64(4_200_000))},
		{"uakt", new(int64(0)), nil},
		{"ibc/170C677610AC31DF", nil, new(int64(7))},
		{"umax", new(int64(1 << 53)), new(int64(1<<53 + 1))},
		{"uact", nil, new(int64(1))},
		{"", new(int64(1)), nil},
		{"uneg", new(int64(-1)), new(int64(-1))},
	}, errors.New("the chain does not answer")
}

type cards struct{}

func (cards) GPUs(context.Context) ([]GPU, error) {
	return []GPU{
		{
			ID: "GPU-5d1b9c6e", BusyRatio: new(0.97), MemoryBusyRatio: new(0.4),
			MemoryTotalBytes: new(25769803776.0), MemoryUsedBytes: new(1073741824.0),
			PowerWatts: new(312.5), PowerLimitWatts: new(450.0), CoreCelsius: new(67.0), MemoryCelsius: new(-1.0), FanRatio: new(0.3),
			ECCCorrected: new(2.0), ECCUncorrected: new(0.0), CoreHertz: new(2520e6), MemoryHertz: new(10501e6),
			HeatThrottledSeconds: new(1.5), PowerThrottledSeconds: new(90.25),
			PCIeGeneration: new(4.0), PCIeLanes: new(16.0), PCIeReplays: new(0.0),
		},
		{ID: "GPU-silent"},
	}, nil
}

// text writes readings as Prometheus would, and what this process itself tells as "*".
func text(readings []fleetapi.Reading) string {
	var b strings.Builder
	for _, r := range readings {
		b.WriteString(r.Name)
		for i, l := range r.Labels {
			fmt.Fprintf(&b, "%s%s=%q", map[bool]string{true: "{", false: ","}[i == 0], l.Name, l.Value)
		}
		if len(r.Labels) > 0 {
			b.WriteString("}")
		}
		value := strconv.FormatFloat(r.Value, 'f', -1, 64)
		if fromRuntime(r) {
			value = "*"
		}
		b.WriteString(" " + value + "\n")
	}
	return b.String()
}

func fromRuntime(r fleetapi.Reading) bool {
	switch r.Name {
	case "croft_agent_goroutines", "croft_agent_gc_cycles_total", "croft_agent_gc_cpu_seconds_total":
		return true
	case "croft_agent_memory_bytes":
		return r.Labels[0].Value != "resident"
	}
	return false
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (go test -update rewrites it):\n%s", file, diff)
	}
}

var machines = []struct {
	name string
	cfg  Config
}{
	{"build-vm", Config{}},
	{"mini-pc", Config{Mounts: []string{"/perm", "/run/croft/esp", "/gone"}, Leases: tenants{}, Earnings: purse{}, GPUs: cards{}}},
	{"raspberry", Config{Clock: func() (Clock, error) { return Clock{}, nil }}},
	{"broken", Config{Clock: func() (Clock, error) { return Clock{}, errors.New("no clock") }}},
}

func TestRecordedMachines(t *testing.T) {
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			s := on(t, unpack(t, m.name), m.cfg)
			readings, _ := s.Read(t.Context())
			got := text(readings)
			for _, miss := range s.Misses() {
				got += fmt.Sprintf("# %s: %d missed, last: %s\n", miss.Group, miss.Count, miss.Last)
			}
			golden(t, filepath.Join("testdata", m.name+".golden"), got)
		})
	}
}

func TestTheTableIsWhatIsRead(t *testing.T) {
	rows := map[string]Metric{}
	doc := "# What a box reads about itself\n\n" +
		"Written by `go test ./agent/sampling -update` from its table; do not edit.\n\n" +
		"| name | labels | unit | kind | source | meaning |\n|---|---|---|---|---|---|\n"
	for _, m := range Table() {
		kind := "gauge"
		if m.Counter {
			kind = "counter"
		}
		if m.Counter != strings.HasSuffix(m.Name, "_total") || !strings.HasPrefix(m.Name, "croft_") || m.Unit == "" || m.Source == "" || m.Help == "" {
			t.Errorf("%+v breaks the conventions", m)
		}
		if _, ok := rows[m.Name]; ok {
			t.Errorf("%s stands twice in the table", m.Name)
		}
		rows[m.Name] = m
		doc += "| " + strings.Join([]string{m.Name, strings.Join(m.Labels, ", "), m.Unit, kind, strings.ReplaceAll(m.Source, "*", `\*`), m.Help}, " | ") + " |\n"
	}
	golden(t, "READINGS.md", doc)

	read := map[string]bool{}
	for _, machine := range machines {
		readings, _ := on(t, unpack(t, machine.name), machine.cfg).Read(t.Context())
		for _, r := range readings {
			row, ok := rows[r.Name]
			if !ok {
				t.Errorf("%s: %s is not in the table", machine.name, r.Name)
			}
			var labels []string
			for _, l := range r.Labels {
				labels = append(labels, l.Name)
				if label(l.Value) != l.Value && r.Labels[0].Name != "mount" || l.Value == "" {
					t.Errorf("%s: %s has the label %q", machine.name, r.Name, l.Value)
				}
			}
			if !slices.Equal(labels, row.Labels) || r.Counter != row.Counter {
				t.Errorf("%s: %+v is not as the table says", machine.name, r)
			}
			read[r.Name] = true
		}
	}
	for name := range rows {
		if !read[name] {
			t.Errorf("no machine of the tests tells %s", name)
		}
	}
}

func TestThisMachine(t *testing.T) {
	s, err := New(Config{Mounts: []string{"/"}})
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	readings, at := s.Read(t.Context())
	if at.Before(before) || at.After(time.Now()) {
		t.Errorf("read at %v", at)
	}
	got := map[string]float64{}
	for line := range strings.Lines(text(readings)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[series], _ = strconv.ParseFloat(value, 64)
	}
	for _, series := range []string{
		`croft_cpu_seconds_total{mode="user"}`, `croft_memory_bytes{kind="total"}`, `croft_uptime_seconds`,
		`croft_filesystem_bytes{mount="/",kind="size"}`, `croft_agent_memory_bytes{kind="resident"}`, `croft_agent_open_files`,
	} {
		if got[series] <= 0 {
			t.Errorf("%s is %v", series, got[series])
		}
	}
	if id, err := s.BootID(); err != nil || len(id) != 36 {
		t.Errorf("boot id is %q: %v", id, err)
	}
}

func TestABootWithoutAnIDIsAnError(t *testing.T) {
	for _, root := range []string{unpack(t, "broken"), t.TempDir()} {
		if id, err := on(t, root, Config{}).BootID(); err == nil {
			t.Errorf("boot id is %q", id)
		}
	}
}

func TestAnEmptyMachineIsReadWithoutAnError(t *testing.T) {
	s := on(t, t.TempDir(), Config{})
	readings, _ := s.Read(t.Context())
	for _, r := range readings {
		if !fromRuntime(r) && !strings.HasPrefix(r.Name, "croft_clock_") && r.Name != "croft_agent_readings_missed_total" {
			t.Errorf("%s is made up: %v", r.Name, r.Value)
		}
	}
	var groups []string
	for _, m := range s.Misses() {
		groups = append(groups, m.Group)
	}
	if want := []string{"cpu", "memory", "kernel", "filesystem", "agent"}; !slices.Equal(groups, want) {
		t.Errorf("missed groups are %q, want %q", groups, want)
	}
}

// stuck answers when it is let go, whatever ctx says, as a sensor on a dead bus.
type stuck struct{ release chan struct{} }

func (s stuck) LeaseUsage(context.Context) ([]LeaseUsage, error) {
	<-s.release
	return []LeaseUsage{{Lease: "l1", MemoryBytes: new(1.0)}}, nil
}

func TestWhatHangsTakesOnlyItsGroupAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hanging := stuck{make(chan struct{})}
		s := on(t, unpack(t, "mini-pc"), Config{Leases: hanging, GPUs: cards{}, Patience: 5 * time.Second})
		has := func(readings []fleetapi.Reading, name string) bool {
			return slices.ContainsFunc(readings, func(r fleetapi.Reading) bool { return r.Name == name })
		}
		begin := time.Now()
		for i, wait := range []time.Duration{5 * time.Second, 0} { // nobody waits twice for the same
			start := time.Now()
			readings, at := s.Read(t.Context())
			if took := time.Since(start); took != wait || !at.Equal(start) {
				t.Errorf("read %d took %v and says it began %v after it did", i, took, at.Sub(start))
			}
			if has(readings, "croft_lease_memory_bytes") || !has(readings, "croft_gpu_power_watts") || !has(readings, "croft_agent_goroutines") {
				t.Errorf("read %d has the wrong readings: %v", i, readings)
			}
		}
		want := []Miss{{Group: "lease", Count: 2, Last: errBusy.Error(), At: begin.Add(5 * time.Second)}}
		if diff := cmp.Diff(want, s.Misses()); diff != "" {
			t.Error(diff)
		}
		close(hanging.release)
		synctest.Wait()
		if readings, _ := s.Read(t.Context()); !has(readings, "croft_lease_memory_bytes") {
			t.Error("the group stays away after it answered")
		}
	})
}

func TestAReadThatIsCancelledReturnsWhatThereIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hanging := stuck{make(chan struct{})}
		defer close(hanging.release)
		s := on(t, unpack(t, "mini-pc"), Config{Leases: hanging})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		start := time.Now()
		if readings, _ := s.Read(ctx); len(readings) == 0 || time.Since(start) != time.Millisecond {
			t.Errorf("%d readings after %v", len(readings), time.Since(start))
		}
	})
}

func TestSamplersAreSharedSafely(t *testing.T) {
	s := on(t, unpack(t, "mini-pc"), Config{Leases: tenants{}, Earnings: purse{}, GPUs: cards{}})
	want, _ := s.Read(t.Context())
	done := make(chan int)
	for range 4 {
		go func() {
			readings, _ := s.Read(t.Context())
			done <- len(readings)
		}()
	}
	for range 4 {
		if n := <-done; n != len(want) {
			t.Errorf("%d readings, want %d", n, len(want))
		}
	}
}

func TestSettingsThatCannotBeAreRefused(t *testing.T) {
	for _, cfg := range []Config{
		{Patience: -1},
		{Mounts: []string{"perm"}},
		{Mounts: []string{"/a b"}},
		{Mounts: []string{`/a\040b`}},
		{Mounts: []string{"/" + strings.Repeat("x", maxLabel)}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

func TestTheClockIsBelievedOnlyWhenTheKernelVouchesForIt(t *testing.T) {
	for _, tc := range []struct {
		name  string
		state int
		tx    unix.Timex
		want  Clock
	}{
		{"steered in microseconds", unix.TIME_OK, unix.Timex{Offset: -250, Maxerror: 1500}, Clock{true, new(-250 * time.Microsecond), new(1500 * time.Microsecond)}},
		{"steered in nanoseconds", unix.TIME_INS, unix.Timex{Status: unix.STA_PLL | unix.STA_NANO, Offset: 250, Maxerror: 1}, Clock{true, new(250 * time.Nanosecond), new(time.Microsecond)}},
		{"nobody steers", unix.TIME_ERROR, unix.Timex{Maxerror: 16_000_000}, Clock{}},
		{"nobody steers any more", unix.TIME_OK, unix.Timex{Status: unix.STA_UNSYNC, Offset: 9}, Clock{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, parseTimex(tc.state, &tc.tx)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := KernelClock(); err != nil {
		t.Errorf("this kernel does not answer: %v", err)
	}
}

func TestSensorsKeepTheirNamesWhenTheKernelCountsOtherwise(t *testing.T) {
	names := func(root string) (list []string) {
		readings, _ := on(t, root, Config{}).Read(t.Context())
		for _, r := range readings {
			if r.Name == "croft_temperature_celsius" {
				list = append(list, fmt.Sprint(r.Labels[0].Value, r.Value))
			}
		}
		slices.Sort(list)
		return list
	}
	root := unpack(t, "mini-pc")
	before := names(root)
	dir := filepath.Join(root, "sys/class/hwmon")
	for _, move := range [][2]string{{"hwmon1", "hwmon77"}, {"hwmon10", "hwmon1"}, {"hwmon4", "hwmon0x"}, {"hwmon2", "hwmon4"}, {"hwmon0x", "hwmon2"}} {
		if err := os.Rename(filepath.Join(dir, move[0]), filepath.Join(dir, move[1])); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, names(root)); diff != "" || len(before) < 10 {
		t.Errorf("%d sensors:\n%s", len(before), diff)
	}
}

func TestEndlessFilesAndFoldersAreBounded(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "long"), make([]byte, maxFile+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "full"), make([]byte, maxFile-1), 0o644); err != nil {
		t.Fatal(err)
	}
	f := files{root: root}
	if _, err := f.read("long"); err == nil {
		t.Error("a file without end is read")
	}
	if text, err := f.read("full"); err != nil || len(text) != maxFile-1 {
		t.Errorf("%d bytes: %v", len(text), err)
	}
	var p pass
	for i := range maxReadings + 5 {
		p.add(temperature, 1, strconv.Itoa(i))
	}
	if len(p.readings) != maxReadings || p.missed != 5 {
		t.Errorf("%d readings and %d missed", len(p.readings), p.missed)
	}
}

func BenchmarkRead(b *testing.B) {
	for _, bc := range []struct{ name, machine string }{{"this machine", ""}, {"mini-pc as plain files", "mini-pc"}} {
		b.Run(bc.name, func(b *testing.B) {
			cfg := Config{Root: "/", Mounts: []string{"/"}}
			if bc.machine != "" {
				cfg = Config{Root: unpack(b, bc.machine)}
			}
			s, err := New(cfg)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				readings, _ := s.Read(b.Context())
				n = len(readings)
			}
			b.ReportMetric(float64(n), "readings")
		})
	}
}
