// Package ownership is whose a box is, how that changes, and what shows that it is
// somebody's ([Secret]), as a table and pure functions. Package device stores it and
// acts on it.
//
//	claim, moves := claim.Settle(now)                       // what time did
//	after, err := claim.Next(ownership.Start, account, "", now)
//
// A box has one owner at most. A claim that was begun and not confirmed within
// [FailSafe] is undone; nothing a box does is a move.
package ownership

import (
	"errors"
	"fmt"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// State is where a box stands between its owners.
type State string

// The states.
const (
	Unclaimed    State = "unclaimed"    // nobody's. Transitions to: claiming, retired
	Claiming     State = "claiming"     // somebody showed its secret; ten minutes. Transitions to: claimed, unclaimed, retired
	Claimed      State = "claimed"      // has an owner. Transitions to: transferring, released, retired
	Transferring State = "transferring" // has an owner who sells it. Transitions to: accepting, claimed, released, retired
	Accepting    State = "accepting"    // the buyer showed the seller's code; ten minutes. Transitions to: claimed, transferring, retired
	Released     State = "released"     // its owner gave it up. Transitions to: claiming, retired
	Retired      State = "retired"      // taken out of the fleet, for good
)

// States is every state, in the order of a box's life.
func States() []State {
	return []State{Unclaimed, Claiming, Claimed, Transferring, Accepting, Released, Retired}
}

// Move is what people, or time, do to a claim.
type Move string

// The moves.
const (
	Start    Move = "start"    // show a secret of the box, or the seller's
	Confirm  Move = "confirm"  // "This is mine", by who started
	Undo     Move = "undo"     // by who started
	Expire   Move = "expire"   // by time: of what was started
	Offer    Move = "offer"    // by the owner
	Withdraw Move = "withdraw" // by the owner
	Lapse    Move = "lapse"    // by time: of the offer
	Release  Move = "release"  // by the owner
	Retire   Move = "retire"   // by the staff
)

// Moves is every move.
func Moves() []Move {
	return []Move{Start, Confirm, Undo, Expire, Offer, Withdraw, Lapse, Release, Retire}
}

// law is which state follows; what is not in it is refused. A box that was
// given up and then claimed by half is unclaimed: its secrets are spent either
// way. While a buyer is accepting, the seller can no longer withdraw.
var law = map[State]map[Move]State{
	Unclaimed:    {Start: Claiming, Retire: Retired},
	Released:     {Start: Claiming, Retire: Retired},
	Claiming:     {Confirm: Claimed, Undo: Unclaimed, Expire: Unclaimed, Retire: Retired},
	Claimed:      {Offer: Transferring, Release: Released, Retire: Retired},
	Transferring: {Start: Accepting, Withdraw: Claimed, Lapse: Claimed, Release: Released, Retire: Retired},
	Accepting:    {Confirm: Claimed, Undo: Transferring, Expire: Transferring, Retire: Retired},
}

// Owned reports whether a box in this state has an owner.
func (s State) Owned() bool { return s == Claimed || s == Transferring || s == Accepting }

// FailSafe is how long a claim may be half done.
const FailSafe = 10 * time.Minute

// OfferLife is how long a seller's code is good.
const OfferLife = 7 * 24 * time.Hour

// Claim is whose a box is. Its zero value is of no box.
type Claim struct {
	State      State
	Owner      string             // account; empty unless State.Owned
	Since      time.Time          // when Owner became it
	Claimant   string             // account that is claiming or accepting
	Until      time.Time          // when that ends
	Offer      enroll.SealedClaim // the seller's code
	OfferUntil time.Time          // when that ends
}

// MoveError reports a move that is not in the table.
type MoveError struct {
	From State
	Move Move
}

func (e *MoveError) Error() string { return fmt.Sprintf("box is %s, cannot %s", e.From, e.Move) }

// Settle applies what time has done to a claim since it was stored, and says
// what that was. An end that is further away than twice its life was set by a clock
// that was wrong, and is over.
func (c Claim) Settle(now time.Time) (Claim, []Move) {
	var done []Move
	for _, timer := range []struct {
		move Move
		end  func(Claim) time.Time
		life time.Duration
	}{
		{Expire, func(c Claim) time.Time { return c.Until }, FailSafe},
		{Lapse, func(c Claim) time.Time { return c.OfferUntil }, OfferLife},
	} {
		end := timer.end(c)
		over := !end.IsZero() && (!now.Before(end) || end.Sub(now) > 2*timer.life)
		if over && law[c.State][timer.move] != "" {
			c = c.enter(law[c.State][timer.move])
			done = append(done, timer.move)
		}
	}
	return c, done
}

// Next is the claim after a move by an account; offer is the sealed code of
// [Offer]. It does not depend on anything else. A move that was done already,
// by the same account, is done again without effect: answers get lost.
func (c Claim) Next(move Move, account string, offer enroll.SealedClaim, now time.Time) (Claim, error) {
	switch move {
	case Start:
		if (c.State == Claiming || c.State == Accepting) && c.Claimant == account {
			return c, nil
		}
		if c.State == Claiming || c.State == Accepting {
			return c, busy
		}
		if c.State.Owned() && c.Owner == account {
			return c, alreadyYours
		}
	case Confirm:
		if c.State == Claimed && c.Owner == account {
			return c, nil
		}
		if c.Claimant != account || account == "" {
			return c, notStarted
		}
	case Undo:
		if c.Claimant != account || account == "" {
			return c, notStarted
		}
	case Offer, Withdraw, Release:
		if c.Owner != account || account == "" {
			return c, ErrNoBox
		}
		if c.State == Accepting {
			return c, buyerThere
		}
	default: // by time, or by the staff: nobody's account counts
	}
	to, ok := law[c.State][move]
	if !ok {
		return c, &croft.Error{Kind: croft.KindRefused, Err: &MoveError{From: c.State, Move: move}}
	}
	after := c.enter(to)
	switch move {
	case Start:
		after.Claimant, after.Until = account, now.Add(FailSafe)
	case Confirm:
		after.Owner, after.Since = account, now
	case Offer:
		after.Offer, after.OfferUntil = offer, now.Add(OfferLife)
	default: // nothing to remember but the state
	}
	return after, nil
}

// enter is the claim in another state, without what has no meaning there.
func (c Claim) enter(to State) Claim {
	c.State, c.Claimant, c.Until = to, "", time.Time{}
	if to != Transferring && to != Accepting {
		c.Offer, c.OfferUntil = "", time.Time{}
	}
	if !to.Owned() {
		c.Owner, c.Since = "", time.Time{}
	}
	return c
}

// ErrNoBox reports that there is no such box, or none of the account's.
var ErrNoBox = &croft.Error{
	Kind: croft.KindNotFound, Err: errors.New("there is no such box"),
	Remedy: "check the address, or claim the box first",
}

var (
	busy = &croft.Error{
		Kind: croft.KindRefused, Err: errors.New("somebody else is claiming this box"),
		Remedy: "try again in ten minutes",
	}
	alreadyYours = &croft.Error{Kind: croft.KindRefused, Err: errors.New("the box is yours already")}
	notStarted   = &croft.Error{
		Kind: croft.KindRefused, Err: errors.New("the claim of this box has run out"),
		Remedy: "scan the code on the box again",
	}
	buyerThere = &croft.Error{
		Kind: croft.KindRefused, Err: errors.New("the buyer is taking the box over at this moment"),
		Remedy: "wait ten minutes",
	}
)
