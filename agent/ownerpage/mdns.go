package ownerpage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/pion/logging"
	"github.com/pion/mdns/v2"
	"golang.org/x/net/bpf"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// MDNSConfig is copied by [NewMDNS], checked once, and never changed afterwards.
type MDNSConfig struct {
	Name  string        // required; the box answers for Name + ".local", e.g. "croft-k7qm"
	Every time.Duration // how often interfaces and addresses are looked at; default 5 s
	Log   *slog.Logger  // default: no log
}

// MDNS answers the question "where is croft-xxxx.local?" in the home network,
// on each interface with the address of that interface. It waits for a network
// if there is none, and follows addresses as they change.
type MDNS struct {
	name  string
	every time.Duration
	log   *slog.Logger

	networks func() ([]network, error)         // the networks as they are now
	answer   func([]network) (answerer, error) // begins to answer in networks
	loopback bool                              // also on the loopback interface: for tests
}

// answerer answers questions until it is closed.
type answerer interface{ io.Closer }

// network is an interface that can multicast, and its addresses.
type network struct {
	net.Interface
	addrs []string
}

// NewMDNS checks cfg.
func NewMDNS(cfg MDNSConfig) (*MDNS, error) {
	if cfg.Name == "" || strings.ContainsAny(cfg.Name, ". ") {
		return nil, fmt.Errorf("name %q for the home network: want one label, without .local", cfg.Name)
	}
	m := &MDNS{name: cfg.Name, every: cmp.Or(cfg.Every, 5*time.Second), log: logger(cfg.Log), networks: homeNetworks}
	m.answer = m.open
	return m, nil
}

// Run answers until ctx ends, and returns nil then. Trouble with a network is
// logged once and tried again; it is not the end.
func (m *MDNS) Run(ctx context.Context) error {
	var (
		current  answerer
		answered []network // what current answers for
		trouble  string    // last trouble logged
	)
	shut := func() {
		if current != nil {
			_ = current.Close() // its sockets are gone either way
			current, answered = nil, nil
		}
	}
	defer shut()
	tick := time.NewTicker(m.every)
	defer tick.Stop()
	for {
		now, err := m.networks()
		if err == nil && !slices.EqualFunc(now, answered, network.equal) {
			shut()
			if len(now) > 0 {
				if current, err = m.answer(now); err == nil {
					answered = now
					m.log.Info("name announced in the home network", "name", m.name+".local", "interfaces", names(now))
				} else {
					current = nil
				}
			}
		}
		switch {
		case err == nil:
			trouble = ""
		case err.Error() != trouble:
			trouble = err.Error()
			m.log.Warn("name not announced in the home network", "name", m.name+".local", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (n network) equal(o network) bool {
	return n.Index == o.Index && n.Name == o.Name && n.MTU == o.MTU && slices.Equal(n.addrs, o.addrs)
}

func names(networks []network) string {
	var all []string
	for _, n := range networks {
		all = append(all, n.Name)
	}
	return strings.Join(all, " ")
}

// homeNetworks lists the interfaces that are up, can multicast and have an
// address.
func homeNetworks() ([]network, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var out []network
	const wanted = net.FlagUp | net.FlagRunning | net.FlagMulticast
	for _, i := range ifaces {
		if i.Flags&wanted != wanted || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil || len(addrs) == 0 {
			continue // gone in this instant, or not ready
		}
		n := network{Interface: i}
		for _, a := range addrs {
			n.addrs = append(n.addrs, a.String())
		}
		out = append(out, n)
	}
	return out, nil
}

// open begins to answer in networks, of which there is at least one. IPv4 and
// IPv6 each may be missing on the machine, not both.
func (m *MDNS) open(networks []network) (answerer, error) {
	var (
		v4       *ipv4.PacketConn
		v6       *ipv6.PacketConn
		troubles []error
	)
	if c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}); err != nil {
		troubles = append(troubles, err)
	} else {
		v4 = ipv4.NewPacketConn(c)
		troubles = appendError(troubles, onlyQuestions(v4, 16, 0xE00000FB)) // 224.0.0.251
	}
	if c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.ParseIP("ff02::fb"), Port: 5353}); err != nil {
		troubles = append(troubles, err)
	} else {
		v6 = ipv6.NewPacketConn(c)
		troubles = appendError(troubles, onlyQuestions(v6, 24, 0xFF020000)) // begins ff02::
	}
	if v4 == nil && v6 == nil {
		return nil, fmt.Errorf("listen for questions: %w", errors.Join(troubles...))
	}
	for _, err := range troubles {
		m.log.Debug("name service is limited", "error", err)
	}
	var ifaces []net.Interface
	for _, n := range networks {
		ifaces = append(ifaces, n.Interface)
	}
	conn, err := mdns.NewServer(v4, v6,
		mdns.WithName(m.name),
		mdns.WithLocalNames(m.name+".local"),
		mdns.WithInterfaces(ifaces...),
		mdns.WithRecordTypes(dnsmessage.TypeA, dnsmessage.TypeAAAA),
		mdns.WithCacheRefresh(false),
		mdns.WithIncludeLoopback(m.loopback),
		mdns.WithLoggerFactory(quiet{m.log}),
	)
	if err != nil {
		if v4 != nil {
			err = appendClose(err, v4)
		}
		if v6 != nil {
			err = appendClose(err, v6)
		}
		return nil, fmt.Errorf("answer questions: %w", err)
	}
	return conn, nil
}

func appendError(errs []error, err error) []error {
	if err == nil {
		return errs
	}
	return append(errs, err)
}

func appendClose(err error, c io.Closer) error { return errors.Join(err, c.Close()) }

// onlyQuestions lets the kernel drop what is not a question sent to the
// multicast group: offset is where the destination stands in the IP header,
// group its first four bytes. A question sent straight at the box, perhaps from
// far away with a forged sender, then finds a closed door, so the box amplifies
// nothing; and other devices' answers are not collected in our memory.
func onlyQuestions(c interface {
	SetBPF(program []bpf.RawInstruction) error
}, offset, group uint32,
) error {
	const (
		ipHeader = 0xfff00000 // SKF_NET_OFF: offsets count from here, else from the UDP header
		dnsFlags = 8 + 2      // behind UDP header and DNS ID
		isAnswer = 0x80
	)
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: ipHeader + offset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: group, SkipTrue: 3},
		bpf.LoadAbsolute{Off: dnsFlags, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: isAnswer, SkipTrue: 1},
		bpf.RetConstant{Val: 0xffff},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	if err := c.SetBPF(program); err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	return nil
}

// quiet passes the library's messages on at debug level: what it warns of
// (strange packets of other devices) is no business of ours.
type quiet struct{ log *slog.Logger }

// NewLogger implements logging.LoggerFactory.
func (q quiet) NewLogger(string) logging.LeveledLogger { return q }

func (q quiet) say(m string)           { q.log.Debug("mDNS library says", "message", m) }
func (q quiet) sayf(f string, a []any) { q.say(fmt.Sprintf(f, a...)) }

// The levels of logging.LeveledLogger.

func (q quiet) Trace(string)             {}
func (q quiet) Tracef(string, ...any)    {}
func (q quiet) Debug(string)             {}
func (q quiet) Debugf(string, ...any)    {}
func (q quiet) Info(m string)            { q.say(m) }
func (q quiet) Infof(f string, a ...any) { q.sayf(f, a) }
func (q quiet) Warn(m string)            { q.say(m) }
func (q quiet) Warnf(f string, a ...any) { q.sayf(f, a) }
func (q quiet) Error(m string)           { q.say(m) }
func (q quiet) Errorf(f string, a ...any) {
	q.sayf(f, a)
}
