package market

import (
	"time"

	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"cosmossdk.io/errors"
	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// DefaultParams are the parameters a new chain starts with: a bid deposits half
// an AKT or half an ACT, an order takes 20 bids, a reclamation window lies
// between an hour and 30 days.
func DefaultParams() marketv1beta5.Params {
	const deposit = 500_000
	uakt := sdk.Coin{Denom: "uakt", Amount: math.NewInt(deposit)}
	uact := sdk.Coin{Denom: "uact", Amount: math.NewInt(deposit)}
	return marketv1beta5.Params{
		BidMinDeposit:        uakt,
		OrderMaxBids:         20,
		BidMinDeposits:       []sdk.Coin{uact, uakt},
		MinReclamationWindow: time.Hour,
		MaxReclamationWindow: 720 * time.Hour,
	}
}

// ValidateParams refuses parameters under which no bid could be made, or an
// order's bids would be more than one message can close.
func ValidateParams(p marketv1beta5.Params) error {
	if err := p.BidMinDeposit.Validate(); err != nil {
		return errors.Wrapf(ErrInvalidParam, "bid_min_deposit: %v", err)
	}
	listed := false
	for i, least := range p.BidMinDeposits {
		if err := least.Validate(); err != nil {
			return errors.Wrapf(ErrInvalidParam, "bid_min_deposits[%d]: %v", i, err)
		}
		for _, before := range p.BidMinDeposits[:i] {
			if before.Denom == least.Denom {
				return errors.Wrapf(ErrInvalidParam, "bid_min_deposits names %s twice", least.Denom)
			}
		}
		listed = listed || least.Denom == p.BidMinDeposit.Denom && least.Amount.Equal(p.BidMinDeposit.Amount)
	}
	if !listed {
		return errors.Wrap(ErrInvalidParam, "bid_min_deposit is not one of bid_min_deposits: add it there")
	}
	if p.OrderMaxBids == 0 || p.OrderMaxBids > MaxOrderBids {
		return errors.Wrapf(ErrInvalidParam, "order_max_bids is %d: choose 1 to %d", p.OrderMaxBids, MaxOrderBids)
	}
	if p.MinReclamationWindow <= 0 || p.MaxReclamationWindow < p.MinReclamationWindow {
		return errors.Wrapf(ErrInvalidParam, "reclamation windows are %s to %s: choose a positive minimum that is not above the maximum",
			p.MinReclamationWindow, p.MaxReclamationWindow)
	}
	return nil
}
