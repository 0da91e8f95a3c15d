package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Message is what a box said, as ingest gives it: the device is that of its
// certificate, the payload was decoded and so keeps the rules of fleetapi.
type Message struct {
	Device  croft.DeviceID
	At      time.Time        // when it arrived
	Address netip.Addr       // public address of the box, if the broker tells it
	Payload fleetapi.Payload // *Hello, *State, *Event or *LogLines
}

// Receive stores messages in one transaction, in their order; then they may be
// acknowledged. What was stored before changes nothing. Messages of boxes that
// are not in the fleet are dropped; strangers counts them.
func (s *Store) Receive(ctx context.Context, messages []Message) (strangers int, err error) {
	var touched map[croft.DeviceID]bool
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		strangers, touched = 0, map[croft.DeviceID]bool{}
		for _, m := range messages {
			known, err := s.known(tx, m.Device)
			if err != nil {
				return err
			}
			if known == nil {
				strangers++
				continue
			}
			changed, err := s.receive(tx, m, known)
			if err != nil {
				return fmt.Errorf("store message of %s: %w", m.Device, err)
			}
			if changed {
				touched[m.Device] = true
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range touched {
		s.touched[id] = true
	}
	return strangers, nil
}

// Seen notes that a box spoke, as with each batch of readings. It does no I/O;
// Run stores it.
func (s *Store) Seen(id croft.DeviceID, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.After(s.seen[id]) {
		s.seen[id] = at
	}
}

// known is what was believed of a box's session, nil if it is not in the fleet.
func (s *Store) known(tx *db.Tx, id croft.DeviceID) (*fleetapi.State, error) {
	var st fleetapi.State
	var journal, epoch int64
	err := tx.Row("SELECT presence, journal, epoch FROM device_boxes WHERE id = ? AND claim <> 'retired'", string(id)).Scan(&st.Presence, &journal, &epoch)
	if errors.Is(err, db.ErrNoRows) {
		return nil, nil
	}
	st.Journal, st.Epoch = uint64(journal), uint64(epoch)
	return &st, err
}

func (s *Store) receive(tx *db.Tx, m Message, known *fleetapi.State) (changed bool, err error) {
	switch p := m.Payload.(type) {
	case *fleetapi.Hello:
		return s.hello(tx, m, p, *known)
	case *fleetapi.State:
		return s.state(tx, m, *p, *known)
	case *fleetapi.Event:
		at := m.At
		if d := p.At.Sub(m.At); p.Synced && d < 5*time.Minute && d > -s.cfg.KeepEvent {
			at = p.At // else the box's clock is wrong
		}
		return s.event(tx, m.Device, p, at, m.At)
	case *fleetapi.LogLines:
		return false, s.logLines(tx, m, p)
	default:
		return false, fmt.Errorf("a %T is not for the device store", m.Payload)
	}
}

// hello takes what a box says about itself at the start of a session, unless a
// newer session was heard of already: hellos may come late, and twice.
func (s *Store) hello(tx *db.Tx, m Message, h *fleetapi.Hello, known fleetapi.State) (bool, error) {
	var journal, epoch int64
	if err := tx.Row("SELECT hello_journal, hello_epoch FROM device_boxes WHERE id = ?", string(m.Device)).Scan(&journal, &epoch); err != nil {
		return false, err
	}
	if h.Journal == known.Journal && h.Epoch < known.Epoch || h.Journal == uint64(journal) && h.Epoch < uint64(epoch) {
		return false, nil
	}
	facts, word := make(map[string]string, len(h.Facts)), ""
	for _, fact := range h.Facts {
		if fact.Name != factWords {
			facts[fact.Name] = fact.Value
		} else if words, ok := ownership.NormalWords(fact.Value); ok {
			word = string(s.cfg.ClaimKey.Seal(enroll.HashClaim(words)))
		}
	}
	raw, err := json.Marshal(facts)
	if err != nil {
		return false, err
	}
	// The journal and epoch are the State's to change: this is no birth.
	// delivered: the broker may have lost what it retained.
	// serial: what a voucher or the operator's list says, no box can say otherwise.
	if _, err := tx.Exec(`UPDATE device_boxes SET serial = CASE WHEN proven = 1 OR ? = ''
			OR EXISTS (SELECT 1 FROM device_serials WHERE device = device_boxes.id)
			OR EXISTS (SELECT 1 FROM device_serials WHERE serial = ? AND device <> '') THEN serial ELSE ? END,
		board = ?, runs = ?, slot = ?, boot = ?, synced = ?, wire = ?, word = ?,
		hello_journal = ?, hello_epoch = ?, delivered = 0 WHERE id = ?`,
		h.Serial, h.Serial, h.Serial, h.Board, string(h.Release), string(h.Slot), h.BootID, db.Bit(h.Synced), int64(min(h.Version, 1<<31)), word,
		int64(h.Journal), int64(h.Epoch), string(m.Device)); err != nil {
		return false, err
	}
	if _, err := tx.Exec(`INSERT INTO device_facts (device, facts) VALUES (?, ?)
		ON CONFLICT (device) DO UPDATE SET facts = excluded.facts`, string(m.Device), string(raw)); err != nil {
		return false, err
	}
	if m.Address.IsValid() {
		if _, err := tx.Exec("UPDATE device_boxes SET address = ?, network = ? WHERE id = ?",
			addressText(m.Address), NetworkOf(m.Address), string(m.Device)); err != nil {
			return false, err
		}
	}
	if err := index(tx, m.Device); err != nil {
		return false, err
	}
	return true, seeOne(tx, m.Device, m.At)
}

// factWords is the fact with the words on the box's page. It is a secret of
// sorts, so it is stored sealed and shown to nobody.
const factWords = "claim_words"

func (s *Store) state(tx *db.Tx, m Message, st, known fleetapi.State) (bool, error) {
	if !st.Buries(known) || st == known {
		return false, nil
	}
	if _, err := tx.Exec("UPDATE device_boxes SET presence = ?, presence_at = ?, journal = ?, epoch = ? WHERE id = ?",
		string(st.Presence), db.Micros(m.At), int64(st.Journal), int64(st.Epoch), string(m.Device)); err != nil {
		return false, err
	}
	if st.Presence == fleetapi.Online {
		if err := seeOne(tx, m.Device, m.At); err != nil {
			return false, err
		}
	}
	if st.Presence == known.Presence {
		return true, nil
	}
	return true, s.note(tx, m.Device, "presence_"+string(st.Presence), nil, m.At)
}

// event stores an event unless it is there.
func (s *Store) event(tx *db.Tx, id croft.DeviceID, e *fleetapi.Event, shown, received time.Time) (bool, error) {
	fields := make(map[string]string, len(e.Fields))
	for _, f := range e.Fields {
		fields[f.Name] = f.Value
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return false, err
	}
	rows, err := tx.Exec(`INSERT INTO device_events (device, journal, seq, shown, at, synced, received, kind, severity, fields)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, journal, seq) DO NOTHING`,
		string(id), int64(e.Journal), int64(e.Seq), db.Micros(shown), db.Micros(e.At), db.Bit(e.Synced), db.Micros(received), e.Kind, string(e.Severity), string(raw))
	if err != nil || rows == 0 {
		return false, err
	}
	return true, s.keepNewest(tx, id)
}

// keepNewest deletes the oldest events of a box that has too many, a tenth of them
// at a time: a box may say a lot in 400 days, and one that is hostile says all it can.
func (s *Store) keepNewest(tx *db.Tx, id croft.DeviceID) error {
	var counted, stored int
	if err := tx.Row("UPDATE device_boxes SET events = events + 1 WHERE id = ? RETURNING events", string(id)).Scan(&counted); err != nil {
		return err
	}
	if counted <= s.cfg.Events+s.cfg.Events/10 {
		return nil
	}
	// What sweep deleted was not counted off.
	if err := tx.Row("SELECT COUNT(*) FROM device_events WHERE device = ?", string(id)).Scan(&stored); err != nil {
		return err
	}
	if _, err := tx.Exec(`DELETE FROM device_events WHERE device = ? AND (journal, seq) IN
		(SELECT journal, seq FROM device_events WHERE device = ? ORDER BY shown, journal, seq LIMIT ?)`,
		string(id), string(id), max(0, stored-s.cfg.Events)); err != nil {
		return err
	}
	_, err := tx.Exec("UPDATE device_boxes SET events = ? WHERE id = ?", min(stored, s.cfg.Events), string(id))
	return err
}

// note puts into the timeline what the fleet itself saw or did. Two of one
// microsecond stand one after the other.
func (s *Store) note(tx *db.Tx, id croft.DeviceID, kind string, fields map[string]string, at time.Time) error {
	var last int64
	if err := tx.Row("SELECT COALESCE(MAX(seq), 0) FROM device_events WHERE device = ? AND journal = 0", string(id)).Scan(&last); err != nil {
		return err
	}
	_, err := s.event(tx, id, &fleetapi.Event{
		Origin: fleetapi.Origin{Seq: uint64(max(last+1, db.Micros(at)))}, At: at, Synced: true,
		Kind: kind, Severity: fleetapi.SeverityInfo, Fields: fleetapi.Labels(fields),
	}, at, at)
	return err
}

// logLines stores lines, the oldest of the box make room. Lines have no number:
// those that come twice are known by their time and text.
func (s *Store) logLines(tx *db.Tx, m Message, l *fleetapi.LogLines) error {
	if again, err := logged(tx, m.Device, l.Lines); err != nil || again {
		return err
	}
	var last int64
	if err := tx.Row("SELECT COALESCE(MAX(n), 0) FROM device_log WHERE device = ?", string(m.Device)).Scan(&last); err != nil {
		return err
	}
	lines := l.Lines
	if l.Dropped > 0 {
		lines = append([]fleetapi.LogLine{{At: m.At, Level: "warn", Text: fmt.Sprintf("%d lines were left out here", l.Dropped)}}, lines...)
	}
	for _, line := range lines {
		last++
		if _, err := tx.Exec("INSERT INTO device_log (device, n, received, at, level, line) VALUES (?, ?, ?, ?, ?, ?)",
			string(m.Device), last, db.Micros(m.At), db.Micros(line.At), line.Level, line.Text); err != nil {
			return err
		}
	}
	_, err := tx.Exec("DELETE FROM device_log WHERE device = ? AND n <= ?", string(m.Device), last-int64(s.cfg.LogLines))
	return err
}

// logged reports whether the first and the last of some lines are stored.
func logged(tx *db.Tx, id croft.DeviceID, lines []fleetapi.LogLine) (bool, error) {
	if len(lines) == 0 {
		return false, nil
	}
	for _, line := range []fleetapi.LogLine{lines[0], lines[len(lines)-1]} {
		var n int
		if err := tx.Row("SELECT COUNT(*) FROM device_log WHERE device = ? AND at = ? AND level = ? AND line = ?",
			string(id), db.Micros(line.At), line.Level, line.Text).Scan(&n); err != nil || n == 0 {
			return false, err
		}
	}
	return true, nil
}

// Event is one entry of a box's timeline.
type Event struct {
	Journal  uint64 // 0: the fleet's own
	Seq      uint64
	At       time.Time // when it happened, as far as is known
	BoxTime  time.Time // what the box's clock said
	Synced   bool      // whether that was set by a server
	Received time.Time
	Kind     string
	Severity fleetapi.Severity
	Fields   map[string]string
}

// LogLine is one line of a box's log.
type LogLine struct {
	N        int64 // grows; for After
	Received time.Time
	At       time.Time // what the box's clock said
	Level    string
	Text     string
}

// Timeline is a page of a box's events, newest first, and the cursor of the next
// page, empty after the last. An owner sees what happened since the box is his.
func (s *Store) Timeline(ctx context.Context, actor Actor, id croft.DeviceID, cursor string, limit int) ([]Event, string, error) {
	type place struct{ At, Journal, Seq int64 }
	at := place{At: 1<<63 - 1}
	if err := readCursor(cursor, &at); err != nil {
		return nil, "", err
	}
	limit = pageSize(limit)
	var events []Event
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		since, err := visibleSince(tx, actor, id)
		if err != nil {
			return err
		}
		events, err = db.All(tx, scanEvent, `SELECT journal, seq, shown, at, synced, received, kind, severity, fields FROM device_events
			WHERE device = ? AND shown >= ? AND (shown, journal, seq) < (?, ?, ?)
			ORDER BY shown DESC, journal DESC, seq DESC LIMIT ?`,
			string(id), since, at.At, at.Journal, at.Seq, limit+1)
		return err
	})
	if err != nil || len(events) <= limit {
		return events, "", err
	}
	events = events[:limit]
	last := events[limit-1]
	return events, writeCursor(place{db.Micros(last.At), int64(last.Journal), int64(last.Seq)}), nil
}

func scanEvent(scan db.Scan) (Event, error) {
	var e Event
	var journal, seq, shown, at, synced, received int64
	var fields string
	if err := scan(&journal, &seq, &shown, &at, &synced, &received, &e.Kind, &e.Severity, &fields); err != nil {
		return e, err
	}
	e.Journal, e.Seq, e.Synced = uint64(journal), uint64(seq), synced == 1
	e.At, e.BoxTime, e.Received = db.Instant(shown), db.Instant(at), db.Instant(received)
	return e, json.Unmarshal([]byte(fields), &e.Fields)
}

// LogAfter is the lines of a box's log after line n, oldest first; with n = 0 the
// newest ones.
func (s *Store) LogAfter(ctx context.Context, actor Actor, id croft.DeviceID, n int64, limit int) ([]LogLine, error) {
	var lines []LogLine
	limit = pageSize(limit)
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		since, err := visibleSince(tx, actor, id)
		if err != nil {
			return err
		}
		if n == 0 {
			if err := tx.Row("SELECT COALESCE(MAX(n), 0) FROM device_log WHERE device = ?", string(id)).Scan(&n); err != nil {
				return err
			}
			n -= int64(limit)
		}
		lines, err = db.All(tx, func(scan db.Scan) (LogLine, error) {
			var l LogLine
			var received, at int64
			err := scan(&l.N, &received, &at, &l.Level, &l.Text)
			l.Received, l.At = db.Instant(received), db.Instant(at)
			return l, err
		}, "SELECT n, received, at, level, line FROM device_log WHERE device = ? AND n > ? AND received >= ? ORDER BY n LIMIT ?",
			string(id), n, since, limit)
		return err
	})
	return lines, err
}

// visibleSince is from when on the actor may see what happened to a box.
func visibleSince(tx *db.Tx, actor Actor, id croft.DeviceID) (int64, error) {
	c, err := readClaim(tx, id)
	switch {
	case err != nil:
		return 0, err
	case actor.Staff:
		return 0, nil
	case !mayOwn(c, actor):
		return 0, ErrNoBox
	}
	return db.Micros(c.Since), nil
}

func mayOwn(c ownership.Claim, actor Actor) bool {
	return actor.Staff || actor.ID != "" && c.State.Owned() && c.Owner == actor.ID
}
