package console_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/console"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

var home = netip.MustParseAddr("203.0.113.7")

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

// world is a fleet with real stores, and a broker, a mailbox and boxes in memory.
type world struct {
	origin  string
	db      *db.DB
	auth    *auth.Service
	devices *device.Store
	jobs    *job.Store
	alerts  *alert.Store
	series  *timeseries.Store
	handler http.Handler
	mails   chan string
	logged  *lockedBuffer
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// around is what the stores need of the rest of a fleet.
type around struct{ w *world }

func (around) Publish(context.Context, croft.DeviceID, fleetapi.Payload) error { return nil }

func (a around) Send(ctx context.Context, _, _, text string) error {
	select {
	case a.w.mails <- text:
	case <-ctx.Done():
	}
	return nil
}

func (a around) Allowed(ctx context.Context, actor job.Actor, id croft.DeviceID) error {
	_, err := a.w.devices.Box(ctx, device.Actor{ID: actor.ID, Staff: actor.Staff}, id)
	return err
}

func (a around) Select(ctx context.Context, actor job.Actor, selector string) ([]croft.DeviceID, error) {
	boxes, _, err := a.w.devices.List(ctx, device.Actor{ID: actor.ID, Staff: actor.Staff}, device.Query{Selector: selector})
	var ids []croft.DeviceID
	for _, box := range boxes {
		ids = append(ids, box.ID)
	}
	return ids, err
}

func (a around) Known(ctx context.Context, ids []croft.DeviceID) (map[croft.DeviceID]bool, error) {
	return a.w.devices.Known(ctx, ids)
}

func (around) Ask(context.Context, string) ([]alert.Sample, error) { return nil, nil }
func (around) Boxes(context.Context) ([]alert.Box, error)          { return nil, nil }
func (around) Email(context.Context, string) (string, error)       { return "", nil }

type alertMailer struct{}

func (alertMailer) Send(context.Context, alert.Mail) error { return nil }

// audits forget what they are told.
type (
	authAudit   struct{}
	deviceAudit struct{}
	jobAudit    struct{}
	alertAudit  struct{}
)

func (authAudit) Record(*db.Tx, auth.Entry) error              { return nil }
func (deviceAudit) Record(context.Context, device.Entry) error { return nil }
func (jobAudit) Record(context.Context, job.Entry) error       { return nil }
func (alertAudit) Record(*db.Tx, alert.Entry) error            { return nil }

func newWorld(t testing.TB, origin string) *world {
	t.Helper()
	d := dbtest.Open(t, dbtest.URL(t, dbtest.SQLite))
	w := &world{origin: origin, db: d, mails: make(chan string), logged: &lockedBuffer{}}
	log := slog.New(slog.NewTextHandler(w.logged, nil))
	a, key := around{w}, bytes.Repeat([]byte{9}, secret.KeySize)
	ctx := t.Context()
	w.auth = must(auth.New(ctx, auth.Config{DB: d, Key: key, Auditor: authAudit{}, Mailer: a, Origin: origin, Log: log}))(t)
	w.devices = must(device.New(ctx, device.Config{
		DB: d, ClaimKey: must(enroll.NewClaimKey(key))(t), Revoked: &enroll.Revocations{}, Publisher: a, Audit: deviceAudit{}, Log: log,
	}))(t)
	w.jobs = must(job.New(ctx, job.Config{DB: d, Boxes: a, Publisher: a, Audit: jobAudit{}, Log: log}))(t)
	w.alerts = must(alert.New(ctx, alert.Config{DB: d, Readings: a, Boxes: a, Owners: a, Mailer: alertMailer{}, Audit: alertAudit{}, Key: key, Log: log}))(t)
	w.series = must(timeseries.New(timeseries.Config{Dir: t.TempDir()}))(t)
	t.Cleanup(func() { check(t, w.series.Close()) })
	f := must(frame.New(frame.Config{DB: d, Auth: authhttp.Config{Auth: w.auth, Key: key, Origin: origin, Log: log}, Log: log}))(t)
	c := must(console.New(console.Config{
		Frame: f, Auth: w.auth, Devices: w.devices, Jobs: w.jobs, Alerts: w.alerts, Series: w.series, Origin: origin, Mail: true,
		Providers: []console.Provider{{Name: "school", Title: "the school"}},
	}))(t)
	mux := http.NewServeMux()
	c.Register(mux)
	w.handler = f.Handler(mux)

	running, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for _, run := range []func(context.Context) error{w.auth.Run, w.devices.Run, f.Run} {
		work.Go(func() {
			if err := run(running); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); work.Wait() })
	return w
}

func idOf(n int) croft.DeviceID {
	return croft.DeviceIDFromDigest(sha256.Sum256([]byte(fmt.Sprint("box ", n))))
}

// codeOf is the claim code on the screen of box n.
func codeOf(n int) string { return fmt.Sprintf("BX%06d", n) }

// box lets box n in with its code, and has it say hello.
func (w *world) box(t testing.TB, n int) croft.DeviceID {
	t.Helper()
	id := idOf(n)
	req := enroll.Request{Version: 1, Board: "uefi-x86", Release: "1.4.0", Claim: enroll.HashClaim(codeOf(n))}
	must(w.devices.Enrol(t.Context(), enroll.Policy{FirstUse: enroll.FirstUseOpen}, &req, id, home, func(_ []byte, now time.Time) (*enroll.Issued, error) {
		return &enroll.Issued{Device: id, ID: enroll.CertID(fmt.Sprintf("c%06d", n)), NotBefore: now, NotAfter: now.Add(enroll.LeafLife)}, nil
	}))(t)
	w.say(t, id, &fleetapi.Hello{
		Journal: 7, Epoch: 1, Version: 1, At: time.Now(), Synced: true, BootID: "b", Release: "1.4.0", Slot: croft.SlotA, Board: "uefi-x86", Serial: fmt.Sprintf("CR-2611-%05d", n),
		Facts: fleetapi.Labels(map[string]string{"cpu_model": "Intel N100", "claim_words": "river-candle-seven"}),
	}, &fleetapi.State{Presence: fleetapi.Online, Journal: 7, Epoch: 1})
	return id
}

func (w *world) say(t testing.TB, id croft.DeviceID, payloads ...fleetapi.Payload) {
	t.Helper()
	for _, p := range payloads {
		must(w.devices.Receive(t.Context(), []device.Message{{Device: id, At: time.Now(), Address: home, Payload: p}}))(t)
	}
}

// own makes box n somebody's.
func (w *world) own(t testing.TB, account string, n int) croft.DeviceID {
	t.Helper()
	id := w.box(t, n)
	must(w.devices.StartClaim(t.Context(), device.Claimant{Account: account, Address: home}, codeOf(n)))(t)
	must(w.devices.ConfirmClaim(t.Context(), account, id))(t)
	return id
}

// fires has an alert of a box that is somebody's fire: with words for the staff, and for
// owners if they are to know.
func (w *world) fires(t testing.TB, owner string, id croft.DeviceID, sentence, advice string) {
	t.Helper()
	check(t, w.devices.SetAlerts(t.Context(), id, sentence))
	check(t, w.db.Write(t.Context(), func(tx *db.Tx) error {
		now := db.Micros(time.Now())
		_, err := tx.Exec(`INSERT INTO alert_alerts (id, rule, name, severity, target, device, box, owner, labels, members, sentence, advice, value, since, fired, ended, reason, told, withheld, acked, acked_by, note)
			VALUES (?, 'rul_1', 'A rule', 'warning', ?, ?, 'Attic', ?, '{}', '[]', ?, ?, 1, ?, ?, 0, '', 1, '', 0, '', '')`,
			fleetapi.NewID("alr"), string(id), string(id), owner, sentence, advice, now, now)
		return err
	}))
}

// age makes a box belong to its owner for a week already.
func (w *world) age(t testing.TB, id croft.DeviceID) {
	t.Helper()
	check(t, w.db.Write(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec("UPDATE device_boxes SET claimed = claimed - ? WHERE id = ?", (7 * 24 * time.Hour).Microseconds(), string(id))
		return err
	}))
}

// measure stores a day of readings of a box with two programs.
func (w *world) measure(t testing.TB, id croft.DeviceID) {
	t.Helper()
	now := time.Now()
	var idle, user, in, out, cpu float64
	for i := 24 * 60; i >= 0; i-- {
		at := now.Add(-time.Duration(i) * time.Minute)
		busy := 0.15 + 0.5*float64((i/97)%3)/2 + 0.1*float64(i%13)/13
		idle, user = idle+60*4*(1-busy), user+60*4*busy
		in, out, cpu = in+60*2e5*(1+busy), out+60*9e5*busy, cpu+60*busy
		one := func(name string, v float64, labels ...string) timeseries.Sample {
			s := timeseries.Sample{Name: name, At: at, Value: v}
			for j := 0; j+1 < len(labels); j += 2 {
				s.Labels = append(s.Labels, timeseries.Label{Name: labels[j], Value: labels[j+1]})
			}
			return s
		}
		if _, err := w.series.Append(t.Context(), id, []timeseries.Sample{
			one("croft_cpu_seconds_total", idle, "mode", "idle"), one("croft_cpu_seconds_total", user, "mode", "user"),
			one("croft_memory_bytes", 16e9, "kind", "total"), one("croft_memory_bytes", 16e9*(0.8-busy*0.6), "kind", "available"),
			one("croft_temperature_celsius", 38+30*busy, "sensor", "cpu"),
			one("croft_network_bytes_total", in, "interface", "eth0", "direction", "in"), one("croft_network_bytes_total", out, "interface", "eth0", "direction", "out"),
			one("croft_filesystem_bytes", 5e11, "mount", "/perm", "kind", "size"), one("croft_filesystem_bytes", 4e11, "mount", "/perm", "kind", "available"),
			one("croft_lease_memory_bytes", 7e8, "lease", "akash1secret/1/1/1"), one("croft_lease_memory_bytes", 2.1e9, "lease", "akash1secret/2/1/1"),
			one("croft_lease_cpu_seconds_total", cpu, "lease", "akash1secret/1/1/1"), one("croft_lease_cpu_seconds_total", cpu/3, "lease", "akash1secret/2/1/1"),
			one("croft_lease_network_bytes_total", in/3, "lease", "akash1secret/1/1/1", "direction", "in"),
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// pay stores what a box says it earned: that it had been paid so much for most of a day,
// has been paid more in this minute, and what its leases pay in a month.
func (w *world) pay(t testing.TB, id croft.DeviceID, denom string, before, now, rate float64) {
	t.Helper()
	of, at := []timeseries.Label{{Name: "denom", Value: denom}}, time.Now().Add(-time.Second)
	samples := []timeseries.Sample{
		{Name: "croft_income_month", Labels: of, At: at, Value: rate},
		{Name: "croft_earned_total", Labels: of, At: at, Value: now},
	}
	for ago := time.Minute; ago < 23*time.Hour; ago += 4 * time.Minute {
		samples = append(samples, timeseries.Sample{Name: "croft_earned_total", Labels: of, At: at.Add(-ago), Value: before})
	}
	if n := must(w.series.Append(t.Context(), id, samples))(t); n != len(samples) {
		t.Errorf("%d of %d samples were stored", n, len(samples))
	}
}

// browser keeps cookies as browsers do.
type browser struct {
	*world
	t       testing.TB
	cookies map[string]*http.Cookie
}

func (w *world) browser(t testing.TB) *browser { return &browser{w, t, map[string]*http.Cookie{}} }

func (b *browser) do(r *http.Request) *httptest.ResponseRecorder {
	b.t.Helper()
	for _, c := range b.cookies {
		r.AddCookie(c)
	}
	r.RemoteAddr = home.String() + ":4000"
	rec := httptest.NewRecorder()
	b.handler.ServeHTTP(rec, r.WithContext(b.t.Context()))
	for _, c := range rec.Result().Cookies() {
		if !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly {
			b.t.Errorf("cookie %+v", c)
		}
		if b.cookies[c.Name] = c; c.Value == "" {
			delete(b.cookies, c.Name)
		}
	}
	return rec
}

// get is a page.
func (b *browser) get(path string) *httptest.ResponseRecorder {
	return b.do(httptest.NewRequest(http.MethodGet, b.origin+path, nil))
}

var (
	tokenField = regexp.MustCompile(`name="form_token" value="([^"]+)"`)
	tokenMail  = regexp.MustCompile(`\?token=(\S+)`)
	saidLine   = regexp.MustCompile(`(?s)<div class="said [a-z]+" role="status">.*?<p>(.*?)</p>`)
)

// post sends a form of the page at from.
func (b *browser) post(from, path string, fields ...string) *httptest.ResponseRecorder {
	b.t.Helper()
	v := url.Values{"from": {from}}
	for i := 0; i < len(fields); i += 2 {
		v.Add(fields[i], fields[i+1])
	}
	found := tokenField.FindStringSubmatch(b.get(from).Body.String())
	if found == nil {
		b.t.Fatalf("%s has no form", from)
	}
	v.Set(authhttp.FormField, html.UnescapeString(found[1]))
	r := httptest.NewRequest(http.MethodPost, b.origin+path, strings.NewReader(v.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", b.origin)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return b.do(r)
}

// follow posts, goes where the answer leads, and returns that path and what is said there.
func (b *browser) follow(from, path string, fields ...string) (to, said string) {
	b.t.Helper()
	rec := b.post(from, path, fields...)
	if rec.Code != http.StatusSeeOther {
		b.t.Fatalf("POST %s: %d %s", path, rec.Code, rec.Body)
	}
	to = rec.Header().Get("Location")
	for range 3 {
		rec = b.get(to)
		if rec.Code != http.StatusSeeOther {
			break
		}
		to = rec.Header().Get("Location")
	}
	if found := saidLine.FindStringSubmatch(rec.Body.String()); found != nil {
		said = html.UnescapeString(found[1])
	}
	return to, said
}

// owner is somebody who signed in with a link from a mail.
func (w *world) owner(t testing.TB, email string) *browser {
	t.Helper()
	b := w.browser(t)
	if to, _ := b.follow("/login", "/auth/link", "email", email); to != frame.SentPath {
		t.Fatalf("asking for a link leads to %s", to)
	}
	token := tokenMail.FindStringSubmatch(<-w.mails)[1]
	if to, _ := b.follow("/login/link?token="+token, "/auth/link/redeem", "token", token); to != frame.OwnerHome {
		t.Fatalf("a link leads to %s", to)
	}
	return b
}

// account is the id of who is signed in.
func (b *browser) account() string {
	b.t.Helper()
	r := httptest.NewRequest(http.MethodGet, b.origin+"/auth/me", nil)
	r.Header.Set("Accept", "application/json")
	var me struct {
		Data struct{ Account string }
	}
	check(b.t, json.Unmarshal(b.do(r).Body.Bytes(), &me))
	return me.Data.Account
}

func regexpFind(t testing.TB, pattern, text string) string {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("there is no %s in\n%s", pattern, text)
	}
	return html.UnescapeString(found[1])
}
