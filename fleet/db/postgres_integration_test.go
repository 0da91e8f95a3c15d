//go:build integration

package db_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

// terminate ends those of the server's other connections to the test's database
// that the condition chooses.
func terminate(t *testing.T, url, which string) {
	t.Helper()
	admin, err := sql.Open("pgx", url)
	must(t, err)
	defer admin.Close()
	var ended int
	must(t, admin.QueryRowContext(t.Context(), `SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND `+which).Scan(&ended))
	if ended == 0 {
		t.Fatalf("no connection is such that %s", which)
	}
}

func TestPostgresConnectionsCut(t *testing.T) {
	url := dbtest.URL(t, dbtest.PostgreSQL)
	d := dbtest.Open(t, url)
	things(t, d)
	t.Run("in the middle of a write: it runs again and counts once", func(t *testing.T) {
		tries := 0
		must(t, d.Write(t.Context(), func(tx *db.Tx) error {
			tries++
			if err := run("UPDATE test_things SET n = n + 1 /* cut */")(tx); err != nil {
				return err
			}
			if tries == 1 {
				terminate(t, url, "query LIKE '%/* cut */%'")
			}
			return run("UPDATE test_things SET n = n + 1")(tx)
		}))
		if n := number(t, d, "SELECT n FROM test_things"); n != 2 || tries != 2 {
			t.Errorf("%d after %d tries", n, tries)
		}
	})
	t.Run("before the commit: the same", func(t *testing.T) {
		tries := 0
		must(t, d.Write(t.Context(), func(tx *db.Tx) error {
			tries++
			err := run("UPDATE test_things SET n = n + 1 /* late */")(tx)
			if tries == 1 {
				terminate(t, url, "query LIKE '%/* late */%'")
			}
			return err
		}))
		if n := number(t, d, "SELECT n FROM test_things"); n != 3 || tries != 2 {
			t.Errorf("%d after %d tries", n, tries)
		}
	})
	t.Run("in the middle of a read: it is told and not run again", func(t *testing.T) {
		tries := 0
		err := d.Read(t.Context(), func(tx *db.Tx) error {
			tries++
			if err := tx.Row("SELECT n FROM test_things /* torn */").Scan(new(int64)); err != nil {
				return err
			}
			terminate(t, url, "query LIKE '%/* torn */%'")
			return tx.Row("SELECT n FROM test_things").Scan(new(int64))
		})
		if !errors.Is(err, db.ErrUnavailable) || tries != 1 {
			t.Errorf("%d tries, then %v", tries, err)
		}
	})
	t.Run("while nobody uses them: readers and writers do not notice, listeners read again", func(t *testing.T) {
		ears := d.Listen(t.Context(), "boxes")
		terminate(t, url, "true")
		must(t, d.Read(t.Context(), func(tx *db.Tx) error { return tx.Row("SELECT n FROM test_things").Scan(new(int64)) }))
		if got := heard(t, ears); got != "" {
			t.Errorf("heard %q", got)
		}
		tell(t, d, "boxes", "back")
		if got := heard(t, ears); got != "back" {
			t.Errorf("heard %q", got)
		}
	})
}

func TestPostgresDeadlockIsRetried(t *testing.T) {
	d := dbtest.Open(t, dbtest.URL(t, dbtest.PostgreSQL))
	things(t, d)
	must(t, d.Write(t.Context(), run("INSERT INTO test_things (name, n) VALUES ('a', 0), ('b', 0)")))
	var met, both sync.WaitGroup
	met.Add(2)
	var tries atomic.Int64
	for _, order := range [][2]string{{"a", "b"}, {"b", "a"}} {
		first := true
		both.Go(func() {
			if err := d.Write(t.Context(), func(tx *db.Tx) error {
				tries.Add(1)
				if err := run("UPDATE test_things SET n = n + 1 WHERE name = ?", order[0])(tx); err != nil {
					return err
				}
				if first {
					first = false
					met.Done()
					met.Wait()
				}
				return run("UPDATE test_things SET n = n + 1 WHERE name = ?", order[1])(tx)
			}); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	if n := number(t, d, "SELECT CAST(SUM(n) AS BIGINT) FROM test_things"); n != 4 || tries.Load() < 3 {
		t.Errorf("%d after %d tries", n, tries.Load())
	}
}

func TestPostgresReplicas(t *testing.T) {
	url := dbtest.URL(t, dbtest.PostgreSQL)
	one, two := dbtest.Open(t, url), dbtest.Open(t, url)
	t.Run("migrate at once", func(t *testing.T) {
		var both sync.WaitGroup
		for _, d := range []*db.DB{one, two, one, two} {
			both.Go(func() { things(t, d) })
		}
		both.Wait()
	})
	t.Run("count together", func(t *testing.T) {
		var both sync.WaitGroup
		for _, d := range []*db.DB{one, two} {
			both.Go(func() {
				for range 20 {
					if err := d.Write(t.Context(), run("UPDATE test_things SET n = n + 1")); err != nil {
						t.Error(err)
					}
				}
			})
		}
		both.Wait()
		if n := number(t, one, "SELECT n FROM test_things"); n != 40 {
			t.Errorf("counted %d", n)
		}
	})
	t.Run("hear each other", func(t *testing.T) {
		ears := two.Listen(t.Context(), "boxes")
		tell(t, one, "boxes", "hello")
		if got := heard(t, ears); got != "hello" {
			t.Errorf("heard %q", got)
		}
	})
}

// TestPostgresLeadersNeverMeet cuts the leader's connection again and again. A
// leader is so slow to stop that the next one has the lock by then.
func TestPostgresLeadersNeverMeet(t *testing.T) {
	t.Parallel()
	url := dbtest.URL(t, dbtest.PostgreSQL)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const holder = "SELECT COALESCE(MAX(pid), 0) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
	looker := dbtest.Open(t, url)
	one := make(chan struct{}, 1) // in the hands of the leader
	began := make(chan struct{})
	var all sync.WaitGroup
	for range 3 {
		d := dbtest.Open(t, url)
		d.SetPace(50*time.Millisecond, 100*time.Millisecond, 2*time.Second)
		all.Go(func() {
			if err := d.Lead(ctx, "test", func(leading context.Context) error {
				select {
				case one <- struct{}{}:
				default:
					t.Error("two lead at once")
					return errors.New("there is a leader already")
				}
				mine := number(t, looker, holder)
				select {
				case began <- struct{}{}:
				case <-leading.Done():
				}
				<-leading.Done()
				for next := mine; (next == mine || next == 0) && ctx.Err() == nil; {
					next = number(t, looker, holder)
				}
				<-one
				return leading.Err()
			}); err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 {
		<-began
		terminate(t, url, "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)")
	}
	cancel()
	all.Wait()
}

// link is a way to PostgreSQL that can be cut.
type link struct {
	dir   string // its socket's
	mu    sync.Mutex
	ends  map[net.Conn]struct{} // guarded by mu; nil while the link is down
	quiet atomic.Bool           // the next COMMIT arrives, its answer does not
	deaf  atomic.Bool           // the next COMMIT does not even arrive
	dead  atomic.Bool           // after that the link stays down
}

const socket = ".s.PGSQL.5432"

// newLink gives the URL of the same database by way of a link.
func newLink(t *testing.T, to string) (*link, string) {
	t.Helper()
	address, err := url.Parse(to)
	must(t, err)
	dir, err := os.MkdirTemp("", "link-") // a test's own folder has too long a name for a socket
	must(t, err)
	l := &link{dir: dir, ends: make(map[net.Conn]struct{})}
	query := address.Query()
	server := filepath.Join(query.Get("host"), socket)
	listener, err := net.Listen("unix", filepath.Join(dir, socket))
	must(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", server)
			if err != nil || !l.add(near, far) {
				near.Close()
				continue
			}
			var silent atomic.Bool
			all.Go(func() { l.carry(far, near, func([]byte) bool { return !silent.Load() }) })
			all.Go(func() {
				l.carry(near, far, func(said []byte) bool {
					if !bytes.Contains(said, []byte("commit\x00")) {
						return true
					}
					if l.deaf.CompareAndSwap(true, false) {
						return false
					}
					if l.quiet.CompareAndSwap(true, false) {
						silent.Store(true)
					}
					return true
				})
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		l.cut()
		all.Wait()
		os.RemoveAll(dir)
	})
	query.Set("host", dir)
	address.RawQuery = query.Encode()
	return l, address.String()
}

func (l *link) add(ends ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, end := range ends {
		if l.ends == nil {
			end.Close()
			continue
		}
		l.ends[end] = struct{}{}
	}
	return l.ends != nil
}

// carry copies until pass says no, which cuts the link if it is to stay dead,
// and else this connection.
func (l *link) carry(from, to net.Conn, pass func([]byte) bool) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if !pass(buf[:n]) {
			if l.dead.Load() {
				l.cut()
			}
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut takes the link down for good.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for end := range l.ends {
		end.Close()
	}
	l.ends = nil
}

func TestPostgresLostCommit(t *testing.T) {
	t.Parallel() // it waits for long
	direct := dbtest.URL(t, dbtest.PostgreSQL)
	truth := dbtest.Open(t, direct)
	things(t, truth)
	l, url := newLink(t, direct)
	d := dbtest.Open(t, url)
	count := func(t *testing.T) (tries int, err error) {
		err = d.Write(t.Context(), func(tx *db.Tx) error {
			tries++
			return run("UPDATE test_things SET n = n + 1")(tx)
		})
		return tries, err
	}
	t.Run("whose answer is lost was done, and is done once", func(t *testing.T) {
		l.quiet.Store(true)
		tries, err := count(t)
		must(t, err)
		if n := number(t, truth, "SELECT n FROM test_things"); n != 1 || tries != 1 || l.quiet.Load() {
			t.Errorf("%d after %d tries", n, tries)
		}
	})
	t.Run("that never arrived was not done, and runs again", func(t *testing.T) {
		l.deaf.Store(true)
		tries, err := count(t)
		must(t, err)
		if n := number(t, truth, "SELECT n FROM test_things"); n != 2 || tries != 2 || l.deaf.Load() {
			t.Errorf("%d after %d tries", n, tries)
		}
	})
	t.Run("that cannot be asked for is in doubt", func(t *testing.T) {
		l.dead.Store(true)
		l.quiet.Store(true)
		tries, err := count(t)
		if !errors.Is(err, db.ErrInDoubt) || tries != 1 || !strings.Contains(err.Error(), "look whether it was done") {
			t.Errorf("%d tries, then %v", tries, err)
		}
	})
	t.Run("and then the database is unavailable", func(t *testing.T) {
		tries, err := count(t)
		if !errors.Is(err, db.ErrUnavailable) || tries != 0 || !strings.Contains(err.Error(), "see that PostgreSQL runs") {
			t.Errorf("%d tries, then %v", tries, err)
		}
	})
}

func TestPostgresSays(t *testing.T) {
	address := dbtest.URL(t, dbtest.PostgreSQL)
	t.Run("that a database does not exist", func(t *testing.T) {
		_, err := db.Open(t.Context(), strings.Replace(address, ":///", ":///no", 1), nil)
		if croft.KindOf(err) != croft.KindMissing || !strings.Contains(err.Error(), "createdb") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("that a statement took too long", func(t *testing.T) {
		d := dbtest.Open(t, address+"&statement_timeout=50ms")
		err := d.Write(t.Context(), run("SELECT pg_sleep(60)"))
		if !strings.Contains(err.Error(), "pg_stat_activity") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("that it is read-only", func(t *testing.T) {
		things(t, dbtest.Open(t, address))
		d := dbtest.Open(t, address+"&default_transaction_read_only=on")
		if err := d.Write(t.Context(), run("UPDATE test_things SET n = 1")); croft.KindOf(err) != croft.KindRefused {
			t.Errorf("got %v", err)
		}
	})
}

func TestFirstLeadersOfManyNamesDoNotStumbleOverEachOther(t *testing.T) {
	var warned atomic.Int64
	log := slog.New(&countWarnings{Handler: slog.DiscardHandler, n: &warned})
	d, err := db.Open(t.Context(), dbtest.URL(t, dbtest.PostgreSQL), log)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	leads := make(chan struct{}, 20)
	for i := range cap(leads) {
		all.Go(func() {
			_ = d.Lead(ctx, fmt.Sprint("name", i), func(ctx context.Context) error {
				leads <- struct{}{}
				<-ctx.Done()
				return nil
			})
		})
	}
	for range cap(leads) {
		<-leads
	}
	cancel()
	all.Wait()
	if n := warned.Load(); n != 0 {
		t.Errorf("%d elections were interrupted", n)
	}
}

// countWarnings counts lines of a log that are warnings or worse.
type countWarnings struct {
	slog.Handler
	n *atomic.Int64
}

func (h *countWarnings) Enabled(context.Context, slog.Level) bool { return true }

func (h *countWarnings) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		h.n.Add(1)
	}
	return nil
}
