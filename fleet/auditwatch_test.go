package fleet

import (
	"path/filepath"
	"testing"

	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

func TestAnAuditLogThatLostItsEndIsNoticed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		audit, err := auditlog.Open(t.Context(), d, make([]byte, auditlog.KeySize))
		if err != nil {
			t.Fatal(err)
		}
		f, file := &Fleet{audit: audit}, filepath.Join(t.TempDir(), "heads.json")
		for range 3 {
			err := d.Write(t.Context(), func(tx *db.Tx) error {
				return audit.Record(tx, auditlog.Entry{Actor: "usr_1", Action: "device.name", Kind: "device", Object: "x"})
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.verifyAudit(t.Context(), file); err != nil {
				t.Fatalf("a sound log: %v", err)
			}
		}
		err = d.Write(t.Context(), func(tx *db.Tx) error {
			if _, err := tx.Exec("DELETE FROM audit_entries WHERE seq = 3"); err != nil {
				return err
			}
			_, err := tx.Exec("UPDATE audit_head SET seq = 2, hash = (SELECT hash FROM audit_entries WHERE seq = 2)") // as an older copy has it
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.verifyAudit(t.Context(), file); err == nil {
			t.Error("the newest entry is gone, and nobody says so")
		}
	})
}
