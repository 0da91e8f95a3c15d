package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
)

// A sequencer gives the transactions of one account their places, and keeps
// those that are not decided yet. There is one per account and Client.
//
// It has a turn: who holds it may read and change the fields and talk to the
// node on behalf of all who wait. It is not a mutex because its holder does I/O
// and because waiting for it ends with a context.
//
// A pending transaction (undecided) moves like this:
//
//	signed ──broadcast──► unsure ⇄ waiting ──► decided
//
// "waiting" means that the node has said it holds the transaction, "unsure" that
// it has not, or that something has happened since (an outage, a restart, another
// one found missing) which makes a second broadcast of the same bytes wise.
// Decided is one of:
//
//	included   found in a block, executed or failed
//	dead       its place was taken by another transaction, or its timeout height
//	           has passed: never executed, may be signed anew
//	unknown    refused again and again after it may have been accepted, or the
//	           blocks that would tell are gone; [UnconfirmedError]
type sequencer struct {
	node    node
	account account.Address
	cfg     *Config
	warn    func(msg string, args ...any)

	turn chan struct{} // holds a token while nobody has the turn

	// The fields below belong to the holder of the turn.

	number  uint64     // of the account
	known   bool       // number and base were asked for
	base    uint64     // lowest sequence not used by a block we know of
	baseBy  int64      // a height whose block, or one before, used all below base
	height  int64      // of the chain, when last seen
	seen    time.Time  // when height was seen
	tended  time.Time  // when tend last ran to its end
	pending []*pending // by sequence
}

// pending is a transaction without an outcome. Its fields belong to the holder
// of the turn until done is closed, and to the one who waits after.
type pending struct {
	Signed
	waiting  bool      // the node said it has it
	tried    time.Time // last broadcast
	refusals int       // in a row, after it may have been accepted
	missing  int       // looks into the index after its place was used
	done     chan struct{}
	result   Result
	err      error // nil: result counts
}

// Pace of a sequencer.
const (
	// rebroadcastEvery is how often the node is asked whether it still has the
	// first of the waiting transactions.
	rebroadcastEvery = 5 * time.Second
	// indexLooks is how many times the index is asked for a transaction whose
	// place is used before its blocks are read.
	indexLooks = 3
	// refusalsBeforeUnknown is how many times in a row a node may refuse what it
	// may have accepted before.
	refusalsBeforeUnknown = 3
	// heightFresh is how old a known height may be when a timeout is set.
	heightFresh = 3 * time.Second
)

// errAgain says that nothing was signed and that it is worth trying again.
var errAgain = errors.New("not now")

func (c *Client) sequencer(owner account.Address) *sequencer {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sequencers[owner]
	if s == nil {
		s = newSequencer(c.node, owner, &c.cfg)
		s.warn = c.log.With("account", string(owner)).Warn
		c.sequencers[owner] = s
	}
	return s
}

func newSequencer(n node, owner account.Address, cfg *Config) *sequencer {
	s := &sequencer{node: n, account: owner, cfg: cfg, warn: func(string, ...any) {}, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// enter waits for the turn.
func (s *sequencer) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave gives the turn back.
func (s *sequencer) leave() { s.turn <- struct{}{} }

// simulate estimates the gas limit of a draft at the account's next place.
func (s *sequencer) simulate(ctx context.Context, c *Client, d draft) (uint64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.leave()
	if err := s.ready(ctx); err != nil {
		return 0, err
	}
	return s.estimate(ctx, c, d, place{sequence: s.free()})
}

func (s *sequencer) estimate(ctx context.Context, c *Client, d draft, at place) (uint64, error) {
	raw, err := d.unsigned(at, c.price)
	if err != nil {
		return 0, err
	}
	used, err := s.node.simulate(ctx, raw)
	if errors.Is(err, akash.ErrWrongSequence) {
		// The node counts otherwise: somebody else uses the account, or the node
		// has lost what waits, or another node answers.
		s.doubt()
	}
	if err != nil {
		return 0, err
	}
	return c.withMargin(used), nil
}

// submit signs a transaction for the next free place and broadcasts it. It
// returns what is pending then; or errAgain; or an error of a transaction that
// never left or was refused at once.
func (s *sequencer) submit(ctx context.Context, c *Client, signer account.Signer, d draft) (*pending, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	if err := s.ready(ctx); err != nil {
		return nil, err
	}
	at := place{sequence: s.free()}
	gas := d.tx.Gas
	if gas == 0 {
		var err error
		if gas, err = s.estimate(ctx, c, d, at); err != nil {
			if errors.Is(err, akash.ErrWrongSequence) || !final(err) {
				return nil, fmt.Errorf("%w: %w", errAgain, err)
			}
			return nil, err
		}
	}
	if time.Since(s.seen) > heightFresh {
		status, err := s.node.Status(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errAgain, err)
		}
		s.saw(status.Height)
	}
	at.timeoutHeight = s.height + cmp.Or(d.tx.TimeoutBlocks, s.cfg.TimeoutBlocks)
	raw, err := d.sign(ctx, signer, s.cfg.ChainID, s.number, at, gas, c.price)
	if err != nil {
		return nil, err
	}
	p := &pending{
		Signed: Signed{
			Hash: HashOf(raw), Raw: raw, Account: s.account,
			Sequence: at.sequence, TimeoutHeight: at.timeoutHeight, Height: s.height,
		},
		done: make(chan struct{}),
	}
	if d.tx.OnSigned != nil {
		if err := d.tx.OnSigned(ctx, p.Signed); err != nil {
			return nil, fmt.Errorf("keep signed transaction: %w", err)
		}
	}
	s.add(p)
	// From here on the bytes may be anywhere. The caller's end must not cut off
	// the node's answer.
	err = s.broadcast(context.WithoutCancel(ctx), p)
	if err != nil && final(err) && !undecided(err) {
		s.remove(p)
		return nil, err
	}
	return p, nil
}

// resume takes up a transaction signed before, perhaps by an earlier process.
func (s *sequencer) resume(ctx context.Context, signed Signed) (*pending, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	for _, p := range s.pending {
		if p.Hash == signed.Hash {
			return p, nil
		}
	}
	p := &pending{Signed: signed, done: make(chan struct{})}
	s.add(p)
	s.tended = time.Time{}
	return p, nil
}

// ready makes sure that the next free place is known and that the node is not in
// doubt about those before it.
func (s *sequencer) ready(ctx context.Context) error {
	if len(s.pending) == 0 {
		return s.refresh(ctx)
	}
	if s.crowded() {
		if err := s.tend(ctx); err != nil {
			return err
		}
	}
	if len(s.pending) == 0 {
		return s.refresh(ctx)
	}
	if s.crowded() {
		return fmt.Errorf("%w: %d transactions of the account wait before it", errAgain, len(s.pending))
	}
	return nil
}

// crowded reports that a new transaction has to wait for those before it. One
// that fills a hole has not: those after the hole wait for it.
func (s *sequencer) crowded() bool {
	switch {
	case !s.known:
		return true
	case s.free() < s.pending[len(s.pending)-1].Sequence:
		return false
	default:
		return len(s.pending) >= s.cfg.MaxPending ||
			slices.ContainsFunc(s.pending, func(p *pending) bool { return !p.waiting })
	}
}

// refresh asks for the account. What an older answer says is no step back.
func (s *sequencer) refresh(ctx context.Context) error {
	info, err := s.node.Account(ctx, s.account)
	if err != nil {
		if final(err) {
			return err
		}
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	s.learn(info)
	return nil
}

func (s *sequencer) learn(info AccountInfo) {
	s.number, s.known = info.Number, true
	s.used(info.Sequence, info.Height)
	if info.Height > 0 {
		s.saw(info.Height)
	}
}

// used notes that blocks up to height have used all places below base.
func (s *sequencer) used(base uint64, height int64) {
	if base > s.base {
		s.base, s.baseBy = base, height
	}
}

func (s *sequencer) saw(height int64) {
	s.height, s.seen = max(s.height, height), time.Now()
}

// free is the lowest place that neither a block nor a pending transaction has.
func (s *sequencer) free() uint64 {
	next := s.base
	for _, p := range s.pending {
		if p.Sequence == next {
			next++
		}
	}
	return next
}

// doubt makes the next tend broadcast everything that waits once more.
func (s *sequencer) doubt() {
	for _, p := range s.pending {
		p.waiting = false
	}
}

func (s *sequencer) add(p *pending) {
	i, _ := slices.BinarySearchFunc(s.pending, p.Sequence, func(q *pending, seq uint64) int { return cmp.Compare(q.Sequence, seq) })
	s.pending = slices.Insert(s.pending, i, p)
}

func (s *sequencer) remove(p *pending) {
	s.pending = slices.DeleteFunc(s.pending, func(q *pending) bool { return q == p })
}

// decide ends a pending transaction and wakes who waits for it.
func (s *sequencer) decide(p *pending, result Result, err error) {
	s.remove(p)
	p.result, p.err = result, err
	close(p.done)
}

// included decides a transaction that was found in a block.
func (s *sequencer) included(p *pending, r Result) {
	if r.Code == 0 {
		// Only what was executed has surely used its place; a failure may have
		// come before that, and the next look at the account tells.
		s.used(p.Sequence+1, r.Height)
	}
	s.saw(r.Height)
	s.decide(p, r, r.err())
}

// undecided reports a refusal that says nothing about the transaction itself: it
// is there already, there is no room, or it is not its turn.
func undecided(err error) bool {
	return errors.Is(err, akash.ErrInCache) || errors.Is(err, akash.ErrMempoolFull) || errors.Is(err, akash.ErrWrongSequence)
}

// broadcast sends the bytes of p and notes what the answer says about it.
func (s *sequencer) broadcast(ctx context.Context, p *pending) error {
	p.tried = time.Now()
	err := s.node.broadcast(ctx, p.Raw)
	switch _, refused := errors.AsType[*akash.TxError](err); {
	case err == nil || errors.Is(err, akash.ErrInCache):
		p.waiting, p.refusals = true, 0
	case undecided(err) || errors.Is(err, akash.ErrTimeoutHeight): // expire decides the latter
		p.waiting = false
	case refused:
		p.waiting = false
		p.refusals++
	default:
		s.warn("answer to a broadcast is lost", "tx", p.Hash.String(), "err", err)
		s.doubt() // whatever broke it may have emptied the mempool
	}
	return err
}

// tend brings all pending transactions forward: it finds those that are decided
// and broadcasts again what the node may have lost. It does nothing when it was
// done a moment ago. Its errors are worth another try.
func (s *sequencer) tend(ctx context.Context) error {
	if len(s.pending) == 0 || time.Since(s.tended) < s.cfg.Poll/2 {
		return nil
	}
	info, err := s.node.Account(ctx, s.account)
	if err != nil {
		s.doubt()
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	s.learn(info)
	blocked := false // a place before is not with the node: later ones are refused
	for _, p := range slices.Clone(s.pending) {
		var err error
		switch {
		case p.Sequence < s.base:
			err = s.lookUp(ctx, p)
		case p.TimeoutHeight > 0 && info.Height >= p.TimeoutHeight:
			// The account itself says that its place is unused after the last
			// block for it. The chain's height alone would not do: answers about
			// the account may be older.
			err = s.expire(ctx, p)
		case !blocked:
			blocked, err = s.nudge(ctx, p)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errAgain, err)
		}
	}
	s.tended = time.Now()
	return nil
}

// lookUp decides a transaction whose place is used, by itself or by another.
func (s *sequencer) lookUp(ctx context.Context, p *pending) error {
	r, err := s.node.Find(ctx, p.Hash)
	switch {
	case err == nil:
		s.settled(p, r)
		return nil
	case !errors.Is(err, ErrTxNotFound):
		return err
	}
	p.missing++
	if p.missing < indexLooks {
		return nil // the index follows the chain a moment later
	}
	by := s.baseBy
	if by == 0 {
		// The node did not say at which height it told of the use. It was not
		// above where it stands now.
		status, err := s.node.Status(ctx)
		if err != nil {
			return err
		}
		by = status.Height
	}
	switch r, err := s.node.search(ctx, p.Hash, p.Height+1, by); {
	case err == nil:
		s.settled(p, r)
	case errors.Is(err, ErrTxNotFound):
		s.decide(p, Result{}, fmt.Errorf("%w: its sequence %d is used by another transaction", ErrDead, p.Sequence))
	case ctx.Err() != nil:
		return err
	case p.missing < 10*indexLooks:
		// a block that cannot be read now, or not from this node
	default:
		s.decide(p, Result{}, &UnconfirmedError{Signed: p.Signed, Err: fmt.Errorf("read the blocks that may hold it: %w", err)})
	}
	return nil
}

// settled decides a transaction that was found and whose place is used. If it is
// there only as one that came too early or too late, another used the place.
func (s *sequencer) settled(p *pending, r Result) {
	if errors.Is(r.err(), akash.ErrWrongSequence) {
		s.decide(p, Result{}, fmt.Errorf("%w: its sequence %d is used by another transaction", ErrDead, p.Sequence))
		return
	}
	s.included(p, r)
}

// expire decides a transaction that no block can hold any more and whose place
// nobody has used: it was not executed. A block may hold it as failed.
func (s *sequencer) expire(ctx context.Context, p *pending) error {
	r, err := s.node.Find(ctx, p.Hash)
	switch {
	case err == nil && !errors.Is(r.err(), akash.ErrWrongSequence):
		s.included(p, r)
	case err == nil || errors.Is(err, ErrTxNotFound):
		s.decide(p, Result{}, fmt.Errorf("%w: its timeout height %d has passed", ErrDead, p.TimeoutHeight))
	default:
		return err
	}
	return nil
}

// nudge keeps an undecided transaction before the node. blocked tells that the
// node does not have it and will not take those after it.
func (s *sequencer) nudge(ctx context.Context, p *pending) (blocked bool, err error) {
	if p.waiting && (p != s.pending[0] || time.Since(p.tried) < rebroadcastEvery) {
		return false, nil
	}
	first := p == s.pending[0]
	if first && time.Since(p.tried) >= rebroadcastEvery/2 && !p.tried.IsZero() || p.refusals > 0 {
		// It may stand in a block as failed before its place was used.
		r, err := s.node.Find(ctx, p.Hash)
		switch {
		case err == nil && !errors.Is(r.err(), akash.ErrWrongSequence):
			s.included(p, r)
			s.doubt()
			return false, nil
		case err != nil && !errors.Is(err, ErrTxNotFound):
			return false, err
		}
	}
	was := p.waiting
	err = s.broadcast(ctx, p)
	switch {
	case err == nil:
		if was { // the node had lost it, so it has lost the others
			s.doubt()
			p.waiting = true
		}
		return false, nil
	case errors.Is(err, akash.ErrInCache):
		return false, nil
	case undecided(err):
		return true, nil
	case !final(err):
		return true, err
	}
	if p.refusals >= refusalsBeforeUnknown {
		s.warn("node refuses a transaction that it may have accepted", "tx", p.Hash.String(), "err", err)
		s.decide(p, Result{}, &UnconfirmedError{Signed: p.Signed, Err: explain("broadcast again", err)})
		return true, nil
	}
	return true, nil
}
