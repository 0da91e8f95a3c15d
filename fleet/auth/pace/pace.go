// Package pace counts tries in the database, so that who guesses has to wait, on
// whatever replica he tries.
//
//	if err := pace.Try(ctx, d, paces); err != nil { … } // [TooSoonError]
//	… look whether it is right …
//	err = pace.Succeed(tx, paces)
//
// The table is package auth's.
package pace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
)

// Pace is how often something may be tried: after free tries each one is followed
// by a pause, twice as long as the one before, up to most. After a day without a
// try all is forgotten. Tries during a pause are refused unseen and change nothing.
//
// A network is shared by people who have nothing to do with each other, thousands
// of them behind one address of a telephone company. So of its tries one is
// forgotten after each time of Forgets, and those who are many have their share.
type Pace struct {
	Who   string // or what tries
	Free  int64
	First time.Duration
	Most  time.Duration

	Forgets time.Duration // zero: the tries are one person's
}

func (p Pace) shared() bool { return p.Forgets > 0 }

// Forget is after how long without a try all is forgotten.
const Forget = 24 * time.Hour

const ahead = time.Minute // how far clocks of replicas may be apart; what was tried later than that, a wrong clock says

// count is a number of tries and when the last one of them was.
type count struct {
	tries     int64
	until, at time.Time
}

// now is what remains of a count.
func (c count) now(p Pace, now time.Time) count {
	age := now.Sub(c.at)
	if age > Forget || age < -ahead {
		return count{at: now}
	}
	if !p.shared() {
		return count{c.tries, c.until, now}
	}
	n := max(0, int64(age/p.Forgets))
	if n >= c.tries {
		return count{0, c.until, now}
	}
	return count{c.tries - n, c.until, c.at.Add(time.Duration(n) * p.Forgets)}
}

// pause is what follows the given try, counted from 1.
func (p Pace) pause(try int64) time.Duration {
	if try <= p.Free {
		return 0
	}
	if doublings := try - p.Free - 1; doublings < 30 {
		return min(p.First<<doublings, p.Most)
	}
	return p.Most
}

// Network is an IPv4 address or the /64 of an IPv6 address.
func Network(addr netip.Addr) string {
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

// Try counts a try at every pace, before anything is looked at, so that tries at
// once on many replicas are counted too. It changes nothing if one is in a pause.
func Try(ctx context.Context, d *db.DB, paces []Pace) error {
	var wait time.Time
	err := d.Write(ctx, func(tx *db.Tx) error {
		wait = time.Time{}
		now := time.Now()
		counts := make([]count, len(paces))
		for i, p := range paces {
			var tries, until, at int64
			err := tx.Row("SELECT failures, until, at FROM auth_pace WHERE who = ?", p.Who).Scan(&tries, &until, &at)
			if err != nil && !errors.Is(err, db.ErrNoRows) {
				return err
			}
			counts[i] = count{tries, db.Instant(until), db.Instant(at)}.now(p, now)
			if t := counts[i].until; t.After(now) && t.After(wait) {
				wait = t
			}
		}
		if !wait.IsZero() {
			return nil
		}
		for i, p := range paces {
			if _, err := tx.Exec(`INSERT INTO auth_pace (who, failures, until, at) VALUES (?, ?, ?, ?)
				ON CONFLICT (who) DO UPDATE SET failures = excluded.failures, until = excluded.until, at = excluded.at`,
				p.Who, counts[i].tries+1, now.Add(p.pause(counts[i].tries+1)).UnixMicro(), counts[i].at.UnixMicro()); err != nil {
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

// Succeed takes the counted try back: the account's and browser's tries are
// forgotten, a network's are not, for it may belong to somebody with an account
// of his own.
func Succeed(tx *db.Tx, paces []Pace) error {
	for _, p := range paces {
		query := "DELETE FROM auth_pace WHERE who = ?"
		if p.shared() {
			query = "UPDATE auth_pace SET failures = failures - 1, until = 0 WHERE who = ? AND failures > 0"
		}
		if _, err := tx.Exec(query, p.Who); err != nil {
			return err
		}
	}
	return nil
}
