// Package db opens the fleet's database, SQLite in a file or PostgreSQL by URL,
// and is the only one that knows which of them it is. The fleet's contexts write
// one SQL for both, in transactions:
//
//	d, err := db.Open(ctx, "sqlite:/var/lib/croft/fleet.db", log)
//	err = d.Migrate(ctx, "device", migrations)
//	err = d.Write(ctx, func(tx *db.Tx) error {
//		_, err := tx.Exec("UPDATE device_boxes SET owner = ? WHERE id = ?", owner, id)
//		tx.Notify("device", string(id))
//		return err
//	})
//
// [DB.Write] is serializable: transactions act as if run one after another. A
// function given to it may run again, so it has no effect but on its [Tx], and
// it sets what it hands out afresh each time. A statement that fails dooms its
// transaction on both engines. Rows are read to their end before the next
// statement. Neither Write nor Read is called inside a Write: SQLite has one
// writer, who would wait for himself.
//
// SQL for both engines: "?" placeholders; BIGINT, TEXT, BYTEA, DOUBLE PRECISION;
// one statement a call. Arguments are integers, floats that are numbers, valid
// UTF-8 without NUL, []byte and nil; others are refused on both. LIKE
// distinguishes case on both; give it an ESCAPE. SUM of BIGINT needs a CAST to
// BIGINT. lower() may know ASCII only. An empty []byte may come back as nil; ask
// IS NULL where the difference matters.
//
// What survives what:
//
//   - kill -9 and power cut: what Write reported as done is on the disk
//     (synchronous=FULL on SQLite, PostgreSQL's default of synchronous_commit);
//     what it did not report is there whole or not at all.
//   - Full or read-only disk: writes fail with a [croft.Error] that says what to
//     do, and change nothing; reads go on; writes work again once there is space.
//   - PostgreSQL gone, restarted or a connection cut: Write tries again for
//     about 5 s, then says [ErrUnavailable]. A connection lost during COMMIT is
//     resolved by asking the server what became of the transaction; only if it
//     cannot say (it was restarted, or stays away) the error is [ErrInDoubt].
//     A Read that was cut fails: its function runs once only.
//   - Conflicts (PostgreSQL's 40001 and 40P01, a locked SQLite file) are
//     retried with jitter, 50 times at most.
//   - Several replicas: on PostgreSQL they migrate one at a time, hear each
//     other's notifications and share [DB.Lead]. An SQLite file has one program;
//     a second one is refused. PostgreSQL is spoken to directly: a pooler that
//     hands out connections by transaction breaks notifications and leadership.
//   - An older program on a newer schema: [DB.Migrate] refuses.
//
// No statement runs longer than 30 s on PostgreSQL and no transaction longer
// than a minute on either, migrations excepted.
package db

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
)

// longest is how long a transaction may take, its waiting for a connection
// included. It bounds how long a writer blocks others and how far SQLite's log
// grows behind a reader.
const longest = time.Minute

// DB is an open database. All methods may be called from any goroutine.
type DB struct {
	engine engine
	writer *sql.DB // where Write begins; one connection on SQLite
	reader *sql.DB // where Read begins; the same pool as writer on PostgreSQL
	bus    *bus
	log    *slog.Logger
	pace   pace

	stop    context.CancelFunc // ends running
	running sync.WaitGroup     // what the engine does in the background
}

// engine is what differs between SQLite and PostgreSQL.
type engine interface {
	// rewrite turns "?" into the engine's placeholders.
	rewrite(query string) string

	// begun says whether an error before COMMIT is worth another try. conn is
	// nil if there was no connection yet. The transaction is rolled back.
	begun(conn *sql.Conn, err error) fate

	// commit commits, and tells of notes once that is done. An error with
	// another fate than final means that nothing was committed.
	commit(ctx context.Context, tx *Tx) (fate, error)

	// explain adds kind and remedy to an error of the engine.
	explain(err error) error

	// migrate calls run with the pool and goose's name of the engine, while no
	// other replica migrates.
	migrate(ctx context.Context, run migration) error

	// close gives back what the engine holds beside the pools.
	close() error

	// elect waits until this replica holds the lock of that name.
	elect(ctx context.Context, name string, p pace) (seat, error)
}

// Open opens the database at url: "sqlite:PATH" (the file is made when it is
// missing, its folder is not) or "postgres://…" (version 13 or newer, UTF-8). It
// has been reached when Open returns. log is told of interruptions; nil discards.
func Open(ctx context.Context, url string, log *slog.Logger) (*DB, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	d := &DB{bus: newBus(), log: log, pace: defaultPace, stop: stop}
	scheme, rest, _ := strings.Cut(url, ":")
	var err error
	switch {
	case scheme == "sqlite" && strings.TrimLeft(rest, "/") != "":
		err = openSQLite(ctx, d, rest)
	case scheme == "postgres", scheme == "postgresql":
		err = openPostgres(ctx, life, d, url)
	default:
		// The URL itself may hold a password and is not repeated.
		err = &croft.Error{Kind: croft.KindUsage, Err: errors.New("open database: its URL names no known engine"), Remedy: "write sqlite:/path/to/fleet.db or postgres://user@host/name"}
	}
	if err != nil {
		stop()
		return nil, err
	}
	return d, nil
}

// Close closes the connections; a second call does nothing. Listeners' channels are closed; what [DB.Lead]
// runs must have ended before.
func (d *DB) Close() error {
	d.stop()
	d.running.Wait()
	d.bus.close()
	err := d.writer.Close()
	if d.reader != d.writer {
		err = errors.Join(err, d.reader.Close())
	}
	return errors.Join(err, d.engine.close())
}

// Migrate brings the tables of one context to the newest version in files:
// goose's SQL files, NNNN_name.sql, at the top of files. Which are done stands
// in the table OWNER_migrations. Each file is one transaction, so a program
// killed in between goes on where it was. Replicas that start at once wait for
// each other. Files only ever go forward, and what a new one changes must not
// break the release before it, which runs on while replicas are exchanged.
func (d *DB) Migrate(ctx context.Context, owner string, files fs.FS) error {
	run, err := newMigration(owner, files, d.log)
	if err != nil {
		return err
	}
	return d.engine.explain(d.engine.migrate(ctx, run))
}

// Listen tells of the payloads given to [Tx.Notify] for the topic, by this
// replica and all others, after their commit. The empty payload means that
// something may have been missed (the connection was lost and is back, the
// listener was slow, the payload was too long): read everything again. The
// channel is closed when ctx ends.
func (d *DB) Listen(ctx context.Context, topic string) <-chan string {
	return d.bus.listen(ctx, topic)
}
