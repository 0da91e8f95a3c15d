// Package tenant is a tenant's side of a deployment: it creates one on the
// chain, chooses bids, leases, sends the manifest to the providers and waits
// until the workload answers; later it updates, watches, pays for and closes it.
//
//	t, err := tenant.New(tenant.Config{Chain: c, Signer: key, Store: store})
//	plan, err := t.Plan(ctx, file, tenant.PlanConfig{Deposit: deposit})
//	record, err := t.Deploy(ctx, plan.ID, tenant.DeployConfig{Progress: show})
//
// Package gatewayclient speaks to one provider, for logs and shells; package quote
// says which providers could bid at all, what a lease costs and how long the
// money lasts.
//
// # What a deployment promises
//
// A deployment is a state machine whose state stands in one file ([Store]).
// State is written before it is acted upon, and every act can be repeated:
//
//   - The number of a deployment (dseq) is fixed in the file before anything is
//     sent, and the chain takes each number once: no deployment is made twice.
//   - A transaction is in the file before it leaves ([client.Tx.OnSigned]). After
//     a crash its fate is asked for first, so that what was paid is never lost
//     sight of and nothing is paid twice.
//   - The chain is believed rather than the file: a lease that exists is used, a
//     deployment that is gone is reported gone.
//   - The manifest is kept with the deployment, and sent again to a provider as
//     often as needed: it is the same bytes.
//
// So whatever ends a call of [Tenant.Deploy], be it a crash, a context, a node or
// a provider that is away: the same call goes on where it was. Two calls on one
// deployment exclude each other by a lock that dies with the process.
//
// The node is trusted, and nobody else: see package gatewayclient for what a
// provider can and cannot do.
package tenant

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"iter"
	"log/slog"
	"net/http"
	"time"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// Chain is what a tenant needs of a chain; [client.Client] has it.
type Chain interface {
	Ledger
	Registry
	ChainID() string
	Status(context.Context) (client.Status, error)
	// Send and Resume promise what package client says of them.
	Send(context.Context, account.Signer, client.Tx) (client.Result, error)
	Resume(context.Context, client.Signed) (client.Result, error)
}

// Ledger answers what was deployed, offered and leased. What does not exist is
// [croft.KindNotFound]; an empty list is no error.
type Ledger interface {
	Deployment(context.Context, akash.DeploymentID) (*deploymentv1beta4.QueryDeploymentResponse, error)
	Deployments(context.Context, *deploymentv1beta4.DeploymentFilters) iter.Seq2[*deploymentv1beta4.QueryDeploymentResponse, error]
	Bids(context.Context, *marketv1beta5.BidFilters) iter.Seq2[*marketv1beta5.QueryBidResponse, error]
	Leases(context.Context, *marketv1.LeaseFilters) iter.Seq2[*marketv1beta5.QueryLeaseResponse, error]
}

// Registry answers who is who.
type Registry interface {
	gatewayclient.Registry
	Provider(context.Context, account.Address) (*providerv1beta4.Provider, error)
}

// HTTPDoer sends a request; [http.Client] does.
type HTTPDoer interface {
	Do(*http.Request) (*http.Response, error)
}

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Chain  Chain          // required
	Signer account.Signer // required; the tenant's account
	Store  *Store         // required; where deployments are remembered

	// Certificate, if set, is shown to gateways instead of tokens; see
	// [Tenant.Certificate].
	Certificate *tls.Certificate
	// Roots are the authorities that may vouch for a gateway; default: the
	// system's. A certificate registered on the chain is always enough.
	Roots *x509.CertPool
	// Dial reaches gateways; default: TCP.
	Dial gatewayclient.Dialer
	// HTTP asks the workload's own URLs whether they answer; default: a client
	// that follows no redirects and gives up after 10 s.
	HTTP HTTPDoer
	// Poll is how often the chain and the gateways are looked at while waiting;
	// default 1 s.
	Poll time.Duration
	// FeeGranter pays the fees of transactions; default: the signer.
	FeeGranter account.Address
	// Log gets what is retried; default: nothing is logged.
	Log *slog.Logger
}

// Tenant acts for one account on one chain. It is safe for use by several
// goroutines; it runs none of its own between calls.
type Tenant struct {
	cfg   Config
	owner account.Address
	log   *slog.Logger
}

// New checks cfg. It reaches for nothing.
func New(cfg Config) (*Tenant, error) {
	switch {
	case cfg.Chain == nil:
		return nil, errors.New("tenant: chain is missing")
	case cfg.Signer == nil:
		return nil, errors.New("tenant: signer is missing")
	case cfg.Store == nil:
		return nil, errors.New("tenant: store is missing")
	}
	owner, err := cfg.Signer.PublicKey().Address()
	if err != nil {
		return nil, err
	}
	cfg.Poll = cmp.Or(cfg.Poll, time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{
			Timeout:       10 * time.Second,
			Transport:     &http.Transport{DisableKeepAlives: true, DialContext: cfg.Dial},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &Tenant{cfg: cfg, owner: owner, log: cfg.Log.With("owner", owner)}, nil
}

// Owner is the account the Tenant acts for.
func (t *Tenant) Owner() account.Address { return t.owner }

// ID names one of the owner's deployments.
func (t *Tenant) ID(dseq uint64) akash.DeploymentID {
	return akash.DeploymentID{Owner: t.owner, DSeq: dseq}
}

// Gateway speaks to a provider at the address that stands on the chain.
func (t *Tenant) Gateway(ctx context.Context, provider account.Address) (*gatewayclient.Gateway, error) {
	p, err := t.cfg.Chain.Provider(ctx, provider)
	if err != nil {
		return nil, err
	}
	cfg := gatewayclient.Config{
		Provider: provider, URI: p.GetHostUri(), Registry: t.cfg.Chain,
		Certificate: t.cfg.Certificate, Roots: t.cfg.Roots, Dial: t.cfg.Dial, Log: t.cfg.Log,
	}
	if cfg.Certificate == nil {
		cfg.Signer = t.cfg.Signer
	}
	return gatewayclient.New(cfg)
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
