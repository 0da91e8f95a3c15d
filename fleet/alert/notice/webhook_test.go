package notice_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/fleet/alert/notice"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func TestPost(t *testing.T) {
	status, requests := http.StatusNoContent, 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		body, err := io.ReadAll(r.Body)
		at, stampErr := strconv.ParseInt(r.Header.Get(notice.HeaderTime), 10, 64)
		if err = errors.Join(err, stampErr); err != nil {
			t.Error(err)
		}
		if want := notice.Sign("secret", "ntf_1", at, body); r.Header.Get(notice.HeaderSignature) != want || r.Header.Get(notice.HeaderID) != "ntf_1" || string(body) != "{}" {
			t.Errorf("got %q with %v", body, r.Header)
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	}))
	defer server.Close()
	poster := notice.NewPoster(loopback)
	if err := poster.Post(t.Context(), server.URL, "secret", "ntf_1", []byte("{}")); err != nil || requests != 1 {
		t.Errorf("%v after %d requests", err, requests)
	}
	for _, status = range []int{302, 307, 404, 500} {
		requests = 0
		if err := poster.Post(t.Context(), server.URL, "secret", "ntf_1", []byte("{}")); err == nil || requests != 1 {
			t.Errorf("status %d: error %v after %d requests", status, err, requests)
		}
	}
	requests = 0
	for _, url := range []string{server.URL, strings.Replace(server.URL, "127.0.0.1", "localhost", 1), strings.Replace(server.URL, "http:", "https:", 1)} {
		if err := notice.NewPoster(nil).Post(t.Context(), url, "secret", "ntf_1", nil); err == nil {
			t.Errorf("%s was reached though it is private", url)
		}
	}
	if requests != 0 {
		t.Errorf("%d requests reached a private address", requests)
	}
}

func TestAddresses(t *testing.T) {
	for address, ok := range map[string]bool{
		"https://example.org/hook?key=1": true, "https://1.1.1.1/": true, "https://[2606:4700::1111]/": true, "https://10.0.0.1/": false, "https://[::1]/": false,
		"https://[::ffff:127.0.0.1]/": false, "https://169.254.169.254/latest": false, "https://[fe80::1%25eth0]/": false, "https://[64:ff9b::a00:1]/": false,
		"https://100.64.0.1/": false, "https://[fd00::1]/": false, "https://0.0.0.0/": false, "http://example.org/": false, "ftp://example.org/": false,
		"https://a:b@example.org/": false, "https://example.org/#x": false, "https://": false, "mailto:a@example.org": false, "": false,
	} {
		if err := notice.NewPoster(nil).Check(address); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}
