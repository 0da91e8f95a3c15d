// Package boards holds one folder per hardware model: its gokrazy
// configuration and its choice of kernel, modules and command line. The
// folders are embedded, so a croft binary can build for every board it knows.
package boards

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"

	"github.com/croft-cloud/croft"
)

//go:embed */board.json */gokrazy.json
var folders embed.FS

// Board is one hardware model.
type Board struct {
	Name            string   `json:"name"`             // also the folder's name
	Title           string   `json:"title"`            // for people
	KernelPackage   string   `json:"kernel_package"`   // Debian metapackage that names the kernel
	KernelSuite     string   `json:"kernel_suite"`     // Debian suite the kernel comes from
	DiskID          string   `json:"disk_id"`          // 8 hex digits that end the GUIDs of disk and partitions
	CommandLine     []string `json:"command_line"`     // kernel arguments; root and verity are added by the build
	WatchdogModules []string `json:"watchdog_modules"` // tried first of all, so that the rest of the boot is guarded
	EarlyModules    []string `json:"early_modules"`    // needed to reach the root; in the initramfs
	LateModules     []string `json:"late_modules"`     // needed before the box's own programs start, like the network; in the root
	WorkloadModules []string `json:"workload_modules"` // needed by workloads only; loaded while the box's own programs start

	// Gokrazy is the gok configuration of the root file system (config.json of
	// a gokrazy instance).
	Gokrazy json.RawMessage `json:"-"`
}

// Names lists the boards in alphabetical order.
func Names() []string {
	entries, err := fs.ReadDir(folders, ".")
	if err != nil {
		return nil // an embedded root always reads
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Get returns the board of that name.
func Get(name string) (*Board, error) {
	raw, err := folders.ReadFile(name + "/board.json")
	if err != nil {
		return nil, &croft.Error{
			Kind:   croft.KindNotFound,
			Err:    fmt.Errorf("board %q is not known", name),
			Remedy: "choose one of: " + strings.Join(Names(), ", "),
		}
	}
	var b Board
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, fmt.Errorf("read board %s: %w", name, err)
	}
	if b.Gokrazy, err = folders.ReadFile(name + "/gokrazy.json"); err != nil {
		return nil, fmt.Errorf("read board %s: %w", name, err)
	}
	return &b, nil
}

// PartitionGUID is the GUID of partition n (1 to 4) on the board's disk; n = 0
// is the disk's own. gokrazy expects this form.
func (b *Board) PartitionGUID(n int) string {
	return fmt.Sprintf("60c24cc1-f3f9-427a-8199-%s000%d", b.DiskID, n)
}
