package fleetcmd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/fleetcmd"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
	"github.com/croft-cloud/croft/fleet/webapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

var update = flag.Bool("update", false, "rewrite the golden files")

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

// fleet is the real API over real stores on SQLite. The token is the name of an
// account: how people get theirs is package auth's test.
type fleet struct {
	t       *testing.T
	devices *device.Store
	jobs    *job.Store
	log     *auditlog.Log
	db      *db.DB
	url     string
	bundle  *webapi.Bundle
}

var people = map[string]rights.Principal{
	"ada":  {Account: "own_ada", Role: rights.RoleOwner, Session: "ses_1", Stage: rights.StageFull},
	"root": {Account: "usr_root", Role: rights.RoleAdmin, Session: "ses_2", Stage: rights.StageFull},
}

type jobAudit struct{ *fleet }

func (a jobAudit) Record(ctx context.Context, e job.Entry) error {
	return a.fleet.Record(ctx, device.Entry(e))
}

type silent struct{}

func (silent) Record(*db.Tx, alert.Entry) error                                { return nil }
func (silent) Send(context.Context, alert.Mail) error                          { return nil }
func (silent) Ask(context.Context, string) ([]alert.Sample, error)             { return nil, nil }
func (silent) Boxes(context.Context) ([]alert.Box, error)                      { return nil, nil }
func (silent) Email(context.Context, string) (string, error)                   { return "", nil }
func (silent) Publish(context.Context, croft.DeviceID, fleetapi.Payload) error { return nil }

type noAudit struct{}

func (noAudit) Record(*db.Tx, auth.Entry) error { return nil }

func (f *fleet) Record(ctx context.Context, e device.Entry) error {
	return f.db.Write(ctx, func(tx *db.Tx) error {
		return f.log.Record(tx, auditlog.Entry{ID: e.ID, At: e.At, Actor: e.By, Action: e.Action, Object: string(e.Device), Before: e.Before, After: e.After})
	})
}

func (f *fleet) Allowed(ctx context.Context, actor job.Actor, id croft.DeviceID) error {
	_, err := f.devices.Box(ctx, device.Actor(actor), id)
	return err
}

func (f *fleet) Select(ctx context.Context, actor job.Actor, selector string) (ids []croft.DeviceID, err error) {
	boxes, _, err := f.devices.List(ctx, device.Actor(actor), device.Query{Selector: selector})
	for _, b := range boxes {
		ids = append(ids, b.ID)
	}
	return ids, err
}

func (f *fleet) Known(ctx context.Context, ids []croft.DeviceID) (map[croft.DeviceID]bool, error) {
	return f.devices.Known(ctx, ids)
}

func (f *fleet) List(context.Context, croft.DeviceID) ([]webapi.Bundle, error) {
	if f.bundle == nil {
		return nil, nil
	}
	return []webapi.Bundle{*f.bundle}, nil
}

func (f *fleet) Open(context.Context, string) (io.ReadCloser, webapi.Bundle, error) {
	if f.bundle == nil {
		return nil, webapi.Bundle{}, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such bundle")}
	}
	return io.NopCloser(strings.NewReader("all about the box")), *f.bundle, nil
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	ctx, key := t.Context(), bytes.Repeat([]byte{9}, 32)
	d := dbtest.Open(t, dbtest.URL(t, dbtest.SQLite))
	f := &fleet{t: t, db: d}
	f.log = must(auditlog.Open(ctx, d, key))(t)
	f.devices = must(device.New(ctx, device.Config{DB: d, ClaimKey: must(enroll.NewClaimKey(key))(t), Revoked: &enroll.Revocations{}, Publisher: silent{}, Audit: f}))(t)
	f.jobs = must(job.New(ctx, job.Config{DB: d, Boxes: f, Publisher: silent{}, Audit: jobAudit{f}}))(t)
	alerts := must(alert.New(ctx, alert.Config{DB: d, Readings: silent{}, Boxes: silent{}, Owners: silent{}, Mailer: silent{}, Audit: silent{}, Key: key}))(t)
	people := must(auth.New(ctx, auth.Config{DB: d, Key: key, Auditor: noAudit{}, Origin: "https://fleet.example.org"}))(t)
	series := must(timeseries.New(timeseries.Config{Dir: t.TempDir(), MinFree: 1}))(t)
	t.Cleanup(func() { check(t, series.Close()) })
	door := must(authhttp.New(authhttp.Config{Auth: people, Key: key, Origin: "https://fleet.example.org"}))(t)
	api := must(webapi.New(ctx, webapi.Config{DB: d, Door: door, Devices: f.devices, Jobs: f.jobs, Alerts: alerts, Auth: people, AuditLog: f.log, Series: series, Bundles: f}))(t)
	server := httptest.NewServer(f.guard(api.Handler()))
	t.Cleanup(server.Close)
	f.url = server.URL
	t.Setenv("CROFT_HOME", t.TempDir())
	return f
}

// guard stands for the door. After a bundle was asked for, the box has it.
func (f *fleet) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := people[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		rec := httptest.NewRecorder()
		to := w
		bundle := r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/bundles")
		if bundle {
			to = rec
		}
		next.ServeHTTP(to, r.WithContext(rights.NewContext(r.Context(), p)))
		if !bundle {
			return
		}
		var j struct {
			ID     string
			Device croft.DeviceID
			State  string
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &j); err == nil && j.ID != "" {
			f.bundle = &webapi.Bundle{ID: "bun_1", Device: j.Device, Job: j.ID, Name: "../../bundle.zip", Bytes: 17, Made: time.Now()}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(rec.Code)
		_, _ = w.Write(bytes.Replace(rec.Body.Bytes(), []byte(`"QUEUED"`), []byte(`"SUCCEEDED"`), 1))
	})
}

// box makes a box of an account's, or nobody's.
func (f *fleet) box(n int, owner string) croft.DeviceID {
	f.t.Helper()
	ctx := f.t.Context()
	id := croft.DeviceIDFromDigest(sha256.Sum256(fmt.Append(nil, "box ", n)))
	code := fmt.Sprintf("BX00000%d", n)
	_, err := f.devices.Enrol(ctx, enroll.Policy{FirstUse: enroll.FirstUseOpen}, &enroll.Request{Version: 1, Board: "uefi-x86", Release: "1.0.0", Claim: enroll.HashClaim(code)}, id, home,
		func(_ []byte, now time.Time) (*enroll.Issued, error) {
			return &enroll.Issued{Device: id, ID: enroll.CertID(fmt.Sprintf("c%06d", n)), NotBefore: now, NotAfter: now.Add(enroll.LeafLife)}, nil
		})
	check(f.t, err)
	if owner != "" {
		_ = must(f.devices.StartClaim(ctx, device.Claimant{Account: owner, Address: home}, code))(f.t)
		_ = must(f.devices.ConfirmClaim(ctx, owner, id))(f.t)
	}
	say := func(p fleetapi.Payload) {
		_ = must(f.devices.Receive(ctx, []device.Message{{Device: id, At: time.Now(), Address: home, Payload: p}}))(f.t)
	}
	say(&fleetapi.Hello{
		Journal: 7, Epoch: 1, Version: 1, At: time.Now(), Synced: true, BootID: "b", Release: "1.0.0", Slot: croft.SlotA, Board: "uefi-x86",
		Facts: fleetapi.Labels(map[string]string{"cpu_model": "Intel N100"}),
	})
	say(&fleetapi.State{Presence: fleetapi.Online, Journal: 7, Epoch: 1})
	say(&fleetapi.LogLines{Lines: []fleetapi.LogLine{{At: time.Now(), Level: "info", Text: "agent started"}}})
	return id
}

// run is `croft ARGS`.
func run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	root := &cobra.Command{Use: "croft", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(fleetcmd.Commands()...)
	var out bytes.Buffer
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func (f *fleet) login(who string) {
	f.t.Helper()
	_ = must(run(f.t, who+"\n", "login", f.url))(f.t)
}

var changing = []struct {
	was *regexp.Regexp
	is  string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ`), "<time>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z`), "<time>"},
	{regexp.MustCompile(`\b(job|evt|alr|grp)_[0-9A-Z]{26}`), "<$1>"},
	{regexp.MustCompile(`0-\d{6,}`), "<event>"},
	{regexp.MustCompile(`\b[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}\b`), "<code>"},
	{regexp.MustCompile(`http://127.0.0.1:\d+`), "<url>"},
}

// TestGolden is an operator's day, and an owner's.
func TestGolden(t *testing.T) {
	f := newFleet(t)
	a, b := f.box(1, "own_ada"), f.box(2, "own_bob")
	c := f.box(3, "")
	var out strings.Builder
	step := func(args ...string) {
		t.Helper()
		text, err := run(t, "", args...)
		fmt.Fprintf(&out, "$ croft %s\n%s", strings.Join(args, " "), text)
		if err != nil {
			fmt.Fprintf(&out, "error (%s): %v\n", croft.KindOf(err), err)
		}
		out.WriteString("\n")
	}
	step("device", "list")
	text, err := run(t, "root\n", "login", f.url)
	check(t, err)
	fmt.Fprintf(&out, "$ croft login URL\n%s\n", text)
	step("fleet", "overview")
	step("device", "label", string(a), "site=lab", "tier=a")
	step("device", "set-name", string(b), "Attic")
	step("device", "list", "-o", "wide")
	step("device", "list", "--limit", "1")
	step("device", "list", "-l", "site=lab", "-o", "yaml")
	step("device", "list", "--selector", "((")
	step("device", "get", "Attic")
	step("device", "get", "nothing")
	step("device", "get", "croft-")
	step("device", "log", string(a))
	step("job", "start", "reboot", "--selector", "site=lab", "--idempotency-key", "monday")
	step("job", "start", "reboot", "--selector", "site=lab", "--idempotency-key", "monday")
	step("job", "start", "reboot", "--all")
	step("job", "start", "reboot")
	step("job", "list")
	step("job", "start", "locate", string(b), "-o", "json")
	step("device", "describe", string(a))
	step("alert", "list")
	step("alert", "rules")
	step("alert", "ack", "alr_01ARZ3NDEKTSV4RRFFQ69G5FAV", "--note", "mine")
	for n := range 3 {
		check(t, f.db.Write(t.Context(), func(tx *db.Tx) error {
			return f.log.Record(tx, auditlog.Entry{Actor: "own_ada", Action: "device.name", Object: string(a), Before: map[string]string{"name": ""}, After: map[string]string{"name": fmt.Sprint("\x1b[31m", n)}})
		}))
	}
	step("audit", "--limit", "2")
	step("audit", "--action", "claim.")
	step("audit", "--since", "yesterday")
	step("owner", "list")
	step("owner", "get", "own_none")
	step("device", "retire", string(b))
	step("device", "retire", string(b), "--yes")
	step("device", "retire", string(b), "--yes")
	step("device", "transfer", string(a), "--yes")
	f.login("ada")
	step("device", "list")
	step("device", "get", string(b))
	step("device", "claim", "BX000003", "--yes")
	step("device", "claim", "BX000003", "--yes")
	step("device", "transfer", string(a), "--withdraw")
	step("device", "release", string(c), "--yes")
	step("fleet", "overview")
	step("device", "list", "-o", "html")
	got := out.String()
	for _, change := range changing {
		got = change.was.ReplaceAllString(got, change.is)
	}
	const path = "testdata/golden.txt"
	if *update {
		check(t, os.MkdirAll("testdata", 0o755))
		check(t, os.WriteFile(path, []byte(got), 0o644))
	}
	if want := string(must(os.ReadFile(path))(t)); got != want {
		t.Errorf("%s is no longer right, -update writes it:\n%s", path, got)
	}
}

func TestTheTokenIsTheUsersAlone(t *testing.T) {
	f := newFleet(t)
	file := filepath.Join(t.TempDir(), "token")
	check(t, os.WriteFile(file, []byte("ada\n"), 0o600))
	if out := must(run(t, "", "login", f.url+"/", "--token-file", file))(t); strings.Contains(out, "token-file") || !strings.Contains(out, "own_ada") {
		t.Errorf("login says %q", out)
	}
	info := must(os.Stat(filepath.Join(os.Getenv("CROFT_HOME"), "fleets.json")))(t)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v", info.Mode())
	}
	for _, wrong := range []struct{ token, url string }{
		{"eve", f.url}, {"", f.url}, {"a b", f.url}, {"ada", "http://fleet.example.org"}, {"ada", "ftp://fleet.example.org"}, {"ada", "https://ada:x@fleet.example.org"},
	} {
		if _, err := run(t, wrong.token, "login", wrong.url); err == nil {
			t.Errorf("logged in to %s with %q", wrong.url, wrong.token)
		}
	}
	if out := must(run(t, "", "device", "list", "-o", "json"))(t); strings.TrimSpace(out) != "[]" {
		t.Errorf("after wrong logins: %q", out)
	}
	t.Setenv(fleetcmd.TokenVariable, "eve")
	if _, err := run(t, "", "device", "list"); croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), "croft login") {
		t.Errorf("with another token: %v", err)
	}
}

func TestSupportBundle(t *testing.T) {
	f := newFleet(t)
	id := f.box(1, "own_ada")
	f.login("root")
	t.Chdir(t.TempDir())
	out := must(run(t, "", "support", "bundle", string(id)))(t)
	if raw := must(os.ReadFile("bundle.zip"))(t); string(raw) != "all about the box" {
		t.Errorf("file has %q", raw)
	}
	if !strings.Contains(out, "SUCCEEDED") || !strings.Contains(out, "bundle.zip (17 bytes)") {
		t.Errorf("it says %q", out)
	}
	_ = must(run(t, "", "support", "bundle", string(id), "-o", "mine"))(t)
	if left := must(os.ReadDir("."))(t); len(left) != 2 {
		t.Errorf("left behind: %v", left)
	}
	f.login("ada")
	if _, err := run(t, "", "support", "bundle", string(id)); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("an owner collects a bundle: %v", err)
	}
}

// TestWatch follows a box until it is no longer the owner's.
func TestWatch(t *testing.T) {
	f := newFleet(t)
	id := f.box(1, "own_ada")
	f.login("ada")
	root := &cobra.Command{Use: "croft", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(fleetcmd.Commands()...)
	read, write := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	root.SetOut(write)
	root.SetArgs([]string{"device", "list", "--watch", "-o", "json"})
	ended := make(chan error, 1)
	go func() {
		ended <- root.ExecuteContext(ctx)
		_ = write.Close()
	}()
	lines := json.NewDecoder(read)
	var change struct {
		Device struct{ ID croft.DeviceID }
		Gone   croft.DeviceID
	}
	check(t, lines.Decode(&change))
	if change.Device.ID != id {
		t.Errorf("first line: %+v", change)
	}
	check(t, f.devices.Release(ctx, "own_ada", id))
	check(t, lines.Decode(&change))
	if change.Gone != id {
		t.Errorf("second line: %+v", change)
	}
	cancel()
	check(t, <-ended)
}
