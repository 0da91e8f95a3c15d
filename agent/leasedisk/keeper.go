package leasedisk

import (
	"context"
	"fmt"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
)

// Keeper seals the keys of lease disks so that they can be stored beside them.
// Open returns what Seal was given, on the same box and after any restart or
// update of it, and nothing that was changed or sealed elsewhere. plain has at
// most [MaxPlain] bytes, sealed at most [MaxSealed]. Both may be called from any
// goroutine and may take as long as a TPM does. On a box it is the identity of
// agent/identity.
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
