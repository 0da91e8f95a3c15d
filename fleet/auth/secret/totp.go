package secret

import (
	"crypto/subtle"
	"time"

	"github.com/pquerna/otp/totp"
)

const totpPeriod = 30 // seconds

// TOTPStep is the period a code belongs to, the present one or one beside it; 0 if
// it belongs to none.
func TOTPStep(shared Text, code string, now time.Time) (int64, error) {
	found := int64(0)
	for skew := int64(-1); skew <= 1; skew++ {
		step := now.Unix()/totpPeriod + skew
		want, err := totp.GenerateCode(shared.Reveal(), time.Unix(step*totpPeriod, 0))
		if err != nil {
			return 0, err
		}
		if subtle.ConstantTimeCompare([]byte(want), []byte(code)) == 1 {
			found = step
		}
	}
	return found, nil
}
