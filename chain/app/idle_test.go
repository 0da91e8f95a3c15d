//go:build integration

package app_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dbm "github.com/cosmos/cosmos-db"

	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
)

// TestIdle measures what a chain without transactions costs on disk. Blocks are
// made as fast as they will, with all the node's other defaults, so that an
// hour of 1 s blocks fits in a minute. LevelDB's files swing by megabytes
// between two compactions, so the node is stopped and its databases are
// compacted before each look.
//
// Measured without compaction, 2 shared cores, 12,500 blocks: what is written is
// 12 kB a block, a gigabyte a day; what is kept stops growing once the windows
// are full, at 2,000 blocks. Application state 2–9 MB, blocks 2–8 MB, CometBFT's
// state 0.5–4.5 MB, index 0, the write-ahead log 1.63 kB a block up to 20 MB. So
// the first day costs 25 to 35 MB, and every day after it nothing. The index of
// block events, were it written, would add 1.0 kB a block, 88 MB a day, for ever.
func TestIdle(t *testing.T) {
	const (
		full = 2500 // the windows are full, and dropped at least once
		end  = 4500
		step = 250
	)
	home := app.Home(t.TempDir())
	var kept []int64 // without the log, whose size has a bound of its own
	for _, last := range []int64{full, end} {
		n := chaintest.StartNode(t, func(c *app.NodeConfig) { c.Home, c.BlockTime = home, time.Millisecond })
		for height := n.Height(); height < last; height += step {
			n.WaitHeight(t, height)
		}
		n.WaitHeight(t, last)
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		height := n.Height()
		compactAll(t, string(home))
		total, parts := size(t, string(home))
		t.Logf("%d blocks: %.2f MB, kB %v", height, float64(total)/1e6, parts)
		kept = append(kept, total-parts["cs.wal"]*1000)
		if wal := parts["cs.wal"]; wal > 32_000 {
			t.Errorf("the write-ahead log has %d kB", wal)
		}
	}
	// 20 MB a day is 230 bytes a block; blocks are dropped some hundred at a
	// time, 1 kB each, so twice that is asked for.
	if grown := kept[1] - kept[0]; grown > 2*230*(end-full) {
		t.Errorf("what is kept grew by %.2f MB in %d blocks", float64(grown)/1e6, end-full)
	}
}

// compactAll makes every database in the home as small as it can be.
func compactAll(t *testing.T, home string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(home, "data", "*.db"))
	if err != nil || len(found) == 0 {
		t.Fatalf("found databases %q in %s (%v)", found, home, err)
	}
	for _, path := range found {
		db, err := dbm.NewGoLevelDB(strings.TrimSuffix(filepath.Base(path), ".db"), filepath.Dir(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.ForceCompact(nil, nil), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func size(t *testing.T, home string) (int64, map[string]int64) {
	t.Helper()
	var total int64
	parts := make(map[string]int64)
	err := filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // compaction removes files while we look
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		total += info.Size()
		rel, err := filepath.Rel(home, path)
		if err != nil {
			return err
		}
		if words := strings.Split(rel, "/"); len(words) > 2 {
			parts[words[1]] += info.Size() / 1000
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total, parts
}
