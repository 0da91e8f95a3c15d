package deployment

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/grpc-ecosystem/grpc-gateway/runtime"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"

	"cosmossdk.io/core/appmodule"

	"github.com/cosmos/cosmos-sdk/client"
	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/module"
	"github.com/cosmos/cosmos-sdk/types/msgservice"
)

// AppModule is how the application holds the module. It has no work per block.
type AppModule struct {
	cdc    codec.Codec
	keeper *Keeper
}

var (
	_ appmodule.AppModule        = AppModule{}
	_ module.AppModuleBasic      = AppModule{}
	_ module.HasGenesis          = AppModule{}
	_ module.HasServices         = AppModule{}
	_ module.HasConsensusVersion = AppModule{}
)

// NewAppModule wraps a keeper for the application.
func NewAppModule(cdc codec.Codec, keeper *Keeper) AppModule {
	return AppModule{cdc: cdc, keeper: keeper}
}

// IsOnePerModuleType marks the type as a module's.
func (AppModule) IsOnePerModuleType() {}

// IsAppModule marks the type as a module.
func (AppModule) IsAppModule() {}

// Name is [ModuleName].
func (AppModule) Name() string { return ModuleName }

// ConsensusVersion grows with each change of the stored state.
func (AppModule) ConsensusVersion() uint64 { return 1 }

// RegisterLegacyAminoCodec registers nothing: the module stores no amino, and
// amino JSON signatures are checked from the messages' descriptors.
func (AppModule) RegisterLegacyAminoCodec(*codec.LegacyAmino) {}

// RegisterInterfaces makes the messages known by their type URLs.
func (AppModule) RegisterInterfaces(registry codectypes.InterfaceRegistry) {
	registry.RegisterImplementations((*sdk.Msg)(nil),
		&deploymentv1beta4.MsgCreateDeployment{},
		&deploymentv1beta4.MsgUpdateDeployment{},
		&deploymentv1beta4.MsgCloseDeployment{},
		&deploymentv1beta4.MsgCloseGroup{},
		&deploymentv1beta4.MsgPauseGroup{},
		&deploymentv1beta4.MsgStartGroup{},
		&deploymentv1beta4.MsgUpdateParams{},
	)
	msgservice.RegisterMsgServiceDesc(registry, &deploymentv1beta4.Msg_serviceDesc)
}

// RegisterGRPCGatewayRoutes adds the REST paths of the queries.
func (AppModule) RegisterGRPCGatewayRoutes(ctx client.Context, mux *runtime.ServeMux) {
	if err := deploymentv1beta4.RegisterQueryHandlerClient(context.Background(), mux, deploymentv1beta4.NewQueryClient(ctx)); err != nil {
		panic(fmt.Errorf("register deployment routes: %w", err)) // the interface has no error to return
	}
}

// RegisterServices adds the message and query servers.
func (m AppModule) RegisterServices(cfg module.Configurator) {
	deploymentv1beta4.RegisterMsgServer(cfg.MsgServer(), NewMsgServer(m.keeper))
	deploymentv1beta4.RegisterQueryServer(cfg.QueryServer(), NewQueryServer(m.keeper))
}

// DefaultGenesis is the state of a new chain.
func (AppModule) DefaultGenesis(cdc codec.JSONCodec) json.RawMessage {
	return cdc.MustMarshalJSON(DefaultGenesis())
}

// ValidateGenesis refuses a state that the module could not have come to.
func (AppModule) ValidateGenesis(cdc codec.JSONCodec, _ client.TxEncodingConfig, bz json.RawMessage) error {
	var state deploymentv1beta4.GenesisState
	if err := cdc.UnmarshalJSON(bz, &state); err != nil {
		return fmt.Errorf("read genesis of deployment: %w", err)
	}
	return ValidateGenesis(&state)
}

// InitGenesis stores a state before the first block. A state that is not valid
// stops the chain before it begins: the interface has no error to return.
func (m AppModule) InitGenesis(ctx sdk.Context, cdc codec.JSONCodec, bz json.RawMessage) {
	var state deploymentv1beta4.GenesisState
	cdc.MustUnmarshalJSON(bz, &state)
	if err := m.keeper.InitGenesis(ctx, &state); err != nil {
		panic(fmt.Errorf("init genesis of deployment: %w", err))
	}
}

// ExportGenesis reads the whole state, for a chain that starts from it.
func (m AppModule) ExportGenesis(ctx sdk.Context, cdc codec.JSONCodec) json.RawMessage {
	state, err := m.keeper.ExportGenesis(ctx)
	if err != nil {
		panic(fmt.Errorf("export genesis of deployment: %w", err))
	}
	return cdc.MustMarshalJSON(state)
}
