package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	croft "github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/network/firewall"
)

// newIdentity is a random hardware address of the locally administered kind.
func newIdentity() string {
	raw := make(net.HardwareAddr, 6)
	_, _ = rand.Read(raw) // never fails
	raw[0] = raw[0]&^1 | 2
	return raw.String()
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// makeNamespace makes a network namespace that lives as long as the file path,
// and reports whether it had to.
func makeNamespace(sys, path string) (made bool, err error) {
	if isNamespace(path) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("make network namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return false, fmt.Errorf("make network namespace: %w", err)
	}
	_ = f.Close()
	result := make(chan error)
	go func() {
		// Not unlocked: the thread ends with the goroutine, so that no other
		// goroutine ever runs in the namespace by mistake.
		runtime.LockOSThread()
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			// Links made here later start with these.
			settings := map[string]string{
				"net/ipv4/conf/default/accept_redirects": "0",
				"net/ipv6/conf/default/accept_ra":        "0",
				"net/ipv6/conf/default/autoconf":         "0",
				"net/ipv6/conf/default/accept_redirects": "0",
				"net/ipv6/conf/default/addr_gen_mode":    "1",
				"net/ipv6/conf/default/disable_ipv6":     "0",
			}
			if err := write(sys, settings); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
	}()
	if err := <-result; err != nil {
		_ = os.Remove(path)
		return false, fmt.Errorf("make network namespace %s: %w", path, err)
	}
	return true, nil
}

func removeNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// write writes settings of the kernel. What has IPv6 in its name may be missing
// on a kernel without it.
func write(sys string, settings map[string]string) error {
	for name, value := range settings {
		path := filepath.Join(sys, name)
		if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == value {
			continue
		}
		// Not os.WriteFile: a setting is never created.
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err == nil {
			_, err = f.WriteString(value)
			err = errors.Join(err, f.Close())
		}
		if errors.Is(err, fs.ErrNotExist) && strings.Contains(name, "/ipv6/") {
			continue
		}
		if err != nil {
			return fmt.Errorf("set %s to %s: %w", name, value, err)
		}
	}
	return nil
}

func hasIPv6(sys string) bool {
	_, err := os.Stat(filepath.Join(sys, "net/ipv6/conf/all/forwarding"))
	return err == nil
}

// settingsTurned switches forwarding on. A router ignores router
// advertisements, so that interfaces that learnt their address from one are told
// to go on listening first.
func (n *Network) settingsTurned() error {
	if hasIPv6(n.cfg.Sys) {
		folders, err := os.ReadDir(filepath.Join(n.cfg.Sys, "net/ipv6/conf"))
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, f := range folders {
			name := filepath.Join("net/ipv6/conf", f.Name(), "accept_ra")
			if f.Name() == "lo" || f.Name() == "all" || strings.HasPrefix(f.Name(), firewall.LinkPrefix) {
				continue
			}
			raw, err := os.ReadFile(filepath.Join(n.cfg.Sys, name))
			if err != nil || strings.TrimSpace(string(raw)) != "1" {
				continue // gone meanwhile, or told otherwise by somebody
			}
			if err := write(n.cfg.Sys, map[string]string{name: "2"}); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := write(n.cfg.Sys, map[string]string{"net/ipv6/conf/all/forwarding": "1"}); err != nil {
			return err
		}
	}
	return write(n.cfg.Sys, map[string]string{"net/ipv4/ip_forward": "1"})
}

func notFound(err error) bool {
	_, missing := errors.AsType[netlink.LinkNotFoundError](err)
	return missing || errors.Is(err, unix.ENODEV)
}

// insideOf opens a namespace and a handle into it.
func insideOf(path string) (*os.File, *netlink.Handle, error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open network namespace: %w", err)
	}
	// With the family named: without, it also opens XFRM, which lean kernels lack.
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, nil, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return ns, h, nil
}

// linkStands says whether both ends of the replica's link are where they belong.
func linkStands(r replica, path string) bool {
	host, err := netlink.LinkByName(r.Link)
	if err != nil || host.Attrs().HardwareAddr.String() != r.Identity {
		return false
	}
	ns, h, err := insideOf(path)
	if err != nil {
		return false
	}
	defer ns.Close()
	defer h.Close()
	inner, err := h.LinkByName(containerLink)
	return err == nil && inner.Attrs().ParentIndex == host.Attrs().Index
}

// makeLink makes the pair of ends unless it stands, and reports the link's
// identity. A new link is a new identity, even for the same replica.
func makeLink(r replica, path string) (identity string, made bool, err error) {
	if linkStands(r, path) {
		return r.Identity, false, nil
	}
	if err := removeLink(r.Link); err != nil {
		return "", false, err
	}
	ns, h, err := insideOf(path)
	if err != nil {
		return "", false, err
	}
	defer ns.Close()
	defer h.Close()
	if stale, err := h.LinkByName(containerLink); err == nil {
		if err := h.LinkDel(stale); err != nil {
			return "", false, fmt.Errorf("remove old end of link %s: %w", r.Link, err)
		}
	}
	identity = newIdentity()
	outer, _ := net.ParseMAC(identity)
	inner, _ := net.ParseMAC(newIdentity())
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = r.Link, outer
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = containerLink, inner, netlink.NsFd(ns.Fd())
	if err := netlink.LinkAdd(veth); err != nil {
		return "", false, &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("make link %s: %w", r.Link, err), Remedy: "load the kernel module veth"}
	}
	return identity, true, nil
}

// configureHostEnd: kernel settings before the link comes up, then addresses
// and shaping. Repeating it changes nothing.
func configureHostEnd(sys string, r replica) error {
	conf4, conf6 := "net/ipv4/conf/"+r.Link+"/", "net/ipv6/conf/"+r.Link+"/"
	err := write(sys, map[string]string{
		conf4 + "rp_filter": "1", conf4 + "proxy_arp": "0", conf4 + "accept_redirects": "0", conf4 + "send_redirects": "0",
		conf4 + "accept_source_route": "0", conf4 + "route_localnet": "0", conf4 + "forwarding": "1",
		conf4 + "arp_ignore": "1", conf4 + "arp_announce": "2", // the box's other addresses are not for this link
		conf6 + "disable_ipv6": "0", conf6 + "addr_gen_mode": "1", conf6 + "accept_ra": "0", conf6 + "autoconf": "0",
		conf6 + "accept_redirects": "0", conf6 + "proxy_ndp": "0", conf6 + "forwarding": "1",
		conf6 + "accept_source_route": "-1", conf6 + "seg6_enabled": "0",
	})
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(r.Link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", r.Link, err)
	}
	h := &netlink.Handle{}
	addresses := []netip.Prefix{netip.PrefixFrom(r.host4(), linkBits4)}
	if hasIPv6(sys) {
		addresses = append(addresses, netip.PrefixFrom(r.host6(), linkBits6), netip.PrefixFrom(netip.MustParseAddr(hostLink6), 64))
	}
	return configure(h, link, addresses, r.Down)
}

func configure(h *netlink.Handle, link netlink.Link, addresses []netip.Prefix, rate int64) error {
	name := link.Attrs().Name
	if err := shape(h, link, rate); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("start link %s: %w", name, err)
	}
	for _, p := range addresses {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // there is nobody else on the link
		}
		if err := h.AddrReplace(link, a); err != nil {
			return fmt.Errorf("give link %s address %v: %w", name, p, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// configureContainerEnd: with addresses, the container's end gets its addresses
// and default routes as well; without, only its shaping is kept right, since a
// running sandbox has taken the addresses away.
func configureContainerEnd(sys string, r replica, path string, addresses bool) error {
	ns, h, err := insideOf(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	link, err := h.LinkByName(containerLink)
	if err != nil {
		return fmt.Errorf("find container's end of link %s: %w", r.Link, err)
	}
	if !addresses {
		return shape(h, link, r.Up)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("start loopback: %w", err)
	}
	own := []netip.Prefix{netip.PrefixFrom(r.Address4, linkBits4)}
	v6 := hasIPv6(sys)
	if v6 {
		own = append(own, netip.PrefixFrom(r.Address6, linkBits6), netip.PrefixFrom(netip.MustParseAddr(firewall.ContainerLink6), 64))
	}
	// gVisor leaves loopback without addresses as well.
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}
	if v6 {
		loopback = append(loopback, netip.MustParsePrefix("::1/128"))
	}
	for _, p := range loopback {
		if err := h.AddrReplace(lo, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
			return fmt.Errorf("give loopback address %v: %w", p, err)
		}
	}
	if err := configure(h, link, own, r.Up); err != nil {
		return err
	}
	gateways := []netip.Addr{r.host4()}
	if v6 {
		gateways = append(gateways, r.host6())
	}
	for _, gw := range gateways {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gw.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("give link %s its default route: %w", r.Link, err)
		}
	}
	return nil
}

// Shaping: packets of 64 KiB pass through a virtual link in one piece, and the
// bucket must hold one.
const (
	minBurst    = 128 << 10 // bytes
	burstPart   = 100       // of a second's bytes
	latencyPart = 20        // of a second's bytes may wait
)

// tbf is the token bucket for a rate in bits a second.
func tbf(index int, rate int64) *netlink.Tbf {
	bytes := uint64(rate / 8)
	burst := max(minBurst, bytes/burstPart)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytes,
		Limit:      uint32(burst + bytes/latencyPart),
		Buffer:     netlink.Xmittime(bytes, uint32(burst)),
	}
}

// shape limits what a link sends; it leaves a bucket that is right alone, since
// replacing it drops what waits in it.
func shape(h *netlink.Handle, link netlink.Link, rate int64) error {
	list, err := h.QdiscList(link)
	if err != nil {
		return fmt.Errorf("read shaping of link %s: %w", link.Attrs().Name, err)
	}
	var old *netlink.Tbf
	for _, q := range list {
		if t, ok := q.(*netlink.Tbf); ok {
			old = t
		}
	}
	if rate == 0 {
		if old == nil {
			return nil
		}
		if err := h.QdiscDel(old); err != nil {
			return fmt.Errorf("stop shaping link %s: %w", link.Attrs().Name, err)
		}
		return nil
	}
	want := tbf(link.Attrs().Index, rate)
	if old != nil && old.Rate == want.Rate && old.Limit == want.Limit {
		return nil
	}
	if err := h.QdiscReplace(want); err != nil {
		return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("shape link %s: %w", link.Attrs().Name, err), Remedy: "load the kernel module sch_tbf"}
	}
	return nil
}

// stopLink takes the host's end down: nothing is counted after.
func stopLink(name string) error {
	link, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil && !notFound(err) {
		return fmt.Errorf("stop link %s: %w", name, err)
	}
	return nil
}

// removeLink deletes the host's end; the other goes with it.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !notFound(err) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// readLink reads the bytes a link has carried, seen from the replica.
func readLink(name string) (reading, string, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return reading{}, "", fmt.Errorf("read link %s: %w", name, err)
	}
	a := link.Attrs()
	if a.Statistics == nil {
		return reading{}, "", fmt.Errorf("read link %s: no statistics", name)
	}
	return reading{In: a.Statistics.TxBytes, Out: a.Statistics.RxBytes}, a.HardwareAddr.String(), nil
}

// removeOthers removes links and namespaces of ours that are not to be kept.
func removeOthers(dir string, links, files map[string]bool) error {
	all, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range all {
		if name := l.Attrs().Name; strings.HasPrefix(name, firewall.LinkPrefix) && l.Type() == "veth" && !links[name] {
			if err := removeLink(name); err != nil {
				return err
			}
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, e := range entries {
		if !files[e.Name()] {
			if err := removeNamespace(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// readUplinks reads the box's own addresses and routes; what changed while it
// was read is read again.
func readUplinks(fixed []string, guard6 int) (u firewall.Uplinks, err error) {
	for range 5 {
		if u, err = readUplinksOnce(fixed, guard6); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return u, err
}

func readUplinksOnce(fixed []string, guard6 int) (firewall.Uplinks, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return firewall.Uplinks{}, err
	}
	names := map[int]string{}
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && !strings.HasPrefix(name, firewall.LinkPrefix) {
			names[l.Attrs().Index] = name
		}
	}
	var addresses []firewall.HostAddress
	var routes []firewall.HostRoute
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.AddrList(nil, family)
		if err != nil {
			return firewall.Uplinks{}, err
		}
		for _, a := range list {
			p, ok := prefixOf(a.IPNet)
			if name := names[a.LinkIndex]; ok && name != "" {
				addresses = append(addresses, firewall.HostAddress{Link: name, Prefix: p})
			}
		}
		found, err := netlink.RouteList(nil, family)
		if err != nil {
			return firewall.Uplinks{}, err
		}
		for _, r := range found {
			to, ok := prefixOf(r.Dst)
			if !ok && r.Dst == nil {
				to, ok = netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
				if family == unix.AF_INET6 {
					to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
				}
			}
			if !ok || (r.Type != unix.RTN_UNICAST && r.Type != unix.RTN_UNSPEC) {
				continue
			}
			hops := []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw}}
			if len(r.MultiPath) > 0 {
				hops = r.MultiPath
			}
			for _, hop := range hops {
				via, _ := netip.AddrFromSlice(hop.Gw)
				if name := names[hop.LinkIndex]; name != "" {
					routes = append(routes, firewall.HostRoute{Link: name, To: to, Via: via.Unmap()})
				}
			}
		}
	}
	return firewall.JudgeUplinks(fixed, guard6, addresses, routes), nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if a.Is4In6() && bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), true
}

// watchUplink pokes changed whenever links, addresses or routes change. What it
// misses, the periodic check finds.
func (n *Network) watchUplink(ctx context.Context, changed chan<- struct{}) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		n.log.Warn("uplink not watched", "error", err)
		return
	}
	release := context.AfterFunc(ctx, s.Close)
	defer func() {
		if release() {
			s.Close()
		}
	}()
	for {
		_, _, err := s.Receive()
		if ctx.Err() != nil {
			return
		}
		if err != nil && !slices.Contains([]error{unix.ENOBUFS, unix.EINTR}, err) {
			n.log.Warn("uplink no longer watched", "error", err)
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}
