package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

// TrustConfig is copied by [NewTrust] and never changed afterwards.
type TrustConfig struct {
	Roots []*x509.Certificate // required; pinned: by [ParseRoots]
	Host  string              // required; the fleet's name or IP address, which its certificate must be for

	// Clock is the box's clock, and whether it is known to be right (it was set
	// by NTP since the box started). Required. While it is not known, what it
	// says plays no part.
	Clock func() (now time.Time, known bool)

	// Floor is a time that is known to have passed: when this software was
	// built, or what [Trust.Floor] returned last. It keeps out certificates
	// that ended before, also while the clock is not known. Default: none.
	Floor func() time.Time
}

// Trust is what a box believes of its fleet. All methods may be called from any
// goroutine.
type Trust struct {
	cfg  TrustConfig
	pool *x509.CertPool
}

// NewTrust makes a box's trust.
func NewTrust(cfg TrustConfig) (*Trust, error) {
	if len(cfg.Roots) == 0 || cfg.Host == "" || cfg.Clock == nil {
		return nil, errors.New("trust the fleet: roots, host or clock is missing")
	}
	return &Trust{cfg: cfg, pool: poolOf(cfg.Roots)}, nil
}

// TLS is the side of a client that believes in the fleet alone, and shows what
// certificate returns: [Proof] to enrol, or what [Trust.Accept] made. It is
// asked anew for each connection.
func (t *Trust) TLS(certificate func() (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         t.cfg.Host,
		InsecureSkipVerify: true, // VerifyConnection does it, with the clock in mind
		VerifyConnection:   t.Check,
		// Whatever authorities the fleet names: the box has one key.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate() },
	}
}

// Check tells whether the other end of a connection is the fleet, as far as the
// clock allows to tell. It is asked in each handshake; ask it again about
// connections that are open when the clock becomes known, and end those that it
// refuses.
func (t *Trust) Check(cs tls.ConnectionState) error {
	chain := cs.PeerCertificates
	if len(chain) == 0 || len(chain) > maxChain {
		return refuse(ReasonServer, "fleet %s sent %d certificates", t.cfg.Host, len(chain))
	}
	leaf := chain[0]
	at, known := t.cfg.Clock()
	if !known {
		at = leaf.NotBefore // its issuers were valid then
		if floor := t.floor(); floor.After(at) {
			at = floor
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		DNSName:       t.cfg.Host,
		Roots:         t.pool,
		Intermediates: poolOf(chain[1:]),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		CurrentTime:   at,
	})
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return refuse(ReasonServerExpired, "certificate of fleet %s is for %s to %s, and here it is %s",
			t.cfg.Host, leaf.NotBefore.Format(time.DateOnly), leaf.NotAfter.Format(time.DateOnly), at.Format(time.DateOnly))
	}
	if err != nil {
		return refuse(ReasonServer, "trust fleet %s: %v", t.cfg.Host, err)
	}
	return nil
}

func (t *Trust) floor() time.Time {
	if t.cfg.Floor == nil {
		return time.Time{}
	}
	return t.cfg.Floor()
}

// Floor is the time that the fleet said on a connection, if that is inside the
// validity of the certificate by which it said so, and the former floor if it is
// later. The caller keeps it, and may set a clock by it that is behind. It does
// not make the clock known: what the fleet said may have been long on its way.
//
// The bound matters: a fleet whose clock was wrong for a day must not teach its
// boxes a floor that no certificate ever reaches.
func (t *Trust) Floor(cs tls.ConnectionState, said time.Time) (time.Time, error) {
	if err := t.Check(cs); err != nil {
		return time.Time{}, err
	}
	leaf := cs.PeerCertificates[0]
	if said.Before(leaf.NotBefore) || said.After(leaf.NotAfter) {
		return time.Time{}, refuse(ReasonServerExpired, "fleet %s says it is %s, which its certificate is not for",
			t.cfg.Host, said.UTC().Format(time.RFC3339))
	}
	return later(said.UTC(), t.floor()), nil
}

// Accept reads a certificate that the fleet issued, from its [Reply] or from
// where the box keeps it: it must be for the device key, and come from a pinned
// root. Its dates are not judged: a box may not know the time, and an expired
// certificate may renew.
func (t *Trust) Accept(chain string, key crypto.Signer) (*tls.Certificate, error) {
	certs, err := parseCertificates([]byte(chain))
	if err != nil {
		return nil, refuse(ReasonCertificate, "read the box's certificate: %v", err)
	}
	if len(certs) == 0 || len(certs) > maxChain {
		return nil, refuse(ReasonCertificate, "read the box's certificate: there are %d certificates", len(certs))
	}
	leaf := certs[0]
	if _, err := named(leaf.Subject, leaf.PublicKey); err != nil {
		return nil, refuse(ReasonCertificate, "read the box's certificate: %v", err)
	}
	if public, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, refuse(ReasonCertificate, "read the box's certificate: it is for another key, of device %s", leaf.Subject.CommonName)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots:         t.pool,
		Intermediates: poolOf(certs[1:]),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		CurrentTime:   leaf.NotBefore,
	})
	if err != nil {
		return nil, refuse(ReasonCertificate, "trust the box's certificate: %v", err)
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range certs {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}
