package chaintest_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	sdkmath "cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/x/authz"

	"github.com/croft-cloud/croft/chain/chaintest"
	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/resourcesv1beta4"
	"github.com/croft-cloud/croft/chain/x/deployment"
	xmarket "github.com/croft-cloud/croft/chain/x/market"
)

// blockGas is the most gas of a block. A message that ends a deployment may use
// half of it, whatever strangers have done to the deployment.
const blockGas = 100_000_000

// What strangers do to a deployment: maxBids is the most that its orders take,
// friends is the most depositors that its account takes beside its owner.
const (
	maxBids = 20
	friends = 32
)

// A siege is a deployment as large as one may be, dseq 1, with as many bids as
// its orders take, each as large as one may be and paid from as many grants as
// may be, and as many deposits of strangers.
type siege struct {
	*market
	bidders []chaintest.Account
}

// newSiege makes a siege whose bids are at that price per block, so many on each
// order.
func newSiege(t *testing.T, price int64, bids int) *siege {
	t.Helper()
	var names []string
	people := func(role string, n int) (people []chaintest.Account) {
		for i := range n {
			name := fmt.Sprintf("%s%02d", role, i)
			names = append(names, name)
			people = append(people, chaintest.NewAccount(name))
		}
		return people
	}
	bidders, granters, strangers := people("bidder", bids), people("granter", 2*deployment.MaxGroups), people("friend", friends)
	m := &market{App: chaintest.NewApp(t, chaintest.Config{Accounts: names}), t: t, tenant: chaintest.NewAccount(chaintest.Tenant)}
	m.Check = false // of every block; the last one is checked
	s := &siege{market: m, bidders: bidders}

	expires := m.Now().Add(time.Hour)
	for _, granter := range granters {
		var grants []sdk.Msg
		for _, bidder := range bidders {
			grant, err := authz.NewMsgGrant(granter.Addr(), bidder.Addr(), &escrowv1.DepositAuthorization{
				SpendLimit:  sdk.NewInt64Coin(denom, 0),
				SpendLimits: sdk.NewCoins(sdk.NewInt64Coin(denom, bond/2)),
				Scopes:      []escrowv1.DepositAuthorization_Scope{escrowv1.DepositScopeBid},
			}, &expires)
			if err != nil {
				t.Fatal(err)
			}
			grants = append(grants, grant)
		}
		s.run(granter, grants...)
	}
	create := &deploymentv1beta4.MsgCreateDeployment{ID: m.deployment(1), Hash: hash("one"), Deposit: deposit(10 * bond)}
	for i := range deployment.MaxGroups {
		g := group(fmt.Sprintf("group%d", i), price)
		r := &g.Resources[0].Resource
		for g.Size()+16 < deployment.MaxGroupBytes/deployment.MaxGroups {
			r.Endpoints = append(r.Endpoints, wide)
		}
		create.Groups = append(create.Groups, g)
	}
	s.run(m.tenant, create)
	id := escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: m.tenant.Address() + "/1"}
	for _, stranger := range strangers {
		s.run(stranger, &escrowv1.MsgAccountDeposit{Signer: stranger.Address(), ID: id, Deposit: deposit(bond)})
	}
	for _, bidder := range bidders {
		s.run(bidder, &providerv1beta4.MsgCreateProvider{
			Owner: bidder.Address(), HostURI: "https://" + bidder.Name + ".example:8443",
			Attributes: []attributesv1.Attribute{{Key: "region", Value: "eu-west"}},
		})
		var offers []sdk.Msg
		for i := range create.Groups {
			offers = append(offers, &marketv1beta5.MsgCreateBid{
				ID: s.bid(uint32(i)+1, bidder), Price: sdk.NewDecCoinFromDec(denom, sdkmath.LegacyNewDec(price).Sub(sdkmath.LegacySmallestDec())),
				Deposit: deposit(bond, depositv1.SourceGrant), ResourcesOffer: largestOffer(),
			})
		}
		s.run(bidder, offers...)
	}
	return s
}

// wide is an endpoint of many bytes.
var wide = resourcesv1beta4.Endpoint{Kind: resourcesv1beta4.EndpointRandomPort, SequenceNumber: math.MaxUint32}

func largestOffer() []marketv1beta5.ResourceOffer {
	note := attributesv1.Attribute{Key: "note", Value: strings.Repeat("x", xmarket.MaxOfferBytes-64)}
	return []marketv1beta5.ResourceOffer{{Resources: resourcesv1beta4.Resources{
		ID: 1, CPU: &resourcesv1beta4.CPU{Units: resourcesv1beta4.ResourceValue{Val: sdkmath.OneInt()}, Attributes: []attributesv1.Attribute{note}},
	}, Count: 1}}
}

func (s *siege) bid(gseq uint32, p chaintest.Account) marketv1.BidID {
	id := s.market.bid(1, 1, p)
	id.GSeq = gseq
	return id
}

func (s *siege) accept(gseq uint32) {
	s.t.Helper()
	s.run(s.tenant, &marketv1beta5.MsgCreateLease{BidID: s.bid(gseq, s.bidders[0])})
}

// run delivers messages that have to run within one block.
func (s *siege) run(by chaintest.Account, msgs ...sdk.Msg) chaintest.Result {
	s.t.Helper()
	r := s.NextBlock(s.Sign(by, chaintest.TxConfig{Gas: blockGas}, msgs...))[0]
	if err := r.Err(); err != nil {
		s.t.Fatalf("%s: %v", sdk.MsgTypeURL(msgs[0]), err)
	}
	return r
}

// wantCheap wants a message, which would or did run, to use half a block at most.
func (s *siege) wantCheap(what string, gas int64) {
	s.t.Helper()
	s.t.Logf("%s uses %d gas", what, gas)
	if gas > blockGas/2 {
		s.t.Errorf("%s uses %d gas, more than half a block", what, gas)
	}
}

// A deployment can be settled and closed whatever strangers bid on it and
// deposit in it.
func TestNoStrangerMakesADeploymentTooDearToClose(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		leases int
		price  int64
		bids   int
	}{
		{"one group is leased, the others have open bids", 1, 1_000_000, maxBids},
		{"all groups are leased", deployment.MaxGroups, 20_000, 2}, // the others have lost and cost nothing more
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSiege(t, tc.price, tc.bids)
			for i := range tc.leases {
				s.accept(uint32(i) + 1)
			}
			end := s.Sign(s.tenant, chaintest.TxConfig{Gas: blockGas}, &deploymentv1beta4.MsgCloseDeployment{ID: s.deployment(1)})
			used, _, err := s.Simulate(end)
			if err != nil {
				t.Fatalf("close: %v", err)
			}
			s.wantCheap("closing", int64(used.GasUsed))
			s.Blocks(60)
			s.Check = true
			r := s.run(s.bidders[0], &marketv1beta5.MsgWithdrawLease{ID: marketv1.LeaseID(s.bid(1, s.bidders[0]))})
			s.wantCheap("withdrawing what is left", r.GasUsed)
			var d deploymentv1beta4.QueryDeploymentResponse
			s.query("/akash.deployment.v1beta4.Query/Deployment", &deploymentv1beta4.QueryDeploymentRequest{ID: s.deployment(1)}, &d)
			if got := d.EscrowAccount.State.State.String(); got != "overdrawn" {
				t.Errorf("account is %s after the withdrawal, want overdrawn", got)
			}
		})
	}
}

// A client tells errors apart by codespace and code: no layer on the way to the
// result of a transaction may lose them.
func TestErrorsKeepTheirCodes(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	m.leased(1, "50", bond)
	m.create(2, 100, bond)
	m.MustDeliver(m.tenant, &marketv1beta5.MsgCloseLease{ID: m.lease(1, 1, m.near), Reason: marketv1.LeaseClosedOwner})
	expires := m.Now().Add(time.Hour)
	for _, granter := range []chaintest.Account{m.tenant, m.far, m.x} {
		grant, err := authz.NewMsgGrant(granter.Addr(), m.near.Addr(), &escrowv1.DepositAuthorization{
			SpendLimit:  sdk.NewInt64Coin(denom, 0),
			SpendLimits: sdk.NewCoins(sdk.NewInt64Coin(denom, bond/2)),
			Scopes:      []escrowv1.DepositAuthorization_Scope{escrowv1.DepositScopeBid},
		}, &expires)
		if err != nil {
			t.Fatal(err)
		}
		m.MustDeliver(granter, grant)
	}
	groups := []deploymentv1beta4.GroupSpec{group("home", 100)}
	price := sdk.NewInt64DecCoin(denom, 50)
	for _, tc := range []struct {
		name      string
		by        chaintest.Account
		msg       sdk.Msg
		codespace string
		code      uint32
	}{
		{"a deployment deposits more than the balance", m.tenant, &deploymentv1beta4.MsgCreateDeployment{
			ID: m.deployment(9), Groups: groups, Hash: hash("one"), Deposit: deposit(2 * chaintest.Funds),
		}, "sdk", 5},
		{"a bid deposits more than the balance", m.far, &marketv1beta5.MsgCreateBid{
			ID: m.bid(2, 1, m.far), Price: price, Deposit: deposit(2 * chaintest.Funds),
		}, "sdk", 5},
		{"a deployment deposits from a grant that is not there", m.tenant, &deploymentv1beta4.MsgCreateDeployment{
			ID: m.deployment(9), Groups: groups, Hash: hash("one"), Deposit: deposit(bond, depositv1.SourceGrant),
		}, "sdk", 5},
		{"a bid deposits from a grant that is not there", m.far, &marketv1beta5.MsgCreateBid{
			ID: m.bid(2, 1, m.far), Price: price, Deposit: deposit(bond, depositv1.SourceGrant),
		}, "sdk", 5},
		{"a bid deposits from more accounts than it may", m.near, &marketv1beta5.MsgCreateBid{
			ID: m.bid(2, 1, m.near), Price: price, Deposit: deposit(bond*5/4, depositv1.SourceGrant),
		}, "market", 28},
		{"an account takes more than the balance", m.tenant, &escrowv1.MsgAccountDeposit{
			Signer: m.tenant.Address(), ID: escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: m.tenant.Address() + "/2"}, Deposit: deposit(2 * chaintest.Funds),
		}, "sdk", 5},
		{"a lease that is closed is withdrawn from", m.near, &marketv1beta5.MsgWithdrawLease{ID: m.lease(1, 1, m.near)}, "escrow", 7},
		{"a lease that is closed is closed", m.tenant, &marketv1beta5.MsgCloseLease{ID: m.lease(1, 1, m.near), Reason: marketv1.LeaseClosedOwner}, "market", 10},
		{"a deployment is larger than one may be", m.tenant, &deploymentv1beta4.MsgCreateDeployment{
			ID: m.deployment(9), Groups: []deploymentv1beta4.GroupSpec{tooLarge()}, Hash: hash("one"), Deposit: deposit(bond),
		}, "deployment", 7},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := m.Deliver(tc.by, tc.msg)
			if r.Codespace != tc.codespace || r.Code != tc.code {
				t.Errorf("%s/%d %q, want %s/%d", r.Codespace, r.Code, r.Log, tc.codespace, tc.code)
			}
		})
	}
}

// tooLarge is a group whose parts are each within their bounds.
func tooLarge() deploymentv1beta4.GroupSpec {
	g := group("home", 100)
	unit := g.Resources[0]
	for range 1000 {
		unit.Resource.Endpoints = append(unit.Resource.Endpoints, wide)
	}
	g.Resources = nil
	for id := range uint32(12) {
		unit.Resource.ID = id + 1
		g.Resources = append(g.Resources, unit)
	}
	return g
}
