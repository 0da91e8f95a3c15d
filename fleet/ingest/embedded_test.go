//go:build !integration

package ingest_test

import "testing"

// worlds are the brokers of this test binary.
func worlds() map[string]func(testing.TB) *world {
	return map[string]func(testing.TB) *world{"embedded": embedded}
}
