package device

import (
	"net/netip"
	"time"

	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Limits of different wrong secrets in tryWindow; the package comment has the
// sums.
const (
	tryWindow       = time.Hour
	triesByAccount  = 5
	triesByNetwork  = 10
	triesByPrefix   = 5
	triesInTheFleet = 100
)

// realm says where a secret was looked for.
type realm string

const (
	anywhere realm = "anywhere" // among all boxes that wait
	here     realm = "here"     // among those at the same public address
)

// NetworkOf is what the boxes and phones of one household share of an address.
func NetworkOf(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		return ""
	}
	if addr.Is4() {
		return addr.String()
	}
	prefix, _ := addr.Prefix(64) // 64 is never too long for IPv6
	return prefix.String()
}

// realmOf says where a secret may be looked for, or that it is enough for now.
// It counts without the secret itself: who repeats a wrong one spends nothing.
func (s *Store) realmOf(tx *db.Tx, who Claimant, sec ownership.Secret, now time.Time) (realm, error) {
	sealed, network, since := string(s.cfg.ClaimKey.Seal(sec.Hash)), NetworkOf(who.Address), db.Micros(now.Add(-tryWindow))
	over := func(limit int, what string, args ...any) (bool, error) {
		var n int
		err := tx.Row("SELECT COUNT(DISTINCT secret) FROM device_tries WHERE at > ? AND secret <> ? AND "+what,
			append([]any{since, sealed}, args...)...).Scan(&n)
		return n >= limit, err
	}
	var counts []func() (bool, error)
	if !sec.Words {
		counts = []func() (bool, error){
			func() (bool, error) {
				return over(triesByAccount, "account = ? AND realm = ?", who.Account, string(anywhere))
			},
			func() (bool, error) {
				return over(triesByNetwork, "network = ? AND realm = ?", network, string(anywhere))
			},
		}
		if !sec.Long {
			counts = append(counts,
				func() (bool, error) {
					return over(triesByPrefix, "prefix = ? AND realm = ?", s.prefix(sec), string(anywhere))
				},
				func() (bool, error) { return over(triesInTheFleet, "prefix <> '' AND realm = ?", string(anywhere)) })
		}
		if full, err := anyOf(counts); err != nil || !full {
			return anywhere, err
		}
	}
	full, err := anyOf([]func() (bool, error){
		func() (bool, error) {
			return over(triesByAccount, "account = ? AND realm = ?", who.Account, string(here))
		},
		func() (bool, error) { return over(triesByNetwork, "network = ? AND realm = ?", network, string(here)) },
	})
	if err == nil && (full || network == "") {
		err = ownership.ErrTooManyTries
	}
	return here, err
}

func anyOf(counts []func() (bool, error)) (bool, error) {
	for _, count := range counts {
		if full, err := count(); err != nil || full {
			return full, err
		}
	}
	return false, nil
}

// prefix is what is stored of a code's first half: a wrong code may differ from
// a right one in one symbol.
func (s *Store) prefix(sec ownership.Secret) string {
	if sec.Prefix == (enroll.ClaimHash{}) {
		return ""
	}
	return string(s.cfg.ClaimKey.Seal(sec.Prefix))
}

func (s *Store) countTry(tx *db.Tx, who Claimant, sec ownership.Secret, where realm, now time.Time) error {
	_, err := tx.Exec(`INSERT INTO device_tries (account, network, realm, secret, prefix, at) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (account, network, realm, secret) DO UPDATE SET at = excluded.at`,
		who.Account, NetworkOf(who.Address), string(where), string(s.cfg.ClaimKey.Seal(sec.Hash)), s.prefix(sec), db.Micros(now))
	return err
}
