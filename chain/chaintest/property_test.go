package chaintest_test

import (
	"errors"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"pgregory.net/rapid"

	"cosmossdk.io/log/v2"
	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
	"github.com/cosmos/cosmos-sdk/x/authz"

	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/auditv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"
)

// sequences is how many random sequences of messages are tried: few with the
// unit tests, a hundred thousand with the integration tests
// (sequences_integration_test.go).
var sequences = flag.Int("sequences", fewSequences, "random sequences of messages to try")

const fewSequences = 200

// TestRandomMessagesKeepTheInvariants sends random messages of tenants,
// providers and strangers, right and wrong ones, to the handlers of the whole
// application, each sequence on a branch of the same small market. After each
// sequence all of [app.App.Invariants] must hold, no coin be made or lost, and
// nobody have paid more than they deposited.
func TestRandomMessagesKeepTheInvariants(t *testing.T) {
	workers := runtime.GOMAXPROCS(0)
	var mu sync.Mutex
	ran := make(map[string]int) // guarded by mu
	t.Cleanup(func() {
		for _, msg := range never(ran) {
			if *sequences > fewSequences {
				t.Errorf("%s never ran: the sequences are too tame", msg)
			}
		}
	})
	if err := flag.Set("rapid.checks", strconv.Itoa(max(1, *sequences/workers))); err != nil {
		t.Fatal(err)
	}
	for w := range workers {
		t.Run(fmt.Sprint("worker ", w), func(t *testing.T) {
			t.Parallel()
			world := newWorld(t)
			rapid.Check(t, world.sequence)
			mu.Lock()
			defer mu.Unlock()
			for msg, n := range world.ran {
				ran[msg] += n
			}
		})
	}
}

// A world is what every sequence begins with.
type world struct {
	app     *chaintest.App
	tenants []string
	bidders []string
	ran     map[string]int // message → how often it ran
}

func newWorld(t *testing.T) *world {
	m := newMarket(t)
	w := &world{
		app: m.App, tenants: []string{m.tenant.Address(), m.x.Address()}, bidders: []string{m.near.Address(), m.far.Address()},
		ran: make(map[string]int),
	}
	m.create(1, 200_000, 3*bond)
	m.offer(1, 1, m.near, "90000.5")
	m.offer(1, 1, m.far, "100000")
	m.create(2, 200_000, bond)
	window := time.Hour
	m.MustDeliver(m.near, &marketv1beta5.MsgCreateBid{
		ID: m.bid(2, 1, m.near), Price: sdk.NewDecCoinFromDec(denom, math.LegacyMustNewDecFromStr("70000.25")), Deposit: deposit(bond), ReclamationWindow: &window,
	})
	m.accept(2, 1, m.near)
	m.create(3, 200_000, bond)
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgPauseGroup{ID: m.group(3)})
	m.create(4, 200_000, bond)
	grant, err := authz.NewMsgGrant(m.x.Addr(), m.tenant.Addr(), &escrowv1.DepositAuthorization{
		SpendLimit:  sdk.NewInt64Coin(denom, 0),
		SpendLimits: sdk.NewCoins(sdk.NewInt64Coin(denom, 5*bond)),
		Scopes:      []escrowv1.DepositAuthorization_Scope{escrowv1.DepositScopeDeployment},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.MustDeliver(m.x, grant)
	return w
}

// never are the messages that no sequence got through.
func never(ran map[string]int) []string {
	var missing []string
	for _, msg := range []sdk.Msg{
		&deploymentv1beta4.MsgCreateDeployment{}, &deploymentv1beta4.MsgUpdateDeployment{}, &deploymentv1beta4.MsgCloseDeployment{},
		&deploymentv1beta4.MsgCloseGroup{}, &deploymentv1beta4.MsgPauseGroup{}, &deploymentv1beta4.MsgStartGroup{},
		&marketv1beta5.MsgCreateBid{}, &marketv1beta5.MsgCloseBid{}, &marketv1beta5.MsgCreateLease{}, &marketv1beta5.MsgWithdrawLease{},
		&marketv1beta5.MsgCloseLease{}, &marketv1beta5.MsgLeaseStartReclaim{}, &escrowv1.MsgAccountDeposit{},
		&auditv1.MsgSignProviderAttributes{}, &auditv1.MsgDeleteProviderAttributes{}, &providerv1beta4.MsgUpdateProvider{},
		&authz.MsgGrant{}, &authz.MsgRevoke{}, &authz.MsgExec{},
	} {
		if ran[sdk.MsgTypeURL(msg)] == 0 {
			missing = append(missing, sdk.MsgTypeURL(msg))
		}
	}
	return missing
}

func (w *world) sequence(t *rapid.T) {
	ctx := sdk.NewContext(w.app.CommitMultiStore().CacheMultiStore(), cmtproto.Header{
		ChainID: chaintest.ChainID, Height: w.app.Height() + 1, Time: w.app.Now().Add(6 * time.Second),
	}, false, log.NewNopLogger())
	supply := w.app.BankKeeper.GetSupply(ctx, denom)
	for range rapid.IntRange(1, 16).Draw(t, "messages") {
		blocks := rapid.SampledFrom([]int64{0, 1, 1, 3, 20, 700}).Draw(t, "blocks")
		ctx = ctx.WithBlockHeight(ctx.BlockHeight() + blocks).WithBlockTime(ctx.BlockTime().Add(time.Duration(blocks) * 6 * time.Second))
		msg := w.message(t)
		branch, write := ctx.CacheContext()
		_, err := w.app.MsgServiceRouter().Handler(msg)(branch, msg)
		if errors.Is(err, sdkerrors.ErrPanic) {
			t.Fatalf("%s: %v", sdk.MsgTypeURL(msg), err)
		}
		if err == nil {
			write()
			w.ran[sdk.MsgTypeURL(msg)]++
		}
	}
	if err := w.app.Invariants(ctx); err != nil {
		t.Fatal(err)
	}
	if now := w.app.BankKeeper.GetSupply(ctx, denom); !now.Equal(supply) {
		t.Fatalf("supply was %s, is %s", supply, now)
	}
}

// message makes one message, mostly about what exists.
func (w *world) message(t *rapid.T) sdk.Msg {
	tenant := rapid.SampledFrom([]string{w.tenants[0], w.tenants[0], w.tenants[0], w.tenants[1]}).Draw(t, "tenant")
	bidder := rapid.SampledFrom(w.bidders).Draw(t, "provider")
	deployment := deploymentv1.DeploymentID{Owner: tenant, DSeq: rapid.Uint64Range(1, 5).Draw(t, "dseq")}
	group1 := deploymentv1.GroupID{Owner: deployment.Owner, DSeq: deployment.DSeq, GSeq: rapid.SampledFrom([]uint32{1, 1, 1, 2}).Draw(t, "gseq")}
	bid := marketv1.BidID{
		Owner: group1.Owner, DSeq: group1.DSeq, GSeq: group1.GSeq,
		OSeq: rapid.SampledFrom([]uint32{1, 1, 1, 2, 3}).Draw(t, "oseq"), Provider: bidder,
	}
	lease := marketv1.LeaseID(bid)
	amount := rapid.SampledFrom([]int64{bond, bond, bond + 1, 3 * bond, bond - 1, 1, 0}).Draw(t, "amount")
	source := rapid.SampledFrom([][]depositv1.Source{
		{depositv1.SourceBalance}, {depositv1.SourceGrant, depositv1.SourceBalance}, {depositv1.SourceGrant},
	}).Draw(t, "sources")
	coins := depositv1.Deposit{
		Amount:  sdk.NewInt64Coin(rapid.SampledFrom([]string{denom, denom, denom, app.BondDenom}).Draw(t, "denom"), amount),
		Sources: source,
	}
	reason := rapid.SampledFrom([]marketv1.LeaseClosedReason{
		marketv1.LeaseClosedReasonUnstable, marketv1.LeaseClosedReasonDecommission, marketv1.LeaseClosedOwner,
	}).Draw(t, "reason")
	window := rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour, 2 * time.Hour}).Draw(t, "window")
	switch rapid.IntRange(0, 18).Draw(t, "kind") {
	case 0, 1:
		g := []deploymentv1beta4.GroupSpec{group("home", 200_000)}
		if rapid.Bool().Draw(t, "two groups") {
			g = append(g, group("away", 50_000))
		}
		msg := &deploymentv1beta4.MsgCreateDeployment{ID: deployment, Groups: g, Hash: hash("one"), Deposit: coins}
		if window > 0 {
			msg.Reclamation = &deploymentv1.DeploymentReclamation{MinWindow: window}
		}
		return msg
	case 2:
		return &deploymentv1beta4.MsgUpdateDeployment{ID: deployment, Hash: hash(rapid.SampledFrom([]string{"one", "two"}).Draw(t, "hash"))}
	case 3:
		return &deploymentv1beta4.MsgCloseDeployment{ID: deployment}
	case 4:
		return &deploymentv1beta4.MsgCloseGroup{ID: group1}
	case 5:
		return &deploymentv1beta4.MsgPauseGroup{ID: group1}
	case 6:
		return &deploymentv1beta4.MsgStartGroup{ID: group1}
	case 7, 8:
		msg := &marketv1beta5.MsgCreateBid{
			ID: bid, Deposit: coins,
			Price: sdk.NewDecCoinFromDec(denom, rapid.SampledFrom([]math.LegacyDec{
				math.LegacyMustNewDecFromStr("0.000000000000000001"), math.LegacyMustNewDecFromStr("33333.333333333333333333"),
				math.LegacyNewDec(50_000), math.LegacyNewDec(200_000), math.LegacyNewDec(200_001),
			}).Draw(t, "price")),
		}
		if window > 0 {
			msg.ReclamationWindow = &window
		}
		return msg
	case 9:
		return &marketv1beta5.MsgCloseBid{ID: bid, Reason: reason}
	case 10, 11:
		return &marketv1beta5.MsgCreateLease{BidID: bid}
	case 12:
		return &marketv1beta5.MsgWithdrawLease{ID: lease}
	case 13:
		return &marketv1beta5.MsgCloseLease{ID: lease, Reason: reason}
	case 14:
		return &marketv1beta5.MsgLeaseStartReclaim{ID: lease, Reason: reason}
	case 15:
		id := escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: fmt.Sprintf("%s/%d", deployment.Owner, deployment.DSeq)}
		return &escrowv1.MsgAccountDeposit{Signer: rapid.SampledFrom(slices.Concat(w.tenants, w.bidders)).Draw(t, "depositor"), ID: id, Deposit: coins}
	case 16:
		switch rapid.IntRange(0, 2).Draw(t, "provider's") {
		case 0:
			return &providerv1beta4.MsgUpdateProvider{
				Owner: bidder, HostURI: "https://moved.example:8443",
				Attributes: []attributesv1.Attribute{{Key: "region", Value: rapid.SampledFrom([]string{"eu-west", "us-east"}).Draw(t, "region")}},
			}
		case 1:
			return &auditv1.MsgDeleteProviderAttributes{Owner: bidder, Auditor: tenant}
		default:
			return &auditv1.MsgSignProviderAttributes{
				Owner: bidder, Auditor: tenant, Attributes: []attributesv1.Attribute{{Key: "region", Value: "eu-west"}},
			}
		}
	default:
		granter := rapid.SampledFrom(w.tenants).Draw(t, "granter")
		grantee := rapid.SampledFrom(slices.Concat(w.tenants, w.bidders)).Draw(t, "grantee")
		switch rapid.IntRange(0, 3).Draw(t, "grant") {
		case 0:
			return &authz.MsgRevoke{Granter: granter, Grantee: grantee, MsgTypeUrl: sdk.MsgTypeURL(&escrowv1.MsgAccountDeposit{})}
		case 1:
			id := escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: fmt.Sprintf("%s/%d", deployment.Owner, deployment.DSeq)}
			msg := authz.NewMsgExec(sdk.MustAccAddressFromBech32(grantee), []sdk.Msg{&escrowv1.MsgAccountDeposit{Signer: granter, ID: id, Deposit: coins}})
			return &msg
		}
		expires := w.app.Now().Add(1000 * time.Hour)
		msg, err := authz.NewMsgGrant(sdk.MustAccAddressFromBech32(granter), sdk.MustAccAddressFromBech32(grantee), &escrowv1.DepositAuthorization{
			SpendLimit:  sdk.NewInt64Coin(denom, 0),
			SpendLimits: sdk.NewCoins(sdk.NewInt64Coin(denom, 2*bond)),
			Scopes:      []escrowv1.DepositAuthorization_Scope{escrowv1.DepositScopeDeployment, escrowv1.DepositScopeBid},
		}, &expires)
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
}
