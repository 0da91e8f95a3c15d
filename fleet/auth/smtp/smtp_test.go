package smtp_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"

	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/auth/smtp"
)

// server is a real SMTP server in this process.
type server struct {
	address string
	trust   *tls.Config

	mu    sync.Mutex
	mails []envelope // guarded by mu
}

type envelope struct{ from, to, user, data string }

type session struct {
	s *server
	envelope
	needs bool
}

func (s *session) Reset()        {}
func (s *session) Logout() error { return nil }
func (s *session) Mail(from string, _ *gosmtp.MailOptions) error {
	if s.needs && s.user == "" {
		return gosmtp.ErrAuthRequired
	}
	s.from = from
	return nil
}

func (s *session) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	if strings.HasPrefix(to, "gone@") {
		return &gosmtp.SMTPError{Code: 550, EnhancedCode: gosmtp.EnhancedCode{5, 1, 1}, Message: "no such mailbox"}
	}
	s.to = to
	return nil
}

func (s *session) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	s.data = string(data)
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	s.s.mails = append(s.s.mails, s.envelope)
	return err
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }
func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "croft" || password != "sesame" {
			return errors.New("wrong password")
		}
		s.user = user
		return nil
	}), nil
}

func serve(t *testing.T, implicit, withTLS, needsAuth bool) *server {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	s := &server{trust: &tls.Config{ServerName: "127.0.0.1", RootCAs: roots}}
	back := gosmtp.NewServer(gosmtp.BackendFunc(func(*gosmtp.Conn) (gosmtp.Session, error) { return &session{s: s, needs: needsAuth}, nil }))
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	if withTLS && !implicit {
		back.TLSConfig = config
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	if implicit {
		listener = tls.NewListener(listener, config)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = back.Serve(listener) }()
	t.Cleanup(func() { back.Close(); <-done })
	return s
}

func (s *server) one(t *testing.T) envelope {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mails) != 1 {
		t.Fatalf("%d mails arrived", len(s.mails))
	}
	return s.mails[0]
}

func TestMailArrivesAsWritten(t *testing.T) {
	text := "Grüße!\n.\n.dot\nFrom here on a line that is much longer than the seventy-six columns that quoted-printable has on a line = so\nhttps://fleet.example.org/login/link?token=abc_-=\n"
	for name, tc := range map[string]struct{ implicit, user bool }{"STARTTLS": {false, true}, "TLS at once": {true, true}, "without a user": {false, false}} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, tc.implicit, true, tc.user)
			m := &smtp.Sender{Address: s.address, From: "Croft <fleet@example.org>", Implicit: tc.implicit, TLS: s.trust}
			if tc.user {
				m.User, m.Password = "croft", secret.New("sesame")
			}
			if err := m.Send(t.Context(), "ann@example.org", "Sign in: ä\r\nBcc: eve@example.org", text); err != nil {
				t.Fatal(err)
			}
			got := s.one(t)
			if got.from != "fleet@example.org" || got.to != "ann@example.org" || (got.user != "") != tc.user {
				t.Errorf("envelope: %+v", got)
			}
			read, err := mail.ReadMessage(strings.NewReader(got.data))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(quotedprintable.NewReader(read.Body))
			if err != nil || strings.ReplaceAll(string(body), "\r\n", "\n") != text {
				t.Errorf("text = %q, %v", body, err)
			}
			subject, err := new(mime.WordDecoder).DecodeHeader(read.Header.Get("Subject"))
			if err != nil || !strings.HasPrefix(subject, "Sign in: ä") || read.Header.Get("Bcc") != "" {
				t.Errorf("headers: %v, %v", read.Header, err)
			}
			if _, err := read.Header.Date(); err != nil || !strings.HasSuffix(read.Header.Get("Message-Id"), "@example.org>") {
				t.Errorf("headers: %v, %v", read.Header, err)
			}
		})
	}
}

func TestMailIsNotSentWhereItIsNotSafe(t *testing.T) {
	open, safe := serve(t, false, false, false), serve(t, false, true, true)
	for name, m := range map[string]*smtp.Sender{
		"no TLS offered": {Address: open.address, From: "a@example.org"},
		"unknown root":   {Address: safe.address, From: "a@example.org"},
		"wrong password": {Address: safe.address, From: "a@example.org", TLS: safe.trust, User: "croft", Password: secret.New("x")},
		"no password":    {Address: safe.address, From: "a@example.org", TLS: safe.trust},
		"no such server": {Address: "127.0.0.1:1", From: "a@example.org"},
		"no such sender": {Address: safe.address, From: "nobody", TLS: safe.trust},
		"no port":        {Address: "127.0.0.1", From: "a@example.org"},
	} {
		if err := m.Send(t.Context(), "ann@example.org", "x", "y"); err == nil {
			t.Errorf("%s: sent", name)
		}
	}
	plain := &smtp.Sender{Address: open.address, From: "a@example.org", Plain: true}
	if err := plain.Send(t.Context(), "gone@example.org", "x", "y"); err == nil {
		t.Error("a mailbox that does not exist took a mail")
	}
	if err := plain.Send(t.Context(), "ann@example.org", "x", "y"); err != nil {
		t.Error(err)
	}
	open.one(t)
	safe.mu.Lock()
	defer safe.mu.Unlock()
	if len(safe.mails) != 0 {
		t.Errorf("%d mails arrived", len(safe.mails))
	}
}

func TestSendEndsWithItsContext(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := silent.Accept()
		if err == nil {
			defer conn.Close()
		}
		cancel()
		_, _ = io.Copy(io.Discard, conn)
	}()
	if err := (&smtp.Sender{Address: silent.Addr().String(), From: "a@example.org"}).Send(ctx, "ann@example.org", "x", "y"); !errors.Is(err, context.Canceled) {
		t.Errorf("Send = %v", err)
	}
}
