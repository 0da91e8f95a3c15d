package fleetapi

import (
	"crypto/rand"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"
)

// Prefix says what an id names. Devices have none: their name is a
// croft.DeviceID, which nobody hands out.
type Prefix string

// The prefixes.
const (
	PrefixUser         Prefix = "usr"
	PrefixOwner        Prefix = "own"
	PrefixJob          Prefix = "job"
	PrefixToken        Prefix = "tok"
	PrefixSession      Prefix = "ses"
	PrefixEvent        Prefix = "evt"
	PrefixGroup        Prefix = "grp"
	PrefixRule         Prefix = "rul"
	PrefixNotification Prefix = "ntf"
)

// NewID makes an id, e.g. "job_01JDATZ4N3V9Q2D5Y0W8KXR7ME": the prefix, '_' and
// a ULID. Ids made later sort later, to the millisecond. 80 bits of each are
// random, so that nobody finds one by guessing; an id is no secret all the same.
func NewID(p Prefix) string {
	return string(p) + "_" + ulid.MustNew(ulid.Timestamp(time.Now()), rand.Reader).String()
}

// ParseID accepts exactly what [NewID] makes of p, in upper case.
func ParseID(p Prefix, s string) (string, error) {
	head := string(p) + "_"
	if len(s) != len(head)+ulid.EncodedSize || s[:len(head)] != head {
		return "", refuse(ReasonMalformed, "id %.32q: want %s and %d characters", s, head, ulid.EncodedSize)
	}
	id, err := ulid.ParseStrict(s[len(head):])
	if err != nil {
		return "", &RefusedError{Reason: ReasonMalformed, Err: fmt.Errorf("id %.32q: %w", s, err)}
	}
	if id.String() != s[len(head):] {
		return "", refuse(ReasonMalformed, "id %.32q: want upper case", s)
	}
	return s, nil
}
