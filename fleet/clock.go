package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
)

// The fleet deletes what is old and judges what is late by its own clock, so it does not
// run with one that cannot be right: before a time that it has seen itself, or further
// after it than anybody switches a fleet off for.
const (
	clockBack  = 24 * time.Hour
	clockAhead = 400 * 24 * time.Hour
	clockBeat  = 10 * time.Minute // how often the time is written down, and a step looked for
)

// checkClock compares the clock with the last time that was written down.
func checkClock(ctx context.Context, d *db.DB, now time.Time, trust bool) error {
	var last int64
	err := d.Read(ctx, func(tx *db.Tx) error {
		last = 0
		err := tx.Row("SELECT at FROM fleet_clock").Scan(&last)
		if errors.Is(err, db.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read when the fleet last ran: %w", err)
	}
	if at := db.Instant(last); last != 0 && !trust && (now.Before(at.Add(-clockBack)) || now.After(at.Add(clockAhead))) {
		return errClock(now, at)
	}
	return noteClock(ctx, d, now, trust)
}

// noteClock writes the time down; only an operator who trusts the clock sets it back.
func noteClock(ctx context.Context, d *db.DB, now time.Time, trust bool) error {
	err := d.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(`INSERT INTO fleet_clock (one, at) VALUES (1, ?)
			ON CONFLICT (one) DO UPDATE SET at = excluded.at WHERE excluded.at > fleet_clock.at OR ? <> 0`, db.Micros(now), db.Bit(trust))
		return err
	})
	if err != nil {
		return fmt.Errorf("write down when the fleet last ran: %w", err)
	}
	return nil
}

func errClock(now, last time.Time) error {
	return &croft.Error{
		Kind:   croft.KindRefused,
		Err:    fmt.Errorf("this machine's clock says %s, and the fleet last ran at %s", now.UTC().Format(time.DateTime), last.UTC().Format(time.DateTime)),
		Remedy: "set the clock; if it is right, start once with --trust-clock",
	}
}

// watchClock notes the time, and fails when the clock was set by more than it can have
// been wrong: then the fleet stops before it deletes anything for its age.
func watchClock(ctx context.Context, d *db.DB) error {
	tick := time.NewTicker(clockBeat)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now() // now.Sub(last) goes by the monotonic clock
		if err := stepped(last, now, now.Sub(last)); err != nil {
			return err
		}
		_ = noteClock(ctx, d, now, false) // a database that is away is others' to report
		last = now
	}
}

// stepped compares how far the clock went with how much time went by.
func stepped(last, now time.Time, passed time.Duration) error {
	expected := last.Add(passed).Round(0)
	if step := now.Round(0).Sub(expected); step < -clockBack || step > clockAhead {
		return errClock(now, expected)
	}
	return nil
}
