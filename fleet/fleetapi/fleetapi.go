// Package fleetapi is the wire between a box and its fleet: the topics and
// payloads of MQTT, the batches of readings, the bodies of the HTTP API with
// which a box enrols, and the ids both sides write down.
//
//	topic := fleetapi.SubjectEvent.Topic(device)
//	raw, err := fleetapi.Encode(&fleetapi.Event{…})         // the box
//
//	device, subject, err := fleetapi.ParseTopic(topic)       // the fleet
//	payload, err := fleetapi.Decode(subject, raw)
//	if err != nil { refused.WithLabelValues(string(fleetapi.ReasonOf(err))).Inc() }
//
// The package does no I/O, keeps no state and imports nothing of the box or of
// the fleet.
//
// # Payloads
//
// A payload is one message of protocol buffers; on [SubjectReadings] and
// [SubjectLog] it is a zstd frame of one. Field 1 is the wire version and comes
// first. Fields that are not known are skipped, so a new field must be harmless
// to those who do not know it. What is not, takes a new [Version].
//
// The codecs are written by hand on top of protowire: one table per message
// encodes, decodes and checks, so the three agree, and nothing is generated.
//
// # Promises
//
// What [Encode] made, [Decode] accepts; what either accepts obeys every rule
// written at the types of this package: texts are UTF-8 of bounded length
// without control characters, numbers are in range, lists are sorted and
// without duplicates. Everything else is refused with a [RefusedError], whose
// [Reason] is one of few words, fit for counting.
//
// Whatever the bytes, Decode holds at most a few MiB: payloads are bounded by
// [Subject.MaxPayload], frames to 1 MiB once unpacked, batches to [MaxValues].
//
// # What survives what
//
// A message delivered twice: whatever must not count twice has a sequence
// number, unique for its device and [Event.Journal]. A journal that was lost
// with its disk: the box draws a new number for the new one, so its counters
// may begin again. An old will that arrives late: [State.Buries] says that it
// buries no later birth. A clock that jumped: times are what the box believed,
// and [Hello.Synced], [Event.Synced] and [Batch.Synced] say whether it had
// reason to.
package fleetapi

import (
	"errors"
	"fmt"
)

// Version is what this package speaks, and the newest it understands. The fleet
// is updated before its boxes; a box says in its [Hello] what it speaks, and is
// spoken to in the same.
//
//   - 1: 2026-11-21: hello, state, readings, event, log, job, desired; word list 1
const Version = 1

// Reason says in a word why input was refused. It is what ingest counts by.
type Reason string

// The reasons.
const (
	ReasonOversized Reason = "oversized"       // more bytes, before or after unpacking, or more parts than allowed
	ReasonMalformed Reason = "malformed"       // not in the form of the wire at all
	ReasonVersion   Reason = "unknown_version" // from a later version of the wire
	ReasonForeign   Reason = "foreign"         // sound, but not the sender's to say: another's topic, a reserved name
	ReasonText      Reason = "bad_text"        // a text that is not UTF-8, too long, or has characters it must not have
	ReasonRange     Reason = "out_of_range"    // a number, time or count beyond its bounds
	ReasonMissing   Reason = "missing"         // something required is not there
	ReasonOther     Reason = "other"           // no refusal of this package
)

// Reasons is every reason, for counters that show zeros from the start.
func Reasons() []Reason {
	return []Reason{
		ReasonOversized, ReasonMalformed, ReasonVersion, ReasonForeign,
		ReasonText, ReasonRange, ReasonMissing, ReasonOther,
	}
}

// RefusedError reports input that breaks a rule of this package. Its text
// quotes at most a few characters of the input, escaped.
type RefusedError struct {
	Reason Reason
	Err    error
}

func (e *RefusedError) Error() string { return e.Err.Error() }

func (e *RefusedError) Unwrap() error { return e.Err }

// ReasonOf is the reason of the first [RefusedError] in err's chain, and
// [ReasonOther] without one.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*RefusedError](err); ok {
		return e.Reason
	}
	return ReasonOther
}

func refuse(reason Reason, format string, args ...any) error {
	return &RefusedError{Reason: reason, Err: fmt.Errorf(format, args...)}
}
