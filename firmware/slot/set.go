package slot

import (
	"fmt"
	"slices"

	"github.com/croft-cloud/croft"
)

// Set is all boot files of one device. It never changes; each event gives a new
// one. The zero Set is a device without any.
type Set struct {
	entries []Entry // in the loader's order
}

// NewSet makes a Set of entries in any order; empty ones are left out.
func NewSet(entries ...Entry) Set {
	kept := slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return e.Generation == 0 })
	slices.SortStableFunc(kept, func(a, b Entry) int { return CompareNames(a.Name(), b.Name()) })
	return Set{kept}
}

// ParseNames makes a Set of the croft files among names.
func ParseNames(names []string) Set {
	var entries []Entry
	for _, name := range names {
		if e, err := ParseName(name); err == nil {
			entries = append(entries, e)
		}
	}
	return NewSet(entries...)
}

// Order is every entry, in the order in which the loader prefers them. Leftovers
// are among them: the loader does not know that they are.
func (s Set) Order() []Entry { return slices.Clone(s.entries) }

// Next is the entry the loader starts next; false if there is none.
func (s Set) Next() (Entry, bool) {
	if len(s.entries) == 0 {
		return Entry{}, false
	}
	return s.entries[0], true
}

// Of is the entry that speaks for a slot: the newest generation, or an empty
// entry.
func (s Set) Of(slot croft.Slot) Entry {
	if all := s.all(slot); len(all) > 0 {
		return all[0]
	}
	return Entry{Slot: slot}
}

// All is every entry of a slot, the one that speaks for it first.
func (s Set) All(slot croft.Slot) []Entry { return s.all(slot) }

func (s Set) all(slot croft.Slot) []Entry {
	var all []Entry
	for _, e := range s.entries {
		if e.Slot == slot {
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, compare)
	return all
}

// NextGeneration is the generation of the next installation: above every entry
// present, so that the loader tries it first.
func (s Set) NextGeneration() int {
	highest := 0
	for _, e := range s.entries {
		highest = max(highest, e.Generation)
	}
	return highest + 1
}

// Target is the slot that may be written while running runs. The running slot
// must be confirmed: until then the other one is the way back.
func (s Set) Target(running croft.Slot) (croft.Slot, error) {
	if _, err := croft.ParseSlot(string(running)); err != nil {
		return "", fmt.Errorf("choose target slot: running %w", err)
	}
	target := running.Other()
	if err := s.mayWrite(running, target); err != nil {
		return "", fmt.Errorf("choose target slot: %w", err)
	}
	return target, nil
}

// Move is an event, and what it happens to.
type Move struct {
	Running croft.Slot    // the slot that runs; empty while the loader decides
	Slot    croft.Slot    // the slot it happens to
	Event   Event         // what happens
	Version croft.Version // the release that is installed; for Stage only
}

// Apply is the Set after m. It refuses, and returns s unchanged, when the
// table has no such event for the slot's state ([MoveError]) and when
//
//   - Stage or Erase is meant for the running slot (ErrSlotBusy), or for the
//     other one while the running slot is still on trial (ErrOnTrial) or has no
//     boot file itself and the other one does (ErrNoFallback);
//   - Confirm, Refund or Demote is meant for a slot that is not running
//     (ErrNotRunning);
//   - Demote would leave no slot with tries (ErrNoFallback): a root that may be
//     readable again tomorrow is better than none;
//   - Boot is meant for one slot while the other runs (ErrSlotBusy). For the
//     running slot it makes up for a try that the firmware could not count.
//
// So whatever is accepted, a device that had a slot fit to boot still has one.
func (s Set) Apply(m Move) (Set, error) {
	next, err := s.apply(m)
	if err != nil {
		return s, fmt.Errorf("%s slot %s: %w", m.Event, m.Slot, err)
	}
	return next, nil
}

func (s Set) apply(m Move) (Set, error) {
	if _, err := croft.ParseSlot(string(m.Slot)); err != nil {
		return s, err
	}
	old := s.Of(m.Slot)
	next, err := old.Next(m.Event)
	if err != nil {
		return s, err
	}
	rest := slices.DeleteFunc(s.Order(), func(e Entry) bool { return e == old })
	switch m.Event {
	case Stage:
		if err := s.mayWrite(m.Running, m.Slot); err != nil {
			return s, err
		}
		if next.Version, err = croft.ParseVersion(string(m.Version)); err != nil {
			return s, err
		}
		if len(m.Version) > MaxVersion {
			return s, fmt.Errorf("version %s has more than %d characters", m.Version, MaxVersion)
		}
		if next.Generation = s.NextGeneration(); next.Generation > MaxGeneration {
			return s, fmt.Errorf("generation %d is above %d", next.Generation, MaxGeneration)
		}
	case Erase:
		if err := s.mayWrite(m.Running, m.Slot); err != nil {
			return s, err
		}
		rest = slices.DeleteFunc(rest, func(e Entry) bool { return e.Slot == m.Slot })
	case Confirm, Refund, Demote:
		if m.Running != m.Slot {
			return s, ErrNotRunning
		}
		if m.Event == Demote && old != next && !s.Of(m.Slot.Other()).fit() {
			return s, ErrNoFallback
		}
	case Boot, BootLast:
		if m.Running != "" && m.Running != m.Slot {
			return s, ErrSlotBusy
		}
	}
	return NewSet(append(rest, next)...), nil
}

// mayWrite refuses to touch slot unless the other slot runs and can be relied on.
func (s Set) mayWrite(running, slot croft.Slot) error {
	if running != slot.Other() {
		return ErrSlotBusy
	}
	switch s.Of(running).State() {
	case Trial, Exhausted:
		return ErrOnTrial
	case Empty: // started by other means than the loader
		if s.Of(slot).State() != Empty {
			return ErrNoFallback
		}
	case Confirmed:
	}
	return nil
}

// fit reports whether the loader prefers the entry to exhausted ones.
func (e Entry) fit() bool {
	st := e.State()
	return st == Trial || st == Confirmed
}
