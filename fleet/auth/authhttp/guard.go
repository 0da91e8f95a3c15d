// Package authhttp is package auth over HTTP: it finds out who asks, refuses forged
// forms, and answers what the console's forms post to.
//
//	h, err := authhttp.New(authhttp.Config{Auth: s, Key: key, Origin: origin, Pages: console})
//	mux.Handle("/auth/", h.Handler())
//	mux.Handle("GET /staff", h.Require(rights.Staff, rights.Read, page))
//	server := http.Server{Handler: h.Guard(mux)}
//
// # Forms
//
// Every form has the hidden [FormField] with [Door.FormToken]; that needs no
// JavaScript. It is bound to the session, or before anybody is signed in to a
// cookie of the browser, so that no other site can sign somebody in to a stranger's
// account. What says by Sec-Fetch-Site or Origin that it comes from another site is
// refused besides. Programs send an API token, and no cookie of theirs counts.
package authhttp

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// The cookies. __Host- makes browsers refuse them from other hosts and without TLS.
const (
	sessionCookie = "__Host-croft_session"
	browserCookie = "__Host-croft_browser" // who asks before anybody is signed in, and after
)

// FormField is the field of every form with what [Door.FormToken] returns, and
// FormHeader the header for requests that are no form.
const (
	FormField  = "form_token"
	FormHeader = "X-Croft-Form-Token"
)

// Pages is how the console shows what became of a form. Requests that accept or
// send JSON are answered with JSON instead.
type Pages interface {
	// Done answers a form that was carried out, mostly with a redirect.
	Done(w http.ResponseWriter, r *http.Request, a Answer)
	// Failed answers any request that was refused, a page too. status is the one
	// to send; with 401 somebody has to sign in.
	Failed(w http.ResponseWriter, r *http.Request, status int, err error)
}

// browserLife is how long a browser keeps its cookie.
const browserLife = 400 * 24 * time.Hour

// Config is copied by [New] and never changed afterwards.
type Config struct {
	Auth    *auth.Service // required
	Key     []byte        // required; the same as of Auth
	Origin  string        // required; the same as of Auth
	Pages   Pages         // nil: JSON for everybody
	MaxBody int64         // bytes of a request; default 8 MiB

	// ClientAddress is where a request comes from; nil: its connection. Behind a
	// proxy it must be what that proxy says, and nothing a client can write.
	ClientAddress func(*http.Request) netip.Addr

	Log *slog.Logger // nil discards
}

// Door is where requests come in. All methods may be called from any goroutine.
type Door struct {
	cfg     Config
	auth    *auth.Service
	keys    secret.Keys
	origins *http.CrossOriginProtection
	log     *slog.Logger
}

// New makes a door.
func New(cfg Config) (*Door, error) {
	if cfg.Auth == nil {
		return nil, errors.New("open door: accounts are missing")
	}
	keys, err := secret.NewKeys(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("open door: %w", err)
	}
	origins := http.NewCrossOriginProtection()
	if err := origins.AddTrustedOrigin(cfg.Origin); err != nil { // a proxy may change the Host header
		return nil, fmt.Errorf("open door: %w", err)
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 8 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ClientAddress == nil {
		cfg.ClientAddress = func(r *http.Request) netip.Addr {
			at, _ := netip.ParseAddrPort(r.RemoteAddr) // a test's request may have none
			return at.Addr().Unmap()
		}
	}
	return &Door{cfg, cfg.Auth, keys, origins, cfg.Log}, nil
}

// Guard finds out who asks, for all that is behind it, and refuses forged forms: of
// other sites, and with a session but without the form's token. A request with an
// Authorization header is judged by that alone, whatever cookies it has.
func (s *Door) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, s.cfg.MaxBody)
		p, err := s.identify(r)
		r = r.WithContext(rights.NewContext(r.Context(), p))
		defer func() {
			if r.MultipartForm != nil { // the server forgets its files, as it knows another copy of the request
				_ = r.MultipartForm.RemoveAll() // of a folder for temporary files
			}
		}()
		if err != nil {
			s.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Client is what a request says about itself.
func (s *Door) Client(r *http.Request) auth.Client {
	c := auth.Client{Address: s.cfg.ClientAddress(r), Agent: r.UserAgent()}
	if cookie, err := r.Cookie(browserCookie); err == nil && len(cookie.Value) == 43 {
		c.Browser = secret.New(cookie.Value)
	}
	return c
}

func (s *Door) identify(r *http.Request) (rights.Principal, error) {
	if header := r.Header.Get("Authorization"); header != "" {
		scheme, token, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return rights.Principal{}, errToken
		}
		p, err := s.auth.ByToken(r.Context(), secret.New(strings.TrimSpace(token)))
		if err == nil && p.Account == "" {
			err = errToken
		}
		return p, err
	}
	if s.origins.Check(r) != nil {
		return rights.Principal{}, errOrigin
	}
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return rights.Principal{}, nil //nolint:nilerr // without a cookie it is nobody
	}
	p, err := s.auth.BySession(r.Context(), secret.New(cookie.Value))
	if err == nil && p.Account != "" && !safe(r) {
		err = s.checkForm(r, p)
	}
	if err != nil {
		return rights.Principal{}, err
	}
	return p, nil
}

var (
	errToken  = &croft.Error{Kind: croft.KindRefused, Err: errors.New("the API token is wrong, expired or ended"), Remedy: "make a new token"}
	errOrigin = &croft.Error{Kind: croft.KindRefused, Err: errors.New("the form came from another site"), Remedy: "open the fleet's own page"}
	errForm   = &croft.Error{Kind: croft.KindRefused, Err: errors.New("the form is too old or came from elsewhere"), Remedy: "load the page again, and allow cookies"}
)

func safe(r *http.Request) bool {
	return r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions
}

// Require lets those through who may do the action to something of the kind, be it
// only to their own. Whose it is, [rights.Allowed] says later.
func (s *Door) Require(resource rights.Resource, action rights.Action, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := rights.FromContext(r.Context())
		switch {
		case rights.Reach(p, resource, action) != rights.None:
			next.ServeHTTP(w, r)
		case p.Account == "" || p.Stage != rights.StageFull:
			s.fail(w, r, auth.ErrSignIn)
		default:
			s.fail(w, r, auth.ErrForbidden)
		}
	})
}

// FormToken is the value of the hidden [FormField]. It is bound to the session, or
// for those who are not signed in to the browser, whose cookie it sets if need be;
// so it is called before the page is written.
func (s *Door) FormToken(w http.ResponseWriter, r *http.Request) string {
	base := formBase(r, rights.FromContext(r.Context()))
	if base == "" {
		browser := secret.Random()
		s.setCookie(w, browserCookie, browser, time.Now().Add(browserLife))
		r.AddCookie(&http.Cookie{Name: browserCookie, Value: browser.Reveal()}) // for a second form of the page
		base = "browser " + browser.Reveal()
	}
	salt := make([]byte, 16) // another text in every page, so that its length tells nothing when pages are compressed
	_, _ = rand.Read(salt)   // it never fails
	return base64.RawURLEncoding.EncodeToString(append(salt, s.keys.Tag("form", string(salt), base)...))
}

func formBase(r *http.Request, p rights.Principal) string {
	name, prefix := browserCookie, "browser "
	if p.Session != "" {
		name, prefix = sessionCookie, "session "
	}
	cookie, err := r.Cookie(name)
	if err != nil || len(cookie.Value) != 43 {
		return ""
	}
	return prefix + cookie.Value
}

func (s *Door) checkForm(r *http.Request, p rights.Principal) error {
	text := r.Header.Get(FormHeader)
	if text == "" {
		kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		var err error
		switch kind {
		case "application/x-www-form-urlencoded":
			err = r.ParseForm()
		case "multipart/form-data":
			if p.Session != "" { // strangers have no files to bring
				err = r.ParseMultipartForm(1 << 20)
			}
		}
		if err != nil {
			return usage("the form cannot be read or is too long")
		}
		text = r.PostFormValue(FormField)
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	base := formBase(r, p)
	if err != nil || len(raw) < 16 || base == "" || !hmac.Equal(raw[16:], s.keys.Tag("form", string(raw[:16]), base)) {
		return errForm
	}
	return nil
}

// setCookie sets a cookie; without a time it ends with the browser.
func (s *Door) setCookie(w http.ResponseWriter, name string, value secret.Text, expires time.Time) {
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value.Reveal(), Path: "/", Expires: expires, Secure: true, HttpOnly: true,
		SameSite: http.SameSiteLaxMode, // Strict would sign people out who come from a mail or a provider
	})
}

// wantsJSON reports whether the client is a program.
func wantsJSON(r *http.Request) bool {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return kind == "application/json" || strings.Contains(r.Header.Get("Accept"), "application/json") || r.Header.Get("Authorization") != ""
}

// StatusOf is the HTTP status of an error of the fleet.
func StatusOf(err error) int {
	var soon *auth.TooSoonError
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &soon):
		return http.StatusTooManyRequests
	case errors.As(err, &long):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, auth.ErrSignIn), errors.Is(err, errToken):
		return http.StatusUnauthorized
	case errors.Is(err, auth.ErrConfirm):
		return http.StatusConflict
	case errors.Is(err, db.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	switch croft.KindOf(err) {
	case croft.KindUsage, croft.KindInvalid:
		return http.StatusBadRequest
	case croft.KindNotFound:
		return http.StatusNotFound
	case croft.KindRefused:
		return http.StatusForbidden
	case croft.KindMissing, croft.KindNoSpace:
		return http.StatusServiceUnavailable
	case croft.KindOther:
	}
	return http.StatusInternalServerError
}

// fail answers a request that was refused.
func (s *Door) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := StatusOf(err)
	if status >= 500 && r.Context().Err() == nil {
		s.log.Error("request cannot be answered", "path", r.URL.Path, "error", err)
	}
	if soon, ok := errors.AsType[*auth.TooSoonError](err); ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(time.Until(soon.Until).Seconds())+1))
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if s.cfg.Pages != nil && !wantsJSON(r) {
		s.cfg.Pages.Failed(w, r, status, err)
		return
	}
	writeJSON(w, status, fleetapi.ErrorDocumentOf(err))
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client went away
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}
