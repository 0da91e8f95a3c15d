// Package gatewayclient speaks to the gateway of a provider, as a tenant does:
// manifests, status, logs, events, shells. It does one thing at a time and keeps
// no state; package tenant makes a deployment of it.
//
//	g, err := gatewayclient.New(gatewayclient.Config{Provider: address, URI: hostURI, Registry: chain, Signer: key})
//	defer g.Close()
//	err = g.SendManifest(ctx, dseq, manifest.JSON())
//	for line, err := range g.Logs(ctx, lease, gatewayclient.StreamConfig{Follow: true}) { … }
//
// # Whom it trusts
//
// The chain's registry of certificates, and nobody else. A provider is a
// stranger: its server is checked before a byte of a request is sent, a token
// names the one provider it is for, answers are bounded in size, and text that
// reaches a terminal through an error has no control characters. The output of a
// workload (logs, shell) is passed on as it is: it is the tenant's own.
//
// Every request can be repeated but that for a shell. Errors wrap one of the
// variables of this package, and a [croft.Error] with a remedy; [Temporary] says
// which may pass by themselves.
package gatewayclient

import (
	"bytes"
	"cmp"
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
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/credential"
	"github.com/croft-cloud/croft/chain/sdl"
)

// Config is copied by [New], checked once, and never changed
// afterwards.
type Config struct {
	Provider account.Address // required; whose gateway it is
	URI      string          // required; host_uri of the provider on the chain: https://host:port
	Registry Registry        // required; says which certificates are valid

	// Signer and Certificate say who asks: at most one of them. With neither,
	// only Version, Address and Status can be asked for.
	Signer      account.Signer   // signs a token for each request
	Certificate *tls.Certificate // valid on the chain for the tenant

	// Roots are the authorities that may vouch for the gateway; default: the
	// system's.
	Roots *x509.CertPool
	// Dial reaches the gateway; default: TCP.
	Dial Dialer
	// Timeout limits one request, streams apart; default 30 s. Sending a manifest
	// may take four times as long: providers do.
	Timeout time.Duration
	// Quiet is after how long without a sign of life a stream is taken for dead;
	// default 30 s.
	Quiet time.Duration
	// Log gets reconnects; default: nothing is logged.
	Log *slog.Logger
}

// Gateway is a tenant's way to one provider: REST for what is asked once,
// websockets for what flows. It is safe for use by several goroutines.
//
// Parties: the provider, known by its address on the chain; the tenant. Before a
// byte of a request leaves, the server has shown, under TLS 1.3, a certificate
// that the authorities vouch for under the host name of the URI, or exactly one
// that the chain lists as valid for the provider's address. The tenant shows a
// token, fresh for each request and good at this provider only, or its own
// certificate, during the handshake and under the server name "mtls.HOST";
// never both.
type Gateway struct {
	cfg    Config
	base   *url.URL
	http   *http.Client // shows the tenant's certificate, if there is one
	public *http.Client // shows nothing
	log    *slog.Logger
}

// Limits on what a provider may answer.
const (
	maxAnswerBytes = 8 << 20 // a JSON answer
	maxErrorBytes  = 4 << 10 // the text of an error
	maxFrameBytes  = 1 << 20 // one websocket message
	maxHeaderBytes = 64 << 10
)

// Registry answers which certificates are valid; the Client of package client does.
type Registry interface {
	Certificates(context.Context, *certv1.CertificateFilter) iter.Seq2[*certv1.CertificateResponse, error]
}

// Dialer opens a connection, as [net.Dialer.DialContext] does.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// New checks cfg. It reaches for nothing.
func New(cfg Config) (*Gateway, error) {
	base, err := parseHostURI(cfg.URI)
	switch {
	case err != nil:
		return nil, fmt.Errorf("gateway of %s: %w", cfg.Provider, err)
	case cfg.Registry == nil:
		return nil, errors.New("gateway: registry is missing")
	case cfg.Signer != nil && cfg.Certificate != nil:
		return nil, errors.New("gateway: token and certificate exclude each other")
	}
	if _, err := account.ParseAddress(string(cfg.Provider)); err != nil {
		return nil, fmt.Errorf("gateway: provider: %w", err)
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, 30*time.Second)
	cfg.Quiet = cmp.Or(cfg.Quiet, 30*time.Second)
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{cfg: cfg, base: base, log: cfg.Log.With("provider", cfg.Provider)}
	g.http = g.client(cfg.Certificate)
	g.public = g.client(nil)
	return g, nil
}

// parseHostURI keeps the rule of the chain: https, a host, no path.
func parseHostURI(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("URI: %w", err)
	}
	if u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("URI %q: want https://host:port", s)
	}
	u.Path = ""
	return u, nil
}

// client makes the HTTP client of one identity.
func (g *Gateway) client(certificate *tls.Certificate) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return g.dial(ctx, network, address, certificate)
			},
			MaxResponseHeaderBytes: maxHeaderBytes,
			IdleConnTimeout:        30 * time.Second,
			MaxIdleConnsPerHost:    4,
			ResponseHeaderTimeout:  4 * g.cfg.Timeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close lets go of idle connections.
func (g *Gateway) Close() {
	g.http.CloseIdleConnections()
	g.public.CloseIdleConnections()
}

// Provider is whose gateway it is.
func (g *Gateway) Provider() account.Address { return g.cfg.Provider }

// dial makes a connection to the provider, and to nobody else.
func (g *Gateway) dial(ctx context.Context, network, address string, certificate *tls.Certificate) (net.Conn, error) {
	raw, err := g.cfg.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		ServerName: g.base.Hostname(),
		// What replaces the standard check runs inside the handshake, before the
		// tenant's certificate is sent: see verify.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return g.verify(ctx, state.PeerCertificates)
		},
	}
	if certificate != nil {
		cfg.Certificates = []tls.Certificate{*certificate}
		cfg.ServerName = "mtls." + g.base.Hostname()
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// verify decides whether these certificates are the provider's.
func (g *Gateway) verify(ctx context.Context, shown []*x509.Certificate) error {
	if len(shown) == 0 {
		return &serverError{errors.New("it shows no certificate")}
	}
	options := x509.VerifyOptions{Roots: g.cfg.Roots, DNSName: g.base.Hostname(), Intermediates: x509.NewCertPool()}
	for _, c := range shown[1:] {
		options.Intermediates.AddCert(c)
	}
	_, byRoots := shown[0].Verify(options)
	if byRoots == nil {
		return nil
	}
	own, err := credential.PeerCertificate(shown, x509.ExtKeyUsageServerAuth, time.Now())
	if err != nil {
		return &serverError{fmt.Errorf("no authority vouches for it (%w), and it is not a provider's own (%w)", byRoots, err)}
	}
	if own.Owner != g.cfg.Provider {
		return &serverError{fmt.Errorf("it shows the certificate of %s", own.Owner)}
	}
	filter := &certv1.CertificateFilter{Owner: string(own.Owner), Serial: own.Serial, State: "valid"}
	for c, err := range g.cfg.Registry.Certificates(ctx, filter) {
		if err != nil {
			return fmt.Errorf("ask the chain for certificate %s: %w", own.Serial, err)
		}
		if c.GetSerial() == own.Serial && c.GetCertificate().GetState() == certv1.State_valid && sameCertificate(c.GetCertificate(), own) {
			return nil
		}
	}
	return &serverError{fmt.Errorf("its certificate %s is not valid on the chain", own.Serial)}
}

// sameCertificate reports whether the chain's certificate is the one shown. Its
// serial number alone would be anybody's to copy.
func sameCertificate(onChain *certv1.Certificate, shown credential.Certificate) bool {
	c, err := credential.ParseCertificate(onChain.GetCert(), onChain.GetPubkey())
	return err == nil && c.X509.Equal(shown.X509)
}

// serverError reports a server that has not shown to be the provider.
type serverError struct{ error }

func (e *serverError) Unwrap() error { return e.error }

// Kinds of refusals. Errors of a [Gateway] wrap one of them, and a [croft.Error]
// that says what to do.
var (
	// ErrNoLease reports that the provider knows no such lease, or not yet; or
	// that it has no such service or manifest.
	ErrNoLease = errors.New("provider has no such lease or service")
	// ErrNotAuthorized reports that the provider does not accept who asks.
	ErrNotAuthorized = errors.New("provider does not accept the credentials")
	// ErrManifestRefused reports that the provider checked a manifest, and why it
	// does not take it.
	ErrManifestRefused = errors.New("provider refuses the manifest")
	// ErrUnavailable reports a provider that cannot serve just now.
	ErrUnavailable = errors.New("provider is not available")
	// ErrUnreachable reports a gateway that cannot be reached.
	ErrUnreachable = errors.New("gateway cannot be reached")
	// ErrImpostor reports a server that has not shown to be the provider.
	ErrImpostor = errors.New("server is not the provider")
	// ErrProtocol reports an answer that is not what the protocol says.
	ErrProtocol = errors.New("provider answers what cannot be understood")
)

// Temporary reports errors that may pass: the provider does not see the lease
// yet, cannot serve, or cannot be reached.
func Temporary(err error) bool {
	return errors.Is(err, ErrNoLease) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnreachable)
}

// GatewayError is a refusal as the provider worded it.
type GatewayError struct {
	Provider account.Address
	Status   int    // of HTTP; 0 when the refusal came over a websocket
	Code     int    // of the websocket's end; 0 when it came over HTTP
	Message  string // the provider's words, on one line
}

func (e *GatewayError) Error() string {
	what := fmt.Sprintf("status %d", e.Status)
	if e.Status == 0 {
		what = fmt.Sprintf("code %d", e.Code)
	}
	if e.Message == "" {
		return what
	}
	return fmt.Sprintf("%s: %s", what, e.Message)
}

// refusal gives a refusal its kind and remedy.
func (g *Gateway) refusal(op string, e *GatewayError) error {
	kind, is, remedy := croft.KindRefused, ErrUnavailable, "repeat in a while; if it stays so, close the lease and choose another provider"
	switch {
	case e.Status == http.StatusNotFound, e.Code == closeNotFound:
		kind, is = croft.KindNotFound, ErrNoLease
		remedy = "look at the numbers and the service's name; a provider sees a new lease some blocks later, and has a service after its manifest"
	case e.Status == http.StatusUnprocessableEntity:
		is, remedy = ErrManifestRefused, "correct what it names; the manifest must be that of the SDL file last deployed or updated"
	case e.Status == http.StatusUnauthorized && g.cfg.Certificate != nil:
		is, remedy = ErrNotAuthorized, "publish the client certificate, or use a token"
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden:
		is, remedy = ErrNotAuthorized, "send any transaction first, so that the chain knows the account's key; compare this machine's clock; use the lease's owner"
	case e.Status == http.StatusBadRequest:
		is, remedy = ErrNotAuthorized, "compare this machine's clock; show a token or a certificate, not both"
		if g.cfg.Signer == nil && g.cfg.Certificate == nil {
			is, remedy = ErrProtocol, "report it to the provider"
		}
	case e.Status >= 300 && e.Status < 500:
		is, remedy = ErrProtocol, "see that the provider's URI on the chain is its gateway"
	}
	return g.wrap(op, kind, fmt.Errorf("%w: %w", is, e), remedy)
}

func (g *Gateway) wrap(op string, kind croft.Kind, err error, remedy string) error {
	return &croft.Error{Kind: kind, Err: fmt.Errorf("%s at provider %s: %w", op, g.cfg.Provider, err), Remedy: remedy}
}

// unreached says why no answer came.
func (g *Gateway) unreached(ctx context.Context, op string, err error) error {
	if cause := ctx.Err(); cause != nil && !errors.Is(context.Cause(ctx), errSlow) {
		return fmt.Errorf("%s at provider %s: %w", op, g.cfg.Provider, cause)
	}
	if server, ok := errors.AsType[*serverError](err); ok {
		return g.wrap(op, croft.KindRefused, fmt.Errorf("%w: %w", ErrImpostor, server), "do not use this provider until it has renewed its certificate")
	}
	return g.wrap(op, croft.KindOther, fmt.Errorf("%w: %w", ErrUnreachable, err), "see that "+g.base.String()+" can be reached from here; repeat in a while")
}

var errSlow = errors.New("no answer in time")

// call makes one request and reads its JSON answer into out, unless it is nil.
// Public requests show no credentials: a bad token would spoil even them.
func (g *Gateway) call(ctx context.Context, op, method, path string, body []byte, out any) error {
	timeout := g.cfg.Timeout
	if method == http.MethodPut {
		timeout *= 4
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errSlow)
	defer cancel()
	public := method == http.MethodGet && !strings.HasPrefix(path, "/lease/")
	req, err := http.NewRequestWithContext(ctx, method, g.base.String()+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	doer := g.public
	if !public {
		doer = g.http
		if req.Header, err = g.authorize(ctx, req.Header); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	resp, err := doer.Do(req)
	if err != nil {
		return g.unreached(ctx, op, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return g.refusal(op, g.refused(resp))
	}
	if out == nil {
		return nil
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return g.unreached(ctx, op, err)
	}
	if len(raw) > maxAnswerBytes {
		return g.garbled(op, fmt.Errorf("answer is longer than %d bytes", maxAnswerBytes))
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return g.garbled(op, err)
	}
	return nil
}

func (g *Gateway) garbled(op string, err error) error {
	return g.wrap(op, croft.KindInvalid, fmt.Errorf("%w: %w", ErrProtocol, err), "report it to the provider, or choose another")
}

// refused reads an error answer: {"message": …} or plain text.
func (g *Gateway) refused(resp *http.Response) *GatewayError {
	e := &GatewayError{Provider: g.cfg.Provider}
	if resp == nil {
		return e
	}
	e.Status = resp.StatusCode
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes)) // what could be read is told
	var body struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(raw, &body) == nil && body.Message != "" {
		raw = []byte(body.Message)
	}
	e.Message = oneLine(string(raw))
	return e
}

// oneLine makes a stranger's text fit for a terminal: no control characters, at
// most a few hundred letters.
func oneLine(s string) string {
	const most = 500
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, " "))), " ")
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most]) + "…"
	}
	return s
}

// authorize adds the token to a header, if tokens are used. It is good at this
// provider only: one that may be used everywhere, as other clients make it,
// would let the provider into the tenant's leases at others.
func (g *Gateway) authorize(ctx context.Context, header http.Header) (http.Header, error) {
	if header == nil {
		header = http.Header{}
	}
	if g.cfg.Signer == nil {
		if g.cfg.Certificate == nil {
			return nil, &croft.Error{Kind: croft.KindUsage, Err: errors.New("no credentials are given"), Remedy: "name the tenant's key"}
		}
		return header, nil
	}
	claims := credential.FullAccess(time.Now())
	claims.Leases = credential.Grant{
		Access:      credential.AccessGranular,
		Permissions: []credential.Permission{{Provider: g.cfg.Provider, Access: credential.AccessFull}},
	}
	token, err := credential.Sign(ctx, g.cfg.Signer, claims)
	if err != nil {
		return nil, fmt.Errorf("sign token: %w", err)
	}
	header.Set("Authorization", "Bearer "+token)
	return header, nil
}

// SendManifest gives the provider what to run in all groups of a deployment. The
// bytes are those that were hashed for the chain ([sdl.Manifest.JSON]). Sending
// the same again changes nothing. A provider that does not see the lease yet
// answers [ErrNoLease]: repeat.
func (g *Gateway) SendManifest(ctx context.Context, dseq uint64, manifest []byte) error {
	return g.call(ctx, "send manifest", http.MethodPut, fmt.Sprintf("/deployment/%d/manifest", dseq), manifest, nil)
}

// SendManifestWait is SendManifest, repeated while the error is [Temporary] and
// for at most this long.
func (g *Gateway) SendManifestWait(ctx context.Context, dseq uint64, manifest []byte, atMost time.Duration) error {
	end := time.Now().Add(atMost)
	for {
		err := g.SendManifest(ctx, dseq, manifest)
		if err == nil || !Temporary(err) || !time.Now().Before(end) {
			return err
		}
		g.log.Debug("manifest not taken yet", "dseq", dseq, "error", err)
		if pause(ctx, time.Second) != nil {
			return err
		}
	}
}

// GetManifest asks for what the provider runs under a lease: an array with its
// one group.
func (g *Gateway) GetManifest(ctx context.Context, id akash.LeaseID) (sdl.Manifest, error) {
	var raw json.RawMessage
	if err := g.call(ctx, "get manifest", http.MethodGet, leasePath(id)+"/manifest", nil, &raw); err != nil {
		return nil, err
	}
	m, err := sdl.ParseManifest(raw)
	if err != nil {
		return nil, g.garbled("get manifest", err)
	}
	return m, nil
}

// LeaseStatus asks how the services of a lease are.
func (g *Gateway) LeaseStatus(ctx context.Context, id akash.LeaseID) (LeaseStatus, error) {
	var s LeaseStatus
	err := g.call(ctx, "ask for lease status", http.MethodGet, leasePath(id)+"/status", nil, &s)
	return s, err
}

// ServiceStatus asks how one service of a lease is.
func (g *Gateway) ServiceStatus(ctx context.Context, id akash.LeaseID, service string) (ServiceStatus, error) {
	var s ServiceStatus
	path := leasePath(id) + "/service/" + url.PathEscape(service) + "/status"
	err := g.call(ctx, "ask for service status", http.MethodGet, path, nil, &s)
	return s, err
}

// Status asks what the provider has and how much of it is in use.
func (g *Gateway) Status(ctx context.Context) (ProviderStatus, error) {
	var s ProviderStatus
	err := g.call(ctx, "ask for status", http.MethodGet, "/status", nil, &s)
	return s, err
}

// Version asks what software the provider runs.
func (g *Gateway) Version(ctx context.Context) (Version, error) {
	var v Version
	err := g.call(ctx, "ask for version", http.MethodGet, "/version", nil, &v)
	return v, err
}

// Address asks the gateway for the provider's address.
func (g *Gateway) Address(ctx context.Context) (account.Address, error) {
	var a struct {
		Address string `json:"address"`
	}
	if err := g.call(ctx, "ask for address", http.MethodGet, "/address", nil, &a); err != nil {
		return "", err
	}
	address, err := account.ParseAddress(a.Address)
	if err != nil {
		return "", g.garbled("ask for address", err)
	}
	return address, nil
}

// MigrateHostnames moves host names to another deployment of the tenant at this
// provider, and returns those that moved.
func (g *Gateway) MigrateHostnames(ctx context.Context, hosts []string, dseq uint64, gseq uint32) ([]string, error) {
	return g.migrate(ctx, "migrate host names", "/hostname/migrate", "hostnames_to_migrate", hosts, dseq, gseq)
}

// MigrateEndpoints moves leased addresses to another deployment of the tenant at
// this provider, and returns those that moved.
func (g *Gateway) MigrateEndpoints(ctx context.Context, endpoints []string, dseq uint64, gseq uint32) ([]string, error) {
	return g.migrate(ctx, "migrate endpoints", "/endpoint/migrate", "endpoints_to_migrate", endpoints, dseq, gseq)
}

func (g *Gateway) migrate(ctx context.Context, op, path, key string, names []string, dseq uint64, gseq uint32) ([]string, error) {
	body, err := json.Marshal(map[string]any{key: names, "destination_dseq": dseq, "destination_gseq": gseq})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	var out struct {
		Transferred []string `json:"transferred"`
	}
	if err := g.call(ctx, op, http.MethodPost, path, body, &out); err != nil {
		return nil, err
	}
	return out.Transferred, nil
}

func leasePath(id akash.LeaseID) string {
	return fmt.Sprintf("/lease/%d/%d/%d", id.DSeq, id.GSeq, id.OSeq)
}

// pause waits for d, or for ctx and returns its error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
