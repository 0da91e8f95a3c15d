package provider

import (
	"context"
	"fmt"

	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"

	"cosmossdk.io/errors"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// DefaultGenesis is the state of a new chain: no provider.
func DefaultGenesis() *providerv1beta4.GenesisState {
	return &providerv1beta4.GenesisState{}
}

// ValidateGenesis refuses a state that the module could not have come to.
func ValidateGenesis(state *providerv1beta4.GenesisState) error {
	seen := make(map[string]bool, len(state.Providers))
	for _, p := range state.Providers {
		if err := ValidateProvider(p); err != nil {
			return errors.Wrapf(err, "provider %s", p.Owner)
		}
		if seen[p.Owner] {
			return errors.Wrapf(ErrProviderExists, "%s is there twice", p.Owner)
		}
		seen[p.Owner] = true
	}
	return nil
}

// InitGenesis stores a state on a new chain.
func (k *Keeper) InitGenesis(ctx context.Context, state *providerv1beta4.GenesisState) error {
	if err := ValidateGenesis(state); err != nil {
		return err
	}
	for _, p := range state.Providers {
		owner, err := parseOwner(p.Owner)
		if err != nil {
			return err
		}
		if err := k.set(ctx, owner, p); err != nil {
			return err
		}
	}
	return nil
}

// ExportGenesis reads the whole state, sorted by address.
func (k *Keeper) ExportGenesis(ctx context.Context) (*providerv1beta4.GenesisState, error) {
	state := &providerv1beta4.GenesisState{}
	err := k.providers.Walk(ctx, nil, func(_ sdk.AccAddress, p providerv1beta4.Provider) (bool, error) {
		state.Providers = append(state.Providers, p)
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("export providers: %w", err)
	}
	return state, nil
}

// Invariants checks what must hold after every message: each record is valid
// and lies under its owner. It reads the whole state: it is for tests and for
// operators, not for blocks.
func (k *Keeper) Invariants(ctx context.Context) error {
	return k.providers.Walk(ctx, nil, func(owner sdk.AccAddress, p providerv1beta4.Provider) (bool, error) {
		if p.Owner != owner.String() {
			return true, errors.Wrapf(ErrInternal, "record of %s lies under %s", p.Owner, owner)
		}
		return false, ValidateProvider(p)
	})
}
