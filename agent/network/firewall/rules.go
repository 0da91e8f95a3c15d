// Package firewall is the nftables table that stands between the tenants, the
// box, the owner's network and the internet: the policy as data ([Build]), and
// that data in the kernel ([Replace], [SameStructure], [Sync]). agent/network
// decides when; this package keeps no state and starts nothing.
//
// Its promise is that of a transaction: after a call the kernel has all of the
// new table or all of the old one. What replicas may do is in agent/network's
// package comment; each rule carries its sentence into the kernel, where
// "nft list table inet croft" shows it.
//
// What survives what: the table lives until reboot, whatever becomes of the
// agent. Elements that the kernel fills itself (rates, counters) are lost when
// the structure is replaced, and only then.
package firewall

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is our table's, of family inet.
const TableName = "croft"

// Sets that the kernel fills itself, one element a link, each with a state.
const (
	countSpoofed, countPrivate, countBox, countInside, countMail, countRate = "count_spoofed", "count_private", "count_box", "count_inside", "count_mail", "count_rate"

	rateName, rateNear, rateBox, rateEcho, rateInside, rateOutside, rateFragment = "rate_name", "rate_near", "rate_box", "rate_echo", "rate_inside", "rate_outside", "rate_fragment"

	flowsOpen, flowsBox = "flows_open", "flows_box"
)

func counterSets() []string {
	return []string{countSpoofed, countPrivate, countBox, countInside, countMail, countRate}
}

func dynamicSets() []string {
	return append(counterSets(), rateName, rateNear, rateBox, rateEcho, rateInside, rateOutside, rateFragment, flowsOpen, flowsBox)
}

// Rates of the table that nobody needs to change, per replica and second.
const (
	namePackets   = 500  // datagrams to the name server: a busy mail filter asks some 100
	nearPackets   = 100  // neighbour discovery on a link with two ends
	boxFlows      = 100  // new connections to the name server
	boxOpen       = 2048 // and at once: what the name server answers in the 30 s that the kernel remembers a question
	fragments     = 100  // pieces of packets: the kernel has 4 MB for those of everybody, and keeps each for 30 s
	echoPackets   = 10   // pings of the gateway
	insideFlows   = 1000 // new connections within the lease: a proxy without keep-alive
	dynamicSize   = 4 * MaxReplicas
	elementsAtOne = 512 // elements of one netlink message: an attribute holds 64 KiB
)

// Names that agent/network and the rules share.
const (
	LinkPrefix     = "lv"      // of the host's ends of links
	ContainerLink6 = "fe80::2" // every replica's link-local address
	MaxReplicas    = 1024      // of the box; the sets are sized for it, and no box of ours runs that many sandboxes
)

// Replica is what the table needs to know of one. The host's end has the
// address before the replica's, of either family.
type Replica struct {
	Lease    string
	Service  string
	Link     string // host's end
	Address4 netip.Addr
	Address6 netip.Addr
}

// Limits are the configurable ones, each per replica.
type Limits struct {
	Flows    int // connections of a replica at once
	NewFlows int // new connections to the internet a second
	NewBurst int // and at once
}

// Fetch is what the box's own downloaders may reach: they connect to whatever
// name or address a tenant's OCI image gives them.
type Fetch struct {
	Levels    []int            // how far below the root of cgroup v2 their groups are; none: nothing is filtered
	Groups    []uint64         // inode numbers of the groups that exist
	Allowed   []netip.AddrPort // may be reached by TCP though they are not public
	Resolvers []netip.Addr     // the box's name servers
}

// Ruleset is the table as data: what is sent to the kernel and what it is
// compared with.
type Ruleset struct {
	sets   []set
	chains []chain
	tag    string // of sets' forms and chains; stands on every rule
}

type set struct {
	name     string
	key      []nftables.SetDatatype
	value    *nftables.SetDatatype // of a map
	interval bool
	dynamic  bool
	elements []element // sorted by key; nil if dynamic
}

type element struct {
	key, value []byte
	end        bool // of an interval
}

type chain struct {
	name  string
	base  *base // nil: only jumped to
	rules []rule
}

type base struct {
	kind   nftables.ChainType
	hook   *nftables.ChainHook
	at     nftables.ChainPriority
	policy nftables.ChainPolicy
}

// rule is a comment for who lists the table, and expressions.
type rule struct {
	comment string
	exprs   []expr.Any
}

// Equal says whether two rulesets are the same to the kernel.
func (r *Ruleset) Equal(o *Ruleset) bool {
	return r.tag == o.tag && slices.EqualFunc(r.sets, o.sets, func(a, b set) bool { return sameElements(a.elements, b.elements) })
}

func sameElements(a, b []element) bool {
	return slices.EqualFunc(a, b, func(x, y element) bool {
		return bytes.Equal(x.key, y.key) && bytes.Equal(x.value, y.value) && x.end == y.end
	})
}

func sortElements(list []element) []element {
	slices.SortFunc(list, func(a, b element) int {
		if c := bytes.Compare(a.key, b.key); c != 0 {
			return c
		}
		switch {
		case a.end == b.end:
			return 0
		case a.end:
			return -1
		}
		return 1
	})
	return slices.CompactFunc(list, func(a, b element) bool { return bytes.Equal(a.key, b.key) && a.end == b.end })
}

// Build is the whole policy. What it says, in words, is in the package
// comment; each rule has its sentence.
func Build(lim Limits, up Uplinks, blocked []netip.Prefix, fetch Fetch, leases map[string]Lease, replicas []Replica) *Ruleset {
	r := &Ruleset{sets: buildSets(up, blocked, fetch, leases, replicas), chains: buildChains(lim, fetch.Levels)}
	r.tag = r.structure()
	return r
}

// serviceOf is a service of a lease on this box.
type serviceOf struct {
	lease string
	name  string
}

func buildSets(up Uplinks, blocked []netip.Prefix, fetch Fetch, leases map[string]Lease, replicas []Replica) []set {
	ifname, mark, proto, port := nftables.TypeIFName, nftables.TypeMark, nftables.TypeInetProto, nftables.TypeInetService
	v4, v6 := nftables.TypeIPAddr, nftables.TypeIP6Addr
	var ours4, ours6, source4, source6, gateway4, gateway6, egress, mail, services, reach []element
	var groups, allowed4, allowed6, resolver4, resolver6 []element

	// Services are numbered in the order of their names; a number means nothing
	// outside one table.
	numbers := map[serviceOf]uint32{}
	links := map[serviceOf][]string{}
	for _, x := range replicas {
		links[serviceOf{x.Lease, x.Service}] = append(links[serviceOf{x.Lease, x.Service}], x.Link)
	}
	for i, s := range slices.SortedFunc(keys(links), func(a, b serviceOf) int {
		return cmp.Or(cmp.Compare(a.lease, b.lease), cmp.Compare(a.name, b.name))
	}) {
		numbers[s] = uint32(i + 1)
	}

	for _, x := range replicas {
		l := leases[x.Lease]
		link := ifnameKey(x.Link)
		ours4 = append(ours4, element{key: x.Address4.AsSlice()}, element{key: x.Address4.Prev().AsSlice()})
		ours6 = append(ours6, element{key: x.Address6.AsSlice()}, element{key: x.Address6.Prev().AsSlice()})
		source4 = append(source4, element{key: concat(link, x.Address4.AsSlice())})
		source6 = append(source6, element{key: concat(link, x.Address6.AsSlice())}, element{key: concat(link, netip.MustParseAddr(ContainerLink6).AsSlice())})
		gateway4 = append(gateway4, element{key: concat(link, x.Address4.Prev().AsSlice())})
		gateway6 = append(gateway6, element{key: concat(link, x.Address6.Prev().AsSlice())})
		if l.Egress == Full {
			egress = append(egress, element{key: link})
		}
		if l.Mail {
			mail = append(mail, element{key: link})
		}
		services = append(services, element{key: link, value: markKey(numbers[serviceOf{x.Lease, x.Service}])})
	}
	for key, l := range leases {
		for _, s := range l.Services {
			for _, p := range s.Ports {
				for _, to := range p.To {
					number, runs := numbers[serviceOf{key, to}]
					if !runs {
						continue
					}
					for _, link := range links[serviceOf{key, s.Name}] {
						reach = append(reach, element{key: concat(markKey(number), ifnameKey(link), protoKey(p.Protocol), portKey(p.Number))})
					}
				}
			}
		}
	}
	for _, group := range fetch.Groups {
		groups = append(groups, element{key: binary.NativeEndian.AppendUint64(nil, group)})
	}
	for _, a := range fetch.Allowed {
		if key := concat(a.Addr().Unmap().AsSlice(), portKey(a.Port())); a.Addr().Unmap().Is4() {
			allowed4 = append(allowed4, element{key: key})
		} else {
			allowed6 = append(allowed6, element{key: key})
		}
	}
	for _, a := range fetch.Resolvers {
		if a = a.Unmap(); a.Is4() {
			resolver4 = append(resolver4, element{key: a.AsSlice()})
		} else {
			resolver6 = append(resolver6, element{key: a.AsSlice()})
		}
	}
	named := func(names []string) (list []element) {
		for _, name := range names {
			list = append(list, element{key: ifnameKey(name)})
		}
		return list
	}
	all := slices.Concat(notPublic(), notPublic6(), up.Local, blocked)
	sets := []set{
		{name: "ours4", key: types(v4), elements: ours4}, // addresses of both ends of all links
		{name: "ours6", key: types(v6), elements: ours6},
		{name: "blocked4", key: types(v4), interval: true, elements: intervals(all, true)},
		{name: "blocked6", key: types(v6), interval: true, elements: intervals(all, false)},
		{name: "uplink4", key: types(ifname), elements: named(up.Names4)},
		{name: "uplink6", key: types(ifname), elements: named(up.Names6)},
		{name: "source4", key: types(ifname, v4), elements: source4},
		{name: "source6", key: types(ifname, v6), elements: source6},
		{name: "gateway4", key: types(ifname, v4), elements: gateway4},
		{name: "gateway6", key: types(ifname, v6), elements: gateway6},
		{name: "egress", key: types(ifname), elements: egress},
		{name: "mail", key: types(ifname), elements: mail},
		{name: "service", key: types(ifname), value: &mark, elements: services},
		{name: "reach", key: types(mark, ifname, proto, port), elements: reach},
	}
	if len(fetch.Levels) > 0 {
		sets = append(sets,
			set{name: "fetchers", key: types(nftables.TypeCGroupV2), elements: groups},
			set{name: "allowed4", key: types(v4, port), elements: allowed4},
			set{name: "allowed6", key: types(v6, port), elements: allowed6},
			set{name: "resolver4", key: types(v4), elements: resolver4},
			set{name: "resolver6", key: types(v6), elements: resolver6})
	}
	for i := range sets {
		sets[i].elements = sortElements(sets[i].elements)
	}
	for _, name := range dynamicSets() {
		sets = append(sets, set{name: name, key: types(ifname), dynamic: true})
	}
	return sets
}

func types(list ...nftables.SetDatatype) []nftables.SetDatatype { return list }

func keys[K comparable, V any](m map[K]V) func(yield func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func ifnameKey(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}

func markKey(n uint32) []byte       { return binary.NativeEndian.AppendUint32(nil, n) }
func portKey(n uint16) []byte       { return append(binary.BigEndian.AppendUint16(nil, n), 0, 0) }
func concat(parts ...[]byte) []byte { return slices.Concat(parts...) }

func protoKey(name string) []byte {
	if name == "udp" {
		return []byte{unix.IPPROTO_UDP, 0, 0, 0}
	}
	return []byte{unix.IPPROTO_TCP, 0, 0, 0}
}

// intervals are pairs of a first address and the one after the last; a range up
// to the end of the address space has no second.
func intervals(list []netip.Prefix, is4 bool) (out []element) {
	for _, s := range spans(list, is4) {
		out = append(out, element{key: s.from.AsSlice()})
		if next := s.to.Next(); next.IsValid() {
			out = append(out, element{key: next.AsSlice(), end: true})
		}
	}
	return out
}

// Registers. Single values are compared in regOne, at once; concatenated keys
// are built from regKey on, which is the same place, so that a key is built after
// all comparisons and looked up at once.
const (
	regOne    = unix.NFT_REG_1
	regKey    = unix.NFT_REG32_00
	regAfter  = unix.NFT_REG32_00 + unix.IFNAMSIZ/4 // behind a name
	regSource = unix.NFT_REG32_08                   // a link's name beside a key
)

func buildChains(lim Limits, levels []int) []chain {
	accept, drop := nftables.ChainPolicyAccept, nftables.ChainPolicyDrop
	list := []chain{
		counting(countSpoofed), counting(countPrivate), counting(countBox), counting(countInside), counting(countMail), counting(countRate),
		{name: "source", rules: []rule{
			{"the Replica's own IPv4 address", join(family4(), link(regKey), sourceAddress4(regAfter), in(regKey, "source4"), verdict(expr.VerdictAccept))},
			{"its own IPv6 addresses", join(family6(), link(regKey), sourceAddress6(regAfter), in(regKey, "source6"), verdict(expr.VerdictAccept))},
			{"neighbour discovery before an address is sure", join(family6(), sourceAddress6(regOne), equal(regOne, make([]byte, 16)), icmp6(135), verdict(expr.VerdictAccept))},
			{"other starts without an address are no attack", join(family6(), sourceAddress6(regOne), equal(regOne, make([]byte, 16)), verdict(expr.VerdictDrop))},
			{"nor is asking for an address", join(family4(), sourceAddress4(regOne), equal(regOne, make([]byte, 4)), verdict(expr.VerdictDrop))},
			{"all else is spoofed", goTo(countSpoofed)},
		}},
		{name: "fragments", base: &base{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityConntrackDefrag - 1, accept}, rules: []rule{
			{"too many pieces of packets", join(fromReplica(true), fragment4(), over(rateFragment, fragments, 2*fragments), goTo(countRate))},
			{"too many pieces of packets", join(fromReplica(true), fragment6(), over(rateFragment, fragments, 2*fragments), goTo(countRate))},
		}},
		{name: "prerouting", base: &base{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw, accept}, rules: []rule{
			{"what replicas send", join(fromReplica(true), goTo("source"))},
			{"the box to itself", join(link(regOne), equal(regOne, ifnameKey("lo")), verdict(expr.VerdictAccept))},
			{"nobody else has our addresses", join(family4(), sourceAddress4(regOne), in(regOne, "ours4"), verdict(expr.VerdictDrop))},
			{"nobody else has our addresses", join(family6(), sourceAddress6(regOne), in(regOne, "ours6"), verdict(expr.VerdictDrop))},
		}},
		{name: "from_replica", rules: []rule{
			{"too many questions", join(protocol(unix.IPPROTO_UDP), destinationPort(53), over(rateName, namePackets, 2*namePackets), goTo(countRate))},
			{"neighbour discovery, slowly", join(icmp6(135), over(rateNear, nearPackets, nearPackets), verdict(expr.VerdictDrop))},
			{"neighbour discovery, slowly", join(icmp6(136), over(rateNear, nearPackets, nearPackets), verdict(expr.VerdictDrop))},
			{"neighbour solicitation", join(icmp6(135), verdict(expr.VerdictAccept))},
			{"neighbour advertisement", join(icmp6(136), verdict(expr.VerdictAccept))},
			{"too many pings", join(protocol(unix.IPPROTO_ICMP), icmpType(8), over(rateEcho, echoPackets, echoPackets), verdict(expr.VerdictDrop))},
			{"too many pings", join(icmp6(128), over(rateEcho, echoPackets, echoPackets), verdict(expr.VerdictDrop))},
			{"answers to the box", join(state(expr.CtStateBitESTABLISHED), verdict(expr.VerdictAccept))},
			{"errors that a replica may have made up, and no connection's packet", join(state(expr.CtStateBitRELATED|expr.CtStateBitINVALID), verdict(expr.VerdictDrop))},
			{"too many connections to the box", join(over(rateBox, boxFlows, 2*boxFlows), goTo(countRate))},
			{"the gateway of this link", join(family4(), link(regKey), destinationAddress4(regAfter), in(regKey, "gateway4"), goTo("gateway"))},
			{"the gateway of this link", join(family6(), link(regKey), destinationAddress6(regAfter), in(regKey, "gateway6"), goTo("gateway"))},
			{"multicast reports and the like are no attack", join(family6(), destinationAddress6(regOne), startsWith(regOne, []byte{0xff}), verdict(expr.VerdictDrop))},
			{"the box is not for tenants", goTo(countBox)},
		}},
		{name: "gateway", rules: []rule{
			{"too many connections to the box at once", join(connectionsOver(flowsBox, boxOpen), goTo(countRate))},
			{"names", join(protocol(unix.IPPROTO_UDP), destinationPort(53), verdict(expr.VerdictAccept))},
			{"names", join(protocol(unix.IPPROTO_TCP), destinationPort(53), verdict(expr.VerdictAccept))},
			{"ping", join(protocol(unix.IPPROTO_ICMP), icmpType(8), verdict(expr.VerdictAccept))},
			{"ping", join(icmp6(128), verdict(expr.VerdictAccept))},
			{"nothing else", goTo(countBox)},
		}},
		{name: "input", base: &base{nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, accept}, rules: []rule{
			{"what replicas send", join(fromReplica(true), goTo("from_replica"))},
			{"the box to itself", join(meta(expr.MetaKeyIIFNAME, regOne), equal(regOne, ifnameKey("lo")), verdict(expr.VerdictAccept))},
			{"nobody else asks our name servers", join(family4(), destinationAddress4(regOne), in(regOne, "ours4"), verdict(expr.VerdictDrop))},
			{"nobody else asks our name servers", join(family6(), destinationAddress6(regOne), in(regOne, "ours6"), verdict(expr.VerdictDrop))},
		}},
		{name: "inside", rules: []rule{
			{"too many new connections", join(over(rateInside, insideFlows, 2*insideFlows), goTo(countRate))},
			{"too many connections", join(connectionsOver(flowsOpen, lim.Flows), goTo(countRate))},
			{"exposed", verdict(expr.VerdictAccept)},
		}},
		{name: "to_replica", rules: []rule{
			{"ports exposed to the sender's service", join(
				link(regSource), lookupValue(regSource, "service", regKey),
				meta(expr.MetaKeyOIFNAME, regKey+1), meta(expr.MetaKeyL4PROTO, regKey+5), destinationPortAt(regKey+6),
				in(regKey, "reach"), goTo("inside"))},
			{"nothing else", goTo(countInside)},
		}},
		{name: "outside", rules: []rule{
			{"too many new connections", join(over(rateOutside, lim.NewFlows, lim.NewBurst), goTo(countRate))},
			{"too many connections", join(connectionsOver(flowsOpen, lim.Flows), goTo(countRate))},
			{"the internet", verdict(expr.VerdictAccept)},
		}},
		{name: "forward", base: &base{nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter, drop}, rules: []rule{
			{"connections that were allowed", join(state(expr.CtStateBitESTABLISHED), verdict(expr.VerdictAccept))},
			{"errors about them that routers send", join(fromReplica(false), state(expr.CtStateBitRELATED), verdict(expr.VerdictAccept))},
			{"errors that a replica may have made up, and no connection's packet", join(state(expr.CtStateBitRELATED|expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), verdict(expr.VerdictDrop))},
			{"nobody but replicas is forwarded", join(fromReplica(false), verdict(expr.VerdictDrop))},
			{"to other replicas", join(meta(expr.MetaKeyOIFNAME, regOne), startsWith(regOne, []byte(LinkPrefix)), goTo("to_replica"))},
			{"leases without egress", join(link(regKey), notIn(regKey, "egress"), goTo(countPrivate))},
			{"addresses that are not public, or the owner's", join(family4(), destinationAddress4(regOne), in(regOne, "blocked4"), goTo(countPrivate))},
			{"addresses that are not public, or the owner's", join(family6(), destinationAddress6(regOne), in(regOne, "blocked6"), goTo(countPrivate))},
			{"mail", join(link(regKey), notIn(regKey, "mail"), protocol(unix.IPPROTO_TCP), destinationPort(25), goTo(countMail))},
			{"mail", join(link(regKey), notIn(regKey, "mail"), protocol(unix.IPPROTO_TCP), destinationPort(465), goTo(countMail))},
			{"mail", join(link(regKey), notIn(regKey, "mail"), protocol(unix.IPPROTO_TCP), destinationPort(587), goTo(countMail))},
			{"the internet", join(family4(), meta(expr.MetaKeyOIFNAME, regKey), in(regKey, "uplink4"), goTo("outside"))},
			{"the internet", join(family6(), meta(expr.MetaKeyOIFNAME, regKey), in(regKey, "uplink6"), goTo("outside"))},
		}},
		{name: "postrouting", base: &base{nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, accept}, rules: []rule{
			{"leave with the box's address", join(family4(), meta(expr.MetaKeyOIFNAME, regKey), in(regKey, "uplink4"), sourceAddress4(regOne), in(regOne, "ours4"), masquerade())},
			{"leave with the box's address", join(family6(), meta(expr.MetaKeyOIFNAME, regKey), in(regKey, "uplink6"), sourceAddress6(regOne), in(regOne, "ours6"), masquerade())},
		}},
	}
	if len(levels) == 0 {
		return list
	}
	output := chain{name: "output", base: &base{nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter, accept}}
	for _, level := range levels {
		output.rules = append(output.rules, rule{"what the box downloads for tenants", join(group(level), in(regOne, "fetchers"), goTo("fetch"))})
	}
	return append(list, output, chain{name: "fetch", rules: []rule{
		{"addresses that the operator names", join(family4(), protocol(unix.IPPROTO_TCP), destinationAddress4(regKey), destinationPortAt(regKey+1), in(regKey, "allowed4"), verdict(expr.VerdictAccept))},
		{"addresses that the operator names", join(family6(), protocol(unix.IPPROTO_TCP), destinationAddress6(regKey), destinationPortAt(regKey+4), in(regKey, "allowed6"), verdict(expr.VerdictAccept))},
		{"names", join(family4(), protocol(unix.IPPROTO_UDP), destinationPort(53), destinationAddress4(regOne), in(regOne, "resolver4"), verdict(expr.VerdictAccept))},
		{"names", join(family4(), protocol(unix.IPPROTO_TCP), destinationPort(53), destinationAddress4(regOne), in(regOne, "resolver4"), verdict(expr.VerdictAccept))},
		{"names", join(family6(), protocol(unix.IPPROTO_UDP), destinationPort(53), destinationAddress6(regOne), in(regOne, "resolver6"), verdict(expr.VerdictAccept))},
		{"names", join(family6(), protocol(unix.IPPROTO_TCP), destinationPort(53), destinationAddress6(regOne), in(regOne, "resolver6"), verdict(expr.VerdictAccept))},
		{"addresses that are not public, or the owner's", join(family4(), destinationAddress4(regOne), in(regOne, "blocked4"), goTo("refuse"))},
		{"addresses that are not public, or the owner's", join(family6(), destinationAddress6(regOne), in(regOne, "blocked6"), goTo("refuse"))},
		{"the internet", verdict(expr.VerdictAccept)},
	}}, chain{name: "refuse", rules: []rule{
		{"at once, or a download would wait for the answer", join(protocol(unix.IPPROTO_TCP), reset())},
		{"of other protocols the sender is told anyway", verdict(expr.VerdictDrop)},
	}})
}

// counting drops, and counts by link. Two rules: a full set ends a rule early,
// and the drop must not depend on it.
func counting(name string) chain {
	return chain{name: name, rules: []rule{
		{"count", join(link(regKey), []expr.Any{&expr.Dynset{SrcRegKey: regKey, SetName: name, Operation: unix.NFT_DYNSET_OP_ADD, Exprs: []expr.Any{&expr.Counter{}}}})},
		{"drop", verdict(expr.VerdictDrop)},
	}}
}

func join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func meta(key expr.MetaKey, reg uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}}
}

func payload(at expr.PayloadBase, offset, length, reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: at, Offset: offset, Len: length}}
}

func compare(op expr.CmpOp, reg uint32, data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: op, Register: reg, Data: data}}
}

func equal(reg uint32, data []byte) []expr.Any { return compare(expr.CmpOpEq, reg, data) }

// startsWith compares as many bytes as data has.
func startsWith(reg uint32, data []byte) []expr.Any { return compare(expr.CmpOpEq, reg, data) }

func link(reg uint32) []expr.Any { return meta(expr.MetaKeyIIFNAME, reg) }

func fromReplica(is bool) []expr.Any {
	op := expr.CmpOpEq
	if !is {
		op = expr.CmpOpNeq
	}
	return join(link(regOne), compare(op, regOne, []byte(LinkPrefix)))
}

func family4() []expr.Any {
	return join(meta(expr.MetaKeyNFPROTO, regOne), equal(regOne, []byte{unix.NFPROTO_IPV4}))
}

func family6() []expr.Any {
	return join(meta(expr.MetaKeyNFPROTO, regOne), equal(regOne, []byte{unix.NFPROTO_IPV6}))
}

func sourceAddress4(reg uint32) []expr.Any {
	return payload(expr.PayloadBaseNetworkHeader, 12, 4, reg)
}

func destinationAddress4(reg uint32) []expr.Any {
	return payload(expr.PayloadBaseNetworkHeader, 16, 4, reg)
}

func sourceAddress6(reg uint32) []expr.Any {
	return payload(expr.PayloadBaseNetworkHeader, 8, 16, reg)
}

func destinationAddress6(reg uint32) []expr.Any {
	return payload(expr.PayloadBaseNetworkHeader, 24, 16, reg)
}

func protocol(number byte) []expr.Any {
	return join(meta(expr.MetaKeyL4PROTO, regOne), equal(regOne, []byte{number}))
}

func destinationPortAt(reg uint32) []expr.Any {
	return payload(expr.PayloadBaseTransportHeader, 2, 2, reg)
}

func destinationPort(port uint16) []expr.Any {
	return join(destinationPortAt(regOne), equal(regOne, binary.BigEndian.AppendUint16(nil, port)))
}

func icmpType(number byte) []expr.Any {
	return join(payload(expr.PayloadBaseTransportHeader, 0, 1, regOne), equal(regOne, []byte{number}))
}

func icmp6(number byte) []expr.Any {
	return join(family6(), protocol(unix.IPPROTO_ICMPV6), icmpType(number))
}

// fragment4 matches pieces of a packet: those with more to come or an offset.
func fragment4() []expr.Any {
	return join(family4(), payload(expr.PayloadBaseNetworkHeader, 6, 2, regOne), []expr.Any{
		&expr.Bitwise{SourceRegister: regOne, DestRegister: regOne, Len: 2, Mask: []byte{0x3f, 0xff}, Xor: make([]byte, 2)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regOne, Data: make([]byte, 2)},
	})
}

// fragment6 matches packets with a fragment header.
func fragment6() []expr.Any {
	return join(family6(), []expr.Any{
		&expr.Exthdr{DestRegister: regOne, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regOne, Data: []byte{1}},
	})
}

// group is the inode number of the sending socket's cgroup, or of the one above
// it that is so many levels below the root.
func group(level int) []expr.Any {
	return []expr.Any{&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: uint32(level), Register: regOne}}
}

func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: regOne},
		&expr.Bitwise{SourceRegister: regOne, DestRegister: regOne, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regOne, Data: make([]byte, 4)},
	}
}

func in(reg uint32, name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: name}}
}

func notIn(reg uint32, name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: name, Invert: true}}
}

func lookupValue(reg uint32, name string, to uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: name, DestRegister: to, IsDestRegSet: true}}
}

// over matches packets of a link beyond rate a second after burst at once.
func over(name string, rate, burst int) []expr.Any {
	return join(link(regKey), []expr.Any{&expr.Dynset{SrcRegKey: regKey, SetName: name, Operation: unix.NFT_DYNSET_OP_ADD, Exprs: []expr.Any{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(rate), Unit: expr.LimitTimeSecond, Burst: uint32(burst), Over: true},
	}}})
}

// connectionsOver matches the first packet of a connection of a link that has
// count open.
func connectionsOver(name string, count int) []expr.Any {
	return join(link(regKey), []expr.Any{&expr.Dynset{SrcRegKey: regKey, SetName: name, Operation: unix.NFT_DYNSET_OP_ADD, Exprs: []expr.Any{
		&expr.Connlimit{Count: uint32(count), Flags: expr.NFT_CONNLIMIT_F_INV},
	}}})
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// reset answers for the other side that it does not want the connection.
func reset() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
}

func goTo(name string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: name}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{FullyRandom: true}} }

// structure is a digest of everything but the elements of sets.
func (r *Ruleset) structure() string {
	h := sha256.New()
	for _, s := range r.sets {
		_, _ = fmt.Fprintf(h, "set %s %v %v %v %v\n", s.name, s.key, s.value != nil, s.interval, s.dynamic)
	}
	for _, c := range r.chains {
		_, _ = fmt.Fprintf(h, "chain %s %v\n", c.name, c.base != nil)
		for _, x := range c.rules {
			_, _ = fmt.Fprintf(h, "rule %s\n", x.comment)
			for _, e := range x.exprs {
				raw, err := expr.Marshal(byte(nftables.TableFamilyINet), e)
				_, _ = fmt.Fprintf(h, "%x %v\n", raw, err)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// mark is what stands on the i-th rule of a chain: nft shows it as comment.
func (r *Ruleset) mark(c chain, i int) string {
	return fmt.Sprintf("%s [%s %d]", strings.TrimSpace(c.rules[i].comment), r.tag, i)
}
