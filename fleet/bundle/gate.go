package bundle

import (
	"errors"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft"
)

// What one replica takes: a box may upload ten times at once, and then once each
// minute.
const (
	uploadsAtOnce   = 16
	uploadsOfDevice = 2 // at once
	uploadEvery     = time.Minute
	uploadBurst     = 10
	maxVisitors     = 20_000
)

// ErrTooFast reports that a box, or all of them together, upload too often.
var ErrTooFast = &croft.Error{
	Kind: croft.KindRefused, Err: errors.New("there are too many uploads"), Remedy: "try again in a few minutes",
}

// gate lets uploads in.
type gate struct {
	mu      sync.Mutex
	inside  int                         // guarded by mu
	devices map[croft.DeviceID]*visitor // guarded by mu
}

type visitor struct {
	limiter *rate.Limiter
	inside  int
}

// enter counts an upload in; leave counts it out.
func (g *gate) enter(id croft.DeviceID) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.devices[id]
	if v == nil {
		if len(g.devices) >= maxVisitors {
			maps.DeleteFunc(g.devices, func(_ croft.DeviceID, v *visitor) bool { return v.inside == 0 })
		}
		v = &visitor{limiter: rate.NewLimiter(rate.Every(uploadEvery), uploadBurst)}
		g.devices[id] = v
	}
	if !v.limiter.Allow() || v.inside >= uploadsOfDevice || g.inside >= uploadsAtOnce {
		return nil, ErrTooFast
	}
	v.inside++
	g.inside++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		v.inside--
		g.inside--
	}, nil
}
