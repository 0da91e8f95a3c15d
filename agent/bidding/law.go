package bidding

import "fmt"

// State is where the box stands with one order. It is stored: never rename one.
type State string

// The states. Room is kept from Reserved on until the entry is final, or until
// the workload of an ended lease is gone.
const (
	Seen        State = "seen"        // an order without a decision; not stored. Transitions to: Reserved, Refused, Open, Leased
	Reserved    State = "reserved"    // room is kept, the bid leaves or is on its way. Transitions to: Open, Leased, Ended, Lost, Withdrawn, Refused
	Open        State = "open"        // the bid is in a block, the tenant may choose it. Transitions to: Withdrawing, Leased, Ended, Lost, Withdrawn
	Withdrawing State = "withdrawing" // the open bid is being taken back. Transitions to: Leased, Ended, Lost, Withdrawn
	Leased      State = "leased"      // the lease runs. Transitions to: Closing, Ended
	Closing     State = "closing"     // somebody here asked for the lease's end. Transitions to: Ended
	Ended       State = "ended"       // the lease is closed on the chain; workload and accounts still have to hear of it. Transitions to: Settled
	Settled     State = "settled"     // a lease that is over and accounted for; final
	Lost        State = "lost"        // the tenant chose another bid, or closed the order; final
	Withdrawn   State = "withdrawn"   // the bid was taken back; final
	Refused     State = "refused"     // no bid: the chain would not have it; final
)

// Event is what moves an entry on. All but ask_withdraw, ask_close, reserve and
// settle are facts read from the chain.
type Event string

// The events.
const (
	reserve     Event = "reserve"      // decided to bid; room is kept
	placed      Event = "placed"       // the bid is open on the chain
	refuse      Event = "refuse"       // the chain will not have the bid
	gone        Event = "gone"         // the order is closed, or went to another
	bidClosed   Event = "bid_closed"   // the bid is closed on the chain, without a lease
	askWithdraw Event = "ask_withdraw" // take the open bid back
	won         Event = "won"          // the lease is active on the chain
	askClose    Event = "ask_close"    // end the lease: owner, workload or manifest timeout
	leaseClosed Event = "lease_closed" // the lease is closed on the chain
	settle      Event = "settle"       // workload and accounts know that the lease is closed
)

// law says what each state becomes by each event; what is not in the table is
// refused. Facts only ever lead forward, so that events told twice, late or in
// the wrong order cannot undo anything.
var law = map[State]map[Event]State{
	Seen:        {reserve: Reserved, placed: Open, refuse: Refused, won: Leased},
	Reserved:    {placed: Open, refuse: Refused, gone: Lost, bidClosed: Withdrawn, won: Leased, leaseClosed: Ended},
	Open:        {askWithdraw: Withdrawing, gone: Lost, bidClosed: Withdrawn, won: Leased, leaseClosed: Ended},
	Withdrawing: {gone: Lost, bidClosed: Withdrawn, won: Leased, leaseClosed: Ended},
	Leased:      {askClose: Closing, leaseClosed: Ended},
	Closing:     {leaseClosed: Ended},
	Ended:       {settle: Settled},
}

// Next is the state after an event.
func (s State) Next(e Event) (State, error) {
	if to, ok := law[s][e]; ok {
		return to, nil
	}
	return s, &MoveError{From: s, Event: e}
}

// Final reports that a state has no way on.
func (s State) Final() bool { return len(law[s]) == 0 }

// live reports that there is or may be a lease in this state.
func (s State) live() bool { return s == Leased || s == Closing }

// MoveError reports an event that the table does not have for a state.
type MoveError struct {
	From  State
	Event Event
}

func (e *MoveError) Error() string {
	return fmt.Sprintf("order is %s: event %s means nothing there", e.From, e.Event)
}
