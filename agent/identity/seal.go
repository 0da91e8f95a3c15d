package identity

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// maxPlain is what a TPM 2.0 seals in one object, in bytes.
const maxPlain = 128

// sealingKeySize is that of AES-256, in bytes.
const sealingKeySize = 32

// sealingLabel binds what is encrypted to its purpose.
const sealingLabel = "croft sealed 1"

// The forms of an envelope.
const (
	formTPM  = "tpm-1"
	formFile = "file-1"
)

// envelope is what Seal returns, as JSON behind its SHA-256. The hash tells
// damage, for which there is no help, from a TPM or key that is elsewhere; that
// nobody changes the secret on purpose is what the TPM and GCM see to.
type envelope struct {
	Form string `json:"form"`

	// In form tpm-1.
	Board   []byte `json:"board,omitempty"`   // name of the TPM's key that clearing leaves
	Root    []byte `json:"root,omitempty"`    // name of its storage root key
	Public  []byte `json:"public,omitempty"`  // TPMT_PUBLIC of the sealed object
	Private []byte `json:"private,omitempty"` // its TPM2B_PRIVATE, without length

	// In form file-1: nonce and AES-256-GCM.
	Secret []byte `json:"secret,omitempty"`
}

func (e envelope) encode() ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return append(sum[:], body...), nil
}

func parseEnvelope(sealed []byte) (envelope, error) {
	var e envelope
	if len(sealed) < sha256.Size {
		return e, never("it is damaged")
	}
	body := sealed[sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], sealed[:sha256.Size]) {
		return e, never("it is damaged")
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, fmt.Errorf("read it: %w", err)
	}
	return e, nil
}

// never is the error for what can never be opened again.
func never(why string) error {
	return &croft.Error{Kind: croft.KindInvalid, Err: errors.New(why), Remedy: "give up what was sealed: nothing can open it"}
}

// Seal encrypts 1 to 128 bytes for [Identity.Open] on this box, and nobody else;
// the package comment says how well. It never falls back to the file while the
// device key is in the TPM.
func (i *Identity) Seal(ctx context.Context, plain []byte) ([]byte, error) {
	if len(plain) == 0 || len(plain) > maxPlain {
		return nil, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("seal a secret of %d bytes: want 1 to %d", len(plain), maxPlain)}
	}
	i.sealing.Lock()
	defer i.sealing.Unlock()
	sealed, err := i.sealLocked(ctx, plain)
	if err != nil {
		return nil, fmt.Errorf("seal a secret: %w", err)
	}
	return sealed, nil
}

func (i *Identity) sealLocked(ctx context.Context, plain []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var e envelope
	var err error
	if i.kind == KindTPM {
		e, err = tpmSeal(i.tpm, plain)
	} else {
		e, err = i.fileSealLocked(plain)
	}
	if err != nil {
		return nil, err
	}
	return e.encode()
}

// Open returns what [Identity.Seal] was given. [croft.KindInvalid] means that it
// can never be opened again, any other error that it cannot be now.
func (i *Identity) Open(ctx context.Context, sealed []byte) ([]byte, error) {
	i.sealing.Lock()
	defer i.sealing.Unlock()
	plain, err := i.openLocked(ctx, sealed)
	if err != nil {
		return nil, fmt.Errorf("open a sealed secret: %w", err)
	}
	return plain, nil
}

func (i *Identity) openLocked(ctx context.Context, sealed []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := parseEnvelope(sealed)
	if err != nil {
		return nil, err
	}
	switch e.Form {
	case formTPM:
		return tpmOpen(i.tpm, e)
	case formFile:
		return i.fileOpen(e)
	}
	return nil, fmt.Errorf("its form is %q: another release of the agent made it", e.Form)
}

// checkSealingKey sets a broken sealing key aside, so that the box can seal
// again. One that cannot be read may be readable at the next start.
func (o *opener) checkSealingKey() {
	if o.dir == "" {
		return
	}
	path := filepath.Join(o.dir, sealingName)
	switch _, err := readSealingKey(path); {
	case err == nil:
		o.restrict(path, 0o600)
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, errNoKey):
		o.setAside("sealing key", path, err)
	default:
		o.notef("The sealing key file cannot be read: %v.", err)
	}
}

func readSealingKey(path string) (cipher.AEAD, error) {
	key, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if len(key) != sealingKeySize {
		return nil, errNoKey
	}
	return newAEAD(key)
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// fileSealLocked makes the sealing key when it is first needed.
func (i *Identity) fileSealLocked(plain []byte) (envelope, error) {
	if i.dir == "" {
		return envelope{}, &croft.Error{Kind: croft.KindMissing, Err: errors.New("the box keeps nothing: it has no TPM and no storage"), Remedy: "repair the storage of the box"}
	}
	path := filepath.Join(i.dir, sealingName)
	aead, err := readSealingKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, sealingKeySize)
		defer clear(key)
		_, _ = rand.Read(key) // never fails
		if err = atomicfile.WriteFile(path, key, 0o600); err == nil {
			aead, err = newAEAD(key)
		}
	}
	if err != nil {
		return envelope{}, fmt.Errorf("take sealing key: %w", err)
	}
	return envelope{Form: formFile, Secret: aead.Seal(nil, nil, plain, []byte(sealingLabel))}, nil
}

func (i *Identity) fileOpen(e envelope) ([]byte, error) {
	if i.dir == "" {
		return nil, errors.New("the storage of the box, where its key is, is missing")
	}
	aead, err := readSealingKey(filepath.Join(i.dir, sealingName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, never("its key file is lost")
	}
	if err != nil {
		return nil, fmt.Errorf("take sealing key: %w", err)
	}
	plain, err := aead.Open(nil, nil, e.Secret, []byte(sealingLabel))
	if err != nil {
		return nil, never("it was sealed with another key file")
	}
	return plain, nil
}
