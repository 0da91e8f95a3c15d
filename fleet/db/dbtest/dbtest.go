// Package dbtest runs a test once per database engine: on SQLite always, and on
// PostgreSQL when built with the tag integration.
//
//	func TestClaim(t *testing.T) {
//		dbtest.Each(t, func(t *testing.T, d *db.DB) { … })
//	}
//
// PostgreSQL is Debian's, started once per test binary in a folder of its own,
// on a Unix socket nobody else can reach; a shell beside it stops it and removes
// the folder when the test binary ends, however it ends. Each test has a fresh
// database there. As root the server runs as the user nobody. Nothing of this is
// tuned: fsync is on.
package dbtest

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/croft-cloud/croft/fleet/db"
)

// Engine is a kind of database.
type Engine string

// The engines.
const (
	SQLite     Engine = "sqlite"
	PostgreSQL Engine = "postgresql"
)

// Each runs test on every engine, with an empty database that is closed
// afterwards.
func Each(t *testing.T, test func(t *testing.T, d *db.DB)) {
	t.Helper()
	for _, engine := range Engines() {
		t.Run(string(engine), func(t *testing.T) { test(t, Open(t, URL(t, engine))) })
	}
}

// Engines lists the engines this test binary knows.
func Engines() []Engine {
	if !withPostgres {
		return []Engine{SQLite}
	}
	return []Engine{SQLite, PostgreSQL}
}

// URL is the URL of an empty database of that engine, which is gone after the
// test.
func URL(tb testing.TB, engine Engine) string {
	tb.Helper()
	if engine == PostgreSQL {
		return postgresURL(tb)
	}
	return "sqlite:" + filepath.Join(tb.TempDir(), "fleet.db")
}

// Open opens the database at url until the test ends. Several replicas open one
// PostgreSQL database; an SQLite file can be open once only.
func Open(tb testing.TB, url string) *db.DB {
	tb.Helper()
	d, err := db.Open(tb.Context(), url, slog.New(slog.NewTextHandler(tb.Output(), nil)))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Errorf("close database: %v", err)
		}
	})
	return d
}
