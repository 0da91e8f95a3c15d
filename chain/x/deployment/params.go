package deployment

import (
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"

	"cosmossdk.io/errors"
	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// DefaultParams are the parameters a new chain starts with: a deployment
// deposits at least half an ACT or half an AKT. What min_deposits names are also
// the denominations that groups may be priced in.
func DefaultParams() deploymentv1beta4.Params {
	const deposit = 500_000
	return deploymentv1beta4.Params{MinDeposits: []sdk.Coin{
		{Denom: "uact", Amount: math.NewInt(deposit)},
		{Denom: "uakt", Amount: math.NewInt(deposit)},
	}}
}

// ValidateParams refuses parameters under which no deployment could be made.
func ValidateParams(p deploymentv1beta4.Params) error {
	if len(p.MinDeposits) == 0 {
		return errors.Wrap(ErrInvalidParam, "min_deposits is empty: name the least deposit in each price denomination")
	}
	for i, least := range p.MinDeposits {
		if err := least.Validate(); err != nil { // a missing amount is an error there, too
			return errors.Wrapf(ErrInvalidParam, "min_deposits[%d]: %v", i, err)
		}
		for _, before := range p.MinDeposits[:i] {
			if before.Denom == least.Denom {
				return errors.Wrapf(ErrInvalidParam, "min_deposits names %s twice", least.Denom)
			}
		}
	}
	return nil
}
