package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtjson "github.com/cometbft/cometbft/libs/json"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/privval"
	cmttypes "github.com/cometbft/cometbft/types"
	dbm "github.com/cosmos/cosmos-db"
	"github.com/cosmos/go-bip39"

	"github.com/cosmos/cosmos-sdk/crypto/hd"
	"github.com/cosmos/cosmos-sdk/crypto/keys/secp256k1"
	sdk "github.com/cosmos/cosmos-sdk/types"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/cometnode"
)

// Home is the directory of a node:
//
//	accounts.json                   mnemonics of the chain's first accounts, or of this validator's operator; mode 0600
//	config/genesis.json             the chain's first state
//	config/node_key.json            who the node is to its peers; mode 0600
//	config/priv_validator_key.json  signs blocks; mode 0600
//	data/                           blocks, state, what was signed last
//
// Every file under it but data/ is written once, so that a power cut leaves the
// whole file or none.
type Home string

func (h Home) accountsFile() string { return filepath.Join(string(h), "accounts.json") }
func (h Home) genesisFile() string  { return filepath.Join(string(h), "config", "genesis.json") }
func (h Home) nodeKeyFile() string  { return filepath.Join(string(h), "config", "node_key.json") }
func (h Home) validatorKeyFile() string {
	return filepath.Join(string(h), "config", "priv_validator_key.json")
}

func (h Home) validatorStateFile() string {
	return filepath.Join(string(h), "data", "priv_validator_state.json")
}
func (h Home) data() string { return filepath.Join(string(h), "data") }

// make creates the directories.
func (h Home) make() error {
	for _, dir := range []string{"config", "data"} {
		if err := os.MkdirAll(filepath.Join(string(h), dir), 0o700); err != nil {
			return fmt.Errorf("make home: %w", err)
		}
	}
	return nil
}

// HasGenesis says whether the home belongs to a chain yet.
func (h Home) HasGenesis() (bool, error) {
	_, err := os.Stat(h.genesisFile())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Genesis reads the chain's first state.
func (h Home) Genesis() (*cmttypes.GenesisDoc, error) {
	raw, err := os.ReadFile(h.genesisFile())
	if err != nil {
		return nil, fmt.Errorf("read genesis: %w", err)
	}
	return ParseGenesis(raw)
}

// ParseGenesis reads a genesis document.
func ParseGenesis(raw []byte) (*cmttypes.GenesisDoc, error) {
	doc, err := cmttypes.GenesisDocFromJSON(raw)
	if err != nil {
		return nil, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read genesis: %w", err), Remedy: "get the file again from another member of the chain"}
	}
	return doc, nil
}

// EncodeGenesis is the text of a genesis document; the same document gives the
// same text.
func EncodeGenesis(doc *cmttypes.GenesisDoc) ([]byte, error) {
	raw, err := cmtjson.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode genesis: %w", err)
	}
	return append(raw, '\n'), nil
}

// SetGenesis makes the home part of a chain. A home stays with its chain: a
// second, different genesis is refused.
func (h Home) SetGenesis(doc *cmttypes.GenesisDoc) error {
	raw, err := EncodeGenesis(doc)
	if err != nil {
		return err
	}
	if err := h.make(); err != nil {
		return err
	}
	switch old, err := os.ReadFile(h.genesisFile()); {
	case err == nil && string(old) == string(raw):
		return nil
	case err == nil:
		return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("%s belongs to another chain", h), Remedy: "use an empty directory"}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read genesis: %w", err)
	}
	return cometnode.WriteFile(h.genesisFile(), raw, 0o644)
}

// Keys loads the keys of the node and of its validator, and makes those that
// are not there.
func (h Home) Keys() (*p2p.NodeKey, *privval.FilePV, error) {
	if err := h.make(); err != nil {
		return nil, nil, err
	}
	nodeKey, err := cometnode.NodeKey(h.nodeKeyFile())
	if err != nil {
		return nil, nil, err
	}
	validator, err := cometnode.ValidatorKey(h.validatorKeyFile(), h.validatorStateFile())
	if err != nil {
		return nil, nil, err
	}
	return nodeKey, validator, nil
}

// OpenApp opens the state of a node that does not run, to export it.
func (h Home) OpenApp(log *slog.Logger) (*App, error) {
	doc, err := h.Genesis()
	if err != nil {
		return nil, err
	}
	return h.open(cometnode.Log{Slog: log}, Options{ChainID: doc.ChainID})
}

// inUse is the error of a database that does not open: mostly because another
// process has it.
func (h Home) inUse(err error) error {
	if !errors.Is(err, syscall.EAGAIN) {
		return &croft.Error{Kind: croft.KindRefused, Err: err, Remedy: "see that no other node runs in " + string(h)}
	}
	return &croft.Error{
		Kind: croft.KindRefused, Err: fmt.Errorf("another croft-chaind uses the home %s: %w", string(h), err),
		Remedy: "stop that one, or name another directory with --home",
	}
}

func (h Home) open(log cometnode.Log, options Options) (*App, error) {
	db, err := dbm.NewGoLevelDB("application", h.data(), nil)
	if err != nil {
		return nil, h.inUse(fmt.Errorf("open state: %w", err))
	}
	options.Home = string(h)
	a, err := New(log, db, options)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open application: %w", err), db.Close())
	}
	return a, nil
}

// InitValidator makes the keys of a validator that is not on a chain yet, and
// the account that will operate it. Doing it again gives the same answer. Peer
// is the node's id, the part before the @ of its address.
func (h Home) InitValidator(moniker string, stake int64) (validator GenesisValidator, peer string, err error) {
	nodeKey, key, err := h.Keys()
	if err != nil {
		return validator, "", err
	}
	accounts, err := h.ensureAccounts(ValidatorAccount)
	if err != nil {
		return validator, "", err
	}
	return GenesisValidator{
		Moniker:  moniker,
		Operator: accounts[ValidatorAccount].Address,
		Key:      key.Key.PubKey.(ed25519.PubKey),
		Stake:    stake,
	}, string(nodeKey.ID()), nil
}

// LocalAccount is one of the accounts that a home holds the key of.
type LocalAccount struct {
	Address  string `json:"address"`  // akash1…
	Mnemonic string `json:"mnemonic"` // 24 words, HD path 44'/118'/0'/0/0; a secret
}

// The accounts of a local chain.
const (
	TenantAccount    = "tenant"
	ProviderAccount  = "provider"
	FleetAccount     = "fleet"
	FaucetAccount    = "faucet"
	ValidatorAccount = "validator" // operates the validator: votes on upgrades
)

// Accounts are the accounts of the home by name. The error is fs.ErrNotExist
// when there are none.
func (h Home) Accounts() (map[string]LocalAccount, error) {
	raw, err := os.ReadFile(h.accountsFile())
	if err != nil {
		return nil, fmt.Errorf("read accounts: %w", err)
	}
	var accounts map[string]LocalAccount
	if err := json.Unmarshal(raw, &accounts); err != nil {
		return nil, cometnode.Damaged(h.accountsFile(), err)
	}
	return accounts, nil
}

// ensureAccounts makes accounts of these names, unless the home has accounts.
func (h Home) ensureAccounts(names ...string) (map[string]LocalAccount, error) {
	accounts, err := h.Accounts()
	if !errors.Is(err, fs.ErrNotExist) {
		return accounts, err
	}
	accounts = make(map[string]LocalAccount, len(names))
	for _, name := range names {
		if accounts[name], err = newLocalAccount(); err != nil {
			return nil, err
		}
	}
	raw, err := json.MarshalIndent(accounts, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode accounts: %w", err)
	}
	return accounts, cometnode.WriteFile(h.accountsFile(), append(raw, '\n'), 0o600)
}

func newLocalAccount() (LocalAccount, error) {
	entropy, err := bip39.NewEntropy(256)
	if err != nil {
		return LocalAccount{}, fmt.Errorf("make entropy: %w", err)
	}
	mnemonic, err := bip39.NewMnemonic(entropy)
	if err != nil {
		return LocalAccount{}, fmt.Errorf("make mnemonic: %w", err)
	}
	account := LocalAccount{Mnemonic: mnemonic}
	key, err := account.key()
	if err != nil {
		return LocalAccount{}, err
	}
	account.Address = sdk.AccAddress(key.PubKey().Address()).String()
	return account, nil
}

// key derives the account's private key.
func (a LocalAccount) key() (*secp256k1.PrivKey, error) {
	SetAddressPrefix()
	raw, err := hd.Secp256k1.Derive()(a.Mnemonic, "", "m/44'/118'/0'/0/0")
	if err != nil {
		return nil, errors.New("derive key: the mnemonic is not valid") // the cause could quote the words
	}
	return &secp256k1.PrivKey{Key: raw}, nil
}
