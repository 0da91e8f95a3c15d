package sampling

import (
	"slices"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Metric describes all readings of one name.
type Metric struct {
	Name    string
	Labels  []string // names of the labels, in their order
	Unit    string   // "1" for counts and shares
	Counter bool
	Source  string // the file or call that tells
	Help    string
}

// Table returns what [Sampler.Read] may tell. There is no reading beside it.
func Table() []Metric { return slices.Clone(table[:]) }

// metric is a line of the table.
type metric int

const (
	cpuSeconds metric = iota
	cpuThreads
	tasksBlocked
	load1
	load5
	load15
	cpuFrequency
	throttledTimes
	throttledSeconds
	pressureSeconds
	memoryBytes
	oomKills
	uptime
	kernelOopses
	kernelWarnings
	conntrackEntries
	filesystemBytes
	filesystemInodes
	filesystemReadOnly
	filesystemErrors
	diskReads
	diskWrites
	diskReadBytes
	diskWrittenBytes
	diskReadSeconds
	diskWriteSeconds
	diskBusySeconds
	diskOnline
	diskIOErrors
	diskWear
	diskEndOfLife
	temperature
	temperatureLimit
	fanSpeed
	power
	undervoltage
	cooling
	energy
	networkBytes
	networkPackets
	networkErrors
	networkDrops
	networkCarrierChanges
	networkUp
	networkSpeed
	clockSynced
	clockOffset
	clockError
	leaseCPUSeconds
	leaseMemory
	leaseDisk
	leaseNetworkBytes
	earned
	incomeMonth
	gpuBusy
	gpuMemoryBusy
	gpuMemory
	gpuPower
	gpuPowerLimit
	gpuTemperature
	gpuFan
	gpuECCErrors
	gpuClock
	gpuThrottledSeconds
	gpuPCIeGeneration
	gpuPCIeLanes
	gpuPCIeReplays
	agentCPUSeconds
	agentMemory
	agentGoroutines
	agentThreads
	agentOpenFiles
	agentCollections
	agentCollectionSeconds
	readingsMissed
	metricCount
)

const (
	sysCPU   = "/sys/devices/system/cpu/"
	sysBlock = "/sys/block/*/"
	sysNet   = "/sys/class/net/*/"
	hwmon    = "/sys/class/hwmon/*/"
	thermal  = "/sys/class/thermal/"
)

var table = [metricCount]Metric{
	cpuSeconds:       {"croft_cpu_seconds_total", []string{"mode"}, "s", true, "/proc/stat", "Time of all threads together, by what they did: user, nice, system, idle, iowait, irq, softirq; steal is what the hypervisor gave to others."},
	cpuThreads:       {"croft_cpu_threads", nil, "1", false, "/proc/stat", "Threads that can run at once now."},
	tasksBlocked:     {"croft_tasks_blocked", nil, "1", false, "/proc/stat", "Tasks that wait for a disk at this instant."},
	load1:            {"croft_load1", nil, "1", false, "/proc/loadavg", "Tasks that run or want to, averaged over 1 minute."},
	load5:            {"croft_load5", nil, "1", false, "/proc/loadavg", "The same over 5 minutes."},
	load15:           {"croft_load15", nil, "1", false, "/proc/loadavg", "The same over 15 minutes."},
	cpuFrequency:     {"croft_cpu_frequency_hertz", []string{"kind"}, "Hz", false, sysCPU + "cpufreq/policy*", "Of all clock domains: mean and highest now; limit, the lowest that anything (heat, firmware) now allows one of them at most; rated, what the hardware can do at most."},
	throttledTimes:   {"croft_throttled_total", []string{"scope"}, "1", true, sysCPU + "cpu*/thermal_throttle", "How often heat or current made the processor slow itself: core, summed over cores; package, over sockets. Intel only."},
	throttledSeconds: {"croft_throttled_seconds_total", []string{"scope"}, "s", true, sysCPU + "cpu*/thermal_throttle", "For how long."},
	pressureSeconds:  {"croft_pressure_stalled_seconds_total", []string{"resource", "kind"}, "s", true, "/proc/pressure/{cpu,memory,io}", "Time in which some, or all (full), tasks that wanted to run waited for the resource."},
	memoryBytes:      {"croft_memory_bytes", []string{"kind"}, "B", false, "/proc/meminfo", "total; free; available, for programs without swapping; cached, copies of files; slab, the kernel's own objects; slab_unreclaimable, of these what cannot be given back; dirty, not yet on disk; swap_total; swap_free."},
	oomKills:         {"croft_oom_kills_total", nil, "1", true, "/proc/vmstat", "Programs killed for want of memory, leases' own limits included."},
	uptime:           {"croft_uptime_seconds", nil, "s", false, "/proc/uptime", "Since the kernel started, suspension included."},
	kernelOopses:     {"croft_kernel_oopses_total", nil, "1", true, "/sys/kernel/oops_count", "Faults of the kernel that it survived, since boot."},
	kernelWarnings:   {"croft_kernel_warnings_total", nil, "1", true, "/sys/kernel/warn_count", "Warnings about itself, since boot."},
	conntrackEntries: {"croft_conntrack_entries", []string{"kind"}, "1", false, "/proc/sys/net/netfilter/nf_conntrack_{count,max}", "Connections the firewall follows: used, and the limit above which it refuses new ones."},

	filesystemBytes:    {"croft_filesystem_bytes", []string{"mount", "kind"}, "B", false, "statfs", "size; available, without what is reserved for the system."},
	filesystemInodes:   {"croft_filesystem_inodes", []string{"mount", "kind"}, "1", false, "statfs", "Files: size, how many there can be; available. Not for file systems without such a bound."},
	filesystemReadOnly: {"croft_filesystem_readonly", []string{"mount"}, "1", false, "/proc/self/mountinfo", "1 if nothing can be written, as after an error of the disk; else 0."},
	filesystemErrors:   {"croft_filesystem_errors_total", []string{"mount"}, "1", true, "/sys/fs/ext4/*/errors_count", "Errors found in the file system since it was last checked."},
	diskReads:          {"croft_disk_reads_total", []string{"disk"}, "1", true, sysBlock + "stat", "Reads completed."},
	diskWrites:         {"croft_disk_writes_total", []string{"disk"}, "1", true, sysBlock + "stat", "Writes completed."},
	diskReadBytes:      {"croft_disk_read_bytes_total", []string{"disk"}, "B", true, sysBlock + "stat", "Bytes read."},
	diskWrittenBytes:   {"croft_disk_written_bytes_total", []string{"disk"}, "B", true, sysBlock + "stat", "Bytes written."},
	diskReadSeconds:    {"croft_disk_read_seconds_total", []string{"disk"}, "s", true, sysBlock + "stat", "Waiting times of all reads, summed."},
	diskWriteSeconds:   {"croft_disk_write_seconds_total", []string{"disk"}, "s", true, sysBlock + "stat", "Waiting times of all writes, summed."},
	diskBusySeconds:    {"croft_disk_busy_seconds_total", []string{"disk"}, "s", true, sysBlock + "stat", "Time in which the disk had something to do."},
	diskOnline:         {"croft_disk_online", []string{"disk"}, "1", false, "/sys/class/nvme/*/state, " + sysBlock + "device/state", "1 if the kernel holds the drive for usable (NVMe live, SATA and USB running); else 0."},
	diskIOErrors:       {"croft_disk_io_errors_total", []string{"disk"}, "1", true, sysBlock + "device/ioerr_cnt", "Commands that SATA and USB drives did not carry out, harmless questions about features included."},
	diskWear:           {"croft_disk_life_used_ratio", []string{"disk"}, "1", false, sysBlock + "device/life_time", "Of an eMMC: share of its expected life that is used, in steps of 0.1, rounded up; 1.1 is beyond."},
	diskEndOfLife:      {"croft_disk_end_of_life", []string{"disk"}, "1", false, sysBlock + "device/pre_eol_info", "Of an eMMC's spare blocks: 1 normal, 2 four fifths used, 3 nine tenths used."},

	temperature:      {"croft_temperature_celsius", []string{"sensor"}, "°C", false, hwmon + "temp*_input, " + thermal + "thermal_zone*/temp", "Temperature; a sensor shown in both places is told once."},
	temperatureLimit: {"croft_temperature_limit_celsius", []string{"sensor"}, "°C", false, hwmon + "temp*_crit, " + thermal + "thermal_zone*/trip_point_*", "Where the hardware's maker sees danger; of few sensors."},
	fanSpeed:         {"croft_fan_rpm", []string{"sensor"}, "1/min", false, hwmon + "fan*_input", "Revolutions; 0 for a fan that stands."},
	power:            {"croft_power_watts", []string{"sensor"}, "W", false, hwmon + "power*_average, power*_input", "Power drawn."},
	undervoltage:     {"croft_undervoltage", []string{"sensor"}, "1", false, hwmon + "in0_lcrit_alarm of rpi_volt", "Of a Raspberry Pi: 1 if its supply has been too weak since the kernel last looked; else 0."},
	cooling:          {"croft_cooling_ratio", []string{"measure"}, "1", false, thermal + "cooling_device*", "How much of a cooling measure is in use, of devices of one type the highest: 0 none, 1 all; a slowed processor is such a measure."},
	energy:           {"croft_energy_joules_total", []string{"domain"}, "J", true, "/sys/class/powercap/intel-rapl:*/energy_uj", "Energy that whole processors (package) and the whole board (psys) used, as the processor reckons. Falls when the hardware's counter wraps, after hours."},

	networkBytes:          {"croft_network_bytes_total", []string{"interface", "direction"}, "B", true, sysNet + "statistics", "Bytes received (in) and sent (out) by links with hardware behind them."},
	networkPackets:        {"croft_network_packets_total", []string{"interface", "direction"}, "1", true, sysNet + "statistics", "Packets."},
	networkErrors:         {"croft_network_errors_total", []string{"interface", "direction"}, "1", true, sysNet + "statistics", "Packets that were broken or could not be sent."},
	networkDrops:          {"croft_network_drops_total", []string{"interface", "direction"}, "1", true, sysNet + "statistics", "Packets dropped for want of room."},
	networkCarrierChanges: {"croft_network_carrier_changes_total", []string{"interface"}, "1", true, sysNet + "carrier_changes", "How often the link came or went."},
	networkUp:             {"croft_network_up", []string{"interface"}, "1", false, sysNet + "operstate", "1 if the link is up; else 0."},
	networkSpeed:          {"croft_network_speed_bits_per_second", []string{"interface"}, "bit/s", false, sysNet + "speed", "Speed the two ends agreed on; only of links that are up and know it."},

	clockSynced: {"croft_clock_synced", nil, "1", false, "adjtimex, or Config.Clock", "1 if the clock is known to be right; else 0."},
	clockOffset: {"croft_clock_offset_seconds", nil, "s", false, "adjtimex, or Config.Clock", "By how much the true time was ahead at the last comparison; only of a synchronised clock."},
	clockError:  {"croft_clock_error_seconds", nil, "s", false, "adjtimex, or Config.Clock", "By how much the clock may be wrong at most; only of a synchronised clock."},

	leaseCPUSeconds:   {"croft_lease_cpu_seconds_total", []string{"lease"}, "s", true, "Config.Leases", "Processor time of the lease's replicas."},
	leaseMemory:       {"croft_lease_memory_bytes", []string{"lease"}, "B", false, "Config.Leases", "Memory they use."},
	leaseDisk:         {"croft_lease_disk_bytes", []string{"lease"}, "B", false, "Config.Leases", "Bytes in use on the lease's disk."},
	leaseNetworkBytes: {"croft_lease_network_bytes_total", []string{"lease", "direction"}, "B", true, "Config.Leases", "Bytes to (in) and from (out) its replicas."},

	earned:      {"croft_earned_total", []string{"denom"}, "base unit", true, "Config.Earnings", "Coins paid to the box's account so far, by all leases ever; falls when the box lost what it had written down."},
	incomeMonth: {"croft_income_month", []string{"denom"}, "base unit", false, "Config.Earnings", "What the leases that run now pay in a month of the chain, at their prices."},

	gpuBusy:             {"croft_gpu_busy_ratio", []string{"gpu"}, "1", false, "Config.GPUs", "Share of the last moments in which the GPU computed."},
	gpuMemoryBusy:       {"croft_gpu_memory_busy_ratio", []string{"gpu"}, "1", false, "Config.GPUs", "Share of the last moments in which its memory was read or written."},
	gpuMemory:           {"croft_gpu_memory_bytes", []string{"gpu", "kind"}, "B", false, "Config.GPUs", "total; used."},
	gpuPower:            {"croft_gpu_power_watts", []string{"gpu"}, "W", false, "Config.GPUs", "Power drawn."},
	gpuPowerLimit:       {"croft_gpu_power_limit_watts", []string{"gpu"}, "W", false, "Config.GPUs", "Power it may draw."},
	gpuTemperature:      {"croft_gpu_temperature_celsius", []string{"gpu", "sensor"}, "°C", false, "Config.GPUs", "core; memory."},
	gpuFan:              {"croft_gpu_fan_ratio", []string{"gpu"}, "1", false, "Config.GPUs", "Intended share of the fan's full speed."},
	gpuECCErrors:        {"croft_gpu_ecc_errors_total", []string{"gpu", "kind"}, "1", true, "Config.GPUs", "Errors of its memory since the driver was loaded: corrected; uncorrected."},
	gpuClock:            {"croft_gpu_clock_hertz", []string{"gpu", "kind"}, "Hz", false, "Config.GPUs", "Clock now: core; memory."},
	gpuThrottledSeconds: {"croft_gpu_throttled_seconds_total", []string{"gpu", "reason"}, "s", true, "Config.GPUs", "Time in which it was slowed: heat; power."},
	gpuPCIeGeneration:   {"croft_gpu_pcie_generation", []string{"gpu"}, "1", false, "Config.GPUs", "Generation of PCI Express in use; falls when the GPU is idle."},
	gpuPCIeLanes:        {"croft_gpu_pcie_lanes", []string{"gpu"}, "1", false, "Config.GPUs", "Lanes in use."},
	gpuPCIeReplays:      {"croft_gpu_pcie_replays_total", []string{"gpu"}, "1", true, "Config.GPUs", "Packets that had to be sent again: a bad slot, riser or cable."},

	agentCPUSeconds:        {"croft_agent_cpu_seconds_total", []string{"mode"}, "s", true, "/proc/self/stat", "Processor time of this program: user; system."},
	agentMemory:            {"croft_agent_memory_bytes", []string{"kind"}, "B", false, "/proc/self/status, runtime/metrics", "resident, as the kernel counts; heap, live and not yet collected objects; runtime, all that Go holds."},
	agentGoroutines:        {"croft_agent_goroutines", nil, "1", false, "runtime/metrics", "Goroutines, up to 16 that take these readings included."},
	agentThreads:           {"croft_agent_threads", nil, "1", false, "/proc/self/status", "Threads of the kernel."},
	agentOpenFiles:         {"croft_agent_open_files", nil, "1", false, "/proc/self/fd", "Open files and sockets, the one used to count them included."},
	agentCollections:       {"croft_agent_gc_cycles_total", nil, "1", true, "runtime/metrics", "Garbage collections."},
	agentCollectionSeconds: {"croft_agent_gc_cpu_seconds_total", nil, "s", true, "runtime/metrics", "Processor time spent on them, estimated."},
	readingsMissed:         {"croft_agent_readings_missed_total", []string{"group"}, "1", true, "this package", "Readings that were there and could not be read, since the agent started; only of groups with such."},
}

// reading makes a reading of this line. There are as many labels as the line has.
func (m metric) reading(value float64, values ...string) fleetapi.Reading {
	row := &table[m]
	r := fleetapi.Reading{Name: row.Name, Value: value, Counter: row.Counter}
	if len(values) > 0 {
		r.Labels = make([]fleetapi.Label, len(values))
		for i, name := range row.Labels {
			r.Labels[i] = fleetapi.Label{Name: name, Value: values[i]}
		}
	}
	return r
}
