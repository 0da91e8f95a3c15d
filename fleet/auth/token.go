package auth

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// tokenPrefix begins an API token, so that scanners for lost secrets know it.
const tokenPrefix = "croft_"

// maxTokens is how many an account has at most.
const maxTokens = 100

// TokenInfo is an API token without its secret.
type TokenInfo struct {
	ID      string    `json:"id"`
	Account string    `json:"account"`
	Name    string    `json:"name"`
	Scopes  string    `json:"scopes"` // permissions with spaces between them
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Used    time.Time `json:"used,omitzero"` // to the minute; zero: never
}

// CreateToken makes a token that may do what scopes say ("device:read job:start"),
// as long as p's role may. The secret is never shown again.
func (s *Service) CreateToken(ctx context.Context, c Client, p Principal, name, scopes string, life time.Duration) (Secret, TokenInfo, error) {
	if !rights.Allowed(p, rights.Write, rights.Object{Resource: rights.Token, Owner: p.Account}) {
		return Secret{}, TokenInfo{}, ErrForbidden
	}
	if err := fresh(p); err != nil {
		return Secret{}, TokenInfo{}, err
	}
	name, err := cleanName(name, "")
	if err != nil {
		return Secret{}, TokenInfo{}, err
	}
	wanted, err := rights.ParseScopes(scopes)
	if err != nil {
		return Secret{}, TokenInfo{}, err
	}
	switch {
	case name == "":
		return Secret{}, TokenInfo{}, usage("the token has no name")
	case len(wanted) == 0:
		return Secret{}, TokenInfo{}, usage("the token has no scopes")
	case life < time.Minute || life > s.cfg.TokenMost:
		return Secret{}, TokenInfo{}, usage("the token lives for less than a minute or more than %d days", int(s.cfg.TokenMost.Hours()/24))
	}
	for _, scope := range wanted {
		if p.Role.Grants(scope) == rights.None {
			return Secret{}, TokenInfo{}, refused("leave it out", "your account may not do %s itself", scope)
		}
	}
	now := time.Now().UTC()
	token := secret.New(tokenPrefix + secret.Random().Reveal())
	info := TokenInfo{
		ID: fleetapi.NewID(fleetapi.PrefixToken), Account: p.Account, Name: name, Scopes: rights.FormatScopes(wanted),
		Created: now, Expires: now.Add(life),
	}
	return token, info, s.db.Write(ctx, func(tx *db.Tx) error {
		var n int
		if err := tx.Row("SELECT COUNT(*) FROM auth_tokens WHERE account = ?", p.Account).Scan(&n); err != nil {
			return err
		}
		if n >= maxTokens {
			return refused("end one", "an account has %d tokens at most", maxTokens)
		}
		if _, err := tx.Exec("INSERT INTO auth_tokens (hash, id, account, name, scopes, created, expires, used) VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
			token.Hash(), info.ID, p.Account, name, info.Scopes, now.UnixMicro(), info.Expires.UnixMicro()); err != nil {
			return err
		}
		return s.record(tx, p, c, "token.create", rights.Token, info.ID, nil, map[string]string{"name": name, "scopes": info.Scopes, "expires": info.Expires.Format(time.RFC3339)})
	})
}

// Tokens lists the tokens of an account.
func (s *Service) Tokens(ctx context.Context, p Principal, of string) (list []TokenInfo, err error) {
	if !rights.Allowed(p, rights.Read, rights.Object{Resource: rights.Token, Owner: of}) {
		return nil, ErrForbidden
	}
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		list, err = collect(tx, func(scan func(...any) error) (TokenInfo, error) {
			var (
				i                      TokenInfo
				created, expires, used int64
			)
			err := scan(&i.ID, &i.Account, &i.Name, &i.Scopes, &created, &expires, &used)
			i.Created, i.Expires = time.UnixMicro(created).UTC(), time.UnixMicro(expires).UTC()
			if used != 0 {
				i.Used = time.UnixMicro(used).UTC()
			}
			return i, err
		}, "SELECT id, account, name, scopes, created, expires, used FROM auth_tokens WHERE account = ? ORDER BY id", of)
		return err
	})
	return list, err
}

// EndToken ends a token of an account for good.
func (s *Service) EndToken(ctx context.Context, c Client, p Principal, of, id string) error {
	if !rights.Allowed(p, rights.Write, rights.Object{Resource: rights.Token, Owner: of}) {
		return ErrForbidden
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		var name string
		err := tx.Row("DELETE FROM auth_tokens WHERE id = ? AND account = ? RETURNING name", id, of).Scan(&name)
		if errors.Is(err, db.ErrNoRows) {
			return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such token")}
		}
		if err != nil {
			return err
		}
		return s.record(tx, p, c, "token.end", rights.Token, id, map[string]string{"name": name, "account": of}, nil)
	})
}

// ByToken is who has the token; nobody if it is wrong, expired or ended.
func (s *Service) ByToken(ctx context.Context, token Secret) (Principal, error) {
	if !strings.HasPrefix(token.Reveal(), tokenPrefix) {
		return Principal{}, nil
	}
	var (
		p      = Principal{Stage: rights.StageFull}
		scopes string
		used   int64
		hash   = token.Hash()
		now    = time.Now()
	)
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Row(`SELECT t.id, t.scopes, t.used, a.id, a.role, a.name FROM auth_tokens t JOIN auth_accounts a ON a.id = t.account
			WHERE t.hash = ? AND t.expires > ? AND a.disabled = 0`, hash, now.UnixMicro()).
			Scan(&p.Token, &scopes, &used, &p.Account, &p.Role, &p.Name)
	})
	if err != nil {
		return Principal{}, ignoreNoRows(err)
	}
	for word := range strings.FieldsSeq(scopes) { // of an older release one may be gone from the table
		if scope, err := rights.ParsePermission(word); err == nil {
			p.Scopes = append(p.Scopes, scope)
		}
	}
	if now.Sub(time.UnixMicro(used)) >= time.Minute {
		s.note(ctx, "UPDATE auth_tokens SET used = ? WHERE hash = ?", now, hash)
	}
	return p, nil
}
