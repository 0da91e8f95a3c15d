package credential

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/croft-cloud/croft/chain/account"
)

// The PEM blocks that the chain accepts. The second is PKIX inside, whatever its
// name says.
const (
	pemCertificate = "CERTIFICATE"
	pemPublicKey   = "EC PUBLIC KEY"
	pemPrivateKey  = "PRIVATE KEY"
)

// CertificateLifetime is how long a certificate made without other wishes is
// valid.
const CertificateLifetime = 365 * 24 * time.Hour

// oidAuthVersion is the name attribute that tells the version of this scheme,
// and authVersion its value.
var oidAuthVersion = asn1.ObjectIdentifier{2, 23, 133, 2, 6}

const authVersion = "v0.0.1"

// CertificateConfig says what certificate to make.
type CertificateConfig struct {
	Owner     account.Address // required; the account that will publish it
	Hosts     []string        // names or IP addresses of a provider's gateway; none for a client
	NotBefore time.Time       // required; usually now
	Lifetime  time.Duration   // default CertificateLifetime
}

// Pair is a new certificate, ready to publish, with its secret key.
type Pair struct {
	Certificate Certificate
	CertPEM     []byte // for MsgCreateCertificate.cert
	PublicPEM   []byte // for MsgCreateCertificate.pubkey
	KeyPEM      []byte // PKCS #8; secret: mode 0600, and never on the chain
}

// NewCertificate draws a P-256 key and makes a self-signed certificate of it:
// for a client, or with Hosts for a gateway as well.
func NewCertificate(cfg CertificateConfig) (Pair, error) {
	pair, err := newCertificate(cfg)
	if err != nil {
		return Pair{}, fmt.Errorf("make certificate of %s: %w", cfg.Owner, err)
	}
	return pair, nil
}

func newCertificate(cfg CertificateConfig) (Pair, error) {
	if _, err := account.ParseAddress(string(cfg.Owner)); err != nil {
		return Pair{}, err
	}
	if cfg.NotBefore.IsZero() {
		return Pair{}, errors.New("begin of validity is missing")
	}
	if cfg.Lifetime == 0 {
		cfg.Lifetime = CertificateLifetime
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return Pair{}, err
	}
	serial.Add(serial, big.NewInt(1)) // X.509 wants a positive one
	name := pkix.Name{
		CommonName: string(cfg.Owner),
		ExtraNames: []pkix.AttributeTypeAndValue{{Type: oidAuthVersion, Value: authVersion}},
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: name, Issuer: name,
		NotBefore: cfg.NotBefore.UTC().Truncate(time.Second), NotAfter: cfg.NotBefore.UTC().Truncate(time.Second).Add(cfg.Lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if len(cfg.Hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, host := range cfg.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Pair{}, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return Pair{}, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	pair := Pair{
		CertPEM:   pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}),
		PublicPEM: pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: public}),
		KeyPEM:    pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: private}),
	}
	pair.Certificate, err = ParseCertificate(pair.CertPEM, pair.PublicPEM)
	return pair, err
}

// TLS is the pair for a [tls.Config].
func (p Pair) TLS() (tls.Certificate, error) {
	c, err := tls.X509KeyPair(p.CertPEM, p.KeyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("use certificate %s: %w", p.Certificate.Serial, err)
	}
	return c, nil
}

// Certificate is what the chain and a peer read in a certificate.
type Certificate struct {
	Owner  account.Address // its subject, and its issuer
	Serial string          // decimal; with Owner its id on the chain
	X509   *x509.Certificate
}

// ValidAt reports whether t lies within the certificate's dates. The chain does
// not remove what has expired.
func (c Certificate) ValidAt(t time.Time) bool {
	return !t.Before(c.X509.NotBefore) && !t.After(c.X509.NotAfter)
}

// ParseCertificate reads what MsgCreateCertificate carries and checks all that
// the chain checks, dates apart: one PEM block each, self-signed by the public
// key given, subject and issuer the same account.
func ParseCertificate(certPEM, publicPEM []byte) (Certificate, error) {
	der, err := onlyBlock(certPEM, pemCertificate)
	if err != nil {
		return Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	public, err := onlyBlock(publicPEM, pemPublicKey)
	if err != nil {
		return Certificate{}, fmt.Errorf("public key: %w", err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	if !bytes.Equal(parsed.RawSubjectPublicKeyInfo, public) {
		return Certificate{}, errors.New("public key is not the certificate's")
	}
	return check(parsed)
}

func onlyBlock(raw []byte, want string) ([]byte, error) {
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != want {
		return nil, fmt.Errorf("want a PEM block %q", want)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("more follows after the PEM block")
	}
	return block.Bytes, nil
}

// check applies the rules that need nothing but the certificate.
func check(c *x509.Certificate) (Certificate, error) {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return Certificate{}, errors.New("certificate: want an ECDSA key on P-256")
	}
	if c.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return Certificate{}, fmt.Errorf("certificate is signed with %s: want ECDSA-SHA256", c.SignatureAlgorithm)
	}
	if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return Certificate{}, fmt.Errorf("certificate is not self-signed: %w", err)
	}
	if c.Subject.CommonName != c.Issuer.CommonName {
		return Certificate{}, fmt.Errorf("certificate of %q is issued by %q: want one account", c.Subject.CommonName, c.Issuer.CommonName)
	}
	owner, err := account.ParseAddress(c.Subject.CommonName)
	if err != nil {
		return Certificate{}, fmt.Errorf("certificate subject: %w", err)
	}
	if c.SerialNumber.Sign() <= 0 {
		return Certificate{}, errors.New("certificate serial number is not positive")
	}
	return Certificate{Owner: owner, Serial: c.SerialNumber.String(), X509: c}, nil
}

// PeerCertificate checks what the other side of a TLS connection has shown:
// exactly one certificate, self-signed by one account, for this use
// ([x509.ExtKeyUsageServerAuth] or [x509.ExtKeyUsageClientAuth]), valid at now.
// The caller then asks the chain whether (Owner, Serial) is valid there, and
// compares Owner with whom it meant to reach; without both, the peer is anyone.
func PeerCertificate(shown []*x509.Certificate, use x509.ExtKeyUsage, now time.Time) (Certificate, error) {
	if len(shown) != 1 {
		return Certificate{}, fmt.Errorf("peer shows %d certificates: want its own, alone", len(shown))
	}
	c, err := check(shown[0])
	if err != nil {
		return Certificate{}, err
	}
	if !c.ValidAt(now) {
		return Certificate{}, fmt.Errorf("certificate %s of %s is valid from %s to %s only", c.Serial, c.Owner,
			c.X509.NotBefore.Format(time.RFC3339), c.X509.NotAfter.Format(time.RFC3339))
	}
	for _, has := range c.X509.ExtKeyUsage {
		if has == use || has == x509.ExtKeyUsageAny {
			return c, nil
		}
	}
	return Certificate{}, fmt.Errorf("certificate %s of %s is not for this use", c.Serial, c.Owner)
}
