package cometnode

import (
	"context"
	"errors"
	"fmt"
	"time"

	rpchttp "github.com/cometbft/cometbft/rpc/client/http"

	"github.com/croft-cloud/croft"
)

// trustDepth is how far below the head state sync begins to trust: far enough
// that every server has the block, near enough that its validators are still
// there.
const trustDepth = 10

// FetchTrust asks RPC servers for a recent height and the hash of its block,
// from which state sync and light clients begin. All servers must give the same
// hash; whoever can make all of them lie can make a node believe a false chain,
// so name servers of different owners.
func FetchTrust(ctx context.Context, servers []string) (height int64, hash string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for i, server := range servers {
		client, err := rpchttp.New(server, "/websocket")
		if err != nil {
			return 0, "", &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("state sync server %q: %w", server, err), Remedy: "write it as http://host:26657"}
		}
		if i == 0 {
			status, err := client.Status(ctx)
			if err != nil {
				return 0, "", fmt.Errorf("ask %s for its height: %w", server, err)
			}
			height = max(status.SyncInfo.LatestBlockHeight-trustDepth, status.SyncInfo.EarliestBlockHeight, 1)
		}
		commit, err := client.Commit(ctx, &height)
		if err != nil {
			return 0, "", fmt.Errorf("ask %s for block %d: %w", server, height, err)
		}
		got := commit.Commit.BlockID.Hash.String()
		if i > 0 && got != hash {
			return 0, "", &croft.Error{
				Kind:   croft.KindRefused,
				Err:    fmt.Errorf("%s and %s are on different chains: block %d is %s and %s", servers[0], server, height, hash, got),
				Remedy: "find out which of them is right",
			}
		}
		hash = got
	}
	if hash == "" {
		return 0, "", errors.New("no state sync server")
	}
	return height, hash, nil
}
