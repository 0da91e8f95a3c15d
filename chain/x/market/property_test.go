package market

import (
	"context"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"cosmossdk.io/math"

	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
)

// Whatever messages come in whatever order, by whomever: the records agree, a
// message that is refused changes nothing, and every coin is in a purse or in
// an account.
func TestAnySequenceOfMessagesKeepsTheInvariants(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t)
		providers := []string{w.provider, person("rival"), person("third")}
		for _, p := range providers[1:] {
			w.register(p)
		}
		params := DefaultParams()
		params.OrderMaxBids = 2
		if err := w.k.SetParams(w.ctx, params); err != nil {
			r.Fatal(err)
		}
		w.escrow.fund(w.ctx, w.tenant, coin("uact", 10_000_000))
		supply := w.supply(r)

		// Mostly a bid that is open or active, so that many messages succeed.
		bidID := func(r *rapid.T) marketv1.BidID {
			var live []marketv1.BidID
			every, err := w.k.bids.under(w.ctx, nil)
			if err != nil {
				r.Fatal(err)
			}
			for _, b := range every {
				if bidLaw.live(b.State) {
					live = append(live, b.ID)
				}
			}
			if len(live) > 0 && rapid.IntRange(0, 9).Draw(r, "stray") > 0 {
				return rapid.SampledFrom(live).Draw(r, "bid")
			}
			return marketv1.BidID{
				Owner:    w.tenant,
				DSeq:     rapid.Uint64Range(1, 2).Draw(r, "dseq"),
				GSeq:     rapid.Uint32Range(1, 2).Draw(r, "gseq"),
				OSeq:     rapid.Uint32Range(1, 3).Draw(r, "oseq"),
				Provider: rapid.SampledFrom(providers).Draw(r, "provider"),
			}
		}
		act := func(name string, do func(ctx context.Context, r *rapid.T) error) func(*rapid.T) {
			return func(r *rapid.T) {
				err := w.try(func(ctx context.Context) error { return do(ctx, r) })
				r.Logf("%s: %v %v", name, err, w.told)
			}
		}
		r.Repeat(map[string]func(*rapid.T){
			"": func(r *rapid.T) {
				if err := w.k.Invariants(w.ctx); err != nil {
					r.Fatal(err)
				}
				if now := w.supply(r); !now.Equal(supply) {
					r.Fatalf("there are %s coins, %s at first", now, supply)
				}
			},
			"CreateDeployment": act("CreateDeployment", func(ctx context.Context, r *rapid.T) error {
				dseq := rapid.Uint64Range(1, 2).Draw(r, "dseq")
				if _, found, err := w.deployment.GetGroup(ctx, deploymentv1.GroupID{Owner: w.tenant, DSeq: dseq, GSeq: 1}); err != nil || found {
					return orErr(err, errGroupState)
				}
				var reclamation *deploymentv1.DeploymentReclamation
				if rapid.Bool().Draw(r, "reclamation") {
					reclamation = &deploymentv1.DeploymentReclamation{MinWindow: *hours(1)}
				}
				return w.deployment.create(ctx, w.tenant, dseq, coin("uact", rapid.Int64Range(0, 200_000).Draw(r, "deposit")), reclamation, groupSpec(), groupSpec())
			}),
			"CreateBid": act("CreateBid", func(ctx context.Context, r *rapid.T) error {
				order, found, err := w.k.lastOrder(ctx, deploymentv1.GroupID{
					Owner: w.tenant,
					DSeq:  rapid.Uint64Range(1, 2).Draw(r, "dseq"),
					GSeq:  rapid.Uint32Range(1, 2).Draw(r, "gseq"),
				})
				if err != nil || !found {
					return orErr(err, ErrOrderNotFound)
				}
				msg := bidMsg(order.ID, rapid.SampledFrom(providers).Draw(r, "provider"))
				msg.Price.Amount = math.LegacyNewDecWithPrec(rapid.Int64Range(0, 2050).Draw(r, "price"), 1)
				if rapid.Bool().Draw(r, "window") {
					msg.ReclamationWindow = hours(1)
				}
				_, err = w.msgs.CreateBid(ctx, msg)
				return err
			}),
			"CreateLease": act("CreateLease", func(ctx context.Context, r *rapid.T) error {
				_, err := w.msgs.CreateLease(ctx, &marketv1beta5.MsgCreateLease{BidID: bidID(r)})
				return err
			}),
			"CloseLease": act("CloseLease", func(ctx context.Context, r *rapid.T) error {
				_, err := w.msgs.CloseLease(ctx, &marketv1beta5.MsgCloseLease{ID: marketv1.LeaseID(bidID(r))})
				return err
			}),
			"CloseBid": act("CloseBid", func(ctx context.Context, r *rapid.T) error {
				_, err := w.msgs.CloseBid(ctx, &marketv1beta5.MsgCloseBid{ID: bidID(r), Reason: marketv1.LeaseClosedReasonUnstable})
				return err
			}),
			"WithdrawLease": act("WithdrawLease", func(ctx context.Context, r *rapid.T) error {
				_, err := w.msgs.WithdrawLease(ctx, &marketv1beta5.MsgWithdrawLease{ID: marketv1.LeaseID(bidID(r))})
				return err
			}),
			"LeaseStartReclaim": act("LeaseStartReclaim", func(ctx context.Context, r *rapid.T) error {
				_, err := w.msgs.LeaseStartReclaim(ctx, &marketv1beta5.MsgLeaseStartReclaim{
					ID: marketv1.LeaseID(bidID(r)), Reason: marketv1.LeaseClosedReasonDecommission,
				})
				return err
			}),
			"StopGroup": act("StopGroup", func(ctx context.Context, r *rapid.T) error {
				to := rapid.SampledFrom([]deploymentv1beta4.Group_State{deploymentv1beta4.GroupPaused, deploymentv1beta4.GroupClosed}).Draw(r, "to")
				return w.deployment.stop(ctx, groupOf(orderOf(bidID(r))), to)
			}),
			"StartGroup": act("StartGroup", func(ctx context.Context, r *rapid.T) error {
				return w.deployment.start(ctx, groupOf(orderOf(bidID(r))))
			}),
			"time": func(r *rapid.T) { w.pass(rapid.SampledFrom([]int64{1, 10, 100, 4000}).Draw(r, "blocks")) },
		})
	})
}

// supply is all there is, in purses and accounts, of all denominations: the
// debt of an overdrawn account is below zero, what it owes is unsettled.
func (w *world) supply(t interface{ Fatal(...any) }) math.LegacyDec {
	sum := math.LegacyZeroDec()
	purses, err := w.escrow.purses.Iterate(w.ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	amounts, err := purses.Values()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range amounts {
		sum = sum.Add(math.LegacyNewDecFromInt(a))
	}
	accounts, err := w.escrow.accounts.Iterate(w.ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	all, err := accounts.Values()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		sum = sum.Add(a.State.Funds[0].Amount)
	}
	payments, err := w.escrow.payments.Iterate(w.ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	flows, err := payments.Values()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range flows {
		sum = sum.Add(p.State.Balance.Amount).Add(p.State.Unsettled.Amount)
	}
	return sum
}

// commit ends a block: iterators over what is not committed are slow.
func (w *world) commit(t testing.TB) {
	t.Helper()
	store, ok := w.ctx.MultiStore().(storetypes.CommitMultiStore)
	if !ok {
		t.Fatal("the world's store cannot commit")
	}
	store.Commit()
}

// BenchmarkCreateBid shows that a bid costs the same however many leases run.
func BenchmarkCreateBid(b *testing.B) {
	for _, leases := range []uint64{10, 10_000} {
		b.Run(fmt.Sprintf("%d open leases", leases), func(b *testing.B) {
			w := newWorld(b)
			w.escrow.fund(w.ctx, w.provider, coin("uakt", 10_000_000_000))
			for dseq := range leases {
				w.leased(b, dseq+1, 1_000_000)
				if dseq%100 == 99 {
					w.commit(b)
				}
			}
			order := w.deploy(b, 1_000_000, 1_000_000)
			w.commit(b)
			msg := bidMsg(order, w.provider)
			for b.Loop() {
				ctx, _ := w.ctx.CacheContext() // dropped, so that each bid is the first
				if _, err := w.msgs.CreateBid(ctx, msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
