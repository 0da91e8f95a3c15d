package authhttp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

const origin = "https://fleet.example.org"

type recorder struct{}

func (recorder) Record(*db.Tx, auth.Entry) error { return nil }

// mailbox hands mails over one by one.
type mailbox chan string

func (m mailbox) Send(ctx context.Context, _, _, text string) error {
	select {
	case m <- text:
	case <-ctx.Done():
	}
	return nil
}

// pages is a console that says what it was told.
type pages struct{}

func (pages) Done(w http.ResponseWriter, r *http.Request, a authhttp.Answer) {
	http.Redirect(w, r, "/then/"+string(a.Next), http.StatusSeeOther)
}

func (pages) Failed(w http.ResponseWriter, _ *http.Request, status int, err error) {
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "page: %v", err)
}

type world struct {
	t     *testing.T
	auth  *auth.Service
	door  *authhttp.Door
	h     http.Handler
	mails mailbox
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func each(t *testing.T, test func(t *testing.T, w *world)) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := &world{t: t, mails: make(mailbox)}
		key := bytes.Repeat([]byte{9}, secret.KeySize)
		var err error
		w.auth, err = auth.New(t.Context(), auth.Config{DB: d, Key: key, Auditor: recorder{}, Mailer: w.mails, Origin: origin})
		must(t, err)
		w.door, err = authhttp.New(authhttp.Config{Auth: w.auth, Key: key, Origin: origin, Pages: pages{}})
		must(t, err)
		mux := http.NewServeMux()
		mux.Handle("/auth/", w.door.Handler())
		page := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(rw, "%s|%s", rights.FromContext(r.Context()).Account, w.door.FormToken(rw, r))
		})
		mux.Handle("/page", page)
		mux.Handle("GET /staff", w.door.Require(rights.Staff, rights.Read, page))
		mux.Handle("GET /boxes", w.door.Require(rights.Device, rights.Read, page))
		w.h = w.door.Guard(mux)
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() {
			if err := w.auth.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		defer work.Wait()
		defer cancel()
		test(t, w)
	})
}

// browser keeps cookies as browsers do.
type browser struct {
	*world
	cookies map[string]*http.Cookie
}

func (w *world) browser() *browser { return &browser{w, map[string]*http.Cookie{}} }

func (b *browser) do(r *http.Request) *httptest.ResponseRecorder {
	for _, c := range b.cookies {
		r.AddCookie(c)
	}
	rec := httptest.NewRecorder()
	b.h.ServeHTTP(rec, r.WithContext(b.t.Context()))
	for _, c := range rec.Result().Cookies() {
		if !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode {
			b.t.Errorf("cookie %+v", c)
		}
		if b.cookies[c.Name] = c; c.Value == "" {
			delete(b.cookies, c.Name)
		}
	}
	return rec
}

func (b *browser) get(path string) *httptest.ResponseRecorder {
	return b.do(httptest.NewRequest(http.MethodGet, origin+path, nil))
}

// token is a form's token, from a page.
func (b *browser) token() string {
	_, token, _ := strings.Cut(b.get("/page").Body.String(), "|")
	return token
}

func form(path string, fields ...string) *http.Request {
	v := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		v.Set(fields[i], fields[i+1])
	}
	r := httptest.NewRequest(http.MethodPost, origin+path, strings.NewReader(v.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", origin)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return r
}

func (b *browser) post(path string, fields ...string) *httptest.ResponseRecorder {
	return b.do(form(path, append(fields, authhttp.FormField, b.token())...))
}

// program posts JSON and reads the answer.
func (b *browser) program(path string, in map[string]any) (int, map[string]any) {
	b.t.Helper()
	raw, err := json.Marshal(in)
	must(b.t, err)
	r := httptest.NewRequest(http.MethodPost, origin+path, bytes.NewReader(raw))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(authhttp.FormHeader, b.token())
	rec := b.do(r)
	var out map[string]any
	must(b.t, json.Unmarshal(rec.Body.Bytes(), &out))
	return rec.Code, out
}

var tokenInMail = regexp.MustCompile(`\?token=(\S+)`)

func (w *world) mailed() string { return tokenInMail.FindStringSubmatch(<-w.mails)[1] }

func (w *world) owner(email string) *browser {
	w.t.Helper()
	b := w.browser()
	b.post("/auth/link", "email", email)
	if to := b.post("/auth/link/redeem", "token", w.mailed()).Header().Get("Location"); to != "/then/signed_in" {
		w.t.Fatalf("redeeming a link goes to %q", to)
	}
	return b
}

func (w *world) staff(admin *browser, role rights.Role) *browser {
	w.t.Helper()
	b, email := w.browser(), string(role)+"@example.org"
	var token string
	if admin == nil {
		made, err := w.auth.Bootstrap(w.t.Context())
		must(w.t, err)
		token = made.Reveal()
	} else {
		admin.post("/auth/staff/invite", "email", email, "role", string(role))
		token = w.mailed()
	}
	if to := b.post("/auth/accept", "token", token, "email", email, "password", "a field of 7 sheep").Header().Get("Location"); to != "/then/enroll" {
		w.t.Fatalf("accepting goes to %q", to)
	}
	if rec := b.get("/boxes"); rec.Code != http.StatusUnauthorized {
		w.t.Errorf("without a second factor: %d", rec.Code)
	}
	_, out := b.program("/auth/totp/begin", nil)
	data, _ := out["data"].(map[string]any)
	u, err := url.Parse(fmt.Sprint(data["url"]))
	must(w.t, err)
	code, err := totp.GenerateCode(u.Query().Get("secret"), time.Now())
	must(w.t, err)
	if to := b.post("/auth/totp/confirm", "code", code).Header().Get("Location"); to != "/then/recovery" {
		w.t.Fatalf("confirming goes to %q", to)
	}
	return b
}

func TestOwnerSignsInWithoutJavaScript(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ann := w.owner("ann@example.org")
		if rec := ann.get("/boxes"); rec.Code != 200 || !strings.HasPrefix(rec.Body.String(), "own_") {
			t.Errorf("boxes: %d %s", rec.Code, rec.Body)
		}
		if rec := ann.get("/staff"); rec.Code != http.StatusForbidden || !strings.HasPrefix(rec.Body.String(), "page: ") {
			t.Errorf("staff: %d %s", rec.Code, rec.Body)
		}
		if rec := w.browser().get("/boxes"); rec.Code != http.StatusUnauthorized {
			t.Errorf("nobody: %d", rec.Code)
		}
		if rec := ann.post("/auth/logout"); rec.Header().Get("Location") != "/then/done" {
			t.Errorf("logout: %d %s", rec.Code, rec.Body)
		}
		if rec := ann.get("/boxes"); rec.Code != http.StatusUnauthorized {
			t.Errorf("after signing out: %d", rec.Code)
		}
	})
}

func TestForgedFormsAreRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ann, eve := w.owner("ann@example.org"), w.owner("eve@example.org")
		nobody := w.browser()
		for name, r := range map[string]*http.Request{
			"no token":                    form("/auth/name", "name", "x"),
			"a token of another session":  form("/auth/name", "name", "x", authhttp.FormField, eve.token()),
			"a token of nobody's":         form("/auth/name", "name", "x", authhttp.FormField, nobody.token()),
			"junk":                        form("/auth/name", "name", "x", authhttp.FormField, "x"),
			"a token in the URL":          form("/auth/name?"+authhttp.FormField+"="+ann.token(), "name", "x"),
			"an empty token":              form("/auth/name", "name", "x", authhttp.FormField, ""),
			"outside of this package too": form("/page"),
		} {
			if rec := ann.do(r); rec.Code != http.StatusForbidden {
				t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
			}
		}
		for name, header := range map[string][2]string{
			"of another site":       {"Sec-Fetch-Site", "cross-site"},
			"of a subdomain":        {"Sec-Fetch-Site", "same-site"},
			"of an old browser":     {"Origin", "https://evil.example.org"},
			"of an opaque document": {"Origin", "null"},
		} {
			r := form("/auth/name", "name", "x", authhttp.FormField, ann.token())
			r.Header.Set("Origin", "https://evil.fleet.example.org")
			if r.Header.Set(header[0], header[1]); header[0] == "Origin" {
				r.Header.Del("Sec-Fetch-Site")
			}
			if rec := ann.do(r); rec.Code != http.StatusForbidden {
				t.Errorf("a form %s: %d", name, rec.Code)
			}
		}
		// Signing somebody in to a stranger's account is refused too.
		if rec := nobody.do(form("/auth/link", "email", "eve@example.org")); rec.Code != http.StatusForbidden {
			t.Errorf("a sign-in without a token: %d", rec.Code)
		}
		if rec := nobody.do(form("/auth/link", "email", "eve@example.org", authhttp.FormField, w.browser().token())); rec.Code != http.StatusForbidden {
			t.Errorf("a sign-in with a token of another browser: %d", rec.Code)
		}
		if one, two := ann.token(), ann.token(); one == two {
			t.Error("the token is the same in two pages")
		}
		if rec := ann.post("/auth/name", "name", "Ann"); rec.Header().Get("Location") != "/then/done" {
			t.Errorf("the right form: %d %s", rec.Code, rec.Body)
		}
	})
}

func TestTokensStandForThemselves(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ann := w.owner("ann@example.org")
		status, out := ann.program("/auth/tokens", map[string]any{"name": "ci", "scopes": "account:write", "days": 3})
		data, _ := out["data"].(map[string]any)
		token, _ := data["token"].(string)
		if status != 200 || !strings.HasPrefix(token, "croft_") {
			t.Fatalf("%d %v", status, out)
		}
		call := func(b *browser, authorization, path string) *httptest.ResponseRecorder {
			r := form(path, "name", "x")
			r.Header.Set("Authorization", authorization)
			r.Header.Set("Sec-Fetch-Site", "cross-site") // says nothing without a cookie
			return b.do(r)
		}
		if rec := call(w.browser(), "Bearer "+token, "/auth/name"); rec.Code != 200 {
			t.Errorf("by the token: %d %s", rec.Code, rec.Body)
		}
		if rec := call(ann, "bearer "+token, "/auth/tokens/end"); rec.Code != http.StatusForbidden {
			t.Errorf("beyond its scopes, with a session beside it: %d %s", rec.Code, rec.Body)
		}
		for _, bad := range []string{"Bearer croft_x", "Bearer ", "Bearer " + token + "x", "Basic eDp5", "x"} {
			if rec := call(ann, bad, "/auth/name"); rec.Code != http.StatusUnauthorized || rec.Header().Get("Content-Type") != "application/json" {
				t.Errorf("%q: %d %s", bad, rec.Code, rec.Body)
			}
		}
	})
}

// TestEveryRouteForEveryRole asks every route as everybody: those who may not get
// 401 or 403, and nobody gets a failure.
func TestEveryRouteForEveryRole(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		admin := w.staff(nil, rights.RoleAdmin)
		people := map[rights.Role]*browser{
			"": w.browser(), rights.RoleOwner: w.owner("ann@example.org"),
			rights.RoleSupport: w.staff(admin, rights.RoleSupport), rights.RoleOperator: w.staff(admin, rights.RoleOperator), rights.RoleAdmin: admin,
		}
		for _, route := range authhttp.Routes() {
			if route.Path == "/auth/logout" {
				continue // at the end, for everybody
			}
			for role, b := range people {
				r := form(route.Path, authhttp.FormField, b.token())
				if r.Method = route.Method; r.Method == http.MethodGet {
					r.Body = http.NoBody
				}
				status := b.do(r).Code
				may := route.Need == nil || role.Grants(*route.Need) != rights.None
				switch {
				case status >= 500:
					t.Errorf("%s %s as %q: %d", route.Method, route.Path, role, status)
				case !may && role == "" && status != http.StatusUnauthorized, !may && role != "" && status != http.StatusForbidden:
					t.Errorf("%s %s as %q: %d, though it needs %s", route.Method, route.Path, role, status, route.Need)
				case may && route.Need != nil && status == http.StatusUnauthorized:
					t.Errorf("%s %s as %q: %d", route.Method, route.Path, role, status)
				}
			}
		}
		// What is another's is not told, nor changed.
		_, me := people[rights.RoleOwner].program("/auth/link/look", map[string]any{"token": "x"})
		if me["kind"] != "refused" {
			t.Errorf("a link nobody has: %v", me)
		}
		other, _, _ := strings.Cut(admin.get("/page").Body.String(), "|")
		for _, role := range []rights.Role{rights.RoleOwner, rights.RoleSupport, rights.RoleOperator} {
			for _, path := range []string{"/auth/sessions?account=", "/auth/tokens?account="} {
				if rec := people[role].get(path + other); rec.Code != http.StatusForbidden {
					t.Errorf("%s reads %s of the admin: %d", role, path, rec.Code)
				}
			}
			if rec := people[role].post("/auth/sessions/end", "account", other); rec.Code != http.StatusForbidden {
				t.Errorf("%s ends the admin's sessions: %d", role, rec.Code)
			}
		}
		for role, b := range people {
			if rec := b.post("/auth/logout"); rec.Code != http.StatusSeeOther {
				t.Errorf("logout as %q: %d", role, rec.Code)
			}
		}
	})
}

func TestBadInput(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		b := w.browser()
		for _, body := range []string{"", "null", "[]", "{", `"x"`, strings.Repeat("[", 100_000)} {
			r := httptest.NewRequest(http.MethodPost, origin+"/auth/link", strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set(authhttp.FormHeader, b.token())
			if rec := b.do(r); rec.Code != http.StatusBadRequest {
				t.Errorf("%.10q: %d", body, rec.Code)
			}
		}
		if rec := b.do(form("/auth/link", "email", strings.Repeat("x", 9<<20), authhttp.FormField, "x")); rec.Code != http.StatusBadRequest && rec.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("a form of 9 MiB: %d", rec.Code)
		}
		if rec := b.post("/auth/oidc/nowhere"); rec.Code != http.StatusNotFound {
			t.Errorf("an unknown provider: %d", rec.Code)
		}
		for range 40 {
			if rec := b.post("/auth/reset", "email", "a@example.org"); rec.Code == http.StatusTooManyRequests {
				if rec.Header().Get("Retry-After") == "" {
					t.Error("nobody says when to try again")
				}
				return
			}
		}
		t.Error("40 tries were let through")
	})
}

func TestFilesOfFormsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	each(t, func(t *testing.T, w *world) {
		ann, stranger := w.owner("ann@example.org"), w.browser()
		upload := func(b *browser, path string) int {
			var body bytes.Buffer
			form := multipart.NewWriter(&body)
			must(t, form.WriteField(authhttp.FormField, b.token()))
			file, err := form.CreateFormFile("file", "serials.csv")
			must(t, err)
			_, err = file.Write(bytes.Repeat([]byte("x"), 4<<20))
			must(t, err)
			must(t, form.Close())
			r := httptest.NewRequest(http.MethodPost, origin+path, &body)
			r.Header.Set("Content-Type", form.FormDataContentType())
			return b.do(r).Code
		}
		for range 3 {
			if status := upload(ann, "/page"); status != http.StatusOK {
				t.Errorf("an upload: %d", status)
			}
			if status := upload(stranger, "/auth/link"); status != http.StatusForbidden {
				t.Errorf("an upload of a stranger: %d", status)
			}
		}
	})
	left, err := os.ReadDir(dir)
	must(t, err)
	for _, one := range left {
		if strings.HasPrefix(one.Name(), "multipart-") {
			t.Errorf("%s was left", one.Name())
		}
	}
}

func TestStatus(t *testing.T) {
	for want, errs := range map[int][]error{
		http.StatusUnauthorized:        {auth.ErrSignIn},
		http.StatusForbidden:           {auth.ErrForbidden, auth.ErrStale, auth.ErrGone},
		http.StatusConflict:            {auth.ErrConfirm},
		http.StatusServiceUnavailable:  {db.ErrUnavailable, context.DeadlineExceeded},
		http.StatusInternalServerError: {errors.New("anything else")},
	} {
		for _, err := range errs {
			if got := authhttp.StatusOf(fmt.Errorf("do: %w", err)); got != want {
				t.Errorf("%v: %d, want %d", err, got, want)
			}
		}
	}
}
