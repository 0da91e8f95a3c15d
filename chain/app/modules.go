package app

import (
	"context"
	"errors"
	"fmt"

	reflectionv1 "cosmossdk.io/api/cosmos/reflection/v1"
	corestore "cosmossdk.io/core/store"

	"github.com/cosmos/cosmos-sdk/codec/address"
	"github.com/cosmos/cosmos-sdk/runtime"
	runtimeservices "github.com/cosmos/cosmos-sdk/runtime/services"
	"github.com/cosmos/cosmos-sdk/types/module"
	"github.com/cosmos/cosmos-sdk/x/auth"
	authkeeper "github.com/cosmos/cosmos-sdk/x/auth/keeper"
	authtypes "github.com/cosmos/cosmos-sdk/x/auth/types"
	"github.com/cosmos/cosmos-sdk/x/authz"
	authzkeeper "github.com/cosmos/cosmos-sdk/x/authz/keeper"
	authzmodule "github.com/cosmos/cosmos-sdk/x/authz/module"
	"github.com/cosmos/cosmos-sdk/x/bank"
	bankkeeper "github.com/cosmos/cosmos-sdk/x/bank/keeper"
	banktypes "github.com/cosmos/cosmos-sdk/x/bank/types"
	"github.com/cosmos/cosmos-sdk/x/consensus"
	consensuskeeper "github.com/cosmos/cosmos-sdk/x/consensus/keeper"
	consensustypes "github.com/cosmos/cosmos-sdk/x/consensus/types"
	"github.com/cosmos/cosmos-sdk/x/distribution"
	distributionkeeper "github.com/cosmos/cosmos-sdk/x/distribution/keeper"
	distributiontypes "github.com/cosmos/cosmos-sdk/x/distribution/types"
	"github.com/cosmos/cosmos-sdk/x/evidence"
	evidencekeeper "github.com/cosmos/cosmos-sdk/x/evidence/keeper"
	evidencetypes "github.com/cosmos/cosmos-sdk/x/evidence/types"
	"github.com/cosmos/cosmos-sdk/x/feegrant"
	feegrantkeeper "github.com/cosmos/cosmos-sdk/x/feegrant/keeper"
	feegrantmodule "github.com/cosmos/cosmos-sdk/x/feegrant/module"
	"github.com/cosmos/cosmos-sdk/x/gov"
	govkeeper "github.com/cosmos/cosmos-sdk/x/gov/keeper"
	govtypes "github.com/cosmos/cosmos-sdk/x/gov/types"
	govv1beta1 "github.com/cosmos/cosmos-sdk/x/gov/types/v1beta1"
	"github.com/cosmos/cosmos-sdk/x/slashing"
	slashingkeeper "github.com/cosmos/cosmos-sdk/x/slashing/keeper"
	slashingtypes "github.com/cosmos/cosmos-sdk/x/slashing/types"
	"github.com/cosmos/cosmos-sdk/x/staking"
	stakingkeeper "github.com/cosmos/cosmos-sdk/x/staking/keeper"
	stakingtypes "github.com/cosmos/cosmos-sdk/x/staking/types"
	"github.com/cosmos/cosmos-sdk/x/upgrade"
	upgradekeeper "github.com/cosmos/cosmos-sdk/x/upgrade/keeper"
	upgradetypes "github.com/cosmos/cosmos-sdk/x/upgrade/types"

	"github.com/croft-cloud/croft/chain/x/audit"
	"github.com/croft-cloud/croft/chain/x/cert"
	"github.com/croft-cloud/croft/chain/x/deployment"
	"github.com/croft-cloud/croft/chain/x/escrow"
	"github.com/croft-cloud/croft/chain/x/market"
	"github.com/croft-cloud/croft/chain/x/provider"
)

// keepers are the modules' doors to their state.
type keepers struct {
	AccountKeeper      authkeeper.AccountKeeper
	BankKeeper         bankkeeper.BaseKeeper
	StakingKeeper      *stakingkeeper.Keeper
	SlashingKeeper     slashingkeeper.Keeper
	EvidenceKeeper     evidencekeeper.Keeper
	DistributionKeeper distributionkeeper.Keeper
	GovKeeper          *govkeeper.Keeper
	AuthzKeeper        authzkeeper.Keeper
	FeegrantKeeper     feegrantkeeper.Keeper
	UpgradeKeeper      *upgradekeeper.Keeper
	ConsensusKeeper    consensuskeeper.Keeper
	EscrowKeeper       *escrow.Keeper
	DeploymentKeeper   *deployment.Keeper
	MarketKeeper       *market.Keeper
	ProviderKeeper     *provider.Keeper
	CertKeeper         *cert.Keeper
	AuditKeeper        *audit.Keeper
}

// storeKeys names the store of each module.
func storeKeys() []string {
	return []string{
		authtypes.StoreKey,
		banktypes.StoreKey,
		stakingtypes.StoreKey,
		slashingtypes.StoreKey,
		evidencetypes.StoreKey,
		distributiontypes.StoreKey,
		govtypes.StoreKey,
		authzkeeper.StoreKey,
		feegrant.StoreKey,
		upgradetypes.StoreKey,
		consensustypes.StoreKey,
		escrow.StoreKey,
		deployment.StoreKey,
		market.StoreKey,
		provider.StoreKey,
		cert.StoreKey,
		audit.StoreKey,
	}
}

// moduleAccounts are the accounts that belong to modules and what each may do
// beside holding coins.
func moduleAccounts() map[string][]string {
	return map[string][]string{
		authtypes.FeeCollectorName:          nil,
		distributiontypes.ModuleName:        nil,
		stakingtypes.BondedPoolName:         {authtypes.Burner, authtypes.Staking},
		stakingtypes.NotBondedPoolName:      {authtypes.Burner, authtypes.Staking},
		stakingtypes.KeyRotationFeePoolName: {authtypes.Burner},
		govtypes.ModuleName:                 {authtypes.Burner},
		escrow.ModuleName:                   nil, // it holds what tenants and providers deposited; it makes and burns nothing
	}
}

// blockedAccounts may not be sent coins by anyone but modules. Governance may:
// it receives what a proposal is to spend.
func blockedAccounts() map[string]bool {
	blocked := make(map[string]bool)
	for name := range moduleAccounts() {
		blocked[authtypes.NewModuleAddress(name).String()] = name != govtypes.ModuleName
	}
	return blocked
}

// wire makes the keepers and the modules and sets the orders they run in. A
// module is added here, in storeKeys and in moduleAccounts, and nowhere else.
func (a *App) wire() error {
	authority := authtypes.NewModuleAddress(govtypes.ModuleName).String()
	store := func(key string) corestore.KVStoreService { return runtime.NewKVStoreService(a.keys[key]) }
	accounts := address.NewBech32Codec(AddressPrefix)
	operators := address.NewBech32Codec(AddressPrefix + "valoper")
	consensusNodes := address.NewBech32Codec(AddressPrefix + "valcons")
	k := &a.keepers

	k.ConsensusKeeper = consensuskeeper.NewKeeper(a.cdc, store(consensustypes.StoreKey), authority, runtime.EventService{})
	a.SetParamStore(k.ConsensusKeeper.ParamsStore)
	k.AccountKeeper = authkeeper.NewAccountKeeper(a.cdc, store(authtypes.StoreKey), authtypes.ProtoBaseAccount, moduleAccounts(),
		accounts, AddressPrefix, authority, authkeeper.WithUnorderedTransactions(true))
	k.BankKeeper = bankkeeper.NewBaseKeeper(a.cdc, store(banktypes.StoreKey), k.AccountKeeper, blockedAccounts(), authority, a.Logger())
	k.StakingKeeper = stakingkeeper.NewKeeper(a.cdc, store(stakingtypes.StoreKey), k.AccountKeeper, k.BankKeeper, authority, operators, consensusNodes)
	k.DistributionKeeper = distributionkeeper.NewKeeper(a.cdc, store(distributiontypes.StoreKey), k.AccountKeeper, k.BankKeeper, k.StakingKeeper,
		authtypes.FeeCollectorName, authority)
	k.SlashingKeeper = slashingkeeper.NewKeeper(a.cdc, a.amino, store(slashingtypes.StoreKey), k.StakingKeeper, authority)
	k.StakingKeeper.SetHooks(stakingtypes.NewMultiStakingHooks(k.DistributionKeeper.Hooks(), k.SlashingKeeper.Hooks()))
	k.EvidenceKeeper = *evidencekeeper.NewKeeper(a.cdc, store(evidencetypes.StoreKey), k.StakingKeeper, k.SlashingKeeper, accounts,
		runtime.ProvideCometInfoService())
	k.AuthzKeeper = authzkeeper.NewKeeper(store(authzkeeper.StoreKey), a.cdc, a.MsgServiceRouter(), k.AccountKeeper).SetBankKeeper(k.BankKeeper)
	k.FeegrantKeeper = feegrantkeeper.NewKeeper(a.cdc, store(feegrant.StoreKey), k.AccountKeeper).SetBankKeeper(k.BankKeeper)
	k.UpgradeKeeper = upgradekeeper.NewKeeper(nil, store(upgradetypes.StoreKey), a.cdc, a.options.Home, a.BaseApp, authority)
	k.GovKeeper = govkeeper.NewKeeper(a.cdc, store(govtypes.StoreKey), k.AccountKeeper, k.BankKeeper, k.DistributionKeeper, a.MsgServiceRouter(),
		govtypes.DefaultConfig(), authority, govkeeper.NewDefaultCalculateVoteResultsAndVotingPower(k.StakingKeeper))
	k.GovKeeper.SetLegacyRouter(govv1beta1.NewRouter().AddRoute(govtypes.RouterKey, govv1beta1.ProposalHandler))
	if err := a.wireMarket(authority, store); err != nil {
		return err
	}

	a.manager = module.NewManager(
		auth.NewAppModule(a.cdc, k.AccountKeeper, nil),
		bank.NewAppModule(a.cdc, k.BankKeeper, k.AccountKeeper),
		staking.NewAppModule(a.cdc, k.StakingKeeper, k.AccountKeeper, k.BankKeeper),
		slashing.NewAppModule(a.cdc, k.SlashingKeeper, k.AccountKeeper, k.BankKeeper, k.StakingKeeper, a.registry),
		evidence.NewAppModule(k.EvidenceKeeper),
		distribution.NewAppModule(a.cdc, k.DistributionKeeper, k.AccountKeeper, k.BankKeeper, k.StakingKeeper),
		gov.NewAppModule(a.cdc, k.GovKeeper, k.AccountKeeper, k.BankKeeper),
		observedAuthz{
			AppModule: authzmodule.NewAppModule(a.cdc, k.AuthzKeeper, k.AccountKeeper, k.BankKeeper, a.registry),
			messages:  k.EscrowKeeper.ObserveGrants(k.AuthzKeeper), queries: k.AuthzKeeper,
		},
		feegrantmodule.NewAppModule(a.cdc, k.AccountKeeper, k.BankKeeper, k.FeegrantKeeper, a.registry),
		upgrade.NewAppModule(k.UpgradeKeeper, accounts),
		consensus.NewAppModule(a.cdc, k.ConsensusKeeper),
		escrow.NewAppModule(a.cdc, k.EscrowKeeper),
		deployment.NewAppModule(a.cdc, k.DeploymentKeeper),
		market.NewAppModule(a.cdc, k.MarketKeeper),
		provider.NewAppModule(a.cdc, k.ProviderKeeper),
		cert.NewAppModule(a.cdc, k.CertKeeper),
		audit.NewAppModule(a.cdc, k.AuditKeeper),
	)
	a.basics = module.NewBasicManagerFromManager(a.manager, nil)
	a.basics.RegisterInterfaces(a.registry)
	a.basics.RegisterLegacyAminoCodec(a.amino)

	// The upgrade comes first of all; auth forgets the nonces of unordered
	// transactions that timed out.
	a.manager.SetOrderPreBlockers(upgradetypes.ModuleName, authtypes.ModuleName)
	a.manager.SetOrderBeginBlockers(
		distributiontypes.ModuleName, slashingtypes.ModuleName, evidencetypes.ModuleName, stakingtypes.ModuleName, authz.ModuleName)
	// Bank writes down what the block moved of its buffered balances before
	// others look at them.
	a.manager.SetOrderEndBlockers(banktypes.ModuleName, govtypes.ModuleName, stakingtypes.ModuleName, feegrant.ModuleName)
	// A module comes after those whose state its own genesis touches: escrow
	// after the coins it holds and the grants it draws on, and before the
	// deployments and bids whose accounts it has. Modules of chain/x do nothing
	// in a block but what its transactions ask for: accounts are settled when
	// someone looks.
	order := []string{
		consensustypes.ModuleName, authtypes.ModuleName, banktypes.ModuleName, distributiontypes.ModuleName, stakingtypes.ModuleName,
		slashingtypes.ModuleName, govtypes.ModuleName, evidencetypes.ModuleName, authz.ModuleName, feegrant.ModuleName, upgradetypes.ModuleName,
		escrow.ModuleName, deployment.ModuleName, provider.ModuleName, audit.ModuleName, market.ModuleName, cert.ModuleName,
	}
	a.manager.SetOrderInitGenesis(order...)
	a.manager.SetOrderExportGenesis(order...)
	return nil
}

// wireMarket makes the keepers of chain/x. Each sees of the others what its
// expected_keepers.go names. Deployment and market need each other; the market
// is given to deployment last.
func (a *App) wireMarket(authority string, store func(key string) corestore.KVStoreService) error {
	k := &a.keepers
	var errs [6]error
	k.EscrowKeeper, errs[0] = escrow.NewKeeper(a.cdc, store(escrow.StoreKey), k.AccountKeeper, k.BankKeeper, k.AuthzKeeper)
	k.ProviderKeeper, errs[1] = provider.NewKeeper(a.cdc, store(provider.StoreKey))
	k.AuditKeeper, errs[2] = audit.NewKeeper(a.cdc, store(audit.StoreKey))
	k.CertKeeper, errs[3] = cert.NewKeeper(a.cdc, store(cert.StoreKey))
	k.DeploymentKeeper, errs[4] = deployment.NewKeeper(a.cdc, store(deployment.StoreKey), authority, k.EscrowKeeper)
	k.MarketKeeper, errs[5] = market.NewKeeper(a.cdc, store(market.StoreKey), authority,
		k.EscrowKeeper, k.DeploymentKeeper, k.ProviderKeeper, k.AuditKeeper)
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("make keepers: %w", err)
	}
	k.DeploymentKeeper.SetMarket(k.MarketKeeper)
	k.EscrowKeeper.SetHooks(a.onAccountOverdrawn, nil)
	return nil
}

// observedAuthz is authz whose messages pass escrow, which must know who may
// deposit from whose balance.
type observedAuthz struct {
	authzmodule.AppModule
	messages authz.MsgServer
	queries  authz.QueryServer
}

// RegisterServices registers the services in place of those of authz. There is
// no older state to migrate: every croft chain began with this version.
func (m observedAuthz) RegisterServices(cfg module.Configurator) {
	authz.RegisterMsgServer(cfg.MsgServer(), m.messages)
	authz.RegisterQueryServer(cfg.QueryServer(), m.queries)
}

// registerReflection serves the descriptors of all messages, for clients that
// build their requests from them.
func (a *App) registerReflection() error {
	service, err := runtimeservices.NewReflectionService()
	if err != nil {
		return fmt.Errorf("make reflection service: %w", err)
	}
	reflectionv1.RegisterReflectionServiceServer(a.GRPCQueryRouter(), service)
	return nil
}

// checkedModule is a module whose invariants [App.Invariants] checks.
type checkedModule struct {
	name  string
	check func(context.Context) error
}

func (k *keepers) checked() []checkedModule {
	return []checkedModule{
		{escrow.ModuleName, k.EscrowKeeper.Invariants},
		{deployment.ModuleName, k.DeploymentKeeper.Invariants},
		{market.ModuleName, k.MarketKeeper.Invariants},
		{provider.ModuleName, k.ProviderKeeper.Invariants},
		{cert.ModuleName, k.CertKeeper.Invariants},
		{audit.ModuleName, k.AuditKeeper.Invariants},
	}
}
