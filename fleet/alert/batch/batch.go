// Package batch writes many rows with one statement.
//
//	rows := batch.Rows{Tx: tx, Into: "t (a, b)", Width: 2, Or: "DO NOTHING"}
//	rows.Add(1, 2)
//	err := rows.Insert()
//
// Rows are inserted when there are enough of them, the rest by Insert; an error of any
// of them is what Insert returns.
package batch

import (
	"slices"
	"strings"
)

// Execer is a transaction.
type Execer interface {
	Exec(query string, args ...any) (rows int64, err error)
}

// Part is how many rows one statement writes.
const Part = 200

// Parts hands texts over in parts, as arguments of a statement.
func Parts(texts []string, do func([]any) error) error {
	for some := range slices.Chunk(texts, Part) {
		args := make([]any, len(some))
		for n, text := range some {
			args[n] = text
		}
		if err := do(args); err != nil {
			return err
		}
	}
	return nil
}

// Marks is so many placeholders.
func Marks(n int) string { return strings.TrimSuffix(strings.Repeat("?, ", n), ", ") }

// Rows inserts into one table, many rows at a time.
type Rows struct {
	Tx    Execer
	Into  string // table and columns
	Width int    // how many columns
	Or    string // what happens to a row that is there

	args []any // of rows that wait
	err  error // of the first insert that failed
}

// Add adds a row.
func (r *Rows) Add(args ...any) {
	if r.args = append(r.args, args...); len(r.args) >= Part*r.Width {
		_ = r.Insert() // the last one tells
	}
}

// Insert inserts what waits. It returns the first error there was.
func (r *Rows) Insert() error {
	if len(r.args) == 0 || r.err != nil {
		return r.err
	}
	row := "(" + Marks(r.Width) + ")"
	values := strings.TrimSuffix(strings.Repeat(row+", ", len(r.args)/r.Width), ", ")
	_, r.err = r.Tx.Exec("INSERT INTO "+r.Into+" VALUES "+values+" ON CONFLICT "+r.Or, r.args...)
	r.args = r.args[:0]
	return r.err
}
