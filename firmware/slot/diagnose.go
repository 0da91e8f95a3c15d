package slot

import (
	"fmt"
	"strings"
)

// UKIState is the condition of a boot file's content.
type UKIState string

// The conditions of a boot file.
const (
	UKIIntact    UKIState = "intact"    // all sections a boot needs are there, whole
	UKITruncated UKIState = "truncated" // a section is missing, cut off or unreadable
	UKIMissing   UKIState = "missing"   // there is no file
)

// Evidence is what is known about a slot that did not make it.
type Evidence struct {
	Entry       Entry    // its boot file
	UKI         UKIState // the condition of its boot file; empty if not checked
	HaveRecord  bool     // its newest boot left a record for this release; Stage, Reason and AgentStarts are from it
	Stage       string   // how far that boot came: init, system, agent or healthy
	Reason      string   // why it was not healthy, as far as it knew
	AgentStarts int      // times the agent was started in that boot
	Panic       string   // last line of a kernel panic; empty if none is known
}

// manyStarts is how often an agent is started in one boot before we call it a
// crash loop. A single restart can have harmless causes.
const manyStarts = 3

// verityPanic is how the kernel ends when a verified root does not match and
// dm-verity was opened with panic_on_corruption.
const verityPanic = "dm-verity device corrupted"

// Diagnose says in one clause why a slot did not make it, for people: it fits
// behind "slot b (1.1.0) was given up: ". Harder evidence goes before softer.
func Diagnose(e Evidence) string {
	reason := strings.Join(strings.Fields(e.Reason), " ")
	switch {
	case e.UKI == UKIMissing || e.Entry.State() == Empty:
		return "its boot file is missing"
	case e.UKI == UKITruncated:
		return "its boot file is damaged"
	case strings.Contains(e.Panic, verityPanic):
		return "its root is damaged: the kernel read a block that does not match its hash"
	case e.Panic != "":
		return "its kernel panicked: " + strings.Join(strings.Fields(e.Panic), " ")
	case !e.HaveRecord && e.Entry.State() == Trial && e.Entry.Done == 0:
		return "it has not been started yet"
	case !e.HaveRecord:
		return "probably its kernel or first program failed before storage was ready"
	}
	switch e.Stage {
	case "init":
		if reason != "" {
			return "init: " + reason
		}
		return "its system did not start after init"
	case "system":
		if reason != "" {
			return "system: " + reason
		}
		return "its system started, but the agent did not"
	case "agent":
		if e.AgentStarts >= manyStarts {
			text := fmt.Sprintf("the agent crashed again and again (%d starts)", e.AgentStarts)
			if reason != "" {
				text += "; it was not healthy: " + reason
			}
			return text
		}
		if reason != "" {
			return "not healthy: " + reason
		}
		return "it stopped answering after the agent had started and the watchdog reset it"
	case "healthy":
		if reason != "" {
			return "it had been healthy, then failed: " + reason
		}
		return "it had been healthy, then failed for an unknown reason"
	}
	return fmt.Sprintf("unknown; its last record says stage %q", e.Stage)
}
