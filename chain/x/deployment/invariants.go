package deployment

import (
	"context"
	"fmt"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"

	"cosmossdk.io/collections"
	"cosmossdk.io/errors"
)

// Invariants checks what must hold after every message: the records are ones
// that genesis accepts, no group lacks its deployment, the index is that of the
// records, and a deployment is active if and only if its account is open. It
// reads the whole state: it is for tests and for operators, not for blocks.
func (k *Keeper) Invariants(ctx context.Context) error {
	state, err := k.ExportGenesis(ctx)
	if err != nil {
		return err
	}
	if err := ValidateGenesis(state); err != nil {
		return err
	}
	groups := 0
	for _, d := range state.Deployments {
		groups += len(d.Groups)
		if err := k.validateNeighbours(ctx, d.Deployment); err != nil {
			return err
		}
	}
	err = k.groups.Walk(ctx, nil, func(groupKey, deploymentv1beta4.Group) (bool, error) {
		groups--
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("count groups: %w", err)
	}
	if groups != 0 {
		return errors.Wrapf(ErrInternal, "there are %d groups without a deployment", -groups)
	}
	indexed := 0
	err = k.byState.Walk(ctx, nil, func(stateKey) (bool, error) {
		indexed++
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("count index of deployments: %w", err)
	}
	if indexed != len(state.Deployments) {
		return errors.Wrapf(ErrInternal, "index has %d entries for %d deployments", indexed, len(state.Deployments))
	}
	return nil
}

// validateNeighbours compares a deployment with its entry in the index and
// with its account.
func (k *Keeper) validateNeighbours(ctx context.Context, d deploymentv1.Deployment) error {
	key, err := deploymentKeyOf(d.ID)
	if err != nil {
		return err
	}
	switch indexed, err := k.byState.Has(ctx, collections.Join3(int32(d.State), key.K1(), key.K2())); {
	case err != nil:
		return fmt.Errorf("read index of deployment %s: %w", deploymentText(d.ID), err)
	case !indexed:
		return errors.Wrapf(ErrInternal, "deployment %s is %s and not in the index", deploymentText(d.ID), d.State)
	}
	account, err := k.escrow.GetAccount(ctx, account(d.ID))
	if err != nil {
		return fmt.Errorf("read account of deployment %s: %w", deploymentText(d.ID), err)
	}
	if open := account.State.State == escrowtypesv1.StateOpen; open != deploymentLaw.live(d.State) {
		return errors.Wrapf(ErrInternal, "deployment %s is %s and its account is %s", deploymentText(d.ID), d.State, account.State.State)
	}
	return nil
}
