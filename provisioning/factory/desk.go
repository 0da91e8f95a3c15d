package factory

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/csv"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Desk is a folder in which batches are made; the package comment tells its
// files.
type Desk struct{ Dir string }

// Names of files.
const (
	keyFile       = "factory.pem"
	publicFile    = "factory.pub.pem"
	batchSuffix   = ".batch.json"
	labelsSuffix  = ".labels.pdf"
	serialsSuffix = ".serials.csv"
)

// BatchPath is where the batch of a name lies.
func (d Desk) BatchPath(name string) string { return filepath.Join(d.Dir, name+batchSuffix) }

// LabelsPath is where its labels go.
func (d Desk) LabelsPath(name string) string { return filepath.Join(d.Dir, name+labelsSuffix) }

// SerialsPath is where its list for the fleet goes.
func (d Desk) SerialsPath(name string) string { return filepath.Join(d.Dir, name+serialsSuffix) }

// Key is a desk's factory key.
type Key struct {
	Made       bool   // just now; else it was there
	Secret     string // path of the secret half
	PublicPath string // path of the public half
	Public     []byte // the public half, PEM
}

// Key draws the desk's factory key, if it has none, and writes its public half. It
// makes the folder, if that is not there.
func (d Desk) Key() (Key, error) {
	k := Key{Secret: filepath.Join(d.Dir, keyFile), PublicPath: filepath.Join(d.Dir, publicFile)}
	if err := atomicfile.MkdirAll(d.Dir, 0o700); err != nil {
		return k, err
	}
	err := d.alone(func() error {
		if _, err := os.Stat(k.Secret); errors.Is(err, fs.ErrNotExist) {
			secret, _, err := enroll.NewFactoryKey()
			if err != nil {
				return err
			}
			if err := atomicfile.WriteFile(k.Secret, secret, 0o600); err != nil {
				return err
			}
			k.Made = true
		}
		_, public, err := d.readKey()
		if err != nil {
			return err
		}
		k.Public = public
		return atomicfile.WriteFile(k.PublicPath, public, 0o644)
	})
	return k, err
}

// readKey is the factory key and the PEM of its public half.
func (d Desk) readKey() (ed25519.PrivateKey, []byte, error) {
	path := filepath.Join(d.Dir, keyFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("%s does not exist", path), Remedy: "make the factory key with `croft factory key`, or name its folder with --dir"}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read factory key: %w", err)
	}
	key, err := enroll.ParseFactoryKey(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("write factory key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// Make makes the batch of an order, and says so. If there is one of that name
// already it returns that, if it is what was ordered, and refuses if not.
func (d Desk) Make(o Order) (b *Batch, made bool, err error) {
	if err := checkName(o.Name); err != nil {
		return nil, false, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	until := o.Until.UTC().Truncate(time.Second)
	switch {
	case o.Count < 1 || o.Count > MaxBoxes:
		return nil, false, usage(fmt.Sprintf("order 1 to %d, and more in further batches", MaxBoxes), "a batch of %d boxes", o.Count)
	case o.Until.IsZero():
		until = now.Add(VoucherLife)
	case !until.After(now):
		return nil, false, usage("give a day to come, or none for five years", "vouchers until %s would be over already", until.Format(time.DateOnly))
	}
	if _, err := os.Stat(d.Dir); errors.Is(err, fs.ErrNotExist) {
		_, _, err := d.readKey() // says what to do
		return nil, false, err
	}
	err = d.alone(func() error {
		b, err = d.Batch(o.Name)
		if err == nil {
			return b.isOf(o)
		}
		if croft.KindOf(err) != croft.KindNotFound {
			return err
		}
		b, err = d.draw(Batch{Version: fileVersion, Name: o.Name, Made: now, Until: until}, o.Count)
		if err != nil {
			return err
		}
		raw, err := json.MarshalIndent(b, "", " ")
		if err != nil {
			return fmt.Errorf("write batch: %w", err)
		}
		made = true
		return atomicfile.WriteFile(d.BatchPath(o.Name), append(raw, '\n'), 0o600)
	})
	if err != nil {
		return nil, false, err
	}
	return b, made, nil
}

// isOf refuses an order that this batch does not fill.
func (b *Batch) isOf(o Order) error {
	var differs string
	switch {
	case len(b.Boxes) != o.Count:
		differs = fmt.Sprintf("has %d boxes", len(b.Boxes))
	case !o.Until.IsZero() && !b.Until.Equal(o.Until.Truncate(time.Second)):
		differs = "has vouchers until " + b.Until.Format(time.DateOnly)
	default:
		return nil
	}
	return &croft.Error{
		Kind:   croft.KindRefused,
		Err:    fmt.Errorf("batch %s was made on %s and %s; a batch never changes", b.Name, b.Made.Format(time.DateOnly), differs),
		Remedy: "give the new batch another name",
	}
}

// draw fills a batch with boxes that no batch of the desk has. The caller is
// alone.
func (d Desk) draw(b Batch, count int) (*Batch, error) {
	key, public, err := d.readKey()
	if err != nil {
		return nil, err
	}
	b.Factory = string(public)
	names, err := d.Names()
	if err != nil {
		return nil, err
	}
	serials, secrets := map[Serial]bool{}, map[Secret]bool{}
	for _, name := range names {
		former, err := d.Batch(name)
		if err != nil {
			return nil, err // its numbers cannot be kept clear of
		}
		for _, box := range former.Boxes {
			serials[box.Serial], secrets[box.Secret] = true, true
		}
	}
	for len(b.Boxes) < count {
		box := Box{Serial: NewSerial(), Secret: NewSecret(), voucherID: enroll.NewVoucherID()}
		if serials[box.Serial] || secrets[box.Secret] {
			continue
		}
		serials[box.Serial], secrets[box.Secret] = true, true
		box.Voucher, err = enroll.Voucher{ID: box.voucherID, SerialNumber: string(box.Serial), Claim: box.Secret.Hash(), Until: b.Until}.Sign(key)
		if err != nil {
			return nil, err
		}
		b.Boxes = append(b.Boxes, box)
	}
	return &b, nil
}

// Names lists the desk's batches.
func (d Desk) Names() ([]string, error) {
	entries, err := os.ReadDir(d.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list batches: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), batchSuffix); ok && nameForm.MatchString(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// Batch reads a batch, and checks that all in it fits together.
func (d Desk) Batch(name string) (*Batch, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := d.BatchPath(name)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.noBatch(name)
	}
	if err != nil {
		return nil, fmt.Errorf("read batch: %w", err)
	}
	b := &Batch{}
	err = json.Unmarshal(raw, b)
	if err == nil {
		err = b.check(name)
	}
	if err != nil {
		return nil, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("%s is damaged: %w", path, err), Remedy: "restore it from its backup"}
	}
	return b, nil
}

func (d Desk) noBatch(name string) error {
	remedy := "make it with `croft factory batch`, or name its folder with --dir"
	if names, err := d.Names(); err == nil && len(names) > 0 {
		slices.Reverse(names)
		remedy = "choose one of: " + strings.Join(names[:min(5, len(names))], ", ")
	}
	return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("%s has no batch %s", d.Dir, name), Remedy: remedy}
}

// ImportFile is what the fleet imports: CSV with the columns serial_number,
// voucher (its ID) and claim (the text of [enroll.ClaimHash]).
func (b *Batch) ImportFile() ([]byte, error) {
	var out bytes.Buffer
	w := csv.NewWriter(&out)
	rows := [][]string{{"serial_number", "voucher", "claim"}}
	for _, box := range b.Boxes {
		hash, err := box.Secret.Hash().MarshalText()
		if err != nil {
			return nil, fmt.Errorf("write list of serial numbers: %w", err)
		}
		rows = append(rows, []string{string(box.Serial), box.voucherID, string(hash)})
	}
	if err := w.WriteAll(rows); err != nil {
		return nil, fmt.Errorf("write list of serial numbers: %w", err)
	}
	return out.Bytes(), nil
}

// readVoucher reads a voucher of a batch.
func readVoucher(text string, key ed25519.PublicKey) (*enroll.Voucher, error) {
	v, err := enroll.ParseVoucher(text, []ed25519.PublicKey{key})
	if err != nil {
		return nil, errors.New("its voucher is damaged, or signed by another key") // the remedies of enrolling do not fit here
	}
	return v, nil
}

// alone does what no two may do in the folder at the same time. A crash ends the
// lock.
func (d Desk) alone(do func() error) error {
	dir, err := os.Open(d.Dir)
	if err != nil {
		return fmt.Errorf("lock folder: %w", err)
	}
	defer dir.Close() // gives the lock back
	for {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX)
		if err == nil {
			return do()
		}
		if !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("lock folder %s: %w", d.Dir, err)
		}
	}
}
