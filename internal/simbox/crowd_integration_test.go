//go:build integration

package simbox

import (
	"testing"
	"time"
)

func TestTwoThousandBoxesComeBackWithoutAStorm(t *testing.T) { comeBack(t, 2000) }

func TestNothingIsLostOrDoubledForLong(t *testing.T) {
	loseNothing(t,
		trouble{"the fleet is away for an hour", 15 * time.Second, func(w *world, _ *running) { w.away(time.Hour) }},
		trouble{"the database is away for five minutes", 2 * time.Second, func(w *world, _ *running) {
			w.refuseAll(errAway)
			time.Sleep(5 * time.Minute)
			w.refuseAll(nil)
		}},
	)
}
