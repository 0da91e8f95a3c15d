package ownership_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/device/ownership"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// in is a claim in each state, by ada, with bob as the other one.
func in(state ownership.State) ownership.Claim {
	c := ownership.Claim{State: state}
	if state.Owned() {
		c.Owner, c.Since = "ada", now
	}
	if state == ownership.Transferring || state == ownership.Accepting {
		c.Offer, c.OfferUntil = "sealed", now.Add(ownership.OfferLife)
	}
	if state == ownership.Claiming || state == ownership.Accepting {
		c.Claimant, c.Until = "bob", now.Add(ownership.FailSafe)
	}
	return c
}

// TestTable says, for each state and move, where it leads; "-" is refused. The
// moves of who begins and confirms are bob's, those of the owner ada's.
func TestTable(t *testing.T) {
	table := map[ownership.State]string{
		//                       start     confirm undo         expire       offer        withdraw lapse   release  retire
		ownership.Unclaimed:    "claiming  -       -            -            -            -        -       -        retired",
		ownership.Claiming:     "claiming  claimed unclaimed    unclaimed    -            -        -       -        retired",
		ownership.Claimed:      "-         -       -            -            transferring -        -       released retired",
		ownership.Transferring: "accepting -       -            -            -            claimed  claimed released retired",
		ownership.Accepting:    "accepting claimed transferring transferring -            -        -       -        retired",
		ownership.Released:     "claiming  -       -            -            -            -        -       -        retired",
		ownership.Retired:      "-         -       -            -            -            -        -       -        -",
	}
	if len(table) != len(ownership.States()) {
		t.Fatal("the table of the test lacks a state")
	}
	for _, state := range ownership.States() {
		want := strings.Fields(table[state])
		for i, move := range ownership.Moves() {
			account := "bob"
			if slices.Contains([]ownership.Move{ownership.Offer, ownership.Withdraw, ownership.Release}, move) {
				account = "ada"
			}
			after, err := in(state).Next(move, account, "new", now)
			got := string(after.State)
			if err != nil {
				got = "-"
				if after != in(state) {
					t.Errorf("%s, refused %s: claim became %+v", state, move, after)
				}
			}
			if got != want[i] {
				t.Errorf("%s, %s: %s, want %s (%v)", state, move, got, want[i], err)
			}
			if err != nil {
				continue
			}
			if after.State.Owned() != (after.Owner != "") {
				t.Errorf("%s, %s: %+v has an owner where none is, or the reverse", state, move, after)
			}
			if move == ownership.Confirm && after.Owner != "bob" {
				t.Errorf("%s, confirmed by bob: owner is %q", state, after.Owner)
			}
		}
	}
}

func TestOnlyThoseConcernedMove(t *testing.T) {
	for _, state := range ownership.States() {
		for _, move := range []ownership.Move{ownership.Confirm, ownership.Undo, ownership.Offer, ownership.Withdraw, ownership.Release} {
			for _, account := range []string{"eve", ""} {
				if after, err := in(state).Next(move, account, "new", now); err == nil {
					t.Errorf("%s, %s by %q: %+v", state, move, account, after)
				}
			}
		}
	}
	for _, state := range []ownership.State{ownership.Claiming, ownership.Accepting} {
		if after, err := in(state).Next(ownership.Start, "eve", "", now); err == nil {
			t.Errorf("%s, begun by eve too: %+v", state, after)
		}
	}
}

func TestMovesThatWereDoneAreDoneAgainWithoutEffect(t *testing.T) {
	claimed := in(ownership.Claimed)
	if after, err := claimed.Next(ownership.Confirm, "ada", "", now.Add(time.Hour)); err != nil || after != claimed {
		t.Errorf("confirmed twice: %+v, %v", after, err)
	}
	claiming := in(ownership.Claiming)
	if after, err := claiming.Next(ownership.Start, "bob", "", now.Add(time.Minute)); err != nil || after != claiming {
		t.Errorf("begun twice: %+v, %v", after, err)
	}
}

func TestSettle(t *testing.T) {
	for _, tc := range []struct {
		name  string
		state ownership.State
		after time.Duration
		want  ownership.State
	}{
		{"a claim in time stays", ownership.Claiming, ownership.FailSafe - 1, ownership.Claiming},
		{"a claim that ran out is undone", ownership.Claiming, ownership.FailSafe, ownership.Unclaimed},
		{"a buyer who ran out leaves the offer", ownership.Accepting, ownership.FailSafe, ownership.Transferring},
		{"an offer in time stays", ownership.Transferring, ownership.OfferLife - 1, ownership.Transferring},
		{"an offer that lapsed leaves the seller", ownership.Transferring, ownership.OfferLife, ownership.Claimed},
		{"buyer and offer end together", ownership.Accepting, ownership.OfferLife, ownership.Claimed},
		{"an end set by a clock that was wrong is over", ownership.Claiming, -2 * ownership.FailSafe, ownership.Unclaimed},
		{"one set by a clock that was ahead a little stays", ownership.Claiming, -ownership.FailSafe / 2, ownership.Claiming},
		{"a claim is for good", ownership.Claimed, 100 * 365 * 24 * time.Hour, ownership.Claimed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, moves := in(tc.state).Settle(now.Add(tc.after))
			if got.State != tc.want || (len(moves) > 0) != (tc.want != tc.state) || got.Owner != in(tc.state).Owner {
				t.Errorf("%+v by %v, want %s", got, moves, tc.want)
			}
			if again, more := got.Settle(now.Add(tc.after)); again != got || len(more) > 0 {
				t.Errorf("settled twice: %+v by %v", again, more)
			}
		})
	}
}
