// Package console is the pages of owners, and everybody's way in.
//
//	c, err := console.New(console.Config{Frame: f, Auth: people, Devices: devices, Jobs: jobs, Alerts: alerts, Series: series, Origin: origin})
//	c.Register(mux)
//	server := http.Server{Handler: f.Handler(mux)}
//
// It serves /login and below (passkey, link in a mail, password and code, first
// sign-in of staff), /claim, /boxes and below, and /account. The pages of the staff
// are package staff's.
//
// # Claiming
//
// A QR code leads to /claim#CODE. What is behind the '#' no server, log or Referer
// ever sees; the page takes it out of the address and posts it once somebody is
// signed in. So a newcomer acts three times: scan, make a passkey, "This is mine".
// Without scripts the code is typed.
//
// # Promises
//
//   - On these pages everybody is an owner: staff sees no boxes here, whatever its
//     role.
//   - Who a box works for is not shown: programs of tenants are numbered.
//   - A chart begins when the box became the owner's.
//
// The package stores nothing.
package console

import (
	"embed"
	"errors"
	"net/http"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

//go:embed templates/*.html
var templates embed.FS

//go:embed words/en.toml
var words []byte

// Provider is a button for staff that signs in elsewhere.
type Provider struct {
	Name  string // as in oidclogin.Config
	Title string // on the button
}

// Config is copied by New and never changed afterwards.
type Config struct {
	Frame   *frame.Frame      // required
	Auth    *auth.Service     // required
	Devices *device.Store     // required
	Jobs    *job.Store        // required
	Alerts  *alert.Store      // required
	Series  *timeseries.Store // required
	Origin  string            // required; the same as of Auth

	Providers []Provider
	Mail      bool // mails are sent: links by mail are offered
}

// Console is the pages. All methods may be called from any goroutine.
type Console struct {
	cfg    Config
	frame  *frame.Frame
	views  *frame.Views
	doctor frame.Doctor
}

func part() frame.Part {
	return frame.Part{Templates: templates, Words: words, Nav: []frame.Link{{
		Path: frame.OwnerHome, Key: "nav.boxes", For: func(p rights.Principal) bool { return p.Role == rights.RoleOwner },
	}}}
}

// New makes a console.
func New(cfg Config) (*Console, error) {
	if cfg.Frame == nil || cfg.Auth == nil || cfg.Devices == nil || cfg.Jobs == nil || cfg.Alerts == nil || cfg.Series == nil || cfg.Origin == "" {
		return nil, errors.New("build console: a part of the fleet is missing")
	}
	views, err := cfg.Frame.Views(part())
	if err != nil {
		return nil, err
	}
	return &Console{cfg, cfg.Frame, views, frame.Doctor{Devices: cfg.Devices, Series: cfg.Series}}, nil
}

// Register adds the pages to a mux.
func (c *Console) Register(mux *http.ServeMux) {
	page := func(pattern string, need frame.Permission, do frame.HandlerFunc) {
		c.frame.Handle(mux, pattern, need, do)
	}
	see := frame.Need(rights.Device, rights.Read)
	me := frame.Need(rights.Person, rights.Read)

	page("GET /{$}", nil, c.home)
	page("GET /login", nil, c.signIn)
	page("GET /login/code", nil, c.secondFactor)
	page("GET /login/enroll", nil, c.enroll)
	page("GET /login/sent", nil, c.sent)
	page("GET /login/reset", nil, c.reset)
	page("GET /login/link", nil, c.link)

	page("GET /claim", nil, c.claimPage)
	page("POST /claim", frame.Need(rights.Claim, rights.Create), c.startClaim)
	page("POST /claim/confirm", frame.Need(rights.Claim, rights.Create), c.confirmClaim)
	page("POST /claim/undo", frame.Need(rights.Claim, rights.Create), c.undoClaim)

	page("GET /boxes", see, c.boxes)
	page("GET /boxes/{box}", see, c.withBox(c.boxPage))
	page("GET /boxes/{box}/events", see, c.withBox(c.events))
	page("GET /boxes/{box}/chart/{chart}", frame.Need(rights.Telemetry, rights.Read), c.withBox(c.chart))
	page("POST /boxes/{box}/name", frame.Need(rights.Device, rights.Rename), c.withBox(c.rename))
	page("POST /boxes/{box}/locate", frame.Need(rights.Job, rights.Start), c.withBox(c.locate))
	page("GET /boxes/{box}/restart", frame.Need(rights.Job, rights.Start), c.withBox(c.restartPage))
	page("POST /boxes/{box}/restart", frame.Need(rights.Job, rights.Start), c.withBox(c.restart))
	page("GET /boxes/{box}/hand-over", frame.Need(rights.Device, rights.Transfer), c.withBox(c.handOverPage))
	page("POST /boxes/{box}/hand-over", frame.Need(rights.Device, rights.Transfer), c.withBox(c.handOver))
	page("POST /boxes/{box}/hand-over/withdraw", frame.Need(rights.Device, rights.Transfer), c.withBox(c.withdraw))
	page("GET /boxes/{box}/give-up", frame.Need(rights.Device, rights.Release), c.withBox(c.giveUpPage))
	page("POST /boxes/{box}/give-up", frame.Need(rights.Device, rights.Release), c.withBox(c.giveUp))

	page("GET /account", me, c.account)
	page("POST /account/quiet", frame.Need(rights.Person, rights.Write), c.setQuiet)
	page("POST /account/token", frame.Need(rights.Token, rights.Write), c.makeToken)
}

func (c *Console) home(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	http.Redirect(w, r, frame.HomeOf(p), http.StatusSeeOther)
	return nil
}

// ownerOf is p as an owner, whatever he is besides.
func ownerOf(p rights.Principal) device.Actor { return device.Actor{ID: p.Account} }

// withBox gives a handler the box its address names, if it is p's own.
func (c *Console) withBox(do func(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error) frame.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
		id, err := croft.ParseDeviceID(r.PathValue("box"))
		if err != nil {
			return device.ErrNoBox
		}
		box, err := c.cfg.Devices.Box(r.Context(), ownerOf(p), id)
		if err != nil {
			return err
		}
		return do(w, r, p, box)
	}
}

// nameOf is what people call a box.
func nameOf(box device.Box) string {
	if box.Name != "" {
		return box.Name
	}
	return box.ID.ShortName()
}

func pathOf(box device.Box) string { return frame.OwnerHome + "/" + string(box.ID) }
