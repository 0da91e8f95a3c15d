package fleet_test

import (
	"bytes"
	"context"
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
	"github.com/croft-cloud/croft/fleet"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func config(t *testing.T, dir string) fleet.Config {
	web := listen(t)
	return fleet.Config{
		Dir: dir, Origin: "http://" + strings.Replace(web.Addr().String(), "127.0.0.1", "localhost", 1),
		Web: web, Device: listen(t), Broker: listen(t), Hosts: []string{"127.0.0.1"}, FirstUse: enroll.FirstUseOpen,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// start runs a fleet until stop is called, or the test ends.
func start(t *testing.T, cfg fleet.Config) (f *fleet.Fleet, stop func()) {
	t.Helper()
	f, err := fleet.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	stop = func() {
		if cancel == nil {
			return
		}
		cancel()
		cancel = nil
		if err := <-ended; err != nil {
			t.Errorf("fleet ended with %v", err)
		}
	}
	t.Cleanup(stop)
	return f, stop
}

func TestFleetKeepsItsAuthorityAndFirstAdmin(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, dir)
	f, stop := start(t, cfg)
	root := f.RootPEM()
	admin, err := f.Bootstrap(t.Context())
	if err != nil || !strings.HasPrefix(admin.Reveal(), cfg.Origin+"/") {
		t.Fatalf("first admin signs up at %q, %v", admin.Reveal(), err)
	}
	answer, err := (&http.Client{Timeout: time.Minute}).Get("http://" + cfg.Web.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"ready":true`)) {
		t.Errorf("health: %s %s", answer.Status, body)
	}
	stop()

	again, _ := start(t, config(t, dir))
	if !bytes.Equal(again.RootPEM(), root) {
		t.Error("after a restart boxes would need another root")
	}
}

func TestAnotherKeyIsRefused(t *testing.T) {
	dir := t.TempDir()
	_, stop := start(t, config(t, dir))
	stop()
	key := filepath.Join(dir, "fleet.key")
	if err := os.WriteFile(key, []byte(strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := fleet.New(t.Context(), config(t, dir))
	if croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), key) {
		t.Errorf("another key: %v", err)
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fleet.New(t.Context(), config(t, dir)); croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("no key: %v", err)
	}
}

func TestRootKeyIsTheOperatorsAlone(t *testing.T) {
	dir := t.TempDir()
	start(t, config(t, dir))
	info, err := os.Stat(filepath.Join(dir, "root-key.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("root key: %v, %v", info, err)
	}
}
