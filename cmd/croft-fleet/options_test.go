package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet"
)

// certificate writes a certificate of its own and its key into files.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"fleet.example"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
}

// A page that is live keeps a connection, and browsers open six to one site: without
// HTTP/2 the seventh page would never load.
func TestPagesWithACertificateSpeakHTTP2(t *testing.T) {
	o := options{}
	o.tlsCert, o.tlsKey = certificate(t)
	var cfg fleet.Config
	if err := o.tls(&cfg, nil); err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	go tls.Server(there, cfg.WebTLS).Handshake() //nolint:errcheck // the client says whether it worked
	client := tls.Client(here, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if got := client.ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Errorf("browsers and the fleet speak %q", got)
	}
}

func TestWrongCommandLines(t *testing.T) {
	const secret = "hunter2"
	for _, args := range [][]string{
		{"serve"}, {"--nope"}, {}, {"--origin", "https://fleet.example"},
		{"--origin", "https://fleet.example", "--listen", "127.0.0.1:0"}, // no box can come in
		{"--origin", "https://fleet.example", "--listen", "127.0.0.1:0", "--first-use", "some"},
		{"--origin", "https://fleet.example", "--acme", "a@example.org", "--tls-cert", "x"},
		{"--origin", "https://fleet.example", "--listen", "127.0.0.1:0", "--first-use", "open", "--proxy", "127.0.0.1"},
		{"--origin", "https://fleet.example", "--listen", "127.0.0.1:0", "--first-use", "open", "--mail", "smtp://me:" + secret + "@host"},
		{"--origin", "https://fleet.example", "--listen", "127.0.0.1:0", "--first-use", "open", "--mail", "smtp://me:" + secret + "@ho st"},
	} {
		err := run(context.Background(), append([]string{"--dir", t.TempDir()}, args...), io.Discard, io.Discard)
		if croft.KindOf(err) != croft.KindUsage || exitCode(err) != 2 {
			t.Errorf("%q: %v", args, err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%q: the password stands in %v", args, err)
		}
	}
}

func TestFlagsCanBeVariables(t *testing.T) {
	t.Setenv("CROFT_FLEET_FIRST_USE", "some")
	err := run(t.Context(), []string{"--dir", t.TempDir(), "--origin", "https://fleet.example", "--listen", "127.0.0.1:0"}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "--first-use") {
		t.Errorf("a variable is not read: %v", err)
	}
	t.Setenv("CROFT_FLEET_RETENTION", "long")
	err = run(t.Context(), []string{"--dir", t.TempDir()}, io.Discard, io.Discard)
	if croft.KindOf(err) != croft.KindUsage || !strings.Contains(err.Error(), "CROFT_FLEET_RETENTION") {
		t.Errorf("a variable that is wrong: %v", err)
	}
}
