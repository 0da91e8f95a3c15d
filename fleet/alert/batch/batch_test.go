package batch_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/fleet/alert/batch"
)

// table counts the rows that statements insert, and refuses from one on.
type table struct {
	rows, statements, refuses int
}

var errFull = errors.New("it is full")

func (t *table) Exec(query string, args ...any) (int64, error) {
	if t.statements++; t.statements == t.refuses {
		return 0, errFull
	}
	if strings.Count(query, "(?, ?)")*2 != len(args) || !strings.HasPrefix(query, "INSERT INTO t (a, b) VALUES (?, ?)") {
		return 0, fmt.Errorf("%.60s with %d arguments", query, len(args))
	}
	t.rows += len(args) / 2
	return int64(len(args) / 2), nil
}

func TestRows(t *testing.T) {
	for n, statements := range map[int]int{0: 0, 1: 1, batch.Part: 1, batch.Part + 1: 2, 3*batch.Part - 1: 3} {
		in := &table{}
		rows := batch.Rows{Tx: in, Into: "t (a, b)", Width: 2, Or: "DO NOTHING"}
		for i := range n {
			rows.Add(i, "x")
		}
		if err := rows.Insert(); err != nil || in.rows != n || in.statements != statements {
			t.Errorf("%d rows: %+v, %v", n, in, err)
		}
	}
	in := &table{refuses: 1}
	rows := batch.Rows{Tx: in, Into: "t (a, b)", Width: 2, Or: "DO NOTHING"}
	for i := range 2*batch.Part + 1 {
		rows.Add(i, "x")
	}
	if err := rows.Insert(); !errors.Is(err, errFull) || in.statements != 1 {
		t.Errorf("after an error: %v, %+v", err, in)
	}
}
