package escrow_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cosmos/gogoproto/proto"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"
	"github.com/croft-cloud/croft/chain/x/escrow"

	"cosmossdk.io/log/v2"
	"cosmossdk.io/math"

	"github.com/cosmos/cosmos-sdk/baseapp"
	"github.com/cosmos/cosmos-sdk/codec"
	"github.com/cosmos/cosmos-sdk/codec/address"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	"github.com/cosmos/cosmos-sdk/runtime"
	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	"github.com/cosmos/cosmos-sdk/testutil"
	sdk "github.com/cosmos/cosmos-sdk/types"
	authkeeper "github.com/cosmos/cosmos-sdk/x/auth/keeper"
	authtypes "github.com/cosmos/cosmos-sdk/x/auth/types"
	"github.com/cosmos/cosmos-sdk/x/authz"
	authzkeeper "github.com/cosmos/cosmos-sdk/x/authz/keeper"
	bankkeeper "github.com/cosmos/cosmos-sdk/x/bank/keeper"
	banktypes "github.com/cosmos/cosmos-sdk/x/bank/types"
	txsigning "github.com/cosmos/cosmos-sdk/x/tx/signing"
)

const prefix = "akash"

var setPrefix = sync.OnceFunc(func() {
	sdk.GetConfig().SetBech32PrefixForAccount(prefix, prefix+"pub")
})

// chain is the keeper over real bank, auth and authz keepers in memory.
type chain struct {
	t      testing.TB
	ctx    sdk.Context
	keeper *escrow.Keeper
	bank   bankkeeper.BaseKeeper
	authz  authzkeeper.Keeper
	grants authz.MsgServer
	msgs   escrowv1.MsgServer
	query  escrowv1.QueryServer
	cdc    codec.Codec

	closed []string // what the hooks were called with
	hook   func() error
}

func newChain(t testing.TB) *chain {
	t.Helper()
	setPrefix()
	registry, err := codectypes.NewInterfaceRegistryWithOptions(codectypes.InterfaceRegistryOptions{
		ProtoFiles: proto.HybridResolver,
		SigningOptions: txsigning.Options{
			AddressCodec:          address.NewBech32Codec(prefix),
			ValidatorAddressCodec: address.NewBech32Codec(prefix + "valoper"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	authtypes.RegisterInterfaces(registry)
	banktypes.RegisterInterfaces(registry)
	authz.RegisterInterfaces(registry)
	cdc := codec.NewProtoCodec(registry)
	escrow.NewAppModule(cdc, nil).RegisterInterfaces(registry)

	keys := storetypes.NewKVStoreKeys(authtypes.StoreKey, banktypes.StoreKey, authzkeeper.StoreKey, escrow.StoreKey)
	ctx := testutil.DefaultContextWithKeys(keys, nil, nil).WithBlockHeight(1).WithBlockTime(time.Unix(1_700_000_000, 0))
	accounts := authkeeper.NewAccountKeeper(cdc, runtime.NewKVStoreService(keys[authtypes.StoreKey]), authtypes.ProtoBaseAccount,
		map[string][]string{escrow.ModuleName: nil, "mint": {authtypes.Minter}}, address.NewBech32Codec(prefix), prefix, "")
	bank := bankkeeper.NewBaseKeeper(cdc, runtime.NewKVStoreService(keys[banktypes.StoreKey]), accounts,
		map[string]bool{authtypes.NewModuleAddress(escrow.ModuleName).String(): true}, authtypes.NewModuleAddress("gov").String(), log.NewNopLogger())
	router := baseapp.NewMsgServiceRouter()
	router.SetInterfaceRegistry(registry)
	grants := authzkeeper.NewKeeper(runtime.NewKVStoreService(keys[authzkeeper.StoreKey]), cdc, router, accounts).SetBankKeeper(bank)
	keeper, err := escrow.NewKeeper(cdc, runtime.NewKVStoreService(keys[escrow.StoreKey]), accounts, bank, grants)
	if err != nil {
		t.Fatal(err)
	}
	c := &chain{
		t: t, ctx: ctx, keeper: keeper, bank: bank, authz: grants, cdc: cdc,
		grants: keeper.ObserveGrants(grants),
		msgs:   escrow.NewMsgServer(keeper),
		query:  escrow.NewQueryServer(keeper),
	}
	escrowv1.RegisterMsgServer(router, c.msgs)
	keeper.SetHooks(
		func(_ context.Context, a escrowtypesv1.Account) error {
			c.closed = append(c.closed, "account "+a.ID.XID)
			if c.hook != nil {
				return c.hook()
			}
			return nil
		},
		func(_ context.Context, p escrowtypesv1.Payment) error {
			c.closed = append(c.closed, "payment "+p.ID.XID)
			return nil
		})
	return c
}

// who is an account address, the same one for the same name.
func who(name string) sdk.AccAddress {
	setPrefix()
	b := make([]byte, 20)
	copy(b, name)
	return b
}

func (c *chain) fund(to sdk.AccAddress, coins string) {
	c.t.Helper()
	amount, err := sdk.ParseCoinsNormalized(coins)
	c.must(err)
	c.must(c.bank.MintCoins(c.ctx, "mint", amount))
	c.must(c.bank.SendCoinsFromModuleToAccount(c.ctx, "mint", to, amount))
}

func (c *chain) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *chain) refuse(err, want error) {
	c.t.Helper()
	if !errors.Is(err, want) {
		c.t.Fatalf("error is %v, want %v", err, want)
	}
}

// at goes to a height.
func (c *chain) at(height int64) { c.ctx = c.ctx.WithBlockHeight(height) }

func (c *chain) has(name, want string) {
	c.t.Helper()
	if got := c.bank.GetAllBalances(c.ctx, who(name)).String(); got != want {
		c.t.Errorf("%s has %q, want %q", name, got, want)
	}
}

func (c *chain) holds() {
	c.t.Helper()
	if err := c.keeper.Invariants(c.ctx); err != nil {
		c.t.Fatal(err)
	}
}

func deployment(owner string, dseq int) escrowidv1.Account {
	return escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: fmt.Sprintf("%s/%d", who(owner), dseq)}
}

func lease(account escrowidv1.Account, gseq int, provider string) escrowidv1.Payment {
	return escrowidv1.Payment{AID: account, XID: fmt.Sprintf("%d/1/%s", gseq, who(provider))}
}

// deposit is of the source balance if none is named.
func deposit(coin string, sources ...depositv1.Source) depositv1.Deposit {
	amount, err := sdk.ParseCoinNormalized(coin)
	if err != nil {
		panic(err)
	}
	if len(sources) == 0 {
		sources = []depositv1.Source{depositv1.SourceBalance}
	}
	return depositv1.Deposit{Amount: amount, Sources: sources}
}

func rate(text string) sdk.DecCoin {
	coin, err := sdk.ParseDecCoin(text)
	if err != nil {
		panic(err)
	}
	return coin
}

// open makes an account of the scope deployment, with deposits of its owner.
func (c *chain) open(owner string, dseq int, coins ...string) escrowidv1.Account {
	c.t.Helper()
	id := deployment(owner, dseq)
	for i, coin := range coins {
		deposits, err := c.take(owner, id.Scope, deposit(coin))
		c.must(err)
		if i == 0 {
			c.must(c.keeper.AccountCreate(c.ctx, id, who(owner), deposits))
		} else {
			c.must(c.keeper.AccountDeposit(c.ctx, id, deposits))
		}
	}
	return id
}

func (c *chain) lease(account escrowidv1.Account, gseq int, provider, price string) escrowidv1.Payment {
	c.t.Helper()
	id := lease(account, gseq, provider)
	c.must(c.keeper.PaymentCreate(c.ctx, id, who(provider), rate(price)))
	return id
}

// tx runs what is undone as a whole if it fails, as a transaction is.
func (c *chain) tx(do func(sdk.Context) error) error {
	ctx, write := c.ctx.CacheContext()
	err := do(ctx)
	if err == nil {
		write()
	}
	return err
}

// add sends a MsgAccountDeposit.
func (c *chain) add(signer string, id escrowidv1.Account, dep depositv1.Deposit) error {
	return c.tx(func(ctx sdk.Context) error {
		_, err := c.msgs.AccountDeposit(ctx, &escrowv1.MsgAccountDeposit{Signer: who(signer).String(), ID: id, Deposit: dep})
		return err
	})
}

// take authorizes a deposit.
func (c *chain) take(signer string, scope escrowidv1.Scope, dep depositv1.Deposit) (taken []escrowtypesv1.Depositor, err error) {
	err = c.tx(func(ctx sdk.Context) error {
		taken, err = c.keeper.AuthorizeDeposits(ctx, &escrowv1.MsgAccountDeposit{}, who(signer), scope, dep)
		return err
	})
	return taken, err
}

func (c *chain) account(id escrowidv1.Account) escrowtypesv1.AccountState {
	c.t.Helper()
	a, err := c.keeper.GetAccount(c.ctx, id)
	c.must(err)
	return a.State
}

func (c *chain) payment(id escrowidv1.Payment) escrowtypesv1.PaymentState {
	c.t.Helper()
	p, err := c.keeper.GetPayment(c.ctx, id)
	c.must(err)
	return p.State
}

// grant lets the grantee deposit the granter's coins.
func (c *chain) grant(granter, grantee, limits string, scopes ...escrowv1.DepositAuthorization_Scope) {
	c.t.Helper()
	coins, err := sdk.ParseCoinsNormalized(limits)
	c.must(err)
	a := &escrowv1.DepositAuthorization{SpendLimit: sdk.Coin{Amount: math.ZeroInt()}, Scopes: scopes, SpendLimits: coins}
	msg, err := authz.NewMsgGrant(who(granter), who(grantee), a, nil)
	c.must(err)
	_, err = c.grants.Grant(c.ctx, msg)
	c.must(err)
}

// limit is what a grant still allows, or "gone".
func (c *chain) limit(granter, grantee string) string {
	a, _ := c.authz.GetAuthorization(c.ctx, who(grantee), who(granter), sdk.MsgTypeURL(&escrowv1.MsgAccountDeposit{}))
	if a == nil {
		return "gone"
	}
	return sdk.Coins(a.(*escrowv1.DepositAuthorization).SpendLimits).String()
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}
