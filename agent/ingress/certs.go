package ingress

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"github.com/croft-cloud/croft/internal/atomicfile"
)

// ACME is an authority to ask for certificates. Whoever turns it on agrees to
// the authority's terms.
type ACME struct {
	Directory string       // URL; default: Let's Encrypt
	Email     string       // may be empty
	Client    *http.Client // default: one with a time limit
}

// Times of certificates.
const (
	selfLifetime = 90 * 24 * time.Hour
	selfRenew    = selfLifetime / 3    // left when a new one is made
	selfEarlier  = 24 * time.Hour      // before now that it is valid: clocks of clients differ
	acmeWait     = 5 * time.Second     // from the first question on that handshakes wait for the authority
	maxACMEBytes = 1 << 20             // of an authority's answer
	acmeRetry    = 15 * time.Minute    // after a failure; doubles
	acmeRetryMax = 24 * time.Hour      // and is never longer
	acmeAtOnce   = 4                   // hosts that are asked for at once
	maxOrders    = 64                  // that wait for that
	defaultHost  = "unknown.croft.box" // whose certificate handshakes for unknown hosts get
)

// certificates finds the certificate of a host.
type certificates struct {
	dir       string // of self-signed ones
	authority string // folder of those that an authority gave; may be missing
	known     func(host string) bool
	log       *slog.Logger
	acme      *autocert.Manager // nil: no authority

	mu   sync.Mutex
	self map[string]*tls.Certificate // self-signed ones by host; guarded by mu

	orders  chan string
	stopped chan struct{} // closed when run ends
	asking  sync.Mutex
	asked   map[string]*order // by host; guarded by asking
}

// order is a certificate that an authority is asked for.
type order struct {
	began   time.Time
	done    chan struct{} // closed when the try has ended
	ok      bool          // read after done
	failed  time.Duration // pause before the next try
	nextTry time.Time
}

// onlyOwner: keys are secret.
const (
	onlyOwner    = 0o600
	onlyOwnerDir = 0o700
)

func newCertificates(cfg Config, known func(string) bool) (*certificates, error) {
	dir := filepath.Join(cfg.Dir, "self")
	if err := atomicfile.MkdirAll(dir, onlyOwnerDir); err != nil {
		return nil, fmt.Errorf("make folder for certificates: %w", err)
	}
	c := &certificates{dir: dir, authority: filepath.Join(cfg.Dir, "acme"), known: known, log: cfg.Log, self: map[string]*tls.Certificate{}, orders: make(chan string, maxOrders), stopped: make(chan struct{}), asked: map[string]*order{}}
	if err := c.load(); err != nil {
		return nil, err
	}
	if cfg.ACME == nil {
		return c, nil
	}
	client := &http.Client{Timeout: 30 * time.Second}
	if cfg.ACME.Client != nil {
		*client = *cfg.ACME.Client
	}
	base := client.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	client.Transport = &stoppable{base: base, stopped: c.stopped}
	if err := atomicfile.MkdirAll(c.authority, onlyOwnerDir); err != nil {
		return nil, fmt.Errorf("make folder for certificates: %w", err)
	}
	c.acme = &autocert.Manager{
		Prompt: autocert.AcceptTOS,
		Cache:  autocert.DirCache(c.authority), // writes with mode 0600
		HostPolicy: func(_ context.Context, host string) error {
			if !known(host) {
				return errors.New("host is not served here")
			}
			return nil
		},
		Client: &acme.Client{DirectoryURL: cfg.ACME.Directory, HTTPClient: client, UserAgent: "croft", RetryBackoff: backoff},
		Email:  cfg.ACME.Email,
	}
	return c, nil
}

// load reads what earlier runs kept, and removes what is of no use any more.
func (c *certificates) load() error {
	names, err := filepath.Glob(filepath.Join(c.dir, "*.pem"))
	if err != nil {
		return err
	}
	for _, name := range names {
		host := strings.TrimSuffix(filepath.Base(name), ".pem")
		raw, err := os.ReadFile(name)
		var pair tls.Certificate
		if err == nil {
			pair, err = tls.X509KeyPair(raw, raw)
		}
		if err != nil || !usable(&pair, host, time.Now()) {
			if err := os.Remove(name); err != nil {
				c.log.Warn("stale certificate not removed", "host", host, "error", err)
			}
			continue
		}
		c.self[host] = &pair
	}
	return nil
}

// usable reports whether a certificate is the host's and its dates are good.
func usable(c *tls.Certificate, host string, now time.Time) bool {
	return c.Leaf != nil && c.Leaf.VerifyHostname(host) == nil && !now.Before(c.Leaf.NotBefore) && now.Before(c.Leaf.NotAfter.Add(-selfRenew))
}

// forget removes all certificates of hosts that are not known, and their keys.
func (c *certificates) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for host := range c.self {
		if host != defaultHost && !c.known(host) {
			delete(c.self, host)
			c.remove(c.file(host))
		}
	}
	left, err := os.ReadDir(c.authority)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.Warn("certificates not listed", "error", err)
	}
	for _, entry := range left {
		host, kind, _ := strings.Cut(entry.Name(), "+") // as autocert names them
		if host != acmeAccount && kind != acmeAnswer && !c.known(host) {
			c.remove(filepath.Join(c.authority, entry.Name()))
		}
	}
}

func (c *certificates) remove(file string) {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.Warn("certificate not removed", "file", filepath.Base(file), "error", err)
	}
}

// What autocert keeps beside certificates.
const (
	acmeAccount = "acme_account"
	acmeAnswer  = "http-01" // to a question of the authority; it goes by itself
)

func (c *certificates) file(host string) string { return filepath.Join(c.dir, host+".pem") }

func (c *certificates) tlsConfig() *tls.Config {
	cfg := &tls.Config{MinVersion: oldestTLS, GetCertificate: c.get, NextProtos: protocols()}
	if c.acme == nil {
		cfg.NextProtos = cfg.NextProtos[:2]
	}
	return cfg
}

// get is what a handshake asks.
func (c *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host := hostOf(hello.ServerName)
	if !c.known(host) {
		return c.selfSigned(defaultHost)
	}
	if c.acme != nil {
		if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
			return c.acme.GetCertificate(hello) // the authority looks
		}
		if c.ordered(hello.Context(), host) {
			if cert, err := c.acme.GetCertificate(hello); err == nil {
				return cert, nil
			}
		}
	}
	return c.selfSigned(host)
}

// selfSigned is the host's own certificate, new if need be.
func (c *certificates) selfSigned(host string) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if old := c.self[host]; old != nil && usable(old, host, now) {
		return old, nil
	}
	raw, err := newSelfSigned(host, now)
	if err != nil {
		return nil, fmt.Errorf("make certificate of %s: %w", host, err)
	}
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return nil, fmt.Errorf("make certificate of %s: %w", host, err)
	}
	if err := atomicfile.WriteFile(c.file(host), raw, onlyOwner); err != nil {
		c.log.Warn("certificate not kept", "host", host, "error", err) // it serves all the same
	}
	c.self[host] = &pair
	return &pair, nil
}

// newSelfSigned is key and certificate as PEM.
func newSelfSigned(host string, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	name := pkix.Name{CommonName: host}
	if len(host) > 64 { // as X.509 bounds it; the names that count are below
		name = pkix.Name{CommonName: "croft"}
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: name, DNSNames: []string{host},
		NotBefore: now.Add(-selfEarlier), NotAfter: now.Add(selfLifetime - selfEarlier),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, b := range []*pem.Block{{Type: "PRIVATE KEY", Bytes: secret}, {Type: "CERTIFICATE", Bytes: der}} {
		if err := pem.Encode(&out, b); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// ordered reports whether the authority's certificate of a host is there. If it
// is not, run is told to ask for it, and a handshake waits a little.
func (c *certificates) ordered(ctx context.Context, host string) bool {
	c.asking.Lock()
	o := c.asked[host]
	fresh := o == nil || isClosed(o.done) && !o.ok && !time.Now().Before(o.nextTry)
	if fresh {
		next := &order{began: time.Now(), done: make(chan struct{}), failed: acmeRetry}
		if o != nil {
			next.failed = min(2*o.failed, acmeRetryMax)
		}
		for old := range c.asked { // hosts that left
			if !c.known(old) && isClosed(c.asked[old].done) {
				delete(c.asked, old)
			}
		}
		o, c.asked[host] = next, next
	}
	c.asking.Unlock()
	if fresh {
		select {
		case c.orders <- host:
		default: // all are busy: the next handshake asks again
			c.settle(o, errors.New("too many certificates are asked for at once"), true)
		}
	}
	wait, cancel := context.WithDeadline(ctx, o.began.Add(acmeWait))
	defer cancel()
	select {
	case <-o.done:
		return o.ok
	case <-wait.Done():
		return false
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (c *certificates) settle(o *order, err error, again bool) {
	c.asking.Lock()
	defer c.asking.Unlock()
	o.ok, o.nextTry = err == nil, time.Now().Add(o.failed)
	if again {
		o.nextTry = time.Now()
	}
	close(o.done)
}

// run asks the authority until ctx ends. The certificates it gives are renewed
// by autocert, when handshakes ask for them.
func (c *certificates) run(ctx context.Context) {
	if c.acme == nil {
		return
	}
	context.AfterFunc(ctx, func() { close(c.stopped) })
	var askers sync.WaitGroup
	for range acmeAtOnce {
		askers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case host := <-c.orders:
					c.ask(ctx, host)
				}
			}
		})
	}
	askers.Wait()
}

func (c *certificates) ask(ctx context.Context, host string) {
	c.asking.Lock()
	o := c.asked[host]
	c.asking.Unlock()
	if o == nil {
		return
	}
	// autocert takes no context: stopping breaks its requests instead.
	_, err := c.acme.GetCertificate(&tls.ClientHelloInfo{
		ServerName: host, SupportedCurves: []tls.CurveID{tls.CurveP256},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	})
	if err != nil {
		c.log.Warn("authority gave no certificate", "host", host, "error", err)
	} else {
		c.log.Info("authority gave a certificate", "host", host)
	}
	c.settle(o, err, false)
}

// challenge answers an authority that looks by HTTP, and reports whether it did.
// A tenant may have an authority of its own: what is not ours is passed on.
func (c *certificates) challenge(w http.ResponseWriter, r *http.Request) bool {
	if c.acme == nil || !strings.HasPrefix(r.URL.Path, "/.well-known/acme-challenge/") {
		return false
	}
	try := &recorder{header: http.Header{}, status: http.StatusOK}
	c.acme.HTTPHandler(nil).ServeHTTP(try, r)
	if try.status != http.StatusOK {
		return false
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write(try.body.Bytes()) // the authority may be gone
	return true
}

// recorder keeps a small answer.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

// backoff is the pause before a request to the authority is repeated; below 0:
// it is not. The next handshake after acmeRetry begins anew.
func backoff(n int, _ *http.Request, _ *http.Response) time.Duration {
	if n > 3 {
		return -1
	}
	return time.Second << n
}

// stoppable breaks requests when the ingress stops.
type stoppable struct {
	base    http.RoundTripper
	stopped chan struct{}
}

func (t *stoppable) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer cancel()
	watcher.Go(func() {
		select {
		case <-t.stopped:
			cancel()
		case <-ctx.Done():
		}
	})
	resp, err := t.base.RoundTrip(r.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxACMEBytes))
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	return resp, nil
}
