package auth

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
)

// mail is one that waits to be sent.
type mail struct {
	to, subject string
	text        Secret
}

// The mails, in plain sentences. %s is the link.
var letters = map[Purpose]struct{ subject, text string }{
	LinkLogin: {"Sign in", `Open this link to sign in. It works once, for 15 minutes.

%s

If you did not ask for it, ignore this mail. Nobody gets in without the link.
`},
	LinkEmail: {"Confirm your e-mail address", `Open this link in the browser you are signed in with, to use this address for your account. It works once, for 15 minutes.

%s

If you did not ask for it, ignore this mail.
`},
	LinkReset: {"Set a new password", `Open this link to set a new password. It works once, for 15 minutes. You will still need a code of your second factor.

%s

If you did not ask for it, ignore this mail.
`},
	LinkInvite: {"You are invited to run the fleet", `Open this link to set up your staff account. It works once, for three days.

%s

Have an app for one-time codes at hand.
`},
}

func (s *Service) linkURL(token Secret) Secret {
	return secret.New(s.cfg.Origin + s.cfg.LinkPath + "?token=" + url.QueryEscape(token.Reveal()))
}

// post queues the mail of a link.
func (s *Service) post(info LinkInfo, token Secret) {
	m := letters[info.Purpose]
	s.queue(mail{info.Email, s.cfg.Name + ": " + m.subject, secret.New(fmt.Sprintf(m.text, s.linkURL(token).Reveal()))})
}

// warn queues a mail about a change to somebody who has an address.
func (s *Service) warn(email, subject, text string) {
	if email == "" || s.cfg.Mailer == nil {
		return
	}
	s.queue(mail{email, s.cfg.Name + ": " + subject, secret.New(text + "\n\nIf that was not you, sign in at " + s.cfg.Origin + ", look at where you are signed in, and write to us.\n")})
}

func (s *Service) warnAccount(ctx context.Context, id, subject, text string) {
	var a Account
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		a, err = account(tx, id)
		return err
	}); err != nil {
		s.log.Warn("mail about a change cannot be written", "error", err)
		return
	}
	s.warn(a.Email, subject, text)
}

func (s *Service) queue(m mail) {
	select {
	case s.mails <- m:
	default:
		s.log.Error("mail was dropped: too many wait")
	}
}

// deliver sends queued mails until ctx ends.
func (s *Service) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-s.mails:
			try, cancel := context.WithTimeout(ctx, time.Minute)
			if err := s.cfg.Mailer.Send(try, m.to, m.subject, m.text.Reveal()); err != nil {
				s.log.Error("mail cannot be sent", "error", err)
			}
			cancel()
		}
	}
}
