// Package factory makes what a batch of boxes needs before it leaves the desk:
// serial numbers, sticker secrets, vouchers, and the sheets of labels to print.
//
//	desk := factory.Desk{Dir: "croft-factory"}
//	key, err := desk.Key()                                            // once
//	batch, err := desk.Make(factory.Order{Name: "spring", Count: 100})
//	pdf, err := batch.Labels(factory.Print{Address: "https://fleet.example/claim"})
//	csv, err := batch.ImportFile()
//
// # Files
//
// A desk is a folder that holds, with NAME for a batch's:
//
//	factory.pem        secret   the factory key, which signs vouchers ([enroll.NewFactoryKey])
//	factory.pub.pem             its public half; the fleet is told it
//	NAME.batch.json    secret   the batch: serial numbers, secrets, vouchers ([Batch])
//	NAME.labels.pdf    secret   labels, made from the batch and an address
//	NAME.serials.csv   private  what the fleet imports, made from the batch: hashes only
//
// All but the public half are of mode 0600. Who has a batch or its labels can
// claim each of its boxes before its owner does; a batch belongs in a backup until
// all its boxes are claimed. Who has the list can claim none, but could bring a
// box into the fleet that passes for another, if the fleet asks for no voucher
// ([enroll.ClaimHash] says why); give it to the fleet and to nobody else.
//
// # Promises
//
//   - [Desk.Make] returns a batch only after its file is on the disk, whole. A
//     crash before leaves no batch, and nobody has seen anything of one; after
//     it, the same order returns the same batch. So nothing is lost.
//   - A batch is never changed. Labels and list are made from it, the same bytes
//     each time, so they can be made again when they are lost.
//   - No serial number and no secret is issued twice: a batch shares none with
//     any other in its folder, and two who work in one folder take turns. Between
//     desks that share no folder chance decides: of a million numbers from
//     strangers, a batch of a thousand hits one in 100 times, and the fleet's
//     import counts it as known. Secrets do not meet.
//
// A factory key or batch that cannot be read is an error, and never replaced.
package factory

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// MaxBoxes is the most boxes of a batch.
const MaxBoxes = 10_000

// VoucherLife is how long vouchers are good if the order does not say: a box may
// lie in a shop for years.
const VoucherLife = 5 * 365 * 24 * time.Hour

// Order says which batch to make.
type Order struct {
	Name  string    // required; small letters, digits and dashes, up to 40: names the files
	Count int       // required; boxes, up to [MaxBoxes]
	Until time.Time // when the vouchers end; default [VoucherLife] from now
}

// Batch is boxes that were made together. It is read, never changed.
type Batch struct {
	Version int       `json:"version"` // of the file; 1
	Name    string    `json:"name"`
	Made    time.Time `json:"made"`    // UTC, whole seconds
	Until   time.Time `json:"until"`   // when the vouchers end, UTC, whole seconds
	Factory string    `json:"factory"` // public half of the key that signed them, PEM
	Boxes   []Box     `json:"boxes"`   // in the order of the labels
}

// Box is what was made for one box.
type Box struct {
	Serial  Serial `json:"serial_number"`
	Secret  Secret `json:"secret"`
	Voucher string `json:"voucher"` // text of an [enroll.Voucher], for the box

	voucherID string // read from the voucher
}

const fileVersion = 1

var nameForm = regexp.MustCompile(`^[0-9a-z][0-9a-z-]{0,39}$`)

func checkName(name string) error {
	if !nameForm.MatchString(name) {
		return usage("name it with up to 40 small letters, digits and dashes, like 2026-11",
			"batch name %.60q: it is also the name of files", name)
	}
	return nil
}

// check finds what is wrong with a batch that was read, and reads its vouchers.
// Its errors never repeat a secret.
func (b *Batch) check(name string) error {
	switch {
	case b.Version != fileVersion:
		return fmt.Errorf("it has version %d, this program knows %d", b.Version, fileVersion)
	case b.Name != name:
		return fmt.Errorf("it is of batch %.60q", b.Name)
	case b.Made.IsZero() || b.Until.IsZero():
		return errors.New("its times are missing")
	case len(b.Boxes) == 0 || len(b.Boxes) > MaxBoxes:
		return fmt.Errorf("it has %d boxes, want 1 to %d", len(b.Boxes), MaxBoxes)
	}
	key, err := enroll.ParseFactoryPublic([]byte(b.Factory))
	if err != nil {
		return errors.New("its factory key is damaged")
	}
	serials, secrets := map[Serial]bool{}, map[Secret]bool{}
	for i := range b.Boxes {
		box := &b.Boxes[i]
		serial, err := ParseSerial(string(box.Serial))
		if err != nil || serial != box.Serial {
			return fmt.Errorf("box %d: %.40q is no serial number", i+1, string(box.Serial))
		}
		voucher, err := readVoucher(box.Voucher, key)
		switch {
		case box.Secret == "":
			return fmt.Errorf("box %d: its secret is missing", i+1)
		case serials[box.Serial] || secrets[box.Secret]:
			return fmt.Errorf("box %d: its serial number or secret is another box's too", i+1)
		case err != nil:
			return fmt.Errorf("box %d: %w", i+1, err)
		case voucher.SerialNumber != string(box.Serial) || voucher.Claim != box.Secret.Hash() || !voucher.Until.Equal(b.Until):
			return fmt.Errorf("box %d: its voucher is for another box", i+1)
		}
		box.voucherID = voucher.ID
		serials[box.Serial], secrets[box.Secret] = true, true
	}
	return nil
}

// usage is an error about what somebody asked for.
func usage(remedy, format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...), Remedy: remedy}
}
