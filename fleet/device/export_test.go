package device

import (
	"context"
	"errors"
	"testing"
	"time"
)

// ListSQL is the statement of a list.
func ListSQL(t testing.TB, actor Actor, q Query) (string, []any) {
	t.Helper()
	sql, args, _, err := list(actor, q, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return sql, args
}

// CursorAt is the cursor of a page that ended there.
func CursorAt(key string, at int64, id string) string { return writeCursor(place{key, at, id}) }

// Round does once what the loops of Run do again and again.
func (s *Store) Round(ctx context.Context) error {
	return errors.Join(s.tellTouched(ctx), s.storeSeen(ctx), s.readRevocations(ctx),
		s.endClaims(ctx), s.deliverDesired(ctx), s.deliverAudit(ctx), s.sweep(ctx))
}
