package webapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
	"github.com/croft-cloud/croft/fleet/webapi"
)

func TestOpenAPIDescribesEveryRoute(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		raw := w.ask("", http.MethodGet, "/openapi.json", nil)
		doc := must(openapi3.NewLoader().LoadFromData([]byte(raw.body)))(t)
		check(t, doc.Validate(t.Context()))
		ids := map[string]bool{}
		for _, r := range webapi.Routes() {
			item := doc.Paths.Find(strings.ReplaceAll(r.Pattern, "...}", "}"))
			if item == nil || item.GetOperation(r.Method) == nil {
				t.Errorf("%s %s is not in the document", r.Method, r.Pattern)
				continue
			}
			op := item.GetOperation(r.Method)
			if ids[op.OperationID] {
				t.Errorf("two operations are called %s", op.OperationID)
			}
			ids[op.OperationID] = true
			for _, p := range r.Params {
				if op.Parameters.GetByInAndName("query", p.Name) == nil {
					t.Errorf("%s %s: parameter %s is not in the document", r.Method, r.Pattern, p.Name)
				}
			}
			if (r.In != nil || r.Accepts != "") != (op.RequestBody != nil) {
				t.Errorf("%s %s: body in the document: %v", r.Method, r.Pattern, op.RequestBody != nil)
			}
			if r.Summary == "" || r.Tag == "" {
				t.Errorf("%s %s has no summary or tag", r.Method, r.Pattern)
			}
		}
		if want := len(webapi.Routes()); len(ids) != want {
			t.Errorf("%d operations, want %d", len(ids), want)
		}
	})
}

// TestAnswersKeepToTheDocument holds what routes answer against their schemas.
func TestAnswersKeepToTheDocument(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		doc := must(openapi3.NewLoader().LoadFromData([]byte(w.ask("", http.MethodGet, "/openapi.json", nil).body)))(t)
		id := w.box("ada")
		w.online(id)
		w.say(id, &fleetapi.Event{Origin: fleetapi.Origin{Journal: 1 << 63, Seq: 1}, At: time.Now(), Kind: "boot", Severity: fleetapi.SeverityInfo})
		for _, r := range webapi.Routes() {
			if r.Out == nil {
				continue
			}
			path, body, headers := w.request(r)
			token := w.tokens["admin"]
			if rights.RoleAdmin.Grants(append(r.Need, rights.Permission{})[0]) == rights.None {
				token = w.tokens["ada"]
			}
			a := w.ask(token, r.Method, path, body, headers...)
			var got any
			check(t, json.Unmarshal([]byte(a.body), &got))
			op := doc.Paths.Find(r.Pattern).GetOperation(r.Method)
			schema := op.Responses.Value("200").Value.Content.Get("application/json").Schema.Value
			if err := schema.VisitJSON(got); err != nil && a.status == http.StatusOK {
				t.Errorf("%s %s: %v\n%s", r.Method, r.Pattern, err, a.body)
			}
			if a.status != http.StatusOK && r.Pattern != fleetclient.Prefix+"/whoami" {
				t.Errorf("%s %s: %d %s", r.Method, r.Pattern, a.status, a.body)
			}
		}
	})
}

func TestPages(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		var ids []string
		for range 7 {
			ids = append(ids, string(w.box("ada")))
		}
		_ = w.box("bob")
		slices.Sort(ids)
		var got []string
		path := "/devices?limit=3"
		for page := range 4 {
			p := want[fleetclient.Page[fleetclient.Device]](t, w.ask(w.tokens["ada"], http.MethodGet, path, nil), http.StatusOK)
			for _, d := range p.Items {
				got = append(got, string(d.ID))
			}
			if (p.Next == "") != (page == 2) {
				t.Fatalf("page %d has the cursor %q", page, p.Next)
			}
			if p.Next == "" {
				break
			}
			path = "/devices?limit=3&cursor=" + p.Next
		}
		if !slices.Equal(got, ids) {
			t.Errorf("pages have %v, want %v", got, ids)
		}
		for _, broken := range []string{"/devices?cursor=x", "/devices?limit=-1", "/devices?limit=many", "/devices?online=perhaps", "/devices?selectr=a", "/devices?limit=1&limit=2", "/devices?sort=size", "/devices?selector=((", "/devices?owner=%00", "/devices?selector=%ff", "/jobs", "/audit?from=yesterday", "/search"} {
			p := want[fleetclient.Problem](t, w.ask(w.tokens["admin"], http.MethodGet, broken, nil), http.StatusBadRequest)
			if p.Kind != croft.KindUsage || p.Detail == "" || p.Status != http.StatusBadRequest {
				t.Errorf("%s: problem %+v", broken, p)
			}
		}
	})
}

func TestWhoMayNotSeeABoxLearnsNothing(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		id := w.box("ada")
		there := w.ask(w.tokens["bob"], http.MethodGet, "/devices/"+string(id), nil)
		for _, other := range []string{"/devices/" + strings.Repeat("a", 32), "/devices/x", "/devices/%00", "/devices/'%20OR%201=1--"} {
			if none := w.ask(w.tokens["bob"], http.MethodGet, other, nil); none.status != http.StatusNotFound {
				t.Errorf("%s: %d", other, none.status)
			}
		}
		none := w.ask(w.tokens["bob"], http.MethodGet, "/devices/"+strings.Repeat("a", 32), nil)
		if there.status != http.StatusNotFound || there.body != none.body {
			t.Errorf("ada's box: %d %s; no box: %s", there.status, there.body, none.body)
		}
		list := want[fleetclient.Page[fleetclient.Device]](t, w.ask(w.tokens["bob"], http.MethodGet, "/devices?owner="+w.who["ada"].Account, nil), http.StatusOK)
		if len(list.Items) != 0 {
			t.Errorf("bob lists ada's boxes: %v", list.Items)
		}
	})
}

func TestWordsOfAlertsForTheStaffAreForTheStaff(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		id := w.box("ada")
		const words = "The fan is slow, see ticket 4711."
		check(t, w.devices.SetAlerts(t.Context(), id, words))
		for _, path := range []string{"/devices/" + string(id), "/devices", "/search?q=" + string(id)} {
			if a := w.ask(w.tokens["support"], http.MethodGet, path, nil); !strings.Contains(a.body, words) {
				t.Errorf("%s does not tell the staff: %s", path, a.body)
			}
			if a := w.ask(w.tokens["ada"], http.MethodGet, path, nil); a.status != http.StatusOK || !strings.Contains(a.body, string(id)) || strings.Contains(a.body, "4711") {
				t.Errorf("%s tells the owner: %d %s", path, a.status, a.body)
			}
		}
	})
}

func TestPatch(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		path := "/devices/" + string(w.box("ada"))
		patch := func(who string, body string, status int) fleetclient.Device {
			t.Helper()
			return want[fleetclient.Device](t, w.ask(w.tokens[who], http.MethodPatch, path, body), status)
		}
		if d := patch("ada", `{"name":"Kitchen"}`, http.StatusOK); d.Name != "Kitchen" {
			t.Errorf("name %q", d.Name)
		}
		patch("ada", `{"labels":{"site":"lab"}}`, http.StatusForbidden)
		patch("ada", `{"name":"Attic","interval":"10s"}`, http.StatusForbidden)
		patch("support", `{"labels":{"site":"lab"}}`, http.StatusForbidden)
		patch("operator", `{"labels":{"site":"lab","tier":"a"},"interval":"20s"}`, http.StatusOK)
		d := patch("operator", `{"labels":{"tier":null,"rack":"7"}}`, http.StatusOK)
		if fmt.Sprint(d.Labels) != "map[rack:7 site:lab]" || d.Interval.String() != "20s" || d.Name != "Kitchen" {
			t.Errorf("labels %v, interval %s, name %q", d.Labels, d.Interval, d.Name)
		}
		patch("operator", `{"labels":{"bad value":"x y"}}`, http.StatusBadRequest)
		patch("operator", `{"interval":"-5s"}`, http.StatusBadRequest)
		patch("operator", `{"interval":"1ns"}`, http.StatusBadRequest)
		only := w.token(t.Context(), "operator", rights.Permission{Resource: rights.Device, Action: rights.Label})
		if a := w.ask(only, http.MethodPatch, path, `{"labels":{"x":"y"}}`); a.status != http.StatusOK {
			t.Errorf("a token for labels alone: %d %s", a.status, a.body)
		}
		if a := w.ask(only, http.MethodPatch, path, `{"name":"Mine"}`); a.status != http.StatusForbidden {
			t.Errorf("it also renames: %d", a.status)
		}
	})
}

func TestABundleNeedsItsOwnRight(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		id := w.box("ada")
		token := w.token(t.Context(), "operator", rights.Permission{Resource: rights.Job, Action: rights.Start})
		for kind, status := range map[fleetapi.JobKind]int{fleetapi.KindReboot: http.StatusOK, fleetapi.KindBundle: http.StatusForbidden} {
			if a := w.ask(token, http.MethodPost, "/jobs", fleetclient.NewJob{Device: id, Kind: kind}); a.status != status {
				t.Errorf("%s: %d, want %d", kind, a.status, status)
			}
			if a := w.ask(token, http.MethodPost, "/jobs/bulk", fleetclient.BulkJob{Selector: "a=b", Kind: kind}, fleetclient.IdempotencyHeader, string(kind)); a.status != status {
				t.Errorf("%s for many: %d, want %d", kind, a.status, status)
			}
		}
	})
}

func TestIdempotency(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		id := w.box("ada")
		send := func(who, key, path string, body any) answer {
			return w.ask(w.tokens[who], http.MethodPost, path, body, fleetclient.IdempotencyHeader, key)
		}
		silence := fleetclient.Silence{Selector: "a=b", Why: "a test", Until: fleetapi.StampOf(time.Now().Add(time.Hour))}
		var answers [8]answer
		var work sync.WaitGroup
		for i := range answers {
			work.Go(func() { answers[i] = send("operator", "s1", "/silences", silence) })
		}
		work.Wait()
		for _, a := range append(answers[:], send("operator", "s1", "/silences", silence)) {
			if a.status != http.StatusOK && a.status != http.StatusConflict {
				t.Errorf("status %d: %s", a.status, a.body)
			}
		}
		list := want[fleetclient.Page[fleetclient.Silence]](t, w.ask(w.tokens["operator"], http.MethodGet, "/silences", nil), http.StatusOK)
		again := want[fleetclient.Silence](t, send("operator", "s1", "/silences", silence), http.StatusOK)
		if len(list.Items) != 1 || again.ID != list.Items[0].ID {
			t.Errorf("silences %v, again %v", list.Items, again)
		}
		want[fleetclient.Silence](t, send("admin", "s1", "/silences", silence), http.StatusOK) // another's key is another
		silence.Why = "another"
		want[fleetclient.Problem](t, send("operator", "s1", "/silences", silence), http.StatusConflict)

		// What failed may be tried again with the same key.
		bad := fleetclient.Group{Name: "lab", Selector: "(("}
		want[fleetclient.Problem](t, send("operator", "g", "/groups", bad), http.StatusBadRequest)
		bad.Selector = "site=lab"
		want[fleetclient.Group](t, send("operator", "g", "/groups", bad), http.StatusOK)

		// A secret is shown once, and stored nowhere.
		hook := fleetclient.Receiver{Name: "Pager", Kind: "webhook", Address: "https://hook.example.org/x"}
		made := want[fleetclient.NewReceiver](t, send("operator", "r", "/receivers", hook), http.StatusOK)
		want[fleetclient.Problem](t, send("operator", "r", "/receivers", hook), http.StatusConflict)
		code := want[fleetclient.TransferCode](t, send("ada", "t", "/devices/"+string(id)+"/transfer", nil), http.StatusOK)
		want[fleetclient.Problem](t, send("ada", "t", "/devices/"+string(id)+"/transfer", nil), http.StatusConflict)
		var stored []string
		check(t, w.db.Read(t.Context(), func(tx *db.Tx) (err error) {
			stored, err = db.All(tx, func(scan db.Scan) (string, error) {
				var raw []byte
				err := scan(&raw)
				return string(raw), err
			}, "SELECT answer FROM webapi_keys")
			return err
		}))
		for _, secret := range []string{made.Secret, code.Code} {
			if secret == "" || strings.Contains(strings.Join(stored, " "), secret) {
				t.Errorf("secret %q is stored, or is none", secret)
			}
		}

		// Jobs.
		first := want[fleetclient.Job](t, send("operator", "j", "/jobs", fleetclient.NewJob{Device: id, Kind: fleetapi.KindReboot}), http.StatusOK)
		second := want[fleetclient.Job](t, send("operator", "j", "/jobs", fleetclient.NewJob{Device: id, Kind: fleetapi.KindReboot}), http.StatusOK)
		if first.ID != second.ID {
			t.Errorf("two jobs %s and %s", first.ID, second.ID)
		}
		want[fleetclient.Problem](t, send("operator", "j", "/jobs", fleetclient.NewJob{Device: id, Kind: fleetapi.KindLocate}), http.StatusConflict)
		want[fleetclient.Problem](t, w.ask(w.tokens["operator"], http.MethodPost, "/jobs/bulk", fleetclient.BulkJob{All: true, Kind: fleetapi.KindReboot}), http.StatusBadRequest)
		want[fleetclient.Problem](t, send("operator", "b", "/jobs/bulk", fleetclient.BulkJob{Kind: fleetapi.KindReboot}), http.StatusBadRequest)
		if all := want[fleetclient.BulkResult](t, send("operator", "b", "/jobs/bulk", fleetclient.BulkJob{All: true, Kind: fleetapi.KindReboot}), http.StatusOK); all.Queued != 1 {
			t.Errorf("queued for all: %+v", all)
		}
	})
}

// TestARequestThatWasCutOff stands for a replica killed in the middle.
func TestARequestThatWasCutOff(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		group := fleetclient.Group{Name: "lab", Selector: "site=lab"}
		ask := func() answer {
			return w.ask(w.tokens["operator"], http.MethodPost, "/groups", group, fleetclient.IdempotencyHeader, "k")
		}
		want[fleetclient.Group](t, ask(), http.StatusOK)
		set := func(query string, args ...any) {
			check(t, w.db.Write(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(query, args...)
				return err
			}))
		}
		set("UPDATE webapi_keys SET state = 'begun'")
		want[fleetclient.Problem](t, ask(), http.StatusConflict)
		set("UPDATE webapi_keys SET at = ?", db.Micros(time.Now().Add(-25*time.Hour)))
		if p := want[fleetclient.Problem](t, ask(), http.StatusConflict); !strings.Contains(p.Detail, "group") {
			t.Errorf("after a day the key is forgotten and the group is there: %+v", p)
		}
	})
}

var hostile = []string{
	`'; DROP TABLE device_boxes; --`, `" OR 1=1 --`, `<script>alert(1)</script>`, `%`, `_`, `\`, "a\x00b", "\x1b[31m", "\u202eevil", strings.Repeat("x", 100_000), "ſ\u0301", `{"$ne":null}`, "",
}

// TestBadInput puts hostile texts into every text of every body and parameter. No
// answer is a fault of the server, none echoes a script outside JSON, and the tables
// are all there afterwards.
func TestBadInput(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, r := range webapi.Routes() {
			if r.Produces == "text/event-stream" {
				continue
			}
			token := w.tokens["admin"]
			if rights.RoleAdmin.Grants(append(r.Need, rights.Permission{})[0]) == rights.None {
				token = w.tokens["ada"]
			}
			path, body, headers := w.request(r)
			base, _, _ := strings.Cut(path, "?")
			judge := func(a answer, what string) {
				t.Helper()
				if a.status >= 500 && a.status != http.StatusServiceUnavailable {
					t.Errorf("%s %s with %.60q: %d %s", r.Method, r.Pattern, what, a.status, a.body)
				}
				if kind := a.header.Get("Content-Type"); strings.Contains(a.body, "<script") && !strings.Contains(r.Pattern, "/bundles/") {
					t.Errorf("%s %s echoes a script as %s: %s", r.Method, r.Pattern, kind, a.body)
				}
			}
			for _, text := range hostile {
				for _, p := range r.Params {
					q := http.Request{URL: must(http.NewRequest(http.MethodGet, origin, nil))(t).URL}
					v := q.URL.Query()
					v.Set(p.Name, text)
					judge(w.ask(token, r.Method, base+"?"+v.Encode(), nil), p.Name+"="+text)
				}
				if body == nil || r.In == nil {
					continue
				}
				fields := must(json.Marshal(body))(t)
				var object map[string]any
				check(t, json.Unmarshal(fields, &object))
				for name := range object {
					changed := map[string]any{}
					check(t, json.Unmarshal(fields, &changed))
					changed[name] = text
					judge(w.ask(token, r.Method, path, changed, headers...), name+"="+text)
				}
			}
			if r.In != nil {
				for what, status := range map[string]int{
					`{"surprise":1}`: http.StatusBadRequest, `{`: http.StatusBadRequest, `[]`: http.StatusBadRequest, `{} {}`: http.StatusBadRequest,
					`{"name":"a\u0000b"}`: http.StatusBadRequest, "{\"name\":\"\xff\"}": http.StatusBadRequest,
					`{"name":"` + strings.Repeat("x", 1<<20) + `"}`: http.StatusRequestEntityTooLarge,
				} {
					a := w.ask(token, r.Method, path, what, headers...)
					if a.status != status || a.header.Get("Content-Type") != fleetclient.ProblemType {
						t.Errorf("%s %s with %.40q: %d as %s, want %d", r.Method, r.Pattern, what, a.status, a.header.Get("Content-Type"), status)
					}
				}
				if a := w.ask(token, r.Method, path, body, "Content-Type", "text/plain"); a.status != http.StatusBadRequest {
					t.Errorf("%s %s as text/plain: %d", r.Method, r.Pattern, a.status)
				}
			} else if r.Accepts == "" && r.Produces == "" && r.Method != http.MethodGet {
				if a := w.ask(token, r.Method, path, `{"surprise":1}`); a.status != http.StatusBadRequest {
					t.Errorf("%s %s with a body it does not take: %d", r.Method, r.Pattern, a.status)
				}
			}
		}
		w.box("ada")
	})
}

func TestStrangePagesAndMethods(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		want[fleetclient.Problem](t, w.ask(w.tokens["ada"], http.MethodGet, "/nothing", nil), http.StatusNotFound)
		a := w.ask(w.tokens["ada"], http.MethodPost, "/devices", nil)
		want[fleetclient.Problem](t, a, http.StatusMethodNotAllowed)
		if a.header.Get("Allow") != "GET" {
			t.Errorf("Allow: %q", a.header.Get("Allow"))
		}
	})
}

func TestAClaimAndASale(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := httptest.NewServer(w.h)
		defer server.Close()
		ctx := t.Context()
		ada := &fleetclient.Client{URL: server.URL, Token: w.tokens["ada"]}
		bob := &fleetclient.Client{URL: server.URL, Token: w.tokens["bob"]}
		id, code := w.free()
		w.online(id)
		found := must(ada.StartClaim(ctx, code))(t)
		if found.Device != id || found.Transfer || found.Board != "uefi-x86" {
			t.Errorf("found %+v", found)
		}
		if _, err := bob.ConfirmClaim(ctx, id); croft.KindOf(err) != croft.KindNotFound {
			t.Errorf("bob confirms ada's claim: %v", err)
		}
		if d := must(ada.ConfirmClaim(ctx, id))(t); d.Claim.Owner != w.who["ada"].Account || d.Claim.State != "claimed" {
			t.Errorf("claim %+v", d.Claim)
		}
		sale := must(ada.OfferTransfer(ctx, id))(t)
		if f := must(bob.StartClaim(ctx, sale.Code))(t); !f.Transfer || f.Device != id {
			t.Errorf("bob found %+v", f)
		}
		_ = must(bob.ConfirmClaim(ctx, id))(t)
		if _, err := ada.Device(ctx, id); croft.KindOf(err) != croft.KindNotFound {
			t.Errorf("ada still sees the box: %v", err)
		}
		if _, err := ada.OfferTransfer(ctx, id); croft.KindOf(err) != croft.KindNotFound {
			t.Errorf("ada sells it again: %v", err)
		}
		check(t, bob.Release(ctx, id))
		if err := bob.Release(ctx, id); croft.KindOf(err) != croft.KindNotFound {
			t.Errorf("bob gives up what is not his: %v", err)
		}
	})
}

func TestReadingsAreOfOnesOwnBoxes(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for owner, value := range map[string]float64{"ada": 1, "bob": 2} {
			n := must(w.series.Append(t.Context(), w.box(owner), []timeseries.Sample{{Name: "croft_load1", At: time.Now(), Value: value}}))(t)
			if n != 1 {
				t.Fatal("the sample was not stored")
			}
		}
		for who, most := range map[string]string{"ada": `"1"`, "bob": `"2"`, "support": `"3"`} {
			a := w.ask(w.tokens[who], http.MethodPost, "/prometheus/api/v1/query", "query=sum(croft_load1)", "Content-Type", "application/x-www-form-urlencoded")
			if a.status != http.StatusOK || !strings.Contains(a.body, most) {
				t.Errorf("%s sees %d %s, want %s", who, a.status, a.body, most)
			}
		}
	})
}

func TestABundleIsStreamed(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		id := w.box("ada")
		j := want[fleetclient.Job](t, w.ask(w.tokens["support"], http.MethodPost, "/devices/"+string(id)+"/bundles", nil), http.StatusOK)
		if j.Kind != fleetapi.KindBundle || j.State != fleetapi.Queued {
			t.Errorf("job %+v", j)
		}
		w.addBundle(webapi.Bundle{ID: "bun_1", Device: id, Job: j.ID, Name: `b"<x>.zip`})
		list := want[fleetclient.Page[fleetclient.Bundle]](t, w.ask(w.tokens["support"], http.MethodGet, "/devices/"+string(id)+"/bundles", nil), http.StatusOK)
		if len(list.Items) != 1 || list.Items[0].Job != j.ID {
			t.Errorf("bundles %+v", list.Items)
		}
		a := w.ask(w.tokens["support"], http.MethodGet, "/bundles/bun_1", nil)
		if a.body != bundleText || !strings.HasPrefix(a.header.Get("Content-Disposition"), "attachment;") || a.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("bundle %q, headers %v", a.body, a.header)
		}
		want[fleetclient.Problem](t, w.ask(w.tokens["support"], http.MethodGet, "/bundles/bun_2", nil), http.StatusNotFound)
	})
}

// TestWatch follows boxes through a server and the client.
func TestWatch(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := httptest.NewServer(w.h)
		defer server.Close()
		id, other := w.box("ada"), w.box("bob")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := &fleetclient.Client{URL: server.URL, Token: w.tokens["ada"]}
		var seen []string
		for change, err := range c.WatchDevices(ctx, "") {
			check(t, err)
			switch {
			case change.Device == nil:
				seen = append(seen, "gone "+string(change.Gone))
				cancel()
			case change.Device.ID == other:
				t.Error("ada watches bob's box")
			default:
				seen = append(seen, "name "+change.Device.Name)
				if len(seen) == 1 {
					check(t, w.devices.SetName(ctx, device.Actor{ID: w.who["ada"].Account}, id, "Attic"))
				} else {
					check(t, w.devices.Release(ctx, w.who["ada"].Account, id))
				}
			}
		}
		if got := strings.Join(seen, ", "); got != "name , name Attic, gone "+string(id) {
			t.Errorf("watched %s", got)
		}
	})
}

func TestOneAccountCannotWatchWithoutEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := httptest.NewServer(w.h)
		defer server.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel() // ends what is watched, which the server waits for
		w.box("ada")
		// watch begins one, and returns the status and the first line of its answer.
		watch := func(who string) (int, string) {
			r := must(http.NewRequestWithContext(ctx, http.MethodGet, server.URL+fleetclient.Prefix+"/devices/watch", http.NoBody))(t)
			r.Header.Set("Authorization", "Bearer "+w.tokens[who])
			answer := must(server.Client().Do(r))(t) //nolint:bodyclose // the cleanup does
			t.Cleanup(func() { _ = answer.Body.Close() })
			return answer.StatusCode, must(bufio.NewReader(answer.Body).ReadString('\n'))(t)
		}
		for n := range 20 {
			if status, line := watch("ada"); status != http.StatusOK || line != "event: device\n" {
				t.Fatalf("watch %d begins with %d %q", n, status, line)
			}
		}
		if status, problem := watch("ada"); status != http.StatusTooManyRequests || !strings.Contains(problem, "watched at once") {
			t.Errorf("one more: %d %s", status, problem)
		}
		if status, _ := watch("support"); status != http.StatusOK {
			t.Errorf("somebody else: %d", status)
		}
	})
}

func TestOwnersAreNotToldWhoTheStaffIs(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		id := w.box("ada")
		made := must(w.jobs.Queue(t.Context(), job.Actor{ID: "usr_staff", Staff: true}, job.Order{Device: id, Kind: fleetapi.KindReboot}))(t)
		if j := want[fleetclient.Job](t, w.ask(w.tokens["ada"], http.MethodGet, "/jobs/"+made.ID, nil), http.StatusOK); j.By != "" {
			t.Errorf("ada learns that %s ordered it", j.By)
		}
		if a := w.ask(w.tokens["support"], http.MethodGet, "/owners/"+w.who["admin"].Account, nil); a.status != http.StatusNotFound {
			t.Errorf("support reads an admin's account: %d", a.status)
		}
		who := want[fleetclient.WhoAmI](t, w.ask(w.tokens["ada"], http.MethodGet, "/whoami", nil), http.StatusOK)
		if who.Account != w.who["ada"].Account || who.Role != "owner" || !slices.Contains(who.Scopes, "device:read") {
			t.Errorf("ada is %+v", who)
		}
	})
}
