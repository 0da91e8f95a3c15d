package relaycmd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/joinfile"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

func TestWrongCommandLines(t *testing.T) {
	dir := t.TempDir()
	devices, grants := filepath.Join(dir, "devices"), filepath.Join(dir, "grants")
	write(t, devices, "no device\n")
	write(t, grants, "one\n")
	for _, tc := range []struct {
		name, args, want string
		kind             croft.Kind
	}{
		{"no name", "", "needs --name", croft.KindUsage},
		{"a name that is an address", "--name 192.0.2.1", "--name", croft.KindUsage},
		{"a domain in capitals", "--name a.example --domain A.example", "--domain", croft.KindUsage},
		{"ports the wrong way round", "--name a.example --ports 20-10", "no range", croft.KindUsage},
		{"one port", "--name a.example --ports 20", "no range", croft.KindUsage},
		{"ports too large", "--name a.example --ports 60000-70000", "no range", croft.KindUsage},
		{"a certificate without its key", "--name a.example --cert x.pem", "belong together", croft.KindUsage},
		{"a certificate that is not there", "--name a.example --cert x.pem --key y.pem", "x.pem", croft.KindNotFound},
		{"a status page for the world", "--name a.example --status 0.0.0.0:80", "loopback", croft.KindUsage},
		{"a list that is not there", "--name a.example --admit absent.txt", "absent.txt", croft.KindNotFound},
		{"a list with another word", "--name a.example --admit " + devices, "line 1", croft.KindInvalid},
		{"a grant without a host", "--name a.example --allow-host " + grants, "line 1: it has 1 words", croft.KindInvalid},
		{"an argument", "--name a.example here", "takes 0 arguments", croft.KindUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := New()
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			cmd.SetArgs(append(strings.Fields(tc.args), "--listen", "127.0.0.1:0", "--http", "", "--data", filepath.Join(dir, "data")))
			cmd.SetOut(io.Discard)
			cmd.SetErr(io.Discard)
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) || croft.KindOf(err) != tc.kind {
				t.Errorf("error is %v (%v), want one about %q (%v)", err, croft.KindOf(err), tc.want, tc.kind)
			}
		})
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cmd := New()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"--name", "a.example", "--listen", taken.Addr().String(), "--data", filepath.Join(dir, "data")})
	if err := cmd.ExecuteContext(t.Context()); croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), "already in use") {
		t.Errorf("error is %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// running is a relay that was started by its command line.
type running struct {
	tls, http, status string // where it listens
	pin               wire.Pin
	entry             joinfile.Relay
	stop              func()
}

// start runs `croft relay` and reads what it prints.
func start(t *testing.T, args ...string) *running {
	t.Helper()
	return startWith(t, &zone{}, args...)
}

// startWith is start with a DNS that has something in it.
func startWith(t *testing.T, dns resolver, args ...string) *running {
	t.Helper()
	s := newCommand(5*time.Millisecond, dns)
	read, stdout := io.Pipe()
	s.SetArgs(append([]string{"--name", "relay.test", "--domain", "boxes.test", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ports-host", "127.0.0.1", "--status", "127.0.0.1:0"}, args...))
	s.SetOut(stdout)
	s.SetErr(t.Output())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.ExecuteContext(ctx)
		stdout.Close()
	}()
	r := &running{stop: func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the command ended with %v", err)
		}
		done <- nil
	}}
	t.Cleanup(r.stop)
	var snippet strings.Builder
	for lines := bufio.NewScanner(read); r.status == "" && lines.Scan(); {
		switch label, rest, _ := strings.Cut(lines.Text(), " "); label {
		case "TLS":
			r.tls = strings.TrimSpace(rest)
		case "HTTP":
			r.http = strings.TrimSpace(rest)
		case "status":
			r.status = strings.TrimSpace(rest)
		case "pin":
			if _, err := hex.Decode(r.pin[:], []byte(strings.TrimSpace(rest))); err != nil {
				t.Fatal(err)
			}
		case "":
			snippet.WriteString(rest)
		}
	}
	if r.status == "" {
		t.Fatalf("the command ended: %v", <-done)
	}
	text := `{"chain":{"id":"c","rpc":"http://c:1","grpc":"grpc://c:2"},` + snippet.String() + "}"
	network, err := joinfile.Parse([]byte(text))
	if err != nil {
		t.Fatalf("what is printed for %s does not fit: %v\n%s", joinfile.Path, err, text)
	}
	r.entry = network.Relays[0]
	return r
}

// box is a device and its client.
type box struct {
	id     croft.DeviceID
	key    *ecdsa.PrivateKey
	client *relay.Client
}

func newDevice(t *testing.T) *box {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := wire.DeviceOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &box{id: id, key: key}
}

// join lets the box dial the relay; its users are greeted.
func (b *box) join(t *testing.T, r *running, hosts ...string) {
	t.Helper()
	cert, err := wire.SelfSigned(b.key)
	if err != nil {
		t.Fatal(err)
	}
	b.client, err = relay.NewClient(relay.ClientConfig{
		Relays:      []relay.Relay{{Name: r.entry.Name, Address: r.tls, Trust: wire.Trust{Pins: []wire.Pin{r.pin}}}},
		Certificate: func() (tls.Certificate, error) { return cert, nil },
		Accept: func(_ context.Context, _ string, user *wire.Stream) {
			defer user.Close()
			if _, err := http.ReadRequest(bufio.NewReader(user)); err == nil {
				_, _ = io.WriteString(user, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
				_ = user.CloseWrite()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.client.Set(hosts, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// await waits until the box's tunnel is as wanted, and hurries it.
func (b *box) await(t *testing.T, want func(relay.RelayState) bool) relay.RelayState {
	t.Helper()
	for {
		states, changed := b.client.States()
		if want(states[0]) {
			return states[0]
		}
		if states[0].Phase == relay.Waiting {
			b.client.NetworkChanged() // or it would wait longer at each try
		}
		<-changed
	}
}

func up(s relay.RelayState) bool { return s.Phase == relay.Up && s.Settled }
func refused(s relay.RelayState) bool {
	return s.Phase != relay.Up && s.Last != nil && strings.Contains(s.Last.Error(), "does not know the device")
}

// visit asks the relay for a page of a host.
func visit(t *testing.T, r *running, host string) string {
	t.Helper()
	body, err := get(t, "http://"+r.http+"/", host)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

func get(t *testing.T, url, host string) ([]byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func TestABoxIsReachedAndShown(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	r := start(t, "--data", data, "--allow-host", "any")
	if r.entry.Name != "relay.test" || len(r.entry.Pins) != 1 || r.entry.Pins[0] != hex.EncodeToString(r.pin[:]) {
		t.Errorf("the entry is %+v", r.entry)
	}
	if _, port, err := net.SplitHostPort(r.tls); err != nil || r.entry.Address != "relay.test:"+port {
		t.Errorf("the entry's address is %s, the relay listens on %s", r.entry.Address, r.tls)
	}
	b := newDevice(t)
	b.join(t, r, "shop.test")
	b.await(t, up)
	for _, host := range []string{string(b.id) + ".boxes.test", "shop.test"} {
		if got := visit(t, r, host); got != "hello" {
			t.Errorf("%s answers %q", host, got)
		}
	}
	raw, err := get(t, r.status, "")
	if err != nil {
		t.Fatal(err)
	}
	var page struct {
		Name    string
		Devices []deviceView
	}
	if err := json.Unmarshal(raw, &page); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	if page.Name != "relay.test" || len(page.Devices) != 1 {
		t.Fatalf("the status page says %s", raw)
	}
	if d := page.Devices[0]; d.Device != b.id || !d.Up || d.Address == "" || d.In == 0 || d.Out == 0 || len(d.Hosts) != 1 || d.Hosts[0] != "shop.test" {
		t.Errorf("the status page says %s", raw)
	}

	r.stop()
	if again := start(t, "--data", data); again.pin != r.pin {
		t.Error("a relay that was started again has another key")
	}
	if info, err := os.Stat(filepath.Join(data, "relay.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its key lies in a file of mode %v, %v", info.Mode(), err)
	}
}

func TestOnlyListedDevicesAndHosts(t *testing.T) {
	dir := t.TempDir()
	devices, grants := filepath.Join(dir, "devices.txt"), filepath.Join(dir, "hosts.txt")
	known, stranger := newDevice(t), newDevice(t)
	write(t, devices, "# ours\n\n"+string(known.id)+"  # the first\n")
	write(t, grants, string(known.id)+" shop.test\n"+string(stranger.id)+" other.test\n")
	r := start(t, "--data", filepath.Join(dir, "data"), "--admit", devices, "--allow-host", grants)
	known.join(t, r, "shop.test", "other.test")
	stranger.join(t, r)
	stranger.await(t, refused)
	hosts := known.await(t, up).Hosts
	if len(hosts) != 2 || hosts[0].Problem != "" || hosts[1].Problem != wire.ProblemRefused {
		t.Errorf("the box holds %+v, want the first and not the second", hosts)
	}
}

func TestNewRulesCountForTunnelsThatStand(t *testing.T) {
	dir := t.TempDir()
	devices, grants := filepath.Join(dir, "devices.txt"), filepath.Join(dir, "hosts.txt")
	b := newDevice(t)
	write(t, devices, string(b.id)+"\n")
	write(t, grants, string(b.id)+" shop.test\n")
	r := start(t, "--data", filepath.Join(dir, "data"), "--admit", devices, "--allow-host", grants)
	b.join(t, r, "shop.test")
	holds := func(s relay.RelayState) bool { return up(s) && s.Hosts[0].Problem == "" }
	b.await(t, holds)

	write(t, grants, "")
	b.await(t, func(s relay.RelayState) bool { return up(s) && s.Hosts[0].Problem == wire.ProblemRefused })
	write(t, devices, "")
	b.await(t, refused)
	write(t, devices, string(b.id)+"\n")
	b.await(t, up)
}

func TestAFileThatIsBadDoesNotCount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "devices.txt")
	id := newDevice(t).id
	write(t, path, string(id))
	var log bytes.Buffer
	w, err := watch(slog.New(slog.NewTextHandler(&log, nil)), parseDevices, path)
	if err != nil || !w.get()[id] {
		t.Fatalf("it says %v, %v", w.get(), err)
	}
	if w.look() {
		t.Error("an unchanged file is new")
	}
	for name, spoil := range map[string]func(){
		"damaged": func() { write(t, path, "damaged") },
		"gone": func() {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		log.Reset()
		spoil()
		for range 2 {
			if w.look() || !w.get()[id] {
				t.Errorf("%s: it says %v", name, w.get())
			}
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%s: reported %d times", name, n)
		}
	}
	write(t, path, "")
	if !w.look() || len(w.get()) > 0 {
		t.Errorf("it says %v, want nothing", w.get())
	}
}

func TestARenewedCertificateIsShown(t *testing.T) {
	dir := t.TempDir()
	one, two, both := filepath.Join(dir, "one.pem"), filepath.Join(dir, "two.pem"), filepath.Join(dir, "both.pem")
	for _, path := range []string{one, two} {
		if err := ensureKey(path); err != nil {
			t.Fatal(err)
		}
	}
	use := func(path string) {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, both, string(raw))
	}
	use(one)
	w, err := watch(slog.New(slog.DiscardHandler), parsePair, both, both)
	if err != nil {
		t.Fatal(err)
	}
	before := w.get().Certificate[0]
	use(two)
	if !w.look() || bytes.Equal(before, w.get().Certificate[0]) {
		t.Error("the old certificate is still shown")
	}
}
