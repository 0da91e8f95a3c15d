package auth_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

// login signs somebody of the staff in with password and code.
func (w *world) signIn(p staffer) auth.Grant {
	w.t.Helper()
	time.Sleep(time.Minute) // the code before was used
	half, err := w.PasswordLogin(w.ctx, p.c, p.email, secret.New(goodPass))
	must(w.t, err)
	g, err := w.SecondFactor(w.ctx, p.c, half.Principal, w.code(p))
	must(w.t, err)
	return g
}

func TestBootstrapMakesOneAdmin(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser("192.0.2.1")
		first, err := w.Bootstrap(w.ctx)
		must(t, err)
		second, err := w.Bootstrap(w.ctx) // another replica starts
		must(t, err)
		if _, err := w.Accept(w.ctx, c, first, "", "", secret.New(goodPass)); err == nil {
			t.Error("the first admin has no e-mail address")
		}
		root := w.accept(first, "root@example.org")
		if p := w.who(root.Cookie); p.Role != rights.RoleAdmin || !strings.HasPrefix(p.Account, "usr_") {
			t.Errorf("signed in as %+v", p)
		}
		for _, token := range []secret.Text{first, second} {
			if _, err := w.Accept(w.ctx, c, token, "eve@example.org", "", secret.New(goodPass)); err == nil {
				t.Error("a second admin came in by a token of the first")
			}
		}
		if token, err := w.Bootstrap(w.ctx); err != nil || token != (secret.Text{}) {
			t.Errorf("Bootstrap with an admin = %q, %v", token.Reveal(), err)
		}
		if err := w.SetRole(w.ctx, c, root.Principal, root.Principal.Account, rights.RoleSupport); err == nil {
			t.Error("the last admin is no admin any more")
		}
		if err := w.SetDisabled(w.ctx, c, root.Principal, root.Principal.Account, true); err == nil {
			t.Error("the last admin was shut out")
		}
	})
}

func TestInvitations(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		op := w.staff(root, "op@example.org", rights.RoleOperator)
		for who, p := range map[string]rights.Principal{"an operator": op.Principal, "nobody": {}} {
			if _, err := w.Invite(w.ctx, op.c, p, "x@example.org", rights.RoleSupport); err == nil {
				t.Errorf("%s invited staff", who)
			}
		}
		if _, err := w.Invite(w.ctx, root.c, root.Principal, "x@example.org", rights.RoleOwner); err == nil {
			t.Error("an owner was invited as staff")
		}
		if _, err := w.Invite(w.ctx, root.c, root.Principal, "op@example.org", rights.RoleAdmin); err == nil {
			t.Error("staff was invited again")
		}
		for _, end := range []func(){
			func() { must(t, w.Withdraw(w.ctx, root.c, root.Principal, "new@example.org")) },
			func() {
				_, err := w.Invite(w.ctx, root.c, root.Principal, "new@example.org", rights.RoleSupport)
				must(t, err)
			},
			func() { time.Sleep(72 * time.Hour) },
		} {
			root.Grant = w.signIn(root)
			_, err := w.Invite(w.ctx, root.c, root.Principal, "new@example.org", rights.RoleAdmin)
			must(t, err)
			token := w.link("new@example.org")
			end()
			if _, err := w.Accept(w.ctx, root.c, token, "", "", secret.New(goodPass)); !errors.Is(err, auth.ErrGone) {
				t.Errorf("an invitation that ended was accepted: %v", err)
			}
		}
		if _, err := w.RedeemLink(w.ctx, op.c, rights.Principal{}, w.link("new@example.org"), true); !errors.Is(err, auth.ErrGone) {
			t.Errorf("an invitation signed in as an owner: %v", err)
		}
	})
}

func TestStaffSignsInByPasswordAndCode(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		time.Sleep(time.Minute)
		half, err := w.PasswordLogin(w.ctx, root.c, "Root@Example.org", secret.New(goodPass))
		must(t, err)
		if p := w.who(half.Cookie); p.Stage != rights.StageTOTP || rights.Allowed(p, rights.Read, rights.Object{Resource: rights.Device}) {
			t.Errorf("half signed in as %+v", p)
		}
		if _, err := w.BeginTOTP(w.ctx, half.Principal); err == nil {
			t.Error("half signed in, the code can be set up anew")
		}
		wrong := "000000"
		if w.code(root) == wrong {
			wrong = "000001"
		}
		for _, code := range []string{wrong, "", "abc", root.totp, strings.Repeat("1", 1000)} {
			if _, err := w.SecondFactor(w.ctx, root.c, half.Principal, code); err == nil {
				t.Errorf("code %.10q was right", code)
			}
		}
		code := w.code(root)
		full, err := w.SecondFactor(w.ctx, root.c, half.Principal, code[:3]+" "+code[3:])
		must(t, err)
		if full.Cookie == half.Cookie || w.who(half.Cookie).Account != "" || w.who(full.Cookie).Stage != rights.StageFull {
			t.Error("the session was not exchanged")
		}
		again, err := w.PasswordLogin(w.ctx, root.c, root.email, secret.New(goodPass))
		must(t, err)
		if _, err := w.SecondFactor(w.ctx, root.c, again.Principal, code); err == nil {
			t.Error("a code was right twice")
		}
		recovery := strings.ToUpper(root.Recovery[3].Reveal())
		if _, err := w.SecondFactor(w.ctx, root.c, again.Principal, recovery); err != nil {
			t.Errorf("recovery code: %v", err)
		}
		if !strings.Contains(w.mail(root.email), "recovery") {
			t.Error("nobody was told that a recovery code was used")
		}
		third, err := w.PasswordLogin(w.ctx, root.c, root.email, secret.New(goodPass))
		must(t, err)
		if _, err := w.SecondFactor(w.ctx, root.c, third.Principal, recovery); err == nil {
			t.Error("a recovery code was right twice")
		}
		time.Sleep(20 * time.Minute)
		if w.who(third.Cookie).Account != "" {
			t.Error("half a sign-in lasts for more than a quarter of an hour")
		}
	})
}

func TestStaffSessionsAreShort(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		time.Sleep(2 * time.Hour)
		if w.who(root.Cookie).Account != "" {
			t.Error("a session that was not used for two hours lives")
		}
		in := w.signIn(root)
		for range 12 {
			time.Sleep(59 * time.Minute)
			if w.who(in.Cookie).Account == "" {
				t.Fatal("a session in use ended early")
			}
		}
		time.Sleep(13 * time.Minute)
		if w.who(in.Cookie).Account != "" {
			t.Error("a session lives for more than 12 hours")
		}
	})
}

func TestChangesEndSessions(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		op := w.staff(root, "op@example.org", rights.RoleOperator)
		token, _, err := w.CreateToken(w.ctx, op.c, op.Principal, "ci", "rollout:write device:read", 48*time.Hour)
		must(t, err)

		other := w.signIn(op)
		if _, err := w.ChangePassword(w.ctx, op.c, other.Principal, secret.New("not my password"), secret.New("another field of sheep")); err == nil {
			t.Error("the password was changed without knowing it")
		}
		mine, err := w.ChangePassword(w.ctx, op.c, other.Principal, secret.New(goodPass), secret.New("another field of sheep"))
		must(t, err)
		if w.who(op.Cookie).Account != "" || w.who(other.Cookie).Account != "" || w.who(mine.Cookie).Account == "" {
			t.Error("a new password did not end the other sessions")
		}
		if _, err := w.PasswordLogin(w.ctx, op.c, op.email, secret.New(goodPass)); err == nil {
			t.Error("the old password is right")
		}

		if err := w.SetRole(w.ctx, op.c, mine.Principal, op.Principal.Account, rights.RoleAdmin); !errors.Is(err, auth.ErrForbidden) {
			t.Errorf("an operator makes himself admin: %v", err)
		}
		must(t, w.SetRole(w.ctx, root.c, root.Principal, op.Principal.Account, rights.RoleSupport))
		if w.who(mine.Cookie).Account != "" {
			t.Error("another role did not end the session")
		}
		p, err := w.ByToken(w.ctx, token)
		must(t, err)
		if rights.Reach(p, rights.Rollout, rights.Write) != rights.None || rights.Reach(p, rights.Device, rights.Read) != rights.All {
			t.Error("the token may more than the role, or less")
		}
		must(t, w.SetDisabled(w.ctx, root.c, root.Principal, op.Principal.Account, true))
		if p, err := w.ByToken(w.ctx, token); err != nil || p.Account != "" {
			t.Errorf("the token of somebody shut out: %+v, %v", p, err)
		}
		if _, err := w.PasswordLogin(w.ctx, browser("198.51.100.5"), op.email, secret.New("another field of sheep")); err == nil {
			t.Error("somebody shut out signs in")
		}
		ann := w.owner(browser("192.0.2.8"), "ann@example.org")
		if err := w.SetRole(w.ctx, root.c, root.Principal, ann.Principal.Account, rights.RoleSupport); err == nil {
			t.Error("an owner became staff")
		}
		must(t, w.SetDisabled(w.ctx, root.c, root.Principal, ann.Principal.Account, true))
		if w.who(ann.Cookie).Account != "" {
			t.Error("shutting out did not end the session")
		}
	})
}

func TestResets(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		op := w.staff(root, "op@example.org", rights.RoleOperator)
		must(t, w.RequestReset(w.ctx, op.c, "nobody@example.org"))
		if text := w.mail("nobody@example.org"); text != "" {
			t.Errorf("a stranger was mailed: %s", text)
		}
		must(t, w.RequestReset(w.ctx, op.c, op.email))
		token := w.link(op.email)
		if err := w.ResetPassword(w.ctx, op.c, token, secret.New("short")); err == nil {
			t.Error("a short password was taken")
		}
		must(t, w.ResetPassword(w.ctx, op.c, token, secret.New("another field of sheep")))
		if w.who(op.Cookie).Account != "" {
			t.Error("a new password did not end the sessions")
		}
		half, err := w.PasswordLogin(w.ctx, op.c, op.email, secret.New("another field of sheep"))
		must(t, err)
		if half.Principal.Stage != rights.StageTOTP {
			t.Errorf("after a reset the stage is %q", half.Principal.Stage)
		}
		if err := w.ResetTOTP(w.ctx, root.c, root.Principal, root.Principal.Account); err == nil {
			t.Error("an admin reset his own second factor")
		}
		must(t, w.ResetTOTP(w.ctx, root.c, root.Principal, op.Principal.Account))
		if w.who(half.Cookie).Account != "" {
			t.Error("half a sign-in outlived the reset")
		}
		half, err = w.PasswordLogin(w.ctx, op.c, op.email, secret.New("another field of sheep"))
		must(t, err)
		if half.Principal.Stage != rights.StageEnroll {
			t.Errorf("after the reset of TOTP the stage is %q", half.Principal.Stage)
		}
		must(t, w.RequestLink(w.ctx, op.c, op.email)) // an owner with the same address is another account
		g, err := w.RedeemLink(w.ctx, op.c, rights.Principal{}, w.link(op.email), false)
		if err != nil || g.Principal.Role != rights.RoleOwner {
			t.Errorf("a link made somebody %q, %v", g.Principal.Role, err)
		}
	})
}

func TestStrangersCannotShutAnybodyOut(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		guess := func(s *auth.Service, email string) (time.Duration, error) {
			_, err := s.PasswordLogin(w.ctx, auth.Client{Address: browser("203.0.113.5").Address}, email, secret.New("this is a wrong one"))
			if soon, ok := errors.AsType[*auth.TooSoonError](err); ok {
				return time.Until(soon.Until), nil
			}
			return 0, err
		}
		for _, email := range []string{root.email, "nobody@example.org"} { // the same, known or not
			var pauses []time.Duration
			for len(pauses) < 4 {
				pause, err := guess(w.replica(), email) // counted over restarts and replicas
				if pause == 0 && err == nil {
					t.Fatal("a wrong password was right")
				}
				if pause > 0 {
					pauses = append(pauses, pause)
					time.Sleep(pause)
				}
			}
			for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second} {
				if pauses[i] != want {
					t.Errorf("%s: pause %d is %s, want %s", email, i, pauses[i], want)
				}
			}
		}
		for range 5 { // guessing on, until strangers have to wait
			if pause, _ := guess(w.Service, root.email); pause > 15*time.Minute {
				t.Errorf("a pause of %s", pause)
			}
		}
		if _, err := w.PasswordLogin(w.ctx, browser("198.51.100.7"), root.email, secret.New(goodPass)); err == nil {
			t.Error("a stranger's browser does not wait")
		}
		if _, err := w.PasswordLogin(w.ctx, root.c, root.email, secret.New(goodPass)); err != nil {
			t.Errorf("a browser in which the account was before has to wait: %v", err)
		}
		fresh := browser("198.51.100.9")
		must(t, w.RequestReset(w.ctx, fresh, root.email))
		must(t, w.ResetPassword(w.ctx, fresh, w.link(root.email), secret.New("another field of sheep")))
		if _, err := w.PasswordLogin(w.ctx, fresh, root.email, secret.New("another field of sheep")); err != nil {
			t.Errorf("after a link from the mailbox the browser has to wait: %v", err)
		}
	})
}

func TestPausesOfANetwork(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		refused := 0
		for i := range 30 { // addresses of one /64 are one network
			c := auth.Client{Address: browser("2001:db8:1:2::" + string(rune('a'+i%6))).Address}
			err := w.RequestReset(w.ctx, c, strings.Repeat("a", i+1)+"@example.org")
			if _, ok := errors.AsType[*auth.TooSoonError](err); ok {
				refused++
			}
		}
		if refused != 9 {
			t.Errorf("%d of 30 were refused, want 9", refused)
		}
		if err := w.RequestReset(w.ctx, browser("2001:db8:1:3::1"), "b@example.org"); err != nil {
			t.Errorf("the network beside it: %v", err)
		}
	})
}

func TestConfigurations(t *testing.T) {
	url := dbtest.URL(t, dbtest.SQLite)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, url, nil)
		for name, change := range map[string]func(*auth.Config){
			"no database":     func(c *auth.Config) { c.DB = nil },
			"no auditor":      func(c *auth.Config) { c.Auditor = nil },
			"a short key":     func(c *auth.Config) { c.Key = c.Key[1:] },
			"an open origin":  func(c *auth.Config) { c.Origin = "http://fleet.example.org" },
			"origin and path": func(c *auth.Config) { c.Origin += "/x" },
		} {
			cfg := w.cfg
			change(&cfg)
			if _, err := auth.New(t.Context(), cfg); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		w.cfg.Mailer = nil
		s := w.replica()
		if err := s.RequestLink(t.Context(), browser("192.0.2.1"), "ann@example.org"); err == nil {
			t.Error("without a mailer a link was sent")
		}
	})
}
