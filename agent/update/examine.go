package update

import (
	"fmt"
	"strings"

	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/firmware/slot"
)

// Inspector is what [Examine] needs of the EFI partition.
type Inspector interface {
	Read() (slot.Set, error)
	CheckUKI(slot.Entry) slot.UKIState
}

// Examine looks at the slot that is not running and, if it was given up or
// should run instead of this one and cannot, returns one sentence on what is
// known of the cause, else "".
func Examine(loader Inspector, h bootlog.Handover) (slot.Entry, string, error) {
	set, err := loader.Read()
	if err != nil {
		return slot.Entry{}, "", fmt.Errorf("examine slot %s: %w", h.Slot.Other(), err)
	}
	entry := set.Of(h.Slot.Other())
	if entry.State() != slot.Exhausted {
		return entry, passedOver(loader, entry, set.Of(h.Slot)), nil
	}
	evidence := slot.Evidence{Entry: entry, UKI: loader.CheckUKI(entry), Panic: h.Panic}
	if a, ok := h.Before[entry.Slot]; ok && a.Version == entry.Version {
		evidence.HaveRecord = true
		evidence.Stage, evidence.Reason, evidence.AgentStarts = string(a.Stage), a.Reason, a.AgentStarts
	}
	cause := strings.TrimSuffix(slot.Diagnose(evidence), ".")
	return entry, fmt.Sprintf("Version %s was tried and given up: %s.", entry.Version, cause), nil
}

// passedOver is the sentence on an entry with tries that is newer than the
// running one, and so should have been started first. One that was never tried
// may have been installed in this boot: that is no news, unless its file is bad.
func passedOver(loader Inspector, entry, running slot.Entry) string {
	if entry.Generation <= running.Generation {
		return ""
	}
	switch state := loader.CheckUKI(entry); {
	case state == slot.UKITruncated, state == slot.UKIMissing:
		cause := slot.Diagnose(slot.Evidence{Entry: entry, UKI: state})
		return fmt.Sprintf("Version %s cannot be started: %s.", entry.Version, cause)
	case entry.Counted && entry.Done == 0:
		return ""
	}
	return fmt.Sprintf("Version %s is newer but was not started: the boot loader took the other one.", entry.Version)
}
