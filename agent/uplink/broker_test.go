package uplink

import (
	"crypto/tls"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// broker is a small MQTT broker that stores what it gets before it acknowledges,
// as the fleet does, and can be killed between any two steps. What it stored
// survives.
type broker struct {
	t      testing.TB
	config *tls.Config
	addr   string
	fate   func() bool // whether to be killed at this step; nil: never

	mu       sync.Mutex
	listener net.Listener // guarded by mu
	conns    map[net.Conn]bool
	got      []message           // guarded by mu; in order of arrival
	down     []fleetapi.Payload  // guarded by mu; said to each subscriber
	greeting map[string]net.Conn // guarded by mu; subscribers by client id
	kills    int                 // guarded by mu
	code     byte                // guarded by mu; answer to CONNECT
	all      sync.WaitGroup
	arrived  chan struct{} // something was stored; holds one
}

type message struct {
	topic    string
	payload  fleetapi.Payload
	retained bool
	will     bool
	qos      byte
}

func newBroker(t testing.TB, config *tls.Config) *broker {
	b := &broker{t: t, config: config, conns: make(map[net.Conn]bool), greeting: make(map[string]net.Conn), arrived: make(chan struct{}, 1)}
	b.listen()
	t.Cleanup(func() {
		b.mu.Lock()
		b.fate = nil
		b.mu.Unlock()
		b.stop()
		b.all.Wait()
	})
	return b
}

func (b *broker) url() string { return "tls://" + b.addr }

func (b *broker) listen() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Errorf("listen: %v", err)
		return
	}
	b.mu.Lock()
	b.listener, b.addr = l, l.Addr().String()
	b.mu.Unlock()
	b.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.all.Go(func() { b.serve(tls.Server(conn, b.config)) })
		}
	})
}

func (b *broker) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = b.listener.Close()
	for c := range b.conns {
		_ = c.Close()
	}
}

// killed decides whether this is the broker's last step. It is back at once, and
// its connections are gone.
func (b *broker) killed() bool {
	b.mu.Lock()
	fate := b.fate
	b.mu.Unlock()
	if fate == nil || !fate() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kills++
	for c := range b.conns {
		_ = c.Close()
	}
	return true
}

func (b *broker) store(m message) {
	b.mu.Lock()
	b.got = append(b.got, m)
	b.mu.Unlock()
	select {
	case b.arrived <- struct{}{}:
	default:
	}
}

func (b *broker) serve(conn net.Conn) {
	b.mu.Lock()
	b.conns[conn] = true
	b.mu.Unlock()
	var will *packets.ConnectPacket
	defer func() {
		_ = conn.Close()
		b.mu.Lock()
		delete(b.conns, conn)
		b.mu.Unlock()
		if will != nil && will.WillFlag {
			b.keep(will.WillTopic, will.WillMessage, will.WillRetain, true, will.WillQos)
		}
	}()
	for {
		p, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		switch p := p.(type) {
		case *packets.ConnectPacket:
			ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
			b.mu.Lock()
			ack.ReturnCode = b.code
			b.mu.Unlock()
			_ = ack.Write(conn)
			if ack.ReturnCode != 0 {
				return
			}
			will = p
		case *packets.PublishPacket:
			if b.killed() {
				return
			}
			b.keep(p.TopicName, p.Payload, p.Retain, false, p.Qos)
			if b.killed() {
				return
			}
			if p.Qos == 1 {
				ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
				ack.MessageID = p.MessageID
				_ = ack.Write(conn)
			}
			if b.killed() {
				return
			}
		case *packets.SubscribePacket:
			ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
			ack.MessageID, ack.ReturnCodes = p.MessageID, []byte{1}
			_ = ack.Write(conn)
			b.mu.Lock()
			b.greeting[will.ClientIdentifier] = conn
			down := b.down
			b.mu.Unlock()
			for _, payload := range down {
				b.write(conn, will.ClientIdentifier, payload)
			}
		case *packets.PingreqPacket:
			_ = packets.NewControlPacket(packets.Pingresp).Write(conn)
		case *packets.DisconnectPacket:
			will = nil
			return
		}
	}
}

func (b *broker) keep(topic string, raw []byte, retained, will bool, qos byte) {
	_, subject, err := fleetapi.ParseTopic(topic)
	var payload fleetapi.Payload
	if err == nil {
		payload, err = fleetapi.Decode(subject, raw)
	}
	if err != nil {
		b.t.Errorf("message on %s: %v", topic, err)
		return
	}
	b.store(message{topic, payload, retained, will, qos})
}

func (b *broker) write(conn net.Conn, device string, payload fleetapi.Payload) {
	raw, err := fleetapi.Encode(payload)
	if err != nil {
		b.t.Errorf("encode: %v", err)
		return
	}
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Qos, p.MessageID = 1, uint16(1+rand.N(60000))
	p.TopicName, p.Payload = "croft/v1/"+device+"/"+string(payload.Subject()), raw
	_ = p.Write(conn)
}

// say sends a payload to a box that has a session.
func (b *broker) say(device string, payload fleetapi.Payload) {
	b.mu.Lock()
	conn := b.greeting[device]
	b.mu.Unlock()
	b.write(conn, device, payload)
}

// messages is all that was stored.
func (b *broker) messages() []message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clip(b.got)
}

// until waits for a moment at which what was stored satisfies done.
func (b *broker) until(done func([]message) bool) {
	b.t.Helper()
	for !done(b.messages()) {
		select {
		case <-b.arrived:
		case <-time.After(5 * time.Millisecond): // done may look at more than messages
		case <-b.t.Context().Done():
			b.t.Fatal("test ended while waiting for messages")
		}
	}
}

// find waits for the first payload of a type that satisfies match.
func find[T any, P interface {
	*T
	fleetapi.Payload
}](b *broker, match func(P) bool) message {
	b.t.Helper()
	var found message
	b.until(func(all []message) bool {
		for _, m := range all {
			if p, ok := m.payload.(P); ok && match(p) {
				found = m
				return true
			}
		}
		return false
	})
	return found
}
