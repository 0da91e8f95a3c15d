package joinfile

import (
	"bytes"
	"fmt"
	"regexp"

	"github.com/croft-cloud/croft"
)

// VoucherPath is where a box's voucher lies on the EFI partition, with slashes:
// the text that croft factory made for the box, and nothing else. It is good for
// the first device key that comes with it, so it is a secret until the box has
// enrolled. A box without one asks its fleet to be let in as it is.
const VoucherPath = "croft/voucher.txt"

// MaxVoucher is the most bytes of such a file.
const MaxVoucher = 2048

// voucherForm is that of an enroll.Voucher's text.
var voucherForm = regexp.MustCompile(`^croft1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

// ParseVoucher reads a voucher's file: one line, with space around it as editors
// leave it. Whether the voucher is good, the fleet says. Errors never repeat it.
func ParseVoucher(raw []byte) (string, error) {
	text := bytes.TrimSpace(bytes.TrimPrefix(raw, []byte("\ufeff")))
	problem := ""
	switch {
	case len(raw) > MaxVoucher:
		problem = fmt.Sprintf("it has %d bytes, more than %d", len(raw), MaxVoucher)
	case len(text) == 0:
		problem = "it is empty"
	case !voucherForm.Match(text):
		problem = "it is not the text of a voucher, which begins with croft1 and has no space in it"
	default:
		return string(text), nil
	}
	return "", &croft.Error{
		Kind:   croft.KindInvalid,
		Err:    fmt.Errorf("read the box's voucher: %s", problem),
		Remedy: "copy the box's voucher from the factory's batch file to " + VoucherPath + " on its EFI partition, or remove that file",
	}
}
