package uplink

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Enrolment says how the box stands with the fleet.
type Enrolment string

// The standings.
const (
	Unenrolled Enrolment = "unenrolled" // has no certificate. Transitions to: Enrolling
	Enrolling  Enrolment = "enrolling"  // asks for its first one. Transitions to: Enrolled, Unenrolled
	Enrolled   Enrolment = "enrolled"   // has one that is not due. Transitions to: Renewing
	Renewing   Enrolment = "renewing"   // asks for the next; the present one is in use. Transitions to: Enrolled, Unenrolled
)

const (
	askTimeout      = 30 * time.Second // for one request
	continueTimeout = 5 * time.Second  // for a fleet to say that it wants a document
	lookAgain       = time.Minute      // how often to see whether renewal is due: clocks jump
	doubtsApart     = time.Hour        // how often a broker's refusal may start a renewal
	enrolledFile    = "enrolment.json"
)

// kept is what the box keeps of its enrolment.
type kept struct {
	Certificate string    `json:"certificate"` // PEM, of [enroll.Reply]
	Brokers     []string  `json:"brokers"`
	Floor       time.Time `json:"floor"` // the fleet said that it is past this

	// Claim is of the code that the fleet was told of last.
	Claim enroll.ClaimHash `json:"claim,omitzero"`
}

// enrolment gets the box's certificate and the next ones.
type enrolment struct {
	cfg     Config
	api     *url.URL
	path    string // empty: nothing is kept
	log     *slog.Logger
	pauses  pauses
	changed chan struct{} // the certificate is new, or renewal is wanted; holds one

	mu        sync.Mutex
	phase     Enrolment        // guarded by mu
	kept      kept             // guarded by mu
	cert      *tls.Certificate // guarded by mu; nil: there is none
	claim     enroll.ClaimHash // guarded by mu; of the code that the box shows
	doubted   time.Time        // guarded by mu; when a broker refused the certificate last
	wanted    bool             // guarded by mu; renew before it is due
	err       error            // guarded by mu; of the newest try; nil if it worked
	noVoucher bool             // of the worker alone: the next try is without
}

func newEnrolment(cfg Config, api *url.URL) *enrolment {
	e := &enrolment{cfg: cfg, api: api, log: cfg.Log, pauses: defaultPauses(), changed: make(chan struct{}, 1), phase: Unenrolled, claim: cfg.Claim}
	if cfg.Dir != "" {
		e.path = filepath.Join(cfg.Dir, enrolledFile)
	}
	if err := e.load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.log.Warn("stored certificate is of no use, enrolling again", "err", err)
	}
	return e
}

// load takes the certificate from where it is kept.
func (e *enrolment) load() error {
	if e.path == "" {
		return nil
	}
	raw, err := os.ReadFile(e.path)
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	var k kept
	if err := json.Unmarshal(raw, &k); err != nil {
		return fmt.Errorf("decode %s: %w", enrolledFile, err)
	}
	e.kept.Floor = k.Floor
	trust, err := e.trust(e.api.Hostname())
	if err != nil {
		return err
	}
	cert, err := trust.Accept(k.Certificate, e.cfg.Key)
	if err != nil {
		return err
	}
	e.kept, e.cert, e.phase = k, cert, Enrolled
	return nil
}

// trust believes in the fleet's server of this name.
func (e *enrolment) trust(host string) (*enroll.Trust, error) {
	return enroll.NewTrust(enroll.TrustConfig{Roots: e.cfg.Roots, Host: host, Clock: e.cfg.Clock, Floor: e.floor})
}

// floor is a time that is known to have passed.
func (e *enrolment) floor() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kept.Floor.After(e.cfg.Built) {
		return e.kept.Floor
	}
	return e.cfg.Built
}

// now is the clock's time, or while that is not known a time that has passed.
func (e *enrolment) now() time.Time {
	if now, known := e.cfg.Clock(); known {
		return now
	}
	return e.floor()
}

// current is the certificate and the brokers to use it at; nil if there is none.
func (e *enrolment) current() (*tls.Certificate, []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.cfg.Brokers) > 0 {
		return e.cert, e.cfg.Brokers
	}
	return e.cert, e.kept.Brokers
}

// doubt is told that a broker refused a certificate: it may be over while the box
// does not know the time.
func (e *enrolment) doubt(cert *tls.Certificate) {
	e.mu.Lock()
	if e.cert == cert && (e.doubted.IsZero() || time.Since(e.doubted) >= doubtsApart) {
		e.doubted, e.wanted = time.Now(), true
	}
	e.mu.Unlock()
	e.signal()
}

func (e *enrolment) signal() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// run keeps a certificate at hand until ctx ends; ready is called with each new
// one.
func (e *enrolment) run(ctx context.Context, ready func()) error {
	for ctx.Err() == nil {
		pause := lookAgain
		if due, _ := e.due(); due {
			if err := e.ask(ctx); err == nil {
				e.pauses.reset()
				ready()
			} else if ctx.Err() == nil {
				pause = e.pauses.after(err)
				e.log.Warn("no certificate from fleet", "err", err, "pause", pause)
				if !sleep(ctx, pause) {
					break
				}
				continue
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-e.changed:
		case <-ctx.Done():
		}
		t.Stop()
	}
	return nil
}

// due reports whether to ask for a certificate now, and whether by proof of the
// device key: the first one, and one more when the box shows another claim code,
// of which only that request tells.
func (e *enrolment) due() (due, byKey bool) {
	now := e.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cert == nil {
		return true, true
	}
	seed := binary.BigEndian.Uint64([]byte(e.cfg.device[:8]))
	if e.wanted || !enroll.When(e.cert.Leaf, now, seed).After(now) {
		return true, false
	}
	untold := e.claim != e.kept.Claim
	return untold, untold
}

// ask gets a certificate, by proof of the device key or by the present one.
func (e *enrolment) ask(ctx context.Context) error {
	_, byKey := e.due()
	e.mu.Lock()
	cert := e.cert
	e.phase = Renewing
	if cert == nil {
		e.phase = Enrolling
	}
	e.mu.Unlock()
	var err error
	if byKey {
		err = e.enrol(ctx)
	} else {
		err = e.renew(ctx, cert)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
	e.phase = Enrolled
	if err == nil {
		e.wanted = false
	} else if e.cert == nil {
		e.phase = Unenrolled
	} else {
		e.phase = Renewing
	}
	return err
}

func (e *enrolment) enrol(ctx context.Context) error {
	csr, err := enroll.NewCSR(e.cfg.Key)
	if err != nil {
		return err
	}
	proof, err := enroll.Proof(e.cfg.Key)
	if err != nil {
		return err
	}
	e.mu.Lock()
	code := e.claim
	e.mu.Unlock()
	req := enroll.Request{
		Version: enroll.Version, CSR: csr, Board: e.cfg.Board, Release: e.cfg.Release,
		SerialNumber: e.cfg.Serial, Voucher: e.cfg.Voucher, Claim: code,
	}
	if e.noVoucher {
		req.Voucher = ""
	}
	err = e.post(ctx, enroll.PathEnroll, proof, req, code)
	// Without a voucher that is no good the box may still be welcome.
	e.noVoucher = !e.noVoucher && slices.Contains([]enroll.Reason{
		enroll.ReasonVoucherInvalid, enroll.ReasonVoucherExpired, enroll.ReasonVoucherForeign, enroll.ReasonVoucherUsed,
	}, enroll.ReasonOf(err))
	return err
}

func (e *enrolment) renew(ctx context.Context, cert *tls.Certificate) error {
	csr, err := enroll.NewCSR(e.cfg.Key)
	if err != nil {
		return err
	}
	e.mu.Lock()
	told := e.kept.Claim
	e.mu.Unlock()
	err = e.post(ctx, enroll.PathRenew, cert, enroll.Renewal{CSR: csr}, told)
	switch enroll.ReasonOf(err) {
	case enroll.ReasonLapsed, enroll.ReasonForeign, enroll.ReasonUnenrolled:
		// This certificate will never renew. The device key still is the box's
		// name.
		e.mu.Lock()
		e.cert, e.wanted = nil, false
		e.mu.Unlock()
	default: // it came, or is asked for again
	}
	return err
}

// post sends a request and takes the certificate that it brings. Then the fleet
// knows of the claim code.
func (e *enrolment) post(ctx context.Context, path string, cert *tls.Certificate, body any, code enroll.ClaimHash) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	trust, err := e.trust(e.api.Hostname())
	if err != nil {
		return err
	}
	raw, cs, err := e.request(ctx, trust, http.MethodPost, path, cert, raw)
	if err != nil {
		return err
	}
	reply, err := enroll.ParseReply(raw)
	if err != nil {
		return err
	}
	fresh, err := trust.Accept(reply.Certificate, e.cfg.Key)
	if err != nil {
		return err
	}
	brokers := make([]string, 0, len(reply.Brokers))
	for _, b := range reply.Brokers {
		if _, err := parseBroker(b); err != nil {
			e.log.Warn("fleet named a broker that cannot be used", "err", err)
			continue
		}
		brokers = append(brokers, b)
	}
	if len(brokers) == 0 && len(e.cfg.Brokers) == 0 {
		return errors.New("fleet named no broker that can be used")
	}
	floor := e.learn(trust, cs, reply.Time)
	e.mu.Lock()
	e.cert, e.kept = fresh, kept{Certificate: reply.Certificate, Brokers: brokers, Floor: floor, Claim: code}
	e.mu.Unlock()
	e.log.Info("certificate received", "until", fresh.Leaf.NotAfter)
	e.save()
	return nil
}

// learnTime asks the fleet for its time, and says when it was asked and when it
// answered, by the box's clock. What that says plays no part in whether the fleet
// is believed: it may be wrong, and the answer is how to find out.
func (e *enrolment) learnTime(ctx context.Context) (said, asked, answered time.Time, err error) {
	fail := func(err error) (time.Time, time.Time, time.Time, error) {
		return time.Time{}, time.Time{}, time.Time{}, err
	}
	proof, err := enroll.Proof(e.cfg.Key)
	if err != nil {
		return fail(err)
	}
	trust, err := enroll.NewTrust(enroll.TrustConfig{
		Roots: e.cfg.Roots, Host: e.api.Hostname(), Floor: e.floor,
		Clock: func() (time.Time, bool) { return time.Now(), false },
	})
	if err != nil {
		return fail(err)
	}
	asked = time.Now()
	raw, cs, err := e.request(ctx, trust, http.MethodGet, enroll.PathTime, proof, nil)
	answered = time.Now()
	if err != nil {
		return fail(err)
	}
	reply, err := enroll.ParseTimeReply(raw)
	if err != nil {
		return fail(err)
	}
	was := e.floor()
	floor := e.learn(trust, cs, reply.Time)
	e.mu.Lock()
	e.kept.Floor = floor
	e.mu.Unlock()
	if floor.Sub(was) > 24*time.Hour { // not worth a write each time
		e.save()
	}
	return reply.Time, asked, answered, nil
}

// learn is the floor after the fleet has said its time. One that cannot be
// believed changes nothing.
func (e *enrolment) learn(trust *enroll.Trust, cs tls.ConnectionState, said time.Time) time.Time {
	floor, err := trust.Floor(cs, said)
	if err != nil {
		e.log.Warn("fleet's time is not believed", "err", err)
		return e.floor()
	}
	if e.cfg.TimeFloor != nil {
		e.cfg.TimeFloor(floor)
	}
	return floor
}

func (e *enrolment) save() {
	if e.path == "" {
		return
	}
	e.mu.Lock()
	raw, err := json.Marshal(e.kept)
	e.mu.Unlock()
	if err == nil {
		err = atomicfile.MkdirAll(e.cfg.Dir, 0o700)
	}
	if err == nil {
		err = atomicfile.WriteFile(e.path, raw, 0o600)
	}
	if err != nil { // the fleet gives another after the next start
		e.log.Warn("certificate cannot be kept", "err", err)
	}
}

// request asks the fleet's device port.
func (e *enrolment) request(ctx context.Context, trust *enroll.Trust, method, path string, cert *tls.Certificate, body []byte) ([]byte, tls.ConnectionState, error) {
	fail := func(err error) ([]byte, tls.ConnectionState, error) { return nil, tls.ConnectionState{}, err }
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, e.api.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return fail(fmt.Errorf("ask fleet: %w", err))
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := e.client(trust, cert).Do(req)
	if err != nil {
		return fail(fmt.Errorf("ask fleet: %w", err))
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, enroll.MaxMessage+1))
	if err != nil {
		return fail(fmt.Errorf("read fleet's answer: %w", err))
	}
	switch {
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode >= 400 && resp.StatusCode < 500:
		return fail(fmt.Errorf("ask fleet for %s: %w", path, enroll.ParseRefusal(raw)))
	default:
		return fail(fmt.Errorf("ask fleet for %s: it answered %s", path, resp.Status))
	}
	return raw, *resp.TLS, nil
}

// client is for one request to the fleet.
func (e *enrolment) client(trust *enroll.Trust, cert *tls.Certificate) *http.Client {
	return &http.Client{
		// No proxy: nothing on the way may end this TLS.
		Transport: &http.Transport{
			DialContext:       e.cfg.Dial,
			TLSClientConfig:   trust.TLS(func() (*tls.Certificate, error) { return cert, nil }),
			DisableKeepAlives: true,

			ExpectContinueTimeout: continueTimeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// parseBroker accepts tls://host:port.
func parseBroker(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "tls" || u.Hostname() == "" || u.Port() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("broker %.100q: want tls://host:port", s)
	}
	return u, nil
}
