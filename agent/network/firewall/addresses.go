package firewall

import (
	"net/netip"
	"slices"
)

// notPublic are the IPv4 prefixes that are not the internet: private, shared
// (CGNAT), loopback, link-local with the metadata services of clouds, protocol
// assignments, documentation, benchmarks, 6to4 relays, multicast, reserved; and
// 168.63.129.16, which looks public and is Azure's metadata service.
func notPublic() []netip.Prefix {
	return prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "168.63.129.16/32", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/3")
}

// notPublic6 is all but 2000::/3, and within it what carries IPv4 addresses or
// belongs to nobody: Teredo, ORCHID, documentation, 6to4. NAT64 (64:ff9b::/96)
// is outside 2000::/3: through it 192.168.1.1 would have an IPv6 address.
func notPublic6() []netip.Prefix {
	return prefixes("::/3", "4000::/2", "8000::/1", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
}

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		list[i] = netip.MustParsePrefix(t)
	}
	return list
}

// IsPublic says whether a is an address of the internet at large.
func IsPublic(a netip.Addr) bool {
	if a = a.Unmap().WithZone(""); a.Is4() {
		return !Contains(notPublic(), a)
	}
	return !Contains(notPublic6(), a)
}

// Contains says whether a is in one of the prefixes.
func Contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Subtract is what of list is not in old, prefix by prefix.
func Subtract(list, old []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool { return slices.Contains(old, p) })
}

// span is an inclusive range of addresses of one family.
type span struct{ from, to netip.Addr }

// spans are the prefixes of one family as sorted ranges that neither touch nor
// overlap, as an interval set wants them.
func spans(list []netip.Prefix, is4 bool) []span {
	var all []span
	for _, p := range list {
		if p.Addr().Is4() == is4 {
			all = append(all, span{p.Masked().Addr(), LastOf(p)})
		}
	}
	slices.SortFunc(all, func(a, b span) int { return a.from.Compare(b.from) })
	var out []span
	for _, s := range all {
		if last := len(out) - 1; last >= 0 {
			next := out[last].to.Next()
			if !next.IsValid() || s.from.Compare(next) <= 0 {
				if s.to.Compare(out[last].to) > 0 {
					out[last].to = s.to
				}
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// LastOf is the last address of p.
func LastOf(p netip.Prefix) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(raw)
	return a
}

// Uplinks is what is known of the box's own network.
type Uplinks struct {
	Known  bool           // the kernel has been asked
	Names4 []string       // interfaces with an IPv4 default route; sorted
	Names6 []string       // with an IPv6 default route and a public IPv6 address; sorted
	Local  []netip.Prefix // the owner's networks: on-link and routed prefixes, gateways; sorted
}

// Equal says whether nothing differs.
func (u Uplinks) Equal(o Uplinks) bool {
	return u.Known == o.Known && slices.Equal(u.Names4, o.Names4) && slices.Equal(u.Names6, o.Names6) && slices.Equal(u.Local, o.Local)
}

// Interfaces are all uplinks.
func (u Uplinks) Interfaces() []string {
	all := slices.Concat(u.Names4, u.Names6)
	slices.Sort(all)
	return slices.Compact(all)
}

// HostAddress and HostRoute are what the kernel says, reduced to what decides.
type HostAddress struct {
	Link   string
	Prefix netip.Prefix // the address itself with its network's length
}

type HostRoute struct {
	Link string
	To   netip.Prefix // 0 bits: default
	Via  netip.Addr   // invalid: on-link
}

// The widest route that is taken for the owner's network: the halves of the
// internet, 0.0.0.0/1 and 128.0.0.0/1, that a VPN routes are not one.
const (
	widestLocal4 = 8
	widestLocal6 = 16
)

// JudgeUplinks decides which interfaces lead out and what belongs to the owner.
// fixed names the uplinks; empty: whatever has a default route. guard6 is how
// long the owner's IPv6 network is at most.
func JudgeUplinks(fixed []string, guard6 int, addresses []HostAddress, routes []HostRoute) Uplinks {
	u := Uplinks{Known: true}
	public6 := map[string]bool{}
	local := func(p netip.Prefix) {
		if p.Addr().Is6() && IsPublic(p.Addr()) && p.Bits() > guard6 {
			p = netip.PrefixFrom(p.Addr(), guard6)
		}
		u.Local = append(u.Local, p.Masked())
	}
	for _, a := range addresses {
		local(a.Prefix)
		if a.Prefix.Addr().Is6() && IsPublic(a.Prefix.Addr()) {
			public6[a.Link] = true
		}
	}
	for _, r := range routes {
		widest := widestLocal6
		if r.To.Addr().Is4() {
			widest = widestLocal4
		}
		if r.To.Bits() >= widest {
			local(r.To)
		}
		if r.Via.IsValid() {
			local(netip.PrefixFrom(r.Via, r.Via.BitLen()))
		}
		out := r.To.Bits() == 0
		if len(fixed) > 0 {
			out = slices.Contains(fixed, r.Link)
		}
		switch {
		case !out:
		case r.To.Addr().Is4():
			u.Names4 = append(u.Names4, r.Link)
		case public6[r.Link]:
			u.Names6 = append(u.Names6, r.Link)
		}
	}
	slices.Sort(u.Names4)
	slices.Sort(u.Names6)
	slices.SortFunc(u.Local, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	u.Names4, u.Names6, u.Local = slices.Compact(u.Names4), slices.Compact(u.Names6), slices.Compact(u.Local)
	return u
}
