package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/croft-cloud/croft/agent/uplink/spool"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

const (
	keepAlive    = 30 * time.Second // the broker misses us after one and a half of these
	dialTimeout  = 30 * time.Second // until the broker accepted the session
	writeTimeout = 15 * time.Second
	ackTimeout   = time.Minute     // for one message; then the session is worth nothing
	byeTimeout   = 2 * time.Second // for the farewell
	window       = 16              // messages on their way at once
)

// errSilent reports a broker that takes messages and does not answer.
var errSilent = errors.New("broker does not answer")

// link is what a session needs of an mqtt.Client.
type link interface {
	Connect() mqtt.Token
	Publish(topic string, qos byte, retained bool, payload any) mqtt.Token
	Subscribe(topic string, qos byte, callback mqtt.MessageHandler) mqtt.Token
	Disconnect(quiesce uint)
}

// session is one connection to a broker, from CONNECT to its end.
type session struct {
	u     *Uplink
	link  link
	peer  string // host:port
	trust *enroll.Trust
	state fleetapi.State // what the box says of itself
	lost  chan struct{}  // closed when the connection has ended

	mu   sync.Mutex
	conn net.Conn // guarded by mu; nil until there is one, and in tests
	why  error    // guarded by mu; why the connection ended
}

// connect goes from one session to the next until ctx ends.
func (u *Uplink) connect(ctx context.Context) error {
	turn := 0 // whose it is, of the brokers
	for ctx.Err() == nil {
		select {
		case <-u.certified: // of the past
		default:
		}
		cert, brokers := u.enrolment.current()
		if cert == nil || len(brokers) == 0 {
			select {
			case <-u.certified:
			case <-ctx.Done():
			}
			continue
		}
		broker := brokers[turn%len(brokers)]
		turn++
		begin := time.Now()
		err := u.hold(ctx, broker, cert)
		if ctx.Err() != nil {
			break
		}
		if time.Since(begin) >= Steady {
			u.pauses.reset()
		}
		pause := u.pauses.after(err)
		u.ended(peerOf(broker), err)
		u.log.Warn("no session with broker", "broker", broker, "err", err, "pause", pause)
		if isRefusal(err) {
			u.enrolment.doubt(cert)
		}
		u.rest(ctx, pause)
	}
	return nil
}

// rest waits before the next try: for the pause, or until there is another
// certificate to try with, and then no longer than after any other end.
func (u *Uplink) rest(ctx context.Context, pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-u.certified:
		u.pauses.refusal.reset()
		sleep(ctx, min(pause, u.pauses.failure.least))
	case <-ctx.Done():
	}
}

func peerOf(broker string) string {
	u, err := parseBroker(broker)
	if err != nil {
		return broker
	}
	return u.Host
}

// hold keeps a session with one broker for as long as it lasts.
func (u *Uplink) hold(ctx context.Context, broker string, cert *tls.Certificate) error {
	where, err := parseBroker(broker)
	if err != nil {
		return err
	}
	trust, err := u.enrolment.trust(where.Hostname())
	if err != nil {
		return err
	}
	if _, known := u.cfg.Clock(); !known && !u.timeAsked {
		// The certificate of a server may be over, and only the fleet can say.
		u.timeAsked = true
		if _, _, _, err := u.enrolment.learnTime(ctx); err != nil {
			u.log.Warn("fleet's time is not known", "err", err)
		}
	}
	u.spool.Retry()
	s := &session{u: u, peer: where.Host, trust: trust, lost: make(chan struct{})}
	s.state = fleetapi.State{Presence: fleetapi.Online}
	number := u.nextSession()
	s.state.Journal, s.state.Epoch = number.Journal, number.Epoch
	options, err := s.options(ctx, where, cert)
	if err != nil {
		return err
	}
	s.link = u.newLink(options)
	defer s.drop()
	if err := s.open(ctx); err != nil {
		return err
	}
	u.began(s)
	err = s.pump(ctx)
	u.live.Store(nil)
	if ctx.Err() != nil {
		s.goodbye()
	}
	u.spool.Release()
	return err
}

func (s *session) options(ctx context.Context, broker *url.URL, cert *tls.Certificate) (*mqtt.ClientOptions, error) {
	device := s.u.cfg.device
	lost := s.state
	lost.Presence = fleetapi.Lost
	will, err := fleetapi.Encode(&lost)
	if err != nil {
		return nil, err
	}
	subject := fleetapi.SubjectState
	o := mqtt.NewClientOptions().AddBroker(broker.String()).
		SetClientID(string(device)).
		SetProtocolVersion(4).
		SetCleanSession(true). // what the fleet still wants it says again after a Hello
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetOrderMatters(true).
		SetKeepAlive(keepAlive).
		SetPingTimeout(keepAlive/2).
		SetConnectTimeout(dialTimeout).
		SetWriteTimeout(writeTimeout).
		SetBinaryWill(subject.Topic(device), will, subject.QoS(), true)
	o.SetConnectionLostHandler(func(_ mqtt.Client, err error) { s.end(err) })
	o.SetCustomOpenConnectionFn(func(at *url.URL, _ mqtt.ClientOptions) (net.Conn, error) {
		s.u.tried() // from here on the broker may know of the session
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		plain, err := s.u.cfg.Dial(ctx, "tcp", at.Host)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(plain, s.trust.TLS(func() (*tls.Certificate, error) { return cert, nil }))
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = plain.Close() // nothing was said on it
			return nil, err
		}
		s.mu.Lock()
		s.conn = conn
		s.mu.Unlock()
		return conn, nil
	})
	return o, nil
}

// end is told why the connection ended. The first reason counts.
func (s *session) end(err error) {
	if err == nil {
		err = errors.New("connection ended")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == nil {
		s.why = err
		close(s.lost)
	}
}

func (s *session) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// wait waits until the broker has answered.
func (s *session) wait(ctx context.Context, token mqtt.Token, most time.Duration) error {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-token.Done():
		return token.Error()
	case <-s.lost:
		return s.reason()
	case <-t.C:
		return errSilent
	case <-ctx.Done():
		return ctx.Err()
	}
}

// say publishes a payload and waits until it is taken.
func (s *session) say(ctx context.Context, p fleetapi.Payload, most time.Duration) error {
	raw, err := fleetapi.Encode(p)
	if err != nil {
		return err
	}
	subject := p.Subject()
	token := s.link.Publish(subject.Topic(s.u.cfg.device), subject.QoS(), subject.Retained(), raw)
	return s.wait(ctx, token, most)
}

// open begins the session: an ear for what is wanted of us, who we are, that we are
// there. In this order, for the fleet answers a Hello with the jobs that wait, and a
// broker drops what comes before the subscription.
func (s *session) open(ctx context.Context) error {
	abort := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conn != nil {
			_ = s.conn.Close() // ends the handshake; nothing was said yet
		}
	})
	err := s.wait(ctx, s.link.Connect(), dialTimeout+writeTimeout)
	if !abort() || err != nil {
		return fmt.Errorf("connect to broker: %w", errors.Join(ctx.Err(), err))
	}
	filter := fleetapi.DownFilter(s.u.cfg.device)
	token := s.link.Subscribe(filter, 1, func(_ mqtt.Client, m mqtt.Message) { s.u.receive(m.Topic(), m.Payload()) })
	if err := s.wait(ctx, token, ackTimeout); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	if granted, ok := token.(interface{ Result() map[string]byte }); ok && granted.Result()[filter] > 2 {
		return errors.New("subscribe: broker does not let this box read its own topics")
	}
	hello := s.u.hello(s.state)
	if err := s.say(ctx, hello, ackTimeout); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	if err := s.say(ctx, &s.state, ackTimeout); err != nil {
		return fmt.Errorf("say that the box is there: %w", err)
	}
	return nil
}

// drop ends the connection without a word, so that the broker publishes the will
// of a session that went wrong.
func (s *session) drop() {
	s.mu.Lock()
	if s.conn != nil {
		_ = s.conn.Close() // it may have ended already
	}
	s.mu.Unlock()
	s.link.Disconnect(0)
}

// goodbye says in order that the box leaves; nobody needs to wait for its will.
func (s *session) goodbye() {
	ctx, cancel := context.WithTimeout(context.Background(), byeTimeout)
	defer cancel()
	s.state.Presence = fleetapi.Lost
	if err := s.say(ctx, &s.state, byeTimeout); err != nil {
		s.u.log.Warn("fleet does not know that the box leaves", "err", err)
	}
	s.link.Disconnect(uint(byeTimeout.Milliseconds()))
}

// pump sends what is in the spool until the connection or ctx ends.
func (s *session) pump(ctx context.Context) error {
	type answer struct {
		e   *spool.Entry
		err error
	}
	answers := make(chan answer, window) // room for all: no waiter is left behind
	var waiters sync.WaitGroup
	defer waiters.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for onWay := 0; ; {
		for onWay < window && s.reason() == nil {
			e := s.u.spool.Next()
			if e == nil {
				break
			}
			raw, err := s.u.spool.Read(e)
			if err != nil {
				s.u.log.Warn("message is lost", "err", err)
				continue
			}
			// With QoS 1 also what is usually sent with 0: it was kept so that
			// it arrives.
			token := s.link.Publish(e.Class().Subject().Topic(s.u.cfg.device), 1, false, raw)
			onWay++
			waiters.Go(func() { answers <- answer{e, s.wait(ctx, token, ackTimeout)} })
		}
		select {
		case a := <-answers:
			onWay--
			if a.err != nil {
				return a.err
			}
			s.u.spool.Done(a.e)
		case <-s.u.spool.Wake():
		case <-look.C:
			if err := s.check(); err != nil {
				return err
			}
			s.u.spool.Retry()
		case <-s.lost:
			return s.reason()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// check asks again whether the other end is the fleet: by now the clock may be
// known.
func (s *session) check() error {
	s.mu.Lock()
	conn, ok := s.conn.(*tls.Conn)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	return s.trust.Check(conn.ConnectionState())
}

// sendNow publishes what is worth little later, if there is a session.
func (u *Uplink) sendNow(ctx context.Context, subject fleetapi.Subject, raw []byte) bool {
	s := u.live.Load()
	if s == nil {
		return false
	}
	token := s.link.Publish(subject.Topic(u.cfg.device), subject.QoS(), subject.Retained(), raw)
	return s.wait(ctx, token, writeTimeout) == nil
}
