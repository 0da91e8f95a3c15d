package db_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

// files are migrations, numbered from 1.
func files(bodies ...string) fstest.MapFS {
	out := fstest.MapFS{}
	for i, body := range bodies {
		out[fmt.Sprintf("%04d_step.sql", i+1)] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + body + "\n")}
	}
	return out
}

// things makes a table with a row named "n" that holds 0.
func things(t testing.TB, d *db.DB) {
	t.Helper()
	must(t, d.Migrate(t.Context(), "test", files(
		"CREATE TABLE test_things (name TEXT PRIMARY KEY, n BIGINT NOT NULL);",
		"INSERT INTO test_things (name, n) VALUES ('n', 0);",
	)))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(query string, args ...any) func(*db.Tx) error {
	return func(tx *db.Tx) error {
		_, err := tx.Exec(query, args...)
		return err
	}
}

// number reads one number.
func number(t testing.TB, d *db.DB, query string, args ...any) (n int64) {
	t.Helper()
	must(t, d.Read(t.Context(), func(tx *db.Tx) error { return tx.Row(query, args...).Scan(&n) }))
	return n
}

func TestConcurrentIncrementsAreAllCounted(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		things(t, d)
		const writers, times = 8, 10
		var all sync.WaitGroup
		for range writers {
			all.Go(func() {
				for range times {
					err := d.Write(t.Context(), func(tx *db.Tx) error {
						var n int64
						if err := tx.Row("SELECT n FROM test_things WHERE name = ?", "n").Scan(&n); err != nil {
							return err
						}
						_, err := tx.Exec("UPDATE test_things SET n = ? WHERE name = ?", n+1, "n")
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if n := number(t, d, "SELECT n FROM test_things WHERE name = 'n'"); n != writers*times {
			t.Errorf("counted %d, want %d", n, writers*times)
		}
	})
}

// TestTransactionsAreSerializable lets two transactions each take from one of
// two accounts if both together allow it: only one may.
func TestTransactionsAreSerializable(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		things(t, d)
		must(t, d.Write(t.Context(), run("INSERT INTO test_things (name, n) VALUES ('a', 60), ('b', 60)")))
		var both sync.WaitGroup
		for _, name := range []string{"a", "b"} {
			both.Go(func() {
				err := d.Write(t.Context(), func(tx *db.Tx) error {
					var sum int64
					if err := tx.Row("SELECT CAST(SUM(n) AS BIGINT) FROM test_things WHERE name IN ('a', 'b')").Scan(&sum); err != nil {
						return err
					}
					if sum < 100 {
						return nil
					}
					_, err := tx.Exec("UPDATE test_things SET n = n - 100 WHERE name = ?", name)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		if sum := number(t, d, "SELECT CAST(SUM(n) AS BIGINT) FROM test_things"); sum != 20 {
			t.Errorf("the accounts hold %d, want 20", sum)
		}
	})
}

func TestReadSeesOneSnapshot(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		things(t, d)
		must(t, d.Read(t.Context(), func(tx *db.Tx) error {
			for range 2 {
				var n int64
				if err := tx.Row("SELECT n FROM test_things WHERE name = 'n'").Scan(&n); err != nil {
					return err
				}
				if n != 0 {
					t.Errorf("the snapshot changed to %d", n)
				}
				if err := d.Write(t.Context(), run("UPDATE test_things SET n = n + 1")); err != nil {
					return err
				}
			}
			return nil
		}))
		if n := number(t, d, "SELECT n FROM test_things"); n != 2 {
			t.Errorf("afterwards it is %d, want 2", n)
		}
	})
}

func TestNothingIsWrittenInARead(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		things(t, d)
		for name, do := range map[string]func(*db.Tx) error{
			"by Exec":  run("UPDATE test_things SET n = 1"),
			"by Query": func(tx *db.Tx) error { return tx.Row("UPDATE test_things SET n = 1 RETURNING n").Scan(new(int64)) },
			"to others": func(tx *db.Tx) error {
				tx.Notify("topic", "x")
				return nil
			},
		} {
			t.Run(name, func(t *testing.T) {
				if err := d.Read(t.Context(), do); err == nil {
					t.Error("it was not refused")
				}
			})
		}
		if n := number(t, d, "SELECT n FROM test_things"); n != 0 {
			t.Errorf("it was written: %d", n)
		}
	})
}

func TestWhatFailsLeavesNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		things(t, d)
		own := errors.New("not today")
		update := run("UPDATE test_things SET n = 7")
		t.Run("the function's own error comes back", func(t *testing.T) {
			err := d.Write(t.Context(), func(tx *db.Tx) error { return errors.Join(update(tx), own) })
			if !errors.Is(err, own) {
				t.Errorf("got %v", err)
			}
		})
		t.Run("a failed statement that the function forgot dooms the rest", func(t *testing.T) {
			err := d.Write(t.Context(), func(tx *db.Tx) error {
				tx.Exec("INSERT INTO test_things (name, n) VALUES ('n', 1)") //nolint:errcheck // forgotten on purpose
				update(tx)                                                   //nolint:errcheck // as above
				return nil
			})
			if !db.IsUnique(err) {
				t.Errorf("got %v", err)
			}
		})
		t.Run("so does a failed row", func(t *testing.T) {
			err := d.Write(t.Context(), func(tx *db.Tx) error {
				tx.Row("INSERT INTO test_things (name, n) VALUES ('n', 1) RETURNING n").Scan(new(int64)) //nolint:errcheck // forgotten on purpose
				if err := tx.Row("SELECT n FROM test_things").Scan(new(int64)); err == nil {
					t.Error("the transaction went on")
				}
				return nil
			})
			if !db.IsUnique(err) {
				t.Errorf("got %v", err)
			}
		})
		t.Run("a panic rolls back", func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			d.Write(t.Context(), func(tx *db.Tx) error { //nolint:errcheck // it does not return
				update(tx) //nolint:errcheck // nothing of it stays
				panic("at the disco")
			})
		})
		t.Run("the end of the context rolls back", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			err := d.Write(ctx, func(tx *db.Tx) error {
				defer cancel()
				return update(tx)
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
		if n := number(t, d, "SELECT n FROM test_things"); n != 0 {
			t.Errorf("something stayed: %d", n)
		}
	})
}

func TestErrorsHaveNames(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		things(t, d)
		t.Run("a row with the same key", func(t *testing.T) {
			err := d.Write(t.Context(), run("INSERT INTO test_things (name, n) VALUES ('n', 1)"))
			if !db.IsUnique(err) {
				t.Errorf("got %v", err)
			}
		})
		t.Run("no row, which dooms nothing", func(t *testing.T) {
			must(t, d.Write(t.Context(), func(tx *db.Tx) error {
				if err := tx.Row("SELECT n FROM test_things WHERE name = 'x'").Scan(new(int64)); !errors.Is(err, db.ErrNoRows) {
					t.Errorf("got %v", err)
				}
				return run("UPDATE test_things SET n = 0")(tx)
			}))
		})
		t.Run("a missing value is no double", func(t *testing.T) {
			if err := d.Write(t.Context(), run("INSERT INTO test_things (name, n) VALUES ('m', ?)", nil)); err == nil || db.IsUnique(err) {
				t.Errorf("got %v", err)
			}
		})
	})
}

func TestBothEnginesTakeTheSameValues(t *testing.T) {
	type state string
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		must(t, d.Migrate(t.Context(), "test", files("CREATE TABLE test_values (k TEXT PRIMARY KEY, i BIGINT, f DOUBLE PRECISION, s TEXT, b BYTEA);")))
		type row struct {
			i sql.NullInt64
			f sql.NullFloat64
			s sql.NullString
			b []byte
		}
		for name, want := range map[string]row{
			"nothing": {},
			"large":   {i: sql.NullInt64{Int64: math.MaxInt64, Valid: true}, f: sql.NullFloat64{Float64: math.MaxFloat64, Valid: true}},
			"small":   {i: sql.NullInt64{Int64: math.MinInt64, Valid: true}, f: sql.NullFloat64{Float64: math.Inf(-1), Valid: true}},
			"empty":   {s: sql.NullString{Valid: true}, b: []byte{}},
			"strange": {s: sql.NullString{String: "O'Brien <b>?</b> $1 \\ ünï\U0001F600", Valid: true}, b: []byte{0, 255, '\'', 0}},
			"digits":  {s: sql.NullString{String: "007", Valid: true}, b: []byte("42")},
		} {
			t.Run(name, func(t *testing.T) {
				must(t, d.Write(t.Context(), run("INSERT INTO test_values (k, i, f, s, b) VALUES (?, ?, ?, ?, ?)", name, want.i, want.f, want.s, want.b)))
				var got row
				var null int64
				must(t, d.Read(t.Context(), func(tx *db.Tx) error {
					return tx.Row("SELECT i, f, s, b, CASE WHEN b IS NULL THEN 1 ELSE 0 END FROM test_values WHERE k = ?", name).Scan(&got.i, &got.f, &got.s, &got.b, &null)
				}))
				if got.i != want.i || got.f != want.f || got.s != want.s || string(got.b) != string(want.b) || (null == 1) != (want.b == nil) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		}
		t.Run("a string of the program's own type", func(t *testing.T) {
			must(t, d.Write(t.Context(), run("INSERT INTO test_values (k, s) VALUES (?, ?)", state("own"), state("running"))))
			if n := number(t, d, "SELECT COUNT(*) FROM test_values WHERE s = ?", state("running")); n != 1 {
				t.Errorf("found %d rows", n)
			}
		})
		for name, arg := range map[string]any{
			"bool": true, "time": time.Now(), "not a number": math.NaN(), "NUL": "a\x00b", "no UTF-8": "a\xff",
			"uint64 beyond BIGINT": uint64(math.MaxUint64), "struct": struct{}{},
		} {
			t.Run(name+" is refused", func(t *testing.T) {
				for how, do := range map[string]func(tx *db.Tx) error{
					"Exec":  run("UPDATE test_values SET s = ?", arg),
					"Row":   func(tx *db.Tx) error { return tx.Row("SELECT k FROM test_values WHERE s = ?", arg).Scan(new(string)) },
					"Query": func(tx *db.Tx) error { return query(tx, "SELECT k FROM test_values WHERE s = ?", arg) },
				} {
					if err := d.Write(t.Context(), do); croft.KindOf(err) != croft.KindInvalid {
						t.Errorf("%s: got %v", how, err)
					}
				}
			})
		}
	})
}

// query reads rows to their end.
func query(tx *db.Tx, query string, args ...any) error {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(new(string)); err != nil {
			return err
		}
	}
	return rows.Err()
}

func TestBothEnginesReadSQLAlike(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		things(t, d)
		must(t, d.Migrate(t.Context(), "other", files("CREATE TABLE other_parts (thing TEXT NOT NULL REFERENCES test_things (name) ON DELETE CASCADE);")))
		t.Run("a foreign key holds", func(t *testing.T) {
			if err := d.Write(t.Context(), run("INSERT INTO other_parts (thing) VALUES ('nowhere')")); err == nil {
				t.Error("a part of nothing was stored")
			}
		})
		for name, tc := range map[string]struct {
			query string
			args  []any
			want  int64
		}{
			"LIKE knows small from capital":       {"SELECT COUNT(*) FROM test_things WHERE name LIKE 'N%'", nil, 0},
			"LIKE with an escape":                 {`SELECT COUNT(*) FROM test_things WHERE name LIKE ? ESCAPE '\'`, []any{`\%`}, 0},
			"a question mark in a string":         {"SELECT COUNT(*) FROM test_things WHERE name <> 'n?' AND name = ?", []any{"n"}, 1},
			"integers divide to integers":         {"SELECT 7 / 2", nil, 3},
			"the same argument at several places": {"SELECT CAST(? AS BIGINT) + CAST(? AS BIGINT)", []any{1, 2}, 3},
		} {
			t.Run(name, func(t *testing.T) {
				if got := number(t, d, tc.query, tc.args...); got != tc.want {
					t.Errorf("got %d, want %d", got, tc.want)
				}
			})
		}
		t.Run("double quotes never make a string", func(t *testing.T) {
			if err := d.Read(t.Context(), func(tx *db.Tx) error { return tx.Row(`SELECT "nobody"`).Scan(new(string)) }); err == nil {
				t.Error("a name that nothing has was taken for a string")
			}
		})
		t.Run("an insert that updates says what it wrote", func(t *testing.T) {
			var n int64
			must(t, d.Write(t.Context(), func(tx *db.Tx) error {
				return tx.Row("INSERT INTO test_things (name, n) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = test_things.n + excluded.n RETURNING n", "n", 5).Scan(&n)
			}))
			if n != 5 {
				t.Errorf("got %d", n)
			}
		})
		t.Run("Exec counts rows", func(t *testing.T) {
			must(t, d.Write(t.Context(), func(tx *db.Tx) error {
				n, err := tx.Exec("UPDATE test_things SET n = 1 WHERE name = 'nobody'")
				if n != 0 {
					t.Errorf("changed %d rows", n)
				}
				return err
			}))
		})
	})
}

func TestMigrate(t *testing.T) {
	one := "CREATE TABLE test_things (name TEXT PRIMARY KEY);"
	two := "ALTER TABLE test_things ADD COLUMN n BIGINT NOT NULL DEFAULT 3;"
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		must(t, d.Migrate(t.Context(), "test", files(one)))
		must(t, d.Write(t.Context(), run("INSERT INTO test_things (name) VALUES ('a')")))
		t.Run("a file that fails leaves nothing of itself", func(t *testing.T) {
			if err := d.Migrate(t.Context(), "test", files(one, "CREATE TABLE test_half (x TEXT);\nINSERT INTO test_nowhere VALUES (1);")); err == nil {
				t.Fatal("it did not fail")
			}
			if err := d.Read(t.Context(), func(tx *db.Tx) error { return tx.Row("SELECT COUNT(*) FROM test_half").Scan(new(int64)) }); err == nil {
				t.Error("half of it is there")
			}
		})
		t.Run("what is new is done once, whoever comes", func(t *testing.T) {
			var all sync.WaitGroup
			for range 6 {
				all.Go(func() {
					if err := d.Migrate(t.Context(), "test", files(one, two)); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if n := number(t, d, "SELECT n FROM test_things WHERE name = 'a'"); n != 3 {
				t.Errorf("got %d", n)
			}
			if n := number(t, d, "SELECT COUNT(*) FROM test_migrations"); n != 3 { // goose's zero and two of ours
				t.Errorf("%d migrations are noted", n)
			}
		})
		t.Run("an older program is refused", func(t *testing.T) {
			err := d.Migrate(t.Context(), "test", files(one))
			if croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), "version 2 of the test tables") {
				t.Errorf("got %v", err)
			}
		})
		t.Run("owners do not meet", func(t *testing.T) {
			must(t, d.Migrate(t.Context(), "other", files("CREATE TABLE other_things (name TEXT);")))
		})
		t.Run("no file and no proper owner are errors of the caller", func(t *testing.T) {
			for _, err := range []error{d.Migrate(t.Context(), "none", fstest.MapFS{}), d.Migrate(t.Context(), "a; DROP", files(one))} {
				if croft.KindOf(err) != croft.KindUsage {
					t.Errorf("got %v", err)
				}
			}
		})
	})
}

// heard is the next payload.
func heard(t testing.TB, ears <-chan string) string {
	t.Helper()
	select {
	case payload, ok := <-ears:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return payload
	case <-t.Context().Done():
		t.Fatal("nothing was heard")
	}
	return ""
}

func tell(t testing.TB, d *db.DB, topic, payload string) {
	t.Helper()
	must(t, d.Write(t.Context(), func(tx *db.Tx) error {
		tx.Notify(topic, payload)
		return nil
	}))
}

func TestNotify(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ears := d.Listen(t.Context(), "boxes")
		other := d.Listen(t.Context(), "jobs")
		t.Run("what is rolled back is not told", func(t *testing.T) {
			err := d.Write(t.Context(), func(tx *db.Tx) error {
				tx.Notify("boxes", "never")
				return errors.New("changed my mind")
			})
			if err == nil {
				t.Fatal("it was committed")
			}
			tell(t, d, "boxes", "a\nb?'")
			if got := heard(t, ears); got != "a\nb?'" {
				t.Errorf("heard %q", got)
			}
		})
		t.Run("each topic has its own listeners", func(t *testing.T) {
			tell(t, d, "boxes", "first")
			tell(t, d, "jobs", "second")
			if got := heard(t, other); got != "second" {
				t.Errorf("heard %q", got)
			}
			if got := heard(t, ears); got != "first" {
				t.Errorf("heard %q", got)
			}
		})
		t.Run("a payload that is too long says only that something changed", func(t *testing.T) {
			tell(t, d, "boxes", strings.Repeat("x", db.MaxPayload+1))
			if got := heard(t, ears); got != "" {
				t.Errorf("heard %d bytes", len(got))
			}
			tell(t, d, "boxes", strings.Repeat("x", db.MaxPayload))
			if got := heard(t, ears); len(got) != db.MaxPayload {
				t.Errorf("heard %d bytes", len(got))
			}
		})
		t.Run("a slow listener holds nobody up and is told to read again", func(t *testing.T) {
			last := d.Listen(t.Context(), "last")
			must(t, d.Write(t.Context(), func(tx *db.Tx) error {
				for i := range 100 {
					tx.Notify("boxes", fmt.Sprint(i))
				}
				tx.Notify("last", "done")
				return nil
			}))
			heard(t, last)
			again := false
			for len(ears) > 0 {
				payload := <-ears
				again = again || payload == ""
			}
			if !again {
				t.Error("payloads were lost and the listener was not told")
			}
		})
		t.Run("a bad topic is refused", func(t *testing.T) {
			for _, topic := range []string{"", "a\nb", strings.Repeat("x", 500)} {
				err := d.Write(t.Context(), func(tx *db.Tx) error {
					tx.Notify(topic, "x")
					return nil
				})
				if croft.KindOf(err) != croft.KindUsage {
					t.Errorf("got %v", err)
				}
			}
		})
		t.Run("the end of the context closes the channel", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			ears := d.Listen(ctx, "boxes")
			cancel()
			if _, open := <-ears; open {
				t.Error("something was heard instead")
			}
		})
		t.Run("so does the end of the database", func(t *testing.T) {
			must(t, d.Close())
			if _, open := <-other; open {
				t.Error("something was heard instead")
			}
			if _, open := <-d.Listen(t.Context(), "boxes"); open {
				t.Error("a closed database speaks")
			}
		})
	})
}

func TestLead(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		d.SetPace(20*time.Millisecond, time.Second, 2*time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		turns := make(chan int)
		one := make(chan struct{}, 1) // in the hands of the leader
		for i := range 3 {
			all.Go(func() {
				err := d.Lead(ctx, "test", func(ctx context.Context) error {
					select {
					case one <- struct{}{}:
					default:
						t.Error("two lead at once")
						return errors.New("there is a leader already")
					}
					defer func() { <-one }()
					select {
					case turns <- i:
						return fmt.Errorf("turn of %d", i)
					case <-ctx.Done():
						return ctx.Err()
					}
				})
				if err != nil && err.Error() != fmt.Sprintf("turn of %d", i) {
					t.Errorf("got %v", err)
				}
			})
		}
		first, second := <-turns, <-turns
		if first == second {
			t.Errorf("%d led twice", first)
		}
		cancel()
		all.Wait()
		t.Run("names do not meet", func(t *testing.T) {
			err := d.Lead(t.Context(), "a", func(ctx context.Context) error {
				return d.Lead(ctx, "b", func(context.Context) error { return errors.New("both") })
			})
			if err == nil || err.Error() != "both" {
				t.Errorf("got %v", err)
			}
		})
	})
}

// BenchmarkWrite measures transactions of one read and one write each.
func BenchmarkWrite(b *testing.B) {
	for _, engine := range dbtest.Engines() {
		for _, told := range []bool{false, true} {
			do := func(tx *db.Tx) error {
				if told {
					tx.Notify("bench", "x")
				}
				return run("INSERT INTO test_things (name, n) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = test_things.n + 1", fmt.Sprint(time.Now().UnixNano()))(tx)
			}
			name := string(engine)
			if told {
				name += " notifying"
			}
			b.Run(name+", one writer", func(b *testing.B) {
				d := dbtest.Open(b, dbtest.URL(b, engine))
				things(b, d)
				for b.Loop() {
					must(b, d.Write(b.Context(), do))
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
			})
			b.Run(name+", 16 writers", func(b *testing.B) {
				d := dbtest.Open(b, dbtest.URL(b, engine))
				things(b, d)
				b.SetParallelism(8) // on two cores
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := d.Write(b.Context(), do); err != nil {
							b.Error(err)
						}
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
			})
		}
	}
}
