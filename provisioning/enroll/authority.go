package enroll

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
)

// Authority is the fleet's power to issue certificates: a root and an issuing
// key. It does not change; all methods may be called from any goroutine.
type Authority struct {
	root       *x509.Certificate
	rootKey    *ecdsa.PrivateKey // nil if it is kept elsewhere
	issuing    *x509.Certificate
	issuingKey *ecdsa.PrivateKey
}

// NewAuthority draws the keys of a new fleet. The name is for people.
func NewAuthority(fleet string, now time.Time) (*Authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "croft fleet root", Organization: organization(fleet)},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(RootLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
	}
	root, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the fleet's root: %w", err)
	}
	return issuedBy(root, key, now)
}

func organization(fleet string) []string {
	if fleet == "" {
		return nil
	}
	return []string{fleet}
}

// issuedBy is an authority with a new issuing key.
func issuedBy(root *x509.Certificate, rootKey *ecdsa.PrivateKey, now time.Time) (*Authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "croft fleet issuing " + now.UTC().Format(time.DateOnly), Organization: root.Subject.Organization},
		NotBefore:             later(now.Add(-Backdate), root.NotBefore),
		NotAfter:              earlier(now.Add(IssuingLife), root.NotAfter),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, root, key.Public(), rootKey)
	if err != nil {
		return nil, fmt.Errorf("make the fleet's issuing key: %w", err)
	}
	return &Authority{root: root, rootKey: rootKey, issuing: cert, issuingKey: key}, nil
}

// issuingOverlap is how long before its end an issuing key is replaced. What it
// signed stays good: certificates carry their issuer with them.
const issuingOverlap = 365 * day

// Rekeyed is the authority with a new issuing key if the present one has less
// than a year left, and a itself if not. The caller stores what is new, on one
// replica at a time, before it is used. Ask at each start and every day.
func (a *Authority) Rekeyed(now time.Time) (*Authority, error) {
	if now.Add(issuingOverlap).Before(a.issuing.NotAfter) {
		return a, nil
	}
	if a.rootKey == nil {
		return nil, &croft.Error{
			Kind:   croft.KindMissing,
			Err:    fmt.Errorf("make the fleet's next issuing key: the root key is not here, and the issuing key ends on %s", a.issuing.NotAfter.Format(time.DateOnly)),
			Remedy: "bring the fleet's root key",
		}
	}
	if now.After(a.root.NotAfter) {
		return nil, fmt.Errorf("make the fleet's next issuing key: the root ended on %s", a.root.NotAfter.Format(time.DateOnly))
	}
	return issuedBy(a.root, a.rootKey, now)
}

// Root is the root's certificate.
func (a *Authority) Root() *x509.Certificate { return a.root }

// Issuing is the issuing key's certificate.
func (a *Authority) Issuing() *x509.Certificate { return a.issuing }

// RootCertificate is what boxes pin: PEM, no secret.
func (a *Authority) RootCertificate() []byte { return certificatePEM(a.root) }

// PEM is what the fleet needs every day: both certificates and the issuing key.
// It is secret, and cannot make another issuing key.
func (a *Authority) PEM() ([]byte, error) {
	key, err := keyPEM(a.issuingKey)
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{certificatePEM(a.root), certificatePEM(a.issuing), key}, nil), nil
}

// RootPEM is the root key, to be kept offline. Behind the text of
// [Authority.PEM] it makes [ParseAuthority] whole again. It is empty if the
// authority is without.
func (a *Authority) RootPEM() ([]byte, error) {
	if a.rootKey == nil {
		return nil, nil
	}
	return keyPEM(a.rootKey)
}

// ParseAuthority reads [Authority.PEM], with or without [Authority.RootPEM].
func ParseAuthority(text []byte) (*Authority, error) {
	a, err := parseAuthority(text)
	if err != nil {
		return nil, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read the fleet's authority: %w", err), Remedy: "restore it from its backup"}
	}
	return a, nil
}

func parseAuthority(text []byte) (*Authority, error) {
	a := &Authority{}
	var keys []*ecdsa.PrivateKey
	err := eachPEM(text, func(block *pem.Block) error {
		switch block.Type {
		case pemCertificate:
			cert, err := x509.ParseCertificate(block.Bytes)
			switch {
			case err != nil:
				return fmt.Errorf("parse certificate: %w", err)
			case a.root == nil && isRoot(cert):
				a.root = cert
			case a.issuing == nil && a.root != nil && cert.IsCA && cert.CheckSignatureFrom(a.root) == nil:
				a.issuing = cert
			default:
				return fmt.Errorf("certificate %.64q does not belong here", cert.Subject.CommonName)
			}
		case pemPrivateKey:
			parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return fmt.Errorf("parse key: %w", err)
			}
			key, ok := parsed.(*ecdsa.PrivateKey)
			if !ok {
				return errors.New("there is a key that is not ECDSA")
			}
			keys = append(keys, key)
		default:
			return fmt.Errorf("there is a %.64q", block.Type)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case a.root == nil:
		return nil, errors.New("the root's certificate is missing")
	case a.issuing == nil:
		return nil, errors.New("the issuing key's certificate is missing")
	}
	for _, key := range keys {
		switch {
		case key.PublicKey.Equal(a.issuing.PublicKey):
			a.issuingKey = key
		case key.PublicKey.Equal(a.root.PublicKey):
			a.rootKey = key
		default:
			return nil, errors.New("there is a key without a certificate")
		}
	}
	if a.issuingKey == nil {
		return nil, errors.New("the issuing key is missing")
	}
	return a, nil
}

// Issued is a certificate that was made for a box.
type Issued struct {
	Device    croft.DeviceID
	ID        CertID
	NotBefore time.Time
	NotAfter  time.Time
	Chain     string // PEM: the box's certificate and the issuing one
}

// IssueDevice makes a certificate for the device key that peer proved in its
// handshake, which must be the CSR's. Whether the peer may have one, the caller
// has asked by [Peer.MayEnroll] and [Policy.Admit], or [Peer.MayRenew].
func (a *Authority) IssueDevice(csr []byte, peer Peer, now time.Time) (*Issued, error) {
	device, public, err := readCSR(csr)
	if err != nil {
		return nil, err
	}
	if device != peer.Device {
		return nil, refuse(ReasonKey, "certificate request is for %s, the handshake proved %s", device, peer.Device)
	}
	if peer.MayEnroll() != nil && peer.MayRenew() != nil {
		return nil, peer.MayRenew()
	}
	cert, err := a.leaf(&x509.Certificate{
		Subject:     pkix.Name{CommonName: string(device)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, public, now)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", device, err)
	}
	return &Issued{
		Device:    device,
		ID:        CertIDOf(cert),
		NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
		Chain:     string(certificatePEM(cert)) + string(certificatePEM(a.issuing)),
	}, nil
}

// ServerCertificate draws a key and makes a certificate for a server that boxes
// reach by these names or IP addresses.
func (a *Authority) ServerCertificate(now time.Time, hosts ...string) (*tls.Certificate, error) {
	if len(hosts) == 0 {
		return nil, errors.New("issue server certificate: no host is named")
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: hosts[0]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	cert, err := a.leaf(template, key.Public(), now)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate for %s: %w", hosts[0], err)
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw, a.issuing.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// Server is for tls.Config.GetCertificate: it makes a server certificate, and
// another when that is due, in memory only.
func (a *Authority) Server(hosts ...string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var present *tls.Certificate // guarded by mu
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if present != nil && !now.Before(present.Leaf.NotBefore) && now.Before(When(present.Leaf, now, 0)) {
			return present, nil
		}
		fresh, err := a.ServerCertificate(now, hosts...)
		if err != nil {
			return nil, err
		}
		present = fresh
		return present, nil
	}
}

// leaf signs a certificate that ends no later than its issuer.
func (a *Authority) leaf(template *x509.Certificate, public crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	if now.Before(a.issuing.NotBefore) || !now.Before(a.issuing.NotAfter) {
		return nil, &croft.Error{
			Kind:   croft.KindRefused,
			Err:    fmt.Errorf("the issuing key is for %s to %s, and it is %s", a.issuing.NotBefore.Format(time.DateOnly), a.issuing.NotAfter.Format(time.DateOnly), now.Format(time.DateOnly)),
			Remedy: "check the clock of the fleet's server, then make the next issuing key",
		}
	}
	template.NotBefore = later(now.Add(-Backdate), a.issuing.NotBefore)
	template.NotAfter = earlier(now.Add(LeafLife), a.issuing.NotAfter)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	return sign(template, a.issuing, public, a.issuingKey)
}

// sign makes a certificate; its serial number is drawn at random.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("draw key: %w", err)
	}
	return key, nil
}

func certificatePEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: cert.Raw})
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der}), nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
