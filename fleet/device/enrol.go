package device

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Issue makes a certificate for a CSR, and has no other effect.
type Issue func(csr []byte, now time.Time) (*enroll.Issued, error)

// Enrol lets a box in, or not: what it came with is bound, the box and its
// certificate are stored in one transaction, so of two boxes with one voucher
// one comes in, on whichever replica. A box that is known is updated; whose it
// is, its name and all that people decided stay.
func (s *Store) Enrol(ctx context.Context, policy enroll.Policy, req *enroll.Request, id croft.DeviceID, from netip.Addr, issue Issue) (*enroll.Issued, error) {
	var issued *enroll.Issued
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		now := time.Now()
		if err := notRevoked(tx, id); err != nil {
			return err
		}
		in, err := policy.Admit(ctx, req, id, register{tx}, now)
		if err != nil {
			return err
		}
		if issued, err = issue(req.CSR, now); err != nil {
			return err
		}
		if err := s.admit(tx, req, in, policy.FirstUse, from, now); err != nil {
			return err
		}
		return keepCertificate(tx, issued)
	})
	if err != nil {
		return nil, err
	}
	return issued, nil
}

func (s *Store) admit(tx *db.Tx, req *enroll.Request, in *enroll.Admission, first enroll.FirstUse, from netip.Addr, now time.Time) error {
	// A box cannot talk itself out of a serial number that a voucher told.
	rows, err := tx.Exec(`INSERT INTO device_boxes (id, serial, proven, voucher, board, runs, slot, boot, synced, wire, enrolled,
			address, network, presence, presence_at, journal, epoch, hello_journal, hello_epoch, code, sticker, word,
			claim, owner, claimant, claim_until, offer, offer_until, claimed, name, name_key,
			certificate, certificate_until, version, delivered, every_ms, events, wanted, alerts)
		VALUES (?, ?, ?, ?, ?, ?, '', '', 0, 0, ?, ?, ?, '', 0, 0, 0, 0, 0, '', '', '', 'unclaimed', '', '', 0, '', 0, 0, '', '', '', 0, 1, 0, 0, 0, '', '')
		ON CONFLICT (id) DO NOTHING`,
		string(in.Device), in.SerialNumber, db.Bit(in.Proven), in.VoucherID, req.Board, string(req.Release),
		db.Micros(now), addressText(from), NetworkOf(from))
	if err != nil {
		return err
	}
	if rows == 0 {
		_, err = tx.Exec(`UPDATE device_boxes SET serial = CASE WHEN proven = 1 AND ? = 0 THEN serial ELSE ? END,
			proven = CASE WHEN proven = 1 THEN 1 ELSE ? END, voucher = CASE WHEN ? = '' THEN voucher ELSE ? END,
			board = ?, runs = ?, address = ?, network = ? WHERE id = ?`,
			db.Bit(in.Proven), in.SerialNumber, db.Bit(in.Proven), in.VoucherID, in.VoucherID,
			req.Board, string(req.Release), addressText(from), NetworkOf(from), string(in.Device))
		if err != nil {
			return err
		}
	}
	if in.Proven {
		// The factory's word beats that of a box that named the number first.
		if _, err := tx.Exec("UPDATE device_serials SET device = ? WHERE serial = ?", string(in.Device), in.SerialNumber); err != nil {
			return err
		}
	}
	if err := s.bindSecrets(tx, in, first); err != nil {
		return err
	}
	if err := index(tx, in.Device); err != nil {
		return err
	}
	if err := s.note(tx, in.Device, "enrolled", map[string]string{"release": string(req.Release), "board": req.Board}, now); err != nil {
		return err
	}
	return tell(tx, byBox, "device.enroll", in.Device, nil, map[string]string{
		"serial": in.SerialNumber, "board": req.Board, "release": string(req.Release), "voucher": in.VoucherID,
	})
}

// bindSecrets stores the claim secrets a box came with, those that are spent
// excepted. A sticker's is believed if a voucher told it, or the serial number
// is the box's by a voucher or by the operator's list. With a voucher the sticker
// is this box's alone.
func (s *Store) bindSecrets(tx *db.Tx, in *enroll.Admission, first enroll.FirstUse) error {
	var code, sticker enroll.SealedClaim
	if in.Code != (enroll.ClaimHash{}) {
		code = s.cfg.ClaimKey.Seal(in.Code)
	}
	switch {
	case in.Sticker != (enroll.ClaimHash{}):
		sticker = s.cfg.ClaimKey.Seal(in.Sticker)
	case in.Proven || in.VoucherID != "" || first == enroll.FirstUseListed:
		var voucher string
		err := tx.Row("SELECT sticker, voucher FROM device_serials WHERE serial = ?", in.SerialNumber).Scan(&sticker, &voucher)
		if err != nil && !errors.Is(err, db.ErrNoRows) {
			return err
		}
		if !in.Proven && in.VoucherID != "" && voucher != in.VoucherID {
			sticker = ""
		}
	}
	if sticker != "" && in.Proven {
		if _, err := tx.Exec("UPDATE device_boxes SET sticker = '' WHERE sticker = ? AND sticker <> '' AND id <> ?", string(sticker), string(in.Device)); err != nil {
			return err
		}
	}
	for column, sealed := range map[string]enroll.SealedClaim{"code": code, "sticker": sticker} {
		if sealed == "" {
			continue
		}
		if _, err := tx.Exec("UPDATE device_boxes SET "+column+` = ? WHERE id = ?
			AND NOT EXISTS (SELECT 1 FROM device_spent WHERE device = ? AND secret = ?)`,
			string(sealed), string(in.Device), string(in.Device), string(sealed)); err != nil {
			return err
		}
	}
	return nil
}

// Renew stores the next certificate of a box. One that the database does not
// know, as after a restored backup, has to enrol.
func (s *Store) Renew(ctx context.Context, csr []byte, peer enroll.Peer, from netip.Addr, issue Issue) (*enroll.Issued, error) {
	var issued *enroll.Issued
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		if err := notRevoked(tx, peer.Device); err != nil {
			return err
		}
		var n int
		if err := tx.Row("SELECT COUNT(*) FROM device_revocations WHERE kind = 'certificate' AND id = ?", string(peer.Cert)).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return refusal(enroll.ReasonRevoked, "device %s, or its certificate, is revoked", peer.Device)
		}
		rows, err := tx.Exec("UPDATE device_boxes SET address = ?, network = ? WHERE id = ?", addressText(from), NetworkOf(from), string(peer.Device))
		if err != nil {
			return err
		}
		if rows == 0 {
			return refusal(enroll.ReasonUnenrolled, "device %s is not known to this fleet", peer.Device)
		}
		if issued, err = issue(csr, time.Now()); err != nil {
			return err
		}
		if err := keepCertificate(tx, issued); err != nil {
			return err
		}
		return tell(tx, byBox, "certificate.renew", peer.Device,
			map[string]string{"certificate": string(peer.Cert)}, map[string]string{"certificate": string(issued.ID)})
	})
	if err != nil {
		return nil, err
	}
	return issued, nil
}

func refusal(reason enroll.Reason, format string, args ...any) error {
	return (&enroll.Refusal{Reason: reason, Text: fmt.Sprintf(format, args...)}).Explained()
}

func notRevoked(tx *db.Tx, id croft.DeviceID) error {
	var n int
	if err := tx.Row("SELECT COUNT(*) FROM device_revocations WHERE kind = 'device' AND id = ?", string(id)).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return refusal(enroll.ReasonRevoked, "device %s, or its certificate, is revoked", id)
	}
	return nil
}

// certificatesADay is how many a box gets: a start each few minutes makes no harm, a
// loop without end would fill the table.
const certificatesADay = 200

func keepCertificate(tx *db.Tx, c *enroll.Issued) error {
	var today int
	if err := tx.Row("SELECT COUNT(*) FROM device_certificates WHERE device = ? AND not_before > ?",
		string(c.Device), db.Micros(c.NotBefore.Add(-24*time.Hour))).Scan(&today); err != nil {
		return err
	}
	if today >= certificatesADay {
		return refusal(enroll.ReasonTooMany, "device %s was given %d certificates since yesterday", c.Device, today)
	}
	if _, err := tx.Exec("INSERT INTO device_certificates (id, device, not_before, not_after) VALUES (?, ?, ?, ?)",
		string(c.ID), string(c.Device), db.Micros(c.NotBefore), db.Micros(c.NotAfter)); err != nil {
		return err
	}
	_, err := tx.Exec("UPDATE device_boxes SET certificate = ?, certificate_until = ? WHERE id = ?",
		string(c.ID), db.Micros(c.NotAfter), string(c.Device))
	return err
}

// register is [enroll.Register] inside a transaction.
type register struct{ tx *db.Tx }

func (r register) Listed(_ context.Context, serial string) (bool, error) {
	var n int
	err := r.tx.Row("SELECT COUNT(*) FROM device_serials WHERE serial = ?", serial).Scan(&n)
	return n > 0, err
}

func (r register) HolderOf(_ context.Context, voucher string) (croft.DeviceID, error) {
	var holder croft.DeviceID
	err := r.tx.Row("SELECT device FROM device_vouchers WHERE id = ?", voucher).Scan(&holder)
	if errors.Is(err, db.ErrNoRows) {
		return "", nil
	}
	return holder, err
}

func (r register) BindVoucher(_ context.Context, id string, device croft.DeviceID) (croft.DeviceID, error) {
	if _, err := r.tx.Exec("INSERT INTO device_vouchers (id, device) VALUES (?, ?) ON CONFLICT (id) DO NOTHING", id, string(device)); err != nil {
		return "", err
	}
	var holder croft.DeviceID
	return holder, r.tx.Row("SELECT device FROM device_vouchers WHERE id = ?", id).Scan(&holder)
}

func (r register) BindSerial(_ context.Context, serial string, device croft.DeviceID) (croft.DeviceID, error) {
	if _, err := r.tx.Exec("UPDATE device_serials SET device = ? WHERE serial = ? AND device = ''", string(device), serial); err != nil {
		return "", err
	}
	var holder croft.DeviceID
	return holder, r.tx.Row("SELECT device FROM device_serials WHERE serial = ?", serial).Scan(&holder)
}

// RevokeCertificates makes the present certificates of a box worthless: it has
// to enrol again with its key. [Store.Retire] shuts the key out too.
func (s *Store) RevokeCertificates(ctx context.Context, staff Actor, id croft.DeviceID) error {
	if !staff.Staff {
		return ErrNoBox
	}
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := readClaim(tx, id); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO device_revocations (kind, id, until)
			SELECT 'certificate', id, not_after + ? FROM device_certificates WHERE device = ? ON CONFLICT DO NOTHING`,
			enroll.RenewGrace.Microseconds(), string(id)); err != nil {
			return err
		}
		tx.Notify(TopicRevoked, string(id))
		return tell(tx, staff.ID, "certificate.revoke", id, nil, nil)
	})
	if err != nil {
		return err
	}
	return s.readRevocations(ctx)
}

// readRevocations gives this replica what is stored.
func (s *Store) readRevocations(ctx context.Context) error {
	var devices []croft.DeviceID
	var certs []enroll.CertID
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		devices, certs = nil, nil
		_, err := db.All(tx, func(scan db.Scan) (struct{}, error) {
			var kind, id string
			err := scan(&kind, &id)
			if kind == "device" {
				devices = append(devices, croft.DeviceID(id))
			} else {
				certs = append(certs, enroll.CertID(id))
			}
			return struct{}{}, err
		}, "SELECT kind, id FROM device_revocations")
		return err
	})
	if err == nil {
		s.cfg.Revoked.Set(devices, certs)
	}
	return err
}

func (s *Store) keepRevocations(ctx context.Context) {
	told := s.db.Listen(ctx, TopicRevoked)
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-told:
		case <-minute.C:
		}
		s.try(ctx, "read revocations", s.readRevocations)
	}
}

// Import is what became of a list of serial numbers.
type Import struct{ Added, Known int }

const maxSerials = 100_000

// ImportSerials reads what croft factory wrote: CSV with the columns
// serial_number, voucher and claim (the text of [enroll.ClaimHash]; voucher and
// claim may be empty). The list is taken as a whole or not at all. A serial
// number that is there already stays as it is, with its box.
func (s *Store) ImportSerials(ctx context.Context, staff Actor, list io.Reader) (Import, error) {
	if !staff.Staff {
		return Import{}, ErrNoBox
	}
	type row struct{ serial, voucher, sticker string }
	var rows []row
	r := csv.NewReader(list)
	r.FieldsPerRecord = 3
	for line := 1; ; line++ {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Import{}, usage("read serial numbers: %w", err)
		}
		if line == 1 {
			if strings.Join(record, ",") != "serial_number,voucher,claim" {
				return Import{}, usage("read serial numbers: the first line is %.80q, want serial_number,voucher,claim", strings.Join(record, ","))
			}
			continue
		}
		if err := enroll.CheckSerial(record[0]); err != nil {
			return Import{}, usage("read serial numbers: line %d: %w", line, err)
		}
		if len(record[1]) > 64 || strings.Trim(record[1], "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
			return Import{}, usage("read serial numbers: line %d: %.80q is no voucher ID", line, record[1])
		}
		one := row{serial: record[0], voucher: record[1]}
		if record[2] != "" {
			var hash enroll.ClaimHash
			if err := hash.UnmarshalText([]byte(record[2])); err != nil {
				return Import{}, usage("read serial numbers: line %d: claim: %w", line, err)
			}
			one.sticker = string(s.cfg.ClaimKey.Seal(hash))
		}
		if rows = append(rows, one); len(rows) > maxSerials {
			return Import{}, usage("read serial numbers: there are more than %d", maxSerials)
		}
	}
	var done Import
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		done = Import{}
		for _, one := range rows {
			n, err := tx.Exec("INSERT INTO device_serials (serial, voucher, sticker, device) VALUES (?, ?, ?, '') ON CONFLICT (serial) DO NOTHING",
				one.serial, one.voucher, one.sticker)
			if err != nil {
				return err
			}
			done.Added += int(n)
		}
		done.Known = len(rows) - done.Added
		return tell(tx, staff.ID, "serial.import", "", nil, map[string]string{"added": fmt.Sprint(done.Added), "known": fmt.Sprint(done.Known)})
	})
	return done, err
}

// FreeVoucher lets another key come with the voucher or the serial number of a
// box that is retired, as one whose disk was replaced. Staff only.
func (s *Store) FreeVoucher(ctx context.Context, staff Actor, id croft.DeviceID) error {
	if !staff.Staff {
		return ErrNoBox
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		c, err := readClaim(tx, id)
		if err != nil {
			return err
		}
		if c.State != ownership.Retired {
			return &croft.Error{Kind: croft.KindRefused, Err: errors.New("the box is in the fleet"), Remedy: "retire it first"}
		}
		if _, err := tx.Exec("DELETE FROM device_vouchers WHERE device = ?", string(id)); err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE device_serials SET device = '' WHERE device = ?", string(id)); err != nil {
			return err
		}
		return tell(tx, staff.ID, "device.free_voucher", id, nil, nil)
	})
}

func addressText(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.Unmap().WithZone("").String()
}
