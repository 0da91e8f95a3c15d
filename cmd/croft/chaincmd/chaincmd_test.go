package chaincmd

import (
	"encoding/json"
	"iter"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
)

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name, typed string
		want        time.Time
	}{
		{"a date with its zone is that instant", "2027-01-31T01:00:00+01:00", time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)},
		{"a duration is counted from now", "720h", now.Add(30 * 24 * time.Hour)},
		{"a number is seconds since 1970", "1800000000", time.Unix(1800000000, 0)},
		{"words are no time", "tomorrow", time.Time{}},
		{"nothing is no time", "0", time.Time{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseTime(tc.typed, now)
			if (err != nil) != tc.want.IsZero() || !got.Equal(tc.want) {
				t.Errorf("parseTime(%q) = %v, %v; want %v", tc.typed, got, err, tc.want)
			}
		})
	}
}

func TestParseReason(t *testing.T) {
	for _, tc := range []struct {
		name, typed string
		want        marketv1.LeaseClosedReason
	}{
		{"a word is enough", "unstable", marketv1.LeaseClosedReason_lease_closed_reason_unstable},
		{"the whole name of the chain does", "lease_closed_reason_decommission", marketv1.LeaseClosedReason_lease_closed_reason_decommission},
		{"a tenant's reason is no provider's", "owner", 0},
		{"the network's reason is no provider's", "insufficient_funds", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseReason(tc.typed)
			if got != tc.want || (tc.want == 0) != (croft.KindOf(err) == croft.KindUsage) {
				t.Errorf("parseReason(%q) = %v, %v; want %v", tc.typed, got, err, tc.want)
			}
		})
	}
}

func coins(n int) iter.Seq2[*basev1beta1.Coin, error] {
	return func(yield func(*basev1beta1.Coin, error) bool) {
		for range n {
			if !yield(&basev1beta1.Coin{Denom: "uakt", Amount: "1"}, nil) {
				return
			}
		}
	}
}

func TestListsAreOnePage(t *testing.T) {
	const one, end = `{"denom":"uakt","amount":"1"}`, `],"pagination":{"next_key":null,"total":"0"}}`
	for _, tc := range []struct {
		name      string
		has, most int
		want      string
	}{
		{"an empty list is a list", 0, 0, `{"coins":[` + end},
		{"without limit everything is there", 2, 0, `{"coins":[` + one + `,` + one + end},
		{"a limit ends the list", 9, 1, `{"coins":[` + one + end},
	} {
		t.Run(tc.name, func(t *testing.T) {
			page, err := collect("coins", tc.most, coins(tc.has))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := json.Marshal(page); err != nil || string(got) != tc.want {
				t.Errorf("got %s, %v; want %s", got, err, tc.want)
			}
		})
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s has no short text", cmd.CommandPath())
		}
		if cmd.RunE == nil || cmd.Args == nil {
			t.Errorf("%s does nothing, or takes any arguments", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	for _, cmd := range New() {
		walk(cmd)
	}
}
