package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// template is what the TPM derives the device key from, together with its owner
// seed. Any change of it gives every device another identity.
func template() tpm2.TPMTPublic {
	unique := sha256.Sum256([]byte("croft device key 1"))
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                true,
			SignEncrypt:         true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique[:]},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, sha256.Size)},
		}),
	}
}

// tpmKey is the device key loaded into the TPM.
type tpmKey struct {
	public *ecdsa.PublicKey
	handle tpm2.NamedHandle

	mu  sync.Mutex // held during a command: the TPM does one at a time
	tpm transport.TPMCloser
}

// openTPMKey loads the device key and has it sign once. An error that is
// [fs.ErrNotExist] means that there is no TPM.
func openTPMKey(path string) (*tpmKey, error) {
	tpm, err := openTPM(path)
	if err != nil {
		return nil, fmt.Errorf("open TPM: %w", err)
	}
	k, err := loadTPMKey(tpm)
	if err != nil {
		return nil, noAbsence(errors.Join(err, tpm.Close()))
	}
	digest := sha256.Sum256([]byte("croft self-test"))
	signature, err := k.Sign(nil, digest[:], crypto.SHA256)
	if err == nil && !ecdsa.VerifyASN1(k.public, digest[:], signature) {
		err = errors.New("the signature is wrong")
	}
	if err != nil {
		return nil, noAbsence(fmt.Errorf("sign for a test: %w", errors.Join(err, k.Close())))
	}
	return k, nil
}

// noAbsence keeps a TPM that went away in the middle from passing for none.
func noAbsence(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New(err.Error())
	}
	return err
}

func openTPM(path string) (transport.TPMCloser, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Type() == fs.ModeSocket {
		return linuxudstpm.Open(path)
	}
	return linuxtpm.Open(path)
}

func loadTPMKey(tpm transport.TPMCloser) (*tpmKey, error) {
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHOwner,
		InPublic:      tpm2.New2B(template()),
	}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("create key: %w", err)
	}
	k := &tpmKey{tpm: tpm, handle: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}}
	if k.public, err = publicKey(made.OutPublic); err != nil {
		return nil, fmt.Errorf("read public key: %w", errors.Join(err, k.flush()))
	}
	return k, nil
}

// publicKey reads and checks what the TPM calls the public key.
func publicKey(from tpm2.TPM2BPublic) (*ecdsa.PublicKey, error) {
	area, err := from.Contents()
	if err != nil {
		return nil, err
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		return nil, err
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, errors.New("not an ECDSA P-256 key")
	}
	if _, err := public.ECDH(); err != nil { // not on the curve
		return nil, err
	}
	return public, nil
}

func (k *tpmKey) Public() crypto.PublicKey { return k.public }

// Sign has the TPM sign digest. It draws its own random numbers. The template
// fixes SHA-256, but a TPM never sees the message: to P-256 any digest is a
// number of its first 32 bytes.
func (k *tpmKey) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	signed, err := tpm2.Sign{
		KeyHandle:  k.handle,
		Digest:     tpm2.TPM2BDigest{Buffer: fitDigest(digest)},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(k.tpm)
	if err != nil {
		return nil, err
	}
	point, err := signed.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(point.SignatureR.Buffer),
		new(big.Int).SetBytes(point.SignatureS.Buffer),
	})
}

// fitDigest makes 32 bytes that stand for the same number as digest does in
// ECDSA with P-256: a longer digest is cut, a shorter one gets leading zeros.
func fitDigest(digest []byte) []byte {
	out := make([]byte, sha256.Size)
	digest = digest[:min(len(digest), len(out))]
	copy(out[len(out)-len(digest):], digest)
	return out
}

// Close takes the key out of the TPM's memory.
func (k *tpmKey) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := errors.Join(k.flush(), k.tpm.Close()); err != nil {
		return fmt.Errorf("close TPM: %w", err)
	}
	return nil
}

func (k *tpmKey) flush() error {
	_, err := tpm2.FlushContext{FlushHandle: k.handle.Handle}.Execute(k.tpm)
	return err
}
