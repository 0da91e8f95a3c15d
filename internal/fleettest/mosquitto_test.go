//go:build integration

package fleettest

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/croft-cloud/croft/fleet/ingest"
)

// mosquitto is Debian's, with the configuration of package ingest and the files that
// the fleet writes for it.
type mosquitto struct {
	dir      string
	conf     string
	forBoxes string // address
	forFleet string // address
	cmd      *exec.Cmd
	ended    chan struct{}
}

const brokerPassword = "correct-horse-battery"

func newMosquitto(t *testing.T, dir string) *mosquitto {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	conf := ingest.Mosquitto{
		DeviceAddress: "127.0.0.1", DevicePort: freePort(t), FleetAddress: "127.0.0.1", FleetPort: freePort(t),
		Roots: file("issuing.pem"), Cert: file("server.pem"), Key: file("server-key.pem"), CRL: file("revoked.pem"),
		PasswordFile: file("passwords"), ACLFile: file("acl"), Dir: dir,
	}
	if out, err := exec.Command("mosquitto_passwd", "-c", "-b", conf.PasswordFile, ingest.FleetUser, brokerPassword).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v: %s (run make setup)", err, out)
	}
	m := &mosquitto{
		dir: dir, conf: file("mosquitto.conf"),
		forBoxes: fmt.Sprintf("127.0.0.1:%d", conf.DevicePort), forFleet: fmt.Sprintf("127.0.0.1:%d", conf.FleetPort),
	}
	for name, text := range map[string]string{conf.ACLFile: conf.ACL(), m.conf: conf.Config() + "\nuser root\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(m.stop)
	return m
}

func (m *mosquitto) url() string {
	return "mqtts://" + ingest.FleetUser + ":" + brokerPassword + "@" + m.forFleet
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (m *mosquitto) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(m.dir, "mosquitto.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command("/usr/sbin/mosquitto", "-c", m.conf)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(m.cmd, m.ended)
	until(t, "mosquitto listens", func() bool {
		select {
		case <-m.ended:
			t.Fatalf("mosquitto ended: %s", tail(log.Name()))
		default:
		}
		c, err := net.Dial("tcp", m.forBoxes)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// stop ends it in order: it writes down what it has acknowledged.
func (m *mosquitto) stop() {
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(syscall.SIGTERM) // fails only if it has ended already
		<-m.ended
	}
}

// readAgain has it read the list of revoked certificates.
func (m *mosquitto) readAgain(t *testing.T) {
	t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// revoked is how many certificates the list names that the fleet has written.
func (m *mosquitto) revoked(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(m.dir, "revoked.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return len(list.RevokedCertificateEntries)
}
