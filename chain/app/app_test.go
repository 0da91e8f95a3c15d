package app_test

import (
	"testing"
	"time"

	sdk "github.com/cosmos/cosmos-sdk/types"
	banktypes "github.com/cosmos/cosmos-sdk/x/bank/types"
	"github.com/cosmos/cosmos-sdk/x/feegrant"

	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
)

func send(from, to chaintest.Account, denom string, amount int64) sdk.Msg {
	return banktypes.NewMsgSend(from.Addr(), to.Addr(), sdk.NewCoins(sdk.NewInt64Coin(denom, amount)))
}

var (
	tenant   = chaintest.NewAccount(chaintest.Tenant)
	provider = chaintest.NewAccount(chaintest.Provider)
)

func TestTransactions(t *testing.T) {
	a := chaintest.NewApp(t, chaintest.Config{})
	t.Run("a send signed in DIRECT mode moves coins of both denominations", func(t *testing.T) {
		for _, denom := range []string{app.BondDenom, app.CreditDenom} {
			before := a.Balance(provider.Addr(), denom)
			a.MustDeliver(tenant, send(tenant, provider, denom, 5))
			if got := a.Balance(provider.Addr(), denom) - before; got != 5 {
				t.Errorf("provider got %d%s, want 5", got, denom)
			}
		}
	})
	t.Run("a send signed in amino JSON mode moves coins", func(t *testing.T) {
		r := a.NextBlock(a.Sign(tenant, chaintest.TxConfig{Amino: true}, send(tenant, provider, app.CreditDenom, 5)))[0]
		if err := r.Err(); err != nil {
			t.Error(err)
		}
	})
	t.Run("a message that another must sign is refused", func(t *testing.T) {
		if r := a.Deliver(provider, send(tenant, provider, app.CreditDenom, 5)); r.Err() == nil {
			t.Error("provider sent the tenant's coins")
		}
	})
	t.Run("a granter pays the fee of an account without coins", func(t *testing.T) {
		poor := chaintest.NewAccount("poor")
		a.MustDeliver(tenant, send(tenant, poor, app.CreditDenom, 10))
		grant, err := feegrant.NewMsgGrantAllowance(&feegrant.BasicAllowance{}, tenant.Addr(), poor.Addr())
		if err != nil {
			t.Fatal(err)
		}
		a.MustDeliver(tenant, grant)
		before := a.Balance(tenant.Addr(), app.BondDenom)
		r := a.NextBlock(a.Sign(poor, chaintest.TxConfig{Granter: tenant.Addr()}, send(poor, provider, app.CreditDenom, 10)))[0]
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		if got := before - a.Balance(tenant.Addr(), app.BondDenom); got != 5000 {
			t.Errorf("granter paid %d, want 5000", got)
		}
	})
	t.Run("unordered transactions need no sequence and run once", func(t *testing.T) {
		one := a.Sign(tenant, chaintest.TxConfig{Unordered: time.Minute}, send(tenant, provider, app.CreditDenom, 1))
		two := a.Sign(tenant, chaintest.TxConfig{Unordered: 2 * time.Minute}, send(tenant, provider, app.CreditDenom, 1))
		results := a.NextBlock(one, two, one)
		for i, want := range []bool{true, true, false} {
			if got := results[i].Err() == nil; got != want {
				t.Errorf("transaction %d ran: %t, want %t (%v)", i, got, want, results[i].Err())
			}
		}
	})
	t.Run("two ordered transactions of one account fit in one block", func(t *testing.T) {
		msg := send(tenant, provider, app.CreditDenom, 1)
		for _, r := range a.NextBlock(a.Sign(tenant, chaintest.TxConfig{}, msg), a.Sign(tenant, chaintest.TxConfig{Offset: 1}, msg)) {
			if err := r.Err(); err != nil {
				t.Error(err)
			}
		}
	})
}
