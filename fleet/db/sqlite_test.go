package db_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

// writeURL names the database in which a second run of this test binary writes
// until it is killed.
const writeURL = "CROFT_DBTEST_WRITE"

func TestMain(m *testing.M) {
	if url := os.Getenv(writeURL); url != "" {
		fmt.Fprintln(os.Stderr, writeForever(url))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeForever writes two rows a transaction and says the number of each that
// was committed.
func writeForever(url string) error {
	ctx := context.Background()
	d, err := db.Open(ctx, url, nil)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		if err := d.Write(ctx, func(tx *db.Tx) error {
			if err := run("INSERT INTO test_things (name, n) VALUES (?, ?)", fmt.Sprint("left", n), n)(tx); err != nil {
				return err
			}
			return run("INSERT INTO test_things (name, n) VALUES (?, ?)", fmt.Sprint("right", n), n)(tx)
		}); err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, n)
	}
}

func TestKill9LosesNothingCommitted(t *testing.T) {
	url := dbtest.URL(t, dbtest.SQLite)
	for round := range 3 {
		func() {
			d, err := db.Open(t.Context(), url, nil)
			must(t, err)
			defer d.Close()
			things(t, d)
			must(t, d.Write(t.Context(), run("DELETE FROM test_things")))
		}()
		self, err := os.Executable()
		must(t, err)
		writer := exec.CommandContext(t.Context(), self)
		writer.Env = append(os.Environ(), writeURL+"="+url)
		writer.Stderr = t.Output()
		out, err := writer.StdoutPipe()
		must(t, err)
		must(t, writer.Start())
		last := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			last, err = strconv.Atoi(lines.Text())
			must(t, err)
			if last == 20+7*round {
				must(t, writer.Process.Kill()) // what it says after this is read as well
			}
		}
		writer.Wait() //nolint:errcheck // it was killed
		if last < 20 {
			t.Fatalf("the writer ended by itself after %d", last)
		}

		d, err := db.Open(t.Context(), url, nil) // its lock fell with it
		must(t, err)
		n := number(t, d, "SELECT MAX(n) FROM test_things")
		if n < int64(last) {
			t.Errorf("%d were committed, %d are there", last, n)
		}
		if rows := number(t, d, "SELECT COUNT(*) FROM test_things"); rows != 2*n {
			t.Errorf("%d rows of %d transactions of two", rows, n)
		}
		var sound string
		must(t, d.Read(t.Context(), func(tx *db.Tx) error { return tx.Row("PRAGMA integrity_check").Scan(&sound) }))
		if sound != "ok" {
			t.Error(sound)
		}
		must(t, d.Close())
	}
}

func TestSQLiteFile(t *testing.T) {
	url := dbtest.URL(t, dbtest.SQLite)
	path := strings.TrimPrefix(url, "sqlite:")
	d := dbtest.Open(t, url)
	things(t, d)
	must(t, d.Write(t.Context(), run("UPDATE test_things SET n = 0")))
	t.Run("is its owner's alone", func(t *testing.T) {
		for _, name := range []string{path, path + "-wal", path + ".lock"} {
			info, err := os.Stat(name)
			must(t, err)
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", filepath.Base(name), info.Mode())
			}
		}
	})
	t.Run("is open once only", func(t *testing.T) {
		_, err := db.Open(t.Context(), "sqlite://"+path, nil)
		if croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), "in use") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("has the settings that durability needs", func(t *testing.T) {
		for pragma, want := range map[string]int64{"synchronous": 2, "foreign_keys": 1} {
			must(t, d.Write(t.Context(), func(tx *db.Tx) error {
				var got int64
				err := tx.Row("PRAGMA " + pragma).Scan(&got)
				if got != want {
					t.Errorf("%s is %d, want %d", pragma, got, want)
				}
				return err
			}))
		}
	})
	t.Run("waits for another program that writes", func(t *testing.T) {
		other, err := sql.Open("sqlite", path)
		must(t, err)
		defer other.Close()
		conn, err := other.Conn(t.Context())
		must(t, err)
		defer conn.Close()
		_, err = conn.ExecContext(t.Context(), "BEGIN IMMEDIATE")
		must(t, err)
		_, err = conn.ExecContext(t.Context(), "UPDATE test_things SET n = 5")
		must(t, err)
		done := make(chan error, 1)
		go func() { done <- d.Write(t.Context(), run("UPDATE test_things SET n = n + 1")) }()
		_, err = conn.ExecContext(t.Context(), "COMMIT")
		must(t, err)
		must(t, <-done)
		if n := number(t, d, "SELECT n FROM test_things"); n != 6 {
			t.Errorf("got %d", n)
		}
	})
	t.Run("that may grow no more says so, keeps what it has and goes on when it may", func(t *testing.T) {
		fill := func(limit int) error {
			return d.Write(t.Context(), func(tx *db.Tx) error {
				if err := tx.Row(fmt.Sprint("PRAGMA max_page_count = ", limit)).Scan(new(int64)); err != nil {
					return err
				}
				return run("INSERT INTO test_things (name, n) VALUES (?, 0)", strings.Repeat("x", 100_000))(tx)
			})
		}
		if err := fill(10); croft.KindOf(err) != croft.KindNoSpace || !strings.Contains(err.Error(), "free some space") {
			t.Errorf("got %v", err)
		}
		if n := number(t, d, "SELECT COUNT(*) FROM test_things"); n != 1 {
			t.Errorf("it holds %d rows", n)
		}
		must(t, fill(1_000_000))
	})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.db")
	must(t, os.WriteFile(junk, []byte(strings.Repeat("no database at all\n", 100)), 0o600))
	for _, tc := range []struct {
		name, url string
		want      croft.Kind
		says      string
	}{
		{"a folder that is missing", "sqlite:" + dir + "/none/fleet.db", croft.KindMissing, "make the folder"},
		{"a file that is no database", "sqlite:" + junk, croft.KindInvalid, "restore it"},
		{"a URL of nothing known", "mysql://root:secret@host/db", croft.KindUsage, "sqlite:/path"},
		{"a URL without a path", "sqlite:", croft.KindUsage, "sqlite:/path"},
		{"a damaged URL of PostgreSQL", "postgres://user:secret@host:port/db", croft.KindUsage, "postgres://"},
		{"a server that is not there", "postgres://user:secret@127.0.0.1:1/db", croft.KindOther, "see that PostgreSQL runs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := db.Open(t.Context(), tc.url, nil)
			if err == nil {
				d.Close()
				t.Fatal("it was opened")
			}
			if croft.KindOf(err) != tc.want || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got kind %q: %v", croft.KindOf(err), err)
			}
		})
	}
}
