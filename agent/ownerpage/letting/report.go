// Package letting says to its owner what a box does and earns as a provider.
//
//	words := letting.Report{State: letting.Working, Tenants: 1, Leases: …}.Words()
//	fmt.Println(words.Line) // Working for 1 tenant · earns about 1.23 AKT a month
//	words.Page()            // all of it, for the owner page
//
// Everyone in the home network may read it, so it says how many tenants there
// are and never who they are or what they run: a [Report] has no place for that,
// and account addresses in sentences from elsewhere are not shown.
//
// It asks nobody, keeps nothing and makes no figures up: what is not known is
// left out. Its functions are pure, and take reports of any content. Money is in
// integers: a [Coin] is in base units of its denom, a price in millionths of the
// prices' currency.
package letting

import (
	"math"
	"regexp"
	"slices"
	"time"

	"github.com/croft-cloud/croft/agent/ownerpage/figures"
)

// Report is what the box does as a provider, at one instant. Its lists may be of
// any length: the first few are shown.
type Report struct {
	Network  string  `json:"network"`           // the marketplace where the box is a provider, e.g. "croft-1"
	State    State   `json:"state"`             // empty is [NoInternet]
	Why      string  `json:"-"`                 // what keeps the box from its work, a sentence; empty: the state says enough
	Account  string  `json:"account,omitempty"` // address of the provider, public on its chain; empty until its key is made
	Tenants  int     `json:"tenants"`           // that have a lease on the box
	Leases   []Lease `json:"leases,omitempty"`  // that run, in any order
	Capacity Room    `json:"capacity"`          // that the box lets in all
	Leased   Room    `json:"leased"`            // of it, what leases have; also one that is over and not cleared yet
	Offered  Room    `json:"offered"`           // of it, what is kept for offers that tenants have not answered
	Prices   *Prices `json:"prices,omitempty"`  // nil: not known

	Earned  []Coin `json:"earned,omitempty"`  // paid out to the box's account so far, by all leases ever
	Due     []Coin `json:"due,omitempty"`     // earned by leases and not paid out yet; none: not known
	Balance []Coin `json:"balance,omitempty"` // of the box's account, with what it was given for fees and deposits

	WhyNot []Refusal `json:"why_not,omitempty"` // orders that the box made no offer for, newest first
	Relays []Relay   `json:"relays,omitempty"`  // through which tenants come
	Events []Event   `json:"events,omitempty"`  // newest first
}

// State is how far the box is on its way to earning, in one word.
type State string

// The states.
const (
	NoInternet  State = "waiting_for_network"
	NoChain     State = "waiting_for_chain"
	NoRelay     State = "waiting_for_relay"
	NoCoins     State = "waiting_for_coins" // its account cannot pay fees and deposits
	Registering State = "registering"
	Open        State = "open" // for work; there is none
	Working     State = "working"
	Full        State = "full"        // works, and has no room for more
	Paused      State = "paused"      // lets no new leases in; those it has go on
	Unable      State = "cannot_work" // not without help; Report.Why says what to do
)

// Room is an amount of the box.
type Room struct {
	CPU     int64 `json:"cpu_millis"`     // thousandths of a core
	Memory  int64 `json:"memory_bytes"`   //
	Storage int64 `json:"storage_bytes"`  // of disk
	GPUs    int64 `json:"gpus,omitempty"` // of any model
}

// Lease is one lease that runs on the box.
type Lease struct {
	Since time.Time `json:"since"`
	Room  Room      `json:"room"`
	Month Coin      `json:"month"` // what it pays in a month at its price; no denom: not known
	Use   Use       `json:"use,omitzero"`
}

// Use is what a lease uses now, or has used and moved since it began. What is not
// known is nil, or 0 where it says so.
type Use struct {
	CPUSeconds *int64 `json:"cpu_seconds,omitempty"`
	Memory     *int64 `json:"memory_bytes,omitempty"`
	Storage    *int64 `json:"storage_bytes,omitempty"`
	Received   *int64 `json:"received_bytes,omitempty"`
	Sent       *int64 `json:"sent_bytes,omitempty"`

	Requests int64 `json:"requests,omitempty"`       // of its users by HTTP, since the box's program started; 0: none, or not known
	Refused  int64 `json:"refused,omitempty"`        // of its users' requests and connections; likewise
	Denied   int64 `json:"denied_packets,omitempty"` // that it sent where it may not; likewise
}

// Coin is an amount of base units.
type Coin struct {
	Denom  string `json:"denom"`
	Amount int64  `json:"amount"`
}

// Prices are what the box asks for a month, in millionths of Currency. What has
// no price is not offered.
type Prices struct {
	Currency string           `json:"currency"`      // e.g. "USD"
	CPU      int64            `json:"cpu"`           // per core
	Memory   int64            `json:"memory"`        // per GiB
	Storage  map[string]int64 `json:"storage"`       // per GiB, by class
	Endpoint int64            `json:"endpoint"`      // per name or port
	GPU      map[string]int64 `json:"gpu,omitempty"` // each, by "vendor/model"

	// Nothing is let for less than the power it takes.
	PowerWatts int64 `json:"power_watts,omitempty"` // of the whole box at full load
	PowerKWh   int64 `json:"power_kwh,omitempty"`   // price of a kilowatt-hour; 0: not known
}

// Refusal is why the box made no offer for an order, or for several.
type Refusal struct {
	At       time.Time `json:"at"`       // of the newest
	Why      string    `json:"why"`      // the kind, a word of agent/offer
	Sentence string    `json:"sentence"` // on the newest
	Orders   int       `json:"orders"`   // how many; 0 is 1
}

// Relay is one relay through which tenants reach the box.
type Relay struct {
	Name  string    `json:"name"`
	Up    bool      `json:"up"`
	Since time.Time `json:"since,omitzero"` // when Up became so; zero: not known
}

// Event is something that happened to a lease, worth a sentence.
type Event struct {
	At   time.Time `json:"at"`
	What Happening `json:"what"`
}

// Happening says what happened. One that is not below is not shown.
type Happening string

// The events.
const (
	LeaseWon     Happening = "lease_won"
	LeaseEnded   Happening = "lease_ended"
	NotFetched   Happening = "not_fetched"   // an image cannot be pulled
	OutOfMemory  Happening = "out_of_memory" // a program wanted more than its lease has
	KeepsFailing Happening = "keeps_failing" // a program ends again and again
)

// The most of each list that is shown.
const (
	maxLeases = 10
	maxWhyNot = 5
	maxRelays = 8
	maxEvents = 8
	maxNote   = 160 // characters of a sentence from elsewhere
)

// public is a copy of r that all may see: lines without control characters or
// addresses, refusals of a kind as one, lists of a bearable length. Leases are
// sorted, the oldest first, and cut only where they are shown: all of them count.
func (r Report) public() Report {
	r.Network, r.Why, r.Account = figures.Clip(figures.Line(r.Network), maxNote), sentence(r.Why), figures.Clip(figures.Line(r.Account), maxNote)
	if _, ok := stateWords[r.State]; !ok {
		r.State = NoInternet
	}
	r.Leases = slices.SortedStableFunc(slices.Values(r.Leases), func(a, b Lease) int { return a.Since.Compare(b.Since) })
	r.WhyNot = grouped(r.WhyNot)
	r.Relays = slices.Clone(r.Relays[:min(len(r.Relays), maxRelays)])
	for i := range r.Relays {
		r.Relays[i].Name = figures.Clip(figures.Line(r.Relays[i].Name), maxNote)
	}
	var events []Event
	for _, e := range r.Events {
		if _, ok := eventWords[e.What]; ok && len(events) < maxEvents {
			events = append(events, e)
		}
	}
	r.Events = events
	return r
}

// grouped is refusals by kind, at most maxWhyNot kinds.
func grouped(refusals []Refusal) []Refusal {
	var groups []Refusal
	for _, r := range refusals {
		r.Orders = max(r.Orders, 1)
		if i := slices.IndexFunc(groups, func(g Refusal) bool { return g.Why == r.Why }); i >= 0 {
			groups[i].Orders += r.Orders
		} else if len(groups) < maxWhyNot {
			r.Sentence = sentence(r.Sentence)
			groups = append(groups, r)
		}
	}
	return groups
}

// accountAddress is an account on a chain (bech32), with the numbers of a
// deployment, order or lease behind it if there are any.
var accountAddress = regexp.MustCompile(`(?i)[a-z]{2,20}1[02-9ac-hj-np-z]{38,60}(/[0-9]+)*`)

// sentence is one from elsewhere, perhaps from strangers, fit to be shown.
func sentence(s string) string {
	return figures.Clip(accountAddress.ReplaceAllString(figures.Line(s), sayAddressHidden), maxNote)
}

// free is what is neither leased nor offered.
func (r Report) free() Room {
	left := func(total, leased, offered int64) int64 { return max(max(total-max(leased, 0), 0)-max(offered, 0), 0) }
	return Room{
		CPU:     left(r.Capacity.CPU, r.Leased.CPU, r.Offered.CPU),
		Memory:  left(r.Capacity.Memory, r.Leased.Memory, r.Offered.Memory),
		Storage: left(r.Capacity.Storage, r.Leased.Storage, r.Offered.Storage),
		GPUs:    left(r.Capacity.GPUs, r.Leased.GPUs, r.Offered.GPUs),
	}
}

// month is what leases pay in a month, by denom in the order of the leases.
func month(leases []Lease) []Coin {
	var sum []Coin
	for _, l := range leases {
		i := slices.IndexFunc(sum, func(c Coin) bool { return c.Denom == l.Month.Denom })
		switch {
		case l.Month.Denom == "" || l.Month.Amount <= 0:
		case i < 0:
			sum = append(sum, l.Month)
		case sum[i].Amount > math.MaxInt64-l.Month.Amount:
			sum[i].Amount = math.MaxInt64
		default:
			sum[i].Amount += l.Month.Amount
		}
	}
	return sum
}
