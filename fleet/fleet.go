// Package fleet joins the parts of the service that looks after boxes into one
// server.
//
//	f, err := fleet.New(ctx, fleet.Config{Dir: "/var/lib/croft-fleet", Origin: "https://fleet.example", …})
//	err = f.Run(ctx)
//
// It listens on three ports: Web for people and programs, Device for boxes that
// enrol, renew and bring bundles, Broker for their MQTT (unless there is an external
// broker). Boxes come with certificates of the fleet's own authority.
//
// # What is kept where
//
//	Config.Database  people, boxes, jobs, alerts, audit log; the authority, sealed
//	Config.Key       one secret, from which all others are derived. Without it the
//	                 database opens nothing: keep a copy
//	Config.Dir       readings; root-key.pem until the operator takes it away (it is
//	                 wanted again every four years); join.json, what boxes are told;
//	                 and database, key and blobs unless they are elsewhere
//	Config.Blobs     support bundles
//
// Replicas share database, key, blobs and an external broker. Each has a Dir of its
// own with all readings: all of them hear each box.
//
// # What survives what
//
// kill -9 of a replica at any moment loses nothing that was acknowledged, as the parts
// promise; a box finds another replica, or this one again. A part that fails is started
// again and named by Health; if a port or the readings fail, Run ends. With a clock that
// cannot be right the fleet does not start, and stops when it is set to such a time.
package fleet

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/oidclogin"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/ingest"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/internal/supervise"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config is copied by New and never changed afterwards.
type Config struct {
	Dir    string // required; made if missing
	Origin string // required; what browsers call the fleet: "https://fleet.example"
	Name   string // of the fleet, for people; default "Croft"

	Database string // default "sqlite:DIR/fleet.db"
	Key      string // file; made if missing; default DIR/fleet.key
	Blobs    string // default "file://DIR/blobs"

	Web    net.Listener // required; TCP, without TLS; Run closes it
	WebTLS *tls.Config  // nil: plain HTTP, for a proxy before it or for this machine alone
	Device net.Listener // required
	Broker net.Listener // required unless External is set

	// Hosts are the names and addresses at which boxes reach Device and Broker;
	// default the host of Origin. The first is what boxes are told.
	Hosts []string
	// Brokers are told to boxes; default tls://HOST:PORT of Broker.
	Brokers []string
	// External is a broker somebody else runs. Its DB is set here; its TLS trusts the
	// system's roots and the fleet's own unless it says otherwise.
	External *ingest.External
	// BrokerFiles is a folder in which that broker finds whom it may trust, who it is,
	// and who is revoked, by the names Hosts; empty: nowhere.
	BrokerFiles string

	FirstUse enroll.FirstUse     // default enroll.FirstUseVoucher
	Factory  []ed25519.PublicKey // whose vouchers are good

	Mailer auth.Mailer        // nil: nobody is sent mails
	OIDC   []oidclogin.Config // staff's sign-in elsewhere

	// Proxies are networks whose word (X-Forwarded-For) about the address of a
	// client of Web counts.
	Proxies []netip.Prefix

	// Private are networks that webhooks may reach though they are not public.
	Private []netip.Prefix

	Series timeseries.Config // Dir, Log and TrustClock are set here

	// TrustClock says that a person has checked this machine's clock. Otherwise the
	// fleet does not start when it cannot be right.
	TrustClock bool

	ConnectRate float64      // connections of boxes a second; default as in ingest.Embedded
	Log         *slog.Logger // nil discards
}

// Fleet is one replica of the service.
type Fleet struct {
	cfg  Config
	log  *slog.Logger
	keys keys

	db        *db.DB
	authority *authority
	gate      *enroll.Gate
	revoked   *enroll.Revocations
	audit     *auditlog.Log
	auth      *auth.Service
	frame     *frame.Frame
	bundles   *bundle.Store
	devices   *device.Store
	jobs      *job.Store
	alerts    *alert.Store
	series    *timeseries.Store
	ingest    *ingest.Ingest
	sink      *sink
	wiper     *wiper

	web     http.Handler
	device  http.Handler
	workers *supervise.Supervisor
}

// New opens what the fleet keeps and brings its tables up to date. Nothing is served
// before [Fleet.Run], which also closes it.
func New(ctx context.Context, cfg Config) (*Fleet, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	f := &Fleet{cfg: cfg, log: cfg.Log, revoked: &enroll.Revocations{}}
	if err := f.open(ctx); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

func (f *Fleet) open(ctx context.Context) (err error) {
	cfg := f.cfg
	if err := atomicfile.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make the fleet's folder: %w", err)
	}
	if f.keys, err = readKey(cfg.Key); err != nil {
		return err
	}
	if f.db, err = db.Open(ctx, cfg.Database, cfg.Log); err != nil {
		return err
	}
	own, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	if err := f.db.Migrate(ctx, "fleet", own); err != nil {
		return err
	}
	if err := checkClock(ctx, f.db, time.Now(), cfg.TrustClock); err != nil {
		return err
	}
	v := &vault{db: f.db, keys: f.keys, log: cfg.Log}
	if err := v.check(ctx, cfg.Key); err != nil {
		return err
	}
	if f.authority, err = openAuthority(ctx, v, cfg.Name, filepath.Join(cfg.Dir, "root-key.pem"), cfg.Hosts); err != nil {
		return err
	}
	f.gate, err = enroll.NewGate(enroll.GateConfig{Roots: f.Roots(), Revoked: f.revoked})
	if err != nil {
		return err
	}
	for _, open := range []func(context.Context) error{f.openPeople, f.openSeries, f.openBoxes, f.openBundles, f.openAlerts, f.openPages, f.openPorts} {
		if err := open(ctx); err != nil {
			return err
		}
	}
	if err := atomicfile.WriteFile(filepath.Join(cfg.Dir, "join.json"), f.JoinText(), 0o644); err != nil {
		return fmt.Errorf("write down what boxes are told: %w", err)
	}
	return nil
}

// fill checks a configuration and puts in what was left out.
func (cfg *Config) fill() error {
	origin, err := url.Parse(cfg.Origin)
	switch {
	case cfg.Dir == "":
		return errors.New("fleet has no folder")
	case err != nil || origin.Hostname() == "" || origin.Path != "" || origin.Scheme != "https" && origin.Scheme != "http":
		return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("origin %q is no address of a site", cfg.Origin), Remedy: `give it as "https://fleet.example"`}
	case cfg.Web == nil || cfg.Device == nil || cfg.Broker == nil && cfg.External == nil:
		return errors.New("fleet lacks a listener")
	case cfg.External != nil && len(cfg.Brokers) == 0:
		return &croft.Error{Kind: croft.KindUsage, Err: errors.New("nobody says where boxes reach the external broker"), Remedy: "name it as tls://host:port"}
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return err
	}
	cfg.Name = cmp.Or(cfg.Name, "Croft")
	cfg.Database = cmp.Or(cfg.Database, "sqlite:"+filepath.Join(cfg.Dir, "fleet.db"))
	cfg.Key = cmp.Or(cfg.Key, filepath.Join(cfg.Dir, "fleet.key"))
	cfg.Blobs = cmp.Or(cfg.Blobs, "file://"+filepath.Join(cfg.Dir, "blobs"))
	cfg.FirstUse = cmp.Or(cfg.FirstUse, enroll.FirstUseVoucher)
	if len(cfg.Hosts) == 0 {
		cfg.Hosts = []string{origin.Hostname()}
	}
	if len(cfg.Brokers) == 0 {
		cfg.Brokers = []string{"tls://" + net.JoinHostPort(cfg.Hosts[0], portOf(cfg.Broker))}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func portOf(l net.Listener) string {
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func (f *Fleet) openPeople(ctx context.Context) (err error) {
	if f.audit, err = auditlog.Open(ctx, f.db, f.keys.audit); err != nil {
		return err
	}
	f.auth, err = auth.New(ctx, auth.Config{
		DB: f.db, Key: f.keys.auth, Auditor: authAudit{f.audit}, Mailer: f.cfg.Mailer,
		Origin: f.cfg.Origin, Name: f.cfg.Name, OIDC: f.cfg.OIDC, Log: f.log,
	})
	return err
}

func (f *Fleet) openSeries(ctx context.Context) (err error) {
	cfg := f.cfg.Series
	cfg.TrustClock = f.cfg.TrustClock
	cfg.Dir, cfg.Log = filepath.Join(f.cfg.Dir, "readings"), f.log
	if f.series, err = timeseries.New(cfg); err != nil {
		return err
	}
	for _, l := range f.series.Losses() {
		f.log.Warn("readings were lost", "what", l.What, "from", l.From, "to", l.To, "bytes", l.Bytes, "kept", l.Kept)
	}
	f.wiper = newWiper(f.db, f.series, cfg.Dir)
	_, err = f.wiper.read(ctx) // before the first message comes
	return err
}

// openBoxes makes the stores of boxes and jobs, and their way in. What goes down to
// boxes goes through ingest, which is made last, for it hands what comes up to them.
func (f *Fleet) openBoxes(ctx context.Context) error {
	claimKey, err := enroll.NewClaimKey(f.keys.claim)
	if err != nil {
		return err
	}
	f.devices, err = device.New(ctx, device.Config{
		DB: f.db, ClaimKey: claimKey, Revoked: f.revoked, Publisher: downTo{f},
		Audit: deviceAudit{f}, Owners: f.auth, Log: f.log,
	})
	if err != nil {
		return err
	}
	f.jobs, err = job.New(ctx, job.Config{
		DB: f.db, Boxes: jobBoxes{f.devices}, Publisher: downTo{f}, Audit: jobAudit{f.db, f.audit}, Since: f.ownedSince, Log: f.log,
	})
	if err != nil {
		return err
	}
	f.sink = newSink(f.db, f.devices, f.jobs, f.series, f.wiper)
	cfg := ingest.Config{Sink: f.sink, Revoked: f.revoked.Device, Notice: f.notice, Log: f.log, Workers: mostTogether}
	if cfg.External = f.cfg.External; cfg.External != nil {
		external := *cfg.External
		external.DB = f.db
		if external.TLS == nil {
			trusted, err := x509.SystemCertPool()
			if err != nil {
				trusted = x509.NewCertPool()
			}
			for _, root := range f.Roots() {
				trusted.AddCert(root)
			}
			external.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trusted}
		}
		cfg.External = &external
	} else {
		cfg.Embedded = &ingest.Embedded{
			Listener: f.cfg.Broker, TLS: f.gate.TLS(f.authority.certificate, enroll.Device),
			Judge: ingest.JudgeFunc(f.judge), ConnectRate: f.cfg.ConnectRate,
		}
	}
	if f.ingest, err = ingest.New(cfg); err != nil {
		return err
	}
	f.sink.down = f.ingest
	return nil
}

// ownedSince is when a box became its owner's: what was asked of it before is not his.
func (f *Fleet) ownedSince(ctx context.Context, id croft.DeviceID) (time.Time, error) {
	box, err := f.devices.Box(ctx, itsActor, id)
	return box.Claim.Since, err
}

func (f *Fleet) openAlerts(ctx context.Context) (err error) {
	f.alerts, err = alert.New(ctx, alert.Config{
		DB: f.db, Readings: alertReadings{f.series}, Boxes: alertBoxes{f.db, f.devices}, Owners: alertOwners{f.auth},
		Mailer: alertMailer{f.cfg.Mailer}, Audit: alertAudit{f.audit}, Key: f.keys.alert, Name: f.cfg.Name,
		AllowPrivate: f.cfg.Private, Log: f.log,
	})
	return err
}

// judge is which device is at the other end of a connection, or why none is.
func (f *Fleet) judge(cs *tls.ConnectionState) (croft.DeviceID, error) {
	peer := f.gate.Judge(*cs)
	return peer.Device, peer.MayConnect()
}

// notice writes down what is odd about a box's connection. It never blocks: the log
// is all it has.
func (f *Fleet) notice(n ingest.Notice) {
	f.log.Info("notice about a box's connection", "device", n.Device, "kind", n.Kind, "remote", n.Remote, "other", n.Other)
}

// shutOut ends the connections of boxes that were revoked, on this replica.
func (f *Fleet) shutOut(ctx context.Context) error {
	for id := range f.db.Listen(ctx, device.TopicRevoked) {
		if id != "" {
			f.ingest.Disconnect(croft.DeviceID(id))
		}
	}
	return nil
}

// Bootstrap is the URL with which the first admin signs up, empty if there is one.
func (f *Fleet) Bootstrap(ctx context.Context) (secret.Text, error) {
	token, err := f.auth.Bootstrap(ctx)
	if err != nil || token.Reveal() == "" {
		return secret.Text{}, err
	}
	return secret.New(f.cfg.Origin + "/login/link?token=" + token.Reveal()), nil
}

// DeviceURL is where boxes enrol.
func (f *Fleet) DeviceURL() string {
	return "https://" + net.JoinHostPort(f.cfg.Hosts[0], portOf(f.cfg.Device))
}

// close closes what New opened.
func (f *Fleet) close() error {
	var errs []error
	if f.series != nil {
		errs = append(errs, f.series.Close())
	}
	if f.db != nil {
		errs = append(errs, f.db.Close())
	}
	return errors.Join(errs...)
}

// patience is how long requests under way have to end when the fleet stops.
const patience = 10 * time.Second
