package sampling

import (
	"errors"
	"fmt"
	"runtime/metrics"
	"strings"
)

// readAgent reads what this program itself needs.
func readAgent(p *pass) {
	if text, ok := p.required("proc/self/stat"); ok {
		user, system, err := parseSelf(text)
		if err != nil {
			p.miss("/proc/self/stat", err)
		} else {
			p.add(agentCPUSeconds, user, "user")
			p.add(agentCPUSeconds, system, "system")
		}
	}
	if text, ok := p.required("proc/self/status"); ok {
		resident, threads, err := parseStatus(text)
		if err != nil {
			p.miss("/proc/self/status", err)
		} else {
			p.add(agentMemory, resident, "resident")
			p.add(agentThreads, threads)
		}
	}
	if open := len(p.list("proc/self/fd")); open > 0 {
		p.add(agentOpenFiles, float64(open))
	}
	samples := []struct {
		name   string
		metric metric
		labels []string
	}{
		{"/memory/classes/heap/objects:bytes", agentMemory, []string{"heap"}},
		{"/memory/classes/total:bytes", agentMemory, []string{"runtime"}},
		{"/sched/goroutines:goroutines", agentGoroutines, nil},
		{"/gc/cycles/total:gc-cycles", agentCollections, nil},
		{"/cpu/classes/gc/total:cpu-seconds", agentCollectionSeconds, nil},
	}
	values := make([]metrics.Sample, len(samples))
	for i := range samples {
		values[i].Name = samples[i].name
	}
	metrics.Read(values)
	for i, sample := range samples {
		switch v := values[i].Value; v.Kind() {
		case metrics.KindUint64:
			p.add(sample.metric, float64(v.Uint64()), sample.labels...)
		case metrics.KindFloat64:
			p.add(sample.metric, v.Float64(), sample.labels...)
		default:
			p.miss("runtime/metrics "+sample.name, errors.New("this Go does not know it"))
		}
	}
}

// parseSelf reads the processor time of a program from /proc/PID/stat. The program's
// name is the second field, in parentheses, and may hold anything.
func parseSelf(text string) (user, system float64, err error) {
	const userField, systemField = 11, 12 // after the name
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) <= systemField {
		return 0, 0, fmt.Errorf("there are %d fields", len(fields))
	}
	if user, err = parseCount(fields[userField]); err != nil {
		return 0, 0, err
	}
	if system, err = parseCount(fields[systemField]); err != nil {
		return 0, 0, err
	}
	return user / ticksPerSecond, system / ticksPerSecond, nil
}

// parseStatus reads resident bytes and threads from /proc/PID/status.
func parseStatus(text string) (resident, threads float64, err error) {
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		if key != "VmRSS" && key != "Threads" {
			continue
		}
		number, _ := strings.CutSuffix(strings.TrimSpace(value), " kB")
		if values[key], err = parseCount(number); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", key, err)
		}
	}
	if len(values) != 2 {
		return 0, 0, errors.New("memory or threads are missing")
	}
	return values["VmRSS"] * 1024, values["Threads"], nil
}
