//go:build integration

package chaintest_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain asks for a hundred thousand sequences unless told otherwise.
func TestMain(m *testing.M) {
	flag.Parse()
	if *sequences == fewSequences {
		*sequences = 100_000
	}
	os.Exit(m.Run())
}
