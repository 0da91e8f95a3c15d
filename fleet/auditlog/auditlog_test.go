package auditlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

var key = bytes.Repeat([]byte{3}, auditlog.KeySize)

func open(t *testing.T, d *db.DB) *auditlog.Log {
	t.Helper()
	l, err := auditlog.Open(t.Context(), d, key)
	must(t, err)
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func record(t *testing.T, d *db.DB, l *auditlog.Log, e auditlog.Entry) {
	t.Helper()
	must(t, d.Write(t.Context(), func(tx *db.Tx) error { return l.Record(tx, e) }))
}

func exec(t *testing.T, d *db.DB, query string, args ...any) {
	t.Helper()
	must(t, d.Write(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(query, args...)
		return err
	}))
}

func fill(t *testing.T, d *db.DB, l *auditlog.Log, n int) {
	t.Helper()
	for i := range n {
		record(t, d, l, auditlog.Entry{
			Actor: fmt.Sprintf("usr_%d", i%3), Role: "support", Address: "192.0.2.1", Action: []string{"device.rename", "device.label", "devices"}[i%3],
			Kind: "device", Object: fmt.Sprintf("box%d", i), Before: map[string]string{"name": "a", "b": "c"}, After: map[string]string{"name": "'; --"},
		})
	}
}

func TestEntriesAreFound(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := open(t, d)
		before := time.Now()
		fill(t, d, l, 10)
		for name, tc := range map[string]struct {
			q    auditlog.Query
			want []int64
		}{
			"all":                    {auditlog.Query{}, []int64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}},
			"by actor":               {auditlog.Query{Actor: "usr_1"}, []int64{8, 5, 2}},
			"by object":              {auditlog.Query{Object: "box3"}, []int64{4}},
			"by action":              {auditlog.Query{Action: "device.label"}, []int64{8, 5, 2}},
			"by how actions begin":   {auditlog.Query{Action: "device."}, []int64{10, 8, 7, 5, 4, 2, 1}},
			"no pattern is followed": {auditlog.Query{Action: "%."}, nil},
			"by both":                {auditlog.Query{Action: "device.", Actor: "usr_0"}, []int64{10, 7, 4, 1}},
			"by address":             {auditlog.Query{Address: "192.0.2.2"}, nil},
			"later":                  {auditlog.Query{From: time.Now().Add(time.Hour)}, nil},
			"earlier":                {auditlog.Query{Until: before}, nil},
			"SQL":                    {auditlog.Query{Actor: "' OR '1'='1"}, nil},
		} {
			found, next, err := l.Search(t.Context(), tc.q)
			var got []int64
			for _, n := range found {
				got = append(got, n.Seq)
			}
			if err != nil || next != "" || fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Errorf("%s: %v, %q, %v, want %v", name, got, next, err, tc.want)
			}
		}
		var pages []int64
		cursor := ""
		for first := true; first || cursor != ""; first = false {
			found, next, err := l.Search(t.Context(), auditlog.Query{Limit: 4, Cursor: cursor})
			must(t, err)
			for _, n := range found {
				pages = append(pages, n.Seq)
			}
			fill(t, d, l, 1) // what comes meanwhile shifts no page
			cursor = next
		}
		if fmt.Sprint(pages) != "[10 9 8 7 6 5 4 3 2 1]" {
			t.Errorf("pages: %v", pages)
		}
		for _, bad := range []auditlog.Query{{Cursor: "x"}, {Cursor: "-1"}, {Limit: -1}, {Limit: auditlog.MaxPage + 1}, {Actor: "\x00"}, {Object: strings.Repeat("x", 2000)}} {
			if _, _, err := l.Search(t.Context(), bad); err == nil {
				t.Errorf("%+v was accepted", bad)
			}
		}
	})
}

func TestEntryIsWholeAndOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := open(t, d)
		at := time.Date(2026, 11, 21, 8, 30, 0, 1000, time.UTC)
		e := auditlog.Entry{ID: "evt_1", At: at, Actor: "fleet", Role: "r", Address: "::1", Action: "a.b", Kind: "k", Object: "o", Before: map[string]string{"x": "<b>"}, After: map[string]string{"x": "line\nbreak\xff"}}
		record(t, d, l, e)
		record(t, d, l, e)
		found, _, err := l.Search(t.Context(), auditlog.Query{})
		must(t, err)
		e.After["x"] = found[0].After["x"]
		if len(found) != 1 || fmt.Sprint(found[0].Entry) != fmt.Sprint(e) || strings.Contains(found[0].After["x"], "\n") || !utf8.ValidString(found[0].After["x"]) {
			t.Errorf("found %+v, want %+v", found, e)
		}
		many := map[string]string{}
		for i := range 1000 {
			many[strings.Repeat("k", 3000)+fmt.Sprint(i)] = strings.Repeat("v", 3000)
			many[fmt.Sprint(i)] = strings.Repeat("v", 3000)
		}
		record(t, d, l, auditlog.Entry{Actor: "a", Action: "b", After: many})
		if found, _, err = l.Search(t.Context(), auditlog.Query{Limit: 1}); err != nil || len(found[0].After) > 32 {
			t.Errorf("%d fields, %v", len(found[0].After), err)
		}
		for _, bad := range []auditlog.Entry{{Actor: "a"}, {Action: "a"}} {
			if err := d.Write(t.Context(), func(tx *db.Tx) error { return l.Record(tx, bad) }); err == nil {
				t.Errorf("%+v was recorded", bad)
			}
		}
		undone := errors.New("undone")
		if err := d.Write(t.Context(), func(tx *db.Tx) error {
			return errors.Join(l.Record(tx, auditlog.Entry{Actor: "a", Action: "never"}), undone)
		}); !errors.Is(err, undone) {
			t.Error(err)
		}
		if found, _, err = l.Search(t.Context(), auditlog.Query{Action: "never"}); err != nil || len(found) != 0 {
			t.Errorf("a change that was undone stands in the log: %v", found)
		}
		if n, err := l.Verify(t.Context()); n != 2 || err != nil {
			t.Errorf("Verify = %d, %v", n, err)
		}
	})
}

func TestTamperingShows(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(t *testing.T, d *db.DB)
		want int64
	}{
		"an entry is changed": {func(t *testing.T, d *db.DB) { exec(t, d, "UPDATE audit_entries SET actor = 'usr_x' WHERE seq = 3") }, 3},
		"a time is changed":   {func(t *testing.T, d *db.DB) { exec(t, d, "UPDATE audit_entries SET at = at + 1 WHERE seq = 3") }, 3},
		"text moves between fields": {func(t *testing.T, d *db.DB) {
			exec(t, d, "UPDATE audit_entries SET kind = 'devicebox', object = '2' WHERE seq = 3")
		}, 3},
		"one in the middle is gone": {func(t *testing.T, d *db.DB) { exec(t, d, "DELETE FROM audit_entries WHERE seq = 4") }, 4},
		"a gap is closed": {func(t *testing.T, d *db.DB) {
			exec(t, d, "DELETE FROM audit_entries WHERE seq = 4")
			exec(t, d, "UPDATE audit_entries SET seq = -seq WHERE seq > 4")
			exec(t, d, "UPDATE audit_entries SET seq = -seq - 1 WHERE seq < 0")
			exec(t, d, "UPDATE audit_head SET seq = seq - 1")
		}, 4},
		"the first is gone": {func(t *testing.T, d *db.DB) { exec(t, d, "DELETE FROM audit_entries WHERE seq = 1") }, 1},
		"the last is gone":  {func(t *testing.T, d *db.DB) { exec(t, d, "DELETE FROM audit_entries WHERE seq = 8") }, 8},
		"all are gone":      {func(t *testing.T, d *db.DB) { exec(t, d, "DELETE FROM audit_entries") }, 1},
		"the end was taken off and the head set back": {func(t *testing.T, d *db.DB) {
			exec(t, d, "DELETE FROM audit_entries WHERE seq > 6")
			exec(t, d, "UPDATE audit_head SET seq = 6, hash = (SELECT hash FROM audit_entries WHERE seq = 6)")
		}, 7},
	} {
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, d *db.DB) {
				l := open(t, d)
				fill(t, d, l, 8)
				head, err := l.Head(t.Context())
				must(t, err)
				if n, err := l.Verify(t.Context(), head); n != 8 || err != nil {
					t.Fatalf("before: %d, %v", n, err)
				}
				tc.do(t, d)
				var broken *auditlog.BrokenError
				if _, err := l.Verify(t.Context(), head); !errors.As(err, &broken) || broken.Seq != tc.want {
					t.Errorf("Verify = %v, want entry %d", err, tc.want)
				}
			})
		})
	}
}

func TestAnotherKeyVerifiesNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		fill(t, d, open(t, d), 1)
		other, err := auditlog.Open(t.Context(), d, bytes.Repeat([]byte{4}, auditlog.KeySize))
		must(t, err)
		if _, err := other.Verify(t.Context()); err == nil {
			t.Error("a log written with another key is right")
		}
		if _, err := auditlog.Open(t.Context(), d, key[1:]); err == nil {
			t.Error("a short key was accepted")
		}
	})
}

func TestManyRecordAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := open(t, d)
		var work sync.WaitGroup
		for i := range 8 {
			work.Go(func() {
				for j := range 5 {
					err := d.Write(t.Context(), func(tx *db.Tx) error {
						return l.Record(tx, auditlog.Entry{Actor: fmt.Sprint(i), Action: fmt.Sprint("do.", j)})
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		work.Wait()
		if n, err := l.Verify(t.Context()); n != 40 || err != nil {
			t.Errorf("Verify = %d, %v", n, err)
		}
	})
}
