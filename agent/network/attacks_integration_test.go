//go:build integration

package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
)

// raw sends one datagram of an IP protocol from ns; the kernel writes the IP
// header, and the checksum of ICMPv6.
func (w *world) raw(ns, network, to string, payload []byte) {
	w.t.Helper()
	_, err := netIn(w.t, ns, func() (int, error) {
		c, err := net.Dial(network, to)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return c.Write(payload)
	})
	must(w.t, err)
}

// sniff collects what a raw socket in ns hears, until the test ends.
func (w *world) sniff(ns, network, at string) <-chan []byte {
	w.t.Helper()
	c, err := netIn(w.t, ns, func() (net.PacketConn, error) { return net.ListenPacket(network, at) })
	must(w.t, err)
	heard := make(chan []byte, 4096)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			select {
			case heard <- bytes.Clone(buf[:n]):
			default:
			}
		}
	}()
	w.t.Cleanup(func() { c.Close(); <-done })
	return heard
}

// drain returns what is heard until nothing has come for a while.
func drain(heard <-chan []byte) (all [][]byte) {
	for {
		select {
		case p := <-heard:
			all = append(all, p)
		case <-time.After(impatience):
			return all
		}
	}
}

// checksum makes b's sum what ICMP wants, at offset 2.
func checksum(b []byte) []byte {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}

// TestMadeUpErrorsReachNobody sends ICMP errors about a connection of another
// tenant, which the box would translate and pass on as its router's are.
func TestMadeUpErrorsReachNobody(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	must(t, a.SetLease(t.Context(), keyB, shop(Full)))
	victim, evil := w.attach(a, id(keyA, "web", 0), Options{}), w.attach(a, id(keyB, "web", 0), Options{})
	w.open(victim.NetNS, internet+":80")
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	must(t, err)
	at := slices.IndexFunc(flows, func(f *netlink.ConntrackFlow) bool {
		return f.Forward.DstPort == 80 && f.Forward.SrcIP.String() == victim.Address.Addr().String()
	})
	if at < 0 {
		t.Fatal("the victim's connection is not tracked")
	}
	// Port unreachable, about the question as it left the box.
	message := make([]byte, 8+20+8)
	message[0], message[1] = 3, 3
	inner := message[8:]
	inner[0], inner[3], inner[8], inner[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	copy(inner[12:], net.ParseIP(boxLAN).To4())
	copy(inner[16:], net.ParseIP(internet).To4())
	binary.BigEndian.PutUint16(inner[20:], flows[at].Reverse.DstPort)
	binary.BigEndian.PutUint16(inner[22:], 80)
	checksum(message)
	heard := w.sniff(victim.NetNS, "ip4:icmp", "0.0.0.0")
	w.raw(evil.NetNS, "ip4:icmp", boxLAN, message)
	if got := drain(heard); len(got) > 0 {
		t.Errorf("the victim heard %x", got)
	}
	w.raw(w.outside, "ip4:icmp", boxLAN, message) // this test would see it
	select {
	case <-heard:
	case <-time.After(patience):
		t.Error("an error of the router did not arrive")
	}
}

// TestWhatIsNotTrackedDoesNotLeave: the kernel neither tracks nor translates
// neighbour discovery and its like, whoever it is for.
func TestWhatIsNotTrackedDoesNotLeave(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	w.reaches("the sender knows its gateway", web.NetNS, "udp6", "["+internet6+"]:9000", box6)
	heard := w.sniff(w.outside, "ip6:ipv6-icmp", internet6)
	kinds := []byte{130, 131, 132, 133, 134, 135, 136, 137, 143, 128}
	for _, kind := range kinds {
		message := append(make([]byte, 24), "made by a replica"...)
		message[0] = kind
		w.raw(web.NetNS, "ip6:ipv6-icmp", internet6, message)
	}
	var got []byte
	for _, p := range drain(heard) {
		if bytes.HasSuffix(p, []byte("made by a replica")) { // and not by the owner's router
			got = append(got, p[0])
		}
	}
	if !slices.Equal(got, []byte{128}) {
		t.Errorf("of the kinds %v there arrived %v, want the ping only", kinds, got)
	}
}

func TestPingsOfTheGatewayAreFew(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	web := w.attach(a, id(keyA, "web", 0), Options{})
	host6 := netip.MustParseAddr(address6(a, id(keyA, "web", 0))).Prev().String()
	for _, tc := range []struct {
		network, at, to string
		ask, answer     byte
	}{{"ip4:icmp", "0.0.0.0", web.Gateway.String(), 8, 0}, {"ip6:ipv6-icmp", "::", host6, 128, 129}} {
		t.Run(tc.network, func(t *testing.T) {
			w.t = t
			heard := w.sniff(web.NetNS, tc.network, tc.at)
			begin := time.Now()
			ping := func(times int) {
				t.Helper()
				_, err := netIn(t, web.NetNS, func() (int, error) {
					c, err := net.Dial(tc.network, tc.to)
					if err != nil {
						return 0, err
					}
					defer c.Close()
					for range times {
						if _, err := c.Write(checksum([]byte{tc.ask, 0, 0, 0, 0, 7, 0, 1})); err != nil {
							return 0, err
						}
					}
					return 0, nil
				})
				must(t, err)
			}
			ping(1)
			eventually(t, "a ping is answered", func() bool { return (<-heard)[0] == tc.answer })
			const pings = 400
			ping(pings)
			answers := 0
			for _, p := range drain(heard) {
				if p[0] == tc.answer {
					answers++
				}
			}
			if most := 21 + 10*int(1+time.Since(begin)/time.Second); answers > most {
				t.Errorf("%d of %d pings were answered, want at most %d", answers, pings, most)
			}
		})
	}
	w.t = t
}

// TestExtensionHeadersHideNothing sends TCP behind a header that a careless rule
// takes for the transport's.
func TestExtensionHeadersHideNothing(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	try := func(port string, within time.Duration) error {
		d := net.Dialer{Timeout: within, ControlContext: func(_ context.Context, _, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) { // 8 bytes of padding
				err = unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00")
			}); e != nil {
				return e
			}
			return err
		}}
		c, err := netIn(t, web.NetNS, func() (net.Conn, error) { return d.Dial("tcp6", "["+internet6+"]:"+port) })
		if err == nil {
			c.Close()
		}
		return err
	}
	must(t, try("80", patience))
	if try("25", impatience) == nil {
		t.Error("mail left behind a destination header")
	}
}

// TestPiecesOfPacketsStayOneReplicasMatter fills the kernel's store of
// fragments, which all share, with halves of packets.
func TestPiecesOfPacketsStayOneReplicasMatter(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	must(t, a.SetLease(t.Context(), keyB, shop(Full)))
	calm, evil := w.attach(a, id(keyA, "web", 0), Options{}), w.attach(a, id(keyB, "web", 0), Options{})
	w.reaches("the sender knows its gateway", evil.NetNS, "udp4", internet+":9000", boxLAN)
	w.reaches("the sender knows its gateway by IPv6", evil.NetNS, "udp6", "["+internet6+"]:9000", box6)
	flood := func(domain int, to unix.Sockaddr, packet func(i int) []byte) {
		t.Helper()
		_, err := netIn(t, evil.NetNS, func() (int, error) {
			fd, err := unix.Socket(domain, unix.SOCK_RAW, unix.IPPROTO_RAW)
			if err != nil {
				return 0, err
			}
			defer unix.Close(fd)
			for i := range 12_000 {
				if err := unix.Sendto(fd, packet(i), 0, to); err != nil {
					return 0, err
				}
			}
			return 0, nil
		})
		must(t, err)
	}
	source4, source6 := evil.Address.Addr().As4(), netip.MustParseAddr(address6(a, id(keyB, "web", 0))).As16()
	to4, to6 := netip.MustParseAddr(internet).As4(), netip.MustParseAddr(internet6).As16()
	flood(unix.AF_INET, &unix.SockaddrInet4{Addr: to4}, func(i int) []byte {
		p := make([]byte, 20+1024)
		p[0], p[6], p[8], p[9] = 0x45, 0x20, 64, unix.IPPROTO_UDP // more to come
		binary.BigEndian.PutUint16(p[4:], uint16(i+1))
		copy(p[12:], source4[:])
		copy(p[16:], to4[:])
		return p
	})
	flood(unix.AF_INET6, &unix.SockaddrInet6{Addr: to6}, func(i int) []byte {
		p := make([]byte, 40+8+1024)
		p[0], p[6], p[7], p[40], p[43] = 0x60, unix.IPPROTO_FRAGMENT, 64, unix.IPPROTO_UDP, 1
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		copy(p[8:], source6[:])
		copy(p[24:], to6[:])
		binary.BigEndian.PutUint32(p[44:], uint32(i+1))
		return p
	})
	for _, x := range []struct{ network, to string }{{"udp4", internet + ":9000"}, {"udp6", "[" + internet6 + "]:9000"}} {
		eventually(t, "a neighbour's long datagram by "+x.network, func() bool {
			c, err := netIn(t, calm.NetNS, func() (net.Conn, error) { return net.Dial(x.network, x.to) })
			must(t, err)
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(impatience))
			_, err = c.Write(make([]byte, 4000))
			must(t, err)
			_, err = c.Read(make([]byte, 64))
			return err == nil
		})
	}
	eventually(t, "they are counted", func() bool { return a.Denied(keyB).Rate > 20_000 })
}

// TestLANCannotPassForAReplica sends from the LAN with addresses that belong to
// links of the box.
func TestLANCannotPassForAReplica(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	web := w.attach(a, id(keyA, "web", 0), Options{})
	w.listenUDP("", ":9002")
	ns, h, err := insideOf(w.outside)
	must(t, err)
	defer ns.Close()
	defer h.Close()
	up0, err := h.LinkByName("up0")
	must(t, err)
	for _, x := range []struct{ from, to string }{{web.Address.Addr().String(), boxLAN}, {address6(a, id(keyA, "web", 0)), box6}, {hostLAN, boxLAN}, {hostLAN6, box6}} {
		from := netip.MustParseAddr(x.from)
		must(t, h.AddrReplace(up0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(from, from.BitLen())), Flags: unix.IFA_F_NODAD}))
		_, err := netIn(t, w.outside, func() (int, error) {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: from.AsSlice()}, &net.UDPAddr{IP: net.ParseIP(x.to), Port: 9002})
			if err != nil {
				return 0, err
			}
			defer c.Close()
			return c.Write([]byte("hello"))
		})
		must(t, err)
	}
	eventually(t, "honest datagrams arrive", func() bool { return len(w.senders()) >= 2 })
	if got := w.senders(); slices.ContainsFunc(got, func(s string) bool { return !strings.HasPrefix(s, hostLAN) && !strings.HasPrefix(s, hostLAN6) }) {
		t.Errorf("the box heard %q", got)
	}
}

// TestOwnersNetworkMayBeOneOfOurPools: the pools are guesses, and a home may
// use the very addresses.
func TestOwnersNetworkMayBeOneOfOurPools(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), func(c *Config) {
		c.Pools4 = []netip.Prefix{netip.MustParsePrefix("192.168.64.0/19"), netip.MustParsePrefix("10.88.0.0/16")}
	})
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	if !netip.MustParsePrefix("10.88.0.0/16").Contains(web.Address.Addr()) {
		t.Errorf("the replica has %v, out of the owner's network", web.Address)
	}
	w.reaches("the LAN reaches the box's page", w.outside, "tcp4", boxLAN+":80", routerLAN)
	w.reaches("the box reaches the internet", "", "tcp4", internet+":80", boxLAN)
	w.reaches("the replica too", web.NetNS, "tcp4", internet+":80", boxLAN)
	w.reachesNone(web.NetNS, []target{{"neighbour", "tcp4", hostLAN + ":80"}})
}

// TestUplinkMoves: a second network of the owner, with public addresses, becomes
// the way out.
func TestUplinkMoves(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	ns, h, err := insideOf(w.outside)
	must(t, err)
	defer ns.Close()
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth1"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "up1", netlink.NsFd(ns.Fd())
	must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { _ = removeLink("eth1") })
	eth1, err := netlink.LinkByName("eth1")
	must(t, err)
	up1, err := h.LinkByName("up1")
	must(t, err)
	must(t, netlink.LinkSetUp(eth1))
	must(t, h.LinkSetUp(up1))
	must(t, h.AddrReplace(up1, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("9.20.30.1/24"))}))
	must(t, netlink.AddrReplace(eth1, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("9.20.30.20/24"))}))
	a.wait(t, UplinkChanged)
	w.reaches("the box reaches its second network", "", "tcp4", "9.20.30.1:80", "9.20.30.20")
	w.reachesNone(web.NetNS, []target{{"second network without a default route", "tcp4", "9.20.30.1:80"}})
	w.reaches("the internet as before", web.NetNS, "tcp4", internet+":80", boxLAN)

	must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: eth1.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.ParseIP("9.20.30.1")}))
	a.wait(t, UplinkChanged)
	w.reaches("the internet the new way", web.NetNS, "tcp4", internet+":80", "9.20.30.20")
	w.reachesNone(web.NetNS, []target{{"second network as uplink", "tcp4", "9.20.30.1:80"}, {"first network, no uplink any more", "tcp4", hostLAN + ":80"}})

	must(t, netlink.RouteDel(&netlink.Route{LinkIndex: eth1.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.ParseIP("9.20.30.1")}))
	a.wait(t, UplinkChanged)
	w.reachesNone(web.NetNS, []target{{"internet without a default route", "tcp4", internet + ":80"}})
}

// TestNothingSlipsThroughWhileRulesChange changes the sets that keep a replica
// from private addresses, again and again, while it sends there.
func TestNothingSlipsThroughWhileRulesChange(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), func(c *Config) { c.NewFlows, c.NewBurst, c.Flows, c.Check = 1e6, 1e6, 1e6, time.Hour })
	ctx := t.Context()
	must(t, a.SetLease(ctx, keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	stop, ended := make(chan struct{}), make(chan error, 1)
	var sent atomic.Int64
	go func() {
		_, err := netIn(t, web.NetNS, func() (int, error) {
			c, err := net.ListenUDP("udp4", nil)
			if err != nil {
				return 0, err
			}
			defer c.Close()
			for {
				select {
				case <-stop:
					return 0, nil
				default:
				}
				for _, to := range []string{"10.1.2.3", hostLAN, "172.20.0.1", "100.64.0.1"} {
					if _, err := c.WriteToUDP([]byte("slip"), &net.UDPAddr{IP: net.ParseIP(to), Port: 9001}); err != nil {
						return 0, err
					}
					sent.Add(1)
				}
			}
		})
		ended <- err
	}()
	for i := 0; i < 20 || sent.Load() < 1000; i++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{9, 9, byte(i), 0}), 24)
		must(t, a.SetBlocked(ctx, []netip.Prefix{p}))
		must(t, a.SetLease(ctx, keyB, Lease{Egress: []Egress{None, Full}[i%2], Mail: i%2 == 0}))
	}
	close(stop)
	must(t, <-ended)
	if got := w.senders(); len(got) > 0 {
		t.Errorf("of %d datagrams %d slipped through: %q", sent.Load(), len(got), got[:min(len(got), 4)])
	}
	w.reaches("the internet", web.NetNS, "udp4", internet+":9000", boxLAN) // this test would see them
	if len(w.senders()) == 0 {
		t.Error("the outside hears nothing at all")
	}
}

func TestBlockedPrefixesSurviveTheAgent(t *testing.T) {
	w := newWorld(t)
	store := journal.NewMemory()
	a := w.agent(store, nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	must(t, a.SetBlocked(t.Context(), []netip.Prefix{netip.MustParsePrefix(internet + "/32")}))
	a.kill()
	b := w.agent(store, nil)
	left, err := b.Adopt(t.Context())
	must(t, err)
	if !slices.Equal(left, []lease.ReplicaID{id(keyA, "web", 0)}) {
		t.Fatalf("adopted %v", left)
	}
	w.reachesNone(web.NetNS, []target{{"router's public address", "tcp4", internet + ":80"}})
	must(t, b.SetBlocked(t.Context(), nil))
	w.reaches("the internet", web.NetNS, "tcp4", internet+":80", boxLAN)
}
