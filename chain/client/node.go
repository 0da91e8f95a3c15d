package client

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/abciv1beta1"
	"github.com/croft-cloud/croft/chain/api/txv1beta1"
)

// node is what sending needs of a chain. [Client] is the real one; the fake in
// the tests has a mempool with the same rules and a hand to break things.
type node interface {
	// Account is the account in the latest block the node answers for. Height is
	// never above that block's.
	Account(context.Context, account.Address) (AccountInfo, error)
	// Status is where the chain stands.
	Status(context.Context) (Status, error)
	// simulate returns the gas used, or a *TxError.
	simulate(ctx context.Context, raw []byte) (uint64, error)
	// broadcast hands a transaction to the node's mempool. nil: it is there. A
	// *TxError: the node refused it. Anything else: nobody knows.
	broadcast(ctx context.Context, raw []byte) error
	// Find looks a transaction up in the node's index: ErrTxNotFound if it is
	// not there, which proves nothing.
	Find(context.Context, Hash) (Result, error)
	// search reads blocks from..to for a transaction: ErrTxNotFound proves that
	// none of them holds it.
	search(ctx context.Context, hash Hash, from, to int64) (Result, error)
}

var _ node = (*Client)(nil)

func (c *Client) broadcast(ctx context.Context, raw []byte) error {
	// One attempt: the caller decides what a lost answer means.
	var resp txv1beta1.BroadcastTxResponse
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	err := c.conn.Invoke(ctx, "/cosmos.tx.v1beta1.Service/BroadcastTx",
		&txv1beta1.BroadcastTxRequest{TxBytes: raw, Mode: txv1beta1.BroadcastMode_BROADCAST_MODE_SYNC}, &resp)
	if err != nil {
		return c.queryError(ctx, "/cosmos.tx.v1beta1.Service/BroadcastTx", err)
	}
	if r := resp.GetTxResponse(); r.GetCode() != 0 {
		return &akash.TxError{Codespace: r.GetCodespace(), Code: r.GetCode(), Log: r.GetRawLog()}
	}
	return nil
}

// Find looks a transaction up in the node's index. [ErrTxNotFound] says only
// that the index does not have it: not yet, or the node keeps none.
func (c *Client) Find(ctx context.Context, hash Hash) (Result, error) {
	var resp txv1beta1.GetTxResponse
	const method = "/cosmos.tx.v1beta1.Service/GetTx"
	if err := c.invoke(ctx, method, &txv1beta1.GetTxRequest{Hash: hash.String()}, &resp); err != nil {
		switch code := status.Code(err); {
		case code == codes.Unavailable, code == codes.DeadlineExceeded, code == codes.Canceled, starting(ctx, err):
			return Result{}, c.queryError(ctx, method, err)
		default: // also a node without an index
			found := fmt.Errorf("%w %s", ErrTxNotFound, hash)
			if code != codes.NotFound {
				found = fmt.Errorf("%w: %s", found, nodeWords(err))
			}
			return Result{}, &croft.Error{
				Kind: croft.KindNotFound, Err: found,
				Remedy: "wait for the next block; a node may also keep no index",
			}
		}
	}
	r := resp.GetTxResponse()
	if r.GetHeight() <= 0 {
		return Result{}, fmt.Errorf("transaction %s: node tells no height", hash)
	}
	return resultOfWire(hash, r), nil
}

func resultOfWire(hash Hash, r *abciv1beta1.TxResponse) Result {
	result := Result{
		Hash: hash, Height: r.GetHeight(), Code: r.GetCode(), Codespace: r.GetCodespace(),
		GasWanted: r.GetGasWanted(), GasUsed: r.GetGasUsed(), Events: eventsOfWire(-1, r.GetEvents()),
	}
	if result.Code != 0 {
		result.Log = r.GetRawLog()
	}
	return result
}

func (c *Client) search(ctx context.Context, hash Hash, from, to int64) (Result, error) {
	// One that failed for its sequence may stand in a later block once more.
	found, last := false, Result{}
	for height := max(from, 1); height <= to; height++ {
		txs, err := c.blockTxs(ctx, height)
		if err != nil {
			return Result{}, err
		}
		i := slices.IndexFunc(txs, func(raw []byte) bool { return HashOf(raw) == hash })
		if i < 0 {
			continue
		}
		results, err := c.results(ctx, height)
		if err != nil {
			return Result{}, err
		}
		if i >= len(results.Txs) {
			return Result{}, fmt.Errorf("node has no result %d of block %d", i, height)
		}
		found, last = true, resultOfRPC(hash, height, i, results.Txs[i])
		if last.Code == 0 {
			break
		}
	}
	if !found {
		return Result{}, ErrTxNotFound
	}
	return last, nil
}

func resultOfRPC(hash Hash, height int64, place int, r rpcTxResult) Result {
	result := Result{
		Hash: hash, Height: height, Code: r.Code, Codespace: r.Codespace,
		GasWanted: int64(r.GasWanted), GasUsed: int64(r.GasUsed), Events: eventsOfRPC(place, r.Events),
	}
	if r.Code != 0 {
		result.Log = r.Log
	}
	return result
}

// explain makes an error for people of a failed step.
func explain(what string, err error) error {
	if e, ok := errors.AsType[*akash.TxError](err); ok && croft.KindOf(err) == croft.KindOther {
		err = e.Explain()
	}
	return fmt.Errorf("%s: %w", what, err)
}
