package session

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/keystore"
)

// PassphraseVariable holds the passphrase of encrypted keys, for programs.
const PassphraseVariable = "CROFT_PASSPHRASE"

// Keys is the keystore in the home folder.
func (o *Options) Keys() (*keystore.Store, error) {
	dir, err := o.Dir()
	if err != nil {
		return nil, err
	}
	return keystore.Open(filepath.Join(dir, "keys"))
}

// Key is a key of the keystore. Its passphrase is asked for when it signs for
// the first time, so that what only reads needs none. It is an [account.Signer].
type Key struct {
	cmd   *cobra.Command
	store *keystore.Store
	entry keystore.Entry

	mu   sync.Mutex
	open *account.Key // guarded by mu; nil until it was needed
}

// Address is the account the key controls.
func (k *Key) Address() account.Address { return k.entry.Address }

// PublicKey implements [account.Signer].
func (k *Key) PublicKey() account.PublicKey { return k.entry.PublicKey }

// Sign implements [account.Signer].
func (k *Key) Sign(ctx context.Context, message []byte) ([]byte, error) {
	key, err := k.secret()
	if err != nil {
		return nil, err
	}
	return key.Sign(ctx, message)
}

func (k *Key) secret() (*account.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open != nil {
		return k.open, nil
	}
	pass, err := Passphrase(k.cmd, k.entry)
	if err != nil {
		return nil, err
	}
	k.open, err = k.store.Key(k.entry.Name, pass)
	return k.open, err
}

// Signer is the key that `--from` means, a name or an address. Without --from
// the only key there is, is meant.
func (o *Options) Signer(cmd *cobra.Command, from string) (*Key, error) {
	store, err := o.Keys()
	if err != nil {
		return nil, err
	}
	entry, err := find(store, from)
	if err != nil {
		return nil, err
	}
	return &Key{cmd: cmd, store: store, entry: entry}, nil
}

// find looks a key up by name or address.
func find(store *keystore.Store, from string) (keystore.Entry, error) {
	if from != "" && !strings.HasPrefix(from, account.Prefix+"1") {
		return store.Entry(from)
	}
	entries, err := store.List()
	if err != nil {
		return keystore.Entry{}, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if from == string(e.Address) {
			return e, nil
		}
		names = append(names, e.Name)
	}
	switch {
	case from != "":
		return keystore.Entry{}, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("no key here controls %s", from), Remedy: "`croft tenant keys list` shows the keys; `croft tenant keys recover NAME` brings one back"}
	case len(entries) == 1:
		return entries[0], nil
	case len(entries) == 0:
		return keystore.Entry{}, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no key to sign with"), Remedy: "make one with `croft tenant keys new NAME`; those of a local chain come with `croft tenant keys use-local`"}
	}
	return keystore.Entry{}, Usage(errors.New("there are several keys to sign with"), "say with --from which: "+strings.Join(names, ", "))
}

// Self is the account that a command is about: owner if it is given, as an
// address or as the name of a key, else that of --from. No passphrase is asked.
func (o *Options) Self(owner, from string) (account.Address, error) {
	if strings.HasPrefix(owner, account.Prefix+"1") {
		return ParseAddress("owner", owner)
	}
	store, err := o.Keys()
	if err != nil {
		return "", err
	}
	entry, err := find(store, cmp.Or(owner, from))
	return entry.Address, err
}

// Resolve reads an address, or the name of a key here.
func (o *Options) Resolve(what, s string) (account.Address, error) {
	if strings.HasPrefix(s, account.Prefix+"1") {
		return ParseAddress(what, s)
	}
	store, err := o.Keys()
	if err != nil {
		return "", err
	}
	entry, err := store.Entry(s)
	if err != nil {
		return "", Usage(fmt.Errorf("%s %q is neither an address nor a key of yours", what, s), "write an address that begins with akash1")
	}
	return entry.Address, nil
}

// ParseAddress reads an address; what names it in an error.
func ParseAddress(what, s string) (account.Address, error) {
	a, err := account.ParseAddress(s)
	if err != nil {
		return "", Usage(fmt.Errorf("%s: %w", what, err), "write it as it stands on the chain: akash1 and 38 more characters")
	}
	return a, nil
}

// Passphrase is that of a key: none, from the environment, or typed.
func Passphrase(cmd *cobra.Command, e keystore.Entry) (keystore.Passphrase, error) {
	if !e.Encrypted {
		return "", nil
	}
	if p, ok := os.LookupEnv(PassphraseVariable); ok {
		return keystore.Passphrase(p), nil
	}
	if !IsTerminal(cmd.InOrStdin()) {
		return "", Usage(fmt.Errorf("key %q needs a passphrase and there is no terminal to ask on", e.Name), "give it in "+PassphraseVariable)
	}
	p, err := Secret(cmd, fmt.Sprintf("Passphrase of key %s: ", e.Name))
	return keystore.Passphrase(p), err
}

// NewPassphrase asks twice for the passphrase of a new key.
func NewPassphrase(cmd *cobra.Command, open bool) (keystore.Passphrase, error) {
	if open {
		return "", nil
	}
	if p, ok := os.LookupEnv(PassphraseVariable); ok {
		return keystore.Passphrase(p), nil
	}
	if !IsTerminal(cmd.InOrStdin()) {
		return "", Usage(errors.New("a new key needs a passphrase and there is no terminal to ask on"), "give it in "+PassphraseVariable+", or none with --no-passphrase")
	}
	first, err := Secret(cmd, "Passphrase for the new key (empty: none): ")
	if err != nil {
		return "", err
	}
	again, err := Secret(cmd, "Once more: ")
	if err != nil {
		return "", err
	}
	if first != again {
		return "", Usage(errors.New("the two passphrases differ"), "try again; nothing was changed")
	}
	return keystore.Passphrase(first), nil
}

// Secret reads a line that the terminal does not show. From a pipe it is all
// there is.
func Secret(cmd *cobra.Command, prompt string) (string, error) {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		raw, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 4<<10))
		if err != nil {
			return "", fmt.Errorf("read standard input: %w", err)
		}
		return strings.TrimSpace(string(raw)), nil
	}
	fmt.Fprint(cmd.ErrOrStderr(), prompt)
	state, err := term.GetState(int(in.Fd()))
	if err != nil {
		return "", fmt.Errorf("read from the terminal: %w", err)
	}
	return Await(cmd, func() (string, error) {
		raw, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		return string(raw), err
	}, func() { _ = term.Restore(int(in.Fd()), state) })
}

// Confirm asks yes or no, unless yes is already said.
func Confirm(cmd *cobra.Command, yes bool, question string) error {
	if yes {
		return nil
	}
	if !IsTerminal(cmd.InOrStdin()) {
		return &croft.Error{Kind: croft.KindRefused, Err: errors.New("nobody was there to say yes; nothing was changed"), Remedy: "pass --yes"}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	line, err := Await(cmd, func() (string, error) { return bufio.NewReader(cmd.InOrStdin()).ReadString('\n') }, func() {})
	if err != nil {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return &croft.Error{Kind: croft.KindRefused, Err: errors.New("not confirmed; nothing was changed"), Remedy: "answer y, or pass --yes"}
}

// Await reads a line, or gives up when the command is stopped.
func Await(cmd *cobra.Command, read func() (string, error), restore func()) (string, error) {
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() { // ends with the program: reading from a terminal cannot be stopped
		line, err := read()
		got <- answer{line, err}
	}()
	select {
	case a := <-got:
		if a.err != nil && !errors.Is(a.err, io.EOF) {
			return "", fmt.Errorf("read from the terminal: %w", a.err)
		}
		return a.line, nil
	case <-cmd.Context().Done():
		restore()
		return "", fmt.Errorf("read from the terminal: %w", cmd.Context().Err())
	}
}

// IsTerminal reports whether f is a terminal.
func IsTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
