package escrow

import "cosmossdk.io/errors"

// The errors of the module. The codes are part of the wire contract: a client
// tells them apart by codespace and code, never by text.
var (
	ErrAccountExists       = errors.Register(ModuleName, 1, "escrow account exists")
	ErrAccountClosed       = errors.Register(ModuleName, 2, "escrow account is closed: make a new deployment")
	ErrAccountNotFound     = errors.Register(ModuleName, 3, "escrow account is not found: check its id")
	ErrAccountOverdrawn    = errors.Register(ModuleName, 4, "escrow account is overdrawn: a deposit pays its debt and closes it")
	ErrInvalidDenom        = errors.Register(ModuleName, 5, "escrow account does not hold this denomination: use one it holds")
	ErrPaymentExists       = errors.Register(ModuleName, 6, "payment exists")
	ErrPaymentClosed       = errors.Register(ModuleName, 7, "payment is closed")
	ErrPaymentNotFound     = errors.Register(ModuleName, 8, "payment is not found: check its id")
	ErrPaymentRateZero     = errors.Register(ModuleName, 9, "payment rate is zero: name a rate above zero")
	ErrInvalidPayment      = errors.Register(ModuleName, 10, "payment is invalid")
	ErrInvalidSettlement   = errors.Register(ModuleName, 11, "settlement is inconsistent: report this to the chain's operators")
	ErrInvalidID           = errors.Register(ModuleName, 12, "escrow id is invalid: give the scope and an xid such as OWNER/DSEQ")
	ErrInvalidAccount      = errors.Register(ModuleName, 13, "escrow account is invalid")
	ErrInvalidDepositor    = errors.Register(ModuleName, 14, "depositor is invalid")
	ErrInvalidDepositScope = errors.Register(ModuleName, 15, "escrow account takes no further deposits: only those of deployments do")
	ErrInvalidDeposit      = errors.Register(ModuleName, 16, "deposit is invalid: give a positive amount and its sources, balance, grant or both")
	ErrInvalidAuthzScope   = errors.Register(ModuleName, 17, "grant is not for this scope: ask the granter for one that is")
	ErrInvalidKey          = errors.Register(ModuleName, 18, "store key is invalid")
)
