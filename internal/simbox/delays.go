package simbox

import (
	"math"
	"time"
)

// Delays counts by how long something took, in steps of a fifth: two that were taken
// one after another differ by what happened in between.
type Delays [delaySteps]int64

const (
	delaySteps  = 72  // the last is all beyond three minutes
	stepsDouble = 4.0 // from one time to twice as long
)

// delayStep is the first step that is no shorter.
func delayStep(took time.Duration) int {
	if took <= time.Millisecond {
		return 0
	}
	return min(delaySteps-1, int(math.Ceil(stepsDouble*math.Log2(float64(took)/float64(time.Millisecond)))))
}

// Of is what a share of them took at most, rounded up to a step; 0: there are none.
func (d *Delays) Of(share float64) time.Duration {
	var all, sum int64
	for _, n := range d {
		all += n
	}
	want := max(1, int64(math.Ceil(share*float64(all))))
	for step, n := range d {
		if sum += n; sum >= want {
			return time.Duration(float64(time.Millisecond) * math.Exp2(float64(step)/stepsDouble)).Round(100 * time.Microsecond)
		}
	}
	return 0
}
