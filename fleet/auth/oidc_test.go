package auth_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/oidclogin"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

// issuer is an OIDC provider that signs with RS256 and demands PKCE.
type issuer struct {
	*httptest.Server
	key *rsa.PrivateKey

	mu     sync.Mutex
	claims map[string]any               // guarded by mu; of the next ID token, besides the usual
	codes  map[string]map[string]string // guarded by mu; what the browser brought
}

func newIssuer(t *testing.T) *issuer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	i := &issuer{key: key, codes: map[string]map[string]string{}}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, body any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(body)
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{
			"issuer": i.URL, "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token", "jwks_uri": i.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"RS256"}, "response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"keys": []any{map[string]string{
			"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		asked, ok := i.codes[r.FormValue("code")]
		delete(i.codes, r.FormValue("code"))
		sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
		user, password, _ := r.BasicAuth()
		if !ok || asked["code_challenge_method"] != "S256" || asked["code_challenge"] != b64(sum[:]) || user != "fleet" || password != url.QueryEscape("fleet's secret") ||
			r.FormValue("redirect_uri") != origin+"/auth/oidc/work/callback" {
			http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
			return
		}
		claims := map[string]any{"iss": i.URL, "aud": "fleet", "sub": "42", "nonce": asked["nonce"], "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix()}
		maps.Copy(claims, i.claims)
		answer(w, map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": i.sign(claims)})
	})
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) sign(claims map[string]any) string {
	body, _ := json.Marshal(claims)
	text := b64([]byte(`{"alg":"RS256","kid":"1"}`)) + "." + b64(body)
	sum := sha256.Sum256([]byte(text))
	signature, _ := rsa.SignPKCS1v15(nil, i.key, crypto.SHA256, sum[:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// visit is the browser at the provider, where the person agrees.
func (i *issuer) visit(t *testing.T, to string, claims map[string]any) (state secret.Text, code string) {
	t.Helper()
	u, err := url.Parse(to)
	must(t, err)
	asked := map[string]string{}
	for name := range u.Query() {
		asked[name] = u.Query().Get(name)
	}
	code = secret.Random().Reveal()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.codes[code], i.claims = asked, claims
	return secret.New(asked["state"]), code
}

func TestStaffSignsInByOIDC(t *testing.T) {
	i := newIssuer(t)
	cfg := oidclogin.Config{
		Name: "work", Issuer: i.URL, ClientID: "fleet", Secret: secret.New("fleet's secret"), Groups: "teams",
		Roles: map[string]rights.Role{"help": rights.RoleSupport, "ops": rights.RoleOperator},
	}
	evil := newIssuer(t)
	other := oidclogin.Config{Name: "other", Issuer: evil.URL, ClientID: "fleet", Roles: cfg.Roles}
	w := newWorld(t, dbtest.URL(t, dbtest.SQLite), func(c *auth.Config) { c.OIDC = []oidclogin.Config{cfg, other} })
	c := browser("192.0.2.1")
	sign := func(claims map[string]any) (auth.Grant, error) {
		t.Helper()
		to, err := w.BeginOIDC(w.ctx, c, "work")
		must(t, err)
		state, code := i.visit(t, to, claims)
		return w.EndOIDC(w.ctx, c, "work", state, code)
	}

	first, err := sign(map[string]any{"teams": []string{"all", "help", "ops"}, "name": "Olga"})
	must(t, err)
	if p := w.who(first.Cookie); p.Role != rights.RoleOperator || p.Name != "Olga" || p.Stage != rights.StageFull {
		t.Errorf("signed in as %+v", p)
	}
	second, err := sign(map[string]any{"teams": "help", "name": "Olga", "email": "root@example.org", "email_verified": true})
	must(t, err)
	if second.Principal.Account != first.Principal.Account || w.who(second.Cookie).Role != rights.RoleSupport || w.who(first.Cookie).Account != "" {
		t.Error("the role does not follow the groups, or the session of the old role lives")
	}
	if a, err := w.Account(w.ctx, second.Principal, second.Principal.Account); err != nil || a.Email != "" {
		t.Errorf("an address in a claim became the account's: %+v, %v", a, err)
	}
	token, _, err := w.CreateToken(w.ctx, c, second.Principal, "ci", "device:read", time.Hour)
	must(t, err)
	if _, err := sign(map[string]any{"teams": []string{"all"}}); !errors.Is(err, oidclogin.ErrNoRole) {
		t.Errorf("without a group: %v", err)
	}
	if p, err := w.ByToken(w.ctx, token); err != nil || p.Account != "" || w.who(second.Cookie).Account != "" {
		t.Errorf("who lost his groups is still in, by his token as %+v, %v", p, err)
	}
	if _, err := sign(map[string]any{"sub": "43", "teams": "none"}); !errors.Is(err, oidclogin.ErrNoRole) {
		t.Errorf("a stranger without a group: %v", err)
	}
	for name, claims := range map[string]map[string]any{
		"another nonce":      {"nonce": "x"},
		"another audience":   {"aud": "other"},
		"another issuer":     {"iss": "https://evil.example.org"},
		"an expired token":   {"exp": time.Now().Add(-time.Hour).Unix()},
		"nobody":             {"sub": ""},
		"groups of no texts": {"teams": []any{1, nil, map[string]any{}}},
	} {
		full := map[string]any{"teams": "ops"}
		maps.Copy(full, claims)
		if _, err := sign(full); err == nil {
			t.Errorf("%s: signed in", name)
		}
	}

	to, err := w.BeginOIDC(w.ctx, c, "work")
	must(t, err)
	state, code := i.visit(t, to, map[string]any{"teams": "ops"})
	if _, err := w.EndOIDC(w.ctx, browser("192.0.2.1"), "work", state, code); !errors.Is(err, auth.ErrGone) {
		t.Errorf("in another browser: %v", err)
	}
	if _, err := w.EndOIDC(w.ctx, c, "work", secret.Random(), code); !errors.Is(err, auth.ErrGone) {
		t.Errorf("with another state: %v", err)
	}
	if _, err := w.EndOIDC(w.ctx, c, "other", state, code); !errors.Is(err, auth.ErrGone) {
		t.Errorf("at another provider: %v", err)
	}
	to, err = w.BeginOIDC(w.ctx, c, "work")
	must(t, err)
	state, code = i.visit(t, to, map[string]any{"teams": "ops"})
	if _, err := w.EndOIDC(w.ctx, c, "work", state, code); err != nil {
		t.Errorf("the right way: %v", err)
	}
	if _, err := w.EndOIDC(w.ctx, c, "work", state, code); !errors.Is(err, auth.ErrGone) {
		t.Errorf("twice: %v", err)
	}
}
