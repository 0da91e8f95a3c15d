package market

import (
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"cosmossdk.io/errors"
)

// event is what happens to an order, a bid or a lease.
type event string

const (
	accept  event = "accept"  // the tenant chooses the bid
	lose    event = "lose"    // the tenant chooses another bid
	reclaim event = "reclaim" // the provider gives notice
	end     event = "end"     // tenant or provider closes it
	dry     event = "dry"     // the deployment's account cannot pay
)

// law says what each state becomes by each event; what is not in the table is
// refused.
type law[S comparable] map[S]map[event]S

// The state machines of the module. They are never changed.
var (
	orderLaw = law[marketv1beta5.Order_State]{
		marketv1beta5.OrderOpen:   {accept: marketv1beta5.OrderActive, end: marketv1beta5.OrderClosed},
		marketv1beta5.OrderActive: {end: marketv1beta5.OrderClosed},
	}
	bidLaw = law[marketv1beta5.Bid_State]{
		marketv1beta5.BidOpen:   {accept: marketv1beta5.BidActive, lose: marketv1beta5.BidLost, end: marketv1beta5.BidClosed},
		marketv1beta5.BidActive: {end: marketv1beta5.BidClosed},
	}
	leaseLaw = law[marketv1.Lease_State]{
		marketv1.LeaseActive:     {reclaim: marketv1.LeaseReclaiming, end: marketv1.LeaseClosed, dry: marketv1.LeaseInsufficientFunds},
		marketv1.LeaseReclaiming: {end: marketv1.LeaseClosed, dry: marketv1.LeaseInsufficientFunds},
	}
)

// next answers what a state becomes by an event.
func (l law[S]) next(from S, e event) (S, error) {
	if to, ok := l[from][e]; ok {
		return to, nil
	}
	return from, errors.Wrapf(ErrInternal, "state is %v, cannot %s", from, e)
}

// live says that a state has a way on.
func (l law[S]) live(s S) bool {
	return len(l[s]) > 0
}
