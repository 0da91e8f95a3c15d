package webapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
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
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
	"github.com/croft-cloud/croft/fleet/webapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

const origin = "https://fleet.example.org"

var home = netip.MustParseAddr("203.0.113.7")

// world is the API over real stores, with a broker, a mail server and bundles in
// memory. Ada and bob are owners.
type world struct {
	t       *testing.T
	db      *db.DB
	devices *device.Store
	jobs    *job.Store
	alerts  *alert.Store
	auth    *auth.Service
	series  *timeseries.Store
	log     *auditlog.Log
	api     *webapi.API
	h       http.Handler
	mails   chan string

	who    map[string]rights.Principal
	tokens map[string]string // with all that somebody may do; "" is nobody

	mu      sync.Mutex
	bundles map[string]webapi.Bundle // guarded by mu
	hot     []alert.Sample           // guarded by mu
	n       int                      // of boxes made
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

type records struct{ *world }

func (r records) Record(ctx context.Context, e device.Entry) error {
	return r.db.Write(ctx, func(tx *db.Tx) error {
		return r.log.Record(tx, auditlog.Entry{ID: e.ID, At: e.At, Actor: e.By, Action: e.Action, Kind: "device", Object: string(e.Device), Before: e.Before, After: e.After})
	})
}

type jobRecords struct{ records }

func (r jobRecords) Record(ctx context.Context, e job.Entry) error {
	return r.records.Record(ctx, device.Entry(e))
}

type alertRecords struct{ *world }

func (r alertRecords) Record(tx *db.Tx, e alert.Entry) error {
	return r.log.Record(tx, auditlog.Entry{Actor: e.By, Action: e.Action, Object: e.Object, Before: e.Before, After: e.After})
}

type authRecords struct{ *world }

func (r authRecords) Record(tx *db.Tx, e auth.Entry) error {
	return r.log.Record(tx, auditlog.Entry(e))
}

func (w *world) Publish(context.Context, croft.DeviceID, fleetapi.Payload) error { return nil }

func (w *world) Allowed(ctx context.Context, actor job.Actor, id croft.DeviceID) error {
	_, err := w.devices.Box(ctx, device.Actor(actor), id)
	return err
}

func (w *world) Select(ctx context.Context, actor job.Actor, selector string) (ids []croft.DeviceID, err error) {
	boxes, _, err := w.devices.List(ctx, device.Actor(actor), device.Query{Selector: selector, Limit: 500})
	for _, b := range boxes {
		ids = append(ids, b.ID)
	}
	return ids, err
}

func (w *world) Known(ctx context.Context, ids []croft.DeviceID) (map[croft.DeviceID]bool, error) {
	return w.devices.Known(ctx, ids)
}

func (w *world) Ask(_ context.Context, expr string) ([]alert.Sample, error) {
	if strings.Contains(expr, "(((") {
		return nil, &croft.Error{Kind: croft.KindUsage, Err: errors.New("parse error")}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.hot), nil
}

func (w *world) Boxes(ctx context.Context) (out []alert.Box, err error) {
	boxes, _, err := w.devices.List(ctx, device.Actor{Staff: true}, device.Query{Limit: 500})
	for _, b := range boxes {
		out = append(out, alert.Box{ID: b.ID, Name: b.Name, Owner: b.Claim.Owner, Labels: b.Labels, Heard: true, Online: b.Online, Seen: b.Seen})
	}
	return out, err
}

func (w *world) Email(context.Context, string) (string, error) { return "", nil }

type noMail struct{}

func (noMail) Send(context.Context, alert.Mail) error { return nil }

func (w *world) Send(ctx context.Context, _, _, text string) error {
	select {
	case w.mails <- text:
	case <-ctx.Done():
	}
	return nil
}

func (w *world) List(_ context.Context, id croft.DeviceID) (out []webapi.Bundle, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(w.bundles)) {
		if b := w.bundles[key]; b.Device == id {
			out = append(out, b)
		}
	}
	return out, nil
}

const bundleText = "a bundle of <b>things</b>"

func (w *world) Open(_ context.Context, id string) (io.ReadCloser, webapi.Bundle, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, ok := w.bundles[id]
	if !ok {
		return nil, b, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such bundle")}
	}
	return io.NopCloser(strings.NewReader(bundleText)), b, nil
}

func (w *world) addBundle(b webapi.Bundle) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b.Bytes, b.Made = int64(len(bundleText)), time.Now()
	w.bundles[b.ID] = b
}

// each runs a test once per engine.
func each(t *testing.T, test func(t *testing.T, w *world)) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) { test(t, newWorld(t, d)) })
}

func newWorld(t *testing.T, d *db.DB) *world {
	t.Helper()
	ctx := t.Context()
	key := bytes.Repeat([]byte{9}, 32)
	w := &world{t: t, db: d, mails: make(chan string), who: map[string]rights.Principal{}, tokens: map[string]string{}, bundles: map[string]webapi.Bundle{}}
	w.log = must(auditlog.Open(ctx, d, key))(t)
	w.devices = must(device.New(ctx, device.Config{
		DB: d, ClaimKey: must(enroll.NewClaimKey(key))(t), Revoked: &enroll.Revocations{}, Publisher: w, Audit: records{w},
	}))(t)
	w.jobs = must(job.New(ctx, job.Config{DB: d, Boxes: w, Publisher: w, Audit: jobRecords{records{w}}}))(t)
	w.alerts = must(alert.New(ctx, alert.Config{DB: d, Readings: w, Boxes: w, Owners: w, Mailer: noMail{}, Audit: alertRecords{w}, Key: key}))(t)
	w.auth = must(auth.New(ctx, auth.Config{DB: d, Key: key, Auditor: authRecords{w}, Mailer: w, Origin: origin}))(t)
	w.series = must(timeseries.New(timeseries.Config{Dir: t.TempDir(), MinFree: 1}))(t)
	t.Cleanup(func() { check(t, w.series.Close()) })
	door := must(authhttp.New(authhttp.Config{Auth: w.auth, Key: key, Origin: origin}))(t)
	w.api = must(webapi.New(ctx, webapi.Config{
		DB: d, Door: door, Devices: w.devices, Jobs: w.jobs, Alerts: w.alerts, Auth: w.auth, AuditLog: w.log, Series: w.series, Bundles: w,
	}))(t)
	w.h = door.Guard(w.api.Handler())

	working, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		if err := w.auth.Run(working); err != nil {
			t.Error(err)
		}
	})
	defer work.Wait()
	defer cancel()
	w.people(working)
	return w
}

var inMail = regexp.MustCompile(`\?token=(\S+)`)

func (w *world) link() secret.Text {
	w.t.Helper()
	found := inMail.FindStringSubmatch(<-w.mails)
	if found == nil {
		w.t.Fatal("a mail has no link")
	}
	return secret.New(must(url.QueryUnescape(found[1]))(w.t))
}

// people makes one of each role, and their tokens.
func (w *world) people(ctx context.Context) {
	w.t.Helper()
	client := auth.Client{Address: home, Agent: "test", Browser: secret.Random()}
	for _, name := range []string{"ada", "bob"} {
		check(w.t, w.auth.RequestLink(ctx, client, name+"@example.org"))
		w.who[name] = must(w.auth.RedeemLink(ctx, client, rights.Principal{}, w.link(), false))(w.t).Principal
	}
	accept := func(token secret.Text, email string) rights.Principal {
		half := must(w.auth.Accept(ctx, client, token, email, "", secret.New("a field of 7 sheep")))(w.t).Principal
		u := must(url.Parse(must(w.auth.BeginTOTP(ctx, half))(w.t).Reveal()))(w.t)
		code := must(totp.GenerateCode(u.Query().Get("secret"), time.Now()))(w.t)
		return must(w.auth.ConfirmTOTP(ctx, client, half, code))(w.t).Principal
	}
	w.who["admin"] = accept(must(w.auth.Bootstrap(ctx))(w.t), "root@example.org")
	for _, role := range []rights.Role{rights.RoleSupport, rights.RoleOperator} {
		email := string(role) + "@example.org"
		_ = must(w.auth.Invite(ctx, client, w.who["admin"], email, role))(w.t)
		w.who[string(role)] = accept(w.link(), email)
	}
	for name, p := range w.who {
		var scopes []rights.Permission
		for _, s := range rights.Permissions() {
			if p.Role.Grants(s) != rights.None {
				scopes = append(scopes, s)
			}
		}
		w.tokens[name] = w.token(ctx, name, scopes...)
	}
}

func (w *world) token(ctx context.Context, of string, scopes ...rights.Permission) string {
	w.t.Helper()
	key := of + ": " + rights.FormatScopes(scopes)
	if w.tokens[key] == "" {
		token, _, err := w.auth.CreateToken(ctx, auth.Client{Address: home}, w.who[of], "test", rights.FormatScopes(scopes), time.Hour)
		check(w.t, err)
		w.tokens[key] = token.Reveal()
	}
	return w.tokens[key]
}

// codeOf is the claim code on the screen of box n.
func codeOf(n int) string {
	const symbols = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	code := []byte("BX000000")
	for i := len(code) - 1; n > 0; i, n = i-1, n/32 {
		code[i] = symbols[n%32]
	}
	return string(code)
}

// free makes a box that is nobody's, and says its claim code.
func (w *world) free() (croft.DeviceID, string) {
	w.t.Helper()
	w.n++
	id := croft.DeviceIDFromDigest(sha256.Sum256(fmt.Append(nil, "box ", w.n)))
	_, err := w.devices.Enrol(w.t.Context(), enroll.Policy{FirstUse: enroll.FirstUseOpen},
		&enroll.Request{Version: 1, Board: "uefi-x86", Release: "1.0.0", Claim: enroll.HashClaim(codeOf(w.n))}, id, home,
		func(_ []byte, now time.Time) (*enroll.Issued, error) {
			return &enroll.Issued{Device: id, ID: enroll.CertID(fmt.Sprintf("c%06d", w.n)), NotBefore: now, NotAfter: now.Add(enroll.LeafLife)}, nil
		})
	check(w.t, err)
	return id, codeOf(w.n)
}

// box makes a box of somebody's.
func (w *world) box(owner string) croft.DeviceID {
	w.t.Helper()
	id, code := w.free()
	account := w.who[owner].Account
	_ = must(w.devices.StartClaim(w.t.Context(), device.Claimant{Account: account, Address: home}, code))(w.t)
	_ = must(w.devices.ConfirmClaim(w.t.Context(), account, id))(w.t)
	return id
}

// say has a box say something.
func (w *world) say(id croft.DeviceID, payloads ...fleetapi.Payload) {
	w.t.Helper()
	var messages []device.Message
	for _, p := range payloads {
		messages = append(messages, device.Message{Device: id, At: time.Now(), Address: home, Payload: p})
	}
	if strangers := must(w.devices.Receive(w.t.Context(), messages))(w.t); strangers != 0 {
		w.t.Fatalf("%d of the boxes are strangers", strangers)
	}
}

func (w *world) online(id croft.DeviceID) {
	w.say(id, &fleetapi.Hello{
		Journal: 7, Epoch: 1, Version: 1, At: time.Now(), Synced: true, BootID: "b", Release: "1.0.0", Slot: croft.SlotA, Board: "uefi-x86",
		Facts: fleetapi.Labels(map[string]string{"cpu_model": "Intel N100"}),
	}, &fleetapi.State{Presence: fleetapi.Online, Journal: 7, Epoch: 1})
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends a request with a token. body is JSON, or a text as it is.
func (w *world) ask(token, method, path string, body any, headers ...string) answer {
	w.t.Helper()
	var raw []byte
	switch body := body.(type) {
	case nil:
	case string:
		raw = []byte(body)
	default:
		raw = must(json.Marshal(body))(w.t)
	}
	r := httptest.NewRequest(method, origin+fleetclient.Prefix+path, bytes.NewReader(raw))
	if len(raw) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	w.h.ServeHTTP(rec, r.WithContext(w.t.Context()))
	return answer{rec.Code, rec.Header(), rec.Body.String()}
}

// want reads an answer that must have a status.
func want[T any](t testing.TB, a answer, status int) T {
	t.Helper()
	var out T
	if a.status != status {
		t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	if a.body != "" {
		check(t, json.Unmarshal([]byte(a.body), &out))
	}
	return out
}
