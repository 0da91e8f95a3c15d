package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/network/firewall"
)

func TestAddressesOfLinks(t *testing.T) {
	pools := testPrefixes("10.88.0.0/28", "172.29.0.0/16")
	taken := map[netip.Addr]bool{}
	var cursor uint64 = 2
	var got []string
	for range 4 {
		a, next, err := freeAddress4(pools, nil, taken, cursor)
		if err != nil {
			t.Fatal(err)
		}
		taken[a], cursor = true, next
		got = append(got, a.String())
	}
	if want := []string{"10.88.0.10", "10.88.0.14", "10.88.0.2", "10.88.0.6"}; !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
	if _, _, err := freeAddress4(pools, nil, taken, cursor); err == nil {
		t.Error("a full pool gave an address")
	}
	delete(taken, netip.MustParseAddr("10.88.0.2"))
	if a, _, err := freeAddress4(pools, nil, taken, cursor); err != nil || a.String() != "10.88.0.2" {
		t.Errorf("the only free address: %v, %v", a, err)
	}
	if a, _, err := freeAddress4(pools, testPrefixes("10.0.0.0/8"), taken, 0); err != nil || a.String() != "172.29.0.2" {
		t.Errorf("when the owner's network is 10/8: %v, %v", a, err)
	}
	a, _, err := freeAddress6(netip.MustParsePrefix("fd43:726f:6674::/64"), nil, ^uint64(0))
	if p := netip.MustParsePrefix("fd43:726f:6674::/64"); err != nil || !p.Contains(a) || !p.Contains(a.Prev()) || !strings.HasSuffix(a.String(), "e") {
		t.Errorf("last link of the IPv6 pool: %v, %v", a, err)
	}
}

func testReplica(key lease.Key, service string, index int) replica {
	id := lease.ReplicaID{Lease: key, Service: service, Revision: 1, Index: index}
	n := byte(index*4 + 2)
	if service == "db" {
		n += 64
	}
	return replica{ID: id, Link: linkName(id.Container()), Address4: netip.AddrFrom4([4]byte{10, 88, 0, n}), Address6: netip.AddrFrom16([16]byte{0: 0xfd, 15: n}), Ready: true}
}

func TestTallyCountsEachByteOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var saved, now tally
		links := map[string]*reading{"a": {}, "b": {}}
		var in, out uint64
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			name := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "link")
			link := links[name]
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				x, y := rapid.Uint64Range(0, 1<<40).Draw(t, "in"), rapid.Uint64Range(0, 1<<40).Draw(t, "out")
				link.In, link.Out, in, out = link.In+x, link.Out+y, in+x, out+y
			case 2:
				before := now
				now.advance(name, *link)
				if now.In < before.In || now.Out < before.Out {
					t.Fatal("a counter went back")
				}
			case 3: // save
				raw, err := json.Marshal(now)
				if err != nil {
					t.Fatal(err)
				}
				saved = tally{}
				if err := json.Unmarshal(raw, &saved); err != nil {
					t.Fatal(err)
				}
			case 4: // crash
				now = saved.clone()
			}
		}
		for name, link := range links {
			now.advance(name, *link)
			now.advance(name, reading{}) // late
		}
		if now.In != in || now.Out != out {
			t.Fatalf("counted %d and %d, flowed %d and %d", now.In, now.Out, in, out)
		}
	})
}

func TestDeniedSurvivesANewTable(t *testing.T) {
	var d deniedMeter
	for _, now := range []Denied{{Mail: 3}, {Mail: 5, Rate: 1}, {Mail: 2}, {}, {Mail: 1}} {
		d.advance(now)
	}
	if want := (Denied{Mail: 8, Rate: 1}); d.total != want {
		t.Errorf("counted %+v, want %+v", d.total, want)
	}
}

func TestJudgeQuestion(t *testing.T) {
	forbidden := func(a netip.Addr) bool {
		return !firewall.IsPublic(a) || netip.MustParsePrefix("2606:4700:aa::/48").Contains(a)
	}
	for _, tc := range []struct {
		name string
		kind uint16
		want kindOfName
	}{
		{"db.", dns.TypeA, inLease},
		{"com.", dns.TypeNS, inLease},
		{"localhost.", dns.TypeA, inLease},
		{"example.com.", dns.TypeA, forward},
		{"EXAMPLE.com.", dns.TypeHTTPS, forward},
		{".", dns.TypeNS, forward},
		{"1.1.1.1.in-addr.arpa.", dns.TypePTR, forward},
		{"nas.local.", dns.TypeA, notExists},
		{"nas.fritz.box.", dns.TypeA, notExists},
		{"example.box.", dns.TypeA, forward},
		{"NAS.LoCaL.", dns.TypeA, notExists},
		{"a.b.internal.", dns.TypeA, notExists},
		{"x.home.arpa.", dns.TypeA, notExists},
		{"1.1.168.192.in-addr.arpa.", dns.TypePTR, notExists},
		{"10.in-addr.arpa.", dns.TypeSOA, notExists},
		{"b._dns-sd._udp.0.1.168.192.in-addr.arpa.", dns.TypePTR, notExists},
		{"d.f.ip6.arpa.", dns.TypeNS, notExists},
		{"zz.ip6.arpa.", dns.TypePTR, notExists},
		{"a.a.0.0.0.0.7.4.6.0.6.2.ip6.arpa.", dns.TypePTR, notExists},
		{"1.1.1.1.0.0.7.4.6.0.6.2.ip6.arpa.", dns.TypePTR, forward},
		{"example.com.", dns.TypeANY, refuse},
		{"example.com.", dns.TypeAXFR, refuse},
	} {
		q := new(dns.Msg)
		q.SetQuestion(tc.name, tc.kind)
		if got := judgeQuestion(q, forbidden); got != tc.want {
			t.Errorf("%s %s is %d, want %d", tc.name, dns.TypeToString[tc.kind], got, tc.want)
		}
	}
	ok := func() *dns.Msg { return new(dns.Msg).SetQuestion("example.com.", dns.TypeA) }
	for name, spoil := range map[string]func(*dns.Msg){
		"an answer":     func(q *dns.Msg) { q.Response = true },
		"an update":     func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate },
		"no question":   func(q *dns.Msg) { q.Question = nil },
		"two questions": func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) },
		"class CHAOS":   func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS },
	} {
		q := ok()
		spoil(q)
		if judgeQuestion(q, forbidden) != refuse {
			t.Errorf("%s is not refused", name)
		}
	}
}

func FuzzJudgeQuestion(f *testing.F) {
	for _, name := range []string{"a.b.", "1.0.0.127.in-addr.arpa.", "f.ip6.arpa.", "..", strings.Repeat("a.", 200) + "ip6.arpa."} {
		raw, err := new(dns.Msg).SetQuestion(name, dns.TypePTR).Pack()
		if err == nil {
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q := new(dns.Msg)
		if q.Unpack(raw) != nil {
			return
		}
		if judgeQuestion(q, func(a netip.Addr) bool { return !firewall.IsPublic(a) }) == forward {
			for _, zone := range localZones() {
				if dns.IsSubDomain(zone, dns.CanonicalName(q.Question[0].Name)) {
					t.Errorf("%s would leave the box", q.Question[0].Name)
				}
			}
		}
	})
}

func TestFilterAnswer(t *testing.T) {
	var records []dns.RR
	for _, line := range []string{
		"a. 60 IN A 192.168.1.1", "a. 60 IN A 1.1.1.1", "a. 60 IN AAAA ::ffff:10.0.0.1", "a. 60 IN AAAA 64:ff9b::a00:1", "a. 60 IN AAAA 2606:4700::1", "a. 60 IN CNAME b.",
		"a. 60 IN HTTPS 1 . ipv4hint=10.0.0.1", "a. 60 IN HTTPS 1 . ipv4hint=1.1.1.1", "a. 60 IN SVCB 1 . ipv6hint=fd00::1", "a. 60 IN TXT \"10.0.0.1\"",
	} {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, rr)
	}
	records = append(records, &dns.A{Hdr: dns.RR_Header{Name: "a.", Rrtype: dns.TypeA}, A: net.IP{}})
	kept, filtered := filterAnswer(records, func(a netip.Addr) bool { return !firewall.IsPublic(a) })
	var got []string
	for _, rr := range kept {
		got = append(got, strings.Fields(rr.String())[3]+" "+strings.Join(strings.Fields(rr.String())[4:], " "))
	}
	want := []string{"A 1.1.1.1", "AAAA 2606:4700::1", "CNAME b.", `HTTPS 1 . ipv4hint="1.1.1.1"`, `TXT "10.0.0.1"`}
	if !filtered || !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
	if _, filtered := filterAnswer(kept, func(netip.Addr) bool { return false }); filtered {
		t.Error("nothing to filter was filtered")
	}
}

func TestResolveService(t *testing.T) {
	const key = lease.Key("laaaaaaaaaa")
	l := Lease{Services: []Service{{Name: "db", Ports: []Port{{Number: 1, Protocol: "tcp", To: []string{"web"}}}}}}
	starting := testReplica(key, "db", 1)
	starting.Ready = false
	all := []replica{testReplica(key, "db", 0), starting, testReplica(key, "web", 0)}
	if got, known := resolveService(l, "web", "db", all); !known || fmt.Sprint(got) != fmt.Sprint([]netip.Addr{all[0].Address4, all[0].Address6}) {
		t.Errorf("db for web: %v, %v", got, known)
	}
	for _, tc := range [][2]string{{"db", "db"}, {"other", "db"}, {"web", "web"}, {"web", "absent"}} {
		if got, known := resolveService(l, tc[0], tc[1], all); known || len(got) > 0 {
			t.Errorf("%s for %s: %v", tc[1], tc[0], got)
		}
	}
	var many []netip.Addr
	for range 3 * nameAnswers {
		many = append(many, all[0].Address4, all[0].Address6)
	}
	if got := serviceAnswer(dns.Question{Name: "db.", Qtype: dns.TypeA}, many); len(got) != nameAnswers {
		t.Errorf("%d records in one answer", len(got))
	}
}

func TestParseServers(t *testing.T) {
	text := "# comment\nsearch lan\nnameserver 192.168.1.1\nnameserver\nnameserver not-an-address\n nameserver fe80::1%eth0\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n"
	if got, want := parseServers([]byte(text)), []string{"192.168.1.1:53", "[fe80::1%eth0]:53", "1.1.1.1:53"}; !slices.Equal(got, want) {
		t.Errorf("servers %q, want %q", got, want)
	}
}

// TestForwardingKeepsTheUplinksAddress: a router ignores advertisements unless
// told otherwise, and the box would lose the address it learnt from one.
func TestForwardingKeepsTheUplinksAddress(t *testing.T) {
	sys := t.TempDir()
	path := func(name string) string { return filepath.Join(sys, "net", name) }
	for name, value := range map[string]string{
		"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0", "ipv6/conf/all/accept_ra": "1", "ipv6/conf/lo/accept_ra": "1", "ipv6/conf/default/accept_ra": "1",
		"ipv6/conf/eth0/accept_ra": "1", "ipv6/conf/eth1/accept_ra": "0", "ipv6/conf/lvabc/accept_ra": "1",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path(name)), 0o755), os.WriteFile(path(name), []byte(value+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	n, err := New(Config{Store: journal.NewMemory(), Sys: sys})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.settingsTurned(); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/all/accept_ra": "1", "ipv6/conf/default/accept_ra": "2",
		"ipv6/conf/eth0/accept_ra": "2", "ipv6/conf/eth1/accept_ra": "0", "ipv6/conf/lvabc/accept_ra": "1",
	} {
		if raw, _ := os.ReadFile(path(name)); strings.TrimSpace(string(raw)) != want {
			t.Errorf("%s is %q, want %s", name, raw, want)
		}
	}
	if err := os.RemoveAll(path("ipv6")); err != nil {
		t.Fatal(err)
	}
	if err := n.settingsTurned(); err != nil {
		t.Errorf("a kernel without IPv6: %v", err)
	}
	if err := os.RemoveAll(path("ipv4")); err != nil {
		t.Fatal(err)
	}
	if n.settingsTurned() == nil {
		t.Error("a kernel without IPv4 forwarding was fine")
	}
}

func TestBucketsHoldOneLargePacket(t *testing.T) {
	for _, rate := range []int64{minRate, 1e6, 20e6, 1e9, 40e9, maxRate} {
		b := tbf(1, rate)
		if b.Rate != uint64(rate/8) || b.Limit < 64<<10 || b.Buffer == 0 {
			t.Errorf("%d bit/s: %+v", rate, b)
		}
	}
}

func TestBadInputIsRefusedBeforeTheKernelIsAsked(t *testing.T) {
	n, err := New(Config{Store: journal.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	const key = lease.Key("laaaaaaaaaa")
	good := lease.ReplicaID{Lease: key, Service: "web"}
	for name, err := range map[string]error{
		"lease key with a path": n.SetLease(ctx, "l/../../etc", Lease{}),
		"unknown egress":        n.SetLease(ctx, key, Lease{Egress: "all"}),
		"service with a dot":    n.SetLease(ctx, key, Lease{Services: []Service{{Name: "a.b"}}}),
		"service twice":         n.SetLease(ctx, key, Lease{Services: []Service{{Name: "a"}, {Name: "a"}}}),
		"port 0":                n.SetLease(ctx, key, Lease{Services: []Service{{Name: "a", Ports: []Port{{Protocol: "tcp"}}}}}),
		"protocol sctp":         n.SetLease(ctx, key, Lease{Services: []Service{{Name: "a", Ports: []Port{{Number: 1, Protocol: "sctp"}}}}}),
		"too many services":     n.SetLease(ctx, key, Lease{Services: make([]Service, 1000)}),
		"too many ports":        n.SetLease(ctx, key, Lease{Services: []Service{{Name: "a", Ports: make([]Port, 1000)}}}),
		"a rate of 1 bit/s":     second(n.Attach(ctx, good, Options{Down: 1})),
		"a negative rate":       second(n.Attach(ctx, good, Options{Up: -minRate})),
		"replica without lease": second(n.Attach(ctx, lease.ReplicaID{Service: "web"}, Options{})),
		"blocking everything":   n.SetBlocked(ctx, []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}),
		"allowing everything":   n.SetAllowed(ctx, []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:443")}),
		"allowing too much":     n.SetAllowed(ctx, make([]netip.AddrPort, maxAllowed+1)),
		"blocking too much":     n.SetBlocked(ctx, make([]netip.Prefix, maxBlocked+1)),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for name, change := range map[string]func(*Config){
		"no store":      func(c *Config) { c.Store = nil },
		"public pool":   func(c *Config) { c.Pools4 = testPrefixes("8.8.8.0/24") },
		"tiny pool":     func(c *Config) { c.Pools4 = testPrefixes("10.0.0.0/30") },
		"public pool 6": func(c *Config) { c.Pool6 = netip.MustParsePrefix("2606::/64") },
		"wide guard":    func(c *Config) { c.GuardBits6 = 8 },
		"no flows":      func(c *Config) { c.Flows = -1 },

		"fetchers outside cgroups":  func(c *Config) { c.Fetchers = []string{"/sys/fs/cgroup/../../etc"} },
		"all groups as fetchers":    func(c *Config) { c.Fetchers = []string{"/sys/fs/cgroup"} },
		"fetchers without a folder": func(c *Config) { c.Fetchers = []string{"croft/containerd"} },
		"a mirror without a port":   func(c *Config) { c.Allowed = []netip.AddrPort{netip.MustParseAddrPort("192.168.1.7:0")} },
	} {
		cfg := Config{Store: journal.NewMemory()}
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("config with %s was accepted", name)
		}
	}
	if name := linkName(good.Container()); len(name) != 15 {
		t.Errorf("link name %q has %d characters", name, len(name))
	}
}

func second[T any](_ T, err error) error { return err }

func testPrefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		list[i] = netip.MustParsePrefix(t)
	}
	return list
}

func TestLevelsOfCgroups(t *testing.T) {
	for path, want := range map[string]int{"/sys/fs/cgroup/containerd": 1, "/sys/fs/cgroup/croft/containerd": 2, "/sys/fs/cgroup/croft//containerd/": 2} {
		if got, err := levelOf("/sys/fs/cgroup", path); err != nil || got != want {
			t.Errorf("%s is at %d, %v, want %d", path, got, err, want)
		}
	}
	if group, err := groupAt(t.TempDir()); err == nil {
		t.Errorf("a folder that is no cgroup is group %d", group)
	}
}
