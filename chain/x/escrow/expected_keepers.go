package escrow

import (
	"context"
	"time"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/x/authz"
)

// AccountKeeper knows the module accounts.
type AccountKeeper interface {
	GetModuleAddress(name string) sdk.AccAddress
}

// BankKeeper moves coins. What the module holds must be in an account that no
// one can send to but through this module, or the books do not close.
type BankKeeper interface {
	GetAllBalances(ctx context.Context, owner sdk.AccAddress) sdk.Coins
	SpendableCoin(ctx context.Context, owner sdk.AccAddress, denom string) sdk.Coin
	SendCoinsFromAccountToModule(ctx context.Context, from sdk.AccAddress, module string, coins sdk.Coins) error
	SendCoinsFromModuleToAccount(ctx context.Context, module string, to sdk.AccAddress, coins sdk.Coins) error
}

// AuthzKeeper keeps the grants.
type AuthzKeeper interface {
	// GetAuthorization is nil for a grant that is unknown or has expired.
	GetAuthorization(ctx context.Context, grantee, granter sdk.AccAddress, msgType string) (authz.Authorization, *time.Time)
	SaveGrant(ctx context.Context, grantee, granter sdk.AccAddress, authorization authz.Authorization, expiration *time.Time) error
	// IterateGrants walks all grants of the chain; genesis alone does that.
	IterateGrants(ctx context.Context, each func(granter, grantee sdk.AccAddress, grant authz.Grant) (stop bool))
}
