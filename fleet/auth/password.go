package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/croft-cloud/croft/fleet/auth/pace"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/db"
)

// setPassword stores a password. Links with which another one could be set end.
func setPassword(tx *db.Tx, id, hash string) error {
	if _, err := tx.Exec("DELETE FROM auth_links WHERE purpose = ? AND account = ?", string(LinkReset), id); err != nil {
		return err
	}
	_, err := tx.Exec(`INSERT INTO auth_passwords (account, hash, changed) VALUES (?, ?, ?)
		ON CONFLICT (account) DO UPDATE SET hash = excluded.hash, changed = excluded.changed`, id, hash, time.Now().UnixMicro())
	return err
}

func storedPassword(tx *db.Tx, id string) (hash string, err error) {
	err = tx.Row("SELECT hash FROM auth_passwords WHERE account = ?", id).Scan(&hash)
	return hash, ignoreNoRows(err)
}

// PasswordLogin is the first half of a staff's sign-in. The grant is of
// [rights.StageTOTP], or of [rights.StageEnroll] when there is no TOTP yet.
func (s *Service) PasswordLogin(ctx context.Context, c Client, email string, password Secret) (Grant, error) {
	email, err := parseEmail(email)
	if err != nil {
		return Grant{}, err
	}
	var (
		a      Account
		stored string
		mine   bool
	)
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		if a, err = accountByEmail(tx, email, true); err != nil {
			return err
		}
		if stored, err = storedPassword(tx, a.ID); err != nil {
			return err
		}
		mine, _, err = known(tx, c, a.ID)
		return err
	}); err != nil {
		return Grant{}, fmt.Errorf("sign in: %w", err)
	}
	paces := passwordPaces(c, email, mine)
	if err := s.try(ctx, paces); err != nil {
		return Grant{}, err
	}
	ok, old, err := s.passwords.Matches(ctx, stored, password)
	if err != nil {
		return Grant{}, fmt.Errorf("sign in: %w", err)
	}
	if !ok || a.Disabled {
		s.log.Info("password refused", "address", addressText(c.Address))
		return Grant{}, errWrong
	}
	renewed := ""
	if old {
		if renewed, err = s.passwords.New(ctx, password, "", ""); err != nil {
			renewed = "" // a rule that is younger than the password
		}
	}
	var g Grant
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		a, err := account(tx, a.ID)
		if err != nil {
			return err
		}
		if is, err := storedPassword(tx, a.ID); err != nil || is != stored {
			return errors.Join(err, errWrong) // changed meanwhile
		}
		if err := pace.Succeed(tx, paces); err != nil {
			return err
		}
		if renewed != "" {
			if err := setPassword(tx, a.ID, renewed); err != nil {
				return err
			}
		}
		stage := rights.StageEnroll
		if has, err := hasTOTP(tx, a.ID); err != nil {
			return err
		} else if has {
			stage = rights.StageTOTP
		}
		g, err = s.begin(tx, c, a, stage, "password", "")
		return err
	})
	return g, err
}

// ChangePassword sets a new password, ends all sessions and begins a new one.
func (s *Service) ChangePassword(ctx context.Context, c Client, p Principal, was, is Secret) (g Grant, err error) {
	if err := fresh(p); err != nil {
		return Grant{}, err
	}
	var (
		a      Account
		stored string
	)
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		if a, err = account(tx, p.Account); err != nil {
			return err
		}
		stored, err = storedPassword(tx, p.Account)
		return err
	}); err != nil {
		return Grant{}, err
	}
	paces := passwordPaces(c, a.Email, true)
	if err := s.try(ctx, paces); err != nil {
		return Grant{}, err
	}
	if ok, _, err := s.passwords.Matches(ctx, stored, was); err != nil || !ok {
		return Grant{}, errors.Join(err, errWrong)
	}
	hash, err := s.passwords.New(ctx, is, a.Email, a.Name)
	if err != nil {
		return Grant{}, err
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		if err := errors.Join(pace.Succeed(tx, paces), setPassword(tx, a.ID, hash), endSessions(tx, a.ID, p.Session)); err != nil {
			return err
		}
		if err := s.record(tx, p, c, "password.change", rights.Person, a.ID, nil, nil); err != nil {
			return err
		}
		g, err = s.begin(tx, c, a, rights.StageFull, "password", p.Session)
		return err
	})
	if err == nil {
		s.warn(a.Email, "Your password was changed", "The password of your account was changed.")
	}
	return g, err
}
