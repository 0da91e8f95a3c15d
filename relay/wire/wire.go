// Package wire is the tunnel between a box and a relay: who the two are, how
// many connections share one, and what each of them begins with.
//
// Callers need four things. A box calls [Connect] on a TCP connection it
// dialled, a relay calls [Accept] on one that reached it; both get a [Tunnel].
// The two talk by [Tunnel.Send] and [Tunnel.Receive]; the relay brings a user
// with [Tunnel.Open], and the box takes him with [Tunnel.Next]. A [Stream] is a
// net.Conn that can also end its own direction only.
//
// The package does not listen, dial, retry, route or decide who may do what:
// package relay does. It never sees the plaintext of a user's TLS.
//
// # Parties and keys
//
// The box holds the device key (ECDSA P-256). It shows any certificate for it,
// self-signed as well: the key is what counts, and [croft.DeviceID] is its hash.
// Who is admitted is up to the relay's Admit.
//
// The relay holds a certificate for its name. The box believes it by [Trust]:
// by the hash of its public key (a pin), or by roots. A box's clock can be
// wrong by decades, so the dates of a certificate count only while the clock
// shows a time between Trust.Floor, when the box's software was built, and 20
// years later; a pin has no dates at all.
//
// # From the outside in
//
//	TCP      the box dials; nobody dials a box
//	TLS 1.3  mutual, ALPN "croft-relay/1", SNI the relay's name, no tickets
//	yamux    streams with windows: who does not read stops only his own stream
//	chunks   two bytes of length, big-endian, then as many bytes
//
// A chunk holds 0 to 65507 bytes; the length 65535 ends a direction and has no
// bytes; other lengths are errors. A stream that stops without its end was cut,
// and reading it fails with [ErrCut], so a cut download never looks complete.
//
// The box opens the first stream, the control stream. Each chunk there is one
// JSON object with one member, a [Message]:
//
//	box → relay   {"hello":{"version":1,"beat_ms":5000}}
//	relay → box   {"welcome":{"version":1,"beat_ms":5000,"device":"…","domain":"…"}}
//	box → relay   {"want":{"seq":1,"names":["shop.example"],"ports":[{"key":"l1/web/80","proto":"tcp"}]}}
//	relay → box   {"held":{"seq":1,"names":[{"name":"shop.example"}],"ports":[{"key":"l1/web/80","proto":"tcp","port":31007}]}}
//	both          {"beat":{}}
//	relay → box   {"bye":{"reason":"shutdown"}}
//
// A want is everything the box wants from now on, not a change. *.DEVICE.DOMAIN
// and DEVICE.DOMAIN are the box's without asking. What cannot be had comes back
// with a problem, and can be asked for again.
//
// All other streams are opened by the relay. Their first chunk is a [Header] in
// JSON; what follows are the user's bytes, or on a udp stream one datagram a
// chunk, each way.
//
// Members that are not known are ignored, and so are messages: a new member
// must be harmless to those who do not know it. What is not, takes a new
// [Version].
//
// # What survives what
//
// Nothing here outlives the process. A dead path: both sides send a beat at
// least every beat_ms and end the tunnel when three of these passed without a
// single byte, so a busy line is never mistaken for a dead one; where the
// kernel can (Linux), it also gives up on bytes that were not acknowledged for
// as long. A wrong clock: see above. A hostile peer: all sizes are bounded, and
// what breaks the rules ends its own tunnel and nothing else.
package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
)

// ALPN is the name under which tunnels ask for the relay in TLS.
const ALPN = "croft-relay/1"

// Version is what this package speaks. Both sides name the newest they know,
// and speak the older of the two.
//
//   - 1: 2026-11-21: hello, welcome, want, held, beat, bye; sni, http, tcp, udp
const Version = 1

// The bounds of what a peer can make us hold or do.
const (
	MaxHost     = 253   // characters of a host name, as in DNS
	MaxNames    = 128   // custom hosts of one box; 128 × 253 fit a chunk
	MaxPorts    = 128   // external ports of one box; likewise
	MaxKey      = 64    // characters of a port's key
	MaxDatagram = 65507 // bytes of a UDP datagram over IPv4
	maxHeader   = 1024  // bytes of a stream's header: a host, an address, a few words
	maxReason   = 256   // bytes of a sentence from the other side
	minBeat     = time.Duration(10) * time.Millisecond
	maxBeat     = time.Minute     // or a dead path would go unseen for minutes
	endOfStream = 65535           // length of the chunk that ends a direction
	maxPayload  = 32<<10 - 12 - 2 // of a chunk of a byte stream: with both headers it fills two TLS records
)

// Kind says how a user reached the relay.
type Kind string

// The kinds.
const (
	KindSNI  Kind = "sni"  // TLS, by the host name in its first message; Host is set
	KindHTTP Kind = "http" // plain HTTP/1, by its Host header; Host is set
	KindTCP  Kind = "tcp"  // an allocated TCP port; Port is set
	KindUDP  Kind = "udp"  // an allocated UDP port; Port is set; chunks are datagrams
)

// Header is what a stream begins with.
type Header struct {
	Kind   Kind           `json:"kind"`
	Host   string         `json:"host,omitempty"` // lower case, no final dot
	Port   uint16         `json:"port,omitempty"` // external port
	Client netip.AddrPort `json:"client"`         // the user's address, as the relay sees it
}

func (h Header) check() error {
	if !h.Client.IsValid() || h.Client.Addr().Zone() != "" {
		return errors.New("client address is missing or has a zone")
	}
	switch h.Kind {
	case KindSNI, KindHTTP:
		if h.Port != 0 {
			return fmt.Errorf("kind %s has a port", h.Kind)
		}
		return CheckHost(h.Host)
	case KindTCP, KindUDP:
		if h.Host != "" || h.Port == 0 {
			return fmt.Errorf("kind %s needs a port and no host", h.Kind)
		}
		return nil
	}
	return fmt.Errorf("kind %.16q is not known", h.Kind)
}

func (h Header) encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("encode stream header: %w", err)
	}
	return json.Marshal(h)
}

func parseHeader(raw []byte) (Header, error) {
	var h Header
	if len(raw) > maxHeader {
		return h, fmt.Errorf("stream header of %d bytes: want at most %d", len(raw), maxHeader)
	}
	if err := json.Unmarshal(raw, &h); err != nil {
		return Header{}, fmt.Errorf("parse stream header: %w", err)
	}
	if err := h.check(); err != nil {
		return Header{}, fmt.Errorf("parse stream header: %w", err)
	}
	return h, nil
}

// CheckHost accepts a DNS name in lower case without a final dot: labels of 1
// to 63 letters, digits, '-' and '_', 253 characters in all. Addresses are not
// names.
func CheckHost(host string) error {
	if len(host) == 0 || len(host) > MaxHost {
		return fmt.Errorf("host name of %d characters: want 1 to %d", len(host), MaxHost)
	}
	for label := range strings.SplitSeq(host, ".") {
		if len(label) == 0 || len(label) > 63 {
			return fmt.Errorf("host name %q has a label of %d characters: want 1 to 63", host, len(label))
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return fmt.Errorf("host name %q has %q in it", host, c)
			}
		}
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return fmt.Errorf("host name %q is an address", host)
	}
	return nil
}

// Proto is the protocol of an external port.
type Proto string

// The protocols.
const (
	TCP Proto = "tcp"
	UDP Proto = "udp"
)

// Port is an external port a box wants. Its number is the relay's choice; the
// key is the box's own name for it, and the same key gets the same number again.
type Port struct {
	Key   string `json:"key"` // 1 to 64 of a-z, 0-9, '.', '_', '-' and '/'
	Proto Proto  `json:"proto"`
}

// Check accepts a known protocol and a key of the right form.
func (p Port) Check() error {
	if p.Proto != TCP && p.Proto != UDP {
		return fmt.Errorf("protocol %.8q: want tcp or udp", p.Proto)
	}
	if len(p.Key) == 0 || len(p.Key) > MaxKey {
		return fmt.Errorf("port key of %d characters: want 1 to %d", len(p.Key), MaxKey)
	}
	for _, c := range []byte(p.Key) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("._-/", c) < 0 {
			return fmt.Errorf("port key %q has %q in it", p.Key, c)
		}
	}
	return nil
}

// Message is what goes over the control stream; exactly one member is set.
type Message struct {
	Hello   *Hello   `json:"hello,omitempty"`
	Welcome *Welcome `json:"welcome,omitempty"`
	Want    *Want    `json:"want,omitempty"`
	Held    *Held    `json:"held,omitempty"`
	Beat    *Beat    `json:"beat,omitempty"`
	Bye     *Bye     `json:"bye,omitempty"`
}

// Hello is the box's first message.
type Hello struct {
	Version int   `json:"version"`
	BeatMS  int64 `json:"beat_ms"` // how often the box would like beats
}

// Welcome is the relay's answer to an admitted box.
type Welcome struct {
	Version int            `json:"version"` // what both speak from now on
	BeatMS  int64          `json:"beat_ms"` // how often both send beats
	Device  croft.DeviceID `json:"device"`
	Domain  string         `json:"domain"` // *.DEVICE.DOMAIN and DEVICE.DOMAIN lead to the box
}

// Want is everything the box wants.
type Want struct {
	Seq   uint64   `json:"seq"`             // comes back in [Held]
	Names []string `json:"names,omitempty"` // custom hosts
	Ports []Port   `json:"ports,omitempty"`
}

// Check accepts what a relay accepts.
func (w Want) Check() error {
	if len(w.Names) > MaxNames || len(w.Ports) > MaxPorts {
		return fmt.Errorf("%d names and %d ports: want at most %d and %d", len(w.Names), len(w.Ports), MaxNames, MaxPorts)
	}
	names := make(map[string]bool, len(w.Names))
	for _, name := range w.Names {
		if err := CheckHost(name); err != nil {
			return err
		}
		if names[name] {
			return fmt.Errorf("host name %q is wanted twice", name)
		}
		names[name] = true
	}
	ports := make(map[Port]bool, len(w.Ports))
	for _, port := range w.Ports {
		if err := port.Check(); err != nil {
			return err
		}
		if ports[port] {
			return fmt.Errorf("%s port %q is wanted twice", port.Proto, port.Key)
		}
		ports[port] = true
	}
	return nil
}

// Problem says why something wanted is not held.
type Problem string

// The problems. The empty one is none.
const (
	ProblemRefused Problem = "refused" // the relay's rules say no
	ProblemTaken   Problem = "taken"   // another device holds it, or another program of the relay's machine
	ProblemFull    Problem = "full"    // no port is left, or too many are held
	ProblemFailed  Problem = "failed"  // the relay could not do it now
)

// Held is the answer to one [Want], in the same order.
type Held struct {
	Seq   uint64     `json:"seq"`
	Names []HeldName `json:"names,omitempty"`
	Ports []HeldPort `json:"ports,omitempty"`
}

// HeldName is a custom host that now leads to the box, or does not.
type HeldName struct {
	Name    string  `json:"name"`
	Problem Problem `json:"problem,omitempty"`
}

// HeldPort is an external port that now leads to the box, or does not.
type HeldPort struct {
	Port
	External uint16  `json:"port,omitempty"` // 0 if there is a problem
	Problem  Problem `json:"problem,omitempty"`
}

// Beat says that its sender lives.
type Beat struct{}

// Reason says why a relay ends a tunnel.
type Reason string

// The reasons.
const (
	ByeRefused  Reason = "refused"  // the device is not admitted
	ByeReplaced Reason = "replaced" // the device has a newer tunnel; this one ends with its last stream
	ByeShutdown Reason = "shutdown" // the relay stops; come back, or go elsewhere
	ByeProtocol Reason = "protocol" // the other side broke a rule of this package
)

// Bye is the relay's last message.
type Bye struct {
	Reason Reason `json:"reason"`
	Text   string `json:"text,omitempty"` // a sentence for people
}

// ByeError is a relay's [Bye].
type ByeError struct{ Bye Bye }

func (e *ByeError) Error() string {
	if e.Bye.Text == "" {
		return fmt.Sprintf("relay said goodbye: %s", e.Bye.Reason)
	}
	return fmt.Sprintf("relay said goodbye: %s: %s", e.Bye.Reason, e.Bye.Text)
}

// parseMessage accepts one JSON object. A message that is not known has no
// member set.
func parseMessage(raw []byte) (Message, error) {
	var m Message
	if err := json.Unmarshal(raw, &m); err != nil {
		return Message{}, fmt.Errorf("parse control message: %w", err)
	}
	if err := m.check(); err != nil {
		return Message{}, fmt.Errorf("parse control message: %w", err)
	}
	return m, nil
}

func (m Message) encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encode control message: %w", err)
	}
	raw, err := json.Marshal(m)
	if err == nil && len(raw) > MaxDatagram {
		err = fmt.Errorf("encode control message: it has %d bytes, want at most %d", len(raw), MaxDatagram)
	}
	return raw, err
}

func (m Message) check() error {
	set := 0
	for _, member := range []bool{m.Hello != nil, m.Welcome != nil, m.Want != nil, m.Held != nil, m.Beat != nil, m.Bye != nil} {
		if member {
			set++
		}
	}
	switch {
	case set > 1:
		return fmt.Errorf("%d members: want one", set)
	case m.Hello != nil && m.Hello.Version < 1, m.Welcome != nil && m.Welcome.Version < 1:
		return errors.New("version is missing")
	case m.Welcome != nil:
		if _, err := croft.ParseDeviceID(string(m.Welcome.Device)); err != nil {
			return err
		}
		return CheckHost(m.Welcome.Domain)
	case m.Want != nil:
		return m.Want.Check()
	case m.Held != nil:
		return m.Held.check()
	case m.Bye != nil && len(m.Bye.Text) > maxReason:
		return fmt.Errorf("reason of %d bytes: want at most %d", len(m.Bye.Text), maxReason)
	}
	return nil
}

// check looks at a Held as at the Want it answers.
func (h Held) check() error {
	w := Want{Seq: h.Seq}
	for _, n := range h.Names {
		w.Names = append(w.Names, n.Name)
	}
	for _, p := range h.Ports {
		w.Ports = append(w.Ports, p.Port)
		if (p.External == 0) != (p.Problem != "") {
			return fmt.Errorf("%s port %q: want a number or a problem", p.Proto, p.Key)
		}
	}
	return w.Check()
}

// beatOf bounds a period from the wire.
func beatOf(ms int64, least time.Duration) time.Duration {
	if ms > maxBeat.Milliseconds() { // before it is multiplied
		return maxBeat
	}
	return max(time.Duration(ms)*time.Millisecond, least, minBeat)
}
