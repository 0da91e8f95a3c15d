package market

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cosmos/gogoproto/proto"
	"github.com/grpc-ecosystem/grpc-gateway/runtime"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
	"github.com/croft-cloud/croft/chain/gogo/resourcesv1beta4"

	errorsmod "cosmossdk.io/errors"
	"cosmossdk.io/math"

	"github.com/cosmos/cosmos-sdk/client"
	sdk "github.com/cosmos/cosmos-sdk/types"
)

func TestReasonsOfClosing(t *testing.T) {
	id := marketv1.BidID{Owner: person("tenant"), DSeq: 1, GSeq: 1, OSeq: 1, Provider: person("provider")}
	for reason, by := range map[marketv1.LeaseClosedReason]string{
		marketv1.LeaseClosedInvalid:            "tenant",
		marketv1.LeaseClosedOwner:              "tenant",
		2:                                      "nobody",
		9999:                                   "nobody",
		marketv1.LeaseClosedReasonUnstable:     "provider",
		marketv1.LeaseClosedReasonDecommission: "provider",
		marketv1.LeaseClosedReasonUnspecified:  "provider",
		marketv1.LeaseClosedReasonManifestTimeout: "provider",
		10_004: "nobody",
		marketv1.LeaseClosedReasonInsufficientFunds: "nobody",
		-1: "nobody",
	} {
		for signer, err := range map[string]error{
			"provider":            ValidateCloseBid(&marketv1beta5.MsgCloseBid{ID: id, Reason: reason}),
			"provider reclaiming": ValidateLeaseStartReclaim(&marketv1beta5.MsgLeaseStartReclaim{ID: marketv1.LeaseID(id), Reason: reason}),
			"tenant":              ValidateCloseLease(&marketv1beta5.MsgCloseLease{ID: marketv1.LeaseID(id), Reason: reason}),
		} {
			if allowed := by == strings.Fields(signer)[0]; allowed != (err == nil) {
				t.Errorf("reason %d by the %s: %v", reason, signer, err)
			} else if err != nil && !errors.Is(err, ErrInvalidClosedReason) {
				t.Errorf("reason %d by the %s is refused with %v", reason, signer, err)
			}
		}
	}
}

func TestParams(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(p *marketv1beta5.Params)
		ok     bool
	}{
		{"the defaults are valid", func(*marketv1beta5.Params) {}, true},
		{"500 bids are the most", func(p *marketv1beta5.Params) { p.OrderMaxBids = 500 }, true},
		{"501 bids are too many", func(p *marketv1beta5.Params) { p.OrderMaxBids = 501 }, false},
		{"no bids are too few", func(p *marketv1beta5.Params) { p.OrderMaxBids = 0 }, false},
		{"a denomination named twice is refused", func(p *marketv1beta5.Params) { p.BidMinDeposits = append(p.BidMinDeposits, p.BidMinDeposits[0]) }, false},
		{"a deposit without amount is refused", func(p *marketv1beta5.Params) { p.BidMinDeposits[0].Amount = math.Int{} }, false},
		{"a deposit below zero is refused", func(p *marketv1beta5.Params) { p.BidMinDeposits[0].Amount = math.NewInt(-1) }, false},
		{"a denomination that is none is refused", func(p *marketv1beta5.Params) { p.BidMinDeposits[0].Denom = "!" }, false},
		{"the single deposit must be in the list", func(p *marketv1beta5.Params) { p.BidMinDeposit.Denom = "uatom" }, false},
		{"the single deposit must be valid", func(p *marketv1beta5.Params) { p.BidMinDeposit = sdk.Coin{} }, false},
		{"no deposits at all are refused", func(p *marketv1beta5.Params) { p.BidMinDeposits = nil }, false},
		{"a minimum window above the maximum is refused", func(p *marketv1beta5.Params) { p.MinReclamationWindow = 721 * time.Hour }, false},
		{"a minimum window of zero is refused", func(p *marketv1beta5.Params) { p.MinReclamationWindow = 0 }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := DefaultParams()
			tc.change(&p)
			if err := ValidateParams(p); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrInvalidParam) {
				t.Errorf("ValidateParams = %v, want ok %v", err, tc.ok)
			}
		})
	}
}

func TestErrorCodesAreThoseOfTheContract(t *testing.T) {
	inOrder := []*errorsmod.Error{
		ErrEmptyProvider, ErrSameAccount, ErrInternal, ErrBidOverOrder, ErrAttributeMismatch, ErrUnknownBid, ErrUnknownLease, ErrNoLeaseForBid,
		ErrNoOrderForBid, ErrLeaseNotActive, ErrBidNotActive, ErrBidNotOpen, ErrOrderNotOpen, ErrNoLeaseForOrder, ErrOrderNotFound,
		ErrGroupNotFound, ErrGroupNotOpen, ErrBidNotFound, ErrBidZeroPrice, ErrLeaseNotFound, ErrBidExists, ErrInvalidPrice, ErrOrderActive,
		ErrOrderClosed, ErrOrderExists, ErrOrderDurationPast, ErrOrderTooEarly, ErrInvalidDeposit, ErrInvalidParam, ErrUnknownProvider,
		ErrInvalidBid, ErrCapabilitiesMismatch, ErrInvalidClosedReason, ErrInvalidEscrowID, ErrNotReclaimable, ErrAlreadyReclaiming,
		ErrReclaimNotStarted, ErrWindowNotElapsed, ErrInvalidWindow, ErrWindowRequired, ErrWindowTooShort,
	}
	for i, err := range inOrder {
		if err.Codespace() != "market" || err.ABCICode() != uint32(i+1) {
			t.Errorf("%v is %s %d, want market %d", err, err.Codespace(), err.ABCICode(), i+1)
		}
	}
}

func TestRESTPathsAreServed(t *testing.T) {
	mux := runtime.NewServeMux()
	AppModule{}.RegisterGRPCGatewayRoutes(client.Context{}, mux)
	for path, want := range map[string]bool{
		"/akash/market/v1beta5/orders/list": true,
		"/akash/market/v1beta5/orders/info": true,
		"/akash/market/v1beta5/bids/list":   true,
		"/akash/market/v1beta5/bids/info":   true,
		"/akash/market/v1beta5/leases/list": true,
		"/akash/market/v1beta5/leases/info": true,
		"/akash/market/v1beta5/params":      true,
		"/akash/market/v1beta5/nothing":     false,
	} {
		rec := httptest.NewRecorder()
		// A malformed parameter is answered before the chain is asked, and only on a path that exists.
		mux.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, path, nil))
		if got := rec.Code != http.StatusNotFound; got != want {
			t.Errorf("%s answers %d, want served %v", path, rec.Code, want)
		}
	}
}

// hostile is what a decoder can make of bytes: absent, negative and huge numbers.
func hostile(t *testing.F) [][]byte {
	id := marketv1.BidID{Owner: person("tenant"), DSeq: 1, GSeq: 1, OSeq: 1, Provider: person("provider")}
	huge := math.LegacyNewDecFromInt(math.NewInt(10).ToLegacyDec().Power(70).TruncateInt())
	bid := func(change func(*marketv1beta5.MsgCreateBid)) proto.Message {
		msg := bidMsg(orderOf(id), id.Provider)
		msg.ResourcesOffer = []marketv1beta5.ResourceOffer{{
			Resources: resourcesv1beta4.Resources{ID: 1, CPU: &resourcesv1beta4.CPU{Units: units(1)}, Storage: []resourcesv1beta4.Storage{{Quantity: units(1)}}},
			Prices:    &marketv1beta5.OfferPrices{CPU: &sdk.DecCoin{Denom: "uact", Amount: huge}},
		}}
		change(msg)
		return msg
	}
	var seeds [][]byte
	for _, msg := range []proto.Message{
		bid(func(*marketv1beta5.MsgCreateBid) {}),
		bid(func(m *marketv1beta5.MsgCreateBid) { m.Price = sdk.DecCoin{Denom: "uact"} }),
		bid(func(m *marketv1beta5.MsgCreateBid) { m.Price.Amount = huge.Neg() }),
		bid(func(m *marketv1beta5.MsgCreateBid) { m.Deposit = depositv1.Deposit{Sources: []depositv1.Source{-1, 7}} }),
		bid(func(m *marketv1beta5.MsgCreateBid) { m.ReclamationWindow = new(time.Duration(-1 << 63)) }),
		&marketv1beta5.MsgCloseBid{ID: id, Reason: -1},
		&marketv1beta5.MsgCreateLease{BidID: id},
		&marketv1beta5.MsgUpdateParams{Authority: id.Owner, Params: DefaultParams()},
	} {
		bz, err := proto.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, bz, bz[:len(bz)/2])
	}
	return append(seeds, nil, []byte{0x12, 0x00}, []byte{0x1a, 0x00})
}

// FuzzMessages gives the same bytes to every message: what can be decoded can
// be validated without a panic, and a bid that is valid can be stored, compared
// with an order and read back.
func FuzzMessages(f *testing.F) {
	for _, seed := range hostile(f) {
		f.Add(seed)
	}
	order := marketv1beta5.Order{Spec: groupSpec()}
	f.Fuzz(func(t *testing.T, bz []byte) {
		validate(t, bz, ValidateCloseBid)
		validate(t, bz, ValidateCreateLease)
		validate(t, bz, ValidateWithdrawLease)
		validate(t, bz, ValidateCloseLease)
		validate(t, bz, ValidateLeaseStartReclaim)
		validate(t, bz, ValidateUpdateParams)
		bid := validate(t, bz, ValidateCreateBid)
		if bid == nil {
			return
		}
		_ = checkDeposit(bid.Deposit.Amount, DefaultParams())
		_ = checkPrice(bid.Price, order)
		_ = checkOffer(bid.ResourcesOffer, order.Spec)
		_, _ = checkWindow(bid.ReclamationWindow, order, DefaultParams())
		_ = fmt.Sprint(bid)
		stored := marketv1beta5.Bid{ID: bid.ID, Price: bid.Price, ResourcesOffer: bid.ResourcesOffer, ReclamationWindow: bid.ReclamationWindow}
		out, err := proto.Marshal(&stored)
		if err != nil {
			t.Fatalf("a valid bid cannot be stored: %v", err)
		}
		var again marketv1beta5.Bid
		if err := proto.Unmarshal(out, &again); err != nil {
			t.Fatalf("a stored bid cannot be read: %v", err)
		}
	})
}

// validate decodes and validates; it returns the message if it is valid.
func validate[M any, P interface {
	*M
	proto.Message
}](t *testing.T, bz []byte, check func(P) error) P {
	t.Helper()
	msg := P(new(M))
	if err := proto.Unmarshal(bz, msg); err != nil {
		return nil
	}
	if err := check(msg); err != nil {
		return nil
	}
	return msg
}
