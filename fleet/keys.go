package fleet

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// keySize is how many bytes each key has.
const keySize = 32

// keys are what the fleet's one secret file yields. Each purpose has a key of its
// own, so none tells anything about another.
type keys struct {
	seal  cipher.AEAD // of fleet_sealed
	claim []byte
	auth  []byte
	audit []byte
	alert []byte
}

// readKey reads the fleet's key, and makes one if there is no file yet.
func readKey(path string) (keys, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		secret := make([]byte, keySize)
		rand.Read(secret)
		text = append(hex.AppendEncode(nil, secret), '\n')
		if err = atomicfile.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = atomicfile.WriteFile(path, text, 0o600)
		}
	}
	if err != nil {
		return keys{}, fmt.Errorf("read the fleet's key: %w", err)
	}
	secret, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(secret) != keySize {
		return keys{}, &croft.Error{
			Kind: croft.KindInvalid, Err: fmt.Errorf("%s is not the fleet's key: want %d hexadecimal digits", path, 2*keySize),
			Remedy: "put the key back from your backup",
		}
	}
	return deriveKeys(secret)
}

func deriveKeys(secret []byte) (k keys, err error) {
	var seal []byte
	for _, one := range []struct {
		purpose string
		key     *[]byte
	}{{"seal", &seal}, {"claim", &k.claim}, {"auth", &k.auth}, {"audit", &k.audit}, {"alert", &k.alert}} {
		if *one.key, err = hkdf.Key(sha256.New, secret, nil, "croft fleet "+one.purpose+" v1", keySize); err != nil {
			return keys{}, fmt.Errorf("derive the key for %s: %w", one.purpose, err)
		}
	}
	block, err := aes.NewCipher(seal)
	if err != nil {
		return keys{}, err
	}
	k.seal, err = cipher.NewGCMWithRandomNonce(block)
	return k, err
}

// errOtherKey reports a key that is not the one with which the database was made.
func errOtherKey(path string) error {
	return &croft.Error{
		Kind: croft.KindRefused, Err: fmt.Errorf("the key in %s is not the one this database was made with", path),
		Remedy: "put the fleet's key back from your backup; without it boxes must be claimed anew, and staff signs up again",
	}
}

// vault is what the database holds sealed.
type vault struct {
	db   *db.DB
	keys keys
	log  *slog.Logger
}

// load is what was stored under a name; nil if there is nothing.
func (v *vault) load(ctx context.Context, name string) (plain []byte, err error) {
	var sealed []byte
	err = v.db.Read(ctx, func(tx *db.Tx) error {
		sealed = nil
		err := tx.Row("SELECT value FROM fleet_sealed WHERE name = ?", name).Scan(&sealed)
		if errors.Is(err, db.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil || sealed == nil {
		return nil, err
	}
	plain, err = v.keys.seal.Open(nil, nil, sealed, []byte(name))
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

var errSealed = errors.New("what is sealed was sealed with another key, or changed")

// add stores what is not there yet, and reports whether it was stored: replicas that
// start at once agree on one.
func (v *vault) add(ctx context.Context, name string, plain []byte) (added bool, err error) {
	err = v.db.Write(ctx, func(tx *db.Tx) error {
		n, err := tx.Exec("INSERT INTO fleet_sealed (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", name, v.sealed(name, plain))
		added = n == 1
		return err
	})
	return added, err
}

// replace stores something new, and tells all replicas.
func (v *vault) replace(ctx context.Context, name string, plain []byte) error {
	return v.db.Write(ctx, func(tx *db.Tx) error {
		tx.Notify(topicSealed, name)
		_, err := tx.Exec("UPDATE fleet_sealed SET value = ? WHERE name = ?", v.sealed(name, plain), name)
		return err
	})
}

func (v *vault) sealed(name string, plain []byte) []byte {
	return v.keys.seal.Seal(nil, nil, plain, []byte(name))
}

// check finds out whether the key is the database's, and makes it so for a new one.
func (v *vault) check(ctx context.Context, path string) error {
	if _, err := v.add(ctx, "check", []byte("croft")); err != nil {
		return fmt.Errorf("check the fleet's key: %w", err)
	}
	_, err := v.load(ctx, "check")
	if errors.Is(err, errSealed) {
		return errOtherKey(path)
	}
	return err
}

// topicSealed tells replicas that one of them has sealed something new.
const topicSealed = "fleet_sealed"

// authority is the fleet's power to issue certificates, of which every replica has
// the newest.
type authority struct {
	vault   *vault
	rootKey string   // file; the operator brings it when it is needed
	hosts   []string // names and addresses at which boxes reach the fleet
	now     atomic.Pointer[issuer]
}

type issuer struct {
	*enroll.Authority
	server func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// openAuthority reads the fleet's authority, or founds it. Its root key goes into a
// file for the operator to take away; the fleet does not need it.
func openAuthority(ctx context.Context, v *vault, name, rootKey string, hosts []string) (*authority, error) {
	a := &authority{vault: v, rootKey: rootKey, hosts: hosts}
	err := a.reload(ctx)
	if !errors.Is(err, errNoAuthority) {
		return a, err
	}
	founded, err := enroll.NewAuthority(name, time.Now())
	if err != nil {
		return nil, err
	}
	text, err := founded.PEM()
	if err != nil {
		return nil, err
	}
	root, err := founded.RootPEM()
	if err != nil {
		return nil, err
	}
	// First the key, then the root that needs it. Another replica may be faster.
	own := fmt.Sprintf("%s.%d", rootKey, os.Getpid())
	if err := atomicfile.WriteFile(own, root, 0o600); err != nil {
		return nil, fmt.Errorf("keep the root key: %w", err)
	}
	added, err := v.add(ctx, "authority", text)
	if err != nil || !added {
		err = errors.Join(err, os.Remove(own))
	} else {
		err = os.Rename(own, rootKey)
	}
	if err != nil {
		return nil, fmt.Errorf("found the fleet's authority: %w", err)
	}
	return a, a.reload(ctx)
}

var errNoAuthority = errors.New("fleet has no authority yet")

// reload takes the authority that is stored now.
func (a *authority) reload(ctx context.Context) error {
	text, err := a.vault.load(ctx, "authority")
	if err == nil && text == nil {
		return errNoAuthority
	}
	if err != nil {
		return fmt.Errorf("read the fleet's authority: %w", err)
	}
	found, err := enroll.ParseAuthority(text)
	if err != nil {
		return fmt.Errorf("read the fleet's authority: %w", err)
	}
	a.now.Store(&issuer{Authority: found, server: found.Server(a.hosts...)})
	return nil
}

func (a *authority) authority() *enroll.Authority { return a.now.Load().Authority }

// certificate is for tls.Config.GetCertificate, with the newest authority.
func (a *authority) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return a.now.Load().server(hello)
}

// follow keeps this replica's authority the newest.
func (a *authority) follow(ctx context.Context) error {
	for name := range a.vault.db.Listen(ctx, topicSealed) {
		if name != "" && name != "authority" {
			continue
		}
		if err := a.reload(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// renew gives the authority a new issuing key when the present one grows old. One
// replica does it.
func (a *authority) renew(ctx context.Context) error {
	return a.vault.db.Lead(ctx, "fleet_authority", func(ctx context.Context) error {
		day := time.NewTicker(24 * time.Hour)
		defer day.Stop()
		for {
			if err := a.rekey(ctx, time.Now()); err != nil {
				a.vault.log.ErrorContext(ctx, "fleet's issuing key cannot be renewed", "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-day.C:
			}
		}
	})
}

func (a *authority) rekey(ctx context.Context, now time.Time) error {
	text, err := a.vault.load(ctx, "authority")
	if err != nil {
		return err
	}
	root, err := os.ReadFile(a.rootKey)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	present, err := enroll.ParseAuthority(append(text, root...))
	if err != nil {
		return err
	}
	next, err := present.Rekeyed(now)
	if err != nil || next == present {
		return err
	}
	text, err = next.PEM()
	if err != nil {
		return err
	}
	if err := a.vault.replace(ctx, "authority", text); err != nil {
		return fmt.Errorf("store the new issuing key: %w", err)
	}
	return a.reload(ctx)
}
