package db

import "time"

// What the tests look at from outside.
var (
	Again   = again
	Dollars = dollars
)

// Fate is what [Again] is told.
type Fate = fate

// The fates, for tests of [Again].
const (
	Final    = final
	Conflict = conflict
	Lost     = lost
)

// SetPace changes how leadership is kept.
func (d *DB) SetPace(beat, patience, lease time.Duration) { d.pace = pace{beat, patience, lease} }
