package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// AliasFile is the name of the file, beside the modules, that says which PCI
// devices drivers are for: a line per pattern, "driver pattern".
const AliasFile = "modules.pci"

// PCIAliases maps drivers that are for PCI devices and nothing else to the
// patterns of those devices, as modules.alias writes them.
type PCIAliases map[string][]string

// ParsePCIAliases reads modules.alias (depmod's format: "alias pattern module").
func ParsePCIAliases(r io.Reader) (PCIAliases, error) {
	pci, others := PCIAliases{}, map[string]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[0] != "alias" {
			continue // a comment
		}
		pattern, driver := fields[1], Name(fields[2])
		switch kind, _, _ := strings.Cut(pattern, ":"); kind {
		case "pci":
			pci[driver] = append(pci[driver], pattern)
		case "auxiliary": // made by the driver itself
		default:
			others[driver] = true
		}
	}
	for driver := range others {
		delete(pci, driver)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read modules.alias: %w", err)
	}
	return pci, nil
}

// Step is one module of a set, in load order.
type Step struct {
	File string // path as modules.dep writes it

	// Drivers are those of the wanted modules that need this one, if all of
	// them are for PCI devices only: without such a device the step is left
	// out. Empty: it is always taken.
	Drivers []string
}

// Steps says for each module of a closure when it is to be loaded.
func Steps(order, wanted []string, deps Dependencies, pci PCIAliases) []Step {
	drivers, always := map[string][]string{}, map[string]bool{}
	for _, file := range order {
		driver := Name(file)
		if !slices.ContainsFunc(wanted, func(w string) bool { return Name(w) == driver }) {
			continue
		}
		for _, need := range append([]string{file}, deps[file]...) {
			if _, ok := pci[driver]; ok {
				drivers[need] = append(drivers[need], driver)
			} else {
				always[need] = true
			}
		}
	}
	var steps []Step
	for _, file := range order {
		s := Step{File: file}
		if !always[file] {
			s.Drivers = drivers[file]
		}
		steps = append(steps, s)
	}
	return steps
}

// WriteAliases writes the patterns of all drivers that the steps name, in the
// form of [AliasFile].
func (pci PCIAliases) WriteAliases(w io.Writer, steps []Step) error {
	var drivers []string
	for _, s := range steps {
		drivers = append(drivers, s.Drivers...)
	}
	slices.Sort(drivers)
	for _, driver := range slices.Compact(drivers) {
		for _, pattern := range pci[driver] {
			if _, err := fmt.Fprintln(w, driver, pattern); err != nil {
				return err
			}
		}
	}
	return nil
}

// drivers are those for which the machine has a device, by the patterns in
// dir. ok is false when that cannot be told: then every driver is to be loaded.
func drivers(dir, sys string) (found map[string]bool, ok bool) {
	patterns, err := os.ReadFile(filepath.Join(dir, AliasFile))
	if err != nil {
		return nil, false
	}
	files, _ := filepath.Glob(filepath.Join(sys, "bus/pci/devices/*/modalias"))
	var devices []string
	for _, file := range files {
		modalias, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // unplugged meanwhile
		}
		if err != nil {
			return nil, false
		}
		devices = append(devices, strings.TrimSpace(string(modalias)))
	}
	if len(devices) == 0 {
		return nil, false
	}
	found = map[string]bool{}
	for line := range strings.Lines(string(patterns)) {
		driver, pattern, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, device := range devices {
			if match, err := path.Match(pattern, device); match || err != nil {
				found[driver] = true
			}
		}
	}
	return found, true
}
