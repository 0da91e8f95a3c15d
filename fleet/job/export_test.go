package job

import (
	"context"
	"errors"
	"testing"
)

// ListSQL is the statement of a list.
func ListSQL(t testing.TB, q Query) (string, []any) {
	t.Helper()
	sql, args, _, err := list(q)
	if err != nil {
		t.Fatal(err)
	}
	return sql, args
}

// Round does once what the loops of Run do again and again.
func (s *Store) Round(ctx context.Context) error {
	return errors.Join(s.endOverdue(ctx), s.deliver(ctx), s.removeRetired(ctx), s.deliverAudit(ctx), s.sweep(ctx))
}
