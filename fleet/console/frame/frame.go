// Package frame is what all pages of the console share: the layout, the words, the
// assets, forms and what is said after them, live updates, charts, and errors in
// plain sentences.
//
//	f, err := frame.New(frame.Config{DB: d, Auth: authhttp.Config{Auth: people, Key: key, Origin: origin}})
//	go f.Run(ctx)                                      // on every replica
//	views, err := f.Views(frame.Part{Templates: files, Words: words})
//	f.Handle(mux, "GET /boxes", frame.Need(rights.Device, rights.Read),
//		func(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
//			return views.Show(w, r, frame.Page{Template: "boxes", Title: views.Say("boxes.title"), Data: list})
//		})
//	server := http.Server{Handler: f.Handler(mux)}
//
// A page is a template NAME.html of its part that defines "main"; the dot in it is a
// [View]. Every sentence comes from the words of the part, by {{t "boxes.title"}};
// [Check] is the test that none is missing and none is idle.
//
// # Forms
//
// Whatever changes something is a form that is posted, with {{.Hidden}} in it:
//
//	<form method="post" action="/boxes/{{.Data.ID}}/name">{{.Hidden}} … </form>
//
// Its handler ends with [Frame.Then], which goes to a page and says there in one line
// what was done. An error it returns is said in the page the form came from. Forms
// that post to /auth/… are answered by [Frame.Done] and [Frame.Failed] in the same
// way; a field "then" in one of them is the page to go to. All of it works without
// JavaScript, but for passkeys, and for charts, which have a table beside them.
//
// # Promises
//
//   - No page runs or loads what is not ours: the Content-Security-Policy allows no
//     inline script or style and no other host.
//   - Nothing of a page is kept by a cache; assets are kept for ever, under names
//     with their hash.
//   - Nothing is logged but errors of our own, without URLs' queries.
//   - [Page.Live] tells a browser only that something changed which its page shows;
//     what, the page asks with its own rights.
//
// The package stores nothing: no kill loses anything.
package frame

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"

	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
)

// Paths that the frame leads to, and other packages serve.
const (
	SignInPath  = "/login"        // ?then=PATH
	TOTPPath    = "/login/code"   // asks for the second factor
	EnrollPath  = "/login/enroll" // sets it up
	SentPath    = "/login/sent"   // "look into your mailbox"
	AccountPath = "/account"
	OwnerHome   = "/boxes"
	StaffHome   = "/staff"
)

// Config is copied by New and never changed afterwards.
type Config struct {
	DB   *db.DB          // required; listened to for live updates
	Auth authhttp.Config // required, but Pages, which are the frame's
	Name string          // of the fleet, for people; default "Croft"

	// FormTargets are origins that a form may lead to by a redirect: those of OIDC
	// providers ("https://accounts.example.org").
	FormTargets []string

	// MaxLive is how many pages of all people may be live at once on this replica;
	// the others ask each half minute. Default 2,000; one person has 10 at most.
	MaxLive int

	Log *slog.Logger // nil discards
}

// Frame is what pages share. All methods may be called from any goroutine.
type Frame struct {
	cfg    Config
	door   *authhttp.Door
	keys   secret.Keys
	log    *slog.Logger
	assets *assets
	live   *hub
	own    *Views // error pages, and what forms of /auth are answered with
	policy string // Content-Security-Policy

	nav struct {
		sync.Mutex
		links []Link // guarded by Mutex; Key is the words themselves
	}
}

// New makes a frame and its door.
func New(cfg Config) (*Frame, error) {
	if cfg.DB == nil {
		return nil, errors.New("build frame of pages: database is missing")
	}
	if cfg.Name == "" {
		cfg.Name = "Croft"
	}
	if cfg.MaxLive == 0 {
		cfg.MaxLive = 2000
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	keys, err := secret.NewKeys(cfg.Auth.Key)
	if err != nil {
		return nil, fmt.Errorf("build frame of pages: %w", err)
	}
	f := &Frame{cfg: cfg, keys: keys, log: cfg.Log, live: newHub(cfg.DB, cfg.MaxLive)}
	f.cfg.Auth.Pages = f
	if f.door, err = authhttp.New(f.cfg.Auth); err != nil {
		return nil, err
	}
	if f.assets, err = loadAssets(); err != nil {
		return nil, err
	}
	if f.own, err = f.Views(Part{}); err != nil {
		return nil, err
	}
	f.policy = strings.Join([]string{
		"default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'", "manifest-src 'self'",
		strings.Join(append([]string{"form-action 'self'"}, cfg.FormTargets...), " "), "base-uri 'none'", "frame-ancestors 'none'",
	}, "; ")
	return f, nil
}

// Door is where requests come in.
func (f *Frame) Door() *authhttp.Door { return f.door }

// Run listens for live updates until ctx ends. Without it pages are not live.
func (f *Frame) Run(ctx context.Context) error { return f.live.run(ctx) }

// Permission is what a page needs; nil: nothing, it is for everybody.
type Permission = *rights.Permission

// Need is a permission.
func Need(resource rights.Resource, action rights.Action) Permission {
	return &rights.Permission{Resource: resource, Action: action}
}

// HandlerFunc answers a request of a principal, or returns why it does not.
type HandlerFunc func(w http.ResponseWriter, r *http.Request, p rights.Principal) error

// Handle registers a handler for those who have a permission, be it for their own
// things only. What it returns is said by [Frame.Failed].
func (f *Frame) Handle(mux *http.ServeMux, pattern string, need Permission, do HandlerFunc) {
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := do(w, r, rights.FromContext(r.Context())); err != nil {
			f.Refuse(w, r, err)
		}
	})
	if need != nil {
		h = f.door.Require(need.Resource, need.Action, h)
	}
	mux.Handle(pattern, h)
}

// Handler is all pages of mux, with what they load and the forms of /auth/, behind
// the door. The mux has no pattern "/": what it does not know is a page that says so.
func (f *Frame) Handler(mux *http.ServeMux) http.Handler {
	mux.Handle("/auth/", f.door.Handler())
	mux.Handle("GET /assets/{name}", f.assets)
	f.Handle(mux, "GET /live", nil, f.serveLive)
	f.Handle(mux, "/", nil, func(http.ResponseWriter, *http.Request, rights.Principal) error { return errNoPage })
	guarded := f.door.Guard(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", f.policy)
		h.Set("Referrer-Policy", "strict-origin") // never a path; without an origin old browsers' forms would be refused
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
		h.Set("Cache-Control", "no-store")
		guarded.ServeHTTP(w, r)
	})
}

// HomeOf is where somebody goes who wants nothing in particular.
func HomeOf(p rights.Principal) string {
	switch {
	case p.Account == "" || p.Stage != rights.StageFull:
		return SignInPath
	case p.Role.Staff():
		return StaffHome
	}
	return OwnerHome
}

// LocalPath is path if it is one of this site, and else the empty string.
func LocalPath(path string) string {
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.ContainsAny(path, "\\\r\n\t") || len(path) > 500 {
		return ""
	}
	return path
}
