//go:build !integration

package dbtest

import "testing"

const withPostgres = false

func postgresURL(tb testing.TB) string {
	tb.Helper()
	tb.Fatal("PostgreSQL is tested with the build tag integration")
	return ""
}
