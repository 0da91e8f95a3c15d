package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/timeseries"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// topicWipe tells replicas that readings are to be removed.
const topicWipe = "fleet_wipe"

// wiper removes the readings of boxes whose owner has left, those too that a box has
// kept and brings later: what a box did in one household is not the next one's to see.
// Each replica has a store of readings of its own, and a file beside it that says up to
// which order it has done this.
type wiper struct {
	db     *db.DB
	series *timeseries.Store
	mark   string // file

	mu   sync.Mutex
	left map[croft.DeviceID]time.Time // guarded by mu; when the last owner left
}

func newWiper(d *db.DB, series *timeseries.Store, dir string) *wiper {
	return &wiper{db: d, series: series, mark: filepath.Join(dir, "wiped"), left: map[croft.DeviceID]time.Time{}}
}

// keeps is those samples of a box that are not from the time of an owner who has left.
func (w *wiper) keeps(id croft.DeviceID, samples []timeseries.Sample) []timeseries.Sample {
	w.mu.Lock()
	left := w.left[id]
	w.mu.Unlock()
	return slices.DeleteFunc(samples, func(s timeseries.Sample) bool { return s.At.Before(left) })
}

// order notes that readings of a box from before an instant are to be removed.
func (w *wiper) order(tx *db.Tx, id croft.DeviceID, before time.Time) error {
	tx.Notify(topicWipe, "")
	_, err := tx.Exec(`INSERT INTO fleet_wiped (device, before, n) VALUES (?, ?, (SELECT COALESCE(MAX(n), 0) + 1 FROM fleet_wiped))
		ON CONFLICT (device) DO UPDATE SET before = excluded.before, n = excluded.n WHERE excluded.before > fleet_wiped.before`, string(id), db.Micros(before))
	return err
}

// run carries orders out, those that came while this replica was away too.
func (w *wiper) run(ctx context.Context) error {
	told := w.db.Listen(ctx, topicWipe)
	for {
		if err := w.carryOut(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-told:
		}
	}
}

func (w *wiper) carryOut(ctx context.Context) error {
	text, err := os.ReadFile(w.mark)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read up to where readings were removed: %w", err)
	}
	done, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // unreadable: all of them again, which is harmless
	orders, err := w.read(ctx)
	if err != nil {
		return err
	}
	for _, o := range orders {
		if o.n <= done {
			continue
		}
		if err := w.series.Delete(ctx, croft.DeviceID(o.device), db.Instant(o.before)); err != nil {
			return fmt.Errorf("remove readings of %s: %w", o.device, err)
		}
		if err := atomicfile.WriteFile(w.mark, []byte(strconv.FormatInt(o.n, 10)+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// wipe is an order: what a box read before an instant goes.
type wipe struct {
	device string
	before int64
	n      int64
}

// read is all orders, the oldest first; from now on nothing is stored against them.
func (w *wiper) read(ctx context.Context) (orders []wipe, err error) {
	err = w.db.Read(ctx, func(tx *db.Tx) (err error) {
		orders, err = db.All(tx, func(scan db.Scan) (o wipe, err error) {
			err = scan(&o.device, &o.before, &o.n)
			return o, err
		}, "SELECT device, before, n FROM fleet_wiped ORDER BY n")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read which readings to remove: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range orders {
		w.left[croft.DeviceID(o.device)] = db.Instant(o.before)
	}
	return orders, nil
}
