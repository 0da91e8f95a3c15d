package auth

import (
	"context"
	"errors"
	"fmt"
	netmail "net/mail"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Account is one person.
type Account struct {
	ID       string    `json:"id"` // own_… of an owner, usr_… of staff
	Role     Role      `json:"role"`
	Name     string    `json:"name"`
	Email    string    `json:"email,omitempty"` // proved to be the person's; empty if there is none
	Disabled bool      `json:"disabled,omitempty"`
	Created  time.Time `json:"created"`
}

// parseEmail reads an address as it is stored: in small letters, without a name.
func parseEmail(text string) (string, error) {
	text = strings.TrimSpace(text)
	at, err := netmail.ParseAddress(text)
	if err != nil || at.Address != text || len(text) > 254 || text != fleetapi.CleanText(text, 254) || strings.ContainsAny(text, " \"<>()") {
		return "", usage("this is not an e-mail address")
	}
	return strings.ToLower(text), nil
}

const accountColumns = "id, role, name, email, disabled, created"

func scanAccount(scan func(...any) error) (Account, error) {
	var (
		a                 Account
		disabled, created int64
	)
	err := scan(&a.ID, &a.Role, &a.Name, &a.Email, &disabled, &created)
	a.Disabled, a.Created = disabled != 0, time.UnixMicro(created).UTC()
	return a, err
}

// collect reads rows to their end.
func collect[T any](tx *db.Tx, scan func(func(...any) error) (T, error), query string, args ...any) (list []T, err error) {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		one, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	return list, rows.Err()
}

func account(tx *db.Tx, id string) (Account, error) {
	a, err := scanAccount(tx.Row("SELECT "+accountColumns+" FROM auth_accounts WHERE id = ?", id).Scan)
	if errors.Is(err, db.ErrNoRows) {
		return Account{}, errNobody
	}
	return a, err
}

// accountByEmail finds the account that signs in with an address; an empty one if
// there is none.
func accountByEmail(tx *db.Tx, email string, staff bool) (Account, error) {
	a, err := scanAccount(tx.Row("SELECT "+accountColumns+" FROM auth_accounts WHERE email = ? AND staff = ?", email, number(staff)).Scan)
	if errors.Is(err, db.ErrNoRows) {
		return Account{}, nil
	}
	return a, err
}

func number(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// newAccount makes an account. id is empty, or one that nobody has yet.
func (s *Service) newAccount(tx *db.Tx, by Principal, c Client, id string, role Role, name, email string) (Account, error) {
	if id == "" {
		id = fleetapi.NewID(fleetapi.PrefixOwner)
		if role.Staff() {
			id = fleetapi.NewID(fleetapi.PrefixUser)
		}
	}
	a := Account{ID: id, Role: role, Name: name, Email: email, Created: time.Now().UTC()}
	if _, err := tx.Exec("INSERT INTO auth_accounts (id, role, staff, name, email, disabled, created) VALUES (?, ?, ?, ?, ?, 0, ?)",
		a.ID, string(a.Role), number(role.Staff()), a.Name, a.Email, a.Created.UnixMicro()); err != nil {
		return Account{}, err
	}
	if by.Account == "" {
		by = Principal{Account: a.ID, Role: a.Role}
	}
	return a, s.record(tx, by, c, "account.create", rights.Person, a.ID, nil, map[string]string{"role": string(a.Role), "name": a.Name, "email": a.Email})
}

// Account is what p may read of an account.
func (s *Service) Account(ctx context.Context, p Principal, id string) (a Account, err error) {
	if !rights.Allowed(p, rights.Read, rights.Object{Resource: rights.Person, Owner: id}) {
		return Account{}, errNobody // whether it exists is not for strangers
	}
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		a, err = account(tx, id)
		return err
	})
	return a, err
}

// Accounts lists accounts of a role (empty: all) whose e-mail address or name
// begins with text, by id, after the cursor; the next cursor is empty at the end.
func (s *Service) Accounts(ctx context.Context, p Principal, role Role, text, cursor string, limit int) (list []Account, next string, err error) {
	if rights.Reach(p, rights.Person, rights.Read) != rights.All || (role.Staff() && rights.Reach(p, rights.Staff, rights.Read) != rights.All) {
		return nil, "", ErrForbidden
	}
	if limit < 1 || limit > 500 {
		limit = 50
	}
	where, args := "id > ? AND (email LIKE ? ESCAPE '!' OR name LIKE ? ESCAPE '!')", []any{cursor, begins(strings.ToLower(text)), begins(text)}
	if role != "" {
		where, args = where+" AND role = ?", append(args, string(role))
	} else if rights.Reach(p, rights.Staff, rights.Read) != rights.All {
		where += " AND staff = 0"
	}
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		list, err = collect(tx, scanAccount, "SELECT "+accountColumns+" FROM auth_accounts WHERE "+where+" ORDER BY id LIMIT ?", append(args, limit+1)...)
		return err
	})
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].ID
	}
	return list, next, err
}

// begins is the pattern of texts that begin so.
func begins(text string) string {
	text = fleetapi.CleanText(text, 254)
	return strings.NewReplacer("!", "!!", "%", "!%", "_", "!_").Replace(text) + "%"
}

// FindOwners is the owners whose e-mail address is, or begins with, text; 50 at
// most. It is package device's Owners.
func (s *Service) FindOwners(ctx context.Context, text string) (ids []string, err error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		found, err := collect(tx, scanAccount, "SELECT "+accountColumns+" FROM auth_accounts WHERE staff = 0 AND email LIKE ? ESCAPE '!' ORDER BY email LIMIT 50",
			begins(strings.ToLower(strings.TrimSpace(text))))
		ids = nil
		for _, a := range found {
			ids = append(ids, a.ID)
		}
		return err
	})
	return ids, err
}

// SetName changes what p is called.
func (s *Service) SetName(ctx context.Context, c Client, p Principal, name string) error {
	if !rights.Allowed(p, rights.Write, rights.Object{Resource: rights.Person, Owner: p.Account}) {
		return ErrForbidden
	}
	name, err := cleanName(name, "")
	if err != nil {
		return err
	}
	return s.change(ctx, c, p, p.Account, "account.name", func(tx *db.Tx, a *Account) error {
		a.Name = name
		return nil
	})
}

// SetRole gives somebody of the staff another role, and ends his sessions.
func (s *Service) SetRole(ctx context.Context, c Client, p Principal, id string, role Role) error {
	if !rights.Allowed(p, rights.Write, rights.Object{Resource: rights.Staff, Owner: id}) {
		return ErrForbidden
	}
	if err := fresh(p); err != nil {
		return err
	}
	if !role.Staff() {
		return usage("%.40q is no role of staff", role)
	}
	return s.change(ctx, c, p, id, "account.role", func(tx *db.Tx, a *Account) error {
		if !a.Role.Staff() {
			return refused("invite the person as staff, with another account", "an owner cannot become staff")
		}
		a.Role = role
		return endSessions(tx, id, "")
	})
}

// SetDisabled shuts somebody out, with all sessions and tokens, or lets him in
// again. Staff is shut out by admins only.
func (s *Service) SetDisabled(ctx context.Context, c Client, p Principal, id string, disabled bool) error {
	if !rights.Allowed(p, rights.Disable, rights.Object{Resource: rights.Person, Owner: id}) {
		return ErrForbidden
	}
	if err := fresh(p); err != nil {
		return err
	}
	return s.change(ctx, c, p, id, "account.disable", func(tx *db.Tx, a *Account) error {
		if a.Role.Staff() && !rights.Allowed(p, rights.Write, rights.Object{Resource: rights.Staff, Owner: id}) {
			return ErrForbidden
		}
		a.Disabled = disabled
		return endSessions(tx, id, "")
	})
}

// change changes an account and records the difference. There is always an admin.
func (s *Service) change(ctx context.Context, c Client, p Principal, id, action string, do func(*db.Tx, *Account) error) error {
	return s.db.Write(ctx, func(tx *db.Tx) error { return s.changeIn(tx, c, p, id, action, do) })
}

func (s *Service) changeIn(tx *db.Tx, c Client, p Principal, id, action string, do func(*db.Tx, *Account) error) error {
	was, err := account(tx, id)
	if err != nil {
		return err
	}
	is := was
	if err := do(tx, &is); err != nil {
		return err
	}
	if was == is {
		return nil
	}
	if _, err := tx.Exec("UPDATE auth_accounts SET role = ?, name = ?, email = ?, disabled = ? WHERE id = ?",
		string(is.Role), is.Name, is.Email, number(is.Disabled), id); err != nil {
		return err
	}
	if was.Role == rights.RoleAdmin {
		if admin, err := hasAdmin(tx); err != nil {
			return err
		} else if !admin {
			return refused("make somebody else an admin before", "this is the last admin")
		}
		if is.Role != was.Role || is.Disabled { // by his own invitation he would be back
			if _, err := tx.Exec("DELETE FROM auth_links WHERE purpose = ? AND account = ?", string(LinkInvite), id); err != nil {
				return err
			}
		}
	}
	before, after := facts(was), facts(is)
	for key := range after { // what did not change says nothing
		if before[key] == after[key] {
			delete(before, key)
			delete(after, key)
		}
	}
	return s.record(tx, p, c, action, rights.Person, id, before, after)
}

func facts(a Account) map[string]string {
	return map[string]string{"role": string(a.Role), "name": a.Name, "email": a.Email, "disabled": strconv.FormatBool(a.Disabled)}
}

// hasAdmin reports whether somebody can sign in as an admin.
func hasAdmin(tx *db.Tx) (bool, error) {
	var n int
	err := tx.Row("SELECT COUNT(*) FROM auth_accounts WHERE role = ? AND disabled = 0", string(rights.RoleAdmin)).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("count admins: %w", err)
	}
	return n > 0, nil
}
