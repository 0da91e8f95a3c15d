package fleetapi

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/croft-cloud/croft"
)

// The bounds of payloads. Lengths are in bytes.
const (
	MaxText     = 1024 // of a value of an event, of a job's argument or result, of a line of the log
	MaxName     = 64   // of the owner's name for a box, and of a serial number
	MaxFacts    = 64   // facts of a box, and labels the fleet gives to one
	MaxFields   = 16   // fields of an event, arguments and results of a job
	MaxLogLines = 500  // lines of a payload
	maxWord     = 64   // of a name in programs
	maxFact     = 256  // of a fact's value
	maxLabel    = 128  // of a label's value
)

// MinInterval and MaxInterval bound how often a box reads about itself.
const (
	MinInterval = time.Second
	MaxInterval = time.Hour
)

// Label is a name with a value. The name is of a-z, 0-9 and '_', begins with a
// letter and has at most 64 characters. Lists of labels are sorted by name and
// have each name once; [Labels] makes such a list.
type Label struct{ Name, Value string }

// Labels is the list of what a map says.
func Labels(m map[string]string) []Label {
	list := make([]Label, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		list = append(list, Label{name, m[name]})
	}
	return list
}

// LabelValue is the value of a name in a list, empty if it is not there.
func LabelValue(sorted []Label, name string) string {
	i, found := slices.BinarySearchFunc(sorted, name, func(l Label, name string) int { return cmp.Compare(l.Name, name) })
	if !found {
		return ""
	}
	return sorted[i].Value
}

// Origin says where a numbered message comes from. The fleet stores one of each
// (device, Journal, Seq) and drops the others.
type Origin struct {
	// Journal is a random number above 0 that the box drew when it made the
	// journal that counts Seq and [Hello.Epoch]. A new one means that the old
	// journal is lost and the counters began again.
	Journal uint64

	// Seq is 1 for the first message of a journal and grows by one with each,
	// events and job statuses together. No number is used for two messages.
	Seq uint64
}

// NewJournal draws a number for [Origin.Journal].
func NewJournal() uint64 {
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // never fails
	return max(1, binary.BigEndian.Uint64(raw[:])>>1)
}

// Hello says who the box is and what it runs. It is the first message of each
// session, before the [State].
type Hello struct {
	Journal uint64        // as in [Origin]
	Epoch   uint64        // number of the session: 1, then one more with each of the journal
	Version uint64        // newest version of this wire the box understands
	At      time.Time     // device clock
	Synced  bool          // whether the clock was set by a server since boot
	BootID  string        // kernel's random id of this boot, a UUID in lower case
	Release croft.Version // what runs
	Slot    croft.Slot    // where it runs
	Board   string        // hardware model: 1 to 64 letters, digits and "._:~-"
	Serial  string        // serial number on the case; empty if there is none
	Facts   []Label       // what the box found in itself: cpu_model, memory_bytes, gpu_model; at most [MaxFacts]
}

// Subject implements [Payload].
func (*Hello) Subject() Subject { return SubjectHello }

func (h *Hello) table() table {
	return table{
		{2, "journal", number{&h.Journal, 1}},
		{3, "epoch", number{&h.Epoch, 1}},
		{4, "version", number{&h.Version, 1}},
		{5, "at", moment{&h.At, true}},
		{6, "synced", yesNo{&h.Synced}},
		{7, "boot_id", bootID{&h.BootID}},
		{8, "release", textOf(&h.Release, isRelease)},
		{9, "slot", textOf(&h.Slot, oneOf(croft.SlotA, croft.SlotB))},
		{10, "board", textOf(&h.Board, token(1, 64))},
		{11, "serial", textOf(&h.Serial, sentence(0, MaxName))},
		{12, "facts", labelsOf(&h.Facts, MaxFacts, maxFact)},
	}
}

// Presence says whether a box is in a session.
type Presence string

// The presences.
const (
	Online Presence = "online"
	Lost   Presence = "lost" // the will; also the farewell of a box that leaves in order
)

// State says whether the box is there.
type State struct {
	Presence Presence
	Journal  uint64 // as in [Hello]
	Epoch    uint64 // as in [Hello]
}

// Subject implements [Payload].
func (*State) Subject() Subject { return SubjectState }

func (s *State) table() table {
	return table{
		{2, "presence", textOf(&s.Presence, oneOf(Online, Lost))},
		{3, "journal", number{&s.Journal, 1}},
		{4, "epoch", number{&s.Epoch, 1}},
	}
}

// Buries reports whether s, which has just arrived, replaces known, the state
// that was believed until now. An end replaces only the session it ends or an
// earlier one, so the late will of an old session changes nothing. A birth
// replaces what is not newer in the same journal, and everything of another.
func (s State) Buries(known State) bool {
	switch {
	case known == State{}:
		return true
	case s.Journal != known.Journal:
		return s.Presence == Online
	case s.Epoch != known.Epoch:
		return s.Epoch > known.Epoch
	}
	return known.Presence == Online
}

// Severity says how much an event matters.
type Severity string

// The severities.
const (
	SeverityInfo     Severity = "info"     // for the record
	SeverityWarning  Severity = "warning"  // somebody should look at it this week
	SeverityError    Severity = "error"    // something does not work
	SeverityCritical Severity = "critical" // the box earns nothing, or soon
)

// Event is something that happened on the box.
type Event struct {
	Origin
	At       time.Time // device clock
	Synced   bool      // as in [Hello]
	Kind     string    // word: lease_started, clock_stepped
	Severity Severity
	Fields   []Label // details; at most [MaxFields] of [MaxText]
}

// Subject implements [Payload].
func (*Event) Subject() Subject { return SubjectEvent }

func (e *Event) table() table {
	return table{
		{2, "journal", number{&e.Journal, 1}},
		{3, "seq", number{&e.Seq, 1}},
		{4, "at", moment{&e.At, true}},
		{5, "synced", yesNo{&e.Synced}},
		{6, "kind", textOf(&e.Kind, word)},
		{7, "severity", textOf(&e.Severity, oneOf(SeverityInfo, SeverityWarning, SeverityError, SeverityCritical))},
		{8, "fields", labelsOf(&e.Fields, MaxFields, MaxText)},
	}
}

// LogLines is the newest lines of the agent's log. Lines that hardly compress
// may be too large together; [Encode] then refuses them.
type LogLines struct {
	Lines   []LogLine // at most [MaxLogLines]
	Dropped uint64    // lines left out since the payload before, by the rate limit
}

// LogLine is one line.
type LogLine struct {
	At    time.Time // device clock
	Level string    // a word: debug, info, warn, error
	Text  string    // at most [MaxText]; [CleanText] makes it fit
}

// Subject implements [Payload].
func (*LogLines) Subject() Subject { return SubjectLog }

func (l *LogLines) table() table {
	return table{
		{2, "lines", rows[LogLine]{&l.Lines, MaxLogLines, func(l *LogLine) table {
			return table{
				{1, "at", moment{&l.At, true}},
				{2, "level", textOf(&l.Level, word)},
				{3, "text", textOf(&l.Text, sentence(0, MaxText))},
			}
		}}},
		{3, "dropped", number{at: &l.Dropped}},
	}
}

// Desired is what the fleet wants of a box. The newest is retained; a box
// follows the greatest version it has seen and stores it before it acts.
type Desired struct {
	Version  uint64        // only grows
	Claimed  bool          // whether the box has an owner
	Name     string        // the owner's name for it; empty if there is none; at most [MaxName]
	Interval time.Duration // how often to read; [MinInterval] to [MaxInterval]
	Release  croft.Version // release to run; empty: the one that runs
	Labels   []Label       // what operators call the box; at most [MaxFacts]
}

// Subject implements [Payload].
func (*Desired) Subject() Subject { return SubjectDesired }

func (d *Desired) table() table {
	return table{
		{2, "version", number{&d.Version, 1}},
		{3, "claimed", yesNo{&d.Claimed}},
		{4, "name", textOf(&d.Name, sentence(0, MaxName))},
		{5, "interval", span{&d.Interval, MinInterval, MaxInterval}},
		{6, "release", textOf(&d.Release, optional(isRelease))},
		{7, "labels", labelsOf(&d.Labels, MaxFacts, maxLabel)},
	}
}
