package ingest

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate makes the table in which [Seen] remembers.
func Migrate(ctx context.Context, d *db.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return d.Migrate(ctx, "ingest", files)
}

const (
	maxAbove    = 512 // bytes of bits above a gap: 4,096 messages
	maxJournals = 8   // of a device
)

// Seen reports whether a numbered message was stored before, and remembers it as
// stored from now on. A context calls it first in the transaction that also
// stores the message's effect, so that both happen or none:
//
//	already, err := seen(tx, device, event.Origin)
//	if err != nil || already { return err }
//	…
//
// One row for each journal says "all up to low, and these above it". Boxes number
// without gaps, so it is small and its memory has no end. Above a gap that never
// closes, as after a spool that was full, it knows 4,096 numbers; when more
// come, the gap counts as seen. Of a device's journals it knows the newest eight.
func Seen(tx *db.Tx, device croft.DeviceID, origin fleetapi.Origin) (already bool, err error) {
	var low, used int64
	var w window
	err = tx.Row("SELECT low, above, used FROM ingest_seen WHERE device = ? AND journal = ?",
		string(device), int64(origin.Journal)).Scan(&low, &w.above, &used)
	switch {
	case errors.Is(err, db.ErrNoRows):
		if used, err = newJournal(tx, device); err != nil {
			return false, err
		}
	case err != nil:
		return false, fmt.Errorf("read what is seen of %s: %w", device, err)
	}
	w.low = uint64(low)
	if w.take(origin.Seq) {
		return true, nil
	}
	if w.above == nil {
		w.above = []byte{}
	}
	_, err = tx.Exec(`INSERT INTO ingest_seen (device, journal, low, above, used) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (device, journal) DO UPDATE SET low = excluded.low, above = excluded.above`,
		string(device), int64(origin.Journal), int64(w.low), w.above, used)
	if err != nil {
		return false, fmt.Errorf("remember what is seen of %s: %w", device, err)
	}
	return false, nil
}

// newJournal makes room for another journal of the device, and is its place in
// their order.
func newJournal(tx *db.Tx, device croft.DeviceID) (int64, error) {
	var newest int64
	err := tx.Row("SELECT COALESCE(MAX(used), 0) FROM ingest_seen WHERE device = ?", string(device)).Scan(&newest)
	if err != nil {
		return 0, fmt.Errorf("read the journals of %s: %w", device, err)
	}
	if _, err := tx.Exec("DELETE FROM ingest_seen WHERE device = ? AND used <= ?",
		string(device), newest+1-maxJournals); err != nil {
		return 0, fmt.Errorf("forget old journals of %s: %w", device, err)
	}
	return newest + 1, nil
}

// Forget drops what is remembered of a device that has left the fleet for good.
func Forget(tx *db.Tx, device croft.DeviceID) error {
	if _, err := tx.Exec("DELETE FROM ingest_seen WHERE device = ?", string(device)); err != nil {
		return fmt.Errorf("forget what is seen of %s: %w", device, err)
	}
	return nil
}

// window is a set of numbers: all up to low, and low+1+i where bit i is set.
type window struct {
	low   uint64
	above []byte
}

// take adds a number and reports whether it was there.
func (w *window) take(n uint64) (already bool) {
	if n <= w.low {
		return true
	}
	if past := n - w.low; past > maxAbove*8 {
		w.drop(past - maxAbove*8)
	}
	at := n - w.low - 1
	for uint64(len(w.above)) <= at/8 {
		w.above = append(w.above, 0)
	}
	if w.above[at/8]>>(at%8)&1 == 1 {
		return true
	}
	w.above[at/8] |= 1 << (at % 8)
	w.settle()
	return false
}

// drop raises low by at least k, in whole bytes, whether its numbers were there
// or not.
func (w *window) drop(k uint64) {
	bytes := (k + 7) / 8
	w.low += bytes * 8
	w.above = w.above[min(bytes, uint64(len(w.above))):]
}

// settle raises low over the numbers that follow it without a gap.
func (w *window) settle() {
	for len(w.above) > 0 && w.above[0] == 0xff {
		w.low += 8
		w.above = w.above[1:]
	}
	k := 0
	for len(w.above) > 0 && w.above[0]>>k&1 == 1 {
		k++
	}
	if k == 0 {
		return
	}
	w.low += uint64(k)
	for i := range w.above {
		w.above[i] >>= k
		if i+1 < len(w.above) {
			w.above[i] |= w.above[i+1] << (8 - k)
		}
	}
	for len(w.above) > 0 && w.above[len(w.above)-1] == 0 {
		w.above = w.above[:len(w.above)-1]
	}
}
