package market

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	dbm "github.com/cosmos/cosmos-db"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/auditv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/resourcesv1beta4"

	"cosmossdk.io/collections"
	"cosmossdk.io/log/v2"
	"cosmossdk.io/math"

	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	"github.com/cosmos/cosmos-sdk/runtime"
	"github.com/cosmos/cosmos-sdk/store/v2"
	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	sdk "github.com/cosmos/cosmos-sdk/types"
)

// akashPrefix makes addresses begin with akash1, as the chain's programs do.
var akashPrefix = sync.OnceFunc(func() {
	c := sdk.GetConfig()
	c.SetBech32PrefixForAccount("akash", "akashpub")
})

// The people of the tests.
func person(name string) string {
	akashPrefix()
	return sdk.AccAddress(fmt.Sprintf("%-20s", name)).String()
}

// world is a market over a store in memory, with honest small neighbours that
// keep their state in the same store: what a refused message wrote is gone.
type world struct {
	ctx        sdk.Context
	k          *Keeper
	msgs       marketv1beta5.MsgServer
	queries    marketv1beta5.QueryServer
	escrow     *fakeEscrow
	deployment *fakeDeployment
	providers  fakeProviders
	audits     fakeAudits
	cdc        codec.Codec

	tenant, provider string
	told             []string // events of the last message, in words
}

func newWorld(t testing.TB) *world {
	t.Helper()
	akashPrefix()
	keys := map[string]*storetypes.KVStoreKey{
		StoreKey: storetypes.NewKVStoreKey(StoreKey),
		"fakes":  storetypes.NewKVStoreKey("fakes"),
	}
	registry := codectypes.NewInterfaceRegistry()
	AppModule{}.RegisterInterfaces(registry)
	cdc := codec.NewProtoCodec(registry)
	stores := store.NewCommitMultiStore(dbm.NewMemDB(), log.NewNopLogger())
	for _, key := range keys {
		stores.MountStoreWithDB(key, storetypes.StoreTypeIAVL, nil)
	}
	if err := stores.LoadLatestVersion(); err != nil {
		t.Fatal(err)
	}
	w := &world{
		ctx:       sdk.NewContext(stores, cmtproto.Header{Height: 100, Time: time.Unix(1_800_000_000, 0).UTC()}, false, log.NewNopLogger()),
		providers: fakeProviders{},
		audits:    fakeAudits{},
		cdc:       cdc,
		tenant:    person("tenant"),
		provider:  person("provider"),
	}
	schema := collections.NewSchemaBuilder(runtime.NewKVStoreService(keys["fakes"]))
	w.escrow = newFakeEscrow(schema, cdc)
	w.deployment = newFakeDeployment(schema, cdc)
	if _, err := schema.Build(); err != nil {
		t.Fatal(err)
	}
	k, err := NewKeeper(cdc, runtime.NewKVStoreService(keys[StoreKey]), person("gov"), w.escrow, w.deployment, w.providers, w.audits)
	if err != nil {
		t.Fatal(err)
	}
	w.k = k
	w.escrow.overdrawn = w.deployment.OnAccountOverdrawn
	w.deployment.market, w.deployment.escrow = k, w.escrow
	w.msgs, w.queries = NewMsgServer(k), NewQueryServer(k)
	if err := k.InitGenesis(w.ctx, DefaultGenesis()); err != nil {
		t.Fatal(err)
	}
	w.register(w.provider)
	return w
}

// register makes an account a provider with money for deposits.
func (w *world) register(address string, attributes ...attributesv1.Attribute) {
	w.providers[address] = providerv1beta4.Provider{Owner: address, HostURI: "https://box.example.com", Attributes: attributes}
	w.escrow.fund(w.ctx, address, sdk.NewInt64Coin("uakt", 1_000_000_000))
}

// try runs one message as the chain does: what it wrote is kept only if it succeeds.
func (w *world) try(do func(ctx context.Context) error) error {
	em := sdk.NewEventManager()
	ctx, write := w.ctx.WithEventManager(em).CacheContext()
	w.told = nil
	if err := do(ctx); err != nil {
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

// pass lets blocks and as many seconds go by.
func (w *world) pass(blocks int64) {
	w.ctx = w.ctx.WithBlockHeight(w.ctx.BlockHeight() + blocks).
		WithBlockTime(w.ctx.BlockTime().Add(time.Duration(blocks) * time.Second))
}

// deploy makes a deployment with one group and one order.
func (w *world) deploy(t testing.TB, dseq uint64, deposit int64, change ...func(*deploymentv1beta4.GroupSpec)) marketv1.OrderID {
	t.Helper()
	spec := groupSpec()
	for _, c := range change {
		c(&spec)
	}
	w.escrow.fund(w.ctx, w.tenant, sdk.NewInt64Coin("uact", deposit))
	w.must(t, func(ctx context.Context) error {
		return w.deployment.create(ctx, w.tenant, dseq, sdk.NewInt64Coin("uact", deposit), nil, spec)
	})
	return marketv1.OrderID{Owner: w.tenant, DSeq: dseq, GSeq: 1, OSeq: 1}
}

// bidMsg is a bid that breaks no rule.
func bidMsg(order marketv1.OrderID, provider string) *marketv1beta5.MsgCreateBid {
	return &marketv1beta5.MsgCreateBid{
		ID:    marketv1.BidID{Owner: order.Owner, DSeq: order.DSeq, GSeq: order.GSeq, OSeq: order.OSeq, Provider: provider},
		Price: price("50"),
		Deposit: depositv1.Deposit{
			Amount:  sdk.NewInt64Coin("uakt", 500_000),
			Sources: []depositv1.Source{depositv1.SourceBalance},
		},
	}
}

func (w *world) bid(t testing.TB, order marketv1.OrderID, provider string, change ...func(*marketv1beta5.MsgCreateBid)) marketv1.BidID {
	t.Helper()
	msg := bidMsg(order, provider)
	for _, c := range change {
		c(msg)
	}
	w.must(t, func(ctx context.Context) error { _, err := w.msgs.CreateBid(ctx, msg); return err })
	return msg.ID
}

func (w *world) lease(t testing.TB, id marketv1.BidID) marketv1.LeaseID {
	t.Helper()
	w.must(t, func(ctx context.Context) error {
		_, err := w.msgs.CreateLease(ctx, &marketv1beta5.MsgCreateLease{BidID: id})
		return err
	})
	return marketv1.LeaseID(id)
}

// leased makes a deployment with a lease on it.
func (w *world) leased(t testing.TB, dseq uint64, deposit int64, change ...func(*marketv1beta5.MsgCreateBid)) marketv1.LeaseID {
	t.Helper()
	return w.lease(t, w.bid(t, w.deploy(t, dseq, deposit), w.provider, change...))
}

func (w *world) closeLease(id marketv1.LeaseID) error {
	return w.try(func(ctx context.Context) error {
		_, err := w.msgs.CloseLease(ctx, &marketv1beta5.MsgCloseLease{ID: id})
		return err
	})
}

func (w *world) closeBid(id marketv1.BidID) error {
	return w.try(func(ctx context.Context) error {
		_, err := w.msgs.CloseBid(ctx, &marketv1beta5.MsgCloseBid{ID: id, Reason: marketv1.LeaseClosedReasonUnstable})
		return err
	})
}

func (w *world) withdraw(id marketv1.LeaseID) error {
	return w.try(func(ctx context.Context) error {
		_, err := w.msgs.WithdrawLease(ctx, &marketv1beta5.MsgWithdrawLease{ID: id})
		return err
	})
}

func (w *world) startReclaim(id marketv1.LeaseID) error {
	return w.try(func(ctx context.Context) error {
		_, err := w.msgs.LeaseStartReclaim(ctx, &marketv1beta5.MsgLeaseStartReclaim{ID: id, Reason: marketv1.LeaseClosedReasonDecommission})
		return err
	})
}

// wantStates compares the states of an order, a bid on it and its lease; an
// empty word means that there is none.
func (w *world) wantStates(t testing.TB, id marketv1.BidID, order, bid, lease string) {
	t.Helper()
	var got [3]string
	if o, ok, _ := w.k.GetOrder(w.ctx, orderOf(id)); ok {
		got[0] = o.State.String()
	}
	if b, ok, _ := w.k.GetBid(w.ctx, id); ok {
		got[1] = b.State.String()
	}
	if l, ok, _ := w.k.GetLease(w.ctx, marketv1.LeaseID(id)); ok {
		got[2] = l.State.String()
	}
	if want := [3]string{order, bid, lease}; got != want {
		t.Errorf("order, bid and lease are %q, want %q", got, want)
	}
	if err := w.k.Invariants(w.ctx); err != nil {
		t.Errorf("invariants: %v", err)
	}
}

func (w *world) wantEvents(t testing.TB, want ...string) {
	t.Helper()
	if got, want := strings.Join(w.told, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("events are\n%s\nwant\n%s", got, want)
	}
}

func (w *world) wantError(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

func (w *world) mustLease(t testing.TB, id marketv1.LeaseID) marketv1.Lease {
	t.Helper()
	lease, found, err := w.k.GetLease(w.ctx, id)
	if err != nil || !found {
		t.Fatalf("GetLease = %v, %v", found, err)
	}
	return lease
}

// groupSpec asks for two replicas at 100 uact each.
func groupSpec() deploymentv1beta4.GroupSpec {
	return deploymentv1beta4.GroupSpec{
		Name: "home",
		Resources: []deploymentv1beta4.ResourceUnit{{
			Resource: resourcesv1beta4.Resources{
				ID:      1,
				CPU:     &resourcesv1beta4.CPU{Units: units(500)},
				Memory:  &resourcesv1beta4.Memory{Quantity: units(512 << 20)},
				Storage: []resourcesv1beta4.Storage{{Name: "default", Quantity: units(1 << 30)}},
				GPU:     &resourcesv1beta4.GPU{Units: units(0)},
			},
			Count: 2,
			Price: price("100"),
		}},
	}
}

func units(n int64) resourcesv1beta4.ResourceValue {
	return resourcesv1beta4.ResourceValue{Val: math.NewInt(n)}
}

func price(amount string) sdk.DecCoin {
	return sdk.DecCoin{Denom: "uact", Amount: math.LegacyMustNewDecFromStr(amount)}
}

func attr(key, value string) attributesv1.Attribute {
	return attributesv1.Attribute{Key: key, Value: value}
}

type fakeProviders map[string]providerv1beta4.Provider

func (f fakeProviders) Get(_ context.Context, owner sdk.AccAddress) (providerv1beta4.Provider, bool, error) {
	p, ok := f[owner.String()]
	return p, ok, nil
}

// fakeAudits is keyed by owner and auditor.
type fakeAudits map[[2]string][]attributesv1.Attribute

func (f fakeAudits) GetProviderByAuditor(_ context.Context, owner, auditor sdk.AccAddress) (auditv1.AuditedProvider, bool, error) {
	attributes, ok := f[[2]string{owner.String(), auditor.String()}]
	return auditv1.AuditedProvider{Owner: owner.String(), Auditor: auditor.String(), Attributes: attributes}, ok, nil
}

// fakeDeployment keeps groups and does to them what the real module does.
type fakeDeployment struct {
	groups collections.Map[string, deploymentv1beta4.Group]
	market *Keeper
	escrow *fakeEscrow
}

func newFakeDeployment(schema *collections.SchemaBuilder, cdc codec.BinaryCodec) *fakeDeployment {
	return &fakeDeployment{groups: collections.NewMap(schema, collections.NewPrefix(10), "groups", collections.StringKey,
		codec.CollValue[deploymentv1beta4.Group](cdc))}
}

func groupText(id deploymentv1.GroupID) string {
	return fmt.Sprintf("%s/%d/%d", id.Owner, id.DSeq, id.GSeq)
}

func (f *fakeDeployment) GetGroup(ctx context.Context, id deploymentv1.GroupID) (deploymentv1beta4.Group, bool, error) {
	g, err := f.groups.Get(ctx, groupText(id))
	if errors.Is(err, collections.ErrNotFound) {
		return g, false, nil
	}
	return g, err == nil, err
}

func (f *fakeDeployment) set(ctx context.Context, id deploymentv1.GroupID, state deploymentv1beta4.Group_State) error {
	g, err := f.groups.Get(ctx, groupText(id))
	if err != nil {
		return err
	}
	g.State = state
	return f.groups.Set(ctx, groupText(id), g)
}

func (f *fakeDeployment) OnBidClosed(ctx context.Context, id deploymentv1.GroupID) error {
	if err := f.set(ctx, id, deploymentv1beta4.GroupPaused); err != nil {
		return err
	}
	return emit(ctx, &deploymentv1.EventGroupPaused{ID: id})
}

func (f *fakeDeployment) OnLeaseClosed(ctx context.Context, id deploymentv1.GroupID) (deploymentv1beta4.Group, error) {
	return f.groups.Get(ctx, groupText(id))
}

// OnAccountOverdrawn is what escrow's hook comes to.
func (f *fakeDeployment) OnAccountOverdrawn(ctx context.Context, id deploymentv1.DeploymentID) error {
	if err := emit(ctx, &deploymentv1.EventDeploymentClosed{ID: id}); err != nil {
		return err
	}
	for gseq := uint32(1); ; gseq++ {
		group := deploymentv1.GroupID{Owner: id.Owner, DSeq: id.DSeq, GSeq: gseq}
		g, found, err := f.GetGroup(ctx, group)
		if err != nil || !found {
			return err
		}
		if g.State != deploymentv1beta4.GroupOpen && g.State != deploymentv1beta4.GroupPaused {
			continue
		}
		if err := f.set(ctx, group, deploymentv1beta4.GroupInsufficientFunds); err != nil {
			return err
		}
		if err := emit(ctx, &deploymentv1.EventGroupClosed{ID: group}); err != nil {
			return err
		}
		if err := f.market.OnGroupClosed(ctx, group, deploymentv1beta4.GroupInsufficientFunds); err != nil {
			return err
		}
	}
}

// create is MsgCreateDeployment.
func (f *fakeDeployment) create(ctx context.Context, owner string, dseq uint64, deposit sdk.Coin,
	reclamation *deploymentv1.DeploymentReclamation, specs ...deploymentv1beta4.GroupSpec,
) error {
	signer := sdk.MustAccAddressFromBech32(owner)
	deposits, err := f.escrow.AuthorizeDeposits(ctx, nil, signer, escrowidv1.ScopeDeployment,
		depositv1.Deposit{Amount: deposit, Sources: []depositv1.Source{depositv1.SourceBalance}})
	if err != nil {
		return err
	}
	account := escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: fmt.Sprintf("%s/%d", owner, dseq)}
	if err := f.escrow.AccountCreate(ctx, account, signer, deposits); err != nil {
		return err
	}
	for i, spec := range specs {
		id := deploymentv1.GroupID{Owner: owner, DSeq: dseq, GSeq: uint32(i + 1)}
		group := deploymentv1beta4.Group{ID: id, State: deploymentv1beta4.GroupOpen, GroupSpec: spec}
		if err := f.groups.Set(ctx, groupText(id), group); err != nil {
			return err
		}
		if err := f.market.CreateOrder(ctx, id, spec, reclamation); err != nil {
			return err
		}
	}
	return nil
}

var errGroupState = errors.New("group has not the state for this")

// stop is MsgPauseGroup or MsgCloseGroup.
func (f *fakeDeployment) stop(ctx context.Context, id deploymentv1.GroupID, to deploymentv1beta4.Group_State) error {
	g, found, err := f.GetGroup(ctx, id)
	if err != nil || !found || g.State != deploymentv1beta4.GroupOpen {
		return orErr(err, errGroupState)
	}
	overdrawn, err := f.escrow.AccountSettle(ctx, escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: fmt.Sprintf("%s/%d", id.Owner, id.DSeq)})
	if err != nil || overdrawn {
		return err
	}
	if err := f.set(ctx, id, to); err != nil {
		return err
	}
	return f.market.OnGroupClosed(ctx, id, to)
}

// start is MsgStartGroup.
func (f *fakeDeployment) start(ctx context.Context, id deploymentv1.GroupID) error {
	g, found, err := f.GetGroup(ctx, id)
	if err != nil || !found || g.State != deploymentv1beta4.GroupPaused {
		return orErr(err, errGroupState)
	}
	if err := f.set(ctx, id, deploymentv1beta4.GroupOpen); err != nil {
		return err
	}
	return f.market.CreateOrder(ctx, id, g.GroupSpec, nil)
}

// close is MsgCloseDeployment.
func (f *fakeDeployment) close(ctx context.Context, id deploymentv1.DeploymentID) error {
	account := escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: fmt.Sprintf("%s/%d", id.Owner, id.DSeq)}
	if err := f.escrow.AccountClose(ctx, account); err != nil {
		return err
	}
	for gseq := uint32(1); ; gseq++ {
		group := deploymentv1.GroupID{Owner: id.Owner, DSeq: id.DSeq, GSeq: gseq}
		g, found, err := f.GetGroup(ctx, group)
		if err != nil || !found {
			return err
		}
		if g.State != deploymentv1beta4.GroupOpen && g.State != deploymentv1beta4.GroupPaused {
			continue
		}
		if err := f.set(ctx, group, deploymentv1beta4.GroupClosed); err != nil {
			return err
		}
		if err := f.market.OnGroupClosed(ctx, group, deploymentv1beta4.GroupClosed); err != nil {
			return err
		}
	}
}

// fakeEscrow moves whole and broken coins between purses and accounts, and
// settles lazily, as the real one does; it knows one depositor per account.
type fakeEscrow struct {
	purses    collections.Map[string, math.Int] // owner/denom
	accounts  collections.Map[string, escrowtypesv1.Account]
	payments  collections.Map[string, escrowtypesv1.Payment]
	overdrawn func(context.Context, deploymentv1.DeploymentID) error
}

var (
	errFakeClosed = errors.New("escrow: not open")
	errFakeFunds  = errors.New("escrow: purse is too small")
)

func newFakeEscrow(schema *collections.SchemaBuilder, cdc codec.BinaryCodec) *fakeEscrow {
	return &fakeEscrow{
		purses: collections.NewMap(schema, collections.NewPrefix(11), "purses", collections.StringKey, sdk.IntValue),
		accounts: collections.NewMap(schema, collections.NewPrefix(12), "accounts", collections.StringKey,
			codec.CollValue[escrowtypesv1.Account](cdc)),
		payments: collections.NewMap(schema, collections.NewPrefix(13), "payments", collections.StringKey,
			codec.CollValue[escrowtypesv1.Payment](cdc)),
	}
}

func accountKey(id escrowidv1.Account) string { return id.Scope.String() + "/" + id.XID }
func paymentKey(id escrowidv1.Payment) string { return accountKey(id.AID) + "/" + id.XID }

// purse is what an owner has of a denomination.
func (f *fakeEscrow) purse(ctx context.Context, owner, denom string) math.Int {
	have, err := f.purses.Get(ctx, owner+"/"+denom)
	if err != nil {
		return math.ZeroInt()
	}
	return have
}

func (f *fakeEscrow) fund(ctx context.Context, owner string, coin sdk.Coin) {
	if err := f.purses.Set(ctx, owner+"/"+coin.Denom, f.purse(ctx, owner, coin.Denom).Add(coin.Amount)); err != nil {
		panic(err)
	}
}

func (f *fakeEscrow) AuthorizeDeposits(ctx context.Context, _ sdk.Msg, signer sdk.AccAddress, _ escrowidv1.Scope, dep depositv1.Deposit) ([]escrowtypesv1.Depositor, error) {
	left := f.purse(ctx, signer.String(), dep.Amount.Denom).Sub(dep.Amount.Amount)
	if left.IsNegative() {
		return nil, errFakeFunds
	}
	if err := f.purses.Set(ctx, signer.String()+"/"+dep.Amount.Denom, left); err != nil {
		return nil, err
	}
	return []escrowtypesv1.Depositor{{
		Owner:   signer.String(),
		Height:  sdk.UnwrapSDKContext(ctx).BlockHeight(),
		Source:  dep.Sources[0],
		Balance: sdk.NewDecCoinFromCoin(dep.Amount),
	}}, nil
}

func (f *fakeEscrow) AccountCreate(ctx context.Context, id escrowidv1.Account, owner sdk.AccAddress, deposits []escrowtypesv1.Depositor) error {
	zero := sdk.DecCoin{Denom: deposits[0].Balance.Denom, Amount: math.LegacyZeroDec()}
	return f.accounts.Set(ctx, accountKey(id), escrowtypesv1.Account{ID: id, State: escrowtypesv1.AccountState{
		Owner:       owner.String(),
		State:       escrowtypesv1.StateOpen,
		Transferred: []sdk.DecCoin{zero},
		SettledAt:   sdk.UnwrapSDKContext(ctx).BlockHeight(),
		Funds:       []escrowtypesv1.Balance{{Denom: zero.Denom, Amount: deposits[0].Balance.Amount}},
		Deposits:    deposits,
	}})
}

func (f *fakeEscrow) open(ctx context.Context, account escrowidv1.Account) ([]escrowtypesv1.Payment, error) {
	var open []escrowtypesv1.Payment
	prefix := accountKey(account) + "/"
	err := f.payments.Walk(ctx, new(collections.Range[string]).StartInclusive(prefix).EndExclusive(prefix+"~"),
		func(_ string, p escrowtypesv1.Payment) (bool, error) {
			if p.State.State == escrowtypesv1.StateOpen {
				open = append(open, p)
			}
			return false, nil
		})
	return open, err
}

func (f *fakeEscrow) AccountSettle(ctx context.Context, id escrowidv1.Account) (bool, error) {
	a, err := f.accounts.Get(ctx, accountKey(id))
	if err != nil {
		return false, err
	}
	if a.State.State != escrowtypesv1.StateOpen {
		return false, errFakeClosed
	}
	height := sdk.UnwrapSDKContext(ctx).BlockHeight()
	blocks := math.LegacyNewDec(height - a.State.SettledAt)
	a.State.SettledAt = height
	payments, err := f.open(ctx, id)
	if err != nil {
		return false, err
	}
	due := math.LegacyZeroDec()
	for _, p := range payments {
		due = due.Add(p.State.Rate.Amount.Mul(blocks))
	}
	funds := a.State.Funds[0].Amount
	dry := due.GT(funds)
	for _, p := range payments {
		share := p.State.Rate.Amount.Mul(blocks)
		if dry {
			paid := funds.Mul(share).QuoTruncate(due)
			p.State.Unsettled.Amount = share.Sub(paid)
			p.State.State = escrowtypesv1.StateOverdrawn
			share = paid
		}
		p.State.Balance.Amount = p.State.Balance.Amount.Add(share)
		if err := f.payments.Set(ctx, paymentKey(p.ID), p); err != nil {
			return false, err
		}
	}
	a.State.Funds[0].Amount = funds.Sub(due)
	if dry {
		a.State.State = escrowtypesv1.StateOverdrawn
	}
	if err := f.accounts.Set(ctx, accountKey(id), a); err != nil || !dry {
		return false, err
	}
	var deployment deploymentv1.DeploymentID
	owner, dseq, _ := strings.Cut(id.XID, "/")
	deployment.Owner = owner
	if _, err := fmt.Sscan(dseq, &deployment.DSeq); err != nil {
		return true, err
	}
	return true, f.overdrawn(ctx, deployment)
}

func (f *fakeEscrow) AccountClose(ctx context.Context, id escrowidv1.Account) error {
	if _, err := f.AccountSettle(ctx, id); err != nil {
		return err
	}
	payments, err := f.open(ctx, id)
	if err != nil {
		return err
	}
	for _, p := range payments {
		if err := f.PaymentClose(ctx, p.ID); err != nil {
			return err
		}
	}
	a, err := f.accounts.Get(ctx, accountKey(id))
	if err != nil || a.State.State != escrowtypesv1.StateOpen {
		return err
	}
	a.State.State = escrowtypesv1.StateClosed
	f.fund(ctx, a.State.Owner, sdk.NewCoin(a.State.Funds[0].Denom, a.State.Funds[0].Amount.TruncateInt()))
	a.State.Funds[0].Amount = math.LegacyZeroDec()
	return f.accounts.Set(ctx, accountKey(id), a)
}

func (f *fakeEscrow) PaymentCreate(ctx context.Context, id escrowidv1.Payment, owner sdk.AccAddress, rate sdk.DecCoin) error {
	if overdrawn, err := f.AccountSettle(ctx, id.AID); err != nil || overdrawn {
		return orErr(err, errFakeClosed)
	}
	zero := sdk.DecCoin{Denom: rate.Denom, Amount: math.LegacyZeroDec()}
	return f.payments.Set(ctx, paymentKey(id), escrowtypesv1.Payment{ID: id, State: escrowtypesv1.PaymentState{
		Owner: owner.String(), State: escrowtypesv1.StateOpen, Rate: rate, Balance: zero, Unsettled: zero, Withdrawn: sdk.NewInt64Coin(rate.Denom, 0),
	}})
}

func (f *fakeEscrow) PaymentWithdraw(ctx context.Context, id escrowidv1.Payment) error {
	p, err := f.payments.Get(ctx, paymentKey(id))
	if err != nil {
		return err
	}
	if p.State.State == escrowtypesv1.StateOpen {
		if _, err := f.AccountSettle(ctx, id.AID); err != nil {
			return err
		}
		if p, err = f.payments.Get(ctx, paymentKey(id)); err != nil {
			return err
		}
	}
	coins := sdk.NewCoin(p.State.Rate.Denom, p.State.Balance.Amount.TruncateInt())
	p.State.Balance.Amount = p.State.Balance.Amount.Sub(math.LegacyNewDecFromInt(coins.Amount))
	p.State.Withdrawn = p.State.Withdrawn.Add(coins)
	f.fund(ctx, p.State.Owner, coins)
	return f.payments.Set(ctx, paymentKey(id), p)
}

func (f *fakeEscrow) PaymentClose(ctx context.Context, id escrowidv1.Payment) error {
	if err := f.PaymentWithdraw(ctx, id); err != nil {
		return err
	}
	p, err := f.payments.Get(ctx, paymentKey(id))
	if err != nil {
		return err
	}
	if p.State.State != escrowtypesv1.StateOpen {
		return errFakeClosed
	}
	p.State.State = escrowtypesv1.StateClosed
	return f.payments.Set(ctx, paymentKey(id), p)
}

func (f *fakeEscrow) GetAccount(ctx context.Context, id escrowidv1.Account) (escrowtypesv1.Account, error) {
	return f.accounts.Get(ctx, accountKey(id))
}

func (f *fakeEscrow) GetPayment(ctx context.Context, id escrowidv1.Payment) (escrowtypesv1.Payment, error) {
	return f.payments.Get(ctx, paymentKey(id))
}
