package quote

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
)

func price(t testing.TB, amount, denom string) akash.Price {
	t.Helper()
	d, err := akash.ParseDec(amount)
	if err != nil {
		t.Fatal(err)
	}
	return akash.Price{Denom: denom, Amount: d}
}

func TestCost(t *testing.T) {
	for _, tc := range []struct {
		name   string
		price  string
		block  time.Duration
		period time.Duration
		want   string
	}{
		{"a block every six seconds", "100", 6 * time.Second, Hour, "0.060000 ACT"},
		{"a fraction of a unit for each block", "0.5", time.Second, Hour, "0.001800 ACT"},
		{"a month of blocks of a second", "1000", time.Second, Month, "2629.800000 ACT"},
		{"a price beyond 64 bits", "100000000000000000000", time.Second, Hour, "360000000000000000.000000 ACT"},
		{"half a millionth is rounded up", "0.5", time.Hour, Hour, "0.000001 ACT"},
		{"less than half is rounded down", "0.499999999999999999", time.Hour, Hour, "0.000000 ACT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Money(Cost(price(t, tc.price, "uact"), Pace{Block: tc.block}, tc.period)); got != tc.want {
				t.Errorf("cost = %s, want %s", got, tc.want)
			}
		})
	}
	if got := Money(price(t, "-1500000", "uakt")); got != "-1.500000 AKT" {
		t.Errorf("debt = %s", got)
	}
	if got := Money(price(t, "1.5", "gold")); got != "1.500000000000000000 gold" {
		t.Errorf("another denom = %s", got)
	}
}

func TestRunway(t *testing.T) {
	escrow := func(state escrowtypesv1.State, settled int64, funds ...akash.Price) *escrowtypesv1.Account {
		a := &escrowtypesv1.Account{State: &escrowtypesv1.AccountState{State: state, SettledAt: settled}}
		for _, f := range funds {
			a.State.Funds = append(a.State.Funds, &escrowtypesv1.Balance{Denom: f.Denom, Amount: f.Amount.Wire()})
		}
		return a
	}
	pace := Pace{Height: 1100, Time: time.Unix(1_800_000_000, 0), Block: 6 * time.Second}
	open := escrowtypesv1.State_open
	for _, tc := range []struct {
		name   string
		escrow *escrowtypesv1.Account
		rates  []akash.Price
		want   string
	}{
		{"what was used since the settlement is taken off", escrow(open, 1000, price(t, "4570000", "uact")), []akash.Price{price(t, "100", "uact")}, "runs out in 3 days 4 hours"},
		{"rates add up", escrow(open, 1100, price(t, "6000", "uact")), []akash.Price{price(t, "4", "uact"), price(t, "6", "uact")}, "runs out in 1 hour"},
		{"the denom that ends first counts", escrow(open, 1100, price(t, "6000", "uact"), price(t, "10", "uakt")), []akash.Price{price(t, "1", "uact"), price(t, "1", "uakt")}, "runs out in 1 minute"},
		{"funds in another denom do not pay", escrow(open, 1100, price(t, "6000", "uakt")), []akash.Price{price(t, "1", "uact")}, "has run out"},
		{"nothing is drawn", escrow(open, 1100, price(t, "6000", "uact")), nil, "does not run out"},
		{"it would last for centuries", escrow(open, 1100, price(t, "600000000000000000000", "uact")), []akash.Price{price(t, "0.000000000000000001", "uact")}, "does not run out"},
		{"it is used up already", escrow(open, 1, price(t, "6000", "uact")), []akash.Price{price(t, "100", "uact")}, "has run out"},
		{"it is closed", escrow(escrowtypesv1.State_closed, 1, price(t, "6000", "uact")), nil, "has run out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := RunwayOf(tc.escrow, tc.rates, pace)
			if err != nil || r.String() != tc.want {
				t.Errorf("runway = %s, %v, want %s", r, err, tc.want)
			}
		})
	}
}

// The account must pay for every block of the runway, and not for one more.
func TestTheRunwayIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Int64Range(1, 1_000_000).Draw(t, "rate")
		funds := rapid.Int64Range(0, 1_000_000_000).Draw(t, "funds")
		since := rapid.Int64Range(0, 1000).Draw(t, "since")
		a := &escrowtypesv1.Account{State: &escrowtypesv1.AccountState{
			State: escrowtypesv1.State_open, SettledAt: 5000 - since,
			Funds: []*escrowtypesv1.Balance{{Denom: "uact", Amount: akash.NewDec(funds).Wire()}},
		}}
		r, err := RunwayOf(a, []akash.Price{{Denom: "uact", Amount: akash.NewDec(rate)}}, Pace{Height: 5000, Block: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if total := rate * (since + r.Blocks); r.Blocks > 0 && total > funds || rate*(since+r.Blocks+1) <= funds {
			t.Fatalf("%d blocks of %d after %d with %d", r.Blocks, rate, since, funds)
		}
	})
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		76*time.Hour + 59*time.Minute: "3 days 4 hours", 24 * time.Hour: "1 day", 61 * time.Second: "1 minute 1 second",
		400 * Day: "1 year 35 days", 24*time.Hour + time.Minute: "1 day", 10: "less than a second",
	} {
		if got := Words(d); got != want {
			t.Errorf("Words(%s) = %q, want %q", d, got, want)
		}
	}
}

func TestPaceOf(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	p, err := PaceOf(100, at, 1100, at.Add(6117*time.Second))
	if err != nil || p.Block != 6117*time.Millisecond || p.Height != 1100 {
		t.Errorf("pace = %+v, %v", p, err)
	}
	if _, err := PaceOf(100, at, 100, at); err == nil {
		t.Error("one block has a pace")
	}
}
