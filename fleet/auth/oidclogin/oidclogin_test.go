package oidclogin_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/fleet/auth/oidclogin"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
)

const origin = "https://fleet.example.org"

func config() oidclogin.Config {
	return oidclogin.Config{
		Name: "work", Issuer: "https://accounts.example.org", ClientID: "fleet", Roles: map[string]rights.Role{"ops": rights.RoleOperator},
	}
}

func TestConfigurations(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*oidclogin.Config)
		ok     bool
	}{
		"a whole one":                        {func(*oidclogin.Config) {}, true},
		"on this machine plain HTTP is fine": {func(c *oidclogin.Config) { c.Issuer = "http://127.0.0.1:5556/dex" }, true},
		"plain HTTP to elsewhere":            {func(c *oidclogin.Config) { c.Issuer = "http://accounts.example.org" }, false},
		"an issuer that is no URL":           {func(c *oidclogin.Config) { c.Issuer = "accounts.example.org" }, false},
		"no issuer":                          {func(c *oidclogin.Config) { c.Issuer = "" }, false},
		"no client":                          {func(c *oidclogin.Config) { c.ClientID = "" }, false},
		"a name that fits no URL":            {func(c *oidclogin.Config) { c.Name = "a/b" }, false},
		"no roles":                           {func(c *oidclogin.Config) { c.Roles = nil }, false},
		"a group of owners":                  {func(c *oidclogin.Config) { c.Roles["all"] = rights.RoleOwner }, false},
		"a role there is not":                {func(c *oidclogin.Config) { c.Roles["all"] = "root" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config()
			tc.change(&cfg)
			if _, err := oidclogin.New(cfg, origin, &http.Client{}); (err == nil) != tc.ok {
				t.Errorf("New = %v", err)
			}
		})
	}
}

func TestAProviderThatWasDownIsAskedAgain(t *testing.T) {
	down, asked := true, 0
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		if down {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(map[string]string{
			"issuer": server.URL, "authorization_endpoint": server.URL + "/authorize", "token_endpoint": server.URL + "/token", "jwks_uri": server.URL + "/keys",
		}); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	cfg := config()
	cfg.Issuer = server.URL
	p, err := oidclogin.New(cfg, origin, server.Client())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Begin(t.Context()); err == nil {
		t.Fatal("a provider that does not answer sent somebody somewhere")
	}
	down = false
	one, to, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if one.Nonce == two.Nonce || one.Verifier == two.Verifier || asked != 2 {
		t.Errorf("voyages %+v and %+v after %d questions", one, two, asked)
	}
	u, err := url.Parse(to(secret.New("the state")))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if q.Get("state") != "the state" || q.Get("nonce") != one.Nonce || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" ||
		strings.Contains(u.String(), one.Verifier) || q.Get("redirect_uri") != origin+"/auth/oidc/work/callback" || q.Get("response_type") != "code" {
		t.Errorf("the browser is sent to %s", u)
	}
}
