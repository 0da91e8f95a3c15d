// Package staff is the console of those who work for the fleet: the overview, the
// boxes and what is wrong with each, alerts, people and the audit log.
//
//	pages, err := staff.New(staff.Config{Frame: f, Devices: devices, Jobs: jobs, …})
//	pages.Register(mux)
//
// Package frame has what it shares with the owners' pages: layout, forms, live updates.
//
// # Promises
//
//   - Who may see a page, and which forms stand on it, package rights decides; what a
//     form asks for is decided again when it comes.
//   - Whatever cannot be taken back, and whatever concerns many boxes, is asked for on
//     a page of its own, which says what it means and for how many boxes. An order to
//     many is carried out only if as many boxes match as that page said.
//   - All of it works without JavaScript, with charts as tables.
//   - A part that fails to answer (readings, bundles) leaves a gap in a page that says
//     so, and takes away nothing else.
//
// The package stores nothing; what it counts over all boxes it keeps for some seconds.
package staff

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

//go:embed templates/*.html
var templates embed.FS

//go:embed words/en.toml
var words []byte

//go:embed look.css
var look []byte

// Config is copied by New and never changed afterwards.
type Config struct {
	Frame    *frame.Frame      // required
	DB       *db.DB            // required; who reads a bundle is written down in a transaction
	Devices  *device.Store     // required
	Jobs     *job.Store        // required
	Alerts   *alert.Store      // required
	Series   *timeseries.Store // required
	Auth     *auth.Service     // required
	AuditLog *auditlog.Log     // required
	Bundles  Bundles           // nil: there are none

	// Status is how this replica is. Required.
	Status func(context.Context) Status

	Log *slog.Logger // nil discards
}

// Bundles is the support bundles of boxes; package bundle's Store is one.
type Bundles interface {
	List(ctx context.Context, id croft.DeviceID) ([]bundle.Info, error)
	Info(ctx context.Context, id string) (bundle.Info, error)
	Open(ctx context.Context, id string) (*bundle.Reading, error)
}

// Status is how a replica of the service is.
type Status struct {
	Failing   map[string]string // parts that do not run now, and why
	Connected int               // boxes at the embedded broker
	Queued    int               // messages that wait to be stored
	Received  uint64            // messages since the start
	Refused   uint64            // messages and connections since the start
}

// Pages is the console of the staff. All methods may be called from any goroutine.
type Pages struct {
	cfg   Config
	frame *frame.Frame
	views *frame.Views
	log   *slog.Logger

	census struct {
		sync.Mutex
		*census           // guarded by Mutex
		until   time.Time // guarded by Mutex; when it is too old
	}
}

// New reads templates and words.
func New(cfg Config) (*Pages, error) {
	if cfg.Frame == nil || cfg.DB == nil || cfg.Devices == nil || cfg.Jobs == nil || cfg.Alerts == nil || cfg.Series == nil ||
		cfg.Auth == nil || cfg.AuditLog == nil || cfg.Status == nil {
		return nil, errors.New("build pages of the staff: a part of the configuration is missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Pages{cfg: cfg, frame: cfg.Frame, log: cfg.Log}
	var err error
	if s.views, err = cfg.Frame.Views(Part()); err != nil {
		return nil, err
	}
	return s, nil
}

// Part is the templates, words and navigation of the pages.
func Part() frame.Part {
	files, err := fs.Sub(templates, "templates")
	if err != nil {
		panic(err) // the name is a constant
	}
	to := func(path, key string, resource rights.Resource, action rights.Action) frame.Link {
		return frame.Link{Path: path, Key: key, For: func(p rights.Principal) bool { return rights.Reach(p, resource, action) == rights.All }}
	}
	return frame.Part{Templates: files, Words: words, Style: look, Nav: []frame.Link{
		to("/fleet", "nav.fleet", rights.Fleet, rights.Read),
		to("/fleet/boxes", "nav.boxes", rights.Device, rights.Read),
		to("/fleet/alerts", "nav.alerts", rights.Alert, rights.Read),
		to("/fleet/groups", "nav.groups", rights.Group, rights.Read),
		to("/fleet/serials", "nav.serials", rights.Serial, rights.Write),
		to("/fleet/people", "nav.people", rights.Person, rights.Disable),
		to("/fleet/audit", "nav.audit", rights.AuditLog, rights.Read),
	}}
}

// route is one page or form. Need is for everybody's things: who may do it with his
// own only has pages elsewhere.
type route struct {
	pattern  string
	resource rights.Resource
	action   rights.Action
	do       func(*call) error
}

func (s *Pages) routes() []route {
	return []route{
		{"GET /staff", rights.Fleet, rights.Read, func(k *call) error { return k.leave("/fleet") }},
		{"GET /fleet", rights.Fleet, rights.Read, s.overview},
		{"GET /fleet/search", rights.Device, rights.Read, s.search},
		{"GET /fleet/boxes", rights.Device, rights.Read, s.boxes},
		{"GET /fleet/bulk/jobs", rights.Job, rights.Start, s.askBulk("jobs")},
		{"POST /fleet/bulk/jobs", rights.Job, rights.Start, s.orderJobs},
		{"GET /fleet/bulk/labels", rights.Device, rights.Label, s.askBulk("labels")},
		{"POST /fleet/bulk/labels", rights.Device, rights.Label, s.orderLabels},
		{"GET /fleet/bulk/result", rights.Job, rights.Read, s.bulkResult},

		{"GET /fleet/boxes/{id}", rights.Device, rights.Read, s.box},
		{"GET /fleet/boxes/{id}/events", rights.Device, rights.Read, s.events},
		{"GET /fleet/boxes/{id}/log", rights.Device, rights.Read, s.lines},
		{"GET /fleet/boxes/{id}/chart/{chart}", rights.Telemetry, rights.Read, s.chart},
		{"GET /fleet/boxes/{id}/jobs", rights.Job, rights.Read, s.jobs},
		{"GET /fleet/boxes/{id}/jobs/{job}", rights.Job, rights.Read, s.job},
		{"POST /fleet/boxes/{id}/jobs", rights.Job, rights.Start, s.startJob},
		{"POST /fleet/boxes/{id}/jobs/{job}/cancel", rights.Job, rights.Start, s.cancelJob},
		{"GET /fleet/boxes/{id}/bundles/{bundle}", rights.Device, rights.Bundle, s.download},
		{"POST /fleet/boxes/{id}/labels", rights.Device, rights.Label, s.setLabels},
		{"POST /fleet/boxes/{id}/interval", rights.Device, rights.Label, s.setInterval},
		{"GET /fleet/boxes/{id}/reboot", rights.Job, rights.Start, s.ask("reboot")},
		{"GET /fleet/boxes/{id}/revoke", rights.Device, rights.Retire, s.ask("revoke")},
		{"POST /fleet/boxes/{id}/revoke", rights.Device, rights.Retire, s.end("revoke", s.cfg.Devices.RevokeCertificates)},
		{"GET /fleet/boxes/{id}/retire", rights.Device, rights.Retire, s.ask("retire")},
		{"POST /fleet/boxes/{id}/retire", rights.Device, rights.Retire, s.end("retire", s.cfg.Devices.Retire)},
		{"GET /fleet/boxes/{id}/free", rights.Device, rights.Retire, s.ask("free")},
		{"POST /fleet/boxes/{id}/free", rights.Device, rights.Retire, s.end("free", s.cfg.Devices.FreeVoucher)},

		{"GET /fleet/alerts", rights.Alert, rights.Read, s.alerts},
		{"POST /fleet/alerts/ack", rights.Alert, rights.Write, s.acknowledge},
		{"GET /fleet/alerts/silences", rights.Alert, rights.Read, s.silences},
		{"POST /fleet/alerts/silences", rights.Alert, rights.Write, s.addSilence},
		{"POST /fleet/alerts/silences/end", rights.Alert, rights.Write, s.endSilence},
		{"GET /fleet/alerts/rules", rights.Alert, rights.Read, s.rules},
		{"GET /fleet/alerts/rule", rights.Alert, rights.Read, s.rule},
		{"POST /fleet/alerts/rule", rights.Alert, rights.Write, s.saveRule},
		{"POST /fleet/alerts/rule/test", rights.Alert, rights.Read, s.testRule},
		{"POST /fleet/alerts/rule/delete", rights.Alert, rights.Write, s.deleteRule},
		{"GET /fleet/alerts/receivers", rights.Webhook, rights.Read, s.receivers},
		{"POST /fleet/alerts/receivers", rights.Webhook, rights.Write, s.addReceiver},
		{"GET /fleet/alerts/receiver", rights.Webhook, rights.Read, s.receiver},
		{"POST /fleet/alerts/receiver", rights.Webhook, rights.Write, s.changeReceiver},
		{"POST /fleet/alerts/receiver/try", rights.Webhook, rights.Write, s.tryReceiver},
		{"POST /fleet/alerts/receiver/delete", rights.Webhook, rights.Write, s.deleteReceiver},

		{"GET /fleet/people", rights.Person, rights.Disable, s.people},
		{"GET /fleet/people/{id}", rights.Person, rights.Disable, s.person},
		{"GET /fleet/audit", rights.AuditLog, rights.Read, s.audit},
		{"POST /fleet/audit/verify", rights.AuditLog, rights.Read, s.verify},
		{"GET /fleet/serials", rights.Serial, rights.Write, s.serials},
		{"POST /fleet/serials", rights.Serial, rights.Write, s.importSerials},
		{"GET /fleet/groups", rights.Group, rights.Read, s.groups},
		{"POST /fleet/groups", rights.Group, rights.Write, s.saveGroup},
		{"POST /fleet/groups/delete", rights.Group, rights.Write, s.deleteGroup},
	}
}

// Register adds the pages to a mux that is served through [frame.Frame.Handler].
func (s *Pages) Register(mux *http.ServeMux) {
	for _, one := range s.routes() {
		s.frame.Handle(mux, one.pattern, frame.Need(one.resource, one.action), func(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
			if !p.Role.Staff() || rights.Reach(p, one.resource, one.action) != rights.All {
				return auth.ErrForbidden
			}
			return one.do(&call{s, w, r, p})
		})
	}
}

// call is one request.
type call struct {
	*Pages
	w http.ResponseWriter
	r *http.Request
	p rights.Principal
}

func (k *call) ctx() context.Context { return k.r.Context() }

// actor is who asks; to all stores an actor is the same.
func (k *call) actor() device.Actor { return device.Actor{ID: k.p.Account, Staff: true} }

func (k *call) may(resource rights.Resource, action rights.Action) bool {
	return rights.Reach(k.p, resource, action) == rights.All
}

// get is a field of the URL or of the form.
func (k *call) get(name string) string { return strings.TrimSpace(k.r.FormValue(name)) }

func (k *call) show(page frame.Page) error { return k.views.Show(k.w, k.r, page) }

func (k *call) leave(to string) error { return k.frame.Then(k.w, k.r, to, frame.Note, "") }

// done ends a form: to is where to go, and the text of key is said there.
func (k *call) done(to, key string, args ...any) error {
	return k.frame.Then(k.w, k.r, to, frame.Good, k.views.Say(key, args...))
}

// next is the address of this page with another cursor; empty if there is none.
func (k *call) next(cursor string) string {
	if cursor == "" {
		return ""
	}
	q := k.r.URL.Query()
	q.Set("cursor", cursor)
	return k.r.URL.Path + "?" + q.Encode()
}

// usage is an error of who filled in a form.
func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}

// link is a path with a query of those values that are not empty.
func link(path string, pairs ...string) string {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}

// gap notes that a part of a page could not be made, and why.
func (k *call) gap(what string, err error) bool {
	if err != nil && k.ctx().Err() == nil {
		k.log.Warn("part of a page is missing", "part", what, "err", err)
	}
	return err != nil
}
