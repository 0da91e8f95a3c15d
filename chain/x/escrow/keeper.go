// Package escrow is the chain's purse: accounts that tenants fill and leases are
// paid from, a rate per block, and accounts that hold the deposits of bids. It
// is the only module of chain/x that moves coins.
//
// Settlement is lazy. An open payment costs nothing while blocks pass; what is
// due is drawn when a payment of the account is created, withdrawn or closed, or
// when the account is. A settlement touches the open payments of one account, so
// the other leases of the chain do not slow it, and the module has no block
// hooks at all.
//
// What a settlement cannot draw is written down as the payments' unsettled; the
// account and its open payments are overdrawn then, everything there was has
// been shared out (see pay in account.go for the formula) and paid, and the hooks
// close what was leased. The coins that an overdrawn account still has in a
// denomination it owes nothing in go back at once. Later deposits pay the debt;
// with the last of it the account closes and the rest goes back.
//
// A payout is in whole coins. The fraction stays on the entry it fell on, for
// ever once that is closed. So the module's balance in the bank is, in every
// denomination and to the last digit,
//
//	Σ balances of all deposits + Σ balances of all payments,
//
// closed ones included ([Keeper.Invariants]). Nobody but this module may send
// coins to its account.
//
// Work per call is bounded: an account has at most [MaxOpenPayments] open
// payments and [MaxDeposits] deposits, and deposits of one owner, source and
// denomination are one entry. Looking for grants is bounded by gas.
//
// What a block committed survives every crash; the module keeps nothing else.
package escrow

import (
	"context"
	"errors"
	"fmt"

	errorsmod "cosmossdk.io/errors"

	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"

	"cosmossdk.io/collections"
	corestore "cosmossdk.io/core/store"
	"cosmossdk.io/math"

	"github.com/cosmos/cosmos-sdk/codec"
	sdk "github.com/cosmos/cosmos-sdk/types"
)

const (
	// ModuleName names the module, its account and its errors.
	ModuleName = "escrow"
	// StoreKey names its store.
	StoreKey = ModuleName
)

// A record's key is "scope/xid", and for a payment "scope/xid/xid". So the text
// that a query filters by is a prefix of keys, and the payments of an account
// lie next to each other.
//
// The indexes are state and key. They are written only when a state changes.
var (
	accountsPrefix        = collections.NewPrefix(0)
	accountsByStatePrefix = collections.NewPrefix(1)
	paymentsPrefix        = collections.NewPrefix(2)
	paymentsByStatePrefix = collections.NewPrefix(3)
	grantsPrefix          = collections.NewPrefix(4)
)

type stateKey = collections.Pair[int32, string]

// Keeper owns the accounts and payments. Make it with [NewKeeper].
type Keeper struct {
	authz AuthzKeeper
	bank  BankKeeper
	home  sdk.AccAddress // the module's account

	schema          collections.Schema
	accounts        collections.Map[string, escrowtypesv1.Account]
	accountsByState collections.KeySet[stateKey]
	payments        collections.Map[string, escrowtypesv1.Payment]
	paymentsByState collections.KeySet[stateKey]
	// grants are (grantee, granter) of deposit grants that may still stand:
	// authz itself finds a grant only by its granter.
	grants collections.KeySet[collections.Pair[sdk.AccAddress, sdk.AccAddress]]

	onAccountClosed func(context.Context, escrowtypesv1.Account) error
	onPaymentClosed func(context.Context, escrowtypesv1.Payment) error
}

// NewKeeper returns a keeper whose coins lie in the module's account, which the
// account keeper must know.
func NewKeeper(cdc codec.BinaryCodec, store corestore.KVStoreService, accounts AccountKeeper, bank BankKeeper, authz AuthzKeeper) (*Keeper, error) {
	home := accounts.GetModuleAddress(ModuleName)
	if home == nil {
		return nil, fmt.Errorf("make escrow keeper: module account %q is not set up", ModuleName)
	}
	sb := collections.NewSchemaBuilder(store)
	byState := collections.PairKeyCodec(collections.Int32Key, collections.StringKey)
	k := &Keeper{
		authz:           authz,
		bank:            bank,
		home:            home,
		accounts:        collections.NewMap(sb, accountsPrefix, "accounts", collections.StringKey, codec.CollValue[escrowtypesv1.Account](cdc)),
		accountsByState: collections.NewKeySet(sb, accountsByStatePrefix, "accounts_by_state", byState),
		payments:        collections.NewMap(sb, paymentsPrefix, "payments", collections.StringKey, codec.CollValue[escrowtypesv1.Payment](cdc)),
		paymentsByState: collections.NewKeySet(sb, paymentsByStatePrefix, "payments_by_state", byState),
		grants:          collections.NewKeySet(sb, grantsPrefix, "grants", collections.PairKeyCodec(sdk.AccAddressKey, sdk.AccAddressKey)),
	}
	var err error
	if k.schema, err = sb.Build(); err != nil {
		return nil, fmt.Errorf("make escrow keeper: %w", err)
	}
	k.SetHooks(nil, nil)
	return k, nil
}

// SetHooks sets what is called after a settlement overdrew an account: first
// once for the account, then for each payment that it ended, in the order of
// their keys. All is stored and paid by then, and the hooks may call the keeper.
// A close that was asked for and could be paid calls no hook. Nil is nothing to
// call. It is for wiring, before the first block.
func (k *Keeper) SetHooks(onAccountClosed func(context.Context, escrowtypesv1.Account) error, onPaymentClosed func(context.Context, escrowtypesv1.Payment) error) {
	k.onAccountClosed = onAccountClosed
	k.onPaymentClosed = onPaymentClosed
	if k.onAccountClosed == nil {
		k.onAccountClosed = func(context.Context, escrowtypesv1.Account) error { return nil }
	}
	if k.onPaymentClosed == nil {
		k.onPaymentClosed = func(context.Context, escrowtypesv1.Payment) error { return nil }
	}
}

// GetAccount returns an account as it was last settled, or [ErrAccountNotFound].
func (k *Keeper) GetAccount(ctx context.Context, id escrowidv1.Account) (escrowtypesv1.Account, error) {
	if err := ValidateAccountID(id); err != nil {
		return escrowtypesv1.Account{}, err
	}
	account, err := k.accounts.Get(ctx, accountKey(id))
	switch {
	case errors.Is(err, collections.ErrNotFound):
		return escrowtypesv1.Account{}, ErrAccountNotFound.Wrap(accountKey(id))
	case err != nil:
		return escrowtypesv1.Account{}, errorsmod.Wrap(err, "read escrow account")
	}
	return account, nil
}

// GetPayment returns a payment as it was last settled, or [ErrPaymentNotFound].
func (k *Keeper) GetPayment(ctx context.Context, id escrowidv1.Payment) (escrowtypesv1.Payment, error) {
	if err := ValidatePaymentID(id); err != nil {
		return escrowtypesv1.Payment{}, err
	}
	payment, err := k.payments.Get(ctx, paymentKey(id))
	switch {
	case errors.Is(err, collections.ErrNotFound):
		return escrowtypesv1.Payment{}, ErrPaymentNotFound.Wrap(paymentKey(id))
	case err != nil:
		return escrowtypesv1.Payment{}, errorsmod.Wrap(err, "read escrow payment")
	}
	return payment, nil
}

// AccountCreate opens an account with deposits that [Keeper.AuthorizeDeposits]
// has taken. An id is used once, even if its account is closed.
func (k *Keeper) AccountCreate(ctx context.Context, id escrowidv1.Account, owner sdk.AccAddress, deposits []escrowtypesv1.Depositor) error {
	if err := ValidateAccountID(id); err != nil {
		return err
	}
	if owner.Empty() {
		return ErrInvalidAccount.Wrap("owner is missing")
	}
	if len(deposits) == 0 {
		return ErrInvalidDeposit.Wrap("account has no deposit")
	}
	exists, err := k.accounts.Has(ctx, accountKey(id))
	if err != nil {
		return errorsmod.Wrap(err, "read escrow account")
	}
	if exists {
		return ErrAccountExists.Wrap(accountKey(id))
	}
	b := book{account: escrowtypesv1.Account{ID: id, State: escrowtypesv1.AccountState{
		Owner:     owner.String(),
		State:     escrowtypesv1.StateOpen,
		SettledAt: sdk.UnwrapSDKContext(ctx).BlockHeight(),
	}}}
	if err := b.put(deposits); err != nil {
		return err
	}
	return k.saveAccount(ctx, escrowtypesv1.StateInvalid, b.account)
}

// AccountDeposit adds deposits that [Keeper.AuthorizeDeposits] has taken. It
// settles nothing: a deposit in time keeps an account from being overdrawn. To an
// overdrawn account it must be in a denomination that is owed; it pays the debt
// as far as it reaches, and with the last of the debt the account closes and what
// is left goes back to the depositors.
func (k *Keeper) AccountDeposit(ctx context.Context, id escrowidv1.Account, deposits []escrowtypesv1.Depositor) error {
	account, err := k.GetAccount(ctx, id)
	if err != nil {
		return err
	}
	b := &book{account: account}
	switch account.State.State {
	case escrowtypesv1.StateOpen:
		if err := b.put(deposits); err != nil {
			return err
		}
		return k.saveAccount(ctx, escrowtypesv1.StateOpen, b.account)
	case escrowtypesv1.StateOverdrawn:
		if b.payments, err = k.paymentsIn(ctx, id, escrowtypesv1.StateOverdrawn); err != nil {
			return err
		}
		for _, d := range deposits {
			if !b.owes(d.Balance.Denom) {
				return ErrInvalidDenom.Wrapf("account owes %s, deposit is in %s", b.debts(), shorten(d.Balance.Denom))
			}
		}
		if err := b.put(deposits); err != nil {
			return err
		}
		if err := b.pay(); err != nil {
			return err
		}
		if !b.owes("") {
			b.account.State.State = escrowtypesv1.StateClosed
			for i := range b.payments {
				b.payments[i].State.State = escrowtypesv1.StateClosed
			}
		}
		return k.finish(ctx, b, escrowtypesv1.StateOverdrawn)
	default:
		return ErrAccountClosed.Wrap(accountKey(id))
	}
}

// AccountSettle charges the open payments up to this block and says whether the
// account is overdrawn, by this settlement or an earlier one. The hooks have been
// called when it returns.
func (k *Keeper) AccountSettle(ctx context.Context, id escrowidv1.Account) (overdrawn bool, err error) {
	account, err := k.GetAccount(ctx, id)
	if err != nil {
		return false, err
	}
	switch account.State.State {
	case escrowtypesv1.StateOpen:
	case escrowtypesv1.StateOverdrawn:
		return true, nil
	default:
		return false, ErrAccountClosed.Wrap(accountKey(id))
	}
	b, overdrawn, err := k.settled(ctx, account)
	if err != nil || overdrawn {
		return overdrawn, err
	}
	return false, k.save(ctx, b, escrowtypesv1.StateOpen, escrowtypesv1.StateOpen)
}

// AccountClose settles, pays the payments out and closes them, and gives each
// depositor what is left of its deposit. If the settlement overdraws the account
// it stays overdrawn, as it does if it was before; that is no error, or the
// transaction would undo the settlement.
func (k *Keeper) AccountClose(ctx context.Context, id escrowidv1.Account) error {
	account, err := k.GetAccount(ctx, id)
	if err != nil {
		return err
	}
	switch account.State.State {
	case escrowtypesv1.StateOpen:
	case escrowtypesv1.StateOverdrawn:
		return nil
	default:
		return ErrAccountClosed.Wrap(accountKey(id))
	}
	b, overdrawn, err := k.settled(ctx, account)
	if err != nil || overdrawn {
		return err
	}
	b.account.State.State = escrowtypesv1.StateClosed
	for i := range b.payments {
		b.payments[i].State.State = escrowtypesv1.StateClosed
	}
	return k.finish(ctx, b, escrowtypesv1.StateOpen)
}

// PaymentCreate settles the account and opens a payment at the rate per block,
// in a denomination that the account holds. It fails with [ErrAccountOverdrawn]
// if the settlement shows that the account has nothing to give; since a failed
// transaction changes nothing, the account stays open until the next withdrawal
// or close.
func (k *Keeper) PaymentCreate(ctx context.Context, id escrowidv1.Payment, owner sdk.AccAddress, rate sdk.DecCoin) error {
	if err := ValidatePaymentID(id); err != nil {
		return err
	}
	if err := validateRate(rate); err != nil {
		return err
	}
	if owner.Empty() {
		return ErrInvalidPayment.Wrap("owner is missing")
	}
	exists, err := k.payments.Has(ctx, paymentKey(id))
	if err != nil {
		return errorsmod.Wrap(err, "read escrow payment")
	}
	if exists {
		return ErrPaymentExists.Wrap(paymentKey(id))
	}
	account, err := k.GetAccount(ctx, id.AID)
	if err != nil {
		return err
	}
	switch account.State.State {
	case escrowtypesv1.StateOpen:
	case escrowtypesv1.StateOverdrawn:
		return ErrAccountOverdrawn.Wrap(accountKey(id.AID))
	default:
		return ErrAccountClosed.Wrap(accountKey(id.AID))
	}
	b, overdrawn, err := k.settled(ctx, account)
	switch {
	case err != nil:
		return err
	case overdrawn:
		return ErrAccountOverdrawn.Wrap(accountKey(id.AID))
	case !b.holds(rate.Denom):
		return ErrInvalidDenom.Wrapf("rate is in %s", rate.Denom)
	case len(b.payments) >= MaxOpenPayments:
		return ErrInvalidPayment.Wrapf("account has %d open payments already", len(b.payments))
	}
	if err := k.save(ctx, b, escrowtypesv1.StateOpen, escrowtypesv1.StateOpen); err != nil {
		return err
	}
	return k.savePayment(ctx, escrowtypesv1.StateInvalid, escrowtypesv1.Payment{ID: id, State: escrowtypesv1.PaymentState{
		Owner:     owner.String(),
		State:     escrowtypesv1.StateOpen,
		Rate:      rate,
		Balance:   zero(rate.Denom),
		Unsettled: zero(rate.Denom),
		Withdrawn: sdk.Coin{Denom: rate.Denom, Amount: math.ZeroInt()},
	}})
}

// PaymentWithdraw settles the account and sends the whole coins of the payment to
// its owner. If the settlement overdraws the account, that pays all there is and
// ends the payment, which is no error.
func (k *Keeper) PaymentWithdraw(ctx context.Context, id escrowidv1.Payment) error {
	return k.endOrPay(ctx, id, false)
}

// PaymentClose settles the account, sends the whole coins of the payment to its
// owner and closes it. If the settlement overdraws the account, or one before
// did, the payment stays overdrawn, which is no error.
func (k *Keeper) PaymentClose(ctx context.Context, id escrowidv1.Payment) error {
	return k.endOrPay(ctx, id, true)
}

func (k *Keeper) endOrPay(ctx context.Context, id escrowidv1.Payment, end bool) error {
	payment, err := k.GetPayment(ctx, id)
	if err != nil {
		return err
	}
	switch payment.State.State {
	case escrowtypesv1.StateOpen:
	case escrowtypesv1.StateOverdrawn:
		return nil // it was paid all there is
	default:
		return ErrPaymentClosed.Wrap(paymentKey(id))
	}
	account, err := k.GetAccount(ctx, id.AID)
	if err != nil {
		return err
	}
	b, overdrawn, err := k.settled(ctx, account)
	if err != nil || overdrawn {
		return err
	}
	for i := range b.payments {
		p := &b.payments[i]
		if p.ID.XID != id.XID {
			continue
		}
		if err := k.payOut(ctx, p); err != nil {
			return err
		}
		if end {
			p.State.State = escrowtypesv1.StateClosed
		}
	}
	return k.save(ctx, b, escrowtypesv1.StateOpen, escrowtypesv1.StateOpen)
}

// settled loads the open payments of an open account and settles them in
// memory. If that overdraws the account, it does all that follows, hooks
// included; if not, the caller changes the book further and saves it.
func (k *Keeper) settled(ctx context.Context, account escrowtypesv1.Account) (b *book, overdrawn bool, err error) {
	b = &book{account: account}
	if b.payments, err = k.paymentsIn(ctx, account.ID, escrowtypesv1.StateOpen); err != nil {
		return nil, false, err
	}
	overdrawn, err = b.settle(sdk.UnwrapSDKContext(ctx).BlockHeight())
	if err != nil || !overdrawn {
		return b, false, err
	}
	if err := k.finish(ctx, b, escrowtypesv1.StateOpen); err != nil {
		return nil, true, err
	}
	if err := k.onAccountClosed(ctx, b.account); err != nil {
		return nil, true, errorsmod.Wrapf(err, "close what overdrawn account %s paid", accountKey(b.account.ID))
	}
	for _, p := range b.payments {
		if err := k.onPaymentClosed(ctx, p); err != nil {
			return nil, true, errorsmod.Wrapf(err, "close what overdrawn payment %s paid", paymentKey(p.ID))
		}
	}
	return b, true, nil
}

// finish pays all payments of the book out, returns the deposits of the
// denominations in which nothing is owed, and saves the book. All its records
// were in the state before.
func (k *Keeper) finish(ctx context.Context, b *book, before escrowtypesv1.State) error {
	for i := range b.payments {
		if err := k.payOut(ctx, &b.payments[i]); err != nil {
			return err
		}
	}
	for i := range b.account.State.Deposits {
		d := &b.account.State.Deposits[i]
		if b.owes(d.Balance.Denom) {
			continue
		}
		if err := k.refund(ctx, b.account, d); err != nil {
			return err
		}
	}
	b.balance()
	return k.save(ctx, b, before, before)
}

// payOut sends the whole coins of a payment to its owner.
func (k *Keeper) payOut(ctx context.Context, p *escrowtypesv1.Payment) error {
	coin := take(&p.State.Balance)
	if !coin.IsPositive() {
		return nil
	}
	p.State.Withdrawn = p.State.Withdrawn.Add(coin)
	return k.send(ctx, p.State.Owner, coin)
}

// refund sends the whole coins of a deposit back. The limit of the grant that
// they came from is restored.
func (k *Keeper) refund(ctx context.Context, account escrowtypesv1.Account, d *escrowtypesv1.Depositor) error {
	coin := take(&d.Balance)
	if !coin.IsPositive() {
		return nil
	}
	if err := k.send(ctx, d.Owner, coin); err != nil {
		return err
	}
	return k.restoreGrant(ctx, account, *d, coin)
}

func (k *Keeper) send(ctx context.Context, to string, coin sdk.Coin) error {
	addr, err := sdk.AccAddressFromBech32(to)
	if err != nil {
		return ErrInvalidSettlement.Wrapf("payee: %s", err)
	}
	if err := k.bank.SendCoinsFromModuleToAccount(ctx, ModuleName, addr, sdk.Coins{coin}); err != nil {
		return errorsmod.Wrapf(err, "pay %s out of escrow", coin)
	}
	return nil
}

// paymentsIn returns the payments of an account in the state, in the order of
// their keys.
func (k *Keeper) paymentsIn(ctx context.Context, id escrowidv1.Account, state escrowtypesv1.State) ([]escrowtypesv1.Payment, error) {
	start, end := under(id)
	var found []escrowtypesv1.Payment
	iter, err := k.paymentsByState.Iterate(ctx, collections.NewPrefixedPairRange[int32, string](int32(state)).StartInclusive(start).EndExclusive(end))
	if err != nil {
		return nil, errorsmod.Wrap(err, "list escrow payments")
	}
	keys, err := iter.Keys() // closes it
	if err != nil {
		return nil, errorsmod.Wrap(err, "list escrow payments")
	}
	for _, key := range keys {
		payment, err := k.payments.Get(ctx, key.K2())
		if err != nil {
			return nil, errorsmod.Wrap(err, "read escrow payment")
		}
		found = append(found, payment)
	}
	return found, nil
}

// save stores a book whose account and payments were in these states before.
func (k *Keeper) save(ctx context.Context, b *book, account, payments escrowtypesv1.State) error {
	if err := k.saveAccount(ctx, account, b.account); err != nil {
		return err
	}
	for _, p := range b.payments {
		if err := k.savePayment(ctx, payments, p); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keeper) saveAccount(ctx context.Context, before escrowtypesv1.State, account escrowtypesv1.Account) error {
	key := accountKey(account.ID)
	if err := k.accounts.Set(ctx, key, account); err != nil {
		return errorsmod.Wrap(err, "store escrow account")
	}
	return move(ctx, k.accountsByState, key, before, account.State.State)
}

func (k *Keeper) savePayment(ctx context.Context, before escrowtypesv1.State, payment escrowtypesv1.Payment) error {
	key := paymentKey(payment.ID)
	if err := k.payments.Set(ctx, key, payment); err != nil {
		return errorsmod.Wrap(err, "store escrow payment")
	}
	return move(ctx, k.paymentsByState, key, before, payment.State.State)
}

// move takes a key of an index from one state to another. StateInvalid is none.
func move(ctx context.Context, index collections.KeySet[stateKey], key string, from, to escrowtypesv1.State) error {
	if from == to {
		return nil
	}
	if from != escrowtypesv1.StateInvalid {
		if err := index.Remove(ctx, collections.Join(int32(from), key)); err != nil {
			return errorsmod.Wrap(err, "store escrow index")
		}
	}
	if err := index.Set(ctx, collections.Join(int32(to), key)); err != nil {
		return errorsmod.Wrap(err, "store escrow index")
	}
	return nil
}

func accountKey(id escrowidv1.Account) string {
	return id.Scope.String() + "/" + id.XID
}

func paymentKey(id escrowidv1.Payment) string {
	return accountKey(id.AID) + "/" + id.XID
}

// under bounds the keys of the payments of an account.
func under(id escrowidv1.Account) (start, end string) {
	return accountKey(id) + "/", accountKey(id) + "0" // 0 follows / in ASCII
}
