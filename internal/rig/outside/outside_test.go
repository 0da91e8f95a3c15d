package outside

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/joinfile"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

// TestMain is also the program that TestAChildDiesWithTheProgram kills.
func TestMain(m *testing.M) {
	if os.Getenv("OUTSIDE_HELPER") != "" {
		cmd := exec.Command("sleep", "1000")
		cmd.Stdout = os.Stdout // the pipe, which ends when its last holder does
		if _, err := startChild(cmd); err != nil {
			panic(err)
		}
		fmt.Println("started")
		select {}
	}
	os.Exit(m.Run())
}

func TestAChildDiesWithTheProgram(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	program := exec.Command(os.Args[0])
	program.Env, program.Stdout = append(os.Environ(), "OUTSIDE_HELPER=1"), write
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	lines := bufio.NewReader(read)
	if line, err := lines.ReadString('\n'); err != nil || line != "started\n" {
		t.Fatalf("it said %q, %v", line, err)
	}
	if err := program.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = program.Wait() // it was killed
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v; want the end, when the child is gone too", rest, err)
	}
}

func TestStoppingAndKillingAChild(t *testing.T) {
	for name, end := range map[string]func(*child) error{
		"asked":  func(c *child) error { return c.stop(stopGrace) },
		"killed": func(c *child) error { c.kill(); return c.err },
	} {
		t.Run(name, func(t *testing.T) {
			c, err := startChild(exec.Command("sleep", "1000"))
			if err != nil {
				t.Fatal(err)
			}
			if err := end(c); err == nil {
				t.Error("a sleep that was cut short counts as done")
			}
			select {
			case <-c.done:
			default:
				t.Error("it still runs")
			}
		})
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	deaf := exec.Command("sh", "-c", "trap '' TERM; echo deaf; exec sleep 1000")
	deaf.Stdout = write
	c, err := startChild(deaf)
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(read).ReadString('\n'); err != nil || line != "deaf\n" {
		t.Fatalf("it said %q, %v", line, err)
	}
	if err := c.stop(1); err == nil || !strings.Contains(err.Error(), "did not end within") {
		t.Errorf("error is %v", err)
	}
}

func TestAuditsGoIntoTheGenesis(t *testing.T) {
	path := filepath.Join(t.TempDir(), "genesis.json")
	if err := os.WriteFile(path, []byte(`{"chain_id":"c","app_state":{"audit":{"providers":[]},"bank":{"supply":["12"]}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeAudits(path, []Audit{{Provider: "akash1box", Auditor: "akash1word", Attributes: map[string]string{"region": "eu", "organization": "o"}}}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"app_state":{"audit":{"providers":[{"owner":"akash1box","auditor":"akash1word","attributes":[{"key":"organization","value":"o"},{"key":"region","value":"eu"}]}]},"bank":{"supply":["12"]}},"chain_id":"c"}`
	if string(raw) != want {
		t.Errorf("genesis is\n%s\nwant\n%s", raw, want)
	}
}

func TestTheNetworkFileSaysWhereTheBoxFindsThings(t *testing.T) {
	w := newWorld(t, Config{Chain: ChainConfig{RPC: 26657}})
	for view, host := range map[View]string{FromHost: "127.0.0.1", FromGuest: "10.0.2.2"} {
		raw, err := w.Network(view).Format()
		if err != nil {
			t.Fatal(err)
		}
		n, err := joinfile.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		for what, address := range map[string]string{
			"http://" + host + ":26657":                                             n.Chain.RPC,
			strings.Replace(w.Chain.GRPC(), "127.0.0.1", host, 1):                   n.Chain.GRPC,
			strings.Replace(w.Chain.REST(), "127.0.0.1", host, 1) + "/faucet":       n.Chain.Faucet,
			strings.Replace(w.Relay.TLS(), "127.0.0.1", host, 1):                    n.Relays[0].Address,
			"http://" + strings.Replace(w.Registry.Address(), "127.0.0.1", host, 1): n.Mirrors["docker.io"][0],
			"relay." + w.Relay.Domain():                                             n.Relays[0].Name,
			organization:                                                            n.Attributes["organization"],
		} {
			if what != address {
				t.Errorf("%s: it says %s, want %s", view, address, what)
			}
		}
	}
}

func newWorld(t *testing.T, cfg Config) *World {
	t.Helper()
	cfg.Dir = t.TempDir()
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// fetch gets a path of the registry; status 0 means that nobody answered.
func fetch(t *testing.T, r *Registry, path string, header http.Header) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Address()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func TestTheRegistryServesAnImage(t *testing.T) {
	r := newWorld(t, Config{}).Registry
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("the program"), 0o700); err != nil {
		t.Fatal(err)
	}
	digest, err := r.Put(Image{
		Name: DeployImage, Program: program, Args: []string{"serve"}, Env: []string{"A=b"}, User: "7:8", Ports: []string{"3000/tcp"}, Arch: "riscv64",
	})
	if err != nil {
		t.Fatal(err)
	}
	// A mirror is asked so by containerd.
	status, raw := fetch(t, r, "/v2/ovrclk/lunie-light/manifests/latest?ns=docker.io", nil)
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(raw, &manifest); err != nil || status != http.StatusOK || len(manifest.Layers) != 1 {
		t.Fatalf("manifest: %d %s %v", status, raw, err)
	}
	if status, again := fetch(t, r, "/v2/ovrclk/lunie-light/manifests/"+digest, nil); status != http.StatusOK || string(again) != string(raw) {
		t.Errorf("by digest: %d %s", status, again)
	}
	_, raw = fetch(t, r, "/v2/ovrclk/lunie-light/blobs/"+manifest.Config.Digest, nil)
	var config struct {
		Architecture string
		Config       struct {
			Entrypoint, Cmd, Env []string
			User                 string
			ExposedPorts         map[string]struct{}
		}
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	c := config.Config
	if _, ok := c.ExposedPorts["3000/tcp"]; !ok || config.Architecture != "riscv64" || c.User != "7:8" ||
		!slices.Equal(c.Entrypoint, []string{"/bin/app"}) || !slices.Equal(c.Cmd, []string{"serve"}) || !slices.Equal(c.Env, []string{"PATH=/bin", "A=b"}) {
		t.Errorf("config is %+v", config)
	}
	_, raw = fetch(t, r, "/v2/ovrclk/lunie-light/blobs/"+manifest.Layers[0].Digest, nil)
	if got := unpack(t, raw)["bin/app"]; got != "the program" {
		t.Errorf("the layer's program is %q", got)
	}
	if n := r.Requests(DeployImage); n != 4 || r.Requests("") != 4 || r.Requests("other") != 0 {
		t.Errorf("%d requests of %d counted, want 4", n, r.Requests(""))
	}

	r.Stop()
	if status, _ := fetch(t, r, "/v2/", nil); status != 0 {
		t.Errorf("a stopped registry answers %d", status)
	}
	if err := errors.Join(r.Start(), r.Start()); err != nil {
		t.Fatal(err)
	}
	if status, _ := fetch(t, r, "/v2/ovrclk/lunie-light/manifests/latest", nil); status != http.StatusOK {
		t.Errorf("after a restart the image is gone: %d", status)
	}
}

func TestADownloadCanBeHeld(t *testing.T) {
	r := newWorld(t, Config{}).Registry
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("the program"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Put(Image{Name: DeployImage, Program: program}); err != nil {
		t.Fatal(err)
	}
	letGo := r.Hold(DeployImage)
	defer letGo()
	_, raw := fetch(t, r, "/v2/ovrclk/lunie-light/manifests/latest", nil) // is not held
	var manifest struct{ Config struct{ Digest string } }
	if err := json.Unmarshal(raw, &manifest); err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + r.Address() + "/v2/ovrclk/lunie-light/blobs/" + manifest.Config.Digest) //nolint:bodyclose // it is closed below
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 16)
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		t.Fatal(err)
	}
	rest := make(chan []byte)
	go func() {
		more, _ := io.ReadAll(resp.Body)
		rest <- more
	}()
	select {
	case more := <-rest:
		t.Fatalf("it went on: %q", more)
	case <-time.After(50 * time.Millisecond):
	}
	letGo()
	if all := append(first, <-rest...); !json.Valid(all) {
		t.Errorf("got %q", all)
	}
}

func unpack(t *testing.T, layer []byte) map[string]string {
	t.Helper()
	plain, err := gzip.NewReader(strings.NewReader(string(layer)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(content)
	}
}

func TestAPrivateImageWantsThePassword(t *testing.T) {
	r := newWorld(t, Config{Registry: RegistryConfig{User: "u", Password: "p"}}).Registry
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, image := range []Image{{Name: "own/secret:1", Program: program, Private: true}, {Name: "own/open:1", Program: program}} {
		if _, err := r.Put(image); err != nil {
			t.Fatal(err)
		}
	}
	with := func(user, password string) http.Header {
		req := http.Request{Header: http.Header{}}
		req.SetBasicAuth(user, password)
		return req.Header
	}
	for _, tc := range []struct {
		name, path string
		header     http.Header
		want       int
	}{
		{"an open image is for all", "/v2/own/open/manifests/1", nil, http.StatusOK},
		{"a private one is not", "/v2/own/secret/manifests/1", nil, http.StatusUnauthorized},
		{"a wrong password does not help", "/v2/own/secret/manifests/1", with("u", "q"), http.StatusUnauthorized},
		{"the right one does", "/v2/own/secret/manifests/1", with("u", "p"), http.StatusOK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if status, body := fetch(t, r, tc.path, tc.header); status != tc.want {
				t.Errorf("answer is %d %s, want %d", status, body, tc.want)
			}
		})
	}
	if _, err := r.Put(Image{Name: "NOT A NAME", Program: program}); err == nil {
		t.Error("an image without a good name was taken")
	}
}

// box is a box's end of the relay: what comes in by TLS goes to one address, all
// else to another.
type box struct {
	id     croft.DeviceID
	client *relay.Client
}

func newBox(t *testing.T, w *World, gateway, site string) *box {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := wire.SelfSigned(key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := wire.DeviceOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	entry := w.Network(FromHost).Relays[0]
	var pin wire.Pin
	if _, err := hex.Decode(pin[:], []byte(entry.Pins[0])); err != nil {
		t.Fatal(err)
	}
	client, err := relay.NewClient(relay.ClientConfig{
		Relays:      []relay.Relay{{Name: entry.Name, Address: entry.Address, Trust: wire.Trust{Pins: []wire.Pin{pin}}}},
		Certificate: func() (tls.Certificate, error) { return cert, nil },
		Accept: func(_ context.Context, _ string, user *wire.Stream) {
			to := site
			if user.Header().Kind == wire.KindSNI {
				to = gateway
			}
			splice(user, to)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &box{id: id, client: client}
}

func splice(user *wire.Stream, to string) {
	defer user.Close()
	inner, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer inner.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(inner, user)
		_ = inner.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(user, inner)
	_ = user.CloseWrite()
	wg.Wait()
}

// await waits until the box's tunnel is as wanted.
func (b *box) await(t *testing.T, want func(relay.RelayState) bool) relay.RelayState {
	t.Helper()
	for {
		states, changed := b.client.States()
		if want(states[0]) {
			return states[0]
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatalf("the tunnel is %+v", states[0])
		}
	}
}

func up(s relay.RelayState) bool { return s.Phase == relay.Up && s.Settled }

// greeter answers every connection with a line.
func greeter(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprintf(w, "hello at %s", r.Host) })}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close(); <-done })
	return listener.Addr().String()
}

func TestTheRelayLeadsToABox(t *testing.T) {
	w := newWorld(t, Config{})
	b := newBox(t, w, "127.0.0.1:1", greeter(t))
	if err := b.client.Set([]string{"shop.example"}, []wire.Port{{Key: "web", Proto: wire.TCP}}); err != nil {
		t.Fatal(err)
	}
	state := b.await(t, up)
	if len(state.Ports) != 1 || state.Ports[0].Problem != "" || state.Hosts[0].Problem != "" {
		t.Fatalf("the tunnel holds %+v and %+v", state.Hosts, state.Ports)
	}
	visitor := &Tenant{visitor: w.Relay.Client()}
	name := string(b.id) + "." + w.Relay.Domain()
	for _, host := range []string{name, "web." + name, "shop.example", fmt.Sprintf("%s:%d", name, state.Ports[0].External)} {
		if got, err := visitor.Get(t.Context(), "http://"+host+"/"); err != nil || got != "hello at "+host {
			t.Errorf("%s: %q, %v", host, got, err)
		}
	}
	if devices := w.Relay.Devices(); len(devices) != 1 || devices[0].Device != b.id || !devices[0].Up {
		t.Errorf("devices are %+v", devices)
	}

	since := state.Since
	if err := w.Relay.Restart(); err != nil {
		t.Fatal(err)
	}
	again := b.await(t, func(s relay.RelayState) bool { return up(s) && s.Since.After(since) })
	if again.Ports[0].External != state.Ports[0].External {
		t.Errorf("after a restart the port is %d, it was %d", again.Ports[0].External, state.Ports[0].External)
	}
	if _, err := visitor.Get(t.Context(), "http://"+name+"/"); err != nil {
		t.Errorf("after a restart: %v", err)
	}

	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{w.Relay.TLS(), w.Relay.HTTP(), w.Registry.Address()} {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			t.Errorf("after Close %s still answers", address)
		}
	}
	if w.Relay.Devices() != nil {
		t.Error("a stopped relay has devices")
	}
}

func TestAChainWithoutItsProgramSaysSo(t *testing.T) {
	w := newWorld(t, Config{Chaind: filepath.Join(t.TempDir(), "absent")})
	if err := w.Chain.Make(t.Context()); err == nil || !strings.Contains(err.Error(), "absent init") {
		t.Errorf("error is %v", err)
	}
	if err := w.Chain.Make(t.Context()); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second chain in one folder: %v", err)
	}
	if err := w.Chain.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "not made") {
		t.Errorf("a chain that is not made starts: %v", err)
	}
}
