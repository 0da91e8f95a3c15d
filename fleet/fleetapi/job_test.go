package fleetapi

import (
	"errors"
	"strings"
	"testing"
)

// TestJobLaw is the whole table: rows are states, columns what they may become,
// in the order of JobStates.
func TestJobLaw(t *testing.T) {
	for state, row := range map[JobState]string{
		Queued:     "xxxxxxxx",
		InProgress: "-xxx-xxx",
		Succeeded:  "--------",
		Failed:     "--------",
		Rejected:   "--------",
		TimedOut:   "--------",
		Canceled:   "--------",
		Removed:    "--------",
		"":         "--------",
		"DONE":     "--------",
	} {
		for i, to := range JobStates() {
			want := row[i] == 'x'
			got, err := state.Move(to)
			switch {
			case state.CanBecome(to) != want:
				t.Errorf("%s can become %s: %v, want %v", state, to, !want, want)
			case want && (got != to || err != nil):
				t.Errorf("%s.Move(%s) = %s, %v", state, to, got, err)
			case !want:
				move, ok := errors.AsType[*JobMoveError](err)
				if got != state || !ok || move.From != state || move.To != to || !strings.Contains(err.Error(), string(to)) {
					t.Errorf("%s.Move(%s) = %s, %v", state, to, got, err)
				}
			}
		}
		if state.CanBecome("DONE") || state.CanBecome("") {
			t.Errorf("%s can become what is no state", state)
		}
	}
}

func TestFinalStates(t *testing.T) {
	for _, s := range JobStates() {
		if want := s != Queued && s != InProgress; s.Final() != want {
			t.Errorf("%s is final: %v, want %v", s, s.Final(), want)
		}
	}
	if JobState("DONE").Final() {
		t.Error("what is no state is final")
	}
}
