package escrow

import (
	"context"
	"fmt"

	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/x/authz"
)

// DefaultGenesis is the state of a chain on which nobody has deposited.
func DefaultGenesis() *escrowv1.GenesisState { return &escrowv1.GenesisState{} }

// ValidateGenesis checks that the books of every account close.
func ValidateGenesis(state *escrowv1.GenesisState) error {
	_, err := auditGenesis(state)
	return err
}

// auditGenesis returns what the bank must hold for the state.
func auditGenesis(state *escrowv1.GenesisState) (sdk.DecCoins, error) {
	payments := make(map[string][]escrowtypesv1.Payment)
	seen := make(map[string]bool)
	for _, p := range state.Payments {
		key := paymentKey(p.ID)
		if seen[key] {
			return nil, ErrPaymentExists.Wrapf("genesis has payment %s twice", key)
		}
		seen[key] = true
		payments[accountKey(p.ID.AID)] = append(payments[accountKey(p.ID.AID)], p)
	}
	var held sdk.DecCoins
	left := len(state.Payments)
	clear(seen)
	for _, account := range state.Accounts {
		key := accountKey(account.ID)
		if seen[key] {
			return nil, ErrAccountExists.Wrapf("genesis has account %s twice", key)
		}
		seen[key] = true
		b := book{account: account, payments: payments[key]}
		if err := b.check(); err != nil {
			return nil, fmt.Errorf("account %s: %w", shorten(key), err)
		}
		held = b.addHeld(held)
		left -= len(b.payments)
	}
	if left != 0 {
		return nil, ErrAccountNotFound.Wrapf("genesis has %d payments without their accounts", left)
	}
	return held, nil
}

// addHeld adds what the bank must hold for the account.
func (b *book) addHeld(sum sdk.DecCoins) sdk.DecCoins {
	for _, d := range b.account.State.Deposits {
		sum = sum.Add(d.Balance)
	}
	for _, p := range b.payments {
		sum = sum.Add(p.State.Balance)
	}
	return sum
}

// InitGenesis loads the state into an empty store. The bank's and authz's state
// must be there already: the coins are compared, and the deposit grants found.
func (k *Keeper) InitGenesis(ctx context.Context, state *escrowv1.GenesisState) error {
	held, err := auditGenesis(state)
	if err != nil {
		return err
	}
	if err := k.checkHeld(ctx, held); err != nil {
		return err
	}
	for _, account := range state.Accounts {
		if err := k.saveAccount(ctx, escrowtypesv1.StateInvalid, account); err != nil {
			return err
		}
	}
	for _, p := range state.Payments {
		if err := k.savePayment(ctx, escrowtypesv1.StateInvalid, p); err != nil {
			return err
		}
	}
	k.authz.IterateGrants(ctx, func(granter, grantee sdk.AccAddress, g authz.Grant) bool {
		authorization, e := g.GetAuthorization()
		if e != nil {
			err = fmt.Errorf("read grant: %w", e)
			return true
		}
		if _, ok := authorization.(*escrowv1.DepositAuthorization); ok {
			err = k.rememberGrant(ctx, grantee.String(), granter.String())
		}
		return err != nil
	})
	return err
}

// ExportGenesis returns the whole state, in the order of the keys.
func (k *Keeper) ExportGenesis(ctx context.Context) (*escrowv1.GenesisState, error) {
	state := DefaultGenesis()
	err := k.accounts.Walk(ctx, nil, func(_ string, account escrowtypesv1.Account) (bool, error) {
		state.Accounts = append(state.Accounts, account)
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("export escrow accounts: %w", err)
	}
	err = k.payments.Walk(ctx, nil, func(_ string, payment escrowtypesv1.Payment) (bool, error) {
		state.Payments = append(state.Payments, payment)
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("export escrow payments: %w", err)
	}
	return state, nil
}

// checkHeld compares what the books say with what the bank holds.
func (k *Keeper) checkHeld(ctx context.Context, books sdk.DecCoins) error {
	coins := sdk.NewDecCoinsFromCoins(k.bank.GetAllBalances(ctx, k.home)...)
	if !books.Equal(coins) {
		return ErrInvalidSettlement.Wrapf("books add up to %q, the module's account holds %q", books, coins)
	}
	return nil
}
