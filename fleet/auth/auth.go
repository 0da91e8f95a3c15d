// Package auth knows the fleet's people: who they are, how they sign in, what
// they may do.
//
//	s, err := auth.New(ctx, auth.Config{DB: d, Key: key, Origin: "https://fleet.example.org", …})
//	go s.Run(ctx)                                     // on every replica
//	url, err := s.Bootstrap(ctx)                      // the first admin's token, to print
//
// Package authhttp puts it before browsers and programs; package rights says who may
// do what, in one table.
//
// Owners sign in by passkey or by a link in an e-mail; both also make an account.
// Staff is invited by an admin and signs in by password and TOTP code, or through
// an OIDC provider whose groups say the role. The first admin uses the
// token of [Service.Bootstrap].
//
// # Promises
//
//   - All of it is in the database: sessions, counted tries and ceremonies hold
//     over restarts and replicas. Only mails that were not sent yet are lost with
//     the process; people ask for another.
//   - A link, an invitation, a recovery code, a TOTP code, the answer of a passkey
//     or of a provider works once, whatever arrives at once on however many replicas.
//   - A session gets a new cookie whenever it may do more than before. A new
//     password, another role and shutting somebody out end that person's sessions.
//     An invitation ends when who wrote it is no admin any more.
//   - People are mailed when their address, password, second factor or passkeys change.
//   - Every change is told to the [Auditor] in the transaction that makes it.
//   - Answers to strangers are the same whether an address is known or not.
//
// # What a thief of each thing gets
//
//   - The database without the key: names, e-mail addresses, who signed in from
//     where. No way in: of session cookies, links and tokens it holds hashes of 256
//     random bits; of passkeys public keys; TOTP secrets are encrypted (AES-256-GCM);
//     recovery codes and passwords are under an HMAC with the key before they are
//     hashed (passwords with argon2id), so that nobody guesses them offline.
//   - Who can write to the database makes himself an admin. The audit log shows it.
//   - The key without the database: nothing. Key and database: TOTP secrets, and
//     weak passwords by guessing. A lost key: staff needs new passwords and codes.
//   - A session cookie: what its owner may do until it ends, but not what asks for
//     a fresh proof (a quarter of an hour): passkeys, e-mail address, password,
//     tokens, staff. It is listed, and the owner can end it.
//   - The cookie of a browser (no session): tries at a password that strangers
//     cannot use up. It signs in nobody.
//   - A mailbox: an owner's account, for a quarter of an hour per link. Of staff,
//     a new password, which still needs the TOTP code.
//   - A link without the mailbox: the same, until used; opened in another browser
//     than the one that asked, it wants to be confirmed, so that nobody is signed
//     in to a stranger's account by a click.
//   - A password of staff: nothing without a TOTP code, 5 tries and then pauses
//     up to an hour: about one chance in 8,000 a day.
//   - A device with a passkey: nothing without its lock. A copy of a passkey that
//     counts is noticed when both are used; the one that lags is refused.
//   - An API token: its scopes, until it expires or is ended; never sign-in, never
//     more than its owner may at that moment.
//   - The OIDC provider: every role its groups map to. It is asked at sign-in only:
//     who leaves keeps an open session for [Config.StaffMost] at most, but API tokens
//     until they expire, unless he comes back without a group or is shut out here.
//
// # Tries
//
// A stranger who guesses makes an account pause for a quarter of an hour at most,
// and passkeys and links do not pause for wrong passwords at all. A browser in
// which somebody was signed in before has a count of its own, in which neither
// strangers nor neighbours behind the same address count. Staff can ask for a link,
// which makes the browser it is opened in such a one for passwords; for codes of the
// second factor only a whole sign-in does. Tries that a network shares are forgotten
// one by one, so that thousands behind one address can sign in.
package auth

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/oidclogin"
	"github.com/croft-cloud/croft/fleet/auth/pace"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Fresh is how long after a sign-in somebody may change how he signs in.
const Fresh = 15 * time.Minute

// Auditor writes an entry in the caller's transaction.
type Auditor interface {
	Record(tx *db.Tx, e Entry) error
}

// Entry is one change, field for field what fleet/auditlog calls one, so that
// auditlog.Entry(e) is all the wiring needs.
type Entry struct {
	ID      string
	At      time.Time
	Actor   string
	Role    string
	Address string
	Action  string
	Kind    string
	Object  string
	Before  map[string]string
	After   map[string]string
}

// Mailer sends a mail, and returns when a server has taken it.
type Mailer interface {
	Send(ctx context.Context, to, subject, text string) error // text may hold a link that signs in: it is not logged
}

// The words of the packages below.
type (
	Secret    = secret.Text
	Principal = rights.Principal
	Role      = rights.Role
)

// Config is copied by [New] and never changed afterwards.
type Config struct {
	DB      *db.DB             // required
	Key     []byte             // required; secret.KeySize random bytes, the same on all replicas
	Auditor Auditor            // required
	Mailer  Mailer             // nil: nobody is sent links
	Origin  string             // required; what browsers call the fleet: "https://fleet.example.org"
	Name    string             // of the fleet, for people; default "Croft"
	OIDC    []oidclogin.Config // staff's sign-in elsewhere

	LinkPath string // page of the console that mails point to, with ?token=; default "/login/link"

	OwnerIdle  time.Duration // an owner's session ends unused after; default 30 days
	OwnerMost  time.Duration // and in any case after; default 180 days
	StaffIdle  time.Duration // the same for staff; default 2 h
	StaffMost  time.Duration // default 12 h
	TokenMost  time.Duration // longest life of an API token; default 366 days
	HTTPClient *http.Client  // to OIDC providers; nil: one with a limit of 15 s

	Log *slog.Logger // nil discards
}

// Service is the fleet's people. All methods may be called from any goroutine.
type Service struct {
	cfg       Config
	db        *db.DB
	keys      secret.Keys
	log       *slog.Logger
	webauthn  *webauthn.WebAuthn
	passwords *secret.Passwords
	mails     chan mail
	providers map[string]*oidclogin.Provider // by name
}

// Client is what a request says about itself, true or not.
type Client struct {
	Address netip.Addr
	Agent   string // User-Agent
	Browser Secret // cookie of the browser; empty: it has none
}

func (c Client) browserHash() []byte {
	if c.Browser == (Secret{}) {
		return nil
	}
	return c.Browser.Hash()
}

// New brings the tables up to date.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.Auditor == nil {
		return nil, errors.New("open accounts: database or auditor is missing")
	}
	origin, err := url.Parse(cfg.Origin)
	if err != nil || origin.Host == "" || (origin.Scheme != "https" && origin.Hostname() != "localhost") || origin.Path != "" {
		return nil, fmt.Errorf("open accounts: origin %q is not like https://fleet.example.org", cfg.Origin)
	}
	setDefault(&cfg.Name, "Croft")
	setDefault(&cfg.LinkPath, "/login/link")
	const day = 24 * time.Hour
	setDefault(&cfg.OwnerIdle, 30*day)
	setDefault(&cfg.OwnerMost, 180*day)
	setDefault(&cfg.StaffIdle, 2*time.Hour)
	setDefault(&cfg.StaffMost, 12*time.Hour)
	setDefault(&cfg.TokenMost, 366*day)
	setDefault(&cfg.Log, slog.New(slog.DiscardHandler))
	setDefault(&cfg.HTTPClient, &http.Client{Timeout: 15 * time.Second})
	providers := map[string]*oidclogin.Provider{}
	for _, p := range cfg.OIDC {
		if providers[p.Name] != nil {
			return nil, fmt.Errorf("open accounts: provider %q is there twice", p.Name)
		}
		if providers[p.Name], err = oidclogin.New(p, cfg.Origin, cfg.HTTPClient); err != nil {
			return nil, fmt.Errorf("open accounts: %w", err)
		}
	}
	keys, err := secret.NewKeys(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("open accounts: %w", err)
	}
	timeout := webauthn.TimeoutConfig{Enforce: true, Timeout: ceremonyLife, TimeoutUVD: ceremonyLife}
	relying, err := webauthn.New(&webauthn.Config{
		RPID: origin.Hostname(), RPDisplayName: cfg.Name, RPOrigins: []string{cfg.Origin},
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, UserVerification: protocol.VerificationRequired,
		},
		Timeouts: webauthn.TimeoutsConfig{Login: timeout, Registration: timeout},
	})
	if err != nil {
		return nil, fmt.Errorf("open accounts: %w", err)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open accounts: %w", err)
	}
	if err := cfg.DB.Migrate(ctx, "auth", files); err != nil {
		return nil, err
	}
	return &Service{
		cfg: cfg, db: cfg.DB, keys: keys, log: cfg.Log, webauthn: relying,
		passwords: secret.NewPasswords(keys), mails: make(chan mail, 1000), providers: providers,
	}, nil
}

func setDefault[T comparable](of *T, to T) {
	var zero T
	if *of == zero {
		*of = to
	}
}

// Run sends mails, and on one replica removes what has expired, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	for range 4 { // a server that is slow for one receiver does not hold up all
		work.Go(func() { s.deliver(ctx) })
	}
	return s.db.Lead(ctx, "auth", func(ctx context.Context) error {
		tick := time.NewTicker(time.Hour)
		defer tick.Stop()
		for {
			if err := s.prune(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("expired sessions cannot be removed", "error", err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// prune removes what has expired.
func (s *Service) prune(ctx context.Context) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		now := time.Now()
		for _, old := range []struct {
			query  string
			before time.Time
		}{
			{"DELETE FROM auth_sessions WHERE expires < ?", now},
			{"DELETE FROM auth_links WHERE expires < ?", now},
			{"DELETE FROM auth_ceremonies WHERE expires < ?", now},
			{"DELETE FROM auth_tokens WHERE expires < ?", now.Add(-30 * 24 * time.Hour)}, // shown as expired until then
			{"DELETE FROM auth_pace WHERE at < ?", now.Add(-pace.Forget)},
			{"DELETE FROM auth_browsers WHERE seen < ?", now.Add(-browserLife)},
		} {
			if _, err := tx.Exec(old.query, old.before.UnixMicro()); err != nil {
				return err
			}
		}
		return nil
	})
}

// record tells the auditor what p did.
func (s *Service) record(tx *db.Tx, p Principal, c Client, action string, kind rights.Resource, object string, before, after map[string]string) error {
	e := Entry{Actor: p.Account, Role: string(p.Role), Address: addressText(c.Address), Action: action, Kind: string(kind), Object: object, Before: before, After: after}
	if p.Account == "" {
		e.Actor = "anonymous"
	}
	if p.Token != "" {
		e.Actor = p.Account + "/" + p.Token
	}
	return s.cfg.Auditor.Record(tx, e)
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}

func refused(remedy, format string, args ...any) error {
	return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf(format, args...), Remedy: remedy}
}

var (
	// ErrSignIn reports that nobody is signed in, or only half.
	ErrSignIn = &croft.Error{Kind: croft.KindRefused, Err: errors.New("nobody is signed in"), Remedy: "sign in"}
	// ErrForbidden reports that the role or the token's scopes do not allow it.
	ErrForbidden = &croft.Error{Kind: croft.KindRefused, Err: errors.New("your account may not do this"), Remedy: "ask somebody who runs the fleet"}
	// ErrStale reports that the sign-in was too long ago for what is asked.
	ErrStale = &croft.Error{Kind: croft.KindRefused, Err: errors.New("you signed in too long ago for this"), Remedy: "sign in again"}
	// ErrGone reports that something to be used once was used, or has expired.
	ErrGone = &croft.Error{Kind: croft.KindRefused, Err: errors.New("this was used before or has expired"), Remedy: "begin again"}

	errWrong  = &croft.Error{Kind: croft.KindRefused, Err: errors.New("e-mail address, password or code is wrong"), Remedy: "check what you typed"}
	errNobody = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such account"), Remedy: "check the id"}
)

// fresh refuses who may not change how he signs in.
func fresh(p Principal) error {
	switch {
	case p.Session == "" || p.Stage != rights.StageFull:
		return ErrSignIn
	case time.Since(p.Proved) > Fresh:
		return ErrStale
	}
	return nil
}

// cleanName is a name people give to themselves or to things.
func cleanName(name, otherwise string) (string, error) {
	name = strings.TrimSpace(name)
	if name == "" {
		name = otherwise
	}
	if name != fleetapi.CleanText(name, fleetapi.MaxName) {
		return "", usage("the name is longer than %d bytes or has control characters", fleetapi.MaxName)
	}
	return name, nil
}
