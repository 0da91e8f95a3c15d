package market

import (
	"cmp"
	"context"
	"fmt"

	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"cosmossdk.io/errors"
)

// Invariants checks what must hold after every message: the records agree with
// each other (see validateRecords), every offer is a bid's, the indexes are those of the records, a bid
// holds a deposit if and only if it is open or active, a lease has an open
// payment if and only if it has not ended. It reads the whole state: it is for
// tests and for operators, not for blocks.
func (k *Keeper) Invariants(ctx context.Context) error {
	state, err := k.ExportGenesis(ctx)
	if err != nil {
		return err
	}
	if err := ValidateGenesis(state); err != nil {
		return err
	}
	offers, err := under(ctx, k.offers.Iterate, nil)
	if err != nil {
		return err
	}
	for _, bid := range state.Bids {
		offers = offers[len(bid.ResourcesOffer):]
	}
	if len(offers) > 0 {
		return errors.Wrapf(ErrInternal, "there are %d entries of offers without a bid", len(offers))
	}
	return cmp.Or(k.validateEscrow(ctx, state.Bids, state.Leases),
		validateIndexes(ctx, k.orders), validateIndexes(ctx, k.bids), validateIndexes(ctx, k.leases))
}

func (k *Keeper) validateEscrow(ctx context.Context, bids []marketv1beta5.Bid, leases []marketv1.Lease) error {
	for _, bid := range bids {
		account, err := k.escrow.GetAccount(ctx, bidAccount(bid.ID))
		if err != nil {
			return fmt.Errorf("read account of bid %s: %w", bidText(bid.ID), err)
		}
		if open := account.State.State == escrowtypesv1.StateOpen; open != bidLaw.live(bid.State) {
			return errors.Wrapf(ErrInternal, "bid %s is %s and its account is %s", bidText(bid.ID), bid.State, account.State.State)
		}
	}
	for _, lease := range leases {
		payment, err := k.escrow.GetPayment(ctx, leasePayment(lease.ID))
		if err != nil {
			return fmt.Errorf("read payment of lease %s: %w", leaseText(lease.ID), err)
		}
		if open := payment.State.State == escrowtypesv1.StateOpen; open != leaseLaw.live(lease.State) {
			return errors.Wrapf(ErrInternal, "lease %s is %s and its payment is %s", leaseText(lease.ID), lease.State, payment.State.State)
		}
	}
	return nil
}

// validateIndexes compares the indexes of a table with what its records say.
func validateIndexes[V any](ctx context.Context, r *records[V]) error {
	for _, each := range r.Indexes.IndexesList() {
		i, ok := each.(*index[V])
		if !ok {
			return errors.Wrapf(ErrInternal, "index is a %T", each)
		}
		want := make(map[string]bool)
		err := r.Walk(ctx, nil, func(key []byte, v V) (bool, error) {
			lead, err := i.lead(v)
			want[string(append(lead, key...))] = true
			return false, err
		})
		if err != nil {
			return err
		}
		have := 0
		err = i.keys.Walk(ctx, nil, func(key []byte) (bool, error) {
			if have++; !want[string(key)] {
				return true, errors.Wrapf(ErrInternal, "index has key %x of no record", key)
			}
			return false, nil
		})
		if err != nil {
			return err
		}
		if have != len(want) {
			return errors.Wrapf(ErrInternal, "index has %d keys of %d records", have, len(want))
		}
	}
	return nil
}

// match is an order with what grew from it.
type match struct {
	order  marketv1beta5.Order
	bids   []marketv1beta5.Bid
	leases map[string]marketv1.Lease // by the text of their ids
}

// validateRecords checks that ids are valid and unique, that each record is
// well-formed, and that they belong together:
//
//   - the orders of a group are numbered from 1 and only the last may be live;
//   - an open order has no active or lost bid and no live lease;
//   - an active order has one active bid, no open bid, and a live lease;
//   - a closed order has no live bid and no live lease;
//   - a lease has a bid of the same id and price, active as long as it lives;
//   - a lost bid has a lease on its order that won.
func validateRecords(orders []marketv1beta5.Order, bids []marketv1beta5.Bid, leases []marketv1.Lease) error {
	matches := make(map[string]*match, len(orders))
	var sequence []string // of the keys, for errors that are the same each time
	for _, order := range orders {
		if err := validateOrder(order); err != nil {
			return err
		}
		id := orderText(order.ID)
		if matches[id] != nil {
			return errors.Wrapf(ErrInternal, "order %s is there twice", id)
		}
		matches[id] = &match{order: order, leases: make(map[string]marketv1.Lease)}
		sequence = append(sequence, id)
	}
	seen := make(map[string]bool, len(bids))
	for _, bid := range bids {
		id := bidText(bid.ID)
		m := matches[orderText(orderOf(bid.ID))]
		if m == nil {
			return errors.Wrapf(ErrNoOrderForBid, "bid %s", id)
		}
		if seen[id] {
			return errors.Wrapf(ErrInternal, "bid %s is there twice", id)
		}
		seen[id] = true
		if err := validateBid(bid, m.order); err != nil {
			return err
		}
		m.bids = append(m.bids, bid)
	}
	for _, lease := range leases {
		id := leaseText(lease.ID)
		if !seen[id] {
			return errors.Wrapf(ErrInternal, "lease %s has no bid", id)
		}
		m := matches[orderText(orderOf(marketv1.BidID(lease.ID)))]
		if _, twice := m.leases[id]; twice {
			return errors.Wrapf(ErrInternal, "lease %s is there twice", id)
		}
		if err := validateLease(lease); err != nil {
			return err
		}
		m.leases[id] = lease
	}
	for _, id := range sequence {
		m := matches[id]
		if before := m.order.ID; before.OSeq > 1 {
			before.OSeq--
			earlier := matches[orderText(before)]
			if earlier == nil {
				return errors.Wrapf(ErrInternal, "order %s has none before it", id)
			}
			if orderLaw.live(earlier.order.State) {
				return errors.Wrapf(ErrInternal, "order %s has one before it that is %s", id, earlier.order.State)
			}
		}
		if err := m.validate(); err != nil {
			return err
		}
	}
	return nil
}

// validate checks one order against its bids and leases.
func (m *match) validate() error {
	id := orderText(m.order.ID)
	if len(m.bids) > MaxOrderBids {
		return errors.Wrapf(ErrInternal, "order %s has %d bids", id, len(m.bids))
	}
	var open, active, lost int
	for _, bid := range m.bids {
		switch bid.State {
		case marketv1beta5.BidOpen:
			open++
		case marketv1beta5.BidActive:
			active++
		case marketv1beta5.BidLost:
			lost++
		case marketv1beta5.BidClosed, marketv1beta5.BidInvalid:
		}
		lease, leased := m.leases[bidText(bid.ID)]
		if !leased {
			if bid.State == marketv1beta5.BidActive {
				return errors.Wrapf(ErrNoLeaseForBid, "bid %s is active", bidText(bid.ID))
			}
			continue
		}
		if leaseLaw.live(lease.State) != (bid.State == marketv1beta5.BidActive) {
			return errors.Wrapf(ErrInternal, "lease %s is %s and its bid %s", leaseText(lease.ID), lease.State, bid.State)
		}
		if bid.State == marketv1beta5.BidOpen || bid.State == marketv1beta5.BidLost {
			return errors.Wrapf(ErrInternal, "lease %s has a bid that is %s", leaseText(lease.ID), bid.State)
		}
		if lease.Price.Denom != bid.Price.Denom || !lease.Price.Amount.Equal(bid.Price.Amount) {
			return errors.Wrapf(ErrInternal, "lease %s is at %s and its bid at %s", leaseText(lease.ID), lease.Price, bid.Price)
		}
	}
	if len(m.leases) > 1 {
		return errors.Wrapf(ErrInternal, "order %s has %d leases", id, len(m.leases))
	}
	if lost > 0 && len(m.leases) == 0 {
		return errors.Wrapf(ErrInternal, "order %s has lost bids and no lease", id)
	}
	wrong := false
	switch m.order.State {
	case marketv1beta5.OrderOpen:
		wrong = active > 0 || lost > 0 || len(m.leases) > 0
	case marketv1beta5.OrderActive:
		wrong = active != 1 || open > 0
	case marketv1beta5.OrderClosed:
		wrong = active > 0 || open > 0
	case marketv1beta5.OrderInvalid:
		wrong = true
	}
	if wrong {
		return errors.Wrapf(ErrInternal, "order %s is %s with %d open, %d active and %d lost bids and %d leases",
			id, m.order.State, open, active, lost, len(m.leases))
	}
	return nil
}

func validateOrder(order marketv1beta5.Order) error {
	if err := validateOrderID(order.ID); err != nil {
		return err
	}
	if _, err := orderPrice(order.Spec); err != nil {
		return errors.Wrapf(err, "order %s", orderText(order.ID))
	}
	if !orderLaw.live(order.State) && order.State != marketv1beta5.OrderClosed {
		return errors.Wrapf(ErrInternal, "order %s is %s", orderText(order.ID), order.State)
	}
	return nil
}

func validateBid(bid marketv1beta5.Bid, order marketv1beta5.Order) error {
	if err := validateBidID(bid.ID); err != nil {
		return err
	}
	if bid.ID.Provider == bid.ID.Owner {
		return errors.Wrapf(ErrSameAccount, "bid %s", bidText(bid.ID))
	}
	if err := checkPrice(bid.Price, order); err != nil {
		return fmt.Errorf("bid %s: %w", bidText(bid.ID), err)
	}
	if err := validateOffer(bid.ResourcesOffer); err != nil {
		return fmt.Errorf("bid %s: %w", bidText(bid.ID), err)
	}
	if _, known := marketv1beta5.Bid_State_name[int32(bid.State)]; known && bid.State != marketv1beta5.BidInvalid {
		return nil
	}
	return errors.Wrapf(ErrInternal, "bid %s is %s", bidText(bid.ID), bid.State)
}

// validateLease checks that a lease has a height and a reason of its end if and
// only if it ended, and a deadline if and only if it is or was reclaimed.
func validateLease(lease marketv1.Lease) error {
	id := leaseText(lease.ID)
	if err := validatePrice(lease.Price); err != nil {
		return fmt.Errorf("lease %s: %w", id, err)
	}
	if r := lease.Reclamation; r != nil && (r.StartedAt == 0) != (r.Deadline == 0) {
		return errors.Wrapf(ErrInternal, "lease %s has half a reclamation", id)
	}
	noticed := lease.Reclamation != nil && lease.Reclamation.Deadline != 0
	bad := false
	switch lease.State {
	case marketv1.LeaseActive:
		bad = lease.ClosedOn != 0 || lease.Reason != marketv1.LeaseClosedInvalid || noticed
	case marketv1.LeaseReclaiming:
		bad = lease.ClosedOn != 0 || lease.Reason != marketv1.LeaseClosedInvalid || !noticed
	case marketv1.LeaseClosed:
		bad = lease.ClosedOn < lease.CreatedAt || lease.Reason == marketv1.LeaseClosedInvalid ||
			lease.Reason >= firstNetworkReason
	case marketv1.LeaseInsufficientFunds:
		bad = lease.ClosedOn < lease.CreatedAt || lease.Reason != marketv1.LeaseClosedReasonInsufficientFunds
	case marketv1.LeaseInvalid:
		bad = true
	}
	if _, known := marketv1.Lease_State_name[int32(lease.State)]; bad || !known {
		return errors.Wrapf(ErrInternal, "lease %s is %s, closed on %d for %s", id, lease.State, lease.ClosedOn, lease.Reason)
	}
	return nil
}
