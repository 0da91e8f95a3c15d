// Package cometnode is what a program needs around a CometBFT node that runs
// inside it: keys that survive a power cut, a log in slog, databases that are
// closed and do not grow by themselves, a write-ahead log that is cut, a
// watchdog for a consensus that died alone, and the trust that state sync begins
// with.
//
// It starts no node. The files it writes are whole or absent after a crash.
package cometnode

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	cmtdb "github.com/cometbft/cometbft-db"
	cmtconfig "github.com/cometbft/cometbft/config"
	"github.com/cometbft/cometbft/consensus"
)

// CometBFT's files grow with every block. Blocks and states are dropped when
// the application says so; two others never are, and this file keeps them small:
//
//   - the index of block events, 1 kB per block and read by block_search alone,
//     is not written, and block_search is not served;
//   - the write-ahead log, 1.6 kB per block in files of 10 MB, of which a restart
//     reads only what was written since the last block, is cut behind it.
//
// The index of transactions is kept: it is how clients find theirs. It grows
// with use, 1.5 kB per transaction, and not with time.

// Databases opens CometBFT's databases and remembers them: CometBFT closes some
// of them when it stops, and leaves the others to the end of the process.
type Databases struct {
	mu  sync.Mutex
	all []cmtdb.DB // guarded by mu
}

// Open is a cmtconfig.DBProvider.
func (o *Databases) Open(ctx *cmtconfig.DBContext) (cmtdb.DB, error) {
	db, err := cmtconfig.DefaultDBProvider(ctx)
	if err != nil {
		return nil, err
	}
	once := &onceDB{DB: db, close: sync.OnceValue(db.Close)}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, once)
	if ctx.ID == "tx_index" {
		return txIndex{once}, nil
	}
	return once, nil
}

// Close closes all that are open.
func (o *Databases) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, db := range o.all {
		errs = append(errs, db.Close())
	}
	return errors.Join(errs...)
}

// onceDB is a database that may be closed twice.
type onceDB struct {
	cmtdb.DB
	close func() error
}

func (d *onceDB) Close() error { return d.close() }

// blockEvents begins the keys of the index of block events.
var blockEvents = []byte("block_events")

// txIndex is the database of both indexes, which forgets that of block events.
type txIndex struct{ cmtdb.DB }

func (d txIndex) NewBatch() cmtdb.Batch { return &txIndexBatch{Batch: d.DB.NewBatch()} }

type txIndexBatch struct {
	cmtdb.Batch
	used bool
}

func (b *txIndexBatch) Set(key, value []byte) error {
	if bytes.HasPrefix(key, blockEvents) {
		return nil
	}
	b.used = true
	return b.Batch.Set(key, value)
}

func (b *txIndexBatch) Delete(key []byte) error {
	b.used = true
	return b.Batch.Delete(key)
}

// Write saves an empty batch the write.
func (b *txIndexBatch) Write() error {
	if !b.used {
		return nil
	}
	return b.Batch.Write()
}

// WriteSync saves an empty batch the write and the fsync.
func (b *txIndexBatch) WriteSync() error {
	if !b.used {
		return nil
	}
	return b.Batch.WriteSync()
}

// TrimWAL removes the closed files of the write-ahead log that a restart does
// not need. It needs all since the end of the block before the last: a validator
// that forgot what it said about the block in the making, but not that it signed
// it, would refuse to sign anything else at that height, and a lone one would
// never make a block again.
func TrimWAL(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "wal.*"))
	if err != nil {
		return fmt.Errorf("trim write-ahead log: %w", err)
	}
	number := func(file string) string { return fmt.Sprintf("%020s", strings.TrimPrefix(filepath.Ext(file), ".")) }
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(number(a), number(b)) })
	keep := len(files) - 1
	for ; keep > 0; keep-- {
		ends, err := endsBlock(files[keep])
		if err != nil {
			return fmt.Errorf("trim write-ahead log: %w", err)
		}
		if ends {
			break
		}
	}
	for i := range max(keep, 0) {
		if err := os.Remove(files[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("trim write-ahead log: %w", err)
		}
	}
	return nil
}

// endsBlock says whether the end of a block is in a file of the write-ahead log.
func endsBlock(file string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	decoder := consensus.NewWALDecoder(bufio.NewReader(f))
	for {
		entry, err := decoder.Decode()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read %s: %w", file, err)
		}
		if _, ok := entry.Msg.(consensus.EndHeightMessage); ok {
			return true, nil
		}
	}
}

// KeepWALShort trims the write-ahead log in a folder, now and then, until ctx
// ends. It always returns nil.
func KeepWALShort(ctx context.Context, dir string, log *slog.Logger) error {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := TrimWAL(dir); err != nil {
			log.Warn("write-ahead log not trimmed", "error", err)
		}
	}
}
