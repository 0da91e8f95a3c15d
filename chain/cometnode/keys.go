package cometnode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtjson "github.com/cometbft/cometbft/libs/json"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/privval"

	"github.com/croft-cloud/croft"
)

// NodeKey loads the key by which other nodes know this one, and makes it if the
// file is not there.
func NodeKey(file string) (*p2p.NodeKey, error) {
	key, err := p2p.LoadNodeKey(file)
	if err == nil {
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, Damaged(file, err)
	}
	key = &p2p.NodeKey{PrivKey: ed25519.GenPrivKey()}
	raw, err := cmtjson.Marshal(key)
	if err != nil {
		return nil, fmt.Errorf("encode node key: %w", err)
	}
	return key, WriteFile(file, raw, 0o600)
}

// ValidatorKey loads the key that signs blocks, with the memory of what it
// signed last. The memory is written before the key: a key without memory is
// refused, because it might sign a second block at a height.
func ValidatorKey(key, state string) (*privval.FilePV, error) {
	raw, err := os.ReadFile(key)
	if errors.Is(err, fs.ErrNotExist) {
		pv := privval.GenFilePV(key, state)
		raw, err := cmtjson.MarshalIndent(&pv.LastSignState, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("encode validator state: %w", err)
		}
		if err := WriteFile(state, raw, 0o600); err != nil {
			return nil, err
		}
		if raw, err = cmtjson.MarshalIndent(pv.Key, "", "  "); err != nil {
			return nil, fmt.Errorf("encode validator key: %w", err)
		}
		return pv, WriteFile(key, raw, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("read validator key: %w", err)
	}
	var parsed privval.FilePVKey
	if err := cmtjson.Unmarshal(raw, &parsed); err != nil || parsed.PrivKey == nil {
		return nil, Damaged(key, err)
	}
	raw, err = os.ReadFile(state)
	var last privval.FilePVLastSignState
	if err == nil {
		err = cmtjson.Unmarshal(raw, &last)
	}
	if err != nil {
		return nil, &croft.Error{
			Kind:   croft.KindInvalid,
			Err:    fmt.Errorf("read what the validator signed last: %w", err),
			Remedy: "restore " + state + " from a copy; never start a validator with an older one, it may sign twice",
		}
	}
	return privval.LoadFilePV(key, state), nil // it would end the process on an error found above
}

// Damaged is the error about a file of the node that cannot be read.
func Damaged(file string, err error) error {
	return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read %s: %w", file, err), Remedy: "restore the file from a copy"}
}

// WriteFile replaces a file so that a power cut leaves the old content or the
// new.
func WriteFile(name string, data []byte, mode fs.FileMode) error {
	if err := replaceFile(name, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func replaceFile(name string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // renamed by then, unless something failed
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
