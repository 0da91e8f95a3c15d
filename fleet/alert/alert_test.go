package alert_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/alert/notice"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

func TestOwnersAndStaffAreTold(t *testing.T) {
	each(t, 3, func(t *testing.T, w *world) {
		w.mailTo(t, "staff@example.org", fleetapi.SeverityWarning, "region=north")
		w.mailTo(t, "grave@example.org", fleetapi.SeverityCritical, "")
		w.celsius[idOf(0)], w.celsius[idOf(1)] = 91, 92
		w.pass(t, 8)
		w.wantFiring(t, "hot Box 0", "hot Box 1")
		if got := w.to("own_ada@example.org"); len(got) != 1 || !strings.Contains(got[0], "Box 1: Your box is hot (92 °C).") || strings.Contains(got[0], string(idOf(0))) {
			t.Errorf("ada was told %q", got)
		}
		if got := w.to("staff@example.org"); len(got) != 1 || !strings.Contains(got[0], "reads 91 °C") || strings.Contains(got[0], "92") {
			t.Errorf("the staff of the north was told %q", got)
		}
		if len(w.to("grave@example.org"))+len(w.to("own_bob@example.org")) != 0 {
			t.Error("somebody was told what is not for him")
		}
		hers, _, err := w.List(t.Context(), ada, alert.Query{})
		if err != nil || len(hers) != 2 || !strings.HasPrefix(hers[0].Sentence, "Your box") || hers[0].Labels != nil {
			t.Errorf("ada sees %+v, %v", hers, err)
		}
		bobs, _, err := w.List(t.Context(), alert.Actor{ID: "own_bob"}, alert.Query{})
		if err != nil || len(bobs) != 0 {
			t.Errorf("bob sees %+v, %v", bobs, err)
		}
		check(t, w.Acknowledge(t.Context(), staff, hers[0].ID, "I look at it"))
		wantKind(t, w.Acknowledge(t.Context(), staff, "alr_x", ""), croft.KindNotFound)
		w.set(func() { w.boxes[idOf(1)].Owner = "own_bob"; w.celsius[idOf(0)] = 40 })
		w.pass(t, 15)
		got := w.to("own_ada@example.org")
		if len(got) != 2 || !strings.Contains(got[1], "over") || strings.Contains(got[1], "Box 1") {
			t.Errorf("ada was told %q", got)
		}
		if got := w.to("own_bob@example.org"); len(got) != 1 || !strings.Contains(got[0], "Box 1") {
			t.Errorf("bob was told %q", got)
		}
	})
}

func TestUnjudged(t *testing.T) {
	each(t, 2, func(t *testing.T, w *world) {
		w.mailTo(t, "staff@example.org", fleetapi.SeverityInfo, "")
		w.celsius[idOf(0)] = 95
		w.pass(t, 10)
		w.set(func() { w.noReadings, w.celsius[idOf(0)], w.celsius[idOf(1)] = errDown, 40, 95 })
		w.pass(t, 10)
		w.wantFiring(t, "hot Box 0", alert.RuleUnjudged)
		w.set(func() { w.noReadings = nil })
		w.pass(t, 15)
		w.wantFiring(t, "hot Box 1")
		w.set(func() { w.silent[idOf(1)], w.celsius[idOf(1)] = true, 40 })
		w.pass(t, 20)
		w.wantFiring(t, "hot Box 1")
	})
}

func TestRegionIsOneAlert(t *testing.T) {
	each(t, 14, func(t *testing.T, w *world) {
		w.mailTo(t, "staff@example.org", fleetapi.SeverityInfo, "")
		for n := 0; n < 14; n += 2 {
			w.boxes[idOf(n)].Online = false
		}
		w.pass(t, 20)
		if got := w.to("staff@example.org"); len(got) != 1 || !strings.Contains(got[0], "7 of 7 boxes in the region north") {
			t.Fatalf("the staff was told %q", got)
		}
		found, _, err := w.List(t.Context(), staff, alert.Query{Rule: "offline"})
		if err != nil || len(found) != 7 || found[0].Withheld != alert.WithheldGroup || found[0].Told {
			t.Errorf("single alerts: %+v, %v", found, err)
		}
		w.set(func() {
			for n := 2; n < 14; n += 2 {
				w.boxes[idOf(n)].Online = true
			}
		})
		w.pass(t, 20)
		w.wantFiring(t, "offline Box 0")
		if got := strings.Join(w.to("staff@example.org"), ""); strings.Count(got, "[error] Box ") != 1 || !strings.Contains(got, "[error] Box 0 ") {
			t.Errorf("of the one that is still offline the staff was told %q", got)
		}
	})
}

func TestSilenceAndQuietHours(t *testing.T) {
	each(t, 3, func(t *testing.T, w *world) {
		w.mailTo(t, "staff@example.org", fleetapi.SeverityInfo, "")
		now := time.Now().UTC()
		check(t, w.SetQuiet(t.Context(), ada.ID, alert.Quiet{From: now.Hour() * 60, To: now.Hour()*60 + 120}))
		_, err := w.AddSilence(t.Context(), staff, alert.Silence{Selector: "rule=hot", Until: now.Add(time.Hour), Why: "summer"})
		check(t, err)
		_, err = w.AddSilence(t.Context(), staff, alert.Silence{Until: now.Add(time.Hour), Why: "all"})
		wantKind(t, err, croft.KindUsage)
		w.celsius[idOf(0)] = 95
		w.pass(t, 55)
		if len(w.sent) != 0 {
			t.Errorf("told in spite of a silence: %q", w.sent)
		}
		w.pass(t, 10)
		if len(w.to("staff@example.org")) != 1 || len(w.to("own_ada@example.org")) != 0 {
			t.Errorf("after the silence: %q", w.sent)
		}
		w.pass(t, 60)
		if len(w.to("own_ada@example.org")) != 1 {
			t.Errorf("after the quiet hours: %q", w.sent)
		}
	})
}

func TestMailIsTriedForADay(t *testing.T) {
	each(t, 3, func(t *testing.T, w *world) {
		r := w.mailTo(t, "staff@example.org", fleetapi.SeverityInfo, "")
		tries := 0
		w.noMail = func(m alert.Mail) (bool, error) {
			if m.To == "staff@example.org" {
				tries++
				return false, errDown
			}
			return true, nil
		}
		w.celsius[idOf(2)] = 95
		w.pass(t, 10)
		if len(w.to("own_bob@example.org")) != 1 {
			t.Error("a receiver that is away holds up another")
		}
		for range 40 {
			time.Sleep(40 * time.Minute)
			check(t, w.Tell(t.Context()))
		}
		got, _, err := w.Messages(t.Context(), r.ID, "", 0)
		if err != nil || len(got) != 1 || got[0].Fate != alert.Failed || got[0].Tries != tries || tries < 20 {
			t.Errorf("after a day: %+v, %v, %d tries", got, err, tries)
		}
	})
}

func TestRules(t *testing.T) {
	each(t, 2, func(t *testing.T, w *world) {
		ctx := t.Context()
		r, err := w.SaveRule(ctx, staff, alert.Rule{Name: "Busy", Expr: "busy", Severity: fleetapi.SeverityWarning, Sentence: "{box} is busy: {value}."})
		check(t, err)
		w.set(func() {
			w.answers["busy"] = []alert.Sample{{Labels: map[string]string{"device": string(idOf(1))}, Value: 3.14159}}
		})
		w.pass(t, 1)
		w.wantFiring(t, r.ID+" Box 1")
		check(t, w.DeleteRule(ctx, staff, r.ID))
		w.pass(t, 1)
		w.wantFiring(t)
		w.set(func() { w.answers["sum"] = []alert.Sample{{Value: 1}} })
		for _, wrong := range []alert.Rule{
			{Name: "x", Expr: "sum", Severity: "info", Sentence: "x"},
			{Name: "x", Severity: "info", Sentence: "x"},
			{Name: "x", Expr: "busy", Severity: "loud", Sentence: "x"},
			{Name: "x", Expr: "busy", Severity: "info", Sentence: "x\n"},
			{Name: "x", Expr: "busy", Severity: "info", Sentence: "x", Selector: "a>1"},
			{Name: "x", Of: "region_offline", AtLeast: 2, Within: time.Minute, Severity: "info", Sentence: "x"},
			{Name: "x", Condition: "unjudged", Severity: "info", Sentence: "x"},
		} {
			_, err := w.SaveRule(ctx, staff, wrong)
			wantKind(t, err, croft.KindUsage)
		}
		wantKind(t, w.DeleteRule(ctx, staff, "rul_x"), croft.KindNotFound)
	})
}

func TestBuiltinRulesAreSound(t *testing.T) {
	each(t, 0, func(t *testing.T, w *world) {
		for _, r := range alert.Builtin() {
			if _, err := w.SaveRule(t.Context(), staff, r); err != nil {
				t.Errorf("%s: %v", r.ID, err)
			}
		}
	})
}

func TestRun(t *testing.T) {
	each(t, 1, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		w.set(func() { w.celsius[idOf(0)] = 90 })
		time.Sleep(8 * time.Minute)
		if len(w.to("own_ada@example.org")) != 1 {
			t.Errorf("told %q", w.sent)
		}
		cancel()
		check(t, <-ended)
	})
}

func TestWebhook(t *testing.T) {
	w := newWorld(t, t.TempDir(), 1)
	var got []notice.Delivery
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var d notice.Delivery
		if err != nil || json.Unmarshal(body, &d) != nil || d.ID != r.Header.Get(notice.HeaderID) {
			t.Errorf("got %q, %v", body, err)
		}
		got = append(got, d)
	}))
	defer server.Close()
	r, secret, err := w.AddReceiver(t.Context(), staff, alert.Receiver{Name: "Hook", Kind: alert.Webhook, Address: server.URL})
	check(t, err)
	stored := must(w.Receivers(t.Context()))(t)
	if len(secret) < 40 || len(stored) != 1 || bytes.Contains(stored[0].Sealed(), []byte(secret)) {
		t.Errorf("secret %q, stored %+v", secret, stored)
	}
	check(t, w.Try(t.Context(), r.ID))
	if len(got) != 1 || len(got[0].Alerts) != 0 {
		t.Errorf("the test came as %+v", got)
	}
	check(t, w.DeleteReceiver(t.Context(), staff, r.ID))
	wantKind(t, w.Try(t.Context(), r.ID), croft.KindNotFound)
}
