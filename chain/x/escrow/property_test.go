package escrow_test

import (
	"fmt"
	"testing"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"

	"pgregory.net/rapid"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// world is a chain that random messages are sent to, and what must be true of
// it beside the keeper's own invariants.
type world struct {
	*chain
	supply    string
	accounts  []escrowidv1.Account
	payments  []escrowidv1.Payment
	deposited map[string]math.LegacyDec // by account and denomination
}

var (
	people = []string{"tenant", "other", "granter", "p1", "p2"}
	denoms = []string{"uact", "uakt"}
)

func TestAnySequenceOfCallsKeepsTheInvariants(t *testing.T) {
	base := newChain(t)
	for _, name := range people {
		base.fund(who(name), "2000uact,2000uakt")
	}
	base.grant("granter", "tenant", "500uact,300uakt", escrowv1.DepositScopeDeployment, escrowv1.DepositScopeBid)
	base.grant("other", "tenant", "100uact", escrowv1.DepositScopeDeployment)
	supply := base.total()
	rapid.Check(t, func(t *rapid.T) {
		c := *base
		c.ctx, _ = base.ctx.CacheContext()
		w := &world{chain: &c, supply: supply, deposited: make(map[string]math.LegacyDec)}
		t.Repeat(map[string]func(*rapid.T){
			"":         w.check,
			"blocks":   func(t *rapid.T) { w.at(w.ctx.BlockHeight() + rapid.Int64Range(1, 20).Draw(t, "blocks")) },
			"create":   w.create,
			"deposit":  w.deposit,
			"lease":    w.pay,
			"withdraw": w.each(func(ctx sdk.Context, p escrowidv1.Payment) error { return w.keeper.PaymentWithdraw(ctx, p) }),
			"close":    w.each(func(ctx sdk.Context, p escrowidv1.Payment) error { return w.keeper.PaymentClose(ctx, p) }),
			"end": func(t *rapid.T) {
				if id, ok := w.pick(t); ok {
					_ = w.tx(func(ctx sdk.Context) error { return w.keeper.AccountClose(ctx, id) }) // a closed one refuses
				}
			},
			"settle": func(t *rapid.T) {
				if id, ok := w.pick(t); ok {
					_ = w.tx(func(ctx sdk.Context) error { _, err := w.keeper.AccountSettle(ctx, id); return err }) // a closed one refuses
				}
			},
		})
	})
}

func (c *chain) total() string {
	var sum sdk.Coins
	c.bank.IterateAllBalances(c.ctx, func(_ sdk.AccAddress, coin sdk.Coin) bool {
		sum = sum.Add(coin)
		return false
	})
	return sum.String()
}

func (w *world) check(t *rapid.T) {
	if err := w.keeper.Invariants(w.ctx); err != nil {
		t.Fatal(err)
	}
	if got := w.total(); got != w.supply {
		t.Fatalf("all balances are %s, were %s", got, w.supply)
	}
	for _, id := range w.accounts {
		for _, moved := range w.account(id).Transferred {
			if put := w.deposited[id.XID+moved.Denom]; moved.Amount.GT(put) {
				t.Fatalf("%s was charged %s, deposited were %s", id.XID, moved, put)
			}
		}
	}
}

// count notes what was deposited.
func (w *world) count(id escrowidv1.Account, deposits []escrowtypesv1.Depositor) {
	for _, d := range deposits {
		key := id.XID + d.Balance.Denom
		if sum, ok := w.deposited[key]; ok {
			w.deposited[key] = sum.Add(d.Balance.Amount)
		} else {
			w.deposited[key] = d.Balance.Amount
		}
	}
}

func (w *world) create(t *rapid.T) {
	owner := rapid.SampledFrom([]string{"tenant", "other"}).Draw(t, "owner")
	id := deployment(owner, len(w.accounts)+1)
	var deposits []escrowtypesv1.Depositor
	err := w.tx(func(ctx sdk.Context) (err error) {
		deposits, err = w.keeper.AuthorizeDeposits(ctx, &escrowv1.MsgAccountDeposit{}, who(owner), id.Scope, w.amount(t))
		if err != nil {
			return err
		}
		return w.keeper.AccountCreate(ctx, id, who(owner), deposits)
	})
	if err == nil {
		w.accounts = append(w.accounts, id)
		w.count(id, deposits)
	}
}

func (w *world) deposit(t *rapid.T) {
	id, ok := w.pick(t)
	if !ok {
		return
	}
	dep := w.amount(t)
	if w.add(rapid.SampledFrom(people).Draw(t, "signer"), id, dep) == nil {
		w.count(id, []escrowtypesv1.Depositor{{Balance: sdk.NewDecCoinFromCoin(dep.Amount)}})
	}
}

func (w *world) pay(t *rapid.T) {
	id, ok := w.pick(t)
	if !ok {
		return
	}
	provider := rapid.SampledFrom([]string{"p1", "p2"}).Draw(t, "provider")
	p := lease(id, len(w.payments)+1, provider)
	price := sdk.DecCoin{
		Denom:  rapid.SampledFrom(denoms).Draw(t, "denom"),
		Amount: math.LegacyNewDecWithPrec(rapid.Int64Range(1, 30_000).Draw(t, "rate"), rapid.Int64Range(3, 5).Draw(t, "digits")),
	}
	if w.tx(func(ctx sdk.Context) error { return w.keeper.PaymentCreate(ctx, p, who(provider), price) }) == nil {
		w.payments = append(w.payments, p)
	}
}

func (w *world) each(do func(sdk.Context, escrowidv1.Payment) error) func(*rapid.T) {
	return func(t *rapid.T) {
		if len(w.payments) == 0 {
			return
		}
		p := rapid.SampledFrom(w.payments).Draw(t, "payment")
		_ = w.tx(func(ctx sdk.Context) error { return do(ctx, p) }) // a closed one refuses
	}
}

func (w *world) pick(t *rapid.T) (escrowidv1.Account, bool) {
	if len(w.accounts) == 0 {
		return escrowidv1.Account{}, false
	}
	return rapid.SampledFrom(w.accounts).Draw(t, "account"), true
}

func (w *world) amount(t *rapid.T) depositv1.Deposit {
	sources := rapid.SampledFrom([][]depositv1.Source{
		{depositv1.SourceBalance}, {depositv1.SourceGrant}, {depositv1.SourceGrant, depositv1.SourceBalance}, {depositv1.SourceBalance, depositv1.SourceGrant},
	}).Draw(t, "sources")
	return deposit(fmt.Sprintf("%d%s", rapid.IntRange(1, 400).Draw(t, "amount"), rapid.SampledFrom(denoms).Draw(t, "denom")), sources...)
}
