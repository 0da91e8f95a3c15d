package blueprint

import (
	"errors"
	"fmt"
	"strings"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/sdl"
)

// Holder has a host name.
type Holder struct {
	Lease akash.LeaseID
	Claim uint64 // the highest on the box has the name
}

// Names is who has which host name on the box.
type Names struct {
	Domain   string            // automatic names end in "." and this; empty: there are none
	Reserved []string          // domains that no tenant may name a host in
	Holders  map[string]Holder // by host name
	Highest  uint64            // claim given so far
}

// Hold says that a lease claims a host name. Of several claims the highest has it.
func (n *Names) Hold(host string, id akash.LeaseID, claim uint64) {
	n.Highest = max(n.Highest, claim)
	if other, held := n.Holders[host]; !held || claim > other.Claim {
		n.Holders[host] = Holder{Lease: id, Claim: claim}
	}
}

// Claim says which host names the lease has or gets, and how strongly, or why it
// may not. It changes nothing.
func (n Names) Claim(id akash.LeaseID, group sdl.Group) (map[string]uint64, error) {
	claims := map[string]uint64{}
	for _, s := range group.Services {
		for _, e := range s.Expose {
			if ByHost(e) && len(e.Hosts) == 0 && n.Domain == "" {
				return nil, Refuse(ErrHostMissing, fmt.Errorf("service %q: expose of port %d names no host", s.Name, e.Port),
					"write accept: [www.example.com] with a name that is yours; this provider has no automatic ones")
			}
			for _, host := range e.Hosts {
				taken := func() error {
					return Refuse(ErrHostTaken, fmt.Errorf("service %q: %s", s.Name, host), "choose another host name")
				}
				if host != AutomaticHost(n.Domain, id, s.Name) && n.reserved(host) {
					return nil, taken()
				}
				holder, held := n.Holders[host]
				switch {
				case !held:
					n.Highest++
					claims[host] = n.Highest
				case holder.Lease == id:
					claims[host] = holder.Claim
				case holder.Lease.Owner == id.Owner:
					claims[host] = 0 // it stays where it is until it is migrated or given up
				default:
					return nil, taken()
				}
			}
		}
	}
	return claims, nil
}

// Migrate raises, in mine, the claims of a tenant's lease to hosts above all
// others: to all or, with an error, to none.
func (n Names) Migrate(tenant account.Address, mine map[string]uint64, hosts []string) error {
	if len(hosts) > MaxHosts {
		return Refuse(ErrTooMany, fmt.Errorf("%d host names, want at most %d", len(hosts), MaxHosts), "")
	}
	for _, host := range hosts {
		if holder, held := n.Holders[host]; held && holder.Lease.Owner != tenant {
			return Refuse(ErrHostTaken, errors.New(host), "choose another host name")
		}
		if _, named := mine[host]; !named {
			return Refuse(ErrInvalid, fmt.Errorf("host %s is not in the manifest of the destination", host), "add it to the SDL's accept and update the deployment")
		}
	}
	for _, host := range hosts {
		n.Highest++
		mine[host] = n.Highest
	}
	return nil
}

func (n Names) reserved(host string) bool {
	for _, domain := range n.Reserved {
		if domain != "" && (host == domain || strings.HasSuffix(host, "."+domain)) {
			return true
		}
	}
	return false
}
