package ingest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Embedded is the broker in this process.
type Embedded struct {
	Listener net.Listener // required; TCP, without TLS; Run closes it
	TLS      *tls.Config  // required; asks for client certificates: enroll's Gate.TLS
	Judge    Judge        // required

	MaxConnections int     // default 200,000
	ConnectRate    float64 // connections a second; default 100
	ConnectBurst   int     // of them at once; default 200
	PacketRate     float64 // packets a second of one device, which is slowed down; default 20
	PacketBurst    int     // of them at once; default 200

	// JudgeEvery is how often Judge is asked again about a connection that is open,
	// when its device says something: its certificate may be over or revoked, and who
	// would have said so by Disconnect may have missed it. Default 10 minutes.
	JudgeEvery time.Duration
}

// Judge tells the device at the other end of a connection, or why it may not
// connect.
type Judge interface {
	Judge(cs *tls.ConnectionState) (croft.DeviceID, error)
}

// JudgeFunc is a function as a [Judge].
type JudgeFunc func(*tls.ConnectionState) (croft.DeviceID, error)

// Judge calls f.
func (f JudgeFunc) Judge(cs *tls.ConnectionState) (croft.DeviceID, error) { return f(cs) }

const (
	patience     = 2 * time.Second  // how long a new connection may wait for its turn
	greeting     = 10 * time.Second // from there to the end of TLS, and on to the first packet
	maxKeepalive = 20 * 60          // seconds; a box that names none has this
	maxPending   = 64               // packets on their way to one device
	maxHeld      = 16               // jobs that wait until a device subscribes
	overhead     = 1 << 10          // bytes of a packet beside its payload
)

// broker admits connections, and lets mochi speak MQTT on them. Its parts that
// listen, keep sessions and retain messages are not used: it knows a device only
// while that is connected.
type broker struct {
	cfg      Embedded
	log      *slog.Logger
	notice   func(Notice)
	pipeline *pipeline
	counts   *counters
	server   *mqtt.Server
	admit    *rate.Limiter

	mu       sync.Mutex
	open     int                         // connections; guarded by mu
	sessions map[croft.DeviceID]*session // guarded by mu
}

// session is one connection of a device whose certificate counts.
type session struct {
	device croft.DeviceID
	remote string
	from   netip.Addr // of remote
	judged time.Time  // of the goroutine that reads the connection
	conn   *deviceConn
	pace   *rate.Limiter
	gone   chan struct{} // closed when the connection is to end
	over   chan struct{} // closed when nothing of it is left

	will []byte // payload of the State to tell when it breaks; set before the session begins

	mu      sync.Mutex
	quiet   bool                      // do not tell the will; guarded by mu
	ended   bool                      // gone is closed; guarded by mu
	listens map[fleetapi.Subject]bool // subjects it has subscribed to; guarded by mu
	desired []byte                    // the newest; guarded by mu
	jobs    [][]byte                  // published before it listened; guarded by mu
}

// deviceConn is a connection that knows its session, for mochi hands out
// connections only.
type deviceConn struct {
	*tls.Conn
	session *session
}

// Close closes without a word: TLS would wait seconds for a peer that does not
// read.
func (c *deviceConn) Close() error { return c.NetConn().Close() }

func newBroker(e Embedded, cfg Config, p *pipeline) (*broker, error) {
	switch {
	case e.Listener == nil:
		return nil, errors.New("listener of the broker is missing")
	case e.TLS == nil || e.Judge == nil:
		return nil, errors.New("TLS configuration or judge of the broker is missing")
	case e.MaxConnections < 0 || e.ConnectRate < 0 || e.ConnectBurst < 0 || e.PacketRate < 0 || e.PacketBurst < 0 || e.JudgeEvery < 0:
		return nil, errors.New("bounds of the broker are negative")
	}
	e.MaxConnections = cmp.Or(e.MaxConnections, 200_000)
	e.ConnectRate = cmp.Or(e.ConnectRate, 100)
	e.ConnectBurst = cmp.Or(e.ConnectBurst, 200)
	e.PacketRate = cmp.Or(e.PacketRate, 20)
	e.PacketBurst = cmp.Or(e.PacketBurst, 200)
	e.JudgeEvery = cmp.Or(e.JudgeEvery, 10*time.Minute)
	b := &broker{
		cfg: e, log: cfg.Log, notice: cfg.Notice, pipeline: p, counts: p.counts,
		admit:    rate.NewLimiter(rate.Limit(e.ConnectRate), e.ConnectBurst),
		sessions: map[croft.DeviceID]*session{},
	}
	b.server = mqtt.New(&mqtt.Options{
		Capabilities: &mqtt.Capabilities{
			MaximumClients:             int64(e.MaxConnections) + 1,
			MaximumClientWritesPending: maxPending,
			MaximumPacketSize:          maxPacket(),
			MaximumInflight:            maxPending,
			ReceiveMaximum:             maxPending,
			MinimumProtocolVersion:     4,
			MaximumQos:                 1,
			RetainAvailable:            1, // boxes ask for it; nothing gets that far
			WildcardSubAvailable:       1,
		},
		ClientNetReadBufferSize:  512,
		ClientNetWriteBufferSize: 512,
		InlineClient:             true,
		Logger:                   slog.New(slog.DiscardHandler), // it logs what devices say; here they are counted
	})
	if err := b.server.AddHook(&hook{broker: b}, nil); err != nil {
		return nil, fmt.Errorf("set up the broker: %w", err)
	}
	return b, nil
}

// maxPacket is the size of the largest packet that can make sense.
func maxPacket() uint32 {
	most := 0
	for _, s := range fleetapi.Subjects() {
		most = max(most, s.MaxPayload())
	}
	return uint32(most + overhead)
}

func (b *broker) run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	stop := context.AfterFunc(ctx, func() {
		_ = b.cfg.Listener.Close() // Accept tells
		for _, s := range b.everyone() {
			s.end(true)
		}
	})
	defer stop()
	pause := backoff{least: 10 * time.Millisecond, most: time.Second}
	for {
		conn, err := b.cfg.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept connections of boxes: %w", err)
		case err != nil: // no file descriptor left, or the peer went away
			b.log.Warn("connection cannot be accepted", "error", err)
			pause.sleep(ctx)
			continue
		}
		turn, ok := b.enter()
		if !ok {
			b.counts.refuse(ReasonCrowd)
			_ = conn.Close() // nothing was said on it
			continue
		}
		all.Go(func() {
			defer b.leave()
			defer conn.Close()
			if s := b.meet(ctx, conn, turn); s != nil {
				b.serve(ctx, s)
			}
		})
	}
}

// enter decides about a new connection: when its turn is, if it has one.
func (b *broker) enter() (turn time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open >= b.cfg.MaxConnections {
		return 0, false
	}
	r := b.admit.Reserve()
	if turn = r.Delay(); turn > patience {
		r.Cancel()
		return 0, false
	}
	b.open++
	return turn, true
}

func (b *broker) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
}

func (b *broker) everyone() []*session {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]*session, 0, len(b.sessions))
	for _, s := range b.sessions {
		all = append(all, s)
	}
	return all
}

// meet waits for a connection's turn and finds out whose it is; nil if it is
// nobody's.
func (b *broker) meet(ctx context.Context, conn net.Conn, turn time.Duration) *session {
	if turn > 0 {
		select {
		case <-time.After(turn):
		case <-ctx.Done():
			return nil
		}
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAlive(false) // MQTT has its own, and this one costs a packet each 15 s
	}
	_ = conn.SetDeadline(time.Now().Add(greeting)) // a connection that takes none fails at the next read
	s, err := b.greet(ctx, conn)
	if err != nil {
		b.counts.refuse(ReasonStranger)
		b.log.Debug("connection refused", "remote", conn.RemoteAddr().String(), "error", err)
		return nil
	}
	return s
}

// serve has mochi speak with a device until the connection ends.
func (b *broker) serve(ctx context.Context, s *session) {
	b.claim(ctx, s)
	defer b.release(s)
	if ctx.Err() != nil {
		return
	}
	_ = s.conn.SetDeadline(time.Now().Add(greeting)) // until the first packet says how long it may be silent
	err := b.server.EstablishConnection("device", s.conn)
	code, broken := errors.AsType[packets.Code](err)
	switch {
	case !broken || errors.Is(code, packets.ErrRejectPacket) || errors.Is(code, packets.ErrBadUsernameOrPassword):
		// left, or broke off, or was counted where it was refused
	case errors.Is(code, packets.ErrPacketTooLarge):
		b.counts.refuse(fleetapi.ReasonOversized)
	default:
		b.counts.refuse(fleetapi.ReasonMalformed)
	}
}

// greet does the handshake and finds out whose connection it is.
func (b *broker) greet(ctx context.Context, conn net.Conn) (*session, error) {
	secure := tls.Server(conn, b.cfg.TLS)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	device, err := b.judge(secure)
	if err != nil {
		return nil, err
	}
	if _, err := croft.ParseDeviceID(string(device)); err != nil {
		return nil, err
	}
	remote := conn.RemoteAddr().String()
	at, _ := netip.ParseAddrPort(remote) // not valid: it is no address of IP
	s := &session{
		device: device,
		remote: remote,
		from:   at.Addr(),
		judged: time.Now(),
		pace:   rate.NewLimiter(rate.Limit(b.cfg.PacketRate), b.cfg.PacketBurst),
		gone:   make(chan struct{}),
		over:   make(chan struct{}),
	}
	s.conn = &deviceConn{Conn: secure, session: s}
	return s, nil
}

func (b *broker) judge(conn *tls.Conn) (croft.DeviceID, error) {
	cs := conn.ConnectionState()
	return b.cfg.Judge.Judge(&cs)
}

// judgeAgain reports whether the connection may go on.
func (b *broker) judgeAgain(s *session) bool {
	if time.Since(s.judged) < b.cfg.JudgeEvery {
		return true
	}
	s.judged = time.Now()
	device, err := b.judge(s.conn.Conn)
	return err == nil && device == s.device
}

// claim makes s the device's session. It ends the one before and waits until
// nothing of that is left, so mochi never sees two of one name, and the old will
// comes before the new birth.
func (b *broker) claim(ctx context.Context, s *session) {
	for {
		b.mu.Lock()
		old := b.sessions[s.device]
		if old == nil {
			b.sessions[s.device] = s
			b.mu.Unlock()
			if ctx.Err() != nil { // those that run ends may have been asked for before
				s.end(true)
			}
			return
		}
		b.mu.Unlock()
		if old.end(false) {
			b.counts.takenOver.Add(1)
			b.notice(Notice{Device: s.device, Kind: NoticeTakenOver, At: time.Now(), Remote: old.remote, Other: s.remote})
		}
		<-old.over
	}
}

func (b *broker) release(s *session) {
	b.mu.Lock()
	delete(b.sessions, s.device)
	b.mu.Unlock()
	close(s.over)
}

func (b *broker) session(device croft.DeviceID) *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[device]
}

func (b *broker) end(device croft.DeviceID) bool {
	s := b.session(device)
	return s != nil && s.end(false)
}

func (b *broker) count(stats *Stats) {
	b.mu.Lock()
	defer b.mu.Unlock()
	stats.Connected = len(b.sessions)
}

func (b *broker) publish(_ context.Context, device croft.DeviceID, subject fleetapi.Subject, raw []byte) error {
	s := b.session(device)
	if s == nil || s.hold(subject, raw) {
		return nil
	}
	return b.tell(s, subject, raw)
}

// tell sends a message to a device that listens. A device that leaves too many
// unacknowledged is disconnected: it says Hello again, and is told everything.
func (b *broker) tell(s *session, subject fleetapi.Subject, raw []byte) error {
	if cl, ok := b.server.Clients.Get(string(s.device)); ok && cl.State.Inflight.Len() >= maxPending {
		s.end(false)
		return nil
	}
	return b.server.Publish(subject.Topic(s.device), raw, false, subject.QoS())
}

// end closes the connection and reports whether it was open until now.
func (s *session) end(quietly bool) bool {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return false
	}
	s.ended, s.quiet = true, quietly
	s.mu.Unlock()
	close(s.gone)
	_ = s.conn.Close() // it is over either way
	return true
}

// hold keeps what the device must still be told when it subscribes, and reports
// whether that is all there is to do now.
func (s *session) hold(subject fleetapi.Subject, raw []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if subject.Retained() {
		s.desired = raw
	} else if !s.listens[subject] && len(s.jobs) < maxHeld {
		s.jobs = append(s.jobs, raw)
	}
	return !s.listens[subject]
}

// listen notes a subscription and returns what waited for it.
func (s *session) listen(subject fleetapi.Subject) (waited [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listens == nil {
		s.listens = map[fleetapi.Subject]bool{}
	}
	s.listens[subject] = true
	if !subject.Retained() {
		waited, s.jobs = s.jobs, nil
	} else if s.desired != nil {
		waited = [][]byte{s.desired}
	}
	return waited
}

// hook is what mochi asks and tells.
type hook struct {
	mqtt.HookBase
	broker *broker
}

// ID implements mqtt.Hook.
func (h *hook) ID() string { return "ingest" }

// Provides implements mqtt.Hook.
func (h *hook) Provides(what byte) bool {
	switch what {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnPacketRead,
		mqtt.OnPublish, mqtt.OnSubscribed, mqtt.OnPublishDropped, mqtt.OnDisconnect:
		return true
	}
	return false
}

// sessionOf is nil for the fleet itself.
func sessionOf(cl *mqtt.Client) *session {
	if c, ok := cl.Net.Conn.(*deviceConn); ok {
		return c.session
	}
	return nil
}

// OnConnect sets what a device cannot choose: it has no session beyond its
// connection, is not silent for too long, and its will is told by us.
func (h *hook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	cl.Properties.Clean = true
	cl.Properties.Will = mqtt.Will{}
	if k := cl.State.Keepalive; k == 0 || k > maxKeepalive {
		cl.State.Keepalive = maxKeepalive
	}
	return nil
}

// OnConnectAuthenticate checks that the device calls itself by its name and
// leaves no will but its own.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	s := sessionOf(cl)
	reason := fleetapi.Reason("")
	switch {
	case pk.ProtocolVersion != 4:
		reason = fleetapi.ReasonVersion
	case cl.ID != string(s.device):
		reason = fleetapi.ReasonForeign
		h.broker.notice(Notice{Device: s.device, Kind: NoticeIdentity, At: time.Now(), Remote: s.remote})
	case pk.Connect.WillFlag:
		reason = s.bequeath(pk.Connect.WillTopic, pk.Connect.WillPayload)
	}
	if reason != "" {
		h.broker.counts.refuse(reason)
		return false
	}
	return true
}

// bequeath keeps a will that may be told, and says why it may not.
func (s *session) bequeath(topic string, raw []byte) fleetapi.Reason {
	if topic != fleetapi.SubjectState.Topic(s.device) {
		return fleetapi.ReasonForeign
	}
	state, err := fleetapi.Parse[fleetapi.State](raw)
	if err != nil {
		return fleetapi.ReasonOf(err)
	}
	if state.Presence != fleetapi.Lost {
		return fleetapi.ReasonForeign
	}
	s.will = raw
	return ""
}

// OnDisconnect tells the will of a connection that broke.
func (h *hook) OnDisconnect(cl *mqtt.Client, err error, _ bool) {
	s := sessionOf(cl)
	if s == nil || err == nil || s.will == nil || s.isQuiet() {
		return
	}
	h.broker.pipeline.insist(message{device: s.device, subject: fleetapi.SubjectState, raw: s.will, qos: 1})
}

func (s *session) isQuiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.quiet
}

// OnACLCheck decides about subscriptions. What is published, OnPacketRead has
// looked at before.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	s := sessionOf(cl)
	if s == nil || write {
		return true
	}
	if err := fleetapi.MaySubscribe(s.device, topic); err != nil {
		h.broker.counts.refuse(fleetapi.ReasonOf(err))
		return false
	}
	return true
}

// OnPacketRead slows a device down that says too much, and ends the connection
// of one that speaks for others, or may not speak any more.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	s := sessionOf(cl)
	if s == nil {
		return pk, nil
	}
	if wait := s.pace.Reserve().Delay(); wait > 0 {
		select {
		case <-time.After(wait):
		case <-s.gone:
		}
	}
	if !h.broker.judgeAgain(s) {
		h.broker.counts.refuse(ReasonStranger)
		return pk, packets.ErrRejectPacket
	}
	if pk.FixedHeader.Type != packets.Publish {
		return pk, nil
	}
	switch {
	case pk.FixedHeader.Qos > 1:
		h.broker.counts.refuse(fleetapi.ReasonMalformed)
	case !s.owns(pk.TopicName):
		h.broker.counts.refuse(fleetapi.ReasonForeign)
	default:
		return pk, nil
	}
	return pk, packets.ErrRejectPacket
}

// owns reports whether a topic is one that boxes publish to, in this version or a
// later one, and the device's own.
func (s *session) owns(topic string) bool {
	if fleetapi.MayPublish(s.device, topic) == nil {
		return true
	}
	own := strings.TrimSuffix(fleetapi.SubjectEvent.Topic(s.device), "event")
	return strings.HasPrefix(topic, own) && mqtt.IsValidFilter(topic, true)
}

// OnPublish takes a message out of mochi's hands. Nobody but the fleet may have
// it, and it is acknowledged only when it is stored.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	s := sessionOf(cl)
	if s == nil {
		return pk, nil
	}
	ack := func() {
		// A connection that ended meanwhile has the message sent again.
		_ = cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID})
	}
	if pk.FixedHeader.Qos == 0 {
		ack = nil
	}
	m := message{device: s.device, raw: pk.Payload, from: s.from, qos: pk.FixedHeader.Qos, ack: ack}
	_, subject, err := fleetapi.ParseTopic(pk.TopicName)
	if err != nil { // a subject that only a newer box knows
		h.broker.counts.refuse(fleetapi.ReasonOf(err))
		m.done()
		return pk, packets.ErrRejectPacket
	}
	m.subject = subject
	h.broker.pipeline.accept(s.gone, m)
	return pk, packets.ErrRejectPacket
}

// OnSubscribed sends what waited for the subscription.
func (h *hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, codes []byte) {
	s := sessionOf(cl)
	if s == nil {
		return
	}
	for i, sub := range pk.Filters {
		if codes[i] > 1 {
			continue
		}
		for _, subject := range []fleetapi.Subject{fleetapi.SubjectDesired, fleetapi.SubjectJob} {
			if !covers(sub.Filter, subject.Topic(s.device)) {
				continue
			}
			for _, raw := range s.listen(subject) {
				if err := h.broker.tell(s, subject, raw); err != nil {
					s.end(false)
				}
			}
		}
	}
}

// covers reports whether a filter that MaySubscribe allows matches a topic of the
// same device.
func covers(filter, topic string) bool {
	if filter == topic {
		return true
	}
	return strings.HasSuffix(filter, "/dn/+") || strings.HasSuffix(filter, "/dn/#")
}

// OnPublishDropped ends the connection of a device that does not take what it is
// told: it will be told again after its next Hello.
func (h *hook) OnPublishDropped(cl *mqtt.Client, _ packets.Packet) {
	if s := sessionOf(cl); s != nil {
		s.end(false)
	}
}
