package device

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// want makes a new version of what is desired of a box. It is computed from its
// row when it is published, so the newest is, and nothing in between.
func want(tx *db.Tx, id croft.DeviceID) error {
	_, err := tx.Exec("UPDATE device_boxes SET version = version + 1 WHERE id = ?", string(id))
	return err
}

const (
	desiredAtOnce  = 200
	brokenInARow   = 5
	brokenAnywhere = 50
)

// deliverDesired publishes what the broker does not have yet. A box that cannot
// be delivered to holds up no other; a broker that takes nothing is left alone
// until the next round. What was delivered is noted a page at a time.
func (s *Store) deliverDesired(ctx context.Context) error {
	var after string
	var broken []error
	row := 0
	for {
		var done []Box
		var boxes []Box
		err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
			boxes, err = db.All(tx, s.scanBox(time.Now()), "SELECT "+boxColumns+` FROM device_boxes b LEFT JOIN device_seen s ON s.device = b.id
				WHERE b.delivered < b.version AND b.id > ? ORDER BY b.id LIMIT ?`, after, desiredAtOnce)
			if err != nil {
				return err
			}
			return addLabels(tx, boxes)
		})
		if err != nil {
			return err
		}
		for _, box := range boxes {
			after = string(box.ID)
			if err := s.cfg.Publisher.Publish(ctx, box.ID, &box.Desired); err != nil {
				broken = append(broken, fmt.Errorf("publish to %s: %w", box.ID, err))
				if row++; row >= brokenInARow || len(broken) >= brokenAnywhere {
					return errors.Join(append(broken, s.delivered(ctx, done))...)
				}
				continue
			}
			row = 0
			done = append(done, box)
		}
		if err := s.delivered(ctx, done); err != nil || len(boxes) < desiredAtOnce {
			return errors.Join(append(broken, err)...)
		}
	}
}

// delivered notes what the broker has. A box that said hello meanwhile was told by
// who took its hello.
func (s *Store) delivered(ctx context.Context, boxes []Box) error {
	if len(boxes) == 0 {
		return nil
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		for _, box := range boxes {
			if _, err := tx.Exec("UPDATE device_boxes SET delivered = ? WHERE id = ? AND delivered < ?",
				int64(box.Desired.Version), string(box.ID), int64(box.Desired.Version)); err != nil {
				return err
			}
		}
		return nil
	})
}

// change sets one column of a box that its document, or its page, shows.
func (s *Store) change(ctx context.Context, actor Actor, id croft.DeviceID, action string, do func(tx *db.Tx, box Box) (before, after map[string]string, err error)) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		box, err := s.get(tx, actor, id)
		if err != nil {
			return err
		}
		before, after, err := do(tx, box)
		if err != nil || after == nil {
			return err
		}
		if err := want(tx, id); err != nil {
			return err
		}
		return tell(tx, actor.ID, action, id, before, after)
	})
}

// SetName gives a box the owner's name for it; empty takes it away.
func (s *Store) SetName(ctx context.Context, actor Actor, id croft.DeviceID, name string) error {
	name = strings.TrimSpace(name)
	if fleetapi.CleanText(name, fleetapi.MaxName) != name {
		return usage("name of a box: want at most %d bytes without control characters", fleetapi.MaxName)
	}
	return s.change(ctx, actor, id, "device.name", func(tx *db.Tx, box Box) (before, after map[string]string, err error) {
		if box.Name == name {
			return nil, nil, nil
		}
		if _, err := tx.Exec("UPDATE device_boxes SET name = ?, name_key = ? WHERE id = ?", name, strings.ToLower(name), string(id)); err != nil {
			return nil, nil, err
		}
		return map[string]string{"name": box.Name}, map[string]string{"name": name}, index(tx, id)
	})
}

// SetInterval says how often a box reads about itself; 0 is the fleet's default.
func (s *Store) SetInterval(ctx context.Context, staff Actor, id croft.DeviceID, every time.Duration) error {
	if every != 0 && (every < fleetapi.MinInterval || every > fleetapi.MaxInterval) {
		return usage("interval %v: want %v to %v", every, fleetapi.MinInterval, fleetapi.MaxInterval)
	}
	if !staff.Staff {
		return ErrNoBox
	}
	return s.change(ctx, staff, id, "device.interval", func(tx *db.Tx, box Box) (before, after map[string]string, err error) {
		_, err = tx.Exec("UPDATE device_boxes SET every_ms = ? WHERE id = ?", every.Milliseconds(), string(id))
		return map[string]string{"interval": box.Desired.Interval.String()}, map[string]string{"interval": every.String()}, err
	})
}

// SetRelease says which release a box should run; empty: the one it runs.
func (s *Store) SetRelease(ctx context.Context, staff Actor, id croft.DeviceID, release croft.Version) error {
	if !staff.Staff {
		return ErrNoBox
	}
	if release != "" {
		if _, err := croft.ParseVersion(string(release)); err != nil {
			return usage("%w", err)
		}
	}
	return s.change(ctx, staff, id, "device.release", func(tx *db.Tx, box Box) (before, after map[string]string, err error) {
		if box.Desired.Release == release {
			return nil, nil, nil
		}
		_, err = tx.Exec("UPDATE device_boxes SET wanted = ? WHERE id = ?", string(release), string(id))
		return map[string]string{"release": string(box.Desired.Release)}, map[string]string{"release": string(release)}, err
	})
}

const maxAlerts = 2000

// SetAlerts says in words what is wrong with a box now, empty if nothing is. The
// fleet's alert rules call it; it is their state, not a change of the box.
func (s *Store) SetAlerts(ctx context.Context, id croft.DeviceID, alerts string) error {
	alerts = fleetapi.CleanText(alerts, maxAlerts)
	return s.db.Write(ctx, func(tx *db.Tx) error {
		rows, err := tx.Exec("UPDATE device_boxes SET alerts = ? WHERE id = ? AND alerts <> ?", alerts, string(id), alerts)
		if rows > 0 {
			tx.Notify(Topic, string(id))
		}
		return err
	})
}
