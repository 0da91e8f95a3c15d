package session

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// Dialer reaches the gateways and workloads of the network that is meant. Names
// below localhost are this machine, as browsers and curl take them too; a
// resolver need not know them.
func (o *Options) Dialer() (gatewayclient.Dialer, error) {
	_, n, err := o.Target()
	return n.dial, err
}

// Visitor asks workloads of the network that is meant whether they answer. It
// follows no redirects.
func (o *Options) Visitor() (*http.Client, error) {
	_, n, err := o.Target()
	return &http.Client{
		Timeout:       10 * time.Second,
		Transport:     &http.Transport{DialContext: n.dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, err
}

// Link is where a person can open what a gateway calls a URI of a workload: a
// host name or a URL.
func (o *Options) Link(uri string) string {
	if !strings.Contains(uri, "://") {
		uri = "http://" + uri
	}
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "http" || u.Port() != "" || !here(u.Hostname()) {
		return uri
	}
	_, n, err := o.Target()
	if err != nil {
		return uri
	}
	if _, port, err := net.SplitHostPort(n.RelayHTTP); err == nil {
		u.Host = net.JoinHostPort(u.Host, port)
	}
	return u.String()
}

// here reports whether a host name is this machine's.
func here(host string) bool { return host == "localhost" || strings.HasSuffix(host, ".localhost") }

func (n Network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err == nil && here(host) {
		address = net.JoinHostPort("localhost", port)
		if port == "80" {
			address = cmp.Or(n.RelayHTTP, address)
		}
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	return d.DialContext(ctx, network, address)
}
