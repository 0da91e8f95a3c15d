package inventory

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// parseCPU reads /proc/cpuinfo of x86 and ARM.
func parseCPU(text string) (CPU, error) {
	var c CPU
	cores := map[string]bool{}
	features := map[string]bool{}
	socket := ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "processor":
			c.Threads++
			socket = ""
		case "physical id":
			socket = value
		case "core id":
			cores[socket+"/"+value] = true
		case "model name":
			c.Model = strings.Join(strings.Fields(value), " ")
		case "vendor_id":
			c.Arch = "x86-64"
			c.Vendor = map[string]string{"GenuineIntel": "intel", "AuthenticAMD": "amd"}[value]
		case "CPU implementer":
			c.Vendor = "arm"
		case "CPU architecture":
			if value == "8" || value == "9" || value == "AArch64" {
				c.Arch = "arm-64"
			}
		case "flags", "Features":
			for f := range strings.FieldsSeq(value) {
				features[f] = true
			}
		}
	}
	if c.Threads == 0 || c.Threads > maxThreads {
		return CPU{}, fmt.Errorf("%d processors are listed", c.Threads)
	}
	if c.Arch == "x86-64" && !features["lm"] {
		c.Arch = "" // 32 bits only
	}
	c.Cores = len(cores)
	if c.Cores == 0 || c.Cores > c.Threads {
		c.Cores = c.Threads
	}
	for f := range features {
		c.Features = append(c.Features, f)
	}
	slices.Sort(c.Features)
	return c, nil
}

// parseMemory reads MemTotal of /proc/meminfo.
func parseMemory(text string) (int64, error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != "MemTotal:" || fields[2] != "kB" {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil || kib <= 0 || kib > math.MaxInt64>>10 {
			return 0, fmt.Errorf("MemTotal is %q", fields[1])
		}
		return kib << 10, nil
	}
	return 0, errors.New("MemTotal is missing")
}

// parseSectors reads a size in sectors of 512 bytes, as /sys counts on every disk.
func parseSectors(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>9 {
		return 0, fmt.Errorf("size is %q", text)
	}
	return n << 9, nil
}

// parseSpeed reads a link's speed; it is -1 or unreadable while the link is down.
func parseSpeed(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// classOf sorts a disk. Memory cards do not rotate and are as slow as if they did.
func classOf(name, rotational string) Class {
	switch {
	case strings.HasPrefix(name, "nvme"):
		return Beta3
	case strings.HasPrefix(name, "mmcblk"), rotational != "0":
		return Beta1
	}
	return Beta2
}

// memoryTypes are the values of SMBIOS 3.6 table 77 that boards of today have.
var memoryTypes = map[byte]string{0x18: "ddr3", 0x1a: "ddr4", 0x1e: "lpddr4", 0x22: "ddr5", 0x23: "lpddr5"}

// parseMemoryDevices reads an SMBIOS table: structures of type, length, handle and
// data, each followed by strings that end with two zero bytes. Type 17 is a
// memory device: offset 8 its total width, 10 its data width, 12 its size, 18 its
// type. The firmware wrote that, and it may be nonsense.
func parseMemoryDevices(raw []byte) (kind string, ecc bool) {
	const memoryDevice, header, shortest = 17, 4, 19
	for len(raw) >= header {
		length := int(raw[1])
		if length < header || length > len(raw) {
			return kind, ecc
		}
		s := raw[:length]
		if s[0] == memoryDevice && length >= shortest && (s[12] != 0 || s[13] != 0) {
			if k := memoryTypes[s[18]]; k != "" && kind == "" {
				kind = k
				total, data := int(s[8])|int(s[9])<<8, int(s[10])|int(s[11])<<8
				ecc = total > data && total != 0xffff && data > 0
			}
		}
		rest := raw[length:]
		end := bytes.Index(rest, []byte{0, 0})
		if end < 0 {
			return kind, ecc
		}
		raw = rest[end+2:]
	}
	return kind, ecc
}
