package fleet

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// brokerFiles keeps what an external broker must know of the fleet in a folder: whom
// it may trust, who it is, and who is revoked. Who runs the broker has it read them
// again when they change (for Mosquitto: SIGHUP for the list, a restart for the
// certificate, which is made anew each month).
type brokerFiles struct {
	dir       string
	hosts     []string
	authority *authority
	devices   *device.Store
	db        *db.DB
}

// The files.
const (
	brokerRoots   = "roots.pem"      // the fleet's roots, by which boxes are judged
	brokerIssuers = "issuing.pem"    // and the issuing certificate
	brokerCert    = "server.pem"     // the broker's certificate for boxes, and its issuer's
	brokerKey     = "server-key.pem" // its key
	brokerCRL     = "revoked.pem"    // the list of revoked certificates
)

// run keeps the files up to date. Every replica may do it, for a folder of its own.
func (b *brokerFiles) run(ctx context.Context) error {
	revoked := b.db.Listen(ctx, device.TopicRevoked)
	hour := time.NewTicker(time.Hour)
	defer hour.Stop()
	for {
		if err := b.write(ctx, time.Now()); err != nil && ctx.Err() == nil {
			return fmt.Errorf("write files for the broker: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-revoked:
		case <-hour.C:
		}
	}
}

func (b *brokerFiles) write(ctx context.Context, now time.Time) error {
	if err := atomicfile.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	authority := b.authority.authority()
	if err := b.put(brokerRoots, authority.RootCertificate(), 0o644); err != nil {
		return err
	}
	issuing := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Issuing().Raw})
	if err := b.put(brokerIssuers, append(issuing, authority.RootCertificate()...), 0o644); err != nil {
		return err
	}
	if b.certificateDue(now) {
		if err := b.makeCertificate(authority, now); err != nil {
			return err
		}
	}
	ids, err := b.devices.RevokedCertificates(ctx)
	if err != nil {
		return err
	}
	if fresh, err := b.listed(authority, ids, now); err != nil || fresh {
		return err
	}
	list, err := authority.RevocationList(ids, now)
	if err != nil {
		return err
	}
	return b.put(brokerCRL, list, 0o644)
}

// put writes a file unless it says this already.
func (b *brokerFiles) put(name string, text []byte, mode os.FileMode) error {
	path := filepath.Join(b.dir, name)
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, text) {
		return nil
	}
	return atomicfile.WriteFile(path, text, mode)
}

// certificateDue reports whether the broker needs another certificate: it has none,
// one of another issuer or for other names, or one that is a third of its life old.
func (b *brokerFiles) certificateDue(now time.Time) bool {
	text, err := os.ReadFile(filepath.Join(b.dir, brokerCert))
	block, _ := pem.Decode(text)
	if err != nil || block == nil {
		return true
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.CheckSignatureFrom(b.authority.authority().Issuing()) != nil {
		return true
	}
	for _, host := range b.hosts {
		if cert.VerifyHostname(host) != nil {
			return true
		}
	}
	_, err = os.Stat(filepath.Join(b.dir, brokerKey))
	return err != nil || !enroll.When(cert, now, 0).After(now)
}

// makeCertificate writes the key first: a broker that reads both in between finds a
// pair that does not fit and keeps what it has.
func (b *brokerFiles) makeCertificate(authority *enroll.Authority, now time.Time) error {
	pair, err := authority.ServerCertificate(now, b.hosts...)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return err
	}
	var chain []byte
	for _, der := range pair.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return errors.Join(
		b.put(brokerKey, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600),
		b.put(brokerCert, chain, 0o644),
	)
}

// listed reports whether the list that is there names exactly these certificates, is
// of this issuer, and counts for some days more.
func (b *brokerFiles) listed(authority *enroll.Authority, ids []enroll.CertID, now time.Time) (bool, error) {
	text, err := os.ReadFile(filepath.Join(b.dir, brokerCRL))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	block, _ := pem.Decode(text)
	if err != nil || block == nil {
		return false, err
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil || list.CheckSignatureFrom(authority.Issuing()) != nil {
		return false, nil // damaged, or of a former issuer
	}
	if list.NextUpdate.Sub(now) < enroll.RevocationLife/2 || len(list.RevokedCertificateEntries) != len(ids) {
		return false, nil
	}
	there := make(map[string]bool, len(ids))
	for _, entry := range list.RevokedCertificateEntries {
		there[entry.SerialNumber.Text(16)] = true
	}
	for _, id := range ids {
		if !there[string(id)] {
			return false, nil
		}
	}
	return true, nil
}
