package db

import (
	"strconv"
	"strings"
)

// dollars turns each "?" that is a placeholder into $1, $2, …, as PostgreSQL
// wants them. Those in strings, quoted names, comments and dollar quotes stay.
func dollars(query string) string {
	if !strings.Contains(query, "?") {
		return query
	}
	var out strings.Builder
	out.Grow(len(query) + 8)
	for n := 1; query != ""; {
		size := 1
		switch c := query[0]; {
		case c == '?':
			out.WriteByte('$')
			out.WriteString(strconv.Itoa(n))
			n++
			query = query[1:]
			continue
		case c == '\'' || c == '"':
			size = quoted(query, c, false)
		case (c == 'e' || c == 'E') && strings.HasPrefix(query[1:], "'"):
			size = 1 + quoted(query[1:], '\'', true)
		case strings.HasPrefix(query, "--"):
			if size = strings.IndexByte(query, '\n'); size < 0 {
				size = len(query)
			}
		case strings.HasPrefix(query, "/*"):
			size = commented(query)
		case c == '$':
			size = dollarQuoted(query)
		case inName(c):
			for size < len(query) && (inName(query[size]) || query[size] == '$') {
				size++
			}
		}
		out.WriteString(query[:size])
		query = query[size:]
	}
	return out.String()
}

// quoted is the length of what begins with the quote and ends with it. A doubled
// quote is two such pieces in a row and needs no care.
func quoted(s string, quote byte, escapes bool) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == quote:
			return i + 1
		case s[i] == '\\' && escapes:
			i++
		}
	}
	return len(s)
}

// commented is the length of a comment; in PostgreSQL they nest.
func commented(s string) int {
	depth := 0
	for i := 0; i < len(s)-1; i++ {
		switch s[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				return i + 1
			}
		}
	}
	return len(s)
}

// dollarQuoted is the length of $tag$…$tag$, or 1 if this is none.
func dollarQuoted(s string) int {
	end := 1
	for end < len(s) && inName(s[end]) && (end > 1 || s[end] < '0' || s[end] > '9') {
		end++
	}
	if end == len(s) || s[end] != '$' {
		return 1
	}
	tag := s[:end+1]
	if at := strings.Index(s[end+1:], tag); at >= 0 {
		return end + 1 + at + len(tag)
	}
	return len(s)
}

// inName reports whether c may stand in a name.
func inName(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
