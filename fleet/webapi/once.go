package webapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
)

// keyLife is how long an idempotency key is remembered.
const keyLife = 24 * time.Hour

// The states of a key.
const (
	keyBegun  = "begun"  // the request is being done, or was cut off. Transitions to: done, secret, gone
	keyDone   = "done"   // its answer is stored
	keySecret = "secret" // it was done; its answer was shown once and is not stored
)

// once does a request unless one with its key was done, whose answer it returns.
// A request that failed leaves no key, unless nobody knows what became of it.
func (k *call) once(secret bool, do func() ([]byte, error)) ([]byte, error) {
	ctx := k.r.Context()
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %q %q\n%s", k.r.Method, k.r.URL.Path, k.r.URL.RawQuery, k.raw))
	var state string
	var request, answer []byte
	err := k.cfg.DB.Write(ctx, func(tx *db.Tx) error {
		state, request, answer = "", nil, nil
		now := time.Now()
		if _, err := tx.Exec("DELETE FROM webapi_keys WHERE at < ?", db.Micros(now.Add(-keyLife))); err != nil {
			return err
		}
		err := tx.Row("SELECT state, request, answer FROM webapi_keys WHERE account = ? AND idem = ?", k.p.Account, k.key).Scan(&state, &request, &answer)
		if !errors.Is(err, db.ErrNoRows) {
			return err
		}
		_, err = tx.Exec("INSERT INTO webapi_keys (account, idem, request, state, answer, at) VALUES (?, ?, ?, ?, ?, ?)",
			k.p.Account, k.key, sum[:], keyBegun, []byte{}, db.Micros(now))
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case state != "" && !bytes.Equal(request, sum[:]):
		return nil, conflict("the idempotency key was used for another request", "use a new key for each")
	case state == keyBegun:
		return nil, conflict("a request with this idempotency key was begun and has not ended", "look what became of it before you try with another key")
	case state == keySecret:
		return nil, conflict("this was done; its answer has a secret that is shown once", "undo it and do it again if the secret is lost")
	case state == keyDone:
		return answer, nil
	}
	answer, err = do()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second) // who asked may be gone
	defer cancel()
	if errors.Is(err, db.ErrInDoubt) {
		return nil, err
	}
	stored := k.cfg.DB.Write(ctx, func(tx *db.Tx) error {
		if err != nil {
			_, e := tx.Exec("DELETE FROM webapi_keys WHERE account = ? AND idem = ?", k.p.Account, k.key)
			return e
		}
		state, kept := keyDone, answer
		if secret {
			state, kept = keySecret, []byte{}
		}
		if kept == nil {
			kept = []byte{}
		}
		_, e := tx.Exec("UPDATE webapi_keys SET state = ?, answer = ? WHERE account = ? AND idem = ?", state, kept, k.p.Account, k.key)
		return e
	})
	if stored != nil {
		k.log.Warn("idempotency key was not stored", "error", stored)
	}
	return answer, err
}

func conflict(text, remedy string) error {
	return &croft.Error{Kind: croft.KindRefused, Err: errors.New(text), Remedy: remedy}
}
