package escrow

import (
	"math/big"

	errorsmod "cosmossdk.io/errors"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// The most that one account holds. What a stranger may add is bounded apart, so
// that no one can fill a tenant's account with dust and keep the tenant out.
const (
	// MaxOpenPayments is how many payments of one account run at a time.
	MaxOpenPayments = 100
	// MaxDeposits is how many entries the deposits of an account have.
	MaxDeposits = 100
	// MaxStrangers is how many of them are of others than the account's owner
	// and those who granted it coins.
	MaxStrangers = 32
	// MaxDenoms is how many denominations an account holds.
	MaxDenoms = 4
)

// book is an account in memory together with those of its payments that a
// settlement touches. Its methods are pure: they move amounts between the
// entries, store nothing and send nothing.
//
// In every denomination, always, exactly:
//
//	funds       = sum of deposits' balances - sum of payments' unsettled
//	transferred = sum of payments' balances + sum of payments' withdrawn
//
// Deposits come in and payouts go out in whole coins, and nothing in between
// rounds, so the sum over all entries is what the bank holds, to the last digit.
type book struct {
	account  escrowtypesv1.Account
	payments []escrowtypesv1.Payment // in the order of their keys
}

// open adds a denomination, with nothing in it.
func (b *book) open(denom string) {
	s := &b.account.State
	for i := range s.Funds {
		if s.Funds[i].Denom == denom {
			return
		}
	}
	s.Funds = append(s.Funds, escrowtypesv1.Balance{Denom: denom, Amount: math.LegacyZeroDec()})
	s.Transferred = append(s.Transferred, zero(denom))
}

// holds says whether the account has the denomination, be it with nothing left.
func (b *book) holds(denom string) bool {
	for _, f := range b.account.State.Funds {
		if f.Denom == denom {
			return true
		}
	}
	return false
}

// put adds deposits behind those there are. An entry of the same owner, source
// and denomination grows instead: it keeps its height and its place in line.
func (b *book) put(deposits []escrowtypesv1.Depositor) error {
	s := &b.account.State
	for _, d := range deposits {
		if err := validateDepositor(d); err != nil {
			return err
		}
		own := d.Owner == s.Owner || d.Source == depositv1.SourceGrant
		denom := d.Balance.Denom
		if !b.holds(denom) {
			// Strangers do not choose what an account holds.
			if !own || len(s.Funds) >= MaxDenoms {
				return ErrInvalidDenom.Wrapf("deposit is in %s", denom)
			}
			b.open(denom)
		}
		if i := b.entry(d); i >= 0 {
			s.Deposits[i].Balance.Amount = s.Deposits[i].Balance.Amount.Add(d.Balance.Amount)
			continue
		}
		b.forgetEmpty()
		strangers := 0
		for _, e := range s.Deposits {
			if e.Owner != s.Owner && e.Source != depositv1.SourceGrant {
				strangers++
			}
		}
		if !own && strangers >= MaxStrangers {
			return ErrInvalidDeposit.Wrapf("account has the deposits of %d others already: send the coins to its owner", strangers)
		}
		if len(s.Deposits) >= MaxDeposits {
			return ErrInvalidDeposit.Wrapf("account has %d deposits already: add to one of them, or make a new deployment", len(s.Deposits))
		}
		s.Deposits = append(s.Deposits, d)
	}
	b.balance()
	return nil
}

// entry is the place of the deposit that d adds to, or -1.
func (b *book) entry(d escrowtypesv1.Depositor) int {
	for i, e := range b.account.State.Deposits {
		if e.Owner == d.Owner && e.Source == d.Source && e.Balance.Denom == d.Balance.Denom {
			return i
		}
	}
	return -1
}

// forgetEmpty drops the entries that are drawn to nothing when the list is
// full; until then they are shown.
func (b *book) forgetEmpty() {
	s := &b.account.State
	if len(s.Deposits) < MaxStrangers {
		return
	}
	kept := s.Deposits[:0]
	for _, e := range s.Deposits {
		if !e.Balance.Amount.IsZero() {
			kept = append(kept, e)
		}
	}
	s.Deposits = kept
}

// settle charges the open payments for the blocks since the last settlement. It
// says whether the account could not pay them; the account and its open
// payments are overdrawn then.
func (b *book) settle(height int64) (overdrawn bool, err error) {
	s := &b.account.State
	blocks := height - s.SettledAt
	s.SettledAt = height
	if blocks <= 0 {
		return false, nil // below zero on a chain that was started anew and counts from 1 again
	}
	for i := range b.payments {
		p := &b.payments[i].State
		if p.State == escrowtypesv1.StateOpen {
			p.Unsettled.Amount = p.Unsettled.Amount.Add(p.Rate.Amount.MulInt64(blocks))
		}
	}
	if err := b.pay(); err != nil {
		return false, err
	}
	if !b.owes("") {
		return false, nil
	}
	s.State = escrowtypesv1.StateOverdrawn
	for i := range b.payments {
		if p := &b.payments[i].State; p.State == escrowtypesv1.StateOpen {
			p.State = escrowtypesv1.StateOverdrawn
		}
	}
	return true, nil
}

// pay moves deposits into the payments that are owed something, as far as they
// reach, each denomination by itself. When they do not reach, they are shared in
// proportion to what is owed. In units of 10^-18, with F the funds, D the sum of
// what is owed, at most F of it paid, and C(i) the sum over the first i payments
// in the order of their keys, payment i gets
//
//	floor(F·C(i)/D) - floor(F·C(i-1)/D)
//
// which adds up to F exactly and is for none more than it is owed.
func (b *book) pay() error {
	s := &b.account.State
	for _, f := range s.Funds {
		funds, owed := b.deposited(f.Denom), b.owed(f.Denom)
		if owed.IsZero() || funds.IsZero() {
			continue
		}
		paid := math.LegacyMinDec(funds, owed)
		sum, before := math.LegacyZeroDec(), new(big.Int)
		for i := range b.payments {
			p := &b.payments[i].State
			if p.Unsettled.Denom != f.Denom || p.Unsettled.Amount.IsZero() {
				continue
			}
			sum = sum.Add(p.Unsettled.Amount)
			upTo := new(big.Int).Mul(paid.BigIntMut(), sum.BigIntMut())
			upTo.Quo(upTo, owed.BigIntMut())
			share := math.LegacyNewDecFromBigIntWithPrec(new(big.Int).Sub(upTo, before), math.LegacyPrecision)
			before = upTo
			p.Unsettled.Amount = p.Unsettled.Amount.Sub(share)
			p.Balance.Amount = p.Balance.Amount.Add(share)
		}
		if err := b.draw(f.Denom, paid); err != nil {
			return err
		}
	}
	b.balance()
	return nil
}

// draw takes the amount from the deposits, front to back.
func (b *book) draw(denom string, amount math.LegacyDec) error {
	s := &b.account.State
	left := amount
	for i := range s.Deposits {
		e := &s.Deposits[i].Balance
		if e.Denom != denom {
			continue
		}
		part := math.LegacyMinDec(e.Amount, left)
		e.Amount = e.Amount.Sub(part)
		left = left.Sub(part)
		if left.IsZero() {
			break
		}
	}
	if !left.IsZero() {
		return ErrInvalidSettlement.Wrapf("deposits of %s lack %s%s", accountKey(b.account.ID), left, denom)
	}
	for i := range s.Transferred {
		if t := &s.Transferred[i]; t.Denom == denom {
			t.Amount = t.Amount.Add(amount)
		}
	}
	return nil
}

// balance writes the funds anew.
func (b *book) balance() {
	s := &b.account.State
	for i := range s.Funds {
		f := &s.Funds[i]
		f.Amount = b.deposited(f.Denom).Sub(b.owed(f.Denom))
	}
}

// deposited is what is left of the deposits.
func (b *book) deposited(denom string) math.LegacyDec {
	sum := math.LegacyZeroDec()
	for _, e := range b.account.State.Deposits {
		if e.Balance.Denom == denom {
			sum = sum.Add(e.Balance.Amount)
		}
	}
	return sum
}

// owed is what the payments miss.
func (b *book) owed(denom string) math.LegacyDec {
	sum := math.LegacyZeroDec()
	for _, p := range b.payments {
		if p.State.Unsettled.Denom == denom {
			sum = sum.Add(p.State.Unsettled.Amount)
		}
	}
	return sum
}

// owes says whether a payment misses something, in the denomination or, if that
// is empty, in any.
func (b *book) owes(denom string) bool {
	for _, p := range b.payments {
		if (denom == "" || p.State.Unsettled.Denom == denom) && p.State.Unsettled.Amount.IsPositive() {
			return true
		}
	}
	return false
}

// debts says in words what the account owes.
func (b *book) debts() string {
	var owed sdk.DecCoins
	for _, f := range b.account.State.Funds {
		if sum := b.owed(f.Denom); sum.IsPositive() {
			owed = owed.Add(sdk.DecCoin{Denom: f.Denom, Amount: sum})
		}
	}
	return owed.String()
}

// take cuts the whole coins off an amount. The fraction stays.
func take(from *sdk.DecCoin) sdk.Coin {
	whole := from.Amount.TruncateInt()
	from.Amount = from.Amount.Sub(math.LegacyNewDecFromInt(whole))
	return sdk.Coin{Denom: from.Denom, Amount: whole}
}

func zero(denom string) sdk.DecCoin {
	return sdk.DecCoin{Denom: denom, Amount: math.LegacyZeroDec()}
}

// check says what is wrong with the account if payments are all it ever had,
// closed ones included.
func (b *book) check() error {
	s := b.account.State
	if err := ValidateAccountID(b.account.ID); err != nil {
		return err
	}
	if err := validateAddress(s.Owner); err != nil {
		return ErrInvalidAccount.Wrapf("owner: %s", err)
	}
	switch s.State {
	case escrowtypesv1.StateOpen, escrowtypesv1.StateClosed, escrowtypesv1.StateOverdrawn:
	default:
		return ErrInvalidAccount.Wrapf("state is %q", s.State)
	}
	if len(s.Deposits) > MaxDeposits || len(s.Funds) > MaxDenoms {
		return ErrInvalidAccount.Wrapf("%d deposits in %d denominations", len(s.Deposits), len(s.Funds))
	}
	if len(s.Funds) != len(s.Transferred) {
		return ErrInvalidAccount.Wrapf("%d funds, %d transferred", len(s.Funds), len(s.Transferred))
	}
	for _, d := range s.Deposits {
		if err := checkAmount("balance of a deposit", d.Balance); err != nil {
			return err
		}
		if err := validateAddress(d.Owner); err != nil {
			return ErrInvalidDepositor.Wrap(err.Error())
		}
		if d.Source != depositv1.SourceBalance && d.Source != depositv1.SourceGrant {
			return ErrInvalidDepositor.Wrapf("source %q is unknown", d.Source)
		}
		if !b.holds(d.Balance.Denom) {
			return ErrInvalidDenom.Wrapf("deposit is in %s", d.Balance.Denom)
		}
		if s.State == escrowtypesv1.StateClosed && !d.Balance.Amount.TruncateInt().IsZero() {
			return ErrInvalidAccount.Wrapf("closed, but %s of %s is not returned", d.Balance, d.Owner)
		}
	}
	open := 0
	for _, p := range b.payments {
		if err := checkPayment(p, s.State); err != nil {
			return errorsmod.Wrapf(err, "payment %s", p.ID.XID)
		}
		if !b.holds(p.State.Rate.Denom) {
			return ErrInvalidDenom.Wrapf("payment %s is in %s", p.ID.XID, p.State.Rate.Denom)
		}
		if p.State.State == escrowtypesv1.StateOpen {
			open++
		}
	}
	if open > MaxOpenPayments {
		return ErrInvalidAccount.Wrapf("%d open payments", open)
	}
	for i, f := range s.Funds {
		t := s.Transferred[i]
		if err := checkAmount("transferred", t); err != nil {
			return err
		}
		if f.Denom != t.Denom || f.Amount.IsNil() {
			return ErrInvalidAccount.Wrapf("funds in %q, transferred in %q", f.Denom, t.Denom)
		}
		for _, g := range s.Funds[:i] {
			if g.Denom == f.Denom {
				return ErrInvalidAccount.Wrapf("funds in %s twice", f.Denom)
			}
		}
		if want := b.deposited(f.Denom).Sub(b.owed(f.Denom)); !f.Amount.Equal(want) {
			return ErrInvalidAccount.Wrapf("funds are %s%s, entries add up to %s", f.Amount, f.Denom, want)
		}
		moved := math.LegacyZeroDec()
		for _, p := range b.payments {
			if p.State.Balance.Denom == f.Denom {
				moved = moved.Add(p.State.Balance.Amount).Add(math.LegacyNewDecFromInt(p.State.Withdrawn.Amount))
			}
		}
		if !t.Amount.Equal(moved) {
			return ErrInvalidAccount.Wrapf("transferred are %s, payments add up to %s", t, moved)
		}
		if b.owes(f.Denom) && b.deposited(f.Denom).IsPositive() {
			return ErrInvalidAccount.Wrapf("owes %s and holds some", f.Denom)
		}
	}
	if owes := b.owes(""); owes != (s.State == escrowtypesv1.StateOverdrawn) {
		return ErrInvalidAccount.Wrapf("state is %q, debts are %q", s.State, b.debts())
	}
	return nil
}

// checkPayment says what is wrong with a payment of an account in the state.
func checkPayment(p escrowtypesv1.Payment, account escrowtypesv1.State) error {
	if err := ValidatePaymentID(p.ID); err != nil {
		return err
	}
	s := p.State
	if err := validateAddress(s.Owner); err != nil {
		return ErrInvalidPayment.Wrapf("owner: %s", err)
	}
	if err := validateRate(s.Rate); err != nil {
		return err
	}
	if err := checkAmount("balance", s.Balance); err != nil {
		return err
	}
	if err := checkAmount("unsettled", s.Unsettled); err != nil {
		return err
	}
	if err := s.Withdrawn.Validate(); err != nil {
		return ErrInvalidPayment.Wrapf("withdrawn: %s", err)
	}
	if s.Withdrawn.Amount.BigInt().BitLen() > maxSumBits {
		return ErrInvalidPayment.Wrap("withdrawn: the amount is too large")
	}
	if d := s.Rate.Denom; s.Balance.Denom != d || s.Unsettled.Denom != d || s.Withdrawn.Denom != d {
		return ErrInvalidPayment.Wrap("amounts differ in denomination")
	}
	var fits bool
	switch s.State {
	case escrowtypesv1.StateOpen:
		fits = account == escrowtypesv1.StateOpen && s.Unsettled.IsZero()
	case escrowtypesv1.StateOverdrawn:
		fits = account == escrowtypesv1.StateOverdrawn && s.Balance.Amount.TruncateInt().IsZero()
	case escrowtypesv1.StateClosed:
		fits = s.Unsettled.IsZero() && s.Balance.Amount.TruncateInt().IsZero()
	default:
	}
	if !fits {
		return ErrInvalidPayment.Wrapf("%q, with %s and %s unsettled, in an account that is %q", s.State, s.Balance, s.Unsettled, account)
	}
	return nil
}

// maxSumBits bounds what adds up of amounts and rates.
const maxSumBits = 192

func checkAmount(name string, c sdk.DecCoin) error {
	if c.Amount.IsNil() || c.Validate() != nil || bits(c.Amount) > maxSumBits {
		return ErrInvalidAccount.Wrapf("%s is invalid", name)
	}
	return nil
}
