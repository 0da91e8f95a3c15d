package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/relay/wire"
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Name        string    // required; the relay's own host name, which boxes dial
	Domain      string    // required; boxes are DEVICE.Domain; may be Name
	Address     string    // for TLS; default ":443"
	HTTPAddress string    // for plain HTTP; empty: none
	PortHost    string    // address on which external ports open; default: all
	Ports       PortRange // external ports; zero: none
	Limits      Limits
	Store       Store        // of external ports; default: none, see [Store]
	Log         *slog.Logger // default: discard

	// Certificate is the relay's own, for Name.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error) // required
	// Admit says whether a device may have a tunnel; its error is told to the
	// box. The device holds the key of that name; cert is whatever it showed.
	Admit func(ctx context.Context, device croft.DeviceID, cert *x509.Certificate) error // required
	// AllowHost says whether a device may have a custom host, by whatever proof;
	// it is asked for one host of a box after the other, and ctx ends with the
	// box's tunnel. Default: none.
	AllowHost func(ctx context.Context, device croft.DeviceID, host string) error
	// Listen opens the two listeners; default: as [net.ListenConfig] does.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)
}

// Server is the relay. All methods may be called from any goroutine.
type Server struct {
	cfg Config
	log *slog.Logger

	mu     sync.Mutex
	office *office // guarded by mu; nil while Run does not run
}

// New checks cfg and starts nothing.
func New(cfg Config) (*Server, error) {
	for what, host := range map[string]string{"name": cfg.Name, "domain": cfg.Domain} {
		if err := wire.CheckHost(host); err != nil {
			return nil, fmt.Errorf("relay's %s: %w", what, err)
		}
	}
	if cfg.Certificate == nil || cfg.Admit == nil {
		return nil, errors.New("relay's certificate or admission is missing")
	}
	if cfg.Ports != (PortRange{}) && cfg.Ports.size() == 0 {
		return nil, fmt.Errorf("external ports %d to %d: want a first one above 0 and none before it", cfg.Ports.First, cfg.Ports.Last)
	}
	cfg.Address = cmp.Or(cfg.Address, ":443")
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Listen == nil {
		cfg.Listen = new(net.ListenConfig).Listen
	}
	if cfg.AllowHost == nil {
		cfg.AllowHost = func(context.Context, croft.DeviceID, string) error { return errors.New("custom hosts are not offered") }
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, log: log}, nil
}

// DeviceState is one box as the relay sees it.
type DeviceState struct {
	Device  croft.DeviceID
	Up      bool           // it has a tunnel
	Since   time.Time      // when that began, or ended
	Address netip.AddrPort // where the tunnel comes from; zero if there is none
	Hosts   []string       // custom hosts, sorted
	Users   int            // streams on its newest tunnel
	In      int64          // bytes from users since it came, kinds sni, http, tcp and udp
	Out     int64          // bytes to users
}

// Devices lists the boxes that have a tunnel or lost it just now, by name.
func (s *Server) Devices() []DeviceState {
	s.mu.Lock()
	o := s.office
	s.mu.Unlock()
	if o == nil {
		return nil
	}
	return o.states()
}

// Drop ends a device's tunnel, for example because it is not admitted any more,
// and one that is being made. Its users are cut. Whether it may come back is up
// to Admit. It takes a second at most.
func (s *Server) Drop(id croft.DeviceID, why string) {
	s.mu.Lock()
	o := s.office
	s.mu.Unlock()
	if o == nil {
		return
	}
	o.mu.Lock()
	o.dropped[id] = time.Now()
	var t *session
	if d := o.devices[id]; d != nil {
		t = d.session
	}
	o.mu.Unlock()
	if t != nil {
		t.Farewell(wire.ByeRefused, why)
	}
}

// office is one run of a server.
type office struct {
	cfg   Config
	log   *slog.Logger
	began time.Time
	gate  *gate
	rate  *rate.Limiter // of tunnels' handshakes
	desk  chan errand   // to the clerk
	wg    sync.WaitGroup

	mu      sync.Mutex
	devices map[croft.DeviceID]*device   // guarded by mu
	hosts   map[string]croft.DeviceID    // guarded by mu; custom hosts
	changed chan struct{}                // guarded by mu; closed when a box comes or its hosts change
	dropped map[croft.DeviceID]time.Time // guarded by mu; lately, by Drop
}

// device is a box that has a tunnel, or lost it less than Linger ago.
type device struct {
	id       croft.DeviceID
	asks     *rate.Limiter   // of wants
	session  *session        // guarded by office.mu; nil if there is no tunnel
	draining []*session      // guarded by office.mu; replaced ones, the oldest first
	since    time.Time       // guarded by office.mu; when session last changed
	hosts    map[string]bool // guarded by office.mu
	in, out  atomic.Int64    // bytes from and to users
}

// session is one tunnel of a box.
type session struct {
	*wire.Tunnel
	device   *device
	replaced chan struct{} // closed when a newer tunnel is there
	expelled chan struct{} // closed when too many newer ones are
}

// Run serves until ctx ends, and returns when all it started has ended. An
// error means that it could not listen.
func (s *Server) Run(ctx context.Context) error {
	o := &office{
		cfg: s.cfg, log: s.log, began: time.Now(),
		gate:    newGate(s.cfg.Limits),
		rate:    rate.NewLimiter(rate.Limit(s.cfg.Limits.TunnelRate), int(s.cfg.Limits.TunnelRate)+1),
		desk:    make(chan errand),
		devices: make(map[croft.DeviceID]*device),
		hosts:   make(map[string]croft.DeviceID),
		changed: make(chan struct{}),
		dropped: make(map[croft.DeviceID]time.Time),
	}
	var known []Allocation
	if s.cfg.Store != nil {
		var err error
		if known, err = s.cfg.Store.Load(); err != nil {
			s.log.Error("external ports not loaded; they are given anew", "error", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer o.wg.Wait()
	defer cancel()
	type entrance struct {
		address string
		serve   func(context.Context, halfCloser)
	}
	for _, e := range []entrance{{s.cfg.Address, o.serveTLS}, {s.cfg.HTTPAddress, o.serveHTTP}} {
		if e.address == "" {
			continue
		}
		listener, err := s.cfg.Listen(ctx, "tcp", e.address)
		if err != nil {
			return fmt.Errorf("listen for the relay's users: %w", err)
		}
		o.wg.Go(func() { o.accept(ctx, listener, e.serve) })
		s.log.Info("relay listens", "address", listener.Addr().String())
	}
	o.wg.Go(func() { newClerk(o, known).work(ctx) })
	s.mu.Lock()
	s.office = o
	s.mu.Unlock()
	<-ctx.Done()
	o.wg.Wait()
	s.mu.Lock()
	s.office = nil
	s.mu.Unlock()
	return nil
}

// accept hands each connection that the gate lets in to serve, until ctx ends
// or the listener is closed.
func (o *office) accept(ctx context.Context, listener net.Listener, serve func(context.Context, halfCloser)) {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	defer listener.Close()
	for pause := time.Duration(0); ; {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of files or memory: others must end before this gets better.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			o.log.Warn("connection not accepted", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		user, ok := conn.(halfCloser)
		if !ok {
			o.log.Error("listener gives connections without half-close", "address", listener.Addr().String())
			conn.Close()
			return
		}
		leave, err := o.gate.enter(addressOf(conn.RemoteAddr()).Addr(), connection)
		if err != nil {
			o.log.Debug("connection refused", "client", conn.RemoteAddr().String(), "error", err)
			cut(conn)
			continue
		}
		o.wg.Go(func() {
			defer leave()
			defer conn.Close()
			serve(ctx, user)
		})
	}
}

// addressOf is a connection's address in the form that goes over the wire.
func addressOf(a net.Addr) netip.AddrPort {
	ap, ok := a.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), 0) // a listener of tests; counted as one client
	}
	return plain(ap.AddrPort())
}

func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// serveTLS takes a connection to port 443: a user's, or a box's tunnel.
func (o *office) serveTLS(ctx context.Context, conn halfCloser) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(o.cfg.Limits.Hello))
	h, first, err := peekHello(conn)
	if !stop() || err != nil {
		o.log.Debug("connection without a hello", "client", conn.RemoteAddr().String(), "error", err)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	if h.tunnel && (h.host == o.cfg.Name || h.host == "") {
		o.serveTunnel(ctx, &prefixed{Conn: conn, first: first})
		return
	}
	s, known := o.find(ctx, h.host)
	switch {
	case s != nil:
		o.pass(ctx, conn, s, wire.Header{Kind: wire.KindSNI, Host: h.host, Client: addressOf(conn.RemoteAddr())}, first)
	case known:
		refuseTLS(conn, alertInternalError)
	default:
		refuseTLS(conn, alertUnrecognizedName)
	}
}

// serveHTTP takes a connection to port 80.
func (o *office) serveHTTP(ctx context.Context, conn halfCloser) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(o.cfg.Limits.Hello))
	user, err := readRequests(conn)
	if !stop() || err != nil {
		o.log.Debug("connection without a request", "client", conn.RemoteAddr().String(), "error", err)
		refuseHTTP(conn, http.StatusBadRequest)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	s, known := o.find(ctx, user.host)
	switch {
	case s != nil:
		o.pass(ctx, user, s, wire.Header{Kind: wire.KindHTTP, Host: user.host, Client: addressOf(conn.RemoteAddr())}, user.first())
	case known:
		refuseHTTP(conn, http.StatusServiceUnavailable)
	default:
		refuseHTTP(conn, http.StatusNotFound)
	}
}

// servePort takes a connection to a device's external port.
func (o *office) servePort(ctx context.Context, conn halfCloser, id croft.DeviceID, port uint16) {
	s, _ := o.wait(ctx, func() (croft.DeviceID, bool) { return id, true })
	if s == nil {
		cut(conn)
		return
	}
	o.pass(ctx, conn, s, wire.Header{Kind: wire.KindTCP, Port: port, Client: addressOf(conn.RemoteAddr())}, nil)
}

// pass brings a user to a box and stays until he is gone.
func (o *office) pass(ctx context.Context, conn halfCloser, s *session, h wire.Header, first []byte) {
	stream, err := s.Open(h, first, o.cfg.Limits.PerDevice)
	if err != nil {
		o.log.Debug("user not passed to box", "device", s.Device(), "error", err)
		cut(conn)
		return
	}
	s.device.in.Add(int64(len(first)))
	splice(ctx, conn, stream, o.cfg.Limits.Idle, &s.device.in, &s.device.out)
}

// find waits for the box a host name leads to. It tells whether the name is
// known even when the box is away.
func (o *office) find(ctx context.Context, host string) (*session, bool) {
	return o.wait(ctx, func() (croft.DeviceID, bool) {
		if id, ok := o.hosts[host]; ok {
			return id, true
		}
		if rest, ok := strings.CutPrefix(host, "mtls."); ok {
			if id, ok := o.hosts[rest]; ok {
				return id, true
			}
		}
		return deviceOf(host, o.cfg.Domain)
	})
}

// wait waits for a box that was here a moment ago, or that may be on its way
// because the relay has just begun. lookupLocked runs with mu held.
func (o *office) wait(ctx context.Context, lookupLocked func() (croft.DeviceID, bool)) (*session, bool) {
	var deadline <-chan time.Time
	for {
		o.mu.Lock()
		var d *device
		id, named := lookupLocked()
		if named {
			d = o.devices[id]
		}
		var s *session
		if d != nil {
			s = d.session
		}
		changed := o.changed
		o.mu.Unlock()
		if s != nil && s.Err() == nil {
			return s, true
		}
		if d == nil && time.Since(o.began) > o.cfg.Limits.Patience {
			return nil, false
		}
		if deadline == nil {
			deadline = time.After(o.cfg.Limits.Patience)
		}
		select {
		case <-changed:
			// After a relay's restart thousands of users wait for thousands of
			// boxes: who looked at each of these would see little else.
			select {
			case <-time.After(lookAgain):
			case <-ctx.Done():
			}
		case <-deadline:
			return nil, d != nil
		case <-ctx.Done():
			return nil, d != nil
		}
	}
}

// lookAgain is how often a user who waits looks for his box.
const lookAgain = 10 * time.Millisecond

func (o *office) changedLocked() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// serveTunnel is the life of one tunnel.
func (o *office) serveTunnel(ctx context.Context, conn net.Conn) {
	begun := time.Now()
	inLine, cancel := context.WithTimeout(ctx, o.cfg.Limits.Hello)
	err := o.rate.Wait(inLine)
	cancel()
	if err != nil {
		o.log.Warn("tunnel refused: too many handshakes", "client", conn.RemoteAddr().String())
		return
	}
	t, err := wire.Accept(ctx, conn, wire.RelayConfig{
		Certificate: o.cfg.Certificate, Admit: o.cfg.Admit, Domain: o.cfg.Domain,
		MinBeat: o.cfg.Limits.MinBeat, Window: o.cfg.Limits.Window,
	})
	if err != nil {
		o.gate.charge(addressOf(conn.RemoteAddr()).Addr(), failedTunnel)
		o.log.Info("tunnel refused", "client", conn.RemoteAddr().String(), "error", err)
		return
	}
	defer t.Close()
	s := o.attach(t, begun)
	if s == nil {
		t.Farewell(wire.ByeRefused, "device was dropped meanwhile")
		return
	}
	log := o.log.With("device", t.Device())
	log.Info("tunnel up", "client", t.RemoteAddr().String())
	talk, cancel := context.WithCancel(ctx)
	var mind sync.WaitGroup
	mind.Go(func() {
		defer cancel() // what is asked on the box's behalf ends with its tunnel
		o.mind(ctx, s)
	})
	err = o.converse(talk, s)
	t.Close()
	mind.Wait()
	o.detach(s)
	log.Info("tunnel down", "reason", err)
}

// converse answers wants until the tunnel ends.
func (o *office) converse(ctx context.Context, s *session) error {
	for {
		m, err := s.Receive()
		if err != nil {
			return err
		}
		if m.Want == nil {
			return fmt.Errorf("%w: a box may only want", wire.ErrProtocol)
		}
		if err := s.device.asks.Wait(ctx); err != nil {
			return err
		}
		held := wire.Held{Seq: m.Want.Seq, Names: o.holdHosts(ctx, s, m.Want.Names)}
		answer := make(chan []wire.HeldPort, 1)
		select {
		case o.desk <- errand{s, m.Want.Ports, answer}:
			held.Ports = <-answer
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := s.Send(wire.Message{Held: &held}); err != nil {
			return err
		}
	}
}

// mind ends a tunnel that has to end.
func (o *office) mind(ctx context.Context, s *session) {
	select {
	case <-ctx.Done():
		s.Farewell(wire.ByeShutdown, "")
		return
	case <-s.Done():
		return
	case <-s.replaced:
	}
	var tell sync.WaitGroup
	defer tell.Wait()
	defer s.Close()
	tell.Go(func() { _ = s.Bye(wire.ByeReplaced, "") }) // a half dead tunnel may not carry it
	drained := time.NewTicker(250 * time.Millisecond)
	defer drained.Stop()
	late := time.After(o.cfg.Limits.Drain)
	for s.Streams() > 0 {
		select {
		case <-drained.C:
			continue
		case <-s.Done():
		case <-s.expelled:
		case <-late:
		case <-ctx.Done():
		}
		return
	}
}

// maxDraining is how many tunnels of one box may drain at a time; else a box
// that comes back again and again had any number of users.
const maxDraining = 2

// attach makes a tunnel its device's newest, or returns nil if the device was
// dropped since the tunnel begun.
func (o *office) attach(t *wire.Tunnel, begun time.Time) *session {
	o.mu.Lock()
	defer o.mu.Unlock()
	if at, ok := o.dropped[t.Device()]; ok && !at.Before(begun) {
		return nil
	}
	d := o.devices[t.Device()]
	if d == nil {
		d = &device{id: t.Device(), hosts: make(map[string]bool), asks: rate.NewLimiter(asksPerSecond, asksBurst)}
		o.devices[d.id] = d
	}
	if d.session != nil {
		close(d.session.replaced)
		d.draining = append(d.draining, d.session)
	}
	if len(d.draining) > maxDraining {
		close(d.draining[0].expelled)
		d.draining = slices.Delete(d.draining, 0, 1)
	}
	d.session = &session{Tunnel: t, device: d, replaced: make(chan struct{}), expelled: make(chan struct{})}
	d.since = time.Now()
	o.changedLocked()
	return d.session
}

// How often a box may change its mind. Leases come and go by the minute.
const (
	asksPerSecond = 2
	asksBurst     = 20
)

// detach is the end of a tunnel. Hosts and ports stay for a while.
func (o *office) detach(s *session) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.device.session == s {
		s.device.session = nil
		s.device.since = time.Now()
	}
	s.device.draining = slices.DeleteFunc(s.device.draining, func(x *session) bool { return x == s })
}

// holdHosts gives a box the custom hosts it may have, and no others.
func (o *office) holdHosts(ctx context.Context, s *session, names []string) []wire.HeldName {
	held := make([]wire.HeldName, len(names))
	for i, name := range names {
		held[i].Name = name
		if name == o.cfg.Name || name == o.cfg.Domain || strings.HasSuffix(name, "."+o.cfg.Domain) {
			held[i].Problem = wire.ProblemRefused // these lead where they lead
			continue
		}
		if err := o.cfg.AllowHost(ctx, s.Device(), name); err != nil {
			o.log.Info("custom host refused", "device", s.Device(), "host", name, "error", err)
			held[i].Problem = wire.ProblemRefused
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	d := s.device
	if d.session != s { // a newer tunnel decides
		for i := range held {
			held[i].Problem = wire.ProblemFailed
		}
		return held
	}
	want := make(map[string]bool, len(names))
	for i := range held {
		if held[i].Problem != "" {
			continue
		}
		if holder, ok := o.hosts[held[i].Name]; ok && holder != d.id {
			held[i].Problem = wire.ProblemTaken
			continue
		}
		want[held[i].Name] = true
		o.hosts[held[i].Name] = d.id
	}
	for host := range d.hosts {
		if !want[host] {
			delete(o.hosts, host)
		}
	}
	d.hosts = want
	o.changedLocked()
	return held
}

// current tells whether s is its device's newest tunnel.
func (o *office) current(s *session) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return s.device.session == s
}

// forget drops the devices that have been gone for too long, and tells which
// are left.
func (o *office) forget(now time.Time) (left map[croft.DeviceID]bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.dropped, func(_ croft.DeviceID, at time.Time) bool { return now.Sub(at) > time.Minute }) // no handshake takes so long
	left = make(map[croft.DeviceID]bool, len(o.devices))
	for id, d := range o.devices {
		if d.session != nil || now.Sub(d.since) < o.cfg.Limits.Linger {
			left[id] = true
			continue
		}
		for host := range d.hosts {
			delete(o.hosts, host)
		}
		delete(o.devices, id)
	}
	return left
}

func (o *office) states() []DeviceState {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := make([]DeviceState, 0, len(o.devices))
	for _, d := range o.devices {
		state := DeviceState{Device: d.id, Since: d.since, In: d.in.Load(), Out: d.out.Load()}
		for host := range d.hosts {
			state.Hosts = append(state.Hosts, host)
		}
		slices.Sort(state.Hosts)
		if s := d.session; s != nil {
			state.Up, state.Users, state.Address = true, s.Streams(), addressOf(s.RemoteAddr())
		}
		list = append(list, state)
	}
	slices.SortFunc(list, func(a, b DeviceState) int { return strings.Compare(string(a.Device), string(b.Device)) })
	return list
}
