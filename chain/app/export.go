package app

import (
	"encoding/json"
	"fmt"
	"time"

	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	cmttypes "github.com/cometbft/cometbft/types"

	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/x/staking"
)

// Export writes the state of the last committed block as a genesis document of
// which the chain can go on under the same or another id. The new chain begins
// at the next height: heights in the state (when a lease began, up to where an
// account is settled) keep their meaning.
//
// With fromZero the new chain begins at height 1. All state is kept, so the
// heights in it lie in the future until the new chain has passed them, and
// leases are not charged for the blocks between their last settlement and the
// export; it is for test chains.
func (a *App) Export(fromZero bool) (*cmttypes.GenesisDoc, error) {
	height := a.LastBlockHeight()
	if height == 0 {
		return nil, fmt.Errorf("export state: the chain has no block yet")
	}
	at, err := a.lastBlockTime()
	if err != nil {
		return nil, err
	}
	ctx := sdk.NewContext(a.CommitMultiStore().CacheMultiStore(), cmtproto.Header{ChainID: a.ChainID(), Height: height, Time: at}, true, a.Logger())
	state, err := a.manager.ExportGenesis(ctx, a.cdc)
	if err != nil {
		return nil, fmt.Errorf("export state: %w", err)
	}
	raw, err := json.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	validators, err := staking.WriteValidators(ctx, a.StakingKeeper)
	if err != nil {
		return nil, fmt.Errorf("export validators: %w", err)
	}
	params, err := a.ConsensusKeeper.ParamsStore.Get(ctx)
	if err != nil {
		return nil, fmt.Errorf("export consensus parameters: %w", err)
	}
	consensus := cmttypes.ConsensusParamsFromProto(params)
	doc := &cmttypes.GenesisDoc{
		GenesisTime:     at,
		ChainID:         a.ChainID(),
		InitialHeight:   height + 1,
		ConsensusParams: &consensus,
		Validators:      validators,
		AppState:        raw,
	}
	if fromZero {
		doc.InitialHeight = 1
	}
	return doc, nil
}

// lastBlockTime is the time of the last committed block.
func (a *App) lastBlockTime() (time.Time, error) {
	store, ok := a.CommitMultiStore().(interface {
		GetCommitInfo(int64) (*storetypes.CommitInfo, error)
	})
	if !ok {
		return time.Time{}, fmt.Errorf("find time of block: store %T keeps none", a.CommitMultiStore())
	}
	info, err := store.GetCommitInfo(a.LastBlockHeight())
	if err != nil {
		return time.Time{}, fmt.Errorf("find time of block %d: %w", a.LastBlockHeight(), err)
	}
	return info.Timestamp, nil
}
