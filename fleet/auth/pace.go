package auth

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
)

// pace is how often something may be tried: after free tries each one is followed
// by a pause, twice as long as the one before, up to most. After a day without a
// try all is forgotten. Tries during a pause are refused unseen and change nothing.
type pace struct {
	who   string
	free  int64
	first time.Duration
	most  time.Duration

	shared bool // by people who have nothing to do with each other
}

const forget = 24 * time.Hour

// pause is what follows the given try, counted from 1.
func (p pace) pause(try int64) time.Duration {
	if try <= p.free {
		return 0
	}
	if doublings := try - p.free - 1; doublings < 30 {
		return min(p.first<<doublings, p.most)
	}
	return p.most
}

// The paces. A network is an IPv4 address or the /64 of an IPv6 address.
func passwordPaces(c Client, account string, known bool) []pace {
	return []pace{
		{"password network " + network(c.Address), 20, time.Second, 15 * time.Minute, true},
		{apart("password", c, account, known), 5, time.Second, 15 * time.Minute, false},
	}
}

func totpPaces(c Client, account string, known bool) []pace {
	return []pace{{apart("totp", c, account, known), 5, time.Second, time.Hour, false}}
}

// apart is who tries: the account, or a browser in which it was signed in before,
// where strangers do not count.
func apart(what string, c Client, account string, known bool) string {
	if known {
		return what + " browser " + hex.EncodeToString(c.browserHash()) + " " + account
	}
	return what + " account " + account
}

// linkPaces count mails, not wrong ones: whoever used them up sent the receiver
// that many links, each of which signs him in.
func linkPaces(email string) []pace {
	return []pace{{"link email " + email, 4, time.Minute, 15 * time.Minute, false}}
}

func networkPaces(c Client, what string) []pace {
	return []pace{{what + " network " + network(c.Address), 20, time.Second, time.Hour, true}}
}

func network(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		prefix, _ := addr.Prefix(64) // 64 is never too long for IPv6
		return prefix.String()
	}
	return addr.String()
}

// TooSoonError reports that something was tried too often.
type TooSoonError struct{ Until time.Time }

// Error implements error.
func (e *TooSoonError) Error() string { return "this was tried too often" }

// try counts a try at every pace, before anything is looked at, so that tries at
// once on many replicas are counted too. It changes nothing if one is in a pause.
func (s *Service) try(ctx context.Context, paces []pace) error {
	var wait time.Time
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		wait = time.Time{}
		now := time.Now()
		failures := make([]int64, len(paces))
		for i, p := range paces {
			var until, at int64
			err := tx.Row("SELECT failures, until, at FROM auth_pace WHERE who = ?", p.who).Scan(&failures[i], &until, &at)
			if err != nil && !errors.Is(err, db.ErrNoRows) {
				return err
			}
			if now.Sub(time.UnixMicro(at)) > forget {
				failures[i] = 0
			}
			if t := time.UnixMicro(until); t.After(now) && t.After(wait) {
				wait = t
			}
		}
		if !wait.IsZero() {
			return nil
		}
		for i, p := range paces {
			if _, err := tx.Exec(`INSERT INTO auth_pace (who, failures, until, at) VALUES (?, ?, ?, ?)
				ON CONFLICT (who) DO UPDATE SET failures = excluded.failures, until = excluded.until, at = excluded.at`,
				p.who, failures[i]+1, now.Add(p.pause(failures[i]+1)).UnixMicro(), now.UnixMicro()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("count tries: %w", err)
	}
	if !wait.IsZero() {
		return &croft.Error{Kind: croft.KindRefused, Err: &TooSoonError{wait}, Remedy: "wait until " + wait.UTC().Format("15:04:05") + " UTC, then try again"}
	}
	return nil
}

// succeed takes the counted try back: the account's and browser's tries are
// forgotten, a network's are not, for it may belong to somebody with an account
// of his own.
func succeed(tx *db.Tx, paces []pace) error {
	for _, p := range paces {
		query := "DELETE FROM auth_pace WHERE who = ?"
		if p.shared {
			query = "UPDATE auth_pace SET failures = failures - 1, until = 0 WHERE who = ? AND failures > 0"
		}
		if _, err := tx.Exec(query, p.who); err != nil {
			return err
		}
	}
	return nil
}
