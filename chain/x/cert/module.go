package cert

import (
	"context"
	"encoding/json"
	"fmt"

	gwruntime "github.com/grpc-ecosystem/grpc-gateway/runtime"

	"github.com/croft-cloud/croft/chain/gogo/certv1"

	"cosmossdk.io/collections"
	"cosmossdk.io/core/appmodule"

	"github.com/cosmos/cosmos-sdk/client"
	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/module"
	"github.com/cosmos/cosmos-sdk/types/msgservice"
)

// DefaultGenesis is the state of a chain on which nobody has published.
func DefaultGenesis() *certv1.GenesisState { return &certv1.GenesisState{} }

// ValidateGenesis checks each certificate as if it were published now.
func ValidateGenesis(state *certv1.GenesisState) error {
	seen := make(map[string]bool)
	for _, g := range state.Certificates {
		serial, err := parse(g.Owner, g.Certificate.Cert, g.Certificate.Pubkey)
		if err != nil {
			return fmt.Errorf("certificate of %s: %w", g.Owner, err)
		}
		if err := check(g.Owner, serial, g.Certificate); err != nil {
			return fmt.Errorf("certificate %s of %s: %w", serial, g.Owner, err)
		}
		key := g.Owner + "/" + serial
		if seen[key] {
			return ErrCertificateExists.Wrapf("genesis has %s twice", key)
		}
		seen[key] = true
	}
	return nil
}

// InitGenesis loads the state into an empty store.
func (k *Keeper) InitGenesis(ctx context.Context, state *certv1.GenesisState) error {
	if err := ValidateGenesis(state); err != nil {
		return err
	}
	for _, g := range state.Certificates {
		owner, err := sdk.AccAddressFromBech32(g.Owner)
		if err != nil {
			return ErrInvalidAddress.Wrap(err.Error())
		}
		serial, err := parse(g.Owner, g.Certificate.Cert, g.Certificate.Pubkey)
		if err != nil {
			return err
		}
		if err := k.certificates.Set(ctx, collections.Join(owner, serial), g.Certificate); err != nil {
			return fmt.Errorf("store certificate: %w", err)
		}
	}
	return nil
}

// ExportGenesis returns the whole state, in the order of the keys.
func (k *Keeper) ExportGenesis(ctx context.Context) (*certv1.GenesisState, error) {
	state := DefaultGenesis()
	err := k.certificates.Walk(ctx, nil, func(key certKey, c certv1.Certificate) (bool, error) {
		state.Certificates = append(state.Certificates, certv1.GenesisCertificate{Owner: key.K1().String(), Certificate: c})
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("export certificates: %w", err)
	}
	return state, nil
}

var (
	_ appmodule.AppModule   = AppModule{}
	_ module.AppModuleBasic = AppModule{}
	_ module.HasGenesis     = AppModule{}
	_ module.HasServices    = AppModule{}
)

// AppModule shows the keeper to the application. It has no block hooks.
type AppModule struct {
	cdc    codec.Codec
	keeper *Keeper
}

// NewAppModule returns the module around its keeper.
func NewAppModule(cdc codec.Codec, k *Keeper) AppModule { return AppModule{cdc: cdc, keeper: k} }

// IsOnePerModuleType marks the module for the SDK.
func (AppModule) IsOnePerModuleType() {}

// IsAppModule marks the module for the SDK.
func (AppModule) IsAppModule() {}

// Name is [ModuleName].
func (AppModule) Name() string { return ModuleName }

// ConsensusVersion is the version of the store's layout.
func (AppModule) ConsensusVersion() uint64 { return 1 }

// RegisterLegacyAminoCodec registers nothing: amino JSON is made from the
// messages' descriptors.
func (AppModule) RegisterLegacyAminoCodec(*codec.LegacyAmino) {}

// RegisterInterfaces makes the messages known by their type URLs.
func (AppModule) RegisterInterfaces(registry codectypes.InterfaceRegistry) {
	registry.RegisterImplementations((*sdk.Msg)(nil), &certv1.MsgCreateCertificate{}, &certv1.MsgRevokeCertificate{})
	msgservice.RegisterMsgServiceDesc(registry, &certv1.Msg_serviceDesc)
}

// RegisterGRPCGatewayRoutes adds the REST path of the query.
func (AppModule) RegisterGRPCGatewayRoutes(ctx client.Context, mux *gwruntime.ServeMux) {
	if err := certv1.RegisterQueryHandlerClient(context.Background(), mux, certv1.NewQueryClient(ctx)); err != nil {
		panic(fmt.Errorf("register cert routes: %w", err)) // two modules claim one path: a mistake in the program
	}
}

// RegisterServices adds the messages and the query.
func (m AppModule) RegisterServices(cfg module.Configurator) {
	certv1.RegisterMsgServer(cfg.MsgServer(), NewMsgServer(m.keeper))
	certv1.RegisterQueryServer(cfg.QueryServer(), NewQueryServer(m.keeper))
}

// DefaultGenesis is [DefaultGenesis] as JSON.
func (AppModule) DefaultGenesis(cdc codec.JSONCodec) json.RawMessage {
	return cdc.MustMarshalJSON(DefaultGenesis())
}

// ValidateGenesis is [ValidateGenesis] of JSON.
func (AppModule) ValidateGenesis(cdc codec.JSONCodec, _ client.TxEncodingConfig, raw json.RawMessage) error {
	var state certv1.GenesisState
	if err := cdc.UnmarshalJSON(raw, &state); err != nil {
		return fmt.Errorf("read cert genesis: %w", err)
	}
	return ValidateGenesis(&state)
}

// InitGenesis loads the state. It panics on a bad one, as the SDK asks: a chain
// must not start with it.
func (m AppModule) InitGenesis(ctx sdk.Context, cdc codec.JSONCodec, raw json.RawMessage) {
	var state certv1.GenesisState
	cdc.MustUnmarshalJSON(raw, &state)
	if err := m.keeper.InitGenesis(ctx, &state); err != nil {
		panic(fmt.Errorf("load cert genesis: %w", err))
	}
}

// ExportGenesis returns the whole state.
func (m AppModule) ExportGenesis(ctx sdk.Context, cdc codec.JSONCodec) json.RawMessage {
	state, err := m.keeper.ExportGenesis(ctx)
	if err != nil {
		panic(fmt.Errorf("export cert genesis: %w", err))
	}
	return cdc.MustMarshalJSON(state)
}
