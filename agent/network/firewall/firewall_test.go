package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables/expr"
	"pgregory.net/rapid"
)

func TestIsPublic(t *testing.T) {
	for _, tc := range []struct {
		address string
		want    bool
	}{
		{"8.8.8.8", true},
		{"93.184.216.34", true},
		{"1.1.1.1", true},
		{"172.15.255.255", true},
		{"172.32.0.0", true},
		{"100.63.255.255", true},
		{"100.128.0.0", true},
		{"223.255.255.255", true},
		{"0.0.0.0", false},
		{"10.0.0.1", false},
		{"100.64.0.0", false},
		{"100.127.255.255", false},
		{"127.0.0.1", false},
		{"168.63.129.16", false},
		{"169.254.169.254", false},
		{"172.16.0.1", false},
		{"172.31.255.255", false},
		{"192.168.0.1", false},
		{"198.19.255.255", false},
		{"224.0.0.1", false},
		{"240.0.0.1", false},
		{"255.255.255.255", false},
		{"2606:4700::1111", true},
		{"2a00:1450::1", true},
		{"3ffe::1", true},
		{"::", false},
		{"::1", false},
		{"::ffff:192.168.1.1", false},
		{"64:ff9b::a00:1", false},
		{"fc00::1", false},
		{"fd00:ec2::254", false},
		{"fe80::1", false},
		{"fe80::1%eth0", false},
		{"fec0::1", false},
		{"ff02::1", false},
		{"2001::1", false},
		{"2001:db8::1", false},
		{"2002:c0a8:101::1", false},
		{"4000::1", false},
		{"3fff::1", false},
	} {
		if got := IsPublic(netip.MustParseAddr(tc.address)); got != tc.want {
			t.Errorf("isPublic(%s) = %v", tc.address, got)
		}
	}
}

// TestSpansCoverExactlyThePrefixes compares membership on random addresses
// and all edges.
func TestSpansCoverExactlyThePrefixes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []netip.Prefix
		for range rapid.IntRange(0, 12).Draw(t, "count") {
			raw := [4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address"))
			list = append(list, netip.PrefixFrom(netip.AddrFrom4(raw), rapid.IntRange(0, 32).Draw(t, "bits")))
		}
		got := spans(list, true)
		var probes []netip.Addr
		for i, s := range got {
			if s.to.Less(s.from) || i > 0 && !got[i-1].to.Next().Less(s.from) {
				t.Fatalf("spans %v touch or overlap", got)
			}
			probes = append(probes, s.from, s.to, s.from.Prev(), s.to.Next())
		}
		for _, p := range list {
			probes = append(probes, p.Masked().Addr(), LastOf(p), p.Masked().Addr().Prev(), LastOf(p).Next())
		}
		for _, a := range probes {
			if !a.IsValid() {
				continue
			}
			in := slices.ContainsFunc(got, func(s span) bool { return !a.Less(s.from) && !s.to.Less(a) })
			if in != Contains(list, a) {
				t.Fatalf("%v: in spans %v, in prefixes %v", a, in, Contains(list, a))
			}
		}
	})
}

func TestUplinks(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	addresses := []HostAddress{{"eth0", p("192.168.77.20/24")}, {"eth0", p("2606:4700:aa:bb42::20/64")}, {"eth0", p("fe80::5/64")}, {"eth1", p("198.51.100.7/29")}, {"wg0", p("fd12::2/64")}}
	routes := []HostRoute{
		{"eth0", p("0.0.0.0/0"), a("192.168.77.1")},
		{"eth0", p("192.168.77.0/24"), netip.Addr{}},
		{"eth0", p("203.0.112.0/22"), a("192.168.77.2")},
		{"eth0", p("::/0"), a("fe80::1")},
		{"wg0", p("::/0"), netip.Addr{}},
		{"wg0", p("0.0.0.0/1"), netip.Addr{}},
	}
	got := JudgeUplinks(nil, 56, addresses, routes)
	if !slices.Equal(got.Names4, []string{"eth0"}) || !slices.Equal(got.Names6, []string{"eth0"}) {
		t.Errorf("uplinks %v and %v, want eth0", got.Names4, got.Names6)
	}
	for _, inside := range []string{"192.168.77.1", "198.51.100.1", "203.0.115.255", "2606:4700:aa:bb00::1", "2606:4700:aa:bbff::1", "fe80::1", "fd12::1"} {
		if !Contains(got.Local, a(inside)) {
			t.Errorf("%s is the owner's, but not in %v", inside, got.Local)
		}
	}
	for _, outside := range []string{"1.1.1.1", "2606:4700:aa:bc00::1", "8.8.8.8"} {
		if Contains(got.Local, a(outside)) {
			t.Errorf("%s is not the owner's, but in %v", outside, got.Local)
		}
	}
	if fixed := JudgeUplinks([]string{"wg0"}, 56, addresses, routes); !slices.Equal(fixed.Names4, []string{"wg0"}) || len(fixed.Names6) != 0 {
		t.Errorf("with wg0 named: %v and %v", fixed.Names4, fixed.Names6)
	}
	shuffled := slices.Clone(routes)
	slices.Reverse(shuffled)
	if !got.Equal(JudgeUplinks(nil, 56, addresses, shuffled)) {
		t.Error("the order of routes matters")
	}
}

func TestRulesetFollowsLeases(t *testing.T) {
	const key, other = string("laaaaaaaaaa"), string("lbbbbbbbbbb")
	web, web1, db, foreign := testReplica(key, "web", 0), testReplica(key, "web", 1), testReplica(key, "db", 0), testReplica(other, "web", 0)
	leases := map[string]Lease{key: {Egress: Full, Mail: true, Services: []Service{{Name: "db", Ports: []Port{
		{Number: 5432, Protocol: "tcp", To: []string{"web", "absent"}}, {Number: 53, Protocol: "udp", To: []string{"db"}},
	}}}}}
	fetch := Fetch{
		Levels: []int{2}, Groups: []uint64{7}, Resolvers: []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("fe80::1")},
		Allowed: []netip.AddrPort{netip.MustParseAddrPort("192.168.1.7:5000"), netip.MustParseAddrPort("[::ffff:192.168.1.7]:5001"), netip.MustParseAddrPort("[fd12::7]:443")},
	}
	build := func(l map[string]Lease, r ...Replica) *Ruleset {
		return Build(Limits{1, 2, 3}, Uplinks{Names4: []string{"eth0"}}, nil, fetch, l, r)
	}
	count := func(r *Ruleset) map[string]int {
		sizes := map[string]int{}
		for _, s := range r.sets {
			sizes[s.name] = len(s.elements)
		}
		return sizes
	}
	got := count(build(leases, web, web1, db, foreign))
	for name, want := range map[string]int{"ours4": 6, "ours6": 6, "fetchers": 1, "resolver4": 1, "resolver6": 1, "allowed4": 2, "allowed6": 1, "source4": 4, "source6": 8, "gateway4": 4, "gateway6": 4, "egress": 3, "mail": 3, "service": 4, "reach": 2, "uplink4": 1, "uplink6": 0} {
		if got[name] != want {
			t.Errorf("set %s has %d elements, want %d", name, got[name], want)
		}
	}
	if !build(leases, web, db, foreign).Equal(build(leases, foreign, web, db)) {
		t.Error("the order of replicas matters")
	}
	if build(leases, web).Equal(build(leases, web, db)) || build(leases, web).tag != build(nil).tag {
		t.Error("elements must tell rulesets apart, and must not change the structure")
	}
	if n := count(build(leases)); n["egress"]+n["reach"]+n["source4"]+n["service"] != 0 {
		t.Errorf("without replicas: %v", n)
	}
}

// TestRulesStandOnOtherRules checks what the kernel would refuse, and what it
// would not: a rule that cannot end in a verdict, a chain that falls through.
func TestRulesStandOnOtherRules(t *testing.T) {
	r := Build(Limits{1, 2, 3}, Uplinks{}, nil, Fetch{Levels: []int{1, 3}}, nil, nil)
	sets, chains := map[string]bool{}, map[string]bool{}
	for _, s := range r.sets {
		sets[s.name] = true
	}
	for _, c := range r.chains {
		chains[c.name] = true
	}
	for _, c := range r.chains {
		for i, x := range c.rules {
			for _, e := range x.exprs {
				switch e := e.(type) {
				case *expr.Lookup:
					if !sets[e.SetName] {
						t.Errorf("%s: no set %s", r.mark(c, i), e.SetName)
					}
				case *expr.Dynset:
					if !sets[e.SetName] {
						t.Errorf("%s: no set %s", r.mark(c, i), e.SetName)
					}
				case *expr.Verdict:
					if e.Chain != "" && !chains[e.Chain] {
						t.Errorf("%s: no chain %s", r.mark(c, i), e.Chain)
					}
				}
			}
		}
		last, ends := c.rules[len(c.rules)-1].exprs, false
		if len(last) == 1 {
			_, ends = last[0].(*expr.Verdict)
		}
		if c.base == nil && !ends {
			t.Errorf("chain %s does not end with a verdict for all", c.name)
		}
	}
}

func TestModulesAreEnough(t *testing.T) {
	// The kernel here has everything built in, so that this shows only that each
	// expression the rules use is known to some module of the list or to nf_tables
	// itself; the VM shows the rest.
	home := map[string]string{
		"*expr.Connlimit": "nft_connlimit", "*expr.Limit": "nft_limit", "*expr.Masq": "nft_masq", "*expr.Ct": "nft_ct",
		"*expr.Meta": "nf_tables", "*expr.Cmp": "nf_tables", "*expr.Payload": "nf_tables", "*expr.Lookup": "nf_tables", "*expr.Bitwise": "nf_tables",
		"*expr.Dynset": "nf_tables", "*expr.Exthdr": "nf_tables", "*expr.Socket": "nft_socket", "*expr.Reject": "nft_reject_inet", "*expr.Counter": "nf_tables", "*expr.Verdict": "nf_tables",
	}
	for _, c := range buildChains(Limits{1, 1, 1}, []int{1}) {
		for _, r := range c.rules {
			for _, e := range r.exprs {
				inner := []expr.Any{e}
				if d, ok := e.(*expr.Dynset); ok {
					inner = append(inner, d.Exprs...)
				}
				for _, x := range inner {
					if module := home[fmt.Sprintf("%T", x)]; !slices.Contains(Modules(), module) {
						t.Errorf("%s: %T has no module", c.name, x)
					}
				}
			}
		}
	}
}

func testReplica(key, service string, index int) Replica {
	n := byte(index*4 + 2)
	if service == "db" {
		n += 64
	}
	return Replica{
		Lease: key, Service: service, Link: fmt.Sprintf("lv%s-%s%d", key[:2], service, index),
		Address4: netip.AddrFrom4([4]byte{10, 88, 0, n}), Address6: netip.AddrFrom16([16]byte{0: 0xfd, 15: n}),
	}
}
