package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/comet"
)

// Block is what happened at one height.
type Block struct {
	Height int64
	Time   time.Time
	// Events in the order in which they happened: those of the block's begin,
	// of its transactions, of its end. A transaction that failed has only the
	// events of its fee.
	Events []akash.Event
}

// Times of [Client.Watch].
const (
	// refusedFor is how long a node that answers may refuse the results of a
	// block it has: a moment while it writes them, for ever if it throws them
	// away.
	refusedFor = 30 * time.Second
	// behindFor is how long a node that is not syncing may be behind the wanted
	// height: a moment behind a balancer, for ever if the chain began anew.
	behindFor = time.Minute
	// pollsPerHint is how much rarer the chain is polled while its node tells of
	// new blocks by itself.
	pollsPerHint = 10
)

// Watch yields each block from height from on, in order, none twice and none
// left out; a from of 0 or less begins after the latest. It waits for blocks
// that do not exist yet and for a node that cannot be reached, and ends when ctx
// does, without an error, or when the caller breaks off. An error is the last
// thing it yields: [*GapError], another chain's id, or a node that does not keep
// the results of its blocks.
//
// A websocket tells of new blocks at once; where there is none, polling finds
// them a little later.
func (c *Client) Watch(ctx context.Context, from int64) iter.Seq2[Block, error] {
	return func(yield func(Block, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var hints hints
		defer hints.wait()
		defer cancel()
		hints.start(ctx, c)

		w := watcher{c: c, hints: &hints, next: from}
		for {
			block, err := w.block(ctx)
			if ctx.Err() != nil {
				return
			}
			if !yield(block, err) || err != nil {
				return
			}
			w.next++
		}
	}
}

// watcher finds one block after the other.
type watcher struct {
	c      *Client
	hints  *hints
	next   int64 // the height to be yielded
	latest int64 // the highest known to exist
	first  int64 // the lowest the node has
}

// block waits for the next block. It returns an error only when waiting longer
// is of no use, or ctx has ended.
func (w *watcher) block(ctx context.Context) (Block, error) {
	for w.next <= 0 || w.latest < w.next {
		if err := w.await(ctx); err != nil {
			return Block{}, err
		}
	}
	begin := time.Now()
	for attempt := 0; ; attempt++ {
		block, err := w.c.readBlock(ctx, w.next)
		if err == nil {
			return block, nil
		}
		if ctx.Err() != nil {
			return Block{}, ctx.Err()
		}
		if errors.Is(err, errOtherChain) {
			return Block{}, err
		}
		if _, refused := errors.AsType[*comet.Error](err); refused {
			if s, statusErr := w.c.Status(ctx); statusErr == nil && s.First > w.next {
				return Block{}, &GapError{Wanted: w.next, First: s.First, Latest: s.Height}
			}
			if time.Since(begin) > refusedFor {
				return Block{}, fmt.Errorf("watch block %d: node does not give its results: %w", w.next, err)
			}
		} else {
			begin = time.Now() // an outage says nothing about the block
		}
		if attempt == 0 {
			w.c.log.Debug("block not readable yet", "height", w.next, "err", err)
		}
		if err := pause(ctx, attempt); err != nil {
			return Block{}, err
		}
	}
}

// await waits until the chain has the next block.
func (w *watcher) await(ctx context.Context) error {
	var behind time.Time // since when the node is too far back
	outage := false
	for attempt := 0; ; {
		s, err := w.c.Status(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if !outage {
				w.c.log.Warn("node does not answer", "err", err)
			}
			outage = true
			if err := pause(ctx, attempt); err != nil {
				return err
			}
			attempt++
			continue
		}
		if outage {
			w.c.log.Info("node answers again", "height", s.Height)
		}
		outage, attempt = false, 0
		if s.ChainID != w.c.cfg.ChainID {
			return fmt.Errorf("watch: node serves %q: %w", s.ChainID, errOtherChain)
		}
		w.latest, w.first = s.Height, s.First
		if w.next <= 0 {
			w.next = s.Height + 1
		}
		if w.next < s.First {
			return &GapError{Wanted: w.next, First: s.First, Latest: s.Height}
		}
		if w.latest >= w.next {
			return nil
		}
		switch {
		case s.Syncing || s.Height >= w.next-1:
			behind = time.Time{}
		case behind.IsZero():
			behind = time.Now()
		case time.Since(behind) > behindFor:
			return &GapError{Wanted: w.next, First: s.First, Latest: s.Height}
		}
		height, err := w.hints.next(ctx, w.c.cfg.Poll)
		if err != nil {
			return err
		}
		if height >= w.next {
			w.latest = height
			return nil
		}
	}
}

var errOtherChain = errors.New("this is another chain")

// readBlock reads a block that exists.
func (c *Client) readBlock(ctx context.Context, height int64) (Block, error) {
	at, chainID, err := c.header(ctx, height)
	if err != nil {
		return Block{}, err
	}
	if chainID != c.cfg.ChainID {
		return Block{}, fmt.Errorf("watch block %d of %q: %w", height, chainID, errOtherChain)
	}
	results, err := c.results(ctx, height)
	if err != nil {
		return Block{}, err
	}
	block := Block{Height: height, Time: at}
	var end []akash.Event
	for _, e := range eventsOfRPC(-1, results.Block) {
		if e.Get("mode") == "BeginBlock" {
			block.Events = append(block.Events, e)
		} else {
			end = append(end, e)
		}
	}
	for i, tx := range results.Txs {
		block.Events = append(block.Events, eventsOfRPC(i, tx.Events)...)
	}
	block.Events = append(block.Events, end...)
	return block, nil
}

// hints are heights that the node tells of by itself. They are only hints: what
// they leave out is found by polling.
type hints struct {
	running sync.WaitGroup
	heights chan int64 // holds the newest

	mu   sync.Mutex
	live bool // a subscription stands; guarded by mu
}

func (h *hints) start(ctx context.Context, c *Client) {
	h.heights = make(chan int64, 1)
	h.running.Go(func() {
		for attempt := 0; ctx.Err() == nil; attempt++ {
			if h.listen(ctx, c) {
				attempt = 0
			}
			if pause(ctx, attempt) != nil {
				return
			}
		}
	})
}

func (h *hints) wait() { h.running.Wait() }

// next waits for a hint or for the time to poll, and returns the height hinted
// at, or 0.
func (h *hints) next(ctx context.Context, poll time.Duration) (int64, error) {
	h.mu.Lock()
	if h.live {
		poll *= pollsPerHint
	}
	h.mu.Unlock()
	timer := time.NewTimer(poll)
	defer timer.Stop()
	select {
	case height := <-h.heights:
		return height, nil
	case <-timer.C:
		return 0, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// listen passes heights on until the connection breaks. It reports whether it
// got that far.
func (h *hints) listen(ctx context.Context, c *Client) bool {
	defer h.setLive(false)
	live := false
	err := c.rpc.Subscribe(ctx, c.cfg.Timeout, func(height int64) {
		if height == 0 {
			live = true
			h.setLive(true)
			return
		}
		select {
		case <-h.heights: // an older one that nobody read
		default:
		}
		h.heights <- height // only this goroutine sends: there is room
	})
	c.log.Debug("no websocket for new blocks", "err", err)
	return live
}

func (h *hints) setLive(live bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.live = live
}
