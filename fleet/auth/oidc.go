package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/oidclogin"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

var errNoProvider = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such provider")}

// providerDown hides what a provider or its network said from the outside.
func (s *Service) providerDown(name string, err error) error {
	if errors.Is(err, oidclogin.ErrNoRole) {
		return &croft.Error{Kind: croft.KindRefused, Err: err, Remedy: "ask who runs the fleet for a role"}
	}
	s.log.Warn("sign-in by a provider does not work", "provider", name, "error", fleetapi.CleanText(err.Error(), 300))
	return refused("try again, or sign in with your password", "%s did not answer as it should", name)
}

// BeginOIDC is the URL to send the browser to.
func (s *Service) BeginOIDC(ctx context.Context, c Client, name string) (string, error) {
	p := s.providers[name]
	if p == nil {
		return "", errNoProvider
	}
	if err := s.try(ctx, signInPaces(c, "oidc")); err != nil {
		return "", err
	}
	voyage, url, err := p.Begin(ctx)
	if err != nil {
		return "", s.providerDown(name, err)
	}
	data, err := json.Marshal(voyage)
	if err != nil {
		return "", fmt.Errorf("begin sign-in: %w", err)
	}
	state, err := s.beginCeremony(ctx, c, "oidc", "", string(data))
	if err != nil {
		return "", err
	}
	return url(state), nil
}

// EndOIDC signs somebody of the staff in with what the provider's redirect brought.
// The role follows the groups each time; without a group of a role nobody gets in.
func (s *Service) EndOIDC(ctx context.Context, c Client, name string, state Secret, code string) (g Grant, err error) {
	p := s.providers[name]
	if p == nil {
		return Grant{}, errNoProvider
	}
	var voyage oidclogin.Voyage
	if err := s.db.Write(ctx, func(tx *db.Tx) error {
		_, data, err := endCeremony(tx, c, "oidc", state)
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(data), &voyage)
	}); err != nil {
		return Grant{}, err
	}
	if voyage.Provider != name || code == "" {
		return Grant{}, ErrGone
	}
	who, err := p.Exchange(ctx, voyage, code)
	if errors.Is(err, oidclogin.ErrNoRole) {
		if err := s.expel(ctx, c, who); err != nil {
			return Grant{}, err
		}
	}
	if err != nil {
		return Grant{}, s.providerDown(name, err)
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		a, err := s.identity(tx, c, who.Issuer, who.Subject, who.Role, who.Name)
		if err != nil {
			return err
		}
		g, err = s.begin(tx, c, a, rights.StageFull, "oidc:"+name, "")
		return err
	})
	return g, err
}

// expel ends the sessions and API tokens of somebody who has no role any more.
func (s *Service) expel(ctx context.Context, c Client, who oidclogin.Person) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		var id string
		err := tx.Row("SELECT account FROM auth_identities WHERE issuer = ? AND subject = ?", who.Issuer, who.Subject).Scan(&id)
		if err != nil {
			return ignoreNoRows(err)
		}
		a, err := account(tx, id)
		if err != nil {
			return err
		}
		if err := endSessions(tx, id, ""); err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM auth_tokens WHERE account = ?", id); err != nil {
			return err
		}
		return s.record(tx, Principal{Account: id, Role: a.Role}, c, "account.expel", rights.Person, id, nil, nil)
	})
}

// identity is the account of a subject, made at the first sign-in, in the role its
// groups say now. An account that signs in with a password is never taken for it:
// an address in a claim is not who somebody is.
func (s *Service) identity(tx *db.Tx, c Client, issuer, subject string, role Role, name string) (Account, error) {
	var id string
	err := tx.Row("SELECT account FROM auth_identities WHERE issuer = ? AND subject = ?", issuer, subject).Scan(&id)
	if errors.Is(err, db.ErrNoRows) {
		a, err := s.newAccount(tx, Principal{}, c, "", role, name, "")
		if err != nil {
			return Account{}, err
		}
		_, err = tx.Exec("INSERT INTO auth_identities (issuer, subject, account) VALUES (?, ?, ?)", issuer, subject, a.ID)
		return a, err
	}
	if err != nil {
		return Account{}, err
	}
	a, err := account(tx, id)
	if err != nil || a.Disabled || a.Role == role {
		return a, err
	}
	if err := s.changeIn(tx, c, Principal{Account: a.ID, Role: a.Role}, id, "account.role", func(tx *db.Tx, a *Account) error {
		a.Role = role
		return endSessions(tx, id, "")
	}); err != nil {
		return Account{}, err
	}
	a.Role = role
	return a, nil
}
