package escrow

import (
	"cmp"
	"context"
	"slices"
	"time"

	errorsmod "cosmossdk.io/errors"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"

	"cosmossdk.io/collections"
	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
	"github.com/cosmos/cosmos-sdk/x/authz"
)

// maxGrantsDrawn is how many grants one deposit draws on.
const maxGrantsDrawn = 16

// grantMsgType is what deposit grants are stored under.
var grantMsgType = (*escrowv1.DepositAuthorization)(nil).MsgTypeURL()

// AuthorizeDeposits takes the deposit of a message into the module's account: out
// of its sources, in their order, until the amount is reached. What it returns is
// for [Keeper.AccountCreate] or [Keeper.AccountDeposit], in the same transaction.
// The signer must be the owner of the account that it is for, because what comes
// from a grant is given back to the grant by that owner.
//
// The source "grant" is the grants of type DepositAuthorization that others gave
// the signer, of the scope and with enough in the granters' wallets. One that
// covers the amount by itself is used alone, the first in the order of the
// granters' addresses; otherwise the largest come first, at most 16 of them. So
// dust granted by strangers hides no real grant.
func (k *Keeper) AuthorizeDeposits(ctx context.Context, msg sdk.Msg, signer sdk.AccAddress, scope escrowidv1.Scope, dep depositv1.Deposit) ([]escrowtypesv1.Depositor, error) {
	deposits, err := k.takeDeposit(ctx, signer, scope, dep)
	if err != nil {
		return nil, errorsmod.Wrapf(err, "deposit for %s", sdk.MsgTypeURL(msg))
	}
	return deposits, nil
}

func (k *Keeper) takeDeposit(ctx context.Context, signer sdk.AccAddress, scope escrowidv1.Scope, dep depositv1.Deposit) ([]escrowtypesv1.Depositor, error) {
	if signer.Empty() {
		return nil, ErrInvalidDepositor.Wrap("signer is missing")
	}
	if err := ValidateDeposit(dep); err != nil {
		return nil, err
	}
	switch scope {
	case escrowidv1.ScopeDeployment, escrowidv1.ScopeBid:
	default:
		return nil, ErrInvalidDepositScope.Wrapf("scope %q is unknown", scope)
	}
	denom, left := dep.Amount.Denom, dep.Amount.Amount
	var taken []escrowtypesv1.Depositor
	take := func(from sdk.AccAddress, source depositv1.Source, amount math.Int) error {
		coin := sdk.Coin{Denom: denom, Amount: amount}
		if err := k.bank.SendCoinsFromAccountToModule(ctx, from, ModuleName, sdk.Coins{coin}); err != nil {
			return errorsmod.Wrapf(err, "take %s into escrow", coin)
		}
		left = left.Sub(amount)
		taken = append(taken, escrowtypesv1.Depositor{
			Owner:   from.String(),
			Height:  sdk.UnwrapSDKContext(ctx).BlockHeight(),
			Source:  source,
			Balance: sdk.DecCoin{Denom: denom, Amount: math.LegacyNewDecFromInt(amount)},
		})
		return nil
	}
	for _, source := range dep.Sources {
		if !left.IsPositive() {
			break
		}
		switch source {
		case depositv1.SourceBalance:
			amount := math.MinInt(left, k.bank.SpendableCoin(ctx, signer, denom).Amount)
			if !amount.IsPositive() {
				continue
			}
			if err := take(signer, source, amount); err != nil {
				return nil, err
			}
		case depositv1.SourceGrant:
			grants, err := k.grantsFor(ctx, signer, scope, sdk.Coin{Denom: denom, Amount: left})
			if err != nil {
				return nil, err
			}
			for _, g := range grants {
				amount := math.MinInt(left, g.gives)
				if !amount.IsPositive() {
					break
				}
				rest, err := g.terms.Spend(escrowv1.ScopeOf(scope), sdk.Coin{Denom: denom, Amount: amount})
				if err != nil {
					return nil, err
				}
				if err := k.authz.SaveGrant(ctx, signer, g.granter, rest, g.expires); err != nil {
					return nil, errorsmod.Wrap(err, "lower spend limit")
				}
				if err := take(g.granter, source, amount); err != nil {
					return nil, err
				}
			}
		default: // ValidateDeposit refuses it
		}
	}
	if left.IsPositive() {
		return nil, sdkerrors.ErrInsufficientFunds.Wrapf("the sources %v lack %s%s of %s", dep.Sources, left, denom, dep.Amount)
	}
	return taken, nil
}

// grant is a deposit grant that can give something now.
type grant struct {
	granter sdk.AccAddress
	terms   *escrowv1.DepositAuthorization
	expires *time.Time
	gives   math.Int // the smaller one of its limit and of what the granter has
}

// grantsFor returns the grants to draw on, the first one first.
func (k *Keeper) grantsFor(ctx context.Context, grantee sdk.AccAddress, scope escrowidv1.Scope, want sdk.Coin) ([]grant, error) {
	iter, err := k.grants.Iterate(ctx, collections.NewPrefixedPairRange[sdk.AccAddress, sdk.AccAddress](grantee))
	if err != nil {
		return nil, errorsmod.Wrap(err, "list grants")
	}
	keys, err := iter.Keys()
	if err != nil {
		return nil, errorsmod.Wrap(err, "list grants")
	}
	var found []grant
	for _, key := range keys {
		terms, expires := k.grant(ctx, grantee, key.K2())
		if terms == nil {
			if err := k.grants.Remove(ctx, key); err != nil {
				return nil, errorsmod.Wrap(err, "forget grant")
			}
			continue
		}
		if !terms.Covers(escrowv1.ScopeOf(scope)) {
			continue
		}
		gives := terms.Left(want.Denom)
		if !gives.IsPositive() {
			continue
		}
		gives = math.MinInt(gives, k.bank.SpendableCoin(ctx, key.K2(), want.Denom).Amount)
		if !gives.IsPositive() {
			continue
		}
		g := grant{granter: key.K2(), terms: terms, expires: expires, gives: gives}
		if gives.GTE(want.Amount) {
			return []grant{g}, nil
		}
		found = append(found, g)
	}
	slices.SortStableFunc(found, func(a, b grant) int {
		return cmp.Compare(b.gives.BigIntMut().Cmp(a.gives.BigIntMut()), 0)
	})
	return found[:min(len(found), maxGrantsDrawn)], nil
}

// grant returns a grant that stands, or nil.
func (k *Keeper) grant(ctx context.Context, grantee, granter sdk.AccAddress) (*escrowv1.DepositAuthorization, *time.Time) {
	authorization, expires := k.authz.GetAuthorization(ctx, grantee, granter, grantMsgType)
	terms, ok := authorization.(*escrowv1.DepositAuthorization)
	if !ok {
		return nil, nil
	}
	if expires != nil && !expires.After(sdk.UnwrapSDKContext(ctx).BlockTime()) {
		return nil, nil
	}
	return terms, expires
}

// restoreGrant gives a refund back to the limit of the grant it came from, if the
// grant stands and still is for such accounts.
func (k *Keeper) restoreGrant(ctx context.Context, account escrowtypesv1.Account, d escrowtypesv1.Depositor, coin sdk.Coin) error {
	if d.Source != depositv1.SourceGrant {
		return nil
	}
	grantee, err := sdk.AccAddressFromBech32(account.State.Owner)
	if err != nil {
		return ErrInvalidSettlement.Wrapf("owner: %s", err)
	}
	granter, err := sdk.AccAddressFromBech32(d.Owner)
	if err != nil {
		return ErrInvalidSettlement.Wrapf("granter: %s", err)
	}
	terms, expires := k.grant(ctx, grantee, granter)
	if terms == nil || !terms.Covers(escrowv1.ScopeOf(account.ID.Scope)) {
		return nil
	}
	if err := k.authz.SaveGrant(ctx, grantee, granter, terms.Restore(coin), expires); err != nil {
		return errorsmod.Wrap(err, "restore spend limit")
	}
	return nil
}

// ObserveGrants returns a message server of authz that does what next does, and
// lets the keeper know which deposit grants there are. authz stores grants by
// granter; to find those of one grantee it would have to be searched as a whole.
// A chain registers this server in place of next.
func (k *Keeper) ObserveGrants(next authz.MsgServer) authz.MsgServer {
	return grantObserver{MsgServer: next, keeper: k}
}

type grantObserver struct {
	authz.MsgServer
	keeper *Keeper
}

// Grant stores the grant and remembers it if it is for deposits.
func (o grantObserver) Grant(ctx context.Context, msg *authz.MsgGrant) (*authz.MsgGrantResponse, error) {
	resp, err := o.MsgServer.Grant(ctx, msg)
	if err != nil {
		return nil, err
	}
	authorization, err := msg.Grant.GetAuthorization()
	if err != nil {
		return nil, err
	}
	if _, ok := authorization.(*escrowv1.DepositAuthorization); !ok {
		return resp, nil
	}
	return resp, o.keeper.rememberGrant(ctx, msg.Grantee, msg.Granter)
}

// Revoke removes the grant and forgets it.
func (o grantObserver) Revoke(ctx context.Context, msg *authz.MsgRevoke) (*authz.MsgRevokeResponse, error) {
	resp, err := o.MsgServer.Revoke(ctx, msg)
	if err != nil || msg.MsgTypeUrl != grantMsgType {
		return resp, err
	}
	key, err := grantKey(msg.Grantee, msg.Granter)
	if err != nil {
		return nil, err
	}
	if err := o.keeper.grants.Remove(ctx, key); err != nil {
		return nil, errorsmod.Wrap(err, "forget grant")
	}
	return resp, nil
}

func (k *Keeper) rememberGrant(ctx context.Context, grantee, granter string) error {
	key, err := grantKey(grantee, granter)
	if err != nil {
		return err
	}
	if err := k.grants.Set(ctx, key); err != nil {
		return errorsmod.Wrap(err, "remember grant")
	}
	return nil
}

func grantKey(grantee, granter string) (collections.Pair[sdk.AccAddress, sdk.AccAddress], error) {
	to, err := sdk.AccAddressFromBech32(grantee)
	if err != nil {
		return collections.Pair[sdk.AccAddress, sdk.AccAddress]{}, errorsmod.Wrap(err, "read grantee")
	}
	from, err := sdk.AccAddressFromBech32(granter)
	if err != nil {
		return collections.Pair[sdk.AccAddress, sdk.AccAddress]{}, errorsmod.Wrap(err, "read granter")
	}
	return collections.Join(to, from), nil
}
