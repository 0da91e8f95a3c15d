package auth

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/croft-cloud/croft/fleet/auth/pace"
)

// TooSoonError reports that something was tried too often.
type TooSoonError = pace.TooSoonError

func (s *Service) try(ctx context.Context, paces []pace.Pace) error {
	return pace.Try(ctx, s.db, paces)
}

// The paces. A network is an IPv4 address or the /64 of an IPv6 address.
func passwordPaces(c Client, account string, known bool) []pace.Pace {
	paces := []pace.Pace{{Who: apart("password", c, account, known), Free: 5, First: time.Second, Most: 15 * time.Minute}}
	if !known {
		paces = append(paces, pace.Pace{Who: "password network " + pace.Network(c.Address), Free: 20, First: time.Second, Most: 15 * time.Minute, Forgets: time.Minute})
	}
	return paces
}

func totpPaces(c Client, account string, known bool) []pace.Pace {
	return []pace.Pace{{Who: apart("totp", c, account, known), Free: 5, First: time.Second, Most: time.Hour}}
}

// apart is who tries: the account, or a browser in which it was signed in before,
// where strangers do not count, not those in the same network either.
func apart(what string, c Client, account string, known bool) string {
	if known {
		return what + " browser " + hex.EncodeToString(c.browserHash()) + " " + account
	}
	return what + " account " + account
}

// linkPaces count mails, not wrong ones: whoever used them up sent the receiver
// that many links, each of which signs him in.
func linkPaces(email string) []pace.Pace {
	return []pace.Pace{{Who: "link email " + email, Free: 4, First: time.Minute, Most: 15 * time.Minute}}
}

func networkPaces(c Client, what string) []pace.Pace {
	return []pace.Pace{{Who: what + " network " + pace.Network(c.Address), Free: 20, First: time.Second, Most: time.Hour, Forgets: time.Minute}}
}

// signInPaces are for what cannot be guessed, and only costs work.
func signInPaces(c Client, what string) []pace.Pace {
	return []pace.Pace{{Who: what + " network " + pace.Network(c.Address), Free: 300, First: time.Second, Most: time.Minute, Forgets: time.Second}}
}
