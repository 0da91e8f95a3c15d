package session

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/spf13/cobra"
)

// inNetwork are options whose network has a relay on this machine at an address.
func inNetwork(t *testing.T, relayHTTP string) *Options {
	t.Helper()
	cmd, o := TopCommand("test", "", "", "table")
	cmd.AddCommand(&cobra.Command{Use: "do", RunE: func(*cobra.Command, []string) error { return o.UseNetwork("home", "", relayHTTP) }})
	cmd.SetArgs([]string{"do", "--home", t.TempDir(), "--node", "http://127.0.0.1:26657"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestLink(t *testing.T) {
	o := inNetwork(t, "127.0.0.1:8080")
	for _, tc := range []struct{ name, uri, want string }{
		{"a host on this machine has the relay's port", "web.box.croft.localhost", "http://web.box.croft.localhost:8080"},
		{"so has a URL", "http://web.box.croft.localhost/", "http://web.box.croft.localhost:8080/"},
		{"another port is its own", "http://web.box.croft.localhost:81/", "http://web.box.croft.localhost:81/"},
		{"TLS has a port of its own", "https://web.box.croft.localhost/", "https://web.box.croft.localhost/"},
		{"other machines have theirs", "web.box.example", "http://web.box.example"},
		{"nonsense stays what it is", "http://a b", "http://a b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := o.Link(tc.uri); got != tc.want {
				t.Errorf("Link(%q) = %q, want %q", tc.uri, got, tc.want)
			}
		})
	}
	if got, want := inNetwork(t, "").Link("web.box.croft.localhost"), "http://web.box.croft.localhost"; got != want {
		t.Errorf("without a relay here: %q, want %q", got, want)
	}
}

func TestNamesBelowLocalhostAreThisMachine(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) }))
	defer server.Close()
	o := inNetwork(t, server.Listener.Addr().String())
	visitor, err := o.Visitor()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := visitor.Get("http://web.box.croft.localhost/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "web.box.croft.localhost" {
		t.Errorf("answer is %q, %v", body, err)
	}
	dial, err := o.Dialer()
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dial(t.Context(), "tcp", "gateway.box.croft.localhost:"+port)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
