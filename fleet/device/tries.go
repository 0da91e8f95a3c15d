package device

import (
	"errors"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/provisioning/claim"
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

// secret is what an owner typed, and never leaves this package.
type secret struct {
	hash   enroll.ClaimHash
	prefix enroll.ClaimHash // of the first half of a code of 40 bits; else zero
	long   bool             // the sticker's 80 bits
	words  bool             // the words on the box's page
}

const minWords = 10 // letters in the words on the box's page

// readSecret reads what an owner typed: the code on the screen, the secret on
// the sticker, or the words on the box's page. Its errors repeat nothing of it.
func readSecret(typed string) (secret, error) {
	if len(typed) > 200 {
		return secret{}, usage("claim code is too long")
	}
	if words, ok := normalWords(typed); ok {
		return secret{hash: enroll.HashClaim(words), words: true}, nil
	}
	symbols := strings.Join(strings.FieldsFunc(typed, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.Is(unicode.Pd, r) || r == '\u2212' || r == '_'
	}), "")
	if len(symbols) == 2*claim.Symbols {
		head, err := claim.Normalize(symbols[:claim.Symbols])
		if err != nil {
			return secret{}, err
		}
		tail, err := claim.Normalize(symbols[claim.Symbols:])
		if err != nil {
			return secret{}, err
		}
		return secret{hash: enroll.HashClaim(string(head) + string(tail)), long: true}, nil
	}
	code, err := claim.Normalize(symbols)
	if err != nil {
		return secret{}, err
	}
	return secret{
		hash:   enroll.HashClaim(string(code)),
		prefix: enroll.HashClaim(string(code[:claim.Symbols/2])),
	}, nil
}

// normalWords reads the words of a box's page: three or more words of three or
// more letters each, in small letters with a dash between them. A claim code has
// no such form: its parts have four symbols, and there are two or four of them;
// so four words that could be a sticker's secret are read as that.
func normalWords(typed string) (string, bool) {
	parts := strings.FieldsFunc(strings.ToLower(typed), func(r rune) bool { return r == '-' || unicode.IsSpace(r) })
	letters, fours := 0, 0
	for _, part := range parts {
		if len(part) < 3 || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz") != "" {
			return "", false
		}
		letters += len(part)
		if len(part) == 4 {
			fours++
		}
	}
	return strings.Join(parts, "-"), len(parts) >= 3 && letters >= minWords && (fours != len(parts) || len(parts) != 4)
}

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
func (s *Store) realmOf(tx *db.Tx, who Claimant, sec secret, now time.Time) (realm, error) {
	sealed, network, since := string(s.cfg.ClaimKey.Seal(sec.hash)), NetworkOf(who.Address), db.Micros(now.Add(-tryWindow))
	over := func(limit int, what string, args ...any) (bool, error) {
		var n int
		err := tx.Row("SELECT COUNT(DISTINCT secret) FROM device_tries WHERE at > ? AND secret <> ? AND "+what,
			append([]any{since, sealed}, args...)...).Scan(&n)
		return n >= limit, err
	}
	var counts []func() (bool, error)
	if !sec.words {
		counts = []func() (bool, error){
			func() (bool, error) {
				return over(triesByAccount, "account = ? AND realm = ?", who.Account, string(anywhere))
			},
			func() (bool, error) {
				return over(triesByNetwork, "network = ? AND realm = ?", network, string(anywhere))
			},
		}
		if !sec.long {
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
		err = tooManyTries
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
func (s *Store) prefix(sec secret) string {
	if sec.prefix == (enroll.ClaimHash{}) {
		return ""
	}
	return string(s.cfg.ClaimKey.Seal(sec.prefix))
}

func (s *Store) countTry(tx *db.Tx, who Claimant, sec secret, where realm, now time.Time) error {
	_, err := tx.Exec(`INSERT INTO device_tries (account, network, realm, secret, prefix, at) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (account, network, realm, secret) DO UPDATE SET at = excluded.at`,
		who.Account, NetworkOf(who.Address), string(where), string(s.cfg.ClaimKey.Seal(sec.hash)), s.prefix(sec), db.Micros(now))
	return err
}

var (
	tooManyTries = &croft.Error{
		Kind: croft.KindRefused, Err: errors.New("too many claim codes were wrong"),
		Remedy: "wait an hour, then look at the code on the box again",
	}
	wrongSecret = &croft.Error{
		Kind: croft.KindNotFound, Err: errors.New("no box that waits for an owner has this code"),
		Remedy: "compare it with the code on the box, and see that the box is connected to the internet",
	}
	wrongHere = &croft.Error{
		Kind: croft.KindNotFound, Err: errors.New("no box that waits for an owner has this code in your network"),
		Remedy: "join the network that the box is connected to, open the box's page and type the words it shows",
	}
	ambiguous = &croft.Error{
		Kind: croft.KindRefused, Err: errors.New("more than one box has this code"),
		Remedy: "join the network that the box is connected to, open the box's page and type the words it shows",
	}
)
