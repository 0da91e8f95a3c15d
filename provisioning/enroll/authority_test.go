package enroll_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// request signs a CSR of any shape.
func request(t testing.TB, key crypto.Signer, template x509.CertificateRequest) []byte {
	t.Helper()
	return must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &template, key))
}

func TestIssueDeviceTakesTheKeyAndNothingElse(t *testing.T) {
	fleet, b := newFleet(t), newBox(t)
	greedy := request(t, b.key, x509.CertificateRequest{
		Subject:        pkix.Name{CommonName: string(b.id), Organization: []string{"Example"}, SerialNumber: "1"},
		DNSNames:       []string{host},
		IPAddresses:    []net.IP{net.IPv4(192, 0, 2, 1)},
		EmailAddresses: []string{"root@fleet.example"},
		ExtraExtensions: []pkix.Extension{ // CA: true
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}},
		},
	})
	now := began.Add(day)
	issued := must[*enroll.Issued](t)(fleet.IssueDevice(greedy, enroll.Peer{Standing: enroll.Candidate, Device: b.id}, now))
	cert := must[*tls.Certificate](t)(trust(t, fleet, nowhere).Accept(issued.Chain, b.key)).Leaf
	if got, want := cert.Subject.String(), "CN="+string(b.id); got != want {
		t.Errorf("subject = %s, want %s", got, want)
	}
	if cert.IsCA || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses)+len(cert.URIs) > 0 {
		t.Errorf("certificate says more than the key: CA %v, %v %v %v", cert.IsCA, cert.DNSNames, cert.IPAddresses, cert.EmailAddresses)
	}
	if cert.KeyUsage != x509.KeyUsageDigitalSignature || fmt.Sprint(cert.ExtKeyUsage) != fmt.Sprint([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("usages = %v, %v", cert.KeyUsage, cert.ExtKeyUsage)
	}
	if !cert.NotBefore.Equal(now.Add(-enroll.Backdate)) || !cert.NotAfter.Equal(now.Add(90*day)) {
		t.Errorf("valid %v to %v", cert.NotBefore, cert.NotAfter)
	}
	if issued.ID != enroll.CertIDOf(cert) || len(issued.ID) < 30 || issued.Device != b.id ||
		!issued.NotBefore.Equal(cert.NotBefore) || !issued.NotAfter.Equal(cert.NotAfter) {
		t.Errorf("issued = %+v", issued)
	}
}

func TestIssueDeviceRefuses(t *testing.T) {
	fleet, b, victim := newFleet(t), newBox(t), newBox(t)
	named := func(b box) x509.CertificateRequest {
		return x509.CertificateRequest{Subject: pkix.Name{CommonName: string(b.id)}}
	}
	changed := bytes.Clone(b.csr)
	changed[len(changed)-1] ^= 1
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	long := named(b)
	long.DNSNames = []string{strings.Repeat("a", enroll.MaxCSR)}
	peer := enroll.Peer{Standing: enroll.Candidate, Device: b.id}
	for _, tc := range []struct {
		name string
		csr  []byte
		peer enroll.Peer
		want enroll.Reason
	}{
		{"nothing", nil, peer, enroll.ReasonCSR},
		{"no CSR", []byte("hello"), peer, enroll.ReasonCSR},
		{"a CSR and more", append(bytes.Clone(b.csr), 0), peer, enroll.ReasonCSR},
		{"a CSR under another's name", request(t, b.key, named(victim)), peer, enroll.ReasonCSR},
		{"a CSR under no name", request(t, b.key, x509.CertificateRequest{}), peer, enroll.ReasonCSR},
		{"a CSR for another curve", request(t, newKey(t, elliptic.P384()), named(b)), peer, enroll.ReasonCSR},
		{"a CSR for RSA", request(t, rsaKey, named(b)), peer, enroll.ReasonCSR},
		{"a CSR whose signature was changed", changed, peer, enroll.ReasonCSR},
		{"a long CSR", request(t, b.key, long), peer, enroll.ReasonCSR},
		{"a CSR cloned from another box", victim.csr, peer, enroll.ReasonKey},
		{"a CSR of nobody's handshake", b.csr, enroll.Peer{Standing: enroll.Anonymous}, enroll.ReasonKey},
		{"a revoked device", b.csr, enroll.Peer{Standing: enroll.Revoked, Device: b.id}, enroll.ReasonRevoked},
		{"a lapsed device", b.csr, enroll.Peer{Standing: enroll.Lapsed, Device: b.id}, enroll.ReasonLapsed},
		{"a foreign device", b.csr, enroll.Peer{Standing: enroll.Foreign, Device: b.id}, enroll.ReasonForeign},
	} {
		t.Run(tc.name, func(t *testing.T) {
			issued, err := fleet.IssueDevice(tc.csr, tc.peer, began)
			wantReason(t, err, tc.want)
			if issued != nil {
				t.Error("a certificate came with the error")
			}
		})
	}
	for name, now := range map[string]time.Time{
		"1970":                       time.Unix(0, 0),
		"the end of the issuing key": began.Add(enroll.IssuingLife),
	} {
		t.Run("a fleet whose clock says "+name, func(t *testing.T) {
			if _, err := fleet.IssueDevice(b.csr, peer, now); croft.KindOf(err) != croft.KindRefused {
				t.Errorf("err = %v", err)
			}
			if _, err := fleet.ServerCertificate(now, host); croft.KindOf(err) != croft.KindRefused {
				t.Errorf("err = %v", err)
			}
		})
	}
	if _, err := fleet.ServerCertificate(began); err == nil {
		t.Error("a server of no host")
	}
}

func TestKeysThatAreNoDevices(t *testing.T) {
	p384 := newKey(t, elliptic.P384())
	if _, err := enroll.Proof(p384); err == nil {
		t.Error("a proof of a P-384 key")
	}
	if _, err := enroll.NewCSR(p384); err == nil {
		t.Error("a CSR for a P-384 key")
	}
}

func TestAuthorityLives(t *testing.T) {
	fleet, b := newFleet(t), newBox(t)
	if got := fleet.Root(); !got.NotAfter.Equal(began.Add(20*365*day)) || got.MaxPathLen != 1 {
		t.Errorf("root ends %v, path of %d", got.NotAfter, got.MaxPathLen)
	}
	if got := fleet.Issuing(); !got.NotAfter.Equal(began.Add(5*365*day)) || !got.MaxPathLenZero {
		t.Errorf("issuing key ends %v, path of %d", got.NotAfter, got.MaxPathLen)
	}
	same := must[*enroll.Authority](t)(fleet.Rekeyed(began.Add(4*365*day - time.Hour)))
	if same != fleet {
		t.Error("replaced an issuing key with more than a year left")
	}
	late := began.Add(4*365*day + time.Hour)
	next := must[*enroll.Authority](t)(fleet.Rekeyed(late))
	if next == fleet || !next.Root().Equal(fleet.Root()) || next.Issuing().Equal(fleet.Issuing()) {
		t.Fatal("kept an issuing key with less than a year left")
	}

	// Both keys' certificates are good at once, for boxes and for the fleet that know the root alone.
	tr, g := trust(t, fleet, known(late)), gate(t, fleet, &enroll.Revocations{}, late)
	for name, a := range map[string]*enroll.Authority{"former": fleet, "next": next} {
		for serverName, s := range map[string]*enroll.Authority{"former": fleet, "next": next} {
			server := must[*tls.Certificate](t)(s.ServerCertificate(late, host))
			cs, ss := handshake(t, tr.TLS(showing(b.certificate(t, a, late))), g.TLS(serving(server), enroll.Device))
			if cs.err != nil || ss.err != nil {
				t.Errorf("box of the %s key at server of the %s: %v, %v", name, serverName, cs.err, ss.err)
			}
		}
	}

	// At the very end certificates are cut short, so that they never outlive their issuer.
	last := fleet.Issuing().NotAfter.Add(-day)
	if got := b.certificate(t, fleet, last).Leaf.NotAfter; !got.Equal(fleet.Issuing().NotAfter) {
		t.Errorf("certificate ends %v, its issuer %v", got, fleet.Issuing().NotAfter)
	}
	end := fleet.Root().NotAfter
	old := must[*enroll.Authority](t)(fleet.Rekeyed(end.Add(-day)))
	if got := old.Issuing().NotAfter; !got.Equal(end) {
		t.Errorf("issuing key ends %v, its root %v", got, end)
	}
	if _, err := fleet.Rekeyed(end.Add(day)); err == nil {
		t.Error("a root that is over made an issuing key")
	}
}

func TestAuthorityIsStored(t *testing.T) {
	fleet, b := newFleet(t), newBox(t)
	daily, offline := must[[]byte](t)(fleet.PEM()), must[[]byte](t)(fleet.RootPEM())
	late := began.Add(4*365*day + time.Hour)

	without := must[*enroll.Authority](t)(enroll.ParseAuthority(daily))
	b.certificate(t, without, began)
	if got := must[[]byte](t)(without.RootPEM()); got != nil {
		t.Errorf("the daily part has the root key: %d bytes", len(got))
	}
	if _, err := without.Rekeyed(late); croft.KindOf(err) != croft.KindMissing {
		t.Errorf("rekeyed without the root key: %v", err)
	}
	whole := must[*enroll.Authority](t)(enroll.ParseAuthority(append(bytes.Clone(daily), offline...)))
	next := must[*enroll.Authority](t)(whole.Rekeyed(late))
	again := must[*enroll.Authority](t)(enroll.ParseAuthority(must[[]byte](t)(next.PEM())))
	if !again.Issuing().Equal(next.Issuing()) || !again.Root().Equal(fleet.Root()) {
		t.Error("what was stored is not what was made")
	}

	foreign := must[[]byte](t)(newFleet(t).PEM())
	for name, text := range map[string][]byte{
		"nothing":                  nil,
		"the root alone":           fleet.RootCertificate(),
		"no issuing key":           bytes.Join(bytes.SplitAfter(daily, []byte("-----END CERTIFICATE-----\n"))[:2], nil),
		"the root key alone":       offline,
		"two fleets":               append(bytes.Clone(daily), foreign...),
		"a root and another's key": append(bytes.Clone(fleet.RootCertificate()), foreign...),
		"a key of nobody":          append(bytes.Clone(daily), must[[]byte](t)(newFleet(t).RootPEM())...),
		"a block of another kind":  bytes.ReplaceAll(daily, []byte("PRIVATE KEY"), []byte("SECRET")),
		"a damaged key":            []byte(strings.Replace(string(daily), "PRIVATE KEY-----\nM", "PRIVATE KEY-----\nN", 1)),
		"a damaged certificate":    []byte(strings.Replace(string(daily), "CERTIFICATE-----\nM", "CERTIFICATE-----\nN", 1)),
		"more than anybody wants":  bytes.Repeat(daily, 60),
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			if _, err := enroll.ParseAuthority(text); croft.KindOf(err) != croft.KindInvalid {
				t.Errorf("err = %v", err)
			}
		})
	}
}

func TestParseRoots(t *testing.T) {
	fleet, other := newFleet(t), newFleet(t)
	both := append(fleet.RootCertificate(), other.RootCertificate()...)
	roots := must[[]*x509.Certificate](t)(enroll.ParseRoots(both))
	if len(roots) != 2 || !roots[0].Equal(fleet.Root()) || !roots[1].Equal(other.Root()) {
		t.Errorf("roots = %v", roots)
	}
	issued := must[*enroll.Issued](t)(func() (*enroll.Issued, error) {
		b := newBox(t)
		return fleet.IssueDevice(b.csr, enroll.Peer{Standing: enroll.Candidate, Device: b.id}, began)
	}())
	for name, text := range map[string]string{
		"nothing":               "",
		"a box's chain":         issued.Chain,
		"the issuing key's":     issued.Chain[strings.LastIndex(issued.Chain, "-----BEGIN"):],
		"the fleet's own store": string(must[[]byte](t)(fleet.PEM())),
	} {
		t.Run(name+" is no root", func(t *testing.T) {
			if _, err := enroll.ParseRoots([]byte(text)); croft.KindOf(err) != croft.KindInvalid {
				t.Errorf("err = %v", err)
			}
		})
	}
}

func FuzzCSR(f *testing.F) {
	fleet, b := newFleet(f), newBox(f)
	f.Add(b.csr)
	f.Add([]byte{})
	f.Add(request(f, b.key, x509.CertificateRequest{DNSNames: []string{host}}))
	f.Add(request(f, newKey(f, elliptic.P384()), x509.CertificateRequest{}))
	f.Fuzz(func(t *testing.T, csr []byte) {
		issued, err := fleet.IssueDevice(csr, enroll.Peer{Standing: enroll.Candidate, Device: b.id}, began)
		if err != nil {
			if r := enroll.ReasonOf(err); r != enroll.ReasonCSR && r != enroll.ReasonKey {
				t.Fatalf("reason = %q: %v", r, err)
			}
			return
		}
		cert, err := trust(t, fleet, nowhere).Accept(issued.Chain, b.key)
		if err != nil || cert.Leaf.Subject.String() != "CN="+string(b.id) || cert.Leaf.IsCA || len(cert.Leaf.DNSNames) > 0 {
			t.Fatalf("issued %v (%v)", cert, err)
		}
	})
}
