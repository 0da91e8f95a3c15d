package ownership

import (
	"errors"
	"strings"
	"unicode"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Secret is what somebody typed to show that a box is his. It is neither logged nor
// stored.
type Secret struct {
	Hash   enroll.ClaimHash
	Prefix enroll.ClaimHash // of the first half of a code of 40 bits; else zero
	Long   bool             // the sticker's 80 bits
	Words  bool             // the words on the box's page
}

const minWords = 10 // letters in the words on the box's page

// ReadSecret reads what an owner typed: the code on the screen, the secret on
// the sticker, or the words on the box's page. Its errors repeat nothing of it.
func ReadSecret(typed string) (Secret, error) {
	if len(typed) > 200 {
		return Secret{}, &croft.Error{Kind: croft.KindUsage, Err: errors.New("claim code is too long")}
	}
	if words, ok := NormalWords(typed); ok {
		return Secret{Hash: enroll.HashClaim(words), Words: true}, nil
	}
	symbols := strings.Join(strings.FieldsFunc(typed, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.Is(unicode.Pd, r) || r == '\u2212' || r == '_'
	}), "")
	if len(symbols) == 2*claim.Symbols {
		head, err := claim.Normalize(symbols[:claim.Symbols])
		if err != nil {
			return Secret{}, err
		}
		tail, err := claim.Normalize(symbols[claim.Symbols:])
		if err != nil {
			return Secret{}, err
		}
		return Secret{Hash: enroll.HashClaim(string(head) + string(tail)), Long: true}, nil
	}
	code, err := claim.Normalize(symbols)
	if err != nil {
		return Secret{}, err
	}
	return Secret{
		Hash:   enroll.HashClaim(string(code)),
		Prefix: enroll.HashClaim(string(code[:claim.Symbols/2])),
	}, nil
}

// NormalWords reads the words of a box's page: three or more words of three or
// more letters each, in small letters with a dash between them. A claim code has
// no such form: its parts have four symbols, and there are two or four of them;
// so four words that could be a sticker's secret are read as that.
func NormalWords(typed string) (string, bool) {
	parts := strings.FieldsFunc(strings.ToLower(typed), func(r rune) bool { return r == '-' || unicode.IsSpace(r) })
	letters, fours := 0, 0
	for _, part := range parts {
		if len(part) < 3 || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz") != "" {
			return "", false
		}
		letters += len(part)
		if len(part) == 4 {
			fours++
		}
	}
	return strings.Join(parts, "-"), len(parts) >= 3 && letters >= minWords && (fours != len(parts) || len(parts) != 4)
}

// What is said of a secret that starts no claim.
var (
	ErrTooManyTries = &croft.Error{
		Kind: croft.KindRefused, Err: errors.New("too many claim codes were wrong"),
		Remedy: "wait an hour, then look at the code on the box again",
	}
	ErrWrongSecret = &croft.Error{
		Kind: croft.KindNotFound, Err: errors.New("no box that waits for an owner has this code"),
		Remedy: "compare it with the code on the box, and see that the box is connected to the internet",
	}
	ErrWrongHere = &croft.Error{
		Kind: croft.KindNotFound, Err: errors.New("no box that waits for an owner has this code in your network"),
		Remedy: "join the network that the box is connected to, open the box's page and type the words it shows",
	}
	ErrAmbiguous = &croft.Error{
		Kind: croft.KindRefused, Err: errors.New("more than one box has this code"),
		Remedy: "join the network that the box is connected to, open the box's page and type the words it shows",
	}
)
