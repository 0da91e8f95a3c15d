//go:build integration

package uplink

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// mosquitto starts Debian's broker with the fleet's certificates and topic
// rights, and returns its URL and what kills it.
func mosquitto(t *testing.T, f *fleet, dir, port string) (string, func()) {
	cert, err := f.authority.ServerCertificate(time.Now(), "127.0.0.1")
	check(t, err)
	check(t, writePEM(dir, cert))
	check(t, os.WriteFile(filepath.Join(dir, "root.pem"), append(f.authority.RootCertificate(), issuing(f)...), 0o644))
	check(t, os.WriteFile(filepath.Join(dir, "acl"), []byte("pattern readwrite croft/v1/%u/#\n"), 0o644))
	if port == "" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		_, port, err = net.SplitHostPort(l.Addr().String())
		check(t, err)
		check(t, l.Close())
	}
	config := fmt.Sprintf("user root\nlistener %s 127.0.0.1\ncafile %[2]s/root.pem\ncertfile %[2]s/server.pem\nkeyfile %[2]s/server.key\n"+
		"require_certificate true\nuse_identity_as_username true\nacl_file %[2]s/acl\ntls_version tlsv1.3\npersistence true\npersistence_location %[2]s/\nautosave_on_changes true\nautosave_interval 1\nlog_dest stderr\n", port, dir)
	path := filepath.Join(dir, "mosquitto.conf")
	check(t, os.WriteFile(path, []byte(config), 0o644))
	cmd := exec.Command("mosquitto", "-c", path)
	out, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "running") {
		t.Log(lines.Text())
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for lines.Scan() {
		}
	}()
	var dead bool
	kill := func() {
		if !dead {
			dead = true
			_ = cmd.Process.Kill()
			<-drained
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	return "tls://127.0.0.1:" + port, kill
}

// TestMosquitto keeps a line to a broker that we did not write, over its death.
func TestMosquitto(t *testing.T) {
	f := newFleet(t)
	dir := t.TempDir()
	broker, kill := mosquitto(t, f, dir, "")
	b := newBox(t, f, t.TempDir(), newKey(t), func(c *Config) { c.Brokers = []string{broker} }).start(t)
	wait := func(what string, done func(Status) bool) {
		t.Helper()
		for s := b.Status(); !done(s); s = b.Status() {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-t.Context().Done():
				t.Fatalf("%s: %+v", what, s)
			}
		}
	}
	wait("first session", func(s Status) bool { return s.Connected })
	b.record(event{at: wireTime(time.Now()), kind: "first", severity: fleetapi.SeverityInfo})
	wait("acknowledgement", func(s Status) bool { return s.Waiting == 0 })
	kill()
	wait("end of session", func(s Status) bool { return !s.Connected && s.Problem != "" })
	b.record(event{at: wireTime(time.Now()), kind: "second", severity: fleetapi.SeverityInfo})
	wait("spool", func(s Status) bool { return s.Waiting == 1 })
	mosquitto(t, f, dir, strings.TrimPrefix(broker, "tls://127.0.0.1:"))
	wait("second session", func(s Status) bool { return s.Connected && s.Waiting == 0 && s.Problem == "" })
	if n := b.nextSession(); n.Epoch < 3 {
		t.Errorf("session number %+v", n)
	}
}

func writePEM(dir string, cert *tls.Certificate) error {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	var chain []byte
	for _, c := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	if err := os.WriteFile(filepath.Join(dir, "server.pem"), chain, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "server.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func issuing(f *fleet) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.authority.Issuing().Raw})
}
