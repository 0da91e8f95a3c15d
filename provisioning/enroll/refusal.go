package enroll

import (
	"errors"
	"fmt"

	"github.com/croft-cloud/croft"
)

// Reason says why something was refused. Reasons cross the wire and are counted.
type Reason string

// The reasons of the fleet.
const (
	ReasonMessage        Reason = "message"         // not a message of ours, or too long
	ReasonCSR            Reason = "csr"             // not a sound CSR for a device key
	ReasonKey            Reason = "key"             // a sound CSR, for a key that the handshake did not prove
	ReasonAnonymous      Reason = "anonymous"       // no client certificate
	ReasonForeign        Reason = "foreign"         // a client certificate that this fleet never issued
	ReasonUnenrolled     Reason = "unenrolled"      // a good proof of a device key, where a certificate is needed
	ReasonEnrolled       Reason = "enrolled"        // a certificate, where a proof of the device key is needed
	ReasonExpired        Reason = "expired"         // the certificate is over, but may renew
	ReasonLapsed         Reason = "lapsed"          // the certificate is over for longer than RenewGrace
	ReasonRevoked        Reason = "revoked"         // the device or its certificate is revoked
	ReasonVoucherMissing Reason = "voucher_missing" // the policy wants one
	ReasonVoucherInvalid Reason = "voucher_invalid" // damaged, or signed by nobody we know
	ReasonVoucherExpired Reason = "voucher_expired"
	ReasonVoucherForeign Reason = "voucher_foreign" // good, but of another box
	ReasonVoucherUsed    Reason = "voucher_used"    // another device key came with it
	ReasonSerialUnlisted Reason = "serial_unlisted" // no or an unexpected serial number, and the policy has a list
	ReasonSerialTaken    Reason = "serial_taken"    // another device key came with it
	ReasonTooMany        Reason = "too_many"        // the box was given many certificates today
)

// The reasons of the box.
const (
	ReasonServer        Reason = "server"         // not the pinned fleet
	ReasonServerExpired Reason = "server_expired" // the fleet's certificate is not valid at this time
	ReasonCertificate   Reason = "certificate"    // what the fleet issued is not for this box
)

// advice is what each reason means to who must act on it.
var advice = map[Reason]struct {
	kind   croft.Kind
	remedy string
}{
	ReasonMessage:        {croft.KindInvalid, ""},
	ReasonCSR:            {croft.KindInvalid, ""},
	ReasonKey:            {croft.KindRefused, ""},
	ReasonAnonymous:      {croft.KindRefused, ""},
	ReasonForeign:        {croft.KindRefused, "enrol the box with this fleet"},
	ReasonUnenrolled:     {croft.KindRefused, "enrol the box"},
	ReasonEnrolled:       {croft.KindRefused, "renew the certificate, or enrol with the device key alone"},
	ReasonExpired:        {croft.KindRefused, "renew the box's certificate"},
	ReasonLapsed:         {croft.KindRefused, "enrol the box again"},
	ReasonRevoked:        {croft.KindRefused, "ask the fleet's operator"},
	ReasonVoucherMissing: {croft.KindRefused, "put the factory's voucher for this box on its EFI partition"},
	ReasonVoucherInvalid: {croft.KindInvalid, "put the factory's voucher for this box on its EFI partition again"},
	ReasonVoucherExpired: {croft.KindRefused, "ask the factory for a new voucher"},
	ReasonVoucherForeign: {croft.KindRefused, "put the voucher of this box on its EFI partition, not another's"},
	ReasonVoucherUsed:    {croft.KindRefused, "ask the fleet's operator to free the voucher, or the factory for another"},
	ReasonSerialUnlisted: {croft.KindRefused, "ask the fleet's operator to import the serial number of the box"},
	ReasonSerialTaken:    {croft.KindRefused, "ask the fleet's operator to free the serial number"},
	ReasonTooMany:        {croft.KindRefused, "wait a day, and see why the box keeps asking for certificates"},
	ReasonServer:         {croft.KindRefused, "check the fleet's host and root certificate in the box's network file"},
	ReasonServerExpired:  {croft.KindRefused, "check the clocks of the box and of the fleet"},
	ReasonCertificate:    {croft.KindInvalid, ""},
}

// Refusal is why something was refused. It is what the fleet answers a box that
// it refuses: {"reason": "voucher_used", "error": "…"}.
type Refusal struct {
	Reason Reason `json:"reason"`
	Text   string `json:"error"`
}

func (r *Refusal) Error() string { return r.Text }

// Explained is the refusal as a *[croft.Error]: with the kind and the remedy
// that its reason has. A reason of a later version has none.
func (r *Refusal) Explained() error {
	a := advice[r.Reason]
	return &croft.Error{Kind: a.kind, Err: r, Remedy: a.remedy}
}

// ReasonOf is the reason of the first [Refusal] in err's chain; empty if there
// is none.
func ReasonOf(err error) Reason {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Reason
	}
	return ""
}

func refuse(reason Reason, format string, args ...any) error {
	return (&Refusal{Reason: reason, Text: fmt.Sprintf(format, args...)}).Explained()
}
