package simcmd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/deviceport"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/ingest"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func TestWrongCommandLines(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text.pem")
	check(t, os.WriteFile(text, []byte("no certificate"), 0o600))
	for _, tc := range []struct {
		name, args, want string
		kind             croft.Kind
	}{
		{"no fleet", "--root x.pem", "needs --fleet", croft.KindUsage},
		{"no root", "--fleet https://a.example", "needs --root", croft.KindUsage},
		{"a fleet without TLS", "--fleet http://a.example --root x.pem", "no address of a fleet", croft.KindUsage},
		{"no boxes", "--fleet https://a.example --root x.pem --boxes 0", "0 boxes", croft.KindUsage},
		{"fewer than no boxes in full", "--fleet https://a.example --root x.pem --full -1", "-1 of them", croft.KindUsage},
		{"too often", "--fleet https://a.example --root x.pem --interval 1ms", "too short", croft.KindUsage},
		{"a root that is not there", "--fleet https://a.example --root " + filepath.Join(dir, "absent.pem"), "absent.pem", croft.KindNotFound},
		{"a root that is none", "--fleet https://a.example --root " + text, "text.pem", croft.KindInvalid},
		{"an argument", "--fleet https://a.example --root x.pem here", "takes 0 arguments", croft.KindUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := Command()
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			cmd.SetArgs(strings.Fields(tc.args))
			cmd.SetOut(io.Discard)
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) || croft.KindOf(err) != tc.kind {
				t.Errorf("error is %v (%v), want one about %q (%v)", err, croft.KindOf(err), tc.want, tc.kind)
			}
		})
	}
}

// fleet is a small one, on the loopback.
type fleet struct {
	devices *device.Store
	url     string
	root    []byte
}

func (*fleet) Publish(context.Context, croft.DeviceID, fleetapi.Payload) error { return nil }
func (*fleet) Record(context.Context, device.Entry) error                      { return nil }

func (f *fleet) store(ctx context.Context, id croft.DeviceID, p fleetapi.Payload) error {
	strangers, err := f.devices.Receive(ctx, []device.Message{{Device: id, At: time.Now(), Payload: p}})
	if strangers > 0 {
		return errors.New("a stranger")
	}
	return err
}

func (f *fleet) Hello(ctx context.Context, id croft.DeviceID, m *fleetapi.Hello) error {
	return f.store(ctx, id, m)
}

func (f *fleet) State(ctx context.Context, id croft.DeviceID, m *fleetapi.State) error {
	return f.store(ctx, id, m)
}

func (f *fleet) Event(ctx context.Context, id croft.DeviceID, m *fleetapi.Event) error {
	return f.store(ctx, id, m)
}

func (f *fleet) LogLines(ctx context.Context, id croft.DeviceID, m *fleetapi.LogLines) error {
	return f.store(ctx, id, m)
}
func (*fleet) Batch(context.Context, croft.DeviceID, *fleetapi.Batch) error         { return nil }
func (*fleet) JobStatus(context.Context, croft.DeviceID, *fleetapi.JobStatus) error { return nil }

func newFleet(t *testing.T) *fleet {
	t.Helper()
	const host = "127.0.0.1"
	authority := must(enroll.NewAuthority("example", time.Now()))(t)
	revoked := &enroll.Revocations{}
	gate := must(enroll.NewGate(enroll.GateConfig{Roots: []*x509.Certificate{authority.Root()}, Revoked: revoked}))(t)
	f := &fleet{root: authority.RootCertificate()}
	f.devices = must(device.New(t.Context(), device.Config{
		DB: dbtest.Open(t, dbtest.URL(t, dbtest.SQLite)), ClaimKey: must(enroll.NewClaimKey(make([]byte, 32)))(t), Revoked: revoked, Publisher: f, Audit: f,
	}))(t)
	mqtt, api := must(net.Listen("tcp", host+":0"))(t), must(net.Listen("tcp", host+":0"))(t)
	f.url = "https://" + api.Addr().String()
	port := must(deviceport.New(deviceport.Config{
		Store: f.devices, Gate: gate, Authority: func() *enroll.Authority { return authority },
		Policy: enroll.Policy{FirstUse: enroll.FirstUseOpen}, Brokers: func() []string { return []string{"tls://" + mqtt.Addr().String()} },
	}))(t)
	server := &http.Server{
		Handler: port, TLSConfig: gate.TLS(authority.Server(host), enroll.Candidate, enroll.Device),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
	}
	in := must(ingest.New(ingest.Config{Sink: f, Embedded: &ingest.Embedded{
		Listener: mqtt, TLS: gate.TLS(authority.Server(host), enroll.Device),
		Judge: ingest.JudgeFunc(func(cs *tls.ConnectionState) (croft.DeviceID, error) {
			peer := gate.Judge(*cs)
			return peer.Device, peer.MayConnect()
		}),
	}}))(t)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { _ = server.ServeTLS(api, "", "") }) // it is closed
	all.Go(func() {
		if err := in.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		check(t, server.Close())
		all.Wait()
	})
	return f
}

// screen is what the command prints. It says when a text appears.
type screen struct {
	mu     sync.Mutex
	text   bytes.Buffer             // guarded by mu
	waited map[string]chan struct{} // guarded by mu
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.text.Write(p)
	for text, shown := range s.waited {
		if strings.Contains(s.text.String(), text) {
			close(shown)
			delete(s.waited, text)
		}
	}
	return n, err
}

func (s *screen) shows(text string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waited == nil {
		s.waited = make(map[string]chan struct{})
	}
	s.waited[text] = make(chan struct{})
	return s.waited[text]
}

// simulate runs the command until it shows a text.
func simulate(t *testing.T, text string, args ...string) string {
	t.Helper()
	out := &screen{}
	shown := out.shows(text)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := newCommand(100 * time.Millisecond)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	cmd.SetOut(out)
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	select {
	case <-shown:
	case err := <-done:
		t.Fatalf("it ended: %v", err)
	case <-time.After(2 * time.Minute):
		t.Errorf("it never shows %q", text)
	}
	cancel()
	check(t, <-done)
	return out.text.String()
}

func TestBoxesComeAndLeave(t *testing.T) {
	f := newFleet(t)
	dir := t.TempDir()
	root, codes := filepath.Join(dir, "root.pem"), filepath.Join(dir, "codes.txt")
	check(t, os.WriteFile(root, f.root, 0o600))
	args := []string{
		"--fleet", f.url, "--root", root, "--boxes", "40", "--full", "2", "--interval", "1s", "--confirm",
		"--dir", filepath.Join(dir, "boxes"), "--claim-codes", codes,
	}
	out := simulate(t, "enrolled 40  connected 40", args...)
	for _, want := range []string{"fleet     " + f.url, "boxes     40, of them 2 in full", "folder", "All boxes have left."} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	first := string(must(os.ReadFile(codes))(t))
	ctx, staff := t.Context(), device.Actor{ID: "usr_staff", Staff: true}
	homes := map[string]bool{}
	lines := strings.Split(strings.TrimSpace(first), "\n")
	for _, line := range lines {
		id, code, _ := strings.Cut(line, " ")
		box, err := f.devices.Box(ctx, staff, croft.DeviceID(id))
		if err != nil || box.Presence != fleetapi.Lost {
			t.Errorf("box %s: %s, %v", id, box.Presence, err)
		}
		homes[box.Address] = true
		if found, err := f.devices.StartClaim(ctx, device.Claimant{Account: "own_ada"}, code); err != nil || found.Device != box.ID {
			t.Errorf("code of %s: %+v, %v", id, found, err)
		}
	}
	if len(lines) != 40 || len(homes) != 40 {
		t.Errorf("%d boxes in %d homes", len(lines), len(homes))
	}

	simulate(t, "enrolled 40  connected 40", args...)
	again := strings.SplitSeq(strings.TrimSpace(string(must(os.ReadFile(codes))(t))), "\n")
	for line := range again {
		if !strings.Contains(first, line) {
			t.Errorf("the second run has another box: %s", line)
		}
	}
}

func TestWhatKeepsBoxesAwayIsSaid(t *testing.T) {
	f := newFleet(t)
	root := filepath.Join(t.TempDir(), "root.pem")
	other := must(enroll.NewAuthority("other", time.Now()))(t)
	check(t, os.WriteFile(root, other.RootCertificate(), 0o600))
	out := simulate(t, "newest problem: ", "--fleet", f.url, "--root", root, "--boxes", "1", "--full", "0", "--interval", "1s")
	if !strings.Contains(out, "trust fleet 127.0.0.1") {
		t.Error(out)
	}
}
