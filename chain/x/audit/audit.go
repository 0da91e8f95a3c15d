// Package audit is what auditors sign about providers: the chain's module
// "audit", wire-compatible with Akash's.
//
// Anyone may be an auditor and sign attributes of any provider, registered or
// not; tenants name the auditors they trust. There is one record per provider
// and auditor. Signing adds attributes to it and replaces those with the same
// keys; deleting takes some away, or all.
//
// What most callers need: [NewKeeper], [Keeper.GetProviderByAuditor] and
// [NewAppModule].
//
// What it does not do: it does not compare what is signed with what the
// provider says of itself; that is the market's.
//
// What it promises: a record is never empty, its attributes are sorted by key
// and at most [attributesv1.MaxAttributes]; a message touches one record; there is
// no work per block. Genesis export and import give the same state, the index is
// rebuilt.
//
// All state lies in the module's store, committed with the block: a crash or a
// restart loses nothing that a block holds.
package audit

import (
	"context"
	"errors"
	"fmt"

	"github.com/cosmos/gogoproto/proto"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/auditv1"

	"cosmossdk.io/collections"
	corestore "cosmossdk.io/core/store"

	"github.com/cosmos/cosmos-sdk/codec"
	sdk "github.com/cosmos/cosmos-sdk/types"
)

const (
	// ModuleName names the module, its errors' codespace and its genesis.
	ModuleName = "audit"
	// StoreKey names the module's store.
	StoreKey = ModuleName
)

// What lies where in the module's store: the records by provider and auditor,
// and an index by auditor and provider.
var (
	recordsPrefix   = collections.NewPrefix(0)
	byAuditorPrefix = collections.NewPrefix(1)
)

type pair = collections.Pair[sdk.AccAddress, sdk.AccAddress]

// Keeper is the one door to the module's state. Its methods run inside a
// transaction: when one returns an error, the caller drops what it wrote.
type Keeper struct {
	records   collections.Map[pair, auditv1.AuditedProvider]
	byAuditor collections.KeySet[pair]
}

// NewKeeper makes the keeper over its store.
func NewKeeper(cdc codec.BinaryCodec, store corestore.KVStoreService) (*Keeper, error) {
	schema := collections.NewSchemaBuilder(store)
	key := collections.PairKeyCodec(sdk.AccAddressKey, sdk.AccAddressKey)
	k := &Keeper{
		records:   collections.NewMap(schema, recordsPrefix, "records", key, codec.CollValue[auditv1.AuditedProvider](cdc)),
		byAuditor: collections.NewKeySet(schema, byAuditorPrefix, "records_by_auditor", key),
	}
	if _, err := schema.Build(); err != nil {
		return nil, fmt.Errorf("build audit schema: %w", err)
	}
	return k, nil
}

// GetProviderByAuditor returns what an auditor has signed about a provider, and
// whether there is anything.
func (k *Keeper) GetProviderByAuditor(ctx context.Context, owner, auditor sdk.AccAddress) (auditv1.AuditedProvider, bool, error) {
	record, err := k.records.Get(ctx, collections.Join(owner, auditor))
	switch {
	case errors.Is(err, collections.ErrNotFound):
		return record, false, nil
	case err != nil:
		return record, false, fmt.Errorf("read audit of %s by %s: %w", owner, auditor, err)
	}
	return record, true, nil
}

// set stores a record; one without attributes is removed instead.
func (k *Keeper) set(ctx context.Context, owner, auditor sdk.AccAddress, attributes []attributesv1.Attribute) error {
	key, indexed := collections.Join(owner, auditor), collections.Join(auditor, owner)
	var err error
	if len(attributes) == 0 {
		err = errors.Join(k.records.Remove(ctx, key), k.byAuditor.Remove(ctx, indexed))
	} else {
		record := auditv1.AuditedProvider{Owner: owner.String(), Auditor: auditor.String(), Attributes: attributes}
		err = errors.Join(k.records.Set(ctx, key, record), k.byAuditor.Set(ctx, indexed))
	}
	if err != nil {
		return fmt.Errorf("store audit of %s by %s: %w", owner, auditor, err)
	}
	return nil
}

// emit adds a typed event to the transaction's.
func emit(ctx context.Context, e proto.Message) error {
	if err := sdk.UnwrapSDKContext(ctx).EventManager().EmitTypedEvent(e); err != nil {
		return fmt.Errorf("emit %s: %w", proto.MessageName(e), err)
	}
	return nil
}
