package market

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
	"github.com/croft-cloud/croft/chain/gogo/resourcesv1beta4"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// scene is a world with one open order and a bid on it that breaks no rule.
type scene struct {
	*world
	msg   *marketv1beta5.MsgCreateBid
	order marketv1beta5.Order
}

func newScene(t *testing.T) *scene {
	w := newWorld(t)
	id := w.deploy(t, 1001, 5_000_000)
	order, _, err := w.k.GetOrder(w.ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return &scene{world: w, msg: bidMsg(id, w.provider), order: order}
}

// rewrite stores the order as a rule's test changed it.
func (s *scene) rewrite(t *testing.T, change func(*marketv1beta5.Order)) {
	t.Helper()
	change(&s.order)
	if err := s.k.orders.put(s.ctx, s.order); err != nil {
		t.Fatal(err)
	}
}

// rules of CreateBid, in the order of the contract; each break breaks one.
var rules = []struct {
	name    string
	want    error
	violate func(t *testing.T, s *scene)
}{
	{"the deposit's denomination is known and the amount is at least its minimum", ErrInvalidDeposit, func(_ *testing.T, s *scene) {
		s.msg.Deposit.Amount = sdk.NewInt64Coin("uakt", 499_999)
	}},
	{"the order has fewer bids than it may take", ErrInvalidBid, func(t *testing.T, s *scene) {
		params := DefaultParams()
		params.OrderMaxBids = 1
		if err := s.k.SetParams(s.ctx, params); err != nil {
			t.Fatal(err)
		}
		other := person("another provider")
		bid := marketv1beta5.Bid{ID: bidMsg(s.order.ID, other).ID, State: marketv1beta5.BidClosed, Price: price("1")}
		if err := s.k.bids.put(s.ctx, bid); err != nil {
			t.Fatal(err)
		}
	}},
	{"the bseq is 0", ErrInvalidBid, func(_ *testing.T, s *scene) { s.msg.ID.BSeq = 1 }},
	{"the order is open", ErrOrderNotOpen, func(t *testing.T, s *scene) {
		s.rewrite(t, func(o *marketv1beta5.Order) { o.State = marketv1beta5.OrderActive })
	}},
	{"the price is not zero", ErrBidZeroPrice, func(_ *testing.T, s *scene) { s.msg.Price = price("0") }},
	{"the offer is empty or has the units of the group", ErrCapabilitiesMismatch, func(_ *testing.T, s *scene) {
		s.msg.ResourcesOffer = []marketv1beta5.ResourceOffer{{Resources: resourcesv1beta4.Resources{ID: 7}}}
	}},
	{"the provider is registered", ErrUnknownProvider, func(_ *testing.T, s *scene) { clear(s.providers) }},
	{"the provider is not the tenant", ErrSameAccount, func(_ *testing.T, s *scene) {
		s.msg.ID.Provider = s.tenant
		if len(s.providers) > 0 {
			s.register(s.tenant)
		}
	}},
	{"the provider's attributes match", ErrAttributeMismatch, func(t *testing.T, s *scene) {
		s.rewrite(t, func(o *marketv1beta5.Order) {
			o.Spec.Requirements.Attributes = []attributesv1.Attribute{attr("region", "eu-west")}
		})
	}},
	{"the provider's capabilities match", ErrCapabilitiesMismatch, func(t *testing.T, s *scene) {
		s.rewrite(t, func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Resource.Storage[0].Attributes = []attributesv1.Attribute{attr("class", "beta2")}
		})
	}},
	{"the reclamation window is what the order wants", ErrWindowRequired, func(t *testing.T, s *scene) {
		s.rewrite(t, func(o *marketv1beta5.Order) {
			o.Reclamation = &deploymentv1.DeploymentReclamation{MinWindow: 2 * time.Hour}
		})
	}},
	{"the provider has no bid on the order", ErrBidExists, func(t *testing.T, s *scene) {
		bid := marketv1beta5.Bid{ID: s.msg.ID, State: marketv1beta5.BidClosed, Price: price("1")}
		bid.ID.BSeq = 0
		if err := s.k.bids.put(s.ctx, bid); err != nil {
			t.Fatal(err)
		}
	}},
}

func TestABidThatBreaksARuleIsRefused(t *testing.T) {
	for _, rule := range rules {
		t.Run(rule.name, func(t *testing.T) {
			s := newScene(t)
			rule.violate(t, s)
			purse := s.escrow.purse(s.ctx, s.provider, "uakt")
			err := s.try(func(ctx context.Context) error { _, err := s.msgs.CreateBid(ctx, s.msg); return err })
			s.wantError(t, err, rule.want)
			if now := s.escrow.purse(s.ctx, s.provider, "uakt"); !now.Equal(purse) {
				t.Errorf("a refused bid cost %s", purse.Sub(now))
			}
		})
	}
}

func TestOfSeveralBrokenRulesTheFirstOfTheContractIsTold(t *testing.T) {
	for i, rule := range rules {
		t.Run(rule.name, func(t *testing.T) {
			s := newScene(t)
			for _, r := range rules[i:] {
				r.violate(t, s)
			}
			err := s.try(func(ctx context.Context) error { _, err := s.msgs.CreateBid(ctx, s.msg); return err })
			s.wantError(t, err, rule.want)
		})
	}
}

func TestCreateBid(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(s *scene)
		want   error
	}{
		{"a deposit in uact is accepted", func(s *scene) {
			s.escrow.fund(s.ctx, s.provider, sdk.NewInt64Coin("uact", 500_000))
			s.msg.Deposit.Amount = sdk.NewInt64Coin("uact", 500_000)
		}, nil},
		{"a deposit in another denomination is refused", func(s *scene) { s.msg.Deposit.Amount = sdk.NewInt64Coin("uatom", 500_000) }, ErrInvalidDeposit},
		{"a deposit the provider does not have is refused", func(s *scene) {
			s.msg.Deposit.Amount = sdk.NewInt64Coin("uakt", 2_000_000_000)
		}, errFakeFunds},
		{"the order price is the sum of price times count", func(s *scene) { s.msg.Price = price("200") }, nil},
		{"a price above the order's is refused", func(s *scene) { s.msg.Price = price("200.000000000000000001") }, ErrBidOverOrder},
		{"a price in another denomination is refused", func(s *scene) { s.msg.Price.Denom = "uakt" }, ErrInvalidPrice},
		{"a price below zero is refused", func(s *scene) { s.msg.Price = price("-1") }, ErrInvalidPrice},
		{"an order that does not exist is not found", func(s *scene) { s.msg.ID.OSeq = 2 }, ErrOrderNotFound},
		{"an offer for the same units is accepted", func(s *scene) {
			s.msg.ResourcesOffer = []marketv1beta5.ResourceOffer{{Resources: s.order.Spec.Resources[0].Resource, Count: 2}}
		}, nil},
		{"an offer with more units than the group is refused", func(s *scene) {
			one := marketv1beta5.ResourceOffer{Resources: s.order.Spec.Resources[0].Resource, Count: 1}
			s.msg.ResourcesOffer = []marketv1beta5.ResourceOffer{one, one}
		}, ErrCapabilitiesMismatch},
		{"an offer larger than 16 KiB is refused", func(s *scene) {
			one := marketv1beta5.ResourceOffer{Resources: resourcesv1beta4.Resources{ID: 1, Storage: []resourcesv1beta4.Storage{{
				Name: strings.Repeat("x", 17<<10), Quantity: units(1),
			}}}}
			s.msg.ResourcesOffer = []marketv1beta5.ResourceOffer{one}
		}, ErrInvalidBid},
		{"an address in upper case is refused, it would be a second name of one account", func(s *scene) {
			s.msg.ID.Provider = strings.ToUpper(s.msg.ID.Provider)
		}, ErrInvalidBid},
		{"an empty provider is refused", func(s *scene) { s.msg.ID.Provider = "" }, ErrEmptyProvider},
		{"a deposit without sources is refused", func(s *scene) { s.msg.Deposit.Sources = nil }, ErrInvalidDeposit},
		{"a deposit source named twice is refused", func(s *scene) {
			s.msg.Deposit.Sources = []depositv1.Source{depositv1.SourceGrant, depositv1.SourceGrant}
		}, ErrInvalidDeposit},
		{"an order without reclamation takes a bid with a window", func(s *scene) { s.msg.ReclamationWindow = hours(1) }, nil},
		{"a window below the parameters' minimum is refused", func(s *scene) { s.msg.ReclamationWindow = new(time.Minute) }, ErrInvalidWindow},
		{"a window above the parameters' maximum is refused", func(s *scene) { s.msg.ReclamationWindow = hours(721) }, ErrInvalidWindow},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene(t)
			tc.change(s)
			err := s.try(func(ctx context.Context) error { _, err := s.msgs.CreateBid(ctx, s.msg); return err })
			if !errors.Is(err, tc.want) {
				t.Fatalf("CreateBid = %v, want %v", err, tc.want)
			}
			if err == nil {
				s.wantStates(t, s.msg.ID, "open", "open", "")
				s.wantEvents(t, "EventBidCreated")
			}
		})
	}
}

func TestABidsDepositLiesInItsOwnAccount(t *testing.T) {
	w := newWorld(t)
	id := w.bid(t, w.deploy(t, 1001, 5_000_000), w.provider)
	if got, want := w.escrow.purse(w.ctx, w.provider, "uakt"), math.NewInt(999_500_000); !got.Equal(want) {
		t.Errorf("provider has %s, want %s", got, want)
	}
	account, err := w.escrow.GetAccount(w.ctx, bidAccount(id))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%s/1001/1/1/%s", w.tenant, w.provider); account.ID.XID != want || account.State.Owner != w.provider {
		t.Errorf("account is %v, want xid %s", account, want)
	}
}

func TestReclamationWindowOfABid(t *testing.T) {
	order := marketv1beta5.Order{Reclamation: &deploymentv1.DeploymentReclamation{MinWindow: 5 * time.Hour}}
	for _, tc := range []struct {
		name    string
		order   marketv1beta5.Order
		offered *time.Duration
		want    *time.Duration
		err     error
	}{
		{"an order that wants one is refused a bid without", order, nil, nil, ErrWindowRequired},
		{"a window of zero is none", order, hours(0), nil, ErrWindowRequired},
		{"a window shorter than the order's is refused", order, hours(4), nil, ErrWindowTooShort},
		{"a window of the order's length is accepted", order, hours(5), hours(5), nil},
		{"a longer window is accepted", order, hours(720), hours(720), nil},
		{"a window above the parameters' maximum is refused", order, hours(721), nil, ErrInvalidWindow},
		{"an order that wants none takes a bid without", marketv1beta5.Order{}, nil, nil, nil},
		{"a window of zero is stored as none", marketv1beta5.Order{}, hours(0), nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := checkWindow(tc.offered, tc.order, DefaultParams())
			if !errors.Is(err, tc.err) {
				t.Fatalf("error is %v, want %v", err, tc.err)
			}
			if (got == nil) != (tc.want == nil) || got != nil && *got != *tc.want {
				t.Errorf("window is %v, want %v", got, tc.want)
			}
		})
	}
}

// An offer is stored apart from its bid, so that what changes a bid's state
// costs the same whatever the provider offered.
func TestAnOfferIsReadWithItsBidAndNeverRewritten(t *testing.T) {
	w := newWorld(t)
	offer := []marketv1beta5.ResourceOffer{{Resources: groupSpec().Resources[0].Resource, Count: 2}}
	offer[0].Resources.Memory.Attributes = []attributesv1.Attribute{attr("note", strings.Repeat("x", MaxOfferBytes/2))}
	order := w.deploy(t, 1, 1_000_000)
	bid := w.bid(t, order, w.provider, func(m *marketv1beta5.MsgCreateBid) { m.ResourcesOffer = offer })
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"open", func() error { return nil }},
		{"closed", func() error { return w.closeBid(bid) }},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		stored, _, err := w.k.GetBid(w.ctx, bid)
		if err != nil {
			t.Fatal(err)
		}
		if size := stored.Size(); size > 500 {
			t.Errorf("record of a bid that is %s has %d bytes", step.name, size)
		}
		res, err := w.queries.Bid(w.ctx, &marketv1beta5.QueryBidRequest{ID: bid})
		if err != nil {
			t.Fatal(err)
		}
		if got := res.Bid.ResourcesOffer; len(got) != 1 || got[0].String() != offer[0].String() {
			t.Errorf("offer of a bid that is %s is %v", step.name, got)
		}
	}
	state, err := w.k.ExportGenesis(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	again := newWorld(t)
	if err := again.k.InitGenesis(again.ctx, state); err != nil {
		t.Fatal(err)
	}
	same, err := again.k.ExportGenesis(again.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if same.String() != state.String() || len(same.Bids[0].ResourcesOffer) != 1 {
		t.Errorf("export after import is %v, want %v", same, state)
	}
}

func hours(n int) *time.Duration { return new(time.Duration(n) * time.Hour) }

func TestOrderPrice(t *testing.T) {
	unit := func(amount, denom string, count uint32) deploymentv1beta4.ResourceUnit {
		p := price(amount)
		p.Denom = denom
		return deploymentv1beta4.ResourceUnit{Count: count, Price: p}
	}
	for _, tc := range []struct {
		name  string
		units []deploymentv1beta4.ResourceUnit
		want  string
		err   error
	}{
		{"one unit", []deploymentv1beta4.ResourceUnit{unit("1.5", "uact", 3)}, "4.500000000000000000uact", nil},
		{"units add up", []deploymentv1beta4.ResourceUnit{unit("1", "uact", 3), unit("10", "uact", 2)}, "23.000000000000000000uact", nil},
		{"two denominations have no sum", []deploymentv1beta4.ResourceUnit{unit("1", "uact", 3), unit("10", "uakt", 2)}, "", ErrInvalidPrice},
		{"no units have no price", nil, "", ErrInvalidPrice},
		{"an absent amount is no price", []deploymentv1beta4.ResourceUnit{{Count: 1, Price: sdk.DecCoin{Denom: "uact"}}}, "", ErrInvalidPrice},
		{"a price of 300 bits is refused and does not overflow", []deploymentv1beta4.ResourceUnit{
			unit("1"+strings.Repeat("0", 72), "uact", 4_000_000_000),
		}, "", ErrInvalidPrice},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := orderPrice(deploymentv1beta4.GroupSpec{Resources: tc.units})
			if !errors.Is(err, tc.err) {
				t.Fatalf("error is %v, want %v", err, tc.err)
			}
			if err == nil && got.String() != tc.want {
				t.Errorf("price is %s, want %s", got, tc.want)
			}
		})
	}
}

func TestSignedBy(t *testing.T) {
	wanted := []attributesv1.Attribute{attr("region", "eu-west"), attr("tier", "community")}
	alice, bob := person("alice"), person("bob")
	for _, tc := range []struct {
		name   string
		signed attributesv1.SignedBy
		audits map[string][]attributesv1.Attribute
		fits   bool
	}{
		{"nobody named asks for nothing", attributesv1.SignedBy{}, nil, true},
		{"all of: every auditor must have signed", attributesv1.SignedBy{AllOf: []string{alice, bob}}, map[string][]attributesv1.Attribute{alice: wanted}, false},
		{"all of: every auditor has signed", attributesv1.SignedBy{AllOf: []string{alice, bob}}, map[string][]attributesv1.Attribute{alice: wanted, bob: wanted}, true},
		{"all of: what is signed must cover the requirement", attributesv1.SignedBy{AllOf: []string{alice}}, map[string][]attributesv1.Attribute{alice: wanted[:1]}, false},
		{"any of: one auditor is enough", attributesv1.SignedBy{AnyOf: []string{alice, bob}}, map[string][]attributesv1.Attribute{bob: wanted}, true},
		{"any of: nobody has signed", attributesv1.SignedBy{AnyOf: []string{alice, bob}}, nil, false},
		{"any of: parts by two auditors do not add up", attributesv1.SignedBy{AnyOf: []string{alice, bob}}, map[string][]attributesv1.Attribute{alice: wanted[:1], bob: wanted[1:]}, false},
		{"both lists must be met", attributesv1.SignedBy{AllOf: []string{alice}, AnyOf: []string{bob}}, map[string][]attributesv1.Attribute{alice: wanted}, false},
		{"an auditor that is no address has signed nothing", attributesv1.SignedBy{AnyOf: []string{"bob"}}, map[string][]attributesv1.Attribute{bob: wanted}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.register(w.provider, wanted...)
			for auditor, attributes := range tc.audits {
				w.audits[[2]string{w.provider, auditor}] = attributes
			}
			order := w.deploy(t, 1, 1_000_000, func(s *deploymentv1beta4.GroupSpec) {
				s.Requirements = attributesv1.PlacementRequirements{SignedBy: tc.signed, Attributes: wanted}
			})
			err := w.try(func(ctx context.Context) error {
				_, err := w.msgs.CreateBid(ctx, bidMsg(order, w.provider))
				return err
			})
			if tc.fits && err != nil || !tc.fits && !errors.Is(err, ErrAttributeMismatch) {
				t.Errorf("CreateBid = %v, want fits %v", err, tc.fits)
			}
		})
	}
}

func TestAnOrderTakesAsManyBidsAsTheParametersSay(t *testing.T) {
	w := newWorld(t)
	order := w.deploy(t, 1, 1_000_000)
	for i := range 20 {
		p := person(fmt.Sprint("provider ", i))
		w.register(p)
		id := w.bid(t, order, p)
		if i%2 == 0 {
			if err := w.closeBid(id); err != nil { // closed bids count too
				t.Fatal(err)
			}
		}
	}
	err := w.try(func(ctx context.Context) error {
		_, err := w.msgs.CreateBid(ctx, bidMsg(order, w.provider))
		return err
	})
	w.wantError(t, err, ErrInvalidBid)
	if err := w.k.Invariants(w.ctx); err != nil {
		t.Error(err)
	}
}
