package authhttp

import (
	"encoding/json"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
)

// Next is what the page does after a form.
type Next string

// What comes next.
const (
	NextDone     Next = "done"      // it was carried out; Data is what there is to show
	NextSignedIn Next = "signed_in" // to where the person wanted to go
	NextTOTP     Next = "totp"      // ask for the code
	NextEnroll   Next = "enroll"    // set up TOTP
	NextRecovery Next = "recovery"  // signed in; Data are recovery codes to write down
	NextSent     Next = "sent"      // look into your mailbox
	NextPasskey  Next = "passkey"   // Data is for navigator.credentials
	NextGo       Next = "go"        // Data is a URL of a provider; a form was redirected there already
)

// Answer is what a form yields. Data may hold secrets that are shown once: an
// Answer is never logged.
type Answer struct {
	Next Next `json:"next"`
	Data any  `json:"data,omitempty"`
}

// Route is one that Handler answers.
type Route struct {
	Method, Path string
	Need         *rights.Permission // nil: none beyond what the method itself checks (a ceremony's step)

	do func(*call) (Answer, error)
}

// call is a request to a route.
type call struct {
	*auth.Service
	door *Door

	w  http.ResponseWriter
	r  *http.Request
	c  auth.Client
	p  rights.Principal
	in map[string]string
}

func (k *call) secret(name string) secret.Text { return secret.New(k.in[name]) }

// of is the account a request is about: the person's own unless it says another.
func (k *call) of() string {
	if id := k.in["account"]; id != "" {
		return id
	}
	return k.p.Account
}

// done is the answer to what has nothing to show.
func done(err error) (Answer, error) { return Answer{Next: NextDone}, err }

func show(data any, err error) (Answer, error) { return Answer{NextDone, data}, err }

// granted sets the cookie of a sign-in, and ends the session it takes the place of.
func (k *call) granted(g auth.Grant, err error) (Answer, error) {
	if err != nil || g.Cookie == (secret.Text{}) {
		return done(err)
	}
	expires := g.Expires
	if g.Principal.Role.Staff() {
		expires = time.Time{} // staff is signed out with the browser
	}
	k.door.setCookie(k.w, sessionCookie, g.Cookie, expires)
	if k.p.Session != "" && k.p.Session != g.Principal.Session {
		if err := k.EndSession(k.r.Context(), k.c, k.p, k.p.Account, k.p.Session); err != nil && StatusOf(err) != http.StatusNotFound {
			return Answer{}, err
		}
	}
	if len(g.Recovery) > 0 {
		var codes []string
		for _, code := range g.Recovery {
			codes = append(codes, code.Reveal())
		}
		return Answer{NextRecovery, map[string]any{"codes": codes}}, nil
	}
	switch g.Principal.Stage {
	case rights.StageTOTP:
		return Answer{Next: NextTOTP}, nil
	case rights.StageEnroll:
		return Answer{Next: NextEnroll}, nil
	case rights.StageFull:
	}
	return Answer{Next: NextSignedIn}, nil
}

func challenged(c auth.Challenge, err error) (Answer, error) {
	return Answer{NextPasskey, map[string]any{"ceremony": c.Ceremony.Reveal(), "options": c.Options}}, err
}

// Routes is every route, for a test of who may use which.
func Routes() []Route {
	need := func(r rights.Resource, a rights.Action) *rights.Permission {
		return &rights.Permission{Resource: r, Action: a}
	}
	return []Route{
		{"GET", "/auth/me", nil, func(k *call) (Answer, error) {
			return show(map[string]any{
				"account": k.p.Account, "role": k.p.Role, "name": k.p.Name, "stage": k.p.Stage, FormField: k.door.FormToken(k.w, k.r),
			}, nil)
		}},
		{"POST", "/auth/name", need(rights.Person, rights.Write), func(k *call) (Answer, error) {
			return done(k.SetName(k.r.Context(), k.c, k.p, k.in["name"]))
		}},
		{"POST", "/auth/email", need(rights.Person, rights.Write), func(k *call) (Answer, error) {
			return Answer{Next: NextSent}, k.RequestEmail(k.r.Context(), k.c, k.p, k.in["email"])
		}},

		{"POST", "/auth/link", nil, func(k *call) (Answer, error) {
			return Answer{Next: NextSent}, k.RequestLink(k.r.Context(), k.c, k.in["email"])
		}},
		{"POST", "/auth/link/look", nil, func(k *call) (Answer, error) {
			return show(k.Link(k.r.Context(), k.c, k.secret("token")))
		}},
		{"POST", "/auth/link/redeem", nil, func(k *call) (Answer, error) {
			return k.granted(k.RedeemLink(k.r.Context(), k.c, k.p, k.secret("token"), k.in["confirm"] == "yes"))
		}},
		{"POST", "/auth/reset", nil, func(k *call) (Answer, error) {
			return Answer{Next: NextSent}, k.RequestReset(k.r.Context(), k.c, k.in["email"])
		}},
		{"POST", "/auth/reset/finish", nil, func(k *call) (Answer, error) {
			return done(k.ResetPassword(k.r.Context(), k.c, k.secret("token"), k.secret("password")))
		}},

		{"POST", "/auth/passkey/begin", nil, func(k *call) (Answer, error) {
			return challenged(k.BeginPasskey(k.r.Context(), k.c, k.p, k.in["name"]))
		}},
		{"POST", "/auth/passkey/finish", nil, func(k *call) (Answer, error) {
			return k.granted(k.FinishPasskey(k.r.Context(), k.c, k.p, k.secret("ceremony"), k.in["name"], []byte(k.in["response"])))
		}},
		{"POST", "/auth/passkey/login/begin", nil, func(k *call) (Answer, error) {
			return challenged(k.BeginPasskeyLogin(k.r.Context(), k.c))
		}},
		{"POST", "/auth/passkey/login/finish", nil, func(k *call) (Answer, error) {
			return k.granted(k.FinishPasskeyLogin(k.r.Context(), k.c, k.secret("ceremony"), []byte(k.in["response"])))
		}},
		{"GET", "/auth/passkeys", need(rights.Person, rights.Read), func(k *call) (Answer, error) {
			return show(k.Passkeys(k.r.Context(), k.p))
		}},
		{"POST", "/auth/passkeys/remove", need(rights.Person, rights.Write), func(k *call) (Answer, error) {
			return done(k.RemovePasskey(k.r.Context(), k.c, k.p, k.in["id"]))
		}},

		{"POST", "/auth/password", nil, func(k *call) (Answer, error) {
			return k.granted(k.PasswordLogin(k.r.Context(), k.c, k.in["email"], k.secret("password")))
		}},
		{"POST", "/auth/password/change", need(rights.Person, rights.Write), func(k *call) (Answer, error) {
			return k.granted(k.ChangePassword(k.r.Context(), k.c, k.p, k.secret("was"), k.secret("password")))
		}},
		{"POST", "/auth/totp", nil, func(k *call) (Answer, error) {
			return k.granted(k.SecondFactor(k.r.Context(), k.c, k.p, k.in["code"]))
		}},
		{"POST", "/auth/totp/begin", nil, func(k *call) (Answer, error) {
			url, err := k.BeginTOTP(k.r.Context(), k.p)
			return Answer{NextEnroll, map[string]any{"url": url.Reveal()}}, err
		}},
		{"POST", "/auth/totp/confirm", nil, func(k *call) (Answer, error) {
			return k.granted(k.ConfirmTOTP(k.r.Context(), k.c, k.p, k.in["code"]))
		}},
		{"POST", "/auth/accept", nil, func(k *call) (Answer, error) {
			return k.granted(k.Accept(k.r.Context(), k.c, k.secret("token"), k.in["email"], k.in["name"], k.secret("password")))
		}},
		{"POST", "/auth/oidc/{provider}", nil, func(k *call) (Answer, error) {
			url, err := k.BeginOIDC(k.r.Context(), k.c, k.r.PathValue("provider"))
			return Answer{NextGo, map[string]any{"url": url}}, err
		}},
		{"GET", "/auth/oidc/{provider}/callback", nil, func(k *call) (Answer, error) {
			return k.granted(k.EndOIDC(k.r.Context(), k.c, k.r.PathValue("provider"), k.secret("state"), k.in["code"]))
		}},

		{"POST", "/auth/logout", nil, func(k *call) (Answer, error) {
			k.door.setCookie(k.w, sessionCookie, secret.Text{}, time.Unix(1, 0))
			if k.p.Session == "" {
				return done(nil)
			}
			return done(k.EndSession(k.r.Context(), k.c, k.p, k.p.Account, k.p.Session))
		}},
		{"GET", "/auth/sessions", need(rights.Session, rights.Read), func(k *call) (Answer, error) {
			return show(k.Sessions(k.r.Context(), k.p, k.of()))
		}},
		{"POST", "/auth/sessions/end", need(rights.Session, rights.Write), func(k *call) (Answer, error) {
			return done(k.EndSession(k.r.Context(), k.c, k.p, k.of(), k.in["id"]))
		}},
		{"GET", "/auth/tokens", need(rights.Token, rights.Read), func(k *call) (Answer, error) {
			return show(k.Tokens(k.r.Context(), k.p, k.of()))
		}},
		{"POST", "/auth/tokens", need(rights.Token, rights.Write), func(k *call) (Answer, error) {
			days, err := strconv.Atoi(k.in["days"])
			if err != nil || days < 1 || days > 36500 {
				return Answer{}, usage("days is no number of days")
			}
			token, info, err := k.CreateToken(k.r.Context(), k.c, k.p, k.in["name"], k.in["scopes"], time.Duration(days)*24*time.Hour)
			return show(map[string]any{"token": token.Reveal(), "info": info}, err)
		}},
		{"POST", "/auth/tokens/end", need(rights.Token, rights.Write), func(k *call) (Answer, error) {
			return done(k.EndToken(k.r.Context(), k.c, k.p, k.of(), k.in["id"]))
		}},

		{"GET", "/auth/accounts", need(rights.Person, rights.Disable), func(k *call) (Answer, error) {
			list, next, err := k.Accounts(k.r.Context(), k.p, rights.Role(k.in["role"]), k.in["text"], k.in["cursor"], 0)
			return show(map[string]any{"accounts": list, "next": next}, err)
		}},
		{"POST", "/auth/accounts/disable", need(rights.Person, rights.Disable), func(k *call) (Answer, error) {
			return done(k.SetDisabled(k.r.Context(), k.c, k.p, k.in["account"], k.in["disabled"] == "yes"))
		}},
		{"POST", "/auth/staff/invite", need(rights.Staff, rights.Write), func(k *call) (Answer, error) {
			url, err := k.Invite(k.r.Context(), k.c, k.p, k.in["email"], rights.Role(k.in["role"]))
			if url == (secret.Text{}) {
				return Answer{Next: NextSent}, err
			}
			return show(map[string]any{"url": url.Reveal()}, err)
		}},
		{"POST", "/auth/staff/withdraw", need(rights.Staff, rights.Write), func(k *call) (Answer, error) {
			return done(k.Withdraw(k.r.Context(), k.c, k.p, k.in["email"]))
		}},
		{"POST", "/auth/staff/role", need(rights.Staff, rights.Write), func(k *call) (Answer, error) {
			return done(k.SetRole(k.r.Context(), k.c, k.p, k.in["account"], rights.Role(k.in["role"])))
		}},
		{"POST", "/auth/staff/totp", need(rights.Staff, rights.Write), func(k *call) (Answer, error) {
			return done(k.ResetTOTP(k.r.Context(), k.c, k.p, k.in["account"]))
		}},
	}
}

// Handler answers all [Routes]. It works behind [Door.Guard] only. Fields come
// as a form, or as a JSON object of texts (response may be an object); all but GET
// need the form's token, unless they have an API token.
func (s *Door) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, route := range Routes() {
		var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, route) })
		if route.Need != nil {
			h = s.Require(route.Need.Resource, route.Need.Action, h)
		}
		mux.Handle(route.Method+" "+route.Path, h)
	}
	return mux
}

// maxFields is how long the body of a request to a route may be; an answer with an
// attestation of a passkey has a few KiB.
const maxFields = 256 << 10

func (s *Door) serve(w http.ResponseWriter, r *http.Request, route Route) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFields)
	k := &call{Service: s.auth, door: s, w: w, r: r, c: s.Client(r), p: rights.FromContext(r.Context())}
	var (
		answer Answer
		err    error
	)
	if !safe(r) && k.p.Session == "" && k.p.Token == "" { // Guard has looked at those with a session
		err = s.checkForm(r, k.p)
	}
	if err == nil {
		k.in, err = fields(r)
	}
	if err == nil {
		answer, err = route.do(k)
	}
	w.Header().Set("Referrer-Policy", "no-referrer")
	switch {
	case err != nil:
		s.fail(w, r, err)
	case wantsJSON(r) || s.cfg.Pages == nil:
		writeJSON(w, http.StatusOK, answer)
	case answer.Next == NextGo:
		data, _ := answer.Data.(map[string]any)
		url, _ := data["url"].(string)
		http.Redirect(w, r, url, http.StatusSeeOther)
	default:
		w.Header().Set("Cache-Control", "no-store")
		s.cfg.Pages.Done(w, r, answer)
	}
}

// fields reads what a request brings.
func fields(r *http.Request) (map[string]string, error) {
	in := map[string]string{}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "application/json" && !safe(r) {
		var raw map[string]json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&raw); err != nil {
			return nil, usage("the body is no JSON object")
		}
		for name, value := range raw {
			var text string
			if json.Unmarshal(value, &text) != nil {
				text = string(value)
			}
			in[name] = text
		}
		return in, nil
	}
	if err := r.ParseForm(); err != nil {
		return nil, usage("the form cannot be read or is too long")
	}
	values := r.PostForm
	if safe(r) {
		values = r.URL.Query()
	}
	for name := range values {
		in[name] = values.Get(name)
	}
	return in, nil
}
