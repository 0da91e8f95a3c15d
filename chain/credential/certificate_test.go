package credential

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

func pair(t testing.TB, hosts ...string) Pair {
	t.Helper()
	p, err := NewCertificate(CertificateConfig{Owner: tenant.Address(), Hosts: hosts, NotBefore: now})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestACertificateIsWhatTheChainWants(t *testing.T) {
	p := pair(t, "provider.example.com", "192.0.2.7")
	c := p.Certificate.X509
	if c.Subject.CommonName != string(tenant.Address()) || c.Issuer.CommonName != string(tenant.Address()) {
		t.Errorf("subject %q, issuer %q", c.Subject.CommonName, c.Issuer.CommonName)
	}
	found := false
	for _, name := range c.Subject.Names {
		found = found || name.Type.Equal(oidAuthVersion) && name.Value == "v0.0.1"
	}
	if !found {
		t.Error("name 2.23.133.2.6 = v0.0.1 is missing")
	}
	if !bytes.HasPrefix(p.CertPEM, []byte("-----BEGIN CERTIFICATE-----")) || !bytes.HasPrefix(p.PublicPEM, []byte("-----BEGIN EC PUBLIC KEY-----")) {
		t.Errorf("PEM types are wrong: %s %s", p.CertPEM, p.PublicPEM)
	}
	if len(c.ExtKeyUsage) != 2 || len(c.DNSNames) != 1 || len(c.IPAddresses) != 1 || !c.NotAfter.Equal(now.Add(CertificateLifetime)) {
		t.Errorf("use %v, names %v %v, until %s", c.ExtKeyUsage, c.DNSNames, c.IPAddresses, c.NotAfter)
	}
	if client := pair(t); len(client.Certificate.X509.ExtKeyUsage) != 1 || client.Certificate.X509.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("a client's certificate is for %v", client.Certificate.X509.ExtKeyUsage)
	}
	if serial, ok := new(big.Int).SetString(p.Certificate.Serial, 10); !ok || serial.Cmp(c.SerialNumber) != 0 {
		t.Errorf("serial = %s", p.Certificate.Serial)
	}
}

// odd makes a certificate that breaks a rule.
func odd(t *testing.T, change func(*x509.Certificate), curve elliptic.Curve) (certPEM, publicPEM []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: string(tenant.Address())},
		NotBefore: now, NotAfter: now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	parent := *template
	change(template)
	if template.Subject.CommonName == string(tenant.Address()) {
		parent = *template
	}
	parent.SignatureAlgorithm = template.SignatureAlgorithm
	der, err := x509.CreateCertificate(rand.Reader, template, &parent, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: public})
}

func TestParseCertificateRefuses(t *testing.T) {
	good, other := pair(t), pair(t)
	p384, p384Public := odd(t, func(*x509.Certificate) {}, elliptic.P384())
	sha512, sha512Public := odd(t, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA512 }, elliptic.P256())
	foreign, foreignPublic := odd(t, func(c *x509.Certificate) { c.Subject.CommonName = string(stranger.Address()) }, elliptic.P256())
	nobody, nobodyPublic := odd(t, func(c *x509.Certificate) { c.Subject.CommonName = ""; c.Issuer.CommonName = "" }, elliptic.P256())
	for _, tc := range []struct {
		name         string
		cert, public []byte
		want         string
	}{
		{"another pair's public key", good.CertPEM, other.PublicPEM, "not the certificate's"},
		{"two certificates", append(bytes.Clone(good.CertPEM), other.CertPEM...), good.PublicPEM, "more follows"},
		{"a private key", good.KeyPEM, good.PublicPEM, `"CERTIFICATE"`},
		{"text", []byte("hello"), good.PublicPEM, "PEM block"},
		{"a public key under its modern name", good.CertPEM, bytes.ReplaceAll(good.PublicPEM, []byte("EC PUBLIC"), []byte("PUBLIC")), `"EC PUBLIC KEY"`},
		{"another curve", p384, p384Public, "P-256"},
		{"another digest", sha512, sha512Public, "ECDSA-SHA256"},
		{"another issuer", foreign, foreignPublic, "one account"},
		{"no account as subject", nobody, nobodyPublic, "issued by"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := ParseCertificate(tc.cert, tc.public); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("ParseCertificate = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestPeersMeetOverTLS(t *testing.T) {
	server, client := pair(t, "provider.example.com"), pair(t)
	serverTLS, err := server.TLS()
	if err != nil {
		t.Fatal(err)
	}
	clientTLS, err := client.TLS()
	if err != nil {
		t.Fatal(err)
	}
	var seen, shown Certificate
	left, right := net.Pipe()
	defer left.Close()
	defer right.Close()
	s := tls.Server(left, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{serverTLS}, ClientAuth: tls.RequestClientCert,
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			seen, err = PeerCertificate(cs.PeerCertificates, x509.ExtKeyUsageClientAuth, now)
			return err
		},
	})
	c := tls.Client(right, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{clientTLS}, ServerName: "mtls.provider.example.com",
		InsecureSkipVerify: true, // the chain, not a root, vouches: VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			shown, err = PeerCertificate(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, now)
			return err
		},
	})
	done := make(chan error, 1)
	go func() { done <- s.HandshakeContext(t.Context()) }()
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if seen.Serial != client.Certificate.Serial || shown.Serial != server.Certificate.Serial || seen.Owner != tenant.Address() {
		t.Errorf("the server saw %s, the client %s", seen.Serial, shown.Serial)
	}
}

func TestPeerCertificateRefuses(t *testing.T) {
	p := pair(t)
	c := p.Certificate.X509
	for _, tc := range []struct {
		name  string
		shown []*x509.Certificate
		use   x509.ExtKeyUsage
		at    time.Time
		want  string
	}{
		{"no certificate", nil, x509.ExtKeyUsageClientAuth, now, "0 certificates"},
		{"a chain of two", []*x509.Certificate{c, c}, x509.ExtKeyUsageClientAuth, now, "2 certificates"},
		{"a client's certificate on a server", []*x509.Certificate{c}, x509.ExtKeyUsageServerAuth, now, "not for this use"},
		{"one that has expired", []*x509.Certificate{c}, x509.ExtKeyUsageClientAuth, now.Add(366 * 24 * time.Hour), "valid from"},
		{"one from the future", []*x509.Certificate{c}, x509.ExtKeyUsageClientAuth, now.Add(-time.Hour), "valid from"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := PeerCertificate(tc.shown, tc.use, tc.at); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("PeerCertificate = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestNewCertificateWantsAnOwnerAndATime(t *testing.T) {
	if _, err := NewCertificate(CertificateConfig{NotBefore: now}); err == nil {
		t.Error("a certificate without an owner was made")
	}
	if _, err := NewCertificate(CertificateConfig{Owner: tenant.Address()}); err == nil {
		t.Error("a certificate without a begin was made")
	}
}

func FuzzParseCertificate(f *testing.F) {
	p := pair(f)
	f.Add(p.CertPEM, p.PublicPEM)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), p.PublicPEM)
	f.Fuzz(func(t *testing.T, cert, public []byte) {
		c, err := ParseCertificate(cert, public)
		if err == nil && (c.Owner == "" || c.Serial == "" || c.X509 == nil) {
			t.Error("an accepted certificate lacks its owner or serial")
		}
	})
}
