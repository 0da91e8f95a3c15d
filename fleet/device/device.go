// Package device is the fleet's knowledge of its boxes: who they are, whose they
// are, what they run, what happened to them and what is wanted of them. Jobs are
// package job's, readings package timeseries'.
//
//	s, err := device.New(ctx, device.Config{DB: d, ClaimKey: key, …})
//	go s.Run(ctx)                                  // on every replica
//	refused, err := s.Receive(ctx, messages)       // from ingest
//	found, err := s.StartClaim(ctx, who, typed)    // the owner scanned the code
//	box, err := s.ConfirmClaim(ctx, owner, id)     // the owner tapped "This is mine"
//
// Whether somebody may do something at all is for the caller (fleet/auth). But
// every method that acts for somebody takes an [Actor], and for one who is not of
// the staff other people's boxes do not exist.
//
// # Promises
//
//   - A box has one owner at most. Nothing that a box says or does changes that:
//     enrolling again, a factory reset, another serial number.
//   - What is to be published ([Publisher]) or told to the audit log ([Audit]) is
//     stored in the transaction that decides it, and handed over until that
//     succeeded. So both may get it twice: the version of a document, and the ID
//     of an entry, say so.
//   - Messages delivered twice or out of order change nothing: [Store.Receive]
//     returns after what it took is stored. Events are known by their number, for as
//     long as they are kept (400 days and 20,000 of a box; a spool is sent out within
//     minutes of a connection), lines of a log by time and text.
//   - Several replicas work on one database. What only one may do, timers and
//     deliveries, the leader among them does; claims are right without it, for
//     every method looks at the clock itself.
//
// What survives a kill -9: everything but heartbeats of the last ten seconds.
//
// Nothing grows without end: of a box are kept [Config.Events] events and
// [Config.LogLines] lines of its log, and it gets 200 certificates a day at most.
//
// # Claims
//
// The claim code on the box's screen has 40 bits, the secret on its sticker 80,
// and an owner types nothing else, so a guess is right if it fits any box that
// waits: of 100,000 of them one in 2^40/100,000, or 11 million guesses for one
// box. In any hour, counting different wrong codes (who repeats one, while the
// box still boots, learns nothing new):
//
//	5    for one account
//	10   for one client address (IPv6: its /64), all accounts together
//	5    with the same first half, so that half a code on a photo is worth little:
//	     2^20 others at 5 an hour are 24 years
//	100  in the whole fleet: 876,000 a year, 0.08 boxes a year for somebody with
//	     thousands of accounts and addresses who never stops, and he is seen
//
// A fleet that hands out 100,000 boxes in a year sees about 11 claims an hour and
// perhaps 3 wrong codes. Once a limit is reached a code still works with a proof
// of presence: for boxes that are online with the same public address as the one
// who types, and there instead of the code also the words on the box's page
// (three, of 30 bits at least; the box tells them in the fact claim_words). 5 of
// those tries an account and 10 an address an hour: for ten boxes behind one
// carrier's NAT, one in 2^30/10, and 87,600 tries a year, that is 0.0008 boxes a
// year for a neighbour. So nobody can shut an owner out who is at home.
//
// Secrets of 80 bits are counted by account and address only. Stored is
// [enroll.SealedClaim], never a code. A code is spent by the claim it made: a
// photo of the sticker of a box that was given up opens nothing, its page does.
package device

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

//go:embed migrations/*.sql
var migrations embed.FS

// What listeners of the database are told.
const (
	Topic        = "device"         // ids of boxes that changed, with spaces between them; empty: read again
	TopicRevoked = "device_revoked" // the box that was shut out: end its connections
)

// Silence is how long a box says nothing before it counts as offline. Boxes
// speak every minute.
const Silence = 3 * time.Minute

// Audit is told of every change. An entry may come twice.
type Audit interface {
	Record(context.Context, Entry) error
}

// Entry is one change.
type Entry struct {
	ID     string            `json:"id"` // evt_…, the same if it comes again
	At     time.Time         `json:"at"`
	By     string            `json:"by"`     // account; "fleet" for what time did, "box" for what the box did
	Action string            `json:"action"` // "claim.confirm"
	Device croft.DeviceID    `json:"device,omitempty"`
	Before map[string]string `json:"before,omitempty"` // what changed, as it was
	After  map[string]string `json:"after,omitempty"`
}

// Publisher hands a payload to the broker, and returns nil once that has it.
type Publisher interface {
	Publish(ctx context.Context, device croft.DeviceID, payload fleetapi.Payload) error
}

// Owners finds people.
type Owners interface {
	// FindOwners is the accounts whose e-mail address is, or begins with, text.
	FindOwners(ctx context.Context, text string) ([]string, error)
}

// Actor is for whom a method acts.
type Actor struct {
	ID    string // account; it stands in the audit log
	Staff bool   // may see and change boxes of others; false: its own boxes only
}

const (
	byFleet = "fleet"
	byBox   = "box"
)

// Config is copied by [New] and never changed afterwards.
type Config struct {
	DB        *db.DB              // required
	ClaimKey  *enroll.ClaimKey    // required
	Revoked   *enroll.Revocations // required; kept up to date with the database
	Publisher Publisher           // required
	Audit     Audit               // required
	Owners    Owners              // nil: search finds nothing by e-mail address
	Log       *slog.Logger        // nil discards
	Interval  time.Duration       // between readings, of boxes with no interval of their own; default 10 s
	KeepLog   time.Duration       // lines of boxes; default 7 days
	KeepEvent time.Duration       // events; default 400 days
	LogLines  int                 // kept of one box at most; default 5,000
	Events    int                 // kept of one box at most; default 20,000
}

// Store is the boxes of a fleet. All methods may be called from any goroutine.
type Store struct {
	cfg Config
	db  *db.DB
	log *slog.Logger

	mu      sync.Mutex
	seen    map[croft.DeviceID]time.Time // guarded by mu; heartbeats that are not stored yet
	touched map[croft.DeviceID]bool      // guarded by mu; boxes whose change nobody was told of
}

// New brings the tables up to date and reads who is revoked.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.DB == nil || cfg.ClaimKey == nil || cfg.Revoked == nil || cfg.Publisher == nil || cfg.Audit == nil {
		return nil, errors.New("open device store: database, claim key, revocations, publisher or audit log is missing")
	}
	cfg.Interval = cmp.Or(cfg.Interval, 10*time.Second)
	cfg.KeepLog = cmp.Or(cfg.KeepLog, 7*24*time.Hour)
	cfg.KeepEvent = cmp.Or(cfg.KeepEvent, 400*24*time.Hour)
	cfg.LogLines = cmp.Or(cfg.LogLines, 5000)
	cfg.Events = cmp.Or(cfg.Events, 20_000)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open device store: %w", err)
	}
	if err := cfg.DB.Migrate(ctx, "device", files); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, db: cfg.DB, log: cfg.Log, seen: map[croft.DeviceID]time.Time{}, touched: map[croft.DeviceID]bool{}}
	return s, s.readRevocations(ctx)
}

// ErrNoBox reports that there is no such box, or none of the actor's.
var ErrNoBox = ownership.ErrNoBox

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}

// tell writes a change down for the audit log, and tells live pages.
func tell(tx *db.Tx, by, action string, id croft.DeviceID, before, after map[string]string) error {
	for key := range maps.Clone(after) { // what did not change says nothing
		if before[key] == after[key] {
			before, after = maps.Clone(before), maps.Clone(after)
			delete(before, key)
			delete(after, key)
		}
	}
	entry := Entry{ID: fleetapi.NewID(fleetapi.PrefixEvent), At: fleetapi.Truncate(time.Now()), By: by, Action: action, Device: id, Before: before, After: after}
	body, err := json.Marshal(entry)
	if err != nil {
		return fmt.Errorf("write audit entry: %w", err)
	}
	tx.Notify(Topic, string(id))
	_, err = tx.Exec("INSERT INTO device_audit (id, body) VALUES (?, ?)", entry.ID, string(body))
	return err
}

// Run delivers what is stored, ends what ran out and keeps this replica's
// revocations, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	workers.Go(func() { s.keepRevocations(ctx) })
	workers.Go(func() { s.keepSeen(ctx) })
	return s.db.Lead(ctx, "device", s.lead)
}

// lead does what one replica does. Each work has a loop of its own: a broker that
// does not answer keeps nothing else waiting.
func (s *Store) lead(ctx context.Context) error {
	var loops sync.WaitGroup
	loops.Go(func() { s.every(ctx, time.Second, "deliver desired documents", s.deliverDesired) })
	loops.Go(func() { s.every(ctx, time.Second, "deliver audit entries", s.deliverAudit) })
	loops.Go(func() { s.every(ctx, time.Second, "end claims that ran out", s.endClaims) })
	loops.Go(func() { s.every(ctx, time.Minute, "delete old rows", s.sweep) })
	loops.Wait()
	return nil
}

func (s *Store) every(ctx context.Context, pause time.Duration, work string, do func(context.Context) error) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.try(ctx, work, do)
		}
	}
}

// try does one round of a loop; the next one tries again what it could not do.
func (s *Store) try(ctx context.Context, work string, do func(context.Context) error) {
	if err := do(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("work on boxes was not done", "work", work, "error", err)
	}
}

// keepSeen stores heartbeats every ten seconds, and tells live pages once a
// second which boxes changed by themselves: one notification for all of them.
func (s *Store) keepSeen(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			s.try(last, "store heartbeats", s.storeSeen)
			return
		case <-second.C:
		}
		s.try(ctx, "tell live pages", s.tellTouched)
		if n%10 == 0 {
			s.try(ctx, "store heartbeats", s.storeSeen)
		}
	}
}

func (s *Store) tellTouched(ctx context.Context) error {
	s.mu.Lock()
	touched := s.touched
	s.touched = map[croft.DeviceID]bool{}
	s.mu.Unlock()
	if len(touched) == 0 {
		return nil
	}
	var payload string // too many: read everything again
	if len(touched)*33 <= db.MaxPayload {
		ids := make([]string, 0, len(touched))
		for id := range touched {
			ids = append(ids, string(id))
		}
		slices.Sort(ids)
		payload = strings.Join(ids, " ")
	}
	return s.db.Write(ctx, func(tx *db.Tx) error { tx.Notify(Topic, payload); return nil })
}

const (
	seenAtOnce = 2000 // in a transaction
	seenInARow = 100  // in a statement
)

// storeSeen stores heartbeats. What cannot be stored is kept for the next time.
func (s *Store) storeSeen(ctx context.Context) error {
	s.mu.Lock()
	seen := s.seen
	s.seen = map[croft.DeviceID]time.Time{}
	s.mu.Unlock()
	ids := slices.Sorted(maps.Keys(seen)) // in one order on all replicas: fewer conflicts
	for len(ids) > 0 {
		some := ids[:min(len(ids), seenAtOnce)]
		err := s.db.Write(ctx, func(tx *db.Tx) error {
			for rows := range slices.Chunk(some, seenInARow) {
				if err := see(tx, rows, func(id croft.DeviceID) time.Time { return seen[id] }); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			for _, id := range ids {
				s.Seen(id, seen[id])
			}
			return err
		}
		ids = ids[len(some):]
	}
	return nil
}

// see notes signs of life, none of them older than what is stored.
func see(tx *db.Tx, ids []croft.DeviceID, at func(croft.DeviceID) time.Time) error {
	args := make([]any, 0, 2*len(ids))
	for _, id := range ids {
		args = append(args, string(id), db.Micros(at(id)))
	}
	_, err := tx.Exec("INSERT INTO device_seen (device, at) VALUES (?, ?)"+strings.Repeat(", (?, ?)", len(ids)-1)+`
		ON CONFLICT (device) DO UPDATE SET at = excluded.at WHERE excluded.at > device_seen.at`, args...)
	return err
}

func seeOne(tx *db.Tx, id croft.DeviceID, at time.Time) error {
	return see(tx, []croft.DeviceID{id}, func(croft.DeviceID) time.Time { return at })
}

const auditAtOnce = 100

func (s *Store) deliverAudit(ctx context.Context) error {
	for {
		type stored struct{ id, body string }
		var found []stored
		err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
			found, err = db.All(tx, func(scan db.Scan) (e stored, err error) { return e, scan(&e.id, &e.body) },
				"SELECT id, body FROM device_audit ORDER BY id LIMIT ?", auditAtOnce)
			return err
		})
		if err != nil || len(found) == 0 {
			return err
		}
		for _, e := range found {
			var entry Entry
			if err := json.Unmarshal([]byte(e.body), &entry); err != nil {
				return fmt.Errorf("read audit entry %s: %w", e.id, err)
			}
			if err := s.cfg.Audit.Record(ctx, entry); err != nil {
				return fmt.Errorf("tell audit log %s: %w", e.id, err)
			}
			if err := s.exec(ctx, "DELETE FROM device_audit WHERE id = ?", e.id); err != nil {
				return err
			}
		}
	}
}

// sweep deletes what is old, and mends what a clock of the fleet that was ahead has
// left in the future: boxes heard of then would be online for years, and tries count.
func (s *Store) sweep(ctx context.Context) error {
	now := time.Now()
	return errors.Join(
		s.exec(ctx, "DELETE FROM device_log WHERE received < ?", db.Micros(now.Add(-s.cfg.KeepLog))),
		s.exec(ctx, "DELETE FROM device_events WHERE received < ?", db.Micros(now.Add(-s.cfg.KeepEvent))),
		s.exec(ctx, "DELETE FROM device_tries WHERE at < ? OR at > ?", db.Micros(now.Add(-tryWindow)), db.Micros(now.Add(tryWindow))),
		s.exec(ctx, "UPDATE device_seen SET at = ? WHERE at > ?", db.Micros(now), db.Micros(now.Add(Silence))),
		s.exec(ctx, "DELETE FROM device_certificates WHERE not_after < ?", db.Micros(now.Add(-enroll.RenewGrace))),
		s.exec(ctx, "DELETE FROM device_revocations WHERE until <> 0 AND until < ?", db.Micros(now)),
	)
}

func (s *Store) exec(ctx context.Context, query string, args ...any) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(query, args...)
		return err
	})
}

func text(scan db.Scan) (s string, err error) { return s, scan(&s) }
