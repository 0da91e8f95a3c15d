package device

import (
	"context"
	"time"

	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// RevokedCertificates is every certificate that would still count, but is revoked or
// of a box that is: for brokers that must be told.
func (s *Store) RevokedCertificates(ctx context.Context) (ids []enroll.CertID, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		ids, err = db.All(tx, func(scan db.Scan) (id enroll.CertID, err error) {
			err = scan(&id)
			return id, err
		}, `SELECT c.id FROM device_certificates c WHERE c.not_after > ? AND (
			EXISTS (SELECT 1 FROM device_revocations r WHERE r.kind = 'certificate' AND r.id = c.id)
			OR EXISTS (SELECT 1 FROM device_revocations r WHERE r.kind = 'device' AND r.id = c.device)) ORDER BY c.id`, db.Micros(time.Now()))
		return err
	})
	return ids, err
}
