package bundle

import (
	"bytes"
	"cmp"
	"regexp"
	"slices"
)

// span is a part of a text that must not be read.
type span struct {
	from, to int
	what     string // in words, in the singular
}

// rule finds one kind of secret: anchor must be in the line, in lower case, and
// then pattern says what of it is masked: its group, or all of it.
type rule struct {
	what    string
	anchor  string
	pattern *regexp.Regexp
}

const codeSymbol = `[0-9A-HJKMNP-TV-Z]` // of claim codes

var rules = []rule{
	{"token", "eyj", regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]*`)},
	{"authorization", "authorization", regexp.MustCompile(`(?i)authorization\\?["']?[ \t]*[:=][ \t]*("[^"\r\n]+"|[^\r\n]+)`)},
	{"cookie", "cookie", regexp.MustCompile(`(?i)\bcookie\\?["']?[ \t]*:[ \t]*("[^"\r\n]+"|[^\r\n]+)`)},
	{"token", "bearer", regexp.MustCompile(`(?i)\bbearer[ \t]+([A-Za-z0-9._~+/=-]{12,})`)},
	{"password", "@", regexp.MustCompile(`://([^\s/?#@:"']*:[^\s/?#@"']+)@`)},
	{"e-mail address", "@", regexp.MustCompile(`[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}\b`)},
	{"claim code", "#", regexp.MustCompile(`#(` + codeSymbol + `{8})\b`)},
	{"claim code", "claim", regexp.MustCompile(`(?i)claim[ _-]?code\\?["']?[ \t]*[:=#]?[ \t]*\\?["']?(` + codeSymbol + `{4}-?` + codeSymbol + `{4})\b`)},
}

var privateKey = regexp.MustCompile(`\A-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|\z)`)

// scan finds what looks like a secret in a text, in order and without overlaps.
// It rather finds too much than too little.
func scan(text []byte) []span {
	lower := toLower(text)
	spans := privateKeys(text, lower)
	for _, r := range rules {
		spans = append(spans, r.find(text, lower)...)
	}
	spans = append(spans, claimCodes(text)...)
	slices.SortStableFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	merged := spans[:0]
	for _, s := range spans {
		if last := len(merged) - 1; last >= 0 && s.from < merged[last].to {
			merged[last].to = max(merged[last].to, s.to)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// toLower changes ASCII only, so that places stay where they are.
func toLower(text []byte) []byte {
	lower := bytes.Clone(text)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	return lower
}

// find looks at each line with the anchor once.
func (r rule) find(text, lower []byte) (spans []span) {
	for at := 0; ; {
		hit := bytes.Index(lower[at:], []byte(r.anchor))
		if hit < 0 {
			return spans
		}
		from := at + bytes.LastIndexByte(text[at:at+hit], '\n') + 1
		to := len(text)
		if n := bytes.IndexByte(text[at+hit:], '\n'); n >= 0 {
			to = at + hit + n
		}
		for _, m := range r.pattern.FindAllSubmatchIndex(text[from:to], -1) {
			spans = append(spans, span{from + m[len(m)-2], from + m[len(m)-1], r.what})
		}
		at = to
	}
}

// privateKeys finds keys in PEM. One that is cut off takes all that follows.
func privateKeys(text, lower []byte) (spans []span) {
	for at := 0; ; {
		hit := bytes.Index(lower[at:], []byte("-----begin "))
		if hit < 0 {
			return spans
		}
		at += hit
		if m := privateKey.FindIndex(text[at:]); m != nil {
			spans = append(spans, span{at, at + m[1], "private key"})
			at += m[1]
		} else {
			at++
		}
	}
}

// claimCodes finds codes as people see them, K7QM-2XWP, that stand alone. Eight
// digits are a year, a range or a number; one code in ten thousand has no letter.
func claimCodes(text []byte) (spans []span) {
	const half, whole = 4, 9
	for at := 0; ; at++ {
		hit := bytes.IndexByte(text[at:], '-')
		if hit < 0 {
			return spans
		}
		at += hit
		from, to := at-half, at-half+whole
		if from < 0 || to > len(text) || from > 0 && inWord(text[from-1]) || to < len(text) && inWord(text[to]) {
			continue
		}
		letter, ok := false, true
		for i, c := range text[from:to] {
			isLetter := 'A' <= c && c <= 'Z' && !bytes.ContainsRune([]byte("ILOU"), rune(c))
			letter = letter || isLetter
			ok = ok && (i == half || isLetter || '0' <= c && c <= '9')
		}
		if ok && letter {
			spans = append(spans, span{from, to, "claim code"})
		}
	}
}

func inWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// mask replaces spans by words.
func mask(text []byte, spans []span) []byte {
	var out bytes.Buffer
	at := 0
	for _, s := range spans {
		out.Write(text[at:s.from])
		out.WriteString("[masked: " + s.what + "]")
		at = s.to
	}
	out.Write(text[at:])
	return out.Bytes()
}

// isText reports whether masks can stand in it.
func isText(content []byte) bool { return bytes.IndexByte(content, 0) < 0 }
