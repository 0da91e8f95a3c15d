package auth_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
)

const (
	oneNetwork = "192.0.2.1"
	otherPass  = "another field of sheep"
)

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	must(w.t, w.db.Write(w.ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(query, args...)
		return err
	}))
}

func TestManyPeopleShareAnAddress(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for i := range 100 { // day and night, without a pause in which all would be forgotten
			if err := w.RequestLink(w.ctx, browser(oneNetwork), fmt.Sprintf("owner%d@example.org", i)); err != nil {
				t.Fatalf("owner %d behind one address: %v", i, err)
			}
			time.Sleep(2 * time.Minute)
		}
		for i := range 400 {
			if _, err := w.BeginPasskeyLogin(w.ctx, browser(oneNetwork)); err != nil {
				t.Fatalf("sign-in %d behind one address: %v", i, err)
			}
			time.Sleep(2 * time.Second)
		}
		// Who is faster than that is held up all the same, and for long.
		let := 0
		for range 360 {
			if err := w.RequestReset(w.ctx, browser("192.0.2.2"), "x@example.org"); err == nil {
				let++
			} else if _, ok := errors.AsType[*auth.TooSoonError](err); !ok {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		if let < 60 || let > 100 {
			t.Errorf("%d tries of an hour were let through, want about one a minute after the first ones", let)
		}
	})
}

func TestNeighboursCannotShutAnybodyOut(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		for i := range 25 {
			if _, err := w.PasswordLogin(w.ctx, auth.Client{Address: root.c.Address}, fmt.Sprintf("nobody%d@example.org", i), secret.New("this is a wrong one")); err == nil {
				t.Fatal("a wrong password was right")
			}
		}
		if _, err := w.PasswordLogin(w.ctx, root.c, root.email, secret.New(goodPass)); err != nil {
			t.Errorf("a browser in which the account was before, in the network of who guesses: %v", err)
		}
	})
}

func TestTriesOfAClockThatWasWrongAreForgotten(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		c := browser("192.0.2.3")
		for range 6 {
			if _, err := w.PasswordLogin(w.ctx, c, root.email, secret.New("this is a wrong one")); err == nil {
				t.Fatal("a wrong password was right")
			}
		}
		years := 70 * 365 * 24 * time.Hour
		w.exec("UPDATE auth_pace SET at = at + ?, until = until + ?", years.Microseconds(), years.Microseconds())
		if _, err := w.PasswordLogin(w.ctx, c, root.email, secret.New(goodPass)); err != nil {
			t.Errorf("after the clock was set right: %v", err)
		}
	})
}

func TestAMailboxGetsNoMoreTriesAtCodes(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		wrong := "000000"
		if w.code(root) == wrong {
			wrong = "000001"
		}
		looked := 0
		for i := range 5 { // who reads the mail sets passwords in ever new browsers
			c := browser("192.0.2.3")
			must(t, w.RequestReset(w.ctx, c, root.email))
			password := secret.New(fmt.Sprint(otherPass, i))
			must(t, w.ResetPassword(w.ctx, c, w.link(root.email), password))
			half, err := w.PasswordLogin(w.ctx, c, root.email, password)
			must(t, err)
			for range 5 {
				_, err := w.SecondFactor(w.ctx, c, half.Principal, wrong)
				if err == nil {
					t.Fatal("a wrong code was right")
				}
				if _, ok := errors.AsType[*auth.TooSoonError](err); !ok {
					looked++
				}
			}
		}
		if looked > 6 {
			t.Errorf("%d codes were looked at, want 6 at most before a pause", looked)
		}
	})
}

func TestOneResetEndsTheOtherLinks(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		must(t, w.RequestReset(w.ctx, browser("192.0.2.3"), root.email)) // somebody who reads the mail for a moment
		kept := w.link(root.email)
		must(t, w.RequestReset(w.ctx, root.c, root.email))
		must(t, w.ResetPassword(w.ctx, root.c, w.link(root.email), secret.New(otherPass)))
		if err := w.ResetPassword(w.ctx, root.c, kept, secret.New("a third field of sheep")); !errors.Is(err, auth.ErrGone) {
			t.Errorf("a link from before the new password: %v", err)
		}
	})
}

func TestPeopleAreToldOfChangesOfTheirSignIn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser(oneNetwork)
		ann := w.owner(c, "ann@example.org")
		must(t, w.RequestEmail(w.ctx, c, ann.Principal, "new@example.org"))
		if _, err := w.RedeemLink(w.ctx, c, ann.Principal, w.link("new@example.org"), false); err != nil {
			t.Fatal(err)
		}
		if text := w.mail("ann@example.org"); !strings.Contains(text, "Another e-mail address") || strings.Contains(text, "new@example.org") {
			t.Errorf("the old address was told %q", text)
		}
		root := w.admin()
		in, err := w.ChangePassword(w.ctx, root.c, root.Principal, secret.New(goodPass), secret.New(otherPass))
		must(t, err)
		if text := w.mail(root.email); !strings.Contains(text, "password of your account was changed") {
			t.Errorf("of a new password was told %q", text)
		}
		must(t, w.RequestReset(w.ctx, root.c, root.email))
		must(t, w.ResetPassword(w.ctx, root.c, w.link(root.email), secret.New(goodPass)))
		if text := w.mail(root.email); !strings.Contains(text, "with a link") {
			t.Errorf("of a new password was told %q", text)
		}
		time.Sleep(time.Minute)
		in = w.signIn(root)
		_, err = w.BeginTOTP(w.ctx, in.Principal)
		must(t, err)
		if text := w.mail(root.email); text != "" {
			t.Errorf("of nothing yet was told %q", text)
		}
	})
}

func TestInvitationsOfWhoIsNoAdminAnyMoreEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		for name, end := range map[string]func(id string) error{
			"another role": func(id string) error { return w.SetRole(w.ctx, root.c, root.Principal, id, rights.RoleSupport) },
			"shut out":     func(id string) error { return w.SetDisabled(w.ctx, root.c, root.Principal, id, true) },
		} {
			email := strings.ReplaceAll(name, " ", "") + "@example.org"
			other := w.staff(root, email, rights.RoleAdmin)
			_, err := w.Invite(w.ctx, other.c, other.Principal, "back"+email, rights.RoleAdmin)
			must(t, err)
			token := w.link("back" + email)
			_, err = w.Invite(w.ctx, root.c, root.Principal, "good"+email, rights.RoleSupport)
			must(t, err)
			good := w.link("good" + email)
			must(t, end(other.Principal.Account))
			if _, err := w.Accept(w.ctx, other.c, token, "", "", secret.New(goodPass)); !errors.Is(err, auth.ErrGone) {
				t.Errorf("%s: his own invitation brings him back: %v", name, err)
			}
			w.accept(good, "good"+email) // others' stay
		}
	})
}

func TestPeopleCanLookWhenNothingCanBeStored(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser(oneNetwork)
		ann := w.owner(c, "ann@example.org")
		token, _, err := w.CreateToken(w.ctx, c, ann.Principal, "x", "device:read", time.Hour)
		must(t, err)
		for _, table := range []string{"auth_sessions", "auth_tokens"} {
			w.exec("CREATE TRIGGER full_" + table + " BEFORE UPDATE ON " + table + " BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
		}
		time.Sleep(2 * time.Minute)
		if p := w.who(ann.Cookie); p.Account != ann.Principal.Account {
			t.Errorf("by the cookie: %+v", p)
		}
		if p, err := w.ByToken(w.ctx, token); err != nil || p.Account != ann.Principal.Account {
			t.Errorf("by the token: %+v, %v", p, err)
		}
	})
}

func TestPasskeysBegunAtOnceAreCounted(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser(oneNetwork)
		ann := w.owner(c, "ann@example.org")
		var begun []auth.Challenge
		for range 22 {
			ch, err := w.BeginPasskey(w.ctx, c, ann.Principal, "")
			must(t, err)
			begun = append(begun, ch)
		}
		made := 0
		for _, ch := range begun {
			if _, err := w.FinishPasskey(w.ctx, c, ann.Principal, ch.Ceremony, "", newToken().create(t, ch)); err == nil {
				made++
			}
		}
		if made != 20 {
			t.Errorf("%d passkeys were made, want 20", made)
		}
	})
}
