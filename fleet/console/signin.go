package console

import (
	"net/http"
	"net/url"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/console/frame"
)

// then is where somebody wants to go after signing in.
func then(r *http.Request) string { return frame.LocalPath(r.FormValue("then")) }

type signInPage struct {
	Then      string
	Claiming  bool // he comes from a box
	Again     bool // he is signed in already, and shows it once more
	Staff     bool
	Mail      bool
	Providers []Provider
}

func (c *Console) signIn(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	data := signInPage{
		Then: then(r), Claiming: then(r) == "/claim", Again: p.Account != "", Staff: p.Role.Staff(), Mail: c.cfg.Mail, Providers: c.cfg.Providers,
	}
	if data.Again && data.Then == "" {
		return c.home(w, r, p)
	}
	return c.views.Show(w, r, frame.Page{Template: "signin", Title: c.views.Say("signin.title"), Bare: true, Data: data})
}

func (c *Console) secondFactor(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	if p.Stage != rights.StageTOTP {
		return c.home(w, r, p)
	}
	return c.views.Show(w, r, frame.Page{Template: "code", Title: c.views.Say("code.title"), Bare: true, Data: then(r)})
}

type enrollPage struct {
	URL, Secret string
}

// enroll shows a new secret of TOTP. A code that was wrong leads here again: then the
// secret must still be the one in the person's phone, so the browser keeps it.
func (c *Console) enroll(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	if p.Account == "" {
		return auth.ErrSignIn
	}
	otp := c.frame.Kept(r, "totp")
	if otp == "" || r.FormValue("anew") != "" {
		made, err := c.cfg.Auth.BeginTOTP(r.Context(), p)
		if err != nil {
			return err
		}
		otp = made.Reveal()
		c.frame.Keep(w, r, "totp", otp)
	}
	u, err := url.Parse(otp)
	if err != nil {
		return err
	}
	return c.views.Show(w, r, frame.Page{
		Template: "enroll", Title: c.views.Say("enroll.title"), Bare: true, Data: enrollPage{otp, u.Query().Get("secret")},
	})
}

func (c *Console) sent(w http.ResponseWriter, r *http.Request, _ rights.Principal) error {
	return c.views.Show(w, r, frame.Page{Template: "sent", Title: c.views.Say("sent.title"), Bare: true})
}

func (c *Console) reset(w http.ResponseWriter, r *http.Request, _ rights.Principal) error {
	return c.views.Show(w, r, frame.Page{Template: "reset", Title: c.views.Say("reset.title"), Bare: true})
}

type linkPage struct {
	auth.LinkInfo
	Token    string
	SignedIn bool
}

// link is the page of a link in a mail. Opening it uses nothing up: programs that
// look into mails open links too.
func (c *Console) link(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	token := r.FormValue("token")
	info, err := c.cfg.Auth.Link(r.Context(), c.frame.Door().Client(r), secret.New(token))
	if err != nil {
		return c.frame.ErrorPage(w, r, http.StatusForbidden, c.views.Say("link.gone"))
	}
	title := map[auth.Purpose]string{
		auth.LinkLogin: "link.login_title", auth.LinkEmail: "link.email_title", auth.LinkReset: "link.reset_title",
		auth.LinkInvite: "link.invite_title", auth.LinkBootstrap: "link.bootstrap_title",
	}[info.Purpose]
	return c.views.Show(w, r, frame.Page{Template: "link", Title: c.views.Say(title), Bare: true, Data: linkPage{info, token, p.Account != ""}})
}
