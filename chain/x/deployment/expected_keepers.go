package deployment

import (
	"context"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// EscrowKeeper holds what tenants pay leases from. A settlement that overdraws
// an account calls [Keeper.OnAccountOverdrawn] before it returns.
type EscrowKeeper interface {
	AuthorizeDeposits(ctx context.Context, msg sdk.Msg, signer sdk.AccAddress, scope escrowidv1.Scope, dep depositv1.Deposit) ([]escrowtypesv1.Depositor, error)
	AccountCreate(ctx context.Context, id escrowidv1.Account, owner sdk.AccAddress, deposits []escrowtypesv1.Depositor) error
	AccountSettle(ctx context.Context, id escrowidv1.Account) (overdrawn bool, err error)
	AccountClose(ctx context.Context, id escrowidv1.Account) error
	GetAccount(ctx context.Context, id escrowidv1.Account) (escrowtypesv1.Account, error)
}

// MarketKeeper finds providers for groups.
type MarketKeeper interface {
	// CreateOrder opens the next order of a group, and tells so in an event.
	CreateOrder(ctx context.Context, id deploymentv1.GroupID, spec deploymentv1beta4.GroupSpec, reclamation *deploymentv1.DeploymentReclamation) error
	// OnGroupClosed closes the group's order, the bids on it and its lease, if there are any.
	OnGroupClosed(ctx context.Context, id deploymentv1.GroupID, state deploymentv1beta4.Group_State) error
	// GetParams has the bounds of reclamation windows.
	GetParams(ctx context.Context) (marketv1beta5.Params, error)
}
