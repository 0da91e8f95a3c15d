package deployment

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"

	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
)

// refused compares an error with the one of the contract.
func refused(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func succeeds(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// three is a deployment of three groups, the first leased, the second paused.
func three(t testing.TB, rate int64) *world {
	t.Helper()
	w := newWorld(t)
	succeeds(t, w.create(w.createMsg(1001, groupSpec("a"), groupSpec("b"), groupSpec("c"))))
	w.must(t, func(ctx context.Context) error { return w.market.lease(ctx, w.group(1001, 1), rate) })
	succeeds(t, w.pauseGroup(w.group(1001, 2)))
	return w
}

func TestLifeCycle(t *testing.T) {
	t.Run("creating opens the groups, an order for each, and the funded account", func(t *testing.T) {
		w := newWorld(t)
		succeeds(t, w.create(w.createMsg(1001, groupSpec("a"), groupSpec("b"))))
		w.tells(t, "EventDeploymentCreated", "EventOrderCreated", "EventOrderCreated")
		if got, want := w.states(t, 1001), "active: open open account open"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := w.escrow.wallets[w.tenant+"uact"].TruncateInt64(); got != 995_000_000 {
			t.Errorf("tenant has %d uact left", got)
		}
		w.sound(t)
	})
	t.Run("the event of creation has the id and the hash", func(t *testing.T) {
		w := newWorld(t)
		em := sdk.NewEventManager()
		if _, err := w.msgs.CreateDeployment(w.ctx.WithEventManager(em), w.createMsg(1001)); err != nil {
			t.Fatal(err)
		}
		want := []abci.EventAttribute{
			{Key: "hash", Value: `"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="`},
			{Key: "id", Value: `{"owner":"` + w.tenant + `","dseq":"1001"}`},
		}
		e := em.ABCIEvents()[0]
		if e.Type != "akash.deployment.v1.EventDeploymentCreated" || !slices.Equal(e.Attributes, want) {
			t.Errorf("got %s %v", e.Type, e.Attributes)
		}
	})
	t.Run("an update replaces the hash and leaves the groups alone", func(t *testing.T) {
		w := three(t, 50)
		hash := slices.Repeat([]byte{8}, HashBytes)
		succeeds(t, w.update(1001, hash))
		w.tells(t, "EventDeploymentUpdated")
		d, _, err := w.k.GetDeployment(w.ctx, w.id(1001))
		if err != nil || !slices.Equal(d.Hash, hash) {
			t.Errorf("hash is %x, %v", d.Hash, err)
		}
		if got, want := w.states(t, 1001), "active: open paused open account open"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("closing a deployment closes group by group and returns the rest", func(t *testing.T) {
		w := three(t, 50)
		w.pass(10)
		succeeds(t, w.close(1001))
		w.tells(t, "EventDeploymentClosed",
			"EventGroupClosed", "EventOrderClosed", "EventBidClosed", "EventLeaseClosed lease_closed_owner",
			"EventGroupClosed",
			"EventGroupClosed", "EventOrderClosed")
		if got, want := w.states(t, 1001), "closed: closed closed closed account closed"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := w.escrow.wallets[w.tenant+"uact"].TruncateInt64(); got != 999_999_500 {
			t.Errorf("tenant has %d uact", got)
		}
		w.sound(t)
	})
	t.Run("a group that is closed already gets no second event", func(t *testing.T) {
		w := three(t, 50)
		succeeds(t, w.closeGroup(w.group(1001, 1)))
		succeeds(t, w.close(1001))
		w.tells(t, "EventDeploymentClosed", "EventGroupClosed", "EventGroupClosed", "EventOrderClosed")
	})
	t.Run("a lease closed by its tenant keeps the group open and a fresh order opens", func(t *testing.T) {
		w := three(t, 50)
		w.must(t, func(ctx context.Context) error { return w.market.closeLease(ctx, w.group(1001, 1)) })
		w.tells(t, "EventOrderCreated")
		if got := w.market.orders[w.group(1001, 1)].oseq; got != 2 {
			t.Errorf("oseq is %d", got)
		}
		w.sound(t)
	})
	t.Run("a bid closed by its provider pauses the group and opens no order", func(t *testing.T) {
		w := three(t, 50)
		w.must(t, func(ctx context.Context) error { return w.market.closeBid(ctx, w.group(1001, 1)) })
		w.tells(t, "EventGroupPaused")
		w.sound(t)
	})
	t.Run("a pause closes order, bids and lease; a start opens the next order", func(t *testing.T) {
		w := three(t, 50)
		succeeds(t, w.pauseGroup(w.group(1001, 1)))
		w.tells(t, "EventGroupPaused", "EventOrderClosed", "EventBidClosed", "EventLeaseClosed lease_closed_owner")
		succeeds(t, w.startGroup(w.group(1001, 1)))
		w.tells(t, "EventGroupStarted", "EventOrderCreated")
		if got := w.market.orders[w.group(1001, 1)].oseq; got != 2 {
			t.Errorf("oseq is %d", got)
		}
		w.sound(t)
	})
	t.Run("a started group asks for the deployment's reclamation again", func(t *testing.T) {
		w := newWorld(t)
		msg := w.createMsg(1001)
		msg.Reclamation = &deploymentv1.DeploymentReclamation{MinWindow: 2 * time.Hour}
		succeeds(t, w.create(msg))
		for range 2 {
			if r := w.market.orders[w.group(1001, 1)].reclamation; r == nil || r.MinWindow != 2*time.Hour {
				t.Fatalf("order's reclamation is %v", r)
			}
			succeeds(t, w.pauseGroup(w.group(1001, 1)))
			succeeds(t, w.startGroup(w.group(1001, 1)))
		}
	})
	t.Run("closing a group is final and leaves the deployment active", func(t *testing.T) {
		w := newWorld(t)
		succeeds(t, w.create(w.createMsg(1001)))
		succeeds(t, w.closeGroup(w.group(1001, 1)))
		w.tells(t, "EventGroupClosed", "EventOrderClosed")
		refused(t, w.startGroup(w.group(1001, 1)), ErrGroupClosed)
		if got, want := w.states(t, 1001), "active: closed account open"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		w.sound(t)
	})
	t.Run("a params update is governance's", func(t *testing.T) {
		w := newWorld(t)
		params := deploymentv1beta4.Params{MinDeposits: sdk.NewCoins(sdk.NewInt64Coin("uact", 6_000_000))}
		_, err := w.msgs.UpdateParams(w.ctx, &deploymentv1beta4.MsgUpdateParams{Authority: w.tenant, Params: params})
		refused(t, err, sdkerrors.ErrUnauthorized)
		if _, err = w.msgs.UpdateParams(w.ctx, &deploymentv1beta4.MsgUpdateParams{Authority: person("gov"), Params: params}); err != nil {
			t.Fatal(err)
		}
		refused(t, w.create(w.createMsg(1001)), ErrInvalidDeposit)
	})
}

// A dry account closes the deployment at whichever settlement finds it dry.
func TestOverdrawn(t *testing.T) {
	events := []string{
		"EventDeploymentClosed",
		"EventGroupClosed", "EventOrderClosed", "EventBidClosed", "EventLeaseClosed lease_closed_reason_insufficient_funds",
		"EventGroupClosed",
		"EventGroupClosed", "EventOrderClosed",
	}
	for _, tc := range []struct {
		name string
		do   func(w *world) error
	}{
		{"when the tenant closes the deployment", func(w *world) error { return w.close(1001) }},
		{"when the tenant closes the leased group", func(w *world) error { return w.closeGroup(w.group(1001, 1)) }},
		{"when the tenant closes another group", func(w *world) error { return w.closeGroup(w.group(1001, 3)) }},
		{"when the tenant pauses a group", func(w *world) error { return w.pauseGroup(w.group(1001, 1)) }},
		{"when the provider closes its bid", func(w *world) error {
			return w.try(func(ctx context.Context) error { return w.market.closeBid(ctx, w.group(1001, 1)) })
		}},
		{"when escrow says so", func(w *world) error {
			return w.try(func(ctx context.Context) error {
				_, err := w.escrow.AccountSettle(ctx, account(w.id(1001)))
				return err
			})
		}},
	} {
		t.Run("a dry account closes all groups as insufficient_funds "+tc.name, func(t *testing.T) {
			w := three(t, 1_000_000)
			w.pass(6)
			succeeds(t, tc.do(w))
			w.tells(t, events...)
			if got, want := w.states(t, 1001), "closed: insufficient_funds insufficient_funds insufficient_funds account overdrawn"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			w.sound(t)
			refused(t, w.close(1001), ErrDeploymentClosed)
			refused(t, w.update(1001, slices.Repeat([]byte{9}, HashBytes)), ErrDeploymentClosed)
			refused(t, w.closeGroup(w.group(1001, 1)), ErrGroupNotOpen)
			refused(t, w.pauseGroup(w.group(1001, 1)), ErrGroupNotOpen)
			refused(t, w.startGroup(w.group(1001, 1)), ErrGroupNotOpen)
		})
	}
	t.Run("starting a group while the account is dry fails and changes nothing", func(t *testing.T) {
		w := three(t, 1_000_000)
		w.pass(6)
		refused(t, w.startGroup(w.group(1001, 2)), ErrDeploymentClosed)
		if got, want := w.states(t, 1001), "active: open paused open account open"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		w.sound(t)
	})
	t.Run("a group closed before keeps its state when the account is dry", func(t *testing.T) {
		w := three(t, 1_000_000)
		succeeds(t, w.closeGroup(w.group(1001, 3)))
		w.pass(6)
		succeeds(t, w.close(1001))
		if got, want := w.states(t, 1001), "closed: insufficient_funds insufficient_funds closed account overdrawn"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("a hook that is called twice does nothing the second time", func(t *testing.T) {
		w := three(t, 1_000_000)
		w.pass(6)
		succeeds(t, w.close(1001))
		w.must(t, func(ctx context.Context) error { return w.k.OnAccountOverdrawn(ctx, w.id(1001)) })
		w.tells(t)
	})
	t.Run("a settlement whose hook is not wired is an internal error", func(t *testing.T) {
		w := three(t, 1_000_000)
		w.escrow.overdrawn = func(context.Context, deploymentv1.DeploymentID) error { return nil }
		w.pass(6)
		refused(t, w.close(1001), ErrInternal)
	})
}

func TestRefusals(t *testing.T) {
	w := three(t, 50)
	succeeds(t, w.closeGroup(w.group(1001, 3)))
	succeeds(t, w.create(w.createMsg(1002)))
	succeeds(t, w.close(1002))
	for _, tc := range []struct {
		name string
		do   func() error
		want error
	}{
		{"a dseq is used once", func() error { return w.create(w.createMsg(1001)) }, ErrDeploymentExists},
		{"a closed deployment's dseq is not free again", func() error { return w.create(w.createMsg(1002)) }, ErrDeploymentExists},
		{"an update of an unknown deployment", func() error { return w.update(7, make([]byte, HashBytes)) }, ErrDeploymentNotFound},
		{"an update of a closed deployment", func() error { return w.update(1002, make([]byte, HashBytes)) }, ErrDeploymentClosed},
		{"an update with the same hash", func() error { return w.update(1001, slices.Repeat([]byte{7}, HashBytes)) }, ErrInvalidHash},
		{"an update without a hash", func() error { return w.update(1001, nil) }, ErrEmptyHash},
		{"an update with a short hash", func() error { return w.update(1001, []byte{1}) }, ErrInvalidHash},
		{"closing an unknown deployment", func() error { return w.close(7) }, ErrDeploymentNotFound},
		{"closing a closed deployment is an error", func() error { return w.close(1002) }, ErrDeploymentClosed},
		{"closing an unknown group", func() error { return w.closeGroup(w.group(1001, 4)) }, ErrGroupNotFound},
		{"closing a closed group", func() error { return w.closeGroup(w.group(1001, 3)) }, ErrGroupClosed},
		{"pausing an unknown group", func() error { return w.pauseGroup(w.group(7, 1)) }, ErrGroupNotFound},
		{"pausing a paused group", func() error { return w.pauseGroup(w.group(1001, 2)) }, ErrGroupPaused},
		{"pausing a closed group", func() error { return w.pauseGroup(w.group(1001, 3)) }, ErrGroupClosed},
		{"starting an unknown group", func() error { return w.startGroup(w.group(1001, 4)) }, ErrGroupNotFound},
		{"starting an open group", func() error { return w.startGroup(w.group(1001, 1)) }, ErrGroupOpen},
		{"starting a closed group", func() error { return w.startGroup(w.group(1001, 3)) }, ErrGroupClosed},
		{"starting a group of a closed deployment", func() error { return w.startGroup(w.group(1002, 1)) }, ErrGroupClosed},
		{"a group id without gseq", func() error { return w.pauseGroup(w.group(1001, 0)) }, ErrInvalidGroupID},
		{"a provider leaving a paused group", func() error {
			return w.try(func(ctx context.Context) error { return w.k.OnBidClosed(ctx, w.group(1001, 2)) })
		}, ErrGroupPaused},
		{"a lease ending in a paused group", func() error {
			return w.try(func(ctx context.Context) error { _, err := w.k.OnLeaseClosed(ctx, w.group(1001, 2)); return err })
		}, ErrGroupNotOpen},
		{"a price in a denomination that the chain does not know", func() error {
			msg := w.createMsg(5)
			msg.Groups[0].Resources[0].Price.Denom, msg.Deposit.Amount.Denom = "uusd", "uusd"
			return w.create(msg)
		}, ErrInvalidPrice},
		{"a deposit below the least", func() error {
			msg := w.createMsg(5)
			msg.Deposit.Amount = sdk.NewInt64Coin("uact", 499_999)
			return w.create(msg)
		}, ErrInvalidDeposit},
		{"a window below the market's least", func() error {
			msg := w.createMsg(5)
			msg.Reclamation = &deploymentv1.DeploymentReclamation{MinWindow: time.Hour - 1}
			return w.create(msg)
		}, ErrInvalidReclamation},
		{"a window above the market's most", func() error {
			msg := w.createMsg(5)
			msg.Reclamation = &deploymentv1.DeploymentReclamation{MinWindow: 720*time.Hour + 1}
			return w.create(msg)
		}, ErrInvalidReclamation},
	} {
		t.Run("refused: "+tc.name, func(t *testing.T) {
			refused(t, tc.do(), tc.want)
		})
	}
	w.sound(t)
}

func TestUaktIsAPriceDenominationToo(t *testing.T) {
	w := newWorld(t)
	msg := w.createMsg(5)
	msg.Groups[0].Resources[0].Price.Denom = "uakt"
	msg.Deposit.Amount = sdk.NewInt64Coin("uakt", 500_000)
	succeeds(t, w.create(msg))
}

func TestAnOwnerWithoutTheCoinsCreatesNothing(t *testing.T) {
	w := newWorld(t)
	w.escrow.fund(w.tenant, "uact", 1)
	if err := w.create(w.createMsg(5)); err == nil {
		t.Fatal("created without coins")
	}
	if _, found, err := w.k.GetDeployment(w.ctx, w.id(5)); found || err != nil {
		t.Errorf("found %v, %v", found, err)
	}
}
