// Package bootlog carries what one boot leaves behind for the next program and
// for the next boot.
//
// Two records exist. The [Handover] goes forward in time within one boot: the
// initramfs (croft-init) fills it in, passes it to PID 1 in the environment
// variable [HandoverEnv], and PID 1 stores it as [HandoverFile], where the
// agent reads it. The [Attempt] goes from boot to boot: one small file per slot
// on /perm, replaced atomically, saying how far the slot's newest boot came.
//
// Power cut at any line: an Attempt is either the old one or the new one. When
// /perm is lost, so are the attempts; a boot never fails for that, and the cause
// of an earlier failure is then reported as unknown.
package bootlog

import (
	"time"

	"github.com/croft-cloud/croft"
)

// HandoverEnv is the environment variable in which croft-init hands the
// [Handover], as JSON, to PID 1 of the real root.
const HandoverEnv = "CROFT_HANDOVER"

// HandoverFile is where PID 1 stores the [Handover] for the agent.
const HandoverFile = "/run/croft/handover.json"

// Handover is what the initramfs knows about this boot.
type Handover struct {
	BootID   string                 `json:"boot_id"`   // the kernel's random boot_id
	Slot     croft.Slot             `json:"slot"`      // the slot whose root is mounted
	Version  croft.Version          `json:"version"`   // release on the kernel command line
	RootHash string                 `json:"root_hash"` // dm-verity root hash, hex
	Disk     string                 `json:"disk"`      // booted disk, e.g. /dev/vda
	ESP      string                 `json:"esp"`       // its EFI system partition, e.g. /dev/vda1
	Perm     Perm                   `json:"perm"`      // what became of /perm
	Watchdog string                 `json:"watchdog"`  // identity of the armed watchdog; empty if none
	Panic    string                 `json:"panic"`     // last line of a kernel panic kept by the firmware since the last boot; empty if none
	Twins    []string               `json:"twins"`     // other disks with the same partition GUIDs; nothing may be taken from them
	Notes    []string               `json:"notes"`     // sentences for the owner's page and support
	Modules  []string               `json:"modules"`   // kernel modules that could not be loaded, each with the reason; for support
	Uptime   time.Duration          `json:"uptime"`    // from the start of the kernel to the hand-over, nanoseconds; a check of /perm may have taken long
	Before   map[croft.Slot]Attempt `json:"before"`    // attempts as found on /perm, before this boot wrote its own
}

// PermState says in one word what became of /perm at boot.
type PermState string

// The states of /perm. Only the first four keep what is written.
const (
	PermOK       PermState = "ok"        // mounted, clean or journal replayed
	PermCreated  PermState = "created"   // was blank; a new file system was made
	PermRepaired PermState = "repaired"  // was damaged; fsck repaired it, some files may be lost
	PermRenewed  PermState = "renewed"   // was damaged beyond repair; a new file system replaced it
	PermReadOnly PermState = "read_only" // mounted, but nothing can be written
	PermLost     PermState = "lost"      // not usable; a memory file system stands in until the next boot
)

// Perm is what became of /perm at boot.
type Perm struct {
	State  PermState `json:"state"`
	Device string    `json:"device"` // e.g. /dev/vda4; empty if the partition is missing
	Detail string    `json:"detail"` // a sentence for support; empty when all is well
	Grown  bool      `json:"grown"`  // partition or file system was enlarged in this boot
}

// Keeps reports whether files on /perm outlive this boot and can be written.
func (p Perm) Keeps() bool {
	switch p.State {
	case PermOK, PermCreated, PermRepaired, PermRenewed:
		return true
	case PermReadOnly, PermLost:
		return false
	}
	return false
}

// Stage is how far a boot came. Stages only ever move forward within a boot.
type Stage string

// The stages, in order.
const (
	StageInit    Stage = "init"    // croft-init mounted /perm
	StageSystem  Stage = "system"  // PID 1 of the slot's root runs
	StageAgent   Stage = "agent"   // the agent started
	StageHealthy Stage = "healthy" // the agent found the boot healthy
)

// Attempt is the record of a slot's newest boot.
type Attempt struct {
	BootID      string        `json:"boot_id"`
	Version     croft.Version `json:"version"`
	RootHash    string        `json:"root_hash"`
	Stage       Stage         `json:"stage"`
	Reason      string        `json:"reason,omitempty"`       // why it is not healthy, as far as it knew
	AgentStarts int           `json:"agent_starts,omitempty"` // times the agent was started in this boot
	Refunds     int           `json:"refunds,omitempty"`      // tries given back to this root for clean reboots
	Stopped     bool          `json:"stopped,omitempty"`      // shut down cleanly
	At          time.Time     `json:"at"`                     // device clock; may be wrong
}
