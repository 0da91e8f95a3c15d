package app_test

import (
	"testing"

	dbm "github.com/cosmos/cosmos-db"
	"github.com/cosmos/cosmos-sdk/store/v2/snapshots"

	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
	"github.com/croft-cloud/croft/chain/cometnode"
)

// TestANodeStopsWhileItTakesASnapshot closes the application right after the
// commit that begins a snapshot, with databases that mind being used when closed.
func TestANodeStopsWhileItTakesASnapshot(t *testing.T) {
	genesis := chaintest.NewGenesis(t, chaintest.Config{})
	for range 5 {
		dir := t.TempDir()
		db, err := dbm.NewGoLevelDB("application", dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		offered, err := cometnode.OpenSnapshots(dir, 5, 2)
		if err != nil {
			t.Fatal(err)
		}
		a := chaintest.NewApp(t, chaintest.Config{DB: db, Doc: genesis, Options: app.Options{Snapshots: offered}})
		for a.LastBlockHeight() < 5 {
			a.NextBlock()
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		metadata, err := dbm.NewGoLevelDB("metadata", dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		store, err := snapshots.NewStore(metadata, dir)
		if err != nil {
			t.Fatal(err)
		}
		all, err := store.List()
		if err != nil || len(all) != 1 || all[0].Height != 5 {
			t.Errorf("kept snapshots %v (%v), want that of height 5", all, err)
		}
		if err := metadata.Close(); err != nil {
			t.Error(err)
		}
	}
}
