package market

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
)

// wantPurse compares what an account has outside of escrow.
func (w *world) wantPurse(t *testing.T, owner, denom string, want int64) {
	t.Helper()
	if got := w.escrow.purse(w.ctx, owner, denom); !got.Equal(math.NewInt(want)) {
		t.Errorf("%s has %s%s, want %d", owner, got, denom, want)
	}
}

const (
	start   = 1_000_000_000 // uakt that a provider has at first
	deposit = 500_000       // uakt that a bid holds
)

func TestCreateLeaseAcceptsOneBidAndTheOthersLose(t *testing.T) {
	w := newWorld(t)
	rival, gone := person("rival"), person("gone")
	w.register(rival)
	w.register(gone)
	order := w.deploy(t, 1001, 5_000_000)
	mine, theirs, closed := w.bid(t, order, w.provider), w.bid(t, order, rival), w.bid(t, order, gone)
	if err := w.closeBid(closed); err != nil {
		t.Fatal(err)
	}
	w.pass(1)
	w.lease(t, mine)

	w.wantEvents(t, "EventLeaseCreated")
	w.wantStates(t, mine, "active", "active", "active")
	w.wantStates(t, theirs, "active", "lost", "")
	w.wantStates(t, closed, "active", "closed", "")
	w.wantPurse(t, w.provider, "uakt", start-deposit)
	w.wantPurse(t, rival, "uakt", start)
	w.wantPurse(t, gone, "uakt", start)
	payment, err := w.escrow.GetPayment(w.ctx, leasePayment(marketv1.LeaseID(mine)))
	if err != nil {
		t.Fatal(err)
	}
	if payment.State.State != escrowtypesv1.StateOpen || !payment.State.Rate.Amount.Equal(price("50").Amount) || payment.State.Owner != w.provider {
		t.Errorf("payment is %v, want open at the bid's price for the provider", payment.State)
	}
}

func TestCreateLeaseIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, w *world, id *marketv1.BidID)
		want error
	}{
		{"when the order does not exist", func(_ *testing.T, _ *world, id *marketv1.BidID) { id.OSeq = 9 }, ErrOrderNotFound},
		{"when the bid does not exist", func(_ *testing.T, w *world, id *marketv1.BidID) { id.Provider = person("nobody") }, ErrBidNotFound},
		{"when the bid is closed", func(t *testing.T, w *world, id *marketv1.BidID) {
			if err := w.closeBid(*id); err != nil {
				t.Fatal(err)
			}
		}, ErrBidNotOpen},
		{"when the order has a lease", func(t *testing.T, w *world, id *marketv1.BidID) { w.lease(t, *id) }, ErrOrderNotOpen},
		{"when the group is not open", func(t *testing.T, w *world, id *marketv1.BidID) {
			group := groupOf(orderOf(*id))
			w.must(t, func(ctx context.Context) error { return w.deployment.set(ctx, group, deploymentv1beta4.GroupPaused) })
		}, ErrGroupNotOpen},
		{"when the group does not exist", func(t *testing.T, w *world, id *marketv1.BidID) {
			group := groupOf(orderOf(*id))
			w.must(t, func(ctx context.Context) error { return w.deployment.groups.Remove(ctx, groupText(group)) })
		}, ErrGroupNotFound},
		{"when the deployment's account is not open", func(t *testing.T, w *world, id *marketv1.BidID) {
			key := accountKey(deploymentAccount(marketv1.LeaseID(*id)))
			account, err := w.escrow.accounts.Get(w.ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			account.State.State = escrowtypesv1.StateOverdrawn
			if err := w.escrow.accounts.Set(w.ctx, key, account); err != nil {
				t.Fatal(err)
			}
		}, ErrGroupNotOpen},
		{"when the bseq is not 0", func(_ *testing.T, _ *world, id *marketv1.BidID) { id.BSeq = 1 }, ErrInvalidBid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			id := w.bid(t, w.deploy(t, 1001, 5_000_000), w.provider)
			tc.do(t, w, &id)
			err := w.try(func(ctx context.Context) error {
				_, err := w.msgs.CreateLease(ctx, &marketv1beta5.MsgCreateLease{BidID: id})
				return err
			})
			w.wantError(t, err, tc.want)
		})
	}
}

func TestCloseLeaseByTheTenantOpensAFreshOrderAtOnce(t *testing.T) {
	w := newWorld(t)
	id := w.leased(t, 1001, 5_000_000)
	w.pass(171)
	if err := w.closeLease(id); err != nil {
		t.Fatal(err)
	}
	w.wantEvents(t, "EventLeaseClosed lease_closed_owner", "EventBidClosed", "EventOrderClosed", "EventOrderCreated")
	w.wantStates(t, marketv1.BidID(id), "closed", "closed", "closed")
	w.wantPurse(t, w.provider, "uakt", start)
	w.wantPurse(t, w.provider, "uact", 8550)
	if lease := w.mustLease(t, id); lease.ClosedOn != 271 || lease.Reason != marketv1.LeaseClosedOwner {
		t.Errorf("lease closed on %d for %s, want 271 for its owner", lease.ClosedOn, lease.Reason)
	}
	next := orderOf(marketv1.BidID(id))
	next.OSeq = 2
	if order, found, err := w.k.GetOrder(w.ctx, next); err != nil || !found || order.State != marketv1beta5.OrderOpen || order.CreatedAt != 271 {
		t.Errorf("order 2 is %v, %v, %v; want it open since 271", order.State, found, err)
	}
	group, _, err := w.deployment.GetGroup(w.ctx, groupOf(next))
	if err != nil || group.State != deploymentv1beta4.GroupOpen {
		t.Errorf("group is %s, %v, want it open", group.State, err)
	}
	w.wantError(t, w.closeLease(id), ErrLeaseNotActive)
	w.wantError(t, w.closeBid(marketv1.BidID(id)), ErrBidNotActive)
}

func TestCloseBidByTheProviderOnAnOpenBidReturnsTheDeposit(t *testing.T) {
	w := newWorld(t)
	id := w.bid(t, w.deploy(t, 1001, 5_000_000), w.provider)
	if err := w.closeBid(id); err != nil {
		t.Fatal(err)
	}
	w.wantEvents(t, "EventBidClosed")
	w.wantStates(t, id, "open", "closed", "")
	w.wantPurse(t, w.provider, "uakt", start)
}

func TestCloseBidByTheProviderOnAnActiveLeasePausesTheGroup(t *testing.T) {
	w := newWorld(t)
	id := w.leased(t, 1001, 5_000_000)
	w.pass(10)
	if err := w.closeBid(marketv1.BidID(id)); err != nil {
		t.Fatal(err)
	}
	w.wantEvents(t, "EventGroupPaused", "EventLeaseClosed lease_closed_reason_unstable", "EventBidClosed", "EventOrderClosed")
	w.wantStates(t, marketv1.BidID(id), "closed", "closed", "closed")
	w.wantPurse(t, w.provider, "uakt", start)
	w.wantPurse(t, w.provider, "uact", 500)
	next := orderOf(marketv1.BidID(id))
	next.OSeq = 2
	if _, found, err := w.k.GetOrder(w.ctx, next); found || err != nil {
		t.Errorf("there is an order 2 (%v, %v), want none before the group is started", found, err)
	}
	w.must(t, func(ctx context.Context) error { return w.deployment.start(ctx, groupOf(next)) })
	w.wantEvents(t, "EventOrderCreated")
	if order, found, err := w.k.GetOrder(w.ctx, next); err != nil || !found || order.State != marketv1beta5.OrderOpen {
		t.Errorf("order 2 is %s, %v, %v; want it open", order.State, found, err)
	}
}

func TestCloseBidOfALostBidIsRefused(t *testing.T) {
	w := newWorld(t)
	rival := person("rival")
	w.register(rival)
	order := w.deploy(t, 1001, 5_000_000)
	lost := w.bid(t, order, rival)
	w.lease(t, w.bid(t, order, w.provider))
	w.wantError(t, w.closeBid(lost), ErrBidNotActive)
	lost.Provider = person("nobody")
	w.wantError(t, w.closeBid(lost), ErrUnknownBid)
}

func TestWithdrawLeasePaysWhatIsDueAsOftenAsTheProviderLikes(t *testing.T) {
	w := newWorld(t)
	id := w.leased(t, 1001, 5_000_000)
	for i := range int64(3) {
		w.pass(10)
		if err := w.withdraw(id); err != nil {
			t.Fatal(err)
		}
		w.wantEvents(t)
		w.wantPurse(t, w.provider, "uact", 500*(i+1))
	}
	w.wantStates(t, marketv1.BidID(id), "active", "active", "active")
	id.OSeq = 2
	w.wantError(t, w.withdraw(id), ErrUnknownLease)
}

func TestReclamation(t *testing.T) {
	withWindow := func(msg *marketv1beta5.MsgCreateBid) { msg.ReclamationWindow = hours(1) }

	t.Run("the provider may close its bid only after notice and the window", func(t *testing.T) {
		w := newWorld(t)
		id := w.leased(t, 1001, 5_000_000, withWindow)
		w.wantError(t, w.closeBid(marketv1.BidID(id)), ErrReclaimNotStarted)
		if err := w.startReclaim(id); err != nil {
			t.Fatal(err)
		}
		w.wantEvents(t, "EventLeaseReclaimStarted lease_closed_reason_decommission")
		w.wantStates(t, marketv1.BidID(id), "active", "active", "reclaiming")
		now := w.ctx.BlockTime().Unix()
		want := marketv1.Reclamation{Window: *hours(1), StartedAt: now, Deadline: now + 3600, Reason: marketv1.LeaseClosedReasonDecommission}
		if got := *w.mustLease(t, id).Reclamation; got != want {
			t.Errorf("reclamation is %v, want %v", got, want)
		}
		w.wantError(t, w.startReclaim(id), ErrAlreadyReclaiming)
		w.pass(3599)
		w.wantError(t, w.closeBid(marketv1.BidID(id)), ErrWindowNotElapsed)
		w.pass(1)
		if err := w.closeBid(marketv1.BidID(id)); err != nil {
			t.Fatal(err)
		}
		w.wantStates(t, marketv1.BidID(id), "closed", "closed", "closed")
		w.wantPurse(t, w.provider, "uact", 3600*50)
	})
	t.Run("the tenant may close the lease at any time", func(t *testing.T) {
		for _, notice := range []bool{false, true} {
			w := newWorld(t)
			id := w.leased(t, 1001, 5_000_000, withWindow)
			if notice {
				if err := w.startReclaim(id); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.closeLease(id); err != nil {
				t.Fatal(err)
			}
			w.wantStates(t, marketv1.BidID(id), "closed", "closed", "closed")
			w.wantError(t, w.startReclaim(id), ErrLeaseNotActive)
		}
	})
	t.Run("the provider is paid as before while it reclaims", func(t *testing.T) {
		w := newWorld(t)
		id := w.leased(t, 1001, 5_000_000, withWindow)
		if err := w.startReclaim(id); err != nil {
			t.Fatal(err)
		}
		w.pass(7)
		if err := w.withdraw(id); err != nil {
			t.Fatal(err)
		}
		w.wantPurse(t, w.provider, "uact", 350)
	})
	t.Run("a lease without a window cannot be reclaimed", func(t *testing.T) {
		w := newWorld(t)
		w.wantError(t, w.startReclaim(w.leased(t, 1001, 5_000_000)), ErrNotReclaimable)
	})
	t.Run("a reclaiming lease runs out like any other", func(t *testing.T) {
		w := newWorld(t)
		id := w.leased(t, 1001, 500_000, withWindow)
		if err := w.startReclaim(id); err != nil {
			t.Fatal(err)
		}
		w.pass(20_000)
		if err := w.closeBid(marketv1.BidID(id)); err != nil {
			t.Fatal(err)
		}
		w.wantStates(t, marketv1.BidID(id), "closed", "closed", "insufficient_funds")
	})
}

func TestClosingAGroupClosesItsOrderBidsAndLease(t *testing.T) {
	for _, state := range []deploymentv1beta4.Group_State{deploymentv1beta4.GroupClosed, deploymentv1beta4.GroupPaused} {
		t.Run(state.String()+" with a lease", func(t *testing.T) {
			w := newWorld(t)
			id := w.leased(t, 1001, 5_000_000)
			w.pass(4)
			w.must(t, func(ctx context.Context) error {
				return w.deployment.stop(ctx, groupOf(orderOf(marketv1.BidID(id))), state)
			})
			w.wantEvents(t, "EventOrderClosed", "EventBidClosed", "EventLeaseClosed lease_closed_owner")
			w.wantStates(t, marketv1.BidID(id), "closed", "closed", "closed")
			w.wantPurse(t, w.provider, "uakt", start)
			w.wantPurse(t, w.provider, "uact", 200)
		})
		t.Run(state.String()+" with open bids", func(t *testing.T) {
			w := newWorld(t)
			rival := person("rival")
			w.register(rival)
			order := w.deploy(t, 1001, 5_000_000)
			w.bid(t, order, w.provider)
			w.bid(t, order, rival)
			w.must(t, func(ctx context.Context) error { return w.deployment.stop(ctx, groupOf(order), state) })
			w.wantEvents(t, "EventOrderClosed", "EventBidClosed", "EventBidClosed")
			w.wantPurse(t, w.provider, "uakt", start)
			w.wantPurse(t, rival, "uakt", start)
		})
	}
	t.Run("a group without a live order is left alone", func(t *testing.T) {
		w := newWorld(t)
		group := deploymentv1.GroupID{Owner: w.tenant, DSeq: 5, GSeq: 1}
		w.must(t, func(ctx context.Context) error { return w.k.OnGroupClosed(ctx, group, deploymentv1beta4.GroupClosed) })
		w.wantEvents(t)
	})
	t.Run("a group cannot be closed into open", func(t *testing.T) {
		w := newWorld(t)
		w.wantError(t, w.k.OnGroupClosed(w.ctx, groupOf(w.deploy(t, 1, 1_000_000)), deploymentv1beta4.GroupOpen), ErrInternal)
	})
}

func TestClosingADeploymentWhoseAccountIsClosedAlreadyClosesItsLeases(t *testing.T) {
	w := newWorld(t)
	id := w.leased(t, 1001, 5_000_000)
	w.pass(4)
	w.must(t, func(ctx context.Context) error {
		return w.deployment.close(ctx, deploymentv1.DeploymentID{Owner: w.tenant, DSeq: 1001})
	})
	w.wantEvents(t, "EventOrderClosed", "EventBidClosed", "EventLeaseClosed lease_closed_owner")
	w.wantStates(t, marketv1.BidID(id), "closed", "closed", "closed")
	w.wantPurse(t, w.provider, "uact", 200)
	w.wantPurse(t, w.tenant, "uact", 4_999_800)
}

// An account that runs dry is found by whichever message settles it first.
func TestAnAccountThatRunsDryClosesTheWholeDeployment(t *testing.T) {
	events := []string{
		"EventDeploymentClosed",
		"EventGroupClosed", "EventOrderClosed", "EventBidClosed", "EventLeaseClosed lease_closed_reason_insufficient_funds",
		"EventGroupClosed", "EventOrderClosed", "EventBidClosed",
	}
	for _, tc := range []struct {
		name string
		do   func(w *world, id marketv1.LeaseID) error
	}{
		{"found by WithdrawLease", func(w *world, id marketv1.LeaseID) error { return w.withdraw(id) }},
		{"found by CloseLease", func(w *world, id marketv1.LeaseID) error { return w.closeLease(id) }},
		{"found by CloseBid", func(w *world, id marketv1.LeaseID) error { return w.closeBid(marketv1.BidID(id)) }},
		{"found when the market settles before it closes a group", func(w *world, id marketv1.LeaseID) error {
			return w.try(func(ctx context.Context) error {
				return w.k.OnGroupClosed(ctx, groupOf(orderOf(marketv1.BidID(id))), deploymentv1beta4.GroupClosed)
			})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			funds := int64(500_000)
			w.escrow.fund(w.ctx, w.tenant, coin("uact", funds))
			w.must(t, func(ctx context.Context) error {
				return w.deployment.create(ctx, w.tenant, 7, coin("uact", funds), nil, groupSpec(), groupSpec())
			})
			leased := w.bid(t, marketv1.OrderID{Owner: w.tenant, DSeq: 7, GSeq: 1, OSeq: 1}, w.provider)
			open := w.bid(t, marketv1.OrderID{Owner: w.tenant, DSeq: 7, GSeq: 2, OSeq: 1}, w.provider)
			id := w.lease(t, leased)
			w.pass(10_001)
			if err := tc.do(w, id); err != nil {
				t.Fatal(err)
			}
			w.wantEvents(t, events...)
			w.wantStates(t, leased, "closed", "closed", "insufficient_funds")
			w.wantStates(t, open, "closed", "closed", "")
			w.wantPurse(t, w.provider, "uakt", start)
			if lease := w.mustLease(t, id); lease.ClosedOn != 10_101 || lease.Reason != marketv1.LeaseClosedReasonInsufficientFunds {
				t.Errorf("lease closed on %d for %s", lease.ClosedOn, lease.Reason)
			}
		})
	}
	t.Run("CreateLease is refused and leaves the state as it was", func(t *testing.T) {
		w := newWorld(t)
		w.escrow.fund(w.ctx, w.tenant, coin("uact", 500_000))
		w.must(t, func(ctx context.Context) error {
			return w.deployment.create(ctx, w.tenant, 7, coin("uact", 500_000), nil, groupSpec(), groupSpec())
		})
		leased := w.bid(t, marketv1.OrderID{Owner: w.tenant, DSeq: 7, GSeq: 1, OSeq: 1}, w.provider)
		open := w.bid(t, marketv1.OrderID{Owner: w.tenant, DSeq: 7, GSeq: 2, OSeq: 1}, w.provider)
		w.lease(t, leased)
		w.pass(10_001)
		err := w.try(func(ctx context.Context) error {
			_, err := w.msgs.CreateLease(ctx, &marketv1beta5.MsgCreateLease{BidID: open})
			return err
		})
		w.wantError(t, err, ErrGroupNotOpen)
		w.wantStates(t, leased, "active", "active", "active")
		w.wantStates(t, open, "open", "open", "")
	})
}

func TestAGroupHasOneLiveOrder(t *testing.T) {
	w := newWorld(t)
	id := w.deploy(t, 1, 1_000_000)
	w.wantError(t, w.k.CreateOrder(w.ctx, groupOf(id), groupSpec(), nil), ErrOrderExists)
}

func TestUpdateParamsIsForTheAuthorityAlone(t *testing.T) {
	w := newWorld(t)
	params := DefaultParams()
	params.OrderMaxBids = 7
	update := func(authority string) error {
		return w.try(func(ctx context.Context) error {
			_, err := w.msgs.UpdateParams(ctx, &marketv1beta5.MsgUpdateParams{Authority: authority, Params: params})
			return err
		})
	}
	w.wantError(t, update(w.tenant), sdkerrors.ErrUnauthorized)
	if err := update(person("gov")); err != nil {
		t.Fatal(err)
	}
	if got, err := w.k.GetParams(w.ctx); err != nil || got.OrderMaxBids != 7 {
		t.Errorf("order_max_bids is %d, %v; want 7", got.OrderMaxBids, err)
	}
}

// The gas of a message is what it reads and writes: it must not depend on how
// much else is going on.
func TestTheWorkOfAMessageDoesNotGrowWithTheNumberOfLeases(t *testing.T) {
	w := newWorld(t)
	measure := func(dseq uint64) map[string]uint64 {
		gas := make(map[string]uint64)
		step := func(name string, do func(ctx context.Context) error) {
			before := w.ctx.GasMeter().GasConsumed()
			if err := w.try(do); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			gas[name] = w.ctx.GasMeter().GasConsumed() - before
		}
		order := w.deploy(t, dseq, 1_000_000)
		msg := bidMsg(order, w.provider)
		step("CreateBid", func(ctx context.Context) error { _, err := w.msgs.CreateBid(ctx, msg); return err })
		step("CreateLease", func(ctx context.Context) error {
			_, err := w.msgs.CreateLease(ctx, &marketv1beta5.MsgCreateLease{BidID: msg.ID})
			return err
		})
		step("CloseLease", func(ctx context.Context) error {
			_, err := w.msgs.CloseLease(ctx, &marketv1beta5.MsgCloseLease{ID: marketv1.LeaseID(msg.ID)})
			return err
		})
		step("OnGroupClosed", func(ctx context.Context) error {
			return w.k.OnGroupClosed(ctx, groupOf(order), deploymentv1beta4.GroupClosed)
		})
		return gas
	}
	few := measure(90_001)
	for dseq := range uint64(100) {
		w.leased(t, 10_001+dseq, 1_000_000)
	}
	many := measure(90_002)
	for name, gas := range few {
		if diff := math.NewInt(int64(gas)).Sub(math.NewInt(int64(many[name]))).Abs(); diff.GT(math.NewInt(200)) {
			t.Errorf("%s costs %d gas alone and %d beside 100 leases", name, gas, many[name])
		}
	}
}

func TestStatesMoveOnlyAsTheTablesSay(t *testing.T) {
	if _, err := leaseLaw.next(marketv1.LeaseClosed, end); !errors.Is(err, ErrInternal) {
		t.Errorf("a closed lease was closed again: %v", err)
	}
	if _, err := bidLaw.next(marketv1beta5.BidActive, lose); !errors.Is(err, ErrInternal) {
		t.Errorf("an active bid lost: %v", err)
	}
	for _, s := range []fmt.Stringer{marketv1.LeaseClosed, marketv1.LeaseInsufficientFunds} {
		if leaseLaw.live(s.(marketv1.Lease_State)) {
			t.Errorf("lease state %s has a way on", s)
		}
	}
}

func coin(denom string, amount int64) sdk.Coin { return sdk.NewInt64Coin(denom, amount) }
