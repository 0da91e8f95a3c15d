package escrow

import (
	"slices"
	"strconv"
	"strings"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
)

// maxAmountBits bounds an amount and a rate, so that a rate times any number of
// blocks (63 bits) with its 18 decimals (60 bits) and the sum over an account
// fit into a [math.LegacyDec] (315 bits): settlement cannot overflow.
const maxAmountBits = 128

// ValidateAccountDeposit checks the message by itself, without the state.
func ValidateAccountDeposit(msg *escrowv1.MsgAccountDeposit) error {
	if err := validateAddress(msg.Signer); err != nil {
		return ErrInvalidDepositor.Wrapf("signer: %s", err)
	}
	if err := ValidateAccountID(msg.ID); err != nil {
		return err
	}
	if msg.ID.Scope != escrowidv1.ScopeDeployment {
		return ErrInvalidDepositScope.Wrapf("account is of the scope %q", msg.ID.Scope)
	}
	return ValidateDeposit(msg.Deposit)
}

// ValidateDeposit checks that a deposit names a positive amount and each source
// at most once.
func ValidateDeposit(dep depositv1.Deposit) error {
	if err := validateCoin(dep.Amount); err != nil {
		return ErrInvalidDeposit.Wrapf("amount: %s", err)
	}
	if len(dep.Sources) == 0 {
		return ErrInvalidDeposit.Wrap("sources are missing")
	}
	for i, source := range dep.Sources {
		if source != depositv1.SourceBalance && source != depositv1.SourceGrant {
			return ErrInvalidDeposit.Wrapf("source %q is unknown", source)
		}
		if slices.Contains(dep.Sources[:i], source) {
			return ErrInvalidDeposit.Wrapf("source %q is named twice", source)
		}
	}
	return nil
}

// ValidateAccountID checks the form of an account's id: OWNER/DSEQ for a
// deployment, OWNER/DSEQ/GSEQ/OSEQ/PROVIDER for a bid. Each id has one spelling.
func ValidateAccountID(id escrowidv1.Account) error {
	parts := strings.Split(id.XID, "/")
	switch id.Scope {
	case escrowidv1.ScopeDeployment:
		if len(parts) != 2 {
			return ErrInvalidID.Wrapf("xid %q is not OWNER/DSEQ", shorten(id.XID))
		}
	case escrowidv1.ScopeBid:
		if len(parts) != 5 {
			return ErrInvalidID.Wrapf("xid %q is not OWNER/DSEQ/GSEQ/OSEQ/PROVIDER", shorten(id.XID))
		}
		if err := validateTail(parts[2:]); err != nil {
			return err
		}
	default:
		return ErrInvalidID.Wrapf("scope %q is unknown", id.Scope)
	}
	if err := validateAddress(parts[0]); err != nil {
		return ErrInvalidID.Wrapf("owner: %s", err)
	}
	return validateNumber("dseq", parts[1], 64)
}

// ValidatePaymentID checks the form of a payment's id: the account of a
// deployment and GSEQ/OSEQ/PROVIDER.
func ValidatePaymentID(id escrowidv1.Payment) error {
	if err := ValidateAccountID(id.AID); err != nil {
		return err
	}
	if id.AID.Scope != escrowidv1.ScopeDeployment {
		return ErrInvalidID.Wrap("payments are drawn from the accounts of deployments only")
	}
	parts := strings.Split(id.XID, "/")
	if len(parts) != 3 {
		return ErrInvalidID.Wrapf("xid %q is not GSEQ/OSEQ/PROVIDER", shorten(id.XID))
	}
	return validateTail(parts)
}

// validateTail checks gseq, oseq and provider.
func validateTail(parts []string) error {
	if err := validateNumber("gseq", parts[0], 32); err != nil {
		return err
	}
	if err := validateNumber("oseq", parts[1], 32); err != nil {
		return err
	}
	if err := validateAddress(parts[2]); err != nil {
		return ErrInvalidID.Wrapf("provider: %s", err)
	}
	return nil
}

func validateNumber(name, text string, bits int) error {
	n, err := strconv.ParseUint(text, 10, bits)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != text {
		return ErrInvalidID.Wrapf("%s %q is not a number from 1 on", name, shorten(text))
	}
	return nil
}

// validateAddress checks an account address in the only spelling it has.
func validateAddress(text string) error {
	addr, err := sdk.AccAddressFromBech32(text)
	if err != nil {
		return sdkerrors.ErrInvalidAddress.Wrap(err.Error())
	}
	if addr.String() != text {
		return sdkerrors.ErrInvalidAddress.Wrapf("%q is not written in lower case", shorten(text))
	}
	return nil
}

func validateCoin(coin sdk.Coin) error {
	if err := coin.Validate(); err != nil {
		return sdkerrors.ErrInvalidCoins.Wrap(err.Error())
	}
	if !coin.IsPositive() {
		return sdkerrors.ErrInvalidCoins.Wrapf("%s is not above zero", coin)
	}
	if coin.Amount.BigInt().BitLen() > maxAmountBits {
		return sdkerrors.ErrInvalidCoins.Wrap("the amount is too large")
	}
	return nil
}

func validateRate(rate sdk.DecCoin) error {
	if rate.Amount.IsNil() || rate.Amount.IsZero() {
		return ErrPaymentRateZero
	}
	if err := rate.Validate(); err != nil {
		return ErrInvalidPayment.Wrapf("rate: %s", err)
	}
	if bits(rate.Amount) > maxAmountBits {
		return ErrInvalidPayment.Wrap("rate: the amount is too large")
	}
	return nil
}

// validateDepositor checks an entry that is about to be added to an account.
func validateDepositor(d escrowtypesv1.Depositor) error {
	if err := validateAddress(d.Owner); err != nil {
		return ErrInvalidDepositor.Wrap(err.Error())
	}
	if d.Source != depositv1.SourceBalance && d.Source != depositv1.SourceGrant {
		return ErrInvalidDepositor.Wrapf("source %q is unknown", d.Source)
	}
	if d.Balance.Amount.IsNil() {
		return ErrInvalidDepositor.Wrap("balance is missing")
	}
	if err := d.Balance.Validate(); err != nil {
		return ErrInvalidDepositor.Wrapf("balance: %s", err)
	}
	if !d.Balance.Amount.IsPositive() || !d.Balance.Amount.IsInteger() || bits(d.Balance.Amount) > maxAmountBits {
		return ErrInvalidDepositor.Wrap("balance is not a positive whole amount")
	}
	return nil
}

// bits is about the size of the whole part: never more, at most one bit less.
func bits(d math.LegacyDec) int {
	return max(0, d.BigIntMut().BitLen()-60)
}

// shorten keeps foreign text in an error readable.
func shorten(text string) string {
	const most = 96
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
