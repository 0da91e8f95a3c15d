package job_test

import (
	"strings"
	"testing"

	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
)

func TestNoListReadsEverything(t *testing.T) {
	f := newFleet(t, dbtest.URL(t, dbtest.SQLite), 1)
	for _, q := range []job.Query{
		{Device: idOf(0)},
		{Device: idOf(0), Pending: true},
		{Device: idOf(0), Cursor: fleetapi.NewID(fleetapi.PrefixJob)},
		{Bulk: "b"},
		{Pending: true},
		{Pending: true, Cursor: fleetapi.NewID(fleetapi.PrefixJob)},
		{Bulk: "b", Pending: true, Cursor: fleetapi.NewID(fleetapi.PrefixJob)},
	} {
		sql, args := job.ListSQL(t, q)
		check(t, f.db.Read(t.Context(), func(tx *db.Tx) error {
			rows, err := tx.Query("EXPLAIN QUERY PLAN "+sql, args...)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id, parent, unused int
				var line string
				if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
					return err
				}
				all := strings.HasPrefix(line, "SCAN") && !strings.Contains(line, "INDEX job_jobs_open") // which has the open ones only
				if all || strings.Contains(line, "TEMP B-TREE") {
					t.Errorf("list %+v: %s", q, line)
				}
			}
			return rows.Err()
		}))
	}
}
