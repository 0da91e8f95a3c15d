package simbox

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// model makes up what a box reads about itself. Each number is a function of the
// box's seed, the time and the time of its boot, so that a box needs no memory of
// its readings, and two that look at the same moment see the same.
type model struct {
	seed float64 // 0..1
	boot time.Time
}

// The made-up machine.
const (
	threads = 4
	memory  = 16 << 30
	disk    = 512 << 30
)

func newModel(number uint64, boot time.Time) model {
	const golden = 0.6180339887498949
	_, seed := math.Modf(float64(number+1) * golden)
	return model{seed: seed, boot: boot}
}

// wave is one rhythm of the load.
type wave struct{ most, period, phase float64 }

func (m model) waves() [3]wave {
	return [3]wave{
		{0.22, 86400, 0.2 + 0.2*m.seed}, // the day
		{0.10, 1830, m.seed},
		{0.05, 211, 3 * m.seed},
	}
}

const meanLoad = 0.4

// load is the share of the threads that are busy, 0.03 to 0.77.
func (m model) load(at float64) float64 {
	sum := meanLoad
	for _, w := range m.waves() {
		sum += w.most * math.Sin(2*math.Pi*(at/w.period+w.phase))
	}
	return sum
}

// busy is the integral of load from one time to another, in seconds.
func (m model) busy(from, to float64) float64 {
	sum := meanLoad * (to - from)
	for _, w := range m.waves() {
		k := 2 * math.Pi / w.period
		sum += w.most / k * (math.Cos(k*from+2*math.Pi*w.phase) - math.Cos(k*to+2*math.Pi*w.phase))
	}
	return sum
}

// lease is one of the leases that come and go.
type lease struct {
	name       string
	begin, end time.Time
}

// leases is those that run at a moment: of two places each is let for three
// quarters of the time.
func (m model) leases(now time.Time) (running []lease) {
	for place := range 2 {
		if l := m.lease(place, now); now.Before(l.end) {
			running = append(running, l)
		}
	}
	return running
}

// lease is the one that began last in a place.
func (m model) lease(place int, now time.Time) lease {
	period, shift := m.period(place)
	n := (now.UnixMilli() + shift) / period
	begin := n*period - shift
	return lease{
		name: fmt.Sprintf("%d-%d-1", 2*n+int64(place), place+1), begin: time.UnixMilli(begin), end: time.UnixMilli(begin + period*3/4),
	}
}

// period is from the beginning of one lease in a place to the next, and where that
// lies in time, in milliseconds.
func (m model) period(place int) (every, shift int64) {
	hours := 5 + 2*float64(place) + 3*m.seed
	every = int64(hours * 3600e3)
	return every, int64(m.seed * float64(every))
}

// turn is when a lease begins or ends next.
func (m model) turn(now time.Time) time.Time {
	var next time.Time
	for place := range 2 {
		l := m.lease(place, now)
		at := l.end
		if !now.Before(at) {
			every, _ := m.period(place)
			at = l.begin.Add(time.Duration(every) * time.Millisecond) // the next one begins
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// price is what a lease in a place pays in 30 days, in millionths of an ACT.
func (m model) price(place int) float64 {
	return math.Round((2.5+1.5*float64(place)+3*m.seed)*1e4) * 100
}

// Money: leases pay into the box's account at each full hour; a real box has it
// withdrawn once a day.
const (
	month  = 30 * 24 * time.Hour
	payday = time.Hour
)

// opened is when all boxes began to earn.
var opened = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// earned is what was paid to the box's account so far.
func (m model) earned(now time.Time) float64 {
	now = now.Truncate(payday)
	if now.Before(opened) {
		return 0
	}
	sum := 0.0
	for place := range 2 {
		every, shift := m.period(place)
		let := func(at time.Time) int64 { // for how long the place was let, since the epoch
			t := at.UnixMilli() + shift
			return t/every*(every*3/4) + min(t%every, every*3/4)
		}
		sum += m.price(place) * float64(let(now)-let(opened)) / float64(month.Milliseconds())
	}
	return math.Floor(sum)
}

// income is what the leases that run pay in a month.
func (m model) income(now time.Time) float64 {
	sum := 0.0
	for place := range 2 {
		every, shift := m.period(place)
		if (now.UnixMilli()+shift)%every < every*3/4 {
			sum += m.price(place)
		}
	}
	return sum
}

func seconds(at time.Time) float64 { return float64(at.UnixMilli()) / 1000 }

// moment is what the values at one instant are made from.
type moment struct {
	now, up float64 // seconds: of the time, since the boot
	load    float64
	busy    float64 // seconds of all threads together, divided by them, since the boot
	heat    float64 // the load as the metal has followed it
	synced  bool

	earned, income float64 // millionths of an ACT: so far; in a month
}

func (m model) moment(at time.Time, synced bool) moment {
	now, boot := seconds(at), seconds(m.boot)
	return moment{
		now: now, up: now - boot, load: m.load(now), busy: m.busy(boot, now), heat: m.busy(now-120, now) / 120, synced: synced,
		earned: m.earned(at), income: m.income(at),
	}
}

// row is one series: its name and labels, and how its values come about.
type row struct {
	name    string
	labels  []fleetapi.Label // sorted
	counter bool
	value   func(moment) float64
}

// figure is a value without labels, or with those given in the order of
// sampling's table.
type figure struct {
	name   string
	labels string // with spaces between them
	value  func(moment) float64
}

func fixed(v float64) func(moment) float64 { return func(moment) float64 { return v } }

// grows is a counter of so much a second, and so much more a second of load.
func grows(idle, loaded, step float64) func(moment) float64 {
	return func(m moment) float64 { return round(idle*m.up+loaded*m.busy, step) }
}

// follows is a value that goes from one to the other with the load.
func follows(idle, loaded, step float64) func(moment) float64 {
	return func(m moment) float64 { return round(idle+(loaded-idle)*m.load, step) }
}

// warms is the same with the heat.
func warms(idle, loaded, step float64) func(moment) float64 {
	return func(m moment) float64 { return round(idle+(loaded-idle)*m.heat, step) }
}

func round(v, step float64) float64 { return math.Round(v/step) * step }

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// figures are the readings of every box.
func figures() []figure {
	all := []figure{
		{"croft_cpu_seconds_total", "user", grows(0, 0.7*threads, 0.01)},
		{"croft_cpu_seconds_total", "nice", fixed(0)},
		{"croft_cpu_seconds_total", "system", grows(0, 0.25*threads, 0.01)},
		{"croft_cpu_seconds_total", "idle", grows(0.98*threads, -0.98*threads, 0.01)},
		{"croft_cpu_seconds_total", "iowait", grows(0.02*threads, -0.02*threads, 0.01)},
		{"croft_cpu_seconds_total", "irq", grows(0, 0.01*threads, 0.01)},
		{"croft_cpu_seconds_total", "softirq", grows(0, 0.04*threads, 0.01)},
		{"croft_cpu_seconds_total", "steal", fixed(0)},
		{"croft_cpu_threads", "", fixed(threads)},
		{"croft_tasks_blocked", "", func(m moment) float64 { return math.Floor(3 * m.load * m.load) }},
		{"croft_load1", "", follows(0, threads, 0.01)},
		{"croft_load5", "", warms(0, threads, 0.01)},
		{"croft_load15", "", warms(0.1, threads, 0.01)},
		{"croft_cpu_frequency_hertz", "mean", follows(0.8e9, 3.4e9, 1e6)},
		{"croft_cpu_frequency_hertz", "highest", follows(1.2e9, 3.4e9, 1e6)},
		{"croft_cpu_frequency_hertz", "limit", fixed(3.4e9)},
		{"croft_cpu_frequency_hertz", "rated", fixed(3.4e9)},
		{"croft_throttled_total", "core", grows(0, 1e-4, 1)},
		{"croft_throttled_total", "package", grows(0, 1e-5, 1)},
		{"croft_throttled_seconds_total", "core", grows(0, 2e-4, 0.001)},
		{"croft_throttled_seconds_total", "package", grows(0, 2e-5, 0.001)},
		{"croft_pressure_stalled_seconds_total", "cpu some", grows(0, 0.05, 1e-6)},
		{"croft_pressure_stalled_seconds_total", "memory some", grows(0, 0.001, 1e-6)},
		{"croft_pressure_stalled_seconds_total", "memory full", grows(0, 0.0005, 1e-6)},
		{"croft_pressure_stalled_seconds_total", "io some", grows(0, 0.03, 1e-6)},
		{"croft_pressure_stalled_seconds_total", "io full", grows(0, 0.01, 1e-6)},
		{"croft_memory_bytes", "total", fixed(memory)},
		{"croft_memory_bytes", "free", follows(0.5*memory, 0.2*memory, 4096)},
		{"croft_memory_bytes", "available", follows(0.8*memory, 0.5*memory, 4096)},
		{"croft_memory_bytes", "cached", follows(0.25*memory, 0.35*memory, 4096)},
		{"croft_memory_bytes", "slab", follows(0.02*memory, 0.03*memory, 4096)},
		{"croft_memory_bytes", "slab_unreclaimable", follows(0.01*memory, 0.012*memory, 4096)},
		{"croft_memory_bytes", "dirty", follows(1<<20, 40<<20, 4096)},
		{"croft_memory_bytes", "swap_total", fixed(0)},
		{"croft_memory_bytes", "swap_free", fixed(0)},
		{"croft_oom_kills_total", "", fixed(0)},
		{"croft_uptime_seconds", "", func(m moment) float64 { return round(m.up, 0.01) }},
		{"croft_kernel_oopses_total", "", fixed(0)},
		{"croft_kernel_warnings_total", "", fixed(1)},
		{"croft_conntrack_entries", "used", follows(40, 900, 1)},
		{"croft_conntrack_entries", "max", fixed(262144)},
		{"croft_filesystem_bytes", "/perm size", fixed(0.97 * disk)},
		{"croft_filesystem_bytes", "/perm available", follows(0.8*disk, 0.6*disk, 4096)},
		{"croft_filesystem_inodes", "/perm size", fixed(32e6)},
		{"croft_filesystem_inodes", "/perm available", follows(31.9e6, 31.5e6, 1)},
		{"croft_filesystem_readonly", "/perm", fixed(0)},
		{"croft_filesystem_errors_total", "/perm", fixed(0)},
		{"croft_temperature_celsius", "package", warms(38, 82, 1)},
		{"croft_temperature_celsius", "board", warms(34, 50, 0.5)},
		{"croft_temperature_celsius", "nvme0", warms(36, 62, 0.85)},
		{"croft_temperature_limit_celsius", "package", fixed(105)},
		{"croft_temperature_limit_celsius", "nvme0", fixed(84.85)},
		{"croft_fan_rpm", "fan1", warms(700, 3200, 1)},
		{"croft_cooling_ratio", "Processor", fixed(0)},
		{"croft_energy_joules_total", "package", grows(4, 22, 0.001)},
		{"croft_energy_joules_total", "psys", grows(9, 26, 0.001)},
		{"croft_network_carrier_changes_total", "eth0", fixed(2)},
		{"croft_network_up", "eth0", fixed(1)},
		{"croft_network_speed_bits_per_second", "eth0", fixed(1e9)},
		{"croft_clock_synced", "", func(m moment) float64 { return bit(m.synced) }},
		{"croft_clock_offset_seconds", "", func(m moment) float64 {
			if !m.synced {
				return math.NaN()
			}
			return round(0.002*math.Sin(m.now/500), 1e-6)
		}},
		{"croft_clock_error_seconds", "", func(m moment) float64 {
			if !m.synced {
				return math.NaN()
			}
			return round(0.01+0.005*math.Sin(m.now/900), 1e-6)
		}},
		{"croft_earned_total", "uact", func(m moment) float64 { return m.earned }},
		{"croft_income_month", "uact", func(m moment) float64 { return m.income }},
		{"croft_agent_cpu_seconds_total", "user", grows(0.004, 0, 0.01)},
		{"croft_agent_cpu_seconds_total", "system", grows(0.002, 0, 0.01)},
		{"croft_agent_memory_bytes", "resident", follows(42<<20, 48<<20, 4096)},
		{"croft_agent_memory_bytes", "heap", follows(18<<20, 24<<20, 8)},
		{"croft_agent_memory_bytes", "runtime", fixed(39 << 20)},
		{"croft_agent_goroutines", "", follows(60, 90, 1)},
		{"croft_agent_threads", "", fixed(11)},
		{"croft_agent_open_files", "", follows(30, 45, 1)},
		{"croft_agent_gc_cycles_total", "", grows(0.01, 0, 1)},
		{"croft_agent_gc_cpu_seconds_total", "", grows(0.0002, 0, 1e-6)},
	}
	for _, f := range []struct {
		name         string
		idle, loaded float64
		step         float64
	}{
		{"croft_disk_reads_total", 2, 60, 1},
		{"croft_disk_writes_total", 5, 90, 1},
		{"croft_disk_read_bytes_total", 32e3, 3e6, 512},
		{"croft_disk_written_bytes_total", 90e3, 5e6, 512},
		{"croft_disk_read_seconds_total", 0.0002, 0.02, 0.001},
		{"croft_disk_write_seconds_total", 0.001, 0.08, 0.001},
		{"croft_disk_busy_seconds_total", 0.001, 0.07, 0.001},
	} {
		all = append(all, figure{f.name, "nvme0n1", grows(f.idle, f.loaded, f.step)})
	}
	all = append(all, figure{"croft_disk_online", "nvme0n1", fixed(1)})
	for _, direction := range []string{"in", "out"} {
		all = append(all,
			figure{"croft_network_bytes_total", "eth0 " + direction, grows(900, 1.2e6, 1)},
			figure{"croft_network_packets_total", "eth0 " + direction, grows(4, 1100, 1)},
			figure{"croft_network_errors_total", "eth0 " + direction, fixed(0)},
			figure{"croft_network_drops_total", "eth0 " + direction, grows(0.0001, 0, 1)})
	}
	return all
}

// leaseFigures are the readings of one lease.
func (m model) leaseFigures(l lease) []figure {
	begin := seconds(l.begin)
	used := func(perSecond, step float64) func(moment) float64 {
		return func(at moment) float64 { return round(perSecond*m.busy(begin, at.now), step) }
	}
	return []figure{
		{"croft_lease_cpu_seconds_total", l.name, used(0.45*threads, 1e-6)},
		{"croft_lease_memory_bytes", l.name, follows(0.1*memory, 0.25*memory, 4096)},
		{"croft_lease_disk_bytes", l.name, used(9000, 4096)},
		{"croft_lease_network_bytes_total", l.name + " in", used(4e5, 1)},
		{"croft_lease_network_bytes_total", l.name + " out", used(5e5, 1)},
	}
}

// metrics is sampling's table by name.
var metrics = func() map[string]sampling.Metric {
	all := make(map[string]sampling.Metric)
	for _, m := range sampling.Table() {
		all[m.Name] = m
	}
	return all
}()

// common are the rows of figures.
var common = rows(figures())

// rows joins figures with sampling's table and sorts them as a batch wants it.
func rows(of []figure) []row {
	all := make([]row, len(of))
	for i, f := range of {
		metric := metrics[f.name]
		all[i] = row{name: f.name, counter: metric.Counter, value: f.value}
		for k, value := range strings.Fields(f.labels) {
			all[i].labels = append(all[i].labels, fleetapi.Label{Name: metric.Labels[k], Value: value})
		}
		slices.SortFunc(all[i].labels, func(a, b fleetapi.Label) int { return cmp.Compare(a.Name, b.Name) })
	}
	slices.SortFunc(all, compareRows)
	return all
}

func compareRows(a, b row) int {
	byBoth := func(a, b fleetapi.Label) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Value, b.Value))
	}
	return cmp.Or(cmp.Compare(a.name, b.name), slices.CompareFunc(a.labels, b.labels, byBoth))
}

// rows is what the box reads at a moment, in order.
func (m model) rows(now time.Time) []row {
	var let []figure
	for _, l := range m.leases(now) {
		let = append(let, m.leaseFigures(l)...)
	}
	all := append(make([]row, 0, len(common)+len(let)), common...)
	for _, r := range rows(let) {
		i, _ := slices.BinarySearchFunc(all, r, compareRows)
		all = slices.Insert(all, i, r)
	}
	return all
}

// batch is what the box read at n instants up to now.
func (m model) batch(now time.Time, n int, every time.Duration) *fleetapi.Batch {
	b := &fleetapi.Batch{Synced: true, Interval: every}
	moments := make([]moment, n)
	for i := range moments {
		at := fleetapi.Truncate(now.Add(time.Duration(i+1-n) * every))
		b.Times = append(b.Times, at)
		moments[i] = m.moment(at, true)
	}
	values := make([]float64, 0, n*(len(common)+10))
	for _, r := range m.rows(now) {
		from := len(values)
		for _, at := range moments {
			values = append(values, r.value(at))
		}
		b.Series = append(b.Series, fleetapi.Series{Name: r.name, Labels: r.labels, Counter: r.counter, Values: values[from:len(values):len(values)]})
	}
	return b
}

// sampler reads the made-up machine of a [Box].
type sampler struct {
	model model
	clock *Clock
}

// Read implements uplink.Sampler. The machine lives in true time, whatever the
// box's clock says.
func (s *sampler) Read(context.Context) ([]fleetapi.Reading, time.Time) {
	now := time.Now()
	at, synced := s.clock.Now()
	return s.model.readings(now, synced), at
}

func (m model) readings(now time.Time, synced bool) []fleetapi.Reading {
	all, at := m.rows(now), m.moment(now, synced)
	readings := make([]fleetapi.Reading, len(all))
	for i, r := range all {
		readings[i] = fleetapi.Reading{Name: r.name, Labels: r.labels, Counter: r.counter, Value: r.value(at)}
	}
	return readings
}

// Readings is what box number n of a crowd reads about itself at a moment, for those
// who carry it to other places than a fleet.
func Readings(n uint64, boot, now time.Time) []fleetapi.Reading {
	return newModel(n, boot).readings(now, true)
}

// facts are what the made-up machine found in itself.
func facts(words string) map[string]string {
	return map[string]string{
		"cpu_model": "Intel(R) N100", "cpu_threads": strconv.Itoa(threads), "memory_bytes": strconv.Itoa(memory),
		"disk_bytes": strconv.Itoa(disk), "simulated": "yes", "claim_words": words,
	}
}
