package db

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/croft-cloud/croft"
)

// Limits of the pool and of its connections, where the URL does not say others.
const (
	postgresConns  = 16
	connectTimeout = 10 * time.Second
	resolveTimeout = 15 * time.Second // for asking what became of a commit
	oldestPostgres = 130000           // pg_xact_status and its kin
)

// channel carries the notifications of all topics.
const channel = "croft_fleet"

// hearing is how often the connection that listens is tried, and how long for.
var hearing = pace{beat: 20 * time.Second, patience: 10 * time.Second}

// postgresEngine is a database that several replicas share.
type postgresEngine struct {
	config *pgx.ConnConfig // copied before each use
	pool   *sql.DB
	bus    *bus
	log    *slog.Logger
	name   string // host/database, for people
}

// openPostgres fills in d. What it starts ends with life.
func openPostgres(ctx, life context.Context, d *DB, url string) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("open database: %w", err), Remedy: "write postgres://user@host/name"}
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	for name, value := range map[string]string{
		"application_name":                    "croft-fleet",
		"statement_timeout":                   "30s",
		"lock_timeout":                        "20s",
		"idle_in_transaction_session_timeout": "60s",
	} {
		if _, ok := config.RuntimeParams[name]; !ok {
			config.RuntimeParams[name] = value
		}
	}
	e := &postgresEngine{config: config, bus: d.bus, log: d.log, name: config.Host + "/" + config.Database}
	ear, err := e.listen(ctx)
	if err != nil {
		return e.explain(fmt.Errorf("open database %s: %w", e.name, err))
	}
	if err := e.suits(ctx, ear); err != nil {
		ear.Close(ctx)
		return e.explain(err)
	}
	e.pool = stdlib.OpenDB(*config)
	e.pool.SetMaxOpenConns(postgresConns)
	e.pool.SetMaxIdleConns(postgresConns)
	e.pool.SetConnMaxIdleTime(5 * time.Minute)
	e.pool.SetConnMaxLifetime(30 * time.Minute) // so that connections follow a moved server
	d.engine, d.writer, d.reader = e, e.pool, e.pool
	d.running.Go(func() { e.hear(life, ear) })
	return nil
}

// suits refuses a server that croft's SQL does not run on.
func (e *postgresEngine) suits(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var encoding string
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')").Scan(&version, &encoding); err != nil {
		return fmt.Errorf("open database %s: %w", e.name, err)
	}
	if version < oldestPostgres {
		return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("database %s: PostgreSQL %d is too old", e.name, version/10000), Remedy: "install PostgreSQL 13 or newer"}
	}
	if encoding != "UTF8" {
		return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("database %s stores text as %s", e.name, encoding), Remedy: "make one with ENCODING 'UTF8'"}
	}
	return nil
}

// connect opens a connection outside the pool, for one user who keeps it.
func (e *postgresEngine) connect(ctx context.Context, params map[string]string) (*pgx.Conn, error) {
	config := e.config.Copy()
	for name, value := range params {
		config.RuntimeParams[name] = value
	}
	return pgx.ConnectConfig(ctx, config)
}

func (e *postgresEngine) close() error { return nil }

func (e *postgresEngine) rewrite(query string) string { return dollars(query) }

func (e *postgresEngine) begun(conn *sql.Conn, err error) fate {
	if said, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case said.Code == "40001" || said.Code == "40P01":
			return conflict
		case said.Code == "0A000" && said.Routine == "RevalidateCachedQuery": // another replica changed the table
			return conflict
		case away(said):
			return lost
		}
		if conn == nil || !fatal(said) {
			return final
		}
	}
	if conn == nil {
		return lost // no connection could be had
	}
	closed := true                    // also when there is none left to look at
	conn.Raw(func(driver any) error { //nolint:errcheck // says only that the connection is gone
		closed = driver.(*stdlib.Conn).Conn().IsClosed()
		return nil
	})
	if closed {
		return lost
	}
	return final
}

// away reports whether the server is stopping, starting, full or unreachable.
func away(said *pgconn.PgError) bool {
	return strings.HasPrefix(said.Code, "08") || strings.HasPrefix(said.Code, "57P0") || said.Code == "53300"
}

// fatal reports whether the server ended the connection with what it said.
func fatal(said *pgconn.PgError) bool {
	return said.SeverityUnlocalized == "FATAL" || said.SeverityUnlocalized == "PANIC"
}

// commit commits, notifications included. If the connection is lost on the way,
// it asks the server what became of the transaction.
func (e *postgresEngine) commit(ctx context.Context, tx *Tx) (fate, error) {
	for _, n := range tx.notes {
		if _, err := tx.Exec("SELECT pg_notify(?, ?)", channel, n.topic+"\n"+n.payload); err != nil {
			return e.undone(err), err
		}
	}
	var written sql.NullString // the transaction's number, if it wrote
	var server string          // since when the server runs
	if err := tx.tx.QueryRowContext(ctx, "SELECT pg_current_xact_id_if_assigned()::text, pg_postmaster_start_time()::text").Scan(&written, &server); err != nil {
		return e.undone(err), err
	}
	err := tx.tx.Commit()
	if err == nil {
		return final, nil
	}
	said, _ := errors.AsType[*pgconn.PgError](err)
	switch {
	case said != nil && !fatal(said):
		return e.undone(err), err
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return final, err
	case !written.Valid:
		return lost, err
	}
	e.log.Warn("connection lost during a commit", "err", err)
	return e.resolve(ctx, written.String, server, err)
}

// undone is the fate of a transaction that was not committed, by its error.
func (e *postgresEngine) undone(err error) fate {
	if said, ok := errors.AsType[*pgconn.PgError](err); ok && !fatal(said) {
		return e.begun(nil, err)
	}
	return lost
}

// resolve finds out what became of a transaction whose COMMIT was not answered.
// Only the server that ran it, never restarted since, can know: after a failover
// another transaction may have its number.
func (e *postgresEngine) resolve(ctx context.Context, number, server string, cause error) (fate, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolveTimeout)
	defer cancel()
	for n := 1; ; n++ {
		var now string
		var status sql.NullString
		err := e.pool.QueryRowContext(ctx, "SELECT pg_postmaster_start_time()::text, pg_xact_status($1::text::xid8)", number).Scan(&now, &status)
		switch {
		case err == nil && now == server && status.String == "committed":
			return final, nil
		case err == nil && now == server && status.String == "aborted":
			return lost, cause
		case err == nil && (now != server || !status.Valid):
			return final, fmt.Errorf("%w: %w", ErrInDoubt, cause)
		}
		if !sleep(ctx, backoff(n, lostPause, time.Second)) { // unreachable, or still in progress
			return final, fmt.Errorf("%w: %w", ErrInDoubt, cause)
		}
	}
}

func (e *postgresEngine) explain(err error) error {
	if explained(err) {
		return err
	}
	because := func(kind croft.Kind, what, remedy string) error {
		return &croft.Error{Kind: kind, Err: fmt.Errorf("database %s %s: %w", e.name, what, err), Remedy: remedy}
	}
	said, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		_, connecting := errors.AsType[*pgconn.ConnectError](err)
		switch {
		case errors.Is(err, ErrInDoubt):
			return because(croft.KindOther, "lost a commit", "look whether it was done, and repeat it if not")
		case errors.Is(err, ErrUnavailable), connecting && !errors.Is(err, context.Canceled):
			return because(croft.KindOther, "is away", "see that PostgreSQL runs there and that the network reaches it")
		}
		return err
	}
	switch said.Code {
	case "53100":
		return because(croft.KindNoSpace, "has a full disk", "free some space on the disk of PostgreSQL")
	case "53300":
		return because(croft.KindOther, "has no free connection", "raise max_connections of PostgreSQL, or run fewer replicas")
	case "25006":
		return because(croft.KindRefused, "is read-only", "give the URL of the primary, not of a standby")
	case "28P01", "28000":
		return because(croft.KindUsage, "refuses the user", "correct user and password in the database's URL")
	case "3D000":
		return because(croft.KindMissing, "does not exist", "make it with: createdb --encoding=UTF8 --template=template0 "+e.config.Database)
	case "42501":
		return because(croft.KindRefused, "grants too little", "make the user the owner of the database")
	case "57014", "55P03", "25P03":
		return because(croft.KindOther, "took too long", "look for long transactions in pg_stat_activity")
	case "40001", "40P01":
		return because(croft.KindOther, "is contended", "try again")
	}
	if away(said) {
		return because(croft.KindOther, "is away", "see that PostgreSQL runs there and that the network reaches it")
	}
	return err
}

// lockKey is the advisory lock of a name.
func lockKey(name string) int64 {
	sum := sha256.Sum256([]byte("croft fleet " + name))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// acquire waits for the advisory lock. It belongs to the connection. Asking
// again and again, instead of once for good, also shows that the server is
// there.
func acquire(ctx context.Context, conn *pgx.Conn, name string, beat time.Duration) error {
	for {
		var got bool
		patient, cancel := context.WithTimeout(ctx, connectTimeout)
		err := conn.QueryRow(patient, "SELECT pg_try_advisory_lock($1)", lockKey(name)).Scan(&got)
		cancel()
		if err != nil {
			return fmt.Errorf("lock %s: %w", name, err)
		}
		if got {
			return nil
		}
		if !sleep(ctx, backoff(1, beat, beat)) {
			return context.Cause(ctx)
		}
	}
}

// migrate lets one replica migrate at a time, without a limit to a statement's
// time. Should the lock's connection be lost, the transactions of the migrations
// still keep two replicas from doing the same twice.
func (e *postgresEngine) migrate(ctx context.Context, run migration) error {
	lock, err := e.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer lock.Close(context.WithoutCancel(ctx))
	if err := acquire(ctx, lock, "migrations", time.Second/2); err != nil {
		return err
	}
	config := e.config.Copy()
	config.RuntimeParams["statement_timeout"] = "0"
	pool := stdlib.OpenDB(*config)
	defer pool.Close()
	return run(ctx, goose.DialectPostgres, pool)
}

// listen opens the connection that hears notifications.
func (e *postgresEngine) listen(ctx context.Context) (*pgx.Conn, error) {
	conn, err := e.connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}

// hear hands notifications to the bus until ctx ends. After each loss of the
// connection every listener reads again.
func (e *postgresEngine) hear(ctx context.Context, ear *pgx.Conn) {
	for {
		err := watch(ctx, ear, hearing, func(said *pgconn.Notification) {
			topic, payload, _ := strings.Cut(said.Payload, "\n")
			e.bus.tell(note{topic, payload})
		})
		hangUp(ctx, ear)
		if ctx.Err() != nil {
			return
		}
		e.log.Warn("notifications interrupted", "err", err)
		for n := 1; ; n++ {
			if !sleep(ctx, backoff(n, lostPause, 5*time.Second)) {
				return
			}
			if ear, err = e.listen(ctx); err == nil {
				break
			}
		}
		e.log.Info("notifications resumed")
		e.bus.tellAll()
	}
}

// hangUp closes a connection that may be dead.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	conn.Close(ctx)
}

// watch reads from a connection nobody else uses, and asks for a sign of life
// when it was silent for a beat. It returns when the connection is lost, or nil
// when ctx ends.
func watch(ctx context.Context, conn *pgx.Conn, p pace, heard func(*pgconn.Notification)) error {
	for {
		silent, cancel := context.WithTimeout(ctx, p.beat)
		said, err := conn.WaitForNotification(silent)
		beat := silent.Err() != nil
		cancel()
		switch {
		case err == nil:
			if heard != nil {
				heard(said)
			}
			continue
		case ctx.Err() != nil:
			return nil
		case !beat || conn.IsClosed():
			return fmt.Errorf("connection to the database: %w", err)
		}
		patient, cancel := context.WithTimeout(ctx, p.patience)
		err = conn.Ping(patient)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("connection to the database: %w", err)
		}
	}
}

// elect waits for the lock of that name, on a connection of its own. Only ctx
// ends the waiting: a database that is away may come back.
func (e *postgresEngine) elect(ctx context.Context, name string, p pace) (seat, error) {
	told := false // of a failure; those after it are the same
	for {
		won, err := e.tryElect(ctx, name, p)
		if err == nil {
			return won, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !told {
			e.log.Warn("election interrupted", "leadership", name, "err", err)
			told = true
		}
		if !sleep(ctx, backoff(1, p.beat, p.beat)) {
			return nil, ctx.Err()
		}
	}
}

func (e *postgresEngine) tryElect(ctx context.Context, name string, p pace) (_ *lockSeat, err error) {
	conn, err := e.connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			hangUp(ctx, conn)
		}
	}()
	if err := acquire(ctx, conn, "lead "+name, p.beat/2); err != nil {
		return nil, err
	}
	s := &lockSeat{conn: conn, name: name, pace: p}
	// Leaders of several names may be the first at once, and PostgreSQL's IF NOT
	// EXISTS alone does not make them wait for each other.
	if _, err := conn.Exec(ctx, `BEGIN; SELECT pg_advisory_xact_lock(hashtext('db_leaders'));
		CREATE TABLE IF NOT EXISTS db_leaders (name TEXT PRIMARY KEY, led BIGINT NOT NULL); COMMIT`); err != nil {
		return nil, err
	}
	// The row says whether the last leader is known to have stopped. Whoever
	// holds the lock of its name is the only one to touch it.
	err = conn.QueryRow(ctx, "SELECT led <> 0 FROM db_leaders WHERE name = $1", name).Scan(&s.unsure)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "INSERT INTO db_leaders (name, led) VALUES ($1, 1) ON CONFLICT (name) DO UPDATE SET led = 1", name); err != nil {
		return nil, err
	}
	return s, nil
}

// lockSeat is an advisory lock and the connection it lives with.
type lockSeat struct {
	conn   *pgx.Conn
	name   string
	pace   pace
	unsure bool // the last leader's connection was lost
}

func (s *lockSeat) wait() time.Duration {
	if s.unsure {
		return s.pace.lease
	}
	return 0
}

func (s *lockSeat) watch(ctx context.Context) error { return watch(ctx, s.conn, s.pace, nil) }

func (s *lockSeat) leave(clean bool) {
	ctx, cancel := context.WithTimeout(context.Background(), s.pace.patience)
	defer cancel()
	if clean {
		// If this fails the next leader waits, which is safe.
		s.conn.Exec(ctx, "UPDATE db_leaders SET led = 0 WHERE name = $1", s.name) //nolint:errcheck // as said
	}
	hangUp(ctx, s.conn)
}
