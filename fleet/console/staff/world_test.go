package staff_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/console/staff"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

var (
	home   = netip.MustParseAddr("203.0.113.7")
	abroad = netip.MustParseAddr("198.51.100.9")
	office = auth.Client{Address: netip.MustParseAddr("192.0.2.1"), Agent: "test"}
	boss   = device.Actor{ID: "usr_boss", Staff: true}
)

// world is a fleet of real stores around the pages, and people who are signed in.
type world struct {
	t       testing.TB
	origin  string
	db      *db.DB
	devices *device.Store
	jobs    *job.Store
	alerts  *alert.Store
	series  *timeseries.Store
	people  *auth.Service
	audit   *auditlog.Log
	bundles map[string]bundle.Info
	status  staff.Status
	answers map[string][]alert.Sample // of expressions of rules
	mails   []alert.Mail
	frame   *frame.Frame
	pages   *staff.Pages
	h       http.Handler
	cookies map[rights.Role]string // of sessions
	ids     map[rights.Role]string
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

type outside struct{ *world }

func (outside) Publish(context.Context, croft.DeviceID, fleetapi.Payload) error { return nil }
func (w outside) Ask(_ context.Context, expr string) ([]alert.Sample, error) {
	if strings.HasPrefix(expr, "!") {
		return nil, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("expression %q is wrong", expr)}
	}
	return w.answers[expr], nil
}
func (outside) Email(context.Context, string) (string, error) { return "", nil }
func (w outside) Send(_ context.Context, m alert.Mail) error {
	w.mails = append(w.mails, m)
	return nil
}

func (w outside) Boxes(ctx context.Context) (out []alert.Box, err error) {
	found, _, err := w.devices.List(ctx, boss, device.Query{Limit: 500})
	for _, b := range found {
		out = append(out, alert.Box{
			ID: b.ID, Name: b.Name, Owner: b.Claim.Owner, Labels: b.Labels, Heard: b.Presence != "", Online: b.Online, Seen: b.Seen, CertificateUntil: b.CertificateUntil,
		})
	}
	return out, err
}

func (w outside) Allowed(ctx context.Context, actor job.Actor, id croft.DeviceID) error {
	_, err := w.devices.Box(ctx, device.Actor(actor), id)
	return err
}

func (w outside) Known(ctx context.Context, ids []croft.DeviceID) (map[croft.DeviceID]bool, error) {
	return w.devices.Known(ctx, ids)
}

func (w outside) Select(ctx context.Context, actor job.Actor, selector string) (ids []croft.DeviceID, err error) {
	found, _, err := w.devices.List(ctx, device.Actor(actor), device.Query{Selector: selector, Limit: 500})
	for _, b := range found {
		ids = append(ids, b.ID)
	}
	return ids, err
}

// The stores tell the audit log through the wiring; here it is left out but for people.
type deaf struct{}

func (deaf) Record(context.Context, device.Entry) error { return nil }

type deafJobs struct{}

func (deafJobs) Record(context.Context, job.Entry) error { return nil }

type toLog struct{ log *auditlog.Log }

func (a toLog) Record(tx *db.Tx, e auth.Entry) error { return a.log.Record(tx, auditlog.Entry(e)) }

type alertsToLog struct{ log *auditlog.Log }

func (a alertsToLog) Record(tx *db.Tx, e alert.Entry) error {
	return a.log.Record(tx, auditlog.Entry{Actor: e.By, Action: e.Action, Kind: "alert", Object: e.Object, Before: e.Before, After: e.After})
}

// zipFile is a bundle without a zip in it.
type zipFile struct{ *bytes.Reader }

func (zipFile) Close() error { return nil }

func (w *world) List(_ context.Context, id croft.DeviceID) (out []bundle.Info, err error) {
	for _, info := range w.bundles {
		if info.Device == id {
			out = append(out, info)
		}
	}
	return out, nil
}

func (w *world) Info(_ context.Context, id string) (bundle.Info, error) {
	info, ok := w.bundles[id]
	if !ok {
		return info, bundle.ErrNoBundle
	}
	return info, nil
}

func (w *world) Open(_ context.Context, id string) (*bundle.Reading, error) {
	return &bundle.Reading{ReadSeekCloser: zipFile{bytes.NewReader([]byte("zip of " + id))}, Info: w.bundles[id]}, nil
}

const goodPass = "a field of 7 sheep"

func newWorld(t testing.TB, origin string) *world {
	t.Helper()
	w := &world{
		t: t, origin: origin, bundles: map[string]bundle.Info{}, answers: map[string][]alert.Sample{}, cookies: map[rights.Role]string{}, ids: map[rights.Role]string{},
	}
	ctx := t.Context()
	w.db = dbtest.Open(t, dbtest.URL(t, dbtest.SQLite))
	key := bytes.Repeat([]byte{7}, secret.KeySize)
	w.audit = must(auditlog.Open(ctx, w.db, bytes.Repeat([]byte{5}, auditlog.KeySize)))(t)
	w.people = must(auth.New(ctx, auth.Config{DB: w.db, Key: key, Auditor: toLog{w.audit}, Origin: origin}))(t)
	claimKey := must(enroll.NewClaimKey([]byte(strings.Repeat("k", 32))))(t)
	w.devices = must(device.New(ctx, device.Config{
		DB: w.db, ClaimKey: claimKey, Revoked: &enroll.Revocations{}, Publisher: outside{w}, Audit: deaf{}, Owners: w.people,
	}))(t)
	w.jobs = must(job.New(ctx, job.Config{DB: w.db, Boxes: outside{w}, Publisher: outside{w}, Audit: deafJobs{}}))(t)
	w.alerts = must(alert.New(ctx, alert.Config{
		DB: w.db, Readings: outside{w}, Boxes: outside{w}, Owners: outside{w}, Mailer: outside{w}, Audit: alertsToLog{w.audit}, Key: bytes.Repeat([]byte{3}, 32),
		Interval: 20 * time.Millisecond, AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	}))(t)
	w.series = must(timeseries.New(timeseries.Config{Dir: t.TempDir()}))(t)
	t.Cleanup(func() { check(t, w.series.Close()) })
	w.frame = must(frame.New(frame.Config{DB: w.db, Name: "Meadow", Auth: authhttp.Config{Auth: w.people, Key: key, Origin: origin}}))(t)
	w.status = staff.Status{Connected: 3, Received: 1234}
	pages := must(staff.New(staff.Config{
		Frame: w.frame, DB: w.db, Devices: w.devices, Jobs: w.jobs, Alerts: w.alerts, Series: w.series, Auth: w.people, AuditLog: w.audit, Bundles: w,
		Status: func(context.Context) staff.Status { return w.status },
	}))(t)
	w.pages = pages
	mux := http.NewServeMux()
	pages.Register(mux)
	w.h = w.frame.Handler(mux)
	for _, role := range []rights.Role{rights.RoleAdmin, rights.RoleOperator, rights.RoleSupport} {
		w.hire(role)
	}
	return w
}

// hire makes somebody staff and signs him in; the first is the admin.
func (w *world) hire(role rights.Role) {
	w.t.Helper()
	ctx := w.t.Context()
	var token secret.Text
	if role == rights.RoleAdmin {
		token = must(w.people.Bootstrap(ctx))(w.t)
	} else {
		link := must(w.people.Invite(ctx, office, w.principal(rights.RoleAdmin), string(role)+"@example.org", role))(w.t)
		_, text, _ := strings.Cut(link.Reveal(), "?token=")
		token = secret.New(text)
	}
	g := must(w.people.Accept(ctx, office, token, string(role)+"@example.org", strings.ToUpper(string(role)), secret.New(goodPass)))(w.t)
	u := must(url.Parse(must(w.people.BeginTOTP(ctx, g.Principal))(w.t).Reveal()))(w.t)
	code := must(totp.GenerateCode(u.Query().Get("secret"), time.Now()))(w.t)
	g = must(w.people.ConfirmTOTP(ctx, office, g.Principal, code))(w.t)
	w.cookies[role], w.ids[role] = g.Cookie.Reveal(), g.Principal.Account
}

func (w *world) principal(role rights.Role) rights.Principal {
	return must(w.people.BySession(w.t.Context(), secret.New(w.cookies[role])))(w.t)
}

func idOf(n int) croft.DeviceID {
	return croft.DeviceIDFromDigest(sha256.Sum256([]byte(fmt.Sprint("box ", n))))
}

func codeOf(n int) string { return fmt.Sprintf("BX%06d", n) }

var certificates int

// enrol lets box n in, with a certificate for so long.
func (w *world) enrol(n int, life time.Duration) croft.DeviceID {
	w.t.Helper()
	id := idOf(n)
	req := enroll.Request{Version: 1, Board: []string{"uefi-x86", "pi5"}[n%2], Release: "1.4.0", Claim: enroll.HashClaim(codeOf(n)), SerialNumber: fmt.Sprintf("CR-%04d", n)}
	_, err := w.devices.Enrol(w.t.Context(), enroll.Policy{FirstUse: enroll.FirstUseOpen}, &req, id, home, func(_ []byte, now time.Time) (*enroll.Issued, error) {
		certificates++
		return &enroll.Issued{Device: id, ID: enroll.CertID(fmt.Sprintf("c%06d", certificates)), NotBefore: now, NotAfter: now.Add(life)}, nil
	})
	check(w.t, err)
	return id
}

func (w *world) say(id croft.DeviceID, payloads ...fleetapi.Payload) {
	w.t.Helper()
	var messages []device.Message
	for _, p := range payloads {
		messages = append(messages, device.Message{Device: id, At: time.Now(), Address: home, Payload: p})
	}
	must(w.devices.Receive(w.t.Context(), messages))(w.t)
}

// box lets box n in and has it come online.
func (w *world) box(n int) croft.DeviceID {
	w.t.Helper()
	id := w.enrol(n, enroll.LeafLife)
	w.say(id, &fleetapi.Hello{
		Journal: 7, Epoch: 1, Version: 1, At: time.Now(), Synced: true, BootID: "b", Release: croft.Version(cmp.Or(map[bool]string{true: "1.3.2"}[n%3 == 0], "1.4.0")), Slot: croft.SlotA,
		Board: []string{"uefi-x86", "pi5"}[n%2], Facts: fleetapi.Labels(map[string]string{"cpu_model": "Intel N100", "memory_bytes": "16000000000"}),
	}, &fleetapi.State{Presence: fleetapi.Online, Journal: 7, Epoch: 1})
	return id
}

func (w *world) lose(id croft.DeviceID) {
	w.say(id, &fleetapi.State{Presence: fleetapi.Lost, Journal: 7, Epoch: 1})
}

// mailbox hands mails over one by one.
type mailbox chan string

func (m mailbox) Send(ctx context.Context, _, _, text string) error {
	select {
	case m <- text:
	case <-ctx.Done():
	}
	return nil
}

// newOwner makes an owner, who is signed in. The people of the world send no mails, so
// another service of the same database does.
func (w *world) newOwner(email string) {
	w.t.Helper()
	mails := make(mailbox)
	people := must(auth.New(w.t.Context(), auth.Config{
		DB: w.db, Key: bytes.Repeat([]byte{7}, secret.KeySize), Auditor: toLog{w.audit}, Origin: w.origin, Mailer: mails,
	}))(w.t)
	ctx, stop := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- people.Run(ctx) }()
	check(w.t, people.RequestLink(ctx, office, email))
	_, token, _ := strings.Cut(<-mails, "?token=")
	g := must(people.RedeemLink(ctx, office, rights.Principal{}, secret.New(strings.Fields(token)[0]), true))(w.t)
	w.cookies[rights.RoleOwner], w.ids[rights.RoleOwner] = g.Cookie.Reveal(), g.Principal.Account
	stop()
	check(w.t, <-ended)
}

// measure gives a box readings of the last minutes up to three hours.
func (w *world) measure(id croft.DeviceID, minutes int, heat float64) {
	w.t.Helper()
	var all []timeseries.Sample
	now, busy := time.Now().Truncate(time.Minute), 0.0
	for n := minutes; n >= 0; n-- {
		at, i := now.Add(-time.Duration(n)*time.Minute), float64(minutes-n)
		add := func(name string, value float64, labels ...string) {
			s := timeseries.Sample{Name: name, At: at, Value: value}
			for l := 0; l < len(labels); l += 2 {
				s.Labels = append(s.Labels, timeseries.Label{Name: labels[l], Value: labels[l+1]})
			}
			all = append(all, s)
		}
		wave := 20 * (1 + float64(int(i)%17)/17)
		add("croft_cpu_threads", 4)
		busy += 3 * wave
		add("croft_cpu_seconds_total", i*239-busy, "mode", "idle")
		add("croft_cpu_seconds_total", busy, "mode", "user")
		add("croft_cpu_seconds_total", i, "mode", "iowait")
		add("croft_memory_bytes", 16e9, "kind", "total")
		add("croft_memory_bytes", 9e9-wave*1e8, "kind", "available")
		add("croft_temperature_celsius", heat+wave/5, "sensor", "package")
		add("croft_temperature_celsius", heat-8, "sensor", "nvme0")
		add("croft_filesystem_bytes", 500e9, "mount", "/perm", "kind", "size")
		add("croft_filesystem_bytes", 300e9-i*1e8, "mount", "/perm", "kind", "available")
		add("croft_network_bytes_total", i*6e6+wave*1e5, "direction", "in", "interface", "eth0")
		add("croft_network_bytes_total", i*2e6, "direction", "out", "interface", "eth0")
		add("croft_clock_offset_seconds", 0.01)
		for lease := range 2 {
			name := fmt.Sprintf("84021/%d/1", lease+1)
			add("croft_lease_memory_bytes", 1.2e9*float64(lease+1), "lease", name)
			add("croft_lease_disk_bytes", 4e9, "lease", name)
			add("croft_lease_cpu_seconds_total", i*35, "lease", name)
			add("croft_lease_network_bytes_total", i*3e6, "lease", name, "direction", "in")
			add("croft_lease_network_bytes_total", i*1e6, "lease", name, "direction", "out")
		}
	}
	if stored, err := w.series.Append(w.t.Context(), id, all); err != nil || stored != len(all) {
		w.t.Fatalf("stored %d of %d readings: %v", stored, len(all), err)
	}
}

// browser keeps cookies as browsers do.
type browser struct {
	*world
	cookies map[string]string
}

// as is a browser in which somebody of a role is signed in; nobody without one.
func (w *world) as(role rights.Role) *browser {
	b := &browser{w, map[string]string{}}
	if cookie := w.cookies[role]; cookie != "" {
		b.cookies["__Host-croft_session"] = cookie
	}
	return b
}

func (b *browser) do(r *http.Request) *httptest.ResponseRecorder {
	for name, value := range b.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	rec := httptest.NewRecorder()
	b.h.ServeHTTP(rec, r.WithContext(b.t.Context()))
	for _, c := range rec.Result().Cookies() {
		if b.cookies[c.Name] = c.Value; c.Value == "" {
			delete(b.cookies, c.Name)
		}
	}
	return rec
}

func (b *browser) get(path string) *httptest.ResponseRecorder {
	return b.do(httptest.NewRequest(http.MethodGet, b.origin+path, nil))
}

// page is the text of a page that must be there.
func (b *browser) page(path string) string {
	b.t.Helper()
	rec := b.get(path)
	if rec.Code != http.StatusOK {
		b.t.Fatalf("GET %s: %d, to %q\n%s", path, rec.Code, rec.Header().Get("Location"), rec.Body)
	}
	return rec.Body.String()
}

var tokenField = regexp.MustCompile(`name="form_token" value="([^"]+)"`)

// post sends a form that stands in a page.
func (b *browser) post(from, path string, fields ...string) *httptest.ResponseRecorder {
	b.t.Helper()
	found := tokenField.FindStringSubmatch(b.page(from))
	if found == nil {
		b.t.Fatalf("page %s has no form", from)
	}
	return b.send(path, append(fields, "form_token", found[1], "from", from)...)
}

func (b *browser) send(path string, fields ...string) *httptest.ResponseRecorder {
	v := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		v.Set(fields[i], fields[i+1])
	}
	r := httptest.NewRequest(http.MethodPost, b.origin+path, strings.NewReader(v.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", b.origin)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return b.do(r)
}

// said posts a form, follows to the page after it, and returns that.
func (b *browser) said(from, path string, fields ...string) string {
	b.t.Helper()
	rec := b.post(from, path, fields...)
	if rec.Code != http.StatusSeeOther {
		b.t.Fatalf("POST %s: %d\n%s", path, rec.Code, rec.Body)
	}
	to, _, _ := strings.Cut(rec.Header().Get("Location"), "#")
	return b.page(to)
}

func (w *world) wantIn(where, page string, wants ...string) {
	w.t.Helper()
	for _, want := range wants {
		if !strings.Contains(page, want) {
			w.t.Errorf("%s lacks %q", where, want)
		}
	}
}

func (w *world) wantOut(where, page string, wants ...string) {
	w.t.Helper()
	for _, want := range wants {
		if strings.Contains(page, want) {
			w.t.Errorf("%s has %q", where, want)
		}
	}
}

// fire lets alerts be judged until those that are bad fire: a rule that needs no time.
func (w *world) fire() {
	w.t.Helper()
	for _, r := range []alert.Rule{
		{Name: "Fan slow", Expr: "slow_fans", Severity: fleetapi.SeverityWarning, Sentence: "The fan of {box} turns slowly ({value} a minute)."},
		{Name: "Gone", Condition: alert.Offline, Severity: fleetapi.SeverityError, Sentence: "{box} is gone."},
	} {
		w.answers["slow_fans"] = []alert.Sample{{Labels: map[string]string{"device": string(idOf(1))}, Value: 312}}
		must(w.alerts.SaveRule(w.t.Context(), alert.Actor(boss), r))(w.t)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	told := w.db.Listen(ctx, alert.Topic)
	running, stop := context.WithCancel(ctx)
	go func() { ended <- w.alerts.Run(running) }()
	for {
		firing, _, err := w.alerts.List(ctx, alert.Actor(boss), alert.Query{Firing: true})
		check(w.t, err)
		if len(firing) >= len(w.answers["slow_fans"])+1 {
			break
		}
		if _, open := <-told; !open {
			w.t.Fatal("no alert fired")
		}
	}
	stop()
	check(w.t, <-ended)
}
