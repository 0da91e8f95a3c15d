package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flow is a connection that the kernel tracks, as it was opened.
type flow struct{ Src, Dst netip.Addr }

type flowFilter func(flow) bool

// MatchConntrackFlow makes a filter of the library's kind.
func (match flowFilter) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	src, ok1 := netip.AddrFromSlice(f.Forward.SrcIP)
	dst, ok2 := netip.AddrFromSlice(f.Forward.DstIP)
	return ok1 && ok2 && match(flow{src.Unmap(), dst.Unmap()})
}

// forgetFlows makes the kernel judge the next packet of the matching
// connections like that of a new one.
func forgetFlows(match func(flow) bool) error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, flowFilter(match)); err != nil {
			return fmt.Errorf("close connections: %w", err)
		}
	}
	return nil
}
