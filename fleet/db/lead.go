package db

import (
	"context"
	"errors"
	"time"
)

// pace is how leadership is kept. A leader who has not heard from the database
// for beat+patience stops; a new one who cannot know whether the old one stopped
// waits for lease. So lease-beat-patience is the time a leader has for stopping.
type pace struct {
	beat     time.Duration // between two looks at the lock's connection, or tries to get the lock
	patience time.Duration // for an answer
	lease    time.Duration
}

var defaultPace = pace{beat: 2 * time.Second, patience: 3 * time.Second, lease: 10 * time.Second}

// seat is leadership that was won.
type seat interface {
	// wait is how long the last leader may still be busy.
	wait() time.Duration

	// watch blocks until the seat is lost, which it says, or ctx ends.
	watch(ctx context.Context) error

	// leave gives the seat to the next. clean says that the leader has stopped
	// in time.
	leave(clean bool)
}

// Lead runs lead on one replica at a time. It waits for its turn, and again
// after leadership was lost, until ctx ends (then it returns nil) or lead
// returns by itself (then it returns lead's error, and another replica may
// follow).
//
// lead's context ends when the database has not answered for 5 s or its
// connection is cut; lead must return within 5 s of that. The next leader begins
// at once if the one before has returned, and else 10 s after the lock came
// free, so that two never lead at once.
func (d *DB) Lead(ctx context.Context, name string, lead func(context.Context) error) error {
	log := d.log.With("leadership", name)
	for {
		won, err := d.engine.elect(ctx, name, d.pace)
		if ctx.Err() != nil {
			if err == nil {
				won.leave(true)
			}
			return nil
		}
		if err != nil {
			return d.engine.explain(err)
		}
		log.Info("leadership won", "wait", won.wait())
		gone, err := reign(ctx, won, lead)
		if gone == nil {
			return err
		}
		log.Warn("leadership lost", "err", gone)
		if err != nil && !errors.Is(err, context.Canceled) {
			log.Warn("leader stopped with an error", "err", err)
		}
	}
}

// reign runs lead while the seat is held. gone says how it was lost; err is
// lead's. When ctx ends both are nil.
func reign(ctx context.Context, won seat, lead func(context.Context) error) (gone, err error) {
	reigning, end := context.WithCancelCause(ctx)
	watched := make(chan error, 1)
	go func() {
		err := won.watch(reigning)
		end(err)
		watched <- err
	}()
	clean := false
	defer func() {
		end(nil)
		gone = <-watched
		won.leave(clean && gone == nil)
	}()
	if sleep(reigning, won.wait()) {
		err = lead(reigning)
		clean = true
	}
	if ctx.Err() != nil {
		err = nil
	}
	return nil, err
}
