package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
)

// Standing is what a client certificate makes of who shows it.
type Standing string

// The standings.
const (
	Anonymous Standing = "anonymous" // showed no certificate
	Foreign   Standing = "foreign"   // showed one that means nothing here
	Candidate Standing = "candidate" // proved a device key, and has no certificate of this fleet
	Device    Standing = "device"    // has a valid certificate
	Expired   Standing = "expired"   // has one that is over, and may renew it
	Lapsed    Standing = "lapsed"    // has one that is over for longer than RenewGrace
	Revoked   Standing = "revoked"   // proved a key, or showed a certificate, that is revoked
)

// Peer is who is at the other end of a connection.
type Peer struct {
	Standing Standing
	Device   croft.DeviceID // whose key was proven; empty if anonymous or foreign
	Cert     CertID         // of the fleet's certificate that was shown; empty if there was none
	NotAfter time.Time      // its end
}

// MayConnect is nil for a device with a valid certificate.
func (p Peer) MayConnect() error { return p.among(Device) }

// MayEnroll is nil for a box that proved its key and is not revoked. Whether
// the operator wants it, [Policy.Admit] says.
func (p Peer) MayEnroll() error { return p.among(Candidate) }

// MayRenew is nil for a device whose certificate is valid, or is over for less
// than [RenewGrace].
func (p Peer) MayRenew() error { return p.among(Device, Expired) }

func (p Peer) among(standings ...Standing) error {
	if slices.Contains(standings, p.Standing) {
		return nil
	}
	switch p.Standing {
	case Anonymous:
		return refuse(ReasonAnonymous, "no client certificate was shown")
	case Candidate:
		return refuse(ReasonUnenrolled, "device %s has no certificate of this fleet", p.Device)
	case Device:
		return refuse(ReasonEnrolled, "device %s showed its certificate, not its key alone", p.Device)
	case Expired:
		return refuse(ReasonExpired, "certificate of device %s ended on %s", p.Device, p.NotAfter.Format(time.DateOnly))
	case Lapsed:
		return refuse(ReasonLapsed, "certificate of device %s ended on %s, more than a year ago", p.Device, p.NotAfter.Format(time.DateOnly))
	case Revoked:
		return refuse(ReasonRevoked, "device %s, or its certificate, is revoked", p.Device)
	default:
		return refuse(ReasonForeign, "client certificate is not of this fleet")
	}
}

// GateConfig is copied by [NewGate] and never changed afterwards.
type GateConfig struct {
	Roots   []*x509.Certificate // required; the fleet's, the present and former ones
	Revoked *Revocations        // required
	Time    func() time.Time    // default time.Now, as in tls.Config
}

// Gate judges client certificates, on the fleet's side.
type Gate struct {
	roots   *x509.CertPool
	revoked *Revocations
	now     func() time.Time
}

// NewGate makes a gate.
func NewGate(cfg GateConfig) (*Gate, error) {
	if len(cfg.Roots) == 0 || cfg.Revoked == nil {
		return nil, errors.New("make gate: roots or revocations are missing")
	}
	g := &Gate{roots: poolOf(cfg.Roots), revoked: cfg.Revoked, now: cfg.Time}
	if g.now == nil {
		g.now = time.Now
	}
	return g, nil
}

// TLS is the side of a server that lets these standings in: for a broker
// [Device]; for the device port [Candidate], [Device] and [Expired], and those
// that it wants to tell in words why they may not, for TLS says no more than
// "bad certificate". Whom a handler deals with, it asks [Gate.Judge].
//
// Each handshake proves the key anew: there are no session tickets.
func (g *Gate) TLS(server func(*tls.ClientHelloInfo) (*tls.Certificate, error), let ...Standing) *tls.Config {
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         server,
		ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection judges it
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return g.Judge(cs).among(let...)
		},
	}
	if slices.Contains(let, Anonymous) {
		cfg.ClientAuth = tls.RequestClientCert
	}
	return cfg
}

// Judge tells who is at the other end of a connection whose handshake is done.
func (g *Gate) Judge(cs tls.ConnectionState) Peer {
	chain := cs.PeerCertificates
	switch {
	case len(chain) == 0:
		return Peer{Standing: Anonymous}
	case len(chain) > maxChain || cs.Version < tls.VersionTLS13:
		return Peer{Standing: Foreign}
	}
	leaf := chain[0]
	device, err := named(leaf.Subject, leaf.PublicKey)
	if err != nil {
		return Peer{Standing: Foreign}
	}
	if len(chain) == 1 && signedByItself(leaf) {
		peer := Peer{Standing: Candidate, Device: device}
		if g.revoked.Device(device) {
			peer.Standing = Revoked
		}
		return peer
	}
	now := g.now()
	ways, err := leaf.Verify(x509.VerifyOptions{
		Roots:         g.roots,
		Intermediates: poolOf(chain[1:]),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		// Whether it is over is judged below. That it has not begun is no
		// fault of the box: this server's clock is behind another's.
		CurrentTime: earlier(later(now, leaf.NotBefore), leaf.NotAfter),
	})
	if err != nil {
		return Peer{Standing: Foreign}
	}
	peer := Peer{Standing: Device, Device: device, Cert: CertIDOf(leaf), NotAfter: leaf.NotAfter}
	switch {
	case g.revoked.Device(device) || slices.ContainsFunc(slices.Concat(ways...), g.revoked.certificate):
		peer.Standing = Revoked
	case now.After(leaf.NotAfter.Add(RenewGrace)):
		peer.Standing = Lapsed
	case now.After(leaf.NotAfter):
		peer.Standing = Expired
	}
	return peer
}

func signedByItself(cert *x509.Certificate) bool {
	return cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}

// Revocations are the devices and certificates that no handshake lets in. The
// zero value revokes nothing; all methods may be called from any goroutine. The
// caller stores them, and gives every replica the same.
//
// They are asked at handshakes: who revokes also ends the connections that are
// open. Devices stay revoked for good. A certificate may be dropped [RenewGrace]
// after its end; an issuing key's certificate when all it signed may be.
type Revocations struct {
	mu      sync.RWMutex
	devices map[croft.DeviceID]bool // guarded by mu
	certs   map[CertID]bool         // guarded by mu
}

// Set replaces all that is revoked.
func (r *Revocations) Set(devices []croft.DeviceID, certs []CertID) {
	d, c := setOf(devices), setOf(certs)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.devices, r.certs = d, c
}

// Add revokes more.
func (r *Revocations) Add(devices []croft.DeviceID, certs []CertID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.devices == nil {
		r.devices, r.certs = map[croft.DeviceID]bool{}, map[CertID]bool{}
	}
	for _, d := range devices {
		r.devices[d] = true
	}
	for _, c := range certs {
		r.certs[c] = true
	}
}

// Device tells whether a device is revoked.
func (r *Revocations) Device(id croft.DeviceID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.devices[id]
}

// Cert tells whether a certificate is revoked.
func (r *Revocations) Cert(id CertID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.certs[id]
}

func (r *Revocations) certificate(cert *x509.Certificate) bool { return r.Cert(CertIDOf(cert)) }

func setOf[T comparable](all []T) map[T]bool {
	set := make(map[T]bool, len(all))
	for _, one := range all {
		set[one] = true
	}
	return set
}
