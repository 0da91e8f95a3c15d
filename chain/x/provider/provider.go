// Package provider is who rents out compute: the chain's module "provider",
// wire-compatible with Akash's.
//
// An account becomes a provider by naming the URI of its gateway and its
// attributes, which tenants' orders are matched with. It may change both at any
// time, and is never deleted: leases and audits name it for ever.
//
// What most callers need: [NewKeeper], [Keeper.Get] and [NewAppModule].
//
// What it does not do: it does not call the gateway, believe an attribute (see
// the module audit) or look at leases.
//
// What it promises: what is stored has passed [ValidateProvider]; a message
// touches one record; there is no work per block. Genesis export and import give
// the same state.
//
// All state lies in the module's store, committed with the block: a crash or a
// restart loses nothing that a block holds.
package provider

import (
	"context"
	"errors"
	"fmt"

	errorsmod "cosmossdk.io/errors"

	"github.com/cosmos/gogoproto/proto"

	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"

	"cosmossdk.io/collections"
	corestore "cosmossdk.io/core/store"

	"github.com/cosmos/cosmos-sdk/codec"
	sdk "github.com/cosmos/cosmos-sdk/types"
)

const (
	// ModuleName names the module, its errors' codespace and its genesis.
	ModuleName = "provider"
	// StoreKey names the module's store.
	StoreKey = ModuleName
)

// providersPrefix is where the records lie, by address.
var providersPrefix = collections.NewPrefix(0)

// Keeper is the one door to the module's state. Its methods run inside a
// transaction: when one returns an error, the caller drops what it wrote.
type Keeper struct {
	providers collections.Map[sdk.AccAddress, providerv1beta4.Provider]
}

// NewKeeper makes the keeper over its store.
func NewKeeper(cdc codec.BinaryCodec, store corestore.KVStoreService) (*Keeper, error) {
	schema := collections.NewSchemaBuilder(store)
	k := &Keeper{
		providers: collections.NewMap(schema, providersPrefix, "providers", sdk.AccAddressKey, codec.CollValue[providerv1beta4.Provider](cdc)),
	}
	if _, err := schema.Build(); err != nil {
		return nil, fmt.Errorf("build provider schema: %w", err)
	}
	return k, nil
}

// Get returns an account's provider, and whether there is one.
func (k *Keeper) Get(ctx context.Context, owner sdk.AccAddress) (providerv1beta4.Provider, bool, error) {
	p, err := k.providers.Get(ctx, owner)
	switch {
	case errors.Is(err, collections.ErrNotFound):
		return p, false, nil
	case err != nil:
		return p, false, errorsmod.Wrapf(err, "read provider %s", owner)
	}
	return p, true, nil
}

// set stores a provider that has passed [ValidateProvider].
func (k *Keeper) set(ctx context.Context, owner sdk.AccAddress, p providerv1beta4.Provider) error {
	if err := k.providers.Set(ctx, owner, p); err != nil {
		return errorsmod.Wrapf(err, "store provider %s", owner)
	}
	return nil
}

// emit adds a typed event to the transaction's.
func emit(ctx context.Context, e proto.Message) error {
	if err := sdk.UnwrapSDKContext(ctx).EventManager().EmitTypedEvent(e); err != nil {
		return errorsmod.Wrapf(err, "emit %s", proto.MessageName(e))
	}
	return nil
}
