//go:build integration

package app_test

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
)

// TestIdle measures what a chain without transactions costs on disk. Blocks are
// made as fast as they will, with all the node's other defaults, so that an
// hour of 1 s blocks fits in a minute.
//
// Measured, 2 shared cores, 12,500 blocks: what is written is 12 kB a block, a
// gigabyte a day; what is kept stops growing once the windows are full, at
// 2,000 blocks. Application state 2.0–6.2 MB, blocks 2.2–7.7 MB, CometBFT's
// state 0.5–4.5 MB (LevelDB rewrites in steps of 4 MB), index 0, the
// write-ahead log 1.63 kB a block up to 20 MB. So the first day costs 25 to 35
// MB, and every day after it nothing. The index of block events, were it
// written, would add 1.0 kB a block, 88 MB a day, for ever.
func TestIdle(t *testing.T) {
	const (
		full = 2500 // the windows are full, and dropped at least once
		step = 250
		end  = 6000
	)
	n := chaintest.StartNode(t, func(c *app.NodeConfig) { c.BlockTime = time.Millisecond })
	begin := time.Now()
	var early, late int64 // most that was kept, without the log
	for height := int64(full); height <= end; height += step {
		n.WaitHeight(t, height)
		total, parts := size(t, string(n.Config.Home))
		t.Logf("%d blocks after %.0f s: %.2f MB, kB %v", height, time.Since(begin).Seconds(), float64(total)/1e6, parts)
		if kept := total - parts["cs.wal"]*1000; height <= (full+end)/2 {
			early = max(early, kept)
		} else {
			late = max(late, kept)
		}
		if wal := parts["cs.wal"]; wal > 32_000 {
			t.Errorf("the write-ahead log has %d kB", wal)
		}
	}
	// 20 MB a day is 230 bytes a block; LevelDB's steps are larger than what
	// they would add up to here, so the maxima of both halves are compared.
	if grown := late - early; grown > 2_000_000 {
		t.Errorf("what is kept grew by %.2f MB in %d blocks", float64(grown)/1e6, (end-full)/2)
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
