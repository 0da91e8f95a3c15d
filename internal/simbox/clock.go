package simbox

import (
	"sync"
	"time"
)

// Clock is a box's clock, which may be wrong. The zero Clock is right and known to
// be. All methods may be called from any goroutine.
type Clock struct {
	mu      sync.Mutex
	ahead   time.Duration // guarded by mu
	unknown bool          // guarded by mu
}

// Now is what the clock says, and whether the box believes it.
func (c *Clock) Now() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead), !c.unknown
}

// Set sets the clock, from where it goes on; known is whether the box believes
// that a server set it.
func (c *Clock) Set(to time.Time, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead, c.unknown = time.Until(to), !known
}

// Correct sets the clock right, as NTP does.
func (c *Clock) Correct() { c.Set(time.Now(), true) }
