package deviceport_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/deviceport"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// sink takes whatever is published and audited.
type sink struct{}

func (sink) Publish(context.Context, croft.DeviceID, fleetapi.Payload) error { return nil }
func (sink) Record(context.Context, device.Entry) error                      { return nil }

type port struct {
	store     *device.Store
	authority *enroll.Authority
	url       string
	refused   map[enroll.Reason]int
	client    netip.Addr
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func newPort(t *testing.T, d *db.DB, policy enroll.Policy) *port {
	t.Helper()
	p := &port{refused: map[enroll.Reason]int{}, client: netip.MustParseAddr("203.0.113.7")}
	p.authority = must(enroll.NewAuthority("test", time.Now()))(t)
	revoked := &enroll.Revocations{}
	p.store = must(device.New(t.Context(), device.Config{
		DB: d, ClaimKey: must(enroll.NewClaimKey(make([]byte, 32)))(t), Revoked: revoked, Publisher: sink{}, Audit: sink{},
	}))(t)
	gate := must(enroll.NewGate(enroll.GateConfig{Roots: []*x509.Certificate{p.authority.Root()}, Revoked: revoked}))(t)
	handler := must(deviceport.New(deviceport.Config{
		Store: p.store, Gate: gate, Authority: func() *enroll.Authority { return p.authority }, Policy: policy,
		Brokers: func() []string { return []string{"tls://broker.example:8883"} },
		Refused: func(r enroll.Reason) { p.refused[r]++ },
		Client:  func(*http.Request) netip.Addr { return p.client },
	}))(t)
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	server := &http.Server{Handler: handler, TLSConfig: gate.TLS(p.authority.Server("127.0.0.1"),
		enroll.Anonymous, enroll.Foreign, enroll.Candidate, enroll.Device, enroll.Expired, enroll.Lapsed, enroll.Revoked)}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		check(t, server.Close())
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the port ended: %v", err)
		}
	})
	p.url = "https://" + l.Addr().String()
	return p
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// ask sends a request with a client certificate, and returns status and body.
func (p *port) ask(t testing.TB, cert *tls.Certificate, path string, body any) (int, []byte) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(p.authority.Root())
	cfg := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	method, raw := http.MethodGet, []byte(nil)
	switch b := body.(type) {
	case nil:
	case string:
		method, raw = http.MethodPost, []byte(b)
	default:
		method, raw = http.MethodPost, must(json.Marshal(b))(t)
	}
	req := must(http.NewRequestWithContext(t.Context(), method, p.url+path, bytes.NewReader(raw)))(t)
	resp, err := client.Do(req)
	check(t, err)
	defer resp.Body.Close()
	return resp.StatusCode, must(io.ReadAll(resp.Body))(t)
}

func request(t testing.TB, key *ecdsa.PrivateKey) enroll.Request {
	t.Helper()
	return enroll.Request{Version: 1, CSR: must(enroll.NewCSR(key))(t), Board: "uefi-x86", Release: "1.0.0", Claim: enroll.HashClaim("K7QM2XWP")}
}

// certificate is what a reply brings, with its key.
func certificate(t testing.TB, key *ecdsa.PrivateKey, raw []byte) *tls.Certificate {
	t.Helper()
	reply := must(enroll.ParseReply(raw))(t)
	cert := &tls.Certificate{PrivateKey: key}
	for rest := []byte(reply.Certificate); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return cert
}

func TestBoxEnrolsAndRenews(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		p := newPort(t, d, enroll.Policy{FirstUse: enroll.FirstUseOpen})
		key := newKey(t)
		id := must(enroll.DeviceOf(key.Public()))(t)
		status, raw := p.ask(t, must(enroll.Proof(key))(t), enroll.PathEnroll, request(t, key))
		if status != http.StatusOK {
			t.Fatalf("enrol: %d %s", status, raw)
		}
		reply := must(enroll.ParseReply(raw))(t)
		if len(reply.Brokers) != 1 || time.Since(reply.Time) > time.Minute {
			t.Errorf("reply %+v", reply)
		}
		cert := certificate(t, key, raw)
		if status, raw = p.ask(t, cert, enroll.PathRenew, enroll.Renewal{CSR: must(enroll.NewCSR(key))(t)}); status != http.StatusOK {
			t.Fatalf("renew: %d %s", status, raw)
		}
		staff := device.Actor{ID: "usr_staff", Staff: true}
		box := must(p.store.Box(t.Context(), staff, id))(t)
		if box.Address != "203.0.113.7" || time.Until(box.CertificateUntil) < 89*24*time.Hour {
			t.Errorf("box %+v", box)
		}
		found := must(p.store.StartClaim(t.Context(), device.Claimant{Account: "own_ada", Address: p.client}, "k7qm-2xwp"))(t)
		if found.Device != id {
			t.Errorf("its code finds %s", found.Device)
		}

		check(t, p.store.RevokeCertificates(t.Context(), staff, id))
		if status, _ = p.ask(t, cert, enroll.PathRenew, enroll.Renewal{CSR: must(enroll.NewCSR(key))(t)}); status != http.StatusForbidden {
			t.Errorf("renewal by a revoked certificate: %d", status)
		}
		if status, raw = p.ask(t, must(enroll.Proof(key))(t), enroll.PathEnroll, request(t, key)); status != http.StatusOK {
			t.Errorf("enrolment after that: %d %s", status, raw)
		}
		check(t, p.store.Retire(t.Context(), staff, id))
		if status, _ = p.ask(t, must(enroll.Proof(key))(t), enroll.PathEnroll, request(t, key)); status != http.StatusForbidden {
			t.Errorf("enrolment of a retired box: %d", status)
		}
	})
}

func TestPortRefuses(t *testing.T) {
	d := dbtest.Open(t, dbtest.URL(t, dbtest.SQLite))
	p := newPort(t, d, enroll.Policy{FirstUse: enroll.FirstUseOpen})
	key, other := newKey(t), newKey(t)
	proof := must(enroll.Proof(key))(t)
	badBoard, badSerial := request(t, key), request(t, key)
	badBoard.Board = "<script>"
	badSerial.SerialNumber = "' OR 1=1"
	// A certificate of this fleet for a box that the database does not know.
	lost := must(enroll.Proof(other))(t)
	issued := must(p.authority.IssueDevice(must(enroll.NewCSR(other))(t), enroll.Peer{Standing: enroll.Candidate, Device: must(enroll.DeviceOf(other.Public()))(t)}, time.Now()))(t)
	known := certificate(t, other, must(json.Marshal(enroll.Reply{Certificate: issued.Chain}))(t))
	for _, tc := range []struct {
		name   string
		cert   *tls.Certificate
		path   string
		body   any
		status int
		reason enroll.Reason
	}{
		{"no certificate", nil, enroll.PathEnroll, request(t, key), 403, enroll.ReasonAnonymous},
		{"a CSR of another key", proof, enroll.PathEnroll, request(t, other), 403, enroll.ReasonKey},
		{"no JSON", proof, enroll.PathEnroll, "]", 400, enroll.ReasonMessage},
		{"too long", proof, enroll.PathEnroll, strings.Repeat(" ", enroll.MaxMessage+1), 400, enroll.ReasonMessage},
		{"a board that is none", proof, enroll.PathEnroll, badBoard, 400, enroll.ReasonMessage},
		{"a serial number that is none", proof, enroll.PathEnroll, badSerial, 400, enroll.ReasonMessage},
		{"no CSR", proof, enroll.PathEnroll, enroll.Request{Version: 1, Board: "x", Release: "1"}, 400, enroll.ReasonCSR},
		{"renewal without a certificate", lost, enroll.PathRenew, enroll.Renewal{}, 403, enroll.ReasonUnenrolled},
		{"renewal of an unknown box", known, enroll.PathRenew, enroll.Renewal{CSR: must(enroll.NewCSR(other))(t)}, 403, enroll.ReasonUnenrolled},
		{"enrolment by certificate", known, enroll.PathEnroll, request(t, other), 403, enroll.ReasonEnrolled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := p.refused[tc.reason]
			status, raw := p.ask(t, tc.cert, tc.path, tc.body)
			var refusal enroll.Refusal
			check(t, json.Unmarshal(raw, &refusal))
			if status != tc.status || refusal.Reason != tc.reason || p.refused[tc.reason] != before+1 {
				t.Errorf("%d %s, counted %d times; want %d %s", status, raw, p.refused[tc.reason]-before, tc.status, tc.reason)
			}
		})
	}
	boxes, _, err := p.store.List(t.Context(), device.Actor{Staff: true}, device.Query{})
	check(t, err)
	if len(boxes) != 0 {
		t.Errorf("%d boxes were stored", len(boxes))
	}
	if status, raw := p.ask(t, nil, enroll.PathTime, nil); status != http.StatusOK || must(enroll.ParseTimeReply(raw))(t).Time.IsZero() {
		t.Errorf("time: %d %s", status, raw)
	}
	if status, _ := p.ask(t, nil, enroll.PathEnroll, nil); status != http.StatusMethodNotAllowed {
		t.Errorf("GET of enrolment: %d", status)
	}
}

func TestALoopOfOneBoxCostsLittle(t *testing.T) {
	d := dbtest.Open(t, dbtest.URL(t, dbtest.SQLite))
	p := newPort(t, d, enroll.Policy{FirstUse: enroll.FirstUseVoucher})
	busy := 0
	for range 40 {
		if status, _ := p.ask(t, nil, enroll.PathEnroll, "{}"); status == http.StatusTooManyRequests {
			busy++
		}
	}
	if busy < 5 { // 30 at once; and one more for each ten seconds this took
		t.Errorf("%d of 40 requests were put off", busy)
	}
	p.client = netip.MustParseAddr("198.51.100.1")
	if status, _ := p.ask(t, nil, enroll.PathEnroll, "{}"); status != http.StatusForbidden {
		t.Errorf("another address: %d", status)
	}
}
