package sdl

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is one thing wrong with an SDL, at one place.
type Error struct {
	Line, Column int    // where, both from 1
	Path         string // the key, as in services.web.expose[0].port; empty for the whole file
	Problem      string // what is wrong
	Fix          string // what to write instead
}

// Error is LINE:COLUMN: PATH: PROBLEM; FIX. Put the name of the file and a
// colon before it and editors find the place.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:%d: ", e.Line, e.Column)
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Problem)
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	return b.String()
}

// Errors is all that is wrong with an SDL, in the order of the file. It is
// never empty.
type Errors []*Error

// Error has one line for each error.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find each [Error].
func (es Errors) Unwrap() []error {
	all := make([]error, len(es))
	for i, e := range es {
		all[i] = e
	}
	return all
}

// err is es in the order of the file, or nil when nothing is wrong.
func (es Errors) err() error {
	if len(es) == 0 {
		return nil
	}
	slices.SortStableFunc(es, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.CompactFunc(es, func(a, b *Error) bool { return *a == *b })
}

// nearest is the one of known that word was probably meant to be, or "".
func nearest(word string, known []string) string {
	best, at := "", len(word)/3+2
	for _, k := range known {
		if len(word) >= 3 && strings.HasPrefix(k, word) || len(k) >= 3 && strings.HasPrefix(word, k) {
			return k
		}
		if strings.EqualFold(k, word) || strings.EqualFold(strings.ReplaceAll(k, "_", ""), strings.NewReplacer("_", "", "-", "").Replace(word)) {
			return k
		}
		if d := distance(word, k); d < at {
			best, at = k, d
		}
	}
	return best
}

// distance is how many letters must change to turn a into b. Words of more
// than 64 bytes are as far as can be.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
