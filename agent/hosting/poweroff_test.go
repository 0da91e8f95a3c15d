package hosting

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/lease"
)

// dying is a box that is being switched off: what its runtime and its disks do.
type dying struct {
	list, stop func(ctx context.Context) error
	busy       lease.Key // whose disk cannot be closed

	mu      sync.Mutex
	stopped []string
	closed  []lease.Key
}

var (
	dyingWeb = lease.ReplicaID{Lease: "l1", Service: "web", Revision: 1}
	dyingDB  = lease.ReplicaID{Lease: "l2", Service: "db", Revision: 1}
)

type (
	dyingCells struct {
		cells
		*dying
	}
	dyingWires struct {
		wires
		*dying
	}
	dyingDisks struct {
		disks
		*dying
	}
)

func (d dyingCells) List(ctx context.Context) (map[lease.ReplicaID]*lease.Exit, error) {
	if err := d.list(ctx); err != nil {
		return nil, err
	}
	return map[lease.ReplicaID]*lease.Exit{dyingWeb: nil, dyingDB: nil}, nil
}

func (d dyingCells) Stop(ctx context.Context, id lease.ReplicaID, _ time.Duration) error {
	if err := d.stop(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = append(d.stopped, id.Pod())
	return nil
}

func (dyingWires) Replicas() []lease.ReplicaID { return []lease.ReplicaID{dyingWeb, dyingDB} }

func (dyingDisks) List(context.Context) ([]lease.Key, error) {
	return []lease.Key{"l1", "l2", "l3"}, nil
}

func (d dyingDisks) Close(ctx context.Context, key lease.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if key == d.busy {
		return errors.New("in use")
	}
	d.closed = append(d.closed, key)
	return nil
}

func TestSwitchingOffClosesDisksWhateverElseFails(t *testing.T) {
	well := func(context.Context) error { return nil }
	away := func(context.Context) error { return errors.New("the runtime is away") }
	hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for _, tc := range []struct {
		name       string
		list, stop func(context.Context) error
		busy       lease.Key
		stopped    int
		closed     []lease.Key
		says       string
	}{
		{"all is well", well, well, "", 2, []lease.Key{"l1", "l2", "l3"}, ""},
		{"the runtime does not say what runs", away, well, "", 2, []lease.Key{"l1", "l2", "l3"}, "list what runs: the runtime is away"},
		{"the runtime is away", away, away, "", 0, []lease.Key{"l1", "l2", "l3"}, "the runtime is away"},
		{"the runtime never answers", hangs, hangs, "", 0, []lease.Key{"l1", "l2", "l3"}, "deadline"},
		{"a replica does not end", well, hangs, "", 0, []lease.Key{"l1", "l2", "l3"}, "deadline"},
		{"a disk is in use", well, well, "l1", 2, []lease.Key{"l2", "l3"}, "in use"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &dying{list: tc.list, stop: tc.stop, busy: tc.busy}
				p := &parts{sandbox: dyingCells{dying: d}, network: dyingWires{dying: d}, disks: dyingDisks{dying: d}}
				began := time.Now()
				err := p.powerOff()
				slices.Sort(d.closed)
				if len(d.stopped) != tc.stopped || !slices.Equal(d.closed, tc.closed) {
					t.Errorf("stopped %v, closed %v", d.stopped, d.closed)
				}
				if (tc.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.says) {
					t.Errorf("error is %v, want %q", err, tc.says)
				}
				if took := time.Since(began); took > stopLimit+closeLimit {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}
