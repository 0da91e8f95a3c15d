package gateway_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/gateway"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/credential"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// The client of tenants finds everything it knows how to ask for.
func TestConformance(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	pair, certificate := pairOf(t, alice)
	w.chain.publish(pair)
	for name, cfg := range map[string]gatewayclient.Config{"token": {Signer: alice}, "certificate": {Certificate: certificate}} {
		t.Run(name, func(t *testing.T) { conform(t, w, w.client(t, cfg)) })
	}
}

func conform(t *testing.T, w *world, g *gatewayclient.Gateway) {
	ctx := t.Context()
	if v, err := g.Version(ctx); err != nil || v.Akash.Version != "1.2.3" {
		t.Errorf("Version = %+v, %v", v, err)
	}
	if a, err := g.Address(ctx); err != nil || a != provider.Address() {
		t.Errorf("Address = %s, %v", a, err)
	}
	s, err := g.Status(ctx)
	if err != nil || s.Cluster.Leases != 1 || s.Orders != 2 || s.Deployments != 1 || s.Address != string(provider.Address()) {
		t.Errorf("Status = %+v, %v", s, err)
	}
	if len(s.Cluster.Available) != 1 || s.Cluster.Available[0].Available.CPU != 7500 || s.Cluster.Active[0].Storage["beta3"] != 5 {
		t.Errorf("cluster = %+v", s.Cluster)
	}
	if err := g.SendManifest(ctx, 7, []byte(manifest)); err != nil {
		t.Errorf("SendManifest = %v", err)
	}
	if err := g.SendManifest(ctx, 7, []byte(`[]`)); !errors.Is(err, gatewayclient.ErrManifestRefused) || !strings.Contains(err.Error(), "manifest version validation failed") {
		t.Errorf("SendManifest of another = %v", err)
	}
	if err := g.SendManifest(ctx, 8, []byte(manifest)); !errors.Is(err, gatewayclient.ErrNoLease) {
		t.Errorf("SendManifest without lease = %v", err)
	}
	if m, err := g.GetManifest(ctx, leased); err != nil || len(m) != 1 || m[0].Services[0].Image != "nginx:1.27" {
		t.Errorf("GetManifest = %+v, %v", m, err)
	}
	ls, err := g.LeaseStatus(ctx, leased)
	if err != nil || !ls.Ready() || !slices.Equal(ls.URIs(), []string{"a.ingress.example"}) || ls.Ports["web"][0].ExternalPort != 31234 || ls.IPs != nil {
		t.Errorf("LeaseStatus = %+v, %v", ls, err)
	}
	if ss, err := g.ServiceStatus(ctx, leased, "web"); err != nil || ss.Available != 1 || ss.ObservedGeneration != 3 {
		t.Errorf("ServiceStatus = %+v, %v", ss, err)
	}
	if _, err := g.ServiceStatus(ctx, leased, "db"); !errors.Is(err, gatewayclient.ErrNoLease) {
		t.Errorf("ServiceStatus of nothing = %v", err)
	}
	if moved, err := g.MigrateHostnames(ctx, []string{"a.example"}, 7, 1); err != nil || !slices.Equal(moved, []string{"a.example"}) {
		t.Errorf("MigrateHostnames = %v, %v", moved, err)
	}
	if _, err := g.MigrateEndpoints(ctx, []string{"ip1"}, 7, 1); !errors.Is(err, gatewayclient.ErrNoLease) {
		t.Errorf("MigrateEndpoints = %v", err)
	}

	w.set(func() {
		w.lines = []gateway.LogLine{{Pod: "web-3-0", Text: "one"}, {Pod: "web-3-0", Text: "two <&>"}}
		w.events = []lease.Event{{Type: lease.Warning, Reason: "OOMKilled", Note: "it wanted more memory", Service: "web", Pod: "web-3-0"}, {Type: lease.Normal, Reason: "Pulling", Service: "web"}}
	})
	var lines []gatewayclient.LogLine
	for l, err := range g.Logs(ctx, leased, gatewayclient.StreamConfig{Services: []string{"web"}}) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	if want := []gatewayclient.LogLine{{Name: "web-3-0", Message: "one"}, {Name: "web-3-0", Message: "two <&>"}}; !slices.Equal(lines, want) {
		t.Errorf("Logs = %v", lines)
	}
	var last string
	for l, err := range g.Logs(ctx, leased, gatewayclient.StreamConfig{Tail: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		last += l.Message
	}
	if last != "two <&>" {
		t.Errorf("tail 1 = %q", last)
	}
	for l, err := range g.Logs(ctx, leased, gatewayclient.StreamConfig{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Message == "two <&>" {
			w.set(func() { w.lines = append(w.lines, gateway.LogLine{Pod: "web-3-0", Text: "three"}) })
		}
		if l.Message == "three" {
			break
		}
	}
	namespace := string(lease.KeyOf(leased))
	var events []gatewayclient.Event
	for e, err := range g.Events(ctx, leased, gatewayclient.StreamConfig{}) {
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	want := []gatewayclient.Event{
		{Type: "Warning", Controller: "croft", Reason: "OOMKilled", Note: "it wanted more memory", Object: gatewayclient.EventObject{Kind: "Pod", Namespace: namespace, Name: "web-3-0"}},
		{Type: "Normal", Controller: "croft", Reason: "Pulling", Object: gatewayclient.EventObject{Kind: "Deployment", Namespace: namespace, Name: "web"}},
	}
	if !slices.Equal(events, want) {
		t.Errorf("Events = %+v", events)
	}
	ended := false
	for _, err := range g.Logs(ctx, leased, gatewayclient.StreamConfig{Services: []string{"db"}}) {
		ended = errors.Is(err, gatewayclient.ErrNoLease)
	}
	if !ended {
		t.Error("Logs of a service that is not there did not end with ErrNoLease")
	}

	var out, errs bytes.Buffer
	shell := func(in io.Reader, command ...string) error {
		out.Reset()
		errs.Reset()
		return g.Shell(ctx, leased, gatewayclient.ShellConfig{Service: "web", Command: command, Stdin: in, Stdout: &out, Stderr: &errs})
	}
	if err := shell(nil, "echo", "a", "b"); err != nil || out.String() != "a b\n" {
		t.Errorf("echo = %q, %v", out.String(), err)
	}
	long := strings.Repeat("0123456789", 50_000)
	if err := shell(strings.NewReader(long), "cat"); err != nil || out.String() != long {
		t.Errorf("cat gave %d of %d bytes, %v", out.Len(), len(long), err)
	}
	if exit, ok := errors.AsType[*gatewayclient.ExitError](shell(nil, "fail")); !ok || exit.Code != 3 || errs.String() != "failing\n" {
		t.Errorf("fail = %+v, %q", exit, errs.String())
	}
	if err := shell(nil, "nothing"); !errors.Is(err, gatewayclient.ErrNotRun) || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("nothing = %v", err)
	}
	if err := shell(nil, "crash"); !errors.Is(err, gatewayclient.ErrNotRun) || strings.Contains(err.Error(), "secret") {
		t.Errorf("crash = %v", err)
	}
	if err := g.Shell(ctx, leased, gatewayclient.ShellConfig{Service: "db", Command: []string{"echo"}}); !errors.Is(err, gatewayclient.ErrNotRun) || !strings.Contains(err.Error(), "no such service exists with that name") {
		t.Errorf("shell of a service that is not there = %v", err)
	}
	sizes := make(chan gatewayclient.WindowSize, 1)
	sizes <- gatewayclient.WindowSize{Width: 80, Height: 24}
	err = g.Shell(ctx, leased, gatewayclient.ShellConfig{Service: "web", Command: []string{"size"}, TTY: true, Stdout: &out, Resize: sizes})
	if err != nil || !strings.HasSuffix(out.String(), "80x24\n") {
		t.Errorf("size = %q, %v", out.String(), err)
	}
}

// ask makes a request and returns status and body.
func ask(t testing.TB, c *http.Client, method, path, body string, header http.Header) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func TestWhoAsks(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	granular := func(d ...credential.Deployment) func(*credential.Claims) {
		return func(c *credential.Claims) {
			c.Leases = credential.Grant{Access: credential.AccessGranular, Permissions: []credential.Permission{{Provider: provider.Address(), Access: credential.AccessGranular, Deployments: d}}}
		}
	}
	scoped := func(s ...credential.Scope) func(*credential.Claims) {
		return func(c *credential.Claims) {
			c.Leases = credential.Grant{Access: credential.AccessScoped, Scope: s}
		}
	}
	elsewhere := func(c *credential.Claims) {
		c.Leases = credential.Grant{Access: credential.AccessGranular, Permissions: []credential.Permission{{Provider: mallory.Address(), Access: credential.AccessFull}}}
	}
	at := func(d time.Duration) func(*credential.Claims) {
		return func(c *credential.Claims) {
			c.IssuedAt, c.NotBefore, c.Expires = c.IssuedAt.Add(d), c.NotBefore.Add(d), c.Expires.Add(d)
		}
	}
	good := token(t, alice, nil)
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + "." + parts[2]
	stolen := strings.Split(token(t, mallory, nil), ".")
	const status = "/lease/7/1/1/status"
	for _, tc := range []struct {
		name   string
		header http.Header
		path   string
		status int
		says   string
	}{
		{"nobody, in public", nil, "/status", 200, `"address"`},
		{"nobody, in public, the version", nil, "/version", 200, `"kube"`},
		{"nobody, at a lease", nil, status, 401, "missing"},
		{"the owner", bearer(good), status, 200, `"web"`},
		{"the owner once more with the same token", bearer(good), status, 200, `"web"`},
		{"a stranger with a good token finds no lease", bearer(token(t, mallory, nil)), status, 404, "no lease for deployment"},
		{"an account without a key on the chain", bearer(token(t, newcomer, nil)), status, 401, "send any transaction"},
		{"an expired token", bearer(token(t, alice, at(-time.Hour))), status, 400, "expired"},
		{"an expired token, in public", bearer(token(t, alice, at(-time.Hour))), "/status", 400, "expired"},
		{"a token from the future", bearer(token(t, alice, at(time.Hour))), status, 400, "not valid yet"},
		{"algorithm none", bearer(none), status, 401, "malformed"},
		{"algorithm none, in public", bearer(none), "/version", 401, "malformed"},
		{"another's signature", bearer(parts[0] + "." + parts[1] + "." + stolen[2]), status, 401, "not signed by its issuer"},
		{"a token that is none", bearer("hello"), "/address", 401, "malformed"},
		{"an empty token", bearer(""), "/address", 401, "malformed"},
		{"another scheme", http.Header{"Authorization": {"Basic YTpi"}}, "/status", 401, "Bearer TOKEN"},
		{"two tokens", http.Header{"Authorization": {"Bearer " + good, "Bearer " + good}}, status, 400, "more than one"},
		{"a token for another provider", bearer(token(t, alice, elsewhere)), status, 401, "does not allow"},
		{"a scope that covers it", bearer(token(t, alice, scoped(credential.ScopeStatus))), status, 200, `"web"`},
		{"a scope that does not", bearer(token(t, alice, scoped(credential.ScopeLogs))), status, 401, "does not allow"},
		{"a scope that does not, one service", bearer(token(t, alice, scoped(credential.ScopeLogs))), "/lease/7/1/1/service/web/status", 401, "does not allow"},
		{"another deployment's token", bearer(token(t, alice, granular(credential.Deployment{DSeq: 8, Scope: []credential.Scope{credential.ScopeStatus}}))), status, 401, "does not allow"},
		{"the deployment's token", bearer(token(t, alice, granular(credential.Deployment{DSeq: 7, Scope: []credential.Scope{credential.ScopeStatus}}))), status, 200, `"web"`},
		{"one service's token, at it", bearer(token(t, alice, granular(credential.Deployment{DSeq: 7, Services: []string{"web"}, Scope: []credential.Scope{credential.ScopeStatus}}))), "/lease/7/1/1/service/web/status", 200, `"web"`},
		{"one service's token, at all of them", bearer(token(t, alice, granular(credential.Deployment{DSeq: 7, Services: []string{"web"}, Scope: []credential.Scope{credential.ScopeStatus}}))), status, 401, "does not allow"},
		{"one service's token, at the logs of two", bearer(token(t, alice, granular(credential.Deployment{DSeq: 7, Services: []string{"web"}, Scope: []credential.Scope{credential.ScopeLogs}}))), "/lease/7/1/1/logs?service=web,db", 401, "does not allow"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, body := ask(t, w.raw(t, host, nil), "GET", tc.path, "", tc.header)
			if got != tc.status || !strings.Contains(body, tc.says) {
				t.Errorf("%s = %d %q, want %d and %q", tc.path, got, body, tc.status, tc.says)
			}
			var told struct {
				Message string `json:"message"`
			}
			if isAuth := got == 400 || got == 401; isAuth && (json.Unmarshal([]byte(body), &told) != nil || told.Message == "") {
				t.Errorf("a problem with who asks is not told as JSON: %q", body)
			}
		})
	}
}

// copied is a certificate of mallory's that says it is another's, serial and all.
func copied(t *testing.T, of *x509.Certificate) *tls.Certificate {
	t.Helper()
	return forged(t, of.Subject.CommonName, of.SerialNumber)
}

// numbered is a certificate of alice's with a serial number of her choice.
func numbered(t *testing.T, serial *big.Int) *tls.Certificate {
	t.Helper()
	return forged(t, string(alice.Address()), serial)
}

func forged(t *testing.T, name string, serial *big.Int) *tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	pair, mine := pairOf(t, alice)
	w.chain.publish(pair)
	revoked, old := pairOf(t, alice)
	w.chain.publish(revoked)
	w.chain.revoke(revoked.Certificate.Serial)
	_, unknown := pairOf(t, alice)
	both := bearer(token(t, alice, nil))
	for _, tc := range []struct {
		name        string
		server      string
		certificate *tls.Certificate
		header      http.Header
		path        string
		status      int
		says        string
	}{
		{"published", "mtls." + host, mine, nil, "/lease/7/1/1/status", 200, `"web"`},
		{"published, under the plain name", host, mine, nil, "/lease/7/1/1/status", 200, `"web"`},
		{"with a token as well", "mtls." + host, mine, both, "/lease/7/1/1/status", 400, "exclude each other"},
		{"with a token as well, in public", "mtls." + host, mine, both, "/status", 400, "exclude each other"},
		{"revoked", "mtls." + host, old, nil, "/lease/7/1/1/status", 401, "not valid on the chain"},
		{"never published", "mtls." + host, unknown, nil, "/lease/7/1/1/status", 401, "not valid on the chain"},
		{"never published, in public", "mtls." + host, unknown, nil, "/status", 401, "not valid on the chain"},
		{"a copy of a published one", "mtls." + host, copied(t, pair.Certificate.X509), nil, "/lease/7/1/1/status", 401, "not valid on the chain"},
		{"none", "mtls." + host, nil, nil, "/lease/7/1/1/status", 401, "missing"},
		{"with a serial number of a million bits", "mtls." + host, numbered(t, new(big.Int).Lsh(big.NewInt(1), 1_000_000)), nil, "/status", 401, "serial number is too long"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, body := ask(t, w.raw(t, tc.server, tc.certificate), "GET", tc.path, "", tc.header)
			if got != tc.status || !strings.Contains(body, tc.says) {
				t.Errorf("= %d %q, want %d and %q", got, body, tc.status, tc.says)
			}
		})
	}
}

func TestTLSShowsTheCertificateOfTheName(t *testing.T) {
	t.Parallel()
	_, authority := pairOf(t, mallory, host)
	pair, mine := pairOf(t, alice)
	w := start(t, nil, nil, func(w *world) { w.shown.authority = authority })
	w.chain.publish(pair)
	for _, tc := range []struct {
		server    string
		authority bool
	}{{host, true}, {strings.ToUpper(host), true}, {"mtls." + host, false}, {"other.example", false}, {"", false}} {
		t.Run(tc.server, func(t *testing.T) {
			conn, err := w.dial(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			asked := false
			c := tls.Client(conn, &tls.Config{ServerName: tc.server, InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return mine, nil
			}})
			if err := c.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			shown := c.ConnectionState().PeerCertificates[0].Raw
			if got := bytes.Equal(shown, authority.Certificate[0]); got != tc.authority || asked == tc.authority {
				t.Errorf("certificate of the authority: %v, client's asked for: %v", got, asked)
			}
		})
	}
	conn, err := w.dial(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).HandshakeContext(t.Context()); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
}

// errNothing makes a lease without services.
var errNothing = errors.New("nothing")

func TestStatusCodes(t *testing.T) {
	t.Parallel()
	kinds := func(kind croft.Kind) error { return &croft.Error{Kind: kind, Err: errors.New("because of this")} }
	for _, tc := range []struct {
		name         string
		method, path string
		body         string
		err          error // of the backend
		status       int
		says         string
	}{
		{"a manifest is taken", "PUT", "/deployment/7/manifest", manifest, nil, 200, ""},
		{"no lease", "PUT", "/deployment/8/manifest", manifest, nil, 404, "no lease for deployment"},
		{"a manifest that is no JSON", "PUT", "/deployment/7/manifest", "hello", nil, 422, "not JSON"},
		{"a manifest of another version", "PUT", "/deployment/7/manifest", "[]", nil, 422, "manifest version validation failed; send"},
		{"a manifest that is refused", "PUT", "/deployment/7/manifest", manifest, kinds(croft.KindRefused), 422, "because of this"},
		{"a manifest too long", "PUT", "/deployment/7/manifest", `"` + strings.Repeat("x", 1<<20) + `"`, nil, 422, "longer than"},
		{"a manifest while something else is wrong", "PUT", "/deployment/7/manifest", manifest, errors.New("secret"), 500, "internal error"},
		{"a manifest while the backend is away", "PUT", "/deployment/7/manifest", manifest, kinds(croft.KindMissing), 500, "because of this"},
		{"a manifest that takes too long", "PUT", "/deployment/7/manifest", manifest, context.DeadlineExceeded, 500, "no answer in time"},
		{"a number that is none", "PUT", "/deployment/x/manifest", manifest, nil, 400, "dseq is not a number"},
		{"a number too large", "GET", "/lease/7/4294967296/1/status", "", nil, 400, "gseq is not a number"},
		{"number zero", "GET", "/lease/7/1/0/status", "", nil, 400, "oseq is not a number"},
		{"a lease that is not there", "GET", "/lease/7/2/1/status", "", nil, 404, "no lease for deployment"},
		{"a lease while the backend is away", "GET", "/lease/7/1/1/status", "", kinds(croft.KindMissing), 503, "because of this"},
		{"a lease while something is wrong", "GET", "/lease/7/1/1/status", "", errors.New("secret"), 500, "internal error"},
		{"a lease without a manifest", "GET", "/lease/7/1/1/status", "", errNothing, 404, "no manifest yet"},
		{"a manifest that is not there", "GET", "/lease/7/1/1/manifest", "", kinds(croft.KindNotFound), 404, "because of this"},
		{"a service that is not there", "GET", "/lease/7/1/1/service/db/status", "", nil, 404, "no such service exists with that name"},
		{"a migration that is no JSON", "POST", "/hostname/migrate", "x", nil, 422, "hostnames_to_migrate"},
		{"a migration to nowhere", "POST", "/hostname/migrate", `{"hostnames_to_migrate":["a.example"],"destination_dseq":9,"destination_gseq":1}`, nil, 404, "no lease"},
		{"a migration of nothing", "POST", "/hostname/migrate", `{"hostnames_to_migrate":[],"destination_dseq":7,"destination_gseq":1}`, nil, 422, "no names"},
		{"a migration", "POST", "/hostname/migrate", `{"hostnames_to_migrate":["a.example"],"destination_dseq":7,"destination_gseq":1}`, nil, 200, `{"transferred":["a.example"]}`},
		{"an old path", "GET", "/validate", "", nil, 404, ""},
		{"a path that is none", "GET", "/../../etc/passwd", "", nil, 404, ""},
		{"another method", "DELETE", "/deployment/7/manifest", "", nil, 405, ""},
		{"logs with a bad tail", "GET", "/lease/7/1/1/logs?tail=-2", "", nil, 400, "tail is not"},
		{"logs with a bad follow", "GET", "/lease/7/1/1/logs?follow=perhaps", "", nil, 400, "follow is"},
		{"logs with a comma too many", "GET", "/lease/7/1/1/logs?service=web,", "", nil, 400, "service is not a list"},
		{"logs without a websocket", "GET", "/lease/7/1/1/logs", "", nil, 426, ""},
		{"a shell without service", "GET", "/lease/7/1/1/shell?podIndex=0&tty=0&stdin=0&cmd0=sh", "", nil, 400, "parameter service is missing"},
		{"a shell without index", "GET", "/lease/7/1/1/shell?service=web&tty=0&stdin=0&cmd0=sh", "", nil, 400, "parameter podIndex is missing"},
		{"a shell without command", "GET", "/lease/7/1/1/shell?service=web&podIndex=0&tty=0&stdin=0&cmd1=sh", "", nil, 400, "parameter cmd0 is missing"},
		{"a shell without tty", "GET", "/lease/7/1/1/shell?service=web&podIndex=0&stdin=0&cmd0=sh", "", nil, 400, "parameter tty is missing"},
		{"a shell without stdin", "GET", "/lease/7/1/1/shell?service=web&podIndex=0&tty=0&cmd0=sh", "", nil, 400, "parameter stdin is missing"},
		{"a shell with an odd flag", "GET", "/lease/7/1/1/shell?service=web&podIndex=0&tty=yes&stdin=0&cmd0=sh", "", nil, 400, "neither 0 nor 1"},
		{"a shell with an odd index", "GET", "/lease/7/1/1/shell?service=web&podIndex=-1&tty=0&stdin=0&cmd0=sh", "", nil, 400, "podIndex is not"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := start(t, nil, nil, func(w *world) {
				if w.err = tc.err; errors.Is(tc.err, errNothing) {
					w.err, w.services = nil, nil
				}
			})
			got, body := ask(t, w.raw(t, host, nil), tc.method, tc.path, tc.body, bearer(token(t, alice, nil)))
			if got != tc.status || !strings.Contains(body, tc.says) {
				t.Errorf("%s %s = %d %q, want %d and %q", tc.method, tc.path, got, body, tc.status, tc.says)
			}
			if tc.status == 200 && tc.says == "" && body != "" {
				t.Errorf("body = %q, want none", body)
			}
			if strings.Contains(body, "secret") {
				t.Errorf("an inner error reached the tenant: %q", body)
			}
		})
	}
}

func TestTheStatusIsAsAkashSpellsIt(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	_, body := ask(t, w.raw(t, host, nil), "GET", "/status", "", nil)
	want := fmt.Sprintf(`{"address":%q,"bidengine":{"orders":2},"cluster":{"inventory":{"active":[{"cpu":500,"gpu":0,"memory":536870912,"storage_ephemeral":1073741824,"storage":{"beta3":5}}],`+
		`"available":{"nodes":[{"allocatable":{"cpu":8000,"gpu":1,"memory":100,"storage_ephemeral":0},"available":{"cpu":7500,"gpu":1,"memory":60,"storage_ephemeral":0},"name":"n1"}],"storage":[{"class":"beta3","size":5}]},"pending":[]},"leases":1},`+
		`"cluster_public_hostname":"box.example","manifest":{"deployments":1}}`+"\n", provider.Address())
	if body != want {
		t.Errorf("status = %s\nwant     %s", body, want)
	}
	_, body = ask(t, w.raw(t, host, nil), "GET", "/lease/7/1/1/status", "", bearer(token(t, alice, nil)))
	want = `{"services":{"web":{"name":"web","available":1,"total":1,"uris":["a.ingress.example"],"observed_generation":3,"replicas":1,"updated_replicas":1,"ready_replicas":1,"available_replicas":1}},` +
		`"forwarded_ports":{"web":[{"host":"box.example","port":5432,"externalPort":31234,"proto":"TCP","name":"web"}]},"ips":null}` + "\n"
	if body != want {
		t.Errorf("lease status = %s\nwant           %s", body, want)
	}
}

func TestAFloodOfStatusesAsksTheBackendOnceASecond(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		c := w.raw(t, host, nil)
		for second := 1; second <= 3; second++ {
			for range 20 {
				ask(t, c, "GET", "/status", "", nil)
			}
			w.mu.Lock()
			asked := w.provided
			w.mu.Unlock()
			if asked != second {
				t.Errorf("after %d s the backend was asked %d times", second, asked)
			}
			time.Sleep(time.Second)
		}
	})
}

func TestNewWantsItsParts(t *testing.T) {
	t.Parallel()
	if _, err := gateway.New(gateway.Config{Provider: "akash1x"}); err == nil {
		t.Error("a provider without an address is accepted")
	}
	if _, err := gateway.New(gateway.Config{Provider: account.Address(provider.Address()), Host: host}); err == nil || !strings.Contains(err.Error(), "listener for REST is missing") {
		t.Errorf("New = %v", err)
	}
}
