package leasedisk

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// Keeper seals the keys of lease disks so that they can be stored beside them.
// Open returns what Seal was given, on the same box and after any restart or
// update of it, and nothing that was changed or sealed elsewhere. plain has at
// most [MaxPlain] bytes, sealed at most [MaxSealed]. Both may be called from any
// goroutine and may take as long as a TPM does.
//
// An error of kind [croft.KindInvalid] from Open means never: the disk is lost.
// Any other error means not now.
type Keeper interface {
	Seal(ctx context.Context, plain []byte) (sealed []byte, err error)
	Open(ctx context.Context, sealed []byte) (plain []byte, err error)
}

// What goes through a [Keeper], in bytes.
const (
	MaxPlain  = 128     // what a TPM 2.0 seals in one object
	MaxSealed = maxFile // private and public part of such an object, and room
)

// seal binds the key to its lease: a key file moved to another lease is noticed.
func (s *Store) seal(ctx context.Context, key lease.Key, secret []byte) ([]byte, error) {
	if s.cfg.Plaintext {
		return []byte("none\n"), nil
	}
	plain := append(append(make([]byte, 0, MaxPlain), secret...), key...)
	defer clear(plain)
	sealed, err := s.cfg.Keeper.Seal(ctx, plain)
	if err == nil && (len(sealed) == 0 || len(sealed) > MaxSealed) {
		err = fmt.Errorf("the keeper made %d bytes of it", len(sealed))
	}
	if err != nil {
		return nil, fmt.Errorf("seal disk key: %w", err)
	}
	return sealed, nil
}

func (s *Store) unseal(ctx context.Context, key lease.Key) ([]byte, error) {
	if s.cfg.Plaintext {
		return nil, nil
	}
	sealed, err := readSmall(s.sealed(key))
	if err != nil {
		return nil, fmt.Errorf("read disk key: %w", err)
	}
	plain, err := s.cfg.Keeper.Open(ctx, sealed)
	if croft.KindOf(err) == croft.KindInvalid {
		return nil, lostError("its key cannot be opened: " + err.Error())
	}
	if err != nil {
		return nil, fmt.Errorf("open disk key: %w", err)
	}
	if len(plain) != keySize+len(key) || string(plain[keySize:]) != string(key) {
		clear(plain)
		return nil, lostError("its key is another lease's")
	}
	return plain[:keySize], nil
}

// FileKeeper is the keeper of a box without a TPM: AES-256-GCM under a key in a
// file of mode 0600. It protects disks that leave the box without that file, and
// makes removed leases unreadable. It does not protect a stolen box: there the
// file lies on the same disk.
type FileKeeper struct{ aead cipher.AEAD }

// fileKeeperLabel binds what is sealed to its purpose.
const fileKeeperLabel = "croft lease disk key 1"

// OpenFileKeeper reads the key file at path, or makes it. A file that holds
// something else is an error and left alone: every disk depends on it.
func OpenFileKeeper(path string) (*FileKeeper, error) {
	key, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, 32)
		_, _ = rand.Read(key) // never fails
		err = atomicfile.WriteFile(path, key, 0o600)
	}
	if err == nil && len(key) != 32 {
		err = &croft.Error{
			Kind: croft.KindInvalid, Err: fmt.Errorf("%s has %d bytes, want 32", path, len(key)),
			Remedy: "restore it, or remove it together with all lease disks",
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open key file of lease disks: %w", err)
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &FileKeeper{aead}, nil
}

// Seal encrypts plain.
func (k *FileKeeper) Seal(_ context.Context, plain []byte) ([]byte, error) {
	return k.aead.Seal(nil, nil, plain, []byte(fileKeeperLabel)), nil
}

// Open decrypts what Seal returned.
func (k *FileKeeper) Open(_ context.Context, sealed []byte) ([]byte, error) {
	plain, err := k.aead.Open(nil, nil, sealed, []byte(fileKeeperLabel))
	if err != nil {
		return nil, &croft.Error{Kind: croft.KindInvalid, Err: errors.New("sealed with another key, or changed")}
	}
	return plain, nil
}
