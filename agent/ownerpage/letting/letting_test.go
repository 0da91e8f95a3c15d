package letting

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestLine(t *testing.T) {
	lease := func(denom string, amount int64) Lease { return Lease{Month: Coin{denom, amount}} }
	for _, tc := range []struct {
		name           string
		r              Report
		line, sentence string
	}{
		{"nothing is known", Report{}, "Waiting for the internet", stateWords[NoInternet].sentence},
		{"a state of a later version", Report{State: "dancing"}, "Waiting for the internet", stateWords[NoInternet].sentence},
		{"no tenants", Report{State: Open}, "Open for work", "Nobody rents any of its room at the moment."},
		{"one tenant", Report{State: Working, Tenants: 1, Leases: []Lease{lease("uakt", 1_239_999)}}, "Working for 1 tenant · earns about 1.23 AKT a month", "There is room for more."},
		{"two leases in one denom", Report{State: Full, Tenants: 1, Leases: []Lease{lease("uakt", 1_000_000), lease("uakt", 2_000_000)}}, "Working for 1 tenant · earns about 3 AKT a month", "There is no room for more."},
		{"leases in two denoms", Report{State: Working, Tenants: 2, Leases: []Lease{lease("uakt", 1), lease("uact", 12_345_678)}}, "Working for 2 tenants · earns about 0.000001 AKT and 12.3 ACT a month", "There is room for more."},
		{"prices that are not known", Report{State: Working, Tenants: 3, Leases: []Lease{lease("", 5), lease("uakt", 0), lease("uakt", -1)}}, "Working for 3 tenants", "There is room for more."},
		{"the same leases in another order", Report{State: Working, Tenants: 1, Leases: []Lease{{Since: time.Unix(2, 0), Month: Coin{"uact", 1}}, {Since: time.Unix(1, 0), Month: Coin{"uakt", 1}}}}, "Working for 1 tenant · earns about 0.000001 AKT and 0.000001 ACT a month", "There is room for more."},
		{"leases of nobody", Report{State: Working, Leases: []Lease{{}}}, "Working for 1 tenant", "There is room for more."},
		{"leases run on while the chain is away", Report{State: NoChain, Tenants: 1, Leases: []Lease{{}}}, "Working for 1 tenant", stateWords[NoChain].sentence},
		{"a reason of its own", Report{State: Paused, Why: "The box is being updated."}, "Paused", "The box is being updated."},
		{"the sum of all money is no debt", Report{State: Working, Tenants: 1, Leases: []Lease{lease("uakt", math.MaxInt64), lease("uakt", 1)}}, "Working for 1 tenant · earns about 9220000000000 AKT a month", "There is room for more."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if w := tc.r.Words(); w.Line != tc.line || w.Sentence != tc.sentence {
				t.Errorf("line %q, sentence %q", w.Line, w.Sentence)
			}
		})
	}
}

func TestEveryStateHasWords(t *testing.T) {
	for _, s := range []State{NoInternet, NoChain, NoRelay, NoCoins, Registering, Open, Working, Full, Paused, Unable} {
		if w := stateWords[s]; w.short == "" || w.sentence == "" {
			t.Errorf("state %q has no words", s)
		}
	}
	for _, e := range []Happening{LeaseWon, LeaseEnded, NotFetched, OutOfMemory, KeepsFailing} {
		if eventWords[e] == "" {
			t.Errorf("event %q has no words", e)
		}
	}
	for _, why := range []string{"unready", "mismatch", "unclear", "room", "price", "funds", "chain", "journal", "conditions"} {
		if refusalWords(why) == refusalWords("") {
			t.Errorf("refusal %q has no words", why)
		}
	}
}

func TestAmountsInWords(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{coinsWords(Coin{"uakt", 1_500_000}), "1.50 AKT"},
		{coinsWords(Coin{"ibc/170C677610AC31DF0904FFE09CD3B5C657492170E7E52372E48756B71E56F2F1", 12}), "12 ibc/170C677610AC31DF090…"},
		{coinsWords(Coin{"u", 12}), "12 u"},
		{coinsWords(Coin{"uUSD", 12}), "12 uUSD"},
		{coinsWords(), ""},
		{coinsWords(Coin{"uakt", 1}, Coin{"uact", 2_000_000}, Coin{"x", 3}), "0.000001 AKT, 2.00 ACT and 3 x"},
		{roughWords(Coin{"uakt", 999}), "0.000999 AKT"},
		{roughWords(Coin{"uakt", 1_239_999}, Coin{"uact", 123_999_999}), "1.23 AKT and 123 ACT"},
		{coresWords(0), "0"},
		{coresWords(250), "0.25"},
		{coresWords(10_000), "10"},
		{countCores(1000), "1 core"},
		{roomWords(Room{}), ""},
		{roomWords(Room{CPU: 1500, Memory: 512 << 20, GPUs: 1}), "1.5 cores, 1 GPU and 512 MB memory"},
		{strings.Join(useWords(Use{Requests: 3}), " · "), ""},
		{strings.Join(useWords(Use{CPUSeconds: new(int64(-1)), Received: new(int64(1))}), " · "), "less than a minute of processor time"},
		{
			leaseSection([]Lease{{Month: Coin{"uakt", 2_000_000}, Use: Use{
				CPUSeconds: new(int64(7300)), Memory: new(int64(512 << 20)), Storage: new(int64(3 << 30)), Received: new(int64(1_500_000_000)), Sent: new(int64(2_000_000)),
			}}}).Rows[0].More,
			"about 2 AKT a month · uses 512 MB of memory and 3.0 GB of storage · 2 hours of processor time · 1.5 GB received, 2 MB sent",
		},
		{minuteWords(time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))), "2 January, 02:04 UTC"},
		{relayWords(Relay{Up: true}), "Connected"},
		{relayWords(Relay{Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}), "Not connected since 2 January, 03:04 UTC"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
}

func TestPageShowsWhatItHoldsAndNoMore(t *testing.T) {
	at := time.Date(2026, 11, 21, 14, 5, 0, 0, time.UTC)
	r := Report{State: Working, Account: "akash1…", Leases: make([]Lease, maxLeases+2), Events: make([]Event, 3), Relays: make([]Relay, maxRelays+1)}
	r.Events[1] = Event{at, LeaseWon}
	for range 30 {
		r.WhyNot = append(r.WhyNot, Refusal{At: at, Why: "room", Sentence: strings.Repeat("x", 2*maxNote)}, Refusal{Why: "price", Orders: 2})
	}
	p := r.Words().Page()
	if len(p.Rooms) != 0 || len(p.Facts) != 1 || len(p.Sections) != 4 {
		t.Fatalf("page = %+v", p)
	}
	leases, events, refused, relays := p.Sections[0], p.Sections[1], p.Sections[2], p.Sections[3]
	if len(leases.Rows) != maxLeases || leases.Note != "And 2 more." || leases.Rows[0].Name != sayLeaseUndated {
		t.Errorf("leases = %+v", leases)
	}
	if len(events.Rows) != 1 || events.Rows[0] != (Row{Name: "21 November, 14:05 UTC", Text: "A tenant rented room."}) {
		t.Errorf("events = %+v", events)
	}
	if len(refused.Rows) != 2 || refused.Rows[0].Text != "Not enough room was free (30 orders)." || refused.Rows[1].Text != "The tenant would have paid too little (60 orders)." ||
		len(refused.Rows[0].More) > maxNote+len(sayNewest)+2 || refused.Rows[1].More != "" {
		t.Errorf("refused = %+v", refused)
	}
	if len(relays.Rows) != maxRelays {
		t.Errorf("relays = %+v", relays)
	}
}

func TestWordsLeaveTheReportAlone(t *testing.T) {
	r := Report{
		Leases: []Lease{{Since: time.Unix(2, 0)}, {Since: time.Unix(1, 0)}},
		WhyNot: []Refusal{{Why: "a"}, {Why: "a"}}, Relays: []Relay{{Name: " a\n"}}, Events: []Event{{What: "b"}},
	}
	w := r.Words()
	if !w.Leases[0].Since.Equal(time.Unix(1, 0)) || w.WhyNot[0].Orders != 2 || w.Relays[0].Name != "a" || len(w.Events) != 0 {
		t.Errorf("words = %+v", w)
	}
	if !r.Leases[0].Since.Equal(time.Unix(2, 0)) || r.WhyNot[0].Orders != 0 || r.Relays[0].Name != " a\n" || len(r.Events) != 1 {
		t.Errorf("the report was changed: %+v", r)
	}
}

func TestRoom(t *testing.T) {
	r := Report{Capacity: Room{CPU: 4000, Memory: 8 << 30}, Leased: Room{CPU: 1500, Memory: math.MaxInt64}, Offered: Room{CPU: 500, Memory: math.MaxInt64}}
	p := r.Words().Page()
	want := []RoomRow{{"CPU", "1.5 of 4 cores let, 0.5 kept for offers, 2 free", 37}, {"Memory", "8589934591 of 8.0 GB let, 8589934591 GB kept for offers, 0 MB free", 100}}
	if len(p.Rooms) != 2 || p.Rooms[0] != want[0] || p.Rooms[1] != want[1] {
		t.Errorf("rooms = %+v", p.Rooms)
	}
}
