package hosting

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/croft-cloud/croft/agent/lease"
)

// ErrPowerOff is the cause with which Run's context ends when the box is about to
// be switched off: then what runs under leases is ended in good order and lease
// disks are closed, so that /perm can be unmounted. With any other cause they
// stay as they are, for the next Run.
var ErrPowerOff = errors.New("the box is being switched off")

// How long things take when the box is switched off. Gokrazy waits for longer than
// all of it.
const (
	powerOffGrace = 10 * time.Second // for a tenant's programs, between being asked to end and being ended
	listLimit     = 10 * time.Second // for the runtime to say what runs
	stopLimit     = 50 * time.Second // for what runs to end, the former included
	closeLimit    = 20 * time.Second // for disks, after that
)

// powerOff ends all replicas and closes all lease disks. Leases go on: the next
// start of the box makes the replicas anew. What does not work keeps nothing of
// the rest from being done.
func (p *parts) powerOff() error {
	return errors.Join(p.stopAll(), p.closeDisks())
}

// stopAll ends all replicas: if the runtime does not say which there are, those
// that have a link.
func (p *parts) stopAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	asking, heard := context.WithTimeout(ctx, listLimit)
	found, err := p.sandbox.List(asking)
	heard()
	replicas := slices.Collect(maps.Keys(found))
	if err != nil {
		err = fmt.Errorf("list what runs: %w", err)
		replicas = p.network.Replicas()
	}
	return errors.Join(err, together(replicas, func(id lease.ReplicaID) error { return p.sandbox.Stop(ctx, id, powerOffGrace) }))
}

// closeDisks closes those that it can: one in use keeps no other open.
func (p *parts) closeDisks() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	keys, err := p.disks.List(ctx)
	return errors.Join(err, together(keys, func(key lease.Key) error { return p.disks.Close(ctx, key) }))
}

// together does something with all at the same time.
func together[T any](all []T, do func(T) error) error {
	errs := make([]error, len(all))
	var doing sync.WaitGroup
	for i, one := range all {
		doing.Go(func() { errs[i] = do(one) })
	}
	doing.Wait()
	return errors.Join(errs...)
}
