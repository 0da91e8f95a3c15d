// Package webapi is the fleet's HTTP API, and the document that describes it.
//
//	api, err := webapi.New(ctx, webapi.Config{DB: d, Door: door, Devices: devices, …})
//	mux.Handle(fleetclient.Prefix+"/", api.Handler())
//	server := http.Server{Handler: door.Guard(mux)}
//
// [Routes] is the one table: the mux, the OpenAPI document at /api/v1/openapi.json
// and the test of who may do what are made of it. The types of the JSON are package
// fleetclient's.
//
// # What every route keeps to
//
//   - A caller needs a permission of the table of package rights, and with a token
//     its scope. Of boxes he may not see, and of all that is theirs, he learns no
//     more than that there is no such thing: 404.
//   - Lists are {"items": […], "next": "CURSOR"}; the next page is asked for with
//     cursor=CURSOR. Filters and order stay the same from page to page.
//   - Errors are problem documents (RFC 9457) with the members kind and remedy.
//     400: the request is wrong, 401: nobody is signed in, 403: not this account,
//     404: no such thing, 409: it cannot be done as things are, 413: too long,
//     429 and 503: later, see Retry-After.
//   - Unknown fields, unknown parameters, control characters in parameters and
//     bodies above 1 MiB are refused: a misspelt selector must not mean every box.
//   - POST takes an Idempotency-Key. What was done under it is not done again for 24
//     hours: the answer comes again, on every replica and after kill -9. A request
//     that was cut off by a kill is answered 409, for nobody knows how far it came;
//     jobs know it, and go on. PUT, PATCH and DELETE may be repeated as they are.
//
// # Webhooks
//
// Programs are told of alerts by receivers of kind webhook (/api/v1/receivers).
// Each message is a POST of [notice.Delivery] as JSON, signed with the secret that
// making the receiver returned: see [notice.Sign]. There are no other webhooks;
// changes of boxes are watched (/api/v1/devices/watch), which is a stream of
// Server-Sent Events.
//
// # Grafana
//
// A data source of type Prometheus has the address …/api/v1/prometheus and an API
// token with the scope telemetry:read. Each caller finds the series of the boxes he
// may see.
package webapi

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Bundle is what is known of a support bundle.
type Bundle struct {
	ID     string
	Device croft.DeviceID
	Job    string // that asked for it; may be empty
	Made   time.Time
	Bytes  int64
	Name   string // of the file
	Type   string // media type; empty: application/octet-stream
}

// Bundles is the support bundles of boxes. Whose they are was checked before List;
// of Open's it is checked after.
type Bundles interface {
	// List is the bundles of a box, newest first.
	List(ctx context.Context, device croft.DeviceID) ([]Bundle, error)
	// Open is the content of a bundle, and an error of croft.KindNotFound without one.
	Open(ctx context.Context, id string) (io.ReadCloser, Bundle, error)
}

// Config is copied by [New] and never changed afterwards. All but Log is required.
type Config struct {
	DB       *db.DB
	Door     *authhttp.Door // in whose Guard the handler works
	Devices  *device.Store
	Jobs     *job.Store
	Alerts   *alert.Store
	Auth     *auth.Service
	AuditLog *auditlog.Log
	Series   *timeseries.Store
	Bundles  Bundles
	Log      *slog.Logger // nil discards
}

// API is the HTTP API of a fleet.
type API struct {
	cfg      Config
	log      *slog.Logger
	mux      *http.ServeMux
	document []byte
	query    http.Handler
	watchers watchers

	mu       sync.Mutex
	counted  time.Time // guarded by mu
	overview fleetclient.Overview
}

// New brings the table of idempotency keys up to date.
func New(ctx context.Context, cfg Config) (*API, error) {
	if cfg.DB == nil || cfg.Door == nil || cfg.Devices == nil || cfg.Jobs == nil || cfg.Alerts == nil ||
		cfg.Auth == nil || cfg.AuditLog == nil || cfg.Series == nil || cfg.Bundles == nil {
		return nil, errors.New("open web API: database, door, store, accounts, audit log or bundles are missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open web API: %w", err)
	}
	if err := cfg.DB.Migrate(ctx, "webapi", files); err != nil {
		return nil, err
	}
	a := &API{cfg: cfg, log: cfg.Log, mux: http.NewServeMux()}
	a.query = http.StripPrefix(fleetclient.Prefix+"/prometheus", cfg.Series.Handler(scopeOf))
	if a.document, err = json.Marshal(openAPI(Routes())); err != nil {
		return nil, fmt.Errorf("write OpenAPI document: %w", err)
	}
	for _, r := range Routes() {
		a.mux.Handle(r.Method+" "+r.Pattern, a.serve(r))
	}
	a.mux.HandleFunc("/", a.strange)
	return a, nil
}

// Handler answers all [Routes]. It works behind the door's Guard only.
func (a *API) Handler() http.Handler { return a.mux }

// strange answers what no route does.
func (a *API) strange(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := a.mux.Handler(other); pattern != "/" {
			allowed = append(allowed, method)
		}
	}
	err := error(&croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such page"), Remedy: "see " + fleetclient.Prefix + "/openapi.json"})
	if len(allowed) > 0 {
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		err = errMethod
	}
	a.fail(w, r, err)
}
