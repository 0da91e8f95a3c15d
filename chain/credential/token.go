package credential

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft/chain/account"
)

// Lifetime of a token made by [FullAccess], as the Akash command line has it.
const Lifetime = 15 * time.Minute

// MaxTokenBytes bounds a token that is looked at: HTTP servers refuse longer
// headers as well.
const MaxTokenBytes = 16 << 10

// What can be wrong with a token. Callers test with [errors.Is].
var (
	ErrMalformed   = errors.New("token is malformed")
	ErrNotByIssuer = errors.New("token is not signed by its issuer")
	ErrExpired     = errors.New("token has expired")
	ErrNotYetValid = errors.New("token is not valid yet")
)

// Scope is one kind of request to a gateway.
type Scope string

// The scopes. A word that is none of them is kept when parsed and allows
// nothing.
const (
	ScopeSendManifest      Scope = "send-manifest"
	ScopeGetManifest       Scope = "get-manifest"
	ScopeLogs              Scope = "logs"
	ScopeShell             Scope = "shell"
	ScopeEvents            Scope = "events"
	ScopeStatus            Scope = "status"
	ScopeRestart           Scope = "restart"
	ScopeHostnameMigration Scope = "hostname-migrate"
	ScopeIPMigration       Scope = "ip-migrate"
	ScopeAttestation       Scope = "attestation"
)

// Access says how far a grant reaches.
type Access string

// The reaches.
const (
	AccessFull     Access = "full"     // everything
	AccessScoped   Access = "scoped"   // the scopes listed, for every lease
	AccessGranular Access = "granular" // what the entries below it say
)

// Claims is the content of a token.
type Claims struct {
	Issuer    account.Address // the tenant
	IssuedAt  time.Time       // seconds; not after NotBefore
	NotBefore time.Time       // seconds
	Expires   time.Time       // seconds
	ID        string          // "jti"; empty when absent
	Leases    Grant           // what the bearer may do
}

// tokenVersion is the only "version" there is.
const tokenVersion = "v1"

// Grant is the reach of a token over its issuer's leases.
type Grant struct {
	Access      Access       `json:"access"`
	Scope       []Scope      `json:"scope,omitempty"`       // with AccessScoped only
	Permissions []Permission `json:"permissions,omitempty"` // with AccessGranular only; one per provider
}

// Permission is the reach at one provider.
type Permission struct {
	Provider    account.Address `json:"provider"`
	Access      Access          `json:"access"`
	Scope       []Scope         `json:"scope,omitempty"`       // with AccessScoped only
	Deployments []Deployment    `json:"deployments,omitempty"` // with AccessGranular only
}

// Deployment is the reach over one deployment, group, order or service.
type Deployment struct {
	DSeq     uint64   `json:"dseq"`
	GSeq     uint32   `json:"gseq,omitempty"` // 0: every group
	OSeq     uint32   `json:"oseq,omitempty"` // 0: every order; needs a GSeq
	Services []string `json:"services,omitempty"`
	Scope    []Scope  `json:"scope"`
}

// Request is what a bearer asks of a gateway.
type Request struct {
	Provider account.Address // whose gateway it is
	Scope    Scope
	Owner    account.Address // of the lease
	DSeq     uint64
	GSeq     uint32 // 0 when the request is about the whole deployment
	OSeq     uint32
	Service  string // empty when the request is about every service
}

// Allows reports whether the token covers the request. It covers nothing of an
// owner other than its issuer. A grant narrower than the request, such as one
// service where all are asked for, does not cover it.
func (c Claims) Allows(r Request) bool {
	if r.Owner != c.Issuer || r.Owner == "" {
		return false
	}
	switch c.Leases.Access {
	case AccessFull:
		return true
	case AccessScoped:
		return slices.Contains(c.Leases.Scope, r.Scope)
	case AccessGranular:
		return slices.ContainsFunc(c.Leases.Permissions, func(p Permission) bool { return p.allows(r) })
	default:
		return false
	}
}

func (p Permission) allows(r Request) bool {
	if p.Provider != r.Provider {
		return false
	}
	switch p.Access {
	case AccessFull:
		return true
	case AccessScoped:
		return slices.Contains(p.Scope, r.Scope)
	case AccessGranular:
		return slices.ContainsFunc(p.Deployments, func(d Deployment) bool { return d.allows(r) })
	default:
		return false
	}
}

func (d Deployment) allows(r Request) bool {
	return d.DSeq == r.DSeq &&
		(d.GSeq == 0 || d.GSeq == r.GSeq) &&
		(d.OSeq == 0 || d.OSeq == r.OSeq) &&
		(len(d.Services) == 0 || slices.Contains(d.Services, r.Service)) &&
		slices.Contains(d.Scope, r.Scope)
}

// FullAccess is a claim to everything its signer has leased, from now for
// [Lifetime]. [Sign] fills in the issuer.
func FullAccess(now time.Time) Claims {
	now = now.Truncate(time.Second).UTC()
	return Claims{IssuedAt: now, NotBefore: now, Expires: now.Add(Lifetime), Leases: Grant{Access: AccessFull}}
}

func (c Claims) validate() error {
	if _, err := account.ParseAddress(string(c.Issuer)); err != nil {
		return fmt.Errorf("claim iss: %w", err)
	}
	if c.IssuedAt.After(c.NotBefore) || c.NotBefore.After(c.Expires) {
		return errors.New("claims iat, nbf and exp are not in this order")
	}
	if err := c.Leases.validate(); err != nil {
		return fmt.Errorf("claim leases: %w", err)
	}
	return nil
}

func (g Grant) validate() error {
	if err := checkReach(g.Access, g.Scope, len(g.Permissions), "permissions"); err != nil {
		return err
	}
	seen := map[account.Address]bool{}
	for _, p := range g.Permissions {
		if _, err := account.ParseAddress(string(p.Provider)); err != nil {
			return fmt.Errorf("provider: %w", err)
		}
		if seen[p.Provider] {
			return fmt.Errorf("provider %s is named twice", p.Provider)
		}
		seen[p.Provider] = true
		if err := checkReach(p.Access, p.Scope, len(p.Deployments), "deployments"); err != nil {
			return fmt.Errorf("provider %s: %w", p.Provider, err)
		}
		for _, d := range p.Deployments {
			if err := d.validate(); err != nil {
				return fmt.Errorf("provider %s: deployment %d: %w", p.Provider, d.DSeq, err)
			}
		}
	}
	return nil
}

func (d Deployment) validate() error {
	switch {
	case d.DSeq == 0:
		return errors.New("dseq is missing")
	case d.OSeq != 0 && d.GSeq == 0:
		return errors.New("oseq without gseq")
	}
	return checkScope(d.Scope)
}

// checkReach refuses a reach whose parts contradict each other: a verifier that
// guessed would guess too much.
func checkReach(access Access, scope []Scope, entries int, of string) error {
	switch access {
	case AccessFull:
		if len(scope) > 0 || entries > 0 {
			return fmt.Errorf("full access takes neither scope nor %s", of)
		}
		return nil
	case AccessScoped:
		if entries > 0 {
			return fmt.Errorf("scoped access takes no %s", of)
		}
		return checkScope(scope)
	case AccessGranular:
		if len(scope) > 0 || entries == 0 {
			return fmt.Errorf("granular access takes %s and no scope", of)
		}
		return nil
	default:
		return fmt.Errorf("access %q: want full, scoped or granular", access)
	}
}

func checkScope(scope []Scope) error {
	if len(scope) == 0 {
		return errors.New("scope is empty")
	}
	for i, s := range scope {
		if s == "" || slices.Contains(scope[:i], s) {
			return fmt.Errorf("scope %q is empty or named twice", s)
		}
	}
	return nil
}

// Algorithm is the "alg" of a token.
type Algorithm string

// The algorithms.
const (
	ES256K      Algorithm = "ES256K"      // over header.payload
	ES256KADR36 Algorithm = "ES256KADR36" // over an ADR-36 document around header.payload
)

type header struct {
	Alg Algorithm `json:"alg"`
	Typ string    `json:"typ"`
}

// payload is [Claims] as JSON has it.
type payload struct {
	Issuer    string          `json:"iss"`
	IssuedAt  *int64          `json:"iat"`
	NotBefore *int64          `json:"nbf"`
	Expires   *int64          `json:"exp"`
	ID        string          `json:"jti,omitempty"`
	Version   string          `json:"version"`
	Leases    json.RawMessage `json:"leases"`
}

// encoding of a token's parts; bits left over at the end must be zero, so that a
// token has one spelling.
var encoding = base64.RawURLEncoding.Strict()

// Sign makes a token of the claims with ES256K. An empty issuer becomes the
// signer's account; any other than that is refused.
func Sign(ctx context.Context, signer account.Signer, claims Claims) (string, error) {
	token, err := sign(ctx, signer, claims, ES256K)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return token, nil
}

func sign(ctx context.Context, signer account.Signer, claims Claims, alg Algorithm) (string, error) {
	owner, err := signer.PublicKey().Address()
	if err != nil {
		return "", err
	}
	if claims.Issuer == "" {
		claims.Issuer = owner
	}
	if claims.Issuer != owner {
		return "", fmt.Errorf("issuer %s is not the signer's account %s", claims.Issuer, owner)
	}
	if err := claims.validate(); err != nil {
		return "", err
	}
	leases, err := json.Marshal(claims.Leases)
	if err != nil {
		return "", err
	}
	iat, nbf, exp := claims.IssuedAt.Unix(), claims.NotBefore.Unix(), claims.Expires.Unix()
	body, err := json.Marshal(payload{
		Issuer: string(claims.Issuer), IssuedAt: &iat, NotBefore: &nbf, Expires: &exp,
		ID: claims.ID, Version: tokenVersion, Leases: leases,
	})
	if err != nil {
		return "", err
	}
	head, err := json.Marshal(header{Alg: alg, Typ: "JWT"})
	if err != nil {
		return "", err
	}
	signed := encoding.EncodeToString(head) + "." + encoding.EncodeToString(body)
	message, err := signedBytes(alg, signed, claims.Issuer)
	if err != nil {
		return "", err
	}
	signature, err := signer.Sign(ctx, message)
	if err != nil {
		return "", err
	}
	return signed + "." + encoding.EncodeToString(signature), nil
}

// signedBytes is what an algorithm signs for the text "header.payload".
func signedBytes(alg Algorithm, text string, issuer account.Address) ([]byte, error) {
	switch alg {
	case ES256K:
		return []byte(text), nil
	case ES256KADR36:
		// Amino JSON: keys sorted, no spaces. Nothing in it needs escaping: an
		// address and base64 have neither quotes nor '<'.
		return []byte(`{"account_number":"0","chain_id":"","fee":{"amount":[],"gas":"0"},"memo":"",` +
			`"msgs":[{"type":"sign/MsgSignData","value":{"data":"` + base64.StdEncoding.EncodeToString([]byte(text)) +
			`","signer":"` + string(issuer) + `"}}],"sequence":"0"}`), nil
	default:
		return nil, fmt.Errorf("algorithm %q: want %s or %s", alg, ES256K, ES256KADR36)
	}
}

// parsed is a token whose form is right and whose signature is not looked at
// yet.
type parsed struct {
	alg       Algorithm
	signed    string // header.payload
	signature []byte
	claims    Claims
}

func parse(token string) (parsed, error) {
	if len(token) > MaxTokenBytes {
		return parsed{}, fmt.Errorf("%d bytes, at most %d are read", len(token), MaxTokenBytes)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return parsed{}, fmt.Errorf("%d parts, want 3", len(parts))
	}
	var raw [3][]byte
	for i, part := range parts {
		decoded, err := encoding.DecodeString(part)
		if err != nil || strings.ContainsAny(part, "\r\n") { // the decoder passes over line ends
			return parsed{}, fmt.Errorf("part %d is not unpadded base64url", i+1)
		}
		raw[i] = decoded
	}
	var h header
	if err := unmarshal(raw[0], &h, false); err != nil {
		return parsed{}, fmt.Errorf("header: %w", err)
	}
	if h.Typ != "JWT" {
		return parsed{}, fmt.Errorf("type %q, want JWT", h.Typ)
	}
	if h.Alg != ES256K && h.Alg != ES256KADR36 {
		return parsed{}, fmt.Errorf("algorithm %q: want %s or %s", h.Alg, ES256K, ES256KADR36)
	}
	if len(raw[2]) != account.SignatureBytes {
		return parsed{}, fmt.Errorf("signature of %d bytes, want %d", len(raw[2]), account.SignatureBytes)
	}
	claims, err := parseClaims(raw[1])
	if err != nil {
		return parsed{}, err
	}
	return parsed{alg: h.Alg, signed: parts[0] + "." + parts[1], signature: raw[2], claims: claims}, nil
}

func parseClaims(raw []byte) (Claims, error) {
	var p payload
	if err := unmarshal(raw, &p, false); err != nil {
		return Claims{}, fmt.Errorf("claims: %w", err)
	}
	if p.Version != tokenVersion {
		return Claims{}, fmt.Errorf("claim version %q, want %s", p.Version, tokenVersion)
	}
	if p.IssuedAt == nil || p.NotBefore == nil || p.Expires == nil {
		return Claims{}, errors.New("one of the claims iat, nbf and exp is missing")
	}
	for _, second := range []int64{*p.IssuedAt, *p.NotBefore, *p.Expires} {
		if second < 0 || second > maxSecond {
			return Claims{}, errors.New("one of the claims iat, nbf and exp is out of range")
		}
	}
	c := Claims{
		Issuer: account.Address(p.Issuer), ID: p.ID,
		IssuedAt: time.Unix(*p.IssuedAt, 0).UTC(), NotBefore: time.Unix(*p.NotBefore, 0).UTC(), Expires: time.Unix(*p.Expires, 0).UTC(),
	}
	if len(p.Leases) == 0 {
		return Claims{}, errors.New("claim leases is missing")
	}
	// Unknown claims beside it are harmless; an unknown word inside it may be a
	// limit that we would not keep.
	if err := unmarshal(p.Leases, &c.Leases, true); err != nil {
		return Claims{}, fmt.Errorf("claim leases: %w", err)
	}
	return c, c.validate()
}

// maxSecond is the end of the year 9999.
const maxSecond = 253402300799

// unmarshal reads exactly one JSON value.
func unmarshal(raw []byte, into any, strict bool) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more follows after the JSON value")
	}
	return nil
}

// Verifier checks tokens for a gateway. It is copied freely.
type Verifier struct {
	// PublicKey finds an account's key on the chain; required. An account that
	// never sent a transaction has none: the error it answers then reaches the
	// caller of Verify as it is.
	PublicKey func(context.Context, account.Address) (account.PublicKey, error)
	// Leeway is how far the two clocks may differ; default 30 s.
	Leeway time.Duration
}

// Verify returns the claims of a token that has the right form, is signed by its
// issuer and is valid at now. Its errors are [ErrMalformed], [ErrExpired],
// [ErrNotYetValid], [ErrNotByIssuer], or one of PublicKey's. Times are looked at
// before PublicKey is called, so that old tokens cost no query.
func (v Verifier) Verify(ctx context.Context, token string, now time.Time) (Claims, error) {
	p, err := parse(token)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	leeway := v.Leeway
	if leeway == 0 {
		leeway = 30 * time.Second
	}
	if now.After(p.claims.Expires.Add(leeway)) {
		return Claims{}, fmt.Errorf("%w at %s", ErrExpired, p.claims.Expires.Format(time.RFC3339))
	}
	if now.Before(p.claims.NotBefore.Add(-leeway)) {
		return Claims{}, fmt.Errorf("%w: it is from %s on; compare the clocks", ErrNotYetValid, p.claims.NotBefore.Format(time.RFC3339))
	}
	key, err := v.PublicKey(ctx, p.claims.Issuer)
	if err != nil {
		return Claims{}, fmt.Errorf("find key of token issuer %s: %w", p.claims.Issuer, err)
	}
	if owner, err := key.Address(); err != nil || owner != p.claims.Issuer {
		return Claims{}, fmt.Errorf("%w: the account has another key", ErrNotByIssuer)
	}
	message, err := signedBytes(p.alg, p.signed, p.claims.Issuer)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := key.Verify(message, p.signature); err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrNotByIssuer, err)
	}
	return p.claims, nil
}
