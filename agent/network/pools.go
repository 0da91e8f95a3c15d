package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	croft "github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/network/firewall"
)

// Each link has four addresses of either family, of which the host's end takes
// the second and the replica the third.
const (
	linkBits4 = 30
	linkBits6 = 126
	linkSize  = 4
)

var errPoolFull = errors.New("no address is free")

func checkPool4(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is4() || p.Bits() > 29 || p.Bits() < 8 || p != p.Masked() || firewall.IsPublic(p.Addr()) {
		return fmt.Errorf("IPv4 pool %v: want a private prefix of 8 to 29 bits", p)
	}
	return nil
}

func checkPool6(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is6() || p.Bits() < 64 || p.Bits() > 120 || p != p.Masked() || !p.Addr().IsPrivate() {
		return fmt.Errorf("IPv6 pool %v: want a prefix of 64 to 120 bits in fc00::/7", p)
	}
	return nil
}

// freeAddress4 is the next free replica address after cursor, in the first pool
// that no prefix of local overlaps. Addresses go round, so that one given back
// rests as long as possible.
func freeAddress4(pools, local []netip.Prefix, taken map[netip.Addr]bool, cursor uint64) (netip.Addr, uint64, error) {
	for _, pool := range pools {
		if slices.ContainsFunc(local, pool.Overlaps) {
			continue
		}
		first := pool.Addr().As4()
		base, count := binary.BigEndian.Uint32(first[:]), uint64(1)<<(linkBits4-pool.Bits())
		for i := range min(count, firewall.MaxReplicas+1) {
			var raw [4]byte
			binary.BigEndian.PutUint32(raw[:], base+uint32((cursor+i)%count)*linkSize+2)
			if a := netip.AddrFrom4(raw); !taken[a] {
				return a, cursor + i + 1, nil
			}
		}
		break // links of two pools at once would only hide that the first is too small
	}
	return netip.Addr{}, cursor, &croft.Error{Kind: croft.KindNoSpace, Err: errPoolFull, Remedy: "give the box an address pool that its own network does not use"}
}

// freeAddress6 does the same in the IPv6 pool.
func freeAddress6(pool netip.Prefix, taken map[netip.Addr]bool, cursor uint64) (netip.Addr, uint64, error) {
	raw := pool.Addr().As16()
	base, count := binary.BigEndian.Uint64(raw[8:]), uint64(1)<<(linkBits6-pool.Bits())
	for i := range min(count, firewall.MaxReplicas+1) {
		binary.BigEndian.PutUint64(raw[8:], base+((cursor+i)%count)*linkSize+2)
		if a := netip.AddrFrom16(raw); !taken[a] {
			return a, cursor + i + 1, nil
		}
	}
	return netip.Addr{}, cursor, &croft.Error{Kind: croft.KindNoSpace, Err: errPoolFull, Remedy: "give the box a larger IPv6 pool"}
}
