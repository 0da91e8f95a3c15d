package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Challenge is what a page gives to navigator.credentials, and the secret with
// which it sends the answer back.
type Challenge struct {
	Ceremony Secret
	Options  any // JSON for parseCreationOptionsFromJSON or parseRequestOptionsFromJSON
}

// PasskeyInfo is a passkey as its owner sees it.
type PasskeyInfo struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Used    time.Time `json:"used"`
	Cloned  bool      `json:"cloned,omitempty"` // its counter went back: there may be a copy
}

// maxPasskeys is how many an account has at most.
const maxPasskeys = 20

// person is an account as package webauthn wants it. The user handle is the id.
type person struct {
	id, name    string
	credentials []webauthn.Credential
}

func (p *person) WebAuthnID() []byte                         { return []byte(p.id) }
func (p *person) WebAuthnName() string                       { return p.name }
func (p *person) WebAuthnDisplayName() string                { return p.name }
func (p *person) WebAuthnCredentials() []webauthn.Credential { return p.credentials }

func passkeys(tx *db.Tx, id string) ([]webauthn.Credential, error) {
	return collect(tx, func(scan func(...any) error) (c webauthn.Credential, err error) {
		var text string
		if err := scan(&text); err != nil {
			return c, err
		}
		return c, json.Unmarshal([]byte(text), &c)
	}, "SELECT credential FROM auth_passkeys WHERE account = ? ORDER BY created", id)
}

// registration is what a ceremony keeps of a passkey to be made.
type registration struct {
	Name    string // of the person, if the account is new
	New     bool
	Session webauthn.SessionData
}

// BeginPasskey makes the challenge for a new passkey: of p's account, or if p is
// nobody of a new owner who wants to be called name.
func (s *Service) BeginPasskey(ctx context.Context, c Client, p Principal, name string) (Challenge, error) {
	who := &person{id: p.Account, name: p.Name}
	if p.Account == "" {
		if err := s.try(ctx, networkPaces(c, "passkey")); err != nil {
			return Challenge{}, err
		}
		var err error
		if name, err = cleanName(name, ""); err != nil {
			return Challenge{}, err
		}
		who.id, who.name = fleetapi.NewID(fleetapi.PrefixOwner), name
	} else {
		if err := mayHavePasskeys(p); err != nil {
			return Challenge{}, err
		}
		if err := s.db.Read(ctx, func(tx *db.Tx) error {
			a, err := account(tx, p.Account)
			if err != nil {
				return err
			}
			if who.name == "" {
				who.name = a.Email
			}
			who.credentials, err = passkeys(tx, p.Account)
			return err
		}); err != nil {
			return Challenge{}, err
		}
		if len(who.credentials) >= maxPasskeys {
			return Challenge{}, errManyPasskeys
		}
	}
	if who.name == "" {
		who.name = s.cfg.Name
	}
	options, session, err := s.webauthn.BeginRegistration(who, webauthn.WithExclusions(webauthn.Credentials(who.credentials).CredentialDescriptors()))
	if err != nil {
		return Challenge{}, fmt.Errorf("begin passkey: %w", err)
	}
	data, err := json.Marshal(registration{name, p.Account == "", *session})
	if err != nil {
		return Challenge{}, fmt.Errorf("begin passkey: %w", err)
	}
	ceremony, err := s.beginCeremony(ctx, c, "register", who.id, string(data))
	return Challenge{ceremony, options}, err
}

var errManyPasskeys = refused("remove one", "an account has %d passkeys at most", maxPasskeys)

func mayHavePasskeys(p Principal) error {
	if p.Role.Staff() {
		return refused("sign in with password and code, or elsewhere", "passkeys are for owners")
	}
	return fresh(p)
}

// errPasskey hides from the outside why an answer was refused.
func (s *Service) errPasskey(c Client, err error) error {
	why := err.Error()
	if detailed, ok := errors.AsType[*protocol.Error](err); ok {
		why += ": " + detailed.DevInfo
	}
	s.log.Info("passkey refused", "address", addressText(c.Address), "error", fleetapi.CleanText(why, 300))
	return refused("try again, or sign in another way", "the passkey was not accepted")
}

// FinishPasskey stores a new passkey. For a new owner the grant signs in; otherwise
// only its principal is set.
func (s *Service) FinishPasskey(ctx context.Context, c Client, p Principal, ceremony Secret, label string, response []byte) (g Grant, err error) {
	label, err = cleanName(label, "Passkey")
	if err != nil {
		return Grant{}, err
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(response)
	if err != nil {
		return Grant{}, s.errPasskey(c, err)
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		id, data, err := endCeremony(tx, c, "register", ceremony)
		if err != nil {
			return err
		}
		var kept registration
		if err := json.Unmarshal([]byte(data), &kept); err != nil {
			return fmt.Errorf("read ceremony: %w", err)
		}
		if !kept.New {
			if p.Account != id {
				return ErrGone
			}
			if err := mayHavePasskeys(p); err != nil {
				return err
			}
		}
		made, err := s.webauthn.CreateCredential(&person{id: id}, kept.Session, parsed)
		if err != nil {
			return s.errPasskey(c, err)
		}
		if list, err := passkeys(tx, id); err != nil {
			return err
		} else if len(list) >= maxPasskeys { // several may have been begun at once
			return errManyPasskeys
		}
		var a Account
		if kept.New {
			a, err = s.newAccount(tx, Principal{}, c, id, rights.RoleOwner, kept.Name, "")
		} else {
			a, err = account(tx, id)
		}
		if err != nil {
			return err
		}
		text, err := json.Marshal(made)
		if err != nil {
			return fmt.Errorf("store passkey: %w", err)
		}
		now := time.Now().UnixMicro()
		if _, err := tx.Exec("INSERT INTO auth_passkeys (id, account, name, credential, cloned, created, used) VALUES (?, ?, ?, ?, 0, ?, ?)",
			made.ID, id, label, string(text), now, now); db.IsUnique(err) {
			return refused("sign in with it", "this passkey is known already")
		} else if err != nil {
			return err
		}
		by := p
		if kept.New {
			by = Principal{Account: a.ID, Role: a.Role}
		}
		if err := s.record(tx, by, c, "passkey.create", rights.Person, a.ID, nil, map[string]string{"passkey": label}); err != nil {
			return err
		}
		if g = (Grant{Principal: p}); kept.New {
			g, err = s.begin(tx, c, a, rights.StageFull, "passkey", "")
		}
		return err
	})
	if err == nil && g.Cookie == (Secret{}) {
		s.warnAccount(ctx, p.Account, "A passkey was added", "The passkey \""+label+"\" was added to your account.")
	}
	return g, err
}

// BeginPasskeyLogin makes the challenge for a sign-in by whatever passkey the
// browser has for this site.
func (s *Service) BeginPasskeyLogin(ctx context.Context, c Client) (Challenge, error) {
	if err := s.try(ctx, signInPaces(c, "signin")); err != nil {
		return Challenge{}, err
	}
	options, session, err := s.webauthn.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return Challenge{}, fmt.Errorf("begin sign-in: %w", err)
	}
	data, err := json.Marshal(session)
	if err != nil {
		return Challenge{}, fmt.Errorf("begin sign-in: %w", err)
	}
	ceremony, err := s.beginCeremony(ctx, c, "login", "", string(data))
	return Challenge{ceremony, options}, err
}

// errCloned ends the transaction of a sign-in; what must stay is written after it.
var errCloned = refused("sign in with a link or another passkey, and remove this one", "there may be a copy of this passkey")

// FinishPasskeyLogin signs an owner in. A passkey whose counter went back is
// refused, for a copy of it may be in use, and its owner is told.
func (s *Service) FinishPasskeyLogin(ctx context.Context, c Client, ceremony Secret, response []byte) (g Grant, err error) {
	parsed, err := protocol.ParseCredentialRequestResponseBytes(response)
	if err != nil {
		return Grant{}, s.errPasskey(c, err)
	}
	var (
		a    Account
		used *webauthn.Credential
	)
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		_, data, err := endCeremony(tx, c, "login", ceremony)
		if err != nil {
			return err
		}
		var session webauthn.SessionData
		if err := json.Unmarshal([]byte(data), &session); err != nil {
			return fmt.Errorf("read ceremony: %w", err)
		}
		_, used, err = s.webauthn.ValidatePasskeyLogin(func(_, handle []byte) (webauthn.User, error) {
			if a, err = account(tx, string(handle)); err != nil {
				return nil, err
			}
			list, err := passkeys(tx, a.ID)
			return &person{a.ID, a.Name, list}, err
		}, session, parsed)
		if err != nil {
			return s.errPasskey(c, err)
		}
		if a.Disabled {
			return errWrong
		}
		if used.Authenticator.CloneWarning {
			return errCloned
		}
		text, err := json.Marshal(used)
		if err != nil {
			return fmt.Errorf("store passkey: %w", err)
		}
		if _, err := tx.Exec("UPDATE auth_passkeys SET credential = ?, used = ? WHERE id = ?", string(text), time.Now().UnixMicro(), used.ID); err != nil {
			return err
		}
		g, err = s.begin(tx, c, a, rights.StageFull, "passkey", "")
		return err
	})
	if errors.Is(err, errCloned) {
		return Grant{}, errors.Join(err, s.noteClone(ctx, c, a, used.ID, ceremony))
	}
	return g, err
}

// noteClone marks a passkey, uses up the ceremony and tells its owner.
func (s *Service) noteClone(ctx context.Context, c Client, a Account, id []byte, ceremony Secret) error {
	s.warn(a.Email, "A passkey may have been copied", "Somebody used a passkey of your account of which there seems to be a copy. He was not signed in. Remove this passkey from your account and make a new one.")
	return s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec("DELETE FROM auth_ceremonies WHERE hash = ?", ceremony.Hash()); err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE auth_passkeys SET cloned = 1 WHERE id = ?", id); err != nil {
			return err
		}
		return s.record(tx, Principal{Account: a.ID, Role: a.Role}, c, "passkey.cloned", rights.Person, a.ID, nil, nil)
	})
}

// Passkeys lists p's passkeys.
func (s *Service) Passkeys(ctx context.Context, p Principal) (list []PasskeyInfo, err error) {
	if !rights.Allowed(p, rights.Read, rights.Object{Resource: rights.Person, Owner: p.Account}) {
		return nil, ErrForbidden
	}
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		list, err = collect(tx, func(scan func(...any) error) (PasskeyInfo, error) {
			var (
				i                     PasskeyInfo
				id                    []byte
				cloned, created, used int64
			)
			err := scan(&id, &i.Name, &cloned, &created, &used)
			i.ID, i.Cloned = protocol.URLEncodedBase64(id).String(), cloned != 0
			i.Created, i.Used = time.UnixMicro(created).UTC(), time.UnixMicro(used).UTC()
			return i, err
		}, "SELECT id, name, cloned, created, used FROM auth_passkeys WHERE account = ? ORDER BY created", p.Account)
		return err
	})
	return list, err
}

// RemovePasskey takes a passkey away, unless it is the only way in.
func (s *Service) RemovePasskey(ctx context.Context, c Client, p Principal, id string) error {
	if err := mayHavePasskeys(p); err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		a, err := account(tx, p.Account)
		if err != nil {
			return err
		}
		list, err := passkeys(tx, a.ID)
		if err != nil {
			return err
		}
		for _, k := range list {
			if protocol.URLEncodedBase64(k.ID).String() != strings.TrimRight(id, "=") {
				continue
			}
			if len(list) == 1 && a.Email == "" {
				return refused("add another one, or an e-mail address, before", "this passkey is the only way into your account")
			}
			var name string
			if err := tx.Row("DELETE FROM auth_passkeys WHERE id = ? AND account = ? RETURNING name", bytes.Clone(k.ID), a.ID).Scan(&name); err != nil {
				return err
			}
			return s.record(tx, p, c, "passkey.remove", rights.Person, a.ID, map[string]string{"passkey": name}, nil)
		}
		return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such passkey")}
	})
}
