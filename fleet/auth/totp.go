package auth

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/croft-cloud/croft/fleet/auth/pace"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
)

const recoveryCodes = 10

func hasTOTP(tx *db.Tx, id string) (bool, error) {
	var n int
	err := tx.Row("SELECT COUNT(*) FROM auth_totp WHERE account = ? AND secret IS NOT NULL", id).Scan(&n)
	return n > 0, err
}

// mayEnroll refuses who may not set up TOTP: it is for staff with a password,
// right after it, or freshly signed in.
func mayEnroll(p Principal) error {
	if p.Session != "" && p.Stage == rights.StageEnroll {
		return nil
	}
	if !p.Role.Staff() {
		return ErrForbidden
	}
	return fresh(p)
}

// BeginTOTP makes a new TOTP secret, as the otpauth:// URL of a QR code. The one
// before holds until ConfirmTOTP.
func (s *Service) BeginTOTP(ctx context.Context, p Principal) (Secret, error) {
	if err := mayEnroll(p); err != nil {
		return Secret{}, err
	}
	var a Account
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		a, err = account(tx, p.Account)
		return err
	}); err != nil {
		return Secret{}, err
	}
	name := a.Email
	if name == "" {
		return Secret{}, refused("set up the second factor at the provider", "your account signs in elsewhere")
	}
	key, err := totp.Generate(totp.GenerateOpts{Issuer: s.cfg.Name, AccountName: name})
	if err != nil {
		return Secret{}, fmt.Errorf("make TOTP secret: %w", err)
	}
	pending := s.keys.Encrypt(a.ID, secret.New(key.Secret()))
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(`INSERT INTO auth_totp (account, pending, step) VALUES (?, ?, 0)
			ON CONFLICT (account) DO UPDATE SET pending = excluded.pending`, a.ID, pending)
		return err
	})
	return secret.New(key.URL()), err
}

// ConfirmTOTP proves that the new secret arrived. The grant has the recovery codes,
// which are shown once; a session of [rights.StageEnroll] becomes full.
func (s *Service) ConfirmTOTP(ctx context.Context, c Client, p Principal, code string) (g Grant, err error) {
	if err := mayEnroll(p); err != nil {
		return Grant{}, err
	}
	paces := totpPaces(c, p.Account, true)
	if err := s.try(ctx, paces); err != nil {
		return Grant{}, err
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		a, err := account(tx, p.Account)
		if err != nil {
			return err
		}
		if p.Stage == rights.StageEnroll { // two may have begun to
			if has, err := hasTOTP(tx, a.ID); err != nil || has {
				return errors.Join(err, ErrGone)
			}
		}
		var pending []byte
		if err := tx.Row("SELECT pending FROM auth_totp WHERE account = ? AND pending IS NOT NULL", a.ID).Scan(&pending); errors.Is(err, db.ErrNoRows) {
			return ErrGone
		} else if err != nil {
			return err
		}
		shared, err := s.keys.Decrypt(a.ID, pending)
		if err != nil {
			return err
		}
		step, err := secret.TOTPStep(shared, normalCode(code), time.Now())
		if err != nil || step == 0 {
			return errors.Join(err, errWrong)
		}
		if _, err := tx.Exec("UPDATE auth_totp SET secret = pending, pending = NULL, step = ? WHERE account = ?", step, a.ID); err != nil {
			return err
		}
		codes, err := s.newRecovery(tx, a.ID)
		if err != nil {
			return err
		}
		if err := errors.Join(pace.Succeed(tx, paces), endSessions(tx, a.ID, p.Session)); err != nil {
			return err
		}
		if err := s.record(tx, p, c, "totp.set", rights.Person, a.ID, nil, nil); err != nil {
			return err
		}
		g, err = s.begin(tx, c, a, rights.StageFull, "password", p.Session)
		g.Recovery = codes
		return err
	})
	if err == nil && p.Stage == rights.StageFull {
		s.warnAccount(ctx, p.Account, "Your second factor was set up", "The app for one-time codes of your account was set up anew. The recovery codes from before are void.")
	}
	return g, err
}

func (s *Service) newRecovery(tx *db.Tx, id string) ([]Secret, error) {
	if _, err := tx.Exec("DELETE FROM auth_recovery WHERE account = ?", id); err != nil {
		return nil, err
	}
	var codes []Secret
	for range recoveryCodes {
		raw := make([]byte, 7) // 50 of its 56 bits
		_, _ = rand.Read(raw)  // it never fails
		code := strings.ToLower(base32.StdEncoding.EncodeToString(raw))[:10]
		if _, err := tx.Exec("INSERT INTO auth_recovery (account, hash) VALUES (?, ?)", id, s.keys.Tag("recovery", id, code)); err != nil {
			return nil, err
		}
		codes = append(codes, secret.New(code[:5]+"-"+code[5:]))
	}
	return codes, nil
}

func normalCode(code string) string {
	if len(code) > 40 {
		return ""
	}
	return strings.ToLower(strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' {
			return -1
		}
		return r
	}, code))
}

// SecondFactor is the second half of a staff's sign-in: a code of TOTP, or one of
// the recovery codes.
func (s *Service) SecondFactor(ctx context.Context, c Client, p Principal, code string) (g Grant, err error) {
	if p.Session == "" || p.Stage != rights.StageTOTP {
		return Grant{}, ErrSignIn
	}
	mine := false
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		_, mine, err = known(tx, c, p.Account)
		return err
	}); err != nil {
		return Grant{}, err
	}
	paces := totpPaces(c, p.Account, mine)
	if err := s.try(ctx, paces); err != nil {
		return Grant{}, err
	}
	var a Account
	recovery := false
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		if a, err = account(tx, p.Account); err != nil {
			return err
		}
		code := normalCode(code)
		if recovery = len(code) == 10; recovery {
			n, err := tx.Exec("DELETE FROM auth_recovery WHERE account = ? AND hash = ?", a.ID, s.keys.Tag("recovery", a.ID, code))
			if err != nil || n == 0 {
				return errors.Join(err, errWrong)
			}
			if err := s.record(tx, p, c, "totp.recovery_used", rights.Person, a.ID, nil, nil); err != nil {
				return err
			}
		} else if err := s.useTOTP(tx, a.ID, code); err != nil {
			return err
		}
		if err := pace.Succeed(tx, paces); err != nil {
			return err
		}
		g, err = s.begin(tx, c, a, rights.StageFull, "password", p.Session)
		return err
	})
	if err == nil && recovery {
		s.warn(a.Email, "A recovery code was used", "One of the recovery codes of your account was just used to sign in.")
	}
	return g, err
}

// useTOTP refuses codes that are wrong, were used, or are older than one used.
func (s *Service) useTOTP(tx *db.Tx, id, code string) error {
	var (
		sealed []byte
		last   int64
	)
	if err := tx.Row("SELECT secret, step FROM auth_totp WHERE account = ? AND secret IS NOT NULL", id).Scan(&sealed, &last); err != nil {
		return err
	}
	shared, err := s.keys.Decrypt(id, sealed)
	if err != nil {
		return err
	}
	step, err := secret.TOTPStep(shared, code, time.Now())
	if err != nil || step <= last {
		return errors.Join(err, errWrong)
	}
	_, err = tx.Exec("UPDATE auth_totp SET step = ? WHERE account = ?", step, id)
	return err
}

// ResetTOTP takes TOTP and recovery codes from somebody who lost them, and ends his
// sessions: after the next password a new secret is set up. Only another admin may.
func (s *Service) ResetTOTP(ctx context.Context, c Client, p Principal, id string) error {
	if !rights.Allowed(p, rights.Write, rights.Object{Resource: rights.Staff, Owner: id}) || id == p.Account {
		return ErrForbidden
	}
	if err := fresh(p); err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := account(tx, id); err != nil {
			return err
		}
		for _, query := range []string{"DELETE FROM auth_totp WHERE account = ?", "DELETE FROM auth_recovery WHERE account = ?"} {
			if _, err := tx.Exec(query, id); err != nil {
				return err
			}
		}
		if err := endSessions(tx, id, ""); err != nil {
			return err
		}
		return s.record(tx, p, c, "totp.reset", rights.Person, id, nil, nil)
	})
}
