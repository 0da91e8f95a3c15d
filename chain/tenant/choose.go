package tenant

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
)

// Offer is an open bid on one of a deployment's orders.
type Offer struct {
	ID    akash.BidID
	Group string      // name of the group: the placement in the SDL
	Price akash.Price // for each block
	// Provider is how the bidder describes itself on the chain; nil if it is not
	// registered any more.
	Provider *providerv1beta4.Provider
	Since    int64 // height at which the bid was made
}

// Host is the host name of the provider's gateway, without its port.
func (o Offer) Host() string {
	u, err := url.Parse(o.Provider.GetHostUri())
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// Choice is what a [Choose] decides on.
type Choice struct {
	Offers []Offer       // all open ones, by group and then the cheapest first
	Groups []uint32      // gseq of each group that needs a lease, in order
	Waited time.Duration // since the first offer was seen by this call; 0 if there is none
}

// Of is the offers for one group, the cheapest first.
func (c Choice) Of(gseq uint32) []Offer {
	var offers []Offer
	for _, o := range c.Offers {
		if o.ID.GSeq == gseq {
			offers = append(offers, o)
		}
	}
	return offers
}

// Choose picks one bid for each group of the choice, or fewer to be asked again
// when more is known: about every [Config.Poll], until the time for bids is
// over. An error ends the deploy; the deployment stays open. A Choose may take
// its time, for a person to decide: bids then may close meanwhile, which is
// noticed, and asked about again.
type Choose func(context.Context, Choice) ([]akash.BidID, error)

// Want says which offers are acceptable. Empty fields accept all.
type Want struct {
	// Provider is an address, the host name of a gateway, or key=value of an
	// attribute that the provider has.
	Provider string
	// Attributes must all be among the provider's.
	Attributes map[string]string
	// MaxPrice is the most that one lease may cost for each block; compared only
	// with offers in its denom, and refusing all others. Default: what the SDL
	// says, which the chain enforces.
	MaxPrice akash.Price
	// Patience is how long to wait for better offers after the first; default 5 s.
	Patience time.Duration
}

// Accepts tells what is wrong with an offer, as a sentence; empty if nothing is.
func (w Want) Accepts(o Offer) string {
	if w.MaxPrice.Denom != "" {
		if o.Price.Denom != w.MaxPrice.Denom {
			return fmt.Sprintf("price is in %s, not in %s", o.Price.Denom, w.MaxPrice.Denom)
		}
		if o.Price.Amount.Cmp(w.MaxPrice.Amount) > 0 {
			return fmt.Sprintf("price %s is above %s", o.Price, w.MaxPrice)
		}
	}
	for key, value := range w.Attributes {
		if !hasAttribute(o.Provider, key, value) {
			return fmt.Sprintf("provider lacks %s=%s", key, value)
		}
	}
	key, value, isAttribute := strings.Cut(w.Provider, "=")
	switch {
	case w.Provider == "" || w.Provider == string(o.ID.Provider):
		return ""
	case isAttribute && hasAttribute(o.Provider, key, value):
		return ""
	case !isAttribute && !strings.HasPrefix(w.Provider, account.Prefix+"1") && strings.EqualFold(w.Provider, o.Host()):
		return ""
	default:
		return fmt.Sprintf("provider is not %s", w.Provider)
	}
}

func hasAttribute(p *providerv1beta4.Provider, key, value string) bool {
	for _, a := range p.GetAttributes() {
		if a.GetKey() == key && a.GetValue() == value {
			return true
		}
	}
	return false
}

// Cheapest chooses the lowest price among the acceptable offers; of equal ones,
// the earliest. It waits w.Patience for better ones, unless a provider is wanted
// by its address: then its first offer is taken.
func Cheapest(w Want) Choose {
	if w.Patience == 0 {
		w.Patience = 5 * time.Second
	}
	if _, err := account.ParseAddress(w.Provider); err == nil {
		w.Patience = 0
	}
	return func(_ context.Context, c Choice) ([]akash.BidID, error) {
		if c.Waited < w.Patience {
			return nil, nil
		}
		var picks []akash.BidID
		for _, gseq := range c.Groups {
			offers := c.Of(gseq)
			if i := slices.IndexFunc(offers, func(o Offer) bool { return w.Accepts(o) == "" }); i >= 0 {
				picks = append(picks, offers[i].ID)
			}
		}
		return picks, nil
	}
}

// sortOffers puts them in the order that Choice promises.
func sortOffers(offers []Offer) {
	slices.SortFunc(offers, func(a, b Offer) int {
		return cmp.Or(
			cmp.Compare(a.ID.GSeq, b.ID.GSeq), strings.Compare(a.Price.Denom, b.Price.Denom), a.Price.Amount.Cmp(b.Price.Amount),
			cmp.Compare(a.Since, b.Since), strings.Compare(string(a.ID.Provider), string(b.ID.Provider)),
		)
	})
}
