// Package deviceport answers boxes that enrol, renew their certificate or ask for
// the time, over the TLS of [enroll.Gate.TLS]. What it decides package device
// stores, in one transaction with the decision.
package deviceport

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Config is copied by [New] and never changed afterwards.
type Config struct {
	Store     *device.Store                  // required
	Gate      *enroll.Gate                   // required
	Authority func() *enroll.Authority       // required; it is rekeyed now and then
	Policy    enroll.Policy                  // who may come in
	Brokers   func() []string                // required; what boxes are told
	Log       *slog.Logger                   // nil discards
	Refused   func(reason enroll.Reason)     // nil, or counts refusals
	Client    func(*http.Request) netip.Addr // default: the connection's remote address
}

// Port answers boxes on the fleet's device port, over the TLS of
// [enroll.Gate.TLS]. Refusals are the JSON of [enroll.Refusal].
//
// One address (IPv6: /64) may ask for 30 certificates at once, and then for one
// each 10 s: a shelf of boxes that is switched on comes in, a loop of one box
// costs nothing. All together may ask for 50 a second: making one is an ECDSA
// signature and a transaction. Who is too fast is told when to come again.
type Port struct {
	cfg   Config
	mux   *http.ServeMux
	total *rate.Limiter

	mu      sync.Mutex
	clients map[string]*rate.Limiter // guarded by mu
}

// Reasons of the port's own.
const (
	reasonBusy     enroll.Reason = "busy"     // too many requests
	reasonInternal enroll.Reason = "internal" // the fleet's fault
)

const (
	maxClients   = 20_000
	clientEvery  = 10 * time.Second
	clientBurst  = 30
	portPerSec   = 50
	portBurst    = 500
	retrySeconds = 15
)

// New makes the handler.
func New(cfg Config) (*Port, error) {
	if cfg.Store == nil || cfg.Gate == nil || cfg.Authority == nil || cfg.Brokers == nil {
		return nil, errors.New("make device port: store, gate, authority or brokers are missing")
	}
	if _, err := enroll.ParseFirstUse(string(cfg.Policy.FirstUse)); err != nil {
		return nil, fmt.Errorf("make device port: %w", err)
	}
	if cfg.Client == nil {
		cfg.Client = remoteAddr
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Refused == nil {
		cfg.Refused = func(enroll.Reason) {}
	}
	p := &Port{cfg: cfg, mux: http.NewServeMux(), total: rate.NewLimiter(portPerSec, portBurst), clients: map[string]*rate.Limiter{}}
	p.mux.HandleFunc("POST "+enroll.PathEnroll, p.limited(p.enroll))
	p.mux.HandleFunc("POST "+enroll.PathRenew, p.limited(p.renew))
	p.mux.HandleFunc("GET "+enroll.PathTime, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, enroll.NewTimeReply(time.Now()))
	})
	return p, nil
}

// ServeHTTP implements http.Handler.
func (p *Port) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

func remoteAddr(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr) // not valid: of no network
	return at.Addr()
}

// patience is how long a request may take to arrive.
const patience = 10 * time.Second

func (p *Port) limited(handle func(*http.Request) (enroll.Reply, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// Where it cannot be set, as in a test's recorder, the server's own counts.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience))
		if !p.allow(device.NetworkOf(p.cfg.Client(r))) {
			p.cfg.Refused(reasonBusy)
			w.Header().Set("Retry-After", fmt.Sprint(retrySeconds))
			answer(w, http.StatusTooManyRequests, enroll.Refusal{Reason: reasonBusy, Text: "too many requests: come again later"})
			return
		}
		reply, err := handle(r)
		if err != nil {
			p.refuse(w, err)
			return
		}
		answer(w, http.StatusOK, reply)
	}
}

// allow takes the request of a client from its budget. Budgets are forgotten
// all at once when there are too many: a flood from everywhere is for total.
func (p *Port) allow(client string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	limiter := p.clients[client]
	if limiter == nil {
		if len(p.clients) >= maxClients {
			clear(p.clients)
		}
		limiter = rate.NewLimiter(rate.Every(clientEvery), clientBurst)
		p.clients[client] = limiter
	}
	return limiter.Allow() && p.total.Allow()
}

func (p *Port) enroll(r *http.Request) (enroll.Reply, error) {
	peer := p.peer(r)
	if err := peer.MayEnroll(); err != nil {
		return enroll.Reply{}, err
	}
	raw, err := body(r)
	if err != nil {
		return enroll.Reply{}, err
	}
	req, err := enroll.ParseRequest(raw)
	if err != nil {
		return enroll.Reply{}, err
	}
	issued, err := p.cfg.Store.Enrol(r.Context(), p.cfg.Policy, req, peer.Device, p.cfg.Client(r), p.issue(peer))
	if err != nil {
		return enroll.Reply{}, err
	}
	return enroll.NewReply(issued, p.cfg.Brokers(), time.Now()), nil
}

func (p *Port) renew(r *http.Request) (enroll.Reply, error) {
	peer := p.peer(r)
	if err := peer.MayRenew(); err != nil {
		return enroll.Reply{}, err
	}
	raw, err := body(r)
	if err != nil {
		return enroll.Reply{}, err
	}
	req, err := enroll.ParseRenewal(raw)
	if err != nil {
		return enroll.Reply{}, err
	}
	issued, err := p.cfg.Store.Renew(r.Context(), req.CSR, peer, p.cfg.Client(r), p.issue(peer))
	if err != nil {
		return enroll.Reply{}, err
	}
	return enroll.NewReply(issued, p.cfg.Brokers(), time.Now()), nil
}

func (p *Port) issue(peer enroll.Peer) device.Issue {
	return func(csr []byte, now time.Time) (*enroll.Issued, error) {
		return p.cfg.Authority().IssueDevice(csr, peer, now)
	}
}

// peer is who is at the other end of a request's connection.
func (p *Port) peer(r *http.Request) enroll.Peer {
	if r.TLS == nil {
		return enroll.Peer{Standing: enroll.Anonymous}
	}
	return p.cfg.Gate.Judge(*r.TLS)
}

func body(r *http.Request) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r.Body, enroll.MaxMessage+1))
	if err != nil {
		return nil, (&enroll.Refusal{Reason: enroll.ReasonMessage, Text: "read message: the connection broke"}).Explained()
	}
	return raw, nil // too long a one is refused by its parser
}

func (p *Port) refuse(w http.ResponseWriter, err error) {
	refusal, ok := errors.AsType[*enroll.Refusal](err)
	if !ok {
		p.cfg.Log.Warn("box was not answered", "error", err)
		p.cfg.Refused(reasonInternal)
		w.Header().Set("Retry-After", fmt.Sprint(retrySeconds))
		answer(w, http.StatusServiceUnavailable, enroll.Refusal{Reason: reasonInternal, Text: "the fleet could not do it now"})
		return
	}
	p.cfg.Refused(refusal.Reason)
	status := http.StatusForbidden
	if croft.KindOf(err) == croft.KindInvalid {
		status = http.StatusBadRequest
	}
	answer(w, status, refusal)
}

func answer(w http.ResponseWriter, status int, document any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(document) //nolint:errcheck // the box is gone
}
