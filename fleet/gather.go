package fleet

import (
	"context"
	"sync"
)

// gather carries out many small things together: while one transaction runs, the
// next things wait, and then go into one transaction.
type gather[T any] struct {
	do   func(context.Context, []T) error // may be called again with what it had before
	most int                              // things of one call
	ch   chan waiting[T]
}

type waiting[T any] struct {
	thing T
	done  chan<- error
}

func newGather[T any](most int, do func(context.Context, []T) error) *gather[T] {
	return &gather[T]{do: do, most: most, ch: make(chan waiting[T])}
}

// put returns when the thing is done, or why it is not. It works while run does.
func (g *gather[T]) put(ctx context.Context, thing T) error {
	done := make(chan error, 1)
	select {
	case g.ch <- waiting[T]{thing, done}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run does what is put, until ctx ends.
func (g *gather[T]) run(ctx context.Context) error {
	ready := make(chan []waiting[T])
	var doing sync.WaitGroup
	doing.Go(func() {
		for batch := range ready {
			g.carryOut(ctx, batch)
		}
	})
	defer doing.Wait()
	defer close(ready)
	var batch []waiting[T]
	for {
		in, out := g.ch, ready
		if len(batch) == g.most {
			in = nil
		}
		if len(batch) == 0 {
			out = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case w := <-in:
			batch = append(batch, w)
		case out <- batch:
			batch = nil
		}
	}
}

// carryOut does a batch. If it fails, each thing is tried alone, so that one that
// cannot be done stands in nobody's way.
func (g *gather[T]) carryOut(ctx context.Context, batch []waiting[T]) {
	things := make([]T, len(batch))
	for i, w := range batch {
		things[i] = w.thing
	}
	err := g.do(ctx, things)
	for i, w := range batch {
		if err != nil && len(batch) > 1 {
			w.done <- g.do(ctx, things[i:i+1])
		} else {
			w.done <- err
		}
	}
}
