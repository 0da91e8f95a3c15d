package fleetapi

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/croft-cloud/croft"
)

// textRule says what a text may be.
type textRule func(s string) error

// sentence is text for people, of least to most bytes.
func sentence(least, most int) textRule {
	return func(s string) error {
		if err := checkLength(s, least, most); err != nil {
			return err
		}
		if !utf8.ValidString(s) {
			return refuse(ReasonText, "%.32q is not UTF-8", s)
		}
		if i := strings.IndexFunc(s, hidden); i >= 0 {
			return refuse(ReasonText, "%.32q has a control character", s[i:])
		}
		return nil
	}
}

// word is a name in programs: a-z, 0-9 and '_', the first a letter; at most
// maxWord characters. An empty one is missing.
func word(s string) error {
	if err := checkLength(s, 1, maxWord); err != nil {
		return err
	}
	for i, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (i == 0 || (c < '0' || c > '9') && c != '_') {
			return refuse(ReasonText, "%q: want a-z, 0-9 and '_', the first a letter", s)
		}
	}
	return nil
}

// token is a name that others made: letters, digits and "._:~-"; least to most
// characters.
func token(least, most int) textRule {
	return func(s string) error {
		if err := checkLength(s, least, most); err != nil {
			return err
		}
		for _, c := range []byte(s) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("._:~-", c) < 0 {
				return refuse(ReasonText, "%q: want letters, digits and any of ._:~-", s)
			}
		}
		return nil
	}
}

// oneOf is one of a few words, and never empty.
func oneOf[S ~string](words ...S) textRule {
	return func(s string) error {
		for _, w := range words {
			if s == string(w) {
				return nil
			}
		}
		if s == "" {
			return refuse(ReasonMissing, "is missing")
		}
		return refuse(ReasonText, "%.32q is not known", s)
	}
}

// optional is rule, or nothing.
func optional(rule textRule) textRule {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return rule(s)
	}
}

func isRelease(s string) error {
	if s == "" {
		return refuse(ReasonMissing, "is missing")
	}
	if _, err := croft.ParseVersion(s); err != nil {
		return refuse(ReasonText, "%.40q is no release", s)
	}
	return nil
}

func isJob(s string) error {
	if s == "" {
		return refuse(ReasonMissing, "is missing")
	}
	_, err := ParseID(PrefixJob, s)
	return err
}

func checkLength(s string, least, most int) error {
	switch n := len(s); {
	case n == 0 && least > 0:
		return refuse(ReasonMissing, "is missing")
	case n < least || n > most:
		return refuse(ReasonText, "has %d bytes: want %d to %d", n, least, most)
	}
	return nil
}

// hidden reports characters that change how the text around them is shown, or
// that end a line: they have no place in a page, a log or a terminal.
func hidden(r rune) bool {
	switch {
	case unicode.IsControl(r), r == '\u2028', r == '\u2029':
		return true
	case r >= '\u202a' && r <= '\u202e', r >= '\u2066' && r <= '\u2069': // turn the direction of writing
		return true
	}
	return false
}

// CleanText makes any bytes fit to be sent as text: what may not stand in a text
// becomes a space, what is not UTF-8 becomes U+FFFD, and the end beyond most
// bytes is cut off, between characters.
func CleanText(s string, most int) string {
	var clean strings.Builder
	for _, r := range s {
		if hidden(r) {
			r = ' '
		}
		if clean.Len()+utf8.RuneLen(r) > most {
			break
		}
		clean.WriteRune(r)
	}
	return clean.String()
}
