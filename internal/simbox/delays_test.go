package simbox

import (
	"testing"
	"time"
)

func TestDelays(t *testing.T) {
	var d Delays
	if d.Of(0.5) != 0 {
		t.Error("half of nothing took some time")
	}
	for took, n := range map[time.Duration]int64{0: 1, time.Millisecond: 49, 20 * time.Millisecond: 49, time.Hour: 1} {
		d[delayStep(took)] += n
	}
	for share, want := range map[float64]time.Duration{0: time.Millisecond, 0.5: time.Millisecond, 0.51: 22600 * time.Microsecond, 0.99: 22600 * time.Microsecond} {
		if got := d.Of(share); got != want {
			t.Errorf("a share of %v took %v, want %v", share, got, want)
		}
	}
	if d.Of(1) < 3*time.Minute {
		t.Errorf("the longest took %v", d.Of(1))
	}
}
