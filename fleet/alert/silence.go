package alert

import (
	"context"
	"fmt"
	"time"

	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Silence holds back alerts that its selector matches. The selector goes by the
// labels of the box, or of its group, and by "device", "rule" and "severity".
// What still fires when the silence is over is told then.
type Silence struct {
	ID       string // sil_…
	Selector string // not empty
	Made     time.Time
	Until    time.Time // at most a year ahead
	By       string    // account
	Why      string
}

const maxSilence = 366 * 24 * time.Hour

// AddSilence makes a silence of Selector, Until and Why.
func (s *Store) AddSilence(ctx context.Context, staff Actor, m Silence) (Silence, error) {
	now := time.Now()
	m.ID, m.Made, m.Until, m.By = fleetapi.NewID(prefixSilence), db.Instant(db.Micros(now)), fleetapi.Truncate(m.Until), staff.ID
	switch {
	case m.Selector == "":
		return m, usage(`silence: want a selector, as "site=lab" or "rule=offline"`)
	case !m.Until.After(now) || m.Until.After(now.Add(maxSilence)):
		return m, usage("silence: want an end within a year from now")
	}
	if err := cleanText("reason of the silence", m.Why, maxSentence); err != nil {
		return m, err
	}
	if _, err := parseSelector(m.Selector); err != nil {
		return m, err
	}
	return m, s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec("INSERT INTO alert_silences (id, selector, made, until, account, why) VALUES (?, ?, ?, ?, ?, ?)",
			m.ID, m.Selector, db.Micros(m.Made), db.Micros(m.Until), m.By, m.Why); err != nil {
			return err
		}
		return s.cfg.Audit.Record(tx, Entry{By: staff.ID, Action: "alert.silence.add", Object: m.ID, After: m.words()})
	})
}

// EndSilence ends a silence before its time.
func (s *Store) EndSilence(ctx context.Context, staff Actor, id string) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		now := db.Micros(time.Now())
		rows, err := tx.Exec("UPDATE alert_silences SET until = ? WHERE id = ? AND until > ?", now, id, now)
		if err != nil {
			return err
		}
		if rows == 0 {
			return notFound("silence")
		}
		return s.cfg.Audit.Record(tx, Entry{By: staff.ID, Action: "alert.silence.end", Object: id})
	})
}

// Silences lists those that last.
func (s *Store) Silences(ctx context.Context) (out []Silence, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		out, err = silencesOf(tx, time.Now())
		return err
	})
	return out, err
}

func silencesOf(tx *db.Tx, now time.Time) ([]Silence, error) {
	return db.All(tx, func(scan db.Scan) (m Silence, err error) {
		var made, until int64
		err = scan(&m.ID, &m.Selector, &made, &until, &m.By, &m.Why)
		m.Made, m.Until = db.Instant(made), db.Instant(until)
		return m, err
	}, "SELECT id, selector, made, until, account, why FROM alert_silences WHERE until > ? ORDER BY id", db.Micros(now))
}

func (m Silence) words() map[string]string {
	return map[string]string{"selector": m.Selector, "until": m.Until.Format(time.RFC3339), "why": m.Why}
}

// Quiet is when an owner is left in peace. What happens then he is told after.
type Quiet struct {
	From, To int    // minutes after midnight, 0 to 1439; the same: no quiet hours
	Zone     string // of the IANA database: "Europe/Vienna"; empty: UTC
	Mute     bool   // he is told nothing at all
}

// SetQuiet stores an owner's quiet hours.
func (s *Store) SetQuiet(ctx context.Context, owner string, q Quiet) error {
	const day = 24 * 60
	if owner == "" || q.From < 0 || q.From >= day || q.To < 0 || q.To >= day {
		return usage("quiet hours: want an account, and minutes from 0 to %d", day-1)
	}
	if _, err := time.LoadLocation(q.Zone); err != nil || q.Zone == "Local" || len(q.Zone) > 64 {
		return usage("quiet hours: there is no time zone %.64q", q.Zone)
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec(`INSERT INTO alert_quiet (owner, from_minute, to_minute, zone, mute) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (owner) DO UPDATE SET from_minute = excluded.from_minute, to_minute = excluded.to_minute, zone = excluded.zone, mute = excluded.mute`,
			owner, q.From, q.To, q.Zone, db.Bit(q.Mute)); err != nil {
			return err
		}
		return s.cfg.Audit.Record(tx, Entry{By: owner, Action: "alert.quiet", Object: owner, After: map[string]string{
			"from": clock(q.From), "to": clock(q.To), "zone": q.Zone, "mute": fmt.Sprint(q.Mute),
		}})
	})
}

func clock(minute int) string { return fmt.Sprintf("%02d:%02d", minute/60, minute%60) }

// Quiet is an owner's quiet hours; none if he set none.
func (s *Store) Quiet(ctx context.Context, owner string) (q Quiet, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		q, err = quietOf(tx, owner)
		return err
	})
	return q, err
}

func quietOf(tx *db.Tx, owner string) (Quiet, error) {
	found, err := db.All(tx, scanQuiet, "SELECT "+quietColumns+" FROM alert_quiet WHERE owner = ?", owner)
	if err != nil || len(found) == 0 {
		return Quiet{}, err
	}
	return found[0].Quiet, nil
}

// ownerQuiet is the quiet hours of an owner.
type ownerQuiet struct {
	owner string
	Quiet
}

const quietColumns = "owner, from_minute, to_minute, zone, mute"

func scanQuiet(scan db.Scan) (q ownerQuiet, err error) {
	var mute int64
	err = scan(&q.owner, &q.From, &q.To, &q.Zone, &mute)
	q.Mute = mute == 1
	return q, err
}

// at reports whether an instant is in the quiet hours.
func (q Quiet) at(now time.Time) bool {
	if q.From == q.To {
		return false
	}
	zone, err := time.LoadLocation(q.Zone)
	if err != nil { // the database of zones is not that of when it was set
		zone = time.UTC
	}
	now = now.In(zone)
	minute := now.Hour()*60 + now.Minute()
	if q.From <= q.To {
		return q.From <= minute && minute < q.To
	}
	return minute >= q.From || minute < q.To
}
