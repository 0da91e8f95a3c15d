// Package gateway is the Akash provider gateway of the box: what tenants and
// their tools speak to once they have a lease. It serves REST and websockets on
// one listener and gRPC on another, says who asks and whether they may, and
// passes the rest to the parts that know: it runs nothing and keeps nothing.
//
//	g, err := gateway.New(gateway.Config{Provider: address, REST: l, GRPC: l2, …})
//	err = g.Run(ctx)
//
// # Whom it believes
//
// The chain. A tenant is whoever holds an account's key: either a token signed
// by it (Authorization: Bearer …, ES256K or ES256KADR36), or a TLS certificate
// that the chain lists as valid for the account. Both at once is 400, neither
// where one is needed 401, and a token or certificate that is bad fails even
// where none is needed. Paths name a lease by numbers only: its owner is who
// asked, its provider this box. A token with limits is held to them on every
// path; Akash's own gateway leaves two of them open (service status and
// migration).
//
// Tokens are good until they expire and may be used again: whoever steals one
// can replay it here for some minutes, and nowhere else if it names the provider.
//
// # TLS
//
// At least 1.3. A client that names the gateway's host gets the certificate of
// an authority if there is one, and is not asked for its own; any other, "mtls.HOST"
// above all, gets the certificate that is on the chain and may show one.
//
// # Promises
//
// Every size, count, rate and time is bounded (see limits.go). Nothing a
// stranger sends costs a query to the chain each time, and no address of theirs
// can use up what the others may ask. A stranger is also who has an account and no
// lease here: no body of theirs is read, and their streams take no place of
// tenants. Text of unknown errors stays in the log. When Run returns, no goroutine of the package is left,
// provided that the backends return when their context ends.
//
// # What survives what
//
//   - Crash or power cut: nothing is lost, nothing is kept.
//   - Full disk: does not matter here; a backend's error becomes its status.
//   - Wrong clock: tokens and certificates are refused (400 and 401) with their
//     dates in the sentence, until the clock is right.
//   - Chain node down: known tenants go on for [staleFor], strangers get 503.
package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/croft-cloud/croft/agent/crowd"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/api/certv1"
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Provider account.Address // required; whose gateway it is
	Host     string          // required; host name of the provider's URI on the chain
	REST     net.Listener    // required; closed when Run ends. RemoteAddr is the client's
	GRPC     net.Listener    // required; likewise

	Chain        Chain        // required; whom it believes
	Certificates Certificates // required; what it shows

	Manifests Manifests // required
	Statuses  Statuses  // required
	Logs      Logs      // required
	Events    Events    // required
	Shell     Shell     // required
	Provided  Provided  // required
	Hosts     Hosts     // required

	Software Software     // what /version tells
	Log      *slog.Logger // default: nothing is logged
}

// Chain is what the gateway asks of the chain; the Client of package client does.
// An account or certificate that does not exist is [croft.KindNotFound], or no
// element; every other error means that the chain cannot be asked.
type Chain interface {
	PublicKey(context.Context, account.Address) (account.PublicKey, error)
	Certificates(context.Context, *certv1.CertificateFilter) iter.Seq2[*certv1.CertificateResponse, error]
}

// Certificates is what the gateway shows. Both are asked for each connection, so
// that a new certificate needs no restart.
type Certificates interface {
	// OnChain is the provider's own, valid on the chain; nil until there is one.
	OnChain() *tls.Certificate
	// Authority is one that an authority vouches for, for the gateway's host; nil
	// if there is none.
	Authority() *tls.Certificate
}

// Software is which program answers.
type Software struct {
	Version string // of the release
	Commit  string
}

// Gateway is a provider's gateway. Make it with [New].
type Gateway struct {
	cfg     Config
	log     *slog.Logger
	auth    *authenticator
	sent    *crowd.Quota // manifests
	streams *crowd.Quota
	strays  *crowd.Quota // streams of who has no lease
	shells  *crowd.Quota
	clients *crowd.Rates
	tenants *crowd.Rates
	status  snapshot
}

// New checks cfg. It serves nothing yet; the listeners are Run's to close.
func New(cfg Config) (*Gateway, error) {
	if _, err := account.ParseAddress(string(cfg.Provider)); err != nil {
		return nil, fmt.Errorf("gateway: provider: %w", err)
	}
	for _, need := range []struct {
		what    string
		missing bool
	}{
		{"host name", cfg.Host == ""},
		{"listener for REST", cfg.REST == nil},
		{"listener for gRPC", cfg.GRPC == nil},
		{"chain", cfg.Chain == nil},
		{"source of certificates", cfg.Certificates == nil},
		{"backend for manifests", cfg.Manifests == nil},
		{"backend for statuses", cfg.Statuses == nil},
		{"backend for logs", cfg.Logs == nil},
		{"backend for events", cfg.Events == nil},
		{"backend for shells", cfg.Shell == nil},
		{"backend for the provider's status", cfg.Provided == nil},
		{"backend for host names", cfg.Hosts == nil},
	} {
		if need.missing {
			return nil, fmt.Errorf("gateway: %s is missing", need.what)
		}
	}
	cfg.Software.Version = cmp.Or(cfg.Software.Version, "unknown")
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Gateway{
		cfg: cfg, log: cfg.Log,
		auth:    newAuthenticator(cfg.Chain),
		sent:    crowd.NewQuota(maxManifests, maxManifestsEach),
		streams: crowd.NewQuota(maxStreams, maxStreamsPerTenant),
		strays:  crowd.NewQuota(maxStrays, maxStraysPerAccount),
		shells:  crowd.NewQuota(maxShells, maxShellsPerTenant),
		clients: crowd.NewRates(clientRate, clientBurst),
		tenants: crowd.NewRates(tenantRate, tenantBurst),
	}, nil
}

// Run serves until ctx ends, and then waits until every connection is done:
// requests get [grace] to end, streams are told that they may come again. It
// returns an error only if a listener breaks. Run it once.
func (g *Gateway) Run(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return g.runREST(ctx) })
	work.Go(func() error { return g.runGRPC(ctx) })
	return work.Wait()
}

func (g *Gateway) runREST(ctx context.Context) error {
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var handlers crowd.Gate
	routes := g.routes()
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !handlers.Enter() {
				return // everything is closed already
			}
			defer handlers.Leave()
			routes.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headerTimeout, // of the handshake as well
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug), // strangers cause these lines
	}
	listener := crowd.Listen(g.cfg.REST, crowd.NewQuota(maxConnections, maxConnectionsPerClient))
	served := make(chan error, 1)
	go func() { served <- server.Serve(tls.NewListener(listener, g.tlsConfig("http/1.1"))) }()
	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("serve gateway: %w", err)
	case <-ctx.Done():
		stop() // streams do not end by themselves
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		if server.Shutdown(late) != nil {
			server.Close()
		}
		cancel()
		<-served //nolint:errcheck // it was told to stop
	}
	stop()
	server.Close()
	handlers.Shut()
	return err
}

// errNoCertificate is what a handshake before the provider's registration ends
// with.
var errNoCertificate = errors.New("the provider has no certificate yet")

// tlsConfig is by the rules for host names; see the package comment.
func (g *Gateway) tlsConfig(protocol string) *tls.Config {
	base := tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocol},
		// A ticket would let a client come back without showing its certificate.
		SessionTicketsDisabled: true,
	}
	cfg := base.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		one := base.Clone()
		if authority := g.cfg.Certificates.Authority(); authority != nil && strings.EqualFold(hello.ServerName, g.cfg.Host) {
			one.Certificates = []tls.Certificate{*authority}
			return one, nil
		}
		own := g.cfg.Certificates.OnChain()
		if own == nil {
			return nil, errNoCertificate
		}
		one.Certificates = []tls.Certificate{*own}
		one.ClientAuth = tls.RequestClientCert
		return one, nil
	}
	return cfg
}

// goVersion is what /version tells of the compiler.
func goVersion() string {
	return "go version " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
}
