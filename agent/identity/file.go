package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// The files in DIR/identity.
const (
	keyName     = "device.key"
	recordName  = "kind"
	sealingName = "sealing.key"
)

// pemType is the PEM label of PKCS #8.
const pemType = "PRIVATE KEY"

// maxKeyFile is more than any P-256 key in PEM takes.
const maxKeyFile = 16 << 10

// errNoKey reports a key file that holds something else.
var errNoKey = errors.New("not a key file")

// record is what DIR/identity/kind holds.
type record struct {
	Kind     Kind           `json:"kind"`
	DeviceID croft.DeviceID `json:"device_id"`
}

// prepareDir makes DIR/identity with mode 0700. On failure nothing is kept.
func (o *opener) prepareDir(parent string) {
	dir := filepath.Join(parent, "identity")
	err := atomicfile.MkdirAll(dir, 0o700)
	if err != nil {
		o.notef("The directory of the device key cannot be made: %v.", err)
		return
	}
	o.dir = dir
	o.restrict(dir, 0o700)
}

// restrict repairs permissions.
func (o *opener) restrict(path string, want fs.FileMode) {
	info, err := os.Lstat(path)
	if err != nil {
		o.notef("The permissions of %s cannot be read: %v.", path, err)
		return
	}
	if info.Mode().Perm() == want && info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) == 0 {
		return
	}
	if err := os.Chmod(path, want); err != nil {
		o.notef("The permissions of %s are %04o and cannot be set to %04o: %v.", path, info.Mode().Perm(), want, err)
		return
	}
	o.notef("The permissions of %s were %04o and are %04o again: others may have read the key.", path, info.Mode().Perm(), want)
}

// loadKeyFile reads the key file. A broken one is moved aside.
func (o *opener) loadKeyFile() (*ecdsa.PrivateKey, bool) {
	path := filepath.Join(o.dir, keyName)
	key, err := readKeyFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false
	case err != nil:
		o.setAside("device key", path, err)
		return nil, false
	}
	o.restrict(path, 0o600)
	return key, true
}

func readKeyFile(path string) (*ecdsa.PrivateKey, error) {
	data, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != pemType {
		return nil, errors.New("no PEM private key in it")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not an ECDSA P-256 key")
	}
	return key, nil
}

func readSmall(path string) ([]byte, error) {
	// O_NONBLOCK: a FIFO in its place must not hold up the start.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) { // a symbolic link
		return nil, errNoKey
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, errNoKey
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, err
	}
	return data, nil
}

// setAside renames a broken file of what to the first free .broken-N. If it
// cannot be renamed it stays, and nobody replaces it.
func (o *opener) setAside(what, path string, cause error) {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.broken-%d", path, n)
		if _, err := os.Lstat(aside); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			o.notef("The %s file is broken (%v) and cannot be moved aside: %v.", what, cause, err)
			return
		}
		if err := os.Rename(path, aside); err != nil {
			o.notef("The %s file is broken (%v) and cannot be moved aside: %v.", what, cause, err)
			return
		}
		o.notef("The %s file was broken (%v) and is kept as %s.", what, cause, aside)
		return
	}
}

// storeKeyFile keeps a new key and reports whether it is on the disk.
func (o *opener) storeKeyFile(key *ecdsa.PrivateKey) bool {
	path := filepath.Join(o.dir, keyName)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return false // a broken key that could not be moved aside; noted before
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err == nil {
		err = atomicfile.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), 0o600)
	}
	if err != nil {
		o.notef("The device key cannot be stored: %v.", err)
		return false
	}
	return true
}

// readRecord returns what DIR/identity/kind says, if it says anything.
func (o *opener) readRecord() (record, bool) {
	if o.dir == "" {
		return record{}, false
	}
	data, err := os.ReadFile(filepath.Join(o.dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, false
	}
	var r record
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil {
		_, err = croft.ParseDeviceID(string(r.DeviceID))
	}
	if err == nil && r.Kind != KindTPM && r.Kind != KindFile {
		err = fmt.Errorf("kind %q: want tpm or file", r.Kind)
	}
	if err != nil {
		o.notef("The record of this device's identity is damaged (%v): a change of identity cannot be noticed now.", err)
		return record{}, false
	}
	return r, true
}

// writeRecord keeps the kind and ID of i for the next start, unless i is gone
// by then anyway.
func (o *opener) writeRecord(i *Identity) {
	if o.dir == "" || i.kind == KindMemory {
		return
	}
	data, err := json.Marshal(record{Kind: i.kind, DeviceID: i.id})
	if err == nil {
		err = atomicfile.WriteFile(filepath.Join(o.dir, recordName), append(data, '\n'), 0o600)
	}
	if err != nil {
		o.notef("The record of this device's identity cannot be written: %v.", err)
	}
}
