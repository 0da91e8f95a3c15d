package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/croft-cloud/croft"
)

// Each call opens the device anew, beside the connection of the device key: the
// kernel's resource manager gives every opener a TPM of its own and takes back
// what a killed one left in it, and a TPM that was away is found when it is back.

// onTPM connects for the time of do.
func onTPM(path string, do func(tpm transport.TPM) error) error {
	tpm, err := openTPM(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("open TPM: %w", err), Remedy: "switch the TPM on in the firmware setup"}
	}
	if err != nil {
		return fmt.Errorf("open TPM: %w", err)
	}
	return errors.Join(do(tpm), tpm.Close())
}

// withPrimary makes the TCG's storage root key of a hierarchy, the one on a
// curve: RSA takes many seconds. Like the device key it is derived from the
// hierarchy's seed: nothing is stored, and it is the same each time.
func withPrimary(tpm transport.TPM, hierarchy tpm2.TPMHandle, do func(key tpm2.NamedHandle) error) error {
	made, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("create storage key: %w", err)
	}
	err = do(tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name})
	return errors.Join(err, flush(tpm, made.ObjectHandle))
}

func flush(tpm transport.TPM, handle tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: handle}.Execute(tpm)
	return err
}

// boardName is the name of a key of the endorsement hierarchy, whose seed stays
// when the TPM is cleared.
func boardName(tpm transport.TPM) (name []byte, err error) {
	err = withPrimary(tpm, tpm2.TPMRHEndorsement, func(key tpm2.NamedHandle) error {
		name = key.Name.Buffer
		return nil
	})
	return name, err
}

// tpmSeal makes an object of the secret. Neither boot measurements nor a
// password are part of it, and wrong guesses at other objects do not lock it.
func tpmSeal(path string, plain []byte) (envelope, error) {
	e := envelope{Form: formTPM}
	err := onTPM(path, func(tpm transport.TPM) (err error) {
		if e.Board, err = boardName(tpm); err != nil {
			return err
		}
		return withPrimary(tpm, tpm2.TPMRHOwner, func(root tpm2.NamedHandle) error {
			made, err := tpm2.Create{
				ParentHandle: root,
				InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
					Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: plain}),
				}},
				InPublic: tpm2.New2B(tpm2.TPMTPublic{
					Type:             tpm2.TPMAlgKeyedHash,
					NameAlg:          tpm2.TPMAlgSHA256,
					ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
				}),
			}.Execute(tpm)
			if err != nil {
				return err
			}
			e.Root, e.Public, e.Private = root.Name.Buffer, made.OutPublic.Bytes(), made.OutPrivate.Buffer
			return nil
		})
	})
	return e, err
}

func tpmOpen(path string, e envelope) (plain []byte, err error) {
	err = onTPM(path, func(tpm transport.TPM) error {
		ours := false
		err := withPrimary(tpm, tpm2.TPMRHOwner, func(root tpm2.NamedHandle) (err error) {
			if ours = bytes.Equal(root.Name.Buffer, e.Root); ours {
				plain, err = unseal(tpm, root, e)
			}
			return err
		})
		if err != nil || ours {
			return err
		}
		board, err := boardName(tpm)
		if err != nil {
			return err
		}
		if bytes.Equal(board, e.Board) {
			return never("the TPM of this box was cleared since")
		}
		return &croft.Error{Kind: croft.KindMissing, Err: errors.New("the TPM of another board sealed it"), Remedy: "put the disk back into its board"}
	})
	return plain, err
}

func unseal(tpm transport.TPM, root tpm2.NamedHandle, e envelope) ([]byte, error) {
	loaded, err := tpm2.Load{
		ParentHandle: root,
		InPrivate:    tpm2.TPM2BPrivate{Buffer: e.Private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](e.Public),
	}.Execute(tpm)
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return nil, never("it was changed")
	}
	if err != nil {
		return nil, fmt.Errorf("load it: %w", err)
	}
	opened, err := tpm2.Unseal{ItemHandle: tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name}}.Execute(tpm)
	if err = errors.Join(err, flush(tpm, loaded.ObjectHandle)); err != nil {
		return nil, err
	}
	return opened.OutData.Buffer, nil
}
