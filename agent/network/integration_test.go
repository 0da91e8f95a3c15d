//go:build integration

package network

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/network/firewall"
)

// The tests run in copies of this program with network and mounts of their own:
// whatever they do, the machine's network is never touched, and when a copy ends,
// the kernel removes what is left. They mostly wait for the kernel, so that
// several copies share them.
func TestMain(m *testing.M) {
	if what := os.Getenv(fetchEnv); what != "" {
		os.Exit(fetchMain(what))
	}
	if os.Getenv(insideEnv) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			panic(fmt.Sprintf("make mounts private: %v", err))
		}
		os.Exit(m.Run())
	}
	if os.Getuid() != 0 {
		fmt.Println("agent/network's integration tests need root: sudo make integration")
		os.Exit(1)
	}
	os.Exit(outside(os.Args[1:]))
}

const (
	insideEnv = "CROFT_NETWORK_TEST_INSIDE"
	copies    = 4
)

func listing() *exec.Cmd {
	list := exec.Command("/proc/self/exe", "-test.list=^(Test|Fuzz)")
	list.Env = append(os.Environ(), insideEnv+"=1")
	list.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	return list
}

// outside shares the tests among copies, unless the caller chose some or wants
// something that only one process can write; it prints copy by copy.
func outside(args []string) (code int) {
	shares := [][]string{args}
	if !slices.ContainsFunc(args, func(a string) bool {
		return strings.HasPrefix(a, "-test.run=") || strings.HasPrefix(a, "-test.list=") || strings.HasPrefix(a, "-test.fuzz=") || strings.Contains(a, "profile=")
	}) {
		list, err := listing().Output()
		if err != nil {
			fmt.Println("list tests:", err)
			return 1
		}
		// The log of opened files is for the test cache, and one for all.
		args = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return strings.HasPrefix(a, "-test.testlogfile=") })
		names := make([]string, copies)
		for i, name := range strings.Fields(string(list)) {
			names[i%copies] += "|" + name
		}
		shares = nil
		for _, some := range names {
			shares = append(shares, append(slices.Clone(args), "-test.run=^("+strings.TrimPrefix(some, "|")+")$"))
		}
	}
	outputs, codes := make([]bytes.Buffer, len(shares)), make([]int, len(shares))
	var running sync.WaitGroup
	for i, share := range shares {
		running.Go(func() {
			runtime.LockOSThread() // Pdeathsig means this thread
			defer runtime.UnlockOSThread()
			again := exec.Command("/proc/self/exe", share...)
			again.Env = append(os.Environ(), insideEnv+"=1")
			again.Stdout, again.Stderr = &outputs[i], &outputs[i]
			again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
			if err := again.Run(); err != nil {
				fmt.Fprintln(&outputs[i], err)
				codes[i] = max(1, again.ProcessState.ExitCode())
			}
		})
	}
	running.Wait()
	for i := range shares {
		_, _ = os.Stdout.Write(outputs[i].Bytes())
		code = max(code, codes[i])
	}
	return code
}

// The world around the box, all in one namespace behind the box's eth0: the
// owner's router and a neighbour on the owner's network, and beyond the router
// hosts of every kind.
const (
	boxLAN     = "192.168.77.20"
	routerLAN  = "192.168.77.1"
	hostLAN    = "192.168.77.9"
	internet   = "93.184.216.34"
	box6       = "2606:4700:aaaa:7700::20"
	router6    = "2606:4700:aaaa:7700::1"
	hostLAN6   = "2606:4700:aaaa:7700::9"
	otherVLAN6 = "2606:4700:aaaa:7742::1"
	internet6  = "2606:2800:220::34"
)

var beyond = []string{
	internet, "93.184.216.25", "169.254.169.254", "10.1.2.3", "172.20.0.1", "100.64.0.1", "198.18.0.5", "192.0.2.7", "192.88.99.1", "240.0.0.9", "0.1.2.3", "168.63.129.16",
	internet6, otherVLAN6, "fd00:ec2::254", "fdaa::1", "64:ff9b::c0a8:4d09", "2002:c0a8:4d09::1", "2001:0:c0a8:4d09::1", "64:ff9b:1::c0a8:4d09", "fec0::9",
}

type world struct {
	t       *testing.T
	dir     string
	outside string // namespace
	mu      sync.Mutex
	heard   []string // guarded by mu; datagrams that reached the outside: their senders
	asked   []string // guarded by mu; questions that reached the upstream name server
}

const (
	patience   = 20 * time.Second       // until something that must work has
	impatience = 300 * time.Millisecond // after which what must not work has not
)

// netIn runs do on a thread in namespace ns; sockets made there stay there.
func netIn[T any](t *testing.T, ns string, do func() (T, error)) (T, error) {
	t.Helper()
	var got T
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if ns != "" {
			runtime.LockOSThread() // not unlocked: the thread ends here
			f, e := os.Open(ns)
			if e != nil {
				err = e
				return
			}
			defer f.Close()
			if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return
			}
		}
		got, err = do()
	}()
	<-done
	return got, err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	must(t, netlink.ConntrackTableFlush(netlink.ConntrackTable)) // of the tests before
	dir := t.TempDir()
	w := &world{t: t, dir: dir, outside: filepath.Join(dir, "outside")}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	_, err = makeNamespace("/proc/sys", w.outside)
	must(t, err)
	t.Cleanup(func() {
		_ = removeOthers(filepath.Join(dir, "netns"), nil, nil)
		_ = removeLink("eth0")
		_ = removeNamespace(w.outside)
		dropTable(t)
	})
	ns, h, err := insideOf(w.outside)
	must(t, err)
	defer ns.Close()
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "up0", netlink.NsFd(ns.Fd())
	must(t, netlink.LinkAdd(veth))
	eth0, err := netlink.LinkByName("eth0")
	must(t, err)
	up0, err := h.LinkByName("up0")
	must(t, err)
	loOut, err := h.LinkByName("lo")
	must(t, err)
	here := &netlink.Handle{}
	for _, l := range []struct {
		h    *netlink.Handle
		link netlink.Link
		on   []string
	}{{here, eth0, []string{boxLAN + "/24", box6 + "/64"}}, {h, up0, []string{routerLAN + "/24", hostLAN + "/24", router6 + "/64", hostLAN6 + "/64", "fe80::77/64"}}, {h, loOut, beyond}} {
		must(t, l.h.LinkSetUp(l.link))
		for _, a := range l.on {
			if !strings.Contains(a, "/") {
				a += map[bool]string{true: "/128", false: "/32"}[strings.Contains(a, ":")]
			}
			must(t, l.h.AddrReplace(l.link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: unix.IFA_F_NODAD}))
		}
	}
	for _, r := range []struct {
		h       *netlink.Handle
		link    netlink.Link
		to, via string
	}{{here, eth0, "0.0.0.0/0", routerLAN}, {here, eth0, "::/0", router6}, {h, up0, "10.88.0.0/16", boxLAN}, {h, up0, "fd43:726f:6674::/64", box6}} {
		must(t, r.h.RouteReplace(&netlink.Route{LinkIndex: r.link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(r.to)), Gw: net.ParseIP(r.via)}))
	}
	for _, port := range []string{"80", "25", "465", "587", "8443"} {
		w.listen(w.outside, ":"+port)
	}
	w.listen("", ":80") // the box's own page
	for _, at := range []string{internet + ":9000", hostLAN + ":9000", "[" + internet6 + "]:9000", ":9001"} {
		w.listenUDP(w.outside, at)
	}
	w.nameServer()
	must(t, os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+routerLAN+"\n"), 0o644))
	return w
}

func ourTable() *nftables.Table {
	return &nftables.Table{Name: firewall.TableName, Family: nftables.TableFamilyINet}
}

// dropTable is what a hostile or clumsy hand would do.
func dropTable(t *testing.T) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	c.AddTable(ourTable())
	c.DelTable(ourTable())
	must(t, c.Flush())
}

// listen answers each connection with the address it comes from, then echoes.
func (w *world) listen(ns, at string) {
	w.t.Helper()
	l, err := netIn(w.t, ns, func() (net.Listener, error) { return net.Listen("tcp", at) })
	must(w.t, err)
	ctx := w.t.Context()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				_, _ = fmt.Fprintln(c, from)
				_, _ = io.Copy(c, c)
			})
		}
	})
	w.t.Cleanup(func() { l.Close(); serving.Wait() })
}

func (w *world) listenUDP(ns, at string) {
	w.t.Helper()
	c, err := netIn(w.t, ns, func() (net.PacketConn, error) { return net.ListenPacket("udp", at) })
	must(w.t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			w.mu.Lock()
			w.heard = append(w.heard, host+" "+string(buf[:n]))
			w.mu.Unlock()
			_, _ = c.WriteTo([]byte(host+"\n"), from)
		}
	}()
	w.t.Cleanup(func() { c.Close(); <-done })
}

// nameServer is the owner's router as the box's upstream.
func (w *world) nameServer() {
	w.t.Helper()
	handler := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		w.mu.Lock()
		w.asked = append(w.asked, q.Question[0].Name)
		w.mu.Unlock()
		m := new(dns.Msg)
		m.SetReply(q)
		if line := map[string]string{
			"good.example.A": "A " + internet, "good.example.AAAA": "AAAA " + internet6, "rebind.example.A": "A " + routerLAN,
			"rebind.example.AAAA": "AAAA ::ffff:192.168.77.1", "box.example.A": "A " + boxLAN, "vlan.example.AAAA": "AAAA " + otherVLAN6,
		}[strings.TrimSuffix(q.Question[0].Name, ".")+"."+dns.TypeToString[q.Question[0].Qtype]]; line != "" {
			rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN " + line)
			m.Answer = append(m.Answer, rr)
		}
		_ = rw.WriteMsg(m)
	})
	pc, err := netIn(w.t, w.outside, func() (net.PacketConn, error) { return net.ListenPacket("udp", routerLAN+":53") })
	must(w.t, err)
	s := &dns.Server{PacketConn: pc, Handler: handler}
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	done := make(chan struct{})
	go func() { defer close(done); _ = s.ActivateAndServe() }()
	<-started
	w.t.Cleanup(func() { _ = s.Shutdown(); <-done })
}

// talk connects from ns and returns the address that the other side sees.
func (w *world) talk(ns, network, to string, within time.Duration) (string, error) {
	c, err := netIn(w.t, ns, func() (net.Conn, error) { return net.DialTimeout(network, to, within) })
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(within))
	if strings.HasPrefix(network, "udp") {
		if _, err := c.Write([]byte("hello")); err != nil {
			return "", err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func (w *world) reaches(name, ns, network, to, as string) {
	w.t.Helper()
	var got string
	var err error
	// The first packets over a new link may be lost, and TCP repeats after a second only.
	for within, limit := impatience, time.Now().Add(patience); time.Now().Before(limit); within *= 2 {
		if got, err = w.talk(ns, network, to, within); err == nil {
			break
		}
	}
	if err != nil || (as != "" && got != as) {
		w.t.Errorf("%s: %s %s was seen as %q, %v; want %q", name, network, to, got, err, as)
	}
}

type target struct{ name, network, to string }

// reachesNone tries all at once, since each takes its time to fail.
func (w *world) reachesNone(ns string, targets []target) {
	w.t.Helper()
	results := make([]error, len(targets))
	var all sync.WaitGroup
	for i, x := range targets {
		all.Go(func() { _, results[i] = w.talk(ns, x.network, x.to, impatience) })
	}
	all.Wait()
	for i, x := range targets {
		w.t.Run(x.name, func(t *testing.T) {
			if results[i] == nil {
				t.Errorf("%s %s answered", x.network, x.to)
			}
		})
	}
}

// agent is one life of the agent's network; kill ends it as a crash would.
type agent struct {
	*Network
	events chan Event
	kill   func()
}

func (w *world) agent(store Store, change func(*Config)) *agent {
	w.t.Helper()
	a := &agent{events: make(chan Event, 1024)}
	cfg := Config{
		Store: store, Dir: filepath.Join(w.dir, "netns"), ResolvConf: filepath.Join(w.dir, "resolv.conf"), Check: 100 * time.Millisecond, Save: time.Hour,
		Report: func(e Event) { a.events <- e },
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg)
	must(w.t, err)
	a.Network = n
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	a.kill = sync.OnceFunc(func() {
		stop()
		if err := <-ended; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	w.t.Cleanup(a.kill)
	return a
}

func (a *agent) wait(t *testing.T, kind EventKind) {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case e := <-a.events:
			if e.Kind == kind {
				return
			}
		case <-limit:
			t.Fatalf("no event %s", kind)
		}
	}
}

// eventually waits for something the agent does by itself.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func (w *world) attach(a *agent, id lease.ReplicaID, o Options) lease.Attachment {
	w.t.Helper()
	at, err := a.Attach(w.t.Context(), id, o)
	must(w.t, err)
	return at
}

const (
	keyA = lease.Key("laaaaaaaaaa")
	keyB = lease.Key("lbbbbbbbbbb")
)

func id(key lease.Key, service string, index int) lease.ReplicaID {
	return lease.ReplicaID{Lease: key, Service: service, Revision: 1, Index: index}
}

func shop(egress Egress) Lease {
	return Lease{Egress: egress, Services: []Service{
		{Name: "db", Ports: []Port{{Number: 5432, Protocol: "tcp", To: []string{"web"}}}},
		{Name: "web", Ports: []Port{{Number: 8080, Protocol: "tcp"}}},
	}}
}

func address6(a *agent, id lease.ReplicaID) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.replicas[id.Container()].Address6.String()
}

// TestHostileTenantReachesOnlyTheInternet names each case of the list
// that is the network's.
func TestHostileTenantReachesOnlyTheInternet(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	ctx := t.Context()
	must(t, a.SetLease(ctx, keyA, shop(Full)))
	must(t, a.SetLease(ctx, keyB, shop(Full)))
	web, other := w.attach(a, id(keyA, "web", 0), Options{}), w.attach(a, id(keyB, "web", 0), Options{})
	w.listen(other.NetNS, ":80")
	w.listen(web.NetNS, ":80")

	w.reaches("the internet, with the box's address", web.NetNS, "tcp4", internet+":80", boxLAN)
	w.reaches("the internet by UDP", web.NetNS, "udp4", internet+":9000", boxLAN)
	w.reaches("the internet by IPv6, with the box's address", web.NetNS, "tcp6", "["+internet6+"]:80", box6)
	w.reaches("the internet by IPv6 and UDP", web.NetNS, "udp6", "["+internet6+"]:9000", box6)
	w.reaches("ingress: box to replica", "", "tcp4", web.Address.Addr().String()+":80", web.Gateway.String())
	w.reaches("ingress: box to replica by IPv6", "", "tcp6", "["+address6(a, id(keyA, "web", 0))+"]:80", "")

	other6 := address6(a, id(keyB, "web", 0))
	targets := []target{
		{"metadata service", "tcp4", "169.254.169.254:80"},
		{"metadata service by IPv6", "tcp6", "[fd00:ec2::254]:80"},
		{"owner's router", "tcp4", routerLAN + ":80"},
		{"owner's router by IPv6", "tcp6", "[" + router6 + "]:80"},
		{"owner's neighbour on the LAN", "tcp4", hostLAN + ":80"},
		{"owner's neighbour on the LAN by UDP", "udp4", hostLAN + ":9000"},
		{"owner's neighbour by public IPv6", "tcp6", "[" + hostLAN6 + "]:80"},
		{"another network of the owner's IPv6 delegation", "tcp6", "[" + otherVLAN6 + "]:80"},
		{"private 10/8", "tcp4", "10.1.2.3:80"},
		{"private 172.16/12", "tcp4", "172.20.0.1:80"},
		{"carrier's shared 100.64/10", "tcp4", "100.64.0.1:80"},
		{"benchmarking 198.18/15", "tcp4", "198.18.0.5:80"},
		{"documentation 192.0.2/24", "tcp4", "192.0.2.7:80"},
		{"6to4 relay", "tcp4", "192.88.99.1:80"},
		{"metadata service of Azure, by its public address", "tcp4", "168.63.129.16:80"},
		{"reserved 240/4", "tcp4", "240.0.0.9:80"},
		{"nobody's 0/8", "tcp4", "0.1.2.3:80"},
		{"LAN through a local NAT64", "tcp6", "[64:ff9b:1::c0a8:4d09]:80"},
		{"old site-local IPv6", "tcp6", "[fec0::9]:80"},
		{"local IPv6 fc00::/7", "tcp6", "[fdaa::1]:80"},
		{"LAN through NAT64", "tcp6", "[64:ff9b::c0a8:4d09]:80"},
		{"LAN through 6to4", "tcp6", "[2002:c0a8:4d09::1]:80"},
		{"LAN through Teredo", "tcp6", "[2001:0:c0a8:4d09::1]:80"},
		{"box by its LAN address", "tcp4", boxLAN + ":80"},
		{"box by its IPv6 address", "tcp6", "[" + box6 + "]:80"},
		{"box by the gateway's address", "tcp4", web.Gateway.String() + ":80"},
		{"box by its link-local address", "tcp6", "[fe80::1%" + containerLink + "]:80"},
		{"box by another link's gateway", "tcp4", other.Gateway.String() + ":80"},
		{"another tenant", "tcp4", other.Address.Addr().String() + ":80"},
		{"another tenant by IPv6", "tcp6", "[" + other6 + "]:80"},
		{"mail, port 25", "tcp4", internet + ":25"},
		{"mail, port 465", "tcp4", internet + ":465"},
		{"mail, port 587", "tcp4", internet + ":587"},
		{"mail by IPv6", "tcp6", "[" + internet6 + "]:25"},
	}
	for _, x := range targets { // each of them would answer: the box reaches it
		if x.name == "box by its link-local address" {
			continue
		}
		if _, err := w.talk("", x.network, x.to, patience); err != nil {
			t.Errorf("%s: not even the box reaches %s: %v", x.name, x.to, err)
		}
	}
	w.reachesNone(web.NetNS, targets)
	t.Run("name server of another tenant", func(t *testing.T) {
		if _, err := w.ask(web.NetNS, other.Gateway.String(), "udp", "good.example.", dns.TypeA, impatience); err == nil {
			t.Error("answered")
		}
	})
	t.Run("broadcast and multicast", func(t *testing.T) {
		before := len(w.senders())
		for _, to := range []string{"224.0.0.251:9001", "255.255.255.255:9001", "192.168.77.255:9001"} {
			_, _ = w.talk(web.NetNS, "udp4", to, impatience/4)
		}
		if after := w.senders(); len(after) > before {
			t.Errorf("heard outside: %v", after[before:])
		}
	})
	t.Run("refused packets are counted by reason", func(t *testing.T) {
		eventually(t, "counters", func() bool {
			d := a.Denied(keyA)
			return d.Private > 0 && d.Box > 0 && d.Inside > 0 && d.Mail > 0
		})
	})
	t.Run("LAN does not reach replicas or their name servers", func(t *testing.T) {
		w.reachesNone(w.outside, []target{
			{"replica", "tcp4", web.Address.Addr().String() + ":80"},
			{"replica by IPv6", "tcp6", "[" + address6(a, id(keyA, "web", 0)) + "]:80"},
			{"gateway's address", "tcp4", web.Gateway.String() + ":80"},
		})
		if _, err := w.ask(w.outside, web.Gateway.String(), "udp", "good.example.", dns.TypeA, impatience); err == nil {
			t.Error("the name server answered the LAN")
		}
		w.reaches("the box's own page is still the LAN's", w.outside, "tcp4", boxLAN+":80", routerLAN)
	})
	t.Run("mail is allowed where the policy says so", func(t *testing.T) {
		l := shop(Full)
		l.Mail = true
		must(t, a.SetLease(ctx, keyA, l))
		w.reaches("mail", web.NetNS, "tcp4", internet+":25", boxLAN)
	})
}

func (w *world) senders() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.heard)
}

func TestReplicasOfOneLeaseMeetOnExposedPortsOnly(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(None)))
	must(t, a.SetLease(t.Context(), keyB, shop(None)))
	web, db, foreign := w.attach(a, id(keyA, "web", 0), Options{}), w.attach(a, id(keyA, "db", 0), Options{}), w.attach(a, id(keyB, "web", 0), Options{})
	db2 := w.attach(a, id(keyA, "db", 1), Options{})
	for _, at := range []lease.Attachment{web, db, db2} {
		w.listen(at.NetNS, ":5432")
		w.listen(at.NetNS, ":8080")
	}
	dbAt, db26, webAt := db.Address.Addr().String(), address6(a, id(keyA, "db", 1)), web.Address.Addr().String()
	w.reaches("web uses db", web.NetNS, "tcp4", dbAt+":5432", webAt)
	w.reaches("web uses the second db by IPv6", web.NetNS, "tcp6", "["+db26+"]:5432", address6(a, id(keyA, "web", 0)))
	w.reachesNone(web.NetNS, []target{
		{"port that is not exposed", "tcp4", dbAt + ":8080"},
		{"port that is not exposed by IPv6", "tcp6", "[" + db26 + "]:8080"},
		{"exposed number of the other protocol", "udp4", dbAt + ":5432"},
		{"internet of a lease without egress", "tcp4", internet + ":80"},
		{"internet of a lease without egress by IPv6", "tcp6", "[" + internet6 + "]:80"},
	})
	w.reachesNone(db.NetNS, []target{
		{"port exposed to the world, not to db", "tcp4", webAt + ":8080"},
		{"its own exposed port at another replica", "tcp4", db2.Address.Addr().String() + ":5432"},
	})
	w.reachesNone(foreign.NetNS, []target{
		{"another lease's exposed port", "tcp4", dbAt + ":5432"},
		{"another lease's exposed port by IPv6", "tcp6", "[" + db26 + "]:5432"},
	})
	t.Run("a lease that was not described reaches nothing", func(t *testing.T) {
		unknown := w.attach(a, id("lccccccccc0", "web", 0), Options{})
		w.reachesNone(unknown.NetNS, []target{{"internet", "tcp4", internet + ":80"}, {"db", "tcp4", dbAt + ":5432"}})
	})
}

func (w *world) open(ns, to string) (net.Conn, *bufio.Reader) {
	w.t.Helper()
	c, err := netIn(w.t, ns, func() (net.Conn, error) { return net.DialTimeout("tcp", to, patience) })
	must(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	r := bufio.NewReader(c)
	_ = c.SetDeadline(time.Now().Add(patience))
	_, err = r.ReadString('\n')
	must(w.t, err)
	return c, r
}

func echo(c net.Conn, r *bufio.Reader, within time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		return err
	}
	_, err := r.ReadString('\n')
	return err
}

func TestConnectionsEndWhenTheyAreNoLongerAllowed(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	ctx := t.Context()
	must(t, a.SetLease(ctx, keyA, shop(Full)))
	web, db := w.attach(a, id(keyA, "web", 0), Options{}), w.attach(a, id(keyA, "db", 0), Options{})
	w.listen(db.NetNS, ":5432")
	out, outR := w.open(web.NetNS, internet+":80")
	inner, innerR := w.open(web.NetNS, db.Address.Addr().String()+":5432")
	must(t, errors.Join(echo(out, outR, patience), echo(inner, innerR, patience)))

	must(t, a.SetLease(ctx, keyA, shop(None)))
	if err := echo(out, outR, impatience); err == nil {
		t.Error("a connection to the internet went on without egress")
	}
	must(t, echo(inner, innerR, patience))
	closed := shop(None)
	closed.Services = nil
	must(t, a.SetLease(ctx, keyA, closed))
	if err := echo(inner, innerR, impatience); err == nil {
		t.Error("a connection to db went on though nothing is exposed")
	}
}

// TestSpoofedSourcesDoNotLeave sends from addresses that are not the replica's.
func TestSpoofedSourcesDoNotLeave(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	must(t, a.SetLease(t.Context(), keyB, shop(Full)))
	web, other := w.attach(a, id(keyA, "web", 0), Options{}), w.attach(a, id(keyB, "web", 0), Options{})
	ns, h, err := insideOf(web.NetNS)
	must(t, err)
	defer ns.Close()
	defer h.Close()
	eth, err := h.LinkByName(containerLink)
	must(t, err)
	send := func(from, to, text string) {
		t.Helper()
		bits := 32
		if strings.Contains(from, ":") {
			bits = 128
		}
		must(t, h.AddrReplace(eth, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(netip.MustParseAddr(from), bits)), Flags: unix.IFA_F_NODAD}))
		_, err := netIn(t, web.NetNS, func() (int, error) {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(to), Port: 9000})
			if err != nil {
				return 0, err
			}
			defer c.Close()
			return c.Write([]byte(text))
		})
		must(t, err)
	}
	send("8.8.4.4", internet, "forged")
	send(other.Address.Addr().String(), internet, "forged")
	send(boxLAN, internet, "forged")
	send(routerLAN, internet, "forged")
	send(address6(a, id(keyB, "web", 0)), internet6, "forged")
	send("2606:4700::1111", internet6, "forged")
	send(web.Address.Addr().String(), internet, "honest")
	send(address6(a, id(keyA, "web", 0)), internet6, "honest")
	eventually(t, "honest datagrams arrive and forged ones are counted", func() bool {
		honest := 0
		for _, s := range w.senders() {
			if strings.HasSuffix(s, "honest") {
				honest++
			}
		}
		return honest == 2 && a.Denied(keyA).Spoofed >= 6
	})
	for _, s := range w.senders() {
		if strings.HasSuffix(s, "forged") {
			t.Errorf("a forged datagram left: %s", s)
		}
	}
}

func TestPortScanIsSlowedAndReported(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), func(c *Config) { c.NewFlows, c.NewBurst = 1, 5 })
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	must(t, a.SetLease(t.Context(), keyB, shop(Full)))
	web, calm := w.attach(a, id(keyA, "web", 0), Options{}), w.attach(a, id(keyB, "web", 0), Options{})
	begin := time.Now()
	const probes = 1500
	_, err := netIn(t, web.NetNS, func() (int, error) {
		c, err := net.ListenUDP("udp", nil)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		for port := range probes {
			if _, err := c.WriteToUDP([]byte("scan"), &net.UDPAddr{IP: net.ParseIP(internet), Port: 10000 + port}); err != nil {
				return 0, err
			}
		}
		return 0, nil
	})
	must(t, err)
	a.wait(t, DeniedMuch)
	allowed := 6 + int(time.Since(begin)/time.Second) + 1
	eventually(t, "all but a few probes are refused", func() bool { return a.Denied(keyA).Rate >= uint64(probes-allowed) })
	w.reaches("a neighbour opens connections meanwhile", calm.NetNS, "tcp4", internet+":80", boxLAN)
}

func TestConnectionsAtOnceAreLimited(t *testing.T) {
	w := newWorld(t)
	const most = 10
	a := w.agent(journal.NewMemory(), func(c *Config) { c.Flows = most })
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	var held []net.Conn
	for range most {
		c, _ := w.open(web.NetNS, internet+":80")
		held = append(held, c)
	}
	w.reachesNone(web.NetNS, []target{{"one more", "tcp4", internet + ":80"}, {"one more by IPv6", "tcp6", "[" + internet6 + "]:80"}})
	for _, c := range held {
		c.Close()
	}
	eventually(t, "closed connections make room", func() bool {
		_, err := w.talk(web.NetNS, "tcp4", internet+":80", impatience)
		return err == nil
	})
}

func TestWhoeverChangesTheRulesIsOverruled(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	tamper := func(do func(c *nftables.Conn)) func(t *testing.T) {
		return func(t *testing.T) {
			c, err := nftables.New()
			must(t, err)
			do(c)
			must(t, c.Flush())
			a.wait(t, RulesRestored)
			w.t = t
			w.reaches("the internet", web.NetNS, "tcp4", internet+":80", boxLAN)
			w.reachesNone(web.NetNS, []target{{"router", "tcp4", routerLAN + ":80"}, {"mail", "tcp4", internet + ":25"}})
		}
	}
	defer func() { w.t = t }()
	table := ourTable()
	t.Run("table deleted", tamper(func(c *nftables.Conn) { c.DelTable(table) }))
	t.Run("everything flushed", tamper(func(c *nftables.Conn) { c.FlushRuleset() }))
	t.Run("chain emptied", tamper(func(c *nftables.Conn) { c.FlushChain(&nftables.Chain{Table: table, Name: "forward"}) }))
	t.Run("rule put in front", tamper(func(c *nftables.Conn) {
		c.InsertRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Table: table, Name: "forward"}, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
	}))
	t.Run("set emptied", tamper(func(c *nftables.Conn) { c.FlushSet(&nftables.Set{Table: table, Name: "blocked4"}) }))
	t.Run("policy turned", tamper(func(c *nftables.Conn) {
		accept := nftables.ChainPolicyAccept
		c.AddChain(&nftables.Chain{Table: table, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &accept})
	}))
	t.Run("forwarding switched off", func(t *testing.T) {
		must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
		eventually(t, "forwarding is on again", func() bool {
			raw, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
			return strings.TrimSpace(string(raw)) == "1"
		})
	})
}

func TestOwnersNetworkIsGuardedWhateverItsAddresses(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	c, r := w.open(web.NetNS, internet+":80")
	eth0, err := netlink.LinkByName("eth0")
	must(t, err)
	must(t, netlink.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("93.184.216.99/24"))}))
	eventually(t, "the connection into the owner's public prefix ends", func() bool { return echo(c, r, impatience) != nil })
	a.wait(t, UplinkChanged)
	w.reachesNone(web.NetNS, []target{{"owner's public prefix", "tcp4", internet + ":80"}})
	must(t, netlink.AddrDel(eth0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("93.184.216.99/24"))}))
	a.wait(t, UplinkChanged)
	w.reaches("the internet again", web.NetNS, "tcp4", internet+":80", boxLAN)

	t.Run("the router's public address is blocked once known", func(t *testing.T) {
		must(t, a.SetBlocked(t.Context(), []netip.Prefix{netip.MustParsePrefix(internet + "/32")}))
		w.t = t
		w.reachesNone(web.NetNS, []target{{"router's public address", "tcp4", internet + ":80"}})
		must(t, a.SetBlocked(t.Context(), nil))
	})
	t.Run("without a public IPv6 address there is no IPv6", func(t *testing.T) {
		must(t, netlink.AddrDel(eth0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(box6 + "/64"))}))
		must(t, netlink.AddrReplace(eth0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("fd12::20/64")), Flags: unix.IFA_F_NODAD}))
		must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("::/0"))}))
		eventually(t, "uplink followed", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return len(a.uplink.Names6) == 0
		})
		w.reachesNone(web.NetNS, []target{{"internet by IPv6", "tcp6", "[" + internet6 + "]:80"}})
		w.reaches("the internet by IPv4", web.NetNS, "tcp4", internet+":80", boxLAN)
	})
}

// residue is what of ours is in the kernel, the file system and the store.
func (w *world) residue(store Store) (left []string) {
	links, err := netlink.LinkList()
	must(w.t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, firewall.LinkPrefix) {
			left = append(left, "link "+l.Attrs().Name)
		}
	}
	entries, _ := os.ReadDir(filepath.Join(w.dir, "netns"))
	for _, e := range entries {
		left = append(left, "namespace "+e.Name())
	}
	left = append(left, store.Keys(storeReplica)...)
	c, err := nftables.New()
	must(w.t, err)
	sets, err := c.GetSets(ourTable())
	must(w.t, err)
	for _, set := range sets {
		if slices.Contains([]string{"blocked4", "blocked6", "uplink4", "uplink6"}, set.Name) {
			continue // the box's, not a replica's
		}
		elements, err := c.GetSetElements(set)
		must(w.t, err)
		for _, e := range elements {
			left = append(left, fmt.Sprintf("element of %s: %q", set.Name, e.Key))
		}
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	must(w.t, err)
	for _, f := range flows {
		if a, _ := netip.AddrFromSlice(f.Forward.SrcIP); netip.MustParsePrefix("10.88.0.0/16").Contains(a.Unmap()) {
			left = append(left, f.String())
		}
	}
	return left
}

func TestDetachLeavesNothing(t *testing.T) {
	w := newWorld(t)
	store := journal.NewMemory()
	a := w.agent(store, nil)
	ctx := t.Context()
	must(t, a.SetLease(ctx, keyA, shop(Full)))
	web, db := w.attach(a, id(keyA, "web", 0), Options{Down: 1e8, Up: 1e8}), w.attach(a, id(keyA, "db", 0), Options{})
	w.reaches("the internet", web.NetNS, "tcp4", internet+":80", boxLAN)
	w.reachesNone(web.NetNS, []target{{"router", "tcp4", routerLAN + ":80"}, {"db", "tcp4", db.Address.Addr().String() + ":1"}})
	if left := w.residue(store); len(left) < 6 {
		t.Fatalf("this test would see nothing: %v", left)
	}
	for range 2 {
		must(t, a.Detach(ctx, id(keyA, "web", 0)))
		must(t, a.Detach(ctx, id(keyA, "db", 0)))
	}
	must(t, a.Forget(ctx, keyA))
	if left := w.residue(store); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if keys := store.Keys("network/"); len(keys) > 0 {
		t.Errorf("left in the journal: %v", keys)
	}
}

// TestCrashAnywhere ends Attach and Detach after each of their steps. A new
// agent finds nothing half made, and repeating the call completes it.
func TestCrashAnywhere(t *testing.T) {
	w := newWorld(t)
	crash := errors.New("crash")
	seldom := func(c *Config) { c.Check = time.Hour }
	web := id(keyA, "web", 0)
	for _, step := range []string{"record", "rules", "namespace", "link", "host end", "container end", "stopped", "saved", "link removed", "namespace removed"} {
		for _, then := range []string{"adopt", "repeat"} {
			t.Run("after "+step+", then "+then, func(t *testing.T) {
				w.t = t
				defer func() { w.t = t }()
				store := journal.NewMemory()
				a := w.agent(store, seldom)
				must(t, a.SetLease(t.Context(), keyA, shop(Full)))
				crashed := false
				a.turn.Lock()
				a.fault = func(at string) error {
					if at == step {
						crashed = true
						return crash
					}
					return nil
				}
				a.turn.Unlock()
				_, err := a.Attach(t.Context(), web, Options{})
				if err == nil {
					err = a.Detach(t.Context(), web)
				}
				if !errors.Is(err, crash) || !crashed {
					t.Fatalf("no crash: %v", err)
				}
				a.kill()

				b := w.agent(store, seldom)
				if then == "adopt" {
					left, err := b.Adopt(t.Context())
					must(t, err)
					// Before Detach's first step is through the replica stands, as far as anybody can see.
					whole := step == "stopped" || step == "saved"
					if whole != (len(left) == 1) {
						t.Fatalf("adopted %v", left)
					}
					if !whole {
						if left := w.residue(store); len(left) > 0 {
							t.Errorf("left: %v", left)
						}
					}
				}
				at := w.attach(b, web, Options{})
				w.reaches("the internet", at.NetNS, "tcp4", internet+":80", boxLAN)
				must(t, b.Detach(t.Context(), web))
				if left := w.residue(store); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				b.kill()
			})
		}
	}
}

func TestAgentRestartDisturbsNobody(t *testing.T) {
	w := newWorld(t)
	store := journal.NewMemory()
	a := w.agent(store, nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{Down: 1e9, Up: 1e9})
	c, r := w.open(web.NetNS, internet+":80")
	must(t, echo(c, r, patience))
	if _, err := makeNamespace("/proc/sys", filepath.Join(w.dir, "netns", "stray")); err != nil {
		t.Fatal(err)
	}
	a.kill()
	must(t, echo(c, r, patience)) // nothing depends on the agent

	b := w.agent(store, nil)
	left, err := b.Adopt(t.Context())
	must(t, err)
	if !slices.Equal(left, []lease.ReplicaID{id(keyA, "web", 0)}) || !slices.Equal(b.Replicas(), left) {
		t.Fatalf("adopted %v", left)
	}
	if isNamespace(filepath.Join(w.dir, "netns", "stray")) {
		t.Error("a namespace that belongs to nobody is left")
	}
	must(t, echo(c, r, patience))
	again := w.attach(b, id(keyA, "web", 0), Options{Down: 1e9, Up: 1e9})
	if again != web {
		t.Errorf("attached again as %v, was %v", again, web)
	}
	must(t, echo(c, r, patience))
	w.reaches("the internet", web.NetNS, "tcp4", internet+":80", boxLAN)
	w.reachesNone(web.NetNS, []target{{"router", "tcp4", routerLAN + ":80"}})
	b.kill()

	// A reboot takes the namespaces and leaves the journal.
	must(t, removeOthers(filepath.Join(w.dir, "netns"), nil, nil))
	dropTable(t)
	d := w.agent(store, nil)
	left, err = d.Adopt(t.Context())
	must(t, err)
	if len(left) != 0 || len(w.residue(store)) != 0 {
		t.Errorf("after a reboot: adopted %v, left %v", left, w.residue(store))
	}
}

// TestRenewGivesBackWhatGVisorTakes strips the container's end as gVisor does.
func TestRenewGivesBackWhatGVisorTakes(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{Up: 1e9})
	strip := func() {
		ns, h, err := insideOf(web.NetNS)
		must(t, err)
		defer ns.Close()
		defer h.Close()
		for _, name := range []string{containerLink, "lo"} {
			l, err := h.LinkByName(name)
			must(t, err)
			list, err := h.AddrList(l, unix.AF_UNSPEC)
			must(t, err)
			for _, x := range list {
				must(t, h.AddrDel(l, &x))
			}
		}
	}
	for range 2 {
		strip()
		if _, err := w.talk(web.NetNS, "tcp4", internet+":80", impatience); err == nil {
			t.Fatal("not stripped")
		}
		must(t, a.Renew(t.Context(), id(keyA, "web", 0)))
		w.reaches("the internet", web.NetNS, "tcp4", internet+":80", boxLAN)
		w.reaches("the internet by IPv6", web.NetNS, "tcp6", "["+internet6+"]:80", box6)
	}
	strip()
	w.attach(a, id(keyA, "web", 0), Options{Up: 1e9})
	if _, err := w.talk(web.NetNS, "tcp4", internet+":80", impatience); err == nil {
		t.Error("Attach gave a running sandbox's addresses to the kernel")
	}
	if err := a.Renew(t.Context(), id(keyA, "db", 0)); err == nil {
		t.Error("a replica that is not attached was renewed")
	}
}

func TestBothEndsAreShaped(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	bucket := func(h *netlink.Handle, name string) *netlink.Tbf {
		t.Helper()
		l, err := h.LinkByName(name)
		must(t, err)
		list, err := h.QdiscList(l)
		must(t, err)
		for _, q := range list {
			if b, ok := q.(*netlink.Tbf); ok {
				return b
			}
		}
		return nil
	}
	for _, o := range []Options{{Down: 100_000_000, Up: 20_000_000}, {Down: 50_000_000, Up: 40e9}, {}} {
		web := w.attach(a, id(keyA, "web", 0), o)
		ns, h, err := insideOf(web.NetNS)
		must(t, err)
		defer ns.Close()
		defer h.Close()
		for _, x := range []struct {
			h    *netlink.Handle
			name string
			rate int64
		}{{&netlink.Handle{}, linkName(id(keyA, "web", 0).Container()), o.Down}, {h, containerLink, o.Up}} {
			b := bucket(x.h, x.name)
			if x.rate == 0 {
				if b != nil {
					t.Errorf("%s is still shaped", x.name)
				}
				continue
			}
			if b == nil || b.Rate != uint64(x.rate/8) || b.Limit < 64<<10 || netlink.Xmitsize(b.Rate, b.Buffer) < 64<<10 {
				t.Errorf("%s has bucket %+v, want rate %d bytes a second and room for 64 KiB", x.name, b, x.rate/8)
			}
		}
	}
}

func TestCountersSurviveReplicasAndAgents(t *testing.T) {
	w := newWorld(t)
	store := journal.NewMemory()
	a := w.agent(store, nil)
	ctx := t.Context()
	must(t, a.SetLease(ctx, keyA, shop(Full)))
	const amount = 1 << 20
	flow := func(at lease.Attachment) {
		t.Helper()
		c, r := w.open(at.NetNS, internet+":80")
		sent := make(chan error, 1)
		go func() { _, err := c.Write(make([]byte, amount)); sent <- err }()
		_, err := io.CopyN(io.Discard, r, amount)
		must(t, errors.Join(err, <-sent))
		c.Close()
	}
	var lastIn, lastOut uint64
	grown := func(a *agent, times uint64) {
		t.Helper()
		in, out := a.Counters(keyA)
		for _, x := range []struct {
			name      string
			now, last uint64
		}{{"in", in, lastIn}, {"out", out, lastOut}} {
			if d := x.now - x.last; x.now < x.last || d < times*amount || d > times*amount*3/2+64<<10 {
				t.Errorf("%s grew from %d to %d, want about %d more", x.name, x.last, x.now, times*amount)
			}
		}
		lastIn, lastOut = in, out
	}
	at := w.attach(a, id(keyA, "web", 0), Options{})
	flow(at)
	grown(a, 1)
	must(t, a.Detach(ctx, id(keyA, "web", 0)))
	grown(a, 0) // the last packets of closing
	at = w.attach(a, id(keyA, "web", 1), Options{})
	flow(at)
	grown(a, 1)
	a.kill()
	flow(at) // while there is no agent
	b := w.agent(store, nil)
	_, err := b.Adopt(ctx)
	must(t, err)
	grown(b, 1)
	// A crash saves nothing: the next agent reads the same link from the last
	// reading that was saved, and counts each byte once all the same.
	flow(at)
	grown(b, 1)
	crashed := journal.NewMemory()
	for _, key := range store.Keys("network/") {
		var raw any
		_, err := store.Get(key, &raw)
		must(t, err)
		must(t, crashed.Put(key, raw))
	}
	b.kill()
	d := w.agent(crashed, nil)
	_, err = d.Adopt(ctx)
	must(t, err)
	grown(d, 0)
	if in, out := d.Counters(keyB); in != 0 || out != 0 {
		t.Errorf("another lease counts %d and %d", in, out)
	}
}

// ask asks a name server from ns.
func (w *world) ask(ns, server, transport, name string, kind uint16, within time.Duration) (*dns.Msg, error) {
	c, err := netIn(w.t, ns, func() (net.Conn, error) { return net.DialTimeout(transport, net.JoinHostPort(server, "53"), within) })
	if err != nil {
		return nil, err
	}
	q := new(dns.Msg)
	q.SetQuestion(name, kind)
	client := &dns.Client{Net: transport, Timeout: within}
	m, _, err := client.ExchangeWithConn(q, &dns.Conn{Conn: c})
	c.Close()
	return m, err
}

func TestNamesOfALease(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	must(t, a.SetLease(t.Context(), keyB, shop(None)))
	web, db := w.attach(a, id(keyA, "web", 0), Options{}), w.attach(a, id(keyA, "db", 0), Options{})
	db2, foreign := w.attach(a, id(keyA, "db", 1), Options{}), w.attach(a, id(keyB, "web", 0), Options{})
	host6 := netip.MustParseAddr(address6(a, id(keyA, "web", 0))).Prev().String()
	ns := map[string]lease.Attachment{"web": web, "db": db, "foreign": foreign}
	both := []string{db.Address.Addr().String(), db2.Address.Addr().String()}
	slices.Sort(both)
	for _, tc := range []struct {
		name, asker, server, transport, question string
		kind                                     uint16
		rcode                                    int
		want                                     []string
	}{
		{"a service that exposes a port to the asker", "web", "", "udp", "db.", dns.TypeA, dns.RcodeSuccess, both},
		{"the same by TCP", "web", "", "tcp", "DB.", dns.TypeA, dns.RcodeSuccess, both},
		{"the same asked by IPv6", "web", host6, "udp", "db.", dns.TypeA, dns.RcodeSuccess, both},
		{"a service that does not", "db", "", "udp", "web.", dns.TypeA, dns.RcodeNameError, nil},
		{"a service of another lease", "foreign", "", "udp", "nothere.", dns.TypeA, dns.RcodeNameError, nil},
		{"the internet", "web", "", "udp", "good.example.", dns.TypeA, dns.RcodeSuccess, []string{internet}},
		{"the internet by TCP", "web", "", "tcp", "good.example.", dns.TypeAAAA, dns.RcodeSuccess, []string{internet6}},
		{"the internet without egress", "foreign", "", "udp", "good.example.", dns.TypeA, dns.RcodeRefused, nil},
		{"rebinding to the router", "web", "", "udp", "rebind.example.", dns.TypeA, dns.RcodeSuccess, nil},
		{"rebinding by a mapped address", "web", "", "udp", "rebind.example.", dns.TypeAAAA, dns.RcodeSuccess, nil},
		{"rebinding to the owner's delegation", "web", "", "udp", "vlan.example.", dns.TypeAAAA, dns.RcodeSuccess, nil},
		{"names of the owner's network", "web", "", "udp", "nas.local.", dns.TypeA, dns.RcodeNameError, nil},
		{"names of private addresses", "web", "", "udp", "9.77.168.192.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, nil},
		{"names of the owner's public addresses", "web", "", "udp", must1(dns.ReverseAddr(hostLAN6)), dns.TypePTR, dns.RcodeNameError, nil},
		{"everything about a name", "web", "", "udp", "good.example.", dns.TypeANY, dns.RcodeRefused, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := tc.server
			if server == "" {
				server = ns[tc.asker].Gateway.String()
			}
			var m *dns.Msg
			var err error
			eventually(t, "answer", func() bool {
				m, err = w.ask(ns[tc.asker].NetNS, server, tc.transport, tc.question, tc.kind, 5*time.Second)
				return err == nil
			})
			var got []string
			for _, rr := range m.Answer {
				switch r := rr.(type) {
				case *dns.A:
					got = append(got, r.A.String())
				case *dns.AAAA:
					got = append(got, r.AAAA.String())
				}
			}
			slices.Sort(got)
			if m.Rcode != tc.rcode || !slices.Equal(got, tc.want) {
				t.Errorf("%s: %s %v, want %s %v", tc.question, dns.RcodeToString[m.Rcode], got, dns.RcodeToString[tc.rcode], tc.want)
			}
		})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range w.asked {
		if !slices.Contains([]string{"good.example.", "rebind.example.", "vlan.example."}, name) {
			t.Errorf("%s left the box", name)
		}
	}
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestFloodOfQuestionsStaysOneReplicasMatter asks more than a replica may.
func TestFloodOfQuestionsStaysOneReplicasMatter(t *testing.T) {
	w := newWorld(t)
	a := w.agent(journal.NewMemory(), nil)
	must(t, a.SetLease(t.Context(), keyA, shop(Full)))
	must(t, a.SetLease(t.Context(), keyB, shop(Full)))
	web, calm := w.attach(a, id(keyA, "web", 0), Options{}), w.attach(a, id(keyB, "web", 0), Options{})
	const questions = 20_000
	_, err := netIn(t, web.NetNS, func() (int, error) {
		c, err := net.Dial("udp", web.Gateway.String()+":53")
		if err != nil {
			return 0, err
		}
		defer c.Close()
		q := new(dns.Msg)
		q.SetQuestion("good.example.", dns.TypeA)
		raw, err := q.Pack()
		if err != nil {
			return 0, err
		}
		for range questions {
			_, _ = c.Write(raw)
		}
		return 0, nil
	})
	must(t, err)
	if _, err := w.ask(calm.NetNS, calm.Gateway.String(), "udp", "good.example.", dns.TypeA, patience); err != nil {
		t.Errorf("a neighbour's question: %v", err)
	}
	eventually(t, "the kernel refuses most of them", func() bool { return a.Denied(keyA).Rate > 0 })
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.asked) > questions/10 {
		t.Errorf("%d of %d questions left the box", len(w.asked), questions)
	}
}
