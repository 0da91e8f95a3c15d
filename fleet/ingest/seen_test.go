package ingest_test

import (
	"errors"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/ingest"
)

func TestSeenRemembersWithTheTransaction(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		check(t, ingest.Migrate(t.Context(), d))
		const a, b = croft.DeviceID("abcdefghijklmnopqrstuvwxyz234567"), croft.DeviceID("bbcdefghijklmnopqrstuvwxyz234567")
		full := errors.New("disk full")
		seen := func(device croft.DeviceID, journal, seq uint64, end error) (already bool) {
			t.Helper()
			err := d.Write(t.Context(), func(tx *db.Tx) (err error) {
				if already, err = ingest.Seen(tx, device, fleetapi.Origin{Journal: journal, Seq: seq}); err != nil {
					return err
				}
				return end
			})
			if !errors.Is(err, end) {
				t.Fatal(err)
			}
			return already
		}
		const top = ^uint64(0) // does not fit BIGINT as a number
		if seen(a, top, 1, full) || seen(a, top, 1, nil) {
			t.Error("a number is seen whose transaction failed")
		}
		if !seen(a, top, 1, nil) {
			t.Error("a number stored is not seen")
		}
		if seen(b, top, 1, nil) || seen(a, 5, 1, nil) || seen(a, top, top, nil) {
			t.Error("a number is seen of another device, journal or place")
		}
		if !seen(a, top, top, nil) {
			t.Error("the greatest number is not seen")
		}
		for journal := uint64(100); journal < 107; journal++ { // with 5 the newest eight
			seen(a, journal, 1, nil)
		}
		if !seen(a, 5, 1, nil) || seen(a, top, 1, nil) {
			t.Error("not the newest eight journals are remembered")
		}
		check(t, d.Write(t.Context(), func(tx *db.Tx) error { return ingest.Forget(tx, a) }))
		if seen(a, 106, 1, nil) || !seen(b, top, 1, nil) {
			t.Error("not the one device is forgotten")
		}
	})
}
