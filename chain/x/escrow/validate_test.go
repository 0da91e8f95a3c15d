package escrow_test

import (
	"errors"
	"testing"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"
	"github.com/croft-cloud/croft/chain/x/escrow"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

func TestValidateAccountDeposit(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*escrowv1.MsgAccountDeposit)
		want   error
	}{
		{"a good message is accepted", func(*escrowv1.MsgAccountDeposit) {}, nil},
		{"a signer that is no address is refused", func(m *escrowv1.MsgAccountDeposit) { m.Signer = "akash1" }, escrow.ErrInvalidDepositor},
		{"a scope that is unknown is refused", func(m *escrowv1.MsgAccountDeposit) { m.ID.Scope = 9 }, escrow.ErrInvalidID},
		{"an xid without dseq is refused", func(m *escrowv1.MsgAccountDeposit) { m.ID.XID = who("a").String() }, escrow.ErrInvalidID},
		{"dseq zero is refused", func(m *escrowv1.MsgAccountDeposit) { m.ID.XID = who("a").String() + "/0" }, escrow.ErrInvalidID},
		{"a second spelling of dseq is refused", func(m *escrowv1.MsgAccountDeposit) { m.ID.XID = who("a").String() + "/+1" }, escrow.ErrInvalidID},
		{"the account of a bid is refused", func(m *escrowv1.MsgAccountDeposit) {
			m.ID = escrowidv1.Account{Scope: escrowidv1.ScopeBid, XID: who("a").String() + "/1/1/1/" + who("p").String()}
		}, escrow.ErrInvalidDepositScope},
		{"an amount of nothing is refused", func(m *escrowv1.MsgAccountDeposit) { m.Deposit.Amount = sdk.Coin{} }, escrow.ErrInvalidDeposit},
		{"an amount of zero is refused", func(m *escrowv1.MsgAccountDeposit) { m.Deposit.Amount.Amount = math.ZeroInt() }, escrow.ErrInvalidDeposit},
		{"an amount below zero is refused", func(m *escrowv1.MsgAccountDeposit) { m.Deposit.Amount.Amount = math.NewInt(-1) }, escrow.ErrInvalidDeposit},
		{"an amount that could overflow is refused", func(m *escrowv1.MsgAccountDeposit) {
			m.Deposit.Amount.Amount = math.NewInt(1 << 62).Mul(math.NewInt(1 << 62)).Mul(math.NewInt(1 << 62))
		}, escrow.ErrInvalidDeposit},
		{"no sources are refused", func(m *escrowv1.MsgAccountDeposit) { m.Deposit.Sources = nil }, escrow.ErrInvalidDeposit},
		{"an unknown source is refused", func(m *escrowv1.MsgAccountDeposit) { m.Deposit.Sources[0] = 7 }, escrow.ErrInvalidDeposit},
		{"a source named twice is refused", func(m *escrowv1.MsgAccountDeposit) {
			m.Deposit.Sources = append(m.Deposit.Sources, depositv1.SourceBalance)
		}, escrow.ErrInvalidDeposit},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &escrowv1.MsgAccountDeposit{Signer: who("a").String(), ID: deployment("a", 1), Deposit: deposit("1uact")}
			tc.change(m)
			if err := escrow.ValidateAccountDeposit(m); !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
		})
	}
}

func TestDepositAuthorization(t *testing.T) {
	one := sdk.NewCoins(sdk.NewInt64Coin("uact", 1))
	both := []escrowv1.DepositAuthorization_Scope{escrowv1.DepositScopeDeployment, escrowv1.DepositScopeBid}
	for _, tc := range []struct {
		name  string
		grant escrowv1.DepositAuthorization
		ok    bool
	}{
		{"scopes and limits are enough", escrowv1.DepositAuthorization{Scopes: both, SpendLimits: one}, true},
		{"a spend limit of the past must be zero", escrowv1.DepositAuthorization{Scopes: both, SpendLimits: one, SpendLimit: one[0]}, false},
		{"a spend limit of zero is nothing", escrowv1.DepositAuthorization{Scopes: both, SpendLimits: one, SpendLimit: sdk.NewInt64Coin("uakt", 0)}, true},
		{"scopes must be named", escrowv1.DepositAuthorization{SpendLimits: one}, false},
		{"a scope is named once", escrowv1.DepositAuthorization{Scopes: append(both, both[0]), SpendLimits: one}, false},
		{"a scope must be known", escrowv1.DepositAuthorization{Scopes: []escrowv1.DepositAuthorization_Scope{3}, SpendLimits: one}, false},
		{"limits must be named", escrowv1.DepositAuthorization{Scopes: both}, false},
		{"a denomination has one limit", escrowv1.DepositAuthorization{Scopes: both, SpendLimits: append(one, one...)}, false},
		{"a limit of nothing is refused", escrowv1.DepositAuthorization{Scopes: both, SpendLimits: []sdk.Coin{{Denom: "uact"}}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.grant.ValidateBasic(); (err == nil) != tc.ok {
				t.Errorf("ValidateBasic: %v, want accepted %v", err, tc.ok)
			}
		})
	}
}

func FuzzValidateAccountDeposit(f *testing.F) {
	good := &escrowv1.MsgAccountDeposit{Signer: who("a").String(), ID: deployment("a", 1), Deposit: deposit("5000000uact", depositv1.SourceGrant, depositv1.SourceBalance)}
	raw, err := good.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m escrowv1.MsgAccountDeposit
		if m.Unmarshal(raw) != nil {
			return
		}
		if escrow.ValidateAccountDeposit(&m) != nil {
			return
		}
		// What is valid stays so through the wire.
		again, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		var n escrowv1.MsgAccountDeposit
		if err := n.Unmarshal(again); err != nil {
			t.Fatal(err)
		}
		if err := escrow.ValidateAccountDeposit(&n); err != nil {
			t.Errorf("valid before encoding, then: %v", err)
		}
	})
}
