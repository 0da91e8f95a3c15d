package client

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/comet"
)

// callNode is call within the configured time, with errors for people. What
// breaks before the node has answered is repeated.
func (c *Client) callNode(ctx context.Context, method string, params, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		err := c.rpc.Call(ctx, method, params, out)
		if err == nil {
			return nil
		}
		if _, answered := errors.AsType[*comet.Error](err); answered {
			return fmt.Errorf("call %s of node: %w", method, err)
		}
		if pause(ctx, attempt) != nil {
			return &croft.Error{
				Kind: croft.KindOther, Err: fmt.Errorf("call %s of node: %w", method, err),
				Remedy: "see that the node at " + c.cfg.RPC + " runs and can be reached",
			}
		}
	}
}

// Status is where a node stands.
type Status struct {
	ChainID     string
	NodeVersion string    // of CometBFT
	Height      int64     // of the latest block
	Time        time.Time // of the latest block
	First       int64     // the lowest height the node still has
	Syncing     bool      // it is behind the chain and catching up
}

// Status asks the node where it stands.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var out struct {
		NodeInfo struct {
			Network string `json:"network"`
			Version string `json:"version"`
		} `json:"node_info"`
		SyncInfo struct {
			Latest   comet.Number `json:"latest_block_height"`
			Time     time.Time    `json:"latest_block_time"`
			Earliest comet.Number `json:"earliest_block_height"`
			Behind   bool         `json:"catching_up"`
		} `json:"sync_info"`
	}
	if err := c.callNode(ctx, "status", struct{}{}, &out); err != nil {
		return Status{}, err
	}
	return Status{
		ChainID: out.NodeInfo.Network, NodeVersion: out.NodeInfo.Version,
		Height: int64(out.SyncInfo.Latest), Time: out.SyncInfo.Time,
		First: int64(out.SyncInfo.Earliest), Syncing: out.SyncInfo.Behind,
	}, nil
}

// rpcTxResult is the outcome of one transaction of a block.
type rpcTxResult struct {
	Code      uint32       `json:"code"`
	Codespace string       `json:"codespace"`
	Log       string       `json:"log"`
	GasWanted comet.Number `json:"gas_wanted"`
	GasUsed   comet.Number `json:"gas_used"`
	Events    []rpcEvent   `json:"events"`
}

type rpcEvent struct {
	Type       string            `json:"type"`
	Attributes []akash.Attribute `json:"attributes"`
}

// rpcBlockResults is what executing a block gave.
type rpcBlockResults struct {
	Height comet.Number  `json:"height"`
	Txs    []rpcTxResult `json:"txs_results"`
	Block  []rpcEvent    `json:"finalize_block_events"`
}

// heightParam names a block in a call.
func heightParam(height int64) map[string]string {
	return map[string]string{"height": strconv.FormatInt(height, 10)}
}

// results asks for the outcome of a block.
func (c *Client) results(ctx context.Context, height int64) (rpcBlockResults, error) {
	var out rpcBlockResults
	if err := c.callNode(ctx, "block_results", heightParam(height), &out); err != nil {
		return out, err
	}
	if int64(out.Height) != height {
		return out, fmt.Errorf("node answers block %d for %d", out.Height, height)
	}
	return out, nil
}

// header asks for a block's time and chain.
func (c *Client) header(ctx context.Context, height int64) (at time.Time, chainID string, err error) {
	var out struct {
		Header struct {
			ChainID string       `json:"chain_id"`
			Height  comet.Number `json:"height"`
			Time    time.Time    `json:"time"`
		} `json:"header"`
	}
	if err := c.callNode(ctx, "header", heightParam(height), &out); err != nil {
		return time.Time{}, "", err
	}
	if int64(out.Header.Height) != height {
		return time.Time{}, "", fmt.Errorf("node answers header %d for %d", out.Header.Height, height)
	}
	return out.Header.Time, out.Header.ChainID, nil
}

// blockTxs asks for the raw transactions of a block.
func (c *Client) blockTxs(ctx context.Context, height int64) ([][]byte, error) {
	var out struct {
		Block *struct {
			Data struct {
				Txs [][]byte `json:"txs"`
			} `json:"data"`
		} `json:"block"`
	}
	if err := c.callNode(ctx, "block", heightParam(height), &out); err != nil {
		return nil, err
	}
	if out.Block == nil {
		return nil, fmt.Errorf("node has no block %d", height)
	}
	return out.Block.Data.Txs, nil
}

// simulate runs a transaction without its effects and returns the gas it used.
// The way through ABCI is taken because it answers the code of a failure; gRPC's
// Simulate answers a text.
func (c *Client) simulate(ctx context.Context, raw []byte) (uint64, error) {
	var out struct {
		Response struct {
			Code      uint32 `json:"code"`
			Codespace string `json:"codespace"`
			Log       string `json:"log"`
			Value     string `json:"value"`
		} `json:"response"`
	}
	params := map[string]any{"path": "/app/simulate", "data": hex.EncodeToString(raw), "height": "0", "prove": false}
	if err := c.callNode(ctx, "abci_query", params, &out); err != nil {
		return 0, fmt.Errorf("simulate transaction: %w", err)
	}
	if r := out.Response; r.Code != 0 {
		return 0, &akash.TxError{Codespace: r.Codespace, Code: r.Code, Log: r.Log}
	}
	value, err := base64.StdEncoding.DecodeString(out.Response.Value)
	if err != nil {
		return 0, fmt.Errorf("simulate transaction: decode answer: %w", err)
	}
	var info struct {
		Gas struct {
			Used comet.Number `json:"gas_used"`
		} `json:"gas_info"`
	}
	if err := json.Unmarshal(value, &info); err != nil {
		return 0, fmt.Errorf("simulate transaction: decode answer: %w", err)
	}
	if info.Gas.Used <= 0 {
		return 0, errors.New("simulate transaction: node tells no gas")
	}
	return uint64(info.Gas.Used), nil
}
