package alert

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Why nobody has been told of an alert yet.
const (
	WithheldGroup   = "group"   // an alert of the box's group is told instead, or may be in a moment
	WithheldSilence = "silence" // a silence matches
)

// Alert is one time that a rule fired.
type Alert struct {
	ID       string // alr_…
	Rule     string
	Name     string // of the rule
	Severity fleetapi.Severity
	Target   string         // device, or value of the group's label
	Device   croft.DeviceID // empty: it is about a group, or the fleet
	Box      string         // name of the box
	Owner    string         // account, when it fired
	Labels   map[string]string
	Sentence string // for whom it was asked for
	Value    float64
	Since    time.Time // when it became bad
	Fired    time.Time
	Ended    time.Time // zero: it fires
	Reason   string    // why it ended
	Told     bool      // those who are to know were told, or are being told
	Withheld string    // why not
	Acked    time.Time // zero: nobody took it on
	AckedBy  string
	Note     string

	advice  string
	members []croft.DeviceID
}

const columns = "id, rule, name, severity, target, device, box, owner, labels, sentence, advice, value, since, fired, ended, reason, told, withheld, acked, acked_by, note"

func (a *Alert) scan(scan db.Scan, more ...any) error {
	var since, fired, ended, told, acked int64
	var labels string
	if err := scan(append([]any{
		&a.ID, &a.Rule, &a.Name, &a.Severity, &a.Target, &a.Device, &a.Box, &a.Owner, &labels, &a.Sentence, &a.advice, &a.Value,
		&since, &fired, &ended, &a.Reason, &told, &a.Withheld, &acked, &a.AckedBy, &a.Note,
	}, more...)...); err != nil {
		return err
	}
	a.Since, a.Fired, a.Ended, a.Acked, a.Told = db.Instant(since), db.Instant(fired), db.Instant(ended), db.Instant(acked), told == 1
	return json.Unmarshal([]byte(labels), &a.Labels)
}

// scanAlert reads columns and members.
func scanAlert(scan db.Scan) (a Alert, err error) {
	var members string
	if err := a.scan(scan, &members); err != nil {
		return a, err
	}
	return a, json.Unmarshal([]byte(members), &a.members)
}

// Query says which alerts a list has; empty: all.
type Query struct {
	Firing bool // those that fire; else history too
	Device croft.DeviceID
	Rule   string
	Cursor string // the last ID of the page before
	Limit  int    // 1 to 500; default 50
}

// List is a page of alerts, newest first, and the next cursor, empty after the
// last. Owners see those of their boxes, as far as they are told of such, and of
// the time the box was theirs.
func (s *Store) List(ctx context.Context, actor Actor, q Query) ([]Alert, string, error) {
	var where []string
	var args []any
	and := func(condition string, more ...any) {
		where, args = append(where, condition), append(args, more...)
	}
	if !actor.Staff {
		if actor.ID == "" {
			return nil, "", usage("list alerts: want an account")
		}
		and("owner = ? AND advice <> ''", actor.ID)
	}
	if q.Firing {
		and("ended = 0")
	}
	if q.Device != "" {
		and("device = ?", string(q.Device))
	}
	if q.Rule != "" {
		and("rule = ?", q.Rule)
	}
	if q.Cursor != "" {
		if _, err := fleetapi.ParseID(prefixAlert, q.Cursor); err != nil {
			return nil, "", usage("list alerts: cursor: %w", err)
		}
		and("id < ?", q.Cursor)
	}
	limit := limitOf(q.Limit)
	query := "SELECT " + columns + " FROM alert_alerts"
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	var found []Alert
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		found, err = db.All(tx, func(scan db.Scan) (a Alert, err error) { return a, a.scan(scan) }, query+" ORDER BY id DESC LIMIT ?", append(args, limit+1)...)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(found) > limit {
		found = found[:limit]
		next = found[limit-1].ID
	}
	if !actor.Staff {
		for n := range found {
			found[n] = found[n].forOwner()
		}
	}
	return found, next, nil
}

func limitOf(asked int) int {
	if asked <= 0 {
		return 50
	}
	return min(asked, 500)
}

// forOwner is an alert without what is the staff's.
func (a Alert) forOwner() Alert {
	a.Sentence, a.Labels, a.Withheld, a.AckedBy, a.Note = a.advice, nil, "", "", ""
	return a
}

// Acknowledge notes that somebody of the staff takes an alert on. Who is told of
// it does not change.
func (s *Store) Acknowledge(ctx context.Context, staff Actor, id, note string) error {
	if note != "" {
		if err := cleanText("note", note, maxSentence); err != nil {
			return err
		}
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		var device string
		switch err := tx.Row("SELECT device FROM alert_alerts WHERE id = ?", id).Scan(&device); {
		case errors.Is(err, db.ErrNoRows):
			return notFound("alert")
		case err != nil:
			return err
		}
		if _, err := tx.Exec("UPDATE alert_alerts SET acked = ?, acked_by = ?, note = ? WHERE id = ?", db.Micros(time.Now()), staff.ID, note, id); err != nil {
			return err
		}
		tx.Notify(Topic, "")
		after := map[string]string{"note": note}
		if device != "" {
			after["device"] = device
		}
		return s.cfg.Audit.Record(tx, Entry{By: staff.ID, Action: "alert.acknowledge", Object: id, After: after})
	})
}
