package webapi_test

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/webapi"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// callers are the columns of the matrix: ada has the box, bob has not. "scope" is
// an admin's token, or for what only owners may ada's, with the one scope that the
// route needs; "wrong" is the same person's without it.
var callers = []string{"nobody", "ada", "bob", "support", "operator", "admin", "scope", "wrong"}

// request is a right request to a route, with things made for it alone: a box of
// ada's, a job of it, an alert rule and so on.
func (w *world) request(r webapi.Route) (path string, body any, headers []string) {
	w.t.Helper()
	ctx := w.t.Context()
	staff := alert.Actor{ID: "usr_staff", Staff: true}
	path = strings.TrimPrefix(r.Pattern, fleetclient.Prefix)
	route := r.Method + " " + path
	set := func(name, value string) { path = strings.ReplaceAll(path, "{"+name+"}", value) }
	if strings.Contains(path, "{device}") || route == "POST /jobs" || route == "GET /jobs" {
		id := w.box("ada")
		switch {
		case strings.HasPrefix(path, "/claims/"):
			var code string
			id, code = w.free()
			_ = must(w.devices.StartClaim(ctx, device.Claimant{Account: w.who["ada"].Account, Address: home}, code))(w.t)
		case route == "POST /devices/{device}/free-voucher":
			check(w.t, w.devices.Retire(ctx, device.Actor{ID: "usr_staff", Staff: true}, id))
		case route == "DELETE /devices/{device}/transfer":
			_, _, err := w.devices.OfferTransfer(ctx, w.who["ada"].Account, id)
			check(w.t, err)
		}
		set("device", string(id))
		switch route {
		case "POST /jobs":
			body = fleetclient.NewJob{Device: id, Kind: fleetapi.KindReboot}
		case "GET /jobs":
			path += "?device=" + string(id)
		case "PATCH /devices/{device}":
			body = map[string]any{"name": "Kitchen"}
		}
	}
	switch {
	case strings.HasPrefix(path, "/jobs/{id}"):
		set("id", must(w.jobs.Queue(ctx, job.Actor{ID: "usr_staff", Staff: true}, job.Order{Device: w.box("ada"), Kind: fleetapi.KindReboot}))(w.t).ID)
	case strings.HasPrefix(path, "/groups/{id}"):
		w.n++
		set("id", must(w.devices.SaveGroup(ctx, device.Actor{ID: "usr_staff", Staff: true}, device.Group{Name: fmt.Sprint("g", w.n)}))(w.t).ID)
	case strings.HasPrefix(path, "/rules/{id}"):
		set("id", must(w.alerts.SaveRule(ctx, staff, rule))(w.t).ID)
	case strings.HasPrefix(path, "/silences/{id}"):
		set("id", must(w.alerts.AddSilence(ctx, staff, alert.Silence{Selector: "a=b", Why: "a test", Until: time.Now().Add(time.Hour)}))(w.t).ID)
	case strings.HasPrefix(path, "/receivers/{id}"):
		made, _, err := w.alerts.AddReceiver(ctx, staff, alert.Receiver{Name: "Staff", Kind: alert.Email, Address: "a@example.org"})
		check(w.t, err)
		set("id", made.ID)
	case strings.HasPrefix(path, "/bundles/{id}"):
		w.n++
		id := fmt.Sprint("bun_", w.n)
		w.addBundle(webapi.Bundle{ID: id, Device: w.box("ada")})
		set("id", id)
	case strings.HasPrefix(path, "/owners/{id}"):
		set("id", w.who["ada"].Account)
	case strings.HasPrefix(path, "/alerts/{id}"):
		set("id", fleetapi.NewID("alr")) // there is none: who may gets 404
	}
	set("what...", "query?query=1")
	switch route {
	case "GET /search":
		path += "?q=bx"
	case "POST /claims":
		_, code := w.free()
		body = fleetclient.ClaimCode{Code: code}
	case "POST /serials":
		body, headers = "serial_number,voucher,claim\nCR-1,,\n", []string{"Content-Type", "text/csv"}
	case "POST /groups", "PUT /groups/{id}":
		w.n++
		body = fleetclient.Group{Name: fmt.Sprint("group ", w.n), Selector: "site=lab"}
	case "POST /jobs/bulk":
		body, headers = fleetclient.BulkJob{Selector: "site=none", Kind: fleetapi.KindReboot}, []string{fleetclient.IdempotencyHeader, "k"}
	case "POST /alerts/{id}/ack":
		body = fleetclient.Ack{Note: "mine"}
	case "POST /rules", "PUT /rules/{id}":
		body = fleetclient.Rule{Name: "Hot", Expr: "hot > 85", For: fleetclient.Duration(time.Minute), Severity: "warning", Sentence: "{box} is hot"}
	case "POST /silences":
		body = fleetclient.Silence{Selector: "a=b", Why: "a test", Until: fleetapi.StampOf(time.Now().Add(time.Hour))}
	case "POST /receivers":
		body = fleetclient.Receiver{Name: "Staff", Kind: "email", Address: "a@example.org"}
	case "PATCH /receivers/{id}":
		body = map[string]any{"name": "Night shift"}
	case "PUT /quiet-hours":
		body = fleetclient.QuietHours{From: 1320, To: 420}
	}
	return path, body, headers
}

var rule = alert.Rule{Name: "Hot", Expr: "hot > 85", For: time.Minute, Severity: fleetapi.SeverityWarning, Sentence: "{box} is hot"}

// TestMatrix asks every route as everybody. The golden file is the table to review;
// what is checked besides follows from the table of package rights.
func TestMatrix(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		var table strings.Builder
		fmt.Fprintf(&table, "%-48s", "route")
		for _, c := range callers {
			fmt.Fprintf(&table, " %-8s", c)
		}
		table.WriteString("\n")
		for _, r := range webapi.Routes() {
			fmt.Fprintf(&table, "%-48s", r.Method+" "+strings.TrimPrefix(r.Pattern, fleetclient.Prefix))
			for _, caller := range callers {
				got := w.statusFor(r, caller)
				fmt.Fprintf(&table, " %-8d", got)
				w.judge(r, caller, got)
			}
			table.WriteString("\n")
		}
		golden(t, "testdata/matrix.txt", table.String())
	})
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(got) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	got = strings.Join(lines, "\n") + "\n"
	if *update {
		check(t, os.MkdirAll("testdata", 0o755))
		check(t, os.WriteFile(path, []byte(got), 0o644))
	}
	if want := string(must(os.ReadFile(path))(t)); got != want {
		t.Errorf("%s is no longer right, -update writes it:\n%s", path, got)
	}
}

// statusFor is the status that a caller gets for a right request.
func (w *world) statusFor(r webapi.Route, caller string) int {
	w.t.Helper()
	path, body, headers := w.request(r)
	token := w.tokens[caller]
	if caller == "scope" || caller == "wrong" {
		of := "admin"
		scopes := []rights.Permission{{Resource: rights.Session, Action: rights.Read}}
		if len(r.Need) > 0 {
			if rights.RoleAdmin.Grants(r.Need[0]) == rights.None {
				of = "ada"
			}
			if caller == "scope" {
				scopes = r.Need[:1]
			}
		}
		token = w.token(w.t.Context(), of, scopes...)
	}
	if r.Produces == "text/event-stream" {
		return w.firstStatus(token, path)
	}
	return w.ask(token, r.Method, path, body, headers...).status
}

// firstStatus is the status of an answer that does not end by itself.
func (w *world) firstStatus(token, path string) int {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	rec := &stopper{header: http.Header{}, stop: cancel}
	r := must(http.NewRequestWithContext(ctx, http.MethodGet, origin+fleetclient.Prefix+path, http.NoBody))(w.t)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w.h.ServeHTTP(rec, r)
	return rec.status
}

// stopper hangs up once an answer began.
type stopper struct {
	header http.Header
	status int
	stop   func()
}

func (s *stopper) Header() http.Header { return s.header }
func (s *stopper) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
}

func (s *stopper) Write(raw []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	s.stop()
	return len(raw), nil
}
func (s *stopper) Flush() {}

// judge holds a status against what follows from the rights alone.
func (w *world) judge(r webapi.Route, caller string, got int) {
	w.t.Helper()
	fault := ""
	reach := rights.None
	for _, n := range r.Need {
		if whose := rights.Reach(w.who[caller], n.Resource, n.Action); whose == rights.All || whose == rights.Own && !r.Everything && reach == rights.None {
			reach = whose
		}
	}
	switch {
	case r.Public:
		if got != http.StatusOK {
			fault = "it is for everybody"
		}
	case caller == "nobody":
		if got != http.StatusUnauthorized {
			fault = "nobody must sign in"
		}
	case len(r.Need) == 0:
		if got != http.StatusOK {
			fault = "it is for whoever is signed in"
		}
	case caller == "wrong":
		if got != http.StatusForbidden {
			fault = "the token has not the scope"
		}
	case caller == "scope":
		if got/100 != 2 && got != http.StatusNotFound {
			fault = "the token has the scope"
		}
	case reach == rights.None:
		if got != http.StatusForbidden {
			fault = "the rights do not allow it"
		}
	case caller == "bob" && strings.Contains(r.Pattern, "{"):
		if got != http.StatusNotFound && !strings.Contains(r.Pattern, "/prometheus/") {
			fault = "it is ada's"
		}
	case got/100 != 2 && !strings.Contains(r.Pattern, "/alerts/{id}"):
		if r.Pattern != fleetclient.Prefix+"/jobs" || caller != "bob" {
			fault = "the rights allow it"
		}
	}
	if fault != "" {
		w.t.Errorf("%s %s as %s: %d, but %s", r.Method, r.Pattern, caller, got, fault)
	}
}
