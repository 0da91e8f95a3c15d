package auth_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

const (
	origin   = "https://fleet.example.org"
	goodPass = "a field of 7 sheep"
)

var key = bytes.Repeat([]byte{7}, secret.KeySize)

// mailbox keeps what was sent.
type mailbox struct {
	mu   sync.Mutex
	sent []string // guarded by mu; "to: text"

	arrived chan struct{} // if not nil, told of each
}

func (m *mailbox) Send(_ context.Context, to, subject, text string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent = append(m.sent, to+": "+subject+"\n"+text)
	if m.arrived != nil {
		m.arrived <- struct{}{}
	}
	return nil
}

// ledger keeps what was recorded, in a table, for a transaction may run again.
type ledger struct{}

func (ledger) Record(tx *db.Tx, e auth.Entry) error {
	_, err := tx.Exec("INSERT INTO ledger (entry) VALUES (?)", fmt.Sprintf("%s %s %s %s %s %s %v %v", e.Actor, e.Role, e.Address, e.Action, e.Kind, e.Object, e.Before, e.After))
	return err
}

// world is a fleet's accounts in a test.
type world struct {
	*auth.Service
	t     *testing.T
	ctx   context.Context
	db    *db.DB
	cfg   auth.Config
	mails *mailbox
	log   *bytes.Buffer

	settle func() // waits until mails that were asked for have arrived
}

// each runs a test in synctest's time, on SQLite: a server elsewhere does not know
// that time. What the engines may do differently, TestOnEveryEngine does on all.
func each(t *testing.T, test func(t *testing.T, w *world)) {
	url := dbtest.URL(t, dbtest.SQLite)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, url, nil)
		w.settle = synctest.Wait
		test(t, w)
	})
}

func newWorld(t *testing.T, url string, change func(*auth.Config)) *world {
	ctx, cancel := context.WithCancel(t.Context())
	w := &world{t: t, ctx: ctx, db: dbtest.Open(t, url), mails: &mailbox{}, log: &bytes.Buffer{}}
	must(t, w.db.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec("CREATE TABLE ledger (entry TEXT NOT NULL)")
		return err
	}))
	w.cfg = auth.Config{
		DB: w.db, Key: key, Auditor: ledger{}, Mailer: w.mails, Origin: origin,
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&w.cfg)
	}
	w.Service = w.replica()
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w
}

// replica is another service on the same database.
func (w *world) replica() *auth.Service {
	s, err := auth.New(w.ctx, w.cfg)
	must(w.t, err)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// browser is a client that keeps its cookie.
func browser(address string) auth.Client {
	return auth.Client{Address: netip.MustParseAddr(address), Agent: "test", Browser: secret.Random()}
}

var tokenInMail = regexp.MustCompile(`\?token=(\S+)`)

// mail waits for the newest mail to somebody, and takes it.
func (w *world) mail(to string) string {
	w.t.Helper()
	w.settle()
	w.mails.mu.Lock()
	defer w.mails.mu.Unlock()
	for i, text := range slices.Backward(w.mails.sent) {
		if strings.HasPrefix(text, to+": ") {
			w.mails.sent = append(w.mails.sent[:i], w.mails.sent[i+1:]...)
			return text
		}
	}
	return ""
}

// link is the token in the newest mail to somebody.
func (w *world) link(to string) secret.Text {
	w.t.Helper()
	text := w.mail(to)
	found := tokenInMail.FindStringSubmatch(text)
	if found == nil {
		w.t.Fatalf("no link was mailed to %s: %q", to, text)
	}
	token, err := url.QueryUnescape(found[1])
	must(w.t, err)
	return secret.New(token)
}

// owner signs somebody in by link.
func (w *world) owner(c auth.Client, email string) auth.Grant {
	w.t.Helper()
	must(w.t, w.RequestLink(w.ctx, c, email))
	g, err := w.RedeemLink(w.ctx, c, rights.Principal{}, w.link(email), false)
	must(w.t, err)
	return g
}

// staffer is somebody of the staff, freshly signed in.
type staffer struct {
	auth.Grant
	c     auth.Client
	email string
	totp  string // secret of the codes
}

func (w *world) admin() staffer {
	w.t.Helper()
	token, err := w.Bootstrap(w.ctx)
	must(w.t, err)
	return w.accept(token, "root@example.org")
}

func (w *world) staff(by staffer, email string, role rights.Role) staffer {
	w.t.Helper()
	if _, err := w.Invite(w.ctx, by.c, by.Principal, email, role); err != nil {
		w.t.Fatal(err)
	}
	return w.accept(w.link(email), email)
}

func (w *world) accept(token secret.Text, email string) staffer {
	w.t.Helper()
	p := staffer{c: browser("192.0.2.77"), email: email}
	half, err := w.Accept(w.ctx, p.c, token, email, "", secret.New(goodPass))
	must(w.t, err)
	if half.Principal.Stage != rights.StageEnroll {
		w.t.Fatalf("stage after accepting is %q", half.Principal.Stage)
	}
	made, err := w.BeginTOTP(w.ctx, half.Principal)
	must(w.t, err)
	u, err := url.Parse(made.Reveal())
	must(w.t, err)
	p.totp = u.Query().Get("secret")
	p.Grant, err = w.ConfirmTOTP(w.ctx, p.c, half.Principal, w.code(p))
	must(w.t, err)
	if p.Principal.Stage != rights.StageFull || len(p.Recovery) != 10 || p.Cookie == half.Cookie {
		w.t.Fatalf("after TOTP: stage %q, %d recovery codes, same cookie %v", p.Principal.Stage, len(p.Recovery), p.Cookie == half.Cookie)
	}
	return p
}

func (w *world) code(p staffer) string {
	w.t.Helper()
	code, err := totp.GenerateCode(p.totp, time.Now())
	must(w.t, err)
	return code
}

// who is the principal of a cookie now.
func (w *world) who(cookie secret.Text) rights.Principal {
	w.t.Helper()
	p, err := w.BySession(w.ctx, cookie)
	must(w.t, err)
	return p
}

// ledger is everything that was recorded.
func (w *world) ledger() string {
	w.t.Helper()
	return w.dump("SELECT entry FROM ledger")
}

func (w *world) dump(query string) string {
	w.t.Helper()
	var all strings.Builder
	must(w.t, w.db.Read(w.ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(query)
		if err != nil {
			return err
		}
		defer rows.Close()
		columns, err := rows.Columns()
		if err != nil {
			return err
		}
		for rows.Next() {
			values, to := make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				to[i] = &values[i]
			}
			if err := rows.Scan(to...); err != nil {
				return err
			}
			for _, v := range values {
				if raw, ok := v.([]byte); ok {
					v = string(raw)
				}
				fmt.Fprintf(&all, "%v ", v)
			}
			all.WriteByte('\n')
		}
		return rows.Err()
	}))
	return all.String()
}
