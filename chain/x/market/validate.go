package market

import (
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"cosmossdk.io/errors"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// The functions below judge a message by itself, without the chain's state.
// They accept whatever a decoder can make and never panic.

// MaxOfferBytes bounds what a provider makes the tenant read.
const MaxOfferBytes = 16 << 10

// Bounds of the reasons that each side may give.
const (
	firstProviderReason = marketv1.LeaseClosedReason(10_000)
	firstNetworkReason  = marketv1.LeaseClosedReason(20_000)
)

// ValidateCreateBid checks the form of a bid: its id, that its amounts are
// numbers, the sources of the deposit. What depends on the order, the provider
// and the parameters is checked in the order of the contract, by CreateBid.
func ValidateCreateBid(msg *marketv1beta5.MsgCreateBid) error {
	if err := validateBidParts(msg.ID); err != nil {
		return err
	}
	if err := validateDeposit(msg.Deposit); err != nil {
		return err
	}
	if msg.Price.Amount.IsNil() {
		return errors.Wrap(ErrInvalidPrice, "price has no amount")
	}
	if w := msg.ReclamationWindow; w != nil && *w < 0 {
		return errors.Wrapf(ErrInvalidWindow, "window is %s", *w)
	}
	return validateOffer(msg.ResourcesOffer)
}

// ValidateCloseBid checks the id and that the reason is a provider's.
func ValidateCloseBid(msg *marketv1beta5.MsgCloseBid) error {
	if err := validateBidID(msg.ID); err != nil {
		return err
	}
	return validateProviderReason(msg.Reason)
}

// ValidateCreateLease checks the id of the bid to accept.
func ValidateCreateLease(msg *marketv1beta5.MsgCreateLease) error {
	return validateBidID(msg.BidID)
}

// ValidateWithdrawLease checks the id.
func ValidateWithdrawLease(msg *marketv1beta5.MsgWithdrawLease) error {
	return validateBidID(marketv1.BidID(msg.ID))
}

// ValidateCloseLease checks the id, and that a reason, if there is one, is a
// tenant's.
func ValidateCloseLease(msg *marketv1beta5.MsgCloseLease) error {
	if err := validateBidID(marketv1.BidID(msg.ID)); err != nil {
		return err
	}
	switch msg.Reason {
	case marketv1.LeaseClosedInvalid, marketv1.LeaseClosedOwner:
		return nil
	default:
		return errors.Wrapf(ErrInvalidClosedReason, "reason is %d: a tenant gives none, or %s", msg.Reason, marketv1.LeaseClosedOwner)
	}
}

// ValidateLeaseStartReclaim checks the id and that the reason is a provider's.
func ValidateLeaseStartReclaim(msg *marketv1beta5.MsgLeaseStartReclaim) error {
	if err := validateBidID(marketv1.BidID(msg.ID)); err != nil {
		return err
	}
	return validateProviderReason(msg.Reason)
}

// ValidateUpdateParams checks the authority's address and the parameters.
func ValidateUpdateParams(msg *marketv1beta5.MsgUpdateParams) error {
	if _, err := parseAddress(msg.Authority); err != nil {
		return errors.Wrapf(ErrInvalidParam, "authority: %v", err)
	}
	return ValidateParams(msg.Params)
}

// validateBidID checks all parts of an id, the bseq too.
func validateBidID(id marketv1.BidID) error {
	if err := validateBidParts(id); err != nil {
		return err
	}
	return validateBSeq(id)
}

func validateBSeq(id marketv1.BidID) error {
	if id.BSeq != 0 {
		return errors.Wrapf(ErrInvalidBid, "bseq is %d: leave it 0", id.BSeq)
	}
	return nil
}

func validateBidParts(id marketv1.BidID) error {
	if err := validateOrderID(orderOf(id)); err != nil {
		return err
	}
	if id.Provider == "" {
		return ErrEmptyProvider
	}
	if _, err := parseAddress(id.Provider); err != nil {
		return errors.Wrapf(ErrInvalidBid, "provider: %v", err)
	}
	return nil
}

func validateOrderID(id marketv1.OrderID) error {
	if _, err := parseAddress(id.Owner); err != nil {
		return errors.Wrapf(ErrInvalidBid, "owner: %v", err)
	}
	if id.DSeq == 0 || id.GSeq == 0 || id.OSeq == 0 {
		return errors.Wrapf(ErrInvalidBid, "id is %d/%d/%d: dseq, gseq and oseq begin at 1", id.DSeq, id.GSeq, id.OSeq)
	}
	return nil
}

func validateDeposit(dep depositv1.Deposit) error {
	if err := dep.Amount.Validate(); err != nil {
		return errors.Wrapf(ErrInvalidDeposit, "deposit: %v", err)
	}
	if len(dep.Sources) == 0 {
		return errors.Wrap(ErrInvalidDeposit, "deposit has no sources: name balance, grant or both")
	}
	seen := make(map[depositv1.Source]bool, 2)
	for _, source := range dep.Sources {
		switch {
		case source != depositv1.SourceBalance && source != depositv1.SourceGrant:
			return errors.Wrapf(ErrInvalidDeposit, "deposit source is %s: name balance or grant", source)
		case seen[source]:
			return errors.Wrapf(ErrInvalidDeposit, "deposit source %s is named twice", source)
		}
		seen[source] = true
	}
	return nil
}

func validateProviderReason(reason marketv1.LeaseClosedReason) error {
	_, known := marketv1.LeaseClosedReason_name[int32(reason)]
	if !known || reason < firstProviderReason || reason >= firstNetworkReason {
		return errors.Wrapf(ErrInvalidClosedReason, "reason is %d: a provider gives %s, %s, %s or %s", reason,
			marketv1.LeaseClosedReasonUnstable, marketv1.LeaseClosedReasonDecommission,
			marketv1.LeaseClosedReasonUnspecified, marketv1.LeaseClosedReasonManifestTimeout)
	}
	return nil
}

// validateOffer bounds an offer's size. Whether it fits the order is
// checkOffer's question; its quantities and prices are for people to look at.
func validateOffer(offers []marketv1beta5.ResourceOffer) error {
	size := 0
	for i := range offers {
		if size += offers[i].Size(); size > MaxOfferBytes {
			return errors.Wrapf(ErrInvalidBid, "resources_offer is larger than %d bytes", MaxOfferBytes)
		}
	}
	return nil
}

// validatePrice is DecCoin.Validate for coins that came off the wire, whose
// amount may be absent.
func validatePrice(price sdk.DecCoin) error {
	if price.Amount.IsNil() {
		return errors.Wrap(ErrInvalidPrice, "price has no amount")
	}
	if err := price.Validate(); err != nil {
		return errors.Wrapf(ErrInvalidPrice, "price: %v", err)
	}
	return nil
}
