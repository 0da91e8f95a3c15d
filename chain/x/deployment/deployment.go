// Package deployment is what a tenant asks the chain to run: the chain's module
// "deployment", wire-compatible with Akash's.
//
// A deployment is the hash of a manifest and one to [MaxGroups] groups of
// resources, paid from one escrow account. For each open group the market has
// one order that is not closed. The tenant may change the hash, pause, start and
// close groups, and close it all; when the account runs dry, escrow's hook
// closes it all ([Keeper.OnAccountOverdrawn]). The states and their moves are
// the tables of law.go. A closed deployment is kept for ever, so a dseq is used
// once.
//
// What most callers need: [NewKeeper], [Keeper.SetMarket] and [NewAppModule].
//
// What it does not do: it moves no coin (escrow does, [EscrowKeeper]) and knows
// neither orders nor leases ([MarketKeeper]). Both may call back while they are
// called: a settlement may find the account dry and close the deployment before
// it returns. So every message that closes something settles first and reads
// what it changes afterwards.
//
// What it promises: a message touches one deployment, its groups and what the
// market has of them; there is no work per block; a deployment is active if and
// only if its account is open ([Keeper.Invariants]). Genesis export and import
// give the same state; the index is rebuilt.
//
// All state lies in the module's store, committed with the block: a crash or a
// restart loses nothing that a block holds.
package deployment

const (
	// ModuleName names the module, its errors' codespace and its genesis.
	ModuleName = "deployment"
	// StoreKey names the module's store.
	StoreKey = ModuleName
)
