package deployment

import (
	"context"
	"fmt"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"

	"cosmossdk.io/errors"
)

// DefaultGenesis is the state of a new chain: parameters and nothing else.
func DefaultGenesis() *deploymentv1beta4.GenesisState {
	return &deploymentv1beta4.GenesisState{Params: DefaultParams()}
}

// ValidateGenesis refuses a state that the module could not have come to.
func ValidateGenesis(state *deploymentv1beta4.GenesisState) error {
	if err := ValidateParams(state.Params); err != nil {
		return err
	}
	seen := make(map[deploymentv1.DeploymentID]bool, len(state.Deployments))
	for _, d := range state.Deployments {
		id := d.Deployment.ID
		if seen[id] {
			return errors.Wrapf(ErrDeploymentExists, "%s is there twice", deploymentText(id))
		}
		seen[id] = true
		if err := validateRecord(d.Deployment, d.Groups); err != nil {
			return errors.Wrapf(err, "deployment %s", deploymentText(id))
		}
	}
	return nil
}

// validateRecord checks a stored deployment and its groups.
func validateRecord(d deploymentv1.Deployment, groups []deploymentv1beta4.Group) error {
	if err := validateDeploymentID(d.ID); err != nil {
		return err
	}
	if err := validateHash(d.Hash); err != nil {
		return err
	}
	if err := validateReclamation(d.Reclamation); err != nil {
		return err
	}
	switch {
	case d.State != deploymentv1.DeploymentActive && d.State != deploymentv1.DeploymentClosed:
		return errors.Wrapf(ErrInvalidDeployment, "state is %s", d.State)
	case d.CreatedAt < 0:
		return errors.Wrapf(ErrInvalidDeployment, "created_at is %d", d.CreatedAt)
	}
	specs := make([]deploymentv1beta4.GroupSpec, len(groups))
	for i, group := range groups {
		specs[i] = group.GroupSpec
		if err := validateGroupRecord(d, group, uint32(i)+1); err != nil {
			return err
		}
	}
	_, err := validateGroups(specs)
	return err
}

func validateGroupRecord(d deploymentv1.Deployment, group deploymentv1beta4.Group, gseq uint32) error {
	want := deploymentv1.GroupID{Owner: d.ID.Owner, DSeq: d.ID.DSeq, GSeq: gseq}
	if group.ID != want {
		return errors.Wrapf(ErrInvalidGroupID, "group %s is where %s should be", groupText(group.ID), groupText(want))
	}
	if group.CreatedAt != d.CreatedAt {
		return errors.Wrapf(ErrInvalidGroups, "group %s is of height %d, its deployment of %d", groupText(want), group.CreatedAt, d.CreatedAt)
	}
	switch group.State {
	case deploymentv1beta4.GroupOpen, deploymentv1beta4.GroupPaused:
		if d.State == deploymentv1.DeploymentActive {
			return nil
		}
	case deploymentv1beta4.GroupInsufficientFunds:
		if d.State == deploymentv1.DeploymentClosed {
			return nil
		}
	case deploymentv1beta4.GroupClosed:
		return nil
	case deploymentv1beta4.GroupInvalid:
	}
	return errors.Wrapf(ErrInvalidGroups, "group %s is %s while its deployment is %s", groupText(want), group.State, d.State)
}

// InitGenesis stores a state on a new chain and builds the index. The accounts
// and orders it speaks of are the genesis of escrow and the market.
func (k *Keeper) InitGenesis(ctx context.Context, state *deploymentv1beta4.GenesisState) error {
	if err := ValidateGenesis(state); err != nil {
		return err
	}
	if err := k.SetParams(ctx, state.Params); err != nil {
		return err
	}
	for _, d := range state.Deployments {
		if err := k.setDeployment(ctx, deploymentv1.DeploymentInvalid, d.Deployment); err != nil {
			return err
		}
		for _, group := range d.Groups {
			if err := k.setGroup(ctx, group); err != nil {
				return err
			}
		}
	}
	return nil
}

// ExportGenesis reads the whole state, sorted by owner and dseq.
func (k *Keeper) ExportGenesis(ctx context.Context) (*deploymentv1beta4.GenesisState, error) {
	params, err := k.GetParams(ctx)
	if err != nil {
		return nil, err
	}
	state := &deploymentv1beta4.GenesisState{Params: params}
	err = k.deployments.Walk(ctx, nil, func(_ deploymentKey, d deploymentv1.Deployment) (bool, error) {
		groups, err := k.GetGroups(ctx, d.ID)
		state.Deployments = append(state.Deployments, deploymentv1beta4.GenesisDeployment{Deployment: d, Groups: groups})
		return false, err
	})
	if err != nil {
		return nil, fmt.Errorf("export deployments: %w", err)
	}
	return state, nil
}
