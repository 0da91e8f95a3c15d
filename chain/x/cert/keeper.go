// Package cert is the chain's list of client and server certificates: each
// account publishes certificates that it signed itself, and takes back those it
// no longer trusts. A gateway that is shown one asks here whether it is valid.
//
// A certificate is named by its owner and its serial number. It is stored as it
// was sent, valid, and becomes revoked once and for good; none is ever removed,
// expired or not. So who verifies one looks at its dates as well as here.
//
// Sizes are bounded and the form is strict; see ValidateCreateCertificate. The
// module has no block hooks and keeps nothing but what blocks committed.
package cert

import (
	"context"
	"errors"
	"fmt"

	errorsmod "cosmossdk.io/errors"

	"github.com/croft-cloud/croft/chain/gogo/certv1"

	"cosmossdk.io/collections"
	"cosmossdk.io/collections/indexes"
	corestore "cosmossdk.io/core/store"

	"github.com/cosmos/cosmos-sdk/codec"
	sdk "github.com/cosmos/cosmos-sdk/types"
)

const (
	// ModuleName names the module and its errors.
	ModuleName = "cert"
	// StoreKey names its store.
	StoreKey = ModuleName
)

var (
	certificatesPrefix = collections.NewPrefix(0)
	byStatePrefix      = collections.NewPrefix(1)
	bySerialPrefix     = collections.NewPrefix(2)
)

// certKey is owner and serial number.
type certKey = collections.Pair[sdk.AccAddress, string]

// certIndexes find certificates by other things than their owner.
type certIndexes struct {
	state  *indexes.Multi[int32, certKey, certv1.Certificate]
	serial *indexes.Multi[string, certKey, certv1.Certificate]
}

// IndexesList names the indexes for the map that keeps them.
func (i certIndexes) IndexesList() []collections.Index[certKey, certv1.Certificate] {
	return []collections.Index[certKey, certv1.Certificate]{i.state, i.serial}
}

// Keeper owns the certificates. Make it with [NewKeeper].
type Keeper struct {
	schema       collections.Schema
	certificates *collections.IndexedMap[certKey, certv1.Certificate, certIndexes]
}

// NewKeeper returns a keeper over the store.
func NewKeeper(cdc codec.BinaryCodec, store corestore.KVStoreService) (*Keeper, error) {
	sb := collections.NewSchemaBuilder(store)
	key := collections.PairKeyCodec(sdk.AccAddressKey, collections.StringKey)
	k := &Keeper{certificates: collections.NewIndexedMap(sb, certificatesPrefix, "certificates", key, codec.CollValue[certv1.Certificate](cdc), certIndexes{
		state: indexes.NewMulti(sb, byStatePrefix, "certificates_by_state", collections.Int32Key, key,
			func(_ certKey, c certv1.Certificate) (int32, error) { return int32(c.State), nil }),
		serial: indexes.NewMulti(sb, bySerialPrefix, "certificates_by_serial", collections.StringKey, key,
			func(key certKey, _ certv1.Certificate) (string, error) { return key.K2(), nil }),
	})}
	var err error
	if k.schema, err = sb.Build(); err != nil {
		return nil, fmt.Errorf("make cert keeper: %w", err)
	}
	return k, nil
}

// Create publishes a certificate and returns its serial number.
func (k *Keeper) Create(ctx context.Context, owner sdk.AccAddress, cert, pubkey []byte) (serial string, err error) {
	serial, err = parse(owner.String(), cert, pubkey)
	if err != nil {
		return "", err
	}
	key := collections.Join(owner, serial)
	exists, err := k.certificates.Has(ctx, key)
	if err != nil {
		return "", errorsmod.Wrap(err, "read certificate")
	}
	if exists {
		return "", ErrCertificateExists.Wrapf("%s/%s", owner, serial)
	}
	if err := k.certificates.Set(ctx, key, certv1.Certificate{State: certv1.StateValid, Cert: cert, Pubkey: pubkey}); err != nil {
		return "", errorsmod.Wrap(err, "store certificate")
	}
	return serial, nil
}

// Revoke marks a certificate as not to be trusted any more.
func (k *Keeper) Revoke(ctx context.Context, owner sdk.AccAddress, serial string) error {
	found, ok, err := k.Get(ctx, owner, serial)
	switch {
	case err != nil:
		return err
	case !ok:
		return ErrCertificateNotFound.Wrapf("%s/%s", owner, serial)
	case found.State == certv1.StateRevoked:
		return ErrCertificateAlreadyRevoked.Wrapf("%s/%s", owner, serial)
	}
	found.State = certv1.StateRevoked
	if err := k.certificates.Set(ctx, collections.Join(owner, serial), found); err != nil {
		return errorsmod.Wrap(err, "store certificate")
	}
	return nil
}

// Get returns a certificate and whether there is one.
func (k *Keeper) Get(ctx context.Context, owner sdk.AccAddress, serial string) (certv1.Certificate, bool, error) {
	found, err := k.certificates.Get(ctx, collections.Join(owner, serial))
	switch {
	case errors.Is(err, collections.ErrNotFound):
		return certv1.Certificate{}, false, nil
	case err != nil:
		return certv1.Certificate{}, false, errorsmod.Wrap(err, "read certificate")
	}
	return found, true, nil
}

// Invariants says what is wrong with the state, if anything: every certificate
// is what its key says and would be accepted, and the indexes list all of them.
// It walks the whole state, so it is for tests and audits, never for a block.
func (k *Keeper) Invariants(ctx context.Context) error {
	var errs []error
	count := 0
	err := k.certificates.Walk(ctx, nil, func(key certKey, c certv1.Certificate) (bool, error) {
		count++
		if err := check(key.K1().String(), key.K2(), c); err != nil {
			errs = append(errs, errorsmod.Wrapf(err, "certificate %s/%s", key.K1(), key.K2()))
		}
		return false, nil
	})
	if err != nil {
		return errorsmod.Wrap(err, "check certificates")
	}
	listed := 0
	err = k.certificates.Indexes.state.Walk(ctx, nil, func(state int32, key certKey) (bool, error) {
		listed++
		c, err := k.certificates.Get(ctx, key)
		if err == nil && int32(c.State) != state {
			errs = append(errs, ErrInvalidState.Wrapf("certificate %s/%s is listed as %s", key.K1(), key.K2(), certv1.State(state)))
		}
		return false, err
	})
	if err != nil {
		return errorsmod.Wrap(err, "check index of states")
	}
	if listed != count {
		errs = append(errs, ErrInvalidState.Wrapf("index lists %d of %d certificates", listed, count))
	}
	return errors.Join(errs...)
}

// check says what is wrong with a stored certificate.
func check(owner, serial string, c certv1.Certificate) error {
	if err := validateAddress(owner); err != nil {
		return err
	}
	if c.State != certv1.StateValid && c.State != certv1.StateRevoked {
		return ErrInvalidState.Wrapf("%q", c.State)
	}
	got, err := parse(owner, c.Cert, c.Pubkey)
	if err != nil {
		return err
	}
	if got != serial {
		return ErrInvalidSerialNumber.Wrapf("stored as %s, is %s", serial, got)
	}
	return nil
}
