package ingress_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/croft-cloud/croft/agent/ingress"
)

// authority is a small ACME server: it believes every signature, and looks at
// the host over TLS before it gives a certificate.
type authority struct {
	t      *testing.T
	look   string // address of the ingress, by TLS
	server *httptest.Server
	key    *ecdsa.PrivateKey
	root   *x509.Certificate

	mu     sync.Mutex
	broken bool
	host   string
	looked bool
	chain  []byte
	orders int
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	a.root = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	a.server = httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(a.server.Close)
	return a
}

func (a *authority) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("Replay-Nonce", "nonce")
	if a.broken {
		a.orders++
		w.WriteHeader(http.StatusForbidden)
		return
	}
	var signed struct{ Payload string }
	_ = json.NewDecoder(r.Body).Decode(&signed)
	raw, _ := base64.RawURLEncoding.DecodeString(signed.Payload)
	at := func(path string) string { return a.server.URL + path }
	status := map[bool]string{false: "pending", true: "valid"}
	order := func(state string) map[string]any {
		return map[string]any{"status": state, "identifiers": []any{map[string]string{"type": "dns", "value": a.host}}, "authorizations": []string{at("/authz")}, "finalize": at("/finalize"), "certificate": at("/cert")}
	}
	challenge := func() map[string]any {
		return map[string]any{"type": "tls-alpn-01", "url": at("/challenge"), "token": "token", "status": status[a.looked]}
	}
	code, answer := 200, any(nil)
	switch r.URL.Path {
	case "/":
		answer = map[string]string{"newNonce": at("/nonce"), "newAccount": at("/account"), "newOrder": at("/order")}
	case "/nonce":
		return
	case "/account":
		w.Header().Set("Location", at("/account/1"))
		code, answer = 201, map[string]string{"status": "valid"}
	case "/order":
		var in struct{ Identifiers []struct{ Value string } }
		_ = json.Unmarshal(raw, &in)
		a.host, a.looked = in.Identifiers[0].Value, false
		a.orders++
		w.Header().Set("Location", at("/order/1"))
		code, answer = 201, order("pending")
	case "/order/1":
		answer = order("ready")
	case "/authz":
		answer = map[string]any{"status": status[a.looked], "identifier": map[string]string{"type": "dns", "value": a.host}, "challenges": []any{challenge()}}
	case "/challenge":
		c, err := tls.Dial("tcp", a.look, &tls.Config{ServerName: a.host, NextProtos: []string{acme.ALPNProto}, InsecureSkipVerify: true})
		if err == nil {
			for _, e := range c.ConnectionState().PeerCertificates[0].Extensions {
				a.looked = a.looked || e.Id.String() == "1.3.6.1.5.5.7.1.31"
			}
			c.Close()
		}
		answer = challenge()
	case "/finalize":
		var in struct{ CSR string }
		_ = json.Unmarshal(raw, &in)
		der, _ := base64.RawURLEncoding.DecodeString(in.CSR)
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			w.WriteHeader(400)
			return
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: csr.DNSNames, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		der, err = x509.CreateCertificate(rand.Reader, leaf, a.root, csr.PublicKey, a.key)
		if err != nil {
			w.WriteHeader(400)
			return
		}
		a.chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		w.Header().Set("Location", at("/order/1"))
		answer = order("valid")
	case "/cert":
		_, _ = w.Write(a.chain)
		return
	default:
		code = 404
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(answer)
}

func TestAnAuthoritysCertificateTakesOver(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	d := start(t, func(c *ingress.Config) { c.ACME = &ingress.ACME{Directory: a.server.URL} })
	a.mu.Lock()
	a.look = d.tls
	a.mu.Unlock()
	routes := ingress.Routes{HTTP: []ingress.HTTPRoute{{Lease: lease1, Host: "web.example", Backends: []netip.AddrPort{backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "tenant's "+r.URL.Path) })}}}}
	d.set(routes)
	for range 3 {
		if c := d.shown("web.example"); c.Issuer.CommonName != "authority" || c.VerifyHostname("web.example") != nil {
			t.Errorf("certificate of %v is by %q", c.DNSNames, c.Issuer.CommonName)
		}
	}
	if c := d.shown("other.example"); c.Issuer.CommonName == "authority" {
		t.Error("the authority was asked for a name that is not served")
	}
	a.mu.Lock()
	if a.orders != 1 {
		t.Errorf("the authority was asked %d times", a.orders)
	}
	a.mu.Unlock()
	// A tenant's own authority looks at the tenant.
	d.want(200, "tenant's /.well-known/acme-challenge/x", "GET", "http://web.example/.well-known/acme-challenge/x", nil)
}

func TestWithoutItsAuthorityAHostIsServedAllTheSame(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.broken = true
	d := start(t, func(c *ingress.Config) {
		c.ACME = &ingress.ACME{Directory: a.server.URL, Client: &http.Client{Timeout: 100 * time.Millisecond}}
	})
	d.set(ingress.Routes{HTTP: []ingress.HTTPRoute{{Lease: lease1, Host: "web.example"}}})
	if c := d.shown("web.example"); c.VerifyHostname("web.example") != nil || c.Issuer.CommonName != "web.example" {
		t.Errorf("certificate of %v is by %q", c.DNSNames, c.Issuer.CommonName)
	}
	a.mu.Lock()
	asked := a.orders
	a.mu.Unlock()
	for range 5 {
		d.shown("web.example")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.orders != asked {
		t.Errorf("a broken authority is asked at each handshake: %d times", a.orders-asked)
	}
}
