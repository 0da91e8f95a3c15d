package fleet

import (
	"io/fs"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

func TestAFleetDoesNotRunWithAClockThatCannotBeRight(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		own, err := fs.Sub(migrations, "migrations")
		if err == nil {
			err = d.Migrate(t.Context(), "fleet", own)
		}
		if err != nil {
			t.Fatal(err)
		}
		now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
		check := func(at time.Time, trust, want bool) {
			t.Helper()
			if err := checkClock(t.Context(), d, at, trust); (err == nil) != want || err != nil && croft.KindOf(err) != croft.KindRefused {
				t.Errorf("clock at %v, trusted %v: %v", at, trust, err)
			}
		}
		check(now, false, true)                                          // the first start
		check(now.Add(-time.Hour), false, true)                          // a little late
		check(time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC), false, false) // no battery
		check(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), false, false) //
		check(now.Add(clockAhead-time.Hour), false, true)                // a year in a drawer
		check(now, false, false)                                         // then back
		check(now, true, true)                                           // somebody has looked
		check(now.Add(time.Minute), false, true)                         //
	})
}

func TestAStepOfTheClockIsSeen(t *testing.T) {
	last := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		now  time.Time
		want bool // that it is fine
	}{
		{last.Add(10 * time.Minute), true},
		{last.Add(-time.Hour), true},
		{last.Add(48 * time.Hour), true}, // it was asleep
		{time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), false},
		{time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC), false},
	} {
		if err := stepped(last, tc.now, 10*time.Minute); (err == nil) != tc.want {
			t.Errorf("clock at %v: %v", tc.now, err)
		}
	}
}
