package deployment

import (
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"

	"cosmossdk.io/errors"
)

// event is what happens to a deployment or a group.
type event string

const (
	pause event = "pause" // the tenant pauses the group, or its provider left
	start event = "start" // the tenant starts the paused group
	end   event = "close" // the tenant closes it
	dry   event = "dry"   // the deployment's account cannot pay
)

// law says what each state becomes by each event; what is not in a table is
// refused.
type law[S comparable] map[S]map[event]S

// The state machines of the module. They are never changed.
var (
	deploymentLaw = law[deploymentv1.Deployment_State]{
		deploymentv1.DeploymentActive: {end: deploymentv1.DeploymentClosed, dry: deploymentv1.DeploymentClosed},
	}
	groupLaw = law[deploymentv1beta4.Group_State]{
		deploymentv1beta4.GroupOpen: {
			pause: deploymentv1beta4.GroupPaused, end: deploymentv1beta4.GroupClosed, dry: deploymentv1beta4.GroupInsufficientFunds,
		},
		deploymentv1beta4.GroupPaused: {
			start: deploymentv1beta4.GroupOpen, end: deploymentv1beta4.GroupClosed, dry: deploymentv1beta4.GroupInsufficientFunds,
		},
	}
)

// refusals names the error for a group whose state has no move by an event.
var refusals = map[deploymentv1beta4.Group_State]*errors.Error{
	deploymentv1beta4.GroupOpen:              ErrGroupOpen,
	deploymentv1beta4.GroupPaused:            ErrGroupPaused,
	deploymentv1beta4.GroupInsufficientFunds: ErrGroupNotOpen,
	deploymentv1beta4.GroupClosed:            ErrGroupClosed,
}

// nextDeployment answers what a deployment's state becomes by an event.
func nextDeployment(d deploymentv1.Deployment, e event) (deploymentv1.Deployment_State, error) {
	if to, ok := deploymentLaw[d.State][e]; ok {
		return to, nil
	}
	return d.State, errors.Wrap(ErrDeploymentClosed, deploymentText(d.ID))
}

// nextGroup answers what a group's state becomes by an event.
func nextGroup(g deploymentv1beta4.Group, e event) (deploymentv1beta4.Group_State, error) {
	if to, ok := groupLaw[g.State][e]; ok {
		return to, nil
	}
	refusal, ok := refusals[g.State]
	if !ok {
		refusal = ErrInternal
	}
	return g.State, errors.Wrapf(refusal, "group %s is %s, cannot %s", groupText(g.ID), g.State, e)
}

// live says that a state has a way on.
func (l law[S]) live(s S) bool {
	return len(l[s]) > 0
}
