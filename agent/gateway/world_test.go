package gateway_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/gateway"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/credential"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

var (
	provider = key(0)
	alice    = key(1)
	mallory  = key(2)
	newcomer = key(3) // has no key on the chain
)

func key(index uint32) *account.Key {
	words, err := account.ParseMnemonic(strings.Repeat("abandon ", 11) + "about")
	if err != nil {
		panic(err)
	}
	k, err := words.Key(0, index)
	if err != nil {
		panic(err)
	}
	return k
}

// fakeChain knows keys and certificates, and counts questions.
type fakeChain struct {
	mu      sync.Mutex
	keys    map[account.Address]account.PublicKey
	certs   []*certv1.CertificateResponse
	down    bool
	hangs   bool // until the question is given up
	queries int
}

func (c *fakeChain) ask() error {
	c.queries++
	if c.down {
		return errors.New("connection refused")
	}
	return nil
}

func (c *fakeChain) PublicKey(ctx context.Context, a account.Address) (account.PublicKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := c.ask(); err != nil {
		return nil, err
	}
	if k, ok := c.keys[a]; ok {
		return k, nil
	}
	return nil, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("account has no public key")}
}

func (c *fakeChain) Certificates(_ context.Context, f *certv1.CertificateFilter) iter.Seq2[*certv1.CertificateResponse, error] {
	return func(yield func(*certv1.CertificateResponse, error) bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.ask(); err != nil {
			yield(nil, err)
			return
		}
		for _, r := range c.certs {
			parsed, err := credential.ParseCertificate(r.GetCertificate().GetCert(), r.GetCertificate().GetPubkey())
			if err != nil {
				panic(err)
			}
			if string(parsed.Owner) == f.GetOwner() && parsed.Serial == f.GetSerial() && r.GetCertificate().GetState().String() == f.GetState() && !yield(r, nil) {
				return
			}
		}
	}
}

func (c *fakeChain) publish(p credential.Pair) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.certs = append(c.certs, &certv1.CertificateResponse{
		Serial:      p.Certificate.Serial,
		Certificate: &certv1.Certificate{State: certv1.State_valid, Cert: p.CertPEM, Pubkey: p.PublicPEM},
	})
}

func (c *fakeChain) revoke(serial string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.certs {
		if r.GetSerial() == serial {
			r.Certificate.State = certv1.State_revoked
		}
	}
}

func (c *fakeChain) setDown(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

func (c *fakeChain) asked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queries
}

// leased is the one lease of the backend; its service "web" runs.
var leased = akash.LeaseID{
	OrderID:  akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: alice.Address(), DSeq: 7}, GSeq: 1}, OSeq: 1},
	Provider: provider.Address(),
}

const manifest = `[{"name":"home","services":[{"name":"web","image":"nginx:1.27","command":null,"args":null,"env":null,` +
	`"resources":{"id":1,"cpu":{"units":{"val":"500"}},"memory":{"size":{"val":"536870912"}},"storage":[{"name":"default","size":{"val":"1073741824"}}],"gpu":{"units":{"val":"0"}},"endpoints":[{"sequence_number":0}]},` +
	`"count":1,"expose":[{"port":80,"externalPort":80,"proto":"TCP","service":"","global":true,"hosts":null,"httpOptions":{"maxBodySize":1048576,"readTimeout":60000,"sendTimeout":60000,"nextTries":3,"nextTimeout":0,"nextCases":["error","timeout"]},"ip":"","endpointSequenceNumber":0}],"credentials":null}]}]`

// backend is what stands behind the gateway: one lease, all in memory.
type backend struct {
	mu       sync.Mutex
	err      error // of every call, if set
	services []lease.ServiceStatus
	accepted []byte
	lines    []gateway.LogLine
	events   []lease.Event
	changed  chan struct{}
	status   gateway.Provider
	provided int
	exec     func(context.Context, gateway.Exec) (int, error)
	also     akash.DeploymentID // is expected, and not taken
	held     chan struct{}      // nil: manifests are taken at once, else when it is closed
	running  atomic.Int64       // calls that have not returned
}

func newBackend() *backend {
	return &backend{
		services: []lease.ServiceStatus{{Name: "web", Revision: 3, Total: 1, Started: 1, Available: 1, URIs: []string{"a.ingress.example"}}},
		changed:  make(chan struct{}),
		status: gateway.Provider{
			Leases: 1, Orders: 2, Deployments: 1,
			Active:  []gateway.Amounts{{CPU: 500, Memory: 1 << 29, StorageEphemeral: 1 << 30, Storage: map[string]int64{"beta3": 5}}},
			Machine: gateway.Machine{Name: "n1", Allocatable: gateway.Amounts{CPU: 8000, Memory: 100, GPU: 1}, Available: gateway.Amounts{CPU: 7500, Memory: 60, GPU: 1}, GPUs: []gateway.GPU{{Vendor: "nvidia", Name: "rtx4090"}}},
			Classes: []gateway.Class{{Name: "beta3", Size: 10, Available: 5}},
		},
	}
}

// call is the beginning of every method.
func (b *backend) call(id akash.LeaseID) (done func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running.Add(1)
	done = func() { b.running.Add(-1) }
	if b.err != nil {
		return done, b.err
	}
	if id != leased {
		return done, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no lease for deployment")}
	}
	return done, nil
}

func (b *backend) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *backend) Expect(_ context.Context, id akash.DeploymentID) error {
	if id != leased.DeploymentID && id != b.also {
		return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no lease for deployment")}
	}
	return nil
}

func (b *backend) Accept(_ context.Context, id akash.DeploymentID, raw []byte) error {
	one := leased
	one.DeploymentID = id
	if b.held != nil && id == leased.DeploymentID {
		<-b.held
	}
	done, err := b.call(one)
	defer done()
	if err != nil {
		return err
	}
	if string(raw) != manifest {
		return &croft.Error{Kind: croft.KindInvalid, Err: errors.New("manifest version validation failed"), Remedy: "send the manifest of the deployment's present version"}
	}
	b.set(func() { b.accepted = raw })
	return nil
}

func (b *backend) Manifest(_ context.Context, id akash.LeaseID) ([]byte, error) {
	done, err := b.call(id)
	defer done()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil && b.accepted == nil {
		err = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no manifest")}
	}
	return b.accepted, err
}

func (b *backend) Status(_ context.Context, id akash.LeaseID) (gateway.LeaseStatus, error) {
	done, err := b.call(id)
	defer done()
	b.mu.Lock()
	defer b.mu.Unlock()
	return gateway.LeaseStatus{
		Services: slices.Clone(b.services),
		Ports:    []gateway.ForwardedPort{{Service: "web", Host: "box.example", Port: 5432, External: 31234, Proto: "TCP"}},
	}, err
}

// follow yields all that has come, and what comes.
func follow[T any](ctx context.Context, b *backend, id akash.LeaseID, on bool, all func() []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		done, err := b.call(id)
		defer done()
		if err != nil {
			yield(*new(T), err)
			return
		}
		for sent := 0; ; {
			b.mu.Lock()
			fresh, changed := slices.Clone(all()[sent:]), b.changed
			b.mu.Unlock()
			for _, v := range fresh {
				sent++
				if !yield(v, nil) {
					return
				}
			}
			if !on {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (b *backend) Logs(ctx context.Context, id akash.LeaseID, q gateway.LogQuery) iter.Seq2[gateway.LogLine, error] {
	return follow(ctx, b, id, q.Follow, func() []gateway.LogLine {
		if q.Tail >= 0 && !q.Follow {
			return b.lines[max(0, len(b.lines)-q.Tail):]
		}
		return b.lines
	})
}

func (b *backend) Events(ctx context.Context, id akash.LeaseID, _ []string, on bool) iter.Seq2[lease.Event, error] {
	return follow(ctx, b, id, on, func() []lease.Event { return b.events })
}

// Exec knows echo, cat, fail, size, sleep; the rest is not found.
func (b *backend) Exec(ctx context.Context, id akash.LeaseID, e gateway.Exec) (int, error) {
	done, err := b.call(id)
	defer done()
	if err != nil {
		return 0, err
	}
	if e.Index > 0 {
		return 0, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("replica %d of %s does not exist", e.Index, e.Service)}
	}
	switch e.Command[0] {
	case "echo":
		_, _ = fmt.Fprintln(e.Stdout, strings.Join(e.Command[1:], " "))
		return 0, nil
	case "fail":
		_, _ = fmt.Fprintln(e.Stderr, "failing")
		return 3, nil
	case "cat":
		if e.Stdin == nil {
			return 1, nil
		}
		_, err := io.Copy(e.Stdout, e.Stdin)
		return 0, err
	case "size":
		select {
		case w := <-e.Resize:
			_, _ = fmt.Fprintf(e.Stdout, "%dx%d\n", w.Width, w.Height)
			return 0, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	case "sleep":
		<-ctx.Done()
		return 0, ctx.Err()
	case "yes":
		for {
			if _, err := e.Stdout.Write(make([]byte, 100<<10)); err != nil {
				return 0, err
			}
		}
	case "crash":
		return 0, errors.New("ttrpc: secret path /perm/x")
	}
	return 0, &croft.Error{Kind: croft.KindRefused, Err: errors.New("no such program")}
}

func (b *backend) Provided(context.Context) (gateway.Provider, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.provided++
	return b.status, b.err
}

func (b *backend) MigrateHosts(_ context.Context, names []string, to akash.GroupID) ([]string, error) {
	if to != leased.GroupID {
		return nil, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no lease for deployment")}
	}
	return names, nil
}

func (b *backend) MigrateEndpoints(context.Context, []string, akash.GroupID) ([]string, error) {
	return nil, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("the box has no addresses to let")}
}

// certificates is what the gateway shows.
type certificates struct{ own, authority *tls.Certificate }

func (c certificates) OnChain() *tls.Certificate   { return c.own }
func (c certificates) Authority() *tls.Certificate { return c.authority }

// world is a running gateway.
type world struct {
	*backend
	chain *fakeChain
	shown certificates
	dial  func(ctx context.Context, network, address string) (net.Conn, error) // REST
	grpc  net.Addr
	stop  func() // ends Run and waits for it
}

const host = "box.example"

func pairOf(t testing.TB, owner *account.Key, hosts ...string) (credential.Pair, *tls.Certificate) {
	t.Helper()
	p, err := credential.NewCertificate(credential.CertificateConfig{Owner: owner.Address(), Hosts: hosts, NotBefore: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return p, &c
}

// start runs a gateway on these listeners, or on loopback.
func start(t testing.TB, rest, rpc net.Listener, change func(*world)) *world {
	t.Helper()
	own, shown := pairOf(t, provider, host)
	w := &world{
		backend: newBackend(), shown: certificates{own: shown},
		chain: &fakeChain{keys: map[account.Address]account.PublicKey{alice.Address(): alice.PublicKey(), mallory.Address(): mallory.PublicKey()}},
	}
	w.chain.publish(own)
	if change != nil {
		change(w)
	}
	if rest == nil {
		var err error
		if rest, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if rpc, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		w.grpc = rpc.Addr()
		address := rest.Addr().String()
		w.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	}
	g, err := gateway.New(gateway.Config{
		Provider: provider.Address(), Host: host, REST: rest, GRPC: rpc, Chain: w.chain, Certificates: w.shown,
		Manifests: w, Statuses: w, Logs: w, Events: w, Shell: w, Provided: w, Hosts: w,
		Software: gateway.Software{Version: "1.2.3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if n := w.running.Load(); n != 0 {
			t.Errorf("%d calls of backends are still running", n)
		}
	})
	t.Cleanup(w.stop)
	return w
}

func (w *world) client(t testing.TB, cfg gatewayclient.Config) *gatewayclient.Gateway {
	t.Helper()
	cfg.Provider, cfg.URI, cfg.Registry, cfg.Dial = provider.Address(), "https://"+host+":8443", w.chain, w.dial
	g, err := gatewayclient.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// raw is a client that believes anybody and sends what it is told.
func (w *world) raw(t testing.TB, server string, certificate *tls.Certificate) *http.Client {
	t.Helper()
	cfg := &tls.Config{ServerName: server, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	if certificate != nil {
		cfg.Certificates = []tls.Certificate{*certificate}
	}
	transport := &http.Transport{DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := w.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		secure := tls.Client(conn, cfg)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return secure, nil
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func token(t testing.TB, k *account.Key, change func(*credential.Claims)) string {
	t.Helper()
	claims := credential.FullAccess(time.Now())
	if change != nil {
		change(&claims)
	}
	s, err := credential.Sign(t.Context(), k, claims)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
