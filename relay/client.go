package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/croft-cloud/croft/relay/wire"
)

// Relay is a server a box keeps a tunnel to.
type Relay struct {
	Name    string     // required; its host name
	Address string     // where to dial; default Name:443
	Trust   wire.Trust // who it is
}

// ClientConfig is copied by [NewClient], checked once, and never changed
// afterwards.
type ClientConfig struct {
	Relays []Relay // required; all are used at once
	// Certificate is one for the device key, see [wire.SelfSigned]; it is asked
	// for at each connection, so that it can be renewed.
	Certificate func() (tls.Certificate, error) // required
	// Accept serves one user of the relay of that name. It has a goroutine of its
	// own and returns when the user is served: then the stream is closed. ctx ends
	// when Run's does.
	Accept func(ctx context.Context, relay string, user *wire.Stream) // required

	Streams   int                                                                  // users at a time and relay; more are cut at once; a relay can fill 2 × Window for each; default 1,024
	Beat      time.Duration                                                        // a dead path is found after three of these; default 5 s
	Window    uint32                                                               // bytes in flight on a user's connection; default [wire.DefaultWindow]
	Dial      func(ctx context.Context, network, address string) (net.Conn, error) // default: as [net.Dialer] does, within 10 s
	Addresses func() ([]net.Addr, error)                                           // of this machine; default [net.InterfaceAddrs]
	Log       *slog.Logger                                                         // default: discard
}

// Phase is where the tunnel to one relay stands.
type Phase string

// The phases.
const (
	Waiting    Phase = "waiting"    // for the next try, or for Run. Transitions to: Connecting
	Connecting Phase = "connecting" // dials and shakes hands. Transitions to: Up, Waiting
	Up         Phase = "up"         // users can come. Transitions to: Waiting
)

// moves is the law of phases.
var moves = map[Phase][]Phase{
	Waiting:    {Connecting},
	Connecting: {Up, Waiting},
	Up:         {Waiting},
}

// RelayState is how the tunnel to one relay stands.
type RelayState struct {
	Name    string
	Phase   Phase
	Since   time.Time       // when the phase began; zero before Run
	Domain  string          // *.DEVICE.Domain leads here; empty before it was up once
	Hosts   []wire.HeldName // custom hosts as the relay last answered; none unless up
	Ports   []wire.HeldPort // external ports likewise
	Settled bool            // the relay has answered to what is wanted now
	Last    error           // why the last tunnel ended or could not be made; nil if none did
}

// Client keeps a box's tunnels. All methods may be called from any goroutine.
type Client struct {
	cfg ClientConfig
	log *slog.Logger
	wg  sync.WaitGroup // all that Run starts

	mu      sync.Mutex
	want    wire.Want     // guarded by mu; Seq grows with each change
	states  []RelayState  // guarded by mu; index as in cfg.Relays
	changed chan struct{} // guarded by mu; closed at the next change of states
	wanted  chan struct{} // guarded by mu; closed at the next change of want
	moved   chan struct{} // guarded by mu; closed at the next change of the network
}

// NewClient checks cfg and starts nothing.
func NewClient(cfg ClientConfig) (*Client, error) {
	switch {
	case len(cfg.Relays) == 0:
		return nil, errors.New("no relay is named")
	case cfg.Certificate == nil || cfg.Accept == nil:
		return nil, errors.New("device certificate or Accept is missing")
	}
	cfg.Relays = slices.Clone(cfg.Relays)
	cfg.Streams = cmp.Or(cfg.Streams, 1024)
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	if cfg.Addresses == nil {
		cfg.Addresses = net.InterfaceAddrs
	}
	c := &Client{
		cfg: cfg, log: cfg.Log,
		changed: make(chan struct{}), wanted: make(chan struct{}), moved: make(chan struct{}),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	for i, r := range cfg.Relays {
		if err := wire.CheckHost(r.Name); err != nil {
			return nil, fmt.Errorf("relay %d: %w", i+1, err)
		}
		if cfg.Relays[i].Address == "" {
			cfg.Relays[i].Address = net.JoinHostPort(r.Name, strconv.Itoa(443))
		}
		c.states = append(c.states, RelayState{Name: r.Name, Phase: Waiting})
	}
	return c, nil
}

// Set says which custom hosts and external ports the box wants from now on, at
// every relay. Those it had and does not name any more it loses.
func (c *Client) Set(hosts []string, ports []wire.Port) error {
	want := wire.Want{Names: slices.Clone(hosts), Ports: slices.Clone(ports)}
	if err := want.Check(); err != nil {
		return fmt.Errorf("want hosts and ports: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Equal(want.Names, c.want.Names) && slices.Equal(want.Ports, c.want.Ports) && c.want.Seq > 0 {
		return nil
	}
	want.Seq = c.want.Seq + 1
	c.want = want
	for i := range c.states {
		c.states[i].Settled = false
	}
	close(c.wanted)
	c.wanted = make(chan struct{})
	c.changedLocked()
	return nil
}

// States is how the tunnels stand, in the order of the relays, and a channel
// that is closed when that changes.
func (c *Client) States() ([]RelayState, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	states := slices.Clone(c.states)
	for i := range states {
		states[i].Hosts = slices.Clone(states[i].Hosts)
		states[i].Ports = slices.Clone(states[i].Ports)
	}
	return states, c.changed
}

// NetworkChanged makes tunnels that wait try at once, and those that are being
// made begin anew. It is called by the
// client itself when the machine's addresses change; others call it when they
// know better.
func (c *Client) NetworkChanged() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.moved)
	c.moved = make(chan struct{})
}

func (c *Client) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// signals are the channels that are closed at the next change of the network
// and of what is wanted, and what is wanted now.
func (c *Client) signals() (moved, wanted <-chan struct{}, want wire.Want) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moved, c.wanted, c.want
}

// enter moves a tunnel to another phase.
func (c *Client) enter(i int, to Phase, change func(*RelayState)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.states[i]
	if !slices.Contains(moves[s.Phase], to) {
		c.log.Error("tunnel cannot move", "from", s.Phase, "to", to) // a mistake in this file
		return
	}
	s.Phase, s.Since = to, time.Now()
	s.Hosts, s.Ports, s.Settled = nil, nil, to == Up && c.want.Seq == 0
	if change != nil {
		change(s)
	}
	c.changedLocked()
}

// Run keeps the tunnels until ctx ends, and returns nil when all it started has
// ended, every Accept included.
func (c *Client) Run(ctx context.Context) error {
	for i := range c.cfg.Relays {
		c.wg.Go(func() { c.keep(ctx, i) })
	}
	c.wg.Go(func() { c.watchNetwork(ctx) })
	c.wg.Wait()
	return nil
}

// Pauses between tries.
const (
	shortestPause = 250 * time.Millisecond
	longestPause  = 30 * time.Second
	// A relay that said no will not soon say yes, and a device whose tunnel was
	// replaced by another's with the same key must not fight over it.
	refusedPause    = 5 * time.Second
	longestRefused  = 5 * time.Minute
	steadyAfter     = 10 * time.Second // a tunnel this old makes the next try immediate
	networkInterval = time.Second      // how often the machine's addresses are read
)

// backoff is how long to wait before the next try.
type backoff struct {
	tried bool          // the immediate try was used up
	last  time.Duration // the last pause
}

// next is the pause after a tunnel that was up for so long, 0 for never. It is
// none after a steady tunnel and before the first pause; then it is decorrelated
// jitter: boxes that lost their relay at one moment do not all come back at one
// moment.
func (b *backoff) next(upFor time.Duration, refused bool) time.Duration {
	if upFor >= steadyAfter {
		*b = backoff{}
	}
	shortest, longest := shortestPause, longestPause
	switch {
	case refused:
		shortest, longest = refusedPause, longestRefused
	case !b.tried:
		b.tried = true
		return 0
	}
	b.tried = true
	b.last = min(longest, shortest+rand.N(max(3*b.last, 3*shortest)-shortest))
	return b.last
}

// keep keeps the tunnel to one relay.
func (c *Client) keep(ctx context.Context, i int) {
	log := c.log.With("relay", c.cfg.Relays[i].Name)
	var pauses backoff
	for ctx.Err() == nil {
		moved, _, _ := c.signals()
		c.enter(i, Connecting, nil)
		upFor, err := c.once(ctx, i, moved, log)
		c.enter(i, Waiting, func(s *RelayState) { s.Last = err })
		if ctx.Err() != nil {
			return
		}
		bye, ok := errors.AsType[*wire.ByeError](err)
		pause := pauses.next(upFor, ok && bye.Bye.Reason != wire.ByeShutdown)
		log.Info("no tunnel", "error", err, "up_for", upFor, "next_try_in", pause)
		select {
		case <-time.After(pause):
		case <-moved:
			pauses = backoff{}
		case <-ctx.Done():
		}
	}
}

// once makes one tunnel and serves it until it ends. upFor is 0 if it never
// began.
func (c *Client) once(ctx context.Context, i int, moved <-chan struct{}, log *slog.Logger) (upFor time.Duration, err error) {
	t, err := c.connect(ctx, c.cfg.Relays[i], moved)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	c.enter(i, Up, func(s *RelayState) { s.Domain, s.Last = t.Domain(), nil })
	log.Info("tunnel up", "device", t.Device(), "domain", t.Domain())

	ended := make(chan error, 3) // one for each below
	var serving sync.WaitGroup
	serving.Go(func() { ended <- c.takeUsers(ctx, t, i) })
	serving.Go(func() { ended <- c.listen(t, i) })
	serving.Go(func() { ended <- c.ask(t, i, log) })
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if bye, ok := errors.AsType[*wire.ByeError](err); ok && bye.Bye.Reason == wire.ByeReplaced {
		// Its users may finish; the relay ends it after the last.
		c.wg.Go(func() {
			select {
			case <-t.Done():
			case <-ctx.Done():
			}
			t.Close()
			serving.Wait()
		})
		return max(time.Since(began), 1), err
	}
	t.Close()
	serving.Wait()
	return max(time.Since(began), 1), err
}

// connect makes a tunnel, and gives up when the network changes meanwhile: what
// was sent on the old one may never be answered.
func (c *Client) connect(ctx context.Context, r Relay, moved <-chan struct{}) (*wire.Tunnel, error) {
	cert, err := c.cfg.Certificate()
	if err != nil {
		return nil, fmt.Errorf("read device certificate: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		select {
		case <-moved:
			cancel(errMoved)
		case <-ctx.Done():
		}
	})
	conn, err := c.cfg.Dial(ctx, "tcp", r.Address)
	if err != nil {
		return nil, fmt.Errorf("dial relay %s: %w", r.Name, err)
	}
	return wire.Connect(ctx, conn, wire.BoxConfig{Name: r.Name, Trust: r.Trust, Certificate: cert, Beat: c.cfg.Beat, Window: c.cfg.Window})
}

var errMoved = errors.New("network changed")

// takeUsers hands every user to Accept.
func (c *Client) takeUsers(ctx context.Context, t *wire.Tunnel, i int) error {
	var users atomic.Int64
	for {
		stream, err := t.Next()
		if err != nil {
			return err
		}
		if users.Load() >= int64(c.cfg.Streams) {
			if t.Streams() > 2*c.cfg.Streams { // closed streams stay until the relay closes them, too
				return fmt.Errorf("%w: relay brings too many users", wire.ErrProtocol)
			}
			stream.Close()
			continue
		}
		users.Add(1)
		c.wg.Go(func() {
			defer users.Add(-1)
			defer stream.Close()
			if stream.ReadHeader() == nil { // else the user has gone
				c.cfg.Accept(ctx, c.cfg.Relays[i].Name, stream)
			}
		})
	}
}

// listen takes the relay's answers.
func (c *Client) listen(t *wire.Tunnel, i int) error {
	for {
		m, err := t.Receive()
		switch {
		case err != nil:
			return err
		case m.Bye != nil:
			return &wire.ByeError{Bye: *m.Bye}
		case m.Held == nil:
			return fmt.Errorf("%w: a relay may only say what is held, or goodbye", wire.ErrProtocol)
		}
		c.mu.Lock()
		s := &c.states[i]
		s.Hosts, s.Ports, s.Settled = m.Held.Names, m.Held.Ports, m.Held.Seq == c.want.Seq
		c.changedLocked()
		c.mu.Unlock()
	}
}

// askAgain is how often what was not granted is asked for again: another box
// may have let go of a host.
const askAgain = 30 * time.Second

// ask says what is wanted, whenever that changes, and whenever something is
// missing for a while. It also ends a tunnel whose address the machine lost.
func (c *Client) ask(t *wire.Tunnel, i int, log *slog.Logger) error {
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for said := uint64(0); ; {
		moved, wanted, want := c.signals()
		if want.Seq != said {
			if err := t.Send(wire.Message{Want: &want}); err != nil {
				return err
			}
			said = want.Seq
		}
		select {
		case <-wanted:
		case <-again.C:
			if c.missing(i) {
				said = 0
			}
		case <-moved:
			if !c.have(t.LocalAddr()) {
				log.Info("machine lost the tunnel's address", "address", t.LocalAddr().String())
				return errors.New("machine lost the tunnel's address")
			}
		case <-t.Done():
			return t.Err()
		}
	}
}

// missing tells whether a relay refuses something.
func (c *Client) missing(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.states[i].Hosts, func(h wire.HeldName) bool { return h.Problem != "" }) ||
		slices.ContainsFunc(c.states[i].Ports, func(p wire.HeldPort) bool { return p.Problem != "" })
}

// addresses is the machine's own, as a set; nil if they cannot be read.
func (c *Client) addresses() map[netip.Addr]bool {
	list, err := c.cfg.Addresses()
	if err != nil {
		return nil
	}
	set := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			set[prefix.Addr().Unmap().WithZone("")] = true
		}
	}
	return set
}

// have tells whether an address is still one of the machine's; when in doubt it
// is, and the beats decide.
func (c *Client) have(a net.Addr) bool {
	addr := addressOf(a).Addr()
	set := c.addresses()
	return set == nil || addr.IsUnspecified() || set[addr]
}

// watchNetwork sees the machine's addresses change.
func (c *Client) watchNetwork(ctx context.Context) {
	ticker := time.NewTicker(networkInterval)
	defer ticker.Stop()
	for last := c.addresses(); ; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if now := c.addresses(); now != nil && !maps.Equal(now, last) {
			last = now
			c.NetworkChanged()
		}
	}
}
