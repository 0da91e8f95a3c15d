package tenant_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/credential"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/chain/tenant/gatewaystub"
)

// leased is a running lease, its gateway and the stub behind it.
func leased(t *testing.T) (*world, *gatewayclient.Gateway, *gatewaystub.Server, akash.LeaseID) {
	t.Helper()
	w := newWorld(t)
	a, r := w.deployed(t)
	g, err := a.Gateway(t.Context(), cheap.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return w, g, w.stubs[cheap.Address()], r.LeaseIDs()[0]
}

func TestGatewayRequests(t *testing.T) {
	t.Parallel()
	_, g, _, id := leased(t)
	ctx := t.Context()
	if v, err := g.Version(ctx); err != nil || v.Akash.Version != "0.0.0" {
		t.Errorf("Version = %+v, %v", v, err)
	}
	if a, err := g.Address(ctx); err != nil || a != cheap.Address() {
		t.Errorf("Address = %s, %v", a, err)
	}
	if s, err := g.Status(ctx); err != nil || s.Cluster.Leases != 1 || s.Cluster.Available[0].Available.CPU != 8000 {
		t.Errorf("Status = %+v, %v", s, err)
	}
	if s, err := g.LeaseStatus(ctx, id); err != nil || !s.Ready() || s.Summary() != "web 1/1" {
		t.Errorf("LeaseStatus = %+v, %v", s, err)
	}
	if s, err := g.ServiceStatus(ctx, id, "web"); err != nil || s.Available != 1 {
		t.Errorf("ServiceStatus = %+v, %v", s, err)
	}
	if _, err := g.ServiceStatus(ctx, id, "db"); !errors.Is(err, gatewayclient.ErrNoLease) || croft.KindOf(err) != croft.KindNotFound {
		t.Errorf("ServiceStatus of nothing = %v", err)
	}
	if m, err := g.GetManifest(ctx, id); err != nil || len(m) != 1 || m[0].Services[0].Image != "nginx:1.27" {
		t.Errorf("GetManifest = %+v, %v", m, err)
	}
	if moved, err := g.MigrateHostnames(ctx, []string{"a.example"}, id.DSeq, 1); err != nil || !slices.Equal(moved, []string{"a.example"}) {
		t.Errorf("MigrateHostnames = %v, %v", moved, err)
	}
	if _, err := g.MigrateEndpoints(ctx, []string{"ip1"}, 7, 1); !errors.Is(err, gatewayclient.ErrNoLease) {
		t.Errorf("MigrateEndpoints to nothing = %v", err)
	}
	if err := g.SendManifest(ctx, id.DSeq, []byte(`[{"name":"home","services":[]}]`)); !errors.Is(err, gatewayclient.ErrManifestRefused) {
		t.Errorf("SendManifest of another = %v", err)
	}
	if err := g.SendManifestWait(ctx, 7, []byte(`[]`), time.Nanosecond); !errors.Is(err, gatewayclient.ErrNoLease) {
		t.Errorf("SendManifestWait = %v", err)
	}
}

func TestTheProvidersWordsReachThePersonOnOneLine(t *testing.T) {
	t.Parallel()
	_, g, stub, id := leased(t)
	stub.Fail(gatewaystub.Fault{Status: http.StatusUnprocessableEntity, Text: "bad\x1b[2J\nmanifest\u202e " + strings.Repeat("x", 10_000)})
	_, err := g.LeaseStatus(t.Context(), id)
	e, ok := errors.AsType[*gatewayclient.GatewayError](err)
	if !ok || !strings.HasPrefix(e.Message, "bad [2J manifest xxx") || len(e.Message) > 600 || strings.ContainsAny(e.Message, "\x1b\n\u202e") {
		t.Errorf("message = %q of %v", e.Message, err)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, r := w.deployed(t)
	id := r.LeaseIDs()[0]
	stub := w.stubs[cheap.Address()]
	pair := func(publish bool) *tls.Certificate {
		p, err := credential.NewCertificate(credential.CertificateConfig{Owner: alice.Address(), NotBefore: time.Now().Add(-time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		if publish {
			w.chain.mu.Lock()
			w.chain.publish(alice.Address(), p.CertPEM, p.PublicPEM)
			w.chain.mu.Unlock()
		}
		c, err := p.TLS()
		if err != nil {
			t.Fatal(err)
		}
		return &c
	}
	w.chain.mu.Lock()
	w.chain.keys[mallory.Address()] = mallory.PublicKey()
	w.chain.mu.Unlock()
	for _, tc := range []struct {
		name string
		cfg  gatewayclient.Config
		want error
	}{
		{"a token of the owner", gatewayclient.Config{Signer: alice}, nil},
		{"a published certificate of the owner", gatewayclient.Config{Certificate: pair(true)}, nil},
		{"a certificate nobody knows", gatewayclient.Config{Certificate: pair(false)}, gatewayclient.ErrNotAuthorized},
		{"a token of a stranger finds no lease", gatewayclient.Config{Signer: mallory}, gatewayclient.ErrNoLease},
		{"a token of an account without a key on the chain", gatewayclient.Config{Signer: dear}, gatewayclient.ErrNotAuthorized},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Provider, tc.cfg.URI, tc.cfg.Registry = cheap.Address(), stub.URI(), w.chain
			g, err := gatewayclient.New(tc.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if _, err := g.LeaseStatus(t.Context(), id); !errors.Is(err, tc.want) {
				t.Errorf("LeaseStatus = %v, want %v", err, tc.want)
			}
			if _, err := g.Version(t.Context()); err != nil {
				t.Errorf("public Version = %v", err)
			}
			ended := false
			for _, err := range g.Logs(t.Context(), id, gatewayclient.StreamConfig{}) {
				ended = errors.Is(err, tc.want)
			}
			if tc.want != nil && !ended {
				t.Errorf("Logs did not end with %v", tc.want)
			}
		})
	}
	none, err := gatewayclient.New(gatewayclient.Config{Provider: cheap.Address(), URI: stub.URI(), Registry: w.chain})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.LeaseStatus(t.Context(), id); croft.KindOf(err) != croft.KindUsage {
		t.Errorf("LeaseStatus of nobody = %v", err)
	}
	both := gatewayclient.Config{Provider: cheap.Address(), URI: stub.URI(), Registry: w.chain, Signer: alice, Certificate: pair(false)}
	if _, err := gatewayclient.New(both); err == nil {
		t.Error("token and certificate are taken together")
	}
	for _, uri := range []string{"", "http://p.example:8443", "https://p.example/x", "https://u@p.example", "p.example:8443"} {
		if _, err := gatewayclient.New(gatewayclient.Config{Provider: cheap.Address(), URI: uri, Registry: w.chain}); err == nil {
			t.Errorf("URI %q is taken", uri)
		}
	}
}

// A provider that has a tenant's token must not get into its leases elsewhere.
func TestATokenIsGoodAtOneProviderOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, r := w.deployed(t)
	var stolen string
	thief := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { stolen = r.Header.Get("Authorization") }))
	p, err := w.stubs[dear.Address()].Pair().TLS()
	if err != nil {
		t.Fatal(err)
	}
	thief.TLS = &tls.Config{Certificates: []tls.Certificate{p}, MinVersion: tls.VersionTLS13}
	thief.StartTLS()
	defer thief.Close()
	g, err := gatewayclient.New(gatewayclient.Config{Provider: dear.Address(), URI: thief.URL, Registry: w.chain, Signer: alice})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	_ = g.SendManifest(t.Context(), r.DSeq, []byte("[]"))
	if stolen == "" {
		t.Fatal("the thief saw no token")
	}
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer insecure.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.stubs[cheap.Address()].URI()+"/lease/1001/1/1/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", stolen)
	resp, err := insecure.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a token for one provider opens another: status %d", resp.StatusCode)
	}
}

func TestTheServerMustBeTheProvider(t *testing.T) {
	t.Parallel()
	authority, byAuthority := issued(t)
	revoke := func(w *world) {
		for _, c := range w.chain.certs[cheap.Address()] {
			c.Certificate.State = certv1.State_revoked
		}
	}
	for _, tc := range []struct {
		name    string
		prepare func(*world, *gatewaystub.Config, *gatewayclient.Config)
		after   func(*world)
		want    error
	}{
		{"its own certificate, valid on the chain", nil, nil, nil},
		{"its own certificate, revoked on the chain", nil, revoke, gatewayclient.ErrImpostor},
		{"a certificate that is not on the chain", nil, func(w *world) { delete(w.chain.certs, cheap.Address()) }, gatewayclient.ErrImpostor},
		{"another's certificate", func(_ *world, s *gatewaystub.Config, _ *gatewayclient.Config) { s.Provider = dear.Address() }, nil, gatewayclient.ErrImpostor},
		{"a certificate of an authority, for its host", func(_ *world, s *gatewaystub.Config, g *gatewayclient.Config) {
			s.TLS, g.Roots = byAuthority, authority
		}, revoke, nil},
		{"a certificate of an unknown authority", func(_ *world, s *gatewaystub.Config, g *gatewayclient.Config) {
			s.TLS, g.Roots = byAuthority, x509.NewCertPool()
		}, nil, gatewayclient.ErrImpostor},
		{"a copy of its serial number under another key", nil, func(w *world) {
			forged, err := credential.NewCertificate(credential.CertificateConfig{Owner: cheap.Address(), Hosts: []string{"127.0.0.1"}, NotBefore: time.Now()})
			if err != nil {
				panic(err)
			}
			c := w.chain.certs[cheap.Address()][0]
			c.Certificate.Cert, c.Certificate.Pubkey = forged.CertPEM, forged.PublicPEM
		}, gatewayclient.ErrImpostor},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := &world{chain: newChain()}
			server := gatewaystub.Config{Provider: cheap.Address(), Chain: w.chain}
			cfg := gatewayclient.Config{Provider: cheap.Address(), Registry: w.chain}
			if tc.prepare != nil {
				tc.prepare(w, &server, &cfg)
			}
			stub, err := gatewaystub.Start(server)
			if err != nil {
				t.Fatal(err)
			}
			defer stub.Close()
			w.chain.register(server.Provider, stub)
			if tc.after != nil {
				tc.after(w)
			}
			cfg.URI = stub.URI()
			g, err := gatewayclient.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if _, err := g.Version(t.Context()); !errors.Is(err, tc.want) {
				t.Errorf("Version = %v, want %v", err, tc.want)
			}
			if tc.want != nil && stub.Requests() > 0 {
				t.Error("a request was sent all the same")
			}
		})
	}
}

// issued is an authority, and a certificate of it for 127.0.0.1.
func issued(t *testing.T) (*x509.CertPool, *tls.Certificate) {
	t.Helper()
	sign := func(template, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if by == nil {
			by = k
		}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, k.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c, k
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca, caKey := sign(root, root, nil)
	leaf, leafKey := sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "gateway"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool, &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey}
}

func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, err := w.stubs[cheap.Address()].Pair().TLS()
	if err != nil {
		t.Fatal(err)
	}
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.TLS = &tls.Config{Certificates: []tls.Certificate{p}, MaxVersion: tls.VersionTLS12}
	old.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	old.StartTLS()
	defer old.Close()
	g, err := gatewayclient.New(gatewayclient.Config{Provider: cheap.Address(), URI: old.URL, Registry: w.chain})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Version(t.Context()); !errors.Is(err, gatewayclient.ErrUnreachable) {
		t.Errorf("Version = %v", err)
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	_, g, stub, id := leased(t)
	for _, l := range []string{"one", "two", "three"} {
		stub.Log("web-0", l)
		stub.Log("db-0", l)
	}
	for _, tc := range []struct {
		name string
		cfg  gatewayclient.StreamConfig
		want string
	}{
		{"all of everybody", gatewayclient.StreamConfig{}, "web-0 one, db-0 one, web-0 two, db-0 two, web-0 three, db-0 three"},
		{"the last two of one service", gatewayclient.StreamConfig{Services: []string{"web"}, Tail: 2}, "web-0 two, web-0 three"},
		{"none of the past", gatewayclient.StreamConfig{Tail: -1}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for l, err := range g.Logs(t.Context(), id, tc.cfg) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, l.Name+" "+l.Message)
			}
			if s := strings.Join(got, ", "); s != tc.want {
				t.Errorf("lines = %s, want %s", s, tc.want)
			}
		})
	}
}

func TestFollowedLogsGoOnAfterALostConnection(t *testing.T) {
	t.Parallel()
	_, g, stub, id := leased(t)
	stub.Log("web-0", "one")
	stub.Log("web-0", "two")
	lost := 0
	var got []string
	cfg := gatewayclient.StreamConfig{Follow: true, Reconnected: func(error) {
		if lost++; lost == 1 {
			stub.Log("web-0", "three") // while nobody listens
		}
	}}
	for l, err := range g.Logs(t.Context(), id, cfg) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Gap {
			t.Errorf("line %s stands after a gap", l.Message)
		}
		got = append(got, l.Message)
		switch l.Message {
		case "two":
			stub.DropStreams()
		case "three":
			stub.Log("web-0", "four")
		}
		if l.Message == "four" {
			break
		}
	}
	if s := strings.Join(got, " "); s != "one two three four" || lost != 1 {
		t.Errorf("lines = %s after %d losses", s, lost)
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	_, g, stub, id := leased(t)
	want := gatewayclient.Event{Type: "Normal", Controller: "kubelet", Reason: "Started", Note: "started web", Object: gatewayclient.EventObject{Kind: "Pod", Name: "web-0"}}
	stub.Event(want)
	var got []gatewayclient.Event
	for e, err := range g.Events(t.Context(), id, gatewayclient.StreamConfig{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if !slices.Equal(got, []gatewayclient.Event{want}) {
		t.Errorf("events = %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, err := range g.Events(ctx, id, gatewayclient.StreamConfig{Follow: true}) {
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		cancel()
	}
}

func TestShell(t *testing.T) {
	t.Parallel()
	_, g, _, id := leased(t)
	sizes := make(chan gatewayclient.WindowSize, 1)
	sizes <- gatewayclient.WindowSize{Width: 120, Height: 40}
	for _, tc := range []struct {
		name           string
		cfg            gatewayclient.ShellConfig
		stdout, stderr string
		want           error
		code           int
	}{
		{"output", gatewayclient.ShellConfig{Command: []string{"echo", "a", "b c"}}, "a b c\n", "", nil, 0},
		{"exit code", gatewayclient.ShellConfig{Command: []string{"fail", "3"}}, "", "failing\n", nil, 3},
		{"input to its end", gatewayclient.ShellConfig{Command: []string{"cat"}, Stdin: strings.NewReader("in and out")}, "in and out", "", nil, 0},
		{"terminal size", gatewayclient.ShellConfig{Command: []string{"size"}, TTY: true, Resize: sizes}, "120x40\n", "", nil, 0},
		{"no such program", gatewayclient.ShellConfig{Command: []string{"rm"}}, "", "", gatewayclient.ErrNotRun, 0},
		{"no such service", gatewayclient.ShellConfig{Service: "db", Command: []string{"echo"}}, "", "", gatewayclient.ErrUnavailable, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.cfg.Service == "" {
				tc.cfg.Service = "web"
			}
			var stdout, stderr bytes.Buffer
			tc.cfg.Stdout, tc.cfg.Stderr = &stdout, &stderr
			err := g.Shell(t.Context(), id, tc.cfg)
			exit, isExit := errors.AsType[*gatewayclient.ExitError](err)
			switch {
			case tc.code != 0:
				if !isExit || exit.Code != tc.code {
					t.Errorf("Shell = %v, want code %d", err, tc.code)
				}
			case !errors.Is(err, tc.want):
				t.Errorf("Shell = %v, want %v", err, tc.want)
			}
			if stdout.String() != tc.stdout || stderr.String() != tc.stderr {
				t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
			}
		})
	}
	if err := g.Shell(t.Context(), id, gatewayclient.ShellConfig{Service: "web"}); croft.KindOf(err) != croft.KindUsage {
		t.Errorf("Shell without a command = %v", err)
	}
}

// hostile answers whatever it likes.
func TestAHostileGatewayIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, err := w.stubs[cheap.Address()].Pair().TLS()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		serve http.HandlerFunc
	}{
		{"an endless answer", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"services":"`)
			for {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<16)); err != nil {
					return
				}
			}
		}},
		{"a redirect to elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://169.254.169.254/", http.StatusTemporaryRedirect)
		}},
		{"numbers where text belongs", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"services":{"web":{"name":7}}}`)
		}},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `<html>`) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(tc.serve)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{p}, MinVersion: tls.VersionTLS13}
			server.StartTLS()
			defer server.Close()
			g, err := gatewayclient.New(gatewayclient.Config{Provider: cheap.Address(), URI: server.URL, Registry: w.chain, Signer: alice})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			_, err = g.LeaseStatus(t.Context(), akash.LeaseID{OrderID: akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{DSeq: 1}, GSeq: 1}, OSeq: 1}})
			if !errors.Is(err, gatewayclient.ErrProtocol) {
				t.Errorf("LeaseStatus = %v, want %v", err, gatewayclient.ErrProtocol)
			}
		})
	}
}
