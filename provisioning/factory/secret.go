package factory

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"

	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Secret is what a box's sticker says and the fleet finds the box by: 80 bits in
// the symbols of a claim code ([claim.Code]), twice as many of them. Its
// canonical form, upper case and without dashes, is what [enroll.HashClaim]
// takes. Printing or logging it hides it; [Secret.Shown], [Secret.URL] and JSON
// let it out.
type Secret string

const (
	secretSymbols = 2 * claim.Symbols
	groupSymbols  = claim.Symbols / 2
	hiddenSecret  = "[sticker secret]"
)

// NewSecret draws a secret.
func NewSecret() Secret {
	var secret Secret
	for range secretSymbols / claim.Symbols {
		half, err := claim.New(rand.Reader)
		if err != nil {
			panic(err) // crypto/rand does not fail
		}
		secret += Secret(half)
	}
	return secret
}

// ParseSecret reads a secret as a person types it, with the tolerance of
// [claim.Normalize], as the fleet does. Its errors are of kind usage and never
// repeat the secret.
func ParseSecret(typed string) (Secret, error) {
	symbols := []rune(strings.Map(func(r rune) rune {
		if separates(r) {
			return -1
		}
		return r
	}, typed))
	if len(symbols) != secretSymbols {
		return "", usage("type all four groups of four, like K7QM-2XWP-9DTB-40HN", "secret of the sticker has %d symbols, want %d", len(symbols), secretSymbols)
	}
	head, err := claim.Normalize(string(symbols[:claim.Symbols]))
	if err != nil {
		return "", err
	}
	tail, err := claim.Normalize(string(symbols[claim.Symbols:]))
	if err != nil {
		return "", err
	}
	return Secret(head) + Secret(tail), nil
}

// groups are the secret as it is printed.
func (s Secret) groups() []string {
	var groups []string
	for rest := string(s); rest != ""; {
		n := min(groupSymbols, len(rest))
		groups, rest = append(groups, rest[:n]), rest[n:]
	}
	return groups
}

// Shown is the secret as people see it: "K7QM-2XWP-9DTB-40HN".
func (s Secret) Shown() string { return strings.Join(s.groups(), "-") }

// URL is the address behind the QR code: address, '#', secret. Browsers do not
// send the part after '#', so the secret appears in no server's log.
func (s Secret) URL(address string) string { return claim.Code(s).URL(address) }

// Hash stands for the secret in vouchers and in the fleet's list.
func (s Secret) Hash() enroll.ClaimHash { return enroll.HashClaim(string(s)) }

// MarshalText is for the batch file.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.Shown()), nil }

// UnmarshalText reads what [ParseSecret] reads.
func (s *Secret) UnmarshalText(text []byte) error {
	secret, err := ParseSecret(string(text))
	if err != nil {
		return errors.New("a secret is damaged") // the remedies of typing do not fit here
	}
	*s = secret
	return nil
}

// String hides the secret, so that no format verb prints it by accident.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hiddenSecret
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return `factory.Secret("` + s.String() + `")` }

// LogValue hides the secret from logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
