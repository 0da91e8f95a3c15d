package escrow_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"
	"github.com/croft-cloud/croft/chain/x/escrow"

	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
	authtypes "github.com/cosmos/cosmos-sdk/x/auth/types"
	"github.com/cosmos/cosmos-sdk/x/authz"
)

// The names are the rules of the chain's contract, escrow's section.
func TestEscrow(t *testing.T) {
	for _, tc := range []struct {
		name string
		rule func(*chain)
	}{
		{"the module account is the one real clients know", func(c *chain) {
			equal(c.t, "address", authtypes.NewModuleAddress(escrow.ModuleName).String(), "akash14pphss726thpwws3yc458hggufynm9x77l4l2u")
		}},
		{"a lease created, withdrawn and closed settles the account at that height", func(c *chain) {
			c.fund(who("tenant"), "1000uact")
			c.at(10)
			id := c.open("tenant", 1, "1000uact")
			c.at(20)
			p1 := c.lease(id, 1, "p1", "1uact")
			equal(c.t, "settled_at after creation", c.account(id).SettledAt, 20)
			c.at(30)
			p2 := c.lease(id, 2, "p2", "1uact")
			equal(c.t, "settled_at after the next creation", c.account(id).SettledAt, 30)
			equal(c.t, "balance of the first", c.payment(p1).Balance.String(), "10.000000000000000000uact")
			c.at(40)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p1))
			equal(c.t, "settled_at after withdrawal", c.account(id).SettledAt, 40)
			equal(c.t, "balance of the other", c.payment(p2).Balance.String(), "10.000000000000000000uact")
			c.at(50)
			c.must(c.keeper.PaymentClose(c.ctx, p1))
			equal(c.t, "settled_at after close", c.account(id).SettledAt, 50)
			c.at(60)
			c.must(c.keeper.AccountClose(c.ctx, id))
			equal(c.t, "settled_at after the account's close", c.account(id).SettledAt, 60)
			c.has("p1", "30uact")
			c.has("p2", "30uact")
			c.has("tenant", "940uact")
		}},
		{"a settlement moves rate times blocks and nothing twice", func(c *chain) {
			c.fund(who("tenant"), "1000uact")
			id := c.open("tenant", 1, "1000uact")
			p := c.lease(id, 1, "p", "7uact")
			c.at(11)
			for range 3 {
				overdrawn, err := c.keeper.AccountSettle(c.ctx, id)
				c.must(err)
				equal(c.t, "overdrawn", overdrawn, false)
			}
			equal(c.t, "balance", c.payment(p).Balance.String(), "70.000000000000000000uact")
			equal(c.t, "funds", c.account(id).Funds[0].Amount.String(), "930.000000000000000000")
			equal(c.t, "transferred", c.account(id).Transferred[0].String(), "70.000000000000000000uact")
		}},
		{"vector: rate 50 over 171 blocks withdraws 8550", func(c *chain) {
			c.fund(who("tenant"), "5000000uact")
			id := c.open("tenant", 1001, "5000000uact")
			c.at(44)
			p := c.lease(id, 1, "p", "50uact")
			c.at(215)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p))
			c.has("p", "8550uact")
			equal(c.t, "withdrawn", c.payment(p).Withdrawn.String(), "8550uact")
			equal(c.t, "funds", c.account(id).Funds[0].Amount.String(), "4991450.000000000000000000")
		}},
		{"vector: rate 150000.5 over 6 blocks withdraws 900003", func(c *chain) {
			c.fund(who("tenant"), "5000000uact")
			id := c.open("tenant", 1, "5000000uact")
			p := c.lease(id, 1, "p", "150000.5uact")
			c.at(7)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p))
			c.has("p", "900003uact")
		}},
		{"a withdrawal sends whole coins and keeps the fraction", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			id := c.open("tenant", 1, "100uact")
			p := c.lease(id, 1, "p", "0.7uact")
			c.at(2)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p))
			c.has("p", "")
			equal(c.t, "balance", c.payment(p).Balance.String(), "0.700000000000000000uact")
			c.at(4)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p))
			c.has("p", "2uact")
			equal(c.t, "balance", c.payment(p).Balance.String(), "0.100000000000000000uact")
			equal(c.t, "withdrawn", c.payment(p).Withdrawn.String(), "2uact")
		}},
		{"a closed entry keeps less than one coin and the books still close", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			id := c.open("tenant", 1, "100uact")
			p := c.lease(id, 1, "p", "0.7uact")
			c.at(2)
			c.must(c.keeper.AccountClose(c.ctx, id))
			c.has("tenant", "99uact")
			equal(c.t, "fraction of the payment", c.payment(p).Balance.String(), "0.700000000000000000uact")
			equal(c.t, "fraction of the deposit", c.account(id).Deposits[0].Balance.String(), "0.300000000000000000uact")
			equal(c.t, "held", c.bank.GetAllBalances(c.ctx, authtypes.NewModuleAddress(escrow.ModuleName)).String(), "1uact")
		}},
		{"deposits are drawn front to back", func(c *chain) {
			for _, name := range []string{"tenant", "friend", "other"} {
				c.fund(who(name), "100uact")
			}
			id := c.open("tenant", 1, "100uact")
			c.must(c.add("friend", id, deposit("100uact")))
			c.must(c.add("other", id, deposit("100uact")))
			p := c.lease(id, 1, "p", "15uact")
			c.at(11)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p))
			var got []string
			for _, d := range c.account(id).Deposits {
				got = append(got, d.Balance.Amount.TruncateInt().String())
			}
			equal(c.t, "what is left", strings.Join(got, " "), "0 50 100")
			c.must(c.keeper.AccountClose(c.ctx, id))
			c.has("tenant", "")
			c.has("friend", "50uact")
			c.has("other", "100uact")
		}},
		{"nobody takes a share of a payment", func(c *chain) {
			c.fund(who("tenant"), "1000uact")
			id := c.open("tenant", 1, "1000uact")
			c.lease(id, 1, "p", "100uact")
			c.at(11)
			c.must(c.keeper.AccountClose(c.ctx, id))
			c.has("p", "1000uact")
		}},
		{"a close pays the payments, closes them and returns the rest", func(c *chain) {
			c.fund(who("tenant"), "1000uact")
			id := c.open("tenant", 1, "1000uact")
			p := c.lease(id, 1, "p", "10uact")
			c.at(6)
			c.must(c.keeper.AccountClose(c.ctx, id))
			equal(c.t, "payment", c.payment(p).State, escrowtypesv1.StateClosed)
			equal(c.t, "account", c.account(id).State, escrowtypesv1.StateClosed)
			c.has("p", "50uact")
			c.has("tenant", "950uact")
			c.refuse(c.keeper.AccountClose(c.ctx, id), escrow.ErrAccountClosed)
			c.refuse(c.keeper.PaymentClose(c.ctx, p), escrow.ErrPaymentClosed)
			c.refuse(c.keeper.PaymentWithdraw(c.ctx, p), escrow.ErrPaymentClosed)
			c.refuse(c.add("tenant", id, deposit("1uact")), escrow.ErrAccountClosed)
			c.refuse(c.keeper.PaymentCreate(c.ctx, lease(id, 2, "p"), who("p"), rate("1uact")), escrow.ErrAccountClosed)
			_, err := c.keeper.AccountSettle(c.ctx, id)
			c.refuse(err, escrow.ErrAccountClosed)
			if len(c.closed) != 0 {
				c.t.Errorf("hooks were called: %v", c.closed)
			}
		}},
		{"the account of a bid holds one deposit and no payments", func(c *chain) {
			c.fund(who("p"), "500000uakt")
			id := escrowidv1.Account{Scope: escrowidv1.ScopeBid, XID: fmt.Sprintf("%s/1001/1/1/%s", who("tenant"), who("p"))}
			deposits, err := c.take("p", escrowidv1.ScopeBid, deposit("500000uakt"))
			c.must(err)
			c.must(c.keeper.AccountCreate(c.ctx, id, who("p"), deposits))
			c.has("p", "")
			c.refuse(c.keeper.PaymentCreate(c.ctx, escrowidv1.Payment{AID: id, XID: lease(id, 1, "p").XID}, who("p"), rate("1uakt")), escrow.ErrInvalidID)
			c.fund(who("p"), "1uakt")
			c.refuse(c.add("p", id, deposit("1uakt")), escrow.ErrInvalidDepositScope)
			c.at(9)
			c.must(c.keeper.AccountClose(c.ctx, id))
			c.has("p", "500001uakt")
		}},
		{"an overdrawn account shares out what there is and writes down what is missing", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			id := c.open("tenant", 1, "100uact")
			p1 := c.lease(id, 1, "p1", "10uact")
			p2 := c.lease(id, 2, "p2", "30uact")
			c.at(6) // 200 are due, a quarter to p1
			overdrawn, err := c.keeper.AccountSettle(c.ctx, id)
			c.must(err)
			equal(c.t, "overdrawn", overdrawn, true)
			c.has("p1", "25uact")
			c.has("p2", "75uact")
			equal(c.t, "account", c.account(id).State, escrowtypesv1.StateOverdrawn)
			equal(c.t, "funds", c.account(id).Funds[0].Amount.String(), "-100.000000000000000000")
			for p, missing := range map[escrowidv1.Payment]string{p1: "25.000000000000000000uact", p2: "75.000000000000000000uact"} {
				equal(c.t, "payment", c.payment(p).State, escrowtypesv1.StateOverdrawn)
				equal(c.t, "unsettled", c.payment(p).Unsettled.String(), missing)
			}
			// It stays as it is, and nothing that closes leases fails on it.
			c.at(60)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p1))
			c.must(c.keeper.PaymentClose(c.ctx, p1))
			c.must(c.keeper.AccountClose(c.ctx, id))
			overdrawn, err = c.keeper.AccountSettle(c.ctx, id)
			c.must(err)
			equal(c.t, "overdrawn", overdrawn, true)
			equal(c.t, "funds", c.account(id).Funds[0].Amount.String(), "-100.000000000000000000")
			c.refuse(c.keeper.PaymentCreate(c.ctx, lease(id, 3, "p"), who("p"), rate("1uact")), escrow.ErrAccountOverdrawn)
		}},
		{"what does not divide is shared to the last digit", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			id := c.open("tenant", 1, "100uact")
			ps := []escrowidv1.Payment{c.lease(id, 1, "p1", "11uact"), c.lease(id, 2, "p2", "11uact"), c.lease(id, 3, "p3", "11uact")}
			c.at(11)
			_, err := c.keeper.AccountSettle(c.ctx, id)
			c.must(err)
			var got []string
			for _, p := range ps {
				got = append(got, c.payment(p).Balance.Amount.String())
			}
			equal(c.t, "fractions", strings.Join(got, " "), "0.333333333333333333 0.333333333333333333 0.333333333333333334")
		}},
		{"hooks see the account first, then its payments, once, and all is paid by then", func(c *chain) {
			c.fund(who("tenant"), "10uact")
			id := c.open("tenant", 1, "10uact")
			p1, p2 := c.lease(id, 1, "p1", "10uact"), c.lease(id, 2, "p2", "10uact")
			c.at(6)
			c.hook = func() error {
				c.has("p1", "5uact")
				// What the deployment and the market do when they close all.
				return errors.Join(c.keeper.PaymentClose(c.ctx, p1), c.keeper.PaymentClose(c.ctx, p2), c.keeper.AccountClose(c.ctx, id))
			}
			c.must(c.keeper.PaymentWithdraw(c.ctx, p2))
			want := []string{"account " + id.XID, "payment " + p1.XID, "payment " + p2.XID}
			if !slices.Equal(c.closed, want) {
				c.t.Errorf("hooks were called with %v, want %v", c.closed, want)
			}
		}},
		{"a hook that fails fails the settlement", func(c *chain) {
			c.fund(who("tenant"), "10uact")
			id := c.open("tenant", 1, "10uact")
			c.lease(id, 1, "p", "10uact")
			c.at(6)
			broken := errors.New("broken")
			c.hook = func() error { return broken }
			_, err := c.keeper.AccountSettle(c.ctx, id)
			c.refuse(err, broken)
		}},
		{"a later deposit pays the debt, then the account closes and the rest is returned", func(c *chain) {
			c.fund(who("tenant"), "1000uact")
			id := c.open("tenant", 1, "100uact")
			p := c.lease(id, 1, "p", "10.5uact")
			c.at(21) // 210 are due
			c.must(c.keeper.PaymentWithdraw(c.ctx, p))
			c.has("p", "100uact")
			c.must(c.add("tenant", id, deposit("300uact")))
			c.has("p", "210uact")
			c.has("tenant", "790uact")
			equal(c.t, "account", c.account(id).State, escrowtypesv1.StateClosed)
			equal(c.t, "payment", c.payment(p).State, escrowtypesv1.StateClosed)
			equal(c.t, "unsettled", c.payment(p).Unsettled.Amount.String(), "0.000000000000000000")
			equal(c.t, "funds", c.account(id).Funds[0].Amount.String(), "0.000000000000000000")
		}},
		{"a deposit smaller than the debt pays a part of it to each", func(c *chain) {
			c.fund(who("tenant"), "1000uact")
			id := c.open("tenant", 1, "100uact")
			p1, p2 := c.lease(id, 1, "p1", "10uact"), c.lease(id, 2, "p2", "30uact")
			c.at(6)
			_, err := c.keeper.AccountSettle(c.ctx, id)
			c.must(err)
			c.must(c.add("tenant", id, deposit("40uact")))
			c.has("p1", "35uact")
			c.has("p2", "105uact")
			equal(c.t, "account", c.account(id).State, escrowtypesv1.StateOverdrawn)
			equal(c.t, "funds", c.account(id).Funds[0].Amount.String(), "-60.000000000000000000")
			c.must(c.add("tenant", id, deposit("60uact")))
			equal(c.t, "account", c.account(id).State, escrowtypesv1.StateClosed)
			c.has("p1", "50uact")
			c.has("p2", "150uact")
			equal(c.t, "first payment", c.payment(p1).State, escrowtypesv1.StateClosed)
			equal(c.t, "second payment", c.payment(p2).State, escrowtypesv1.StateClosed)
		}},
		{"a close that finds the account overdrawn leaves it overdrawn", func(c *chain) {
			c.fund(who("tenant"), "10uact")
			id := c.open("tenant", 1, "10uact")
			c.lease(id, 1, "p", "10uact")
			c.at(6)
			c.must(c.keeper.AccountClose(c.ctx, id))
			equal(c.t, "account", c.account(id).State, escrowtypesv1.StateOverdrawn)
			equal(c.t, "hooks called", len(c.closed), 2)
		}},
		{"a lease is not created when the settlement overdraws the account", func(c *chain) {
			c.fund(who("tenant"), "10uact")
			id := c.open("tenant", 1, "10uact")
			c.lease(id, 1, "p", "10uact")
			c.at(6)
			c.refuse(c.tx(func(ctx sdk.Context) error {
				return c.keeper.PaymentCreate(ctx, lease(id, 2, "p"), who("p"), rate("1uact"))
			}), escrow.ErrAccountOverdrawn)
			equal(c.t, "account", c.account(id).State, escrowtypesv1.StateOpen)
		}},
		{"a deposit in time saves the account, however late it was settled", func(c *chain) {
			c.fund(who("tenant"), "1000uact")
			id := c.open("tenant", 1, "10uact")
			p := c.lease(id, 1, "p", "10uact")
			c.at(6)
			c.must(c.add("tenant", id, deposit("100uact")))
			equal(c.t, "settled_at", c.account(id).SettledAt, 1)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p))
			equal(c.t, "account", c.account(id).State, escrowtypesv1.StateOpen)
			c.has("p", "50uact")
		}},
		{"a payment draws its own denomination only", func(c *chain) {
			c.fund(who("tenant"), "1000uact,1000uakt")
			id := c.open("tenant", 1, "1000uact", "1000uakt")
			act, akt := c.lease(id, 1, "p1", "3uact"), c.lease(id, 2, "p2", "5uakt")
			c.refuse(c.keeper.PaymentCreate(c.ctx, lease(id, 3, "p"), who("p"), rate("1uusd")), escrow.ErrInvalidDenom)
			c.at(11)
			c.must(c.keeper.PaymentWithdraw(c.ctx, act))
			c.must(c.keeper.PaymentWithdraw(c.ctx, akt))
			c.has("p1", "30uact")
			c.has("p2", "50uakt")
			c.must(c.keeper.AccountClose(c.ctx, id))
			c.has("tenant", "970uact,950uakt")
		}},
		{"an overdrawn account holds back nothing of another denomination", func(c *chain) {
			c.fund(who("tenant"), "110uact,1000uakt")
			id := c.open("tenant", 1, "10uact", "1000uakt")
			act, akt := c.lease(id, 1, "p1", "3uact"), c.lease(id, 2, "p2", "5uakt")
			c.at(11)
			c.must(c.keeper.PaymentWithdraw(c.ctx, akt))
			c.has("p1", "10uact")
			c.has("p2", "50uakt")
			c.has("tenant", "100uact,950uakt")
			equal(c.t, "payment that was paid", c.payment(akt).State, escrowtypesv1.StateOverdrawn)
			equal(c.t, "unsettled of it", c.payment(akt).Unsettled.IsZero(), true)
			c.refuse(c.add("tenant", id, deposit("1uakt")), escrow.ErrInvalidDenom)
			c.must(c.add("tenant", id, deposit("100uact")))
			equal(c.t, "account", c.account(id).State, escrowtypesv1.StateClosed)
			equal(c.t, "payment", c.payment(akt).State, escrowtypesv1.StateClosed)
			equal(c.t, "payment", c.payment(act).State, escrowtypesv1.StateClosed)
			c.has("p1", "30uact")
			c.has("tenant", "80uact,950uakt")
		}},
		{"anyone may deposit and is the depositor of that entry", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			c.fund(who("friend"), "100uact")
			id := c.open("tenant", 1, "100uact")
			c.at(5)
			c.must(c.add("friend", id, deposit("40uact")))
			d := c.account(id).Deposits[1]
			equal(c.t, "owner", d.Owner, who("friend").String())
			equal(c.t, "height", d.Height, 5)
			equal(c.t, "source", d.Source, depositv1.SourceBalance)
			c.must(c.keeper.AccountClose(c.ctx, id))
			c.has("friend", "100uact")
		}},
		{"a deposit of the same owner, source and denomination grows its entry", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			id := c.open("tenant", 1, "10uact")
			for range 50 {
				c.must(c.add("tenant", id, deposit("1uact")))
			}
			equal(c.t, "entries", len(c.account(id).Deposits), 1)
			equal(c.t, "balance", c.account(id).Deposits[0].Balance.String(), "60.000000000000000000uact")
		}},
		{"strangers cannot fill the account and keep the tenant out", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			id := c.open("tenant", 1, "10uact")
			for i := range escrow.MaxStrangers + 1 {
				name := fmt.Sprintf("stranger%d", i)
				c.fund(who(name), "1uact,1udust")
				c.refuse(c.add(name, id, deposit("1udust")), escrow.ErrInvalidDenom)
				if i == escrow.MaxStrangers {
					c.refuse(c.add(name, id, deposit("1uact")), escrow.ErrInvalidDeposit)
					break
				}
				c.must(c.add(name, id, deposit("1uact")))
			}
			c.must(c.add("tenant", id, deposit("10uact")))
		}},
		{"an account runs a bounded number of payments", func(c *chain) {
			c.fund(who("tenant"), "1000uact")
			id := c.open("tenant", 1, "1000uact")
			for i := range escrow.MaxOpenPayments {
				c.lease(id, i+1, "p", "1uact")
			}
			c.refuse(c.keeper.PaymentCreate(c.ctx, lease(id, 1000, "p"), who("p"), rate("1uact")), escrow.ErrInvalidPayment)
			c.must(c.keeper.PaymentClose(c.ctx, lease(id, 7, "p")))
			c.lease(id, 1000, "p", "1uact")
		}},
		{"a grant is drawn before the balance when it is named first", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			c.fund(who("granter"), "100uact")
			c.grant("granter", "tenant", "60uact", escrowv1.DepositScopeDeployment)
			deposits, err := c.take("tenant", escrowidv1.ScopeDeployment,
				deposit("80uact", depositv1.SourceGrant, depositv1.SourceBalance))
			c.must(err)
			id := deployment("tenant", 1)
			c.must(c.keeper.AccountCreate(c.ctx, id, who("tenant"), deposits))
			c.has("granter", "40uact")
			c.has("tenant", "80uact")
			equal(c.t, "limit", c.limit("granter", "tenant"), "")
			got := c.account(id).Deposits
			equal(c.t, "entries", len(got), 2)
			equal(c.t, "first owner", got[0].Owner, who("granter").String())
			equal(c.t, "first source", got[0].Source, depositv1.SourceGrant)
			equal(c.t, "second owner", got[1].Owner, who("tenant").String())
			// Half is used; the close returns the rest and restores the limit.
			c.lease(id, 1, "p", "4uact")
			c.at(11)
			c.must(c.keeper.AccountClose(c.ctx, id))
			c.has("p", "40uact")
			c.has("granter", "60uact")
			c.has("tenant", "100uact")
			equal(c.t, "limit", c.limit("granter", "tenant"), "20uact")
		}},
		{"a refund restores no grant that was revoked, and still goes to the granter", func(c *chain) {
			c.fund(who("granter"), "100uact")
			c.grant("granter", "tenant", "60uact", escrowv1.DepositScopeDeployment)
			deposits, err := c.take("tenant", escrowidv1.ScopeDeployment, deposit("50uact", depositv1.SourceGrant))
			c.must(err)
			id := deployment("tenant", 1)
			c.must(c.keeper.AccountCreate(c.ctx, id, who("tenant"), deposits))
			msg := authz.NewMsgRevoke(who("granter"), who("tenant"), sdk.MsgTypeURL(&escrowv1.MsgAccountDeposit{}))
			_, err = c.grants.Revoke(c.ctx, &msg)
			c.must(err)
			c.must(c.keeper.AccountClose(c.ctx, id))
			c.has("granter", "100uact")
			equal(c.t, "limit", c.limit("granter", "tenant"), "gone")
		}},
		{"a grant is for its scopes only", func(c *chain) {
			c.fund(who("granter"), "100uact")
			c.grant("granter", "tenant", "60uact", escrowv1.DepositScopeBid)
			_, err := c.take("tenant", escrowidv1.ScopeDeployment, deposit("50uact", depositv1.SourceGrant))
			c.refuse(err, sdkerrors.ErrInsufficientFunds)
			_, err = c.take("tenant", escrowidv1.ScopeBid, deposit("50uact", depositv1.SourceGrant))
			c.must(err)
			equal(c.t, "limit", c.limit("granter", "tenant"), "10uact")
			c.must(c.keeper.AccountCreate(c.ctx, escrowidv1.Account{Scope: escrowidv1.ScopeBid, XID: fmt.Sprintf("%s/1/1/1/%s", who("x"), who("tenant"))},
				who("tenant"), []escrowtypesv1.Depositor{{Owner: who("granter").String(), Source: depositv1.SourceGrant, Balance: rate("50uact")}}))
		}},
		{"one grant that covers the amount is used alone, else the largest first", func(c *chain) {
			for name, limit := range map[string]string{"a": "1uact", "b": "30uact", "c": "50uact", "d": "20uact"} {
				c.fund(who(name), "100uact")
				c.grant(name, "tenant", limit, escrowv1.DepositScopeDeployment)
			}
			deposits, err := c.take("tenant", escrowidv1.ScopeDeployment, deposit("30uact", depositv1.SourceGrant))
			c.must(err)
			equal(c.t, "entries", len(deposits), 1)
			c.must(c.keeper.AccountCreate(c.ctx, deployment("tenant", 1), who("tenant"), deposits))
			c.has("b", "70uact")
			deposits, err = c.take("tenant", escrowidv1.ScopeDeployment, deposit("60uact", depositv1.SourceGrant))
			c.must(err)
			equal(c.t, "entries", len(deposits), 2)
			c.must(c.keeper.AccountCreate(c.ctx, deployment("tenant", 2), who("tenant"), deposits))
			c.has("c", "50uact")
			c.has("d", "90uact")
			c.has("a", "100uact")
		}},
		{"an expired grant gives nothing", func(c *chain) {
			c.fund(who("granter"), "100uact")
			expires := c.ctx.BlockTime().Add(time.Hour)
			msg, err := authz.NewMsgGrant(who("granter"), who("tenant"), &escrowv1.DepositAuthorization{
				Scopes: []escrowv1.DepositAuthorization_Scope{escrowv1.DepositScopeDeployment}, SpendLimits: sdk.NewCoins(sdk.NewInt64Coin("uact", 10)),
			}, &expires)
			c.must(err)
			_, err = c.grants.Grant(c.ctx, msg)
			c.must(err)
			c.ctx = c.ctx.WithBlockTime(expires)
			_, err = c.take("tenant", escrowidv1.ScopeDeployment, deposit("10uact", depositv1.SourceGrant))
			c.refuse(err, sdkerrors.ErrInsufficientFunds)
		}},
		{"grants of a depositor that is not the account's owner are passed over", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			c.fund(who("friend"), "100uact")
			c.fund(who("granter"), "100uact")
			c.grant("granter", "friend", "60uact", escrowv1.DepositScopeDeployment)
			id := c.open("tenant", 1, "10uact")
			c.refuse(c.add("friend", id, deposit("50uact", depositv1.SourceGrant)), escrow.ErrInvalidDeposit)
			c.must(c.add("friend", id, deposit("50uact", depositv1.SourceGrant, depositv1.SourceBalance)))
			c.has("granter", "100uact")
			c.has("friend", "50uact")
		}},
		{"a grantee deposits in the granter's name within the limit", func(c *chain) {
			c.fund(who("tenant"), "10uact")
			c.fund(who("granter"), "100uact")
			id := c.open("tenant", 1, "10uact")
			c.grant("granter", "tenant", "60uact", escrowv1.DepositScopeDeployment)
			deposit := func(dep depositv1.Deposit) error {
				msg := authz.NewMsgExec(who("tenant"), []sdk.Msg{&escrowv1.MsgAccountDeposit{Signer: who("granter").String(), ID: id, Deposit: dep}})
				return c.tx(func(ctx sdk.Context) error {
					_, err := c.grants.Exec(ctx, &msg)
					return err
				})
			}
			c.must(deposit(depositv1.Deposit{Amount: sdk.NewInt64Coin("uact", 60), Sources: []depositv1.Source{depositv1.SourceBalance}}))
			c.has("granter", "40uact")
			equal(c.t, "limit", c.limit("granter", "tenant"), "")
			c.refuse(deposit(depositv1.Deposit{Amount: sdk.NewInt64Coin("uact", 1), Sources: []depositv1.Source{depositv1.SourceBalance}}), sdkerrors.ErrInsufficientFunds)
			c.refuse(deposit(depositv1.Deposit{Amount: sdk.NewInt64Coin("uact", 1), Sources: []depositv1.Source{depositv1.SourceGrant}}), sdkerrors.ErrUnauthorized)
		}},
		{"sources that lack the amount refuse the deposit", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			_, err := c.take("tenant", escrowidv1.ScopeDeployment,
				deposit("101uact", depositv1.SourceGrant, depositv1.SourceBalance))
			c.refuse(err, sdkerrors.ErrInsufficientFunds)
		}},
		{"what others lease does not change the cost of a settlement", func(c *chain) {
			c.fund(who("tenant"), "1000000uact")
			cost := func(dseq int) uint64 {
				id := c.open("tenant", dseq, "1000uact")
				p := c.lease(id, 1, "p", "1uact")
				c.at(c.ctx.BlockHeight() + 5)
				ctx := c.ctx.WithGasMeter(storetypes.NewInfiniteGasMeter())
				c.must(c.keeper.PaymentWithdraw(ctx, p))
				return ctx.GasMeter().GasConsumed()
			}
			alone := cost(1001)
			for i := range 500 {
				c.lease(c.open("tenant", 2000+i, "10uact"), 1, "p", "1uact")
			}
			// A first withdrawal differs from the next in the length of balances.
			if among := cost(1002); among > alone+alone/20 {
				c.t.Errorf("gas is %d among 500 leases, %d alone", among, alone)
			}
		}},
		{"ids are used once", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			id := c.open("tenant", 1, "10uact")
			deposits, err := c.take("tenant", id.Scope, deposit("10uact"))
			c.must(err)
			c.refuse(c.keeper.AccountCreate(c.ctx, id, who("tenant"), deposits), escrow.ErrAccountExists)
			c.must(c.keeper.AccountDeposit(c.ctx, id, deposits))
			c.lease(id, 1, "p", "1uact")
			c.refuse(c.keeper.PaymentCreate(c.ctx, lease(id, 1, "p"), who("p"), rate("1uact")), escrow.ErrPaymentExists)
		}},
		{"what does not exist is not found", func(c *chain) {
			id := deployment("nobody", 1)
			_, err := c.keeper.GetAccount(c.ctx, id)
			c.refuse(err, escrow.ErrAccountNotFound)
			_, err = c.keeper.GetPayment(c.ctx, lease(id, 1, "p"))
			c.refuse(err, escrow.ErrPaymentNotFound)
			c.refuse(c.keeper.AccountClose(c.ctx, id), escrow.ErrAccountNotFound)
			c.refuse(c.keeper.PaymentClose(c.ctx, lease(id, 1, "p")), escrow.ErrPaymentNotFound)
			c.refuse(c.add("nobody", id, deposit("1uact")), escrow.ErrAccountNotFound)
		}},
		{"a rate of zero is refused", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			id := c.open("tenant", 1, "10uact")
			c.refuse(c.keeper.PaymentCreate(c.ctx, lease(id, 1, "p"), who("p"), sdk.DecCoin{Denom: "uact"}), escrow.ErrPaymentRateZero)
		}},
		{"a chain started anew at a lower height charges from there", func(c *chain) {
			c.fund(who("tenant"), "100uact")
			c.at(1000)
			id := c.open("tenant", 1, "100uact")
			p := c.lease(id, 1, "p", "1uact")
			c.at(5)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p))
			c.at(7)
			c.must(c.keeper.PaymentWithdraw(c.ctx, p))
			c.has("p", "2uact")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			tc.rule(c)
			c.holds()
		})
	}
}
