// Package relaycmd is `croft relay`: a relay server as an operator runs it. It
// reads flags and files, listens, and leaves the rest to package relay.
//
// The files it was given are looked at every few seconds, and what changed is in
// force from then on; a file that cannot be read or understood any more is
// reported, and what it said before stays. In --data lie the relay's key and the
// external ports of boxes: with them a relay that was restarted is the same one
// to its boxes. A lost key means new network files for all of them.
package relaycmd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/provisioning/joinfile"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

// settings are the flags.
type settings struct {
	name, domain     string
	listen, http     string
	ports, portsHost string
	data, cert, key  string
	admit, allow     string
	status           string

	look   time.Duration // how often files are looked at
	dns    resolver
	stdout io.Writer
	log    *slog.Logger
}

// New makes `croft relay`.
func New() *cobra.Command { return newCommand(5*time.Second, net.DefaultResolver) }

// newCommand is New with another time between two looks at the files, and another
// DNS.
func newCommand(look time.Duration, dns resolver) *cobra.Command {
	s := settings{look: look, dns: dns}
	cmd := &cobra.Command{
		Use:   "relay --name HOST [flags]",
		Short: "Run a relay, through which boxes behind routers are reached",
		Long: `Run a relay, through which boxes behind routers are reached, until it is told to
stop.

Boxes dial the relay and keep a tunnel; their tenants' users come to the relay,
which passes them on. DNS must lead HOST and *.DOMAIN here, and --listen and
--http must be reachable from the internet as ports 443 and 80. TLS is passed on
unopened: the relay holds no key of any tenant, and reads host names only.

Its own key is for boxes. It is made at the first start, in --data, and boxes
know it by its hash, the pin, which stands in their network file: the command
prints what to write there. With --cert and --key it is a certificate of yours
instead. Boxes that have no pin believe one of a public authority; a pin is lost
with the key, so leave it out if renewals change the key.

Who may use it:
  --admit all      any box, known or not
  --admit FILE     the devices in it, one id a line

Which hosts of their own tenants may have, beside DEVICE.DOMAIN:
  --allow-host dns    those that DNS leads to the box by its name: the host is an
                      alias (CNAME) of DEVICE.DOMAIN or a name below it, or a TXT
                      record of _croft.HOST says DEVICE. *.DOMAIN must lead here
                      by addresses then, and not be an alias itself. A host stays
                      with a box until its lease ends or its tunnel does
  --allow-host none   none
  --allow-host FILE   lines "DEVICE host"; check by yourself that the host is the
                      tenant's
  --allow-host any    every host, for whoever asks first, on test networks. There
                      is no proof that the host is the tenant's: nothing is asked
                      of DNS or of its owner, so a box can take a name that
                      another tenant's users come by

In both files empty lines and what follows # do not count. All files are looked
at every few seconds, and what changed counts from then on: renewed
certificates too. A device that is not admitted any more loses its tunnel.`,
		Example: `  croft relay --name relay.example.com --data /var/lib/croft-relay
  croft relay --name relay.example.com --domain boxes.example.com --admit devices.txt --status 127.0.0.1:8080
  croft relay --name croft.localhost --listen 127.0.0.1:8443 --http 127.0.0.1:8080 --allow-host any   # to try`,
		Args: session.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.name == "" {
				return session.MissingFlag(cmd, "name")
			}
			s.stdout = cmd.OutOrStdout()
			s.log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return s.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.name, "name", "", "host name of the relay, which boxes dial")
	f.StringVar(&s.domain, "domain", "", "boxes are DEVICE.DOMAIN (default: as --name)")
	f.StringVar(&s.listen, "listen", ":443", "address for boxes and for users of TLS")
	f.StringVar(&s.http, "http", ":80", "address for users of plain HTTP; empty: none")
	f.StringVar(&s.ports, "ports", "31000-31999", "external ports for TCP and UDP, FIRST-LAST; empty: none")
	f.StringVar(&s.portsHost, "ports-host", "", "address on which external ports open (default: all)")
	f.StringVar(&s.data, "data", "croft-relay", "folder of the relay's key and memory")
	f.StringVar(&s.cert, "cert", "", "certificate of the relay, PEM (default: made in --data)")
	f.StringVar(&s.key, "key", "", "its key, PEM")
	f.StringVar(&s.admit, "admit", "all", "which boxes may have a tunnel: all, or FILE")
	f.StringVar(&s.allow, "allow-host", "dns", "which hosts of their own they may have: dns, none, any, or FILE")
	f.StringVar(&s.status, "status", "", "loopback address of a page that lists the boxes, as JSON (default: none)")
	return cmd
}

// run serves until ctx ends.
func (s settings) run(ctx context.Context) error {
	if s.domain == "" {
		s.domain = s.name
	}
	cfg := relay.Config{Name: s.name, Domain: s.domain, Address: s.listen, HTTPAddress: s.http, PortHost: s.portsHost, Log: s.log}
	var err error
	if cfg.Ports, err = parsePorts(s.ports); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	if err := atomicfile.MkdirAll(s.data, 0o700); err != nil {
		return fmt.Errorf("make the relay's folder: %w", err)
	}
	cfg.Store = relay.NewFileStore(filepath.Join(s.data, "ports.json"))
	rules, err := s.readFiles()
	if err != nil {
		return err
	}
	cfg.Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return rules.cert.get(), nil }
	cfg.Admit = func(_ context.Context, id croft.DeviceID, _ *x509.Certificate) error { return rules.admits(id) }
	cfg.AllowHost = rules.allows

	var entrances []net.Listener // in the order in which the server asks for them
	cfg.Listen = func(context.Context, string, string) (net.Listener, error) {
		l := entrances[0]
		entrances = entrances[1:]
		return l, nil
	}
	server, err := relay.New(cfg)
	if err != nil {
		return session.Usage(err, "see `croft relay --help`")
	}

	// All is opened before anything is said, so that what is said is true.
	var open []net.Listener
	defer func() {
		for _, l := range open {
			l.Close() // those that were not handed on; the others are closed already
		}
	}()
	listen := func(address string) (net.Listener, error) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, cannotListen(address, err)
		}
		open = append(open, l)
		return l, nil
	}
	for _, address := range []string{s.listen, s.http} {
		if address == "" {
			continue
		}
		l, err := listen(address)
		if err != nil {
			return err
		}
		entrances = append(entrances, l)
	}
	if err := s.introduce(open, rules.cert.get()); err != nil {
		return err
	}
	workers, ctx := errgroup.WithContext(ctx)
	if s.status != "" {
		l, err := listen(s.status)
		if err != nil {
			return err
		}
		fmt.Fprintf(s.stdout, "status   http://%s/\n", l.Addr())
		workers.Go(func() error { return serveStatus(ctx, l, s, server) })
	}
	workers.Go(func() error { return server.Run(ctx) })
	workers.Go(func() error { rules.keep(ctx, s.look, server); return nil })
	if rules.naming != nil {
		workers.Go(func() error { rules.naming.run(ctx); return nil })
	}
	return workers.Wait()
}

// check finds what makes no sense in flags that package relay does not see.
func (s settings) check() error {
	if (s.cert == "") != (s.key == "") {
		return session.Usage(errors.New("--cert and --key belong together"), "give both, or none to have a key made")
	}
	for _, f := range []struct{ flag, host string }{{"--name", s.name}, {"--domain", s.domain}} {
		if err := wire.CheckHost(f.host); err != nil {
			return session.Usage(fmt.Errorf("%s: %w", f.flag, err), "give a DNS name in lower case")
		}
	}
	if s.status == "" {
		return nil
	}
	address, err := netip.ParseAddrPort(s.status)
	if err != nil || !address.Addr().IsLoopback() {
		return session.Usage(fmt.Errorf("--status %s is no loopback address", s.status), "write it like 127.0.0.1:8080: the page is for this machine only")
	}
	return nil
}

func cannotListen(address string, err error) error {
	err = fmt.Errorf("listen on %s: %w", address, errors.Unwrap(err))
	if errors.Is(err, fs.ErrPermission) {
		return &croft.Error{Kind: croft.KindRefused, Err: err, Remedy: "run it as a service that may open low ports (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE), or choose others with --listen and --http"}
	}
	return &croft.Error{Kind: croft.KindRefused, Err: err, Remedy: "see what else listens there, or choose another address"}
}

func parsePorts(text string) (relay.PortRange, error) {
	if text == "" {
		return relay.PortRange{}, nil
	}
	first, last, ok := strings.Cut(text, "-")
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if !ok || errors.Join(err1, err2) != nil || from == 0 || to < from {
		return relay.PortRange{}, session.Usage(fmt.Errorf("--ports %q is no range", text), "write it like 31000-31999")
	}
	return relay.PortRange{First: uint16(from), Last: uint16(to)}, nil
}

// introduce prints who the relay is and what boxes must be told.
func (s settings) introduce(open []net.Listener, cert *tls.Certificate) error {
	pin := wire.PinOf(cert.Leaf)
	entry := joinfile.Relay{Name: s.name}
	if !s.publiclyTrusted(cert) {
		entry.Pins = []string{hex.EncodeToString(pin[:])}
	}
	if _, port, err := net.SplitHostPort(open[0].Addr().String()); err == nil && port != "443" {
		entry.Address = net.JoinHostPort(s.name, port)
	}
	raw, err := json.MarshalIndent([]joinfile.Relay{entry}, "  ", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(s.stdout, "relay    %s, boxes are DEVICE.%s\n", s.name, s.domain)
	for i, l := range open {
		fmt.Fprintf(s.stdout, "%-8s %s\n", []string{"TLS", "HTTP"}[i], l.Addr())
	}
	fmt.Fprintf(s.stdout, "pin      %x\n\nIn the boxes' %s:\n\n  \"relays\": %s\n\n", pin, joinfile.Path, raw)
	return nil
}

// publiclyTrusted says whether boxes believe the certificate without a pin.
func (s settings) publiclyTrusted(cert *tls.Certificate) bool {
	between := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: s.name, Intermediates: between})
	return err == nil
}

// deviceView is a box on the status page.
type deviceView struct {
	Device  croft.DeviceID `json:"device"`
	Up      bool           `json:"up"`
	Since   time.Time      `json:"since"`             // of its tunnel, or of the tunnel's end
	Address string         `json:"address,omitempty"` // where the tunnel comes from
	Hosts   []string       `json:"hosts"`
	Users   int            `json:"users"`
	In      int64          `json:"in_bytes"` // from users
	Out     int64          `json:"out_bytes"`
}

// serveStatus answers until ctx ends.
func serveStatus(ctx context.Context, l net.Listener, s settings, server *relay.Server) error {
	page := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		devices := []deviceView{}
		for _, d := range server.Devices() {
			view := deviceView{d.Device, d.Up, d.Since, "", slices.Concat([]string{}, d.Hosts), d.Users, d.In, d.Out}
			if d.Address.IsValid() {
				view.Address = d.Address.String()
			}
			devices = append(devices, view)
		}
		w.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(map[string]any{"name": s.name, "domain": s.domain, "devices": devices}) // the asker has gone
	})}
	stop := context.AfterFunc(ctx, func() { page.Close() })
	defer stop()
	if err := page.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status: %w", err)
	}
	return nil
}
