package wire

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/yamux"

	"github.com/croft-cloud/croft"
)

// clockSpan is how long after its software was built a box's clock is believed.
// No box runs one build for so long; a clock that says so is wrong.
const clockSpan = 20 * 365 * 24 * time.Hour

// Trust says which relay is the right one.
type Trust struct {
	Roots *x509.CertPool // default: the system's; not used if there are pins
	Pins  []Pin          // keys of which the relay must hold one
	Floor time.Time      // when this software was built; zero: the clock is right
}

// Pin is the SHA-256 of a public key in PKIX DER.
type Pin [sha256.Size]byte

// PinOf is the pin of a certificate's key.
func PinOf(cert *x509.Certificate) Pin { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

func (t Trust) verify(name string, chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("relay has no certificate")
	}
	if len(t.Pins) > 0 {
		if !slices.Contains(t.Pins, PinOf(chain[0])) {
			return errors.New("relay's key is not the pinned one")
		}
		return nil
	}
	opts := x509.VerifyOptions{DNSName: name, Roots: t.Roots, Intermediates: x509.NewCertPool(), CurrentTime: time.Now()}
	for _, cert := range chain[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if now := opts.CurrentTime; !t.Floor.IsZero() && (now.Before(t.Floor) || now.After(t.Floor.Add(clockSpan))) {
		// The moment the relay's certificate began: its issuers were valid then.
		opts.CurrentTime = chain[0].NotBefore
	}
	_, err := chain[0].Verify(opts)
	return err
}

// BoxConfig is a box's side of the handshake.
type BoxConfig struct {
	Name        string          // required; the relay's name
	Trust       Trust           // who is the relay
	Certificate tls.Certificate // required; for the device key
	Beat        time.Duration   // how often beats are wished for; default 5 s
	Window      uint32          // bytes of a stream; default [DefaultWindow]
}

// RelayConfig is a relay's side of the handshake.
type RelayConfig struct {
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)           // required
	Admit       func(context.Context, croft.DeviceID, *x509.Certificate) error // required; its error is told to the box
	Domain      string                                                         // required; boxes are DEVICE.DOMAIN
	MinBeat     time.Duration                                                  // shortest beat that boxes may have; default 1 s
	Window      uint32                                                         // bytes of a stream; default [DefaultWindow]
}

func windowOf(w uint32) uint32 {
	return min(max(cmp.Or(w, DefaultWindow), MinWindow), MaxWindow)
}

// Connect makes a tunnel of a connection the box has dialled. It owns conn from
// then on, also when it fails. An error that wraps [*ByeError] is the relay's
// own answer.
func Connect(ctx context.Context, conn net.Conn, cfg BoxConfig) (*Tunnel, error) {
	t, err := connect(ctx, conn, cfg)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to relay %s: %w", cfg.Name, err)
	}
	return t, nil
}

func connect(ctx context.Context, conn net.Conn, cfg BoxConfig) (*Tunnel, error) {
	if cfg.Name == "" || len(cfg.Certificate.Certificate) == 0 {
		return nil, errors.New("relay's name or device's certificate is missing")
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	secure := tls.Client(conn, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{ALPN},
		ServerName:         cfg.Name,
		InsecureSkipVerify: true, // VerifyConnection does it, with the clock in mind
		VerifyConnection: func(state tls.ConnectionState) error {
			return cfg.Trust.verify(cfg.Name, state.PeerCertificates)
		},
		// Whatever authorities the relay names: the device has one key.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cfg.Certificate, nil },
	})
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if got := secure.ConnectionState().NegotiatedProtocol; got != ALPN {
		return nil, fmt.Errorf("%w: ALPN is %q", ErrProtocol, got)
	}
	cert, err := x509.ParseCertificate(cfg.Certificate.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("read device certificate: %w", err)
	}
	device, err := DeviceOf(cert.PublicKey)
	if err != nil {
		return nil, err
	}
	muxed := newMuxConn(secure, conn, relayStreams)
	mux, err := yamux.Client(muxed, muxConfig(windowOf(cfg.Window)))
	if err != nil {
		return nil, err
	}
	t := newTunnel(muxed, mux)
	t.device = device
	if err := t.greet(ctx, cmp.Or(cfg.Beat, 5*time.Second)); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// greet is the box's half of the first two messages.
func (t *Tunnel) greet(ctx context.Context, beat time.Duration) error {
	defer context.AfterFunc(ctx, func() { t.stop(ctx.Err()) })()
	stream, err := t.mux.OpenStream()
	if err != nil {
		return err
	}
	t.control = newStream(stream, t.pool)
	if err := t.Send(Message{Hello: &Hello{Version: Version, BeatMS: beat.Milliseconds()}}); err != nil {
		return err
	}
	m, err := t.Receive()
	switch {
	case err != nil:
		return err
	case m.Bye != nil:
		return &ByeError{*m.Bye}
	case m.Welcome == nil:
		return fmt.Errorf("%w: first message is no welcome", ErrProtocol)
	case m.Welcome.Device != t.device:
		return fmt.Errorf("%w: relay takes the device for %s", ErrProtocol, m.Welcome.Device)
	}
	t.domain, t.version = m.Welcome.Domain, min(m.Welcome.Version, Version)
	t.beat = beatOf(m.Welcome.BeatMS, minBeat)
	t.start()
	return nil
}

// Accept makes a tunnel of a connection that reached the relay. It owns conn
// from then on, also when it fails.
func Accept(ctx context.Context, conn net.Conn, cfg RelayConfig) (*Tunnel, error) {
	t, err := accept(ctx, conn, cfg)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("accept tunnel from %s: %w", conn.RemoteAddr(), err)
	}
	return t, nil
}

func accept(ctx context.Context, conn net.Conn, cfg RelayConfig) (*Tunnel, error) {
	if cfg.Certificate == nil || cfg.Admit == nil || cfg.Domain == "" {
		return nil, errors.New("certificate, admission or domain is missing")
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	secure := tls.Server(conn, &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{ALPN},
		GetCertificate:         cfg.Certificate,
		ClientAuth:             tls.RequireAnyClientCert, // the key counts, not who signed it
		SessionTicketsDisabled: true,                     // each tunnel proves the key anew
	})
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state := secure.ConnectionState()
	if state.NegotiatedProtocol != ALPN {
		return nil, fmt.Errorf("%w: ALPN is %q", ErrProtocol, state.NegotiatedProtocol)
	}
	cert := state.PeerCertificates[0]
	device, err := DeviceOf(cert.PublicKey)
	if err != nil {
		return nil, err
	}
	muxed := newMuxConn(secure, conn, boxStreams)
	mux, err := yamux.Server(muxed, muxConfig(windowOf(cfg.Window)))
	if err != nil {
		return nil, err
	}
	t := newTunnel(muxed, mux)
	t.device, t.domain = device, cfg.Domain
	if err := t.welcome(ctx, cfg, cert); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// welcome is the relay's half of the first two messages.
func (t *Tunnel) welcome(ctx context.Context, cfg RelayConfig, cert *x509.Certificate) error {
	defer context.AfterFunc(ctx, func() { t.stop(ctx.Err()) })()
	stream, err := t.mux.AcceptStream()
	if err != nil {
		return err
	}
	t.control = newStream(stream, t.pool)
	m, err := t.Receive()
	switch {
	case err != nil:
		return err
	case m.Hello == nil:
		t.Farewell(ByeProtocol, "first message is no hello")
		return fmt.Errorf("%w: first message is no hello", ErrProtocol)
	}
	if err := cfg.Admit(ctx, t.device, cert); err != nil {
		t.Farewell(ByeRefused, err.Error())
		return fmt.Errorf("admit device %s: %w", t.device, err)
	}
	t.version = min(m.Hello.Version, Version)
	t.beat = beatOf(m.Hello.BeatMS, cmp.Or(cfg.MinBeat, time.Second))
	err = t.Send(Message{Welcome: &Welcome{Version: t.version, BeatMS: t.beat.Milliseconds(), Device: t.device, Domain: t.domain}})
	if err != nil {
		return err
	}
	t.start()
	return nil
}

// byeTimeout is how long a box has to read why it must go.
const byeTimeout = time.Second

// Farewell tells the box why it must go and closes the tunnel: as soon as the
// box has gone, and after a second at the latest, whether it reads or not.
func (t *Tunnel) Farewell(reason Reason, text string) {
	late := time.AfterFunc(byeTimeout, func() { t.stop(net.ErrClosed) })
	defer late.Stop()
	if t.Bye(reason, text) == nil {
		<-t.Done()
	}
	t.Close()
}

// Bye tells the box that the tunnel will end, and why, and leaves it open. It
// waits for a box that does not read; Close ends that.
func (t *Tunnel) Bye(reason Reason, text string) error {
	return t.Send(Message{Bye: &Bye{Reason: reason, Text: cutText(text)}})
}

// cutText cuts a sentence to what the other side accepts, between characters.
func cutText(text string) string {
	text = strings.ToValidUTF8(text, "?")
	n := min(len(text), maxReason)
	for n < len(text) && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// DeviceOf names the device that holds a key, which must be ECDSA P-256. The
// name comes from the key, not from how a certificate happens to write it.
func DeviceOf(public crypto.PublicKey) (croft.DeviceID, error) {
	key, ok := public.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return "", errors.New("device key is not ECDSA P-256")
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("read device key: %w", err)
	}
	return croft.DeviceIDFromDigest(sha256.Sum256(der)), nil
}

// SelfSigned is a certificate for a device key that says nothing but the key.
// It has no end: relays judge keys, not dates.
func SelfSigned(key crypto.Signer) (tls.Certificate, error) {
	device, err := DeviceOf(key.Public())
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: string(device)},
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280: no well-defined end
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign certificate of device %s: %w", device, err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
