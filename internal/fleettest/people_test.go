//go:build integration

package fleettest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
	"github.com/pquerna/otp/totp"

	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

// mailbox is a mail server whose mails the test reads.
type mailbox struct {
	address string
	mails   chan string
}

func newMailbox(t *testing.T) *mailbox {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mailbox{address: listener.Addr().String(), mails: make(chan string, 100)}
	server := gosmtp.NewServer(gosmtp.BackendFunc(func(*gosmtp.Conn) (gosmtp.Session, error) { return mailSession{m}, nil }))
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close(); <-done })
	return m
}

type mailSession struct{ m *mailbox }

func (mailSession) Mail(string, *gosmtp.MailOptions) error { return nil }
func (mailSession) Rcpt(string, *gosmtp.RcptOptions) error { return nil }
func (mailSession) Reset()                                 {}
func (mailSession) Logout() error                          { return nil }

func (s mailSession) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	s.m.mails <- string(text)
	return err
}

var linkForm = regexp.MustCompile(`/login/link\?token=([\w-]+)`)

// link waits for the next mail with a link, and returns the link's token.
func (m *mailbox) link(t *testing.T) string {
	t.Helper()
	for {
		select {
		case text := <-m.mails:
			plain, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(text)))
			if err != nil {
				t.Fatal(err)
			}
			if found := linkForm.FindStringSubmatch(string(plain)); found != nil {
				return found[1]
			}
		case <-time.After(patience):
			t.Fatal("no mail with a link came")
		}
	}
}

// person is somebody with a browser. Its cookies are marked for TLS only, which a
// browser forgives localhost and Go's cookie jar does not; so they are kept here.
type person struct {
	t       *testing.T
	origin  string
	cookies map[string]string
	token   string // of forms
}

func (w *world) person(t *testing.T) *person {
	p := &person{t: t, origin: w.origin, cookies: map[string]string{}}
	p.look()
	return p
}

// look fetches the token of forms, which is another after each sign-in.
func (p *person) look() {
	p.t.Helper()
	var me struct {
		Token string `json:"form_token"`
	}
	p.do(http.MethodGet, "/auth/me", nil, &me)
	p.token = me.Token
}

// do sends fields to a route of people's sign-in and reads the answer's data.
func (p *person) do(method, path string, fields map[string]string, into any) {
	p.t.Helper()
	body, err := json.Marshal(fields)
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(p.t.Context(), method, p.origin+path, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Origin", p.origin)
	r.Header.Set(authhttp.FormHeader, p.token)
	for name, value := range p.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	answer, err := client.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		p.t.Fatalf("%s %s: %s %s %v", method, path, answer.Status, raw, err)
	}
	for _, c := range answer.Cookies() {
		p.cookies[c.Name] = c.Value
	}
	whole := struct {
		Data any `json:"data"`
	}{Data: into}
	if err := json.Unmarshal(raw, &whole); err != nil {
		p.t.Fatalf("%s %s: %s: %v", method, path, raw, err)
	}
}

// client makes the person an API token that may do what scopes say.
func (p *person) client(scopes string) *fleetclient.Client {
	p.t.Helper()
	p.look()
	var made struct {
		Token string `json:"token"`
	}
	p.do(http.MethodPost, "/auth/tokens", map[string]string{"name": "test", "scopes": scopes, "days": "1"}, &made)
	return &fleetclient.Client{URL: p.origin, Token: made.Token}
}

// admin signs the first admin up, with password and TOTP.
func (w *world) admin(t *testing.T) *fleetclient.Client {
	t.Helper()
	address, err := w.replicas[0].AdminURL()
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	p := w.person(t)
	p.do(http.MethodPost, "/auth/accept", map[string]string{
		"token": u.Query().Get("token"), "email": "root@example.org", "name": "Root", "password": "correct horse battery staple",
	}, nil)
	p.look()
	var begun struct {
		URL string `json:"url"` // otpauth://
	}
	p.do(http.MethodPost, "/auth/totp/begin", nil, &begun)
	parsed, err := url.Parse(begun.URL)
	if err != nil {
		t.Fatal(err)
	}
	code, err := totp.GenerateCode(parsed.Query().Get("secret"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p.do(http.MethodPost, "/auth/totp/confirm", map[string]string{"code": code}, nil)
	return p.client("device:read device:bundle device:label device:retire job:read job:start telemetry:read alert:read audit:read fleet:read")
}

// owner signs somebody up by a link in a mail.
func (w *world) owner(t *testing.T, name string) *fleetclient.Client {
	t.Helper()
	p := w.person(t)
	p.do(http.MethodPost, "/auth/link", map[string]string{"email": fmt.Sprintf("%s@example.org", name)}, nil)
	p.do(http.MethodPost, "/auth/link/redeem", map[string]string{"token": w.mails.link(t)}, nil)
	return p.client("device:read device:rename device:transfer device:release claim:create job:read job:start telemetry:read")
}
