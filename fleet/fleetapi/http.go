package fleetapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/croft-cloud/croft"
)

// Stamp is a time in JSON: RFC 3339, UTC, with milliseconds. The zero Stamp is
// none: it is written as null, and omitzero leaves it out.
type Stamp struct{ time.Time }

// StampOf is at as it goes over the wire.
func StampOf(at time.Time) Stamp {
	if at.IsZero() {
		return Stamp{}
	}
	return Stamp{Truncate(at)}
}

const stampForm = "2006-01-02T15:04:05.000Z07:00"

// MarshalJSON implements [json.Marshaler].
func (s Stamp) MarshalJSON() ([]byte, error) {
	if s.IsZero() {
		return []byte("null"), nil
	}
	if err := checkTime(Truncate(s.Time)); err != nil {
		return nil, err
	}
	return []byte(`"` + s.UTC().Format(stampForm) + `"`), nil
}

// UnmarshalJSON implements [json.Unmarshaler]. It accepts every time of RFC 3339
// from 1970 to 2199, in any zone, and keeps whole milliseconds.
func (s *Stamp) UnmarshalJSON(raw []byte) error {
	var at time.Time
	if err := json.Unmarshal(raw, &at); err != nil {
		return &RefusedError{Reason: ReasonMalformed, Err: fmt.Errorf("read time: %w", err)}
	}
	if at.IsZero() { // null too
		*s = Stamp{}
		return nil
	}
	if err := checkTime(Truncate(at)); err != nil {
		return err
	}
	*s = StampOf(at)
	return nil
}

// MaxErrorDocument is the most bytes of an [ErrorDocument] worth reading.
const MaxErrorDocument = 16 << 10

// ErrorDocument is the body of every answer of the HTTP API that reports an
// error, as application/json:
//
//	{"kind":"refused","message":"box has an owner","remedy":"ask the owner to transfer it"}
//
// The status of the answer follows from the kind. Clients decide by status and
// kind; the sentences are for people.
type ErrorDocument struct {
	Kind    croft.Kind `json:"kind"`             // empty: the server is at fault, or busy
	Message string     `json:"message"`          // what went wrong
	Remedy  string     `json:"remedy,omitempty"` // what to do, an imperative sentence without a full stop
}

// internalMessage stands for errors whose text is not meant for those outside.
const internalMessage = "the fleet could not do it now"

// ErrorDocumentOf is what those outside learn of err: the first *[croft.Error]
// in its chain. The text of any other error stays inside.
func ErrorDocumentOf(err error) ErrorDocument {
	e, ok := errors.AsType[*croft.Error](err)
	if !ok || e.Kind == croft.KindOther {
		return ErrorDocument{Message: internalMessage, Remedy: "try again in a minute"}
	}
	return ErrorDocument{
		Kind:    e.Kind,
		Message: CleanText(e.Err.Error(), MaxText),
		Remedy:  CleanText(e.Remedy, MaxText),
	}
}

// ParseErrorDocument reads the body of an answer. Bodies that are no document,
// as those of a proxy on the way, are refused.
func ParseErrorDocument(raw []byte) (ErrorDocument, error) {
	var d ErrorDocument
	if len(raw) > MaxErrorDocument {
		return d, refuse(ReasonOversized, "read error document: it has %d bytes: want at most %d", len(raw), MaxErrorDocument)
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return ErrorDocument{}, &RefusedError{Reason: ReasonMalformed, Err: fmt.Errorf("read error document: %w", err)}
	}
	for _, err := range []error{
		optional(word)(string(d.Kind)), sentence(1, MaxText)(d.Message), sentence(0, MaxText)(d.Remedy),
	} {
		if err != nil {
			return ErrorDocument{}, fmt.Errorf("read error document: %w", err)
		}
	}
	return d, nil
}

// Err is the document as an error of the side that read it.
func (d ErrorDocument) Err() error {
	return &croft.Error{Kind: d.Kind, Err: errors.New(d.Message), Remedy: d.Remedy}
}
