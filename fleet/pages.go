package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/blob"
	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/fleet/console"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/console/staff"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/webapi"
)

// openBundles makes the store of support bundles.
func (f *Fleet) openBundles(ctx context.Context) error {
	blobs, err := blob.Open(ctx, f.cfg.Blobs)
	if err != nil {
		return err
	}
	f.bundles, err = bundle.New(ctx, bundle.Config{
		DB: f.db, Blobs: blobs, Jobs: bundleJobs{f.jobs}, Audit: bundleAudit{f.db, f.audit}, Dir: f.cfg.Dir, Log: f.log,
	})
	return err
}

// openPages makes what people and programs see.
func (f *Fleet) openPages(ctx context.Context) (err error) {
	var providers []console.Provider
	var targets []string
	for _, p := range f.cfg.OIDC {
		providers = append(providers, console.Provider{Name: p.Name, Title: p.Title})
		if issuer, err := url.Parse(p.Issuer); err == nil {
			targets = append(targets, issuer.Scheme+"://"+issuer.Host)
		}
	}
	f.frame, err = frame.New(frame.Config{
		DB: f.db, Name: f.cfg.Name, FormTargets: targets, Log: f.log,
		Auth: authhttp.Config{Auth: f.auth, Key: f.keys.auth, Origin: f.cfg.Origin, ClientAddress: f.clientAddress, Log: f.log},
	})
	if err != nil {
		return err
	}
	owners, err := console.New(console.Config{
		Frame: f.frame, Auth: f.auth, Devices: f.devices, Jobs: f.jobs, Alerts: f.alerts, Series: f.series,
		Origin: f.cfg.Origin, Providers: providers, Mail: f.cfg.Mailer != nil,
	})
	if err != nil {
		return err
	}
	forStaff, err := staff.New(staff.Config{
		Frame: f.frame, DB: f.db, Devices: f.devices, Jobs: f.jobs, Alerts: f.alerts, Series: f.series,
		Auth: f.auth, AuditLog: f.audit, Bundles: f.bundles, Status: f.status, Log: f.log,
	})
	if err != nil {
		return err
	}
	api, err := webapi.New(ctx, webapi.Config{
		DB: f.db, Door: f.frame.Door(), Devices: f.devices, Jobs: f.jobs, Alerts: f.alerts, Auth: f.auth,
		AuditLog: f.audit, Series: f.series, Bundles: apiBundles{f}, Log: f.log,
	})
	if err != nil {
		return err
	}
	pages := http.NewServeMux()
	owners.Register(pages)
	forStaff.Register(pages)
	pages.Handle(fleetclient.Prefix+"/", api.Handler())
	web := http.NewServeMux()
	web.HandleFunc("GET /healthz", f.serveHealth)
	web.Handle("/", f.frame.Handler(pages))
	f.web = web
	return nil
}

// status is how this replica is, for the staff.
func (f *Fleet) status(ctx context.Context) staff.Status {
	in := f.ingest.Stats()
	s := staff.Status{Failing: f.Health(ctx).Failing, Connected: in.Connected, Queued: in.Queued}
	for _, n := range in.Received {
		s.Received += n
	}
	for _, n := range in.Refused {
		s.Refused += n
	}
	return s
}

// bundleJobs is what bundles must know of jobs.
type bundleJobs struct{ jobs *job.Store }

func (b bundleJobs) Expected(ctx context.Context, id croft.DeviceID, name string) error {
	j, err := b.jobs.Job(ctx, job.Actor(itsActor), name)
	if err == nil && (j.Device != id || j.Kind != fleetapi.KindBundle) {
		err = job.ErrNoJob
	}
	if err == nil && j.State.Final() {
		err = &croft.Error{Kind: croft.KindRefused, Err: errors.New("the job has ended"), Remedy: "wait to be asked again"}
	}
	return err
}

// bundleAudit writes what became of bundles into the audit log.
type bundleAudit struct {
	db  *db.DB
	log *auditlog.Log
}

func (a bundleAudit) Record(ctx context.Context, e bundle.Entry) error {
	return a.db.Write(ctx, func(tx *db.Tx) error {
		return a.log.Record(tx, auditlog.Entry{
			ID: e.ID, At: e.At, Actor: e.By, Action: e.Action,
			Kind: "device", Object: string(e.Device), Before: e.Before, After: e.After,
		})
	})
}

// apiBundles is bundles as programs ask for them. Who reads one is written down.
type apiBundles struct{ f *Fleet }

func (b apiBundles) List(ctx context.Context, id croft.DeviceID) ([]webapi.Bundle, error) {
	list, err := b.f.bundles.List(ctx, id)
	out := make([]webapi.Bundle, len(list))
	for i, info := range list {
		out[i] = apiBundle(info, info.Size)
	}
	return out, err
}

func (b apiBundles) Open(ctx context.Context, id string) (io.ReadCloser, webapi.Bundle, error) {
	reading, err := b.f.bundles.Open(ctx, id)
	if err != nil {
		return nil, webapi.Bundle{}, err
	}
	p := rights.FromContext(ctx)
	err = b.f.db.Write(ctx, func(tx *db.Tx) error {
		return b.f.audit.Record(tx, auditlog.Entry{
			Actor: p.Account, Role: string(p.Role), Action: "bundle.read",
			Kind: "device", Object: string(reading.Info.Device), After: map[string]string{"bundle": id},
		})
	})
	if err != nil {
		return nil, webapi.Bundle{}, errors.Join(fmt.Errorf("write down who reads a bundle: %w", err), reading.Close())
	}
	return reading, apiBundle(reading.Info, reading.Size), nil
}

func apiBundle(info bundle.Info, size int64) webapi.Bundle {
	return webapi.Bundle{
		ID: info.ID, Device: info.Device, Job: info.Job, Made: info.Created, Bytes: size,
		Name: "croft-" + strings.ToLower(string(info.Device))[:8] + "-" + info.Created.UTC().Format("20060102-1504") + ".zip", Type: "application/zip",
	}
}
