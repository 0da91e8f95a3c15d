package blueprint

import (
	"cmp"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/sdl"
)

// Table is how the world reaches what runs here. It is never changed after it
// was published.
type Table struct {
	Hosts []Host // by name
	Ports []Port // by lease, service, external port and protocol
}

// Host is a host name of HTTP requests.
type Host struct {
	Name     string
	Lease    akash.LeaseID
	Service  string
	Options  sdl.HTTPOptions
	Backends []netip.AddrPort // replicas that answer; none: the service is down
}

// Port is a port of a service that the world may connect to.
type Port struct {
	Lease    akash.LeaseID
	Service  string
	Port     uint16 // of the replicas
	External uint16 // that the tenant asked for
	UDP      bool
	IP       uint32           // sequence number of the leased address; 0: none
	Backends []netip.AddrPort // replicas that answer
}

// Routes collects what services offer the world. The zero value is ready.
type Routes struct {
	hosts map[string]*Host
	ports map[string]*Port
}

// Add adds what one generation of a service offers: the newest comes first, its
// options count. Addresses are those of its replicas that answer, domain ends
// automatic host names, and mine says whether the lease may have a host name.
func (r *Routes) Add(id akash.LeaseID, spec sdl.Service, domain string, addresses []netip.Addr, mine func(host string) bool) {
	if r.hosts == nil {
		r.hosts, r.ports = map[string]*Host{}, map[string]*Port{}
	}
	offered := map[string]bool{} // by this generation: a second expose of the same adds nothing
	for _, e := range spec.Expose {
		if !e.Global {
			continue
		}
		var backends []netip.AddrPort
		for _, a := range addresses {
			backends = append(backends, netip.AddrPortFrom(a, uint16(e.Port)))
		}
		if !ByHost(e) || e.IP != "" {
			key := fmt.Sprintf("%s/%s/%d/%s/%d", lease.KeyOf(id), spec.Name, externalPort(e), e.Proto, e.EndpointSequenceNumber)
			if r.ports[key] == nil {
				r.ports[key] = &Port{Lease: id, Service: spec.Name, Port: uint16(e.Port), External: uint16(externalPort(e)), UDP: e.Proto == "UDP", IP: e.EndpointSequenceNumber}
			}
			if !offered[key] {
				r.ports[key].Backends = append(r.ports[key].Backends, backends...)
			}
			offered[key] = true
		}
		if !ByHost(e) {
			continue
		}
		names := slices.Clone(e.Hosts)
		if auto := AutomaticHost(domain, id, spec.Name); auto != "" {
			names = append(names, auto)
		}
		for _, name := range names {
			if !mine(name) {
				continue
			}
			if r.hosts[name] == nil {
				r.hosts[name] = &Host{Name: name, Lease: id, Service: spec.Name, Options: e.HTTPOptions}
			}
			if r.hosts[name].Service == spec.Name && !offered[name] {
				r.hosts[name].Backends = append(r.hosts[name].Backends, backends...)
			}
			offered[name] = true
		}
	}
}

// Table is all that was added.
func (r *Routes) Table() Table {
	var t Table
	for _, h := range r.hosts {
		slices.SortFunc(h.Backends, netip.AddrPort.Compare)
		t.Hosts = append(t.Hosts, *h)
	}
	for _, p := range r.ports {
		slices.SortFunc(p.Backends, netip.AddrPort.Compare)
		t.Ports = append(t.Ports, *p)
	}
	slices.SortFunc(t.Hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(t.Ports, func(a, b Port) int {
		return cmp.Or(strings.Compare(a.Lease.String(), b.Lease.String()), strings.Compare(a.Service, b.Service),
			cmp.Compare(a.External, b.External), cmp.Compare(boolInt(a.UDP), boolInt(b.UDP)), cmp.Compare(a.IP, b.IP))
	})
	return t
}

var hostEncoding = base32.HexEncoding.WithPadding(base32.NoPadding)

// AutomaticHost is the host name below domain that a service has without asking;
// empty if domain is: this provider gives none.
func AutomaticHost(domain string, id akash.LeaseID, service string) string {
	if domain == "" {
		return ""
	}
	name := uuid.NewSHA1(uuid.NameSpaceDNS, []byte(id.String()+service))
	return strings.ToLower(hostEncoding.EncodeToString(name[:])) + "." + domain
}
