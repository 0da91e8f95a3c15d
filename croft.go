// Package croft holds the words every part of croft shares: who a device is,
// which slot and release it runs, and the kinds an error can have.
//
// It imports nothing but the standard library, does no I/O and keeps no state.
// A type lives here only when two top-level folders need it.
package croft

import (
	"encoding/base32"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// DeviceID names one physical unit for life. It is the lower-case, unpadded
// base32 (RFC 4648) of the first 20 bytes of the SHA-256 of the device's public
// key in PKIX DER form: 32 characters.
type DeviceID string

// deviceIDBytes is how much of the key's SHA-256 a DeviceID keeps. 160 bits
// are beyond any collision or second-preimage search.
const deviceIDBytes = 20

var deviceIDEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// DeviceIDFromDigest builds the ID from the SHA-256 of the device's public key.
func DeviceIDFromDigest(sum [32]byte) DeviceID {
	return DeviceID(strings.ToLower(deviceIDEncoding.EncodeToString(sum[:deviceIDBytes])))
}

// ParseDeviceID accepts exactly what [DeviceIDFromDigest] produces.
func ParseDeviceID(s string) (DeviceID, error) {
	raw, err := deviceIDEncoding.DecodeString(strings.ToUpper(s))
	if err != nil || len(raw) != deviceIDBytes || s != strings.ToLower(s) {
		return "", fmt.Errorf("device ID %q: want 32 characters of a-z and 2-7", s)
	}
	return DeviceID(s), nil
}

// ShortName is the name people see: "croft-" and the ID's first four
// characters. It is a label, never a key: two devices may share it.
func (id DeviceID) ShortName() string {
	if len(id) < 4 {
		return "croft"
	}
	return "croft-" + string(id[:4])
}

// Slot is one of the two bootable sets (kernel and root) of a device.
type Slot string

// The two slots of a device.
const (
	SlotA Slot = "a"
	SlotB Slot = "b"
)

// ParseSlot accepts "a" and "b".
func ParseSlot(s string) (Slot, error) {
	switch slot := Slot(s); slot {
	case SlotA, SlotB:
		return slot, nil
	}
	return "", fmt.Errorf("slot %q: want a or b", s)
}

// Other is the slot that s is not.
func (s Slot) Other() Slot {
	if s == SlotA {
		return SlotB
	}
	return SlotA
}

// Version names a release. It appears in file names on a FAT partition, so its
// alphabet is narrow.
type Version string

var versionForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.~-]{0,31}$`)

// ParseVersion accepts 1 to 32 characters of letters, digits, '.', '~' and
// '-', the first a letter or digit.
func ParseVersion(s string) (Version, error) {
	if !versionForm.MatchString(s) {
		return "", fmt.Errorf("version %q: want 1 to 32 of letters, digits, '.', '~' and '-', beginning with a letter or digit", s)
	}
	return Version(s), nil
}

// Kind sorts errors by what the caller should do about them. Kinds cross the
// wire and become exit codes; the text of an error never decides anything.
type Kind string

// The kinds.
const (
	KindOther    Kind = ""          // no advice
	KindUsage    Kind = "usage"     // the request itself is wrong: correct it
	KindNotFound Kind = "not_found" // what was named does not exist
	KindRefused  Kind = "refused"   // a safety rule forbids it: nothing was changed
	KindMissing  Kind = "missing"   // the machine lacks something: install it
	KindNoSpace  Kind = "no_space"  // free some space and repeat
	KindInvalid  Kind = "invalid"   // the input is damaged or not ours
)

// Error is an error a person will read: what went wrong, and what to do.
type Error struct {
	Kind   Kind
	Err    error
	Remedy string // one imperative sentence without a full stop; may be empty
}

func (e *Error) Error() string {
	if e.Remedy == "" {
		return e.Err.Error()
	}
	return e.Err.Error() + "; " + e.Remedy
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf is the kind of the first [Error] in err's chain.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindOther
}
