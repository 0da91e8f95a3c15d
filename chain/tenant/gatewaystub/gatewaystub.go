// Package gatewaystub is a provider's gateway that only listens: for tests of
// what speaks to one. It serves the whole protocol (REST, websockets, TLS 1.3,
// tokens and client certificates) and checks what a provider checks: who asks,
// whether there is a lease, whether a manifest is the one on the chain. It runs
// nothing. A service counts as running as soon as its manifest was taken, its
// URI leads to a page of the stub itself, its logs are what a test says, and a
// shell knows four programs (see [Server]).
//
//	s, err := gatewaystub.Start(gatewaystub.Config{Provider: address, Chain: chain})
//	defer s.Close()
//	… publish s.Pair() and s.URI() on the chain …
//
// The chain it believes may be a real one: a [client.Client] has all it needs.
package gatewaystub

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/credential"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// Chain is what a gateway asks of the chain.
type Chain interface {
	PublicKey(context.Context, account.Address) (account.PublicKey, error)
	Certificates(context.Context, *certv1.CertificateFilter) iter.Seq2[*certv1.CertificateResponse, error]
	Deployment(context.Context, akash.DeploymentID) (*deploymentv1beta4.QueryDeploymentResponse, error)
	Leases(context.Context, *marketv1.LeaseFilters) iter.Seq2[*marketv1beta5.QueryLeaseResponse, error]
}

// Config is copied by [Start].
type Config struct {
	Provider account.Address // required; whose gateway it plays
	Chain    Chain           // required; whom it believes
	// Pair is its certificate; default: a new one of Provider's for 127.0.0.1.
	Pair *credential.Pair
	// TLS, if set, is shown instead of Pair: a certificate of an authority.
	TLS *tls.Certificate
	// Addr is where to listen; default 127.0.0.1:0.
	Addr string
}

// Server is a running stub. A shell in it knows these programs: "echo WORD…"
// prints its words, "cat" copies its input until that ends, "fail N" prints to
// stderr and ends with code N, "size" waits for the size of the terminal and
// prints it. All else cannot be run.
type Server struct {
	cfg      Config
	pair     credential.Pair
	verifier credential.Verifier
	gateway  *httptest.Server
	workload *httptest.Server

	mu        sync.Mutex
	manifests map[akash.DeploymentID]received // guarded by mu
	logs      []gatewayclient.LogLine         // guarded by mu
	events    []gatewayclient.Event           // guarded by mu
	changed   chan struct{}                   // closed when logs or events grow; guarded by mu
	drop      chan struct{}                   // closed to break all streams; guarded by mu
	faults    []Fault                         // guarded by mu
	down      bool                            // services do not run; guarded by mu
	requests  int                             // guarded by mu
}

// received is a manifest as it came.
type received struct {
	raw      []byte
	manifest sdl.Manifest
	times    int
}

// Fault is what one request gets instead of an answer.
type Fault struct {
	Path   string // only requests whose path ends so; empty: any
	Status int    // HTTP status; 0 breaks the connection
	Text   string // of the answer
}

// Start starts a stub. The caller closes it.
func Start(cfg Config) (*Server, error) {
	if cfg.Chain == nil {
		return nil, errors.New("gatewaystub: chain is missing")
	}
	s := &Server{
		cfg: cfg, verifier: credential.Verifier{PublicKey: cfg.Chain.PublicKey},
		manifests: map[akash.DeploymentID]received{}, changed: make(chan struct{}), drop: make(chan struct{}),
	}
	if cfg.Pair != nil {
		s.pair = *cfg.Pair
	} else {
		var err error
		s.pair, err = credential.NewCertificate(credential.CertificateConfig{
			Owner: cfg.Provider, Hosts: []string{"127.0.0.1", "localhost"}, NotBefore: time.Now().Add(-time.Minute),
		})
		if err != nil {
			return nil, err
		}
	}
	shown, err := s.pair.TLS()
	if err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		shown = *cfg.TLS
	}
	s.workload = httptest.NewServer(http.HandlerFunc(s.page))
	s.gateway = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	if cfg.Addr != "" {
		s.gateway.Listener.Close()
		if s.gateway.Listener, err = net.Listen("tcp", cfg.Addr); err != nil {
			s.workload.Close()
			return nil, fmt.Errorf("start gateway stub: %w", err)
		}
	}
	s.gateway.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // broken connections are what tests are for
	s.gateway.TLS = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{shown}, ClientAuth: tls.RequestClientCert,
		NextProtos: []string{"http/1.1"},
	}
	s.gateway.StartTLS()
	return s, nil
}

// Close ends the stub and all its connections.
func (s *Server) Close() {
	s.DropStreams()
	s.gateway.CloseClientConnections()
	s.gateway.Close()
	s.workload.Close()
}

// URI is what the provider's host_uri on the chain must be.
func (s *Server) URI() string { return s.gateway.URL }

// Pair is the certificate to publish for the provider.
func (s *Server) Pair() credential.Pair { return s.pair }

// Manifest is what was received last for a deployment, as it came, and how often
// one was taken; nil if none was.
func (s *Server) Manifest(id akash.DeploymentID) (raw []byte, times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.manifests[id].raw, s.manifests[id].times
}

// Requests is how many requests came.
func (s *Server) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// Log adds a line to the logs, and to the streams that follow them. Name is that
// of a replica: the service's, a dash and anything.
func (s *Server) Log(name, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logs = append(s.logs, gatewayclient.LogLine{Name: name, Message: message})
	s.wakeLocked()
}

// Event adds an event, and tells it to the streams that follow.
func (s *Server) Event(e gatewayclient.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	s.wakeLocked()
}

func (s *Server) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// DropStreams breaks the connections of all streams, as a network does.
func (s *Server) DropStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.drop)
	s.drop = make(chan struct{})
}

// Fail puts faults before the answers to come: each is used up by one request.
func (s *Server) Fail(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, faults...)
}

// SetDown makes the services of all leases count as not running, or running.
func (s *Server) SetDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		http.Error(w, "not running", http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "hello from the stub")
}

// serve is the whole gateway.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if fault, ok := s.fault(r.URL.Path); ok {
		if fault.Status == 0 {
			panic(http.ErrAbortHandler)
		}
		http.Error(w, fault.Text, fault.Status)
		return
	}
	who, err := s.authenticate(r)
	if refused, ok := errors.AsType[*refusal](err); ok {
		refused.write(w)
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"akash": map[string]string{"name": "gatewaystub", "version": "0.0.0"}, "kube": map[string]string{}})
	})
	mux.HandleFunc("GET /address", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]account.Address{"address": s.cfg.Provider})
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.status()) })
	lease := "/lease/{dseq}/{gseq}/{oseq}"
	for pattern, h := range map[string]struct {
		scope credential.Scope
		serve func(*request)
	}{
		"PUT /deployment/{dseq}/manifest":            {credential.ScopeSendManifest, s.putManifest},
		"GET " + lease + "/manifest":                 {credential.ScopeGetManifest, s.getManifest},
		"GET " + lease + "/status":                   {credential.ScopeStatus, s.leaseStatus},
		"GET " + lease + "/service/{service}/status": {credential.ScopeStatus, s.serviceStatus},
		"GET " + lease + "/logs":                     {credential.ScopeLogs, s.streamLogs},
		"GET " + lease + "/kubeevents":               {credential.ScopeEvents, s.streamEvents},
		"GET " + lease + "/shell":                    {credential.ScopeShell, s.shell},
		"POST /hostname/migrate":                     {credential.ScopeHostnameMigration, s.migrate("hostnames_to_migrate")},
		"POST /endpoint/migrate":                     {credential.ScopeIPMigration, s.migrate("endpoints_to_migrate")},
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			q, err := s.request(w, r, who, h.scope)
			if refused, ok := errors.AsType[*refusal](err); ok {
				refused.write(w)
				return
			}
			h.serve(q)
		})
	}
	mux.ServeHTTP(w, r)
}

func (s *Server) fault(path string) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	for i, f := range s.faults {
		if strings.HasSuffix(path, f.Path) {
			s.faults = append(s.faults[:i:i], s.faults[i+1:]...)
			return f, true
		}
	}
	return Fault{}, false
}

// refusal is an error with its HTTP status.
type refusal struct {
	status int
	text   string
	json   bool // as problems with authentication are told
}

func (e *refusal) Error() string { return e.text }

func (e *refusal) write(w http.ResponseWriter) {
	if !e.json {
		http.Error(w, e.text, e.status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": e.text}) // the peer may be gone
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the peer may be gone
}

// identity is who asks.
type identity struct {
	owner  account.Address   // empty: nobody
	claims credential.Claims // of a token
	full   bool              // a certificate: no limits
}

// authenticate finds out who asks. A bad token fails whatever is asked for.
func (s *Server) authenticate(r *http.Request) (identity, error) {
	token, hasToken := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	shown := r.TLS.PeerCertificates
	switch {
	case hasToken && len(shown) > 0:
		return identity{}, &refusal{http.StatusBadRequest, "certificate and token exclude each other", true}
	case hasToken:
		claims, err := s.verifier.Verify(r.Context(), token, time.Now())
		if errors.Is(err, credential.ErrExpired) || errors.Is(err, credential.ErrNotYetValid) {
			return identity{}, &refusal{http.StatusBadRequest, err.Error(), true}
		}
		if err != nil {
			return identity{}, &refusal{http.StatusUnauthorized, err.Error(), true}
		}
		return identity{owner: claims.Issuer, claims: claims}, nil
	case len(shown) > 0:
		c, err := credential.PeerCertificate(shown, x509.ExtKeyUsageClientAuth, time.Now())
		if err != nil || !strings.HasPrefix(r.TLS.ServerName, "mtls.") {
			return identity{}, &refusal{http.StatusUnauthorized, "certificate is not accepted", true}
		}
		for found, err := range s.cfg.Chain.Certificates(r.Context(), &certv1.CertificateFilter{Owner: string(c.Owner), Serial: c.Serial, State: "valid"}) {
			if err == nil && found.GetSerial() == c.Serial {
				return identity{owner: c.Owner, full: true}, nil
			}
		}
		return identity{}, &refusal{http.StatusUnauthorized, "certificate is not on the chain", true}
	default:
		return identity{}, nil
	}
}

// request is one that is allowed.
type request struct {
	w       http.ResponseWriter
	r       *http.Request
	id      akash.LeaseID // without numbers where the path has none
	service string
}

// request checks rights, numbers and, where the path names one, the lease.
func (s *Server) request(w http.ResponseWriter, r *http.Request, who identity, scope credential.Scope) (*request, error) {
	if who.owner == "" {
		return nil, &refusal{http.StatusUnauthorized, "token or certificate is missing", true}
	}
	q := &request{w: w, r: r, service: r.PathValue("service")}
	q.id.Owner, q.id.Provider = who.owner, s.cfg.Provider
	for name, put := range map[string]func(uint64){
		"dseq": func(n uint64) { q.id.DSeq = n },
		"gseq": func(n uint64) { q.id.GSeq = uint32(n) },
		"oseq": func(n uint64) { q.id.OSeq = uint32(n) },
	} {
		text := r.PathValue(name)
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n == 0 || name != "dseq" && n > 1<<31 {
			return nil, &refusal{status: http.StatusBadRequest, text: name + " is not a number"}
		}
		put(n)
	}
	if !who.full && !who.claims.Allows(credential.Request{
		Provider: s.cfg.Provider, Scope: scope, Owner: who.owner, DSeq: q.id.DSeq, GSeq: q.id.GSeq, OSeq: q.id.OSeq, Service: q.service,
	}) {
		return nil, &refusal{http.StatusUnauthorized, "token does not allow this", true}
	}
	if q.id.DSeq != 0 && !s.leased(r.Context(), q.id) {
		return nil, &refusal{status: http.StatusNotFound, text: "no lease for deployment"}
	}
	return q, nil
}

// leased asks the chain for an active lease, of any order if id names none.
func (s *Server) leased(ctx context.Context, id akash.LeaseID) bool {
	for _, state := range []string{"active", "reclaiming"} {
		filters := &marketv1.LeaseFilters{Owner: string(id.Owner), Dseq: id.DSeq, Gseq: id.GSeq, Oseq: id.OSeq, Provider: string(id.Provider), State: state}
		for _, err := range s.cfg.Chain.Leases(ctx, filters) {
			return err == nil
		}
	}
	return false
}

// putManifest checks a manifest as a provider does.
func (s *Server) putManifest(q *request) {
	raw, err := io.ReadAll(io.LimitReader(q.r.Body, 4<<20))
	if err != nil {
		http.Error(q.w, err.Error(), http.StatusBadRequest)
		return
	}
	m, err := s.check(q.r.Context(), q.id.DeploymentID, raw)
	if err != nil {
		http.Error(q.w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manifests[q.id.DeploymentID] = received{raw: raw, manifest: m, times: s.manifests[q.id.DeploymentID].times + 1}
}

func (s *Server) check(ctx context.Context, id akash.DeploymentID, raw []byte) (sdl.Manifest, error) {
	m, err := sdl.ParseManifest(raw)
	if err != nil {
		return nil, err
	}
	d, err := s.cfg.Chain.Deployment(ctx, id)
	if err != nil {
		return nil, err
	}
	hash, err := sdl.HashRaw(raw)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(hash[:], d.GetDeployment().GetHash()) {
		return nil, errors.New("manifest version validation failed: the hash is not the deployment's")
	}
	var groups []*deploymentv1beta4.GroupSpec
	for _, g := range d.GetGroups() {
		groups = append(groups, g.GetGroupSpec())
	}
	return m, sdl.Check(m, groups)
}

// group is the manifest's part that a lease runs.
func (s *Server) group(q *request) (sdl.Group, bool) {
	s.mu.Lock()
	m := s.manifests[q.id.DeploymentID].manifest
	s.mu.Unlock()
	d, err := s.cfg.Chain.Deployment(q.r.Context(), q.id.DeploymentID)
	if err != nil {
		return sdl.Group{}, false
	}
	for _, on := range d.GetGroups() {
		for _, g := range m {
			if on.GetId().GetGseq() == q.id.GSeq && on.GetGroupSpec().GetName() == g.Name {
				return g, true
			}
		}
	}
	return sdl.Group{}, false
}

func (s *Server) getManifest(q *request) {
	g, ok := s.group(q)
	if !ok {
		http.Error(q.w, "no manifest", http.StatusNotFound)
		return
	}
	q.w.Header().Set("Content-Type", "application/json")
	_, _ = q.w.Write(sdl.Manifest{g}.JSON()) // the peer may be gone
}

// lease is the status of a lease: empty before its manifest.
func (s *Server) lease(q *request) gatewayclient.LeaseStatus {
	status := gatewayclient.LeaseStatus{Services: map[string]gatewayclient.ServiceStatus{}, Ports: map[string][]gatewayclient.ForwardedPort{}}
	g, ok := s.group(q)
	if !ok {
		return status
	}
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	for _, service := range g.Services {
		n := int32(min(service.Count, 1<<20))
		one := gatewayclient.ServiceStatus{Name: service.Name, Total: n, Replicas: n, ObservedGeneration: 1}
		if !down {
			one.Available, one.UpdatedReplicas, one.ReadyReplicas, one.AvailableReplicas = n, n, n, n
		}
		for _, e := range service.Expose {
			port := e.ExternalPort
			if port == 0 {
				port = e.Port
			}
			switch {
			case !e.Global:
			case e.Proto == "TCP" && port == 80:
				one.URIs = []string{strings.TrimPrefix(s.workload.URL, "http://")}
			default:
				status.Ports[service.Name] = append(status.Ports[service.Name], gatewayclient.ForwardedPort{
					Host: "127.0.0.1", Port: e.Port, ExternalPort: 30000 + port%2768, Proto: e.Proto, Name: service.Name,
				})
			}
		}
		status.Services[service.Name] = one
	}
	return status
}

func (s *Server) leaseStatus(q *request) { answer(q.w, s.lease(q)) }

func (s *Server) serviceStatus(q *request) {
	one, ok := s.lease(q).Services[q.service]
	if !ok {
		http.Error(q.w, "no such service", http.StatusNotFound)
		return
	}
	answer(q.w, one)
}

func (s *Server) status() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := map[string]any{"cpu": 8000, "gpu": 0, "memory": 16 << 30, "storage_ephemeral": 100 << 30}
	return map[string]any{
		"cluster": map[string]any{
			"leases": len(s.manifests),
			"inventory": map[string]any{
				"active": []any{}, "pending": []any{},
				"available": map[string]any{"nodes": []any{map[string]any{"name": "n1", "allocatable": free, "available": free}}},
			},
		},
		"bidengine": map[string]any{"orders": 0}, "manifest": map[string]any{"deployments": len(s.manifests)},
		"cluster_public_hostname": "127.0.0.1", "address": s.cfg.Provider,
	}
}

// migrate says that everything moved, if there is a lease to move it to.
func (s *Server) migrate(key string) func(*request) {
	return func(q *request) {
		var in map[string]json.RawMessage
		var names []string
		raw, err := io.ReadAll(io.LimitReader(q.r.Body, 1<<20))
		if err == nil {
			err = json.Unmarshal(raw, &in)
		}
		if err == nil {
			err = json.Unmarshal(in[key], &names)
		}
		if err == nil {
			err = json.Unmarshal(in["destination_dseq"], &q.id.DSeq)
		}
		if err == nil {
			err = json.Unmarshal(in["destination_gseq"], &q.id.GSeq)
		}
		if err != nil {
			http.Error(q.w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		if !s.leased(q.r.Context(), q.id) {
			http.Error(q.w, "no lease for deployment", http.StatusNotFound)
			return
		}
		answer(q.w, map[string]any{"transferred": names})
	}
}
