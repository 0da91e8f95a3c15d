// Package offer decides about orders: what the box asks for one, or why it makes
// no offer.
//
//	made, no := offer.Consider(order, offer.Box{Capacity: …, Used: …, Policy: offer.DefaultPolicy(), …})
//	if no != nil {
//		fmt.Println(no.Sentence) // not enough memory: 8256 MiB wanted, 8192 of 8192 free
//	}
//
// [Room] is an amount of the box, [Policy] its prices, [Ledger] what is taken.
// [Consider] matches an order as the chain does, adds its room up, prices it and
// picks the deposit.
//
// It asks nobody, stores nothing and places no bid: agent/bidding does.
//
// What it promises:
//
//   - The same order and box give the same answer.
//   - An order of any content is answered, without overflow: a quantity beyond
//     all bounds is a refusal.
//   - Prices are rounded up, never below the policy's or the cost of the power.
//   - A refusal is a sentence that an owner understands.
//   - Nothing is bid on that is too large for one lease: [MaxServices], [MaxReplicas],
//     [MaxDisk].
package offer

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
)

// Box is what a decision about an order depends on, besides the order.
type Box struct {
	Account    account.Address
	Attributes []*attributesv1.Attribute // as registered on the chain; nil: not registered yet
	Audits     []*auditv1.AuditedProvider
	Params     *marketv1beta5.Params // of the market
	Capacity   Room
	Used       Room  // reserved and leased
	Overhead   int64 // bytes of memory that each replica needs on top of its own; see [ReplicaMemory]
	Policy     Policy
	Blocks     int64            // that the chain makes in a month
	Funds      map[string]int64 // what can be spent, by denom, fees apart
	Notice     time.Duration    // longest notice before a lease is ended that the box promises; 0: as long as the tenant likes
	Unready    string           // why the box takes no new lease, a sentence; empty if it does
}

// Offer is a bid that the box would make.
type Offer struct {
	Price   akash.Price // per block
	Month   Money       // the same in a month, rounded up
	Room    Room
	Deposit Coin
	Notice  time.Duration // the reclamation window; 0: none
}

// Bid is what the offer says to the chain.
func (o Offer) Bid(id akash.BidID) *marketv1beta5.MsgCreateBid {
	msg := &marketv1beta5.MsgCreateBid{
		Id: id.Wire(), Price: o.Price.Wire(),
		Deposit: &depositv1.Deposit{
			Amount:  &basev1beta1.Coin{Denom: o.Deposit.Denom, Amount: fmt.Sprint(o.Deposit.Amount)},
			Sources: []depositv1.Source{depositv1.Source_balance},
		},
	}
	if o.Notice > 0 {
		msg.ReclamationWindow = durationpb.New(o.Notice)
	}
	return msg
}

// Coin is an amount of base units.
type Coin struct {
	Denom  string `json:"denom"`
	Amount int64  `json:"amount"`
}

// Why sorts refusals.
type Why string

// The reasons.
const (
	WhyUnready    Why = "unready"    // the box takes no leases now
	WhyMismatch   Why = "mismatch"   // attributes, auditors or hardware
	WhyUnclear    Why = "unclear"    // the order is more than, or not what, the box understands
	WhyRoom       Why = "room"       // not enough is free
	WhyPrice      Why = "price"      // the tenant pays too little
	WhyFunds      Why = "funds"      // the box cannot pay the deposit
	WhyChain      Why = "chain"      // the chain refused the bid
	WhyJournal    Why = "journal"    // the decision could not be written down
	WhyConditions Why = "conditions" // the tenant wants a longer notice than the box gives
)

// Refusal says why the box does not bid on an order.
type Refusal struct {
	Order    string    `json:"order"`
	At       time.Time `json:"at"`
	Why      Why       `json:"why"`
	Sentence string    `json:"sentence"`
}

// Refusals is a why-not list: the newest last, one for each order.
type Refusals []Refusal

// With is the list with one more, the newest keep of them. It reuses the list.
func (l Refusals) With(r Refusal, keep int) Refusals {
	l = append(l.Without(r.Order), r)
	if n := len(l) - keep; n > 0 {
		l = slices.Delete(l, 0, n)
	}
	return l
}

// Without is the list without an order. It reuses the list.
func (l Refusals) Without(order string) Refusals {
	return slices.DeleteFunc(l, func(old Refusal) bool { return old.Order == order })
}

// Consider decides about an order. It is a pure function: the same order and box
// give the same answer, an offer or a refusal.
func Consider(order *marketv1beta5.Order, b Box) (Offer, *Refusal) {
	no := func(why Why, sentence string) (Offer, *Refusal) {
		return Offer{}, &Refusal{Order: akash.OrderIDOf(order.GetId()).String(), Why: why, Sentence: sentence}
	}
	spec := order.GetSpec()
	switch {
	case order.GetState() != marketv1beta5.Order_open:
		return no(WhyUnclear, "the order is not open")
	case b.Unready != "":
		return no(WhyUnready, b.Unready)
	case b.Attributes == nil:
		return no(WhyUnready, "the box is not registered on the chain yet")
	case b.Params == nil || b.Blocks <= 0:
		return no(WhyUnready, "the chain's parameters are not known yet")
	case order.GetId().GetOwner() == string(b.Account):
		return no(WhyMismatch, "the order is the box's own")
	case proto.Size(spec) > MaxSpec:
		return no(WhyUnclear, fmt.Sprintf("the order is longer than %d bytes", MaxSpec))
	}
	if lack := mismatch(spec, b.Attributes, b.Audits); lack != "" {
		return no(WhyMismatch, lack)
	}
	limit, err := orderPrice(spec)
	if err != nil {
		return no(WhyUnclear, err.Error())
	}
	worth := b.Policy.Worth[limit.Denom]
	if worth <= 0 {
		return no(WhyPrice, fmt.Sprintf("the tenant pays in %.64s, which has no price here", limit.Denom))
	}
	free := map[string]int64{}
	for model, n := range b.Capacity.GPUs {
		free[model] = n - b.Used.GPUs[model]
	}
	d, err := demandOf(spec, free, b.Overhead)
	if err != nil {
		return no(WhyUnclear, err.Error())
	}
	if lack := d.room.Lack(b.Used, b.Capacity); lack != "" {
		return no(WhyRoom, lack)
	}
	month, err := b.Policy.month(d, b.Capacity)
	if err != nil {
		return no(WhyPrice, err.Error())
	}
	price := perBlock(month, worth, b.Blocks)
	if price.Sign() <= 0 {
		price, _ = akash.ParseWireDec("1") // the chain takes no price of 0
	}
	asked := moneyOf(up(month, atto))
	if price.Cmp(limit.Amount) > 0 {
		return no(WhyPrice, fmt.Sprintf("the tenant pays at most %s a month, the box asks %s", inMonth(limit.Amount, worth, b.Blocks), asked))
	}
	notice, lack := noticeFor(order, b)
	if lack != "" {
		return no(WhyConditions, lack)
	}
	deposit, lack := DepositOf(b)
	if lack != "" {
		return no(WhyFunds, lack)
	}
	return Offer{Price: akash.Price{Denom: limit.Denom, Amount: price}, Month: asked, Room: d.room, Deposit: deposit, Notice: notice}, nil
}

// orderPrice is the most that an order pays per block.
func orderPrice(spec *deploymentv1beta4.GroupSpec) (akash.Price, error) {
	var sum akash.Price
	if n := len(spec.GetResources()); n == 0 || n > MaxServices {
		return sum, fmt.Errorf("it has %d kinds of service: 1 to %d are possible", n, MaxServices)
	}
	for i, u := range spec.GetResources() {
		p, err := akash.PriceOf(u.GetPrice())
		if err != nil {
			return sum, fmt.Errorf("price of service %d cannot be read", i+1)
		}
		if i > 0 && p.Denom != sum.Denom {
			return sum, fmt.Errorf("services are priced in %.64s and %.64s", sum.Denom, p.Denom)
		}
		sum = akash.Price{Denom: p.Denom, Amount: sum.Amount.Add(p.Amount.Mul(int64(u.GetCount())))}
	}
	return sum, nil
}

// perBlock turns money per month (in 10^-18) into base units of a denom per
// block, rounded up: never below the floor.
func perBlock(month *big.Int, worth Money, blocks int64) akash.Dec {
	n := new(big.Int).Mul(month, big.NewInt(1_000_000))
	d, err := akash.ParseWireDec(up(n, new(big.Int).Mul(big.NewInt(int64(worth)), big.NewInt(blocks))).String())
	if err != nil {
		return akash.NewDec(1 << 62) // beyond what any order pays
	}
	return d
}

// inMonth is what a price per block comes to in a month, rounded down.
func inMonth(price akash.Dec, worth Money, blocks int64) Money {
	n := new(big.Int).Mul(price.Atto(), big.NewInt(blocks))
	n.Mul(n, big.NewInt(int64(worth)))
	n.Quo(n, new(big.Int).Mul(atto, big.NewInt(1_000_000)))
	return moneyOf(n)
}

// moneyOf is a number of millionths, or as much as no order pays.
func moneyOf(n *big.Int) Money {
	if !n.IsInt64() {
		return 1 << 62
	}
	return Money(n.Int64())
}

// noticeFor is the reclamation window of a bid: the least that tenant and chain
// accept. The box never bids without one if the chain allows it: while a lease
// has a window, the message that takes an open bid back cannot end the lease
// that a tenant made of it a moment before.
func noticeFor(order *marketv1beta5.Order, b Box) (time.Duration, string) {
	most := b.Params.GetMaxReclamationWindow().AsDuration()
	notice := max(order.GetReclamation().GetMinWindow().AsDuration(), b.Params.GetMinReclamationWindow().AsDuration())
	if notice <= 0 {
		notice = min(usualNotice, most)
	}
	if order.GetReclamation() != nil && b.Notice > 0 && notice > b.Notice {
		return 0, fmt.Sprintf("the tenant wants %s of notice before its lease is ended, the box gives %s", notice, b.Notice)
	}
	if notice > most {
		if order.GetReclamation() != nil {
			return 0, fmt.Sprintf("the tenant wants %s of notice before its lease is ended, the chain allows %s", notice, most)
		}
		return 0, ""
	}
	return notice, ""
}

// usualNotice is the window where neither tenant nor chain name a least one.
const usualNotice = time.Hour

// DepositOf is the first deposit the chain accepts that the box can pay.
func DepositOf(b Box) (Coin, string) {
	least := b.Params.GetBidMinDeposits()
	if len(least) == 0 && b.Params.GetBidMinDeposit() != nil {
		least = append(slices.Clone(least), b.Params.GetBidMinDeposit())
	}
	lack := "the chain names no deposit for bids"
	for _, c := range least {
		amount, ok := new(big.Int).SetString(c.GetAmount(), 10)
		if !ok || !amount.IsInt64() {
			continue
		}
		if amount.Int64() <= b.Funds[c.GetDenom()] {
			return Coin{Denom: c.GetDenom(), Amount: amount.Int64()}, ""
		}
		lack = fmt.Sprintf("the deposit of a bid is %d %s, the box can spend %d", amount, c.GetDenom(), b.Funds[c.GetDenom()])
	}
	return Coin{}, lack
}

// DenomsOf is feeDenom and what else deposits may be paid in: the denoms of
// [Box].Funds.
func DenomsOf(p *marketv1beta5.Params, feeDenom string) []string {
	denoms := []string{feeDenom}
	for _, c := range p.GetBidMinDeposits() {
		if d := c.GetDenom(); d != feeDenom && d != "" {
			denoms = append(denoms, d)
		}
	}
	return denoms
}

// Sum is that of two amounts from 0 on. It stops at the largest number instead of
// turning negative: amounts are the chain's, and a token may have any supply.
func Sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// AmountOf reads an amount of base units; one beyond int64 counts as the largest.
func AmountOf(s string) (int64, bool) {
	n, ok := new(big.Int).SetString(s, 10)
	switch {
	case !ok || n.Sign() < 0:
		return 0, false
	case !n.IsInt64():
		return math.MaxInt64, true
	}
	return n.Int64(), true
}
