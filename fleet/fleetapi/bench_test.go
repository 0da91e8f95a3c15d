package fleetapi

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const testBoot = "2f1c8a52-3c1e-4d7a-9a60-0b54c7f0e3d9"

// model is a box with four cores, two disks and two leases that reads 80 series
// about itself. Its numbers move as a real one's: counters of hundredths of a
// second and of bytes, sensors of thousandths, loads of two decimals.
type model struct {
	rng      *rand.Rand
	counters map[string]float64
}

func newModel(seed uint64) *model {
	return &model{rand.New(rand.NewPCG(seed, 1)), make(map[string]float64)}
}

func (m *model) read() (readings []Reading) {
	add := func(counter bool, value float64, name string, labels ...string) {
		r := Reading{Name: name, Counter: counter, Value: value}
		for i := 0; i < len(labels); i += 2 {
			r.Labels = append(r.Labels, Label{labels[i], labels[i+1]})
		}
		if counter {
			key := seriesKey(r.Name, r.Labels)
			if _, begun := m.counters[key]; !begun {
				m.counters[key] = math.Round(value * 1000 * (50 + 100*m.rng.Float64()))
			}
			m.counters[key] += value
			r.Value = m.counters[key]
		}
		readings = append(readings, r)
	}
	hundredths := func(most float64) float64 { return math.Round(m.rng.Float64()*most*100) / 100 }
	whole := func(most float64) float64 { return math.Round(m.rng.Float64() * most) }

	for i, mode := range []string{"user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"} {
		add(true, hundredths([]float64{8, 0, 3, 40, .3, 0, .4, 0}[i]), "croft_cpu_seconds_total", "mode", mode)
	}
	add(false, hundredths(3), "croft_load1")
	add(false, hundredths(2), "croft_load5")
	add(false, hundredths(2), "croft_load15")
	for _, resource := range []string{"cpu", "io", "memory"} {
		add(true, whole(90000)/1e6, "croft_pressure_stalled_seconds_total", "kind", "some", "resource", resource)
		if resource != "cpu" {
			add(true, whole(40000)/1e6, "croft_pressure_stalled_seconds_total", "kind", "full", "resource", resource)
		}
	}
	for _, kind := range []string{"total", "available", "cached", "buffers", "dirty", "shared", "slab"} {
		value := 16e9 + 512
		if kind != "total" {
			value = 4096 * math.Round(1e6+whole(3000))
		}
		add(false, value, "croft_memory_bytes", "kind", kind)
	}
	for _, mount := range []string{"/", "/perm"} {
		add(false, 250e9, "croft_filesystem_bytes", "kind", "total", "mount", mount)
		add(false, 100e9+4096*whole(1000), "croft_filesystem_bytes", "kind", "free", "mount", mount)
	}
	for _, disk := range []string{"nvme0n1", "sda"} {
		add(true, 512*whole(2000), "croft_disk_read_bytes_total", "disk", disk)
		add(true, 512*whole(9000), "croft_disk_written_bytes_total", "disk", disk)
		add(true, whole(200), "croft_disk_reads_total", "disk", disk)
		add(true, whole(300), "croft_disk_writes_total", "disk", disk)
		add(true, whole(900)/1000, "croft_disk_busy_seconds_total", "disk", disk)
	}
	for _, sensor := range []string{"package", "core0", "core1", "core2", "core3", "nvme0"} {
		add(false, 45+whole(8), "croft_temperature_celsius", "sensor", sensor)
	}
	add(false, 900+whole(40), "croft_fan_rpm", "sensor", "fan1")
	add(false, 0, "croft_fan_rpm", "sensor", "fan2")
	add(true, 0, "croft_throttled_total")
	for _, direction := range []string{"in", "out"} {
		for _, card := range []string{"eth0", "relay", "lease"} {
			add(true, whole(2e6), "croft_network_bytes_total", "direction", direction, "interface", card)
			add(true, 0, "croft_network_errors_total", "direction", direction, "interface", card)
		}
	}
	for _, lease := range []string{"61042-1-1", "61177-1-1"} {
		add(true, whole(6e6)/1e6, "croft_lease_cpu_seconds_total", "lease", lease)
		add(false, 4096*(30000+whole(500)), "croft_lease_memory_bytes", "lease", lease)
		add(true, whole(1e6), "croft_lease_network_bytes_total", "direction", "in", "lease", lease)
		add(true, whole(4e6), "croft_lease_network_bytes_total", "direction", "out", "lease", lease)
	}
	add(false, whole(100), "croft_gpu_utilisation_percent", "gpu", "0")
	add(false, 30+whole(8e4)/1000, "croft_gpu_power_watts", "gpu", "0")
	add(false, 44+whole(20), "croft_gpu_temperature_celsius", "gpu", "0")
	add(false, 1<<20*(900+whole(20)), "croft_gpu_memory_bytes", "gpu", "0", "kind", "used")
	add(false, 8<<30, "croft_gpu_memory_bytes", "gpu", "0", "kind", "total")
	add(true, 0, "croft_gpu_ecc_errors_total", "gpu", "0")
	add(false, 1e6*(210+15*whole(80)), "croft_gpu_clock_hertz", "domain", "sm", "gpu", "0")
	add(false, 405e6, "croft_gpu_clock_hertz", "domain", "memory", "gpu", "0")
	add(true, hundredths(.2), "croft_agent_cpu_seconds_total")
	add(false, 4096*(11000+whole(300)), "croft_agent_memory_bytes")
	add(false, 60+whole(10), "croft_agent_goroutines")
	add(false, whole(3)*4096, "croft_agent_spool_bytes")
	add(true, 0, "croft_agent_restarts_total")
	add(false, m.rng.NormFloat64()/1e4, "croft_clock_offset_seconds")
	add(false, 10*86400+whole(60), "croft_uptime_seconds")
	for len(readings) < 80 {
		add(true, whole(5), fmt.Sprintf("croft_agent_reports_%c_total", 'a'+rune(len(readings)%26)))
	}
	return readings[:80]
}

// batch is one minute of the model, read that many times.
func (m *model) batch(tb testing.TB, instants int) *Batch {
	tb.Helper()
	interval := time.Minute / time.Duration(instants)
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	var b Builder
	for i := range instants {
		late := time.Duration(m.rng.IntN(4)) * time.Millisecond
		if err := b.Add(at.Add(time.Duration(i)*interval+late), m.read()); err != nil {
			tb.Fatal(err)
		}
	}
	batch := b.Take()
	batch.Epoch, batch.Seq, batch.BootID, batch.Synced, batch.Interval = 17, 421, testBoot, true, interval
	return batch
}

var minutes = []int{1, 4, 6, 12, 60}

func BenchmarkEncode(b *testing.B) {
	for _, instants := range minutes {
		b.Run(fmt.Sprintf("series=80/instants=%d", instants), func(b *testing.B) {
			batch := newModel(7).batch(b, instants)
			var raw []byte
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if raw, err = Encode(batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(raw)), "bytes/batch")
			b.ReportMetric(float64(len(raw))/80, "bytes/series")
			b.ReportMetric(float64(len(raw))/float64(80*instants), "bytes/value")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, instants := range minutes {
		b.Run(fmt.Sprintf("series=80/instants=%d", instants), func(b *testing.B) {
			raw, err := Encode(newModel(7).batch(b, instants))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse[Batch](raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
