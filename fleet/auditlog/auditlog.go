// Package auditlog is the fleet's audit log: who changed what, when and from where.
//
//	log, err := auditlog.Open(ctx, d, key)
//	err = d.Write(ctx, func(tx *db.Tx) error {
//		… the change …
//		return log.Record(tx, auditlog.Entry{Actor: who, Action: "device.rename", …})
//	})
//	found, next, err := log.Search(ctx, auditlog.Query{Object: string(device)})
//
// # Promises
//
//   - An entry stands in the log exactly if the change it tells of was done: both
//     are one transaction. Whoever tells of a change later gives the entry an ID,
//     and may tell twice.
//   - Nothing here changes or deletes an entry. Entries are numbered without gaps
//     in the order in which the database did the changes, over all replicas, so
//     those who record wait for each other. That is for changes people make, not
//     for readings of boxes.
//   - Each entry carries an HMAC-SHA256 over itself and the HMAC of the one
//     before, under a key that is not in the database. Who can write to the
//     database, but has not the key, can neither change, insert nor take out an
//     entry without [Log.Verify] naming the place.
//   - Who puts back an older copy of all of it takes off the end unseen by that
//     alone. So write down [Log.Head] elsewhere from time to time, and give it to
//     Verify.
//   - Whoever has key and database can write what he wants.
//
// An entry has no secrets because those who record put none in: names and states,
// never a password, code, token or hash of one. It does hold names of people and
// their addresses, and is kept until the operator drops the tables.
package auditlog

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Topic tells listeners of the database that there is a new entry; the payload is
// its number.
const Topic = "audit"

// KeySize is how many bytes a key has.
const KeySize = 32

// Bounds of an entry; longer texts are cut.
const (
	maxText   = 1024
	maxFields = 32
)

// Entry is one change.
type Entry struct {
	ID      string            // evt_…; empty: Record makes one
	At      time.Time         // zero: now
	Actor   string            // account or token that did it; "fleet" for what time did
	Role    string            // which role the actor had
	Address string            // client address it came from; empty: from no client
	Action  string            // words with dots between them: "account.role"
	Kind    string            // of the object: "device"
	Object  string            // its id
	Before  map[string]string // what changed, as it was
	After   map[string]string // and as it is
}

// Numbered is an entry in the log.
type Numbered struct {
	Seq int64
	Entry
}

// Head is the end of the log at some time.
type Head struct {
	Seq  int64  `json:"seq"`
	Hash string `json:"hash"` // hexadecimal
}

// Log is the audit log. All methods may be called from any goroutine.
type Log struct {
	db  *db.DB
	key []byte
}

// Open brings the tables up to date. key has [KeySize] bytes and is the same on
// every replica, for as long as the log is to be verified.
func Open(ctx context.Context, d *db.DB, key []byte) (*Log, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("open audit log: key has %d bytes, want %d", len(key), KeySize)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	if err := d.Migrate(ctx, "audit", files); err != nil {
		return nil, err
	}
	return &Log{db: d, key: slices.Clone(key)}, nil
}

// Record writes an entry in the caller's transaction. One whose ID is there
// already changes nothing.
func (l *Log) Record(tx *db.Tx, e Entry) error {
	if e.ID == "" {
		e.ID = fleetapi.NewID(fleetapi.PrefixEvent)
	} else {
		var seq int64
		err := tx.Row("SELECT seq FROM audit_entries WHERE id = ?", e.ID).Scan(&seq)
		if err == nil || !errors.Is(err, db.ErrNoRows) {
			return err
		}
	}
	if e.At.IsZero() {
		e.At = time.Now()
	}
	for _, text := range []*string{&e.Actor, &e.Role, &e.Address, &e.Action, &e.Kind, &e.Object} {
		*text = fleetapi.CleanText(*text, maxText)
	}
	if e.Actor == "" || e.Action == "" {
		return errors.New("record in audit log: actor or action is missing")
	}
	row := row{Numbered: Numbered{Entry: e}, at: e.At.UnixMicro(), before: fields(e.Before), after: fields(e.After)}
	var previous []byte
	if err := tx.Row("UPDATE audit_head SET seq = seq + 1 WHERE one = 1 RETURNING seq, hash").Scan(&row.Seq, &previous); err != nil {
		return fmt.Errorf("record in audit log: %w", err)
	}
	row.hash = l.chain(previous, row)
	if _, err := tx.Exec("UPDATE audit_head SET hash = ? WHERE one = 1", row.hash); err != nil {
		return fmt.Errorf("record in audit log: %w", err)
	}
	if _, err := tx.Exec(`INSERT INTO audit_entries (`+columns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		row.Seq, e.ID, row.at, e.Actor, e.Role, e.Address, e.Action, e.Kind, e.Object, row.before, row.after, row.hash); err != nil {
		return fmt.Errorf("record in audit log: %w", err)
	}
	tx.Notify(Topic, strconv.FormatInt(row.Seq, 10))
	return nil
}

const columns = "seq, id, at, actor, role, address, action, kind, object, before, after, hash"

// row is an entry as it is stored, which is also what its hash covers.
type row struct {
	Numbered
	at            int64
	before, after string // JSON with sorted keys
	hash          []byte
}

// fields makes the text of what changed, bounded.
func fields(of map[string]string) string {
	clean := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(of)) { // the same ones each time
		if len(clean) == maxFields {
			break
		}
		clean[fleetapi.CleanText(key, maxText)] = fleetapi.CleanText(of[key], maxText)
	}
	text, err := json.Marshal(clean)
	if err != nil {
		panic(err) // a map of texts has no such error
	}
	return string(text)
}

// chain is the hash of a row: every part is preceded by its length, so that no
// two rows are the same bytes.
func (l *Log) chain(previous []byte, r row) []byte {
	mac := hmac.New(sha256.New, l.key)
	part := func(b []byte) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(b)))
		mac.Write(size[:])
		mac.Write(b)
	}
	part(previous)
	part(strconv.AppendInt(nil, r.Seq, 10))
	part(strconv.AppendInt(nil, r.at, 10))
	for _, text := range []string{r.ID, r.Actor, r.Role, r.Address, r.Action, r.Kind, r.Object, r.before, r.after} {
		part([]byte(text))
	}
	return mac.Sum(nil)
}

// Query says which entries are wanted. Empty fields ask for all.
type Query struct {
	Actor   string
	Object  string
	Action  string    // this one, or with a dot at the end all that begin so: "account."
	Address string    // client address
	From    time.Time // not before
	Until   time.Time // before
	Cursor  string    // as returned for the page before; empty: the newest entries
	Limit   int       // 1 to [MaxPage]; 0: 50
}

// MaxPage is the most entries of a page.
const MaxPage = 500

// Search returns entries, the newest first, and the cursor of the next page,
// empty when there is none. Entries recorded meanwhile shift no page.
func (l *Log) Search(ctx context.Context, q Query) ([]Numbered, string, error) {
	if q.Limit < 0 || q.Limit > MaxPage {
		return nil, "", usage("limit is not between 1 and %d", MaxPage)
	}
	if q.Limit == 0 {
		q.Limit = 50
	}
	where, args := []string{"1 = 1"}, []any{}
	also := func(condition string, values ...any) {
		where, args = append(where, condition), append(args, values...)
	}
	for _, text := range []string{q.Actor, q.Object, q.Action, q.Address} {
		if len(text) > maxText || text != fleetapi.CleanText(text, maxText) {
			return nil, "", usage("a text to search for is too long or has control characters")
		}
	}
	if q.Cursor != "" {
		seq, err := strconv.ParseInt(q.Cursor, 10, 64)
		if err != nil || seq < 1 {
			return nil, "", usage("cursor is not one of this log")
		}
		also("seq < ?", seq)
	}
	if q.Actor != "" {
		also("actor = ?", q.Actor)
	}
	if q.Object != "" {
		also("object = ?", q.Object)
	}
	if q.Address != "" {
		also("address = ?", q.Address)
	}
	if prefix, ok := strings.CutSuffix(q.Action, "."); ok {
		also(`action LIKE ? ESCAPE '\'`, strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`).Replace(prefix)+".%")
	} else if q.Action != "" {
		also("action = ?", q.Action)
	}
	if !q.From.IsZero() {
		also("at >= ?", q.From.UnixMicro())
	}
	if !q.Until.IsZero() {
		also("at < ?", q.Until.UnixMicro())
	}
	var found []Numbered
	err := l.db.Read(ctx, func(tx *db.Tx) error {
		rows, err := read(tx, strings.Join(where, " AND ")+" ORDER BY seq DESC LIMIT ?", append(args, q.Limit+1)...)
		for _, r := range rows {
			found = append(found, r.Numbered)
		}
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("search audit log: %w", err)
	}
	if len(found) <= q.Limit {
		return found, "", nil
	}
	found = found[:q.Limit]
	return found, strconv.FormatInt(found[q.Limit-1].Seq, 10), nil
}

func read(tx *db.Tx, where string, args ...any) ([]row, error) {
	rows, err := tx.Query("SELECT "+columns+" FROM audit_entries WHERE "+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []row
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.Seq, &r.ID, &r.at, &r.Actor, &r.Role, &r.Address, &r.Action, &r.Kind, &r.Object, &r.before, &r.after, &r.hash); err != nil {
			return nil, err
		}
		r.At = time.UnixMicro(r.at).UTC()
		if errors.Join(json.Unmarshal([]byte(r.before), &r.Before), json.Unmarshal([]byte(r.after), &r.After)) != nil {
			r.Before, r.After = nil, nil // somebody wrote to the table; Verify says where
		}
		found = append(found, r)
	}
	return found, rows.Err()
}

// Head is the end of the log.
func (l *Log) Head(ctx context.Context) (Head, error) {
	var (
		head Head
		hash []byte
	)
	err := l.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Row("SELECT seq, hash FROM audit_head WHERE one = 1").Scan(&head.Seq, &hash)
	})
	head.Hash = hex.EncodeToString(hash)
	return head, err
}

// BrokenError reports that the log is not as it was written.
type BrokenError struct {
	Seq int64 // the first entry that is not right
	Why string
}

// Error implements error.
func (e *BrokenError) Error() string {
	return fmt.Sprintf("audit log is broken at entry %d: %s", e.Seq, e.Why)
}

// Verify reads the whole log and reports the first place where it was changed as
// a [BrokenError]. Heads written down earlier must lie on it. It returns how many
// entries are right.
func (l *Log) Verify(ctx context.Context, known ...Head) (int64, error) {
	end, err := l.Head(ctx)
	if err != nil {
		return 0, fmt.Errorf("verify audit log: %w", err)
	}
	broken := func(seq int64, why string) error {
		return &croft.Error{Kind: croft.KindInvalid, Err: &BrokenError{seq, why}, Remedy: "compare it with a backup of the database"}
	}
	wanted := map[int64]string{}
	for _, head := range append(known, end) {
		if was, ok := wanted[head.Seq]; ok && was != head.Hash {
			return 0, broken(head.Seq, "it is another entry than the one written down")
		}
		wanted[head.Seq] = head.Hash
	}
	var previous []byte
	const page = 1000
	for last := int64(0); last < end.Seq; {
		var rows []row
		err := l.db.Read(ctx, func(tx *db.Tx) (err error) {
			rows, err = read(tx, "seq > ? AND seq <= ? ORDER BY seq LIMIT ?", last, end.Seq, page)
			return err
		})
		if err != nil {
			return last, fmt.Errorf("verify audit log: %w", err)
		}
		for _, r := range rows {
			switch hash := l.chain(previous, r); {
			case r.Seq != last+1:
				return last, broken(last+1, "it is missing")
			case !hmac.Equal(hash, r.hash):
				return last, broken(r.Seq, "it was changed")
			case wanted[r.Seq] != "" && wanted[r.Seq] != hex.EncodeToString(hash):
				return last, broken(r.Seq, "it is another entry than the one written down")
			}
			previous, last = r.hash, r.Seq
		}
		if len(rows) == 0 {
			return last, broken(last+1, "it is missing")
		}
	}
	for _, head := range known {
		if head.Seq > end.Seq {
			return end.Seq, broken(end.Seq+1, "entries that were there are missing at the end")
		}
	}
	return end.Seq, nil
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}
