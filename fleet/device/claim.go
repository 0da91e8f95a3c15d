package device

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Claimant is who claims a box.
type Claimant struct {
	Account string
	Address netip.Addr // public, of his browser
}

// Found is the box of a claim code, waiting for "This is mine".
type Found struct {
	Device   croft.DeviceID
	Board    string
	Online   bool
	Transfer bool      // it comes from another owner
	Until    time.Time // when to begin again
}

// StartClaim looks for the box of what an owner typed or scanned, the code of a
// seller too, and keeps it for him for ten minutes. The same account may ask
// again.
func (s *Store) StartClaim(ctx context.Context, who Claimant, typed string) (Found, error) {
	sec, err := ownership.ReadSecret(typed)
	if err != nil {
		return Found{}, err
	}
	if who.Account == "" {
		return Found{}, usage("claim: account is missing")
	}
	var found Found
	var refused error // a wrong code is counted, so its transaction is committed
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		found, refused = Found{}, nil
		now := time.Now()
		where, err := s.realmOf(tx, who, sec, now)
		if err != nil {
			return err
		}
		ids, err := s.waiting(tx, who, sec, where, now)
		switch {
		case err != nil:
			return err
		case len(ids) > 1:
			refused = ownership.ErrAmbiguous
			return nil
		case len(ids) == 0:
			refused = ownership.ErrWrongSecret
			if where == here {
				refused = ownership.ErrWrongHere
			}
			return s.countTry(tx, who, sec, where, now)
		}
		after, err := s.move(tx, croft.DeviceID(ids[0]), ownership.Start, who.Account, who.Account, "", now)
		if err != nil {
			return err
		}
		found = Found{Device: croft.DeviceID(ids[0]), Transfer: after.State == ownership.Accepting, Until: after.Until}
		var presence string
		var seen int64
		if err := tx.Row(`SELECT b.board, b.presence, COALESCE(s.at, 0) FROM device_boxes b
			LEFT JOIN device_seen s ON s.device = b.id WHERE b.id = ?`, ids[0]).Scan(&found.Board, &presence, &seen); err != nil {
			return err
		}
		found.Online = online(presence, db.Instant(seen), now)
		return nil
	})
	if err == nil {
		err = refused
	}
	return found, err
}

// waiting finds the boxes of a secret that wait for somebody. Ones that this
// account has begun to claim are among them, ones of others too: they refuse.
func (s *Store) waiting(tx *db.Tx, who Claimant, sec ownership.Secret, where realm, now time.Time) ([]string, error) {
	sealed := string(s.cfg.ClaimKey.Seal(sec.Hash))
	const free = `claim IN ('unclaimed', 'claiming', 'released')`
	if where == anywhere {
		return db.All(tx, text, `SELECT id FROM device_boxes WHERE code = ? AND code <> '' AND `+free+`
			UNION SELECT id FROM device_boxes WHERE sticker = ? AND sticker <> '' AND `+free+`
			UNION SELECT id FROM device_boxes WHERE offer = ? AND offer <> '' AND offer_until > ? AND claim IN ('transferring', 'accepting')`,
			sealed, sealed, sealed, db.Micros(now))
	}
	return db.All(tx, text, `SELECT b.id FROM device_boxes b JOIN device_seen s ON s.device = b.id
		WHERE b.network = ? AND b.network <> '' AND b.presence = 'online' AND s.at > ?
		AND (b.`+free+` AND (b.code = ? OR b.sticker = ? OR b.word = ?)
			OR b.claim IN ('transferring', 'accepting') AND b.offer = ? AND b.offer_until > ?)`,
		NetworkOf(who.Address), db.Micros(now.Add(-Silence)), sealed, sealed, sealed, sealed, db.Micros(now))
}

// ConfirmClaim makes the box the account's: "This is mine".
func (s *Store) ConfirmClaim(ctx context.Context, account string, id croft.DeviceID) (Box, error) {
	var box Box
	err := s.db.Write(ctx, func(tx *db.Tx) (err error) {
		if _, err = s.move(tx, id, ownership.Confirm, account, account, "", time.Now()); err == nil {
			box, err = s.get(tx, Actor{ID: account}, id)
		}
		return err
	})
	return box, err
}

// UndoClaim lets go of a box that the account has begun to claim.
func (s *Store) UndoClaim(ctx context.Context, account string, id croft.DeviceID) error {
	return s.moved(ctx, id, ownership.Undo, account, account, "")
}

// OfferTransfer gives the seller the code with which a buyer can claim the box,
// once and within a week. Another call replaces it.
func (s *Store) OfferTransfer(ctx context.Context, owner string, id croft.DeviceID) (claim.Code, time.Time, error) {
	code, err := claim.New(rand.Reader)
	if err != nil {
		return "", time.Time{}, err
	}
	sealed := s.cfg.ClaimKey.Seal(enroll.HashClaim(string(code)))
	var until time.Time
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		now := time.Now()
		c, err := s.claimOf(tx, id, now)
		if err == nil && c.State == ownership.Transferring && c.Owner == owner {
			_, err = s.move(tx, id, ownership.Withdraw, owner, owner, "", now)
		}
		if err != nil {
			return err
		}
		c, err = s.move(tx, id, ownership.Offer, owner, owner, sealed, now)
		until = c.OfferUntil
		return err
	})
	if err != nil {
		return "", time.Time{}, err
	}
	return code, until, nil
}

// WithdrawTransfer takes the seller's code back.
func (s *Store) WithdrawTransfer(ctx context.Context, owner string, id croft.DeviceID) error {
	return s.moved(ctx, id, ownership.Withdraw, owner, owner, "")
}

// Release gives a box up: then it is nobody's. Its secrets are spent, so the
// next owner claims it by the words on its page.
func (s *Store) Release(ctx context.Context, owner string, id croft.DeviceID) error {
	return s.moved(ctx, id, ownership.Release, owner, owner, "")
}

// Retire takes a box out of the fleet for good and shuts it out.
func (s *Store) Retire(ctx context.Context, staff Actor, id croft.DeviceID) error {
	if !staff.Staff {
		return ErrNoBox
	}
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := s.move(tx, id, ownership.Retire, staff.ID, "", "", time.Now()); err != nil {
			return err
		}
		tx.Notify(TopicRevoked, string(id))
		_, err := tx.Exec("INSERT INTO device_revocations (kind, id, until) VALUES ('device', ?, 0)", string(id))
		return err
	})
	if err == nil {
		s.cfg.Revoked.Add([]croft.DeviceID{id}, nil)
	}
	return err
}

func (s *Store) moved(ctx context.Context, id croft.DeviceID, move ownership.Move, by, account string, offer enroll.SealedClaim) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := s.move(tx, id, move, by, account, offer, time.Now())
		return err
	})
}

// claimOf is a box's claim now, with what time did to it stored.
func (s *Store) claimOf(tx *db.Tx, id croft.DeviceID, now time.Time) (ownership.Claim, error) {
	c, err := readClaim(tx, id)
	if err != nil {
		return c, err
	}
	after, moves := c.Settle(now)
	if len(moves) > 0 {
		err = s.store(tx, id, moves[len(moves)-1], byFleet, c, after, now)
	}
	return after, err
}

// move computes, then stores; what must be done about it is stored with it.
func (s *Store) move(tx *db.Tx, id croft.DeviceID, m ownership.Move, by, account string, offer enroll.SealedClaim, now time.Time) (ownership.Claim, error) {
	c, err := s.claimOf(tx, id, now)
	if err != nil {
		return c, err
	}
	after, err := c.Next(m, account, offer, now)
	if err != nil || after == c {
		return after, err
	}
	return after, s.store(tx, id, m, by, c, after, now)
}

func readClaim(tx *db.Tx, id croft.DeviceID) (ownership.Claim, error) {
	var c ownership.Claim
	var since, until, offerUntil int64
	err := tx.Row("SELECT claim, owner, claimed, claimant, claim_until, offer, offer_until FROM device_boxes WHERE id = ?", string(id)).
		Scan(&c.State, &c.Owner, &since, &c.Claimant, &until, &c.Offer, &offerUntil)
	if errors.Is(err, db.ErrNoRows) {
		return c, ErrNoBox
	}
	c.Since, c.Until, c.OfferUntil = db.Instant(since), db.Instant(until), db.Instant(offerUntil)
	return c, err
}

func (s *Store) store(tx *db.Tx, id croft.DeviceID, m ownership.Move, by string, before, after ownership.Claim, now time.Time) error {
	if _, err := tx.Exec(`UPDATE device_boxes SET claim = ?, owner = ?, claimed = ?, claimant = ?, claim_until = ?, offer = ?, offer_until = ?
		WHERE id = ?`, string(after.State), after.Owner, db.Micros(after.Since), after.Claimant, db.Micros(after.Until),
		string(after.Offer), db.Micros(after.OfferUntil), string(id)); err != nil {
		return err
	}
	if m == ownership.Confirm {
		if err := spend(tx, id); err != nil {
			return err
		}
	}
	if before.Owner != after.Owner {
		// What one owner called the box is not for the next one's eyes.
		if _, err := tx.Exec("UPDATE device_boxes SET name = '', name_key = '' WHERE id = ?", string(id)); err != nil {
			return err
		}
		if err := index(tx, id); err != nil {
			return err
		}
		if err := want(tx, id); err != nil {
			return err
		}
		if err := s.note(tx, id, "claim_"+string(m), map[string]string{"state": string(after.State)}, now); err != nil {
			return err
		}
	}
	return tell(tx, by, "claim."+string(m), id, words(before), words(after))
}

func words(c ownership.Claim) map[string]string {
	return map[string]string{"state": string(c.State), "owner": c.Owner, "claimant": c.Claimant}
}

// spend makes the secrets of a box worthless for good.
func spend(tx *db.Tx, id croft.DeviceID) error {
	for _, column := range []string{"code", "sticker"} {
		if _, err := tx.Exec(`INSERT INTO device_spent (device, secret) SELECT id, `+column+` FROM device_boxes
			WHERE id = ? AND `+column+` <> '' ON CONFLICT DO NOTHING`, string(id)); err != nil {
			return err
		}
	}
	_, err := tx.Exec("UPDATE device_boxes SET code = '', sticker = '' WHERE id = ?", string(id))
	return err
}

// endClaims stores what time did to claims nobody asks for.
func (s *Store) endClaims(ctx context.Context) error {
	now := time.Now()
	var ids []string
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		ids, err = db.All(tx, text, `SELECT id FROM device_boxes WHERE (claim_until <> 0 OR offer_until <> 0)
			AND (claim_until <> 0 AND claim_until NOT BETWEEN ? AND ? OR offer_until <> 0 AND offer_until NOT BETWEEN ? AND ?) ORDER BY id`,
			db.Micros(now)+1, db.Micros(now.Add(2*ownership.FailSafe)), db.Micros(now)+1, db.Micros(now.Add(2*ownership.OfferLife)))
		return err
	})
	for _, id := range ids {
		if err != nil {
			return err
		}
		err = s.db.Write(ctx, func(tx *db.Tx) error {
			_, err := s.claimOf(tx, croft.DeviceID(id), now)
			return err
		})
	}
	return err
}
