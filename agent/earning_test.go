package agent

import (
	"bytes"
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/hosting"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/agent/ownerpage/letting"
	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/relay"
)

func TestTheOwnerIsToldWhatTheBoxWaitsFor(t *testing.T) {
	working := func() hosting.Status {
		return hosting.Status{
			Relays: []relay.RelayState{{Phase: relay.Waiting}, {Phase: relay.Up}},
			Bidding: bidding.Status{
				Reached: true, Surveyed: true, Registered: true, Balance: map[string]int64{"uakt": 5},
				Capacity: offer.Room{CPU: 4000, Memory: 4 << 30, Storage: 40 << 30},
			},
		}
	}
	for _, tc := range []struct {
		name    string
		offline bool
		change  func(*hosting.Status)
		want    letting.State
		says    bool
	}{
		{"nothing is wrong", false, func(*hosting.Status) {}, letting.Open, false},
		{"no internet comes first", true, func(s *hosting.Status) { s.Fault = "it is starting" }, letting.NoInternet, false},
		{"parts that do not start", false, func(s *hosting.Status) { s.Fault = "open the disks: no" }, letting.Unable, true},
		{"no chain", false, func(s *hosting.Status) { s.Bidding.Reached = false }, letting.NoChain, false},
		{"no relay", false, func(s *hosting.Status) { s.Relays = s.Relays[:1] }, letting.NoRelay, false},
		{"paused", false, func(s *hosting.Status) { s.Bidding.Draining = true }, letting.Paused, false},
		{"no coins", false, func(s *hosting.Status) { s.Bidding.Balance = map[string]int64{"uakt": 0} }, letting.NoCoins, false},
		{"not asked about coins yet", false, func(s *hosting.Status) {
			s.Bidding.Balance, s.Bidding.Surveyed, s.Bidding.Registered = nil, false, false
		}, letting.Registering, false},
		{"not registered", false, func(s *hosting.Status) { s.Bidding.Registered = false }, letting.Registering, false},
		{"a lease", false, func(s *hosting.Status) { s.Leases = make([]bidding.Lease, 1) }, letting.Working, false},
		{"sick, with a lease", false, func(s *hosting.Status) { s.Leases, s.Sick = make([]bidding.Lease, 1), "no runtime" }, letting.Working, true},
		{"no memory left", false, func(s *hosting.Status) {
			s.Leases, s.Bidding.Leased = make([]bidding.Lease, 1), offer.Room{Memory: 4 << 30}
		}, letting.Full, false},
		{"bids take the rest", false, func(s *hosting.Status) {
			s.Leases, s.Bidding.Reserved = make([]bidding.Lease, 1), offer.Room{CPU: 3950}
		}, letting.Full, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := working()
			tc.change(&s)
			if got, why := hostingState(s, !tc.offline); got != tc.want || (why != "") != tc.says {
				t.Errorf("got %s, %q; want %s", got, why, tc.want)
			}
		})
	}
}

func TestTheOwnerHearsTheNewestFirst(t *testing.T) {
	a, stop := start(t, t.TempDir(), bootlog.Handover{}, new(bytes.Buffer))
	defer stop()
	for range 20 {
		a.event(hosting.EventWon, nil)
	}
	a.event(hosting.EventEnded, nil)
	a.event("boot_confirmed", nil)
	later := time.Now().Add(time.Hour)
	got := a.hostingEvents(hosting.Status{Trouble: []lease.Event{{At: later, Reason: "OOMKilled"}, {At: later, Reason: "Started"}}})
	if len(got) != 16 || got[0].What != letting.OutOfMemory || got[1].What != letting.LeaseEnded || got[2].What != letting.LeaseWon {
		t.Errorf("events are %+v", got)
	}
}

func TestTheOwnerSeesWhatALeaseUses(t *testing.T) {
	uses := []hosting.Use{{LeaseUsage: hosting.LeaseUsage{Lease: "l1", MemoryBytes: new(1.9)}, Requests: 2, Refused: 3, Denied: 4}}
	got := useOf(uses, "l1")
	if *got.Memory != 1 || got.CPUSeconds != nil || got.Requests != 2 || got.Refused != 3 || got.Denied != 4 {
		t.Errorf("got %+v", got)
	}
	if got := useOf(uses, "l2"); got != (letting.Use{}) {
		t.Errorf("of a lease that was not measured is known %+v", got)
	}
}

func TestFleetIsToldNoMoreEarningsThanAreKnown(t *testing.T) {
	lease := func(denom string, price int64) bidding.Lease {
		return bidding.Lease{Price: akash.Price{Denom: denom, Amount: akash.NewDec(price)}}
	}
	known := func() hosting.Status {
		return hosting.Status{
			Leases: []bidding.Lease{lease("uact", 3), lease("uact", 4), lease("uold", 1)},
			Bidding: bidding.Status{
				Surveyed: true, Blocks: 1000, Earned: map[string]int64{"uact": 50, "uakt": 60},
				Prices: offer.Policy{Worth: map[string]offer.Money{"uact": 1, "unew": 1}},
			},
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*hosting.Status)
		want   []sampling.Earning
		fails  bool
	}{
		{"all is known", func(*hosting.Status) {}, []sampling.Earning{
			{Denom: "uact", Paid: new(int64(50)), Month: new(int64(7000))},
			{Denom: "uakt", Paid: new(int64(60)), Month: new(int64(0))},
			{Denom: "unew", Paid: new(int64(0)), Month: new(int64(0))},
			{Denom: "uold", Paid: new(int64(0)), Month: new(int64(1000))},
		}, false},
		{"how long a month is, is not known", func(s *hosting.Status) { s.Bidding.Blocks = 0 }, []sampling.Earning{
			{Denom: "uact", Paid: new(int64(50))}, {Denom: "uakt", Paid: new(int64(60))}, {Denom: "unew", Paid: new(int64(0))},
		}, false},
		{"the chain was not asked yet", func(s *hosting.Status) { s.Bidding.Surveyed = false }, nil, false},
		{"nothing works", func(s *hosting.Status) { s.Fault = "it is starting" }, nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := known()
			tc.change(&s)
			got, err := earnings(s)
			if diff := cmp.Diff(tc.want, got); diff != "" || (err != nil) != tc.fails {
				t.Errorf("%v, %s", err, diff)
			}
		})
	}
}

func TestAmountsBeyondAllBoundsAreTheLargest(t *testing.T) {
	if got := whole(new(big.Int).Lsh(big.NewInt(1), 80)); got != math.MaxInt64 {
		t.Errorf("2^80 is %d", got)
	}
	if got := whole(big.NewInt(7)); got != 7 {
		t.Errorf("7 is %d", got)
	}
}
