package blueprint

import (
	"errors"
	"fmt"

	"github.com/croft-cloud/croft"
)

// Why a manifest, or a question about what became of it, is refused. Errors of
// this package and of agent/workload wrap one of these where a gateway has a code
// for it; all others are the box's own trouble.
var (
	ErrNoLease     = errors.New("no active lease")                            // 404
	ErrNoService   = errors.New("no such service or replica")                 // 404
	ErrBadJSON     = errors.New("manifest is not well-formed")                // 422
	ErrInvalid     = errors.New("manifest is invalid")                        // 422
	ErrWrongHash   = errors.New("manifest is not the one on chain")           // 422
	ErrMismatch    = errors.New("manifest does not fit what was leased")      // 422
	ErrHostMissing = errors.New("service has no host name")                   // 422
	ErrHostTaken   = errors.New("host name belongs to another")               // 422
	ErrClosing     = errors.New("lease is being closed")                      // 404
	ErrTooMany     = errors.New("manifest asks for more than a box can hold") // 422
)

var refusals = map[error]croft.Kind{
	ErrNoLease: croft.KindNotFound, ErrNoService: croft.KindNotFound, ErrClosing: croft.KindNotFound,
	ErrBadJSON: croft.KindInvalid, ErrInvalid: croft.KindInvalid, ErrWrongHash: croft.KindInvalid,
	ErrMismatch: croft.KindInvalid, ErrTooMany: croft.KindInvalid,
	ErrHostMissing: croft.KindRefused, ErrHostTaken: croft.KindRefused,
}

// Refuse is an error of a kind that the gateway has a code for: it wraps one of
// the reasons above, and says what to do about it.
func Refuse(reason, err error, remedy string) error {
	return &croft.Error{Kind: refusals[reason], Err: fmt.Errorf("%w: %w", reason, err), Remedy: remedy}
}
