package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
)

// Send signs, sends and confirms a transaction. It returns when the transaction
// is in a block, with its result; a nil error means that it was executed. See
// the package comment for what errors mean and what is promised.
//
// Send waits as long as ctx allows: a node that is down, a full mempool and a
// lost answer are waited out. Callers give a deadline.
func (c *Client) Send(ctx context.Context, signer account.Signer, tx Tx) (Result, error) {
	d, err := newDraft(signer.PublicKey(), tx)
	if err != nil {
		return Result{}, explain("send transaction", err)
	}
	for attempt := 0; ; {
		var result Result
		var err error
		if tx.Unordered && c.clockRuns(ctx) {
			result, err = c.sendUnordered(ctx, signer, d)
		} else {
			result, err = c.sendOrdered(ctx, signer, d)
		}
		switch {
		case errors.Is(err, errAgain):
			if waitErr := pause(ctx, attempt); waitErr != nil {
				return Result{}, fmt.Errorf("send transaction: nothing was sent: %w", errors.Join(waitErr, err))
			}
			attempt++
		case errors.Is(err, ErrDead) && !tx.Once:
			c.log.Warn("transaction is dead and is signed anew", "account", string(d.owner), "err", err)
			attempt = 0
		case err != nil:
			return result, explain("send transaction", err)
		default:
			return result, nil
		}
	}
}

// Resume takes up a transaction that [Tx.OnSigned] has written down: it looks
// for it on the chain, sends the same bytes again while that can help, and
// returns its result, or [ErrDead] when it was not and never will be executed.
// It needs no key.
func (c *Client) Resume(ctx context.Context, signed Signed) (Result, error) {
	if HashOf(signed.Raw) != signed.Hash {
		return Result{}, usage(fmt.Errorf("resume transaction %s: the hash is not that of the bytes", signed.Hash), "give the transaction as it was written down")
	}
	if !signed.Expires.IsZero() {
		result, err := c.confirmUnordered(ctx, &pending{Signed: signed})
		if err != nil {
			err = explain("resume transaction", err)
		}
		return result, err
	}
	s := c.sequencer(signed.Account)
	p, err := s.resume(ctx, signed)
	if err != nil {
		return Result{}, fmt.Errorf("resume transaction: %w", err)
	}
	result, err := s.wait(ctx, p)
	if err != nil {
		err = explain("resume transaction", err)
	}
	return result, err
}

func (c *Client) sendOrdered(ctx context.Context, signer account.Signer, d draft) (Result, error) {
	s := c.sequencer(d.owner)
	p, err := s.submit(ctx, c, signer, d)
	if err != nil {
		return Result{}, err
	}
	return s.wait(ctx, p)
}

// wait returns the outcome of p. While it waits it tends all that is pending for
// the account.
func (s *sequencer) wait(ctx context.Context, p *pending) (Result, error) {
	timer := time.NewTimer(s.cfg.Poll)
	defer timer.Stop()
	for {
		select {
		case <-p.done:
			return p.result, p.err
		case <-ctx.Done():
			return Result{}, &UnconfirmedError{Signed: p.Signed, Err: ctx.Err()}
		case <-timer.C:
		}
		select {
		case <-p.done:
			return p.result, p.err
		case <-ctx.Done():
			return Result{}, &UnconfirmedError{Signed: p.Signed, Err: ctx.Err()}
		case <-s.turn:
			_ = s.tend(ctx) // the next round tries again
			s.leave()
		}
		timer.Reset(s.cfg.Poll)
	}
}

// unorderedLife is how far ahead an unordered transaction expires. Chains take
// at most ten minutes.
const unorderedLife = 5 * time.Minute

// clockRuns reports whether the chain's clock is near ours. An idle chain's
// stands still, and an expiry five minutes after its last block may be over.
func (c *Client) clockRuns(ctx context.Context) bool {
	status, err := c.node.Status(ctx)
	if err != nil {
		return true // it will be asked again
	}
	off := time.Since(status.Time)
	return off < time.Minute && off > -time.Minute
}

// expiry is a time of its own for each transaction: the chain takes one per
// account and nanosecond.
func (c *Client) expiry(chain time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := chain.Add(unorderedLife).UTC()
	if own := time.Now().Add(unorderedLife).UTC(); own.Before(at.Add(time.Minute)) && own.After(at) {
		at = own
	}
	if !at.After(c.lastExpiry) {
		at = c.lastExpiry.Add(1)
	}
	c.lastExpiry = at
	return at
}

func (c *Client) sendUnordered(ctx context.Context, signer account.Signer, d draft) (Result, error) {
	again := func(err error) error { return fmt.Errorf("%w: %w", errAgain, err) }
	status, err := c.node.Status(ctx)
	if err != nil {
		return Result{}, again(err)
	}
	info, err := c.node.Account(ctx, d.owner)
	if err != nil {
		if final(err) {
			return Result{}, err
		}
		return Result{}, again(err)
	}
	at := place{expires: c.expiry(status.Time)}
	gas := d.tx.Gas
	if gas == 0 {
		raw, err := d.unsigned(at, c.price)
		if err != nil {
			return Result{}, err
		}
		used, err := c.node.simulate(ctx, raw)
		if err != nil {
			if final(err) {
				return Result{}, err
			}
			return Result{}, again(err)
		}
		gas = c.withMargin(used)
	}
	raw, err := d.sign(ctx, signer, c.cfg.ChainID, info.Number, at, gas, c.price)
	if err != nil {
		return Result{}, err
	}
	p := &pending{Signed: Signed{Hash: HashOf(raw), Raw: raw, Account: d.owner, Expires: at.expires, Height: status.Height}}
	if d.tx.OnSigned != nil {
		if err := d.tx.OnSigned(ctx, p.Signed); err != nil {
			return Result{}, fmt.Errorf("keep signed transaction: %w", err)
		}
	}
	err = c.node.broadcast(context.WithoutCancel(ctx), raw)
	if err != nil && final(err) && !undecided(err) {
		return Result{}, err
	}
	p.waiting, p.tried = err == nil || errors.Is(err, akash.ErrInCache), time.Now()
	return c.confirmUnordered(ctx, p)
}

// confirmUnordered waits for the outcome of a transaction without a place. It is
// dead when the chain's time has passed its expiry and no block since holds it.
func (c *Client) confirmUnordered(ctx context.Context, p *pending) (Result, error) {
	for {
		if err := sleep(ctx, c.cfg.Poll); err != nil {
			return Result{}, &UnconfirmedError{Signed: p.Signed, Err: err}
		}
		r, err := c.node.Find(ctx, p.Hash)
		if err == nil {
			return r, r.err()
		}
		if !errors.Is(err, ErrTxNotFound) {
			p.waiting = false
			continue
		}
		status, err := c.node.Status(ctx)
		if err != nil {
			p.waiting = false
			continue
		}
		if status.Time.After(p.Expires) {
			r, err := c.node.search(ctx, p.Hash, p.Height+1, status.Height)
			switch {
			case err == nil:
				return r, r.err()
			case errors.Is(err, ErrTxNotFound):
				return Result{}, fmt.Errorf("%w: it has expired", ErrDead)
			case ctx.Err() == nil && status.First > p.Height+1:
				return Result{}, &UnconfirmedError{Signed: p.Signed, Err: &GapError{Wanted: p.Height + 1, First: status.First, Latest: status.Height}}
			}
			continue
		}
		if !p.waiting || time.Since(p.tried) > rebroadcastEvery {
			p.tried = time.Now()
			err := c.node.broadcast(ctx, p.Raw)
			// A refusal may mean that a block or the mempool has it already: the
			// chain notes its expiry as used. The expiry decides.
			_, refused := errors.AsType[*akash.TxError](err)
			p.waiting = err == nil || refused && !errors.Is(err, akash.ErrMempoolFull)
		}
	}
}
