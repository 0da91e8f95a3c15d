// Package market is where tenants' orders meet providers' bids: the chain's
// module "market", wire-compatible with Akash's.
//
// An order asks for the resources of one deployment group at a top price. A
// provider bids on it and deposits. The tenant accepts one bid: that bid and
// the order become active, a lease starts, the other bids lose. A lease ends by
// its tenant (a fresh order opens at once), by its provider (the group is
// paused), or because the deployment's account ran dry. A lease with a
// reclamation window is left by its provider only after notice and the window.
// The states and their moves are the tables of law.go.
//
// What most callers need: [NewKeeper] and [NewAppModule]; the deployment module
// calls [Keeper.CreateOrder] and [Keeper.OnGroupClosed].
//
// What it does not do: it moves no coin. Deposits and payments are accounts of
// escrow, opened, settled and closed through [EscrowKeeper]; groups belong to
// the deployment module ([DeploymentKeeper]). A settlement may find the
// deployment's account dry and close all leases of the deployment before it
// returns, so every message settles first and reads its state afterwards.
//
// What it promises: a message touches one order and its bids, never more than
// order_max_bids; only what ends a whole deployment (its closing, or a settlement
// that finds its account dry) touches one order per group. What a stranger can
// add to the cost of that is bounded: a bid that changes its state is rewritten
// without its offer, and its deposit comes from two accounts at most. With 20
// bids per order, the default, the dearest case fits half a block of 100 million
// gas (chain/chaintest proves it). There is no work per block; a bid's deposit is returned
// exactly once, when the bid is lost or closed; a lease that ended has a height
// and a reason; at most the last order of a group is not closed
// ([Keeper.Invariants]). Genesis export and import give the same state, indexes
// are rebuilt.
//
// All state lies in the module's store, committed with the block: a crash or a
// restart loses nothing that a block holds.
package market

const (
	// ModuleName names the module, its errors' codespace and its genesis.
	ModuleName = "market"
	// StoreKey names the module's store.
	StoreKey = ModuleName
	// MaxOrderBids is the most bids an order may take, whatever the parameters say.
	MaxOrderBids = 500
)
