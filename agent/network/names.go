package network

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/network/firewall"
)

// Bounds of the name servers. Each replica has one; the limits that are "of the
// box" are shared, so that one replica cannot take them all.
const (
	nameTTL          = 5   // seconds: replicas come and go
	nameAnswers      = 32  // addresses in one answer
	nameRate         = 50  // questions a second of one replica, on the long run
	nameBurst        = 200 // and at once
	forwardedOne     = 32  // questions of one replica on their way
	forwardedBox     = 256 // of all
	nameConnections  = 8   // TCP connections of one replica
	nameQuestionsTCP = 64  // of one connection
	nameIdle         = 5 * time.Second
	upstreamTry      = 2 * time.Second // one server
	upstreamAll      = 5 * time.Second // all of them
	upstreamServers  = 3               // that resolv.conf may name
	answerUDP        = 1232            // bytes: what passes every link unfragmented
	resolvConfSize   = 64 << 10
)

// kindOfName is what becomes of a question.
type kindOfName int

const (
	inLease   kindOfName = iota // a service's name, or what could be one: never forwarded
	forward                     // the internet's
	notExists                   // names that must not leave the box
	refuse                      // questions we do not answer
)

// judgeQuestion decides without looking anything up.
func judgeQuestion(q *dns.Msg, forbidden func(netip.Addr) bool) kindOfName {
	if q.Response || q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		return refuse
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET {
		return refuse
	}
	switch question.Qtype {
	case dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB, dns.TypeTKEY, dns.TypeTSIG, dns.TypeOPT, dns.TypeNone:
		return refuse
	}
	name := dns.CanonicalName(question.Name)
	labels := dns.SplitDomainName(name)
	switch {
	case name == ".":
		return forward
	case len(labels) == 1:
		return inLease
	}
	for _, zone := range localZones() {
		if dns.IsSubDomain(zone, name) {
			return notExists
		}
	}
	if reverse, whole := reversed(name); reverse {
		for _, p := range whole {
			if forbidden(p.Addr()) || forbidden(firewall.LastOf(p)) {
				return notExists
			}
		}
		if len(whole) == 0 {
			return notExists
		}
	}
	return forward
}

// localZones are names of somebody's own network; those ending in "box." and
// "ip." are what routers of German and Austrian providers call theirs.
func localZones() []string {
	return []string{"fritz.box.", "easy.box.", "o2.box.", "congstar.box.", "speedport.ip.", "local.", "localhost.", "internal.", "lan.", "home.", "home.arpa.", "corp.", "intranet.", "private.", "localdomain.", "test.", "invalid.", "onion.", "alt."}
}

// reversed says whether name is a reverse name, and of which prefix; a malformed
// one has none.
func reversed(name string) (bool, []netip.Prefix) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		var raw [4]byte
		labels := strings.Split(rest, ".")
		if len(labels) > 4 {
			return true, nil
		}
		for i, l := range labels {
			n, err := strconv.ParseUint(l, 10, 8)
			if err != nil {
				return true, nil
			}
			raw[len(labels)-1-i] = byte(n)
		}
		return true, []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(raw), 8*len(labels))}
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		var raw [16]byte
		labels := strings.Split(rest, ".")
		if len(labels) > 32 {
			return true, nil
		}
		for i, l := range labels {
			n, err := strconv.ParseUint(l, 16, 4)
			if err != nil || len(l) != 1 {
				return true, nil
			}
			at := len(labels) - 1 - i
			raw[at/2] |= byte(n) << (4 * (1 - at%2))
		}
		return true, []netip.Prefix{netip.PrefixFrom(netip.AddrFrom16(raw), 4*len(labels))}
	}
	return false, nil
}

// filterAnswer takes out what leads where tenants must not go: addresses, and
// the hints of HTTPS records. It reports whether anything was.
func filterAnswer(records []dns.RR, forbidden func(netip.Addr) bool) ([]dns.RR, bool) {
	bad := func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return !ok || forbidden(a.Unmap())
	}
	kept := make([]dns.RR, 0, len(records))
	for _, rr := range records {
		var drop bool
		switch r := rr.(type) {
		case *dns.A:
			drop = bad(r.A)
		case *dns.AAAA:
			drop = bad(r.AAAA)
		case *dns.HTTPS:
			drop = badHints(r.Value, bad)
		case *dns.SVCB:
			drop = badHints(r.Value, bad)
		}
		if !drop {
			kept = append(kept, rr)
		}
	}
	return kept, len(kept) < len(records)
}

func badHints(values []dns.SVCBKeyValue, bad func(net.IP) bool) bool {
	for _, v := range values {
		var hints []net.IP
		switch h := v.(type) {
		case *dns.SVCBIPv4Hint:
			hints = h.Hint
		case *dns.SVCBIPv6Hint:
			hints = h.Hint
		}
		if slices.ContainsFunc(hints, bad) {
			return true
		}
	}
	return false
}

// resolveService is the addresses of name for a replica of service asker: of
// the services that expose a port to it.
func resolveService(l Lease, asker, name string, replicas []replica) (addresses []netip.Addr, known bool) {
	at := slices.IndexFunc(l.Services, func(s Service) bool { return s.Name == name })
	if at < 0 || !slices.ContainsFunc(l.Services[at].Ports, func(p Port) bool { return slices.Contains(p.To, asker) }) {
		return nil, false
	}
	for _, r := range replicas {
		if r.ID.Service == name && r.Ready && !slices.Contains(l.Services[at].Silent, r.ID.Pod()) {
			addresses = append(addresses, r.Address4, r.Address6)
		}
	}
	return addresses, true
}

// parseServers reads the name servers of a resolv.conf.
func parseServers(text []byte) []string {
	var servers []string
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan() && len(servers) < upstreamServers; {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a, 53).String())
		}
	}
	return servers
}

// resolver forwards questions to the box's own name servers.
type resolver struct {
	path      string
	forbidden func(netip.Addr) bool
	slots     chan struct{} // one for each question on its way
}

func newResolver(path string, forbidden func(netip.Addr) bool) *resolver {
	return &resolver{path: path, forbidden: forbidden, slots: make(chan struct{}, forwardedBox)}
}

var errNoServer = errors.New("the box has no name server")

// ask sends the question anew: nothing of the tenant's message but name, type
// and the wish for signatures leaves the box.
func (r *resolver) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	raw, err := os.ReadFile(r.path) // a small file in memory; it changes with the uplink
	if err != nil || len(raw) > resolvConfSize {
		return nil, errors.Join(errNoServer, err)
	}
	ctx, stop := context.WithTimeout(ctx, upstreamAll)
	defer stop()
	fresh := new(dns.Msg)
	fresh.SetQuestion(q.Question[0].Name, q.Question[0].Qtype)
	opt := q.IsEdns0()
	fresh.SetEdns0(answerUDP, opt != nil && opt.Do())
	err = errNoServer
	for _, server := range parseServers(raw) {
		for _, transport := range []string{"udp", "tcp"} {
			client := &dns.Client{Net: transport, Timeout: upstreamTry, UDPSize: answerUDP}
			var answer *dns.Msg
			answer, _, err = client.ExchangeContext(ctx, fresh, server)
			if err == nil && !sameQuestion(answer, fresh) {
				err = fmt.Errorf("name server %s answered another question", server)
			}
			if err != nil {
				break // the next server
			}
			if !answer.Truncated || transport == "tcp" {
				return answer, nil
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func sameQuestion(a, b *dns.Msg) bool {
	return a.Response && len(a.Question) == 1 && a.Question[0].Qtype == b.Question[0].Qtype && strings.EqualFold(a.Question[0].Name, b.Question[0].Name)
}

// nameServer answers one replica, at the host's end of its link. Who asks is
// known from where: the table lets no other link reach these addresses.
type nameServer struct {
	network *Network
	id      lease.ReplicaID
	cancel  context.CancelFunc // ends what is being forwarded
	rate    *rate.Limiter
	slots   chan struct{} // one for each of this replica's questions on their way
	servers []*dns.Server
	serving sync.WaitGroup
}

// startServersTurned starts the name servers that are missing.
func (n *Network) startServersTurned() {
	n.mu.Lock()
	var all []replica
	for _, r := range n.replicas {
		if r.Ready {
			all = append(all, r)
		}
	}
	n.mu.Unlock()
	for _, r := range all {
		n.startServerTurned(r)
	}
}

func (n *Network) startServerTurned(r replica) {
	container := r.ID.Container()
	if !n.serving || n.servers[container] != nil {
		return
	}
	addresses := []netip.Addr{r.host4()}
	if hasIPv6(n.cfg.Sys) {
		addresses = append(addresses, r.host6())
	}
	ctx, cancel := context.WithCancel(context.Background()) // ended by stop, which Run calls at its end
	s := &nameServer{network: n, id: r.ID, cancel: cancel, rate: rate.NewLimiter(nameRate, nameBurst), slots: make(chan struct{}, forwardedOne)}
	for _, a := range addresses {
		if err := s.listen(ctx, a); err != nil {
			s.stop()
			// The periodic check tries again.
			n.log.Warn("name server not started", "lease", r.ID.Lease, "pod", r.ID.Pod(), "error", err)
			return
		}
	}
	for _, d := range s.servers {
		s.serving.Go(func() {
			if err := d.ActivateAndServe(); err != nil && !errors.Is(err, net.ErrClosed) {
				n.log.Warn("name server ended", "lease", r.ID.Lease, "pod", r.ID.Pod(), "error", err)
			}
		})
	}
	n.servers[container] = s
}

func (s *nameServer) listen(ctx context.Context, a netip.Addr) error {
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { s.serve(ctx, w, q) })
	at := netip.AddrPortFrom(a, 53)
	packets, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	s.servers = append(s.servers, &dns.Server{PacketConn: packets, Handler: handler, UDPSize: dns.MinMsgSize, ReadTimeout: nameIdle})
	streams, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	s.servers = append(s.servers, &dns.Server{
		Listener: &fewConnections{Listener: streams, slots: make(chan struct{}, nameConnections)}, Handler: handler,
		ReadTimeout: nameIdle, WriteTimeout: nameIdle, IdleTimeout: func() time.Duration { return nameIdle }, MaxTCPQueries: nameQuestionsTCP,
	})
	return nil
}

// stop ends the answers under way, closes the sockets and waits.
func (s *nameServer) stop() {
	s.cancel()
	for _, d := range s.servers {
		if d.Shutdown() == nil {
			continue
		}
		// Not serving yet: without its socket it never will.
		if d.PacketConn != nil {
			_ = d.PacketConn.Close()
		}
		if d.Listener != nil {
			_ = d.Listener.Close()
		}
	}
	s.serving.Wait()
}

func (n *Network) stopServerTurned(container string) {
	if s := n.servers[container]; s != nil {
		s.stop()
		delete(n.servers, container)
	}
}

func (n *Network) stopServersTurned() {
	for container := range n.servers {
		n.stopServerTurned(container)
	}
}

// fewConnections closes connections beyond its slots.
type fewConnections struct {
	net.Listener
	slots chan struct{}
}

func (l *fewConnections) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &slotConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			_ = c.Close()
		}
	}
}

type slotConn struct {
	net.Conn
	release func()
}

func (c *slotConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// serve answers one question. Beyond the rate there is no answer at all:
// whoever floods gets nothing to amplify.
func (s *nameServer) serve(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	if !s.rate.Allow() {
		return
	}
	answer := s.answer(ctx, q)
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = min(max(size, int(opt.UDPSize())), answerUDP)
	}
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); tcp {
		size = dns.MaxMsgSize
	}
	answer.Truncate(size)
	_ = w.WriteMsg(answer) // who does not listen has hung up
}

func (s *nameServer) answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	n := s.network
	code := func(rcode int) *dns.Msg {
		m := new(dns.Msg)
		m.SetRcode(q, rcode)
		m.RecursionAvailable = true
		return m
	}
	n.mu.Lock()
	l := n.leases[s.id.Lease]
	var siblings []replica
	for _, r := range n.replicas {
		if r.ID.Lease == s.id.Lease {
			siblings = append(siblings, r)
		}
	}
	n.mu.Unlock()

	switch judgeQuestion(q, n.forbidden) {
	case inLease:
		name := strings.TrimSuffix(dns.CanonicalName(q.Question[0].Name), ".")
		addresses, known := resolveService(l, s.id.Service, name, siblings)
		if !known {
			return code(dns.RcodeNameError)
		}
		m := code(dns.RcodeSuccess)
		m.Authoritative = true
		m.Answer = serviceAnswer(q.Question[0], addresses)
		return m
	case notExists:
		return code(dns.RcodeNameError)
	case forward:
		if l.Egress != Full {
			// A lease without the internet has no tunnel through its names either.
			return code(dns.RcodeRefused)
		}
		return s.forward(ctx, q, code)
	default: // refuse
		return code(dns.RcodeRefused)
	}
}

// serviceAnswer holds the addresses of the asked family in random order.
func serviceAnswer(q dns.Question, addresses []netip.Addr) (list []dns.RR) {
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: nameTTL}
	for _, a := range addresses {
		switch {
		case len(list) == nameAnswers:
			return list
		case q.Qtype == dns.TypeA && a.Is4():
			list = append(list, &dns.A{Hdr: header, A: a.AsSlice()})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			list = append(list, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	return list
}

func (s *nameServer) forward(ctx context.Context, q *dns.Msg, code func(int) *dns.Msg) *dns.Msg {
	for _, slots := range []chan struct{}{s.slots, s.network.resolver.slots} {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			return code(dns.RcodeServerFailure)
		}
	}
	got, err := s.network.resolver.ask(ctx, q)
	if err != nil {
		return code(dns.RcodeServerFailure)
	}
	m := code(got.Rcode & 0xf)
	m.AuthenticatedData = got.AuthenticatedData
	var filtered bool
	m.Answer, filtered = filterAnswer(got.Answer, s.network.forbidden)
	m.Ns, _ = filterAnswer(got.Ns, s.network.forbidden)
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(answerUDP, opt.Do())
		if filtered {
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeFiltered, ExtraText: "addresses that tenants cannot reach"})
		}
	}
	return m
}
