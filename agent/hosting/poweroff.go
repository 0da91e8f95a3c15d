package hosting

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrPowerOff is the cause with which Run's context ends when the box is about to
// be switched off: then what runs under leases is ended in good order and lease
// disks are closed, so that /perm can be unmounted. With any other cause they
// stay as they are, for the next Run.
var ErrPowerOff = errors.New("the box is being switched off")

const (
	powerOffGrace = 10 * time.Second // for a tenant's programs, between being asked to end and being ended
	powerOffLimit = 70 * time.Second // for all of it; gokrazy waits for longer
)

// powerOff ends all replicas and closes all lease disks. Leases go on: the next
// start of the box makes the replicas anew.
func (p *parts) powerOff() error {
	ctx, cancel := context.WithTimeout(context.Background(), powerOffLimit)
	defer cancel()
	replicas, err := p.sandbox.List(ctx)
	if err != nil {
		return fmt.Errorf("list what runs: %w", err)
	}
	errs := make(chan error, len(replicas))
	var stopping sync.WaitGroup
	for id := range replicas {
		stopping.Go(func() { errs <- p.sandbox.Stop(ctx, id, powerOffGrace) })
	}
	stopping.Wait()
	close(errs)
	var failed []error
	for err := range errs {
		failed = append(failed, err)
	}
	keys, err := p.disks.List(ctx)
	failed = append(failed, err)
	for _, key := range keys {
		failed = append(failed, p.disks.Close(ctx, key))
	}
	return errors.Join(failed...)
}
