package app

import (
	"context"
	"errors"
	"fmt"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// Invariants says what is wrong with the state, if anything: coins are neither
// made nor lost, and every module's own rules hold. It walks the whole state,
// so it is for tests and audits, never for a block.
func (a *App) Invariants(ctx context.Context) error {
	return errors.Join(a.coinsConserved(ctx), a.modulesHold(ctx))
}

// coinsConserved checks that the balances add up to the supply.
func (a *App) coinsConserved(ctx context.Context) error {
	var sum sdk.Coins
	var errs []error
	a.BankKeeper.IterateAllBalances(ctx, func(owner sdk.AccAddress, coin sdk.Coin) bool {
		if !coin.IsPositive() {
			errs = append(errs, fmt.Errorf("balance of %s is %s", owner, coin))
			return false
		}
		sum = sum.Add(coin)
		return false
	})
	var supply sdk.Coins
	a.BankKeeper.IterateTotalSupply(ctx, func(coin sdk.Coin) bool {
		supply = supply.Add(coin)
		return false
	})
	if !sum.Equal(supply) {
		errs = append(errs, fmt.Errorf("balances are %s, supply is %s", sum, supply))
	}
	return errors.Join(errs...)
}

// modulesHold asks every keeper of chain/x.
func (a *App) modulesHold(ctx context.Context) error {
	var errs []error
	for _, m := range a.checked() {
		if err := m.check(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		}
	}
	return errors.Join(errs...)
}
