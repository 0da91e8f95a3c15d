package credential

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/chain/account"
)

const abandon = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"

var (
	now       = time.Unix(1_800_000_000, 0).UTC()
	tenant    = key(0)
	stranger  = key(1)
	provider  = key(2).Address()
	provider2 = key(3).Address()
)

func key(index uint32) *account.Key {
	words, err := account.ParseMnemonic(abandon)
	if err != nil {
		panic(err)
	}
	k, err := words.Key(0, index)
	if err != nil {
		panic(err)
	}
	return k
}

// chain knows the public keys of these accounts.
func chain(keys ...*account.Key) Verifier {
	return Verifier{PublicKey: func(_ context.Context, a account.Address) (account.PublicKey, error) {
		for _, k := range keys {
			if k.Address() == a {
				return k.PublicKey(), nil
			}
		}
		return nil, errUnknown
	}}
}

var errUnknown = errors.New("account has no public key")

func TestATokenLooksAsAkashClientsExpect(t *testing.T) {
	token, err := Sign(t.Context(), tenant, FullAccess(now))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	head, _ := base64.RawURLEncoding.DecodeString(parts[0])
	body, _ := base64.RawURLEncoding.DecodeString(parts[1])
	if got, want := string(head), `{"alg":"ES256K","typ":"JWT"}`; got != want {
		t.Errorf("header = %s, want %s", got, want)
	}
	want := `{"iss":"` + string(tenant.Address()) + `","iat":1800000000,"nbf":1800000000,"exp":1800000900,"version":"v1","leases":{"access":"full"}}`
	if string(body) != want {
		t.Errorf("payload = %s, want %s", body, want)
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(signature) != 64 {
		t.Errorf("signature has %d bytes, %v", len(signature), err)
	}
}

func TestBothAlgorithmsVerify(t *testing.T) {
	for _, alg := range []Algorithm{ES256K, ES256KADR36} {
		t.Run(string(alg), func(t *testing.T) {
			token, err := sign(t.Context(), tenant, FullAccess(now), alg)
			if err != nil {
				t.Fatal(err)
			}
			claims, err := chain(tenant).Verify(t.Context(), token, now)
			if err != nil {
				t.Fatal(err)
			}
			want := FullAccess(now)
			want.Issuer = tenant.Address()
			if !reflect.DeepEqual(claims, want) {
				t.Errorf("claims = %+v, want %+v", claims, want)
			}
		})
	}
}

// The document's form is fixed by ADR-36; a wallet signs exactly these bytes.
func TestTheADR36DocumentIsSortedJSON(t *testing.T) {
	message, err := signedBytes(ES256KADR36, "a.b", "akash1x")
	if err != nil {
		t.Fatal(err)
	}
	var any map[string]any
	if err := json.Unmarshal(message, &any); err != nil {
		t.Fatal(err)
	}
	sorted, _ := json.Marshal(any) // maps are written in the order of their keys
	if string(sorted) != string(message) {
		t.Errorf("document = %s, want %s", message, sorted)
	}
}

// forge assembles a token from JSON texts, signed by k if there is one.
func forge(t *testing.T, k *account.Key, head, body string) string {
	t.Helper()
	text := base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + base64.RawURLEncoding.EncodeToString([]byte(body))
	signature := make([]byte, 64)
	if k != nil {
		var err error
		if signature, err = k.Sign(t.Context(), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestVerifyRefuses(t *testing.T) {
	const head = `{"alg":"ES256K","typ":"JWT"}`
	good, err := Sign(t.Context(), tenant, FullAccess(now))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	iss := `"iss":"` + string(tenant.Address()) + `"`
	body := func(rest string) string {
		return `{` + iss + `,"iat":1800000000,"nbf":1800000000,"exp":1800000900,"version":"v1",` + rest + `}`
	}
	leases := func(grant string) string { return forge(t, tenant, head, body(`"leases":`+grant)) }
	granular := func(permission string) string {
		return leases(`{"access":"granular","permissions":[` + permission + `]}`)
	}
	later := FullAccess(now.Add(time.Hour))
	future, _ := Sign(t.Context(), tenant, later)
	mine := FullAccess(now)
	byStranger, _ := Sign(t.Context(), stranger, mine)
	for _, tc := range []struct {
		name  string
		token string
		at    time.Time
		want  error
	}{
		{"a token after its end", good, now.Add(16 * time.Minute), ErrExpired},
		{"a token before its begin", future, now, ErrNotYetValid},
		{"a changed payload under the old signature", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(body(`"leases":{"access":"full"},"jti":"x"`))) + "." + parts[2], now, ErrNotByIssuer},
		{"a stranger's signature under the tenant's name", forge(t, stranger, head, body(`"leases":{"access":"full"}`)), now, ErrNotByIssuer},
		{"an account that has no key on the chain", byStranger, now, errUnknown},
		{"algorithm none", forge(t, nil, `{"alg":"none","typ":"JWT"}`, body(`"leases":{"access":"full"}`)), now, ErrMalformed},
		{"algorithm HS256 with a public key as secret", forge(t, nil, `{"alg":"HS256","typ":"JWT"}`, body(`"leases":{"access":"full"}`)), now, ErrMalformed},
		{"another type", forge(t, tenant, `{"alg":"ES256K","typ":"JOSE"}`, body(`"leases":{"access":"full"}`)), now, ErrMalformed},
		{"two parts", parts[0] + "." + parts[1], now, ErrMalformed},
		{"padding", good + "=", now, ErrMalformed},
		{"a line end inside", parts[0] + ".\n" + parts[1] + "." + parts[2], now, ErrMalformed},
		{"nothing", "", now, ErrMalformed},
		{"a token of a megabyte", strings.Repeat("a", 1<<20), now, ErrMalformed},
		{"no leases claim", forge(t, tenant, head, body(`"jti":"x"`)), now, ErrMalformed},
		{"another version", forge(t, tenant, head, strings.Replace(body(`"leases":{"access":"full"}`), `"v1"`, `"v2"`, 1)), now, ErrMalformed},
		{"no expiry", forge(t, tenant, head, `{`+iss+`,"iat":1,"nbf":1,"version":"v1","leases":{"access":"full"}}`), now, ErrMalformed},
		{"an end before the begin", forge(t, tenant, head, `{`+iss+`,"iat":1800000000,"nbf":1800000000,"exp":1799999999,"version":"v1","leases":{"access":"full"}}`), now, ErrMalformed},
		{"a time beyond reason", forge(t, tenant, head, `{`+iss+`,"iat":1,"nbf":1,"exp":9223372036854775807,"version":"v1","leases":{"access":"full"}}`), now, ErrMalformed},
		{"an issuer that is no address", forge(t, tenant, head, `{"iss":"akash1x","iat":1,"nbf":1,"exp":1800000900,"version":"v1","leases":{"access":"full"}}`), now, ErrMalformed},
		{"an unknown access", leases(`{"access":"admin"}`), now, ErrMalformed},
		{"full access with a scope", leases(`{"access":"full","scope":["logs"]}`), now, ErrMalformed},
		{"scoped access without one", leases(`{"access":"scoped","scope":[]}`), now, ErrMalformed},
		{"a scope named twice", leases(`{"access":"scoped","scope":["logs","logs"]}`), now, ErrMalformed},
		{"granular access without entries", leases(`{"access":"granular"}`), now, ErrMalformed},
		{"a limit that we do not know", leases(`{"access":"full","until":"noon"}`), now, ErrMalformed},
		{"a provider named twice", granular(`{"provider":"` + string(provider) + `","access":"full"},{"provider":"` + string(provider) + `","access":"full"}`), now, ErrMalformed},
		{"a deployment without dseq", granular(`{"provider":"` + string(provider) + `","access":"granular","deployments":[{"scope":["logs"]}]}`), now, ErrMalformed},
		{"an oseq without gseq", granular(`{"provider":"` + string(provider) + `","access":"granular","deployments":[{"dseq":1,"oseq":1,"scope":["logs"]}]}`), now, ErrMalformed},
		{"a deployment without scope", granular(`{"provider":"` + string(provider) + `","access":"granular","deployments":[{"dseq":1}]}`), now, ErrMalformed},
		{"two JSON values", forge(t, tenant, head, body(`"leases":{"access":"full"}`)+`{}`), now, ErrMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := chain(tenant).Verify(t.Context(), tc.token, tc.at); !errors.Is(err, tc.want) {
				t.Errorf("Verify = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestClocksMayDifferALittle(t *testing.T) {
	token, _ := Sign(t.Context(), tenant, FullAccess(now))
	for _, at := range []time.Time{now.Add(-20 * time.Second), now.Add(Lifetime + 20*time.Second)} {
		if _, err := chain(tenant).Verify(t.Context(), token, at); err != nil {
			t.Errorf("Verify at %s = %v", at, err)
		}
	}
}

func TestSignRefusesAnotherIssuer(t *testing.T) {
	claims := FullAccess(now)
	claims.Issuer = stranger.Address()
	if _, err := Sign(t.Context(), tenant, claims); err == nil {
		t.Error("a token was signed in another's name")
	}
}

func TestAllows(t *testing.T) {
	at := func(p account.Address, s Scope, dseq uint64, gseq, oseq uint32, service string) Request {
		return Request{Provider: p, Scope: s, Owner: tenant.Address(), DSeq: dseq, GSeq: gseq, OSeq: oseq, Service: service}
	}
	granular := Grant{Access: AccessGranular, Permissions: []Permission{
		{Provider: provider, Access: AccessGranular, Deployments: []Deployment{
			{DSeq: 7, Scope: []Scope{ScopeStatus}},
			{DSeq: 7, GSeq: 1, OSeq: 2, Scope: []Scope{ScopeLogs}},
			{DSeq: 8, Services: []string{"web"}, Scope: []Scope{ScopeShell}},
		}},
		{Provider: provider2, Access: AccessScoped, Scope: []Scope{ScopeSendManifest}},
	}}
	others := at(provider, ScopeStatus, 7, 1, 1, "")
	others.Owner = stranger.Address()
	for _, tc := range []struct {
		name  string
		grant Grant
		req   Request
		want  bool
	}{
		{"full access covers everything of the issuer", Grant{Access: AccessFull}, at(provider, ScopeShell, 9, 1, 1, "web"), true},
		{"full access covers nothing of another owner", Grant{Access: AccessFull}, others, false},
		{"scoped access covers its words", Grant{Access: AccessScoped, Scope: []Scope{ScopeLogs}}, at(provider, ScopeLogs, 9, 1, 1, ""), true},
		{"scoped access covers no other word", Grant{Access: AccessScoped, Scope: []Scope{ScopeLogs}}, at(provider, ScopeShell, 9, 1, 1, ""), false},
		{"a deployment without gseq covers all its groups", granular, at(provider, ScopeStatus, 7, 3, 4, ""), true},
		{"an order covers itself", granular, at(provider, ScopeLogs, 7, 1, 2, ""), true},
		{"an order does not cover its neighbour", granular, at(provider, ScopeLogs, 7, 1, 1, ""), false},
		{"an order does not cover its whole deployment", granular, at(provider, ScopeLogs, 7, 0, 0, ""), false},
		{"a service covers itself", granular, at(provider, ScopeShell, 8, 1, 1, "web"), true},
		{"a service does not cover another", granular, at(provider, ScopeShell, 8, 1, 1, "db"), false},
		{"a service does not cover all of them", granular, at(provider, ScopeShell, 8, 1, 1, ""), false},
		{"another provider's permission does not count", granular, at(provider2, ScopeStatus, 7, 1, 1, ""), false},
		{"a provider's scope covers every lease there", granular, at(provider2, ScopeSendManifest, 99, 1, 1, ""), true},
		{"an unnamed provider gets nothing", granular, at(tenant.Address(), ScopeStatus, 7, 1, 1, ""), false},
		{"no access is none", Grant{}, at(provider, ScopeStatus, 7, 1, 1, ""), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			claims := Claims{Issuer: tenant.Address(), Leases: tc.grant}
			if got := claims.Allows(tc.req); got != tc.want {
				t.Errorf("Allows(%+v) = %v, want %v", tc.req, got, tc.want)
			}
		})
	}
	if (Claims{}).Allows(Request{}) {
		t.Error("empty claims allow an empty request")
	}
}

func FuzzParseToken(f *testing.F) {
	token, err := Sign(context.Background(), tenant, FullAccess(now))
	if err != nil {
		f.Fatal(err)
	}
	claims := FullAccess(now)
	claims.Leases = Grant{Access: AccessGranular, Permissions: []Permission{{
		Provider: provider, Access: AccessGranular,
		Deployments: []Deployment{{DSeq: 7, GSeq: 1, OSeq: 1, Services: []string{"web"}, Scope: []Scope{ScopeLogs}}},
	}}}
	granular, err := sign(context.Background(), tenant, claims, ES256KADR36)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add(granular)
	f.Add("e30.e30.")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parse(s)
		if err != nil {
			return
		}
		if got := p.signed + "." + encoding.EncodeToString(p.signature); got != s {
			t.Errorf("the token has a second spelling: %q", got)
		}
		leases, err := json.Marshal(p.claims.Leases)
		if err != nil {
			t.Fatal(err)
		}
		var again Grant
		if err := unmarshal(leases, &again, true); err != nil {
			t.Fatalf("claims do not parse again: %v", err)
		}
		if err := again.validate(); err != nil {
			t.Fatalf("claims are not valid again: %v", err)
		}
	})
}
