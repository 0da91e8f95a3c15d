package enroll_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

const day = 24 * time.Hour

// began is when the fleet of the tests began.
var began = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

const host = "fleet.example"

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func wantReason(t testing.TB, err error, want enroll.Reason) {
	t.Helper()
	if got := enroll.ReasonOf(err); got != want || err == nil {
		t.Errorf("reason = %q (%v), want %q", got, err, want)
	}
}

// opaque is a key that can only sign, as one in a TPM.
type opaque struct{ key *ecdsa.PrivateKey }

func (o opaque) Public() crypto.PublicKey { return o.key.Public() }

func (o opaque) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return o.key.Sign(random, digest, opts)
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	return must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(curve, rand.Reader))
}

// box is a device key with what belongs to it.
type box struct {
	key opaque
	id  croft.DeviceID
	csr []byte
}

func newBox(t testing.TB) box {
	t.Helper()
	b := box{key: opaque{newKey(t, elliptic.P256())}}
	b.id = must[croft.DeviceID](t)(enroll.DeviceOf(b.key.Public()))
	b.csr = must[[]byte](t)(enroll.NewCSR(b.key))
	return b
}

func (b box) proof(t testing.TB) *tls.Certificate {
	t.Helper()
	return must[*tls.Certificate](t)(enroll.Proof(b.key))
}

// certificate is one that a fleet issued to the box.
func (b box) certificate(t testing.TB, a *enroll.Authority, at time.Time) *tls.Certificate {
	t.Helper()
	issued := must[*enroll.Issued](t)(a.IssueDevice(b.csr, enroll.Peer{Standing: enroll.Candidate, Device: b.id}, at))
	return must[*tls.Certificate](t)(trust(t, a, nowhere).Accept(issued.Chain, b.key))
}

func newFleet(t testing.TB) *enroll.Authority {
	t.Helper()
	return must[*enroll.Authority](t)(enroll.NewAuthority("Example", began))
}

func gate(t testing.TB, a *enroll.Authority, revoked *enroll.Revocations, now time.Time) *enroll.Gate {
	t.Helper()
	return must[*enroll.Gate](t)(enroll.NewGate(enroll.GateConfig{
		Roots: []*x509.Certificate{a.Root()}, Revoked: revoked, Time: func() time.Time { return now },
	}))
}

// nowhere is a clock that nobody set.
func nowhere() (time.Time, bool) { return time.Unix(0, 0), false }

func unknown(at time.Time) func() (time.Time, bool) {
	return func() (time.Time, bool) { return at, false }
}

func known(at time.Time) func() (time.Time, bool) {
	return func() (time.Time, bool) { return at, true }
}

func trust(t testing.TB, a *enroll.Authority, clock func() (time.Time, bool)) *enroll.Trust {
	t.Helper()
	return must[*enroll.Trust](t)(enroll.NewTrust(enroll.TrustConfig{
		Roots: []*x509.Certificate{a.Root()}, Host: host, Clock: clock,
	}))
}

func showing(cert *tls.Certificate) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) { return cert, nil }
}

func serving(cert *tls.Certificate) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }
}

var everybody = []enroll.Standing{
	enroll.Anonymous, enroll.Foreign, enroll.Candidate, enroll.Device, enroll.Expired, enroll.Lapsed, enroll.Revoked,
}

// end is one side of a handshake that is over.
type end struct {
	cs  tls.ConnectionState
	err error
}

// handshake makes two sides meet. The client's error is also the one that it
// reads afterwards: in TLS 1.3 it is done before the server has judged it.
func handshake(t testing.TB, client, server *tls.Config) (c, s end) {
	t.Helper()
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan end, 1)
	go func() {
		far, err := listener.Accept()
		if err != nil {
			done <- end{err: err}
			return
		}
		defer far.Close()
		conn := tls.Server(far, server)
		if err = conn.HandshakeContext(ctx); err == nil {
			_, err = conn.Write([]byte{1})
		}
		done <- end{conn.ConnectionState(), err}
	}()
	near := must[net.Conn](t)((&net.Dialer{}).DialContext(ctx, "tcp", listener.Addr().String()))
	defer near.Close()
	conn := tls.Client(near, client)
	err := conn.HandshakeContext(ctx)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	near.Close()
	return end{conn.ConnectionState(), err}, <-done
}

func TestBoxEnrolsConnectsAndRenews(t *testing.T) {
	fleet, b := newFleet(t), newBox(t)
	now := began.Add(10 * day)
	tr := trust(t, fleet, unknown(time.Unix(0, 0)))
	server := must[*tls.Certificate](t)(fleet.ServerCertificate(now, host))
	g := gate(t, fleet, &enroll.Revocations{}, now)
	port := g.TLS(serving(server), enroll.Candidate, enroll.Device, enroll.Expired)
	broker := g.TLS(serving(server), enroll.Device)

	// Enrol.
	c, s := handshake(t, tr.TLS(showing(b.proof(t))), port)
	check(t, c.err)
	check(t, s.err)
	peer := g.Judge(s.cs)
	if want := (enroll.Peer{Standing: enroll.Candidate, Device: b.id}); peer != want {
		t.Fatalf("peer = %+v, want %+v", peer, want)
	}
	check(t, peer.MayEnroll())
	wantReason(t, peer.MayRenew(), enroll.ReasonUnenrolled)
	wantReason(t, peer.MayConnect(), enroll.ReasonUnenrolled)
	sent := must[[]byte](t)(json.Marshal(enroll.Request{
		Version: enroll.Version, CSR: b.csr, Board: "uefi-x86", Release: "1.0.0", Claim: enroll.HashClaim("K7QM2XWP"),
	}))
	req := must[*enroll.Request](t)(enroll.ParseRequest(sent))
	in := must[*enroll.Admission](t)(enroll.Policy{FirstUse: enroll.FirstUseOpen}.Admit(t.Context(), req, peer.Device, newRegister(), now))
	if in.Device != b.id || in.Code != enroll.HashClaim("K7QM2XWP") || in.Proven {
		t.Errorf("admission = %+v", in)
	}
	issued := must[*enroll.Issued](t)(fleet.IssueDevice(req.CSR, peer, now))
	answer := must[[]byte](t)(json.Marshal(enroll.NewReply(issued, []string{"tls://fleet.example:8883"}, now)))
	reply := must[*enroll.Reply](t)(enroll.ParseReply(answer))
	cert := must[*tls.Certificate](t)(tr.Accept(reply.Certificate, b.key))
	if floor, err := tr.Floor(c.cs, reply.Time); err != nil || !floor.Equal(now) {
		t.Errorf("floor = %v, %v; want %v", floor, err, now)
	}

	// Connect.
	c, s = handshake(t, tr.TLS(showing(cert)), broker)
	check(t, c.err)
	check(t, s.err)
	peer = g.Judge(s.cs)
	if want := (enroll.Peer{Standing: enroll.Device, Device: b.id, Cert: issued.ID, NotAfter: issued.NotAfter}); peer != want {
		t.Fatalf("peer = %+v, want %+v", peer, want)
	}
	check(t, peer.MayConnect())
	wantReason(t, peer.MayEnroll(), enroll.ReasonEnrolled)

	// Renew, long after the end.
	late := issued.NotAfter.Add(enroll.RenewGrace)
	g = gate(t, fleet, &enroll.Revocations{}, late)
	server = must[*tls.Certificate](t)(fleet.ServerCertificate(late, host))
	_, s = handshake(t, tr.TLS(showing(cert)), g.TLS(serving(server), enroll.Expired))
	check(t, s.err)
	peer = g.Judge(s.cs)
	check(t, peer.MayRenew())
	wantReason(t, peer.MayConnect(), enroll.ReasonExpired)
	next := must[*enroll.Issued](t)(fleet.IssueDevice(must[[]byte](t)(enroll.NewCSR(b.key)), peer, late))
	if next.ID == issued.ID || next.Device != b.id || !next.NotAfter.Equal(late.Add(enroll.LeafLife)) {
		t.Errorf("renewed = %+v after %+v", next, issued)
	}
}

// signedWithStolenKey is a certificate for the box's key that the fleet's
// issuing key signed, and [enroll.Authority] never would.
func signedWithStolenKey(t testing.TB, a *enroll.Authority, b box, usage x509.ExtKeyUsage) *tls.Certificate {
	t.Helper()
	text := must[[]byte](t)(a.PEM())
	stolen, _ := pem.Decode(text[strings.Index(string(text), "-----BEGIN PRIVATE KEY"):])
	key := must[any](t)(x509.ParsePKCS8PrivateKey(stolen.Bytes))
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: string(b.id)}, DNSNames: []string{host},
		NotBefore: began, NotAfter: began.Add(day), ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, a.Issuing(), b.key.Public(), key))
	return &tls.Certificate{Certificate: [][]byte{der, a.Issuing().Raw}, PrivateKey: b.key}
}

func TestStandings(t *testing.T) {
	fleet, other := newFleet(t), newFleet(t)
	b := newBox(t)
	cert := b.certificate(t, fleet, began)
	leaf := cert.Leaf
	server := must[*tls.Certificate](t)(fleet.ServerCertificate(began, host))
	p384 := newKey(t, elliptic.P384())
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	selfSigned := func(name string, key crypto.Signer) *tls.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
			NotBefore: began, NotAfter: began.Add(day), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	// A leaf that claims to be signed by the issuing key, and is signed by a box.
	forged := func() *tls.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: string(b.id)},
			NotBefore: began, NotAfter: began.Add(day), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		attacker := newBox(t)
		parent := *fleet.Issuing()
		parent.PublicKey = attacker.key.Public()
		der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, &parent, b.key.Public(), attacker.key))
		return &tls.Certificate{Certificate: [][]byte{der, fleet.Issuing().Raw}, PrivateKey: b.key}
	}()
	// A box that signs for another box with its own certificate.
	underBox := func() *tls.Certificate {
		victim := newBox(t)
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: string(victim.id)},
			NotBefore: began, NotAfter: began.Add(day), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, leaf, victim.key.Public(), b.key))
		return &tls.Certificate{Certificate: [][]byte{der, leaf.Raw, fleet.Issuing().Raw}, PrivateKey: victim.key}
	}()
	long := &tls.Certificate{Certificate: slices.Concat(cert.Certificate, slices.Repeat(cert.Certificate[1:], 3)), PrivateKey: b.key}
	devices := func(ids ...croft.DeviceID) *enroll.Revocations {
		r := &enroll.Revocations{}
		r.Set(ids, nil)
		return r
	}
	certs := func(c *x509.Certificate) *enroll.Revocations {
		r := &enroll.Revocations{}
		r.Add(nil, []enroll.CertID{enroll.CertIDOf(c)})
		return r
	}
	year2099 := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name    string
		shows   *tls.Certificate
		revoked *enroll.Revocations
		now     time.Time
		want    enroll.Standing
		reason  enroll.Reason // of not being let in as a device; empty: is let in
	}{
		{"no certificate is anonymous", &tls.Certificate{}, nil, began, enroll.Anonymous, enroll.ReasonAnonymous},
		{"a proof makes a candidate", b.proof(t), nil, began, enroll.Candidate, enroll.ReasonUnenrolled},
		{"a proof has no dates", b.proof(t), nil, year2099, enroll.Candidate, enroll.ReasonUnenrolled},
		{"a proof of a revoked device is revoked", b.proof(t), devices(b.id), began, enroll.Revoked, enroll.ReasonRevoked},
		{"a proof under another's name is foreign", selfSigned(string(newBox(t).id), b.key), nil, began, enroll.Foreign, enroll.ReasonForeign},
		{"a proof of another curve is foreign", selfSigned(string(b.id), p384), nil, began, enroll.Foreign, enroll.ReasonForeign},
		{"a proof by RSA is foreign", selfSigned(string(b.id), rsaKey), nil, began, enroll.Foreign, enroll.ReasonForeign},
		{"a certificate makes a device", cert, nil, began, enroll.Device, ""},
		{"a certificate is good to its last second", cert, nil, leaf.NotAfter, enroll.Device, ""},
		{"a server whose clock is late takes a certificate that has not begun", cert, nil, began.Add(-30 * day), enroll.Device, ""},
		{"a certificate that is over may renew", cert, nil, leaf.NotAfter.Add(time.Second), enroll.Expired, enroll.ReasonExpired},
		{"a certificate that is over for a year may still renew", cert, nil, leaf.NotAfter.Add(enroll.RenewGrace), enroll.Expired, enroll.ReasonExpired},
		{"a certificate that is over for longer has lapsed", cert, nil, leaf.NotAfter.Add(enroll.RenewGrace + time.Second), enroll.Lapsed, enroll.ReasonLapsed},
		{"a certificate has lapsed after its root", cert, nil, year2099, enroll.Lapsed, enroll.ReasonLapsed},
		{"a revoked device is revoked", cert, devices(b.id), began, enroll.Revoked, enroll.ReasonRevoked},
		{"a revoked device does not renew either", cert, devices(b.id), leaf.NotAfter.Add(day), enroll.Revoked, enroll.ReasonRevoked},
		{"a revoked certificate is revoked", cert, certs(leaf), began, enroll.Revoked, enroll.ReasonRevoked},
		{"a revoked issuing key takes its certificates with it", cert, certs(fleet.Issuing()), began, enroll.Revoked, enroll.ReasonRevoked},
		{"another's revocation does not matter", cert, devices(newBox(t).id), began, enroll.Device, ""},
		{"a certificate of another fleet is foreign", b.certificate(t, other, began), nil, began, enroll.Foreign, enroll.ReasonForeign},
		{"a certificate without its issuer is foreign", &tls.Certificate{Certificate: cert.Certificate[:1], PrivateKey: b.key}, nil, began, enroll.Foreign, enroll.ReasonForeign},
		{"a long chain is foreign", long, nil, began, enroll.Foreign, enroll.ReasonForeign},
		{"a certificate for servers is foreign", signedWithStolenKey(t, fleet, b, x509.ExtKeyUsageServerAuth), nil, began, enroll.Foreign, enroll.ReasonForeign},
		{"a server's certificate is foreign", server, nil, began, enroll.Foreign, enroll.ReasonForeign},
		{"a forged certificate is foreign", forged, nil, began, enroll.Foreign, enroll.ReasonForeign},
		{"a box issues nothing", underBox, nil, began, enroll.Foreign, enroll.ReasonForeign},
	} {
		t.Run(tc.name, func(t *testing.T) {
			revoked := tc.revoked
			if revoked == nil {
				revoked = &enroll.Revocations{}
			}
			g := gate(t, fleet, revoked, tc.now)
			tr := trust(t, fleet, unknown(tc.now))
			c, s := handshake(t, tr.TLS(showing(tc.shows)), g.TLS(serving(server), everybody...))
			check(t, c.err)
			check(t, s.err)
			peer := g.Judge(s.cs)
			if peer.Standing != tc.want {
				t.Errorf("standing = %q, want %q", peer.Standing, tc.want)
			}
			if named := peer.Device == b.id; named != !slices.Contains([]enroll.Standing{enroll.Anonymous, enroll.Foreign}, tc.want) {
				t.Errorf("%s peer is called %q", peer.Standing, peer.Device)
			}

			c, s = handshake(t, tr.TLS(showing(tc.shows)), g.TLS(serving(server), enroll.Device))
			if tc.reason == "" {
				check(t, c.err)
				check(t, s.err)
				return
			}
			if c.err == nil {
				t.Error("broker let it in")
			}
			if tc.want != enroll.Anonymous { // whom TLS itself sends away
				wantReason(t, s.err, tc.reason)
			}
			wantReason(t, peer.MayConnect(), tc.reason)
		})
	}
}

func TestStolenCertificateNeedsItsKey(t *testing.T) {
	fleet, b, thief := newFleet(t), newBox(t), newBox(t)
	cert := b.certificate(t, fleet, began)
	for name, shown := range map[string]*tls.Certificate{"certificate": cert, "proof": b.proof(t)} {
		t.Run(name, func(t *testing.T) {
			stolen := &tls.Certificate{Certificate: shown.Certificate, PrivateKey: thief.key}
			server := must[*tls.Certificate](t)(fleet.ServerCertificate(began, host))
			c, s := handshake(t, trust(t, fleet, nowhere).TLS(showing(stolen)),
				gate(t, fleet, &enroll.Revocations{}, began).TLS(serving(server), everybody...))
			if c.err == nil || s.err == nil {
				t.Errorf("client %v, server %v", c.err, s.err)
			}
		})
	}
}

func TestEachHandshakeProvesTheKeyAnew(t *testing.T) {
	fleet, b := newFleet(t), newBox(t)
	server := must[*tls.Certificate](t)(fleet.ServerCertificate(began, host))
	client := trust(t, fleet, nowhere).TLS(showing(b.proof(t)))
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	port := gate(t, fleet, &enroll.Revocations{}, began).TLS(serving(server), enroll.Candidate)
	for range 2 {
		c, _ := handshake(t, client, port)
		check(t, c.err)
		if c.cs.DidResume {
			t.Error("a session went on without the key")
		}
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	fleet, b := newFleet(t), newBox(t)
	server := must[*tls.Certificate](t)(fleet.ServerCertificate(began, host))
	client := trust(t, fleet, nowhere).TLS(showing(b.proof(t)))
	client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	g := gate(t, fleet, &enroll.Revocations{}, began)
	c, s := handshake(t, client, g.TLS(serving(server), everybody...))
	if c.err == nil || s.err == nil {
		t.Errorf("client %v, server %v", c.err, s.err)
	}
	// Also on a server that made its TLS config itself.
	peer := g.Judge(tls.ConnectionState{Version: tls.VersionTLS12, PeerCertificates: []*x509.Certificate{b.proof(t).Leaf}})
	if peer.Standing != enroll.Foreign {
		t.Errorf("standing = %q", peer.Standing)
	}
}

func TestGateNeedsItsParts(t *testing.T) {
	if _, err := enroll.NewGate(enroll.GateConfig{Roots: []*x509.Certificate{newFleet(t).Root()}}); err == nil {
		t.Error("a gate without revocations")
	}
	if _, err := enroll.NewGate(enroll.GateConfig{Revoked: &enroll.Revocations{}}); err == nil {
		t.Error("a gate without roots")
	}
}

func TestRevocationsAreReplaced(t *testing.T) {
	var r enroll.Revocations
	r.Add([]croft.DeviceID{"a"}, []enroll.CertID{"1"})
	r.Add([]croft.DeviceID{"b"}, []enroll.CertID{"2"})
	if !r.Device("a") || !r.Device("b") || !r.Cert("1") || !r.Cert("2") {
		t.Error("what was added is not revoked")
	}
	r.Set([]croft.DeviceID{"b"}, nil)
	r.Add(nil, []enroll.CertID{"3"})
	if r.Device("a") || !r.Device("b") || r.Cert("1") || r.Cert("2") || !r.Cert("3") {
		t.Error("what was set is not what is revoked")
	}
}

func TestClocks(t *testing.T) {
	fleet, other, b := newFleet(t), newFleet(t), newBox(t)
	server := must[*tls.Certificate](t)(fleet.ServerCertificate(began, host))
	at := func(year int) time.Time { return time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC) }
	for _, tc := range []struct {
		name  string
		clock func() (time.Time, bool)
		floor time.Time
		want  enroll.Reason
	}{
		{"1970 that nobody set", unknown(time.Unix(0, 0)), time.Time{}, ""},
		{"before 1970", unknown(time.Time{}), time.Time{}, ""},
		{"2038 that nobody set", unknown(at(2038)), time.Time{}, ""},
		{"2099 that nobody set", unknown(at(2099)), time.Time{}, ""},
		{"a floor before the certificate", unknown(time.Unix(0, 0)), began.Add(-400 * day), ""},
		{"a floor inside the certificate", unknown(time.Unix(0, 0)), began.Add(60 * day), ""},
		{"a floor after the certificate", unknown(time.Unix(0, 0)), began.Add(91 * day), enroll.ReasonServerExpired},
		{"a right clock", known(began.Add(30 * day)), time.Time{}, ""},
		{"a right clock at the moment of issue", known(began), time.Time{}, ""},
		{"a right clock half an hour late", known(began.Add(-30 * time.Minute)), time.Time{}, ""},
		{"a right clock and a wrong floor", known(began.Add(30 * day)), at(2099), ""},
		{"1970 for certain", known(time.Unix(0, 0)), time.Time{}, enroll.ReasonServerExpired},
		{"the certificate is over for certain", known(began.Add(91 * day)), time.Time{}, enroll.ReasonServerExpired},
		{"2038 for certain", known(at(2038)), time.Time{}, enroll.ReasonServerExpired},
		{"2099 for certain", known(at(2099)), time.Time{}, enroll.ReasonServerExpired},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := must[*enroll.Trust](t)(enroll.NewTrust(enroll.TrustConfig{
				Roots: []*x509.Certificate{fleet.Root()}, Host: host, Clock: tc.clock, Floor: func() time.Time { return tc.floor },
			}))
			c, _ := handshake(t, tr.TLS(showing(b.proof(t))),
				gate(t, fleet, &enroll.Revocations{}, began).TLS(serving(server), enroll.Candidate))
			if tc.want == "" {
				check(t, c.err)
				return
			}
			wantReason(t, c.err, tc.want)
		})
	}
	// Whatever the clock says, only dates are forgiven.
	stranger := newBox(t)
	for _, tc := range []struct {
		name   string
		server *tls.Certificate
	}{
		{"another fleet of the same name", must[*tls.Certificate](t)(other.ServerCertificate(began, host))},
		{"another host of the fleet", must[*tls.Certificate](t)(fleet.ServerCertificate(began, "other.example"))},
		{"a box that plays the fleet", b.certificate(t, fleet, began)},
		{"a proof that plays the fleet", stranger.proof(t)},
		{"a server without its issuer", &tls.Certificate{Certificate: server.Certificate[:1], PrivateKey: server.PrivateKey}},
		{"a long chain", &tls.Certificate{
			Certificate: slices.Concat(server.Certificate, slices.Repeat(server.Certificate[1:], 3)), PrivateKey: server.PrivateKey,
		}},
		{"a certificate for clients", signedWithStolenKey(t, fleet, b, x509.ExtKeyUsageClientAuth)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, clock := range []func() (time.Time, bool){nowhere, unknown(at(2099)), known(began)} {
				c, _ := handshake(t, trust(t, fleet, clock).TLS(showing(b.proof(t))),
					gate(t, fleet, &enroll.Revocations{}, began).TLS(serving(tc.server), everybody...))
				wantReason(t, c.err, enroll.ReasonServer)
			}
		})
	}
}

func TestExpiryIsJudgedOnceTheClockIsKnown(t *testing.T) {
	fleet, b := newFleet(t), newBox(t)
	server := must[*tls.Certificate](t)(fleet.ServerCertificate(began, host))
	now, sure := time.Unix(0, 0), false
	tr := trust(t, fleet, func() (time.Time, bool) { return now, sure })
	late := began.Add(200 * day)
	c, _ := handshake(t, tr.TLS(showing(b.proof(t))), gate(t, fleet, &enroll.Revocations{}, late).TLS(serving(server), enroll.Candidate))
	check(t, c.err)
	check(t, tr.Check(c.cs))
	now, sure = late, true
	wantReason(t, tr.Check(c.cs), enroll.ReasonServerExpired)
}

func TestFloor(t *testing.T) {
	fleet, b := newFleet(t), newBox(t)
	server := must[*tls.Certificate](t)(fleet.ServerCertificate(began, host))
	built := began.Add(-100 * day)
	tr := must[*enroll.Trust](t)(enroll.NewTrust(enroll.TrustConfig{
		Roots: []*x509.Certificate{fleet.Root()}, Host: host, Clock: nowhere, Floor: func() time.Time { return built },
	}))
	c, _ := handshake(t, tr.TLS(showing(b.proof(t))), gate(t, fleet, &enroll.Revocations{}, began).TLS(serving(server), enroll.Candidate))
	check(t, c.err)
	for _, tc := range []struct {
		name string
		said time.Time
		want time.Time // zero: refused
	}{
		{"the fleet's time is taken", began.Add(day), began.Add(day)},
		{"1970 is not", time.Unix(0, 0), time.Time{}},
		{"2099 is not", time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), time.Time{}},
		{"a minute after the certificate is not", server.Leaf.NotAfter.Add(time.Minute), time.Time{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tr.Floor(c.cs, tc.said)
			if tc.want.IsZero() {
				wantReason(t, err, enroll.ReasonServerExpired)
				return
			}
			if err != nil || !got.Equal(tc.want) {
				t.Errorf("floor = %v, %v; want %v", got, err, tc.want)
			}
		})
	}
	t.Run("a floor never falls", func(t *testing.T) {
		built = began.Add(40 * day)
		if got, err := tr.Floor(c.cs, began.Add(day)); err != nil || !got.Equal(built) {
			t.Errorf("floor = %v, %v; want %v", got, err, built)
		}
	})
	t.Run("who is not the fleet says no time", func(t *testing.T) {
		_, err := trust(t, newFleet(t), nowhere).Floor(c.cs, began.Add(day))
		wantReason(t, err, enroll.ReasonServer)
	})
}

func TestAccept(t *testing.T) {
	fleet, other, b := newFleet(t), newFleet(t), newBox(t)
	chain := func(a *enroll.Authority, b box) string {
		return must[*enroll.Issued](t)(a.IssueDevice(b.csr, enroll.Peer{Standing: enroll.Candidate, Device: b.id}, began)).Chain
	}
	good := chain(fleet, b)
	leaf, _ := pem.Decode([]byte(good))
	server := must[*tls.Certificate](t)(fleet.ServerCertificate(began, host))
	pemOf := func(ders ...[]byte) string {
		var text strings.Builder
		for _, der := range ders {
			text.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		}
		return text.String()
	}
	tr := trust(t, fleet, nowhere)
	cert := must[*tls.Certificate](t)(tr.Accept(good, b.key))
	if len(cert.Certificate) != 2 || cert.Leaf.Subject.CommonName != string(b.id) {
		t.Errorf("certificate = %v", cert.Leaf.Subject)
	}
	for _, tc := range []struct{ name, chain string }{
		{"nothing", ""},
		{"no PEM", "hello"},
		{"no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
		{"a key", string(must[[]byte](t)(fleet.PEM()))},
		{"another box's", chain(fleet, newBox(t))},
		{"another fleet's", chain(other, b)},
		{"one without its issuer", pemOf(leaf.Bytes)},
		{"a server's", pemOf(server.Certificate...)},
		{"one for servers", pemOf(signedWithStolenKey(t, fleet, b, x509.ExtKeyUsageServerAuth).Certificate...)},
		{"the box's own proof", pemOf(b.proof(t).Certificate...)},
		{"a long chain", pemOf(slices.Repeat([][]byte{leaf.Bytes}, 5)...)},
		{"too much text", strings.Repeat(good, 60)},
	} {
		t.Run(tc.name+" is refused", func(t *testing.T) {
			got, err := tr.Accept(tc.chain, b.key)
			wantReason(t, err, enroll.ReasonCertificate)
			if got != nil {
				t.Error("a certificate came with the error")
			}
		})
	}
}

func TestTrustNeedsItsParts(t *testing.T) {
	roots := []*x509.Certificate{newFleet(t).Root()}
	for name, cfg := range map[string]enroll.TrustConfig{
		"roots": {Host: host, Clock: nowhere},
		"host":  {Roots: roots, Clock: nowhere},
		"clock": {Roots: roots, Host: host},
	} {
		if _, err := enroll.NewTrust(cfg); err == nil {
			t.Errorf("trust without %s", name)
		}
	}
}

func TestWhen(t *testing.T) {
	cert := &x509.Certificate{NotBefore: began, NotAfter: began.Add(90 * day)}
	first, last := began.Add(30*day), began.Add(33*day)
	hours := map[int]bool{}
	for seed := range uint64(500) {
		due := enroll.When(cert, began, seed)
		if due.Before(first) || due.After(last) {
			t.Fatalf("seed %d: due %v, want %v to %v", seed, due, first, last)
		}
		if again := enroll.When(cert, began.Add(29*day), seed); !again.Equal(due) {
			t.Fatalf("seed %d: due %v, then %v", seed, due, again)
		}
		hours[int(due.Sub(first)/time.Hour)] = true
	}
	if len(hours) < 60 {
		t.Errorf("500 boxes renew in %d of 72 hours", len(hours))
	}
	for _, now := range []time.Time{last, began.Add(89 * day), began.Add(1000 * day)} {
		if due := enroll.When(cert, now, 1); !due.Equal(now) {
			t.Errorf("at %v: due %v, want now", now, due)
		}
	}
	if due := enroll.When(cert, time.Unix(0, 0), 1); due.Before(first) {
		t.Errorf("in 1970: due %v", due)
	}
}

func TestServerMakesItsCertificateAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := must[*enroll.Authority](t)(enroll.NewAuthority("", time.Now()))
		get := fleet.Server(host, "192.0.2.1")
		first := must[*tls.Certificate](t)(get(nil))
		check(t, first.Leaf.VerifyHostname(host))
		check(t, first.Leaf.VerifyHostname("192.0.2.1"))
		time.Sleep(29 * day)
		if again := must[*tls.Certificate](t)(get(nil)); again != first {
			t.Error("a certificate of 29 days was replaced")
		}
		time.Sleep(5 * day)
		second := must[*tls.Certificate](t)(get(nil))
		if second == first {
			t.Error("a certificate of 34 days was kept")
		}
		time.Sleep(enroll.IssuingLife)
		if _, err := get(nil); croft.KindOf(err) != croft.KindRefused {
			t.Errorf("the issuing key is over: %v", err)
		}
	})
}
