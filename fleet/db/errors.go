package db

import (
	"database/sql"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/croft-cloud/croft"
)

// ErrNoRows is what Scan returns when there is no row.
var ErrNoRows = sql.ErrNoRows

// ErrUnavailable reports that PostgreSQL could not be reached, though it was
// tried for some seconds. Nothing was written.
var ErrUnavailable = errors.New("database cannot be reached")

// ErrInDoubt reports that PostgreSQL went away during a commit and could not be
// asked what became of it: it may have been done or not.
var ErrInDoubt = errors.New("database went away during a commit, which may or may not have been done")

// IsUnique reports whether err says that a row with the same key exists.
func IsUnique(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "23505"
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return slices.Contains([]int{sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID}, e.Code())
	}
	return false
}

// explained reports whether err needs no explanation: there is none, or it
// carries one.
func explained(err error) bool {
	_, ok := errors.AsType[*croft.Error](err)
	return err == nil || ok
}
