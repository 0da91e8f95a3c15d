package chaintest_test

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	gocmp "github.com/google/go-cmp/cmp"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/query"
	"github.com/cosmos/cosmos-sdk/x/authz"

	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/auditv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/resourcesv1beta4"
)

// A market is a chain with a tenant and two providers, and short ways to say
// what they do.
type market struct {
	*chaintest.App
	t                    testing.TB
	tenant, near, far, x chaintest.Account // x is anyone else
}

const denom = app.CreditDenom

// bond is what a deployment or bid deposits at least.
const bond = 500_000

func newMarket(t *testing.T) *market {
	t.Helper()
	m := &market{
		App:    chaintest.NewApp(t, chaintest.Config{Accounts: []string{"far", "x"}}),
		t:      t,
		tenant: chaintest.NewAccount(chaintest.Tenant),
		near:   chaintest.NewAccount(chaintest.Provider),
		far:    chaintest.NewAccount("far"),
		x:      chaintest.NewAccount("x"),
	}
	for _, p := range []chaintest.Account{m.near, m.far} {
		m.MustDeliver(p, &providerv1beta4.MsgCreateProvider{
			Owner: p.Address(), HostURI: "https://" + p.Name + ".example:8443",
			Attributes: []attributesv1.Attribute{{Key: "region", Value: "eu-west"}},
		})
	}
	return m
}

func group(name string, price int64) deploymentv1beta4.GroupSpec {
	return deploymentv1beta4.GroupSpec{
		Name:         name,
		Requirements: attributesv1.PlacementRequirements{Attributes: []attributesv1.Attribute{{Key: "region", Value: "eu-west"}}},
		Resources: []deploymentv1beta4.ResourceUnit{{
			Resource: resourcesv1beta4.Resources{
				ID:        1,
				CPU:       &resourcesv1beta4.CPU{Units: resourcesv1beta4.ResourceValue{Val: math.NewInt(500)}},
				GPU:       &resourcesv1beta4.GPU{Units: resourcesv1beta4.ResourceValue{Val: math.NewInt(0)}},
				Memory:    &resourcesv1beta4.Memory{Quantity: resourcesv1beta4.ResourceValue{Val: math.NewInt(512 << 20)}},
				Storage:   []resourcesv1beta4.Storage{{Name: "default", Quantity: resourcesv1beta4.ResourceValue{Val: math.NewInt(1 << 30)}}},
				Endpoints: []resourcesv1beta4.Endpoint{{Kind: resourcesv1beta4.EndpointSharedHTTP}},
			},
			Count: 1,
			Price: sdk.NewDecCoin(denom, math.NewInt(price)),
		}},
	}
}

func hash(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

func deposit(amount int64, sources ...depositv1.Source) depositv1.Deposit {
	if len(sources) == 0 {
		sources = []depositv1.Source{depositv1.SourceBalance}
	}
	return depositv1.Deposit{Amount: sdk.NewInt64Coin(denom, amount), Sources: sources}
}

func (m *market) deployment(dseq uint64) deploymentv1.DeploymentID {
	return deploymentv1.DeploymentID{Owner: m.tenant.Address(), DSeq: dseq}
}

func (m *market) group(dseq uint64) deploymentv1.GroupID {
	return deploymentv1.GroupID{Owner: m.tenant.Address(), DSeq: dseq, GSeq: 1}
}

func (m *market) bid(dseq uint64, oseq uint32, p chaintest.Account) marketv1.BidID {
	return marketv1.BidID{Owner: m.tenant.Address(), DSeq: dseq, GSeq: 1, OSeq: oseq, Provider: p.Address()}
}

func (m *market) lease(dseq uint64, oseq uint32, p chaintest.Account) marketv1.LeaseID {
	return marketv1.LeaseID(m.bid(dseq, oseq, p))
}

func (m *market) create(dseq uint64, price, amount int64) chaintest.Result {
	m.t.Helper()
	return m.MustDeliver(m.tenant, &deploymentv1beta4.MsgCreateDeployment{
		ID: m.deployment(dseq), Groups: []deploymentv1beta4.GroupSpec{group("home", price)}, Hash: hash("one"), Deposit: deposit(amount),
	})
}

func (m *market) offer(dseq uint64, oseq uint32, p chaintest.Account, price string) chaintest.Result {
	m.t.Helper()
	return m.MustDeliver(p, &marketv1beta5.MsgCreateBid{
		ID: m.bid(dseq, oseq, p), Price: sdk.NewDecCoinFromDec(denom, math.LegacyMustNewDecFromStr(price)), Deposit: deposit(bond),
	})
}

func (m *market) accept(dseq uint64, oseq uint32, p chaintest.Account) chaintest.Result {
	m.t.Helper()
	return m.MustDeliver(m.tenant, &marketv1beta5.MsgCreateLease{BidID: m.bid(dseq, oseq, p)})
}

// leased makes a deployment whose order 1 is leased to near at that price.
func (m *market) leased(dseq uint64, price string, amount int64) {
	m.t.Helper()
	m.create(dseq, 1_000_000, amount)
	m.offer(dseq, 1, m.near, price)
	m.accept(dseq, 1, m.near)
}

func (m *market) withdraw(dseq uint64, oseq uint32, p chaintest.Account) chaintest.Result {
	m.t.Helper()
	return m.MustDeliver(p, &marketv1beta5.MsgWithdrawLease{ID: m.lease(dseq, oseq, p)})
}

// refused delivers a message that must not run and wants this error.
func (m *market) refused(by chaintest.Account, msg sdk.Msg, codespace string, code uint32) {
	m.t.Helper()
	r := m.Deliver(by, msg)
	if r.Codespace != codespace || r.Code != code {
		m.t.Errorf("%s: %s/%d %q, want %s/%d", sdk.MsgTypeURL(msg), r.Codespace, r.Code, r.Log, codespace, code)
	}
}

// events are the short names of croft's typed events, in order.
func events(all []abci.Event) []string {
	var names []string
	for _, e := range all {
		if strings.HasPrefix(e.Type, "akash.") {
			names = append(names, e.Type[strings.LastIndexByte(e.Type, '.')+1:])
		}
	}
	return names
}

func (m *market) wantEvents(r chaintest.Result, want ...string) {
	m.t.Helper()
	if diff := gocmp.Diff(want, events(r.Events)); diff != "" {
		m.t.Errorf("events (-want +got):\n%s", diff)
	}
}

// states tells the states of a deployment's parts, in one line.
func (m *market) states(dseq uint64) string {
	m.t.Helper()
	var d deploymentv1beta4.QueryDeploymentResponse
	m.query("/akash.deployment.v1beta4.Query/Deployment", &deploymentv1beta4.QueryDeploymentRequest{ID: m.deployment(dseq)}, &d)
	parts := []string{"deployment " + d.Deployment.State.String()}
	for _, g := range d.Groups {
		parts = append(parts, "group "+g.State.String())
	}
	var orders marketv1beta5.QueryOrdersResponse
	m.query("/akash.market.v1beta5.Query/Orders", &marketv1beta5.QueryOrdersRequest{Filters: marketv1beta5.OrderFilters{Owner: m.tenant.Address(), DSeq: dseq}}, &orders)
	for _, o := range orders.Orders {
		parts = append(parts, fmt.Sprintf("order%d %s", o.ID.OSeq, o.State))
	}
	var bids marketv1beta5.QueryBidsResponse
	m.query("/akash.market.v1beta5.Query/Bids", &marketv1beta5.QueryBidsRequest{Filters: marketv1beta5.BidFilters{Owner: m.tenant.Address(), DSeq: dseq}}, &bids)
	slices.SortFunc(bids.Bids, func(a, b marketv1beta5.QueryBidResponse) int { // by the order they came in
		return cmp.Or(cmp.Compare(a.Bid.ID.OSeq, b.Bid.ID.OSeq), cmp.Compare(a.Bid.CreatedAt, b.Bid.CreatedAt))
	})
	for _, b := range bids.Bids {
		parts = append(parts, fmt.Sprintf("bid%d %s", b.Bid.ID.OSeq, b.Bid.State))
	}
	var leases marketv1beta5.QueryLeasesResponse
	m.query("/akash.market.v1beta5.Query/Leases", &marketv1beta5.QueryLeasesRequest{Filters: marketv1.LeaseFilters{Owner: m.tenant.Address(), DSeq: dseq}}, &leases)
	for _, l := range leases.Leases {
		parts = append(parts, fmt.Sprintf("lease%d %s", l.Lease.ID.OSeq, l.Lease.State))
	}
	return strings.Join(append(parts, "account "+d.EscrowAccount.State.State.String()), ", ")
}

func (m *market) wantStates(dseq uint64, want string) {
	m.t.Helper()
	if got := m.states(dseq); got != want {
		m.t.Errorf("states of deployment %d:\n got %s\nwant %s", dseq, got, want)
	}
}

type protoMessage interface {
	Reset()
	String() string
	ProtoMessage()
}

func (m *market) query(method string, req, resp protoMessage) {
	m.t.Helper()
	if err := m.Query(method, req, resp); err != nil {
		m.t.Fatalf("query %s: %v", method, err)
	}
}

func (m *market) theLease(dseq uint64, oseq uint32, p chaintest.Account) marketv1beta5.QueryLeaseResponse {
	m.t.Helper()
	var l marketv1beta5.QueryLeaseResponse
	m.query("/akash.market.v1beta5.Query/Lease", &marketv1beta5.QueryLeaseRequest{ID: m.lease(dseq, oseq, p)}, &l)
	return l
}

func (m *market) account(dseq uint64) escrowtypesv1.AccountState {
	m.t.Helper()
	var d deploymentv1beta4.QueryDeploymentResponse
	m.query("/akash.deployment.v1beta4.Query/Deployment", &deploymentv1beta4.QueryDeploymentRequest{ID: m.deployment(dseq)}, &d)
	return d.EscrowAccount.State
}

// holds is how much of the price denomination an account has.
func (m *market) holds(a chaintest.Account) int64 { return m.Balance(a.Addr(), denom) }

// until makes blocks so that the next transaction lies n blocks after the last.
func (m *market) until(n int) { m.Blocks(n - 1) }

func TestALeaseIsPaidByTheBlock(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		price  string
		blocks int
		want   int64
	}{
		{"50", 171, 8550},         // facts §14
		{"150000.5", 6, 900_003},  // facts §14
		{"0.3", 10, 3},            // less than a coin a block
		{"0.333333333333", 10, 3}, // the fraction stays in the payment
		{"999999.999999999", 1, 999_999},
	} {
		t.Run(tc.price, func(t *testing.T) {
			t.Parallel()
			m := newMarket(t)
			m.leased(7, tc.price, 50_000_000)
			before := m.holds(m.near)
			m.until(tc.blocks)
			m.withdraw(7, 1, m.near)
			if got := m.holds(m.near) - before; got != tc.want {
				t.Errorf("%d blocks at %s paid %d, want %d", tc.blocks, tc.price, got, tc.want)
			}
		})
	}
}

func TestEventsComeInTheOrderOfTheContract(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	m.wantEvents(m.create(1, 100, 5_000_000), "EventDeploymentCreated", "EventOrderCreated")
	m.wantEvents(m.offer(1, 1, m.near, "50"), "EventBidCreated")
	m.wantEvents(m.offer(1, 1, m.far, "60"), "EventBidCreated")
	m.wantEvents(m.accept(1, 1, m.near), "EventLeaseCreated") // none for the losers
	m.wantStates(1, "deployment active, group open, order1 active, bid1 active, bid1 lost, lease1 active, account open")
	m.wantEvents(m.withdraw(1, 1, m.near))
	m.wantEvents(m.MustDeliver(m.tenant, &deploymentv1beta4.MsgUpdateDeployment{ID: m.deployment(1), Hash: hash("two")}), "EventDeploymentUpdated")
	m.wantEvents(m.MustDeliver(m.tenant, &marketv1beta5.MsgCloseLease{ID: m.lease(1, 1, m.near), Reason: marketv1.LeaseClosedOwner}),
		"EventLeaseClosed", "EventBidClosed", "EventOrderClosed", "EventOrderCreated")
	m.offer(1, 2, m.far, "70")
	m.wantEvents(m.MustDeliver(m.far, &marketv1beta5.MsgCloseBid{ID: m.bid(1, 2, m.far), Reason: marketv1.LeaseClosedReasonUnspecified}), "EventBidClosed")
	m.offer(1, 2, m.near, "70")
	m.accept(1, 2, m.near)
	m.wantEvents(m.MustDeliver(m.near, &marketv1beta5.MsgCloseBid{ID: m.bid(1, 2, m.near), Reason: marketv1.LeaseClosedReasonUnstable}),
		"EventGroupPaused", "EventLeaseClosed", "EventBidClosed", "EventOrderClosed")
	m.wantEvents(m.MustDeliver(m.tenant, &deploymentv1beta4.MsgStartGroup{ID: m.group(1)}), "EventGroupStarted", "EventOrderCreated")
	m.wantEvents(m.MustDeliver(m.tenant, &deploymentv1beta4.MsgPauseGroup{ID: m.group(1)}), "EventGroupPaused", "EventOrderClosed")
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgStartGroup{ID: m.group(1)})
	m.offer(1, 4, m.near, "70")
	m.accept(1, 4, m.near)
	m.wantEvents(m.MustDeliver(m.tenant, &deploymentv1beta4.MsgCloseDeployment{ID: m.deployment(1)}),
		"EventDeploymentClosed", "EventGroupClosed", "EventOrderClosed", "EventBidClosed", "EventLeaseClosed")
}

func TestClosingADeploymentReturnsWhatIsLeft(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	tenant, near := m.holds(m.tenant), m.holds(m.near)
	m.leased(1, "50", 5_000_000)
	m.until(10)
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgCloseDeployment{ID: m.deployment(1)})
	if spent, earned := tenant-m.holds(m.tenant), m.holds(m.near)-near; spent != 500 || earned != 500 {
		t.Errorf("tenant spent %d, provider earned %d, want 500 each", spent, earned)
	}
	m.wantStates(1, "deployment closed, group closed, order1 closed, bid1 closed, lease1 closed, account closed")
	if l := m.theLease(1, 1, m.near).Lease; l.Reason != marketv1.LeaseClosedOwner || l.ClosedOn != m.Height() {
		t.Errorf("lease closed on %d for %s, want %d and the owner", l.ClosedOn, l.Reason, m.Height())
	}
	m.refused(m.tenant, &deploymentv1beta4.MsgCloseDeployment{ID: m.deployment(1)}, "deployment", 5)
}

func TestBidsThatLoseGetTheirDepositBack(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	before := m.holds(m.far)
	m.create(1, 100, 5_000_000)
	m.offer(1, 1, m.near, "50")
	m.offer(1, 1, m.far, "60")
	if got := before - m.holds(m.far); got != bond {
		t.Errorf("an open bid holds %d, want %d", got, bond)
	}
	m.accept(1, 1, m.near)
	if got := m.holds(m.far); got != before {
		t.Errorf("after losing the provider has %d, want %d", got, before)
	}
}

func TestAnAccountThatRunsDryEndsEverything(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	near := m.holds(m.near)
	m.leased(1, "100000", bond) // lasts five blocks
	m.until(8)
	r := m.withdraw(1, 1, m.near)
	m.wantEvents(r, "EventDeploymentClosed", "EventGroupClosed", "EventOrderClosed", "EventBidClosed", "EventLeaseClosed")
	if a, _ := r.Event("akash.market.v1.EventLeaseClosed"); a["reason"] != `"lease_closed_reason_insufficient_funds"` {
		t.Errorf("lease closed for %s", a["reason"])
	}
	m.wantStates(1, "deployment closed, group insufficient_funds, order1 closed, bid1 closed, lease1 insufficient_funds, account overdrawn")
	if got := m.holds(m.near) - near; got != bond {
		t.Errorf("provider earned %d, want the whole deposit %d and its bond back", got, bond)
	}
	l := m.theLease(1, 1, m.near)
	if got := l.EscrowPayment.State.Unsettled.Amount.TruncateInt64(); got != 300_000 {
		t.Errorf("unsettled is %d, want 3 blocks", got)
	}
	if l.EscrowPayment.State.State != escrowtypesv1.StateOverdrawn {
		t.Errorf("payment is %s", l.EscrowPayment.State.State)
	}
	if f := m.account(1).Funds; len(f) != 1 || !f[0].Amount.Equal(math.LegacyNewDec(-300_000)) {
		t.Errorf("funds are %v, want the debt as a negative sum", f)
	}

	// Whoever pays the debt closes the account and gets the rest back.
	x := m.holds(m.x)
	id := escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: m.tenant.Address() + "/1"}
	m.MustDeliver(m.x, &escrowv1.MsgAccountDeposit{Signer: m.x.Address(), ID: id, Deposit: deposit(1_000_000)})
	if got := x - m.holds(m.x); got != 300_000 {
		t.Errorf("the depositor paid %d, want the debt of 300000", got)
	}
	if got := m.holds(m.near) - near; got != bond+300_000 {
		t.Errorf("provider earned %d, want all it was owed", got)
	}
	m.wantStates(1, "deployment closed, group insufficient_funds, order1 closed, bid1 closed, lease1 insufficient_funds, account closed")
}

func TestAProviderReclaimsOnlyAfterNotice(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	window := time.Hour
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgCreateDeployment{
		ID: m.deployment(1), Groups: []deploymentv1beta4.GroupSpec{group("home", 100)}, Hash: hash("one"), Deposit: deposit(5_000_000),
		Reclamation: &deploymentv1.DeploymentReclamation{MinWindow: window},
	})
	offer := &marketv1beta5.MsgCreateBid{ID: m.bid(1, 1, m.near), Price: sdk.NewDecCoin(denom, math.NewInt(50)), Deposit: deposit(bond)}
	m.refused(m.near, offer, "market", 40)
	short := time.Minute
	offer.ReclamationWindow = &short
	m.refused(m.near, offer, "market", 39)
	offer.ReclamationWindow = &window
	m.MustDeliver(m.near, offer)
	m.accept(1, 1, m.near)

	leave := &marketv1beta5.MsgCloseBid{ID: m.bid(1, 1, m.near), Reason: marketv1.LeaseClosedReasonDecommission}
	m.refused(m.near, leave, "market", 37)
	r := m.MustDeliver(m.near, &marketv1beta5.MsgLeaseStartReclaim{ID: m.lease(1, 1, m.near), Reason: marketv1.LeaseClosedReasonDecommission})
	e, ok := r.Event("akash.market.v1.EventLeaseReclaimStarted")
	if want := strconv.Quote(strconv.FormatInt(m.Now().Add(window).Unix(), 10)); !ok || e["deadline"] != want {
		t.Errorf("deadline is %s, want %s", e["deadline"], want)
	}
	m.wantStates(1, "deployment active, group open, order1 active, bid1 active, lease1 reclaiming, account open")
	m.refused(m.near, &marketv1beta5.MsgLeaseStartReclaim{ID: m.lease(1, 1, m.near), Reason: marketv1.LeaseClosedReasonDecommission}, "market", 36)
	m.refused(m.near, leave, "market", 38)
	near := m.holds(m.near)
	m.Blocks(int(window / (6 * time.Second)))
	m.MustDeliver(m.near, leave)
	m.wantStates(1, "deployment active, group paused, order1 closed, bid1 closed, lease1 closed, account open")
	if earned := m.holds(m.near) - near - bond; earned < 50*600 {
		t.Errorf("earned %d while reclaiming, want it paid as before", earned)
	}
}

func TestATenantMayLeaveWhileAProviderReclaims(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	window := 2 * time.Hour
	m.create(1, 100, 5_000_000)
	m.MustDeliver(m.near, &marketv1beta5.MsgCreateBid{
		ID: m.bid(1, 1, m.near), Price: sdk.NewDecCoin(denom, math.NewInt(50)), Deposit: deposit(bond), ReclamationWindow: &window,
	})
	m.accept(1, 1, m.near)
	m.MustDeliver(m.near, &marketv1beta5.MsgLeaseStartReclaim{ID: m.lease(1, 1, m.near), Reason: marketv1.LeaseClosedReasonDecommission})
	m.MustDeliver(m.tenant, &marketv1beta5.MsgCloseLease{ID: m.lease(1, 1, m.near), Reason: marketv1.LeaseClosedOwner})
	m.wantStates(1, "deployment active, group open, order1 closed, order2 open, bid1 closed, lease1 closed, account open")
}

func TestAGroupPausesStartsAndCloses(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	m.leased(1, "50", 5_000_000)
	m.refused(m.tenant, &deploymentv1beta4.MsgStartGroup{ID: m.group(1)}, "deployment", 16)
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgPauseGroup{ID: m.group(1)})
	m.wantStates(1, "deployment active, group paused, order1 closed, bid1 closed, lease1 closed, account open")
	m.refused(m.tenant, &deploymentv1beta4.MsgPauseGroup{ID: m.group(1)}, "deployment", 17)
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgStartGroup{ID: m.group(1)})
	m.wantStates(1, "deployment active, group open, order1 closed, order2 open, bid1 closed, lease1 closed, account open")
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgCloseGroup{ID: m.group(1)})
	m.refused(m.tenant, &deploymentv1beta4.MsgStartGroup{ID: m.group(1)}, "deployment", 15)
}

func TestAGrantIsSpentFirstAndRestored(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	expires := m.Now().Add(time.Hour)
	grant, err := authz.NewMsgGrant(m.x.Addr(), m.tenant.Addr(), &escrowv1.DepositAuthorization{
		SpendLimit:  sdk.NewInt64Coin(denom, 0),
		SpendLimits: sdk.NewCoins(sdk.NewInt64Coin(denom, 2_000_000)),
		Scopes:      []escrowv1.DepositAuthorization_Scope{escrowv1.DepositScopeDeployment},
	}, &expires)
	if err != nil {
		t.Fatal(err)
	}
	m.MustDeliver(m.x, grant)
	x, tenant := m.holds(m.x), m.holds(m.tenant)
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgCreateDeployment{
		ID: m.deployment(1), Groups: []deploymentv1beta4.GroupSpec{group("home", 100)}, Hash: hash("one"),
		Deposit: deposit(5_000_000, depositv1.SourceGrant, depositv1.SourceBalance),
	})
	if granted, own := x-m.holds(m.x), tenant-m.holds(m.tenant); granted != 2_000_000 || own != 3_000_000 {
		t.Errorf("drew %d of the grant and %d of the balance, want 2000000 and 3000000", granted, own)
	}
	m.offer(1, 1, m.near, "50")
	m.accept(1, 1, m.near)
	m.until(10)
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgCloseDeployment{ID: m.deployment(1)})
	if granted, own := x-m.holds(m.x), tenant-m.holds(m.tenant); granted != 500 || own != 0 {
		t.Errorf("the granter spent %d and the tenant %d, want 500 and 0", granted, own)
	}
	var grants authz.QueryGrantsResponse
	m.query("/cosmos.authz.v1beta1.Query/Grants", &authz.QueryGrantsRequest{Granter: m.x.Address(), Grantee: m.tenant.Address()}, &grants)
	if len(grants.Grants) != 1 {
		t.Fatalf("%d grants are left, want the one", len(grants.Grants))
	}
	var left escrowv1.DepositAuthorization
	if err := m.Codec().Unmarshal(grants.Grants[0].Authorization.Value, &left); err != nil {
		t.Fatal(err)
	}
	if got := sdk.NewCoins(left.SpendLimits...).AmountOf(denom).Int64(); got != 2_000_000-500 {
		t.Errorf("the grant's limit is %d, want what came back to be there again", got)
	}
}

func TestAnAuditorsSignatureOpensTheDoor(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	g := group("home", 100)
	g.Requirements.SignedBy = attributesv1.SignedBy{AnyOf: []string{m.x.Address()}}
	m.MustDeliver(m.tenant, &deploymentv1beta4.MsgCreateDeployment{ID: m.deployment(1), Groups: []deploymentv1beta4.GroupSpec{g}, Hash: hash("one"), Deposit: deposit(bond)})
	offer := &marketv1beta5.MsgCreateBid{ID: m.bid(1, 1, m.near), Price: sdk.NewDecCoin(denom, math.NewInt(50)), Deposit: deposit(bond)}
	m.refused(m.near, offer, "market", 5)
	m.MustDeliver(m.x, &auditv1.MsgSignProviderAttributes{Owner: m.near.Address(), Auditor: m.x.Address(), Attributes: []attributesv1.Attribute{{Key: "region", Value: "eu-west"}}})
	m.MustDeliver(m.near, offer)
}

func TestOnlyTheNamedMaySign(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	m.leased(1, "50", 5_000_000)
	for _, msg := range []sdk.Msg{
		&deploymentv1beta4.MsgCloseDeployment{ID: m.deployment(1)},
		&deploymentv1beta4.MsgUpdateDeployment{ID: m.deployment(1), Hash: hash("two")},
		&deploymentv1beta4.MsgPauseGroup{ID: m.group(1)},
		&marketv1beta5.MsgCloseLease{ID: m.lease(1, 1, m.near), Reason: marketv1.LeaseClosedOwner},
		&marketv1beta5.MsgWithdrawLease{ID: m.lease(1, 1, m.near)},
		&marketv1beta5.MsgCloseBid{ID: m.bid(1, 1, m.near), Reason: marketv1.LeaseClosedReasonUnstable},
	} {
		if r := m.Deliver(m.x, msg); r.Code == 0 {
			t.Errorf("%s ran for someone else", sdk.MsgTypeURL(msg))
		}
	}
	m.wantStates(1, "deployment active, group open, order1 active, bid1 active, lease1 active, account open")
}

// What a chain exports, a new chain takes up and goes on with, money included.
func TestAnExportedMarketGoesOn(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	m.leased(1, "50.5", 5_000_000)
	m.create(2, 100, bond)
	m.offer(2, 1, m.far, "60")
	m.leased(3, "100000", bond)
	m.until(9)
	m.withdraw(3, 1, m.near) // overdrawn
	before := []string{m.states(1), m.states(2), m.states(3)}
	doc, err := m.Export(false)
	if err != nil {
		t.Fatal(err)
	}
	next := &market{App: chaintest.NewApp(t, chaintest.Config{Doc: doc, Begin: m.Now()}), t: t, tenant: m.tenant, near: m.near, far: m.far, x: m.x}
	if diff := gocmp.Diff(before, []string{next.states(1), next.states(2), next.states(3)}); diff != "" {
		t.Errorf("states (-old +new):\n%s", diff)
	}
	next.withdraw(1, 1, m.near)
	next.accept(2, 1, m.far)
	next.MustDeliver(m.tenant, &deploymentv1beta4.MsgCloseDeployment{ID: m.deployment(1)})
}

func TestListsComeInPages(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	for dseq := range uint64(25) {
		m.create(dseq+1, 100, bond)
	}
	seen := make(map[uint64]bool)
	var key []byte
	for {
		var page deploymentv1beta4.QueryDeploymentsResponse
		m.query("/akash.deployment.v1beta4.Query/Deployments", &deploymentv1beta4.QueryDeploymentsRequest{
			Filters: deploymentv1beta4.DeploymentFilters{Owner: m.tenant.Address(), State: "active"}, Pagination: &query.PageRequest{Key: key, Limit: 10},
		}, &page)
		for _, d := range page.Deployments {
			if seen[d.Deployment.ID.DSeq] {
				t.Errorf("deployment %d comes twice", d.Deployment.ID.DSeq)
			}
			seen[d.Deployment.ID.DSeq] = true
		}
		if key = page.Pagination.NextKey; len(key) == 0 {
			break
		}
	}
	if len(seen) != 25 {
		t.Errorf("%d deployments in all pages, want 25", len(seen))
	}
}
