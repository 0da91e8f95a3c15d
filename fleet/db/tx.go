package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/croft-cloud/croft"
)

// errTooLong ends a transaction that took longer than longest.
var errTooLong = errors.New("transaction took longer than a minute")

// Tx is one transaction. It is used by one goroutine, until the function it was
// given to returns.
type Tx struct {
	ctx    context.Context // of this transaction only; ends with it
	tx     *sql.Tx
	engine engine
	read   bool   // begun by Read
	notes  []note // to be told after commit
	failed error  // the first statement that failed; nothing is committed
}

// Write runs do in a serializable transaction and commits it unless do fails.
// After a conflict or a lost connection do runs again, from the beginning. The
// error is do's own, or one of the database with a kind and a remedy.
func (d *DB) Write(ctx context.Context, do func(*Tx) error) error {
	err := again(ctx, func() (fate, error) { return d.attempt(ctx, do) })
	return d.engine.explain(err)
}

// attempt runs do once, in a transaction of its own.
func (d *DB) attempt(ctx context.Context, do func(*Tx) error) (fate, error) {
	limited, cancel := context.WithTimeoutCause(ctx, longest, errTooLong)
	defer cancel()
	// A COMMIT once sent is not cut short because the caller went away: that
	// would only make its outcome unknown.
	whole, cancelWhole := context.WithTimeout(context.WithoutCancel(ctx), longest+10*time.Second)
	defer cancelWhole()
	conn, err := d.writer.Conn(limited)
	if err != nil {
		return d.begun(limited, nil, err)
	}
	defer conn.Close()
	begun, err := conn.BeginTx(whole, &sql.TxOptions{Isolation: sql.LevelSerializable})
	if err != nil {
		return d.begun(limited, conn, err)
	}
	defer begun.Rollback() //nolint:errcheck // after a commit there is nothing to roll back; without a connection the server does it

	tx := &Tx{ctx: limited, tx: begun, engine: d.engine}
	err = do(tx)
	if err == nil && tx.failed != nil {
		err = fmt.Errorf("commit after a failed statement: %w", tx.failed)
	}
	if err == nil && limited.Err() != nil {
		err = context.Cause(limited)
	}
	if err != nil {
		begun.Rollback() //nolint:errcheck // as above
		if tx.failed != nil {
			if f, _ := d.begun(limited, conn, tx.failed); f != final {
				return f, err
			}
		}
		return d.begun(limited, conn, err)
	}
	f, err := d.engine.commit(whole, tx)
	if limited.Err() != nil {
		f = final
	}
	return f, err
}

// begun judges an error before COMMIT. When time is up nothing is tried again.
func (d *DB) begun(limited context.Context, conn *sql.Conn, err error) (fate, error) {
	if limited.Err() != nil {
		if cause := context.Cause(limited); !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return final, err
	}
	return d.engine.begun(conn, err), err
}

// Read runs do once on one consistent snapshot, in which nothing can be written.
func (d *DB) Read(ctx context.Context, do func(*Tx) error) error {
	limited, cancel := context.WithTimeoutCause(ctx, longest, errTooLong)
	defer cancel()
	var conn *sql.Conn
	var begun *sql.Tx
	err := again(limited, func() (f fate, err error) {
		if conn, err = d.reader.Conn(limited); err != nil {
			return d.begun(limited, nil, err)
		}
		if begun, err = conn.BeginTx(limited, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}); err != nil {
			f, err = d.begun(limited, conn, err)
			conn.Close()
		}
		return f, err
	})
	if err != nil {
		return d.engine.explain(err)
	}
	defer conn.Close()
	defer begun.Rollback() //nolint:errcheck // nothing was written
	tx := &Tx{ctx: limited, tx: begun, engine: d.engine, read: true}
	if err = do(tx); err == nil {
		err = tx.failed
	}
	if err != nil {
		var f fate
		if f, err = d.begun(limited, conn, err); f == lost {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return d.engine.explain(err)
}

// Exec runs a statement and says how many rows it changed.
func (t *Tx) Exec(query string, args ...any) (rows int64, err error) {
	if t.read {
		return 0, t.fail(&croft.Error{Kind: croft.KindUsage, Err: errors.New("statement that writes in a transaction that reads")})
	}
	if t.failed != nil {
		return 0, t.failed
	}
	result, err := t.tx.ExecContext(t.ctx, t.engine.rewrite(query), portable(args)...)
	if err != nil {
		return 0, t.fail(err)
	}
	return result.RowsAffected()
}

// Query runs a statement that returns rows. They are closed, or read to their
// end, before the next statement.
func (t *Tx) Query(query string, args ...any) (*sql.Rows, error) {
	if t.failed != nil {
		return nil, t.failed
	}
	rows, err := t.tx.QueryContext(t.ctx, t.engine.rewrite(query), portable(args)...)
	if err != nil {
		return nil, t.fail(err)
	}
	return rows, nil
}

// Row runs a statement that returns one row. Scan returns [ErrNoRows] if there
// was none, which is no failure of the transaction.
func (t *Tx) Row(query string, args ...any) *sql.Row {
	bound := portable(args)
	if t.failed != nil {
		bound = append(bound, refusal{t.failed})
	}
	row := t.tx.QueryRowContext(t.ctx, t.engine.rewrite(query), bound...)
	if err := row.Err(); err != nil {
		t.fail(err) //nolint:errcheck // Scan returns it
	}
	return row
}

// Notify tells the listeners of the topic on all replicas, after the commit. A
// payload over [MaxPayload] bytes reaches them as the empty one. On PostgreSQL
// commits that notify wait for each other, so it is for changes people make, not
// for every message of every box.
func (t *Tx) Notify(topic, payload string) {
	switch {
	case t.read:
		t.fail(&croft.Error{Kind: croft.KindUsage, Err: errors.New("notification from a transaction that reads")}) //nolint:errcheck // Read returns it
		return
	case topic == "" || len(topic) > maxTopic || strings.ContainsAny(topic, "\n\x00"):
		t.fail(&croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("notify %q: want a topic of 1 to %d bytes on one line", topic, maxTopic)}) //nolint:errcheck // Write returns it
		return
	case len(payload) > MaxPayload || !utf8.ValidString(payload) || strings.Contains(payload, "\x00"):
		payload = ""
	}
	t.notes = append(t.notes, note{topic, payload})
}

// fail keeps the first failure.
func (t *Tx) fail(err error) error {
	if t.failed == nil {
		t.failed = err
	}
	return err
}

// portable turns arguments into what both engines take alike.
func portable(args []any) []any {
	out := make([]any, len(args), len(args)+1)
	for i, arg := range args {
		value, err := driver.DefaultParameterConverter.ConvertValue(arg)
		if err == nil {
			value, err = checked(value)
		}
		if err != nil {
			value = refusal{&croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("argument %d: %w", i+1, err)}}
		}
		out[i] = value
	}
	return out
}

func checked(value driver.Value) (driver.Value, error) {
	switch v := value.(type) {
	case bool:
		return nil, errors.New("bool is not stored: use 0 or 1")
	case time.Time:
		return nil, errors.New("time is not stored: use microseconds")
	case float64:
		if math.IsNaN(v) {
			return nil, errors.New("float is not a number")
		}
	case string:
		if strings.ContainsRune(v, 0) || !utf8.ValidString(v) {
			return nil, errors.New("text is not UTF-8 or holds a NUL byte")
		}
	case []byte:
		if v == nil {
			return nil, nil
		}
	}
	return value, nil
}

// refusal is an argument that fails where it is used, so that [Tx.Row] has a way
// to report it.
type refusal struct{ err error }

// Value implements [driver.Valuer].
func (r refusal) Value() (driver.Value, error) { return nil, r.err }
