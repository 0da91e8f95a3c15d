package deployment

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
	"github.com/croft-cloud/croft/chain/gogo/resourcesv1beta4"

	"cosmossdk.io/math"

	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	"github.com/cosmos/cosmos-sdk/runtime"
	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	"github.com/cosmos/cosmos-sdk/testutil"
	sdk "github.com/cosmos/cosmos-sdk/types"
)

// akashPrefix makes addresses begin with akash1, as the chain's programs do.
var akashPrefix = sync.OnceFunc(func() {
	sdk.GetConfig().SetBech32PrefixForAccount("akash", "akashpub")
})

// protoCodec knows the module's messages.
var protoCodec = sync.OnceValue(func() codec.Codec {
	registry := codectypes.NewInterfaceRegistry()
	AppModule{}.RegisterInterfaces(registry)
	return codec.NewProtoCodec(registry)
})

// person is an account of the tests.
func person(name string) string {
	akashPrefix()
	return sdk.AccAddress(fmt.Sprintf("%-20s", name)).String()
}

// world is the module over a store in memory, with honest small neighbours.
type world struct {
	ctx     sdk.Context
	k       *Keeper
	msgs    deploymentv1beta4.MsgServer
	queries deploymentv1beta4.QueryServer
	escrow  *fakeEscrow
	market  *fakeMarket
	cdc     codec.Codec
	tenant  string
	told    []string // events of the last message, in words
}

func newWorld(t testing.TB) *world {
	akashPrefix()
	key := storetypes.NewKVStoreKey(StoreKey)
	w := &world{
		ctx: testutil.DefaultContextWithKeys(map[string]*storetypes.KVStoreKey{StoreKey: key}, nil, nil).
			WithBlockHeight(18),
		escrow: &fakeEscrow{wallets: map[string]math.LegacyDec{}, accounts: map[string]escrowtypesv1.Account{}, rates: map[string]int64{}},
		cdc:    protoCodec(),
		tenant: person("tenant"),
	}
	w.market = &fakeMarket{escrow: w.escrow, orders: map[deploymentv1.GroupID]fakeOrder{}}
	k, err := NewKeeper(w.cdc, runtime.NewKVStoreService(key), person("gov"), w.escrow)
	if err != nil {
		t.Fatal(err)
	}
	w.k, w.msgs, w.queries = k, NewMsgServer(k), NewQueryServer(k)
	k.SetMarket(w.market)
	w.escrow.overdrawn, w.market.groups = k.OnAccountOverdrawn, k
	if err := k.InitGenesis(w.ctx, DefaultGenesis()); err != nil {
		t.Fatal(err)
	}
	w.escrow.fund(w.tenant, "uact", 1_000_000_000)
	w.escrow.fund(w.tenant, "uakt", 1_000_000_000)
	return w
}

// try runs one message as the chain does: what it wrote is kept only if it
// succeeds.
func (w *world) try(do func(ctx context.Context) error) error {
	em := sdk.NewEventManager()
	ctx, write := w.ctx.WithEventManager(em).CacheContext()
	escrow, market := w.escrow.clone(), maps.Clone(w.market.orders)
	w.told = nil
	if err := do(ctx); err != nil {
		w.escrow.wallets, w.escrow.accounts, w.escrow.rates = escrow.wallets, escrow.accounts, escrow.rates
		w.market.orders = market
		return err
	}
	write()
	for _, e := range em.ABCIEvents() {
		word := e.Type[strings.LastIndex(e.Type, ".")+1:]
		for _, a := range e.Attributes {
			if a.Key == "reason" {
				word += " " + strings.Trim(a.Value, `"`)
			}
		}
		w.told = append(w.told, word)
	}
	return nil
}

// must is try for what has to succeed.
func (w *world) must(t testing.TB, do func(ctx context.Context) error) {
	t.Helper()
	if err := w.try(do); err != nil {
		t.Fatal(err)
	}
}

// tells compares the events of the last message.
func (w *world) tells(t testing.TB, want ...string) {
	t.Helper()
	if !slices.Equal(w.told, want) {
		t.Errorf("events\n got  %q\n want %q", w.told, want)
	}
}

func (w *world) pass(blocks int64) {
	w.ctx = w.ctx.WithBlockHeight(w.ctx.BlockHeight() + blocks)
}

func (w *world) id(dseq uint64) deploymentv1.DeploymentID {
	return deploymentv1.DeploymentID{Owner: w.tenant, DSeq: dseq}
}

func (w *world) group(dseq uint64, gseq uint32) deploymentv1.GroupID {
	return deploymentv1.GroupID{Owner: w.tenant, DSeq: dseq, GSeq: gseq}
}

func (w *world) create(msg *deploymentv1beta4.MsgCreateDeployment) error {
	return w.try(func(ctx context.Context) error { _, err := w.msgs.CreateDeployment(ctx, msg); return err })
}

func (w *world) update(dseq uint64, hash []byte) error {
	return w.try(func(ctx context.Context) error {
		_, err := w.msgs.UpdateDeployment(ctx, &deploymentv1beta4.MsgUpdateDeployment{ID: w.id(dseq), Hash: hash})
		return err
	})
}

func (w *world) close(dseq uint64) error {
	return w.try(func(ctx context.Context) error {
		_, err := w.msgs.CloseDeployment(ctx, &deploymentv1beta4.MsgCloseDeployment{ID: w.id(dseq)})
		return err
	})
}

func (w *world) closeGroup(id deploymentv1.GroupID) error {
	return w.try(func(ctx context.Context) error {
		_, err := w.msgs.CloseGroup(ctx, &deploymentv1beta4.MsgCloseGroup{ID: id})
		return err
	})
}

func (w *world) pauseGroup(id deploymentv1.GroupID) error {
	return w.try(func(ctx context.Context) error {
		_, err := w.msgs.PauseGroup(ctx, &deploymentv1beta4.MsgPauseGroup{ID: id})
		return err
	})
}

func (w *world) startGroup(id deploymentv1.GroupID) error {
	return w.try(func(ctx context.Context) error {
		_, err := w.msgs.StartGroup(ctx, &deploymentv1beta4.MsgStartGroup{ID: id})
		return err
	})
}

// states are those of a deployment and its groups.
func (w *world) states(t testing.TB, dseq uint64) string {
	t.Helper()
	res, err := w.queries.Deployment(w.ctx, &deploymentv1beta4.QueryDeploymentRequest{ID: w.id(dseq)})
	if err != nil {
		t.Fatal(err)
	}
	words := []string{res.Deployment.State.String() + ":"}
	for _, group := range res.Groups {
		words = append(words, group.State.String())
	}
	return strings.Join(append(words, "account", res.EscrowAccount.State.State.String()), " ")
}

// sound checks all that must hold after any message.
func (w *world) sound(t interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
},
) {
	t.Helper()
	if err := w.k.Invariants(w.ctx); err != nil {
		t.Fatal(err)
	}
	for id, order := range w.market.orders {
		group, found, err := w.k.GetGroup(w.ctx, id)
		if err != nil || !found {
			t.Fatalf("group %v of an order: %v, %v", id, found, err)
		}
		if order.open != (group.State == deploymentv1beta4.GroupOpen) {
			t.Fatalf("group %s is %s, its order open: %v", groupText(id), group.State, order.open)
		}
	}
}

// createMsg asks for the deployment of the contract's example.
func (w *world) createMsg(dseq uint64, groups ...deploymentv1beta4.GroupSpec) *deploymentv1beta4.MsgCreateDeployment {
	if len(groups) == 0 {
		groups = []deploymentv1beta4.GroupSpec{groupSpec("home")}
	}
	return &deploymentv1beta4.MsgCreateDeployment{
		ID:     w.id(dseq),
		Groups: groups,
		Hash:   slices.Repeat([]byte{7}, HashBytes),
		Deposit: depositv1.Deposit{
			Amount:  sdk.NewInt64Coin("uact", 5_000_000),
			Sources: []depositv1.Source{depositv1.SourceGrant, depositv1.SourceBalance},
		},
	}
}

func groupSpec(name string) deploymentv1beta4.GroupSpec {
	return deploymentv1beta4.GroupSpec{
		Name:         name,
		Requirements: attributesv1.PlacementRequirements{Attributes: []attributesv1.Attribute{{Key: "region", Value: "eu-west"}}},
		Resources:    []deploymentv1beta4.ResourceUnit{unit(1)},
	}
}

func unit(id uint32) deploymentv1beta4.ResourceUnit {
	return deploymentv1beta4.ResourceUnit{
		Resource: resourcesv1beta4.Resources{
			ID:        id,
			CPU:       &resourcesv1beta4.CPU{Units: value(500)},
			Memory:    &resourcesv1beta4.Memory{Quantity: value(512 * mebi)},
			Storage:   []resourcesv1beta4.Storage{{Name: "default", Quantity: value(1024 * mebi)}},
			GPU:       &resourcesv1beta4.GPU{Units: value(0)},
			Endpoints: []resourcesv1beta4.Endpoint{{Kind: resourcesv1beta4.EndpointSharedHTTP}},
		},
		Count: 1,
		Price: sdk.NewInt64DecCoin("uact", 100),
	}
}

func value(n int64) resourcesv1beta4.ResourceValue {
	return resourcesv1beta4.ResourceValue{Val: math.NewInt(n)}
}

// fakeEscrow keeps accounts of one denomination each and settles them lazily,
// as escrow does.
type fakeEscrow struct {
	wallets   map[string]math.LegacyDec // by owner and denomination
	accounts  map[string]escrowtypesv1.Account
	rates     map[string]int64 // what the leases of an account cost per block
	overdrawn func(context.Context, deploymentv1.DeploymentID) error
}

func (e *fakeEscrow) clone() *fakeEscrow {
	return &fakeEscrow{wallets: maps.Clone(e.wallets), accounts: maps.Clone(e.accounts), rates: maps.Clone(e.rates)}
}

func (e *fakeEscrow) fund(owner, denom string, amount int64) {
	e.wallets[owner+denom] = math.LegacyNewDec(amount)
}

func (e *fakeEscrow) AuthorizeDeposits(ctx context.Context, _ sdk.Msg, signer sdk.AccAddress, scope escrowidv1.Scope, dep depositv1.Deposit) ([]escrowtypesv1.Depositor, error) {
	if scope != escrowidv1.ScopeDeployment {
		return nil, fmt.Errorf("scope is %s", scope)
	}
	wallet, amount := signer.String()+dep.Amount.Denom, math.LegacyNewDecFromInt(dep.Amount.Amount)
	if have, ok := e.wallets[wallet]; !ok || have.LT(amount) {
		return nil, errors.New("insufficient funds")
	}
	e.wallets[wallet] = e.wallets[wallet].Sub(amount)
	return []escrowtypesv1.Depositor{{
		Owner:   signer.String(),
		Height:  sdk.UnwrapSDKContext(ctx).BlockHeight(),
		Source:  depositv1.SourceBalance,
		Balance: sdk.NewDecCoinFromCoin(dep.Amount),
	}}, nil
}

func (e *fakeEscrow) AccountCreate(ctx context.Context, id escrowidv1.Account, owner sdk.AccAddress, deposits []escrowtypesv1.Depositor) error {
	if _, ok := e.accounts[id.XID]; ok {
		return errors.New("account exists")
	}
	denom := deposits[0].Balance.Denom
	e.accounts[id.XID] = escrowtypesv1.Account{ID: id, State: escrowtypesv1.AccountState{
		Owner:       owner.String(),
		State:       escrowtypesv1.StateOpen,
		Transferred: []sdk.DecCoin{sdk.NewInt64DecCoin(denom, 0)},
		SettledAt:   sdk.UnwrapSDKContext(ctx).BlockHeight(),
		Funds:       []escrowtypesv1.Balance{{Denom: denom, Amount: deposits[0].Balance.Amount}},
		Deposits:    deposits,
	}}
	return nil
}

func (e *fakeEscrow) AccountSettle(ctx context.Context, id escrowidv1.Account) (bool, error) {
	a, ok := e.accounts[id.XID]
	if !ok || a.State.State != escrowtypesv1.StateOpen {
		return false, errors.New("account is not open")
	}
	height := sdk.UnwrapSDKContext(ctx).BlockHeight()
	due := math.LegacyNewDec(e.rates[id.XID] * (height - a.State.SettledAt))
	denom, left := a.State.Funds[0].Denom, a.State.Funds[0].Amount.Sub(due)
	moved := due
	if left.IsNegative() {
		moved = a.State.Funds[0].Amount
	}
	a.State.SettledAt = height
	a.State.Transferred = []sdk.DecCoin{{Denom: denom, Amount: a.State.Transferred[0].Amount.Add(moved)}}
	a.State.Funds = []escrowtypesv1.Balance{{Denom: denom, Amount: left}}
	a.State.Deposits = slices.Clone(a.State.Deposits)
	a.State.Deposits[0].Balance.Amount = math.LegacyMaxDec(left, math.LegacyZeroDec())
	if !left.IsNegative() {
		e.accounts[id.XID] = a
		return false, nil
	}
	a.State.State = escrowtypesv1.StateOverdrawn
	e.accounts[id.XID] = a
	var owner string
	var dseq uint64
	if _, err := fmt.Sscanf(strings.Replace(id.XID, "/", " ", 1), "%s %d", &owner, &dseq); err != nil {
		return false, err
	}
	return true, e.overdrawn(ctx, deploymentv1.DeploymentID{Owner: owner, DSeq: dseq})
}

func (e *fakeEscrow) AccountClose(ctx context.Context, id escrowidv1.Account) error {
	if overdrawn, err := e.AccountSettle(ctx, id); err != nil || overdrawn {
		return err
	}
	a := e.accounts[id.XID]
	left := a.State.Deposits[0].Balance
	e.wallets[a.State.Owner+left.Denom] = e.wallets[a.State.Owner+left.Denom].Add(left.Amount)
	a.State.State = escrowtypesv1.StateClosed
	a.State.Deposits, a.State.Funds = nil, nil
	e.accounts[id.XID] = a
	return nil
}

func (e *fakeEscrow) GetAccount(_ context.Context, id escrowidv1.Account) (escrowtypesv1.Account, error) {
	a, ok := e.accounts[id.XID]
	if !ok {
		return a, errors.New("account not found")
	}
	return a, nil
}

// fakeMarket keeps the last order of each group, and whether it is leased.
type fakeMarket struct {
	escrow *fakeEscrow
	groups interface {
		OnBidClosed(context.Context, deploymentv1.GroupID) error
		OnLeaseClosed(context.Context, deploymentv1.GroupID) (deploymentv1beta4.Group, error)
	}
	orders map[deploymentv1.GroupID]fakeOrder
}

type fakeOrder struct {
	oseq        uint32
	open        bool
	rate        int64 // of the lease; 0 is no lease
	reclamation *deploymentv1.DeploymentReclamation
}

func (m *fakeMarket) CreateOrder(ctx context.Context, id deploymentv1.GroupID, _ deploymentv1beta4.GroupSpec, r *deploymentv1.DeploymentReclamation) error {
	order := m.orders[id]
	if order.open {
		return errors.New("order exists")
	}
	m.orders[id] = fakeOrder{oseq: order.oseq + 1, open: true, reclamation: r}
	return emit(ctx, &marketv1.EventOrderCreated{ID: marketv1.OrderID{Owner: id.Owner, DSeq: id.DSeq, GSeq: id.GSeq, OSeq: order.oseq + 1}})
}

func (m *fakeMarket) OnGroupClosed(ctx context.Context, id deploymentv1.GroupID, state deploymentv1beta4.Group_State) error {
	order := m.orders[id]
	if !order.open {
		return nil
	}
	if err := emit(ctx, &marketv1.EventOrderClosed{}); err != nil {
		return err
	}
	if order.rate > 0 {
		reason := marketv1.LeaseClosedOwner
		if state == deploymentv1beta4.GroupInsufficientFunds {
			reason = marketv1.LeaseClosedReasonInsufficientFunds
		}
		if err := errors.Join(emit(ctx, &marketv1.EventBidClosed{}), emit(ctx, &marketv1.EventLeaseClosed{Reason: reason})); err != nil {
			return err
		}
	}
	m.end(id)
	return nil
}

func (m *fakeMarket) GetParams(context.Context) (marketv1beta5.Params, error) {
	return marketv1beta5.Params{MinReclamationWindow: time.Hour, MaxReclamationWindow: 720 * time.Hour}, nil
}

func (m *fakeMarket) end(id deploymentv1.GroupID) {
	order := m.orders[id]
	m.escrow.rates[deploymentText(deploymentOf(id))] -= order.rate
	order.open, order.rate = false, 0
	m.orders[id] = order
}

// lease accepts a bid at a rate per block.
func (m *fakeMarket) lease(ctx context.Context, id deploymentv1.GroupID, rate int64) error {
	order := m.orders[id]
	if !order.open || order.rate > 0 {
		return errors.New("order is not open")
	}
	if gone, err := m.escrow.AccountSettle(ctx, account(deploymentOf(id))); err != nil || gone {
		return errors.Join(err, errors.New("account is not open"))
	}
	order.rate = rate
	m.orders[id] = order
	m.escrow.rates[deploymentText(deploymentOf(id))] += rate
	return nil
}

// closeLease is the tenant's MsgCloseLease.
func (m *fakeMarket) closeLease(ctx context.Context, id deploymentv1.GroupID) error {
	if m.orders[id].rate == 0 {
		return errors.New("no lease")
	}
	if gone, err := m.escrow.AccountSettle(ctx, account(deploymentOf(id))); err != nil || gone {
		return err
	}
	m.end(id)
	group, err := m.groups.OnLeaseClosed(ctx, id)
	if err != nil {
		return err
	}
	return m.CreateOrder(ctx, id, group.GroupSpec, nil)
}

// closeBid is the provider's MsgCloseBid.
func (m *fakeMarket) closeBid(ctx context.Context, id deploymentv1.GroupID) error {
	if m.orders[id].rate == 0 {
		return errors.New("no lease")
	}
	if gone, err := m.escrow.AccountSettle(ctx, account(deploymentOf(id))); err != nil || gone {
		return err
	}
	if err := m.groups.OnBidClosed(ctx, id); err != nil {
		return err
	}
	m.end(id)
	return nil
}
