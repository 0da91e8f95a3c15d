package bootlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// Dir is the folder of the attempts, below the mount point of /perm.
const Dir = "croft/boot"

// Log is the attempts of both slots on one /perm.
type Log struct{ dir string }

// Open returns the log on the file system mounted at perm.
func Open(perm string) Log { return Log{dir: filepath.Join(perm, Dir)} }

func (l Log) file(slot croft.Slot) string {
	return filepath.Join(l.dir, "slot-"+string(slot)+".json")
}

// Read returns the attempts there are. A damaged record counts as none; the
// error then names it, and the rest is still good.
func (l Log) Read() (map[croft.Slot]Attempt, error) {
	attempts := map[croft.Slot]Attempt{}
	var errs []error
	for _, slot := range []croft.Slot{croft.SlotA, croft.SlotB} {
		a, err := l.read(slot)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		attempts[slot] = a
	}
	return attempts, errors.Join(errs...)
}

func (l Log) read(slot croft.Slot) (Attempt, error) {
	var a Attempt
	raw, err := os.ReadFile(l.file(slot))
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	if err != nil {
		return Attempt{}, fmt.Errorf("read the boot record of slot %s: %w", slot, err)
	}
	return a, nil
}

// Write replaces the slot's attempt.
func (l Log) Write(slot croft.Slot, a Attempt) error {
	raw, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode the boot record of slot %s: %w", slot, err)
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return fmt.Errorf("write the boot record of slot %s: %w", slot, err)
	}
	if err := atomicfile.WriteFile(l.file(slot), raw, 0o600); err != nil {
		return fmt.Errorf("write the boot record of slot %s: %w", slot, err)
	}
	return nil
}

// Update reads the slot's attempt, lets change alter it, and writes it if it
// did. Without a record, or with a damaged one, change sees an empty attempt.
// One program at a time calls it: croft-init, then PID 1, then the agent.
func (l Log) Update(slot croft.Slot, change func(*Attempt)) error {
	// An empty attempt belongs to no boot: who asks for its own leaves it alone.
	before, _ := l.read(slot)
	after := before
	change(&after)
	if after == before {
		return nil
	}
	return l.Write(slot, after)
}

// Next is the attempt a new boot of the same slot begins with. What counts
// boots of one root carries over only if the root is the same.
func (a Attempt) Next(bootID string, version croft.Version, rootHash string) Attempt {
	next := Attempt{BootID: bootID, Version: version, RootHash: rootHash, Stage: StageInit}
	if a.RootHash == rootHash {
		next.Refunds = a.Refunds
	}
	return next
}

// Unclean reports that the boot ended without a clean shutdown: by a power
// cut, a crash or the watchdog.
func (a Attempt) Unclean() bool { return a.BootID != "" && !a.Stopped }

// ReadHandover reads what [HandoverFile] holds.
func ReadHandover(path string) (Handover, error) {
	var h Handover
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &h)
	}
	if err != nil {
		return Handover{}, fmt.Errorf("read the initramfs's report: %w", err)
	}
	return h, nil
}
