// Package oidclogin signs staff in at an OIDC provider, by the authorization code
// flow with state, nonce and PKCE, and maps a person's groups to a role.
//
//	p, err := oidclogin.New(cfg, "https://fleet.example.org", client)
//	voyage, url, err := p.Begin(ctx)                   // send the browser to url(state), keep the voyage
//	person, err := p.Exchange(ctx, voyage, code)       // what its redirect brought
//
// The caller keeps the voyage under the state, for that browser alone and once.
// Errors say what the provider did wrong and are not for strangers, but
// [ErrNoRole] is.
package oidclogin

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Config is where staff signs in elsewhere. The redirect URI to register there is
// ORIGIN/auth/oidc/NAME/callback.
type Config struct {
	Name     string                 // in URLs: small letters, digits, '-'
	Title    string                 // on the button
	Issuer   string                 // URL
	ClientID string                 // of the fleet at the provider
	Secret   secret.Text            // of the fleet at the provider; empty for a public client
	Scopes   []string               // besides openid, profile and email
	Groups   string                 // claim with a person's groups; default "groups"
	Roles    map[string]rights.Role // role of each group; the strongest counts, others get no account
}

// Provider is one such place. All methods may be called from any goroutine.
type Provider struct {
	cfg    Config
	origin string
	client *http.Client

	mu    sync.Mutex
	found *discovered // guarded by mu; nil until the provider answered
}

// discovered is what a provider says about itself.
type discovered struct {
	oauth    oauth2.Config
	verifier *oidc.IDTokenVerifier
}

// Voyage is what is kept while the browser is at the provider.
type Voyage struct{ Provider, Nonce, Verifier string }

// Person is who came back.
type Person struct {
	Issuer, Subject string // who it is
	Name            string // for people; a claim, so anything
	Role            rights.Role
}

// ErrNoRole reports that no group of a person has a role.
var ErrNoRole = errors.New("none of your groups has a role here")

var names = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// New checks the configuration; it does not ask the provider yet.
func New(cfg Config, origin string, client *http.Client) (*Provider, error) {
	if !names.MatchString(cfg.Name) || cfg.Issuer == "" || cfg.ClientID == "" || len(cfg.Roles) == 0 {
		return nil, fmt.Errorf("provider %q: name, issuer, client id or roles are missing or malformed", cfg.Name)
	}
	issuer, err := url.Parse(cfg.Issuer)
	if err != nil || issuer.Host == "" || issuer.Scheme != "https" && !local(issuer.Hostname()) {
		return nil, fmt.Errorf("provider %q: issuer %q is not like https://accounts.example.org", cfg.Name, cfg.Issuer)
	}
	for group, role := range cfg.Roles {
		if !role.Staff() {
			return nil, fmt.Errorf("provider %q: group %q has role %q, which is none of staff", cfg.Name, group, role)
		}
	}
	return &Provider{cfg: cfg, origin: origin, client: client}, nil
}

// local reports whether a host is this machine, where nobody listens in.
func local(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// discover asks the provider about itself, once it answers.
func (p *Provider) discover(ctx context.Context) (*discovered, error) {
	p.mu.Lock()
	known := p.found
	p.mu.Unlock()
	if known != nil {
		return known, nil
	}
	// The verifier fetches keys later, so it must not end with this request.
	found, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), p.client), p.cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("ask provider about itself: %w", err)
	}
	d := &discovered{verifier: found.Verifier(&oidc.Config{ClientID: p.cfg.ClientID}), oauth: oauth2.Config{
		ClientID: p.cfg.ClientID, ClientSecret: p.cfg.Secret.Reveal(), Endpoint: found.Endpoint(),
		RedirectURL: p.origin + "/auth/oidc/" + p.cfg.Name + "/callback",
		Scopes:      append([]string{oidc.ScopeOpenID, "profile", "email"}, p.cfg.Scopes...),
	}}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.found = d
	return d, nil
}

// Begin makes a voyage, and what turns the state it is kept under into the URL to
// send the browser to.
func (p *Provider) Begin(ctx context.Context) (Voyage, func(state secret.Text) string, error) {
	d, err := p.discover(ctx)
	if err != nil {
		return Voyage{}, nil, err
	}
	v := Voyage{p.cfg.Name, secret.Random().Reveal(), oauth2.GenerateVerifier()}
	return v, func(state secret.Text) string {
		return d.oauth.AuthCodeURL(state.Reveal(), oidc.Nonce(v.Nonce), oauth2.S256ChallengeOption(v.Verifier))
	}, nil
}

// Exchange is who came back with the code. With [ErrNoRole] it says who has none.
func (p *Provider) Exchange(ctx context.Context, v Voyage, code string) (Person, error) {
	d, err := p.discover(ctx)
	if err != nil {
		return Person{}, err
	}
	ctx = oidc.ClientContext(ctx, p.client)
	tokens, err := d.oauth.Exchange(ctx, code, oauth2.VerifierOption(v.Verifier))
	if err != nil {
		return Person{}, fmt.Errorf("exchange code: %w", err)
	}
	raw, _ := tokens.Extra("id_token").(string)
	id, err := d.verifier.Verify(ctx, raw)
	if err != nil {
		return Person{}, fmt.Errorf("verify ID token: %w", err)
	}
	if v.Nonce == "" || subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(v.Nonce)) != 1 {
		return Person{}, errors.New("verify ID token: the nonce is another one")
	}
	if id.Subject == "" || len(id.Subject) > 255 {
		return Person{}, errors.New("verify ID token: the subject is empty or too long")
	}
	var claims map[string]any
	if err := id.Claims(&claims); err != nil {
		return Person{}, fmt.Errorf("read claims: %w", err)
	}
	role := p.role(claims)
	if role == "" {
		return Person{Issuer: id.Issuer, Subject: id.Subject}, ErrNoRole
	}
	name, _ := claims["name"].(string)
	if name == "" {
		name, _ = claims["email"].(string)
	}
	return Person{id.Issuer, id.Subject, strings.TrimSpace(fleetapi.CleanText(name, fleetapi.MaxName)), role}, nil
}

// role is the strongest that a person's groups have.
func (p *Provider) role(claims map[string]any) rights.Role {
	name := p.cfg.Groups
	if name == "" {
		name = "groups"
	}
	var groups []any
	switch claim := claims[name].(type) {
	case []any:
		groups = claim
	case string:
		groups = []any{claim}
	}
	best := -1
	for _, group := range groups {
		text, _ := group.(string)
		if role, ok := p.cfg.Roles[text]; ok {
			best = max(best, slices.Index(rights.Roles(), role))
		}
	}
	if best < 0 {
		return ""
	}
	return rights.Roles()[best]
}
