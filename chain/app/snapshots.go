package app

import (
	"math"
	"sync"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cosmos/cosmos-sdk/baseapp"
	"github.com/cosmos/cosmos-sdk/store/v2/snapshots"
	snapshottypes "github.com/cosmos/cosmos-sdk/store/v2/snapshots/types"
)

// Snapshots says which states a node offers to others that join by state sync.
// [App.Close] closes the store.
type Snapshots struct {
	Store *snapshots.Store // required
	Every int64            // blocks between two; required
	Keep  uint32           // how many are kept; required
}

// snapshotter takes snapshots in a goroutine that [App.Close] waits for.
// baseapp's own is nobody's: it panics when the database is closed under it,
// and a node that is told to stop just then ends with a stack trace.
type snapshotter struct {
	Snapshots
	running sync.WaitGroup
}

// option gives baseapp the store, to serve what is in it, but an interval at
// which it never takes one itself.
func (s *snapshotter) option(b *baseapp.BaseApp) {
	b.SetSnapshot(s.Store, snapshottypes.NewSnapshotOptions(math.MaxInt64, 0))
	b.CommitMultiStore().SetSnapshotInterval(uint64(s.Every)) // keeps the states that are to be taken
}

// take takes a snapshot of the state at height if its turn has come.
func (s *snapshotter) take(b *baseapp.BaseApp, height int64) {
	if s.Store == nil || height%s.Every != 0 {
		return
	}
	s.running.Go(func() {
		manager := b.SnapshotManager()
		_, err := manager.Create(uint64(height))
		if err == nil {
			_, err = manager.Prune(s.Keep)
		}
		if err != nil { // the next one may do; others offer theirs
			b.Logger().Error("snapshot not taken", "height", height, "err", err)
		}
	})
}

// Commit stores the block's state, and takes a snapshot of it now and then.
func (a *App) Commit() (*abci.ResponseCommit, error) {
	resp, err := a.BaseApp.Commit()
	if err == nil {
		a.snapshots.take(a.BaseApp, a.LastBlockHeight())
	}
	return resp, err
}
