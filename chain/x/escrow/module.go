package escrow

import (
	"context"
	"encoding/json"
	"fmt"

	gwruntime "github.com/grpc-ecosystem/grpc-gateway/runtime"

	"github.com/croft-cloud/croft/chain/gogo/escrowv1"

	"cosmossdk.io/core/appmodule"

	"github.com/cosmos/cosmos-sdk/client"
	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/module"
	"github.com/cosmos/cosmos-sdk/types/msgservice"
	"github.com/cosmos/cosmos-sdk/x/authz"
)

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

// RegisterInterfaces makes the messages and the grant known by their type URLs.
func (AppModule) RegisterInterfaces(registry codectypes.InterfaceRegistry) {
	registry.RegisterImplementations((*sdk.Msg)(nil), &escrowv1.MsgAccountDeposit{})
	registry.RegisterImplementations((*authz.Authorization)(nil), &escrowv1.DepositAuthorization{})
	msgservice.RegisterMsgServiceDesc(registry, &escrowv1.Msg_serviceDesc)
}

// RegisterGRPCGatewayRoutes adds the REST paths of the queries.
func (AppModule) RegisterGRPCGatewayRoutes(ctx client.Context, mux *gwruntime.ServeMux) {
	if err := escrowv1.RegisterQueryHandlerClient(context.Background(), mux, escrowv1.NewQueryClient(ctx)); err != nil {
		panic(fmt.Errorf("register escrow routes: %w", err)) // two modules claim one path: a mistake in the program
	}
}

// RegisterServices adds the messages and the queries.
func (m AppModule) RegisterServices(cfg module.Configurator) {
	escrowv1.RegisterMsgServer(cfg.MsgServer(), NewMsgServer(m.keeper))
	escrowv1.RegisterQueryServer(cfg.QueryServer(), NewQueryServer(m.keeper))
}

// DefaultGenesis is [DefaultGenesis] as JSON.
func (AppModule) DefaultGenesis(cdc codec.JSONCodec) json.RawMessage {
	return cdc.MustMarshalJSON(DefaultGenesis())
}

// ValidateGenesis is [ValidateGenesis] of JSON.
func (AppModule) ValidateGenesis(cdc codec.JSONCodec, _ client.TxEncodingConfig, raw json.RawMessage) error {
	var state escrowv1.GenesisState
	if err := cdc.UnmarshalJSON(raw, &state); err != nil {
		return fmt.Errorf("read escrow genesis: %w", err)
	}
	return ValidateGenesis(&state)
}

// InitGenesis loads the state. It panics on a bad one, as the SDK asks: a chain
// must not start with it.
func (m AppModule) InitGenesis(ctx sdk.Context, cdc codec.JSONCodec, raw json.RawMessage) {
	var state escrowv1.GenesisState
	cdc.MustUnmarshalJSON(raw, &state)
	if err := m.keeper.InitGenesis(ctx, &state); err != nil {
		panic(fmt.Errorf("load escrow genesis: %w", err))
	}
}

// ExportGenesis returns the whole state.
func (m AppModule) ExportGenesis(ctx sdk.Context, cdc codec.JSONCodec) json.RawMessage {
	state, err := m.keeper.ExportGenesis(ctx)
	if err != nil {
		panic(fmt.Errorf("export escrow genesis: %w", err))
	}
	return cdc.MustMarshalJSON(state)
}
