package staff

import (
	"cmp"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/device"
)

var (
	errNoRule     = errors.New("there is no such alert rule")
	errNoReceiver = errors.New("there is no such receiver")
)

// staffRoles are the roles of those who work for the fleet.
var staffRoles = []rights.Role{rights.RoleSupport, rights.RoleOperator, rights.RoleAdmin}

func (s *Pages) roleWord(role rights.Role) string { return s.views.Say("role." + string(role)) }

// PersonRow is an account as pages show it.
type PersonRow struct {
	auth.Account
	Title, Word, Path string
	Self              bool
}

func (k *call) personRow(a auth.Account) PersonRow {
	return PersonRow{a, cmp.Or(a.Name, a.Email, a.ID), k.roleWord(a.Role), "/fleet/people/" + a.ID, a.ID == k.p.Account}
}

type peoplePage struct {
	Rows  []PersonRow
	Q     string
	Roles []Choice // to list; Value is an address
	New   []Choice // to invite
	Staff bool     // the list is of staff
	Next  string
}

func (s *Pages) people(k *call) error {
	role := rights.Role(k.get("role"))
	if role != "" && !slices.Contains(rights.Roles(), role) {
		return usage("%.20q is no role", role)
	}
	found, next, err := s.cfg.Auth.Accounts(k.ctx(), k.p, role, k.get("q"), k.get("cursor"), 0)
	if err != nil {
		return err
	}
	page := peoplePage{Q: k.get("q"), Next: k.next(next), Staff: k.may(rights.Staff, rights.Read)}
	for _, a := range found {
		page.Rows = append(page.Rows, k.personRow(a))
	}
	listed := []rights.Role{"", rights.RoleOwner}
	if page.Staff {
		listed = append(listed, staffRoles...)
	}
	for _, one := range listed {
		page.Roles = append(page.Roles, Choice{link("/fleet/people", "role", string(one), "q", page.Q), s.views.Say("peoplelist." + cmp.Or(string(one), "all")), one == role})
	}
	page.New = choices(staffRoles, rights.RoleSupport, s.roleWord)
	return k.show(frame.Page{Template: "people", Title: s.views.Say("people.title"), Nav: "/fleet/people", Data: page})
}

type personPage struct {
	PersonRow
	Roles []Choice
	Boxes []Row
	More  string // address of the list of all boxes
}

func (s *Pages) person(k *call) error {
	a, err := s.cfg.Auth.Account(k.ctx(), k.p, k.r.PathValue("id"))
	if err != nil {
		return err
	}
	if a.Role.Staff() && !k.may(rights.Staff, rights.Read) {
		return auth.ErrForbidden
	}
	page := personPage{PersonRow: k.personRow(a), Roles: choices(staffRoles, a.Role, s.roleWord)}
	if !a.Role.Staff() {
		boxes, next, err := s.cfg.Devices.List(k.ctx(), k.actor(), device.Query{Owner: a.ID, Limit: 20})
		if err != nil {
			return err
		}
		for _, b := range boxes {
			page.Boxes = append(page.Boxes, rowOf(b))
		}
		if next != "" {
			page.More = link("/fleet/boxes", "owner", a.ID)
		}
	}
	return k.show(frame.Page{Template: "person", Title: page.Title, Nav: "/fleet/people", Data: page})
}

type auditPage struct {
	Rows   []auditRow
	Fields map[string]string
	Next   string
}

type auditRow struct {
	auditlog.Numbered
	Who, Path string
	Changes   []Change
}

// Change is one field of an entry, before and after.
type Change struct{ Name, Before, After string }

// auditFields are what the audit log is searched by.
var auditFields = []string{"actor", "action", "object", "address", "from", "until"}

func (s *Pages) audit(k *call) error {
	page := auditPage{Fields: map[string]string{}}
	for _, name := range auditFields {
		page.Fields[name] = k.get(name)
	}
	q := auditlog.Query{Actor: k.get("actor"), Action: k.get("action"), Object: k.get("object"), Address: k.get("address"), Cursor: k.get("cursor")}
	for name, at := range map[string]*time.Time{"from": &q.From, "until": &q.Until} {
		text := k.get(name)
		if text == "" {
			continue
		}
		var err error
		if *at, err = time.Parse(time.DateOnly, text); err != nil {
			return usage("%.20q is no day: write it like 2026-11-21", text)
		}
	}
	if !q.Until.IsZero() { // the day is meant as a whole
		q.Until = q.Until.AddDate(0, 0, 1)
	}
	found, next, err := s.cfg.AuditLog.Search(k.ctx(), q)
	if err != nil {
		return err
	}
	page.Next = k.next(next)
	known := names{}
	for _, e := range found {
		row := auditRow{Numbered: e, Who: e.Actor}
		if strings.HasPrefix(e.Actor, "own_") || strings.HasPrefix(e.Actor, "usr_") {
			row.Who = known.of(k, e.Actor)
		}
		if id, err := croft.ParseDeviceID(e.Object); err == nil {
			row.Path = boxPath(id)
		} else if e.Kind == "account" {
			row.Path = "/fleet/people/" + e.Object
		}
		row.Changes = changesOf(e.Before, e.After)
		page.Rows = append(page.Rows, row)
	}
	return k.show(frame.Page{Template: "audit", Title: s.views.Say("audit.title"), Nav: "/fleet/audit", Data: page})
}

func changesOf(before, after map[string]string) (out []Change) {
	both := map[string]string{}
	maps.Copy(both, before)
	maps.Copy(both, after)
	for _, name := range slices.Sorted(maps.Keys(both)) {
		if before[name] != after[name] {
			out = append(out, Change{name, before[name], after[name]})
		}
	}
	return out
}

// verify reads the whole log. That something is wrong with it is an answer.
func (s *Pages) verify(k *call) error {
	n, err := s.cfg.AuditLog.Verify(k.ctx())
	if broken, ok := errors.AsType[*auditlog.BrokenError](err); ok {
		return s.frame.Then(k.w, k.r, "/fleet/audit", frame.Bad, s.views.Say("audit.broken", broken.Seq, broken.Why))
	}
	if err != nil {
		return err
	}
	return k.done("/fleet/audit", "audit.sound", n)
}

func (s *Pages) serials(k *call) error {
	return k.show(frame.Page{Template: "serials", Title: s.views.Say("serials.title"), Nav: "/fleet/serials"})
}

// importSerials takes a file, or what was pasted.
func (s *Pages) importSerials(k *call) error {
	var list io.Reader = strings.NewReader(k.r.PostFormValue("list"))
	file, header, err := k.r.FormFile("file")
	switch {
	case err == nil:
		defer file.Close()
		if header.Size > 0 {
			list = file
		}
	case !errors.Is(err, http.ErrMissingFile) && !errors.Is(err, http.ErrNotMultipart):
		return usage("the file cannot be read: %w", err)
	}
	got, err := s.cfg.Devices.ImportSerials(k.ctx(), k.actor(), list)
	if err != nil {
		return err
	}
	return k.done("/fleet/serials", "serials.imported", got.Added, got.Known)
}

type groupsPage struct {
	Rows     []groupRow
	Selector string
}

type groupRow struct {
	device.Group
	Path string
}

func (s *Pages) groups(k *call) error {
	found, err := s.cfg.Devices.Groups(k.ctx(), k.actor())
	if err != nil {
		return err
	}
	page := groupsPage{Selector: k.get("selector")}
	for _, g := range found {
		page.Rows = append(page.Rows, groupRow{g, link("/fleet/boxes", "selector", g.Selector)})
	}
	return k.show(frame.Page{Template: "groups", Title: s.views.Say("groups.title"), Nav: "/fleet/groups", Data: page})
}

func (s *Pages) saveGroup(k *call) error {
	g, err := s.cfg.Devices.SaveGroup(k.ctx(), k.actor(), device.Group{ID: k.get("id"), Name: k.get("name"), Selector: k.get("selector")})
	if err != nil {
		return err
	}
	return k.done("/fleet/groups", "groups.saved", g.Name)
}

func (s *Pages) deleteGroup(k *call) error {
	if err := s.cfg.Devices.DeleteGroup(k.ctx(), k.actor(), k.get("id")); err != nil {
		return err
	}
	return k.done("/fleet/groups", "groups.deleted")
}
