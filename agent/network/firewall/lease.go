package firewall

import (
	"fmt"
	"regexp"
	"slices"
)

// Egress is what of the internet a lease reaches.
type Egress string

// The classes.
const (
	None Egress = "none" // nothing; names of the internet are not resolved either
	Full Egress = "full" // every public address
)

// Port is a port of a service and the services of the same lease that may use it.
type Port struct {
	Number   uint16   `json:"number"`
	Protocol string   `json:"protocol"` // "tcp" or "udp"
	To       []string `json:"to"`       // service names; the service itself if its replicas talk to each other
}

// Service is one service of a lease. A service without ports needs no entry.
type Service struct {
	Name   string   `json:"name"`
	Ports  []Port   `json:"ports"`
	Silent []string `json:"silent,omitempty"` // pods that its name does not lead to: they do not answer yet, or are leaving
}

// Lease says what the replicas of a lease may do. The zero value allows nothing.
type Lease struct {
	Egress   Egress    `json:"egress"`
	Mail     bool      `json:"mail"` // may dial TCP ports 25, 465 and 587
	Services []Service `json:"services"`
}

// Denied counts packets that were dropped, by reason.
type Denied struct {
	Spoofed uint64 `json:"spoofed"` // from an address that is not the replica's
	Private uint64 `json:"private"` // to addresses that are not public, to the owner's network, or without egress
	Box     uint64 `json:"box"`     // to the box itself
	Inside  uint64 `json:"inside"`  // to other replicas, unless exposed
	Mail    uint64 `json:"mail"`    // to mail servers
	Rate    uint64 `json:"rate"`    // too many connections, new or at once, or too many questions
}

// Sum is all of them.
func (d Denied) Sum() uint64 { return d.Spoofed + d.Private + d.Box + d.Inside + d.Mail + d.Rate }

// Bounds on the description of a lease.
const (
	maxServices = 64 // of a lease; Akash's manifests have at most 20
	maxPorts    = 64 // exposed by a service
)

var serviceForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// IsService says whether name can be a service's: a DNS label in lower case.
func IsService(name string) bool { return serviceForm.MatchString(name) }

// Check says why a description cannot be right.
func Check(l Lease) error {
	if l.Egress != "" && l.Egress != None && l.Egress != Full {
		return fmt.Errorf("egress %q: want none or full", l.Egress)
	}
	if len(l.Services) > maxServices {
		return fmt.Errorf("%d services: more than %d", len(l.Services), maxServices)
	}
	seen := map[string]bool{}
	for _, s := range l.Services {
		if !serviceForm.MatchString(s.Name) || seen[s.Name] {
			return fmt.Errorf("service %q: want distinct names of 1 to 63 of a-z, 0-9 and '-'", s.Name)
		}
		seen[s.Name] = true
		if len(s.Ports) > maxPorts {
			return fmt.Errorf("service %q exposes %d ports: more than %d", s.Name, len(s.Ports), maxPorts)
		}
		for _, p := range s.Ports {
			if p.Number == 0 || (p.Protocol != "tcp" && p.Protocol != "udp") || len(p.To) > maxServices {
				return fmt.Errorf("service %q: port %d/%s cannot be exposed", s.Name, p.Number, p.Protocol)
			}
			for _, to := range p.To {
				if !serviceForm.MatchString(to) {
					return fmt.Errorf("service %q: port %d is exposed to %q, not a service", s.Name, p.Number, to)
				}
			}
		}
	}
	return nil
}

// SameLease says whether nothing differs.
func SameLease(a, b Lease) bool {
	return a.Egress == b.Egress && a.Mail == b.Mail && SamePorts(a, b)
}

// SamePorts says whether the same is exposed to the same.
func SamePorts(a, b Lease) bool {
	return slices.EqualFunc(a.Services, b.Services, func(x, y Service) bool {
		return x.Name == y.Name && slices.Equal(x.Silent, y.Silent) && slices.EqualFunc(x.Ports, y.Ports, func(p, q Port) bool {
			return p.Number == q.Number && p.Protocol == q.Protocol && slices.Equal(p.To, q.To)
		})
	})
}

// Permissions counts the (port, asking service) pairs, of which each replica
// that exposes the port needs its own element of a set.
func (l Lease) Permissions() (count int) {
	for _, s := range l.Services {
		for _, p := range s.Ports {
			count += len(p.To)
		}
	}
	return count
}
