package escrowv1

import (
	"context"
	"slices"
	"strings"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
	"github.com/cosmos/cosmos-sdk/x/authz"
)

// maxLimitBits bounds a spend limit, so that giving refunds back to it stays
// far from the end of [math.Int].
const maxLimitBits = 128

// maxLimits bounds how many coins a grant names: each refund writes it anew, at
// the cost of whoever closes what it paid for.
const maxLimits = 4

var _ authz.Authorization = (*DepositAuthorization)(nil)

// MsgTypeURL names the message that the grant is stored under. The deposits of
// deployments and bids draw on it too, by way of the escrow keeper.
func (*DepositAuthorization) MsgTypeURL() string {
	return sdk.MsgTypeURL(&MsgAccountDeposit{})
}

// Accept decides on a [MsgAccountDeposit] that the grantee sends in the
// granter's name. The coins must be the granter's own: a grant does not pass on
// what others granted to the granter. A spent grant is kept, with no limit
// left, because a refund fills it again.
func (a *DepositAuthorization) Accept(_ context.Context, msg sdk.Msg) (authz.AcceptResponse, error) {
	m, ok := msg.(*MsgAccountDeposit)
	if !ok {
		return authz.AcceptResponse{}, sdkerrors.ErrInvalidType.Wrapf("a deposit grant is for MsgAccountDeposit, not %T", msg)
	}
	for _, source := range m.Deposit.Sources {
		if source.String() != "balance" {
			return authz.AcceptResponse{}, sdkerrors.ErrUnauthorized.Wrapf("deposit draws on %q: in the granter's name only on balance", source)
		}
	}
	rest, err := a.Spend(ScopeOf(m.ID.Scope), m.Deposit.Amount)
	if err != nil {
		return authz.AcceptResponse{}, err
	}
	return authz.AcceptResponse{Accept: true, Updated: rest}, nil
}

// ValidateBasic checks a grant before it is given: at least one scope and one
// limit, each named once, and nothing in the field of the past.
func (a *DepositAuthorization) ValidateBasic() error {
	if !a.SpendLimit.Amount.IsNil() && !a.SpendLimit.Amount.IsZero() {
		return sdkerrors.ErrInvalidCoins.Wrap("spend_limit must be zero: use spend_limits")
	}
	if len(a.Scopes) == 0 {
		return sdkerrors.ErrInvalidRequest.Wrap("scopes are missing: name deployment, bid or both")
	}
	for i, scope := range a.Scopes {
		if scope != DepositScopeDeployment && scope != DepositScopeBid {
			return sdkerrors.ErrInvalidRequest.Wrapf("scope %q is unknown: name deployment, bid or both", scope)
		}
		if slices.Contains(a.Scopes[:i], scope) {
			return sdkerrors.ErrInvalidRequest.Wrapf("scope %q is named twice", scope)
		}
	}
	if len(a.SpendLimits) == 0 {
		return sdkerrors.ErrInvalidCoins.Wrap("spend_limits are missing: name at least one coin")
	}
	if len(a.SpendLimits) > maxLimits {
		return sdkerrors.ErrInvalidCoins.Wrapf("spend_limits name %d coins: name at most %d", len(a.SpendLimits), maxLimits)
	}
	for _, c := range a.SpendLimits { // the list's own check takes the amounts for granted
		if err := c.Validate(); err != nil {
			return sdkerrors.ErrInvalidCoins.Wrapf("spend_limits: %s", err)
		}
		if c.Amount.BigInt().BitLen() > maxLimitBits {
			return sdkerrors.ErrInvalidCoins.Wrapf("spend limit in %s is too large", c.Denom)
		}
	}
	if err := sdk.Coins(a.SpendLimits).Validate(); err != nil {
		return sdkerrors.ErrInvalidCoins.Wrapf("spend_limits: %s", err)
	}
	return nil
}

// ScopeOf is the grant's word for the scope of an account; both enumerations
// number the scopes alike.
func ScopeOf[T ~int32](account T) DepositAuthorization_Scope {
	return DepositAuthorization_Scope(account)
}

// Covers says whether the grant is for accounts of the scope.
func (a *DepositAuthorization) Covers(scope DepositAuthorization_Scope) bool {
	return scope != DepositScopeInvalid && slices.Contains(a.Scopes, scope)
}

// Left is what the grant still allows in the denomination.
func (a *DepositAuthorization) Left(denom string) math.Int {
	for _, c := range a.SpendLimits {
		if c.Denom == denom && !c.Amount.IsNil() {
			return c.Amount
		}
	}
	return math.ZeroInt()
}

// Spend returns the grant as it is after a deposit for the scope. The receiver
// stays as it is.
func (a *DepositAuthorization) Spend(scope DepositAuthorization_Scope, coin sdk.Coin) (*DepositAuthorization, error) {
	if err := coin.Validate(); err != nil {
		return nil, sdkerrors.ErrInvalidCoins.Wrap(err.Error())
	}
	if !a.Covers(scope) {
		return nil, sdkerrors.ErrUnauthorized.Wrapf("grant is not for the scope %q", scope)
	}
	left := a.Left(coin.Denom)
	if left.LT(coin.Amount) {
		return nil, sdkerrors.ErrInsufficientFunds.Wrapf("deposit of %s is more than the spend limit of %s%s", coin, left, coin.Denom)
	}
	return a.withLimit(coin.Denom, left.Sub(coin.Amount)), nil
}

// Restore returns the grant with a refund added to its limit. The receiver
// stays as it is.
func (a *DepositAuthorization) Restore(coin sdk.Coin) *DepositAuthorization {
	limit, err := a.Left(coin.Denom).SafeAdd(coin.Amount)
	if err != nil {
		return a // beyond all coins there are: the limit is none
	}
	return a.withLimit(coin.Denom, limit)
}

func (a *DepositAuthorization) withLimit(denom string, limit math.Int) *DepositAuthorization {
	b := &DepositAuthorization{SpendLimit: a.SpendLimit, Scopes: slices.Clone(a.Scopes)}
	for _, c := range a.SpendLimits {
		if c.Denom != denom {
			b.SpendLimits = append(b.SpendLimits, c)
		}
	}
	if limit.IsPositive() {
		b.SpendLimits = append(b.SpendLimits, sdk.Coin{Denom: denom, Amount: limit})
		slices.SortFunc(b.SpendLimits, func(x, y sdk.Coin) int { return strings.Compare(x.Denom, y.Denom) })
	}
	return b
}
