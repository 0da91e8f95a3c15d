package simbox

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Line is one MQTT 3.1.1 session of a box, with nothing beside it: no spool, no
// second try, no rule about topics. It is what a [Crowd] is made of, and with what
// a test says what no sound box would. It is for one goroutine.
//
// It knows the packets that a box needs, and only those: a crowd cannot afford
// paho's goroutines and buffers for each session.
type Line struct {
	conn    net.Conn
	last    uint16 // id of the last packet that wants an answer
	sent    time.Time
	arrived []Message // that came while something else was waited for
}

// Message is one that came from the fleet.
type Message struct {
	Topic string
	Raw   []byte
}

// LineConfig says how to begin a [Line].
type LineConfig struct {
	Broker    string // tls://host:port; default: the pass's first
	ClientID  string // default: the pass's device
	WillTopic string // default: no will
	Will      []byte
	Dial      Dial // default: TCP

	trust *enroll.Trust // default: made from the fleet
}

const (
	keepAlive  = 30 * time.Second // as agent/uplink's
	answerTime = time.Minute      // as agent/uplink's
	greetTime  = 30 * time.Second // for TLS and CONNECT
	byeTime    = 2 * time.Second  // for the farewell, as agent/uplink's
)

// Types of packets.
const (
	pktConnect    = 1
	pktConnack    = 2
	pktPublish    = 3
	pktPuback     = 4
	pktSubscribe  = 8
	pktSuback     = 9
	pktPingreq    = 12
	pktPingresp   = 13
	pktDisconnect = 14
)

// maxAnswer is the most bytes of a packet from a broker.
const maxAnswer = 1 << 20

// ConnectError is a broker's answer to CONNECT other than yes.
type ConnectError byte

const connectBusy ConnectError = 3 // "server unavailable"

// Error implements error.
func (e ConnectError) Error() string { return fmt.Sprintf("broker refuses with code %d", byte(e)) }

// Connect begins a session with the certificate of a pass.
func Connect(ctx context.Context, f Fleet, pass *Pass, cfg LineConfig) (*Line, error) {
	if cfg.Broker == "" && len(pass.Brokers) > 0 {
		cfg.Broker = pass.Brokers[0]
	}
	if cfg.ClientID == "" {
		cfg.ClientID = string(pass.Device)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	at, err := url.Parse(cfg.Broker)
	if err != nil || at.Scheme != "tls" {
		return nil, fmt.Errorf("connect to broker %q: want tls://host:port", cfg.Broker)
	}
	if cfg.trust == nil {
		if cfg.trust, err = f.trust(at.Hostname(), rightClock); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	plain, err := cfg.Dial(ctx, "tcp", at.Host)
	if err != nil {
		return nil, fmt.Errorf("connect to broker: %w", err)
	}
	conn := tls.Client(plain, cfg.trust.TLS(func() (*tls.Certificate, error) { return pass.certificate(), nil }))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = plain.Close() // nothing was said on it
		return nil, fmt.Errorf("connect to broker: %w", err)
	}
	l := &Line{conn: conn}
	stop := context.AfterFunc(ctx, func() { _ = plain.Close() }) // a read or write tells
	err = l.greet(cfg)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		l.Drop()
		return nil, fmt.Errorf("connect to broker: %w", err)
	}
	return l, nil
}

// greet says CONNECT and hears the answer.
func (l *Line) greet(cfg LineConfig) error {
	flags := byte(1 << 1) // a clean session
	if cfg.WillTopic != "" {
		flags |= 1<<2 | 1<<3 | 1<<5 // a will, of QoS 1, retained
	}
	body := append(text(nil, "MQTT"), 4, flags)
	body = binary.BigEndian.AppendUint16(body, uint16(keepAlive/time.Second))
	body = text(body, cfg.ClientID)
	if cfg.WillTopic != "" {
		body = text(text(body, cfg.WillTopic), string(cfg.Will))
	}
	if err := l.write(pktConnect<<4, body); err != nil {
		return err
	}
	p, err := l.read(time.Now().Add(greetTime))
	switch {
	case err != nil:
		return err
	case p.kind != pktConnack || len(p.body) != 2:
		return errAnswer
	case p.body[1] != 0:
		return ConnectError(p.body[1])
	}
	return nil
}

var (
	errAnswer = errors.New("broker answers something else")
	errSilent = errors.New("broker does not answer")
)

// text is a string as MQTT writes it.
func text(to []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(to, uint16(len(s))), s...)
}

// packet is one that came.
type packet struct {
	kind, flags byte
	body        []byte
}

// id is the number that an answer begins with.
func (p packet) id() uint16 {
	if len(p.body) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(p.body)
}

// write sends one packet, in one record of TLS.
func (l *Line) write(first byte, body []byte) error {
	raw := make([]byte, 0, 5+len(body))
	raw = append(binary.AppendUvarint(append(raw, first), uint64(len(body))), body...)
	l.sent = time.Now()
	if err := l.conn.SetWriteDeadline(l.sent.Add(answerTime)); err != nil {
		return err
	}
	if _, err := l.conn.Write(raw); err != nil {
		return fmt.Errorf("send to broker: %w", err)
	}
	return nil
}

// read waits for a packet until a time. os.ErrDeadlineExceeded means that none
// has begun to come.
func (l *Line) read(until time.Time) (packet, error) {
	if err := l.conn.SetReadDeadline(until); err != nil {
		return packet{}, err
	}
	return l.readOne()
}

// readOne is read with the deadline that is set.
func (l *Line) readOne() (packet, error) {
	var first [1]byte
	if _, err := io.ReadFull(l.conn, first[:]); err != nil {
		return packet{}, fmt.Errorf("hear broker: %w", err)
	}
	if err := l.conn.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return packet{}, err
	}
	size, err := binary.ReadUvarint(byteReader{l.conn})
	if err == nil && size > maxAnswer {
		err = errAnswer
	}
	p := packet{kind: first[0] >> 4, flags: first[0] & 15}
	if err == nil && size > 0 {
		p.body = make([]byte, size)
		_, err = io.ReadFull(l.conn, p.body)
	}
	if err != nil {
		// Half a packet has come: whatever the error, this is no time to wait on.
		return packet{}, fmt.Errorf("hear broker: packet is cut off: %w", err)
	}
	return p, nil
}

// byteReader reads one byte at a time; tls.Conn has them in memory.
type byteReader struct{ r io.Reader }

func (b byteReader) ReadByte() (byte, error) {
	var one [1]byte
	_, err := io.ReadFull(b.r, one[:])
	return one[0], err
}

// publish sends a message and returns the number under which it is acknowledged,
// 0 with QoS 0.
func (l *Line) publish(topic string, qos byte, retained bool, raw []byte) (uint16, error) {
	first, body := byte(pktPublish<<4)|qos<<1, make([]byte, 0, 4+len(topic)+len(raw))
	body = text(body, topic)
	if retained {
		first |= 1
	}
	id := uint16(0)
	if qos > 0 {
		id = l.nextID()
		body = binary.BigEndian.AppendUint16(body, id)
	}
	return id, l.write(first, append(body, raw...))
}

func (l *Line) nextID() uint16 {
	l.last = max(1, l.last+1)
	return l.last
}

// take reads a message that came and acknowledges it.
func (l *Line) take(p packet) (Message, error) {
	n := 0
	if len(p.body) >= 2 {
		n = 2 + int(binary.BigEndian.Uint16(p.body))
	}
	rest := n
	if p.flags>>1&3 > 0 {
		rest += 2
	}
	if n < 2 || rest > len(p.body) {
		return Message{}, errAnswer
	}
	if rest > n {
		if err := l.write(pktPuback<<4, p.body[n:rest]); err != nil {
			return Message{}, err
		}
	}
	return Message{Topic: string(p.body[2:n]), Raw: p.body[rest:]}, nil
}

// await hears until an answer of a kind comes, for so long at most.
func (l *Line) await(kind byte, id uint16, most time.Duration) (packet, error) {
	until := time.Now().Add(most)
	for {
		p, err := l.read(until)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return packet{}, errSilent
		}
		if err != nil {
			return packet{}, err
		}
		switch {
		case p.kind == kind && p.id() == id:
			return p, nil
		case p.kind == pktPublish:
			m, err := l.take(p)
			if err != nil {
				return packet{}, err
			}
			l.arrived = append(l.arrived, m)
		}
	}
}

// Publish sends a message, whatever the topic, and with QoS 1 waits until it is
// acknowledged.
func (l *Line) Publish(topic string, qos byte, retained bool, raw []byte) error {
	id, err := l.publish(topic, qos, retained, raw)
	if err != nil || qos == 0 {
		return err
	}
	_, err = l.await(pktPuback, id, answerTime)
	return err
}

// Say publishes a payload of the pass's device as a box does, or with QoS 1 what
// a box sends with QoS 0, so that it is known to have arrived.
func (l *Line) Say(pass *Pass, p fleetapi.Payload) error {
	raw, err := fleetapi.Encode(p)
	if err != nil {
		return err
	}
	return l.Publish(p.Subject().Topic(pass.Device), 1, p.Subject().Retained(), raw)
}

// Subscribe asks for messages, whatever the filter, and reports whether the
// broker lets it.
func (l *Line) Subscribe(filter string) (bool, error) {
	id := l.nextID()
	body := append(text(binary.BigEndian.AppendUint16(nil, id), filter), 1)
	if err := l.write(pktSubscribe<<4|2, body); err != nil {
		return false, err
	}
	p, err := l.await(pktSuback, id, answerTime)
	if err != nil {
		return false, err
	}
	return len(p.body) == 3 && p.body[2] <= 2, nil
}

// Next waits for a message until a time; after it, the error is
// os.ErrDeadlineExceeded.
func (l *Line) Next(until time.Time) (Message, error) {
	for {
		if len(l.arrived) > 0 {
			m := l.arrived[0]
			l.arrived = l.arrived[1:]
			return m, nil
		}
		p, err := l.read(until)
		if err != nil {
			return Message{}, err
		}
		if p.kind == pktPublish {
			return l.take(p)
		}
	}
}

// Close says DISCONNECT: there is no will to tell.
func (l *Line) Close() {
	_ = l.write(pktDisconnect<<4, nil) // it may have ended already
	l.Drop()
}

// Drop ends the connection without a word.
func (l *Line) Drop() {
	if c, ok := l.conn.(*tls.Conn); ok {
		_ = c.NetConn().Close() // TLS would say goodbye
	}
}
