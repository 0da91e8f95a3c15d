package console

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/console/frame"
)

type scopeChoice struct{ Scope, Words string }

type sessionLine struct {
	auth.SessionInfo
	Browser string
}

type accountPage struct {
	auth.Account
	Fresh    bool // he showed lately that it is he
	Owner    bool
	Mail     bool
	Passkeys []auth.PasskeyInfo
	Sessions []sessionLine
	Tokens   []auth.TokenInfo
	Scopes   []scopeChoice
	Quiet    alert.Quiet
	From, To string // "22:00"; empty: no quiet hours
}

// scopes is all that the API lets a program do, with words for it. Who may do less is
// offered less.
var scopes = []struct {
	permission rights.Permission
	key        string
}{
	{rights.Permission{Resource: rights.Device, Action: rights.Read}, "tokens.device_read"},
	{rights.Permission{Resource: rights.Telemetry, Action: rights.Read}, "tokens.telemetry_read"},
	{rights.Permission{Resource: rights.Alert, Action: rights.Read}, "tokens.alert_read"},
	{rights.Permission{Resource: rights.Job, Action: rights.Read}, "tokens.job_read"},
	{rights.Permission{Resource: rights.Device, Action: rights.Rename}, "tokens.device_rename"},
	{rights.Permission{Resource: rights.Job, Action: rights.Start}, "tokens.job_start"},
	{rights.Permission{Resource: rights.Claim, Action: rights.Create}, "tokens.claim_create"},
	{rights.Permission{Resource: rights.Device, Action: rights.Transfer}, "tokens.device_transfer"},
	{rights.Permission{Resource: rights.Device, Action: rights.Release}, "tokens.device_release"},
	{rights.Permission{Resource: rights.Device, Action: rights.Bundle}, "tokens.device_bundle"},
	{rights.Permission{Resource: rights.Device, Action: rights.Label}, "tokens.device_label"},
	{rights.Permission{Resource: rights.Device, Action: rights.Retire}, "tokens.device_retire"},
	{rights.Permission{Resource: rights.Group, Action: rights.Read}, "tokens.group_read"},
	{rights.Permission{Resource: rights.Group, Action: rights.Write}, "tokens.group_write"},
	{rights.Permission{Resource: rights.Serial, Action: rights.Write}, "tokens.serial_write"},
	{rights.Permission{Resource: rights.Fleet, Action: rights.Read}, "tokens.fleet_read"},
	{rights.Permission{Resource: rights.Alert, Action: rights.Write}, "tokens.alert_write"},
	{rights.Permission{Resource: rights.Webhook, Action: rights.Read}, "tokens.webhook_read"},
	{rights.Permission{Resource: rights.Webhook, Action: rights.Write}, "tokens.webhook_write"},
	{rights.Permission{Resource: rights.Person, Action: rights.Read}, "tokens.account_read"},
	{rights.Permission{Resource: rights.Person, Action: rights.Write}, "tokens.account_write"},
	{rights.Permission{Resource: rights.AuditLog, Action: rights.Read}, "tokens.audit_read"},
}

// Scopes is what the account page of a role offers for a token.
func Scopes(role rights.Role) (out []rights.Permission) {
	for _, one := range scopes {
		if role.Grants(one.permission) != rights.None {
			out = append(out, one.permission)
		}
	}
	return out
}

func (c *Console) account(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	ctx := r.Context()
	data := accountPage{Owner: !p.Role.Staff(), Fresh: time.Since(p.Proved) < auth.Fresh, Mail: c.cfg.Mail}
	var err error
	if data.Account, err = c.cfg.Auth.Account(ctx, p, p.Account); err != nil {
		return err
	}
	if data.Owner {
		if data.Passkeys, err = c.cfg.Auth.Passkeys(ctx, p); err != nil {
			return err
		}
		if data.Quiet, err = c.cfg.Alerts.Quiet(ctx, p.Account); err != nil {
			return err
		}
		if data.Quiet.From != data.Quiet.To {
			data.From, data.To = clock(data.Quiet.From), clock(data.Quiet.To)
		}
	}
	sessions, err := c.cfg.Auth.Sessions(ctx, p, p.Account)
	if err != nil {
		return err
	}
	for _, s := range sessions {
		data.Sessions = append(data.Sessions, sessionLine{s, c.browser(s.Agent)})
	}
	if data.Tokens, err = c.cfg.Auth.Tokens(ctx, p, p.Account); err != nil {
		return err
	}
	for _, one := range scopes {
		if p.Role.Grants(one.permission) != rights.None {
			data.Scopes = append(data.Scopes, scopeChoice{one.permission.String(), c.views.Say(one.key)})
		}
	}
	return c.views.Show(w, r, frame.Page{Template: "account", Title: c.views.Say("account.title"), Nav: frame.AccountPath, Data: data})
}

func clock(minutes int) string { return fmt.Sprintf("%02d:%02d", minutes/60, minutes%60) }

// browser is a User-Agent as people call what sent it. It may be untrue.
func (c *Console) browser(agent string) string {
	find := func(pairs ...string) string {
		for i := 0; i+1 < len(pairs); i += 2 {
			if strings.Contains(agent, pairs[i]) {
				return pairs[i+1]
			}
		}
		return ""
	}
	what := find("Edg/", "Edge", "OPR/", "Opera", "Firefox/", "Firefox", "Chrome/", "Chrome", "Safari/", "Safari")
	where := find("iPhone", "iPhone", "iPad", "iPad", "Android", "Android", "Windows", "Windows", "Mac OS", "Mac", "CrOS", "ChromeOS", "Linux", "Linux")
	if what == "" || where == "" {
		return cmp.Or(what, where, c.views.Say("account.some_browser"))
	}
	return c.views.Say("account.browser", what, where)
}

func (c *Console) setQuiet(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	q := alert.Quiet{Zone: strings.TrimSpace(r.PostFormValue("zone")), Mute: r.PostFormValue("mute") != ""}
	for _, one := range []struct {
		text string
		to   *int
	}{{r.PostFormValue("begin"), &q.From}, {r.PostFormValue("end"), &q.To}} {
		if one.text == "" {
			continue
		}
		at, err := time.Parse("15:04", one.text)
		if err != nil {
			return &croft.Error{Kind: croft.KindUsage, Err: errors.New("this is no time of the day"), Remedy: `write it like "22:00"`}
		}
		*one.to = at.Hour()*60 + at.Minute()
	}
	if r.PostFormValue("begin") == "" || r.PostFormValue("end") == "" {
		q.From, q.To = 0, 0
	}
	if err := c.cfg.Alerts.SetQuiet(r.Context(), p.Account, q); err != nil {
		return err
	}
	return c.frame.Then(w, r, frame.AccountPath+"#quiet", frame.Good, c.views.Say("account.quiet_saved"))
}

// makeToken makes a token of the choices that were ticked.
func (c *Console) makeToken(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	days, err := strconv.Atoi(r.PostFormValue("days"))
	if err != nil || !slices.Contains([]int{7, 30, 90, 365}, days) {
		return &croft.Error{Kind: croft.KindUsage, Err: errors.New("this is no number of days"), Remedy: "choose one of the list"}
	}
	token, _, err := c.cfg.Auth.CreateToken(r.Context(), c.frame.Door().Client(r), p, r.PostFormValue("name"), strings.Join(r.PostForm["scope"], " "), time.Duration(days)*24*time.Hour)
	if err != nil {
		return err
	}
	return c.frame.ShowOnce(w, r, c.views.Say("tokens.made"), frame.Shown{Sentence: c.views.Say("tokens.keep"), Lines: []string{token.Reveal()}, Then: frame.AccountPath})
}
