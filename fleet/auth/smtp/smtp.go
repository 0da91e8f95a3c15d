// Package smtp sends mails of plain text by an SMTP server, over TLS unless it is
// told otherwise. Nothing a mail says can add a header or a receiver to it. A mail is
// tried once; who sends it decides about another try.
package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/smtp"
	"strings"
	"time"

	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Sender sends mails by a server. Its fields are not changed afterwards.
type Sender struct {
	Address  string      // required; host:port
	From     string      // required; address, with or without a name
	User     string      // empty: no authentication; it needs TLS
	Password secret.Text // of User
	Implicit bool        // TLS from the first byte (port 465); false: STARTTLS
	Plain    bool        // no TLS at all, for a server on this machine
	TLS      *tls.Config // nil: the host's name, the system's roots
}

// Send returns when the server has taken the mail.
func (m *Sender) Send(ctx context.Context, to, subject, text string) error {
	from, err := mail.ParseAddress(m.From)
	if err != nil {
		return fmt.Errorf("send mail: sender: %w", err)
	}
	host, _, err := net.SplitHostPort(m.Address)
	if err != nil {
		return fmt.Errorf("send mail: %w", err)
	}
	config := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if m.TLS != nil {
		config = m.TLS.Clone()
	}
	conn, err := (&net.Dialer{Timeout: 15 * time.Second}).DialContext(ctx, "tcp", m.Address)
	if err != nil {
		return fmt.Errorf("send mail: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if m.Implicit {
		conn = tls.Client(conn, config)
	}
	if err := m.talk(conn, host, config, from, to, subject, text); err != nil {
		return fmt.Errorf("send mail: %w", errors.Join(ctx.Err(), err))
	}
	return nil
}

func (m *Sender) talk(conn net.Conn, host string, config *tls.Config, from *mail.Address, to, subject, text string) error {
	client, err := smtp.NewClient(conn, host)
	if err != nil {
		return err
	}
	if !m.Implicit && !m.Plain {
		if err := client.StartTLS(config); err != nil { // no mail goes out in the clear because somebody cut STARTTLS out
			return err
		}
	}
	if m.User != "" {
		if err := client.Auth(smtp.PlainAuth("", m.User, m.Password.Reveal(), host)); err != nil {
			return err
		}
	}
	if err := errors.Join(client.Mail(from.Address), client.Rcpt(to)); err != nil {
		return err
	}
	body, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := body.Write(compose(from, to, subject, text)); err != nil {
		return err
	}
	if err := body.Close(); err != nil {
		return err
	}
	_ = client.Quit() // the server has the mail
	return nil
}

// compose writes a mail as RFC 5322 wants it. No text can add a header.
func compose(from *mail.Address, to, subject, text string) []byte {
	var b strings.Builder
	_, domain, _ := strings.Cut(from.Address, "@")
	for _, header := range [][2]string{
		{"From", from.String()},
		{"To", (&mail.Address{Address: to}).String()},
		{"Subject", mime.QEncoding.Encode("utf-8", fleetapi.CleanText(subject, 200))},
		{"Date", time.Now().Format(time.RFC1123Z)},
		{"Message-ID", "<" + strings.ToLower(fleetapi.NewID(fleetapi.PrefixNotification)) + "@" + domain + ">"},
		{"MIME-Version", "1.0"},
		{"Content-Type", "text/plain; charset=utf-8"},
		{"Content-Transfer-Encoding", "quoted-printable"},
		{"Auto-Submitted", "auto-generated"},
	} {
		b.WriteString(header[0] + ": " + header[1] + "\r\n")
	}
	b.WriteString("\r\n")
	w := quotedprintable.NewWriter(&b)
	_, _ = w.Write([]byte(text)) // a strings.Builder takes all
	_ = w.Close()
	return []byte(b.String())
}
