// Package claim knows claim codes: the eight symbols with which an owner tells
// the fleet "this box is mine".
//
// A box draws its code with [New] and shows it on its screen; the owner scans it
// or types it, and [Normalize] reads what was typed. A code carries 40 random
// bits: enough because the fleet allows only a few tries per device, not enough
// to stand against a machine that may guess freely.
//
// A code is a secret for whoever is near the box. Printing or logging a [Code]
// hides it; [Code.Shown] and [Code.URL] are the two ways to let it out. The
// package does no I/O but reading from the source of randomness it is given; it
// keeps nothing, so nothing of it needs to survive a crash.
package claim

import (
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode"

	"github.com/croft-cloud/croft"
)

// Symbols is the number of symbols in a code, dash not counted.
const Symbols = 8

// randomBytes is the size of the random number in a code: 40 bits.
const randomBytes = Symbols * 5 / 8

// alphabet is Crockford's base32: digits and letters without I, L, O and U.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

var encoding = base32.NewEncoding(alphabet).WithPadding(base32.NoPadding)

// hidden is what a code looks like wherever it was not asked for by name.
const hidden = "[claim code]"

// Code is a claim code in its canonical form, e.g. "K7QM2XWP": eight symbols of
// Crockford's base32, upper case, without the dash. This form is what is stored
// and compared. The empty Code means that there is none.
type Code string

// New draws a code from rand, which must be a source fit for secrets such as
// crypto/rand.Reader.
func New(rand io.Reader) (Code, error) {
	var raw [randomBytes]byte
	if _, err := io.ReadFull(rand, raw[:]); err != nil {
		return "", fmt.Errorf("draw claim code: %w", err)
	}
	return Code(encoding.EncodeToString(raw[:])), nil
}

// Normalize reads a code as a person types it: in either case, with or without
// dashes and spaces, the letter O for zero, I or L for one. Its errors are of
// kind usage, tell what is wrong and never repeat the code.
func Normalize(typed string) (Code, error) {
	var code strings.Builder
	for _, r := range typed {
		switch {
		case unicode.IsSpace(r), unicode.Is(unicode.Pd, r), r == '\u2212', r == '_':
			continue // phones turn "-" into longer dashes
		case r <= unicode.MaxASCII:
			r = unicode.ToUpper(r)
		}
		switch r {
		case 'O':
			r = '0'
		case 'I', 'L':
			r = '1'
		case 'U':
			return "", wrong(errors.New("claim code has the letter U, which no code has"),
				"look again, it may be a V")
		}
		if !strings.ContainsRune(alphabet, r) {
			return "", wrong(fmt.Errorf("claim code has %q, which no code has", r),
				"type only the letters and digits shown on the box")
		}
		if code.Len() == Symbols {
			return "", wrong(fmt.Errorf("claim code has more than %d symbols", Symbols),
				"type only the code, like "+example)
		}
		code.WriteRune(r)
	}
	switch n := code.Len(); {
	case n == 0:
		return "", wrong(errors.New("claim code is empty"), "type the code shown on the box, like "+example)
	case n < Symbols:
		return "", wrong(fmt.Errorf("claim code has %d of %d symbols", n, Symbols), "type the rest of it")
	}
	return Code(code.String()), nil
}

// example is the code that help texts show.
const example = "K7QM-2XWP"

func wrong(err error, remedy string) error {
	return &croft.Error{Kind: croft.KindUsage, Err: err, Remedy: remedy}
}

// Shown is the code as people see it: "K7QM-2XWP". It is empty when c is.
func (c Code) Shown() string {
	if len(c) != Symbols {
		return string(c)
	}
	return string(c[:Symbols/2]) + "-" + string(c[Symbols/2:])
}

// URL is the address behind the QR code: base, '#', code. Browsers do not send
// the part after '#', so the code appears in no server's log.
func (c Code) URL(base string) string { return base + "#" + string(c) }

// String hides the code, so that no format verb prints it by accident.
func (c Code) String() string {
	if c == "" {
		return ""
	}
	return hidden
}

// GoString hides the code from %#v.
func (c Code) GoString() string { return `claim.Code("` + c.String() + `")` }

// LogValue hides the code from logs.
func (c Code) LogValue() slog.Value { return slog.StringValue(c.String()) }
