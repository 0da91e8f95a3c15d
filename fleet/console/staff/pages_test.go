package staff_test

import (
	"bytes"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
)

// TestRoutesAreForThoseWhoMay asks every route as everybody. Beyond who gets in it
// finds forms that nobody guards.
func TestRoutesAreForThoseWhoMay(t *testing.T) {
	w := newWorld(t, origin)
	w.newOwner("ann@example.org")
	id := w.box(1)
	order := must(w.jobs.Queue(t.Context(), job.Actor(boss), job.Order{Device: id, Kind: fleetapi.KindLocate}))(t)
	w.bundles["bun_1"] = bundle.Info{ID: "bun_1", Device: id, Created: time.Now(), Expires: time.Now().Add(time.Hour)}
	fill := strings.NewReplacer("{id}", string(id), "{job}", order.ID, "{bundle}", "bun_1", "{chart}", "cpu")
	for pattern, need := range w.pages.Needs() {
		method, path, _ := strings.Cut(pattern, " ")
		path = fill.Replace(path)
		if strings.HasPrefix(path, "/fleet/people/") {
			path = "/fleet/people/" + w.ids[rights.RoleOwner]
		}
		for _, role := range append(rights.Roles(), "") {
			b := w.as(role)
			may := role.Staff() && role.Grants(need) == rights.All
			var rec *httptest.ResponseRecorder
			switch {
			case method == "GET":
				rec = b.get(path)
			case role == "":
				rec = b.send(path, "form_token", "x")
			default:
				if got := b.send(path, "form_token", "x").Code; got != http.StatusForbidden {
					t.Errorf("%s as %s with a forged token: %d", pattern, role, got)
				}
				if may {
					continue // what it does, other tests see
				}
				rec = b.send(path, "form_token", b.token())
			}
			got, to := rec.Code, rec.Header().Get("Location")
			switch {
			case role == "":
				if got != http.StatusSeeOther || !strings.HasPrefix(to, "/login") {
					t.Errorf("%s as nobody: %d to %q", pattern, got, to)
				}
			case may && got >= 400 && path != "/fleet/alerts/receiver" && path != "/fleet/bulk/result": // those need an id
				t.Errorf("%s as %s: %d, want that it works\n%s", pattern, role, got, rec.Body)
			case !may && got != http.StatusForbidden:
				t.Errorf("%s as %s: %d to %q, want 403", pattern, role, got, to)
			}
		}
	}
	if j := must(w.jobs.Job(t.Context(), job.Actor(boss), order.ID))(t); j.Canceling || j.State.Final() {
		t.Errorf("somebody canceled the job: %+v", j)
	}
}

// token is a form's token of somebody who has no page with a form.
func (b *browser) token() string {
	rec := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, b.origin+"/auth/me", nil)
	r.Header.Set("Accept", "application/json")
	for name, value := range b.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	b.h.ServeHTTP(rec, r)
	return regexp.MustCompile(`"form_token":"([^"]+)"`).FindStringSubmatch(rec.Body.String())[1]
}

func TestFormsAreOnlyShownToThoseWhoMay(t *testing.T) {
	w := newWorld(t, origin)
	w.newOwner("ann@example.org")
	id := w.box(1)
	box := "/fleet/boxes/" + string(id)
	action := regexp.MustCompile(`(?:action|href|formaction)="(/(?:fleet|auth)/[^"?#]*)`)
	for _, tc := range []struct {
		page  string
		forms map[rights.Role][]string // what stands on it for this role and those above
	}{
		{box, map[rights.Role][]string{
			rights.RoleSupport:  {box + "/jobs", box + "/reboot"},
			rights.RoleOperator: {box + "/labels", box + "/interval", box + "/revoke", box + "/retire"},
		}},
		{"/fleet/boxes", map[rights.Role][]string{rights.RoleSupport: {"/fleet/bulk/jobs"}, rights.RoleOperator: {"/fleet/bulk/labels"}}},
		{"/fleet/alerts/rules", map[rights.Role][]string{rights.RoleOperator: {"/fleet/alerts/receivers", "/fleet/audit"}}},
		{"/fleet/alerts/silences", map[rights.Role][]string{rights.RoleOperator: {"/fleet/alerts/silences#form"}}},
		{"/fleet/alerts/rule?id=offline", map[rights.Role][]string{rights.RoleOperator: {"/fleet/alerts/rule/delete"}}},
		{"/fleet/groups", map[rights.Role][]string{rights.RoleOperator: {"/fleet/serials", "/fleet/people"}}},
		{"/fleet/people", map[rights.Role][]string{rights.RoleAdmin: {"/auth/staff/invite", "/auth/staff/withdraw"}}},
		{"/fleet/people/" + w.ids[rights.RoleOwner], map[rights.Role][]string{rights.RoleOperator: {"/auth/accounts/disable"}}},
	} {
		for at, role := range []rights.Role{rights.RoleSupport, rights.RoleOperator, rights.RoleAdmin} {
			if strings.HasPrefix(tc.page, "/fleet/people") && role == rights.RoleSupport {
				continue
			}
			page, there := w.as(role).page(tc.page), map[string]bool{}
			for _, found := range action.FindAllStringSubmatch(page, -1) {
				there[found[1]] = true
			}
			there["/fleet/alerts/silences#form"] = strings.Contains(page, `name="why"`)
			for least, forms := range tc.forms {
				want := at >= map[rights.Role]int{rights.RoleSupport: 0, rights.RoleOperator: 1, rights.RoleAdmin: 2}[least]
				for _, form := range forms {
					if there[form] != want {
						t.Errorf("%s as %s: %s stands there: %v, want %v", tc.page, role, form, there[form], want)
					}
				}
			}
		}
	}
	// Staff is for admins: an operator sees no accounts of it.
	w.wantOut("people as operator", w.as(rights.RoleOperator).page("/fleet/people"), "SUPPORT")
	if rec := w.as(rights.RoleOperator).get("/fleet/people/" + w.ids[rights.RoleSupport]); rec.Code != http.StatusForbidden {
		t.Errorf("an operator sees an account of the staff: %d", rec.Code)
	}
}

const hostile = `<script>alert(1)</script>"'><img src=x onerror=alert(2)>{{.}}`

func TestHostileTextStaysText(t *testing.T) {
	w := newWorld(t, origin)
	w.newOwner("ann@example.org")
	id := w.enrol(1, time.Hour)
	w.say(id, &fleetapi.Hello{Journal: 7, Epoch: 1, Version: 1, At: time.Now(), BootID: "b", Release: "1.0.0", Slot: "a", Board: "x", Facts: fleetapi.Labels(map[string]string{"cpu_model": hostile})},
		&fleetapi.State{Presence: fleetapi.Online, Journal: 7, Epoch: 1},
		&fleetapi.Event{Origin: fleetapi.Origin{Journal: 7, Seq: 1}, At: time.Now(), Kind: "odd", Severity: fleetapi.SeverityError, Fields: fleetapi.Labels(map[string]string{"sentence": hostile, "file": hostile})},
		&fleetapi.LogLines{Lines: []fleetapi.LogLine{{At: time.Now(), Level: "info", Text: hostile}}})
	must(w.devices.StartClaim(t.Context(), device.Claimant{Account: w.ids[rights.RoleOwner], Address: abroad}, codeOf(1)))(t)
	must(w.devices.ConfirmClaim(t.Context(), w.ids[rights.RoleOwner], id))(t)
	check(t, w.people.SetName(t.Context(), office, w.principal(rights.RoleOwner), hostile))
	check(t, w.devices.SetName(t.Context(), boss, id, hostile[:60]))
	check(t, w.devices.SetAlerts(t.Context(), id, hostile))
	order := must(w.jobs.Queue(t.Context(), job.Actor(boss), job.Order{Device: id, Kind: fleetapi.KindLocate}))(t)
	must(w.jobs.Receive(t.Context(), []job.Status{{Device: id, At: time.Now(), Status: &fleetapi.JobStatus{
		Origin: fleetapi.Origin{Journal: 7, Seq: 2}, At: time.Now(), Job: order.ID, State: fleetapi.Failed, Version: 1, Detail: hostile, Results: fleetapi.Labels(map[string]string{"x": hostile}),
	}}}))(t)
	must(w.devices.SaveGroup(t.Context(), boss, device.Group{Name: hostile[:60], Selector: "a=b"}))(t)
	must(w.alerts.AddSilence(t.Context(), alert.Actor(boss), alert.Silence{Selector: "a=b", Why: hostile, Until: time.Now().Add(time.Hour)}))(t)
	rule := must(w.alerts.SaveRule(t.Context(), alert.Actor(boss), alert.Rule{Name: hostile[:60], Expr: hostile, Sentence: hostile, Owner: hostile, Severity: fleetapi.SeverityInfo}))(t)
	receiver, _, err := w.alerts.AddReceiver(t.Context(), alert.Actor(boss), alert.Receiver{Name: hostile[:60], Kind: alert.Email, Address: "a@example.org", Severity: fleetapi.SeverityInfo})
	check(t, err)
	check(t, w.db.Write(t.Context(), func(tx *db.Tx) error {
		return w.audit.Record(tx, auditlog.Entry{Actor: hostile, Action: "x.y", Kind: hostile, Object: hostile, Address: hostile, Before: map[string]string{"a": hostile}, After: map[string]string{hostile: hostile}})
	}))
	w.status.Failing = map[string]string{hostile: hostile}
	w.bundles["bun_1"] = bundle.Info{ID: `"><script>alert(1)</script>`, Device: id, Created: time.Now()}
	box, query := "/fleet/boxes/"+string(id), "%3Cscript%3Ealert(1)%3C/script%3E%22%27%3E"
	shown := 0
	for _, path := range []string{
		"/fleet", "/fleet/boxes", "/fleet/boxes?release=" + query, "/fleet/boxes?board=" + query, "/fleet/boxes?owner=" + query, "/fleet/boxes?state=" + query, "/fleet/search?q=" + query, "/fleet/search?q=x",
		box, box + "/events", box + "/log", box + "/jobs", box + "/jobs/" + order.ID, box + "/retire", box + "?span=" + query, box + "/chart/cpu?span=" + query,
		"/fleet/alerts", "/fleet/alerts?rule=" + query, "/fleet/alerts/silences?selector=" + query, "/fleet/alerts/rules", "/fleet/alerts/rule?id=" + rule.ID, "/fleet/alerts/receivers",
		"/fleet/alerts/receiver?id=" + receiver.ID, "/fleet/people?role=owner", "/fleet/people?q=" + query, "/fleet/people/" + w.ids[rights.RoleOwner], "/fleet/audit", "/fleet/audit?actor=" + query,
		"/fleet/groups", "/fleet/groups?selector=" + query, "/fleet/bulk/labels?board=" + query, "/fleet/bulk/result?bulk=" + query,
	} {
		rec := w.as(rights.RoleAdmin).get(path)
		if rec.Code >= 500 {
			t.Errorf("%s: %d", path, rec.Code)
		}
		page := rec.Body.String()
		for _, bad := range []string{"<script>alert", "<img src=x", `"'>`} {
			if strings.Contains(page, bad) {
				t.Errorf("%s has %q in it", path, bad)
			}
		}
		if strings.Contains(page, "&lt;script&gt;alert(1)") {
			shown++
		}
	}
	if shown < 20 {
		t.Errorf("hostile text is shown on %d pages only: the test has lost its point", shown)
	}
}

func TestSearchGoesStraightToTheBox(t *testing.T) {
	w := newWorld(t, origin)
	w.newOwner("ann@example.org")
	ids := map[int]string{}
	for n := 1; n <= 3; n++ {
		ids[n] = string(w.box(n))
	}
	must(w.devices.StartClaim(t.Context(), device.Claimant{Account: w.ids[rights.RoleOwner], Address: abroad}, codeOf(2)))(t)
	must(w.devices.ConfirmClaim(t.Context(), w.ids[rights.RoleOwner], idOf(2)))(t)
	b := w.as(rights.RoleSupport)
	for q, want := range map[string]string{
		"CR-0001": ids[1], "bx00-0003": ids[3], "ann@example.org": ids[2], idOf(3).ShortName(): ids[3], ids[1]: ids[1],
	} {
		if to := b.get("/fleet/search?q=" + q).Header().Get("Location"); to != "/fleet/boxes/"+want {
			t.Errorf("%s leads to %q", q, to)
		}
	}
	w.wantIn("search by address", b.page("/fleet/search?q=203.0.113.7"), ids[1], ids[2], ids[3], "3 boxes")
	w.wantIn("search for nothing there", b.page("/fleet/search?q=zzzz"), "Nothing was found")
}

func TestBoxPageSaysWhatIsWrongFirst(t *testing.T) {
	w := newWorld(t, origin)
	id, other := w.box(1), w.box(2)
	w.measure(id, 30, 84)
	b := w.as(rights.RoleSupport)
	page := b.page("/fleet/boxes/" + string(id))
	w.wantIn("the page of a hot box", page, "Its hottest sensor reads", "Ask the owner to give it air", "1 of 1 other boxes at this address are online", "84021/1/1", "Intel N100")
	if strings.Index(page, "Its hottest sensor") > strings.Index(page, "Intel N100") {
		t.Error("the facts stand before the diagnosis")
	}
	w.lose(id)
	w.wantIn("a lost box with a live neighbour", b.page("/fleet/boxes/"+string(id)), "Offline since", "so the line works")
	w.lose(other)
	w.wantIn("a lost box with a lost neighbour", b.page("/fleet/boxes/"+string(id)), "the line, the router or the power there", "it is the line")
	check(t, w.series.Close())
	page = b.page("/fleet/boxes/" + string(id))
	w.wantIn("a box whose readings cannot be asked for", page, "The readings could not be asked for", "CR-0001", "It went offline.")
	w.wantIn("the overview without readings", b.page("/fleet"), "No readings have arrived yet.")
	if rec := b.get("/fleet/boxes/" + string(idOf(99))); rec.Code != http.StatusNotFound {
		t.Errorf("a box that is not there: %d", rec.Code)
	}
	if rec := b.get("/fleet/boxes/x"); rec.Code != http.StatusNotFound {
		t.Errorf("no id: %d", rec.Code)
	}
}

func TestChartsAreTablesToo(t *testing.T) {
	w := newWorld(t, origin)
	id := w.box(1)
	w.measure(id, 30, 50)
	b := w.as(rights.RoleSupport)
	for _, name := range []string{"cpu", "memory", "heat", "disk", "network", "leases"} {
		path := "/fleet/boxes/" + string(id) + "/chart/" + name
		w.wantIn(name, b.page(path), "<tbody>")
		r := httptest.NewRequest(http.MethodGet, origin+path+"?span=day", nil)
		r.Header.Set("Accept", "application/json")
		rec := b.do(r)
		if rec.Code != 200 || !regexp.MustCompile(`"values":\[[^\]]*[0-9]`).MatchString(rec.Body.String()) {
			t.Errorf("%s as JSON: %d %s", name, rec.Code, rec.Body)
		}
	}
	if rec := b.get("/fleet/boxes/" + string(id) + "/chart/nothing"); rec.Code != http.StatusNotFound {
		t.Errorf("a chart that is not there: %d", rec.Code)
	}
}

func TestSupportHelpsWithoutJavaScript(t *testing.T) {
	w := newWorld(t, origin)
	id := w.box(1)
	path := "/fleet/boxes/" + string(id)
	b := w.as(rights.RoleSupport)
	w.wantIn("after ordering a bundle", b.said(path, path+"/jobs", "kind", "bundle"), "collecting a support bundle", "The box is collecting one")
	w.wantIn("the page before a restart", b.page(path+"/reboot"), "Restart croft-", "interrupted", `value="reboot"`)
	key := regexp.MustCompile(`name="key" value="([^"]+)"`).FindStringSubmatch(b.page(path + "/reboot"))[1]
	for range 2 { // somebody taps twice
		w.wantIn("after the restart was ordered", b.said(path+"/reboot", path+"/jobs", "kind", "reboot", "key", key), "asked to restart")
	}
	found, _, err := w.jobs.List(t.Context(), job.Actor(boss), job.Query{Device: id})
	check(t, err)
	if len(found) != 2 || found[0].By != w.ids[rights.RoleSupport] {
		t.Fatalf("jobs %+v", found)
	}
	w.wantIn("after canceling", b.said(path, path+"/jobs/"+found[0].ID+"/cancel"), "being canceled")
	if j := must(w.jobs.Job(t.Context(), job.Actor(boss), found[0].ID))(t); !j.Canceling && !j.State.Final() {
		t.Errorf("the job goes on: %+v", j)
	}
	w.wantIn("a job of no kind", b.said(path, path+"/jobs", "kind", "explode"), "Choose what the box is to do")

	// A job of one box is not to be canceled, nor a bundle read, through another.
	other := "/fleet/boxes/" + string(w.box(2))
	if rec := b.get(other + "/jobs/" + found[1].ID); rec.Code != http.StatusNotFound {
		t.Errorf("a job through another box: %d", rec.Code)
	}
	w.bundles["bun_1"] = bundle.Info{ID: "bun_1", Device: id, Created: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC), Expires: time.Now().Add(time.Hour), Size: 1000, Entries: 3}
	w.wantIn("the page with a bundle", b.page(path), path+"/bundles/bun_1", "3 files")
	if rec := b.get(other + "/bundles/bun_1"); rec.Code != http.StatusNotFound {
		t.Errorf("a bundle through another box: %d", rec.Code)
	}
	rec := b.get(path + "/bundles/bun_1")
	if rec.Body.String() != "zip of bun_1" || !strings.Contains(rec.Header().Get("Content-Disposition"), "croft-") || rec.Header().Get("Content-Type") != "application/zip" {
		t.Errorf("download: %d %v %q", rec.Code, rec.Header(), rec.Body)
	}
	read, _, err := w.audit.Search(t.Context(), auditlog.Query{Action: "bundle.read"})
	check(t, err)
	if len(read) != 1 || read[0].Actor != w.ids[rights.RoleSupport] || read[0].Object != string(id) {
		t.Errorf("who read the bundle: %+v", read)
	}
}

func TestOperatorChangesABox(t *testing.T) {
	w := newWorld(t, origin)
	id := w.box(1)
	path := "/fleet/boxes/" + string(id)
	b := w.as(rights.RoleOperator)
	w.wantIn("after labels", b.said(path, path+"/labels", "labels", "site=lab\r\ntier=a"), "The labels are saved", "tier=a")
	w.wantIn("a wrong label", b.said(path, path+"/labels", "labels", "site"), "write labels like")
	b.said(path, path+"/interval", "seconds", "30")
	w.wantIn("a wrong interval", b.said(path, path+"/interval", "seconds", "soon"), "want a number of seconds")
	box := must(w.devices.Box(t.Context(), boss, id))(t)
	if box.Labels["site"] != "lab" || len(box.Labels) != 2 || box.Desired.Interval != 30*time.Second {
		t.Errorf("box %+v", box)
	}
	w.wantIn("before revoking", b.page(path+"/revoke"), "Revoke the certificates of")
	w.wantIn("after revoking", b.said(path+"/revoke", path+"/revoke"), "certificates are revoked")
	w.wantIn("after retiring", b.said(path+"/retire", path+"/retire"), "The box is retired", "Retired", path+"/free")
	w.wantOut("the page of a retired box", b.page(path), path+"/reboot", path+"/retire")
	w.wantIn("after freeing", b.said(path+"/free", path+"/free"), "are free for another box")
}

func TestManyBoxesAreOrderedAfterTheirNumberWasSaid(t *testing.T) {
	w := newWorld(t, origin)
	for n := 1; n <= 12; n++ {
		id := w.box(n)
		check(t, w.devices.SetLabels(t.Context(), boss, id, map[string]string{"site": map[bool]string{true: "lab", false: "home"}[n <= 3]}))
	}
	b := w.as(rights.RoleOperator)
	w.wantIn("the list", b.page("/fleet/boxes?selector=site%3Dlab"), "/fleet/bulk/jobs?selector=site%3Dlab", "/fleet/bulk/labels?selector=site%3Dlab")
	w.wantOut("a list by release", b.page("/fleet/boxes?release=1.4.0"), "/fleet/bulk/jobs")
	ask := "/fleet/bulk/jobs?selector=site%3Dlab"
	page := b.page(ask)
	w.wantIn("the page before it", page, "This is for 3 boxes", `name="count" value="3"`)
	key := regexp.MustCompile(`name="key" value="([^"]+)"`).FindStringSubmatch(page)[1]
	order := func(fields ...string) string {
		return b.said(ask, "/fleet/bulk/jobs", append([]string{"selector", "site=lab", "kind", "locate", "key", key, "count", "3"}, fields...)...)
	}
	w.wantIn("an order for another number", order("count", "2"), "now it is 3 boxes and no longer 2"[1:])
	result := order()
	w.wantIn("the result", result, "The order is out to 3 boxes", "0 done, 0 not done, 3 under way", "Show which box it is")
	order() // sent twice
	found, _, err := w.jobs.List(t.Context(), job.Actor(boss), job.Query{Pending: true, Limit: 100})
	check(t, err)
	if len(found) != 3 {
		t.Errorf("%d jobs, want 3", len(found))
	}

	all := "/fleet/bulk/labels"
	w.wantIn("the page for all", b.page(all), "This is for 12 boxes", "All boxes of the fleet", `name="typed"`)
	change := func(fields ...string) string { return b.said(all, all, append([]string{"count", "12"}, fields...)...) }
	w.wantIn("without its number typed", change("labels", "a=b"), "Type the number of boxes")
	w.wantIn("with another number typed", change("labels", "a=b", "typed", "11"), "You typed")
	w.wantIn("with a wrong label", change("labels", "a", "typed", "12"), "write labels like")
	w.wantIn("done", change("labels", "wave=1 -site", "typed", "12"), "The labels of 12 boxes")
	if box := must(w.devices.Box(t.Context(), boss, idOf(5)))(t); fmt.Sprint(box.Labels) != "map[wave:1]" {
		t.Errorf("labels %v", box.Labels)
	}
}

func TestAlertsAreHandled(t *testing.T) {
	w := newWorld(t, origin)
	id := w.box(1)
	w.lose(w.box(2))
	w.fire()
	b := w.as(rights.RoleOperator)
	page := b.page("/fleet/alerts")
	w.wantIn("what fires", page, "turns slowly (312 a minute)", "is gone.", "/fleet/boxes/"+string(id))
	w.wantIn("the overview", b.page("/fleet"), "turns slowly")
	silence := "/fleet/alerts/silences?selector=device%3D" + string(id)
	w.wantIn("the box", b.page("/fleet/boxes/"+string(id)), "turns slowly", silence, "/fleet/alerts?device="+string(id), "/fleet/audit?object="+string(id))
	w.wantOut("the box for support", w.as(rights.RoleSupport).page("/fleet/boxes/"+string(id)), silence, "/fleet/audit")
	w.wantIn("the silence to be", b.page(silence), `value="device=`+string(id)+`"`)
	w.wantOut("alerts of the box", b.page("/fleet/alerts?device="+string(id)), "is gone.")
	firing, _, err := w.alerts.List(t.Context(), alert.Actor(boss), alert.Query{Firing: true, Device: id})
	check(t, err)
	w.wantIn("after taking it on", b.said("/fleet/alerts", "/fleet/alerts/ack", "id", firing[0].ID, "note", "I call Ann"), "You have taken it on", "taken on by you", "I call Ann")
	w.wantOut("alerts for support", w.as(rights.RoleSupport).page("/fleet/alerts"), "/fleet/alerts/ack")

	w.wantIn("a silence", b.said("/fleet/alerts/silences", "/fleet/alerts/silences", "selector", "site=lab", "hours", "4", "why", "Moving house"), "Silenced", "Moving house")
	w.wantIn("a silence of nothing", b.said("/fleet/alerts/silences", "/fleet/alerts/silences", "selector", "", "hours", "4", "why", "x"), "want a selector"[1:])
	silences := must(w.alerts.Silences(t.Context()))(t)
	w.wantIn("its end", b.said("/fleet/alerts/silences", "/fleet/alerts/silences/end", "id", silences[0].ID), "The silence is over", "Nothing is silenced")
}

func TestRulesAreWrittenAndTried(t *testing.T) {
	w := newWorld(t, origin)
	id := w.box(1)
	w.measure(id, 30, 84)
	b := w.as(rights.RoleOperator)
	at := "/fleet/alerts/rule"
	fields := []string{"kind", "expr", "name", "Warm", "severity", "warning", "for", "5m", "sentence", "{box} is warm."}
	page := b.post(at, at+"/test", append(fields, "expr", "max by (device) (croft_temperature_celsius) > 60")...).Body.String()
	w.wantIn("the test", page, "it would be bad for this box", id.ShortName(), `value="Warm"`, "&gt; 60")
	page = b.post(at, at+"/test", append(fields, "expr", "max by (")...).Body.String()
	w.wantIn("the test of nonsense", page, `role="alert"`, "max by (", `value="Warm"`)
	rec := b.post(at, at, append(fields, "expr", "x", "for", "soon")...)
	w.wantIn("a time that is none", rec.Body.String(), "is no time", `value="Warm"`)
	if rec.Code != http.StatusBadRequest {
		t.Errorf("status %d", rec.Code)
	}
	w.wantIn("an expression that is none", b.post(at, at, append(fields, "expr", "!x")...).Body.String(), "is wrong", `value="Warm"`)
	w.wantIn("the rules", b.said(at, at, append(fields, "expr", "croft_load1 > 9")...), "The rule “Warm” is saved", "{box} is warm.")
	rules := must(w.alerts.Rules(t.Context()))(t)
	last := rules[len(rules)-1]
	if last.Expr != "croft_load1 > 9" || last.For != 5*time.Minute {
		t.Errorf("rule %+v", last)
	}
	b.said(at, at, "id", "offline", "kind", "condition", "condition", "offline", "name", "Away", "severity", "error", "for", "20m", "sentence", "x")
	b.said(at, at, "id", "unjudged", "name", "Blind", "severity", "critical", "for", "3m", "sentence", "x")
	b.said(at, at, "kind", "of", "of", "offline", "by", "region", "at_least", "3", "percent", "10", "within", "15m", "name", "Street", "severity", "critical", "for", "1m", "sentence", "{count}")
	w.wantIn("rules changed", b.page("/fleet/alerts/rules"), "Away", "Blind", "Street")
	w.wantIn("the original", b.said(at+"?id=offline", at+"/delete", "id", "offline"), "Box offline")
	b.said(at+"?id="+last.ID, at+"/delete", "id", last.ID)
	w.wantOut("rules after deleting", b.page("/fleet/alerts/rules"), "Warm")
	w.wantOut("a rule for support", w.as(rights.RoleSupport).page(at+"?id=hot"), "Save the rule")
}

func TestReceiversAreKept(t *testing.T) {
	w := newWorld(t, origin)
	var hooks int
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hooks++ }))
	defer hook.Close()
	b := w.as(rights.RoleOperator)
	at := "/fleet/alerts/receivers"
	rec := b.post(at, at, "name", "Night shift", "kind", "webhook", "address", hook.URL, "severity", "error")
	w.wantIn("the secret, once", rec.Body.String(), "it is not shown again", "data-copy=")
	list := must(w.alerts.Receivers(t.Context()))(t)
	one := "/fleet/alerts/receiver?id=" + list[0].ID
	w.wantOut("its page", b.page(one), "data-copy=")
	w.wantIn("tried", b.said(one, "/fleet/alerts/receiver/try", "id", list[0].ID), "The test message has arrived")
	if hooks != 1 {
		t.Errorf("the webhook was called %d times", hooks)
	}
	hook.Close()
	w.wantIn("tried in vain", b.said(one, "/fleet/alerts/receiver/try", "id", list[0].ID), "Send message")
	w.wantIn("changed", b.said(one, "/fleet/alerts/receiver", "id", list[0].ID, "name", "Day shift", "severity", "warning"), "Saved.", "Day shift")
	w.wantIn("not deleted", b.said(one, "/fleet/alerts/receiver/delete", "id", list[0].ID), "Tick that")
	w.wantIn("deleted", b.said(one, "/fleet/alerts/receiver/delete", "id", list[0].ID, "sure", "yes"), "The receiver is deleted")
	w.wantIn("mail has no secret", b.said(at, at, "name", "Mail", "kind", "email", "address", "a@example.org", "severity", "error"), "Mail is told of alerts")
}

func TestPeopleAndTheirRoles(t *testing.T) {
	w := newWorld(t, origin)
	w.newOwner("ann@example.org")
	b := w.as(rights.RoleAdmin)
	w.wantIn("people", b.page("/fleet/people"), "ann@example.org", "SUPPORT", "OPERATOR")
	w.wantIn("owners", b.page("/fleet/people?role=owner&q=ann"), "ann@example.org")
	w.wantOut("owners", b.page("/fleet/people?role=owner"), "support@example.org")
	rec := b.post("/fleet/people", "/auth/staff/invite", "email", "new@example.org", "role", "support")
	w.wantIn("an invitation without mail", rec.Body.String(), "hand this link over")
	person := "/fleet/people/" + w.ids[rights.RoleSupport]
	w.wantIn("another role", b.said(person, "/auth/staff/role", "account", w.ids[rights.RoleSupport], "role", "operator"), "The role was changed", "Operator")
	w.wantIn("shut out", b.said(person, "/auth/accounts/disable", "account", w.ids[rights.RoleSupport], "disabled", "yes"), "Shut out", "Let in again")
	w.wantOut("his own page", b.page("/fleet/people/"+w.ids[rights.RoleAdmin]), "/auth/staff/role", "/auth/accounts/disable")
	if rec := w.as(rights.RoleOperator).get(person); rec.Code != http.StatusForbidden {
		t.Errorf("an operator sees staff: %d", rec.Code)
	}
}

func TestAuditLogIsSearchedAndVerified(t *testing.T) {
	w := newWorld(t, origin)
	b := w.as(rights.RoleOperator)
	today := time.Now().UTC().Format(time.DateOnly)
	w.wantIn("the log", b.page("/fleet/audit?action=staff.&from="+today+"&until="+today), "staff.invite", "support@example.org")
	w.wantOut("the log", b.page("/fleet/audit?action=staff."), "totp.set")
	w.wantIn("another day", b.page("/fleet/audit?until=2020-01-01"), "No entry matches")
	if rec := b.get("/fleet/audit?from=soon"); rec.Code != http.StatusBadRequest {
		t.Errorf("no day: %d", rec.Code)
	}
	w.wantIn("verified", b.said("/fleet/audit", "/fleet/audit/verify"), "The log is as it was written")
	check(t, w.db.Write(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec("UPDATE audit_entries SET actor = 'usr_eve' WHERE seq = 2")
		return err
	}))
	w.wantIn("verified after a change", b.said("/fleet/audit", "/fleet/audit/verify"), "The first wrong entry is number 2")
}

func TestSerialNumbersAreBroughtIn(t *testing.T) {
	w := newWorld(t, origin)
	b := w.as(rights.RoleOperator)
	list := "serial_number,voucher,claim\nCR-9001,,\nCR-9002,,\n"
	w.wantIn("pasted", b.said("/fleet/serials", "/fleet/serials", "list", list), "2 serial numbers were added; 0 were there already")
	w.wantIn("nonsense", b.said("/fleet/serials", "/fleet/serials", "list", "x"), `class="said bad"`)
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	token := tokenField.FindStringSubmatch(b.page("/fleet/serials"))[1]
	check(t, form.WriteField("form_token", token))
	check(t, form.WriteField("from", "/fleet/serials"))
	part := must(form.CreateFormFile("file", "serials.csv"))(t)
	must(part.Write([]byte(list + "CR-9003,,\n")))(t)
	check(t, form.Close())
	r := httptest.NewRequest(http.MethodPost, origin+"/fleet/serials", &body)
	r.Header.Set("Content-Type", form.FormDataContentType())
	r.Header.Set("Origin", origin)
	if rec := b.do(r); rec.Code != http.StatusSeeOther {
		t.Fatalf("upload: %d %s", rec.Code, rec.Body)
	}
	w.wantIn("uploaded", b.page("/fleet/serials"), "1 serial numbers were added; 2 were there already")
}

func TestGroupsAreKept(t *testing.T) {
	w := newWorld(t, origin)
	b := w.as(rights.RoleOperator)
	w.wantIn("saved", b.said("/fleet/groups", "/fleet/groups", "name", "The lab", "selector", "site=lab"), "The lab", "/fleet/boxes?selector=site%3Dlab")
	w.wantIn("wrong", b.said("/fleet/groups", "/fleet/groups", "name", "x", "selector", "a in ("), "Read selector")
	groups := must(w.devices.Groups(t.Context(), boss))(t)
	w.wantIn("renamed", b.said("/fleet/groups", "/fleet/groups", "id", groups[0].ID, "name", "Lab", "selector", "site=lab"), "The group “Lab” is saved")
	w.wantIn("deleted", b.said("/fleet/groups", "/fleet/groups/delete", "id", groups[0].ID), "There are no groups yet")
}

func TestListsGoOnPageByPage(t *testing.T) {
	w := newWorld(t, origin)
	for n := range 60 {
		w.box(n)
	}
	b := w.as(rights.RoleSupport)
	next := regexp.MustCompile(`href="(/fleet/boxes\?[^"]*cursor=[^"]+)" rel="next"`)
	rows := regexp.MustCompile(`<th scope="row"><a href="/fleet/boxes/([a-z0-9]+)`)
	seen, path := map[string]bool{}, "/fleet/boxes?board=pi5&sort=name"
	pages := 0
	for path != "" && pages < 5 {
		page := b.page(path)
		for _, row := range rows.FindAllStringSubmatch(page, -1) {
			seen[row[1]] = true
		}
		pages++
		path = ""
		if found := next.FindStringSubmatch(page); found != nil {
			path = strings.ReplaceAll(found[1], "&amp;", "&")
		}
	}
	if len(seen) != 30 || pages != 1 {
		t.Errorf("%d boxes with the board on %d pages, want 30 on 1", len(seen), pages)
	}
	if found := next.FindStringSubmatch(b.page("/fleet/boxes?sort=seen")); found == nil || !strings.Contains(found[1], "sort=seen") {
		t.Errorf("the next page of all: %q", found)
	}
	w.wantIn("the overview", b.page("/fleet"), "60", "1.3.2", "pi5", "No region")
}
