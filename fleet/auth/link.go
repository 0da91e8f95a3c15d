package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
)

// Purpose is what a link in a mail is for.
type Purpose string

// The purposes.
const (
	LinkLogin     Purpose = "login"     // signs an owner in; RedeemLink
	LinkEmail     Purpose = "email"     // proves that an address is somebody's; RedeemLink
	LinkReset     Purpose = "reset"     // new password for staff; ResetPassword
	LinkInvite    Purpose = "invite"    // makes somebody staff; Accept
	LinkBootstrap Purpose = "bootstrap" // makes the first admin, not sent by mail; Accept
)

const (
	linkLife      = 15 * time.Minute
	inviteLife    = 72 * time.Hour
	bootstrapLife = 24 * time.Hour
)

// LinkInfo is what the page of a link says before its button is pressed.
type LinkInfo struct {
	Purpose     Purpose   `json:"purpose"`
	Email       string    `json:"email,omitempty"`
	Role        Role      `json:"role,omitempty"`
	Expires     time.Time `json:"expires"`
	SameBrowser bool      `json:"same_browser"` // false: ask whether to go on, then send confirm=yes

	account string
}

// ErrConfirm reports that a link was opened in another browser than the one that
// asked for it. It is not used up.
var ErrConfirm = &croft.Error{
	Kind: croft.KindRefused, Err: errors.New("this link was asked for in another browser"),
	Remedy: "confirm that you want to sign in here",
}

// RequestLink sends an owner a link that signs in, and makes an account if there
// is none. What it returns does not depend on that, nor on whether a mail was sent.
func (s *Service) RequestLink(ctx context.Context, c Client, email string) error {
	email, err := parseEmail(email)
	if err != nil {
		return err
	}
	return s.mailLink(ctx, c, "link", LinkInfo{Purpose: LinkLogin, Email: email}, true)
}

// RequestReset sends somebody of the staff a link for a new password. Unknown
// addresses get the same answer, and no mail.
func (s *Service) RequestReset(ctx context.Context, c Client, email string) error {
	email, err := parseEmail(email)
	if err != nil {
		return err
	}
	var a Account
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		a, err = accountByEmail(tx, email, true)
		return err
	}); err != nil {
		return err
	}
	return s.mailLink(ctx, c, "reset", LinkInfo{Purpose: LinkReset, Email: email, account: a.ID}, a.ID != "" && !a.Disabled)
}

// RequestEmail sends a link to an address that p wants to have as its own.
func (s *Service) RequestEmail(ctx context.Context, c Client, p Principal, email string) error {
	email, err := parseEmail(email)
	if err != nil {
		return err
	}
	if err := fresh(p); err != nil {
		return err
	}
	if p.Role.Staff() {
		return refused("ask an admin to invite the new address", "staff's addresses are what they were invited with")
	}
	return s.mailLink(ctx, c, "link", LinkInfo{Purpose: LinkEmail, Email: email, account: p.Account}, true)
}

// mailLink makes a link, and sends it unless the address got too many or is not to
// get one. The work done is the same.
func (s *Service) mailLink(ctx context.Context, c Client, what string, info LinkInfo, wanted bool) error {
	if s.cfg.Mailer == nil {
		return &croft.Error{Kind: croft.KindMissing, Err: errors.New("this fleet sends no e-mail"), Remedy: "sign in with a passkey"}
	}
	if err := s.try(ctx, networkPaces(c, what)); err != nil {
		return err
	}
	var soon *TooSoonError
	if err := s.try(ctx, linkPaces(what+" "+info.Email)); errors.As(err, &soon) {
		return nil
	} else if err != nil {
		return err
	}
	info.Expires = time.Now().Add(linkLife)
	token, err := s.makeLink(ctx, info, c.browserHash(), func(*db.Tx) error { return nil })
	if err != nil || !wanted {
		return err
	}
	s.post(info, token)
	return nil
}

func (s *Service) makeLink(ctx context.Context, info LinkInfo, browser []byte, also func(*db.Tx) error) (Secret, error) {
	token := secret.Random()
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		if err := also(tx); err != nil {
			return err
		}
		_, err := tx.Exec("INSERT INTO auth_links (hash, purpose, account, email, role, browser, expires) VALUES (?, ?, ?, ?, ?, ?, ?)",
			token.Hash(), string(info.Purpose), info.account, info.Email, string(info.Role), browser, info.Expires.UnixMicro())
		return err
	})
	if err != nil {
		return Secret{}, fmt.Errorf("make link: %w", err)
	}
	return token, nil
}

// Link is what a token from a mail is for. It uses nothing up.
func (s *Service) Link(ctx context.Context, c Client, token Secret) (info LinkInfo, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		info, err = link(tx, c, token)
		return err
	})
	return info, err
}

func link(tx *db.Tx, c Client, token Secret) (LinkInfo, error) {
	var (
		info    LinkInfo
		browser []byte
		expires int64
	)
	err := tx.Row("SELECT purpose, account, email, role, browser, expires FROM auth_links WHERE hash = ?", token.Hash()).
		Scan(&info.Purpose, &info.account, &info.Email, &info.Role, &browser, &expires)
	if errors.Is(err, db.ErrNoRows) || (err == nil && time.Now().UnixMicro() >= expires) {
		return LinkInfo{}, ErrGone
	}
	info.Expires = time.UnixMicro(expires).UTC()
	info.SameBrowser = len(browser) > 0 && bytes.Equal(browser, c.browserHash())
	return info, err
}

// useLink is a link of one of the purposes, once.
func useLink(tx *db.Tx, c Client, token Secret, confirmed bool, purposes ...Purpose) (LinkInfo, error) {
	info, err := link(tx, c, token)
	if err != nil {
		return LinkInfo{}, err
	}
	if !slices.Contains(purposes, info.Purpose) {
		return LinkInfo{}, ErrGone
	}
	if !info.SameBrowser && !confirmed {
		return LinkInfo{}, ErrConfirm
	}
	n, err := tx.Exec("DELETE FROM auth_links WHERE hash = ?", token.Hash())
	if err == nil && n == 0 {
		err = ErrGone
	}
	return info, err
}

// RedeemLink signs an owner in with a link from a mail, or gives p the address it
// was sent to; then only the principal of the grant is set. Opened in another
// browser than the one that asked, it is refused with [ErrConfirm] unless confirmed.
func (s *Service) RedeemLink(ctx context.Context, c Client, p Principal, token Secret, confirmed bool) (g Grant, err error) {
	was := "" // the address before
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		info, err := useLink(tx, c, token, confirmed, LinkLogin, LinkEmail)
		if err != nil {
			return err
		}
		a, err := accountByEmail(tx, info.Email, false)
		if err != nil {
			return err
		}
		if info.Purpose == LinkLogin {
			if a.ID == "" {
				if a, err = s.newAccount(tx, Principal{}, c, "", rights.RoleOwner, "", info.Email); err != nil {
					return err
				}
			}
			g, err = s.begin(tx, c, a, rights.StageFull, "link", "")
			return err
		}
		// Whoever reads the mail is not asked alone: else somebody could give a
		// stranger's address to his own account by one careless click.
		if p.Account != info.account || p.Stage != rights.StageFull || p.Session == "" {
			return refused("sign in to the account that asked for it, then open the link again", "this link belongs to another account")
		}
		if a.ID != "" && a.ID != p.Account {
			return refused("sign in with the address, or use another one", "another account has this address")
		}
		g = Grant{Principal: p}
		return s.changeIn(tx, c, p, p.Account, "account.email", func(_ *db.Tx, a *Account) error {
			was, a.Email = a.Email, info.Email
			return nil
		})
	})
	if err == nil {
		s.warn(was, "Your e-mail address was changed", "Another e-mail address was set for your account. Links to sign in no longer come to this one.")
	}
	return g, err
}

// Invite sends somebody a link that makes him staff. Without a mailer it returns
// the link instead, to be handed over. It takes the place of an earlier one.
func (s *Service) Invite(ctx context.Context, c Client, p Principal, email string, role Role) (Secret, error) {
	if err := s.mayInvite(p); err != nil {
		return Secret{}, err
	}
	email, err := parseEmail(email)
	if err != nil {
		return Secret{}, err
	}
	if !role.Staff() {
		return Secret{}, usage("%.40q is no role of staff", role)
	}
	info := LinkInfo{Purpose: LinkInvite, Email: email, Role: role, Expires: time.Now().Add(inviteLife), account: p.Account}
	token, err := s.makeLink(ctx, info, nil, func(tx *db.Tx) error {
		if a, err := accountByEmail(tx, email, true); err != nil {
			return err
		} else if a.ID != "" {
			return refused("change the role of the account", "this address is staff already")
		}
		if _, err := withdraw(tx, email); err != nil {
			return err
		}
		return s.record(tx, p, c, "staff.invite", rights.Staff, email, nil, map[string]string{"role": string(role)})
	})
	if err != nil {
		return Secret{}, err
	}
	if s.cfg.Mailer == nil {
		return s.linkURL(token), nil
	}
	s.post(info, token)
	return Secret{}, nil
}

// Withdraw takes an invitation back.
func (s *Service) Withdraw(ctx context.Context, c Client, p Principal, email string) error {
	if err := s.mayInvite(p); err != nil {
		return err
	}
	email, err := parseEmail(email)
	if err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		n, err := withdraw(tx, email)
		if err != nil {
			return err
		}
		if n == 0 {
			return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("nobody is invited with this address")}
		}
		return s.record(tx, p, c, "staff.withdraw", rights.Staff, email, nil, nil)
	})
}

func (s *Service) mayInvite(p Principal) error {
	if !rights.Allowed(p, rights.Write, rights.Object{Resource: rights.Staff}) {
		return ErrForbidden
	}
	return fresh(p)
}

func withdraw(tx *db.Tx, email string) (int64, error) {
	return tx.Exec("DELETE FROM auth_links WHERE purpose = ? AND email = ?", string(LinkInvite), email)
}

// Bootstrap makes the token with which the first admin signs up, to be printed
// once on the terminal of who runs the fleet. It is empty if there is an admin.
func (s *Service) Bootstrap(ctx context.Context) (Secret, error) {
	admin := false
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		admin, err = hasAdmin(tx)
		return err
	})
	if err != nil || admin {
		return Secret{}, err
	}
	return s.makeLink(ctx, LinkInfo{Purpose: LinkBootstrap, Role: rights.RoleAdmin, Expires: time.Now().Add(bootstrapLife)}, nil, func(*db.Tx) error { return nil })
}

// Accept makes somebody staff with the token of an invitation or of Bootstrap; the
// latter needs an e-mail address too. The grant is of [rights.StageEnroll].
func (s *Service) Accept(ctx context.Context, c Client, token Secret, email, name string, password Secret) (g Grant, err error) {
	if err := s.try(ctx, networkPaces(c, "accept")); err != nil {
		return Grant{}, err
	}
	info, err := s.Link(ctx, c, token)
	if err != nil {
		return Grant{}, err
	}
	if info.Purpose == LinkBootstrap {
		if info.Email, err = parseEmail(email); err != nil {
			return Grant{}, err
		}
	}
	if name, err = cleanName(name, info.Email); err != nil {
		return Grant{}, err
	}
	hash, err := s.passwords.New(ctx, password, info.Email, name)
	if err != nil {
		return Grant{}, err
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := useLink(tx, c, token, true, LinkInvite, LinkBootstrap); err != nil {
			return err
		}
		if info.Purpose == LinkBootstrap {
			if admin, err := hasAdmin(tx); err != nil || admin {
				return errors.Join(err, ErrGone)
			}
			if _, err := tx.Exec("DELETE FROM auth_links WHERE purpose = ?", string(LinkBootstrap)); err != nil {
				return err
			}
		}
		if a, err := accountByEmail(tx, info.Email, true); err != nil {
			return err
		} else if a.ID != "" {
			return refused("sign in", "this address is staff already")
		}
		a, err := s.newAccount(tx, Principal{}, c, "", info.Role, name, info.Email)
		if err != nil {
			return err
		}
		if err := setPassword(tx, a.ID, hash); err != nil {
			return err
		}
		g, err = s.begin(tx, c, a, rights.StageEnroll, "password", "")
		return err
	})
	return g, err
}

// ResetPassword sets a new password with a link from a mail, and ends all
// sessions. It signs nobody in, but the browser's tries count apart from now on.
func (s *Service) ResetPassword(ctx context.Context, c Client, token, password Secret) error {
	if err := s.try(ctx, networkPaces(c, "accept")); err != nil {
		return err
	}
	info, err := s.Link(ctx, c, token)
	if err != nil {
		return err
	}
	hash, err := s.passwords.New(ctx, password, info.Email, "")
	if err != nil {
		return err
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := useLink(tx, c, token, true, LinkReset); err != nil {
			return err
		}
		a, err := account(tx, info.account)
		if err != nil {
			return err
		}
		if err := errors.Join(setPassword(tx, a.ID, hash), endSessions(tx, a.ID, ""), remember(tx, c, a.ID, false)); err != nil {
			return err
		}
		return s.record(tx, Principal{Account: a.ID, Role: a.Role}, c, "password.reset", rights.Person, a.ID, nil, nil)
	})
	if err == nil {
		s.warn(info.Email, "Your password was changed", "The password of your account was changed with a link from a mail.")
	}
	return err
}
