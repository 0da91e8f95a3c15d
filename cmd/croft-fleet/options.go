package main

import (
	"cmp"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/crypto/acme/autocert"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet"
	"github.com/croft-cloud/croft/fleet/auth/oidclogin"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/auth/smtp"
	"github.com/croft-cloud/croft/fleet/ingest"
	"github.com/croft-cloud/croft/fleet/timeseries"
	"github.com/croft-cloud/croft/fleet/timeseries/forward"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// options are the command line.
type options struct {
	dir, origin, name    string
	database, key, blobs string

	listen, deviceListen, brokerListen string
	tlsCert, tlsKey, acme              string
	proxies, private                   []string

	hosts                []string
	broker               string
	brokerFiles          string
	tellBrokers          []string
	firstUse             string
	factory              []string
	mail, oidc           string
	retention            time.Duration
	longRetention        time.Duration
	remoteWrite          string
	maxSeries            int
	connectionsPerSecond float64
	trustClock           bool
}

func (o *options) register(f *pflag.FlagSet) {
	f.StringVar(&o.dir, "dir", "/var/lib/croft-fleet", "`folder` of this replica")
	f.StringVar(&o.origin, "origin", "", "what browsers call the fleet, as https://fleet.example (required)")
	f.StringVar(&o.name, "name", "Croft", "what people call the fleet")
	f.StringVar(&o.database, "database", "", "sqlite:PATH or postgres://… (default sqlite:DIR/fleet.db)")
	f.StringVar(&o.key, "key", "", "`file` of the fleet's secret, the same for all replicas (default DIR/fleet.key, made if missing)")
	f.StringVar(&o.blobs, "blobs", "", "file:///PATH or s3://HOST/BUCKET, where bundles are kept (default DIR/blobs)")
	f.StringVar(&o.listen, "listen", "", "`address` for people (default :443 with TLS, 127.0.0.1:8080 without)")
	f.StringVar(&o.deviceListen, "device-listen", ":8443", "`address` for boxes that enrol")
	f.StringVar(&o.brokerListen, "broker-listen", ":8883", "`address` for messages of boxes, unless --broker is set")
	f.StringVar(&o.tlsCert, "tls-cert", "", "`file` with the certificate of --listen, PEM")
	f.StringVar(&o.tlsKey, "tls-key", "", "`file` with its key, PEM")
	f.StringVar(&o.acme, "acme", "", "get that certificate from Let's Encrypt, whose terms you agree to; `e-mail` for its warnings")
	f.StringSliceVar(&o.proxies, "proxy", nil, "`networks` of proxies whose X-Forwarded-For counts")
	f.StringSliceVar(&o.private, "allow-private-webhooks", nil, "`networks` that webhooks may reach though they are private")
	f.StringSliceVar(&o.hosts, "host", nil, "`names` and addresses at which boxes reach this service (default the origin's)")
	f.StringVar(&o.broker, "broker", "", "`URL` of an external broker, for the fleet: mqtts://user:password@host:port")
	f.StringVar(&o.brokerFiles, "broker-files", "", "`folder` where that broker finds certificates, key and the list of revoked ones")
	f.StringSliceVar(&o.tellBrokers, "tell-broker", nil, "`URLs` of brokers for boxes, as tls://host:port")
	f.StringVar(&o.firstUse, "first-use", string(enroll.FirstUseVoucher), "which unknown boxes come in: voucher, listed or open")
	f.StringSliceVar(&o.factory, "factory-key", nil, "`files` with public keys that sign vouchers, PEM")
	f.StringVar(&o.mail, "mail", "", "`URL` of a mail server: smtp://user:password@host:587?from=fleet@example, smtps:// for TLS from the first byte")
	f.StringVar(&o.oidc, "oidc", "", "`file` with the providers through which staff signs in, JSON")
	f.DurationVar(&o.retention, "retention", 0, "how long readings are kept as they came (default 15 days)")
	f.DurationVar(&o.longRetention, "long-retention", 0, "how long values of five minutes are kept (default 400 days)")
	f.IntVar(&o.maxSeries, "max-series", 0, "time series of all boxes at once, 2 kB each (default 2,000,000)")
	f.StringVar(&o.remoteWrite, "remote-write", "", "`URL` of a store that gets a copy of all readings, by Prometheus' protocol")
	f.BoolVar(&o.trustClock, "trust-clock", false, "start although the clock is far from when the fleet last ran: somebody has checked it")
	f.Float64Var(&o.connectionsPerSecond, "connect-rate", 0, "connections of boxes a second that are let in (default 100)")
}

// fromEnvironment sets flags that are not on the command line from variables.
func (o *options) fromEnvironment(f *pflag.FlagSet, look func(string) (string, bool)) (err error) {
	f.VisitAll(func(one *pflag.Flag) {
		name := "CROFT_FLEET_" + strings.ToUpper(strings.ReplaceAll(one.Name, "-", "_"))
		if value, found := look(name); found && !one.Changed && err == nil {
			if set := f.Set(one.Name, value); set != nil {
				err = usage(fmt.Errorf("%s: %w", name, set))
			}
		}
	})
	return err
}

// config opens the listeners and reads the files that the options name.
func (o *options) config(log *slog.Logger) (cfg fleet.Config, err error) {
	origin, err := url.Parse(o.origin)
	if err != nil || origin.Hostname() == "" {
		return cfg, usage(errors.New("--origin is missing: what browsers call the fleet, as https://fleet.example"))
	}
	cfg = fleet.Config{
		Dir: o.dir, Origin: o.origin, Name: o.name, Database: o.database, Key: o.key, Blobs: o.blobs,
		BrokerFiles: o.brokerFiles, Hosts: o.hosts, Brokers: o.tellBrokers, ConnectRate: o.connectionsPerSecond, TrustClock: o.trustClock, Log: log,
		Series: timeseries.Config{Retention: o.retention, LongRetention: o.longRetention, MaxSeries: o.maxSeries},
	}
	for _, read := range []func(*fleet.Config) error{o.networks, o.trust, o.mailer, o.providers, o.remote, func(cfg *fleet.Config) error { return o.tls(cfg, origin) }} {
		if err := read(&cfg); err != nil {
			return cfg, err
		}
	}
	defer func() {
		if err != nil {
			closeAll(cfg)
		}
	}()
	web := cmp.Or(o.listen, "127.0.0.1:8080")
	if cfg.WebTLS != nil {
		web = cmp.Or(o.listen, ":443")
	}
	if cfg.Web, err = listen(web, "listen"); err != nil {
		return cfg, err
	}
	if cfg.Device, err = listen(o.deviceListen, "device-listen"); err != nil {
		return cfg, err
	}
	if o.broker != "" {
		cfg.External = &ingest.External{URL: o.broker}
		return cfg, nil
	}
	cfg.Broker, err = listen(o.brokerListen, "broker-listen")
	return cfg, err
}

func listen(address, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("listen: %w", err), Remedy: "choose another address with --" + flag}
	}
	return l, nil
}

func closeAll(cfg fleet.Config) {
	for _, l := range []net.Listener{cfg.Web, cfg.Device, cfg.Broker} {
		if l != nil {
			l.Close()
		}
	}
}

func (o *options) networks(cfg *fleet.Config) error {
	for _, list := range []struct {
		flag string
		text []string
		into *[]netip.Prefix
	}{{"proxy", o.proxies, &cfg.Proxies}, {"allow-private-webhooks", o.private, &cfg.Private}} {
		for _, text := range list.text {
			network, err := netip.ParsePrefix(text)
			if err != nil {
				return usage(fmt.Errorf("--%s: %q is no network: write 192.0.2.0/24", list.flag, text))
			}
			*list.into = append(*list.into, network)
		}
	}
	return nil
}

// trust says which boxes come in.
func (o *options) trust(cfg *fleet.Config) (err error) {
	if cfg.FirstUse, err = enroll.ParseFirstUse(o.firstUse); err != nil {
		return usage(fmt.Errorf("--first-use: %w", err))
	}
	for _, path := range o.factory {
		text, err := os.ReadFile(path)
		if err != nil {
			return usage(fmt.Errorf("--factory-key: %w", err))
		}
		var key ed25519.PublicKey
		if key, err = enroll.ParseFactoryPublic(text); err != nil {
			return usage(fmt.Errorf("--factory-key %s: %w", path, err))
		}
		cfg.Factory = append(cfg.Factory, key)
	}
	if cfg.FirstUse == enroll.FirstUseVoucher && len(cfg.Factory) == 0 {
		return usage(errors.New("no box can come in: give --factory-key, or --first-use=listed or open"))
	}
	return nil
}

// mailer is the mail server. Its password never stands in an error.
func (o *options) mailer(cfg *fleet.Config) error {
	if o.mail == "" {
		return nil
	}
	u, err := url.Parse(o.mail)
	if err != nil || u.Hostname() == "" || u.Query().Get("from") == "" || !slices.Contains([]string{"smtp", "smtps"}, u.Scheme) {
		return usage(errors.New("--mail: want smtp://user:password@host:587?from=fleet@example"))
	}
	port := "587"
	if u.Scheme == "smtps" {
		port = "465"
	}
	password, _ := u.User.Password()
	cfg.Mailer = &smtp.Sender{
		Address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)), From: u.Query().Get("from"),
		User: u.User.Username(), Password: secret.New(password),
		Implicit: u.Scheme == "smtps", Plain: u.Query().Get("tls") == "no",
	}
	return nil
}

// provider is one entry of the file of --oidc.
type provider struct {
	Name     string                 `json:"name"`
	Title    string                 `json:"title"`
	Issuer   string                 `json:"issuer"`
	ClientID string                 `json:"client_id"`
	Secret   string                 `json:"client_secret"`
	Scopes   []string               `json:"scopes"`
	Groups   string                 `json:"groups_claim"`
	Roles    map[string]rights.Role `json:"roles"`
}

func (o *options) providers(cfg *fleet.Config) error {
	if o.oidc == "" {
		return nil
	}
	file, err := os.Open(o.oidc)
	if err != nil {
		return usage(fmt.Errorf("--oidc: %w", err))
	}
	defer file.Close()
	read := json.NewDecoder(file)
	read.DisallowUnknownFields()
	var list []provider
	if err := read.Decode(&list); err != nil {
		return usage(fmt.Errorf("--oidc %s: %w", o.oidc, err))
	}
	for _, p := range list {
		cfg.OIDC = append(cfg.OIDC, oidclogin.Config{
			Name: p.Name, Title: p.Title, Issuer: p.Issuer, ClientID: p.ClientID, Secret: secret.New(p.Secret),
			Scopes: p.Scopes, Groups: p.Groups, Roles: p.Roles,
		})
	}
	return nil
}

func (o *options) remote(cfg *fleet.Config) error {
	if o.remoteWrite == "" {
		return nil
	}
	u, err := url.Parse(o.remoteWrite)
	if err != nil || u.Hostname() == "" {
		return usage(errors.New("--remote-write: want https://host/path"))
	}
	cfg.Series.Remote = &forward.Config{URL: u}
	return nil
}

// tls is how --listen speaks TLS, if it does.
func (o *options) tls(cfg *fleet.Config, origin *url.URL) error {
	switch {
	case o.acme != "" && o.tlsCert != "":
		return usage(errors.New("--acme and --tls-cert exclude each other"))
	case o.acme != "":
		m := &autocert.Manager{
			Prompt: autocert.AcceptTOS, Email: o.acme,
			HostPolicy: autocert.HostWhitelist(origin.Hostname()), Cache: autocert.DirCache(filepath.Join(o.dir, "acme")),
		}
		cfg.WebTLS = m.TLSConfig()
		cfg.WebTLS.MinVersion = tls.VersionTLS12
	case o.tlsCert != "" || o.tlsKey != "":
		if _, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey); err != nil {
			return usage(fmt.Errorf("--tls-cert and --tls-key: %w", err))
		}
		// Read at each handshake, so that a renewed certificate counts at once. With HTTP/2
		// many live pages of a browser share a connection; of others it opens six.
		cfg.WebTLS = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
			return &pair, err
		}}
	case origin.Scheme == "https" && o.listen == "":
		return usage(errors.New("who speaks TLS? give --acme or --tls-cert, or --listen and a proxy before it"))
	}
	return nil
}
