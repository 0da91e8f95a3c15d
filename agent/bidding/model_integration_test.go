//go:build integration

package bidding

import "testing"

func TestAHundredThousandRandomHistoriesKeepTheLedgerAndEveryLease(t *testing.T) {
	interleave(t, 100_000)
}
