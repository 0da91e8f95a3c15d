// Package slot decides what may happen to the two bootable slots of a device:
// which one the boot loader starts next, which one may be written, and what a
// boot file is called after each event.
//
// Everything here is a pure function of the file names in \EFI\Linux of the EFI
// system partition. Those names are the whole stored state; package esp reads
// them and carries the decisions out.
//
//	croft_<generation>_<slot>_<version>[+<left>[-<done>]].efi
//
// The generation grows with every installation, whatever the version, so that
// the loader tries the newest installation first even when it is a downgrade.
// The counter belongs to systemd-boot: it takes one try from left and adds it
// to done each time it starts the file, and puts files with nothing left behind
// all others. A file without a counter is confirmed.
//
// Firmware that cannot write the partition does not count. croft-init then takes
// the try itself: the loader says which name it started, and a name that still
// stands was not counted. The limit of this: when the kernel or croft-init itself
// does not get that far, or the disk cannot be written at all, such a trial does
// not end by itself.
//
// Power cut: one event is one change of names. Either it happened or it did
// not, and from both sides the next event is legal.
package slot

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"

	"github.com/croft-cloud/croft"
)

// Tries is how many times the loader starts a new installation that is not
// confirmed before it turns to the other slot.
const Tries = 3

// MaxVersion is how many characters the version of a release may have to be
// installed. The names of both slots, and one more while a file is renamed, then
// fit into one sector of the folder, which a disk writes whole or not at all. A
// name across two sectors could be lost with its file.
const MaxVersion = 16

// MaxGeneration is the highest generation a name can carry. Names have four
// digits and grow beyond 9999, because the loader compares numbers, not text;
// a device that installs once a second gets here after 31 years.
const MaxGeneration = 999_999_999

// Errors a caller may test for. They come wrapped, with slot and event.
var (
	// ErrSlotBusy reports that the slot to be written is the running one.
	ErrSlotBusy = errors.New("slot is running")
	// ErrNotRunning reports that an event only the running slot can have was
	// meant for another.
	ErrNotRunning = errors.New("slot is not running")
	// ErrOnTrial reports that the running slot is not confirmed, so the other
	// one is still needed as the way back.
	ErrOnTrial = errors.New("running slot is not confirmed yet")
	// ErrNoFallback reports that nothing sound would be left to boot.
	ErrNoFallback = errors.New("no other slot is fit to boot")
)

// State is what the names say about one slot.
type State string

// The states of a slot.
const (
	Empty     State = "empty"     // no boot file. Transitions to: trial
	Trial     State = "trial"     // not confirmed, tries left. Transitions to: exhausted, confirmed, empty
	Exhausted State = "exhausted" // not confirmed, no tries left; the last of them may be the boot that runs now. Transitions to: trial, confirmed, empty
	Confirmed State = "confirmed" // found healthy. Transitions to: exhausted, empty
)

// Event is something that happens to a slot.
type Event string

// The events of a slot.
const (
	Stage    Event = "stage"     // a new boot file was installed, with Tries tries
	Boot     Event = "boot"      // the loader starts the slot; or croft-init counts that it did
	BootLast Event = "boot_last" // the loader starts it and takes the last try; [Entry.Next] finds this out from Boot
	Confirm  Event = "confirm"   // the agent found the running slot healthy
	Refund   Event = "refund"    // the running slot shuts down cleanly before it was confirmed: the try is given back
	Demote   Event = "demote"    // the running slot was confirmed once, and its root cannot be read any more
	Erase    Event = "erase"     // the boot file goes, to make room
)

// law is the transition table. What is not in it is refused.
//
// An exhausted slot may be confirmed or refunded: "+0-3" is also what the name
// says while the third trial runs. One that is booted stays exhausted: the
// loader still starts it when there is nothing else.
var law = map[State]map[Event]State{
	Empty:     {Stage: Trial, Erase: Empty},
	Trial:     {Boot: Trial, BootLast: Exhausted, Confirm: Confirmed, Refund: Trial, Erase: Empty},
	Exhausted: {Boot: Exhausted, Confirm: Confirmed, Refund: Trial, Demote: Exhausted, Erase: Empty},
	Confirmed: {Boot: Confirmed, Confirm: Confirmed, Demote: Exhausted, Erase: Empty},
}

// MoveError reports an event that has no place in a state.
type MoveError struct {
	From  State
	Event Event
}

func (e *MoveError) Error() string {
	return fmt.Sprintf("slot is %s, cannot %s", e.From, e.Event)
}

// Next is the state after e, or a [MoveError].
func (s State) Next(e Event) (State, error) {
	if to, ok := law[s][e]; ok {
		return to, nil
	}
	return s, &MoveError{From: s, Event: e}
}

// Entry is one boot file, as its name describes it. An Entry with Generation 0
// stands for a slot that has none.
type Entry struct {
	Generation int           // 1 to MaxGeneration; 0: no file
	Slot       croft.Slot    // the slot it belongs to
	Version    croft.Version // the release it boots
	Counted    bool          // the name has a counter: not confirmed
	Left       int           // tries left, 0 to 99; 0 unless Counted
	Done       int           // tries used; 0 unless Counted
}

// NameError reports a file name that croft does not write. Such a file is
// somebody else's: leave it alone.
type NameError struct {
	Name   string
	Reason string
}

func (e *NameError) Error() string {
	return fmt.Sprintf("parse boot file name %q: %s", e.Name, e.Reason)
}

var nameForm = regexp.MustCompile(`^croft_(\d{4,9})_([ab])_([^_+]+)(\+(\d{1,2})(?:-(\d{1,10}))?)?\.efi$`)

// ParseName reads a file name. It accepts exactly what [Entry.Name] writes, and
// returns a [NameError] for all else.
func ParseName(name string) (Entry, error) {
	m := nameForm.FindStringSubmatch(name)
	if m == nil {
		return Entry{}, &NameError{name, "not croft_<generation>_<slot>_<version>[+<left>[-<done>]].efi"}
	}
	version, err := croft.ParseVersion(m[3])
	if err != nil {
		return Entry{}, &NameError{name, err.Error()}
	}
	e := Entry{Slot: croft.Slot(m[2]), Version: version, Counted: m[4] != ""}
	// The expression admits nothing but digits, and too few to overflow.
	e.Generation, _ = strconv.Atoi(m[1])
	e.Left, _ = strconv.Atoi(m[5])
	e.Done, _ = strconv.Atoi(m[6])
	if e.Generation == 0 || e.Done > math.MaxInt32 || e.Name() != name {
		return Entry{}, &NameError{name, "a number is written in another way than croft does"}
	}
	return e, nil
}

// Name is the file's name, empty for an empty slot.
func (e Entry) Name() string {
	if e.Generation == 0 {
		return ""
	}
	name := fmt.Sprintf("croft_%04d_%s_%s", e.Generation, e.Slot, e.Version)
	if e.Counted {
		name += fmt.Sprintf("+%d", e.Left)
		if e.Done > 0 {
			name += fmt.Sprintf("-%d", e.Done)
		}
	}
	return name + ".efi"
}

// State is what the name says.
func (e Entry) State() State {
	switch {
	case e.Generation == 0:
		return Empty
	case !e.Counted:
		return Confirmed
	case e.Left > 0:
		return Trial
	}
	return Exhausted
}

// Next is the entry after ev, or a [MoveError]. To stage, give an empty entry
// its generation and version with [Set.Apply].
func (e Entry) Next(ev Event) (Entry, error) {
	last := e.Counted && e.Left == 1
	if ev == Boot && last {
		ev = BootLast
	}
	if _, err := e.State().Next(ev); err != nil {
		return e, err
	}
	if ev == BootLast && !last {
		return e, &MoveError{From: e.State(), Event: ev}
	}
	switch ev {
	case Stage:
		e.Counted, e.Left, e.Done = true, Tries, 0
	case Boot, BootLast:
		if e.Counted { // the loader stops at nothing left, and goes on counting
			e.Left, e.Done = max(e.Left-1, 0), min(e.Done+1, math.MaxInt32)
		}
	case Confirm:
		e.Counted, e.Left, e.Done = false, 0, 0
	case Refund:
		// "+3" while it runs means the firmware could not count: nothing to give back.
		if e.Done > 0 || e.Left == 0 {
			e.Left, e.Done = min(e.Left+1, 99), max(e.Done-1, 0)
		}
	case Demote:
		if !e.Counted {
			e.Counted, e.Left, e.Done = true, 0, Tries
		}
	case Erase:
		e = Entry{Slot: e.Slot}
	}
	return e, nil
}

// compare puts the entry that speaks for its slot first: the newest
// installation and, of two names for one installation (a rename that power cut
// short), the one that is confirmed or has more tries.
func compare(a, b Entry) int {
	return cmp.Or(
		cmp.Compare(b.Generation, a.Generation),
		compareBool(a.Counted, b.Counted),
		cmp.Compare(b.Left, a.Left),
		cmp.Compare(a.Done, b.Done),
		cmp.Compare(a.Version, b.Version),
	)
}
