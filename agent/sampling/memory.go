package sampling

import (
	"errors"
	"fmt"
	"strings"
)

// memoryKinds are what is told of /proc/meminfo, in order.
var memoryKinds = [...]struct{ kind, key string }{
	{"total", "MemTotal"},
	{"free", "MemFree"},
	{"available", "MemAvailable"},
	{"cached", "Cached"},
	{"slab", "Slab"},
	{"slab_unreclaimable", "SUnreclaim"},
	{"dirty", "Dirty"},
	{"swap_total", "SwapTotal"},
	{"swap_free", "SwapFree"},
}

func readMemory(p *pass) {
	if text, ok := p.required("proc/meminfo"); ok {
		values, err := parseMemory(text)
		if err != nil {
			p.miss("/proc/meminfo", err)
		}
		for _, m := range memoryKinds {
			if v, ok := values[m.key]; ok {
				p.add(memoryBytes, v, m.kind)
			}
		}
	}
	if text, ok := p.required("proc/vmstat"); ok {
		kills, err := parseOOMKills(text)
		if err != nil {
			p.miss("/proc/vmstat", err)
			return
		}
		p.add(oomKills, kills)
	}
}

// parseMemory returns the sizes in /proc/meminfo, in bytes, and with them an error if
// some cannot be read.
func parseMemory(text string) (map[string]float64, error) {
	values := make(map[string]float64, 64)
	var wrong error
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		number, unit, _ := strings.Cut(strings.TrimSpace(value), " ")
		switch {
		case !ok:
			wrong = fmt.Errorf("line is %.64q", line)
		case unit == "kB":
			kib, err := parseCount(number)
			if err != nil {
				wrong = fmt.Errorf("%.32s: %w", key, err)
				continue
			}
			values[key] = kib * 1024
		}
	}
	if len(values) == 0 && wrong == nil {
		wrong = errors.New("file is empty")
	}
	return values, wrong
}

func parseOOMKills(text string) (float64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return parseCount(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("oom_kill is missing")
}

func readKernel(p *pass) {
	if text, ok := p.required("proc/uptime"); ok {
		word, _, _ := strings.Cut(text, " ")
		seconds, err := parseDecimal(strings.TrimSpace(word))
		if err != nil {
			p.miss("/proc/uptime", err)
		} else {
			p.add(uptime, seconds)
		}
	}
	if n, ok := p.number("sys/kernel/oops_count"); ok {
		p.add(kernelOopses, n)
	}
	if n, ok := p.number("sys/kernel/warn_count"); ok {
		p.add(kernelWarnings, n)
	}
	if n, ok := p.number("proc/sys/net/netfilter/nf_conntrack_count"); ok {
		p.add(conntrackEntries, n, "used")
	}
	if n, ok := p.number("proc/sys/net/netfilter/nf_conntrack_max"); ok {
		p.add(conntrackEntries, n, "limit")
	}
}
