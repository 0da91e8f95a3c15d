package sampling

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ticksPerSecond is the kernel's USER_HZ, the same on all that Go runs on.
const ticksPerSecond = 100

// modes are the columns of /proc/stat. What guests of this machine use is part of user.
var modes = [...]string{"user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"}

// stat is what is read of /proc/stat.
type stat struct {
	seconds [len(modes)]float64
	threads int
	blocked float64
}

func readCPU(p *pass) {
	if text, ok := p.required("proc/stat"); ok {
		s, err := parseStat(text)
		if err != nil {
			p.miss("/proc/stat", err)
		} else {
			for i, mode := range modes {
				p.add(cpuSeconds, s.seconds[i], mode)
			}
			p.add(cpuThreads, float64(s.threads))
			p.add(tasksBlocked, s.blocked)
		}
	}
	if text, ok := p.required("proc/loadavg"); ok {
		loads, err := parseLoad(text)
		if err != nil {
			p.miss("/proc/loadavg", err)
			return
		}
		p.add(load1, loads[0])
		p.add(load5, loads[1])
		p.add(load15, loads[2])
	}
}

func parseStat(text string) (stat, error) {
	var s stat
	found := map[string]bool{}
	for line := range strings.Lines(text) {
		key, rest, _ := strings.Cut(line, " ")
		switch {
		case key == "cpu":
			fields := strings.Fields(rest)
			if len(fields) < len(modes) {
				return stat{}, fmt.Errorf("line of all processors has %d fields", len(fields))
			}
			for i := range modes {
				ticks, err := parseCount(fields[i])
				if err != nil {
					return stat{}, err
				}
				s.seconds[i] = ticks / ticksPerSecond
			}
		case strings.HasPrefix(key, "cpu"):
			s.threads++
			continue
		case key == "procs_blocked":
			var err error
			if s.blocked, err = parseCount(strings.TrimSpace(rest)); err != nil {
				return stat{}, err
			}
		}
		found[key] = true
	}
	if !found["cpu"] || !found["procs_blocked"] || s.threads == 0 {
		return stat{}, errors.New("processors or tasks are missing")
	}
	return s, nil
}

func parseLoad(text string) (loads [3]float64, err error) {
	fields := strings.Fields(text)
	if len(fields) < len(loads) {
		return loads, fmt.Errorf("there are %d fields", len(fields))
	}
	for i := range loads {
		if loads[i], err = parseDecimal(fields[i]); err != nil {
			return [3]float64{}, err
		}
	}
	return loads, nil
}

// parseDecimal reads digits with a point among them, and nothing that only Go
// would take for a number.
func parseDecimal(word string) (float64, error) {
	v, err := strconv.ParseFloat(word, 64)
	if err != nil || strings.Trim(word, "0123456789.") != "" {
		return 0, fmt.Errorf("number is %.32q", word)
	}
	return v, nil
}

// resources are those of which the kernel tells how long tasks wait for them.
var resources = [...]string{"cpu", "memory", "io"}

func readPressure(p *pass) {
	for _, resource := range resources {
		text, ok := p.optional("proc/pressure/" + resource)
		if !ok {
			continue
		}
		stalls, err := parsePressure(text)
		if err != nil {
			p.miss("/proc/pressure/"+resource, err)
			continue
		}
		for _, s := range stalls {
			p.add(pressureSeconds, s.seconds, resource, s.kind)
		}
	}
}

type stall struct {
	kind    string // some, full
	seconds float64
}

func parsePressure(text string) ([]stall, error) {
	var stalls []stall
	for line := range strings.Lines(text) {
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		_, total, ok := strings.Cut(rest, "total=")
		if kind != "some" && kind != "full" || !ok || len(stalls) == 2 {
			return nil, fmt.Errorf("line is %.64q", line)
		}
		micros, err := parseCount(total)
		if err != nil {
			return nil, err
		}
		stalls = append(stalls, stall{kind, micros / 1e6})
	}
	if len(stalls) == 0 {
		return nil, errors.New("file is empty")
	}
	return stalls, nil
}

func readFrequency(p *pass) {
	const dir = "sys/devices/system/cpu/cpufreq"
	var sum, highest, limit, rated float64
	var running, limited int
	for _, n := range p.numbered(dir, "policy") {
		policy := dir + "/policy" + strconv.Itoa(n)
		if khz, ok := p.number(policy + "/scaling_cur_freq"); ok {
			sum += khz
			running++
			highest = max(highest, khz)
		}
		if khz, ok := p.number(policy + "/scaling_max_freq"); ok {
			if limited == 0 || khz < limit {
				limit = khz
			}
			limited++
		}
		if khz, ok := p.number(policy + "/cpuinfo_max_freq"); ok {
			rated = max(rated, khz)
		}
	}
	if running > 0 {
		p.add(cpuFrequency, 1000*sum/float64(running), "mean")
		p.add(cpuFrequency, 1000*highest, "highest")
	}
	if limited > 0 {
		p.add(cpuFrequency, 1000*limit, "limit")
	}
	if rated > 0 {
		p.add(cpuFrequency, 1000*rated, "rated")
	}
}

// readThrottle adds up what Intel's processors tell. Each thread shows the counters of
// its core and of its socket, so that most are shown several times.
func readThrottle(p *pass) {
	const dir = "sys/devices/system/cpu"
	type figures struct{ times, millis float64 }
	scopes := [...]struct {
		name   string
		units  map[string]figures // by socket, or socket and core
		broken bool               // a sum without one of its parts would fall and jump
	}{{name: "core", units: map[string]figures{}}, {name: "package", units: map[string]figures{}}}
	for _, n := range p.numbered(dir, "cpu") {
		cpu := dir + "/cpu" + strconv.Itoa(n)
		if !p.has(cpu + "/thermal_throttle") {
			continue
		}
		socket, ok := p.word(cpu + "/topology/physical_package_id")
		core, ok2 := p.word(cpu + "/topology/core_id")
		for i := range scopes {
			s := &scopes[i]
			unit := socket
			if s.name == "core" {
				unit += "/" + core
			}
			times, ok3 := p.number(cpu + "/thermal_throttle/" + s.name + "_throttle_count")
			millis, ok4 := p.number(cpu + "/thermal_throttle/" + s.name + "_throttle_total_time_ms")
			s.broken = s.broken || !ok || !ok2 || !ok3 || !ok4
			f := s.units[unit]
			s.units[unit] = figures{max(f.times, times), max(f.millis, millis)}
		}
	}
	for _, s := range scopes {
		if len(s.units) == 0 || s.broken {
			continue
		}
		var sum figures
		for _, f := range s.units {
			sum.times += f.times
			sum.millis += f.millis
		}
		p.add(throttledTimes, sum.times, s.name)
		p.add(throttledSeconds, sum.millis/1000, s.name)
	}
}
