package tenantcmd

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/keystore"
	"github.com/croft-cloud/croft/cmd/croft/session"
)

func newKeysCommand(o *session.Options) *cobra.Command {
	cmd := session.Group("keys", "Make, keep and show the keys that own accounts",
		newKeysNewCommand(o), newKeysRecoverCommand(o), newKeysListCommand(o), newKeysShowCommand(o),
		newKeysExportCommand(o), newKeysDeleteCommand(o), newKeysUseLocalCommand(o))
	cmd.Long = `Make, keep and show the keys that own accounts.

Keys lie in files below the home folder, encrypted with a passphrase unless you
leave it empty. Programs give it in ` + session.PassphraseVariable + `. Nobody can bring back a lost
key but you, with its words.`
	return cmd
}

// keyView is a key as `keys` shows it to programs.
type keyView struct {
	Name      string          `json:"name"`
	Address   account.Address `json:"address"`
	PublicKey string          `json:"public_key"` // base64
	Encrypted bool            `json:"encrypted"`
}

func viewKey(e keystore.Entry) keyView {
	return keyView{e.Name, e.Address, base64.StdEncoding.EncodeToString(e.PublicKey), e.Encrypted}
}

func keyTable(entries ...keystore.Entry) session.Table {
	t := session.Table{Head: []string{"name", "address", "passphrase", "public key"}, Wide: 1, None: "no keys yet; make one with `croft tenant keys new NAME`"}
	for _, e := range entries {
		guarded := "no"
		if e.Encrypted {
			guarded = "yes"
		}
		t.Row(e.Name, string(e.Address), guarded, viewKey(e).PublicKey)
	}
	return t
}

func newKeysNewCommand(o *session.Options) *cobra.Command {
	var open bool
	cmd := &cobra.Command{
		Use:   "new NAME",
		Short: "Make a key and show its words, once",
		Example: `  croft tenant keys new alice
  croft tenant keys new ci --no-passphrase`,
		Args: session.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := o.Keys()
			if err != nil {
				return err
			}
			pass, err := session.NewPassphrase(cmd, open)
			if err != nil {
				return err
			}
			entry, words, err := store.Add(args[0], pass)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), `Write these words down and keep them where only you find them. Whoever has them
has the account, and without them a lost key stays lost:

  %s

`, wrapWords(words.Reveal(), 8))
			return o.Show(cmd, keyTable(entry), viewKey(entry))
		},
	}
	cmd.Flags().BoolVar(&open, "no-passphrase", false, "protect the file by its mode only")
	return cmd
}

func wrapWords(s string, each int) string {
	var lines []string
	for chunk := range slices.Chunk(strings.Fields(s), each) {
		lines = append(lines, strings.Join(chunk, " "))
	}
	return strings.Join(lines, "\n  ")
}

func newKeysRecoverCommand(o *session.Options) *cobra.Command {
	var open bool
	var path keystore.Path
	cmd := &cobra.Command{
		Use:   "recover NAME",
		Short: "Make a key anew from its words",
		Long: `Make a key anew from its words, which are asked for or read from the standard
input. They never belong on a command line, where others can read them.`,
		Example: `  croft tenant keys recover alice
  croft tenant keys recover alice < words.txt`,
		Args: session.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := o.Keys()
			if err != nil {
				return err
			}
			typed, err := session.Secret(cmd, "The words of the key, with spaces between them (they are not shown): ")
			if err != nil {
				return err
			}
			words, err := account.ParseMnemonic(typed)
			if err != nil {
				return session.Usage(err, "look at the word it names and try again")
			}
			pass, err := session.NewPassphrase(cmd, open)
			if err != nil {
				return err
			}
			entry, err := store.Recover(args[0], words, path, pass)
			if err != nil {
				return err
			}
			return o.Show(cmd, keyTable(entry), viewKey(entry))
		},
	}
	f := cmd.Flags()
	f.BoolVar(&open, "no-passphrase", false, "protect the file by its mode only")
	f.Uint32Var(&path.Account, "account", 0, "third step of the path m/44'/118'/ACCOUNT'/0/INDEX")
	f.Uint32Var(&path.Index, "index", 0, "last step of the path")
	return cmd
}

func newKeysListCommand(o *session.Options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the keys", Args: session.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := o.Keys()
			if err != nil {
				return err
			}
			entries, err := store.List()
			if err != nil {
				return err
			}
			views := make([]keyView, 0, len(entries))
			for _, e := range entries {
				views = append(views, viewKey(e))
			}
			return o.Show(cmd, keyTable(entries...), views)
		},
	}
}

func newKeysShowCommand(o *session.Options) *cobra.Command {
	var address bool
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show one key's address", Args: session.Args(1, 1),
		Example: `  croft tenant keys show alice
  croft query bank balances $(croft tenant keys show alice -a)`,
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := o.Keys()
			if err != nil {
				return err
			}
			entry, err := store.Entry(args[0])
			if err != nil {
				return err
			}
			if address {
				fmt.Fprintln(cmd.OutOrStdout(), entry.Address)
				return nil
			}
			return o.Show(cmd, keyTable(entry), viewKey(entry))
		},
	}
	cmd.Flags().BoolVarP(&address, "address", "a", false, "print the address and nothing else")
	return cmd
}

func newKeysExportCommand(o *session.Options) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "export NAME", Short: "Show the words of a key, after asking", Args: session.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := o.Keys()
			if err != nil {
				return err
			}
			entry, err := store.Entry(args[0])
			if err != nil {
				return err
			}
			if err := session.Confirm(cmd, yes, fmt.Sprintf("The words of %s appear on this screen. Go on?", entry.Name)); err != nil {
				return err
			}
			pass, err := session.Passphrase(cmd, entry)
			if err != nil {
				return err
			}
			words, err := store.Export(entry.Name, pass)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), words.Reveal())
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func newKeysDeleteCommand(o *session.Options) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Short: "Delete a key for good, after asking", Args: session.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := o.Keys()
			if err != nil {
				return err
			}
			entry, err := store.Entry(args[0])
			if err != nil {
				return err
			}
			if err := session.Confirm(cmd, yes, fmt.Sprintf("Without its words, what %s holds is lost with the key %s. Delete it?", entry.Address, entry.Name)); err != nil {
				return err
			}
			if err := store.Delete(entry.Name); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "deleted key %s\n", entry.Name)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func newKeysUseLocalCommand(o *session.Options) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "use-local",
		Short: "Take over the funded accounts of a local chain",
		Long: `Take over the funded accounts of a local chain: tenant, provider, fleet and
faucet. ` + "`croft-chaind start --home DIR`" + ` writes their words to DIR/accounts.json.
They are play money, so the keys get no passphrase.`,
		Example: `  croft tenant keys use-local --accounts ~/.croft-chain/accounts.json`,
		Args:    session.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return session.MissingFlag(cmd, "accounts")
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("read accounts: %w", err), Remedy: "start a local chain with `croft-chaind start --home DIR` and name DIR/accounts.json"}
			}
			var accounts map[string]struct {
				Mnemonic string `json:"mnemonic"`
			}
			if err := json.Unmarshal(raw, &accounts); err != nil {
				return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read accounts %s: %w", file, err), Remedy: "name the accounts.json of a local chain"}
			}
			store, err := o.Keys()
			if err != nil {
				return err
			}
			var entries []keystore.Entry
			var views []keyView
			for _, name := range slices.Sorted(maps.Keys(accounts)) {
				words, err := account.ParseMnemonic(accounts[name].Mnemonic)
				if err != nil {
					return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("account %s in %s: %w", name, file, err), Remedy: "name the accounts.json of a local chain"}
				}
				entry, err := takeOver(store, name, words)
				if err != nil {
					return err
				}
				entries, views = append(entries, entry), append(views, viewKey(entry))
			}
			return o.Show(cmd, keyTable(entries...), views)
		},
	}
	cmd.Flags().StringVar(&file, "accounts", "", "accounts.json of the local chain")
	return cmd
}

// takeOver stores a key unless it is there already.
func takeOver(store *keystore.Store, name string, words account.Mnemonic) (keystore.Entry, error) {
	key, err := words.Key(0, 0)
	if err != nil {
		return keystore.Entry{}, err
	}
	entry, err := store.Entry(name)
	switch {
	case err == nil && entry.Address == key.Address():
		return entry, nil
	case err == nil:
		return entry, &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("key %q exists and is that of another account, %s", name, entry.Address),
			Remedy: "if it is from an earlier local chain, delete it with `croft tenant keys rm " + name + "` and repeat",
		}
	case croft.KindOf(err) != croft.KindNotFound:
		return entry, err
	}
	return store.Recover(name, words, keystore.Path{}, "")
}
