// Package kernel knows which modules of a Debian kernel a board needs and in
// which order to load them.
//
// Nothing on the box loads modules by itself: there is no modprobe and no udev.
// The build resolves the closure of the wanted modules from modules.dep
// ([Closure]), stores the files uncompressed with a list in load order
// ([ListFile]), and the box loads that list from top to bottom ([Load]). It
// leaves out drivers of PCI devices that it does not have: that saves boot time,
// memory, and code an attacker could look for holes in. What is plugged in while
// the box runs is therefore found at once on USB, and at the next boot on PCI.
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
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
)

// ListFile is the name of the file, beside the modules, that lists them in
// load order, one per line: its path relative to the file and, if it is only to
// be loaded for certain PCI devices, the names of their drivers.
const ListFile = "modules.load"

// Dependencies maps a module's path, as modules.dep writes it, to the paths it
// needs, in the order modules.dep gives them.
type Dependencies map[string][]string

// ParseDependencies reads modules.dep (kmod's depmod format: "path: dep dep").
func ParseDependencies(r io.Reader) (Dependencies, error) {
	deps := Dependencies{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		module, needs, found := strings.Cut(lines.Text(), ":")
		if !found {
			return nil, fmt.Errorf("read modules.dep: line %q has no colon", lines.Text())
		}
		deps[module] = strings.Fields(needs)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read modules.dep: %w", err)
	}
	return deps, nil
}

// ParseBuiltin reads modules.builtin and returns the names of the modules that
// are part of the kernel itself.
func ParseBuiltin(r io.Reader) (map[string]bool, error) {
	names := map[string]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		names[Name(lines.Text())] = true
	}
	return names, lines.Err()
}

// Name is a module's name from its path: no folder, no suffix, '-' as '_'.
func Name(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// Closure returns the paths of the wanted modules and all they need, each after
// its own needs and once only. What is built in or in have is left out.
func Closure(wanted []string, deps Dependencies, builtin, have map[string]bool) ([]string, error) {
	byName := make(map[string]string, len(deps))
	for file := range deps {
		byName[Name(file)] = file
	}
	var order []string
	done := map[string]bool{}
	var visit func(file string)
	visit = func(file string) {
		name := Name(file)
		if done[name] || have[name] {
			return
		}
		done[name] = true
		// modules.dep lists direct and indirect needs, nearest first; going
		// through each one's own list gives the right order whatever it is.
		for _, need := range deps[file] {
			visit(need)
		}
		order = append(order, file)
	}
	var missing []string
	for _, name := range wanted {
		name = Name(name)
		file, ok := byName[name]
		switch {
		case ok:
			visit(file)
		case !builtin[name]:
			missing = append(missing, name)
		}
	}
	if missing != nil {
		return nil, &croft.Error{
			Kind:   croft.KindNotFound,
			Err:    fmt.Errorf("kernel has no module %s", strings.Join(missing, ", ")),
			Remedy: "correct the board's module lists",
		}
	}
	return order, nil
}

// Load loads the modules of the list in dir, in order, but those that are for
// PCI devices which are absent. Other hardware that is absent is no error either;
// the names of modules that could not be loaded come back with the reasons. It
// reads /sys.
func Load(dir string) (failed []error) {
	files, err := toLoad(dir, "/sys")
	if err != nil {
		return []error{err}
	}
	for _, file := range files {
		if err := LoadModule(filepath.Join(dir, file)); err != nil {
			failed = append(failed, fmt.Errorf("load module %s: %w", Name(file), err))
		}
	}
	return failed
}

// toLoad reads which modules of the list in dir this machine needs.
func toLoad(dir, sys string) (files []string, err error) {
	list, err := os.ReadFile(filepath.Join(dir, ListFile))
	if err != nil {
		return nil, fmt.Errorf("read module list: %w", err)
	}
	found, selective := drivers(dir, sys)
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		file, needed := fields[0], fields[1:]
		if !selective || len(needed) == 0 || slices.ContainsFunc(needed, func(d string) bool { return found[d] }) {
			files = append(files, file)
		}
	}
	return files, nil
}

// LoadModule loads one uncompressed module. Already loaded, and hardware that
// is not there, are no errors.
func LoadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	// kvm says "not supported" where others say "no such device".
	if err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// Argument returns the value of the last "key=value" on a kernel command line.
func Argument(line, key string) (value string, ok bool) {
	for field := range strings.FieldsSeq(line) {
		if k, v, found := strings.Cut(field, "="); found && k == key {
			value, ok = v, true
		}
	}
	return value, ok
}

// DurationArgument is the value of key as a positive duration ("45s"), or
// def when it is absent or makes no sense.
func DurationArgument(line, key string, def time.Duration) time.Duration {
	value, _ := Argument(line, key)
	if d, err := time.ParseDuration(value); err == nil && d > 0 {
		return d
	}
	return def
}
