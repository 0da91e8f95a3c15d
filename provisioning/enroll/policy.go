package enroll

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/croft-cloud/croft"
)

// FirstUse is the operator's choice of which unknown boxes may enrol.
type FirstUse string

// The choices.
const (
	FirstUseOpen    FirstUse = "open"    // every box; what it says of itself is not proven
	FirstUseVoucher FirstUse = "voucher" // boxes with a good voucher
	FirstUseListed  FirstUse = "listed"  // those, and boxes that name a listed serial number first: for who knows one can say it
)

// ParseFirstUse reads a choice.
func ParseFirstUse(s string) (FirstUse, error) {
	switch f := FirstUse(s); f {
	case FirstUseOpen, FirstUseVoucher, FirstUseListed:
		return f, nil
	}
	return "", fmt.Errorf("first-use policy %q: want open, voucher or listed", s)
}

// Policy is how the operator lets boxes in. Its zero value lets in none.
type Policy struct {
	FirstUse FirstUse
	Factory  []ed25519.PublicKey // whose vouchers are good
}

// Register is what the fleet's database knows of vouchers and serial numbers.
// The caller gives one that works inside the transaction that also stores the
// device, so that of two boxes with one voucher one comes in.
type Register interface {
	// Listed tells whether the operator expects a box with this serial number.
	Listed(ctx context.Context, serialNumber string) (bool, error)

	// HolderOf is the device that a voucher was bound to; empty if there is none.
	HolderOf(ctx context.Context, voucher string) (croft.DeviceID, error)

	// BindVoucher gives the voucher to the device, if it is nobody's, and
	// returns whose it is now. The same device may come with it again: the
	// fleet's answer may have been lost on its way.
	BindVoucher(ctx context.Context, id string, device croft.DeviceID) (croft.DeviceID, error)

	// BindSerial does the same with a listed serial number.
	BindSerial(ctx context.Context, serialNumber string, device croft.DeviceID) (croft.DeviceID, error)
}

// Admission is what came of a request that was let in.
type Admission struct {
	Device       croft.DeviceID
	SerialNumber string    // may be empty
	Proven       bool      // whether a voucher says so too; else it is the box's own word
	VoucherID    string    // empty if it came without
	Code         ClaimHash // of the code that the box shows; may be zero
	Sticker      ClaimHash // of the sticker's secret; zero if no voucher tells it
}

// Admit judges the request of a device whose key was proven ([Peer.MayEnroll]),
// and binds what it came with as the last step.
//
// A voucher that is there must be good, under every policy. A box whose voucher
// was refused may ask again without, if it wants to know whether that does. The
// end of a voucher is for boxes that come with it for the first time: one that was
// let in may have to enrol again years later.
func (p Policy) Admit(ctx context.Context, req *Request, device croft.DeviceID, reg Register, now time.Time) (*Admission, error) {
	in := &Admission{Device: device, SerialNumber: req.SerialNumber, Code: req.Claim}
	if _, err := ParseFirstUse(string(p.FirstUse)); err != nil {
		return nil, fmt.Errorf("admit device %s: %w", device, err)
	}
	if req.Voucher != "" {
		v, err := p.redeem(req, device)
		if err != nil {
			return nil, err
		}
		if err := notOver(ctx, v, device, reg, now); err != nil {
			return nil, err
		}
		holder, err := reg.BindVoucher(ctx, v.ID, device)
		if err != nil {
			return nil, fmt.Errorf("bind voucher %s to device %s: %w", v.ID, device, err)
		}
		if holder != device {
			return nil, refuse(ReasonVoucherUsed, "voucher %s came with another device key before", v.ID)
		}
		in.VoucherID, in.Sticker = v.ID, v.Claim
		if v.SerialNumber != "" {
			in.SerialNumber, in.Proven = v.SerialNumber, true
		}
		return in, nil
	}
	switch p.FirstUse {
	case FirstUseOpen:
		return in, nil
	case FirstUseListed:
		return in, bindListed(ctx, in, reg)
	default:
		return nil, refuse(ReasonVoucherMissing, "device %s came without a voucher, and this fleet wants one", device)
	}
}

// redeem reads the voucher of a request and holds it against the box.
func (p Policy) redeem(req *Request, device croft.DeviceID) (*Voucher, error) {
	v, err := ParseVoucher(req.Voucher, p.Factory)
	switch {
	case err != nil:
		return nil, err
	case v.Device != "" && v.Device != device:
		return nil, refuse(ReasonVoucherForeign, "voucher %s is for another device key", v.ID)
	case v.SerialNumber != "" && req.SerialNumber != "" && v.SerialNumber != req.SerialNumber:
		return nil, refuse(ReasonVoucherForeign, "voucher %s is for serial number %s, the box says %s", v.ID, v.SerialNumber, req.SerialNumber)
	}
	return v, nil
}

// notOver refuses a voucher that has ended, unless the device came with it before.
func notOver(ctx context.Context, v *Voucher, device croft.DeviceID, reg Register, now time.Time) error {
	if !now.After(v.Until) {
		return nil
	}
	holder, err := reg.HolderOf(ctx, v.ID)
	if err != nil {
		return fmt.Errorf("look up voucher %s: %w", v.ID, err)
	}
	if holder != device {
		return refuse(ReasonVoucherExpired, "voucher %s ended on %s", v.ID, v.Until.Format(time.DateOnly))
	}
	return nil
}

func bindListed(ctx context.Context, in *Admission, reg Register) error {
	if in.SerialNumber == "" {
		return refuse(ReasonSerialUnlisted, "device %s has no serial number, and this fleet has a list of them", in.Device)
	}
	listed, err := reg.Listed(ctx, in.SerialNumber)
	if err != nil {
		return fmt.Errorf("look up serial number %s: %w", in.SerialNumber, err)
	}
	if !listed {
		return refuse(ReasonSerialUnlisted, "serial number %s is not on this fleet's list", in.SerialNumber)
	}
	holder, err := reg.BindSerial(ctx, in.SerialNumber, in.Device)
	if err != nil {
		return fmt.Errorf("bind serial number %s to device %s: %w", in.SerialNumber, in.Device, err)
	}
	if holder != in.Device {
		return refuse(ReasonSerialTaken, "serial number %s came with another device key before", in.SerialNumber)
	}
	return nil
}
