package audit

import (
	"context"
	"fmt"
	"slices"

	"github.com/croft-cloud/croft/chain/gogo/auditv1"

	"cosmossdk.io/collections"
	"cosmossdk.io/errors"

	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
)

// DefaultGenesis is the state of a new chain: nothing is signed.
func DefaultGenesis() *auditv1.GenesisState {
	return &auditv1.GenesisState{}
}

// ValidateGenesis refuses a state that the module could not have come to.
func ValidateGenesis(state *auditv1.GenesisState) error {
	seen := make(map[[2]string]bool, len(state.Providers))
	for _, record := range state.Providers {
		if err := validateRecord(record); err != nil {
			return errors.Wrapf(err, "audit of %s by %s", record.Owner, record.Auditor)
		}
		key := [2]string{record.Owner, record.Auditor}
		if seen[key] {
			return errors.Wrapf(sdkerrors.ErrInvalidRequest, "audit of %s by %s is there twice", record.Owner, record.Auditor)
		}
		seen[key] = true
	}
	return nil
}

// validateRecord checks a stored record.
func validateRecord(record auditv1.AuditedProvider) error {
	if _, _, err := parties(record.Owner, record.Auditor); err != nil {
		return err
	}
	if len(record.Attributes) == 0 || !slices.IsSortedFunc(record.Attributes, byKey) {
		return errors.Wrap(sdkerrors.ErrInvalidRequest, "attributes are empty, or not sorted by key")
	}
	return validateAttributes(record.Attributes)
}

// InitGenesis stores a state on a new chain and builds the index.
func (k *Keeper) InitGenesis(ctx context.Context, state *auditv1.GenesisState) error {
	if err := ValidateGenesis(state); err != nil {
		return err
	}
	for _, record := range state.Providers {
		owner, auditor, err := parties(record.Owner, record.Auditor)
		if err != nil {
			return err
		}
		if err := k.set(ctx, owner, auditor, record.Attributes); err != nil {
			return err
		}
	}
	return nil
}

// ExportGenesis reads the whole state, sorted by provider and auditor.
func (k *Keeper) ExportGenesis(ctx context.Context) (*auditv1.GenesisState, error) {
	state := &auditv1.GenesisState{}
	err := k.records.Walk(ctx, nil, func(_ pair, record auditv1.AuditedProvider) (bool, error) {
		state.Providers = append(state.Providers, record)
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("export audits: %w", err)
	}
	return state, nil
}

// Invariants checks what must hold after every message: the records are ones
// that genesis accepts, each lies under its names, and the index is theirs. It
// reads the whole state: it is for tests and for operators, not for blocks.
func (k *Keeper) Invariants(ctx context.Context) error {
	records := 0
	err := k.records.Walk(ctx, nil, func(key pair, record auditv1.AuditedProvider) (bool, error) {
		records++
		if record.Owner != key.K1().String() || record.Auditor != key.K2().String() {
			return true, fmt.Errorf("audit of %s by %s lies under %s and %s", record.Owner, record.Auditor, key.K1(), key.K2())
		}
		if indexed, err := k.byAuditor.Has(ctx, collections.Join(key.K2(), key.K1())); err != nil {
			return true, fmt.Errorf("look up audit of %s by %s: %w", record.Owner, record.Auditor, err)
		} else if !indexed {
			return true, fmt.Errorf("audit of %s by %s is not in the index", record.Owner, record.Auditor)
		}
		return false, validateRecord(record)
	})
	if err != nil {
		return fmt.Errorf("check audits: %w", err)
	}
	err = k.byAuditor.Walk(ctx, nil, func(pair) (bool, error) {
		records--
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("count index of audits: %w", err)
	}
	if records != 0 {
		return fmt.Errorf("index of audits has %d entries too many", -records)
	}
	return nil
}
