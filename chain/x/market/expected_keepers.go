package market

import (
	"context"

	"github.com/croft-cloud/croft/chain/gogo/auditv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// EscrowKeeper holds the bids' deposits and pays the leases. A settlement
// that overdraws the deployment's account closes the deployment's leases, by
// way of [Keeper.OnGroupClosed], before the call returns.
type EscrowKeeper interface {
	AuthorizeDeposits(ctx context.Context, msg sdk.Msg, signer sdk.AccAddress, scope escrowidv1.Scope, dep depositv1.Deposit) ([]escrowtypesv1.Depositor, error)
	AccountCreate(ctx context.Context, id escrowidv1.Account, owner sdk.AccAddress, deposits []escrowtypesv1.Depositor) error
	AccountSettle(ctx context.Context, id escrowidv1.Account) (overdrawn bool, err error)
	AccountClose(ctx context.Context, id escrowidv1.Account) error
	PaymentCreate(ctx context.Context, id escrowidv1.Payment, owner sdk.AccAddress, rate sdk.DecCoin) error
	PaymentWithdraw(ctx context.Context, id escrowidv1.Payment) error
	PaymentClose(ctx context.Context, id escrowidv1.Payment) error
	GetAccount(ctx context.Context, id escrowidv1.Account) (escrowtypesv1.Account, error)
	GetPayment(ctx context.Context, id escrowidv1.Payment) (escrowtypesv1.Payment, error)
}

// DeploymentKeeper owns the groups that orders are made for.
type DeploymentKeeper interface {
	GetGroup(ctx context.Context, id deploymentv1.GroupID) (deploymentv1beta4.Group, bool, error)
	// OnBidClosed pauses the group whose provider left, and tells so in an event.
	OnBidClosed(ctx context.Context, id deploymentv1.GroupID) error
	// OnLeaseClosed returns the group whose tenant closed its lease, still open.
	OnLeaseClosed(ctx context.Context, id deploymentv1.GroupID) (deploymentv1beta4.Group, error)
}

// ProviderKeeper knows the registered providers.
type ProviderKeeper interface {
	Get(ctx context.Context, owner sdk.AccAddress) (providerv1beta4.Provider, bool, error)
}

// AuditKeeper knows what auditors signed about providers.
type AuditKeeper interface {
	GetProviderByAuditor(ctx context.Context, owner, auditor sdk.AccAddress) (auditv1.AuditedProvider, bool, error)
}
