package market

import (
	"time"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"cosmossdk.io/errors"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// orderPrice is the most an order pays per block: the sum of its units' prices,
// each times its count.
func orderPrice(spec deploymentv1beta4.GroupSpec) (sdk.DecCoin, error) {
	var total sdk.DecCoin
	for i, unit := range spec.Resources {
		if err := validatePrice(unit.Price); err != nil {
			return sdk.DecCoin{}, errors.Wrapf(err, "price of unit %d", i+1)
		}
		if bits := unit.Price.Amount.BigInt().BitLen(); bits > maxPriceBits {
			return sdk.DecCoin{}, errors.Wrapf(ErrInvalidPrice, "price of unit %d has %d bits", i+1, bits)
		}
		price := sdk.DecCoin{Denom: unit.Price.Denom, Amount: unit.Price.Amount.MulInt64(int64(unit.Count))}
		switch {
		case i == 0:
			total = price
		case price.Denom != total.Denom:
			return sdk.DecCoin{}, errors.Wrapf(ErrInvalidPrice, "units are priced in %s and %s", total.Denom, price.Denom)
		default:
			total.Amount = total.Amount.Add(price.Amount)
		}
	}
	if len(spec.Resources) == 0 {
		return sdk.DecCoin{}, errors.Wrap(ErrInvalidPrice, "group has no resources")
	}
	return total, nil
}

// maxPriceBits keeps an order's price within what a LegacyDec holds (315 bits),
// whatever the counts: 32 bits of count and as many units as fit a transaction.
const maxPriceBits = 256

// maxDepositors is how many accounts a bid's deposit may come from: each gets
// its part back when the tenant closes the order, with the tenant's gas.
const maxDepositors = 2

// checkDeposit wants at least the least deposit of its denomination.
func checkDeposit(amount sdk.Coin, params marketv1beta5.Params) error {
	for _, least := range params.BidMinDeposits {
		if least.Denom != amount.Denom {
			continue
		}
		if amount.Amount.LT(least.Amount) {
			return errors.Wrapf(ErrInvalidDeposit, "deposit is %s: deposit at least %s", amount, least)
		}
		return nil
	}
	return errors.Wrapf(ErrInvalidDeposit, "deposit is in %s: choose one of %s", amount.Denom, sdk.Coins(params.BidMinDeposits))
}

// checkPrice wants a price above zero and not above the order's.
func checkPrice(price sdk.DecCoin, order marketv1beta5.Order) error {
	if err := validatePrice(price); err != nil {
		return err
	}
	if price.IsZero() {
		return ErrBidZeroPrice
	}
	limit, err := orderPrice(order.Spec)
	if err != nil {
		return errors.Wrapf(ErrInternal, "price of order %s: %v", orderText(order.ID), err)
	}
	if price.Denom != limit.Denom {
		return errors.Wrapf(ErrInvalidPrice, "price is in %s: bid in %s", price.Denom, limit.Denom)
	}
	if price.Amount.GT(limit.Amount) {
		return errors.Wrapf(ErrBidOverOrder, "price is %s: bid at most %s", price, limit)
	}
	return nil
}

// checkOffer wants no offer, or one entry for each unit of the group, by id.
func checkOffer(offers []marketv1beta5.ResourceOffer, spec deploymentv1beta4.GroupSpec) error {
	if len(offers) == 0 {
		return nil
	}
	if len(offers) != len(spec.Resources) {
		return errors.Wrapf(ErrCapabilitiesMismatch, "resources_offer has %d entries: the group has %d units", len(offers), len(spec.Resources))
	}
	open := make(map[uint32]bool, len(spec.Resources))
	for _, unit := range spec.Resources {
		open[unit.Resource.ID] = true
	}
	for i, offer := range offers {
		id := offer.Resources.ID
		if !open[id] {
			return errors.Wrapf(ErrCapabilitiesMismatch, "resources_offer[%d] is for unit %d, which the group lacks or an entry before has", i, id)
		}
		delete(open, id)
	}
	return nil
}

// checkWindow wants a window within the parameters' bounds and not below the
// order's, if the order asks for one. It returns the window that the lease will
// have; nil is none.
func checkWindow(offered *time.Duration, order marketv1beta5.Order, params marketv1beta5.Params) (*time.Duration, error) {
	if offered == nil || *offered == 0 {
		if order.Reclamation != nil {
			return nil, errors.Wrapf(ErrWindowRequired, "order wants at least %s", order.Reclamation.MinWindow)
		}
		return nil, nil
	}
	if *offered < params.MinReclamationWindow || *offered > params.MaxReclamationWindow {
		return nil, errors.Wrapf(ErrInvalidWindow, "window is %s: choose %s to %s", *offered, params.MinReclamationWindow, params.MaxReclamationWindow)
	}
	if order.Reclamation != nil && *offered < order.Reclamation.MinWindow {
		return nil, errors.Wrapf(ErrWindowTooShort, "window is %s: the order wants at least %s", *offered, order.Reclamation.MinWindow)
	}
	return offered, nil
}
