package tenant

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// leaseLooks is how many looks at a provider go by between looks at the chain
// for a lost lease.
const leaseLooks = 5

// awaitAnswer waits until all services run and what answers HTTP answers.
func (f *flow) awaitAnswer(ctx context.Context) error {
	end := time.Now().Add(f.cfg.AnswerTimeout)
	statuses := make([]gatewayclient.LeaseStatus, len(f.record.Leases))
	shown := ""
	own := ownHosts(f.record.Manifest)
	for look := 0; ; look++ {
		waiting := f.lookAtLeases(ctx, statuses)
		if waiting == nil {
			var uris []string
			for _, s := range statuses {
				uris = append(uris, s.URIs()...)
			}
			if waiting = f.probe(ctx, uris, own); waiting == nil {
				return f.move(Answering, "the workload answers", func(r *Record) { r.URIs = urls(uris) })
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if text := summary(statuses) + waiting.Error(); text != shown {
			shown = text
			f.tell(Progress{Step: "waiting for the workload: " + summary(statuses), Leases: slices.Clone(statuses), Retry: waiting})
		}
		if look%leaseLooks == leaseLooks-1 {
			for _, l := range f.record.Leases {
				if gone, err := f.leaseGone(ctx, l); gone || err != nil {
					return err
				}
			}
		}
		if !gatewayclient.Temporary(waiting) && !errors.Is(waiting, errNotReady) {
			return waiting
		}
		if !time.Now().Before(end) {
			return &croft.Error{
				Kind:   croft.KindOther,
				Err:    fmt.Errorf("deployment %s: %w: %w", f.record.ID(), ErrNotAnswering, waiting),
				Remedy: "look at its logs and events; deploy it again to wait longer, or close it",
			}
		}
		if err := pause(ctx, f.t.cfg.Poll); err != nil {
			return err
		}
	}
}

// errNotReady is why to wait on.
var errNotReady = errors.New("not ready")

// lookAtLeases asks every provider; its error says what is not ready yet.
func (f *flow) lookAtLeases(ctx context.Context, statuses []gatewayclient.LeaseStatus) error {
	var waiting error
	for i, id := range f.record.LeaseIDs() {
		err := func() error {
			g, err := f.t.Gateway(ctx, id.Provider)
			if err != nil {
				return err
			}
			defer g.Close()
			statuses[i], err = g.LeaseStatus(ctx, id)
			return err
		}()
		switch {
		case err != nil && !gatewayclient.Temporary(err):
			return err
		case err != nil:
			waiting = err
		case !statuses[i].Ready():
			waiting = fmt.Errorf("%w: %s", errNotReady, statuses[i].Summary())
			if len(statuses[i].Errors) > 0 {
				waiting = fmt.Errorf("%w: %q", waiting, statuses[i].Errors)
			}
		}
	}
	return waiting
}

func summary(statuses []gatewayclient.LeaseStatus) string {
	var parts []string
	for _, s := range statuses {
		if text := s.Summary(); text != "" {
			parts = append(parts, text)
		}
	}
	return strings.Join(parts, ", ")
}

// ownHosts are the host names that the tenant brings: where they lead is its own
// affair, and may be settled later.
func ownHosts(manifest []byte) map[string]bool {
	hosts := map[string]bool{}
	m, err := sdl.ParseManifest(manifest)
	if err != nil {
		return hosts
	}
	for _, g := range m {
		for _, s := range g.Services {
			for _, e := range s.Expose {
				for _, h := range e.Hosts {
					hosts[h] = true
				}
			}
		}
	}
	return hosts
}

// maxProbes bounds to how many names of a provider's choice a request is sent.
const maxProbes = 32

// probe asks each URI for its front page. Any answer below 500 will do; a name
// that the tenant brought and that leads nowhere yet will, too.
func (f *flow) probe(ctx context.Context, uris []string, own map[string]bool) error {
	for _, uri := range uris[:min(len(uris), maxProbes)] {
		target, err := probeURL(uri)
		if err != nil {
			return f.t.garbledURI(uri, err)
		}
		err = f.get(ctx, target)
		var dns *net.DNSError
		if errors.As(err, &dns) && own[target.Hostname()] {
			f.say("point " + target.Hostname() + " to the provider to reach the workload under this name")
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errNotReady, err)
		}
	}
	return nil
}

func (t *Tenant) garbledURI(uri string, err error) error {
	return &croft.Error{
		Kind: croft.KindInvalid, Err: fmt.Errorf("%w: URI %q: %w", gatewayclient.ErrProtocol, uri, err),
		Remedy: "report it to the provider, or choose another",
	}
}

func (f *flow) get(ctx context.Context, target *url.URL) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return err
	}
	resp, err := f.t.cfg.HTTP.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("%s answers %s", target, http.StatusText(resp.StatusCode))
	}
	return nil
}

// probeURL reads what a provider calls a URI: a host, perhaps with a port.
func probeURL(uri string) (*url.URL, error) {
	if !strings.Contains(uri, "://") {
		uri = "http://" + uri
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return nil, errors.New("want a host name")
	}
	u.Path = "/"
	return u, nil
}

// urls are the URIs as a browser wants them.
func urls(uris []string) []string {
	var out []string
	for _, uri := range uris {
		if u, err := probeURL(uri); err == nil {
			out = append(out, u.String())
		}
	}
	return out
}
