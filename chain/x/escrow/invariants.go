package escrow

import (
	"context"
	"errors"
	"fmt"

	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"

	"cosmossdk.io/collections"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// Invariants says what is wrong with the state, if anything. It walks all of it,
// so it is for tests and audits, never for a block. What must hold:
//
//   - in every denomination the module's account holds the sum of the balances of
//     all deposits and payments, to the last digit;
//   - an account's funds and transferred add up (see book in account.go), and no
//     balance is below zero, so no payer pays more than was deposited;
//   - an account owes something exactly when it is overdrawn, and then holds
//     nothing in that denomination;
//   - only an open account has open payments, and a closed account or an ended
//     payment holds less than one coin per entry;
//   - the indexes list every record under its state and nothing else.
func (k *Keeper) Invariants(ctx context.Context) error {
	var errs []error
	var held sdk.DecCoins
	var accounts, payments, inBooks int
	err := k.accounts.Walk(ctx, nil, func(key string, account escrowtypesv1.Account) (bool, error) {
		accounts++
		b := book{account: account}
		start, end := under(account.ID)
		err := k.payments.Walk(ctx, new(collections.Range[string]).StartInclusive(start).EndExclusive(end), func(_ string, p escrowtypesv1.Payment) (bool, error) {
			b.payments = append(b.payments, p)
			return false, nil
		})
		if err != nil {
			return true, err
		}
		inBooks += len(b.payments)
		held = b.addHeld(held)
		if key != accountKey(account.ID) {
			errs = append(errs, ErrInvalidKey.Wrapf("account %s is stored as %s", accountKey(account.ID), key))
		}
		if err := b.check(); err != nil {
			errs = append(errs, fmt.Errorf("account %s: %w", key, err))
		}
		return false, listed(ctx, k.accountsByState, account.State.State, key, &errs)
	})
	if err != nil {
		return fmt.Errorf("check escrow accounts: %w", err)
	}
	err = k.payments.Walk(ctx, nil, func(key string, p escrowtypesv1.Payment) (bool, error) {
		payments++
		if key != paymentKey(p.ID) {
			errs = append(errs, ErrInvalidKey.Wrapf("payment %s is stored as %s", paymentKey(p.ID), key))
		}
		return false, listed(ctx, k.paymentsByState, p.State.State, key, &errs)
	})
	if err != nil {
		return fmt.Errorf("check escrow payments: %w", err)
	}
	if payments != inBooks {
		errs = append(errs, ErrInvalidPayment.Wrapf("%d payments of %d have an account", inBooks, payments))
	}
	for _, index := range []struct {
		keys    collections.KeySet[stateKey]
		records int
	}{{k.accountsByState, accounts}, {k.paymentsByState, payments}} {
		entries := 0
		if err := index.keys.Walk(ctx, nil, func(stateKey) (bool, error) { entries++; return false, nil }); err != nil {
			return fmt.Errorf("check escrow index: %w", err)
		}
		if entries != index.records {
			errs = append(errs, ErrInvalidKey.Wrapf("index has %d entries for %d records", entries, index.records))
		}
	}
	return errors.Join(append(errs, k.checkHeld(ctx, held))...)
}

// listed notes when an index does not list the record under its state.
func listed(ctx context.Context, index collections.KeySet[stateKey], state escrowtypesv1.State, key string, errs *[]error) error {
	ok, err := index.Has(ctx, collections.Join(int32(state), key))
	if err == nil && !ok {
		*errs = append(*errs, ErrInvalidKey.Wrapf("%s is not listed as %s", key, state))
	}
	return err
}
