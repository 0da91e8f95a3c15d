package frame_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

const origin = "https://fleet.example.org"

type recorder struct{}

func (recorder) Record(*db.Tx, auth.Entry) error { return nil }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newFrame(t testing.TB, d *db.DB, change func(*frame.Config)) *frame.Frame {
	t.Helper()
	key := bytes.Repeat([]byte{9}, secret.KeySize)
	people, err := auth.New(t.Context(), auth.Config{DB: d, Key: key, Auditor: recorder{}, Origin: origin})
	check(t, err)
	cfg := frame.Config{DB: d, Auth: authhttp.Config{Auth: people, Key: key, Origin: origin}}
	if change != nil {
		change(&cfg)
	}
	f, err := frame.New(cfg)
	check(t, err)
	return f
}

func sqlite(t testing.TB) *db.DB { return dbtest.Open(t, dbtest.URL(t, dbtest.SQLite)) }

// hello is a part with one page, as other packages have them.
var hello = frame.Part{
	Templates: fstest.MapFS{"templates/hello.html": {Data: []byte(`{{define "main"}}
<h1>{{t "hello.title" .Data.Name}}</h1>
<p>{{n "hello.box" .Data.Boxes}}, {{ago .Data.At}}, {{badge "warn" "hot & dusty"}}</p>
<form method="post" action="/hello">{{.Hidden}}<button class="primary">{{t "hello.wave"}}</button></form>
{{template "pager" "/hello?cursor=x"}}{{template "chart" (args "id" "cpu" "title" "CPU" "url" "/chart")}}
{{end}}`)}},
	Words: []byte(`
[hello]
title = "Good day, {1}"
wave = "Wave"
waved = "You waved."
box.one = "You have one box"
box.other = "You have {1} boxes"
`),
	Style: []byte("h1 { color: var(--accent); }"),
}

type greeting struct {
	Name  string
	Boxes int
	At    time.Time
}

// site is a console with the page of hello, whose form does what do does.
func site(t testing.TB, do func(f *frame.Frame, w http.ResponseWriter, r *http.Request) error) http.Handler {
	t.Helper()
	f := newFrame(t, sqlite(t), nil)
	views, err := f.Views(hello)
	check(t, err)
	mux := http.NewServeMux()
	f.Handle(mux, "GET /hello", nil, func(w http.ResponseWriter, r *http.Request, _ rights.Principal) error {
		return views.Show(w, r, frame.Page{Template: "hello", Title: views.Say("hello.wave"), Bare: true, Data: greeting{"<Ann>", 3, time.Now().Add(-3 * time.Minute)}})
	})
	f.Handle(mux, "POST /hello", nil, func(w http.ResponseWriter, r *http.Request, _ rights.Principal) error { return do(f, w, r) })
	f.Handle(mux, "GET /broken", nil, func(http.ResponseWriter, *http.Request, rights.Principal) error {
		return errors.New("secret of the house")
	})
	f.Handle(mux, "GET /later", nil, func(http.ResponseWriter, *http.Request, rights.Principal) error {
		return &auth.TooSoonError{Until: time.Now().Add(10*time.Minute + time.Second)}
	})
	f.Handle(mux, "GET /mine", frame.Need(rights.Device, rights.Read), func(http.ResponseWriter, *http.Request, rights.Principal) error { return nil })
	f.Handle(mux, "GET /chart", nil, func(w http.ResponseWriter, r *http.Request, _ rights.Principal) error {
		from := time.Unix(1_800_000_000, 0)
		c := frame.Chart{Title: "CPU <1>", Unit: frame.UnitShare, From: from, To: from.Add(time.Hour), Step: 5 * time.Minute, Back: "/hello"}
		c.Add("Busy", []timeseries.Point{{At: from, Value: 0.25}, {At: from.Add(30 * time.Minute), Value: 0.5}})
		return f.ShowChart(w, r, c)
	})
	return f.Handler(mux)
}

func get(h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, origin+path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// want reports which of some texts an answer has not.
func want(t testing.TB, rec *httptest.ResponseRecorder, status int, texts ...string) {
	t.Helper()
	if rec.Code != status {
		t.Errorf("status %d, want %d", rec.Code, status)
	}
	for _, text := range texts {
		if !strings.Contains(rec.Body.String(), text) {
			t.Errorf("there is no %q in\n%s", text, rec.Body)
		}
	}
}

func TestAPageOfAPart(t *testing.T) {
	rec := get(site(t, nil), "/hello")
	want(t, rec, http.StatusOK, "<title>Wave · Croft</title>", "Good day, &lt;Ann&gt;", "You have 3 boxes", ">3 minutes ago</time>",
		`<span class="badge warn"><svg`, "hot &amp; dusty</span>", `name="form_token"`, `name="from" value="/hello"`, `href="/hello?cursor=x"`, `data-chart="/chart"`)
	policy := rec.Header().Get("Content-Security-Policy")
	if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") {
		t.Errorf("policy %q", policy)
	}
	for _, bad := range []string{"<style", " style=", " onclick=", "<script>"} {
		if strings.Contains(rec.Body.String(), bad) {
			t.Errorf("the page has %q, which its policy forbids", bad)
		}
	}
	if rec.Header().Get("Cache-Control") != "no-store" || rec.Header().Get("Referrer-Policy") != "strict-origin" {
		t.Errorf("headers %v", rec.Header())
	}
}

func TestAssetsAreKeptForEver(t *testing.T) {
	h := site(t, nil)
	found := regexp.MustCompile(`(?:src|href)="(/assets/[^"]+)"`).FindAllStringSubmatch(get(h, "/hello").Body.String(), -1)
	if len(found) != 7 {
		t.Fatalf("assets are %v", found)
	}
	for _, f := range found {
		plain, small := get(h, f[1]), get(h, f[1], "Accept-Encoding", "gzip")
		if plain.Code != http.StatusOK || !strings.Contains(plain.Header().Get("Cache-Control"), "immutable") || !regexp.MustCompile(`/[0-9a-f]{12}-`).MatchString(f[1]) {
			t.Errorf("%s: %d %v", f[1], plain.Code, plain.Header())
		}
		if small.Header().Get("Content-Encoding") != "gzip" || small.Body.Len() >= plain.Body.Len() && plain.Body.Len() > 500 {
			t.Errorf("%s by gzip: %d of %d bytes", f[1], small.Body.Len(), plain.Body.Len())
		}
	}
	if rec := get(h, "/assets/000000000000-croft.css"); rec.Code != http.StatusNotFound {
		t.Errorf("an asset of another release: %d", rec.Code)
	}
}

func TestErrorsAreSaidInWords(t *testing.T) {
	h := site(t, nil)
	want(t, get(h, "/nowhere"), http.StatusNotFound, "There is nothing here", "There is no such page.")
	want(t, get(h, "/later"), http.StatusTooManyRequests, "That was tried too often. Try again in 10 minutes.")
	rec := get(h, "/broken")
	want(t, rec, http.StatusInternalServerError, "Something went wrong on our side")
	if strings.Contains(rec.Body.String(), "secret of the house") {
		t.Error("an error nobody wrote for people is shown")
	}
	rec = get(h, "/mine?x=1")
	if to := rec.Header().Get("Location"); rec.Code != http.StatusSeeOther || to != "/login?then=%2Fmine%3Fx%3D1" {
		t.Errorf("who is not signed in: %d to %q", rec.Code, to)
	}
	if rec := get(h, "/mine", "HX-Request", "true"); rec.Code != http.StatusUnauthorized {
		t.Errorf("a part of a page: %d", rec.Code)
	}
}

func TestFormsSayInTheNextPageWhatBecameOfThem(t *testing.T) {
	fail := error(nil)
	h := site(t, func(f *frame.Frame, w http.ResponseWriter, r *http.Request) error {
		if fail != nil {
			return fail
		}
		return f.Then(w, r, "/hello?done", frame.Good, "You <waved>.")
	})
	post := func() *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, origin+"/hello", strings.NewReader(url.Values{"from": {"/hello?here"}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		return rec
	}
	next := func(rec *httptest.ResponseRecorder) *httptest.ResponseRecorder {
		cookies := rec.Result().Cookies()
		if len(cookies) != 1 || !cookies[0].Secure || !cookies[0].HttpOnly {
			t.Fatalf("cookies %v", cookies)
		}
		return get(h, rec.Header().Get("Location"), "Cookie", cookies[0].Name+"="+cookies[0].Value)
	}
	rec := post()
	if rec.Code != http.StatusSeeOther || rec.Header().Get("Location") != "/hello?done" {
		t.Fatalf("%d to %q", rec.Code, rec.Header().Get("Location"))
	}
	after := next(rec)
	want(t, after, http.StatusOK, `<div class="said good" role="status">`, "You &lt;waved&gt;.")
	if cookies := after.Result().Cookies(); !slices.ContainsFunc(cookies, func(c *http.Cookie) bool {
		return c.Name == rec.Result().Cookies()[0].Name && c.MaxAge < 0
	}) {
		t.Errorf("it would be said again: %v", cookies)
	}

	fail = &croft.Error{Kind: croft.KindUsage, Err: errors.New("the name is too long"), Remedy: "take a shorter one"}
	rec = post()
	if rec.Header().Get("Location") != "/hello?here" {
		t.Errorf("a mistake leads to %q", rec.Header().Get("Location"))
	}
	want(t, next(rec), http.StatusOK, `<div class="said bad"`, "The name is too long. Take a shorter one.")

	fail = errors.New("secret of the house")
	want(t, post(), http.StatusInternalServerError, "Something went wrong on our side")
	fail = auth.ErrStale
	if to := post().Header().Get("Location"); to != "/login?then=%2Fhello%3Fhere" {
		t.Errorf("what needs a fresh sign-in leads to %q", to)
	}
}

func TestChartIsJSONForScriptsAndATableForPeople(t *testing.T) {
	h := site(t, nil)
	want(t, get(h, "/chart"), http.StatusOK, "CPU &lt;1&gt;", "<td class=\"num\">50 %</td>", "<td class=\"num\">–</td>", `href="/hello"`)
	var out struct {
		Unit, Summary string
		Times         []int64
		Lines         []struct {
			Name   string
			Values []*float64
		}
	}
	check(t, json.Unmarshal(get(h, "/chart", "Accept", "application/json").Body.Bytes(), &out))
	if len(out.Times) != 13 || len(out.Lines) != 1 || len(out.Lines[0].Values) != 13 || out.Lines[0].Values[1] != nil || *out.Lines[0].Values[6] != 0.5 {
		t.Errorf("%+v", out)
	}
	if out.Summary != "Busy: now 50 %, lowest 25 %, highest 50 %." || out.Unit != "share" {
		t.Errorf("%q %q", out.Summary, out.Unit)
	}
}

func TestWords(t *testing.T) {
	for _, fault := range frame.Check(frame.Own(), os.DirFS(".")) {
		t.Error(fault)
	}
	f := newFrame(t, sqlite(t), nil)
	page := func(text string) fstest.MapFS {
		return fstest.MapFS{"x.html": {Data: []byte(`{{define "main"}}` + text + `{{end}}`)}}
	}
	for name, part := range map[string]frame.Part{
		"there are no words":            {Templates: page(`{{if .Data}}{{with .Data}}{{t "x.missing"}}{{end}}{{end}}`)},
		"there is no count of":          {Templates: page(`{{n "x.a" 1}}`), Words: []byte("[x]\na = \"one\"")},
		"the frame has these words too": {Words: []byte("[frame]\nmore = \"x\"")},
		"it is no text":                 {Words: []byte("[x]\na = 1")},
		"it is no TOML":                 {Words: []byte("[x")},
		"it is no template":             {Templates: page(`{{if}}`)},
		"it calls what is not there":    {Templates: page(`{{shout "x"}}`)},
	} {
		if _, err := f.Views(part); err == nil {
			t.Errorf("%s, and nobody minds", name)
		}
	}
	faults := frame.Check(frame.Part{Words: []byte("[x]\nused = \"1\"\nidle = \"2\"\nmany.one = \"1\"\nmany.other = \"2\"\nkind.a = \"3\"")}, fstest.MapFS{
		"x.go":        {Data: []byte(`package x; var _ = say("x.used") + say("x.kind."+k) + say("x.gone") + "y.other"`)},
		"x.html":      {Data: []byte(`{{n "x.many" 2}}`)},
		"x_test.go":   {Data: []byte(`package x; var _ = "x.idle"`)},
		"sub/sub.go":  {Data: []byte(`package sub; var _ = "x.elsewhere"`)},
		"sub/x.html":  {Data: []byte(`{{t "x.elsewhere"}}`)},
		"readme.text": {Data: []byte(`"x.text"`)},
	})
	if got := strings.Join(faults, "; "); got != "nothing says x.idle; there are no words for x.gone" {
		t.Errorf("faults are %q", got)
	}
}

func TestFormats(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{frame.Bytes(0), "0 B"},
		{frame.Bytes(999), "999 B"},
		{frame.Bytes(1000), "1 kB"},
		{frame.Bytes(1536), "1.54 kB"},
		{frame.Bytes(999_999), "1 MB"},
		{frame.Bytes(16e9), "16 GB"},
		{frame.Bytes(123.4e9), "123 GB"},
		{frame.Bytes(5e18), "5000 PB"},
		{frame.Percent(0), "0 %"},
		{frame.Percent(0.004), "<1 %"},
		{frame.Percent(0.125), "12 %"},
		{frame.Percent(1), "100 %"},
		{frame.Number(12345), "12,345"},
		{frame.Number(-1234567), "−1,234,567"},
		{frame.Number(999), "999"},
		{frame.Number(0.5), "0.5"},
		{frame.Number(3.14159), "3.14"},
		{frame.Price("1500000", "uact"), "1.50 ACT"},
		{frame.Price("1", "uakt"), "0.000001 AKT"},
		{frame.Price("0", "uakt"), "0.00 AKT"},
		{frame.Price("1234567890123", "uact"), "1,234,567.890123 ACT"},
		{frame.Price("x", "uact"), "x uact"},
		{frame.Price("5", "stake"), "5 stake"},
		{frame.UnitCelsius.Format(48.24), "48.2 °C"},
		{frame.UnitRate.Format(2e6), "2 MB/s"},
		{frame.Sentence(&croft.Error{Kind: croft.KindUsage, Err: errors.New("ärger"), Remedy: "wait"}), "Ärger. Wait."},
		{frame.Sentence(errors.New("x")), ""},
		{frame.LocalPath("/boxes?x=1"), "/boxes?x=1"},
		{frame.LocalPath("//evil"), ""},
		{frame.LocalPath(`/\evil`), ""},
		{frame.LocalPath("https://evil"), ""},
		{frame.LocalPath("/a\r\nSet-Cookie: x"), ""},
		{frame.LocalPath(""), ""},
	} {
		if tc.got != tc.want {
			t.Errorf("%q, want %q", tc.got, tc.want)
		}
	}
	if _, err := frame.Badge("loud", "x"); err == nil {
		t.Error("there is a badge of any tone")
	}
	code, err := frame.QR("https://fleet.example.org/claim#K7QM2XWP", `a "code"`)
	if err != nil || !strings.Contains(string(code), html.EscapeString(`a "code"`)) || strings.Contains(string(code), "K7QM") {
		t.Errorf("%v %s", err, code)
	}
}

// stream is what a page hears.
type stream struct {
	header http.Header
	mu     sync.Mutex
	status int
	text   strings.Builder // guarded by mu
}

func (s *stream) Header() http.Header    { return s.header }
func (s *stream) WriteHeader(status int) { s.status = status }
func (s *stream) Flush()                 {}
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *stream) changes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.text.String(), "event: changed")
}

func TestLiveUpdates(t *testing.T) {
	where := dbtest.URL(t, dbtest.SQLite)
	synctest.Test(t, func(t *testing.T) {
		d := dbtest.Open(t, where)
		f := newFrame(t, d, func(cfg *frame.Config) { cfg.MaxLive = 12 })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()
		synctest.Wait()

		ann := rights.Principal{Account: "own_ann", Role: rights.RoleOwner, Stage: rights.StageFull}
		bob := rights.Principal{Account: "own_bob", Role: rights.RoleOwner, Stage: rights.StageFull}
		var pages sync.WaitGroup
		open := func(p rights.Principal, url string) *stream {
			s := &stream{header: http.Header{}}
			r := httptest.NewRequest(http.MethodGet, origin+url, nil).WithContext(ctx)
			pages.Go(func() {
				if err := f.ServeLive(s, r, p); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
			return s
		}
		change := func(topic, payload string) {
			check(t, d.Write(ctx, func(tx *db.Tx) error { tx.Notify(topic, payload); return nil }))
			synctest.Wait()
		}

		one := open(ann, f.LiveURL(ann, "device:box1", "alert"))
		other := open(ann, f.LiveURL(ann, "device:box2"))
		all := open(bob, f.LiveURL(bob, "device", "device:box9"))
		for range 50 {
			change("device", "box7 box1")
			time.Sleep(50 * time.Millisecond)
		}
		if n := one.changes(); n < 3 || n > 4 {
			t.Errorf("in 2.5 s of changes a page was told %d times", n)
		}
		if other.changes() != 0 || all.changes() == 0 {
			t.Errorf("a page of another box was told %d times, one of all boxes %d", other.changes(), all.changes())
		}
		time.Sleep(2 * time.Second)
		before := one.changes()
		change("alert", "")
		change("job", "job_1")
		if n := one.changes() - before; n != 1 {
			t.Errorf("of an alert it was told %d times", n)
		}
		change("device", "") // read everything again
		if other.changes() != 1 {
			t.Errorf("of what may be anything a page was told %d times", other.changes())
		}

		if s := open(bob, f.LiveURL(ann, "device:box1")); s.status != http.StatusForbidden {
			t.Errorf("another's page: %d", s.status)
		}
		if s := open(rights.Principal{}, f.LiveURL(rights.Principal{}, "device")); s.status != http.StatusForbidden {
			t.Errorf("nobody's page: %d", s.status)
		}
		for range 8 {
			open(ann, f.LiveURL(ann, "device:box1"))
		}
		if s := open(ann, f.LiveURL(ann, "device:box1")); s.status != http.StatusServiceUnavailable {
			t.Errorf("a person's 11th page: %d", s.status)
		}
		open(bob, f.LiveURL(bob, "device"))
		if s := open(bob, f.LiveURL(bob, "device")); s.status != http.StatusServiceUnavailable {
			t.Errorf("a page too many of all: %d", s.status)
		}
		time.Sleep(11 * time.Minute) // each page has to come again, and is asked who it is
		pages.Wait()
		again := open(ann, f.LiveURL(ann, "device:box1"))
		cancel()
		check(t, <-ended)
		pages.Wait()
		if again.status != 0 {
			t.Errorf("after all left: %d", again.status)
		}
	})
}
