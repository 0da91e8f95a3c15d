package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device/deviceport"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/internal/supervise"
	"github.com/croft-cloud/croft/provisioning/enroll"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// downTo publishes to boxes.
type downTo struct{ f *Fleet }

func (d downTo) Publish(ctx context.Context, id croft.DeviceID, p fleetapi.Payload) error {
	return d.f.ingest.Publish(ctx, id, p)
}

// Roots are the certificates that boxes pin.
func (f *Fleet) Roots() []*x509.Certificate {
	return []*x509.Certificate{f.authority.authority().Root()}
}

// RootPEM is the same as boxes are told it, in network.json.
func (f *Fleet) RootPEM() []byte { return f.authority.authority().RootCertificate() }

// openPorts makes what answers at the ports, and the list of what runs.
func (f *Fleet) openPorts(ctx context.Context) (err error) {
	port, err := deviceport.New(deviceport.Config{
		Store: f.devices, Gate: f.gate, Authority: f.authority.authority,
		Policy:  enroll.Policy{FirstUse: f.cfg.FirstUse, Factory: f.cfg.Factory},
		Brokers: func() []string { return f.cfg.Brokers },
		Log:     f.log,
	})
	if err != nil {
		return err
	}
	boxes := http.NewServeMux()
	boxes.Handle("/", port)
	boxes.Handle("/v1/bundles/", f.bundles.DeviceHandler(func(r *http.Request) (croft.DeviceID, error) { return f.judge(r.TLS) }))
	f.device = boxes

	workers := []supervise.Worker{
		{Name: "people", Run: f.auth.Run},
		{Name: "boxes", Run: f.devices.Run},
		{Name: "jobs", Run: f.jobs.Run},
		{Name: "alerts", Run: f.alerts.Run},
		{Name: "alerts_of_boxes", Run: func(ctx context.Context) error { return tellAlerts(ctx, f.db, f.alerts, f.devices) }},
		{Name: "messages", Run: f.sink.messages.run},
		{Name: "statuses", Run: f.sink.statuses.run},
		{Name: "greetings", Run: f.sink.greeted.run},
		{Name: "bundles", Run: f.bundles.Run},
		{Name: "live_pages", Run: f.frame.Run},
		{Name: "wiper", Run: f.wiper.run},
		{Name: "authority", Run: f.authority.follow},
		{Name: "issuing_key", Run: f.authority.renew},
		{Name: "audit", Run: func(ctx context.Context) error {
			return f.watchAudit(ctx, filepath.Join(f.cfg.Dir, "audit-heads.json"))
		}},
		{Name: "shut_out", Run: f.shutOut},
		{Name: "refusals", Run: f.tellRefused},
	}
	if f.cfg.BrokerFiles != "" {
		files := &brokerFiles{dir: f.cfg.BrokerFiles, hosts: f.cfg.Hosts, authority: f.authority, devices: f.devices, db: f.db}
		if err := files.write(ctx, time.Now()); err != nil {
			return fmt.Errorf("write files for the broker: %w", err)
		}
		workers = append(workers, supervise.Worker{Name: "broker_files", Run: files.run})
	}
	f.workers, err = supervise.New(supervise.Config{Log: f.log, Workers: workers})
	return err
}

// Run serves until ctx ends, or until a port, the broker or the store of readings
// fails. It is called once, and closes what New opened.
func (f *Fleet) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, f.close()) }()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.workers.Run(ctx) })
	group.Go(func() error { return watchClock(ctx, f.db) })
	group.Go(func() error { return f.ingest.Run(ctx) })
	group.Go(func() error { return f.series.Run(ctx) })
	group.Go(func() error { return f.serve(ctx, f.cfg.Web, f.cfg.WebTLS, f.web) })
	all := []enroll.Standing{enroll.Anonymous, enroll.Foreign, enroll.Candidate, enroll.Device, enroll.Expired, enroll.Lapsed, enroll.Revoked}
	group.Go(func() error { return f.serve(ctx, f.cfg.Device, f.gate.TLS(f.authority.certificate, all...), f.device) })
	return group.Wait()
}

// serve answers at one port until ctx ends, and then waits a little for what is under
// way. Streams end with ctx.
func (f *Fleet) serve(ctx context.Context, l net.Listener, t *tls.Config, h http.Handler) error {
	if t != nil {
		l = tls.NewListener(l, t)
	}
	server := &http.Server{
		Handler:           inTime(h),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	server.ErrorLog = slog.NewLogLogger(f.log.Handler(), slog.LevelDebug) // strangers' handshakes
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if err := server.Shutdown(last); err != nil {
		server.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// sendWithin is how long a client has to send the body of a request, unless its handler
// says otherwise. Who is slower holds a connection for nothing.
const sendWithin = 5 * time.Minute

func inTime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != http.NoBody {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(sendWithin)) // all servers have deadlines
		}
		next.ServeHTTP(w, r)
	})
}

// clientAddress is where a request to Web comes from: the connection, or what our
// proxies say, of whose list the last address that is not theirs counts.
func (f *Fleet) clientAddress(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	addr := at.Addr().Unmap()
	chain := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(chain) - 1; i >= 0 && f.isProxy(addr); i-- {
		before, err := netip.ParseAddr(strings.TrimSpace(chain[i]))
		if err != nil {
			break
		}
		addr = before.Unmap()
	}
	return addr
}

func (f *Fleet) isProxy(addr netip.Addr) bool {
	for _, network := range f.cfg.Proxies {
		if network.Contains(addr) {
			return true
		}
	}
	return false
}

// Health is how this replica is doing.
type Health struct {
	Ready   bool              `json:"ready"`             // whether to send people here
	Failing map[string]string `json:"failing,omitempty"` // parts that do not run now, and why
}

// Health asks the database and every part.
func (f *Fleet) Health(ctx context.Context) Health {
	h := Health{Ready: true, Failing: map[string]string{}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := f.db.Read(ctx, func(tx *db.Tx) error { return tx.Row("SELECT 1").Scan(new(int64)) }); err != nil {
		h.Ready, h.Failing["database"] = false, err.Error()
	}
	for _, w := range f.workers.States() {
		if !w.Up() {
			h.Failing[w.Name] = string(w.Phase)
			if w.LastError != nil {
				h.Failing[w.Name] = w.LastError.Error()
			}
		}
	}
	if broken := f.series.Stats().Broken; broken != "" {
		h.Failing["readings"] = broken
	}
	return h
}

// serveHealth tells a load balancer whether to send people here. It tells strangers
// no reasons.
func (f *Fleet) serveHealth(w http.ResponseWriter, r *http.Request) {
	h := f.Health(r.Context())
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !h.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	for part := range h.Failing {
		h.Failing[part] = "failing"
	}
	_ = json.NewEncoder(w).Encode(h) // whoever asked has gone
}

// JoinText is what boxes must be told of the fleet: the part "fleet" of network.json.
func (f *Fleet) JoinText() []byte {
	text, err := json.MarshalIndent(map[string]joinfile.Fleet{"fleet": {
		URL: f.DeviceURL(), Roots: joinfile.Roots{string(f.RootPEM())}, Console: f.cfg.Origin,
	}}, "", "  ")
	if err != nil {
		panic(err) // it is made of texts
	}
	return append(text, '\n')
}
