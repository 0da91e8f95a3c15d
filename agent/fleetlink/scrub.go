package fleetlink

import (
	"regexp"
	"slices"
	"strings"
)

// form is what a kind of secret looks like.
type form struct {
	of   *regexp.Regexp
	with string
}

// Secrets look like this wherever they stand. Chain addresses, digests and root
// hashes are public and stay: support needs them. Each form begins with a text,
// which regexp finds fast.
var anywhere = []form{
	{regexp.MustCompile(`-----BEGIN [A-Z0-9 ]+-----[\s\S]*?(?:-----END [A-Z0-9 ]+-----|\z)`), "[PEM]"},
	{regexp.MustCompile(`croft1\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?`), "[voucher]"},
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?`), "[token]"},
	{regexp.MustCompile(`://[^/\s:@"]+:[^/\s@"]+@`), "://[hidden]@"},
}

// And like this in lines that have one of the marks.
var (
	marks = []string{"bearer", "basic", "passw", "passphrase", "secret", "token", "cookie", "key", "mnemonic", "voucher", "claim", "credential"}

	marked = []form{
		{regexp.MustCompile(`(?i)\b(bearer|basic) +[A-Za-z0-9._~+/=-]{8,}`), "$1 [hidden]"},
		{regexp.MustCompile(`(?i)((?:password|passwd|passphrase|secret|token|cookie|api_?key|private_?key|mnemonic|voucher|claim_?code|claim_?words|credentials?)\\?"?\s*[=:]\s*)` +
			`(?:\\"(?:[^"\\]|\\\\+"|\\[^"])*(?:\\")?|"(?:[^"\\]|\\.)*"?|[^\s",;}\]]+)`), "${1}[hidden]"},
		{regexp.MustCompile(`(?i)(/claim[^\s"#]*#)[A-Za-z0-9-]+`), "${1}[hidden]"},
	}
)

// scrub takes secrets out of a text: those that look like one, and those that the
// caller names, which are ASCII.
func scrub(text string, secrets []string) string {
	for _, f := range anywhere {
		text = f.of.ReplaceAllString(text, f.with)
	}
	var out strings.Builder
	out.Grow(len(text))
	for line := range strings.Lines(text) {
		low := lower(line)
		for _, secret := range secrets {
			if secret = lower(secret); len(secret) >= 4 && strings.Contains(low, secret) { // an empty one is none
				line = replaceFold(line, low, secret)
				low = lower(line)
			}
		}
		if slices.ContainsFunc(marks, func(mark string) bool { return strings.Contains(low, mark) }) {
			for _, f := range marked {
				line = f.of.ReplaceAllString(line, f.with)
			}
		}
		out.WriteString(line)
	}
	return out.String()
}

// replaceFold hides a secret in a text; both are given in lower case, which takes
// as many bytes.
func replaceFold(text, low, secret string) string {
	var out strings.Builder
	for {
		i := strings.Index(low, secret)
		if i < 0 {
			return out.String() + text
		}
		out.WriteString(text[:i] + "[hidden]")
		text, low = text[i+len(secret):], low[i+len(secret):]
	}
}

// lower makes the letters A to Z small, and leaves all other bytes as they are.
func lower(s string) string {
	raw := []byte(s)
	for i, c := range raw {
		if 'A' <= c && c <= 'Z' {
			raw[i] = c + 'a' - 'A'
		}
	}
	return string(raw)
}
