package app

import (
	"context"
	"fmt"

	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	"github.com/cosmos/cosmos-sdk/types/module"
	upgradetypes "github.com/cosmos/cosmos-sdk/x/upgrade/types"
)

// Upgrade is one step from an older version of the chain to this one. Validators
// vote for a plan of that name; at the plan's height a program that does not
// know the name stops, and one that knows it runs the migrations and goes on.
//
// A program must not know the name of an upgrade that is planned for later, so
// an upgrade is added in the release that is to be installed at its height.
type Upgrade struct {
	Name   string                   // the plan's name
	Stores storetypes.StoreUpgrades // stores that come, go or get a new name
}

// Upgrades are the steps this version knows: none, it is the first. Migrations
// of single modules lie with the modules (RegisterMigration); an upgrade whose
// modules kept their versions changes nothing but the program.
func Upgrades() []Upgrade { return nil }

func (a *App) registerUpgrades() error {
	for _, u := range a.options.Upgrades {
		a.UpgradeKeeper.SetUpgradeHandler(u.Name, func(ctx context.Context, _ upgradetypes.Plan, from module.VersionMap) (module.VersionMap, error) {
			return a.manager.RunMigrations(ctx, a.services, from)
		})
	}
	if a.options.Home == "" {
		return nil
	}
	// The program that stopped at the plan's height left a note of it: the
	// stores must change before the state is loaded.
	plan, err := a.UpgradeKeeper.ReadUpgradeInfoFromDisk()
	if err != nil {
		return fmt.Errorf("read upgrade note: %w", err)
	}
	if a.UpgradeKeeper.IsSkipHeight(plan.Height) {
		return nil
	}
	for _, u := range a.options.Upgrades {
		if u.Name == plan.Name {
			a.SetStoreLoader(upgradetypes.UpgradeStoreLoader(plan.Height, &u.Stores))
		}
	}
	return nil
}
