package enroll

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// RevocationLife is how long a list of revoked certificates counts.
const RevocationLife = 7 * day

// RevocationList is the certificates that are revoked before their end, as brokers
// read it (RFC 5280): PEM, signed by the issuing key. Lists that were made later have
// greater numbers.
func (a *Authority) RevocationList(revoked []CertID, now time.Time) ([]byte, error) {
	template := &x509.RevocationList{
		Number: big.NewInt(now.UnixMilli()), ThisUpdate: now.Add(-Backdate), NextUpdate: now.Add(RevocationLife),
	}
	for _, id := range revoked {
		serial, ok := new(big.Int).SetString(string(id), 16)
		if !ok {
			return nil, fmt.Errorf("list revoked certificates: %q names none", id)
		}
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now.Add(-Backdate)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.issuing, a.issuingKey)
	if err != nil {
		return nil, fmt.Errorf("list revoked certificates: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}
