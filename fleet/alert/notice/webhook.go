package notice

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/croft-cloud/croft"
)

// Headers of what a webhook gets.
const (
	HeaderID        = "Croft-Delivery"  // ntf_…: the same id is the same message
	HeaderTime      = "Croft-Timestamp" // seconds since 1970, of this try
	HeaderSignature = "Croft-Signature" // see [Sign]
)

// Sign is the signature of a message: "v1=" and, in hexadecimal, the HMAC-SHA256
// by the receiver's secret over "ID.TIMESTAMP.BODY". Receivers compare it in
// constant time, and refuse timestamps that are off by minutes.
func Sign(secret, id string, timestamp int64, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = fmt.Fprintf(mac, "%s.%d.%s", id, timestamp, body)
	return "v1=" + hex.EncodeToString(mac.Sum(nil))
}

// Poster posts to addresses that staff typed in. They reach the public internet
// and what the operator allowed, and nothing else: which address a name stands
// for is judged when the connection is made, so no trick of names gets past.
type Poster struct {
	allow  []netip.Prefix
	client *http.Client
}

const patience = 10 * time.Second

// NewPoster makes a poster that may also reach the networks in allow, and there
// without TLS.
func NewPoster(allow []netip.Prefix) *Poster {
	h := &Poster{allow: slices.Clone(allow)}
	dialer := &net.Dialer{Timeout: patience, ControlContext: h.control}
	h.client = &http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			DialContext:            dialer.DialContext, // and no proxy, which would resolve names itself
			TLSHandshakeTimeout:    patience,
			MaxResponseHeaderBytes: 16 << 10,
			DisableKeepAlives:      true, // each message is judged anew
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return h
}

// plainKey marks the context of a request without TLS.
type plainKey struct{}

var errPrivate = errors.New("the address is not on the public internet, and not among those that are allowed")

func (h *Poster) control(ctx context.Context, network, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("read address: %w", err)
	}
	ip := at.Addr().Unmap()
	allowed := slices.ContainsFunc(h.allow, func(p netip.Prefix) bool { return p.Contains(ip) })
	switch {
	case allowed:
		return nil
	case ctx.Value(plainKey{}) != nil:
		return errors.New("plain HTTP is for networks that are allowed; use https")
	case !public(ip):
		return errPrivate
	}
	return nil
}

// notPublic is what [netip.Addr] does not say itself: IANA's registries of
// special addresses, and those that lead into IPv4 by way of another.
var notPublic = func() (out []netip.Prefix) {
	for _, p := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
	} {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}()

func public(ip netip.Addr) bool {
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && ip.Zone() == "" &&
		!slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(ip) })
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("receiver: "+format, args...)}
}

// Check refuses addresses that could never do.
func (h *Poster) Check(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil || len(address) > 2000 || u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return usage("want a URL, not %.64q", address)
	case u.Scheme != "https" && (u.Scheme != "http" || len(h.allow) == 0):
		return usage("want a URL that begins with https://")
	case u.User != nil || u.Fragment != "":
		return usage("want a URL without user, password and fragment")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		ctx := context.Background()
		if err := h.control(ctx, "", netip.AddrPortFrom(ip, 443).String(), nil); err != nil {
			return usage("%w", err)
		}
	}
	return nil
}

// Post signs a body and returns nil once the receiver has answered that it has the message.
func (h *Poster) Post(ctx context.Context, address, secret, id string, body []byte) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("read URL: %w", err)
	}
	if u.Scheme != "https" {
		ctx = context.WithValue(ctx, plainKey{}, true)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	now := time.Now().Unix()
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "croft-fleet")
	request.Header.Set(HeaderID, id)
	request.Header.Set(HeaderTime, strconv.FormatInt(now, 10))
	request.Header.Set(HeaderSignature, Sign(secret, id, now, body))
	answer, err := h.client.Do(request)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok { // the URL may hold a secret
			err = inner.Err
		}
		return err
	}
	defer answer.Body.Close()
	if _, err := io.CopyN(io.Discard, answer.Body, 16<<10); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read answer: %w", err)
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("the receiver answered with the status %d", answer.StatusCode)
	}
	return nil
}
