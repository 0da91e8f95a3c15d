package bidding

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
)

// Lease is a lease that runs on this box, for workload and gateway.
type Lease struct {
	ID       akash.LeaseID
	State    State                        // Leased or Closing
	Price    akash.Price                  // per block
	Group    *deploymentv1beta4.GroupSpec // what the tenant ordered; do not change; nil if it is unknown
	Hash     []byte                       // of the newest manifest, as the chain knows it; nil if it is unknown
	Room     offer.Room                   // as reserved, sandboxes included
	Since    time.Time                    // chain's time
	Manifest bool                         // a manifest was received, or may have been before the journal was lost
	Deadline time.Time                    // from when it may be closed here; zero: nobody asked
}

func (e *engine) wonLease(id akash.OrderID, en *entry) Lease {
	return Lease{
		ID: akash.LeaseID{OrderID: id, Provider: e.book.me}, State: en.State, Price: en.price(), Group: en.group(), Hash: en.Hash,
		Room: en.Room, Since: en.WonAt, Manifest: en.Manifest, Deadline: en.Deadline,
	}
}

// Item is one order in the owner's list.
type Item struct {
	Order  string      `json:"order"`
	State  State       `json:"state"`
	Price  string      `json:"price"`  // per block, with its denom
	Month  offer.Money `json:"month"`  // the same in a month, as it was when the bid was made
	Room   offer.Room  `json:"room"`   // of the box
	Earned offer.Coin  `json:"earned"` // paid out so far
	Since  time.Time   `json:"since,omitzero"`
	Why    string      `json:"why,omitempty"` // how it ended, or why it should
}

// Status is what the owner page shows.
type Status struct {
	Account    account.Address  `json:"account"`
	ChainID    string           `json:"chain_id"`
	Height     int64            `json:"height"`     // of the newest block seen; 0: none yet
	ChainTime  time.Time        `json:"chain_time"` // of the newest block known
	Reached    bool             `json:"reached"`    // the last call to the chain was answered
	Surveyed   bool             `json:"surveyed"`   // Leases has all that run, those the journal had lost as well: they were compared with the chain since the start
	Registered bool             `json:"registered"`
	Draining   bool             `json:"draining"`
	Unready    string           `json:"unready,omitempty"` // why no bids are made, a sentence
	Problems   []string         `json:"problems,omitempty"`
	Serial     string           `json:"serial,omitempty"` // of the gateway's certificate
	Expires    time.Time        `json:"expires,omitzero"` // the same
	Balance    map[string]int64 `json:"balance"`          // as of the last survey
	Notice     time.Duration    `json:"notice"`           // longest reclamation window that bids have; 0: not known yet
	Capacity   offer.Room       `json:"capacity"`
	Reserved   offer.Room       `json:"reserved"` // by bids
	Leased     offer.Room       `json:"leased"`
	Items      []Item           `json:"items"`   // newest change first; those that are over as well
	Earned     map[string]int64 `json:"earned"`  // by all leases ever, by denom
	Prices     offer.Policy     `json:"prices"`  // per month
	Blocks     int64            `json:"blocks"`  // of the chain in a month; 0: not known yet
	WhyNot     []offer.Refusal  `json:"why_not"` // newest first

	leases []Lease
}

// publish makes the engine's present visible to others.
func (p *Provider) publish() {
	e := p.engine
	s := &Status{
		Account: e.book.me, ChainID: p.cfg.Chain.ChainID(), Height: e.seen, ChainTime: e.chainTime, Reached: e.reached, Surveyed: e.surveyed && len(e.lost) == 0, Registered: e.registered,
		Draining: e.book.wishes.Drain, Unready: e.ready(), Serial: e.reg.serial, Expires: e.reg.expires, Balance: maps.Clone(e.balance),
		Notice: min(e.cfg.Notice, e.params.GetMaxReclamationWindow().AsDuration()), Capacity: e.cfg.Capacity(), Earned: e.book.earned(), Prices: e.cfg.Policy, Blocks: e.blocks, WhyNot: slices.Clone(e.why),
	}
	slices.Reverse(s.WhyNot)
	for _, what := range slices.Sorted(maps.Keys(e.problem)) {
		s.Problems = append(s.Problems, what+": "+e.problem[what])
	}
	if n := len(e.absent); n > 0 {
		s.Problems = append(s.Problems, fmt.Sprintf("chain: it does not know %d of the box's bids and leases any more", n))
	}
	ids := slices.SortedFunc(maps.Keys(e.book.entries), func(a, b akash.OrderID) int {
		return cmp.Compare(e.book.entries[b].Number, e.book.entries[a].Number)
	})
	for _, id := range ids {
		en := e.book.entries[id]
		s.Items = append(s.Items, Item{
			Order: id.String(), State: en.State, Price: en.price().String(), Month: en.Month, Room: en.Room, Earned: en.Paid, Since: cmp.Or(en.WonAt, en.OpenedAt), Why: en.Why,
		})
		switch {
		case en.State.Final():
		case en.State.live() || en.State == Ended:
			s.Leased = s.Leased.Plus(en.Room)
		default:
			s.Reserved = s.Reserved.Plus(en.Room)
		}
		if en.State.live() {
			s.leases = append(s.leases, e.wonLease(id, en))
		}
	}
	if last := p.status.Load(); last != nil && last.Unready != "" && s.Unready == "" {
		e.surveySoon() // orders that came meanwhile were refused
	}
	p.status.Store(s)
}

// Status is the present state. What it refers to must not be changed.
func (p *Provider) Status() Status { return *p.status.Load() }

// Leases are those that run on this box, also right after [New] and while the
// chain is out of reach.
func (p *Provider) Leases() []Lease { return slices.Clone(p.status.Load().leases) }

// Lease finds a running lease.
func (p *Provider) Lease(id akash.LeaseID) (Lease, bool) {
	leases := p.status.Load().leases
	if i := slices.IndexFunc(leases, func(l Lease) bool { return l.ID == id }); i >= 0 {
		return leases[i], true
	}
	return Lease{}, false
}
