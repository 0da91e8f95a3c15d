package simbox

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Fleet is a fleet as boxes know it.
type Fleet struct {
	URL   string              // required; its device port, https://host:port
	Roots []*x509.Certificate // required; by [enroll.ParseRoots]
}

// Pass is a device key and the fleet's certificate for it.
type Pass struct {
	Device  croft.DeviceID
	Brokers []string // tls://host:port
	key     crypto.Signer
	chain   [][]byte // DER: the box's certificate, then its issuer's
}

// NewKey draws a device key.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// Enrol gets a pass from the fleet's device port, by the proof of the key. It
// tries once.
func Enrol(ctx context.Context, f Fleet, dial Dial, key crypto.Signer, req *enroll.Request) (*Pass, error) {
	reply, err := enrol(ctx, f, dial, key, req)
	if err != nil {
		return nil, err
	}
	trust, err := f.trust("localhost", rightClock) // no server is asked
	if err != nil {
		return nil, err
	}
	return newPass(trust, key, reply.Certificate, reply.Brokers)
}

func enrol(ctx context.Context, f Fleet, dial Dial, key crypto.Signer, req *enroll.Request) (*enroll.Reply, error) {
	at, err := url.Parse(f.URL)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	trust, err := f.trust(at.Hostname(), rightClock)
	if err != nil {
		return nil, err
	}
	proof, err := enroll.Proof(key)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	status, raw, err := ask(ctx, trust, dial, proof, at.JoinPath(enroll.PathEnroll), raw)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("enrol: %w", enroll.ParseRefusal(raw))
	}
	return enroll.ParseReply(raw)
}

// newPass reads what the fleet issued.
func newPass(trust *enroll.Trust, key crypto.Signer, chain string, brokers []string) (*Pass, error) {
	cert, err := trust.Accept(chain, key)
	if err != nil {
		return nil, err
	}
	return &Pass{Device: croft.DeviceID(cert.Leaf.Subject.CommonName), Brokers: brokers, key: key, chain: cert.Certificate}, nil
}

// certificate is for TLS. It is made anew each time: a crowd has no memory for
// certificates that are parsed.
func (p *Pass) certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: p.chain, PrivateKey: p.key}
}

func rightClock() (time.Time, bool) { return time.Now(), true }

func (f Fleet) trust(host string, clock func() (time.Time, bool)) (*enroll.Trust, error) {
	return enroll.NewTrust(enroll.TrustConfig{Roots: f.Roots, Host: host, Clock: clock})
}

// askTimeout is for one request to the fleet's device port.
const askTimeout = 30 * time.Second

// ask posts a request to the fleet, on a connection of its own.
func ask(ctx context.Context, trust *enroll.Trust, dial Dial, cert *tls.Certificate, at *url.URL, body []byte) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	client := &http.Client{
		Transport: &http.Transport{
			DialContext:       dial,
			TLSClientConfig:   trust.TLS(func() (*tls.Certificate, error) { return cert, nil }),
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, enroll.MaxMessage))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	return resp.StatusCode, answer, nil
}

// isRefusal reports whether the fleet answered and does not want the box. A fleet
// that is busy wants it later.
func isRefusal(err error) bool {
	code, refused := errors.AsType[ConnectError](err)
	if refused {
		return code != connectBusy
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return true // an alert of TLS
	}
	reason := enroll.ReasonOf(err)
	return reason != "" && reason != "busy"
}
