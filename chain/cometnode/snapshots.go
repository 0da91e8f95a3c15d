package cometnode

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"

	dbm "github.com/cosmos/cosmos-db"
	"github.com/cosmos/cosmos-sdk/baseapp"
	"github.com/cosmos/cosmos-sdk/store/v2/snapshots"
	snapshottypes "github.com/cosmos/cosmos-sdk/store/v2/snapshots/types"
)

// Snapshots takes snapshots of an application for nodes that join by state
// sync, each in a goroutine that Wait waits for. baseapp's own goroutine is
// nobody's: it panics when the database is closed under it, and a node that is
// told to stop just then would end with a stack trace. A nil *Snapshots takes
// none.
type Snapshots struct {
	every   int64
	keep    uint32
	store   *snapshots.Store
	running sync.WaitGroup
}

// OpenSnapshots opens the snapshots in dir. One is taken every so many blocks,
// and the newest keep are kept. The application it is given to by [Snapshots.Option]
// closes it.
func OpenSnapshots(dir string, every int64, keep uint32) (*Snapshots, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	db, err := dbm.NewGoLevelDB("metadata", dir, nil)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	store, err := snapshots.NewStore(db, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots: %w", err), db.Close())
	}
	return &Snapshots{every: every, keep: keep, store: store}, nil
}

// Option gives the application the store, to serve what is in it, but an
// interval at which it never takes one itself.
func (s *Snapshots) Option(b *baseapp.BaseApp) {
	if s == nil {
		return
	}
	b.SetSnapshot(s.store, snapshottypes.NewSnapshotOptions(math.MaxInt64, 0))
	b.CommitMultiStore().SetSnapshotInterval(uint64(s.every)) // keeps the states that are to be taken
}

// Take takes a snapshot of the state just committed if its turn has come.
func (s *Snapshots) Take(b *baseapp.BaseApp) {
	height := b.LastBlockHeight()
	if s == nil || height%s.every != 0 {
		return
	}
	s.running.Go(func() {
		manager := b.SnapshotManager()
		_, err := manager.Create(uint64(height))
		if err == nil {
			_, err = manager.Prune(s.keep)
		}
		if err != nil { // the next one may do; others offer theirs
			b.Logger().Error("snapshot not taken", "height", height, "err", err)
		}
	})
}

// Wait waits for a snapshot that is being taken. Nothing may be taken after.
func (s *Snapshots) Wait() {
	if s != nil {
		s.running.Wait()
	}
}
