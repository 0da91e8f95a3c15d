package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/crowd"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/credential"
)

// Times and sizes of what is remembered of the chain.
const (
	keyFresh     = 10 * time.Minute // an account's key does not change
	certFresh    = 10 * time.Second // a certificate may be revoked
	absentFresh  = 3 * time.Second  // what is not there may come
	staleFor     = 15 * time.Minute // what was there, while the chain cannot be asked
	maxKnown     = 2048             // accounts or certificates that are there
	maxAbsent    = 2048             // and that are not
	chainTimeout = 5 * time.Second  // for one query
	chainRate    = 20               // queries a second
	chainBurst   = 60
	askRate      = 2 // queries a second of one address about whom nobody knows
	askBurst     = 20
	maxSerial    = 160 // bits, as X.509 bounds it; what is remembered is as long as it
)

var (
	errBusy      = errors.New("too many strangers ask at once")
	errChainDown = errors.New("the chain cannot be asked just now")
)

// identity is who asks.
type identity struct {
	owner  account.Address   // empty: nobody
	claims credential.Claims // of a token
	full   bool              // a certificate: no limits
}

// allows reports whether who asks may do this with a lease of theirs.
func (i identity) allows(r credential.Request) bool {
	if i.owner == "" || r.Owner != i.owner {
		return false
	}
	return i.full || i.claims.Allows(r)
}

// authenticator says who asks.
type authenticator struct {
	verifier credential.Verifier
	keys     *memory[account.Address, account.PublicKey]
	certs    *memory[certificateID, *x509.Certificate]
}

type certificateID struct {
	owner  account.Address
	serial string
}

func newAuthenticator(chain Chain) *authenticator {
	queries := &queries{all: rate.NewLimiter(chainRate, chainBurst), each: crowd.NewRates(askRate, askBurst)}
	a := &authenticator{
		keys: newMemory(keyFresh, queries, chain.PublicKey),
		certs: newMemory(certFresh, queries, func(ctx context.Context, id certificateID) (*x509.Certificate, error) {
			filter := &certv1.CertificateFilter{Owner: string(id.owner), Serial: id.serial, State: "valid"}
			for c, err := range chain.Certificates(ctx, filter) {
				if err != nil {
					return nil, err
				}
				if c.GetSerial() != id.serial || c.GetCertificate().GetState() != certv1.State_valid {
					continue
				}
				parsed, err := credential.ParseCertificate(c.GetCertificate().GetCert(), c.GetCertificate().GetPubkey())
				if err == nil {
					return parsed.X509, nil
				}
			}
			return nil, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("the certificate is not valid on the chain")}
		}),
	}
	a.verifier = credential.Verifier{PublicKey: a.keys.get}
	return a
}

// identify says who asks. Its errors are refusals. A bad token or certificate is
// refused whatever is asked for.
func (a *authenticator) identify(r *http.Request) (identity, error) {
	ctx := context.WithValue(r.Context(), clientKey{}, crowd.ClientOf(r.RemoteAddr))
	headers := r.Header.Values("Authorization")
	shown := r.TLS.PeerCertificates
	switch {
	case len(headers) > 1:
		return identity{}, unauthenticated(http.StatusBadRequest, "more than one Authorization header")
	case len(headers) == 1 && len(shown) > 0:
		return identity{}, unauthenticated(http.StatusBadRequest, "a certificate and a token exclude each other; show one of them")
	case len(headers) == 1:
		scheme, token, _ := strings.Cut(headers[0], " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return identity{}, unauthenticated(http.StatusUnauthorized, "the Authorization header is not of the form: Bearer TOKEN")
		}
		return a.byToken(ctx, strings.TrimSpace(token))
	case len(shown) > 0:
		return a.byCertificate(ctx, shown)
	default:
		return identity{}, nil
	}
}

func (a *authenticator) byToken(ctx context.Context, token string) (identity, error) {
	claims, err := a.verifier.Verify(ctx, token, time.Now())
	switch {
	case err == nil:
		return identity{owner: claims.Issuer, claims: claims}, nil
	case errors.Is(err, credential.ErrExpired), errors.Is(err, credential.ErrNotYetValid):
		return identity{}, unauthenticated(http.StatusBadRequest, fmt.Sprintf("%s; the clock here says %s", err, time.Now().UTC().Format(time.RFC3339)))
	case errors.Is(err, credential.ErrMalformed), errors.Is(err, credential.ErrNotByIssuer):
		return identity{}, unauthenticated(http.StatusUnauthorized, err.Error())
	case croft.KindOf(err) == croft.KindNotFound:
		return identity{}, unauthenticated(http.StatusUnauthorized, "the chain knows no key of the token's account; send any transaction from it first")
	default:
		return identity{}, unasked(err)
	}
}

func (a *authenticator) byCertificate(ctx context.Context, shown []*x509.Certificate) (identity, error) {
	if shown[0].SerialNumber.BitLen() > maxSerial {
		return identity{}, unauthenticated(http.StatusUnauthorized, "the certificate is not accepted: its serial number is too long")
	}
	c, err := credential.PeerCertificate(shown, x509.ExtKeyUsageClientAuth, time.Now())
	if err != nil {
		return identity{}, unauthenticated(http.StatusUnauthorized, "the certificate is not accepted: "+err.Error())
	}
	onChain, err := a.certs.get(ctx, certificateID{c.Owner, c.Serial})
	switch {
	case err == nil && onChain.Equal(c.X509):
		return identity{owner: c.Owner, full: true}, nil
	case err == nil, croft.KindOf(err) == croft.KindNotFound:
		return identity{}, unauthenticated(http.StatusUnauthorized, fmt.Sprintf("certificate %s of %s is not valid on the chain; publish it first", c.Serial, c.Owner))
	default:
		return identity{}, unasked(err)
	}
}

// unasked is the refusal while the chain cannot say who asks.
func unasked(err error) error {
	if errors.Is(err, errBusy) { // their doing: not for the log
		return refuse(http.StatusServiceUnavailable, "too many requests from strangers; repeat in a while")
	}
	return &refusal{status: http.StatusServiceUnavailable, text: "the chain cannot be asked who you are; repeat in a while", cause: err}
}

// queries is how often the chain may be asked.
type queries struct {
	all  *rate.Limiter
	each *crowd.Rates // by address, about whom nobody knows
}

// clientKey finds the name of the address in a request's context.
type clientKey struct{}

func (q *queries) allow(ctx context.Context, known bool) bool {
	if client, _ := ctx.Value(clientKey{}).(string); !known && !q.each.Allow(client) {
		return false
	}
	return q.all.Allow()
}

// memory remembers answers of the chain, so that many requests cost few queries.
// Concurrent questions about one key become one query.
type memory[K comparable, V any] struct {
	fresh   time.Duration // how long an answer counts without asking again
	queries *queries      // shared
	ask     func(context.Context, K) (V, error)
	flight  singleflight.Group

	mu     sync.Mutex
	known  map[K]fact[V]   // guarded by mu; at most maxKnown
	absent map[K]fact[any] // guarded by mu; at most maxAbsent. Apart, so that inventions push out nobody
}

type fact[V any] struct {
	value V
	err   error     // of what is absent
	at    time.Time // when the chain said so
	until time.Time // when it is asked again
}

func newMemory[K comparable, V any](fresh time.Duration, queries *queries, ask func(context.Context, K) (V, error)) *memory[K, V] {
	return &memory[K, V]{fresh: fresh, queries: queries, ask: ask, known: map[K]fact[V]{}, absent: map[K]fact[any]{}}
}

// get answers from memory or from the chain. Errors: not_found; errBusy and
// errChainDown, neither of which says anything about the key.
func (m *memory[K, V]) get(ctx context.Context, key K) (V, error) {
	m.mu.Lock()
	old, have := m.known[key]
	gone, missing := m.absent[key]
	m.mu.Unlock()
	have = have && time.Since(old.at) < staleFor
	switch {
	case have && time.Now().Before(old.until):
		return old.value, nil
	case missing && time.Now().Before(gone.until):
		return *new(V), gone.err
	}
	if !m.queries.allow(ctx, have) {
		if have {
			return old.value, nil
		}
		return *new(V), errBusy
	}
	result, err, _ := m.flight.Do(fmt.Sprint(key), func() (any, error) {
		// Whoever asked first may leave; the others wait for the same answer.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chainTimeout)
		defer cancel()
		v, err := m.ask(ctx, key)
		m.remember(key, v, err)
		return v, err
	})
	switch {
	case err == nil:
		return result.(V), nil
	case croft.KindOf(err) == croft.KindNotFound:
		return *new(V), err
	case have:
		return old.value, nil
	default:
		return *new(V), fmt.Errorf("%w: %w", errChainDown, err)
	}
}

func (m *memory[K, V]) remember(key K, v V, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	old, have := m.known[key]
	switch {
	case err == nil:
		delete(m.absent, key)
		room(m.known, maxKnown)
		m.known[key] = fact[V]{value: v, at: now, until: now.Add(m.fresh)}
	case croft.KindOf(err) == croft.KindNotFound:
		delete(m.known, key)
		room(m.absent, maxAbsent)
		m.absent[key] = fact[any]{err: err, at: now, until: now.Add(absentFresh)}
	case have: // not every request waits for a chain that does not answer
		old.until = now.Add(absentFresh)
		m.known[key] = old
	}
}

// room drops entries, any, until one more fits.
func room[K comparable, V any](m map[K]V, most int) {
	for k := range m {
		if len(m) < most {
			return
		}
		delete(m, k)
	}
}
