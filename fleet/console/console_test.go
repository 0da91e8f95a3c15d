package console_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/console"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

const origin = "https://fleet.example.org"

func TestEveryWordIsThereAndUsed(t *testing.T) {
	for _, fault := range frame.Check(console.Part(), os.DirFS(".")) {
		t.Error(fault)
	}
}

func (b *browser) want(path string, texts ...string) string {
	b.t.Helper()
	rec := b.get(path)
	if rec.Code != http.StatusOK {
		b.t.Fatalf("GET %s: %d, to %q", path, rec.Code, rec.Header().Get("Location"))
	}
	body := rec.Body.String()
	for _, text := range texts {
		if !strings.Contains(body, text) {
			b.t.Errorf("%s does not say %q:\n%s", path, text, body)
		}
	}
	return body
}

func wantSaid(t testing.TB, what, to, said, wantTo, wantSaid string) {
	t.Helper()
	if to != wantTo || !strings.Contains(said, wantSaid) {
		t.Errorf("%s leads to %q and says %q; want %q and %q", what, to, said, wantTo, wantSaid)
	}
}

func TestWhoIsNotSignedInIsAskedToAndComesBack(t *testing.T) {
	w := newWorld(t, origin)
	b := w.browser(t)
	rec := b.get("/boxes?cursor=x")
	if to := rec.Header().Get("Location"); rec.Code != http.StatusSeeOther || to != "/login?then=%2Fboxes%3Fcursor%3Dx" {
		t.Errorf("%d to %q", rec.Code, to)
	}
	b.want("/login", "Sign in with a passkey", "Send me a link", "New here?", "Sign in with the school", `role="status"`, "Please sign in first")
	if body := b.want("/login"); strings.Contains(body, `role="status"`) {
		t.Error("it is said twice")
	}
	if rec := b.get("/"); rec.Header().Get("Location") != "/login" {
		t.Errorf("the first page leads to %q", rec.Header().Get("Location"))
	}
	for _, evil := range []string{"https://evil.example.org", "//evil.example.org", `/\evil.example.org`} {
		if body := b.want("/login?then=" + url.QueryEscape(evil)); strings.Contains(body, "evil.example.org\"") && !strings.Contains(body, `name="from" value="/login?then=`) {
			t.Errorf("%s is where sign-in leads", evil)
		}
	}
}

func TestOwnerClaimsByTypingTheCode(t *testing.T) {
	w := newWorld(t, origin)
	id := w.box(t, 1)
	ann := w.owner(t, "ann@example.org")
	ann.want("/boxes", "No box yet")
	ann.want("/claim", "Type the code", "show that you are next to it")

	to, said := ann.follow("/claim", "/claim", "code", "ZZZZ-ZZZZ")
	wantSaid(t, "a wrong code", to, said, "/claim", "No box that waits for an owner has this code. Compare it")
	to, said = ann.follow("/claim", "/claim", "code", "no code at all")
	wantSaid(t, "what is no code", to, said, "/claim", "code")

	rec := ann.post("/claim", "/claim", "code", "bx00-0001")
	body := rec.Body.String()
	if rec.Code != http.StatusOK || !strings.Contains(body, id.ShortName()) || !strings.Contains(body, "This is mine") || !strings.Contains(body, "10 minutes") || strings.Contains(body, "BX00") {
		t.Fatalf("found: %d %s", rec.Code, body)
	}
	to, said = ann.follow("/claim", "/claim/undo", "box", string(id))
	wantSaid(t, "not mine", to, said, "/boxes", "let go")
	ann.post("/claim", "/claim", "code", codeOf(1))
	to, said = ann.follow("/claim", "/claim/confirm", "box", string(id))
	wantSaid(t, "mine", to, said, "/boxes/"+string(id), "The box is yours.")
	ann.want("/boxes", id.ShortName(), "Online", "It is connected.")
	if log := w.logged.String(); strings.Contains(log, "bx00-0001") || strings.Contains(log, codeOf(1)) {
		t.Errorf("the code is in the log: %s", log)
	}
}

func TestAfterTooManyTriesTheWordsOnThePageStillWork(t *testing.T) {
	w := newWorld(t, origin)
	id := w.box(t, 1)
	ann := w.owner(t, "ann@example.org")
	for _, code := range []string{"AAAA-AAAA", "BBBB-BBBB", "CCCC-CCCC", "DDDD-DDDD", "EEEE-EEEE"} {
		ann.follow("/claim", "/claim", "code", code)
	}
	_, said := ann.follow("/claim", "/claim", "code", "FFFF-FFFF")
	if !strings.Contains(said, "the words it shows") {
		t.Errorf("after five tries it says %q", said)
	}
	if rec := ann.post("/claim", "/claim", "code", "river candle seven"); rec.Code != http.StatusOK || !strings.Contains(rec.Body.String(), id.ShortName()) {
		t.Errorf("the words: %d %s", rec.Code, rec.Body)
	}
}

func TestBoxPageSaysWhatTheBoxDoes(t *testing.T) {
	w := newWorld(t, origin)
	ann := w.owner(t, "ann@example.org")
	id := w.own(t, ann.account(), 1)
	w.measure(t, id)
	w.say(t, id, &fleetapi.Event{Origin: fleetapi.Origin{Journal: 7, Seq: 1}, At: time.Now(), Synced: true, Kind: "lease_won", Severity: fleetapi.SeverityInfo},
		&fleetapi.Event{Origin: fleetapi.Origin{Journal: 7, Seq: 2}, At: time.Now(), Synced: true, Kind: "odd_thing", Severity: fleetapi.SeverityWarning},
		&fleetapi.Event{Origin: fleetapi.Origin{Journal: 7, Seq: 3}, At: time.Now(), Synced: true, Kind: "clock_stepped", Severity: fleetapi.SeverityInfo, Fields: fleetapi.Labels(map[string]string{"sentence": "The clock was <3 hours> behind."})})
	path := "/boxes/" + string(id)
	body := ann.want(path, "It runs 2 programs for customers.", "Program 1", "Program 2", "700 MB of memory", "2.1 GB of memory", "CR-2611-00001", "Intel N100",
		"A customer’s program was accepted.", "The box says: odd thing.", "The clock was &lt;3 hours&gt; behind.", "The box became yours.", "data-live-url=")
	if strings.Contains(body, "akash1secret") {
		t.Error("the page names a tenant")
	}
	ann.want(path+"/events", "The box became yours.")
	ann.want("/boxes", "It runs 2 programs for customers.", "warm", "busy")

	// Before the claim nothing was the owner's.
	for _, chart := range []string{"cpu", "memory", "heat", "network"} {
		r := httptest.NewRequest(http.MethodGet, origin+path+"/chart/"+chart, nil)
		r.Header.Set("Accept", "application/json")
		var out struct {
			Summary string
			Times   []int64
			Lines   []struct{ Values []*float64 }
		}
		check(t, json.Unmarshal(ann.do(r).Body.Bytes(), &out))
		if len(out.Times) > 2 || out.Summary == "" || len(out.Lines) == 0 || len(out.Lines[0].Values) != len(out.Times) {
			t.Errorf("%s: %+v", chart, out)
		}
		ann.want(path+"/chart/"+chart, "<table>")
	}
	if rec := ann.get(path + "/chart/none"); rec.Code != http.StatusNotFound {
		t.Errorf("a chart that is not there: %d", rec.Code)
	}
}

func TestOwnerIsToldOfAlertsInWordsForOwners(t *testing.T) {
	w := newWorld(t, origin)
	ann := w.owner(t, "ann@example.org")
	for n, advice := range []string{"Your box slows itself down. Give it more air.", ""} {
		id := w.own(t, ann.account(), n+1)
		w.measure(t, id)
		w.fires(t, ann.account(), id, "Attic in rack 7 is slow, see ticket 4711.", advice)
		for _, path := range []string{"/boxes/" + string(id), "/boxes/" + string(id) + "/restart", "/boxes"} {
			if body := ann.want(path); strings.Contains(body, "4711") {
				t.Errorf("%s says what is for the staff", path)
			}
		}
		if body := ann.get("/boxes/" + string(id)).Body.String(); strings.Contains(body, "looking at something") != (advice != "") || !strings.Contains(body, advice) {
			t.Errorf("with advice %q the page says\n%s", advice, body)
		}
	}
}

func TestOwnerSeesWhatHisBoxesEarn(t *testing.T) {
	w := newWorld(t, origin)
	ann, bob := w.owner(t, "ann@example.org"), w.owner(t, "bob@example.org")
	first, second := w.own(t, ann.account(), 1), w.own(t, ann.account(), 2)
	silent, fresh := w.own(t, ann.account(), 3), w.own(t, bob.account(), 4)
	page := func(id croft.DeviceID) string { return "/boxes/" + string(id) }
	if body := ann.want("/boxes"); strings.Contains(body, "earn") {
		t.Errorf("of boxes that say nothing it is known what they earn: %s", body)
	}
	for _, id := range []croft.DeviceID{first, second, silent} {
		w.age(t, id)
	}
	w.pay(t, first, "uact", 1_000_000, 4_214_999, 12_345_678)
	w.pay(t, first, "uakt", 0, 500_000, 0)
	w.pay(t, second, "uact", 5_000_000, 5_000_000, 2_000_000)
	w.pay(t, fresh, "uact", 1_000_000, 1_000_000, 0)

	const (
		some = "Earned this month: about 3.21\u00a0ACT and 0.50\u00a0AKT. It earns about 12.30\u00a0ACT a month at present."
		none = "Nothing was paid out this month yet. It earns about 2.00\u00a0ACT a month at present."
	)
	ann.want(page(first), some)
	ann.want(page(second), none)
	ann.want("/boxes", some, none, "Together your boxes earned about 3.21\u00a0ACT and 0.50\u00a0AKT this month, and earn about 14.30\u00a0ACT a month at present.")
	if body := ann.want(page(silent)); strings.Contains(body, "this month") || strings.Contains(body, "at present") {
		t.Errorf("what nobody knows is said: %s", body)
	}
	// Before the claim nothing was the owner's, and one box needs no sum.
	for _, path := range []string{"/boxes", page(fresh)} {
		if body := bob.want(path); strings.Contains(body, "Earned this month") || strings.Contains(body, "Together") {
			t.Errorf("%s counts what was before: %s", path, body)
		}
	}
	w.say(t, second, &fleetapi.State{Presence: fleetapi.Lost, Journal: 7, Epoch: 1})
	if body := ann.want(page(second), "Nothing was paid out this month yet."); strings.Contains(body, "at present") {
		t.Errorf("a box that is away earns: %s", body)
	}
	ann.want("/boxes", "earn about 12.30\u00a0ACT a month at present.")
}

func TestSumIsOverAllPagesOfBoxes(t *testing.T) {
	w := newWorld(t, origin)
	ann := w.owner(t, "ann@example.org")
	for n := range 51 {
		id := w.own(t, ann.account(), n)
		w.age(t, id)
		if n%10 == 0 {
			w.pay(t, id, "uact", 0, 1_000_000, 2_000_000)
		}
	}
	body := ann.want("/boxes", "Together your boxes earned about 6.00\u00a0ACT this month, and earn about 12.00\u00a0ACT a month at present.")
	if next := regexpFind(t, `href="(/boxes\?cursor=[^"]+)"`, body); strings.Contains(ann.want(next), "Together") {
		t.Error("the sum is on the second page too")
	}
}

func TestMoneyIsCountedExactly(t *testing.T) {
	for _, tc := range []struct {
		name   string
		values []float64
		want   int64
	}{
		{"nothing is known", nil, 0},
		{"it stood still", []float64{7, 7, 7}, 0},
		{"it grew", []float64{1 << 52, 1<<52 + 1, 1<<52 + 5}, 5},
		{"the box lost what it had written down", []float64{100, 110, 0, 3, 4}, 14},
		{"some of it was written down anew at once", []float64{100, 40, 45}, 45},
	} {
		var points []timeseries.Point
		for _, v := range tc.values {
			points = append(points, timeseries.Point{Value: v})
		}
		if got := console.Gain(points); got != tc.want {
			t.Errorf("%s: %v gains %d, want %d", tc.name, tc.values, got, tc.want)
		}
	}
	for amount, want := range map[int64]int64{0: 0, 999: 999, 1239: 1230, 1_239_999: 1_230_000, 99_999_999: 99_900_000} {
		if got := console.Rough(amount); got != want {
			t.Errorf("%d is about %d, want %d", amount, got, want)
		}
	}
}

func TestOwnerNamesHandsOverAndGivesUp(t *testing.T) {
	w := newWorld(t, origin)
	ann, bob := w.owner(t, "ann@example.org"), w.owner(t, "bob@example.org")
	id := w.own(t, ann.account(), 1)
	path := "/boxes/" + string(id)

	to, said := ann.follow(path, path+"/name", "name", "  Kitchen <b> ")
	wantSaid(t, "a name", to, said, path, "The name was changed.")
	ann.want(path, "Kitchen &lt;b&gt;")
	_, said = ann.follow(path, path+"/name", "name", strings.Repeat("x", 70))
	if said == "" || strings.Contains(said, "was changed") {
		t.Errorf("a name that is too long: %q", said)
	}

	ann.want(path+"/hand-over", "Make the code")
	rec := ann.post(path+"/hand-over", path+"/hand-over")
	code := regexpFind(t, `<code class="code">([^<]+)</code>`, rec.Body.String())
	if !strings.Contains(rec.Body.String(), `class="qr"`) {
		t.Error("there is no QR code")
	}
	ann.want(path, "You are handing this box over.")
	ann.want(path+"/hand-over", "nobody has used it")
	to, said = ann.follow(path+"/hand-over", path+"/hand-over/withdraw")
	wantSaid(t, "withdrawing", to, said, path, "stays yours")
	if _, said := bob.follow("/claim", "/claim", "code", code); !strings.Contains(said, "No box") {
		t.Errorf("a code that was withdrawn: %q", said)
	}

	code = regexpFind(t, `<code class="code">([^<]+)</code>`, ann.post(path+"/hand-over", path+"/hand-over").Body.String())
	if found := bob.post("/claim", "/claim", "code", code).Body.String(); !strings.Contains(found, "From another owner") {
		t.Errorf("the buyer finds %s", found)
	}
	if rec := bob.get(path); rec.Code != http.StatusNotFound {
		t.Errorf("before he confirms, the buyer sees %d", rec.Code)
	}
	to, _ = bob.follow("/claim", "/claim/confirm", "box", string(id))
	if to != path {
		t.Errorf("confirming leads to %s", to)
	}
	if rec := ann.get(path); rec.Code != http.StatusNotFound || !strings.Contains(rec.Body.String(), "There is no such box.") {
		t.Errorf("the seller sees %d %s", rec.Code, rec.Body)
	}
	for _, deed := range []string{"/name", "/hand-over", "/hand-over/withdraw", "/give-up"} {
		ann.post("/account", path+deed, "name", "mine")
	}
	if box := must(w.devices.Box(t.Context(), device.Actor{Staff: true}, id))(t); box.Name != "" || box.Claim.State != ownership.Claimed || box.Claim.Owner != bob.account() {
		t.Errorf("the seller changed it: %+v", box)
	}

	bob.want(path+"/give-up", "Yes, give it up")
	to, said = bob.follow(path+"/give-up", path+"/give-up")
	wantSaid(t, "giving up", to, said, "/boxes", "is not yours any more")
	if box := must(w.devices.Box(t.Context(), device.Actor{Staff: true}, id))(t); box.Claim.State != ownership.Released {
		t.Errorf("claim = %+v", box.Claim)
	}
}

func TestRestartAndLocate(t *testing.T) {
	w := newWorld(t, origin)
	ann, eve := w.owner(t, "ann@example.org"), w.owner(t, "eve@example.org")
	me := ann.account()
	id := w.own(t, me, 1)
	path := "/boxes/" + string(id)
	ann.want(path, "Where is it?", "Restart")
	ann.want(path+"/restart", "Restart now", "away for two or three minutes")
	to, said := ann.follow(path, path+"/locate")
	wantSaid(t, "locating", to, said, path, "whose light blinks")
	to, said = ann.follow(path+"/restart", path+"/restart")
	wantSaid(t, "restarting", to, said, path, "restarts in a moment")
	ann.want(path, "A restart is asked for.")
	if rec := eve.post("/account", path+"/restart"); rec.Code == http.StatusSeeOther && rec.Header().Get("Location") == path {
		t.Error("a stranger restarts it")
	}
	jobs, _, err := w.jobs.List(t.Context(), job.Actor{ID: me}, job.Query{Device: id})
	check(t, err)
	var kinds []fleetapi.JobKind
	for _, j := range jobs {
		if kinds = append(kinds, j.Kind); j.By != me {
			t.Errorf("%s was ordered by %s", j.Kind, j.By)
		}
	}
	if !slices.Equal(kinds, []fleetapi.JobKind{fleetapi.KindReboot, fleetapi.KindLocate}) {
		t.Errorf("jobs are %v", kinds)
	}
}

func TestAccount(t *testing.T) {
	w := newWorld(t, origin)
	ann := w.owner(t, "ann@example.org")
	me := ann.account()
	ann.want("/account", "ann@example.org", "Passkeys", "Quiet hours", "Here", "API tokens")

	to, said := ann.follow("/account", "/auth/name", "name", "Ann")
	wantSaid(t, "a name", to, said, "/account", "Your name was changed.")
	to, said = ann.follow("/account", "/account/quiet", "begin", "22:30", "end", "07:00", "zone", "Europe/Vienna", "mute", "yes")
	wantSaid(t, "quiet hours", to, said, "/account#quiet", "were saved")
	if q := must(w.alerts.Quiet(t.Context(), me))(t); q.From != 22*60+30 || q.To != 7*60 || q.Zone != "Europe/Vienna" || !q.Mute {
		t.Errorf("quiet hours are %+v", q)
	}
	ann.want("/account", `value="22:30"`, `value="07:00"`, "Europe/Vienna", "checked")
	_, said = ann.follow("/account", "/account/quiet", "begin", "22:30", "end", "07:00", "zone", "Mars/Olympus")
	if !strings.Contains(said, "time zone") {
		t.Errorf("a zone that is none: %q", said)
	}

	rec := ann.post("/account", "/account/token", "name", "my script", "days", "30", "scope", "device:read", "scope", "telemetry:read")
	token := regexpFind(t, `<code>(croft_[^<]+)</code>`, rec.Body.String())
	r := httptest.NewRequest(http.MethodGet, origin+"/auth/me", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	answer := httptest.NewRecorder()
	w.handler.ServeHTTP(answer, r)
	if !strings.Contains(answer.Body.String(), me) {
		t.Errorf("the token is nobody's: %s", answer.Body)
	}
	page := ann.want("/account", "my script")
	to, said = ann.follow("/account", "/auth/tokens/end", "id", regexpFind(t, `value="(tok_[^"]+)"`, page))
	wantSaid(t, "ending it", to, said, "/account", "does not work any more")

	second := w.owner(t, "ann@example.org")
	ann.want("/account", "Sign out everywhere else")
	ann.follow("/account", "/auth/sessions/end", "id", "")
	if rec := second.get("/boxes"); rec.Code != http.StatusSeeOther {
		t.Errorf("the other browser is still signed in: %d", rec.Code)
	}
	to, said = ann.follow("/account", "/auth/logout")
	wantSaid(t, "signing out", to, said, "/login", "signed out")
}

func TestStaffSignsInForTheFirstTime(t *testing.T) {
	w := newWorld(t, origin)
	token := must(w.auth.Bootstrap(t.Context()))(t).Reveal()
	if _, after, ok := strings.Cut(token, "token="); ok {
		token = after
	}
	b := w.browser(t)
	link := "/login/link?token=" + token
	b.want(link, "The first administrator")
	to, _ := b.follow(link, "/auth/accept", "token", token, "email", "root@example.org", "name", "Root", "password", "a field of 7 sheep")
	if to != frame.EnrollPath {
		t.Fatalf("accepting leads to %s", to)
	}
	if rec := b.get("/account"); rec.Header().Get("Location") != frame.EnrollPath+"?then=%2Faccount" {
		t.Errorf("half signed in, the account leads to %q", rec.Header().Get("Location"))
	}
	secretOf := func() string {
		return regexpFind(t, `data-copy="([A-Z2-7]+)"`, b.want(frame.EnrollPath, `class="qr"`))
	}
	shared := secretOf()
	to, said := b.follow(frame.EnrollPath, "/auth/totp/confirm", "code", "000000")
	if to != frame.EnrollPath || said == "" {
		t.Errorf("a wrong code leads to %s and says %q", to, said)
	}
	if again := secretOf(); again != shared {
		t.Error("after a wrong code the secret is another one")
	}
	code := must(totp.GenerateCode(shared, time.Now()))(t)
	rec := b.post(frame.EnrollPath, "/auth/totp/confirm", "code", code)
	if rec.Code != http.StatusOK || strings.Count(rec.Body.String(), "data-copy=") != 10 {
		t.Fatalf("recovery codes: %d %s", rec.Code, rec.Body)
	}
	recovery := regexpFind(t, `<code>([a-z0-9]{5}-[a-z0-9]{5})</code>`, rec.Body.String())
	if rec := b.get("/"); rec.Header().Get("Location") != frame.StaffHome {
		t.Errorf("the first page leads to %q", rec.Header().Get("Location"))
	}
	b.want("/account", "root@example.org")
	b.want("/claim", "staff owns no boxes")
	if rec := b.get("/boxes"); rec.Header().Get("Location") != frame.StaffHome {
		t.Errorf("boxes of staff: %d", rec.Code)
	}

	b = w.browser(t)
	to, said = b.follow("/login", "/auth/password", "email", "root@example.org", "password", "wrong wrong wrong")
	if to != "/login" || said == "" {
		t.Errorf("a wrong password leads to %s and says %q", to, said)
	}
	to, _ = b.follow("/login", "/auth/password", "email", "root@example.org", "password", "a field of 7 sheep", "then", "/account")
	if to != "/login/code?then=%2Faccount" {
		t.Fatalf("the password leads to %s", to)
	}
	to, _ = b.follow(to, "/auth/totp", "code", recovery, "then", "/account")
	if to != "/account" {
		t.Errorf("the code leads to %s", to)
	}
	b.want("/login/reset", "Send the link")
}

func TestALinkOpenedElsewhereWantsAButton(t *testing.T) {
	w := newWorld(t, origin)
	b := w.browser(t)
	b.follow("/login", "/auth/link", "email", "ann@example.org")
	token := tokenMail.FindStringSubmatch(<-w.mails)[1]
	other := w.browser(t)
	link := "/login/link?token=" + token
	other.want(link, "Go on only if that was you", `name="confirm" value="yes"`)
	if strings.Contains(b.want(link), `name="confirm"`) {
		t.Error("the browser that asked is asked too")
	}
	other.want(link) // programs look into mails: that uses nothing up
	if to, _ := other.follow(link, "/auth/link/redeem", "token", token, "confirm", "yes"); to != "/boxes" {
		t.Errorf("it leads to %s", to)
	}
	if rec := b.get(link); rec.Code != http.StatusForbidden || !strings.Contains(rec.Body.String(), "used before") {
		t.Errorf("a used link: %d", rec.Code)
	}
}

func TestBoxesOfOthersAreNotThere(t *testing.T) {
	w := newWorld(t, origin)
	ann, eve := w.owner(t, "ann@example.org"), w.owner(t, "eve@example.org")
	id := w.own(t, ann.account(), 1)
	for _, path := range []string{"", "/events", "/chart/cpu", "/hand-over", "/give-up"} {
		for _, of := range []string{string(id), string(idOf(99)), "junk"} {
			if rec := eve.get("/boxes/" + of + path); rec.Code != http.StatusNotFound {
				t.Errorf("GET /boxes/%s%s: %d", of, path, rec.Code)
			}
		}
	}
	if rec := eve.get("/boxes/" + string(id) + "/restart"); rec.Code != http.StatusNotFound {
		t.Errorf("GET restart: %d", rec.Code)
	}
	for _, deed := range []string{"/name", "/locate", "/restart", "/hand-over", "/hand-over/withdraw", "/give-up"} {
		_, theirs := eve.follow("/account", "/boxes/"+string(id)+deed, "name", "Eve's")
		_, none := eve.follow("/account", "/boxes/"+string(idOf(99))+deed, "name", "Eve's")
		if theirs != none || !strings.Contains(theirs, "There is no such box") {
			t.Errorf("POST %s says %q of another's box, and %q of none", deed, theirs, none)
		}
	}
	box := must(w.devices.Box(t.Context(), device.Actor{ID: ann.account()}, id))(t)
	jobs, _, err := w.jobs.List(t.Context(), job.Actor{ID: ann.account()}, job.Query{Device: id})
	if check(t, err); box.Name != "" || box.Claim.State != "claimed" || len(jobs) > 0 {
		t.Errorf("a stranger changed it: %+v, jobs %+v", box.Claim, jobs)
	}
	if body := eve.want("/boxes"); strings.Contains(body, id.ShortName()) {
		t.Error("the list has it")
	}
}

func TestChartsBeginWithTheClaim(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 3, 0, time.UTC)
	for _, tc := range []struct {
		since      time.Duration
		step, span time.Duration
	}{
		{0, 10 * time.Second, 0},
		{70 * time.Second, 10 * time.Second, 70 * time.Second},
		{50 * time.Minute, 10 * time.Second, 50 * time.Minute},
		{time.Hour, 30 * time.Second, time.Hour},
		{9 * time.Hour, 2 * time.Minute, 9 * time.Hour},
		{30 * 24 * time.Hour, 5 * time.Minute, 24 * time.Hour},
	} {
		from, to, step := console.Span(now.Add(-tc.since), now)
		if step != tc.step || to.Sub(from) != tc.span || to.After(now) || now.Sub(to) >= step {
			t.Errorf("%v after the claim: %v to %v in steps of %v", tc.since, from, to, step)
		}
	}
}
