package frame

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
)

// Shown is something to write down, on a page that nobody can come back to.
type Shown struct {
	Sentence string   // why to write it down
	Lines    []string // what
	Then     string   // where the button leads
}

// saidAfter are the lines said after forms of /auth/.
var saidAfter = map[string]string{
	"/auth/name": "said.name", "/auth/passkeys/remove": "said.passkey_removed", "/auth/sessions/end": "said.session_ended",
	"/auth/tokens/end": "said.token_ended", "/auth/logout": "said.signed_out", "/auth/reset/finish": "said.password_reset",
	"/auth/link/redeem": "said.email", "/auth/accounts/disable": "said.account_changed", "/auth/staff/withdraw": "said.invitation_withdrawn",
	"/auth/staff/role": "said.role", "/auth/staff/totp": "said.totp_reset",
}

// from is the page a form stood in.
func from(r *http.Request) string { return LocalPath(r.PostFormValue("from")) }

// after is the page a form wants to go to, or else the one it stood in.
func after(r *http.Request) string {
	if then := LocalPath(r.PostFormValue("then")); then != "" {
		return then
	}
	return from(r)
}

// Done implements authhttp.Pages.
func (f *Frame) Done(w http.ResponseWriter, r *http.Request, a authhttp.Answer) {
	to, then := after(r), LocalPath(r.PostFormValue("then"))
	data, _ := a.Data.(map[string]any)
	forward := func(path string) string {
		if then != "" {
			path += "?then=" + url.QueryEscape(then)
		}
		return path
	}
	var err error
	switch a.Next {
	case authhttp.NextSignedIn:
		if then == "" { // "/" finds out who it is now; this request came as nobody
			then = "/"
		}
		err = f.Then(w, r, then, Good, "")
	case authhttp.NextTOTP:
		err = f.Then(w, r, forward(TOTPPath), Note, "")
	case authhttp.NextEnroll:
		err = f.Then(w, r, forward(EnrollPath), Note, "")
	case authhttp.NextRecovery:
		codes, _ := data["codes"].([]string)
		err = f.ShowOnce(w, r, f.own.Say("shown.recovery_title"), Shown{f.own.Say("shown.recovery"), codes, "/"})
	case authhttp.NextSent:
		if p := rights.FromContext(r.Context()); p.Account != "" {
			err = f.Then(w, r, to, Good, f.own.Say("said.sent"))
		} else {
			err = f.Then(w, r, SentPath, Good, "")
		}
	case authhttp.NextDone:
		err = f.done(w, r, to, data)
	default: // what only a script asks for
		err = f.Then(w, r, to, Warn, f.own.Say("said.script"))
	}
	if err != nil {
		f.Refuse(w, r, err)
	}
}

func (f *Frame) done(w http.ResponseWriter, r *http.Request, to string, data map[string]any) error {
	if token, ok := data["token"].(string); ok {
		return f.ShowOnce(w, r, f.own.Say("shown.token_title"), Shown{f.own.Say("shown.token"), []string{token}, to})
	}
	if link, ok := data["url"].(string); ok {
		return f.ShowOnce(w, r, f.own.Say("shown.invitation_title"), Shown{f.own.Say("shown.invitation"), []string{link}, to})
	}
	key := saidAfter[r.URL.Path]
	if key == "" {
		key = "said.done"
	}
	switch r.URL.Path {
	case "/auth/logout", "/auth/reset/finish":
		to = SignInPath
	}
	return f.Then(w, r, to, Good, f.own.Say(key))
}

// ShowOnce shows what is never shown again.
func (f *Frame) ShowOnce(w http.ResponseWriter, r *http.Request, title string, s Shown) error {
	if s.Then = LocalPath(s.Then); s.Then == "" {
		s.Then = "/"
	}
	return f.own.Show(w, r, Page{Template: "shown", Title: title, Data: s})
}

// Refuse says why a request is not answered.
func (f *Frame) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	status := authhttp.StatusOf(err)
	if status >= 500 && r.Context().Err() == nil {
		f.log.Error("page cannot be shown", "path", r.URL.Path, "error", err)
	}
	f.Failed(w, r, status, err)
}

// Failed implements authhttp.Pages: a form that was refused says so in the page it
// came from, and who has to sign in is asked to, and comes back.
func (f *Frame) Failed(w http.ResponseWriter, r *http.Request, status int, err error) {
	p, form := rights.FromContext(r.Context()), r.Method == http.MethodPost
	back := LocalPath(r.URL.RequestURI())
	if form {
		back = from(r)
	}
	if part := r.Header.Get("HX-Request") != ""; !part {
		to, key := "", ""
		switch {
		case errors.Is(err, auth.ErrStale):
			to, key = SignInPath, "said.sign_in_again"
		case status != http.StatusUnauthorized:
		case p.Account != "" && p.Stage == rights.StageTOTP:
			to, key = TOTPPath, "said.half"
		case p.Account != "" && p.Stage == rights.StageEnroll:
			to, key = EnrollPath, "said.half"
		case !strings.HasPrefix(r.URL.Path, "/auth/"):
			to, key = SignInPath, "said.sign_in"
		}
		if to != "" {
			_ = f.Then(w, r, to+"?then="+url.QueryEscape(back), Note, f.own.Say(key)) // it never fails
			return
		}
	}
	text := Sentence(err)
	if soon, ok := errors.AsType[*auth.TooSoonError](err); ok {
		text = f.own.Say("error.soon", f.own.Ago(soon.Until))
	}
	if form && back != "" && text != "" && status < 500 && status != http.StatusRequestEntityTooLarge {
		_ = f.Then(w, r, back, Bad, text) // it never fails
		return
	}
	if err := f.ErrorPage(w, r, status, text); err != nil {
		f.log.Error("error page cannot be shown", "error", err)
		http.Error(w, f.own.Say("error.500_title"), status)
	}
}

// errorPage is what an error page says.
type errorPage struct {
	Title, Text, Home string
}

// ErrorPage shows an error in words; with no text those for its status.
func (f *Frame) ErrorPage(w http.ResponseWriter, r *http.Request, status int, text string) error {
	name := "500"
	switch status {
	case http.StatusUnauthorized:
		name = "401"
	case http.StatusForbidden, http.StatusConflict:
		name = "403"
	case http.StatusNotFound:
		name = "404"
	case http.StatusTooManyRequests:
		name = "429"
	case http.StatusServiceUnavailable:
		name = "503"
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		name = "400"
	}
	title := f.own.Say("error." + name + "_title")
	if text == "" {
		text = f.own.Say("error." + name)
	}
	p := rights.FromContext(r.Context())
	return f.own.Show(w, r, Page{
		Template: "error", Title: title, Status: status, Bare: p.Account == "", Data: errorPage{title, text, HomeOf(p)},
	})
}
