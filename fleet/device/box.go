package device

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Box is what the fleet knows of a box.
type Box struct {
	ID               croft.DeviceID
	Name             string // the owner's; may be empty
	Serial           string // on the case; may be empty
	Proven           bool   // whether a voucher tells the serial number, or the box only
	Board            string
	Release          croft.Version
	Slot             croft.Slot // empty until its first hello
	BootID           string
	Synced           bool // whether its clock was set by a server
	Enrolled         time.Time
	Address          string            // public
	Presence         fleetapi.Presence // empty until its first session
	PresenceAt       time.Time         // since when
	Seen             time.Time         // last sign of life
	Online           bool              // in a session, and heard of within [Silence]
	Claim            ownership.Claim   // without the seller's code
	CertificateUntil time.Time
	Desired          fleetapi.Desired
	Alerts           string // what is wrong now, in words; empty if nothing
	Labels           map[string]string
	Facts            map[string]string // of [Store.Box] only, nil in lists
}

func online(presence string, seen, now time.Time) bool {
	return presence == string(fleetapi.Online) && now.Sub(seen) < Silence
}

const boxColumns = `b.id, b.name, b.serial, b.proven, b.board, b.runs, b.slot, b.boot, b.synced, b.enrolled, b.address,
	b.presence, b.presence_at, COALESCE(s.at, 0), b.claim, b.owner, b.claimed, b.claimant, b.claim_until, b.offer_until,
	b.certificate_until, b.version, b.every_ms, b.wanted, b.alerts`

func (s *Store) scanBox(now time.Time) func(db.Scan) (Box, error) {
	return func(scan db.Scan) (Box, error) {
		var b Box
		var proven, synced, enrolled, presenceAt, seen, claimed, until, offerUntil, certUntil, version, every int64
		err := scan(&b.ID, &b.Name, &b.Serial, &proven, &b.Board, &b.Release, &b.Slot, &b.BootID, &synced, &enrolled, &b.Address,
			&b.Presence, &presenceAt, &seen, &b.Claim.State, &b.Claim.Owner, &claimed, &b.Claim.Claimant, &until, &offerUntil,
			&certUntil, &version, &every, &b.Desired.Release, &b.Alerts)
		if err != nil {
			return b, err
		}
		b.Proven, b.Synced = proven == 1, synced == 1
		b.Enrolled, b.PresenceAt, b.Seen, b.CertificateUntil = db.Instant(enrolled), db.Instant(presenceAt), db.Instant(seen), db.Instant(certUntil)
		b.Claim.Since, b.Claim.Until, b.Claim.OfferUntil = db.Instant(claimed), db.Instant(until), db.Instant(offerUntil)
		b.Claim, _ = b.Claim.Settle(now)
		b.Online = online(string(b.Presence), b.Seen, now)
		b.Desired.Version, b.Desired.Name, b.Desired.Claimed = uint64(version), b.Name, b.Claim.State.Owned()
		b.Desired.Interval = s.cfg.Interval
		if every > 0 {
			b.Desired.Interval = time.Duration(every) * time.Millisecond
		}
		return b, nil
	}
}

// Box is one box.
func (s *Store) Box(ctx context.Context, actor Actor, id croft.DeviceID) (Box, error) {
	var box Box
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		box, err = s.get(tx, actor, id)
		return err
	})
	return box, err
}

func (s *Store) get(tx *db.Tx, actor Actor, id croft.DeviceID) (Box, error) {
	boxes, err := db.All(tx, s.scanBox(time.Now()), "SELECT "+boxColumns+" FROM device_boxes b LEFT JOIN device_seen s ON s.device = b.id WHERE b.id = ?", string(id))
	if err != nil {
		return Box{}, err
	}
	if len(boxes) == 0 || !mayOwn(boxes[0].Claim, actor) {
		return Box{}, ErrNoBox
	}
	if err := addLabels(tx, boxes); err != nil {
		return Box{}, err
	}
	b := boxes[0]
	var facts string
	switch err := tx.Row("SELECT facts FROM device_facts WHERE device = ?", string(id)).Scan(&facts); {
	case errors.Is(err, db.ErrNoRows):
		facts = "{}"
	case err != nil:
		return Box{}, err
	}
	return b, json.Unmarshal([]byte(facts), &b.Facts)
}

const labelsAtOnce = 100 // boxes in a statement

func addLabels(tx *db.Tx, boxes []Box) error {
	for some := range slices.Chunk(boxes, labelsAtOnce) {
		of := make(map[string]map[string]string, len(some))
		args := make([]any, len(some))
		for i := range some {
			some[i].Labels = map[string]string{}
			of[string(some[i].ID)], args[i] = some[i].Labels, string(some[i].ID)
		}
		if _, err := db.All(tx, func(scan db.Scan) (struct{}, error) {
			var id, name, value string
			err := scan(&id, &name, &value)
			if err == nil {
				of[id][name] = value
			}
			return struct{}{}, err
		}, "SELECT device, name, value FROM device_labels WHERE device IN (?"+strings.Repeat(", ?", len(some)-1)+")", args...); err != nil {
			return err
		}
		for i := range some {
			some[i].Desired.Labels = fleetapi.Labels(some[i].Labels)
		}
	}
	return nil
}

// Sort is the order of a list.
type Sort string

// The orders.
const (
	SortID   Sort = "id"   // the default
	SortName Sort = "name" // owner's names, nameless ones first
	SortSeen Sort = "seen" // longest silent first
)

// Query says which boxes a list has. Empty fields restrict nothing.
type Query struct {
	Owner    string // account; for an actor who is not of the staff always himself
	State    ownership.State
	Release  croft.Version
	Board    string
	Online   *bool
	Selector string // of labels, as Kubernetes writes them: "site=lab,gpu,!broken,tier in (a,b)"
	Sort     Sort
	Cursor   string // of the page before
	Limit    int    // 1 to 500; default 50
}

// List is a page of boxes, and the cursor of the next page, empty after the last.
func (s *Store) List(ctx context.Context, actor Actor, q Query) ([]Box, string, error) {
	now := time.Now()
	sql, args, limit, err := list(actor, q, now)
	if err != nil {
		return nil, "", err
	}
	var boxes []Box
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		var err error
		if boxes, err = db.All(tx, s.scanBox(now), sql, args...); err != nil {
			return err
		}
		return addLabels(tx, boxes[:min(len(boxes), limit)])
	})
	if err != nil || len(boxes) <= limit {
		return boxes, "", err
	}
	boxes = boxes[:limit]
	last := boxes[limit-1]
	return boxes, writeCursor(place{Key: strings.ToLower(last.Name), At: db.Micros(last.Seen), ID: string(last.ID)}), nil
}

// place is where a page of a list ended.
type place struct {
	Key string
	At  int64
	ID  string
}

// list writes a query down. Each filter has an index that gives the boxes in the
// order of their ids; other orders sort what a filter leaves, or follow an index
// of their own when there is no filter.
func list(actor Actor, q Query, now time.Time) (string, []any, int, error) {
	if !actor.Staff {
		if actor.ID == "" {
			return "", nil, 0, ErrNoBox
		}
		q.Owner = actor.ID
	}
	var after place
	if err := readCursor(q.Cursor, &after); err != nil {
		return "", nil, 0, err
	}
	labels, err := parseSelector(q.Selector)
	if err != nil {
		return "", nil, 0, err
	}
	var w where
	from := "device_boxes b LEFT JOIN device_seen s ON s.device = b.id"
	id, order := "b.id", "b.id"
	if driver, rest := labels.driver(); driver != nil && q.Sort != SortSeen {
		from = "device_labels l JOIN device_boxes b ON b.id = l.device LEFT JOIN device_seen s ON s.device = b.id"
		id, order = "l.device", "l.device"
		w.and("l.name = ?", driver.name)
		if len(driver.values) == 1 {
			w.and("l.value = ?", driver.values[0])
		}
		labels = rest
	}
	w.text("b.owner", q.Owner)
	w.text("b.claim", string(q.State))
	w.text("b.runs", string(q.Release))
	w.text("b.board", q.Board)
	labels.where(&w, "b.id")
	if q.Sort == SortSeen || q.Online != nil && *q.Online {
		from = strings.Replace(from, "LEFT JOIN device_seen", "JOIN device_seen", 1)
	}
	if q.Online != nil {
		silent := db.Micros(now.Add(-Silence))
		if *q.Online {
			w.and("b.presence = 'online' AND s.at > ?", silent)
		} else {
			w.and(`b.id IN (SELECT id FROM device_boxes WHERE presence IN ('', 'lost')
				UNION ALL SELECT device FROM device_seen WHERE at <= ?)`, silent)
		}
	}
	switch q.Sort {
	case SortID, "":
		if q.Cursor != "" {
			w.and(id+" > ?", after.ID)
		}
	case SortName:
		order = "b.name_key, b.id"
		if q.Cursor != "" {
			w.and("(b.name_key, b.id) > (?, ?)", after.Key, after.ID)
		}
	case SortSeen:
		order = "s.at, s.device"
		if q.Cursor != "" {
			w.and("(s.at, s.device) > (?, ?)", after.At, after.ID)
		}
	default:
		return "", nil, 0, usage("list boxes: sort %.20q: want id, name or seen", q.Sort)
	}
	limit := pageSize(q.Limit)
	sql := "SELECT " + boxColumns + " FROM " + from + w.sql() + " ORDER BY " + order + " LIMIT ?"
	return sql, append(w.args, limit+1), limit, nil
}

// where collects conditions.
type where struct {
	conditions []string
	args       []any
}

func (w *where) and(condition string, args ...any) {
	w.conditions, w.args = append(w.conditions, condition), append(w.args, args...)
}

func (w *where) text(column, value string) {
	if value != "" {
		w.and(column+" = ?", value)
	}
}

func (w *where) sql() string {
	if len(w.conditions) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conditions, " AND ")
}

const maxPage = 500

func pageSize(limit int) int {
	if limit <= 0 {
		limit = 50
	}
	return min(limit, maxPage)
}

func writeCursor(place any) string {
	raw, err := json.Marshal(place)
	if err != nil {
		panic(err) // places are texts and numbers
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

func readCursor(cursor string, place any) error {
	if cursor == "" {
		return nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err == nil {
		err = json.Unmarshal(raw, place)
	}
	if err != nil {
		return &croft.Error{Kind: croft.KindUsage, Err: errors.New("cursor is none of ours"), Remedy: "begin with the first page"}
	}
	return nil
}

const maxFound = 50

// Search finds boxes by one line of text: device ID or short name, serial
// number, a word of the name, public address (the beginning of each will do),
// and for the staff a claim secret or the owner's e-mail address.
func (s *Store) Search(ctx context.Context, actor Actor, line string) ([]Box, error) {
	line = strings.TrimSpace(line)
	if len(line) > 200 {
		return nil, usage("search text is longer than 200 bytes")
	}
	words := searchWords(line)
	if len(words) == 0 || !actor.Staff && actor.ID == "" {
		return nil, nil
	}
	var owners []string
	if actor.Staff && strings.Contains(line, "@") && s.cfg.Owners != nil {
		var err error
		if owners, err = s.cfg.Owners.FindOwners(ctx, line); err != nil {
			return nil, err
		}
		owners = owners[:min(len(owners), maxFound)]
	}
	var boxes []Box
	now := time.Now()
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		var w where
		if actor.Staff {
			for _, owner := range owners {
				w.and("b.id IN (SELECT id FROM device_boxes WHERE owner = ? AND owner <> '' ORDER BY id LIMIT 50)", owner)
			}
			if sec, err := ownership.ReadSecret(line); err == nil {
				sealed := string(s.cfg.ClaimKey.Seal(sec.Hash))
				w.and("b.id IN (SELECT id FROM device_boxes WHERE code = ? AND code <> '')", sealed)
				w.and("b.id IN (SELECT id FROM device_boxes WHERE sticker = ? AND sticker <> '')", sealed)
				w.and("b.id IN (SELECT id FROM device_boxes WHERE offer = ? AND offer <> '')", sealed)
			}
		}
		w.terms(words, actor)
		var err error
		boxes, err = db.All(tx, s.scanBox(now), "SELECT "+boxColumns+` FROM device_boxes b LEFT JOIN device_seen s ON s.device = b.id
			WHERE (`+strings.Join(w.conditions, " OR ")+")"+map[bool]string{true: "", false: " AND b.owner = ?"}[actor.Staff]+" ORDER BY b.id LIMIT 50",
			append(w.args, map[bool][]any{false: {actor.ID}}[actor.Staff]...)...)
		if err != nil {
			return err
		}
		return addLabels(tx, boxes)
	})
	return boxes, err
}

// terms finds the boxes that have a term for each word. The longest word, which
// is likely the rarest, leads; no more than 2,000 of its boxes are looked at.
func (w *where) terms(words []string, actor Actor) {
	longest := 0
	for i, word := range words {
		if len(word) > len(words[longest]) {
			longest = i
		}
	}
	var own string
	if !actor.Staff {
		own = " AND EXISTS (SELECT 1 FROM device_boxes o WHERE o.id = t.device AND o.owner = ?)"
	}
	var condition strings.Builder
	condition.WriteString("b.id IN (SELECT t.device FROM device_terms t WHERE t.term >= ? AND t.term < ?" + own)
	lead := []byte(words[longest])
	args := []any{lead, beyond(lead)}
	if own != "" {
		args = append(args, actor.ID)
	}
	for i, word := range words {
		if i != longest {
			condition.WriteString(" AND EXISTS (SELECT 1 FROM device_terms u WHERE u.device = t.device AND u.term >= ? AND u.term < ?)")
			args = append(args, []byte(word), beyond([]byte(word)))
		}
	}
	w.and(condition.String()+" ORDER BY t.term, t.device LIMIT 2000)", args...)
}

// beyond is the least text after all that begin with a term. Terms are UTF-8, so
// none has the byte 0xFF.
func beyond(term []byte) []byte { return append(append([]byte{}, term...), 0xff) }

// searchWords splits what people type, and names, into words that are compared.
func searchWords(line string) []string {
	return strings.FieldsFunc(strings.ToLower(line), func(r rune) bool {
		return unicode.IsSpace(r) || strings.ContainsRune(`,;"'()`, r)
	})
}

// index makes a box findable by what is stored of it. Short names are found by
// the term croft-abcd.
func index(tx *db.Tx, id croft.DeviceID) error {
	var serial, name, address string
	if err := tx.Row("SELECT serial, name, address FROM device_boxes WHERE id = ?", string(id)).Scan(&serial, &name, &address); err != nil {
		return err
	}
	terms := append(searchWords(name), string(id), id.ShortName(), strings.ToLower(serial), address)
	terms = slices.DeleteFunc(terms, func(term string) bool { return term == "" })
	slices.Sort(terms)
	terms = slices.Compact(terms)
	stored, err := db.All(tx, func(scan db.Scan) (term string, err error) {
		var raw []byte
		err = scan(&raw)
		return string(raw), err
	}, "SELECT term FROM device_terms WHERE device = ? ORDER BY term", string(id))
	if err != nil || slices.Equal(stored, terms) {
		return err
	}
	if _, err := tx.Exec("DELETE FROM device_terms WHERE device = ?", string(id)); err != nil {
		return err
	}
	for _, term := range terms {
		if _, err := tx.Exec("INSERT INTO device_terms (term, device) VALUES (?, ?)", []byte(term), string(id)); err != nil {
			return err
		}
	}
	return nil
}

// Count is how many boxes there are of something.
type Count struct {
	Board   string
	Release croft.Version
	State   ownership.State
	Online  int
	All     int
}

// Overview counts the fleet, by board, release and claim. It reads every box;
// ask it once for many viewers.
func (s *Store) Overview(ctx context.Context) ([]Count, error) {
	var counts []Count
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		counts, err = db.All(tx, func(scan db.Scan) (c Count, err error) {
			return c, scan(&c.Board, &c.Release, &c.State, &c.Online, &c.All)
		}, `SELECT b.board, b.runs, b.claim, CAST(SUM(CASE WHEN b.presence = 'online' AND s.at > ? THEN 1 ELSE 0 END) AS BIGINT), COUNT(*)
			FROM device_boxes b LEFT JOIN device_seen s ON s.device = b.id GROUP BY b.board, b.runs, b.claim ORDER BY b.board, b.runs, b.claim`,
			db.Micros(time.Now().Add(-Silence)))
		return err
	})
	return counts, err
}

// Neighbours counts the other boxes with the public address of this one: if all
// are silent it is the line, if not it is the box. It tells nothing about them.
func (s *Store) Neighbours(ctx context.Context, id croft.DeviceID) (live, silent int, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Row(`SELECT COALESCE(CAST(SUM(CASE WHEN b.presence = 'online' AND s.at > ? THEN 1 ELSE 0 END) AS BIGINT), 0), COUNT(*)
			FROM device_boxes b JOIN device_seen s ON s.device = b.id
			WHERE b.network = (SELECT network FROM device_boxes WHERE id = ?) AND b.network <> '' AND b.id <> ?`,
			db.Micros(time.Now().Add(-Silence)), string(id), string(id)).Scan(&live, &silent)
	})
	return live, silent - live, err
}

// Known tells which of some boxes are in the fleet, and not retired.
func (s *Store) Known(ctx context.Context, ids []croft.DeviceID) (map[croft.DeviceID]bool, error) {
	known := make(map[croft.DeviceID]bool, len(ids))
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		for _, id := range ids {
			c, err := readClaim(tx, id)
			if err != nil && !errors.Is(err, ErrNoBox) {
				return err
			}
			known[id] = err == nil && c.State != ownership.Retired
		}
		return nil
	})
	return known, err
}
