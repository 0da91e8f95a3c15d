package auth

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// halfLife is how long a stage before full lasts.
const halfLife = 15 * time.Minute

// browserLife is how long a browser is remembered.
const browserLife = 400 * 24 * time.Hour

// Grant is what a sign-in yields. The HTTP handlers make the cookie of it.
type Grant struct {
	Cookie    Secret // of the session
	Expires   time.Time
	Principal Principal
	Recovery  []Secret // codes to write down, when TOTP was just set up
}

// SessionInfo is a session as its owner sees it.
type SessionInfo struct {
	ID      string    `json:"id"`
	Method  string    `json:"method"` // passkey, link, password, oidc:NAME
	Created time.Time `json:"created"`
	Seen    time.Time `json:"seen"` // to the minute
	Expires time.Time `json:"expires"`
	Address string    `json:"address"`
	Agent   string    `json:"agent"`
	Current bool      `json:"current"`
}

func (s *Service) lives(role Role, stage rights.Stage) (idle, most time.Duration) {
	switch {
	case stage != rights.StageFull:
		return halfLife, halfLife
	case role.Staff():
		return s.cfg.StaffIdle, s.cfg.StaffMost
	}
	return s.cfg.OwnerIdle, s.cfg.OwnerMost
}

// begin makes a session, and ends the one whose place it takes, which must still
// be there. From the stage
// full on, the browser counts as one of the account's.
func (s *Service) begin(tx *db.Tx, c Client, a Account, stage rights.Stage, method, instead string) (Grant, error) {
	if a.Disabled {
		return Grant{}, errWrong
	}
	now := time.Now().UTC()
	_, most := s.lives(a.Role, stage)
	g := Grant{Cookie: secret.Random(), Expires: now.Add(most), Principal: Principal{
		Account: a.ID, Role: a.Role, Name: a.Name, Session: fleetapi.NewID(fleetapi.PrefixSession), Stage: stage, Proved: now,
	}}
	if instead != "" {
		n, err := tx.Exec("DELETE FROM auth_sessions WHERE id = ? AND account = ?", instead, a.ID)
		if err != nil {
			return Grant{}, err
		}
		if n == 0 {
			return Grant{}, ErrGone
		}
	}
	if _, err := tx.Exec(`INSERT INTO auth_sessions (hash, id, account, stage, method, created, proved, seen, expires, address, agent)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		g.Cookie.Hash(), g.Principal.Session, a.ID, string(stage), method, now.UnixMicro(), now.UnixMicro(), now.UnixMicro(), g.Expires.UnixMicro(),
		addressText(c.Address), fleetapi.CleanText(c.Agent, 200)); err != nil {
		return Grant{}, err
	}
	if stage != rights.StageFull {
		return g, nil
	}
	if err := remember(tx, c, a.ID, true); err != nil {
		return Grant{}, err
	}
	return g, s.record(tx, g.Principal, c, "session.begin", rights.Session, g.Principal.Session, nil, map[string]string{"method": method})
}

// remember makes the client's browser one of the account's; proved says that all of
// a sign-in was done there.
func remember(tx *db.Tx, c Client, id string, proved bool) error {
	hash := c.browserHash()
	if hash == nil {
		return nil
	}
	_, err := tx.Exec(`INSERT INTO auth_browsers (hash, account, seen, proved) VALUES (?, ?, ?, ?)
		ON CONFLICT (hash, account) DO UPDATE SET seen = excluded.seen, proved = CASE WHEN excluded.proved = 1 THEN 1 ELSE auth_browsers.proved END`,
		hash, id, time.Now().UnixMicro(), number(proved))
	return err
}

// known reports whether this browser is one of the account's, and whether all of a
// sign-in was done in it before.
func known(tx *db.Tx, c Client, id string) (mine, proved bool, err error) {
	hash := c.browserHash()
	if hash == nil {
		return false, false, nil
	}
	var n int64
	err = tx.Row("SELECT proved FROM auth_browsers WHERE hash = ? AND account = ?", hash, id).Scan(&n)
	return err == nil, n == 1, ignoreNoRows(err)
}

// BySession is who has the cookie; nobody if it is wrong, old or ended.
func (s *Service) BySession(ctx context.Context, cookie Secret) (Principal, error) {
	var (
		p                     Principal
		hash                  = cookie.Hash()
		stored                []byte
		proved, seen, expires int64
		now                   = time.Now()
	)
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Row(`SELECT s.hash, s.id, s.stage, s.proved, s.seen, s.expires, a.id, a.role, a.name
			FROM auth_sessions s JOIN auth_accounts a ON a.id = s.account WHERE s.hash = ? AND a.disabled = 0`, hash).
			Scan(&stored, &p.Session, &p.Stage, &proved, &seen, &expires, &p.Account, &p.Role, &p.Name)
	})
	if errors.Is(err, db.ErrNoRows) || !bytes.Equal(hash, stored) {
		return Principal{}, ignoreNoRows(err)
	}
	if err != nil {
		return Principal{}, err
	}
	idle, _ := s.lives(p.Role, p.Stage)
	unused := now.Sub(time.UnixMicro(seen))
	if now.UnixMicro() >= expires || unused >= idle {
		return Principal{}, nil
	}
	p.Proved = time.UnixMicro(proved).UTC()
	if unused >= time.Minute {
		s.note(ctx, "UPDATE auth_sessions SET seen = ? WHERE hash = ?", now, hash)
	}
	return p, nil
}

// note stores when something was last used. Where that cannot be written, as on a
// full disk, people can still look at what is wrong.
func (s *Service) note(ctx context.Context, query string, now time.Time, hash []byte) {
	if err := s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(query, now.UnixMicro(), hash)
		return err
	}); err != nil && ctx.Err() == nil {
		s.log.Warn("last use cannot be stored", "error", err)
	}
}

func ignoreNoRows(err error) error {
	if errors.Is(err, db.ErrNoRows) {
		return nil
	}
	return err
}

// Sessions lists where an account is signed in, the newest first.
func (s *Service) Sessions(ctx context.Context, p Principal, id string) (list []SessionInfo, err error) {
	if !rights.Allowed(p, rights.Read, rights.Object{Resource: rights.Session, Owner: id}) {
		return nil, ErrForbidden
	}
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		a, err := account(tx, id)
		if err != nil {
			return err
		}
		idle, _ := s.lives(a.Role, rights.StageFull)
		now := time.Now()
		list, err = collect(tx, func(scan func(...any) error) (SessionInfo, error) {
			var (
				i                      SessionInfo
				created, seen, expires int64
			)
			err := scan(&i.ID, &i.Method, &created, &seen, &expires, &i.Address, &i.Agent)
			i.Created, i.Seen, i.Expires = time.UnixMicro(created).UTC(), time.UnixMicro(seen).UTC(), time.UnixMicro(expires).UTC()
			i.Current = i.ID == p.Session
			return i, err
		}, `SELECT id, method, created, seen, expires, address, agent FROM auth_sessions
			WHERE account = ? AND stage = ? AND expires > ? AND seen > ? ORDER BY created DESC, id`,
			id, string(rights.StageFull), now.UnixMicro(), now.Add(-idle).UnixMicro())
		return err
	})
	return list, err
}

// EndSession ends a session of an account, or with an empty id all but p's own.
func (s *Service) EndSession(ctx context.Context, c Client, p Principal, of, id string) error {
	if p.Session == "" || id != p.Session || of != p.Account { // whoever holds a session may end it, at any stage
		if !rights.Allowed(p, rights.Write, rights.Object{Resource: rights.Session, Owner: of}) {
			return ErrForbidden
		}
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		if id == "" {
			if err := endSessions(tx, of, p.Session); err != nil {
				return err
			}
			return s.record(tx, p, c, "session.end_all", rights.Session, of, nil, nil)
		}
		n, err := tx.Exec("DELETE FROM auth_sessions WHERE id = ? AND account = ?", id, of)
		if err != nil {
			return err
		}
		if n == 0 {
			return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such session")}
		}
		return s.record(tx, p, c, "session.end", rights.Session, id, map[string]string{"account": of}, nil)
	})
}

// endSessions ends all sessions of an account but one.
func endSessions(tx *db.Tx, account, but string) error {
	_, err := tx.Exec("DELETE FROM auth_sessions WHERE account = ? AND id <> ?", account, but)
	return err
}

// ceremonyLife is how long a begun ceremony waits for its second half.
const ceremonyLife = 5 * time.Minute

// beginCeremony keeps data for the second half, which comes from the same browser
// with the returned secret.
func (s *Service) beginCeremony(ctx context.Context, c Client, kind, account, data string) (Secret, error) {
	browser := c.browserHash()
	if browser == nil {
		return Secret{}, refused("allow cookies for this site", "the browser sends no cookies")
	}
	id := secret.Random()
	return id, s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec("INSERT INTO auth_ceremonies (hash, kind, account, browser, data, expires) VALUES (?, ?, ?, ?, ?, ?)",
			id.Hash(), kind, account, browser, data, time.Now().Add(ceremonyLife).UnixMicro())
		return err
	})
}

// endCeremony is what was kept, once.
func endCeremony(tx *db.Tx, c Client, kind string, id Secret) (account, data string, err error) {
	var (
		browser []byte
		expires int64
	)
	err = tx.Row("DELETE FROM auth_ceremonies WHERE hash = ? AND kind = ? RETURNING account, browser, data, expires", id.Hash(), kind).
		Scan(&account, &browser, &data, &expires)
	if errors.Is(err, db.ErrNoRows) || (err == nil && (time.Now().UnixMicro() >= expires || !bytes.Equal(browser, c.browserHash()))) {
		return "", "", ErrGone
	}
	return account, data, err
}

// addressText is an address for people and tables.
func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
