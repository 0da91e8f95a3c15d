package app

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
)

// onAccountOverdrawn is what follows when a settlement needed more than an
// account had: the deployment closes, with it its groups for lack of funds, and
// the market closes their orders, bids and leases and returns the bids'
// deposits. Escrow, deployment and market do not know each other's messages;
// this is where the chain of calls is written down:
//
//	escrow → here → deployment.OnAccountOverdrawn → market.OnGroupClosed(insufficient_funds) → escrow
//
// Escrow has stored the account and its payments by then. Accounts of bids have
// no payments, so they are never overdrawn.
func (a *App) onAccountOverdrawn(ctx context.Context, account escrowtypesv1.Account) error {
	if account.ID.Scope != escrowidv1.ScopeDeployment {
		return nil
	}
	owner, text, _ := strings.Cut(account.ID.XID, "/")
	dseq, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return fmt.Errorf("close deployment of overdrawn account %q: %w", account.ID.XID, err)
	}
	return a.DeploymentKeeper.OnAccountOverdrawn(ctx, deploymentv1.DeploymentID{Owner: owner, DSeq: dseq})
}
