// Package identity holds the device key, an ECDSA P-256 key that names the
// device for life: its [croft.DeviceID] is the hash of the public key. It also
// seals small secrets for the box alone ([Identity.Seal]).
//
// [Open] never fails for a damaged or missing part. It takes the first it finds
// of: the key of the kind that was recorded, the key in the TPM, a key file, a
// key in memory that lasts until the agent stops. Whatever an owner or support
// should know about that stands in [Identity.Notes].
//
//   - In the TPM the key is a primary key of the owner hierarchy, made anew from
//     a fixed template at each start: nothing is stored, the same TPM always
//     gives the same key, and it cannot be copied. Clearing the TPM in the
//     firmware setup changes it.
//   - Without a TPM the key is PKCS #8 PEM in DIR/identity/device.key, mode
//     0600, in a directory of mode 0700. It goes where the disk goes.
//
// DIR/identity/kind records which of the two the device took, and the ID. A
// device that began with a file stays with it when a TPM appears later, for an
// identity that changes has to be enrolled and claimed again. A device that
// began with the TPM uses a file while the TPM fails, under another ID, and
// returns to the TPM as soon as that works.
//
// What survives: power cut at any line, the key or the absence of one; no key
// is used before it is on the disk. Loss of /perm keeps a TPM identity and ends
// a file identity. A broken key file is kept aside as device.key.broken-N.
//
// # Sealing
//
// Secrets are sealed where the device key is. With the device key in the TPM
// the TPM encrypts them under its storage root key: without the board a stolen
// disk is useless. A thief of the whole box is not kept out: it must start
// without anybody typing, after any update. Otherwise they are encrypted with
// AES-256-GCM under DIR/identity/sealing.key, which protects what leaves the
// box without that file and nothing more: the file lies on the same disk.
// What was sealed says by which of the two, and is opened by that one, whatever
// the device key does meanwhile.
//
//	TPM busy, failing, switched off        not now: an error, and all is well when the TPM is
//	TPM of another board                   not now: the disk may go back
//	TPM cleared, or all of it reset by     never: croft.KindInvalid; but a reset that changes the
//	a firmware update                      endorsement seed too looks like another board's TPM
//	sealing.key lost or replaced           never; a broken one is kept aside as sealing.key.broken-N
//	/perm full                             nothing is sealed; what is, can be opened
//	the sealed bytes changed               never
package identity

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"github.com/croft-cloud/croft"
)

// Kind says where the device key is.
type Kind string

// The kinds.
const (
	KindTPM    Kind = "tpm"    // in the TPM; survives everything but clearing it
	KindFile   Kind = "file"   // in a file on /perm; survives as long as that does
	KindMemory Kind = "memory" // nowhere; gone when the agent stops
)

// DefaultTPM is the kernel's TPM device with a resource manager.
const DefaultTPM = "/dev/tpmrm0"

// Config is copied by [Open] and never changed afterwards.
type Config struct {
	Dir string       // the agent's directory on /perm; empty if /perm keeps nothing
	TPM string       // device, or Unix socket of a software TPM; default [DefaultTPM]
	Log *slog.Logger // default: discard
}

// Identity is the device key in use. It is a [crypto.Signer]; all methods may
// be called from any goroutine. The owner calls Close.
type Identity struct {
	kind   Kind
	id     croft.DeviceID
	public *ecdsa.PublicKey
	notes  []string
	signer interface {
		crypto.Signer
		io.Closer
	}

	dir, tpm string     // for sealing, as the opener has them
	sealing  sync.Mutex // held while something is sealed or opened: a TPM has room for few objects
}

// Open finds the device key or makes one. An error means that no key at all
// could be made, not even in memory.
func Open(cfg Config) (*Identity, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	o := &opener{tpm: cmp.Or(cfg.TPM, DefaultTPM)}
	if cfg.Dir != "" {
		o.prepareDir(cfg.Dir)
	}
	i, err := o.open()
	if err != nil {
		return nil, fmt.Errorf("open device identity: %w", err)
	}
	log.Info("identity opened", "device", i.id, "kind", i.kind, "notes", len(i.notes))
	return i, nil
}

// DeviceID names the device.
func (i *Identity) DeviceID() croft.DeviceID { return i.id }

// Kind says where the key is.
func (i *Identity) Kind() Kind { return i.kind }

// Notes are sentences for the owner and support about what was not as it
// should be when the identity was opened; none when all was well.
func (i *Identity) Notes() []string { return append([]string(nil), i.notes...) }

// Public is the device's public key, an *ecdsa.PublicKey.
func (i *Identity) Public() crypto.PublicKey { return i.public }

// Sign signs digest, which is the output of the hash that opts names. The
// signature is an ASN.1 ECDSA signature. A TPM takes some 10 to 200 ms for it.
func (i *Identity) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() == 0 {
		return nil, errors.New("sign with device key: hash function is missing")
	}
	if size := opts.HashFunc().Size(); len(digest) != size {
		return nil, fmt.Errorf("sign with device key: digest of %d bytes, want %d", len(digest), size)
	}
	signature, err := i.signer.Sign(random, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("sign with device key: %w", err)
	}
	return signature, nil
}

// Close lets go of the TPM; Sign must not be called any more. A later [Open]
// finds the same key.
func (i *Identity) Close() error { return i.signer.Close() }

// opener is one call of [Open]: where to look, and what was noted so far.
type opener struct {
	dir   string // DIR/identity; empty if nothing can be kept
	tpm   string
	notes []string
}

func (o *opener) notef(format string, args ...any) {
	o.notes = append(o.notes, fmt.Sprintf(format, args...))
}

// open takes the best key, compares it with the record and keeps the record.
func (o *opener) open() (*Identity, error) {
	was, recorded := o.readRecord()
	i, err := o.choose(was.Kind)
	if err != nil {
		return nil, err
	}
	switch {
	case !recorded:
		o.writeRecord(i)
	case was.DeviceID == i.id:
	case was.Kind == KindTPM && i.kind != KindTPM:
		// The TPM may be back at the next start: the record stays.
		o.notef("This device was %s, in its TPM, and is %s until the TPM works again.", was.DeviceID, i.id)
	default:
		o.notef("This device was %s and is now %s: it must be enrolled and claimed again.", was.DeviceID, i.id)
		o.writeRecord(i)
	}
	o.checkSealingKey()
	i.notes, i.dir, i.tpm = o.notes, o.dir, o.tpm
	return i, nil
}

// choose finds or makes the key. A key file comes before the TPM only if the
// record says that the device took it.
func (o *opener) choose(recorded Kind) (*Identity, error) {
	if recorded == KindFile && o.dir != "" {
		if key, ok := o.loadKeyFile(); ok {
			if _, err := os.Stat(o.tpm); err == nil {
				o.notef("This device has a TPM, but its key was made in a file before and stays there.")
			}
			return newIdentity(KindFile, &key.PublicKey, softwareKey{key})
		}
	}
	key, err := openTPMKey(o.tpm)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// A wrong identity costs more than a second try: a signal or a busy
		// TPM may have spoilt the first.
		key, err = openTPMKey(o.tpm)
	}
	if err == nil {
		return newIdentity(KindTPM, key.public, key)
	} else if !errors.Is(err, fs.ErrNotExist) {
		o.notef("The TPM cannot be used: %v.", err)
	}
	if o.dir != "" {
		if key, ok := o.loadKeyFile(); ok {
			return newIdentity(KindFile, &key.PublicKey, softwareKey{key})
		}
	}
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	kind := KindMemory
	if o.dir != "" && o.storeKeyFile(made) {
		kind = KindFile
	}
	if kind == KindMemory {
		o.notef("The device key cannot be kept: the device has another identity after each restart.")
	}
	return newIdentity(kind, &made.PublicKey, softwareKey{made})
}

func newIdentity(kind Kind, public *ecdsa.PublicKey, signer interface {
	crypto.Signer
	io.Closer
},
) (*Identity, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, errors.Join(err, signer.Close())
	}
	return &Identity{
		kind:   kind,
		id:     croft.DeviceIDFromDigest(sha256.Sum256(der)),
		public: public,
		signer: signer,
	}, nil
}

// softwareKey is a key held in memory, whether it is in a file as well or not.
type softwareKey struct{ *ecdsa.PrivateKey }

func (softwareKey) Close() error { return nil }
