// Package bundle keeps the support bundles that boxes upload when a job asks them
// to: zip files with logs and facts, for those who help the owner.
//
//	s, err := bundle.New(ctx, bundle.Config{DB: d, Blobs: blobs, Jobs: jobs, Audit: log})
//	go s.Run(ctx)                                  // on every replica
//	mux.Handle("/v1/bundles/", s.DeviceHandler(judge)) // PUT /v1/bundles/{job}
//	list, err := s.List(ctx, device)
//	reading, err := s.Open(ctx, id)
//
// Who may read or delete a bundle is for the caller to decide, and to write down
// who has read one.
//
// # What a bundle is held to
//
// One for each job, and only while the job waits for it. At most MaxBytes, 200
// entries and 64 MiB unpacked, all of which is unpacked once before it is kept:
// so sizes and checksums are true. No links, no absolute names, no "..".
//
// # Secrets
//
// A box puts none into its bundle. As a second line of defence [Store.Open] looks
// for what should not be there (private keys, tokens, claim codes, e-mail
// addresses and the like) and masks it in what it gives out; MASKED.txt then says
// where and what. An entry that is not text is left out if such a thing is in it.
// What is packed inside an entry once more is not looked into, and neither is
// UTF-16. What was uploaded stays as it was in the blobs.
//
// # What survives what
//
//   - The fleet is killed, or blobs or database are away: a box that was told yes
//     has its bundle stored. Otherwise it uploads again. What was stored and not
//     recorded is removed after an hour.
//   - The box uploads again: the same bytes are the bundle that is there, others
//     are refused.
//   - The disk of the blobs is lost: the list stays, and Open says so.
//   - Bundles end after Keep, when a box has more than PerDevice (the oldest go),
//     and when somebody deletes them. Then they are gone from the list at once,
//     and from the blobs at once or, if those are away, within two hours of their
//     return.
package bundle

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/blob"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Topic is what listeners of the database are told under: ids of bundles that
// came or went.
const Topic = "bundle"

const (
	prefix  = fleetapi.Prefix("bun")
	folder  = "bundle/" // of the blobs
	byFleet = "fleet"
)

// Jobs is what a bundle must know of jobs.
type Jobs interface {
	// Expected is nil if the job exists, is of this device and of kind bundle,
	// and has not ended. Otherwise its error is of kind not_found, or refused if
	// the job has ended.
	Expected(ctx context.Context, device croft.DeviceID, job string) error
}

// Audit is told of every bundle that people, or time, deleted. An entry may come
// twice.
type Audit interface {
	Record(context.Context, Entry) error
}

// Entry is one change.
type Entry struct {
	ID     string            `json:"id"` // evt_…, the same if it comes again
	At     time.Time         `json:"at"`
	By     string            `json:"by"`     // account; "fleet" for what time did
	Action string            `json:"action"` // "bundle.delete", "bundle.expire", "bundle.evict"
	Device croft.DeviceID    `json:"device"`
	Before map[string]string `json:"before,omitempty"`
	After  map[string]string `json:"after,omitempty"`
}

// Config is copied by [New] and never changed afterwards.
type Config struct {
	DB        *db.DB        // required
	Blobs     blob.Store    // required; what lies under "bundle/" is this package's
	Jobs      Jobs          // required
	Audit     Audit         // required
	Keep      time.Duration // how long a bundle is kept; default 30 days
	MaxBytes  int64         // of one upload; default 8 MiB
	MaxTotal  int64         // bytes of all bundles together; default 20 GiB
	PerDevice int           // bundles kept of one box; default 20
	Dir       string        // for temporary files; default [os.TempDir]
	Log       *slog.Logger  // nil discards
}

// Store is the bundles of a fleet. All methods may be called from any goroutine.
type Store struct {
	cfg   Config
	db    *db.DB
	gate  gate
	reads chan struct{} // a place for each bundle being made ready for reading
}

// New brings the tables up to date.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.DB == nil || cfg.Blobs == nil || cfg.Jobs == nil || cfg.Audit == nil {
		return nil, errors.New("open bundle store: database, blobs, jobs or audit log is missing")
	}
	cfg.Keep = cmp.Or(cfg.Keep, 30*24*time.Hour)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 8<<20)
	cfg.MaxTotal = cmp.Or(cfg.MaxTotal, 20<<30)
	cfg.PerDevice = cmp.Or(cfg.PerDevice, 20)
	if cfg.Keep < 0 || cfg.MaxBytes < 0 || cfg.MaxTotal < 0 || cfg.PerDevice < 0 {
		return nil, errors.New("open bundle store: a limit is negative")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open bundle store: %w", err)
	}
	if err := cfg.DB.Migrate(ctx, "bundle", files); err != nil {
		return nil, err
	}
	return &Store{cfg: cfg, db: cfg.DB, gate: gate{devices: map[croft.DeviceID]*visitor{}}, reads: make(chan struct{}, readsAtOnce)}, nil
}

// Info is what is known of a bundle.
type Info struct {
	ID      string // bun_…
	Device  croft.DeviceID
	Job     string
	Digest  string // SHA-256 of what the box uploaded, in hex
	Size    int64  // bytes the box uploaded
	Entries int
	Created time.Time
	Expires time.Time
}

// ErrNoBundle reports that there is no such bundle.
var ErrNoBundle = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such bundle")}

const columns = "id, device, job, digest, size, entries, created"

func (s *Store) scan(scan db.Scan) (Info, error) {
	var i Info
	var created int64
	err := scan(&i.ID, &i.Device, &i.Job, &i.Digest, &i.Size, &i.Entries, &created)
	i.Created = db.Instant(created)
	i.Expires = i.Created.Add(s.cfg.Keep)
	return i, err
}

// find is the bundles that a condition finds, newest first.
func (s *Store) find(tx *db.Tx, where string, args ...any) ([]Info, error) {
	return db.All(tx, s.scan, "SELECT "+columns+" FROM bundle_bundles WHERE "+where+" ORDER BY id DESC", args...)
}

// Info is one bundle.
func (s *Store) Info(ctx context.Context, id string) (Info, error) {
	var found []Info
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		found, err = s.find(tx, "id = ?", id)
		return err
	})
	if err == nil && len(found) == 0 {
		err = ErrNoBundle
	}
	if err != nil {
		return Info{}, err
	}
	return found[0], nil
}

// List is the bundles of a box, newest first; at most PerDevice.
func (s *Store) List(ctx context.Context, device croft.DeviceID) ([]Info, error) {
	var found []Info
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		found, err = s.find(tx, "device = ?", string(device))
		return err
	})
	return found, err
}

// Delete deletes a bundle. by is the account that did it.
func (s *Store) Delete(ctx context.Context, by, id string) error {
	n, err := s.delete(ctx, by, "bundle.delete", "id = ?", id)
	if err == nil && n == 0 {
		return ErrNoBundle
	}
	return err
}

// DeleteDevice deletes all bundles of a box, as when it leaves the fleet or its
// owner.
func (s *Store) DeleteDevice(ctx context.Context, device croft.DeviceID) error {
	_, err := s.delete(ctx, byFleet, "bundle.delete", "device = ?", string(device))
	return err
}

// delete deletes what a condition finds, and says how many that were.
func (s *Store) delete(ctx context.Context, by, action, where string, args ...any) (int, error) {
	var gone []Info
	err := s.db.Write(ctx, func(tx *db.Tx) (err error) {
		if gone, err = s.find(tx, where, args...); err != nil {
			return err
		}
		return forget(tx, by, action, gone)
	})
	if err != nil {
		return 0, err
	}
	s.dropBlobs(ctx, gone)
	return len(gone), nil
}

// forget takes bundles off the list.
func forget(tx *db.Tx, by, action string, gone []Info) error {
	for _, i := range gone {
		if _, err := tx.Exec("DELETE FROM bundle_bundles WHERE id = ?", i.ID); err != nil {
			return err
		}
		tx.Notify(Topic, i.ID)
		entry := Entry{
			ID: fleetapi.NewID(fleetapi.PrefixEvent), At: fleetapi.Truncate(time.Now()), By: by, Action: action, Device: i.Device,
			Before: map[string]string{"bundle": i.ID, "job": i.Job, "digest": i.Digest},
		}
		body, err := json.Marshal(entry)
		if err != nil {
			return fmt.Errorf("write audit entry: %w", err)
		}
		if _, err := tx.Exec("INSERT INTO bundle_audit (id, body) VALUES (?, ?)", entry.ID, string(body)); err != nil {
			return err
		}
	}
	return nil
}

// dropBlobs removes the blobs of bundles that are off the list. What it cannot
// remove, sweepOrphans will.
func (s *Store) dropBlobs(ctx context.Context, gone []Info) {
	for _, i := range gone {
		if err := s.cfg.Blobs.Delete(ctx, folder+i.ID); err != nil {
			s.cfg.Log.Warn("blob of a deleted bundle stays for now", "bundle", i.ID, "error", err)
		}
	}
}
