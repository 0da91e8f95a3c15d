package bundle

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const (
	atOnce      = 200
	auditEvery  = 5 * time.Second
	expireEvery = time.Minute
	sweepEvery  = time.Hour
	orphanAfter = time.Hour // since its upload was complete
)

// Run delivers audit entries, deletes bundles whose time is over and blobs that
// belong to none, on one replica at a time, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	return s.db.Lead(ctx, "bundle", func(ctx context.Context) error {
		audit, expire, sweep := time.NewTicker(auditEvery), time.NewTicker(expireEvery), time.NewTicker(sweepEvery)
		defer audit.Stop()
		defer expire.Stop()
		defer sweep.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-audit.C:
				s.try(ctx, "deliver audit entries", s.deliverAudit)
			case <-expire.C:
				s.try(ctx, "delete old bundles", s.expire)
			case <-sweep.C:
				s.try(ctx, "delete blobs of no bundle", s.sweepOrphans)
			}
		}
	})
}

// try does one round of a loop; the next one tries again what it could not do.
func (s *Store) try(ctx context.Context, work string, do func(context.Context) error) {
	if err := do(ctx); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("work on bundles was not done", "work", work, "error", err)
	}
}

// expire deletes the bundles whose time is over.
func (s *Store) expire(ctx context.Context) error {
	for {
		n, err := s.delete(ctx, byFleet, "bundle.expire",
			"id IN (SELECT id FROM bundle_bundles WHERE created <= ? ORDER BY created, id LIMIT ?)", db.Micros(time.Now().Add(-s.cfg.Keep)), atOnce)
		if err != nil || n < atOnce {
			return err
		}
	}
}

// sweepOrphans deletes the blobs of uploads that were cut off between blob and
// record, and of bundles whose blob could not be deleted with them. Its id says
// how old one is.
func (s *Store) sweepOrphans(ctx context.Context) error {
	var ids []any
	for item, err := range s.cfg.Blobs.List(ctx, folder) {
		if err != nil {
			return err
		}
		id, err := fleetapi.ParseID(prefix, strings.TrimPrefix(item.Key, folder))
		if err != nil || time.Since(madeAt(id)) < orphanAfter {
			continue
		}
		if ids = append(ids, id); len(ids) < atOnce {
			continue
		}
		if err := s.dropUnknown(ctx, ids); err != nil {
			return err
		}
		ids = nil
	}
	return s.dropUnknown(ctx, ids)
}

// madeAt is when an id was made.
func madeAt(id string) time.Time {
	return ulid.MustParse(id[len(prefix)+1:]).Timestamp()
}

// dropUnknown deletes the blobs of ids that are not on the list.
func (s *Store) dropUnknown(ctx context.Context, ids []any) error {
	if len(ids) == 0 {
		return nil
	}
	known := map[string]bool{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		clear(known)
		found, err := s.find(tx, "id IN (?"+strings.Repeat(", ?", len(ids)-1)+")", ids...)
		for _, i := range found {
			known[i.ID] = true
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range ids {
		if id := id.(string); !known[id] {
			if err := s.cfg.Blobs.Delete(ctx, folder+id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) deliverAudit(ctx context.Context) error {
	type stored struct{ id, body string }
	for {
		var found []stored
		err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
			found, err = db.All(tx, func(scan db.Scan) (e stored, err error) { return e, scan(&e.id, &e.body) },
				"SELECT id, body FROM bundle_audit ORDER BY id LIMIT ?", atOnce)
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
			err := s.db.Write(ctx, func(tx *db.Tx) error {
				_, err := tx.Exec("DELETE FROM bundle_audit WHERE id = ?", e.id)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
}
