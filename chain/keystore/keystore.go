// Package keystore keeps account keys in a folder, one file each, for people
// who work at a terminal.
//
//	store, err := keystore.Open(filepath.Join(home, "keys"))
//	entry, words, err := store.Add("tenant", passphrase) // shows words once; the caller prints them
//	key, err := store.Key("tenant", passphrase)          // an account.Signer
//
// A file NAME.key (mode 0600, folder 0700) is JSON: version, address, public
// key, path, and the mnemonic, either in clear or encrypted with the passphrase
// by age (scrypt, ChaCha20-Poly1305, armored). Address and public key stand in
// clear so that a list needs no passphrase; a key taken out must match them, so
// a file that was swapped or edited is found out.
//
// A file appears whole or not at all, and is never overwritten: two programs
// adding the same name at once end with one key and one error, and a power cut
// leaves the file or nothing (at most a hidden ".new-…" beside it, which nothing
// reads). [Store.Delete] is final. The package does not back anything up, and an
// empty passphrase means that file permissions are the only protection.
//
// An agent does not need this package; it derives its key itself (package
// account).
package keystore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
)

// Passphrase protects a key on the disk. Empty means none. It is never printed.
type Passphrase string

// Format implements [fmt.Formatter]: it shows nothing.
func (p Passphrase) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, "passphrase(hidden)") }

// LogValue implements [slog.LogValuer].
func (p Passphrase) LogValue() slog.Value { return slog.StringValue("passphrase(hidden)") }

// MarshalText refuses.
func (p Passphrase) MarshalText() ([]byte, error) {
	return nil, errors.New("a passphrase is not written")
}

// Entry describes a stored key without its secret.
type Entry struct {
	Name      string            `json:"name"`       // 1 to 64 of a-z, 0-9, '-' and '_'
	Address   account.Address   `json:"address"`    // the account it controls
	PublicKey account.PublicKey `json:"public_key"` // compressed, 33 bytes
	Account   uint32            `json:"account"`    // third step of the path m/44'/118'/Account'/0/Index
	Index     uint32            `json:"index"`      // last step of the path
	Encrypted bool              `json:"encrypted"`  // a passphrase is needed to use it
}

// Path of a key below its mnemonic: m/44'/118'/Account'/0/Index. The zero Path
// is where wallets begin.
type Path struct{ Account, Index uint32 }

// file is the content of NAME.key. Exactly one of Mnemonic and Sealed is set.
//
// Versions: 1 (2026-11) the first.
type file struct {
	Version   int               `json:"version"`
	Address   account.Address   `json:"address"`
	PublicKey account.PublicKey `json:"public_key"`
	Account   uint32            `json:"account"`
	Index     uint32            `json:"index"`
	Mnemonic  string            `json:"mnemonic,omitempty"`
	Sealed    string            `json:"sealed_mnemonic,omitempty"` // armored age file
}

const fileVersion = 1

const suffix = ".key"

// maxFileBytes bounds what is read of a key file; a real one has about 900.
const maxFileBytes = 64 << 10

// scryptWork is the base-2 logarithm of the scrypt cost: about a second and
// 256 MiB for each guess.
const scryptWork = 18

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// Store is a folder of keys. It keeps nothing in memory: several Stores, in
// several programs, may use one folder.
type Store struct {
	dir  string
	work int // log2 of scrypt's cost
}

// Open uses the folder dir and makes it, mode 0700, when it is missing. A folder
// that others may write to is refused.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open keystore: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open keystore: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open keystore %s: not a folder", dir)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("open keystore %s: other users may write to it", dir),
			Remedy: "run chmod 700 on it after looking at what is inside",
		}
	}
	return &Store{dir: dir, work: scryptWork}, nil
}

// Add draws a new mnemonic and stores the key of its zero Path. The caller shows
// the mnemonic to its owner, once.
func (s *Store) Add(name string, pass Passphrase) (Entry, account.Mnemonic, error) {
	words, err := account.NewMnemonic()
	if err != nil {
		return Entry{}, account.Mnemonic{}, fmt.Errorf("add key %q: %w", name, err)
	}
	entry, err := s.put(name, words, Path{}, pass)
	if err != nil {
		return Entry{}, account.Mnemonic{}, fmt.Errorf("add key %q: %w", name, err)
	}
	return entry, words, nil
}

// Recover stores the key that a mnemonic has at path.
func (s *Store) Recover(name string, words account.Mnemonic, path Path, pass Passphrase) (Entry, error) {
	entry, err := s.put(name, words, path, pass)
	if err != nil {
		return Entry{}, fmt.Errorf("recover key %q: %w", name, err)
	}
	return entry, nil
}

// List describes the keys in the order of their names. A file that cannot be
// read as a key makes it fail and is named.
func (s *Store) List() ([]Entry, error) {
	found, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	var entries []Entry
	for _, f := range found {
		name, ok := strings.CutSuffix(f.Name(), suffix)
		if !ok || !nameForm.MatchString(name) {
			continue
		}
		content, err := s.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted while we looked
		}
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		entries = append(entries, content.entry(name))
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, nil
}

// Entry describes one key.
func (s *Store) Entry(name string) (Entry, error) {
	content, err := s.read(name)
	if err != nil {
		return Entry{}, err
	}
	return content.entry(name), nil
}

// Key takes a key out for signing. The passphrase of a key without one is
// ignored.
func (s *Store) Key(name string, pass Passphrase) (*account.Key, error) {
	_, key, err := s.unseal(name, pass)
	return key, err
}

// Export gives the mnemonic of a key to its owner.
func (s *Store) Export(name string, pass Passphrase) (account.Mnemonic, error) {
	words, _, err := s.unseal(name, pass)
	return words, err
}

// Delete removes a key for good. Without its mnemonic elsewhere, what the
// account holds is lost.
func (s *Store) Delete(name string) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("delete key: %w", notFound(name, err))
	}
	return syncDir(s.dir)
}

func (s *Store) path(name string) (string, error) {
	if !nameForm.MatchString(name) {
		return "", &croft.Error{
			Kind:   croft.KindUsage,
			Err:    fmt.Errorf("key name %q is not allowed", name),
			Remedy: "use 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit",
		}
	}
	return filepath.Join(s.dir, name+suffix), nil
}

func (s *Store) put(name string, words account.Mnemonic, at Path, pass Passphrase) (Entry, error) {
	path, err := s.path(name)
	if err != nil {
		return Entry{}, err
	}
	if _, err := os.Lstat(path); err == nil {
		return Entry{}, exists(name) // before the second that scrypt takes
	}
	key, err := words.Key(at.Account, at.Index)
	if err != nil {
		return Entry{}, err
	}
	content := file{
		Version: fileVersion, Address: key.Address(), PublicKey: key.PublicKey(),
		Account: at.Account, Index: at.Index,
	}
	if pass == "" {
		content.Mnemonic = words.Reveal()
	} else if content.Sealed, err = s.seal(words, pass); err != nil {
		return Entry{}, err
	}
	encoded, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return Entry{}, fmt.Errorf("encode key: %w", err)
	}
	if err := create(path, append(encoded, '\n')); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return Entry{}, exists(name)
		}
		return Entry{}, err
	}
	return content.entry(name), nil
}

func (f file) entry(name string) Entry {
	return Entry{
		Name: name, Address: f.Address, PublicKey: f.PublicKey,
		Account: f.Account, Index: f.Index, Encrypted: f.Sealed != "",
	}
}

func (s *Store) read(name string) (file, error) {
	path, err := s.path(name)
	if err != nil {
		return file{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return file{}, fmt.Errorf("read key: %w", notFound(name, err))
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFileBytes))
	if err != nil {
		return file{}, fmt.Errorf("read key %q: %w", name, err)
	}
	var content file
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&content); err != nil {
		return file{}, damaged(name, "is not a key file") // the decoder's text may quote the secret
	}
	switch {
	case content.Version != fileVersion:
		return file{}, damaged(name, fmt.Sprintf("has version %d, this program reads %d", content.Version, fileVersion))
	case (content.Mnemonic == "") == (content.Sealed == ""):
		return file{}, damaged(name, "holds no secret, or two")
	}
	if address, err := content.PublicKey.Address(); err != nil || address != content.Address {
		return file{}, damaged(name, "has an address that is not its public key's")
	}
	return content, nil
}

func (s *Store) unseal(name string, pass Passphrase) (account.Mnemonic, *account.Key, error) {
	content, err := s.read(name)
	if err != nil {
		return account.Mnemonic{}, nil, err
	}
	phrase := content.Mnemonic
	if content.Sealed != "" {
		if phrase, err = open(content.Sealed, pass); err != nil {
			return account.Mnemonic{}, nil, fmt.Errorf("open key %q: %w", name, err)
		}
	}
	words, err := account.ParseMnemonic(phrase)
	if err != nil {
		return account.Mnemonic{}, nil, damaged(name, err.Error())
	}
	key, err := words.Key(content.Account, content.Index)
	if err != nil {
		return account.Mnemonic{}, nil, damaged(name, err.Error())
	}
	if key.Address() != content.Address {
		return account.Mnemonic{}, nil, damaged(name, "holds the secret of another address")
	}
	return words, key, nil
}

// seal encrypts the phrase with a passphrase as an armored age file.
func (s *Store) seal(words account.Mnemonic, pass Passphrase) (string, error) {
	recipient, err := age.NewScryptRecipient(string(pass))
	if err != nil {
		return "", fmt.Errorf("encrypt key: %w", err)
	}
	recipient.SetWorkFactor(s.work)
	var out bytes.Buffer
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, recipient)
	if err != nil {
		return "", fmt.Errorf("encrypt key: %w", err)
	}
	if _, err := io.WriteString(w, words.Reveal()); err != nil {
		return "", fmt.Errorf("encrypt key: %w", err)
	}
	if err := errors.Join(w.Close(), armored.Close()); err != nil {
		return "", fmt.Errorf("encrypt key: %w", err)
	}
	return out.String(), nil
}

func open(sealed string, pass Passphrase) (string, error) {
	if pass == "" {
		return "", &croft.Error{Kind: croft.KindUsage, Err: errors.New("key is encrypted"), Remedy: "give its passphrase"}
	}
	identity, err := age.NewScryptIdentity(string(pass))
	if err != nil {
		return "", fmt.Errorf("decrypt: %w", err)
	}
	r, err := age.Decrypt(armor.NewReader(strings.NewReader(sealed)), identity)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return "", &croft.Error{Kind: croft.KindRefused, Err: errors.New("passphrase is wrong"), Remedy: "try again; nothing was changed"}
	}
	if err != nil {
		return "", fmt.Errorf("decrypt: %w", err)
	}
	phrase, err := io.ReadAll(io.LimitReader(r, maxFileBytes))
	if err != nil {
		return "", fmt.Errorf("decrypt: %w", err)
	}
	return string(phrase), nil
}

// create makes the file at path with this content, durable when it returns nil.
// The name is taken by a hard link, which fails when it exists: a rename would
// replace another key.
func create(path string, content []byte) error {
	dir := filepath.Dir(path)
	temporary, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) //nolint:errcheck // a leftover is hidden and unread
	defer temporary.Close()
	if _, err := temporary.Write(content); err != nil {
		return err
	}
	if err := temporary.Sync(); err != nil {
		return err
	}
	if err := os.Link(temporary.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}

func exists(name string) error {
	return &croft.Error{
		Kind: croft.KindRefused, Err: fmt.Errorf("key %q exists", name),
		Remedy: "choose another name, or delete that key first",
	}
}

func notFound(name string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return &croft.Error{
		Kind: croft.KindNotFound, Err: fmt.Errorf("no key %q: %w", name, fs.ErrNotExist),
		Remedy: "list the keys to see their names",
	}
}

func damaged(name, why string) error {
	return &croft.Error{
		Kind: croft.KindInvalid, Err: fmt.Errorf("file of key %q %s", name, why),
		Remedy: "recover the key from its mnemonic under another name",
	}
}
