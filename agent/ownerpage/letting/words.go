package letting

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/croft-cloud/croft/agent/ownerpage/figures"
)

// The words an owner reads; amounts of room are in page.go. The chain is "the
// marketplace" to owners.
const (
	sayEarns         = "earns about %s a month"
	sayLet           = "%s let"
	sayOffered       = ", %s kept for offers"
	sayFree          = ", %s free"
	sayLeases        = "What is let now"
	sayLeaseSince    = "Since %s"
	sayLeaseUndated  = "A lease"
	sayLeaseMonth    = "about %s a month"
	sayUses          = "uses %s of memory and %s of storage"
	sayWorked        = "%s of processor time"
	sayMoved         = "%s received, %s sent"
	sayMoreLeases    = "And %d more."
	sayCores         = "CPU"
	sayMemory        = "Memory"
	sayStorage       = "Storage"
	sayGPUs          = "GPUs"
	sayEarned        = "Paid out so far"
	sayDue           = "Earned, not paid out yet"
	sayBalance       = "On the box's account"
	sayMarket        = "Marketplace"
	sayAccount       = "Public address"
	sayRelays        = "Ways in for tenants"
	sayPrices        = "Prices"
	sayPerCore       = "A CPU core"
	sayPerMemory     = "1 GB of memory"
	sayPerStorage    = "1 GB of storage (%s)"
	sayPerEndpoint   = "A name or port"
	sayPerGPU        = "A GPU (%s)"
	sayMonthly       = "%s %s a month"
	sayUp            = "Connected"
	sayDown          = "Not connected"
	saySince         = "%s since %s"
	sayFloor         = "Nothing is let for less than the power it takes: %d watts at full load, %s %s for a kilowatt-hour."
	sayWhyNot        = "Orders without an offer"
	sayRefusedOne    = "%s."
	sayRefusedMany   = "%s (%d orders)."
	sayNewest        = "The newest: %s"
	sayEvents        = "What happened lately"
	sayAddressHidden = "(an account)"
)

// wording is a state in words.
type wording struct {
	short    string // without a full stop, for one line
	sentence string // what that means
	waits    bool   // for something that is not the owner's to do
}

var stateWords = map[State]wording{
	NoInternet:  {"Waiting for the internet", "The box cannot reach the internet at the moment. It tries again by itself.", true},
	NoChain:     {"Waiting for the marketplace", "The marketplace for computing does not answer. The box tries again by itself.", true},
	NoRelay:     {"Waiting for a way in", "Tenants cannot reach the box at the moment. It tries again by itself.", true},
	NoCoins:     {"Waiting for its first coins", "The box needs a few coins for fees and deposits. It goes on by itself when they are there.", true},
	Registering: {"Signing up at the marketplace", "The box is entering itself in the marketplace for computing.", true},
	Open:        {"Open for work", "Nobody rents any of its room at the moment.", false},
	Working:     {"Working", "There is room for more.", false},
	Full:        {"Working", "There is no room for more.", false},
	Paused:      {"Paused", "The box takes no new tenants until you let it. Those it has may stay.", false},
	Unable:      {"Not working for tenants", "The box cannot work for tenants: please ask for help.", false},
}

var eventWords = map[Happening]string{
	LeaseWon:     "A tenant rented room.",
	LeaseEnded:   "A lease ended.",
	NotFetched:   "A tenant's program could not be fetched from the internet. The box tries again by itself.",
	OutOfMemory:  "A tenant's program needed more memory than it rents, and was ended. The box is not harmed.",
	KeepsFailing: "A tenant's program ends again and again. That is the tenant's to mend.",
}

// refusalWords says a kind of refusal, without a full stop; the kinds are
// agent/offer's.
func refusalWords(why string) string {
	switch why {
	case "unready":
		return "The box took no leases then"
	case "mismatch":
		return "The tenant wanted something that this box is not or has not"
	case "unclear":
		return "The order asked for something that the box does not understand"
	case "room":
		return "Not enough room was free"
	case "price":
		return "The tenant would have paid too little"
	case "funds":
		return "The box could not pay the deposit"
	case "chain":
		return "The marketplace refused the offer"
	case "journal":
		return "The box could not write down its decision"
	case "conditions":
		return "The tenant wanted a longer notice than the box gives"
	}
	return "There was another reason"
}

// Words is a [Report] in words. Its JSON is what programs may read.
type Words struct {
	Report          // as all may see it
	Short    string `json:"-"`                  // "Working for 1 tenant"
	Earns    string `json:"-"`                  // "earns about 1.23 AKT a month"; may be empty
	Line     string `json:"line"`               // both
	Sentence string `json:"sentence,omitempty"` // on the state; may be empty
	Month    []Coin `json:"month,omitempty"`    // what the leases pay in a month
	Free     Room   `json:"free"`               // neither leased nor kept for offers

	// Waits is true while the box waits for something outside it.
	Waits bool `json:"-"`
}

// Words puts r into words.
func (r Report) Words() Words {
	w := Words{Report: r.public(), Free: r.free()}
	w.Month = month(w.Leases)
	state := stateWords[w.State]
	w.Short, w.Sentence, w.Waits = state.short, cmp.Or(w.Why, state.sentence), state.waits
	if len(w.Leases) > 0 {
		w.Short = "Working for " + figures.Count(max(w.Tenants, 1), "tenant")
	}
	if len(w.Month) > 0 {
		w.Earns = fmt.Sprintf(sayEarns, roughWords(w.Month...))
	}
	w.Line = strings.TrimSuffix(w.Short+" · "+w.Earns, " · ")
	return w
}

// coinsWords says amounts as wallets do: "1.50 AKT and 4.56 ACT".
func coinsWords(coins ...Coin) string {
	words := make([]string, len(coins))
	for i, c := range coins {
		words[i] = coinWords(c, 2)
	}
	return figures.List(words)
}

// roughWords says amounts with their three leading digits, rounded down: what is
// an estimate should look like one, and not change at every look.
func roughWords(coins ...Coin) string {
	words := make([]string, len(coins))
	for i, c := range coins {
		unit := int64(1)
		for c.Amount/unit >= 1000 {
			unit *= 10
		}
		c.Amount -= c.Amount % unit
		words[i] = coinWords(c, 0)
	}
	return figures.List(words)
}

// coinWords says a million uakt as 1 AKT, with at least so many places. Base
// units of another kind of name are said as they are.
func coinWords(c Coin, places int) string {
	denom := figures.Line(c.Denom)
	if name, ok := strings.CutPrefix(denom, "u"); ok && len(name) >= 2 && len(name) <= 8 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz") == "" {
		return figures.Decimal(c.Amount, places) + " " + strings.ToUpper(name)
	}
	return fmt.Sprintf("%d %s", max(c.Amount, 0), figures.Clip(denom, 24))
}

// coresWords says thousandths of a core in cores.
func coresWords(millis int64) string {
	s := fmt.Sprintf("%d.%03d", millis/1000, millis%1000)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}
