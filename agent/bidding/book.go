package bidding

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/client"
)

// Journal is the part of agent/journal that is needed: what Put answered nil
// for is there after a power cut.
type Journal interface {
	Put(key string, value any) error
	Get(key string, into any) (bool, error)
	Delete(key string) error
	Keys(prefix string) []string
}

// The journal's keys.
const (
	keyEntry   = "bidding/order/" // and the order's id
	keyOwner   = "bidding/owner"  // whose entries these are
	keyArchive = "bidding/archive"
	keyPoint   = "bidding/point"
	keyWishes  = "bidding/wishes"
)

// keepFinal is how many entries that are over are kept: so that the owner page
// shows the last, and no order is tried again while it is in view.
const keepFinal = 64

// entry is one order the box bid on. It is stored after every change, before
// anything is done about it.
type entry struct {
	State   State         `json:"state"`
	Number  uint64        `json:"number"` // of its last move; the lowest are forgotten first
	Price   string        `json:"price,omitempty"`
	Denom   string        `json:"denom,omitempty"`
	Month   offer.Money   `json:"month,omitempty"` // the price for a month when the bid was made
	Room    offer.Room    `json:"room"`
	Spec    []byte        `json:"spec,omitempty"` // the group on the wire
	Deposit offer.Coin    `json:"deposit"`
	Notice  time.Duration `json:"notice,omitempty"`

	Tx     *client.Signed `json:"tx,omitempty"`     // left, or is about to; its fate is not known
	Intent intent         `json:"intent,omitempty"` // what Tx is for

	Why      string                     `json:"why,omitempty"`    // how it ended, or why it should
	Reason   marketv1.LeaseClosedReason `json:"reason,omitempty"` // given to, or by, the chain for a lease's end
	OpenedAt time.Time                  `json:"opened_at,omitzero"`
	WonAt    time.Time                  `json:"won_at,omitzero"`
	DrawnAt  time.Time                  `json:"drawn_at,omitzero"`
	Deadline time.Time                  `json:"deadline,omitzero"` // from when a lease that is being reclaimed may be closed
	Paid     offer.Coin                 `json:"paid"`              // what the lease has brought
	Hash     []byte                     `json:"hash,omitempty"`    // of the newest manifest
	Manifest bool                       `json:"manifest,omitempty"`
}

// intent names what a transaction is for.
type intent string

const (
	intentBid     intent = "bid"
	intentClose   intent = "close"
	intentReclaim intent = "reclaim"
	intentDraw    intent = "draw"
)

// price is that of the bid.
func (e *entry) price() akash.Price {
	d, _ := akash.ParseDec(cmp.Or(e.Price, "0")) // it was written by this package
	return akash.Price{Denom: e.Denom, Amount: d}
}

// terms takes over what the chain says about a bid or lease.
func (e *entry) terms(price *basev1beta1.DecCoin, notice *durationpb.Duration) {
	if p, err := akash.PriceOf(price); err == nil && p.Denom != "" {
		e.Price, e.Denom = p.Amount.String(), p.Denom
	}
	e.Notice = notice.AsDuration()
}

// group is what the tenant ordered.
func (e *entry) group() *deploymentv1beta4.GroupSpec {
	spec := new(deploymentv1beta4.GroupSpec)
	if len(e.Spec) == 0 || proto.Unmarshal(e.Spec, spec) != nil {
		return nil
	}
	return spec
}

// archive is what is left of the entries that were forgotten.
type archive struct {
	Earned map[string]int64 `json:"earned"`
	Last   string           `json:"last"` // the order that was added last, so that a crash adds none twice
}

// owner says whose entries a journal has. With another key or on another chain
// they mean nothing.
type owner struct {
	Chain   string          `json:"chain"`
	Account account.Address `json:"account"`
}

// point is a block up to which all events were dealt with; of height 0 if that is
// not known.
type point struct {
	Height int64     `json:"height"`
	Time   time.Time `json:"time"` // the chain's, then or a little later
}

// wishes of the box's owner that outlive a restart.
type wishes struct {
	Drain bool `json:"drain"`
}

// book is the entries and the capacity ledger over them. Only its owner's
// goroutine touches it, but for the ledger.
type book struct {
	journal Journal
	me      account.Address
	entries map[akash.OrderID]*entry
	ledger  offer.Ledger // holds the room of each entry that is not over: an ended lease's until the workload has answered that it is gone
	archive archive
	wishes  wishes
	number  uint64
	point   point
}

// openBook reads the journal. Entries that cannot be read are reported and left
// alone: nothing is done about what is not understood.
func openBook(j Journal, chain string, me account.Address) (*book, []error, error) {
	b := &book{journal: j, me: me, entries: map[akash.OrderID]*entry{}}
	var whose owner
	found, err := j.Get(keyOwner, &whose)
	if err != nil {
		return nil, nil, fmt.Errorf("read journal: %w", err)
	}
	var odd []error
	if mine := (owner{Chain: chain, Account: me}); whose != mine {
		if found {
			odd = append(odd, fmt.Errorf("journal is about account %s on chain %s: its orders are forgotten", whose.Account, whose.Chain))
		}
		for _, key := range slices.Concat(j.Keys(keyEntry), []string{keyArchive, keyPoint, keyRegistration}) {
			if err := j.Delete(key); err != nil {
				return nil, odd, fmt.Errorf("forget orders of another account: %w", err)
			}
		}
		if err := j.Put(keyOwner, mine); err != nil {
			return nil, odd, fmt.Errorf("write owner of the journal: %w", err)
		}
	}
	for key, into := range map[string]any{keyArchive: &b.archive, keyPoint: &b.point, keyWishes: &b.wishes} {
		if _, err := j.Get(key, into); err != nil {
			odd = append(odd, fmt.Errorf("read %s: %w", key, err))
		}
	}
	if b.archive.Earned == nil {
		b.archive.Earned = map[string]int64{}
	}
	for _, key := range j.Keys(keyEntry) {
		id, err := akash.ParseOrderID(key[len(keyEntry):])
		e := new(entry)
		if err == nil {
			_, err = j.Get(key, e)
		}
		if _, known := law[e.State]; err == nil && !known && !slices.Contains([]State{Settled, Lost, Withdrawn, Refused}, e.State) {
			err = fmt.Errorf("state %q is unknown", e.State)
		}
		if err != nil {
			odd = append(odd, fmt.Errorf("read entry %s: %w", key, err))
			continue
		}
		if id.String() == b.archive.Last {
			if err := j.Delete(key); err != nil {
				odd = append(odd, err)
			}
			continue
		}
		b.enter(id, e)
		b.number = max(b.number, e.Number)
	}
	return b, odd, nil
}

var errFull = errors.New("the capacity ledger has no room for it")

// active counts the entries that are not over.
func (b *book) active() int {
	n := 0
	for _, e := range b.entries {
		if !e.State.Final() {
			n++
		}
	}
	return n
}

// add makes an entry by one of the events that Seen has. A reservation must fit
// the ledger; what is on the chain already is counted even if it does not.
func (b *book) add(id akash.OrderID, ev Event, e entry, capacity offer.Room) error {
	if _, there := b.entries[id]; there {
		return fmt.Errorf("order %s has an entry already", id)
	}
	to, err := Seen.Next(ev)
	if err != nil {
		return err
	}
	if ev == reserve && !b.ledger.Reserve(id.String(), e.Room, capacity) { // before it is written: nobody borrows it meanwhile
		return errFull
	}
	e.State = to
	if err := b.put(id, e); err != nil {
		b.ledger.Free(id.String())
		return err
	}
	return nil
}

// move changes an entry by an event of the law.
func (b *book) move(id akash.OrderID, ev Event, change func(*entry)) error {
	return b.change(id, func(e *entry) error {
		to, err := e.State.Next(ev)
		if err != nil {
			return err
		}
		e.State = to
		if change != nil {
			change(e)
		}
		if to.Final() {
			e.Tx, e.Intent, e.Spec, e.Hash = nil, "", nil, nil
		}
		return nil
	})
}

// change alters an entry within its state, or by move. Nothing has changed when
// it fails.
func (b *book) change(id akash.OrderID, change func(*entry) error) error {
	old := b.entries[id]
	if old == nil {
		return fmt.Errorf("order %s has no entry", id)
	}
	e := *old
	if err := change(&e); err != nil {
		return err
	}
	return b.put(id, e)
}

func (b *book) put(id akash.OrderID, e entry) error {
	e.Number = b.number + 1
	if err := b.journal.Put(keyEntry+id.String(), &e); err != nil {
		return fmt.Errorf("write entry of order %s: %w", id, err)
	}
	b.number++
	b.enter(id, &e)
	return nil
}

// enter makes an entry that is written that of an order.
func (b *book) enter(id akash.OrderID, e *entry) {
	b.entries[id] = e
	if e.State.Final() {
		b.ledger.Free(id.String())
	} else {
		b.ledger.Hold(id.String(), e.Room)
	}
}

// drop forgets an entry of which nothing is on the chain.
func (b *book) drop(id akash.OrderID) error {
	if err := b.journal.Delete(keyEntry + id.String()); err != nil {
		return fmt.Errorf("delete entry of order %s: %w", id, err)
	}
	delete(b.entries, id)
	b.ledger.Free(id.String())
	return nil
}

// prune forgets the oldest entries that are over, and keeps what they earned.
func (b *book) prune() error {
	var final []akash.OrderID
	for id, e := range b.entries {
		if e.State.Final() {
			final = append(final, id)
		}
	}
	if len(final) <= keepFinal {
		return nil
	}
	slices.SortFunc(final, func(x, y akash.OrderID) int { return cmp.Compare(b.entries[x].Number, b.entries[y].Number) })
	for _, id := range final[:len(final)-keepFinal] {
		if b.archive.Last != id.String() {
			next := archive{Earned: maps.Clone(b.archive.Earned), Last: id.String()}
			if paid := b.entries[id].Paid; paid.Amount > 0 {
				next.Earned[paid.Denom] = offer.Sum(next.Earned[paid.Denom], paid.Amount)
			}
			if err := b.journal.Put(keyArchive, next); err != nil {
				return fmt.Errorf("write earnings: %w", err)
			}
			b.archive = next
		}
		if err := b.drop(id); err != nil {
			return err
		}
	}
	return nil
}

// earned is what all leases have brought, by denom.
func (b *book) earned() map[string]int64 {
	total := maps.Clone(b.archive.Earned)
	for id, e := range b.entries {
		if e.Paid.Amount > 0 && id.String() != b.archive.Last {
			total[e.Paid.Denom] = offer.Sum(total[e.Paid.Denom], e.Paid.Amount)
		}
	}
	return total
}

// setPoint stores how far events are dealt with.
func (b *book) setPoint(p point) error {
	if err := b.journal.Put(keyPoint, p); err != nil {
		return fmt.Errorf("write height: %w", err)
	}
	b.point = p
	return nil
}

// pointEvery is how many blocks pass between two writes of the point: a power cut
// costs some events read again, which change nothing.
const pointEvery = 100
