package outside

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/joinfile"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

// RelayConfig is copied by NewRelay.
type RelayConfig struct {
	Dir    string // required; where external ports are remembered
	Domain string // boxes are DEVICE.Domain; default "croft.localhost", which browsers and curl take for this machine

	TLS, HTTP uint16          // ports on 127.0.0.1; default: free ones
	Ports     relay.PortRange // external ports, likewise; default: 32 free ones
	Log       *slog.Logger    // default: discard
}

// Relay is a relay on 127.0.0.1, in this process, that takes every box and gives
// it every host it asks for. Its addresses and its key are fixed from the
// beginning. Its methods may be called from any goroutine.
type Relay struct {
	cfg   RelayConfig
	cert  tls.Certificate
	pin   wire.Pin
	store *relay.FileStore

	mu     sync.Mutex
	server *relay.Server      // guarded by mu; nil while stopped
	cancel context.CancelFunc // guarded by mu
	done   chan struct{}      // guarded by mu; closed when the server has ended
}

// NewRelay chooses ports and a key and starts nothing.
func NewRelay(cfg RelayConfig) (*Relay, error) {
	cfg.Domain = cmp.Or(cfg.Domain, "croft.localhost")
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("prepare relay: %w", err)
	}
	if cfg.Ports == (relay.PortRange{}) {
		const n = 32
		first, err := freePorts(n)
		if err != nil {
			return nil, fmt.Errorf("prepare relay: %w", err)
		}
		cfg.Ports = relay.PortRange{First: first, Last: first + n - 1}
	}
	if err := choosePorts(&cfg.TLS, &cfg.HTTP); err != nil {
		return nil, fmt.Errorf("prepare relay: %w", err)
	}
	key, err := keepKey(filepath.Join(cfg.Dir, "key.der"))
	if err != nil {
		return nil, fmt.Errorf("prepare the relay's key: %w", err)
	}
	cert, err := wire.SelfSigned(key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("make the relay's certificate: %w", err)
	}
	return &Relay{cfg: cfg, cert: cert, pin: wire.PinOf(leaf), store: relay.NewFileStore(filepath.Join(cfg.Dir, "ports.json"))}, nil
}

// keepKey reads the relay's key, which boxes know it by, and makes one the first time.
func keepKey(path string) (*ecdsa.PrivateKey, error) {
	der, err := os.ReadFile(path)
	if err == nil {
		return x509.ParseECPrivateKey(der)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if der, err = x509.MarshalECPrivateKey(key); err != nil {
		return nil, err
	}
	return key, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, der, 0o600))
}

// Domain is what a box's name is put before: DEVICE.Domain.
func (r *Relay) Domain() string { return r.cfg.Domain }

// TLS is where boxes and users of TLS come in, host:port.
func (r *Relay) TLS() string { return loopback(r.cfg.TLS) }

// HTTP is where users of plain HTTP come in, host:port; the Host header decides
// which box they reach.
func (r *Relay) HTTP() string { return loopback(r.cfg.HTTP) }

// JoinEntry is the relay as a box's network file names it, at the address under
// which the box sees this machine.
func (r *Relay) JoinEntry(machine string) joinfile.Relay {
	return joinfile.Relay{Name: "relay." + r.cfg.Domain, Address: at(machine, r.cfg.TLS), Pins: []string{hex.EncodeToString(r.pin[:])}}
}

// Start opens the relay. Starting what runs is no error.
func (r *Relay) Start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		return nil
	}
	listeners := map[string]net.Listener{}
	fail := func(err error) error {
		for _, l := range listeners {
			l.Close()
		}
		return fmt.Errorf("start relay: %w", err)
	}
	for _, address := range []string{r.TLS(), r.HTTP()} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return fail(err)
		}
		listeners[address] = l
	}
	server, err := relay.New(relay.Config{
		Name: "relay." + r.cfg.Domain, Domain: r.cfg.Domain, Address: r.TLS(), HTTPAddress: r.HTTP(),
		PortHost: "127.0.0.1", Ports: r.cfg.Ports, Store: r.store, Log: r.cfg.Log,
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &r.cert, nil },
		Admit:       func(context.Context, croft.DeviceID, *x509.Certificate) error { return nil },
		AllowHost:   func(context.Context, croft.DeviceID, string) error { return nil },
		Listen: func(_ context.Context, _, address string) (net.Listener, error) {
			return listeners[address], nil // opened above, so that Start can say what is wrong
		},
	})
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.server, r.cancel, r.done = server, cancel, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		if err := server.Run(ctx); err != nil {
			r.cfg.Log.Error("relay ended", "error", err)
		}
	}(r.done)
	return nil
}

// Stop closes the relay: all users and boxes are cut.
func (r *Relay) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return
	}
	r.cancel()
	<-r.done
	r.server = nil
}

// Restart is Stop and Start.
func (r *Relay) Restart() error {
	r.Stop()
	return r.Start()
}

// Devices lists the boxes that have a tunnel or lost it just now; none while the
// relay is stopped.
func (r *Relay) Devices() []relay.DeviceState {
	r.mu.Lock()
	server := r.server
	r.mu.Unlock()
	if server == nil {
		return nil
	}
	return server.Devices()
}

// Dial reaches what the world would reach at an address, whatever the host, as
// DNS would bring it to the relay: ports 80 and 443 stand for the relay's own, and
// others are external ports. Addresses of machines are dialled as they are.
func (r *Relay) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	var d net.Dialer
	if _, err := netip.ParseAddr(host); err == nil {
		return d.DialContext(ctx, network, address)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, errors.Unwrap(err))
	}
	switch port {
	case 80:
		return d.DialContext(ctx, network, r.HTTP())
	case 443:
		return d.DialContext(ctx, network, r.TLS())
	}
	return d.DialContext(ctx, network, loopback(uint16(port)))
}

// Client asks boxes by HTTP as a visitor does, through [Relay.Dial]. It follows no
// redirects and uses each connection once.
func (r *Relay) Client() *http.Client {
	return &http.Client{
		Timeout:       10 * time.Second,
		Transport:     &http.Transport{DialContext: r.Dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
