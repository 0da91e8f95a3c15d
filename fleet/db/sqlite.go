package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/croft-cloud/croft"
)

// sqliteReaders is how many transactions read at the same time, beside the one
// that writes.
const sqliteReaders = 8

// sqliteEngine is a file that one program has open. The lock beside it, PATH.lock,
// is the kernel's: it falls with the program, however that ends.
type sqliteEngine struct {
	path   string
	lock   *os.File
	bus    *bus
	writer *sql.DB

	migrating sync.Mutex // held while goose works, which looks before it acts

	mu    sync.Mutex
	seats map[string]chan struct{} // guarded by mu; each holds one token while its seat is free
}

// openSQLite fills in d.
func openSQLite(ctx context.Context, d *DB, name string) error {
	if strings.HasPrefix(name, "//") {
		name = "/" + strings.TrimLeft(name, "/")
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return fmt.Errorf("open database %s: %w", name, err)
	}
	e := &sqliteEngine{path: path, bus: d.bus, seats: make(map[string]chan struct{})}
	if e.lock, err = lockFile(path); err != nil {
		return err
	}
	d.engine = e
	if d.writer, d.reader, err = e.pools(ctx); err != nil {
		e.lock.Close()
		return e.explain(err)
	}
	e.writer = d.writer
	return nil
}

// lockFile makes the database's file, for its owner only, if there is none, and
// keeps other programs from opening it with this package.
func lockFile(path string) (*os.File, error) {
	var lock *os.File
	for _, name := range []string{path, path + ".lock"} {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("open database: %w", err), Remedy: "make the folder " + filepath.Dir(path)}
		case errors.Is(err, fs.ErrPermission):
			return nil, &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("open database: %w", err), Remedy: "give the folder " + filepath.Dir(path) + " and what is in it to the user who runs the fleet"}
		case errors.Is(err, syscall.EROFS):
			return nil, readOnly(path, err)
		case errors.Is(err, syscall.ENOSPC):
			return nil, noSpace(path, err)
		case err != nil:
			return nil, fmt.Errorf("open database: %w", err)
		}
		if name == path {
			f.Close()
			continue
		}
		lock = f
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("database %s is in use by another program", path), Remedy: "stop the other fleet, or give both the URL of one PostgreSQL database"}
		}
		return nil, fmt.Errorf("lock database %s: %w", path, err)
	}
	return lock, nil
}

// pools opens the one connection that writes and those that read.
func (e *sqliteEngine) pools(ctx context.Context) (writer, reader *sql.DB, err error) {
	options := url.Values{
		"_busy_timeout": {"5000"}, // another program (a backup, the shell) holds the file
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
		"_foreign_keys": {"1"},
		"_defensive":    {"1"},
		"_dqs":          {"0"}, // "x" is a name, never a string, as in PostgreSQL
		"_pragma":       {"case_sensitive_like(1)", "journal_size_limit(67108864)", "temp_store(memory)", "cache_size(-16000)"},
		"_txlock":       {"immediate"},
	}
	if writer, err = e.pool(options, 1); err != nil {
		return nil, nil, err
	}
	var mode string
	if err := writer.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open database %s: %w", e.path, err), writer.Close())
	}
	if mode != "wal" {
		writer.Close()
		return nil, nil, &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("open database %s: its file system offers no write-ahead log", e.path), Remedy: "put it on a local disk"}
	}
	options.Set("_txlock", "deferred")
	options.Set("_query_only", "1")
	if reader, err = e.pool(options, sqliteReaders); err != nil {
		return nil, nil, errors.Join(err, writer.Close())
	}
	return writer, reader, nil
}

func (e *sqliteEngine) pool(options url.Values, connections int) (*sql.DB, error) {
	name := url.URL{Scheme: "file", Path: e.path, RawQuery: options.Encode()}
	connector, err := sqlite.NewConnector(name.String())
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", e.path, err)
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(connections)
	pool.SetMaxIdleConns(connections)
	return pool, nil
}

func (e *sqliteEngine) close() error {
	if err := e.lock.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func (e *sqliteEngine) rewrite(query string) string { return query }

func (e *sqliteEngine) begun(_ *sql.Conn, err error) fate {
	if sqliteCode(err) == sqlite3.SQLITE_BUSY {
		return conflict
	}
	return final
}

func (e *sqliteEngine) commit(_ context.Context, tx *Tx) (fate, error) {
	if err := tx.tx.Commit(); err != nil {
		return e.begun(nil, err), err // the driver rolls back what could not be committed
	}
	for _, n := range tx.notes {
		e.bus.tell(n)
	}
	return final, nil
}

// sqliteCode is the primary result code of an error of SQLite, or 0.
func sqliteCode(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

func (e *sqliteEngine) explain(err error) error {
	if explained(err) {
		return err
	}
	full, _ := errors.AsType[*sqlite.Error](err)
	switch sqliteCode(err) {
	case sqlite3.SQLITE_FULL:
		return noSpace(e.path, err)
	case sqlite3.SQLITE_READONLY:
		return readOnly(e.path, err)
	case sqlite3.SQLITE_IOERR:
		if full.Code() == sqlite3.SQLITE_IOERR_SHMSIZE { // the index of the log could not grow
			return noSpace(e.path, err)
		}
		return &croft.Error{Err: fmt.Errorf("database %s: %w", e.path, err), Remedy: "look for errors of the disk in the kernel's log"}
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("database %s is locked by another program: %w", e.path, err), Remedy: "end what else has the file open"}
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("database %s is damaged: %w", e.path, err), Remedy: "restore it from a backup"}
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("database %s: %w", e.path, err), Remedy: "give the folder " + filepath.Dir(e.path) + " and what is in it to the user who runs the fleet"}
	}
	return err
}

func noSpace(path string, err error) error {
	return &croft.Error{Kind: croft.KindNoSpace, Err: fmt.Errorf("database %s: the disk is full: %w", path, err), Remedy: "free some space there"}
}

func readOnly(path string, err error) error {
	return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("database %s cannot be written: %w", path, err), Remedy: "mount its disk for writing, and look for errors of it in the kernel's log"}
}

// migrate needs no lock but one within the program, which has the file to
// itself.
func (e *sqliteEngine) migrate(ctx context.Context, run migration) error {
	e.migrating.Lock()
	defer e.migrating.Unlock()
	return run(ctx, goose.DialectSQLite3, e.writer)
}

// elect takes turns within this process: there is no other.
func (e *sqliteEngine) elect(ctx context.Context, name string, _ pace) (seat, error) {
	e.mu.Lock()
	token, ok := e.seats[name]
	if !ok {
		token = make(chan struct{}, 1)
		token <- struct{}{}
		e.seats[name] = token
	}
	e.mu.Unlock()
	select {
	case <-token:
		return localSeat(token), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// localSeat is leadership that cannot be lost.
type localSeat chan struct{}

func (s localSeat) wait() time.Duration { return 0 }

func (s localSeat) watch(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (s localSeat) leave(bool) { s <- struct{}{} }
