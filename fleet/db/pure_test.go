package db_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/fleet/db"
)

func TestDollars(t *testing.T) {
	for _, tc := range []struct{ name, query, want string }{
		{"placeholders are numbered", "SELECT ? + ?, ?", "SELECT $1 + $2, $3"},
		{"a query without any stays", "SELECT 1", "SELECT 1"},
		{"a string keeps its question mark", "SELECT 'who?', ?", "SELECT 'who?', $1"},
		{"a doubled quote does not end a string", "SELECT 'it''s?', ?", "SELECT 'it''s?', $1"},
		{"a backslash is no escape in a plain string", `SELECT 'a\', ?, '?'`, `SELECT 'a\', $1, '?'`},
		{"a backslash is one in an E string", `SELECT E'a\'?', ?`, `SELECT E'a\'?', $1`},
		{"a name that ends in e begins no E string", `SELECT name,'\',?`, `SELECT name,'\',$1`},
		{"a quoted name keeps its question mark", `SELECT "why?" FROM t WHERE a = ?`, `SELECT "why?" FROM t WHERE a = $1`},
		{"a line comment is skipped", "SELECT -- really?\n ?", "SELECT -- really?\n $1"},
		{"a comment at the end is skipped", "SELECT ? -- really?", "SELECT $1 -- really?"},
		{"comments nest", "SELECT /* a /* ? */ ? */ ?", "SELECT /* a /* ? */ ? */ $1"},
		{"a star between slashes opens no second comment", "/*/ ? */ ?", "/*/ ? */ $1"},
		{"a dollar quote is skipped", "SELECT $$?$$, $x$ ? $y$ ? $x$, ?", "SELECT $$?$$, $x$ ? $y$ ? $x$, $1"},
		{"a dollar in a name opens no quote", "SELECT a$b$ , ?, c$b$", "SELECT a$b$ , $1, c$b$"},
		{"what is never closed is left alone", "SELECT ?, 'abc?", "SELECT $1, 'abc?"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := db.Dollars(tc.query); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// FuzzDollars checks that nothing but placeholders changes.
func FuzzDollars(f *testing.F) {
	f.Add("SELECT ?, '?' /* ? */ -- ?")
	f.Add(`"?" E'\'?' $$ ? $$ ?`)
	number := regexp.MustCompile(`\$[0-9]+`)
	f.Fuzz(func(t *testing.T, query string) {
		if number.MatchString(query) {
			t.Skip("looks rewritten already")
		}
		if strings.ContainsRune(query, '$') {
			db.Dollars(query) // must end
			return
		}
		if back := number.ReplaceAllString(db.Dollars(query), "?"); back != query && !regexp.MustCompile(`\?[0-9]`).MatchString(query) {
			t.Errorf("%q became %q", query, db.Dollars(query))
		}
	})
}

func TestRetries(t *testing.T) {
	trouble := errors.New("trouble")
	t.Run("conflicts end after 50 tries", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			err := db.Again(t.Context(), func() (f db.Fate, err error) { tries++; return db.Conflict, trouble })
			if tries != 50 || !errors.Is(err, trouble) {
				t.Errorf("%d tries, then %v", tries, err)
			}
		})
	})
	t.Run("a lost connection is tried for some seconds and then called unavailable", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			err := db.Again(t.Context(), func() (db.Fate, error) { return db.Lost, trouble })
			if took := time.Since(begin); took < 2*time.Second || took > 6*time.Second {
				t.Errorf("gave up after %v", took)
			}
			if !errors.Is(err, db.ErrUnavailable) || !errors.Is(err, trouble) {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("what is final is not tried again", func(t *testing.T) {
		tries := 0
		err := db.Again(t.Context(), func() (db.Fate, error) { tries++; return db.Final, trouble })
		if tries != 1 || !errors.Is(err, trouble) {
			t.Errorf("%d tries, then %v", tries, err)
		}
	})
	t.Run("the end of the context ends the pause", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			err := db.Again(ctx, func() (db.Fate, error) { return db.Lost, trouble })
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, trouble) {
				t.Errorf("got %v", err)
			}
		})
	})
}
