package offer

import (
	"math"
	"math/big"
	"time"

	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
)

// MonthMinutes is how many minutes a month has: a twelfth of 365.25 days.
const MonthMinutes = 43_830

// UsualBlocks is how many blocks Akash's chain makes in a month; taken until
// there are blocks to measure.
const UsualBlocks = 429_909

// leastBlocks is how many blocks a measurement needs: the first of a chain come
// at odd times, and a price that was too low stays with its lease.
const leastBlocks = 10

// MonthBlocks is how many blocks a chain makes in a month that took so long for
// so many, at least 1; 0 if they are too few to tell.
func MonthBlocks(blocks int64, took time.Duration) int64 {
	if blocks < leastBlocks || took <= 0 {
		return 0
	}
	n := new(big.Int).Mul(big.NewInt(blocks), big.NewInt(int64(MonthMinutes*time.Minute)))
	if n.Quo(n, big.NewInt(int64(took))); !n.IsInt64() {
		return 0
	}
	return max(n.Int64(), 1)
}

// WhyClosed says to the owner why a lease was closed.
func WhyClosed(r marketv1.LeaseClosedReason) string {
	switch r {
	case marketv1.LeaseClosedReason_lease_closed_owner:
		return "the tenant closed the lease"
	case marketv1.LeaseClosedReason_lease_closed_reason_insufficient_funds:
		return "the tenant's money ran out"
	case marketv1.LeaseClosedReason_lease_closed_reason_manifest_timeout:
		return "the tenant sent no manifest in time"
	case marketv1.LeaseClosedReason_lease_closed_reason_decommission:
		return "the owner closed the lease"
	case marketv1.LeaseClosedReason_lease_closed_reason_unstable:
		return "the workload did not come up"
	case marketv1.LeaseClosedReason_lease_closed_invalid, marketv1.LeaseClosedReason_lease_closed_reason_unspecified:
	}
	return "the lease was closed"
}

// PaidBlocks is for how many blocks from a height on a tenant's account pays a
// price; below 0 if it is in debt, the largest number if that cannot be told.
func PaidBlocks(escrow *escrowtypesv1.AccountState, price akash.Price, height int64) int64 {
	rate := price.Amount.Atto()
	if escrow == nil || rate.Sign() <= 0 {
		return math.MaxInt64
	}
	blocks := new(big.Int)
	for _, f := range escrow.GetFunds() {
		if amount, err := akash.ParseWireDec(f.GetAmount()); err == nil && f.GetDenom() == price.Denom {
			blocks.Quo(amount.Atto(), rate)
		}
	}
	blocks.Sub(blocks, big.NewInt(max(height-escrow.GetSettledAt(), 0)))
	if !blocks.IsInt64() && blocks.Sign() > 0 {
		return math.MaxInt64
	}
	return blocks.Int64()
}
