package market

import (
	"cmp"
	"context"

	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
)

// DefaultGenesis is the state of a new chain: parameters and nothing else.
func DefaultGenesis() *marketv1beta5.GenesisState {
	return &marketv1beta5.GenesisState{Params: DefaultParams()}
}

// ValidateGenesis refuses a state that the module could not have come to.
func ValidateGenesis(state *marketv1beta5.GenesisState) error {
	return cmp.Or(ValidateParams(state.Params), validateRecords(state.Orders, state.Bids, state.Leases))
}

// InitGenesis stores a state on a new chain and rebuilds the indexes. The
// accounts and payments it speaks of are escrow's own genesis.
func (k *Keeper) InitGenesis(ctx context.Context, state *marketv1beta5.GenesisState) error {
	if err := ValidateGenesis(state); err != nil {
		return err
	}
	if err := k.SetParams(ctx, state.Params); err != nil {
		return err
	}
	if err := k.orders.put(ctx, state.Orders...); err != nil {
		return err
	}
	for _, bid := range state.Bids {
		if err := k.addBid(ctx, bid); err != nil {
			return err
		}
	}
	return k.leases.put(ctx, state.Leases...)
}

// ExportGenesis reads the whole state, sorted by id.
func (k *Keeper) ExportGenesis(ctx context.Context) (*marketv1beta5.GenesisState, error) {
	params, err := k.GetParams(ctx)
	if err != nil {
		return nil, err
	}
	state := &marketv1beta5.GenesisState{Params: params}
	if state.Orders, err = k.orders.under(ctx, nil); err != nil {
		return nil, err
	}
	if state.Bids, err = k.bids.under(ctx, nil); err != nil {
		return nil, err
	}
	for i := range state.Bids {
		if err := k.readOffer(ctx, &state.Bids[i]); err != nil {
			return nil, err
		}
	}
	if state.Leases, err = k.leases.under(ctx, nil); err != nil {
		return nil, err
	}
	return state, nil
}
